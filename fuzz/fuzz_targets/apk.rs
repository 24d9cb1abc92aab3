//! Invariant: whatever the files of an apk database hold, reading it ends without a panic, and a success has packages.
//! The input is cut at bytes 0xff into the files of the database, in the order of FILES.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::pkgdb;
use vm2k::source::{Source, memory::MemorySource};

const FILES: &[&str] = &[
    "/lib/apk/db/installed",
    "/etc/apk/world",
    "/etc/apk/repositories",
    "/etc/apk/arch",
];

fuzz_target!(|bytes: &[u8]| {
    let mut source = MemorySource::new("fuzz").symlink("/bin/sh", "/bin/busybox");
    for (path, content) in FILES.iter().zip(bytes.split(|b| *b == 0xff)) {
        source = source.file(path, content);
    }
    let source = source.build();
    let Ok(listing) = pkgdb::apk::read(&source) else {
        return;
    };
    assert!(!listing.packages.is_empty(), "no packages, ok");
    let database = pkgdb::Database::named("apk").expect("a row");
    let _ = database.native(&source, &listing.packages);
    pkgdb::owners(source.tree(), &listing.packages);
    pkgdb::changed_conffiles(&source, &listing.packages).expect("files in memory are readable");
});
