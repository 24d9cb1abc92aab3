//! The journal: kernel Documentation/filesystems/ext4/journal.rst (jbd2). Committed transactions that are not yet in
//! place are laid over the volume in memory, as mounting would write them.

use super::Volume;
use super::checksum::{crc32_be, crc32c};
use super::extents::Run;
use super::fast_commit;
use super::superblock::{Superblock, compat};
use crate::bytes::{array, be16, be32, be64, u8_at};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, check_range};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// `JBD2_MAGIC_NUMBER`.
const MAGIC: u32 = 0xc03b_3998;
/// `h_blocktype`.
mod blocktype {
    pub(super) const DESCRIPTOR: u32 = 1;
    pub(super) const COMMIT: u32 = 2;
    pub(super) const SUPERBLOCK_V1: u32 = 3;
    pub(super) const SUPERBLOCK_V2: u32 = 4;
    pub(super) const REVOKE: u32 = 5;
}
/// `s_feature_incompat` of the journal.
mod incompat {
    pub(super) const REVOKE: u32 = 0x1;
    pub(super) const BIT64: u32 = 0x2;
    pub(super) const ASYNC_COMMIT: u32 = 0x4;
    pub(super) const CSUM_V2: u32 = 0x8;
    pub(super) const CSUM_V3: u32 = 0x10;
    pub(super) const FAST_COMMIT: u32 = 0x20;
    pub(super) const KNOWN: u32 = REVOKE | BIT64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}
/// `t_flags` of a descriptor's tag.
mod tag {
    pub(super) const ESCAPE: u16 = 1;
    pub(super) const SAME_UUID: u16 = 2;
    pub(super) const LAST: u16 = 8;
}
/// Revoke records that are kept: more do not fit into a transaction of any journal that is made today.
const MAX_REVOKES: usize = 4 << 20;
/// `JBD2_DEFAULT_FAST_COMMIT_BLOCKS`.
const FAST_COMMIT_BLOCKS: u32 = 256;

/// A filesystem as it is after recovery.
pub(super) struct Recovery {
    pub volume: Volume,
    pub notes: Vec<String>,
    /// What of the journal could not be used.
    pub problems: Vec<String>,
}

/// Replays the journal of the filesystem on `disk` in memory.
///
/// A damaged journal does not hide the filesystem: what is whole in it is used, the rest is named in
/// [`Recovery::problems`].
///
/// # Errors
/// [`Error::Unsupported`] if the journal is on another device or has an unknown feature, [`Error::Corrupt`] if the
/// filesystem cannot be opened before or after.
pub(super) fn recover(disk: &Arc<dyn ReadAt>, sb: &Superblock) -> Result<Recovery> {
    if !sb.has_compat(compat::HAS_JOURNAL) || sb.journal_inum == 0 {
        return Err(Error::unsupported(
            "an ext4 that was not unmounted cleanly and has its journal on another device (journal_dev)",
        ));
    }
    let before = Volume::new(Arc::clone(disk), sb.clone())?;
    let log = match Log::open(&before) {
        Ok(log) => log,
        Err(e @ Error::Unsupported { .. }) => return Err(e),
        Err(e) => {
            return Ok(Recovery {
                volume: before,
                notes: Vec::new(),
                problems: vec![format!(
                    "the journal cannot be replayed, its changes are missing: {e}"
                )],
            });
        }
    };
    if log.start == 0 {
        return Ok(Recovery {
            volume: before,
            notes: vec!["not unmounted cleanly, the journal is empty".to_owned()],
            problems: Vec::new(),
        });
    }
    let mut problems = Vec::new();
    let scan = log.scan(&before, &mut problems);
    let blocks = log.replay(&before, &scan, &mut problems);
    let mut notes = vec![format!(
        "journal replayed in memory: {} transactions, {} blocks",
        scan.transactions,
        blocks.len()
    )];
    let overlay: Arc<dyn ReadAt> = Arc::new(Overlay {
        disk: Arc::clone(disk),
        block_size: u64::from(sb.block_size),
        blocks,
    });
    let after = Superblock::read(&*overlay, false)?;
    if after.block_size != sb.block_size {
        return Err(Error::corrupt(
            "the journal holds a superblock with another block size",
            0,
        ));
    }
    let mut volume = Volume::new(overlay, after)?;
    if let Some(area) = log.fast_commit_area.clone() {
        let blocks = area.map_while(|index| log.block(&before, index).ok());
        let tags = fast_commit::scan(blocks, scan.next_sequence, &mut problems);
        if !tags.is_empty() {
            notes.push(format!("fast commits replayed in memory: {} tags", tags.len()));
            fast_commit::replay(&mut volume, &tags, &mut problems);
        }
    }
    Ok(Recovery {
        volume,
        notes,
        problems,
    })
}

/// The journal of a filesystem: `journal_superblock_t`.
struct Log {
    runs: Vec<Run>,
    /// Blocks of the circular log: from `first` up to, not including, `last`.
    first: u32,
    last: u32,
    /// Where recovery begins; 0 if there is nothing to recover.
    start: u32,
    /// Sequence number of the transaction there.
    sequence: u32,
    incompat: u32,
    /// Compatible feature `checksum`: a crc32 of each transaction in its commit block.
    transaction_checksum: bool,
    seed: u32,
    fast_commit_area: Option<std::ops::RangeInclusive<u32>>,
}

/// One block of a transaction: where it belongs, where in the log it is, and how to check it.
struct Tagged {
    home: u64,
    index: u32,
    escaped: bool,
    checksum: u32,
    sequence: u32,
}

/// What the first pass over the log finds.
#[derive(Default)]
struct Scan {
    transactions: u32,
    next_sequence: u32,
    tags: Vec<Tagged>,
    /// Each revoked block with the sequence number up to which it is.
    revoked: HashMap<u64, u32>,
}

impl Log {
    fn open(volume: &Volume) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("the journal's superblock: {what}"), 0);
        let inode = volume.inode(volume.sb.journal_inum)?;
        if !inode.is_file() || inode.nlink == 0 {
            return Err(inode.corrupt("the journal is not a regular file"));
        }
        let runs = volume.runs(&inode)?;
        let mut log = Self {
            runs,
            first: 0,
            last: 0,
            start: 0,
            sequence: 0,
            incompat: 0,
            transaction_checksum: false,
            seed: 0,
            fast_commit_area: None,
        };
        let b = log.block(volume, 0)?;
        let field = |at: usize| be32(&b, at).unwrap_or(0);
        let version = field(4);
        if field(0) != MAGIC || !matches!(version, blocktype::SUPERBLOCK_V1 | blocktype::SUPERBLOCK_V2) {
            return Err(bad("no magic number"));
        }
        if field(0xc) != volume.sb.block_size {
            return Err(bad("another block size than the filesystem's"));
        }
        let total = u32::try_from(inode.size / u64::from(volume.sb.block_size)).unwrap_or(u32::MAX);
        log.last = field(0x10);
        log.first = field(0x14);
        log.sequence = field(0x18);
        log.start = field(0x1c);
        if version == blocktype::SUPERBLOCK_V2 {
            log.transaction_checksum = field(0x24) & 1 != 0;
            log.incompat = field(0x28);
            let unknown = log.incompat & !incompat::KNOWN;
            if unknown != 0 {
                return Err(Error::unsupported(format!(
                    "the journal feature incompat {unknown:#x}"
                )));
            }
            if log.checksums() {
                let mut copy = b.get(..1024).unwrap_or_default().to_vec();
                if let Some(checksum) = copy.get_mut(0xfc..0x100) {
                    checksum.fill(0);
                }
                if u8_at(&b, 0x50) != Some(4) || crc32c(!0, &copy) != field(0xfc) {
                    return Err(bad("the checksum is wrong"));
                }
                log.seed = crc32c(!0, &array::<16>(&b, 0x30).unwrap_or_default());
            }
        }
        if log.last > total || log.first == 0 || log.first >= log.last {
            return Err(bad("s_first or s_maxlen is impossible"));
        }
        if log.incompat & incompat::FAST_COMMIT != 0 {
            let blocks = match field(0x54) {
                0 => FAST_COMMIT_BLOCKS,
                n => n,
            };
            let end = log.last;
            log.last = end
                .checked_sub(blocks)
                .filter(|last| *last > log.first)
                .ok_or_else(|| bad("s_num_fc_blks is impossible"))?;
            log.fast_commit_area = Some(log.last.saturating_add(1)..=end.saturating_sub(1));
        }
        if log.start != 0 && !(log.first..log.last).contains(&log.start) {
            return Err(bad("s_start is outside the log"));
        }
        Ok(log)
    }

    /// True if blocks carry crc32c checksums.
    fn checksums(&self) -> bool {
        self.incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0
    }

    /// Byte offset on the volume of the log's block `index`.
    fn locate(&self, volume: &Volume, index: u32) -> Result<u64> {
        let at = self.runs.partition_point(|run| run.end() <= u64::from(index));
        self.runs
            .get(at)
            .and_then(|run| {
                let block = run
                    .physical
                    .checked_add(u64::from(index.checked_sub(run.logical)?))?;
                block.checked_mul(u64::from(volume.sb.block_size))
            })
            .ok_or_else(|| Error::corrupt(format!("the journal has no block {index}"), 0))
    }

    fn block(&self, volume: &Volume, index: u32) -> Result<Vec<u8>> {
        let at = self.locate(volume, index)?;
        crate::read_at::read_vec(&*volume.disk, at, volume.sb.block_size as usize)
    }

    /// The block behind `index`, round the end of the log.
    fn after(&self, index: u32) -> u32 {
        match index.saturating_add(1) {
            next if next >= self.last => self.first,
            next => next,
        }
    }

    /// Follows the log from its start to its last whole transaction.
    fn scan(&self, volume: &Volume, problems: &mut Vec<String>) -> Scan {
        let mut scan = Scan::default();
        let mut sequence = self.sequence;
        let mut at = self.start;
        // What belongs to the transaction that is being read.
        let mut tags: Vec<Tagged> = Vec::new();
        let mut revoked: Vec<u64> = Vec::new();
        let mut damaged = false;
        let mut crc = !0;
        let mut last_time = 0;
        // A log is passed once: where every block claims to continue it, this ends the walk.
        let mut left = self.last.saturating_sub(self.first);
        while left > 0 {
            left -= 1;
            let Ok(block) = self.block(volume, at) else {
                problems.push(format!(
                    "block {at} of the journal cannot be read, what follows is missing"
                ));
                break;
            };
            at = self.after(at);
            let header = (be32(&block, 0), be32(&block, 8));
            if header != (Some(MAGIC), Some(sequence)) {
                break;
            }
            match be32(&block, 4) {
                Some(blocktype::DESCRIPTOR) => {
                    damaged |= !self.tail_checksum_ok(&block);
                    if self.transaction_checksum {
                        crc = crc32_be(crc, &block);
                    }
                    for (home, flags, checksum) in self.tags(&block) {
                        if self.transaction_checksum {
                            crc = crc32_be(crc, &self.block(volume, at).unwrap_or_default());
                        }
                        tags.push(Tagged {
                            home,
                            index: at,
                            escaped: flags & tag::ESCAPE != 0,
                            checksum,
                            sequence,
                        });
                        at = self.after(at);
                        left = left.saturating_sub(1);
                    }
                }
                Some(blocktype::REVOKE) => {
                    damaged |= !self.tail_checksum_ok(&block);
                    revoked.extend(self.revokes(&block));
                }
                Some(blocktype::COMMIT) => {
                    let time = be64(&block, 0x30).unwrap_or(0);
                    if damaged || !self.commit_ok(&block, crc) {
                        // A commit older than the one before is left from an earlier round of the log.
                        if time >= last_time && !self.interrupted(volume, at, sequence) {
                            problems.push(format!(
                                "transaction {sequence} of the journal has a wrong checksum, it and what follows is \
                                 missing"
                            ));
                        }
                        break;
                    }
                    if scan.revoked.len().saturating_add(revoked.len()) > MAX_REVOKES {
                        problems.push(format!(
                            "transaction {sequence} of the journal has too many revoke records, it and what follows \
                             is missing"
                        ));
                        break;
                    }
                    for block in revoked.drain(..) {
                        let entry = scan.revoked.entry(block).or_insert(sequence);
                        if after(sequence, *entry) {
                            *entry = sequence;
                        }
                    }
                    scan.tags.append(&mut tags);
                    scan.transactions = scan.transactions.saturating_add(1);
                    last_time = time;
                    crc = !0;
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        scan.next_sequence = sequence;
        scan
    }

    /// True if a transaction with a wrong checksum was only cut off: commits may be written before their blocks
    /// (`async_commit`), and no commit block of the next one follows.
    fn interrupted(&self, volume: &Volume, next: u32, sequence: u32) -> bool {
        let follows = self
            .block(volume, next)
            .is_ok_and(|b| be32(&b, 0) == Some(MAGIC) && be32(&b, 8) == Some(sequence.wrapping_add(1)));
        self.incompat & incompat::ASYNC_COMMIT != 0 && !follows
    }

    /// The tags of a descriptor block: home block, flags, checksum (journal_block_tag_t, journal_block_tag3_t).
    fn tags(&self, block: &[u8]) -> Vec<(u64, u16, u32)> {
        let wide = self.incompat & incompat::BIT64 != 0;
        let v3 = self.incompat & incompat::CSUM_V3 != 0;
        let mut size = if v3 { 16 } else { 8 };
        if !v3 && wide {
            size += 4;
        }
        if !v3 && self.incompat & incompat::CSUM_V2 != 0 {
            size += 2;
        }
        let end = block.len().saturating_sub(if self.checksums() { 4 } else { 0 });
        let mut found = Vec::new();
        let mut at = 12usize;
        while at.saturating_add(size) <= end {
            let mut home = u64::from(be32(block, at).unwrap_or(0));
            if wide {
                home |= u64::from(be32(block, at + 8).unwrap_or(0)) << 32;
            }
            let flags = be16(block, at + 6).unwrap_or(0);
            let checksum = if v3 {
                be32(block, at + 12).unwrap_or(0)
            } else {
                u32::from(be16(block, at + 4).unwrap_or(0))
            };
            found.push((home, flags, checksum));
            at = at.saturating_add(size);
            if flags & tag::SAME_UUID == 0 {
                at = at.saturating_add(16);
            }
            if flags & tag::LAST != 0 {
                break;
            }
        }
        found
    }

    /// The blocks that a revoke block names (jbd2_journal_revoke_header_t).
    fn revokes(&self, block: &[u8]) -> Vec<u64> {
        let end = be32(block, 12).unwrap_or(0) as usize;
        let end = end.min(block.len().saturating_sub(if self.checksums() { 4 } else { 0 }));
        let records = block.get(16..end).unwrap_or_default();
        if self.incompat & incompat::BIT64 != 0 {
            let (records, _) = records.as_chunks::<8>();
            records.iter().map(|r| u64::from_be_bytes(*r)).collect()
        } else {
            let (records, _) = records.as_chunks::<4>();
            records
                .iter()
                .map(|r| u64::from(u32::from_be_bytes(*r)))
                .collect()
        }
    }

    /// Whether the checksum at the end of a descriptor or revoke block (jbd2_journal_block_tail) is right.
    fn tail_checksum_ok(&self, block: &[u8]) -> bool {
        let tail = block.len().saturating_sub(4);
        let crc = crc32c(crc32c(self.seed, block.get(..tail).unwrap_or_default()), &[0; 4]);
        !self.checksums() || be32(block, tail) == Some(crc)
    }

    /// Whether the checksum in a commit block (struct commit_header) is right; `crc` is that of the transaction.
    fn commit_ok(&self, block: &[u8], crc: u32) -> bool {
        let stored = be32(block, 0x10);
        if self.checksums() {
            let mut sum = crc32c(self.seed, block.get(..0x10).unwrap_or_default());
            sum = crc32c(sum, &[0; 4]);
            sum = crc32c(sum, block.get(0x14..).unwrap_or_default());
            return stored == Some(sum);
        }
        if self.transaction_checksum {
            let kind = (u8_at(block, 0xc), u8_at(block, 0xd));
            let unused = kind == (Some(0), Some(0)) && stored == Some(0);
            return unused || (kind == (Some(1), Some(4)) && stored == Some(crc));
        }
        true
    }

    /// Where each block of the committed transactions is to be read from.
    fn replay(&self, volume: &Volume, scan: &Scan, problems: &mut Vec<String>) -> BTreeMap<u64, Placed> {
        let mut blocks = BTreeMap::new();
        let mut damaged = 0u32;
        for tagged in &scan.tags {
            let revoked = scan.revoked.get(&tagged.home);
            if revoked.is_some_and(|last| !after(tagged.sequence, *last)) {
                continue;
            }
            let placed = match self.locate(volume, tagged.index) {
                Ok(at) if tagged.home < volume.sb.blocks_count && self.block_ok(volume, tagged) => Placed {
                    at,
                    escaped: tagged.escaped,
                },
                _ => {
                    damaged = damaged.saturating_add(1);
                    continue;
                }
            };
            blocks.insert(tagged.home, placed);
        }
        if damaged > 0 {
            problems.push(format!(
                "{damaged} blocks of the journal are damaged, their changes are missing"
            ));
        }
        blocks
    }

    /// Whether the checksum of a data block, in its tag, is right.
    fn block_ok(&self, volume: &Volume, tagged: &Tagged) -> bool {
        if !self.checksums() {
            return true;
        }
        let Ok(block) = self.block(volume, tagged.index) else {
            return false;
        };
        let crc = crc32c(crc32c(self.seed, &tagged.sequence.to_be_bytes()), &block);
        if self.incompat & incompat::CSUM_V3 != 0 {
            crc == tagged.checksum
        } else {
            crc & 0xffff == tagged.checksum
        }
    }
}

/// True if sequence number `a` is later than `b`; they wrap round.
fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Where the current content of a block is.
#[derive(Debug, Clone, Copy)]
struct Placed {
    /// Byte offset on the volume.
    at: u64,
    /// The block begins with the magic number, which stands as zeros in the log.
    escaped: bool,
}

/// A volume with the blocks of its journal in their places.
struct Overlay {
    disk: Arc<dyn ReadAt>,
    block_size: u64,
    blocks: BTreeMap<u64, Placed>,
}

impl ReadAt for Overlay {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the volume", self.len(), offset, buf.len())?;
        let end = offset.saturating_add(buf.len() as u64);
        let mut at = offset;
        let mut rest = buf;
        let first = offset / self.block_size;
        let last = end.div_ceil(self.block_size);
        for (number, placed) in self.blocks.range(first..last) {
            let start = number.saturating_mul(self.block_size).max(at);
            let before = usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some((gap, more)) = rest.split_at_mut_checked(before) else {
                return Ok(());
            };
            self.disk.read_at(at, gap)?;
            let within = start % self.block_size;
            let n = usize::try_from(self.block_size - within)
                .unwrap_or(usize::MAX)
                .min(more.len());
            let Some((part, more)) = more.split_at_mut_checked(n) else {
                return Ok(());
            };
            self.disk.read_at(placed.at.saturating_add(within), part)?;
            if placed.escaped {
                let magic = MAGIC.to_be_bytes();
                let skip = usize::try_from(within).unwrap_or(usize::MAX).min(magic.len());
                for (to, from) in part.iter_mut().zip(magic.iter().skip(skip)) {
                    *to = *from;
                }
            }
            at = start.saturating_add(n as u64);
            rest = more;
        }
        self.disk.read_at(at, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_wrap() {
        assert!(after(1, 0));
        assert!(after(0, u32::MAX));
        assert!(!after(5, 5));
        assert!(!after(u32::MAX, 3));
    }

    #[test]
    fn overlay_reads_across_its_edges() {
        let disk: Arc<dyn ReadAt> = Arc::new((0..64u8).collect::<Vec<u8>>());
        let blocks = BTreeMap::from([
            (
                1,
                Placed {
                    at: 40,
                    escaped: false,
                },
            ),
            (
                2,
                Placed {
                    at: 48,
                    escaped: true,
                },
            ),
        ]);
        let overlay = Overlay {
            disk,
            block_size: 8,
            blocks,
        };
        let read = |offset, len| {
            let mut buf = vec![0; len];
            overlay.read_at(offset, &mut buf).unwrap();
            buf
        };
        assert_eq!(read(6, 12), [6, 7, 40, 41, 42, 43, 44, 45, 46, 47, 0xc0, 0x3b]);
        assert_eq!(read(18, 8), [0x39, 0x98, 52, 53, 54, 55, 24, 25]);
        assert_eq!(read(10, 2), [42, 43]);
        assert_eq!(read(30, 0), Vec::<u8>::new());
        assert!(overlay.read_at(60, &mut [0; 5]).is_err());
    }
}
