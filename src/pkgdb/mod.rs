//! Package databases: which packages a machine has, which files are theirs.
//!
//! One [`Package`] type serves all families. A database that is damaged or empty is an error with its reason, never a
//! list of no packages.

#![deny(clippy::indexing_slicing)]

pub mod alpm;
pub mod apk;
pub mod deb822;
pub mod dpkg;
pub mod dpkg_state;
pub mod order;
mod owners;
mod package;
pub mod relation;
pub mod rpm;

pub use owners::{Owners, for_each_place, owners};
pub use package::{
    Conffile, FileDigest, FileFacts, FileFlags, FileState, Md5Sum, Package, PackageFile, Relations,
    SourcePackage,
};

use crate::arch::Arch;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::Stream;
use crate::source::Source;
use crate::tree::{FileId, Problem};
use md5::{Digest, Md5};
use order::Order;
use relation::Grammar;
use std::collections::BTreeMap;
use std::io::Read;

/// What a database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Installed packages by name, then architecture.
    pub packages: Vec<Package>,
    /// What could not be read. A result built on the list must name it.
    pub problems: Vec<Problem>,
    /// What people should know: packages that are half installed, ...
    pub notes: Vec<String>,
    /// Links that choose between packages.
    pub alternatives: Vec<Alternative>,
    /// Owners and modes that the administrator set against the packages.
    pub stat_overrides: Vec<StatOverride>,
}

/// A link that leads to one of several packages' programs (update-alternatives(1)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    /// Its name, as in `editor`.
    pub name: String,
    /// False if the administrator chose.
    pub automatic: bool,
    /// The link that people use, then those of its slaves.
    pub links: Vec<GuestPath>,
    /// The targets of the master link to choose from, with their priorities.
    pub choices: Vec<(GuestPath, i64)>,
}

/// One line of dpkg-statoverride(1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatOverride {
    /// User name or `#uid`.
    pub user: String,
    /// Group name or `#gid`.
    pub group: String,
    /// Permission bits.
    pub mode: u16,
    /// The file.
    pub path: GuestPath,
}

/// A kind of package database.
pub struct Database {
    /// Its name.
    pub name: &'static str,
    /// Directories that all of its files lie below, and files outside of them that are read too.
    pub places: &'static [&'static str],
    /// True if the machine has one of this kind.
    pub probe: fn(&dyn Source) -> bool,
    /// How its versions are ordered.
    pub order: Order,
    /// How its relations are written.
    pub grammar: Grammar,
    /// Reads it. An error where it is damaged as a whole, or holds nothing.
    pub read: fn(&dyn Source) -> Result<Listing>,
    /// Files that its tools lock while they change it.
    pub locks: &'static [&'static str],
    /// The machine's own architecture in the database's words, where a file states it.
    pub stated_arch: fn(&dyn Source) -> Result<Option<String>>,
    /// The architecture in the words of OCI for one in the database's.
    pub oci_arch: fn(&str) -> Option<Arch>,
}

impl Database {
    /// The database of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        DATABASES.iter().find(|database| database.name == name)
    }

    /// The machine's own architecture in the database's words: what a file states, else what [`Self::arch_of`] finds.
    ///
    /// # Errors
    /// As the source's reader.
    pub fn native(&self, source: &dyn Source, packages: &[Package]) -> Result<Option<String>> {
        let stated = (self.stated_arch)(source)?;
        Ok(stated.or_else(|| self.arch_of(packages).map(str::to_owned)))
    }

    /// The architecture of the package of the package manager itself, else the one that most packages are built for. Of
    /// packages for all architectures nothing is learnt.
    pub fn arch_of<'a>(&self, packages: &'a [Package]) -> Option<&'a str> {
        let single = |package: &'a Package| package.arch.as_deref().filter(|arch| !is_for_all(arch));
        let own = packages.iter().find(|package| package.name == self.name);
        own.and_then(single).or_else(|| {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for arch in packages.iter().filter_map(single) {
                *counts.entry(arch).or_default() += 1;
            }
            counts.into_iter().max_by_key(|(_, n)| *n).map(|(arch, _)| arch)
        })
    }
}

/// True for the architecture of packages that run on every one, and for that of entries which are no packages.
pub fn is_for_all(arch: &str) -> bool {
    matches!(arch, "all" | "noarch" | "any" | "(none)" | "")
}

/// Every kind of database.
pub const DATABASES: &[Database] = &[
    Database {
        name: dpkg::NAME,
        places: &["/var/lib/dpkg", "/var/lib/apt/extended_states"],
        probe: dpkg::probe,
        order: Order::Dpkg,
        grammar: Grammar::Dpkg,
        read: dpkg::read,
        locks: &[
            "/var/lib/dpkg/lock",
            "/var/lib/dpkg/lock-frontend",
            "/var/lib/apt/lists/lock",
            "/var/cache/apt/archives/lock",
        ],
        stated_arch: dpkg::stated_arch,
        oci_arch: dpkg::oci_arch,
    },
    Database {
        name: rpm::NAME,
        places: &[
            "/var/lib/rpm",
            "/usr/lib/sysimage/rpm",
            "/usr/share/rpm",
            "/var/lib/dnf",
            "/usr/lib/sysimage/libdnf5",
            "/var/lib/yum/yumdb",
            "/var/lib/zypp",
        ],
        probe: rpm::probe,
        order: Order::Rpm,
        grammar: Grammar::Rpm,
        read: rpm::read,
        locks: &[
            "/var/lib/rpm/.rpm.lock",
            "/usr/lib/sysimage/rpm/.rpm.lock",
            "/usr/share/rpm/.rpm.lock",
            "/run/zypp.pid",
            "/var/lib/urpmi/.LOCK",
        ],
        stated_arch: |_| Ok(None),
        oci_arch: rpm::oci_arch,
    },
    Database {
        name: apk::NAME,
        places: &["/lib/apk/db", "/usr/lib/apk/db", "/etc/apk/world"],
        probe: apk::probe,
        order: Order::Apk,
        grammar: Grammar::Apk,
        read: apk::read,
        locks: &["/lib/apk/db/lock", "/usr/lib/apk/db/lock"],
        stated_arch: apk::stated_arch,
        oci_arch: apk::oci_arch,
    },
    Database {
        name: alpm::NAME,
        places: &["/var/lib/pacman/local"],
        probe: alpm::probe,
        order: Order::Alpm,
        grammar: Grammar::Alpm,
        read: alpm::read,
        locks: &["/var/lib/pacman/db.lck"],
        stated_arch: |_| Ok(None),
        oci_arch: alpm::oci_arch,
    },
];

/// True if `path` may be a file of a package database.
pub fn is_database_file(path: &GuestPath) -> bool {
    let mut places = DATABASES.iter().flat_map(|database| database.places);
    places.any(|place| {
        let below = path.as_bytes().strip_prefix(place.as_bytes());
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

/// Reads the machine's package database. Where it has several (package tools of another family are a package like any
/// other), `preferred` is the one its distribution uses; else the first that can be read.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::Unsupported`] of the preferred database, or of the first if none can be read. `None`
/// means that the machine has no database of any known kind.
pub fn read(source: &dyn Source, preferred: Option<&str>) -> Result<Option<(&'static str, Listing)>> {
    let present: Vec<&Database> = DATABASES.iter().filter(|d| (d.probe)(source)).collect();
    if let Some(database) = present.iter().find(|d| Some(d.name) == preferred) {
        return (database.read)(source).map(|listing| Some((database.name, listing)));
    }
    let mut first = None;
    for database in present {
        match (database.read)(source) {
            Ok(listing) => return Ok(Some((database.name, listing))),
            Err(e) => first = first.or(Some(e)),
        }
    }
    first.map_or(Ok(None), Err)
}

/// The configuration files that differ from what their packages brought, in byte order. One that is gone counts as
/// changed, unless its package says that it may be; one without a digest does not.
///
/// # Errors
/// As the source's reader.
pub fn changed_conffiles(source: &dyn Source, packages: &[Package]) -> Result<Vec<GuestPath>> {
    let mut changed = Vec::new();
    let all = packages.iter().flat_map(|p| &p.conffiles);
    let found = all.filter_map(|c| source.tree().resolve(&c.path, true).ok());
    let nodes = found.filter_map(|path| source.tree().get(&path).filter(|n| n.is_file()));
    source.prefetch(&nodes.map(|n| n.id).collect::<Vec<_>>());
    for conffile in packages.iter().flat_map(|p| &p.conffiles) {
        let Some(digest) = conffile.digest.as_ref().filter(|_| !conffile.obsolete) else {
            continue;
        };
        let node = source.tree().resolve(&conffile.path, true).ok();
        let same = match node.and_then(|p| source.tree().get(&p)) {
            Some(node) if node.is_file() => digest_of(source, node.id, digest)? == *digest,
            // rpm(8): `missingok` speaks of the file itself, and not of what a link leads to.
            None => conffile.missing_ok && source.tree().resolve(&conffile.path, false).is_err(),
            Some(_) => false,
        };
        if !same {
            changed.push(conffile.path.clone());
        }
    }
    changed.sort();
    changed.dedup();
    Ok(changed)
}

/// The digest of a file by the algorithm of `like`.
///
/// # Errors
/// As the source's reader.
pub fn digest_of(source: &dyn Source, id: FileId, like: &FileDigest) -> Result<FileDigest> {
    Ok(match like {
        FileDigest::Md5(_) => FileDigest::Md5(hashed::<Md5>(source, id)?.into()),
        FileDigest::Sha1(_) => FileDigest::Sha1(hashed::<sha1::Sha1>(source, id)?.into()),
        FileDigest::Sha256(_) => FileDigest::Sha256(hashed::<sha2::Sha256>(source, id)?.into()),
        FileDigest::Sha384(_) => FileDigest::Sha384(Box::new(hashed::<sha2::Sha384>(source, id)?.into())),
        FileDigest::Sha512(_) => FileDigest::Sha512(Box::new(hashed::<sha2::Sha512>(source, id)?.into())),
    })
}

fn hashed<D: Digest>(source: &dyn Source, id: FileId) -> Result<md5::digest::Output<D>> {
    let file = source.open(id)?;
    let mut stream = Stream::new(&*file);
    let mut hash = D::new();
    let mut buf = vec![0; 64 << 10];
    loop {
        let n = stream
            .read(&mut buf)
            .map_err(|e| Error::io(format!("reading a file of {}", source.name()), e))?;
        match buf.get(..n) {
            Some(part) if n > 0 => hash.update(part),
            _ => return Ok(hash.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    #[test]
    fn a_machine_without_a_database_has_none() {
        assert!(read(&MemorySource::new("m").build(), None).unwrap().is_none());
        for file in ["/lib/apk/db/installed", "/var/lib/pacman/local/a/desc"] {
            let source = MemorySource::new("m").file(file, "x").build();
            assert!(
                matches!(read(&source, None), Err(Error::Corrupt { .. })),
                "{file}"
            );
        }
    }

    #[test]
    fn an_empty_database_of_another_family_is_no_reason_to_stop() {
        let source = MemorySource::new("m")
            .file("/var/lib/dpkg/status", "")
            .file("/var/lib/rpm/Packages", "x");
        let source = source.build();
        assert!(matches!(read(&source, Some("rpm")), Err(Error::Corrupt { .. })));
        assert!(matches!(read(&source, Some("dpkg")), Err(Error::Corrupt { .. })));
    }
}
