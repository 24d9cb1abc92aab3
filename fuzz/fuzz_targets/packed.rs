//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! Of compressed images: gzip, xz and zstd, by their first bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k_fuzz::read;

fuzz_target!(|data: &[u8]| {
    if let Some(path) = read::file("x.img", data) {
        read::disks(&path);
    }
});
