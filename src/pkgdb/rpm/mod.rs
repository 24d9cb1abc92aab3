//! rpm's database: Berkeley DB, ndb and SQLite, at the places of all distributions.
//!
//! Each kind holds the same: headers by the number of their package. What else lies in the database are indexes, which are
//! not read.

mod bdb;
mod blocks;
mod header;
mod history;
mod ndb;
mod package;
mod place;
pub mod sqlite;

pub use header::{Header, Numbers, Strings};
pub use package::package;

use super::{Listing, Package};
use crate::arch::Arch;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::source::Source;
use crate::tree::Problem;
use place::{Found, Kind};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The name in `pkgdb::DATABASES`.
pub const NAME: &str = "rpm";

/// The name that all keys have which rpm keeps as packages.
const PUBKEY: &str = "gpg-pubkey";

/// The longest header. That of a package with 100,000 files has about 15 MB; rpm's own limit is 256 MiB.
const MAX_HEADER: u64 = 128 << 20;
/// The most files of all packages.
const MAX_FILES: usize = 8 << 20;
/// How many damaged headers and pages are told before the rest is left alone.
const MAX_PROBLEMS: usize = 200;

/// What is called with each header of a database: the number of its package (0 where that is not known), and its bytes or
/// why they cannot be read.
pub type Each<'a> = dyn FnMut(u32, Result<&[u8]>) -> ControlFlow<()> + 'a;

/// True if the machine has an rpm database.
pub fn probe(source: &dyn Source) -> bool {
    place::any(source)
}

/// Reads the database.
///
/// Where several are there, the one that rpm's own configuration names is read, else the first that has packages; the
/// others are named in the notes. A header that cannot be read becomes a problem, as does a database that is passed over
/// because it is damaged.
///
/// `manual` and `repository` come from what the package manager above rpm keeps; see `docs/packages.md`.
///
/// # Errors
/// [`Error::Corrupt`] if no database has a package that can be read, [`Error::Unsupported`] for a kind or a feature that is
/// not read, else as the source's reader.
pub fn read(source: &dyn Source) -> Result<Listing> {
    let mut first: Option<Error> = None;
    let mut passed: Vec<Problem> = Vec::new();
    let found = place::find(source)?;
    for (n, database) in found.iter().enumerate() {
        match read_one(source, database) {
            Ok(Some(mut listing)) => {
                listing.problems.append(&mut passed);
                let rest = found.iter().enumerate().filter(|(m, _)| *m != n);
                if found.len() > 1 {
                    let others: Vec<String> = rest.map(|(_, d)| d.to_string()).collect();
                    listing.notes.push(format!(
                        "{database} is read ({}), not {}",
                        database.reason,
                        others.join(", ")
                    ));
                }
                history::apply(source, &mut listing);
                return Ok(listing);
            }
            // That a database has no packages is a reason to look at the next, not a fault.
            Ok(None) => {}
            Err(e) => {
                passed.push(Problem {
                    path: database.path.clone(),
                    what: e.to_string(),
                });
                first = first.or(Some(e));
            }
        }
    }
    Err(first.unwrap_or_else(|| {
        let all: Vec<String> = found.iter().map(ToString::to_string).collect();
        Error::corrupt(format!("the rpm database has no packages: {}", all.join(", ")), 0)
    }))
}

/// The packages of one database; `None` if it is whole and has none.
fn read_one(source: &dyn Source, database: &Found) -> Result<Option<Listing>> {
    let mut listing = Listing::default();
    let mut first: Option<Error> = None;
    let mut files = 0usize;
    let mut stopped = false;
    let path = &database.path;
    let mut packages: BTreeMap<(String, String, String, u32), Package> = BTreeMap::new();
    let mut each = |number: u32, blob: Result<&[u8]>| {
        let notes = &mut listing.notes;
        let package = blob.and_then(|blob| package(&Header::parse(blob)?, notes));
        let package = package.and_then(|package| {
            files = files.saturating_add(package.files.len());
            if files > MAX_FILES {
                stopped = true;
                return Err(Error::unsupported(format!(
                    "a database of more than {MAX_FILES} files"
                )));
            }
            Ok(package)
        });
        match package {
            Ok(package) => {
                let arch = package.arch.clone().unwrap_or_default();
                let key = (package.name.clone(), arch, package.full_version(), number);
                packages.insert(key, package);
            }
            Err(e) => {
                let what = match number {
                    0 => e.to_string(),
                    _ => format!("header {number}: {e}"),
                };
                listing.problems.push(Problem {
                    path: path.clone(),
                    what,
                });
                first = first.take().or(Some(e));
            }
        }
        if listing.problems.len() >= MAX_PROBLEMS {
            stopped = true;
        }
        match stopped {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let read = match database.kind {
        Kind::Sqlite => sqlite(source, path, &mut each),
        Kind::Ndb => open(source, path).and_then(|file| ndb::read(file, &mut each)),
        Kind::Bdb => open(source, path).and_then(|file| bdb::read(file, &mut each)),
    };
    read.map_err(|e| e.within(&path.to_string()))?;
    if stopped {
        listing.problems.push(Problem {
            path: path.clone(),
            what: "the rest of the database was not read".to_owned(),
        });
    }
    listing.packages = packages.into_values().collect();
    match first {
        Some(e) if listing.packages.is_empty() => Err(e.within(&path.to_string())),
        None if listing.packages.is_empty() => Ok(None),
        _ => Ok(Some(listing)),
    }
}

fn open(source: &dyn Source, path: &GuestPath) -> Result<std::sync::Arc<dyn crate::read_at::ReadAt>> {
    let node = source.tree().get(path).filter(|n| n.is_file());
    let node = node.ok_or_else(|| Error::corrupt("this is no file", 0))?;
    source.open(node.id)
}

fn sqlite(source: &dyn Source, path: &GuestPath, each: &mut Each<'_>) -> Result<()> {
    let database = sqlite::Database::open(source, path)?;
    let table = database.table("Packages")?;
    let table = table.ok_or_else(|| Error::corrupt("the database has no table Packages", 0))?;
    let Some(blob) = table.column("blob") else {
        return Err(Error::corrupt("the table Packages has no column blob", 0));
    };
    database.rows(&table, &mut |row| {
        let (id, payload) = match row {
            Ok(row) => row,
            Err(e) => return each(0, Err(e)),
        };
        let number = u32::try_from(id).unwrap_or_default();
        match sqlite::Record::parse(payload).and_then(|r| r.get(blob)) {
            Some(sqlite::Value::Blob(blob)) => each(number, Ok(blob)),
            _ => each(number, Err(Error::corrupt(format!("row {id} has no header"), 0))),
        }
    })
}

/// One database from its bytes, for tests and fuzzing: `kind` is `Packages`, `Packages.db` or `rpmdb.sqlite`.
///
/// # Errors
/// As [`read`].
#[doc(hidden)]
pub fn read_bytes(kind: &str, bytes: Vec<u8>, wal: Option<Vec<u8>>) -> Result<Listing> {
    let path = format!("/var/lib/rpm/{kind}");
    let mut source = crate::source::memory::MemorySource::new("bytes").file(&path, bytes);
    if let Some(wal) = wal {
        source = source.file(&format!("{path}-wal"), wal);
    }
    read(&source.build())
}

/// The architecture in the words of OCI for one in rpm's (`rpmrc`).
pub fn oci_arch(arch: &str) -> Option<Arch> {
    let (architecture, variant) = match arch {
        "x86_64" | "x86_64_v2" | "x86_64_v3" | "x86_64_v4" | "amd64" | "ia32e" => ("amd64", None),
        "i386" | "i486" | "i586" | "i686" | "athlon" | "geode" | "pentium3" | "pentium4" => ("386", None),
        "aarch64" => ("arm64", None),
        "armv8hl" | "armv7hl" | "armv7hnl" | "armv7l" => ("arm", Some("v7")),
        "armv6hl" | "armv6l" => ("arm", Some("v6")),
        "armv5tel" | "armv5tl" | "armv5tejl" => ("arm", Some("v5")),
        "ppc64le" => ("ppc64le", None),
        "ppc64" | "ppc64p7" => ("ppc64", None),
        "ppc" => ("ppc", None),
        "s390x" => ("s390x", None),
        "riscv64" => ("riscv64", None),
        "loongarch64" => ("loong64", None),
        "mips64el" | "mips64r6el" => ("mips64le", None),
        "mipsel" => ("mipsle", None),
        "sparc64" | "sparc64v" => ("sparc64", None),
        _ => return None,
    };
    Some(Arch {
        architecture,
        variant,
    })
}
