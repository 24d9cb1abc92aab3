//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! Of compressed images: gzip, xz and zstd, by their first bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(path) = vm2k_fuzz::file("x.img", data) {
        vm2k_fuzz::read(&path);
    }
});
