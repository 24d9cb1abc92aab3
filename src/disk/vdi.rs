//! VDI, the disks of VirtualBox (VirtualBox's `VDICore.h`: `VDIPREHEADER`, `VDIHEADER1PLUS`), little-endian.
//!
//! A header, a map with a number for each block of the disk, then the blocks.

use super::Disk;
use super::blocks::{Blocks, Entry, MAX_DISK, Map, Place, Run, Table, joined, too_large};
use super::gate::{Chain, Image};
use crate::bytes::{array, le32, le64, uuid};
use crate::error::{Error, Result};
use crate::read_at::read_vec;
use std::sync::Arc;

/// The signature at byte 64.
pub(super) const SIGNATURE: u32 = 0xbeda_107f;
/// The lowest number in the map that is no block: blocks that were never written, or are zeros.
const NO_BLOCK: u64 = 0xffff_fffe;
/// The largest block.
const MAX_BLOCK: u64 = 1 << 30;

/// The tables of an image.
struct Vdi {
    name: String,
    size: u64,
    block: u64,
    /// Where block 0 begins in the file.
    data: u64,
    map: Table,
}

/// Opens `image`.
///
/// # Errors
/// As [`super::open`].
pub(super) fn open(image: Image, _: &mut Chain<'_>) -> Result<Disk> {
    let name = image.name.clone();
    let map = read(&image).map_err(|e| e.within(&name))?;
    Ok(Disk {
        data: Arc::new(Blocks::new(name, map, image.file, None)),
        format: "vdi",
        notes: Vec::new(),
    })
}

fn read(image: &Image) -> Result<Vdi> {
    let b = read_vec(&*image.file, 0, 512)?;
    let field = |at| {
        le32(&b, at)
            .map(u64::from)
            .ok_or_else(|| Error::corrupt("the header is cut", at as u64))
    };
    let version = field(0x44)?;
    if version != 0x1_0001 {
        let what = format!("VDI version {}.{}", version >> 16, version & 0xffff);
        return Err(Error::unsupported(what));
    }
    let null = |at| array::<16>(&b, at) == Some([0; 16]);
    match field(0x4c)? {
        1 | 2 if null(0x1a8) && null(0x1b8) => {}
        kind => {
            let parent = array::<16>(&b, 0x1a8).map(guid).unwrap_or_default();
            let what = match kind {
                3 => "an undo VDI".to_owned(),
                1 | 2 | 4 => format!("a differencing VDI, whose parent has the UUID {parent}"),
                other => format!("VDI image type {other}"),
            };
            return Err(Error::unsupported(what).hint(
                "merge the snapshots, or make one file of it: VBoxManage clonemedium disk IMAGE WHOLE.vdi",
            ));
        }
    }
    let (map, data) = (field(0x154)?, field(0x158)?);
    let (sector, block, extra, blocks) = (field(0x168)?, field(0x178)?, field(0x17c)?, field(0x180)?);
    if sector != 512 || extra != 0 {
        return Err(Error::unsupported(format!(
            "a VDI with sectors of {sector} bytes and {extra} extra bytes a block"
        )));
    }
    if !block.is_power_of_two() || !(512..=MAX_BLOCK).contains(&block) {
        return Err(Error::corrupt(format!("blocks of {block} bytes"), 0x178));
    }
    if !map.is_multiple_of(512) || !data.is_multiple_of(512) {
        return Err(Error::corrupt(
            "the map or the blocks do not begin at a sector",
            0x154,
        ));
    }
    // A disk ends with a whole sector, whatever the header says.
    let size = le64(&b, 0x170).unwrap_or_default();
    let size = size
        .checked_next_multiple_of(512)
        .filter(|s| *s <= MAX_DISK)
        .ok_or_else(too_large)?;
    if size.div_ceil(block) > blocks {
        return Err(Error::corrupt(
            format!("{blocks} blocks are too few for {size} bytes"),
            0x180,
        ));
    }
    Ok(Vdi {
        name: image.name.clone(),
        size,
        block,
        data,
        map: Table::new("map of blocks", Arc::clone(&image.file), map, blocks, Entry::Le32)?,
    })
}

/// A UUID of VirtualBox: its first three fields are little-endian.
fn guid(b: [u8; 16]) -> String {
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = b;
    let mut swapped = [0; 16];
    let (head, tail) = swapped.split_at_mut(8);
    head.copy_from_slice(&[a3, a2, a1, a0, b1, b0, c1, c0]);
    tail.copy_from_slice(&rest);
    uuid(swapped)
}

impl Map for Vdi {
    fn len(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64, max: u64) -> Result<Run> {
        let mut cursor = self.map.cursor();
        let end = offset.saturating_add(max).min(self.size);
        joined(offset, end, |at| {
            let within = at % self.block;
            let number = cursor.get(at / self.block)?;
            let place = if number >= NO_BLOCK {
                Place::Zero
            } else {
                let host = number
                    .checked_mul(self.block)
                    .and_then(|n| n.checked_add(self.data)?.checked_add(within));
                Place::Host(
                    host.ok_or_else(|| Error::corrupt(format!("{}: block number {number}", self.name), at))?,
                )
            };
            Ok(Run {
                place,
                len: self.block - within,
            })
        })
    }
}
