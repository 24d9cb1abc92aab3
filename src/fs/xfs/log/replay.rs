//! Applies the items of committed transactions, as recovery does: first the buffers, then the inodes, then what frees
//! buffers. Metadata with checksums says by its log sequence number whether it is newer than the log.

use super::super::checksum::{crc, crc_ok};
use super::super::extents::Edit;
use super::super::inode;
use super::super::superblock::Superblock;
use super::overlay::{CHUNK, Overlay};
use super::transactions::{Item, Transaction};
use super::{MAX_ICREATE, SECTOR, bad};
use crate::bytes::{array, be16, be32, be64, le16, le32, le64, slice, u8_at};
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Types of items.
mod item {
    pub(super) const INODE: u16 = 0x123b;
    pub(super) const BUF: u16 = 0x123c;
    pub(super) const ICREATE: u16 = 0x123f;
    pub(super) const BUI: u16 = 0x1244;
    pub(super) const BUD: u16 = 0x1245;
    pub(super) const ATTRI: u16 = 0x1246;
    pub(super) const ATTRD: u16 = 0x1247;
    pub(super) const XMI: u16 = 0x1248;
    pub(super) const XMD: u16 = 0x1249;
    /// From the first to the last that is known.
    pub(super) const KNOWN: std::ops::RangeInclusive<u16> = 0x1236..=0x124f;
}

/// `blf_flags`.
mod blf {
    pub(super) const INODE_BUF: u16 = 1;
    pub(super) const CANCEL: u16 = 2;
    pub(super) const DQUOT_BUFS: u16 = 4 | 8 | 16;
}

/// `ilf_fields`.
mod ilog {
    pub(super) const DDATA: u32 = 0x2;
    pub(super) const DEXT: u32 = 0x4;
    pub(super) const DBROOT: u32 = 0x8;
    pub(super) const DEV: u32 = 0x10;
    pub(super) const ADATA: u32 = 0x40;
    pub(super) const AEXT: u32 = 0x80;
    pub(super) const ABROOT: u32 = 0x100;
    pub(super) const DOWNER: u32 = 0x200;
    pub(super) const AOWNER: u32 = 0x400;
    pub(super) const DFORK: u32 = DDATA | DEXT | DBROOT;
    pub(super) const AFORK: u32 = ADATA | AEXT | ABROOT;
}

/// `me_flags` of a bmap update intent.
mod bmap {
    pub(super) const TYPE: u32 = 0xff;
    pub(super) const MAP: u32 = 1;
    pub(super) const UNMAP: u32 = 2;
    pub(super) const ATTR_FORK: u32 = 1 << 31;
    pub(super) const UNWRITTEN: u32 = 1 << 30;
    pub(super) const REALTIME: u32 = 1 << 29;
}

/// `XFS_MAX_BLOCKSIZE`: no buffer is longer.
const MAX_BUFFER: usize = 64 << 10;
/// Problems of one kind that are told.
const MAX_PROBLEMS: usize = 20;
/// Levels of a B+tree of extents.
const MAX_LEVELS: u16 = 9;

/// Where a block of metadata of version 5 has what recovery needs of it.
#[derive(Debug, Clone, Copy)]
struct Layout {
    lsn: usize,
    uuid: usize,
    crc: usize,
    /// The field with its own sector, if it has one.
    sector: Option<usize>,
}

/// The layout of the block that begins with `head`, by its magic number.
fn layout(head: &[u8]) -> Option<Layout> {
    let of = |lsn, uuid, crc, sector| {
        Some(Layout {
            lsn,
            uuid,
            crc,
            sector,
        })
    };
    match slice(head, 0, 4)? {
        b"AB3B" | b"AB3C" | b"RMB3" | b"R3FC" | b"IAB3" | b"FIB3" => of(24, 32, 52, Some(16)),
        b"BMA3" => of(32, 40, 64, Some(24)),
        b"XAGF" => of(208, 64, 216, None),
        b"XAFL" => of(24, 8, 32, None),
        b"XAGI" => of(320, 296, 312, None),
        b"XSLM" => of(48, 16, 12, Some(40)),
        b"XDB3" | b"XDD3" | b"XDF3" => of(16, 24, 4, Some(8)),
        b"XFSB" => of(240, 32, 224, None),
        _ => match be16(head, 8)? {
            // Leaves of directories, nodes, leaves of attributes.
            0x3df1 | 0x3dff | 0x3ebe | 0x3bee => of(24, 32, 12, Some(16)),
            _ => None,
        },
    }
}

/// An intent that is not yet done.
enum Intent {
    Bmap {
        ino: u64,
        edit: Edit,
    },
    /// What cannot be finished here, in words.
    Other(String),
}

/// The state of a replay.
pub(super) struct Replay {
    sb: Superblock,
    overlay: Overlay,
    /// Sector and length of buffers that are freed further on in the log, and how often.
    cancelled: HashMap<(u64, u64), u32>,
    /// Byte offset and length of buffers that were changed.
    buffers: BTreeMap<u64, usize>,
    /// Byte offsets of inodes that were changed.
    inodes: BTreeSet<u64>,
    /// Inodes whose B+tree blocks came from another inode.
    owners: BTreeSet<u64>,
    /// Buffers changed by transactions of `lsn`, which do not have it yet.
    pending: Vec<u64>,
    lsn: u64,
    intents: BTreeMap<u64, Intent>,
    problems: Vec<String>,
    damaged: usize,
    /// Committed transactions that were applied.
    pub transactions: u64,
}

/// What a replay leaves.
pub(super) struct Finished {
    pub overlay: Overlay,
    pub edits: HashMap<u64, Vec<Edit>>,
    pub problems: Vec<String>,
    pub buffers: usize,
    pub inodes: usize,
}

/// A buffer's item: `struct xfs_buf_log_format`.
struct Buffer {
    flags: u16,
    /// First sector and number of sectors.
    key: (u64, u64),
    /// Number of words of the bitmap.
    words: usize,
}

impl Buffer {
    fn of(item: &Item) -> Option<Self> {
        let head = item.region(0);
        Some(Self {
            flags: le16(head, 4)?,
            key: (le64(head, 8)?, u64::from(le16(head, 6)?)),
            words: usize::try_from(le32(head, 16)?).ok()?,
        })
    }

    fn is_cancel(&self) -> bool {
        self.flags & blf::CANCEL != 0
    }
}

impl Replay {
    pub(super) fn new(disk: &Arc<dyn ReadAt>, sb: &Superblock) -> Self {
        Self {
            sb: sb.clone(),
            overlay: Overlay::new(Arc::clone(disk)),
            cancelled: HashMap::new(),
            buffers: BTreeMap::new(),
            inodes: BTreeSet::new(),
            owners: BTreeSet::new(),
            pending: Vec::new(),
            lsn: 0,
            intents: BTreeMap::new(),
            problems: Vec::new(),
            damaged: 0,
            transactions: 0,
        }
    }

    /// The first pass: which buffers are freed.
    pub(super) fn note_cancelled(&mut self, transaction: &Transaction) -> Result<()> {
        for item in transaction.items.iter().filter(|i| i.kind() == item::BUF) {
            let buffer = Buffer::of(item).ok_or_else(|| impossible("a buffer", transaction))?;
            if buffer.is_cancel() {
                let count = self.cancelled.entry(buffer.key).or_default();
                *count = count.saturating_add(1);
            }
        }
        Ok(())
    }

    /// The second pass: applies a transaction.
    pub(super) fn apply(&mut self, transaction: &Transaction) -> Result<()> {
        if self.lsn != transaction.lsn {
            self.stamp()?;
            self.lsn = transaction.lsn;
        }
        let items = &transaction.items;
        if let Some(item) = items.iter().find(|i| !item::KNOWN.contains(&i.kind())) {
            return Err(bad(
                format!("an item of the unknown type {:#x}", item.kind()),
                transaction.lsn & 0xffff_ffff,
            ));
        }
        for item in items {
            match item.kind() {
                item::BUF => self.buffer(item, transaction)?,
                item::ICREATE => self.icreate(item, transaction)?,
                _ => {}
            }
        }
        for item in items {
            match item.kind() {
                item::INODE => self.inode(item, transaction)?,
                item::BUI | item::ATTRI | item::XMI => self.intent(item, transaction)?,
                item::BUD | item::ATTRD | item::XMD => {
                    let id = le64(item.region(0), 8);
                    id.and_then(|id| self.intents.remove(&id));
                }
                _ => {}
            }
        }
        for item in items.iter().filter(|i| i.kind() == item::BUF) {
            let buffer = Buffer::of(item).ok_or_else(|| impossible("a buffer", transaction))?;
            if buffer.is_cancel()
                && let Some(count) = self.cancelled.get_mut(&buffer.key)
            {
                *count -= 1;
                if *count == 0 {
                    self.cancelled.remove(&buffer.key);
                }
            }
        }
        self.transactions = self.transactions.saturating_add(1);
        Ok(())
    }

    fn buffer(&mut self, item: &Item, transaction: &Transaction) -> Result<()> {
        let bad = || impossible("a buffer", transaction);
        let buffer = Buffer::of(item).ok_or_else(bad)?;
        // Of buffers of inodes only the lists of unlinked inodes are logged this way; dquots are not read.
        if buffer.flags & (blf::CANCEL | blf::INODE_BUF | blf::DQUOT_BUFS) != 0
            || self.cancelled.contains_key(&buffer.key)
        {
            return Ok(());
        }
        let at = buffer.key.0.checked_mul(SECTOR as u64).ok_or_else(bad)?;
        let len = usize::try_from(buffer.key.1).unwrap_or(0).saturating_mul(SECTOR);
        if len == 0 || len > MAX_BUFFER {
            return Err(bad());
        }
        if self.sb.has_crc() && !self.is_older(at, len)? {
            return Ok(());
        }
        let map = item.region(0).get(20..).unwrap_or_default();
        let bits = buffer.words.saturating_mul(32).min(map.len().saturating_mul(8));
        let is_set =
            |bit: usize| bit < bits && u8_at(map, bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0);
        let chunk = usize::try_from(CHUNK).unwrap_or(SECTOR);
        let mut bit = 0;
        for region in item.regions.iter().skip(1) {
            while bit < bits && !is_set(bit) {
                bit += 1;
            }
            let set = (bit..bits).take_while(|bit| is_set(*bit)).count();
            // A region may end before its run of bits does.
            let count = set.min(region.len() / chunk);
            let bytes = region.get(..count * chunk).unwrap_or_default();
            if count == 0 || (bit + count) * chunk > len {
                return Err(bad());
            }
            self.overlay
                .write(at.saturating_add((bit * chunk) as u64), bytes)?;
            bit += count;
        }
        self.buffers.insert(at, len);
        self.pending.push(at);
        Ok(())
    }

    /// True if the buffer at `at` is older than the transaction, or does not tell. What stands there is checked when it
    /// is met first.
    fn is_older(&mut self, at: u64, len: usize) -> Result<bool> {
        let block = self.overlay.bytes(at, len)?;
        let Some(layout) = layout(&block) else {
            return Ok(true);
        };
        let uuid_at = if block.starts_with(super::super::superblock::MAGIC)
            && be32(&block, 216).unwrap_or(0) & 4 != 0
        {
            248
        } else {
            layout.uuid
        };
        if array(&block, uuid_at) != Some(self.sb.meta_uuid) {
            return Ok(true);
        }
        let in_place = layout
            .sector
            .is_none_or(|field| be64(&block, field) == Some(at / SECTOR as u64));
        if in_place && !self.buffers.contains_key(&at) && !crc_ok(self.summed(&block), layout.crc) {
            self.damage(format!("the block at byte {at}"));
        }
        let lsn = be64(&block, layout.lsn).unwrap_or(0);
        Ok(lsn == 0 || lsn == u64::MAX || lsn < self.lsn)
    }

    /// The part of a buffer that its checksum is over.
    fn summed<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        let len = if block.starts_with(super::super::superblock::MAGIC) {
            block.len().min(self.sb.sector_size as usize)
        } else {
            block.len()
        };
        block.get(..len).unwrap_or_default()
    }

    fn damage(&mut self, what: String) {
        self.damaged += 1;
        if self.damaged <= MAX_PROBLEMS {
            self.problems.push(format!(
                "{what} had a wrong checksum before the log was replayed over it: it may be stale or damaged"
            ));
        }
    }

    /// Writes the log sequence number into the buffers of the transactions that have it.
    fn stamp(&mut self) -> Result<()> {
        if !self.sb.has_crc() {
            self.pending.clear();
        }
        for at in std::mem::take(&mut self.pending) {
            let head = self.overlay.bytes(at, SECTOR)?;
            if let Some(layout) = layout(&head) {
                let field = at.saturating_add(layout.lsn as u64);
                self.overlay.write(field, &self.lsn.to_be_bytes())?;
            }
        }
        Ok(())
    }

    /// A new chunk of inodes (`struct xfs_icreate_log`, in big-endian order): what was there before is not valid.
    fn icreate(&mut self, item: &Item, transaction: &Transaction) -> Result<()> {
        let head = item.region(0);
        let range = || {
            let group = u64::from(be32(head, 4)?);
            let block = u64::from(be32(head, 8)?);
            let len = u64::from(be32(head, 20)?);
            let fsb = group << self.sb.ag_block_log | block;
            let size = len.checked_mul(u64::from(self.sb.block_size))?;
            if group >> 32 != 0 || block >> self.sb.ag_block_log != 0 || size > MAX_ICREATE || len == 0 {
                return None;
            }
            // The group may be one that only the log knows.
            let at = match self.sb.byte_of(fsb, len) {
                Some(at) => at,
                None => group
                    .checked_mul(u64::from(self.sb.ag_blocks))?
                    .checked_add(block)?
                    .checked_mul(u64::from(self.sb.block_size))?,
            };
            Some((at, at.checked_add(size)?))
        };
        let (start, end) = range().ok_or_else(|| impossible("a chunk of inodes", transaction))?;
        let sector = SECTOR as u64;
        let freed = self.cancelled.keys().any(|(first, count)| {
            first.saturating_mul(sector) < end && (first + count).saturating_mul(sector) > start
        });
        if !freed {
            self.overlay.zero(start, end);
        }
        Ok(())
    }

    fn inode(&mut self, item: &Item, transaction: &Transaction) -> Result<()> {
        let bad = || impossible("an inode", transaction);
        let head = item.region(0);
        // Old 32-bit systems wrote no padding.
        let base = if head.len() >= 56 { 16 } else { 12 };
        let fields = le32(head, 4).ok_or_else(bad)?;
        let ino = le64(head, base).ok_or_else(bad)?;
        let sector = le64(head, base + 24).ok_or_else(bad)?;
        let sectors = u64::from(le32(head, base + 32).ok_or_else(bad)?);
        let within = u64::from(le32(head, base + 36).ok_or_else(bad)?);
        if self.cancelled.contains_key(&(sector, sectors)) {
            return Ok(());
        }
        let at = sector
            .checked_mul(SECTOR as u64)
            .and_then(|at| at.checked_add(within))
            .ok_or_else(bad)?;
        let size = usize::from(self.sb.inode_size);
        if within.saturating_add(size as u64) > sectors.saturating_mul(SECTOR as u64) {
            return Err(bad());
        }
        let mut raw = self.overlay.bytes(at, size)?;
        let logged = item.region(1);
        let named = |what: &str| Error::corrupt(format!("inode {ino} in the log: {what}"), at);
        if le16(logged, 0) != Some(inode::MAGIC) {
            return Err(named("no magic number"));
        }
        let blank = raw.iter().all(|b| *b == 0);
        if !blank && be16(&raw, 0) != Some(inode::MAGIC) {
            return Err(named("its place on the disk holds no inode"));
        }
        if self.sb.has_crc() {
            let valid = crc_ok(&raw, inode::CRC_AT);
            if !blank && !valid && !self.inodes.contains(&at) && be64(&raw, 152) == Some(ino) {
                self.damage(format!("inode {ino}"));
            }
            let lsn = be64(&raw, inode::LSN_AT).unwrap_or(0);
            if lsn != 0 && lsn != u64::MAX && lsn > transaction.lsn {
                if fields & (ilog::DOWNER | ilog::AOWNER) != 0 {
                    self.owners.insert(at);
                }
                return Ok(());
            }
        } else if flushed_later(&raw, logged) {
            return Ok(());
        }
        core(&mut raw, logged, transaction.lsn).ok_or_else(|| named("it is cut short"))?;
        forks(&self.sb, &mut raw, item, fields, base).ok_or_else(|| named("its forks do not fit"))?;
        if self.sb.has_crc() {
            let sum = crc(&raw, inode::CRC_AT);
            put(&mut raw, inode::CRC_AT, &sum.to_le_bytes()).ok_or_else(bad)?;
        }
        self.overlay.write(at, &raw)?;
        self.inodes.insert(at);
        if fields & (ilog::DOWNER | ilog::AOWNER) != 0 {
            self.owners.insert(at);
        }
        Ok(())
    }

    /// An operation in several transactions that is recorded here and may not be done. Those that change only where free
    /// space is, or who owns what, do not matter for reading.
    fn intent(&mut self, item: &Item, transaction: &Transaction) -> Result<()> {
        let head = item.region(0);
        let bad = || impossible("an intent", transaction);
        let id = le64(head, 8).ok_or_else(bad)?;
        let intent = match item.kind() {
            item::BUI => {
                let ino = le64(head, 16).ok_or_else(bad)?;
                let block = le64(head, 24).ok_or_else(bad)?;
                let logical = le64(head, 32).ok_or_else(bad)?;
                let len = u64::from(le32(head, 40).ok_or_else(bad)?);
                let flags = le32(head, 44).ok_or_else(bad)?;
                let to = match flags & bmap::TYPE {
                    bmap::MAP => Some((block, flags & bmap::UNWRITTEN == 0)),
                    bmap::UNMAP => None,
                    _ => return Err(bad()),
                };
                if le32(head, 4) != Some(1) || flags & (bmap::ATTR_FORK | bmap::REALTIME) != 0 {
                    Intent::Other(format!("a change of the extents of inode {ino}"))
                } else {
                    Intent::Bmap {
                        ino,
                        edit: Edit { logical, len, to },
                    }
                }
            }
            item::ATTRI => {
                let ino = le64(head, 16).unwrap_or(0);
                Intent::Other(format!("a change of the extended attributes of inode {ino}"))
            }
            _ => {
                let (one, two) = (le64(head, 16).unwrap_or(0), le64(head, 24).unwrap_or(0));
                Intent::Other(format!(
                    "an exchange of content between the inodes {one} and {two}"
                ))
            }
        };
        self.intents.insert(id, intent);
        Ok(())
    }

    /// Ends the replay: checksums are made, open intents become edits or problems.
    pub(super) fn finish(mut self) -> Result<Finished> {
        self.stamp()?;
        if self.sb.has_crc() {
            for (at, len) in std::mem::take(&mut self.buffers).iter().map(|(a, l)| (*a, *l)) {
                self.sum(at, len)?;
                self.buffers.insert(at, len);
            }
            for at in std::mem::take(&mut self.owners) {
                self.change_owner(at)?;
            }
        }
        let mut edits: HashMap<u64, Vec<Edit>> = HashMap::new();
        for intent in std::mem::take(&mut self.intents).into_values() {
            match intent {
                Intent::Bmap { ino, edit } => edits.entry(ino).or_default().push(edit),
                Intent::Other(what) if self.problems.len() < 2 * MAX_PROBLEMS => self.problems.push(format!(
                    "{what} was begun and not done; recovery would finish it, here it may be seen half done"
                )),
                Intent::Other(_) => {}
            }
        }
        Ok(Finished {
            overlay: self.overlay,
            edits,
            problems: self.problems,
            buffers: self.buffers.len(),
            inodes: self.inodes.len(),
        })
    }

    /// Makes the checksum of the buffer at `at`.
    fn sum(&mut self, at: u64, len: usize) -> Result<()> {
        let block = self.overlay.bytes(at, len)?;
        if let Some(layout) = layout(&block) {
            let sum = crc(self.summed(&block), layout.crc);
            self.overlay
                .write(at.saturating_add(layout.crc as u64), &sum.to_le_bytes())?;
        }
        Ok(())
    }

    /// Makes the inode at `at` the owner of the blocks of its B+trees: two files exchanged them.
    fn change_owner(&mut self, at: u64) -> Result<()> {
        let raw = self.overlay.bytes(at, usize::from(self.sb.inode_size))?;
        let core = inode::core_size(u8_at(&raw, 4).unwrap_or(0));
        let fork_at = usize::from(u8_at(&raw, 82).unwrap_or(0)) * 8;
        let Some(ino) = be64(&raw, 152).filter(|_| be16(&raw, 2) != Some(0)) else {
            return Ok(());
        };
        let data_end = if fork_at == 0 { raw.len() } else { core + fork_at };
        let forks = [
            (u8_at(&raw, 5), raw.get(core..data_end)),
            (u8_at(&raw, 83), raw.get(data_end..)),
        ];
        for (format, bytes) in forks {
            let Some(bytes) = bytes.filter(|b| format == Some(3) && b.len() > 4) else {
                continue;
            };
            let (level, count) = (
                be16(bytes, 0).unwrap_or(0),
                usize::from(be16(bytes, 2).unwrap_or(0)),
            );
            let most = (bytes.len() - 4) / 16;
            if level < MAX_LEVELS && count <= most {
                let pointers = slice(bytes, 4 + most * 8, count * 8).unwrap_or_default();
                self.own(ino, pointers, level, &mut BTreeSet::new())?;
            }
        }
        Ok(())
    }

    fn own(&mut self, ino: u64, pointers: &[u8], level: u16, met: &mut BTreeSet<u64>) -> Result<()> {
        let (pointers, _) = pointers.as_chunks::<8>();
        for pointer in pointers {
            let Some(at) = self.sb.data_byte_of(u64::from_be_bytes(*pointer), 1) else {
                continue;
            };
            let mut block = self.overlay.bytes(at, self.sb.block_size as usize)?;
            let whole = slice(&block, 0, 4) == Some(b"BMA3") && crc_ok(&block, 64) && level > 0;
            if !whole || be16(&block, 4) != Some(level - 1) || !met.insert(at) {
                continue;
            }
            let _ = put(&mut block, 56, &ino.to_be_bytes());
            let sum = crc(&block, 64);
            let _ = put(&mut block, 64, &sum.to_le_bytes());
            self.overlay.write(at, &block)?;
            if level > 1 {
                let most = (block.len() - 72) / 16;
                let count = usize::from(be16(&block, 6).unwrap_or(0));
                let below = slice(&block, 72 + most * 8, count * 8).unwrap_or_default();
                self.own(ino, below, level - 1, met)?;
            }
        }
        Ok(())
    }
}

fn impossible(what: &str, transaction: &Transaction) -> Error {
    bad(
        format!("the item of {what} is impossible"),
        transaction.lsn & 0xffff_ffff,
    )
}

/// Puts `bytes` at `at`, if they fit.
fn put(target: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    target
        .get_mut(at..at.checked_add(bytes.len())?)?
        .copy_from_slice(bytes);
    Some(())
}

/// True if an inode of version 4 was written to its place after it was logged: `di_flushiter` counts, round 65535.
fn flushed_later(raw: &[u8], logged: &[u8]) -> bool {
    let (disk, log) = (be16(raw, 30).unwrap_or(0), le16(logged, 30).unwrap_or(0));
    log < disk && !(disk == u16::MAX && log < u16::MAX / 2)
}

/// Bytes of the core that every inode has: up to `di_next_unlinked`.
const OLD_CORE: usize = 96;
/// Fields of `struct xfs_log_dinode` in the order of the machine, which stand at the same place in `struct xfs_dinode` in
/// big-endian order: offset and length. Those without a length here, and single bytes, are copied.
const FIELDS: &[(usize, usize)] = &[
    (0, 2),
    (2, 2),
    (4, 1),
    (5, 1),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 2),
    (22, 2),
    (56, 8),
    (64, 8),
    (72, 4),
    (82, 1),
    (83, 1),
    (84, 4),
    (88, 2),
    (90, 2),
    (92, 4),
];
/// The same of version 3.
const FIELDS_V3: &[(usize, usize)] = &[(104, 8), (120, 8), (128, 4), (152, 8)];
const TIMES: [usize; 3] = [32, 40, 48];
/// `di_crtime`.
const CRTIME: usize = 144;
/// `di_uuid`.
const UUID: usize = 160;

/// Takes over the core of a logged inode; `None` if it is cut short.
fn core(raw: &mut [u8], logged: &[u8], lsn: u64) -> Option<()> {
    let version = u8_at(logged, 4)?;
    let v3 = version == 3;
    let flags2 = if v3 { le64(logged, 120)? } else { 0 };
    slice(logged, 0, if v3 { inode::core_size(3) } else { OLD_CORE })?;
    let swap = |raw: &mut [u8], at: usize, len: usize| {
        let mut bytes = slice(logged, at, len)?.to_vec();
        bytes.reverse();
        put(raw, at, &bytes)
    };
    for (at, len) in FIELDS {
        swap(raw, *at, *len)?;
    }
    put(raw, 6, &[0; 2])?;
    let time = |raw: &mut [u8], at: usize| {
        if flags2 & inode::flags2::BIGTIME != 0 {
            swap(raw, at, 8)
        } else {
            swap(raw, at, 4)?;
            swap(raw, at + 4, 4)
        }
    };
    for at in TIMES {
        time(raw, at)?;
    }
    if v3 {
        for (at, len) in FIELDS_V3 {
            swap(raw, *at, *len)?;
        }
        time(raw, CRTIME)?;
        put(raw, inode::LSN_AT, &lsn.to_be_bytes())?;
        put(raw, 132, &[0; 12])?;
        put(raw, UUID, slice(logged, UUID, 16)?)?;
    }
    if flags2 & inode::flags2::NREXT64 != 0 {
        swap(raw, 24, 8)?;
        swap(raw, 76, 4)?;
        swap(raw, 80, 2)
    } else {
        // The counter of flushes begins anew with each recovery.
        put(raw, 24, &[0; 8])?;
        swap(raw, 76, 4)?;
        swap(raw, 80, 2)
    }
}

/// Takes over what is logged of the forks; `None` if it does not fit. `base` is where `ilf_ino` stands.
fn forks(sb: &Superblock, raw: &mut [u8], item: &Item, fields: u32, base: usize) -> Option<()> {
    let core = inode::core_size(u8_at(raw, 4)?);
    let fork_at = usize::from(u8_at(raw, 82)?) * 8;
    let data_end = if fork_at == 0 {
        raw.len()
    } else {
        core.checked_add(fork_at)?
    };
    if fields & ilog::DEV != 0 {
        let device = le32(item.region(0), base + 8)?;
        put(raw, core, &device.to_be_bytes())?;
    }
    let mut region = 2;
    for (mask, data, extents, root, from, to) in [
        (ilog::DFORK, ilog::DDATA, ilog::DEXT, ilog::DBROOT, core, data_end),
        (
            ilog::AFORK,
            ilog::ADATA,
            ilog::AEXT,
            ilog::ABROOT,
            data_end,
            raw.len(),
        ),
    ] {
        if fields & mask == 0 {
            continue;
        }
        // Without a region there is nothing in the fork.
        let Some(bytes) = item.regions.get(region) else {
            continue;
        };
        region += 1;
        let fork = raw.get_mut(from..to)?;
        match fields & mask {
            kind if kind == data || kind == extents => put(fork, 0, bytes)?,
            kind if kind == root => broot(sb, fork, bytes)?,
            _ => return None,
        }
    }
    Some(())
}

/// Turns the root of a B+tree in memory (`struct xfs_btree_block`) into that in an inode (`struct xfs_bmdr_block`).
fn broot(sb: &Superblock, fork: &mut [u8], bytes: &[u8]) -> Option<()> {
    let header = if sb.has_crc() { 72 } else { 24 };
    let count = usize::from(be16(bytes, 6)?);
    let most = bytes.len().checked_sub(header)? / 16;
    let fork_most = fork.len().checked_sub(4)? / 16;
    if count > most || count > fork_most {
        return None;
    }
    put(fork, 0, slice(bytes, 4, 4)?)?;
    put(fork, 4, slice(bytes, header, count * 8)?)?;
    put(
        fork,
        4 + fork_most * 8,
        slice(bytes, header + most * 8, count * 8)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flush_counters_wrap() {
        let raw = |n: u16| [vec![0; 30], n.to_be_bytes().to_vec()].concat();
        let log = |n: u16| [vec![0; 30], n.to_le_bytes().to_vec()].concat();
        assert!(flushed_later(&raw(5), &log(4)));
        assert!(!flushed_later(&raw(5), &log(5)));
        assert!(!flushed_later(&raw(u16::MAX), &log(4)));
        assert!(flushed_later(&raw(u16::MAX), &log(u16::MAX - 1)));
    }
}
