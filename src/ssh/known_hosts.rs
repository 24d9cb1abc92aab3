//! Known hosts: whose key is whose (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
#![deny(clippy::indexing_slicing)]

use super::key::{PublicKey, decode};
use super::pattern::matches_any;
use crate::error::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::SecureRandom as _;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A longer file is none: bytes.
const MAX_FILE: u64 = 64 << 20;
/// Length of the salt of a hashed name, in bytes.
const SALT: usize = 20;

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What a line says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It is a host's key.
    Host,
    /// It signs the certificates of hosts (`@cert-authority`).
    Authority,
    /// It must not be accepted (`@revoked`).
    Revoked,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub mark: Mark,
    names: Names,
    /// The key.
    pub key: PublicKey,
    /// Where it stands.
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    Patterns(Vec<String>),
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl Entry {
    /// True if the line is for `name`, which is in lower case.
    pub fn is_for(&self, name: &str) -> bool {
        match &self.names {
            // `\[` is no escape here, and brackets are no sets: they stand for themselves.
            Names::Patterns(patterns) => matches_any(patterns.iter().map(String::as_str), name),
            Names::Hashed { salt, hash } => digest(salt, name).as_ref() == hash.as_slice(),
        }
    }

    /// True if `name` itself stands in the line, and not only a pattern for it.
    fn names_it(&self, name: &str) -> bool {
        match &self.names {
            Names::Patterns(patterns) => patterns.iter().any(|p| p == name),
            Names::Hashed { .. } => true,
        }
    }
}

fn digest(salt: &[u8], name: &str) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
    hmac::sign(&key, name.as_bytes())
}

/// What is known of a key that a host presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Known(Place),
    /// The host has another key of the same type there.
    Changed(Place),
    /// It was revoked there.
    Revoked(Place),
    /// Nothing is known of it; these lines have keys of other types for the host.
    Unknown(Vec<Entry>),
}

/// The lines of some files.
#[derive(Debug, Clone, Default)]
pub struct KnownHosts {
    entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads `files`, those that exist.
    ///
    /// # Errors
    /// [`Error::Io`] if one cannot be read.
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut known = Self::default();
        for path in files {
            let failed = |e| Error::io(format!("reading {}", path.display()), e);
            let file = match std::fs::File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            let mut bytes = Vec::new();
            file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
            known.add(&bytes, path);
        }
        Ok(known)
    }

    /// Adds the lines of a file. What is no line of known hosts is passed over, as OpenSSH does.
    pub fn add(&mut self, bytes: &[u8], file: &Path) {
        for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            if let Some((mark, names, key)) = parse(line) {
                self.entries.push(Entry {
                    mark,
                    names,
                    key,
                    place: Place {
                        file: file.to_owned(),
                        line: number.saturating_add(1),
                    },
                });
            }
        }
    }

    /// The lines for `name`, as [`super::Settings::known_as`] gives it.
    pub fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.is_for(name))
    }

    /// What is known of `key` as the key of `name`. `plain` is the name without its port: a key that stands there is
    /// accepted too.
    pub fn check(&self, name: &str, plain: Option<&str>, key: &PublicKey) -> Verdict {
        let revoked = |e: &&Entry| e.mark == Mark::Revoked && e.key == *key;
        let names = [Some(name), plain];
        // A revoked key is looked for first, whatever else stands in the files.
        for name in names.into_iter().flatten() {
            if let Some(entry) = self.of(name).find(revoked) {
                return Verdict::Revoked(entry.place.clone());
            }
        }
        let hosts = || self.of(name).filter(|e| e.mark == Mark::Host);
        if let Some(entry) = hosts().find(|e| e.key == *key) {
            return Verdict::Known(entry.place.clone());
        }
        if let Some(entry) = hosts().find(|e| e.key.kind() == key.kind()) {
            return Verdict::Changed(entry.place.clone());
        }
        let plain = plain.and_then(|plain| self.of(plain).find(|e| e.mark == Mark::Host && e.key == *key));
        if let Some(entry) = plain {
            return Verdict::Known(entry.place.clone());
        }
        let mut others: Vec<Entry> = hosts().cloned().collect();
        others.sort_by_key(|e| !e.names_it(name));
        Verdict::Unknown(others)
    }

    /// The types of the keys that are known for `name`, each once, in the order of the files.
    pub fn kinds(&self, name: &str, mark: Mark) -> Vec<&str> {
        let mut kinds = Vec::new();
        let names: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|e| e.mark == mark && e.is_for(name))
            .collect();
        for kind in names.into_iter().filter_map(|e| e.key.kind()) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
    }
}

fn parse(line: &str) -> Option<(Mark, Names, PublicKey)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (mark, line) = match line.strip_prefix('@') {
        Some(rest) => {
            let (mark, line) = rest.split_once([' ', '\t'])?;
            let mark = match mark {
                "cert-authority" => Mark::Authority,
                "revoked" => Mark::Revoked,
                _ => return None,
            };
            (mark, line.trim_start())
        }
        None => (Mark::Host, line),
    };
    let (names, key) = line.split_once([' ', '\t'])?;
    let names = match names.strip_prefix("|1|") {
        Some(hashed) => {
            let (salt, hash) = hashed.split_once('|')?;
            let (salt, hash) = (decode(salt)?, decode(hash)?);
            // HMAC-SHA1 both.
            if salt.len() != SALT || hash.len() != SALT {
                return None;
            }
            Names::Hashed { salt, hash }
        }
        None => Names::Patterns(names.split(',').map(str::to_ascii_lowercase).collect()),
    };
    Some((mark, names, PublicKey::parse(key)?))
}

/// A line for `key` as the key of `name`.
///
/// # Errors
/// [`Error::Unsupported`] if the system gives no random bytes for a hashed name.
pub fn line(name: &str, key: &PublicKey, hashed: bool) -> Result<String> {
    let name = if hashed {
        let mut salt = [0; SALT];
        ring::rand::SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| Error::unsupported("the system gives no random bytes"))?;
        let hash = digest(&salt, name);
        format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(hash.as_ref()))
    } else {
        name.to_owned()
    };
    Ok(format!("{name} {}\n", key.line()))
}

/// Writes a line to the end of `file`, which is made if it is not there, with its directory.
///
/// # Errors
/// [`Error::Io`] if that fails.
pub fn append(file: &Path, line: &str) -> Result<()> {
    let failed = |e| Error::io(format!("writing {}", file.display()), e);
    if let Some(dir) = file.parent().filter(|dir| !dir.exists()) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed)?;
    }
    let mut out = std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    let length = out.metadata().map_err(failed)?.len();
    let mut text = String::new();
    if let Some(last) = length.checked_sub(1) {
        let mut byte = [0];
        out.read_exact_at(&mut byte, last).map_err(failed)?;
        // The line before has no end.
        if byte != *b"\n" {
            text.push('\n');
        }
    }
    text.push_str(line);
    out.write_all(text.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn known(text: &str) -> KnownHosts {
        let mut known = KnownHosts::default();
        known.add(text.as_bytes(), Path::new("known_hosts"));
        known
    }

    fn at(line: usize) -> Place {
        Place {
            file: "known_hosts".into(),
            line,
        }
    }

    #[test]
    fn a_key_is_known_changed_revoked_or_unknown() {
        let key = PublicKey::parse(KEY).unwrap();
        let text = format!(
            "# mine\n\nweb1,web1.example.com {KEY} root@web1\nweb2 {OTHER}\n[web3]:2222 {KEY}\n*.lab,!x.lab {KEY}\n"
        );
        let hosts = known(&text);
        assert_eq!(hosts.check("web1", None, &key), Verdict::Known(at(3)));
        assert_eq!(hosts.check("web1.example.com", None, &key), Verdict::Known(at(3)));
        assert_eq!(hosts.check("web2", None, &key), Verdict::Changed(at(4)));
        assert_eq!(
            hosts.check("[web3]:2222", Some("web3"), &key),
            Verdict::Known(at(5))
        );
        assert_eq!(hosts.check("web3", None, &key), Verdict::Unknown(Vec::new()));
        assert_eq!(
            hosts.check("[web1]:2222", Some("web1"), &key),
            Verdict::Known(at(3))
        );
        assert_eq!(hosts.check("a.lab", None, &key), Verdict::Known(at(6)));
        assert_eq!(hosts.check("x.lab", None, &key), Verdict::Unknown(Vec::new()));
        let hosts = known(&format!("web1 {KEY}\n@revoked * {KEY}\n"));
        assert_eq!(hosts.check("web1", None, &key), Verdict::Revoked(at(2)));
        let hosts = known(&format!("@cert-authority * {KEY}\n"));
        assert_eq!(hosts.check("web1", None, &key), Verdict::Unknown(Vec::new()));
        assert_eq!(hosts.kinds("web1", Mark::Authority), ["ssh-ed25519"]);
    }

    #[test]
    fn names_can_be_hashed() {
        let key = PublicKey::parse(KEY).unwrap();
        let text = line("[web1]:2222", &key, true).unwrap();
        assert!(text.starts_with("|1|") && !text.contains("web1"));
        let hosts = known(&text);
        assert_eq!(hosts.check("[web1]:2222", None, &key), Verdict::Known(at(1)));
        assert_eq!(hosts.check("web1", None, &key), Verdict::Unknown(Vec::new()));
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let junk = format!(
            "@other web1 {KEY}\n|1|AAAA|AAAA {KEY}\nweb1\nweb1 ssh-rsa\nweb1 ssh-rsa {KEY}\n\u{0}\n@revoked\n"
        );
        assert!(known(&junk).entries.is_empty());
    }

    #[test]
    fn a_line_is_added_behind_one_without_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/known_hosts");
        append(&file, "one\n").unwrap();
        append(&file, "two").unwrap();
        append(&file, "three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one\ntwo\nthree\n");
    }
}
