//! A source whose files are in memory: for tests, and for trees that are made up.

use super::Source;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::ReadAt;
use crate::tree::{FileId, Kind, Node, Problem, Tree};
use std::sync::Arc;

/// Collects entries and becomes a [`MemorySource`] with [`Builder::build`]. Missing parents are made by the tree.
pub struct Builder {
    name: String,
    entries: Vec<(GuestPath, Node)>,
    contents: Vec<Vec<u8>>,
}

/// A tree with all its contents in memory.
pub struct MemorySource {
    name: String,
    tree: Tree,
    contents: Vec<Vec<u8>>,
}

impl MemorySource {
    /// An empty builder; `name` is for messages.
    #[expect(clippy::new_ret_no_self, reason = "a source is whole only when it is built")]
    pub fn new(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            entries: Vec::new(),
            contents: Vec::new(),
        }
    }
}

impl Builder {
    /// A regular file of mode 0644.
    ///
    /// # Panics
    /// If `path` is not an absolute path.
    #[must_use]
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.file_at(absolute(path), content)
    }

    /// As [`Builder::file`], with any path.
    #[must_use]
    pub fn file_at(mut self, path: GuestPath, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref().to_vec();
        let kind = Kind::File {
            size: content.len() as u64,
        };
        self.contents.push(content);
        let ino = self.contents.len() as u64;
        self.node(path, kind, 0o644, ino)
    }

    /// A directory of mode 0755.
    ///
    /// # Panics
    /// If `path` is not an absolute path.
    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        self.node(absolute(path), Kind::Directory, 0o755, 0)
    }

    /// A symbolic link.
    ///
    /// # Panics
    /// If `path` is not an absolute path.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        let target = target.as_bytes().to_vec();
        self.node(absolute(path), Kind::Symlink { target }, 0o777, 0)
    }

    /// Any entry without content.
    #[must_use]
    pub fn entry(mut self, path: GuestPath, node: Node) -> Self {
        self.entries.push((path, node));
        self
    }

    /// The source.
    pub fn build(self) -> MemorySource {
        MemorySource {
            name: self.name,
            tree: Tree::new(self.entries),
            contents: self.contents,
        }
    }

    fn node(mut self, path: GuestPath, kind: Kind, mode: u16, ino: u64) -> Self {
        let node = Node {
            kind,
            mode,
            id: FileId { fs: 0, ino },
            nlink: 1,
            ..Node::plain_dir()
        };
        self.entries.push((path, node));
        self
    }
}

#[expect(
    clippy::panic,
    reason = "a wrong path is a mistake of the caller's source code"
)]
fn absolute(path: &str) -> GuestPath {
    GuestPath::new(path.as_bytes()).unwrap_or_else(|e| panic!("{e}"))
}

impl Source for MemorySource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>> {
        let content = usize::try_from(id.ino)
            .ok()
            .and_then(|ino| self.contents.get(ino.checked_sub(1)?));
        match content {
            Some(content) => Ok(Arc::new(content.clone())),
            None => Err(Error::corrupt(format!("{}: no file {}", self.name, id.ino), 0)),
        }
    }

    fn problems(&self) -> &[Problem] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::read_file;

    #[test]
    fn files_links_and_what_is_missing() {
        let source = MemorySource::new("m")
            .file("/a/b", "content")
            .symlink("/l", "a/b")
            .dir("/empty")
            .build();
        assert_eq!(read_file(&source, "/l", 10).unwrap().unwrap(), b"content");
        assert!(read_file(&source, "/empty", 10).unwrap().is_none());
        assert!(source.open(FileId { fs: 0, ino: 0 }).is_err());
        assert!(source.open(FileId { fs: 0, ino: 2 }).is_err());
    }
}
