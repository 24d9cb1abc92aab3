//! The ciphers of LUKS: AES in XTS (IEEE 1619) and CBC mode, and how a sector gets its IV (dm-crypt's documentation).

use super::kdf::Hash;
use crate::error::{Error, Escaped, Result};
use crate::read_at::{Extent, ReadAt, check_range};
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use std::sync::Arc;

/// IVs count sectors of this length, whatever the sector size is.
const IV_SECTOR: u64 = 512;
const BLOCK: usize = 16;

/// AES with a key of any of its lengths.
#[derive(Clone)]
enum Aes {
    K128(Box<Aes128>),
    K192(Box<Aes192>),
    K256(Box<Aes256>),
}

impl Aes {
    fn new(key: &[u8]) -> Result<Self> {
        let bad = || Error::unsupported(format!("AES with a key of {} bits", key.len() * 8));
        Ok(match key.len() {
            16 => Self::K128(Box::new(Aes128::new_from_slice(key).map_err(|_| bad())?)),
            24 => Self::K192(Box::new(Aes192::new_from_slice(key).map_err(|_| bad())?)),
            32 => Self::K256(Box::new(Aes256::new_from_slice(key).map_err(|_| bad())?)),
            _ => return Err(bad()),
        })
    }

    fn encrypt(&self, block: &mut [u8; BLOCK]) {
        let block: &mut Array<u8, _> = block.into();
        match self {
            Self::K128(aes) => aes.encrypt_block(block),
            Self::K192(aes) => aes.encrypt_block(block),
            Self::K256(aes) => aes.encrypt_block(block),
        }
    }

    fn decrypt(&self, blocks: &mut [[u8; BLOCK]]) {
        let blocks = Array::cast_slice_from_core_mut(blocks);
        match self {
            Self::K128(aes) => aes.decrypt_blocks(blocks),
            Self::K192(aes) => aes.decrypt_blocks(blocks),
            Self::K256(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// How a sector's number becomes its IV.
#[derive(Clone)]
enum Iv {
    /// 32 bits of it.
    Plain,
    /// 64 bits of it.
    Plain64,
    /// 64 bits of it, encrypted by the hash of the key.
    Essiv(Aes),
}

#[derive(Clone)]
enum Mode {
    Cbc(Iv),
    /// With the key of the tweak.
    Xts(Aes, Iv),
}

/// A cipher with its key.
#[derive(Clone)]
pub(super) struct Cipher {
    aes: Aes,
    mode: Mode,
}

impl Cipher {
    /// The cipher that `spec` names as dm-crypt does: `aes-xts-plain64`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what is not known.
    pub(super) fn new(spec: &str, key: &[u8]) -> Result<Self> {
        let unknown = || Error::unsupported(format!("LUKS with the cipher {}", Escaped(spec.as_bytes())));
        let (name, mode) = spec.split_once('-').ok_or_else(unknown)?;
        let (mode, iv) = mode.split_once('-').ok_or_else(unknown)?;
        if name != "aes" {
            return Err(unknown());
        }
        let (key, tweak) = match mode {
            "xts" if key.len().is_multiple_of(2) => {
                key.split_at_checked(key.len() / 2).ok_or_else(unknown)?
            }
            "cbc" => (key, &[][..]),
            _ => return Err(unknown()),
        };
        let iv = match iv.split_once(':') {
            None if iv == "plain" => Iv::Plain,
            None if iv == "plain64" => Iv::Plain64,
            Some(("essiv", hash)) => Iv::Essiv(Aes::new(Hash::parse(hash)?.digest(&[key]).as_ref())?),
            _ => return Err(unknown()),
        };
        Ok(Self {
            aes: Aes::new(key)?,
            mode: match mode {
                "xts" => Mode::Xts(Aes::new(tweak)?, iv),
                _ => Mode::Cbc(iv),
            },
        })
    }

    /// Decrypts whole sectors of `size` bytes, of which the first has the number `iv`; numbers count 512 bytes.
    pub(super) fn decrypt(&self, bytes: &mut [u8], size: usize, iv: u64) {
        let step = (size as u64 / IV_SECTOR).max(1);
        // The tweaks of XTS, or the ciphertext of CBC, of one sector.
        let mut aside = vec![[0u8; BLOCK]; size / BLOCK];
        let mut number = iv;
        for sector in bytes.chunks_exact_mut(size.max(BLOCK)) {
            let (blocks, _) = sector.as_chunks_mut::<BLOCK>();
            match &self.mode {
                Mode::Xts(tweak, iv) => {
                    let mut first = iv.of(number);
                    tweak.encrypt(&mut first);
                    let mut value = u128::from_le_bytes(first);
                    for t in &mut aside {
                        *t = value.to_le_bytes();
                        // Times x in GF(2^128).
                        value = value << 1 ^ if value >> 127 != 0 { 0x87 } else { 0 };
                    }
                    xor(blocks, &aside);
                    self.aes.decrypt(blocks);
                    xor(blocks, &aside);
                }
                Mode::Cbc(iv) => {
                    let mut previous = iv.of(number);
                    for (keep, block) in aside.iter_mut().zip(blocks.iter()) {
                        *keep = std::mem::replace(&mut previous, *block);
                    }
                    self.aes.decrypt(blocks);
                    xor(blocks, &aside);
                }
            }
            number = number.wrapping_add(step);
        }
    }
}

impl Iv {
    fn of(&self, sector: u64) -> [u8; BLOCK] {
        let number = match self {
            Self::Plain => sector & 0xffff_ffff,
            _ => sector,
        };
        let mut iv = u128::from(number).to_le_bytes();
        if let Self::Essiv(aes) = self {
            aes.encrypt(&mut iv);
        }
        iv
    }
}

fn xor(blocks: &mut [[u8; BLOCK]], with: &[[u8; BLOCK]]) {
    for (block, with) in blocks.iter_mut().zip(with) {
        *block = (u128::from_ne_bytes(*block) ^ u128::from_ne_bytes(*with)).to_ne_bytes();
    }
}

/// An encrypted volume as its plaintext. It has no holes: a hole of the container is zeros that somebody discarded, and
/// what the kernel shows there is their decryption, not zeros.
pub(super) struct Plain {
    inner: Arc<dyn ReadAt>,
    cipher: Cipher,
    /// Where the ciphertext begins on `inner`.
    start: u64,
    len: u64,
    /// 512, 1024, 2048 or 4096.
    sector: usize,
    /// The IV's number of the first sector.
    iv: u64,
}

impl Plain {
    /// The plaintext of `len` bytes of `inner` from `start` on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for sector sizes that dm-crypt does not know.
    pub(super) fn new(
        inner: Arc<dyn ReadAt>,
        cipher: Cipher,
        (start, len): (u64, u64),
        sector: u64,
        iv: u64,
    ) -> Result<Self> {
        let sector = match sector {
            512 | 1024 | 2048 | 4096 => usize::try_from(sector).unwrap_or(512),
            _ => return Err(Error::unsupported(format!("LUKS with sectors of {sector} bytes"))),
        };
        Ok(Self {
            len: len.min(inner.len().saturating_sub(start)) / sector as u64 * sector as u64,
            inner,
            cipher,
            start,
            sector,
            iv,
        })
    }

    /// Reads and decrypts whole sectors in place.
    fn sectors(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(self.start.saturating_add(offset), buf)?;
        let iv = self.iv.wrapping_add(offset / IV_SECTOR);
        self.cipher.decrypt(buf, self.sector, iv);
        Ok(())
    }

    /// Reads what lies in one sector, which `buf` has only a part of.
    fn part(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let within = offset % self.sector as u64;
        let mut whole = [0; 4096];
        let whole = whole.get_mut(..self.sector).unwrap_or_default();
        self.sectors(offset - within, whole)?;
        let from = usize::try_from(within)
            .ok()
            .and_then(|at| crate::bytes::slice(whole, at, buf.len()))
            .ok_or_else(|| Error::corrupt("a range outside a sector", offset))?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

impl ReadAt for Plain {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the encrypted volume", self.len, offset, buf.len())?;
        let outside = || Error::corrupt("a range outside its buffer", offset);
        let mut rest = buf;
        let within = usize::try_from(offset % self.sector as u64).unwrap_or(0);
        if within > 0 && !rest.is_empty() {
            let len = (self.sector - within).min(rest.len());
            let (head, later) = rest.split_at_mut_checked(len).ok_or_else(outside)?;
            self.part(offset, head)?;
            offset = offset.saturating_add(len as u64);
            rest = later;
        }
        let whole = rest.len() / self.sector * self.sector;
        let (middle, tail) = rest
            .split_at_mut_checked(whole)
            .ok_or_else(|| Error::corrupt("a range outside its buffer", offset))?;
        if !middle.is_empty() {
            self.sectors(offset, middle)?;
        }
        if !tail.is_empty() {
            self.part(offset.saturating_add(whole as u64), tail)?;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let len = self.len.saturating_sub(offset);
        Ok(Extent { hole: len == 0, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::unhex;

    /// IEEE 1619-2007 annex B, vectors 2 and 10: key 1, key 2, sector, plaintext, ciphertext.
    #[test]
    fn vectors_of_the_standard() {
        let key = [unhex(&"11".repeat(16)).unwrap(), unhex(&"22".repeat(16)).unwrap()].concat();
        let cipher = Cipher::new("aes-xts-plain64", &key).unwrap();
        let mut bytes = unhex("c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0").unwrap();
        cipher.decrypt(&mut bytes, 32, 0x33_3333_3333);
        assert_eq!(bytes, vec![0x44; 32]);
    }

    #[test]
    fn any_range_is_the_same() {
        let inner: Arc<dyn ReadAt> =
            Arc::new((0..40960u32).map(|i| (i * 7 % 253) as u8).collect::<Vec<u8>>());
        for (spec, key, sector) in [
            ("aes-xts-plain64", 64, 512),
            ("aes-xts-plain64", 32, 4096),
            ("aes-xts-plain", 64, 1024),
            ("aes-cbc-essiv:sha256", 32, 512),
            ("aes-cbc-plain64", 16, 2048),
            ("aes-cbc-plain", 24, 512),
        ] {
            let cipher = Cipher::new(spec, &vec![3; key]).unwrap();
            let plain = Plain::new(Arc::clone(&inner), cipher, (4096, 32768), sector, 5).unwrap();
            let mut all = vec![0; 32768];
            plain.read_at(0, &mut all).unwrap();
            for (at, len) in [
                (0, 1),
                (1, 511),
                (511, 2),
                (500, 9000),
                (4095, 4097),
                (32767, 1),
                (512, 512),
            ] {
                let mut buf = vec![0; len];
                plain.read_at(at as u64, &mut buf).unwrap();
                assert_eq!(buf, all[at..at + len], "{spec} {at}");
            }
            assert!(plain.read_at(32768, &mut [0]).is_err());
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (spec, key) in [
            ("serpent-xts-plain64", 64),
            ("twofish-cbc-essiv:sha256", 32),
            ("aes-xts-benbi", 64),
            ("aes-lrw-plain64", 48),
            ("aes-cbc-essiv:whirlpool", 32),
            ("aes-xts-plain64", 48 + 64),
            ("cipher_null-ecb", 32),
            ("capi:xts(aes)-plain64", 64),
            ("aes-adiantum-plain64", 32),
            ("aes", 32),
        ] {
            let e = Cipher::new(spec, &vec![0; key]).err().unwrap();
            assert_eq!(e.code(), crate::error::code::UNSUPPORTED, "{spec}: {e}");
        }
    }
}
