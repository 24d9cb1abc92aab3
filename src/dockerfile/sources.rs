//! The machine's own repository files: which they are, without credentials, and which repositories they name.

use crate::bytes::slice;
use crate::distro::PackageTool;
use crate::error::{Error, Result};
use crate::inventory::secrets::Secret;
use crate::path::GuestPath;
use crate::repository::{Place, Repository, apk, apt, pacman, rpm, urpmi};
use crate::source::image::ImageSource;
use crate::source::{Source, read_file};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use regex::Regex;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Larger files are neither lists of repositories nor keys.
const MAX_FILE: u64 = 4 << 20;
/// The most files of a machine.
const MAX_FILES: usize = 2000;

/// The rule by which credentials are taken out of repository files.
pub const RULE: &str = "repository-credentials";

/// A file that says where packages come from, or holds a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: GuestPath,
    /// Its content, without credentials.
    pub content: Vec<u8>,
    /// True if credentials were taken out.
    pub redacted: bool,
    /// True if it holds signing keys.
    pub key: bool,
    /// True if the base has the same file.
    pub in_base: bool,
}

fn globs<'a>(patterns: impl Iterator<Item = &'a str>) -> Result<GlobSet> {
    let bad = |e: globset::Error| Error::usage(format!("a glob of repository files: {e}"));
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(
            GlobBuilder::new(pattern)
                .literal_separator(true)
                .build()
                .map_err(bad)?,
        );
    }
    set.build().map_err(bad)
}

fn as_path(path: &GuestPath) -> &Path {
    Path::new(OsStr::from_bytes(path.as_bytes()))
}

/// The files of `source` that `tool` names, in byte order; secrets are left out. Only what is text and no key is looked
/// through for credentials.
///
/// # Errors
/// As the source's reader.
pub fn files(
    source: &dyn Source,
    tool: &PackageTool<'_>,
    secrets: &[Secret],
    base: Option<&ImageSource>,
) -> Result<Vec<SourceFile>> {
    let all = globs(tool.repository_files.iter().copied())?;
    let keys = globs(tool.key.iter().flat_map(|k| k.files.iter().map(String::as_str)))?;
    let secret: HashSet<&GuestPath> = secrets.iter().map(|s| &s.path).collect();
    let mut found = Vec::new();
    for (path, node) in source.tree().iter() {
        if !node.is_file() || node.size() > MAX_FILE || secret.contains(path) || !all.is_match(as_path(path))
        {
            continue;
        }
        if found.len() >= MAX_FILES {
            break;
        }
        let bytes = crate::read_at::read_all(&*source.open(node.id)?, MAX_FILE)?;
        let in_base = base.is_some_and(|base| {
            let other = base.tree().get(path).and_then(|n| base.content_hash(n.id));
            other == Some(*blake3::hash(&bytes).as_bytes())
        });
        let key = keys.is_match(as_path(path)) || is_key(&bytes);
        let without = std::str::from_utf8(&bytes)
            .ok()
            .filter(|_| !key)
            .and_then(without_credentials);
        found.push(SourceFile {
            path: path.clone(),
            redacted: without.is_some(),
            content: without.map_or(bytes, String::into_bytes),
            key,
            in_base,
        });
    }
    Ok(found)
}

/// True for OpenPGP keys, armoured or not, and RSA keys of apk.
fn is_key(bytes: &[u8]) -> bool {
    // RFC 9580, section 4.2: the first octet of a public-key packet, in the old format and in the new one.
    let binary = matches!(slice(bytes, 0, 1), Some([0x98 | 0x99 | 0xc6]));
    binary || bytes.trim_ascii_start().starts_with(b"-----BEGIN P")
}

/// `text` without passwords, tokens and user names; `None` if it has none.
pub fn without_credentials(text: &str) -> Option<String> {
    static PATTERNS: std::sync::LazyLock<Vec<(Regex, &str)>> = std::sync::LazyLock::new(|| {
        let pattern = |text: &str, with: &'static str| Some((Regex::new(text).ok()?, with));
        [
            // The user's part of a URL (RFC 3986, section 3.2.1).
            pattern(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s\x22'@]*@", "$1"),
            // yum, dnf and zypper: options of a repository.
            pattern(r"(?im)^[ \t]*(?:proxy_)?(?:user|username|pass|password)[ \t]*[=:].*(?:\n|\z)", ""),
            // Parameters of a URL that open something.
            pattern(
                r"(?i)([?&;](?:[a-z0-9_.-]*(?:token|secret|passw|passwd|key|auth|sig|credential|session)[a-z0-9_.-]*))=[^&;\s]+",
                "$1=",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    });
    let mut out = text.to_owned();
    for (pattern, with) in PATTERNS.iter() {
        out = pattern.replace_all(&out, *with).into_owned();
    }
    (out != text).then_some(out)
}

/// The repositories that the machine's files name.
pub fn repositories(files: &[SourceFile], variables: &BTreeMap<String, String>) -> Vec<Repository> {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| !f.key) {
        named_by(&file.path.to_string(), &file.content, variables, &mut found);
    }
    found.extend(of_pacman(files, &[]));
    found
}

/// The repositories that the files of an archive name, put in the place of the machine's.
pub fn archived(
    files: &[SourceFile],
    archive: &[(String, String)],
    variables: &BTreeMap<String, String>,
) -> Vec<Repository> {
    let mut found = Vec::new();
    for (path, content) in archive {
        named_by(path, content.as_bytes(), variables, &mut found);
    }
    let replaced = |r: &Repository| archive.iter().any(|(path, _)| *path == r.file);
    found.extend(of_pacman(files, archive).into_iter().filter(replaced));
    found
}

/// The file that names pacman's repositories.
pub const PACMAN: &str = "/etc/pacman.conf";

/// The repositories of pacman's configuration, which is one file with all that it includes; `over` stands in place of files
/// of the machine.
fn of_pacman(files: &[SourceFile], over: &[(String, String)]) -> Vec<Repository> {
    /// Longer files are no lists of mirrors, and no pattern includes more of them.
    const MAX_TEXT: usize = 1 << 20;
    const MAX_MATCHES: usize = 50;

    if !files.iter().any(|f| f.path.to_string() == PACMAN) {
        return Vec::new();
    }
    let mut texts: BTreeMap<String, Cow<'_, str>> = files
        .iter()
        .filter(|f| !f.key && f.content.len() <= MAX_TEXT)
        .map(|f| (f.path.to_string(), String::from_utf8_lossy(&f.content)))
        .collect();
    texts.extend(over.iter().map(|(path, text)| (path.clone(), text.into())));
    let include = |pattern: &str| -> Vec<(String, String)> {
        let copy = |(path, text): (&String, &Cow<'_, str>)| (path.clone(), text.clone().into_owned());
        if let Some(found) = texts.get_key_value(pattern) {
            return vec![copy(found)];
        }
        let Ok(glob) = GlobBuilder::new(pattern).literal_separator(true).build() else {
            return Vec::new();
        };
        let glob = glob.compile_matcher();
        let matching = texts.iter().filter(|(path, _)| glob.is_match(path));
        matching.take(MAX_MATCHES).map(copy).collect()
    };
    let Some(text) = texts.get(PACMAN) else {
        return Vec::new();
    };
    let found = pacman::conf(PACMAN, text, &include).into_iter();
    found
        .map(|(file, repository)| Repository {
            file,
            place: Place::Pacman(repository),
        })
        .collect()
}

/// The repositories that one file names, by the form that its path tells. Not pacman's, which are in several files.
pub fn named_by(
    path: &str,
    content: &[u8],
    variables: &BTreeMap<String, String>,
    found: &mut Vec<Repository>,
) {
    let text = String::from_utf8_lossy(content);
    let mut add = |place: Place| {
        found.push(Repository {
            file: path.to_owned(),
            place,
        });
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.ends_with(".list") {
        apt::one_line(&text).into_iter().for_each(|s| add(Place::Apt(s)));
    } else if name.ends_with(".sources") {
        apt::stanzas(content).into_iter().for_each(|s| add(Place::Apt(s)));
    } else if name.ends_with(".repo") || matches!(name, "yum.conf" | "dnf.conf" | "tdnf.conf") {
        let all = rpm::repo_file(&text, variables);
        all.into_iter().for_each(|y| add(Place::Rpm(y)));
    } else if name == "urpmi.cfg" {
        let media = urpmi::media(&text, variables);
        media.into_iter().for_each(|m| add(Place::Urpmi(m)));
    } else if path.starts_with("/etc/apk/repositories") {
        apk::repositories(&text)
            .into_iter()
            .for_each(|u| add(Place::Apk(u)));
    }
}

/// The variables of files that name repositories: what the machine sets in `vars`, and what the package managers set
/// themselves (dnf.conf(5); urpmi's `RELEASE` and `ARCH`).
///
/// # Errors
/// As the source's reader.
pub fn variables(
    source: &dyn Source,
    release: Option<&str>,
    arch: Option<&str>,
) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        variables.insert(name.to_owned(), value.to_owned());
    };
    if let Some(release) = release {
        set("releasever", release);
        set("RELEASE", release);
        let (major, minor) = release.split_once('.').unwrap_or((release, ""));
        set("releasever_major", major);
        set("releasever_minor", minor);
    }
    if let Some(arch) = arch {
        set("arch", arch);
        set("ARCH", arch);
        let base = if matches!(arch, "i486" | "i586" | "i686") {
            "i386"
        } else {
            arch
        };
        set("basearch", base);
    }
    for dir in ["/etc/yum/vars", "/etc/dnf/vars"] {
        let Some((dir, _)) = source.tree().find(dir) else {
            continue;
        };
        for (path, node) in source.tree().children(&dir).filter(|(_, n)| n.is_file()) {
            let name = String::from_utf8_lossy(path.name()).into_owned();
            let secret = ["token", "password", "secret"].iter().any(|w| name.contains(w));
            if node.size() > 4096 || secret || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            let bytes = read_file(source, &path.to_string(), 4096)?.unwrap_or_default();
            let value = String::from_utf8_lossy(&bytes);
            let value = value.lines().next().unwrap_or_default().trim();
            variables.insert(name, value.to_owned());
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_and_the_rest_stays() {
        let text = "deb https://me:s3cret@host/debian x main\n# deb http://tok:@h/x\n[r]\nbaseurl=https://a/b?token=abc&x=1\n  password = p\nusername=u\nproxy=http://p:q@proxy:3128/\nname=user@example of http://a/b\n";
        let wanted = "deb https://host/debian x main\n# deb http://h/x\n[r]\nbaseurl=https://a/b?token=&x=1\nproxy=http://proxy:3128/\nname=user@example of http://a/b\n";
        assert_eq!(without_credentials(text).unwrap(), wanted);
        assert_eq!(without_credentials(wanted.replace("token=", "t=").as_str()), None);
        assert_eq!(
            without_credentials(
                "gpgkey=file:///etc/pki/k\ngpgcheck=1\ndeb [signed-by=/usr/share/k.gpg] http://a b c\n"
            ),
            None
        );
    }

    #[test]
    fn files_name_their_repositories() {
        let none = BTreeMap::new();
        let mut found = Vec::new();
        named_by(
            "/etc/apt/sources.list",
            b"deb http://a x main\n",
            &none,
            &mut found,
        );
        named_by(
            "/etc/yum.repos.d/a.repo",
            b"[a]\nbaseurl=http://b\n",
            &none,
            &mut found,
        );
        named_by("/etc/apk/repositories", b"http://c\n", &none, &mut found);
        named_by("/etc/apt/preferences", b"Package: *\n", &none, &mut found);
        let labels: Vec<String> = found.iter().map(|r| r.place.label()).collect();
        assert_eq!(labels, ["http://a/ x main", "a http://b/", "http://c"]);
    }
}
