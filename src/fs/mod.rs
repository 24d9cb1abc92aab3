//! Filesystems: bytes of a volume in, a tree of files out. Nothing is ever written.

use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use crate::tree::{Problem, Tree};
use std::sync::Arc;

/// A filesystem that has been opened.
pub trait Filesystem: Send + Sync {
    /// What it says of itself.
    fn info(&self) -> Info;

    /// Lists every path once, in time linear in their number. Ids in the tree have `fs` 0.
    ///
    /// # Errors
    /// If not even the root directory can be read. What else cannot be read becomes a [`Problem`].
    fn list(&self) -> Result<Listing>;

    /// The content of the regular file with inode number `ino`.
    ///
    /// # Errors
    /// If the inode is not a readable regular file.
    fn open(&self, ino: u64) -> Result<Arc<dyn ReadAt>>;
}

/// A whole filesystem's tree.
pub struct Listing {
    /// Every path that could be read.
    pub tree: Tree,
    /// What could not.
    pub problems: Vec<Problem>,
}

/// What a filesystem says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Info {
    /// The name that mount(8) uses: `ext4`.
    pub kind: String,
    /// UUID in text form.
    pub uuid: Option<String>,
    /// Label; bytes that are not UTF-8 are replaced.
    pub label: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: Option<u64>,
    /// Features and states worth telling, as in `journal replayed in memory`.
    pub notes: Vec<String>,
}

/// The name of what `volume` holds; `None` if nothing known.
pub fn recognise(volume: &dyn ReadAt) -> Option<&'static str> {
    let has = |at, what: &[u8]| crate::read_at::read_vec(volume, at, what.len()).is_ok_and(|b| b == what);
    if has(1080, &[0x53, 0xef]) {
        Some("ext4")
    } else if has(3, b"NTFS    ") {
        Some("ntfs")
    } else if has(512, b"LABELONE") {
        Some("LVM2_member")
    } else {
        None
    }
}

/// Opens the filesystem on `volume`.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn open(volume: Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>> {
    Err(Error::unsupported(recognise(&*volume).unwrap_or("nothing known")))
}
