//! Invariant: whatever the bytes of some disks are, the arrays, volume groups and encrypted volumes on them are put together
//! or refused, without a panic. The first byte says how the rest is cut into disks and which checksums are made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use vm2k::read_at::ReadAt;
use vm2k::volume::assemble::{Block, assemble};
use vm2k::volume::{self, Keys, Limits, Secret};

/// The sum of md: all words but the checksum's own, folded.
fn md(bytes: &mut [u8], at: usize, len: usize, sum_at: usize) {
    let Some(block) = bytes.get_mut(at..at + len) else {
        return;
    };
    block[sum_at..sum_at + 4].fill(0);
    let words = block.chunks_exact(4).map(|w| u64::from(u32::from_le_bytes([w[0], w[1], w[2], w[3]])));
    let sum: u64 = words.sum();
    let sum = ((sum & 0xffff_ffff) + (sum >> 32)) as u32;
    block[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let disks = usize::from(first >> 4) % 5 + 1;
    let mut blocks = Vec::new();
    for (n, part) in rest.chunks(rest.len().div_ceil(disks).max(1)).enumerate() {
        let mut bytes = part.to_vec();
        match first & 7 {
            1 => md(&mut bytes, 4096, 256 + 2 * 8, 216),
            2 => md(&mut bytes, 0, 256 + 2 * 8, 216),
            3 => {
                let at = (bytes.len() & !0xffff).saturating_sub(0x1_0000);
                md(&mut bytes, at, 4096, 152);
            }
            4 => {
                if let Some(header) = bytes.get_mut(..0x4000) {
                    header[448..512].fill(0);
                    let sum = Sha256::digest(&*header);
                    header[448..480].copy_from_slice(&sum);
                }
            }
            _ => {}
        }
        let disk: Arc<dyn ReadAt> = Arc::new(bytes);
        blocks.push(Block::of_disk(n, "disk", volume::whole(&disk)));
    }
    let mut keys = Keys::new(vec![Secret::new(b"x".to_vec())], None);
    keys.limits = Limits { memory: 256, passes: 1024, iterations: 1000 };
    let mut buf = [0; 4096];
    for block in assemble(blocks, &keys, |_| false).blocks {
        let data = &block.volume.data;
        for at in [0, data.len() / 3, data.len().saturating_sub(4096)] {
            let len = data.len().saturating_sub(at).min(4096) as usize;
            let _ = data.read_at(at, &mut buf[..len]);
        }
    }
});
