//! Inputs that stand for large images: some volumes that are zeros but for blocks of 1,024 bytes that the input holds.
//! A filesystem of 64 MiB with 100 KiB of metadata is an input of 100 KiB, and what is changed is not its emptiness.
//!
//! An input is the number of volumes (one byte), their lengths (`u64`), and records of a volume's number (one byte), a
//! block's number (`u32`) and the block; all numbers in little-endian order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vm2k::error::Result;
use vm2k::read_at::{Extent, ReadAt, check_range};

/// Bytes of a block.
const BLOCK: usize = 1024;
/// Bytes of a block with its numbers.
const RECORD: usize = 5 + BLOCK;
/// Volumes at most.
const VOLUMES: usize = 8;
/// The longest volume.
const MAX_LEN: u64 = 1 << 40;

/// An input.
#[derive(Default)]
pub struct Image {
    pub volumes: Vec<Volume>,
}

/// Bytes that are mostly zeros.
#[derive(Default, Clone)]
pub struct Volume {
    len: u64,
    blocks: BTreeMap<u64, [u8; BLOCK]>,
}

impl Image {
    /// The image that an input stands for. What is left over is left out.
    pub fn decode(input: &[u8]) -> Option<Self> {
        let count = head(input)?;
        let (head, records) = input.split_at(1 + count * 8);
        let mut volumes = vec![Volume::default(); count];
        for (volume, len) in volumes.iter_mut().zip(head[1..].as_chunks().0) {
            volume.len = u64::from_le_bytes(*len) % (MAX_LEN + 1);
        }
        for record in records.as_chunks::<RECORD>().0 {
            let (numbers, block) = record.split_at(5);
            let volume = &mut volumes[usize::from(numbers[0]) % count];
            let number = u32::from_le_bytes([numbers[1], numbers[2], numbers[3], numbers[4]]);
            volume.blocks.insert(number.into(), block.try_into().expect("the rest of a record"));
        }
        Some(Self { volumes })
    }

    /// The input that stands for this image.
    pub fn encode(&self) -> Vec<u8> {
        let mut input = vec![self.volumes.len() as u8];
        input.extend(self.volumes.iter().flat_map(|v| v.len.to_le_bytes()));
        for (n, volume) in self.volumes.iter().enumerate() {
            for (number, block) in &volume.blocks {
                input.push(n as u8);
                input.extend((*number as u32).to_le_bytes());
                input.extend(block);
            }
        }
        input
    }

    /// Writes the volumes into files of these names in a directory of this process, which holds nothing else then. The
    /// path of the first.
    pub fn write(&self, names: &[&str]) -> Option<PathBuf> {
        let dir = crate::read::dir();
        for (n, name) in names.iter().enumerate() {
            let path = dir.join(name);
            match self.volumes.get(n) {
                Some(volume) => volume.write(&path).ok()?,
                None => drop(std::fs::remove_file(path)),
            }
        }
        names.first().map(|name| dir.join(name))
    }
}

/// The number of volumes of an input whose head is whole.
fn head(input: &[u8]) -> Option<usize> {
    let count = usize::from(*input.first()?);
    ((1..=VOLUMES).contains(&count) && input.len() > count * 8).then_some(count)
}

impl Volume {
    /// What `file` holds, holes passed over.
    pub fn read(file: &dyn ReadAt) -> Result<Self> {
        let mut volume = Self { len: file.len(), blocks: BTreeMap::new() };
        let mut at = 0;
        while at < file.len() {
            let extent = file.extent_at(at)?;
            let next = (at + extent.len).next_multiple_of(BLOCK as u64);
            while !extent.hole && at < next.min(file.len()) {
                let mut block = [0; BLOCK];
                let n = (file.len() - at).min(BLOCK as u64) as usize;
                file.read_at(at, &mut block[..n])?;
                if block != [0; BLOCK] {
                    volume.blocks.insert(at / BLOCK as u64, block);
                }
                at += BLOCK as u64;
            }
            at = next;
        }
        Ok(volume)
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(path)?;
        file.set_len(self.len)?;
        for (number, block) in &self.blocks {
            let at = number * BLOCK as u64;
            let n = self.len.saturating_sub(at).min(BLOCK as u64) as usize;
            file.write_all_at(&block[..n], at)?;
        }
        Ok(())
    }

    /// The bytes at `at`, as far as there are any.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min(self.len.saturating_sub(at) as usize)];
        let _ = self.read_at(at, &mut bytes);
        bytes
    }

    /// Changes bytes; those in blocks that the input does not hold stay zeros.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            if let Some(block) = self.blocks.get_mut(&(at / BLOCK as u64)) {
                block[(at % BLOCK as u64) as usize] = *byte;
            }
        }
    }

    /// The places in steps of `step` bytes, within the blocks that the input holds, and the bytes there, up to `len`.
    pub fn places(&self, step: u64, len: usize) -> Vec<(u64, Vec<u8>)> {
        let mut places: Vec<u64> = Vec::new();
        for number in self.blocks.keys() {
            let from = number * BLOCK as u64;
            places.extend((from.next_multiple_of(step)..from + BLOCK as u64).step_by(step as usize));
        }
        places.into_iter().map(|at| (at, self.get(at, len))).collect()
    }
}

impl ReadAt for Volume {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the image", self.len, offset, buf.len())?;
        buf.fill(0);
        let end = offset + buf.len() as u64;
        let size = BLOCK as u64;
        for (number, block) in self.blocks.range(offset / size..end.div_ceil(size)) {
            let (from, to) = ((number * size).max(offset), ((number + 1) * size).min(end));
            let part = &block[(from - number * size) as usize..(to - number * size) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let size = BLOCK as u64;
        let number = offset / size;
        let hole = !self.blocks.contains_key(&number);
        let end = match hole {
            true => self.blocks.range(number..).next().map_or(self.len, |(n, _)| n * size),
            false => (number..).find(|n| !self.blocks.contains_key(n)).unwrap_or(number + 1) * size,
        };
        Ok(Extent { hole: hole || offset >= self.len, len: end.min(self.len).saturating_sub(offset) })
    }
}

/// Knuth's MMIX generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n.max(1) as u64) as usize
    }
}

/// Changes an input and keeps its form, so that a change in one place moves nothing else: some bytes of a block, mostly;
/// else a length, or a block that is copied, moved or left out. `bytes` is libFuzzer's own mutator.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytes: impl Fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let Some(count) = head(&data[..size]) else {
        return bytes(data, size, max_size);
    };
    let start = 1 + count * 8;
    let mut size = size;
    let mut random = Random(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..[1, 1, 1, 2, 3, 5][random.below(6)] {
        let records = (size - start) / RECORD;
        let at = start + random.below(records) * RECORD;
        match random.below(40) {
            _ if records == 0 => return bytes(data, size, max_size),
            0 => {
                let at = 1 + random.below(count) * 8;
                bytes(&mut data[at..at + 8], 8, 8);
            }
            1 => {
                bytes(&mut data[at..at + 5], 5, 5);
            }
            2 => {
                let from = start + random.below(records) * RECORD + 5;
                data.copy_within(from..from + BLOCK, at + 5);
            }
            3 if size + RECORD <= max_size => {
                data.copy_within(at..at + RECORD, size);
                bytes(&mut data[size..size + 5], 5, 5);
                size += RECORD;
            }
            4 if records > 1 => {
                data.copy_within(at + RECORD..size, at);
                size -= RECORD;
            }
            _ => {
                let n = [1, 2, 4, 4, 8, 8, 16, 64, 256][random.below(9)];
                let block = &mut data[at + 5..at + RECORD];
                let place = random.below(BLOCK);
                // Mostly where something stands.
                let used = (place..BLOCK).find(|i| block[*i] != 0).filter(|_| random.below(4) > 0);
                let place = used.unwrap_or(place) / n.min(8) * n.min(8);
                let place = place.min(BLOCK - n);
                bytes(&mut block[place..place + n], n, n);
            }
        }
    }
    size
}
