//! A machine's disks as one tree of files, put together the way the machine mounts them.
//!
//! disk files -> volumes -> filesystems -> the one that holds the operating system, with the others where its
//! `/etc/fstab` mounts them.

mod disks;
mod mounts;
mod names;
mod subvolumes;

use super::{FilesystemInfo, Source};
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::progress::Progress;
use crate::read_at::ReadAt;
use crate::tree::{FileId, Problem, Tree};
use crate::volume::Keys;
use disks::Disks;
use mounts::Mounts;
use std::path::PathBuf;
use std::sync::Arc;

/// How a machine is opened.
#[derive(Debug, Clone, Default)]
pub struct MachineOptions {
    /// Which filesystem holds the operating system (`--root`): `disk.qcow2:1`, a partition's number, a UUID, a label, each
    /// with `:SUBVOL` behind it where a subvolume is meant; `None` finds it.
    pub root: Option<String>,
    /// Walk into snapshots too, not only into the subvolumes they were made of (`--snapshots`).
    pub snapshots: bool,
    /// Directories that images may open further files in (`--allow-backing`).
    pub allow_backing: Vec<PathBuf>,
    /// What encrypted volumes are tried with (`--key-file`).
    pub keys: Keys,
}

/// A machine's disks as one tree.
pub struct Machine {
    name: String,
    tree: Tree,
    problems: Vec<Problem>,
    notes: Vec<String>,
    infos: Vec<FilesystemInfo>,
    /// The filesystem with each number that the tree's file ids have.
    filesystems: Vec<Arc<dyn Filesystem>>,
    identity: Option<String>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Opens the disks at `paths` and finds the operating system on them.
    ///
    /// # Errors
    /// As [`disk::open`]; [`Error::Unsupported`] if there is no operating system, or it lies on something that cannot be
    /// read; [`Error::Usage`] if there is more than one and `options` does not say which.
    pub fn open(
        paths: &[PathBuf],
        options: &MachineOptions,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        Self::assemble(Disks::open(paths, options, progress)?, options, progress, true)
    }

    /// As [`Machine::open`], but if there is no operating system the only filesystem that can be read will do.
    ///
    /// # Errors
    /// As [`Machine::open`]; [`Error::Usage`] if several filesystems can be read and `options` does not say which.
    pub fn open_any(
        paths: &[PathBuf],
        options: &MachineOptions,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        Self::assemble(Disks::open(paths, options, progress)?, options, progress, false)
    }

    /// What is worth telling of the disks, volumes and mounts, and makes nothing incomplete.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Names the bytes of the disks and the choice of the root, for what is remembered of a machine's contents: equal names
    /// mean equal contents under equal file ids. `None` if a change might not show ([`crate::disk::Gate::identity`]).
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    fn assemble(
        mut disks: Disks,
        options: &MachineOptions,
        progress: &dyn Progress,
        system: bool,
    ) -> anyhow::Result<Self> {
        let root = disks.root(options.root.as_deref(), system)?;
        names::add(&mut disks, root);
        let machine = Mounts::new(disks, root).finish();
        for note in &machine.notes {
            progress.warn(note);
        }
        Ok(machine)
    }
}

impl Source for Machine {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>> {
        usize::try_from(id.fs)
            .ok()
            .and_then(|n| self.filesystems.get(n))
            .ok_or_else(|| Error::corrupt(format!("{}: no filesystem number {}", self.name, id.fs), 0))?
            .open(id.ino)
    }

    fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn filesystems(&self) -> &[FilesystemInfo] {
        &self.infos
    }
}
