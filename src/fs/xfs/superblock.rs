//! The superblock: `struct xfs_dsb`, "XFS Algorithms & Data Structures", chapter "Superblocks".

use super::checksum::crc_ok;
use crate::bytes::{array, be16, be32, be64, slice, u8_at, until_nul, uuid};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};

/// `XFS_SB_MAGIC`.
pub(super) const MAGIC: &[u8] = b"XFSB";
/// `sb_crc`.
pub(super) const CRC_AT: usize = 224;
/// The smallest sector, which holds all fields.
const SECTOR: usize = 512;

/// Bits of `sb_versionnum`.
mod version {
    pub(super) const NUMBER: u16 = 0xf;
    pub(super) const LOGV2: u16 = 0x400;
    pub(super) const DIRV2: u16 = 0x2000;
    pub(super) const BORG: u16 = 0x4000;
    pub(super) const MOREBITS: u16 = 0x8000;
}

/// Bits of `sb_features2` (version 4).
mod features2 {
    pub(super) const FTYPE: u32 = 0x200;
}

/// Bits of `sb_features_incompat` (version 5).
pub(super) mod incompat {
    pub(crate) const FTYPE: u32 = 0x1;
    pub(crate) const SPINODES: u32 = 0x2;
    pub(crate) const META_UUID: u32 = 0x4;
    pub(crate) const BIGTIME: u32 = 0x8;
    pub(crate) const NEEDSREPAIR: u32 = 0x10;
    pub(crate) const NREXT64: u32 = 0x20;
    pub(crate) const EXCHRANGE: u32 = 0x40;
    pub(crate) const PARENT: u32 = 0x80;
    pub(crate) const KNOWN: u32 =
        FTYPE | SPINODES | META_UUID | BIGTIME | NEEDSREPAIR | NREXT64 | EXCHRANGE | PARENT;
}

/// Names of the incompatible features that are refused.
const REFUSED_INCOMPAT: &[(u32, &str)] = &[
    (0x100, "metadir (a tree of metadata, realtime groups)"),
    (0x200, "zoned"),
    (0x400, "zone_gaps"),
];
/// `sb_features_ro_compat`: finobt, rmapbt, reflink, inobtcount.
const KNOWN_RO_COMPAT: u32 = 0xf;
/// `sb_features_log_incompat`: attribute intents in the log.
const KNOWN_LOG_INCOMPAT: u32 = 0x1;

/// What reading needs of the superblock, checked: no value in here can make later arithmetic absurd.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// 4 or 5.
    pub version: u8,
    /// Bytes in a block: 512 to 64 KiB.
    pub block_size: u32,
    pub block_log: u8,
    /// Blocks of the data section.
    pub blocks: u64,
    /// Blocks in an allocation group; the last may have fewer.
    pub ag_blocks: u32,
    pub ag_count: u32,
    /// Bits of a block number within its group.
    pub ag_block_log: u8,
    /// Bits of an inode's number within its block.
    pub inodes_per_block_log: u8,
    pub inode_size: u16,
    pub sector_size: u32,
    pub root_ino: u64,
    /// First block of the log; 0 if it is on another device.
    pub log_start: u64,
    pub log_blocks: u32,
    /// True for version 2 of the log.
    pub log_v2: bool,
    /// Bytes in a block of a directory.
    pub dir_block_size: u32,
    /// True if directory entries state the type of file.
    pub ftype: bool,
    /// The UUID that stands in checksummed metadata.
    pub meta_uuid: [u8; 16],
    incompat: u32,
    ro_compat: u32,
    log_incompat: u32,
    ci: bool,
    uuid: [u8; 16],
    label: Vec<u8>,
    free_blocks: u64,
    rt_extents: u64,
}

impl Superblock {
    /// True if `volume` begins with the magic number.
    pub(super) fn probe(volume: &dyn ReadAt) -> bool {
        read_vec(volume, 0, MAGIC.len()).is_ok_and(|found| found == MAGIC)
    }

    /// Reads the superblock at the beginning of `volume`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the name of a feature, [`Error::Corrupt`] if it is damaged.
    pub(super) fn read(volume: &dyn ReadAt) -> Result<Self> {
        let head = read_vec(volume, 0, SECTOR)?;
        let sector_size = be16(&head, 102).unwrap_or(0);
        let number = be16(&head, 100).unwrap_or(0) & version::NUMBER;
        if number == 5 {
            if !sector_size.is_power_of_two() || !(512..=32768).contains(&sector_size) {
                return Err(bad("sb_sectsize is impossible"));
            }
            let sector = read_vec(volume, 0, usize::from(sector_size))?;
            if !crc_ok(&sector, CRC_AT) {
                return Err(bad("the checksum is wrong"));
            }
        }
        let sb = Self::fields(&head).ok_or_else(|| bad("is cut short"))??;
        sb.check(&head)?;
        Ok(sb)
    }

    fn fields(b: &[u8]) -> Option<Result<Self>> {
        let number = be16(b, 100)?;
        let version = match number & version::NUMBER {
            1..=3 => {
                return Some(Err(Error::unsupported("an XFS filesystem of a version before 4")));
            }
            4 => 4,
            5 => 5,
            other => return Some(Err(bad(&format!("there is no version {other}")))),
        };
        let features2 = if number & version::MOREBITS != 0 {
            be32(b, 200)?
        } else {
            0
        };
        let v5 = |at: usize| if version == 5 { be32(b, at) } else { Some(0) };
        let incompat = v5(216)?;
        let uuid: [u8; 16] = array(b, 32)?;
        let block_size = be32(b, 4)?;
        Some(Ok(Self {
            version,
            block_size,
            block_log: u8_at(b, 120)?,
            blocks: be64(b, 8)?,
            ag_blocks: be32(b, 84)?,
            ag_count: be32(b, 88)?,
            ag_block_log: u8_at(b, 124)?,
            inodes_per_block_log: u8_at(b, 123)?,
            inode_size: be16(b, 104)?,
            sector_size: u32::from(be16(b, 102)?),
            root_ino: be64(b, 56)?,
            log_start: be64(b, 48)?,
            log_blocks: be32(b, 96)?,
            log_v2: number & version::LOGV2 != 0 || version == 5,
            dir_block_size: block_size.checked_shl(u32::from(u8_at(b, 192)?)).unwrap_or(0),
            ftype: incompat & incompat::FTYPE != 0 || features2 & features2::FTYPE != 0,
            meta_uuid: if incompat & incompat::META_UUID != 0 {
                array(b, 248)?
            } else {
                uuid
            },
            incompat,
            ro_compat: v5(212)?,
            log_incompat: v5(220)?,
            ci: number & version::BORG != 0,
            uuid,
            label: until_nul(slice(b, 108, 12)?).to_vec(),
            free_blocks: be64(b, 144)?,
            rt_extents: be64(b, 24)?,
        }))
    }

    fn check(&self, b: &[u8]) -> Result<()> {
        for (bit, name) in REFUSED_INCOMPAT {
            if self.incompat & bit != 0 {
                return Err(Error::unsupported(format!("the XFS feature {name}")));
            }
        }
        let unknown = self.incompat & !incompat::KNOWN;
        if unknown != 0 {
            return Err(Error::unsupported(format!(
                "the XFS feature incompat {unknown:#x}"
            )));
        }
        let number = be16(b, 100).unwrap_or(0);
        if number & version::DIRV2 == 0 {
            return Err(Error::unsupported(
                "an XFS filesystem with directories of version 1",
            ));
        }
        if u8_at(b, 126) != Some(0) {
            return Err(bad("mkfs did not end (sb_inprogress)"));
        }
        let log_of = |size: u32, log: u8| size.is_power_of_two() && size.trailing_zeros() == u32::from(log);
        if !(512..=65536).contains(&self.block_size) || !log_of(self.block_size, self.block_log) {
            return Err(bad("sb_blocksize is impossible"));
        }
        let inode_size = u32::from(self.inode_size);
        let smallest = if self.version == 5 { 512 } else { 256 };
        if !(smallest..=2048).contains(&inode_size)
            || !inode_size.is_power_of_two()
            || inode_size > self.block_size
            || !log_of(
                self.block_size.checked_div(inode_size).unwrap_or(0),
                self.inodes_per_block_log,
            )
        {
            return Err(bad("sb_inodesize is impossible"));
        }
        if !(self.block_size..=65536).contains(&self.dir_block_size) {
            return Err(bad("sb_dirblklog is impossible"));
        }
        if !self.sector_size.is_power_of_two()
            || !(512..=32768).contains(&self.sector_size)
            || self.sector_size > self.block_size
        {
            return Err(bad("sb_sectsize is impossible"));
        }
        let ag = u64::from(self.ag_blocks);
        let before_last = ag.saturating_mul(u64::from(self.ag_count.saturating_sub(1)));
        if self.ag_count == 0
            || !(1..=31).contains(&self.ag_block_log)
            || self.ag_blocks < 16
            || ag > 1 << self.ag_block_log
            || ag <= 1 << (self.ag_block_log - 1)
            || self.blocks <= before_last
            || self.blocks > before_last.saturating_add(ag)
            || self.blocks > 1 << 47
        {
            return Err(bad("the allocation groups do not make up the filesystem"));
        }
        if self.log_start != 0
            && self
                .byte_of(self.log_start, u64::from(self.log_blocks).max(1))
                .is_none()
        {
            return Err(bad("the log does not lie inside"));
        }
        Ok(())
    }

    /// Byte offset of `len` blocks from block number `fsb`, or `None` if they do not lie inside one allocation group.
    pub(super) fn byte_of(&self, fsb: u64, len: u64) -> Option<u64> {
        let group = fsb >> self.ag_block_log;
        let block = fsb & ((1 << self.ag_block_log) - 1);
        if group >= u64::from(self.ag_count) {
            return None;
        }
        let first = group.checked_mul(u64::from(self.ag_blocks))?;
        let group_blocks = u64::from(self.ag_blocks).min(self.blocks.checked_sub(first)?);
        if len == 0 || block.checked_add(len)? > group_blocks {
            return None;
        }
        first.checked_add(block)?.checked_mul(u64::from(self.block_size))
    }

    /// As [`Self::byte_of`], but not the headers of the group (superblock, AGF, AGI, AGFL), nor the log.
    pub(super) fn data_byte_of(&self, fsb: u64, len: u64) -> Option<u64> {
        let block = fsb & ((1 << self.ag_block_log) - 1);
        let headers = (4 * self.sector_size).div_ceil(self.block_size);
        let log_end = self.log_start.saturating_add(u64::from(self.log_blocks));
        let in_log = self.log_start != 0 && fsb < log_end && fsb.saturating_add(len) > self.log_start;
        if block < u64::from(headers) || in_log {
            return None;
        }
        self.byte_of(fsb, len)
    }

    /// Byte offset of inode `ino`, or `None` if there is no such number.
    pub(super) fn inode_byte(&self, ino: u64) -> Option<u64> {
        let index = ino & ((1 << self.inodes_per_block_log) - 1);
        let block = self.data_byte_of(ino >> self.inodes_per_block_log, 1)?;
        block.checked_add(index.checked_mul(u64::from(self.inode_size))?)
    }

    /// `sb_uuid`, which the log has too.
    pub(super) fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// True for version 5, whose metadata has checksums.
    pub(super) fn has_crc(&self) -> bool {
        self.version == 5
    }

    pub(super) fn has(&self, incompat: u32) -> bool {
        self.incompat & incompat != 0
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }

    /// Bytes in use, as it was last written down.
    pub(super) fn used(&self) -> u64 {
        self.blocks
            .saturating_sub(self.free_blocks)
            .saturating_mul(u64::from(self.block_size))
    }

    pub(super) fn uuid_text(&self) -> Option<String> {
        (self.uuid != [0; 16]).then(|| uuid(self.uuid))
    }

    pub(super) fn label(&self) -> Option<String> {
        (!self.label.is_empty()).then(|| String::from_utf8_lossy(&self.label).into_owned())
    }

    /// Features worth telling.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |present: bool, name: &str| {
            if present {
                notes.push(name.to_owned());
            }
        };
        note(self.version == 4, "version 4, without checksums");
        note(
            self.ci,
            "feature version=ci (names are compared without their case)",
        );
        note(self.has(incompat::PARENT), "feature parent");
        note(self.has(incompat::EXCHRANGE), "feature exchange");
        note(self.rt_extents != 0, "a realtime section");
        let unknown = [
            ("ro_compat", self.ro_compat & !KNOWN_RO_COMPAT),
            ("log_incompat", self.log_incompat & !KNOWN_LOG_INCOMPAT),
        ];
        for (word, bits) in unknown {
            if bits != 0 {
                notes.push(format!("unknown {word} features {bits:#x}"));
            }
        }
        notes
    }
}

fn bad(what: &str) -> Error {
    Error::corrupt(format!("the superblock: {what}"), 0)
}
