//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! The first byte says which of a descriptor and the kinds of extents the others are.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let kind = match kind % 4 {
        0 => {
            if let Some(path) = vm2k_fuzz::file("x.vmdk", data) {
                vm2k_fuzz::read(&path);
            }
            return;
        }
        1 => "SPARSE",
        2 => "VMFSSPARSE",
        _ => "SESPARSE",
    };
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 2048 {kind} \"extent\"\n"
    );
    if vm2k_fuzz::file("extent", data).is_some()
        && let Some(path) = vm2k_fuzz::file("d.vmdk", text.as_bytes())
    {
        vm2k_fuzz::read(&path);
    }
});
