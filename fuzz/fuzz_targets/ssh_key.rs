//! Invariant: any bytes are a key, a certificate or none, without a panic; and no certificate of random bytes holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::ssh::cert::Certificate;
use vm2k::ssh::key::{PublicKey, envelope, fingerprint, short_kind};

fuzz_target!(|bytes: &[u8]| {
    if let Some(certificate) = Certificate::parse(bytes) {
        let _ = certificate.key.line();
        let _ = certificate.check_host("web1", 1_700_000_000);
    }
    let _ = fingerprint(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = envelope(&text);
    if let Some(key) = PublicKey::parse(&text) {
        let _ = key.kind().map(short_kind);
        assert_eq!(PublicKey::parse(&key.line()), Some(key));
    }
});
