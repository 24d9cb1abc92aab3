//! Block group descriptors (`struct ext4_group_desc`, kernel Documentation/filesystems/ext4/group_descr.rst): where the
//! inode tables lie, and which blocks no file may claim.

use super::checksum::{crc16, crc32c};
use super::superblock::{Superblock, incompat, ro_compat};
use crate::bytes::{le16, le32};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};

/// `bg_checksum`.
const CHECKSUM_AT: usize = 0x1e;

/// The descriptors of all groups.
pub(super) struct Groups {
    /// Byte offset of each group's inode table.
    tables: Vec<u64>,
    /// Blocks that hold metadata: first and length, sorted, not overlapping.
    reserved: Vec<(u64, u64)>,
    /// Descriptors that are damaged, in words.
    pub problems: Vec<String>,
}

impl Groups {
    /// Reads and checks all descriptors. One with a wrong checksum is used, as the kernel's read-only mount does, and
    /// named in [`Self::problems`].
    ///
    /// # Errors
    /// If their table does not lie inside the volume.
    pub(super) fn read(volume: &dyn ReadAt, sb: &Superblock) -> Result<Self> {
        let count = sb.groups_count();
        let size = u64::from(sb.desc_size);
        let block_size = u64::from(sb.block_size);
        if count.saturating_mul(size) > volume.len() {
            return Err(Error::corrupt(
                format!("the descriptors of {count} groups do not fit into the volume"),
                0,
            ));
        }
        let per_block = block_size / size;
        let mut groups = Self {
            tables: Vec::with_capacity(usize::try_from(count).unwrap_or(0)),
            reserved: Vec::new(),
            problems: Vec::new(),
        };
        let table_blocks = u64::from(sb.inodes_per_group)
            .saturating_mul(u64::from(sb.inode_size))
            .div_ceil(block_size);
        for nr in 0..count.div_ceil(per_block) {
            let at = descriptor_block(sb, nr, per_block).saturating_mul(block_size);
            let block = match read_vec(volume, at, sb.block_size as usize) {
                Ok(block) => block,
                // A table that lies partly outside: its groups have no inode table.
                Err(Error::Corrupt { .. }) if nr > 0 => Vec::new(),
                Err(e) => return Err(e),
            };
            for i in 0..per_block.min(count.saturating_sub(nr.saturating_mul(per_block))) {
                let group = nr.saturating_mul(per_block).saturating_add(i);
                let from = usize::try_from(i.saturating_mul(size)).unwrap_or(usize::MAX);
                let desc = crate::bytes::slice(&block, from, usize::from(sb.desc_size)).unwrap_or_default();
                groups.add(sb, group, desc, table_blocks);
            }
        }
        groups.merge_reserved();
        Ok(groups)
    }

    fn add(&mut self, sb: &Superblock, group: u64, desc: &[u8], table_blocks: u64) {
        let wide = |lo: usize, hi: usize| {
            let high = if desc.len() >= 64 { le32(desc, hi)? } else { 0 };
            Some(u64::from(le32(desc, lo)?) | u64::from(high) << 32)
        };
        let inside = |block: &u64, len: u64| {
            *block >= u64::from(sb.first_data_block)
                && block.checked_add(len).is_some_and(|end| end <= sb.blocks_count)
        };
        let table = wide(0x8, 0x28).filter(|b| inside(b, table_blocks));
        if !checksum_ok(sb, group, desc) {
            self.problems
                .push(format!("the checksum of group descriptor {group} is wrong"));
        } else if table.is_none() {
            self.problems
                .push(format!("group descriptor {group} has no valid inode table"));
        }
        self.tables
            .push(table.map_or(u64::MAX, |b| b.saturating_mul(u64::from(sb.block_size))));
        self.reserved.extend(table.map(|b| (b, table_blocks)));
        for bitmap in [wide(0x0, 0x20), wide(0x4, 0x24)].into_iter().flatten() {
            if inside(&bitmap, 1) {
                self.reserved.push((bitmap, 1));
            }
        }
        // The kernel protects the copies in the first groups and in the first group of each flexible group.
        if sb.has_super(group) && (group < 5 || group.is_multiple_of(u64::from(sb.groups_per_flex))) {
            let first = u64::from(sb.first_data_block)
                .saturating_add(group.saturating_mul(u64::from(sb.blocks_per_group)));
            self.reserved.push((first, 1));
            if group == 0 {
                let per_block = u64::from(sb.block_size) / u64::from(sb.desc_size);
                let mut blocks = sb.groups_count().div_ceil(per_block);
                if sb.has(incompat::META_BG) {
                    blocks = blocks.min(u64::from(sb.first_meta_bg));
                }
                self.reserved.push((first.saturating_add(1), blocks));
            }
        }
    }

    fn merge_reserved(&mut self) {
        self.reserved.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.reserved.len());
        for (start, len) in self.reserved.drain(..) {
            match merged.last_mut() {
                Some((s, l)) if start <= s.saturating_add(*l) => {
                    *l = (*l).max(start.saturating_add(len).saturating_sub(*s));
                }
                _ => merged.push((start, len)),
            }
        }
        self.reserved = merged;
    }

    /// True if any of `len` blocks from `start` holds the filesystem's own metadata.
    pub(super) fn is_reserved(&self, start: u64, len: u64) -> bool {
        let after = self
            .reserved
            .partition_point(|(s, _)| *s < start.saturating_add(len));
        after
            .checked_sub(1)
            .and_then(|i| self.reserved.get(i))
            .is_some_and(|(s, l)| s.saturating_add(*l) > start)
    }

    /// Byte offset of the inode table of `group`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is none.
    pub(super) fn table(&self, group: u64) -> Result<u64> {
        usize::try_from(group)
            .ok()
            .and_then(|g| self.tables.get(g))
            .copied()
            .filter(|at| *at != u64::MAX)
            .ok_or_else(|| Error::corrupt(format!("block group {group} has no valid inode table"), 0))
    }
}

/// The block that holds descriptor block `nr` ("Meta Block Groups" in blockgroup.rst).
fn descriptor_block(sb: &Superblock, nr: u64, per_block: u64) -> u64 {
    let super_block = if sb.block_size == 1024 { 1 } else { 0 };
    if !sb.has(incompat::META_BG) || nr < u64::from(sb.first_meta_bg) {
        return nr.saturating_add(super_block + 1);
    }
    let group = nr.saturating_mul(per_block);
    let mut skip = u64::from(sb.has_super(group));
    if sb.block_size == 1024 && nr == 0 && sb.first_data_block == 0 {
        skip += 1;
    }
    group
        .saturating_mul(u64::from(sb.blocks_per_group))
        .saturating_add(u64::from(sb.first_data_block))
        .saturating_add(skip)
}

fn checksum_ok(sb: &Superblock, group: u64, desc: &[u8]) -> bool {
    let (Some(stored), Some(head)) = (le16(desc, CHECKSUM_AT), desc.get(..CHECKSUM_AT)) else {
        return false;
    };
    let tail = desc.get(CHECKSUM_AT + 2..).unwrap_or_default();
    let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
    if sb.metadata_csum() {
        let crc = crc32c(crc32c(sb.csum_seed, &number), head);
        return stored == crc32c(crc32c(crc, &[0, 0]), tail) as u16;
    }
    if sb.has_ro(ro_compat::GDT_CSUM) {
        let crc = crc16(crc16(crc16(!0, &sb.uuid), &number), head);
        return stored
            == if sb.has(incompat::BIT64) {
                crc16(crc, tail)
            } else {
                crc
            };
    }
    true
}
