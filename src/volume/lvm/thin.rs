//! Thin pools of the device mapper (drivers/md/dm-thin-metadata.c and persistent-data of Linux): which block of the pool
//! holds which block of a thin volume.

use super::Bytes;
use crate::bytes::{array, le32, le64};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};
use crate::volume::layout::{Map, Piece};
use std::sync::Arc;

/// THIN_METADATA_BLOCK_SIZE.
const BLOCK: usize = 4096;
const MAGIC: u64 = 27_022_010;
/// What the checksums of superblock and btree nodes are mixed with.
const SUPERBLOCK_XOR: u32 = 160_774;
const BTREE_XOR: u32 = 121_107;
/// Flags of a node.
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// Levels of a btree: with 252 entries a node, 8 levels hold more than 64 bits can name.
const MAX_LEVELS: u32 = 16;
/// Memory for nodes.
const CACHE: usize = 16 << 20;
/// THIN_METADATA_NEEDS_CHECK_FLAG.
const NEEDS_CHECK: u32 = 1;

/// CRC-32C without the final inversion, as the kernel's `crc32c` gives it.
fn checksum(bytes: &[u8], xor: u32) -> u32 {
    !crc32c::crc32c(bytes) ^ xor
}

/// An opened thin pool.
pub(super) struct Pool {
    metadata: Bytes,
    data: Bytes,
    /// Bytes of a block of data.
    block: u64,
    /// The btree of devices, whose values are the roots of the btrees of their blocks.
    mappings: u64,
    flags: u32,
    cache: Cache,
}

impl Pool {
    /// Reads the superblock.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is damaged, [`Error::Unsupported`] for versions and features that are not known.
    pub(super) fn open(metadata: Bytes, data: Bytes) -> Result<Self> {
        let corrupt = |what: &str| Error::corrupt(format!("the thin pool's superblock: {what}"), 0);
        let b = read_vec(&*metadata, 0, BLOCK)?;
        let short = || corrupt("it is short");
        let word = |at: usize| le32(&b, at).ok_or_else(short);
        let long = |at: usize| le64(&b, at).ok_or_else(short);
        if long(32)? != MAGIC {
            return Err(corrupt("it has another magic number"));
        }
        if word(0)? != checksum(b.get(4..).unwrap_or_default(), SUPERBLOCK_XOR) {
            return Err(corrupt("its checksum is wrong"));
        }
        let version = word(40)?;
        if !(1..=2).contains(&version) {
            return Err(Error::unsupported(format!(
                "version {version} of a thin pool's metadata"
            )));
        }
        let incompatible = word(360)?;
        if incompatible != 0 {
            return Err(Error::unsupported(format!(
                "the thin pool's feature bits {incompatible:#x}"
            )));
        }
        // 64 KiB to 1 GiB, a multiple of 64 KiB (DATA_DEV_BLOCK_SIZE_MIN_SECTORS, _MAX_SECTORS).
        let sectors = word(336)?;
        if !(128..=2_097_152).contains(&sectors) || sectors % 128 != 0 {
            return Err(corrupt("a block size that cannot be"));
        }
        Ok(Self {
            block: u64::from(sectors) * 512,
            mappings: long(320)?,
            flags: word(4)?,
            metadata,
            data,
            cache: Cache::new(CACHE),
        })
    }

    /// What is worth telling.
    pub(super) fn notes(&self) -> Vec<String> {
        let check = "its metadata is marked as in need of a check (thin_check)".to_owned();
        (self.flags & NEEDS_CHECK != 0)
            .then_some(check)
            .into_iter()
            .collect()
    }

    fn node(&self, number: u64) -> Result<Node> {
        let at = number.saturating_mul(BLOCK as u64);
        let corrupt =
            |what: &str| Error::corrupt(format!("a btree node of the thin pool's metadata: {what}"), at);
        let bytes = self.cache.get(number, || {
            let bytes = read_vec(&*self.metadata, at, BLOCK)?;
            if le32(&bytes, 0) != Some(checksum(bytes.get(4..).unwrap_or_default(), BTREE_XOR)) {
                return Err(corrupt("its checksum is wrong"));
            }
            Ok(bytes)
        })?;
        let short = || corrupt("it is short");
        let word = |at: usize| le32(&bytes, at).ok_or_else(short);
        let flags = word(4)?;
        let own = array(&bytes, 8).map(u64::from_le_bytes);
        let (entries, room, value) = (word(16)? as usize, word(20)? as usize, word(24)? as usize);
        let fits = room
            .checked_mul(8 + value.min(BLOCK))
            .is_some_and(|len| len <= BLOCK - 32);
        if own != Some(number) || !fits || entries > room || value != 8 || !matches!(flags, INTERNAL | LEAF) {
            return Err(corrupt("its header contradicts itself"));
        }
        Ok(Node {
            leaf: flags == LEAF,
            entries,
            room,
            bytes,
        })
    }

    /// The value of the greatest key that is not above `key` in the btree at `root`, with its leaf and place there; and the
    /// first key behind it that this path knows of.
    fn find(&self, root: u64, key: u64) -> Result<(Option<(Node, usize)>, u64)> {
        let mut limit = u64::MAX;
        let mut number = root;
        for _ in 0..MAX_LEVELS {
            let node = self.node(number)?;
            let behind = node.behind(key);
            if let Some(next) = node.key(behind) {
                limit = limit.min(next);
            }
            let Some(place) = behind.checked_sub(1) else {
                return Ok((None, limit));
            };
            if node.leaf {
                return Ok((Some((node, place)), limit));
            }
            number = node
                .value(place)
                .ok_or_else(|| Error::corrupt("a btree node without its value", number))?;
        }
        Err(Error::corrupt(
            "a btree of the thin pool's metadata that is too deep",
            root,
        ))
    }
}

/// A btree node: a header of 32 bytes, the keys, then the values behind the room for keys.
struct Node {
    leaf: bool,
    entries: usize,
    room: usize,
    bytes: Arc<[u8]>,
}

impl Node {
    fn key(&self, n: usize) -> Option<u64> {
        if n >= self.entries {
            return None;
        }
        le64(&self.bytes, 32 + n * 8)
    }

    fn value(&self, n: usize) -> Option<u64> {
        if n >= self.entries {
            return None;
        }
        le64(&self.bytes, 32 + (self.room + n) * 8)
    }

    /// How many keys are not above `key`.
    fn behind(&self, key: u64) -> usize {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle).is_some_and(|k| k <= key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// A thin volume.
pub(super) struct Thin {
    pool: Arc<Pool>,
    /// The btree of its blocks.
    root: u64,
    len: u64,
    /// What is read where the volume itself has nothing.
    origin: Option<Bytes>,
}

impl Thin {
    /// The volume `device` of `pool`, `len` bytes long.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the pool does not know it.
    pub(super) fn open(pool: &Arc<Pool>, device: u64, len: u64, origin: Option<Bytes>) -> Result<Self> {
        let (found, _) = pool.find(pool.mappings, device)?;
        let root = found
            .filter(|(node, n)| node.key(*n) == Some(device))
            .and_then(|(node, n)| node.value(n));
        let root = root.ok_or_else(|| Error::corrupt(format!("the thin pool has no device {device}"), 0))?;
        Ok(Self {
            pool: Arc::clone(pool),
            root,
            len,
            origin,
        })
    }
}

impl Map for Thin {
    fn len(&self) -> u64 {
        self.len
    }

    fn piece(&self, offset: u64) -> Result<Piece<'_>> {
        let size = self.pool.block;
        let (block, within) = (offset / size, offset % size);
        let rest = self.len.saturating_sub(offset);
        let (found, next) = self.pool.find(self.root, block)?;
        // The upper 40 bits of a value are a block of the pool, the lower 24 the time it was written.
        if let Some((node, n)) = found.filter(|(node, n)| node.key(*n) == Some(block)) {
            let target = |n: usize| node.value(n).map(|v| v >> 24);
            let first = target(n).ok_or_else(|| Error::corrupt("a thin block without its value", offset))?;
            let mut run = 1u64;
            for n in n.saturating_add(1)..node.entries {
                if node.key(n) != block.checked_add(run) || target(n) != first.checked_add(run) {
                    break;
                }
                run += 1;
            }
            return Ok(Piece {
                member: Some(&self.pool.data),
                at: first.saturating_mul(size).saturating_add(within),
                len: run.saturating_mul(size).saturating_sub(within).min(rest),
            });
        }
        let hole = next
            .saturating_mul(size)
            .saturating_sub(offset)
            .clamp(1, rest.max(1));
        match self.origin.as_ref().filter(|o| offset < o.len()) {
            Some(origin) => Ok(Piece {
                member: Some(origin),
                at: offset,
                len: hole.min(origin.len().saturating_sub(offset)),
            }),
            None => Ok(Piece {
                member: None,
                at: 0,
                len: hole,
            }),
        }
    }
}
