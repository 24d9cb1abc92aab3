//! From a passphrase to a volume's key: PBKDF2 and Argon2 (LUKS1 on-disk format specification 1.2.3, LUKS2 on-disk format
//! specification), and the anti-forensic splitter.

use super::keys::Limits;
use crate::error::{Error, Escaped, Result};
use ring::{digest, pbkdf2};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// Bytes of a volume's key: two keys of 256 bits for XTS, and some room.
const MAX_KEY: usize = 512;
/// Bytes of a key that is split into stripes: cryptsetup makes 4,000 of at most 512 bytes.
const MAX_MATERIAL: usize = 4 << 20;

/// A hash that headers name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// # Errors
    /// [`Error::Unsupported`] naming the hash if it is not known.
    pub(super) fn parse(name: &str) -> Result<Self> {
        match name.to_ascii_lowercase().as_str() {
            "sha1" => Ok(Self::Sha1),
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            _ => Err(Error::unsupported(format!(
                "LUKS with the hash {}",
                Escaped(name.as_bytes())
            ))),
        }
    }

    pub(super) fn digest(self, parts: &[&[u8]]) -> digest::Digest {
        let mut context = digest::Context::new(match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        });
        for part in parts {
            context.update(part);
        }
        context.finish()
    }
}

/// How a passphrase becomes a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        iterations: u32,
    },
    Argon2 {
        /// Argon2id, not Argon2i.
        id: bool,
        passes: u32,
        /// In KiB.
        memory: u32,
        lanes: u32,
    },
}

impl Kdf {
    /// The key of `len` bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if that costs more than `limits`, [`Error::Corrupt`] if the parameters cannot be.
    pub(super) fn derive(
        &self,
        passphrase: &[u8],
        salt: &[u8],
        len: usize,
        limits: &Limits,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let mut key = Zeroizing::new(vec![0; check_len(len)?]);
        match *self {
            Self::Pbkdf2 { hash, iterations } => {
                if u64::from(iterations) > limits.iterations {
                    let most = limits.iterations;
                    return Err(Error::unsupported(format!(
                        "LUKS with {iterations} iterations of PBKDF2, more than {most}"
                    )));
                }
                let algorithm = match hash {
                    Hash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
                    Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
                    Hash::Sha384 => pbkdf2::PBKDF2_HMAC_SHA384,
                    Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
                };
                let iterations = NonZeroU32::new(iterations)
                    .ok_or_else(|| Error::corrupt("the LUKS header: no iterations of PBKDF2", 0))?;
                pbkdf2::derive(algorithm, iterations, salt, passphrase, &mut key);
            }
            Self::Argon2 {
                id,
                passes,
                memory,
                lanes,
            } => {
                if u64::from(memory) > limits.memory {
                    let most = limits.memory;
                    return Err(Error::unsupported(format!(
                        "LUKS with Argon2 that needs {memory} KiB of memory, more than {most}"
                    )));
                }
                if u64::from(memory).saturating_mul(u64::from(passes)) > limits.passes {
                    return Err(Error::unsupported(format!(
                        "LUKS with Argon2 of {passes} passes over {memory} KiB, which takes too long"
                    )));
                }
                let algorithm = if id {
                    argon2::Algorithm::Argon2id
                } else {
                    argon2::Algorithm::Argon2i
                };
                let bad = |e: argon2::Error| match e {
                    argon2::Error::OutOfMemory => {
                        Error::unsupported(format!("there is no memory for Argon2, it needs {memory} KiB"))
                    }
                    e => Error::corrupt(format!("the LUKS header: Argon2: {e}"), 0),
                };
                let params = argon2::Params::new(memory, passes, lanes, Some(len)).map_err(bad)?;
                argon2::Argon2::new(algorithm, argon2::Version::V0x13, params)
                    .hash_password_into(passphrase, salt, &mut key)
                    .map_err(bad)?;
            }
        }
        Ok(key)
    }
}

/// `len` if a key may be so long.
///
/// # Errors
/// [`Error::Corrupt`] otherwise.
pub(super) fn check_len(len: usize) -> Result<usize> {
    match len {
        1..=MAX_KEY => Ok(len),
        _ => Err(Error::corrupt(
            format!("the LUKS header: a key of {len} bytes"),
            0,
        )),
    }
}

/// The length of a key of `len` bytes that is split into `stripes`.
///
/// # Errors
/// [`Error::Corrupt`] if that cannot be.
pub(super) fn material_len(len: usize, stripes: usize) -> Result<usize> {
    check_len(len)?
        .checked_mul(stripes)
        .filter(|n| (1..=MAX_MATERIAL).contains(n))
        .ok_or_else(|| Error::corrupt(format!("the LUKS header: a key in {stripes} stripes"), 0))
}

/// Merges the stripes of a key (AFmerge, LUKS1 specification section 2.4).
pub(super) fn merge(material: &[u8], len: usize, hash: Hash) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0u8; len]);
    let stripes = material.len() / len.max(1);
    for (n, stripe) in material.chunks_exact(len.max(1)).enumerate() {
        for (a, b) in key.iter_mut().zip(stripe) {
            *a ^= b;
        }
        if n + 1 < stripes {
            diffuse(&mut key, hash);
        }
    }
    key
}

/// Replaces each block of the hash's length by the hash of its number and itself.
fn diffuse(key: &mut [u8], hash: Hash) {
    let size = hash.digest(&[]).as_ref().len();
    for (n, block) in (0u32..).zip(key.chunks_mut(size)) {
        let digest = hash.digest(&[&n.to_be_bytes(), block]);
        for (a, b) in block.iter_mut().zip(digest.as_ref()) {
            *a = *b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_bounded() {
        let limits = Limits::default();
        let argon = |passes, memory| Kdf::Argon2 {
            id: true,
            passes,
            memory,
            lanes: 4,
        };
        for kdf in [
            argon(1, u32::MAX),
            argon(u32::MAX, 4 << 20),
            argon(0, 64),
            argon(1, 0),
            Kdf::Pbkdf2 {
                hash: Hash::Sha1,
                iterations: u32::MAX,
            },
            Kdf::Pbkdf2 {
                hash: Hash::Sha1,
                iterations: 0,
            },
        ] {
            assert!(kdf.derive(b"x", &[0; 32], 64, &limits).is_err(), "{kdf:?}");
        }
        assert!(argon(1, 64).derive(b"x", &[0; 32], 0, &limits).is_err());
        assert!(argon(1, 64).derive(b"x", &[0; 32], 64, &limits).is_ok());
        assert!(material_len(64, 4000).is_ok());
        assert!(material_len(64, usize::MAX).is_err() && material_len(512, 1 << 20).is_err());
        assert!(Hash::parse("whirlpool").is_err_and(|e| e.to_string().contains("whirlpool")));
    }

    #[test]
    fn a_split_key_merges() {
        // Split as cryptsetup does: stripes of anything, the last makes up for them.
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            let key: Vec<u8> = (0..64).collect();
            let mut material: Vec<u8> = (0..64 * 9).map(|i| (i * 31 % 251) as u8).collect();
            let mut d = vec![0u8; 64];
            for stripe in material.chunks(64) {
                d.iter_mut().zip(stripe).for_each(|(a, b)| *a ^= b);
                diffuse(&mut d, hash);
            }
            material.extend(d.iter().zip(&key).map(|(a, b)| a ^ b));
            assert_eq!(*merge(&material, 64, hash), key);
        }
    }
}
