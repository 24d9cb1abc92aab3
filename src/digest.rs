//! sha256 digests, and readers that check what they read against one.

use crate::error::{Error, Result};
use sha2::Digest as _;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;

/// A sha256 digest as OCI descriptors carry it (OCI image-spec, descriptor.md, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest that a hasher came to.
    pub fn from_hasher(hasher: sha2::Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// Parses `sha256:` and 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another algorithm, [`Error::Corrupt`] for what is no digest.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || Error::corrupt(format!("{text:?} is not a digest"), 0);
        let (algorithm, hex) = text.split_once(':').ok_or_else(bad)?;
        if algorithm != "sha256" {
            return Err(Error::unsupported(format!("digest algorithm {algorithm:?}")));
        }
        if hex.len() != 64 || hex.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let bytes = crate::bytes::unhex(hex).ok_or_else(bad)?;
        bytes.try_into().map(Self).map_err(|_| bad())
    }

    /// The 64 digits without `sha256:`.
    pub fn hex(&self) -> String {
        crate::bytes::hex(&self.0)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The error for bytes that are not what their descriptor says.
pub(crate) fn mismatch(digest: &Digest, size: u64, found: &Digest, found_size: u64) -> Error {
    if size == found_size {
        Error::corrupt(format!("blob {digest}: its bytes have the digest {found}"), 0)
    } else {
        Error::corrupt(
            format!("blob {digest}: {found_size} bytes where its descriptor says {size}"),
            found_size.min(size),
        )
    }
}

/// A reader of bytes whose digest and length are known beforehand. The end is reached only if both are right: nothing
/// that was read may be relied on before [`Verified::finish`], or a read that gave 0 bytes, went well.
pub struct Verified<R> {
    inner: R,
    hasher: Option<sha2::Sha256>,
    digest: Digest,
    size: u64,
    left: u64,
    /// The file to remove if the bytes are wrong.
    remove: Option<PathBuf>,
}

impl<R: Read> Verified<R> {
    /// A reader of `inner`, which must give exactly `size` bytes of this digest.
    pub fn new(inner: R, digest: Digest, size: u64) -> Self {
        Self {
            inner,
            hasher: Some(sha2::Sha256::new()),
            digest,
            size,
            left: size,
            remove: None,
        }
    }

    /// The same reader; if the bytes are wrong, the file at `path` is removed.
    pub(crate) fn removing(mut self, path: PathBuf) -> Self {
        self.remove = Some(path);
        self
    }

    /// Bytes that were not read yet.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The same reader, its type hidden.
    pub fn boxed(self) -> Verified<Box<dyn Read + Send>>
    where
        R: Send + 'static,
    {
        Verified {
            inner: Box::new(self.inner),
            hasher: self.hasher,
            digest: self.digest,
            size: self.size,
            left: self.left,
            remove: self.remove,
        }
    }

    /// Reads what is left and checks it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if digest or length are wrong, [`Error::Io`] if reading fails.
    pub fn finish(mut self) -> Result<()> {
        let mut buf = vec![0; 256 << 10];
        loop {
            match self.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_io(format!("reading blob {}", self.digest), e)),
            }
        }
    }

    fn wrong(&mut self, error: Error) -> std::io::Error {
        if let Some(path) = self.remove.take() {
            let _ = std::fs::remove_file(path);
        }
        error.into_io()
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buf)?;
        if n as u64 > self.left || (n == 0 && self.left > 0) {
            let found = self.size - self.left + n as u64;
            let says = self.size;
            let error = if n == 0 {
                format!(
                    "blob {}: {found} bytes where its descriptor says {says}",
                    self.digest
                )
            } else {
                format!(
                    "blob {}: more than the {says} bytes its descriptor says",
                    self.digest
                )
            };
            return Err(self.wrong(Error::corrupt(error, found.min(says))));
        }
        if n > 0 {
            self.left -= n as u64;
            if let (Some(hasher), Some(part)) = (&mut self.hasher, buf.get(..n)) {
                hasher.update(part);
            }
        } else if let Some(hasher) = self.hasher.take() {
            let found = Digest::from_hasher(hasher);
            if found != self.digest {
                return Err(self.wrong(mismatch(&self.digest, self.size, &found, self.size)));
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_strict() {
        let d = Digest::of(b"");
        assert_eq!(
            d.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Digest::parse(&d.to_string()).unwrap(), d);
        for bad in [
            "",
            "sha256:",
            "sha256:E3b0",
            &d.hex(),
            &d.to_string().to_uppercase(),
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        let upper = format!("sha256:{}", d.hex().to_uppercase());
        assert!(Digest::parse(&upper).is_err());
        let long = format!("sha512:{}{}", d.hex(), d.hex());
        assert!(matches!(Digest::parse(&long), Err(Error::Unsupported { .. })));
    }
}
