//! Invariant: whatever name an image gives a further file, nothing is opened outside the directory of the image, and nothing
//! hidden in it. The first byte says how the rest is named.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustix::fs::inotify;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::LazyLock;
use vm2k::disk::{self, Gate};

/// A directory with images, beside one that is watched; and the watch.
static PLACE: LazyLock<(tempfile::TempDir, rustix::fd::OwnedFd)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory for temporary files");
    let make = || -> std::io::Result<_> {
        let (images, outside) = (dir.path().join("images"), dir.path().join("outside"));
        std::fs::create_dir_all(images.join("sub"))?;
        std::fs::create_dir_all(images.join(".hidden"))?;
        std::fs::create_dir(&outside)?;
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK)?;
        for (n, place) in [&outside, &images.join(".hidden")].into_iter().enumerate() {
            std::fs::write(place.join("canary"), "canary")?;
            inotify::add_watch(&watch, place, inotify::WatchFlags::OPEN)?;
            symlink(place.join("canary"), images.join(format!("link{n}")))?;
        }
        symlink("../outside", images.join("dirlink"))?;
        std::fs::write(images.join("inside"), "inside")?;
        Ok(watch)
    };
    let watch = make().expect("room for some files");
    (dir, watch)
});

fn vmdk(line: &[u8]) -> Vec<u8> {
    [b"# Disk DescriptorFile\nversion=1\nCID=1\n", line].concat()
}

/// A qcow2 image of version 3 with nothing but a backing file, or a data file.
fn qcow2(name: &[u8], data_file: bool) -> Vec<u8> {
    let mut b = vec![0; 2 * 65536];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    for (at, value) in [(20, 16u32), (28, 1 << 20), (36, 1), (44, 65536), (96, 4), (100, 104)] {
        put(at, &value.to_be_bytes());
    }
    let name = &name[..name.len().min(1000)];
    put(104, &0xe279_2aca_u32.to_be_bytes());
    put(108, b"\0\0\0\x03raw");
    if data_file {
        put(104, &0x4441_5441_u32.to_be_bytes());
        put(108, &(name.len() as u32).to_be_bytes());
        put(112, name);
        put(79, &[4]);
    } else {
        put(12, &4096u32.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(4096, name);
    }
    b
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, name)) = data.split_first() else { return };
    let (dir, watch) = &*PLACE;
    let text = String::from_utf8_lossy(name);
    let escaped = text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    let image = match kind % 8 {
        0 => vmdk(&[b"parentCID=ffffffff\nRW 1 FLAT \"", name, b"\" 0\n"].concat()),
        1 => vmdk(&[b"parentCID=ffffffff\nRW 1 SPARSE \"", name, b"\"\n"].concat()),
        2 => vmdk(&[b"parentCID=2\nparentFileNameHint=\"", name, b"\"\nRW 1 ZERO\n"].concat()),
        3 => vmdk(name),
        4 => qcow2(name, false),
        5 => qcow2(name, true),
        _ => format!(
            "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File id=\"f\" href=\"{escaped}\"/>\
             </References><DiskSection><Disk diskId=\"d\" fileRef=\"f\"/></DiskSection><VirtualSystem/></Envelope>"
        )
        .into_bytes(),
    };
    let path = dir.path().join(Path::new("images/image"));
    std::fs::write(&path, image).expect("room for an image");
    if let Ok(disk) = disk::open(&path, &Gate::default()) {
        vm2k_fuzz::read::disk(&*disk.data);
    }
    assert!(rustix::io::read(watch, &mut [0u8; 4096]).is_err(), "a file outside was opened");
});
