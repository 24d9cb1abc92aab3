//! Inodes: `struct ext4_inode`, kernel Documentation/filesystems/ext4/inodes.rst.

use super::Volume;
use super::checksum::crc32c;
use super::superblock::{Superblock, compat, incompat, ro_compat};
use crate::bytes::{array, le16, le32, slice};
use crate::error::{Error, Result};
use crate::tree::{Kind, Time};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bits of `i_flags` that reading depends on.
pub(super) mod flags {
    pub(crate) const ENCRYPT: u32 = 0x800;
    pub(crate) const INDEX: u32 = 0x1000;
    pub(crate) const HUGE_FILE: u32 = 0x4_0000;
    pub(crate) const EXTENTS: u32 = 0x8_0000;
    pub(crate) const EA_INODE: u32 = 0x20_0000;
    pub(crate) const INLINE_DATA: u32 = 0x1000_0000;
}

/// `EXT4_ROOT_INO`.
pub(super) const ROOT: u32 = 2;
/// `EXT4_GOOD_OLD_INODE_SIZE`: what every inode has; the rest is `i_extra_isize` and attributes.
pub(super) const OLD_SIZE: usize = 128;
/// The magic number before attributes in an inode (`struct ext4_xattr_ibody_header`).
const XATTR_MAGIC: u32 = 0xea02_0000;

/// One inode, checked as the kernel does when it first meets it.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    /// Its number.
    pub ino: u32,
    /// Where it lies on the volume, for messages.
    pub at: u64,
    /// `i_mode` with the type bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    pub mtime: Time,
    pub ctime: Time,
    /// The seconds of `i_atime`: an attribute's inode keeps the hash of its value there.
    pub atime_raw: u32,
    /// The seconds of `i_mtime`, where Lustre keeps the owner of an attribute's inode.
    pub mtime_raw: u32,
    pub nlink: u32,
    pub flags: u32,
    pub generation: u32,
    /// `i_blocks` in 512-byte units.
    pub sectors: u64,
    /// Block with attributes, or 0.
    pub file_acl: u64,
    /// `i_block`.
    pub block: [u8; 60],
    /// The attributes inside the inode, from behind their magic number to the inode's end; empty if there are none.
    pub xattrs: Vec<u8>,
    /// Seed of the checksums of this inode's extents and directory blocks.
    pub csum_seed: u32,
}

impl Inode {
    /// The type bits of `i_mode`.
    pub(super) fn file_type(&self) -> u16 {
        self.mode & 0xf000
    }
    pub(super) fn is_dir(&self) -> bool {
        self.file_type() == 0x4000
    }
    pub(super) fn is_file(&self) -> bool {
        self.file_type() == 0x8000
    }
    pub(super) fn is_symlink(&self) -> bool {
        self.file_type() == 0xa000
    }
    /// True if it may have extended attributes.
    pub(super) fn has_xattrs(&self) -> bool {
        !self.xattrs.is_empty() || self.file_acl != 0
    }
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// True for a symlink whose target lies in `i_block`.
    pub(super) fn is_fast_symlink(&self, sb: &Superblock) -> bool {
        let attributes = if self.file_acl == 0 {
            0
        } else {
            sb.cluster_size / 512
        };
        self.is_symlink() && !self.has(flags::INLINE_DATA) && self.sectors == attributes
    }

    /// The kind of node but for a symlink's target.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `i_mode` has no valid type.
    pub(super) fn kind(&self) -> Result<Kind> {
        Ok(match self.file_type() {
            0x4000 => Kind::Directory,
            0x8000 => Kind::File { size: self.size },
            0xa000 => Kind::Symlink { target: Vec::new() },
            0x6000 => {
                let (major, minor) = self.device();
                Kind::Block { major, minor }
            }
            0x2000 => {
                let (major, minor) = self.device();
                Kind::Char { major, minor }
            }
            0x1000 => Kind::Fifo,
            0xc000 => Kind::Socket,
            other => {
                return Err(self.corrupt(format!("has the impossible type {other:#o}")));
            }
        })
    }

    /// Major and minor number: the old encoding in the first word of `i_block`, the new one in the second.
    fn device(&self) -> (u32, u32) {
        let old = le32(&self.block, 0).unwrap_or(0);
        if old != 0 {
            return (old >> 8 & 0xff, old & 0xff);
        }
        let new = le32(&self.block, 4).unwrap_or(0);
        ((new & 0xf_ff00) >> 8, (new & 0xff) | (new >> 12 & 0xf_ff00))
    }

    /// An error that names this inode.
    pub(super) fn corrupt(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("inode {}: {what}", self.ino), self.at)
    }

    /// Reads the inode in `raw`. `verify` says whether its checksum must match.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the words of the check that failed.
    pub(super) fn parse(sb: &Superblock, ino: u32, at: u64, raw: &[u8], verify: bool) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("inode {ino}: {what}"), at);
        let mut inode = Self::fields(sb, ino, at, raw).ok_or_else(|| bad("is cut short"))?;
        let large = raw.len() > OLD_SIZE;
        let stated = if large {
            usize::from(le16(raw, 0x80).unwrap_or(0))
        } else {
            0
        };
        if large && (OLD_SIZE.saturating_add(stated) > raw.len() || stated % 4 != 0) {
            return Err(bad("i_extra_isize is impossible"));
        }
        if verify && sb.inode_csum && !checksum_ok(&inode, raw, stated) {
            return Err(bad("the checksum is wrong"));
        }
        let isdir = inode.is_dir();
        let wide = inode.is_file() || (isdir && sb.has(incompat::LARGEDIR));
        if wide {
            inode.size |= u64::from(le32(raw, 0x6c).unwrap_or(0)) << 32;
        }
        if inode.size > i64::MAX as u64 {
            return Err(bad("i_size is negative"));
        }
        if isdir && inode.has(flags::INDEX) && !sb.has_compat(compat::DIR_INDEX) && sb.metadata_csum() {
            return Err(bad("is an indexed directory, which the filesystem has not"));
        }
        if large {
            // The kernel takes all known fields as present where i_extra_isize is 0.
            let extra = if stated == 0 { 32 } else { stated };
            let field = |at: usize| {
                (at.saturating_add(4) <= OLD_SIZE.saturating_add(extra))
                    .then(|| le32(raw, at))
                    .flatten()
            };
            inode.ctime = time(le32(raw, 0xc), field(0x84));
            inode.mtime = time(le32(raw, 0x10), field(0x88));
            let at = OLD_SIZE.saturating_add(stated);
            if stated != 0 && le32(raw, at) == Some(XATTR_MAGIC) {
                inode.xattrs = raw.get(at.saturating_add(4)..).unwrap_or_default().to_vec();
            }
        } else {
            inode.ctime = time(le32(raw, 0xc), None);
            inode.mtime = time(le32(raw, 0x10), None);
        }
        Ok(inode)
    }

    fn fields(sb: &Superblock, ino: u32, at: u64, raw: &[u8]) -> Option<Self> {
        let high = |at: usize| le16(raw, at).map(u32::from);
        let generation = le32(raw, 0x64)?;
        let flags = le32(raw, 0x20)?;
        let mut sectors = u64::from(le32(raw, 0x1c)?);
        if sb.has_ro(ro_compat::HUGE_FILE) {
            sectors |= u64::from(high(0x74)?) << 32;
            if flags & flags::HUGE_FILE != 0 {
                sectors = sectors.saturating_mul(u64::from(sb.block_size) / 512);
            }
        }
        let mut file_acl = u64::from(le32(raw, 0x68)?);
        if sb.has(incompat::BIT64) {
            file_acl |= u64::from(high(0x76)?) << 32;
        }
        Some(Self {
            ino,
            at,
            mode: le16(raw, 0x0)?,
            uid: high(0x2)? | high(0x78)? << 16,
            gid: high(0x18)? | high(0x7a)? << 16,
            size: u64::from(le32(raw, 0x4)?),
            mtime: Time::default(),
            ctime: Time::default(),
            atime_raw: le32(raw, 0x8)?,
            mtime_raw: le32(raw, 0x10)?,
            nlink: high(0x1a)?,
            flags,
            generation,
            sectors,
            file_acl,
            block: array(raw, 0x28)?,
            xattrs: Vec::new(),
            csum_seed: crc32c(
                crc32c(sb.csum_seed, &ino.to_le_bytes()),
                &generation.to_le_bytes(),
            ),
        })
    }
}

/// A time from its seconds and its `_extra` word: two bits of epoch, thirty of nanoseconds.
fn time(seconds: Option<u32>, extra: Option<u32>) -> Time {
    let sec = i64::from(seconds.unwrap_or(0) as i32);
    let Some(extra) = extra else {
        return Time { sec, nsec: 0 };
    };
    let sec = sec + (i64::from(extra & 3) << 32);
    match extra >> 2 {
        nsec @ 0..1_000_000_000 => Time { sec, nsec },
        more => Time {
            sec: sec + 1,
            nsec: more - 1_000_000_000,
        },
    }
}

/// "Inode checksums" in checksums.rst: the inode with its checksum fields as zero.
fn checksum_ok(inode: &Inode, raw: &[u8], extra: usize) -> bool {
    const LO: usize = 0x7c;
    const HI: usize = 0x82;
    let part = |from: usize, to: usize| raw.get(from..to.min(raw.len())).unwrap_or_default();
    let has_hi = raw.len() > OLD_SIZE && extra >= 4;
    let mut crc = crc32c(inode.csum_seed, part(0, LO));
    crc = crc32c(crc, &[0, 0]);
    crc = crc32c(crc, part(LO + 2, OLD_SIZE));
    let lo = u32::from(le16(raw, LO).unwrap_or(0));
    if has_hi {
        crc = crc32c(crc, part(OLD_SIZE, HI));
        crc = crc32c(crc, &[0, 0]);
        crc = crc32c(crc, part(HI + 2, raw.len()));
        lo | u32::from(le16(raw, HI).unwrap_or(0)) << 16 == crc
    } else {
        crc = crc32c(crc, part(OLD_SIZE, raw.len()));
        lo == crc & 0xffff
    }
}

/// Bytes of an inode table that are read at once.
const CHUNK: u64 = 128 << 10;
/// How many of them are kept: 32 MiB.
const CHUNKS: usize = 256;

/// The bytes of stretches of inode tables, by group and number.
type Chunks = HashMap<(u64, u64), Arc<Vec<u8>>>;

/// Stretches of inode tables, so that inodes are read in long runs.
#[derive(Default)]
pub(super) struct TableCache {
    chunks: Mutex<Chunks>,
}

impl Volume {
    /// Inode `ino`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such inode or it is damaged.
    pub(super) fn inode(&self, ino: u32) -> Result<Inode> {
        if let Some(raw) = self.fast.inode(ino) {
            return Inode::parse(&self.sb, ino, 0, raw, false);
        }
        self.with_raw(ino, |at, raw| Inode::parse(&self.sb, ino, at, raw, true))
    }

    /// The inode that a directory entry names: a file's number, in use.
    ///
    /// # Errors
    /// [`Error::Corrupt`] otherwise.
    pub(super) fn linked_inode(&self, ino: u32) -> Result<Inode> {
        if (ino != ROOT && ino < self.sb.first_ino) || ino > self.sb.inodes_count {
            return Err(Error::corrupt(
                format!("{ino} is not an inode number of a file"),
                0,
            ));
        }
        let inode = self.inode(ino)?;
        if inode.nlink == 0 {
            return Err(inode.corrupt("a directory names it, but it is deleted"));
        }
        Ok(inode)
    }

    /// The bytes of inode `ino` as they stand, unchecked.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such inode.
    pub(super) fn raw_inode(&self, ino: u32) -> Result<Vec<u8>> {
        match self.fast.inode(ino) {
            Some(raw) => Ok(raw.to_vec()),
            None => self.with_raw(ino, |_, raw| Ok(raw.to_vec())),
        }
    }

    fn with_raw<T>(&self, ino: u32, then: impl FnOnce(u64, &[u8]) -> Result<T>) -> Result<T> {
        let index = ino
            .checked_sub(1)
            .filter(|i| *i < self.sb.inodes_count)
            .ok_or_else(|| Error::corrupt(format!("there is no inode {ino}"), 0))?;
        let group = u64::from(index / self.sb.inodes_per_group);
        let size = u64::from(self.sb.inode_size);
        let at = u64::from(index % self.sb.inodes_per_group).saturating_mul(size);
        let table = self.groups.table(group)?;
        let len = usize::from(self.sb.inode_size);
        let place = table.saturating_add(at);
        if let Ok(chunk) = self.table_chunk(group, table, at / CHUNK) {
            let from = usize::try_from(at % CHUNK).unwrap_or(usize::MAX);
            if let Some(raw) = slice(&chunk, from, len) {
                return then(place, raw);
            }
        }
        // The stretch has bytes that cannot be read: these may still be fine.
        let raw = crate::read_at::read_vec(&*self.disk, place, len)?;
        then(place, &raw)
    }

    fn table_chunk(&self, group: u64, table: u64, number: u64) -> Result<Arc<Vec<u8>>> {
        let key = (group, number);
        let cache = &self.tables.chunks;
        if let Some(chunk) = cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(chunk));
        }
        let table_len = u64::from(self.sb.inodes_per_group).saturating_mul(u64::from(self.sb.inode_size));
        let start = number.saturating_mul(CHUNK);
        let offset = table.saturating_add(start);
        let len = CHUNK
            .min(table_len.saturating_sub(start))
            .min(self.disk.len().saturating_sub(offset));
        let chunk = crate::read_at::read_vec(&*self.disk, offset, usize::try_from(len).unwrap_or(0))?;
        let chunk = Arc::new(chunk);
        let mut chunks = cache.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.len() >= CHUNKS
            && let Some(old) = chunks.keys().next().copied()
        {
            chunks.remove(&old);
        }
        chunks.insert(key, Arc::clone(&chunk));
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038() {
        let t = |sec: i32, extra| time(Some(sec as u32), extra);
        assert_eq!(t(-1, None), Time { sec: -1, nsec: 0 });
        assert_eq!(t(-1, Some(5 << 2)), Time { sec: -1, nsec: 5 });
        assert_eq!(
            t(0, Some(1)),
            Time {
                sec: 1 << 32,
                nsec: 0
            }
        );
        assert_eq!(
            t(i32::MIN, Some(1)),
            Time {
                sec: 1 << 31,
                nsec: 0
            }
        );
        assert_eq!(t(0, Some(!3)).sec, 1);
    }
}
