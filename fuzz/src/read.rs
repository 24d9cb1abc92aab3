//! Reading what an input opens as: disks and filesystems.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use vm2k::disk::{self, Gate};
use vm2k::fs::{Filesystem, View};
use vm2k::progress::Silent;
use vm2k::read_at::ReadAt;

/// Extents that are looked at for each file.
const EXTENTS: usize = 64;
/// Bytes that are read of each disk, and of the files of each filesystem.
const BYTES: u64 = 4 << 20;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::Builder::new().prefix("vm2k-fuzz-").tempdir().expect("a directory for temporary files"));

/// A directory of this process.
pub fn dir() -> &'static Path {
    DIR.path()
}

/// Writes `data` into a file called `name` in [`dir`], and gives its path.
pub fn file(name: &str, data: &[u8]) -> Option<PathBuf> {
    let path = dir().join(name);
    std::fs::write(&path, data).ok()?;
    Some(path)
}

/// Opens the image at `path` and reads of it. What is called a hole must read as zeros, or fail.
pub fn disks(path: &Path) {
    let Ok(machine) = disk::open_machine(path, &Gate::default(), &Silent) else { return };
    for attached in machine.disks {
        disk(&*attached.disk.data);
    }
}

/// Reads of a disk. What is called a hole must read as zeros, or fail.
pub fn disk(disk: &dyn ReadAt) {
    let mut buf = vec![0xee; 1 << 16];
    let (mut at, mut bytes) = (0, 0);
    while bytes < BYTES {
        let Ok(extent) = disk.extent_at(at) else { return };
        if extent.len == 0 {
            assert!(at >= disk.len());
            return;
        }
        assert!(extent.len <= disk.len() - at);
        let most = if extent.hole { 4096 } else { buf.len() };
        let n = usize::try_from(extent.len).unwrap_or(usize::MAX).min(most);
        bytes += 4096.max(n as u64);
        if disk.read_at(at, &mut buf[..n]).is_ok() && extent.hole {
            assert!(buf[..n].iter().all(|b| *b == 0));
        }
        at += extent.len;
    }
}

/// Opens the filesystem on `volumes`, lists it, with its subvolumes, and reads every file at the beginning of its extents.
pub fn filesystem(volumes: Vec<crate::Volume>) {
    let volumes: Vec<Arc<dyn ReadAt>> = volumes.into_iter().map(|v| Arc::new(v) as _).collect();
    let Ok(fs) = vm2k::fs::open_several(&volumes) else { return };
    let _ = fs.info();
    list(&*fs);
    for subvolume in fs.subvolumes().into_iter().take(4) {
        let selector = vm2k::fs::Selector::Id(subvolume.id);
        let view = View { subvolume: Some(selector), snapshots: true, without: Vec::new() };
        if let Ok(fs) = fs.view(&view) {
            list(&*fs);
        }
    }
}

fn list(fs: &dyn Filesystem) {
    let Ok(listing) = fs.list() else { return };
    let mut buf = vec![0; 64 << 10];
    let mut bytes = 0;
    for (_, node) in listing.tree.iter().filter(|(_, node)| node.is_file()) {
        let Ok(file) = fs.open(node.id.ino) else { continue };
        let mut at = 0;
        for _ in 0..EXTENTS {
            let Ok(extent) = file.extent_at(at) else { break };
            assert!(extent.len > 0 || at >= file.len(), "an extent without a length");
            let most = if extent.hole { 4096 } else { buf.len() };
            let len = extent.len.min(most as u64) as usize;
            if bytes < BYTES {
                let _ = file.read_at(at, &mut buf[..len]);
            }
            bytes += len as u64;
            at += extent.len;
        }
    }
}
