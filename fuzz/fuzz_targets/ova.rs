//! Invariant: whatever the bytes are, opening and reading them ends, with bytes or an error, and neither panics nor opens
//! another file. What is called a hole reads as zeros, or fails.
//! The first byte says whether the others are a tar, an OVF or the manifest of one.
#![no_main]

use libfuzzer_sys::fuzz_target;

const OVF: &[u8] = b"<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File id=\"f\" href=\"x.ovf\"/>\
    </References><DiskSection><Disk diskId=\"d\" fileRef=\"f\"/></DiskSection><VirtualSystem/></Envelope>";

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let (ovf, manifest) = match kind % 3 {
        0 => {
            if let Some(path) = vm2k_fuzz::file("x.ova", data) {
                vm2k_fuzz::read(&path);
            }
            return;
        }
        1 => (data, &b""[..]),
        _ => (OVF, data),
    };
    if vm2k_fuzz::file("x.mf", manifest).is_some()
        && let Some(path) = vm2k_fuzz::file("x.ovf", ovf)
    {
        vm2k_fuzz::read(&path);
    }
});
