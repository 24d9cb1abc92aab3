//! Content that lies in runs of blocks: what files of ext4 and XFS have in common.

use crate::error::Result;
use crate::read_at::{Extent, ReadAt};

/// Neighbouring blocks of a content that are neighbours on the volume, too.
pub(super) trait Run {
    /// First block within the content.
    fn first(&self) -> u64;
    /// The block of the content behind this run.
    fn end(&self) -> u64;
    /// Byte offset on the volume, with blocks of `block_size` bytes.
    fn at(&self, block_size: u64) -> u64;
}

/// Runs in the order of the content, no two of which overlap; zeros between and behind them.
#[derive(Clone, Copy)]
pub(super) struct Runs<'a, R> {
    pub(super) runs: &'a [R],
    /// Bytes in a block.
    pub(super) block_size: u64,
}

impl<R: Run> Runs<'_, R> {
    fn bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.block_size)
    }

    /// Number of the run that `offset` lies in or that comes next.
    fn from(&self, offset: u64) -> usize {
        self.runs.partition_point(|run| self.bytes(run.end()) <= offset)
    }

    /// Fills `buf` from byte `offset`: one read of `disk` for each run.
    ///
    /// # Errors
    /// As reading `disk`.
    pub(super) fn read(&self, disk: &dyn ReadAt, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut index = self.from(offset);
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let Some(run) = self.runs.get(index) else {
                rest.fill(0);
                break;
            };
            let start = self.bytes(run.first());
            let (hole, limit) = if at < start {
                (true, start)
            } else {
                (false, self.bytes(run.end()))
            };
            let n = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
            let n = n.min(rest.len());
            let Some((part, after)) = rest.split_at_mut_checked(n) else {
                break;
            };
            if hole {
                part.fill(0);
            } else {
                let from = run.at(self.block_size).saturating_add(at.saturating_sub(start));
                disk.read_at(from, part)?;
                index += 1;
            }
            at = at.saturating_add(n as u64);
            rest = after;
        }
        Ok(())
    }

    /// What begins at byte `offset` of a content of `size` bytes.
    pub(super) fn extent_at(&self, size: u64, offset: u64) -> Extent {
        let rest = size.saturating_sub(offset);
        if rest == 0 {
            return Extent { hole: true, len: 0 };
        }
        let mut index = self.from(offset);
        let Some(run) = self.runs.get(index) else {
            return Extent {
                hole: true,
                len: rest,
            };
        };
        let start = self.bytes(run.first());
        if offset < start {
            return Extent {
                hole: true,
                len: rest.min(start - offset),
            };
        }
        let mut end = run.end();
        while let Some(next) = self.runs.get(index + 1)
            && next.first() == end
        {
            end = next.end();
            index += 1;
        }
        Extent {
            hole: false,
            len: rest.min(self.bytes(end).saturating_sub(offset)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Run for (u64, u64, u64) {
        fn first(&self) -> u64 {
            self.0
        }
        fn end(&self) -> u64 {
            self.0 + self.1
        }
        fn at(&self, block_size: u64) -> u64 {
            self.2 * block_size
        }
    }

    #[test]
    fn runs_and_the_zeros_between_them() {
        let disk: Vec<u8> = (0..100).collect();
        let runs = [(1, 2, 3), (3, 1, 20), (6, 1, 0)];
        let runs = Runs {
            runs: &runs,
            block_size: 4,
        };
        let mut all = [9; 36];
        runs.read(&disk, 0, &mut all).unwrap();
        let mut expected = [0; 36];
        expected[4..12].copy_from_slice(&disk[12..20]);
        expected[12..16].copy_from_slice(&disk[80..84]);
        expected[24..28].copy_from_slice(&disk[..4]);
        assert_eq!(all, expected);
        for from in 0..36u64 {
            let mut part = [9; 3];
            let len = (36 - from).min(3) as usize;
            runs.read(&disk, from, &mut part[..len]).unwrap();
            assert_eq!(part[..len], expected[from as usize..from as usize + len]);
        }
        let extents = [
            (0, true, 4),
            (4, false, 12),
            (5, false, 11),
            (16, true, 8),
            (24, false, 4),
            (28, true, 7),
        ];
        for (at, hole, len) in extents {
            assert_eq!(runs.extent_at(35, at), Extent { hole, len }, "{at}");
        }
        assert_eq!(runs.extent_at(35, 35), Extent { hole: true, len: 0 });
        assert_eq!(runs.extent_at(26, 24), Extent { hole: false, len: 2 });
    }
}
