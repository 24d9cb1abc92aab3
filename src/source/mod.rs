//! Where a tree of files comes from: disks, directories, images.

pub mod directory;
#[cfg(feature = "full")]
pub mod fstab;
#[cfg(feature = "full")]
pub mod host;
#[cfg(feature = "full")]
pub mod image;
#[cfg(feature = "full")]
pub mod machine;
#[cfg(feature = "full")]
pub mod memory;
pub mod walk;

use crate::error::Result;
use crate::live::Live;
use crate::progress::Progress;
use crate::read_at::ReadAt;
use crate::tree::{FileId, Problem, Tree};
use std::collections::HashMap;
use std::sync::Arc;

/// One filesystem of a source, for people and for `scan`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FilesystemInfo {
    /// `ext4`, `xfs`, ... as mount(8) names it.
    pub kind: String,
    /// Where it lies, as in `web.qcow2 partition 1`.
    pub device: String,
    /// UUID in its usual text form, if it has one.
    pub uuid: Option<String>,
    /// Label, if it has one.
    pub label: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Bytes in use, if the filesystem says.
    pub used: Option<u64>,
    /// Where it is mounted in the tree; `None` if it is no part of it.
    pub mounted: Option<String>,
}

/// A tree of files, and a way to read each one.
pub trait Source: Send + Sync {
    /// What this is, for messages: `web.qcow2`.
    fn name(&self) -> String;

    /// Every path. The same value each time, but for what [`Source::settle`] changes once.
    fn tree(&self) -> &Tree;

    /// The content of the regular file `id`, with its holes known.
    ///
    /// # Errors
    /// As the filesystem's reader.
    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>>;

    /// What could not be read while the tree was made. A result built on it must list them.
    fn problems(&self) -> &[Problem];

    /// What the host knows while it runs, if this is a host that runs, and who uses the files `watch` (`live::Ask`).
    ///
    /// # Errors
    /// If the host does not answer.
    fn live(&self, watch: Vec<String>) -> Result<Option<Live>> {
        let _ = watch;
        Ok(None)
    }

    /// The filesystems this is made of; none for directories and images.
    fn filesystems(&self) -> &[FilesystemInfo] {
        &[]
    }

    /// A hint that these files will be opened soon, in this order.
    fn prefetch(&self, _ids: &[FileId]) {}

    /// BLAKE3 of contents, if there is a better way to it than reading them here. What is not in the answer is to be read.
    fn hashes(&self, _ids: &[FileId]) -> Option<HashMap<FileId, Result<[u8; 32]>>> {
        None
    }

    /// True if the files may change while they are read.
    fn is_moving(&self) -> bool {
        false
    }

    /// Reads what will be needed of a machine whose files change, and makes its tree that of what was read: sizes and times
    /// become those of the contents, what vanished is left out, and [`Source::problems`] names what is of no single moment.
    /// Gives the BLAKE3 of each wanted content. `None` if there is nothing to do. It works once.
    ///
    /// # Errors
    /// If the connection breaks; not for single files.
    fn settle(
        &self,
        _wanted: &[Wanted],
        _progress: &dyn Progress,
    ) -> Result<Option<HashMap<FileId, [u8; 32]>>> {
        Ok(None)
    }

    /// What went over a network.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    /// A conversion is complete: what is kept for the next one may be tidied.
    fn finished(&self) {}
}

/// A file that will be needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The file.
    pub id: FileId,
    /// BLAKE3 of contents with which it need not be read.
    pub unless: Vec<[u8; 32]>,
}

/// What went over a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Bytes sent, the agent among them.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes received for contents.
    pub contents: u64,
    /// Files that the host read or hashed.
    pub read: u64,
    /// Files of which only the difference came.
    pub deltas: u64,
    /// Files that were there when they were listed, and not any more.
    pub vanished: u64,
    /// Files that changed each time that they were read.
    pub torn: u64,
}

/// The content of the file at `path`, symlinks followed inside the tree, if it exists, is a regular file and has at most
/// `limit` bytes.
///
/// # Errors
/// As the filesystem's reader.
pub fn read_file(source: &dyn Source, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    match source.tree().find(path) {
        Some((_, node)) if node.is_file() => {
            crate::read_at::read_all(&*source.open(node.id)?, limit).map(Some)
        }
        _ => Ok(None),
    }
}
