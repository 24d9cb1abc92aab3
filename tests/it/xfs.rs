//! XFS against the kernel, xfsprogs and damage.

use crate::filesystem::*;
use crate::kernel::{self, Mounted, Seen};
use crate::support::{self, bash, tools};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm2k::read_at::{HostFile, ReadAt};
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
    "-l size=16m,sectsize=4096",
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
sysopen(my $f, 'sparse', O_RDWR | O_CREAT); at($f, 300_000, noise(10_000)); at($f, 20_000_000, noise(1000)); truncate($f, 30_000_000);
sysopen($f, 'all-hole', O_RDWR | O_CREAT); truncate($f, 40_000_000);
sysopen($f, 'pieces', O_RDWR | O_CREAT); at($f, $_ * 131072, "piece $_") for 0 .. 699;
sysopen($f, 'far', O_RDWR | O_CREAT);
sysopen($f, 'huge', O_RDWR | O_CREAT); at($f, $_, "at $_" x 100) for 0, 5_000_000_000, 15_999_000_000; truncate($f, 16_000_000_000);
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
fallocate -n -l 200k unwritten-behind
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
perl -e 'for (1 .. 300) { syscall(188, "size-1024", "user.attribute-number-$_", my $v = "value $_ " x ($_ % 40), length($v), 0) == 0 or die $! }
         for (1 .. 300) { next if $_ % 3; syscall(197, "size-1024", "user.attribute-number-$_") == 0 or die $! }' 
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
