//! The graph in the language of graphviz.

use super::{View, size};
use crate::error::Escaped;
use crate::graph::{Kind, Mark};
use std::fmt::Write;

/// A string of the DOT language: only the quote is special in it; backslashes are doubled, so that graphviz's own escapes
/// do not arise.
fn quoted(text: &str) -> String {
    let shown = Escaped(text.as_bytes()).to_string();
    format!("\"{}\"", shown.replace('\\', "\\\\").replace('"', "\\\""))
}

pub(super) fn draw(view: &View<'_>) -> String {
    let labels = view.labels();
    let reasons = view.reasons(&labels);
    let mut out = format!("digraph {} {{\n", quoted(view.title));
    out.push_str("  rankdir=LR; node [shape=box, style=filled, fillcolor=white, fontname=\"sans-serif\"];\n");
    let rows = view.packages.iter().zip(&labels).zip(&reasons).zip(view.marks());
    for (index, (((package, label), reason), mark)) in rows.enumerate() {
        let look = match mark {
            Mark::Root => "fillcolor=\"#cfe3ff\", fontsize=20, penwidth=2",
            Mark::Implied => "fontsize=12",
            Mark::Base => "fillcolor=\"#eeeeee\", fontsize=10, color=gray",
            Mark::Apart => "style=dashed, fontsize=10, color=gray, fontcolor=gray",
        };
        let tip = format!(
            "{} {}, {}{}{reason}",
            package.name,
            package.full_version(),
            size(package.size.unwrap_or(0)),
            if reason.is_empty() { "" } else { ", " },
        );
        let _ = writeln!(
            out,
            "  p{index} [label={}, tooltip={}, {look}];",
            quoted(label),
            quoted(&tip)
        );
    }
    for clause in view.graph.clauses() {
        let look = match (clause.kind, clause.certain) {
            (Kind::PreDepends | Kind::Depends, true) => "",
            (Kind::PreDepends | Kind::Depends, false) => ", color=\"#888888\"",
            _ => ", style=dotted, color=\"#aaaaaa\", constraint=false",
        };
        for satisfier in &clause.satisfiers {
            let tip = quoted(clause.relation(view.packages));
            let (from, to) = (clause.package, satisfier.package);
            let _ = writeln!(out, "  p{from} -> p{to} [tooltip={tip}{look}];");
        }
    }
    out.push_str("}\n");
    out
}
