//! Invariant: whatever an rpm-md repository sends, reading it ends without a panic, and a primary list lies below its
//! repository.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use vm2k::repository::rpm;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(primary) = rpm::repomd(bytes) {
        assert!(!primary.href.contains(".."));
    }
    let _ = rpm::primary(bytes, &mut |p| assert!(!p.name.is_empty()));
    let _ = rpm::mirrors(bytes);
    let variables = BTreeMap::from([("releasever".to_owned(), "9".to_owned())]);
    let text = String::from_utf8_lossy(bytes);
    for yum in rpm::repo_file(&text, &variables) {
        assert!(!yum.urls.is_empty() || !yum.lists.is_empty());
    }
});
