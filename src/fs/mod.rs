//! Filesystems: bytes of a volume in, a tree of files out. Nothing is ever written.

mod btrfs;
mod ext4;
pub mod identity;
mod runs;
mod vfat;
mod walk;
mod xfs;

use crate::bytes::{be32, le16, le32, le64};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::{ReadAt, read_vec};
use crate::tree::{Node, Problem, Tree};
use crate::volume::{luks, lvm, md};
use std::sync::Arc;

/// A filesystem that has been opened.
pub trait Filesystem: Send + Sync {
    /// What it says of itself.
    fn info(&self) -> Info;

    /// Lists every path once, in time linear in their number. Ids in the tree have `fs` 0.
    ///
    /// # Errors
    /// If not even the root directory can be read. What else cannot be read becomes a [`Problem`].
    fn list(&self) -> Result<Listing>;

    /// The content of the regular file with inode number `ino`.
    ///
    /// # Errors
    /// If the inode is not a readable regular file.
    fn open(&self, ino: u64) -> Result<Arc<dyn ReadAt>>;

    /// The subvolumes, by their numbers; none for filesystems that have no such thing.
    fn subvolumes(&self) -> Vec<Subvolume> {
        Vec::new()
    }

    /// The number of the subvolume that [`Self::list`] begins at.
    fn current(&self) -> Option<u64> {
        None
    }

    /// The same filesystem, listed from another subvolume.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such subvolume.
    fn view(&self, view: &View) -> Result<Box<dyn Filesystem>> {
        let _ = view;
        let what = format!("{} has no subvolumes", self.info().kind);
        Err(Error::usage(what))
    }

    /// What is at `path`, no symbolic link followed, without listing everything; only for filesystems with subvolumes.
    ///
    /// # Errors
    /// As [`Self::list`].
    fn find(&self, path: &GuestPath) -> Result<Option<Node>> {
        Ok(self.list()?.tree.get(path).cloned())
    }
}

/// A tree of files of its own inside a filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subvolume {
    /// Its number.
    pub id: u64,
    /// Its path from the top of the filesystem, without a leading slash; empty for the top itself, and for one that no
    /// directory holds.
    pub path: Vec<u8>,
    /// True for the one that is mounted if none is named.
    pub default: bool,
    /// The subvolume it is a snapshot of, if that still exists.
    pub snapshot_of: Option<u64>,
    /// True if it cannot be changed.
    pub read_only: bool,
}

/// How a subvolume is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By its number (`subvolid=`); 0 is the top.
    Id(u64),
    /// By its path from the top of the filesystem (`subvol=`).
    Path(GuestPath),
}

/// From where a filesystem is listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The subvolume; `None` for the default one.
    pub subvolume: Option<Selector>,
    /// True to walk into snapshots that lie below it.
    pub snapshots: bool,
    /// Subvolumes that stay empty directories.
    pub without: Vec<u64>,
}

/// A whole filesystem's tree.
pub struct Listing {
    /// Every path that could be read.
    pub tree: Tree,
    /// What could not.
    pub problems: Vec<Problem>,
}

/// What a filesystem says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Info {
    /// The name that mount(8) uses: `ext4`.
    pub kind: String,
    /// UUID in text form.
    pub uuid: Option<String>,
    /// Label; bytes that are not UTF-8 are replaced.
    pub label: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: Option<u64>,
    /// Features and states worth telling, as in `journal replayed in memory`.
    pub notes: Vec<String>,
}

/// One kind of volume content: a filesystem, or something that is none.
pub struct Row {
    /// Its name as blkid(8) and mount(8) write it: `ext4`, `crypto_LUKS`.
    pub name: &'static str,
    /// What it is, with its article, for messages: `an XFS filesystem`.
    pub what: &'static str,
    /// Looks at a few bytes and says whether this is it.
    pub probe: fn(&dyn ReadAt) -> bool,
    /// Opens it; `None` if it is only recognised.
    pub open: Option<Open>,
}

/// Opens a filesystem.
pub type Open = fn(Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>>;

/// All that is recognised, in the order of asking: what may hold a filesystem inside comes before the filesystems.
pub const FILESYSTEMS: &[Row] = &[
    named("linux_raid_member", "a member of a Linux RAID (md)", md::probe),
    named("crypto_LUKS", "a LUKS encrypted volume", luks::probe),
    named("LVM2_member", "an LVM2 physical volume", lvm::probe),
    named("isw_raid_member", "a member of an Intel RAID (IMSM)", |v| {
        let at = (v.len() / 512).saturating_sub(2) * 512;
        has(v, at, b"Intel Raid ISM Cfg Sig. ")
    }),
    named("ddf_raid_member", "a member of a RAID with DDF metadata", |v| {
        let at = (v.len() / 512).saturating_sub(1) * 512;
        field(v, at, be32) == Some(0xde11_de11)
    }),
    named("drbd", "a DRBD device", |v| {
        let at = (v.len() / 4096).saturating_sub(1) * 4096 + 60;
        matches!(field(v, at, be32), Some(0x8374_026b..=0x8374_026d))
    }),
    named("DM_verity_hash", "the hashes of a dm-verity device", |v| {
        has(v, 0, b"verity\0\0")
    }),
    named("vdo", "a VDO volume", |v| has(v, 0, b"dmvdo001")),
    named("stratis", "a member of a Stratis pool", |v| {
        [516, 4612]
            .iter()
            .any(|at| has(v, *at, b"!Stra0tis\x86\xff\x02^Arh"))
    }),
    named("bcache", "a bcache device", |v| {
        has(
            v,
            4096 + 24,
            b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        )
    }),
    named("BitLocker", "a BitLocker encrypted volume", |v| {
        let to_go = b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01";
        has(v, 3, b"-FVE-FS-") || (has(v, 3, b"MSWIN4.1") && has(v, 424, to_go))
    }),
    Row {
        name: "ext4",
        what: "an ext2, ext3 or ext4 filesystem",
        probe: ext4::probe,
        open: Some(ext4::open),
    },
    Row {
        name: "xfs",
        what: "an XFS filesystem",
        probe: xfs::probe,
        open: Some(xfs::open),
    },
    Row {
        name: "btrfs",
        what: "a btrfs filesystem",
        probe: btrfs::probe,
        open: Some(btrfs::open),
    },
    named("ntfs", "an NTFS filesystem", |v| has(v, 3, b"NTFS    ")),
    named("exfat", "an exFAT filesystem", |v| has(v, 3, b"EXFAT   ")),
    named("squashfs", "a squashfs image", |v| has(v, 0, b"hsqs")),
    named("erofs", "an EROFS image", |v| {
        field(v, 1024, le32) == Some(0xe0f5_e1e2)
    }),
    named("f2fs", "an F2FS filesystem", |v| {
        field(v, 1024, le32) == Some(0xf2f5_2010)
    }),
    named("reiserfs", "a ReiserFS filesystem", |v| {
        [8192 + 52, 65536 + 52].iter().any(|at| has(v, *at, b"ReIsEr"))
    }),
    named("jfs", "a JFS filesystem", |v| has(v, 32768, b"JFS1")),
    named("zfs_member", "a member of a ZFS pool", is_zfs),
    named("iso9660", "an ISO 9660 filesystem", |v| has(v, 32769, b"CD001")),
    named("swap", "swap space", |v| {
        [4096u64, 8192, 16384, 65536]
            .iter()
            .any(|page| has(v, page - 10, b"SWAPSPACE2") || has(v, page - 10, b"SWAP-SPACE"))
    }),
    Row {
        name: "vfat",
        what: "a FAT filesystem",
        probe: is_fat,
        open: Some(vfat::open),
    },
];

/// A row that is only recognised.
const fn named(name: &'static str, what: &'static str, probe: fn(&dyn ReadAt) -> bool) -> Row {
    Row {
        name,
        what,
        probe,
        open: None,
    }
}

/// The row that `volume` belongs to.
fn find(volume: &dyn ReadAt) -> Option<&'static Row> {
    let first = FILESYSTEMS.iter().find(|row| (row.probe)(volume));
    // The copies of a superblock outlive what is written over the filesystem: they count if nothing else is there, no
    // boot sector or partition table either.
    first.or_else(|| {
        let copied = !has(volume, 510, b"\x55\xaa") && btrfs::probe_copies(volume);
        FILESYSTEMS.iter().find(|row| copied && row.name == "btrfs")
    })
}

/// The name of what `volume` holds, from [`FILESYSTEMS`]; `None` if nothing known. Bytes that cannot be read count as
/// unknown.
pub fn recognise(volume: &dyn ReadAt) -> Option<&'static str> {
    find(volume).map(|row| row.name)
}

/// Opens the filesystem on `volume`.
///
/// # Errors
/// [`Error::Unsupported`] that names what the volume holds if it is not a filesystem that can be read, else as the
/// filesystem's reader.
pub fn open(volume: Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>> {
    match find(&*volume) {
        Some(Row { open: Some(open), .. }) => open(volume),
        Some(row) => Err(Error::unsupported(row.what)),
        None => Err(Error::unsupported("no filesystem that is known")),
    }
}

/// Opens the filesystem on the first of `volumes`; the others may be further devices of it ([`set`]).
///
/// # Errors
/// As [`open`].
pub fn open_several(volumes: &[Arc<dyn ReadAt>]) -> Result<Box<dyn Filesystem>> {
    match volumes {
        [first, _, ..] if recognise(&**first) == Some("btrfs") => btrfs::open_several(volumes),
        [first, ..] => open(Arc::clone(first)),
        [] => Err(Error::unsupported("no filesystem that is known")),
    }
}

/// For a volume of a filesystem that may have several: the UUID they share, and true if filesystems with another UUID
/// may need it too (a seed).
pub fn set(volume: &dyn ReadAt) -> Option<([u8; 16], bool)> {
    (recognise(volume) == Some("btrfs"))
        .then(|| btrfs::set(volume))
        .flatten()
}

/// True if `bytes` stand at `offset`.
fn has(volume: &dyn ReadAt, offset: u64, bytes: &[u8]) -> bool {
    read_vec(volume, offset, bytes.len()).is_ok_and(|found| found == bytes)
}

/// The number at `offset`, read by one of the functions of [`crate::bytes`].
fn field<T>(volume: &dyn ReadAt, offset: u64, read: fn(&[u8], usize) -> Option<T>) -> Option<T> {
    read(&read_vec(volume, offset, size_of::<T>()).ok()?, 0)
}

/// A ZFS label: uberblocks from 128 KiB on, at least 1 KiB each, in either byte order.
fn is_zfs(volume: &dyn ReadAt) -> bool {
    const MAGIC: u64 = 0x00ba_b10c;
    let Ok(ring) = read_vec(volume, 128 << 10, 128 << 10) else {
        return false;
    };
    let (slots, _) = ring.as_chunks::<1024>();
    slots.iter().any(|slot| {
        let magic = le64(slot, 0);
        magic == Some(MAGIC) || magic == Some(MAGIC.swap_bytes())
    })
}

/// FAT12, FAT16 and FAT32: the boot sector's mark, and the name that mkfs writes or a sane BIOS parameter block.
fn is_fat(volume: &dyn ReadAt) -> bool {
    if !has(volume, 510, b"\x55\xaa") {
        return false;
    }
    let named = has(volume, 82, b"FAT32   ")
        || [&b"FAT12   "[..], b"FAT16   ", b"FAT     "]
            .iter()
            .any(|name| has(volume, 54, name));
    let Ok(boot) = read_vec(volume, 0, 512) else {
        return false;
    };
    let sector = le16(&boot, 11).unwrap_or(0);
    let cluster = boot.get(13).copied().unwrap_or(0);
    named && sector.is_power_of_two() && (512..=4096).contains(&sector) && cluster.is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume of 1 MiB with `bytes` at `at`.
    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut volume = vec![0; 1 << 20];
        volume[at..at + bytes.len()].copy_from_slice(bytes);
        volume
    }

    #[test]
    fn each_mark_is_recognised_and_refused_by_name() {
        // Magic, version, and the superblock's own place in sectors.
        let mut md = [0; 152];
        md[..8].copy_from_slice(b"\xfc\x4e\x2b\xa9\x01\0\0\0");
        md[144] = 8;
        let marks: &[(&str, usize, &[u8])] = &[
            ("crypto_LUKS", 0, b"LUKS\xba\xbe\0\x02"),
            ("linux_raid_member", 4096, &md),
            ("linux_raid_member", (1 << 20) - 0x1_0000, b"\xfc\x4e\x2b\xa9"),
            (
                "isw_raid_member",
                (1 << 20) - 1024,
                b"Intel Raid ISM Cfg Sig. 1.1.00",
            ),
            ("ddf_raid_member", (1 << 20) - 512, b"\xde\x11\xde\x11"),
            ("drbd", (1 << 20) - 4096 + 60, b"\x83\x74\x02\x6b"),
            ("DM_verity_hash", 0, b"verity\0\0"),
            ("vdo", 0, b"dmvdo001"),
            ("stratis", 516, b"!Stra0tis\x86\xff\x02\x5eArh"),
            ("BitLocker", 3, b"-FVE-FS-"),
            ("xfs", 0, b"XFSB"),
            ("btrfs", 0x1_0040, b"_BHRfS_M"),
            ("ntfs", 3, b"NTFS    "),
            ("exfat", 3, b"EXFAT   "),
            ("squashfs", 0, b"hsqs"),
            ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
            ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
            ("reiserfs", 65536 + 52, b"ReIsEr2Fs"),
            ("jfs", 32768, b"JFS1"),
            ("zfs_member", (128 << 10) + 4096, b"\x0c\xb1\xba\0\0\0\0\0"),
            ("iso9660", 32769, b"CD001"),
            ("swap", 4086, b"SWAPSPACE2"),
        ];
        for (name, at, bytes) in marks {
            let volume = with(*at, bytes);
            assert_eq!(recognise(&volume), Some(*name));
            let Some(row) = FILESYSTEMS
                .iter()
                .find(|row| row.name == *name && row.open.is_none())
            else {
                continue;
            };
            let refused = open(Arc::new(volume)).err().expect("it is only recognised");
            assert!(matches!(refused, Error::Unsupported { .. }));
            assert_eq!(refused.to_string(), row.what);
        }
    }

    #[test]
    fn nothing_known_is_said_so() {
        for len in [0, 1, 511, 1 << 20] {
            assert_eq!(recognise(&vec![0; len]), None);
            let refused = open(Arc::new(vec![0; len])).err().expect("nothing is there");
            assert_eq!(refused.to_string(), "no filesystem that is known");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = FILESYSTEMS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FILESYSTEMS.len());
    }
}
