//! XFS against the kernel, xfsprogs and damage.

use crate::filesystem::*;
use crate::kernel::{self, Mounted, Seen};
use crate::support::{self, bash, tools};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm2k::tree::Kind;

#[test]
fn valid_filesystems_equal_the_oracle_and_the_mount() {
    assert_oracle("xfs oracle", &["fs/xfs"], 1);
}

/// An image of one's own, as in `VM2K_XFS_IMAGE=root.img cargo test xfs`.
#[test]
fn the_image_that_the_environment_names_equals_its_mount() {
    if let Some(image) = std::env::var_os("VM2K_XFS_IMAGE")
        && support::root("xfs image")
    {
        let start = std::time::Instant::now();
        let paths = open(Path::new(&image)).unwrap().list().unwrap().tree.len();
        eprintln!("{paths} paths listed in {:?}", start.elapsed());
        assert_like_the_mount("VM2K_XFS_IMAGE", Path::new(&image));
    }
}

/// Options of mkfs.xfs that change what is on disk, one line each.
const MATRIX: &[&str] = &[
    "-b size=4096",
    "-b size=1024",
    "-b size=2048 -i size=1024",
    "-b size=4096 -i size=2048",
    "-b size=8192",
    "-b size=16384 -i size=2048",
    "-b size=65536",
    "-b size=1024 -n size=4096",
    "-b size=1024 -n size=65536",
    "-b size=4096 -n size=16384",
    "-m bigtime=0",
    "-m bigtime=1,inobtcount=1",
    "-m finobt=0,reflink=0,rmapbt=0,inobtcount=0",
    "-m rmapbt=1,reflink=1",
    "-m reflink=0",
    "-i nrext64=1",
    "-i nrext64=0",
    "-i nrext64=1 -b size=1024",
    "-i sparse=0",
    "-i sparse=1,maxpct=90 -b size=1024",
    "-d agcount=1",
    "-d agcount=17",
    "-d su=64k,sw=4",
    "-s size=4096",
    "-s size=2048 -b size=2048",
    "-l su=256k,size=20m",
    "-l version=2,sunit=8",
    "-L name -m uuid=c1b9d5a2-f162-11cf-9ece-0020afc76f16",
];

/// Fills the mounted filesystem `$1` with one of everything; `$2` is the number of entries of the large directory.
const FILL: &str = r#"
cd "$1"
perl - "$2" <<'PERL'
use strict; use Fcntl; use Socket;
my ($entries) = @ARGV;
my $state = 1;
sub noise { my $n = shift; my $s = ''; while (length $s < $n) { $state = ($state * 6364136223846793005 + 1) & 0x7fffffff; $s .= pack('L', $state) } substr($s, 0, $n) }
sub put { my ($name, $bytes) = @_; open(my $f, '>', $name) or die "$name: $!"; print $f $bytes; close $f }
mkdir $_ or die $! for qw(d d/e d/e/f empty perms);
put('d/file', "content\n"); link('d/file', 'd/e/hard'); link('d/file', 'hard'); put('zero', '');
put("n$_", 'x' x $_) for 59, 60, 61, 150, 700;
put("size-$_", noise($_)) for 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 65535, 65536, 65537, 300000;
symlink('d/file', 'link');
symlink('t' x $_, "link$_") for 59, 60, 155, 156, 157, 335, 336, 337, 400, 968, 1000, 1023;
system('mknod block b 8 1; mknod char c 1 3; mknod far c 300 70000; mkfifo fifo');
socket(my $s, AF_UNIX, SOCK_STREAM, 0); bind($s, pack_sockaddr_un('socket')) or die;
chown 70000, 80000, 'd/file';
for my $m (0, 0777, 01777, 02755, 04755, 06711, 07777) { my $p = sprintf('perms/%04o', $m); put($p, ''); chmod $m, $p }
# Holes at the beginning, in the middle and at the end; many extents, so that the tree has a depth.
sub at { my ($f, $at, $bytes) = @_; sysseek($f, $at, 0); syswrite($f, $bytes) }
sysopen(my $f, 'sparse', O_RDWR | O_CREAT); at($f, 300_000, noise(10_000)); at($f, 5_000_000, noise(1000)); truncate($f, 8_000_000);
sysopen($f, 'all-hole', O_RDWR | O_CREAT); truncate($f, 4_000_000);
sysopen($f, 'pieces', O_RDWR | O_CREAT); at($f, $_ * 32768, "piece $_") for 0 .. 699;
put($_, '') for "new\nline", "latin-\344", "\001\033[31m", ' ', '-', 'n' x 255;
my $deep = 'd'; for my $i (1 .. 40) { $deep .= "/level-$i"; mkdir $deep } put("$deep/file", 'bottom');
# Directories of every form: in the inode, one block, leaf, node, and with more extents than the inode holds.
for my $n (1, 5, 20, 60, 200, 1000, $entries) {
    mkdir "many-$n"; put(sprintf('many-%d/an-entry-with-a-longer-name-%06d', $n, $_), $_ % 100 ? '' : $_) for 1 .. $n;
    unlink(sprintf('many-%d/an-entry-with-a-longer-name-%06d', $n, $_)) for grep { $_ % 7 == 0 } 1 .. $n;
}
mkdir 'emptied'; put("emptied/file-$_", '') for 1 .. 2000; unlink("emptied/file-$_") for grep { $_ % 100 } 1 .. 2000;
PERL
fallocate -l 300k unwritten; printf data | dd of=unwritten bs=1 seek=100000 conv=notrunc status=none
echo short > unwritten-behind; fallocate -n -l 200k unwritten-behind
fallocate -p -o 8192 -l 16384 size-300000
cp --reflink=auto size-65537 reflink; cp --reflink=auto pieces reflink-pieces
printf changed | dd of=reflink bs=1 seek=30000 conv=notrunc status=none
chown -h 1:2 link
touch -d '1901-12-14 00:00:00' t1901; touch -d '1969-12-31 23:59:59.5' t1969
touch -d '2037-01-01 00:00:00.123456789' t2037; touch -d '2039-01-01 00:00:00.987654321' t2039; touch -d '2300-01-01' t2300
"#;

/// Attributes in every form; `$1` as in [`FILL`].
const ATTRIBUTES: &str = r#"
cd "$1"
v() { printf "%${1}s" "" | tr ' ' v; }
setfattr -n user.short -v value d/file
setfattr -n user.empty d/file
setfattr -n trusted.x -v 0x0001ff d/file
setfattr -n security.selinux -v 'system_u:object_r:etc_t:s0' zero
setfattr -n trusted.overlay.opaque -v y empty
setfattr -h -n trusted.link -v 1 link
setfattr -h -n trusted.long-link -v "$(v 500)" link1000
setfattr -n trusted.dev -v 1 block
setfattr -n user.long -v "$(v 500)" n61
setfattr -n user.remote -v "$(v 3000)" n150
setfattr -n user.largest -v "$(v 60000)" n700
setfattr -n user.other -v "$(v 300)" n700
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do setfattr -n user.a$i -v "value $i" size-4096; done
perl -e 'my $f = "size-1024"; for (1 .. 300) { my ($n, $v) = ("user.attribute-number-$_", "value $_ " x ($_ % 40));
         syscall(188, $f, $n, $v, length($v), 0) == 0 or die $! }
         for (1 .. 300) { my $n = "user.attribute-number-$_"; $_ % 3 or syscall(197, $f, $n) == 0 or die $! }'
setfattr -n user.gone -v x n60; setfattr -x user.gone n60
setfacl -m u:1000:rw,g:100000:r,m::rwx n59
setfacl -m u:0:---,u:4000000000:x size-1025
setfacl -d -m u:7:rwx,g:8:rx d
mkdir d/inherits; touch d/inherits/file
setcap cap_net_raw+ep size-1023
"#;

const MKFS: &[&str] = &["mkfs.xfs", "setfattr", "setfacl", "setcap", "perl"];

/// Makes a filesystem of `size` with `options`, smaller than mkfs.xfs likes; `false` if it does not know them.
fn mkfs(image: &Path, size: &str, options: &str) -> bool {
    let _ = std::fs::remove_file(image);
    run_ok("truncate", &["-s", size], image);
    let output = std::process::Command::new("mkfs.xfs")
        .args(["-q", "-f"])
        .args(options.split(' ').filter(|word| !word.is_empty()))
        .arg(image)
        .envs([("TEST_DIR", "1"), ("TEST_DEV", "1"), ("QA_CHECK_FS", "1")])
        .output()
        .unwrap();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        eprintln!("mkfs.xfs {options}: {}", said.lines().next().unwrap_or_default());
    }
    output.status.success()
}

/// Makes and fills a filesystem; `false` if mkfs or the kernel does not know the options.
fn make(image: &Path, options: &str, entries: u32) -> bool {
    if !mkfs(image, "400M", options) {
        return false;
    }
    let Ok(mount) = Mounted::try_new(image, "") else {
        return false;
    };
    bash(FILL, &[mount.path(), Path::new(&entries.to_string())]);
    bash(ATTRIBUTES, &[mount.path()]);
    mount.unmount();
    true
}

#[test]
fn what_the_kernel_writes_under_every_option_is_read_right() {
    let test = "xfs matrix";
    if !support::root(test) || !tools(test, MKFS) {
        return;
    }
    let only = std::env::var("VM2K_XFS_OPTIONS").ok();
    let temp = support::scratch(1 << 30);
    let mut unknown = Vec::new();
    for options in MATRIX {
        if only.as_deref().is_some_and(|only| only != *options) {
            continue;
        }
        let image = temp.path().join("image");
        let entries = if *options == "-b size=1024" { 20_000 } else { 2_000 };
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

/// A filesystem that is cut off while it is mounted, so that its log has to be replayed.
struct Dirty {
    what: &'static str,
    mkfs: &'static str,
    mount: &'static str,
    /// Done and written out before.
    before: &'static str,
    /// Done last, with an fsync at its end; `$1` is the mounted directory.
    work: &'static str,
}

/// Attributes that grow from the inode into a leaf, a node and blocks of their own, and shrink again.
const XATTRS: &str = r#"
v() { printf "%${1}s" "" | tr ' ' v; }
for f in a b c d e; do echo $f > $f; setfattr -n user.one -v "$f" $f; done; sync -f .
for i in 1 2 3 4 5 6 7 8 9; do setfattr -n user.n$i -v "$(v 40)" a; setfattr -n user.n$i -v "$(v 900)" b; done
setfattr -n user.remote -v "$(v 5000)" c; setfattr -n user.remote -v "$(v 50000)" d; setfattr -x user.one e
for i in 1 2 3 4 5 6 7 8; do setfattr -x user.n$i a; done; setfacl -m u:7:rw b
dd if=/dev/zero of=last bs=1 count=1 conv=fsync status=none
setfattr -x user.remote d; setfattr -n user.remote -v "$(v 3000)" c
dd if=/dev/zero of=last bs=2 count=1 conv=fsync status=none
"#;
/// Directories that grow from the inode to a block, to leaves and nodes, and shrink again.
const DIRECTORIES: &str = r#"
mkdir small grow shrink; perl -e 'for (1 .. 3000) { open(F, ">", "shrink/a-name-that-is-somewhat-longer-$_") or die }'; sync -f .
perl -e 'for (1 .. 3) { open(F, ">", "small/$_") } for (1 .. 2500) { open(F, ">", "grow/a-name-that-is-somewhat-longer-$_") or die }
  for (1 .. 2990) { unlink("shrink/a-name-that-is-somewhat-longer-$_") } for (1 .. 200) { rename("grow/a-name-that-is-somewhat-longer-$_", "renamed-$_") }'
dd if=/dev/zero of=last bs=1 count=1 conv=fsync status=none
"#;
/// Extents: many of them, shared ones, taken out, moved, allocated ahead.
const EXTENTS: &str = r#"
head -c 400000 /dev/urandom > data; cp data victim; sync -f .
perl -e 'use Fcntl; sysopen(F, "pieces", O_RDWR | O_CREAT); for (0 .. 599) { sysseek(F, $_ * 131072, 0); syswrite(F, "piece $_") }'
sync -f .; cp --reflink=auto pieces copy; cp --reflink=auto data shared; fallocate -p -o 131072 -l 4000000 copy
fallocate -l 1m room; fallocate -c -o 65536 -l 65536 victim; fallocate -i -o 65536 -l 131072 data; fallocate -z -o 4096 -l 8192 shared
printf changed | dd of=shared bs=1 seek=100000 conv=notrunc status=none; truncate -s 1000000 pieces
dd if=/dev/zero of=last bs=1 count=1 conv=fsync status=none
"#;
/// Chunks of inodes that are made and freed, and blocks that are metadata first and data later.
const CHUNKS: &str = r#"
perl -e 'for (1 .. 1500) { open(F, ">", "file-$_"); print F $_ }'; mkdir dirs; for i in $(seq 60); do mkdir dirs/$i; done; sync -f .
rm file-*; perl -e 'for (1 .. 300) { symlink("t" x 900, "link-$_") }'
dd if=/dev/zero of=last bs=1 count=1 conv=fsync status=none
rm link-*; rm -r dirs; for i in 1 2 3 4 5 6 7 8 9; do head -c 300000 /dev/urandom > data-$i; done; sync -f data-9
perl -e 'for (1 .. 500) { open(F, ">", "again-$_"); print F $_ }'
dd if=/dev/zero of=last bs=2 count=1 conv=fsync status=none
"#;
/// Files that are open and have no name any more.
const UNLINKED: &str = r#"
perl -MIO::Handle -e 'my @f; for (1 .. 40) { open($f[$_], ">", "open-$_"); $f[$_]->print("x" x 5000) } unlink("open-$_") for 1 .. 40;
  open(F, ">", "last"); print F 1; F->flush; F->sync; my $how = pack("L", 2); open(D, "<", "."); ioctl(D, 0x8004587d, $how)'
"#;

const fn dirty(what: &'static str, mkfs: &'static str, before: &'static str, work: &'static str) -> Dirty {
    Dirty {
        what,
        mkfs,
        mount: "",
        before,
        work,
    }
}

const DIRTY: &[Dirty] = &[
    dirty("changes", "", BASE, CHANGES),
    dirty("changes, 1 KiB blocks", "-b size=1024", BASE, CHANGES),
    dirty(
        "changes, everything",
        "-m rmapbt=1,reflink=1 -i nrext64=1 -b size=2048 -n size=16384",
        BASE,
        CHANGES,
    ),
    dirty(
        "changes, old times",
        "-m bigtime=0,finobt=0,reflink=0",
        BASE,
        CHANGES,
    ),
    dirty("changes, log stripes", "-l su=256k,size=20m", BASE, CHANGES),
    dirty(
        "changes, 64 KiB blocks",
        "-b size=65536 -i size=2048",
        BASE,
        CHANGES,
    ),
    dirty("rounds", "-l size=10m -s size=4096", BASE, ROUNDS),
    dirty("attributes", "", "", XATTRS),
    dirty("attributes, 1 KiB blocks", "-b size=1024", "", XATTRS),
    dirty("directories", "", "", DIRECTORIES),
    dirty(
        "directories, 1 KiB blocks",
        "-b size=1024 -i sparse=0",
        "",
        DIRECTORIES,
    ),
    dirty("extents", "", "", EXTENTS),
    dirty(
        "extents, rmapbt",
        "-m rmapbt=1 -b size=1024 -i nrext64=1",
        "",
        EXTENTS,
    ),
    dirty("chunks", "", "", CHUNKS),
    dirty("chunks, sparse", "-i sparse=1,size=2048", "", CHUNKS),
    dirty("unlinked", "", BASE, UNLINKED),
    Dirty {
        mount: "logbsize=256k",
        ..dirty("long records", "-l size=20m", BASE, DIRECTORIES)
    },
    Dirty {
        mount: "logbsize=32k,wsync",
        ..dirty("synchronous", "-l size=10m", BASE, CHANGES)
    },
];

/// Compares our reading of `copy`, which is dirty, with what the kernel recovers of it; the words of what differs. Also
/// how many transactions were replayed.
fn recovered(copy: &Path) -> (Option<String>, u64) {
    let notes = open(copy).unwrap().info().notes;
    let replayed = notes
        .iter()
        .find_map(|n| n.strip_prefix("log replayed in memory: "));
    let count = replayed
        .and_then(|n| n.split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let (seen, listing) = ours(copy);
    // The filesystem that it is a copy of may be mounted.
    let mount = match Mounted::try_new(copy, "nouuid") {
        Ok(mount) => mount,
        // What the kernel refuses must not look whole here.
        Err(e) if listing.problems.is_empty() => {
            return (Some(format!("the kernel does not mount it: {e}")), count);
        }
        Err(_) => return (None, count),
    };
    let lines = kernel::differences(&seen, &kernel::tree_of(mount.path()));
    if lines.is_empty() && listing.problems.is_empty() {
        return (None, count);
    }
    let lines = lines.into_iter().take(6).collect::<Vec<_>>().join("\n");
    (
        Some(format!("{:?} {:?}\n{lines}", notes, listing.problems)),
        count,
    )
}

#[test]
fn a_dirty_log_reads_like_the_recovered_filesystem() {
    let test = "xfs log";
    if !support::root(test) || !tools(test, MKFS) {
        return;
    }
    let only = std::env::var("VM2K_XFS_DIRTY").ok();
    let temp = support::scratch(1 << 30);
    let mut failed = Vec::new();
    for case in DIRTY {
        if only.as_deref().is_some_and(|only| only != case.what) {
            continue;
        }
        let (image, copy) = (temp.path().join("image"), temp.path().join("copy"));
        assert!(mkfs(&image, "320M", case.mkfs), "{}", case.what);
        let cut = case.what != "unlinked";
        cut_off((&image, &copy), case.mount, case.before, case.work, cut);
        let (wrong, transactions) = recovered(&copy);
        assert!(transactions > 0, "{}: the log was not dirty", case.what);
        eprintln!("{}: {transactions} transactions", case.what);
        failed.extend(wrong.map(|wrong| format!("{}: {wrong}", case.what)));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

/// Random operations of every kind below `$1`, from the seed `$2` on, `$3` of them.
const STRESS: &str = r#"
exec perl -e '
use strict; use Fcntl; use IO::Handle;
my ($dir, $seed, $count) = @ARGV; chdir($dir) or die; srand($seed);
my @dirs = ("."); my @files; my $n = 0;
sub pick { $_[rand @_] }
for (1 .. $count) {
    my $r = int(rand(100)); my $new = pick(@dirs) . "/" . ("n" x rand(40)) . $n++; my $old = @files ? pick(@files) : undef;
    if ($r < 25 || !defined $old) { open(my $f, ">", $new) or next; print $f "x" x rand(20000); push @files, $new }
    elsif ($r < 30) { mkdir($new) and push @dirs, $new }
    elsif ($r < 40) { unlink($old); @files = grep { $_ ne $old } @files }
    elsif ($r < 50) { rename($old, $new); @files = ((grep { $_ ne $old } @files), $new) }
    elsif ($r < 55) { link($old, $new) and push @files, $new }
    elsif ($r < 60) { symlink("s" x (1 + rand(800)), $new) and push @files, $new }
    elsif ($r < 75) { my ($k, $v) = ("user." . int(rand(30)), "v" x (rand() < 0.1 ? rand(30000) : rand(200))); my $o = $old; syscall(188, $o, $k, $v, length($v), 0) }
    elsif ($r < 78) { my ($k, $o) = ("user." . int(rand(30)), $old); syscall(197, $o, $k) }
    elsif ($r < 84) { next if -l $old; sysopen(my $f, $old, O_RDWR) or next; for (1 .. rand(30)) { sysseek($f, 4096 * int(rand(2000)), 0); syswrite($f, "y" x rand(5000)) } }
    elsif ($r < 88) { next if -l $old; truncate($old, rand(200000)) }
    elsif ($r < 91) { next if -l $old; sysopen(my $f, $old, O_RDWR) or next; syscall(285, fileno($f), pick(0, 1, 3, 16), 4096 * int(rand(100)), 4096 * (1 + int(rand(50)))) }
    elsif ($r < 95) { next if -l $old; sysopen(my $f, $old, O_RDONLY) or next; sysopen(my $g, $new, O_RDWR | O_CREAT) or next; ioctl($g, 0x40049409, fileno($f)); push @files, $new }
    elsif ($r < 97) { chmod(rand(07777), $old); chown(rand(70000), rand(70000), $old); utime(rand(4e9), rand(4e9), $old) }
    else { next if -l $old; open(my $f, ">>", $old) or next; $f->sync }
    last if $! == 5;
}' "$@"
"#;

#[test]
fn a_cut_in_the_midst_of_work_reads_like_the_recovered_filesystem() {
    let test = "xfs stress";
    if !support::root(test) || !tools(test, MKFS) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let mut failed = Vec::new();
    let options = [
        "-l size=10m",
        "-m rmapbt=1 -b size=1024 -l size=10m",
        "-i nrext64=1 -m reflink=0",
        "-b size=16384 -l size=20m,su=64k",
    ];
    let (mut torn, mut replayed) = (0, 0);
    for number in 0..mutants() / 40 {
        let (image, copy) = (temp.path().join("image"), temp.path().join("copy"));
        let mkfs_options = options[number as usize % options.len()];
        assert!(mkfs(&image, "320M", mkfs_options));
        let mount = Mounted::new(&image, "");
        let mut work = std::process::Command::new("bash")
            .args(["-c", STRESS, "bash"])
            .arg(mount.path())
            .args([number.to_string(), "100000".to_owned()])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut random = Random(number);
        // The first goes on until its small log has gone round.
        let time = if number == 0 {
            2500
        } else {
            150 + random.next() % 700
        };
        std::thread::sleep(std::time::Duration::from_millis(time));
        // A copy that is taken while it lives is of many moments: the kernel itself may find it damaged. It must be read
        // or refused in bounded time.
        bash("cp --sparse=always \"$1\" \"$2\"", &[&image, &copy]);
        torn += usize::from(
            survey("a copy of a living one", &copy).is_none_or(|(_, found)| !found.problems.is_empty()),
        );
        bash(POWER_CUT, &[mount.path()]);
        let _ = work.kill();
        let _ = work.wait();
        mount.unmount();
        bash("cp --sparse=always \"$1\" \"$2\"", &[&image, &copy]);
        let (wrong, transactions) = recovered(&copy);
        replayed += transactions;
        failed.extend(wrong.map(|wrong| format!("cut {number}, {mkfs_options}: {wrong}")));
    }
    eprintln!(
        "{test}: {replayed} transactions replayed; {torn} copies of living ones are not taken as whole"
    );
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(replayed > 0, "no log was dirty");
}

/// Options of version 4, which the kernel at hand may not mount: mkfs.xfs fills these.
const VERSION_4: &[&str] = &[
    "-b size=512",
    "-b size=512 -n size=16384",
    "-b size=1024 -i size=512",
    "-b size=4096",
    "-b size=4096 -i size=2048",
    "-b size=16384 -l size=10m",
    "-b size=1024 -n version=ci",
    "-b size=1024 -n ftype=0",
    "-b size=2048 -i projid32bit=0",
    "-b size=4096 -l version=1 -d agcount=3",
    "-b size=4096 -l lazy-count=0 -n size=16384",
];

/// A description of files for mkfs.xfs: what a filesystem holds without being mounted.
struct Prototype {
    text: String,
    expected: Vec<(String, u16, u32, u32, Kind, Option<PathBuf>)>,
}

impl Prototype {
    /// One of everything; contents are put below `dir`. No link is longer than `longest`: mkfs.xfs 6.1 makes wrong ones of
    /// those that do not fit into an inode of version 5.
    fn new(dir: &Path, longest: usize) -> Self {
        let mut random = Random(5);
        let mut proto = Self {
            text: "/nothing\n0 0\nd--755 1 2\n".to_owned(),
            expected: vec![("/".to_owned(), 0o755, 1, 2, Kind::Directory, None)],
        };
        for (i, size) in [0, 1, 511, 512, 513, 4096, 4097, 70000, 300000]
            .iter()
            .enumerate()
        {
            let bytes: Vec<u8> = (0..*size).map(|_| random.next() as u8).collect();
            let path = dir.join(format!("content-{i}"));
            std::fs::write(&path, bytes).unwrap();
            proto.file(&format!("/size-{size}"), 0o4640, &path);
        }
        for len in [1, 100, 155, 156, 157, 336, 500, 1023]
            .into_iter()
            .filter(|len| *len <= longest)
        {
            let target = "t".repeat(len);
            proto.text += &format!("link-{len} l--777 3 4 {target}\n");
            proto.add(
                &format!("/link-{len}"),
                0o777,
                Kind::Symlink {
                    target: target.into(),
                },
            );
        }
        proto.text += "char c--600 3 4 1 3\nblock b--660 3 4 8 1\nfifo p--622 3 4\n";
        proto.add("/char", 0o600, Kind::Char { major: 1, minor: 3 });
        proto.add("/block", 0o660, Kind::Block { major: 8, minor: 1 });
        proto.add("/fifo", 0o622, Kind::Fifo);
        let small = dir.join("content-1");
        for count in [2, 10, 100, 600] {
            proto.text += &format!("many-{count} d--755 3 4\n");
            proto.add(&format!("/many-{count}"), 0o755, Kind::Directory);
            for i in 0..count {
                let name = format!("a-longer-name-of-an-entry-{i}");
                if i % 50 == 1 {
                    proto.file(&format!("/many-{count}/{name}"), 0o4640, &small);
                } else {
                    proto.text += &format!("{name} p--644 3 4\n");
                    proto.add(&format!("/many-{count}/{name}"), 0o644, Kind::Fifo);
                }
            }
            proto.text += "$\n";
        }
        proto.text += "$\n";
        proto
    }

    fn add(&mut self, path: &str, mode: u16, kind: Kind) {
        self.expected.push((path.to_owned(), mode, 3, 4, kind, None));
    }

    fn file(&mut self, path: &str, mode: u16, content: &Path) {
        let name = path.rsplit('/').next().unwrap();
        self.text += &format!("{name} -u-640 3 4 {}\n", content.display());
        let size = std::fs::metadata(content).unwrap().len();
        let kind = Kind::File { size };
        self.expected
            .push((path.to_owned(), mode, 3, 4, kind, Some(content.to_owned())));
    }

    /// Makes a filesystem of it, with attributes on `/size-513`; `false` if mkfs does not know the options.
    fn make(&self, image: &Path, size: &str, options: &str) -> bool {
        let file = image.with_extension("proto");
        std::fs::write(&file, &self.text).unwrap();
        if !mkfs(image, size, &format!("{options} -p {}", file.display())) {
            return false;
        }
        let mut xfs_db = std::process::Command::new("xfs_db");
        xfs_db.args(["-x", "-c", "path /size-513"]);
        for (flag, name, len) in ATTRIBUTES_V4 {
            xfs_db.args(["-c", &format!("attr_set {flag} -v {len} {name}")]);
        }
        support::run(xfs_db.arg(image));
        true
    }

    fn check(&self, what: &str, image: &Path) {
        let (seen, listing) = ours(image);
        assert_eq!(listing.problems, [], "{what}");
        assert_eq!(seen.len(), self.expected.len(), "{what}");
        for (path, mode, uid, gid, kind, content) in &self.expected {
            let found = seen
                .iter()
                .find(|s| s.path.to_string() == *path)
                .unwrap_or_else(|| panic!("{what}: no {path}"));
            let node = &found.node;
            assert_eq!(
                (node.mode, node.uid, node.gid, &node.kind),
                (*mode, *uid, *gid, kind),
                "{what} {path}"
            );
            if let Some(content) = content {
                let expected = kernel::sha256(&mut std::fs::File::open(content).unwrap()).unwrap();
                assert_eq!(found.content, expected, "{what} {path}");
            }
            if path == "/size-513" {
                let mut expected: vm2k::tree::Xattrs = ATTRIBUTES_V4
                    .iter()
                    .map(|(flag, name, len)| {
                        let prefix = ["user.", "trusted.", "security."]
                            [["-u", "-r", "-s"].iter().position(|f| f == flag).unwrap()];
                        (format!("{prefix}{name}").into_bytes(), vec![b'v'; *len])
                    })
                    .collect();
                expected.sort();
                assert_eq!(node.xattrs, expected, "{what} {path}");
            }
        }
    }
}

/// Namespace, name and length of the attributes that [`Prototype::make`] sets.
const ATTRIBUTES_V4: &[(&str, &str, usize)] = &[
    ("-u", "small", 5),
    ("-r", "rooted", 20),
    ("-s", "selinux", 30),
    ("-u", "medium", 300),
    ("-u", "empty", 1),
    ("-u", "large", 3000),
    ("-u", "largest", 60000),
    ("-u", "m1", 250),
    ("-u", "m2", 251),
    ("-u", "m3", 252),
    ("-u", "m4", 253),
];

#[test]
fn version_4_equals_what_it_was_made_from() {
    let test = "xfs version 4";
    if !tools(test, &["mkfs.xfs", "xfs_db"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let proto = Prototype::new(temp.path(), 1023);
    let mut made = 0;
    for options in VERSION_4 {
        let image = temp.path().join("image");
        if proto.make(&image, "64M", &format!("-m crc=0 {options}")) {
            proto.check(options, &image);
            made += 1;
        }
    }
    eprintln!("{test}: {made} of {} option sets", VERSION_4.len());
    assert!(made >= 9, "{made}");
}

/// The length of a directory block in all seeds.
const DIR_BLOCK: usize = 4096;

/// Structures of version 5 in `bytes` that have a checksum: where each lies, its length, and where its checksum is.
fn checksummed(bytes: &[u8], dir_block: usize) -> Vec<(usize, usize, usize)> {
    let be = |at: usize, n: usize| bytes[at..at + n].iter().fold(0usize, |v, b| v << 8 | *b as usize);
    let (block, inode) = (be(4, 4), be(104, 2));
    let mut found = vec![(0, 512, 224)];
    for at in (512..bytes.len()).step_by(512) {
        let (len, crc) = match &bytes[at..at + 4] {
            b"BMA3" => (block, 64),
            b"XDB3" | b"XDD3" => (dir_block, 4),
            b"XSLM" | b"XARM" => (block, 12),
            [0x49, 0x4e, ..] if bytes[at + 4] == 3 => (inode, 100),
            _ if matches!(be(at + 8, 2), 0x3ebe | 0x3bee) => (block, 12),
            _ => continue,
        };
        if at + len <= bytes.len() {
            found.push((at, len, crc));
        }
    }
    found
}

/// Makes the checksums of `bytes` right, so that what was changed reaches the readers; those of the log's records too.
fn seal(bytes: &mut [u8], dir_block: usize) {
    for (at, len, crc) in checksummed(bytes, dir_block) {
        bytes[at + crc..at + crc + 4].fill(0);
        let sum = crc32c(&bytes[at..at + len]);
        bytes[at + crc..at + crc + 4].copy_from_slice(&sum.to_le_bytes());
    }
    for at in (0..bytes.len() - 1024).step_by(512) {
        if bytes[at..at + 4] == [0xfe, 0xed, 0xba, 0xbe] {
            let be = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            let (len, headers) = (be(at + 12), be(at + 320).div_ceil(32768).clamp(1, 8));
            let Some(data) = bytes.get(at + headers * 512..at + headers * 512 + len.min(1 << 18)) else {
                continue;
            };
            let mut summed = [&bytes[at..at + 32], &[0; 4], &bytes[at + 36..at + 328]].concat();
            for i in 1..headers.min(len.div_ceil(32768)) {
                summed.extend(&bytes[at + i * 512..at + i * 512 + 260]);
            }
            summed.extend(data);
            let sum = crc32c(&summed);
            bytes[at + 32..at + 36].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// crc32c, bit by bit from a table made here: not what is tested.
fn crc32c(bytes: &[u8]) -> u32 {
    static TABLE: std::sync::OnceLock<Vec<u32>> = std::sync::OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let step = |crc: u32, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        (0..256).map(|i| (0..8).fold(i, step)).collect()
    });
    !bytes.iter().fold(!0, |crc, b| {
        crc >> 8 ^ table[((crc ^ u32::from(*b)) & 0xff) as usize]
    })
}

/// Small filesystems with one of everything that the kernel filled: one for each way that metadata is laid out; the last
/// ones have a dirty log.
fn seeds(temp: &Path) -> Vec<(String, Vec<u8>)> {
    let image = temp.join("seed");
    let mut seeds = Vec::new();
    for (options, is_dirty) in [
        ("-b size=1024 -n size=4096", false),
        ("-b size=4096 -m rmapbt=1 -i nrext64=1", false),
        ("-b size=1024 -m bigtime=0", true),
        ("-b size=4096 -i sparse=1", true),
    ] {
        assert!(mkfs(&image, "16M", options), "{options}");
        let mount = Mounted::new(&image, "");
        if is_dirty {
            bash(
                "cd \"$1\"; mkdir before; for i in 1 2 3 4 5 6 7 8 9; do echo $i > before/$i; done; sync -f .",
                &[mount.path()],
            );
        }
        bash(SEED_TREE, &[mount.path()]);
        bash(
            "cd \"$1\"; setfattr -n user.remote -v \"$(printf 'v%.0s' $(seq 3000))\" data; ln -s \"$(printf 'u%.0s' $(seq 900))\" a/longer; sync -f .",
            &[mount.path()],
        );
        if is_dirty {
            bash(POWER_CUT, &[mount.path()]);
        }
        mount.unmount();
        let (_, listing) = ours(&image);
        assert_eq!(listing.problems, [], "{options}");
        assert!(listing.tree.len() > 150, "{options}");
        seeds.push((
            format!("{options}, dirty: {is_dirty}"),
            std::fs::read(&image).unwrap(),
        ));
    }
    seeds
}

#[test]
fn mutants_neither_panic_nor_hang() {
    let test = "xfs mutants";
    if !support::root(test) || !tools(test, &["mkfs.xfs", "xfs_db", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let mut seeds = seeds(temp.path());
    for options in ["-m crc=0 -b size=512", "-m crc=0 -b size=4096 -i size=512"] {
        let image = temp.path().join("image");
        assert!(Prototype::new(temp.path(), 1023).make(&image, "16M", options));
        seeds.push((options.to_owned(), std::fs::read(&image).unwrap()));
    }
    let mut opened = 0;
    for (name, seed) in &seeds {
        for number in 0..mutants() {
            let mut bytes = mutant(seed, number);
            // Half of them have right checksums.
            if number % 2 == 0 && !name.contains("crc=0") {
                seal(&mut bytes, DIR_BLOCK);
            }
            opened += u64::from(read_everything(&format!("mutant {number} of {name}"), bytes));
        }
    }
    let peak = peak() >> 10;
    eprintln!(
        "{test}: {} seeds, {opened} mutants opened and were read, {peak} MiB at most",
        seeds.len()
    );
    assert!(opened > 0);
}

#[test]
fn a_flipped_byte_of_metadata_is_never_believed() {
    let test = "xfs checksums";
    if !support::root(test) || !tools(test, &["mkfs.xfs", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    for (name, seed) in seeds(temp.path()) {
        let fs = vm2k::fs::open(Arc::new(seed.clone())).unwrap();
        let expected = kernel::ours(&fs.list().unwrap().tree, &|id| fs.open(id.ino));
        let mut places = checksummed(&seed, DIR_BLOCK);
        // The records of the log that has to be replayed.
        if name.ends_with("true") {
            let log = (0..seed.len()).step_by(512).filter(|at| {
                seed[*at..*at + 4] == [0xfe, 0xed, 0xba, 0xbe] && seed[*at + 12..*at + 16] != [0; 4]
            });
            places.extend(log.map(|at| (at, 4096, 0)).collect::<Vec<_>>());
        }
        let mut random = Random(7);
        let (mut told, mut harmless) = (0, 0);
        for number in 0..mutants() * 2 {
            let (at, len, _) = places[random.below(places.len())];
            let at = at + random.below(len);
            let mut bytes = seed.clone();
            bytes[at] ^= 1 << random.below(8);
            let result = vm2k::fs::open(Arc::new(bytes)).and_then(|fs| Ok((fs.list()?, fs)));
            let Ok((listing, fs)) = result else {
                told += 1;
                continue;
            };
            // As if the machine had stopped while it wrote the last record of the log.
            if fs.info().notes.iter().any(|note| note.contains("torn")) {
                told += 1;
                continue;
            }
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
                    "{name}, flip {number} of byte {at}: {}",
                    lines.join("\n")
                );
            }
        }
        eprintln!("{test}: {name}: {told} told, {harmless} without effect");
        assert!(told > harmless / 4, "the flips met no metadata");
    }
}

#[test]
fn a_volume_that_is_cut_short_is_told() {
    let test = "xfs cut";
    if !support::root(test) || !tools(test, &["mkfs.xfs", "setfattr", "setfacl", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let (_, bytes) = seeds(temp.path()).swap_remove(0);
    let fs = vm2k::fs::open(Arc::new(bytes.clone())).unwrap();
    let whole = kernel::ours(&fs.list().unwrap().tree, &|id| fs.open(id.ino));
    for len in (0..bytes.len()).step_by(299_999) {
        let Ok(fs) = vm2k::fs::open(Arc::new(bytes[..len].to_vec())) else {
            continue;
        };
        let Ok(listing) = fs.list() else { continue };
        let short = |p: &vm2k::tree::Problem| p.path.is_root() && p.what.contains("its volume only");
        assert!(listing.problems.iter().any(short));
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
fn features_are_refused_or_named() {
    let test = "xfs features";
    if !tools(test, &["mkfs.xfs", "xfs_db"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let proto = Prototype::new(temp.path(), 300);
    let image = temp.path().join("image");
    assert!(proto.make(&image, "16M", "-b size=4096"));
    proto.check("version 5", &image);
    let seed = std::fs::read(&image).unwrap();
    let with = |at: usize, bits: u8| {
        let mut bytes = seed.clone();
        bytes[at] |= bits;
        seal(&mut bytes, DIR_BLOCK);
        vm2k::fs::open(Arc::new(bytes))
    };
    // sb_features_incompat stands at byte 216, sb_features_ro_compat at 212.
    for (at, bits, name) in [(218, 1, "metadir"), (218, 2, "zoned"), (216, 0x40, "0x40000000")] {
        let refused = with(at, bits).err().expect("an unknown incompatible feature");
        assert!(matches!(refused, vm2k::error::Error::Unsupported { .. }));
        assert!(refused.to_string().contains(name), "{refused}");
    }
    let notes = with(212, 0x40).unwrap().info().notes;
    assert!(notes.iter().any(|n| n.contains("0x40000000")), "{notes:?}");
    let problems = with(219, 0x10).unwrap().list().unwrap().problems;
    assert!(
        problems.iter().any(|p| p.what.contains("needsrepair")),
        "{problems:?}"
    );
    let changed = seed[33] ^ 1;
    let mut bytes = seed.clone();
    bytes[33] = changed;
    let damaged = vm2k::fs::open(Arc::new(bytes)).err().expect("a wrong checksum");
    assert!(damaged.to_string().contains("checksum"), "{damaged}");

    // A file in the realtime section.
    let script = ["-x", "-c", "path /size-4097", "-c", "write core.realtime 1"];
    assert!(run_ok("xfs_db", &script, &image));
    let (seen, listing) = ours(&image);
    assert_eq!(listing.problems.len(), 1, "{:?}", listing.problems);
    assert_eq!(listing.problems[0].path.to_string(), "/size-4097");
    assert!(
        listing.problems[0].what.contains("realtime"),
        "{:?}",
        listing.problems
    );
    let file = seen.iter().find(|s| s.path.to_string() == "/size-4097").unwrap();
    assert!(file.content.contains("realtime"), "{}", file.content);

    // A log on another device: whether it is needed cannot be known.
    let log = temp.path().join("log");
    run_ok("truncate", &["-s", "64M"], &log);
    assert!(mkfs(
        &image,
        "320M",
        &format!("-l logdev={},size=64m", log.display())
    ));
    let (_, listing) = ours(&image);
    assert_eq!(listing.problems.len(), 1);
    assert!(
        listing.problems[0].what.contains("log is on another device"),
        "{:?}",
        listing.problems
    );
}

/// Byte offset of inode `ino` of a filesystem.
fn inode_at(bytes: &[u8], ino: u64) -> usize {
    let be = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (inopb, agblk) = (bytes[123], bytes[124]);
    let (block, ino) = ((ino >> inopb) as usize, ino as usize);
    let group = block >> agblk;
    let in_block = ino & ((1 << inopb) - 1);
    (group * be(84) + (block & ((1 << agblk) - 1))) * be(4) + in_block * (be(104) >> 16)
}

#[test]
fn directories_that_hold_each_other_end() {
    let test = "xfs cycles";
    if !tools(test, &["mkfs.xfs", "xfs_db"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let image = temp.path().join("image");
    assert!(Prototype::new(temp.path(), 1023).make(&image, "16M", "-m crc=0 -b size=1024"));
    let (seen, _) = ours(&image);
    let ino = |path: &str| {
        seen.iter()
            .find(|s| s.path.to_string() == path)
            .unwrap()
            .node
            .id
            .ino
    };
    let mut bytes = std::fs::read(&image).unwrap();
    let (root, many) = (inode_at(&bytes, ino("/")), inode_at(&bytes, ino("/many-2")));
    bytes.copy_within(root..root + 256, many);
    let listing = vm2k::fs::open(Arc::new(bytes)).unwrap().list().unwrap();
    let told = |path: &str, what: &str| {
        listing
            .problems
            .iter()
            .any(|p| p.path.to_string() == path && p.what.contains(what))
    };
    assert!(
        told("/many-2/many-2", "contains itself"),
        "{:?}",
        listing.problems
    );
    assert!(told("/many-2/many-600", "elsewhere"), "{:?}", listing.problems);
    assert!(listing.tree.len() > seen.len() - 10);
}

#[test]
fn large_files_and_many_threads() {
    let test = "xfs large";
    if !support::root(test) || !tools(test, &["mkfs.xfs", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let image = temp.path().join("image");
    for options in ["-b size=4096", "-b size=1024 -m rmapbt=1"] {
        assert!(mkfs(&image, "320M", options));
        assert_large_files(options, &image, 20_000_000);
    }
}

/// A record of the log with one transaction of bmap update intents, which are not done: `struct xfs_map_extent` each.
fn intents(last: &[u8], block: u32, extents: &[[u64; 5]]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut operation = |flags: u8, bytes: &[u8]| {
        data.extend(0x1234_5678u32.to_be_bytes());
        data.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        data.extend([0x69, flags, 0, 0]);
        data.extend(bytes);
    };
    operation(1, &[]);
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    operation(0, &words(&[0x5452_414e, 40, 0, extents.len() as u32]));
    for (i, [ino, start, logical, len, flags]) in extents.iter().enumerate() {
        let mut item = words(&[0x0001_1244, 1, 0x1000 + i as u32, 0x77]);
        item.extend([ino, start, logical].iter().flat_map(|w| w.to_le_bytes()));
        item.extend(words(&[*len as u32, *flags as u32]));
        operation(0, &item);
    }
    operation(2, &[]);
    data.resize(data.len().next_multiple_of(512), 0);
    let mut header = last.to_vec();
    header[12..16].copy_from_slice(&(data.len() as u32).to_be_bytes());
    header[20..24].copy_from_slice(&block.to_be_bytes());
    header[40..44].copy_from_slice(&(extents.len() as u32 + 3).to_be_bytes());
    header[44..300].fill(0);
    for (i, first) in data.chunks_mut(512).enumerate() {
        header[44 + i * 4..48 + i * 4].copy_from_slice(&first[..4]);
        first[..4].copy_from_slice(&last[4..8]);
    }
    [header, data].concat()
}

#[test]
fn open_intents_are_finished_as_recovery_does() {
    let test = "xfs intents";
    if !support::root(test) || !tools(test, &["mkfs.xfs", "xfs_io", "xfs_logprint", "perl"]) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let image = temp.path().join("image");
    assert!(mkfs(
        &image,
        "64M",
        "-b size=4096 -m reflink=1,rmapbt=0 -d agcount=2"
    ));
    let mount = Mounted::new(&image, "");
    let script = r#"cd "$1"; for f in a b c; do head -c 81920 /dev/urandom > $f; done; truncate -s 200000 hole; sync -f .
dd if=/dev/zero of=last bs=1 count=1 conv=fsync status=none"#;
    bash(script, &[mount.path()]);
    let ino = |name: &str| rustix::fs::lstat(mount.path().join(name)).unwrap().st_ino;
    // `   0: [0..159]: 224..383`
    let block = |name: &str| {
        let file = mount.path().join(name);
        let text = support::run(
            std::process::Command::new("xfs_io")
                .args(["-r", "-c", "fiemap"])
                .arg(file),
        )
        .stdout;
        let text = String::from_utf8(text).unwrap();
        let words: Vec<&str> = text.split([' ', '.', '\n']).collect();
        let at = words.iter().position(|w| w.ends_with("]:")).unwrap();
        words[at + 1].parse::<u64>().unwrap() / 8
    };
    let (a, b, c, hole) = (ino("a"), ino("b"), ino("c"), ino("hole"));
    let (block_a, block_b, block_c) = (block("a"), block("b"), block("c"));
    bash(POWER_CUT, &[mount.path()]);
    mount.unmount();
    let said = support::run(
        std::process::Command::new("xfs_logprint")
            .args(["-t"])
            .arg(&image),
    )
    .stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut words = said
        .split_whitespace()
        .skip_while(|word| *word != "head:")
        .skip(1);
    let head: usize = words.next().unwrap().parse().unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    let be = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let (start, ag_blocks, ag_log) = (
        u64::from(be(48)) << 32 | u64::from(be(52)),
        u64::from(be(84)),
        bytes[124],
    );
    let fsb = |block: u64| ((block / ag_blocks) << ag_log) + block % ag_blocks;
    let log = ((start >> ag_log) * ag_blocks + (start & ((1 << ag_log) - 1))) as usize * 4096;
    let last = (0..head)
        .rev()
        .map(|i| log + i * 512)
        .find(|at| be(*at) == 0xfeed_babe)
        .unwrap();
    let last = bytes[last..last + 512].to_vec();
    // Blocks in the midst and at the end are taken out, one is moved into a hole, one is put there as not written.
    let record = intents(
        &last,
        head as u32,
        &[
            [a, fsb(block_a + 2), 2, 3, 2],
            [b, fsb(block_b + 18), 18, 2, 2],
            [hole, fsb(block_b + 18), 5, 2, 1],
            [c, fsb(block_c + 4), 4, 1, 2],
            [hole, fsb(block_c + 4), 20, 1, 1 | 1 << 30],
        ],
    );
    let at = log + head * 512;
    bytes[at..at + record.len()].copy_from_slice(&record);
    seal(&mut bytes, DIR_BLOCK);
    std::fs::write(&image, &bytes).unwrap();
    let before = ours(&image).0;
    let (wrong, transactions) = recovered(&image);
    assert!(transactions > 1, "{transactions}");
    assert_eq!(wrong, None);
    // The kernel has finished them now: that they were open made a difference.
    let find = |seen: &[Seen], path: &str| {
        seen.iter()
            .find(|s| s.path.to_string() == path)
            .unwrap()
            .content
            .clone()
    };
    let after = ours(&image).0;
    for path in ["/a", "/b", "/c", "/hole"] {
        assert_eq!(find(&before, path), find(&after, path), "{path}");
    }
    assert_ne!(
        find(&after, "/hole"),
        kernel::sha256(&mut &vec![0; 200_000][..]).unwrap()
    );
}
