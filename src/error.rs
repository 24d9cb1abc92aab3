//! What can go wrong, how it is told, and which exit code it becomes.
//!
//! Readers return [`Error`]: its variants are the ones that callers match on. Above the readers `anyhow` carries
//! context; [`exit_code`] and [`report`] look through such a chain for the [`Error`] inside.

use std::fmt;

/// The result of a reader.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit codes of the program; `docs/exit-codes.md` lists them.
pub mod code {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed.
    pub const FAILED: u8 = 1;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// Done, but something was skipped or differs, and is listed.
    pub const DIFFERS: u8 = 3;
    /// Refused by a gate.
    pub const REFUSED: u8 = 4;
    /// The input is corrupt.
    pub const CORRUPT: u8 = 5;
    /// The input is of a kind that is not supported.
    pub const UNSUPPORTED: u8 = 6;
    /// A network or a host failed: worth a retry.
    pub const NETWORK: u8 = 7;
    /// Interrupted by SIGINT.
    pub const INTERRUPTED: u8 = 130;
}

/// An error with a meaning that callers and the exit code depend on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write `what`.
    #[error("{what}")]
    Io {
        /// The object and the action, as in "reading web.qcow2".
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Bytes that break the rules of their format.
    #[error("{what} (at byte {at})")]
    Corrupt {
        /// The broken rule, naming the structure.
        what: String,
        /// Byte offset in the file, disk or filesystem that `what` speaks of.
        at: u64,
    },
    /// A valid input that needs something this program does not do; `what` names the feature.
    #[error("{what}")]
    Unsupported {
        /// The feature, in the words of its specification.
        what: String,
    },
    /// A gate said no: nothing is wrong with the input, but going on needs the user's word.
    #[error("{what}")]
    Refused {
        /// What was refused.
        what: String,
    },
    /// The words on the command line, or a file the user wrote, ask for something that cannot be.
    #[error("{what}")]
    Usage {
        /// What is wrong with them.
        what: String,
    },
    /// A network or another host failed; trying again may help.
    #[error("{what}")]
    Network {
        /// The object and the action.
        what: String,
        /// The cause, where there is one.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Another error, with advice for the user.
    #[error("{source}")]
    Hinted {
        /// The error itself.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it: an imperative sentence without a full stop.
        hint: String,
    },
}

impl Error {
    /// An [`Error::Io`] about `what`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
    /// What a stream failed with while `what` was done: the [`Error`] that a reader of this library put into it, else an
    /// [`Error::Io`].
    pub fn from_io(what: impl Into<String>, source: std::io::Error) -> Self {
        match source.downcast::<Self>() {
            Ok(error) => error,
            Err(source) => Self::io(what, source),
        }
    }
    /// This error as one that a stream can give; [`Error::from_io`] takes it out again.
    pub fn into_io(self) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::InvalidData, self)
    }
    /// An [`Error::Corrupt`]; `at` is a byte offset.
    pub fn corrupt(what: impl Into<String>, at: u64) -> Self {
        Self::Corrupt {
            what: what.into(),
            at,
        }
    }
    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
    /// An [`Error::Refused`].
    pub fn refused(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into() }
    }
    /// An [`Error::Usage`].
    pub fn usage(what: impl Into<String>) -> Self {
        Self::Usage { what: what.into() }
    }
    /// An [`Error::Network`].
    pub fn network(what: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Network {
            what: what.into(),
            source: Some(Box::new(source)),
        }
    }
    /// This error with advice; see [`Error::Hinted`].
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self::Hinted {
            source: Box::new(self),
            hint: hint.into(),
        }
    }
    /// This error with the object it is about in front, as in `web.qcow2: the L1 table ...`.
    #[must_use]
    pub fn within(self, object: &str) -> Self {
        let put = |what: String| format!("{object}: {what}");
        match self {
            Self::Io { what, source } => Self::Io {
                what: put(what),
                source,
            },
            Self::Corrupt { what, at } => Self::Corrupt { what: put(what), at },
            Self::Unsupported { what } => Self::Unsupported { what: put(what) },
            Self::Refused { what } => Self::Refused { what: put(what) },
            Self::Usage { what } => Self::Usage { what: put(what) },
            Self::Network { what, source } => Self::Network {
                what: put(what),
                source,
            },
            Self::Hinted { source, hint } => match source.downcast::<Self>() {
                Ok(inner) => inner.within(object).hint(hint),
                Err(source) => Self::Hinted { source, hint },
            },
        }
    }
    /// An error of the same kind that can be given out once more.
    #[must_use]
    pub fn again(&self) -> Self {
        match self {
            Self::Corrupt { what, at } => Self::corrupt(what.clone(), *at),
            Self::Io { source, .. } => Self::io(self.to_string(), std::io::Error::from(source.kind())),
            Self::Refused { what } => Self::refused(what.clone()),
            Self::Hinted { source, hint } => match source.downcast_ref::<Self>() {
                Some(inner) => inner.again().hint(hint.clone()),
                None => Self::unsupported(self.to_string()),
            },
            _ => Self::unsupported(self.to_string()),
        }
    }
    /// The exit code this error asks for.
    pub fn code(&self) -> u8 {
        match self {
            Self::Io { .. } => code::FAILED,
            Self::Corrupt { .. } => code::CORRUPT,
            Self::Unsupported { .. } => code::UNSUPPORTED,
            Self::Refused { .. } => code::REFUSED,
            Self::Usage { .. } => code::USAGE,
            Self::Network { .. } => code::NETWORK,
            Self::Hinted { source, .. } => {
                let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
                while let Some(error) = next {
                    if let Some(error) = error.downcast_ref::<Self>() {
                        return error.code();
                    }
                    next = error.source();
                }
                code::FAILED
            }
        }
    }
}

/// Adds advice to any error on its way up.
pub trait HintExt<T> {
    /// Wraps an error with `hint`, an imperative sentence without a full stop.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> HintExt<T> for std::result::Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|e| {
            let e: anyhow::Error = e.into();
            // An `Error` without context stays one, so that its code is found inside.
            if e.chain().next().is_some_and(|e| e.is::<Error>()) {
                return match e.downcast::<Error>() {
                    Ok(e) => e.hint(hint).into(),
                    Err(e) => e,
                };
            }
            let source: Box<dyn std::error::Error + Send + Sync> = e.into();
            Error::Hinted {
                source,
                hint: hint.into(),
            }
            .into()
        })
    }
}

/// The exit code for an error chain: that of the first [`Error`] in it, else [`code::FAILED`].
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error
        .chain()
        .find_map(|e| e.downcast_ref::<Error>())
        .map_or(code::FAILED, Error::code)
}

/// The lines that tell a person of `error`: one with the chain of causes, then a `hint:` line for each advice.
pub fn report(error: &anyhow::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut hints = Vec::new();
    for cause in error.chain() {
        if let Some(Error::Hinted { hint, .. }) = cause.downcast_ref::<Error>() {
            hints.push(hint.clone());
            continue;
        }
        let text = cause.to_string();
        if causes.last().is_none_or(|last| !last.ends_with(&text)) {
            causes.push(text);
        }
    }
    if hints.is_empty() {
        hints.extend(error.chain().find_map(general_hint).map(str::to_owned));
    }
    let mut out = format!("error: {}\n", Escaped(causes.join(": ").as_bytes()));
    for hint in hints {
        out.push_str(&format!("hint: {}\n", Escaped(hint.as_bytes())));
    }
    out
}

/// What helps with errors of this kind, where nobody had better advice.
fn general_hint(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use std::io::ErrorKind;
    let io = match error.downcast_ref::<Error>() {
        Some(Error::Corrupt { .. }) => {
            return Some("the input is damaged: copy it again, or check it with its own tools");
        }
        Some(Error::Unsupported { .. }) => {
            return Some("`vm2k ls` shows what can be read; docs/ says what is supported");
        }
        Some(Error::Network { .. }) => return Some("try again; --offline uses only what the store has"),
        Some(Error::Usage { .. }) => return Some("see `vm2k help`"),
        Some(Error::Io { source, .. }) => source,
        _ => error.downcast_ref::<std::io::Error>()?,
    };
    match io.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => Some("check the path"),
        ErrorKind::PermissionDenied => Some("run as a user who may, or change the permissions"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some("make room, or name a place that has some"),
        ErrorKind::ReadOnlyFilesystem => Some("name a place that can be written"),
        _ => None,
    }
}

/// Shows bytes that a guest or a stranger chose: control characters, bytes that are not UTF-8 and the characters that
/// reorder text are escaped, so that a terminal shows what is there and obeys nothing.
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                let reorders = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
                if c == '\\' {
                    f.write_str("\\\\")?;
                } else if c.is_control() || reorders {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    fmt::Write::write_char(f, c)?;
                }
            }
            for b in chunk.invalid() {
                write!(f, "\\x{b:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn report_gives_one_cause_line_and_the_hints() {
        let e = Err::<(), _>(Error::corrupt("L1 table ends behind the file", 40))
            .context("reading web.qcow2")
            .hint("copy the file again")
            .unwrap_err();
        assert_eq!(
            report(&e),
            "error: reading web.qcow2: L1 table ends behind the file (at byte 40)\nhint: copy the file again\n"
        );
        assert_eq!(exit_code(&e), code::CORRUPT);
    }

    #[test]
    fn a_hint_keeps_the_code_of_what_it_wraps() {
        let e: anyhow::Error = Error::refused("backing file /etc/passwd").hint("allow it").into();
        assert_eq!(exit_code(&e), code::REFUSED);
        let full = Error::io("writing web.tar", std::io::ErrorKind::StorageFull.into());
        let text = report(&anyhow::Error::from(full));
        assert_eq!(
            text,
            "error: writing web.tar: no storage space\nhint: make room, or name a place that has some\n"
        );
        assert_eq!(report(&e), "error: backing file /etc/passwd\nhint: allow it\n");
        let e = Err::<(), _>(Error::refused("x")).hint("allow it").unwrap_err();
        assert_eq!(exit_code(&e), code::REFUSED);
    }

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(
            Escaped(b"a\x1b[31m\xff\\\n").to_string(),
            "a\\u{1b}[31m\\xff\\\\\\n"
        );
        assert_eq!(
            Escaped("na\u{ef}ve \u{202e}".as_bytes()).to_string(),
            "na\u{ef}ve \\u{202e}"
        );
    }
}
