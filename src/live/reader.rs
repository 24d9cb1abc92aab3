//! Where the files of `proc(5)` come from.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Files, links and directories below `/proc`; paths are relative to it, as in `1/status`.
pub trait Proc {
    /// The content of a file, at most `limit` bytes of it. `None` if it cannot be read.
    fn read(&self, path: &str, limit: usize) -> Option<Vec<u8>>;
    /// The target of a symbolic link.
    fn link(&self, path: &str) -> Option<Vec<u8>>;
    /// The names in a directory, none if it cannot be read. `None` tells that from an empty one.
    fn list(&self, path: &str) -> Option<Vec<String>>;
    /// The number of a process that is this program's own, which is left out.
    fn own(&self) -> Option<u32> {
        None
    }
    /// True if numbers of many bytes have the highest first on that host: `/proc/net` shows addresses as the processor keeps
    /// them.
    fn big_endian(&self) -> bool {
        cfg!(target_endian = "big")
    }
}

/// `/proc` of the host that this runs on.
#[derive(Debug, Clone)]
pub struct HostProc {
    root: PathBuf,
}

impl Default for HostProc {
    fn default() -> Self {
        Self { root: "/proc".into() }
    }
}

impl Proc for HostProc {
    fn read(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let file = std::fs::File::open(self.root.join(path)).ok()?;
        let mut bytes = Vec::new();
        // What was read before an error is worth having: a process may end meanwhile.
        let done = file.take(limit as u64).read_to_end(&mut bytes);
        (done.is_ok() || !bytes.is_empty()).then_some(bytes)
    }

    fn link(&self, path: &str) -> Option<Vec<u8>> {
        let target = std::fs::read_link(self.root.join(path)).ok()?;
        Some(target.as_os_str().as_bytes().to_vec())
    }

    fn list(&self, path: &str) -> Option<Vec<String>> {
        let entries = std::fs::read_dir(self.root.join(path)).ok()?;
        Some(
            entries
                .filter_map(|e| e.ok()?.file_name().into_string().ok())
                .collect(),
        )
    }

    fn own(&self) -> Option<u32> {
        Some(std::process::id())
    }
}

/// Files and links that were read before, by their paths.
#[derive(Debug, Clone, Default)]
pub struct SavedProc {
    files: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<String, Vec<u8>>,
    directories: BTreeMap<String, BTreeSet<String>>,
    big_endian: bool,
}

impl SavedProc {
    /// Nothing yet; `big_endian` is the host's order of bytes.
    pub fn new(big_endian: bool) -> Self {
        Self {
            big_endian,
            ..Self::default()
        }
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.name(path);
        self.files.insert(path.to_owned(), content.into());
    }

    /// Adds a link.
    pub fn symlink(&mut self, path: &str, target: impl Into<Vec<u8>>) {
        self.name(path);
        self.links.insert(path.to_owned(), target.into());
    }

    fn name(&mut self, path: &str) {
        let mut rest = path;
        while let Some((dir, name)) = rest.rsplit_once('/') {
            self.directories
                .entry(dir.to_owned())
                .or_default()
                .insert(name.to_owned());
            rest = dir;
        }
        self.directories
            .entry(String::new())
            .or_default()
            .insert(rest.to_owned());
    }
}

impl Proc for SavedProc {
    fn read(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let content = self.files.get(path)?;
        Some(content.get(..limit).unwrap_or(content).to_vec())
    }

    fn link(&self, path: &str) -> Option<Vec<u8>> {
        self.links.get(path).cloned()
    }

    fn list(&self, path: &str) -> Option<Vec<String>> {
        Some(self.directories.get(path)?.iter().cloned().collect())
    }

    fn big_endian(&self) -> bool {
        self.big_endian
    }
}
