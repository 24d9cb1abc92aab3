//! Directories: "XFS Algorithms & Data Structures", chapter "Directories". Short ones lie in their inode; all others are
//! read linearly: one block, or the data blocks of the leaf, node and B+tree forms, whose indexes are not needed.

use super::Volume;
use super::checksum::crc_ok;
use super::extents::Run;
use super::inode::{Format, Inode};
use crate::bytes::{array, be16, be32, be64, slice, u8_at};
use crate::error::Result;
use crate::path::is_name;
use std::collections::HashSet;

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;
/// Problems that are told for one directory; the rest is one line.
const MAX_PROBLEMS: usize = 20;
/// `XFS_DIR2_LEAF_OFFSET`: the byte of the fork where the indexes begin.
const LEAF_OFFSET: u64 = 32 << 30;
/// Magic numbers: one block with its index at the end, and data blocks; without and with checksums.
const BLOCK: &[u8] = b"XD2B";
const BLOCK3: &[u8] = b"XDB3";
const DATA: &[u8] = b"XD2D";
const DATA3: &[u8] = b"XDD3";

/// A name and the inode it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DirEntry {
    pub ino: u64,
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

    fn add(&mut self, ino: u64, name: &[u8], whereabouts: &str) {
        if name == b"." || name == b".." {
            return;
        }
        if is_name(name) {
            self.entries.push(DirEntry {
                ino,
                name: name.to_vec(),
            });
        } else {
            self.problem(format!("{whereabouts}: an entry with an impossible name"));
        }
    }

    /// Adds the entries of a short directory (`struct xfs_dir2_sf_hdr`).
    fn parse_short(&mut self, bytes: &[u8], ftype: bool) {
        let mut entries = || {
            let count = u8_at(bytes, 0)?;
            let wide = u8_at(bytes, 1)? != 0;
            let number_len = if wide { 8 } else { 4 };
            let mut at = 2 + number_len;
            for _ in 0..count {
                let len = usize::from(u8_at(bytes, at)?);
                let name = slice(bytes, at.checked_add(3)?, len)?;
                let number = at + 3 + len + usize::from(ftype);
                let ino = if wide {
                    be64(bytes, number)? & 0x00ff_ffff_ffff_ffff
                } else {
                    u64::from(be32(bytes, number)?)
                };
                self.add(ino, name, "the short directory");
                at = number + number_len;
            }
            Some(())
        };
        if entries().is_none() {
            self.problem("the short directory is cut short".to_owned());
        }
    }

    /// Adds the entries of `area`, the part of a block behind its header (`struct xfs_dir2_data_entry`, `struct
    /// xfs_dir2_data_unused`). At the first impossible one the rest is given up.
    fn parse(&mut self, block: &[u8], from: usize, to: usize, ftype: bool, whereabouts: &str) {
        let mut at = from;
        while at < to {
            let Some(next) = self.entry(block, at, to, ftype, whereabouts) else {
                self.problem(format!(
                    "{whereabouts}: a damaged entry at byte {at}, the rest is skipped"
                ));
                return;
            };
            at = next;
        }
    }

    /// Reads what stands at `at` and says where the next begins.
    fn entry(&mut self, block: &[u8], at: usize, to: usize, ftype: bool, whereabouts: &str) -> Option<usize> {
        if be16(block, at)? == 0xffff {
            let len = usize::from(be16(block, at + 2)?);
            let next = at.checked_add(len)?;
            // The tag at the end says where it begins.
            let tag = be16(block, next.checked_sub(2)?)?;
            return (len >= 8 && len.is_multiple_of(8) && next <= to && usize::from(tag) == at & 0xffff)
                .then_some(next);
        }
        let ino = be64(block, at)?;
        let len = usize::from(u8_at(block, at + 8)?);
        let name = slice(block, at + 9, len)?;
        let next = at + (9 + len + usize::from(ftype) + 2).next_multiple_of(8);
        let tag = be16(block, next.checked_sub(2)?)?;
        if len == 0 || next > to || usize::from(tag) != at & 0xffff {
            return None;
        }
        self.add(ino, name, whereabouts);
        Some(next)
    }

    /// Keeps the first of entries with one name.
    fn drop_doubles(&mut self) {
        let mut met: HashSet<&[u8]> = HashSet::with_capacity(self.entries.len());
        let keep: Vec<bool> = self.entries.iter().map(|e| met.insert(&e.name)).collect();
        if keep.iter().all(|k| *k) {
            return;
        }
        let mut dropped = Vec::new();
        let mut kept = keep.iter();
        self.entries.retain(|entry| {
            let first = kept.next().copied().unwrap_or(true);
            if !first && dropped.len() <= MAX_PROBLEMS {
                dropped.push(crate::error::Escaped(&entry.name).to_string());
            }
            first
        });
        for name in dropped {
            self.problem(format!("the name {name} is there twice, the second is skipped"));
        }
    }
}

impl Volume {
    /// The entries of the directory `inode`. `budget` is the number of bytes of directories that may still be read.
    ///
    /// # Errors
    /// If nothing of it can be read.
    pub(super) fn directory(&self, inode: &Inode, budget: &mut u64) -> Result<Directory> {
        let mut directory = Directory::default();
        match inode.data.format {
            Format::Local => {
                let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
                let bytes = inode
                    .data
                    .bytes
                    .get(..len)
                    .ok_or_else(|| inode.corrupt("the short directory is longer than its inode"))?;
                directory.parse_short(bytes, self.sb.ftype);
            }
            Format::Extents | Format::Btree => self.blocks(inode, budget, &mut directory)?,
            Format::Device => return Err(inode.corrupt("di_format does not fit its type")),
        }
        directory.drop_doubles();
        Ok(directory)
    }

    /// Reads the data blocks of a directory, those that lie together with one read.
    fn blocks(&self, inode: &Inode, budget: &mut u64, directory: &mut Directory) -> Result<()> {
        let runs = self.runs(inode)?;
        let block_size = u64::from(self.sb.block_size);
        let dir_block = u64::from(self.sb.dir_block_size);
        let per_block = dir_block / block_size;
        let leaf = LEAF_OFFSET / block_size;
        // A directory whose only block is followed by an index is not of the block form.
        let single = runs.last().is_some_and(|run| run.end() <= per_block);
        let mut next = 0u64;
        let mut index = 0;
        while let Some(run) = runs.get(index) {
            if run.logical >= leaf {
                break;
            }
            if run.end() <= next {
                index += 1;
                continue;
            }
            // Directory blocks are aligned in the fork.
            let first = run.logical.max(next) / per_block * per_block;
            let end = run.end().min(leaf).next_multiple_of(per_block);
            let mut at = first;
            while at < end {
                let count = (PIECE / block_size).max(per_block).min(end - at);
                let len = count.saturating_mul(block_size);
                *budget = budget.checked_sub(len).ok_or_else(|| {
                    inode.corrupt("all directories together have more blocks than the filesystem")
                })?;
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
                if let Err(e) = self.read_runs(&runs, at.saturating_mul(block_size), &mut bytes) {
                    directory.problem(format!("blocks {at} to {}: {e}", at + count - 1));
                    at += count;
                    continue;
                }
                for block in bytes.chunks(usize::try_from(dir_block).unwrap_or(usize::MAX)) {
                    if let Err(what) = self.dir_block(inode, &runs, at, block, single, directory) {
                        directory.problem(format!("directory block {at}: {what}"));
                    }
                    at += per_block;
                }
            }
            next = end;
            index += 1;
        }
        if next == 0 {
            return Err(inode.corrupt("a directory without blocks"));
        }
        Ok(())
    }

    /// Reads one directory block, the `number`th block of the fork.
    fn dir_block(
        &self,
        inode: &Inode,
        runs: &[Run],
        number: u64,
        block: &[u8],
        single: bool,
        directory: &mut Directory,
    ) -> Result<(), &'static str> {
        let crc = self.sb.has_crc();
        let magic = match (single, crc) {
            (true, true) => BLOCK3,
            (true, false) => BLOCK,
            (false, true) => DATA3,
            (false, false) => DATA,
        };
        if slice(block, 0, 4) != Some(magic) {
            return Err("no magic number");
        }
        if crc {
            if !crc_ok(block, 4) {
                return Err("the checksum is wrong");
            }
            if be64(block, 8) != place(runs, number, u64::from(self.sb.block_size))
                || array(block, 24) != Some(self.sb.meta_uuid)
                || be64(block, 40) != Some(inode.ino)
            {
                return Err("it belongs elsewhere");
            }
        }
        let from = if crc { 64 } else { 16 };
        let mut to = block.len();
        if single {
            // struct xfs_dir2_block_tail, and the hashes before it.
            let count = be32(block, to.saturating_sub(8)).and_then(|n| usize::try_from(n).ok());
            to = count
                .and_then(|n| n.checked_mul(8)?.checked_add(8))
                .and_then(|len| to.checked_sub(len))
                .filter(|to| *to >= from)
                .ok_or("its tail is impossible")?;
        }
        directory.parse(
            block,
            from,
            to,
            self.sb.ftype,
            &format!("directory block {number}"),
        );
        Ok(())
    }
}

/// The sector of block `number` of a fork.
pub(super) fn place(runs: &[Run], number: u64, block_size: u64) -> Option<u64> {
    let run = runs.get(runs.partition_point(|run| run.end() <= number))?;
    let within = number.checked_sub(run.logical)?.checked_mul(block_size)?;
    Some(run.at.checked_add(within)? / 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_directory_with_wide_numbers_and_one_cut_short() {
        let mut bytes = vec![1, 1];
        bytes.extend(7u64.to_be_bytes());
        bytes.extend([3, 0, 0]);
        bytes.extend(b"abc");
        bytes.push(1);
        bytes.extend(9u64.to_be_bytes());
        let mut directory = Directory::default();
        directory.parse_short(&bytes, true);
        assert_eq!(
            directory.entries,
            [DirEntry {
                ino: 9,
                name: b"abc".to_vec()
            }]
        );
        assert!(directory.problems.is_empty());
        directory.parse_short(&bytes[..bytes.len() - 1], true);
        assert_eq!(directory.problems.len(), 1);
    }

    #[test]
    fn of_two_equal_names_the_first_stays() {
        let mut directory = Directory::default();
        for ino in 1..4 {
            directory.add(ino, if ino == 2 { b"b" } else { b"a" }, "x");
        }
        directory.drop_doubles();
        let inos: Vec<u64> = directory.entries.iter().map(|e| e.ino).collect();
        assert_eq!(inos, [1, 2]);
        assert_eq!(directory.problems.len(), 1);
    }
}
