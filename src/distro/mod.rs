//! What is known of distributions: `distros/*.toml`, embedded in the program, added to or overridden from a folder.
//!
//! No other part of the program knows the name of a distribution. `docs/distributions.md` describes the files.

mod tool;

pub use tool::{MachineFacts, PackageTool, Wanted, quoted};

use crate::error::{Error, Result};
use globset::{Glob, GlobMatcher};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The files of `distros/`: name and content.
const EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/distros.rs"));

/// One distribution: the content of one file. What a file does not say is taken from the distributions in `like`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distro {
    /// `ID` of os-release(5), and the name of the file without `.toml`.
    pub id: String,
    /// For people.
    pub name: String,
    /// The packaging family: distributions of one family use the same package tools and layout.
    pub family: String,
    /// Ids of the distributions this one is made from, the nearest first.
    #[serde(default)]
    pub like: Vec<String>,
    /// Further values of `ID` that mean this distribution; globs.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// A machine of this distribution that states the `ID` of another one.
    pub variant: Option<Variant>,
    /// Values of `ID` of distributions that are made from this one and have no file of their own; globs. For those that
    /// state no `ID_LIKE`.
    #[serde(default)]
    pub derivatives: Vec<String>,
    /// Name of the package database, as in `pkgdb::DATABASES`.
    pub database: Option<String>,
    /// Regular expression that every package name matches.
    pub package_name: Option<String>,
    /// Regular expression that every full version (`epoch:version-release`) matches.
    pub package_version: Option<String>,
    /// Template of the word that asks for one package in exactly one version; see [`Wanted`] for what it sees.
    pub package_word: Option<String>,
    /// Template of the shell command that installs `packages`, a list of quoted words, and fails if it cannot bring
    /// every one of them. Newer versions that are there are replaced.
    pub install: Option<String>,
    /// Template of the shell command that removes `packages`, a list of quoted names, and what needs them.
    pub remove: Option<String>,
    /// Shell command that fetches the lists of packages anew, where installing does not do so itself.
    pub refresh: Option<String>,
    /// Shell command that removes what installing leaves behind.
    pub clean: Option<String>,
    /// Where the keys are that sign packages and lists.
    pub key: Option<Key>,
    /// Globs over the machine's paths: the files that say where its packages come from, with the keys.
    #[serde(default)]
    pub repository_files: Vec<String>,
    /// Files to put in place of the machine's `repository_files` where the mirrors have dropped its release.
    #[serde(default)]
    pub archive_repositories: Vec<RepositoryFile>,
    /// The same for the state of one day.
    #[serde(default)]
    pub snapshot_repositories: Vec<RepositoryFile>,
    /// Words that the templates of `archive_repositories` and `snapshot_repositories` see, and that differ between releases.
    #[serde(default)]
    pub words: BTreeMap<String, String>,
    /// Template of the URL of the packages as they were on one day: `year`, `month`, `day`, and what
    /// [`RepositoryFile`] sees.
    pub snapshot: Option<String>,
    /// Template of the URL of the list of mirrors that `$MIRRORLIST` stands for in the machine's files (urpmi): `version`,
    /// `version_id`, `arch`.
    pub mirror_list: Option<String>,
    /// Globs of packages that no container needs: kernel, boot loader, firmware, ...
    #[serde(default)]
    pub not_in_containers: Vec<String>,
    /// Globs of services that belong to the base system and are no reason to run a machine.
    #[serde(default)]
    pub base_services: Vec<String>,
    /// Keys of a derivative's os-release file whose value is a codename of this distribution.
    #[serde(default)]
    pub codename_keys: Vec<String>,
    /// Files that must not leave a machine, beyond the rules that hold for all.
    #[serde(default, rename = "secret")]
    pub secrets: Vec<SecretFile>,
    /// How to recognise it without an os-release file.
    #[serde(default)]
    pub identify: Vec<Identify>,
    /// Which release of another distribution a release of this one is nearest to; the first match counts.
    #[serde(default)]
    pub nearest: Vec<Nearest>,
    /// Releases, the oldest first.
    #[serde(default, rename = "release")]
    pub releases: Vec<Release>,
}

/// A file of the machine that tells a distribution and its version.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identify {
    /// Absolute path in the machine.
    pub file: String,
    /// Regular expression over the whole file; the groups `version` and `codename` are taken where they exist.
    pub pattern: String,
    /// Of several matches the one with the highest priority counts.
    #[serde(default)]
    pub priority: i32,
}

/// What tells a distribution from the one whose `ID` it states.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The `ID` that both state.
    pub id: String,
    /// Glob over `NAME`.
    pub name: String,
}

/// Where signing keys are and how they are made known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Globs over the machine's paths; each also in `repository_files`.
    pub files: Vec<String>,
    /// Template of the shell command that makes `keys`, a list of quoted paths, known to the package tool. Missing where
    /// it is enough that they lie in their place.
    pub import: Option<String>,
}

/// A file that names repositories. Its template sees `archive` or `snapshot` (the URL), `version` (of the release in our
/// file), `version_id` (in full, as the machine states it), `codename`, `arch` (in the package database's words), and the
/// `words` of distribution and release.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryFile {
    /// Absolute path.
    pub path: String,
    /// Template of its content.
    pub content: String,
}

/// A file that must not leave a machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFile {
    /// Name of the rule in `inventory::secrets`.
    pub rule: String,
    /// Glob over whole paths.
    pub glob: String,
}

/// A stated nearest match.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nearest {
    /// Glob over `VERSION_ID`.
    pub version: String,
    /// Id of the other distribution.
    pub id: String,
    /// Its version; without it the machine's own `VERSION_ID` is looked up there.
    pub release: Option<String>,
    /// Only for machines whose `ID_LIKE` has this word.
    pub like: Option<String>,
}

/// One release. Dates are ISO 8601 days. Commands and repositories replace those of the distribution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// `VERSION_ID`, or its leading parts: `9` also stands for 9.4. `*` for a distribution that has no releases.
    /// Missing for a release without a number.
    pub version: Option<String>,
    /// `VERSION_CODENAME`.
    pub codename: Option<String>,
    /// Reference of the base image.
    pub image: Option<String>,
    /// The day the distribution stops its ordinary support.
    pub end_of_life: Option<String>,
    /// The day longer support of the distribution or its community ends.
    pub lts: Option<String>,
    /// The day support that has to be bought or asked for ends.
    pub elts: Option<String>,
    /// Template of the URL of the archive that keeps the packages when the mirrors have dropped them; sees what
    /// [`RepositoryFile`] sees, but for itself.
    pub archive: Option<String>,
    /// Another `package_word` than the distribution's.
    pub package_word: Option<String>,
    /// Another `install` than the distribution's.
    pub install: Option<String>,
    /// Another `remove` than the distribution's.
    pub remove: Option<String>,
    /// Another `refresh` than the distribution's.
    pub refresh: Option<String>,
    /// Another `clean` than the distribution's.
    pub clean: Option<String>,
    /// Other `archive_repositories` than the distribution's.
    pub archive_repositories: Option<Vec<RepositoryFile>>,
    /// Other `snapshot_repositories` than the distribution's; an empty list says that there is no snapshot.
    pub snapshot_repositories: Option<Vec<RepositoryFile>>,
    /// Other `words` than the distribution's.
    #[serde(default)]
    pub words: BTreeMap<String, String>,
}

/// All known distributions.
#[derive(Debug, Clone)]
pub struct Distros {
    by_id: BTreeMap<String, Distro>,
    aliases: Vec<(GlobMatcher, String)>,
    derivatives: Vec<(GlobMatcher, String)>,
    /// `ID`, glob over `NAME`, id here.
    variants: Vec<(String, GlobMatcher, String)>,
}

impl Distros {
    /// The embedded files, then those of `extra_dir`: a file there replaces the one with the same id.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the file that does not keep to the schema, [`Error::Io`] if one cannot be read.
    pub fn load(extra_dir: Option<&Path>) -> Result<Self> {
        let mut by_id = BTreeMap::new();
        for (name, text) in EMBEDDED {
            let distro = parse(name, text)?;
            by_id.insert(distro.id.clone(), distro);
        }
        if let Some(dir) = extra_dir {
            let io = |e| Error::io(format!("reading {}", dir.display()), e);
            let mut paths = Vec::new();
            for entry in std::fs::read_dir(dir).map_err(io)? {
                let path = entry.map_err(io)?.path();
                if path.extension().is_some_and(|e| e == "toml") {
                    paths.push(path);
                }
            }
            paths.sort();
            for path in paths {
                let name = path.display().to_string();
                let text =
                    std::fs::read_to_string(&path).map_err(|e| Error::io(format!("reading {name}"), e))?;
                let distro = parse(&name, &text)?;
                by_id.insert(distro.id.clone(), distro);
            }
        }
        let (mut aliases, mut derivatives, mut variants) = (Vec::new(), Vec::new(), Vec::new());
        for distro in by_id.values() {
            for like in &distro.like {
                if !by_id.contains_key(like) {
                    return Err(Error::usage(format!(
                        "{}.toml: no distribution {like:?} to be like",
                        distro.id
                    )));
                }
            }
            for alias in &distro.aliases {
                aliases.push((glob(&distro.id, alias)?, distro.id.clone()));
            }
            for derivative in &distro.derivatives {
                derivatives.push((glob(&distro.id, derivative)?, distro.id.clone()));
            }
            if let Some(variant) = &distro.variant {
                let name = glob(&distro.id, &variant.name)?;
                variants.push((variant.id.clone(), name, distro.id.clone()));
            }
        }
        Ok(Self {
            by_id,
            aliases,
            derivatives,
            variants,
        })
    }

    /// All distributions in byte order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Distro> {
        self.by_id.values()
    }

    /// The distribution whose `id` or alias this is, in any case of letters.
    pub fn get(&self, id: &str) -> Option<&Distro> {
        let id = id.to_ascii_lowercase();
        self.by_id.get(&id).or_else(|| {
            let (_, to) = self.aliases.iter().find(|(glob, _)| glob.is_match(&id))?;
            self.by_id.get(to)
        })
    }

    /// As [`Distros::lookup`], for a machine that also states a `NAME`.
    pub fn lookup_named(&self, id: &str, name: Option<&str>, id_like: &[String]) -> Option<(&Distro, bool)> {
        let variant = name.and_then(|name| {
            let mut variants = self.variants.iter();
            variants.find(|(of, glob, _)| of.eq_ignore_ascii_case(id) && glob.is_match(name))
        });
        match variant.and_then(|(_, _, to)| self.by_id.get(to)) {
            Some(distro) => Some((distro, true)),
            None => self.lookup(id, id_like),
        }
    }

    /// The distribution that `ID` names; failing that the first known one of `ID_LIKE`, the one that lists it among its
    /// derivatives, or the one whose id begins or ends the unknown id. The second value is false where it is not the distribution itself but one that
    /// it is like.
    pub fn lookup(&self, id: &str, id_like: &[String]) -> Option<(&Distro, bool)> {
        if let Some(distro) = self.get(id) {
            return Some((distro, true));
        }
        if let Some(distro) = id_like.iter().find_map(|like| self.get(like)) {
            return Some((distro, false));
        }
        let id = id.to_ascii_lowercase();
        let mut listed = self.derivatives.iter().filter(|(glob, _)| glob.is_match(&id));
        if let Some(distro) = listed.find_map(|(_, to)| self.by_id.get(to)) {
            return Some((distro, false));
        }
        let stems = id
            .char_indices()
            .filter(|(_, c)| matches!(c, '-' | '_' | '.' | ' '));
        let by_start = stems
            .filter_map(|(at, _)| self.get(id.get(..at)?))
            .max_by_key(|d| d.id.len());
        by_start
            .or_else(|| {
                // Flavours put their mark in front. Short ids would match by chance.
                self.iter()
                    .filter(|d| d.id.len() > 4 && id.ends_with(&d.id))
                    .max_by_key(|d| d.id.len())
            })
            .map(|distro| (distro, false))
    }

    /// The value that `field` finds in `distro` or in what it is like, the nearest first.
    pub fn inherited<'a, T: ?Sized>(
        &'a self,
        distro: &'a Distro,
        field: impl Fn(&'a Distro) -> Option<&'a T>,
    ) -> Option<&'a T> {
        self.ancestry(distro).into_iter().find_map(field)
    }

    /// All values of a list field of `distro` and of what it is like.
    pub fn collected<'a>(
        &'a self,
        distro: &'a Distro,
        field: impl Fn(&'a Distro) -> &'a [String],
    ) -> Vec<&'a str> {
        let lists = self.ancestry(distro).into_iter().map(field);
        lists.flat_map(|list| list.iter().map(String::as_str)).collect()
    }

    /// `distro`, then all it is like, each once.
    pub fn ancestry<'a>(&'a self, distro: &'a Distro) -> Vec<&'a Distro> {
        let mut found: Vec<&Distro> = vec![distro];
        let mut next = 0;
        while let Some(at) = found.get(next).copied() {
            next += 1;
            for like in at.like.iter().filter_map(|id| self.by_id.get(id)) {
                if !found.iter().any(|d| d.id == like.id) {
                    found.push(like);
                }
            }
        }
        found
    }
}

impl Distro {
    /// The release with this version or codename. A version that no release has exactly is matched by its leading
    /// parts, the longest first; a version that matches nothing is not outvoted by the codename.
    pub fn release(&self, version: Option<&str>, codename: Option<&str>) -> Option<&Release> {
        if let Some(version) = version.filter(|v| !v.is_empty()) {
            let begins = |r: &Release| {
                let own = r.version.as_deref()?;
                let rest = version.strip_prefix(own)?;
                (rest.is_empty() || rest.starts_with(['.', '-', '_', ' '])).then_some(own.len())
            };
            let mut best: Option<(usize, &Release)> = None;
            for release in &self.releases {
                if let Some(len) = begins(release)
                    && best.is_none_or(|(longest, _)| len > longest)
                {
                    best = Some((len, release));
                }
            }
            if let Some((_, release)) = best {
                return Some(release);
            }
            // A release that is named `*` has no versions: rolling.
            return self.releases.iter().find(|r| r.version.as_deref() == Some("*"));
        }
        codename.and_then(|name| self.codenamed(name)).or_else(|| {
            let mut releases = self.releases.iter();
            releases.find(|r| r.version.as_deref() == Some("*"))
        })
    }

    /// The release with this codename, in any case of letters.
    pub fn codenamed(&self, name: &str) -> Option<&Release> {
        let mut releases = self.releases.iter();
        releases.find(|r| {
            r.codename
                .as_deref()
                .is_some_and(|c| c.eq_ignore_ascii_case(name))
        })
    }
}

fn glob(id: &str, text: &str) -> Result<GlobMatcher> {
    Glob::new(text)
        .map(|g| g.compile_matcher())
        .map_err(|e| Error::usage(format!("{id}.toml: {e}")))
}

/// Reads one file and checks what the schema cannot: expressions compile, dates are days, the file has its id's name.
fn parse(name: &str, text: &str) -> Result<Distro> {
    let wrong = |what: String| Error::usage(format!("{name}: {what}"));
    let distro: Distro = toml::from_str(text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
    let stem = Path::new(name)
        .file_stem()
        .map(|s| s.to_string_lossy().into_owned());
    if stem.as_deref() != Some(distro.id.as_str()) {
        return Err(wrong(format!("the id {:?} is not the file's name", distro.id)));
    }
    if distro.id.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(wrong("an id is in lower case".to_owned()));
    }
    let patterns = distro.identify.iter().map(|i| &i.pattern);
    for pattern in patterns
        .chain(&distro.package_name)
        .chain(&distro.package_version)
    {
        regex::bytes::Regex::new(pattern).map_err(|e| wrong(e.to_string()))?;
    }
    tool::check(&distro).map_err(wrong)?;
    let globs = distro.not_in_containers.iter().chain(&distro.base_services);
    let globs = globs.chain(&distro.repository_files);
    for pattern in globs.chain(distro.nearest.iter().map(|n| &n.version)) {
        Glob::new(pattern).map_err(|e| wrong(e.to_string()))?;
    }
    for release in &distro.releases {
        if release.version.is_none() && release.codename.is_none() {
            return Err(wrong("a release without version and codename".to_owned()));
        }
        for date in [&release.end_of_life, &release.lts, &release.elts]
            .into_iter()
            .flatten()
        {
            if !is_day(date) {
                return Err(wrong(format!("{date:?} is not a day such as 2026-06-30")));
            }
        }
    }
    Ok(distro)
}

/// True for `YYYY-MM-DD`.
fn is_day(text: &str) -> bool {
    let mut parts = text.split('-');
    let number = |part: Option<&str>, len: usize, max: u32| {
        part.is_some_and(|p| {
            p.len() == len
                && p.bytes().all(|b| b.is_ascii_digit())
                && p.parse::<u32>().is_ok_and(|n| (1..=max).contains(&n))
        })
    };
    number(parts.next(), 4, 9999)
        && number(parts.next(), 2, 12)
        && number(parts.next(), 2, 31)
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(words: &str) -> Vec<String> {
        words.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn lookup_goes_from_the_sure_to_the_likely() {
        let distros = Distros::load(None).unwrap();
        let found = |id: &str, words: &str| {
            distros
                .lookup(id, &like(words))
                .map(|(d, own)| (d.id.as_str(), own))
        };
        assert_eq!(found("debian", "fedora"), Some(("debian", true)));
        assert_eq!(found("Debian", ""), Some(("debian", true)));
        assert_eq!(found("archlinux", ""), Some(("arch", true)));
        assert_eq!(
            found("never-heard-of", "unknown ubuntu debian"),
            Some(("ubuntu", false))
        );
        assert_eq!(found("sparkylinux", ""), Some(("debian", false)));
        assert_eq!(found("fedora-asahi-remix", ""), Some(("fedora", false)));
        assert_eq!(found("xubuntu", ""), Some(("ubuntu", false)));
        assert_eq!(found("opensuse-something", ""), Some(("opensuse", false)));
        assert_eq!(found("nothing", ""), None);
    }

    #[test]
    fn versions_match_by_their_leading_parts() {
        let distros = Distros::load(None).unwrap();
        let release = |id: &str, version: &str| {
            let found = distros.get(id).unwrap().release(Some(version), None);
            found.and_then(|r| r.version.clone())
        };
        assert_eq!(release("debian", "12.5").as_deref(), Some("12"));
        assert_eq!(release("debian", "120"), None);
        assert_eq!(release("debian", "6"), None);
        assert_eq!(release("alpine", "3.19.1").as_deref(), Some("3.19"));
        assert_eq!(release("alpine", "3.1").as_deref(), Some("3.1"));
        assert_eq!(release("rhel", "9.4").as_deref(), Some("9"));
        let debian = distros.get("debian").unwrap();
        let sid = debian.release(None, Some("SID")).unwrap();
        assert_eq!(sid.image.as_deref(), Some("docker.io/library/debian:sid"));
        assert!(debian.release(Some("6"), Some("bookworm")).is_none());
    }

    #[test]
    fn a_folder_adds_and_overrides() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "mine.toml",
            "id = \"mine\"\nname = \"Mine\"\nfamily = \"debian\"\nlike = [\"debian\"]\n",
        );
        write(
            "debian.toml",
            "id = \"debian\"\nname = \"Ours\"\nfamily = \"debian\"\ndatabase = \"dpkg\"\n",
        );
        write("readme.txt", "not a distribution");
        let distros = Distros::load(Some(dir.path())).unwrap();
        let mine = distros.get("mine").unwrap();
        assert_eq!(distros.inherited(mine, |d| d.database.as_deref()), Some("dpkg"));
        assert_eq!(distros.get("debian").unwrap().name, "Ours");
        for (text, word) in [
            ("id = \"mine\"", "missing field"),
            ("id = \"mine\"\nname = \"\"\nfamily = \"\"\nextra = 1", "extra"),
            ("id = \"other\"\nname = \"\"\nfamily = \"\"", "file's name"),
            (
                "id = \"mine\"\nname = \"\"\nfamily = \"\"\nlike = [\"no\"]",
                "\"no\"",
            ),
            (
                "id = \"mine\"\nname = \"\"\nfamily = \"\"\npackage_name = '('",
                "regex",
            ),
            (
                "id = \"mine\"\nname = \"\"\nfamily = \"\"\n[[release]]\nversion = \"1\"\nend_of_life = \"soon\"",
                "soon",
            ),
        ] {
            write("mine.toml", text);
            let error = Distros::load(Some(dir.path())).unwrap_err();
            assert!(matches!(error, Error::Usage { .. }));
            assert!(
                error.to_string().contains(word) && error.to_string().contains("mine.toml"),
                "{error}"
            );
        }
    }

    #[test]
    fn lists_and_values_are_inherited() {
        let distros = Distros::load(None).unwrap();
        let mint = distros.get("linuxmint").unwrap();
        assert_eq!(distros.inherited(mint, |d| d.database.as_deref()), Some("dpkg"));
        let left_out = distros.collected(mint, |d| &d.not_in_containers);
        assert!(left_out.contains(&"linux-generic*") && left_out.contains(&"linux-image-*"));
    }
}
