//! The text that describes a VMDK: its identity, its parent, its extents (VMware Virtual Disk Format 5.0, "The Descriptor
//! File").

use crate::bytes::until_nul;
use crate::error::{Error, Escaped, Result};

/// `parentCID` of a disk that has no parent.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// What a descriptor says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Content identifier: another one after each writing.
    pub(super) cid: Option<u32>,
    /// The content identifier that the parent had; [`NO_PARENT`] if there is no parent.
    pub(super) parent_cid: u32,
    /// As in `twoGbMaxExtentSparse`.
    pub(super) create_type: String,
    /// `parentFileNameHint`.
    pub(super) parent: Option<Vec<u8>>,
    pub(super) extents: Vec<Extent>,
}

/// A line of the extent description.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// False for `NOACCESS`.
    pub(super) readable: bool,
    pub(super) sectors: u64,
    /// `FLAT`, `SPARSE`, ... in upper case.
    pub(super) kind: String,
    /// Nothing for `ZERO`.
    pub(super) file: Vec<u8>,
    /// Where the extent begins in its file, in sectors.
    pub(super) offset: u64,
}

/// True if a file that begins with `first` is a descriptor: a comment that says so, or comments and a version.
pub(super) fn is_descriptor(first: &[u8]) -> bool {
    const TITLE: &[u8] = b"# disk descriptorfile";
    if first
        .get(..TITLE.len())
        .is_some_and(|t| t.eq_ignore_ascii_case(TITLE))
    {
        return true;
    }
    let mut lines = first.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    let line = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    first.starts_with(b"#")
        && line.is_some_and(|l| [b"version=1", b"version=2", b"version=3"].iter().any(|v| l == *v))
}

impl Descriptor {
    /// Reads a descriptor, up to its first NUL.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a line of it makes no sense.
    pub(super) fn from_bytes(text: &[u8]) -> Result<Self> {
        let mut found = Self {
            cid: None,
            parent_cid: NO_PARENT,
            create_type: String::new(),
            parent: None,
            extents: Vec::new(),
        };
        let mut at = 0;
        for line in until_nul(text).split(|b| *b == b'\n') {
            let bad = |what: &str| {
                let line = line.get(..100).unwrap_or(line);
                Error::corrupt(
                    format!("{what} in the descriptor: {}", Escaped(line.trim_ascii())),
                    at,
                )
            };
            let trimmed = line.trim_ascii();
            if let Some(extent) = extent(trimmed) {
                found
                    .extents
                    .push(extent.ok_or_else(|| bad("an extent that makes no sense"))?);
            } else if let Some((key, value)) = assignment(trimmed) {
                let number = || {
                    let digits = str::from_utf8(value).ok();
                    digits.and_then(|v| u32::from_str_radix(v, 16).ok())
                };
                match key.to_ascii_lowercase().as_slice() {
                    b"cid" => found.cid = Some(number().ok_or_else(|| bad("a CID that is no number"))?),
                    b"parentcid" => {
                        found.parent_cid = number().ok_or_else(|| bad("a parentCID that is no number"))?;
                    }
                    b"createtype" => found.create_type = String::from_utf8_lossy(value).into_owned(),
                    b"parentfilenamehint" if !value.is_empty() => found.parent = Some(value.to_vec()),
                    _ => {}
                }
            }
            at += line.len() as u64 + 1;
        }
        Ok(found)
    }
}

/// `key = "value"`, with or without the quotes.
fn assignment(line: &[u8]) -> Option<(&[u8], &[u8])> {
    if line.starts_with(b"#") {
        return None;
    }
    let equals = line.iter().position(|b| *b == b'=')?;
    let (key, value) = (line.get(..equals)?, line.get(equals + 1..)?);
    Some((key.trim_ascii(), unquoted(value.trim_ascii())))
}

fn unquoted(value: &[u8]) -> &[u8] {
    let inner = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
    inner.unwrap_or(value)
}

/// `RW 4192256 SPARSE "disk-s001.vmdk"`, `RW 100 FLAT "disk-flat.vmdk" 0`, `RW 8 ZERO`: the extent, `Some(None)` if it makes
/// no sense. `None` if the line is no extent.
fn extent(line: &[u8]) -> Option<Option<Extent>> {
    let (access, rest) = word(line)?;
    let readable = match access.to_ascii_uppercase().as_slice() {
        b"RW" | b"RDONLY" => true,
        b"NOACCESS" => false,
        _ => return None,
    };
    // `rw = 1` is no extent.
    let (sectors, rest) = word(rest).filter(|(s, _)| !s.starts_with(b"="))?;
    Some(parts(readable, sectors, rest))
}

fn parts(readable: bool, sectors: &[u8], rest: &[u8]) -> Option<Extent> {
    let number = |digits: &[u8]| -> Option<u64> { str::from_utf8(digits).ok()?.parse().ok() };
    let sectors = number(sectors).filter(|s| *s > 0)?;
    let (kind, rest) = word(rest)?;
    let kind = str::from_utf8(kind).ok()?.to_ascii_uppercase();
    let rest = rest.trim_ascii();
    let (file, offset) = match rest.strip_prefix(b"\"") {
        Some(quoted) => {
            let end = quoted.iter().position(|b| *b == b'"')?;
            (quoted.get(..end)?, quoted.get(end + 1..)?)
        }
        None => word(rest).unwrap_or_default(),
    };
    let offset = match word(offset) {
        Some((offset, _)) => number(offset)?,
        None => 0,
    };
    if file.is_empty() != (kind == "ZERO") {
        return None;
    }
    Some(Extent {
        readable,
        sectors,
        kind,
        file: file.to_vec(),
        offset,
    })
}

/// The first word and what follows it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let end = text
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(text.len());
    text.split_at_checked(end).filter(|(word, _)| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_in_every_spelling() {
        let text = b"# Disk DescriptorFile\r\nversion=1\r\nCID = fffffffE\r\nparentCID=00000abc\r\n\
            createType=\"twoGbMaxExtentSparse\"\r\nPARENTFILENAMEHINT=\"a \\ b.vmdk\"\r\n\r\n\
            rw 4192256 sparse \"x = y-s001.vmdk\"\r\nRW 100 FLAT \"f.vmdk\" 7\r\nRDONLY 8 ZERO\r\nNOACCESS 3 VMFS \"g\"\r\n\
            ddb.geometry.sectors = \"63\"\r\nrw = 5\r\n\0RW 1 ZERO\n";
        let d = Descriptor::from_bytes(text).unwrap();
        assert_eq!((d.cid, d.parent_cid), (Some(0xffff_fffe), 0xabc));
        assert_eq!(d.create_type, "twoGbMaxExtentSparse");
        assert_eq!(d.parent.as_deref(), Some(&b"a \\ b.vmdk"[..]));
        let shown: Vec<_> = d
            .extents
            .iter()
            .map(|e| {
                (
                    e.readable,
                    e.sectors,
                    e.kind.as_str(),
                    e.file.as_slice(),
                    e.offset,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (true, 4_192_256, "SPARSE", &b"x = y-s001.vmdk"[..], 0),
                (true, 100, "FLAT", b"f.vmdk", 7),
                (true, 8, "ZERO", b"", 0),
                (false, 3, "VMFS", b"g", 0),
            ]
        );
    }

    #[test]
    fn lines_that_make_no_sense_are_errors() {
        for line in [
            "RW x FLAT \"a\"",
            "RW 0 FLAT \"a\"",
            "RW -1 FLAT \"a\"",
            "RW 1 FLAT \"a",
            "RW 1 FLAT",
            "RW 1",
            "RW 1 FLAT \"\"",
            "RW 1 FLAT \"a\" b",
            "RW 99999999999999999999 ZERO",
            "CID=x",
            "parentCID=123456789",
        ] {
            assert!(Descriptor::from_bytes(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn descriptors_are_recognised() {
        assert!(is_descriptor(b"# Disk DescriptorFile\nversion=1\n"));
        assert!(is_descriptor(b"# disk descriptorFILE"));
        assert!(is_descriptor(b"# mine\n\n# more\r\nversion=3\r\n"));
        assert!(!is_descriptor(b"#!/bin/sh\nversion=1.2\n"));
        assert!(!is_descriptor(b"version=1\n"));
        assert!(!is_descriptor(b""));
    }
}
