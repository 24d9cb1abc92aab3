//! LVM, md RAID and LUKS: what the kernel of a small virtual machine reads from them is what is read here.
//!
//! The disks come from `tests/volumes.sh` and are made once (`VM2K_TEST_CACHE`, see tests/README.md).

use crate::support::{bash, shared, tools, unzstd, vm2k};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use vm2k::bytes::hex;
use vm2k::error::{Result, code, exit_code};
use vm2k::progress::Silent;
use vm2k::read_at::{Extent, HostFile, ReadAt};
use vm2k::source::machine::{Machine, MachineOptions};
use vm2k::source::{Source, read_file};
use vm2k::volume::assemble::{Assembly, Block, assemble};
use vm2k::volume::{self, Keys, Limits, Secret};
use vm2k::{disk, fs};

const TOOLS: &[&str] = &["guestfish", "mdadm", "lvm", "cryptsetup", "sfdisk", "openssl"];

/// The folder of the disks; the first test that needs them makes them.
fn disks(test: &str) -> Option<&'static Path> {
    static DISKS: OnceLock<PathBuf> = OnceLock::new();
    if !tools(test, TOOLS) {
        return None;
    }
    Some(DISKS.get_or_init(|| {
        let cache =
            std::env::var_os("VM2K_TEST_CACHE").map_or_else(|| "/var/tmp/vm2k-machine".into(), PathBuf::from);
        let dir = cache.join("volumes");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/volumes.sh");
        bash("mkdir -p \"$2\"; \"$1\" \"$2\"", &[&script, &dir]);
        dir
    }))
}

/// Length and SHA-256 that the kernel gave each volume.
fn expected(dir: &Path) -> BTreeMap<String, (u64, String)> {
    let text = std::fs::read_to_string(dir.join("expected")).unwrap();
    text.lines()
        .map(|line| {
            let mut fields = line.split('\t');
            let name = fields.next().unwrap().to_owned();
            (
                name,
                (
                    fields.next().unwrap().parse().unwrap(),
                    fields.next().unwrap().to_owned(),
                ),
            )
        })
        .collect()
}

pub(crate) type Data = Arc<dyn ReadAt>;

pub(crate) fn open(path: &Path) -> Data {
    Arc::new(HostFile::open(path).unwrap())
}

pub(crate) fn put_together(disks: &[Data], keys: &Keys) -> Assembly {
    let mut blocks = Vec::new();
    for (n, data) in disks.iter().enumerate() {
        if let Ok(table) = volume::table(data) {
            blocks.extend(
                table
                    .volumes
                    .into_iter()
                    .map(|v| Block::of_disk(n, &format!("disk{n}"), v)),
            );
        }
    }
    assemble(blocks, keys, |v| fs::recognise(v).is_some())
}

fn images(dir: &Path, names: &[&str]) -> Vec<Data> {
    names
        .iter()
        .map(|n| open(&dir.join(format!("{n}.img"))))
        .collect()
}

fn key(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

pub(crate) fn keys(given: &[&[u8]]) -> Keys {
    Keys::new(given.iter().map(|k| key(k)).collect(), None)
}

pub(crate) fn find<'a>(assembly: &'a Assembly, path: &str) -> Option<&'a Block> {
    assembly.blocks.iter().find(|b| b.paths.iter().any(|p| p == path))
}

/// Length and SHA-256, read in pieces of odd lengths; holes are read too, to see that they are zeros.
fn sha256(data: &dyn ReadAt) -> Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut at = 0;
    let mut buf = vec![0; 700_001];
    while at < data.len() {
        let len = usize::try_from((data.len() - at).min(buf.len() as u64)).unwrap();
        data.read_at(at, &mut buf[..len])?;
        hash.update(&buf[..len]);
        at += len as u64;
    }
    let mut at = 0;
    while at < data.len() {
        let Extent { hole, len } = data.extent_at(at)?;
        assert!(
            len > 0 && at + len <= data.len(),
            "an extent of {len} bytes at {at}"
        );
        if hole {
            let len = usize::try_from(len.min(1 << 20)).unwrap();
            let mut zeros = vec![1; len];
            data.read_at(at, &mut zeros)?;
            assert!(zeros.iter().all(|b| *b == 0), "a hole at {at} with data");
        }
        at += len;
    }
    Ok((data.len(), hex(&hash.finalize())))
}

/// What is read of `path`, or why it is not.
pub(crate) fn read(assembly: &Assembly, path: &str) -> Result<(u64, String), String> {
    let block = find(assembly, path).ok_or("it is not there")?;
    match &block.failed {
        Some(e) => Err(e.to_string()),
        None => sha256(&*block.volume.data).map_err(|e| e.to_string()),
    }
}

const PVS: &[&str] = &["pv1", "pv2", "pv3", "pv4", "pv5"];

#[test]
fn logical_volumes_read_as_the_kernel_reads_them() {
    let Some(dir) = disks("logical_volumes_read_as_the_kernel_reads_them") else {
        return;
    };
    let expected = expected(dir);
    let assembly = put_together(&images(dir, PVS), &Keys::default());
    assert_eq!(assembly.notes, [""; 0]);
    let mut same = 0;
    for (name, answer) in expected.iter().filter(|(n, _)| n.starts_with("vg-a/")) {
        let read = read(&assembly, name);
        if name == "vg-a/orig-snap" {
            assert!(
                read.as_ref().is_err_and(|e| e.contains("snapshot of orig")),
                "{read:?}"
            );
            continue;
        }
        assert_eq!(read.as_ref(), Ok(answer), "{name}");
        same += 1;
    }
    assert_eq!(same, 17);
    let cached = read(&assembly, "vg-a/cachedb").unwrap_err();
    assert!(cached.contains("writeback"), "{cached}");
    // The names that the machine has, and nothing but what people see.
    for name in ["mapper/vg--a-lin--ear", "disk/by-id/dm-name-vg--a-lin--ear"] {
        assert!(find(&assembly, name).is_some(), "{name}");
    }
    let mut names: Vec<&str> = assembly.blocks.iter().map(|b| b.device.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 19, "{names:?}");
    assert!(
        names.iter().all(|n| !n.contains("rimage") && !n.contains("pool")),
        "{names:?}"
    );
    let snapshots: Vec<&str> = assembly
        .blocks
        .iter()
        .filter(|b| b.snapshot)
        .map(|b| b.device.as_str())
        .collect();
    assert_eq!(snapshots, ["/dev/vg-a/orig-snap", "/dev/vg-a/thinsnap"]);
    // Holes of a thin volume are known.
    let thin = find(&assembly, "vg-a/thin2").unwrap();
    let hole = thin.volume.data.extent_at(1 << 20).unwrap();
    assert!(hole.hole && hole.len > 40 << 20, "{hole:?}");
}

#[test]
fn what_a_missing_physical_volume_had_is_refused_by_name() {
    let Some(dir) = disks("what_a_missing_physical_volume_had_is_refused_by_name") else {
        return;
    };
    let expected = expected(dir);
    // Which volumes are read although one disk is missing: by where tests/volumes.sh puts them.
    let needs: &[(&str, &[&str])] = &[
        ("lin-ear", &["pv2", "pv3"]),
        ("striped", &["pv2", "pv3", "pv5"]),
        ("raid0", &["pv1", "pv3"]),
        ("raid0m", &["pv1", "pv3"]),
        ("raid1", &[]),
        ("mirror", &[]),
        ("raid4", &[]),
        ("raid5", &[]),
        ("raid6", &[]),
        ("raid10", &[]),
        ("cachedt", &["pv4"]),
        ("ro", &["pv4"]),
    ];
    for lost in PVS {
        let left: Vec<&str> = PVS.iter().copied().filter(|p| p != lost).collect();
        let assembly = put_together(&images(dir, &left), &Keys::default());
        let told = "1 of 5 physical volumes are missing";
        assert!(
            assembly.notes.iter().any(|n| n.contains(told)),
            "{:?}",
            assembly.notes
        );
        for (name, needs) in needs {
            let found = read(&assembly, &format!("vg-a/{name}"));
            if needs.contains(lost) {
                let why = found.expect_err(name);
                assert!(
                    why.contains("missing") || why.contains("cannot be used"),
                    "{name} without {lost}: {why}"
                );
            } else {
                assert_eq!(
                    found.as_ref(),
                    Ok(&expected[&format!("vg-a/{name}")]),
                    "{name} without {lost}"
                );
            }
        }
    }
    // Two disks: only RAID 6 has two to spare.
    for (a, b) in [(0, 1), (1, 3), (2, 4), (0, 4), (3, 4)] {
        let left: Vec<&str> = PVS
            .iter()
            .enumerate()
            .filter(|(n, _)| *n != a && *n != b)
            .map(|(_, p)| *p)
            .collect();
        let assembly = put_together(&images(dir, &left), &Keys::default());
        assert_eq!(
            read(&assembly, "vg-a/raid6").as_ref(),
            Ok(&expected["vg-a/raid6"]),
            "{a} {b}"
        );
    }
}

const MDS: &[&str] = &["md1", "md2", "md3", "md4"];

/// The array of the partitions with this number.
fn array(assembly: &Assembly, number: u32) -> Result<(u64, String), String> {
    let name = match number {
        3 => "md/three".to_owned(),
        n => format!("md{n}"),
    };
    read(assembly, &name)
}

#[test]
fn arrays_read_as_the_kernel_reads_them() {
    let Some(dir) = disks("arrays_read_as_the_kernel_reads_them") else {
        return;
    };
    let expected = expected(dir);
    // Members of each array, and how many of them may be missing.
    let arrays: &[(u32, usize, usize)] = &[
        (1, 3, 0),
        (2, 2, 1),
        (3, 2, 1),
        (4, 3, 1),
        (5, 4, 1),
        (6, 4, 2),
        (7, 4, 1),
        (8, 4, 1),
        (9, 3, 1),
        (10, 2, 0),
        (11, 3, 1),
        (12, 2, 0),
        (13, 4, 2),
    ];
    let mut read = 0;
    for missing in 0..16u32 {
        let left: Vec<&str> = (0..4).filter(|n| missing >> n & 1 == 0).map(|n| MDS[n]).collect();
        let assembly = put_together(&images(dir, &left), &Keys::default());
        for (number, members, spare) in arrays {
            let gone = (missing & ((1 << members) - 1)).count_ones() as usize;
            let found = array(&assembly, *number);
            if gone <= *spare {
                assert_eq!(
                    found.as_ref(),
                    Ok(&expected[&format!("md{number}")]),
                    "md{number} without {missing:04b}"
                );
                read += 1;
            } else if gone < *members && !matches!(number, 7 | 8) {
                // RAID 10 of four may do with two, if they are the right ones.
                let why = found.expect_err("too many are missing");
                assert!(why.contains("missing"), "md{number} without {missing:04b}: {why}");
            }
            let told = assembly
                .notes
                .iter()
                .any(|n| n.starts_with(&format!("/dev/md{number} is degraded")));
            assert!(
                *number == 3 || gone > *spare || told == (gone > 0),
                "{:?}",
                assembly.notes
            );
        }
        // The first member of the last array failed: it is out of date.
        if missing & 0b110 != 0b110 {
            assert_eq!(
                array(&assembly, 14).as_ref(),
                Ok(&expected["md14"]),
                "without {missing:04b}"
            );
        }
        if missing == 0 {
            let told = "disk0 partition 14 is not used for /dev/md14";
            assert!(
                assembly.notes.iter().any(|n| n.starts_with(told)),
                "{:?}",
                assembly.notes
            );
        }
    }
    println!("{read} arrays read");
    // Pairs of two members of near and far copies: those that have one of each.
    let pair = |names: &[&str], number| array(&put_together(&images(dir, names), &Keys::default()), number);
    assert_eq!(pair(&["md1", "md3"], 7).as_ref(), Ok(&expected["md7"]));
    assert_eq!(pair(&["md2", "md4"], 8).as_ref(), Ok(&expected["md8"]));
    assert!(pair(&["md1", "md2"], 7).is_err());
}

#[test]
fn encrypted_volumes_open_with_their_keys() {
    let Some(dir) = disks("encrypted_volumes_open_with_their_keys") else {
        return;
    };
    let expected = expected(dir);
    let (pass, file) = (
        std::fs::read(dir.join("pass")).unwrap(),
        std::fs::read(dir.join("key")).unwrap(),
    );
    let luks = images(dir, &["luks"]);
    let line = [pass.as_slice(), b"\n"].concat();
    for given in [vec![pass.as_slice()], vec![b"wrong", &pass], vec![&line]] {
        let assembly = put_together(&luks, &keys(&given));
        for (n, block) in (1..).zip(assembly.blocks.iter().filter(|b| b.paths.is_empty())) {
            assert_eq!(n, 1, "{} is not open", block.device);
            let why = block.failed.as_ref().unwrap();
            assert_eq!(why.to_string(), "LUKS with the cipher serpent-xts-plain64");
            assert_eq!(why.code(), code::UNSUPPORTED);
        }
        let opened: Vec<&Block> = assembly.blocks.iter().filter(|b| !b.paths.is_empty()).collect();
        assert_eq!(opened.len(), 6);
        for (n, block) in (1..).zip(opened) {
            assert_eq!(block.container.as_ref().unwrap().number, Some(n));
            let found = sha256(&*block.volume.data).unwrap();
            assert_eq!(found, expected[&format!("luks{n}")], "luks{n}");
        }
    }
    // The second key slot of the sixth.
    let assembly = put_together(&luks, &keys(&[&file]));
    let opened: Vec<&Block> = assembly.blocks.iter().filter(|b| !b.paths.is_empty()).collect();
    assert_eq!(opened.len(), 1);
    assert_eq!(sha256(&*opened[0].volume.data).unwrap(), expected["luks6"]);
    for (given, what) in [
        (vec![], "encrypted volume"),
        (vec![b"wrong".as_slice()], "that the key given does not open"),
        (vec![b"wrong", b"correct"], "that none of the 2 keys given opens"),
    ] {
        let assembly = put_together(&luks, &keys(&given));
        assert_eq!(assembly.blocks.len(), 7);
        for block in assembly.blocks.iter().take(6) {
            let why = block.failed.as_ref().unwrap();
            assert!(
                why.to_string().ends_with(what) && !why.to_string().contains("correct"),
                "{why}"
            );
            assert_eq!(why.code(), code::UNSUPPORTED);
        }
    }
    // A first header of LUKS2 that is damaged: the second is read.
    let table = volume::table(&luks[0]).unwrap();
    let at = table.volumes[3].start;
    let damaged: Data = Arc::new(Patched::new(&luks[0], vec![(at + 20, vec![0xff])]));
    let assembly = put_together(&[damaged], &keys(&[&pass]));
    let told = "disk0 partition 4: the first LUKS2 header is damaged, the second is read";
    assert_eq!(assembly.notes, [told]);
    assert_eq!(assembly.blocks.iter().filter(|b| !b.paths.is_empty()).count(), 6);
    // Asked for: once for each volume that no passphrase fits that was told before.
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&asked);
    let ask: volume::Ask = Arc::new(move |device| {
        note.lock().unwrap().push(device.to_owned());
        Some(key(b"correct horse"))
    });
    let assembly = put_together(&luks, &Keys::new(Vec::new(), Some(ask)));
    assert_eq!(assembly.blocks.iter().filter(|b| !b.paths.is_empty()).count(), 6);
    assert_eq!(*asked.lock().unwrap(), ["disk0 partition 1"]);
}

/// LUKS1 as qemu-img writes it, with content that qemu-img encrypted.
#[test]
fn encrypted_volumes_of_qemu_read_as_it_reads_them() {
    let test = "encrypted_volumes_of_qemu_read_as_it_reads_them";
    if !tools(test, &["qemu-img", "openssl"]) {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    bash("head -c 3145728 /dev/urandom >$1/plain", &[dir]);
    let expected = sha256(&*open(&dir.join("plain"))).unwrap();
    for (n, (cipher, mode, iv, hash)) in [
        ("aes-256", "xts", "plain", "sha512"),
        ("aes-128", "cbc", "essiv", "sha256"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = dir.join(format!("{n}"));
        let essiv = if iv == "essiv" {
            ",ivgen-hash-alg=sha256"
        } else {
            ""
        };
        let options = format!(
            "key-secret=s,iter-time=10,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={iv}{essiv},hash-alg={hash}"
        );
        // qemu-img measures how fast it hashes, and on a busy machine it may give up: "Unable to get accurate CPU usage".
        bash(
            "for i in 1 2 3 4 5; do
               qemu-img convert -f raw -O luks --object secret,id=s,data=swordfish -o $3 $1 $2 2>$2.err && exit
               grep -q 'accurate CPU usage' $2.err || break
             done; cat $2.err >&2; exit 1",
            &[&dir.join("plain"), &image, Path::new(&options)],
        );
        let assembly = put_together(&[open(&image)], &keys(&[b"swordfish"]));
        let [block] = assembly.blocks.as_slice() else {
            panic!("{} volumes", assembly.blocks.len())
        };
        assert!(
            block.failed.is_none(),
            "{cipher} {mode} {iv} {hash}: {:?}",
            block.failed
        );
        assert_eq!(
            sha256(&*block.volume.data).unwrap(),
            expected,
            "{cipher} {mode} {iv} {hash}"
        );
    }
}

fn machine(disks: &[&Path], root: Option<&str>, given: &[&[u8]]) -> anyhow::Result<Machine> {
    let options = MachineOptions {
        root: root.map(str::to_owned),
        keys: keys(given),
        ..MachineOptions::default()
    };
    let paths: Vec<PathBuf> = disks.iter().map(|d| (*d).to_owned()).collect();
    Machine::open(&paths, &options, &Silent)
}

fn text(machine: &Machine, path: &str) -> Option<String> {
    let bytes = read_file(machine, path, 1 << 20).unwrap()?;
    Some(String::from_utf8(bytes).unwrap())
}

#[test]
fn a_machine_in_layers_is_one_tree() {
    let Some(dir) = disks("a_machine_in_layers_is_one_tree") else {
        return;
    };
    let (one, two) = (dir.join("m1.img"), dir.join("m2.img"));
    let (pass, file) = (
        std::fs::read(dir.join("pass")).unwrap(),
        std::fs::read(dir.join("key")).unwrap(),
    );
    let places = ["", "/boot", "/var", "/home", "/srv", "/secret"];
    for disks in [vec![&*one, &*two], vec![&two, &one]] {
        let machine = machine(&disks, None, &[&pass, &file]).unwrap();
        assert!(machine.problems().is_empty(), "{:?}", machine.problems());
        for at in places {
            let name = if at.is_empty() { "/" } else { at };
            assert_eq!(
                text(&machine, &format!("{at}/name")),
                Some(format!("this is {name}\n"))
            );
        }
        let mounted: Vec<&str> = machine
            .filesystems()
            .iter()
            .filter_map(|f| f.mounted.as_deref())
            .collect();
        assert_eq!(mounted.len(), 6, "{mounted:?}");
    }
    // What was written within the last two seconds has no identity yet.
    std::thread::sleep(std::time::Duration::from_millis(3100));
    // Without one of the keys, or one of the disks: what is missing is told, the rest is read.
    let without = machine(&[&one, &two], None, &[&pass]).unwrap();
    assert_eq!(text(&without, "/srv/name").as_deref(), Some("this is /srv\n"));
    let told = without.problems();
    assert!(
        told.len() == 1 && told[0].path.to_string() == "/secret" && told[0].what.contains("LUKS2"),
        "{told:?}"
    );
    let identity = |m: &Machine| m.identity().unwrap().to_owned();
    let with = machine(&[&one, &two], None, &[&pass, &file]).unwrap();
    assert_ne!(
        identity(&without),
        identity(&with),
        "what one key opens is another machine"
    );
    let degraded = machine(&[&two], None, &[&pass, &file]).unwrap();
    assert!(degraded.problems().is_empty(), "{:?}", degraded.problems());
    assert_eq!(
        text(&degraded, "/secret/name").as_deref(),
        Some("this is /secret\n")
    );
    assert_eq!(
        degraded
            .notes()
            .iter()
            .filter(|n| n.contains("is degraded"))
            .count(),
        2
    );
    let first = machine(&[&one], None, &[&pass, &file]).unwrap();
    let told: Vec<String> = first.problems().iter().map(|p| p.path.to_string()).collect();
    assert_eq!(told, ["/srv", "/secret"], "they lie on the second disk alone");
    // No key at all: the root is encrypted.
    let e = machine(&[&one, &two], None, &[]).unwrap_err();
    assert_eq!(exit_code(&e), code::UNSUPPORTED);
    let report = vm2k::error::report(&e);
    assert!(
        report.contains("LUKS2") && report.contains("--key-file"),
        "{report}"
    );
    // Every name of the root.
    for root in [
        "debian-vg/root",
        "/dev/debian-vg/root",
        "/dev/mapper/debian--vg-root",
        "mapper/debian--vg-root",
    ] {
        let machine = machine(&[&one, &two], Some(root), &[&pass]).unwrap();
        assert_eq!(text(&machine, "/name").as_deref(), Some("this is /\n"), "{root}");
    }
}

#[test]
fn the_command_line_takes_keys_and_shows_none() {
    let test = "the_command_line_takes_keys_and_shows_none";
    let Some(dir) = disks(test) else {
        return;
    };
    if !tools(test, &["script"]) {
        return;
    }
    let target = format!(
        "{}+{}",
        dir.join("m1.img").display(),
        dir.join("m2.img").display()
    );
    let store = tempfile::tempdir().unwrap();
    let command = |arguments: &[&str]| {
        let mut command = vm2k();
        command
            .args(arguments)
            .env("VM2K_STORE", store.path())
            .stdin(Stdio::null());
        command
    };
    let (pass, file) = (dir.join("pass"), dir.join("key"));
    let (pass, file) = (pass.to_str().unwrap(), file.to_str().unwrap());
    let both = ["--key-file", pass, "--key-file", file];
    let out = command(&[&["cat", &target, "/secret/name"], &both[..]].concat())
        .output()
        .unwrap();
    assert_eq!(
        (out.status.code(), &*out.stdout),
        (Some(0), &b"this is /secret\n"[..])
    );
    // From stdin.
    let stdin = std::fs::File::open(pass).unwrap();
    let out = command(&["cat", &target, "/home/name", "--key-file", "-"])
        .stdin(stdin)
        .output()
        .unwrap();
    assert_eq!(
        (out.status.code(), &*out.stdout),
        (Some(0), &b"this is /home\n"[..])
    );
    // None, and a wrong one.
    for arguments in [
        &["scan", &target][..],
        &["scan", &target, "--key-file", "/etc/hostname"],
    ] {
        let out = command(arguments).output().unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(6), "{err}");
        assert!(err.contains("hint: give the key"), "{err}");
    }
    let out = command(&["scan", &target, "--key-file", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let out = command(&["scan", &target, "--key-file", "-", "--key-file", "-"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    // A terminal: asked, not shown.
    let line = format!("{} cat {target} /home/name", env!("CARGO_BIN_EXE_vm2k"));
    let out = Command::new("bash")
        .args([
            "-c",
            "{ sleep 3; echo 'correct horse'; sleep 3; echo; sleep 4; } | script -qec \"$1\" /dev/null",
            "bash",
            &line,
        ])
        .env("VM2K_STORE", store.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&out.stdout);
    assert!(
        shown.contains("passphrase for ") && shown.contains("this is /home"),
        "{shown}"
    );
    assert!(!shown.contains("correct"), "{shown}");
}

/// Real machines of libguestfs: Debian on LVM, Fedora on md RAID 1.
#[test]
fn stand_ins_of_libguestfs() {
    let test = "stand_ins_of_libguestfs";
    let Some(guests) = shared(test, "guests") else {
        return;
    };
    if !tools(test, &["zstd"]) {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let unpack = |name: &str| unzstd(&guests.join(name), temp.path());
    let answer = std::fs::read_to_string(guests.join("debian.inspector.xml")).unwrap();
    let debian = machine(&[&unpack("debian.img.zst")], None, &[]).unwrap();
    let mut found = 0;
    for line in answer
        .lines()
        .filter_map(|l| l.trim().strip_prefix("<mountpoint dev=\""))
    {
        let (device, rest) = line.split_once("\">").unwrap();
        let at = rest.strip_suffix("</mountpoint>").unwrap();
        let device = if device == "/dev/sda1" {
            "debian.img partition 1"
        } else {
            device
        };
        let ours = debian
            .filesystems()
            .iter()
            .find(|f| f.mounted.as_deref() == Some(at))
            .unwrap();
        assert_eq!(ours.device, device);
        let uuid = ours.uuid.as_ref().unwrap();
        assert!(answer.contains(&format!("<uuid>{uuid}</uuid>")), "{uuid}");
        found += 1;
    }
    assert_eq!(found, 5);
    let name = text(&debian, "/etc/hostname").unwrap();
    assert!(
        answer.contains(&format!("<hostname>{}</hostname>", name.trim())),
        "{name}"
    );
    assert!(debian.problems().is_empty(), "{:?}", debian.problems());
    let (one, two) = (unpack("fedora-md1.img.zst"), unpack("fedora-md2.img.zst"));
    for (disks, degraded) in [
        (vec![&*one, &*two], 0),
        (vec![&two, &one], 0),
        (vec![&one], 2),
        (vec![&two], 2),
    ] {
        let fedora = machine(&disks, None, &[]).unwrap();
        let told = fedora
            .notes()
            .iter()
            .filter(|n| n.contains("is degraded"))
            .count();
        assert_eq!(told, degraded, "{:?}", fedora.notes());
        let release = text(&fedora, "/etc/fedora-release").unwrap();
        assert!(release.contains("Fedora"), "{release}");
        let boot = fedora
            .filesystems()
            .iter()
            .find(|f| f.mounted.as_deref() == Some("/boot"));
        assert!(
            boot.is_some_and(|f| f.device.starts_with("/dev/md")),
            "{:?}",
            fedora.filesystems()
        );
    }
}

/// A disk with some bytes changed.
struct Patched {
    inner: Data,
    patches: Vec<(u64, Vec<u8>)>,
}

impl Patched {
    fn new(inner: &Data, patches: Vec<(u64, Vec<u8>)>) -> Self {
        Self {
            inner: Arc::clone(inner),
            patches,
        }
    }
}

impl ReadAt for Patched {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)?;
        for (at, bytes) in &self.patches {
            for (n, byte) in (*at..).zip(bytes) {
                if let Some(b) = n
                    .checked_sub(offset)
                    .and_then(|i| buf.get_mut(usize::try_from(i).ok()?))
                {
                    *b = *byte;
                }
            }
        }
        Ok(())
    }
}

fn mutants() -> u64 {
    std::env::var("VM2K_MUTANTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(40)
}

/// Reads a little everywhere of all that was made.
fn touch(assembly: &Assembly) -> u64 {
    let mut made = 0;
    let mut buf = vec![0; 9000];
    for block in assembly
        .blocks
        .iter()
        .filter(|b| b.failed.is_none() && !b.paths.is_empty())
    {
        made += 1;
        let data = &block.volume.data;
        let mut at = 0;
        for _ in 0..12 {
            let Ok(extent) = data.extent_at(at) else { break };
            assert!(extent.len > 0 || at >= data.len(), "an extent without a length");
            let len = usize::try_from(data.len().saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(buf.len());
            let _ = data.read_at(at, &mut buf[..len]);
            at = at.saturating_add(extent.len.max(data.len() / 10));
        }
    }
    made
}

/// Made-up headers: neither a panic nor a hang, whatever is in them. Half of the time their checksums are made right again,
/// so that the fields themselves are what is hostile.
#[test]
fn mutants_of_headers_end() {
    let Some(dir) = disks("mutants_of_headers_end") else {
        return;
    };
    let mut x = 88172645463325252u64;
    let mut next = move |n: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % n
    };
    let mut luks_keys = keys(&[b"correct horse"]);
    luks_keys.limits = Limits {
        memory: 4096,
        passes: 1 << 16,
        iterations: 20_000,
    };
    type Sum = fn(&mut [u8]);
    let lvm: Vec<Data> = images(dir, PVS);
    let md: Vec<Data> = images(dir, MDS);
    let luks: Vec<Data> = images(dir, &["luks"]);
    let start = |data: &Data, n: usize| volume::table(data).unwrap().volumes[n].start;
    // Where the thin pool's metadata are: the block with its magic number.
    let pool: Vec<(usize, u64)> = (0..lvm.len())
        .flat_map(|d| (0..lvm[d].len() / 4096).map(move |n| (d, n * 4096)))
        .filter(|(d, at)| {
            let mut b = [0; 40];
            lvm[*d].read_at(*at, &mut b).is_ok()
                && u64::from_le_bytes(b[32..40].try_into().unwrap()) == 27_022_010
        })
        .collect();
    assert_eq!(pool.len(), 1, "{pool:?}");
    let (pool_disk, pool_at) = pool[0];
    // Kind, disks, the disk that is changed, where and how much of it, and its checksum.
    type Region<'a> = (&'a str, &'a [Data], usize, u64, usize, Sum);
    let mut regions: Vec<Region<'_>> = vec![
        ("LVM label", &lvm, 0, 512, 512, |b| lvm_sum(b, 16, 20)),
        ("LVM metadata header", &lvm, 0, 4096, 512, |b| lvm_sum(b, 0, 4)),
        ("thin superblock", &lvm, pool_disk, pool_at, 4096, |b| {
            thin_sum(b, 160_774)
        }),
        ("LUKS1", &luks, 0, start(&luks[0], 0), 592, |_| {}),
        ("LUKS2", &luks, 0, start(&luks[0], 3), 0x4000, luks2_sum),
    ];
    for n in 1..40 {
        regions.push(("thin btree", &lvm, pool_disk, pool_at + n * 4096, 4096, |b| {
            thin_sum(b, 121_107)
        }));
    }
    for number in [1, 4, 6, 7, 9, 14] {
        let at = start(&md[0], number - 1) + if number == 6 { 0 } else { 4096 };
        regions.push(("md 1.x", &md, 0, at, 512, md_sum));
    }
    for number in [2, 5, 8] {
        let table = volume::table(&md[0]).unwrap();
        let part = &table.volumes[number - 1];
        let at = part.start + (part.data.len() & !0xffff) - 0x1_0000;
        regions.push(("md 0.90", &md, 0, at, 4096, md_0_sum));
    }
    let mut counts: BTreeMap<&str, (u64, u64, u128)> = BTreeMap::new();
    let kinds: std::collections::BTreeSet<&str> = regions.iter().map(|r| r.0).collect();
    for kind in kinds {
        let of_kind: Vec<_> = regions.iter().filter(|r| r.0 == kind).collect();
        for n in 0..mutants() {
            let (_, disks, disk, at, len, sum) =
                of_kind[usize::try_from(next(of_kind.len() as u64)).unwrap()];
            let mut bytes = vec![0; *len];
            disks[*disk].read_at(*at, &mut bytes).unwrap();
            let used: Vec<usize> = (0..*len).filter(|i| bytes[*i] != 0 || i % 64 < 8).collect();
            for _ in 0..1 + next(3) {
                let i = used[usize::try_from(next(used.len() as u64)).unwrap()];
                match next(4) {
                    0 => bytes[i] = u8::try_from(next(256)).unwrap(),
                    1 => bytes[i] ^= 1 << next(8),
                    2 if i + 4 <= *len => {
                        bytes[i..i + 4].fill([0, 0xff, 0x7f, 0x80][usize::try_from(next(4)).unwrap()])
                    }
                    _ => bytes[i] = b"0917{}[]\","[usize::try_from(next(10)).unwrap()],
                }
            }
            if n % 2 == 0 {
                sum(&mut bytes);
            }
            let mut all: Vec<Data> = disks.to_vec();
            all[*disk] = Arc::new(Patched::new(&disks[*disk], vec![(*at, bytes)]));
            if next(3) == 0 {
                all.remove((*disk + 1) % all.len().max(2) % all.len());
            }
            let begun = Instant::now();
            let made = touch(&put_together(&all, &luks_keys));
            let took = begun.elapsed();
            assert!(took.as_secs() < 5, "{kind} mutant {n}: {took:?}");
            let count = counts.entry(kind).or_default();
            *count = (count.0 + 1, count.1 + made, count.2.max(took.as_millis()));
        }
    }
    for (kind, (mutants, made, slowest)) in counts {
        println!("{kind}: {mutants} mutants, {made} volumes made, the slowest took {slowest} ms");
    }
}

/// The text of LVM's metadata, changed and with its checksums right.
#[test]
fn mutants_of_lvm_text_end() {
    let Some(dir) = disks("mutants_of_lvm_text_end") else {
        return;
    };
    let disks = images(dir, PVS);
    let mut header = vec![0; 512];
    disks[0].read_at(4096, &mut header).unwrap();
    let field = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
    let (offset, len) = (field(40), usize::try_from(field(48)).unwrap());
    let mut text = vec![0; len];
    disks[0].read_at(4096 + offset, &mut text).unwrap();
    assert!(text.starts_with(b"vg-a {"), "the text does not go around here");
    let words: Vec<&[u8]> = vec![
        b"pv0",
        b"pv1",
        b"thin1",
        b"pool",
        b"pool_tmeta",
        b"raid5_rimage_0",
        b"raid1",
        b"thin",
        b"snapshot",
        b"0",
        b"1",
        b"4294967296",
        b"18446744073709551615",
        b"-1",
        b"striped",
        b"raid6_zr",
        b"cache",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
    ];
    let mut x = 0x2545_f491_4f6c_dd1du64;
    let mut next = move |n: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        usize::try_from(x % n as u64).unwrap()
    };
    let tokens: Vec<(usize, usize)> = {
        let is = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
        let mut found = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let end = (at..text.len()).find(|i| !is(text[*i])).unwrap_or(text.len());
            if end > at {
                found.push((at, end));
            }
            at = end + 1;
        }
        found
    };
    let (mut made, mut slowest) = (0, 0);
    for n in 0..mutants() * 4 {
        let mut mutant = text.clone();
        for _ in 0..1 + next(3) {
            let (from, to) = tokens[next(tokens.len())];
            let with = match next(3) {
                0 => {
                    let (a, b) = tokens[next(tokens.len())];
                    text[a..b].to_vec()
                }
                _ => words[next(words.len())].to_vec(),
            };
            let to = to.min(mutant.len());
            mutant.splice(from.min(to)..to, with);
        }
        mutant.truncate(500_000);
        let mut header = header.clone();
        header[48..56].copy_from_slice(&(mutant.len() as u64).to_le_bytes());
        header[56..60].copy_from_slice(&lvm_crc(&mutant).to_le_bytes());
        lvm_sum(&mut header, 0, 4);
        // Only the first disk's copy is read: the others' are made bad.
        let patches = vec![(4096, header), (4096 + offset, mutant)];
        let mut all: Vec<Data> = vec![Arc::new(Patched::new(&disks[0], patches))];
        for disk in &disks[1..] {
            let at = 4096
                + if disk.len() > 100 << 20 {
                    volume::table(disk).unwrap().volumes[0].start
                } else {
                    0
                };
            all.push(Arc::new(Patched::new(disk, vec![(at, vec![0; 512])])));
        }
        let begun = Instant::now();
        made += touch(&put_together(&all, &Keys::default()));
        let took = begun.elapsed();
        assert!(took.as_secs() < 5, "mutant {n}: {took:?}");
        slowest = slowest.max(took.as_millis());
    }
    assert!(made > 0);
    println!(
        "{} mutants, {made} volumes made, the slowest took {slowest} ms",
        mutants() * 4
    );
}

fn lvm_crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
    hasher.update(bytes);
    !hasher.finalize()
}

fn lvm_sum(b: &mut [u8], at: usize, from: usize) {
    let sum = lvm_crc(&b[from..]);
    b[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

fn thin_sum(b: &mut [u8], xor: u32) {
    let sum = !crc32c::crc32c(&b[4..]) ^ xor;
    b[..4].copy_from_slice(&sum.to_le_bytes());
}

pub(crate) fn luks2_sum(b: &mut [u8]) {
    b[448..512].fill(0);
    let sum = Sha256::digest(&*b);
    b[448..480].copy_from_slice(&sum);
}

fn md_sum(b: &mut [u8]) {
    let roles = u32::from_le_bytes(b[220..224].try_into().unwrap()) as usize;
    b[216..220].fill(0);
    let len = (256 + roles.min(64) * 2).min(b.len());
    let sum: u64 = b[..len]
        .chunks_exact(4)
        .map(|w| u64::from(u32::from_le_bytes(w.try_into().unwrap())))
        .sum();
    let sum = u32::try_from(((sum & 0xffff_ffff) + (sum >> 32)) & 0xffff_ffff).unwrap();
    b[216..220].copy_from_slice(&sum.to_le_bytes());
}

fn md_0_sum(b: &mut [u8]) {
    b[152..156].fill(0);
    let sum: u64 = b
        .chunks_exact(4)
        .map(|w| u64::from(u32::from_le_bytes(w.try_into().unwrap())))
        .sum();
    let sum = u32::try_from(((sum & 0xffff_ffff) + (sum >> 32)) & 0xffff_ffff).unwrap();
    b[152..156].copy_from_slice(&sum.to_le_bytes());
}

/// A disk that is opened whatever its format keeps its volumes: qcow2 below LVM.
#[test]
fn volumes_in_qcow2() {
    let Some(dir) = disks("volumes_in_qcow2") else {
        return;
    };
    if !tools("volumes_in_qcow2", &["qemu-img"]) {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = temp.path().join("pv2.qcow2");
    bash(
        "qemu-img convert -f raw -O qcow2 $1 $2",
        &[&dir.join("pv2.img"), &image],
    );
    let gate = disk::Gate::new(&[]).unwrap();
    let mut all = images(dir, PVS);
    all[1] = disk::open(&image, &gate).unwrap().data;
    let assembly = put_together(&all, &Keys::default());
    assert_eq!(
        read(&assembly, "vg-a/striped").as_ref(),
        Ok(&expected(dir)["vg-a/striped"])
    );
}
