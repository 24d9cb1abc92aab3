//! btrfs against the kernel, btrfs-progs and damage.

use crate::filesystem::*;
use crate::kernel::{self, Seen};
use crate::support::{self, bash, run, shared, tools, unzstd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use vm2k::error::report;
use vm2k::fs::{Filesystem, Listing};
use vm2k::progress::Silent;
use vm2k::read_at::{HostFile, ReadAt};
use vm2k::source::machine::{Machine, MachineOptions};
use vm2k::source::{Source, read_file};
use vm2k::tree::Kind;

#[test]
fn valid_filesystems_equal_the_oracle_and_the_mount() {
    assert_oracle("btrfs oracle", &["fs/btrfs"], 1);
}

/// An image of one's own, as in `VM2K_BTRFS_IMAGE=root.img cargo test btrfs`.
#[test]
fn the_image_that_the_environment_names_equals_its_mount() {
    if let Some(image) = std::env::var_os("VM2K_BTRFS_IMAGE")
        && support::root("btrfs image")
    {
        let images = [PathBuf::from(image)];
        let start = std::time::Instant::now();
        let fs = open_images(&images).unwrap();
        let listing = fs.list().unwrap();
        eprintln!("{} paths listed in {:?}", listing.tree.len(), start.elapsed());
        let mut buf = vec![0; 256 << 10];
        let mut bytes = 0;
        for (_, node) in listing.tree.iter().filter(|(_, n)| n.is_file()) {
            let file = fs.open(node.id.ino).unwrap();
            let mut at = 0;
            while at < file.len() {
                let n = (file.len() - at).min(buf.len() as u64) as usize;
                file.read_at(at, &mut buf[..n]).unwrap();
                at += n as u64;
            }
            bytes += file.len();
        }
        eprintln!("{bytes} bytes read by one thread, all in {:?}", start.elapsed());
        let (seen, listing) = read_all(&*fs);
        assert_eq!(listing.problems, []);
        let devices = Devices::new(&images);
        let mounted = devices.mount("ro").unwrap();
        kernel::assert_equal("VM2K_BTRFS_IMAGE", &seen, &kernel::tree_of(mounted.path()));
    }
}

/// Image files as loop devices that end with this value.
struct Devices {
    loops: Vec<String>,
}

impl Devices {
    fn new(images: &[PathBuf]) -> Self {
        let mut devices = Self { loops: Vec::new() };
        for image in images {
            let out = run(Command::new("losetup").args(["-f", "--show"]).arg(image));
            devices
                .loops
                .push(String::from_utf8(out.stdout).unwrap().trim().to_owned());
        }
        devices
    }

    /// Mounts all as one filesystem.
    fn mount(&self, options: &str) -> Result<Mount, String> {
        let dir = tempfile::tempdir().unwrap();
        let mut words = vec![options.to_owned()];
        words.extend(self.loops.iter().map(|l| format!("device={l}")));
        let out = Command::new("mount")
            .args(["-t", "btrfs", "-o", words.join(",").trim_start_matches(',')])
            .arg(&self.loops[0])
            .arg(dir.path())
            .output()
            .unwrap();
        if out.status.success() {
            Ok(Mount { dir })
        } else {
            Err(String::from_utf8_lossy(&out.stderr).trim().to_owned())
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for device in &self.loops {
            let _ = Command::new("btrfs")
                .args(["device", "scan", "--forget", device])
                .output();
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
    }
}

struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let quiet = |args: &[&str]| {
            Command::new("umount")
                .args(args)
                .arg(self.dir.path())
                .stderr(std::process::Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        let _ = quiet(&[]) || quiet(&["-l"]);
    }
}

fn open_images(images: &[PathBuf]) -> vm2k::error::Result<Box<dyn Filesystem>> {
    let volumes: Vec<Arc<dyn ReadAt>> = images
        .iter()
        .map(|i| Arc::new(HostFile::open(i).unwrap()) as _)
        .collect();
    vm2k::fs::open_several(&volumes)
}

fn read_all(fs: &dyn Filesystem) -> (Vec<Seen>, Listing) {
    let listing = fs.list().unwrap();
    let seen = kernel::ours(&listing.tree, &|id| fs.open(id.ino));
    (seen, listing)
}

/// Fills the mounted filesystem `$1` with one of everything.
const FILL: &str = r#"
cd "$1"
mkdir -p d/e/f empty perms
echo content > d/file
ln d/file d/e/hard; ln d/file hard
printf '' > zero
for n in 1 59 60 1000 2047 2048 2049 4095 4096 4097 12288 49153 300000; do head -c $n /dev/urandom > size-$n; done
for n in 10 2000 4096 4097 100000 131072 131073 1000000; do head -c $n < <(yes "line $n") > text-$n; done
ln -s d/file link; ln -s "$(printf 'u%.0s' $(seq 1000))" link1000
mknod block b 8 1; mknod char c 1 3; mknod far c 300 70000; mkfifo fifo
perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un("socket")) or die'
chown 70000:80000 d/file; chown -h 1:2 link
for m in 0000 0777 1777 2755 4755 6711 7777; do touch perms/$m; chmod $m perms/$m; done
# Holes at the beginning, in the middle, at the end; space that is allocated but not written.
dd if=/dev/urandom of=sparse bs=1000 seek=300 count=10 status=none
dd if=/dev/urandom of=sparse bs=1000 seek=20000 count=1 conv=notrunc status=none
truncate -s 30M sparse; truncate -s 40M all-hole
fallocate -l 300k unwritten; printf data | dd of=unwritten bs=1 seek=100000 conv=notrunc status=none
touch behind; fallocate -n -l 200k behind; echo short > behind-2; fallocate -n -o 0 -l 100k behind-2
# Pieces of extents: overwritten, cloned, cut, without checksums.
head -c 700000 < <(yes "some text to be compressed") > overwritten; sync -f .
for at in 5000 130000 131000 262144 400001; do echo "piece at $at" | dd of=overwritten bs=1 seek=$at conv=notrunc status=none; done
sync -f .
cp --reflink=always overwritten cloned; cp --reflink=always size-300000 cloned-2
perl -e 'open(F, "+<", "cloned"); sysseek(F, 200000, 0); syswrite(F, "x" x 5000)'
fallocate -p -o 40960 -l 200000 cloned; truncate -s 450003 cloned
touch nocow; chattr +C nocow; head -c 200000 /dev/urandom >> nocow
perl -e 'open(F, ">", "pieces"); for (my $i = 0; $i < 300; $i++) { sysseek(F, $i * 8192, 0); syswrite(F, "piece $i") }'
touch -d '1901-12-14 00:00:00' t1901; touch -d '1969-12-31 23:59:59.5' t1969
touch -d '2039-01-01 00:00:00.987654321' t2039; touch -d '2500-01-01' t2500
touch "$(printf 'new\nline')" "$(printf 'latin-\344')" "$(printf '\001\033[31m')" ' ' '-' "$(printf 'n%.0s' $(seq 255))"
deep=d; for i in $(seq 40); do deep=$deep/level-$i; mkdir "$deep"; done; echo bottom > "$deep/file"
mkdir many; perl -e 'for (1..400) { open(F, ">", sprintf("many/entry-%06d", $_)) or die; print F $_ if $_ % 10 == 0 }'
perl -e 'for (1..400) { unlink(sprintf("many/entry-%06d", $_)) if $_ % 7 == 0 }'
# More names in one directory than one item holds.
mkdir links; echo linked > links/file; for i in $(seq 300); do ln links/file links/another-rather-long-name-of-the-file-$i; done
setfattr -n user.short -v value d/file; setfattr -n user.empty d/file; setfattr -n trusted.x -v 0x0001ff d/file
setfattr -n security.selinux -v 'system_u:object_r:etc_t:s0' zero; setfattr -h -n trusted.link -v 1 link
setfattr -n trusted.dev -v 1 block; setfattr -n user.long -v "$(printf 'v%.0s' $(seq 2500))" size-1000
for i in $(seq 12); do setfattr -n user.a$i -v "value $i" size-4096; done
setfacl -m u:1000:rw,g:100000:r,m::rwx size-60; setfacl -d -m u:7:rwx,g:8:rx d; mkdir d/inherits; touch d/inherits/file
setcap cap_net_raw+ep size-59; btrfs property set d/e compression zstd; sync -f .
"#;

const TOOLS: &[&str] = &[
    "mkfs.btrfs",
    "btrfs",
    "setfattr",
    "setfacl",
    "setcap",
    "perl",
    "losetup",
];

/// Names with one hash, in pairs.
fn collisions(prefix: &str) -> Vec<String> {
    let mut known = std::collections::HashMap::new();
    let mut found = Vec::new();
    for n in 0..300_000u32 {
        let name = format!("{prefix}{:x}", u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let hash = crc32c::crc32c_append(!1 ^ !0, name.as_bytes());
        if let Some(other) = known.insert(hash, name.clone()) {
            found.extend([other, name]);
        }
        if found.len() >= 6 {
            break;
        }
    }
    assert!(!found.is_empty());
    found
}

/// How a filesystem is made: options of mkfs.btrfs, options of mount, number of devices.
const MATRIX: &[(&str, &str, usize)] = &[
    ("", "", 1),
    ("-n 4096", "compress-force=zstd", 1),
    ("-n 65536", "compress=lzo", 1),
    ("-n 32768 --csum xxhash", "compress-force=zlib", 1),
    ("--csum sha256 -O ^no-holes", "compress-force=lzo", 1),
    ("--csum blake2", "compress=zstd:15", 1),
    ("--mixed -n 4096", "compress=zlib", 1),
    ("-O ^no-holes,^skinny-metadata,^extref", "max_inline=0", 1),
    ("-R free-space-tree -O block-group-tree", "", 1),
    ("-R ^free-space-tree -O no-holes", "nodatasum", 1),
    ("-R quota", "flushoncommit", 1),
    ("-d dup -m dup", "compress-force=zstd", 1),
    ("-d single -m single -L name", "", 2),
    ("-d raid0 -m raid0", "compress=zstd", 3),
    ("-d raid1 -m raid1", "", 2),
    ("-d raid1 -m raid1c3 -n 8192", "compress-force=lzo", 3),
    ("-d raid1c4 -m raid1c4", "", 4),
    ("-d raid10 -m raid10", "compress=zlib", 4),
    ("-d raid10 -m raid1", "", 3),
    ("-d raid5 -m raid1", "compress-force=zstd", 3),
    ("-d raid5 -m raid5", "", 4),
    ("-d raid6 -m raid6", "", 4),
    ("-d raid0 -m raid1 -O raid-stripe-tree", "", 2),
    ("-O squota", "", 1),
    ("--mixed -d raid1 -m raid1 -n 4096", "", 2),
];

/// Makes and fills a filesystem; `None` if mkfs or the kernel does not know the options.
fn make(dir: &Path, options: &str, mount: &str, count: usize, fill: &str) -> Option<Vec<PathBuf>> {
    make_of(dir, "300M", options, mount, count, fill)
}

/// The same of devices that are `size` long.
fn make_of(
    dir: &Path,
    size: &str,
    options: &str,
    mount: &str,
    count: usize,
    fill: &str,
) -> Option<Vec<PathBuf>> {
    let images: Vec<PathBuf> = (0..count).map(|n| dir.join(format!("device-{n}"))).collect();
    for image in &images {
        run(Command::new("truncate").args(["-s", size]).arg(image));
    }
    let out = Command::new("mkfs.btrfs")
        .args(["-q", "-f"])
        .args(options.split(' ').filter(|w| !w.is_empty()))
        .args(&images)
        .output()
        .unwrap();
    if !out.status.success() {
        eprintln!(
            "mkfs.btrfs {options}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
        return None;
    }
    let devices = Devices::new(&images);
    let mounted = match devices.mount(mount) {
        Ok(mounted) => mounted,
        Err(e) => {
            eprintln!("mount of {options}: {e}");
            return None;
        }
    };
    bash(fill, &[mounted.path()]);
    Some(images)
}

#[test]
fn every_option_equals_the_mount() {
    compare_options("every_option_equals_the_mount", 0);
}

/// The other half of the options, for another thread.
#[test]
fn every_other_option_equals_the_mount() {
    compare_options("every_other_option_equals_the_mount", 1);
}

fn compare_options(test: &str, half: usize) {
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let only = std::env::var("VM2K_ONLY").ok();
    let mut compared = 0;
    for (options, mount, count) in MATRIX.iter().skip(half).step_by(2) {
        if only.as_ref().is_some_and(|o| !options.contains(o.as_str())) {
            continue;
        }
        let temp = support::scratch(2 << 30);
        let mut fill = FILL.to_owned();
        for name in collisions("collision-") {
            fill += &format!("echo {name} > {name}\n");
        }
        for name in collisions("user.c") {
            fill += &format!("setfattr -n {name} -v {name} zero\n");
        }
        let Some(images) = make(temp.path(), options, mount, *count, &fill) else {
            continue;
        };
        let what = format!("mkfs {options}, mount {mount}, {count} devices");
        let devices = Devices::new(&images);
        let mounted = devices.mount("ro").unwrap();
        let fs = open_images(&images).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (seen, listing) = read_all(&*fs);
        assert_eq!(listing.problems, [], "{what}");
        kernel::assert_equal(&what, &seen, &kernel::tree_of(mounted.path()));
        compared += 1;
    }
    eprintln!("{test}: {compared} of {} sets of options compared", MATRIX.len());
    assert!(compared >= 9 || only.is_some());
}

/// Changes that are synced file by file, so that they stand in the log only: `f FILE TEXT` appends and syncs.
const SYNC: &str = r#"
cd "$1"
f() { perl -MIO::Handle -e 'open(F, ">>", $ARGV[0]) or die; print F $ARGV[1]; F->flush; F->sync or die' "$@"; }
s() { perl -MIO::Handle -MFcntl -e 'for (@ARGV) { sysopen(F, $_, O_RDONLY) or die; F->sync or die "$_: $!" }' "$@"; }
"#;
const LOGGED_BASE: &str = r#"
cd "$1"; echo old > old; echo gone > gone; echo moved > moved; mkdir dir tree
head -c 500000 /dev/urandom > big; head -c 50000 /dev/urandom > shorter; ln old old-hard
for i in $(seq 60); do echo $i > dir/file-$i; done; for i in $(seq 5); do mkdir tree/$i; echo $i > tree/$i/file; done
for i in $(seq 40); do ln old dir/a-name-of-the-old-file-that-is-long-$i; done
setfattr -n user.a -v a old; setfattr -n user.b -v b old; setfattr -n user.c -v c dir; setfacl -m u:7:r moved
"#;
/// What is done to a mounted filesystem before its power is cut, and options of mkfs and mount.
const LOGGED: &[(&str, &str, &str, &str)] = &[
    ("content", "", "", "f old more; f new content; f big x; truncate -s 1000 shorter; s shorter"),
    (
        "pieces",
        "",
        "compress-force=zstd",
        r#"for at in 0 5000 131000 262144 400001; do echo "at $at" | dd of=big bs=1 seek=$at conv=notrunc status=none; done
        f big y; fallocate -p -o 40960 -l 100000 big; s big; truncate -s 700000 big; s big
        perl -MIO::Handle -e 'open(F, ">", "sparse"); for (my $i = 0; $i < 40; $i++) { sysseek(F, $i * 9000, 0);
            syswrite(F, "piece $i"); F->sync }'; fallocate -l 300000 shorter; s shorter; f sparse z"#,
    ),
    (
        "holes with extents",
        "-O ^no-holes",
        "compress=lzo",
        "truncate -s 900000 big; s big; fallocate -p -o 40960 -l 100000 big; s big; truncate -s 5000 shorter; f shorter x
        truncate -s 300000 shorter; s shorter; fallocate -n -l 200k old; s old",
    ),
    (
        "names",
        "",
        "",
        "f old more; ln old new-hard; s old; rm old-hard; s old; mv moved moved-here; s moved-here
        rm gone; s .; for i in 1 2 3 4; do rm dir/file-$i; done; s dir; mv dir/file-9 dir/file-90; s dir/file-90",
    ),
    (
        "names that change places",
        "",
        "",
        "mv dir/file-1 dir/t; mv dir/file-2 dir/file-1; mv dir/t dir/file-2; s dir/file-1
        rm dir/file-3; echo again > dir/file-3; s dir/file-3; mv dir/file-4 tree/file-4; s tree/file-4
        rm dir/file-5; mkdir dir/file-5; echo in > dir/file-5/in; s dir/file-5/in; s dir/file-5; s dir",
    ),
    (
        "many names",
        "",
        "",
        "for i in 1 3 5 30 40; do rm dir/a-name-of-the-old-file-that-is-long-$i; done; s old
        for i in $(seq 200); do ln old dir/another-name-of-the-old-file-that-is-long-$i; done; f old x
        rm dir/another-name-of-the-old-file-that-is-long-7; s old; s dir",
    ),
    (
        "directories",
        "",
        "",
        "mkdir -p new/x/y; f new/x/y/deep deep; mkdir new/z; s new; echo not-synced > new/z/file; s new/z
        rm -r tree/1 tree/2; s tree; rmdir new/z 2>/dev/null || true; mv tree/3 tree/three; s tree; mknod new/dev c 1 3; s new
        ln -s target sym; ln -s \"$(printf 'u%.0s' $(seq 300))\" new/long; s new; s .",
    ),
    (
        "attributes",
        "--csum xxhash",
        "",
        "setfattr -x user.a old; setfattr -n user.d -v d old; setfattr -n user.b -v bb old; s old; chmod 4711 old; chown 5:6 old; s old
        setfattr -n user.e -v e dir; setfattr -x user.c dir; s dir; setfacl -m u:9:rw moved; s moved; touch -d 2040-01-01 gone; s gone
        setfattr -n user.long -v \"$(printf 'v%.0s' $(seq 2000))\" shorter; s shorter",
    ),
    (
        "two subvolumes, nocow, reflinks",
        "",
        "",
        "touch nocow; chattr +C nocow; f nocow text; cp --reflink=always big clone; s clone
        fallocate -z -o 8192 -l 50000 clone; s clone; f sub/file more; f sub/new new; rm sub/gone; s sub",
    ),
];

/// Changes that only the log has: our tree equals what the kernel makes of it, but for the times of directories and
/// files that the replay itself touches.
#[test]
fn logs_are_replayed_as_the_kernel_does() {
    let test = "logs_are_replayed_as_the_kernel_does";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let only = std::env::var("VM2K_ONLY").ok();
    for (what, mkfs, options, work) in LOGGED {
        if only.as_ref().is_some_and(|o| !what.contains(o.as_str())) {
            continue;
        }
        let base = format!(
            "{LOGGED_BASE}\nbtrfs -q subvolume create sub; echo sub > sub/file; echo gone > sub/gone"
        );
        assert!(
            logged(what, mkfs, options, &base, &format!("{SYNC}{work}"), None),
            "{what}: no log"
        );
    }
}

/// Makes a filesystem with `base`, does `work` on it and cuts its power; then our tree is compared with the kernel's. Says
/// whether there was a log.
fn logged(what: &str, mkfs: &str, options: &str, base: &str, work: &str, arg: Option<&str>) -> bool {
    let temp = support::scratch(2 << 30);
    let images = make(temp.path(), mkfs, options, 1, base).expect(what);
    let copy = temp.path().join("cut-off");
    {
        let devices = Devices::new(&images);
        let mounted = devices.mount(&format!("commit=300,{options}")).unwrap();
        bash(work, &[mounted.path(), Path::new(arg.unwrap_or_default())]);
        // The log is written through to the device when fsync(2) returns; nothing else is until the commit.
        run(Command::new("cp")
            .args(["--sparse=always"])
            .arg(&images[0])
            .arg(&copy));
    }
    let copies = [copy];
    let fs = open_images(&copies).unwrap();
    let dirty = fs.info().notes.iter().any(|n| n.contains("log tree replayed"));
    let (mut seen, listing) = read_all(&*fs);
    assert_eq!(listing.problems, [], "{what}");
    let start = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
        - 1;
    let devices = Devices::new(&copies);
    let mounted = devices.mount("").unwrap();
    let mut kernels = tree_with_subvolumes(mounted.path());
    // What the replay changes has the time of the replay.
    let mut theirs: std::collections::HashMap<_, _> =
        kernels.iter_mut().map(|s| (s.path.clone(), s)).collect();
    for ours in &mut seen {
        ours.node.id.ino &= (1 << 40) - 1;
        let Some(kernel) = theirs.get_mut(&ours.path) else {
            continue;
        };
        for (a, b) in [
            (&mut ours.node.mtime, &mut kernel.node.mtime),
            (&mut ours.node.ctime, &mut kernel.node.ctime),
        ] {
            if b.sec >= start && b.sec < 2_000_000_000 {
                *a = *b;
            }
        }
    }
    kernel::assert_equal(what, &seen, &kernels);
    dirty
}

/// Random changes with random syncs, so that their order and mixture is of nobody's choice; `$2` is the seed.
const RANDOM_WORK: &str = r#"
cd "$1"; perl -MIO::Handle -MFcntl -e '
srand($ARGV[0]); my @n = map { "n$_" } 0..11; my @d = (".", "dir", "tree", "tree/1", "x");
sub pick { $d[rand @d] . "/" . $n[rand @n] }
sub fl { sysopen(my $f, $_[0], O_RDONLY) or return; $f->sync }
for (1..$ARGV[1]) {
  my ($a, $b, $r) = (pick(), pick(), int rand 16);
  if ($r < 3) { if (!-d $a && open(my $f, ">>", $a)) { print $f "text $_\n" x (1 + rand 900) } }
  elsif ($r == 3) { truncate($a, int rand 30000) if -f $a }
  elsif ($r == 4) { rename($a, $b) }
  elsif ($r == 5) { link($a, $b) if !-d $a }
  elsif ($r == 6) { unlink($a) if !-d $a }
  elsif ($r == 7) { mkdir($a) } elsif ($r == 8) { rmdir($a) } elsif ($r == 9) { symlink("to $_", $a) }
  elsif ($r == 10) { chmod(0600 + int rand 64, $a) if -e $a }
  elsif ($r == 11) { system("setfattr", "-n", "user.r" . int(rand 3), "-v", "v$_", $a) if -f $a }
  elsif ($r == 12) { if (-f $a && open(my $f, "+<", $a)) { sysseek($f, int(rand 9) * 4096, 0); syswrite($f, "x" x 5000) } }
  else { fl(-e $a ? $a : "."); }
  fl($d[rand @d]) if rand() < 0.05; fl($b) if rand() < 0.1 && -e $b;
}
fl("."); if (open(my $f, ">>", "old")) { print $f "last"; $f->flush; $f->sync }
' "$2" 300 2>/dev/null
"#;

#[test]
fn random_logs_are_replayed_as_the_kernel_does() {
    let test = "random_logs_are_replayed_as_the_kernel_does";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let count: u64 = std::env::var("VM2K_LOGS").map_or(3, |n| n.parse().unwrap());
    let first: u64 = std::env::var("VM2K_SEED").map_or(1, |n| n.parse().unwrap());
    let mut replayed = 0;
    for seed in first..first + count {
        let seed_text = seed.to_string();
        let options = ["", "compress-force=zstd"][seed as usize % 2];
        let mkfs = ["", "-O ^no-holes"][seed as usize / 2 % 2];
        replayed += usize::from(logged(
            &format!("seed {seed}"),
            mkfs,
            options,
            &format!("{LOGGED_BASE}\nmkdir x"),
            RANDOM_WORK,
            Some(&seed_text),
        ));
    }
    eprintln!("{test}: {replayed} of {count} had a log");
}

/// As [`kernel::tree_of`], across the borders of subvolumes.
fn tree_with_subvolumes(dir: &Path) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut todo = vec![(dir.to_owned(), vm2k::path::GuestPath::root())];
    while let Some((host, at)) = todo.pop() {
        let here = kernel::tree_of(&host);
        let device = rustix::fs::lstat(&host).unwrap().st_dev;
        for mut seen in here {
            if seen.node.kind == Kind::Directory {
                for entry in std::fs::read_dir(kernel::host(&host, &seen.path)).unwrap() {
                    let path = entry.unwrap().path();
                    let stat = rustix::fs::lstat(&path).unwrap();
                    if stat.st_dev != device {
                        use std::os::unix::ffi::OsStrExt;
                        let name = path.file_name().unwrap().as_bytes().to_vec();
                        todo.push((path, at.graft(&seen.path).join(&name).unwrap()));
                    }
                }
            }
            seen.path = at.graft(&seen.path);
            all.push(seen);
        }
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// The image, or what it is a dump of (btrfs-image).
fn restored(image: &Path) -> Option<PathBuf> {
    let magic = std::fs::read(image).unwrap();
    if magic.get(0x1_0040..0x1_0048) == Some(b"_BHRfS_M") {
        return Some(image.to_owned());
    }
    let out = image.with_extension("restored");
    let done = Command::new("timeout")
        .args(["20", "btrfs-image", "-r"])
        .arg(image)
        .arg(&out)
        .output()
        .unwrap();
    (done.status.success() && out.exists()).then_some(out)
}

#[test]
fn damaged_filesystems_are_read_right_or_told() {
    let test = "damaged_filesystems_are_read_right_or_told";
    let Some(dir) = shared(test, "hostile/btrfs") else {
        return;
    };
    if !tools(test, &["zstd", "btrfs", "btrfs-image", "timeout"]) {
        return;
    }
    let temp = support::scratch(2 << 30);
    let (mut images, mut opened, mut files, mut names, mut unread) = (0, 0, 0, 0, 0);
    for packed in packed(&dir) {
        let original = unzstd(&packed, temp.path());
        let what = original.file_name().unwrap().to_string_lossy().into_owned();
        images += 1;
        // A dump itself is no filesystem.
        survey(&what, &original);
        if let Some(image) = restored(&original) {
            assert_bounded_memory(&what, &image);
            if let Some((seen, listing)) = survey(&what, &image) {
                opened += 1;
                let told = |path: &vm2k::path::GuestPath| {
                    listing
                        .problems
                        .iter()
                        .any(|p| p.path == *path || p.path.is_root())
                };
                let notes = open(&image).unwrap().info().notes;
                let replayed = notes.iter().any(|n| n.starts_with("log tree replayed"));
                unread += seen.iter().filter(|s| s.content.starts_with("error")).count();
                let out = temp.path().join("restored");
                std::fs::create_dir(&out).unwrap();
                let _ = Command::new("timeout")
                    .args(["20", "btrfs", "restore", "-i", "-S"])
                    .arg(&image)
                    .arg(&out)
                    .stdin(std::process::Stdio::null())
                    .output();
                for theirs in kernel::tree_of(&out) {
                    names += 1;
                    let ours = seen.iter().find(|s| s.path == theirs.path);
                    match ours {
                        None => assert!(told(&theirs.path), "{what}: {} is silently missing", theirs.path),
                        Some(ours) if ours.node.is_file() && !told(&ours.path) => {
                            // btrfs restore replays no log.
                            if replayed {
                                continue;
                            }
                            if ours.content.starts_with("error") || ours.content == "large" {
                                continue;
                            }
                            files += 1;
                            assert_eq!(ours.content, theirs.content, "{what} {}", ours.path);
                        }
                        Some(_) => {}
                    }
                }
                std::fs::remove_dir_all(&out).unwrap();
                if std::env::var_os("VM2K_VERBOSE").is_some() {
                    eprintln!(
                        "{what}: {} paths, {} problems",
                        seen.len(),
                        listing.problems.len()
                    );
                    for problem in listing.problems.iter().take(5) {
                        eprintln!("    {}: {}", problem.path, problem.what);
                    }
                    for seen in seen.iter().filter(|s| s.content.starts_with("error")).take(3) {
                        eprintln!("    {}: {}", seen.path, seen.content);
                    }
                }
            }
            let _ = std::fs::remove_file(&image);
        } else {
            eprintln!("{what}: btrfs-image does not restore it");
        }
        let _ = std::fs::remove_file(&original);
    }
    eprintln!(
        "{test}: {images} images, {opened} opened; {files} files equal btrfs restore, {names} names found, {unread} \
         files unreadable"
    );
}

/// A small tree for what is done to devices.
const SMALL: &str = r#"
cd "$1"; mkdir -p a/b; for i in $(seq 40); do head -c $((i * 5000)) /dev/urandom > a/file-$i; echo $i > a/b/small-$i; done
ln -s a/b link; setfattr -n user.x -v y a; sync -f .
"#;

#[test]
fn a_missing_device_is_made_up_for_or_named() {
    let test = "a_missing_device_is_made_up_for_or_named";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    for (options, count, readable) in [
        ("-d raid1 -m raid1", 2, true),
        ("-d raid1c3 -m raid1c3", 3, true),
        ("-d raid10 -m raid10", 4, true),
        ("-d raid5 -m raid5", 3, true),
        ("-d raid6 -m raid6", 4, true),
        ("-d raid0 -m raid1", 2, false),
        ("-d single -m raid1", 2, false),
    ] {
        let temp = support::scratch(2 << 30);
        let images = make(temp.path(), options, "", count, SMALL).unwrap();
        let (whole, listing) = read_all(&*open_images(&images).unwrap());
        assert_eq!(listing.problems, [], "{options}");
        assert_eq!(whole.len(), 84, "{options}");
        for gone in 0..count {
            let mut rest = images.clone();
            rest.remove(gone);
            match open_images(&rest) {
                Ok(fs) => {
                    assert!(readable, "{options}");
                    let notes = fs.info().notes;
                    let told = format!("btrfs device {} (UUID ", gone + 1);
                    assert!(notes.iter().any(|n| n.contains(&told)), "{notes:?}");
                    let (seen, listing) = read_all(&*fs);
                    assert_eq!(listing.problems, [], "{options}");
                    kernel::assert_equal(options, &seen, &whole);
                }
                Err(e) => {
                    assert!(!readable, "{options}: {e}");
                    assert_eq!(e.code(), vm2k::error::code::UNSUPPORTED);
                    assert!(report(&e.into()).contains("is missing"));
                }
            }
        }
    }
}

#[test]
fn a_damaged_copy_is_made_up_for_by_another() {
    let test = "a_damaged_copy_is_made_up_for_by_another";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    for (options, count) in [
        ("-d raid1 -m raid1 --csum xxhash", 2),
        ("-d raid10 -m raid10", 4),
        ("-d raid5 -m raid5", 3),
    ] {
        let temp = support::scratch(2 << 30);
        let images = make(temp.path(), options, "", count, SMALL).unwrap();
        let (whole, _) = read_all(&*open_images(&images).unwrap());
        // Everything of the first device behind its first superblock is noise.
        let mut bytes = std::fs::read(&images[0]).unwrap();
        let mut random = Random(7);
        for at in ((1 << 20)..bytes.len()).step_by(512) {
            if bytes[at..at + 512].iter().any(|b| *b != 0) {
                bytes[at + random.below(512)] ^= 0x10;
            }
        }
        std::fs::write(&images[0], &bytes).unwrap();
        let (seen, listing) = read_all(&*open_images(&images).unwrap());
        assert_eq!(listing.problems, [], "{options}");
        kernel::assert_equal(options, &seen, &whole);
    }
    // With one copy only, each file is right or an error.
    let temp = support::scratch(2 << 30);
    let images = make(temp.path(), "-d single -m dup", "", 1, SMALL).unwrap();
    let (whole, _) = read_all(&*open_images(&images).unwrap());
    let good = std::fs::read(&images[0]).unwrap();
    let used: Vec<usize> = (16..good.len() / 65536)
        .filter(|n| good[n * 65536..(n + 1) * 65536].iter().any(|b| *b != 0))
        .collect();
    let mut random = Random(9);
    let mut differ = 0;
    for _ in 0..20 {
        let mut bytes = good.clone();
        for _ in 0..20 {
            bytes[used[random.below(used.len())] * 65536 + random.below(65536)] ^= 1 << random.below(8);
        }
        let Ok(fs) = vm2k::fs::open(Arc::new(bytes)) else {
            continue;
        };
        let (seen, listing) = read_all(&*fs);
        let told = !listing.problems.is_empty();
        for file in &whole {
            let Some(ours) = seen.iter().find(|s| s.path == file.path) else {
                assert!(told, "{} is silently missing", file.path);
                continue;
            };
            if ours.content.starts_with("error") {
                assert!(ours.content.contains("checksum"), "{}", ours.content);
                differ += 1;
            } else if !told {
                assert_eq!(ours, file);
            }
        }
    }
    eprintln!("{test}: {differ} files with damage");
    assert!(differ > 0);
}

/// Overwrites `len` bytes of a file with zeros.
fn wipe(image: &Path, at: u64, len: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(image).unwrap();
    file.write_all_at(&vec![0; len], at).unwrap();
}

/// The kernel mounts such a filesystem only after `btrfs rescue super-recover`; the tree is the one from before.
#[test]
fn copies_of_a_wiped_superblock_are_read() {
    let test = "copies_of_a_wiped_superblock_are_read";
    if !support::root(test) || !tools(test, TOOLS) || !tools(test, &["mkfs.xfs", "sfdisk"]) {
        return;
    }
    for (size, options, count, wiped) in [
        ("300M", "-d single -m dup", 1, vec![(64 << 10, 4096)]),
        // What wipefs(8) does: the magic number only.
        ("300M", "-d single -m dup", 1, vec![((64 << 10) + 64, 8)]),
        ("300M", "-d raid1 -m raid1", 2, vec![(64 << 10, 4096)]),
        (
            "257G",
            "-d single -m single",
            1,
            vec![(64 << 10, 4096), (64 << 20, 4096)],
        ),
    ] {
        let temp = support::scratch(2 << 30);
        let images = make_of(temp.path(), size, options, "", count, SMALL).unwrap();
        let devices = Devices::new(&images);
        let mount = devices.mount("ro").unwrap();
        let expected = kernel::tree_of(mount.path());
        drop(mount);
        drop(devices);
        for image in &images {
            for (at, len) in &wiped {
                wipe(image, *at, *len);
            }
        }
        let fs = open_images(&images).unwrap();
        assert!(
            fs.info()
                .notes
                .iter()
                .any(|n| n.contains("superblock is damaged")),
            "{:?}",
            fs.info().notes
        );
        let (seen, listing) = read_all(&*fs);
        assert_eq!(listing.problems, [], "{options}");
        kernel::assert_equal(options, &seen, &expected);
    }
    // What was made in its place counts.
    let temp = support::scratch(2 << 30);
    let images = make(temp.path(), "-d single -m single", "", 1, SMALL).unwrap();
    let recognised = |image: &Path| vm2k::fs::recognise(&HostFile::open(image).unwrap());
    bash("echo label: dos | sfdisk -q --wipe always $1", &[&images[0]]);
    wipe(&images[0], 64 << 10, 4096);
    assert_eq!(recognised(&images[0]), None);
    bash("mkfs.xfs -q -f $1", &[&images[0]]);
    assert_eq!(recognised(&images[0]), Some("xfs"));
}

/// Flags of features that the tools at hand do not make, set by hand: what does not change reading is read, the rest is
/// refused by name.
#[test]
fn flags_of_newer_features() {
    let test = "flags_of_newer_features";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let temp = support::scratch(2 << 30);
    let images = make(temp.path(), "-d single -m dup", "", 1, SMALL).unwrap();
    let (whole, _) = read_all(&*open_images(&images).unwrap());
    let good = std::fs::read(&images[0]).unwrap();
    let with = |field: usize, bit: u32| {
        let mut bytes = good.clone();
        for at in [64 << 10, 64 << 20] {
            let place = at + field + bit as usize / 8;
            bytes[place] |= 1 << (bit % 8);
        }
        sign(&mut bytes, &[], 0);
        vm2k::fs::open(Arc::new(bytes))
    };
    // compat_ro: block_group_tree, and one that is not known.
    for (bit, note) in [(3, None), (40, Some("unknown ro_compat features 0x10000000000"))] {
        let fs = with(0xb4, bit).unwrap();
        let told = fs.info().notes.iter().find(|n| n.contains("features")).cloned();
        assert_eq!(told.as_deref(), note);
        let (seen, listing) = read_all(&*fs);
        assert_eq!(listing.problems, []);
        kernel::assert_equal("flags", &seen, &whole);
    }
    for (bit, name) in [
        (12, "the btrfs feature zoned"),
        (13, "the btrfs feature extent_tree_v2"),
        (14, "the btrfs feature raid_stripe_tree"),
        (15, "the btrfs feature encrypt"),
        (17, "the btrfs feature remap_tree"),
        (40, "btrfs incompatible feature bit 40"),
    ] {
        let e = with(0xbc, bit).err().expect("it is refused");
        assert_eq!(e.to_string(), name);
        assert_eq!(e.code(), vm2k::error::code::UNSUPPORTED);
    }
}

/// Volumes that end too early: what is read is right, the rest is told.
#[test]
fn short_volumes_are_told() {
    let test = "short_volumes_are_told";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let temp = support::scratch(2 << 30);
    let images = make(temp.path(), "-d single -m dup", "", 1, SMALL).unwrap();
    let (whole, _) = read_all(&*open_images(&images).unwrap());
    let good = std::fs::read(&images[0]).unwrap();
    for mib in [1, 2, 5, 14, 20, 25, 40, 80, 200] {
        let Ok(fs) = vm2k::fs::open(Arc::new(good[..mib << 20].to_vec())) else {
            continue;
        };
        let Ok(listing) = fs.list() else { continue };
        assert!(!listing.problems.is_empty(), "{mib} MiB");
        for ours in kernel::ours(&listing.tree, &|id| fs.open(id.ino)) {
            let theirs = whole.iter().find(|s| s.path == ours.path).unwrap();
            if !ours.content.starts_with("error") {
                assert_eq!(ours.content, theirs.content, "{mib} MiB: {}", ours.path);
            }
        }
    }
}

/// Subvolumes as the kernel shows them; snapshots are empty unless they are asked for.
#[test]
fn subvolumes_equal_the_mount() {
    let test = "subvolumes_equal_the_mount";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let fill = r#"
cd "$1"; echo top > top; btrfs -q subvolume create @; btrfs -q subvolume create @/nested; mkdir -p @/dir @home/x
btrfs -q subvolume create @/dir/deep; btrfs -q subvolume create @/dir/deep/deeper
for d in . @ @/nested @/dir/deep @/dir/deep/deeper @home/x; do echo "in $d" > $d/file; ln $d/file $d/hard; done
chown 5:6 @/nested; setfattr -n user.x -v y @/nested; mkdir @/.snapshots
btrfs -q subvolume snapshot -r @ @/.snapshots/1; btrfs -q subvolume snapshot @ @/.snapshots/2; echo later > @/later
btrfs -q subvolume create gone; echo x > gone/file; btrfs -q subvolume delete -c gone
btrfs subvolume set-default "$(btrfs inspect-internal rootid @)" .
"#;
    let temp = support::scratch(2 << 30);
    let images = make(temp.path(), "", "", 1, fill).unwrap();
    let fs = open_images(&images).unwrap();
    let all = fs.subvolumes();
    let find = |path: &str| all.iter().find(|s| s.path == path.as_bytes()).unwrap();
    let paths: Vec<String> = all
        .iter()
        .map(|s| String::from_utf8(s.path.clone()).unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "",
            "@",
            "@/nested",
            "@/dir/deep",
            "@/dir/deep/deeper",
            "@/.snapshots/1",
            "@/.snapshots/2"
        ]
    );
    assert!(find("@").default && !find("").default && !find("@/nested").default);
    assert_eq!(find("@/.snapshots/1").snapshot_of, Some(find("@").id));
    assert!(find("@/.snapshots/1").read_only && !find("@/.snapshots/2").read_only);
    let devices = Devices::new(&images);
    let compare = |what: &str, view: &vm2k::fs::View, mounted: &Mount, without: &[&str]| {
        let view = fs.view(view).unwrap();
        let (mut ours, listing) = read_all(&*view);
        assert_eq!(listing.problems, [], "{what}");
        let ids: std::collections::HashSet<_> = ours
            .iter()
            .filter(|s| !s.node.is_dir())
            .map(|s| (s.node.id, s.content.clone()))
            .collect();
        let unique: std::collections::HashSet<_> = ids.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids.len(), unique.len(), "{what}: two files with one id");
        let mut kernels = tree_with_subvolumes(mounted.path());
        kernels.retain(|s| !without.iter().any(|w| s.path.to_string().starts_with(w)));
        for seen in ours.iter_mut().chain(&mut kernels) {
            seen.node.id.ino &= (1 << 40) - 1;
            if seen.node.id.ino == 2 {
                // The kernel gives what is no subvolume the time of the look-up.
                (seen.node.mtime, seen.node.ctime) = Default::default();
            }
        }
        kernel::assert_equal(what, &ours, &kernels);
        view.info().notes
    };
    let snapshots = |snapshots, subvolume| vm2k::fs::View {
        subvolume,
        snapshots,
        without: Vec::new(),
    };
    let top = Some(vm2k::fs::Selector::Id(0));
    let notes = {
        let mounted = devices.mount("ro").unwrap();
        compare("default", &snapshots(true, None), &mounted, &[]);
        compare(
            "default",
            &snapshots(false, None),
            &mounted,
            &["/.snapshots/1/", "/.snapshots/2/"],
        )
    };
    assert!(
        notes.iter().any(|n| n.starts_with("2 snapshots are left out")),
        "{notes:?}"
    );
    {
        let mounted = devices.mount("ro,subvolid=5").unwrap();
        compare("top", &snapshots(true, top), &mounted, &[]);
    }
    {
        let mounted = devices.mount("ro,subvol=@/.snapshots/1").unwrap();
        let path = vm2k::path::GuestPath::lenient(b"@/.snapshots/1").unwrap();
        let view = snapshots(false, Some(vm2k::fs::Selector::Path(path)));
        compare("snapshot", &view, &mounted, &[]);
    }
}

#[test]
fn seeds_are_read_or_named() {
    let test = "seeds_are_read_or_named";
    if !support::root(test) || !tools(test, &["btrfstune", "mkfs.btrfs", "losetup", "btrfs"]) {
        return;
    }
    let temp = support::scratch(2 << 30);
    let mut images = make(temp.path(), "", "", 1, SMALL).unwrap();
    run(Command::new("btrfstune").args(["-S", "1"]).arg(&images[0]));
    let sprout = temp.path().join("sprout");
    run(Command::new("truncate").args(["-s", "300M"]).arg(&sprout));
    {
        let devices = Devices::new(&images);
        let more = Devices::new(std::slice::from_ref(&sprout));
        let mounted = devices.mount("").unwrap();
        run(Command::new("btrfs")
            .args(["-q", "device", "add", "-f", &more.loops[0]])
            .arg(mounted.path()));
        run(Command::new("mount")
            .args(["-o", "remount,rw"])
            .arg(mounted.path()));
        bash(
            "cd \"$1\"; echo new > new; rm a/file-1; sync -f .",
            &[mounted.path()],
        );
    }
    let refused = open_images(std::slice::from_ref(&sprout))
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("seed device"), "{refused}");
    images.insert(0, sprout);
    let fs = open_images(&images).unwrap();
    let (seen, listing) = read_all(&*fs);
    assert_eq!(listing.problems, []);
    let devices = Devices::new(&images);
    let mounted = devices.mount("ro").unwrap();
    kernel::assert_equal("sprout", &seen, &kernel::tree_of(mounted.path()));
}

fn machine(disks: &[PathBuf], root: Option<&str>, snapshots: bool) -> anyhow::Result<Machine> {
    let options = MachineOptions {
        root: root.map(str::to_owned),
        snapshots,
        ..MachineOptions::default()
    };
    Machine::open(disks, &options, &Silent)
}

fn text(machine: &Machine, path: &str) -> Option<String> {
    let bytes = read_file(machine, path, 1 << 20).unwrap()?;
    Some(String::from_utf8(bytes).unwrap())
}

/// `system DIR NAME` makes the root of an operating system.
const SYSTEM: &str = r#"
cd "$1"; U=$(findmnt -n -o UUID "$1"); v() { btrfs -q subvolume create "$1"; }
system() { mkdir -p "$1/etc" "$1/usr/bin" "$1/home" "$1/var"; printf 'ID=test\nPRETTY_NAME="%s"\n' "$2" >"$1/etc/os-release"; : >"$1/etc/fstab"; }
"#;

#[test]
fn the_subvolume_with_the_system_is_the_root() {
    let test = "the_subvolume_with_the_system_is_the_root";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let make = |name: &str, options: &str, count: usize, fill: &str| {
        let temp = support::scratch(2 << 30);
        let images = make(temp.path(), options, "", count, &format!("{SYSTEM}{fill}")).expect(name);
        (temp, images)
    };
    // As Ubuntu and Arch do it, with the snapshots of timeshift; on two devices.
    let (_temp, images) = make(
        "ubuntu",
        "-d raid0 -m raid1",
        2,
        r#"v @; v @home; system @ one; echo hi > @home/hi; mkdir @/home/hidden; v @/var/lib-machines; echo in > @/var/lib-machines/f
        printf "UUID=$U / btrfs defaults,subvol=@ 0 1\nUUID=$U /home btrfs defaults,subvol=@home 0 2\n
        UUID=$U /mnt btrfs subvolid=5 0 0\nUUID=$U /no btrfs subvol=no 0 0\n" > @/etc/fstab
        mkdir -p timeshift; btrfs -q subvolume snapshot @ timeshift/@; btrfs -q subvolume snapshot @home @/var/old"#,
    );
    for disks in [images.clone(), vec![images[1].clone(), images[0].clone()]] {
        let found = machine(&disks, None, false).unwrap();
        assert_eq!(text(&found, "/home/hi").as_deref(), Some("hi\n"));
        assert_eq!(text(&found, "/var/lib-machines/f").as_deref(), Some("in\n"));
        assert!(found.tree().find("/home/hidden").is_none());
        // The top holds what is mounted elsewhere already, and a snapshot: both stay empty.
        assert!(found.tree().find("/mnt/timeshift/@").is_some());
        for gone in [
            "/mnt/@/etc",
            "/mnt/@home/hi",
            "/mnt/timeshift/@/etc",
            "/var/old/hi",
        ] {
            assert!(found.tree().find(gone).is_none(), "{gone}");
        }
        let problems: Vec<String> = found.problems().iter().map(|p| p.path.to_string()).collect();
        assert_eq!(problems, ["/no"]);
    }
    let asked = machine(&images, None, true).unwrap();
    assert_eq!(text(&asked, "/var/old/hi").as_deref(), Some("hi\n"));
    assert!(asked.tree().find("/mnt/timeshift/@/etc").is_some());
    // Files that have just changed have no identity.
    if let (Some(with), Some(without)) = (
        asked.identity(),
        machine(&images, None, false).unwrap().identity(),
    ) {
        assert_ne!(with, without);
    }
    let snapshot = machine(&images, Some("device-0:timeshift/@"), false).unwrap();
    assert!(snapshot.tree().find("/etc/os-release").is_some());
    let e = machine(&images, Some("device-0:nothing"), false).unwrap_err();
    assert!(report(&e).contains("@home"), "{}", report(&e));
    let e = machine(&images[..1], None, false).unwrap_err();
    assert!(report(&e).contains("btrfs device 2 (UUID "), "{}", report(&e));

    // As openSUSE does it: the default subvolume is a snapshot.
    let (_temp, images) = make(
        "opensuse",
        "",
        1,
        r#"v @; v @/var; v @/.snapshots; mkdir @/.snapshots/1; echo in > @/var/in-var
        btrfs -q subvolume snapshot @ @/.snapshots/1/snapshot; S=@/.snapshots/1/snapshot; rmdir $S/var $S/.snapshots 2>/dev/null || true
        system $S two; mkdir -p $S/.snapshots $S/var; mkdir @/.snapshots/2; btrfs -q subvolume snapshot -r $S @/.snapshots/2/snapshot
        printf "UUID=$U / btrfs defaults 0 0\nUUID=$U /var btrfs subvol=/@/var 0 0\nUUID=$U /.snapshots btrfs subvol=/@/.snapshots 0 0\n" > $S/etc/fstab
        btrfs subvolume set-default "$(btrfs inspect-internal rootid $S)" ."#,
    );
    let found = machine(&images, None, false).unwrap();
    assert_eq!(found.problems(), []);
    assert_eq!(text(&found, "/var/in-var").as_deref(), Some("in\n"));
    assert!(found.tree().find("/.snapshots/1/snapshot").is_some());
    for gone in ["/.snapshots/1/snapshot/etc", "/.snapshots/2/snapshot/etc"] {
        assert!(found.tree().find(gone).is_none(), "{gone}");
    }

    // Two systems: which one must be said.
    let (_temp, images) = make(
        "two",
        "",
        1,
        "v a; v b; system a A; system b B; for n in a b; do echo \"UUID=$U / btrfs subvol=$n 0 0\" > $n/etc/fstab; done",
    );
    let e = machine(&images, None, false).unwrap_err();
    let said = report(&e);
    assert!(
        said.contains("device-0:a") && said.contains("device-0:b"),
        "{said}"
    );
    let b = machine(&images, Some("device-0:b"), false).unwrap();
    assert!(text(&b, "/etc/os-release").unwrap().contains("\"B\""));
    let id = open_images(&images).unwrap().subvolumes()[1].id;
    let a = machine(&images, Some(&format!("device-0:subvolid={id}")), false).unwrap();
    assert!(text(&a, "/etc/os-release").unwrap().contains("\"A\""));
}

/// crc32c of every node and superblock of `bytes` as it must be, so that what was changed reaches what reads it.
fn sign(bytes: &mut [u8], nodes: &[usize], size: usize) {
    for at in nodes {
        let sum = crc32c::crc32c(&bytes[at + 32..at + size]);
        bytes[*at..at + 4].copy_from_slice(&sum.to_le_bytes());
    }
    for at in [64 << 10, 64 << 20] {
        if bytes.len() >= at + 4096 {
            let sum = crc32c::crc32c(&bytes[at + 32..at + 4096]);
            bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

#[test]
fn mutants_neither_panic_nor_hang() {
    let test = "btrfs mutants";
    if !support::root(test) || !tools(test, TOOLS) {
        return;
    }
    let temp = support::scratch(2 << 30);
    let fill = format!(
        "{SEED_TREE}\n{}",
        r#"cd "$1"; btrfs -q subvolume create sub; echo in > sub/file; btrfs -q subvolume snapshot . snap
        head -c 60000 < <(yes text) > packed; btrfs property set a compression lzo; head -c 9000 < <(yes more) > a/packed"#
    );
    let mut opened = 0;
    for (number, (options, size)) in [
        ("--mixed -n 4096 -m single", 4096),
        ("-m single -n 16384 -O ^no-holes", 16384),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = temp.path().join(number.to_string());
        std::fs::create_dir(&dir).unwrap();
        let images = make(&dir, options, "compress-force=zstd", 1, &fill).unwrap();
        let copy = dir.join("copy");
        {
            let devices = Devices::new(&images);
            let mounted = devices.mount("commit=300").unwrap();
            bash(
                &format!("{SYNC} f data more; mv a/file a/moved; s a/moved; rm n100; s ."),
                &[mounted.path()],
            );
            run(Command::new("cp")
                .arg("--sparse=always")
                .arg(&images[0])
                .arg(&copy));
        }
        let mut seed = std::fs::read(&copy).unwrap();
        let used = seed.iter().rposition(|b| *b != 0).unwrap();
        seed.truncate((used + 1).next_multiple_of(1 << 16).min(70 << 20));
        let fsid = seed[0x1_0020..0x1_0030].to_vec();
        let nodes: Vec<usize> = ((1 << 20)..seed.len() - size)
            .step_by(4096)
            .filter(|at| seed[at + 32..at + 48] == fsid)
            .collect();
        assert!(nodes.len() > 10, "{}", nodes.len());
        let mut bytes = seed.clone();
        // Each copies a seed of many megabytes: fewer of them.
        for mutant in 0..mutants().div_ceil(3) {
            let mut random = Random(mutant.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut touched = Vec::new();
            for _ in 0..1 + random.below(4) {
                let at = match random.below(12) {
                    0 => 64 << 10,
                    _ => nodes[random.below(nodes.len())],
                };
                touched.push(at);
                // Headers, items, and the data of items, which fill a node from its end.
                let range = match random.below(4) {
                    0 => 80..132,
                    1 => 101..101 + 25 * 20,
                    2 => size.saturating_sub(1500)..size,
                    _ => 0x20..size,
                };
                let place = at + range.start + random.below(range.len());
                match random.below(4) {
                    0 => bytes[place] ^= 1 << random.below(8),
                    1 => bytes[place] = random.next() as u8,
                    2 => bytes[place] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                    _ => {
                        let from = nodes[random.below(nodes.len())] + random.below(size - 8);
                        bytes.copy_within(from..from + 8, place.min(at + size - 8));
                    }
                }
            }
            let signed: Vec<usize> = touched.iter().copied().filter(|at| *at != 64 << 10).collect();
            sign(&mut bytes, &signed, size);
            let what = format!("mutant {mutant} of {options}");
            opened += u64::from(read_everything(&what, bytes.clone()));
            for at in touched {
                let end = at + size.max(4096);
                bytes[at..end].copy_from_slice(&seed[at..end]);
            }
            if seed.len() >= (64 << 20) + 4096 {
                bytes[64 << 20..(64 << 20) + 4096].copy_from_slice(&seed[64 << 20..(64 << 20) + 4096]);
            }
        }
    }
    eprintln!("{test}: {opened} mutants opened and were read");
    assert!(opened > 0);
}
