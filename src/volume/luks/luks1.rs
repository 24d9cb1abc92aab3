//! LUKS1 (LUKS On-Disk Format Specification, version 1.2.3).

use super::cipher::{Cipher, Plain};
use super::kdf::{Hash, Kdf, material_len, merge};
use super::keys::Limits;
use crate::bytes::{array, be32, slice, until_nul};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};
use std::sync::Arc;
use zeroize::Zeroizing;

const LEN: usize = 592;
const SLOTS: usize = 8;
/// LUKS_KEY_ENABLED.
const ENABLED: u32 = 0x00ac_71f3;
const SECTOR: u64 = 512;

/// A key slot that is in use.
struct Slot {
    iterations: u32,
    salt: [u8; 32],
    /// In bytes.
    at: u64,
    stripes: usize,
}

/// The partition header.
pub(super) struct Header {
    pub(super) uuid: String,
    /// As dm-crypt names it: `aes-xts-plain64`.
    cipher: String,
    hash: Hash,
    /// Where the ciphertext begins, in bytes.
    payload: u64,
    key_len: usize,
    digest: [u8; 20],
    salt: [u8; 32],
    iterations: u32,
    slots: Vec<Slot>,
}

impl Header {
    /// # Errors
    /// [`Error::Corrupt`] if a field cannot be, [`Error::Unsupported`] naming a hash that is not known.
    pub(super) fn read(volume: &dyn ReadAt) -> Result<Self> {
        let b = read_vec(volume, 0, LEN)?;
        let short = || Error::corrupt("the LUKS1 header is short", 0);
        let word = |at: usize| be32(&b, at).ok_or_else(short);
        let text = |at: usize| {
            let bytes = slice(&b, at, 32).map(until_nul).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let mut slots = Vec::new();
        for at in (0..SLOTS).map(|n| 208 + n * 48) {
            if word(at)? == ENABLED {
                slots.push(Slot {
                    iterations: word(at + 4)?,
                    salt: array(&b, at + 8).ok_or_else(short)?,
                    at: u64::from(word(at + 40)?) * SECTOR,
                    stripes: word(at + 44)? as usize,
                });
            }
        }
        Ok(Self {
            uuid: super::uuid(&b, 168),
            cipher: format!("{}-{}", text(8), text(40)),
            hash: Hash::parse(&text(72))?,
            payload: u64::from(word(104)?) * SECTOR,
            key_len: word(108)? as usize,
            digest: array(&b, 112).ok_or_else(short)?,
            salt: array(&b, 132).ok_or_else(short)?,
            iterations: word(164)?,
            slots,
        })
    }

    /// The plaintext, `None` if `key` opens no slot.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a cipher that is not known or work beyond the limits, [`Error::Corrupt`] if a field
    /// cannot be.
    pub(super) fn open(
        &self,
        volume: &Arc<dyn ReadAt>,
        key: &[u8],
        limits: &Limits,
    ) -> Result<Option<Arc<dyn ReadAt>>> {
        // Before the costly part: is the cipher known at all?
        Cipher::new(&self.cipher, &vec![0; super::kdf::check_len(self.key_len)?])?;
        if self.payload == 0 {
            return Err(Error::unsupported("LUKS with a detached header"));
        }
        let pbkdf2 = |iterations| Kdf::Pbkdf2 {
            hash: self.hash,
            iterations,
        };
        for slot in &self.slots {
            let len = material_len(self.key_len, slot.stripes)?;
            let mut material = Zeroizing::new(read_vec(&**volume, slot.at, len.next_multiple_of(512))?);
            let derived = pbkdf2(slot.iterations).derive(key, &slot.salt, self.key_len, limits)?;
            Cipher::new(&self.cipher, &derived)?.decrypt(&mut material, 512, 0);
            let candidate = merge(material.get(..len).unwrap_or_default(), self.key_len, self.hash);
            let digest = pbkdf2(self.iterations).derive(&candidate, &self.salt, self.digest.len(), limits)?;
            if *digest == self.digest {
                let cipher = Cipher::new(&self.cipher, &candidate)?;
                let plain = Plain::new(Arc::clone(volume), cipher, (self.payload, u64::MAX), SECTOR, 0)?;
                return Ok(Some(Arc::new(plain)));
            }
        }
        Ok(None)
    }
}
