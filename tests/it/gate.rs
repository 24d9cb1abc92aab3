//! References from images to files of the host: a canary outside the image's directory is never opened.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use vm2k::disk::{self, Disk, Gate};
use vm2k::error::{Error, Result, code};
use vm2k::read_at::read_all;

const CANARY: &[u8] = b"CANARY-do-not-read";

/// A qcow2 image of 1 MiB in which nothing is allocated, with a backing file and a data file as named.
fn image(backing: Option<(&[u8], Option<&str>)>, data_file: Option<&[u8]>) -> Vec<u8> {
    let mut b = vec![0; 2 * 65536];
    b[..4].copy_from_slice(b"QFI\xfb");
    let put = |b: &mut Vec<u8>, at: usize, value: u32| b[at..at + 4].copy_from_slice(&value.to_be_bytes());
    for (at, value) in [
        (4, 3),
        (20, 16),
        (28, 1 << 20),
        (36, 1),
        (44, 65536),
        (96, 4),
        (100, 104),
    ] {
        put(&mut b, at, value);
    }
    let mut at = 104;
    let mut extend = |b: &mut Vec<u8>, kind: u32, data: &[u8]| {
        put(b, at, kind);
        put(b, at + 4, u32::try_from(data.len()).unwrap());
        b[at + 8..at + 8 + data.len()].copy_from_slice(data);
        at += 8 + data.len().next_multiple_of(8);
    };
    if let Some((name, format)) = backing {
        if let Some(format) = format {
            extend(&mut b, 0xe279_2aca, format.as_bytes());
        }
        put(&mut b, 12, 4096);
        put(&mut b, 16, u32::try_from(name.len()).unwrap());
        b[4096..4096 + name.len()].copy_from_slice(name);
    }
    if let Some(name) = data_file {
        extend(&mut b, 0x4441_5441, name);
        b[79] = 4;
    }
    b
}

fn open(path: &Path, allowed: &[PathBuf]) -> Result<Disk> {
    disk::open(path, &Gate::new(allowed)?)
}

/// A directory with images, one beside it with the canary, and a watch on the canary.
struct Place {
    dir: tempfile::TempDir,
    home: PathBuf,
    watch: rustix::fd::OwnedFd,
}

impl Place {
    fn new() -> Self {
        use rustix::fs::inotify;
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("images");
        let outside = dir.path().join("outside");
        for dir in [&home, &home.join("sub"), &outside] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(outside.join("canary"), CANARY.repeat(100)).unwrap();
        std::fs::write(home.join("inside"), b"INSIDE".repeat(100)).unwrap();
        symlink(outside.join("canary"), home.join("link")).unwrap();
        symlink("link", home.join("link2")).unwrap();
        symlink("../outside", home.join("dirlink")).unwrap();
        symlink("inside", home.join("inlink")).unwrap();
        std::fs::create_dir(home.join(".ssh")).unwrap();
        std::fs::write(home.join(".ssh/key"), CANARY).unwrap();
        std::fs::write(home.join(".netrc"), CANARY).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            home.join("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, &outside, inotify::WatchFlags::OPEN).unwrap();
        Self { dir, home, watch }
    }

    /// Whether anything outside was opened since the last call.
    fn was_opened(&self) -> bool {
        rustix::io::read(&self.watch, &mut [0u8; 4096]).is_ok()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.home.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

#[test]
fn no_reference_leads_outside() {
    let place = Place::new();
    let canary = place.dir.path().join("outside/canary");
    let canary = canary.to_str().unwrap();
    let long = format!("{}{canary}", "./".repeat(300));
    let json =
        format!("json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{canary}\"}}}}");
    let names: Vec<String> = [
        "../outside/canary",
        "sub/../../outside/canary",
        "./sub/./../../outside/canary",
        "../outside/missing",
        "../missing/missing",
        "link",
        "link2",
        "sub/../link",
        "dirlink/canary",
        "dirlink",
        ".ssh/key",
        "./.netrc",
        "sub/../.ssh/key",
        ".ssh/missing",
        "fifo",
        "sub",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "/etc/hostname",
        "/proc/self/environ",
        "/proc/self/mem",
        "/proc/self/fd/0",
        "/dev/zero",
        "/dev/stdin",
        "/dev/fd/0",
        "/sys/kernel/vmcoreinfo",
        "nbd://127.0.0.1:1/x",
        "nbd+unix:///x?socket=/x",
        "nbd:127.0.0.1:1",
        "http://127.0.0.1:1/x",
        "https://127.0.0.1:1/x",
        "ftp://127.0.0.1:1/x",
        "ssh://root@127.0.0.1/x",
        "iscsi://127.0.0.1/x/0",
        "rbd:pool/x",
        "gluster://127.0.0.1/x",
        "nfs://127.0.0.1/x",
        "fat:/etc",
        "fat:rw:/etc",
        "host_device:/dev/vda",
        "blkdebug::inside",
        "null-co://",
        "file:inside",
        "file:../outside/canary",
        "a\0b",
        "../outside/canary\0",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([
        canary.to_owned(),
        format!("file://{canary}"),
        format!("/{canary}"),
        long,
        json,
    ])
    .collect();
    let mut images = 0;
    for name in &names {
        for (what, bytes) in [
            ("raw backing", image(Some((name.as_bytes(), Some("raw"))), None)),
            (
                "qcow2 backing",
                image(Some((name.as_bytes(), Some("qcow2"))), None),
            ),
            ("data", image(None, Some(name.as_bytes()))),
        ] {
            let path = place.write("top.qcow2", &bytes);
            let e = open(&path, &[]).map(|_| ()).unwrap_err();
            assert_eq!(e.code(), code::REFUSED, "{what} {name}: {e}");
            assert!(!e.to_string().contains("CANARY"), "{what} {name}: {e}");
            assert!(!place.was_opened(), "{what} {name} was opened");
            images += 1;
        }
    }
    println!("{images} images refused, the canary was not opened");
    // The watch works: reading the canary is seen.
    std::fs::read(canary).unwrap();
    assert!(place.was_opened());
}

#[test]
fn what_is_allowed_is_read() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    let named = image(Some((b"../outside/canary", Some("raw"))), None);
    let path = place.write("top.qcow2", &named);
    let e = open(&path, &[]).map(|_| ()).unwrap_err();
    let Error::Hinted { hint, .. } = &e else {
        panic!("{e}")
    };
    assert!(hint.contains("--allow-backing"), "{hint}");
    for allowed in [
        &outside,
        &place.dir.path().to_owned(),
        &place.home.join("dirlink"),
    ] {
        let disk = open(&path, std::slice::from_ref(allowed)).unwrap();
        let bytes = read_all(&*disk.data, 1 << 20).unwrap();
        assert!(bytes.starts_with(CANARY));
        assert_eq!(disk.notes, ["backing file: ../outside/canary (raw)"]);
    }
    assert!(open(&path, &[place.home.join("nothing")]).is_err());
    // Devices stay out, whatever is allowed.
    let path = place.write("dev.qcow2", &image(Some((b"/dev/zero", Some("raw"))), None));
    assert_eq!(
        open(&path, &["/".into()]).map(|_| ()).unwrap_err().code(),
        code::REFUSED
    );
    // Inside the image's own directory nothing needs to be allowed, a symbolic link that stays there neither.
    for name in ["inside", "./inside", "sub/../inside", "inlink"] {
        let path = place.write("own.qcow2", &image(Some((name.as_bytes(), Some("raw"))), None));
        let disk = open(&path, &[]).unwrap();
        assert!(
            read_all(&*disk.data, 1 << 20).unwrap().starts_with(b"INSIDE"),
            "{name}"
        );
    }
    // An image that is itself named through a link has the directory it lies in.
    symlink(place.home.join("own.qcow2"), outside.join("web.qcow2")).unwrap();
    assert!(open(&outside.join("web.qcow2"), &[]).is_ok());
}

#[test]
fn the_format_of_a_backing_file_is_never_guessed() {
    let place = Place::new();
    // A raw disk into which the guest wrote a qcow2 header that names the canary.
    let evil = image(Some((b"../outside/canary", Some("raw"))), None);
    place.write("evil.raw", &evil);
    let path = place.write("top.qcow2", &image(Some((b"evil.raw", Some("raw"))), None));
    let disk = open(&path, &[]).unwrap();
    assert!(read_all(&*disk.data, 1 << 20).unwrap().starts_with(&evil));
    let path = place.write("top.qcow2", &image(Some((b"evil.raw", None)), None));
    let e = open(&path, &[]).map(|_| ()).unwrap_err();
    assert_eq!(e.code(), code::REFUSED);
    assert!(matches!(&e, Error::Hinted { hint, .. } if hint.contains("rebase")));
    let path = place.write("top.qcow2", &image(Some((b"evil.raw", Some("vmdk"))), None));
    assert_eq!(
        open(&path, &[]).map(|_| ()).unwrap_err().code(),
        code::UNSUPPORTED
    );
    let path = place.write("top.qcow2", &image(Some((b"inside", Some("qcow2"))), None));
    assert!(open(&path, &[]).is_err());
    assert!(!place.was_opened());
}

#[test]
fn chains_end() {
    let place = Place::new();
    let link = |name: &str, to: &str| place.write(name, &image(Some((to.as_bytes(), Some("qcow2"))), None));
    let refused = |path: &Path| open(path, &[]).map(|_| ()).unwrap_err();
    let own = link("self.qcow2", "self.qcow2");
    assert_eq!(refused(&own).code(), code::CORRUPT);
    link("b.qcow2", "a.qcow2");
    let cycle = link("a.qcow2", "b.qcow2");
    assert!(refused(&cycle).to_string().contains("leads back"));
    std::fs::hard_link(&own, place.home.join("other-name.qcow2")).unwrap();
    let renamed = link("c.qcow2", "other-name.qcow2");
    assert_eq!(refused(&renamed).code(), code::CORRUPT);
    for n in 1..=16 {
        link(&format!("{n}.qcow2"), &format!("{}.qcow2", n + 1));
    }
    place.write("17.qcow2", &image(Some((b"inside", Some("raw"))), None));
    // 3 to 17 and the raw file are 16 images.
    assert!(open(&place.home.join("3.qcow2"), &[]).is_ok());
    let e = refused(&place.home.join("2.qcow2"));
    assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
}

#[test]
fn what_is_no_file_is_said_so() {
    let place = Place::new();
    let e = open(&place.home, &[]).map(|_| ()).unwrap_err();
    assert!(
        matches!(&e, Error::Hinted { hint, .. } if hint.contains("dir:")),
        "{e}"
    );
    assert_eq!(e.code(), code::USAGE);
    assert_eq!(
        open(&place.home.join("fifo"), &[])
            .map(|_| ())
            .unwrap_err()
            .code(),
        code::USAGE
    );
    assert_eq!(
        open(Path::new("/dev/zero"), &[]).map(|_| ()).unwrap_err().code(),
        code::USAGE
    );
    let e = open(&place.home.join("nothing"), &[]).map(|_| ()).unwrap_err();
    assert!(matches!(e, Error::Io { .. }), "{e}");
}
