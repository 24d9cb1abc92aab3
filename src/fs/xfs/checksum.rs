//! The checksums of version 5: crc32c over a structure with its checksum field as zeros, stored in little-endian order.

use crate::bytes::le32;

/// The checksum of `bytes` with four zeros at `at`.
pub(super) fn crc(bytes: &[u8], at: usize) -> u32 {
    let head = bytes.get(..at).unwrap_or_default();
    let tail = bytes.get(at.saturating_add(4)..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]), tail)
}

/// True if the checksum at `at` is that of `bytes`.
pub(super) fn crc_ok(bytes: &[u8], at: usize) -> bool {
    le32(bytes, at) == Some(crc(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_itself_counts_as_zeros() {
        let mut bytes = b"12345678\0\0\0\0abc".to_vec();
        let sum = crc(&bytes, 8);
        assert_eq!(sum, crc32c::crc32c(&bytes));
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        assert!(crc_ok(&bytes, 8));
        bytes[0] ^= 1;
        assert!(!crc_ok(&bytes, 8));
        assert!(!crc_ok(&bytes[..9], 8));
    }
}
