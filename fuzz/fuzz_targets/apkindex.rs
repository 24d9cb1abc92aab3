//! Invariant: whatever APKINDEX.tar.gz holds, reading it ends without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::repository::apk;

fuzz_target!(|bytes: &[u8]| {
    let _ = apk::index(bytes, &mut |p| assert!(!p.name.contains('\n')));
    for url in apk::repositories(&String::from_utf8_lossy(bytes)) {
        assert!(!url.is_empty() || bytes.contains(&b'/'));
    }
});
