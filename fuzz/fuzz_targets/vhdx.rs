//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! Headers and tables are given by the input in small and stand at their places with checksums that are right.
#![no_main]

use libfuzzer_sys::fuzz_target;

fn put(image: &mut [u8], at: usize, data: &[u8]) {
    if let Some(part) = image.get_mut(at..at + data.len()) {
        part.copy_from_slice(data);
    }
}

fn sum(image: &mut [u8], at: usize, len: usize) {
    if let Some(part) = image.get_mut(at..at + len) {
        part[4..8].fill(0);
        let sum = crc32c::crc32c(part);
        part[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let part = |n: usize, len: usize| {
        let part = data.get(n..).unwrap_or_default();
        &part[..part.len().min(len)]
    };
    let mut image = vec![0; 4 << 20];
    put(&mut image, 0, b"vhdxfile");
    put(&mut image, 65536, part(0, 80));
    put(&mut image, 65536, b"head");
    put(&mut image, 196_608, part(80, 96));
    put(&mut image, 196_608, b"regi");
    put(&mut image, 2 << 20, part(176, 256));
    put(&mut image, (2 << 20) + 65536, part(432, 256));
    put(&mut image, 1 << 20, part(688, 8192));
    put(&mut image, 3 << 20, part(8880, 4096));
    sum(&mut image, 65536, 4096);
    sum(&mut image, 196_608, 65536);
    sum(&mut image, 1 << 20, 8192);
    if let Some(path) = vm2k_fuzz::file("x.vhdx", &image) {
        vm2k_fuzz::read(&path);
    }
});
