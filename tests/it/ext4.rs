//! ext2, ext3 and ext4 against the kernel, e2fsprogs and damage.

use crate::filesystem::*;
use crate::kernel::{self, Mounted, Seen};
use crate::support::{self, bash, shared, tools, unzstd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[test]
fn valid_filesystems_equal_the_oracle_and_the_mount() {
    assert_oracle("ext4 oracle", &["fs/ext4", "fs/ext2"], 1);
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

#[test]
fn what_the_kernel_writes_under_every_option_is_read_right() {
    let test = "ext4 matrix";
    if !support::root(test) || !tools(test, &["mkfs.ext4", "setfattr", "setfacl", "setcap", "perl"]) {
        return;
    }
    let only = std::env::var("VM2K_EXT4_OPTIONS").ok();
    let temp = support::scratch(1 << 30);
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

/// What `debugfs -R request` prints, if it has nothing to complain of.
fn debugfs(image: &Path, request: &str) -> Option<Vec<u8>> {
    let output = std::process::Command::new("debugfs")
        .args(["-R", request])
        .arg(image)
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).lines().count();
    // The first line is its version.
    (output.status.success() && complaints <= 1).then_some(output.stdout)
}

#[test]
fn damaged_filesystems_are_read_right_or_named() {
    let test = "ext4 damaged";
    let Some(dir) = shared(test, "hostile/ext") else {
        return;
    };
    if !tools(test, &["zstd", "debugfs", "e2fsck"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let (mut images, mut files, mut unread, mut names) = (0, 0, 0, 0);
    for packed in packed(&dir) {
        let image = unzstd(&packed, temp.path());
        let what = image.file_name().unwrap().to_string_lossy().into_owned();
        images += 1;
        assert_bounded_memory(&what, &image);
        let Some((seen, listing)) = survey(&what, &image) else {
            std::fs::remove_file(&image).unwrap();
            continue;
        };
        // debugfs does not replay journals.
        let _ = std::process::Command::new("e2fsck")
            .args(["-y", "-E", "journal_only"])
            .arg(&image)
            .output();
        for file in seen.iter().filter(|s| s.node.is_file()) {
            if file.content.starts_with("error") {
                unread += 1;
            } else if file.content != "large"
                && let Some(bytes) = debugfs(&image, &format!("cat <{}>", file.node.id.ino))
            {
                files += 1;
                // debugfs gives all of an inline file's room, whatever its size.
                let size = (file.node.size() as usize).min(bytes.len());
                let expected = kernel::sha256(&mut &bytes[..size]).unwrap();
                assert_eq!(file.content, expected, "{what} {}", file.path);
            }
        }
        for dir in seen.iter().filter(|s| s.node.is_dir()).take(200) {
            let told = |path: &vm2k::path::GuestPath| listing.problems.iter().any(|p| p.path == *path);
            let Some(list) = debugfs(&image, &format!("ls -p <{}>", dir.node.id.ino)) else {
                continue;
            };
            if told(&dir.path) {
                continue;
            }
            for line in list.split(|b| *b == b'\n') {
                let fields: Vec<&[u8]> = line.split(|b| *b == b'/').collect();
                let (Some(ino), Some(name)) = (fields.get(1), fields.get(5)) else {
                    continue;
                };
                if *ino == b"0" || *name == b"." || *name == b".." || name.is_empty() {
                    continue;
                }
                names += 1;
                let path = dir.path.join(name).unwrap();
                assert!(
                    listing.tree.get(&path).is_some() || told(&path),
                    "{what}: {path} is silently missing"
                );
            }
        }
        if !listing.problems.is_empty() || std::env::var_os("VM2K_VERBOSE").is_some() {
            eprintln!(
                "{what}: {} paths, {} problems",
                seen.len(),
                listing.problems.len()
            );
            for problem in listing.problems.iter().take(3) {
                eprintln!("    {}: {}", problem.path, problem.what);
            }
        }
        std::fs::remove_file(&image).unwrap();
    }
    eprintln!(
        "{test}: {images} images; {files} files equal debugfs, {names} names found, {unread} files unreadable"
    );
}

/// Small filesystems made without a mount: one for each way that metadata is laid out. Without checksums, so that
/// changed bytes reach what reads them.
const SEEDS: &[&str] = &[
    "-t ext2 -b 1024 -I 128",
    "-t ext4 -b 1024 -O ^metadata_csum,^has_journal",
    "-t ext4 -b 1024 -O ^metadata_csum,^has_journal,inline_data,ea_inode",
    "-t ext4 -b 1024 -O ^metadata_csum,^has_journal,bigalloc,^resize_inode -C 4096 -N 400",
    "-t ext4 -b 1024 -O ^has_journal,meta_bg,^resize_inode",
    "-t ext4 -b 4096 -O ^metadata_csum,uninit_bg,^has_journal",
];

#[test]
fn mutants_neither_panic_nor_hang() {
    let test = "ext4 mutants";
    if !tools(test, &["mkfs.ext4", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    bash(SEED_TREE, &[&tree]);
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    for options in SEEDS {
        let image = temp.path().join("seed");
        run_ok("truncate", &["-s", "2M"], &image);
        let mut words: Vec<&str> = options.split(' ').collect();
        words.extend(["-q", "-F", "-d", tree.to_str().unwrap()]);
        assert!(run_ok("mkfs.ext4", &words, &image), "{options}");
        let (_, listing) = ours(&image);
        assert_eq!(listing.problems, [], "{options}");
        assert!(listing.tree.len() > 150, "{options}");
        seeds.push(((*options).to_owned(), std::fs::read(&image).unwrap()));
        std::fs::remove_file(&image).unwrap();
    }
    if let Some(dir) = shared(test, "hostile/ext") {
        for packed in packed(&dir) {
            let image = unzstd(&packed, temp.path());
            if std::fs::metadata(&image).unwrap().len() <= 2 << 20 {
                seeds.push((image.display().to_string(), std::fs::read(&image).unwrap()));
            }
            std::fs::remove_file(&image).unwrap();
        }
    }
    let mut opened = 0;
    let own = SEEDS.len();
    for (i, (name, seed)) in seeds.iter().enumerate() {
        // The images of others are many and alike: fewer of each.
        let count = if i < own { mutants() } else { mutants() / 8 };
        for number in 0..count {
            opened += u64::from(read_everything(
                &format!("mutant {number} of {name}"),
                mutant(seed, number),
            ));
        }
    }
    eprintln!(
        "{test}: {} seeds, {opened} mutants opened and were read",
        seeds.len()
    );
}

/// A filesystem that is cut off while it is mounted, so that its journal has to be replayed.
struct Dirty {
    what: &'static str,
    mkfs: &'static str,
    mount: &'static str,
    /// Done and written out before.
    before: &'static str,
    /// Done last, with an fsync at its end; `$1` is the mounted directory.
    work: &'static str,
}

/// Blocks of directories that are deleted and used again for data: the old content is in the log and revoked.
const REVOKES: &str = r#"
for i in $(seq 40); do mkdir d$i; for j in $(seq 40); do echo > d$i/a-name-that-fills-the-block-$j; done; done
dd if=/dev/zero of=one bs=1 count=1 conv=fsync status=none
rm -r d*
dd if=/dev/zero of=two bs=1 count=1 conv=fsync status=none
for i in $(seq 60); do head -c 100000 /dev/urandom > data-$i; done
dd if=/dev/zero of=three bs=1 count=1 conv=fsync status=none
"#;
/// Blocks that begin as the journal's own do.
const ESCAPES: &str = r#"
perl -e 'open(F, ">", "magic"); print F pack("N", 0xc03b3998) x 25600'
perl -e 'open(F, ">", "zeros"); print F pack("N", 0) x 25600'
perl -MIO::Handle -e 'open(F, ">", "other"); print F pack("N3", 0xc03b3998, 1, 2) x 4096; F->flush; F->sync'
"#;
/// Small changes, each with an fsync: what fast commits are made for. `f FILE TEXT` appends and syncs.
const FAST: &str = r#"
f() { perl -MIO::Handle -e 'open(F, ">>", $ARGV[0]) or die; print F $ARGV[1]; F->flush; F->sync or die' "$@"; }
"#;
/// Names: each line ends with a fast commit.
const FAST_NAMES: &str = r#"
f old more; f new content; ln new hard; f hard x
rm gone; f old again; mv moved moved-here; f old once-more
f dir/a a; f dir/b b; rm dir/a; f dir/b bb; ln dir/b dir/c; f dir/c cc; rm dir/c; f old x; f dir/c new-c
for i in $(seq 30); do f dir/file-number-$i $i; done; rm dir/file-number-1*; f old y
"#;
const FAST_DIRECTORIES: &str = r#"
f old more; mkdir sub; f sub/file in-sub; f sub/other o; rm sub/other; f sub/file more
mkdir -p sub/x/y; f sub/x/y/deep d; mkdir gone-again; f old x; rmdir gone-again; f old y
"#;
const FAST_DEVICES: &str = "f old more; mknod dev c 1 3; mkfifo fifo; f old after";
const FAST_SYMLINKS: &str = "f old more; ln -s target sym; f old after";
/// Contents.
const FAST_DATA: &str = r#"
f old more; head -c 200000 /dev/urandom > big; f big y; truncate -s 1000 big; f big z
perl -MIO::Handle -e 'open(F, ">", "sparse"); for (my $i = 0; $i < 40; $i++) { sysseek(F, $i * 9000, 0);
    syswrite(F, "piece $i"); F->sync }'
truncate -s 150000 sparse; f sparse x; truncate -s 400000 shorter; f old y
perl -MIO::Handle -e 'open(F, "+<", "shorter"); sysseek(F, 20000, 0); syswrite(F, "q" x 9000); F->sync'
rm big; f old gone; head -c 30000 /dev/urandom > big; f big again; chmod 600 big; chown 3:4 big; f big z
"#;
const FAST_ROOM: &str = r#"
f old more; fallocate -l 100k room; f room end; fallocate -n -l 200k shorter; f shorter x
perl -MIO::Handle -e 'open(F, "+<", "room"); sysseek(F, 20000, 0); syswrite(F, "q" x 9000); F->sync'
"#;
/// What ends fast commits: a full one must take their place.
const FAST_ENDED: &str = r#"
f old more; f new x; fallocate -p -o 4096 -l 8192 shorter; f shorter punched; setfattr -n user.a -v b old; f old x
f new after; f dir/last after
"#;

const fn fast(what: &'static str, work: &'static str) -> Dirty {
    Dirty {
        what,
        mkfs: "-t ext4 -O fast_commit",
        mount: "commit=300",
        before: BASE,
        work,
    }
}

const DIRTY: &[Dirty] = &[
    Dirty {
        what: "ext4",
        mkfs: "-t ext4",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "ext4 4k",
        mkfs: "-t ext4 -b 4096",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "ext4 without 64bit and checksums",
        mkfs: "-t ext4 -O ^64bit,^metadata_csum",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "ext4 64bit without checksums",
        mkfs: "-t ext4 -O 64bit,^metadata_csum",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "journal_checksum",
        mkfs: "-t ext4 -O ^metadata_csum",
        mount: "commit=300,journal_checksum",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "journal_async_commit",
        mkfs: "-t ext4 -O ^metadata_csum",
        mount: "commit=300,journal_async_commit,data=writeback",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "ext3",
        mkfs: "-t ext3",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "inline_data",
        mkfs: "-t ext4 -O inline_data",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "orphan_file",
        mkfs: "-t ext4 -O orphan_file",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    Dirty {
        what: "rounds",
        mkfs: "-t ext4 -b 1024 -J size=1",
        mount: "commit=300",
        before: BASE,
        work: ROUNDS,
    },
    Dirty {
        what: "rounds ext3",
        mkfs: "-t ext3 -b 1024 -J size=1",
        mount: "commit=300",
        before: BASE,
        work: ROUNDS,
    },
    Dirty {
        what: "revokes",
        mkfs: "-t ext4 -b 1024 -J size=8",
        mount: "commit=300",
        before: BASE,
        work: REVOKES,
    },
    Dirty {
        what: "revokes 32 bit",
        mkfs: "-t ext4 -b 1024 -O ^64bit,^metadata_csum -J size=8",
        mount: "commit=300",
        before: BASE,
        work: REVOKES,
    },
    Dirty {
        what: "escapes",
        mkfs: "-t ext4 -b 1024 -J size=8",
        mount: "commit=300,data=journal",
        before: BASE,
        work: ESCAPES,
    },
    Dirty {
        what: "ended fast_commit",
        mkfs: "-t ext4 -O fast_commit",
        mount: "commit=300",
        before: BASE,
        work: CHANGES,
    },
    fast("fast_commit names", FAST_NAMES),
    fast("fast_commit directories", FAST_DIRECTORIES),
    fast("fast_commit devices", FAST_DEVICES),
    fast("fast_commit symlinks", FAST_SYMLINKS),
    fast("fast_commit data", FAST_DATA),
    fast("fast_commit room", FAST_ROOM),
    fast("fast_commit ended", FAST_ENDED),
    Dirty {
        mkfs: "-t ext4 -b 4096 -O fast_commit,^metadata_csum",
        ..fast("fast_commit data without checksums", FAST_DATA)
    },
    Dirty {
        mkfs: "-t ext4 -b 4096 -O fast_commit,inline_data",
        ..fast("fast_commit inline", FAST_NAMES)
    },
];

#[test]
fn a_dirty_journal_reads_like_the_recovered_filesystem() {
    let test = "ext4 journal";
    if !support::root(test) || !tools(test, &["mkfs.ext4", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let only = std::env::var("VM2K_EXT4_DIRTY").ok();
    let temp = support::scratch(1 << 30);
    let (mut failed, mut fast_commits) = (Vec::new(), 0);
    for case in DIRTY {
        if only.as_deref().is_some_and(|only| only != case.what) {
            continue;
        }
        let (image, copy) = (temp.path().join("image"), temp.path().join("copy"));
        run_ok("truncate", &["-s", "64M"], &image);
        let mut words: Vec<&str> = case.mkfs.split(' ').collect();
        words.extend(["-q", "-F"]);
        assert!(run_ok("mkfs.ext4", &words, &image), "{}", case.what);
        let is_fast = case.what.starts_with("fast_commit ");
        let work = format!("{FAST}{}", case.work);
        cut_off((&image, &copy), case.mount, case.before, &work, true);
        let notes = open(&copy).unwrap().info().notes;
        let replayed = notes.iter().find(|n| n.starts_with("journal replayed"));
        let fast = notes.iter().any(|n| n.starts_with("fast commits replayed"));
        if is_fast && !fast {
            eprintln!("{}: the kernel made a full commit instead", case.what);
        }
        fast_commits += usize::from(fast);
        assert!(
            replayed.is_some_and(|n| !n.ends_with(" 0 blocks")),
            "{}: the journal was not dirty: {notes:?}",
            case.what
        );
        eprintln!("{}: {notes:?}", case.what);
        if case.mkfs.contains("^metadata_csum") || case.mkfs.contains("ext3") {
            // Nothing but the journal's own rules stands between changed bytes and the replay.
            let bytes = std::fs::read(&copy).unwrap();
            for number in 0..mutants() / 30 {
                read_everything(&format!("{}, mutant {number}", case.what), mutant(&bytes, number));
            }
        }
        let (mut seen, listing) = ours(&copy);
        let recovered = Mounted::new(&copy, "");
        let mut kernels = kernel::tree_of(recovered.path());
        if fast {
            // What a fast commit says of a directory are its names: the kernel takes the time of the replay.
            for seen in seen.iter_mut().chain(&mut kernels).filter(|s| s.node.is_dir()) {
                (seen.node.mtime, seen.node.ctime, seen.node.nlink) = Default::default();
            }
        }
        let lines = kernel::differences(&seen, &kernels);
        if !lines.is_empty() || !listing.problems.is_empty() {
            let lines = lines.into_iter().take(6).collect::<Vec<_>>().join("\n");
            failed.push(format!("{}: {:?}\n{lines}", case.what, listing.problems));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(
        only.is_some() || fast_commits >= 4,
        "only {fast_commits} fast commits were made"
    );
}

/// An image of `size` made by mkfs.ext4 from the directory `tree`, without a mount.
fn populated(temp: &Path, size: &str, options: &str, tree: &Path) -> PathBuf {
    let image = temp.join("populated");
    let _ = std::fs::remove_file(&image);
    run_ok("truncate", &["-s", size], &image);
    let mut words: Vec<&str> = options.split(' ').collect();
    words.extend(["-q", "-F", "-d", tree.to_str().unwrap()]);
    assert!(run_ok("mkfs.ext4", &words, &image), "{options}");
    image
}

/// Runs `debugfs -w -R request` on `image`.
fn debugfs_write(image: &Path, request: &str) {
    support::run(
        std::process::Command::new("debugfs")
            .args(["-w", "-R", request])
            .arg(image),
    );
}

#[test]
fn block_sizes_that_kernels_cannot_mount_equal_their_source() {
    let test = "ext4 block sizes";
    if !tools(test, &["mkfs.ext4", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    bash(SEED_TREE, &[&tree]);
    bash(
        "cd \"$1/many\"; for i in $(seq 800); do : > \"$(printf 'z%.0s' $(seq 200))-$i\"; done",
        &[&tree],
    );
    // mkfs.ext4 keeps whole seconds, and what it makes has its own inodes.
    let comparable = |mut all: Vec<Seen>| {
        all.retain(|s| s.path.as_bytes() != b"/lost+found");
        for seen in &mut all {
            seen.node.mtime.nsec = 0;
            seen.node.ctime = Default::default();
            seen.node.id = Default::default();
            if seen.path.is_root() {
                (seen.node.nlink, seen.node.mtime) = Default::default();
            }
        }
        all
    };
    let expected = comparable(kernel::tree_of(&tree));
    for options in [
        "-t ext4 -b 8192",
        "-t ext4 -b 16384 -O inline_data",
        "-t ext4 -b 32768 -O ^metadata_csum,^64bit",
        "-t ext4 -b 65536",
        "-t ext4 -b 65536 -O ^metadata_csum,^extents,^64bit",
        "-t ext2 -b 65536 -I 128",
        "-t ext4 -b 1024 -O casefold -E encoding=utf8",
        "-t ext4 -b 4096 -O quota,project",
        "-t ext4 -b 4096 -O encrypt,verity",
        "-t ext4 -b 4096 -O stable_inodes,large_dir,ea_inode,mmp",
    ] {
        let image = populated(temp.path(), "160M", options, &tree);
        let (seen, listing) = ours(&image);
        assert_eq!(listing.problems, [], "{options}");
        kernel::assert_equal(options, &comparable(seen), &expected);
    }
}

#[test]
fn a_flipped_byte_of_metadata_is_never_believed() {
    let test = "ext4 checksums";
    if !tools(test, &["mkfs.ext4", "e2image", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    // Targets of long symlinks have no checksum.
    bash(&format!("{SEED_TREE}\nrm a/long"), &[&tree]);
    for options in [
        "-t ext4 -b 1024 -O ^has_journal",
        "-t ext4 -b 1024 -O ^has_journal,inline_data -I 512",
    ] {
        let image = populated(temp.path(), "2M", options, &tree);
        let metadata = temp.path().join("metadata");
        let _ = std::fs::remove_file(&metadata);
        support::run(
            std::process::Command::new("e2image")
                .arg("-r")
                .arg(&image)
                .arg(&metadata),
        );
        let (seed, metadata) = (std::fs::read(&image).unwrap(), std::fs::read(&metadata).unwrap());
        let (expected, _) = ours(&image);
        let blocks: Vec<usize> = (1..seed.len() / 1024)
            .filter(|b| metadata[b * 1024..(b + 1) * 1024].iter().any(|x| *x != 0))
            .collect();
        let mut random = Random(7);
        let (mut told, mut harmless) = (0, 0);
        for number in 0..mutants() * 8 {
            let at = blocks[random.below(blocks.len())] * 1024 + random.below(1024);
            let mut bytes = seed.clone();
            bytes[at] ^= 1 << random.below(8);
            let result = vm2k::fs::open(Arc::new(bytes)).and_then(|fs| Ok((fs.list()?, fs)));
            let Ok((listing, fs)) = result else {
                told += 1;
                continue;
            };
            let seen = kernel::ours(&listing.tree, &|id| fs.open(id.ino));
            let lines: Vec<String> = kernel::differences(&seen, &expected)
                .into_iter()
                .filter(|line| !line.contains("error: "))
                .collect();
            if lines.is_empty() && listing.problems.is_empty() {
                harmless += 1;
            } else {
                told += 1;
                assert!(
                    !listing.problems.is_empty(),
                    "{options}, flip {number} of byte {at}: {}",
                    lines.join("\n")
                );
            }
        }
        eprintln!("{test}: {options}: {told} told, {harmless} without effect");
        assert!(told > harmless / 4, "the flips met no metadata");
    }
}

#[test]
fn encrypted_files_and_directories_are_named() {
    let test = "ext4 encrypt";
    if !tools(test, &["mkfs.ext4", "debugfs", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    bash(SEED_TREE, &[&tree]);
    let image = populated(temp.path(), "4M", "-t ext4 -O encrypt", &tree);
    for path in ["a", "data", "n100"] {
        debugfs_write(&image, &format!("set_inode_field /{path} flags 0x80800"));
    }
    let (seen, listing) = ours(&image);
    let problems: Vec<String> = listing
        .problems
        .iter()
        .map(|p| format!("{}: {}", p.path, p.what))
        .collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    for path in ["/a", "/data", "/n100"] {
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with(path) && p.contains("encrypted")),
            "{problems:?}"
        );
    }
    let data = seen.iter().find(|s| s.path.as_bytes() == b"/data").unwrap();
    assert!(
        data.content.starts_with("error") && data.content.contains("encrypted"),
        "{}",
        data.content
    );
    assert!(!seen.iter().any(|s| s.path.as_bytes().starts_with(b"/a/")));
}

#[test]
fn unknown_features_are_refused_by_name() {
    let test = "ext4 features";
    if !tools(test, &["mkfs.ext4", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let image = populated(temp.path(), "4M", "-t ext4 -O ^metadata_csum", &tree);
    let seed = std::fs::read(&image).unwrap();
    let with = |at: usize, bits: u8| {
        let mut bytes = seed.clone();
        bytes[1024 + at] |= bits;
        vm2k::fs::open(Arc::new(bytes))
    };
    for (at, bits, name) in [
        (0x60, 0x01, "compression"),
        (0x61, 0x10, "dirdata"),
        (0x63, 0x40, "0x40000000"),
    ] {
        let refused = with(at, bits).err().expect("an unknown incompatible feature");
        assert!(matches!(refused, vm2k::error::Error::Unsupported { .. }));
        assert!(refused.to_string().contains(name), "{refused}");
    }
    let notes = with(0x67, 0x40).unwrap().info().notes;
    assert!(notes.iter().any(|n| n.contains("0x40000000")), "{notes:?}");
}

#[test]
fn a_volume_that_is_cut_short_is_told() {
    let test = "ext4 cut";
    if !tools(test, &["mkfs.ext4", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    bash(SEED_TREE, &[&tree]);
    let image = populated(temp.path(), "2M", "-t ext4 -b 1024 -O ^has_journal", &tree);
    let (whole, _) = ours(&image);
    let bytes = std::fs::read(&image).unwrap();
    for len in (0..bytes.len()).step_by(9973) {
        let Ok(fs) = vm2k::fs::open(Arc::new(bytes[..len].to_vec())) else {
            continue;
        };
        let Ok(listing) = fs.list() else { continue };
        assert!(
            listing
                .problems
                .iter()
                .any(|p| p.path.is_root() && p.what.contains("its volume only"))
        );
        let told = |path: &vm2k::path::GuestPath| {
            listing
                .problems
                .iter()
                .any(|p| p.path == *path || path.is_in(&p.path) && !p.path.is_root())
        };
        let seen = kernel::ours(&listing.tree, &|id| fs.open(id.ino));
        for expected in &whole {
            match seen.iter().find(|s| s.path == expected.path) {
                Some(found) => assert!(
                    found == expected || found.content.starts_with("error") || told(&found.path),
                    "{len} bytes: {} differs",
                    found.path
                ),
                None => assert!(
                    told(&expected.path) || listing.problems.iter().any(|p| p.what.contains("directory")),
                    "{len} bytes: {} is silently missing",
                    expected.path
                ),
            }
        }
    }
}

#[test]
fn large_files_and_many_threads() {
    let test = "ext4 large";
    if !support::root(test) || !tools(test, &["mkfs.ext4", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let image = temp.path().join("image");
    for options in ["-t ext4 -b 4096", "-t ext3 -b 1024"] {
        let _ = std::fs::remove_file(&image);
        run_ok("truncate", &["-s", "256M"], &image);
        let mut words: Vec<&str> = options.split(' ').collect();
        words.extend(["-q", "-F"]);
        assert!(run_ok("mkfs.ext4", &words, &image));
        assert_large_files(options, &image, 200_000);
    }
}

#[test]
fn directories_that_share_their_blocks_end() {
    let test = "ext4 shared directories";
    if !tools(test, &["mkfs.ext4", "debugfs", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    bash(SEED_TREE, &[&tree]);
    bash(
        "cd \"$1\"; for i in $(seq 300); do mkdir d$i; done; cd many
for i in $(seq 500); do ln a-longer-name-of-entry-1 another-name-of-the-first-entry-$i; done",
        &[&tree],
    );
    let options = "-t ext4 -b 1024 -N 1000 -O ^metadata_csum,^has_journal";
    let image = populated(temp.path(), "2M", options, &tree);
    // imap: `located at block 43, offset 0x0100`.
    let place = |path: &str| {
        let text = String::from_utf8(debugfs(&image, &format!("imap {path}")).unwrap()).unwrap();
        let words: Vec<&str> = text.split([' ', ',', '\n']).filter(|w| !w.is_empty()).collect();
        let after = |word: &str| words[words.iter().rposition(|w| *w == word).unwrap() + 1].to_owned();
        let offset = after("offset");
        after("block").parse::<usize>().unwrap() * 1024
            + usize::from_str_radix(offset.trim_start_matches("0x"), 16).unwrap()
    };
    let mut bytes = std::fs::read(&image).unwrap();
    let many = place("/many");
    for i in 1..=300 {
        bytes.copy_within(many..many + 128, place(&format!("/d{i}")));
    }
    let fs = vm2k::fs::open(Arc::new(bytes)).unwrap();
    let listing = fs.list().unwrap();
    let told = listing
        .problems
        .iter()
        .filter(|p| p.what.contains("more blocks than the filesystem"))
        .count();
    assert!(told > 10, "{told} of {} problems", listing.problems.len());
}
