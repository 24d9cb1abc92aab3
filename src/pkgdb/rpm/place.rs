//! Where a machine's rpm database is.

use crate::error::Result;
use crate::path::GuestPath;
use crate::source::{Source, read_file};
use std::fmt;

/// The directories, in the order in which they are looked at.
const DIRECTORIES: &[&str] = &["/usr/lib/sysimage/rpm", "/var/lib/rpm", "/usr/share/rpm"];

/// The kinds of databases, in the order in which rpm itself looks for them where its own choice is not there.
const KINDS: &[(Kind, &str, &str)] = &[
    (Kind::Sqlite, "rpmdb.sqlite", "sqlite"),
    (Kind::Ndb, "Packages.db", "ndb"),
    (Kind::Bdb, "Packages", "Berkeley DB"),
];

/// The longest file of macros that is read.
const MACROS_LIMIT: u64 = 4 << 20;

/// A kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Ndb,
    Bdb,
}

/// A database of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// Symlinks followed.
    pub(super) path: GuestPath,
    /// Why it stands where it stands.
    pub(super) reason: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(kind, ..)| *kind == self.kind);
        write!(f, "{} ({})", self.path, name.map_or("", |(_, _, name)| name))
    }
}

/// True if there is a database in one of the directories, or where rpm's macros say.
pub(super) fn any(source: &dyn Source) -> bool {
    find(source).is_ok_and(|found| !found.is_empty())
}

/// The databases, the one to be read first in front. One that several directories lead to counts once.
///
/// # Errors
/// As the source's reader.
pub(super) fn find(source: &dyn Source) -> Result<Vec<Found>> {
    let tree = source.tree();
    let macros = Macros::read(source)?;
    let mut dirs: Vec<(String, bool)> = macros.path.iter().map(|p| (p.clone(), true)).collect();
    dirs.extend(DIRECTORIES.iter().map(|d| ((*d).to_owned(), false)));
    let mut found: Vec<Found> = Vec::new();
    for (dir, named) in dirs {
        let mut here: Vec<Found> = Vec::new();
        for (kind, file, name) in KINDS {
            let Some((path, node)) = tree.find(&format!("{dir}/{file}")) else {
                continue;
            };
            if !node.is_file() || found.iter().chain(&here).any(|f| f.path == path) {
                continue;
            }
            let chosen = macros.backend.as_deref().is_some_and(|b| {
                // The reader of old databases has a name of its own.
                b == *name || *kind == Kind::Bdb && matches!(b, "bdb" | "bdb_ro")
            });
            let mut reasons = Vec::new();
            if named {
                reasons.push(format!("%_dbpath is {dir}"));
            }
            if chosen {
                reasons.push(format!(
                    "%_db_backend is {}",
                    macros.backend.as_deref().unwrap_or_default()
                ));
            }
            if reasons.is_empty() {
                reasons.push("the first that has packages".to_owned());
            }
            let database = Found {
                kind: *kind,
                path,
                reason: reasons.join(", "),
            };
            match chosen {
                true => here.insert(0, database),
                false => here.push(database),
            }
        }
        found.extend(here);
    }
    Ok(found)
}

/// What rpm's macros say of the database.
#[derive(Debug, Default, PartialEq, Eq)]
struct Macros {
    path: Option<String>,
    backend: Option<String>,
}

impl Macros {
    /// Reads the files in the order in which rpm does; the later word counts.
    fn read(source: &dyn Source) -> Result<Self> {
        let tree = source.tree();
        let mut files = vec!["/usr/lib/rpm/macros".to_owned()];
        let mut add = |dir: &str, wanted: &dyn Fn(&[u8]) -> bool| {
            let Some((dir, _)) = tree.find(dir) else { return };
            let children = tree.children(&dir).filter(|(path, _)| wanted(path.name()));
            files.extend(
                children.filter_map(|(path, _)| std::str::from_utf8(path.as_bytes()).ok().map(str::to_owned)),
            );
        };
        add("/usr/lib/rpm/macros.d", &|name| name.starts_with(b"macros."));
        // Each vendor has a directory of its own name there.
        let mut vendors: Vec<String> = Vec::new();
        if let Some((dir, _)) = tree.find("/usr/lib/rpm") {
            let children = tree.children(&dir).filter(|(_, node)| node.is_dir());
            vendors.extend(
                children.filter_map(|(path, _)| std::str::from_utf8(path.as_bytes()).ok().map(str::to_owned)),
            );
        }
        for vendor in vendors {
            add(&vendor, &|name| name == b"macros");
        }
        add("/etc/rpm", &|name| {
            name.starts_with(b"macros.") && !name.ends_with(b"~")
        });
        files.push("/etc/rpm/macros".to_owned());
        let mut macros = Self::default();
        for file in files {
            if let Some(bytes) = read_file(source, &file, MACROS_LIMIT)? {
                macros.take(&bytes);
            }
        }
        Ok(macros)
    }

    fn take(&mut self, file: &[u8]) {
        for line in String::from_utf8_lossy(file).lines() {
            let mut words = line.split_whitespace();
            let (name, value) = (words.next(), words.next());
            let Some(value) = value.filter(|_| words.next().is_none()) else {
                continue;
            };
            match name {
                Some("%_dbpath") => self.path = expand(value).or(self.path.take()),
                Some("%_db_backend") if !value.contains('%') => self.backend = Some(value.to_owned()),
                _ => {}
            }
        }
    }
}

/// The value with rpm's own names of directories expanded; `None` if there are others.
fn expand(value: &str) -> Option<String> {
    let mut text = value.to_owned();
    for (name, is) in [
        ("%{_var}", "/var"),
        ("%{_localstatedir}", "/var"),
        ("%{_usr}", "/usr"),
        ("%{_prefix}", "/usr"),
        ("%{_libdir}", "/usr/lib64"),
        ("%{_datadir}", "/usr/share"),
    ] {
        text = text.replace(name, is);
    }
    (text.starts_with('/') && !text.contains('%')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    fn places(source: &dyn Source) -> Vec<String> {
        let found = find(source).unwrap();
        found.iter().map(|f| format!("{f}: {}", f.reason)).collect()
    }

    #[test]
    fn one_database_that_two_places_lead_to() {
        let source = MemorySource::new("m")
            .file("/usr/lib/sysimage/rpm/rpmdb.sqlite", "")
            .symlink("/var/lib/rpm", "../../usr/lib/sysimage/rpm")
            .build();
        assert_eq!(
            places(&source),
            ["/usr/lib/sysimage/rpm/rpmdb.sqlite (sqlite): the first that has packages"]
        );
        assert!(any(&source) && !any(&MemorySource::new("m").build()));
    }

    #[test]
    fn macros_choose() {
        let source = MemorySource::new("m")
            .file("/usr/lib/sysimage/rpm/rpmdb.sqlite", "")
            .file("/var/lib/rpm/rpmdb.sqlite", "")
            .file("/var/lib/rpm/Packages", "")
            .file(
                "/usr/lib/rpm/macros",
                "%_dbpath\t%{_var}/lib/rpm\n%_db_backend\t sqlite\n%x y\n",
            )
            .file(
                "/usr/lib/rpm/vendor/macros",
                "%_db_backend bdb\n%_dbpath %(echo /x)\n",
            );
        let kept = ["%_dbpath is /var/lib/rpm", "%_db_backend is bdb"].join(", ");
        let found = places(&source.build());
        assert_eq!(found[0], format!("/var/lib/rpm/Packages (Berkeley DB): {kept}"));
        assert_eq!(found.len(), 3);
    }
}
