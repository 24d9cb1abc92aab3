//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! The disk and its parent. Checksums are made right first.
#![no_main]

use vm2k_fuzz::read;

vm2k_fuzz::image_target!(|image| {
    let mut image = image;
    image.volumes.iter_mut().for_each(vm2k_fuzz::sign::vhd);
    if let Some(path) = image.write(&["x.vhd", "parent.vhd"]) {
        read::disks(&path);
    }
});
