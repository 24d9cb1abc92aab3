//! Lists what is below a directory of the host that this program runs on, by its descriptor: for `dir:PATH`, and for the far
//! side of ssh.
//!
//! The directory may be hostile and may change while it is read: no symbolic link in it is followed, and nothing in it but
//! directories and regular files is opened. Access times are left alone where the caller may ask for that.

use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::tree::{FileId, Kind, Node, Time, Xattrs};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// What a walk tells of.
pub trait Sink {
    /// An entry. The root comes first; after it a directory comes before what is in it.
    fn entry(&mut self, path: &GuestPath, node: Node);
    /// Something that could not be read.
    fn problem(&mut self, path: &GuestPath, what: String);
    /// True if the walk goes on into another filesystem.
    fn mounted(&mut self, mounted: Mounted<'_>) -> bool;
    /// True if nobody wants to know more.
    fn is_done(&self) -> bool {
        false
    }
}

/// A directory on which another filesystem is mounted than its parent lies on.
#[derive(Debug, Clone, Copy)]
pub struct Mounted<'a> {
    /// Where.
    pub path: &'a GuestPath,
    /// f_type of statfs(2).
    pub kind: u64,
}

impl Mounted<'_> {
    /// True if the kernel makes up what is there.
    pub fn is_made_up(&self) -> bool {
        MADE_UP.contains(&self.kind) || self.kind == TMPFS && self.path.as_bytes() == b"/dev"
    }
}

/// statfs(2) types of filesystems that the kernel makes up: their content is no part of a machine.
const MADE_UP: &[u64] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x7363_6673, // securityfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x9584_58f6, // hugetlbfs
    0x1980_0202, // mqueue
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0xf97c_ff8c, // selinuxfs
    0x6759_6969, // rpc_pipefs
    0x0187,      // autofs
];
/// tmpfs, and devtmpfs too, which is told from it by where it is mounted.
pub const TMPFS: u64 = 0x0102_1994;

/// How deep directories are followed: each level costs a path of at least two bytes more.
const MAX_DEPTH: usize = 4096;

/// Tells `sink` of everything below `root`. Gives the device number (st_dev) of each filesystem number.
///
/// # Errors
/// [`Error::Io`] if the root itself cannot be read.
pub fn walk(root: BorrowedFd<'_>, sink: &mut dyn Sink) -> Result<Vec<u64>> {
    let io = |e: Errno| Error::io("reading the root directory".to_owned(), e.into());
    let stat = rustix::fs::fstat(root).map_err(io)?;
    let mut walk = Walk {
        root,
        sink,
        devices: vec![stat.st_dev],
        todo: Vec::new(),
    };
    walk.root(&stat)?;
    while let Some((dir, stat)) = walk.todo.pop() {
        if walk.sink.is_done() {
            break;
        }
        if let Err(e) = walk.directory(&dir, &stat) {
            walk.sink.problem(&dir, e.to_string());
        }
    }
    Ok(walk.devices)
}

/// A walk through the directory: a list of directories to read, no recursion.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    sink: &'a mut dyn Sink,
    /// The device number of each filesystem number.
    devices: Vec<u64>,
    todo: Vec<(GuestPath, Stat)>,
}

impl Walk<'_> {
    fn root(&mut self, stat: &Stat) -> Result<()> {
        let io = |e: Errno| Error::io("reading the root directory".to_owned(), e.into());
        let xattrs = xattrs(self.root, b".").map_err(io)?;
        let node = self.node(stat, Kind::Directory, xattrs);
        self.sink.entry(&GuestPath::root(), node);
        self.todo.push((GuestPath::root(), *stat));
        Ok(())
    }

    /// Reads one directory: lists its entries and remembers the directories among them.
    fn directory(&mut self, path: &GuestPath, listed: &Stat) -> rustix::io::Result<()> {
        let dir = open_below(self.root, path, OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&dir)?;
        if (stat.st_dev, stat.st_ino) != (listed.st_dev, listed.st_ino) {
            self.sink
                .problem(path, "the directory was replaced while it was read".into());
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            match entry {
                Ok(entry) => names.push(entry.file_name().to_bytes().to_vec()),
                Err(e) => {
                    self.sink.problem(path, format!("reading the directory: {e}"));
                    break;
                }
            }
        }
        names.retain(|n| n != b"." && n != b"..");
        names.sort_unstable();
        for name in names {
            let Ok(child) = path.join(&name) else {
                self.sink.problem(path, "the path of an entry is too long".into());
                continue;
            };
            if let Err(e) = self.entry(dir.as_fd(), &name, &child, &stat) {
                self.sink.problem(&child, e.to_string());
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &GuestPath,
        parent: &Stat,
    ) -> rustix::io::Result<()> {
        let stat = rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File {
                size: u64::try_from(stat.st_size).unwrap_or(0),
            },
            FileType::Symlink => Kind::Symlink {
                target: rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new())?.into_bytes(),
            },
            FileType::BlockDevice => Kind::Block { major, minor },
            FileType::CharacterDevice => Kind::Char { major, minor },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => {
                self.sink.problem(path, "an entry of an unknown type".into());
                return Ok(());
            }
        };
        let xattrs = match xattrs(dir, name) {
            Ok(xattrs) => xattrs,
            Err(e) => {
                self.sink
                    .problem(path, format!("reading the extended attributes: {e}"));
                Vec::new()
            }
        };
        if kind == Kind::Directory {
            let mount = stat.st_dev != parent.st_dev;
            if path.parts().count() > MAX_DEPTH {
                self.sink
                    .problem(path, "directories are nested too deeply".into());
            } else if !mount || self.enters(path) {
                self.todo.push((path.clone(), stat));
            }
        }
        let node = self.node(&stat, kind, xattrs);
        self.sink.entry(path, node);
        Ok(())
    }

    /// True if the walk goes on into the filesystem that is mounted at `path`.
    fn enters(&mut self, path: &GuestPath) -> bool {
        let opened = open_below(self.root, path, OFlags::DIRECTORY);
        match opened.and_then(|dir| rustix::fs::fstatfs(&dir)) {
            Ok(stat) => {
                // The kernel's numbers have 32 bits; the field is signed.
                let kind = u64::from_ne_bytes(stat.f_type.to_ne_bytes()) & 0xffff_ffff;
                self.sink.mounted(Mounted { path, kind })
            }
            // Reading the directory will say what is wrong.
            Err(_) => true,
        }
    }

    fn node(&mut self, stat: &Stat, kind: Kind, xattrs: Xattrs) -> Node {
        let fs = self
            .devices
            .iter()
            .position(|d| *d == stat.st_dev)
            .unwrap_or_else(|| {
                self.devices.push(stat.st_dev);
                self.devices.len() - 1
            });
        let time = |sec: i64, nsec: u64| Time {
            sec,
            nsec: u32::try_from(nsec).unwrap_or(0),
        };
        Node {
            kind,
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            xattrs,
            id: FileId {
                fs: u32::try_from(fs).unwrap_or(u32::MAX),
                ino: stat.st_ino,
            },
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        }
    }
}

/// Opens `path` below `root` for reading. No symbolic link on the way is followed. The access time is left alone where
/// the caller may ask for that.
///
/// # Errors
/// Those of openat2(2).
pub fn open_below(root: BorrowedFd<'_>, path: &GuestPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    match open_with(root, path, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open_with(root, path, flags),
        done => done,
    }
}

fn open_with(root: BorrowedFd<'_>, path: &GuestPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = match path.relative() {
        b"" => b".",
        relative => relative,
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, OsStr::from_bytes(relative), flags, Mode::empty(), resolve) {
        // Without openat2 (Linux before 5.6, some sandboxes), and for paths longer than PATH_MAX: part by part.
        Err(Errno::NOSYS | Errno::NAMETOOLONG) => {}
        done => return done,
    }
    let mut parts = path.parts().peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let here = at.as_ref().map_or(root, AsFd::as_fd);
        let how = match parts.peek() {
            Some(_) => OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            None => flags,
        };
        at = Some(rustix::fs::openat(
            here,
            OsStr::from_bytes(part),
            how,
            Mode::empty(),
        )?);
    }
    match at {
        Some(fd) => Ok(fd),
        None => rustix::fs::openat(root, c".", flags, Mode::empty()),
    }
}

/// All extended attributes of the entry `name` of `dir`, those of a symbolic link itself. There is no call for this with
/// a directory's descriptor, but `/proc` has a name for the descriptor, and only the last part is not followed.
fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Xattrs> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let list = match sized(|buf| rustix::fs::llistxattr(&path, buf)) {
        // The filesystem has none.
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        list => list?,
    };
    let mut found = Vec::new();
    for name in list.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let key = CString::new(name).map_err(|_| Errno::INVAL)?;
        match sized(|buf| rustix::fs::lgetxattr(&path, &key, buf)) {
            Ok(value) => found.push((name.to_vec(), value)),
            // It was removed meanwhile, or its namespace is listed but not for us to read.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort();
    Ok(found)
}

/// Calls `read` with a buffer that is large enough.
fn sized(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match read(&mut buf) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(buf);
            }
            // Linux allows 64 KiB for a value and for the list of names.
            Err(Errno::RANGE) if buf.len() < 1 << 20 => buf.resize(buf.len() * 16, 0),
            Err(e) => return Err(e),
        }
    }
}
