//! What the tests of every filesystem share: the oracle of real images, the mount as judge, damage, and mutants.

use crate::kernel::{self, Mounted, Seen};
use crate::support::{self, bash, shared, tools, unzstd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm2k::fs::{Filesystem, Listing};
use vm2k::read_at::{HostFile, ReadAt, Stream};
use vm2k::tree::Kind;

pub(crate) fn open(image: &Path) -> vm2k::error::Result<Box<dyn Filesystem>> {
    vm2k::fs::open(Arc::new(HostFile::open(image)?))
}

/// Our tree of `image`, which must open, and what could not be read.
pub(crate) fn ours(image: &Path) -> (Vec<Seen>, Listing) {
    let fs = open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let listing = fs.list().unwrap();
    let seen = kernel::ours(&listing.tree, &|id| fs.open(id.ino));
    (seen, listing)
}

/// The files `*.zst` in `dir`, sorted.
pub(crate) fn packed(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "zst"))
        .collect();
    files.sort();
    files
}

/// One entry of `oracle.json`: path, mode, uid, gid, size, mtime, sha256 or `d` or `l<target>`, attributes.
pub(crate) fn oracle_entry(seen: &Seen) -> serde_json::Value {
    let letter = match seen.node.kind.letter() {
        'd' => 0o40000,
        'l' => 0o120000,
        'b' => 0o60000,
        'c' => 0o20000,
        'p' => 0o10000,
        's' => 0o140000,
        _ => 0o100000u32,
    };
    let (size, content) = match &seen.node.kind {
        Kind::File { size } => (*size, seen.content.clone()),
        Kind::Symlink { target } => (
            target.len() as u64,
            format!("l{}", String::from_utf8_lossy(target)),
        ),
        _ => (0, seen.node.kind.letter().to_string()),
    };
    let xattrs: Vec<_> = seen
        .node
        .xattrs
        .iter()
        .map(|(n, v)| serde_json::json!([String::from_utf8_lossy(n), vm2k::bytes::hex(v)]))
        .collect();
    serde_json::json!([
        String::from_utf8_lossy(seen.path.relative()),
        format!("0o{:o}", letter | u32::from(seen.node.mode)),
        seen.node.uid,
        seen.node.gid,
        size,
        seen.node.mtime.sec,
        content,
        xattrs
    ])
}

/// Reads every image of the shared `folders` that `../shared` has an oracle for: each equals the oracle, and the kernel's
/// mount where there is one; at most `refusals` are refused by a feature's name.
pub(crate) fn assert_oracle(test: &str, folders: &[&str], refusals: usize) {
    let mounting = support::root(test);
    let (mut equal, mut refused, mut mounted) = (0, Vec::new(), 0);
    for folder in folders {
        let Some(dir) = shared(test, folder) else { return };
        if !tools(test, &["zstd"]) {
            return;
        }
        let temp = support::scratch(1 << 30);
        let oracle: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(dir.join("oracle.json")).unwrap()).unwrap();
        for case in &oracle {
            let name = case["image"].as_str().unwrap();
            let image = unzstd(&dir.join(format!("{name}.zst")), temp.path());
            if let Err(e @ vm2k::error::Error::Unsupported { .. }) = open(&image) {
                refused.push(format!("{name}: {e}"));
                continue;
            }
            let (seen, listing) = ours(&image);
            assert_eq!(listing.problems, [], "{name}");
            if case["mount"] == true {
                let mut found: Vec<_> = seen
                    .iter()
                    .filter(|s| !s.path.is_root())
                    .map(oracle_entry)
                    .collect();
                let mut expected = case["entries"].as_array().unwrap().clone();
                // Directories' sizes are not part of a tree.
                for entry in &mut expected {
                    if entry[6] == "d" {
                        entry[4] = 0.into();
                    }
                }
                found.sort_by_key(ToString::to_string);
                expected.sort_by_key(ToString::to_string);
                assert_eq!(found, expected, "{name}");
            }
            equal += 1;
            if mounting && let Ok(mount) = Mounted::try_new(&image, "ro") {
                kernel::assert_equal(name, &seen, &kernel::tree_of(mount.path()));
                mounted += 1;
            }
        }
    }
    eprintln!("{test}: {equal} equal, {mounted} of them also with the mount; refused: {refused:?}");
    assert!(refused.len() <= refusals, "{refused:?}");
}

/// Compares our tree of an image with the kernel's read-only mount of it.
pub(crate) fn assert_like_the_mount(what: &str, image: &Path) {
    let (seen, listing) = ours(image);
    assert_eq!(listing.problems, [], "{what}");
    let mount = Mounted::new(image, "ro");
    kernel::assert_equal(what, &seen, &kernel::tree_of(mount.path()));
}

pub(crate) fn run_ok(program: &str, args: &[&str], image: &Path) -> bool {
    let output = std::process::Command::new(program)
        .args(args)
        .arg(image)
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!(
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    output.status.success()
}

/// The most memory this process ever had, in KiB.
pub(crate) fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Reads the image that [`assert_bounded_memory`] names, in a process of its own.
#[test]
fn one_damaged_image_alone() {
    if let Some(image) = std::env::var_os("VM2K_ALONE") {
        survey("alone", Path::new(&image));
        assert!(peak() < 256 << 10, "{} KiB", peak());
    }
}

pub(crate) fn assert_bounded_memory(what: &str, image: &Path) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "filesystem::one_damaged_image_alone"])
        .env("VM2K_ALONE", image)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(
        status.status.success() && said.contains("1 passed"),
        "{what}: {said}"
    );
}

/// Reads everything of a damaged image, with time bounded; `None` if it does not open or list.
pub(crate) fn survey(what: &str, image: &Path) -> Option<(Vec<Seen>, Listing)> {
    let start = std::time::Instant::now();
    let found = open(image).and_then(|fs| {
        let listing = fs.list()?;
        let mut seen = Vec::new();
        for (path, node) in listing.tree.iter() {
            // Files that are larger than the test has time for are read at their beginning only.
            let mut content = String::new();
            if node.is_file() {
                content = match fs.open(node.id.ino) {
                    Ok(file) if file.len() > 64 << 20 => {
                        let read = file.read_at(0, &mut vec![0; 1 << 20]);
                        read.map_or_else(|e| format!("error: {e}"), |()| "large".to_owned())
                    }
                    Ok(file) => {
                        kernel::sha256(&mut Stream::new(&*file)).unwrap_or_else(|e| format!("error: {e}"))
                    }
                    Err(e) => format!("error: {e}"),
                };
            }
            seen.push(Seen {
                path: path.clone(),
                node: node.clone(),
                content,
            });
        }
        Ok((seen, listing))
    });
    let took = start.elapsed();
    assert!(took.as_secs() < 10, "{what}: {took:?}");
    match found {
        Ok(found) => Some(found),
        Err(e) => {
            eprintln!("{what}: refused: {e}");
            None
        }
    }
}

/// A small deterministic generator (Knuth's MMIX constants).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Mutant `number` of `seed`: some bytes changed, mostly in blocks that hold metadata.
pub(crate) fn mutant(seed: &[u8], number: u64) -> Vec<u8> {
    let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.len() as u64);
    let mut bytes = seed.to_vec();
    let used: Vec<usize> = (0..seed.len() / 1024)
        .filter(|b| seed[b * 1024..(b + 1) * 1024].iter().any(|x| *x != 0))
        .collect();
    for _ in 0..1 + random.below(12) {
        let block = match random.below(4) {
            0 => used[random.below(used.len().min(3))],
            1 => used[random.below(used.len().min(64))],
            _ => used[random.below(used.len())],
        };
        // Most structures stand at the beginning of their block.
        let range = if random.below(2) == 0 { 128 } else { 1024 };
        let at = block * 1024 + random.below(range);
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            _ => {
                let from = (block * 1024 + random.below(1024)) & !3;
                let to = at & !3;
                bytes.copy_within(from..from + 4, to);
            }
        }
    }
    bytes
}

/// What the seeds hold, below `$1`.
pub(crate) const SEED_TREE: &str = r#"
cd "$1"; mkdir -p a/b/c many; echo hello > a/file; ln a/file a/hard; ln -s file a/link
ln -s "$(printf 'u%.0s' $(seq 200))" a/long; printf 'x%.0s' $(seq 100) > n100; head -c 70000 /dev/urandom > data
for i in $(seq 150); do echo $i > many/a-longer-name-of-entry-$i; done
perl -e 'open(F, ">", "pieces"); for (my $i = 0; $i < 60; $i++) { sysseek(F, $i * 8192, 0); syswrite(F, "piece $i") }'
setfattr -n user.a -v value a/file; setfattr -n user.long -v "$(printf 'v%.0s' $(seq 300))" n100
setfacl -m u:1000:rw a/file; truncate -s 1M hole
"#;

pub(crate) fn mutants() -> u64 {
    std::env::var("VM2K_MUTANTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(150)
}

/// Reads all of a volume in memory, for whatever it holds; panics are the test's failure.
pub(crate) fn read_everything(what: &str, bytes: Vec<u8>) -> bool {
    let start = std::time::Instant::now();
    let read = || -> vm2k::error::Result<()> {
        let fs = vm2k::fs::open(Arc::new(bytes))?;
        let listing = fs.list()?;
        let mut buf = vec![0; 64 << 10];
        for (_, node) in listing.tree.iter().filter(|(_, n)| n.is_file()) {
            let Ok(file) = fs.open(node.id.ino) else { continue };
            let mut at = 0;
            for _ in 0..64 {
                let Ok(extent) = file.extent_at(at) else { break };
                assert!(
                    extent.len > 0 || at >= file.len(),
                    "{what}: an extent without a length"
                );
                let n = extent.len.min(buf.len() as u64) as usize;
                let _ = file.read_at(at, &mut buf[..n]);
                at += extent.len;
            }
        }
        Ok(())
    };
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| panic!("{what}: panicked"));
    let took = start.elapsed();
    assert!(took.as_secs() < 5, "{what}: {took:?}");
    opened.is_ok()
}

/// Changes of every kind.
pub(crate) const CHANGES: &str = r#"
echo new > new; echo more >> old; ln old hard; rm gone; mv moved moved-here; mkdir -p x/y/z; echo deep > x/y/z/f
ln -s old sym; ln -s "$(printf 'u%.0s' $(seq 300))" long; mknod dev c 4 5; chmod 4711 old; chown 5:6 old
setfattr -n user.a -v b old; setfacl -m u:5:r old; truncate -s 100 shorter; head -c 300000 /dev/urandom > big
for i in $(seq 300); do echo $i > dir/entry-number-$i; done; rm -r tree
touch -d '2040-01-01 00:00:00.5' x
dd if=/dev/zero of=last bs=1 count=1 conv=fsync status=none
"#;
pub(crate) const BASE: &str = r#"
echo old > old; echo gone > gone; echo moved > moved; mkdir dir tree; head -c 50000 /dev/urandom > shorter
for i in $(seq 50); do mkdir tree/$i; echo $i > tree/$i/file; done
"#;
/// Transactions until the log has gone round.
pub(crate) const ROUNDS: &str = r#"
for i in $(seq 400); do
    mkdir round-$i; echo $i > round-$i/file; for j in 1 2 3 4 5 6 7 8; do echo > round-$i/$j; done
    [ $i -le 3 ] || rm -r round-$((i - 3))
    dd if=/dev/zero of=last bs=$i count=1 conv=fsync status=none
done
"#;

/// Ends the mounted filesystem `$1` as a loss of power does: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, which are XFS_IOC_GOINGDOWN and XFS_FSOP_GOING_FLAGS_NOLOGFLUSH too. A copy
/// taken while it lives would be of many moments.
pub(crate) const POWER_CUT: &str = r#"perl -e 'open(F, "<", $ARGV[0]) or die; my $how = pack("L", 2); ioctl(F, 0x8004587d, $how) or die $!' "$1""#;

/// Fills the filesystem in the first image, syncs it, works on it and ends it as a loss of power does (`cut`) or a clean
/// unmount. What is left then is in the second.
pub(crate) fn cut_off((image, copy): (&Path, &Path), mount: &str, before: &str, work: &str, cut: bool) {
    let mount = Mounted::new(image, mount);
    bash(&format!("cd \"$1\"\n{before}\nsync -f ."), &[mount.path()]);
    bash(&format!("cd \"$1\"\n{work}"), &[mount.path()]);
    if cut {
        bash(POWER_CUT, &[mount.path()]);
    }
    mount.unmount();
    bash("cp --sparse=always \"$1\" \"$2\"", &[image, copy]);
}

/// Writes a file of 16 GB with few pieces into the new filesystem in `image`, and reads it by one and by many threads as the
/// kernel does. Its extents that are no holes have at most `most` bytes.
pub(crate) fn assert_large_files(what: &str, image: &Path, most: u64) {
    let mount = Mounted::new(image, "");
    // Three levels of pointers on ext3; more than 32 bits of size.
    bash(
        r#"cd "$1"; perl -e 'open(F, ">", "large"); for my $at (0, 1e5, 1e7, 3e8, 5e9, 15e9) {
           sysseek(F, $at, 0); syswrite(F, "at $at" x 1000) }'; truncate -s 16000000000 large"#,
        &[mount.path()],
    );
    mount.unmount();
    let fs = open(image).unwrap();
    let listing = fs.list().unwrap();
    let (_, node) = listing.tree.find("/large").unwrap();
    assert_eq!(node.size(), 16_000_000_000);
    let file = fs.open(node.id.ino).unwrap();
    let mount = Mounted::new(image, "ro");
    let kernels = HostFile::open(&mount.path().join("large")).unwrap();
    let mut data = 0;
    let mut at = 0;
    while at < file.len() {
        let extent = file.extent_at(at).unwrap();
        if !extent.hole {
            data += extent.len;
            let len = usize::try_from(extent.len).unwrap();
            let (mut a, mut b) = (vec![0; len], vec![0; len]);
            file.read_at(at, &mut a).unwrap();
            kernels.read_at(at, &mut b).unwrap();
            assert_eq!(a, b, "{what}: byte {at}");
        }
        at += extent.len;
    }
    // Six pieces of a few thousand bytes: what lies between is told as holes, by the kernel as well.
    assert!((30_000..most).contains(&data), "{what}: {data}");
    let mut at = 0;
    while at < kernels.len() {
        let extent = kernels.extent_at(at).unwrap();
        if !extent.hole {
            assert!(!file.extent_at(at).unwrap().hole, "{what}: a hole at {at}");
        }
        at += extent.len;
    }
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (file, kernels) = (&file, &kernels);
            scope.spawn(move || {
                let mut random = Random(thread);
                for _ in 0..200 {
                    let near = [0, 100_000, 10_000_000, 300_000_000, 5_000_000_000, 15_000_000_000];
                    let at = near[random.below(near.len())] + random.next() % 9000;
                    let len = random.below(20_000);
                    let (mut a, mut b) = (vec![1; len], vec![2; len]);
                    file.read_at(at, &mut a).unwrap();
                    kernels.read_at(at, &mut b).unwrap();
                    assert!(a == b, "{at} {len}");
                }
            });
        }
    });
}
