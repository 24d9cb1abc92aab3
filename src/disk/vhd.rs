//! VHD, the disks of Virtual PC and older Hyper-V (Microsoft's Virtual Hard Disk Image Format Specification 1.0),
//! big-endian. qemu calls it `vpc`.
//!
//! A fixed disk is its bytes and a footer. Dynamic and differencing disks have a copy of the footer in front, a header, a
//! table of blocks (BAT), and blocks, each behind a bitmap of its sectors.

use super::Disk;
use super::blocks::{Blocks, CUT, Entry, Map, Place, Run, Table, equal_bits, joined};
use super::gate::{Chain, Image};
use crate::bytes::{array, be16, be32, be64, slice, u8_at, uuid};
use crate::cache::Cache;
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, Slice, read_vec};
use std::sync::Arc;

const SECTOR: u64 = 512;
/// Entry of the BAT for a block that is not there.
const UNUSED: u64 = 0xffff_ffff;
/// Bytes of sector bitmaps that are kept: those of 64 GiB of disk.
const BITMAPS_KEPT: usize = 16 << 20;
/// The most a dynamic disk may have, in sectors: 2,040 GiB.
const MAX_SECTORS: u64 = 0xff00_0000;
/// Cylinders, heads and sectors of a disk whose size the geometry cannot say.
const MAX_GEOMETRY: u64 = 65535 * 16 * 255;
/// The largest block.
const MAX_BLOCK: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// The fields of a footer that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Footer {
    kind: Kind,
    /// Where the dynamic disk header is.
    data_offset: u64,
    /// Length of the disk in bytes.
    size: u64,
    id: [u8; 16],
}

impl Footer {
    /// Reads a footer of 512 bytes, or of the 511 that the oldest programs wrote. `None` if it is none, or damaged.
    fn from_bytes(b: &[u8]) -> Option<Self> {
        if !b.starts_with(b"conectix") || be32(b, 64)? != checksum(b, 64)? {
            return None;
        }
        let kind = match be32(b, 60)? {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            _ => return None,
        };
        let geometry = u64::from(be16(b, 56)?) * u64::from(u8_at(b, 58)?) * u64::from(u8_at(b, 59)?);
        let current = be64(b, 48)? / SECTOR;
        // Virtual PC shows its machines the size of the geometry, as old qemu does, and others the current size.
        let creator: [u8; 4] = array(b, 28)?;
        let by_geometry = [b"vpc ", b"qemu"].contains(&&creator) && geometry != MAX_GEOMETRY;
        let sectors = if by_geometry { geometry } else { current };
        Some(Self {
            kind,
            data_offset: be64(b, 16)?,
            size: sectors.checked_mul(SECTOR)?,
            id: array(b, 68)?,
        })
    }
}

/// The ones' complement of the sum of all bytes but the four of the checksum itself.
fn checksum(b: &[u8], field: usize) -> Option<u32> {
    let sum = |part: &[u8]| part.iter().fold(0u32, |sum, b| sum.wrapping_add((*b).into()));
    Some(!sum(b.get(..field)?).wrapping_add(sum(b.get(field.checked_add(4)?..)?)))
}

/// True if a file with these ends is a VHD. The bytes of a fixed disk are the guest's own but for the footer, so that must
/// be whole and fit the file, or the file is a raw disk.
pub(super) fn probe(first: &[u8], last: &[u8], len: u64) -> bool {
    if first.starts_with(b"conectix") {
        return true;
    }
    [last, last.get(1..).unwrap_or_default()].iter().any(|b| {
        Footer::from_bytes(b).is_some_and(|f| {
            let before = len.saturating_sub(b.len() as u64);
            f.kind != Kind::Fixed || f.size <= before || be64(b, 48).is_some_and(|s| s <= before)
        })
    })
}

/// Opens `image`, and its parent if `chain` lets it.
///
/// # Errors
/// As [`super::open`].
pub(super) fn open(image: Image, chain: &mut Chain<'_>) -> Result<Disk> {
    opened(&image, chain).map(|(disk, _)| disk)
}

/// The disk and its unique id.
fn opened(image: &Image, chain: &mut Chain<'_>) -> Result<(Disk, [u8; 16])> {
    let named = |e: Error| e.within(&image.name);
    let len = image.file.len();
    let part = |at: u64| {
        let n = len.saturating_sub(at).min(SECTOR);
        read_vec(&*image.file, at, usize::try_from(n).unwrap_or(0))
    };
    let last = part(len.saturating_sub(SECTOR))?;
    let ends = [part(0)?, last.clone(), last.get(1..).unwrap_or_default().to_vec()];
    let Some(footer) = ends.iter().find_map(|b| Footer::from_bytes(b)) else {
        return Err(named(Error::corrupt(
            "no footer of a VHD that is whole",
            len.saturating_sub(SECTOR),
        )));
    };
    let disk = |data, notes| Disk {
        data,
        format: "vpc",
        notes,
    };
    if footer.kind == Kind::Fixed {
        // The sectors may end behind the footer's place only by what rounding to a geometry adds, never in fact.
        let short = if last.starts_with(b"conectix") { 512 } else { 511 };
        let before = len.saturating_sub(short);
        if footer.size > before {
            let what = format!(
                "the file has {before} bytes of disk, the footer says {}",
                footer.size
            );
            return Err(named(Error::corrupt(what, before)).hint(CUT));
        }
        let data = Slice::new(Arc::clone(&image.file), 0, footer.size);
        return Ok((disk(Arc::new(data), Vec::new()), footer.id));
    }
    let header = Header::read(&image.file, &footer).map_err(named)?;
    let mut notes = Vec::new();
    let parent = match footer.kind {
        Kind::Differencing => Some(header.parent(image, chain, &mut notes)?),
        _ => None,
    };
    let map = Vhd {
        name: image.name.clone(),
        size: footer.size,
        block: header.block,
        bitmap: header.block.div_ceil(8 * SECTOR).next_multiple_of(SECTOR),
        bat: header.bat,
        bitmaps: (footer.kind == Kind::Differencing).then(|| Cache::new(BITMAPS_KEPT)),
        file: Arc::clone(&image.file),
    };
    let data = Blocks::new(&image.name, map, Arc::clone(&image.file), parent);
    Ok((disk(Arc::new(data), notes), footer.id))
}

/// The header of dynamic and differencing disks.
struct Header {
    block: u64,
    bat: Table,
    /// The 1,024 bytes.
    bytes: Vec<u8>,
}

impl Header {
    fn read(file: &Arc<dyn ReadAt>, footer: &Footer) -> Result<Self> {
        let at = footer.data_offset;
        let b = read_vec(&**file, at, 1024)?;
        let bad = |what: String| Error::corrupt(what, at);
        let cut = || bad("the dynamic disk header is cut".to_owned());
        if !b.starts_with(b"cxsparse") || be32(&b, 36) != checksum(&b, 36) {
            return Err(bad("the dynamic disk header is damaged".to_owned()));
        }
        let table = be64(&b, 16).ok_or_else(cut)?;
        let entries = u64::from(be32(&b, 28).ok_or_else(cut)?);
        let block = u64::from(be32(&b, 32).ok_or_else(cut)?);
        if !block.is_power_of_two() || !(SECTOR..=MAX_BLOCK).contains(&block) {
            return Err(bad(format!("blocks of {block} bytes")));
        }
        if footer.size > MAX_SECTORS * SECTOR {
            return Err(Error::unsupported("a dynamic VHD of more than 2,040 GiB"));
        }
        let needed = footer.size.div_ceil(block);
        if needed > entries || entries > (MAX_SECTORS * SECTOR).div_ceil(block) {
            return Err(bad(format!("a BAT of {entries} entries, {needed} are needed")));
        }
        Ok(Self {
            block,
            bat: Table::new("BAT", Arc::clone(file), table, entries, Entry::Be32)?,
            bytes: b,
        })
    }

    /// The parent of a differencing disk. Its names are those of the machine that made it: a path from the image, and one
    /// from the root of a drive.
    fn parent(
        &self,
        image: &Image,
        chain: &mut Chain<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Arc<dyn ReadAt>> {
        let b = &self.bytes;
        let mut relative = Vec::new();
        let mut absolute = Vec::new();
        for locator in 0..8usize {
            let at = 576 + locator * 24;
            let (Some(code), Some(len), Some(offset)) =
                (array::<4>(b, at), be32(b, at + 8), be64(b, at + 16))
            else {
                continue;
            };
            if !(1..=4096).contains(&len) {
                continue;
            }
            let text = || {
                let len = usize::try_from(len).unwrap_or(0);
                read_vec(&*image.file, offset, len).map_err(|e| e.within(&image.name))
            };
            match &code {
                b"W2ru" => relative.push(unix(&utf16(&text()?, u16::from_le_bytes))),
                b"W2ku" => absolute.push(unix(&utf16(&text()?, u16::from_le_bytes))),
                b"MacX" => absolute.push(text()?),
                _ => {}
            }
        }
        let name = slice(b, 64, 512).unwrap_or_default();
        absolute.push(unix(&utf16(name, u16::from_be_bytes)));
        let mut names = relative;
        names.append(&mut absolute);
        names.retain(|n| !n.is_empty());
        let found = chain.follow_any(image, "parent", &names)?;
        let (parent, id) = opened(&found, chain)?;
        let expected = array::<16>(b, 40).unwrap_or_default();
        if id != expected {
            let what = format!(
                "{}: the parent {} has the id {}, but should have {}",
                image.name,
                found.name,
                uuid(id),
                uuid(expected)
            );
            return Err(Error::corrupt(what, 40));
        }
        notes.push(format!("parent: {}", Escaped(found.name.as_bytes())));
        notes.extend(parent.notes);
        Ok(parent.data)
    }
}

/// A text of 16-bit units as UTF-8, up to its first NUL.
pub(super) fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let (units, _) = bytes.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|u| unit(*u)).take_while(|u| *u != 0).collect();
    String::from_utf16_lossy(&units)
}

/// A path of Windows with the separators of this host.
pub(super) fn unix(path: &str) -> Vec<u8> {
    path.replace('\\', "/").into_bytes()
}

/// The tables of a dynamic or differencing disk.
struct Vhd {
    name: String,
    size: u64,
    block: u64,
    /// Length of the bitmap in front of each block.
    bitmap: u64,
    bat: Table,
    /// The bitmaps of a differencing disk, which tell its sectors from those of the parent. In a dynamic disk they tell what
    /// was written from zeros, which the blocks have there anyhow.
    bitmaps: Option<Cache>,
    file: Arc<dyn ReadAt>,
}

impl Map for Vhd {
    fn len(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64, max: u64) -> Result<Run> {
        let mut cursor = self.bat.cursor();
        let end = offset.saturating_add(max).min(self.size);
        joined(offset, end, |at| {
            let within = at % self.block;
            let left = self.block - within;
            let entry = cursor.get(at / self.block)?;
            if entry == UNUSED {
                return Ok(Run {
                    place: Place::Parent,
                    len: left,
                });
            }
            let bitmap = entry * SECTOR;
            let here = Place::Host(bitmap + self.bitmap + within);
            let Some(bitmaps) = &self.bitmaps else {
                return Ok(Run {
                    place: here,
                    len: left,
                });
            };
            let bits = bitmaps.get(bitmap, || {
                let len = usize::try_from(self.bitmap).unwrap_or(0);
                read_vec(&*self.file, bitmap, len).map_err(|e| e.within(&self.name))
            })?;
            let (first, last) = (within / SECTOR, self.block / SECTOR);
            let (own, count) = equal_bits(&bits, first, last, true)
                .ok_or_else(|| Error::corrupt(format!("{}: the bitmap of a block", self.name), bitmap))?;
            Ok(Run {
                place: if own { here } else { Place::Parent },
                len: (first + count) * SECTOR - within,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(kind: u32, size: u64, creator: &[u8; 4]) -> Vec<u8> {
        let mut b = vec![0; 512];
        b[..8].copy_from_slice(b"conectix");
        b[16..24].fill(0xff);
        b[28..32].copy_from_slice(creator);
        b[48..56].copy_from_slice(&size.to_be_bytes());
        b[56..60].copy_from_slice(&[0, 2, 4, 17]);
        b[60..64].copy_from_slice(&kind.to_be_bytes());
        let sum = checksum(&b, 64).unwrap();
        b[64..68].copy_from_slice(&sum.to_be_bytes());
        b
    }

    #[test]
    fn the_size_is_as_qemu_decides() {
        let size = |creator| Footer::from_bytes(&footer(2, 1 << 20, creator)).unwrap().size;
        assert_eq!(size(b"vpc "), 2 * 4 * 17 * 512);
        assert_eq!(size(b"qemu"), 2 * 4 * 17 * 512);
        assert_eq!(size(b"win "), 1 << 20);
        assert_eq!(size(b"wa\0\0"), 1 << 20);
    }

    #[test]
    fn a_raw_disk_is_no_vhd() {
        let whole = footer(2, 1 << 20, b"win ");
        assert!(probe(&[0; 512], &whole, (1 << 20) + 512));
        // The footer of a larger disk, a damaged one, one that is not at the end.
        assert!(!probe(&[0; 512], &whole, 1 << 20));
        let mut damaged = whole.clone();
        damaged[100] ^= 1;
        assert!(!probe(&[0; 512], &damaged, (1 << 20) + 512));
        let mut moved = vec![0; 2];
        moved.extend_from_slice(&whole[..510]);
        assert!(!probe(&[0; 512], &moved, (1 << 20) + 512));
        // 511 bytes of footer.
        let mut old = vec![7];
        old.extend_from_slice(&whole[..511]);
        assert!(probe(&[0; 512], &old, (1 << 20) + 511));
    }
}
