//! Golden hashes: the bytes of a layer are part of the contract. They change only with the version of an encoder or with
//! the layer format, and then the change log says so.

use crate::support;
use std::collections::{BTreeMap, HashSet};
use vm2k::diff::Diff;
use vm2k::digest::Digest;
use vm2k::layer::compress::Compression;
use vm2k::layer::{Material, Settings, pack};
use vm2k::path::GuestPath;
use vm2k::plan::{Facts, Plan, make};
use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::memory::MemorySource;
use vm2k::tree::{FileId, Kind, Node, Time, Tree};

fn path(bytes: &[u8]) -> GuestPath {
    GuestPath::new(bytes).unwrap()
}

/// A little of everything that a layer can say.
fn machine() -> MemorySource {
    let node = |kind, ino| Node {
        kind,
        mode: 0o640,
        uid: 1000,
        gid: 3_000_000,
        mtime: Time {
            sec: -86_400,
            nsec: 5,
        },
        id: FileId { fs: 9, ino },
        nlink: 1,
        ..Node::plain_dir()
    };
    let capability = (b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, 4, 10, 0]);
    let linked = Node {
        nlink: 2,
        xattrs: vec![capability, (b"user.note".to_vec(), b"x=\n".to_vec())],
        ..node(Kind::Fifo, 1)
    };
    let mut words = String::new();
    for n in 0..60_000 {
        words.push_str(&format!("{} ", n * 7919 % 10_007));
    }
    MemorySource::new("golden")
        .file("/etc/hosts", "127.0.0.1 localhost\n")
        .file("/etc/empty", "")
        .file("/srv/words", words)
        .file("/srv/zeros", vec![0; 9 << 20])
        .file_at(path(b"/srv/caf\xe9\n"), "not UTF-8")
        .file_at(path(&[b"/srv/".as_slice(), &[b'n'; 180]].concat()), "long")
        .symlink("/etc/mtab", "../proc/self/mounts")
        .entry(path(b"/srv/a"), linked.clone())
        .entry(path(b"/srv/b"), linked)
        .entry(path(b"/srv/tty"), node(Kind::Char { major: 4, minor: 64 }, 2))
        .build()
}

fn plan(machine: &MemorySource) -> Plan {
    let base = Tree::new(vec![(path(b"/etc/gone"), Node::plain_dir())]);
    make(Facts {
        machine: machine.tree(),
        base: &base,
        diff: &Diff::default(),
        left_out: Vec::new(),
        ignored: &|_| false,
        rewritten: BTreeMap::new(),
        owner: &|_| None,
        packages: &[],
        own: &HashSet::new(),
    })
}

#[test]
fn layers_have_the_bytes_they_always_had() {
    let machine = machine();
    let plan = plan(&machine);
    let [layer] = plan.layers.as_slice() else {
        panic!("{:?}", plan.layers);
    };
    let material = Material {
        source: &machine,
        image: machine.tree(),
        rewritten: &plan.rewritten,
    };
    let mut got = BTreeMap::new();
    for how in ["none", "zstd:1", "zstd:3", "gzip:6"] {
        let compression: Compression = how.parse().unwrap();
        for jobs in [1, 3] {
            let settings = Settings {
                compression,
                jobs,
                clamp: None,
            };
            let mut out = Vec::new();
            let packed = pack(material, layer, &settings, &mut out, &Silent).unwrap();
            let blob = Digest::of(&out).to_string();
            if how == "none" {
                assert_eq!(packed.diff_id.to_string(), blob);
            }
            let first = got.entry(how).or_insert_with(|| blob.clone());
            assert_eq!(*first, blob, "{how} with {jobs} threads");
        }
    }
    let golden = support::golden("layers");
    let shown: String = got
        .iter()
        .map(|(how, digest)| format!("{how} {digest}\n"))
        .collect();
    assert_eq!(shown, golden, "the bytes of layers changed");
}
