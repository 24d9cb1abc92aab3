//! The content of regular files and symbolic links: extents, their checksums and their copies.

use super::compress;
use super::items::{Extent as Item, FileExtent, INLINE_AT, Inode, Key, NODATASUM, ids, types};
use super::tree::Root;
use super::{Place, Trees};
use crate::error::{Error, Result};
use crate::read_at::{Extent, ReadAt, check_range};
use std::sync::{Arc, Mutex, PoisonError};

/// Data that is read and checked at once.
const PIECE: u64 = 1 << 20;

/// A piece of a file that is not a hole.
struct Piece {
    start: u64,
    len: u64,
    data: Data,
}

enum Data {
    Inline(Vec<u8>),
    /// `len` bytes from logical address `disk` on.
    Plain {
        disk: u64,
    },
    /// From byte `offset` of what `packed` bytes at `disk` unpack to, which are `unpacked`.
    Packed {
        compression: u8,
        disk: u64,
        packed: u64,
        unpacked: u64,
        offset: u64,
    },
}

impl Piece {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

struct File {
    trees: Arc<Trees>,
    place: Place,
    size: u64,
    /// True if the data has checksums.
    summed: bool,
    pieces: Vec<Piece>,
    /// The last unpacked extent, by its logical address.
    last: Mutex<Option<(u64, Arc<[u8]>)>>,
}

/// Opens the regular file at `place`.
///
/// # Errors
/// [`Error::Corrupt`] if it is none or is damaged.
pub(super) fn open(trees: &Arc<Trees>, place: Place) -> Result<Arc<dyn ReadAt>> {
    let entry = trees
        .subvolumes
        .get(place.subvolume)
        .ok_or_else(|| Error::corrupt(format!("there is no subvolume {}", place.subvolume), 0))?;
    let corrupt = |what: &str| Error::corrupt(format!("inode {}: {what}", place.ino), 0);
    let mut inode = None;
    let mut items = Vec::new();
    // Inode and extents mostly stand in one leaf.
    let (from, to) = (
        Key::new(place.ino, types::INODE_ITEM, 0),
        Key::new(place.ino, types::EXTENT_DATA, u64::MAX),
    );
    trees.volume.scan(&entry.root, from, to, &mut |key, item| {
        match key.kind {
            types::INODE_ITEM => inode = Inode::read(item),
            types::EXTENT_DATA => items.push((key.offset, item.to_vec())),
            _ => {}
        }
        Ok(())
    })?;
    let inode = inode.ok_or_else(|| corrupt("it does not exist"))?;
    if !inode.is_file() {
        return Err(corrupt("is not a regular file"));
    }
    let sector = u64::from(trees.volume.sb.sector_size);
    let mut pieces: Vec<Piece> = Vec::with_capacity(items.len());
    for (start, item) in items {
        if start >= inode.size {
            break;
        }
        let piece = piece(trees, start, &item).map_err(|e| e.within(&format!("inode {}", place.ino)))?;
        let Some(piece) = piece else { continue };
        if pieces.last().is_some_and(|last| last.end() > start) {
            return Err(corrupt("its extents overlap"));
        }
        if start % sector != 0 {
            return Err(corrupt("an extent begins inside a sector"));
        }
        pieces.push(piece);
    }
    Ok(Arc::new(File {
        trees: Arc::clone(trees),
        place,
        size: inode.size,
        // A dump holds no data: without a checksum this would not be seen.
        summed: inode.flags & NODATASUM == 0 || trees.volume.sb.is_dump(),
        pieces,
        last: Mutex::new(None),
    }))
}

/// The piece that the extent item at `start` describes; `None` for a hole.
fn piece(trees: &Trees, start: u64, item: &[u8]) -> Result<Option<Piece>> {
    let corrupt = |what: &str| Error::corrupt(format!("extent at byte {start}: {what}"), 0);
    let sector = u64::from(trees.volume.sb.sector_size);
    let extent = FileExtent::read(item)?;
    match extent.extent {
        Item::Inline { .. } => {
            let bytes = inline(trees, item)?;
            if start != 0 {
                return Err(corrupt("an inline extent that is not the first"));
            }
            Ok(Some(Piece {
                start,
                len: bytes.len() as u64,
                data: Data::Inline(bytes),
            }))
        }
        Item::Regular { len, .. } if len == 0 || start.checked_add(len).is_none() => {
            Err(corrupt("impossible length"))
        }
        Item::Regular { disk: 0, .. } | Item::Regular { prealloc: true, .. } => Ok(None),
        Item::Regular {
            disk,
            disk_len,
            offset,
            len,
            ram_bytes,
            ..
        } => {
            let inside = |total: u64| offset.checked_add(len).is_some_and(|end| end <= total);
            if disk % sector != 0 || disk_len % sector != 0 || disk.checked_add(disk_len).is_none() {
                return Err(corrupt("not on whole sectors"));
            }
            if extent.compression == 0 {
                if !inside(disk_len) || offset % sector != 0 || len % sector != 0 {
                    return Err(corrupt("it ends outside of its data"));
                }
                return Ok(Some(Piece {
                    start,
                    len,
                    data: Data::Plain {
                        disk: disk.saturating_add(offset),
                    },
                }));
            }
            if !inside(ram_bytes) || ram_bytes > compress::MAX || disk_len > compress::MAX {
                return Err(corrupt("impossible lengths of a compressed extent"));
            }
            Ok(Some(Piece {
                start,
                len,
                data: Data::Packed {
                    compression: extent.compression,
                    disk,
                    packed: disk_len,
                    unpacked: ram_bytes,
                    offset,
                },
            }))
        }
    }
}

/// The unpacked bytes of an inline extent.
///
/// # Errors
/// [`Error::Corrupt`] if it is damaged.
pub(super) fn inline(trees: &Trees, item: &[u8]) -> Result<Vec<u8>> {
    let extent = FileExtent::read(item)?;
    let Item::Inline { ram_bytes } = extent.extent else {
        return Err(Error::corrupt("an extent that should be inline", 0));
    };
    let bytes = item.get(INLINE_AT..).unwrap_or_default();
    let sector = usize::try_from(trees.volume.sb.sector_size).unwrap_or(4096);
    match extent.compression {
        0 => Some(bytes.to_vec())
            .filter(|b| b.len() as u64 == ram_bytes)
            .ok_or_else(|| Error::corrupt("an inline extent of another length than it says", 0)),
        n => compress::unpack(n, bytes, ram_bytes, sector),
    }
}

impl File {
    fn fail(&self, at: u64, e: Error) -> Error {
        e.within(&format!("inode {}, byte {at}", self.place.ino))
    }

    /// Fills `buf` from byte `at` of `piece`.
    fn read_piece(&self, piece: &Piece, at: u64, buf: &mut [u8]) -> Result<()> {
        let from = |bytes: &[u8], at: u64, buf: &mut [u8]| {
            let bytes = usize::try_from(at)
                .ok()
                .and_then(|at| crate::bytes::slice(bytes, at, buf.len()))
                .ok_or_else(|| Error::corrupt("an extent that is too short", at))?;
            buf.copy_from_slice(bytes);
            Ok(())
        };
        match &piece.data {
            Data::Inline(bytes) => from(bytes, at, buf),
            Data::Plain { disk } => self.trees.read_data(disk.saturating_add(at), buf, self.summed),
            Data::Packed {
                compression,
                disk,
                packed,
                unpacked,
                offset,
            } => {
                let known = {
                    let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                    last.as_ref()
                        .filter(|(d, b)| d == disk && b.len() as u64 == *unpacked)
                        .map(|(_, bytes)| Arc::clone(bytes))
                };
                let bytes = match known {
                    Some(bytes) => bytes,
                    None => {
                        let mut raw = vec![0; usize::try_from(*packed).unwrap_or(0)];
                        self.trees.read_data(*disk, &mut raw, self.summed)?;
                        let sector = usize::try_from(self.trees.volume.sb.sector_size).unwrap_or(4096);
                        let bytes: Arc<[u8]> =
                            compress::unpack(*compression, &raw, *unpacked, sector)?.into();
                        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                        *last = Some((*disk, Arc::clone(&bytes)));
                        bytes
                    }
                };
                from(&bytes, offset.saturating_add(at), buf)
            }
        }
    }
}

impl ReadAt for File {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(&format!("inode {}", self.place.ino), self.size, offset, buf.len())?;
        let mut index = self.pieces.partition_point(|p| p.end() <= offset);
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = self.pieces.get(index);
            let limit = match piece {
                Some(p) if p.start <= at => p.end(),
                Some(p) => p.start,
                None => u64::MAX,
            };
            let n = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
            let n = n.min(rest.len());
            let Some((part, after)) = rest.split_at_mut_checked(n) else {
                break;
            };
            match piece {
                Some(piece) if piece.start <= at => {
                    self.read_piece(piece, at - piece.start, part)
                        .map_err(|e| self.fail(at, e))?;
                    index += 1;
                }
                _ => part.fill(0),
            }
            at = at.saturating_add(n as u64);
            rest = after;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.size.saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { hole: true, len: 0 });
        }
        let mut index = self.pieces.partition_point(|p| p.end() <= offset);
        let Some(piece) = self.pieces.get(index) else {
            return Ok(Extent {
                hole: true,
                len: rest,
            });
        };
        if offset < piece.start {
            return Ok(Extent {
                hole: true,
                len: rest.min(piece.start - offset),
            });
        }
        let mut end = piece.end();
        while let Some(next) = self.pieces.get(index + 1)
            && next.start == end
        {
            end = next.end();
            index += 1;
        }
        Ok(Extent {
            hole: false,
            len: rest.min(end.saturating_sub(offset)),
        })
    }
}

impl Trees {
    /// Fills `buf` with data from logical address `logical` on, which need not be the beginning of a sector. Where
    /// `summed` every sector is checked, and read from another copy if it is wrong.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if no copy of a sector has its checksum.
    fn read_data(&self, logical: u64, buf: &mut [u8], summed: bool) -> Result<()> {
        if !summed {
            return self.any_copy(logical, buf);
        }
        let sector = u64::from(self.volume.sb.sector_size);
        let mut at = logical;
        let mut rest = buf;
        while !rest.is_empty() {
            let into = at % sector;
            let n = usize::try_from(PIECE - into)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let Some((part, after)) = rest.split_at_mut_checked(n) else {
                break;
            };
            let len = part.len() as u64;
            if into == 0 && len.is_multiple_of(sector) {
                self.read_summed(at, part)?;
            } else {
                let whole = into.saturating_add(len).next_multiple_of(sector);
                let mut bytes = vec![0; usize::try_from(whole).unwrap_or(0)];
                self.read_summed(at - into, &mut bytes)?;
                let skip = usize::try_from(into).unwrap_or(0);
                if let Some(bytes) = crate::bytes::slice(&bytes, skip, part.len()) {
                    part.copy_from_slice(bytes);
                }
            }
            at = at.saturating_add(len);
            rest = after;
        }
        Ok(())
    }

    /// Fills `buf` from the first copy that can be read.
    fn any_copy(&self, logical: u64, buf: &mut [u8]) -> Result<()> {
        let ways = self.volume.chunks.ways(logical)?;
        let mut first = None;
        for way in 0..ways {
            match self.volume.chunks.read(logical, buf, way) {
                Ok(()) => return Ok(()),
                Err(e) => first.get_or_insert(e),
            };
        }
        Err(first.unwrap_or_else(|| Error::corrupt("data that cannot be read", logical)))
    }

    /// Fills `buf`, which is whole sectors, and checks each.
    fn read_summed(&self, logical: u64, buf: &mut [u8]) -> Result<()> {
        let checksum = self.volume.sb.checksum;
        let sector = usize::try_from(self.volume.sb.sector_size).unwrap_or(4096);
        let sums = self.sums(logical, buf.len() / sector)?;
        let whole = self.volume.chunks.read(logical, buf, 0).is_ok();
        for (n, (bytes, sum)) in buf
            .chunks_mut(sector)
            .zip(sums.chunks(checksum.len()))
            .enumerate()
        {
            if whole && checksum.matches(sum, bytes) {
                continue;
            }
            let at = logical.saturating_add((n * sector) as u64);
            let ways = self.volume.chunks.ways(at)?;
            let mut error = None;
            let mut found = false;
            for way in 0..ways {
                match self.volume.chunks.read(at, bytes, way) {
                    Ok(()) if checksum.matches(sum, bytes) => {
                        found = true;
                        break;
                    }
                    Ok(()) => {}
                    Err(e) => error = Some(e),
                }
            }
            if !found {
                return Err(error.unwrap_or_else(|| {
                    Error::corrupt(
                        format!("the {} checksum of the data is wrong", checksum.name()),
                        at,
                    )
                }));
            }
        }
        Ok(())
    }

    /// The checksums of `count` sectors from `logical` on, one behind the other.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if one is missing.
    fn sums(&self, logical: u64, count: usize) -> Result<Vec<u8>> {
        let len = self.volume.sb.checksum.len();
        let sector = u64::from(self.volume.sb.sector_size);
        let end = logical.saturating_add(sector.saturating_mul(count as u64));
        let mut sums = vec![0; count * len];
        let mut have = vec![false; count];
        let mut put = |start: u64, item: &[u8]| {
            // An item may begin before the first sector that is wanted.
            let skip = logical.saturating_sub(start) / sector;
            let place = start.saturating_sub(logical) / sector;
            let (Ok(skip), Ok(place)) = (usize::try_from(skip), usize::try_from(place)) else {
                return;
            };
            let items = item.chunks_exact(len).skip(skip);
            let wanted = sums.chunks_exact_mut(len).zip(have.iter_mut()).skip(place);
            for (from, (to, have)) in items.zip(wanted) {
                to.copy_from_slice(from);
                *have = true;
            }
        };
        let (from, to) = (
            Key::new(ids::EXTENT_CSUM, types::EXTENT_CSUM, logical),
            Key::new(ids::EXTENT_CSUM, types::EXTENT_CSUM, end.saturating_sub(1)),
        );
        let mut damage = None;
        if let Some(root) = &self.csums.root {
            damage = self.sums_of(root, from, to, &mut put).err();
        }
        let before = self.csums.log.range(..logical).next_back();
        for (start, item) in before.into_iter().chain(self.csums.log.range(logical..end)) {
            put(*start, item);
        }
        match have.iter().position(|have| !have) {
            None => Ok(sums),
            Some(n) => Err(damage.unwrap_or_else(|| {
                let at = logical.saturating_add(sector.saturating_mul(n as u64));
                Error::corrupt("there is no checksum of the data", at)
            })),
        }
    }

    fn sums_of(&self, root: &Root, from: Key, to: Key, put: &mut dyn FnMut(u64, &[u8])) -> Result<()> {
        self.volume.scan_from_before(root, from, to, &mut |key, item| {
            if key.object == ids::EXTENT_CSUM && key.kind == types::EXTENT_CSUM {
                put(key.offset, item);
            }
            Ok(())
        })
    }
}
