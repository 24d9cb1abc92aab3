//! A volume with what the log holds in its places. Only the logged pieces are kept, so that the memory is bounded by the
//! length of the log.

use crate::error::{Error, Result};
use crate::read_at::{ReadAt, check_range};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `XFS_BLF_CHUNK`: the log names changes of buffers in pieces of this length.
pub(super) const CHUNK: u64 = 128;
/// The same as a length in memory.
const CHUNK_LEN: usize = 128;

/// A volume and the changes over it.
pub(super) struct Overlay {
    disk: Arc<dyn ReadAt>,
    /// Changed pieces by their number.
    chunks: BTreeMap<u64, [u8; CHUNK_LEN]>,
    /// Ranges whose bytes on the volume are not valid and count as zeros: first byte and the byte behind.
    zeroed: BTreeMap<u64, u64>,
}

impl Overlay {
    pub(super) fn new(disk: Arc<dyn ReadAt>) -> Self {
        Self {
            disk,
            chunks: BTreeMap::new(),
            zeroed: BTreeMap::new(),
        }
    }

    /// The `len` bytes at `offset`.
    pub(super) fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        crate::read_at::read_vec(self, offset, len)
    }

    /// Puts `bytes` at `offset`; pieces that stay as they are cost nothing.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        check_range("the volume", self.disk.len(), offset, bytes.len())?;
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let number = at / CHUNK;
            let within = usize::try_from(at % CHUNK).unwrap_or(0);
            let (part, after) = rest.split_at(rest.len().min(CHUNK_LEN - within));
            let mut chunk = [0; CHUNK_LEN];
            // A volume that is cut short ends within a piece.
            let start = number.saturating_mul(CHUNK);
            let room = self.disk.len().saturating_sub(start).min(CHUNK);
            let Some(present) = usize::try_from(room).ok().and_then(|n| chunk.get_mut(..n)) else {
                return Err(Error::corrupt("a piece outside the volume", at));
            };
            self.read_at(start, present)?;
            let Some(target) = chunk.get_mut(within..within + part.len()) else {
                return Err(Error::corrupt("a piece outside the volume", at));
            };
            if target != part {
                target.copy_from_slice(part);
                self.chunks.insert(number, chunk);
            }
            at = at.saturating_add(part.len() as u64);
            rest = after;
        }
        Ok(())
    }

    /// Makes everything from `start` up to `end` zeros; both are multiples of a piece.
    pub(super) fn zero(&mut self, start: u64, end: u64) {
        let gone: Vec<u64> = self
            .chunks
            .range(start / CHUNK..end / CHUNK)
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.chunks.remove(&number);
        }
        let known = self.zeroed.entry(start).or_insert(end);
        *known = end.max(*known);
    }
}

impl ReadAt for Overlay {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.read_at(offset, buf)?;
        let end = offset.saturating_add(buf.len() as u64);
        // The part of `buf` that lies in a range of bytes.
        let window = |from: u64, to: u64| {
            let first = usize::try_from(from.max(offset).saturating_sub(offset)).ok()?;
            let last = usize::try_from(to.min(end).checked_sub(offset)?).ok()?;
            (first < last).then_some(first..last)
        };
        // Ranges are chunks of inodes: none is longer than this.
        for (start, stop) in self.zeroed.range(offset.saturating_sub(super::MAX_ICREATE)..end) {
            if let Some(part) = window(*start, *stop).and_then(|range| buf.get_mut(range)) {
                part.fill(0);
            }
        }
        for (number, chunk) in self.chunks.range(offset / CHUNK..end.div_ceil(CHUNK)) {
            let start = number.saturating_mul(CHUNK);
            let Some(range) = window(start, start.saturating_add(CHUNK)) else {
                continue;
            };
            let skip = usize::try_from(offset.saturating_sub(start)).unwrap_or(CHUNK_LEN);
            if let (Some(part), Some(from)) = (buf.get_mut(range), chunk.get(skip..)) {
                for (to, from) in part.iter_mut().zip(from) {
                    *to = *from;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_zeros_lie_over_the_volume() {
        let disk: Arc<dyn ReadAt> = Arc::new(vec![1u8; 1000]);
        let mut overlay = Overlay::new(disk);
        overlay.write(100, &[2; 100]).unwrap();
        overlay.write(300, &[1; 50]).unwrap();
        assert_eq!(overlay.chunks.len(), 2, "what stays the same is not kept");
        overlay.zero(512, 768);
        overlay.write(600, &[3; 4]).unwrap();
        let all = overlay.bytes(0, 1000).unwrap();
        let expected = |i: usize| match i {
            100..200 => 2,
            600..604 => 3,
            512..768 => 0,
            _ => 1,
        };
        for (i, byte) in all.iter().enumerate() {
            assert_eq!(*byte, expected(i), "{i}");
        }
        for from in [0usize, 99, 127, 128, 190, 511, 601, 767] {
            for len in [0, 1, 2, 130, 200] {
                let part = overlay.bytes(from as u64, len).unwrap();
                assert_eq!(part, all[from..from + len], "{from} {len}");
            }
        }
        overlay.zero(0, 256);
        assert_eq!(overlay.bytes(0, 256).unwrap(), vec![0; 256]);
        overlay.write(990, &[5; 10]).unwrap();
        assert_eq!(overlay.bytes(985, 15).unwrap()[4..6], [1, 5]);
        assert!(overlay.write(995, &[5; 10]).is_err());
    }
}
