//! Inodes: `struct xfs_dinode`, "XFS Algorithms & Data Structures", chapter "On-disk Inode".

use super::Volume;
use super::checksum::crc_ok;
use super::superblock::{Superblock, incompat};
use crate::bytes::{array, be16, be32, be64, slice, u8_at};
use crate::error::{Error, Result};
use crate::tree::{Kind, Time};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// `XFS_DINODE_MAGIC`.
pub(super) const MAGIC: u16 = 0x494e;
/// `di_crc`.
pub(super) const CRC_AT: usize = 100;
/// `di_lsn`.
pub(super) const LSN_AT: usize = 112;
/// `XFS_DIFLAG_REALTIME`.
const DIFLAG_REALTIME: u16 = 1;
/// Bits of `di_flags2`.
pub(super) mod flags2 {
    pub(crate) const BIGTIME: u64 = 1 << 3;
    pub(crate) const NREXT64: u64 = 1 << 4;
}
/// Seconds from the beginning of big times to 1970.
const BIGTIME_EPOCH: i64 = 1 << 31;

/// Bytes before the data fork, by `di_version`.
pub(super) fn core_size(version: u8) -> usize {
    if version >= 3 { 176 } else { 100 }
}

/// How a fork is kept: `di_format`, `di_aformat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Device,
    Local,
    Extents,
    Btree,
}

impl Format {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Device,
            1 => Self::Local,
            2 => Self::Extents,
            3 => Self::Btree,
            _ => return None,
        })
    }
}

/// One of the two forks of an inode.
#[derive(Debug, Clone)]
pub(super) struct Fork {
    pub format: Format,
    /// Its bytes inside the inode.
    pub bytes: Vec<u8>,
    /// Number of extents.
    pub extents: u64,
}

/// One inode, checked.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    /// Its number.
    pub ino: u64,
    /// Where it lies on the volume, for messages.
    pub at: u64,
    /// `di_mode` with the type bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    pub mtime: Time,
    pub ctime: Time,
    pub nlink: u32,
    /// True if the content lies in the realtime section.
    pub realtime: bool,
    pub data: Fork,
    /// `None` if there is no attribute fork.
    pub attr: Option<Fork>,
}

impl Inode {
    /// The type bits of `di_mode`.
    fn file_type(&self) -> u16 {
        self.mode & 0xf000
    }
    pub(super) fn is_dir(&self) -> bool {
        self.file_type() == 0x4000
    }
    pub(super) fn is_file(&self) -> bool {
        self.file_type() == 0x8000
    }

    /// The kind of node but for a symlink's target.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `di_mode` has no valid type.
    pub(super) fn kind(&self) -> Result<Kind> {
        Ok(match self.file_type() {
            0x4000 => Kind::Directory,
            0x8000 => Kind::File { size: self.size },
            0xa000 => Kind::Symlink { target: Vec::new() },
            0x6000 => {
                let (major, minor) = self.device()?;
                Kind::Block { major, minor }
            }
            0x2000 => {
                let (major, minor) = self.device()?;
                Kind::Char { major, minor }
            }
            0x1000 => Kind::Fifo,
            0xc000 => Kind::Socket,
            other => return Err(self.corrupt(format!("has the impossible type {other:#o}"))),
        })
    }

    /// Major and minor number in the encoding of System V: 14 and 18 bits, of which Linux takes 9 and 18.
    fn device(&self) -> Result<(u32, u32)> {
        let dev = be32(&self.data.bytes, 0).ok_or_else(|| self.corrupt("has no device number"))?;
        Ok((dev >> 18 & 0x1ff, dev & 0x3_ffff))
    }

    /// An error that names this inode.
    pub(super) fn corrupt(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("inode {}: {what}", self.ino), self.at)
    }

    /// Reads the inode in `raw`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the words of the check that failed.
    pub(super) fn parse(sb: &Superblock, ino: u64, at: u64, raw: &[u8]) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("inode {ino}: {what}"), at);
        if be16(raw, 0) != Some(MAGIC) {
            return Err(bad("no magic number"));
        }
        let version = u8_at(raw, 4).unwrap_or(0);
        if sb.has_crc() != (version == 3) || !(1..=3).contains(&version) {
            return Err(bad("di_version is impossible"));
        }
        if version == 3 {
            if !crc_ok(raw, CRC_AT) {
                return Err(bad("the checksum is wrong"));
            }
            if be64(raw, 152) != Some(ino) || array(raw, 160) != Some(sb.meta_uuid) {
                return Err(bad("it is not the inode that belongs there"));
            }
        }
        Self::fields(sb, ino, at, version, raw).ok_or_else(|| bad("is cut short"))?
    }

    fn fields(sb: &Superblock, ino: u64, at: u64, version: u8, raw: &[u8]) -> Option<Result<Self>> {
        let bad = |what: &str| Some(Err(Error::corrupt(format!("inode {ino}: {what}"), at)));
        let mode = be16(raw, 2)?;
        let flags2 = if version == 3 { be64(raw, 120)? } else { 0 };
        let bigtime = flags2 & flags2::BIGTIME != 0;
        let large = flags2 & flags2::NREXT64 != 0;
        if (bigtime && !sb.has(incompat::BIGTIME)) || (large && !sb.has(incompat::NREXT64)) {
            return bad("di_flags2 has what the filesystem has not");
        }
        let time = |at: usize| time(raw, at, bigtime);
        let (extents, attr_extents) = if large {
            (be64(raw, 24)?, u64::from(be32(raw, 76)?))
        } else {
            (u64::from(be32(raw, 76)?), u64::from(be16(raw, 80)?))
        };
        let size = be64(raw, 56)?;
        if size > i64::MAX as u64 {
            return bad("di_size is negative");
        }
        let core = core_size(version);
        let room = raw.len().checked_sub(core)?;
        let fork_at = usize::from(u8_at(raw, 82)?).saturating_mul(8);
        if fork_at >= room && fork_at != 0 {
            return bad("di_forkoff is impossible");
        }
        let data_room = if fork_at == 0 { room } else { fork_at };
        let Some(format) = Format::of(u8_at(raw, 5)?) else {
            return bad("di_format is impossible");
        };
        let special = !matches!(mode & 0xf000, 0x4000 | 0x8000 | 0xa000);
        if mode != 0 && special != (format == Format::Device) {
            return bad("di_format does not fit its type");
        }
        let attr = if fork_at == 0 {
            None
        } else {
            match Format::of(u8_at(raw, 83)?) {
                Some(format) if format != Format::Device => Some(Fork {
                    format,
                    bytes: raw.get(core.saturating_add(fork_at)..)?.to_vec(),
                    extents: attr_extents,
                }),
                _ => return bad("di_aformat is impossible"),
            }
        };
        Some(Ok(Self {
            ino,
            at,
            mode,
            uid: be32(raw, 8)?,
            gid: be32(raw, 12)?,
            size,
            mtime: time(40)?,
            ctime: time(48)?,
            nlink: if version == 1 {
                u32::from(be16(raw, 6)?)
            } else {
                be32(raw, 16)?
            },
            realtime: be16(raw, 90)? & DIFLAG_REALTIME != 0 && mode & 0xf000 == 0x8000,
            data: Fork {
                format,
                bytes: slice(raw, core, data_room)?.to_vec(),
                extents,
            },
            attr,
        }))
    }
}

/// The time at `at`: nanoseconds since December 1901 if `bigtime`, else seconds and nanoseconds.
fn time(raw: &[u8], at: usize, bigtime: bool) -> Option<Time> {
    if bigtime {
        let ns = be64(raw, at)?;
        return Some(Time {
            sec: i64::try_from(ns / 1_000_000_000)
                .ok()?
                .checked_sub(BIGTIME_EPOCH)?,
            nsec: u32::try_from(ns % 1_000_000_000).ok()?,
        });
    }
    Some(Time {
        sec: i64::from(be32(raw, at)? as i32),
        nsec: be32(raw, at.checked_add(4)?)?.min(999_999_999),
    })
}

/// Bytes of a stretch of inodes that are read at once.
const STRETCH: u64 = 64 << 10;
/// How many of them are kept: 32 MiB.
const STRETCHES: usize = 512;

/// Stretches of inode chunks by their number, so that inodes are read in long runs.
#[derive(Default)]
pub(super) struct InodeCache(Mutex<HashMap<u64, Arc<Vec<u8>>>>);

impl Volume {
    /// The inode that a directory entry names: one in use.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such inode, or it is damaged or free.
    pub(super) fn linked_inode(&self, ino: u64) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.mode == 0 || inode.nlink == 0 {
            return Err(inode.corrupt("a directory names it, but it is deleted"));
        }
        Ok(inode)
    }

    /// Inode `ino`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such inode or it is damaged.
    pub(super) fn inode(&self, ino: u64) -> Result<Inode> {
        let at = self
            .sb
            .inode_byte(ino)
            .ok_or_else(|| Error::corrupt(format!("there is no inode {ino}"), 0))?;
        let len = usize::from(self.sb.inode_size);
        // Inodes do not cross stretches: both are powers of two.
        if let Ok(stretch) = self.stretch(at / STRETCH) {
            let from = usize::try_from(at % STRETCH).unwrap_or(usize::MAX);
            if let Some(raw) = slice(&stretch, from, len) {
                return Inode::parse(&self.sb, ino, at, raw);
            }
        }
        // The stretch has bytes that cannot be read: these may still be fine.
        let raw = crate::read_at::read_vec(&*self.disk, at, len)?;
        Inode::parse(&self.sb, ino, at, &raw)
    }

    fn stretch(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        let cache = &self.inodes.0;
        if let Some(stretch) = cache.lock().unwrap_or_else(PoisonError::into_inner).get(&number) {
            return Ok(Arc::clone(stretch));
        }
        let offset = number.saturating_mul(STRETCH);
        let len = STRETCH.min(self.disk.len().saturating_sub(offset));
        let bytes = crate::read_at::read_vec(&*self.disk, offset, usize::try_from(len).unwrap_or(0))?;
        let stretch = Arc::new(bytes);
        let mut stretches = cache.lock().unwrap_or_else(PoisonError::into_inner);
        if stretches.len() >= STRETCHES
            && let Some(old) = stretches.keys().next().copied()
        {
            stretches.remove(&old);
        }
        stretches.insert(number, Arc::clone(&stretch));
        Ok(stretch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_both_encodings() {
        let t = |bytes: [u8; 8], big| time(&bytes, 0, big).unwrap();
        assert_eq!(t([0xff; 8], false).sec, -1);
        assert_eq!(
            t([0; 8], true),
            Time {
                sec: -(1 << 31),
                nsec: 0
            }
        );
        let ns = ((1u64 << 31) + 5) * 1_000_000_000 + 7;
        assert_eq!(t(ns.to_be_bytes(), true), Time { sec: 5, nsec: 7 });
        assert_eq!(t(u64::MAX.to_be_bytes(), true).sec, 16_299_260_425);
    }
}
