//! From logical addresses to bytes on devices: chunks, their profiles and their copies.

use super::items::{KEY_LEN, Key, ids, types};
use super::superblock::Superblock;
use crate::bytes::{array, le16, le32, le64, uuid};
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use std::sync::Arc;

/// Profiles of a chunk (`BTRFS_BLOCK_GROUP_*`).
mod profile {
    pub(super) const RAID0: u64 = 1 << 3;
    pub(super) const RAID1: u64 = 1 << 4;
    pub(super) const DUP: u64 = 1 << 5;
    pub(super) const RAID10: u64 = 1 << 6;
    pub(super) const RAID5: u64 = 1 << 7;
    pub(super) const RAID6: u64 = 1 << 8;
    pub(super) const RAID1C3: u64 = 1 << 9;
    pub(super) const RAID1C4: u64 = 1 << 10;
    pub(super) const ALL: u64 = 0xff << 3;
    pub(super) const MIRRORED: u64 = RAID1 | DUP | RAID1C3 | RAID1C4;
    pub(super) const PARITY: u64 = RAID5 | RAID6;
}

/// `BTRFS_STRIPE_LEN`: the only length there is.
const STRIPE: u64 = 64 << 10;
/// No volume has more chunks than this; each is at least 1 MiB in a real one.
const MAX_CHUNKS: usize = 1 << 20;

/// A device of the filesystem that is here.
pub(super) struct Device {
    pub(super) uuid: [u8; 16],
    pub(super) devid: u64,
    pub(super) generation: u64,
    pub(super) volume: Arc<dyn ReadAt>,
}

/// A piece of a chunk on one device.
struct Stripe {
    devid: u64,
    uuid: [u8; 16],
    offset: u64,
    /// Its place in [`Chunks::devices`]; `None` if the device is missing.
    device: Option<usize>,
}

/// A run of logical addresses.
struct Chunk {
    start: u64,
    len: u64,
    profile: u64,
    stripes: Vec<Stripe>,
}

/// All chunks, by their address, and the devices under them.
#[derive(Default)]
pub(super) struct Chunks {
    pub(super) devices: Vec<Device>,
    chunks: Vec<Chunk>,
}

/// How one logical address can be read.
enum Way {
    /// From this byte of this stripe.
    Copy(usize, u64),
    /// As the exclusive or of this byte of these stripes.
    Rebuild(Vec<usize>, u64),
}

impl Chunks {
    /// The system chunks that the superblock names.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the array is damaged.
    pub(super) fn new(sb: &Superblock, devices: Vec<Device>) -> Result<Self> {
        let mut chunks = Self {
            devices,
            chunks: Vec::new(),
        };
        let mut rest = sb.sys_chunks.as_slice();
        while !rest.is_empty() {
            let damaged = || Error::corrupt("btrfs superblock: the array of system chunks is damaged", 0);
            let key = Key::read(rest, 0).ok_or_else(damaged)?;
            if key.kind != types::CHUNK_ITEM || key.object != ids::FIRST_CHUNK_TREE {
                return Err(damaged());
            }
            let item = rest.get(KEY_LEN..).ok_or_else(damaged)?;
            let len = chunks.add(key.offset, item)?;
            rest = item.get(len..).ok_or_else(damaged)?;
        }
        Ok(chunks)
    }

    /// Adds the chunk at `start` and gives the length of its item. A chunk that is there already stays.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it cannot be, [`Error::Unsupported`] for a profile that is not known.
    pub(super) fn add(&mut self, start: u64, item: &[u8]) -> Result<usize> {
        let corrupt = |what: &str| Error::corrupt(format!("chunk {start}: {what}"), start);
        let short = || corrupt("its item is too short");
        let len = le64(item, 0).ok_or_else(short)?;
        let kind = le64(item, 24).ok_or_else(short)?;
        let count = usize::from(le16(item, 44).ok_or_else(short)?);
        let sub_stripes = le16(item, 46).ok_or_else(short)?;
        let end = count
            .checked_mul(32)
            .and_then(|n| n.checked_add(48))
            .filter(|n| *n <= item.len() && count > 0)
            .ok_or_else(short)?;
        if le64(item, 16) != Some(STRIPE) {
            return Err(corrupt("impossible length of stripes"));
        }
        if len == 0 || start.checked_add(len).is_none() || !matches!(le32(item, 40), Some(1..=65536)) {
            return Err(corrupt("impossible length"));
        }
        let kinds = kind & profile::ALL;
        let known = kind & !(profile::ALL | 0b111) == 0;
        if !known || kinds.count_ones() > 1 {
            return Err(Error::unsupported(format!(
                "chunk {start}: an unknown profile ({kind:#x})"
            )));
        }
        let fits = match kinds {
            0 => count == 1,
            profile::DUP | profile::RAID1 => count == 2,
            profile::RAID1C3 => count == 3,
            profile::RAID1C4 => count == 4,
            profile::RAID10 => count % 2 == 0 && sub_stripes == 2,
            profile::RAID5 => count >= 2,
            profile::RAID6 => count >= 3,
            _ => true,
        };
        if !fits {
            return Err(corrupt("its number of stripes does not fit its profile"));
        }
        let mut stripes = Vec::with_capacity(count);
        for n in 0..count {
            let at = 48 + n * 32;
            let devid = le64(item, at).ok_or_else(short)?;
            let uuid = array(item, at + 16).ok_or_else(short)?;
            stripes.push(Stripe {
                devid,
                uuid,
                offset: le64(item, at + 8).ok_or_else(short)?,
                device: self
                    .devices
                    .iter()
                    .position(|d| d.devid == devid && d.uuid == uuid),
            });
        }
        let place = self.chunks.partition_point(|c| c.start < start);
        let overlaps = |c: Option<&Chunk>| {
            c.is_some_and(|c| c.start < start.saturating_add(len) && start < c.start.saturating_add(c.len))
        };
        if self
            .chunks
            .get(place)
            .is_some_and(|c| c.start == start && c.len == len)
        {
            return Ok(end);
        }
        let before = place.checked_sub(1).and_then(|n| self.chunks.get(n));
        if overlaps(before) || overlaps(self.chunks.get(place)) {
            return Err(corrupt("it overlaps another chunk"));
        }
        if self.chunks.len() >= MAX_CHUNKS {
            return Err(Error::unsupported(format!("more than {MAX_CHUNKS} btrfs chunks")));
        }
        self.chunks.insert(
            place,
            Chunk {
                start,
                len,
                profile: kinds,
                stripes,
            },
        );
        Ok(end)
    }

    /// The devices that are named by chunks but are not here: number and UUID.
    pub(super) fn missing(&self) -> Vec<(u64, [u8; 16])> {
        let mut missing: Vec<_> = self
            .chunks
            .iter()
            .flat_map(|c| &c.stripes)
            .filter(|s| s.device.is_none())
            .map(|s| (s.devid, s.uuid))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// A device that is missing and without which a chunk cannot be read, if there is one.
    pub(super) fn needed(&self) -> Option<(u64, [u8; 16])> {
        let lost = |c: &&Chunk| {
            let gone = |stripes: &[Stripe]| stripes.iter().filter(|s| s.device.is_none()).count();
            match c.profile {
                0 | profile::RAID0 => gone(&c.stripes) > 0,
                profile::RAID10 => c.stripes.chunks(2).any(|pair| gone(pair) > 1),
                // Of two lost stripes of raid6 one is not rebuilt from the second parity.
                profile::RAID5 | profile::RAID6 => gone(&c.stripes) > 1,
                _ => gone(&c.stripes) == c.stripes.len(),
            }
        };
        self.chunks
            .iter()
            .filter(lost)
            .flat_map(|c| &c.stripes)
            .find(|s| s.device.is_none())
            .map(|s| (s.devid, s.uuid))
    }

    fn chunk(&self, logical: u64) -> Result<&Chunk> {
        let place = self.chunks.partition_point(|c| c.start <= logical);
        place
            .checked_sub(1)
            .and_then(|n| self.chunks.get(n))
            .filter(|c| logical - c.start < c.len)
            .ok_or_else(|| Error::corrupt(format!("no chunk holds the logical address {logical}"), logical))
    }

    /// How many ways there are to read what is at `logical`: at least one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if no chunk holds it.
    pub(super) fn ways(&self, logical: u64) -> Result<usize> {
        let chunk = self.chunk(logical)?;
        Ok(match chunk.profile {
            p if p & profile::MIRRORED != 0 => chunk.stripes.len(),
            profile::RAID10 | profile::RAID5 | profile::RAID6 => 2,
            _ => 1,
        })
    }

    /// Reads `buf` from `logical` on, each piece by its way number `way`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] outside of all chunks, [`Error::Unsupported`] if the device is missing, and as reading.
    pub(super) fn read(&self, logical: u64, buf: &mut [u8], way: usize) -> Result<()> {
        let mut at = logical;
        let mut rest = buf;
        while !rest.is_empty() {
            let chunk = self.chunk(at)?;
            let (found, len) = chunk.way(at - chunk.start, way);
            let n = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let Some((part, after)) = rest.split_at_mut_checked(n) else {
                break;
            };
            match found {
                Way::Copy(stripe, offset) => self.stripe(chunk, stripe, offset, part)?,
                Way::Rebuild(stripes, offset) => {
                    part.fill(0);
                    let mut other = vec![0; part.len()];
                    for stripe in stripes {
                        self.stripe(chunk, stripe, offset, &mut other)?;
                        for (to, from) in part.iter_mut().zip(&other) {
                            *to ^= from;
                        }
                    }
                }
            }
            at = at.saturating_add(n as u64);
            rest = after;
        }
        Ok(())
    }

    /// Fills `buf` from byte `offset` of a stripe.
    fn stripe(&self, chunk: &Chunk, stripe: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let stripe = chunk
            .stripes
            .get(stripe)
            .ok_or_else(|| Error::corrupt("a stripe that does not exist", chunk.start))?;
        let device = stripe
            .device
            .and_then(|n| self.devices.get(n))
            .ok_or_else(|| missing(stripe.devid, stripe.uuid))?;
        device.volume.read_at(stripe.offset.saturating_add(offset), buf)
    }
}

/// A device that is needed and not here.
pub(super) fn missing(devid: u64, id: [u8; 16]) -> Error {
    Error::unsupported(format!("btrfs device {devid} (UUID {}) is missing", uuid(id)))
}

impl Chunk {
    /// Where byte `at` of the chunk is by way number `way`, and for how many bytes.
    fn way(&self, at: u64, way: usize) -> (Way, u64) {
        let count = self.stripes.len() as u64;
        let in_chunk = self.len.saturating_sub(at);
        let in_stripe = (STRIPE - at % STRIPE).min(in_chunk);
        let number = at / STRIPE;
        let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let byte = |row: u64| row.saturating_mul(STRIPE).saturating_add(at % STRIPE);
        match self.profile {
            p if p & profile::MIRRORED != 0 => {
                // A stripe whose device is missing comes last.
                let mut order: Vec<usize> = (0..self.stripes.len()).collect();
                order.sort_by_key(|n| self.stripes.get(*n).is_none_or(|s| s.device.is_none()));
                (Way::Copy(order.get(way).copied().unwrap_or(0), at), in_chunk)
            }
            profile::RAID0 => (Way::Copy(place(number % count), byte(number / count)), in_stripe),
            profile::RAID10 => {
                let pairs = (count / 2).max(1);
                let first = number % pairs * 2;
                (
                    Way::Copy(place(first + way as u64 % 2), byte(number / pairs)),
                    in_stripe,
                )
            }
            p if p & profile::PARITY != 0 => {
                let parities = if p == profile::RAID5 { 1 } else { 2 };
                let data = count.saturating_sub(parities).max(1);
                let row = number / data;
                let on = |n: u64| place((n + row) % count);
                let wanted = on(number % data);
                if way == 0 {
                    return (Way::Copy(wanted, byte(row)), in_stripe);
                }
                // The first parity is the exclusive or of all data stripes of its row.
                let others = (0..=data).map(on).filter(|n| *n != wanted).collect();
                (Way::Rebuild(others, byte(row)), in_stripe)
            }
            _ => (Way::Copy(0, at), in_chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(profile: u64, stripes: usize) -> Chunk {
        let stripe = |n: usize| Stripe {
            devid: n as u64,
            uuid: [0; 16],
            offset: 0,
            device: None,
        };
        Chunk {
            start: 0,
            len: 1 << 30,
            profile,
            stripes: (0..stripes).map(stripe).collect(),
        }
    }

    /// Stripe and byte that way `way` reads.
    fn copy(chunk: &Chunk, at: u64, way: usize) -> (usize, u64) {
        match chunk.way(at, way).0 {
            Way::Copy(stripe, offset) => (stripe, offset),
            Way::Rebuild(..) => panic!("rebuilt"),
        }
    }

    #[test]
    fn stripes_of_each_profile() {
        let k = 64 << 10;
        let raid0 = chunk(profile::RAID0, 3);
        assert_eq!(copy(&raid0, 4 * k + 5, 0), (1, k + 5));
        let raid10 = chunk(profile::RAID10, 4);
        assert_eq!(copy(&raid10, 3 * k, 0), (2, k));
        assert_eq!(copy(&raid10, 3 * k, 1), (3, k));
        // The parity moves on by one device each row.
        let raid5 = chunk(profile::RAID5, 3);
        assert_eq!(copy(&raid5, 0, 0), (0, 0));
        assert_eq!(copy(&raid5, 2 * k, 0), (1, k));
        assert_eq!(copy(&raid5, 3 * k, 0), (2, k));
        let Way::Rebuild(others, _) = raid5.way(2 * k, 1).0 else {
            panic!("copied")
        };
        assert_eq!(others, [2, 0]);
    }
}
