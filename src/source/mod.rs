//! Where a tree of files comes from: disks, directories, images.

pub mod directory;
#[cfg(feature = "full")]
pub mod fstab;
#[cfg(feature = "full")]
pub mod image;
#[cfg(feature = "full")]
pub mod machine;
#[cfg(feature = "full")]
pub mod memory;

use crate::error::Result;
use crate::live::Live;
use crate::read_at::ReadAt;
use crate::tree::{FileId, Problem, Tree};
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

    /// Every path. The same value each time.
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
