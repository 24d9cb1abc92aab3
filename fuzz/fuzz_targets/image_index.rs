//! Any bytes as an index, a manifest, a config and an image archive: opening them gives an image or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use vm2k::oci::{OpenOptions, Reference};
use vm2k::progress::Silent;
use vm2k::store::{Digest, Store};

static DIR: LazyLock<(tempfile::TempDir, OpenOptions)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory for temporary files");
    let store = Store::open(&dir.path().join("store")).expect("a store in an empty directory");
    std::fs::create_dir_all(dir.path().join("layout/blobs/sha256")).expect("a directory in it");
    (dir, OpenOptions::new(Arc::new(store)))
});

fn open(name: &str, path: &Path) {
    let reference = Reference::parse(&format!("{name}:{}", path.display())).expect("a valid name");
    let _ = vm2k::oci::open(&reference, &DIR.1, &Silent);
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let layout = DIR.0.path().join("layout");
    let archive = DIR.0.path().join("archive.tar");
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).expect("room for a blob");
        format!(r#""digest":"{digest}","size":{}"#, bytes.len())
    };
    let index = |manifest: &str| format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{manifest}}}]}}"#);
    match kind % 5 {
        0 => std::fs::write(layout.join("index.json"), data).expect("room for an index"),
        1 => std::fs::write(layout.join("index.json"), index(&put(data))).expect("room for an index"),
        2 => {
            let manifest = format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{}}},"layers":[]}}"#, put(data));
            std::fs::write(layout.join("index.json"), index(&put(manifest.as_bytes()))).expect("room for an index");
        }
        n => {
            std::fs::write(&archive, data).expect("room for an archive");
            return open(if n == 3 { "oci-archive" } else { "docker-archive" }, &archive);
        }
    }
    open("oci", &layout);
    let _ = std::fs::remove_dir_all(layout.join("blobs/sha256"));
    let _ = std::fs::create_dir_all(layout.join("blobs/sha256"));
});
