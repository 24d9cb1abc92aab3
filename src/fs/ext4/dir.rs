//! Directories: kernel Documentation/filesystems/ext4/directory.rst. Indexed ones are read linearly like any other: their
//! index blocks look like empty directory blocks.

use super::Volume;
use super::checksum::crc32c;
use super::inode::{Inode, OLD_SIZE, flags};
use crate::bytes::{le16, le32, slice, u8_at};
use crate::error::{Error, Result};
use crate::path::is_name;
use std::collections::HashSet;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Problems that are told for one directory; the rest is one line.
const MAX_PROBLEMS: usize = 20;

/// A name and the inode it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DirEntry {
    pub ino: u32,
    pub name: Vec<u8>,
}

/// What one directory holds, without `.` and `..`.
#[derive(Default)]
pub(super) struct Directory {
    pub entries: Vec<DirEntry>,
    /// What could not be read of it.
    pub problems: Vec<String>,
}

impl Directory {
    fn problem(&mut self, what: String) {
        match self.problems.len() {
            n if n < MAX_PROBLEMS => self.problems.push(what),
            MAX_PROBLEMS => self
                .problems
                .push("the directory has more damage than is listed here".to_owned()),
            _ => {}
        }
    }

    /// Adds the entries of `block` (struct ext4_dir_entry_2). At the first impossible one the rest is given up.
    fn parse(&mut self, block: &[u8], block_size: u32, inodes_count: u32, whereabouts: &str) {
        let mut at = 0usize;
        while at.saturating_add(8) <= block.len() {
            let fields = || Some((le32(block, at)?, le16(block, at + 4)?, u8_at(block, at + 6)?));
            let Some((ino, rec_len, name_len)) = fields() else {
                break;
            };
            let rec_len = record_length(rec_len, block_size);
            let name_len = usize::from(name_len);
            let end = at.saturating_add(rec_len);
            if rec_len < 12
                || !rec_len.is_multiple_of(4)
                || rec_len < (name_len + 8).next_multiple_of(4)
                || end > block.len()
            {
                self.problem(format!(
                    "{whereabouts}: a damaged entry at byte {at}, the rest is skipped"
                ));
                break;
            }
            let name = slice(block, at + 8, name_len).unwrap_or_default();
            if ino != 0 && name != b"." && name != b".." {
                if ino > inodes_count {
                    self.problem(format!(
                        "{whereabouts}: an entry for inode {ino}, which does not exist"
                    ));
                } else if is_name(name) {
                    self.entries.push(DirEntry {
                        ino,
                        name: name.to_vec(),
                    });
                } else {
                    self.problem(format!(
                        "{whereabouts}: an entry with an impossible name at byte {at}"
                    ));
                }
            }
            at = end;
        }
    }

    /// Keeps the first of entries with one name, as looking it up does.
    fn drop_doubles(&mut self) {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        let name = |i: &usize| {
            self.entries
                .get(*i)
                .map(|e| e.name.as_slice())
                .unwrap_or_default()
        };
        order.sort_by(|a, b| name(a).cmp(name(b)).then(a.cmp(b)));
        let doubles: HashSet<usize> = order
            .windows(2)
            .filter_map(|w| match w {
                [a, b] if name(a) == name(b) => Some(*b),
                _ => None,
            })
            .collect();
        if doubles.is_empty() {
            return;
        }
        let (mut at, mut dropped) = (0, Vec::new());
        self.entries.retain(|entry| {
            let double = doubles.contains(&at);
            at += 1;
            if double && dropped.len() <= MAX_PROBLEMS {
                dropped.push(crate::error::Escaped(&entry.name).to_string());
            }
            !double
        });
        for name in dropped {
            self.problem(format!("the name {name} is there twice, the second is skipped"));
        }
    }
}

/// `rec_len` in bytes; blocks of 64 KiB need more than its 16 bits.
fn record_length(raw: u16, block_size: u32) -> usize {
    let raw = usize::from(raw);
    if block_size < 65536 {
        raw
    } else if raw == 0 || raw == 65535 {
        65536
    } else {
        (raw & 0xfffc) | (raw & 3) << 16
    }
}

impl Volume {
    /// Reads the directory `inode`. `blocks_left` is how many directory blocks may still be read, so that damaged
    /// directories that share blocks end.
    ///
    /// # Errors
    /// If nothing of it can be read.
    pub(super) fn directory(&self, inode: &Inode, blocks_left: &mut u64) -> Result<Directory> {
        if let Some(dir) = self.fast.directory(inode.ino) {
            return Ok(dir);
        }
        if inode.has(flags::ENCRYPT) {
            return Err(Error::unsupported("the directory is encrypted (fscrypt)"));
        }
        let mut dir = Directory::default();
        if inode.has(flags::INLINE_DATA) {
            let (block_size, inodes) = (self.sb.block_size, self.sb.inodes_count);
            let bytes = self.inline(inode)?;
            let (first, second) = bytes.split_at_checked(60).unwrap_or((&bytes, &[]));
            // The first four bytes are the parent's inode number.
            dir.parse(
                first.get(4..).unwrap_or_default(),
                block_size,
                inodes,
                "inline data",
            );
            dir.parse(second, block_size, inodes, "inline data in system.data");
        } else {
            self.directory_blocks(inode, blocks_left, &mut dir)?;
        }
        dir.drop_doubles();
        Ok(dir)
    }

    fn directory_blocks(&self, inode: &Inode, blocks_left: &mut u64, dir: &mut Directory) -> Result<()> {
        let block_size = u64::from(self.sb.block_size);
        let blocks = inode.size.div_ceil(block_size);
        if blocks == 0 {
            return Err(inode.corrupt("a directory without a block"));
        }
        let mut next = 0u64;
        let runs = self.runs(inode)?;
        if runs.last().is_some_and(|run| run.end() > blocks) {
            dir.problem("the directory has blocks behind its end, which are not read".to_owned());
        }
        for run in runs {
            let start = u64::from(run.logical);
            let end = run.end().min(blocks);
            if start >= blocks {
                break;
            }
            if start > next {
                dir.problem(format!("the directory has a hole at block {next}"));
            }
            next = end;
            let mut at = start;
            while at < end {
                let count = (PIECE as u64 / block_size).max(1).min(end - at).min(*blocks_left);
                if count == 0 {
                    return Err(inode.corrupt("directories claim more blocks than the filesystem has"));
                }
                *blocks_left -= count;
                let physical = run.physical.saturating_add(at - start);
                self.directory_piece(inode, at, physical, count, dir);
                at += count;
            }
        }
        if next < blocks {
            dir.problem(format!("the directory has a hole at block {next}"));
        }
        Ok(())
    }

    /// Adds `count` neighbouring blocks of a directory, read at once if they can be.
    fn directory_piece(&self, inode: &Inode, logical: u64, physical: u64, count: u64, dir: &mut Directory) {
        let block_size = self.sb.block_size as usize;
        let whole = self.blocks(physical, count);
        for i in 0..count {
            let number = logical.saturating_add(i);
            let from = usize::try_from(i)
                .unwrap_or(usize::MAX)
                .saturating_mul(block_size);
            let single;
            let block = match &whole {
                Ok(bytes) => slice(bytes, from, block_size).unwrap_or_default(),
                Err(_) => match self.block(physical.saturating_add(i)) {
                    Ok(bytes) => {
                        single = bytes;
                        single.as_slice()
                    }
                    Err(e) => {
                        dir.problem(format!("block {number} of the directory: {e}"));
                        continue;
                    }
                },
            };
            if self.sb.metadata_csum() && !directory_checksum_ok(inode, block) {
                dir.problem(format!("block {number} of the directory: the checksum is wrong"));
                continue;
            }
            let place = format!("block {number} of the directory");
            dir.parse(block, self.sb.block_size, self.sb.inodes_count, &place);
        }
    }

    /// The content in the inode: `i_block`, then the attribute `system.data`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if that attribute is missing.
    pub(super) fn inline(&self, inode: &Inode) -> Result<Vec<u8>> {
        let data = super::xattr::inline_value(inode)?
            .ok_or_else(|| inode.corrupt("is inline, but has no attribute system.data"))?;
        if usize::from(self.sb.inode_size) <= OLD_SIZE {
            return Err(inode.corrupt("is inline, but inodes are too small for that"));
        }
        Ok([&inode.block[..], &data].concat())
    }
}

/// "Directory block checksums" (struct ext4_dir_entry_tail, struct dx_tail) in directory.rst.
fn directory_checksum_ok(inode: &Inode, block: &[u8]) -> bool {
    index_checksum(inode, block).unwrap_or_else(|| {
        let tail = block.len().saturating_sub(12);
        let marked = le32(block, tail) == Some(0) && le32(block, tail + 4) == Some(0xde00_000c);
        let crc = crc32c(inode.csum_seed, block.get(..tail).unwrap_or_default());
        marked && le32(block, tail + 8) == Some(crc)
    })
}

/// Whether the checksum of an index block (struct dx_root, struct dx_node) is right; `None` if it is not one.
fn index_checksum(inode: &Inode, block: &[u8]) -> Option<bool> {
    if !inode.has(flags::INDEX) {
        return None;
    }
    let size = u32::try_from(block.len()).ok()?;
    let first = record_length(le16(block, 4)?, size);
    let entries = if first == block.len() {
        8usize
    } else if first == 12 && record_length(le16(block, 16)?, size) == block.len().checked_sub(12)? {
        // dx_root_info: reserved_zero, then info_length of 8.
        if le32(block, 24)? != 0 || u8_at(block, 29)? != 8 {
            return None;
        }
        32
    } else {
        return None;
    };
    let limit = usize::from(le16(block, entries)?);
    let count = usize::from(le16(block, entries + 2)?);
    let tail = entries.saturating_add(limit.saturating_mul(8));
    if count > limit || tail.saturating_add(8) > block.len() {
        return Some(false);
    }
    let used = entries.saturating_add(count.saturating_mul(8));
    let crc = crc32c(inode.csum_seed, block.get(..used)?);
    let crc = crc32c(crc, slice(block, tail, 4)?);
    let crc = crc32c(crc, &[0; 4]);
    Some(le32(block, tail + 4)? == crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths_of_large_blocks() {
        assert_eq!(record_length(4096, 4096), 4096);
        assert_eq!(record_length(0, 65536), 65536);
        assert_eq!(record_length(65535, 65536), 65536);
        assert_eq!(record_length(65528, 65536), 65528);
    }

    #[test]
    fn a_damaged_entry_ends_its_block_and_is_told() {
        let mut block = vec![0; 64];
        block[..12].copy_from_slice(&[12, 0, 0, 0, 12, 0, 1, 1, b'a', 0, 0, 0]);
        block[12..20].copy_from_slice(&[13, 0, 0, 0, 2, 0, 1, 1]);
        let mut dir = Directory::default();
        dir.parse(&block, 1024, 100, "block 0");
        assert_eq!(dir.entries.len(), 1);
        assert_eq!(dir.problems.len(), 1);
    }

    #[test]
    fn of_two_entries_with_one_name_the_first_stays() {
        let e = |ino, name: &[u8]| DirEntry {
            ino,
            name: name.to_vec(),
        };
        let mut dir = Directory {
            entries: vec![e(1, b"b"), e(2, b"a"), e(3, b"b"), e(4, b"b")],
            problems: Vec::new(),
        };
        dir.drop_doubles();
        assert_eq!(dir.entries, [e(1, b"b"), e(2, b"a")]);
        assert_eq!(dir.problems.len(), 2);
    }
}
