//! `GuestPath`: a path inside the machine. Host paths stay `std::path::Path`, so that the compiler keeps the two apart.

use crate::error::{Error, Escaped, Result};
use std::fmt;
use std::sync::Arc;

/// An absolute path inside a machine or an image: bytes, no `.`, `..`, empty part or NUL. `/` is the root.
///
/// Ordered by its bytes; a directory comes before what is in it. A clone shares the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPath(Arc<[u8]>);

/// The longest path in bytes that is accepted: PATH_MAX of Linux is 4,096, deeper trees exist on disks all the same.
const MAX_LEN: usize = 64 << 10;

impl GuestPath {
    /// The root, `/`.
    pub fn root() -> Self {
        Self(Arc::from(*b"/"))
    }

    /// Checks `bytes`, which must begin with `/` and have no empty, `.` or `..` part and no NUL.
    ///
    /// # Errors
    /// [`Error::Corrupt`] that shows the path.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let bad = || {
            Error::corrupt(
                format!("{:?} is not a path of the machine", Escaped(bytes).to_string()),
                0,
            )
        };
        let rest = bytes.strip_prefix(b"/").ok_or_else(bad)?;
        if !rest.is_empty() && !rest.split(|b| *b == b'/').all(is_name) || bytes.len() > MAX_LEN {
            return Err(bad());
        }
        Ok(Self(bytes.into()))
    }

    /// The path that `text` means when a person or a guest file writes it: repeated and trailing slashes and `.` parts are
    /// dropped, a missing first slash is added.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it has `..` parts or NULs.
    pub fn lenient(text: &[u8]) -> Result<Self> {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        for part in text.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
            bytes.push(b'/');
            bytes.extend_from_slice(part);
        }
        if bytes.is_empty() {
            bytes.push(b'/');
        }
        Self::new(&bytes)
    }

    /// The path that `text` shows, as [`Display`](fmt::Display) writes it: the reverse of escaping.
    ///
    /// # Errors
    /// [`Error::Usage`] for an escape that is none; else as [`GuestPath::new`].
    pub fn from_escaped(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!(
                "{text:?}: an escape in this path is none of \\\\, \\n, \\r, \\t, \\xNN, \\u{{N}}"
            ))
        };
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            let (plain, escape) = rest.split_at(at);
            bytes.extend_from_slice(plain.as_bytes());
            let mut chars = escape.chars();
            let (_, code) = (chars.next(), chars.next().ok_or_else(bad)?);
            rest = chars.as_str();
            match code {
                '\\' => bytes.push(b'\\'),
                'n' => bytes.push(b'\n'),
                'r' => bytes.push(b'\r'),
                't' => bytes.push(b'\t'),
                'x' => {
                    let digits = rest.get(..2).ok_or_else(bad)?;
                    bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
                    rest = rest.get(2..).unwrap_or_default();
                }
                'u' => {
                    let (digits, after) = rest
                        .strip_prefix('{')
                        .and_then(|r| r.split_once('}'))
                        .ok_or_else(bad)?;
                    let c = u32::from_str_radix(digits, 16)
                        .ok()
                        .and_then(char::from_u32)
                        .ok_or_else(bad)?;
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    rest = after;
                }
                _ => return Err(bad()),
            }
        }
        bytes.extend_from_slice(rest.as_bytes());
        Self::new(&bytes)
    }

    /// `name` in this directory.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `name` is not one valid part.
    pub fn join(&self, name: &[u8]) -> Result<Self> {
        if !is_name(name) || self.0.len() + name.len() >= MAX_LEN {
            return Err(Error::corrupt(
                format!("{:?} is not a file name", Escaped(name).to_string()),
                0,
            ));
        }
        let mut bytes = Vec::with_capacity(self.0.len() + name.len() + 1);
        bytes.extend_from_slice(&self.0);
        if !self.is_root() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Ok(Self(bytes.into()))
    }

    /// This path with `below` (a path of a tree that is mounted here) behind it.
    #[must_use]
    pub fn graft(&self, below: &Self) -> Self {
        match (self.is_root(), below.is_root()) {
            (true, _) => below.clone(),
            (_, true) => self.clone(),
            _ => Self([&*self.0, &*below.0].concat().into()),
        }
    }

    /// All bytes, beginning with `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes without the first `/`: empty for the root.
    pub fn relative(&self) -> &[u8] {
        self.0.strip_prefix(b"/").unwrap_or(&self.0)
    }

    /// True for `/`.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// The directory this is in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        self.parent_bytes().map(|bytes| Self(bytes.into()))
    }

    /// The bytes of [`GuestPath::parent`].
    pub fn parent_bytes(&self) -> Option<&[u8]> {
        if self.is_root() {
            return None;
        }
        let at = self.0.iter().rposition(|b| *b == b'/')?;
        self.0.get(..at.max(1))
    }

    /// The last part; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The parts from the root down.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.relative().split(|b| *b == b'/').filter(|p| !p.is_empty())
    }

    /// True if this is `dir` or lies below it.
    pub fn is_in(&self, dir: &Self) -> bool {
        dir.is_root()
            || self
                .0
                .strip_prefix(&*dir.0)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }
}

/// True for one part of a path: not empty, not `.` or `..`, without `/` and NUL.
pub fn is_name(part: &[u8]) -> bool {
    !part.is_empty() && part != b"." && part != b".." && !part.iter().any(|b| *b == b'/' || *b == 0)
}

impl std::borrow::Borrow<[u8]> for GuestPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> GuestPath {
        GuestPath::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn refuses_what_could_leave_the_machine() {
        for bad in [
            "", "a", "//", "/a/", "/a//b", "/.", "/a/..", "/../a", "/a/./b", "/a\0",
        ] {
            assert!(GuestPath::new(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(GuestPath::lenient(b"a/../b").is_err());
        assert_eq!(GuestPath::lenient(b"./a//b/").unwrap(), p("/a/b"));
        assert_eq!(GuestPath::lenient(b"").unwrap(), GuestPath::root());
        assert!(p("/a").join(b"..").is_err());
        assert!(p("/a").join(b"b/c").is_err());
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        for bytes in [
            &b"/a b"[..],
            b"/new\nline\t\r",
            b"/caf\xe9",
            "/caf\u{e9} \u{202e}x\u{1}".as_bytes(),
            b"/back\\slash\\x41",
        ] {
            let path = GuestPath::new(bytes).unwrap();
            assert_eq!(GuestPath::from_escaped(&path.to_string()).unwrap(), path);
        }
        for bad in ["/\\", "/\\q", "/\\x1", "/\\u{110000}", "/\\u12", "rel"] {
            assert!(GuestPath::from_escaped(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn relations() {
        assert_eq!(p("/a/b").parent(), Some(p("/a")));
        assert_eq!(p("/a").parent(), Some(GuestPath::root()));
        assert_eq!(GuestPath::root().parent(), None);
        assert_eq!(p("/a/b").name(), b"b");
        assert!(p("/a/b").is_in(&p("/a")) && p("/a").is_in(&p("/a")) && p("/a").is_in(&p("/")));
        assert!(!p("/ab").is_in(&p("/a")));
        assert_eq!(p("/a").graft(&p("/b/c")), p("/a/b/c"));
        assert_eq!(p("/").graft(&p("/b")), p("/b"));
        assert_eq!(p("/a").graft(&p("/")), p("/a"));
        assert_eq!(GuestPath::root().join(b"x").unwrap(), p("/x"));
    }
}
