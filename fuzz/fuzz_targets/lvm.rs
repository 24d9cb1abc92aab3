//! Invariant: whatever the text of a volume group's metadata is, its logical volumes are made or refused, and read at some
//! places, without a panic; the work is bounded by the length of the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vm2k::read_at::ReadAt;
use vm2k::volume::assemble::{Block, assemble};
use vm2k::volume::{self, Keys};

/// LVM2's checksum.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = 0xf597_a6cfu32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 };
        }
    }
    crc
}

fuzz_target!(|text: &[u8]| {
    if text.len() > 60_000 {
        return;
    }
    let mut disk = vec![0; 256 << 10];
    let put = |disk: &mut Vec<u8>, at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    // The label in sector 1 and the header behind it: one data area, one metadata area of 64 KiB at 4 KiB.
    put(&mut disk, 512, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001");
    put(&mut disk, 544, b"0123456789abcdef0123456789abcdef");
    for (at, value) in [(584, 68 << 10), (616, 4096u64), (624, 64 << 10)] {
        put(&mut disk, at, &value.to_le_bytes());
    }
    let sum = crc(&disk[532..1024]);
    put(&mut disk, 528, &sum.to_le_bytes());
    put(&mut disk, 4100, b" LVM2 x[5A%r0N*>\x01\0\0\0");
    for (at, value) in [(4120, 4096), (4128, 64 << 10), (4136, 512), (4144, text.len() as u64)] {
        put(&mut disk, at, &value.to_le_bytes());
    }
    put(&mut disk, 4152, &crc(text).to_le_bytes());
    let sum = crc(&disk[4100..4608]);
    put(&mut disk, 4096, &sum.to_le_bytes());
    put(&mut disk, 4608, text);
    let disk: Arc<dyn ReadAt> = Arc::new(disk);
    let block = Block::of_disk(0, "disk", volume::whole(&disk));
    let mut buf = [0; 4096];
    for block in assemble(vec![block], &Keys::default(), |_| true).blocks {
        let data = &block.volume.data;
        let mut at = 0;
        for _ in 0..16 {
            let Ok(extent) = data.extent_at(at) else { break };
            assert!(extent.len > 0 || at >= data.len(), "an extent without a length");
            let len = data.len().saturating_sub(at).min(4096) as usize;
            let _ = data.read_at(at, &mut buf[..len]);
            at = at.saturating_add(extent.len);
        }
    }
});
