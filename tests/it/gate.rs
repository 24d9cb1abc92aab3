//! References from images to files of the host: a canary outside the image's directory is never opened.

use crate::support::{self, SYSTEM, is_below, tools, traced};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;
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

/// A VMDK with one extent as named.
fn vmdk_extent(kind: &str, name: &str) -> Vec<u8> {
    format!("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 1 {kind} \"{name}\" 0\n")
        .into_bytes()
}

/// A VMDK with a parent as named.
fn vmdk_parent(name: &str) -> Vec<u8> {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=2\nparentFileNameHint=\"{name}\"\nRW 1 ZERO\n"
    )
    .into_bytes()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A differencing VHD with a parent as named.
fn vhd_child(name: &str) -> Vec<u8> {
    let mut b = vec![0u8; 2048];
    let put = |b: &mut Vec<u8>, at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = |b: &mut Vec<u8>, from: usize, to: usize, at: usize| {
        let sum = !b[from..to].iter().fold(0u32, |s, b| s.wrapping_add((*b).into()));
        b[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    };
    put(&mut b, 0, b"conectix");
    put(&mut b, 16, &512u64.to_be_bytes());
    put(&mut b, 28, b"win ");
    put(&mut b, 60, &4u32.to_be_bytes());
    sum(&mut b, 0, 512, 64);
    put(&mut b, 512, b"cxsparse");
    put(&mut b, 512 + 16, &1536u64.to_be_bytes());
    put(&mut b, 512 + 32, &(2u32 << 20).to_be_bytes());
    let name = utf16(name);
    put(&mut b, 512 + 576, b"W2ru");
    put(
        &mut b,
        512 + 584,
        &u32::try_from(name.len()).unwrap().to_be_bytes(),
    );
    put(&mut b, 512 + 592, &2048u64.to_be_bytes());
    sum(&mut b, 512, 1536, 512 + 36);
    b.extend(name);
    b.resize(b.len() + 1024, 0);
    b
}

/// A differencing VHDX with a parent as named.
fn vhdx_child(name: &str) -> Vec<u8> {
    let mut b = vec![0u8; 4 << 20];
    let put = |b: &mut Vec<u8>, at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = |b: &mut Vec<u8>, at: usize, len: usize| {
        let sum = crc32c::crc32c(&b[at..at + len]);
        b[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
    };
    let guid = |text: &str| {
        let hex: Vec<u8> = (0..16)
            .map(|n| u8::from_str_radix(&text[n * 2..n * 2 + 2], 16).unwrap())
            .collect();
        [
            &[hex[3], hex[2], hex[1], hex[0], hex[5], hex[4], hex[7], hex[6]],
            &hex[8..],
        ]
        .concat()
    };
    put(&mut b, 0, b"vhdxfile");
    put(&mut b, 65536, b"head");
    put(&mut b, 65536 + 66, &[1]);
    crc(&mut b, 65536, 4096);
    put(&mut b, 196_608, b"regi");
    put(&mut b, 196_608 + 8, &[2]);
    for (n, id) in [
        "2dc27766f62342009d64115e9bfd4a08",
        "8b7ca20647904b9ab8fe575f050f886e",
    ]
    .iter()
    .enumerate()
    {
        put(&mut b, 196_624 + n * 32, &guid(id));
        put(&mut b, 196_640 + n * 32, &((n as u64 + 1) << 20).to_le_bytes());
        put(&mut b, 196_648 + n * 32, &(1u32 << 20).to_le_bytes());
    }
    crc(&mut b, 196_608, 65536);
    let pairs = [("parent_linkage", "{0}"), ("relative_path", name)].map(|(k, v)| (utf16(k), utf16(v)));
    let mut locator = guid("b04aefb7d19e4a81b78925b8e9445913");
    locator.extend([0, 0, 2, 0]);
    let mut texts = Vec::new();
    for (key, value) in pairs {
        let at = u32::try_from(44 + texts.len()).unwrap();
        let lens = [key.len(), value.len()].map(|l| u16::try_from(l).unwrap());
        locator.extend([at.to_le_bytes(), (at + u32::from(lens[0])).to_le_bytes()].concat());
        locator.extend(lens.map(u16::to_le_bytes).concat());
        texts.extend([key, value].concat());
    }
    locator.extend(texts);
    let items: [(&str, &[u8]); 4] = [
        ("caa16737fa364d43b3b633f0aa44e76b", &[0, 0, 0x10, 0, 2, 0, 0, 0]),
        ("2fa54224cd1b48765b211dbed83bf4b8", &[0, 0, 0x10, 0, 0, 0, 0, 0]),
        ("8141bf1da96f4709ba47f233a8faab5f", &[0, 2, 0, 0]),
        ("a8d35f2db30b454dabf7d3d84834ab0c", &locator),
    ];
    let meta = 2 << 20;
    put(&mut b, meta, b"metadata");
    put(&mut b, meta + 10, &[4]);
    for (n, (id, item)) in items.iter().enumerate() {
        let id = id.replace("48765b211dbed83bf4b8", "4876b2115dbed83bf4b8");
        put(&mut b, meta + 32 + n * 32, &guid(&id));
        let at = 65536 + n * 8192;
        put(
            &mut b,
            meta + 48 + n * 32,
            &u32::try_from(at).unwrap().to_le_bytes(),
        );
        put(
            &mut b,
            meta + 52 + n * 32,
            &u32::try_from(item.len()).unwrap().to_le_bytes(),
        );
        put(&mut b, meta + at, item);
    }
    b
}

/// An OVF with a disk in the file as named.
fn ovf(name: &str) -> String {
    let name = name
        .replace('&', "&amp;")
        .replace('"', "&quot;")
        .replace('<', "&lt;");
    format!(
        "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File id=\"f\" href=\"{name}\"/></References>\
         <DiskSection><Disk diskId=\"d\" fileRef=\"f\"/></DiskSection><VirtualSystem/></Envelope>"
    )
}

/// A tar with files as named.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut b = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        let field = &mut header.as_old_mut().name;
        let len = name.len().min(field.len());
        field[..len].copy_from_slice(&name.as_bytes()[..len]);
        header.set_cksum();
        b.append(&header, *content).unwrap();
    }
    b.into_inner().unwrap()
}

/// An image of every format that can name a file, each with a reference to `name`.
fn forms(name: &str) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("raw backing", image(Some((name.as_bytes(), Some("raw"))), None)),
        (
            "qcow2 backing",
            image(Some((name.as_bytes(), Some("qcow2"))), None),
        ),
        ("data", image(None, Some(name.as_bytes()))),
        ("VMDK FLAT", vmdk_extent("FLAT", name)),
        ("VMDK VMFS", vmdk_extent("VMFS", name)),
        ("VMDK SPARSE", vmdk_extent("SPARSE", name)),
        ("VMDK VMFSSPARSE", vmdk_extent("VMFSSPARSE", name)),
        ("VMDK SESPARSE", vmdk_extent("SESPARSE", name)),
        ("VMDK parent", vmdk_parent(name)),
        ("VHD parent", vhd_child(name)),
        ("VHDX parent", vhdx_child(name)),
        ("OVF", ovf(name).into_bytes()),
        ("OVA", tar(&[("x.ovf", ovf(name).as_bytes()), (name, CANARY)])),
    ]
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
        for (what, bytes) in forms(name) {
            let path = place.write("top.image", &bytes);
            let opened = open(&path, &[]);
            assert!(!place.was_opened(), "{what} {name} was opened");
            images += 1;
            // These forms cannot say every name; and the member of a tar is what the tar has, by whatever name.
            if let Ok(disk) = &opened
                && what == "OVA"
            {
                assert_eq!(read_all(&*disk.data, 1 << 20).unwrap(), CANARY);
                continue;
            }
            let e = opened.map(|_| ()).unwrap_err();
            let unsayable = name.contains('\0') || name.contains('"') || name.len() > 500;
            if !matches!(what, "raw backing" | "qcow2 backing" | "data") && unsayable || what == "OVA" {
                assert!(!e.to_string().contains("CANARY"), "{what} {name}: {e}");
                continue;
            }
            assert_eq!(e.code(), code::REFUSED, "{what} {name}: {e}");
            assert!(!e.to_string().contains("CANARY"), "{what} {name}: {e}");
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
    assert_eq!(open(&path, &[]).map(|_| ()).unwrap_err().code(), code::CORRUPT);
    // What is unpacked or has several disks stands behind no image.
    for format in ["ova", "gzip", "nbd"] {
        let path = place.write("top.qcow2", &image(Some((b"evil.raw", Some(format))), None));
        let e = open(&path, &[]).map(|_| ()).unwrap_err();
        assert_eq!(e.code(), code::UNSUPPORTED, "{format}: {e}");
    }
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

/// Runs `vm2k` with `arguments` under strace: what it said, every open of a file that is neither below `home` nor the
/// program's own, and every connection.
fn watched(work: &Path, home: &Path, arguments: &[&str]) -> (Output, BTreeSet<String>) {
    let trace = work.join("trace");
    let output = std::process::Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-y",
            "-s",
            "4096",
            "-e",
            "trace=%file,%network",
            "-o",
        ])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_vm2k"))
        .args(arguments)
        .env_clear()
        .env("HOME", work)
        .env("TMPDIR", work)
        .env("VM2K_STORE", work.join("store"))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let own = [home, work, Path::new(env!("CARGO_BIN_EXE_vm2k"))].map(|p| p.display().to_string());
    let text = std::fs::read_to_string(&trace).unwrap();
    let mut strange = BTreeSet::new();
    let mut seen = false;
    for (call, path) in traced(&text) {
        let opens = ["open", "creat", "exec"]
            .iter()
            .any(|name| call.starts_with(name));
        let named = path.filter(|_| opens);
        seen |= named.as_ref().is_some_and(|path| path.starts_with(&own[0]));
        let elsewhere = named.is_some_and(|path| !is_below(&path, &own) && !is_below(&path, SYSTEM));
        if elsewhere || call.starts_with("connect(") {
            strange.insert(call.to_owned());
        }
    }
    assert!(seen, "strace saw nothing:\n{text}");
    (output, strange)
}

/// True if the canary's content is in any file below `dir`.
fn has_canary(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        let holds = |bytes: Vec<u8>| bytes.windows(CANARY.len()).any(|w| w == CANARY);
        match path.is_dir() {
            true => has_canary(&path),
            false => path.is_file() && holds(std::fs::read(&path).unwrap()),
        }
    })
}

/// The same with the program itself, judged by strace: the canary is a disk with a system on it, which could be listed and
/// converted. VDI names no files; its differences are refused.
#[test]
fn strace_sees_no_reference_lead_outside() {
    let test = "strace_sees_no_reference_lead_outside";
    if !tools(test, &["strace", "mke2fs"]) {
        return;
    }
    let place = Place::new();
    let work = place.dir.path().join("work");
    let system = place.dir.path().join("system");
    for dir in [&work, &system.join("etc")] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(system.join("etc/os-release"), "ID=debian\nVERSION_ID=12\n").unwrap();
    std::fs::write(system.join("etc/canary"), CANARY).unwrap();
    std::fs::write(system.join(std::str::from_utf8(CANARY).unwrap()), "").unwrap();
    let canary = place.dir.path().join("outside/canary");
    std::fs::write(&canary, vec![0; 1 << 20]).unwrap();
    support::run(
        std::process::Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
            .arg(&system)
            .arg(&canary),
    );
    while place.was_opened() {}
    let output = format!("oci:{}:a", work.join("image").display());
    let names = [
        "../outside/canary",
        "sub/../../outside/canary",
        "link2",
        "dirlink/canary",
        ".ssh/key",
        "fifo",
        "/etc/hostname",
        "/proc/self/environ",
        "/dev/zero",
        "nbd://127.0.0.1:1/x",
        canary.to_str().unwrap(),
    ];
    let (mut references, mut converted) = (0, 0);
    let mut check = |what: &str, path: &Path, convert: bool| {
        let path = path.to_str().unwrap();
        let mut commands = vec![vec!["ls", path]];
        if convert {
            commands.push(vec!["convert", path, "--base", "none", "-o", &output]);
            converted += 1;
        }
        references += 1;
        for arguments in commands {
            let (said, strange) = watched(&work, &place.home, &arguments);
            assert!(strange.is_empty(), "{what}: {arguments:?}: {strange:#?}");
            let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
            assert!(!said.status.success(), "{what}: {arguments:?}: {text}");
            assert!(!text.contains("CANARY"), "{what}: {arguments:?}: {text}");
        }
        assert!(!place.was_opened(), "{what}");
        std::fs::remove_file(work.join("trace")).unwrap();
        assert!(!has_canary(&work), "{what}");
    };
    for (n, name) in names.iter().enumerate() {
        for (what, bytes) in forms(name) {
            // An archive's own member may have any name, and holds what the archive holds.
            let bytes = match what {
                "OVA" => tar(&[("x.ovf", ovf(name).as_bytes())]),
                _ => bytes,
            };
            check(
                &format!("{what} {name}"),
                &place.write("top.image", &bytes),
                n % 5 == 0,
            );
        }
    }
    // Parts are found by their names: the second is a link.
    for (n, to) in ["../outside/canary", canary.to_str().unwrap(), "dirlink/canary"]
        .iter()
        .enumerate()
    {
        let name = format!("parts{n}.001");
        symlink(to, place.home.join(format!("parts{n}.002"))).unwrap();
        check(&format!("part {to}"), &place.write(&name, &[0; 1 << 20]), true);
    }
    println!("{references} references listed, {converted} of them converted");
    assert!(references > 40);

    // With the user's word the canary is read, and strace sees it.
    let path = place.write(
        "top.image",
        &image(Some((b"../outside/canary", Some("raw"))), None),
    );
    let outside = place.dir.path().join("outside");
    let allowed = [
        "ls",
        path.to_str().unwrap(),
        "--allow-backing",
        outside.to_str().unwrap(),
    ];
    let (said, strange) = watched(&work, &place.home, &allowed);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        text.contains("CANARY"),
        "{text}{}",
        String::from_utf8_lossy(&said.stderr)
    );
    assert!(
        strange.iter().all(|call| call.contains("outside/canary")) && strange.len() == 1,
        "{strange:?}"
    );
}
