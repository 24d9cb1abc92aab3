//! What the formats share: a disk is cut into blocks, and a table says of each where its bytes are. A format is a
//! [`Map`] from offsets of the disk to [`Place`]s; [`Blocks`] makes a [`ReadAt`] of it.

use crate::bytes::{be32, le32, le64, slice};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::read_at::{Extent, ReadAt, check_range, read_vec};
use std::sync::Arc;

/// What a copy that broke off looks like.
pub(super) const CUT: &str = "the copy of the image is incomplete: copy it again";

/// How many units of data a run may have, so that looking ahead costs little.
const DATA_AHEAD: u64 = 1024;
/// How many units of zeros a run may have.
const ZEROS_AHEAD: u64 = 1 << 16;
/// Bytes of decompressed units that are kept.
const UNITS_KEPT: usize = 32 << 20;

/// Where a run of the disk's bytes lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Zeros.
    Zero,
    /// In the parent, at the same offset; zeros if there is none, or behind its end.
    Parent,
    /// In the data file, at this offset.
    Host(u64),
    /// In the compressed unit that [`Map::unpack`] knows by this number. Units begin at multiples of [`Map::unit`].
    Packed(u64),
}

/// A run of the disk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) place: Place,
    /// Length in bytes, not 0.
    pub(super) len: u64,
}

/// The tables of an image.
pub(super) trait Map: Send + Sync {
    /// Length of the disk in bytes.
    fn len(&self) -> u64;

    /// The place of the bytes from `offset`, which is inside the disk, and how many of at most `max` bytes are one run.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the table says what cannot be, and whatever reading it runs into.
    fn run_at(&self, offset: u64, max: u64) -> Result<Run>;

    /// Length in bytes of a decompressed unit.
    fn unit(&self) -> u64 {
        1
    }

    /// The bytes of a compressed unit, [`Map::unit`] of them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it cannot be decompressed.
    fn unpack(&self, number: u64) -> Result<Vec<u8>> {
        Err(Error::corrupt("a compressed unit", number))
    }

    /// The size of the units that a writer need not write to their end when they are the last of the file: what is missing
    /// of such a one is zeros. 1 where units are written whole.
    fn cut_unit(&self) -> u64 {
        1
    }
}

/// A disk that is a table of blocks.
pub(super) struct Blocks<M> {
    name: String,
    map: M,
    data: Arc<dyn ReadAt>,
    parent: Option<Arc<dyn ReadAt>>,
    units: Cache,
}

impl<M: Map> Blocks<M> {
    /// A disk called `name` in messages, whose blocks lie in `data` and `parent`.
    pub(super) fn new(
        name: impl Into<String>,
        map: M,
        data: Arc<dyn ReadAt>,
        parent: Option<Arc<dyn ReadAt>>,
    ) -> Self {
        Self {
            name: name.into(),
            map,
            data,
            parent,
            units: Cache::new(UNITS_KEPT),
        }
    }

    /// Leaves memory for `others` disks of the same kind, which are parts of one.
    pub(super) fn sharing(mut self, others: usize) -> Self {
        self.units = Cache::new(UNITS_KEPT / others.max(1));
        self
    }

    fn read_host(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let total = self.data.len();
        let end = at.saturating_add(buf.len() as u64);
        if end <= total {
            return self.data.read_at(at, buf);
        }
        let unit = self.map.cut_unit().max(1);
        let last = end.saturating_sub(1);
        let last_unit = last.saturating_sub(last % unit);
        if last_unit >= total {
            return Err(Error::corrupt(
                format!("{}: a block lies behind the end of the file", self.name),
                last_unit,
            )
            .hint(CUT));
        }
        let there = usize::try_from(total.saturating_sub(at)).unwrap_or(usize::MAX);
        let (head, tail) = buf.split_at_mut_checked(there).unwrap_or_default();
        tail.fill(0);
        if head.is_empty() {
            return Ok(());
        }
        self.data.read_at(at, head)
    }

    fn read_parent(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = self.parent.as_ref().map_or(0, |p| p.len());
        let there = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (head, tail) = buf.split_at_mut(there.min(buf.len()));
        tail.fill(0);
        match &self.parent {
            Some(parent) if !head.is_empty() => parent.read_at(offset, head),
            _ => Ok(()),
        }
    }
}

impl<M: Map> ReadAt for Blocks<M> {
    fn len(&self) -> u64 {
        self.map.len()
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(&self.name, self.map.len(), offset, buf.len())?;
        while !buf.is_empty() {
            let run = self.map.run_at(offset, buf.len() as u64)?;
            let len = usize::try_from(run.len).unwrap_or(usize::MAX).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            match run.place {
                Place::Zero => head.fill(0),
                Place::Parent => self.read_parent(offset, head)?,
                Place::Host(at) => self.read_host(at, head)?,
                Place::Packed(number) => {
                    let unit = self.units.get(number, || self.map.unpack(number))?;
                    let from = usize::try_from(offset % self.map.unit().max(1))
                        .ok()
                        .and_then(|at| slice(&unit, at, len))
                        .ok_or_else(|| Error::corrupt("a range outside its compressed unit", offset))?;
                    head.copy_from_slice(from);
                }
            }
            buf = rest;
            offset += len as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.map.len().saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { hole: true, len: 0 });
        }
        let run = self.map.run_at(offset, rest)?;
        let all = |hole| Extent { hole, len: run.len };
        // What lies below may be a hole too; it is asked as far as it goes.
        let below = match (run.place, &self.parent) {
            (Place::Zero, _) | (Place::Parent, None) => all(true),
            (Place::Parent, Some(parent)) if offset >= parent.len() => all(true),
            (Place::Parent, Some(parent)) => parent.extent_at(offset)?,
            (Place::Host(at), _) if at < self.data.len() => self.data.extent_at(at)?,
            // Behind the end: reading decides what that is.
            (Place::Host(_) | Place::Packed(_), _) => all(false),
        };
        Ok(Extent {
            hole: below.hole,
            len: below.len.clamp(1, run.len),
        })
    }
}

/// The run that begins at `offset` and ends before `end` at the latest: the unit there and those that follow it in the same
/// place. `unit_at` gives the place of a byte and how much is left of its unit.
pub(super) fn joined(offset: u64, end: u64, mut unit_at: impl FnMut(u64) -> Result<Run>) -> Result<Run> {
    let start = unit_at(offset)?;
    let mut at = offset.saturating_add(start.len);
    let mut units = 0;
    while at < end {
        // What is wrong with a later unit is said when that is read.
        let Ok(next) = unit_at(at) else { break };
        units += 1;
        let joins = match (start.place, next.place) {
            (Place::Zero, Place::Zero) | (Place::Parent, Place::Parent) => units < ZEROS_AHEAD,
            (Place::Host(a), Place::Host(b)) => {
                b.checked_sub(a) == Some(at.saturating_sub(offset)) && units < DATA_AHEAD
            }
            _ => false,
        };
        if !joins || next.len == 0 {
            break;
        }
        at = at.saturating_add(next.len);
    }
    Ok(Run {
        place: start.place,
        len: at.min(end).saturating_sub(offset),
    })
}

/// How an entry of a table is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Be32,
    Le32,
    Le64,
}

impl Entry {
    fn width(self) -> usize {
        match self {
            Self::Be32 | Self::Le32 => 4,
            Self::Le64 => 8,
        }
    }

    /// Entry number `index` of `table`.
    pub(super) fn get(self, table: &[u8], index: usize) -> Option<u64> {
        let at = index.checked_mul(self.width())?;
        match self {
            Self::Be32 => be32(table, at).map(u64::from),
            Self::Le32 => le32(table, at).map(u64::from),
            Self::Le64 => le64(table, at),
        }
    }
}

/// Bytes of a table that are read at once.
const PAGE: u64 = 64 << 10;
/// Bytes of a table that are kept.
const PAGES_KEPT: usize = 32 << 20;

/// A table of entries in a file, read by the page.
pub(super) struct Table {
    file: Arc<dyn ReadAt>,
    at: u64,
    entries: u64,
    kind: Entry,
    pages: Cache,
}

impl Table {
    /// The table of `entries` at byte `at` of `file`, which `what` names.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not wholly inside the file.
    pub(super) fn new(what: &str, file: Arc<dyn ReadAt>, at: u64, entries: u64, kind: Entry) -> Result<Self> {
        let end = entries
            .checked_mul(kind.width() as u64)
            .and_then(|len| at.checked_add(len));
        if end.is_none_or(|end| end > file.len()) {
            return Err(Error::corrupt(format!("the {what} ends behind the end of the file"), at).hint(CUT));
        }
        Ok(Self {
            file,
            at,
            entries,
            kind,
            pages: Cache::new(PAGES_KEPT),
        })
    }

    /// As [`Blocks::sharing`].
    pub(super) fn share(&mut self, others: usize) {
        self.pages = Cache::new(PAGES_KEPT / others.max(1));
    }

    /// Reads entries one after another without looking up the page each time.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            table: self,
            page: None,
        }
    }
}

/// A place in a [`Table`].
pub(super) struct Cursor<'a> {
    table: &'a Table,
    page: Option<(u64, Arc<[u8]>)>,
}

impl Cursor<'_> {
    /// Entry number `index`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such entry, and whatever reading runs into.
    pub(super) fn get(&mut self, index: u64) -> Result<u64> {
        let table = self.table;
        let missing = || Error::corrupt(format!("entry {index} of a table of {}", table.entries), table.at);
        if index >= table.entries {
            return Err(missing());
        }
        let width = table.kind.width() as u64;
        let per_page = PAGE / width;
        let number = index / per_page;
        let page = match &self.page {
            Some((n, page)) if *n == number => page,
            _ => {
                let page = table.pages.get(number, || {
                    let first = number * PAGE;
                    let len = (table.entries * width).saturating_sub(first).min(PAGE);
                    read_vec(
                        &*table.file,
                        table.at.saturating_add(first),
                        usize::try_from(len).unwrap_or(0),
                    )
                })?;
                &self.page.insert((number, page)).1
            }
        };
        usize::try_from(index % per_page)
            .ok()
            .and_then(|index| table.kind.get(page, index))
            .ok_or_else(missing)
    }
}

/// The bit number `first` of `bitmap`, and how many bits from there to `end` are equal to it. `msb` is true if the first bit of a
/// byte is its highest. `None` if the bitmap is too short.
pub(super) fn equal_bits(bitmap: &[u8], first: u64, end: u64, msb: bool) -> Option<(bool, u64)> {
    let bit = |n: u64| {
        let byte = *bitmap.get(usize::try_from(n / 8).ok()?)?;
        let shift = if msb { 7 - n % 8 } else { n % 8 };
        Some(byte >> shift & 1 == 1)
    };
    let value = bit(first)?;
    let whole = if value { 0xff } else { 0 };
    let mut n = first + 1;
    while n < end {
        let byte = usize::try_from(n / 8).ok().and_then(|at| bitmap.get(at));
        if n.is_multiple_of(8) && byte == Some(&whole) {
            n += 8;
        } else if bit(n)? == value {
            n += 1;
        } else {
            break;
        }
    }
    Some((value, n.min(end) - first))
}

/// Parts one behind the other.
pub(super) struct Joined {
    /// Where each part begins, and the part, in order.
    parts: Vec<(u64, Arc<dyn ReadAt>)>,
    len: u64,
}

impl Joined {
    /// # Errors
    /// [`Error::Unsupported`] if there are more bytes than a disk can have.
    pub(super) fn new(parts: impl IntoIterator<Item = Arc<dyn ReadAt>>) -> Result<Self> {
        let mut all = Self {
            parts: Vec::new(),
            len: 0,
        };
        for part in parts {
            let len = part.len();
            if len == 0 {
                continue;
            }
            all.parts.push((all.len, part));
            all.len = all
                .len
                .checked_add(len)
                .filter(|len| *len <= MAX_DISK)
                .ok_or_else(too_large)?;
        }
        Ok(all)
    }

    /// The part that holds byte `offset`, the offset in it, and how many bytes are left of it.
    fn part(&self, offset: u64) -> Option<(&dyn ReadAt, u64, u64)> {
        let n = self.parts.partition_point(|(start, _)| *start <= offset);
        let (start, part) = self.parts.get(n.checked_sub(1)?)?;
        let within = offset.checked_sub(*start)?;
        let left = part.len().checked_sub(within).filter(|left| *left > 0)?;
        Some((&**part, within, left))
    }
}

/// The longest disk, in bytes: what off_t can say.
pub(super) const MAX_DISK: u64 = i64::MAX.cast_unsigned();

/// The error for a disk longer than [`MAX_DISK`].
pub(super) fn too_large() -> Error {
    Error::unsupported("a disk of more than 8 EiB")
}

impl ReadAt for Joined {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range("the disk", self.len, offset, buf.len())?;
        while !buf.is_empty() {
            let Some((part, within, left)) = self.part(offset) else {
                return Err(Error::corrupt("a byte that is in no extent", offset));
            };
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            part.read_at(within, head)?;
            buf = rest;
            offset += len as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        match self.part(offset) {
            None => Ok(Extent { hole: true, len: 0 }),
            Some((part, within, left)) => {
                let extent = part.extent_at(within)?;
                Ok(Extent {
                    hole: extent.hole,
                    len: extent.len.clamp(1, left),
                })
            }
        }
    }
}

/// Nothing but zeros.
pub(super) struct Zeros(pub(super) u64);

impl ReadAt for Zeros {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the disk", self.0, offset, buf.len())?;
        buf.fill(0);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent {
            hole: true,
            len: self.0.saturating_sub(offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_in_both_orders() {
        assert_eq!(equal_bits(&[0b0001_1111], 0, 8, false), Some((true, 5)));
        assert_eq!(equal_bits(&[0b0001_1111], 0, 8, true), Some((false, 3)));
        assert_eq!(equal_bits(&[0xff, 0xff, 0x01], 3, 24, false), Some((true, 14)));
        assert_eq!(equal_bits(&[0, 0, 0], 5, 20, true), Some((false, 15)));
        assert_eq!(equal_bits(&[0], 7, 8, true), Some((false, 1)));
        assert_eq!(equal_bits(&[0], 8, 9, true), None);
    }

    #[test]
    fn parts_follow_one_another() {
        let parts: [Arc<dyn ReadAt>; 4] = [
            Arc::new(vec![1u8; 5]),
            Arc::new(Zeros(0)),
            Arc::new(Zeros(3)),
            Arc::new(vec![2u8; 2]),
        ];
        let all = Joined::new(parts).unwrap();
        assert_eq!(read_vec(&all, 0, 10).unwrap(), [1, 1, 1, 1, 1, 0, 0, 0, 2, 2]);
        assert_eq!(all.extent_at(6).unwrap(), Extent { hole: true, len: 2 });
        assert_eq!(all.extent_at(10).unwrap().len, 0);
        assert!(all.read_at(9, &mut [0; 2]).is_err());
        let endless: [Arc<dyn ReadAt>; 2] = [Arc::new(Zeros(MAX_DISK)), Arc::new(Zeros(1))];
        assert!(Joined::new(endless).is_err());
    }

    #[test]
    fn runs_join_and_tables_are_paged() {
        let raw: Vec<u8> = (0..40_000u32).flat_map(u32::to_be_bytes).collect();
        let file: Arc<dyn ReadAt> = Arc::new(raw);
        assert!(Table::new("BAT", Arc::clone(&file), 4, 40_000, Entry::Be32).is_err());
        let table = Table::new("BAT", file, 0, 40_000, Entry::Be32).unwrap();
        let mut cursor = table.cursor();
        let unit = |at: u64| {
            Ok(Run {
                place: Place::Host(cursor.get(at / 512)? * 512 + at % 512),
                len: 512 - at % 512,
            })
        };
        let run = joined(16_380 * 512 + 5, u64::MAX, unit).unwrap();
        assert_eq!(run.place, Place::Host(16_380 * 512 + 5));
        assert_eq!(run.len, DATA_AHEAD * 512 - 5);
        assert!(table.cursor().get(40_000).is_err());
    }
}
