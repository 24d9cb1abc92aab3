//! The package tool of a distribution: its commands, words and repositories, rendered from the templates of its file.
//!
//! Every name that reaches a command is checked against the distribution's own grammar first, then quoted for sh(1).

use super::{Distro, Distros, Key, Release, RepositoryFile};
use crate::error::{Error, Escaped, Result};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use handlebars::{Handlebars, Template, no_escape};
use regex::Regex;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a distribution says of its package tool, for one release. Values that a file does not have are those of the
/// distributions it is like; `None` if nobody says.
#[derive(Debug, Clone)]
pub struct PackageTool<'a> {
    /// Id of the distribution.
    pub id: &'a str,
    /// The release that commands and repositories are for.
    pub release: Option<&'a Release>,
    /// Regular expression of names.
    pub package_name: Option<&'a str>,
    /// Regular expression of full versions.
    pub package_version: Option<&'a str>,
    /// Template of one package in one version.
    pub package_word: Option<&'a str>,
    /// Template that installs.
    pub install: Option<&'a str>,
    /// Template that removes.
    pub remove: Option<&'a str>,
    /// Command that fetches the lists of packages, where `install` does not.
    pub refresh: Option<&'a str>,
    /// Command that cleans up after installing.
    pub clean: Option<&'a str>,
    /// Signing keys.
    pub key: Option<&'a Key>,
    /// Globs of the files that define the machine's repositories, with the keys.
    pub repository_files: Vec<&'a str>,
    /// Files that name the release's archive.
    pub archive_repositories: &'a [RepositoryFile],
    /// Files that name the state of one day.
    pub snapshot_repositories: &'a [RepositoryFile],
    /// Template of the URL of the state of one day.
    pub snapshot: Option<&'a str>,
    /// Template of the URL of the release's list of mirrors.
    pub mirror_list: Option<&'a str>,
    /// Further words for the templates of repositories.
    pub words: BTreeMap<&'a str, &'a str>,
}

/// A package in one version. `package_word` sees `name`, `version` (in full, as the database writes it), `epoch` (a number;
/// 0 and none are false), `upstream`, `release`, `arch`, and `foreign`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its version in full: `1:2.3-4`.
    pub version: &'a str,
    /// The number before the `:`.
    pub epoch: Option<u32>,
    /// The version without epoch and release.
    pub upstream: &'a str,
    /// What follows the last `-`.
    pub release: Option<&'a str>,
    /// Its architecture in the database's words.
    pub arch: Option<&'a str>,
    /// True if that is another than the machine's own and not all of them.
    pub foreign: bool,
}

/// What the templates of repositories see of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineFacts<'a> {
    /// `VERSION_ID`, or what an older file of the machine says in full (`7.9.2009`).
    pub version_id: Option<&'a str>,
    /// `VERSION_CODENAME`.
    pub codename: Option<&'a str>,
    /// The native architecture in the package database's words.
    pub arch: Option<&'a str>,
}

impl Distros {
    /// The package tool of `distro`, for the release of it whose image is the base.
    pub fn tool<'a>(&'a self, distro: &'a Distro, release: Option<&'a Release>) -> PackageTool<'a> {
        let field = |own: fn(&Release) -> Option<&str>, of: fn(&Distro) -> Option<&str>| {
            release.and_then(own).or_else(|| self.inherited(distro, of))
        };
        let files = |own: fn(&Release) -> Option<&[RepositoryFile]>, of: fn(&Distro) -> &[RepositoryFile]| {
            release.and_then(own).unwrap_or_else(|| {
                let given = self.inherited(distro, |d| Some(of(d)).filter(|files| !files.is_empty()));
                given.unwrap_or_default()
            })
        };
        // The nearest file that has any: a derivative with its own tool shares no places with its origin.
        let repository_files =
            self.inherited(distro, |d| Some(&*d.repository_files).filter(|g| !g.is_empty()));
        // The nearest come last, so that theirs count.
        let of_distros = self.ancestry(distro).into_iter().rev().flat_map(|d| &d.words);
        let words = of_distros.chain(release.into_iter().flat_map(|r| &r.words));
        PackageTool {
            id: &distro.id,
            words: words.map(|(name, word)| (name.as_str(), word.as_str())).collect(),
            release,
            package_name: self.inherited(distro, |d| d.package_name.as_deref()),
            package_version: self.inherited(distro, |d| d.package_version.as_deref()),
            package_word: field(|r| r.package_word.as_deref(), |d| d.package_word.as_deref()),
            install: field(|r| r.install.as_deref(), |d| d.install.as_deref()),
            remove: field(|r| r.remove.as_deref(), |d| d.remove.as_deref()),
            refresh: field(|r| r.refresh.as_deref(), |d| d.refresh.as_deref()),
            clean: field(|r| r.clean.as_deref(), |d| d.clean.as_deref()),
            key: self.inherited(distro, |d| d.key.as_ref()),
            repository_files: repository_files
                .unwrap_or_default()
                .iter()
                .map(String::as_str)
                .collect(),
            archive_repositories: files(|r| r.archive_repositories.as_deref(), |d| &d.archive_repositories),
            snapshot_repositories: files(
                |r| r.snapshot_repositories.as_deref(),
                |d| &d.snapshot_repositories,
            ),
            snapshot: self.inherited(distro, |d| d.snapshot.as_deref()),
            mirror_list: self.inherited(distro, |d| d.mirror_list.as_deref()),
        }
    }
}

impl PackageTool<'_> {
    /// The word that asks for `package` in its version, quoted for sh(1).
    ///
    /// # Errors
    /// [`Error::Refused`] for a name or version that no package of this distribution can have, [`Error::Unsupported`] if
    /// the distribution's file does not say how one is asked for.
    pub fn word(&self, package: &Wanted<'_>) -> Result<String> {
        self.name(package.name)?;
        self.matches("version of a package", self.package_version, package.version)?;
        // The parts are those of the version that was checked.
        let mut whole = package.epoch.map(|e| format!("{e}:")).unwrap_or_default();
        whole.push_str(package.upstream);
        if let Some(release) = package.release {
            whole.push_str(&format!("-{release}"));
        }
        if whole != package.version {
            return Err(self.strange("version of a package", &whole));
        }
        if let Some(arch) = package.arch
            && !arch
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
        {
            return Err(self.strange("architecture", arch));
        }
        let word = self.render(
            "package_word",
            self.package_word,
            &json!({
                "name": package.name,
                "version": package.version,
                "epoch": package.epoch,
                "upstream": package.upstream,
                "release": package.release,
                "arch": package.arch,
                "foreign": package.foreign,
            }),
        )?;
        Ok(quoted(&word))
    }

    /// The name of a package, quoted for sh(1).
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that no package of this distribution can have.
    pub fn name(&self, name: &str) -> Result<String> {
        self.matches("name of a package", self.package_name, name)?;
        Ok(quoted(name))
    }

    /// True for a file that says where packages come from, and for a key.
    ///
    /// # Errors
    /// [`Error::Usage`] for a glob that is none.
    pub fn repository_globs(&self) -> Result<GlobSet> {
        self.globs(self.repository_files.iter().copied())
    }

    /// True for a signing key.
    ///
    /// # Errors
    /// [`Error::Usage`] for a glob that is none.
    pub fn key_globs(&self) -> Result<GlobSet> {
        let files = self.key.iter().flat_map(|k| &k.files);
        self.globs(files.map(String::as_str))
    }

    fn globs<'g>(&self, globs: impl Iterator<Item = &'g str>) -> Result<GlobSet> {
        let wrong = |e: globset::Error| Error::usage(format!("{}.toml: {e}", self.id));
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            // As in sh(1): `*` does not match a slash.
            let glob = GlobBuilder::new(glob).literal_separator(true).build();
            set.add(glob.map_err(wrong)?);
        }
        set.build().map_err(wrong)
    }

    /// The shell command that installs packages, each a word as [`PackageTool::word`] or [`PackageTool::name`] gives it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the distribution's file has no such command.
    pub fn install(&self, words: &[String]) -> Result<String> {
        self.render("install", self.install, &json!({ "packages": words }))
    }

    /// The shell command that removes packages, each a word as [`PackageTool::name`] gives it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the distribution's file has no such command.
    pub fn remove(&self, names: &[String]) -> Result<String> {
        self.render("remove", self.remove, &json!({ "packages": names }))
    }

    /// The shell command that makes key files known, if there is need for one.
    ///
    /// # Errors
    /// [`Error::Usage`] if the template fails.
    pub fn import_keys(&self, files: &[&str]) -> Result<Option<String>> {
        let Some(template) = self.key.and_then(|k| k.import.as_deref()) else {
            return Ok(None);
        };
        let files: Vec<String> = files.iter().map(|file| quoted(file)).collect();
        self.render("key.import", Some(template), &json!({ "keys": files }))
            .map(Some)
    }

    /// The URL of the release's archive.
    ///
    /// # Errors
    /// As [`PackageTool::archive`].
    pub fn archive_url(&self, machine: &MachineFacts<'_>) -> Result<Option<String>> {
        let Some(template) = self.release.and_then(|r| r.archive.as_deref()) else {
            return Ok(None);
        };
        self.render("archive", Some(template), &self.facts(machine)?)
            .map(Some)
    }

    /// Path and content of the files that name the release's archive; none if it has no archive.
    ///
    /// # Errors
    /// [`Error::Refused`] if what the machine says of itself cannot be part of a URL.
    pub fn archive(&self, machine: &MachineFacts<'_>) -> Result<Vec<(String, String)>> {
        let Some(url) = self.archive_url(machine)? else {
            return Ok(Vec::new());
        };
        let mut facts = self.facts(machine)?;
        insert(&mut facts, "archive", url);
        self.files("archive_repositories", self.archive_repositories, &facts)
    }

    /// Path and content of the files that name the state of `day` (ISO 8601: `2024-05-31`); none if nobody keeps such.
    ///
    /// # Errors
    /// [`Error::Usage`] if `day` is none, [`Error::Refused`] as for [`PackageTool::archive`].
    pub fn snapshot(&self, day: &str, machine: &MachineFacts<'_>) -> Result<Vec<(String, String)>> {
        if !super::is_day(day) {
            return Err(Error::usage(format!("{day:?} is not a day such as 2026-06-30")));
        }
        if self.snapshot_repositories.is_empty() || self.snapshot.is_none() {
            return Ok(Vec::new());
        }
        let mut facts = self.facts(machine)?;
        for (name, part) in ["year", "month", "day"].into_iter().zip(day.split('-')) {
            insert(&mut facts, name, part.to_owned());
        }
        let url = self.render("snapshot", self.snapshot, &facts)?;
        insert(&mut facts, "snapshot", url);
        self.files("snapshot_repositories", self.snapshot_repositories, &facts)
    }

    /// The URL of the release's list of mirrors.
    ///
    /// # Errors
    /// As [`PackageTool::archive`].
    pub fn mirror_list(&self, machine: &MachineFacts<'_>) -> Result<Option<String>> {
        let Some(template) = self.mirror_list else {
            return Ok(None);
        };
        let facts = self.facts(machine)?;
        self.render("mirror_list", Some(template), &facts).map(Some)
    }

    /// False if packages are asked for by their names alone, so that the state of the repositories decides which version comes.
    pub fn names_versions(&self) -> bool {
        self.package_word
            .is_none_or(|word| word.contains("version") || word.contains("upstream"))
    }

    fn files(&self, what: &str, files: &[RepositoryFile], facts: &Value) -> Result<Vec<(String, String)>> {
        files
            .iter()
            .map(|f| Ok((f.path.clone(), self.render(what, Some(&f.content), facts)?)))
            .collect()
    }

    /// What the templates of repositories see. A machine chooses these words itself, and they become part of files.
    fn facts(&self, machine: &MachineFacts<'_>) -> Result<Value> {
        let release = self.release;
        let version = release.and_then(|r| r.version.as_deref()).unwrap_or_default();
        let codename = release.and_then(|r| r.codename.as_deref());
        let facts = json!({
            "version": version,
            "version_id": machine.version_id.unwrap_or(version),
            "codename": codename.or(machine.codename).unwrap_or_default(),
            "arch": machine.arch.unwrap_or_default(),
        });
        for word in facts.as_object().into_iter().flat_map(|o| o.values()) {
            let word = word.as_str().unwrap_or_default();
            if !word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "*._+-".contains(c))
                || word.contains("..")
            {
                return Err(self.strange("version or architecture", word));
            }
        }
        let mut facts = facts;
        for (name, word) in &self.words {
            insert(&mut facts, name, (*word).to_owned());
        }
        Ok(facts)
    }

    fn matches(&self, what: &str, pattern: Option<&str>, text: &str) -> Result<()> {
        let known = pattern.map(Regex::new).transpose().ok().flatten();
        let fits = match known {
            Some(regex) => regex.is_match(text),
            None => text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._+:~-".contains(c)),
        };
        // `$` also matches before a line break.
        if !fits || text.is_empty() || text.starts_with('-') || text.contains(char::is_control) {
            return Err(self.strange(what, text));
        }
        Ok(())
    }

    fn strange(&self, what: &str, text: &str) -> Error {
        Error::refused(format!(
            "{:?} is no {what} of {}",
            Escaped(text.as_bytes()).to_string(),
            self.id
        ))
    }

    fn render(&self, field: &str, template: Option<&str>, data: &Value) -> Result<String> {
        let Some(template) = template else {
            return Err(Error::unsupported(format!(
                "packages of {}: its file has no {field}",
                self.id
            )));
        };
        engine()
            .render_template(template, data)
            .map_err(|e| Error::usage(format!("{}.toml: {field}: {e}", self.id)))
    }
}

/// `word` as one word of sh(1): as it stands if nothing in it means anything, else in single quotes.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_+=:,./~-".contains(c);
    // A tilde means something at the start of a word, and behind the `=` and `:` of what looks like an assignment.
    let tilde = ["=~", ":~"].iter().any(|t| word.contains(t)) || word.starts_with('~');
    if !word.is_empty() && word.chars().all(plain) && !tilde {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Checks what the schema cannot: templates compile, paths are absolute, keys are among the repositories' files.
pub(super) fn check(distro: &Distro) -> std::result::Result<(), String> {
    let releases = distro.releases.iter();
    let own = [
        &distro.package_word,
        &distro.install,
        &distro.remove,
        &distro.refresh,
        &distro.clean,
        &distro.snapshot,
        &distro.mirror_list,
    ];
    let of_releases = releases.clone().flat_map(|r| {
        [
            &r.archive,
            &r.package_word,
            &r.install,
            &r.remove,
            &r.refresh,
            &r.clean,
        ]
    });
    let files = distro
        .archive_repositories
        .iter()
        .chain(&distro.snapshot_repositories);
    let files = files.chain(releases.flat_map(|r| {
        let lists = [&r.archive_repositories, &r.snapshot_repositories];
        lists.into_iter().flatten().flatten()
    }));
    let import = distro.key.iter().filter_map(|k| k.import.as_ref());
    let templates = own.into_iter().chain(of_releases).flatten().chain(import);
    for template in templates.chain(files.clone().map(|f| &f.content)) {
        Template::compile(template).map_err(|e| format!("{template:?}: {e}"))?;
    }
    let keys = distro.key.iter().flat_map(|k| &k.files);
    if let Some(glob) = keys.clone().find(|k| !distro.repository_files.contains(k)) {
        return Err(format!("{glob:?} holds keys, but is not among repository_files"));
    }
    let paths = distro.repository_files.iter().chain(files.map(|f| &f.path));
    match paths
        .into_iter()
        .find(|p| !p.starts_with('/') || p.contains(".."))
    {
        Some(path) => Err(format!("{path:?} is not an absolute path")),
        None => Ok(()),
    }
}

/// Without HTML's escapes; a name that the data does not have is an error.
fn engine() -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.register_escape_fn(no_escape);
    engine.set_strict_mode(true);
    engine
}

fn insert(facts: &mut Value, name: &str, value: String) {
    if let Some(map) = facts.as_object_mut() {
        map.insert(name.to_owned(), Value::String(value));
    }
}
