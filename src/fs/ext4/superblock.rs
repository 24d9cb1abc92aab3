//! The superblock: `struct ext4_super_block`, kernel Documentation/filesystems/ext4/super.rst.

use super::checksum::crc32c;
use crate::bytes::{array, le16, le32, u8_at, until_nul, uuid};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};

/// Byte offset of the superblock in the volume.
pub(super) const OFFSET: u64 = 1024;
/// Its length in bytes.
pub(super) const LEN: usize = 1024;
/// `s_magic`.
const MAGIC: u16 = 0xef53;

/// Bits of `s_feature_compat` that reading depends on.
pub(super) mod compat {
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    pub(crate) const DIR_INDEX: u32 = 0x20;
    pub(crate) const SPARSE_SUPER2: u32 = 0x200;
}

/// Bits of `s_feature_incompat`.
pub(super) mod incompat {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const JOURNAL_DEV: u32 = 0x8;
    pub(crate) const META_BG: u32 = 0x10;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const BIT64: u32 = 0x80;
    pub(crate) const MMP: u32 = 0x100;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const EA_INODE: u32 = 0x400;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGEDIR: u32 = 0x4000;
    pub(crate) const INLINE_DATA: u32 = 0x8000;
    pub(crate) const ENCRYPT: u32 = 0x1_0000;
    pub(crate) const CASEFOLD: u32 = 0x2_0000;
}

/// Bits of `s_feature_ro_compat`.
pub(super) mod ro_compat {
    pub(crate) const SPARSE_SUPER: u32 = 0x1;
    pub(crate) const LARGE_FILE: u32 = 0x2;
    pub(crate) const BTREE_DIR: u32 = 0x4;
    pub(crate) const HUGE_FILE: u32 = 0x8;
    pub(crate) const GDT_CSUM: u32 = 0x10;
    pub(crate) const BIGALLOC: u32 = 0x200;
    pub(crate) const METADATA_CSUM: u32 = 0x400;
    pub(crate) const VERITY: u32 = 0x8000;
}

/// Incompatible features that are read.
const READ_INCOMPAT: u32 = incompat::FILETYPE
    | incompat::RECOVER
    | incompat::META_BG
    | incompat::EXTENTS
    | incompat::BIT64
    | incompat::MMP
    | incompat::FLEX_BG
    | incompat::EA_INODE
    | incompat::CSUM_SEED
    | incompat::LARGEDIR
    | incompat::INLINE_DATA
    | incompat::ENCRYPT
    | incompat::CASEFOLD;

/// Names of the incompatible features that are refused, as `e2fsprogs` spells them.
const REFUSED_INCOMPAT: &[(u32, &str)] = &[
    (0x1, "compression"),
    (
        incompat::JOURNAL_DEV,
        "journal_dev (this is a journal, not a filesystem)",
    ),
    (0x1000, "dirdata"),
];

/// One of the three words of features.
type Field = fn(&Superblock) -> u32;

/// Names of the features that are worth a note in `Info`.
const NOTED: &[(Field, u32, &str)] = &[
    (|sb| sb.incompat, incompat::INLINE_DATA, "inline_data"),
    (|sb| sb.incompat, incompat::ENCRYPT, "encrypt"),
    (|sb| sb.incompat, incompat::CASEFOLD, "casefold"),
    (|sb| sb.ro_compat, ro_compat::BIGALLOC, "bigalloc"),
    (|sb| sb.ro_compat, ro_compat::VERITY, "verity"),
    (|sb| sb.ro_compat, 0x80, "has_snapshot"),
    (|sb| sb.ro_compat, 0x4000, "shared_blocks"),
];
/// Compatible-for-reading features that are known; others get a note.
const KNOWN_RO_COMPAT: u32 = 0x1_ffff;

/// What reading needs of the superblock, checked: no value in here can make later arithmetic absurd.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// Inodes of the whole filesystem; numbers run from 1 to this.
    pub inodes_count: u32,
    /// Blocks of the whole filesystem.
    pub blocks_count: u64,
    free_blocks: u64,
    /// The block that group 0 begins with: 1 for blocks of 1 KiB, 0 for larger ones and for bigalloc.
    pub first_data_block: u32,
    /// Bytes in a block: 1 KiB to 64 KiB.
    pub block_size: u32,
    /// Bytes in an allocation unit; the block size but for bigalloc.
    pub cluster_size: u64,
    /// Blocks in a group.
    pub blocks_per_group: u32,
    /// Inodes in a group.
    pub inodes_per_group: u32,
    /// Bytes of an inode in its table.
    pub inode_size: u16,
    /// The first inode number that a file may have, but for the root's.
    pub first_ino: u32,
    /// `s_feature_compat`.
    pub compat: u32,
    /// `s_feature_incompat`.
    pub incompat: u32,
    /// `s_feature_ro_compat`.
    pub ro_compat: u32,
    /// `s_uuid`.
    pub uuid: [u8; 16],
    label: Vec<u8>,
    /// Inode number of the journal; 0 if it has none here.
    pub journal_inum: u32,
    /// Bytes of a group descriptor.
    pub desc_size: u16,
    /// First descriptor block that lies in its own meta block group.
    pub first_meta_bg: u32,
    /// Groups with backups under `sparse_super2`.
    pub backup_bgs: [u32; 2],
    /// Groups in a flexible group, at least 1.
    pub groups_per_flex: u32,
    /// Seed of every metadata checksum.
    pub csum_seed: u32,
    /// True if inodes carry checksums: `metadata_csum`, made by Linux.
    pub inode_csum: bool,
}

impl Superblock {
    /// True if the bytes at [`OFFSET`] carry the magic number.
    pub(super) fn probe(volume: &dyn ReadAt) -> bool {
        read_vec(volume, OFFSET + 0x38, 2).is_ok_and(|b| le16(&b, 0) == Some(MAGIC))
    }

    /// Reads the primary superblock. `verify` says whether its checksum must match: behind a replayed journal it need
    /// not, as the kernel does not look at it again either.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the feature's name, [`Error::Corrupt`] with the field's.
    pub(super) fn read(volume: &dyn ReadAt, verify: bool) -> Result<Self> {
        let bytes = read_vec(volume, OFFSET, LEN)?;
        Self::from_bytes(&bytes, verify)?.ok_or_else(|| Error::corrupt("the superblock is cut short", OFFSET))
    }

    /// The superblock in `b`; `Ok(None)` if `b` is too short for it.
    fn from_bytes(b: &[u8], verify: bool) -> Result<Option<Self>> {
        let Some(fields) = Fields::of(b) else {
            return Ok(None);
        };
        fields.check(b, verify).map(Some)
    }

    /// True if `bit` of `s_feature_compat` is set.
    pub(super) fn has_compat(&self, bit: u32) -> bool {
        self.compat & bit != 0
    }
    /// True if `bit` of `s_feature_incompat` is set.
    pub(super) fn has(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }
    /// True if `bit` of `s_feature_ro_compat` is set.
    pub(super) fn has_ro(&self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }
    /// True if metadata carries crc32c checksums.
    pub(super) fn metadata_csum(&self) -> bool {
        self.has_ro(ro_compat::METADATA_CSUM)
    }

    /// The number of block groups.
    pub(super) fn groups_count(&self) -> u64 {
        self.blocks_count
            .saturating_sub(u64::from(self.first_data_block))
            .div_ceil(u64::from(self.blocks_per_group).max(1))
    }

    /// True if `group` holds a copy of the superblock.
    pub(super) fn has_super(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut n = base;
            while n < group {
                n = n.saturating_mul(base);
            }
            n == group
        };
        if group == 0 {
            return true;
        }
        if self.has_compat(compat::SPARSE_SUPER2) {
            return self.backup_bgs.iter().any(|g| u64::from(*g) == group);
        }
        group == 1
            || !self.has_ro(ro_compat::SPARSE_SUPER)
            || (group % 2 == 1 && (power_of(3) || power_of(5) || power_of(7)))
    }

    /// Which filesystem mount(8) calls this: the oldest one that knows all its features.
    pub(super) fn kind(&self) -> &'static str {
        let old_ro = ro_compat::SPARSE_SUPER | ro_compat::LARGE_FILE | ro_compat::BTREE_DIR;
        let old = incompat::FILETYPE | incompat::META_BG;
        let journal = self.has_compat(compat::HAS_JOURNAL);
        if self.ro_compat & !old_ro != 0 || self.incompat & !(old | incompat::RECOVER) != 0 {
            "ext4"
        } else if journal {
            "ext3"
        } else if self.has(incompat::RECOVER) {
            "ext4"
        } else {
            "ext2"
        }
    }

    /// The label, if there is one.
    pub(super) fn label(&self) -> Option<String> {
        (!self.label.is_empty()).then(|| String::from_utf8_lossy(&self.label).into_owned())
    }

    /// The UUID in text form; `None` if it is all zeros.
    pub(super) fn uuid_text(&self) -> Option<String> {
        (self.uuid != [0; 16]).then(|| uuid(self.uuid))
    }

    /// Bytes of the whole filesystem.
    pub(super) fn size(&self) -> u64 {
        self.blocks_count.saturating_mul(u64::from(self.block_size))
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.blocks_count
            .saturating_sub(self.free_blocks)
            .saturating_mul(u64::from(self.block_size))
    }

    /// Names of features worth telling.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = NOTED
            .iter()
            .filter(|(field, bit, _)| field(self) & bit != 0)
            .map(|(_, _, name)| format!("feature {name}"))
            .collect();
        let unknown = self.ro_compat & !KNOWN_RO_COMPAT;
        if unknown != 0 {
            notes.push(format!(
                "unknown ro_compat features {unknown:#x}, which do not affect reading"
            ));
        }
        notes
    }
}

/// The fields as they stand, before any check.
struct Fields {
    magic: u16,
    state: Superblock,
    log_block_size: u32,
    log_cluster_size: u32,
    creator_os: u32,
    rev_level: u32,
    checksum_type: u8,
    checksum_seed: u32,
    checksum: u32,
    log_groups_per_flex: u8,
    blocks_hi: u32,
    free_hi: u32,
    desc_size: u16,
}

impl Fields {
    fn of(b: &[u8]) -> Option<Self> {
        let state = Superblock {
            inodes_count: le32(b, 0x0)?,
            blocks_count: u64::from(le32(b, 0x4)?),
            free_blocks: u64::from(le32(b, 0xc)?),
            first_data_block: le32(b, 0x14)?,
            block_size: 0,
            cluster_size: 0,
            blocks_per_group: le32(b, 0x20)?,
            inodes_per_group: le32(b, 0x28)?,
            inode_size: le16(b, 0x58)?,
            first_ino: le32(b, 0x54)?,
            compat: le32(b, 0x5c)?,
            incompat: le32(b, 0x60)?,
            ro_compat: le32(b, 0x64)?,
            uuid: array(b, 0x68)?,
            label: until_nul(&array::<16>(b, 0x78)?).to_vec(),
            journal_inum: le32(b, 0xe0)?,
            desc_size: 32,
            first_meta_bg: le32(b, 0x104)?,
            backup_bgs: [le32(b, 0x24c)?, le32(b, 0x250)?],
            groups_per_flex: 1,
            csum_seed: 0,
            inode_csum: false,
        };
        Some(Self {
            magic: le16(b, 0x38)?,
            log_block_size: le32(b, 0x18)?,
            log_cluster_size: le32(b, 0x1c)?,
            creator_os: le32(b, 0x48)?,
            rev_level: le32(b, 0x4c)?,
            checksum_type: u8_at(b, 0x175)?,
            checksum_seed: le32(b, 0x270)?,
            checksum: le32(b, 0x3fc)?,
            log_groups_per_flex: u8_at(b, 0x174)?,
            blocks_hi: le32(b, 0x150)?,
            free_hi: le32(b, 0x158)?,
            desc_size: le16(b, 0xfe)?,
            state,
        })
    }

    /// The checks of the kernel's `ext4_fill_super` that reading depends on.
    fn check(self, bytes: &[u8], verify: bool) -> Result<Superblock> {
        let bad = |field: &str, at: u64| {
            Err(Error::corrupt(
                format!("the superblock's {field} is impossible"),
                OFFSET.saturating_add(at),
            ))
        };
        let mut sb = self.state;
        if self.magic != MAGIC {
            return bad("s_magic", 0x38);
        }
        if self.rev_level == 0 {
            (sb.inode_size, sb.first_ino) = (128, 11);
        }
        let refused = sb.incompat & !READ_INCOMPAT;
        if refused != 0 {
            let mut names: Vec<String> = Vec::new();
            let mut rest = refused;
            for (bit, name) in REFUSED_INCOMPAT {
                if refused & bit != 0 {
                    names.push((*name).to_owned());
                    rest &= !bit;
                }
            }
            if rest != 0 {
                names.push(format!("incompat {rest:#x}"));
            }
            return Err(Error::unsupported(format!(
                "the ext4 feature {}",
                names.join(", ")
            )));
        }
        if sb.metadata_csum() {
            if self.checksum_type != 1 {
                return Err(Error::unsupported(format!(
                    "ext4 metadata checksums of type {}",
                    self.checksum_type
                )));
            }
            if verify && crc32c(!0, bytes.get(..0x3fc).unwrap_or_default()) != self.checksum {
                return Err(Error::corrupt("the superblock's checksum is wrong", OFFSET));
            }
            sb.inode_csum = self.creator_os == 0;
        }
        sb.csum_seed = if sb.has(incompat::CSUM_SEED) {
            self.checksum_seed
        } else {
            crc32c(!0, &sb.uuid)
        };
        if self.log_block_size > 6 {
            return bad("s_log_block_size", 0x18);
        }
        sb.block_size = 1024 << self.log_block_size;
        sb.cluster_size = u64::from(sb.block_size);
        if sb.has_ro(ro_compat::BIGALLOC) {
            if self.log_cluster_size > 20 || self.log_cluster_size < self.log_block_size {
                return bad("s_log_cluster_size", 0x1c);
            }
            sb.cluster_size = 1024 << self.log_cluster_size;
        }
        if sb.inode_size < 128 || !sb.inode_size.is_power_of_two() || u32::from(sb.inode_size) > sb.block_size
        {
            return bad("s_inode_size", 0x58);
        }
        if sb.has(incompat::BIT64) {
            sb.blocks_count |= u64::from(self.blocks_hi) << 32;
            sb.free_blocks |= u64::from(self.free_hi) << 32;
            sb.desc_size = self.desc_size;
            if !(64..=1024).contains(&sb.desc_size) || !sb.desc_size.is_power_of_two() {
                return bad("s_desc_size", 0xfe);
            }
        }
        if sb.blocks_per_group == 0 || sb.blocks_count <= u64::from(sb.first_data_block) {
            return bad("s_blocks_per_group or s_blocks_count", 0x4);
        }
        if sb.inodes_per_group == 0 || sb.inodes_per_group > sb.block_size.saturating_mul(8) {
            return bad("s_inodes_per_group", 0x28);
        }
        if u64::from(sb.inodes_count) > sb.groups_count().saturating_mul(u64::from(sb.inodes_per_group)) {
            return bad("s_inodes_count", 0x0);
        }
        if sb.blocks_count > 1 << 48 {
            return bad("s_blocks_count", 0x4);
        }
        if sb.first_ino < 11 {
            return bad("s_first_ino", 0x54);
        }
        if sb.has(incompat::FLEX_BG) && (1..31).contains(&self.log_groups_per_flex) {
            sb.groups_per_flex = 1 << self.log_groups_per_flex;
        }
        Ok(sb)
    }
}
