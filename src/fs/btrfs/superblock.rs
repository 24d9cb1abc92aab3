//! The superblock, its copies, and what they refuse.

use super::checksum::Checksum;
use crate::bytes::{array, le16, le32, le64, slice, u8_at, until_nul, uuid};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};

/// Where the copies stand: 64 KiB, 64 MiB, 256 GiB.
pub(super) const COPIES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
pub(super) const LEN: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";

/// Trees are at most this high.
pub(super) const MAX_LEVEL: u8 = 8;

/// Incompatible features.
mod incompat {
    pub(super) const NO_HOLES: u64 = 1 << 9;
    pub(super) const METADATA_UUID: u64 = 1 << 10;
    /// mixed_backref, default_subvol, mixed_groups, compress_lzo, compress_zstd, big_metadata, extended_iref, raid56,
    /// skinny_metadata, no_holes, metadata_uuid, raid1c34, simple_quota.
    pub(super) const READ: u64 = 0x0fff | 1 << 16;
    /// Those that are not read.
    pub(super) const NAMES: [(u64, &str); 5] = [
        (12, "zoned"),
        (13, "extent_tree_v2"),
        (14, "raid_stripe_tree"),
        (15, "encrypt"),
        (17, "remap_tree"),
    ];
}

const FLAG_SEEDING: u64 = 1 << 32;
const FLAG_METADUMP: u64 = 1 << 33 | 1 << 34;

/// What the superblock says; `btrfs_super_block`.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// Names the filesystem.
    pub(super) fsid: [u8; 16],
    /// What stands in the nodes; the same, unless it was changed afterwards.
    pub(super) metadata_uuid: [u8; 16],
    flags: u64,
    pub(super) generation: u64,
    pub(super) root: u64,
    pub(super) chunk_root: u64,
    pub(super) log_root: u64,
    pub(super) total_bytes: u64,
    pub(super) bytes_used: u64,
    pub(super) sector_size: u32,
    pub(super) node_size: u32,
    pub(super) chunk_root_generation: u64,
    compat_ro: u64,
    incompat: u64,
    pub(super) checksum: Checksum,
    pub(super) root_level: u8,
    pub(super) chunk_root_level: u8,
    pub(super) log_root_level: u8,
    pub(super) devid: u64,
    pub(super) device_uuid: [u8; 16],
    label: Vec<u8>,
    pub(super) sys_chunks: Vec<u8>,
}

impl Superblock {
    /// True if there is a primary superblock, valid or not.
    pub(super) fn probe(volume: &dyn ReadAt) -> bool {
        read_vec(volume, 0x1_0040, MAGIC.len()).is_ok_and(|found| found == MAGIC)
    }

    /// True if there is a valid copy behind the place of the primary superblock.
    pub(super) fn probe_copies(volume: &dyn ReadAt) -> bool {
        let valid = |at: u64| match read_vec(volume, at, LEN) {
            Ok(bytes) => !matches!(Self::parse(&bytes, at), Err(Error::Corrupt { .. })),
            Err(_) => false,
        };
        COPIES.into_iter().skip(1).any(valid)
    }

    /// The newest valid copy on `volume`, and what is wrong with the others.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if no copy is valid, [`Error::Unsupported`] with the name of a feature.
    pub(super) fn read(volume: &dyn ReadAt) -> Result<(Self, Vec<String>)> {
        let mut best: Option<(u64, Self)> = None;
        let mut notes = Vec::new();
        let mut first: Option<Error> = None;
        for at in COPIES {
            let Ok(bytes) = read_vec(volume, at, LEN) else {
                continue;
            };
            if at != COPIES[0] && slice(&bytes, 0x40, 8) != Some(MAGIC) {
                continue;
            }
            match Self::parse(&bytes, at) {
                Ok(sb) => match &best {
                    Some((_, have)) if have.device_uuid != sb.device_uuid || have.fsid != sb.fsid => {
                        notes.push(format!("the superblock at byte {at} is of another filesystem"));
                    }
                    Some((_, have)) if have.generation >= sb.generation => {}
                    _ => best = Some((at, sb)),
                },
                Err(e) => {
                    if at == COPIES[0] {
                        notes.push(format!("the first superblock is damaged: {e}"));
                    }
                    first.get_or_insert(e);
                }
            }
        }
        let Some((at, sb)) = best else {
            return Err(first.unwrap_or_else(|| Error::corrupt("no superblock of btrfs", COPIES[0])));
        };
        if at != COPIES[0] {
            notes.push(format!("the superblock at byte {at} is read"));
        }
        Ok((sb, notes))
    }

    fn parse(b: &[u8], at: u64) -> Result<Self> {
        let corrupt = |what: &str| Error::corrupt(format!("btrfs superblock: {what}"), at);
        let short = || corrupt("it is too short");
        let u64_at = |offset| le64(b, offset).ok_or_else(short);
        let uuid_at = |offset| array(b, offset).ok_or_else(short);
        if slice(b, 0x40, 8) != Some(MAGIC) {
            return Err(corrupt("no magic number"));
        }
        let checksum = Checksum::new(le16(b, 0xc4).ok_or_else(short)?)?;
        let body = b.get(32..LEN).ok_or_else(short)?;
        if !checksum.matches(b, body) {
            return Err(corrupt("its checksum is wrong"));
        }
        if u64_at(0x30)? != at {
            return Err(corrupt("it belongs to another place"));
        }
        let incompat = u64_at(0xbc)?;
        let fsid = uuid_at(0x20)?;
        let level = |offset| {
            u8_at(b, offset)
                .filter(|l| *l < MAX_LEVEL)
                .ok_or_else(|| corrupt("a tree is too high"))
        };
        let array_size = usize::try_from(le32(b, 0xa0).ok_or_else(short)?).unwrap_or(usize::MAX);
        let sb = Self {
            fsid,
            metadata_uuid: if incompat & incompat::METADATA_UUID != 0 {
                uuid_at(0x23b)?
            } else {
                fsid
            },
            flags: u64_at(0x38)?,
            generation: u64_at(0x48)?,
            root: u64_at(0x50)?,
            chunk_root: u64_at(0x58)?,
            log_root: u64_at(0x60)?,
            total_bytes: u64_at(0x70)?,
            bytes_used: u64_at(0x78)?,
            sector_size: le32(b, 0x90).ok_or_else(short)?,
            node_size: le32(b, 0x94).ok_or_else(short)?,
            chunk_root_generation: u64_at(0xa4)?,
            compat_ro: u64_at(0xb4)?,
            incompat,
            checksum,
            root_level: level(0xc6)?,
            chunk_root_level: level(0xc7)?,
            log_root_level: level(0xc8)?,
            devid: u64_at(0xc9)?,
            device_uuid: uuid_at(0xc9 + 66)?,
            label: until_nul(slice(b, 0x12b, 256).ok_or_else(short)?).to_vec(),
            sys_chunks: Some(array_size)
                .filter(|n| *n <= 2048)
                .and_then(|n| slice(b, 0x32b, n))
                .ok_or_else(|| corrupt("the array of system chunks is too long"))?
                .to_vec(),
        };
        let unknown = sb.incompat & !incompat::READ;
        if unknown != 0 {
            let bit = unknown.trailing_zeros();
            let name = incompat::NAMES.iter().find(|(n, _)| *n == u64::from(bit));
            return Err(Error::unsupported(match name {
                Some((_, name)) => format!("the btrfs feature {name}"),
                None => format!("btrfs incompatible feature bit {bit}"),
            }));
        }
        let power = |n: u32, least: u32| n.is_power_of_two() && (least..=65536).contains(&n);
        if !power(sb.sector_size, 2048) || !power(sb.node_size, sb.sector_size) {
            return Err(corrupt("impossible sizes of sectors or nodes"));
        }
        Ok(sb)
    }

    /// True if files may have holes without an extent that says so.
    pub(super) fn no_holes(&self) -> bool {
        self.incompat & incompat::NO_HOLES != 0
    }

    /// True if btrfs-image(8) made this: then it holds no data of files.
    pub(super) fn is_dump(&self) -> bool {
        self.flags & FLAG_METADUMP != 0
    }

    /// True if this is the unchanging base of other filesystems.
    pub(super) fn is_seed(&self) -> bool {
        self.flags & FLAG_SEEDING != 0
    }

    pub(super) fn uuid_text(&self) -> String {
        uuid(self.fsid)
    }

    pub(super) fn label(&self) -> Option<String> {
        Some(String::from_utf8_lossy(&self.label).into_owned()).filter(|l| !l.is_empty())
    }

    /// What is worth telling.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.is_seed() {
            notes.push("a seed device".to_owned());
        }
        if self.is_dump() {
            notes.push("a metadata dump (btrfs-image), which holds no data of files".to_owned());
        }
        // free_space_tree, free_space_tree_valid, verity, block_group_tree.
        let unknown = self.compat_ro & !0b1111;
        if unknown != 0 {
            notes.push(format!("unknown ro_compat features {unknown:#x}"));
        }
        notes
    }
}
