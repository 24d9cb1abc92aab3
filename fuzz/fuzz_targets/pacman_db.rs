//! Invariant: whatever a database or a configuration of pacman holds, reading it ends without a panic, and every repository
//! has a server.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::repository::pacman;

fuzz_target!(|bytes: &[u8]| {
    let _ = pacman::database(bytes, &mut |p| assert!(!p.name.contains('\n')));
    let text = String::from_utf8_lossy(bytes).into_owned();
    let again = |name: &str| vec![(name.to_owned(), text.clone())];
    for (_, repository) in pacman::conf("/etc/pacman.conf", &text, &again) {
        assert!(!repository.servers.is_empty());
        let _ = pacman::without(&text, &[repository.name]);
    }
});
