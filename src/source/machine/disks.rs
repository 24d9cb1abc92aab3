//! The volumes of a machine's disks, and which of them holds the operating system.

use super::MachineOptions;
use super::subvolumes::{self, Role};
use crate::disk::{self, AttachedDisk, Disk, Gate};
use crate::error::{Error, Escaped, HintExt, Result};
use crate::fs::identity::{Identity, identity};
use crate::fs::{self, Filesystem, Listing, Subvolume, View};
use crate::path::GuestPath;
use crate::progress::Progress;
use crate::read_at::{ReadAt, read_all};
use crate::source::fstab::{self, Device, Line, Purpose};
use crate::tree::Tree;
use crate::volume;
use crate::volume::assemble::{self, Block, Container};
use anyhow::Context;
use std::path::PathBuf;
use std::sync::Arc;

/// A volume of one of the machine's disks.
pub(super) struct Part {
    /// The disk's name and the volume's: `web.qcow2 partition 1`.
    pub(super) device: String,
    /// What the user calls it: `web.qcow2:1`, `/dev/vg/root`.
    selector: String,
    /// What the machine itself calls it, below `/dev/`; nothing for disks and partitions.
    pub(super) paths: Vec<String>,
    /// The disk's place among the machine's disks; `None` for what lies on no single one.
    pub(super) disk: Option<usize>,
    /// The partition's number; `None` for a whole disk.
    pub(super) number: Option<u32>,
    pub(super) partuuid: Option<String>,
    pub(super) partlabel: Option<String>,
    /// An older state of another volume: it is meant only where its name is given.
    snapshot: bool,
    /// The encrypted volume that it is the inside of.
    pub(super) container: Option<Container>,
    /// UUID and label, of filesystems that are not read too.
    pub(super) identity: Identity,
    /// What it holds, as [`fs::recognise`] names it.
    pub(super) kind: Option<&'static str>,
    pub(super) size: u64,
    pub(super) filesystem: Opened,
    /// The subvolumes to choose from, if several hold a system.
    systems: Vec<Subvolume>,
}

/// A filesystem that is open and listed, or why it is not.
pub(super) enum Opened {
    Listed {
        filesystem: Arc<dyn Filesystem>,
        info: fs::Info,
        listing: Listing,
    },
    /// A further device of the filesystem that begins on the part with this number.
    Member(usize),
    Failed(Error),
    /// Nothing is recognised there.
    Unknown,
}

/// All volumes of all disks.
pub(super) struct Disks {
    pub(super) name: String,
    /// [`Gate::identity`] of all disks.
    pub(super) identity: Option<String>,
    pub(super) parts: Vec<Part>,
    pub(super) notes: Vec<String>,
    /// True if snapshots are walked into.
    pub(super) snapshots: bool,
    /// How many disks there are.
    count: usize,
}

impl Disks {
    pub(super) fn open(
        paths: &[PathBuf],
        options: &MachineOptions,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let gate = Gate::new(&options.allow_backing)?;
        let names = names(paths);
        let mut all = Self {
            name: names.join("+"),
            identity: None,
            parts: Vec::new(),
            notes: Vec::new(),
            snapshots: options.snapshots,
            count: 0,
        };
        let mut disks: Vec<(String, Disk)> = Vec::new();
        for (path, name) in paths.iter().zip(&names) {
            let machine = disk::open_machine(path, &gate, progress)?;
            let hardware = machine.hardware.notes().into_iter();
            all.notes.extend(hardware.map(|n| format!("{name}: {n}")));
            for AttachedDisk { name: own, disk } in machine.disks {
                let full = if own.is_empty() {
                    name.clone()
                } else {
                    format!("{name}/{own}")
                };
                // Two disks of one archive may be in one file.
                let again = disks.iter().filter(|(n, _)| *n == full).count();
                let full = if again == 0 {
                    full
                } else {
                    format!("{full}#{}", again + 1)
                };
                disks.push((full, disk));
            }
        }
        all.count = disks.len();
        let mut blocks = Vec::new();
        for (disk, (name, opened)) in disks.iter().enumerate() {
            let whole = volume::whole(&opened.data);
            let recognised = |v: &volume::Volume| fs::recognise(&*v.data).is_some();
            // The partitions of a RAID's members are those of the RAID.
            let mut table = match assemble::owner(&*opened.data) {
                Some(_) => volume::Table::none(whole.clone()),
                None => volume::table(&opened.data)
                    .with_context(|| format!("reading the partitions of {name}"))?,
            };
            // A filesystem on the whole disk may begin with bytes that look like a partition table.
            if table.kind != "none" && !table.volumes.iter().any(recognised) && recognised(&whole) {
                table = volume::Table::none(whole);
            }
            let notes = opened.notes.iter().chain(&table.notes);
            all.notes.extend(notes.map(|n| format!("{name}: {n}")));
            let volumes = table.volumes.into_iter();
            blocks.extend(volumes.map(|v| Block::of_disk(disk, name, v)));
        }
        all.identity = gate.identity();
        let assembly = assemble::assemble(blocks, &options.keys, |v| fs::recognise(v).is_some());
        all.notes.extend(assembly.notes);
        // An older state of a filesystem is no device of it.
        let nothing: Arc<dyn ReadAt> = Arc::new(Vec::new());
        let shown = |b: &Block| match b.snapshot || b.failed.is_some() {
            true => Arc::clone(&nothing),
            false => Arc::clone(&b.volume.data),
        };
        let data: Vec<Arc<dyn ReadAt>> = assembly.blocks.iter().map(shown).collect();
        for (block, role) in assembly.blocks.into_iter().zip(subvolumes::roles(&data)) {
            // What is opened by a key is another machine than what is not.
            if let (Some(identity), Some(container)) = (&mut all.identity, &block.container) {
                *identity = format!("{identity}-{}", container.uuid);
            }
            let disk_name = block.disk.and_then(|d| disks.get(d)).map(|(name, _)| name);
            let selector = match (disk_name, block.volume.number) {
                (Some(disk), Some(number)) => format!("{disk}:{number}"),
                (Some(disk), None) => disk.clone(),
                (None, _) => block.device.clone(),
            };
            let part = Part::open(block, selector, (&role, &data), options, progress);
            if let Opened::Failed(e) = &part.filesystem
                && (part.disk.is_none() || part.is_locked())
            {
                all.notes.push(format!("{}: {e}", part.device));
            }
            all.parts.push(part);
        }
        if all.parts.is_empty() && !paths.is_empty() {
            return Err(Error::unsupported(format!("{}: the partition table is empty", all.name)).into());
        }
        let unknown = |p: &Part| p.disk.is_some() && p.number.is_none() && p.kind.is_none();
        if all.parts.iter().all(unknown) {
            return Err(Error::unsupported(format!(
                "{} holds no partition table and no filesystem that is known",
                all.name
            ))
            .into());
        }
        Ok(all)
    }

    /// The volume that holds the operating system, or that the user wants to see.
    pub(super) fn root(&mut self, asked: Option<&str>, system: bool) -> anyhow::Result<usize> {
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
            [root] if self.systems(*root).is_empty() => return Ok(*root),
            [] => {}
            several => {
                // A filesystem may hold several in its subvolumes.
                let list: Vec<(String, String)> = several.iter().flat_map(|n| self.candidates(*n)).collect();
                let text: Vec<String> = list.iter().map(|(s, name)| format!("{s}: {name}")).collect();
                let first = list.first().map_or("", |(selector, _)| selector);
                return Err(Error::usage(format!(
                    "{} holds more than one operating system: {}",
                    self.name,
                    text.join("; ")
                )))
                .hint(format!("say which one with --root, as in --root {first}"));
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

    /// The volumes that `called` accepts; a further device of a filesystem counts as its first.
    pub(super) fn find(&self, called: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        for n in (0..self.parts.len()).filter(|n| called(*n)) {
            let main = match self.parts.get(n).map(|p| &p.filesystem) {
                Some(Opened::Member(main)) => *main,
                _ => n,
            };
            if !found.contains(&main) {
                found.push(main);
            }
        }
        found
    }

    fn systems(&self, n: usize) -> &[Subvolume] {
        self.parts.get(n).map_or(&[], |p| &p.systems)
    }

    /// How `--root` names each system on a volume, and what it is.
    fn candidates(&self, n: usize) -> Vec<(String, String)> {
        let selector = self.selector(n);
        match self.systems(n) {
            [] => vec![(selector, self.system_name(n))],
            several => several
                .iter()
                .map(|s| {
                    let path = Escaped(&s.path).to_string();
                    (format!("{selector}:{path}"), format!("subvolume {}", s.id))
                })
                .collect(),
        }
    }

    /// The volume that `--root` names; a subvolume behind it is what the volume shows from then on.
    fn asked(&mut self, asked: &str, system: bool) -> anyhow::Result<usize> {
        let mut found = self.find(|n| self.is_called(n, asked));
        if found.is_empty() {
            for (at, _) in asked.rmatch_indices(':') {
                let (volume, subvolume) = (asked.get(..at), asked.get(at + 1..));
                let (Some(volume), Some(subvolume)) = (volume, subvolume) else {
                    continue;
                };
                let named = self.find(|n| {
                    self.is_called(n, volume)
                        && self.listed(n).is_some_and(|(_, fs, _)| fs.current().is_some())
                });
                if let [one] = named.as_slice() {
                    self.show(*one, subvolume)?;
                    found = named;
                    break;
                }
            }
        }
        let all: Vec<usize> = (0..self.parts.len()).collect();
        match found.as_slice() {
            [root] => {
                let Some(part) = self.parts.get(*root) else {
                    return Err(self.no_system());
                };
                match &part.filesystem {
                    Opened::Listed { .. } if system && !self.has_system(*root) => Err(self.no_system()),
                    Opened::Listed { .. } => Ok(*root),
                    Opened::Failed(e) => Err(e.again()).with_context(|| format!("reading {}", part.device)),
                    Opened::Unknown | Opened::Member(_) => Err(Error::unsupported(format!(
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
                .hint("write DISK:NUMBER, a UUID or a label; behind it :SUBVOLUME where one is meant")
            }
        }
    }

    /// Lists the filesystem of a volume from another subvolume.
    fn show(&mut self, n: usize, subvolume: &str) -> anyhow::Result<()> {
        let view = View {
            subvolume: Some(subvolumes::selector(subvolume)?),
            snapshots: self.snapshots,
            without: Vec::new(),
        };
        let Some(Part {
            filesystem:
                Opened::Listed {
                    filesystem,
                    info,
                    listing,
                },
            systems,
            device,
            ..
        }) = self.parts.get_mut(n)
        else {
            return Ok(());
        };
        let seen = filesystem.view(&view).map_err(|e| {
            let all = filesystem.subvolumes();
            let paths = all
                .iter()
                .filter(|s| !s.path.is_empty() && s.snapshot_of.is_none());
            let paths: Vec<String> = paths.map(|s| Escaped(&s.path).to_string()).take(20).collect();
            e.hint(format!("{device} has the subvolumes {}", paths.join(", ")))
        })?;
        *listing = seen.list()?;
        *info = seen.info();
        *filesystem = Arc::from(seen);
        systems.clear();
        Ok(())
    }

    /// True if the user may mean this volume with `asked`.
    fn is_called(&self, n: usize, asked: &str) -> bool {
        let Some(part) = self.parts.get(n) else {
            return false;
        };
        if asked == part.device || asked == part.selector || part.is_named(asked) {
            return true;
        }
        if part.snapshot {
            return false;
        }
        if let Ok(number) = asked.parse::<u32>() {
            return part.disk.is_some() && part.number == Some(number);
        }
        match fstab::device(asked.as_bytes()) {
            Device::Other => {
                let same = |a: Option<&String>| a.is_some_and(|a| a == asked);
                let same_id = |a: Option<&String>| a.is_some_and(|a| a.eq_ignore_ascii_case(asked));
                same_id(part.identity.uuid.as_ref())
                    || same(part.identity.label.as_ref())
                    || same_id(part.partuuid.as_ref())
                    || same(part.partlabel.as_ref())
            }
            device => self.is_device(n, &device),
        }
    }

    /// True if this volume is what a line of fstab names.
    pub(super) fn is_device(&self, n: usize, device: &Device) -> bool {
        let Some(part) = self.parts.get(n) else {
            return false;
        };
        if part.snapshot && !matches!(device, Device::Named(_)) {
            return false;
        }
        match device {
            Device::Uuid(uuid) => part
                .identity
                .uuid
                .as_ref()
                .is_some_and(|u| u.eq_ignore_ascii_case(uuid)),
            Device::Label(label) => part.identity.label.as_ref() == Some(label),
            Device::PartUuid(uuid) => part
                .partuuid
                .as_ref()
                .is_some_and(|u| u.eq_ignore_ascii_case(uuid)),
            Device::PartLabel(label) => part.partlabel.as_ref() == Some(label),
            Device::Disk { index, number } => {
                let disk = |disk| index.map_or(self.count == 1, |index| index == disk);
                part.number == *number && part.disk.is_some_and(disk)
            }
            Device::Named(name) => part.paths.contains(name),
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
    pub(super) fn read(&self, n: usize, path: &str) -> Option<Vec<u8>> {
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
        if !self.systems(n).is_empty() {
            return true;
        }
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

    /// The lines of the filesystem's `/etc/fstab`, none if there is no such file; `None` if it cannot be read.
    pub(super) fn fstab(&self, n: usize) -> Option<Vec<Line>> {
        let (_, _, tree) = self.listed(n)?;
        match tree.find("/etc/fstab") {
            None => Some(Vec::new()),
            Some(_) => self.read(n, "/etc/fstab").map(|text| fstab::parse(&text)),
        }
    }

    /// The volumes that the fstab of `n` mounts somewhere below its root.
    fn mounts(&self, n: usize) -> Vec<usize> {
        let lines = self.fstab(n).unwrap_or_default();
        let below = lines
            .iter()
            .filter(|l| l.purpose() == Purpose::Disk && l.file != b"/");
        below
            .filter_map(|l| self.find(|p| self.is_device(p, &l.device())).first().copied())
            .collect()
    }

    /// How the user names this volume in `--root`.
    fn selector(&self, n: usize) -> String {
        self.parts.get(n).map_or_else(String::new, |p| p.selector.clone())
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
        let label = part.identity.label.as_ref().filter(|l| !l.is_empty());
        let label = label.map_or_else(String::new, |l| format!(" \"{}\"", Escaped(l.as_bytes())));
        let failed = match &part.filesystem {
            Opened::Failed(e) => format!(" (not read: {e})"),
            Opened::Member(main) => format!(" (a device of {})", self.selector(*main)),
            _ => String::new(),
        };
        format!("{} {kind}{label}, {}{failed}", self.selector(n), size(part.size))
    }

    /// The first filesystem that failed, if there is one: it may be the one that was looked for.
    fn failure(&self) -> Option<anyhow::Error> {
        let fatal = |p: &&Part| matches!(&p.filesystem, Opened::Failed(e) if e.code() != crate::error::code::UNSUPPORTED);
        let part = self.parts.iter().find(fatal)?;
        let Opened::Failed(e) = &part.filesystem else {
            return None;
        };
        Some(anyhow::Error::from(e.again()).context(format!("reading {}", part.device)))
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
        let error = Error::unsupported(format!(
            "no operating system found in {}{windows}: {list}",
            self.name
        ));
        // What needs more than a key has no hint of its own.
        let wants_key =
            |p: &Part| p.is_locked() && matches!(p.filesystem, Opened::Failed(Error::Hinted { .. }));
        if self.parts.iter().any(wants_key) {
            error
                .hint("give the key or passphrase of the encrypted volume in a file with --key-file FILE")
                .into()
        } else if (0..self.parts.len()).any(|n| self.listed(n).is_some()) {
            error
                .hint("`vm2k ls` and `vm2k cat` read a filesystem without an operating system too")
                .into()
        } else {
            error.into()
        }
    }
}

impl Part {
    fn open(
        block: Block,
        selector: String,
        (role, data): (&Role, &[Arc<dyn ReadAt>]),
        options: &MachineOptions,
        progress: &dyn Progress,
    ) -> Self {
        let Block {
            device,
            paths,
            volume,
            disk,
            failed,
            snapshot,
            container,
            ..
        } = block;
        let kind = fs::recognise(&*volume.data);
        let named = |asked: &str| asked == device || is_named(&paths, asked);
        let asked = options.root.as_deref().is_some_and(named);
        let mut systems = Vec::new();
        let filesystem = match (failed, kind, role) {
            (Some(e), ..) => Opened::Failed(e),
            (None, None, _) => Opened::Unknown,
            (None, Some(_), _) if snapshot && !asked => Opened::Failed(Error::unsupported(
                "a snapshot, which is read only if --root names it",
            )),
            (None, Some(_), Role::Member(main)) => Opened::Member(*main),
            (None, Some(_), Role::Main(others)) => {
                let _stage = progress.stage(&format!("listing {device}"), None);
                let others = others.iter().filter_map(|n| data.get(*n));
                let volumes: Vec<_> = std::iter::once(&volume.data).chain(others).cloned().collect();
                Self::list(&volumes, options.snapshots, &mut systems).unwrap_or_else(Opened::Failed)
            }
        };
        let identity = match (&filesystem, kind) {
            (Opened::Listed { info, .. }, _) => Identity {
                uuid: info.uuid.clone(),
                label: info.label.clone(),
            },
            (_, Some(kind)) => identity(kind, &*volume.data),
            (_, None) => Identity::default(),
        };
        Self {
            identity,
            device,
            selector,
            paths,
            disk,
            snapshot,
            container,
            number: volume.number,
            partuuid: volume.partuuid,
            partlabel: volume.partlabel,
            kind,
            size: volume.data.len(),
            filesystem,
            systems,
        }
    }

    /// True if it is encrypted and no key opened it.
    pub(super) fn is_locked(&self) -> bool {
        self.kind == Some("crypto_LUKS")
    }

    /// True if `asked` is one of the machine's own names of it, with or without `/dev/`.
    fn is_named(&self, asked: &str) -> bool {
        is_named(&self.paths, asked)
    }

    fn list(volumes: &[Arc<dyn ReadAt>], snapshots: bool, systems: &mut Vec<Subvolume>) -> Result<Opened> {
        let chosen = subvolumes::choose(fs::open_several(volumes)?, snapshots)?;
        let listing = chosen.filesystem.list()?;
        *systems = chosen.systems;
        Ok(Opened::Listed {
            info: chosen.filesystem.info(),
            filesystem: Arc::from(chosen.filesystem),
            listing,
        })
    }
}

fn is_named(paths: &[String], asked: &str) -> bool {
    let asked = asked.strip_prefix("/dev/").unwrap_or(asked);
    paths.iter().any(|p| p == asked)
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

fn size(bytes: u64) -> String {
    match bytes {
        0..=1_048_575 => format!("{bytes} bytes"),
        1_048_576..=10_737_418_239 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}
