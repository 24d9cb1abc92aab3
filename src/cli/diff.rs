//! `vm2k diff`: any two things that have files, both ways.

use super::{Common, target, text, ui::Ui};
use crate::diff::{Change, Fields, Known, Side, compare};
use crate::error::code;
use crate::tree::{Kind, Node};
use clap::Args;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The old side: a disk file, dir:PATH or an image
    a: String,
    /// The new side
    b: String,
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Also write a bundle of deltas to this file, for the regular files that both sides have with different content; `patch`
    /// applies it
    #[arg(long, value_name = "FILE")]
    delta: Option<PathBuf>,
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
    let saving = match &arguments.delta {
        Some(file) => Some(crate::delta::write(&*a, &*b, &diff, file, ui)?),
        None => None,
    };
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
        let mut document = serde_json::json!({
            "schema": SCHEMA,
            "a": a.name(),
            "b": b.name(),
            "changes": diff.changes.iter().map(change).collect::<Vec<_>>(),
            "unread": diff.unread.iter().map(|(p, why)| serde_json::json!({ "path": p.to_string(), "why": why })).collect::<Vec<_>>(),
            "problems": problems.iter().map(|p| serde_json::json!({ "path": p.path.to_string(), "what": p.what })).collect::<Vec<_>>(),
        });
        if let (Some(saving), Some(fields)) = (saving, document.as_object_mut()) {
            let saving = serde_json::json!({
                "files": saving.files,
                "bytes": saving.bytes,
                "deltas": saving.deltas,
                "saved": saving.saved(),
                "do_not_pay": saving.do_not_pay,
            });
            fields.insert("delta".to_owned(), saving);
        }
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out)?;
    } else {
        for (path, change) in &diff.changes {
            let item = itemized(*change, a.tree().get(path), b.tree().get(path));
            writeln!(out, "{item} {path}")?;
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
    if let (Some(saving), Some(file)) = (saving, &arguments.delta) {
        ui.note(&format!(
            "{}: {} deltas of {} carry {} of changed files, {} saved; for {} more a delta does not pay",
            file.display(),
            text::count(saving.files),
            text::bytes(saving.deltas),
            text::bytes(saving.bytes),
            text::bytes(saving.saved()),
            text::count(saving.do_not_pay),
        ));
    }
    let same = diff.changes.is_empty() && diff.unread.is_empty() && problems.is_empty();
    Ok(if same { code::DONE } else { code::DIFFERS })
}

/// The change as `rsync --itemize-changes` writes it (rsync(1)): YXcstpoguax. `Y` is `>` for content that is sent, `c` for
/// what is created or changed without content, `h` for a path that is linked to other paths than before, `.` for attributes
/// only; `X` is the kind of file of the new side.
pub(super) fn itemized(change: Change, old: Option<&Node>, new: Option<&Node>) -> String {
    let kind = new.or(old).map(|node| &node.kind);
    let letter = match kind {
        Some(Kind::Directory) => 'd',
        Some(Kind::Symlink { .. }) => 'L',
        Some(Kind::Block { .. } | Kind::Char { .. }) => 'D',
        Some(Kind::Fifo | Kind::Socket) => 'S',
        _ => 'f',
    };
    let sent = if letter == 'f' { '>' } else { 'c' };
    let f = match change {
        Change::Added => return format!("{sent}{letter}+++++++++"),
        Change::Deleted => return "*deleting  ".to_owned(),
        Change::Changed(f) => f,
    };
    let mark = |yes: bool, c: char| if yes { c } else { '.' };
    // How two nodes differ where the field names several things. Without both nodes, the first of them is shown.
    let both = old.zip(new);
    let differ = |test: fn(&Node, &Node) -> bool| both.map(|(a, b)| test(a, b));
    let content =
        f.has(Fields::CONTENT) || f.has(Fields::TARGET) || f.has(Fields::DEVICE) || f.has(Fields::TYPE);
    let size = f.has(Fields::CONTENT)
        && differ(
            |a, b| matches!((&a.kind, &b.kind), (Kind::File { size: a }, Kind::File { size: b }) if a != b),
        )
        .unwrap_or(false);
    let owner = f.has(Fields::OWNER) && differ(|a, b| a.uid != b.uid).unwrap_or(true);
    let group = f.has(Fields::OWNER) && differ(|a, b| a.gid != b.gid).unwrap_or(false);
    let acl = f.has(Fields::XATTRS) && differ(|a, b| acls(a) != acls(b)).unwrap_or(false);
    let xattr = f.has(Fields::XATTRS) && differ(|a, b| others(a) != others(b)).unwrap_or(true);
    let first = match (content, f.has(Fields::LINKS)) {
        (true, _) => sent,
        (false, true) => 'h',
        (false, false) => '.',
    };
    [
        first,
        letter,
        mark(content, 'c'),
        mark(size, 's'),
        mark(f.has(Fields::MTIME), 't'),
        mark(f.has(Fields::MODE), 'p'),
        mark(owner, 'o'),
        mark(group, 'g'),
        '.',
        mark(acl, 'a'),
        mark(xattr, 'x'),
    ]
    .into_iter()
    .collect()
}

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

fn acls(node: &Node) -> Vec<&(Vec<u8>, Vec<u8>)> {
    node.xattrs.iter().filter(|(name, _)| is_acl(name)).collect()
}

fn others(node: &Node) -> Vec<&(Vec<u8>, Vec<u8>)> {
    let local = crate::layer::tar::is_local_xattr;
    let kept = node
        .xattrs
        .iter()
        .filter(|(name, _)| !is_acl(name) && !local(name));
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_look_like_rsync() {
        let mut f = Fields::NONE;
        f.set(Fields::CONTENT, true);
        f.set(Fields::MTIME, true);
        let node = |size, uid, gid| Node {
            kind: Kind::File { size },
            uid,
            gid,
            ..Node::plain_dir()
        };
        let changed = |f, a: &Node, b: &Node| itemized(Change::Changed(f), Some(a), Some(b));
        assert_eq!(changed(f, &node(1, 0, 0), &node(1, 0, 0)), ">fc.t......");
        assert_eq!(changed(f, &node(1, 0, 0), &node(2, 0, 0)), ">fcst......");
        f = Fields::NONE;
        f.set(Fields::OWNER, true);
        assert_eq!(changed(f, &node(1, 0, 0), &node(1, 0, 7)), ".f.....g...");
        assert_eq!(changed(f, &node(1, 0, 0), &node(1, 7, 7)), ".f....og...");
        f.set(Fields::XATTRS, true);
        let acl = Node {
            xattrs: vec![(b"system.posix_acl_access".to_vec(), b"x".to_vec())],
            ..node(1, 7, 0)
        };
        assert_eq!(changed(f, &node(1, 0, 0), &acl), ".f....o..a.");
        assert_eq!(itemized(Change::Changed(f), None, None), ".f....o...x");
        assert_eq!(
            itemized(Change::Added, None, Some(&Node::plain_dir())),
            "cd+++++++++"
        );
        assert_eq!(itemized(Change::Deleted, None, None).len(), 11);
    }
}
