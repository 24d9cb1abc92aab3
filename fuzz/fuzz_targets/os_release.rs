//! Invariant: whatever an os-release file holds, it is read without a panic, its keys are names, and a base image is
//! either found or its absence explained. The same bytes are read as a unit of systemd, as passwd and as fstab.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use vm2k::distro::Distros;
use vm2k::inventory::os::{Os, assignments};
use vm2k::inventory::{self, unit};
use vm2k::source::memory::MemorySource;

static DISTROS: LazyLock<Distros> = LazyLock::new(|| Distros::load(None).expect("the embedded files"));

fuzz_target!(|bytes: &[u8]| {
    for (key, _) in assignments(bytes) {
        assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    }
    let os = Os::from_os_release(bytes, &DISTROS);
    assert!(!DISTROS.base_for(&os).reason.is_empty());
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = unit::words(text);
    }
    let source = MemorySource::new("fuzz")
        .file("/etc/systemd/system/a.service", bytes)
        .file("/etc/passwd", bytes)
        .file("/etc/fstab", bytes)
        .symlink("/etc/systemd/system/multi-user.target.wants/a.service", "../a.service")
        .build();
    let taken = inventory::take(&source, &DISTROS).expect("everything is readable");
    let _ = inventory::default_cmd(&taken);
    let _ = format!("{:?}", inventory::scan_document(&taken, None));
});
