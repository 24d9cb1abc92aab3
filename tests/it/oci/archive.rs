//! Archives and layouts as others write them, and as nobody should.

use super::make::*;
use super::write::paths;
use crate::support;
use std::process::Command;
use std::sync::Arc;
use vm2k::error::{Error, code};
use vm2k::oci::{self, OpenOptions, Platform, Reference};
use vm2k::progress::Silent;
use vm2k::source::image::{Contents, ImageOptions, ImageSource};
use vm2k::store::{Digest, Store};

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        Tar::default().file("a", "lower").file("gone", "x").end(),
        Tar::default().file("b", "upper").file(".wh.gone", "").end(),
    ]
}

#[test]
fn what_skopeo_and_buildah_write() {
    if !support::tools("what_skopeo_writes", &["skopeo", "umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display().to_string();
    let store = store(dir.path());
    layout(&dir.path().join("l"), &two_layers(), Zip::Gzip);
    let copy = |from: &str, to: &str, more: &[&str]| {
        support::run(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "-q"])
                .args(more)
                .args([from, to]),
        );
    };
    let from = format!("oci:{d}/l:t");
    for (to, more) in [
        (format!("oci-archive:{d}/1.tar:web:1"), vec![]),
        (format!("docker-archive:{d}/2.tar:web:1"), vec![]),
        (format!("oci:{d}/3:x"), vec![]),
        (
            format!("oci:{d}/4:x"),
            vec!["--dest-compress-format=zstd", "--dest-compress"],
        ),
    ] {
        copy(&from, &to, &more);
        assert_eq!(paths(&to, &store), ["/", "/a", "/b"], "{to}");
    }
    assert_eq!(paths(&format!("docker-archive:{d}/2.tar"), &store).len(), 3);
    assert_eq!(
        paths(
            &format!("docker-archive:{d}/2.tar:docker.io/library/web:1"),
            &store
        )
        .len(),
        3
    );
    assert_eq!(
        open(&format!("docker-archive:{d}/2.tar:other"), &store)
            .unwrap_err()
            .code(),
        code::USAGE
    );
    assert_eq!(
        open(&format!("oci-archive:{d}/1.tar:other"), &store)
            .unwrap_err()
            .code(),
        code::USAGE
    );
    // Archives that are compressed as a whole, as in `docker save | gzip`.
    support::bash(r#"cd "$1"; gzip -k 2.tar; zstd -q 1.tar"#, &[dir.path()]);
    assert_eq!(paths(&format!("docker-archive:{d}/2.tar.gz"), &store).len(), 3);
    assert_eq!(paths(&format!("oci-archive:{d}/1.tar.zst"), &store).len(), 3);
    // A tag more in a layout, and one that umoci repacked.
    support::bash(
        r#"umoci tag --image "$1/l:t" second; umoci unpack --rootless --image "$1/l:t" "$1/bundle"; echo new > "$1/bundle/rootfs/new"; rm "$1/bundle/rootfs/a"
        umoci repack --image "$1/l:third" "$1/bundle""#,
        &[dir.path()],
    );
    assert_eq!(paths(&format!("oci:{d}/l:second"), &store), ["/", "/a", "/b"]);
    assert_eq!(paths(&format!("oci:{d}/l:third"), &store), ["/", "/b", "/new"]);
    let e = open(&format!("oci:{d}/l"), &store).unwrap_err();
    assert!(
        e.code() == code::USAGE && e.to_string().contains("second, t, third"),
        "{e}"
    );
}

/// What docker before 1.10 to 24 writes: a directory a layer, links between them, layers plain or gzip.
#[test]
fn a_docker_archive_of_the_old_kind() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let layers = two_layers();
    let made = make(
        &[layers[0].clone(), layers[1].clone(), layers[0].clone()],
        Zip::None,
        "amd64",
    );
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": null, "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]);
    let packed = gzip(&layers[1]);
    let file = |tar: Tar, path: &str, content: &[u8]| {
        tar.add(Entry {
            path: path.as_bytes(),
            content,
            ..Entry::default()
        })
    };
    let mut tar = file(Tar::default().dir("1/"), "1/layer.tar", &layers[0]);
    tar = file(tar, "2/layer.tar", &packed).symlink("3/layer.tar", "../1/layer.tar");
    tar = file(tar, "config.json", &made.config);
    tar = file(tar, "./manifest.json", &serde_json::to_vec(&manifest).unwrap());
    let archive = dir.path().join("old.tar");
    std::fs::write(&archive, tar.end()).unwrap();
    let name = format!("docker-archive:{}", archive.display());
    assert_eq!(paths(&name, &store), ["/", "/a", "/b", "/gone"]);
    let image = open(&name, &store).unwrap();
    assert_eq!(image.layers[1].digest, Digest::of(&packed));
    assert_eq!(image.layers[2].digest, image.layers[0].digest);
    // The same as an image that is written again.
    let again = oci::NewImage::new(image.config_bytes.clone(), image.layers.clone()).unwrap();
    assert_eq!(again.manifest, image.manifest);
    let out = format!("oci-archive:{}/again.tar", dir.path().display());
    oci::write(&Reference::parse_output(&out).unwrap(), &again, &Silent).unwrap();
    assert_eq!(paths(&out, &store), ["/", "/a", "/b", "/gone"]);
}

#[test]
fn archives_that_lead_nowhere_or_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let manifest = |layers: &[&str]| {
        serde_json::to_string(&serde_json::json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": layers}]))
            .unwrap()
    };
    let config = String::from_utf8(make(&two_layers()[..1], Zip::None, "amd64").config).unwrap();
    let with = |layer: &str, extra: Tar| {
        extra
            .file("c", &config)
            .file("manifest.json", &manifest(&[layer]))
            .end()
    };
    let t = Tar::default;
    for (what, tar) in [
        ("no manifest", t().file("x", "").end()),
        ("a missing layer", with("l", t())),
        ("a link out", with("l", t().symlink("l", "../../../etc/passwd"))),
        ("an absolute link", with("l", t().symlink("l", "/etc/passwd"))),
        ("a loop", with("l", t().symlink("l", "m").symlink("m", "l"))),
        ("a path out", with("../../etc/passwd", t())),
        (
            "too few layers",
            t().file("c", &config).file("manifest.json", &manifest(&[])).end(),
        ),
        ("no config", t().file("manifest.json", &manifest(&[])).end()),
        ("no document", t().file("manifest.json", "{").end()),
        ("no tar", b"hello".repeat(200)),
        ("nothing", Vec::new()),
    ] {
        let file = dir.path().join("x.tar");
        std::fs::write(&file, tar).unwrap();
        for transport in ["docker-archive", "oci-archive"] {
            let e = open(&format!("{transport}:{}", file.display()), &store).unwrap_err();
            assert!(
                [code::CORRUPT, code::UNSUPPORTED].contains(&e.code()),
                "{what}: {e:?}"
            );
        }
    }
    let e = open("oci:/does/not/exist", &store).unwrap_err();
    assert!(matches!(e, Error::Io { .. }) && e.to_string().contains("/does/not/exist"));
}

#[test]
fn a_layout_of_several_platforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let l = dir.path().join("l");
    let mut entries = Vec::new();
    for arch in ["amd64", "arm64"] {
        let made = make(&[Tar::default().file(arch, "").end()], Zip::Zstd, arch);
        for blob in made.blobs.iter().chain([&made.config, &made.manifest]) {
            put_blob(&l, blob);
        }
        entries.push(serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&made.manifest),
            "size": made.manifest.len(), "platform": {"os": "linux", "architecture": arch}}));
    }
    let nested = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": entries})).unwrap();
    put_blob(&l, &nested);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": Digest::of(&nested), "size": nested.len()}]});
    std::fs::write(l.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    let open = |machine: &str| {
        let mut options = OpenOptions::new(Arc::clone(&store));
        options.platform = Some(Platform::of_machine(machine));
        oci::open(
            &Reference::parse(&format!("oci:{}", l.display())).unwrap(),
            &options,
            &Silent,
        )
    };
    assert_eq!(open("aarch64").unwrap().platform().unwrap().architecture, "arm64");
    assert_eq!(open("x86_64").unwrap().platform().unwrap().architecture, "amd64");
    assert_eq!(open("ppc64le").unwrap_err().code(), code::UNSUPPORTED);
}

/// Opens and flattens; whatever comes, it comes soon.
fn try_all(reference: &str, store: &Arc<Store>) -> bool {
    let Ok(image) = open(reference, store) else {
        return false;
    };
    let options = ImageOptions {
        cached: false,
        keep: Contents::None,
        import: false,
    };
    ImageSource::open(image, Arc::clone(store), options, &Silent).is_ok()
}

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(3) {
        let at = rng.below(bytes.len());
        match rng.below(6) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = b"0123456789\0/.\"{}[],:"[rng.below(20)],
            2 => bytes.truncate(at.max(1)),
            3 => {
                let piece = bytes[at..(at + rng.below(600)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                let end = (at + rng.below(40)).min(bytes.len());
                bytes.drain(at..end);
                bytes.push(0);
            }
            _ => {
                let end = (at + rng.below(600)).min(bytes.len());
                bytes[at..end].fill(0);
            }
        }
    }
}

#[test]
fn mutated_archives_and_indexes_are_refused_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let l = dir.path().join("l");
    layout(&l, &two_layers(), Zip::Zstd);
    let d = dir.path().display().to_string();
    let opened = open(&format!("oci:{d}/l"), &store).unwrap();
    let image = oci::NewImage::new(opened.config_bytes, opened.layers).unwrap();
    let mut rng = Rng(7);
    let mut slowest = std::time::Duration::ZERO;
    let mut fine = 0;
    for transport in ["oci-archive", "docker-archive"] {
        let name = format!("{transport}:{d}/a.tar:web:1");
        oci::write(&Reference::parse_output(&name).unwrap(), &image, &Silent).unwrap();
        let good = std::fs::read(dir.path().join("a.tar")).unwrap();
        for round in 0..2_000 {
            let mut bytes = good.clone();
            mutate(&mut rng, &mut bytes);
            if round % 4 != 0 {
                for block in bytes.as_chunks_mut::<512>().0 {
                    if block[257..262] == *b"ustar" {
                        seal(block);
                    }
                }
            }
            std::fs::write(dir.path().join("m.tar"), &bytes).unwrap();
            let start = std::time::Instant::now();
            fine += usize::from(try_all(&format!("{transport}:{d}/m.tar"), &store));
            slowest = slowest.max(start.elapsed());
        }
    }
    for file in ["index.json", "manifest"] {
        let path = match file {
            "manifest" => l.join("blobs/sha256").join(opened.manifest_digest.hex()),
            file => l.join(file),
        };
        let good = std::fs::read(&path).unwrap();
        for _ in 0..1_000 {
            let mut bytes = good.clone();
            mutate(&mut rng, &mut bytes);
            if file == "manifest" {
                // The index names the damaged manifest, so that its bytes are believed.
                let digest = put_blob(&l, &bytes);
                let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": digest, "size": bytes.len()}]});
                std::fs::write(l.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
            } else {
                std::fs::write(&path, &bytes).unwrap();
            }
            let start = std::time::Instant::now();
            fine += usize::from(try_all(&format!("oci:{d}/l"), &store));
            slowest = slowest.max(start.elapsed());
        }
    }
    assert!(slowest < std::time::Duration::from_secs(5), "{slowest:?}");
    eprintln!("6000 mutants: {fine} were still readable, the slowest took {slowest:?}");
}

#[test]
fn more_layers_than_any_image_has() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let layers: Vec<Vec<u8>> = (0..520)
        .map(|i| Tar::default().file(&format!("f{i}"), "").end())
        .collect();
    layout(&dir.path().join("l"), &layers, Zip::None);
    let name = format!("oci:{}/l", dir.path().display());
    assert_eq!(open(&name, &store).unwrap_err().code(), code::UNSUPPORTED);
    layout(&dir.path().join("l"), &layers[..200], Zip::None);
    assert_eq!(paths(&name, &store).len(), 201);
}
