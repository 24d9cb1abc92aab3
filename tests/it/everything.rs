//! Metadata is never lost: one tree with everything in it, on each filesystem, inside each disk format, is the same tree.

use crate::kernel::{self, Mounted, Seen};
use crate::support::{self, bash, tools};
use std::path::{Path, PathBuf};
use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::machine::{Machine, MachineOptions};
use vm2k::tree::Time;

/// What is in the tree, below `$1`: all that every one of the filesystems can hold.
const EVERYTHING: &str = r#"
cd "$1"; umask 022
mkdir links many modes times names
echo one > links/a; ln links/a links/b; ln links/a z-last
for length in 1 23 24 59 60 155 156 1000; do ln -s "$(printf 'x%.0s' $(seq $length))" links/to-$length; done
ln -s $'not UTF-8 \xff \n' links/to-bytes
mknod char c 4 64; mknod null c 0 0; mknod block b 259 200000; mkfifo -m 600 fifo
perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "socket", Listen => 1) or die'
perl -e 'for my $i (1..100000) { open(my $f, ">", "many/an-entry-of-a-large-directory-$i") or die }'
truncate -s 64M sparse; printf first | dd of=sparse conv=notrunc status=none
printf middle | dd of=sparse bs=1M seek=31 conv=notrunc status=none; printf last | dd of=sparse bs=1 seek=$((64 * 1048576 - 4)) conv=notrunc status=none
truncate -s 5000001 only-a-hole; fallocate -l 300000 allocated; : > empty; seq 1 300000 > text; head -c 3000000 /dev/urandom > random
perl -e 'open(F, ">", "pieces"); for (my $i = 0; $i < 200; $i++) { sysseek(F, $i * 12288, 0); syswrite(F, "piece $i") }'
cp /bin/true capable; setcap cap_net_admin,cap_chown+ep capable
echo x > acl; setfacl -m u:1001:rw,g:1100:r,m::rw acl; mkdir inherits; setfacl -m u:900:rwx -d -m u:1001:rwx,g::r-x inherits; echo x > inherits/child
echo x > xattrs; setfattr -n user.comment -v words xattrs; setfattr -n user.bytes -v 0x00ff0a3d20 xattrs; setfattr -n trusted.overlay.opaque -v y xattrs
setfattr -n security.custom -v z xattrs; setfattr -n user.$'n\xc3\xa4me' xattrs; setfattr -n user.long -v "0x$(printf 'ab%.0s' $(seq 3000))" xattrs
for i in $(seq 40); do setfattr -n user.attribute-number-$i -v "value $i" many; done; setfattr -n trusted.dir -v d names
touch "names/new
line" names/$'latin1 \xe9' names/'back\slash' "names/ blanks " names/-rf names/'*' 'names/ümlaut 漢字 🐧' "names/$(printf 'n%.0s' $(seq 255))"
mkdir names/a names/a.d; touch names/a/x names/a-b names/a.d/x
deep=.; for i in $(seq 18); do deep=$deep/$(printf "d$i-%.0s" $(seq 50)); mkdir "$deep"; done; echo deep > "$deep/file"; ln "$deep/file" links/to-a-deep-one
for mode in 0000 0200 0444 0644 0755 1644 2755 4755 6711 7777; do echo x > modes/f$mode; mkdir modes/d$mode; chmod $mode modes/f$mode modes/d$mode; done
echo x > modes/owned; chown 3000000:4000000000 modes/owned; chown -h 70000:70001 links/to-60
for at in 1901-12-31T00:00:00 1969-12-31T23:59:58.25 1970-01-01T00:00:00 2001-09-09T01:46:40.999999999 2038-01-19T03:14:08 2099-12-31T23:59:59.5 2400-02-29T12:00:00
do echo x > times/$at; touch -d ${at}Z times/$at; done
ln -s x times/link; touch -h -d 1960-01-01T00:00:00Z times/link; mkdir times/dir; touch -d 2039-01-01T00:00:00.000000001Z times/dir
chown 5:6 .; chmod 751 .; setfattr -n user.root -v yes .
"#;

const FILESYSTEMS: &[(&str, &str)] = &[
    ("ext4", "mkfs.ext4 -q -I 256 -N 110000"),
    ("xfs", "mkfs.xfs -q -f -m bigtime=1"),
    ("btrfs", "mkfs.btrfs -q -f"),
];

/// Name of the file, and the command that makes it from `$1`. What qemu-img does not write is made by what does.
const FORMATS: &[(&str, &str)] = &[
    ("disk.qcow2", "qemu-img convert -O qcow2"),
    (
        "packed.qcow2",
        "qemu-img convert -c -O qcow2 -o compression_type=zstd",
    ),
    ("disk.vmdk", "qemu-img convert -O vmdk"),
    (
        "flat.vmdk",
        "qemu-img convert -O vmdk -o subformat=monolithicFlat",
    ),
    (
        "extents.vmdk",
        "qemu-img convert -O vmdk -o subformat=twoGbMaxExtentSparse",
    ),
    (
        "stream.vmdk",
        "qemu-img convert -O vmdk -o subformat=streamOptimized",
    ),
    (
        "disk.vhd",
        "qemu-img convert -O vpc -o subformat=dynamic,force_size",
    ),
    (
        "fixed.vhd",
        "qemu-img convert -O vpc -o subformat=fixed,force_size",
    ),
    ("disk.vhdx", "qemu-img convert -O vhdx -o subformat=dynamic"),
    ("fixed.vhdx", "qemu-img convert -O vhdx -o subformat=fixed"),
    ("disk.vdi", "qemu-img convert -O vdi"),
    ("fixed.vdi", "qemu-img convert -O vdi -o static=on"),
    ("disk.img.gz", "gzip -1 -c"),
    ("disk.img.xz", "xz -0 -T2 -c"),
    ("disk.img.zst", "zstd -q -1 -c"),
];

/// What must be the same on every filesystem: the times of a directory's inode and its count of links are not.
fn comparable(mut all: Vec<Seen>) -> Vec<Seen> {
    // lost+found is ext4's own.
    all.retain(|s| s.path.to_string() != "/lost+found");
    kernel::numbered(&mut all);
    for seen in &mut all {
        seen.node.ctime = Time::default();
        // XFS shows each ACL a second time, in its own form.
        seen.node
            .xattrs
            .retain(|(name, _)| !name.starts_with(b"trusted.SGI_ACL_"));
        if seen.node.is_dir() {
            seen.node.nlink = 0;
        }
        let written_last = ["/", "/links", "/many", "/modes", "/names", "/times", "/inherits"];
        let path = seen.path.to_string();
        if written_last.contains(&path.as_str()) || !path.starts_with("/times/") {
            // Made at another moment on each.
            seen.node.mtime = Time::default();
        }
        if path == "/random" {
            seen.content = String::new();
        }
    }
    all
}

fn ours(disk: &Path) -> Vec<Seen> {
    let machine = Machine::open_any(&[disk.to_owned()], &MachineOptions::default(), &Silent)
        .unwrap_or_else(|e| panic!("{}: {e:#}", disk.display()));
    assert_eq!(machine.problems(), [], "{}", disk.display());
    kernel::ours(machine.tree(), &|id| machine.open(id))
}

#[test]
fn a_tree_with_everything_is_the_same_everywhere() {
    let test = "a_tree_with_everything_is_the_same_everywhere";
    let wanted = &[
        "mkfs.ext4",
        "mkfs.xfs",
        "mkfs.btrfs",
        "qemu-img",
        "setfacl",
        "setfattr",
        "setcap",
        "perl",
        "gzip",
        "xz",
        "zstd",
    ];
    if !support::root(test) || !tools(test, wanted) {
        return;
    }
    let temp = support::scratch(4 << 30);
    let (mut everywhere, mut checked): (Option<Vec<Seen>>, usize) = (None, 0);
    for (fs, mkfs) in FILESYSTEMS {
        let raw: PathBuf = temp.path().join("disk.img");
        bash(
            &format!("rm -f \"$1\"; truncate -s 640M \"$1\"; {mkfs} \"$1\" > /dev/null"),
            &[&raw],
        );
        let mount = Mounted::new(&raw, "");
        bash(EVERYTHING, &[mount.path()]);
        mount.unmount();
        let found = ours(&raw);
        {
            let mount = Mounted::new(&raw, "ro");
            kernel::assert_equal(fs, &found, &kernel::tree_of(mount.path()));
        }
        // Within one filesystem nothing may differ at all.
        for (name, make) in FORMATS {
            let disk = temp.path().join(name);
            let how = match make.starts_with("qemu-img") {
                true => format!("{make} -f raw \"$1\" \"$2\""),
                false => format!("{make} \"$1\" > \"$2\""),
            };
            bash(&how.replace("convert ", "convert -q "), &[&raw, &disk]);
            kernel::assert_equal(&format!("{fs} in {name}"), &ours(&disk), &found);
            bash("rm -f \"${1%.*}\"*.\"${1##*.}\"", &[&disk]);
            checked += 1;
        }
        let found = comparable(found);
        assert!(found.len() > 100_090, "{}", found.len());
        match &everywhere {
            None => everywhere = Some(found),
            Some(first) => kernel::assert_equal(&format!("{fs} and ext4"), &found, first),
        }
    }
    eprintln!("{test}: {checked} disks, one tree");
}
