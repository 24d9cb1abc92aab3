//! The graph as a JSON document.

use super::View;
use crate::graph::{By, Kind, Mark};
use serde::Serialize;

/// Name and version of the document's shape.
pub const SCHEMA: &str = "vm2k.graph/1";

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    name: &'a str,
    /// A package's id is its position here.
    packages: Vec<PackageRow<'a>>,
    edges: Vec<EdgeRow<'a>>,
    unmet: Vec<UnmetRow<'a>>,
}

#[derive(Serialize)]
struct PackageRow<'a> {
    name: &'a str,
    version: String,
    arch: Option<&'a str>,
    /// Bytes.
    size: Option<u64>,
    manual: Option<bool>,
    /// `root`, `implied`, `base`, `apart`.
    mark: &'static str,
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct EdgeRow<'a> {
    from: usize,
    to: usize,
    kind: &'static str,
    relation: &'a str,
    alternative: u16,
    by: &'static str,
    certain: bool,
}

#[derive(Serialize)]
struct UnmetRow<'a> {
    package: usize,
    relation: &'a str,
    error: Option<&'a str>,
}

pub(super) fn draw(view: &View<'_>) -> String {
    let labels = view.labels();
    let reasons = view.reasons(&labels);
    let marks = view.marks();
    let rows = view.packages.iter().zip(&reasons).zip(&marks);
    let packages = rows.map(|((package, reason), mark)| PackageRow {
        name: &package.name,
        version: package.full_version(),
        arch: package.arch.as_deref(),
        size: package.size,
        manual: package.manual,
        mark: match mark {
            Mark::Root => "root",
            Mark::Implied => "implied",
            Mark::Base => "base",
            Mark::Apart => "apart",
        },
        reason: Some(reason.as_str()).filter(|r| !r.is_empty()),
    });
    let packages = packages.collect();
    let edges = view.graph.clauses().iter().flat_map(|clause| {
        clause.satisfiers.iter().map(|satisfier| EdgeRow {
            from: clause.package,
            to: satisfier.package,
            kind: match clause.kind {
                Kind::PreDepends => "pre-depends",
                Kind::Depends => "depends",
                Kind::Recommends => "recommends",
                Kind::Suggests => "suggests",
                Kind::Supplements => "supplements",
            },
            relation: clause.relation(view.packages),
            alternative: satisfier.alternative,
            by: match satisfier.by {
                By::Name => "name",
                By::Soname => "soname",
                By::Provided => "provides",
                By::File => "file",
            },
            certain: clause.certain,
        })
    });
    let unmet = view.graph.unmet.iter().map(|u| UnmetRow {
        package: u.package,
        relation: &u.relation,
        error: u.error.as_deref(),
    });
    let document = Document {
        schema: SCHEMA,
        name: view.title,
        packages,
        edges: edges.collect(),
        unmet: unmet.collect(),
    };
    // Strings and numbers only: there is nothing that JSON could not say.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}
