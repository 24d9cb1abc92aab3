//! Where the packages come from: the machine's repositories are asked, then their archives, and what the build needs of
//! their files is put together.

use super::ladder::{self, Choice, Rung};
use super::sources::{self, SourceFile};
use super::words::counted;
use crate::distro::{MachineFacts, PackageTool};
use crate::error::{Error, Escaped, Result};
use crate::graph::Graph;
use crate::path::GuestPath;
use crate::pkgdb::{Package, is_for_all};
use crate::repository::{self, Answer, Catalogue, Client, Place, Repository, pacman};
use crate::source::Source;
use crate::source::image::ImageSource;
use crate::store::Store;
use crate::tree::Tree;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// What the decisions need.
pub(super) struct Facts<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) base: Option<&'a ImageSource>,
    pub(super) packages: &'a [Package],
    pub(super) graph: &'a Graph,
    pub(super) base_packages: &'a [Package],
    pub(super) roots: &'a [usize],
    pub(super) tool: Option<&'a PackageTool<'a>>,
    pub(super) machine: MachineFacts<'a>,
    pub(super) apart: &'a dyn Fn(usize) -> bool,
    /// The machine's files that name repositories.
    pub(super) files: &'a [SourceFile],
    pub(super) variables: &'a BTreeMap<String, String>,
    pub(super) mirrors: &'a [(String, String)],
    /// The day of the machine's last change of packages.
    pub(super) day: Option<String>,
}

/// The result.
#[derive(Debug, Default)]
pub(super) struct Supply {
    pub(super) choices: Vec<Choice>,
    /// What the machine's repositories said.
    pub(super) live: Vec<Answer>,
    /// What archives said.
    pub(super) archive: Vec<Answer>,
    /// Files for the build: path and content.
    pub(super) files: Vec<(GuestPath, Vec<u8>)>,
    /// Files of the base that must not be there while packages are installed.
    pub(super) remove: Vec<GuestPath>,
    /// Paths of keys that the build imports.
    pub(super) keys: Vec<String>,
    /// Sections of pacman's configuration whose repositories do not answer.
    pub(super) silent: Vec<String>,
    /// True if an archive's files stand in place of the machine's.
    pub(super) from_archive: bool,
    /// Packages that stand on the lowest rung while a repository was silent, which may have them.
    pub(super) skipped: Vec<String>,
    /// What people should know.
    pub(super) notes: Vec<String>,
}

impl Supply {
    /// The repository that serves the package of `choice`, for people.
    pub(super) fn repository(&self, choice: &Choice) -> Option<&str> {
        let answers = match choice.rung {
            Rung::Live => &self.live,
            Rung::Archive => &self.archive,
            _ => return None,
        };
        answers.get(choice.repository?).map(|a| a.repository.as_str())
    }
}

/// An archive: its name for people, and the files that name its repositories.
type Archive = (&'static str, Vec<(String, String)>);

/// Decides, and asks unless `store` is `None`.
///
/// # Errors
/// [`Error::Network`] if packages are wanted and no repository answers at all.
pub(super) fn decide(facts: &Facts<'_>, store: Option<&Arc<Store>>) -> Result<Supply> {
    let mut supply = Supply::default();
    // A package manager that asks for no version takes what there is: two states of the repositories would be one too many.
    let one_state = facts.tool.is_some_and(|t| !t.names_versions());
    let climb = |live: Option<&Catalogue>, archive: Option<&Catalogue>, archive_unchecked: bool| {
        ladder::climb(&ladder::Facts {
            replaces: one_state,
            packages: facts.packages,
            graph: facts.graph,
            base: facts.base_packages,
            roots: facts.roots,
            tool: facts.tool,
            native: facts.machine.arch,
            live,
            archive,
            archive_unchecked,
            apart: facts.apart,
        })
    };
    let unasked = climb(None, None, false);
    let wanted: HashSet<&str> = facts
        .packages
        .iter()
        .zip(&unasked)
        .filter(|(_, c)| c.word.is_some())
        .map(|(p, _)| p.name.as_str())
        .collect();
    let Some(tool) = facts.tool.filter(|_| !wanted.is_empty()) else {
        supply.choices = unasked;
        return Ok(supply);
    };
    let own = sources::repositories(facts.files, facts.variables);
    let archives = archives(tool, facts, &mut supply.notes);
    let dropped = tool.archive_url(&facts.machine).ok().flatten().is_some();
    let mut used: Vec<&Archive> = Vec::new();
    match store.filter(|_| !own.is_empty()) {
        None => {
            let readable = !own.is_empty();
            // Where no versions can be asked for, and of lists that nobody reads here, the state of the day is the best guess.
            let first = archives.first().filter(|_| dropped || !readable || one_state);
            supply.choices = climb(None, None, first.is_some());
            used.extend(first);
            if store.is_some() && !readable {
                supply.notes.push(
                    "no repository is known whose lists are read, so that versions were not checked".into(),
                );
            }
        }
        Some(store) => {
            let client = Client::new(Arc::clone(store), facts.mirrors.to_vec())?;
            let archs = architectures(facts);
            let ask = |all: &[Repository]| repository::ask(&client, all, &wanted, &archs);
            let live = ask(&own)?;
            supply.choices = climb(Some(&live), None, false);
            let mut merged: Option<Catalogue> = None;
            let mut others: Vec<Answer> = Vec::new();
            let unserved = |choices: &[Choice]| {
                let both = choices.iter().zip(&unasked);
                both.filter(|(c, u)| c.rung == Rung::Rest && u.word.is_some())
                    .count()
            };
            for archive in &archives {
                let missing = unserved(&supply.choices);
                if missing == 0 {
                    break;
                }
                let named = sources::archived(facts.files, &archive.1, facts.variables);
                let asked = merged_with(merged.as_ref(), ask(&named)?);
                let kept =
                    one_state.then(|| live.without(&|file| archive.1.iter().any(|(path, _)| path == file)));
                let choices = climb(Some(kept.as_ref().unwrap_or(&live)), Some(&asked), false);
                if unserved(&choices) < missing {
                    used.push(archive);
                    supply.choices = choices;
                    merged = Some(asked);
                } else {
                    let known = merged.as_ref().map_or(0, |m| m.answers.len());
                    others.extend(asked.answers.into_iter().skip(known));
                }
            }
            supply.archive = merged.map_or_else(Vec::new, |m| m.answers);
            supply.archive.extend(others);
            let mut all = live.answers.iter().chain(&supply.archive);
            if all.all(|a| a.packages.is_none()) {
                let why = live.answers.iter().find_map(|a| a.failure.clone());
                return Err(Error::Network {
                    what: format!(
                        "none of the machine's {} repositories answers: {}",
                        live.answers.len(),
                        why.unwrap_or_default()
                    ),
                    source: None,
                }
                .hint("name a mirror with --mirror FROM=TO, or use --offline, which asks nobody"));
            }
            let silent = own
                .iter()
                .zip(&live.answers)
                .filter(|(_, a)| a.packages.is_none());
            supply.silent = silent
                .filter_map(|(r, a)| match &r.place {
                    Place::Pacman(p) if !used.iter().any(|u| u.1.iter().any(|(path, _)| *path == a.file)) => {
                        Some(p.name.clone())
                    }
                    _ => None,
                })
                .collect();
            supply.live = live.answers;
            supply.skipped.extend(skipped(facts.packages, &supply, &unasked));
        }
    }
    supply.from_archive = !used.is_empty();
    put_together(facts, tool, &used, one_state, &mut supply);
    Ok(supply)
}

/// The most names that a line lists.
const NAMES: usize = 12;

/// What nobody served that answered, if there are some that did not.
fn skipped(packages: &[Package], supply: &Supply, unasked: &[Choice]) -> Option<String> {
    let answers = supply.live.iter().chain(&supply.archive);
    let silent: Vec<String> = answers
        .filter(|a| a.failure.is_some())
        .map(|a| Escaped(a.repository.as_bytes()).to_string())
        .collect();
    let choices = packages.iter().zip(&supply.choices).zip(unasked);
    let unserved: Vec<String> = choices
        .filter(|((_, choice), unasked)| choice.rung == Rung::Rest && unasked.word.is_some())
        .map(|((package, _), _)| Escaped(package.name.as_bytes()).to_string())
        .collect();
    if silent.is_empty() || unserved.is_empty() {
        return None;
    }
    let more = match unserved.len().saturating_sub(NAMES) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Some(format!(
        "{} of no repository that answered: {}{more}; {} did not answer",
        counted(unserved.len(), "package"),
        unserved.get(..NAMES).unwrap_or(&unserved).join(", "),
        silent.join(", ")
    ))
}

/// Both catalogues in one; the numbers of the second's answers go on behind those of the first.
fn merged_with(first: Option<&Catalogue>, second: Catalogue) -> Catalogue {
    let mut all = first.cloned().unwrap_or_default();
    let offset = all.answers.len();
    all.answers.extend(second.answers);
    for (name, served) in second.served {
        let entry = all.served.entry(name).or_default();
        entry.extend(served.into_iter().map(|(s, from)| (s, from + offset)));
    }
    all
}

/// The machine's own architecture, then the others of its packages.
fn architectures<'a>(facts: &Facts<'a>) -> Vec<&'a str> {
    let mut all: Vec<&str> = facts.machine.arch.into_iter().collect();
    let others: BTreeSet<&str> = facts.packages.iter().filter_map(|p| p.arch.as_deref()).collect();
    for arch in others {
        if !is_for_all(arch) && !all.contains(&arch) {
            all.push(arch);
        }
    }
    all
}

/// The archives of the machine's release, the one that keeps a release as a whole first.
fn archives(tool: &PackageTool<'_>, facts: &Facts<'_>, notes: &mut Vec<String>) -> Vec<Archive> {
    let mut all = Vec::new();
    let kept = tool.archive(&facts.machine);
    let of_day = facts
        .day
        .as_deref()
        .map_or(Ok(Vec::new()), |day| tool.snapshot(day, &facts.machine));
    for (what, files) in [("archive", kept), ("snapshot", of_day)] {
        match files {
            Ok(files) if files.is_empty() => {}
            Ok(files) => all.push((what, files)),
            Err(e) => notes.push(format!("the {what} is not used: {e}")),
        }
    }
    all
}

/// The files that the build needs: the machine's where their repositories answer, and those of archives in their place.
fn put_together(
    facts: &Facts<'_>,
    tool: &PackageTool<'_>,
    used: &[&Archive],
    one_state: bool,
    supply: &mut Supply,
) {
    let mirrored = |content: &[u8]| -> Vec<u8> {
        match std::str::from_utf8(content) {
            Ok(text) => {
                let mut text = text.to_owned();
                for (from, to) in facts.mirrors {
                    text = text.replace(from, to);
                }
                text.into_bytes()
            }
            Err(_) => content.to_vec(),
        }
    };
    // Files none of whose repositories answered: the package manager would stop at them.
    let mut dead: BTreeSet<&str> = supply.live.iter().map(|a| a.file.as_str()).collect();
    for answer in supply.live.iter().filter(|a| a.packages.is_some()) {
        dead.remove(answer.file.as_str());
    }
    // Of pacman's configuration the sections go that are silent, and not the files.
    if facts.files.iter().any(|f| f.path.to_string() == sources::PACMAN) {
        dead.clear();
    }
    let dead: BTreeSet<String> = dead.into_iter().map(str::to_owned).collect();
    let replaced = |path: &str| used.iter().any(|(_, files)| files.iter().any(|(p, _)| p == path));
    let unasked = supply.live.is_empty() && !used.is_empty();
    let names_any = |file: &SourceFile| {
        let mut found = Vec::new();
        sources::named_by(&file.path.to_string(), &file.content, facts.variables, &mut found);
        !file.key && !found.is_empty()
    };
    let mut present: HashSet<GuestPath> = HashSet::new();
    let archived = |path: &str| used.iter().flat_map(|(_, files)| files).find(|(p, _)| p == path);
    for file in facts.files {
        let path = file.path.to_string();
        let answers = supply.live.iter().any(|a| a.file == path && a.packages.is_some());
        if let (true, Some((_, content))) = (answers && !one_state, archived(&path)) {
            // Both are needed: what answers, and the archive behind it.
            let both = [&mirrored(&file.content)[..], b"\n", &mirrored(content.as_bytes())].concat();
            present.insert(file.path.clone());
            supply.files.push((file.path.clone(), both));
            continue;
        }
        if dead.contains(&path) || replaced(&path) || (unasked && names_any(file)) {
            let why = match (replaced(&path), unasked) {
                (true, _) | (_, true) => "the archive stands in its place",
                _ => "none of its repositories answers",
            };
            supply
                .notes
                .push(format!("{path} is not used by the build: {why}"));
            if facts.base.is_some_and(|b| b.tree().get(&file.path).is_some()) && !replaced(&path) {
                supply.remove.push(file.path.clone());
            }
            continue;
        }
        present.insert(file.path.clone());
        let mut content = mirrored(&file.content);
        if path == sources::PACMAN && !supply.silent.is_empty() {
            let text = String::from_utf8_lossy(&content);
            content = pacman::without(&text, &supply.silent).into_bytes();
            supply.notes.push(format!(
                "{path}: the build does not use {}, which does not answer",
                Escaped(supply.silent.join(", ").as_bytes())
            ));
        }
        if !file.in_base || file.redacted || content != file.content {
            if file.key {
                supply.keys.push(path);
            }
            supply.files.push((file.path.clone(), content));
        }
    }
    for (path, content) in used.iter().flat_map(|(_, files)| files) {
        if let Ok(path) = GuestPath::new(path.as_bytes())
            && present.insert(path.clone())
        {
            supply.files.push((path, mirrored(content.as_bytes())));
        }
    }
    // What the base names beside that would be asked too.
    let Some(base) = facts.base.filter(|_| !present.is_empty()) else {
        return;
    };
    for path in base_files(base.tree(), tool) {
        if !present.contains(&path) && facts.source.tree().get(&path).is_none() {
            supply.remove.push(path);
        }
    }
    supply.remove.sort();
    supply.remove.dedup();
    supply.files.sort();
}

/// The base's files that name repositories, keys left out.
fn base_files(base: &Tree, tool: &PackageTool<'_>) -> Vec<GuestPath> {
    let names = |path: &GuestPath| {
        let text = path.to_string();
        let ends = [".list", ".sources", ".repo"].iter().any(|e| text.ends_with(e));
        ends || text == "/etc/apk/repositories"
    };
    let globs: Vec<_> = tool
        .repository_files
        .iter()
        .filter_map(|g| globset::GlobBuilder::new(g).literal_separator(true).build().ok())
        .map(|g| g.compile_matcher())
        .collect();
    let files = base.iter().filter(|(path, node)| node.is_file() && names(path));
    files
        .filter(|(path, _)| globs.iter().any(|g| g.is_match(path.to_string())))
        .map(|(path, _)| path.clone())
        .collect()
}
