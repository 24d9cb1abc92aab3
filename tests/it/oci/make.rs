//! Small images made by hand, so that every byte of a layer can be chosen.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use vm2k::oci::{self, Image, OpenOptions, Reference};
use vm2k::progress::Silent;
use vm2k::store::{Digest, Store};

/// A tar that is made entry by entry.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

/// What an entry of a [`Tar`] is made of; see [`Tar::add`].
#[derive(Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) link: &'a [u8],
    pub(crate) content: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            path: b"",
            kind: b'0',
            link: b"",
            content: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            pax: Vec::new(),
        }
    }
}

pub(crate) fn pad(bytes: &mut Vec<u8>) {
    let len = bytes.len().div_ceil(512) * 512;
    bytes.resize(len, 0);
}

fn octal(header: &mut [u8], at: usize, len: usize, value: u64) {
    let text = format!("{value:0width$o}\0", width = len - 1);
    header[at..at + len].copy_from_slice(text.as_bytes());
}

/// A ustar header block. Names that do not fit are cut.
pub(crate) fn header(e: &Entry, size: u64) -> [u8; 512] {
    let mut h = [0; 512];
    let cut = |s: &[u8]| s[..s.len().min(100)].to_vec();
    let (path, link) = (cut(e.path), cut(e.link));
    h[..path.len()].copy_from_slice(&path);
    octal(&mut h, 100, 8, e.mode.into());
    octal(&mut h, 108, 8, e.uid & 0o7_777_777);
    octal(&mut h, 116, 8, e.gid & 0o7_777_777);
    octal(&mut h, 124, 12, size);
    octal(&mut h, 136, 12, e.mtime.max(0).cast_unsigned());
    h[156] = e.kind;
    h[157..157 + link.len()].copy_from_slice(&link);
    h[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut h, 329, 8, e.device.0.into());
    octal(&mut h, 337, 8, e.device.1.into());
    seal(&mut h);
    h
}

pub(crate) fn seal(h: &mut [u8; 512]) {
    h[148..156].fill(b' ');
    let sum: u64 = h.iter().map(|b| u64::from(*b)).sum();
    h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = [b" ", key, b"=", value, b"\n"].concat();
    let mut len = body.len() + 1;
    while len.to_string().len() + body.len() != len {
        len = len.to_string().len() + body.len();
    }
    [len.to_string().as_bytes(), &body].concat()
}

impl Tar {
    pub(crate) fn add(mut self, e: Entry) -> Self {
        let mut pax = e.pax.clone();
        if e.path.len() > 100 || !e.path.is_ascii() {
            pax.push((b"path".to_vec(), e.path.to_vec()));
        }
        if e.link.len() > 100 || !e.link.is_ascii() {
            pax.push((b"linkpath".to_vec(), e.link.to_vec()));
        }
        if !pax.is_empty() {
            let body = pax.iter().map(|(k, v)| record(k, v)).collect::<Vec<_>>().concat();
            let x = Entry {
                path: b"PaxHeader",
                kind: b'x',
                ..Entry::default()
            };
            self.0.extend(header(&x, body.len() as u64));
            self.0.extend(body);
            pad(&mut self.0);
        }
        self.0.extend(header(&e, e.content.len() as u64));
        self.0.extend(e.content);
        pad(&mut self.0);
        self
    }
    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.add(Entry {
            path: path.as_bytes(),
            content: content.as_bytes(),
            ..Entry::default()
        })
    }
    pub(crate) fn dir(self, path: &str) -> Self {
        self.add(Entry {
            path: path.as_bytes(),
            kind: b'5',
            mode: 0o755,
            ..Entry::default()
        })
    }
    pub(crate) fn symlink(self, path: &str, to: &str) -> Self {
        self.add(Entry {
            path: path.as_bytes(),
            link: to.as_bytes(),
            kind: b'2',
            mode: 0o777,
            ..Entry::default()
        })
    }
    pub(crate) fn link(self, path: &str, to: &str) -> Self {
        self.add(Entry {
            path: path.as_bytes(),
            link: to.as_bytes(),
            kind: b'1',
            ..Entry::default()
        })
    }
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Zip {
    None,
    Gzip,
    Zstd,
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

impl Zip {
    pub(crate) fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::None => tar.to_vec(),
            Self::Gzip => gzip(tar),
            Self::Zstd => zstd::encode_all(tar, 1).unwrap(),
        }
    }
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// The documents of an image of `layers` (plain tars): config, manifest, and the blobs.
pub(crate) struct Made {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) blobs: Vec<Vec<u8>>,
}

pub(crate) fn make(layers: &[Vec<u8>], zip: Zip, arch: &str) -> Made {
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "created": "2024-01-01T00:00:00Z", "architecture": arch, "os": "linux",
        "config": {"Env": ["PATH=/bin", "A=1"], "Cmd": ["/bin/sh"], "Labels": {"from": "base"}, "Healthcheck": {"Test": ["NONE"]}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": layers.iter().map(|_| serde_json::json!({"created_by": "test"})).collect::<Vec<_>>(),
    }))
    .unwrap();
    let blobs: Vec<Vec<u8>> = layers.iter().map(|l| zip.pack(l)).collect();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": blobs.iter().map(|b| serde_json::json!({"mediaType": zip.media_type(), "digest": Digest::of(b), "size": b.len()})).collect::<Vec<_>>(),
    }))
    .unwrap();
    Made {
        config,
        manifest,
        blobs,
    }
}

pub(crate) fn put_blob(dir: &Path, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest
}

/// Writes a layout with one image, tagged `t`.
pub(crate) fn layout(dir: &Path, layers: &[Vec<u8>], zip: Zip) -> Made {
    let made = make(layers, zip, "amd64");
    for blob in made.blobs.iter().chain([&made.config, &made.manifest]) {
        put_blob(dir, blob);
    }
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&made.manifest),
        "size": made.manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "t"}}]});
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    made
}

pub(crate) fn store(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(&dir.join("store")).unwrap())
}

pub(crate) fn open(reference: &str, store: &Arc<Store>) -> vm2k::error::Result<Image> {
    oci::open(
        &Reference::parse(reference)?,
        &OpenOptions::new(Arc::clone(store)),
        &Silent,
    )
}

/// A random number generator that gives the same numbers each time (xorshift64*).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) % n as u64) as usize
    }
}
