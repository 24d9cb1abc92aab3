//! What a machine is: system, packages, services, users, data, secrets. Taken once from a source, then only read.

mod base;
pub mod changed;
pub mod command;
pub mod data;
pub mod fitness;
pub mod live;
pub mod os;
mod scan;
pub mod secrets;
pub mod services;
pub mod unit;
pub mod users;

pub use base::BaseMatch;
pub use command::{ServiceChoice, default_cmd, default_service, service};
pub use scan::{SCHEMA, ScanDocument, scan_document};

use crate::distro::Distros;
use crate::error::{Error, Result};
use crate::live::Live;
use crate::path::GuestPath;
use crate::pkgdb::{self, Alternative, Owners, Package, StatOverride};
use crate::source::{FilesystemInfo, Source};
use crate::tree::{FileId, Node, Problem, Tree};
use os::Os;

/// Everything that is known of a machine but its files.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// What the target is called, for messages: `web.qcow2`.
    pub name: String,
    /// The operating system.
    pub os: Os,
    /// The host name; `None` if the machine does not say.
    pub hostname: Option<String>,
    /// The filesystems it is made of; none for directories and images.
    pub filesystems: Vec<FilesystemInfo>,
    /// Installed packages by name; `None` if they could not be read or there is no database, never an empty list for
    /// either.
    pub packages: Option<Vec<Package>>,
    /// The package database, as in `dpkg`.
    pub database: Option<&'static str>,
    /// Why `packages` is `None` although there is a database.
    pub database_failure: Option<DatabaseFailure>,
    /// Which package each path belongs to; indexes into `packages`.
    pub owners: Owners,
    /// Links that choose between packages.
    pub alternatives: Vec<Alternative>,
    /// Owners and modes set against the packages.
    pub stat_overrides: Vec<StatOverride>,
    /// What is started with the machine.
    pub services: Vec<services::Service>,
    /// Enabled timers.
    pub timers: Vec<String>,
    /// Where it listens; `None` if that is not known.
    pub ports: Option<Vec<services::Port>>,
    /// What the host says of itself, if it is one that runs; secrets are blanked.
    pub live: Option<Live>,
    /// Users in the order of `/etc/passwd`.
    pub users: Vec<users::User>,
    /// Directories with data that no package brought.
    pub data: Vec<data::Data>,
    /// Files that must not leave the machine.
    pub secrets: Vec<secrets::Secret>,
    /// What matters for a container.
    pub fitness: Vec<fitness::Finding>,
    /// The shell that a container without a service runs: `/bin/bash` or `/bin/sh`.
    pub shell: String,
    /// What people should know.
    pub notes: Vec<String>,
    /// What could not be read: every result must list it.
    pub problems: Vec<Problem>,
}

/// A package database that is there and could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFailure {
    /// The reason.
    pub what: String,
    /// The exit code that the error asks for.
    pub code: u8,
}

impl Inventory {
    /// The services that are no part of the base system and keep running, by name.
    pub fn applications(&self) -> impl Iterator<Item = &services::Service> {
        self.services
            .iter()
            .filter(|s| !s.base && s.kind.as_deref() != Some("oneshot"))
    }
}

/// Takes the inventory of a machine.
///
/// What cannot be read does not end the work: it becomes a problem, and what depends on it stays unknown. For a package
/// database `packages` is `None` then, and `database_failure` says why.
///
/// # Errors
/// [`Error::Usage`] if a rule of a user's distribution file makes no sense.
pub fn take(source: &dyn Source, distros: &Distros) -> Result<Inventory> {
    complete(source, distros, identify(source, distros)?)
}

/// Directories whose files [`identify`] reads, many of them: the package databases.
const DATABASES: &[&str] = &[
    "/var/lib/dpkg",
    "/var/lib/rpm",
    "/usr/lib/sysimage/rpm",
    "/var/lib/pacman/local",
    "/lib/apk/db",
    "/usr/lib/apk/db",
];
/// Files that say what the machine is and what runs on it.
const SMALL: &[&str] = &[
    "/etc/systemd",
    "/etc/init.d",
    "/etc/init",
    "/etc/default",
    "/etc/apt",
    "/etc/dnf",
    "/etc/yum.repos.d",
    "/etc/zypp/repos.d",
    "/etc/apk",
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/usr/local/lib/systemd",
    "/etc/rc.d",
];
/// Single ones.
const SINGLE: &[&str] = &[
    "/etc/os-release",
    "/usr/lib/os-release",
    "/etc/hostname",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/fstab",
    "/etc/inittab",
    "/etc/crontab",
    "/var/lib/apt/extended_states",
];

/// The files that taking an inventory will most likely read, for a source where each reading alone costs time.
pub fn needed(tree: &Tree) -> Vec<FileId> {
    let wanted = |path: &GuestPath, node: &Node| {
        let bytes = path.as_bytes();
        // Scripts of packages are not read.
        let script = bytes.starts_with(b"/var/lib/dpkg/info/")
            && !(bytes.ends_with(b".list") || bytes.ends_with(b".md5sums"));
        node.is_file() && node.size() <= 256 << 20 && !script && !bytes.ends_with(b"-old")
    };
    let dirs = DATABASES.iter().chain(SMALL);
    let dirs = dirs.filter_map(|dir| tree.find(dir)).map(|(path, _)| path);
    let mut ids: Vec<FileId> = dirs
        .flat_map(|dir| {
            let files = tree.below(&dir).filter(|(path, node)| wanted(path, node));
            files.map(|(_, node)| node.id).collect::<Vec<_>>()
        })
        .collect();
    let single = SINGLE.iter().filter_map(|path| tree.find(path));
    ids.extend(single.filter(|(_, node)| node.is_file()).map(|(_, node)| node.id));
    // Each distribution names its release in a file of its own.
    let etc = tree.find("/etc").map(|(path, _)| path);
    let releases = etc
        .iter()
        .flat_map(|etc| tree.children(etc))
        .filter(|(path, node)| {
            let name = path.name();
            node.is_file()
                && node.size() <= 64 << 10
                && (name.ends_with(b"release") || name.ends_with(b"_version"))
        });
    ids.extend(releases.map(|(_, node)| node.id));
    ids
}

/// The first half of [`take`], from which a base image can be chosen: system, architecture and packages.
///
/// # Errors
/// As [`take`].
pub fn identify(source: &dyn Source, distros: &Distros) -> Result<Inventory> {
    let mut problems = source.problems().to_vec();
    let mut inventory = Inventory {
        name: source.name(),
        os: or_default(os::read(source, distros), "/etc/os-release", &mut problems)?,
        hostname: or_default(os::hostname(source), "/etc/hostname", &mut problems)?,
        filesystems: source.filesystems().to_vec(),
        ..Inventory::default()
    };
    take_packages(source, distros, &mut inventory);
    check_architecture(source, &mut inventory);
    problems.append(&mut inventory.problems);
    inventory.problems = problems;
    Ok(inventory)
}

/// The second half of [`take`].
///
/// # Errors
/// As [`take`].
pub fn complete(source: &dyn Source, distros: &Distros, mut inventory: Inventory) -> Result<Inventory> {
    let mut problems = std::mem::take(&mut inventory.problems);
    let packages = inventory.packages.as_deref().unwrap_or_default();
    inventory.owners = pkgdb::owners(source.tree(), packages);
    let distro = inventory.os.distro.as_deref();
    let started = services::find(source, distros, distro, packages, &inventory.owners);
    let started = or_default(started, "/etc", &mut problems)?;
    problems.extend(started.problems);
    inventory.secrets = secrets::Rules::new(distros)?.find(source.tree(), packages, &inventory.owners);
    inventory.services = started.services;
    inventory.timers = started.timers;
    inventory.ports = started.ports;
    let running = or_default(source.live(live::watched()), "/proc", &mut problems)?;
    inventory.live = running.map(live::blanked);
    if let Some(running) = &inventory.live {
        inventory.ports = Some(live::ports(running));
    }
    let (users, bad) = or_default(users::read(source), "/etc/passwd", &mut problems)?;
    inventory.users = users;
    if bad > 0 {
        let note = format!("/etc/passwd has {bad} lines that are no users");
        inventory.notes.push(note);
    }
    inventory.data = data::find(source.tree(), &inventory.owners);
    inventory.shell = if source.tree().find("/bin/bash").is_some() {
        "/bin/bash".to_owned()
    } else {
        "/bin/sh".to_owned()
    };
    let base = distros.base_for(&inventory.os);
    let fitness = fitness::find(source, &inventory, &base, &fitness::today());
    inventory.fitness = or_default(fitness, "/etc/fstab", &mut problems)?;
    if let Some(running) = &inventory.live {
        inventory.fitness.extend(live::findings(running));
    }
    problems.append(&mut inventory.problems);
    inventory.problems = problems;
    Ok(inventory)
}

/// The value, or nothing and a problem at `path`. Only a user's own mistake is passed on.
fn or_default<T: Default>(result: Result<T>, path: &str, problems: &mut Vec<Problem>) -> Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(e @ Error::Usage { .. }) => Err(e),
        Err(e) => {
            problems.push(Problem {
                path: GuestPath::lenient(path.as_bytes())?,
                what: e.to_string(),
            });
            Ok(T::default())
        }
    }
}

fn take_packages(source: &dyn Source, distros: &Distros, inventory: &mut Inventory) {
    let own = inventory.os.distro.as_deref().and_then(|id| distros.get(id));
    let preferred = own.and_then(|d| distros.inherited(d, |d| d.database.as_deref()));
    match pkgdb::read(source, preferred) {
        Ok(Some((name, listing))) => {
            inventory.database = Some(name);
            inventory.packages = Some(listing.packages);
            inventory.alternatives = listing.alternatives;
            inventory.stat_overrides = listing.stat_overrides;
            inventory.notes.extend(listing.notes);
            inventory.problems.extend(listing.problems);
        }
        Ok(None) => inventory.notes.push("no package database was found".to_owned()),
        Err(e) => {
            inventory.problems.push(Problem {
                path: GuestPath::root(),
                what: e.to_string(),
            });
            inventory.database_failure = Some(DatabaseFailure {
                what: e.to_string(),
                code: e.code(),
            });
        }
    }
}

/// Lets the package database speak where no program tells the architecture, and notes where the two disagree.
fn check_architecture(source: &dyn Source, inventory: &mut Inventory) {
    let packages = inventory.packages.as_deref().unwrap_or_default();
    let database = inventory.database.unwrap_or_default();
    let Some(row) = pkgdb::Database::named(database) else {
        return;
    };
    // Where the file that states it cannot be read, the list of packages still tells.
    let native = row.native(source, packages);
    let native = native.unwrap_or_else(|_| row.arch_of(packages).map(str::to_owned));
    let Some((stated, native)) = native.and_then(|native| Some(((row.oci_arch)(&native)?, native))) else {
        return;
    };
    match inventory.os.arch {
        Some(seen) if seen.architecture != stated.architecture => inventory.notes.push(format!(
            "the programs are of {seen}, {database}'s own architecture is {native}"
        )),
        // The header of a program tells the ABI only, the database the instruction set that was chosen for it.
        _ => inventory.os.arch = Some(stated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_at::ReadAt;
    use crate::source::memory::MemorySource;
    use std::sync::Arc;

    /// A machine on a disk whose files can be listed but not read.
    struct Torn(MemorySource);

    impl Source for Torn {
        fn name(&self) -> String {
            "torn".to_owned()
        }
        fn tree(&self) -> &Tree {
            self.0.tree()
        }
        fn open(&self, _: FileId) -> Result<Arc<dyn ReadAt>> {
            Err(Error::corrupt("an extent behind the end", 7))
        }
        fn problems(&self) -> &[Problem] {
            &[]
        }
    }

    fn machine() -> crate::source::memory::Builder {
        MemorySource::new("m")
            .file("/etc/os-release", "ID=debian\nVERSION_ID=12\n")
            .file("/etc/hostname", "web\n")
            .file("/etc/passwd", "root:x:0:0::/root:/bin/bash\n")
            .file("/etc/fstab", "")
            .file("/bin/bash", crate::arch::tests::header(2, 1, 183, 0))
            .file(
                "/var/lib/dpkg/status",
                "Package: dpkg\nStatus: install ok installed\nArchitecture: arm64\nVersion: 1\n",
            )
            .file(
                "/lib/systemd/system/app.service",
                "[Service]\nExecStart=/srv/app\n",
            )
            .symlink(
                "/etc/systemd/system/multi-user.target.wants/app.service",
                "/lib/systemd/system/app.service",
            )
    }

    #[test]
    fn a_whole_machine() {
        let distros = Distros::load(None).unwrap();
        let taken = take(&machine().build(), &distros).unwrap();
        assert_eq!(taken.hostname.as_deref(), Some("web"));
        assert_eq!(taken.os.arch.unwrap().to_string(), "arm64");
        assert_eq!(taken.packages.as_ref().unwrap().len(), 1);
        assert_eq!(default_cmd(&taken), ["/srv/app"]);
        assert_eq!(service(&taken, "app.service").unwrap().cmd, ["/srv/app"]);
        let error = service(&taken, "nothing").unwrap_err();
        assert_eq!(error.code(), crate::error::code::USAGE);
    }

    #[test]
    fn architectures_that_disagree_are_noted() {
        let other = machine().file("/var/lib/dpkg/arch", "amd64\n").build();
        let taken = take(&other, &Distros::load(None).unwrap()).unwrap();
        assert_eq!(taken.os.arch.unwrap().to_string(), "arm64");
        assert!(
            taken.notes.iter().any(|n| n.contains("amd64")),
            "{:?}",
            taken.notes
        );
    }

    #[test]
    fn what_cannot_be_read_is_listed_and_unknown() {
        let taken = take(&Torn(machine().build()), &Distros::load(None).unwrap()).unwrap();
        assert!(taken.packages.is_none() && taken.hostname.is_none() && taken.os.id.is_none());
        let failure = taken.database_failure.as_ref().unwrap();
        assert_eq!(failure.code, crate::error::code::CORRUPT);
        for part in ["/etc/os-release", "/etc/hostname", "/etc/passwd", "/etc/fstab"] {
            assert!(
                taken.problems.iter().any(|p| p.path.to_string() == part),
                "{part}: {:?}",
                taken.problems
            );
        }
        assert!(taken.problems.iter().any(|p| p.what.contains("app.service")));
    }
}
