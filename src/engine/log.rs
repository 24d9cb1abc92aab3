//! What a build prints: which line of the Dockerfile it is at, its last lines, and what a failure means.

use crate::error::{Error, Escaped};
use crate::progress::Progress;
use std::collections::VecDeque;

/// Lines of output that are remembered.
const REMEMBERED: usize = 60;
/// Lines of output that an error repeats.
const REPEATED: usize = 4;
/// The longest line that is shown.
const MAX_LINE: usize = 4096;
/// What package managers and downloaders print when the network is to blame, in lower case.
const NETWORK: [&str; 14] = [
    "temporary failure resolving",
    "temporary failure in name resolution",
    "could not resolve",
    "couldn't resolve",
    "name or service not known",
    "failed to connect to",
    "could not connect to",
    "cannot initiate the connection",
    "unable to connect to",
    "connection timed out",
    "connection refused",
    "network is unreachable",
    "no route to host",
    "i/o timeout",
];

/// One instruction of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// The line that it begins in, from 1.
    pub(crate) line: usize,
    /// Its text with its continuations, every run of white space one blank.
    pub(crate) text: String,
}

/// The instructions of a Dockerfile: lines that end in `\` go on, comments and empty lines are none. The bodies of here
/// documents count as instructions, which harms nothing here.
pub(crate) fn instructions(dockerfile: &str) -> Vec<Instruction> {
    let mut all: Vec<Instruction> = Vec::new();
    let mut open = false;
    for (number, line) in dockerfile.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let goes_on = line.strip_suffix('\\');
        let words = squeezed(goes_on.unwrap_or(line));
        match all.last_mut().filter(|_| open) {
            Some(last) => {
                last.text.push(' ');
                last.text.push_str(&words);
            }
            None => all.push(Instruction {
                line: number + 1,
                text: words,
            }),
        }
        open = goes_on.is_some();
    }
    all
}

/// `text` with every run of white space, and of backslashes before an end of line, as one blank.
fn squeezed(text: &str) -> String {
    text.replace("\\\n", " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// A build on its way.
pub(crate) struct Log<'a> {
    progress: &'a dyn Progress,
    /// What the Dockerfile is called.
    file: String,
    instructions: Vec<Instruction>,
    /// What is being done: an instruction, if one was recognised, and what the engine calls it.
    at: Option<(Option<usize>, String)>,
    last: VecDeque<String>,
    /// The line that has not ended yet.
    open: Vec<u8>,
}

impl<'a> Log<'a> {
    /// A build of `dockerfile`, which is called `file`.
    pub(crate) fn new(file: String, dockerfile: &str, progress: &'a dyn Progress) -> Self {
        Self {
            progress,
            file,
            instructions: instructions(dockerfile),
            at: None,
            last: VecDeque::new(),
            open: Vec::new(),
        }
    }

    /// The build comes to an instruction: its number from 1, if the engine counts as the Dockerfile does, and its text.
    pub(crate) fn step(&mut self, number: Option<usize>, text: &str) {
        self.go_to(number, text);
        self.say(text);
    }

    /// Shows a line of the engine's own, which is not remembered.
    pub(crate) fn say(&self, text: &str) {
        self.progress.output(text.as_bytes());
    }

    /// As [`Self::step`], without showing it. Nothing is forgotten if the build is there already.
    pub(crate) fn go_to(&mut self, number: Option<usize>, text: &str) {
        let at = Some((self.find(number, text), squeezed(text)));
        if at != self.at {
            self.end_line();
            self.last.clear();
            self.at = at;
        }
    }

    /// Which instruction the engine speaks of. It may say it otherwise than it is written: a name instead of an argument, or
    /// only its beginning.
    fn find(&self, number: Option<usize>, text: &str) -> Option<usize> {
        let text = squeezed(text);
        let numbered = number
            .and_then(|n| n.checked_sub(1))
            .filter(|n| *n < self.instructions.len());
        let is = |i: &usize, test: &dyn Fn(&str) -> bool| {
            self.instructions.get(*i).is_some_and(|at| test(&at.text))
        };
        let all = || numbered.into_iter().chain(0..self.instructions.len());
        let same = |at: &str| at == text;
        let begins = |at: &str| text.len() > 8 && (at.starts_with(&text) || text.starts_with(at));
        let keyword = |at: &str| at.split(' ').next() == text.split(' ').next();
        let found = all().find(|i| is(i, &same));
        let found = found.or_else(|| all().find(|i| is(i, &begins)));
        found.or_else(|| numbered.filter(|i| is(i, &keyword)))
    }

    /// Bytes that were printed.
    pub(crate) fn print(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.open.extend_from_slice(part);
            if part.ends_with(b"\n") || self.open.len() > MAX_LINE {
                self.end_line();
            }
        }
    }

    /// Shows what has been printed of a line.
    pub(crate) fn end_line(&mut self) {
        let line = plain(&std::mem::take(&mut self.open));
        if line.is_empty() {
            return;
        }
        self.progress.output(&line);
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(String::from_utf8_lossy(&line).into_owned());
    }

    /// The error for a build that failed, `why` in the engine's words.
    pub(crate) fn failure(&mut self, why: &str) -> Error {
        self.end_line();
        let place = match &self.at {
            Some((Some(index), _)) => match self.instructions.get(*index) {
                Some(at) => format!("{} line {}: {}", self.file, at.line, short(&at.text)),
                None => self.file.clone(),
            },
            Some((None, text)) => format!("{}: {}", self.file, short(text)),
            None => format!("building {}", self.file),
        };
        let printed: Vec<&str> = self.last.iter().map(String::as_str).collect();
        let tail = printed
            .get(printed.len().saturating_sub(REPEATED)..)
            .unwrap_or_default();
        let mut cause = squeezed(why);
        if !tail.is_empty() {
            cause.push_str(&format!("; the last that it printed: {}", tail.join(" | ")));
        }
        let blames_network = |text: &str| {
            let text = text.to_lowercase();
            NETWORK.iter().any(|words| text.contains(words))
        };
        let cause = std::io::Error::other(cause);
        if blames_network(why) || printed.iter().any(|line| blames_network(line)) {
            return Error::network(place, cause);
        }
        Error::io(place, cause)
    }
}

/// The beginning of an instruction, for an error.
fn short(text: &str) -> String {
    const MOST: usize = 160;
    let text = Escaped(text.as_bytes()).to_string().replace("\\\\", "\\");
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// A line as a terminal would leave it: what was written over is gone, and so are colours.
fn plain(line: &[u8]) -> Vec<u8> {
    let line = line.trim_ascii_end();
    let line = line.rsplit(|b| *b == b'\r').next().unwrap_or_default();
    let mut out = Vec::with_capacity(line.len());
    let mut bytes = line.iter().copied().peekable();
    while let Some(b) = bytes.next() {
        match b {
            0x1b if bytes.peek() == Some(&b'[') => {
                // A control sequence ends with a byte from @ to ~ (ECMA-48, 5.4).
                bytes.next();
                let _ = bytes.find(|b| (0x40..=0x7e).contains(b));
            }
            0x1b => {
                bytes.next();
            }
            b'\t' => out.push(b' '),
            b => out.push(b),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;
    use crate::progress::Silent;

    const FILE: &str = "# a comment\nFROM debian:12\n\nRUN apt-get update \\\n    # inside\n && apt-get install -y nginx\nRUN [\"true\"]\nRUN exit 7\n";

    #[test]
    fn instructions_know_their_lines() {
        let found = instructions(FILE);
        let lines: Vec<usize> = found.iter().map(|i| i.line).collect();
        assert_eq!(lines, [2, 4, 7, 8]);
        assert_eq!(found[1].text, "RUN apt-get update && apt-get install -y nginx");
    }

    #[test]
    fn a_failure_names_its_line_and_says_what_was_printed() {
        let mut log = Log::new("Dockerfile".into(), FILE, &Silent);
        log.step(Some(2), "RUN apt-get update  && apt-get install -y nginx");
        log.print(b"Get:1 http://mirror.example.org\n10%\r20%\rdone\nE: \x1b[31mUnable\x1b[0m to locate package\nE: Temporary failure resolving 'x'\n");
        let error = log.failure("exit code 100");
        assert_eq!(error.code(), code::NETWORK);
        assert_eq!(
            error.to_string(),
            "Dockerfile line 4: RUN apt-get update && apt-get install -y nginx"
        );
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            cause.contains("exit code 100") && cause.contains("done | E: Unable to locate package"),
            "{cause}"
        );
        log.step(Some(4), "RUN exit 7");
        let error = log.failure("exit code 7");
        assert_eq!(
            (error.code(), error.to_string()),
            (code::FAILED, "Dockerfile line 8: RUN exit 7".into())
        );
    }

    #[test]
    fn an_engine_may_count_otherwise() {
        let mut log = Log::new("Dockerfile".into(), FILE, &Silent);
        log.step(Some(2), "RUN exit 7");
        assert!(log.failure("x").to_string().contains("line 8"));
        log.step(None, "[internal] load metadata");
        assert_eq!(
            log.failure("x").to_string(),
            "Dockerfile: [internal] load metadata"
        );
    }
}
