//! The filesystems of a machine in one tree, where its `/etc/fstab` mounts them.

use super::Machine;
use super::disks::{Disks, Opened, Part};
use crate::error::Escaped;
use crate::fs::{Filesystem, Listing, View};
use crate::path::GuestPath;
use crate::source::FilesystemInfo;
use crate::source::fstab::{Line, Purpose};
use crate::tree::{Problem, Tree};
use std::sync::Arc;

/// More lines of fstab than this are not followed: each costs a pass over the tree.
const MAX_MOUNTS: usize = 64;

/// The tree while filesystems are mounted into it.
pub(super) struct Mounts {
    disks: Disks,
    root: usize,
    tree: Tree,
    problems: Vec<Problem>,
    notes: Vec<String>,
    /// Which volume has each filesystem number, where it is mounted, and as what it is seen.
    mounted: Vec<(usize, GuestPath, Arc<dyn Filesystem>)>,
}

impl Mounts {
    pub(super) fn new(mut disks: Disks, root: usize) -> Self {
        let (lines, readable) = match disks.fstab(root) {
            Some(lines) => (lines, true),
            None => (Vec::new(), false),
        };
        let mut mounts = Self {
            notes: std::mem::take(&mut disks.notes),
            disks,
            root,
            tree: Tree::default(),
            problems: Vec::new(),
            mounted: Vec::new(),
        };
        mounts.mount(root, None, GuestPath::root());
        let mut lines: Vec<(GuestPath, Line)> = lines
            .into_iter()
            .filter(|l| l.purpose() != Purpose::Nothing)
            .filter_map(|l| Some((GuestPath::lenient(&l.file).ok()?, l)))
            .collect();
        // /var before /var/lib; lines of one depth in the order of the file.
        lines.sort_by_key(|(at, _)| at.parts().count());
        for (at, line) in lines {
            mounts.line(&at, &line);
        }
        if !readable {
            let fstab = GuestPath::lenient(b"/etc/fstab").unwrap_or_else(|_| GuestPath::root());
            mounts.problem(&fstab, "it cannot be read, so nothing is mounted".to_owned());
        }
        mounts
    }

    /// Does what one line of fstab asks for.
    fn line(&mut self, at: &GuestPath, line: &Line) {
        let spec = Escaped(&line.spec).to_string();
        let said = format!("/etc/fstab: {spec} at {at}");
        match line.purpose() {
            Purpose::Nothing => return,
            Purpose::Network => {
                return self
                    .notes
                    .push(format!("{said} lies on the network and is not read"));
            }
            Purpose::Bind => {
                return self
                    .notes
                    .push(format!("{said} is a bind mount and is not repeated there"));
            }
            Purpose::Stacked => {
                return self.notes.push(format!(
                    "{said} is made of other files ({}) and is not read",
                    line.kind
                ));
            }
            Purpose::Disk => {}
        }
        let device = line.device();
        let found = self.disks.find(|n| self.disks.is_device(n, &device));
        if at.is_root() {
            if !found.is_empty() && !found.contains(&self.root) {
                self.notes.push(format!(
                    "{said} is another filesystem than the one that is read as the root"
                ));
            }
            return;
        }
        if !line.is_mounted() {
            return self
                .notes
                .push(format!("{said} is not mounted at boot (noauto) and is not read"));
        }
        // Boot loaders on FAT are no loss for a container.
        let boot = [b"/boot".as_slice(), b"/boot/efi", b"/efi"].contains(&at.as_bytes());
        let Some(part) = found.first().copied() else {
            let what = "is on none of the disks given";
            if line.has("nofail") || boot && line.kind == "vfat" {
                self.notes.push(format!("{said} {what}"));
            } else {
                self.problem(at, format!("{spec}, which /etc/fstab mounts here, {what}"));
            }
            return;
        };
        if found.len() > 1 {
            self.notes.push(format!(
                "{said} fits {} filesystems, the first is read",
                found.len()
            ));
        }
        let Some(Part {
            device,
            kind,
            filesystem,
            ..
        }) = self.disks.parts.get(part)
        else {
            return;
        };
        let failed = match filesystem {
            Opened::Listed { .. } => None,
            Opened::Failed(e) => Some(e.to_string()),
            Opened::Unknown | Opened::Member(_) => Some("no filesystem that is known".to_owned()),
        };
        match failed {
            None => match self.resolve(at) {
                Ok(_) if self.mounted.len() >= MAX_MOUNTS => {
                    self.problem(
                        at,
                        format!("{spec}: more than {MAX_MOUNTS} filesystems are mounted"),
                    );
                }
                Ok(at) => match self.view(part, line) {
                    Ok(view) => self.mount(part, view, at),
                    Err(what) if what.is_empty() => self.notes.push(format!(
                        "{said} is the subvolume that is mounted already and is not repeated there"
                    )),
                    Err(what) => {
                        self.problem(&at, format!("{spec}, which /etc/fstab mounts here: {what}"));
                    }
                },
                Err(what) => self.problem(at, format!("{spec} cannot be mounted here: {what}")),
            },
            Some(_) if boot && *kind == Some("vfat") => {
                self.notes
                    .push(format!("{device} (vfat), mounted at {at}, is not read"));
            }
            Some(what) => {
                let what = format!("{device}, which /etc/fstab mounts here, cannot be read: {what}");
                self.problem(at, what);
            }
        }
    }

    fn problem(&mut self, at: &GuestPath, what: String) {
        self.problems.push(Problem {
            path: at.clone(),
            what,
        });
    }

    /// Where a mount point is once the symbolic links on the way are followed inside the tree. What is missing of it is
    /// made, as systemd does.
    fn resolve(&self, at: &GuestPath) -> Result<GuestPath, &'static str> {
        let mut there = at.clone();
        let mut missing = Vec::new();
        let mut found = loop {
            if let Ok(found) = self.tree.resolve(&there, true) {
                break found;
            }
            if self.tree.get(&there).is_some() {
                return Err("a symbolic link on the way leads nowhere");
            }
            missing.push(there.name().to_vec());
            there = there.parent().ok_or("there is no root")?;
        };
        if !self.tree.get(&found).is_some_and(crate::tree::Node::is_dir) {
            return Err("it is no directory");
        }
        for name in missing.iter().rev() {
            found = found.join(name).map_err(|_| "it is no path")?;
        }
        Ok(found)
    }

    /// The subvolume that a line asks for, of a filesystem that has such; what is mounted already is not repeated below
    /// it. The error is empty if it is itself mounted already.
    fn view(&self, part: usize, line: &Line) -> Result<Option<Box<dyn Filesystem>>, String> {
        let Some(Part {
            filesystem: Opened::Listed { filesystem, .. },
            ..
        }) = self.disks.parts.get(part)
        else {
            return Ok(None);
        };
        if filesystem.current().is_none() {
            return Ok(None);
        }
        let same = self.mounted.iter().filter(|(n, _, _)| *n == part);
        let without: Vec<u64> = same.filter_map(|(_, _, fs)| fs.current()).collect();
        let view = View {
            subvolume: line.subvolume(),
            snapshots: self.disks.snapshots,
            without: without.clone(),
        };
        let seen = filesystem.view(&view).map_err(|e| e.to_string())?;
        if seen.current().is_some_and(|id| without.contains(&id)) {
            return Err(String::new());
        }
        Ok(Some(seen))
    }

    /// Mounts a volume's filesystem, or the given view of it, at `at`.
    fn mount(&mut self, part: usize, view: Option<Box<dyn Filesystem>>, at: GuestPath) {
        let number = u32::try_from(self.mounted.len()).unwrap_or(u32::MAX);
        let Some(Part {
            filesystem:
                Opened::Listed {
                    filesystem,
                    info,
                    listing,
                },
            device,
            ..
        }) = self.disks.parts.get_mut(part)
        else {
            return;
        };
        // The listing moves into the tree; what is mounted twice is listed twice.
        let taken = match &view {
            Some(_) => Listing {
                tree: Tree::default(),
                problems: Vec::new(),
            },
            None => Listing {
                tree: std::mem::take(&mut listing.tree),
                problems: std::mem::take(&mut listing.problems),
            },
        };
        let filesystem: Arc<dyn Filesystem> = match view {
            Some(view) => Arc::from(view),
            None => Arc::clone(filesystem),
        };
        let listing = if taken.tree.is_empty() {
            match filesystem.list() {
                Ok(listing) => {
                    for note in filesystem.info().notes {
                        let note = format!("{device}: {note}");
                        if !self.notes.contains(&note) {
                            self.notes.push(note);
                        }
                    }
                    listing
                }
                Err(e) => {
                    let what = format!("{device}, which /etc/fstab mounts here, cannot be read: {e}");
                    return self.problem(&at, what);
                }
            }
        } else {
            self.notes
                .extend(info.notes.iter().map(|n| format!("{device}: {n}")));
            taken
        };
        let tree = listing.tree.in_fs(number);
        self.problems
            .extend(listing.problems.into_iter().map(|p| Problem {
                path: at.graft(&p.path),
                what: p.what,
            }));
        self.tree = if at.is_root() {
            tree
        } else {
            std::mem::take(&mut self.tree).mount(&at, tree)
        };
        self.mounted.push((part, at, filesystem));
    }

    pub(super) fn finish(self) -> Machine {
        let mut infos = Vec::new();
        for (n, part) in self.disks.parts.into_iter().enumerate() {
            let at = self
                .mounted
                .iter()
                .find(|(p, _, _)| *p == n)
                .map(|(_, at, _)| at.to_string());
            let (kind, used) = match part.filesystem {
                Opened::Listed { info, .. } => (Some(info.kind), info.used),
                _ => (part.kind.map(str::to_owned), None),
            };
            if let Some(kind) = kind {
                infos.push(FilesystemInfo {
                    kind,
                    device: part.device,
                    uuid: part.identity.uuid,
                    label: part.identity.label,
                    size: part.size,
                    used,
                    mounted: at,
                });
            }
        }
        // Which files there are depends on the subvolume too, and on what is walked into.
        let mut seen = self.root.to_string();
        let root = self.mounted.first().and_then(|(_, _, fs)| fs.current());
        if let Some(subvolume) = root {
            seen += &format!("-{subvolume}-{}", self.disks.snapshots);
        }
        let filesystems = self.mounted.into_iter().map(|(_, _, fs)| fs).collect();
        Machine {
            name: self.disks.name,
            tree: self.tree,
            problems: self.problems,
            notes: self.notes,
            identity: self.disks.identity.map(|id| format!("{id}-{seen}")),
            infos,
            filesystems,
        }
    }
}
