//! Keys and items of btrfs trees (kernel include/uapi/linux/btrfs_tree.h): what each holds, read with checks.

use crate::bytes::{array, le16, le32, le64, slice, u8_at};
use crate::error::{Error, Result};
use crate::tree::{Kind, Time};

/// Bytes of a key on disk.
pub(super) const KEY_LEN: usize = 17;

/// Item types, the second part of a key.
pub(super) mod types {
    pub(in super::super) const INODE_ITEM: u8 = 1;
    pub(in super::super) const INODE_REF: u8 = 12;
    pub(in super::super) const INODE_EXTREF: u8 = 13;
    pub(in super::super) const XATTR_ITEM: u8 = 24;
    pub(in super::super) const DIR_LOG_INDEX: u8 = 72;
    pub(in super::super) const DIR_ITEM: u8 = 84;
    pub(in super::super) const DIR_INDEX: u8 = 96;
    pub(in super::super) const EXTENT_DATA: u8 = 108;
    pub(in super::super) const EXTENT_CSUM: u8 = 128;
    pub(in super::super) const ROOT_ITEM: u8 = 132;
    pub(in super::super) const ROOT_REF: u8 = 156;
    pub(in super::super) const DEV_ITEM: u8 = 216;
    pub(in super::super) const CHUNK_ITEM: u8 = 228;
}

/// Trees and objects with a number of their own.
pub(super) mod ids {
    pub(in super::super) const ROOT_TREE: u64 = 1;
    pub(in super::super) const CHUNK_TREE: u64 = 3;
    pub(in super::super) const FS_TREE: u64 = 5;
    pub(in super::super) const ROOT_TREE_DIR: u64 = 6;
    pub(in super::super) const CSUM_TREE: u64 = 7;
    pub(in super::super) const FIRST_CHUNK_TREE: u64 = 256;
    pub(in super::super) const FIRST_FREE: u64 = 256;
    pub(in super::super) const LAST_FREE: u64 = 0u64.wrapping_sub(256);
    pub(in super::super) const TREE_LOG: u64 = 0u64.wrapping_sub(6);
    pub(in super::super) const EXTENT_CSUM: u64 = 0u64.wrapping_sub(10);
    /// The directory that stands for a subvolume which is not there.
    pub(in super::super) const EMPTY_SUBVOLUME_DIR: u64 = 2;
}

/// True for the top-level subvolume and all others.
pub(super) fn is_subvolume(tree: u64) -> bool {
    tree == ids::FS_TREE || (ids::FIRST_FREE..=ids::LAST_FREE).contains(&tree)
}

/// `btrfs_disk_key`: the order of all items in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) const MIN: Self = Self::new(0, 0, 0);
    pub(super) const MAX: Self = Self::new(u64::MAX, u8::MAX, u64::MAX);

    pub(super) const fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self { object, kind, offset }
    }

    pub(super) fn read(b: &[u8], at: usize) -> Option<Self> {
        Some(Self {
            object: le64(b, at)?,
            kind: u8_at(b, at.checked_add(8)?)?,
            offset: le64(b, at.checked_add(9)?)?,
        })
    }
}

/// `btrfs_inode_item`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) size: u64,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    rdev: u64,
    pub(super) flags: u64,
    pub(super) ctime: Time,
    pub(super) mtime: Time,
}

/// Bytes of an inode item.
pub(super) const INODE_LEN: usize = 160;
/// Where the fields stand that the replay of a log changes.
pub(super) mod inode_at {
    pub(in super::super) const GENERATION: usize = 0;
    pub(in super::super) const SIZE: usize = 16;
    pub(in super::super) const NLINK: usize = 40;
}
/// `BTRFS_INODE_NODATASUM`.
pub(super) const NODATASUM: u64 = 1;

impl Inode {
    pub(super) fn read(b: &[u8]) -> Option<Self> {
        let time = |at: usize| {
            Some(Time {
                sec: le64(b, at)?.cast_signed(),
                nsec: le32(b, at + 8)?,
            })
        };
        slice(b, 0, INODE_LEN)?;
        Some(Self {
            size: le64(b, inode_at::SIZE)?,
            nlink: le32(b, inode_at::NLINK)?,
            uid: le32(b, 44)?,
            gid: le32(b, 48)?,
            mode: le32(b, 52)?,
            rdev: le64(b, 56)?,
            flags: le64(b, 64)?,
            ctime: time(124)?,
            mtime: time(136)?,
        })
    }

    pub(super) fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    pub(super) fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }

    pub(super) fn is_symlink(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }

    /// What it is; the target of a symbolic link is still empty. `None` for a type that is none.
    pub(super) fn kind(&self) -> Option<Kind> {
        // Device numbers stand as the kernel holds them: 12 bits of major number, 20 of minor.
        let (major, minor) = (
            ((self.rdev & 0xffff_ffff) >> 20) as u32,
            (self.rdev & 0xf_ffff) as u32,
        );
        Some(match self.mode & 0o170_000 {
            0o040_000 => Kind::Directory,
            0o100_000 => Kind::File { size: self.size },
            0o120_000 => Kind::Symlink { target: Vec::new() },
            0o060_000 => Kind::Block { major, minor },
            0o020_000 => Kind::Char { major, minor },
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            _ => return None,
        })
    }
}

/// `btrfs_dir_item`: a name in a directory, or an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirItem<'a> {
    pub(super) location: Key,
    /// `BTRFS_FT_*`.
    pub(super) file_type: u8,
    pub(super) name: &'a [u8],
    pub(super) data: &'a [u8],
    /// The whole entry, as it stands.
    pub(super) bytes: &'a [u8],
}

/// `BTRFS_FT_DIR`.
pub(super) const FT_DIR: u8 = 2;

/// The entries of an item, which has more than one where names have the same hash; an error ends them.
pub(super) fn dir_items(item: &[u8]) -> impl Iterator<Item = Result<DirItem<'_>>> {
    let mut rest = item;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let parse = || {
            let data_len = usize::from(le16(rest, 25)?);
            let name_len = usize::from(le16(rest, 27)?);
            Some(DirItem {
                location: Key::read(rest, 0)?,
                file_type: u8_at(rest, 29)?,
                name: slice(rest, 30, name_len)?,
                data: slice(rest, 30 + name_len, data_len)?,
                bytes: slice(rest, 0, 30 + name_len + data_len)?,
            })
        };
        let found = parse();
        rest = found.and_then(|f| rest.get(f.bytes.len()..)).unwrap_or_default();
        Some(found.ok_or_else(|| Error::corrupt("a directory item ends outside its node", 0)))
    })
}

/// One name of an inode: `btrfs_inode_ref` or `btrfs_inode_extref`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InodeRef<'a> {
    pub(super) parent: u64,
    pub(super) index: u64,
    pub(super) name: &'a [u8],
}

/// The names in the item at `key`, of one of both types; an error ends them.
pub(super) fn inode_refs(key: Key, item: &[u8]) -> impl Iterator<Item = Result<InodeRef<'_>>> {
    let extended = key.kind == types::INODE_EXTREF;
    let mut rest = item;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let head = if extended { 18 } else { 10 };
        let parse = || {
            let len = usize::from(le16(rest, head - 2)?);
            Some(InodeRef {
                parent: if extended { le64(rest, 0)? } else { key.offset },
                index: le64(rest, head - 10)?,
                name: slice(rest, head, len)?,
            })
        };
        let found = parse();
        let len = found.as_ref().map_or(0, |f| f.name.len() + head);
        rest = match found {
            Some(_) => rest.get(len..).unwrap_or_default(),
            None => &[],
        };
        Some(found.ok_or_else(|| Error::corrupt("an inode reference ends outside its node", 0)))
    })
}

/// What `btrfs_file_extent_item` says of a piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Extent {
    /// In the item itself: `bytes` of it from 21 on, `ram_bytes` when unpacked.
    Inline { ram_bytes: u64 },
    /// On the disk.
    Regular {
        /// Where the extent begins, logically; 0 for a hole.
        disk: u64,
        /// Its bytes there.
        disk_len: u64,
        /// Where in the unpacked extent the piece begins.
        offset: u64,
        /// The piece's length.
        len: u64,
        /// The unpacked extent's length.
        ram_bytes: u64,
        /// Allocated, but not written: zeros.
        prealloc: bool,
    },
}

/// An extent with how it is packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileExtent {
    /// 0, or how the extent is compressed.
    pub(super) compression: u8,
    pub(super) extent: Extent,
}

/// Where the data of an inline extent begins.
pub(super) const INLINE_AT: usize = 21;

impl FileExtent {
    /// # Errors
    /// [`Error::Corrupt`] if it is too short or of no known type, [`Error::Unsupported`] if it is encrypted.
    pub(super) fn read(b: &[u8]) -> Result<Self> {
        let short = || Error::corrupt("a file extent is too short", 0);
        let field = |at| le64(b, at).ok_or_else(short);
        let ram_bytes = field(8)?;
        let compression = u8_at(b, 16).ok_or_else(short)?;
        if u8_at(b, 17) != Some(0) || le16(b, 18) != Some(0) {
            return Err(Error::unsupported("an encrypted file extent (btrfs)"));
        }
        let extent = match u8_at(b, 20).ok_or_else(short)? {
            0 => Extent::Inline { ram_bytes },
            kind @ (1 | 2) => Extent::Regular {
                disk: field(21)?,
                disk_len: field(29)?,
                offset: field(37)?,
                len: field(45)?,
                ram_bytes,
                prealloc: kind == 2,
            },
            n => return Err(Error::corrupt(format!("a file extent of type {n}"), 0)),
        };
        Ok(Self { compression, extent })
    }

    /// How many bytes of the file it covers, in whole sectors for an inline extent.
    pub(super) fn covers(&self, sector: u64) -> u64 {
        match self.extent {
            Extent::Inline { ram_bytes } => ram_bytes.checked_next_multiple_of(sector).unwrap_or(u64::MAX),
            Extent::Regular { len, .. } => len,
        }
    }
}

/// `btrfs_root_item`: a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RootItem {
    pub(super) generation: u64,
    pub(super) root_dir: u64,
    pub(super) bytenr: u64,
    pub(super) flags: u64,
    pub(super) refs: u32,
    pub(super) level: u8,
    pub(super) uuid: [u8; 16],
    pub(super) parent_uuid: [u8; 16],
}

impl RootItem {
    pub(super) fn read(b: &[u8]) -> Option<Self> {
        let generation = le64(b, 160)?;
        // What stands behind byte 239 counts only if the kernel that wrote it knew of it.
        let second = le64(b, 239) == Some(generation);
        let uuid = |at| {
            Some(())
                .filter(|()| second)
                .and_then(|()| array(b, at))
                .unwrap_or_default()
        };
        Some(Self {
            generation,
            root_dir: le64(b, 168)?,
            bytenr: le64(b, 176)?,
            flags: le64(b, 208)?,
            refs: le32(b, 216)?,
            level: u8_at(b, 238)?,
            uuid: uuid(247),
            parent_uuid: uuid(263),
        })
    }
}

/// `btrfs_root_ref`: directory and name of a subvolume in its parent.
pub(super) fn root_ref(b: &[u8]) -> Option<(u64, &[u8])> {
    Some((le64(b, 0)?, slice(b, 18, usize::from(le16(b, 16)?))?))
}
