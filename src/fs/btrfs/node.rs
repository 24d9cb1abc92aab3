//! One node of a tree: what must be true of it before any of its items counts.

use super::Volume;
use super::items::{KEY_LEN, Key, ids, is_subvolume};
use crate::bytes::{array, le32, le64, slice, u8_at};
use crate::error::{Error, Result};
use std::sync::Arc;

/// Bytes of `btrfs_header`.
const HEADER: usize = 101;
/// Bytes of a leaf's `btrfs_item` and of an inner node's `btrfs_key_ptr`.
const ITEM: usize = 25;
const POINTER: usize = 33;

/// What a pointer says of the node it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) logical: u64,
    pub(super) level: u8,
    pub(super) generation: u64,
    /// The tree that is read.
    pub(super) tree: u64,
    /// The first key, which the parent repeats; `None` for a root.
    pub(super) first: Option<Key>,
}

/// A node that was checked.
#[derive(Clone)]
pub(super) struct Node {
    bytes: Arc<[u8]>,
    pub(super) level: u8,
    pub(super) count: usize,
}

impl Node {
    /// Checks everything that `bytes` alone can show, and what the pointer says.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the node and what is wrong with it.
    pub(super) fn verify(volume: &Volume, bytes: &[u8], expected: &Expected) -> Result<()> {
        let wrong = |what: &str| wrong(expected, what);
        let body = bytes.get(32..).ok_or_else(|| wrong("it is too short"))?;
        if !volume.sb.checksum.matches(bytes, body) {
            return Err(wrong("its checksum is wrong"));
        }
        if le64(bytes, 48) != Some(expected.logical) {
            return Err(wrong("it belongs to another place"));
        }
        let fsid = array(bytes, 32);
        if !fsid.is_some_and(|id| volume.fsids.contains(&id)) {
            return Err(wrong("it belongs to another filesystem"));
        }
        let node = Self::new(bytes.into(), expected)?;
        let mut before: Option<Key> = None;
        for n in 0..node.count {
            let key = node.key(n).ok_or_else(|| wrong("its items do not fit into it"))?;
            if before.is_some_and(|b| b >= key) {
                return Err(wrong("its keys are not in order"));
            }
            before = Some(key);
        }
        Ok(())
    }

    /// A node of which [`Self::verify`] has seen the bytes; what `expected` says is checked.
    ///
    /// # Errors
    /// [`Error::Corrupt`] as in `verify`.
    pub(super) fn new(bytes: Arc<[u8]>, expected: &Expected) -> Result<Self> {
        let wrong = |what: &str| wrong(expected, what);
        if le64(&bytes, 80) != Some(expected.generation) {
            return Err(wrong("it is of another generation than its parent says"));
        }
        let level = u8_at(&bytes, 100).unwrap_or(u8::MAX);
        if level != expected.level {
            return Err(wrong("it is of another level than its parent says"));
        }
        let owner = le64(&bytes, 88).unwrap_or_default();
        let fits = if is_subvolume(expected.tree) {
            // A tree relocation leaves nodes of its own behind until the next balance.
            is_subvolume(owner) || owner == 0u64.wrapping_sub(8)
        } else {
            owner == expected.tree
        };
        if !fits {
            return Err(wrong(&format!("it belongs to tree {owner}")));
        }
        let count = usize::try_from(le32(&bytes, 96).unwrap_or(u32::MAX)).unwrap_or(usize::MAX);
        let size = if level == 0 { ITEM } else { POINTER };
        if count > bytes.len().saturating_sub(HEADER) / size {
            return Err(wrong("it has too many items"));
        }
        let node = Self { bytes, level, count };
        if count == 0 && (level > 0 || expected.first.is_some()) {
            return Err(wrong("it is empty"));
        }
        if expected.first.is_some() && node.key(0) != expected.first {
            return Err(wrong("its first key is not the one its parent says"));
        }
        Ok(node)
    }

    /// Key `n` of at most [`Self::count`].
    pub(super) fn key(&self, n: usize) -> Option<Key> {
        if n >= self.count {
            return None;
        }
        let size = if self.level == 0 { ITEM } else { POINTER };
        Key::read(&self.bytes, HEADER + n * size)
    }

    /// Item `n` of a leaf.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it lies outside of the leaf.
    pub(super) fn item(&self, n: usize) -> Result<(Key, &[u8])> {
        let parse = || {
            let at = HEADER + n * ITEM;
            let place = |at| usize::try_from(le32(&self.bytes, at)?).ok();
            let (offset, len) = (place(at + KEY_LEN)?, place(at + KEY_LEN + 4)?);
            let items_end = HEADER + self.count * ITEM;
            let start = offset.checked_add(HEADER).filter(|s| *s >= items_end)?;
            Some((self.key(n)?, slice(&self.bytes, start, len)?))
        };
        parse().ok_or_else(|| {
            let logical = le64(&self.bytes, 48).unwrap_or_default();
            Error::corrupt(
                format!("leaf at logical {logical}: item {n} lies outside of it"),
                logical,
            )
        })
    }

    /// The child that pointer `n` of an inner node leads to.
    pub(super) fn child(&self, n: usize, tree: u64) -> Option<Expected> {
        let at = HEADER + n * POINTER + KEY_LEN;
        Some(Expected {
            logical: le64(&self.bytes, at)?,
            level: self.level.checked_sub(1)?,
            generation: le64(&self.bytes, at + 8)?,
            tree,
            first: self.key(n),
        })
    }

    /// The first item or pointer whose key is not below `key`.
    pub(super) fn lower_bound(&self, key: Key) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle).is_some_and(|k| k < key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

fn wrong(expected: &Expected, what: &str) -> Error {
    let tree = match expected.tree {
        ids::TREE_LOG => "the log tree".to_owned(),
        n => format!("tree {n}"),
    };
    Error::corrupt(
        format!("{tree}, node at logical {}: {what}", expected.logical),
        expected.logical,
    )
}
