//! The kernel as judge: a mounted tree in the same form as ours, and mounts that end with the test.

use crate::support::run;
use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use vm2k::path::GuestPath;
use vm2k::read_at::{ReadAt, Stream};
use vm2k::tree::{FileId, Kind, Node, Time, Tree, Xattrs};

/// One path as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: GuestPath,
    pub(crate) node: Node,
    /// SHA-256 of a regular file's content in hex; empty for other kinds; `error: ...` where reading failed.
    pub(crate) content: String,
}

/// A mount of an image file that ends with this value.
pub(crate) struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    /// Mounts `image` through a loop device with `options`, or gives the words of mount(8).
    pub(crate) fn try_new(image: &Path, options: &str) -> Result<Self, String> {
        wait_until_free(image);
        let dir = tempfile::tempdir().unwrap();
        let options = if options.is_empty() {
            "loop".to_owned()
        } else {
            format!("loop,{options}")
        };
        let output = Command::new("mount")
            .args(["-o", &options])
            .arg(image)
            .arg(dir.path())
            .output()
            .unwrap();
        if output.status.success() {
            Ok(Self { dir })
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// As [`Self::try_new`], but it must succeed.
    pub(crate) fn new(image: &Path, options: &str) -> Self {
        Self::try_new(image, options).unwrap_or_else(|e| panic!("mount {}: {e}", image.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Unmounts and waits until it is done.
    pub(crate) fn unmount(self) {
        run(Command::new("umount").arg(self.dir.path()));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Already unmounted, or a test that failed: in both cases only the attempt matters. What is let go of lazily may still
        // write to its image when the next one is made there.
        for lazy in [&["-q"][..], &["-q", "-l"]] {
            let done = Command::new("umount")
                .args(lazy)
                .arg(self.dir.path())
                .stderr(std::process::Stdio::null())
                .status();
            if done.is_ok_and(|status| status.success()) {
                return;
            }
        }
    }
}

/// Waits, not for ever, until no loop device has `image`: mount(8) would take an old one again, which still shows what the
/// file held before.
fn wait_until_free(image: &Path) {
    let Ok(image) = image.canonicalize() else { return };
    for _ in 0..200 {
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut backing =
            devices.filter_map(|d| std::fs::read_to_string(d.path().join("loop/backing_file")).ok());
        if !backing.any(|file| Path::new(file.trim_end()) == image) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Everything below `dir`, and `dir` itself as `/`, sorted. What lies on another filesystem is left out.
pub(crate) fn tree_of(dir: &Path) -> Vec<Seen> {
    let device = rustix::fs::lstat(dir).unwrap().st_dev;
    walk(dir, &mut |found| (found == device).then_some(0))
}

/// As [`tree_of`], with what is mounted below it. File ids are [numbered](numbered).
pub(crate) fn tree_across(dir: &Path) -> Vec<Seen> {
    let mut devices = Vec::new();
    let mut all = walk(dir, &mut |found| {
        let known = devices.iter().position(|d| *d == found);
        let number = known.unwrap_or_else(|| {
            devices.push(found);
            devices.len() - 1
        });
        u32::try_from(number).ok()
    });
    numbered(&mut all);
    all
}

/// Gives each file the number of its first path, so that trees with other inode numbers compare.
pub(crate) fn numbered(all: &mut [Seen]) {
    let mut first = std::collections::HashMap::new();
    for (number, seen) in all.iter_mut().enumerate() {
        let id = (seen.node.id, seen.node.is_dir());
        let ino = *first.entry(id).or_insert(number as u64);
        seen.node.id = FileId { fs: 0, ino };
    }
}

/// Everything on the devices that `fs` gives a number for.
fn walk(dir: &Path, fs: &mut dyn FnMut(u64) -> Option<u32>) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut todo = vec![(dir.to_owned(), GuestPath::root())];
    while let Some((host, path)) = todo.pop() {
        let stat = match rustix::fs::lstat(&host) {
            Ok(stat) => stat,
            Err(e) => panic!("{}: {e}", host.display()),
        };
        let Some(number) = fs(stat.st_dev) else {
            continue;
        };
        let mut seen = seen(&host, path.clone(), &stat);
        seen.node.id.fs = number;
        if seen.node.is_dir() {
            for name in names(&host) {
                todo.push((
                    host.join(OsString::from_vec(name.clone())),
                    path.join(&name).unwrap(),
                ));
            }
        }
        all.push(seen);
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

fn names(dir: &Path) -> Vec<Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().file_name().into_vec())
        .collect()
}

fn seen(host: &Path, path: GuestPath, stat: &rustix::fs::Stat) -> Seen {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let mut content = String::new();
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => {
            content = sha256_of(host);
            Kind::File {
                size: u64::try_from(stat.st_size).unwrap(),
            }
        }
        FileType::Symlink => Kind::Symlink {
            target: std::fs::read_link(host).unwrap().into_os_string().into_vec(),
        },
        FileType::BlockDevice => Kind::Block { major, minor },
        FileType::CharacterDevice => Kind::Char { major, minor },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => panic!("{}: unknown type", host.display()),
    };
    Seen {
        path,
        content,
        node: Node {
            kind,
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            xattrs: xattrs(host),
            id: FileId {
                fs: 0,
                ino: stat.st_ino,
            },
            nlink: u32::try_from(stat.st_nlink).unwrap(),
        },
    }
}

fn time(sec: i64, nsec: u64) -> Time {
    Time {
        sec,
        nsec: u32::try_from(nsec).unwrap(),
    }
}

/// The extended attributes of `path` itself, sorted by name.
pub(crate) fn xattrs(path: &Path) -> Xattrs {
    let mut names = vec![0; 256 << 10];
    let len =
        rustix::fs::llistxattr(path, &mut names[..]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut found: Xattrs = names[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, OsString::from_vec(name.to_vec()), &mut value[..])
                .unwrap_or_else(|e| panic!("{} {}: {e}", path.display(), String::from_utf8_lossy(name)));
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect();
    found.sort();
    found
}

fn sha256_of(path: &Path) -> String {
    let mut file = std::fs::File::from(
        rustix::fs::openat(
            rustix::fs::CWD,
            path,
            OFlags::RDONLY | OFlags::NOATIME,
            Mode::empty(),
        )
        .unwrap_or_else(|e| panic!("{}: {e}", path.display())),
    );
    sha256(&mut file).unwrap_or_else(|e| format!("error: {e}"))
}

/// SHA-256 in hex of all that `from` gives.
pub(crate) fn sha256(from: &mut dyn Read) -> std::io::Result<String> {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    let mut buf = vec![0; 256 << 10];
    loop {
        match from.read(&mut buf)? {
            0 => break,
            n => hash.update(&buf[..n]),
        }
    }
    Ok(vm2k::bytes::hex(&hash.finalize()))
}

/// Our tree in the same form; contents are read through `open`.
pub(crate) fn ours(
    tree: &Tree,
    open: &dyn Fn(FileId) -> vm2k::error::Result<std::sync::Arc<dyn ReadAt>>,
) -> Vec<Seen> {
    tree.iter()
        .map(|(path, node)| Seen {
            path: path.clone(),
            node: node.clone(),
            content: if node.is_file() {
                match open(node.id) {
                    Ok(file) => sha256(&mut Stream::new(&*file)).unwrap_or_else(|e| format!("error: {e}")),
                    Err(e) => format!("error: {e}"),
                }
            } else {
                String::new()
            },
        })
        .collect()
}

/// Every difference between what we read and what the kernel shows, one line each.
pub(crate) fn differences(ours: &[Seen], kernels: &[Seen]) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut a, mut b) = (ours.iter().peekable(), kernels.iter().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (None, None) => return lines,
            (Some(x), Some(y)) if x.path == y.path => {
                if x != y {
                    lines.push(format!("{}\n   ours: {x:?}\n kernel: {y:?}", x.path));
                }
                a.next();
                b.next();
            }
            (Some(x), y) if y.is_none_or(|y| x.path < y.path) => {
                lines.push(format!("{}: only in ours", x.path));
                a.next();
            }
            (_, Some(y)) => {
                lines.push(format!("{}: missing in ours", y.path));
                b.next();
            }
            (Some(_), None) => unreachable!("the guard above covers it"),
        }
    }
}

/// Fails with the differences, if there are any.
pub(crate) fn assert_equal(what: &str, ours: &[Seen], kernels: &[Seen]) {
    let lines = differences(ours, kernels);
    assert!(
        lines.is_empty(),
        "{what}: {} differences\n{}",
        lines.len(),
        lines.iter().take(10).cloned().collect::<Vec<_>>().join("\n")
    );
}

/// The host's path of `path` below `root`.
pub(crate) fn host(root: &Path, path: &GuestPath) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path.relative()))
}
