//! The near end of a connection to an agent: a thread that writes requests, one that reads answers and keeps what comes.

use super::contents::{Contents, Identity, Receiving, Wanted, path_name};
use super::start::Started;
use crate::agent::wire::{
    Encoder, Filesystem, Got, Item, Job, MAX, Start, Walked, Want, Why, encode_jobs, frame, items, kind,
    read_frame, unpack, walked,
};
use crate::error::{Error, Result};
use crate::live::{Ask, Live};
use crate::path::GuestPath;
use crate::progress::Stage;
use crate::ssh::transport::{Control, lost};
use crate::tree::{Node, Problem};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Jobs that are with the host at once. Their answers go to disk, not to memory.
const WINDOW: usize = 16 << 10;
/// What a walk may take in memory: so much, and so many times the bytes that came.
const WALK_MEMORY: u64 = 256 << 20;
const WALK_FACTOR: u64 = 200;
/// The longest answer to LIVE.
const LIVE_LIMIT: usize = 8 << 20;
/// The longest wait for the end of an agent.
const END: Duration = Duration::from_secs(10);

/// How a job ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Got(Got),
    Failed(Why, String),
}

/// A job for [`Link::request`].
pub(super) struct Request {
    pub(super) path: GuestPath,
    pub(super) want: Want,
    /// As the walk saw it, and the filesystem's name, to know the file again as it was read.
    pub(super) identity: Identity,
    pub(super) filesystem: Arc<[u8]>,
    pub(super) size: u64,
    pub(super) beginning: Option<Arc<super::contents::Parts>>,
    /// For a delta: where it goes, and the signature of what it starts from.
    pub(super) delta: Option<(File, Vec<u8>)>,
}

/// What a walk found.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) entries: Vec<(GuestPath, Node)>,
    pub(super) problems: Vec<Problem>,
    pub(super) filesystems: Vec<Filesystem>,
    memory: u64,
    received: u64,
    done: bool,
}

impl Walk {
    fn take(&mut self, payload: &[u8]) -> Result<()> {
        self.received += payload.len() as u64;
        let most = WALK_MEMORY + WALK_FACTOR * self.received;
        walked(&unpack(payload)?, |item| {
            self.memory += match &item {
                Walked::Entry(path, node) => {
                    let xattrs: usize = node.xattrs.iter().map(|(n, v)| n.len() + v.len() + 48).sum();
                    let target = match &node.kind {
                        crate::tree::Kind::Symlink { target } => target.len(),
                        _ => 0,
                    };
                    (path.as_bytes().len() + target + xattrs + 192) as u64
                }
                Walked::Problem(path, what) => (path.as_bytes().len() + what.len() + 96) as u64,
                Walked::Filesystem(fs) => (fs.identity.len() + 1024) as u64,
            };
            if self.memory > most {
                return Err(Error::corrupt(
                    "the host's list of files is larger than what it sent",
                    0,
                ));
            }
            match item {
                Walked::Entry(path, node) => self.entries.push((path, node)),
                Walked::Problem(path, what) => self.problems.push(Problem { path, what }),
                Walked::Filesystem(fs) => self.filesystems.push(fs),
            }
            Ok(())
        })
    }
}

/// A job that is with the host.
struct Pending {
    filesystem: Arc<[u8]>,
    limit: u64,
}

#[derive(Default)]
struct State {
    walk: Walk,
    pending: HashMap<u32, Pending>,
    receiving: HashMap<u32, Receiving>,
    deltas: HashMap<u32, File>,
    outcomes: HashMap<u32, Outcome>,
    next: u32,
    live: Option<Vec<u8>>,
    live_done: bool,
    bye: bool,
    failed: Option<Error>,
}

struct Shared {
    name: String,
    state: Mutex<State>,
    changed: Condvar,
    contents: Arc<Contents>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        let mut state = self.state();
        state.failed.get_or_insert(error);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until `done` gives something, or the connection failed.
    fn wait<T>(&self, mut done: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = done(&mut state) {
                return Ok(found);
            }
            if let Some(error) = &state.failed {
                return Err(again(error));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The error once more: many threads may wait for the connection.
fn again(error: &Error) -> Error {
    match error {
        Error::Network { .. } => lost(error.to_string()),
        Error::Hinted { source, hint } => match source.downcast_ref::<Error>() {
            Some(inner) => again(inner).hint(hint.clone()),
            None => error.again(),
        },
        other => other.again(),
    }
}

/// What a host does, with an agent or without.
pub(super) trait Far: Send + Sync {
    /// Waits for the list of files.
    fn walk(&self) -> Result<Walk>;
    /// Asks for files; gives the numbers of the jobs, in order.
    fn request(&self, requests: Vec<Request>) -> Result<Vec<u32>>;
    /// Waits for a job's end. It can be asked for once.
    fn outcome(&self, number: u32) -> Result<Outcome>;
    /// Waits for the ends of jobs; `stage` is told of the bytes that came meanwhile.
    fn outcomes(&self, numbers: &[u32], stage: &dyn Stage) -> Result<Vec<Outcome>>;
    /// The delta that came for a job that is done.
    fn delta(&self, number: u32) -> Option<File>;
    /// True if it makes deltas.
    fn has_deltas(&self) -> bool;
    /// Bytes sent and received so far.
    fn traffic(&self) -> (u64, u64);
    /// What only a running host knows: a JSON value.
    fn live(&self, ask: &Ask) -> Result<Live>;
    /// Ends it in peace.
    fn quit(&self);
}

/// A connection to an agent.
pub(super) struct Link {
    shared: Arc<Shared>,
    /// Dropped first, so that the host's stdin ends.
    requests: Mutex<Option<Sender<Vec<u8>>>>,
}

impl Link {
    pub(super) fn new(name: String, started: Started, start: &Start, contents: Arc<Contents>) -> Self {
        let shared = Arc::new(Shared {
            name,
            state: Mutex::default(),
            changed: Condvar::new(),
            contents,
            sent: AtomicU64::new(started.sent),
            received: AtomicU64::new(started.received),
        });
        let (requests, queue) = channel::<Vec<u8>>();
        let (mut stdin, writer) = (started.stdin, Arc::clone(&shared));
        std::thread::spawn(move || {
            for bytes in queue {
                if let Err(e) = stdin.write_all(&bytes).and_then(|()| stdin.flush()) {
                    // The reader knows better why.
                    std::thread::sleep(Duration::from_secs(1));
                    writer.fail(Error::from_io(format!("writing to {}", writer.name), e));
                    return;
                }
                writer.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        });
        let (stdout, control, reader) = (started.stdout, started.control, Arc::clone(&shared));
        std::thread::spawn(move || listen(stdout, control, &reader));
        let link = Self {
            shared,
            requests: Mutex::new(Some(requests)),
        };
        link.send(kind::START, &start.encode());
        link
    }

    fn send(&self, kind: u8, payload: &[u8]) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = &*requests {
            // If the writer is gone, the error is in the state.
            let _ = requests.send(frame(kind, payload));
        }
    }
}

impl Far for Link {
    /// Bytes sent and received so far.
    fn traffic(&self) -> (u64, u64) {
        (
            self.shared.sent.load(Ordering::Relaxed),
            self.shared.received.load(Ordering::Relaxed),
        )
    }

    /// Waits for the walk.
    fn walk(&self) -> Result<Walk> {
        self.shared
            .wait(|state| state.walk.done.then(|| std::mem::take(&mut state.walk)))
    }

    /// Asks for files. No more are with the host at once than it and this side can take: the rest waits here. Gives the
    /// numbers of the jobs, in order.
    fn request(&self, requests: Vec<Request>) -> Result<Vec<u32>> {
        let mut numbers = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let room = self.shared.wait(|state| {
                let room = WINDOW.saturating_sub(state.pending.len());
                (room >= WINDOW / 4).then_some(room)
            })?;
            let (mut jobs, mut wanted) = (Vec::new(), Vec::new());
            let mut state = self.shared.state();
            for request in requests.by_ref().take(room) {
                let number = state.next;
                state.next = state.next.wrapping_add(1);
                numbers.push(number);
                if let Some((file, signature)) = request.delta {
                    for part in signature.chunks(MAX / 2) {
                        let mut out = Encoder::default();
                        out.number(number.into());
                        out.0.extend_from_slice(part);
                        self.send(kind::SIGNATURE, &out.0);
                    }
                    state.deltas.insert(number, file);
                } else if request.want != Want::Digest {
                    wanted.push(Wanted {
                        job: number,
                        identity: request.identity,
                        path: path_name(&request.path),
                        beginning: request.beginning,
                    });
                }
                state.pending.insert(
                    number,
                    Pending {
                        filesystem: request.filesystem,
                        // It may have grown since it was listed.
                        limit: request.size.saturating_mul(2).saturating_add(256 << 20),
                    },
                );
                jobs.push(Job {
                    number,
                    path: request.path,
                    want: request.want,
                });
            }
            state.receiving.extend(self.shared.contents.begin(&wanted)?);
            drop(state);
            for block in encode_jobs(&jobs) {
                self.send(kind::JOBS, &block);
            }
        }
        Ok(numbers)
    }

    /// Waits for a job's end. It can be asked for once.
    fn outcome(&self, number: u32) -> Result<Outcome> {
        self.shared.wait(|state| state.outcomes.remove(&number))
    }

    /// The delta that came for a job that is done.
    fn delta(&self, number: u32) -> Option<File> {
        self.shared.state().deltas.remove(&number)
    }

    /// Waits for the ends of jobs; `stage` is told of the bytes that came meanwhile.
    fn outcomes(&self, numbers: &[u32], stage: &dyn Stage) -> Result<Vec<Outcome>> {
        let mut told = self.traffic().1;
        let mut all = Vec::with_capacity(numbers.len());
        for number in numbers {
            all.push(self.outcome(*number)?);
            let now = self.traffic().1;
            stage.add(now.saturating_sub(told));
            told = now;
        }
        Ok(all)
    }

    /// What only a running host knows: a JSON value.
    fn live(&self, ask: &Ask) -> Result<Live> {
        let bad = |e: serde_json::Error| {
            Error::corrupt(
                format!("{}: what the agent tells of the host: {e}", self.shared.name),
                0,
            )
        };
        let ask = serde_json::to_vec(ask).map_err(bad)?;
        self.shared.state().live = Some(Vec::new());
        self.send(kind::LIVE, &ask);
        let told = self.shared.wait(|state| {
            let done = std::mem::take(&mut state.live_done);
            done.then(|| state.live.take().unwrap_or_default())
        })?;
        serde_json::from_slice(&told).map_err(bad)
    }

    fn has_deltas(&self) -> bool {
        true
    }

    /// Ends the agent in peace.
    fn quit(&self) {
        self.send(kind::QUIT, &[]);
        let _ = self.shared.wait(|state| state.bye.then_some(()));
        self.shared
            .fail(lost(format!("{}: the connection was ended", self.shared.name)));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// Reads answers until the connection ends.
fn listen(mut from: Box<dyn Read + Send>, mut control: Box<dyn Control>, shared: &Shared) {
    let result = answers(&mut *from, shared);
    let name = &shared.name;
    if let Ok(true) = result {
        // Whoever waits for an answer that never came must not wait for ever.
        shared.fail(lost(format!("{name}: the agent ended before it was done")));
        let _ = control.wait(END);
        return;
    }
    let error = match result {
        Err(Error::Network { what, .. }) => lost(format!("{name}: {what}")),
        Err(e) => e.within(name),
        Ok(_) => match control.wait(END) {
            Ok(exit) if !exit.stderr.is_empty() || exit.status != Some(0) => {
                lost(format!("{name}: the connection ended: {}", exit.describe()))
            }
            _ => lost(format!("{name}: the connection was cut")),
        },
    };
    control.kill();
    let error = match error {
        e @ Error::Network { .. } => e.hint("run the same command again: what has arrived is kept"),
        e => e,
    };
    shared.fail(error);
}

/// `true` if the far side said goodbye.
fn answers(from: &mut dyn Read, shared: &Shared) -> Result<bool> {
    let mut buf = Vec::new();
    while let Some(kind) = read_frame(from, &mut buf)? {
        shared.received.fetch_add(buf.len() as u64 + 9, Ordering::Relaxed);
        match kind {
            kind::ALIVE => {}
            kind::WALKED => shared.state().walk.take(&buf)?,
            kind::WALK_DONE => shared.state().walk.done = true,
            kind::DATA => data(&buf, shared)?,
            kind::LIVE_PART => {
                let mut state = shared.state();
                let (flag, part) = buf.split_first().unwrap_or((&1, &[]));
                let last = *flag == 1;
                let live = state
                    .live
                    .as_mut()
                    .filter(|live| live.len() + part.len() <= LIVE_LIMIT);
                let live = live.ok_or_else(|| {
                    Error::corrupt("more was told of the running host than was asked for", 0)
                })?;
                live.extend_from_slice(part);
                state.live_done = last;
            }
            kind::FAILED => {
                let text = String::from_utf8_lossy(buf.get(..4096).unwrap_or(&buf)).into_owned();
                return Err(Error::unsupported(format!("the agent cannot go on: {text}")));
            }
            kind::BYE => {
                shared.state().bye = true;
                shared.changed.notify_all();
                return Ok(true);
            }
            other => return Err(Error::corrupt(format!("an answer of kind {other}"), 0)),
        }
        shared.changed.notify_all();
    }
    Ok(false)
}

fn data(payload: &[u8], shared: &Shared) -> Result<()> {
    let raw = unpack(payload)?;
    debug_assert!(raw.len() <= MAX);
    let mut state = shared.state();
    let State {
        pending,
        receiving,
        deltas,
        outcomes,
        ..
    } = &mut *state;
    let failed = |e| Error::io("keeping a delta", e);
    items(&raw, |item| {
        let Some(file) = deltas.get_mut(&item.job()) else {
            return Ok(());
        };
        match item {
            Item::Data { bytes, job, .. } => {
                file.write_all(bytes).map_err(failed)?;
                let limit = pending.get(&job).map_or(0, |p| p.limit);
                if file.stream_position().map_err(failed)? > limit {
                    return Err(Error::corrupt(
                        "the host sends more of a delta than it can have",
                        limit,
                    ));
                }
            }
            Item::Again { .. } => {
                file.set_len(0).map_err(failed)?;
                file.rewind().map_err(failed)?;
            }
            Item::Hole { .. } | Item::End { .. } | Item::Failed { .. } => {}
        }
        Ok(())
    })?;
    shared.contents.keep(
        payload,
        &raw,
        receiving,
        |job| pending.get(&job).map_or(0, |p| p.limit),
        |job, got| {
            let pending = pending.get(&job)?;
            Some(got_identity(&pending.filesystem, got))
        },
    )?;
    items(&raw, |item| {
        let job = item.job();
        let outcome = match item {
            Item::End { got, .. } => Outcome::Got(got),
            Item::Failed { why, what, .. } => Outcome::Failed(why, what),
            _ => return Ok(()),
        };
        if pending.remove(&job).is_some() {
            outcomes.insert(job, outcome);
        }
        Ok(())
    })
}

/// The identity of a file as it was read.
pub(super) fn got_identity(filesystem: &[u8], got: &Got) -> Identity {
    let node = Node {
        kind: crate::tree::Kind::File { size: got.len },
        mtime: got.mtime,
        ctime: got.ctime,
        id: crate::tree::FileId { fs: 0, ino: got.ino },
        ..Node::plain_dir()
    };
    super::contents::identity(filesystem, &node)
}
