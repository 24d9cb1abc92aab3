//! Any bytes as a layer: reading them never panics, never grows without a bound, and what can be read has the hash that the
//! listing says. The bytes are laid over a small layer, so that whiteouts and links to lower layers have something to meet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};
use vm2k::oci::{BlobSource, Image, Layer, Reference};
use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::image::{Contents, ImageOptions, ImageSource};
use vm2k::store::{Digest, Store};

static STORE: LazyLock<(tempfile::TempDir, Arc<Store>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory for temporary files");
    let store = Store::open(dir.path()).expect("a store in an empty directory");
    (dir, Arc::new(store))
});

fn layer(bytes: &[u8]) -> Layer {
    Layer {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        media_type: vm2k::oci::media_type::LAYER.to_owned(),
        diff_id: Digest::of(bytes),
        annotations: Default::default(),
        source: BlobSource::Part(Arc::new(bytes.to_vec()), 0),
    }
}

/// A file `a` with one byte: a ustar header and a block.
fn lower() -> Vec<u8> {
    let mut tar = vec![0u8; 2048];
    tar[0] = b'a';
    tar[100..108].copy_from_slice(b"0000644\0");
    tar[124..136].copy_from_slice(b"00000000001\0");
    tar[156] = b'0';
    tar[257..265].copy_from_slice(b"ustar\x0000");
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|b| u32::from(*b)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar[512] = b'x';
    tar
}

fuzz_target!(|data: &[u8]| {
    let image = Image {
        reference: Reference::parse("oci:fuzz").expect("a valid name"),
        manifest_digest: Digest::of(b""),
        manifest: Vec::new(),
        config_digest: Digest::of(b""),
        config_bytes: Vec::new(),
        config: Default::default(),
        layers: vec![layer(&lower()), layer(data)],
    };
    let options = ImageOptions { cached: false, keep: Contents::All, import: false };
    if let Ok(source) = ImageSource::open(image, Arc::clone(&STORE.1), options, &Silent) {
        for (_, node) in source.tree().iter().filter(|(_, n)| n.is_file() && n.size() < 1 << 20) {
            let content = source.open(node.id).and_then(|c| vm2k::read_at::read_all(&*c, 1 << 20));
            let content = content.expect("a listed file can be read");
            assert_eq!(source.content_hash(node.id), Some(*blake3::hash(&content).as_bytes()));
        }
    }
});
