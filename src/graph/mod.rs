//! Which installed package needs which, what has to be asked for to get them all, and what no container needs.
//!
//! All of it is pure: a list of packages goes in. [`Graph::build`] finds what fulfils each relation, [`prune`] finds the
//! few packages to ask for, [`prove`] shows that asking for those brings all, [`why`] tells how one came in, and
//! [`draw`] draws. [`find`] does the first three, and is what others build on. Packages are named by their index in the list that the graph was built from.

#![deny(clippy::indexing_slicing)]

mod build;
pub mod draw;
mod find;
mod prove;
mod prune;
mod why;

pub use find::{Proved, Under, find};
pub use prove::prove;
pub use prune::{Apart, Aside, Facts, Mark, Pruned, Root, Why, prune, system};
pub use why::{Path, Step, near_names, why};

use crate::pkgdb::{Package, is_for_all};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

/// The field that a relation stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Needed before it can be unpacked.
    PreDepends,
    /// Needed to work.
    Depends,
    /// Wanted, but not needed.
    Recommends,
    /// Useful together.
    Suggests,
    /// The other way round: what is wanted names those that it is wanted for.
    Supplements,
}

impl Kind {
    /// True if the package cannot be without it. Only such relations bring packages when one is installed: images are
    /// built without those that are only wanted.
    pub fn is_hard(self) -> bool {
        matches!(self, Self::PreDepends | Self::Depends)
    }
    /// A verb: `a needs b`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::PreDepends => "needs first",
            Self::Depends => "needs",
            Self::Recommends => "recommends",
            Self::Suggests => "suggests",
            Self::Supplements => "is supplemented by",
        }
    }
}

/// What of a package fulfils a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// Its name.
    Name,
    /// A shared library that it provides.
    Soname,
    /// Another name or capability that it provides.
    Provided,
    /// A file of it.
    File,
}

/// A package that fulfils a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Satisfier {
    /// The package.
    pub package: usize,
    /// Which alternative of the relation this is, counted from 0.
    pub alternative: u16,
    /// What of the package it is.
    pub by: By,
}

/// One thing that a package needs or wants, and all installed packages that would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// The package that needs it.
    pub package: usize,
    /// The package in whose database entry the relation stands: `package`, but for [`Kind::Supplements`].
    pub owner: usize,
    /// The field.
    pub kind: Kind,
    /// The position in the field.
    pub element: usize,
    /// The packages that do, each once, the first alternative first; never empty, never `package` itself.
    pub satisfiers: Vec<Satisfier>,
    /// True if installing `package` on any system is certain to bring the satisfier: the relation is a hard one, nothing
    /// else that is installed would do, and it is asked for in a way that a package manager does not answer with another
    /// package. It does so where the relation names a virtual package, or a later alternative is the one installed.
    pub certain: bool,
}

impl Clause {
    /// The relation as it stands in the database.
    pub fn relation<'a>(&self, packages: &'a [Package]) -> &'a str {
        let Some(owner) = packages.get(self.owner) else {
            return "";
        };
        let relations = &owner.relations;
        let field = match self.kind {
            Kind::PreDepends => &relations.pre_depends,
            Kind::Depends => &relations.depends,
            Kind::Recommends => &relations.recommends,
            Kind::Suggests => &relations.suggests,
            Kind::Supplements => &relations.supplements,
        };
        field.get(self.element).map_or("", String::as_str)
    }
}

/// A relation that nothing installed fulfils.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// The package.
    pub package: usize,
    /// The relation as it stands in the database.
    pub relation: String,
    /// Why, where it is not simply that nothing fulfils it: the relation breaks its grammar.
    pub error: Option<String>,
}

/// An edge of the graph: which clause, and which of its satisfiers it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Index into [`Graph::clauses`].
    pub clause: usize,
    /// Index into the clause's satisfiers.
    pub satisfier: usize,
}

/// The installed packages of a machine and what they need of each other.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    edges: DiGraph<(), Edge>,
    clauses: Vec<Clause>,
    /// The architecture that packages are of if nothing else is said.
    native: Option<String>,
    /// Hard relations that nothing fulfils.
    pub unmet: Vec<Unmet>,
}

impl Graph {
    /// The number of packages.
    pub fn len(&self) -> usize {
        self.edges.node_count()
    }

    /// True if there are no packages.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The package's name, with its architecture where that is another than the machine's.
    pub fn label(&self, package: &Package) -> String {
        match (package.arch.as_deref(), self.native.as_deref()) {
            (Some(arch), Some(native)) if arch != native && !is_for_all(arch) => {
                format!("{}:{arch}", package.name)
            }
            _ => package.name.clone(),
        }
    }

    /// How many edges there are, of all kinds.
    pub fn edge_count(&self) -> usize {
        self.edges.edge_count()
    }

    /// All that packages need or want, in the order of the packages.
    pub fn clauses(&self) -> &[Clause] {
        &self.clauses
    }

    /// The clause of an edge.
    pub fn clause(&self, edge: Edge) -> Option<&Clause> {
        self.clauses.get(edge.clause)
    }

    /// What `package` needs or wants: the other package, and the edge.
    pub fn needs(&self, package: usize) -> impl Iterator<Item = (usize, Edge)> {
        let edges = self
            .edges
            .edges_directed(NodeIndex::new(package), petgraph::Outgoing);
        edges.map(|e| (e.target().index(), *e.weight()))
    }

    /// Who needs or wants `package`.
    pub fn needed_by(&self, package: usize) -> impl Iterator<Item = (usize, Edge)> {
        let edges = self
            .edges
            .edges_directed(NodeIndex::new(package), petgraph::Incoming);
        edges.map(|e| (e.source().index(), *e.weight()))
    }

    /// All packages that installing `roots` is certain to bring, `roots` included: true at their index.
    pub fn closure(&self, roots: impl IntoIterator<Item = usize>) -> Vec<bool> {
        self.reach(roots, |clause| clause.certain)
    }

    /// All packages that `roots` lead to over clauses that `follow` accepts, `roots` included.
    pub fn reach(
        &self,
        roots: impl IntoIterator<Item = usize>,
        follow: impl Fn(&Clause) -> bool,
    ) -> Vec<bool> {
        let mut reached = vec![false; self.len()];
        let mut todo: Vec<usize> = Vec::new();
        let mut visit = |package: usize, todo: &mut Vec<usize>| {
            if let Some(seen @ false) = reached.get_mut(package) {
                *seen = true;
                todo.push(package);
            }
        };
        for root in roots {
            visit(root, &mut todo);
        }
        while let Some(package) = todo.pop() {
            for (other, edge) in self.needs(package) {
                if self.clause(edge).is_some_and(&follow) {
                    visit(other, &mut todo);
                }
            }
        }
        reached
    }

    /// The packages that could not stay if `gone` went, in ascending order: those with a hard relation that only `gone`
    /// and others that cannot stay fulfil. `gone` itself is not among them.
    pub fn breaks(&self, gone: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut left: Vec<usize> = self.clauses.iter().map(|c| c.satisfiers.len()).collect();
        let mut out = vec![false; self.len()];
        let mut todo: Vec<usize> = Vec::new();
        for package in gone {
            if let Some(flag @ false) = out.get_mut(package) {
                *flag = true;
                todo.push(package);
            }
        }
        let first = todo.clone();
        while let Some(package) = todo.pop() {
            for (other, edge) in self.needed_by(package) {
                let hard = self.clause(edge).is_some_and(|c| c.kind.is_hard());
                let Some(left) = left.get_mut(edge.clause).filter(|_| hard) else {
                    continue;
                };
                *left = left.saturating_sub(1);
                if *left == 0
                    && let Some(flag @ false) = out.get_mut(other)
                {
                    *flag = true;
                    todo.push(other);
                }
            }
        }
        let all = out.iter().enumerate().filter(|(_, out)| **out);
        all.map(|(package, _)| package)
            .filter(|p| !first.contains(p))
            .collect()
    }
}

#[cfg(test)]
mod tests;
