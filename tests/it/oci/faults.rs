//! Writing when things go wrong: full disks, kills, several writers at once.

use super::make::*;
use super::write::{image, paths, write};
use crate::support;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use vm2k::error::Error;
use vm2k::oci::{self, NewImage};
use vm2k::store::{Digest, Store};

fn list(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

/// A tmpfs that is unmounted in the end.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(dir: &'a Path, kib: usize) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let size = format!("size={kib}k");
        support::run(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "none"])
                .arg(dir),
        );
        Self(dir)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// An image of about `kib` KiB of bytes that do not compress.
fn big_image(dir: &Path, store: &Arc<Store>, kib: usize) -> NewImage {
    let mut rng = Rng(99);
    let bytes: Vec<u8> = (0..kib * 1024).map(|_| (rng.next() >> 40) as u8).collect();
    let tar = Tar::default()
        .add(Entry {
            path: b"noise",
            content: &bytes,
            ..Entry::default()
        })
        .end();
    layout(&dir.join("big"), &[tar], Zip::None);
    let opened = open(&format!("oci:{}/big", dir.display()), store).unwrap();
    NewImage::new(opened.config_bytes, opened.layers).unwrap()
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left() {
    if !support::root("a_full_disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let image = big_image(dir.path(), &store, 512);
    let full = dir.path().join("full");
    let (mut failures, mut successes) = (0, 0);
    for step in 0..34 {
        let _mount = Mount::new(&full, 4 + step * 20);
        for to in [
            "oci:DIR/l:t",
            "oci-archive:DIR/a.tar:x:1",
            "docker-archive:DIR/d.tar",
        ] {
            let to = to.replace("DIR", full.to_str().unwrap());
            match write(&to, &image) {
                Ok(_) => {
                    successes += 1;
                    assert_eq!(paths(&to, &store), ["/", "/noise"]);
                    for name in list(&full) {
                        let path = full.join(name);
                        let _ = std::fs::remove_dir_all(&path);
                        let _ = std::fs::remove_file(&path);
                    }
                }
                Err(e) => {
                    failures += 1;
                    assert!(
                        matches!(&e, Error::Io { source, .. } if source.raw_os_error() == Some(28)),
                        "{e:?}"
                    );
                    assert!(e.to_string().contains(full.to_str().unwrap()), "{e}");
                    assert_eq!(list(&full), Vec::<String>::new());
                }
            }
        }
        // An existing layout keeps its image.
        let small = super::write::image(dir.path(), &store, Zip::Gzip);
        let to = format!("oci:{}/l", full.display());
        if write(&format!("{to}:small"), &small).is_ok() {
            let before = support::run(Command::new("find").arg(full.join("l")).arg("-type").arg("f"))
                .stdout
                .len();
            if write(&format!("{to}:big"), &image).is_err() {
                let after = support::run(Command::new("find").arg(full.join("l")).arg("-type").arg("f"))
                    .stdout
                    .len();
                assert_eq!(before, after);
            }
            assert_eq!(paths(&format!("{to}:small"), &store).len(), 5);
        }
        // So is a full store, with advice.
        let e = Store::open(&full.join("store"))
            .and_then(|s| s.put(&vec![7; 900 << 10]))
            .unwrap_err();
        assert!(vm2k::error::report(&e.into()).contains("--store"));
        assert!(list(&full).iter().all(|n| !n.starts_with('.')));
    }
    assert!(failures > 60 && successes > 10, "{failures} {successes}");
    eprintln!("{failures} writes to a full disk: all named it and left nothing; {successes} had room");
}

#[test]
fn writers_of_one_layout_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let image = image(dir.path(), &store, Zip::Zstd);
    let l = format!("oci:{}/l", dir.path().display());
    std::thread::scope(|scope| {
        for i in 0..16 {
            let (l, image) = (&l, &image);
            scope.spawn(move || write(&format!("{l}:tag{i}"), image).unwrap());
        }
    });
    for i in 0..16 {
        assert_eq!(paths(&format!("{l}:tag{i}"), &store).len(), 5);
    }
    assert!(list(dir.path()).iter().all(|n| !n.starts_with('.')));
    assert_eq!(list(&dir.path().join("l")), ["blobs", "index.json", "oci-layout"]);
}

#[test]
fn a_damaged_blob_is_never_written_and_a_damaged_layout_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let image = image(dir.path(), &store, Zip::Zstd);
    let d = dir.path().display();
    let l = format!("oci:{d}/l:t");
    write(&l, &image).unwrap();
    let layer = &image.layers[1];
    let in_layout = dir.path().join("l/blobs/sha256").join(layer.digest.hex());
    let damage = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, vec![0; usize::try_from(layer.size).unwrap()]).unwrap();
    };
    damage(&in_layout);
    write(&l, &image).unwrap();
    assert_eq!(Digest::of(&std::fs::read(&in_layout).unwrap()), layer.digest);
    for to in [
        format!("oci:{d}/m:t"),
        format!("oci-archive:{d}/a.tar"),
        format!("docker-archive:{d}/d.tar"),
    ] {
        store.put(&std::fs::read(&in_layout).unwrap()).unwrap();
        damage(&store.blob_path(&layer.digest));
        // A new process knows nothing of what was whole before.
        let fresh = Arc::new(Store::open(store.dir()).unwrap());
        let mut image = image.clone();
        for layer in &mut image.layers {
            if matches!(layer.source, oci::BlobSource::Store(_)) {
                layer.source = oci::BlobSource::Store(Arc::clone(&fresh));
            }
        }
        let e = write(&to, &image).unwrap_err();
        assert!(e.to_string().contains(&layer.digest.to_string()), "{e}");
        assert!(!fresh.has(&layer.digest));
        assert!(
            list(dir.path())
                .iter()
                .all(|n| !n.starts_with('.') && n != "m" && n != "a.tar" && n != "d.tar")
        );
    }
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("notes"), "mine").unwrap();
    assert!(write(&format!("oci:{}", other.display()), &image).is_err());
    assert_eq!(list(&other), ["notes"]);
    assert!(write("oci-archive:/dev/null", &image).is_err());
}

#[test]
fn killed_at_any_instant_the_output_is_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let image = big_image(dir.path(), &store, 8 << 10);
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let child = || {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "oci::faults::child_write", "--ignored"])
            .env("VM2K_TEST_DIR", dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        child
    };
    let clear = || {
        for name in list(&out).into_iter().filter(|n| !n.starts_with('.')) {
            let path = out.join(name);
            let _ = std::fs::remove_dir_all(&path);
            let _ = std::fs::remove_file(&path);
        }
    };
    let start = std::time::Instant::now();
    support::run(&mut child());
    let whole_run = usize::try_from(start.elapsed().as_micros()).unwrap();
    clear();
    let mut rng = Rng(5);
    let (mut whole, mut absent) = (0, 0);
    for round in 0..60 {
        let mut killed = child().spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(whole_run) as u64));
        killed.kill().unwrap();
        killed.wait().unwrap();
        for to in outputs(&out) {
            let path = out.join(to.split(':').nth(1).unwrap().rsplit('/').next().unwrap());
            if path.exists() {
                assert_eq!(paths(&to, &store), ["/", "/noise"], "round {round}");
                whole += 1;
            } else {
                absent += 1;
            }
        }
        if round % 10 == 9 {
            support::run(&mut child());
            assert_eq!(list(&out), ["a.tar", "d.tar", "l"]);
        }
        clear();
    }
    let leftovers = Store::open(&dir.path().join("store")).unwrap();
    assert_eq!(list(&leftovers.dir().join("tmp")).len(), 0);
    drop(image);
    eprintln!("60 kills: {whole} outputs whole, {absent} absent, 0 torn");
}

fn outputs(dir: &Path) -> [String; 3] {
    let d = dir.display();
    [
        format!("oci-archive:{d}/a.tar:x:1"),
        format!("oci:{d}/l:t"),
        format!("docker-archive:{d}/d.tar:x:1"),
    ]
}

/// The process that the test above kills.
#[test]
#[ignore = "run by killed_at_any_instant_the_output_is_whole_or_absent"]
fn child_write() {
    let Some(dir) = std::env::var_os("VM2K_TEST_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let store = Arc::new(Store::open(&dir.join("store")).unwrap());
    let opened = open(&format!("oci:{}/big", dir.display()), &store).unwrap();
    // Through the store, as a conversion does it.
    let mut layers = opened.layers;
    for layer in &mut layers {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut layer.open().unwrap(), &mut bytes).unwrap();
        store.put(&bytes).unwrap();
        layer.source = oci::BlobSource::Store(Arc::clone(&store));
    }
    let image = NewImage::new(opened.config_bytes, layers).unwrap();
    for to in outputs(&dir.join("out")) {
        write(&to, &image).unwrap();
    }
}
