//! Finds what fulfils each relation.

use super::{By, Clause, Edge, Graph, Kind, Satisfier, Unmet};
use crate::pkgdb::order::{Op, Order};
use crate::pkgdb::relation::{Grammar, Name, Requirement};
use crate::pkgdb::{Database, Package, is_for_all};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};

/// The version that something is provided in.
#[derive(Clone, Copy)]
enum Version<'a> {
    /// That of the package.
    Own,
    /// None is said.
    Unsaid,
    /// This one.
    Is(Op, &'a str),
}

/// Where to look things up.
struct Index<'a> {
    packages: &'a [Package],
    order: Order,
    grammar: Grammar,
    native: Option<&'a str>,
    /// The full version of each package.
    versions: Vec<String>,
    /// By name: the package, the version.
    provided: HashMap<&'a str, Vec<(usize, Version<'a>)>>,
    /// By path, the paths that are needed only.
    files: HashMap<Vec<u8>, Vec<usize>>,
    /// Names that packages stand for which the machine lacks and the base has.
    elsewhere: HashSet<&'a str>,
}

/// What came of a requirement: whether it holds, and through which packages. No clauses where it holds by itself.
struct Outcome {
    met: bool,
    clauses: Vec<Found>,
}

struct Found {
    satisfiers: Vec<Satisfier>,
    /// True if no other package than the first satisfier could be taken.
    named: bool,
}

impl Outcome {
    const HOLDS: Self = Self {
        met: true,
        clauses: Vec::new(),
    };
    const FAILS: Self = Self {
        met: false,
        clauses: Vec::new(),
    };
}

type Relation<'a> = (usize, Kind, usize, &'a str);

impl Graph {
    /// The graph of `packages`, whose relations and versions are those of `database`.
    ///
    /// `elsewhere` are packages that the machine lacks and the base image has: what one of them could fulfil is not
    /// certain to bring the package of the machine that fulfils it.
    ///
    /// A relation that nothing fulfils, or that breaks its grammar, is listed in [`Graph::unmet`] if it is a hard one.
    pub fn build(packages: &[Package], database: &Database, elsewhere: &[Package]) -> Self {
        let relations = relations(packages);
        let mut graph = Self {
            native: database.arch_of(packages).map(str::to_owned),
            ..Self::default()
        };
        graph.edges.reserve_exact_nodes(packages.len());
        for _ in packages {
            graph.edges.add_node(());
        }
        let mut parsed: Vec<(Relation<'_>, Requirement<'_>)> = Vec::with_capacity(relations.len());
        for relation in relations {
            match database.grammar.parse(relation.3) {
                Ok(requirement) => parsed.push((relation, requirement)),
                Err(e) if relation.1.is_hard() => graph.unmet.push(Unmet {
                    package: relation.0,
                    relation: relation.3.to_owned(),
                    error: Some(e.to_string()),
                }),
                Err(_) => {}
            }
        }
        let index = Index::new(packages, database, elsewhere, parsed.iter().map(|(_, r)| r));
        for ((package, kind, element, text), requirement) in &parsed {
            let outcome = index.eval(requirement, *package, None);
            // What does hold of a relation that fails as a whole is needed all the same.
            if !outcome.met && kind.is_hard() {
                graph.unmet.push(Unmet {
                    package: *package,
                    relation: (*text).to_owned(),
                    error: None,
                });
            }
            for found in outcome.clauses {
                graph.add(*package, *kind, *element, found);
            }
        }
        graph.unmet.sort_by_key(|u| u.package);
        graph
    }

    fn add(&mut self, package: usize, kind: Kind, element: usize, found: Found) {
        if kind == Kind::Supplements {
            for satisfier in found.satisfiers {
                let by = Satisfier { package, ..satisfier };
                self.push(Clause {
                    package: satisfier.package,
                    owner: package,
                    kind,
                    element,
                    satisfiers: vec![by],
                    certain: false,
                });
            }
            return;
        }
        let certain = kind.is_hard() && found.named && found.satisfiers.len() == 1;
        self.push(Clause {
            package,
            owner: package,
            kind,
            element,
            satisfiers: found.satisfiers,
            certain,
        });
    }

    fn push(&mut self, clause: Clause) {
        let number = self.clauses.len();
        for (satisfier, to) in clause.satisfiers.iter().enumerate() {
            let edge = Edge {
                clause: number,
                satisfier,
            };
            let (from, to) = (NodeIndex::new(clause.package), NodeIndex::new(to.package));
            self.edges.add_edge(from, to, edge);
        }
        self.clauses.push(clause);
    }
}

/// Package, field, position and text of every relation.
fn relations(packages: &[Package]) -> Vec<Relation<'_>> {
    let mut all = Vec::new();
    for (index, package) in packages.iter().enumerate() {
        let r = &package.relations;
        for (kind, list) in [
            (Kind::PreDepends, &r.pre_depends),
            (Kind::Depends, &r.depends),
            (Kind::Recommends, &r.recommends),
            (Kind::Suggests, &r.suggests),
            (Kind::Supplements, &r.supplements),
        ] {
            let texts = list.iter().enumerate();
            all.extend(texts.map(|(element, text)| (index, kind, element, text.as_str())));
        }
    }
    all
}

/// The places where a file may be that a relation names: the path itself, that of a merged `/usr`, and `sbin` for `bin`,
/// which some systems have made one.
fn places(path: &str) -> Vec<String> {
    let mut found = vec![path.to_owned()];
    let merged = |path: &str| match path.strip_prefix("/usr") {
        Some(rest) if is_merged(rest) => Some(rest.to_owned()),
        _ if is_merged(path) => Some(format!("/usr{path}")),
        _ => None,
    };
    found.extend(merged(path));
    let other = if path.contains("/sbin/") {
        path.replacen("/sbin/", "/bin/", 1)
    } else {
        path.replacen("/bin/", "/sbin/", 1)
    };
    if other != path {
        found.extend(merged(&other));
        found.push(other);
    }
    found
}

fn is_merged(path: &str) -> bool {
    ["/bin/", "/sbin/", "/lib/", "/lib64/", "/lib32/", "/libx32/"]
        .iter()
        .any(|dir| path.starts_with(dir))
}

impl<'a> Index<'a> {
    fn new<'r>(
        packages: &'a [Package],
        database: &Database,
        elsewhere: &'a [Package],
        requirements: impl Iterator<Item = &'r Requirement<'r>>,
    ) -> Self {
        let mut index = Self {
            packages,
            order: database.order,
            grammar: database.grammar,
            native: database.arch_of(packages),
            versions: packages.iter().map(Package::full_version).collect(),
            provided: HashMap::with_capacity(packages.len() * 2),
            files: HashMap::new(),
            elsewhere: HashSet::new(),
        };
        for (number, package) in packages.iter().enumerate() {
            let own = index.provided.entry(&package.name).or_default();
            own.push((number, Version::Own));
            for text in &package.relations.provides {
                // What a package provides in words that nobody can read is provided to nobody.
                let Ok(name) = index.grammar.parse_provided(text) else {
                    continue;
                };
                let version = name.version.map_or(Version::Unsaid, |(op, v)| Version::Is(op, v));
                let list = index.provided.entry(name.name).or_default();
                // Of an own name the version is known.
                if name.name != package.name || index.grammar == Grammar::Rpm {
                    list.push((number, version));
                }
            }
        }
        for package in elsewhere {
            index.elsewhere.insert(&package.name);
            for text in &package.relations.provides {
                let name = index.grammar.parse_provided(text);
                index.elsewhere.extend(name.ok().map(|n| n.name));
            }
        }
        for requirement in requirements {
            let paths = requirement.names().into_iter().filter(|n| n.is_path());
            for name in paths {
                for place in places(name.name) {
                    index.files.entry(place.into_bytes()).or_default();
                }
            }
        }
        if !index.files.is_empty() {
            for (number, package) in packages.iter().enumerate() {
                for file in &package.files {
                    if let Some(owners) = index.files.get_mut(file.path.as_bytes())
                        && owners.last() != Some(&number)
                    {
                        owners.push(number);
                    }
                }
            }
        }
        index
    }

    /// The architecture that a package counts as.
    fn arch(&self, package: usize) -> Option<&'a str> {
        let arch = self.packages.get(package)?.arch.as_deref();
        arch.filter(|a| !is_for_all(a)).or(self.native)
    }

    /// dpkg's rule for architectures (its specification of multiarch): `other` may serve `from` if it is of the same
    /// architecture, of the named one, or lets others use it.
    fn arch_serves(&self, other: usize, name: &Name<'_>, from: usize) -> bool {
        if self.grammar != Grammar::Dpkg {
            return true;
        }
        let multi = self.packages.get(other).and_then(|p| p.multi_arch.as_deref());
        match name.arch {
            _ if multi == Some("foreign") => true,
            None => self.arch(other) == self.arch(from),
            // Only a package that allows it may be of any; without its word it has to be of this machine's.
            Some("any") if multi == Some("allowed") => true,
            Some("any") => self.arch(other) == self.arch(from),
            Some("native") => self.arch(other) == self.native,
            Some(arch) => self.arch(other) == Some(arch),
        }
    }

    fn version_serves(&self, other: usize, provided: Version<'_>, wanted: Option<(Op, &str)>) -> bool {
        let Some((op, wanted)) = wanted else {
            return true;
        };
        match provided {
            Version::Own => {
                let own = self.versions.get(other).map_or("", String::as_str);
                self.order.satisfies(own, op, wanted)
            }
            // rpm takes a capability without a version as of every version; the others take it as of none.
            Version::Unsaid => self.grammar == Grammar::Rpm,
            Version::Is(Op::Equal, version) => self.order.satisfies(version, op, wanted),
            Version::Is(range, version) => overlaps(self.order, (range, version), (op, wanted)),
        }
    }

    /// The packages that serve a name, each once, those of that name first.
    fn serving(&self, name: &Name<'_>, from: usize, alternative: u16) -> Vec<Satisfier> {
        let mut found: Vec<Satisfier> = Vec::new();
        let mut add = |package: usize, by: By| match found.iter_mut().find(|s| s.package == package) {
            Some(known) => known.by = known.by.min(by),
            None => found.push(Satisfier {
                package,
                alternative,
                by,
            }),
        };
        for (other, version) in self.provided.get(name.name).map_or(&[][..], Vec::as_slice) {
            if !self.version_serves(*other, *version, name.version) || !self.arch_serves(*other, name, from) {
                continue;
            }
            let own = self.packages.get(*other).is_some_and(|p| p.name == name.name);
            let by = match () {
                () if own => By::Name,
                () if name.is_path() => By::File,
                () if is_soname(name.name) => By::Soname,
                () => By::Provided,
            };
            add(*other, by);
        }
        if name.is_path() {
            for place in places(name.name) {
                let owners = self.files.get(place.as_bytes()).map_or(&[][..], Vec::as_slice);
                for other in owners.iter().filter(|o| self.arch_serves(**o, name, from)) {
                    add(*other, By::File);
                }
                // The path itself is better than one that only leads to the same place.
                if !owners.is_empty() {
                    break;
                }
            }
        }
        found.sort_by_key(|s| s.by);
        found
    }

    /// True if a package manager that is asked for `name` takes this package and no other.
    fn is_named(&self, name: &Name<'_>, by: By) -> bool {
        if self.elsewhere.contains(name.name) {
            return false;
        }
        match by {
            By::Name | By::Soname => true,
            // A capability of a kind, as in `pkgconfig(zlib)`, is made from what is in the package. A plain word is a role.
            By::Provided => match self.grammar {
                Grammar::Rpm => name.name.contains('('),
                Grammar::Apk => name.name.starts_with("pc:"),
                Grammar::Dpkg | Grammar::Alpm => false,
            },
            By::File => false,
        }
    }

    fn eval(&self, requirement: &Requirement<'_>, from: usize, alternative: Option<u16>) -> Outcome {
        match requirement {
            Requirement::Name(name) => {
                // rpm's own abilities are no packages.
                if self.grammar == Grammar::Rpm && name.name.starts_with("rpmlib(") {
                    return Outcome::HOLDS;
                }
                let found = self.serving(name, from, alternative.unwrap_or(0));
                let named = found.first().is_some_and(|s| self.is_named(name, s.by));
                one_of(found, named, from)
            }
            Requirement::Not(_) => Outcome::HOLDS,
            Requirement::All(all) => {
                let mut outcome = Outcome::HOLDS;
                for part in all {
                    let part = self.eval(part, from, alternative);
                    outcome.met &= part.met;
                    outcome.clauses.extend(part.clauses);
                }
                outcome
            }
            Requirement::Any(all) => self.any(all, from, alternative),
            Requirement::If(then, condition, other) => match (self.eval(condition, from, None).met, other) {
                (true, _) => self.eval(then, from, alternative),
                (false, Some(other)) => self.eval(other, from, alternative),
                (false, None) => Outcome::HOLDS,
            },
            Requirement::Unless(then, condition, other) => {
                match (self.eval(condition, from, None).met, other) {
                    (false, _) => self.eval(then, from, alternative),
                    (true, Some(other)) => self.eval(other, from, alternative),
                    (true, None) => Outcome::HOLDS,
                }
            }
            Requirement::With(..) | Requirement::Without(..) => {
                let found = self.sets(requirement, from, alternative.unwrap_or(0));
                let names = requirement.names();
                let named = found
                    .first()
                    .is_some_and(|s| names.iter().all(|n| self.is_named(n, s.by)));
                one_of(found, named, from)
            }
        }
    }

    fn any(&self, all: &[Requirement<'_>], from: usize, alternative: Option<u16>) -> Outcome {
        let mut met: Vec<(usize, Outcome)> = Vec::new();
        for (number, part) in all.iter().enumerate() {
            let number16 = u16::try_from(number).unwrap_or(u16::MAX);
            let outcome = self.eval(part, from, alternative.or(Some(number16)));
            if outcome.met {
                met.push((number, outcome));
            }
        }
        if met.iter().any(|(_, outcome)| outcome.clauses.is_empty()) {
            return Outcome::HOLDS;
        }
        // A base that has another alternative is content with that one.
        let names = all.iter().flat_map(Requirement::names);
        let other_way = names.into_iter().any(|n| self.elsewhere.contains(n.name));
        if met.iter().all(|(_, outcome)| outcome.clauses.len() == 1) {
            let mut satisfiers: Vec<Satisfier> = Vec::new();
            let mut named = false;
            for (number, outcome) in met {
                for found in outcome.clauses {
                    named |= number == 0 && found.named;
                    for satisfier in found.satisfiers {
                        if !satisfiers.iter().any(|s| s.package == satisfier.package) {
                            satisfiers.push(satisfier);
                        }
                    }
                }
            }
            return one_of(satisfiers, named && !other_way, from);
        }
        // Several packages together are one alternative: the first that holds counts.
        let alone = met.len() == 1 && met.first().is_some_and(|(number, _)| *number == 0);
        let Some((_, mut outcome)) = met.into_iter().next() else {
            return Outcome::FAILS;
        };
        if !alone || other_way {
            outcome.clauses.iter_mut().for_each(|c| c.named = false);
        }
        outcome
    }

    /// The packages of a set expression.
    fn sets(&self, requirement: &Requirement<'_>, from: usize, alternative: u16) -> Vec<Satisfier> {
        match requirement {
            Requirement::Name(name) => self.serving(name, from, alternative),
            Requirement::With(a, b) | Requirement::Without(a, b) => {
                let keep = matches!(requirement, Requirement::With(..));
                let second: HashSet<usize> = self
                    .sets(b, from, alternative)
                    .iter()
                    .map(|s| s.package)
                    .collect();
                let mut first = self.sets(a, from, alternative);
                first.retain(|s| second.contains(&s.package) == keep);
                first
            }
            Requirement::Any(all) | Requirement::All(all) => {
                all.iter().flat_map(|r| self.sets(r, from, alternative)).collect()
            }
            Requirement::If(..) | Requirement::Unless(..) | Requirement::Not(_) => {
                let clauses = self.eval(requirement, from, Some(alternative)).clauses;
                clauses.into_iter().flat_map(|c| c.satisfiers).collect()
            }
        }
    }
}

/// A clause of these packages; none where the package fulfils its own relation.
fn one_of(satisfiers: Vec<Satisfier>, named: bool, from: usize) -> Outcome {
    if satisfiers.is_empty() {
        return Outcome::FAILS;
    }
    if satisfiers.iter().any(|s| s.package == from) {
        return Outcome::HOLDS;
    }
    Outcome {
        met: true,
        clauses: vec![Found { satisfiers, named }],
    }
}

/// True if a provided range and a wanted one have a version in common, as far as their ends tell (rpm's
/// `rpmdsCompare`).
fn overlaps(order: Order, provided: (Op, &str), wanted: (Op, &str)) -> bool {
    let down = |op| matches!(op, Op::Less | Op::LessEqual | Op::LessFuzzy);
    let up = |op| matches!(op, Op::Greater | Op::GreaterEqual | Op::GreaterFuzzy);
    let (a, b) = (provided.0, wanted.0);
    if order.satisfies(provided.1, Op::Equal, wanted.1) {
        let with_end = |op| !matches!(op, Op::Less | Op::Greater);
        return (with_end(a) && with_end(b)) || (down(a) && down(b)) || (up(a) && up(b));
    }
    match order.satisfies(provided.1, Op::Less, wanted.1) {
        true => up(a) || down(b),
        false => down(a) || up(b),
    }
}

/// True for the name of a shared library: `libc.so.6(GLIBC_2.4)(64bit)`, `so:libz.so.1`, `libz.so`.
fn is_soname(name: &str) -> bool {
    name.starts_with("so:") || name.ends_with(".so") || name.contains(".so.") || name.contains(".so(")
}
