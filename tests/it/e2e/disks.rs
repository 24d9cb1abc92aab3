//! Machines on the disks that VMs live on (`tests/disks.sh`), and machines that lost their power (`tests/crash.sh`).

use super::{Machine, Work, cache, ended, machine, repository};
use crate::kernel::{self, Mounted, Seen};
use crate::support::{bash, run, tools};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use vm2k::progress::Silent;
use vm2k::read_at::HostFile;
use vm2k::source::Source;
use vm2k::source::machine::{Machine as Opened, MachineOptions};
use vm2k::tree::Kind;

/// What `tests/disks.sh` made of the small machine.
fn disks(test: &str) -> Option<(&'static Path, &'static Machine)> {
    static DISKS: OnceLock<PathBuf> = OnceLock::new();
    let wanted = &[
        "rsync",
        "sfdisk",
        "lvcreate",
        "mkfs.xfs",
        "mkfs.vfat",
        "mcopy",
        "mkfs.btrfs",
        "qemu-img",
    ];
    let small = tools(test, wanted).then(|| machine(test, "small")).flatten()?;
    let dir = DISKS.get_or_init(|| {
        let dir = cache().join("disks");
        run(Command::new(repository("tests/disks.sh")).args([&dir, &small.dir]));
        dir
    });
    Some((dir, small))
}

/// Name, files of the disks, and how the root is found by hand.
const MACHINES: &[(&str, &[&str])] = &[
    ("lvm", &["machine.ova"]),
    ("btrfs", &["machine.vhdx"]),
    ("split", &["disk1.vdi", "disk2.vdi"]),
];

/// The filesystems of a machine as the kernel mounts them, at their places, and directories whose names and contents must be
/// found.
struct Judge {
    dir: tempfile::TempDir,
    at: Vec<PathBuf>,
    copies: Vec<(String, PathBuf)>,
}

impl Judge {
    fn of(dir: &Path) -> Self {
        let mut judge = Self {
            dir: tempfile::tempdir().unwrap(),
            at: Vec::new(),
            copies: Vec::new(),
        };
        let lines = std::fs::read_to_string(dir.join("mounts")).unwrap();
        for line in lines.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [at, file, first, length, kind, options] = fields.as_slice() else {
                panic!("{line:?}");
            };
            if *kind == "directory" {
                judge.copies.push(((*at).to_owned(), dir.join(file)));
                continue;
            }
            let at = judge.dir.path().join(at.trim_start_matches('/'));
            run(Command::new("mount")
                .args(["-t", kind, "-o"])
                .arg(format!(
                    "loop,noatime,offset={first},sizelimit={length},{options}"
                ))
                .arg(dir.join(file))
                .arg(&at));
            judge.at.push(at);
        }
        judge
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        for at in self.at.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

fn open(paths: &[PathBuf]) -> Opened {
    Opened::open(paths, &MachineOptions::default(), &Silent).unwrap_or_else(|e| panic!("{paths:?}: {e:#}"))
}

fn ours(machine: &Opened) -> Vec<Seen> {
    assert_eq!(machine.problems(), [], "{}", machine.name());
    let mut seen = kernel::ours(machine.tree(), &|id| machine.open(id));
    kernel::numbered(&mut seen);
    seen
}

fn below<'a>(seen: &'a [Seen], dir: &'a str) -> impl Iterator<Item = &'a Seen> {
    let dir = dir.as_bytes();
    seen.iter().filter(move |s| {
        let rest = s.path.as_bytes().strip_prefix(dir);
        rest.is_some_and(|r| r.len() > 1 && r.starts_with(b"/"))
    })
}

#[test]
fn a_server_reads_the_same_from_every_disk() {
    let test = "a_server_reads_the_same_from_every_disk";
    let Some((dir, _)) = disks(test) else { return };
    for (name, files) in MACHINES {
        let dir = dir.join(name);
        let paths: Vec<PathBuf> = files.iter().map(|f| dir.join(f)).collect();
        let machine = open(&paths);
        let mut found = ours(&machine);
        let judge = Judge::of(&dir);
        let mut expected = kernel::tree_across(judge.dir.path());
        for (at, copy) in &judge.copies {
            let content = |seen: &[Seen], dir: &str| -> BTreeMap<String, (char, String)> {
                below(seen, dir)
                    .map(|s| {
                        let name = s.path.to_string();
                        let kind = (s.node.kind.letter(), s.content.clone());
                        (name.strip_prefix(dir).unwrap().to_owned(), kind)
                    })
                    .collect()
            };
            assert_eq!(
                content(&found, at),
                content(&kernel::tree_of(copy), ""),
                "{name} {at}"
            );
            let keep =
                |s: &Seen| s.path.to_string() != *at && !s.path.to_string().starts_with(&format!("{at}/"));
            found.retain(keep);
            expected.retain(keep);
        }
        if *name == "btrfs" {
            // A snapshot is not walked into: its directory stays, and a note tells of it.
            let snapshot = "/.before-the-upgrade";
            assert_eq!(below(&found, snapshot).count(), 0);
            assert!(
                machine.notes().iter().any(|n| n.contains("snapshot")),
                "{:?}",
                machine.notes()
            );
            let outside = |s: &Seen| !s.path.to_string().starts_with(snapshot);
            assert!(below(&expected, snapshot).count() > 10_000);
            found.retain(outside);
            expected.retain(outside);
        }
        // Numbers are given anew: what was taken out had some of them.
        kernel::numbered(&mut found);
        kernel::numbered(&mut expected);
        assert!(expected.len() > 11_000, "{name}: {}", expected.len());
        kernel::assert_equal(name, &found, &expected);
        eprintln!("{test}: {name}: {} paths equal", expected.len());
    }
}

#[test]
fn a_server_converts_from_every_disk() {
    let test = "a_server_converts_from_every_disk";
    let Some((dir, small)) = disks(test) else { return };
    for (name, files) in MACHINES {
        let work = Work::new();
        let target = files
            .iter()
            .map(|f| dir.join(name).join(f).display().to_string())
            .collect::<Vec<_>>()
            .join("+");
        let image = work.output("oci", "image");
        ended(&mut work.vm2k(["convert", &target, "--base", &small.base(), "-o", &image])).expect(0);
        let verified = ended(&mut work.vm2k(["verify", &target, &image]));
        verified.expect(0);
        let scan = ended(&mut work.vm2k(["scan", "--json", &target]));
        scan.expect(0);
        let scan: serde_json::Value = serde_json::from_slice(&scan.stdout).unwrap();
        assert_eq!(scan["hostname"], "small1", "{name}");
        assert!(scan["packages"].as_array().unwrap().len() > 100, "{name}");
    }
}

/// What `tests/crash.sh` left.
fn crashed(test: &str) -> Option<PathBuf> {
    let wanted = &["qemu-system-x86_64", "rsync", "mkfs.xfs", "mkfs.btrfs", "apt-get"];
    if !tools(test, wanted) {
        return None;
    }
    let (small, full) = (machine(test, "small")?, machine(test, "full")?);
    let dir = cache().join("crash");
    run(Command::new(repository("tests/crash.sh")).args([&dir, &small.dir, &full.dir]));
    Some(dir)
}

#[test]
fn a_disk_that_lost_its_power_reads_like_the_recovered_one() {
    let test = "a_disk_that_lost_its_power_reads_like_the_recovered_one";
    let Some(dir) = crashed(test) else { return };
    let temp = tempfile::tempdir_in(&dir).unwrap();
    let mut failed = Vec::new();
    for name in ["ext4", "xfs", "btrfs"] {
        let image = dir.join(format!("{name}.raw"));
        let fs = vm2k::fs::open(Arc::new(HostFile::open(&image).unwrap())).unwrap();
        let listing = fs.list().unwrap();
        let found = kernel::ours(&listing.tree, &|id| fs.open(id.ino));
        eprintln!("{test}: {name}: {:?}", fs.info().notes);
        assert!(
            fs.info().notes.iter().any(|n| n.contains("replayed")),
            "{name}: it is not dirty: {:?}",
            fs.info().notes
        );
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        // The kernel recovers a copy when it mounts it for writing.
        let copy = temp.path().join(name);
        bash(r#"cp --sparse=always "$1" "$2""#, &[&image, &copy]);
        Mounted::new(&copy, "").unmount();
        let recovered = Mounted::new(&copy, "ro");
        let mut expected = kernel::tree_of(recovered.path());
        assert!(expected.len() > 11_000);
        // btrfs gives what it renames in its recovery the time of that, which is after this test began.
        let mut later = 0;
        for (seen, ours) in expected.iter_mut().zip(&found).filter(|(a, b)| a.path == b.path) {
            for (theirs, ours) in [
                (&mut seen.node.ctime, ours.node.ctime),
                (&mut seen.node.mtime, ours.node.mtime),
            ] {
                if name == "btrfs" && theirs.sec.unsigned_abs() >= now {
                    *theirs = ours;
                    later += 1;
                }
            }
        }
        assert!(later < 50, "{later} times of the recovery");
        let files = expected
            .iter()
            .filter(|s| matches!(s.node.kind, Kind::File { .. }))
            .count();
        let lines = kernel::differences(&found, &expected);
        if !lines.is_empty() || !listing.problems.is_empty() {
            let lines = lines.iter().take(6).cloned().collect::<Vec<_>>().join("\n");
            failed.push(format!("{name}: {:?}\n{lines}", listing.problems));
        }
        eprintln!("{test}: {name}: {} paths, {files} files", expected.len());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
