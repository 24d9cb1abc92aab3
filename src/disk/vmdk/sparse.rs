//! Sparse extents: a grain directory leads to grain tables, their entries to grains. Three layouts have this in common:
//! hosted sparse extents (`KDMV`), those of VMFS (`COWD`), and seSparse.

use crate::bytes::{le16, le32, le64};
use crate::cache::Cache;
use crate::disk::blocks::{CUT, Entry, MAX_DISK, Map, Place, Run, Table, joined, too_large};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};
use std::sync::Arc;

/// Bytes in a sector; all offsets and sizes of the format count these.
pub(super) const SECTOR: u64 = 512;
/// First bytes of a hosted sparse extent.
pub(super) const HOSTED: &[u8] = b"KDMV";
/// First bytes of a sparse extent of VMFS.
pub(super) const COWD: &[u8] = b"COWD";
/// First bytes of an seSparse extent.
pub(super) const SE_SPARSE: &[u8] = &0x0000_0000_cafe_babe_u64.to_le_bytes();

/// Bytes of grain tables that are kept: with grains of 64 KiB they map 512 GiB of disk.
const TABLES_KEPT: usize = 32 << 20;
/// `gdOffset` of an extent whose footer has the header that counts.
const GD_AT_END: u64 = u64::MAX;
/// Bytes that stand before the data of a compressed grain: its sector and the length of the data.
const GRAIN_MARKER: usize = 12;
/// The largest grain, in sectors.
const MAX_GRAIN: u64 = 0x20_0000;
/// The largest compressed grain, in sectors.
const MAX_PACKED_GRAIN: u64 = 0x1000;
/// The grain tables of so many directory entries are looked at when an extent is opened.
const CHECKED: u64 = 1 << 20;

/// The header of a hosted sparse extent (`SparseExtentHeader`), little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    version: u32,
    flags: u32,
    /// In sectors.
    pub(super) capacity: u64,
    /// In sectors.
    grain: u64,
    /// Where the embedded descriptor is, in sectors.
    pub(super) descriptor_offset: u64,
    /// In sectors.
    pub(super) descriptor_size: u64,
    gtes_per_gt: u32,
    rgd_offset: u64,
    gd_offset: u64,
    algorithm: u16,
}

impl Header {
    /// Reads the fields that stand in the first 79 bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there are fewer.
    pub(super) fn from_bytes(b: &[u8]) -> Result<Self> {
        let fields = || {
            b.starts_with(HOSTED).then_some(())?;
            Some(Self {
                version: le32(b, 4)?,
                flags: le32(b, 8)?,
                capacity: le64(b, 12)?,
                grain: le64(b, 20)?,
                descriptor_offset: le64(b, 28)?,
                descriptor_size: le64(b, 36)?,
                gtes_per_gt: le32(b, 44)?,
                rgd_offset: le64(b, 48)?,
                gd_offset: le64(b, 56)?,
                algorithm: le16(b, 77)?,
            })
        };
        fields().ok_or_else(|| Error::corrupt("no header of a sparse extent", 0))
    }

    /// `flags` bit 1: there is a redundant grain directory.
    fn has_redundant(&self) -> bool {
        self.flags & 1 << 1 != 0
    }
    /// `flags` bit 2: an entry of 1 is a grain of zeros.
    fn has_zero_grains(&self) -> bool {
        self.flags & 1 << 2 != 0
    }
    /// `flags` bit 17: markers stand before compressed grains.
    fn has_markers(&self) -> bool {
        self.flags & 1 << 17 != 0
    }

    /// The header at the end of the file, if this one says that it is there.
    fn footer(self, file: &dyn ReadAt) -> Result<Self> {
        if self.gd_offset != GD_AT_END {
            return Ok(self);
        }
        let bad = |what: &str, at| Error::corrupt(what.to_owned(), at).hint(CUT);
        // Footer marker, footer, end-of-stream marker.
        let at = file
            .len()
            .checked_sub(3 * SECTOR)
            .ok_or_else(|| bad("the footer is missing", 0))?;
        let b = read_vec(file, at, 1536)?;
        let marks = [0, 2].map(|n: usize| {
            let n = n * 512;
            (le32(&b, n + 8), le32(&b, n + 12))
        });
        if marks != [(Some(0), Some(3)), (Some(0), Some(0))] {
            return Err(bad("the file does not end with a footer", at));
        }
        let footer = Self::from_bytes(b.get(512..).unwrap_or_default())
            .map_err(|_| bad("the footer is damaged", at))?;
        if footer.gd_offset == GD_AT_END {
            return Err(Error::corrupt("the footer has no grain directory", at));
        }
        Ok(footer)
    }
}

/// What the entries of directory and tables mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Offsets in sectors. An entry of 1 is a grain of zeros if `zeros`.
    Sectors { zeros: bool },
    /// As above, and grains are compressed; with a marker in front if `markers`.
    Packed { zeros: bool, markers: bool },
    /// 64-bit entries with a type in their highest 4 bits; tables and grains count from these sectors.
    SeSparse { tables: u64, grains: u64 },
}

/// The tables of a sparse extent.
pub(super) struct Grains {
    name: String,
    file: Arc<dyn ReadAt>,
    /// Length in bytes.
    size: u64,
    /// Length of a grain in bytes.
    grain: u64,
    /// Entries of a grain table.
    per_table: u64,
    directory: Table,
    tables: Cache,
    layout: Layout,
}

impl Grains {
    /// Opens a hosted sparse extent. The note says what is odd of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`] naming what is not read.
    pub(super) fn hosted(
        name: &str,
        file: &Arc<dyn ReadAt>,
        header: Header,
    ) -> Result<(Self, Option<String>)> {
        let header = header.footer(&**file)?;
        if !(1..=3).contains(&header.version) {
            return Err(Error::unsupported(format!("VMDK version {}", header.version)));
        }
        let zeros = header.has_zero_grains();
        let layout = match header.algorithm {
            0 => Layout::Sectors { zeros },
            1 => Layout::Packed {
                zeros,
                markers: header.has_markers(),
            },
            other => return Err(Error::unsupported(format!("VMDK compression algorithm {other}"))),
        };
        if !(1..=512).contains(&header.gtes_per_gt) {
            let what = format!("numGTEsPerGT is {}", header.gtes_per_gt);
            return Err(Error::corrupt(what, 44));
        }
        if header.algorithm == 1 && header.grain > MAX_PACKED_GRAIN {
            return Err(Error::unsupported(format!(
                "compressed grains of {} sectors",
                header.grain
            )));
        }
        let open = |gd| {
            let shape = Shape {
                capacity: header.capacity,
                grain: header.grain,
                per_table: header.gtes_per_gt.into(),
                directory: gd,
            };
            Self::new(name, file, shape, layout)
        };
        match open(header.gd_offset) {
            Ok(grains) => Ok((grains, None)),
            Err(first) if header.has_redundant() => match open(header.rgd_offset) {
                Ok(grains) => {
                    let note = format!("{name}: {first}: the redundant grain directory is used");
                    Ok((grains, Some(note)))
                }
                Err(_) => Err(first),
            },
            Err(first) => Err(first),
        }
    }

    /// Opens a sparse extent of VMFS (`COWDisk_Header`).
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`] naming what is not read.
    pub(super) fn cowd(name: &str, file: &Arc<dyn ReadAt>) -> Result<Self> {
        let b = read_vec(&**file, 0, 36)?;
        let field = |at| {
            le32(&b, at)
                .map(u64::from)
                .ok_or_else(|| Error::corrupt("no header of a VMFS sparse extent", 0))
        };
        if !b.starts_with(COWD) {
            return Err(Error::corrupt("no header of a VMFS sparse extent", 0));
        }
        if field(4)? != 1 {
            return Err(Error::unsupported(format!("VMFS sparse version {}", field(4)?)));
        }
        let shape = Shape {
            capacity: field(12)?,
            grain: field(16)?,
            per_table: 4096,
            directory: field(20)?,
        };
        let needed = shape.entries().unwrap_or(u64::MAX);
        if needed > field(24)? {
            let what = format!("a grain directory of {} entries, {needed} are needed", field(24)?);
            return Err(Error::corrupt(what, 24));
        }
        Self::new(name, file, shape, Layout::Sectors { zeros: false })
    }

    /// Opens an seSparse extent. The format is not published; this is what is known of it (`VMDKSESparseConstHeader` in qemu).
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`] naming what is not read.
    pub(super) fn se_sparse(name: &str, file: &Arc<dyn ReadAt>) -> Result<Self> {
        let b = read_vec(&**file, 0, 512)?;
        let field = |n: usize| le64(&b, n * 8).unwrap_or_default();
        if !b.starts_with(SE_SPARSE) {
            return Err(Error::corrupt("no header of an seSparse extent", 0));
        }
        let (version, grain, table, flags) = (field(1), field(3), field(4), field(5));
        if (version, grain, table, flags) != (0x2_0000_0001, 8, 64, 0)
            || b.get(48..80).is_some_and(|r| r.iter().any(|b| *b != 0))
        {
            return Err(Error::unsupported(format!(
                "seSparse version {version:#x}, grains of {grain} sectors, tables of {table}, flags {flags:#x}"
            )));
        }
        let at = field(10).saturating_mul(SECTOR);
        let volatile = read_vec(&**file, at, 32)?;
        if le64(&volatile, 0) != Some(0xcafe_cafe) {
            return Err(Error::corrupt("the volatile header is damaged", at));
        }
        if le64(&volatile, 24) != Some(0) {
            return Err(Error::unsupported("an seSparse extent with a journal to replay")
                .hint("shut the machine down, or export it once more"));
        }
        let shape = Shape {
            capacity: field(2),
            grain,
            per_table: table * SECTOR / 8,
            directory: field(16),
        };
        let needed = shape.entries().unwrap_or(u64::MAX);
        if needed > field(17).saturating_mul(SECTOR / 8) {
            let what = format!(
                "a grain directory of {} sectors, {needed} entries are needed",
                field(17)
            );
            return Err(Error::corrupt(what, 136));
        }
        if field(18) == 0 || field(24) == 0 {
            return Err(Error::corrupt("grain tables or grains lie in the header", 192));
        }
        let layout = Layout::SeSparse {
            tables: field(18),
            grains: field(24),
        };
        Self::new(name, file, shape, layout)
    }

    fn new(name: &str, file: &Arc<dyn ReadAt>, shape: Shape, layout: Layout) -> Result<Self> {
        if shape.grain == 0 || shape.grain > MAX_GRAIN {
            return Err(Error::corrupt(format!("grains of {} sectors", shape.grain), 20));
        }
        let size = shape
            .capacity
            .checked_mul(SECTOR)
            .filter(|s| *s <= MAX_DISK)
            .ok_or_else(too_large)?;
        let entries = shape.entries().ok_or_else(too_large)?;
        let (kind, width) = match layout {
            Layout::SeSparse { .. } => (Entry::Le64, 8),
            _ => (Entry::Le32, 4),
        };
        let at = shape.directory.checked_mul(SECTOR).filter(|at| *at > 0);
        let at = at.ok_or_else(|| Error::corrupt("the grain directory lies nowhere", 56))?;
        let directory = Table::new("grain directory", Arc::clone(file), at, entries, kind)?;
        let grains = Self {
            name: name.to_owned(),
            file: Arc::clone(file),
            size,
            grain: shape.grain * SECTOR,
            per_table: shape.per_table,
            directory,
            tables: Cache::new(TABLES_KEPT),
            layout,
        };
        let mut cursor = grains.directory.cursor();
        for index in 0..entries.min(CHECKED) {
            let Some(table) = grains.table_at(cursor.get(index)?)? else {
                continue;
            };
            if table.saturating_add(shape.per_table * width) > file.len() {
                let what = format!("grain table {index} ends behind the end of the file");
                return Err(Error::corrupt(what, table).hint(CUT));
            }
        }
        Ok(grains)
    }

    /// Leaves memory for `others` extents of the same disk.
    pub(super) fn share(&mut self, others: usize) {
        self.tables = Cache::new(TABLES_KEPT / others.max(1));
        self.directory.share(others);
    }

    /// Where the grain table of a directory entry is, in bytes; `None` if there is none.
    fn table_at(&self, entry: u64) -> Result<Option<u64>> {
        if entry == 0 {
            return Ok(None);
        }
        let sector = match self.layout {
            Layout::SeSparse { tables, .. } => {
                if entry >> 32 != 0x1000_0000 {
                    return Err(Error::corrupt(format!("a directory entry of {entry:#x}"), 0));
                }
                let sectors = self.per_table * 8 / SECTOR;
                tables.saturating_add((entry & 0xffff_ffff) * sectors)
            }
            _ => entry,
        };
        Ok(Some(sector.saturating_mul(SECTOR)))
    }

    /// The place of byte `offset`, of which `table` has the entry, and how much is left of its grain.
    fn grain_at(&self, table: &[u8], offset: u64) -> Result<Run> {
        let within = offset % self.grain;
        let index = offset / self.grain % self.per_table;
        let corrupt = || {
            Error::corrupt(
                format!("{}: the entry of the grain at byte {offset}", self.name),
                index,
            )
        };
        let index = usize::try_from(index).map_err(|_| corrupt())?;
        let host = |sector: u64| {
            let at = sector.checked_mul(SECTOR).and_then(|at| at.checked_add(within));
            at.map(Place::Host).ok_or_else(corrupt)
        };
        let place = match self.layout {
            Layout::Sectors { zeros } | Layout::Packed { zeros, .. } => {
                match (Entry::Le32.get(table, index).ok_or_else(corrupt)?, self.layout) {
                    (0, _) => Place::Parent,
                    (1, _) if zeros => Place::Zero,
                    (sector, Layout::Packed { .. }) => Place::Packed(sector),
                    (sector, _) => host(sector)?,
                }
            }
            Layout::SeSparse { grains, .. } => {
                let entry = Entry::Le64.get(table, index).ok_or_else(corrupt)?;
                match entry >> 60 {
                    0 if entry == 0 => Place::Parent,
                    // Unmapped by the guest, or written with zeros.
                    1 | 2 => Place::Zero,
                    3 => {
                        let number = (entry >> 48 & 0xfff) | (entry & 0xffff_ffff_ffff) << 12;
                        let sectors = number.checked_mul(self.grain / SECTOR);
                        host(sectors.and_then(|s| s.checked_add(grains)).ok_or_else(corrupt)?)?
                    }
                    _ => return Err(corrupt()),
                }
            }
        };
        Ok(Run {
            place,
            len: self.grain - within,
        })
    }
}

/// Sizes of an extent, in sectors where not said otherwise.
struct Shape {
    capacity: u64,
    grain: u64,
    /// Entries of a grain table.
    per_table: u64,
    directory: u64,
}

impl Shape {
    /// How many entries the directory needs.
    fn entries(&self) -> Option<u64> {
        let per_entry = self.grain.checked_mul(self.per_table).filter(|n| *n > 0)?;
        Some(self.capacity.div_ceil(per_entry))
    }
}

impl Map for Grains {
    fn len(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64, max: u64) -> Result<Run> {
        let span = self.grain * self.per_table;
        let first = offset / span;
        let mut cursor = self.directory.cursor();
        let table = self
            .table_at(cursor.get(first)?)
            .map_err(|e| e.within(&self.name))?;
        let Some(at) = table else {
            // A directory entry of zero: none of its grains is here.
            return joined(offset, offset.saturating_add(max).min(self.size), |at| {
                let place = match cursor.get(at / span)? {
                    0 => Place::Parent,
                    _ => Place::Host(0),
                };
                Ok(Run {
                    place,
                    len: span - at % span,
                })
            });
        };
        let entry = if matches!(self.layout, Layout::SeSparse { .. }) {
            8
        } else {
            4
        };
        let table = self.tables.get(at, || {
            let len = usize::try_from(self.per_table * entry).unwrap_or(usize::MAX);
            read_vec(&*self.file, at, len).map_err(|e| e.within(&self.name))
        })?;
        let end = (first + 1)
            .saturating_mul(span)
            .min(offset.saturating_add(max))
            .min(self.size);
        joined(offset, end, |at| self.grain_at(&table, at))
    }

    fn unit(&self) -> u64 {
        self.grain
    }

    fn unpack(&self, sector: u64) -> Result<Vec<u8>> {
        let at = sector.saturating_mul(SECTOR);
        let corrupt = |what: &str| Error::corrupt(format!("{}: {what}", self.name), at);
        let left = self.file.len().saturating_sub(at);
        if left == 0 {
            return Err(corrupt("a compressed grain lies behind the end of the file").hint(CUT));
        }
        let grain = usize::try_from(self.grain).unwrap_or(usize::MAX);
        // What cannot be compressed gets a little longer.
        let longest = grain.saturating_add(grain / 8).saturating_add(1024);
        let there = longest.min(usize::try_from(left).unwrap_or(usize::MAX));
        let packed = read_vec(&*self.file, at, there)?;
        let data = if matches!(self.layout, Layout::Packed { markers: true, .. }) {
            let len = le32(&packed, 8).and_then(|len| usize::try_from(len).ok());
            len.and_then(|len| crate::bytes::slice(&packed, GRAIN_MARKER, len))
                .ok_or_else(|| {
                    corrupt("a compressed grain ends behind the end of the file, or is too long")
                })?
        } else {
            &packed
        };
        // One byte more, so that the end of the stream is seen and its checksum compared.
        let mut out = vec![0; grain.saturating_add(1)];
        let mut stream = flate2::Decompress::new(true);
        let done = stream.decompress(data, &mut out, flate2::FlushDecompress::Finish);
        let len = usize::try_from(stream.total_out()).unwrap_or(usize::MAX);
        if !matches!(done, Ok(flate2::Status::StreamEnd)) || len > grain {
            return Err(corrupt("a compressed grain cannot be decompressed"));
        }
        out.truncate(len);
        Ok(out)
    }
}
