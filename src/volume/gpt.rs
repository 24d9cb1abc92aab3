//! The GUID partition table (UEFI 2.10 section 5.3).

use super::{Table, Volume, mbr};
use crate::bytes::{array, le16, le32, le64, slice};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, Slice, read_vec};
use std::sync::Arc;

/// Sizes of a logical block that disks have; a disk image does not say which is its own.
const BLOCK_SIZES: [u64; 2] = [512, 4096];
/// Bytes of entries that are read: 128 entries need 16 KiB, sgdisk makes up to a few thousand.
const MAX_ENTRIES: u64 = 4 << 20;
/// OSType of a protective MBR (section 5.2.3).
const PROTECTIVE: u8 = 0xee;

/// A header that is sound, and its entries.
struct Gpt {
    block: u64,
    entry_size: usize,
    entries: Vec<u8>,
}

/// Reads the table at the beginning of the disk, or its backup if that one is damaged.
///
/// # Errors
/// [`Error::Corrupt`] if the MBR says that there is a GPT and neither copy of it is sound.
pub(super) fn read(disk: &Arc<dyn ReadAt>) -> Result<Option<Table>> {
    let start = usize::try_from(disk.len().min(68 << 10)).unwrap_or(0);
    let first = read_vec(disk, 0, start)?;
    let mbr = mbr::entries(&first);
    let protective = mbr.is_some_and(|e| e.iter().any(|e| e.kind == PROTECTIVE));
    // An MBR of partitions without a protective entry is what was written last.
    if !protective && mbr.is_some_and(|e| e.iter().any(|e| e.kind != 0)) {
        return Ok(None);
    }
    let mut notes = Vec::new();
    let mut found = BLOCK_SIZES
        .into_iter()
        .find_map(|block| header(disk, block, block));
    // Without a protective MBR a backup may be left over from before a filesystem was made on the whole disk, unless the
    // beginning of the disk was wiped, and with it any filesystem.
    if found.is_none() && (protective || first.iter().all(|b| *b == 0)) {
        found = BLOCK_SIZES.into_iter().find_map(|block| backup(disk, block));
        if found.is_some() {
            notes.push("the GPT at the beginning of the disk is damaged, its backup is read".to_owned());
        }
    }
    let Some(gpt) = found else {
        if protective {
            return Err(Error::corrupt(
                "the MBR announces a GPT, but both the GPT and its backup are damaged or missing",
                512,
            ));
        }
        return Ok(None);
    };
    let mut volumes = Vec::new();
    for (number, entry) in (1..).zip(gpt.entries.chunks_exact(gpt.entry_size)) {
        let Some(entry) = Entry::from_bytes(entry) else {
            continue;
        };
        let range = entry.range(gpt.block);
        let Some((start, len)) = range.filter(|(start, _)| *start < disk.len()) else {
            notes.push(format!("partition {number} does not lie on the disk"));
            continue;
        };
        if len > disk.len() - start {
            notes.push(format!("partition {number} ends behind the end of the disk"));
        }
        volumes.push(Volume {
            name: format!("partition {number}"),
            number: Some(number),
            partuuid: Some(entry.guid),
            partlabel: Some(entry.name).filter(|n| !n.is_empty()),
            type_: Some(kind_name(entry.kind)),
            start,
            data: Arc::new(Slice::new(Arc::clone(disk), start, len)),
        });
    }
    Ok(Some(Table {
        kind: "gpt",
        volumes,
        notes,
    }))
}

/// The backup: in the last block, or where a first header whose entries are damaged says, should the disk have grown.
fn backup(disk: &dyn ReadAt, block: u64) -> Option<Gpt> {
    let last = (disk.len() / block).checked_sub(1)?;
    header(disk, last * block, block).or_else(|| {
        let first = read_vec(disk, block, 92).ok()?;
        let alternate = le64(&first, 32).filter(|_| first.starts_with(b"EFI PART"))?;
        header(disk, alternate.checked_mul(block)?, block)
    })
}

/// The header at byte `at` and its entries, if both checksums are right (section 5.3.2, table 5.5).
fn header(disk: &dyn ReadAt, at: u64, block: u64) -> Option<Gpt> {
    let size = usize::try_from(block).ok()?;
    let mut b = read_vec(disk, at, size).ok()?;
    let header_size = usize::try_from(le32(&b, 12)?).ok()?;
    let checksum = le32(&b, 16)?;
    if !b.starts_with(b"EFI PART") || header_size < 92 || le64(&b, 24)?.checked_mul(block)? != at {
        return None;
    }
    b.get_mut(16..20)?.fill(0);
    if crc32fast::hash(slice(&b, 0, header_size)?) != checksum {
        return None;
    }
    let (entries_at, count, entry_size) = (le64(&b, 72)?, le32(&b, 80)?, le32(&b, 84)?);
    let bytes = u64::from(count) * u64::from(entry_size);
    if entry_size < 128 || entry_size % 8 != 0 || bytes > MAX_ENTRIES {
        return None;
    }
    let entries = read_vec(disk, entries_at.checked_mul(block)?, usize::try_from(bytes).ok()?).ok()?;
    (crc32fast::hash(&entries) == le32(&b, 88)?).then_some(Gpt {
        block,
        entry_size: usize::try_from(entry_size).ok()?,
        entries,
    })
}

/// A used entry (section 5.3.3, table 5.6).
struct Entry {
    kind: String,
    guid: String,
    starting_lba: u64,
    ending_lba: u64,
    name: String,
}

impl Entry {
    fn from_bytes(b: &[u8]) -> Option<Self> {
        let kind = array(b, 0).filter(|k| *k != [0; 16])?;
        let units: Vec<u16> = (0..36)
            .map_while(|n| le16(b, 56 + n * 2))
            .take_while(|u| *u != 0)
            .collect();
        Some(Self {
            kind: guid(kind),
            guid: guid(array(b, 16)?),
            starting_lba: le64(b, 32)?,
            ending_lba: le64(b, 40)?,
            name: String::from_utf16_lossy(&units),
        })
    }

    /// Start and length in bytes; `None` if the entry cannot be meant.
    fn range(&self, block: u64) -> Option<(u64, u64)> {
        let blocks = self.ending_lba.checked_sub(self.starting_lba)?.checked_add(1)?;
        let start = self.starting_lba.checked_mul(block).filter(|s| *s > 0)?;
        Some((start, blocks.checked_mul(block)?))
    }
}

/// The text form of a GUID: its first three fields are little-endian (UEFI 2.10 appendix A).
fn guid([a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..]: [u8; 16]) -> String {
    let [d0, d1, d2, d3, d4, d5, d6, d7] = rest;
    crate::bytes::uuid([a3, a2, a1, a0, b1, b0, c1, c0, d0, d1, d2, d3, d4, d5, d6, d7])
}

fn kind_name(guid: String) -> String {
    match guid.as_str() {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "EFI system",
        "21686148-6449-6e6f-744e-656564454649" => "BIOS boot",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "Microsoft basic data",
        "e3c9e316-0b5c-4db8-817d-f92df00215ae" => "Microsoft reserved",
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac" => "Windows recovery",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "Linux filesystem",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "Linux swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "Linux LVM",
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => "Linux RAID",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => "Linux extended boot",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "Linux root (x86-64)",
        "b921b045-1df0-41c3-af44-4c6f280d3fae" => "Linux root (ARM-64)",
        "933ac7e1-2eb4-4f13-b844-0e14e2aef915" => "Linux home",
        "4d21b016-b534-45c2-a9fb-5c16e091fd2d" => "Linux variable data",
        _ => return guid,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_written_mixed_endian() {
        let bytes = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
        assert_eq!(guid(bytes), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(kind_name(guid(bytes)), "EFI system");
    }

    #[test]
    fn an_entry_that_cannot_be_meant_has_no_range() {
        let mut b = [1u8; 128];
        let with = |b: &mut [u8; 128], first: u64, last: u64| {
            b[32..40].copy_from_slice(&first.to_le_bytes());
            b[40..48].copy_from_slice(&last.to_le_bytes());
            Entry::from_bytes(b).unwrap().range(4096)
        };
        assert_eq!(with(&mut b, 10, 10), Some((40960, 4096)));
        assert_eq!(with(&mut b, 10, 9), None);
        assert_eq!(with(&mut b, 0, 9), None);
        assert_eq!(with(&mut b, 0, u64::MAX), None);
        assert_eq!(with(&mut b, u64::MAX, u64::MAX), None);
        assert!(Entry::from_bytes(&[0; 128]).is_none());
    }
}
