//! `vm2k diff`: any two things that have files, both ways.

use super::{Common, target, text, ui::Ui};
use crate::diff::{Change, Fields, Known, Side, compare};
use crate::error::code;
use crate::tree::Kind;
use clap::Args;
use std::io::{BufWriter, Write};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The old side: a disk file, dir:PATH or an image
    a: String,
    /// The new side
    b: String,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// The `schema` of `diff --json`.
const SCHEMA: &str = "vm2k.diff/1";

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let (a, known_a) = target::open_side(common, &arguments.a, ui)?;
    let (b, known_b) = target::open_side(common, &arguments.b, ui)?;
    let old = Side {
        source: &*a,
        known: &known_a,
    };
    let new = Side {
        source: &*b,
        known: &known_b,
    };
    let (diff, _): (_, Known) = compare(old, new, common.jobs(), ui);
    let problems: Vec<_> = a.problems().iter().chain(b.problems()).collect();
    let mut out = BufWriter::new(std::io::stdout().lock());
    if arguments.json {
        let change = |(path, change): &(crate::path::GuestPath, Change)| {
            let (what, fields): (&str, Vec<&str>) = match change {
                Change::Added => ("added", Vec::new()),
                Change::Deleted => ("deleted", Vec::new()),
                Change::Changed(fields) => ("changed", fields.names().collect()),
            };
            serde_json::json!({ "path": path.to_string(), "change": what, "fields": fields })
        };
        let document = serde_json::json!({
            "schema": SCHEMA,
            "a": a.name(),
            "b": b.name(),
            "changes": diff.changes.iter().map(change).collect::<Vec<_>>(),
            "unread": diff.unread.iter().map(|(p, why)| serde_json::json!({ "path": p.to_string(), "why": why })).collect::<Vec<_>>(),
            "problems": problems.iter().map(|p| serde_json::json!({ "path": p.path.to_string(), "what": p.what })).collect::<Vec<_>>(),
        });
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out)?;
    } else {
        for (path, change) in &diff.changes {
            let new = b.tree().get(path).or_else(|| a.tree().get(path));
            writeln!(out, "{} {path}", itemized(*change, new.map(|n| &n.kind)))?;
        }
    }
    out.flush()?;
    for (path, why) in &diff.unread {
        crate::progress::Progress::warn(ui, &format!("{path}: {why}"));
    }
    for problem in &problems {
        crate::progress::Progress::warn(ui, &format!("{}: {}", problem.path, problem.what));
    }
    ui.note(&format!("{} paths differ", text::count(diff.changes.len())));
    let same = diff.changes.is_empty() && diff.unread.is_empty() && problems.is_empty();
    Ok(if same { code::DONE } else { code::DIFFERS })
}

/// The change as `rsync --itemize-changes` writes it (rsync(1)): YXcstpoguax. A size shows as a changed content, a group as a
/// changed owner, an ACL as a changed xattr; `h` is a path that is linked to other paths than before.
pub(super) fn itemized(change: Change, kind: Option<&Kind>) -> String {
    let letter = match kind {
        Some(Kind::Directory) => 'd',
        Some(Kind::Symlink { .. }) => 'L',
        Some(Kind::Block { .. } | Kind::Char { .. }) => 'D',
        Some(Kind::Fifo | Kind::Socket) => 'S',
        _ => 'f',
    };
    match change {
        Change::Added => format!("{}{letter}+++++++++", if letter == 'd' { 'c' } else { '>' }),
        Change::Deleted => "*deleting  ".to_owned(),
        Change::Changed(f) => {
            let mark = |field: Fields, c: char| if f.has(field) { c } else { '.' };
            let content = f.has(Fields::CONTENT)
                || f.has(Fields::TARGET)
                || f.has(Fields::DEVICE)
                || f.has(Fields::TYPE);
            let first = match (content, f.has(Fields::LINKS)) {
                (true, _) => '>',
                (false, true) => 'h',
                (false, false) => '.',
            };
            format!(
                "{first}{letter}{}.{}{}{}...{}",
                if content { 'c' } else { '.' },
                mark(Fields::MTIME, 't'),
                mark(Fields::MODE, 'p'),
                mark(Fields::OWNER, 'o'),
                mark(Fields::XATTRS, 'x'),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_look_like_rsync() {
        let mut f = Fields::NONE;
        f.set(Fields::CONTENT, true);
        f.set(Fields::MTIME, true);
        assert_eq!(
            itemized(Change::Changed(f), Some(&Kind::File { size: 1 })),
            ">fc.t......"
        );
        assert_eq!(itemized(Change::Added, Some(&Kind::Directory)), "cd+++++++++");
        assert_eq!(itemized(Change::Deleted, None).len(), 11);
    }
}
