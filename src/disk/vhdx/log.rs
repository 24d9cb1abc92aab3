//! The log of a VHDX: what was written to it and not yet to its place is laid over the file (\[MS-VHDX\] 2.3).

use super::guid_at;
use crate::bytes::{le32, le64, slice};
use crate::error::{Error, Result};
use crate::read_at::{Extent, ReadAt, check_range, read_vec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Log sectors: entries begin at one, and data sectors are such.
const SECTOR: u64 = 4096;
/// The longest log.
const MAX_LOG: u64 = 64 << 20;
/// How often its bytes are read at most, on the search for the active sequence.
const MAX_PASSES: u64 = 8;

/// What the log has for a range of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patch {
    Zeros,
    /// A sector of data at this byte of the file, but for its first 8 and last 4 bytes.
    Data {
        at: u64,
        leading: [u8; 8],
        trailing: [u8; 4],
    },
}

/// A file with its log replayed.
pub(super) struct Replayed {
    file: Arc<dyn ReadAt>,
    len: u64,
    /// Start and end of each range, which overlap nowhere.
    patches: BTreeMap<u64, (u64, Patch)>,
}

/// An entry of the log that is whole.
struct Entry {
    /// Length in the log, in bytes.
    len: u64,
    /// Where the sequence that ends with this entry begins.
    tail: u64,
    sequence: u64,
    flushed: u64,
    last: u64,
    /// The sectors with its header and descriptors.
    bytes: Vec<u8>,
}

/// The log as a ring of bytes.
struct Log<'a> {
    file: &'a dyn ReadAt,
    at: u64,
    len: u64,
    id: [u8; 16],
    /// Bytes that may be read yet.
    budget: std::cell::Cell<u64>,
}

impl Log<'_> {
    /// `len` bytes from `offset`, around the end if need be.
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let first = len.min(self.len.saturating_sub(offset));
        let mut all = read_vec(self.file, self.at.saturating_add(offset), bytes(first))?;
        if first < len {
            all.extend(read_vec(self.file, self.at, bytes((len - first).min(self.len)))?);
        }
        Ok(all)
    }

    /// The entry at `offset`, `None` if there is none that is whole.
    fn entry(&self, offset: u64) -> Result<Option<Entry>> {
        let head = self.read(offset, 64)?;
        let parts = || {
            let len = u64::from(le32(&head, 8)?);
            let tail = u64::from(le32(&head, 12)?);
            let whole = head.starts_with(b"loge")
                && len >= SECTOR
                && len.is_multiple_of(SECTOR)
                && len <= self.len
                && tail.is_multiple_of(SECTOR)
                && tail < self.len
                && guid_at(&head, 32) == Some(self.id);
            whole.then_some(Entry {
                len,
                tail,
                sequence: le64(&head, 16).filter(|s| *s > 0)?,
                flushed: le64(&head, 48)?,
                last: le64(&head, 56)?,
                bytes: Vec::new(),
            })
        };
        let Some(mut entry) = parts() else { return Ok(None) };
        let left = self.budget.get().checked_sub(entry.len);
        let left = left.ok_or_else(|| Error::corrupt("a log whose entries lie over one another", self.at))?;
        self.budget.set(left);
        entry.bytes = self.read(offset, entry.len)?;
        if !entry.is_whole() {
            return Ok(None);
        }
        let head = 64 + entry.descriptors().unwrap_or(0) * 32;
        entry.bytes.truncate(head);
        entry.bytes.shrink_to_fit();
        Ok(Some(entry))
    }

    /// True if no entry was ever written under this id.
    fn is_empty(&self) -> Result<bool> {
        let all = read_vec(
            self.file,
            self.at,
            usize::try_from(self.len).unwrap_or(usize::MAX),
        )?;
        let mut sectors = all.chunks(4096);
        Ok(!sectors.any(|s| s.starts_with(b"loge") && guid_at(s, 32) == Some(self.id)))
    }

    /// The entries of the active sequence: the one with the highest sequence number, from its tail to its head. Offsets
    /// and entries; `None` if there is no sequence that is whole.
    fn active(&self) -> Result<Option<Vec<(u64, Entry)>>> {
        // Every entry that is whole, without its bytes.
        let mut heads: Vec<(u64, u64, u64, u64)> = Vec::new();
        let mut at = 0;
        while at < self.len {
            // The sectors inside an entry are none that begins one.
            at += match self.entry(at)? {
                Some(entry) => {
                    heads.push((entry.sequence, at, entry.tail, entry.len));
                    entry.len
                }
                None => SECTOR,
            };
        }
        heads.sort_unstable_by_key(|h| std::cmp::Reverse(h.0));
        for (sequence, head, tail, _) in &heads {
            if let Some(entries) = self.sequence(*sequence, *head, *tail)? {
                return Ok(Some(entries));
            }
        }
        Ok(None)
    }

    /// The entries from `tail` to the one at `head`, which has the number `sequence`, if they are all whole and numbered in
    /// order.
    fn sequence(&self, sequence: u64, head: u64, tail: u64) -> Result<Option<Vec<(u64, Entry)>>> {
        let mut entries: Vec<(u64, Entry)> = Vec::new();
        let (mut at, mut total) = (tail, 0);
        loop {
            let Some(entry) = self.entry(at)? else {
                return Ok(None);
            };
            let follows = entries
                .last()
                .is_none_or(|(_, before)| before.sequence.checked_add(1) == Some(entry.sequence));
            total += entry.len;
            if !follows || entry.sequence > sequence || total > self.len {
                return Ok(None);
            }
            let next = (at + entry.len) % self.len;
            let done = at == head && entry.sequence == sequence;
            entries.push((at, entry));
            if done {
                return Ok(Some(entries));
            }
            at = next;
        }
    }
}

impl Entry {
    /// True if the checksum is right and every sector carries the sequence number.
    fn is_whole(&self) -> bool {
        let Some(count) = self.descriptors() else {
            return false;
        };
        let b = &self.bytes;
        let head = (64 + count * 32).next_multiple_of(4096);
        let low = (self.sequence & 0xffff_ffff) as u32;
        let high = (self.sequence >> 32) as u32;
        let checksum = super::checksum(b, 4);
        let mut data = 0;
        for n in 0..count {
            let at = 64 + n * 32;
            match b.get(at..at + 4) {
                Some(b"desc") => data += 1,
                Some(b"zero") => {}
                _ => return false,
            }
            if le64(b, at + 24) != Some(self.sequence) {
                return false;
            }
        }
        let sectors = (0..data).all(|n: usize| {
            let at = head + n * 4096;
            slice(b, at, 4) == Some(b"data")
                && le32(b, at + 4) == Some(high)
                && le32(b, at + 4092) == Some(low)
        });
        sectors && checksum.is_some() && checksum == le32(b, 4)
    }

    /// How many descriptors it has, if they fit into it.
    fn descriptors(&self) -> Option<usize> {
        let count = usize::try_from(le32(&self.bytes, 24)?).ok()?;
        let end = count.checked_mul(32)?.checked_add(64)?;
        (end <= self.bytes.len()).then_some(count)
    }
}

impl Replayed {
    /// `file` with the log `id` replayed, which is `len` bytes at `at`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the log has no sequence that is whole, or one that the file is too short for.
    pub(super) fn new(file: Arc<dyn ReadAt>, at: u64, len: u64, id: [u8; 16]) -> Result<Self> {
        if len > MAX_LOG {
            return Err(Error::unsupported(format!("a log of {len} bytes")));
        }
        if len == 0 || !len.is_multiple_of(SECTOR) || at.checked_add(len).is_none_or(|end| end > file.len()) {
            return Err(Error::corrupt("the log does not lie in the file", at));
        }
        let budget = std::cell::Cell::new(len * MAX_PASSES);
        let log = Log {
            file: &*file,
            at,
            len,
            id,
            budget,
        };
        let entries = if log.is_empty()? {
            Some(Vec::new())
        } else {
            log.active()?
        };
        let Some(entries) = entries else {
            return Err(Error::corrupt(
                "the image was not closed, and its log has no entries that are whole",
                at,
            ));
        };
        let mut all = Self {
            len: file.len(),
            file: Arc::clone(&file),
            patches: BTreeMap::new(),
        };
        if let Some((_, entry)) = entries.last() {
            if entry.flushed > file.len() {
                return Err(Error::corrupt(
                    format!("the log speaks of a file of {} bytes", entry.flushed),
                    file.len(),
                )
                .hint(crate::disk::blocks::CUT));
            }
            all.len = all.len.max(entry.last);
        }
        for (offset, entry) in &entries {
            all.lay(&log, *offset, entry)?;
        }
        Ok(all)
    }

    /// Lays the sectors of one entry over what is there.
    fn lay(&mut self, log: &Log<'_>, offset: u64, entry: &Entry) -> Result<()> {
        let b = &entry.bytes;
        let count = entry.descriptors().unwrap_or(0);
        let mut data = (64 + count * 32).next_multiple_of(4096) as u64;
        for n in 0..count {
            let at = 64 + n * 32;
            let bad = || Error::corrupt(format!("descriptor {n} of a log entry"), log.at + offset);
            let to = le64(b, at + 16)
                .filter(|to| to.is_multiple_of(SECTOR))
                .ok_or_else(bad)?;
            if slice(b, at, 4) == Some(b"zero") {
                let len = le64(b, at + 8).ok_or_else(bad)?;
                let end = to
                    .checked_add(len)
                    .filter(|_| len.is_multiple_of(SECTOR))
                    .ok_or_else(bad)?;
                self.put(to, end, Patch::Zeros);
                continue;
            }
            let patch = Patch::Data {
                at: log.at + (offset + data) % log.len,
                leading: crate::bytes::array(b, at + 8).ok_or_else(bad)?,
                trailing: crate::bytes::array(b, at + 4).ok_or_else(bad)?,
            };
            self.put(to, to.checked_add(SECTOR).ok_or_else(bad)?, patch);
            data += SECTOR;
        }
        Ok(())
    }

    /// Puts `patch` over `start..end`. What was there is cut; data sectors are never cut, because all begins at a sector.
    fn put(&mut self, start: u64, end: u64, patch: Patch) {
        if start >= end {
            return;
        }
        let mut keep = Vec::new();
        let mut gone = Vec::new();
        for (from, (to, old)) in self.patches.range(..end).rev() {
            // Ranges are in order, so all before this one end before it too.
            if *to <= start {
                break;
            }
            gone.push(*from);
            if *from < start {
                keep.push((*from, start, *old));
            }
            if *to > end {
                keep.push((end, *to, *old));
            }
        }
        for from in gone {
            self.patches.remove(&from);
        }
        for (from, to, old) in keep {
            self.patches.insert(from, (to, old));
        }
        self.patches.insert(start, (end, patch));
    }

    /// The patch at `offset`, or none, and the byte up to which that holds.
    fn patch(&self, offset: u64) -> (Option<(u64, Patch)>, u64) {
        if let Some((from, (to, patch))) = self.patches.range(..=offset).next_back()
            && *to > offset
        {
            return (Some((*from, *patch)), *to);
        }
        let next = self.patches.range(offset..).next();
        (None, next.map_or(u64::MAX, |(from, _)| *from))
    }
}

impl ReadAt for Replayed {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range("the image", self.len, offset, buf.len())?;
        while !buf.is_empty() {
            let (patch, mut end) = self.patch(offset);
            let total = self.file.len();
            if patch.is_none() && offset < total {
                end = end.min(total);
            }
            let len = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            match patch {
                None if offset < total => self.file.read_at(offset, head)?,
                // The log made the file longer.
                None | Some((_, Patch::Zeros)) => head.fill(0),
                Some((
                    from,
                    Patch::Data {
                        at,
                        leading,
                        trailing,
                    },
                )) => {
                    let mut sector = read_vec(&*self.file, at, 4096)?;
                    if let Some(b) = sector.get_mut(..8) {
                        b.copy_from_slice(&leading);
                    }
                    if let Some(b) = sector.get_mut(4092..) {
                        b.copy_from_slice(&trailing);
                    }
                    let within = usize::try_from(offset - from).unwrap_or(usize::MAX);
                    let part = slice(&sector, within, len)
                        .ok_or_else(|| Error::corrupt("a range outside a log sector", offset))?;
                    head.copy_from_slice(part);
                }
            }
            buf = rest;
            offset += len as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let left = self.len.saturating_sub(offset);
        if left == 0 {
            return Ok(Extent { hole: true, len: 0 });
        }
        let (patch, end) = self.patch(offset);
        let len = left.min(end - offset);
        match patch {
            Some((_, patch)) => Ok(Extent {
                hole: patch == Patch::Zeros,
                len,
            }),
            None if offset >= self.file.len() => Ok(Extent { hole: true, len }),
            None => {
                let extent = self.file.extent_at(offset)?;
                Ok(Extent {
                    hole: extent.hole,
                    len: extent.len.clamp(1, len),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_patches_cover_earlier_ones() {
        let mut all = Replayed {
            file: Arc::new(vec![7u8; 8 * 4096]),
            len: 10 * 4096,
            patches: BTreeMap::new(),
        };
        let data = |at: u64| Patch::Data {
            at,
            leading: [1; 8],
            trailing: [2; 4],
        };
        all.put(4096, 6 * 4096, Patch::Zeros);
        all.put(2 * 4096, 3 * 4096, data(0));
        all.put(5 * 4096, 7 * 4096, Patch::Zeros);
        let starts: Vec<_> = all
            .patches
            .iter()
            .map(|(s, (e, _))| (s / 4096, e / 4096))
            .collect();
        assert_eq!(starts, [(1, 2), (2, 3), (3, 5), (5, 7)]);
        let bytes = read_vec(&all, 0, 10 * 4096).unwrap();
        let sector = |n: usize| &bytes[n * 4096..(n + 1) * 4096];
        assert!(sector(0).iter().all(|b| *b == 7) && sector(7).iter().all(|b| *b == 7));
        assert!(
            sector(1)
                .iter()
                .chain(sector(4))
                .chain(sector(6))
                .all(|b| *b == 0)
        );
        assert_eq!(&sector(2)[..9], [1, 1, 1, 1, 1, 1, 1, 1, 7]);
        assert_eq!(&sector(2)[4091..], [7, 2, 2, 2, 2]);
        assert!(sector(8).iter().chain(sector(9)).all(|b| *b == 0));
        assert_eq!(
            all.extent_at(8 * 4096).unwrap(),
            Extent {
                hole: true,
                len: 8192
            }
        );
        all.put(0, 10 * 4096, Patch::Zeros);
        assert_eq!(all.patches.len(), 1);
    }
}
