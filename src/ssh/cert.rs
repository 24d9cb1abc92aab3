//! Certificates of OpenSSH (its `PROTOCOL.certkeys`): what they say, and whether an authority signed them.
#![deny(clippy::indexing_slicing)]

use super::key::{Fields, PublicKey};
use super::pattern::matches;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};

/// What the type of a key that is a certificate ends with.
pub const SUFFIX: &str = "-cert-v01@openssh.com";
/// The kind of a certificate for a host.
const HOST: u32 = 2;
/// More names than this are none.
const MAX_NAMES: usize = 256;

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The key that is certified.
    pub key: PublicKey,
    /// The authority's name for it.
    pub id: String,
    /// Who signed it.
    pub authority: PublicKey,
    kind: u32,
    names: Vec<String>,
    after: u64,
    before: u64,
    critical: Vec<String>,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Certificate {
    /// Reads the bytes of a certificate; `None` if they are none.
    pub fn parse(blob: &[u8]) -> Option<Self> {
        let mut fields = Fields(blob);
        let kind = std::str::from_utf8(fields.string()?).ok()?;
        let plain = kind.strip_suffix(SUFFIX)?;
        let parts = match plain {
            "ssh-ed25519" => 1,
            "ssh-rsa" | "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" => 2,
            _ => return None,
        };
        let _nonce = fields.string()?;
        let mut key = Vec::new();
        put(&mut key, plain.as_bytes());
        for _ in 0..parts {
            put(&mut key, fields.string()?);
        }
        let _serial = fields.u64()?;
        let kind = fields.u32()?;
        let id = String::from_utf8_lossy(fields.string()?).into_owned();
        let names = strings(fields.string()?)?;
        let after = fields.u64()?;
        let before = fields.u64()?;
        let critical = strings(fields.string()?)?.into_iter().step_by(2).collect();
        let _extensions = fields.string()?;
        let _reserved = fields.string()?;
        let authority = PublicKey {
            blob: fields.string()?.to_vec(),
        };
        let signed = blob.get(..blob.len().checked_sub(fields.0.len())?)?.to_vec();
        let signature = fields.string()?.to_vec();
        fields.0.is_empty().then_some(Self {
            key: PublicKey { blob: key },
            id,
            authority,
            kind,
            names,
            after,
            before,
            critical,
            signed,
            signature,
        })
    }

    /// Whether it is good for the host `name` at `now` (seconds since 1970).
    ///
    /// # Errors
    /// Why it is not.
    pub fn check_host(&self, name: &str, now: u64) -> Result<(), String> {
        if self.kind != HOST {
            return Err("it is not one of a host".to_owned());
        }
        if !self.names.is_empty() && !self.names.iter().any(|n| matches(n.as_bytes(), name.as_bytes())) {
            return Err(format!("it is for {} and not for {name}", self.names.join(", ")));
        }
        if now < self.after {
            return Err("it is not valid yet".to_owned());
        }
        if now >= self.before {
            return Err("it has expired".to_owned());
        }
        if let Some(option) = self.critical.first() {
            return Err(format!("it asks for {option}, which is not known"));
        }
        self.check_signature()
    }

    fn check_signature(&self) -> Result<(), String> {
        let bad = || "its signature is not the authority's".to_owned();
        let mut fields = Fields(&self.signature);
        let algorithm = fields.string().ok_or_else(bad)?;
        let signature = fields.string().ok_or_else(bad)?;
        let mut key = Fields(&self.authority.blob);
        let kind = key.string().ok_or_else(bad)?;
        match (kind, algorithm) {
            (b"ssh-ed25519", b"ssh-ed25519") => {
                let public = key.string().ok_or_else(bad)?;
                self.verify(&ED25519, public, signature)
            }
            (b"ssh-rsa", b"rsa-sha2-256" | b"rsa-sha2-512") => {
                let e = key.string().map(number).ok_or_else(bad)?;
                let n = key.string().map(number).ok_or_else(bad)?;
                let parameters = match algorithm {
                    b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
                    _ => &RSA_PKCS1_2048_8192_SHA512,
                };
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, &self.signed, signature)
                    .map_err(|_| bad())
            }
            (b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp256") => {
                self.ecdsa(&ECDSA_P256_SHA256_FIXED, 32, key, signature)
            }
            (b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp384") => {
                self.ecdsa(&ECDSA_P384_SHA384_FIXED, 48, key, signature)
            }
            _ => Err(format!(
                "it is signed with {}, which is not supported",
                String::from_utf8_lossy(algorithm)
            )),
        }
    }

    fn verify(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        public: &[u8],
        signature: &[u8],
    ) -> Result<(), String> {
        UnparsedPublicKey::new(algorithm, public)
            .verify(&self.signed, signature)
            .map_err(|_| "its signature is not the authority's".to_owned())
    }

    /// A signature of two numbers (RFC 5656 section 3.1.2), each of `length` bytes at most.
    fn ecdsa(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        length: usize,
        mut key: Fields<'_>,
        signature: &[u8],
    ) -> Result<(), String> {
        let bad = || "its signature is not the authority's".to_owned();
        let _curve = key.string().ok_or_else(bad)?;
        let public = key.string().ok_or_else(bad)?;
        let mut parts = Fields(signature);
        let mut fixed = Vec::with_capacity(length.saturating_mul(2));
        for _ in 0..2 {
            let part = number(parts.string().ok_or_else(bad)?);
            let missing = length.checked_sub(part.len()).ok_or_else(bad)?;
            fixed.resize(fixed.len().saturating_add(missing), 0);
            fixed.extend_from_slice(part);
        }
        self.verify(algorithm, public, &fixed)
    }
}

fn put(out: &mut Vec<u8>, field: &[u8]) {
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(field);
}

/// A positive number without the zeros in front.
fn number(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

fn strings(bytes: &[u8]) -> Option<Vec<String>> {
    let mut fields = Fields(bytes);
    let mut out = Vec::new();
    while !fields.0.is_empty() {
        if out.len() >= MAX_NAMES {
            return None;
        }
        out.push(String::from_utf8_lossy(fields.string()?).into_owned());
    }
    Some(out)
}
