//! qcow2, versions 2 and 3, for reading (qemu's specification: docs/interop/qcow2.txt).
//!
//! A disk is a chain of images: what this one does not hold is read from its backing file. Guest offsets are looked up
//! in two levels: the L1 table, in memory, leads to L2 tables, in a bounded cache; their entries lead to host clusters.

mod header;

use super::blocks::{Blocks, CUT, Map, Place, Run, joined};
use super::gate::{Chain, Image};
use super::{Disk, open_as};
use crate::bytes::be64;
use crate::cache::Cache;
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, read_vec};
use header::{Compression, Header};
use std::sync::Arc;

/// The first bytes of the file (header field `magic`).
pub const MAGIC: &[u8] = b"QFI\xfb";

/// Bytes of L2 tables that are kept: with clusters of 64 KiB they map 512 GiB of disk.
const TABLES_KEPT: usize = 64 << 20;

/// Bits 9 to 55 of an L1 or L2 entry: an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 62 of an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 63 of an L2 entry: the reference count is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 0 of a standard L2 entry: the cluster reads as zeros.
const ZERO: u64 = 1;

/// The tables of an opened image.
struct Qcow2 {
    name: String,
    header: Header,
    /// The image itself: tables and compressed clusters.
    file: Arc<dyn ReadAt>,
    /// True if standard clusters lie in an external data file.
    external: bool,
    backing: bool,
    /// The file offset of each L2 table, 0 for none.
    l1: Vec<u64>,
    tables: Cache,
}

/// Opens `image`, and the data and backing files it names if `chain` lets it.
///
/// # Errors
/// As [`super::open`].
pub(super) fn open(image: Image, chain: &mut Chain<'_>) -> Result<Disk> {
    let name = image.name.clone();
    let named = |e: Error| e.within(&name);
    let file = Arc::clone(&image.file);
    let len = file.len();
    let part = |want: usize| usize::try_from(len).map_or(want, |len| len.min(want));
    let first = read_vec(&*file, 0, part(512))?;
    let cluster = header::cluster_bits(&first).map_err(named)?;
    let header = Header::from_bytes(&read_vec(&*file, 0, part(1 << cluster))?).map_err(named)?;

    let mut notes = Vec::new();
    if header.nb_snapshots > 0 {
        notes.push(format!(
            "internal snapshots: {}, the active layer is read",
            header.nb_snapshots
        ));
    }
    if header.corrupt {
        notes.push("the image is marked as corrupt; `qemu-img check` tells more".to_owned());
    }
    let data = match &header.data_file {
        None => None,
        Some(None) => {
            return Err(named(Error::unsupported(
                "a qcow2 image with an external data file that it does not name",
            )));
        }
        Some(Some(file)) => {
            notes.push(format!("data file: {}", Escaped(file)));
            Some(chain.follow(&image, "data file", file)?)
        }
    };
    let backing = match &header.backing {
        None => None,
        Some(file) => Some(open_backing(&image, file, &header, chain, &mut notes)?),
    };
    let l1 = read_l1(&file, &header).map_err(named)?;
    let map = Qcow2 {
        name: name.clone(),
        l1,
        file: Arc::clone(&file),
        external: data.is_some(),
        backing: backing.is_some(),
        header,
        tables: Cache::new(TABLES_KEPT),
    };
    let data = data.map_or(file, |d| d.file);
    Ok(Disk {
        data: Arc::new(Blocks::new(name, map, data, backing)),
        format: "qcow2",
        notes,
    })
}

fn open_backing(
    image: &Image,
    file: &[u8],
    header: &Header,
    chain: &mut Chain<'_>,
    notes: &mut Vec<String>,
) -> Result<Arc<dyn ReadAt>> {
    let shown = Escaped(file).to_string();
    let Some(format) = &header.backing_format else {
        return Err(Error::refused(format!(
            "{} does not say of which format its backing file {shown} is",
            image.name
        ))
        .hint("if you know the format, write it down: qemu-img rebase -u -F FORMAT -b BACKING IMAGE"));
    };
    let format = String::from_utf8_lossy(format);
    let backing = chain.follow(image, "backing file", file)?;
    let backing = open_as(&format, backing, chain)?;
    notes.push(format!("backing file: {shown} ({})", backing.format));
    notes.extend(backing.notes);
    Ok(backing.data)
}

/// The file offsets of the L2 tables that the disk's size needs; each lies in the file wholly.
fn read_l1(file: &dyn ReadAt, header: &Header) -> Result<Vec<u64>> {
    let cut = |what: String, at| Error::corrupt(what, at).hint(CUT);
    let needed = usize::try_from(header.l1_needed()).unwrap_or(usize::MAX);
    let at = header.l1_table_offset;
    let bytes = needed.saturating_mul(8);
    if at.checked_add(bytes as u64).is_none_or(|end| end > file.len()) {
        return Err(cut("the L1 table ends behind the end of the file".to_owned(), at));
    }
    let raw = read_vec(file, at, bytes)?;
    let (entries, _) = raw.as_chunks::<8>();
    let cluster = 1u64 << header.cluster_bits;
    let mut l1 = Vec::with_capacity(needed);
    for (index, entry) in entries.iter().enumerate() {
        let offset = u64::from_be_bytes(*entry) & OFFSET;
        if !offset.is_multiple_of(cluster) {
            return Err(Error::corrupt(
                format!("L1 entry {index} is not at a cluster"),
                offset,
            ));
        }
        if offset != 0 && offset + cluster > file.len() {
            return Err(cut(
                format!("L2 table {index} ends behind the end of the file"),
                offset,
            ));
        }
        l1.push(offset);
    }
    Ok(l1)
}

impl Qcow2 {
    fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// What an unallocated cluster reads as.
    fn elsewhere(&self) -> Place {
        if self.backing { Place::Parent } else { Place::Zero }
    }

    /// The place of the guest byte `offset`, and how many bytes are left of its cluster or subcluster. `table` is the L2
    /// table that maps it, `table_at` where that lies in the file.
    fn unit_at(&self, table: &[u8], table_at: u64, offset: u64) -> Result<Run> {
        let bits = self.header.cluster_bits;
        let within = offset & (self.cluster_size() - 1);
        let whole = self.cluster_size() - within;
        let index = offset >> bits & ((1 << self.header.l2_bits()) - 1);
        let width = if self.header.extended_l2 { 16 } else { 8 };
        let entry_at = index * width;
        let corrupt = |what: &str| {
            Error::corrupt(
                format!("{}: L2 entry for byte {offset}: {what}", self.name),
                table_at + entry_at,
            )
        };
        let field = |at: u64| {
            usize::try_from(at)
                .ok()
                .and_then(|at| be64(table, at))
                .ok_or_else(|| corrupt("outside its table"))
        };
        let entry = field(entry_at)?;
        if entry & COMPRESSED != 0 {
            if self.external {
                return Err(corrupt("a compressed cluster with an external data file"));
            }
            return Ok(Run {
                place: Place::Packed(entry & !COPIED),
                len: whole,
            });
        }
        let host = entry & OFFSET;
        if host & (self.cluster_size() - 1) != 0 {
            return Err(corrupt("the offset is not at a cluster"));
        }
        let allocated = host != 0 || self.external && entry & COPIED != 0;
        if allocated && self.external && host + within != offset {
            return Err(corrupt("the offset in the data file is not the disk's offset"));
        }
        if !self.header.extended_l2 {
            let place = match (entry & ZERO != 0, allocated) {
                (true, _) if self.header.version < 3 => {
                    return Err(corrupt("a zero cluster in an image of version 2"));
                }
                (true, _) => Place::Zero,
                (false, true) => Place::Host(host + within),
                (false, false) => self.elsewhere(),
            };
            return Ok(Run { place, len: whole });
        }
        // Subcluster Allocation Bitmap: bit x allocated, bit 32 + x reads as zeros.
        let bitmap = field(entry_at + 8)?;
        let (alloc, zero) = (bitmap & 0xffff_ffff, bitmap >> 32);
        if alloc & zero != 0 || (!allocated && alloc != 0) {
            return Err(corrupt("the subcluster bitmap contradicts itself"));
        }
        let sub_bits = bits - 5;
        let sub = within >> sub_bits;
        let kind = |x: u64| (alloc >> x & 1, zero >> x & 1);
        let alike = (sub..32).take_while(|x| kind(*x) == kind(sub)).count() as u64;
        let place = match kind(sub) {
            (1, _) => Place::Host(host + within),
            (_, 1) => Place::Zero,
            _ => self.elsewhere(),
        };
        Ok(Run {
            place,
            len: ((sub + alike) << sub_bits) - within,
        })
    }
}

impl Map for Qcow2 {
    fn len(&self) -> u64 {
        self.header.size
    }

    fn run_at(&self, offset: u64, max: u64) -> Result<Run> {
        let bits = self.header.cluster_bits + self.header.l2_bits();
        let index = usize::try_from(offset >> bits).unwrap_or(usize::MAX);
        let first = self.l1.get(index).copied().unwrap_or(0);
        let mut end = ((offset >> bits) + 1) << bits;
        if first == 0 {
            let asked = usize::try_from(max >> bits)
                .unwrap_or(usize::MAX)
                .saturating_add(1);
            let rest = self.l1.iter().skip(index.saturating_add(1)).take(asked);
            let empty = rest.take_while(|l2| **l2 == 0).count() as u64;
            end = end.saturating_add(empty << bits);
            return Ok(Run {
                place: self.elsewhere(),
                len: max.min(end - offset),
            });
        }
        let table = self.tables.get(first, || {
            let len = usize::try_from(self.cluster_size()).unwrap_or(usize::MAX);
            read_vec(&*self.file, first, len)
        })?;
        let end = end.min(offset.saturating_add(max));
        joined(offset, end, |at| self.unit_at(&table, first, at))
    }

    fn unit(&self) -> u64 {
        self.cluster_size()
    }

    /// The content of the compressed cluster that `entry` describes.
    fn unpack(&self, entry: u64) -> Result<Vec<u8>> {
        // Compressed Clusters Descriptor: x = 62 - (cluster_bits - 8)
        let x = 62 - (self.header.cluster_bits - 8);
        let at = entry & ((1 << x) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> x;
        let len = (sectors + 1) * 512 - at % 512;
        if at >= self.file.len() {
            let what = "a compressed cluster lies behind the end of the file";
            return Err(Error::corrupt(format!("{}: {what}", self.name), at).hint(CUT));
        }
        let len = usize::try_from(len.min(self.file.len() - at)).unwrap_or(usize::MAX);
        let packed = read_vec(&*self.file, at, len)?;
        let mut out = vec![0; usize::try_from(self.cluster_size()).unwrap_or(usize::MAX)];
        let whole = match self.header.compression {
            Compression::Deflate => inflate(&packed, &mut out),
            Compression::Zstd => unzstd(&packed, &mut out),
        };
        if whole {
            Ok(out)
        } else {
            let what = "a compressed cluster cannot be decompressed";
            Err(Error::corrupt(format!("{}: {what}", self.name), at))
        }
    }

    /// qemu writes no more of the last cluster than there is.
    fn cut_unit(&self) -> u64 {
        self.cluster_size()
    }
}

/// True if `packed` begins with a raw deflate stream that fills `out`.
fn inflate(packed: &[u8], out: &mut [u8]) -> bool {
    let mut stream = flate2::Decompress::new(false);
    let done = stream.decompress(packed, out, flate2::FlushDecompress::Finish);
    done.is_ok() && stream.total_out() == out.len() as u64
}

/// True if `packed` begins with Zstandard frames that fill `out`. Frames are decompressed whole into `out`, so that a
/// frame's stated window costs no memory.
fn unzstd(mut packed: &[u8], out: &mut [u8]) -> bool {
    use zstd::zstd_safe;
    let mut filled = 0;
    while filled < out.len() {
        let Ok(frame_len) = zstd_safe::find_frame_compressed_size(packed) else {
            return false;
        };
        let (Some((frame, rest)), Some(space)) = (packed.split_at_checked(frame_len), out.get_mut(filled..))
        else {
            return false;
        };
        let Ok(n) = zstd_safe::decompress(space, frame) else {
            return false;
        };
        if frame.is_empty() {
            return false;
        }
        filled += n;
        packed = rest;
    }
    filled == out.len()
}
