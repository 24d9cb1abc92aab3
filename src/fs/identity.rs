//! UUID and label of filesystems that are recognised but not read: fstab names them all the same.

use crate::bytes::{array, le32, slice, u8_at, until_nul, uuid};
use crate::read_at::{ReadAt, read_vec};

/// The name by which the machine itself finds a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// UUID, or the serial number in the form that blkid(8) gives it (`ABCD-1234`).
    pub uuid: Option<String>,
    /// Label; bytes that are not UTF-8 are replaced.
    pub label: Option<String>,
}

/// UUID and label of what [`super::recognise`] calls `kind`; nothing for kinds that are not known here.
pub fn identity(kind: &str, volume: &dyn ReadAt) -> Identity {
    match kind {
        // FAT: the extended boot record, at 0x24 for FAT12 and FAT16, at 0x40 for FAT32.
        "vfat" => at(volume, 0, 512, |b| {
            let fat32 = crate::bytes::le16(b, 0x16)? == 0;
            let record = if fat32 { 0x40 } else { 0x24 };
            let valid = matches!(u8_at(b, record + 2)?, 0x28 | 0x29);
            let label = slice(b, record + 7, 11)?.trim_ascii_end();
            Some(Identity {
                uuid: valid
                    .then(|| le32(b, record + 3))
                    .flatten()
                    .map(|s| format!("{:04X}-{:04X}", s >> 16, s & 0xffff)),
                label: text(label).filter(|l| valid && l != "NO NAME"),
            })
        }),
        "exfat" => at(volume, 0, 512, |b| {
            let serial = le32(b, 0x64)?;
            Some(Identity {
                uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
                label: None,
            })
        }),
        "ntfs" => at(volume, 0, 512, |b| {
            Some(Identity {
                uuid: Some(format!("{:016X}", crate::bytes::le64(b, 0x48)?)),
                label: None,
            })
        }),
        // xfs_sb: sb_uuid, sb_fname.
        "xfs" => at(volume, 0, 512, |b| plain(b, 32, 108, 12)),
        // btrfs_super_block: fsid, label.
        "btrfs" => at(volume, 0x1_0000, 0x300, |b| plain(b, 0x20, 0x12b, 256)),
        // union swap_header: uuid, volume_name, in the first page behind the boot block.
        "swap" => at(volume, 1024, 64, |b| plain(b, 12, 28, 16)),
        // LUKS: the UUID is text, the label of version 2 stands before the checksum's name.
        "crypto_LUKS" => at(volume, 0, 512, |b| {
            Some(Identity {
                uuid: text(until_nul(slice(b, 168, 40)?)),
                label: match crate::bytes::be16(b, 6)? {
                    2 => text(until_nul(slice(b, 24, 48)?)),
                    _ => None,
                },
            })
        }),
        _ => Identity::default(),
    }
}

fn at(volume: &dyn ReadAt, offset: u64, len: usize, parse: fn(&[u8]) -> Option<Identity>) -> Identity {
    let bytes = read_vec(volume, offset, len).unwrap_or_default();
    parse(&bytes).unwrap_or_default()
}

/// A UUID of 16 bytes and a label that ends with a NUL or its field.
fn plain(b: &[u8], uuid_at: usize, label_at: usize, label_len: usize) -> Option<Identity> {
    Some(Identity {
        uuid: array(b, uuid_at).filter(|u| *u != [0; 16]).map(uuid),
        label: text(until_nul(slice(b, label_at, label_len)?)),
    })
}

fn text(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_empty_volumes_have_no_identity() {
        for kind in [
            "vfat",
            "exfat",
            "ntfs",
            "xfs",
            "btrfs",
            "swap",
            "crypto_LUKS",
            "?",
        ] {
            assert_eq!(identity(kind, &Vec::new()), Identity::default(), "{kind}");
            assert_eq!(identity(kind, &vec![0; 100]), Identity::default(), "{kind}");
        }
    }
}
