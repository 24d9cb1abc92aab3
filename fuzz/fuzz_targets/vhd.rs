//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! The checksums are made right first, so that what stands behind them is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;

fn sum(data: &mut [u8], from: usize, len: usize, field: usize) {
    if let Some(part) = data.get_mut(from..from + len) {
        part[field..field + 4].fill(0);
        let sum = !part.iter().fold(0u32, |s, b| s.wrapping_add((*b).into()));
        part[field..field + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut data = data.to_vec();
    sum(&mut data, 0, 512, 64);
    sum(&mut data, 512, 1024, 36);
    if let Some(path) = vm2k_fuzz::file("x.vhd", &data) {
        vm2k_fuzz::read(&path);
    }
});
