//! A machine's disks as one tree of files, put together the way the machine mounts them.
//!
//! disk files -> volumes -> filesystems -> the one that holds the operating system, with the others where its
//! `/etc/fstab` mounts them.

use super::fstab::{self, Device, Line, Purpose};
use super::{FilesystemInfo, Source};
use crate::disk::{self, Gate};
use crate::error::{Error, Escaped, HintExt, Result};
use crate::fs::{self, Filesystem, Listing};
use crate::path::GuestPath;
use crate::progress::Progress;
use crate::read_at::{ReadAt, read_all};
use crate::tree::{FileId, Problem, Tree};
use crate::volume;
use anyhow::Context;
use std::path::PathBuf;
use std::sync::Arc;

/// How a machine is opened.
#[derive(Debug, Clone, Default)]
pub struct MachineOptions {
    /// Which filesystem holds the operating system (`--root`): `disk.qcow2:1`, a partition's number, a UUID, a label;
    /// `None` finds it.
    pub root: Option<String>,
    /// Directories that images may open further files in (`--allow-backing`).
    pub allow_backing: Vec<PathBuf>,
}

/// A volume of one of the machine's disks.
struct Part {
    /// The disk's name and the volume's: `web.qcow2 partition 1`.
    device: String,
    /// The disk's name, which is unique among the machine's disks.
    disk_name: String,
    /// The disk's place among the machine's disks.
    disk: usize,
    /// The partition's number; `None` for a whole disk.
    number: Option<u32>,
    partuuid: Option<String>,
    partlabel: Option<String>,
    /// What it holds, as [`fs::recognise`] names it.
    kind: Option<&'static str>,
    size: u64,
    filesystem: Opened,
}

/// A filesystem that is open and listed, or why it is not.
enum Opened {
    Listed {
        filesystem: Box<dyn Filesystem>,
        info: fs::Info,
        listing: Listing,
    },
    Failed(Error),
    /// Nothing is recognised there.
    Unknown,
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
    /// mean equal contents under equal file ids. `None` if a change might not show ([`Gate::identity`]).
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    fn assemble(
        disks: Disks,
        options: &MachineOptions,
        progress: &dyn Progress,
        system: bool,
    ) -> anyhow::Result<Self> {
        let root = disks.root(options.root.as_deref(), system)?;
        let identity = disks.identity.as_ref().map(|id| format!("{id}-{root}"));
        let mut machine = Mounts::new(disks, root).finish();
        machine.identity = identity;
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

/// All volumes of all disks.
struct Disks {
    name: String,
    identity: Option<String>,
    parts: Vec<Part>,
    notes: Vec<String>,
}

impl Disks {
    fn open(paths: &[PathBuf], options: &MachineOptions, progress: &dyn Progress) -> anyhow::Result<Self> {
        let gate = Gate::new(&options.allow_backing)?;
        let names = names(paths);
        let mut all = Self {
            name: names.join("+"),
            identity: None,
            parts: Vec::new(),
            notes: Vec::new(),
        };
        for (disk, (path, name)) in paths.iter().zip(&names).enumerate() {
            let opened = disk::open(path, &gate)?;
            let mut table =
                volume::table(&opened.data).with_context(|| format!("reading the partitions of {name}"))?;
            let recognised = |v: &volume::Volume| fs::recognise(&*v.data).is_some();
            // A filesystem on the whole disk may begin with bytes that look like a partition table.
            let whole = volume::whole(&opened.data);
            if table.kind != "none" && !table.volumes.iter().any(recognised) && recognised(&whole) {
                table.volumes = vec![whole];
                table.notes.clear();
            }
            let notes = opened.notes.iter().chain(&table.notes);
            all.notes.extend(notes.map(|n| format!("{name}: {n}")));
            for volume in table.volumes {
                all.parts.push(Part::open(disk, name, volume, progress));
            }
        }
        all.identity = gate.identity();
        if all.parts.is_empty() && !paths.is_empty() {
            return Err(Error::unsupported(format!("{}: the partition table is empty", all.name)).into());
        }
        if all.parts.iter().all(|p| p.number.is_none() && p.kind.is_none()) {
            return Err(Error::unsupported(format!(
                "{} holds no partition table and no filesystem that is known",
                all.name
            ))
            .into());
        }
        Ok(all)
    }

    /// The volume that holds the operating system, or that the user wants to see.
    fn root(&self, asked: Option<&str>, system: bool) -> anyhow::Result<usize> {
        if let Some(asked) = asked {
            return self.asked(asked, system);
        }
        let systems: Vec<usize> = (0..self.parts.len()).filter(|n| self.has_system(*n)).collect();
        let mounted_by_another = |n: usize| {
            let mounts = |a: usize, b: usize| a != b && self.mounts(a).contains(&b);
            systems
                .iter()
                .any(|other| mounts(*other, n) && !mounts(n, *other))
        };
        let roots: Vec<usize> = systems
            .iter()
            .copied()
            .filter(|n| !mounted_by_another(*n))
            .collect();
        match roots.as_slice() {
            [root] => return Ok(*root),
            [] => {}
            several => {
                let list = self.list(several, |n| {
                    format!("{}: {}", self.selector(n), self.system_name(n))
                });
                return Err(Error::usage(format!(
                    "{} holds more than one operating system: {list}",
                    self.name
                )))
                .hint("say which one with --root, as in --root ".to_owned() + &self.first_selector(several));
            }
        }
        let listed: Vec<usize> = (0..self.parts.len())
            .filter(|n| self.listed(*n).is_some())
            .collect();
        match (listed.as_slice(), system) {
            ([only], false) => Ok(*only),
            ([], false) => Err(self.failure().unwrap_or_else(|| self.no_system())),
            (several, false) => {
                let list = self.list(several, |n| self.describe(n));
                Err(Error::usage(format!(
                    "{} holds no operating system but several filesystems: {list}",
                    self.name
                )))
                .hint("say which one with --root, as in --root ".to_owned() + &self.first_selector(several))
            }
            (_, true) => Err(self.failure().unwrap_or_else(|| self.no_system())),
        }
    }

    /// The volume that `--root` names.
    fn asked(&self, asked: &str, system: bool) -> anyhow::Result<usize> {
        let found: Vec<usize> = (0..self.parts.len())
            .filter(|n| self.is_called(*n, asked))
            .collect();
        let all: Vec<usize> = (0..self.parts.len()).collect();
        match found.as_slice() {
            [root] => {
                let Some(part) = self.parts.get(*root) else {
                    return Err(self.no_system());
                };
                match &part.filesystem {
                    Opened::Listed { .. } if system && !self.has_system(*root) => Err(self.no_system()),
                    Opened::Listed { .. } => Ok(*root),
                    Opened::Failed(e) => Err(again(e)).with_context(|| format!("reading {}", part.device)),
                    Opened::Unknown => Err(Error::unsupported(format!(
                        "{} holds no filesystem that is known",
                        part.device
                    ))
                    .into()),
                }
            }
            found => {
                let (why, list) = match found {
                    [] => ("no filesystem", self.list(&all, |n| self.describe(n))),
                    several => (
                        "more than one filesystem",
                        self.list(several, |n| self.describe(n)),
                    ),
                };
                Err(Error::usage(format!(
                    "--root {asked} names {why} of {}: {list}",
                    self.name
                )))
                .hint("write DISK:NUMBER, a UUID or a label")
            }
        }
    }

    /// True if the user may mean this volume with `asked`.
    fn is_called(&self, n: usize, asked: &str) -> bool {
        let Some(part) = self.parts.get(n) else {
            return false;
        };
        if asked == part.device || asked == self.selector(n) {
            return true;
        }
        if let Ok(number) = asked.parse::<u32>() {
            return part.number == Some(number);
        }
        match fstab::device(asked.as_bytes()) {
            Device::Other => {
                let info = self.listed(n).map(|(info, _, _)| info);
                let same = |a: Option<&String>| a.is_some_and(|a| a == asked);
                let same_id = |a: Option<&String>| a.is_some_and(|a| a.eq_ignore_ascii_case(asked));
                same_id(info.and_then(|i| i.uuid.as_ref()))
                    || same(info.and_then(|i| i.label.as_ref()))
                    || same_id(part.partuuid.as_ref())
                    || same(part.partlabel.as_ref())
            }
            device => self.is_device(n, &device),
        }
    }

    /// True if this volume is what a line of fstab names.
    fn is_device(&self, n: usize, device: &Device) -> bool {
        let Some(part) = self.parts.get(n) else {
            return false;
        };
        let info = self.listed(n).map(|(info, _, _)| info);
        let disks = self.parts.iter().map(|p| p.disk).max().map_or(0, |d| d + 1);
        match device {
            Device::Uuid(uuid) => info
                .and_then(|i| i.uuid.as_ref())
                .is_some_and(|u| u.eq_ignore_ascii_case(uuid)),
            Device::Label(label) => info.and_then(|i| i.label.as_ref()) == Some(label),
            Device::PartUuid(uuid) => part
                .partuuid
                .as_ref()
                .is_some_and(|u| u.eq_ignore_ascii_case(uuid)),
            Device::PartLabel(label) => part.partlabel.as_ref() == Some(label),
            Device::Disk { index, number } => {
                part.number == *number && index.map_or(disks == 1, |index| index == part.disk)
            }
            Device::Other => false,
        }
    }

    fn listed(&self, n: usize) -> Option<(&fs::Info, &dyn Filesystem, &Tree)> {
        match &self.parts.get(n)?.filesystem {
            Opened::Listed {
                filesystem,
                info,
                listing,
            } => Some((info, &**filesystem, &listing.tree)),
            _ => None,
        }
    }

    /// The content of a small file of one filesystem.
    fn read(&self, n: usize, path: &str) -> Option<Vec<u8>> {
        let (_, filesystem, tree) = self.listed(n)?;
        let (_, node) = tree.find(path).filter(|(_, node)| node.is_file())?;
        read_all(&*filesystem.open(node.id.ino).ok()?, 1 << 20).ok()
    }

    /// True if the filesystem is the root of a system: it has os-release (which may lead to /usr on another filesystem)
    /// or an older file of that kind, or both an fstab and programs.
    fn has_system(&self, n: usize) -> bool {
        let Some((_, _, tree)) = self.listed(n) else {
            return false;
        };
        let has = |path: &str| GuestPath::lenient(path.as_bytes()).is_ok_and(|p| tree.get(&p).is_some());
        let release = || {
            GuestPath::lenient(b"/etc").is_ok_and(|etc| {
                tree.children(&etc).any(|(p, n)| {
                    !n.is_dir()
                        && [b"-release".as_slice(), b"_version"]
                            .iter()
                            .any(|e| p.name().ends_with(e))
                })
            })
        };
        has("/etc/os-release")
            || has("/usr/lib/os-release")
            || (has("/bin") || has("/usr")) && (release() || has("/etc/fstab"))
    }

    /// What os-release calls the system.
    fn system_name(&self, n: usize) -> String {
        let text = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| self.read(n, path))
            .unwrap_or_default();
        let value = |key: &[u8]| {
            text.split(|b| *b == b'\n')
                .find_map(|line| line.strip_prefix(key))
                .map(|v| {
                    Escaped(v.trim_ascii())
                        .to_string()
                        .trim_matches(['"', '\''])
                        .to_owned()
                })
        };
        value(b"PRETTY_NAME=")
            .or_else(|| value(b"NAME="))
            .unwrap_or_else(|| "a system without os-release".to_owned())
    }

    /// The lines of the filesystem's `/etc/fstab`.
    fn fstab(&self, n: usize) -> Vec<Line> {
        self.read(n, "/etc/fstab")
            .map(|t| fstab::parse(&t))
            .unwrap_or_default()
    }

    /// The volumes that the fstab of `n` mounts somewhere below its root.
    fn mounts(&self, n: usize) -> Vec<usize> {
        let lines = self.fstab(n);
        let below = lines
            .iter()
            .filter(|l| l.purpose() == Purpose::Disk && l.file != b"/");
        below
            .filter_map(|l| (0..self.parts.len()).find(|p| self.is_device(*p, &l.device())))
            .collect()
    }

    /// How the user names this volume in `--root`.
    fn selector(&self, n: usize) -> String {
        self.parts.get(n).map_or_else(String::new, |p| match p.number {
            Some(number) => format!("{}:{number}", p.disk_name),
            None => p.disk_name.clone(),
        })
    }

    fn first_selector(&self, parts: &[usize]) -> String {
        parts.first().map_or_else(String::new, |n| self.selector(*n))
    }

    fn list(&self, parts: &[usize], show: impl Fn(usize) -> String) -> String {
        parts.iter().map(|n| show(*n)).collect::<Vec<_>>().join("; ")
    }

    /// `web.qcow2:1 ext4 "data", 512 MiB`.
    fn describe(&self, n: usize) -> String {
        let Some(part) = self.parts.get(n) else {
            return String::new();
        };
        let info = self.listed(n).map(|(info, _, _)| info);
        let kind = info.map(|i| i.kind.as_str()).or(part.kind).unwrap_or("unknown");
        let label = info.and_then(|i| i.label.as_ref()).filter(|l| !l.is_empty());
        let label = label.map_or_else(String::new, |l| format!(" \"{}\"", Escaped(l.as_bytes())));
        format!("{} {kind}{label}, {}", self.selector(n), size(part.size))
    }

    /// The first filesystem that failed, if there is one: it may be the one that was looked for.
    fn failure(&self) -> Option<anyhow::Error> {
        let fatal = |p: &&Part| matches!(&p.filesystem, Opened::Failed(e) if e.code() != crate::error::code::UNSUPPORTED);
        let part = self.parts.iter().find(fatal)?;
        let Opened::Failed(e) = &part.filesystem else {
            return None;
        };
        Some(anyhow::Error::from(again(e)).context(format!("reading {}", part.device)))
    }

    fn no_system(&self) -> anyhow::Error {
        let all: Vec<usize> = (0..self.parts.len()).collect();
        let list = self.list(&all, |n| self.describe(n));
        let kind = |kind: &str| self.parts.iter().any(|p| p.kind == Some(kind));
        let windows = if kind("ntfs") || kind("BitLocker") {
            ", this looks like a Windows disk (NTFS)"
        } else {
            ""
        };
        let not_read: Vec<String> = self
            .parts
            .iter()
            .filter_map(|p| match &p.filesystem {
                Opened::Failed(e) => Some(format!("{} cannot be read: {e}", p.device)),
                _ => None,
            })
            .collect();
        let error = Error::unsupported(
            [format!(
                "no operating system found in {}{windows}: {list}",
                self.name
            )]
            .into_iter()
            .chain(not_read)
            .collect::<Vec<_>>()
            .join("; "),
        );
        if (0..self.parts.len()).any(|n| self.listed(n).is_some()) {
            error
                .hint("`vm2k ls` and `vm2k cat` read a filesystem without an operating system too")
                .into()
        } else {
            error.into()
        }
    }
}

impl Part {
    fn open(disk: usize, disk_name: &str, volume: volume::Volume, progress: &dyn Progress) -> Self {
        let device = match volume.number {
            Some(_) => format!("{disk_name} {}", volume.name),
            None => disk_name.to_owned(),
        };
        let kind = fs::recognise(&*volume.data);
        let filesystem = match kind {
            None => Opened::Unknown,
            Some(_) => {
                let _stage = progress.stage(&format!("listing {device}"), None);
                Self::list(&volume).unwrap_or_else(Opened::Failed)
            }
        };
        Self {
            device,
            disk_name: disk_name.to_owned(),
            disk,
            number: volume.number,
            partuuid: volume.partuuid,
            partlabel: volume.partlabel,
            kind,
            size: volume.data.len(),
            filesystem,
        }
    }

    fn list(volume: &volume::Volume) -> Result<Opened> {
        let filesystem = fs::open(Arc::clone(&volume.data))?;
        let listing = filesystem.list()?;
        Ok(Opened::Listed {
            info: filesystem.info(),
            filesystem,
            listing,
        })
    }
}

/// The tree while filesystems are mounted into it.
struct Mounts {
    disks: Disks,
    root: usize,
    tree: Tree,
    problems: Vec<Problem>,
    notes: Vec<String>,
    /// Which volume has each filesystem number, and where it is mounted.
    mounted: Vec<(usize, GuestPath)>,
}

impl Mounts {
    fn new(mut disks: Disks, root: usize) -> Self {
        let lines = disks.fstab(root);
        let mut mounts = Self {
            notes: std::mem::take(&mut disks.notes),
            disks,
            root,
            tree: Tree::default(),
            problems: Vec::new(),
            mounted: Vec::new(),
        };
        mounts.mount(root, GuestPath::root());
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
        let found: Vec<usize> = (0..self.disks.parts.len())
            .filter(|n| self.disks.is_device(*n, &device))
            .collect();
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
        let Some(part) = found.first().copied() else {
            let what = "is on none of the disks given";
            if line.has("nofail") {
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
            Opened::Unknown => Some("no filesystem that is known".to_owned()),
        };
        match failed {
            None => match self.resolve(at) {
                Ok(at) => self.mount(part, at),
                Err(what) => self.problem(at, format!("{spec} cannot be mounted here: {what}")),
            },
            // Boot loaders on FAT are no loss for a container.
            Some(_)
                if *kind == Some("vfat")
                    && [b"/boot".as_slice(), b"/boot/efi", b"/efi"].contains(&at.as_bytes()) =>
            {
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
    fn resolve(&self, at: &GuestPath) -> std::result::Result<GuestPath, &'static str> {
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

    fn mount(&mut self, part: usize, at: GuestPath) {
        let number = u32::try_from(self.mounted.len()).unwrap_or(u32::MAX);
        let Some(Part {
            filesystem: Opened::Listed { info, listing, .. },
            device,
            ..
        }) = self.disks.parts.get(part)
        else {
            return;
        };
        self.notes
            .extend(info.notes.iter().map(|n| format!("{device}: {n}")));
        let tree = listing.tree.clone().in_fs(number);
        self.problems.extend(listing.problems.iter().map(|p| Problem {
            path: at.graft(&p.path),
            what: p.what.clone(),
        }));
        self.tree = if at.is_root() {
            tree
        } else {
            std::mem::take(&mut self.tree).mount(&at, tree)
        };
        self.mounted.push((part, at));
    }

    fn finish(self) -> Machine {
        let mut opened: Vec<Option<Arc<dyn Filesystem>>> = Vec::new();
        let mut infos = Vec::new();
        for (n, part) in self.disks.parts.into_iter().enumerate() {
            let at = self
                .mounted
                .iter()
                .find(|(p, _)| *p == n)
                .map(|(_, at)| at.to_string());
            let (filesystem, info) = match part.filesystem {
                Opened::Listed { filesystem, info, .. } => (Some(Arc::from(filesystem)), info),
                _ => (None, fs::Info::default()),
            };
            let kind = match filesystem {
                Some(_) => Some(info.kind),
                None => part.kind.map(str::to_owned),
            };
            opened.push(filesystem);
            if let Some(kind) = kind {
                infos.push(FilesystemInfo {
                    kind,
                    device: part.device,
                    uuid: info.uuid,
                    label: info.label,
                    size: part.size,
                    used: info.used,
                    mounted: at,
                });
            }
        }
        let filesystems = self
            .mounted
            .iter()
            .filter_map(|(part, _)| opened.get(*part)?.clone())
            .collect();
        Machine {
            name: self.disks.name,
            tree: self.tree,
            problems: self.problems,
            notes: self.notes,
            identity: None,
            infos,
            filesystems,
        }
    }
}

/// What people call each disk: its file name, or its whole path if two have the same.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let short = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let unique = |p: &PathBuf| paths.iter().filter(|q| q.file_name() == p.file_name()).count() == 1;
    paths
        .iter()
        .map(|p| {
            short(p)
                .filter(|_| unique(p))
                .unwrap_or_else(|| p.display().to_string())
        })
        .collect()
}

/// An error of the same kind that can be given out once more.
fn again(e: &Error) -> Error {
    match e {
        Error::Corrupt { what, at } => Error::corrupt(what.clone(), *at),
        Error::Io { source, .. } => Error::io(e.to_string(), std::io::Error::from(source.kind())),
        Error::Refused { what } => Error::refused(what.clone()),
        Error::Hinted { source, hint } => match source.downcast_ref::<Error>() {
            Some(inner) => again(inner).hint(hint.clone()),
            None => Error::unsupported(e.to_string()),
        },
        _ => Error::unsupported(e.to_string()),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=1_048_575 => format!("{bytes} bytes"),
        1_048_576..=10_737_418_239 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}
