//! Where the bytes of a fork lie: extent lists and their B+trees (`struct xfs_bmbt_rec`, `struct xfs_bmdr_block`,
//! `struct xfs_btree_lblock`; "XFS Algorithms & Data Structures", chapter "Data Extents").

use super::Volume;
use super::checksum::crc_ok;
use super::inode::{Fork, Format, Inode};
use crate::bytes::{array, be16, be64, slice};
use crate::error::{Error, Result};
use crate::read_at::read_vec;

/// Blocks of a file that lie together and are written; what no run covers is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block within the fork.
    pub logical: u64,
    /// Number of blocks, at least 1.
    pub len: u64,
    /// Byte offset on the volume.
    pub at: u64,
}

impl Run {
    /// The block of the fork behind this run.
    pub(super) fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }
}

impl crate::fs::runs::Run for Run {
    fn first(&self) -> u64 {
        self.logical
    }
    fn end(&self) -> u64 {
        self.end()
    }
    fn at(&self, _: u64) -> u64 {
        self.at
    }
}

/// A change of a file's data fork that the log promises: `struct xfs_map_extent` of a bmap update intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edit {
    /// First block within the file.
    pub logical: u64,
    pub len: u64,
    /// First block of the filesystem and whether it is written; `None` to take the mapping away.
    pub to: Option<(u64, bool)>,
}

/// `XFS_BMAP_MAGIC`.
const MAGIC: &[u8] = b"BMAP";
/// `XFS_BMAP_CRC_MAGIC`.
const CRC_MAGIC: &[u8] = b"BMA3";
/// `XFS_BTREE_MAXLEVELS`.
const MAX_LEVELS: u16 = 9;
/// The most runs that are kept for one file: 192 MiB.
const MAX_RUNS: usize = 8 << 20;
/// Bits of `br_startoff`.
const MAX_LOGICAL: u64 = 1 << 54;

/// Reads a fork's extents in order.
struct Extents<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    runs: Vec<Run>,
    /// The block behind the last extent, written or not.
    next: u64,
    count: u64,
}

impl Volume {
    /// All written runs of the data fork of `inode`, whose content must be in blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the list or the tree is damaged.
    pub(super) fn runs(&self, inode: &Inode) -> Result<Vec<Run>> {
        let mut runs = self.fork_runs(inode, &inode.data)?;
        for edit in self.edits.get(&inode.ino).into_iter().flatten() {
            self.apply(inode, &mut runs, edit)?;
        }
        Ok(runs)
    }

    /// All written runs of one fork.
    ///
    /// # Errors
    /// As [`Self::runs`].
    pub(super) fn fork_runs(&self, inode: &Inode, fork: &Fork) -> Result<Vec<Run>> {
        let mut extents = Extents {
            volume: self,
            inode,
            runs: Vec::new(),
            next: 0,
            count: 0,
        };
        match fork.format {
            Format::Extents => {
                let len = usize::try_from(fork.extents)
                    .ok()
                    .and_then(|n| n.checked_mul(16))
                    .and_then(|len| slice(&fork.bytes, 0, len))
                    .ok_or_else(|| inode.corrupt("has more extents than fit into it"))?;
                extents.records(len)?;
            }
            Format::Btree => {
                let bad = || inode.corrupt("the root of its extent tree is damaged");
                let level = be16(&fork.bytes, 0).ok_or_else(bad)?;
                let count = usize::from(be16(&fork.bytes, 2).ok_or_else(bad)?);
                let most = fork.bytes.len().saturating_sub(4) / 16;
                if !(1..MAX_LEVELS).contains(&level) || count == 0 || count > most {
                    return Err(bad());
                }
                let pointers = slice(&fork.bytes, 4 + most * 8, count * 8).ok_or_else(bad)?;
                extents.children(pointers, level)?;
                if extents.count != fork.extents {
                    return Err(inode.corrupt(format!(
                        "has {} extents, its tree {}",
                        fork.extents, extents.count
                    )));
                }
            }
            Format::Local | Format::Device => {
                return Err(inode.corrupt("its content is not in blocks"));
            }
        }
        Ok(extents.runs)
    }

    /// Changes `runs` as finishing the intent would.
    fn apply(&self, inode: &Inode, runs: &mut Vec<Run>, edit: &Edit) -> Result<()> {
        let end = edit.logical.saturating_add(edit.len);
        let mut changed = Vec::with_capacity(runs.len().saturating_add(2));
        for run in runs.iter() {
            if run.logical < edit.logical {
                let len = run.len.min(edit.logical.saturating_sub(run.logical));
                changed.push(Run { len, ..*run });
            }
            if run.end() > end {
                let skip = end.saturating_sub(run.logical);
                changed.push(Run {
                    logical: run.logical.saturating_add(skip),
                    len: run.len.saturating_sub(skip),
                    at: run
                        .at
                        .saturating_add(skip.saturating_mul(u64::from(self.sb.block_size))),
                });
            }
        }
        if let Some((block, true)) = edit.to {
            let at = self
                .sb
                .data_byte_of(block, edit.len)
                .ok_or_else(|| inode.corrupt("an intent of the log maps blocks that do not exist"))?;
            changed.push(Run {
                logical: edit.logical,
                len: edit.len,
                at,
            });
        }
        changed.sort_by_key(|run| run.logical);
        *runs = changed;
        Ok(())
    }
}

impl Extents<'_> {
    /// Adds packed records (`struct xfs_bmbt_rec`).
    fn records(&mut self, bytes: &[u8]) -> Result<()> {
        let (records, _) = bytes.as_chunks::<16>();
        for record in records {
            let high = be64(record, 0).unwrap_or(0);
            let low = be64(record, 8).unwrap_or(0);
            let unwritten = high >> 63 != 0;
            let logical = high >> 9 & (MAX_LOGICAL - 1);
            let block = (high & 0x1ff) << 43 | low >> 21;
            let len = low & 0x1f_ffff;
            if logical < self.next || len == 0 || logical.saturating_add(len) > MAX_LOGICAL {
                return Err(self.inode.corrupt(format!(
                    "the extent of block {logical} is out of order or impossible"
                )));
            }
            let Some(at) = self.volume.sb.data_byte_of(block, len) else {
                return Err(self.inode.corrupt(format!(
                    "the extent of block {logical} lies outside the filesystem or in its own structures"
                )));
            };
            self.next = logical.saturating_add(len);
            self.count = self.count.saturating_add(1);
            if !unwritten {
                self.push(Run { logical, len, at })?;
            }
        }
        Ok(())
    }

    fn push(&mut self, run: Run) -> Result<()> {
        let block_size = u64::from(self.volume.sb.block_size);
        if let Some(last) = self.runs.last_mut()
            && last.end() == run.logical
            && last.at.saturating_add(last.len.saturating_mul(block_size)) == run.at
        {
            last.len = last.len.saturating_add(run.len);
            return Ok(());
        }
        if self.runs.len() >= MAX_RUNS {
            return Err(Error::unsupported(format!(
                "inode {}: a file in more than {MAX_RUNS} pieces",
                self.inode.ino
            )));
        }
        self.runs.push(run);
        Ok(())
    }

    /// Reads the blocks that `pointers` name; the one that holds the pointers is of `level`. As every block has at
    /// least one record and the records' order is checked, no block is read twice.
    fn children(&mut self, pointers: &[u8], level: u16) -> Result<()> {
        let (pointers, _) = pointers.as_chunks::<8>();
        for pointer in pointers {
            self.block(u64::from_be_bytes(*pointer), level.saturating_sub(1))?;
        }
        Ok(())
    }

    fn block(&mut self, number: u64, level: u16) -> Result<()> {
        let sb = &self.volume.sb;
        let bad = |what: &str| {
            self.inode
                .corrupt(format!("block {number} of its extent tree: {what}"))
        };
        let at = sb.data_byte_of(number, 1).ok_or_else(|| bad("does not exist"))?;
        let bytes = read_vec(&*self.volume.disk, at, sb.block_size as usize)?;
        let header = if sb.has_crc() { 72 } else { 24 };
        let magic = if sb.has_crc() { CRC_MAGIC } else { MAGIC };
        if slice(&bytes, 0, 4) != Some(magic) {
            return Err(bad("no magic number"));
        }
        if sb.has_crc() {
            if !crc_ok(&bytes, 64) {
                return Err(bad("the checksum is wrong"));
            }
            let owned = be64(&bytes, 24) == Some(at / 512)
                && array(&bytes, 40) == Some(sb.meta_uuid)
                && be64(&bytes, 56) == Some(self.inode.ino);
            if !owned {
                return Err(bad("it belongs elsewhere"));
            }
        }
        let count = usize::from(be16(&bytes, 6).unwrap_or(0));
        let most = bytes.len().saturating_sub(header) / 16;
        if be16(&bytes, 4) != Some(level) || count == 0 || count > most {
            return Err(bad("its header is impossible"));
        }
        if level == 0 {
            let records = slice(&bytes, header, count * 16).unwrap_or_default();
            return self.records(records);
        }
        let pointers = slice(&bytes, header + most * 8, count * 8).unwrap_or_default();
        self.children(pointers, level)
    }
}
