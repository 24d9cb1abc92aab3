//! A file that appears whole or not at all: written beside its name, synced, renamed.

use crate::error::{Error, Result};
use crate::scratch::{self, EarlySync, SYNC_EVERY, Scratch};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file on its way to its name. Dropped before [`Durable::finish`] it leaves nothing.
pub(crate) struct Durable {
    file: File,
    /// `None` for a file that shall never have a name.
    scratch: Option<Scratch>,
    target: PathBuf,
    written: u64,
    early: Option<EarlySync>,
}

impl Durable {
    /// Begins the file that shall be `target`. Leftovers of killed runs with the same target are removed.
    ///
    /// # Errors
    /// [`Error::Usage`] if `target` exists and is no regular file, [`Error::Io`] if its directory cannot be written.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        if target.file_name().is_none() || target.metadata().is_ok_and(|m| !m.is_file()) {
            return Err(Error::usage(format!(
                "{} is no regular file and cannot be written whole or not at all",
                target.display()
            )));
        }
        scratch::remove_leftovers(target);
        let scratch = Scratch::beside(target);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(scratch.path())
            .map_err(|e| Error::io(format!("writing {}", target.display()), e))?;
        Ok(Self {
            file,
            scratch: Some(scratch),
            target: target.to_owned(),
            written: 0,
            early: None,
        })
    }

    /// Writes to `file`, which is empty, has no name and is never synced; `shown` is what errors call it.
    pub(crate) fn unnamed(file: File, shown: &Path) -> Self {
        Self {
            file,
            scratch: None,
            target: shown.to_owned(),
            written: 0,
            early: None,
        }
    }

    /// The file of [`Durable::unnamed`].
    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// As [`Durable::create`], with the bytes of `from` by a hard link; `None` where that cannot be.
    pub(crate) fn link(from: &Path, target: &Path) -> Option<Self> {
        let scratch = Scratch::beside(target);
        std::fs::hard_link(from, scratch.path()).ok()?;
        let file = File::open(scratch.path()).ok()?;
        let written = file.metadata().ok()?.len();
        Some(Self {
            file,
            scratch: Some(scratch),
            target: target.to_owned(),
            written,
            early: None,
        })
    }

    /// The error for a failed write, naming what the user asked for.
    pub(crate) fn failed(&self, e: std::io::Error) -> Error {
        Error::from_io(format!("writing {}", self.target.display()), e)
    }

    /// Bytes written so far: where the next ones go.
    pub(crate) fn position(&self) -> u64 {
        self.written
    }

    /// The file, for writes at an offset. They do not move [`Durable::position`].
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes all of `from`.
    pub(crate) fn copy(&mut self, from: &mut dyn Read) -> Result<u64> {
        let mut buf = vec![0; 256 << 10];
        let mut total = 0;
        loop {
            match from.read(&mut buf) {
                Ok(0) => return Ok(total),
                Ok(n) => {
                    let part = buf.get(..n).unwrap_or_default();
                    self.put(part)?;
                    total += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Error::from_io(
                        format!("reading for {}", self.target.display()),
                        e,
                    ));
                }
            }
        }
    }

    /// Writes the first `len` bytes of `from` by the kernel's own copying, which shares blocks where the filesystem can.
    pub(crate) fn copy_file(&mut self, from: &File, len: u64) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let part = left.min(SYNC_EVERY);
            let done = std::io::copy(&mut from.take(part), &mut self.file).map_err(|e| self.failed(e))?;
            if done != part {
                return Err(self.failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            left -= part;
            self.count(part);
        }
        Ok(())
    }

    /// Writes `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| self.failed(e))?;
        self.count(bytes.len() as u64);
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.written += bytes;
        if self.early.is_none() && self.scratch.is_some() && self.written >= SYNC_EVERY {
            self.early = EarlySync::start(&self.file);
        }
        if let Some(early) = &mut self.early {
            early.count(bytes);
        }
    }

    /// Syncs the file, gives it its name and syncs the directory.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.sync()?;
        let dir = parent(&self.target);
        let written = self.rename()?;
        sync_dir(&dir)?;
        Ok(written)
    }

    /// Syncs the file.
    fn sync(&mut self) -> Result<()> {
        if let Some(early) = self.early.take() {
            early.finish().map_err(|e| self.failed(e))?;
        }
        self.file.sync_all().map_err(|e| self.failed(e))
    }

    /// Gives the file its name, which is durable when its directory is synced.
    fn rename(self) -> Result<u64> {
        let Some(scratch) = &self.scratch else {
            return Ok(self.written);
        };
        std::fs::rename(scratch.path(), &self.target).map_err(|e| self.failed(e))?;
        let Self { scratch, written, .. } = self;
        scratch.into_iter().for_each(Scratch::keep);
        Ok(written)
    }

    /// Syncs all files and gives them their names; their directories are not synced yet. The files are synced side by side,
    /// because filesystems make one commit of what is asked for at the same time.
    pub(crate) fn finish_all(files: Vec<Self>) -> Result<()> {
        let synced: Vec<Result<Self>> = std::thread::scope(|scope| {
            let sync = |mut file: Self| move || file.sync().map(|()| file);
            let threads: Vec<_> = files.into_iter().map(|file| scope.spawn(sync(file))).collect();
            let failed = || Err(Error::unsupported("a syncing thread failed"));
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| failed()))
                .collect()
        });
        for file in synced.into_iter().collect::<Result<Vec<Self>>>()? {
            file.rename()?;
        }
        Ok(())
    }
}

/// The directory that `path` is in.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes the names in `dir` durable. Filesystems that cannot sync a directory are left alone.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    match File::open(dir).and_then(|d| d.sync_all()) {
        Err(e) if e.kind() != std::io::ErrorKind::InvalidInput => {
            Err(Error::io(format!("syncing {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}
