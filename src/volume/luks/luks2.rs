//! LUKS2 (LUKS2 On-Disk Format Specification, version 1.1.1).

use super::cipher::{Cipher, Plain};
use super::kdf::{Hash, Kdf, check_len, material_len, merge};
use super::keys::Limits;
use crate::bytes::{be16, be64, slice, until_nul};
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, Slice, read_vec};
use crate::volume::layout::{Concat, Mapped};
use base64::Engine;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

const BINARY: usize = 4096;
const SECOND_MAGIC: &[u8] = b"SKUL\xba\xbe";
/// The lengths that header and JSON may have together; the second header stands behind the first.
const SIZES: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];
/// Segments that are taken; cryptsetup makes one, and a few while it encrypts.
const MAX_SEGMENTS: usize = 64;
const MAX_SLOTS: usize = 32;

/// True if the second header stands at one of its places.
pub(super) fn has_second(volume: &dyn ReadAt) -> bool {
    SIZES.iter().any(|at| {
        read_vec(volume, *at, 8).is_ok_and(|b| b.starts_with(SECOND_MAGIC) && be16(&b, 6) == Some(2))
    })
}

/// A header that is sound.
pub(super) struct Header {
    pub(super) uuid: String,
    json: Json,
    sequence: u64,
    /// What is worth telling of it.
    pub(super) note: Option<String>,
}

/// The JSON area, as far as it is used. Numbers of 64 bits are strings in it.
#[derive(Debug, Deserialize)]
struct Json {
    #[serde(default)]
    keyslots: BTreeMap<String, Value>,
    #[serde(default)]
    segments: BTreeMap<String, Value>,
    #[serde(default)]
    digests: BTreeMap<String, Digest>,
    #[serde(default)]
    config: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Digest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    salt: String,
    digest: String,
    hash: String,
    iterations: u32,
}

#[derive(Debug, Deserialize)]
struct Slot {
    key_size: usize,
    af: Af,
    area: Area,
    kdf: SlotKdf,
}

#[derive(Debug, Deserialize)]
struct Af {
    #[serde(rename = "type")]
    kind: String,
    stripes: usize,
    hash: String,
}

#[derive(Debug, Deserialize)]
struct Area {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    encryption: String,
    key_size: usize,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum SlotKdf {
    Pbkdf2 {
        hash: String,
        iterations: u32,
        salt: String,
    },
    Argon2i(Argon),
    Argon2id(Argon),
}

#[derive(Debug, Deserialize)]
struct Argon {
    time: u32,
    memory: u32,
    cpus: u32,
    salt: String,
}

fn corrupt(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("the LUKS2 header: {what}"), 0)
}

fn base64(text: &str) -> Result<Vec<u8>> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map_err(|_| corrupt("a field that is not base64"))
}

fn number(text: Option<&Value>) -> Result<u64> {
    text.and_then(Value::as_str)
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| corrupt("a number is missing"))
}

fn kind(object: &Value) -> &str {
    object.get("type").and_then(Value::as_str).unwrap_or_default()
}

impl Header {
    /// Reads both headers; the sound one with the higher sequence number counts.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if neither is sound.
    pub(super) fn read(volume: &dyn ReadAt) -> Result<Self> {
        let first = Self::at(volume, 0);
        let places = match &first {
            Ok((_, len)) => vec![*len],
            Err(_) => SIZES.to_vec(),
        };
        let second = places.into_iter().find_map(|at| Self::at(volume, at).ok());
        match (first, second) {
            (Ok((first, _)), Some((second, _))) if second.sequence > first.sequence => Ok(Self {
                note: Some("the second LUKS2 header is newer than the first and is read".to_owned()),
                ..second
            }),
            (Ok((first, _)), _) => Ok(first),
            (Err(_), Some((second, _))) => Ok(Self {
                note: Some("the first LUKS2 header is damaged, the second is read".to_owned()),
                ..second
            }),
            (Err(e), None) => Err(e),
        }
    }

    /// The header at `at`, and its length with the JSON area.
    fn at(volume: &dyn ReadAt, at: u64) -> Result<(Self, u64)> {
        let corrupt = |what: &str| Error::corrupt(format!("the LUKS2 header: {what}"), at);
        let binary = read_vec(volume, at, BINARY)?;
        let magic = if at == 0 { super::MAGIC } else { SECOND_MAGIC };
        if !binary.starts_with(magic) || be16(&binary, 6) != Some(2) {
            return Err(corrupt("it has another magic number"));
        }
        let long = |field: usize| be64(&binary, field).ok_or_else(|| corrupt("it is short"));
        let len = long(8)?;
        if !SIZES.contains(&len) || long(256)? != at {
            return Err(corrupt("it says that it has another place or length"));
        }
        let mut whole = read_vec(volume, at, usize::try_from(len).unwrap_or(0))?;
        let name = slice(&binary, 72, 32).map(until_nul).unwrap_or_default();
        let hash = Hash::parse(&String::from_utf8_lossy(name))?;
        if let Some(sum) = whole.get_mut(448..512) {
            sum.fill(0);
        }
        let sum = hash.digest(&[&whole]);
        if slice(&binary, 448, sum.as_ref().len()) != Some(sum.as_ref()) {
            return Err(corrupt("its checksum is wrong"));
        }
        let json = until_nul(whole.get(BINARY..).unwrap_or_default());
        let json = serde_json::from_slice(json).map_err(|e| corrupt(&format!("its JSON: {e}")))?;
        let header = Self {
            uuid: super::uuid(&binary, 168),
            json,
            sequence: long(16)?,
            note: None,
        };
        Ok((header, len))
    }

    /// Refuses what needs more than a key, by name.
    fn check(&self) -> Result<()> {
        let requirements = self
            .json
            .config
            .get("requirements")
            .and_then(|r| r.get("mandatory"));
        let mut requirements = requirements.and_then(Value::as_array).into_iter().flatten();
        if let Some(name) = requirements.next().map(|n| n.as_str().unwrap_or_default()) {
            return Err(match name.contains("reencrypt") {
                true => Error::unsupported("a LUKS2 volume that is being reencrypted"),
                false => Error::unsupported(format!("the LUKS2 requirement {}", Escaped(name.as_bytes()))),
            });
        }
        if self.json.keyslots.values().any(|slot| kind(slot) == "reencrypt") {
            return Err(Error::unsupported("a LUKS2 volume that is being reencrypted"));
        }
        for segment in self.json.segments.values() {
            if segment.get("integrity").is_some() {
                return Err(Error::unsupported(
                    "a LUKS2 volume with authenticated encryption (dm-integrity)",
                ));
            }
            if !matches!(kind(segment), "crypt" | "linear") {
                let name = kind(segment);
                return Err(Error::unsupported(format!(
                    "the LUKS2 segment type {}",
                    Escaped(name.as_bytes())
                )));
            }
        }
        if self.json.keyslots.len() > MAX_SLOTS || self.json.segments.len() > MAX_SEGMENTS {
            return Err(corrupt("more key slots or segments than can be"));
        }
        Ok(())
    }

    /// The plaintext, `None` if `key` opens no slot.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what is not known or work beyond the limits, [`Error::Corrupt`] if a field cannot
    /// be.
    pub(super) fn open(
        &self,
        volume: &Arc<dyn ReadAt>,
        key: &[u8],
        limits: &Limits,
    ) -> Result<Option<Arc<dyn ReadAt>>> {
        self.check()?;
        for (id, slot) in &self.json.keyslots {
            if kind(slot) != "luks2" {
                continue;
            }
            let slot: Slot = Slot::deserialize(slot).map_err(|e| corrupt(format!("key slot {id}: {e}")))?;
            let Some(digest) = self.json.digests.values().find(|d| d.keyslots.contains(id)) else {
                continue;
            };
            if digest.kind != "pbkdf2" {
                let name = Escaped(digest.kind.as_bytes());
                return Err(Error::unsupported(format!("the LUKS2 digest type {name}")));
            }
            if let Some(opened) = self.slot(volume, key, &slot, digest, limits)? {
                return Ok(Some(opened));
            }
        }
        Ok(None)
    }

    /// Tries one slot.
    fn slot(
        &self,
        volume: &Arc<dyn ReadAt>,
        key: &[u8],
        slot: &Slot,
        digest: &Digest,
        limits: &Limits,
    ) -> Result<Option<Arc<dyn ReadAt>>> {
        if slot.af.kind != "luks1" || slot.area.kind != "raw" {
            return Err(Error::unsupported("a LUKS2 key slot of a kind that is not known"));
        }
        // Before the costly part: are the ciphers known at all?
        self.segments(volume, digest, &vec![0; check_len(slot.key_size)?])?;
        Cipher::new(&slot.area.encryption, &vec![0; check_len(slot.area.key_size)?])?;
        let (kdf, salt) = match &slot.kdf {
            SlotKdf::Pbkdf2 {
                hash,
                iterations,
                salt,
            } => {
                let hash = Hash::parse(hash)?;
                (
                    Kdf::Pbkdf2 {
                        hash,
                        iterations: *iterations,
                    },
                    salt,
                )
            }
            SlotKdf::Argon2i(a) => (a.kdf(false), &a.salt),
            SlotKdf::Argon2id(a) => (a.kdf(true), &a.salt),
        };
        let len = material_len(slot.key_size, slot.af.stripes)?;
        let at = slot
            .area
            .offset
            .parse()
            .map_err(|_| corrupt("a number is missing"))?;
        let mut material = Zeroizing::new(read_vec(&**volume, at, len.next_multiple_of(512))?);
        let derived = kdf.derive(key, &base64(salt)?, slot.area.key_size, limits)?;
        Cipher::new(&slot.area.encryption, &derived)?.decrypt(&mut material, 512, 0);
        let candidate = merge(
            material.get(..len).unwrap_or_default(),
            slot.key_size,
            Hash::parse(&slot.af.hash)?,
        );
        let expected = base64(&digest.digest)?;
        let check = Kdf::Pbkdf2 {
            hash: Hash::parse(&digest.hash)?,
            iterations: digest.iterations,
        };
        let found = check.derive(&candidate, &base64(&digest.salt)?, expected.len(), limits)?;
        if *found != expected {
            return Ok(None);
        }
        self.segments(volume, digest, &candidate).map(Some)
    }

    /// The plaintext of all segments, in the order of their numbers.
    fn segments(&self, volume: &Arc<dyn ReadAt>, digest: &Digest, key: &[u8]) -> Result<Arc<dyn ReadAt>> {
        let mut segments: Vec<(u64, &String, &Value)> = Vec::new();
        for (id, segment) in &self.json.segments {
            segments.push((
                id.parse().map_err(|_| corrupt("a segment without a number"))?,
                id,
                segment,
            ));
        }
        segments.sort_by_key(|(n, ..)| *n);
        let mut runs = Concat::new();
        for (_, id, segment) in segments {
            let start = number(segment.get("offset"))?;
            let rest = volume.len().saturating_sub(start);
            let len = match segment.get("size").and_then(Value::as_str) {
                Some("dynamic") => rest,
                _ => number(segment.get("size"))?.min(rest),
            };
            let data: Arc<dyn ReadAt> = if kind(segment) == "linear" {
                Arc::new(Slice::new(Arc::clone(volume), start, len))
            } else {
                if !digest.segments.contains(id) {
                    return Err(corrupt("a segment without a key"));
                }
                let spec = segment
                    .get("encryption")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let sector = segment.get("sector_size").and_then(Value::as_u64).unwrap_or(512);
                let iv = number(segment.get("iv_tweak"))?;
                Arc::new(Plain::new(
                    Arc::clone(volume),
                    Cipher::new(spec, key)?,
                    (start, len),
                    sector,
                    iv,
                )?)
            };
            let len = data.len();
            runs.push(Some(data), 0, len)?;
        }
        Ok(Arc::new(Mapped(runs)))
    }
}

impl Argon {
    fn kdf(&self, id: bool) -> Kdf {
        Kdf::Argon2 {
            id,
            passes: self.time,
            memory: self.memory,
            lanes: self.cpus,
        }
    }
}
