//! What package repositories serve: their lists, fetched over HTTP and read, so that a Dockerfile asks for versions that exist.
//!
//! Nothing that a repository sends is installed here. Its lists only decide which rung of a ladder a package stands on, and
//! the package manager checks signatures when the image is built. So lists are checked against the digests of the document
//! that names them, and that document's signature is not.

pub mod apk;
pub mod apt;
mod fetch;
pub mod pacman;
pub mod rpm;
mod tarball;
pub mod urpmi;

pub use fetch::{Client, Compressed, open};

use crate::error::Result;
use crate::pkgdb::is_for_all;
use std::collections::{BTreeMap, HashSet};

/// The most bytes of a list when it is unpacked.
pub const MAX_LIST: u64 = 2 << 30;
/// The most bytes of a document that names lists: a `Release` file, a `repomd.xml`, a list of mirrors.
pub const MAX_DOCUMENT: u64 = 32 << 20;

/// One package of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// Its full version: `epoch:version-release`, without an epoch of 0.
    pub version: String,
    /// Its architecture in the database's words.
    pub arch: String,
}

/// A repository that the machine's configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The file that names it, as the machine sees it.
    pub file: String,
    /// How its lists are found.
    pub place: Place,
}

/// How the lists of a repository are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One suite of a Debian archive.
    Apt(apt::Suite),
    /// A repository with `repodata/repomd.xml`.
    Rpm(rpm::Yum),
    /// The URL of a directory with `APKINDEX.tar.gz` for the machine's architecture.
    Apk(String),
    /// A repository of `pacman.conf`.
    Pacman(pacman::Pacman),
    /// A medium of `urpmi.cfg`.
    Urpmi(urpmi::Medium),
}

impl Place {
    /// What people call it.
    pub fn label(&self) -> String {
        match self {
            Self::Apt(suite) => suite.label(),
            Self::Rpm(yum) => yum.label(),
            Self::Apk(url) => url.clone(),
            Self::Pacman(repository) => repository.label(),
            Self::Urpmi(medium) => medium.label(),
        }
    }
}

/// What became of asking one repository.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Answer {
    /// The file of the machine that names it.
    pub file: String,
    /// What people call it.
    pub repository: String,
    /// Packages that it lists in all; `None` if it did not answer.
    pub packages: Option<u64>,
    /// Why it did not answer.
    pub failure: Option<String>,
}

/// What the repositories serve of the names that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// By name: what is served, and by which of `answers`.
    pub served: BTreeMap<String, Vec<(Served, usize)>>,
    /// The repositories in their order.
    pub answers: Vec<Answer>,
}

impl Catalogue {
    /// The versions of `name` for `arch` (or for all), each once, sorted as text.
    pub fn versions(&self, name: &str, arch: Option<&str>) -> Vec<&str> {
        let all = self.served.get(name).into_iter().flatten();
        let mut versions: Vec<&str> = all
            .filter(|(s, _)| fits(&s.arch, arch))
            .map(|(s, _)| s.version.as_str())
            .collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    /// What the repositories serve whose file is none of `files`; the answers are all kept.
    #[must_use]
    pub fn without(&self, files: &dyn Fn(&str) -> bool) -> Self {
        let kept = |from: usize| self.answers.get(from).is_none_or(|a| !files(&a.file));
        let mut served = self.served.clone();
        for versions in served.values_mut() {
            versions.retain(|(_, from)| kept(*from));
        }
        served.retain(|_, versions| !versions.is_empty());
        Self {
            served,
            answers: self.answers.clone(),
        }
    }

    /// The first repository that serves exactly this, as an index into `answers`.
    pub fn find(&self, name: &str, version: &str, arch: Option<&str>) -> Option<usize> {
        let mut all = self.served.get(name)?.iter();
        all.find(|(s, _)| s.version == version && fits(&s.arch, arch))
            .map(|(_, from)| *from)
    }
}

/// True if a package for `served` can be the one that is installed for `arch`. `all`, `noarch` and `any` are of each.
fn fits(served: &str, arch: Option<&str>) -> bool {
    arch.is_none_or(|arch| served == arch || is_for_all(served) || is_for_all(arch))
}

/// Asks `repositories` for the packages called `names`, for `archs` in the words of the machine's package database, its own
/// architecture first. A repository that fails does not end the work: its answer says why.
///
/// # Errors
/// Only if the HTTP client cannot be started.
pub fn ask(
    client: &Client,
    repositories: &[Repository],
    names: &HashSet<&str>,
    archs: &[&str],
) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for repository in repositories {
        let index = catalogue.answers.len();
        let mut total: u64 = 0;
        let mut found: Vec<Served> = Vec::new();
        let mut take = |served: Served| {
            total += 1;
            if names.contains(served.name.as_str()) {
                found.push(served);
            }
        };
        let asked = match &repository.place {
            Place::Apt(suite) => apt::list(client, suite, archs, &mut take),
            Place::Rpm(yum) => rpm::list(client, yum, &mut take),
            Place::Apk(url) => apk::list(client, url, archs, &mut take),
            Place::Pacman(repository) => pacman::list(client, repository, archs, &mut take),
            Place::Urpmi(medium) => urpmi::list(client, medium, &mut take),
        };
        if asked.is_ok() {
            // pacman takes a package from the first repository that has it, whatever versions the others have.
            if matches!(repository.place, Place::Pacman(_)) {
                found.retain(|served| !catalogue.served.contains_key(&served.name));
            }
            for served in found {
                let versions = catalogue.served.entry(served.name.clone()).or_default();
                if !versions.iter().any(|(other, _)| *other == served) {
                    versions.push((served, index));
                }
            }
        }
        catalogue.answers.push(Answer {
            file: repository.file.clone(),
            repository: repository.place.label(),
            packages: asked.is_ok().then_some(total),
            failure: asked.err().map(|e| e.to_string()),
        });
    }
    Ok(catalogue)
}

/// A version without an epoch of 0, as lists and databases may or may not write it.
pub fn without_zero_epoch(version: &str) -> &str {
    version.strip_prefix("0:").unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_found_by_name_version_and_architecture() {
        let served = |version: &str, arch: &str| Served {
            name: "a".into(),
            version: version.into(),
            arch: arch.into(),
        };
        let catalogue = Catalogue {
            served: BTreeMap::from([(
                "a".to_owned(),
                vec![
                    (served("2", "amd64"), 0),
                    (served("1", "amd64"), 1),
                    (served("3", "i386"), 1),
                    (served("1", "all"), 2),
                ],
            )]),
            answers: Vec::new(),
        };
        assert_eq!(catalogue.versions("a", Some("amd64")), ["1", "2"]);
        assert_eq!(catalogue.find("a", "1", Some("amd64")), Some(1));
        assert_eq!(catalogue.find("a", "3", Some("amd64")), None);
        assert_eq!(catalogue.find("b", "3", None), None);
    }
}
