//! `--rsh COMMAND`: another program makes the connection, the user's own ssh client or, in tests, a local shell.

use super::transport::{Control, Exit, Process, STDERR, Transport, late, lost};
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing may move before a connection counts as lost.
const IDLE: Duration = Duration::from_secs(60);
/// How long a command that is no longer needed may take to end.
const GRACE: Duration = Duration::from_secs(2);
/// How often a wait looks whether the command was killed meanwhile.
const SLICE: Duration = Duration::from_millis(200);

/// Where a command is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host: String,
    /// The user, if it is not the one that the program takes by itself.
    pub user: Option<String>,
    /// The port, if it is not the usual one.
    pub port: Option<u16>,
}

impl Place {
    /// `user@host`.
    fn address(&self) -> String {
        match &self.user {
            Some(user) => format!("{user}@{}", self.host),
            None => self.host.clone(),
        }
    }
}

/// A program that takes a command as its last word and runs it on another host.
#[derive(Debug, Clone)]
pub struct Rsh {
    words: Vec<String>,
    name: String,
    idle: Duration,
}

impl Rsh {
    /// The program of `--rsh`, a command line as a shell would split it. The tokens `%h` (host), `%r` (user, empty if none),
    /// `%p` (port, 22 if none) and `%%` are replaced; without `%h`, `-p PORT` (if there is one) and `user@host` are added as
    /// ssh takes them. The command to run follows as the last word.
    ///
    /// # Errors
    /// [`Error::Usage`] if `text` is empty or ends inside quotes.
    pub fn new(text: &str, place: &Place) -> Result<Self> {
        let mut words = split(text)
            .filter(|words| !words.is_empty())
            .ok_or_else(|| Error::usage(format!("--rsh {text:?} is not a command line")))?;
        let named = words.iter().any(|word| word.contains("%h"));
        for word in &mut words {
            *word = fill(word, place);
        }
        if !named {
            if let Some(port) = place.port {
                words.extend(["-p".to_owned(), port.to_string()]);
            }
            // No address can be taken for an option.
            if place.address().starts_with('-') {
                return Err(Error::usage(format!("{} is not a host", place.address())));
            }
            words.push(place.address());
        }
        let name = match place.port {
            Some(port) => format!("{}:{port}", place.address()),
            None => place.address(),
        };
        Ok(Self::with_words(words, name))
    }

    /// Runs `words` with the command as one word more.
    pub fn with_words(words: Vec<String>, name: String) -> Self {
        Self {
            words,
            name,
            idle: IDLE,
        }
    }

    /// This with another idle deadline.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }
}

fn fill(word: &str, place: &Place) -> String {
    let mut out = String::new();
    let mut chars = word.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek().copied()) {
            ('%', Some(token @ ('h' | 'r' | 'p' | '%'))) => {
                chars.next();
                match token {
                    'h' => out.push_str(&place.host),
                    'r' => out.push_str(place.user.as_deref().unwrap_or_default()),
                    'p' => out.push_str(&place.port.unwrap_or(22).to_string()),
                    _ => out.push('%'),
                }
            }
            _ => out.push(c),
        }
    }
    out
}

/// The words of a command line with the quotes and backslashes of a POSIX shell; `None` if a quote is open at the end.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

impl Transport for Rsh {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn start(&self, command: &str) -> Result<Process> {
        let Some((program, words)) = self.words.split_first() else {
            return Err(Error::usage("--rsh names no program"));
        };
        let child = Command::new(program)
            .args(words)
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::usage(format!("--rsh: there is no program {program}")),
            _ => Error::network(format!("starting {program}"), e),
        })?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::unsupported("a process without streams"));
        };
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let keep = Arc::clone(&said);
        let listener = std::thread::spawn(move || listen(stderr, &keep));
        let shared = Arc::new(Shared {
            name: self.name.clone(),
            idle: self.idle,
            killed: AtomicBool::new(false),
            child: Mutex::new(child),
        });
        Ok(Process {
            stdin: Box::new(Pipe::new(stdin.into(), &shared)?),
            stdout: Box::new(Pipe::new(stdout.into(), &shared)?),
            control: Box::new(Rshell {
                shared,
                said,
                listener: Some(listener),
            }),
        })
    }
}

/// Keeps the end of what comes from `from`.
fn listen(mut from: impl Read, keep: &Mutex<VecDeque<u8>>) {
    let mut buf = [0; 4096];
    loop {
        match from.read(&mut buf) {
            Ok(0) => return,
            Ok(n) => {
                let mut keep = keep.lock().unwrap_or_else(PoisonError::into_inner);
                keep.extend(buf.get(..n).unwrap_or_default());
                let over = keep.len().saturating_sub(STDERR);
                keep.drain(..over);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// What the three parts of a process share. The last one to be dropped ends the process.
struct Shared {
    name: String,
    idle: Duration,
    killed: AtomicBool,
    child: Mutex<Child>,
}

impl Shared {
    fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Its streams are closed by now. What cleans up behind itself gets the time for it.
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended(child) {
            return;
        }
        if let Some(pid) = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            if ended(child) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }
}

/// One stream of the process.
struct Pipe {
    fd: OwnedFd,
    shared: Arc<Shared>,
}

impl Pipe {
    fn new(fd: OwnedFd, shared: &Arc<Shared>) -> Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)
            .map_err(|e| Error::network(format!("starting {}", shared.name), io::Error::from(e)))?;
        Ok(Self {
            fd,
            shared: Arc::clone(shared),
        })
    }

    /// Waits until `fd` can be used.
    fn ready(&self, fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<()> {
        let until = Instant::now() + self.shared.idle;
        loop {
            if self.shared.killed.load(Ordering::SeqCst) {
                return Err(lost(format!("the connection to {} was ended", self.shared.name)).into_io());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late(&self.shared.name, self.shared.idle).into_io());
            }
            let slice = left.min(SLICE);
            let timeout = Timespec {
                tv_sec: i64::try_from(slice.as_secs()).unwrap_or(1),
                tv_nsec: slice.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.fd, &mut *buf) {
                Err(rustix::io::Errno::AGAIN) => self.ready(self.fd.as_fd(), PollFlags::IN)?,
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.fd, buf) {
                Err(rustix::io::Errno::AGAIN) => self.ready(self.fd.as_fd(), PollFlags::OUT)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE) => {
                    return Err(lost(format!("{} closed the connection", self.shared.name)).into_io());
                }
                done => return Ok(done?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of a process of this host.
struct Rshell {
    shared: Arc<Shared>,
    said: Arc<Mutex<VecDeque<u8>>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

impl Control for Rshell {
    fn wait(&mut self, deadline: Duration) -> Result<Exit> {
        let until = Instant::now() + deadline;
        let status = loop {
            let status = {
                let mut child = self.shared.child.lock().unwrap_or_else(PoisonError::into_inner);
                child.try_wait()
            };
            let name = &self.shared.name;
            match status.map_err(|e| Error::network(format!("waiting for {name}"), e))? {
                Some(status) => break status,
                None if Instant::now() >= until => return Err(late(name, deadline)),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        // What it said is complete when its stderr ends; a grandchild may hold that open.
        let patience = Instant::now() + Duration::from_millis(500);
        while self.listener.as_ref().is_some_and(|l| !l.is_finished()) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(2));
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Exit {
            status: status.code(),
            signal: status.signal().map(signal_name),
            stderr: said.iter().copied().collect(),
        })
    }

    fn kill(&mut self) {
        self.shared.kill();
    }
}

fn signal_name(number: i32) -> String {
    let name = match number {
        1 => "HUP",
        2 => "INT",
        6 => "ABRT",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        15 => "TERM",
        _ => return number.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::transport::run;
    use super::*;

    fn sh() -> Rsh {
        Rsh::with_words(vec!["sh".into(), "-c".into()], "here".into()).idle(Duration::from_secs(5))
    }

    #[test]
    fn the_words_of_a_command_line() {
        let words = |text| split(text).unwrap_or_else(|| vec!["open".into()]);
        assert_eq!(
            words(r#"ssh -o "a b" 'c''d' e\ f"#),
            ["ssh", "-o", "a b", "cd", "e f"]
        );
        assert_eq!(words("a 'b"), ["open"]);
        assert_eq!(words(" '' "), [""]);
        let place = Place {
            host: "web1".into(),
            user: Some("root".into()),
            port: Some(2222),
        };
        let rsh = Rsh::new("ssh -q", &place).unwrap();
        assert_eq!(rsh.words, ["ssh", "-q", "-p", "2222", "root@web1"]);
        assert_eq!(rsh.name(), "root@web1:2222");
        let rsh = Rsh::new("run %h -l %r -P%p 100%%", &place).unwrap();
        assert_eq!(rsh.words, ["run", "web1", "-l", "root", "-P2222", "100%"]);
        assert!(Rsh::new("", &place).is_err());
        let option = Place {
            host: "-oProxyCommand=x".into(),
            ..Place::default()
        };
        assert!(Rsh::new("ssh", &option).is_err());
    }

    #[test]
    fn a_command_has_input_output_status_and_a_deadline() {
        let second = Duration::from_secs(10);
        let out = run(&sh(), "cat; echo no >&2; exit 3", b"hello", 100, second).unwrap();
        assert_eq!((out.stdout.as_slice(), out.exit.status), (&b"hello"[..], Some(3)));
        assert_eq!(out.exit.describe(), "exit status 3: no");
        assert!(matches!(
            run(&sh(), "cat /dev/zero", b"", 100_000, second),
            Err(Error::Corrupt { .. })
        ));
        let began = Instant::now();
        let e = run(&sh(), "sleep 20", b"", 10, Duration::from_millis(300)).unwrap_err();
        assert!(matches!(e, Error::Network { .. }), "{e}");
        assert!(began.elapsed() < Duration::from_secs(5));
        let out = run(&sh(), "kill -9 $$", b"", 10, second).unwrap();
        assert_eq!(out.exit.signal.as_deref(), Some("KILL"));
        // More input than it reads is no failure of ours.
        let out = run(&sh(), "exit 0", &vec![0; 1 << 20], 10, second).unwrap();
        assert!(out.exit.success());
    }

    #[test]
    fn a_stream_that_stalls_is_an_error_of_the_network() {
        let rsh = sh().idle(Duration::from_millis(300));
        let mut process = rsh.start("sleep 20").unwrap();
        let e = process.stdout.read(&mut [0; 8]).unwrap_err();
        let e = Error::from_io("reading", e);
        assert!(matches!(e, Error::Network { .. }), "{e}");
        let e = loop {
            if let Err(e) = process.stdin.write(&[0; 4096]) {
                break Error::from_io("writing", e);
            }
        };
        assert!(matches!(e, Error::Network { .. }), "{e}");
    }
}
