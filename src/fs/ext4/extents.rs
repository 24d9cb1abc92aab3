//! Where the bytes of a file lie: extent trees (`struct ext4_extent_header`, kernel
//! Documentation/filesystems/ext4/ifork.rst) and the block pointers of ext2 and ext3.

use super::Volume;
use super::checksum::crc32c;
use super::inode::{Inode, flags};
use crate::bytes::{le16, le32};
use crate::error::{Error, Result};
use std::collections::HashSet;

/// Blocks of a file that lie together and are written; what no run covers is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block within the file.
    pub logical: u32,
    /// Number of blocks, at least 1.
    pub len: u32,
    /// First block on the volume.
    pub physical: u64,
}

impl Run {
    /// The block of the file behind this run.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.logical).saturating_add(u64::from(self.len))
    }
}

impl crate::fs::runs::Run for Run {
    fn first(&self) -> u64 {
        u64::from(self.logical)
    }
    fn end(&self) -> u64 {
        self.end()
    }
    fn at(&self, block_size: u64) -> u64 {
        self.physical.saturating_mul(block_size)
    }
}

/// `eh_magic`.
const MAGIC: u16 = 0xf30a;
/// Levels of index blocks: five suffice for 2^32 blocks.
const MAX_DEPTH: u16 = 5;
/// `ee_len` above this means an extent that is allocated but not written.
const MAX_WRITTEN: u16 = 32768;
/// The most runs that are kept for one file: 128 MiB.
const MAX_RUNS: usize = 8 << 20;
/// Block pointers in `i_block` of ext2 and ext3.
const DIRECT: usize = 12;

/// Runs in the order of the file, neighbours joined.
#[derive(Default)]
pub(super) struct Runs(Vec<Run>);

impl Runs {
    fn push(&mut self, inode: &Inode, run: Run) -> Result<()> {
        if let Some(last) = self.0.last_mut()
            && last.end() == u64::from(run.logical)
            && last.physical.checked_add(u64::from(last.len)) == Some(run.physical)
            && let Some(len) = last.len.checked_add(run.len)
        {
            last.len = len;
            return Ok(());
        }
        if self.0.len() >= MAX_RUNS {
            return Err(Error::unsupported(format!(
                "inode {}: a file in more than {MAX_RUNS} pieces",
                inode.ino
            )));
        }
        self.0.push(run);
        Ok(())
    }
}

/// One entry of a node of an extent tree.
enum Entry {
    /// A leaf's: blocks, and whether they are written.
    Extent(Run, bool),
    /// An index: the first block of the file below it, and the block that holds the next level.
    Index(u32, u64),
}

/// True if block `logical` lies behind the end of `inode`.
fn is_behind(inode: &Inode, sb: &super::superblock::Superblock, logical: u32) -> bool {
    logical > 0 && u64::from(logical) >= inode.size.div_ceil(u64::from(sb.block_size))
}

impl Volume {
    /// All written runs of `inode`, whose content must be in blocks; what lies behind its size may be left out.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if any part of the map is damaged, or has more blocks than the filesystem.
    pub(super) fn runs(&self, inode: &Inode) -> Result<Vec<Run>> {
        if let Some(runs) = self.fast.runs(inode.ino) {
            return Ok(runs);
        }
        let mut runs = Runs::default();
        if inode.has(flags::EXTENTS) {
            let depth = le16(&inode.block, 6).unwrap_or(0);
            if depth > MAX_DEPTH {
                return Err(inode.corrupt(format!("an extent tree of depth {depth}")));
            }
            self.extent_node(inode, &inode.block, depth, None, &mut 0, &mut runs)?;
        } else {
            self.pointers(inode, &mut runs)?;
        }
        let blocks = runs
            .0
            .iter()
            .map(|run| u64::from(run.len))
            .fold(0, u64::saturating_add);
        if blocks > self.sb.blocks_count {
            return Err(inode.corrupt("claims more blocks than the filesystem has"));
        }
        Ok(runs.0)
    }

    /// What the kernel checks of a map before it uses the inode: its root.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the root of the extent tree or a pointer in `i_block` is impossible.
    pub(super) fn check_root(&self, inode: &Inode) -> Result<()> {
        if self.fast.runs(inode.ino).is_some() {
            return Ok(());
        }
        if inode.has(flags::EXTENTS) {
            let depth = le16(&inode.block, 6).unwrap_or(0);
            return self.entries(inode, &inode.block, depth, None, &mut 0).map(drop);
        }
        for i in 0..DIRECT + 3 {
            let block = le32(&inode.block, i * 4).unwrap_or(0);
            if block != 0 {
                self.check_blocks(inode, u64::from(block), 1)?;
            }
        }
        Ok(())
    }

    /// `Ok` if `len` blocks from `start` may belong to a file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] otherwise.
    pub(super) fn check_blocks(&self, inode: &Inode, start: u64, len: u64) -> Result<()> {
        let end = start.checked_add(len);
        if start <= u64::from(self.sb.first_data_block) || end.is_none_or(|e| e > self.sb.blocks_count) {
            return Err(inode.corrupt(format!("block {start} is outside the filesystem")));
        }
        if self.groups.is_reserved(start, len) {
            return Err(inode.corrupt(format!("block {start} belongs to the filesystem itself")));
        }
        Ok(())
    }

    /// The checked entries of an extent tree's node, in order. `parent` is the first block of the file that the index
    /// above names, `next` the lowest block that may follow.
    fn entries(
        &self,
        inode: &Inode,
        node: &[u8],
        depth: u16,
        parent: Option<u32>,
        next: &mut u64,
    ) -> Result<Vec<Entry>> {
        let bad = |what: &str| inode.corrupt(format!("extent tree: {what}"));
        let header = || Some((le16(node, 0)?, le16(node, 2)?, le16(node, 4)?, le16(node, 6)?));
        let (magic, count, max, stated) = header().ok_or_else(|| bad("a node is cut short"))?;
        if magic != MAGIC {
            return Err(bad("a node has no magic number"));
        }
        if stated != depth || depth > MAX_DEPTH {
            return Err(bad("a node has the wrong depth"));
        }
        if max == 0 || usize::from(max).saturating_mul(12).saturating_add(12) > node.len() || count > max {
            return Err(bad("a node has too many entries"));
        }
        if count == 0 && depth > 0 {
            return Err(bad("an index node is empty"));
        }
        if parent.is_some() && self.sb.metadata_csum() {
            let tail = usize::from(max).saturating_mul(12).saturating_add(12);
            let crc = crc32c(inode.csum_seed, node.get(..tail).unwrap_or_default());
            if le32(node, tail) != Some(crc) {
                return Err(bad("a node's checksum is wrong"));
            }
        }
        let mut entries = Vec::with_capacity(usize::from(count));
        for i in 0..usize::from(count) {
            let e = node.get(12 + i * 12..24 + i * 12).unwrap_or_default();
            let logical = le32(e, 0).unwrap_or(0);
            if u64::from(logical) < *next {
                return Err(bad("entries are not in order"));
            }
            if i == 0 && parent.is_some_and(|p| p != logical) {
                return Err(bad("a node begins elsewhere than its index says"));
            }
            let (high, low) = if depth == 0 {
                (le16(e, 6), le32(e, 8))
            } else {
                (le16(e, 8), le32(e, 4))
            };
            let physical = u64::from(high.unwrap_or(0)) << 32 | u64::from(low.unwrap_or(0));
            if depth > 0 {
                self.check_blocks(inode, physical, 1)?;
                *next = u64::from(logical).saturating_add(1);
                entries.push(Entry::Index(logical, physical));
                continue;
            }
            let raw = le16(e, 4).unwrap_or(0);
            let written = raw <= MAX_WRITTEN;
            let len = u32::from(if written { raw } else { raw - MAX_WRITTEN });
            let run = Run {
                logical,
                len,
                physical,
            };
            if len == 0 || run.end() > 1 << 32 {
                return Err(bad("an extent has an impossible length"));
            }
            self.check_blocks(inode, physical, u64::from(len))?;
            *next = run.end();
            entries.push(Entry::Extent(run, written));
        }
        Ok(entries)
    }

    /// Adds what lies below `node`; recursion is bounded by [`MAX_DEPTH`].
    fn extent_node(
        &self,
        inode: &Inode,
        node: &[u8],
        depth: u16,
        parent: Option<u32>,
        next: &mut u64,
        runs: &mut Runs,
    ) -> Result<()> {
        let mut order = *next;
        for entry in self.entries(inode, node, depth, parent, &mut order)? {
            match entry {
                Entry::Extent(run, true) => runs.push(inode, run)?,
                Entry::Extent(_, false) => {}
                // Behind the end there is nothing to read; so the work is bounded by the size.
                Entry::Index(logical, _) if is_behind(inode, &self.sb, logical) => {}
                Entry::Index(logical, block) => {
                    let child = self.block(block)?;
                    *next = (*next).max(u64::from(logical));
                    let below = depth.saturating_sub(1);
                    self.extent_node(inode, &child, below, Some(logical), next, runs)?;
                }
            }
        }
        *next = order.max(*next);
        Ok(())
    }

    /// The block map of ext2 and ext3: twelve pointers, then one, two and three levels of blocks of pointers.
    fn pointers(&self, inode: &Inode, runs: &mut Runs) -> Result<()> {
        let per_block = u64::from(self.sb.block_size) / 4;
        let blocks = inode.size.div_ceil(u64::from(self.sb.block_size)).min(1 << 32);
        let mut seen = HashSet::new();
        let mut at = 0u64;
        for i in 0..DIRECT + 3 {
            let level = (i + 1).saturating_sub(DIRECT) as u32;
            let block = u64::from(le32(&inode.block, i * 4).unwrap_or(0));
            let span = per_block.saturating_pow(level);
            if at < blocks && block != 0 {
                self.pointer(inode, block, level, at, blocks, &mut seen, runs)?;
            }
            at = at.saturating_add(span);
        }
        Ok(())
    }

    /// Adds what lies below the pointer `block`, which is for the file's blocks from `at`. Each block of pointers may be
    /// met once, so the work is bounded by the volume; recursion is three deep.
    #[expect(clippy::too_many_arguments, reason = "the state of one walk")]
    fn pointer(
        &self,
        inode: &Inode,
        block: u64,
        level: u32,
        at: u64,
        blocks: u64,
        seen: &mut HashSet<u64>,
        runs: &mut Runs,
    ) -> Result<()> {
        self.check_blocks(inode, block, 1)?;
        let Ok(logical) = u32::try_from(at) else {
            return Ok(());
        };
        if level == 0 {
            return runs.push(
                inode,
                Run {
                    logical,
                    len: 1,
                    physical: block,
                },
            );
        }
        if !seen.insert(block) {
            return Err(inode.corrupt(format!("block {block} holds pointers for two places")));
        }
        let bytes = self.block(block)?;
        let below = level.saturating_sub(1);
        let span = (u64::from(self.sb.block_size) / 4).saturating_pow(below);
        let (words, _) = bytes.as_chunks::<4>();
        for (i, word) in words.iter().enumerate() {
            let next = at.saturating_add(span.saturating_mul(i as u64));
            if next >= blocks {
                break;
            }
            let pointer = u64::from(u32::from_le_bytes(*word));
            if pointer != 0 {
                self.pointer(inode, pointer, below, next, blocks, seen, runs)?;
            }
        }
        Ok(())
    }
}
