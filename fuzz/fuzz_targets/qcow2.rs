//! Invariant: whatever the bytes of an image are, opening and reading it ends, with bytes or an error, and neither
//! panics nor opens another file. What is called a hole reads as zeros, or fails.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::disk::{self, Gate};
use vm2k::read_at::ReadAt;

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("vm2k-fuzz-{}.img", std::process::id()));
    if std::fs::write(&path, data).is_err() {
        return;
    }
    let Ok(disk) = disk::open(&path, &Gate::default()) else { return };
    let disk = disk.data;
    let mut buf = vec![0xee; 1 << 16];
    let mut at = 0;
    for _ in 0..256 {
        let Ok(extent) = disk.extent_at(at) else { return };
        if extent.len == 0 {
            assert!(at >= disk.len());
            return;
        }
        assert!(extent.len <= disk.len() - at);
        let n = usize::try_from(extent.len).unwrap_or(usize::MAX).min(buf.len());
        if disk.read_at(at, &mut buf[..n]).is_ok() && extent.hole {
            assert!(buf[..n].iter().all(|b| *b == 0));
        }
        at += extent.len;
    }
});
