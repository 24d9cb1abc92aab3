//! Invariant: whatever the bytes of a disk are, its partition table is read or refused, without a panic, and every
//! volume lies on the disk. Checksums are made right first.
#![no_main]

use std::sync::Arc;
use vm2k::read_at::ReadAt;
use vm2k::volume;
use vm2k_fuzz::sign;

vm2k_fuzz::image_target!(|image| {
    for mut disk in image.volumes {
        sign::gpt(&mut disk);
        let disk: Arc<dyn ReadAt> = Arc::new(disk);
        if let Ok(table) = volume::table(&disk) {
            for volume in table.volumes {
                assert!(volume.start.checked_add(volume.data.len()).is_some_and(|end| end <= disk.len()));
            }
        }
    }
});
