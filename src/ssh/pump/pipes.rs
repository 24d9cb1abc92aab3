//! The queues between the thread of a connection and those that use a process of it.

use super::Shared;
use crate::error::{Error, Result};
use crate::ssh::transport::{Control, Exit, Process, STDERR, late, lost};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes for the far side that wait here at most.
const INPUT: usize = 512 << 10;
/// Bytes from the far side that wait here before its window is left to fill.
const OUTPUT: usize = 1 << 20;
/// One piece of input: what libssh2 takes in one packet at most.
const PIECE: usize = 32_000;

/// The queues of one process.
pub(in crate::ssh) struct Pipes {
    shared: Arc<Shared>,
    idle: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    started: bool,
    input: VecDeque<Vec<u8>>,
    input_length: usize,
    /// This side sends no more.
    input_ends: bool,
    /// The far side takes no more.
    input_refused: bool,
    output: VecDeque<Vec<u8>>,
    /// How much of the first piece is read.
    output_at: usize,
    output_length: usize,
    output_ends: bool,
    /// Nobody reads.
    output_unwanted: bool,
    said: VecDeque<u8>,
    exit: Option<Exit>,
    failure: Option<String>,
    ended: bool,
    moved: Option<Instant>,
}

/// What the thread is to do for a process next.
pub(super) struct Wishes {
    /// There is room for more output.
    pub(super) reads: bool,
    /// All input is given; the queue may still hold some.
    pub(super) input_ends: bool,
    /// The process is to end.
    pub(super) ended: bool,
}

impl Pipes {
    pub(super) fn new(shared: &Arc<Shared>, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            idle,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The three parts for the user. The channel ends with the last of them.
    pub(super) fn process(pipes: &Arc<Self>) -> Process {
        pipes.shared.held.fetch_add(1, Ordering::AcqRel);
        let part = Arc::new(Part(Arc::clone(pipes)));
        Process {
            stdin: Box::new(Input(Arc::clone(&part))),
            stdout: Box::new(Output(Arc::clone(&part))),
            control: Box::new(End(part)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the channel, at most `deadline`.
    pub(super) fn wait_for_start(&self, deadline: Duration) -> Option<Result<()>> {
        let until = Instant::now() + deadline;
        let mut state = self.lock();
        loop {
            if state.started {
                return Some(Ok(()));
            }
            if let Some(failure) = &state.failure {
                return Some(Err(lost(failure.clone())));
            }
            state = self.sleep(state, until)?;
        }
    }

    /// Waits for a change; `None` if `until` is over.
    fn sleep<'a>(&self, state: MutexGuard<'a, State>, until: Instant) -> Option<MutexGuard<'a, State>> {
        let left = until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())?;
        let (state, _) = self
            .changed
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner);
        Some(state)
    }

    // What follows is for the thread of the connection.

    pub(super) fn started(&self) {
        self.lock().started = true;
        self.changed.notify_all();
    }

    /// Nothing more comes: reads, writes and waits fail with `why`, after what came before.
    pub(super) fn fail(&self, why: &str) {
        let mut state = self.lock();
        state.failure.get_or_insert_with(|| why.to_owned());
        self.changed.notify_all();
    }

    /// True if nobody waits for it any more.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.ended || state.failure.is_some()
    }

    pub(super) fn wishes(&self) -> Wishes {
        let state = self.lock();
        Wishes {
            reads: state.output_unwanted || state.output_length < OUTPUT,
            input_ends: state.input_ends,
            ended: state.ended,
        }
    }

    /// The next piece for the far side.
    pub(super) fn take_input(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let piece = state.input.pop_front()?;
        state.input_length = state.input_length.saturating_sub(piece.len());
        self.changed.notify_all();
        Some(piece)
    }

    /// Input went out.
    pub(super) fn has_moved(&self) {
        self.lock().moved = Some(Instant::now());
        self.changed.notify_all();
    }

    /// The far side takes no more input.
    pub(super) fn refuse_input(&self) {
        let mut state = self.lock();
        state.input_refused = true;
        state.input.clear();
        state.input_length = 0;
        self.changed.notify_all();
    }

    pub(super) fn put_output(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.moved = Some(Instant::now());
        if !state.output_unwanted {
            state.output_length = state.output_length.saturating_add(bytes.len());
            state.output.push_back(bytes.to_vec());
        }
        self.changed.notify_all();
    }

    pub(super) fn put_said(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.moved = Some(Instant::now());
        state.said.extend(bytes);
        let over = state.said.len().saturating_sub(STDERR);
        state.said.drain(..over);
    }

    pub(super) fn end_output(&self) {
        self.lock().output_ends = true;
        self.changed.notify_all();
    }

    pub(super) fn has_ended(&self, status: Option<i32>, signal: Option<String>) {
        let mut state = self.lock();
        let stderr = state.said.iter().copied().collect();
        state.exit = Some(Exit {
            status,
            signal,
            stderr,
        });
        state.output_ends = true;
        state.input_refused = true;
        self.changed.notify_all();
    }

    /// The error of a wait that is over.
    fn late(&self) -> io::Error {
        late(&self.shared.name, self.idle).into_io()
    }

    /// When a wait that began at `began` is over.
    fn deadline(&self, state: &State, began: Instant) -> Instant {
        let since = state.moved.map_or(began, |moved| moved.max(began));
        since.checked_add(self.idle).unwrap_or(since)
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        if state.exit.is_none() {
            let name = &self.shared.name;
            state
                .failure
                .get_or_insert_with(|| format!("a command on {name} was ended"));
        }
        self.changed.notify_all();
        drop(state);
        self.shared.wake();
    }
}

/// Held by every part of a process; the last one ends it.
struct Part(Arc<Pipes>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.shared.held.fetch_sub(1, Ordering::AcqRel);
        self.0.end();
    }
}

struct Input(Arc<Part>);

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let pipes = &self.0.0;
        let began = Instant::now();
        let mut state = pipes.lock();
        loop {
            if let Some(failure) = &state.failure {
                return Err(lost(failure.clone()).into_io());
            }
            if state.input_refused {
                let name = &pipes.shared.name;
                return Err(lost(format!("a command on {name} ended before it read all")).into_io());
            }
            if state.input_length < INPUT {
                break;
            }
            let until = pipes.deadline(&state, began);
            state = pipes.sleep(state, until).ok_or_else(|| pipes.late())?;
        }
        let taken = bytes.get(..PIECE).unwrap_or(bytes);
        match state.input.back_mut() {
            Some(last) if last.len() + taken.len() <= PIECE => last.extend_from_slice(taken),
            _ => state.input.push_back(taken.to_vec()),
        }
        state.input_length = state.input_length.saturating_add(taken.len());
        drop(state);
        pipes.shared.wake();
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.0.lock().input_ends = true;
        self.0.0.shared.wake();
    }
}

struct Output(Arc<Part>);

impl Read for Output {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let pipes = &self.0.0;
        let began = Instant::now();
        let mut state = pipes.lock();
        loop {
            let at = state.output_at;
            if let Some(first) = state.output.front() {
                let rest = first.get(at..).unwrap_or_default();
                let count = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
                    to.copy_from_slice(from);
                }
                if count == rest.len() {
                    state.output.pop_front();
                    state.output_at = 0;
                } else {
                    state.output_at = at.saturating_add(count);
                }
                let was_full = state.output_length >= OUTPUT;
                state.output_length = state.output_length.saturating_sub(count);
                if was_full && state.output_length < OUTPUT {
                    pipes.shared.wake();
                }
                return Ok(count);
            }
            if state.output_ends {
                return Ok(0);
            }
            if let Some(failure) = &state.failure {
                return Err(lost(failure.clone()).into_io());
            }
            let until = pipes.deadline(&state, began);
            state = pipes.sleep(state, until).ok_or_else(|| pipes.late())?;
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.output_unwanted = true;
        state.output.clear();
        state.output_length = 0;
        drop(state);
        self.0.0.shared.wake();
    }
}

struct End(Arc<Part>);

impl Control for End {
    fn wait(&mut self, deadline: Duration) -> Result<Exit> {
        let pipes = &self.0.0;
        let now = Instant::now();
        let until = now.checked_add(deadline).unwrap_or(now);
        let mut state = pipes.lock();
        loop {
            if let Some(exit) = &state.exit {
                return Ok(exit.clone());
            }
            if let Some(failure) = &state.failure {
                return Err(lost(failure.clone()));
            }
            state = pipes
                .sleep(state, until)
                .ok_or_else(|| -> Error { late(&pipes.shared.name, deadline) })?;
        }
    }

    fn kill(&mut self) {
        self.0.0.end();
    }
}
