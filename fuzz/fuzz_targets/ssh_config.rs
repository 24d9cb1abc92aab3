//! Invariant: any text is a configuration or an error, without a panic, a deep recursion or a loop; and any word is a host or
//! none, which reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::ssh::Target;
use vm2k::ssh::config::{Place, resolve_text};

fuzz_target!(|text: &str| {
    let (name, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(target) = Target::parse(name) {
        assert_eq!(Target::parse(&target.to_string()).ok().as_ref(), Some(&target));
    }
    // No file of this machine is read.
    let lines = rest.lines().filter(|line| !line.to_ascii_lowercase().contains("include"));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    if let Ok(target) = Target::parse("root@web1") {
        let _ = resolve_text(&target, &text, &Place::here());
    }
});
