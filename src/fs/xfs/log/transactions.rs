//! Operations of the log's records (`struct xlog_op_header`) put together to transactions of items.

use super::records::Log;
use super::{SECTOR, bad};
use crate::bytes::{be32, le16, le32, slice, u8_at};
use crate::error::Result;
use std::collections::HashMap;

/// Flags of an operation.
mod flag {
    pub(super) const START: u8 = 0x01;
    pub(super) const COMMIT: u8 = 0x02;
    pub(super) const CONTINUE: u8 = 0x04;
    pub(super) const WAS_CONTINUED: u8 = 0x08;
    pub(super) const END: u8 = 0x10;
    pub(super) const UNMOUNT: u8 = 0x20;
}
/// `XFS_TRANSACTION` and `XFS_LOG`.
const CLIENTS: [u8; 2] = [0x69, 0xaa];
/// `XFS_TRANS_HEADER_MAGIC`.
const MAGIC: u32 = 0x5452_414e;
/// Length of `struct xfs_trans_header`.
const HEADER: usize = 16;
/// The most regions of an item: `XFS_MAX_BLOCKSIZE / XFS_BLF_CHUNK / 2 + 1`.
const MAX_REGIONS: u16 = 257;
/// Bytes of transactions that are not yet committed: Linux keeps them below half of this.
const MAX_OPEN: usize = 192 << 20;

/// One item: regions of bytes, the first of which says what it is.
#[derive(Debug, Default)]
pub(super) struct Item {
    /// How many regions it has.
    total: u16,
    pub regions: Vec<Vec<u8>>,
}

impl Item {
    /// Region `i`, empty if there is none.
    pub(super) fn region(&self, i: usize) -> &[u8] {
        self.regions.get(i).map(Vec::as_slice).unwrap_or_default()
    }
    /// The type of item.
    pub(super) fn kind(&self) -> u16 {
        le16(self.region(0), 0).unwrap_or(0)
    }
}

/// A transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Log sequence number of the record where it begins.
    pub lsn: u64,
    /// The bytes of its header that are there so far.
    header: Vec<u8>,
    pub items: Vec<Item>,
}

/// Calls `then` with each committed transaction from block `tail` up to block `head`, in the order of their commits.
///
/// # Errors
/// What `then` gives, or the first thing that is wrong with the log.
pub(super) fn each(
    log: &mut Log,
    tail: u64,
    head: u64,
    then: &mut dyn FnMut(Transaction) -> Result<()>,
) -> Result<()> {
    let total = log.distance(tail, head);
    let mut at = 0;
    let mut open = Open::default();
    while at < total {
        let record = log.header(log.after(tail, at))?;
        if at + record.blocks() > total {
            return Err(bad("a record reaches beyond the head", record.block));
        }
        let data = log.operations(&record)?;
        open.operations(&data, record.operations, record.lsn, then)
            .map_err(|e| e.within(&format!("record at block {}", record.block)))?;
        at += record.blocks();
    }
    Ok(())
}

/// Transactions that are not yet committed, by their ids.
#[derive(Default)]
struct Open {
    transactions: HashMap<u32, Transaction>,
    /// Bytes of all of them.
    bytes: usize,
}

impl Open {
    fn operations(
        &mut self,
        data: &[u8],
        count: u32,
        lsn: u64,
        then: &mut dyn FnMut(Transaction) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0usize;
        for _ in 0..count {
            if at >= data.len() {
                break;
            }
            let fields = || {
                let id = be32(data, at)?;
                let len = usize::try_from(be32(data, at + 4)?).ok()?;
                let (client, flags) = (u8_at(data, at + 8)?, u8_at(data, at + 9)?);
                Some((id, client, flags, slice(data, at + 12, len)?))
            };
            let Some((id, client, flags, bytes)) = fields() else {
                return Err(bad("an operation is cut short", (at / SECTOR) as u64));
            };
            if !CLIENTS.contains(&client) {
                return Err(bad("an operation of an unknown client", (at / SECTOR) as u64));
            }
            at += 12 + bytes.len();
            if let Some(done) = self.operation(id, flags, bytes, lsn)? {
                then(done)?;
            }
        }
        Ok(())
    }

    /// Takes one operation; gives the transaction that it commits.
    fn operation(&mut self, id: u32, flags: u8, bytes: &[u8], lsn: u64) -> Result<Option<Transaction>> {
        if flags & flag::START != 0 {
            let new = Transaction {
                lsn,
                header: Vec::new(),
                items: Vec::new(),
            };
            if self.transactions.insert(id, new).is_some() {
                return Err(bad("a transaction begins twice", lsn & 0xffff_ffff));
            }
            if bytes.is_empty() {
                return Ok(None);
            }
        }
        // What began before the tail was committed before it.
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return Ok(None);
        };
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > MAX_OPEN {
            return Err(bad("transactions without an end", lsn & 0xffff_ffff));
        }
        let mut flags = flags & !(flag::END | flag::START);
        if flags & flag::WAS_CONTINUED != 0 {
            flags &= !flag::CONTINUE;
        }
        let added = match flags {
            0 | flag::CONTINUE => transaction.add(bytes),
            flag::WAS_CONTINUED => transaction.extend(bytes),
            flag::COMMIT => {
                let done = self.transactions.remove(&id);
                let size = done.as_ref().map_or(0, Transaction::size);
                self.bytes = self.bytes.saturating_sub(size);
                return Ok(done);
            }
            flag::UNMOUNT => Some(()),
            _ => None,
        };
        added.ok_or_else(|| bad("an impossible operation", lsn & 0xffff_ffff))?;
        Ok(None)
    }
}

impl Transaction {
    /// Bytes in memory.
    fn size(&self) -> usize {
        let regions = self.items.iter().flat_map(|item| &item.regions);
        self.header.len() + regions.map(Vec::len).sum::<usize>()
    }

    /// Adds a region; `None` if it cannot be.
    fn add(&mut self, bytes: &[u8]) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        if self.header.is_empty() {
            // The header may go on in the next record.
            if le32(bytes, 0)? != MAGIC || bytes.len() > HEADER {
                return None;
            }
            self.header = bytes.to_vec();
            return Some(());
        }
        if self
            .items
            .last()
            .is_none_or(|item| item.regions.len() >= usize::from(item.total))
        {
            let total = le16(bytes, 2)?;
            if total == 0 || total > MAX_REGIONS {
                return None;
            }
            self.items.push(Item {
                total,
                regions: Vec::new(),
            });
        }
        self.items.last_mut()?.regions.push(bytes.to_vec());
        Some(())
    }

    /// Adds the rest of a region that the record before could not hold.
    fn extend(&mut self, bytes: &[u8]) -> Option<()> {
        if self.items.is_empty() {
            self.header.extend_from_slice(bytes);
            return (self.header.len() <= HEADER).then_some(());
        }
        self.items
            .last_mut()?
            .regions
            .last_mut()?
            .extend_from_slice(bytes);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_that_are_split_are_joined() {
        let mut open = Open::default();
        let header = [MAGIC.to_le_bytes().to_vec(), vec![0; 12]].concat();
        let mut run = |flags, bytes: &[u8]| open.operation(7, flags, bytes, 5).unwrap();
        assert!(run(flag::START, b"").is_none());
        assert!(run(flag::CONTINUE, &header[..6]).is_none());
        assert!(run(flag::WAS_CONTINUED | flag::END, &header[6..]).is_none());
        assert!(run(0, &[0x3c, 0x12, 2, 0, 9]).is_none());
        assert!(run(flag::CONTINUE, b"ab").is_none());
        assert!(run(flag::WAS_CONTINUED | flag::CONTINUE, b"cd").is_none());
        assert!(run(flag::WAS_CONTINUED | flag::END, b"e").is_none());
        let done = run(flag::COMMIT, b"").unwrap();
        assert_eq!((done.lsn, done.items.len()), (5, 1));
        assert_eq!(done.items[0].kind(), 0x123c);
        assert_eq!(done.items[0].region(1), b"abcde");
        assert_eq!(open.transactions.len(), 0);
    }

    #[test]
    fn what_began_before_the_tail_is_not_taken() {
        let mut open = Open::default();
        assert!(open.operation(1, flag::COMMIT, b"", 1).unwrap().is_none());
        assert!(open.operation(1, 0, b"abc", 1).unwrap().is_none());
        open.operation(1, flag::START, b"", 1).unwrap();
        assert!(open.operation(1, flag::START, b"", 1).is_err());
        open.operation(2, flag::START, b"", 1).unwrap();
        assert!(open.operation(2, 0, b"no header", 1).is_err());
    }
}
