//! Invariant: whatever the bytes of a volume are, a FAT filesystem on it is opened or refused, listed, and every
//! file read at its beginning, without a panic; the work is bounded by the length of the volume.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vm2k::read_at::ReadAt;

/// Extents that are looked at for each file.
const EXTENTS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let Ok(fs) = vm2k::fs::open(Arc::new(bytes.to_vec())) else {
        return;
    };
    let _ = fs.info();
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
