//! The checksums of ext4 and jbd2, as raw shift registers: no inversion before or after, the seed is the register.

/// crc32c (Castagnoli), the way the kernel's `ext4_chksum` chains it.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// crc16 (polynomial 0x8005, reflected), of `gdt_csum` group descriptors.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xa001
            } else {
                crc >> 1
            }
        })
    })
}

/// Steps of [`crc32_be`] for each value of the top byte.
#[expect(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which would reject a wrong index"
)]
const CRC32_BE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 != 0 {
                (crc << 1) ^ 0x04c1_1db7
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// crc32 (IEEE 802.3), most significant bit first, of jbd2's compatible feature `checksum`.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        let step = CRC32_BE.get(usize::from((crc >> 24) as u8 ^ byte));
        (crc << 8) ^ step.copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_catalogue() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
        assert_eq!(!crc32_be(!0, b"123456789"), 0xfc89_1918);
    }
}
