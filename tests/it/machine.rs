//! Machines of several disks: which filesystem is the root, what is mounted where, what is said when there is none.

use crate::support::{bash, shared, tools, unzstd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use vm2k::error::{code, exit_code, report};
use vm2k::progress::{Progress, Silent, Stage};
use vm2k::source::machine::{Machine, MachineOptions};
use vm2k::source::{Source, read_file};

/// Collects warnings.
#[derive(Default)]
struct Warned(Mutex<Vec<String>>);

impl Progress for Warned {
    fn stage(&self, _: &str, _: Option<u64>) -> std::sync::Arc<dyn Stage> {
        std::sync::Arc::new(Silent)
    }
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

fn open(disks: &[&Path], root: Option<&str>) -> anyhow::Result<Machine> {
    let options = MachineOptions {
        root: root.map(str::to_owned),
        ..MachineOptions::default()
    };
    let paths: Vec<PathBuf> = disks.iter().map(|d| (*d).to_owned()).collect();
    Machine::open(&paths, &options, &Silent)
}

fn any(disks: &[&Path], root: Option<&str>) -> anyhow::Result<Machine> {
    let options = MachineOptions {
        root: root.map(str::to_owned),
        ..MachineOptions::default()
    };
    let paths: Vec<PathBuf> = disks.iter().map(|d| (*d).to_owned()).collect();
    Machine::open_any(&paths, &options, &Silent)
}

fn text(machine: &Machine, path: &str) -> Option<String> {
    read_file(machine, path, 1 << 20)
        .unwrap()
        .map(|b| String::from_utf8(b).unwrap())
}

/// Shell functions that make disks without mounting: `fs DISK OFFSET_MIB SIZE_MIB DIR [mke2fs options]`.
const MAKE: &str = r#"
cd "$1"
fs() { local disk=$1 at=$2 size=$3 dir=$4; shift 4
  mke2fs -q -F -t ext4 -E offset=$((at * 1048576)) -d "$dir" "$@" "$disk" "${size}M" 2>&1 | { grep -v -i warning || true; }; }
system() { mkdir -p "$1/etc" "$1/usr/bin" "$1/home" "$1/var"; ln -s usr/bin "$1/bin"
  printf 'ID=test\nPRETTY_NAME="%s"\n' "$2" >"$1/etc/os-release"; : >"$1/etc/fstab"; }
"#;

fn make(dir: &Path, script: &str) {
    bash(&format!("{MAKE}{script}"), &[dir]);
}

#[test]
fn fstab_puts_the_disks_together() {
    let test = "fstab_puts_the_disks_together";
    if !tools(test, &["mke2fs", "sgdisk", "sfdisk", "qemu-img", "mkfs.vfat"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(
        dir,
        r#"
system root "Test Linux 1"
mkdir -p root/data/deep; echo hidden >root/home/hidden; ln -s data/deep root/mnt
cat >root/etc/fstab <<'F'
# comment
UUID=11111111-1111-1111-1111-111111111111 / ext4 defaults 0 1
LABEL=var\040lib /var/lib ext4 defaults 0 2
UUID="22222222-2222-2222-2222-222222222222" /var ext4 defaults 0 2
PARTUUID=AAAAAAAA-0000-4000-8000-000000000003 /home auto defaults 0 2
PARTLABEL=spool /var/spool ext4 defaults 0 2
/dev/disk/by-label/linked /mnt ext4 defaults 0 2
/dev/sdb1 /srv/new/place ext4 defaults 0 2
/dev/vdb1 /srv/twice ext4 defaults 0 2
/dev/vdc /whole ext4 defaults 0 2
/dev/mapper/vg-lost /lost ext4 defaults 0 2
UUID=99999999-9999-9999-9999-999999999999 /maybe ext4 nofail 0 2
/dev/sr0 /media iso9660 noauto 0 0
nas:/export /net nfs defaults 0 0
/home /export/home none bind 0 0
tmpfs /tmp tmpfs defaults 0 0
/dev/sda9 none swap sw 0 0
UUID=1234-5678 /boot/efi vfat umask=0077 0 1
F
for d in var varlib home spool linked srv whole; do mkdir $d; echo $d >$d/file; done
mkdir var/lib var/spool; echo below >var/lib/below; ln var/file var/hard
truncate -s 80M a.img; truncate -s 20M b.img; truncate -s 8M c.img
sgdisk -n 1:1M:+15M -n 2:16M:+8M -n 3:24M:+8M -n 4:32M:+8M -n 5:40M:+8M -n 6:48M:+8M -n 7:56M:+8M \
  -u 3:aaaaaaaa-0000-4000-8000-000000000003 -c 5:spool a.img >/dev/null
fs a.img 1 15 root -U 11111111-1111-1111-1111-111111111111
fs a.img 16 8 var -U 22222222-2222-2222-2222-222222222222
fs a.img 24 8 home
fs a.img 32 8 varlib -L "var lib"
fs a.img 40 8 spool
fs a.img 48 8 linked -L linked
truncate -s 8M efi.img; mkfs.vfat -i 12345678 -n EFI efi.img >/dev/null; dd if=efi.img of=a.img bs=1M seek=56 conv=notrunc status=none
printf 'label: dos\n,10M,L\n' | sfdisk -q b.img
fs b.img 1 10 srv
fs c.img 0 8 whole
qemu-img convert -O qcow2 b.img b.qcow2
"#,
    );
    let (a, b, c) = (dir.join("a.img"), dir.join("b.qcow2"), dir.join("c.img"));
    let warned = Warned::default();
    let machine = Machine::open(
        &[a.clone(), b.clone(), c.clone()],
        &MachineOptions::default(),
        &warned,
    )
    .unwrap();
    assert_eq!(machine.name(), "a.img+b.qcow2+c.img");
    for (path, content) in [
        ("/var/file", "var"),
        ("/var/lib/file", "varlib"),
        ("/var/spool/file", "spool"),
        ("/home/file", "home"),
        ("/data/deep/file", "linked"),
        ("/mnt/file", "linked"),
        ("/srv/new/place/file", "srv"),
        ("/srv/twice/file", "srv"),
        ("/whole/file", "whole"),
    ] {
        assert_eq!(text(&machine, path), Some(format!("{content}\n")), "{path}");
    }
    assert_eq!(text(&machine, "/home/hidden"), None);
    assert_eq!(text(&machine, "/var/lib/below"), None);
    assert_eq!(
        machine.tree().hard_links().len(),
        1,
        "{:?}",
        machine.tree().hard_links()
    );
    let mut numbers: Vec<u32> = machine.tree().iter().map(|(_, n)| n.id.fs).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());

    let problems: Vec<String> = machine
        .problems()
        .iter()
        .map(|p| format!("{}: {}", p.path, p.what))
        .collect();
    assert!(
        problems
            .iter()
            .any(|p| p.starts_with("/lost: /dev/mapper/vg-lost")),
        "{problems:?}"
    );
    assert!(
        problems
            .iter()
            .all(|p| p.starts_with("/lost") || p.starts_with("/boot/efi")),
        "{problems:?}"
    );
    for expected in ["/maybe", "/media", "nas:/export", "bind"] {
        assert!(
            machine.notes().iter().any(|n| n.contains(expected)),
            "{expected}: {:?}",
            machine.notes()
        );
    }
    assert_eq!(*warned.0.lock().unwrap(), machine.notes());
    let mounted: Vec<(String, Option<String>)> = machine
        .filesystems()
        .iter()
        .map(|f| (f.device.clone(), f.mounted.clone()))
        .collect();
    let find = |device: &str| mounted.iter().find(|(d, _)| d == device).unwrap().1.as_deref();
    assert_eq!(find("a.img partition 1"), Some("/"));
    assert_eq!(find("a.img partition 4"), Some("/var/lib"));
    assert_eq!(find("a.img partition 6"), Some("/data/deep"));
    assert_eq!(find("b.qcow2 partition 1"), Some("/srv/twice"));
    assert_eq!(find("c.img"), Some("/whole"));

    // The same with one disk missing: what it held is named.
    let machine = open(&[&a], None).unwrap();
    let named = |path: &str| machine.problems().iter().any(|p| p.path.to_string() == path);
    assert!(named("/srv/new/place") && named("/whole"));
}

#[test]
fn filesystems_that_are_not_read_have_their_names() {
    let test = "filesystems_that_are_not_read_have_their_names";
    if !tools(
        test,
        &[
            "blkid",
            "mkfs.vfat",
            "mkfs.ntfs",
            "mkswap",
            "mkfs.xfs",
            "mkfs.btrfs",
        ],
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    for (kind, make) in [
        ("vfat", "mkfs.vfat -F 12 -s 128 -n LABEL $1"),
        ("vfat", "mkfs.vfat -F 16 $1"),
        ("vfat", "mkfs.vfat -F 32 -n 'TWO WORDS' $1"),
        ("ntfs", "mkfs.ntfs -F -q $1"),
        ("swap", "mkswap -L spare $1"),
        ("xfs", "truncate -s 400M $1; mkfs.xfs -q -L data $1"),
        ("btrfs", "truncate -s 200M $1; mkfs.btrfs -q -L 'a b' $1"),
    ] {
        bash(
            &format!("rm -f $1; truncate -s 64M $1; ({make}) >/dev/null 2>&1"),
            &[&disk],
        );
        let volume = vm2k::read_at::HostFile::open(&disk).unwrap();
        assert_eq!(vm2k::fs::recognise(&volume), Some(kind), "{make}");
        let ours = vm2k::fs::identity::identity(kind, &volume);
        let of = |tag: &str| {
            let output = std::process::Command::new("blkid")
                .args(["-p", "-o", "value", "-s", tag])
                .arg(&disk)
                .output()
                .unwrap();
            Some(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()).filter(|v| !v.is_empty())
        };
        assert_eq!((ours.uuid, ours.label), (of("UUID"), of("LABEL")), "{make}");
    }
}

#[test]
fn several_systems_and_none() {
    let test = "several_systems_and_none";
    if !tools(test, &["mke2fs", "sfdisk"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(
        dir,
        r#"
system one "Test Linux 1"; system two "Test Linux 2"
echo 'UUID=33333333-3333-3333-3333-333333333333 /old ext4 defaults 0 2' >three.fstab
mkdir data; echo x >data/x
truncate -s 40M two.img
printf 'label: dos\nlabel-id: 0xcafe0001\n,10M,L\n,10M,L\n,10M,L\n' | sfdisk -q two.img
fs two.img 1 10 one -L first; fs two.img 11 10 two -U 33333333-3333-3333-3333-333333333333; fs two.img 21 10 data -L data
# One system that has another mounted.
cp two.img chroot.img; mkdir -p one/old; cp three.fstab one/etc/fstab; fs chroot.img 1 10 one -L first
truncate -s 12M bare.img; fs bare.img 0 12 data -L data
truncate -s 22M none.img; printf 'label: dos\n,10M,L\n,10M,L\n' | sfdisk -q none.img
fs none.img 1 10 data -L data; fs none.img 11 10 data -L more
truncate -s 12M solo.img; printf 'label: dos\n,10M,L\n' | sfdisk -q solo.img; fs solo.img 1 10 data
# Without os-release: old systems have files of that kind, the oldest an fstab.
mkdir -p old/etc old/bin; echo 3.1 >old/etc/some_version; truncate -s 12M old.img; fs old.img 0 12 old
mkdir -p older/etc older/bin; : >older/etc/fstab; truncate -s 12M older.img; fs older.img 0 12 older
# os-release is a link to /usr, which is another filesystem.
mkdir -p split/etc split/usr usr/lib; ln -s ../usr/lib/os-release split/etc/os-release; echo 'LABEL=usr /usr ext4' >split/etc/fstab
echo NAME=Split >usr/lib/os-release; truncate -s 22M split.img; printf 'label: dos\n,10M,L\n,10M,L\n' | sfdisk -q split.img
fs split.img 1 10 usr -L usr; fs split.img 11 10 split
"#,
    );
    let path = |name: &str| dir.join(name);
    let e = open(&[&path("two.img")], None).unwrap_err();
    let said = report(&e);
    assert_eq!(exit_code(&e), code::USAGE, "{said}");
    for part in [
        "two.img:1: Test Linux 1",
        "two.img:2: Test Linux 2",
        "--root two.img:1",
    ] {
        assert!(said.contains(part), "{said}");
    }
    for (root, name) in [
        ("two.img:1", "1"),
        ("1", "1"),
        ("first", "1"),
        ("LABEL=first", "1"),
        ("cafe0001-01", "1"),
        ("/dev/sda2", "2"),
        ("two.img partition 2", "2"),
        ("33333333-3333-3333-3333-333333333333", "2"),
        ("UUID=33333333-3333-3333-3333-333333333333", "2"),
    ] {
        let machine = open(&[&path("two.img")], Some(root)).unwrap();
        let release = text(&machine, "/etc/os-release").unwrap();
        assert!(release.contains(&format!("Linux {name}")), "{root}: {release}");
    }
    for (root, expected) in [
        ("7", "names no filesystem"),
        ("nothing", "names no filesystem"),
        ("two.img:3", "no operating system"),
    ] {
        let e = open(&[&path("two.img")], Some(root)).unwrap_err();
        assert!(report(&e).contains(expected), "{root}: {}", report(&e));
    }
    assert!(text(&any(&[&path("two.img")], Some("data")).unwrap(), "/x").is_some());

    let machine = open(&[&path("chroot.img")], None).unwrap();
    assert!(text(&machine, "/old/etc/os-release").unwrap().contains("Linux 2"));

    for name in ["old.img", "older.img"] {
        assert_eq!(open(&[&path(name)], None).unwrap().problems(), [], "{name}");
    }
    let split = open(&[&path("split.img")], None).unwrap();
    assert_eq!(text(&split, "/etc/os-release").as_deref(), Some("NAME=Split\n"));

    for name in ["bare.img", "none.img", "solo.img"] {
        let e = open(&[&path(name)], None).unwrap_err();
        let said = report(&e);
        assert_eq!(exit_code(&e), code::UNSUPPORTED, "{said}");
        assert!(
            said.contains(&format!("no operating system found in {name}")),
            "{said}"
        );
        assert!(said.contains("ext4") && said.contains("vm2k ls"), "{said}");
    }
    assert!(text(&any(&[&path("bare.img")], None).unwrap(), "/x").is_some());
    assert!(text(&any(&[&path("solo.img")], None).unwrap(), "/x").is_some());
    let e = any(&[&path("none.img")], None).unwrap_err();
    assert!(report(&e).contains("--root none.img:1"), "{}", report(&e));
    let machine = any(&[&path("none.img")], Some("more")).unwrap();
    assert!(text(&machine, "/x").is_some());
    // Two disks of one file name are told apart.
    std::fs::create_dir(path("sub")).unwrap();
    std::fs::copy(path("none.img"), path("sub/none.img")).unwrap();
    let said = report(&any(&[&path("none.img"), &path("sub/none.img")], None).unwrap_err());
    assert!(said.contains("sub/none.img:2"), "{said}");
    assert!(
        report(&any(&[&path("none.img"), &path("sub/none.img")], Some("1")).unwrap_err())
            .contains("more than one")
    );
}

#[test]
fn what_is_no_machine_is_named() {
    let test = "what_is_no_machine_is_named";
    if !tools(test, &["mkfs.vfat", "mkfs.ntfs", "sfdisk", "mke2fs"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(
        dir,
        r#"
echo hello >text; head -c 3000000 /dev/urandom >garbage; : >empty
truncate -s 64M fat.img; mkfs.vfat fat.img >/dev/null
truncate -s 64M ntfs.img; mkfs.ntfs -q -F ntfs.img >/dev/null 2>&1
truncate -s 80M windows.img; printf 'label: dos\n,5M,27\n,64M,7\n' | sfdisk -q windows.img
dd if=ntfs.img of=windows.img bs=1M seek=6 conv=notrunc status=none
truncate -s 10M blank.img; printf 'label: dos\n,5M,L\n' | sfdisk -q blank.img
system one "Test Linux 1"; truncate -s 12M broken.img; fs broken.img 0 12 one
dd if=/dev/zero of=broken.img bs=4k seek=1 count=3000 conv=notrunc status=none
"#,
    );
    for (name, expected, exit) in [
        (
            "text",
            "holds no partition table and no filesystem that is known",
            code::UNSUPPORTED,
        ),
        (
            "garbage",
            "holds no partition table and no filesystem that is known",
            code::UNSUPPORTED,
        ),
        (
            "empty",
            "holds no partition table and no filesystem that is known",
            code::UNSUPPORTED,
        ),
        (
            "fat.img",
            "no operating system found in fat.img: fat.img vfat",
            code::UNSUPPORTED,
        ),
        ("ntfs.img", "Windows disk (NTFS)", code::UNSUPPORTED),
        ("windows.img", "windows.img:2 ntfs", code::UNSUPPORTED),
        ("blank.img", "no operating system found", code::UNSUPPORTED),
        ("broken.img", "reading broken.img", code::CORRUPT),
        ("missing.img", "opening", code::FAILED),
        ("one", "dir:", code::USAGE),
    ] {
        for result in [open(&[&dir.join(name)], None), any(&[&dir.join(name)], None)] {
            // A filesystem without a system is enough where any will do.
            if name == "fat.img" && result.is_ok() {
                continue;
            }
            let e = result.unwrap_err();
            assert!(report(&e).contains(expected), "{name}: {}", report(&e));
            assert_eq!(exit_code(&e), exit, "{name}: {}", report(&e));
        }
    }
}

#[test]
fn the_small_guests() {
    let test = "the_small_guests";
    let Some(guests) = shared(test, "guests") else {
        return;
    };
    if !tools(test, &["zstd"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["blank-fs", "blank-part"] {
        let disk = unzstd(&guests.join(format!("{name}.img.zst")), dir.path());
        let e = open(&[&disk], None).unwrap_err();
        let said = report(&e);
        println!("{said}");
        assert_eq!(exit_code(&e), code::UNSUPPORTED, "{said}");
        assert!(said.contains("no operating system found in blank-"), "{said}");
        std::fs::remove_file(disk).unwrap();
    }
}
