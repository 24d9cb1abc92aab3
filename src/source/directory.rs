//! `dir:PATH`: a directory of the host, such as a mounted or unpacked machine, as a source.
//!
//! The directory may be hostile: no symbolic link in it is followed, nothing in it but directories and regular files is
//! opened. It may also change while it is read: each file is opened again by its path and is refused if it is another.

use super::Source;
use super::walk::{Mounted, Sink, open_below, walk};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::{HostFile, ReadAt};
use crate::tree::{FileId, Node, Problem, Tree};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// A directory of the host.
pub struct Directory {
    name: String,
    root: OwnedFd,
    tree: Tree,
    problems: Vec<Problem>,
    /// Device and inode of each filesystem number's files are those of the host; this is where to find them again.
    files: HashMap<FileId, GuestPath>,
    devices: Vec<u64>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Directory {
    /// Lists the directory `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or is no directory. What cannot be read below it becomes a [`Problem`].
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let io = |e: Errno| Error::io(format!("opening the directory {name}"), e.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(io)?;
        let mut all = Listing::default();
        let devices = walk(root.as_fd(), &mut all)?;
        let Listing { entries, problems } = all;
        let tree = Tree::new(entries);
        let files = tree
            .iter()
            .filter(|(_, n)| n.is_file())
            .map(|(p, n)| (n.id, p.clone()))
            .collect();
        Ok(Self {
            name,
            root,
            tree,
            problems,
            files,
            devices,
        })
    }
}

impl Source for Directory {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>> {
        let missing = || Error::corrupt(format!("{}: no file {id:?}", self.name), 0);
        let path = self.files.get(&id).ok_or_else(missing)?;
        let device = usize::try_from(id.fs).ok().and_then(|n| self.devices.get(n));
        let size = self.tree.get(path).map(Node::size);
        let io = |e: std::io::Error| Error::io(format!("opening {path} of {}", self.name), e);
        let file = open_below(self.root.as_fd(), path, OFlags::NONBLOCK).map_err(|e| io(e.into()))?;
        let stat = rustix::fs::fstat(&file).map_err(|e| io(e.into()))?;
        let same = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && Some(&stat.st_dev) == device
            && stat.st_ino == id.ino
            && u64::try_from(stat.st_size).ok() == size;
        if !same {
            return Err(io(std::io::Error::other("it changed since it was listed")));
        }
        Ok(Arc::new(HostFile::from_file(file.into(), path.to_string())?))
    }

    fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// All that a walk finds.
#[derive(Default)]
struct Listing {
    entries: Vec<(GuestPath, Node)>,
    problems: Vec<Problem>,
}

impl Sink for Listing {
    fn entry(&mut self, path: &GuestPath, node: Node) {
        self.entries.push((path.clone(), node));
    }
    fn problem(&mut self, path: &GuestPath, what: String) {
        self.problems.push(Problem {
            path: path.clone(),
            what,
        });
    }
    fn mounted(&mut self, mounted: Mounted<'_>) -> bool {
        !mounted.is_made_up()
    }
}
