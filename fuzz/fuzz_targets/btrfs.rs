//! Invariant: whatever the bytes of a volume are, a btrfs on it is opened or refused, listed, and every file read at the
//! beginning of its extents, without a panic; the work is bounded by the length of the volume. Checksums are made right
//! first.
#![no_main]

use vm2k_fuzz::{read, sign};

vm2k_fuzz::image_target!(|image| {
    let mut image = image;
    image.volumes.iter_mut().for_each(sign::btrfs);
    read::filesystem(image.volumes);
});
