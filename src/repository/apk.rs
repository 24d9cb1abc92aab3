//! apk's repositories: `/etc/apk/repositories`, and `APKINDEX.tar.gz` (Alpine Linux, "Apk spec", index format 2).

#![deny(clippy::indexing_slicing)]

use super::tarball::{Content, Forward};
use super::{Client, Compressed, Served, apt, fetch, open};
use crate::error::{Error, Result};
use crate::tar::Reader;
use std::io::Read;

/// The URLs of a repositories file. Repositories with a tag are for packages that ask for it, and are passed over.
pub fn repositories(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|l| !l.is_empty() && !l.starts_with(['#', '@']))
        .map(|l| l.trim_end_matches('/').to_owned())
        .collect()
}

/// Reads `APKINDEX.tar.gz`: a signature and the index, each a gzip member with a part of one tar.
///
/// # Errors
/// [`Error::Corrupt`] if it is none.
pub fn index(bytes: &[u8], take: &mut dyn FnMut(Served)) -> Result<()> {
    let mut tar = Reader::new(Forward(open(bytes, Compressed::Gzip)?), "APKINDEX.tar.gz");
    while let Some(entry) = tar.next()? {
        if entry.path.strip_prefix(b"./").unwrap_or(&entry.path) == b"APKINDEX" {
            return records(Content(&mut tar), take);
        }
    }
    Err(Error::corrupt("an APKINDEX.tar.gz without APKINDEX", 0))
}

/// Reads the index itself: `P:`, `V:` and `A:` lines, an empty line behind each package.
fn records(from: impl Read, take: &mut dyn FnMut(Served)) -> Result<()> {
    let mut record: [Option<String>; 3] = Default::default();
    let mut emit = |record: &mut [Option<String>; 3]| {
        if let [Some(name), Some(version), arch] = std::mem::take(record) {
            take(Served {
                name,
                version,
                arch: arch.unwrap_or_default(),
            });
        }
    };
    apt::lines(from, |line| {
        if line.is_empty() {
            emit(&mut record);
            return;
        }
        for (key, value) in [&b"P:"[..], b"V:", b"A:"].iter().zip(&mut record) {
            if let Some(text) = line.strip_prefix(*key) {
                *value = Some(String::from_utf8_lossy(text).into_owned());
            }
        }
    })?;
    emit(&mut record);
    Ok(())
}

/// Asks the repository at `url` for its packages.
pub(super) fn list(client: &Client, url: &str, archs: &[&str], take: &mut dyn FnMut(Served)) -> Result<()> {
    let Some(arch) = archs.first() else {
        return Err(Error::unsupported(format!(
            "{}: the machine's architecture is not known",
            fetch::shown(url)
        )));
    };
    let bytes = client.unchecked_list(&format!("{url}/{arch}/APKINDEX.tar.gz"))?;
    index(&bytes, take)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn member(name: &str, content: &[u8], end: bool) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let mut tar = Vec::new();
        let mut builder = tar::Builder::new(&mut tar);
        builder.append_data(&mut header, name, content).unwrap();
        if end {
            builder.finish().unwrap();
        }
        drop(builder);
        if !end {
            // The signature's part has no end blocks: the index goes on behind it.
            tar.truncate(512 + content.len().next_multiple_of(512));
        }
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn an_index_behind_its_signature() {
        let text = b"C:Q1x=\nP:musl\nV:1.2.4-r2\nA:x86_64\nT:libc\n\nP:busybox\nV:1.36.1-r5\nA:x86_64\n\n";
        let bytes = [
            member(".SIGN.RSA.x", b"sig", false),
            member("APKINDEX", text, true),
        ]
        .concat();
        let mut found = Vec::new();
        index(&bytes, &mut |p| found.push(format!("{} {}", p.name, p.version))).unwrap();
        assert_eq!(found, ["musl 1.2.4-r2", "busybox 1.36.1-r5"]);
        assert!(index(&member("OTHER", b"", true), &mut |_| {}).is_err());
        assert!(index(b"not gzip", &mut |_| {}).is_err());
        let cut = &bytes[..bytes.len() - 30];
        assert!(index(cut, &mut |_| {}).is_err());
    }

    #[test]
    fn a_repositories_file() {
        let text = "# c\nhttp://a/v3.19/main/\n@edge http://b/edge/main\n\nhttps://c/x\n";
        assert_eq!(repositories(text), ["http://a/v3.19/main", "https://c/x"]);
    }
}
