//! Invariant: whatever a bundle of deltas holds, opening and applying it ends without a panic, and what is applied has the
//! size and digest that its index states. An input that begins with `rs` is a bare delta.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vm2k::delta::{Bundle, patch};
use vm2k::digest::Digest;

const LIMIT: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let old = b"the old content, from which a delta copies".to_vec();
    if bytes.starts_with(b"rs") {
        let mut out = Vec::new();
        if let Ok(made) = patch(&old, &bytes.to_vec(), LIMIT, &mut out) {
            assert!(made.size <= LIMIT && made.digest == Digest::of(&out));
        }
        return;
    }
    let Ok(bundle) = Bundle::open(Arc::new(bytes.to_vec())) else {
        return;
    };
    for (path, entry) in bundle.files().filter(|(_, e)| e.new.size <= LIMIT) {
        let mut out = Vec::new();
        if bundle.apply(path, &old, &mut out).is_ok() {
            assert_eq!((out.len() as u64, Digest::of(&out)), (entry.new.size, entry.new.digest));
        }
    }
});
