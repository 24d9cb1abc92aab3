//! One channel of libssh2, moved on a step at a time.

use super::pipes::Pipes;
use super::{EAGAIN, Shared, broken, is_fatal};
use crate::ssh::transport::STDERR;
use ssh2::ErrorCode;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the far side may take to confirm the end of a channel.
const CLOSE: Duration = Duration::from_secs(5);
/// The stream of a channel that carries stderr (RFC 4254 section 5.2).
const STDERR_STREAM: i32 = 1;

enum Phase {
    /// The command is to be asked for.
    Starts(String),
    Runs,
    /// This side closes; it gives up then.
    Closes(Instant),
}

/// What a step came to.
pub(super) enum Step {
    /// The channel is gone.
    Done,
    /// There is more to come.
    Waits {
        /// Something moved: another step may move more.
        moved: bool,
        /// What comes from the far side matters.
        listens: bool,
    },
}

pub(super) struct Channel {
    channel: ssh2::Channel,
    pub(super) pipes: Arc<Pipes>,
    phase: Phase,
    /// What libssh2 was given and has not sent; the same bytes are given until it has.
    piece: Vec<u8>,
    at: usize,
    /// The last write did not go through.
    write_waits: bool,
    /// The last read found nothing: it may hold a half-sent answer, and is repeated in any case.
    read_waits: bool,
    input_refused: bool,
    input_ended: bool,
    output_ended: bool,
}

impl Channel {
    /// An open channel; a tunnel has no `command`.
    pub(super) fn new(channel: ssh2::Channel, command: Option<String>, pipes: Arc<Pipes>) -> Self {
        let phase = match command {
            Some(command) => Phase::Starts(command),
            None => {
                pipes.started();
                Phase::Runs
            }
        };
        Self {
            channel,
            pipes,
            phase,
            piece: Vec::new(),
            at: 0,
            write_waits: false,
            read_waits: false,
            input_refused: false,
            input_ended: false,
            output_ended: false,
        }
    }

    /// True if libssh2 may hold a packet of this channel that it could not send yet.
    pub(super) fn is_sending(&self) -> bool {
        self.write_waits && self.channel.write_window().remaining > 0
    }

    pub(super) fn step(
        &mut self,
        session: &ssh2::Session,
        buffer: &mut [u8],
        shared: &Shared,
    ) -> Result<Step, String> {
        let failed = |e: io::Error| match ssh2::Error::last_session_error(session) {
            Some(last) if !is_fatal(&last) => None,
            Some(last) => Some(broken(&shared.name, &last)),
            None => Some(format!("the connection to {} broke: {e}", shared.name)),
        };
        let wishes = self.pipes.wishes();
        let mut moved = false;
        match &self.phase {
            Phase::Starts(command) => {
                match self.channel.exec(command) {
                    Ok(()) => {
                        self.pipes.started();
                        self.phase = Phase::Runs;
                    }
                    Err(e) if e.code() == ErrorCode::Session(EAGAIN) => {
                        return Ok(Step::Waits {
                            moved: false,
                            listens: true,
                        });
                    }
                    Err(e) if is_fatal(&e) => return Err(broken(&shared.name, &e)),
                    Err(e) => {
                        let text = format!("{} runs no command: {}", shared.name, e.message());
                        self.pipes.fail(&text);
                        self.close();
                    }
                }
                return Ok(Step::Waits {
                    moved: true,
                    listens: true,
                });
            }
            Phase::Closes(until) => {
                let until = *until;
                // A window that was to be widened keeps libssh2 from sending anything else.
                if let Err(e) = self.channel.read(buffer)
                    && e.kind() != io::ErrorKind::WouldBlock
                    && let Some(failure) = failed(e)
                {
                    return Err(failure);
                }
                if self.is_sending() {
                    self.write(session, shared)?;
                }
                return match self.channel.close() {
                    Err(e) if e.code() == ErrorCode::Session(EAGAIN) && Instant::now() < until => {
                        Ok(Step::Waits {
                            moved: false,
                            listens: true,
                        })
                    }
                    Err(e) if e.code() != ErrorCode::Session(EAGAIN) && is_fatal(&e) => {
                        Err(broken(&shared.name, &e))
                    }
                    _ => Ok(Step::Done),
                };
            }
            Phase::Runs => {}
        }
        if (wishes.reads || self.read_waits || wishes.ended) && !self.output_ended {
            match self.channel.read(buffer) {
                Ok(count) => {
                    self.read_waits = false;
                    if count > 0 {
                        self.pipes.put_output(buffer.get(..count).unwrap_or_default());
                        shared.received.fetch_add(count as u64, Ordering::Relaxed);
                        moved = true;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.read_waits = true,
                Err(e) => match failed(e) {
                    Some(failure) => return Err(failure),
                    None => self.output_ended = true,
                },
            }
        }
        let room = buffer.len().min(STDERR);
        match self
            .channel
            .stream(STDERR_STREAM)
            .read(buffer.get_mut(..room).unwrap_or_default())
        {
            Ok(0) => {}
            Ok(count) => {
                self.pipes.put_said(buffer.get(..count).unwrap_or_default());
                shared.received.fetch_add(count as u64, Ordering::Relaxed);
                moved = true;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                if let Some(failure) = failed(e) {
                    return Err(failure);
                }
            }
        }
        if self.channel.eof() {
            if !self.output_ended {
                self.output_ended = true;
                self.pipes.end_output();
                moved = true;
            }
            match self.channel.wait_close() {
                Ok(()) => {
                    let signal = self.channel.exit_signal().ok().and_then(|s| s.exit_signal);
                    let status = match &signal {
                        Some(_) => None,
                        None => self.channel.exit_status().ok(),
                    };
                    self.pipes.has_ended(status, signal);
                    self.close();
                    return Ok(Step::Waits {
                        moved: true,
                        listens: true,
                    });
                }
                Err(e) if e.code() == ErrorCode::Session(EAGAIN) => {}
                Err(e) if is_fatal(&e) => return Err(broken(&shared.name, &e)),
                Err(_) => {}
            }
        }
        let wrote = self.write(session, shared)?;
        moved |= wrote;
        if wishes.ended && !self.is_sending() {
            self.close();
            moved = true;
        } else if wishes.input_ends && !wrote && self.piece.is_empty() && !self.input_ended {
            match self.channel.send_eof() {
                Err(e) if e.code() == ErrorCode::Session(EAGAIN) => {}
                Err(e) if is_fatal(&e) => return Err(broken(&shared.name, &e)),
                // It closed before: that is its answer.
                _ => self.input_ended = true,
            }
        }
        Ok(Step::Waits {
            moved,
            listens: wishes.reads || self.read_waits || self.write_waits || self.output_ended,
        })
    }

    /// Gives libssh2 one packet.
    fn write(&mut self, session: &ssh2::Session, shared: &Shared) -> Result<bool, String> {
        if self.input_refused {
            return Ok(false);
        }
        if self.at >= self.piece.len() {
            self.at = 0;
            self.piece = self.pipes.take_input().unwrap_or_default();
            if self.piece.is_empty() {
                return Ok(false);
            }
        }
        match self.channel.write(self.piece.get(self.at..).unwrap_or_default()) {
            Ok(0) => {
                self.write_waits = true;
                Ok(false)
            }
            Ok(count) => {
                self.write_waits = false;
                self.at = self.at.saturating_add(count);
                shared.sent.fetch_add(count as u64, Ordering::Relaxed);
                if self.at >= self.piece.len() {
                    self.piece = Vec::new();
                    self.at = 0;
                }
                self.pipes.has_moved();
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.write_waits = true;
                Ok(false)
            }
            Err(e) => match ssh2::Error::last_session_error(session) {
                Some(last) if !is_fatal(&last) => {
                    self.write_waits = false;
                    self.input_refused = true;
                    self.piece = Vec::new();
                    self.pipes.refuse_input();
                    Ok(true)
                }
                Some(last) => Err(broken(&shared.name, &last)),
                None => Err(format!("the connection to {} broke: {e}", shared.name)),
            },
        }
    }

    fn close(&mut self) {
        self.phase = Phase::Closes(Instant::now() + CLOSE);
    }
}
