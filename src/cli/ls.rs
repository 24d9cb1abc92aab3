//! `vm2k ls`: the files of anything that has files.

use super::{Common, target, ui::Ui};
use crate::bytes::hex;
use crate::calendar::Civil;
use crate::diff::for_each_chunk;
use crate::error::{Error, Escaped, code};
use crate::jobs;
use crate::path::GuestPath;
use crate::progress::{Progress, Stage};
use crate::source::Source;
use crate::tree::{Kind, Node};
use base64::Engine;
use clap::Args;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A disk file, dir:PATH or an image; no operating system is needed
    target: String,
    /// Only this path and what is below it
    path: Option<OsString>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Also the SHA-256 of every regular file
    #[arg(long)]
    sha256: bool,
}

/// Paths that are hashed and printed at once.
const BATCH: usize = 4096;

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let source = target::open_any(common, &arguments.target, ui)?;
    let tree = source.tree();
    let mut shown: Vec<(&GuestPath, &Node)> = match &arguments.path {
        None => tree.iter().collect(),
        Some(path) => {
            let wanted = GuestPath::lenient(path.as_bytes()).map_err(|e| Error::usage(e.to_string()))?;
            let found = tree.get_key(&wanted).ok_or_else(|| missing(&*source, &wanted))?;
            std::iter::once(found).chain(tree.below(&wanted)).collect()
        }
    };
    shown.retain(|(path, _)| !path.is_root());
    let total = if arguments.sha256 {
        shown.iter().map(|(_, n)| n.size()).sum()
    } else {
        0
    };
    let stage = arguments.sha256.then(|| ui.stage("hashing files", Some(total)));
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut unread = 0;
    for batch in shown.chunks(BATCH) {
        let sums: Vec<Option<Result<String, Error>>> = match &stage {
            Some(stage) => jobs::map(common.jobs(), batch, |(_, node)| {
                Ok::<_, std::convert::Infallible>(node.is_file().then(|| sha256(&*source, node, &**stage)))
            })
            .unwrap_or_default(),
            None => batch.iter().map(|_| None).collect(),
        };
        for ((path, node), sum) in batch.iter().zip(sums) {
            let sum = match sum {
                Some(Err(e)) => {
                    unread += 1;
                    ui.warn(&format!("{path}: {e}"));
                    None
                }
                Some(Ok(sum)) => Some(sum),
                None => None,
            };
            if arguments.json {
                serde_json::to_writer(&mut out, &Line::new(path, node, sum))?;
                out.write_all(b"\n")?;
            } else {
                writeln!(out, "{}", human(path, node, sum.as_deref(), arguments.sha256))?;
            }
        }
    }
    out.flush()?;
    let problems = source.problems();
    for problem in problems {
        ui.warn(&format!("{}: {}", problem.path, problem.what));
    }
    Ok(if problems.is_empty() && unread == 0 {
        code::DONE
    } else {
        code::DIFFERS
    })
}

pub(super) fn missing(source: &dyn Source, path: &GuestPath) -> Error {
    Error::usage(format!("{}: {path}: no such file or directory", source.name()))
        .hint("`vm2k ls TARGET` lists all paths")
}

fn sha256(source: &dyn Source, node: &Node, stage: &dyn Stage) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    for_each_chunk(&*source.open(node.id)?, |chunk| {
        chunk.bytes(|bytes| {
            hasher.update(bytes);
            stage.add(bytes.len() as u64);
            Ok(())
        })
    })?;
    Ok(hex(&hasher.finalize()))
}

/// One line of `ls --json`; the fields are a contract.
#[derive(serde::Serialize)]
struct Line {
    #[serde(flatten)]
    path: BTreeMap<&'static str, String>,
    #[serde(rename = "type")]
    kind: char,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    mtime_ns: u32,
    nlink: u32,
    #[serde(flatten)]
    link: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdev: Option<[u32; 2]>,
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl Line {
    fn new(path: &GuestPath, node: &Node, sha256: Option<String>) -> Self {
        let (link, rdev) = match &node.kind {
            Kind::Symlink { target } => (text_or_base64("link", "link_b64", target), None),
            Kind::Block { major, minor } | Kind::Char { major, minor } => {
                (BTreeMap::new(), Some([*major, *minor]))
            }
            _ => (BTreeMap::new(), None),
        };
        Self {
            path: text_or_base64("path", "path_b64", path.as_bytes()),
            kind: node.kind.letter(),
            mode: format!("{:04o}", node.mode),
            uid: node.uid,
            gid: node.gid,
            size: match &node.kind {
                Kind::Symlink { target } => target.len() as u64,
                _ => node.size(),
            },
            mtime: node.mtime.sec,
            mtime_ns: node.mtime.nsec,
            nlink: node.nlink,
            link,
            rdev,
            xattrs: node
                .xattrs
                .iter()
                .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), hex(value)))
                .collect(),
            sha256,
        }
    }
}

/// The bytes under `name` if they are UTF-8, else in base64 under `name_b64`.
fn text_or_base64(
    name: &'static str,
    name_b64: &'static str,
    bytes: &[u8],
) -> BTreeMap<&'static str, String> {
    let field = match std::str::from_utf8(bytes) {
        Ok(text) => (name, text.to_owned()),
        Err(_) => (name_b64, base64::engine::general_purpose::STANDARD.encode(bytes)),
    };
    BTreeMap::from([field])
}

/// A line for people: type and mode, links, owner, size or device numbers, time, name.
fn human(path: &GuestPath, node: &Node, sum: Option<&str>, sums: bool) -> String {
    let size = match &node.kind {
        Kind::Block { major, minor } | Kind::Char { major, minor } => format!("{major}, {minor}"),
        _ => node.size().to_string(),
    };
    let sum = match (sums, sum) {
        (false, _) => String::new(),
        (true, Some(sum)) => format!("{sum} "),
        (true, None) => format!("{:64} ", ""),
    };
    let target = match &node.kind {
        Kind::Symlink { target } => format!(" -> {}", Escaped(target)),
        _ => String::new(),
    };
    let plus = if node.xattrs.is_empty() { ' ' } else { '+' };
    format!(
        "{}{}{plus} {:3} {:5} {:5} {size:>12} {} {sum}{path}{target}",
        if node.is_file() { '-' } else { node.kind.letter() },
        permissions(node.mode),
        node.nlink,
        node.uid,
        node.gid,
        utc(node.mtime.sec),
    )
}

/// `rwxr-xr-x` with setuid, setgid and sticky as ls(1) shows them.
fn permissions(mode: u16) -> String {
    let mut text = String::with_capacity(9);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `YYYY-MM-DD hh:mm` in UTC.
fn utc(seconds: i64) -> String {
    let at = Civil::of(seconds);
    format!("{} {:02}:{:02}", at.date(), at.hour, at.minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_ls_prints() {
        assert_eq!(permissions(0o4755), "rwsr-xr-x");
        assert_eq!(permissions(0o2644), "rw-r-Sr--");
        assert_eq!(permissions(0o1777), "rwxrwxrwt");
        assert_eq!(utc(0), "1970-01-01 00:00");
        assert_eq!(utc(-1), "1969-12-31 23:59");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00");
        assert_eq!(utc(4_102_444_800), "2100-01-01 00:00");
        assert!(utc(i64::MAX).len() > 10 && utc(i64::MIN).len() > 10);
    }
}
