//! What a machine is: system, packages, services, users, data, secrets. Taken once from a source, then only read.

mod base;
pub mod command;
pub mod data;
pub mod fitness;
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
use crate::error::Result;
use crate::pkgdb::{self, Alternative, Owners, Package, StatOverride};
use crate::source::{FilesystemInfo, Source};
use crate::tree::Problem;
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
    /// The services that are no part of the base system, by name.
    pub fn applications(&self) -> impl Iterator<Item = &services::Service> {
        self.services.iter().filter(|s| !s.base)
    }
}

/// Takes the inventory of a machine.
///
/// A package database that cannot be read does not end the work: `packages` is `None` then, and `database_failure`
/// says why.
///
/// # Errors
/// As the source's reader, where the file that was asked for cannot be read at all.
pub fn take(source: &dyn Source, distros: &Distros) -> Result<Inventory> {
    let mut inventory = Inventory {
        name: source.name(),
        os: os::read(source, distros)?,
        hostname: os::hostname(source)?,
        filesystems: source.filesystems().to_vec(),
        problems: source.problems().to_vec(),
        ..Inventory::default()
    };
    take_packages(source, distros, &mut inventory);
    check_architecture(source, &mut inventory)?;
    let packages = inventory.packages.as_deref().unwrap_or_default();
    inventory.owners = pkgdb::owners(source.tree(), packages);
    let distro = inventory.os.distro.as_deref();
    let started = services::find(source, distros, distro, packages, &inventory.owners)?;
    inventory.secrets = secrets::Rules::new(distros)?.find(source.tree(), packages, &inventory.owners);
    inventory.services = started.services;
    inventory.timers = started.timers;
    inventory.ports = started.ports;
    let (users, bad) = users::read(source)?;
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
    inventory.fitness = fitness::find(source, &inventory, &base, &fitness::today())?;
    Ok(inventory)
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
                path: crate::path::GuestPath::root(),
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
fn check_architecture(source: &dyn Source, inventory: &mut Inventory) -> Result<()> {
    if inventory.database != Some(pkgdb::dpkg::NAME) {
        return Ok(());
    }
    let packages = inventory.packages.as_deref().unwrap_or_default();
    let Some(native) = pkgdb::dpkg::native_arch(source, packages)? else {
        return Ok(());
    };
    let stated = pkgdb::dpkg::oci_arch(&native);
    match (inventory.os.arch, stated) {
        (None, Some(stated)) => inventory.os.arch = Some(stated),
        (Some(seen), Some(stated)) if seen.architecture != stated.architecture => {
            inventory.notes.push(format!(
                "the programs are of {seen}, dpkg's own architecture is {native}"
            ));
        }
        // The header of a program tells the ABI only, the database the instruction set that was chosen for it.
        (Some(_), Some(stated)) => inventory.os.arch = Some(stated),
        _ => {}
    }
    Ok(())
}
