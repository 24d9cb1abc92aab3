//! Images written, and read by others.

use super::make::*;
use crate::support;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use vm2k::oci::{self, BlobSource, Layer, NewConfig, NewHistory, NewImage, Output};
use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::image::{Contents, ImageOptions, ImageSource};
use vm2k::store::{Digest, Store};

/// A layer in the store.
pub(crate) fn stored(store: &Arc<Store>, tar: &[u8], zip: Zip) -> Layer {
    let blob = zip.pack(tar);
    Layer {
        digest: store.put(&blob).unwrap(),
        size: blob.len() as u64,
        media_type: zip.media_type().to_owned(),
        diff_id: Digest::of(tar),
        annotations: Default::default(),
        source: BlobSource::Store(Arc::clone(store)),
    }
}

/// An image with a base of one gzip layer and two layers of its own, the first packed with `zip`.
pub(crate) fn image(dir: &Path, store: &Arc<Store>, zip: Zip) -> NewImage {
    let base = Tar::default()
        .dir("bin/")
        .file("bin/sh", "#!")
        .file("etc-a", "base")
        .end();
    layout(&dir.join("base"), &[base], Zip::Gzip);
    let base = open(&format!("oci:{}/base", dir.display()), store).unwrap();
    let tars = [
        Tar::default().file("etc-a", "new").file(".wh.nothing", "").end(),
        Tar::default().file("data", &"0123456789".repeat(10_000)).end(),
    ];
    let mut layers = base.layers.clone();
    layers.push(stored(store, &tars[0], zip));
    layers.push(stored(store, &tars[1], Zip::Gzip));
    let config = oci::image_config(
        Some(&base),
        &NewConfig {
            architecture: "amd64".into(),
            env: vec!["A=2".into(), "B=3".into()],
            exposed_ports: ["80/tcp".to_owned()].into(),
            labels: [("mine".to_owned(), "yes".to_owned())].into(),
            layers: layers[1..]
                .iter()
                .map(|l| NewHistory {
                    diff_id: l.diff_id,
                    created_by: "vm2k".into(),
                    comment: "a layer".into(),
                })
                .collect(),
            ..NewConfig::default()
        },
    )
    .unwrap();
    NewImage::new(config, layers).unwrap()
}

pub(crate) fn write(to: &str, image: &NewImage) -> vm2k::error::Result<oci::Written> {
    oci::write(&Output::parse_output(to)?, image, &Silent)
}

pub(crate) fn paths(reference: &str, store: &Arc<Store>) -> Vec<String> {
    let image = open(reference, store).unwrap();
    let options = ImageOptions {
        cached: false,
        keep: Contents::None,
        import: false,
    };
    let source = ImageSource::open(image, Arc::clone(store), options, &Silent).unwrap();
    source.tree().iter().map(|(p, _)| p.to_string()).collect()
}

#[test]
fn what_is_written_is_read_again_and_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display();
    let store = store(dir.path());
    let image = image(dir.path(), &store, Zip::Zstd);
    for (a, b) in [
        (
            format!("oci-archive:{d}/a.tar:web:1"),
            format!("oci-archive:{d}/b.tar:web:1"),
        ),
        (
            format!("docker-archive:{d}/c.tar:web:1"),
            format!("docker-archive:{d}/d.tar:web:1"),
        ),
    ] {
        write(&a, &image).unwrap();
        write(&b, &image).unwrap();
        let bytes = |r: &str| std::fs::read(r.split(':').nth(1).unwrap()).unwrap();
        assert!(bytes(&a) == bytes(&b));
        assert_eq!(paths(&a, &store), ["/", "/bin", "/bin/sh", "/data", "/etc-a"]);
    }
    write(&format!("oci:{d}/l:one"), &image).unwrap();
    write(&format!("oci:{d}/l:two"), &image).unwrap();
    write(&format!("oci:{d}/l:one"), &image).unwrap();
    assert_eq!(paths(&format!("oci:{d}/l:one"), &store).len(), 5);
    assert!(open(&format!("oci:{d}/l:three"), &store).is_err());
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter().all(|n| !n.as_encoded_bytes().starts_with(b".")),
        "{left:?}"
    );
    let again = open(&format!("oci-archive:{d}/a.tar:web:1"), &store).unwrap();
    assert_eq!(again.manifest_digest, image.digest());
    assert_eq!(again.config_bytes, image.config);
}

fn judged_by_skopeo_and_podman(zip: Zip) {
    if !support::tools("skopeo_and_podman", &["skopeo", "podman"]) || !support::root("skopeo_and_podman") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display();
    let store = store(dir.path());
    let image = image(dir.path(), &store, zip);
    let oci_archive = format!("oci-archive:{d}/a.tar:localhost/web:1");
    let docker_archive = format!("docker-archive:{d}/d.tar:localhost/web:2");
    write(&oci_archive, &image).unwrap();
    write(&docker_archive, &image).unwrap();
    write(&format!("oci:{d}/l:web"), &image).unwrap();
    for (n, (from, plain)) in [
        (&oci_archive, false),
        (&docker_archive, true),
        (&format!("oci:{d}/l:web"), false),
        (&format!("docker-archive:{d}/a.tar:localhost/web:1"), true),
    ]
    .into_iter()
    .enumerate()
    {
        let out = support::run(Command::new("skopeo").args(["inspect", from]));
        let seen: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(seen["Architecture"], "amd64");
        assert_eq!(seen["Layers"].as_array().unwrap().len(), 3);
        assert_eq!(seen["Env"], serde_json::json!(["PATH=/bin", "A=2", "B=3"]));
        assert_eq!(seen["Labels"], serde_json::json!({"from": "base", "mine": "yes"}));
        for (i, to) in ["oci", "dir", "docker-archive"].into_iter().enumerate() {
            // skopeo 1.9 knows no zstd in docker's own manifests.
            if to == "docker-archive" && zip == Zip::Zstd && !plain {
                continue;
            }
            let to = format!("{to}:{d}/copy-{i}-{n}");
            support::run(Command::new("skopeo").args(["--insecure-policy", "copy", "-q", from, &to]));
        }
    }
    let podman = |args: &[&str]| {
        let root = dir.path().join("podman");
        support::run(
            Command::new("podman")
                .args(["--storage-driver", "vfs", "--root"])
                .arg(&root)
                .arg("--runroot")
                .arg(dir.path().join("run"))
                .args(args),
        )
    };
    for (file, name) in [("a.tar", "localhost/web:1"), ("d.tar", "localhost/web:2")] {
        podman(&["load", "-q", "-i", &format!("{d}/{file}")]);
        let id = podman(&["image", "inspect", "-f", "{{.Id}} {{.Config.ExposedPorts}}", name]);
        let id = String::from_utf8(id.stdout).unwrap();
        assert_eq!(
            id.trim(),
            format!("{} map[80/tcp:{{}}]", Digest::of(&image.config).hex())
        );
    }
    podman(&["rmi", "-af"]);
    podman(&["pull", "-q", &oci_archive]);
    podman(&["image", "exists", "localhost/web:1"]);
}

#[test]
fn skopeo_and_podman_take_gzip() {
    judged_by_skopeo_and_podman(Zip::Gzip);
}

#[test]
fn skopeo_and_podman_take_zstd() {
    judged_by_skopeo_and_podman(Zip::Zstd);
}

#[test]
fn skopeo_and_podman_take_plain() {
    judged_by_skopeo_and_podman(Zip::None);
}
