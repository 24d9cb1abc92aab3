//! Invariant: whatever the text of a plan is, it is read or refused, without a panic; what is read is read again from what
//! it is written as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::plan::document::Document;

fuzz_target!(|text: &str| {
    let Ok(document) = Document::from_yaml(text) else { return };
    let _ = document.left_out(&[]);
    let _ = document.packages();
    let written = document.to_yaml().expect("what was read can be written");
    let again = Document::from_yaml(&written).expect("what was written can be read");
    assert_eq!(written, again.to_yaml().expect("what was read can be written"));
});
