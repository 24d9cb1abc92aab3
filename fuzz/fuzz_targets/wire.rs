//! Invariant: whatever a host sends, taking it apart ends without a panic, and what is taken apart is within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::agent::wire::{Got, Hello, Item, MAX, Start, decode_jobs, items, read_frame, unpack, walked};

fn block(raw: &[u8]) {
    let _ = walked(raw, |_| Ok(()));
    let _ = decode_jobs(raw);
    let _ = items(raw, |item| {
        if let Item::Data { bytes, at, .. } = item {
            assert_eq!(&raw[at as usize..at as usize + bytes.len()], bytes);
        }
        Ok(())
    });
}

fuzz_target!(|bytes: &[u8]| {
    block(bytes);
    let _ = Hello::decode(bytes);
    let _ = Start::decode(bytes);
    let _ = Got::decode(&mut vm2k::agent::wire::Decoder::new(bytes));
    if let Ok(raw) = unpack(bytes) {
        assert!(raw.len() <= MAX);
        block(&raw);
    }
    let mut from = bytes;
    let mut buf = Vec::new();
    while let Ok(Some(_)) = read_frame(&mut from, &mut buf) {
        assert!(buf.len() <= MAX);
    }
});
