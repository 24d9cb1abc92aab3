//! The log: "XFS Algorithms & Data Structures", chapter "Journaling Log". What a filesystem that was not unmounted
//! cleanly has only in its log is laid over the volume in memory, as mounting would write it.
//!
//! ```text
//! records: from the tail to the head of the circular log -> transactions: committed ones, in order
//!                                                        -> replay: buffers, inodes, intents -> overlay
//! ```

mod overlay;
mod records;
mod replay;
mod transactions;

use super::extents::Edit;
use super::superblock::Superblock;
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use records::{Log, Position, Torn};
use replay::Replay;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes in the log's unit of length, a basic block.
const SECTOR: usize = 512;
/// The most bytes of inodes that one item of the log may initialise: 64 inodes of 2 KiB.
const MAX_ICREATE: u64 = 64 * 2048;

/// A filesystem as it is after recovery.
pub(super) struct Recovery {
    pub disk: Arc<dyn ReadAt>,
    /// Changes of files that recovery would finish, by inode.
    pub edits: HashMap<u64, Vec<Edit>>,
    pub notes: Vec<String>,
    /// What of the log could not be used.
    pub problems: Vec<String>,
}

/// Replays the log of the filesystem on `disk` in memory; `None` if there is nothing to replay.
///
/// A damaged log does not hide the filesystem: what is whole in it is used, the rest is named in
/// [`Recovery::problems`].
pub(super) fn recover(disk: &Arc<dyn ReadAt>, sb: &Superblock) -> Option<Recovery> {
    let untouched = || Recovery {
        disk: Arc::clone(disk),
        edits: HashMap::new(),
        notes: Vec::new(),
        problems: Vec::new(),
    };
    let told = |problem: String| {
        let mut recovery = untouched();
        recovery.problems.push(problem);
        Some(recovery)
    };
    if sb.log_start == 0 {
        return told(
            "the log is on another device: changes of names, metadata and files that are only in it are missing"
                .to_owned(),
        );
    }
    let replayed = || -> Result<(Option<Recovery>, Option<Torn>)> {
        let mut log = Log::new(disk, sb)?;
        match log.find()? {
            Position::Clean => Ok((None, log.torn)),
            Position::Dirty { tail, head } => {
                let recovery = replay(disk, sb, &mut log, tail, head)?;
                Ok((Some(recovery), log.torn))
            }
        }
    };
    match replayed() {
        Ok((recovery, None)) => recovery,
        Ok((recovery, Some(torn))) => {
            let mut recovery = recovery.unwrap_or_else(untouched);
            if torn.followed {
                recovery.problems.push(format!(
                    "the log has a damaged record at its block {}: later changes are missing",
                    torn.block
                ));
            } else {
                recovery.notes.push(format!(
                    "the last record of the log, at its block {}, is torn: recovery leaves it out",
                    torn.block
                ));
            }
            Some(recovery)
        }
        Err(e) => told(format!(
            "the log cannot be replayed: changes of names, metadata and files that are only in it are missing: {e}"
        )),
    }
}

fn replay(disk: &Arc<dyn ReadAt>, sb: &Superblock, log: &mut Log, tail: u64, head: u64) -> Result<Recovery> {
    let mut replay = Replay::new(disk, sb);
    let mut problems = Vec::new();
    // Buffers that were freed later must not be written: they may hold files' data by now.
    let first = transactions::each(log, tail, head, &mut |t| replay.note_cancelled(&t));
    let second = transactions::each(log, tail, head, &mut |t| replay.apply(&t));
    let transactions = replay.transactions;
    for outcome in [first, second] {
        if let Err(e) = outcome {
            problems.push(format!(
                "the log can be replayed only up to transaction {transactions}: later changes of names, metadata \
                 and files are missing: {e}"
            ));
            break;
        }
    }
    let finished = replay.finish()?;
    problems.extend(finished.problems);
    Ok(Recovery {
        disk: Arc::new(finished.overlay),
        edits: finished.edits,
        notes: vec![format!(
            "log replayed in memory: {transactions} transactions, {} buffers, {} inodes",
            finished.buffers, finished.inodes
        )],
        problems,
    })
}

/// A broken rule of the log at its block `block`.
fn bad(what: impl std::fmt::Display, block: u64) -> Error {
    Error::corrupt(format!("the log, block {block}: {what}"), 0)
}
