//! Where each package of a machine comes from: the base, the repositories, their archive, or the machine's own files.

use crate::distro::{PackageTool, Wanted};
use crate::graph::Graph;
use crate::pkgdb::{Package, is_for_all};
use crate::repository::{Catalogue, without_zero_epoch};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// The base has it in this version.
    Base,
    /// The machine's repositories serve this version, or were not asked.
    Live,
    /// An archive of the repositories serves it, or was not asked.
    Archive,
    /// Nobody serves it: its files are in the rest layer.
    Rest,
    /// No container needs it: it is not installed. What the rules leave of its files is in the rest layer.
    Apart,
}

/// What a package is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Somebody asked for it.
    Root,
    /// The base has it in another version.
    Changed,
    /// Another package needs it.
    Dependency,
}

/// What is decided about one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Where it comes from.
    pub rung: Rung,
    /// What it is for.
    pub role: Role,
    /// The word that asks for it in its version, quoted for sh(1); where it is installed.
    pub word: Option<String>,
    /// True if the command names it; false if it comes because another one needs it.
    pub named: bool,
    /// True if a repository was seen to serve it.
    pub checked: bool,
    /// Why it stands here.
    pub why: String,
    /// The repository that serves it, as an index into the answers of the catalogue of its rung.
    pub repository: Option<usize>,
}

/// What the decisions depend on.
pub struct Facts<'a> {
    /// The machine's packages.
    pub packages: &'a [Package],
    /// Which of them needs which.
    pub graph: &'a Graph,
    /// The base's packages.
    pub base: &'a [Package],
    /// Those that somebody asked for, as indexes into `packages`.
    pub roots: &'a [usize],
    /// How packages are asked for; `None` where nothing can be installed.
    pub tool: Option<&'a PackageTool<'a>>,
    /// The native architecture in the package database's words.
    pub native: Option<&'a str>,
    /// What the machine's repositories serve; `None` if they were not asked.
    pub live: Option<&'a Catalogue>,
    /// What their archives serve; `None` if they were not asked.
    pub archive: Option<&'a Catalogue>,
    /// True if the archive stands in place of repositories that are in `live` no more.
    pub replaces: bool,
    /// True if an archive is to be used without being asked.
    pub archive_unchecked: bool,
    /// True for packages, by their index, that no container needs.
    pub apart: &'a dyn Fn(usize) -> bool,
}

/// Name and architecture: what can be installed once.
fn key(package: &Package) -> (&str, &str) {
    (&package.name, package.arch.as_deref().unwrap_or_default())
}

/// The full version as lists write it.
pub fn version(package: &Package) -> String {
    without_zero_epoch(&package.full_version()).to_owned()
}

/// Decides about every package of the machine, in their order.
pub fn climb(facts: &Facts<'_>) -> Vec<Choice> {
    let in_base: HashMap<(&str, &str), String> = facts.base.iter().map(|p| (key(p), version(p))).collect();
    let names_in_base: HashSet<&str> = facts.base.iter().map(|p| p.name.as_str()).collect();
    let roots: HashSet<usize> = facts.roots.iter().copied().collect();
    let decide = |(index, package): (usize, &Package)| {
        let own = version(package);
        let role = match (
            roots.contains(&index),
            names_in_base.contains(package.name.as_str()),
        ) {
            (_, true) => Role::Changed,
            (true, false) => Role::Root,
            (false, false) => Role::Dependency,
        };
        let on = |rung: Rung, why: String| Choice {
            rung,
            role,
            word: None,
            named: false,
            checked: false,
            why,
            repository: None,
        };
        if in_base.get(&key(package)) == Some(&own) {
            return on(Rung::Base, "the base has this version".into());
        }
        if (facts.apart)(index) {
            return on(Rung::Apart, "no container needs it".into());
        }
        let Some(tool) = facts.tool else {
            return on(Rung::Rest, "the base has no package manager that is known".into());
        };
        if package.arch.as_deref().is_none_or(|a| a == "(none)") {
            return on(
                Rung::Rest,
                "an entry of the database that is no package of a repository".into(),
            );
        }
        let word = match word(tool, package, facts.native) {
            Ok(word) => word,
            Err(e) => return on(Rung::Rest, e.to_string()),
        };
        let install = |rung: Rung, checked: bool, repository, why: String, sure: bool| Choice {
            word: Some(word.clone()),
            named: !sure || role != Role::Dependency,
            checked,
            repository,
            ..on(rung, why)
        };
        let arch = package.arch.as_deref().filter(|a| !is_for_all(a));
        let served_by = |c: &Catalogue| c.find(&package.name, &own, arch);
        if let Some(from) = facts.live.and_then(served_by) {
            // The one version that is served is the one that the package manager takes by itself.
            let only = facts
                .live
                .is_some_and(|c| c.versions(&package.name, arch).len() == 1)
                && facts.archive.is_none();
            return install(Rung::Live, true, Some(from), "served".into(), only);
        }
        if let Some(from) = facts.archive.and_then(served_by) {
            let why = match facts.live {
                _ if facts.replaces => "served on the day of the machine's last change".to_owned(),
                Some(live) => format!("{}; an archive does", unserved(live, package, arch)),
                None => "served by an archive".to_owned(),
            };
            return install(Rung::Archive, true, Some(from), why, false);
        }
        match (facts.live, facts.archive_unchecked) {
            (None, true) => install(
                Rung::Archive,
                false,
                None,
                "the mirrors have dropped this release; the archive was not asked".into(),
                false,
            ),
            (None, false) => install(
                Rung::Live,
                false,
                None,
                "the repositories were not asked".into(),
                false,
            ),
            (Some(live), _) => {
                let archive = if facts.archive.is_some() {
                    ", nor does an archive"
                } else {
                    ""
                };
                on(Rung::Rest, format!("{}{archive}", unserved(live, package, arch)))
            }
        }
    };
    let mut choices: Vec<Choice> = facts.packages.iter().enumerate().map(decide).collect();
    // What comes by itself comes only if something that is installed surely brings it.
    let installed = |package: usize| choices.get(package).is_some_and(|c| c.word.is_some());
    let named = choices.iter().enumerate().filter(|(_, c)| c.named);
    let named: Vec<usize> = named.map(|(index, _)| index).collect();
    let brought = facts
        .graph
        .reach(named, |clause| clause.certain && installed(clause.package));
    for (choice, brought) in choices.iter_mut().zip(brought) {
        choice.named |= choice.word.is_some() && !brought;
    }
    choices
}

fn unserved(live: &Catalogue, package: &Package, arch: Option<&str>) -> String {
    match live.versions(&package.name, arch).as_slice() {
        [] => "no repository that answers serves the package".to_owned(),
        versions => {
            let shown: Vec<&str> = versions.iter().rev().take(3).rev().copied().collect();
            format!("the repositories serve {} and not this version", shown.join(", "))
        }
    }
}

/// The word that asks for `package` in its version.
fn word(tool: &PackageTool<'_>, package: &Package, native: Option<&str>) -> crate::error::Result<String> {
    let arch = package.arch.as_deref();
    tool.word(&Wanted {
        name: &package.name,
        version: &package.full_version(),
        epoch: package.epoch,
        upstream: &package.version,
        release: package.release.as_deref(),
        arch,
        foreign: arch.is_some_and(|a| !is_for_all(a) && native.is_some_and(|n| n != a)),
    })
}

/// What each root brings that neither the base has nor a root before it: indexes of packages, in the order of `roots`.
/// Of several that would do, the first counts; it is for people.
pub fn brings(graph: &Graph, roots: &[usize], skip: &dyn Fn(usize) -> bool) -> Vec<(usize, Vec<usize>)> {
    let mut seen: HashSet<usize> = roots.iter().copied().collect();
    let mut all = Vec::new();
    for root in roots {
        let mut brought = Vec::new();
        let mut next = vec![*root];
        while let Some(package) = next.pop() {
            for (other, edge) in graph.needs(package) {
                let hard = graph.clause(edge).is_some_and(|c| c.kind.is_hard());
                if hard && edge.satisfier == 0 && seen.insert(other) {
                    next.push(other);
                    if !skip(other) {
                        brought.push(other);
                    }
                }
            }
        }
        brought.sort_unstable();
        all.push((*root, brought));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distro::Distros;
    use crate::pkgdb::Database;
    use crate::repository::Served;

    fn package(name: &str, version: &str, depends: &[&str]) -> Package {
        let mut package = Package {
            name: name.into(),
            version: version.into(),
            arch: Some("amd64".into()),
            database: crate::pkgdb::dpkg::NAME,
            ..Package::default()
        };
        package.relations.depends = depends.iter().map(|d| (*d).to_owned()).collect();
        package
    }

    fn catalogue(all: &[(&str, &str)]) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for (name, version) in all {
            let served = Served {
                name: (*name).into(),
                version: (*version).into(),
                arch: "amd64".into(),
            };
            let versions = catalogue.served.entry(served.name.clone()).or_default();
            versions.push((served, 0));
        }
        catalogue
    }

    fn graph(packages: &[Package], base: &[Package]) -> Graph {
        Graph::build(packages, Database::named("dpkg").unwrap(), base)
    }

    fn show(packages: &[Package], live: Option<&Catalogue>, archive: Option<&Catalogue>) -> Vec<String> {
        let distros = Distros::load(None).unwrap();
        let tool = distros.tool(distros.get("debian").unwrap(), None);
        let base = [package("libc", "1", &[]), package("bash", "4", &[])];
        let graph = graph(packages, &base);
        let choices = climb(&Facts {
            packages,
            graph: &graph,
            base: &base,
            roots: &[0],
            tool: Some(&tool),
            native: Some("amd64"),
            live,
            archive,
            replaces: false,
            archive_unchecked: false,
            apart: &|i| packages[i].name.starts_with("linux-"),
        });
        let line = |(p, c): (&Package, &Choice)| {
            let named = c.word.as_deref().filter(|_| c.named).unwrap_or("-");
            format!("{} {:?} {:?} {named}", p.name, c.rung, c.role)
        };
        packages.iter().zip(&choices).map(line).collect()
    }

    #[test]
    fn every_rung_has_its_reason() {
        let packages = [
            package("app", "2", &["liba (>= 1)", "libb | libz", "libd | libc"]),
            package("liba", "1", &[]),
            package("libb", "1", &["libe"]),
            package("libc", "1", &[]),
            package("libd", "7", &[]),
            package("libe", "1", &[]),
            package("lost", "1", &[]),
            package("bash", "5", &[]),
            package("linux-image", "6", &[]),
            package("x;reboot", "1", &[]),
        ];
        let live = catalogue(&[
            ("app", "2"),
            ("liba", "1"),
            ("libb", "1"),
            ("libb", "2"),
            ("libd", "8"),
            ("libe", "1"),
            ("lost", "1"),
            ("bash", "5"),
        ]);
        assert_eq!(
            show(&packages, Some(&live), None),
            [
                "app Live Root app=2",
                "liba Live Dependency -",
                "libb Live Dependency libb=1",
                "libc Base Changed -",
                "libd Rest Dependency -",
                "libe Live Dependency -",
                "lost Live Dependency lost=1",
                "bash Live Changed bash=5",
                "linux-image Apart Dependency -",
                "x;reboot Rest Dependency -",
            ]
        );
        let archive = catalogue(&[("libd", "7")]);
        let with_archive = show(&packages, Some(&live), Some(&archive));
        assert_eq!(with_archive[4], "libd Archive Dependency libd=7");
        assert_eq!(
            with_archive[1], "liba Live Dependency liba=1",
            "the archive may have a newer one"
        );
        let unasked = show(&packages, None, None);
        assert_eq!(unasked[4], "libd Live Dependency libd=7");
    }

    #[test]
    fn what_only_a_package_of_the_rest_needs_is_named() {
        let packages = [package("app", "2", &["liba"]), package("liba", "1", &[])];
        let live = catalogue(&[("app", "3"), ("liba", "1")]);
        assert_eq!(
            show(&packages, Some(&live), None),
            ["app Rest Root -", "liba Live Dependency liba=1"]
        );
    }

    #[test]
    fn roots_bring_what_they_need() {
        let packages = [
            package("app", "2", &["liba (>= 1)", "mta"]),
            package("liba", "1", &["libb:any"]),
            package("libb", "1", &[]),
            package("exim", "1", &[]),
        ];
        let mut packages = packages.to_vec();
        packages[3].relations.provides = vec!["mta".into()];
        assert_eq!(
            brings(&graph(&packages, &[]), &[0, 3], &|_| false),
            [(0, vec![1, 2]), (3, vec![])]
        );
    }
}
