//! The MBR partition table with extended and logical partitions (UEFI 2.10 section 5.2; what Linux reads of it).

use super::{Table, Volume, is_boot_sector};
use crate::bytes::{array, le32, slice, u8_at};
use crate::error::Result;
use crate::read_at::{ReadAt, Slice, read_vec};
use std::collections::HashSet;
use std::sync::Arc;

const SECTOR: u64 = 512;
/// More logical partitions than this are not looked for; Linux stops at 256 partitions a disk.
const MAX_LOGICAL: u32 = 252;

/// One of the four entries of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Bootable: 0x80, else 0.
    status: u8,
    /// OSType.
    pub(super) kind: u8,
    /// StartingLBA.
    start: u32,
    /// SizeInLBA.
    sectors: u32,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The four entries of a sector that ends in 55 AA.
pub(super) fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    if array(sector, 510) != Some([0x55, 0xaa]) {
        return None;
    }
    let entry = |n: usize| {
        let b = slice(sector, 446 + n * 16, 16)?;
        Some(Entry {
            status: u8_at(b, 0)?,
            kind: u8_at(b, 4)?,
            start: le32(b, 8)?,
            sectors: le32(b, 12)?,
        })
    };
    Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

/// True if the four entries can be a partition table and not code or text: each is bootable or not, the used ones begin
/// behind the table and on the disk, and do not overlap.
fn plausible(entries: &[Entry; 4], disk: u64) -> bool {
    let used = || entries.iter().filter(|e| e.is_used());
    let span = |e: &Entry| (u64::from(e.start), u64::from(e.start) + u64::from(e.sectors));
    entries.iter().all(|e| matches!(e.status, 0 | 0x80))
        && used().next().is_some()
        && used().all(|e| e.start > 0 && u64::from(e.start) * SECTOR < disk)
        && used().enumerate().all(|(n, a)| {
            used().skip(n + 1).all(|b| {
                let ((a0, a1), (b0, b1)) = (span(a), span(b));
                a1 <= b0 || b1 <= a0
            })
        })
}

/// Reads the table in the first sector and follows the chain of logical partitions.
///
/// # Errors
/// Whatever reading the disk runs into.
pub(super) fn read(disk: &Arc<dyn ReadAt>) -> Result<Option<Table>> {
    if disk.len() < SECTOR {
        return Ok(None);
    }
    let sector = read_vec(disk, 0, 512)?;
    let Some(primary) = entries(&sector).filter(|e| plausible(e, disk.len()) && !is_boot_sector(&sector))
    else {
        return Ok(None);
    };
    let mut table = Table {
        kind: "mbr",
        volumes: Vec::new(),
        notes: Vec::new(),
    };
    let signature = le32(&sector, 440).unwrap_or(0);
    for (number, entry) in (1..)
        .zip(primary)
        .filter(|(_, e)| e.is_used() && !e.is_extended())
    {
        table.push(disk, signature, number, u64::from(entry.start), entry);
    }
    if let Some(extended) = primary.iter().find(|e| e.is_used() && e.is_extended()) {
        logical(disk, signature, u64::from(extended.start), &mut table)?;
    }
    Ok(Some(table))
}

/// Follows the chain of extended boot records that begins in sector `first`. Each names a logical partition, from its own
/// place, and the next record, from `first`.
fn logical(disk: &Arc<dyn ReadAt>, signature: u32, first: u64, table: &mut Table) -> Result<()> {
    let mut seen = HashSet::new();
    let mut at = first;
    let mut number = 5;
    loop {
        let broken = |why: &str| format!("the chain of logical partitions is broken at sector {at}: {why}");
        if !seen.insert(at) {
            table.notes.push(broken("it leads back there"));
            return Ok(());
        }
        // A chain of empty records has no number to stop at.
        if number >= 5 + MAX_LOGICAL || seen.len() > 2 * MAX_LOGICAL as usize {
            table.notes.push(broken("it is too long"));
            return Ok(());
        }
        if at.saturating_add(1).saturating_mul(SECTOR) > disk.len() {
            table.notes.push(broken("it lies behind the end of the disk"));
            return Ok(());
        }
        let Some(record) = entries(&read_vec(disk, at * SECTOR, 512)?) else {
            table.notes.push(broken("no table is there"));
            return Ok(());
        };
        // The third and fourth entry are not used.
        for entry in record.iter().take(2).filter(|e| e.is_used() && !e.is_extended()) {
            table.push(disk, signature, number, at + u64::from(entry.start), *entry);
            number += 1;
        }
        match record.iter().take(2).find(|e| e.is_used() && e.is_extended()) {
            Some(next) => at = first + u64::from(next.start),
            None => return Ok(()),
        }
    }
}

impl Table {
    fn push(&mut self, disk: &Arc<dyn ReadAt>, signature: u32, number: u32, start: u64, entry: Entry) {
        let start = start.saturating_mul(SECTOR);
        let len = u64::from(entry.sectors) * SECTOR;
        if start.saturating_add(len) > disk.len() {
            self.notes
                .push(format!("partition {number} ends behind the end of the disk"));
        }
        if start >= disk.len() {
            return;
        }
        self.volumes.push(Volume {
            name: format!("partition {number}"),
            number: Some(number),
            partuuid: Some(format!("{signature:08x}-{number:02x}")),
            partlabel: None,
            type_: Some(kind_name(entry.kind)),
            start,
            data: Arc::new(Slice::new(Arc::clone(disk), start, len)),
        });
    }
}

fn kind_name(kind: u8) -> String {
    match kind {
        0x01 | 0x04 | 0x06 | 0x0b | 0x0c | 0x0e => "FAT",
        0x07 => "NTFS or exFAT",
        0x27 => "Windows recovery",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0xef => "EFI system",
        0xfd => "Linux RAID",
        _ => return format!("0x{kind:02x}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &mut [u8], sector: usize, entry: usize, kind: u8, start: u32, sectors: u32) {
        let b = &mut disk[sector * 512..sector * 512 + 512];
        b[510..512].copy_from_slice(&[0x55, 0xaa]);
        let e = &mut b[446 + entry * 16..446 + entry * 16 + 16];
        e[4] = kind;
        e[8..12].copy_from_slice(&start.to_le_bytes());
        e[12..16].copy_from_slice(&sectors.to_le_bytes());
    }

    fn table_of(disk: Vec<u8>) -> Option<Table> {
        read(&(Arc::new(disk) as Arc<dyn ReadAt>)).unwrap()
    }

    fn numbers(table: &Table) -> Vec<(u32, u64, u64)> {
        let row = |v: &Volume| (v.number.unwrap(), v.start / 512, v.data.len() / 512);
        table.volumes.iter().map(row).collect()
    }

    #[test]
    fn logical_partitions_are_counted_from_5() {
        let mut d = vec![0; 1000 * 512];
        d[440..444].copy_from_slice(&0x2bc6_5c24u32.to_le_bytes());
        put(&mut d, 0, 0, 0x83, 10, 90);
        put(&mut d, 0, 2, 0x0f, 100, 900);
        put(&mut d, 100, 0, 0x83, 10, 90);
        put(&mut d, 100, 1, 0x05, 300, 100);
        put(&mut d, 400, 0, 0x8e, 10, 5000);
        let t = table_of(d).unwrap();
        assert_eq!(numbers(&t), [(1, 10, 90), (5, 110, 90), (6, 410, 590)]);
        assert_eq!(t.volumes[1].partuuid.as_deref(), Some("2bc65c24-05"));
        assert_eq!(t.volumes[2].type_.as_deref(), Some("Linux LVM"));
        assert_eq!(t.notes.len(), 1, "{:?}", t.notes);
    }

    #[test]
    fn loops_of_extended_records_end() {
        let mut d = vec![0; 1000 * 512];
        put(&mut d, 0, 0, 0x05, 100, 900);
        put(&mut d, 100, 0, 0x83, 1, 1);
        put(&mut d, 100, 1, 0x05, 0, 100);
        let t = table_of(d).unwrap();
        assert_eq!(numbers(&t), [(5, 101, 1)]);
        assert!(t.notes[0].contains("leads back"));
        let mut d = vec![0; 4000 * 512];
        put(&mut d, 0, 0, 0x05, 1, 3999);
        for n in 1..3999usize {
            put(&mut d, n, 1, 0x05, u32::try_from(n).unwrap(), 1);
        }
        let t = table_of(d).unwrap();
        assert!(t.volumes.is_empty() && t.notes[0].contains("too long"));
    }

    #[test]
    fn what_is_no_table() {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut d = vec![0; 1000 * 512];
            put(&mut d, 0, 0, 0x83, 10, 90);
            change(&mut d);
            table_of(d)
        };
        assert!(with(&|_| ()).is_some());
        assert!(with(&|d| d[510] = 0).is_none(), "no signature");
        assert!(with(&|d| d[446] = 0x42).is_none(), "status");
        assert!(
            with(&|d| put(d, 0, 0, 0x83, 1000, 1)).is_none(),
            "behind the disk"
        );
        assert!(with(&|d| put(d, 0, 1, 0x83, 50, 100)).is_none(), "overlap");
        assert!(with(&|d| put(d, 0, 0, 0, 0, 0)).is_none(), "no entry");
        assert!(with(&|d| d[3..11].copy_from_slice(b"NTFS    ")).is_none());
        // GRUB's boot.img begins as a FAT boot sector does, with its parameter block left empty.
        assert!(with(&|d| d[..3].copy_from_slice(&[0xeb, 0x63, 0x90])).is_some());
        assert!(table_of(vec![0x55; 100]).is_none());
    }
}
