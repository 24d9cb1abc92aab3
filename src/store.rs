//! The store: blobs named by their sha256, and small values that can be computed again.
//!
//! ```text
//! DIR/blobs/sha256/<hex>     a blob, mode 0444
//! DIR/cache/<kind>/<hex>     blake3 of what follows, then the value
//! DIR/tmp/<pid>-<n>          a blob being written, locked by its writer
//! DIR/contents/<host>/       contents of running hosts (source::host)
//! ```
//!
//! Nothing here is ever synced: a name appears by rename, and whatever is read is checked against its digest, so that a
//! file torn by a power cut is found, removed and made again. Any number of processes may use one store.

pub use crate::digest::{Digest, Verified};

use crate::digest::mismatch;
use crate::error::{Error, Result};
use sha2::Digest as _;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A directory of blobs and cached values; see the module.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Blobs that this process has read to their end or written, with what stat(2) said of them then.
    verified: Mutex<HashMap<Digest, Stamp>>,
}

/// What changes when somebody else writes a file: device, inode, size, mtime in seconds and ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, u64, i64, i64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(dev, ino, size, sec, nsec) = self;
        write!(f, "{dev} {ino} {size} {sec} {nsec}")
    }
}

/// The cache of stamps of blobs that were whole. What was written and not synced may be lost when the system goes down,
/// so a stamp counts only until the next start of the system.
const WHOLE: &str = "whole-1";

/// The kernel's name for the time since this system was started (random(4), boot_id).
fn boot() -> Option<&'static str> {
    static BOOT: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned())
    });
    BOOT.as_deref()
}

impl Stamp {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let mut next = || parts.next();
        Some(Self(
            next()?.parse().ok()?,
            next()?.parse().ok()?,
            next()?.parse().ok()?,
            next()?.parse().ok()?,
            next()?.parse().ok()?,
        ))
    }

    fn of(meta: &std::fs::Metadata) -> Self {
        Self(
            meta.dev(),
            meta.ino(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
        )
    }
}

/// How old a temporary must be before it is removed although a process with its number lives: process numbers are reused.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Adds the advice that fits a store that cannot be written.
fn unwritable(error: Error) -> Error {
    error.hint("name a directory that can be written and has room with --store DIR or VM2K_STORE")
}

impl Store {
    /// `VM2K_STORE`, else `~/.local/share/vm2k`; `None` if there is no home either.
    pub fn default_dir() -> Option<PathBuf> {
        match std::env::var_os("VM2K_STORE") {
            Some(dir) if !dir.is_empty() => Some(dir.into()),
            _ => Some(
                std::env::home_dir()
                    .filter(|h| !h.as_os_str().is_empty())?
                    .join(".local/share/vm2k"),
            ),
        }
    }

    /// Opens the store in `dir`, which is made if it is missing, and removes what dead processes left half-written.
    ///
    /// # Errors
    /// [`Error::Io`] with a hint if the directory cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        for sub in ["blobs/sha256", "cache", "tmp"] {
            let path = dir.join(sub);
            if !path.is_dir() {
                std::fs::create_dir_all(&path)
                    .map_err(|e| unwritable(Error::io(format!("making {}", path.display()), e)))?;
            }
        }
        let store = Self {
            dir: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()),
            verified: Mutex::default(),
        };
        store.remove_leftovers();
        Ok(store)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Where the blob lies if the store has it.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// True if the blob is there. Whether it is whole is seen when it is read.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Opens a blob for reading; the reader checks digest and, if given, size, and removes the blob if they are wrong.
    /// `None` if it is not there or has another size.
    ///
    /// # Errors
    /// [`Error::Io`] if it is there and cannot be opened.
    pub fn open_blob(&self, digest: &Digest, size: Option<u64>) -> Result<Option<Verified<File>>> {
        let path = self.blob_path(digest);
        let what = || format!("opening {}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(what(), e)),
        };
        let len = file.metadata().map_err(|e| Error::io(what(), e))?.len();
        if size.is_some_and(|size| size != len) {
            self.remove_blob(digest);
            return Ok(None);
        }
        Ok(Some(Verified::new(file, *digest, len).removing(path)))
    }

    /// A small blob as a whole, checked; `None` if it is missing, damaged or longer than `limit` bytes.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        let mut reader = self.open_blob(digest, None).ok()??;
        if reader.left() > limit {
            return None;
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Puts `bytes` into the store.
    ///
    /// # Errors
    /// As [`Store::writer`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(|e| writer.failed(e))?;
        writer.finish()?;
        Ok(digest)
    }

    /// True if the blob is there and whole: read and hashed now, unless that was done since the system was started and
    /// nobody wrote to it since. A damaged one is removed.
    pub fn verify(&self, digest: &Digest, size: u64) -> bool {
        if self.is_known_whole(digest) {
            return true;
        }
        let stamp = self.blob_path(digest).metadata().ok().map(|m| Stamp::of(&m));
        let Ok(Some(reader)) = self.open_blob(digest, Some(size)) else {
            return false;
        };
        let whole = reader.finish().is_ok();
        if let (true, Some(stamp)) = (whole, stamp) {
            self.remember(digest, stamp);
        }
        whole
    }

    /// True if the blob was found whole, or was written, since the system was started, and nobody wrote to it since.
    pub fn is_known_whole(&self, digest: &Digest) -> bool {
        let stamp = self.blob_path(digest).metadata().ok().map(|m| Stamp::of(&m));
        stamp.is_some() && stamp == self.known(digest)
    }

    /// Removes a blob, if it is there.
    pub fn remove_blob(&self, digest: &Digest) {
        let _ = std::fs::remove_file(self.blob_path(digest));
    }

    fn known(&self, digest: &Digest) -> Option<Stamp> {
        let verified = self
            .verified
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(stamp) = verified.get(digest) {
            return Some(*stamp);
        }
        let value = self.cache_get(WHOLE, &format!("{} {}", boot()?, digest.hex()))?;
        Stamp::parse(std::str::from_utf8(&value).ok()?)
    }

    fn remember(&self, digest: &Digest, stamp: Stamp) {
        if let Some(boot) = boot() {
            let _ = self.cache_put(
                WHOLE,
                &format!("{boot} {}", digest.hex()),
                stamp.to_string().as_bytes(),
            );
        }
        let mut verified = self
            .verified
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        verified.insert(*digest, stamp);
    }

    /// Begins a blob: bytes are hashed as they are written, [`BlobWriter::finish`] gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`] with a hint if the store cannot be written.
    pub fn writer(&self) -> Result<BlobWriter<'_>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let pid = std::process::id();
        let scratch = crate::scratch::Scratch::new(
            self.tmp()
                .join(format!("{pid}-{}", NEXT.fetch_add(1, Ordering::Relaxed))),
        );
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(scratch.path())
            .map_err(|e| unwritable(Error::io(format!("making {}", scratch.path().display()), e)))?;
        // The lock tells other processes, of other process-number namespaces too, that somebody still writes.
        let _ = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        Ok(BlobWriter {
            store: self,
            scratch,
            file,
            hasher: sha2::Sha256::new(),
            size: 0,
            early: None,
        })
    }

    /// A temporary file without a name on the store's filesystem.
    ///
    /// # Errors
    /// [`Error::Io`] with a hint if the store cannot be written.
    pub fn temporary(&self) -> Result<File> {
        tempfile::tempfile_in(self.tmp())
            .map_err(|e| unwritable(Error::io(format!("making a file in {}", self.tmp().display()), e)))
    }

    /// An error of writing a temporary or a blob, with the advice that helps.
    pub fn write_failed(&self, e: std::io::Error) -> Error {
        unwritable(Error::from_io(format!("writing to {}", self.dir.display()), e))
    }

    fn cache_path(&self, kind: &str, key: &str) -> PathBuf {
        let name = blake3::hash(key.as_bytes()).to_hex();
        self.dir.join("cache").join(kind).join(name.as_str())
    }

    /// The hash that stands before a cached value: over kind, key and value, so that no file can stand for another.
    fn seal(kind: &str, key: &str, value: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for part in [kind.as_bytes(), key.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        *hasher.update(value).finalize().as_bytes()
    }

    /// The value that was put under `kind` (a plain file name) and `key` (anything); `None` if there is none or it is
    /// damaged.
    pub fn cache_get(&self, kind: &str, key: &str) -> Option<Vec<u8>> {
        let path = self.cache_path(kind, key);
        let mut bytes = std::fs::read(&path).ok()?;
        let whole = bytes
            .split_first_chunk::<32>()
            .is_some_and(|(seal, value)| *seal == Self::seal(kind, key, value));
        if !whole {
            let _ = std::fs::remove_file(path);
            return None;
        }
        bytes.drain(..32);
        Some(bytes)
    }

    /// Keeps `value` under `kind` (a plain file name) and `key` (anything), in place of what was there.
    ///
    /// # Errors
    /// [`Error::Io`] with a hint if the store cannot be written. A caller that can do without a cache may ignore it.
    pub fn cache_put(&self, kind: &str, key: &str, value: &[u8]) -> Result<()> {
        let path = self.cache_path(kind, key);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| self.write_failed(e))?;
        }
        let mut writer = self.writer()?;
        for part in [&Self::seal(kind, key, value)[..], value] {
            writer.file.write_all(part).map_err(|e| writer.failed(e))?;
        }
        std::fs::rename(writer.scratch.path(), &path).map_err(|e| self.write_failed(e))?;
        writer.scratch.keep();
        Ok(())
    }

    /// Removes what dead writers left. A writer holds a lock on its file; one that is not locked belongs to nobody if its
    /// process is gone too, or if it is a day old.
    fn remove_leftovers(&self) {
        for entry in std::fs::read_dir(self.tmp()).into_iter().flatten().flatten() {
            let owner = entry
                .file_name()
                .to_str()
                .and_then(|name| name.split('-').next()?.parse::<i32>().ok());
            let old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > STALE));
            if owner.is_some_and(crate::scratch::is_alive) && !old {
                continue;
            }
            let path = entry.path();
            let locked = File::open(&path).is_ok_and(|file| {
                rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
            });
            if !locked {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// A blob on its way into the store. Dropped before [`BlobWriter::finish`] it leaves nothing.
pub struct BlobWriter<'a> {
    store: &'a Store,
    scratch: crate::scratch::Scratch,
    file: File,
    hasher: sha2::Sha256,
    size: u64,
    early: Option<crate::scratch::EarlySync>,
}

impl BlobWriter<'_> {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of the bytes written so far.
    pub fn digest(&self) -> Digest {
        Digest::from_hasher(self.hasher.clone())
    }

    /// Lets the disk begin before the last byte is written. The store needs no sync, but an output that links to the blob
    /// does, and would wait for it in the end.
    pub fn sync_early(&mut self) {
        self.early = crate::scratch::EarlySync::start(&self.file);
    }

    /// Forgets all that was written, for a transfer that begins again.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be cut.
    pub fn restart(&mut self) -> Result<()> {
        use std::io::Seek;
        self.file.set_len(0).map_err(|e| self.failed(e))?;
        self.file.rewind().map_err(|e| self.failed(e))?;
        self.hasher = sha2::Sha256::new();
        self.size = 0;
        Ok(())
    }

    /// An error of writing, with the advice that helps.
    pub fn failed(&self, e: std::io::Error) -> Error {
        self.store.write_failed(e)
    }

    /// Gives the blob its name and returns digest and size in bytes. If the store has it already, and whole, what was
    /// written is dropped.
    ///
    /// # Errors
    /// [`Error::Io`] with a hint.
    pub fn finish(self) -> Result<(Digest, u64)> {
        let digest = Digest::from_hasher(self.hasher);
        let target = self.store.blob_path(&digest);
        if target.exists() && self.store.verify(&digest, self.size) {
            return Ok((digest, self.size));
        }
        self.file
            .set_permissions(std::fs::Permissions::from_mode(0o444))
            .and_then(|()| std::fs::rename(self.scratch.path(), &target))
            .map_err(|e| self.store.write_failed(e))?;
        self.scratch.keep();
        if let Ok(meta) = self.file.metadata() {
            self.store.remember(&digest, Stamp::of(&meta));
        }
        Ok((digest, self.size))
    }

    /// [`BlobWriter::finish`] for a blob whose digest and size were promised.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the promise is broken; then nothing is kept.
    pub fn finish_as(self, digest: &Digest, size: u64) -> Result<()> {
        let found = self.digest();
        if found != *digest || self.size != size {
            return Err(mismatch(digest, size, &found, self.size));
        }
        self.finish().map(|_| ())
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(buf)?;
        if let Some(part) = buf.get(..n) {
            self.hasher.update(part);
        }
        self.size += n as u64;
        if let Some(early) = &mut self.early {
            early.count(n as u64);
        }
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s")).unwrap();
        (dir, store)
    }

    #[test]
    fn a_blob_goes_in_and_comes_out() {
        let (_dir, store) = store();
        let digest = store.put(b"hello").unwrap();
        assert!(store.has(&digest) && store.verify(&digest, 5));
        assert_eq!(store.read_blob(&digest, 100).unwrap(), b"hello");
        assert_eq!(store.read_blob(&digest, 4), None);
        let mode = store.blob_path(&digest).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o444);
        assert_eq!(store.put(b"hello").unwrap(), digest);
        assert_eq!(std::fs::read_dir(store.tmp()).unwrap().count(), 0);
        assert!(matches!(
            store.writer().unwrap().finish_as(&digest, 5),
            Err(Error::Corrupt { .. })
        ));
        assert_eq!(std::fs::read_dir(store.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_blob_is_noticed_removed_and_replaced() {
        let (_dir, store) = store();
        let digest = store.put(b"hello").unwrap();
        let path = store.blob_path(&digest);
        let damage = |bytes: &[u8]| {
            // A file's times move in steps of some milliseconds.
            std::thread::sleep(Duration::from_millis(20));
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
        };
        damage(b"hellO");
        let mut bytes = Vec::new();
        let mut reader = store.open_blob(&digest, Some(5)).unwrap().unwrap();
        let e = Error::from_io("", reader.read_to_end(&mut bytes).unwrap_err());
        assert!(matches!(e, Error::Corrupt { .. }), "{e}");
        assert!(!store.has(&digest));
        store.put(b"hello").unwrap();
        damage(b"hell");
        assert!(store.open_blob(&digest, Some(5)).unwrap().is_none());
        store.put(b"hello").unwrap();
        damage(b"jello");
        store.put(b"hello").unwrap();
        assert_eq!(store.read_blob(&digest, 100).unwrap(), b"hello");
    }

    #[test]
    fn cached_values_are_checked() {
        let (_dir, store) = store();
        assert_eq!(store.cache_get("k", "a"), None);
        store.cache_put("k", "a", b"1").unwrap();
        store.cache_put("k", "a", b"2").unwrap();
        assert_eq!(store.cache_get("k", "a").unwrap(), b"2");
        assert_eq!(store.cache_get("k", "b"), None);
        let path = store.cache_path("k", "a");
        std::fs::create_dir_all(store.cache_path("l", "a").parent().unwrap()).unwrap();
        std::fs::copy(&path, store.cache_path("l", "a")).unwrap();
        assert_eq!(store.cache_get("l", "a"), None);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(store.cache_get("k", "a"), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(store.cache_get("k", "a"), None);
        assert!(!path.exists());
    }

    #[test]
    fn leftovers_go_and_living_writers_stay() {
        let (_dir, store) = store();
        let mut writer = store.writer().unwrap();
        writer.write_all(b"x").unwrap();
        let dead = store.tmp().join("999999999-0");
        std::fs::write(&dead, "y").unwrap();
        let again = Store::open(store.dir()).unwrap();
        assert!(!dead.exists());
        let (digest, size) = writer.finish().unwrap();
        assert_eq!(size, 1);
        assert!(again.has(&digest));
    }

    #[test]
    fn a_store_that_cannot_be_written_says_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let e = Store::open(&file).unwrap_err();
        assert!(matches!(&e, Error::Hinted { hint, .. } if hint.contains("--store")));
    }
}
