//! What `vm2k scan` tells of the dependency graph: roots, paths, drawings.

use super::{text, ui::Ui};
use crate::distro::Distros;
use crate::error::{Error, Escaped};
use crate::graph::{self, Aside, Graph, Proved, Pruned, Under, draw};
use crate::inventory::Inventory;
use crate::pkgdb::{Database, Package};
use std::path::Path;

/// The graph of a machine, pruned.
pub(super) struct Roots<'a> {
    packages: &'a [Package],
    graph: Graph,
    pruned: Pruned,
    labels: Vec<String>,
}

/// The most paths that `--why` shows.
const PATHS: usize = 5;
/// The most names of one kind that a line lists.
const NAMES: usize = 12;

impl<'a> Roots<'a> {
    /// Builds, prunes and proves; `None` for a machine whose packages are not known. No base image is looked at: what the
    /// system cannot be without stands for it.
    pub(super) fn find(inventory: &'a Inventory, distros: &Distros) -> anyhow::Result<Option<Self>> {
        let database = inventory.database.and_then(Database::named);
        let (Some(packages), Some(database)) = (inventory.packages.as_deref(), database) else {
            return Ok(None);
        };
        let distro = inventory.os.distro.as_deref().and_then(|id| distros.get(id));
        let Proved { graph, pruned } = graph::find(packages, database, Under::System, distros, distro)?;
        let labels: Vec<String> = packages.iter().map(|p| graph.label(p)).collect();
        Ok(Some(Self {
            packages,
            graph,
            pruned,
            labels,
        }))
    }

    fn label(&self, package: usize) -> String {
        let label = self.labels.get(package).map_or("", String::as_str);
        Escaped(label.as_bytes()).to_string()
    }

    /// The names of the roots, in the order of the alphabet.
    pub(super) fn names(&self) -> Vec<String> {
        let roots = self.pruned.roots.iter();
        let mut names: Vec<String> = roots
            .filter_map(|r| self.labels.get(r.package).cloned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// One line for the table of `scan`.
    pub(super) fn summary(&self) -> String {
        let apart = self.pruned.apart.len();
        let shown: Vec<String> = self
            .pruned
            .roots
            .iter()
            .take(6)
            .map(|r| self.label(r.package))
            .collect();
        let more = self.pruned.roots.len().saturating_sub(shown.len());
        let more = match more {
            0 => String::new(),
            n => format!(", and {} more (--roots)", text::count(n)),
        };
        format!(
            "{} bring the rest: {}{more}; {} set apart",
            text::count(self.pruned.roots.len()),
            shown.join(", "),
            text::count(apart)
        )
    }

    /// What `--roots` prints.
    pub(super) fn table(&self) -> String {
        let mut table = text::table(&["root", "version", "brings", "bytes", "why"], &[2, 3]);
        for root in &self.pruned.roots {
            let version = self
                .packages
                .get(root.package)
                .map(Package::full_version)
                .unwrap_or_default();
            let mut why = draw::root_reason(root.why, &self.labels);
            if !root.ring.is_empty() {
                let ring: Vec<&str> = root
                    .ring
                    .iter()
                    .filter_map(|p| self.labels.get(*p))
                    .map(String::as_str)
                    .collect();
                why.push_str(&format!("; in a ring with {}", ring.join(", ")));
            }
            table.add_row([
                self.label(root.package),
                Escaped(version.as_bytes()).to_string(),
                text::count(root.brings),
                text::bytes(root.bytes),
                Escaped(why.as_bytes()).to_string(),
            ]);
        }
        let mut out = table.trim_fmt() + "\n\n";
        out.push_str(&format!(
            "{} roots of {} packages; {} come with them, {} are the system itself or come with it, {} are set apart\n",
            text::count(self.pruned.roots.len()),
            text::count(self.packages.len()),
            text::count(self.pruned.implied.len()),
            text::count(self.pruned.base.len()),
            text::count(self.pruned.apart.len()),
        ));
        type Sort = fn(&Aside) -> bool;
        let kinds: [(&str, Sort); 3] = [
            ("no container needs", |a| {
                matches!(a, Aside::NotInContainers { .. })
            }),
            ("only needed by those", |a| matches!(a, Aside::OnlyFor { .. })),
            ("orphans, which nothing needs any more", |a| {
                matches!(a, Aside::Orphan)
            }),
        ];
        for (heading, of) in kinds {
            let names: Vec<String> = self
                .pruned
                .apart
                .iter()
                .filter(|a| of(&a.why))
                .map(|a| self.label(a.package))
                .collect();
            if !names.is_empty() {
                out.push_str(&format!("set apart, {heading}: {}\n", names.join(", ")));
            }
        }
        for unmet in &self.graph.unmet {
            out.push_str(&format!(
                "not fulfilled: {} needs {}{}\n",
                self.label(unmet.package),
                Escaped(unmet.relation.as_bytes()),
                unmet
                    .error
                    .as_deref()
                    .map_or(String::new(), |e| format!(" ({e})")),
            ));
        }
        out
    }

    /// What `--why NAME` prints.
    ///
    /// # Errors
    /// [`Error::Usage`] for a package that is not installed, with names that are near.
    pub(super) fn why(&self, name: &str) -> anyhow::Result<String> {
        let labels = self.labels.iter().zip(self.packages).enumerate();
        let found: Vec<usize> = labels
            .filter(|(_, (label, package))| *label == name || package.name == name)
            .map(|(index, _)| index)
            .collect();
        if found.is_empty() {
            let error = Error::usage(format!("no package {} is installed", Escaped(name.as_bytes())));
            let near = graph::near_names(self.packages, name);
            return Err(match near.is_empty() {
                true => error.hint("vm2k scan --json lists the packages"),
                false => error.hint(format!("did you mean {}", near.join(", "))),
            }
            .into());
        }
        let mut out = String::new();
        for package in found {
            self.why_one(package, &mut out);
        }
        Ok(out)
    }

    fn why_one(&self, package: usize, out: &mut String) {
        let label = self.label(package);
        if let Some(root) = self.pruned.roots.iter().find(|r| r.package == package) {
            let why = draw::root_reason(root.why, &self.labels);
            out.push_str(&format!("{label} is a root: {}\n", Escaped(why.as_bytes())));
        }
        if let Some(apart) = self.pruned.apart.iter().find(|a| a.package == package) {
            let why = draw::aside_reason(&apart.why, &self.labels);
            out.push_str(&format!("{label} is set apart: {}\n", Escaped(why.as_bytes())));
        }
        if self.pruned.base.binary_search(&package).is_ok() {
            out.push_str(&format!("{label} is of the system itself, or comes with it\n"));
        }
        let asked = self.packages.get(package).and_then(|p| p.manual) == Some(true);
        if asked && !self.pruned.roots.iter().any(|r| r.package == package) {
            out.push_str(&format!("{label} is marked as asked for\n"));
        }
        let roots: Vec<usize> = self
            .pruned
            .roots
            .iter()
            .map(|r| r.package)
            .filter(|p| *p != package)
            .collect();
        let mut paths = graph::why(&self.graph, &roots, package, PATHS);
        if paths.is_empty() {
            // What is set apart may come from others that are.
            let apart: Vec<usize> = self
                .pruned
                .apart
                .iter()
                .map(|a| a.package)
                .filter(|p| *p != package)
                .collect();
            paths = graph::why(&self.graph, &apart, package, PATHS);
        }
        if paths.is_empty() {
            out.push_str(&format!("nothing that is asked for leads to {label}\n"));
        }
        for path in paths {
            for (depth, step) in path.iter().enumerate() {
                let Some(clause) = self.graph.clause(step.edge) else {
                    continue;
                };
                let through = clause.satisfiers.get(step.edge.satisfier).map(|s| s.by);
                let through = match through {
                    Some(graph::By::Provided) => ", which it provides",
                    Some(graph::By::Soname) => ", a library of it",
                    Some(graph::By::File) => ", a file of it",
                    _ => "",
                };
                let others = clause.satisfiers.len() - 1;
                let others = match others {
                    0 => String::new(),
                    n => format!(" ({n} more would do)"),
                };
                out.push_str(&format!(
                    "{}{} {} {}: {}{through}{others}\n",
                    "  ".repeat(depth),
                    self.label(step.from),
                    clause.kind.verb(),
                    self.label(step.to),
                    Escaped(clause.relation(self.packages).as_bytes()),
                ));
            }
        }
    }

    /// Writes a drawing.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name whose ending says no form, [`Error::Io`] if the file cannot be written.
    pub(super) fn draw(&self, title: &str, path: &Path, ui: &Ui) -> anyhow::Result<()> {
        let format = format_of(path)?;
        let view = draw::View {
            title,
            graph: &self.graph,
            packages: self.packages,
            pruned: &self.pruned,
        };
        std::fs::write(path, draw::draw(&view, format))
            .map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        ui.note(&format!(
            "{}: {} packages drawn",
            path.display(),
            self.packages.len()
        ));
        Ok(())
    }

    /// The names of what is set apart for a reason, cut to a line.
    pub(super) fn orphans(&self) -> Option<String> {
        let orphans = self.pruned.apart.iter().filter(|a| a.why == Aside::Orphan);
        let names: Vec<String> = orphans.map(|a| self.label(a.package)).collect();
        let more = names.len().saturating_sub(NAMES);
        let shown: Vec<String> = names.iter().take(NAMES).cloned().collect();
        (!names.is_empty()).then(|| match more {
            0 => shown.join(", "),
            n => format!("{}, and {} more", shown.join(", "), text::count(n)),
        })
    }
}

/// The form that a file's name asks for.
///
/// # Errors
/// [`Error::Usage`] for an ending that says none.
pub(super) fn format_of(path: &Path) -> anyhow::Result<draw::Format> {
    let format = draw::Format::of(path).ok_or_else(|| {
        Error::usage(format!("{}: no form of drawing", path.display()))
            .hint("end the name in .svg, .dot or .json")
    })?;
    Ok(format)
}
