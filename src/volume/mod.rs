//! Volumes: the bytes of a disk in, its partitions out. Nothing is ever written.
//!
//! [`VOLUMES`] is the list of partition tables that are known. A disk without one is a single volume.
#![deny(clippy::indexing_slicing)]

pub mod assemble;
mod gpt;
mod layout;
pub(crate) mod luks;
pub(crate) mod lvm;
mod mbr;
pub(crate) mod md;
mod parity;
mod raid10;

pub use luks::{Ask, Keys, Limits, Secret};

use crate::bytes::{array, le32};
use crate::error::Result;
use crate::read_at::ReadAt;
use std::sync::Arc;

/// A part of a disk that may hold a filesystem.
#[derive(Clone)]
pub struct Volume {
    /// As people call it: `partition 1`; `whole disk` if there is no partition table.
    pub name: String,
    /// The partition's number, from 1, as the kernel counts.
    pub number: Option<u32>,
    /// What fstab calls PARTUUID: the GUID of a GPT partition in lower case, or an MBR disk's signature and the
    /// partition's number, as in `2bc65c24-01`.
    pub partuuid: Option<String>,
    /// The name in a GPT entry, if it has one.
    pub partlabel: Option<String>,
    /// What the table says it is for: a name (`Linux`, `EFI system`), else a GUID or `0x` and two digits.
    pub type_: Option<String>,
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Its bytes.
    pub data: Arc<dyn ReadAt>,
}

/// A disk's partitions.
pub struct Table {
    /// The name of its kind in [`VOLUMES`], or `none`.
    pub kind: &'static str,
    /// The partitions in the order of their numbers; the whole disk if there is no table.
    pub volumes: Vec<Volume>,
    /// What is worth telling, as in `the backup of the GPT is read`.
    pub notes: Vec<String>,
}

/// A kind of partition table.
pub struct Row {
    /// `gpt` or `mbr`.
    pub name: &'static str,
    /// Reads the table; `None` if the disk has none of this kind.
    pub read: fn(&Arc<dyn ReadAt>) -> Result<Option<Table>>,
}

/// Every kind of partition table that is known, in the order they are tried: a GPT has an MBR in front of it.
pub const VOLUMES: &[Row] = &[
    Row {
        name: "gpt",
        read: gpt::read,
    },
    Row {
        name: "mbr",
        read: mbr::read,
    },
];

/// The partitions of `disk`, or the whole of it if it has no partition table.
///
/// # Errors
/// [`crate::error::Error::Corrupt`] if there is a table that cannot be read, and whatever reading the disk runs into.
pub fn table(disk: &Arc<dyn ReadAt>) -> Result<Table> {
    for row in VOLUMES {
        if let Some(table) = (row.read)(disk)? {
            return Ok(table);
        }
    }
    Ok(Table::none(whole(disk)))
}

impl Table {
    /// What a disk without a partition table has.
    pub fn none(whole: Volume) -> Self {
        Self {
            kind: "none",
            volumes: vec![whole],
            notes: Vec::new(),
        }
    }
}

/// The volumes of [`table`].
///
/// # Errors
/// As [`table`].
pub fn volumes(disk: &Arc<dyn ReadAt>) -> Result<Vec<Volume>> {
    table(disk).map(|t| t.volumes)
}

/// The whole of `disk` as one volume.
pub fn whole(disk: &Arc<dyn ReadAt>) -> Volume {
    Volume {
        name: "whole disk".to_owned(),
        number: None,
        partuuid: None,
        partlabel: None,
        type_: None,
        start: 0,
        data: Arc::clone(disk),
    }
}

/// True if `sector` is the first of a FAT, exFAT or NTFS filesystem: those end in 55 AA as an MBR does, and what would
/// be a partition table there is boot code or text.
fn is_boot_sector(sector: &[u8]) -> bool {
    if matches!(array(sector, 3), Some(b) if [*b"NTFS    ", *b"EXFAT   ", *b"-FVE-FS-"].contains(&b)) {
        return true;
    }
    // The BIOS parameter block of FAT: what every version of it has in common.
    let le16 = |at| crate::bytes::le16(sector, at).unwrap_or(0);
    let byte = |at| crate::bytes::u8_at(sector, at).unwrap_or(0);
    let jump = byte(0) == 0xe9 || byte(0) == 0xeb && byte(2) == 0x90;
    let sectors = u32::from(le16(19)).max(le32(sector, 32).unwrap_or(0));
    jump && matches!(le16(11), 512 | 1024 | 2048 | 4096)
        && byte(13).is_power_of_two()
        && le16(14) > 0
        && matches!(byte(16), 1 | 2)
        && (byte(21) == 0xf0 || byte(21) >= 0xf8)
        && sectors > 0
}
