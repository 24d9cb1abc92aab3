//! One thread that moves the bytes of a connection, and the ends that other threads hold.
//!
//! libssh2 is used without blocking and by this thread alone. Between it and each [`Process`] stand two bounded queues; a
//! full one stops the far side by the window of its channel. A write that libssh2 could not finish is repeated with the same
//! bytes, and a read that found nothing is repeated too, because it may hold a half-sent answer: until it is sent, nothing
//! else can be.

mod channel;
mod pipes;

use super::transport::{Process, late, lost};
use crate::error::{Error, Result};
use channel::{Channel, Step};
pub(super) use pipes::Pipes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use ssh2::{BlockDirections, ErrorCode};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// libssh2's code for "not now".
pub(super) const EAGAIN: i32 = -37;
/// How much the far side may send of one process before it is read, besides what is in the queue: bytes.
const WINDOW: u32 = 4 << 20;
/// The largest packet that may come: bytes. RFC 4253 section 6.1 asks for 32768 at least.
const PACKET: u32 = 32 << 10;
/// The longest sleep: deadlines are looked at this often.
const NAP: Duration = Duration::from_millis(500);
/// How long the end of a connection may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// What is to be made on a connection.
pub(super) enum What {
    /// A command for the login shell.
    Command(String),
    /// A connection from the far side to another host.
    Tunnel(String, u16),
}

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Nothing moved between a process and this side.
    pub(super) idle: Duration,
    /// A channel is to be opened.
    pub(super) open: Duration,
    /// Nothing came for this long: ask whether the far side is there.
    pub(super) alive_interval: Duration,
    /// After this many unanswered questions it is not.
    pub(super) alive_count: u32,
}

struct Request {
    what: What,
    pipes: Arc<Pipes>,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<Request>,
    quit: bool,
    failure: Option<String>,
}

/// What the thread and the ends of processes share.
pub(super) struct Shared {
    name: String,
    limits: Limits,
    event: OwnedFd,
    woken: AtomicBool,
    inbox: Mutex<Inbox>,
    /// Processes that somebody holds.
    held: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread look at everything once more.
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

/// The thread of one connection.
pub(super) struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Takes over `session`, which is logged in and does not block, and the `socket` below it.
    pub(super) fn new(session: ssh2::Session, socket: OwnedFd, name: String, limits: Limits) -> Result<Self> {
        let failed = |e: rustix::io::Errno| Error::io("starting a connection", e.into());
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let shared = Arc::new(Shared {
            name,
            limits,
            event,
            woken: AtomicBool::new(false),
            inbox: Mutex::default(),
            held: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let seconds = u32::try_from(limits.alive_interval.as_secs()).unwrap_or(u32::MAX);
        session.set_keepalive(true, seconds.max(1));
        let worker = Worker {
            session,
            socket,
            shared: Arc::clone(&shared),
            opening: VecDeque::new(),
            asked: false,
            channels: Vec::new(),
            buffer: vec![0; 128 << 10],
            heard: Instant::now(),
            reading: true,
            spins: 0,
        };
        let thread = std::thread::Builder::new()
            .name("ssh".to_owned())
            .spawn(move || worker.run())
            .map_err(|e| Error::io("starting a thread", e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Makes `what`, at most for the time that opening may take.
    pub(super) fn start(&self, what: What) -> Result<Process> {
        // A tunnel is as quiet as what goes through it, which has a deadline of its own.
        let idle = match what {
            What::Command(_) => self.shared.limits.idle,
            What::Tunnel(..) => Duration::from_secs(1 << 30),
        };
        let pipes = Pipes::new(&self.shared, idle);
        // Made first: whatever goes wrong, the channel ends with it.
        let process = Pipes::process(&pipes);
        {
            let mut inbox = self.shared.inbox();
            if let Some(failure) = &inbox.failure {
                return Err(lost(failure.clone()));
            }
            inbox.requests.push(Request {
                what,
                pipes: Arc::clone(&pipes),
            });
        }
        self.shared.wake();
        match pipes.wait_for_start(self.shared.limits.open) {
            Some(Ok(())) => Ok(process),
            Some(Err(e)) => Err(e),
            None => Err(late(&self.shared.name, self.shared.limits.open)),
        }
    }

    /// Bytes of the streams sent and received.
    pub(super) fn traffic(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.shared.sent), load(&self.shared.received))
    }

    /// Why the connection is gone, if it is.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.inbox().failure.clone()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.inbox().quit = true;
        self.shared.wake();
        // Processes that still run keep the thread; without them it ends within moments.
        if let Some(thread) = self.thread.take() {
            let until = Instant::now() + FAREWELL + FAREWELL;
            let held = || self.shared.held.load(Ordering::Acquire) > 0;
            while !thread.is_finished() && !held() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

struct Worker {
    session: ssh2::Session,
    socket: OwnedFd,
    shared: Arc<Shared>,
    opening: VecDeque<Request>,
    /// The first of `opening` was handed to libssh2 and must be brought to its end.
    asked: bool,
    channels: Vec<Channel>,
    buffer: Vec<u8>,
    /// When something came from the far side.
    heard: Instant,
    /// Whether anything is waited for from the far side.
    reading: bool,
    /// Turns in a row that the socket took bytes and nothing moved.
    spins: u32,
}

impl Worker {
    fn run(mut self) {
        let name = self.shared.name.clone();
        let failure = match self.work() {
            Ok(()) => format!("the connection to {name} was closed"),
            Err(failure) => failure,
        };
        let requests = {
            let mut inbox = self.shared.inbox();
            inbox.failure = Some(failure.clone());
            std::mem::take(&mut inbox.requests)
        };
        for request in requests.iter().chain(&self.opening) {
            request.pipes.fail(&failure);
        }
        for channel in &self.channels {
            channel.pipes.fail(&failure);
        }
        self.say_goodbye();
    }

    /// Ends the session without waiting for a far side that stalls.
    fn say_goodbye(self) {
        let Self {
            session,
            socket,
            channels,
            ..
        } = self;
        let _ = session.disconnect(None, "done", None);
        let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        // Nothing can be sent or come any more, so that freeing does not wait, and frees.
        session.set_blocking(true);
        session.set_timeout(u32::try_from(FAREWELL.as_millis()).unwrap_or(1));
        drop(channels);
        drop(session);
    }

    fn work(&mut self) -> Result<(), String> {
        loop {
            // First, so that a wake that comes now is seen by the next poll.
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.shared.event, &mut count[..]);
            self.shared.woken.store(false, Ordering::Release);
            let (requests, quit) = {
                let mut inbox = self.shared.inbox();
                (std::mem::take(&mut inbox.requests), inbox.quit)
            };
            self.opening.extend(requests);
            if quit && self.channels.is_empty() && self.opening.is_empty() {
                return Ok(());
            }
            let mut progress = self.open()?;
            let mut reading = !self.opening.is_empty();
            let mut index = 0;
            while let Some(channel) = self.channels.get_mut(index) {
                match channel.step(&self.session, &mut self.buffer, &self.shared)? {
                    Step::Done => {
                        self.channels.swap_remove(index);
                        progress = true;
                    }
                    Step::Waits { moved, listens } => {
                        progress |= moved;
                        reading |= listens;
                        index += 1;
                    }
                }
            }
            self.reading = reading;
            self.wait(progress)?;
        }
    }

    /// Brings the first request forward. libssh2 opens one channel after the other.
    fn open(&mut self) -> Result<bool, String> {
        let Some(request) = self.opening.front() else {
            return Ok(false);
        };
        if !self.asked && request.pipes.is_over() {
            self.opening.pop_front();
            return Ok(true);
        }
        let opened = match &request.what {
            What::Command(_) => self.session.channel_open("session", WINDOW, PACKET, None),
            What::Tunnel(host, port) => self.session.channel_direct_tcpip(host, *port, None),
        };
        self.asked = true;
        let result = match opened {
            Ok(channel) => Ok(channel),
            Err(e) if e.code() == ErrorCode::Session(EAGAIN) => return Ok(false),
            Err(e) if is_fatal(&e) => return Err(self.broken(&e)),
            Err(e) => Err(e),
        };
        self.asked = false;
        if let Some(request) = self.opening.pop_front() {
            match (result, request.what) {
                (Ok(channel), What::Command(command)) => {
                    self.channels
                        .push(Channel::new(channel, Some(command), request.pipes));
                }
                (Ok(channel), What::Tunnel(..)) => {
                    self.channels.push(Channel::new(channel, None, request.pipes));
                }
                (Err(e), What::Command(_)) => {
                    let name = &self.shared.name;
                    request
                        .pipes
                        .fail(&format!("{name} opens no channel: {}", e.message()));
                }
                (Err(e), What::Tunnel(host, port)) => {
                    let name = &self.shared.name;
                    let text = format!("{name} makes no connection to {host}:{port}: {}", e.message());
                    request.pipes.fail(&text);
                }
            }
        }
        Ok(true)
    }

    /// Sleeps until the socket or another thread has something, unless something moved just now.
    fn wait(&mut self, progress: bool) -> Result<(), String> {
        let directions = self.session.block_directions();
        let blocked = matches!(directions, BlockDirections::Outbound | BlockDirections::Both)
            || self.channels.iter().any(Channel::is_sending);
        let mut nap = if progress { Duration::ZERO } else { NAP };
        // libssh2 reads for a channel only. Without one, just the end of the connection is looked for.
        let idle = self.channels.is_empty() && self.opening.is_empty();
        let mut flags = match (idle, self.reading) {
            (true, _) => PollFlags::RDHUP,
            (false, true) => PollFlags::IN,
            (false, false) => PollFlags::empty(),
        };
        if progress {
            self.spins = 0;
        }
        if blocked && self.spins < 2 {
            flags |= PollFlags::OUT;
        } else if blocked {
            // It takes bytes, but it is something from the far side that is missing.
            nap = nap.min(Duration::from_millis(10));
        }
        let mut fds = [
            PollFd::new(&self.shared.event, PollFlags::IN),
            PollFd::new(&self.socket, flags),
        ];
        // A socket that is of no interest now would report its end again and again.
        let watched = if flags.is_empty() {
            &mut fds[..1]
        } else {
            &mut fds[..]
        };
        let timeout = Timespec {
            tv_sec: i64::try_from(nap.as_secs()).unwrap_or(1),
            tv_nsec: nap.subsec_nanos().into(),
        };
        match poll(watched, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("the connection to {}: {e}", self.shared.name)),
        }
        let seen = fds[1].revents();
        let now = Instant::now();
        if seen.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) || !self.reading {
            self.heard = now;
        }
        if seen.contains(PollFlags::OUT) && !seen.contains(PollFlags::IN) && !progress {
            self.spins = self.spins.saturating_add(1);
        }
        if idle {
            if seen.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
                return Err(format!("{} closed the connection", self.shared.name));
            }
            return Ok(());
        }
        self.keep_alive(now)
    }

    /// Asks a quiet far side whether it is there, and gives it up when it does not answer.
    fn keep_alive(&mut self, now: Instant) -> Result<(), String> {
        let limits = self.shared.limits;
        let quiet = now.saturating_duration_since(self.heard);
        if quiet < limits.alive_interval {
            return Ok(());
        }
        let patience = limits
            .alive_interval
            .saturating_mul(limits.alive_count.saturating_add(1));
        if quiet >= patience {
            let name = &self.shared.name;
            return Err(format!("nothing came from {name} for {} s", quiet.as_secs()));
        }
        // Only where it can be sent whole: libssh2 could not take up the rest of it.
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut fds, Some(&none)).is_ok_and(|n| n == 1) {
            self.session.keepalive_send().map_err(|e| self.broken(&e))?;
        }
        Ok(())
    }

    fn broken(&self, error: &ssh2::Error) -> String {
        broken(&self.shared.name, error)
    }
}

/// The words for a connection that libssh2 gave up.
fn broken(name: &str, error: &ssh2::Error) -> String {
    match error.code() {
        ErrorCode::Session(-13 | -43 | -7) => format!("the connection to {name} broke: {}", error.message()),
        _ => format!("{name} broke the protocol: {}", error.message()),
    }
}

/// True if the whole connection is gone, and not only one channel.
fn is_fatal(error: &ssh2::Error) -> bool {
    // Channel: failure, request denied, unknown, closed, EOF sent; refused request.
    !matches!(
        error.code(),
        ErrorCode::Session(EAGAIN | -21 | -22 | -23 | -26 | -27 | -32)
    )
}
