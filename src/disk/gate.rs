//! The gate: which further files of the host an image may open.
//!
//! A disk image names other files: backing files, data files, extents. An image is hostile, so a name leads nowhere but
//! into the image's own directory, or a directory that the user allowed with `--allow-backing`.

use crate::error::{Error, Result};
use crate::progress::{Progress, Silent};
use crate::read_at::{HostFile, ReadAt};
use rustix::fs::{Mode, OFlags};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// How many images may stand behind one another, the first included.
pub const MAX_CHAIN: usize = 16;

/// Why a name is refused that leads to a file which may well exist.
const OUTSIDE: &str = "lies outside the image's directory, or is hidden there";

/// The directories that images may open further files in, besides their own.
#[derive(Debug, Default)]
pub struct Gate {
    allowed: Vec<PathBuf>,
    /// What stat(2) said of every file that was opened; `None` if one of them can change without it showing.
    opened: Mutex<Option<Vec<Stamp>>>,
}

/// Device, inode, size, mtime and ctime (seconds and nanoseconds): a file that changed differs in one of them.
type Stamp = [i128; 7];

impl Gate {
    /// A gate that lets images open further files below `allowed` directories too (`--allow-backing`).
    ///
    /// # Errors
    /// [`Error::Io`] if one of them does not exist.
    pub fn new(allowed: &[PathBuf]) -> Result<Self> {
        let allowed = allowed
            .iter()
            .map(|dir| {
                dir.canonicalize()
                    .map_err(|e| Error::io(format!("opening the directory {}", dir.display()), e))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            allowed,
            opened: Mutex::new(Some(Vec::new())),
        })
    }

    /// Names the bytes of all files that were opened so far, by what stat(2) says of them: device, inode, size, mtime and
    /// ctime. `None` if one is a device or was written within the last two seconds, so that a further change might not
    /// show in its times.
    pub fn identity(&self) -> Option<String> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = opened.as_ref().filter(|s| !s.is_empty())?;
        Some(
            blake3::hash(format!("{stamps:?}").as_bytes())
                .to_hex()
                .to_string(),
        )
    }

    fn note(&self, meta: &Metadata) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let settled = |seconds: i64| u64::try_from(seconds).map_or(true, |s| s.saturating_add(2) < now);
        if !meta.is_file() || !settled(meta.mtime()) || !settled(meta.ctime()) {
            *opened = None;
        }
        if let Some(stamps) = opened.as_mut() {
            stamps.push([
                meta.dev().into(),
                meta.ino().into(),
                meta.size().into(),
                meta.mtime().into(),
                meta.mtime_nsec().into(),
                meta.ctime().into(),
                meta.ctime_nsec().into(),
            ]);
        }
    }
}

/// How many extents the disks of one machine may have: a disk of 8 TiB in pieces of 2 GiB.
pub(super) const MAX_EXTENTS: usize = 4096;

/// What a disk lies in: a file of the host, or a part of one.
pub(super) struct Image {
    /// Its bytes.
    pub(super) file: Arc<dyn ReadAt>,
    /// The path of the file of the host, without symbolic links.
    pub(super) path: PathBuf,
    /// As messages call it.
    pub(super) name: String,
    /// True for a member of an archive, which may name no further files.
    pub(super) sealed: bool,
    /// True for what was decompressed, which may not be compressed once more.
    pub(super) unpacked: bool,
    /// True for a file of a package, which may be no package itself.
    pub(super) nested: bool,
}

/// The images that were opened on the way to the present one, and where that way may go on.
pub(super) struct Chain<'a> {
    gate: &'a Gate,
    /// The directory of the image that the user named.
    home: PathBuf,
    /// Device and inode of each image so far.
    seen: Vec<(u64, u64)>,
    /// How many extents were opened.
    extents: usize,
    /// Who wants to know how far long work is.
    pub(super) progress: &'a dyn Progress,
}

impl<'a> Chain<'a> {
    /// Opens the image that the user named: a regular file or a block device, symbolic links followed.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened, [`Error::Usage`] if it is a directory or no file at all.
    pub(super) fn start(path: &Path, gate: &'a Gate) -> Result<(Self, Image)> {
        let name = path.display().to_string();
        let io = |e| Error::io(format!("opening {name}"), e);
        let full = path.canonicalize().map_err(io)?;
        let kind = full.metadata().map_err(io)?;
        if kind.is_dir() {
            return Err(Error::usage(format!("{name} is a directory"))
                .hint(format!("write dir:{name} to read the files in it as a machine")));
        }
        if !kind.is_file() && !kind.file_type().is_block_device() {
            return Err(Error::usage(format!(
                "{name} is neither a regular file nor a block device"
            )));
        }
        let home = full.parent().unwrap_or(Path::new("/")).to_path_buf();
        let image = open(gate, full, name)?;
        let chain = Self {
            gate,
            home,
            seen: vec![image.1],
            extents: 0,
            progress: &Silent,
        };
        Ok((chain, image.0))
    }

    /// A way that begins at another disk of the same machine, which lies in the same directory.
    pub(super) fn another(&self) -> Chain<'a> {
        Chain {
            gate: self.gate,
            home: self.home.clone(),
            seen: self.seen.get(..1).unwrap_or_default().to_vec(),
            extents: self.extents,
            progress: self.progress,
        }
    }

    /// Opens the file that `from` names as its `role` ("backing file"), `name` being the bytes in the image.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is no plain file name, or leads outside; [`Error::Io`] if it cannot be opened;
    /// [`Error::Corrupt`] for a cycle; [`Error::Unsupported`] if the chain is longer than [`MAX_CHAIN`].
    pub(super) fn follow(&mut self, from: &Image, role: &str, name: &[u8]) -> Result<Image> {
        let (image, id) = self.judged(from, role, name)?;
        if self.seen.len() >= MAX_CHAIN {
            return Err(Error::unsupported(format!(
                "{role} {:?} of {}: more than {MAX_CHAIN} images stand behind one another",
                String::from_utf8_lossy(name),
                from.name
            ))
            .hint("make one file of them with `qemu-img convert`, and use that"));
        }
        self.seen.push(id);
        Ok(image)
    }

    /// As [`Chain::follow`], for a file that holds a part of `from` itself.
    ///
    /// # Errors
    /// As [`Chain::follow`]; [`Error::Unsupported`] if there are more than [`MAX_EXTENTS`].
    pub(super) fn follow_extent(&mut self, from: &Image, role: &str, name: &[u8]) -> Result<Image> {
        self.extents += 1;
        if self.extents > MAX_EXTENTS {
            return Err(Error::unsupported(format!(
                "{}: more than {MAX_EXTENTS} files",
                from.name
            )));
        }
        self.judged(from, role, name).map(|(image, _)| image)
    }

    /// As [`Chain::follow`], for the first of `names` that leads to a file. Images carry the names of other systems
    /// (`C:\\vm\\base.vhd`, `/vmfs/volumes/1/base.vmdk`), so in the end the last part of each is looked for beside `from`.
    ///
    /// # Errors
    /// As [`Chain::follow`], that of the first name.
    pub(super) fn follow_any(&mut self, from: &Image, role: &str, names: &[Vec<u8>]) -> Result<Image> {
        let last = |name: &Vec<u8>| -> Vec<u8> {
            let parts = name.rsplit(|b| matches!(b, b'/' | b'\\'));
            parts.into_iter().next().unwrap_or_default().to_vec()
        };
        let beside: Vec<Vec<u8>> = names.iter().map(last).collect();
        let mut first = None;
        for name in names.iter().chain(&beside) {
            match self.follow(from, role, name) {
                Ok(image) => return Ok(image),
                Err(e) => first = first.or(Some(e)),
            }
        }
        Err(first.unwrap_or_else(|| Error::corrupt(format!("{}: no name of its {role}", from.name), 0)))
    }

    /// Opens the file that `from` names, if it may.
    fn judged(&self, from: &Image, role: &str, name: &[u8]) -> Result<(Image, (u64, u64))> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let refused = |why: &str| Error::refused(format!("{role} {shown:?} of {} {why}", from.name));
        if from.sealed {
            return Err(
                refused("is named by a member of an archive, which may name no files")
                    .hint("unpack the archive, and use the image inside"),
            );
        }
        if name.is_empty() || name.contains(&0) {
            return Err(refused("is no file name"));
        }
        if let Some(protocol) = protocol(name) {
            return Err(
                refused(&format!("is not a plain file name but uses {protocol:?}"))
                    .hint("make one file of it with `qemu-img convert`, and use that"),
            );
        }
        let named = Path::new(OsStr::from_bytes(name));
        let here = from.path.parent().unwrap_or(Path::new("/"));
        let joined = here.join(named);
        let allow = |dir: &Path| {
            format!(
                "if this image may be trusted with that file, add --allow-backing {}",
                dir.display()
            )
        };
        // Symbolic links are resolved without opening anything; then the place is judged; only then is it opened.
        let full = match joined.canonicalize() {
            Ok(full) => full,
            Err(e) => {
                // Whether a file outside exists is no business of an image: it is refused the same way.
                let dir = joined.parent().and_then(|d| d.canonicalize().ok());
                return Err(match (dir, joined.file_name()) {
                    (Some(dir), Some(file)) if self.inside(&dir.join(file)) => {
                        Error::io(format!("opening {role} {shown:?} of {}", from.name), e)
                    }
                    _ => refused(OUTSIDE).hint(allow(joined.parent().unwrap_or(here))),
                });
            }
        };
        let dir = full.parent().unwrap_or(Path::new("/"));
        if !self.inside(&full) {
            return Err(refused(OUTSIDE).hint(allow(dir)));
        }
        let special = ["/proc", "/sys", "/dev"].iter().any(|d| full.starts_with(d));
        let regular = full.symlink_metadata().is_ok_and(|m| m.is_file());
        if (special && !full.starts_with("/dev/shm")) || !regular {
            return Err(refused("is not a regular file"));
        }
        let (image, id) = open(self.gate, full, shown.clone())?;
        if self.seen.contains(&id) {
            return Err(Error::corrupt(
                format!(
                    "{role} {shown:?} of {} leads back to an image before it",
                    from.name
                ),
                0,
            ));
        }
        Ok((image, id))
    }

    /// True if the canonical path `path` lies below the image's directory or one that the user allowed. Hidden files and
    /// directories below the image's own are none of its business: an image in a home directory may not name keys.
    fn inside(&self, path: &Path) -> bool {
        let hidden = |below: &Path| below.iter().any(|part| part.as_bytes().starts_with(b"."));
        let own = path.strip_prefix(&self.home).is_ok_and(|below| {
            let alone = self.home.parent().is_some() || below.parent() == Some(Path::new(""));
            alone && !hidden(below)
        });
        own || self.gate.allowed.iter().any(|a| path.starts_with(a))
    }
}

/// Opens the canonical path `full`; its last part is not followed should it be a symbolic link by now.
fn open(gate: &Gate, full: PathBuf, name: String) -> Result<(Image, (u64, u64))> {
    let io = |e: std::io::Error| Error::io(format!("opening {name}"), e);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: std::fs::File = rustix::fs::open(&full, flags, Mode::empty())
        .map_err(|e| io(e.into()))?
        .into();
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() && !meta.file_type().is_block_device() {
        return Err(Error::refused(format!("{name} is not a regular file")));
    }
    gate.note(&meta);
    let id = (meta.dev(), meta.ino());
    let file = HostFile::from_file(file, name.clone())?;
    Ok((
        Image {
            file: Arc::new(file),
            path: full,
            name,
            sealed: false,
            unpacked: false,
            nested: false,
        },
        id,
    ))
}

/// The prefix that makes a file name a URL or another special form to qemu: what stands before a `:` that comes before
/// any `/`, as in `nbd://host`, `json:{...}`, `file:x`.
fn protocol(name: &[u8]) -> Option<String> {
    let end = name.iter().position(|b| *b == b':' || *b == b'/')?;
    let (prefix, rest) = name.split_at(end);
    rest.starts_with(b":")
        .then(|| format!("{}:", String::from_utf8_lossy(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_what_stands_before_a_colon() {
        assert_eq!(protocol(b"nbd://host/x").as_deref(), Some("nbd:"));
        assert_eq!(protocol(b"json:{\"driver\":\"raw\"}").as_deref(), Some("json:"));
        assert_eq!(protocol(b"file:base.qcow2").as_deref(), Some("file:"));
        assert_eq!(protocol(b"./a:b"), None);
        assert_eq!(protocol(b"/a/b:c"), None);
        assert_eq!(protocol(b"base.qcow2"), None);
    }
}
