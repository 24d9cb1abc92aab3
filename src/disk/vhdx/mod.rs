//! VHDX, the disks of Hyper-V (\[MS-VHDX\]: Virtual Hard Disk v2 File Format), little-endian.
//!
//! Two headers, of which the newer whole one counts; two region tables, which tell where the table of blocks (BAT) and the
//! metadata are; a log, which is replayed in memory.

mod log;

use super::Disk;
use super::blocks::{Blocks, CUT, Entry, MAX_DISK, Map, Place, Run, Table, equal_bits, joined, too_large};
use super::gate::{Chain, Image};
use super::vhd::{unix, utf16};
use crate::bytes::{array, le16, le32, le64, slice, uuid};
use crate::cache::Cache;
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, read_vec};
use log::Replayed;
use std::sync::Arc;

/// The first bytes of the file.
pub(super) const MAGIC: &[u8] = b"vhdxfile";
/// What the BAT counts in.
const MIB: u64 = 1 << 20;
/// Sectors that one sector bitmap block covers.
const SECTORS_PER_BITMAP: u64 = 1 << 23;
/// Bytes of a sector bitmap that are read at once.
const BITMAP_PAGE: u64 = 4096;
/// Bytes of sector bitmaps that are kept.
const BITMAPS_KEPT: usize = 16 << 20;
/// The largest disk of the specification: 64 TiB.
const MAX_SIZE: u64 = 64 << 40;

/// GUIDs as the specification writes them.
mod guid {
    pub(super) const BAT: &str = "2dc27766-f623-4200-9d64-115e9bfd4a08";
    pub(super) const METADATA: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";
    pub(super) const FILE_PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
    pub(super) const DISK_SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
    pub(super) const DISK_ID: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
    pub(super) const LOGICAL_SECTOR: &str = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
    pub(super) const PHYSICAL_SECTOR: &str = "cda348c7-445d-4471-9cc9-e9885251c556";
    pub(super) const PARENT_LOCATOR: &str = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";
    pub(super) const VHDX_LOCATOR: &str = "b04aefb7-d19e-4a81-b789-25b8e9445913";
}

/// The GUID at `at`, in the order in which it is written.
fn guid_at(b: &[u8], at: usize) -> Option<[u8; 16]> {
    let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7] = array(b, at)?;
    Some([a3, a2, a1, a0, b1, b0, c1, c0, d0, d1, d2, d3, d4, d5, d6, d7])
}

/// CRC-32C of `b` with the four bytes of the checksum itself as zeros.
fn checksum(b: &[u8], field: usize) -> Option<u32> {
    let sum = crc32c::crc32c(b.get(..field)?);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    Some(crc32c::crc32c_append(sum, b.get(field.checked_add(4)?..)?))
}

/// The header that counts.
struct Header {
    sequence: u64,
    /// Another one after each change of the disk's content.
    data_write: [u8; 16],
    log: [u8; 16],
    log_version: u16,
    version: u16,
    log_len: u64,
    log_at: u64,
}

impl Header {
    fn read(file: &dyn ReadAt) -> Result<Self> {
        let one = |at: u64| -> Result<Option<Self>> {
            let b = read_vec(file, at, 4096)?;
            let fields = || {
                Some(Self {
                    sequence: le64(&b, 8)?,
                    data_write: guid_at(&b, 32)?,
                    log: guid_at(&b, 48)?,
                    log_version: le16(&b, 64)?,
                    version: le16(&b, 66)?,
                    log_len: le32(&b, 68)?.into(),
                    log_at: le64(&b, 72)?,
                })
            };
            let whole = b.starts_with(b"head") && le32(&b, 4) == checksum(&b, 4);
            Ok(fields().filter(|_| whole))
        };
        let newest = match (one(64 << 10)?, one(128 << 10)?) {
            (Some(a), Some(b)) => Some(if b.sequence > a.sequence { b } else { a }),
            (a, b) => a.or(b),
        };
        let header = newest.ok_or_else(|| Error::corrupt("neither header is whole", 64 << 10))?;
        if header.version != 1 {
            return Err(Error::unsupported(format!("VHDX version {}", header.version)));
        }
        Ok(header)
    }
}

/// Where BAT and metadata are: offset and length in bytes.
struct Regions {
    bat: (u64, u64),
    metadata: (u64, u64),
}

impl Regions {
    fn read(file: &dyn ReadAt) -> Result<Self> {
        let mut table = None;
        for at in [192 << 10, 256 << 10] {
            let b = read_vec(file, at, 64 << 10)?;
            if b.starts_with(b"regi") && le32(&b, 4) == checksum(&b, 4) {
                table = Some(b);
                break;
            }
        }
        let b = table.ok_or_else(|| Error::corrupt("neither region table is whole", 192 << 10))?;
        let count = le32(&b, 8).filter(|n| *n <= 2047);
        let count = count.ok_or_else(|| Error::corrupt("a region table of too many entries", 192 << 10))?;
        let (mut bat, mut metadata) = (None, None);
        for n in 0..usize::try_from(count).unwrap_or(0) {
            let at = 16 + n * 32;
            let (Some(id), Some(offset), Some(len), Some(flags)) = (
                guid_at(&b, at),
                le64(&b, at + 16),
                le32(&b, at + 24),
                le32(&b, at + 28),
            ) else {
                continue;
            };
            let id = uuid(id);
            let region = (offset, u64::from(len));
            let slot = match id.as_str() {
                guid::BAT => &mut bat,
                guid::METADATA => &mut metadata,
                _ if flags & 1 == 0 => continue,
                _ => return Err(Error::unsupported(format!("the VHDX region {id}"))),
            };
            let inside = offset.checked_add(region.1).is_some_and(|end| end <= file.len());
            if slot.is_some() || !inside || offset < MIB || !offset.is_multiple_of(MIB) {
                return Err(
                    Error::corrupt(format!("the region {id} lies where it cannot"), offset).hint(CUT),
                );
            }
            *slot = Some(region);
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata }),
            _ => Err(Error::corrupt(
                "no BAT or no metadata among the regions",
                192 << 10,
            )),
        }
    }
}

/// What the metadata say.
#[derive(Default)]
struct Metadata {
    block: u64,
    has_parent: bool,
    size: u64,
    sector: u64,
    /// The parent locator.
    locator: Option<Vec<u8>>,
}

impl Metadata {
    fn read(file: &dyn ReadAt, (start, len): (u64, u64)) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(what.to_owned(), start);
        if len < 64 << 10 {
            return Err(bad("a metadata region without its table"));
        }
        let b = read_vec(file, start, 64 << 10)?;
        let count = le16(&b, 10).filter(|n| b.starts_with(b"metadata") && *n <= 2047);
        let count = count.ok_or_else(|| bad("the metadata table is damaged"))?;
        let mut found = Self::default();
        let mut seen = [false; 3];
        for n in 0..usize::from(count) {
            let at = 32 + n * 32;
            let (Some(id), Some(offset), Some(size), Some(flags)) = (
                guid_at(&b, at),
                le32(&b, at + 16),
                le32(&b, at + 20),
                le32(&b, at + 24),
            ) else {
                continue;
            };
            let id = uuid(id);
            let item = |most: u32| {
                let end = u64::from(offset) + u64::from(size);
                if size > most || offset < 64 << 10 || end > len {
                    return Err(bad(&format!("the metadata item {id} lies where it cannot")));
                }
                read_vec(
                    file,
                    start + u64::from(offset),
                    usize::try_from(size).unwrap_or(0),
                )
            };
            let short = || bad(&format!("the metadata item {id} is cut"));
            match id.as_str() {
                guid::FILE_PARAMETERS => {
                    let item = item(8)?;
                    found.block = le32(&item, 0).ok_or_else(short)?.into();
                    found.has_parent = le32(&item, 4).ok_or_else(short)? & 2 != 0;
                    seen[0] = true;
                }
                guid::DISK_SIZE => {
                    found.size = le64(&item(8)?, 0).ok_or_else(short)?;
                    seen[1] = true;
                }
                guid::LOGICAL_SECTOR => {
                    found.sector = le32(&item(4)?, 0).ok_or_else(short)?.into();
                    seen[2] = true;
                }
                guid::PARENT_LOCATOR => found.locator = Some(item(1 << 20)?),
                guid::DISK_ID | guid::PHYSICAL_SECTOR => {}
                // Bit 2: who does not know the item must not open the file.
                _ if flags & 4 == 0 => {}
                _ => return Err(Error::unsupported(format!("the VHDX metadata item {id}"))),
            }
        }
        if seen.contains(&false) {
            return Err(bad("a metadata item is missing"));
        }
        if !found.block.is_power_of_two() || !(MIB..=256 * MIB).contains(&found.block) {
            return Err(bad(&format!("blocks of {} bytes", found.block)));
        }
        if !matches!(found.sector, 512 | 4096) || !found.size.is_multiple_of(found.sector) {
            return Err(bad(&format!(
                "{} bytes in sectors of {}",
                found.size, found.sector
            )));
        }
        if found.size > MAX_SIZE {
            return Err(bad("a disk of more than 64 TiB"));
        }
        Ok(found)
    }
}

/// Opens `image`, and its parent if `chain` lets it.
///
/// # Errors
/// As [`super::open`].
pub(super) fn open(image: Image, chain: &mut Chain<'_>) -> Result<Disk> {
    opened(&image, chain).map(|(disk, _)| disk)
}

/// The disk, and the GUID that names its content to its children.
fn opened(image: &Image, chain: &mut Chain<'_>) -> Result<(Disk, [u8; 16])> {
    let named = |e: Error| e.within(&image.name);
    let header = Header::read(&*image.file).map_err(named)?;
    let mut notes = Vec::new();
    let mut file = Arc::clone(&image.file);
    if header.log != [0; 16] {
        if header.log_version != 0 {
            let what = format!("VHDX log version {}", header.log_version);
            return Err(named(Error::unsupported(what)));
        }
        file = Arc::new(Replayed::new(file, header.log_at, header.log_len, header.log).map_err(named)?);
        notes.push("the image was not closed: its log is replayed in memory".to_owned());
    }
    let regions = Regions::read(&*file).map_err(named)?;
    let metadata = Metadata::read(&*file, regions.metadata).map_err(named)?;
    let parent = if metadata.has_parent {
        let locator = metadata.locator.as_deref();
        let locator = locator.ok_or_else(|| named(Error::corrupt("a parent without a locator", 0)))?;
        Some(parent(image, locator, chain, &mut notes)?)
    } else {
        None
    };
    let map = Vhdx::new(&image.name, Arc::clone(&file), &regions, &metadata).map_err(named)?;
    let disk = Disk {
        data: Arc::new(Blocks::new(&image.name, map, file, parent)),
        format: "vhdx",
        notes,
    };
    Ok((disk, header.data_write))
}

/// The parent that a locator leads to (2.6.2.6): keys and values in UTF-16.
fn parent(
    image: &Image,
    locator: &[u8],
    chain: &mut Chain<'_>,
    notes: &mut Vec<String>,
) -> Result<Arc<dyn ReadAt>> {
    let bad = |what: &str| Error::corrupt(format!("{}: {what}", image.name), 0);
    let kind = guid_at(locator, 0).map(uuid).unwrap_or_default();
    if kind != guid::VHDX_LOCATOR {
        return Err(Error::unsupported(format!(
            "{}: a parent locator of type {kind}",
            image.name
        )));
    }
    let text = |at: u32, len: u16| {
        let at = usize::try_from(at).ok()?;
        Some(utf16(slice(locator, at, len.into())?, u16::from_le_bytes))
    };
    let mut pairs = std::collections::HashMap::new();
    for n in 0..usize::from(le16(locator, 18).unwrap_or(0)) {
        let at = 20 + n * 12;
        let pair = || {
            let key = text(le32(locator, at)?, le16(locator, at + 8)?)?;
            Some((key, text(le32(locator, at + 4)?, le16(locator, at + 10)?)?))
        };
        pairs.extend([pair().ok_or_else(|| bad("the parent locator is damaged"))?]);
    }
    let keys = ["relative_path", "volume_path", "absolute_win32_path"];
    let names: Vec<Vec<u8>> = keys
        .iter()
        .filter_map(|k| pairs.get(*k))
        .map(|n| unix(n))
        .collect();
    if names.is_empty() {
        return Err(bad("the parent locator has no path"));
    }
    let found = chain.follow_any(image, "parent", &names)?;
    let (parent, id) = opened(&found, chain)?;
    let id = uuid(id);
    let linkage = ["parent_linkage", "parent_linkage2"]
        .iter()
        .filter_map(|k| pairs.get(*k));
    let mut linkage = linkage.map(|l| l.trim_matches(['{', '}']).to_ascii_lowercase());
    if !linkage.any(|l| l == id) {
        return Err(bad(&format!(
            "the parent {} has the content {id}, which is not the one that the disk was made of: it was written to since, or is another disk",
            found.name
        )));
    }
    notes.push(format!("parent: {}", Escaped(found.name.as_bytes())));
    notes.extend(parent.notes);
    Ok(parent.data)
}

/// The tables of an image.
struct Vhdx {
    name: String,
    size: u64,
    block: u64,
    sector: u64,
    /// Payload blocks for each sector bitmap block.
    chunk: u64,
    bat: Table,
    /// The sector bitmaps of a differencing disk.
    bitmaps: Option<Cache>,
    file: Arc<dyn ReadAt>,
}

impl Vhdx {
    fn new(name: &str, file: Arc<dyn ReadAt>, regions: &Regions, metadata: &Metadata) -> Result<Self> {
        let chunk = SECTORS_PER_BITMAP * metadata.sector / metadata.block;
        let blocks = metadata.size.div_ceil(metadata.block);
        // Behind each chunk of payload blocks stands the entry of their bitmap; a differencing disk has it behind the last too.
        let entries = if metadata.has_parent {
            blocks.div_ceil(chunk) * (chunk + 1)
        } else {
            blocks + blocks.saturating_sub(1) / chunk
        };
        if entries * 8 > regions.bat.1 {
            let what = format!("a BAT of {} bytes, {entries} entries are needed", regions.bat.1);
            return Err(Error::corrupt(what, regions.bat.0));
        }
        if metadata.size > MAX_DISK {
            return Err(too_large());
        }
        Ok(Self {
            name: name.to_owned(),
            size: metadata.size,
            block: metadata.block,
            sector: metadata.sector,
            chunk,
            bat: Table::new("BAT", Arc::clone(&file), regions.bat.0, entries, Entry::Le64)?,
            bitmaps: metadata.has_parent.then(|| Cache::new(BITMAPS_KEPT)),
            file,
        })
    }

    /// Which sectors of a partially present block are in this file: `true` and the parent's: `false`, from the byte `at` of
    /// the disk, and for how many bytes.
    fn sectors(&self, cache: &Cache, bitmap: u64, at: u64) -> Result<(bool, u64)> {
        let bad = |at| Error::corrupt(format!("{}: a sector bitmap", self.name), at);
        if bitmap & 7 != 6 {
            return Err(bad(at));
        }
        // The bit of the sector in the 1 MiB that cover a chunk, and the page of that.
        let chunk_len = self.chunk * self.block;
        let bit = at % chunk_len / self.sector;
        let per_page = BITMAP_PAGE * 8;
        let page_at = (bitmap >> 20) * MIB + bit / per_page * BITMAP_PAGE;
        let page = cache.get(page_at, || read_vec(&*self.file, page_at, 4096))?;
        let block_end = (at / self.block + 1) * self.block % chunk_len;
        let last = if block_end == 0 { chunk_len } else { block_end } / self.sector;
        let end = last.min((bit / per_page + 1) * per_page);
        let first = bit % per_page;
        let (own, count) =
            equal_bits(&page, first, first + (end - bit), false).ok_or_else(|| bad(page_at))?;
        Ok((own, count * self.sector - at % self.sector))
    }
}

impl Map for Vhdx {
    fn len(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64, max: u64) -> Result<Run> {
        let mut cursor = self.bat.cursor();
        let mut bitmaps = self.bat.cursor();
        let end = offset.saturating_add(max).min(self.size);
        joined(offset, end, |at| {
            let number = at / self.block;
            let within = at % self.block;
            let entry = cursor.get(number + number / self.chunk)?;
            let here = || {
                (entry >> 20)
                    .checked_mul(MIB)
                    .and_then(|b| b.checked_add(within))
                    .map(Place::Host)
            };
            let corrupt = || Error::corrupt(format!("{}: the BAT entry of block {number}", self.name), at);
            let whole = |place| Run {
                place,
                len: self.block - within,
            };
            // Payload block states (2.5.1.1). What is undefined or unmapped is zeros here, as in qemu.
            match (entry & 7, &self.bitmaps) {
                (0, Some(_)) => Ok(whole(Place::Parent)),
                (0..=3, _) => Ok(whole(Place::Zero)),
                (6, _) if entry >> 20 != 0 => Ok(whole(here().ok_or_else(corrupt)?)),
                (7, Some(cache)) if entry >> 20 != 0 => {
                    let chunk = number / self.chunk;
                    let bitmap = bitmaps.get((chunk + 1) * (self.chunk + 1) - 1)?;
                    let (own, len) = self.sectors(cache, bitmap, at)?;
                    let place = if own {
                        here().ok_or_else(corrupt)?
                    } else {
                        Place::Parent
                    };
                    Ok(Run { place, len })
                }
                _ => Err(corrupt()),
            }
        })
    }
}
