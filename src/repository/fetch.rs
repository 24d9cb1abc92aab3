//! Fetching lists: bounded in bytes, time and redirects, checked, and kept in the store by their digests.

use super::{MAX_DOCUMENT, MAX_LIST};
use crate::error::{Error, Result};
use crate::oci::http;
use crate::store::Store;
use reqwest::Url;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};
use std::io::{Cursor, Read};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// The most bytes of a list as it is sent.
const MAX_SENT: u64 = 256 << 20;
/// The kind of the store's cache of lists.
const LISTS: &str = "repository-list-1";
/// The most tries of one document.
const TRIES: u32 = 3;

/// Fetches what repositories serve.
pub struct Client {
    runtime: Runtime,
    client: reqwest::Client,
    store: Arc<Store>,
    mirrors: Vec<(String, String)>,
}

/// A digest that a document states for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-1, of old repositories.
    Sha1([u8; 20]),
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512(Box<[u8; 64]>),
}

impl Checksum {
    /// From the name that documents use and hexadecimal digits; `None` for others and for what is no digest.
    pub fn parse(kind: &str, hex: &str) -> Option<Self> {
        Some(match kind {
            "sha" | "sha1" => Self::Sha1(bytes(hex)?),
            "sha256" => Self::Sha256(bytes(hex)?),
            "sha512" => Self::Sha512(Box::new(bytes(hex)?)),
            _ => return None,
        })
    }

    /// True if `content` has this digest.
    pub fn is_of(&self, content: &[u8]) -> bool {
        match self {
            Self::Sha1(sum) => Sha1::digest(content).as_slice() == sum,
            Self::Sha256(sum) => Sha256::digest(content).as_slice() == sum,
            Self::Sha512(sum) => Sha512::digest(content).as_slice() == sum.as_slice(),
        }
    }
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut out = [0; N];
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        let digit = |c: &u8| char::from(*c).to_digit(16);
        *byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some(out)
}

impl Client {
    /// A client that keeps lists in `store`. In every URL that begins with the first text of one of `mirrors` that text is
    /// replaced by the second.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be started.
    pub fn new(store: Arc<Store>, mirrors: Vec<(String, String)>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting the network runtime", e))?;
        Ok(Self {
            runtime,
            client: http::client(false)?,
            store,
            mirrors,
        })
    }

    /// The URL where `url` is asked for.
    pub fn mirrored(&self, url: &str) -> String {
        mirrored(&self.mirrors, url)
    }

    /// A document of at most [`MAX_DOCUMENT`] bytes.
    ///
    /// # Errors
    /// [`Error::Network`] if it cannot be had, [`Error::Unsupported`] for URLs that are not of HTTP.
    pub fn document(&self, url: &str) -> Result<Vec<u8>> {
        self.get(url, MAX_DOCUMENT)
    }

    /// A list that has no digest, of at most as many bytes as lists may have.
    ///
    /// # Errors
    /// As [`Client::document`].
    pub fn unchecked_list(&self, url: &str) -> Result<Vec<u8>> {
        self.get(url, MAX_SENT)
    }

    /// A list, as it is sent, from the store if it was fetched before.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if its digest is wrong, else as [`Client::document`].
    pub fn list(&self, url: &str, checksum: &Checksum) -> Result<Vec<u8>> {
        let key = format!("{checksum:?}");
        if let Some(kept) = self.store.cache_get(LISTS, &key) {
            return Ok(kept);
        }
        let content = self.get(url, MAX_SENT)?;
        if !checksum.is_of(&content) {
            return Err(Error::corrupt(
                format!(
                    "{}: its digest is not the one that its repository states",
                    shown(url)
                ),
                0,
            ));
        }
        // A store that cannot be written costs time only.
        let _ = self.store.cache_put(LISTS, &key, &content);
        Ok(content)
    }

    fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>> {
        let url = self.mirrored(url);
        let parsed = Url::parse(&url)
            .ok()
            .filter(|u| matches!(u.scheme(), "http" | "https"));
        let Some(parsed) = parsed else {
            return Err(Error::unsupported(format!(
                "{}: lists are fetched by http and https only",
                shown(&url)
            )));
        };
        let what = shown(&url);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.runtime.block_on(async {
            let mut wait = http::BACKOFF;
            let mut tries = 1;
            loop {
                let again = match self.client.get(parsed.clone()).send().await {
                    Ok(answer) if answer.status().is_success() => {
                        let read = http::limited(answer, limit.saturating_add(1)).await;
                        match read {
                            Ok(body) if body.len() > limit => {
                                return Err(Error::unsupported(format!(
                                    "{what}: it has more than {limit} bytes"
                                )));
                            }
                            Ok(body) => return Ok(body),
                            Err(e) => Error::network(what.clone(), e),
                        }
                    }
                    Ok(answer) => {
                        let status = answer.status();
                        let error = Error::Network {
                            what: format!("{what}: the server answers {status}"),
                            source: None,
                        };
                        if !matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504) {
                            return Err(error);
                        }
                        error
                    }
                    Err(e) => {
                        let hopeless = e.is_redirect() || e.is_connect();
                        let chain = http::Chain::from(e);
                        let error = Error::Network {
                            what: format!("{what}: {chain}"),
                            source: None,
                        };
                        if hopeless {
                            return Err(error);
                        }
                        error
                    }
                };
                if tries >= TRIES {
                    return Err(again);
                }
                tries += 1;
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
        })
    }
}

/// `url` with the first of `mirrors` whose first text it begins with.
pub(crate) fn mirrored(mirrors: &[(String, String)], url: &str) -> String {
    for (from, to) in mirrors {
        if let Some(rest) = url.strip_prefix(from.as_str()) {
            return format!("{to}{rest}");
        }
    }
    url.to_owned()
}

/// A URL for people: without a password, without a query, and with nothing that a terminal obeys.
pub(crate) fn shown(url: &str) -> String {
    let text = match Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.to_string()
        }
        Err(_) => "an address that is none".to_owned(),
    };
    crate::error::Escaped(text.as_bytes()).to_string()
}

/// How a list is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressed {
    /// Not at all.
    Plain,
    /// gzip (RFC 1952), perhaps several members.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compressed {
    /// By the end of a file's name; `None` for what is not read.
    pub fn of_name(name: &str) -> Option<Self> {
        let last = name.rsplit('/').next().unwrap_or(name);
        match last.rsplit_once('.').map(|(_, end)| end) {
            Some("gz") => Some(Self::Gzip),
            Some("xz") => Some(Self::Xz),
            Some("zst" | "zstd") => Some(Self::Zstd),
            Some("bz2" | "lzma" | "lz4" | "zck" | "cz") => None,
            _ => Some(Self::Plain),
        }
    }

    /// By the first bytes of a file whose name does not tell; `None` for what is compressed otherwise.
    pub fn of_magic(bytes: &[u8]) -> Option<Self> {
        const OTHERS: [&[u8]; 4] = [b"BZh", b"\x04\x22\x4d\x18", b"\x5d\0\0", b"LZIP"];
        match bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            other if OTHERS.iter().any(|magic| other.starts_with(magic)) => None,
            _ => Some(Self::Plain),
        }
    }
}

/// The most memory that a list's compression may ask for, in bytes.
const MAX_WINDOW_LOG: u32 = 27;
/// The same for xz, in KiB.
const MAX_XZ_MEMORY: u32 = 256 << 10;

/// A reader of the list `bytes`, unpacked, at most [`MAX_LIST`] bytes.
///
/// # Errors
/// [`Error::Corrupt`] if the decompressor cannot begin.
pub fn open(bytes: &[u8], compressed: Compressed) -> Result<Box<dyn Read + '_>> {
    let input = Cursor::new(bytes);
    let reader: Box<dyn Read + '_> = match compressed {
        Compressed::Plain => Box::new(input),
        Compressed::Gzip => Box::new(flate2::read::MultiGzDecoder::new(input)),
        Compressed::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, MAX_XZ_MEMORY)),
        Compressed::Zstd => {
            let bad = |e: std::io::Error| Error::corrupt(format!("a list that is no Zstandard: {e}"), 0);
            let mut decoder = zstd::stream::read::Decoder::new(input).map_err(bad)?;
            decoder.window_log_max(MAX_WINDOW_LOG).map_err(bad)?;
            Box::new(decoder)
        }
    };
    Ok(Box::new(reader.take(MAX_LIST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_as_documents_write_them() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(Checksum::parse("sha256", empty).unwrap().is_of(b""));
        assert!(!Checksum::parse("sha256", empty).unwrap().is_of(b"x"));
        let sha1 = Checksum::parse("sha", "da39a3ee5e6b4b0d3255bfef95601890afd80709").unwrap();
        assert!(sha1.is_of(b""));
        assert!(Checksum::parse("sha256", "e3b0").is_none());
        assert!(Checksum::parse("sha256", &empty.replace('e', "g")).is_none());
        assert!(Checksum::parse("md5", "d41d8cd98f00b204e9800998ecf8427e").is_none());
    }

    #[test]
    fn addresses_are_shown_without_their_secrets() {
        assert_eq!(
            shown("https://me:secret@a.example/x?token=y"),
            "https://a.example/x"
        );
        let mirrors = vec![("http://a/".to_owned(), "http://b/c/".to_owned())];
        assert_eq!(mirrored(&mirrors, "http://a/x"), "http://b/c/x");
        assert_eq!(mirrored(&mirrors, "https://a/x"), "https://a/x");
    }

    #[test]
    fn compressions_by_name() {
        assert_eq!(Compressed::of_name("a.b/Packages"), Some(Compressed::Plain));
        assert_eq!(Compressed::of_name("Packages.xz"), Some(Compressed::Xz));
        assert_eq!(Compressed::of_name("x-primary.xml.zst"), Some(Compressed::Zstd));
        assert_eq!(Compressed::of_name("Packages.bz2"), None);
        assert_eq!(Compressed::of_magic(b"\x1f\x8b\x08"), Some(Compressed::Gzip));
        assert_eq!(Compressed::of_magic(b"@info@"), Some(Compressed::Plain));
        assert_eq!(Compressed::of_magic(b"BZh9"), None);
    }
}
