//! Invariant: whatever a synthesis, a list of mirrors or urpmi.cfg holds, reading it ends without a panic, and every medium
//! has an address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use vm2k::repository::urpmi;

fuzz_target!(|bytes: &[u8]| {
    let _ = urpmi::packed(bytes, &mut |p| assert!(!p.name.is_empty()));
    let _ = urpmi::synthesis(bytes, &mut |p| assert!(!p.name.contains('@')));
    assert!(urpmi::mirrors(bytes).iter().all(|m| m.starts_with("http")));
    let variables = BTreeMap::from([("MIRRORLIST".to_owned(), "http://m/9.list".to_owned())]);
    for medium in urpmi::media(&String::from_utf8_lossy(bytes), &variables) {
        assert!(!medium.urls.is_empty() || !medium.lists.is_empty());
    }
});
