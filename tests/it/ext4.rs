//! ext2, ext3 and ext4 against the kernel, e2fsprogs and damage.

use crate::kernel::{self, Mounted, Seen};
use crate::support::{self, bash, shared, tools, unzstd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm2k::fs::{Filesystem, Listing};
use vm2k::read_at::HostFile;
use vm2k::tree::Kind;

fn open(image: &Path) -> vm2k::error::Result<Box<dyn Filesystem>> {
    vm2k::fs::open(Arc::new(HostFile::open(image)?))
}

/// Our tree of `image`, which must open, and what could not be read.
fn ours(image: &Path) -> (Vec<Seen>, Listing) {
    let fs = open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let listing = fs.list().unwrap();
    let seen = kernel::ours(&listing.tree, &|id| fs.open(id.ino));
    (seen, listing)
}

/// The files `*.zst` in `dir`, sorted.
#[allow(dead_code, reason = "for the tests that follow")]
fn packed(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "zst"))
        .collect();
    files.sort();
    files
}

/// One entry of `oracle.json`: path, mode, uid, gid, size, mtime, sha256 or `d` or `l<target>`, attributes.
fn oracle_entry(seen: &Seen) -> serde_json::Value {
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

#[test]
fn valid_filesystems_equal_the_oracle_and_the_mount() {
    let test = "ext4 oracle";
    let mounting = support::root(test);
    let (mut equal, mut refused, mut mounted) = (0, Vec::new(), 0);
    for folder in ["fs/ext4", "fs/ext2"] {
        let Some(dir) = shared(test, folder) else { return };
        if !tools(test, &["zstd"]) {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
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
    assert!(refused.len() <= 1, "{refused:?}");
}

/// Compares our tree of an image with the kernel's read-only mount of it.
fn assert_like_the_mount(what: &str, image: &Path) {
    let (seen, listing) = ours(image);
    assert_eq!(listing.problems, [], "{what}");
    let mount = Mounted::new(image, "ro");
    kernel::assert_equal(what, &seen, &kernel::tree_of(mount.path()));
}

/// An image of one's own, as in `VM2K_EXT4_IMAGE=root.img cargo test ext4`.
#[test]
fn the_image_that_the_environment_names_equals_its_mount() {
    if let Some(image) = std::env::var_os("VM2K_EXT4_IMAGE")
        && support::root("ext4 image")
    {
        let start = std::time::Instant::now();
        let paths = open(Path::new(&image)).unwrap().list().unwrap().tree.len();
        eprintln!("{paths} paths listed in {:?}", start.elapsed());
        assert_like_the_mount("VM2K_EXT4_IMAGE", Path::new(&image));
    }
}

/// Options of mkfs.ext4 that change what is on disk, one line each.
const MATRIX: &[&str] = &[
    "-t ext2",
    "-t ext2 -b 4096 -I 128",
    "-t ext2 -b 4096 -r 0",
    "-t ext2 -O ^filetype,^sparse_super,^dir_index,^ext_attr,^resize_inode",
    "-t ext3",
    "-t ext3 -b 1024 -I 128",
    "-t ext3 -b 2048 -O meta_bg,^resize_inode",
    "-t ext4",
    "-t ext4 -b 4096",
    "-t ext4 -b 1024",
    "-t ext4 -b 2048 -I 512",
    "-t ext4 -I 128",
    "-t ext4 -b 4096 -I 4096 -i 32768",
    "-t ext4 -O ^64bit",
    "-t ext4 -O ^metadata_csum",
    "-t ext4 -O ^metadata_csum,uninit_bg,^64bit",
    "-t ext4 -O ^metadata_csum,uninit_bg,64bit",
    "-t ext4 -O metadata_csum_seed",
    "-t ext4 -O ^extents,^64bit",
    "-t ext4 -O ^extents,^64bit -b 1024",
    "-t ext4 -O ^flex_bg",
    "-t ext4 -O meta_bg,^resize_inode",
    "-t ext4 -O meta_bg,^resize_inode -b 1024 -g 1024",
    "-t ext4 -O sparse_super2,^resize_inode",
    "-t ext4 -O bigalloc",
    "-t ext4 -O bigalloc -C 65536 -b 1024",
    "-t ext4 -O inline_data",
    "-t ext4 -O inline_data -I 1024",
    "-t ext4 -O ea_inode",
    "-t ext4 -O ea_inode,inline_data -I 512 -b 1024",
    "-t ext4 -O large_dir",
    "-t ext4 -O mmp",
    "-t ext4 -O quota",
    "-t ext4 -O quota,project",
    "-t ext4 -O casefold",
    "-t ext4 -O verity",
    "-t ext4 -O fast_commit",
    "-t ext4 -O orphan_file",
    "-t ext4 -O ^has_journal",
    "-t ext4 -O ^huge_file,^dir_nlink,^extra_isize",
    "-t ext4 -O ^dir_index",
    "-t ext4 -E packed_meta_blocks=1",
    "-t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -U clear -L name",
    "-t ext4 -b 1024 -g 512 -N 20000",
];

/// Fills the mounted filesystem `$1` with one of everything. `$2` is the number of entries of the large directory.
const FILL: &str = r#"
cd "$1"
mkdir -p d/e/f empty perms
echo content > d/file
ln d/file d/e/hard
ln d/file hard
printf '' > zero
printf 'x%.0s' $(seq 59) > n59; printf 'x%.0s' $(seq 60) > n60; printf 'x%.0s' $(seq 61) > n61
printf 'y%.0s' $(seq 150) > n150; printf 'y%.0s' $(seq 700) > n700
for n in 1023 1024 1025 4095 4096 4097 12288 49153 300000; do head -c $n /dev/urandom > size-$n; done
ln -s d/file link; ln -s "$(printf 't%.0s' $(seq 59))" link59; ln -s "$(printf 't%.0s' $(seq 60))" link60
ln -s "$(printf 'u%.0s' $(seq 1000))" link1000
mknod block b 8 1; mknod char c 1 3; mknod far c 300 70000; mkfifo fifo
perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un("socket")) or die' 
chown 70000:80000 d/file; chown -h 1:2 link
for m in 0000 0777 1777 2755 4755 6711 7777; do touch perms/$m; chmod $m perms/$m; done
# Holes at the beginning, in the middle, at the end; space that is allocated but not written.
dd if=/dev/urandom of=sparse bs=1000 seek=300 count=10 status=none
dd if=/dev/urandom of=sparse bs=1000 seek=20000 count=1 conv=notrunc status=none
truncate -s 30M sparse
truncate -s 40M all-hole
fallocate -l 300k unwritten 2>/dev/null || truncate -s 300k unwritten
printf data | dd of=unwritten bs=1 seek=100000 conv=notrunc status=none
fallocate -n -l 200k unwritten-behind 2>/dev/null || true
echo short > unwritten-behind-2; fallocate -n -o 0 -l 100k unwritten-behind-2 2>/dev/null || true
# Many extents, so that the tree has a depth.
perl -e 'open(F, ">", "pieces"); for (my $i = 0; $i < 700; $i++) { sysseek(F, $i * 8192, 0); syswrite(F, "piece $i") }'
touch -d '1901-12-14 00:00:00' t1901 2>/dev/null || true
touch -d '1969-12-31 23:59:59.5' t1969; touch -d '2037-01-01 00:00:00.123456789' t2037
touch -d '2039-01-01 00:00:00.987654321' t2039 2>/dev/null || true
touch -d '2300-01-01' t2300 2>/dev/null || true
touch "$(printf 'new\nline')" "$(printf 'latin-\344')" "$(printf '\001\033[31m')" ' ' '-' "$(printf 'n%.0s' $(seq 255))"
deep=d; for i in $(seq 40); do deep=$deep/level-$i; mkdir "$deep"; done; echo bottom > "$deep/file"
mkdir many; perl -e 'for (1..$ARGV[0]) { open(F, ">", sprintf("many/entry-%06d", $_)) or die; print F $_ if $_ % 100 == 0 }' "$2"
perl -e 'for (1..$ARGV[0]) { unlink(sprintf("many/entry-%06d", $_)) if $_ % 7 == 0 }' "$2"
"#;

/// Attributes, where the filesystem has them; `$1` as in [`FILL`], `$2` the length of a long value.
const ATTRIBUTES: &str = r#"
cd "$1"
setfattr -n user.short -v value d/file
setfattr -n user.empty d/file
setfattr -n trusted.x -v 0x0001ff d/file
setfattr -n security.selinux -v 'system_u:object_r:etc_t:s0' zero
setfattr -n trusted.overlay.opaque -v y empty
setfattr -h -n trusted.link -v 1 link
setfattr -n trusted.dev -v 1 block
setfattr -n user.n60 -v inline n60
for f in n61 n150 n700 size-1024; do setfattr -n user.long -v "$(printf 'v%.0s' $(seq "$2"))" $f; done
setfattr -n user.other -v "$(printf 'w%.0s' $(seq 300))" n700
for i in $(seq 12); do setfattr -n user.a$i -v "value $i" size-4096; done
setfacl -m u:1000:rw,g:100000:r,m::rwx n59
setfacl -m u:0:---,u:4000000000:x size-1025
setfacl -d -m u:7:rwx,g:8:rx d
mkdir d/inherits; touch d/inherits/file
setcap cap_net_raw+ep size-1023
"#;

/// Makes a filesystem with `options`, fills it and unmounts it; `false` if mkfs or the kernel does not know them.
fn make(image: &Path, options: &str, entries: u32) -> bool {
    let size = if options.contains("-g ") { "96M" } else { "128M" };
    run_ok("truncate", &["-s", size], image);
    let mut words: Vec<&str> = options.split(' ').collect();
    words.extend(["-q", "-F"]);
    if !run_ok("mkfs.ext4", &words, image) {
        return false;
    }
    let Ok(mount) = Mounted::try_new(image, "") else {
        return false;
    };
    bash(FILL, &[mount.path(), Path::new(&entries.to_string())]);
    if !options.contains("^ext_attr") {
        let long = if options.contains("ea_inode") {
            "20000"
        } else if options.contains("-b 4096") {
            "3000"
        } else {
            "500"
        };
        bash(ATTRIBUTES, &[mount.path(), Path::new(long)]);
    }
    if options.contains("casefold") {
        bash(
            "cd \"$1\"; mkdir fold; chattr +F fold; touch fold/Straße fold/README",
            &[mount.path()],
        );
    }
    mount.unmount();
    true
}

fn run_ok(program: &str, args: &[&str], image: &Path) -> bool {
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

#[test]
fn what_the_kernel_writes_under_every_option_is_read_right() {
    let test = "ext4 matrix";
    if !support::root(test) || !tools(test, &["mkfs.ext4", "setfattr", "setfacl", "setcap", "perl"]) {
        return;
    }
    let only = std::env::var("VM2K_EXT4_OPTIONS").ok();
    let temp = tempfile::tempdir().unwrap();
    let mut unknown = Vec::new();
    for options in MATRIX {
        if only.as_deref().is_some_and(|only| only != *options) {
            continue;
        }
        let image = temp.path().join("image");
        let entries = if *options == "-t ext4" { 20_000 } else { 1_000 };
        if make(&image, options, entries) {
            assert_like_the_mount(options, &image);
        } else {
            unknown.push(*options);
        }
        std::fs::remove_file(&image).unwrap();
    }
    eprintln!("{test}: {} option sets, not made here: {unknown:?}", MATRIX.len());
    assert!(unknown.len() <= 5, "{unknown:?}");
}
