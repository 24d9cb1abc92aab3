//! Extended attributes: kernel Documentation/filesystems/ext4/attributes.rst.

use super::Volume;
use super::checksum::crc32c;
use super::inode::{Inode, flags};
use crate::bytes::{le16, le32, slice, u8_at};
use crate::error::{Error, Result};
use crate::tree::Xattrs;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// `EXT4_XATTR_MAGIC`.
const MAGIC: u32 = 0xea02_0000;
/// Length of struct ext4_xattr_header.
const HEADER: usize = 32;
/// XATTR_SIZE_MAX of Linux: longer values cannot be read there either.
const MAX_VALUE: u32 = 65536;
/// Attribute blocks that are kept.
const CACHED: usize = 1024;

/// Values of `e_name_index`.
mod index {
    pub(super) const ACL_ACCESS: u8 = 2;
    pub(super) const ACL_DEFAULT: u8 = 3;
    pub(super) const SYSTEM: u8 = 7;
    /// The policy of an encrypted inode.
    pub(super) const ENCRYPTION: u8 = 9;
    /// Where the Merkle tree of a file with fs-verity lies.
    pub(super) const VERITY: u8 = 11;
}

/// One attribute as it stands on disk.
#[derive(Debug, Clone)]
struct Entry {
    index: u8,
    name: Vec<u8>,
    hash: u32,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Here(Vec<u8>),
    /// In the inode of this number, so many bytes.
    Inode(u32, u32),
}

/// The entries of one attribute block, and what is wrong with it.
#[derive(Default)]
pub(super) struct Block {
    entries: Vec<Entry>,
    problem: Option<String>,
}

/// Attribute blocks met before: many inodes share one.
#[derive(Default)]
pub(super) struct Cache(Mutex<HashMap<u64, Arc<Block>>>);

/// The entries in `bytes` from `first` on (struct ext4_xattr_entry), and what ended them too early. Value offsets count
/// from the beginning of `bytes`.
fn entries(bytes: &[u8], first: usize) -> (Vec<Entry>, Option<String>) {
    let mut found = Vec::new();
    let mut at = first;
    loop {
        match le32(bytes, at) {
            None => return (found, Some("the list of attributes has no end".to_owned())),
            Some(0) => return (found, None),
            Some(_) => {}
        }
        let Some((entry, next)) = entry(bytes, at) else {
            return (found, Some(format!("a damaged attribute at byte {at}")));
        };
        found.push(entry);
        at = next;
    }
}

/// The entry at `at` and where the next one begins.
fn entry(bytes: &[u8], at: usize) -> Option<(Entry, usize)> {
    let field = |offset: usize| at.checked_add(offset);
    let name_len = usize::from(u8_at(bytes, at)?);
    let name = slice(bytes, field(16)?, name_len)?;
    let size = le32(bytes, field(8)?)?;
    let value = match le32(bytes, field(4)?)? {
        0 => {
            let from = usize::from(le16(bytes, field(2)?)?);
            Value::Here(slice(bytes, from, usize::try_from(size).ok()?)?.to_vec())
        }
        ino => Value::Inode(ino, size),
    };
    if name.contains(&0) {
        return None;
    }
    let entry = Entry {
        index: u8_at(bytes, field(1)?)?,
        name: name.to_vec(),
        hash: le32(bytes, field(12)?)?,
        value,
    };
    Some((entry, at.checked_add((name_len + 16).next_multiple_of(4))?))
}

/// The value of `system.data`, where the content of an inline inode goes on behind `i_block`.
///
/// # Errors
/// [`Error::Corrupt`] if the attributes inside the inode are damaged before it.
pub(super) fn inline_value(inode: &Inode) -> Result<Option<Vec<u8>>> {
    if inode.xattrs.is_empty() {
        return Ok(None);
    }
    let (entries, problem) = entries(&inode.xattrs, 0);
    for entry in entries {
        if let (index::SYSTEM, b"data", Value::Here(value)) =
            (entry.index, entry.name.as_slice(), entry.value)
        {
            return Ok(Some(value));
        }
    }
    problem.map_or(Ok(None), |p| Err(inode.corrupt(p)))
}

impl Volume {
    /// The attributes of `inode`, and what could not be read of them, in words.
    pub(super) fn xattrs(&self, inode: &Inode) -> (Xattrs, Vec<String>) {
        if !inode.has_xattrs() {
            return (Vec::new(), Vec::new());
        }
        let mut problems = Vec::new();
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        if !inode.xattrs.is_empty() {
            let (entries, problem) = entries(&inode.xattrs, 0);
            problems.extend(problem);
            self.add(inode, &entries, &mut found, &mut problems);
        }
        if inode.file_acl != 0 {
            let block = self.xattr_block(inode);
            problems.extend(block.problem.clone());
            self.add(inode, &block.entries, &mut found, &mut problems);
        }
        (found.into_iter().collect(), problems)
    }

    fn add(
        &self,
        inode: &Inode,
        entries: &[Entry],
        found: &mut BTreeMap<Vec<u8>, Vec<u8>>,
        problems: &mut Vec<String>,
    ) {
        for entry in entries {
            match self.visible(inode, entry) {
                Ok(Some((name, value))) => {
                    found.entry(name).or_insert(value);
                }
                Ok(None) => {}
                Err(e) => problems.push(format!(
                    "extended attribute {:?}: {e}",
                    crate::error::Escaped(&entry.name).to_string()
                )),
            }
        }
    }

    /// Name and value as getxattr(2) shows them; `None` for what only the filesystem itself uses.
    fn visible(&self, inode: &Inode, entry: &Entry) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let prefix: &[u8] = match entry.index {
            1 => b"user.",
            index::ACL_ACCESS => b"system.posix_acl_access",
            index::ACL_DEFAULT => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            10 => b"gnu.",
            index::SYSTEM | index::ENCRYPTION | index::VERITY => return Ok(None),
            8 => return Err(Error::unsupported("a richacl, which Linux does not show")),
            other => {
                return Err(Error::unsupported(format!(
                    "name index {other}, which Linux does not show"
                )));
            }
        };
        let value = match &entry.value {
            Value::Here(value) => value.clone(),
            Value::Inode(ino, size) => self.value_inode(inode, entry, *ino, *size)?,
        };
        if matches!(entry.index, index::ACL_ACCESS | index::ACL_DEFAULT) {
            let acl = acl(&value).ok_or_else(|| inode.corrupt("a damaged access control list"))?;
            return Ok(Some((prefix.to_vec(), acl)));
        }
        Ok(Some(([prefix, &entry.name].concat(), value)))
    }

    fn xattr_block(&self, inode: &Inode) -> Arc<Block> {
        let number = inode.file_acl;
        let cache = &self.xattr_blocks.0;
        if let Some(block) = cache.lock().unwrap_or_else(PoisonError::into_inner).get(&number) {
            return Arc::clone(block);
        }
        let block = Arc::new(self.read_xattr_block(inode).unwrap_or_else(|e| Block {
            entries: Vec::new(),
            problem: Some(format!("attribute block {number}: {e}")),
        }));
        let mut blocks = cache.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() >= CACHED
            && let Some(old) = blocks.keys().next().copied()
        {
            blocks.remove(&old);
        }
        blocks.insert(number, Arc::clone(&block));
        block
    }

    fn read_xattr_block(&self, inode: &Inode) -> Result<Block> {
        let number = inode.file_acl;
        self.check_blocks(inode, number, 1)?;
        let mut bytes = self.block(number)?;
        let at = number.saturating_mul(u64::from(self.sb.block_size));
        if le32(&bytes, 0) != Some(MAGIC) || le32(&bytes, 8) != Some(1) {
            return Err(Error::corrupt("it has no magic number", at));
        }
        if self.sb.metadata_csum() {
            let stored = le32(&bytes, 0x10);
            if let Some(field) = bytes.get_mut(0x10..0x14) {
                field.fill(0);
            }
            let crc = crc32c(crc32c(self.sb.csum_seed, &number.to_le_bytes()), &bytes);
            if stored != Some(crc) {
                return Err(Error::corrupt("the checksum is wrong", at));
            }
        }
        let (entries, problem) = entries(&bytes, HEADER);
        Ok(Block {
            entries,
            problem: problem.map(|p| format!("attribute block {number}: {p}")),
        })
    }

    /// A value in an inode of its own (feature `ea_inode`), checked against the hash that is kept in its `i_atime`.
    fn value_inode(&self, parent: &Inode, entry: &Entry, ino: u32, size: u32) -> Result<Vec<u8>> {
        if size > MAX_VALUE {
            return Err(Error::unsupported(format!(
                "a value of {size} bytes, Linux allows {MAX_VALUE}"
            )));
        }
        if ino == parent.ino {
            return Err(parent.corrupt("the value is the file itself"));
        }
        let inode = self.inode(ino)?;
        if !inode.has(flags::EA_INODE) || inode.size != u64::from(size) || inode.nlink == 0 {
            return Err(inode.corrupt("is not the inode of an attribute's value"));
        }
        let value = if inode.has(flags::INLINE_DATA) {
            let mut bytes = self.inline(&inode)?;
            bytes.resize(size as usize, 0);
            bytes
        } else {
            self.read_start(&inode, size as usize)?
        };
        let hash = crc32c(self.sb.csum_seed, &value);
        let lustre =
            inode.atime_raw != hash && inode.mtime_raw == parent.ino && inode.generation == parent.generation;
        let named = [false, true]
            .iter()
            .any(|signed| entry_hash(&entry.name, hash, *signed) == entry.hash);
        if !lustre && (inode.atime_raw != hash || !named) {
            return Err(inode.corrupt("the hash of the attribute's value is wrong"));
        }
        Ok(value)
    }
}

/// `e_hash` of an entry whose value lies in an inode: over its name and the value's hash. Old kernels took the bytes of
/// the name as signed.
fn entry_hash(name: &[u8], value: u32, signed: bool) -> u32 {
    let hash = name.iter().fold(0u32, |hash, byte| {
        let byte = if signed {
            *byte as i8 as u32
        } else {
            u32::from(*byte)
        };
        hash.rotate_left(5) ^ byte
    });
    hash.rotate_left(16) ^ value
}

/// An access control list from its form on disk (version 1, ids only where they mean something) to the one that
/// getxattr(2) returns (version 2, an id in each entry).
fn acl(disk: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    if le32(disk, 0)? != 1 {
        return None;
    }
    let mut out = vec![2, 0, 0, 0];
    let mut at = 4;
    while at < disk.len() {
        let tag = le16(disk, at)?;
        out.extend_from_slice(slice(disk, at, 4)?);
        match tag {
            USER | GROUP => {
                out.extend_from_slice(slice(disk, at + 4, 4)?);
                at += 8;
            }
            0x01 | 0x04 | 0x10 | 0x20 => {
                out.extend_from_slice(&[0xff; 4]);
                at += 4;
            }
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acl_of_version_1_becomes_version_2() {
        let disk = [
            1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 0x10, 0, 4, 0, 0x20, 0, 4, 0,
        ];
        let v2 = acl(&disk).unwrap();
        assert_eq!(v2.len(), 4 + 5 * 8);
        assert_eq!(v2[12..20], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(v2[20..28], [4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff]);
        assert!(acl(&disk[..10]).is_none());
        assert!(acl(&[2, 0, 0, 0]).is_none());
    }

    #[test]
    fn a_list_without_an_end_is_told() {
        assert!(entries(&[1; 20], 0).1.is_some());
        assert!(entries(&[], 0).1.is_some());
        assert!(entries(&[0; 4], 0).1.is_none());
    }
}
