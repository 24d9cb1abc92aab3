//! Invariant: whatever the bytes of a volume are, a FAT filesystem on it is opened or refused, listed, and every file read at
//! the beginning of its extents, without a panic; the work is bounded by the length of the volume.
#![no_main]

vm2k_fuzz::image_target!(|image| { vm2k_fuzz::read::filesystem(image.volumes) });
