//! Invariant: whatever an SQLite file and its write-ahead log hold, reading them ends without a panic, and a success has
//! packages. The first two bytes are the length of the log, little-endian, which stands at the end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::pkgdb::rpm::read_bytes;

fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let at = rest.len().saturating_sub(u16::from_le_bytes(*len).into());
    let (file, log) = rest.split_at(at);
    let log = (!log.is_empty()).then(|| log.to_vec());
    if let Ok(listing) = read_bytes("rpmdb.sqlite", file.to_vec(), log) {
        assert!(!listing.packages.is_empty(), "no packages, ok");
    }
});
