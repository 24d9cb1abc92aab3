//! Invariant: whatever a header holds, making a package of it ends without a panic, and a success has a name and a version.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::pkgdb::rpm::{Header, package};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    if let Ok(package) = package(&header, &mut Vec::new()) {
        assert!(!package.name.is_empty() && !package.version.is_empty());
    }
});
