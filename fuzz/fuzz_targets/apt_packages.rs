//! Invariant: whatever an apt repository sends, reading it ends without a panic. The input is cut at the first byte 0xff into
//! a Release file and a Packages list; both are also read as files of sources.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::repository::apt;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |b| *b == 0xff);
    let release = parts.next().unwrap_or_default();
    let packages = parts.next().unwrap_or_default();
    if let Ok(release) = apt::release(release) {
        assert!(!release.lists.is_empty());
    }
    let _ = apt::packages(packages, &mut |p| assert!(p.version.len() <= bytes.len() * 3));
    for suite in apt::one_line(&String::from_utf8_lossy(bytes))
        .into_iter()
        .chain(apt::stanzas(bytes))
    {
        assert!(!suite.label().contains('\n'));
    }
});
