//! The graph of a machine, pruned and proved: the one way to roots that others build on.

use super::{Facts, Graph, Pruned, prune, system};
use crate::distro::{Distro, Distros};
use crate::error::{Error, Result};
use crate::pkgdb::{Database, Package};
use globset::{Glob, GlobMatcher};
use std::collections::HashSet;

/// What is there before any package is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Under<'a> {
    /// No base image is looked at: what the system cannot be without stands for it ([`system`]).
    System,
    /// The packages of a base image; none where there is no base.
    Base(&'a [Package]),
}

/// A graph, and what pruning found. The roots are proved to bring all that is not set apart.
#[derive(Debug, Clone, Default)]
pub struct Proved {
    /// Which package needs which.
    pub graph: Graph,
    /// What has to be asked for.
    pub pruned: Pruned,
}

/// Builds the graph of `packages`, which `database` lists, prunes it, and proves the result. What no container needs is
/// what `distro` says; nothing where it is not known.
///
/// # Errors
/// [`Error::Usage`] for a glob of `distro` that makes no sense, [`Error::Unsupported`] if the proof fails, which is a
/// fault of the pruning.
pub fn find(
    packages: &[Package],
    database: &Database,
    under: Under<'_>,
    distros: &Distros,
    distro: Option<&Distro>,
) -> Result<Proved> {
    let globs = globs(distros, distro)?;
    let (base, elsewhere) = match under {
        Under::System => (system(packages), Vec::new()),
        Under::Base(base) => shared(packages, base),
    };
    let graph = Graph::build(packages, database, &elsewhere);
    let facts = Facts {
        base: &base,
        not_in_containers: &globs,
    };
    let pruned = prune(&graph, packages, &facts);
    let lost = pruned.lost(&graph, &facts);
    if !lost.is_empty() {
        let names = lost.iter().filter_map(|p| packages.get(*p));
        let names: Vec<String> = names.map(|p| graph.label(p)).collect();
        return Err(Error::unsupported(format!(
            "the proof of the pruning failed: the roots do not bring {}",
            names.join(", ")
        ))
        .hint("this is a fault of vm2k: please report it with the output of `vm2k scan --json`"));
    }
    Ok(Proved { graph, pruned })
}

/// The machine's packages that the base has too, and those of the base that the machine lacks, by their names.
fn shared(packages: &[Package], base: &[Package]) -> (Vec<usize>, Vec<Package>) {
    let names: HashSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    let in_base: HashSet<&str> = base.iter().map(|p| p.name.as_str()).collect();
    let elsewhere = base.iter().filter(|p| !names.contains(p.name.as_str()));
    let all = packages.iter().enumerate();
    let both = all.filter(|(_, p)| in_base.contains(p.name.as_str()));
    (
        both.map(|(index, _)| index).collect(),
        elsewhere.cloned().collect(),
    )
}

/// The globs of packages that no container needs, of a distribution and those it is like.
///
/// # Errors
/// [`Error::Usage`] for a glob that makes no sense.
fn globs(distros: &Distros, distro: Option<&Distro>) -> Result<Vec<(String, GlobMatcher)>> {
    let Some(distro) = distro else {
        return Ok(Vec::new());
    };
    let mut found: Vec<(String, GlobMatcher)> = Vec::new();
    for text in distros.collected(distro, |d| &d.not_in_containers) {
        if found.iter().any(|(known, _)| known == text) {
            continue;
        }
        let glob = Glob::new(text).map_err(|e| Error::usage(format!("{}.toml: {e}", distro.id)))?;
        found.push((text.to_owned(), glob.compile_matcher()));
    }
    Ok(found)
}
