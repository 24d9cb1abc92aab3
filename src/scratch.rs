//! Temporary files and directories that have a name: gone when their owner fails, and gone when a signal ends the program.
//!
//! Every temporary that stands beside an output is registered here. Its [`Scratch`] removes it on drop; the signal
//! handler calls [`remove_all`] before the process ends. What is temporary elsewhere, as a tag in an engine, is a [`Cleanup`].

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is registered, by number.
static REGISTRY: Mutex<BTreeMap<u64, PathBuf>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file or directory that is removed when this is dropped, unless [`Scratch::keep`] was called.
#[derive(Debug)]
pub struct Scratch {
    id: u64,
    path: PathBuf,
}

impl Scratch {
    /// Registers `path`, which need not exist yet. What is there in the end is removed, a directory with all in it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        registry().insert(id, path.clone());
        Self { id, path }
    }

    /// A name beside `target` that no other process and no other call uses, registered. It is hidden and says whose it is:
    /// `.NAME.vm2k-PID-N`.
    pub fn beside(target: &Path) -> Self {
        let name = target.file_name().unwrap_or(target.as_os_str());
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(
            ".vm2k-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        Self::new(target.with_file_name(hidden))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It is no longer temporary: it has got its final name, or shall stay.
    pub fn keep(self) {
        registry().remove(&self.id);
        std::mem::forget(self);
    }
}

/// Work that undoes something temporary outside the filesystem: done when this is dropped, or when a signal ends the program.
pub struct Cleanup {
    id: u64,
}

type Work = Box<dyn FnOnce() + Send>;

/// What is to be undone, by number.
static CLEANUPS: Mutex<BTreeMap<u64, Work>> = Mutex::new(BTreeMap::new());
/// How many of them are being undone where they were dropped.
static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The longest wait for those.
const WAIT: Duration = Duration::from_secs(10);
/// True once a signal ends the program.
static ENDING: AtomicBool = AtomicBool::new(false);

impl Cleanup {
    /// Registers `work`. It must come to its end by itself, within seconds.
    pub fn new(work: impl FnOnce() + Send + 'static) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        cleanups().insert(id, Box::new(work));
        Self { id }
    }

    /// There is nothing to undo any more.
    pub fn keep(self) {
        cleanups().remove(&self.id);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let work = {
            let mut all = cleanups();
            if is_ending() {
                // The one that ends the program does it, and waits for it.
                return;
            }
            RUNNING.fetch_add(1, Ordering::SeqCst);
            all.remove(&self.id)
        };
        if let Some(work) = work {
            work();
        }
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

fn cleanups() -> std::sync::MutexGuard<'static, BTreeMap<u64, Work>> {
    CLEANUPS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// True once a signal ends the program.
pub fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Returns at once, unless a signal is ending the program: then it never does. What fails because its temporaries are
/// taken away must not end the process with a code of its own.
pub fn wait_if_ending() {
    while is_ending() {
        std::thread::park();
    }
}

/// After so many bytes the disk is told to begin, so that the sync in the end has little left to wait for.
pub(crate) const SYNC_EVERY: u64 = 64 << 20;

/// Syncs a file while it is still being written.
#[derive(Debug)]
pub(crate) struct EarlySync {
    unsynced: u64,
    ping: mpsc::Sender<()>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl EarlySync {
    /// Starts the thread that syncs `file`; `None` is no error, the last sync is enough.
    pub(crate) fn start(file: &File) -> Option<Self> {
        let file = file.try_clone().ok()?;
        let (ping, pings) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || {
                while pings.recv().is_ok() {
                    while pings.try_recv().is_ok() {}
                    file.sync_data()?;
                }
                Ok(())
            })
            .ok()?;
        Some(Self {
            unsynced: 0,
            ping,
            thread,
        })
    }

    /// `bytes` more were written.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.unsynced += bytes;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            let _ = self.ping.send(());
        }
    }

    /// Waits for the thread.
    ///
    /// # Errors
    /// That of a sync that failed.
    pub(crate) fn finish(self) -> std::io::Result<()> {
        drop(self.ping);
        self.thread.join().unwrap_or(Ok(()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
        registry().remove(&self.id);
    }
}

/// Removes all that is registered: for the last moment of a process that was interrupted.
pub fn remove_all() {
    ENDING.store(true, Ordering::SeqCst);
    // The latest first: a container goes before its image. Nobody waits for the lock meanwhile.
    loop {
        let last = cleanups().pop_last();
        match last {
            Some((_, work)) => work(),
            None => break,
        }
    }
    let end = Instant::now() + WAIT;
    while RUNNING.load(Ordering::SeqCst) > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut all = registry();
    for path in all.values() {
        remove(path);
    }
    all.clear();
}

fn registry() -> std::sync::MutexGuard<'static, BTreeMap<u64, PathBuf>> {
    REGISTRY.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn remove(path: &Path) {
    if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        let _ = std::fs::remove_dir_all(path);
    } else {
        let _ = std::fs::remove_file(path);
    }
}

/// Removes temporaries of [`Scratch::beside`] for `target` whose process is gone: left by a kill or a power cut.
pub fn remove_leftovers(target: &Path) {
    let (Some(dir), Some(name)) = (target.parent(), target.file_name()) else {
        return;
    };
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let mut prefix = b".".to_vec();
    prefix.extend_from_slice(name.as_encoded_bytes());
    prefix.extend_from_slice(b".vm2k-");
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let owner = file
            .as_encoded_bytes()
            .strip_prefix(prefix.as_slice())
            .and_then(|rest| std::str::from_utf8(rest).ok())
            .and_then(|rest| rest.split('-').next()?.parse::<i32>().ok());
        if owner.is_some_and(|pid| !is_alive(pid)) {
            remove(&entry.path());
        }
    }
}

/// True if a process with this number exists, as far as this process can see.
pub(crate) fn is_alive(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return false;
    };
    !matches!(
        rustix::process::test_kill_process(pid),
        Err(rustix::io::Errno::SRCH)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_is_gone_and_kept_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.tar");
        let a = Scratch::beside(&target);
        let b = Scratch::beside(&target);
        assert_ne!(a.path(), b.path());
        std::fs::write(a.path(), "a").unwrap();
        std::fs::create_dir(b.path()).unwrap();
        std::fs::write(b.path().join("in"), "b").unwrap();
        let (pa, pb) = (a.path().to_owned(), b.path().to_owned());
        a.keep();
        drop(b);
        assert!(pa.exists() && !pb.exists());
    }

    #[test]
    fn leftovers_of_the_dead_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.tar");
        let dead = dir.path().join(".out.tar.vm2k-999999999-3");
        let living = dir
            .path()
            .join(format!(".out.tar.vm2k-{}-999999", std::process::id()));
        let other = dir.path().join(".out.tar.vm2k-notes");
        for p in [&dead, &living, &other] {
            std::fs::write(p, "").unwrap();
        }
        remove_leftovers(&target);
        assert!(!dead.exists() && living.exists() && other.exists());
    }
}
