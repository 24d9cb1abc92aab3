//! The outside of keys: lines of public keys, fingerprints, and what can be seen of a private key without its passphrase.
//!
//! Formats: RFC 4253 section 6.6 (public keys), OpenSSH's `PROTOCOL.key` (private keys), RFC 7468 (PEM).
#![deny(clippy::indexing_slicing)]

use crate::bytes;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// A longer key is none: bytes.
pub const MAX_KEY: usize = 64 << 10;

/// A public key as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The whole of it, its type in front.
    pub blob: Vec<u8>,
}

impl PublicKey {
    /// Reads `TYPE BASE64 [COMMENT]`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (kind, text) = (words.next()?, words.next()?);
        let key = Self { blob: decode(text)? };
        (key.kind()? == kind).then_some(key)
    }

    /// Its type, as in `ssh-ed25519`.
    pub fn kind(&self) -> Option<&str> {
        std::str::from_utf8(Fields(&self.blob).string()?).ok()
    }

    /// `TYPE BASE64`.
    pub fn line(&self) -> String {
        format!("{} {}", self.kind().unwrap_or("?"), STANDARD.encode(&self.blob))
    }

    /// The fingerprint as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.blob)
    }
}

/// `SHA256:` and the digest of `blob` in base64 without padding.
pub fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob)))
}

/// The name of a key's type as people say it: `ED25519`.
pub fn short_kind(kind: &str) -> String {
    let kind = kind.strip_suffix("-cert-v01@openssh.com").unwrap_or(kind);
    match kind {
        "ssh-rsa" => "RSA".to_owned(),
        "ssh-ed25519" => "ED25519".to_owned(),
        "ssh-dss" => "DSA".to_owned(),
        _ if kind.starts_with("ecdsa-sha2-") => "ECDSA".to_owned(),
        other => other.to_owned(),
    }
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_KEY {
        return None;
    }
    STANDARD.decode(text).ok()
}

/// Fields of the wire (RFC 4251 section 5), one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    /// A string with its length in front.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        bytes::be32(self.take(4)?, 0)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        bytes::be64(self.take(8)?, 0)
    }
}

/// What can be seen of a private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// A passphrase is needed.
    pub encrypted: bool,
    /// The public key, where the format shows it.
    pub public: Option<PublicKey>,
    /// Why libssh2 cannot use it, if it is known.
    pub unsupported: Option<String>,
}

/// Looks at the private key in `text`; `None` if it is none.
pub fn envelope(text: &str) -> Option<Envelope> {
    let begin = text
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("-----BEGIN "))?;
    let kind = begin.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
    let plain = |encrypted| Envelope {
        encrypted,
        public: None,
        unsupported: None,
    };
    match kind {
        "OPENSSH PRIVATE KEY" => openssh(text),
        "ENCRYPTED PRIVATE KEY" => Some(plain(true)),
        "PRIVATE KEY" => Some(plain(false)),
        "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
            let encrypted = text
                .lines()
                .any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"));
            Some(plain(encrypted))
        }
        "DSA PRIVATE KEY" => Some(Envelope {
            unsupported: Some("DSA keys are no longer used".to_owned()),
            ..plain(false)
        }),
        _ => None,
    }
}

fn openssh(text: &str) -> Option<Envelope> {
    let body: Zeroizing<String> = Zeroizing::new(
        text.lines()
            .map(str::trim)
            .skip_while(|line| !line.starts_with("-----BEGIN "))
            .skip(1)
            .take_while(|line| !line.starts_with("-----END "))
            .take(MAX_KEY)
            .collect(),
    );
    let bytes = Zeroizing::new(decode(&body)?);
    let mut fields = Fields(bytes.strip_prefix(b"openssh-key-v1\0")?);
    let cipher = fields.string()?;
    let _function = fields.string()?;
    let _options = fields.string()?;
    if fields.u32()? != 1 {
        return None;
    }
    let public = PublicKey {
        blob: fields.string()?.to_vec(),
    };
    let kind = public.kind()?.to_owned();
    // A key on a token signs on the token.
    let unsupported = kind
        .starts_with("sk-")
        .then(|| format!("{kind} is a key on a security token, which only an agent can use"));
    Some(Envelope {
        encrypted: cipher != b"none",
        public: Some(public),
        unsupported,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_and_its_fingerprint() {
        // ssh-keygen -lf of this line prints the fingerprint below.
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@here";
        let key = PublicKey::parse(line).unwrap();
        assert_eq!(key.kind(), Some("ssh-ed25519"));
        assert!(line.starts_with(&key.line()));
        assert!(key.fingerprint().starts_with("SHA256:") && key.fingerprint().len() == 50);
        assert!(PublicKey::parse("ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAAA").is_none());
        assert!(PublicKey::parse("ssh-rsa").is_none());
        assert!(PublicKey::parse("ssh-rsa AAAA////").is_none());
    }

    #[test]
    fn private_keys_show_whether_they_are_encrypted() {
        assert!(
            envelope("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n")
                .unwrap()
                .encrypted
        );
        assert!(
            !envelope("-----BEGIN EC PRIVATE KEY-----\nAAAA\n")
                .unwrap()
                .encrypted
        );
        assert!(
            envelope("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
                .unwrap()
                .encrypted
        );
        assert_eq!(envelope("-----BEGIN CERTIFICATE-----\n"), None);
        assert_eq!(envelope("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"), None);
        assert_eq!(envelope(""), None);
    }
}
