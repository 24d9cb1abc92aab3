//! Extended attributes: "XFS Algorithms & Data Structures", chapter "Extended Attributes". Short ones lie in the inode,
//! others in leaves of a tree in the attribute fork, long values in blocks of their own.

use super::Volume;
use super::checksum::crc_ok;
use super::dir::place;
use super::extents::Run;
use super::inode::{Format, Inode};
use crate::bytes::{array, be16, be32, be64, slice, u8_at};
use crate::error::Result;
use crate::tree::Xattrs;
use std::collections::{BTreeMap, HashSet};

/// XATTR_SIZE_MAX of Linux.
const MAX_VALUE: u32 = 65536;
/// `XFS_DA_NODE_MAXDEPTH`.
const MAX_DEPTH: u16 = 5;
/// Problems that are told for one file.
const MAX_PROBLEMS: usize = 20;
/// Length of `struct xfs_attr3_rmt_hdr`.
const REMOTE_HEADER: usize = 56;
/// `XFS_ATTR3_RMT_MAGIC`.
const REMOTE_MAGIC: &[u8] = b"XARM";
/// Magic numbers in `struct xfs_da_blkinfo`: without and with checksums.
mod magic {
    pub(super) const LEAF: u16 = 0xfbee;
    pub(super) const LEAF3: u16 = 0x3bee;
    pub(super) const NODE: u16 = 0xfebe;
    pub(super) const NODE3: u16 = 0x3ebe;
}
/// Flags of an attribute.
mod flag {
    pub(super) const LOCAL: u8 = 0x01;
    pub(super) const ROOT: u8 = 0x02;
    pub(super) const SECURE: u8 = 0x04;
    pub(super) const PARENT: u8 = 0x08;
    pub(super) const INCOMPLETE: u8 = 0x80;
}
/// `SGI_ACL_FILE` and `SGI_ACL_DEFAULT`, and the names that Linux gives them.
const ACLS: [(&[u8], &[u8]); 2] = [
    (b"SGI_ACL_FILE", b"system.posix_acl_access"),
    (b"SGI_ACL_DEFAULT", b"system.posix_acl_default"),
];

/// What is found of one inode.
#[derive(Default)]
struct Found {
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    problems: Vec<String>,
}

impl Found {
    fn problem(&mut self, what: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(what);
        }
    }

    /// Adds an attribute under the name that Linux shows. As there, an access control list is shown twice: as what it
    /// means and as what it is.
    fn add(&mut self, flags: u8, name: &[u8], value: Vec<u8>) {
        let prefix: &[u8] = match flags & (flag::ROOT | flag::SECURE) {
            0 => b"user.",
            flag::ROOT => b"trusted.",
            flag::SECURE => b"security.",
            _ => {
                self.problem("an attribute of two namespaces".to_owned());
                return;
            }
        };
        if name.is_empty() || name.contains(&0) {
            self.problem("an attribute with an impossible name".to_owned());
            return;
        }
        if flags & flag::ROOT != 0
            && let Some((_, shown)) = ACLS.iter().find(|(stored, _)| *stored == name)
        {
            match acl(&value) {
                Some(acl) => {
                    self.xattrs.insert(shown.to_vec(), acl);
                }
                None => self.problem("a damaged access control list".to_owned()),
            }
        }
        self.xattrs.entry([prefix, name].concat()).or_insert(value);
    }
}

/// True for attributes that Linux does not show: parent pointers, and those that were being written.
fn hidden(flags: u8) -> bool {
    flags & (flag::PARENT | flag::INCOMPLETE) != 0
}

impl Volume {
    /// The attributes of `inode`, and what could not be read of them, in words. `budget` is the number of bytes of
    /// metadata that may still be read.
    pub(super) fn xattrs(&self, inode: &Inode, budget: &mut u64) -> (Xattrs, Vec<String>) {
        let mut found = Found::default();
        if let Some(fork) = &inode.attr {
            match fork.format {
                Format::Local => {
                    if short(&fork.bytes, &mut found).is_none() {
                        found.problem("the short attributes are damaged".to_owned());
                    }
                }
                // A fork that was emptied.
                Format::Extents if fork.extents == 0 => {}
                _ => {
                    if let Err(e) = self.tree(inode, budget, &mut found) {
                        found.problem(format!("extended attributes: {e}"));
                    }
                }
            }
        }
        (found.xattrs.into_iter().collect(), found.problems)
    }

    /// Reads the leaves of the attribute fork.
    fn tree(&self, inode: &Inode, budget: &mut u64, found: &mut Found) -> Result<()> {
        let Some(fork) = &inode.attr else { return Ok(()) };
        let runs = self.fork_runs(inode, fork)?;
        let mut todo = vec![(0u32, MAX_DEPTH)];
        let mut met = HashSet::new();
        while let Some((number, above)) = todo.pop() {
            let bad = |what: &str| format!("attribute block {number}: {what}");
            if !met.insert(number) {
                found.problem(bad("it is in the tree twice"));
                continue;
            }
            let block = match self.attr_block(inode, &runs, number, budget)? {
                Ok(block) => block,
                Err(what) => {
                    found.problem(bad(what));
                    continue;
                }
            };
            let crc = self.sb.has_crc();
            match be16(&block, 8).unwrap_or(0) {
                magic::LEAF | magic::LEAF3 => {
                    if self.leaf(inode, &runs, &block, budget, found)?.is_none() {
                        found.problem(bad("its entries are damaged"));
                    }
                }
                _ => {
                    // struct xfs_da3_node_hdr.
                    let (at, header) = if crc { (56, 64) } else { (12, 16) };
                    let count = usize::from(be16(&block, at).unwrap_or(0));
                    let level = be16(&block, at + 2).unwrap_or(0);
                    let Some(entries) = slice(&block, header, count * 8) else {
                        found.problem(bad("it has more entries than fit"));
                        continue;
                    };
                    if level == 0 || level > above || count == 0 {
                        found.problem(bad("its level is impossible"));
                        continue;
                    }
                    let (entries, _) = entries.as_chunks::<8>();
                    let below = entries.iter().rev().filter_map(|e| be32(e, 4));
                    todo.extend(below.map(|child| (child, level - 1)));
                }
            }
        }
        Ok(())
    }

    /// Block `number` of the attribute fork, checked; in words what is wrong with it.
    fn attr_block(
        &self,
        inode: &Inode,
        runs: &[Run],
        number: u32,
        budget: &mut u64,
    ) -> Result<Result<Vec<u8>, &'static str>> {
        let block_size = u64::from(self.sb.block_size);
        let Some(sector) = place(runs, u64::from(number), block_size) else {
            return Ok(Err("it does not exist"));
        };
        *budget = budget
            .checked_sub(block_size)
            .ok_or_else(|| inode.corrupt("all attributes together have more blocks than the filesystem"))?;
        let mut block = vec![0; self.sb.block_size as usize];
        self.read_runs(runs, u64::from(number).saturating_mul(block_size), &mut block)?;
        let expected = if self.sb.has_crc() {
            [magic::LEAF3, magic::NODE3]
        } else {
            [magic::LEAF, magic::NODE]
        };
        if !be16(&block, 8).is_some_and(|magic| expected.contains(&magic)) {
            return Ok(Err("no magic number"));
        }
        if self.sb.has_crc() {
            if !crc_ok(&block, 12) {
                return Ok(Err("the checksum is wrong"));
            }
            if be64(&block, 16) != Some(sector)
                || array(&block, 32) != Some(self.sb.meta_uuid)
                || be64(&block, 48) != Some(inode.ino)
            {
                return Ok(Err("it belongs elsewhere"));
            }
        }
        Ok(Ok(block))
    }

    /// Adds the attributes of a leaf (`struct xfs_attr_leafblock`); `None` if an entry does not lie in it.
    fn leaf(
        &self,
        inode: &Inode,
        runs: &[Run],
        block: &[u8],
        budget: &mut u64,
        found: &mut Found,
    ) -> Result<Option<()>> {
        let (count_at, header) = if self.sb.has_crc() { (56, 80) } else { (12, 32) };
        let count = usize::from(be16(block, count_at).unwrap_or(0));
        for i in 0..count {
            let at = header + i * 8;
            let (Some(name_at), Some(flags)) = (be16(block, at + 4), u8_at(block, at + 6)) else {
                return Ok(None);
            };
            if hidden(flags) {
                continue;
            }
            let name_at = usize::from(name_at);
            if flags & flag::LOCAL != 0 {
                let local = || {
                    let value_len = usize::from(be16(block, name_at)?);
                    let name_len = usize::from(u8_at(block, name_at + 2)?);
                    let name = slice(block, name_at + 3, name_len)?;
                    Some((name, slice(block, name_at + 3 + name_len, value_len)?))
                };
                let Some((name, value)) = local() else {
                    return Ok(None);
                };
                found.add(flags, name, value.to_vec());
                continue;
            }
            let remote = || {
                let name_len = usize::from(u8_at(block, name_at + 8)?);
                let name = slice(block, name_at + 9, name_len)?;
                Some((be32(block, name_at)?, be32(block, name_at + 4)?, name))
            };
            let Some((first, len, name)) = remote() else {
                return Ok(None);
            };
            match self.remote_value(inode, runs, first, len, budget)? {
                Ok(value) => found.add(flags, name, value),
                Err(what) => found.problem(format!(
                    "extended attribute {}: {what}",
                    crate::error::Escaped(name)
                )),
            }
        }
        Ok(Some(()))
    }

    /// A value of `len` bytes in blocks from `first` of the attribute fork; in words what is wrong with it.
    fn remote_value(
        &self,
        inode: &Inode,
        runs: &[Run],
        first: u32,
        len: u32,
        budget: &mut u64,
    ) -> Result<Result<Vec<u8>, &'static str>> {
        if len > MAX_VALUE || first == 0 {
            return Ok(Err("its value is impossibly long or nowhere"));
        }
        let len = len as usize;
        let block_size = self.sb.block_size as usize;
        let header = if self.sb.has_crc() { REMOTE_HEADER } else { 0 };
        let blocks = len.div_ceil(block_size - header);
        let bytes = blocks.saturating_mul(block_size);
        *budget = budget
            .checked_sub(bytes as u64)
            .ok_or_else(|| inode.corrupt("all attributes together have more blocks than the filesystem"))?;
        for number in 0..blocks as u64 {
            if place(runs, u64::from(first) + number, block_size as u64).is_none() {
                return Ok(Err("its value has no block"));
            }
        }
        let mut stored = vec![0; bytes];
        let from = u64::from(first).saturating_mul(block_size as u64);
        self.read_runs(runs, from, &mut stored)?;
        if !self.sb.has_crc() {
            stored.truncate(len);
            return Ok(Ok(stored));
        }
        let mut value = Vec::with_capacity(len);
        for (number, block) in (u64::from(first)..).zip(stored.chunks(block_size)) {
            let rest = len - value.len();
            let part = rest.min(block_size - header);
            if slice(block, 0, 4) != Some(REMOTE_MAGIC) || !crc_ok(block, 12) {
                return Ok(Err("the checksum of its value is wrong"));
            }
            let fits = be32(block, 4) == u32::try_from(value.len()).ok()
                && be32(block, 8) == u32::try_from(part).ok()
                && array(block, 16) == Some(self.sb.meta_uuid)
                && be64(block, 32) == Some(inode.ino)
                && be64(block, 40) == place(runs, number, block_size as u64);
            match slice(block, header, part) {
                Some(bytes) if fits => value.extend_from_slice(bytes),
                _ => return Ok(Err("a block of its value belongs elsewhere")),
            }
        }
        Ok(Ok(value))
    }
}

/// Adds the attributes that lie in the inode (`struct xfs_attr_sf_hdr`); `None` if they do not fit into it.
fn short(bytes: &[u8], found: &mut Found) -> Option<()> {
    let total = usize::from(be16(bytes, 0)?);
    let bytes = bytes.get(..total)?;
    let count = u8_at(bytes, 2)?;
    let mut at = 4;
    for _ in 0..count {
        let name_len = usize::from(u8_at(bytes, at)?);
        let value_len = usize::from(u8_at(bytes, at + 1)?);
        let flags = u8_at(bytes, at + 2)?;
        let name = slice(bytes, at + 3, name_len)?;
        let value = slice(bytes, at + 3 + name_len, value_len)?;
        if !hidden(flags) {
            found.add(flags, name, value.to_vec());
        }
        at += 3 + name_len + value_len;
    }
    Some(())
}

/// An access control list from its form on disk (`struct xfs_acl`) to the one that getxattr(2) returns (version 2).
fn acl(disk: &[u8]) -> Option<Vec<u8>> {
    const USER: u32 = 0x02;
    const GROUP: u32 = 0x08;
    let count = usize::try_from(be32(disk, 0)?).ok()?;
    let entries = slice(disk, 4, count.checked_mul(12)?)?;
    let mut out = vec![2, 0, 0, 0];
    let (entries, _) = entries.as_chunks::<12>();
    for entry in entries {
        let tag = be32(entry, 0)?;
        let id = match tag {
            USER | GROUP => be32(entry, 4)?,
            0x01 | 0x04 | 0x10 | 0x20 => u32::MAX,
            _ => return None,
        };
        out.extend_from_slice(&u16::try_from(tag).ok()?.to_le_bytes());
        out.extend_from_slice(&be16(entry, 8)?.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acl_of_the_disk_becomes_version_2() {
        let mut disk = vec![0, 0, 0, 2];
        disk.extend([0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 6, 0, 0]);
        disk.extend([0, 0, 0, 2, 0, 0, 3, 0xe8, 0, 4, 0, 0]);
        let v2 = acl(&disk).unwrap();
        assert_eq!(v2[4..12], [1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(v2[12..], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert!(acl(&disk[..20]).is_none());
        assert!(acl(&[0xff; 4]).is_none());
    }

    #[test]
    fn short_attributes_have_their_namespaces() {
        let bytes = [
            0, 19, 3, 0, 1, 1, 0, b'a', b'x', 1, 1, 2, b'b', b'y', 1, 1, 8, b'c', b'z',
        ];
        let mut found = Found::default();
        assert!(short(&bytes, &mut found).is_some());
        let names: Vec<&[u8]> = found.xattrs.keys().map(Vec::as_slice).collect();
        assert_eq!(names, [&b"trusted.b"[..], b"user.a"]);
        assert!(short(&bytes[..18], &mut found).is_none());
    }
}
