//! Which packages to ask for, so that the package manager brings the rest.

use super::{Clause, Graph, Kind};
use crate::pkgdb::Package;
use globset::GlobMatcher;
use petgraph::algo::kosaraju_scc;
use petgraph::graph::NodeIndex;
use petgraph::visit::{EdgeFiltered, NodeFiltered};
use std::collections::HashSet;

/// What pruning is told beside the packages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// Packages that are there before any is asked for: those of the base image that the machine has too.
    pub base: &'a [usize],
    /// Names of packages that no container needs.
    pub not_in_containers: &'a [(String, GlobMatcher)],
}

/// Why a package is a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Somebody asked for it.
    Asked,
    /// Another package only wants it, and wanted packages are not brought.
    Wanted {
        /// That package.
        by: usize,
        /// How it wants it.
        kind: Kind,
    },
    /// Another package needs it, but would take another one in its place: the machine's choice has to be named.
    Choice {
        /// That package.
        by: usize,
    },
    /// Nothing needs it, and the machine does not know who asked for what.
    Top,
}

/// A package to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The package.
    pub package: usize,
    /// Why.
    pub why: Why,
    /// Packages that need it and that it needs in turn: any of them would do in its place.
    pub ring: Vec<usize>,
    /// How many packages it brings that the base lacks, itself included.
    pub brings: usize,
    /// Their installed size in bytes.
    pub bytes: u64,
}

/// Why a package is set apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aside {
    /// Its name matches a glob of packages that no container needs.
    NotInContainers {
        /// The glob.
        glob: String,
    },
    /// Only packages that are set apart need or want it.
    OnlyFor {
        /// One of them.
        package: usize,
    },
    /// It came in as a dependency, and nothing needs or wants it any more.
    Orphan,
}

/// A package that is set apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    /// The package.
    pub package: usize,
    /// Why.
    pub why: Aside,
}

/// Where a package stands after pruning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The base has it, or brings it.
    Base,
    /// It has to be asked for.
    Root,
    /// A root brings it.
    Implied,
    /// It is set apart.
    Apart,
}

/// What pruning found. Every package is in exactly one of the lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What to ask for, those that bring most first.
    pub roots: Vec<Root>,
    /// What the roots bring, in ascending order. Those among them that somebody asked for keep their `manual`.
    pub implied: Vec<usize>,
    /// What the base has or brings, in ascending order.
    pub base: Vec<usize>,
    /// What is set apart, in ascending order.
    pub apart: Vec<Apart>,
}

impl Pruned {
    /// Where each package stands, by its index.
    pub fn marks(&self, packages: usize) -> Vec<Mark> {
        let mut marks = vec![Mark::Implied; packages];
        let lists = [
            (Mark::Base, self.base.clone()),
            (Mark::Root, self.roots.iter().map(|r| r.package).collect()),
            (Mark::Apart, self.apart.iter().map(|a| a.package).collect()),
        ];
        for (mark, list) in lists {
            for package in list {
                if let Some(at) = marks.get_mut(package) {
                    *at = mark;
                }
            }
        }
        marks
    }

    /// What [`super::prove`] says of it: the packages that would be lost, which is a mistake of the pruning.
    pub fn lost(&self, graph: &Graph, facts: &Facts<'_>) -> Vec<usize> {
        super::prove(
            graph,
            facts.base.iter().copied(),
            self.roots.iter().map(|r| r.package),
            self.apart.iter().map(|a| a.package),
        )
    }
}

/// The packages that a system cannot be without, as its database says: essential ones, those of priority `required`, and
/// the package manager. What stands for the base where no base image is looked at.
pub fn system(packages: &[Package]) -> Vec<usize> {
    let all = packages.iter().enumerate();
    all.filter(|(_, p)| p.essential || p.priority.as_deref() == Some("required") || p.name == p.database)
        .map(|(index, _)| index)
        .collect()
}

/// Finds the roots: see [`Pruned`]. Nothing is proved yet: [`super::find`] does that too.
///
/// 1. Packages whose names match `not_in_containers` are set apart, unless one that stays needs them.
/// 2. What is asked for, essential or in the base stays, and what it needs, recommends or suggests; where the machine
///    does not know who asked for what, what nothing needs counts as asked for. The rest is set apart: what the packages
///    of step 1 brought, and orphans.
/// 3. Of what stays, packages that bring each other are taken as one. Of each such ring that nothing else brings, the one
///    that a user would name is a root.
pub fn prune(graph: &Graph, packages: &[Package], facts: &Facts<'_>) -> Pruned {
    let work = Work {
        graph,
        packages,
        // A machine that marks all as asked for does not know.
        marks_tell: packages.iter().any(|p| p.manual == Some(false)),
        in_base: graph.closure(facts.base.iter().copied()),
    };
    let mut apart = work.not_in_containers(facts);
    work.unreached(&mut apart);
    let roots = work.roots(&apart);
    let mut pruned = Pruned {
        roots,
        ..Pruned::default()
    };
    let is_root: HashSet<usize> = pruned.roots.iter().map(|r| r.package).collect();
    for (package, (aside, in_base)) in apart.into_iter().zip(&work.in_base).enumerate() {
        match aside {
            Some(why) => pruned.apart.push(Apart { package, why }),
            None if *in_base => pruned.base.push(package),
            None if is_root.contains(&package) => {}
            None => pruned.implied.push(package),
        }
    }
    pruned
}

struct Work<'a> {
    graph: &'a Graph,
    packages: &'a [Package],
    marks_tell: bool,
    /// The base, and what it brings.
    in_base: Vec<bool>,
}

type Asides = Vec<Option<Aside>>;

fn flag(flags: &[bool], at: usize) -> bool {
    flags.get(at).copied().unwrap_or(false)
}

fn is_apart(apart: &Asides, at: usize) -> bool {
    apart.get(at).is_some_and(Option::is_some)
}

impl Work<'_> {
    fn asked(&self, package: usize) -> bool {
        self.marks_tell && self.packages.get(package).is_some_and(|p| p.manual == Some(true))
    }

    /// True if nobody can say whether it was asked for.
    fn unknown(&self, package: usize) -> bool {
        !self.marks_tell || self.packages.get(package).is_some_and(|p| p.manual.is_none())
    }

    fn not_in_containers(&self, facts: &Facts<'_>) -> Asides {
        let glob_of = |(index, package): (usize, &Package)| {
            if package.essential || flag(&self.in_base, index) {
                return None;
            }
            let mut globs = facts.not_in_containers.iter();
            let (glob, _) = globs.find(|(_, glob)| glob.is_match(&package.name))?;
            Some(Aside::NotInContainers { glob: glob.clone() })
        };
        let mut apart: Asides = self.packages.iter().enumerate().map(glob_of).collect();
        // What a package that stays cannot be without stays too.
        let touched: Vec<&Clause> = self
            .graph
            .clauses()
            .iter()
            .filter(|c| c.kind.is_hard() && c.satisfiers.iter().all(|s| is_apart(&apart, s.package)))
            .collect();
        loop {
            let mut changed = false;
            for clause in &touched {
                let all_apart = clause.satisfiers.iter().all(|s| is_apart(&apart, s.package));
                if is_apart(&apart, clause.package) || !all_apart {
                    continue;
                }
                if let Some(first) = clause.satisfiers.first()
                    && let Some(aside) = apart.get_mut(first.package)
                {
                    *aside = None;
                    changed = true;
                }
            }
            if !changed {
                return apart;
            }
        }
    }

    /// Sets apart what nothing that stays needs or wants.
    fn unreached(&self, apart: &mut Asides) {
        let hard = self.rings(|_| true, |clause| clause.kind.is_hard());
        let ring_of = self.ring_of(&hard);
        let mut seeds: Vec<usize> = Vec::new();
        for (number, ring) in hard.iter().enumerate() {
            let needed = ring.iter().any(|p| {
                self.graph.needed_by(*p).any(|(other, edge)| {
                    let hard = self.graph.clause(edge).is_some_and(|c| c.kind.is_hard());
                    hard && ring_of.get(other) != Some(&number)
                })
            });
            for package in ring.iter().copied().filter(|p| !is_apart(apart, *p)) {
                let essential = self.packages.get(package).is_some_and(|p| p.essential);
                if self.asked(package)
                    || essential
                    || flag(&self.in_base, package)
                    || (!needed && self.unknown(package))
                {
                    seeds.push(package);
                }
            }
        }
        let stays = self.spread(seeds, apart);
        let outside: Vec<usize> = (0..self.graph.len()).filter(|p| is_apart(apart, *p)).collect();
        // Who brought what: from the packages that no container needs on to all that only they lead to.
        let mut for_whom: Vec<Option<usize>> = vec![None; self.graph.len()];
        let mut todo = outside;
        while let Some(package) = todo.pop() {
            for (other, _) in self.graph.needs(package) {
                if flag(&stays, other) || is_apart(apart, other) {
                    continue;
                }
                if let Some(by @ None) = for_whom.get_mut(other) {
                    *by = Some(package);
                    todo.push(other);
                }
            }
        }
        for (package, by) in for_whom.into_iter().enumerate() {
            if let Some(aside @ None) = apart.get_mut(package)
                && !flag(&stays, package)
            {
                *aside = Some(by.map_or(Aside::Orphan, |package| Aside::OnlyFor { package }));
            }
        }
    }

    /// What `seeds` need, recommend or suggest, at any distance, but for what is apart.
    fn spread(&self, seeds: Vec<usize>, apart: &Asides) -> Vec<bool> {
        let mut reached = vec![false; self.graph.len()];
        let mut todo = seeds;
        while let Some(package) = todo.pop() {
            if let Some(seen @ false) = reached.get_mut(package) {
                *seen = true;
                let next = self.graph.needs(package).map(|(other, _)| other);
                todo.extend(next.filter(|other| !is_apart(apart, *other)));
            }
        }
        reached
    }

    /// Strongly connected components of the packages that `keep` accepts, over the clauses that `follow` accepts.
    fn rings(&self, keep: impl Fn(usize) -> bool, follow: impl Fn(&Clause) -> bool) -> Vec<Vec<usize>> {
        let graph = &self.graph.edges;
        let kept = NodeFiltered::from_fn(graph, |node: NodeIndex| keep(node.index()));
        let followed = EdgeFiltered::from_fn(&kept, |edge| {
            self.graph.clause(*edge.weight()).is_some_and(&follow)
        });
        let rings = kosaraju_scc(&followed);
        let indexes = rings.into_iter().map(|ring| {
            let mut ring: Vec<usize> = ring.into_iter().map(NodeIndex::index).collect();
            ring.sort_unstable();
            ring
        });
        indexes.collect()
    }

    /// The number of the ring that each package is in; `usize::MAX` for one that is in none.
    fn ring_of(&self, rings: &[Vec<usize>]) -> Vec<usize> {
        let mut ring_of: Vec<usize> = vec![usize::MAX; self.graph.len()];
        for (number, ring) in rings.iter().enumerate() {
            for package in ring {
                if let Some(of) = ring_of.get_mut(*package) {
                    *of = number;
                }
            }
        }
        ring_of
    }

    fn roots(&self, apart: &Asides) -> Vec<Root> {
        let rings = self.rings(|p| !is_apart(apart, p), |clause| clause.certain);
        let ring_of = self.ring_of(&rings);
        let mut roots = Vec::new();
        for (number, ring) in rings.iter().enumerate() {
            if ring.iter().any(|p| flag(&self.in_base, *p)) {
                continue;
            }
            let brought = ring.iter().any(|p| {
                self.graph.needed_by(*p).any(|(other, edge)| {
                    self.graph.clause(edge).is_some_and(|c| c.certain)
                        && !is_apart(apart, other)
                        && ring_of.get(other) != Some(&number)
                })
            });
            if !brought && let Some(package) = self.speaker(ring) {
                roots.push(Root {
                    package,
                    why: self.why(package, ring, &ring_of, apart),
                    ring: ring.iter().copied().filter(|p| *p != package).collect(),
                    brings: 0,
                    bytes: 0,
                });
            }
        }
        weigh(self, &rings, &ring_of, &mut roots);
        roots.sort_by(|a, b| {
            let name = |r: &Root| self.packages.get(r.package).map(|p| p.name.as_str());
            b.brings.cmp(&a.brings).then_with(|| name(a).cmp(&name(b)))
        });
        roots
    }

    /// The member of a ring that a user would name: one that somebody asked for, a metapackage, no library, the one with
    /// the shortest name.
    fn speaker(&self, ring: &[usize]) -> Option<usize> {
        ring.iter().copied().min_by_key(|index| {
            let package = self.packages.get(*index);
            let section = package.and_then(|p| p.section.as_deref()).unwrap_or_default();
            let section = section.rsplit('/').next().unwrap_or_default();
            let name = package.map_or("", |p| p.name.as_str());
            (
                !self.asked(*index),
                section != "metapackages",
                matches!(section, "libs" | "oldlibs") || (section.is_empty() && name.starts_with("lib")),
                name.len(),
                name.to_owned(),
            )
        })
    }

    fn why(&self, package: usize, ring: &[usize], ring_of: &[usize], apart: &Asides) -> Why {
        if self.asked(package) {
            return Why::Asked;
        }
        let mut wanted: Option<(Kind, usize)> = None;
        for member in ring {
            for (by, edge) in self.graph.needed_by(*member) {
                if let Some(clause) = self.graph.clause(edge)
                    && !is_apart(apart, by)
                    && ring_of.get(by) != ring_of.get(package)
                {
                    let this = (clause.kind, by);
                    wanted = Some(wanted.map_or(this, |known| known.min(this)));
                }
            }
        }
        match wanted {
            Some((kind, by)) if kind.is_hard() => Why::Choice { by },
            Some((kind, by)) => Why::Wanted { by, kind },
            None => Why::Top,
        }
    }
}

/// How many roots are looked at in one walk through the graph: the bits of a word.
const TOGETHER: usize = 64;

/// How many packages each root brings that the base lacks, and their bytes. `rings` are in reverse topological order, as
/// Kosaraju's algorithm gives them: one walk from the end sees every ring after all that bring it.
fn weigh(work: &Work<'_>, rings: &[Vec<usize>], ring_of: &[usize], roots: &mut [Root]) {
    let mut brings: Vec<Vec<usize>> = vec![Vec::new(); rings.len()];
    for clause in work.graph.clauses().iter().filter(|c| c.certain) {
        let ring = |package: usize| ring_of.get(package).copied().filter(|r| *r != usize::MAX);
        let others = clause.satisfiers.iter().filter_map(|s| ring(s.package));
        if let Some(from) = ring(clause.package)
            && let Some(list) = brings.get_mut(from)
        {
            list.extend(others.filter(|to| *to != from));
        }
    }
    let size = |package: usize| work.packages.get(package).and_then(|p| p.size).unwrap_or(0);
    let weights: Vec<(usize, u64)> = rings
        .iter()
        .map(|ring| {
            let lacked = || ring.iter().copied().filter(|p| !flag(&work.in_base, *p));
            (lacked().count(), lacked().map(size).fold(0, u64::saturating_add))
        })
        .collect();
    for some in roots.chunks_mut(TOGETHER) {
        let mut reached: Vec<u64> = vec![0; rings.len()];
        for (bit, root) in some.iter().enumerate() {
            let ring = ring_of.get(root.package).copied().unwrap_or(usize::MAX);
            if let Some(word) = reached.get_mut(ring) {
                *word |= 1 << bit;
            }
        }
        for ring in (0..rings.len()).rev() {
            let word = reached.get(ring).copied().unwrap_or(0);
            if word == 0 {
                continue;
            }
            for to in brings.get(ring).map_or(&[][..], Vec::as_slice) {
                if let Some(other) = reached.get_mut(*to) {
                    *other |= word;
                }
            }
            let (count, bytes) = weights.get(ring).copied().unwrap_or((0, 0));
            let mut bits = word;
            while bits != 0 {
                if let Some(root) = some.get_mut(bits.trailing_zeros() as usize) {
                    root.brings += count;
                    root.bytes = root.bytes.saturating_add(bytes);
                }
                bits &= bits - 1;
            }
        }
    }
}
