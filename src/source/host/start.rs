//! Bringing the agent to a host and starting it there.
//!
//! One command does it all: it finds a directory where a file can be written and executed, takes the agent through its stdin
//! into a private file there, and runs it. The agent removes that file first of all; if it never ran, the shell does.

use crate::agent::wire::{Hello, kind, read_frame};
use crate::error::{Error, Result};
use crate::ssh::transport::{Control, Process, Transport, lost, quote};
use std::io::{Read, Write};
use std::time::Duration;
use zeroize::Zeroizing;

/// How the agent gets rights on the host.
#[derive(Clone, Default)]
pub enum Sudo {
    /// `sudo -n` if it works, else the user's own rights.
    #[default]
    Try,
    /// The user's own rights.
    No,
    /// `sudo -n`, or an error.
    Demand,
    /// `sudo -S` with this password.
    Password(Zeroizing<String>),
}

impl std::fmt::Debug for Sudo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Try => "Try",
            Self::No => "No",
            Self::Demand => "Demand",
            Self::Password(_) => "Password",
        })
    }
}

/// An agent that runs.
pub(super) struct Started {
    pub(super) stdin: Box<dyn Write + Send>,
    pub(super) stdout: Box<dyn Read + Send>,
    pub(super) control: Box<dyn Control>,
    pub(super) hello: Hello,
    /// Bytes that were sent and received for it.
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// What came of an attempt.
enum Attempt {
    Started(Box<Started>),
    /// This directory will not do.
    Full(String),
    /// No agent can run there, and why.
    Never(String),
}

/// Bytes of greetings that login shells may print.
const GREETING: usize = 64 << 10;
/// The longest wait for the end of a command that failed.
const END: Duration = Duration::from_secs(5);

/// The command line that brings the agent. Without single quotes, exclamation marks and line breaks: it stands between single
/// quotes in the line of a login shell that may be of any kind.
fn script(size: usize, machine: &str, tried: &[String], sudo: &Sudo) -> String {
    let tried: Vec<String> = tried.iter().map(|d| format!(":{d}:")).collect();
    let sudo = match sudo {
        Sudo::Try => "try",
        Sudo::No => "no",
        Sudo::Demand => "demand",
        Sudo::Password(_) => "password",
    };
    let script = [
        r#"umask 077; f=; trap "rm -f \"\$f\"" EXIT; trap "exit 129" HUP INT TERM PIPE; "#.to_owned(),
        r#"s=$(uname -s) m=$(uname -m); "#.to_owned(),
        format!(r#"[ "$s/$m" = "Linux/{machine}" ] || {{ echo "vm2k: never it is a $s system on $m"; exit 0; }}; "#),
        r#"for d in "${XDG_RUNTIME_DIR:-}" /run /dev/shm /tmp /var/tmp "${HOME:-}"; do "#.to_owned(),
        r#"[ -n "$d" ] && [ -d "$d" ] && [ -w "$d" ] || continue; "#.to_owned(),
        format!(r#"case "{}" in *":$d:"*) continue;; esac; "#, tried.concat()),
        r#"f=$(mktemp "$d/.vm2k-XXXXXXXXXX" 2>/dev/null) || { f=; continue; }; "#.to_owned(),
        r##"{ printf "#%b/bin/sh\nexit 0\n" "\0041" > "$f" && chmod 700 "$f" && "$f"; } 2>/dev/null && break; "##.to_owned(),
        r#"rm -f "$f"; f=; done; "#.to_owned(),
        r#"[ -n "$f" ] || { echo "vm2k: never no directory there takes a file that can be executed"; exit 0; }; "#.to_owned(),
        r#"echo "vm2k: place $d"; "#.to_owned(),
        format!(r#"e=$(export LC_ALL=C; {{ head -c {size} | gzip -dc > "$f"; }} 2>&1) || "#),
        r#"{ case "$e" in *pace*|*quota*) echo "vm2k: full $d";; *) echo "vm2k: lost $e";; esac; exit 0; }; "#.to_owned(),
        r#""$f" agent --check 2>/dev/null || { echo "vm2k: never the agent cannot run there"; exit 0; }; "#.to_owned(),
        r#"i=; command -v ionice >/dev/null 2>&1 && i="ionice -c3"; "#.to_owned(),
        format!(r#"u={sudo}; [ "$(id -u)" = 0 ] && u=no; "#),
        r#"if [ $u = try ] || [ $u = demand ]; then "#.to_owned(),
        r#"if sudo -n "$f" agent --check >/dev/null 2>&1; then u=sudo; elif [ $u = demand ]; then echo "vm2k: sudo"; exit 0; else u=no; fi; fi; "#.to_owned(),
        r#"case $u in sudo) echo "vm2k: go"; $i sudo -n "$f" agent --own "$f";; "#.to_owned(),
        r#"password) echo "vm2k: password"; $i sudo -S -p "" "$f" agent --own "$f" --say;; "#.to_owned(),
        r#"*) echo "vm2k: go"; $i "$f" agent --own "$f";; esac"#.to_owned(),
    ]
    .concat();
    format!("exec /bin/sh -c {}", quote(&script))
}

/// Brings `agent` (gzip'ed) to the host of `transport` and starts it. `Ok(Err(why))` if no agent can run there.
///
/// # Errors
/// [`Error::Network`] if the connection breaks, [`Error::Refused`] if sudo is demanded and refuses.
pub(super) fn start(
    transport: &dyn Transport,
    agent: &[u8],
    machine: &str,
    sudo: &Sudo,
) -> Result<Result<Started, String>> {
    let mut tried = Vec::new();
    // There are six directories.
    for _ in 0..6 {
        match attempt(transport, agent, machine, &tried, sudo)? {
            Attempt::Started(started) => return Ok(Ok(*started)),
            Attempt::Never(why) => return Ok(Err(why)),
            Attempt::Full(place) => tried.push(place),
        }
    }
    Ok(Err(format!(
        "there is no room for the agent in {}",
        tried.join(", ")
    )))
}

fn attempt(
    transport: &dyn Transport,
    agent: &[u8],
    machine: &str,
    tried: &[String],
    sudo: &Sudo,
) -> Result<Attempt> {
    let name = transport.name();
    let Process {
        mut stdin,
        stdout,
        mut control,
    } = transport.start(&script(agent.len(), machine, tried, sudo))?;
    let mut from = Lines {
        from: stdout,
        read: 0,
    };
    let mut unsent: Option<std::io::Error> = None;
    // What goes wrong is best told by what the command said on stderr.
    let mut told = |error: Error| {
        again(match control.wait(END) {
            Ok(exit) if exit.success() && exit.stderr.is_empty() => error,
            Ok(exit) => lost(format!("{name}: the agent was not started: {}", exit.describe())),
            Err(_) => error,
        })
    };
    loop {
        let line = match from.line() {
            Ok(Some(line)) => line,
            Ok(None) if unsent.is_some() => {
                let why = unsent
                    .take()
                    .map(|e| Error::from_io(format!("sending the agent to {name}"), e));
                return Err(told(why.unwrap_or_else(|| lost(""))));
            }
            Ok(None) => return Err(told(lost(format!("{name}: the agent was not started")))),
            Err(e) => return Err(told(Error::from_io(format!("reading from {name}"), e))),
        };
        let Some(word) = line.strip_prefix("vm2k: ") else {
            continue;
        };
        let (word, rest) = word.split_once(' ').unwrap_or((word, ""));
        match word {
            "place" => {
                // Why it is not taken stands in the next line.
                let sent = stdin.write_all(agent).and_then(|()| stdin.flush());
                unsent = sent.err();
            }
            // The command removes its file before it ends.
            "full" => {
                let _ = told(lost(""));
                return Ok(Attempt::Full(rest.to_owned()));
            }
            "never" => {
                let _ = told(lost(""));
                return Ok(Attempt::Never(rest.chars().take(200).collect()));
            }
            "lost" => {
                let _ = told(lost(""));
                return Err(again(lost(format!("{name}: the agent did not arrive: {rest}"))));
            }
            "sudo" => {
                let _ = told(lost(""));
                return Err(
                    Error::refused(format!("{name}: sudo asks for a password or refuses"))
                        .hint("give the password with --sudo-password-stdin, or connect as a user who may"),
                );
            }
            "password" => {
                if let Sudo::Password(password) = sudo {
                    let line = Zeroizing::new(format!("{}\n", &**password));
                    let sent = stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush());
                    sent.map_err(|e| Error::from_io(format!("writing to {name}"), e))?;
                }
            }
            "go" => break,
            _ => {}
        }
    }
    let mut buf = Vec::new();
    let hello = match read_frame(&mut from.from, &mut buf) {
        Ok(Some(kind::HELLO)) => Hello::decode(&buf).map_err(|e| e.within(&name))?,
        Ok(_) => return Err(told(lost(format!("{name}: the agent did not speak")))),
        Err(e) => return Err(told(e)),
    };
    Ok(Attempt::Started(Box::new(Started {
        stdin,
        received: from.read + buf.len() as u64 + 9,
        stdout: from.from,
        control,
        hello,
        sent: agent.len() as u64,
    })))
}

/// The advice for a connection that broke.
fn again(error: Error) -> Error {
    match error {
        e @ Error::Network { .. } => {
            e.hint("see that the host can be reached, and run the same command again")
        }
        e => e,
    }
}

/// Lines in front of the protocol, read byte by byte, so that nothing behind them is.
struct Lines {
    from: Box<dyn Read + Send>,
    read: u64,
}

impl Lines {
    fn line(&mut self) -> std::io::Result<Option<String>> {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            match self.from.read(&mut byte) {
                Ok(0) if line.is_empty() => return Ok(None),
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            self.read += 1;
            if self.read > GREETING as u64 {
                return Err(
                    Error::corrupt("the host prints without end before the agent starts", 0).into_io(),
                );
            }
            match byte {
                [b'\n'] => break,
                [byte] => line.push(byte),
            }
        }
        Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
    }
}
