//! Layers laid over each other, compared with what umoci unpacks.

use super::make::*;
use crate::support;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use vm2k::error::Error;
use vm2k::oci::{BlobSource, Image, Layer, Reference};
use vm2k::path::GuestPath;
use vm2k::progress::Silent;
use vm2k::read_at::read_all;
use vm2k::source::Source;
use vm2k::source::image::{Contents, ImageOptions, ImageSource};
use vm2k::store::{Digest, Store};
use vm2k::tree::Kind;

fn p(s: &str) -> GuestPath {
    GuestPath::new(s.as_bytes()).unwrap()
}

fn source(dir: &Path, options: ImageOptions) -> vm2k::error::Result<ImageSource> {
    let store = store(dir);
    let image = open(&format!("oci:{}/l", dir.display()), &store)?;
    ImageSource::open(image, store, options, &Silent)
}

fn flatten(layers: &[Vec<u8>], zip: Zip) -> vm2k::error::Result<(tempfile::TempDir, ImageSource)> {
    let dir = tempfile::tempdir().unwrap();
    layout(&dir.path().join("l"), layers, zip);
    let source = source(dir.path(), ImageOptions::default())?;
    Ok((dir, source))
}

/// One line a file with every field that both sides know; hard links are told by their first path.
fn lines(source: &ImageSource) -> BTreeMap<Vec<u8>, String> {
    let mut first: BTreeMap<vm2k::tree::FileId, Vec<u8>> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for (path, node) in source.tree().iter() {
        if path.is_root() {
            continue;
        }
        let what = match &node.kind {
            Kind::Symlink { target } => format!("{}", target.escape_ascii()),
            Kind::Block { major, minor } | Kind::Char { major, minor } => format!("{major},{minor}"),
            Kind::File { size } => {
                let content = source.open(node.id).unwrap();
                assert_eq!(content.len(), *size);
                let mut hasher = blake3::Hasher::new();
                hasher
                    .update_reader(vm2k::read_at::Stream::new(&*content))
                    .unwrap();
                let hash = hasher.finalize();
                assert_eq!(source.content_hash(node.id), Some(*hash.as_bytes()), "{path}");
                hash.to_hex().to_string()
            }
            _ => String::new(),
        };
        let link = if node.is_dir() {
            Vec::new()
        } else {
            first
                .entry(node.id)
                .or_insert_with(|| path.as_bytes().to_vec())
                .clone()
        };
        let nlink = if node.is_dir() { 0 } else { node.nlink };
        out.insert(
            path.as_bytes().to_vec(),
            format!(
                "{} {:o} {}:{} {} {}.{:09} {nlink} {} {what} {:?}",
                node.kind.letter(),
                node.mode,
                node.uid,
                node.gid,
                node.size(),
                node.mtime.sec,
                node.mtime.nsec,
                link.escape_ascii(),
                node.xattrs
                    .iter()
                    .map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii()))
                    .collect::<Vec<_>>(),
            ),
        );
    }
    out
}

/// The same of a directory of the host.
fn host_lines(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut paths = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for path in paths {
        let meta = path.symlink_metadata().unwrap();
        let guest = path.as_os_str().as_bytes()[root.as_os_str().len()..].to_vec();
        let kind = meta.file_type();
        let device = || {
            format!(
                "{},{}",
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev())
            )
        };
        let (letter, what) = if kind.is_dir() {
            ('d', String::new())
        } else if kind.is_symlink() {
            (
                'l',
                path.read_link()
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .escape_ascii()
                    .to_string(),
            )
        } else if kind.is_block_device() {
            ('b', device())
        } else if kind.is_char_device() {
            ('c', device())
        } else if kind.is_fifo() {
            ('p', String::new())
        } else {
            (
                'f',
                blake3::hash(&std::fs::read(&path).unwrap()).to_hex().to_string(),
            )
        };
        let link = if kind.is_dir() {
            Vec::new()
        } else {
            first.entry(meta.ino()).or_insert_with(|| guest.clone()).clone()
        };
        let size = if letter == 'f' { meta.size() } else { 0 };
        let nlink = if kind.is_dir() { 0 } else { meta.nlink() };
        let mut names = vec![0u8; 65_536];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        let mut xattrs: Vec<String> = names[..len]
            .split(|b| *b == 0)
            .filter(|n| !n.is_empty() && *n != b"security.selinux")
            .map(|name| {
                let mut value = vec![0u8; 65_536];
                let n = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
                format!("{}={}", name.escape_ascii(), value[..n].escape_ascii())
            })
            .collect();
        xattrs.sort();
        out.insert(
            guest,
            format!(
                "{letter} {:o} {}:{} {size} {}.{:09} {nlink} {} {what} {xattrs:?}",
                meta.mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                link.escape_ascii()
            ),
        );
    }
    out
}

fn assert_same(ours: &BTreeMap<Vec<u8>, String>, theirs: &BTreeMap<Vec<u8>, String>, what: &str) {
    let mut differences = Vec::new();
    for key in ours.keys().chain(theirs.keys()) {
        if ours.get(key) != theirs.get(key) {
            differences.push(format!(
                "{}\n  ours   {:?}\n  theirs {:?}",
                key.escape_ascii(),
                ours.get(key),
                theirs.get(key)
            ));
        }
    }
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

fn umoci(dir: &Path) -> BTreeMap<Vec<u8>, String> {
    let bundle = dir.join("bundle");
    support::run(
        Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}/l:t", dir.display()))
            .arg(&bundle),
    );
    host_lines(&bundle.join("rootfs"))
}

fn capability() -> Vec<u8> {
    // VFS_CAP_REVISION_2, cap_net_raw effective and permitted.
    let mut bytes = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
    bytes.resize(20, 0);
    bytes
}

#[test]
fn crafted_layers_as_umoci_unpacks_them() {
    if !support::tools("crafted_layers", &["umoci"]) || !support::root("crafted_layers") {
        return;
    }
    let long = "d/".to_owned() + &"long-name-".repeat(20);
    let lower = Tar::default()
        .dir("./")
        .dir("etc/")
        .file("etc/a", "lower a")
        .file("etc/b", "lower b")
        .dir("gone/")
        .dir("gone/deep/")
        .file("gone/deep/x", "x")
        .dir("opaque/")
        .file("opaque/hidden", "h")
        .dir("opaque/sub/")
        .file("opaque/sub/hidden", "h")
        .dir("to-file/")
        .file("to-file/x", "x")
        .file("to-dir", "file")
        .file("to-link", "file")
        .symlink("link-to-dir", "etc")
        .dir("d/")
        .file(&long, "long")
        .file("one", "linked")
        .link("two", "one")
        .link("d/three", "./two")
        .symlink("sym", "/absolute/../target")
        .add(Entry {
            path: b"dev-c",
            kind: b'3',
            device: (1, 3),
            mode: 0o666,
            ..Entry::default()
        })
        .add(Entry {
            path: b"dev-b",
            kind: b'4',
            device: (7, 300),
            mode: 0o660,
            ..Entry::default()
        })
        .add(Entry {
            path: b"fifo",
            kind: b'6',
            mode: 0o600,
            ..Entry::default()
        })
        .add(Entry {
            path: b"not-utf8-\xff\xfe",
            content: b"bytes",
            ..Entry::default()
        })
        .add(Entry {
            path: b"setuid",
            mode: 0o4755,
            uid: 1000,
            gid: 2_000,
            ..Entry::default()
        })
        .add(Entry {
            path: b"big-ids",
            pax: vec![
                (b"uid".into(), b"3000000".into()),
                (b"gid".into(), b"4000000".into()),
            ],
            ..Entry::default()
        })
        .add(Entry {
            path: b"time",
            pax: vec![(b"mtime".into(), b"1234567890.987654321".into())],
            ..Entry::default()
        })
        .add(Entry {
            path: b"old",
            pax: vec![(b"mtime".into(), b"-100.5".into())],
            ..Entry::default()
        })
        .add(Entry {
            path: b"attributes",
            pax: vec![
                (b"SCHILY.xattr.user.line".into(), b"a\nb=c\n\0d".into()),
                (b"SCHILY.xattr.security.capability".into(), capability()),
            ],
            ..Entry::default()
        })
        .end();
    let upper = Tar::default()
        .file(".wh.gone", "")
        .dir("opaque/")
        .file("opaque/new", "n")
        .file("opaque/.wh..wh..opq", "")
        .file("etc/.wh.a", "")
        .file("etc/b", "upper b")
        .file("to-file", "now a file")
        .dir("to-dir/")
        .file("to-dir/x", "x")
        .symlink("to-link", "etc/b")
        .file("link-to-dir", "now a file")
        .file("one", "new one")
        .add(Entry {
            path: b"etc",
            kind: b'5',
            mode: 0o700,
            uid: 5,
            gid: 6,
            mtime: 1_600_000_000,
            ..Entry::default()
        })
        .end();
    let top = Tar::default()
        .file("d/.wh.three", "")
        .dir("gone/")
        .file("gone/again", "back")
        .end();
    let (dir, source) = flatten(&[lower, upper, top], Zip::Gzip).unwrap();
    assert_same(&lines(&source), &umoci(dir.path()), "crafted");
    assert_eq!(source.layer_of(&p("/etc/b")), Some(1));
    assert_eq!(source.layer_of(&p("/two")), Some(0));
    assert_eq!(source.layer_of(&p("/gone/again")), Some(2));
    assert_eq!(source.layer_of(&p("/nothing")), None);
}

/// An image of blobs in memory; the diffIDs are those of `tars`.
fn in_memory(blobs: &[Vec<u8>], tars: &[Vec<u8>]) -> Image {
    let layer = |blob: &Vec<u8>, tar: &Vec<u8>| Layer {
        digest: Digest::of(blob),
        size: blob.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        diff_id: Digest::of(tar),
        annotations: BTreeMap::new(),
        source: BlobSource::Part(Arc::new(blob.clone()), 0),
    };
    Image {
        reference: Reference::parse("oci:memory").unwrap(),
        manifest_digest: Digest::of(b""),
        manifest: Vec::new(),
        config_digest: Digest::of(b""),
        config_bytes: Vec::new(),
        config: Default::default(),
        layers: blobs.iter().zip(tars).map(|(b, t)| layer(b, t)).collect(),
    }
}

fn open_memory(store: &Arc<Store>, blobs: &[Vec<u8>], tars: &[Vec<u8>]) -> vm2k::error::Result<ImageSource> {
    let options = ImageOptions {
        cached: false,
        keep: Contents::All,
        import: false,
    };
    ImageSource::open(in_memory(blobs, tars), Arc::clone(store), options, &Silent)
}

fn one(store: &Arc<Store>, tar: Vec<u8>) -> vm2k::error::Result<ImageSource> {
    open_memory(store, std::slice::from_ref(&tar), std::slice::from_ref(&tar))
}

fn names(source: &ImageSource) -> Vec<String> {
    source.tree().iter().skip(1).map(|(p, _)| p.to_string()).collect()
}

#[test]
fn every_compression_gives_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let tar = Tar::default()
        .dir("a/")
        .file("a/b", &"text ".repeat(50_000))
        .file("c", "")
        .end();
    let (front, back) = tar.split_at(70_000);
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let z = |b: &[u8]| zstd::encode_all(b, 3).unwrap();
    let packed = [
        tar.clone(),
        gzip(&tar),
        [gzip(front), gzip(back), gzip(b"")].concat(),
        z(&tar),
        [z(front), skippable.clone(), z(back), skippable.clone()].concat(),
        [skippable, z(&tar)].concat(),
    ];
    let want = lines(&one(&store, tar.clone()).unwrap());
    assert_eq!(want.len(), 3);
    for blob in packed {
        let source = open_memory(&store, &[blob], std::slice::from_ref(&tar)).unwrap();
        assert_eq!(lines(&source), want);
    }
    let xz = [&[0xfd][..], b"7zXZ\0"].concat();
    let refused = open_memory(&store, &[xz], &[tar]).err().unwrap();
    assert!(matches!(refused, Error::Unsupported { .. }));
}

#[test]
fn what_gnu_tar_writes() {
    if !support::tools("what_gnu_tar_writes", &["tar", "setfattr"]) || !support::root("what_gnu_tar_writes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let tree = dir.path().join("tree");
    support::bash(
        r#"mkdir -p "$1/deep"; cd "$1"
        long=$(printf 'name%.0s' $(seq 50)); mkdir -p "deep/$long/$long"; echo x > "deep/$long/$long/$long"
        ln -s "deep/$long/$long/$long" link; ln "deep/$long/$long/$long" hard
        truncate -s 1200M sparse; for i in $(seq 0 40); do printf data | dd of=sparse bs=1 seek=$((i * 29000000)) conv=notrunc status=none; done
        truncate -s 10M all-hole; truncate -s 5M tail; echo head | dd of=tail conv=notrunc status=none
        chown 3000000:4000000 hard; mknod null c 1 3; mkfifo fifo; touch -d @-5 old; touch -d '2200-01-01' future
        setfattr -n user.a -v 'line
two' tail; printf 'x' > "$(printf 'bytes-\377')"; chmod 4711 old"#,
        &[&tree],
    );
    let whole = host_lines(&tree);
    let seconds: BTreeMap<_, _> = whole
        .iter()
        .map(|(k, v)| (k.clone(), without_ns_and_xattrs(v)))
        .collect();
    let posix = "--format=posix --xattrs --pax-option=delete=atime,delete=ctime";
    for (options, fine) in [
        (posix.to_owned(), true),
        (format!("{posix} -S --sparse-version=0.0"), true),
        (format!("{posix} -S --sparse-version=0.1"), true),
        (format!("{posix} -S --sparse-version=1.0"), true),
        ("--format=gnu".to_owned(), false),
        ("--format=gnu -S".to_owned(), false),
    ] {
        let out = support::bash(
            &format!(
                "tar -C \"$1\" --numeric-owner {options} -cf - . | zstd -1 -c > \"$2\"; zstd -dc \"$2\" | sha256sum"
            ),
            &[&tree, &dir.path().join("l.zst")],
        );
        let blob = std::fs::read(dir.path().join("l.zst")).unwrap();
        let mut image = in_memory(&[blob], &[Vec::new()]);
        let hex = String::from_utf8(out.stdout).unwrap();
        image.layers[0].diff_id = Digest::parse(&format!("sha256:{}", &hex[..64])).unwrap();
        let source = ImageSource::open(image, Arc::clone(&store), ImageOptions::default(), &Silent).unwrap();
        let (_, sparse) = source.tree().find("/sparse").unwrap();
        let extent = source.open(sparse.id).unwrap().extent_at(1 << 20).unwrap();
        assert!(extent.hole && extent.len > 1 << 20, "{options}: {extent:?}");
        let ours = lines(&source);
        if fine {
            assert_same(&ours, &whole, &options);
        } else {
            let ours = ours
                .iter()
                .map(|(k, v)| (k.clone(), without_ns_and_xattrs(v)))
                .collect();
            assert_same(&ours, &seconds, &options);
        }
    }
}

fn without_ns_and_xattrs(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    words[4] = words[4].split('.').next().unwrap().to_owned();
    let end = words.iter().position(|w| w.starts_with('[')).unwrap();
    words[..end].join(" ")
}

#[test]
fn gnu_long_names_and_base_256() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let long = "n/".repeat(120) + "name";
    let mut bytes = Vec::new();
    for (kind, content) in [
        (b'L', format!("{long}\0")),
        (b'K', format!("{}\0", "t".repeat(300))),
    ] {
        let e = Entry {
            path: b"././@LongLink",
            kind,
            content: content.as_bytes(),
            ..Entry::default()
        };
        bytes = Tar(bytes).add(e).0;
    }
    let mut head = header(
        &Entry {
            path: b"cut",
            kind: b'2',
            link: b"cut",
            ..Entry::default()
        },
        0,
    );
    head[108] = 0x80;
    head[109..116].copy_from_slice(&3_000_000_000u64.to_be_bytes()[1..]);
    head[136..148].copy_from_slice(
        &[
            [0xff; 4],
            (-5i64).to_be_bytes()[..4].try_into().unwrap(),
            (-5i64).to_be_bytes()[4..].try_into().unwrap(),
        ]
        .concat(),
    );
    seal(&mut head);
    let source = one(&store, Tar(bytes).raw(&head).end()).unwrap();
    let (_, node) = source.tree().iter().last().unwrap();
    assert_eq!(names(&source).last().unwrap(), &format!("/{long}"));
    assert_eq!(
        node.kind,
        Kind::Symlink {
            target: "t".repeat(300).into_bytes()
        }
    );
    assert_eq!((node.uid, node.mtime.sec), (3_000_000_000, -5));
}

#[test]
fn what_a_layer_may_not_say() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let t = Tar::default;
    let corrupt = [
        ("a whiteout of nothing", t().file("a/.wh.", "").end()),
        ("a whiteout of ..", t().file("a/.wh...", "").end()),
        ("a link to nothing", t().link("a", "b").end()),
        ("a link to a later file", t().link("a", "b").file("b", "").end()),
        ("a link to a directory", t().dir("b/").link("a", "b").end()),
        ("a path upwards", t().file("a/../../b", "").end()),
        ("a link upwards", t().file("b", "").link("a", "../b").end()),
        ("a file below a file", t().file("a", "").file("a/b", "").end()),
        (
            "a loop",
            t().symlink("a", "b").symlink("b", "a").file("a/x", "").end(),
        ),
        ("the root a file", t().file("/", "").end()),
        (
            "a wrong checksum",
            t().raw(&{
                let mut h = header(
                    &Entry {
                        path: b"x",
                        ..Entry::default()
                    },
                    0,
                );
                h[0] = b'y';
                h
            })
            .end(),
        ),
        ("cut in a header", t().file("a", "b").0[..700].to_vec()),
        ("cut in the content", t().file("a", "b").0[..513].to_vec()),
        (
            "a lone block of zeros",
            t().file("a", "").raw(&[0; 512]).file("b", "").end(),
        ),
        (
            "an extension of nothing",
            t().add(Entry {
                path: b"x",
                kind: b'x',
                ..Entry::default()
            })
            .end(),
        ),
        (
            "broken records",
            t().add(Entry {
                path: b"x",
                kind: b'x',
                content: b"99 a=b\n",
                ..Entry::default()
            })
            .file("a", "")
            .end(),
        ),
        (
            "an owner below 0",
            t().add(Entry {
                path: b"x",
                pax: vec![(b"uid".into(), b"-1".into())],
                ..Entry::default()
            })
            .end(),
        ),
        (
            "an owner above 2^32",
            t().add(Entry {
                path: b"x",
                pax: vec![(b"uid".into(), b"4294967296".into())],
                ..Entry::default()
            })
            .end(),
        ),
        (
            "a NUL",
            t().add(Entry {
                path: b"x",
                pax: vec![(b"path".into(), b"a\0b".into())],
                ..Entry::default()
            })
            .end(),
        ),
        (
            "a long extension",
            t().raw(&header(
                &Entry {
                    path: b"x",
                    kind: b'x',
                    ..Entry::default()
                },
                2 << 20,
            ))
            .raw(&vec![0; 2 << 20])
            .end(),
        ),
        (
            "a huge size",
            t().add(Entry {
                path: b"x",
                pax: vec![(b"size".into(), b"9223372036854775807".into())],
                ..Entry::default()
            })
            .end(),
        ),
    ];
    for (what, tar) in corrupt {
        let e = one(&store, tar)
            .err()
            .unwrap_or_else(|| panic!("{what} was taken"));
        assert!(matches!(e, Error::Corrupt { .. }), "{what}: {e:?}");
    }
    let unsupported = [
        (
            "a volume label",
            t().add(Entry {
                path: b"x",
                kind: b'V',
                ..Entry::default()
            })
            .end(),
        ),
        ("depth", t().file(&("d/".repeat(600) + "x"), "").end()),
        (
            "another sparse format",
            t().add(Entry {
                path: b"x",
                pax: vec![(b"GNU.sparse.major".into(), b"2".into())],
                ..Entry::default()
            })
            .end(),
        ),
        (
            "a hole of 8 EiB",
            t().add(Entry {
                path: b"x",
                kind: b'0',
                pax: vec![
                    (b"GNU.sparse.major".into(), b"0".into()),
                    (b"GNU.sparse.minor".into(), b"1".into()),
                    (b"GNU.sparse.size".into(), b"9000000000000000000".into()),
                    (b"GNU.sparse.map".into(), b"8999999999999999990,0".into()),
                ],
                ..Entry::default()
            })
            .end(),
        ),
    ];
    for (what, tar) in unsupported {
        let e = one(&store, tar)
            .err()
            .unwrap_or_else(|| panic!("{what} was taken"));
        assert!(matches!(e, Error::Unsupported { .. }), "{what}: {e:?}");
    }
}

#[test]
fn symlinks_inside_a_layer_are_followed_and_those_below_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let lower = Tar::default()
        .dir("usr/lib/")
        .file("usr/lib/old", "")
        .symlink("lib", "usr/lib")
        .end();
    let same = Tar::default()
        .dir("usr/")
        .dir("usr/bin/")
        .symlink("bin", "/usr/bin")
        .file("bin/x", "")
        .link("bin/y", "bin/x")
        .end();
    let over = Tar::default().file("lib/new", "").end();
    let all = [lower, same, over];
    let source = open_memory(&store, &all, &all).unwrap();
    assert_eq!(
        names(&source),
        [
            "/bin",
            "/lib",
            "/lib/new",
            "/usr",
            "/usr/bin",
            "/usr/bin/x",
            "/usr/bin/y",
            "/usr/lib",
            "/usr/lib/old"
        ]
    );
    assert_eq!(source.tree().get(&p("/usr/bin/y")).unwrap().nlink, 2);
    assert_eq!(source.layer_of(&p("/lib")), None);
}

#[test]
fn a_base_that_was_read_once_is_not_unpacked_again() {
    let dir = tempfile::tempdir().unwrap();
    let made = layout(
        &dir.path().join("l"),
        &[Tar::default().file("a", "content").end()],
        Zip::Gzip,
    );
    let first = source(dir.path(), ImageOptions::default()).unwrap();
    let blob = dir
        .path()
        .join("l/blobs/sha256")
        .join(Digest::of(&made.blobs[0]).hex());
    let away = dir.path().join("away");
    std::fs::rename(&blob, &away).unwrap();
    let second = source(dir.path(), ImageOptions::default()).unwrap();
    assert_eq!(first.tree(), second.tree());
    let id = second.tree().get(&p("/a")).unwrap().id;
    assert_eq!(
        second.content_hash(id),
        Some(*blake3::hash(b"content").as_bytes())
    );
    assert!(second.open(id).is_err());
    assert!(
        source(
            dir.path(),
            ImageOptions {
                cached: false,
                ..ImageOptions::default()
            }
        )
        .is_err()
    );
    std::fs::rename(&away, &blob).unwrap();
    assert_eq!(read_all(&*second.open(id).unwrap(), 100).unwrap(), b"content");
}

#[test]
fn wrong_bytes_are_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::default().file("a", "content").end();
    for zip in [Zip::None, Zip::Gzip, Zip::Zstd] {
        let l = dir.path().join(format!("{zip:?}/l"));
        let made = layout(&l, std::slice::from_ref(&tar), zip);
        let blob = l.join("blobs/sha256").join(Digest::of(&made.blobs[0]).hex());
        let good = std::fs::read(&blob).unwrap();
        for bad in [&good[..good.len() - 1], &[&good[..], b"\0"].concat(), &{
            let mut b = good.clone();
            let m = b.len() / 2;
            b[m] ^= 1;
            b
        }] {
            std::fs::write(&blob, bad).unwrap();
            let e = source(
                l.parent().unwrap(),
                ImageOptions {
                    cached: false,
                    keep: Contents::None,
                    import: false,
                },
            )
            .err()
            .unwrap();
            assert!(
                matches!(&e, Error::Corrupt { what, .. } if what.contains("blob sha256:")),
                "{e}"
            );
        }
        std::fs::write(&blob, &good).unwrap();
    }
    let store = store(dir.path());
    let e = open_memory(&store, &[tar], &[Tar::default().end()])
        .err()
        .unwrap();
    assert!(
        matches!(&e, Error::Corrupt { what, .. } if what.contains("the config says")),
        "{e}"
    );
}

/// A random tree: path -> (type, content or mode seed). Directories hold what is below them.
type Model = BTreeMap<String, (u8, u64)>;

fn random_tree(rng: &mut Rng, from: Option<&Model>) -> Model {
    let mut tree = from.cloned().unwrap_or_default();
    for _ in 0..rng.below(12) {
        let depth = 1 + rng.below(3);
        let parts: Vec<String> = (0..depth)
            .map(|_| ["a", "b", "c", "d-", "e f"][rng.below(5)].to_owned())
            .collect();
        for upto in 1..depth {
            let dir = parts[..upto].join("/");
            if tree.get(&dir).is_none_or(|(kind, _)| *kind != b'd') {
                tree.retain(|p, _| !p.starts_with(&format!("{dir}/")));
                tree.insert(dir, (b'd', rng.next()));
            }
        }
        let path = parts.join("/");
        let below = format!("{path}/");
        if rng.below(3) == 0 {
            tree.remove(&path);
            tree.retain(|p, _| !p.starts_with(&below));
            continue;
        }
        let kind = *[b'd', b'f', b'f', b'l', b'p'].get(rng.below(5)).unwrap();
        if kind != b'd' {
            tree.retain(|p, _| !p.starts_with(&below));
        }
        tree.insert(path, (kind, rng.next()));
    }
    tree
}

fn entry_of(tar: Tar, path: &str, (kind, seed): (u8, u64)) -> Tar {
    let content = format!("{seed:x}").repeat(seed as usize % 50);
    let name = if kind == b'd' {
        format!("{path}/")
    } else {
        path.to_owned()
    };
    tar.add(Entry {
        path: name.as_bytes(),
        kind: match kind {
            b'd' => b'5',
            b'f' => b'0',
            b'l' => b'2',
            _ => b'6',
        },
        link: if kind == b'l' { b"somewhere" } else { b"" },
        content: if kind == b'f' { content.as_bytes() } else { b"" },
        mode: if kind == b'l' {
            0o777
        } else {
            0o700 | (seed as u32 & 0o77)
        },
        mtime: (seed % 1_000_000_000) as i64,
        ..Entry::default()
    })
}

#[test]
fn random_pairs_of_trees_as_umoci_unpacks_them() {
    if !support::tools("random_pairs", &["umoci"]) || !support::root("random_pairs") {
        return;
    }
    let mut rng = Rng(0x5eed);
    for round in 0..200 {
        let lower = random_tree(&mut rng, None);
        let upper = random_tree(&mut rng, Some(&lower));
        let mut first = Tar::default();
        for (path, what) in &lower {
            first = entry_of(first, path, *what);
        }
        let mut second = Tar::default();
        let opaque = rng.below(4) == 0;
        if opaque {
            second = second.file(".wh..wh..opq", "");
        }
        for path in lower.keys().filter(|p| !upper.contains_key(*p)) {
            let parent_stays = path
                .rsplit_once('/')
                .is_none_or(|(d, _)| upper.get(d).is_some_and(|u| u.0 == b'd'));
            if parent_stays && !opaque {
                let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
                second = second.file(&format!("{dir}/.wh.{name}"), "");
            }
        }
        for (path, what) in &upper {
            if opaque || lower.get(path) != Some(what) {
                second = entry_of(second, path, *what);
            }
        }
        let (dir, source) = flatten(&[first.end(), second.end()], Zip::Gzip).unwrap();
        let ours = lines(&source);
        let want: Vec<Vec<u8>> = upper.keys().map(|p| format!("/{p}").into_bytes()).collect();
        let mut got: Vec<Vec<u8>> = ours.keys().cloned().collect();
        got.sort_by_key(|p| want.iter().position(|w| w == p));
        assert_eq!(got, want, "round {round}");
        assert_same(&ours, &umoci(dir.path()), &format!("round {round}"));
    }
}

#[test]
fn mutated_layers_are_refused_or_read_and_never_worse() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut map = b"2\n0\n5\n100\n5\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"0123456789");
    let seed = Tar::default()
        .dir("a/")
        .file("a/file", &"content ".repeat(40))
        .link("a/link", "a/file")
        .symlink("s", "a")
        .file("s/through", "x")
        .file("a/.wh.x", "")
        .file("b/.wh..wh..opq", "")
        .add(Entry {
            path: "l/".repeat(80).as_bytes(),
            kind: b'5',
            ..Entry::default()
        })
        .add(Entry {
            path: b"sparse",
            content: &map,
            pax: vec![
                (b"GNU.sparse.major".into(), b"1".into()),
                (b"GNU.sparse.minor".into(), b"0".into()),
                (b"GNU.sparse.realsize".into(), b"200".into()),
                (b"SCHILY.xattr.user.a".into(), b"v".into()),
                (b"mtime".into(), b"1.5".into()),
            ],
            ..Entry::default()
        })
        .end();
    one(&store, seed.clone()).unwrap();
    let mut rng = Rng(42);
    let mut read = 0;
    let mut slowest = std::time::Duration::ZERO;
    for zip in [Zip::None, Zip::Gzip, Zip::Zstd] {
        let packed = zip.pack(&seed);
        for round in 0..2_000 {
            let mut bytes = packed.clone();
            for _ in 0..=rng.below(4) {
                let at = rng.below(bytes.len());
                match rng.below(6) {
                    0 => bytes[at] ^= 1 << rng.below(8),
                    1 => bytes[at] = rng.next() as u8,
                    2 => bytes[at] = b"0123456789\0/.\xff\x80"[rng.below(15)],
                    3 => bytes.truncate(at.max(1)),
                    4 => {
                        let piece = bytes[at..(at + rng.below(600)).min(bytes.len())].to_vec();
                        bytes.splice(at..at, piece);
                    }
                    _ => {
                        let end = (at + rng.below(600)).min(bytes.len());
                        bytes[at..end].fill(0);
                    }
                }
            }
            // Most damage ends at the checksum of a header; make it right again so that what is behind it is reached.
            if zip == Zip::None && round % 4 != 0 {
                for block in bytes.as_chunks_mut::<512>().0 {
                    if block[257..262] == *b"ustar" {
                        seal(block);
                    }
                }
            }
            let start = std::time::Instant::now();
            let plain = match zip {
                Zip::None => bytes.clone(),
                _ => seed.clone(),
            };
            if let Ok(source) = open_memory(&store, &[bytes], &[plain]) {
                read += 1;
                for (_, node) in source
                    .tree()
                    .iter()
                    .filter(|(_, n)| n.is_file() && n.size() < 1 << 20)
                {
                    let content = read_all(&*source.open(node.id).unwrap(), 1 << 20).unwrap();
                    assert_eq!(
                        source.content_hash(node.id),
                        Some(*blake3::hash(&content).as_bytes())
                    );
                }
            }
            slowest = slowest.max(start.elapsed());
        }
    }
    assert!(read > 100, "{read}");
    assert!(slowest < std::time::Duration::from_secs(5), "{slowest:?}");
    eprintln!("6000 mutants: {read} were still readable, the slowest took {slowest:?}");
}

#[test]
fn bombs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    // 3 GiB of a pattern that is not zero, in a few hundred KiB.
    let mut to = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let head = header(
        &Entry {
            path: b"x",
            pax: Vec::new(),
            ..Entry::default()
        },
        3 << 30,
    );
    std::io::Write::write_all(&mut to, &head).unwrap();
    let chunk = vec![7u8; 1 << 20];
    for _ in 0..3 << 10 {
        std::io::Write::write_all(&mut to, &chunk).unwrap();
    }
    let blob = to.finish().unwrap();
    let e = open_memory(&store, &[blob], &[Vec::new()]).err().unwrap();
    assert!(
        matches!(&e, Error::Unsupported { what } if what.contains("unpacks to more")),
        "{e}"
    );
}
