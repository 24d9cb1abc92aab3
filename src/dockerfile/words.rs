//! The words of a Dockerfile: scripts in lines, and comments that say why.

use super::ladder::{Choice, Role, Rung};
use super::{Group, Pair};
use crate::distro::PackageTool;
use crate::error::{Escaped, Result};
use crate::graph::Graph;
use crate::pkgdb::Package;

/// The width of comments in characters.
const WIDTH: usize = 116;
/// Stands before each word while a command is put together; no word of a package holds it.
const MARK: char = '\u{1}';

/// A part of a command's words: a line of comment, and the words.
pub(super) type Section = (String, Vec<String>);

/// The script of one group: lists are fetched, `run` is done with the words, and what it leaves is cleaned up.
fn script(
    tool: &PackageTool<'_>,
    before: &[Option<String>],
    run: &dyn Fn(&[String]) -> Result<String>,
    sections: &[Section],
) -> Result<Vec<String>> {
    let words: Vec<String> = sections
        .iter()
        .flat_map(|(_, words)| words.iter().map(|w| format!("{MARK}{w}")))
        .collect();
    let mut parts: Vec<String> = before.iter().flatten().cloned().collect();
    parts.push(run(&words)?);
    parts.extend(tool.clean.map(str::to_owned));
    let mut lines = Vec::new();
    let count = parts.len();
    for (number, part) in parts.into_iter().enumerate() {
        let end = if number + 1 < count { " &&" } else { "" };
        let mut pieces = part.split(MARK).map(str::trim_end).peekable();
        let mut starts = sections.iter().scan(0, |at, (comment, words)| {
            let start = *at;
            *at += words.len();
            Some((start, comment))
        });
        let mut next = starts.next();
        let mut word = 0;
        let mut first = true;
        while let Some(piece) = pieces.next() {
            let end = if pieces.peek().is_none() { end } else { "" };
            if first {
                lines.push(format!("{piece}{end}"));
                first = false;
                continue;
            }
            while let Some((_, comment)) = next.filter(|(start, _)| *start == word) {
                if !comment.is_empty() {
                    lines.push(format!("    # {}", Escaped(comment.as_bytes())));
                }
                next = starts.next();
            }
            lines.push(format!("    {piece}{end}"));
            word += 1;
        }
    }
    Ok(lines)
}

/// The commands of a Dockerfile: what the base has in another version, what was asked for, and what goes.
///
/// # Errors
/// If the distribution's templates fail.
pub(super) fn groups(
    tool: &PackageTool<'_>,
    packages: &[Package],
    graph: &Graph,
    choices: &[Choice],
    roots: &[usize],
    keys: &[String],
    removed: &[String],
) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut import = match keys.is_empty() {
        true => None,
        false => tool.import_keys(&keys)?,
    };
    let refresh = tool.refresh.map(str::to_owned);
    let words = |role: Role, rung: Rung| -> Vec<String> {
        let of_role = choices
            .iter()
            .filter(|c| c.role == role && c.rung == rung && c.named);
        of_role.filter_map(|c| c.word.clone()).collect()
    };
    let both = |role: Role, live: &str, archive: &str| -> Vec<Section> {
        [
            (live.to_owned(), words(role, Rung::Live)),
            (archive.to_owned(), words(role, Rung::Archive)),
        ]
        .into_iter()
        .filter(|(_, words)| !words.is_empty())
        .collect()
    };
    let changed = both(Role::Changed, "", "from the archive");
    if !changed.is_empty() {
        groups.push(Group {
            why: wrapped("Packages that the base has in another version than the machine."),
            script: script(
                tool,
                &[import.take(), refresh.clone()],
                &|w| tool.install(w),
                &changed,
            )?,
        });
    }
    let mut asked = both(Role::Root, "", "asked for, from the archive");
    let others = both(
        Role::Dependency,
        "needed by these, and named for their versions",
        "needed by these, from the archive",
    );
    let count = |sections: &[Section]| sections.iter().map(|(_, w)| w.len()).sum::<usize>();
    let (named, pinned) = (count(&asked), count(&others));
    asked.extend(others);
    if !asked.is_empty() {
        let installed = |i: usize| {
            choices
                .get(i)
                .is_some_and(|c| c.role == Role::Dependency && matches!(c.rung, Rung::Live | Rung::Archive))
        };
        let total = (0..choices.len()).filter(|i| installed(*i)).count();
        let mut why = wrapped(&match (named, total) {
            (0, _) => "Packages that the base lacks.".to_owned(),
            (_, 0) => format!(
                "What was asked for on the machine: {}.",
                counted(named, "package")
            ),
            _ => format!(
                "What was asked for on the machine: {}. {} more {} needed by them{}.",
                counted(named, "package"),
                total,
                if total == 1 { "is" } else { "are" },
                if pinned == 0 {
                    ", in the only version there is"
                } else {
                    ""
                },
            ),
        });
        let own: Vec<usize> = roots
            .iter()
            .copied()
            .filter(|i| {
                choices
                    .get(*i)
                    .is_some_and(|c| matches!(c.rung, Rung::Live | Rung::Archive))
            })
            .collect();
        for (root, brought) in super::ladder::brings(graph, &own, &|i| !installed(i)) {
            why.extend(brings_line(packages, root, &brought));
        }
        groups.push(Group {
            why,
            script: script(tool, &[import.take(), refresh], &|w| tool.install(w), &asked)?,
        });
    }
    if !removed.is_empty() && tool.remove.is_some() {
        let sections = [(String::new(), removed.to_vec())];
        groups.push(Group {
            why: wrapped("Packages of the base that the machine does not have."),
            script: script(tool, &[], &|w| tool.remove(w), &sections)?,
        });
    }
    Ok(groups)
}

/// `nginx brings nginx-common, iproute2`, on one line; nothing for a root that brings nothing.
fn brings_line(packages: &[Package], root: usize, brought: &[usize]) -> Option<String> {
    let name = |i: &usize| packages.get(*i).map_or("", |p| p.name.as_str());
    if brought.is_empty() {
        return None;
    }
    let mut line = format!("  {} brings", name(&root));
    for (n, index) in brought.iter().enumerate() {
        let left = brought.len() - n;
        let word = format!("{} {}", if n == 0 { "" } else { "," }, name(index));
        if n > 0 && line.chars().count() + word.chars().count() + 14 > WIDTH {
            line.push_str(&format!(" and {left} more"));
            return Some(line);
        }
        line.push_str(&word);
    }
    Some(line)
}

/// `1 package`, `12 packages`.
pub(super) fn counted(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// `text` in lines of comment. What a machine chose is escaped first, so that no line is broken but here.
pub(super) fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A pair that a Dockerfile can say; `None` if it cannot.
pub(super) fn pair(name: &str, value: &str) -> Option<Pair> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
    // Docker reads no line of 64 KiB or more.
    let fits = !name.is_empty() && name.chars().all(plain) && value.len() < 60_000;
    (fits && !value.contains(char::is_control)).then(|| Pair {
        name: name.to_owned(),
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_wrapped_and_counts_are_words() {
        let text = "word ".repeat(60);
        let lines = wrapped(text.trim());
        assert!(lines.len() == 3 && lines.iter().all(|l| l.len() <= WIDTH));
        assert_eq!(lines.join(" "), text.trim());
        assert_eq!(counted(1, "package"), "1 package");
        assert_eq!(counted(2, "package"), "2 packages");
    }

    #[test]
    fn what_cannot_be_said_is_no_pair() {
        assert!(pair("A_1", "x y $z").is_some());
        assert!(pair("A", "x\ny").is_none());
        assert!(pair("A=b", "").is_none() && pair("", "").is_none());
        assert!(pair("A", &"x".repeat(70_000)).is_none());
    }
}
