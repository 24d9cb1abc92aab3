//! Records of the log (`struct xlog_rec_header`): where the first and the last of them are, and their bytes.

use super::super::superblock::Superblock;
use super::{SECTOR, bad};
use crate::bytes::{array, be32, be64, le32, slice};
use crate::error::Result;
use crate::read_at::{ReadAt, read_vec};
use std::sync::Arc;

/// `XLOG_HEADER_MAGIC_NUM`.
const MAGIC: u32 = 0xfeed_babe;
/// `XLOG_FMT_LINUX_LE`.
const LITTLE_ENDIAN: u32 = 1;
/// `XLOG_MAX_ICLOGS`: records that may have been on their way at once.
const IN_FLIGHT: u64 = 8;
/// `XLOG_MAX_RECORD_BSIZE`, of version 2, and `XLOG_BIG_RECORD_BSIZE`, of version 1.
const MAX_RECORD: u32 = 256 << 10;
const MAX_RECORD_V1: u32 = 32 << 10;
/// `XLOG_HEADER_CYCLE_SIZE`: bytes of a record that one block of its header describes.
const PER_HEADER: u32 = 32 << 10;
/// `XLOG_REC_SIZE` and `XLOG_REC_SIZE_OTHER`: the bytes of a header that are summed, on most machines and on i386.
const SUMMED: [usize; 2] = [328, 324];
/// `XLOG_REC_EXT_SIZE`.
const SUMMED_EXT: usize = 260;
/// `h_crc`.
const CRC_AT: usize = 32;
/// `XLOG_UNMOUNT_TRANS`.
const UNMOUNT: u8 = 0x20;
/// Blocks that are read at once while the log is searched.
const WINDOW: u64 = 256;

/// Where the log's live part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// Nothing has to be replayed.
    Clean,
    /// From block `tail` up to block `head`, round the end of the log.
    Dirty { tail: u64, head: u64 },
}

/// A record's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// The block of the log where it begins.
    pub block: u64,
    /// Log sequence number: cycle and block.
    pub lsn: u64,
    /// Bytes of its operations.
    pub len: u32,
    /// Number of its operations.
    pub operations: u32,
    tail_lsn: u64,
    crc: u32,
    /// Blocks of headers: one for each 32 KiB of `h_size`, the length of the buffer it was written from.
    headers: u64,
}

impl Record {
    /// Blocks of headers and operations.
    pub(super) fn blocks(&self) -> u64 {
        self.headers + u64::from(self.len).div_ceil(SECTOR as u64)
    }
}

/// The blocks of the log.
pub(super) struct Log {
    disk: Arc<dyn ReadAt>,
    /// Byte offset on the volume.
    at: u64,
    /// Number of blocks of 512 bytes.
    pub blocks: u64,
    v2: bool,
    crc: bool,
    uuid: [u8; 16],
    /// The blocks that were read last, and the number of the first.
    window: (u64, Vec<u8>),
    /// A record near the head that is not whole, from which on the log does not count.
    pub torn: Option<Torn>,
}

/// A record that was being written when the machine stopped, or that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Torn {
    pub block: u64,
    /// True if something was written behind it.
    pub followed: bool,
}

impl Log {
    pub(super) fn new(disk: &Arc<dyn ReadAt>, sb: &Superblock) -> Result<Self> {
        let at = sb
            .byte_of(sb.log_start, u64::from(sb.log_blocks).max(1))
            .ok_or_else(|| bad("it does not lie inside the filesystem", 0))?;
        let blocks = u64::from(sb.log_blocks).saturating_mul(u64::from(sb.block_size)) / SECTOR as u64;
        if blocks < 64 || at.saturating_add(blocks * SECTOR as u64) > disk.len() {
            return Err(bad("it is too short or does not lie inside the volume", 0));
        }
        Ok(Self {
            disk: Arc::clone(disk),
            at,
            blocks,
            v2: sb.log_v2,
            crc: sb.has_crc(),
            uuid: sb.uuid(),
            window: (0, Vec::new()),
            torn: None,
        })
    }

    /// Block `number`.
    fn block(&mut self, number: u64) -> Result<&[u8]> {
        let first = number / WINDOW * WINDOW;
        if self.window.1.is_empty() || self.window.0 != first {
            let count = WINDOW.min(self.blocks.saturating_sub(first));
            self.window = (first, self.read(first, count)?);
        }
        let at = usize::try_from(number - first)
            .unwrap_or(usize::MAX)
            .saturating_mul(SECTOR);
        slice(&self.window.1, at, SECTOR).ok_or_else(|| bad("it does not exist", number))
    }

    /// `count` blocks from `number`, round the end of the log.
    fn read(&self, number: u64, count: u64) -> Result<Vec<u8>> {
        if number >= self.blocks || count > self.blocks {
            return Err(bad("it does not exist", number));
        }
        let sector = SECTOR as u64;
        let first = count.min(self.blocks - number);
        let bytes = |n: u64| usize::try_from(n * sector).unwrap_or(usize::MAX);
        let mut all = read_vec(&*self.disk, self.at + number * sector, bytes(first))?;
        if first < count {
            all.extend(read_vec(&*self.disk, self.at, bytes(count - first))?);
        }
        Ok(all)
    }

    /// The block `n` behind `block`, round the end of the log.
    pub(super) fn after(&self, block: u64, n: u64) -> u64 {
        (block + n) % self.blocks
    }

    /// The number of blocks from `from` forward to `to`.
    pub(super) fn distance(&self, from: u64, to: u64) -> u64 {
        (to + self.blocks - from) % self.blocks
    }

    /// The cycle number that a block was written in.
    fn cycle(&mut self, number: u64) -> Result<u32> {
        let block = self.block(number)?;
        let first = be32(block, 0).unwrap_or(0);
        Ok(if first == MAGIC {
            be32(block, 4).unwrap_or(0)
        } else {
            first
        })
    }

    fn is_header(&mut self, number: u64) -> Result<bool> {
        Ok(be32(self.block(number)?, 0) == Some(MAGIC))
    }

    /// The header at `number`.
    pub(super) fn header(&mut self, number: u64) -> Result<Record> {
        let (v2, uuid) = (self.v2, self.uuid);
        let block = self.block(number)?;
        let field = |at: usize| be32(block, at).unwrap_or(0);
        if field(0) != MAGIC {
            return Err(bad("no header of a record where one must be", number));
        }
        let version = field(8);
        let largest = if v2 { MAX_RECORD } else { MAX_RECORD_V1 };
        let size = if v2 && version & 2 != 0 { field(320) } else { 0 };
        let len = field(12);
        if version & !3 != 0 || len == 0 || len > largest || size > MAX_RECORD {
            return Err(bad("the header of a record is impossible", number));
        }
        match field(300) {
            LITTLE_ENDIAN => {}
            format => {
                return Err(bad(
                    format!("a log that another kind of machine wrote (h_fmt {format})"),
                    number,
                ));
            }
        }
        if array::<16>(block, 304).is_none_or(|found| found != uuid && found != [0; 16]) {
            return Err(bad("a record of another filesystem", number));
        }
        Ok(Record {
            block: number,
            lsn: be64(block, 16).unwrap_or(0),
            len,
            operations: field(40),
            tail_lsn: be64(block, 24).unwrap_or(0),
            crc: le32(block, CRC_AT).unwrap_or(0),
            headers: u64::from(size.div_ceil(PER_HEADER).max(1)),
        })
    }

    /// The operations of a record, its checksum checked and its blocks' first words put back.
    pub(super) fn operations(&self, record: &Record) -> Result<Vec<u8>> {
        let mut header = self.read(record.block, record.blocks())?;
        let split = usize::try_from(record.headers).unwrap_or(1) * SECTOR;
        let mut data = header.split_off(split.min(header.len()));
        let len = record.len as usize;
        if record.crc != 0 || self.crc {
            let known = SUMMED
                .iter()
                .any(|summed| checksum(&header, *summed, data.get(..len).unwrap_or_default()) == record.crc);
            if !known {
                return Err(bad("the checksum of a record is wrong", record.block));
            }
        }
        for (i, block) in data.chunks_mut(SECTOR).enumerate() {
            // h_cycle_data, then xh_cycle_data of each further header.
            let per = PER_HEADER as usize / SECTOR;
            let at = match i / per {
                0 => 44,
                further => further * SECTOR + 4,
            };
            let word: [u8; 4] = array(&header, at + i % per * 4)
                .ok_or_else(|| bad("a record is longer than its headers say", record.block))?;
            for (to, from) in block.iter_mut().zip(word) {
                *to = from;
            }
        }
        data.truncate(len);
        Ok(data)
    }

    /// True if the record at `number` is whole. Those that mkfs writes have no checksum.
    fn is_whole(&mut self, number: u64) -> bool {
        self.header(number)
            .is_ok_and(|record| record.crc == 0 || self.operations(&record).is_ok())
    }

    /// The block where the log began to be live when `record` was written.
    fn tail(&self, record: &Record) -> u64 {
        (record.tail_lsn & 0xffff_ffff) % self.blocks
    }

    /// The last header before `before`, looking back over at most `most` blocks.
    fn header_before(&mut self, before: u64, most: u64) -> Result<Option<u64>> {
        for back in 1..=most.min(self.blocks) {
            let number = (before + self.blocks - back % self.blocks) % self.blocks;
            if self.is_header(number)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// The most blocks of a record, with its headers.
    fn longest(&self) -> u64 {
        let len = if self.v2 { MAX_RECORD } else { MAX_RECORD_V1 };
        u64::from(len / SECTOR as u32 + MAX_RECORD / PER_HEADER)
    }

    /// Finds the live part of the log.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] if there is no whole record to begin with.
    pub(super) fn find(&mut self) -> Result<Position> {
        let Some(mut head) = self.find_head()? else {
            return Ok(Position::Clean);
        };
        let longest = self.longest();
        let last = self
            .header_before(head, longest * 2)?
            .ok_or_else(|| bad("no record before it, which is the head", head))?;
        let mut last = self.header(last)?;
        if self.is_unmount(&last, head)? {
            return Ok(Position::Clean);
        }
        // Of the records that were on their way when the machine stopped, those from the first torn one on are not there.
        let live = self.distance(self.tail(&last), head);
        let mut recent = vec![last.block];
        while recent.len() < IN_FLIGHT as usize
            && let Some(first) = recent.last()
            && let Some(number) = self.header_before(*first, longest * 2)?
            && self.distance(number, head) <= live
        {
            recent.push(number);
        }
        for number in recent.iter().rev() {
            if !self.is_whole(*number) {
                self.torn = Some(Torn {
                    block: *number,
                    followed: *number != last.block && self.is_whole(last.block),
                });
                head = *number;
                let before = self
                    .header_before(head, longest * 2)?
                    .ok_or_else(|| bad("the only record is torn", head))?;
                last = self.header(before)?;
                if self.is_unmount(&last, head)? {
                    return Ok(Position::Clean);
                }
                break;
            }
        }
        let mut tail = self.tail(&last);
        // Records that were on their way may have overwritten the tail, when it had already moved on.
        let most = IN_FLIGHT * longest;
        while tail != head && self.distance(head, tail) <= most && !self.is_whole(tail) {
            tail = self.after(tail, 1);
            while tail != head && !self.is_header(tail)? {
                tail = self.after(tail, 1);
            }
        }
        if tail == head {
            return Ok(Position::Clean);
        }
        Ok(Position::Dirty { tail, head })
    }

    /// True if `record`, which ends at `head`, says that the filesystem was unmounted.
    fn is_unmount(&mut self, record: &Record, head: u64) -> Result<bool> {
        if record.operations != 1 || self.after(record.block, record.blocks()) != head {
            return Ok(false);
        }
        let operation = self.block(self.after(record.block, record.headers))?;
        Ok(operation.get(9).is_some_and(|flags| flags & UNMOUNT != 0))
    }

    /// The block behind the last record that was written: each block's cycle number says in which round of the log it
    /// was. `None` if nothing was ever written.
    fn find_head(&mut self) -> Result<Option<u64>> {
        let first = self.cycle(0)?;
        let last = self.cycle(self.blocks - 1)?;
        if first == 0 {
            return Ok(None);
        }
        let scan = (self.longest() * IN_FLIGHT).min(self.blocks);
        let mut head = if last == 0 {
            // The first round: what follows was never written.
            let head = self.first_of(0)?;
            let from = head.saturating_sub(scan);
            self.first_with(from, head, 0)?.unwrap_or(head)
        } else {
            let (head, stop) = if first == last {
                (self.blocks, last.wrapping_sub(1))
            } else {
                (self.first_of(last)?, last)
            };
            // Writes may have been done out of order: the first gap counts.
            if head >= scan {
                self.first_with(head - scan, head, stop)?.unwrap_or(head)
            } else {
                let from = self.blocks - (scan - head);
                match self.first_with(from, self.blocks, stop.wrapping_sub(1))? {
                    Some(gap) => gap,
                    None => self.first_with(0, head, stop)?.unwrap_or(head),
                }
            }
        };
        // The last record must reach the head.
        head %= self.blocks;
        if let Some(number) = self.header_before(head, self.longest() * 2)?
            && let Ok(record) = self.header(number)
        {
            let missing = self.distance(number, head) < record.blocks();
            let end = self.after(number, record.blocks());
            if end != head {
                // A whole record that something follows which is none: a header is damaged.
                let damaged = !missing && self.is_whole(number);
                head = if damaged { end } else { number };
                self.torn = Some(Torn {
                    block: head,
                    followed: damaged,
                });
            }
        }
        Ok(Some(head))
    }

    /// The first block of cycle `cycle`, which the end of the log has and its beginning has not.
    fn first_of(&mut self, cycle: u32) -> Result<u64> {
        let (mut before, mut at) = (0, self.blocks - 1);
        while at - before > 1 {
            let middle = before.midpoint(at);
            if self.cycle(middle)? == cycle {
                at = middle;
            } else {
                before = middle;
            }
        }
        Ok(at)
    }

    /// The first block from `from` up to `to` of cycle `cycle`.
    fn first_with(&mut self, from: u64, to: u64, cycle: u32) -> Result<Option<u64>> {
        for number in from..to {
            if self.cycle(number)? == cycle {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// The checksum of a record: `summed` bytes of its header with the checksum as zeros, of its further headers those that
/// describe data, its data.
fn checksum(headers: &[u8], summed: usize, data: &[u8]) -> u32 {
    let part = |from: usize, to: usize| headers.get(from..to).unwrap_or_default();
    let mut crc = crc32c::crc32c(part(0, CRC_AT));
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc = crc32c::crc32c_append(crc, part(CRC_AT + 4, summed));
    let described = data.len().div_ceil(PER_HEADER as usize);
    for further in (SECTOR..headers.len().min(described * SECTOR)).step_by(SECTOR) {
        crc = crc32c::crc32c_append(crc, part(further, further + SUMMED_EXT));
    }
    crc32c::crc32c_append(crc, data)
}
