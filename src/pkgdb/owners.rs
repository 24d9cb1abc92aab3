//! Which package each path of a tree belongs to.

use super::Package;
use crate::path::GuestPath;
use crate::tree::{Kind, Tree};
use std::collections::HashMap;

/// Owners of paths, as indexes into the list of packages they were made from.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    by_path: HashMap<GuestPath, Owner>,
    /// Paths that packages list and the tree does not have: package index, path as listed.
    pub missing: Vec<(usize, GuestPath)>,
}

#[derive(Debug, Clone)]
enum Owner {
    One([usize; 1]),
    Many(Vec<usize>),
}

impl Owners {
    /// The packages that own exactly this path of the tree, in ascending order; directories often have many.
    pub fn of(&self, path: &GuestPath) -> &[usize] {
        match self.by_path.get(path) {
            Some(Owner::One(one)) => one,
            Some(Owner::Many(many)) => many,
            None => &[],
        }
    }

    /// True if a package owns exactly this path.
    pub fn owned(&self, path: &GuestPath) -> bool {
        self.by_path.contains_key(path)
    }

    /// How many paths of the tree are owned.
    pub fn len(&self) -> usize {
        self.by_path.len()
    }

    /// True if nothing is owned.
    pub fn is_empty(&self) -> bool {
        self.by_path.is_empty()
    }

    fn add(&mut self, path: GuestPath, package: usize) {
        match self.by_path.entry(path) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Owner::One([package]));
            }
            std::collections::hash_map::Entry::Occupied(mut entry) => match entry.get_mut() {
                // Packages come in ascending order, so that looking at the last is enough.
                Owner::One([first]) if *first == package => {}
                Owner::One([first]) => {
                    let both = vec![*first, package];
                    entry.insert(Owner::Many(both));
                }
                Owner::Many(all) if all.last() == Some(&package) => {}
                Owner::Many(all) => all.push(package),
            },
        }
    }
}

/// Finds the owners of every path of `tree`. Listed paths are first diverted, then led through the tree's symlinked
/// directories: with merged `/usr`, `/bin/ls` of a list owns `/usr/bin/ls` of the tree. A symlink to a directory that a
/// package lists as its directory is owned itself, and so is what it leads to. Files that the database says were left out,
/// or are another package's, are passed over.
///
/// Linear in the number of listed paths; each parent directory is resolved once.
pub fn owners(tree: &Tree, packages: &[Package]) -> Owners {
    let mut owners = Owners::default();
    let mut parents: HashMap<GuestPath, Option<GuestPath>> = HashMap::new();
    for (index, package) in packages.iter().enumerate() {
        let diverted: HashMap<&GuestPath, &GuestPath> =
            package.diverted.iter().map(|(from, to)| (from, to)).collect();
        let installed = package.files.iter().filter(|file| file.is_installed());
        for listed in installed.map(|file| &file.path) {
            let path = diverted.get(listed).copied().unwrap_or(listed);
            let Some(found) = place(tree, &mut parents, path) else {
                owners.missing.push((index, listed.clone()));
                continue;
            };
            if let Some(node) = tree.get(&found)
                && matches!(node.kind, Kind::Symlink { .. })
                && let Ok(target) = tree.resolve(&found, true)
                && tree.get(&target).is_some_and(crate::tree::Node::is_dir)
            {
                owners.add(target, index);
            }
            owners.add(found, index);
        }
    }
    owners
}

/// Where `path` is in the tree, symlinks of its directory followed, that of its last part not.
fn place(
    tree: &Tree,
    parents: &mut HashMap<GuestPath, Option<GuestPath>>,
    path: &GuestPath,
) -> Option<GuestPath> {
    let Some(parent) = path.parent() else {
        return Some(path.clone());
    };
    let dir = match parents.get(&parent) {
        Some(known) => known.clone(),
        None => {
            let dir = tree.resolve(&parent, true).ok();
            parents.insert(parent, dir.clone());
            dir
        }
    }?;
    let found = dir.join(path.name()).ok()?;
    tree.get(&found).is_some().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Source, memory::MemorySource};

    fn p(s: &str) -> GuestPath {
        GuestPath::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn merged_usr_diversions_and_shared_directories() {
        let source = MemorySource::new("m")
            .symlink("/bin", "usr/bin")
            .file("/usr/bin/ls", "")
            .file("/usr/bin/sh", "")
            .file("/usr/bin/sh.distrib", "")
            .file("/usr/local/own", "")
            .build();
        let files = |list: &[&str]| list.iter().map(|f| p(f).into()).collect();
        let packages = [
            Package {
                files: files(&["/", "/bin", "/bin/ls", "/bin/sh", "/bin/gone"]),
                diverted: vec![(p("/bin/sh"), p("/bin/sh.distrib"))],
                ..Package::default()
            },
            Package {
                files: files(&["/", "/usr", "/usr/bin", "/bin/sh", "/usr/bin/sh"]),
                ..Package::default()
            },
        ];
        let owners = owners(source.tree(), &packages);
        assert_eq!(owners.of(&p("/usr/bin/ls")), [0]);
        assert_eq!(owners.of(&p("/usr/bin/sh")), [1]);
        assert_eq!(owners.of(&p("/usr/bin/sh.distrib")), [0]);
        assert_eq!(owners.of(&p("/usr/bin")), [0, 1]);
        assert_eq!(owners.of(&p("/bin")), [0]);
        assert_eq!(owners.of(&p("/")), [0, 1]);
        assert!(!owners.owned(&p("/usr/local/own")));
        assert_eq!(owners.missing, [(0, p("/bin/gone"))]);
    }
}
