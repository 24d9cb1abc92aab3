//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! The image, its backing file and its data file.
#![no_main]

use vm2k_fuzz::read;

vm2k_fuzz::image_target!(|image| {
    if let Some(path) = image.write(&["x.qcow2", "base", "data"]) {
        read::disks(&path);
    }
});
