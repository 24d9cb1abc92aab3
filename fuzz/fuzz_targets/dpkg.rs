//! Invariant: whatever the files of a dpkg database hold, reading it ends without a panic, and a success has packages.
//! The input is cut at bytes 0xff into the files of the database, in the order of FILES.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::pkgdb;
use vm2k::source::{Source, memory::MemorySource};

const FILES: &[&str] = &[
    "/var/lib/dpkg/status",
    "/var/lib/dpkg/info/a.list",
    "/var/lib/dpkg/info/a.md5sums",
    "/var/lib/apt/extended_states",
    "/var/lib/dpkg/diversions",
    "/var/lib/dpkg/statoverride",
    "/var/lib/dpkg/alternatives/a",
    "/var/lib/dpkg/arch",
    "/var/lib/dpkg/updates/0001",
    "/var/lib/dpkg/status.d/a",
];

fuzz_target!(|bytes: &[u8]| {
    let mut source = MemorySource::new("fuzz");
    for (path, content) in FILES.iter().zip(bytes.split(|b| *b == 0xff)) {
        source = source.file(path, content);
    }
    let source = source.build();
    let Ok(listing) = pkgdb::dpkg::read(&source) else {
        return;
    };
    assert!(!listing.packages.is_empty(), "no packages, ok");
    pkgdb::owners(source.tree(), &listing.packages);
    pkgdb::changed_conffiles(&source, &listing.packages).expect("files in memory are readable");
});
