//! `dir:PATH`: a directory of the host, such as a mounted or unpacked machine, as a source.
//!
//! The directory may be hostile: no symbolic link in it is followed, nothing in it but directories and regular files is
//! opened. It may also change while it is read: each file is opened again by its path and is refused if it is another.

use super::Source;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::{HostFile, ReadAt};
use crate::tree::{FileId, Kind, Node, Problem, Time, Tree, Xattrs};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// A directory of the host.
pub struct Directory {
    name: String,
    root: OwnedFd,
    tree: Tree,
    problems: Vec<Problem>,
    /// Device and inode of each filesystem number's files are those of the host; this is where to find them again.
    files: HashMap<FileId, GuestPath>,
    devices: Vec<u64>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory")
            .field("name", &self.name)
            .finish_non_exhaustive()
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
const TMPFS: u64 = 0x0102_1994;

/// How deep directories are followed: each level costs a path of at least two bytes more.
const MAX_DEPTH: usize = 4096;

impl Directory {
    /// Lists the directory `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or is no directory. What cannot be read below it becomes a [`Problem`].
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let io = |e: Errno| Error::io(format!("opening the directory {name}"), e.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(io)?;
        let stat = rustix::fs::fstat(&root).map_err(io)?;
        let mut walk = Walk {
            root: root.as_fd(),
            entries: Vec::new(),
            problems: Vec::new(),
            devices: vec![stat.st_dev],
            todo: Vec::new(),
        };
        walk.root(&stat)?;
        while let Some((dir, stat)) = walk.todo.pop() {
            if let Err(e) = walk.directory(&dir, &stat) {
                walk.problem(dir, e.to_string());
            }
        }
        let Walk {
            entries,
            problems,
            devices,
            ..
        } = walk;
        let tree = Tree::new(entries);
        let files = tree
            .iter()
            .filter(|(_, n)| n.is_file())
            .map(|(p, n)| (n.id, p.clone()))
            .collect();
        Ok(Self {
            name,
            root,
            tree,
            problems,
            files,
            devices,
        })
    }
}

impl Source for Directory {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>> {
        let missing = || Error::corrupt(format!("{}: no file {id:?}", self.name), 0);
        let path = self.files.get(&id).ok_or_else(missing)?;
        let device = usize::try_from(id.fs).ok().and_then(|n| self.devices.get(n));
        let size = self.tree.get(path).map(Node::size);
        let io = |e: std::io::Error| Error::io(format!("opening {path} of {}", self.name), e);
        let file = open_below(self.root.as_fd(), path, OFlags::NONBLOCK).map_err(|e| io(e.into()))?;
        let stat = rustix::fs::fstat(&file).map_err(|e| io(e.into()))?;
        let same = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && Some(&stat.st_dev) == device
            && stat.st_ino == id.ino
            && u64::try_from(stat.st_size).ok() == size;
        if !same {
            return Err(io(std::io::Error::other("it changed since it was listed")));
        }
        Ok(Arc::new(HostFile::from_file(file.into(), path.to_string())?))
    }

    fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// A walk through the directory: a list of directories to read, no recursion.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    entries: Vec<(GuestPath, Node)>,
    problems: Vec<Problem>,
    /// The device number of each filesystem number.
    devices: Vec<u64>,
    todo: Vec<(GuestPath, Stat)>,
}

impl Walk<'_> {
    fn problem(&mut self, path: GuestPath, what: impl Into<String>) {
        self.problems.push(Problem {
            path,
            what: what.into(),
        });
    }

    fn root(&mut self, stat: &Stat) -> Result<()> {
        let io = |e: Errno| Error::io("reading the root directory".to_owned(), e.into());
        let xattrs = xattrs(self.root, b".").map_err(io)?;
        let node = self.node(stat, Kind::Directory, xattrs);
        self.entries.push((GuestPath::root(), node));
        self.todo.push((GuestPath::root(), *stat));
        Ok(())
    }

    /// Reads one directory: lists its entries and remembers the directories among them.
    fn directory(&mut self, path: &GuestPath, listed: &Stat) -> rustix::io::Result<()> {
        let dir = open_below(self.root, path, OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&dir)?;
        if (stat.st_dev, stat.st_ino) != (listed.st_dev, listed.st_ino) {
            self.problem(path.clone(), "the directory was replaced while it was read");
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            match entry {
                Ok(entry) => names.push(entry.file_name().to_bytes().to_vec()),
                Err(e) => {
                    self.problem(path.clone(), format!("reading the directory: {e}"));
                    break;
                }
            }
        }
        names.retain(|n| n != b"." && n != b"..");
        for name in names {
            let Ok(child) = path.join(&name) else {
                self.problem(path.clone(), "the path of an entry is too long");
                continue;
            };
            if let Err(e) = self.entry(dir.as_fd(), &name, &child, &stat) {
                self.problem(child, e.to_string());
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
                self.problem(path.clone(), "an entry of an unknown type");
                return Ok(());
            }
        };
        let xattrs = match xattrs(dir, name) {
            Ok(xattrs) => xattrs,
            Err(e) => {
                self.problem(path.clone(), format!("reading the extended attributes: {e}"));
                Vec::new()
            }
        };
        if kind == Kind::Directory {
            let mount = stat.st_dev != parent.st_dev;
            if path.parts().count() > MAX_DEPTH {
                self.problem(path.clone(), "directories are nested too deeply");
            } else if !(mount && self.is_made_up(path)) {
                self.todo.push((path.clone(), stat));
            }
        }
        let node = self.node(&stat, kind, xattrs);
        self.entries.push((path.clone(), node));
        Ok(())
    }

    /// True if the filesystem mounted at `path` is one that the kernel makes up.
    fn is_made_up(&self, path: &GuestPath) -> bool {
        let opened = open_below(self.root, path, OFlags::DIRECTORY);
        let kind = opened.and_then(|dir| rustix::fs::fstatfs(&dir)).map(|s| s.f_type);
        kind.is_ok_and(|kind| {
            // The kernel's numbers have 32 bits; the field is signed.
            let kind = u64::from_ne_bytes(kind.to_ne_bytes()) & 0xffff_ffff;
            MADE_UP.contains(&kind) || kind == TMPFS && path.as_bytes() == b"/dev"
        })
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
fn open_below(root: BorrowedFd<'_>, path: &GuestPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
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
