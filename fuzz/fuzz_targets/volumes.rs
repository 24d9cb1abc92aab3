//! Invariant: whatever the bytes of a disk are, its partition table is read or refused, without a panic, and every
//! volume lies on the disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vm2k::read_at::ReadAt;
use vm2k::volume;

fuzz_target!(|data: &[u8]| {
    let disk: Arc<dyn ReadAt> = Arc::new(data.to_vec());
    if let Ok(table) = volume::table(&disk) {
        for volume in table.volumes {
            assert!(volume.start.checked_add(volume.data.len()).is_some_and(|end| end <= disk.len()));
        }
    }
});
