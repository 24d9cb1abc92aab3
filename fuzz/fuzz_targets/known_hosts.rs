//! Invariant: any bytes are lines of known hosts or are passed over, without a panic or a loop; and a line that is written for
//! a key is found again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use vm2k::ssh::key::PublicKey;
use vm2k::ssh::known_hosts::{KnownHosts, Mark, Verdict, line};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fuzz_target!(|bytes: &[u8]| {
    let Some(key) = PublicKey::parse(KEY) else {
        return;
    };
    let mut known = KnownHosts::default();
    known.add(bytes, Path::new("known_hosts"));
    let _ = known.kinds("web1", Mark::Host);
    if let Verdict::Unknown(_) = known.check("[web1]:2222", Some("web1"), &key) {
        let mut text = bytes.to_vec();
        text.push(b'\n');
        text.extend_from_slice(line("[web1]:2222", &key, true).expect("random bytes").as_bytes());
        let mut known = KnownHosts::default();
        known.add(&text, Path::new("known_hosts"));
        assert!(matches!(known.check("[web1]:2222", None, &key), Verdict::Known(_)));
    }
});
