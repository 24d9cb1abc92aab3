//! What dpkg and apt keep beside the list of packages: marks, diversions, alternatives, changed owners and modes.

use super::deb822::stanzas;
use super::{Alternative, StatOverride};
use crate::error::Result;
use crate::path::GuestPath;
use crate::source::{Source, read_file};
use crate::tree::Problem;
use std::collections::HashSet;

const LIMIT: u64 = 64 << 20;

/// Packages that came as a dependency of others.
#[derive(Debug, Clone, Default)]
pub struct AutoMarks(HashSet<(String, String)>);

impl AutoMarks {
    /// True if the package of this architecture (never `all`) is marked.
    pub fn is_auto(&self, name: &str, arch: &str) -> bool {
        let key = |arch: &str| (name.to_owned(), arch.to_owned());
        // Old versions of apt wrote no architecture.
        self.0.contains(&key(arch)) || self.0.contains(&key(""))
    }
}

/// A file of all packages but one that lies elsewhere (dpkg-divert(1)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diversion {
    /// The path as packages list it.
    pub from: GuestPath,
    /// Where the file is put.
    pub to: GuestPath,
    /// The package whose own file stays at `from`; `None` if the administrator diverted it from all.
    pub package: Option<String>,
}

/// apt's `extended_states`; `None` if there is no such file.
///
/// # Errors
/// As the source's reader.
pub fn auto_marks(source: &dyn Source, problems: &mut Vec<Problem>) -> Result<Option<AutoMarks>> {
    let path = "/var/lib/apt/extended_states";
    let Some(bytes) = read_file(source, path, LIMIT)? else {
        return Ok(None);
    };
    let mut marks = AutoMarks::default();
    for stanza in stanzas(&bytes) {
        match stanza {
            Ok(stanza) => {
                if stanza.first_line("Auto-Installed").as_deref() == Some("1")
                    && let Some(name) = stanza.first_line("Package")
                {
                    let arch = stanza.first_line("Architecture").unwrap_or_default();
                    marks.0.insert((name, arch));
                }
            }
            Err(e) => problem(problems, path, &e.to_string()),
        }
    }
    Ok(Some(marks))
}

/// `/var/lib/dpkg/diversions`: three lines each: from, to, package or `:`.
///
/// # Errors
/// As the source's reader.
pub fn diversions(source: &dyn Source, problems: &mut Vec<Problem>) -> Result<Vec<Diversion>> {
    let path = "/var/lib/dpkg/diversions";
    let Some(bytes) = read_file(source, path, LIMIT)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let mut lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    while let Some(from) = lines.next() {
        let (to, package) = (lines.next(), lines.next());
        let (Ok(from), Some(Ok(to)), Some(package)) =
            (GuestPath::lenient(from), to.map(GuestPath::lenient), package)
        else {
            problem(
                problems,
                path,
                "a diversion that is not three lines of path, path, package",
            );
            break;
        };
        let package = (package != b":").then(|| String::from_utf8_lossy(package).into_owned());
        found.push(Diversion { from, to, package });
    }
    Ok(found)
}

/// `/var/lib/dpkg/alternatives/*` (and rpm's `/var/lib/alternatives/*`): mode, link, pairs of slave name and link, an
/// empty line, then for each choice its path, priority and one path for each slave.
///
/// # Errors
/// As the source's reader.
pub fn alternatives(source: &dyn Source, problems: &mut Vec<Problem>) -> Result<Vec<Alternative>> {
    let mut found = Vec::new();
    for folder in ["/var/lib/dpkg/alternatives", "/var/lib/alternatives"] {
        let Some((dir, _)) = source.tree().find(folder) else {
            continue;
        };
        for (path, node) in source.tree().children(&dir).filter(|(_, n)| n.is_file()) {
            let bytes = crate::read_at::read_all(&*source.open(node.id)?, LIMIT)?;
            let name = String::from_utf8_lossy(path.name()).into_owned();
            match alternative(&name, &bytes) {
                Some(alternative) => found.push(alternative),
                None => problems.push(Problem {
                    path: path.clone(),
                    what: "not a state of update-alternatives".to_owned(),
                }),
            }
        }
    }
    Ok(found)
}

fn alternative(name: &str, bytes: &[u8]) -> Option<Alternative> {
    let mut lines = bytes.split(|b| *b == b'\n');
    let automatic = match lines.next()? {
        b"auto" => true,
        b"manual" => false,
        _ => return None,
    };
    let mut links = vec![GuestPath::lenient(lines.next()?).ok()?];
    while let Some(slave) = lines.next().filter(|l| !l.is_empty()) {
        let _ = slave;
        links.push(GuestPath::lenient(lines.next()?).ok()?);
    }
    let mut choices = Vec::new();
    while let Some(choice) = lines.next().filter(|l| !l.is_empty()) {
        let priority = std::str::from_utf8(lines.next()?.trim_ascii()).ok()?;
        choices.push((GuestPath::lenient(choice).ok()?, priority.parse().ok()?));
        for _ in 1..links.len() {
            lines.next()?;
        }
    }
    Some(Alternative {
        name: name.to_owned(),
        automatic,
        links,
        choices,
    })
}

/// `/var/lib/dpkg/statoverride`: lines of user, group, octal mode, path.
///
/// # Errors
/// As the source's reader.
pub fn stat_overrides(source: &dyn Source, problems: &mut Vec<Problem>) -> Result<Vec<StatOverride>> {
    let path = "/var/lib/dpkg/statoverride";
    let Some(bytes) = read_file(source, path, LIMIT)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let mut words = line.splitn(4, |b| *b == b' ');
        let mut word = || words.next();
        let parsed = (|| {
            let text = |w: &[u8]| String::from_utf8_lossy(w).into_owned();
            let (user, group) = (text(word()?), text(word()?));
            let mode = u16::from_str_radix(std::str::from_utf8(word()?).ok()?, 8).ok()?;
            let path = GuestPath::lenient(word()?).ok()?;
            Some(StatOverride {
                user,
                group,
                mode: mode & 0o7777,
                path,
            })
        })();
        match parsed {
            Some(row) => found.push(row),
            None => problem(problems, path, "a line that is not user, group, mode, path"),
        }
    }
    Ok(found)
}

fn problem(problems: &mut Vec<Problem>, path: &str, what: &str) {
    if let Ok(path) = GuestPath::lenient(path.as_bytes()) {
        problems.push(Problem {
            path,
            what: what.to_owned(),
        });
    }
}
