//! Trees in key order: look-ups through a bounded cache of nodes, and scans that read leaves in long runs. What the
//! replay of a log changed lies over the items of the disk.

use super::Volume;
use super::items::{Key, RootItem};
use super::node::{Expected, Node};
use super::superblock::MAX_LEVEL;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Leaves that lie one behind the other are read together, up to so many bytes.
const READ_AHEAD: usize = 1 << 20;

/// Items that replace those of a tree on disk; `None` for one that is gone.
pub(super) type Overlay = BTreeMap<Key, Option<Arc<[u8]>>>;

/// A tree.
#[derive(Clone)]
pub(super) struct Root {
    pub(super) tree: u64,
    pub(super) bytenr: u64,
    pub(super) level: u8,
    pub(super) generation: u64,
    pub(super) overlay: Option<Arc<Overlay>>,
}

/// A part of a tree that cannot be read.
pub(super) struct Damage {
    /// The keys from here up to `to` may be missing.
    pub(super) from: Key,
    pub(super) to: Key,
    pub(super) error: Error,
}

type Visit<'a> = &'a mut dyn FnMut(Key, &[u8]) -> Result<()>;

/// A walk over some of the keys of a tree.
struct Scan<'a> {
    volume: &'a Volume,
    tree: u64,
    from: Key,
    to: Key,
    /// The item before `from` counts too.
    before: bool,
    /// Where damage is kept; `None` ends the scan with it.
    damage: Option<&'a mut Vec<Damage>>,
    /// The last key that was met: keys only rise, so that no node is met twice.
    last: Option<Key>,
}

impl Root {
    pub(super) fn new(tree: u64, item: &RootItem) -> Self {
        Self {
            tree,
            bytenr: item.bytenr,
            level: item.level,
            generation: item.generation,
            overlay: None,
        }
    }

    fn expected(&self) -> Expected {
        Expected {
            logical: self.bytenr,
            level: self.level,
            generation: self.generation,
            tree: self.tree,
            first: None,
        }
    }
}

impl Volume {
    /// Calls `visit` for each item from `from` to `to`, both included, in the order of keys.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged node, and what `visit` gives.
    pub(super) fn scan(&self, root: &Root, from: Key, to: Key, visit: Visit<'_>) -> Result<()> {
        self.scan_past(root, from, to, None, visit)
    }

    /// As [`Self::scan`], but damaged nodes are left out and named in `damage`, if it is given.
    ///
    /// # Errors
    /// What `visit` gives.
    pub(super) fn scan_past(
        &self,
        root: &Root,
        from: Key,
        to: Key,
        damage: Option<&mut Vec<Damage>>,
        visit: Visit<'_>,
    ) -> Result<()> {
        let mut scan = Scan {
            volume: self,
            tree: root.tree,
            from,
            to,
            before: false,
            damage,
            last: None,
        };
        let Some(overlay) = &root.overlay else {
            return scan.root(root, visit);
        };
        // Everything of the overlay in front of a key is visited before it.
        let mut after = Bound::Included(from);
        let mut merged = |key: Key, item: &[u8]| {
            for (key, item) in overlay.range((after, Bound::Excluded(key))) {
                if let Some(item) = item {
                    visit(*key, item)?;
                }
            }
            after = Bound::Excluded(key);
            match overlay.get(&key) {
                Some(Some(item)) => visit(key, item),
                Some(None) => Ok(()),
                None => visit(key, item),
            }
        };
        scan.root(root, &mut merged)?;
        if after != Bound::Excluded(to) && from <= to {
            for (key, item) in overlay.range((after, Bound::Included(to))) {
                if let Some(item) = item {
                    visit(*key, item)?;
                }
            }
        }
        Ok(())
    }

    /// The item with exactly `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged node on the way.
    pub(super) fn get(&self, root: &Root, key: Key) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        self.scan(root, key, key, &mut |_, item| {
            found = Some(item.to_vec());
            Ok(())
        })?;
        Ok(found)
    }

    /// As [`Self::scan`] of a tree without an overlay, beginning with the last item that is not behind `from`.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub(super) fn scan_from_before(&self, root: &Root, from: Key, to: Key, visit: Visit<'_>) -> Result<()> {
        Scan {
            volume: self,
            tree: root.tree,
            from,
            to,
            before: true,
            damage: None,
            last: None,
        }
        .root(root, visit)
    }

    /// The node that `expected` describes, through the cache: the first way to read it that gives a valid one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first way if none is valid.
    fn node(&self, expected: &Expected) -> Result<Node> {
        let bytes = self.nodes.get(expected.logical, || self.read_node(expected))?;
        Node::new(bytes, expected)
    }

    fn read_node(&self, expected: &Expected) -> Result<Vec<u8>> {
        let mut first = None;
        for way in 0..self.chunks.ways(expected.logical)? {
            let mut bytes = vec![0; self.node_size()];
            let read = self
                .chunks
                .read(expected.logical, &mut bytes, way)
                .and_then(|()| Node::verify(self, &bytes, expected));
            match read {
                Ok(()) => return Ok(bytes),
                Err(e) => first.get_or_insert(e),
            };
        }
        Err(first.unwrap_or_else(|| Error::corrupt("a node that cannot be read", expected.logical)))
    }

    fn node_size(&self) -> usize {
        usize::try_from(self.sb.node_size).unwrap_or(0)
    }
}

impl Scan<'_> {
    fn root(&mut self, root: &Root, visit: Visit<'_>) -> Result<()> {
        if self.from > self.to {
            return Ok(());
        }
        if root.level >= MAX_LEVEL {
            return Err(Error::corrupt(
                format!("tree {}: a root of level {}", root.tree, root.level),
                root.bytenr,
            ));
        }
        match self.volume.node(&root.expected()) {
            Ok(node) => self.node(&node, Key::MAX, visit),
            Err(error) => self.damaged(Key::MIN, Key::MAX, error),
        }
    }

    fn damaged(&mut self, from: Key, to: Key, error: Error) -> Result<()> {
        match &mut self.damage {
            Some(list) => {
                list.push(Damage { from, to, error });
                Ok(())
            }
            None => Err(error),
        }
    }

    fn out_of_order(&mut self, from: Key, to: Key) -> Result<()> {
        let what = format!("tree {}: keys are not in order between nodes", self.tree);
        self.damaged(from.min(to), to.max(from), Error::corrupt(what, 0))
    }

    /// Visits what is below `node`, whose keys must be below `limit`.
    fn node(&mut self, node: &Node, limit: Key, visit: Visit<'_>) -> Result<()> {
        if node.level == 0 {
            return self.leaf(node, limit, visit);
        }
        // The last child that begins not behind `from` may hold it.
        let mut n = node.lower_bound(self.from);
        if node.key(n) != Some(self.from) {
            n = n.saturating_sub(1);
        }
        let mut ahead: Vec<(usize, Result<Node>)> = Vec::new();
        while n < node.count {
            let Some(child) = node.child(n, self.tree) else {
                break;
            };
            let first = child.first.unwrap_or(Key::MIN);
            if first > self.to {
                break;
            }
            if beyond(first, limit) {
                return self.out_of_order(first, limit);
            }
            let next = node.key(n + 1).unwrap_or(limit);
            let found = if node.level == 1 {
                if ahead.is_empty() {
                    ahead = self.leaves(node, n);
                }
                match ahead.pop() {
                    Some((_, found)) => found,
                    None => self.volume.node(&child),
                }
            } else {
                self.volume.node(&child)
            };
            match found {
                Ok(child) => self.node(&child, next, visit)?,
                Err(error) => self.damaged(first, next, error)?,
            }
            n += 1;
        }
        Ok(())
    }

    /// The leaves from pointer `n` on that are wanted and lie one behind the other, last one first; none if only one does.
    fn leaves(&self, node: &Node, n: usize) -> Vec<(usize, Result<Node>)> {
        let size = self.volume.node_size();
        let mut wanted: Vec<(usize, Expected)> = Vec::new();
        for n in n..node.count {
            let Some(child) = node.child(n, self.tree) else {
                break;
            };
            let follows = wanted
                .last()
                .is_none_or(|(_, last)| last.logical.checked_add(size as u64) == Some(child.logical));
            let inside = wanted.is_empty() || child.first.is_some_and(|f| f <= self.to);
            if !follows || !inside || wanted.len() * size >= READ_AHEAD {
                break;
            }
            wanted.push((n, child));
        }
        let Some((_, first)) = wanted.first().filter(|_| wanted.len() > 1) else {
            return Vec::new();
        };
        let mut bytes = vec![0; wanted.len() * size];
        if self.volume.chunks.read(first.logical, &mut bytes, 0).is_err() {
            return Vec::new();
        }
        let mut leaves: Vec<_> = wanted
            .iter()
            .zip(bytes.chunks(size))
            .map(|((n, expected), bytes)| {
                let found = match Node::verify(self.volume, bytes, expected) {
                    Ok(()) => Node::new(bytes.into(), expected),
                    // Another copy may be valid.
                    Err(_) => self.volume.node(expected),
                };
                (*n, found)
            })
            .collect();
        leaves.reverse();
        leaves
    }

    fn leaf(&mut self, leaf: &Node, limit: Key, visit: Visit<'_>) -> Result<()> {
        let mut n = leaf.lower_bound(self.from);
        if self.before && leaf.key(n) != Some(self.from) {
            n = n.saturating_sub(1);
        }
        while n < leaf.count {
            match leaf.item(n) {
                Ok((key, item)) => {
                    if key > self.to {
                        break;
                    }
                    if beyond(key, limit) || self.last.is_some_and(|last| last >= key) {
                        return self.out_of_order(key, limit);
                    }
                    self.last = Some(key);
                    visit(key, item)?;
                }
                Err(error) => {
                    let key = leaf.key(n).unwrap_or(Key::MIN);
                    self.damaged(key, key, error)?;
                }
            }
            n += 1;
        }
        Ok(())
    }
}

/// True if `key` is not below `limit`, the first key of the next node; the last node has no limit.
fn beyond(key: Key, limit: Key) -> bool {
    limit != Key::MAX && key >= limit
}
