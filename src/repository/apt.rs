//! Debian archives: sources.list(5) in both its forms, `Release` files and `Packages` lists
//! (the Debian repository format, wiki.debian.org/DebianRepository/Format).

#![deny(clippy::indexing_slicing)]

use super::{Client, Compressed, Served, fetch, open, without_zero_epoch};
use crate::error::{Error, Escaped, Result};
use crate::pkgdb::deb822;
use std::io::{BufRead, BufReader, Read};

/// One suite of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// URL of the archive, without `/` at its end.
    pub uri: String,
    /// `bookworm-updates`; a path that ends in `/` for an archive without suites.
    pub suite: String,
    /// `main`, ...; empty where there are no suites.
    pub components: Vec<String>,
    /// The architectures that it is used for; empty for all.
    pub architectures: Vec<String>,
}

impl Suite {
    /// `http://mirror.example.org/debian bookworm main`.
    pub fn label(&self) -> String {
        let mut label = format!("{} {}", fetch::shown(&self.uri), self.suite);
        for component in &self.components {
            label.push(' ');
            label.push_str(component);
        }
        Escaped(label.as_bytes()).to_string()
    }

    fn is_flat(&self) -> bool {
        self.suite.ends_with('/')
    }

    /// Where its documents are.
    fn root(&self) -> String {
        match self.is_flat() {
            true => format!("{}/{}", self.uri, self.suite.trim_start_matches('/')),
            false => format!("{}/dists/{}/", self.uri, self.suite),
        }
    }
}

/// The binary suites of a file in the one-line form.
pub fn one_line(text: &str) -> Vec<Suite> {
    let mut suites = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line
            .strip_prefix("deb")
            .filter(|r| r.starts_with([' ', '\t', '[']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inside) => match inside.split_once(']') {
                Some(both) => both,
                None => continue,
            },
            None => ("", rest),
        };
        let mut words = rest.split_ascii_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        let architectures = options
            .split_ascii_whitespace()
            .filter_map(|o| o.strip_prefix("arch="))
            .flat_map(|list| list.split(','))
            .map(str::to_owned)
            .collect();
        suites.push(Suite {
            uri: uri.trim_end_matches('/').to_owned(),
            suite: suite.to_owned(),
            components: words.map(str::to_owned).collect(),
            architectures,
        });
    }
    suites
}

/// The enabled binary suites of a file in the form of deb822(5). Stanzas that break its rules are passed over.
pub fn stanzas(bytes: &[u8]) -> Vec<Suite> {
    let mut suites = Vec::new();
    for stanza in deb822::stanzas(bytes).flatten() {
        let words = |field: &str| -> Vec<String> {
            let text = stanza.text(field).unwrap_or_default();
            text.split_ascii_whitespace().map(str::to_owned).collect()
        };
        let off = words("Enabled")
            .first()
            .is_some_and(|w| matches!(w.to_ascii_lowercase().as_str(), "no" | "false" | "0" | "off"));
        if off || !words("Types").iter().any(|t| t == "deb") {
            continue;
        }
        for uri in words("URIs") {
            for suite in words("Suites") {
                suites.push(Suite {
                    uri: uri.trim_end_matches('/').to_owned(),
                    suite,
                    components: words("Components"),
                    architectures: words("Architectures"),
                });
            }
        }
    }
    suites
}

/// One list that a `Release` file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Its path below the suite.
    pub path: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// A `Release` file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Release {
    /// What its `SHA256` field names.
    pub lists: Vec<List>,
    /// True if lists can be had by their digests, which does not race with an update of the archive.
    pub by_hash: bool,
    /// True if the lists of single architectures do not hold what is for all of them.
    pub all_apart: bool,
}

/// Reads a `Release` or `InRelease` file. A signature around it is taken off and not checked.
///
/// # Errors
/// [`Error::Corrupt`] if it is none.
pub fn release(bytes: &[u8]) -> Result<Release> {
    let text = signed_text(bytes);
    let stanza = match deb822::stanzas(&text).next() {
        Some(stanza) => stanza?,
        None => return Err(Error::corrupt("an empty Release file", 0)),
    };
    let mut release = Release {
        lists: Vec::new(),
        by_hash: stanza.first_line("Acquire-By-Hash").as_deref() == Some("yes"),
        all_apart: stanza
            .text("Architectures")
            .is_some_and(|a| a.split(' ').any(|w| w == "all"))
            && stanza.text("No-Support-for-Architecture-all").as_deref() != Some("Packages"),
    };
    for line in stanza.lines("SHA256") {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        if let (Some(sha256), Some(_), Some(path)) = (words.next(), words.next(), words.next()) {
            release.lists.push(List {
                path: path.to_owned(),
                sha256: sha256.to_ascii_lowercase(),
            });
        }
    }
    if release.lists.is_empty() {
        return Err(Error::corrupt("a Release file without SHA256 digests", stanza.at));
    }
    Ok(release)
}

/// What a cleartext signature (RFC 9580, section 7) is about; `bytes` themselves where there is none.
fn signed_text(bytes: &[u8]) -> Vec<u8> {
    const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
    if !bytes.trim_ascii_start().starts_with(BEGIN) {
        return bytes.to_vec();
    }
    let mut text = Vec::with_capacity(bytes.len());
    let mut inside = false;
    for line in bytes.trim_ascii_start().split_inclusive(|b| *b == b'\n') {
        if inside && line.starts_with(b"-----BEGIN PGP SIGNATURE-----") {
            break;
        }
        if inside {
            text.extend_from_slice(line.strip_prefix(b"- ").unwrap_or(line));
        } else if line.trim_ascii().is_empty() {
            inside = true;
        }
    }
    text
}

/// The longest line of a list in bytes.
const MAX_LINE: usize = 4 << 20;

/// Reads the stanzas of a `Packages` list.
///
/// # Errors
/// [`Error::Corrupt`] for a line without an end, and what the reader fails with.
pub fn packages(from: impl Read, take: &mut dyn FnMut(Served)) -> Result<()> {
    let mut stanza: [Option<String>; 3] = Default::default();
    let emit = |stanza: &mut [Option<String>; 3], take: &mut dyn FnMut(Served)| {
        if let [Some(name), Some(version), arch] = std::mem::take(stanza) {
            take(Served {
                name,
                version: without_zero_epoch(&version).to_owned(),
                arch: arch.unwrap_or_default(),
            });
        }
    };
    lines(from, |line| {
        if line.is_empty() {
            emit(&mut stanza, take);
            return;
        }
        let fields = ["Package:", "Version:", "Architecture:"];
        for (field, value) in fields.iter().zip(&mut stanza) {
            if let Some(text) = line.strip_prefix(field.as_bytes()) {
                *value = Some(String::from_utf8_lossy(text.trim_ascii()).into_owned());
            }
        }
    })?;
    emit(&mut stanza, take);
    Ok(())
}

/// Calls `each` with every line, its end taken off.
///
/// # Errors
/// [`Error::Corrupt`] for a line that does not end, and what the reader fails with.
pub(super) fn lines(from: impl Read, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut reader = BufReader::with_capacity(64 << 10, from);
    let mut line = Vec::new();
    let mut at = 0;
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut line)
            .map_err(|e| Error::corrupt(format!("a list of packages cannot be unpacked: {e}"), at))?;
        if read == 0 {
            return Ok(());
        }
        if read == MAX_LINE && !line.ends_with(b"\n") {
            return Err(Error::corrupt("a line of a list of packages does not end", at));
        }
        at += read as u64;
        let end = line.trim_ascii_end().len();
        line.truncate(end);
        each(&line);
    }
}

/// Asks a suite for its packages of `archs`, the machine's own architecture first.
pub(super) fn list(
    client: &Client,
    suite: &Suite,
    archs: &[&str],
    take: &mut dyn FnMut(Served),
) -> Result<()> {
    let root = suite.root();
    let release = match client.document(&format!("{root}InRelease")) {
        Ok(bytes) => release(&bytes)?,
        Err(first) => match client.document(&format!("{root}Release")) {
            Ok(bytes) => release(&bytes)?,
            Err(_) => return Err(first),
        },
    };
    let wanted =
        |arch: &&&str| suite.architectures.is_empty() || suite.architectures.iter().any(|a| a == **arch);
    let mut stems = Vec::new();
    if suite.is_flat() {
        stems.push("Packages".to_owned());
    }
    for component in &suite.components {
        let all = release.all_apart.then_some(&"all");
        for arch in archs.iter().filter(wanted).chain(all) {
            stems.push(format!("{component}/binary-{arch}/Packages"));
        }
    }
    let mut found = false;
    for stem in stems {
        let form = |end: &str| release.lists.iter().find(|l| l.path == format!("{stem}{end}"));
        let Some(list) = [".xz", ".gz", ".zst", ""].into_iter().find_map(form) else {
            continue;
        };
        found = true;
        let (Some(checksum), Some(compressed)) = (
            fetch::Checksum::parse("sha256", &list.sha256),
            Compressed::of_name(&list.path),
        ) else {
            return Err(Error::corrupt(format!("{root}Release: a digest that is none"), 0));
        };
        let plain = format!("{root}{}", list.path);
        let bytes = match (release.by_hash, list.path.rsplit_once('/')) {
            (true, Some((dir, _))) => client
                .list(&format!("{root}{dir}/by-hash/SHA256/{}", list.sha256), &checksum)
                .or_else(|_| client.list(&plain, &checksum))?,
            _ => client.list(&plain, &checksum)?,
        };
        packages(open(&bytes, compressed)?, take)?;
    }
    match found {
        true => Ok(()),
        false => Err(Error::unsupported(format!(
            "{}: it has no list for {}",
            suite.label(),
            archs.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources() {
        let suites = one_line(
            "# deb http://no x main\ndeb [arch=amd64,i386 signed-by=/k] http://a/debian/ bookworm main contrib # c\n\
             deb-src http://a/debian bookworm main\ndeb http://b/flat ./\ndeb broken\ndebian x y\n",
        );
        assert_eq!(suites.len(), 2);
        assert_eq!(suites[0].label(), "http://a/debian bookworm main contrib");
        assert_eq!(suites[0].architectures, ["amd64", "i386"]);
        assert_eq!(suites[0].root(), "http://a/debian/dists/bookworm/");
        assert_eq!(suites[1].root(), "http://b/flat/./");
        let suites = stanzas(
            b"Types: deb deb-src\nURIs: http://a http://b/\nSuites: x\n y\nComponents: main\n\nTypes: deb\nEnabled: no\nURIs: http://c\nSuites: z\n",
        );
        let labels: Vec<String> = suites.iter().map(Suite::label).collect();
        assert_eq!(
            labels,
            [
                "http://a/ x main",
                "http://a/ y main",
                "http://b/ x main",
                "http://b/ y main"
            ]
        );
    }

    #[test]
    fn a_signed_release_file() {
        let digest = "0".repeat(64);
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nOrigin: X\nAcquire-By-Hash: yes\nSHA256:\n {digest} 12 main/binary-amd64/Packages.xz\n-----BEGIN PGP SIGNATURE-----\n\nx\n"
        );
        let release = release(text.as_bytes()).unwrap();
        assert!(release.by_hash);
        assert_eq!(release.lists[0].path, "main/binary-amd64/Packages.xz");
        assert!(super::release(b"").is_err());
        assert!(super::release(b"Origin: x\n").is_err());
    }

    #[test]
    fn packages_of_a_list() {
        let mut found = Vec::new();
        let text = "Package: a\nVersion: 0:1-1\nArchitecture: amd64\nDescription: x\n Package: no\n\nPackage: b\nVersion: 1:2\nArchitecture: all\n\nPackage: c\n\n";
        packages(text.as_bytes(), &mut |p| found.push(p)).unwrap();
        let shown: Vec<String> = found
            .iter()
            .map(|s| format!("{} {} {}", s.name, s.version, s.arch))
            .collect();
        assert_eq!(shown, ["a 1-1 amd64", "b 1:2 all"]);
        assert!(packages(std::io::repeat(b'x'), &mut |_| {}).is_err());
    }
}
