//! librsync's signatures, deltas and patches over streams: for bundles of deltas, and over the wire.

#![deny(clippy::indexing_slicing)]

use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use librsync::{Delta, Patch, Signature, SignatureType};
use std::cell::RefCell;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// Length of the blocks that signatures are made of: the square root of the file's size in whole 128 bytes, so that neither
/// the signature nor the table over it outgrows memory. librsync's own choice.
fn block_len(size: u64) -> usize {
    let root = usize::try_from(size.isqrt()).unwrap_or(usize::MAX);
    (root & !127).clamp(256, 1 << 24)
}

fn failed(what: &str, e: librsync::Error) -> Error {
    match e {
        librsync::Error::Io(e) => failed_io(what, e),
        e => Error::corrupt(format!("{what}: {e}"), 0),
    }
}

/// librsync wraps its own errors, and what a reader of ours failed with, in those of streams.
fn failed_io(what: &str, e: std::io::Error) -> Error {
    let ours = |kind| matches!(kind, std::io::ErrorKind::Other | std::io::ErrorKind::InvalidData);
    if !ours(e.kind()) {
        return Error::io(what, e);
    }
    match e.downcast::<Error>() {
        Ok(error) => error,
        Err(e) => Error::corrupt(format!("{what}: {e}"), 0),
    }
}

/// Writes the signature of `old`, which has `len` bytes, to `out`: BLAKE2 sums of `strong` bytes, 0 for whole ones.
///
/// # Errors
/// Those of reading and writing.
pub fn signature(old: impl Read, len: u64, strong: usize, out: &mut dyn Write) -> Result<()> {
    const WHAT: &str = "making a signature";
    let input = BufReader::with_capacity(BUFFER, old);
    let mut signature = Signature::with_buf_read(input, block_len(len), strong, SignatureType::Blake2)
        .map_err(|e| failed(WHAT, e))?;
    copy(&mut signature, out, WHAT, |_| {})?;
    Ok(())
}

/// Writes the delta that turns what `signature` was made of into `new` to `out`; gives its size in bytes.
///
/// # Errors
/// Those of reading and writing; [`Error::Corrupt`] for what is no signature.
pub fn delta(signature: &[u8], new: impl Read, out: &mut dyn Write) -> Result<u64> {
    const WHAT: &str = "making a delta";
    let input = BufReader::with_capacity(BUFFER, new);
    let mut signature = signature;
    let mut delta = Delta::with_buf_read(input, &mut signature).map_err(|e| failed(WHAT, e))?;
    copy(&mut delta, out, WHAT, |_| {})
}

/// Writes what `delta` makes of `old` to `out`, at most `limit` bytes, and shows it to `see`; gives how many there were.
///
/// # Errors
/// [`Error::Corrupt`] for a broken delta and for one that makes more, those of reading and writing.
pub fn patch(
    old: &dyn ReadAt,
    delta: impl Read,
    limit: u64,
    out: &mut dyn Write,
    see: impl FnMut(&[u8]),
) -> Result<u64> {
    const WHAT: &str = "applying a delta";
    // librsync's callback forgets why reading failed.
    let why = RefCell::new(None);
    let base = Base {
        from: old,
        at: 0,
        why: &why,
    };
    let delta = BufReader::with_capacity(BUFFER, delta);
    let patch = Patch::with_buf_read(base, delta).map_err(|e| failed(WHAT, e))?;
    let mut patch = patch.take(limit.saturating_add(1));
    let size = copy(&mut patch, out, WHAT, see).map_err(|e| why.take().unwrap_or(e))?;
    if size > limit {
        return Err(Error::corrupt(
            format!("{WHAT}: it makes more than the {limit} bytes that it should"),
            0,
        ));
    }
    Ok(size)
}

/// Copies all, and shows it to `see` on the way.
///
/// # Errors
/// Those of reading and writing.
pub(crate) fn copy(
    from: &mut dyn Read,
    to: &mut dyn Write,
    what: &str,
    mut see: impl FnMut(&[u8]),
) -> Result<u64> {
    let mut buf = vec![0; BUFFER];
    let mut total: u64 = 0;
    loop {
        let n = from.read(&mut buf).map_err(|e| failed_io(what, e))?;
        let part = buf.get(..n).unwrap_or_default();
        if part.is_empty() {
            return Ok(total);
        }
        see(part);
        to.write_all(part).map_err(|e| Error::io(what, e))?;
        total = total.saturating_add(n as u64);
    }
}

/// A content to copy from.
struct Base<'a> {
    from: &'a dyn ReadAt,
    at: u64,
    why: &'a RefCell<Option<Error>>,
}

impl Read for Base<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.from.len().saturating_sub(self.at);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..n).unwrap_or_default();
        self.from.read_at(self.at, part).map_err(|e| {
            self.why.replace(Some(e));
            std::io::Error::from(std::io::ErrorKind::Other)
        })?;
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}

impl Seek for Base<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match to {
            SeekFrom::Start(at) => self.at = at,
            _ => return Err(std::io::ErrorKind::Unsupported.into()),
        }
        Ok(self.at)
    }
}
