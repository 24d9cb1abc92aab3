//! Invariant: whatever the bytes of some disks are, the arrays, volume groups and encrypted volumes on them are put together
//! or refused, and read at some places, without a panic. Checksums are made right first. The passphrase is "x".
#![no_main]

use std::sync::Arc;
use vm2k::read_at::ReadAt;
use vm2k::volume::assemble::{Block, assemble};
use vm2k::volume::{self, Keys, Limits, Secret};
use vm2k_fuzz::sign;

vm2k_fuzz::image_target!(|image| {
    let mut blocks = Vec::new();
    for (n, mut disk) in image.volumes.into_iter().enumerate() {
        sign::member(&mut disk);
        let disk: Arc<dyn ReadAt> = Arc::new(disk);
        blocks.push(Block::of_disk(n, "disk", volume::whole(&disk)));
    }
    let mut keys = Keys::new(vec![Secret::new(b"x".to_vec())], None);
    keys.limits = Limits { memory: 256, passes: 1024, iterations: 1000 };
    let mut buf = [0; 4096];
    for block in assemble(blocks, &keys, |_| false).blocks {
        let data = &block.volume.data;
        for at in [0, data.len() / 3, data.len().saturating_sub(4096)] {
            let _ = data.extent_at(at);
            let len = data.len().saturating_sub(at).min(4096) as usize;
            let _ = data.read_at(at, &mut buf[..len]);
        }
    }
});
