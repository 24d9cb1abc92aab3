//! Invariant: whatever the bytes of a volume are, a btrfs on it is opened or refused, listed, and every file read at its
//! beginning, without a panic; the work is bounded by the length of the volume. Superblock and nodes get the crc32c that
//! they must have, so that changed bytes reach what reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

/// Extents that are looked at for each file.
const EXTENTS: usize = 64;
const SUPERBLOCK: usize = 64 << 10;

/// Puts the right checksum in front of the `size` bytes at `at`.
fn sign(bytes: &mut [u8], at: usize, size: usize) {
    if let Some(block) = bytes.get_mut(at..at + size) {
        let sum = crc32c::crc32c(&block[32..]);
        block[..4].copy_from_slice(&sum.to_le_bytes());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if bytes.len() < SUPERBLOCK + 4096 {
        return;
    }
    let fsid = bytes[SUPERBLOCK + 0x20..SUPERBLOCK + 0x30].to_vec();
    let size = u32::from_le_bytes(bytes[SUPERBLOCK + 0x94..SUPERBLOCK + 0x98].try_into().unwrap());
    let size = (size as usize).clamp(4096, 65536);
    for at in (0..bytes.len() - 4096).step_by(4096) {
        if at != SUPERBLOCK && bytes[at + 32..at + 48] == fsid {
            sign(&mut bytes, at, size);
        }
    }
    sign(&mut bytes, SUPERBLOCK, 4096);
    let Ok(fs) = vm2k::fs::open(Arc::new(bytes)) else {
        return;
    };
    let _ = (fs.info(), fs.subvolumes());
    let Ok(listing) = fs.list() else {
        return;
    };
    let mut buf = vec![0; 64 << 10];
    for (_, node) in listing.tree.iter().filter(|(_, node)| node.is_file()) {
        let Ok(file) = fs.open(node.id.ino) else {
            continue;
        };
        let mut at = 0;
        for _ in 0..EXTENTS {
            let Ok(extent) = file.extent_at(at) else { break };
            assert!(extent.len > 0 || at >= file.len(), "an extent without a length");
            let len = extent.len.min(buf.len() as u64) as usize;
            let _ = file.read_at(at, &mut buf[..len]);
            at += extent.len;
        }
    }
});
