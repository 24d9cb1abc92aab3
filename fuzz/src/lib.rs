//! What the targets for disk images share.

use std::path::{Path, PathBuf};
use vm2k::disk::{self, Gate};
use vm2k::progress::Silent;
use vm2k::read_at::ReadAt;

/// Writes `data` into a file called `name` in a directory of this process, and gives its path.
pub fn file(name: &str, data: &[u8]) -> Option<PathBuf> {
    let dir = std::env::temp_dir().join(format!("vm2k-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).ok()?;
    let path = dir.join(name);
    std::fs::write(&path, data).ok()?;
    Some(path)
}

/// Opens the image at `path` and reads of it. What is called a hole must read as zeros, or fail.
pub fn read(path: &Path) {
    let Ok(machine) = disk::open_machine(path, &Gate::default(), &Silent) else { return };
    for attached in machine.disks {
        read_disk(&*attached.disk.data);
    }
}

fn read_disk(disk: &dyn ReadAt) {
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
}
