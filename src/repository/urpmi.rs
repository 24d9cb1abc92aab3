//! urpmi's media: urpmi.cfg(5), lists of mirrors, and `synthesis.hdlist.cz` (genhdlist2(1), URPM): a compressed text with
//! lines `@TAG@...` of which `@info@NAME-VERSION-RELEASE.ARCH@EPOCH@SIZE@GROUP` ends what is said of a package.

#![deny(clippy::indexing_slicing)]

use super::{Client, Compressed, Served, apt, fetch, open, rpm, without_zero_epoch};
use crate::error::{Error, Escaped, Result};
use std::collections::BTreeMap;
use std::io::Read;

/// The most mirrors of a list that are tried.
const MAX_MIRRORS: usize = 3;
/// The most URLs and lists that one medium may name.
const MAX_WORDS: usize = 100;

/// A medium.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Medium {
    /// Its name.
    pub name: String,
    /// URLs of the directory that holds its packages.
    pub urls: Vec<String>,
    /// URLs of lists of mirrors, or of mirrors.
    pub lists: Vec<String>,
    /// Where it is below a mirror.
    pub below: String,
}

impl Medium {
    /// `Core Release http://...`.
    pub fn label(&self) -> String {
        let url = self.urls.first().or(self.lists.first());
        let url = url.map_or_else(|| "no address".to_owned(), |u| fetch::shown(u));
        format!("{} {url}", Escaped(self.name.as_bytes()))
    }
}

/// The media of `urpmi.cfg` that are not ignored and have an address. `variables` are without their `$`; what `MIRRORLIST`
/// stands for is one of them.
pub fn media(text: &str, variables: &BTreeMap<String, String>) -> Vec<Medium> {
    let mut found = Vec::new();
    let mut open: Option<(Medium, bool)> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('}') {
            if let Some((medium, ignored)) = open.take()
                && !ignored
                && !(medium.urls.is_empty() && medium.lists.is_empty())
            {
                found.push(medium);
            }
        } else if let Some((medium, ignored)) = &mut open {
            let words = |value: &str| -> Vec<String> {
                let words = value.split_ascii_whitespace().take(MAX_WORDS);
                words.map(|w| address(w, variables)).collect()
            };
            match line.split_once(':').map(|(k, v)| (k.trim(), v.trim())) {
                Some(("mirrorlist", value)) => medium.lists = words(value),
                Some(("with-dir", value)) => value.trim_matches('/').clone_into(&mut medium.below),
                _ => *ignored |= line == "ignore",
            }
        } else if let Some(head) = line.strip_suffix('{') {
            // Blanks inside of a name have a backslash in front.
            let head = head.trim().replace("\\ ", "\u{1}");
            let mut words = head.split_ascii_whitespace().map(|w| w.replace('\u{1}', " "));
            let medium = Medium {
                name: words.next().unwrap_or_default(),
                urls: words.take(MAX_WORDS).map(|u| address(&u, variables)).collect(),
                ..Medium::default()
            };
            open = Some((medium, false));
        }
    }
    found
}

fn address(word: &str, variables: &BTreeMap<String, String>) -> String {
    rpm::replaced(word, variables).trim_end_matches('/').to_owned()
}

/// The mirrors of a list: lines of `key=value` pairs between commas, of which `type` must be `distrib` and `url` is the
/// mirror. Those of other protocols than HTTP are passed over.
pub fn mirrors(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut found = Vec::new();
    for line in text.lines() {
        let (mut distrib, mut url) = (false, None);
        for (key, value) in line.split(',').filter_map(|pair| pair.split_once('=')) {
            match key.trim() {
                "type" => distrib = value.trim() == "distrib",
                "url" => url = Some(value.trim()),
                _ => {}
            }
        }
        let web = |u: &&str| u.starts_with("http://") || u.starts_with("https://");
        if let Some(url) = url.filter(web).filter(|_| distrib) {
            found.push(url.trim_end_matches('/').to_owned());
        }
        if found.len() == MAX_MIRRORS {
            break;
        }
    }
    found
}

/// Reads a synthesis, unpacked.
///
/// # Errors
/// [`Error::Corrupt`] if it is none.
pub fn synthesis(from: impl Read, take: &mut dyn FnMut(Served)) -> Result<()> {
    let mut foreign = false;
    apt::lines(from, |line| {
        foreign |= !line.is_empty() && !line.starts_with(b"@");
        if let Some(served) = line.strip_prefix(b"@info@").and_then(info) {
            take(served);
        }
    })?;
    match foreign {
        true => Err(Error::corrupt("a synthesis with a line that has no tag", 0)),
        false => Ok(()),
    }
}

/// What stands behind `@info@`.
fn info(line: &[u8]) -> Option<Served> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.split('@');
    let (full, epoch) = (fields.next()?, fields.next().unwrap_or_default());
    let (full, arch) = full.rsplit_once('.')?;
    // Of some releases the name has further words behind the release, which the package's own header keeps apart.
    let mut behind = fields.skip(2);
    let words = format!(
        "-{}{}",
        behind.next().unwrap_or_default(),
        behind.next().unwrap_or_default()
    );
    let full = match words.len() {
        1 => full,
        _ => full.strip_suffix(&words).unwrap_or(full),
    };
    let (rest, release) = full.rsplit_once('-')?;
    let (name, version) = rest.rsplit_once('-')?;
    let version = match epoch {
        "" => format!("{version}-{release}"),
        epoch => format!("{epoch}:{version}-{release}"),
    };
    (!name.is_empty()).then(|| Served {
        name: name.to_owned(),
        version: without_zero_epoch(&version).to_owned(),
        arch: arch.to_owned(),
    })
}

/// Reads the file `synthesis.hdlist.cz`, which has one name for all compressions.
///
/// # Errors
/// As [`synthesis`], and [`Error::Unsupported`] for a compression that is not read.
pub fn packed(bytes: &[u8], take: &mut dyn FnMut(Served)) -> Result<()> {
    if bytes.is_empty() {
        return Err(Error::corrupt("an empty synthesis", 0));
    }
    let compressed = Compressed::of_magic(bytes)
        .ok_or_else(|| Error::unsupported("a synthesis in a compression that is not read"))?;
    synthesis(open(bytes, compressed)?, take)
}

/// Asks a medium for its packages.
pub(super) fn list(client: &Client, medium: &Medium, take: &mut dyn FnMut(Served)) -> Result<()> {
    let mut urls = medium.urls.clone();
    let mut failure = None;
    for at in &medium.lists {
        if !urls.is_empty() {
            break;
        }
        // What does not end so is a mirror itself.
        let is_list = at.split('?').next().is_some_and(|path| path.ends_with(".list"));
        let found = match is_list {
            true => client.document(at).map(|bytes| mirrors(&bytes)),
            false => Ok(vec![at.clone()]),
        };
        match found {
            Ok(found) => urls.extend(found.iter().map(|url| match medium.below.is_empty() {
                true => url.clone(),
                false => format!("{url}/{}", medium.below),
            })),
            Err(e) => failure = Some(e),
        }
    }
    for url in urls.iter().take(MAX_MIRRORS) {
        if let Ok((bytes, compressed)) = rpm::primary_of(client, url) {
            return rpm::primary(open(&bytes, compressed)?, take);
        }
        match client.unchecked_list(&format!("{url}/media_info/synthesis.hdlist.cz")) {
            Ok(bytes) => return packed(&bytes, take),
            Err(e) => failure = Some(e),
        }
    }
    let none = || Error::unsupported(format!("{}: it names no mirror of http", medium.label()));
    Err(failure.unwrap_or_else(none))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_with_addresses_of_their_own_and_of_mirrors() {
        let text = "{\n}\n\nCore\\ Release http://m/9/x86_64/media/core/release {\n  key-ids: 80420f66\n}\n\nOld http://m/old {\n  ignore\n}\n\
                    Core\\ Updates {\n  mirrorlist: $MIRRORLIST\n  update\n  with-dir: media/core/updates\n}\nCD {\n  virtual\n}\n\
                    Own http://o/$RELEASE/${ARCH}/ {\n}\n";
        let variables = [
            ("MIRRORLIST", "http://l/9.x86_64.list"),
            ("RELEASE", "9"),
            ("ARCH", "x86_64"),
        ];
        let variables = variables.map(|(n, v)| (n.to_owned(), v.to_owned()));
        let found = media(text, &BTreeMap::from(variables));
        let shown: Vec<String> = found
            .iter()
            .map(|m| {
                format!(
                    "{}|{}|{}|{}",
                    m.name,
                    m.urls.join(" "),
                    m.lists.join(" "),
                    m.below
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "Core Release|http://m/9/x86_64/media/core/release||",
                "Core Updates||http://l/9.x86_64.list|media/core/updates",
                "Own|http://o/9/x86_64||",
            ]
        );
    }

    #[test]
    fn a_list_of_mirrors() {
        let text = "continent=EU,zone=FR,country=FR,city=Paris,latitude=48.85,type=distrib,version=9,arch=x86_64,url=rsync://a/9/x86_64\n\
                    continent=EU,type=iso,url=http://iso/\ntype=distrib,url=http://b/9/x86_64/\nnonsense\ntype=distrib,url=https://c\n";
        assert_eq!(mirrors(text.as_bytes()), ["http://b/9/x86_64", "https://c"]);
    }

    #[test]
    fn packages_of_a_synthesis() {
        let text = "@provides@a@b[== 1]\n@requires@c[*]\n@summary@A thing\n@filesize@12\n@info@perl-x-1.2-3.mga9.x86_64@2@100@Games\n\
                    @info@plain-1-1.mga9.noarch@0@1@G\n@info@old-1-1-mdv2011.0.i586@0@1@G@mdv@2011.0\n@info@broken@0\n";
        let mut found = Vec::new();
        synthesis(text.as_bytes(), &mut |p| {
            found.push(format!("{} {} {}", p.name, p.version, p.arch));
        })
        .unwrap();
        assert_eq!(
            found,
            [
                "perl-x 2:1.2-3.mga9 x86_64",
                "plain 1-1.mga9 noarch",
                "old 1-1 i586"
            ]
        );
        assert!(synthesis(&b"<html>\n"[..], &mut |_| {}).is_err());
        assert!(packed(b"BZh9", &mut |_| {}).is_err() && packed(b"", &mut |_| {}).is_err());
    }
}
