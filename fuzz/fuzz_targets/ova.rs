//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! An archive or a descriptor, the manifest beside it, two disks.
#![no_main]

use vm2k_fuzz::read;

vm2k_fuzz::image_target!(|image| {
    if let Some(path) = image.write(&["x.ovf", "x.mf", "d.vmdk", "e.vmdk"]) {
        read::disks(&path);
    }
});
