//! `ReadAt`: a fixed number of bytes that many threads may read at any offset, with its holes known.
//!
//! Disk formats, partitions, volumes, filesystems' files: each is `ReadAt -> ReadAt`, so they stack in any order.

use crate::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A run of bytes that is all data or all hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// True if the bytes are zeros that need no reading.
    pub hole: bool,
    /// Length in bytes from the offset that was asked for; never 0 before the end.
    pub len: u64,
}

/// Bytes that can be read at any offset by many threads at once.
pub trait ReadAt: Send + Sync {
    /// Length in bytes. It never changes.
    fn len(&self) -> u64;

    /// True if there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the whole of `buf` from byte `offset`, holes with zeros.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the range is not inside `0..len()`, and whatever reading runs into.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// What begins at `offset`: a hole or data, and for how many bytes at least. Neighbouring runs of one kind may be
    /// told apart. At or behind the end: a hole of length 0. It only looks at tables, never at the data itself.
    ///
    /// # Errors
    /// Whatever reading the tables runs into.
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent {
            hole: offset >= self.len(),
            len: self.len().saturating_sub(offset),
        })
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buf)
    }
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        (**self).extent_at(offset)
    }
}

/// `Ok` if `len` bytes at `offset` lie inside `total` bytes of `what`.
///
/// # Errors
/// [`Error::Corrupt`] otherwise.
pub fn check_range(what: &str, total: u64, offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= total => Ok(()),
        _ => Err(Error::corrupt(
            format!("{what} ends at byte {total}, {len} bytes more were needed"),
            offset,
        )),
    }
}

/// Reads `len` bytes at `offset` into a new buffer, after checking that they exist.
///
/// # Errors
/// As [`ReadAt::read_at`].
pub fn read_vec(from: &dyn ReadAt, offset: u64, len: usize) -> Result<Vec<u8>> {
    check_range("the data", from.len(), offset, len)?;
    let mut buf = vec![0; len];
    from.read_at(offset, &mut buf)?;
    Ok(buf)
}

/// The whole content, if it is at most `limit` bytes.
///
/// # Errors
/// [`Error::Unsupported`] if it is longer, else as [`ReadAt::read_at`].
pub fn read_all(from: &dyn ReadAt, limit: u64) -> Result<Vec<u8>> {
    let len = from.len();
    if len > limit {
        return Err(Error::unsupported(format!(
            "a file of {len} bytes where at most {limit} make sense"
        )));
    }
    let len = usize::try_from(len).map_err(|_| Error::unsupported("a file larger than memory"))?;
    read_vec(from, 0, len)
}

/// A file or block device of the host.
pub struct HostFile {
    file: File,
    len: u64,
    name: String,
}

impl HostFile {
    /// Opens `path` for reading. The length of a block device is found by seeking.
    ///
    /// # Errors
    /// [`Error::Io`] naming the path.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(format!("opening {name}"), e))?;
        Self::from_file(file, name)
    }

    /// Takes over an open file; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Io`] if its length cannot be found.
    pub fn from_file(file: File, name: String) -> Result<Self> {
        let len = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|e| Error::io(format!("finding the length of {name}"), e.into()))?;
        Ok(Self { file, len, name })
    }
}

impl ReadAt for HostFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(&self.name, self.len, offset, buf.len())?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| Error::io(format!("reading {}", self.name), e))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        let rest = self.len.saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { hole: true, len: 0 });
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(Extent {
                hole: true,
                len: rest.min(data - offset),
            }),
            Ok(_) => {
                let hole = seek(&self.file, SeekFrom::Hole(offset)).unwrap_or(self.len);
                Ok(Extent {
                    hole: false,
                    len: hole.saturating_sub(offset).clamp(1, rest),
                })
            }
            Err(Errno::NXIO) => Ok(Extent {
                hole: true,
                len: rest,
            }),
            Err(_) => Ok(Extent {
                hole: false,
                len: rest,
            }),
        }
    }
}

/// A window on another `ReadAt`: a partition, a linear segment of a volume.
pub struct Slice {
    inner: Arc<dyn ReadAt>,
    start: u64,
    len: u64,
}

impl Slice {
    /// `len` bytes of `inner` from byte `start`, cut where `inner` ends.
    pub fn new(inner: Arc<dyn ReadAt>, start: u64, len: u64) -> Self {
        let len = len.min(inner.len().saturating_sub(start));
        Self { inner, start, len }
    }
}

impl ReadAt for Slice {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the partition", self.len, offset, buf.len())?;
        self.inner.read_at(self.start.saturating_add(offset), buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.len.saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { hole: true, len: 0 });
        }
        let extent = self.inner.extent_at(self.start.saturating_add(offset))?;
        Ok(Extent {
            hole: extent.hole,
            len: extent.len.min(rest),
        })
    }
}

/// Bytes in memory: inline files, symlink targets, tests.
impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the data", ReadAt::len(self), offset, buf.len())?;
        let from = usize::try_from(offset)
            .ok()
            .and_then(|o| crate::bytes::slice(self, o, buf.len()));
        buf.copy_from_slice(from.ok_or_else(|| Error::corrupt("a range outside memory", offset))?);
        Ok(())
    }
}

/// Reads a [`ReadAt`] from its beginning as a stream; holes are filled with zeros without being read.
pub struct Stream<'a> {
    from: &'a dyn ReadAt,
    at: u64,
}

impl<'a> Stream<'a> {
    /// A stream that begins at byte 0.
    pub fn new(from: &'a dyn ReadAt) -> Self {
        Self { from, at: 0 }
    }
}

impl std::io::Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let extent = self.from.extent_at(self.at).map_err(std::io::Error::other)?;
        let n = usize::try_from(extent.len).unwrap_or(usize::MAX).min(buf.len());
        let Some(part) = buf.get_mut(..n) else {
            return Ok(0);
        };
        if extent.hole {
            part.fill(0);
        } else {
            self.from.read_at(self.at, part).map_err(std::io::Error::other)?;
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn host_file_knows_its_holes_and_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.seek(std::io::SeekFrom::Start(512 << 10)).unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let host = HostFile::from_file(file, "t".into()).unwrap();
        assert_eq!(host.len(), 1 << 20);
        assert_eq!(
            host.extent_at(0).unwrap(),
            Extent {
                hole: true,
                len: 512 << 10
            }
        );
        assert!(!host.extent_at(512 << 10).unwrap().hole);
        assert_eq!(host.extent_at(1 << 20).unwrap().len, 0);
        let mut buf = [0; 8];
        host.read_at((512 << 10) - 4, &mut buf).unwrap();
        assert_eq!(buf, [0, 0, 0, 0, 7, 7, 7, 7]);
        assert!(matches!(
            host.read_at((1 << 20) - 4, &mut buf),
            Err(Error::Corrupt { .. })
        ));
        assert!(matches!(
            host.read_at(u64::MAX, &mut buf),
            Err(Error::Corrupt { .. })
        ));
        let mut all = Vec::new();
        Stream::new(&host).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 1 << 20);
        assert_eq!(all.iter().filter(|b| **b == 7).count(), 4096);
    }

    #[test]
    fn a_slice_is_cut_at_the_end_of_its_disk() {
        let disk: Arc<dyn ReadAt> = Arc::new((0..=99u8).collect::<Vec<u8>>());
        let part = Slice::new(Arc::clone(&disk), 90, 50);
        assert_eq!(part.len(), 10);
        assert_eq!(read_all(&part, 10).unwrap(), (90..=99u8).collect::<Vec<u8>>());
        assert!(read_all(&part, 9).is_err());
        assert_eq!(Slice::new(disk, 200, 5).len(), 0);
    }
}
