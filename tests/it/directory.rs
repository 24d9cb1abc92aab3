//! `dir:PATH` against what the kernel says of the same directory.

use crate::kernel;
use crate::support::{bash, root, tools};
use std::io::Read;
use vm2k::path::GuestPath;
use vm2k::read_at::{ReadAt, Stream};
use vm2k::source::Source;
use vm2k::source::directory::Directory;

#[test]
fn a_tree_with_everything() {
    let test = "a_tree_with_everything";
    if !root(test) || !tools(test, &["setfacl", "setcap", "setfattr", "mkfifo", "python3"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    bash(
        r#"cd "$1"; umask 0
echo a >file; ln file hard; ln -s file link; ln -s /etc/passwd outside; ln -s "$(printf 'x%.0s' $(seq 3000))" long
mkdir -p dir/sub/deep; chmod 7123 dir; chown 12345:54321 dir; chmod 4755 file; mkfifo fifo
mknod block b 259 1048575; mknod char c 4095 255
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
touch -d '1901-12-14 01:02:03.123456789' old; touch -d '2150-01-01 00:00:00.999999999' future
touch -h -d '2001-02-03 04:05:06.7' link
printf x >"$(printf 'bad\xff\n\tname')"; : >empty
truncate -s 10M sparse; printf data | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
setfattr -n user.one -v 1 file; setfattr -n user.big -v "$(printf 'v%.0s' $(seq 2000))" dir; setfattr -n user.empty file
setfattr -h -n trusted.link -v x link; setfattr -h -n trusted.fifo -v x fifo
setfacl -m u:77:rw,g:88:r file; setfacl -d -m u:77:rwx dir; setcap cap_net_raw+ep empty
for i in $(seq 300); do : >dir/sub/$i; done
"#,
        &[dir.path()],
    );
    let ours = Directory::open(dir.path()).unwrap();
    assert_eq!(ours.problems(), []);
    let seen = kernel::tree_of(dir.path());
    kernel::assert_equal("dir:", &kernel::ours(ours.tree(), &|id| ours.open(id)), &seen);
    assert!(seen.len() > 310 && seen.iter().filter(|s| !s.node.xattrs.is_empty()).count() >= 5);
    let sparse = ours.tree().find("/sparse").unwrap().1.id;
    let file = ours.open(sparse).unwrap();
    assert!(file.extent_at(0).unwrap().hole);
    let mut read = Vec::new();
    Stream::new(&*file).read_to_end(&mut read).unwrap();
    assert_eq!(read, std::fs::read(dir.path().join("sparse")).unwrap());
    assert_eq!(ours.tree().hard_links().len(), 1);
}

#[test]
fn other_filesystems_are_read_but_not_the_kernels() {
    let test = "other_filesystems_are_read_but_not_the_kernels";
    if !root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("bash")
        .args(["-eu", "-c"])
        .arg(
            "cd $1; mkdir proc sys dev data tmp; mount -t proc x proc; mount -t sysfs x sys; mount -t tmpfs x dev; \
             mount -t tmpfs x data; echo 1 >data/one; echo 2 >dev/two",
        )
        .arg("bash")
        .arg(dir.path())
        .status()
        .unwrap();
    let ours = Directory::open(dir.path());
    bash(
        "cd $1; for d in proc sys dev data; do umount $d 2>/dev/null || true; done",
        &[dir.path()],
    );
    if !mounted.success() {
        crate::support::skip(test, "the right to mount proc, sysfs and tmpfs");
        return;
    }
    let ours = ours.unwrap();
    let paths: Vec<String> = ours.tree().iter().map(|(p, _)| p.to_string()).collect();
    assert_eq!(
        paths,
        ["/", "/data", "/data/one", "/dev", "/proc", "/sys", "/tmp"]
    );
    let one = ours.tree().find("/data/one").unwrap().1;
    let tmp = ours.tree().find("/tmp").unwrap().1;
    assert_ne!(one.id.fs, tmp.id.fs);
    assert_eq!(tmp.id.fs, 0);
    // It is unmounted by now: the file is another, or gone.
    assert!(ours.open(one.id).is_err());
}

#[test]
fn a_tree_that_changes_is_not_followed_outside() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("machine");
    std::fs::create_dir_all(inner.join("etc")).unwrap();
    std::fs::create_dir(dir.path().join("outside")).unwrap();
    std::fs::write(dir.path().join("outside/file"), "canary").unwrap();
    std::fs::write(inner.join("etc/file"), "inside").unwrap();
    std::fs::write(inner.join("grows"), "1").unwrap();
    let ours = Directory::open(&inner).unwrap();
    let id = |path: &str| {
        ours.tree()
            .get(&GuestPath::new(path.as_bytes()).unwrap())
            .unwrap()
            .id
    };
    assert!(ours.open(id("/etc/file")).is_ok());
    std::fs::rename(inner.join("etc"), inner.join("was")).unwrap();
    symlink("../outside", inner.join("etc")).unwrap();
    assert!(ours.open(id("/etc/file")).is_err());
    std::fs::write(inner.join("grows"), "12").unwrap();
    let e = ours.open(id("/grows")).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("/grows"), "{e}");
    std::fs::remove_file(inner.join("grows")).unwrap();
    assert!(ours.open(id("/grows")).is_err());

    assert!(Directory::open(&dir.path().join("outside/file")).is_err());
    assert!(Directory::open(&dir.path().join("missing")).is_err());
    // A link that the user names is followed.
    symlink(&inner, dir.path().join("link")).unwrap();
    assert_eq!(Directory::open(&dir.path().join("link")).unwrap().tree().len(), 4);
}

#[test]
fn very_deep_directories() {
    let dir = tempfile::tempdir().unwrap();
    bash(
        r#"cd "$1"; n=$(printf 'n%.0s' $(seq 100)); for i in $(seq 300); do mkdir $n; cd $n; done; echo end >end"#,
        &[dir.path()],
    );
    let ours = Directory::open(dir.path()).unwrap();
    assert_eq!(ours.problems(), []);
    assert_eq!(ours.tree().len(), 302);
    let last = ours.tree().iter().next_back().unwrap().1.id;
    assert_eq!(ours.open(last).unwrap().len(), 4);
}
