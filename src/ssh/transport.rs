//! A way to run commands on another host, whatever carries it: libssh2, the user's own ssh client, or a local shell in tests.
//!
//! What the far side sends is untrusted. A transport bounds it in time (a read or write fails when nothing moved for its idle
//! deadline) and in memory; who reads it bounds its length.

use crate::error::{Error, Result};
use std::io::{Read, Write};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How much of a command's stderr is kept: the end of it, in bytes.
pub const STDERR: usize = 64 << 10;

/// A way to run commands on another host.
pub trait Transport: Send + Sync {
    /// For messages: `root@web1:22`.
    fn name(&self) -> String;

    /// Starts `command`, a line for the login shell of the far side. Several may run at once.
    ///
    /// # Errors
    /// [`Error::Network`] if the connection or the program that makes it cannot be had.
    fn start(&self, command: &str) -> Result<Process>;
}

/// A command that runs on the far side. The three parts may be used by three threads at once; dropping all of them ends the
/// command.
///
/// Reads and writes fail with an [`Error::Network`] inside [`std::io::Error`] ([`Error::into_io`]) when the connection is
/// gone or nothing moved for the idle deadline.
pub struct Process {
    /// What the command reads; dropping it sends the end of the stream.
    pub stdin: Box<dyn Write + Send>,
    /// What the command writes.
    pub stdout: Box<dyn Read + Send>,
    /// How it ends.
    pub control: Box<dyn Control>,
}

/// The end of a command.
pub trait Control: Send {
    /// Waits for the end, at most `deadline`. May be called again after an error.
    ///
    /// # Errors
    /// [`Error::Network`] if it still runs then, or if the connection broke.
    fn wait(&mut self, deadline: Duration) -> Result<Exit>;

    /// Ends it now. Reads and writes that wait give up.
    fn kill(&mut self);
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status, if it ended by itself.
    pub status: Option<i32>,
    /// The signal that ended it, without `SIG`.
    pub signal: Option<String>,
    /// The end of what it wrote to stderr, at most [`STDERR`] bytes.
    pub stderr: Vec<u8>,
}

impl Exit {
    /// True if it ended with status 0.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }

    /// How it ended and the last line that it said, for a message.
    pub fn describe(&self) -> String {
        let how = match (&self.signal, self.status) {
            (Some(signal), _) => format!("ended by signal {signal}"),
            (None, Some(status)) => format!("exit status {status}"),
            (None, None) => "ended without a status".to_owned(),
        };
        let text = String::from_utf8_lossy(&self.stderr);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => {
                let line: String = line.trim().chars().take(500).collect();
                format!("{how}: {line}")
            }
            None => how,
        }
    }
}

/// What a short command gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
}

/// Runs a short command to its end: `stdin` given, stdout at most `limit` bytes, all within `deadline`.
///
/// # Errors
/// [`Error::Network`] if it cannot be started, is not done in time, or the connection breaks; [`Error::Corrupt`] if it writes
/// more than `limit` bytes. A status other than 0 is no error.
pub fn run(
    transport: &dyn Transport,
    command: &str,
    stdin: &[u8],
    limit: usize,
    deadline: Duration,
) -> Result<Output> {
    let until = Instant::now() + deadline;
    let Process {
        stdin: mut input,
        stdout,
        mut control,
    } = transport.start(command)?;
    // The threads own what they use and end when the command does: a far side that stalls cannot hold up this one.
    let given = stdin.to_vec();
    std::thread::spawn(move || {
        // A command that does not read all of its input says why by its status.
        let _ = input.write_all(&given);
        let _ = input.flush();
    });
    let (done, output) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let result = stdout.take(more).read_to_end(&mut bytes);
        let _ = done.send(result.map(|_| bytes));
    });
    let left = |until: Instant| until.saturating_duration_since(Instant::now());
    let bytes = match output.recv_timeout(left(until)) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(e)) => {
            // How the command ended says more than that its stream broke.
            let ended = control.wait(left(until).min(Duration::from_secs(1)));
            control.kill();
            return match ended {
                Ok(exit) if !exit.success() => Ok(Output {
                    exit,
                    stdout: Vec::new(),
                }),
                _ => Err(Error::from_io(format!("reading from {}", transport.name()), e)),
            };
        }
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            control.kill();
            return Err(late(&transport.name(), deadline));
        }
    };
    if bytes.len() > limit {
        control.kill();
        return Err(Error::corrupt(
            format!(
                "{}: a command wrote more than {limit} bytes, which it should not",
                transport.name()
            ),
            u64::try_from(limit).unwrap_or(u64::MAX),
        ));
    }
    match control.wait(left(until)) {
        Ok(exit) => Ok(Output { exit, stdout: bytes }),
        Err(e) => {
            control.kill();
            Err(e)
        }
    }
}

/// The error of a host that did not answer in time.
pub fn late(name: &str, deadline: Duration) -> Error {
    lost(format!("{name} did not answer within {} s", deadline.as_secs()))
}

/// An [`Error::Network`] without a further cause.
pub fn lost(what: impl Into<String>) -> Error {
    Error::Network {
        what: what.into(),
        source: None,
    }
}

/// `word` as one word of a POSIX shell's command line.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
