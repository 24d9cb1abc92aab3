//! Invariant: whatever the files of an alpm database hold, reading it ends without a panic, and a success has packages.
//! The input is cut at bytes 0xff into the files of one package, in the order of FILES; an mtree need not be packed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::pkgdb;
use vm2k::source::{Source, memory::MemorySource};

const FILES: &[&str] = &["desc", "files", "mtree"];

fuzz_target!(|bytes: &[u8]| {
    let mut source = MemorySource::new("fuzz");
    for (name, content) in FILES.iter().zip(bytes.split(|b| *b == 0xff)) {
        source = source.file(&format!("/var/lib/pacman/local/a-1-1/{name}"), content);
    }
    let source = source.build();
    let Ok(listing) = pkgdb::alpm::read(&source) else {
        return;
    };
    assert!(!listing.packages.is_empty(), "no packages, ok");
    pkgdb::owners(source.tree(), &listing.packages);
    pkgdb::changed_conffiles(&source, &listing.packages).expect("files in memory are readable");
});
