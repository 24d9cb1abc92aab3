//! Invariant: whatever a Berkeley DB holds, reading it ends without a panic, and a success has packages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::pkgdb::rpm::read_bytes;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(listing) = read_bytes("Packages", bytes.to_vec(), None) {
        assert!(!listing.packages.is_empty(), "no packages, ok");
    }
});
