//! Invariant: whatever an os-release file holds, it is read without a panic, its keys are names, and a base image is
//! either found or its absence explained. The same bytes are read as a unit of systemd, as passwd and as fstab.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use vm2k::distro::Distros;
use vm2k::inventory::command::redacted;
use vm2k::inventory::os::{Os, assignments};
use vm2k::inventory::unit::{self, Found};
use vm2k::inventory::users;
use vm2k::source::{fstab, memory::MemorySource};

static DISTROS: LazyLock<Distros> = LazyLock::new(|| Distros::load(None).expect("the embedded files"));

fuzz_target!(|bytes: &[u8]| {
    for (key, _) in assignments(bytes) {
        assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    }
    let os = Os::from_os_release(bytes, &DISTROS);
    assert!(!DISTROS.base_for(&os).reason.is_empty());
    let source = MemorySource::new("fuzz")
        .file("/etc/systemd/system/a.service", bytes)
        .file("/etc/passwd", bytes)
        .file("/etc/shadow", bytes)
        .build();
    users::read(&source).expect("files in memory are readable");
    fstab::parse(bytes);
    if let Ok(Found::Unit(unit)) = unit::find(&source, "a.service") {
        for line in unit.list("Service", "ExecStart") {
            let _ = unit::words(line);
            let _ = unit.specifiers(line);
            redacted(line);
        }
    }
});
