//! Draws the graph: as SVG by own code, as DOT for graphviz, as JSON for programs.

mod dot;
mod json;
mod svg;

pub use json::SCHEMA;

use super::{Aside, Graph, Mark, Pruned, Why};
use crate::pkgdb::Package;
use std::path::Path;

/// A form of drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Scalable Vector Graphics 1.1, to look at in a browser.
    Svg,
    /// The language of graphviz.
    Dot,
    /// One JSON document.
    Json,
}

impl Format {
    /// The form that the ending of a file's name asks for.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "svg" => Some(Self::Svg),
            "dot" | "gv" => Some(Self::Dot),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What is drawn.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The name of the machine, for the heading.
    pub title: &'a str,
    /// The graph.
    pub graph: &'a Graph,
    /// The packages it was built from.
    pub packages: &'a [Package],
    /// What pruning found.
    pub pruned: &'a Pruned,
}

/// The drawing as text.
pub fn draw(view: &View<'_>, format: Format) -> String {
    match format {
        Format::Svg => svg::draw(view),
        Format::Dot => dot::draw(view),
        Format::Json => json::draw(view),
    }
}

impl View<'_> {
    /// What each package is called.
    fn labels(&self) -> Vec<String> {
        self.packages.iter().map(|p| self.graph.label(p)).collect()
    }

    fn marks(&self) -> Vec<Mark> {
        self.pruned.marks(self.packages.len())
    }

    /// Why each package is where it is, in words; empty for one that a root or the base brings.
    fn reasons(&self, labels: &[String]) -> Vec<String> {
        let mut reasons = vec![String::new(); self.packages.len()];
        for root in &self.pruned.roots {
            if let Some(reason) = reasons.get_mut(root.package) {
                *reason = root_reason(root.why, labels);
            }
        }
        for apart in &self.pruned.apart {
            if let Some(reason) = reasons.get_mut(apart.package) {
                *reason = aside_reason(&apart.why, labels);
            }
        }
        reasons
    }
}

fn name(labels: &[String], package: usize) -> &str {
    labels.get(package).map_or("", String::as_str)
}

/// Why a package is a root, in words; `labels` are the names of the packages.
pub fn root_reason(why: Why, labels: &[String]) -> String {
    match why {
        Why::Asked => "asked for".to_owned(),
        Why::Wanted {
            by,
            kind: super::Kind::Supplements,
        } => format!("supplements {}", name(labels, by)),
        Why::Wanted { by, kind } => format!("{} {} it", name(labels, by), kind.verb()),
        Why::Choice { by } => format!("chosen where {} needs one of several", name(labels, by)),
        Why::Top => "nothing needs it".to_owned(),
    }
}

/// Why a package is set apart, in words.
pub fn aside_reason(why: &Aside, labels: &[String]) -> String {
    match why {
        Aside::NotInContainers { glob } => format!("no container needs {glob}"),
        Aside::OnlyFor { package } => format!("only for {}", name(labels, *package)),
        Aside::Orphan => "orphan: nothing needs it any more".to_owned(),
    }
}

/// Bytes for a label.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match bytes {
        0 => "no size".to_owned(),
        _ if mib < 0.1 => format!("{} KiB", bytes.div_ceil(1024)),
        _ if mib < 10.0 => format!("{mib:.1} MiB"),
        _ => format!("{mib:.0} MiB"),
    }
}

#[cfg(test)]
mod tests;
