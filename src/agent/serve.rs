//! The far side: answers requests until its stdin ends.

use super::limits::Limits;
use super::mounts::{Mounts, Verdict, on_host};
use super::read::{Block, Output, work};
use super::wire::{
    Decoder, Encoder, Hello, Job, MAX, PIECE, Start, WalkEncoder, decode_jobs, kind, pack, read_frame,
    unpack, write_frame,
};
use crate::error::{Error, Result};
use crate::live::{Ask, HostProc, collect};
use crate::path::GuestPath;
use crate::source::walk::{Mounted, Sink, walk};
use crate::tree::Node;
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Threads that read files.
const WORKERS: usize = 2;
/// Jobs that wait; the near side waits with more.
const WAITING: usize = 1 << 16;
/// Bytes of signatures that wait.
const SIGNATURES: usize = 256 << 20;
/// How often the far side says that it lives.
const ALIVE: Duration = Duration::from_secs(5);
/// Bytes of a walk that travel at once.
const BATCH: usize = 512 << 10;

/// Runs the far side on stdin and stdout: what `vm2k agent` does. With `own`, its own executable is removed first.
///
/// # Errors
/// [`Error::Corrupt`] if the near side does not speak the protocol, and if the root cannot be opened.
pub fn run(own: Option<&Path>) -> Result<()> {
    let executable = own_digest();
    if let Some(own) = own {
        // What runs needs no name any more, and nothing is left however this ends.
        let _ = std::fs::remove_file(own);
    }
    let _ = rustix::process::nice(10);
    serve(
        &mut std::io::stdin().lock(),
        Box::new(std::io::stdout()),
        executable,
    )
}

fn own_digest() -> [u8; 32] {
    let digest = || -> std::io::Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut std::fs::File::open("/proc/self/exe")?, &mut hasher)?;
        Ok(*hasher.finalize().as_bytes())
    };
    digest().unwrap_or_default()
}

fn hello(executable: [u8; 32]) -> Hello {
    let uname = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    let host = std::fs::read("/etc/machine-id").ok().filter(|id| id.len() > 16);
    Hello {
        build: super::build(),
        uid: rustix::process::geteuid().as_raw(),
        machine: text(uname.machine()),
        kernel: text(uname.release()),
        hostname: text(uname.nodename()),
        executable,
        host: host.map_or([0; 32], |id| *blake3::hash(&id).as_bytes()),
    }
}

/// Frames on their way to the near side, from several threads.
struct Out {
    to: Mutex<Box<dyn Write + Send>>,
    limits: Mutex<Arc<Limits>>,
    sent: AtomicU64,
}

impl Output for Out {
    fn send(&self, kind: u8, payload: &[u8]) {
        let limits = Arc::clone(&self.limits.lock().unwrap_or_else(PoisonError::into_inner));
        limits.sending(payload.len());
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        if write_frame(&mut **to, kind, payload)
            .and_then(|()| to.flush())
            .is_err()
        {
            // Nobody listens any more: there is nothing to do, and nothing to clean up.
            std::process::exit(0);
        }
        self.sent.fetch_add(payload.len() as u64 + 9, Ordering::Relaxed);
    }
}

/// Jobs that wait for a worker.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Signatures of jobs that come.
    signatures: HashMap<u32, Vec<u8>>,
    /// Their bytes.
    signed: usize,
    closed: bool,
}

impl Queue {
    fn put(&self, jobs: Vec<Job>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.jobs.len() > WAITING {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.jobs.extend(jobs);
        self.changed.notify_all();
    }

    fn sign(&self, job: u32, part: &[u8]) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.signed += part.len();
        if state.signed > SIGNATURES {
            return Err(Error::corrupt("more signatures than there is room for", 0));
        }
        state.signatures.entry(job).or_default().extend_from_slice(part);
        Ok(())
    }

    fn signature(&self, job: u32) -> Vec<u8> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let signature = state.signatures.remove(&job).unwrap_or_default();
        state.signed -= signature.len();
        signature
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_all();
    }

    /// The next job. `idle` is called before a wait.
    fn next(&self, mut idle: impl FnMut()) -> Option<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.jobs.is_empty() && !state.closed {
            drop(state);
            idle();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        }
        loop {
            if let Some(job) = state.jobs.pop_front() {
                self.changed.notify_all();
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Answers what comes from `input` until it ends.
///
/// # Errors
/// As [`run`].
pub fn serve(input: &mut dyn Read, output: Box<dyn Write + Send>, executable: [u8; 32]) -> Result<()> {
    let out = Arc::new(Out {
        to: Mutex::new(output),
        limits: Mutex::new(Arc::new(Limits::new(0, 0))),
        sent: AtomicU64::new(0),
    });
    out.send(kind::HELLO, &hello(executable).encode());
    let beat = Arc::clone(&out);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(ALIVE);
            beat.send(kind::ALIVE, &[]);
        }
    });
    match requests(input, &out) {
        // The near side is gone.
        Err(Error::Network { .. }) => Ok(()),
        Err(e) => {
            out.send(kind::FAILED, e.to_string().as_bytes());
            Err(e)
        }
        Ok(()) => Ok(()),
    }
}

fn requests(input: &mut dyn Read, out: &Arc<Out>) -> Result<()> {
    let mut buf = Vec::new();
    let mut received: u64 = 0;
    let mut next = |buf: &mut Vec<u8>| -> Result<Option<u8>> {
        let kind = read_frame(input, buf)?;
        received += buf.len() as u64 + 9;
        Ok(kind)
    };
    let Some(first) = next(&mut buf)? else {
        return Ok(());
    };
    if first != kind::START {
        return Err(Error::corrupt(format!("a first request of kind {first}"), 0));
    }
    let start = Start::decode(&buf)?;
    let root = PathBuf::from(OsStr::from_bytes(&start.root));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&root, flags, Mode::empty())
        .map_err(|e| Error::io(format!("opening {}", root.display()), e.into()))?;
    let limits = Arc::new(Limits::new(start.rate, start.load));
    *out.limits.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&limits);
    let dir = Arc::new(dir);
    let walker = {
        let (dir, out) = (Arc::clone(&dir), Arc::clone(out));
        std::thread::spawn(move || list(&dir, &root, start.one_filesystem, &*out))
    };
    let queue = Arc::new(Queue::default());
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (dir, out, queue, limits) = (
                Arc::clone(&dir),
                Arc::clone(out),
                Arc::clone(&queue),
                Arc::clone(&limits),
            );
            std::thread::spawn(move || {
                let mut buf = Vec::new();
                let mut block = Block::new(&*out);
                while let Some(job) = queue.next(|| block.flush()) {
                    let signature = queue.signature(job.number);
                    work(dir.as_fd(), &job, &signature, &limits, &mut buf, &mut block);
                }
                block.flush();
            })
        })
        .collect();
    while let Some(kind) = next(&mut buf)? {
        match kind {
            kind::JOBS => queue.put(decode_jobs(&unpack(&buf)?)?),
            kind::SIGNATURE => {
                let mut from = Decoder::new(&buf);
                let job = from.small()?;
                queue.sign(job, buf.get(from.at()..).unwrap_or_default())?;
            }
            kind::LIVE => live(&buf, &**out)?,
            kind::QUIT => {
                queue.close();
                let _ = walker.join();
                for worker in workers {
                    let _ = worker.join();
                }
                let mut bye = Encoder::default();
                bye.number(received);
                bye.number(out.sent.load(Ordering::Relaxed));
                out.send(kind::BYE, &bye.0);
                return Ok(());
            }
            other => return Err(Error::corrupt(format!("a request of kind {other}"), 0)),
        }
    }
    Ok(())
}

/// What only a running host knows: a JSON value (`live::Live`), for the one in the request (`live::Ask`).
fn live(ask: &[u8], out: &dyn Output) -> Result<()> {
    let bad = |e: serde_json::Error| Error::corrupt(format!("a request of what the host knows: {e}"), 0);
    let ask: Ask = serde_json::from_slice(ask).map_err(bad)?;
    let text = serde_json::to_vec(&collect(&HostProc::default(), &ask)).map_err(bad)?;
    let mut parts = text.chunks(PIECE).peekable();
    while let Some(part) = parts.next() {
        let last = u8::from(parts.peek().is_none());
        out.send(kind::LIVE_PART, &[&[last], part].concat());
    }
    Ok(())
}

/// Puts a walk into blocks.
struct Lister<'a> {
    out: &'a dyn Output,
    encoder: WalkEncoder,
    mounts: Mounts,
    root: &'a Path,
    one_filesystem: bool,
    /// How many filesystems were told.
    told: u32,
}

fn list(dir: &OwnedFd, root: &Path, one_filesystem: bool, out: &dyn Output) {
    let mut lister = Lister {
        out,
        encoder: WalkEncoder::default(),
        mounts: Mounts::read(),
        root,
        one_filesystem,
        told: 0,
    };
    let result = walk(dir.as_fd(), &mut lister);
    if let Err(e) = result {
        lister.encoder.problem(&GuestPath::root(), &e.to_string());
    }
    lister.flush();
    out.send(kind::WALK_DONE, &[]);
}

impl Lister<'_> {
    fn flush(&mut self) {
        if !self.encoder.is_empty() {
            let raw = self.encoder.take();
            match raw.len() > MAX {
                // One entry with more extended attributes than a block holds.
                true => self.encoder.problem(
                    &GuestPath::root(),
                    "an entry with too many extended attributes is left out",
                ),
                false => self.out.send(kind::WALKED, &pack(&raw, 3)),
            }
        }
    }
}

impl Sink for Lister<'_> {
    fn entry(&mut self, path: &GuestPath, node: Node) {
        if node.id.fs >= self.told {
            // The first path of a filesystem is the root of what is mounted.
            self.told = node.id.fs + 1;
            let here = on_host(self.root, path);
            let device = rustix::fs::stat(OsStr::from_bytes(&here)).map_or(0, |s| s.st_dev);
            let fs = self.mounts.describe(node.id.fs, device, &here);
            self.encoder.filesystem(&fs);
        }
        let weight = |node: &Node| -> usize { node.xattrs.iter().map(|(n, v)| n.len() + v.len() + 8).sum() };
        if self.encoder.len() + weight(&node) + (128 << 10) > MAX {
            self.flush();
        }
        self.encoder.entry(path, &node);
        if self.encoder.len() > BATCH {
            self.flush();
        }
    }

    fn problem(&mut self, path: &GuestPath, what: String) {
        self.encoder.problem(path, &what);
    }

    fn mounted(&mut self, mounted: Mounted<'_>) -> bool {
        if self.one_filesystem || mounted.is_made_up() {
            return false;
        }
        let root = on_host(self.root, &GuestPath::root());
        match self.mounts.verdict(&root, &on_host(self.root, mounted.path)) {
            Verdict::Enter => true,
            Verdict::Leave => false,
            Verdict::Tell(what) => {
                self.encoder.problem(mounted.path, &what);
                false
            }
        }
    }
}
