//! rpm-md repositories: `.repo` files as yum, dnf, tdnf and zypper read them (dnf.conf(5)), lists of mirrors,
//! `repomd.xml` and `primary.xml` (createrepo_c's rpm metadata).

#![deny(clippy::indexing_slicing)]

use super::{Client, Compressed, Served, fetch, open, without_zero_epoch};
use crate::error::{Error, Escaped, Result};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};

/// A repository of a `.repo` file, its variables replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Yum {
    /// The name of its section.
    pub id: String,
    /// URLs of the directory that holds `repodata`.
    pub urls: Vec<String>,
    /// URLs of lists of such URLs: `mirrorlist` and `metalink`.
    pub lists: Vec<String>,
}

impl Yum {
    /// `baseos http://...`.
    pub fn label(&self) -> String {
        let url = self.urls.first().or(self.lists.first());
        let url = url.map_or_else(|| "no address".to_owned(), |u| fetch::shown(u));
        format!("{} {url}", Escaped(self.id.as_bytes()))
    }
}

/// The enabled repositories of a `.repo` file. `variables` are without their `$`.
pub fn repo_file(text: &str, variables: &BTreeMap<String, String>) -> Vec<Yum> {
    let mut found: Vec<(Yum, bool)> = Vec::new();
    let mut key = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(id) = trimmed.strip_prefix('[').and_then(|l| l.split(']').next()) {
            found.push((
                Yum {
                    id: id.to_owned(),
                    ..Yum::default()
                },
                id != "main",
            ));
            key.clear();
            continue;
        }
        let value = match line.starts_with([' ', '\t']) {
            true => trimmed,
            false => match trimmed.split_once('=') {
                Some((name, value)) => {
                    key = name.trim().to_ascii_lowercase();
                    value.trim()
                }
                None => continue,
            },
        };
        let Some((yum, enabled)) = found.last_mut() else {
            continue;
        };
        let words = value.split([' ', '\t', ',']).filter(|w| !w.is_empty());
        let urls = words.map(|w| replaced(w, variables).trim_end_matches('/').to_owned());
        match key.as_str() {
            "baseurl" => yum.urls.extend(urls),
            "mirrorlist" | "metalink" => yum.lists.extend(urls),
            "enabled" => {
                *enabled &= !matches!(value.to_ascii_lowercase().as_str(), "0" | "no" | "false" | "off")
            }
            _ => {}
        }
    }
    let usable = |(yum, enabled): (Yum, bool)| {
        (enabled && (!yum.urls.is_empty() || !yum.lists.is_empty())).then_some(yum)
    };
    found.into_iter().filter_map(usable).collect()
}

/// `text` with `$name` and `${name}` replaced; what is not known stays.
pub(super) fn replaced(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, behind) = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            Some(both) => both,
            None => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                after.split_at(end.unwrap_or(after.len()))
            }
        };
        match variables.get(name) {
            Some(value) => out.push_str(value),
            None => {
                out.push('$');
                rest = after;
                continue;
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The list of packages that a `repomd.xml` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// Its path below the repository.
    pub href: String,
    /// Its digest as it is sent.
    pub checksum: fetch::Checksum,
}

/// The longest text, tag or comment of a document in bytes.
const MAX_EVENT: usize = 1 << 20;
/// How deep elements may be nested.
const MAX_DEPTH: usize = 64;

/// A reader that gives [`MAX_EVENT`] bytes until it is told to go on, so that no part of a document grows without bound.
struct Gate<R> {
    inner: R,
    left: usize,
}

impl<R: Read> Read for Gate<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(buf)
    }
}

impl<R: BufRead> BufRead for Gate<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.left == 0 {
            return Err(std::io::Error::other(format!(
                "a part of it is longer than {MAX_EVENT} bytes"
            )));
        }
        let buf = self.inner.fill_buf()?;
        Ok(buf.get(..self.left).unwrap_or(buf))
    }
    fn consume(&mut self, n: usize) {
        self.left = self.left.saturating_sub(n);
        self.inner.consume(n);
    }
}

/// Calls `each` with every event of a document and the names of the elements around it, outermost first.
fn walk(
    from: impl Read,
    what: &str,
    mut each: impl FnMut(&[String], &Event<'_>) -> Result<bool>,
) -> Result<()> {
    let gate = Gate {
        inner: BufReader::with_capacity(64 << 10, from),
        left: MAX_EVENT,
    };
    let mut reader = Reader::from_reader(gate);
    let mut buf = Vec::new();
    let mut path: Vec<String> = Vec::new();
    loop {
        buf.clear();
        reader.get_mut().left = MAX_EVENT;
        let at = reader.buffer_position();
        let event = reader
            .read_event_into(&mut buf)
            .map_err(|e| Error::corrupt(format!("{what}: {e}"), at))?;
        match &event {
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err(Error::corrupt(format!("{what} ends early"), at)),
            Event::Start(start) => {
                if path.len() >= MAX_DEPTH {
                    return Err(Error::corrupt(format!("{what} is nested too deeply"), at));
                }
                path.push(start.local_name().into_inner().to_owned());
            }
            _ => {}
        }
        if !each(&path, &event)? {
            return Ok(());
        }
        if matches!(event, Event::End(_)) {
            path.pop();
        }
    }
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = start.try_get_attribute(name).ok()??;
    let value = attribute
        .normalized_value(quick_xml::XmlVersion::Implicit1_0)
        .ok()?;
    Some(value.into_owned())
}

/// True if `path` is `/first/second/...` in local names.
fn is_at(path: &[String], names: &[&str]) -> bool {
    path.len() == names.len() && path.iter().zip(names).all(|(a, b)| a == b)
}

fn text_of(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Text(text) => Some(text.xml10_content().trim().to_owned()),
        // No name, version or digest holds an entity: what does is no longer equal to one.
        Event::GeneralRef(_) => Some("&".to_owned()),
        _ => None,
    }
}

/// Reads `repomd.xml`.
///
/// # Errors
/// [`Error::Corrupt`] if it is none or names no primary list with a digest.
pub fn repomd(bytes: &[u8]) -> Result<Primary> {
    let mut kind = String::new();
    let mut digest_kind = String::new();
    let (mut checksum, mut href) = (None, None);
    walk(bytes, "repomd.xml", |path, event| {
        if let Event::Start(start) | Event::Empty(start) = event {
            let name = start.local_name();
            match name.into_inner() {
                "data" => kind = attribute(start, "type").unwrap_or_default(),
                "checksum" => digest_kind = attribute(start, "type").unwrap_or_default(),
                "location" if kind == "primary" => href = attribute(start, "href"),
                _ => {}
            }
        }
        if kind == "primary"
            && is_at(path, &["repomd", "data", "checksum"])
            && let Some(text) = text_of(event).filter(|t| !t.is_empty())
        {
            checksum = fetch::Checksum::parse(&digest_kind, &text);
        }
        Ok(true)
    })?;
    match (href, checksum) {
        (Some(href), Some(checksum)) if !href.contains("..") && !href.contains("://") => {
            Ok(Primary { href, checksum })
        }
        _ => Err(Error::corrupt(
            "a repomd.xml that names no primary list with a digest",
            0,
        )),
    }
}

/// Reads `primary.xml`.
///
/// # Errors
/// [`Error::Corrupt`] if it is none.
pub fn primary(from: impl Read, take: &mut dyn FnMut(Served)) -> Result<()> {
    let (mut name, mut arch, mut version) = (String::new(), String::new(), None);
    walk(from, "primary.xml", |path, event| {
        match event {
            Event::Start(start) | Event::Empty(start)
                if start.local_name().into_inner() == "version"
                    && path.len() == 2 + usize::from(matches!(event, Event::Start(_))) =>
            {
                let part = |key| attribute(start, key).unwrap_or_default();
                let full = format!("{}:{}-{}", part("epoch"), part("ver"), part("rel"));
                version = Some(without_zero_epoch(full.strip_prefix(':').unwrap_or(&full)).to_owned());
            }
            Event::End(end) if path.len() == 2 && end.local_name().into_inner() == "package" => {
                if let (false, Some(version)) = (name.is_empty(), version.take()) {
                    take(Served {
                        name: std::mem::take(&mut name),
                        version,
                        arch: std::mem::take(&mut arch),
                    });
                }
                name.clear();
                arch.clear();
            }
            _ => {
                if let Some(text) = text_of(event).filter(|t| !t.is_empty()) {
                    if is_at(path, &["metadata", "package", "name"]) {
                        name.push_str(&text);
                    } else if is_at(path, &["metadata", "package", "arch"]) {
                        arch.push_str(&text);
                    }
                }
            }
        }
        Ok(true)
    })
}

/// The most mirrors of a list that are tried.
const MAX_MIRRORS: usize = 3;

/// The URLs of repositories in a list of mirrors: one a line, or a metalink document (RFC 5854's forerunner, version 3).
pub fn mirrors(bytes: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut add = |url: &str| {
        if found.len() < MAX_MIRRORS && (url.starts_with("http://") || url.starts_with("https://")) {
            let url = url.strip_suffix("/repodata/repomd.xml").unwrap_or(url);
            found.push(url.trim_end_matches('/').to_owned());
        }
    };
    if !bytes.trim_ascii_start().starts_with(b"<") {
        String::from_utf8_lossy(bytes).lines().for_each(|l| add(l.trim()));
        return Ok(found);
    }
    walk(bytes, "a metalink", |path, event| {
        if path.last().is_some_and(|p| p == "url")
            && let Some(text) = text_of(event)
        {
            add(&text);
        }
        Ok(true)
    })?;
    Ok(found)
}

/// The list of packages of the repository in the directory at `url`, as it is sent.
pub(super) fn primary_of(client: &Client, url: &str) -> Result<(Vec<u8>, Compressed)> {
    let named = repomd(&client.document(&format!("{url}/repodata/repomd.xml"))?)?;
    let compressed = Compressed::of_name(&named.href).ok_or_else(|| {
        let href = Escaped(named.href.as_bytes());
        Error::unsupported(format!(
            "{}: the compression of {href} is not read",
            fetch::shown(url)
        ))
    })?;
    let bytes = client.list(&format!("{url}/{}", named.href), &named.checksum)?;
    Ok((bytes, compressed))
}

/// Asks a repository for its packages.
pub(super) fn list(client: &Client, yum: &Yum, take: &mut dyn FnMut(Served)) -> Result<()> {
    let mut urls = yum.urls.clone();
    let mut failure = None;
    for at in &yum.lists {
        if !urls.is_empty() {
            break;
        }
        match client.document(at).and_then(|bytes| mirrors(&bytes)) {
            Ok(found) => urls.extend(found),
            Err(e) => failure = Some(e),
        }
    }
    for url in &urls {
        match primary_of(client, url) {
            Ok((bytes, compressed)) => return primary(open(&bytes, compressed)?, take),
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.unwrap_or_else(|| Error::unsupported(format!("{}: it has no address", yum.label()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repo_files() {
        let variables = BTreeMap::from([
            ("releasever".to_owned(), "9".to_owned()),
            ("basearch".to_owned(), "x86_64".to_owned()),
        ]);
        let text = "[main]\nbaseurl=http://no\n[baseos]\nname=x\n#baseurl=http://no\nbaseurl=http://a/$releasever/${basearch}/os/\n  http://b/$unknown\n\
                    enabled = 1\n[off]\nbaseurl=http://c\nenabled=0\n[list]\nmirrorlist=https://m/?r=$releasever&x\n[none]\n";
        let found = repo_file(text, &variables);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].urls, ["http://a/9/x86_64/os", "http://b/$unknown"]);
        assert_eq!(found[1].lists, ["https://m/?r=9&x"]);
        assert_eq!(found[1].label(), "list https://m/");
    }

    const REPOMD: &str = r#"<?xml version="1.0"?><repomd xmlns="http://linux.duke.edu/metadata/repo">
        <data type="filelists"><checksum type="sha256">00</checksum><location href="f.gz"/></data>
        <data type="primary"><checksum type="sha256">e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855</checksum>
        <open-checksum type="sha256">11</open-checksum><location href="repodata/p-primary.xml.zst"/></data></repomd>"#;

    #[test]
    fn a_repomd_names_its_primary_list() {
        let primary = repomd(REPOMD.as_bytes()).unwrap();
        assert_eq!(primary.href, "repodata/p-primary.xml.zst");
        assert!(primary.checksum.is_of(b""));
        assert!(repomd(REPOMD.replace("p-primary", "../p").as_bytes()).is_err());
        assert!(repomd(b"<repomd>").is_err());
    }

    #[test]
    fn packages_of_a_primary_list() {
        let text = r#"<metadata xmlns="x" xmlns:rpm="y" packages="2"><package type="rpm"><name>bash</name><arch>x86_64</arch>
            <version epoch="0" ver="5.1.8" rel="6.el9"/><format><rpm:provides><rpm:entry name="bash"/></rpm:provides>
            <version epoch="9" ver="no" rel="no"/></format></package>
            <package type="rpm"><name>bind</name><arch>noarch</arch><version epoch="32" ver="9" rel="1"></version></package></metadata>"#;
        let mut found = Vec::new();
        primary(text.as_bytes(), &mut |p| {
            found.push(format!("{} {} {}", p.name, p.version, p.arch));
        })
        .unwrap();
        assert_eq!(found, ["bash 5.1.8-6.el9 x86_64", "bind 32:9-1 noarch"]);
    }

    #[test]
    fn no_part_of_a_document_grows_without_bound() {
        let endless = b"<a>".chain(std::io::repeat(b'x'));
        assert!(primary(endless, &mut |_| {}).is_err());
        let deep = b"<a>".repeat(1000);
        assert!(primary(&deep[..], &mut |_| {}).is_err());
    }

    #[test]
    fn lists_of_mirrors() {
        assert_eq!(
            mirrors(b"http://a/x/\nftp://no\nhttps://b\n").unwrap(),
            ["http://a/x", "https://b"]
        );
        let metalink = r#"<metalink><files><file name="repomd.xml"><resources><url protocol="https">https://m/9/os/repodata/repomd.xml</url><url>rsync://x</url></resources></file></files></metalink>"#;
        assert_eq!(mirrors(metalink.as_bytes()).unwrap(), ["https://m/9/os"]);
    }
}
