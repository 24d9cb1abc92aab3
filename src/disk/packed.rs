//! Compressed disk images. They can be read from the front only, so they are unpacked into a temporary file that has no name
//! and no blocks for zeros.

use super::blocks::CUT;
use super::gate::{Chain, Image};
use crate::error::{Error, Result};
use crate::progress::Stage;
use crate::read_at::{HostFile, ReadAt, Stream};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// RFC 1952, members one behind the other.
    Gzip,
    /// The .xz file format 1.2, streams one behind the other.
    Xz,
    /// RFC 8878, frames one behind the other.
    Zstd,
}

/// The longest file that is unpacked, in bytes: 16 TiB.
const MAX_LEN: u64 = 16 << 40;
/// Bytes of free space that are left on the temporary directory's filesystem.
const RESERVE: u64 = 64 << 20;
/// Memory for the dictionary of xz, in KiB: all presets of xz(1) need less.
const XZ_MEMORY: u32 = 128 << 10;
/// Log2 of the largest window of zstd, as zstd(1) has it without `--long=`.
const ZSTD_WINDOW: u32 = 27;
/// Bytes that are unpacked at once.
const CHUNK: usize = 1 << 20;
/// What becomes a hole if it is zeros.
const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// The bytes that `image` holds compressed.
///
/// # Errors
/// [`Error::Corrupt`] if it is damaged or cut, [`Error::Unsupported`] if it is compressed twice, too long or needs too much
/// memory, [`Error::Io`] if there is no room for it.
pub(super) fn unpack(image: Image, codec: Codec, chain: &Chain<'_>) -> Result<Image> {
    let name = image.name.as_str();
    if image.unpacked {
        return Err(
            Error::unsupported(format!("{name}: a file that is compressed twice"))
                .hint("unpack it first, and use the disk image inside"),
        );
    }
    let dir = std::env::temp_dir();
    let action = format!("unpacking {name} into {}", dir.display());
    let file = tempfile::tempfile_in(&dir).map_err(|e| no_room(&action, e))?;
    let stage = chain
        .progress
        .stage(&format!("unpacking {name}"), Some(image.file.len()));
    let input = Counted {
        inner: Stream::new(&*image.file),
        stage: &*stage,
    };
    let mut input = BufReader::with_capacity(CHUNK, input);
    let mut output = Sparse {
        file: &file,
        at: 0,
        unchecked: u64::MAX,
        action: &action,
        dir: &dir,
    };
    let result = match codec {
        Codec::Gzip => gunzip(&mut input, &mut output),
        Codec::Xz => {
            // A decoder that failed is not read again.
            let mut decoder = lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY);
            output.copy(&mut decoder)
        }
        Codec::Zstd => zstd::stream::read::Decoder::with_buffer(input)
            .and_then(|mut d| d.window_log_max(ZSTD_WINDOW).map(|()| d))
            .map_err(failure)
            .and_then(|mut decoder| output.copy(&mut decoder)),
    };
    result.map_err(|e| e.within(name))?;
    file.set_len(output.at).map_err(|e| no_room(&action, e))?;
    let file = HostFile::from_file(file, name.to_owned())?;
    Ok(Image {
        file: Arc::new(file),
        unpacked: true,
        ..image
    })
}

fn gunzip(input: &mut impl BufRead, output: &mut Sparse<'_>) -> Result<()> {
    loop {
        output.copy(&mut flate2::bufread::GzDecoder::new(&mut *input))?;
        // Another member, or zeros up to the end of a block.
        loop {
            let rest = input.fill_buf().map_err(failure)?;
            match rest.iter().position(|b| *b != 0) {
                None if rest.is_empty() => return Ok(()),
                None => {
                    let n = rest.len();
                    input.consume(n);
                }
                Some(0) => break,
                Some(_) => {
                    return Err(Error::corrupt(
                        "something else follows the compressed data",
                        output.at,
                    ));
                }
            }
        }
    }
}

/// What a decoder failed with. `at` of the error is not known to it.
fn failure(e: std::io::Error) -> Error {
    let e = match e.downcast::<Error>() {
        Ok(error) => return error,
        Err(e) => e,
    };
    let text = e.to_string();
    match e.kind() {
        ErrorKind::UnexpectedEof => Error::corrupt("the compressed data are cut", 0).hint(CUT),
        ErrorKind::OutOfMemory => Error::unsupported("data compressed with a very large dictionary"),
        _ if text.contains("too much memory") => {
            Error::unsupported("data compressed with a very large window (zstd --long or --ultra)")
                .hint("unpack it with its own tool, and use the disk image inside")
        }
        _ if text.contains("incomplete frame") => Error::corrupt("the compressed data are cut", 0).hint(CUT),
        _ => Error::corrupt(format!("the compressed data are damaged ({text})"), 0),
    }
}

/// A file that could not be written: if that is for want of room, with advice.
fn no_room(action: &str, e: std::io::Error) -> Error {
    let full = matches!(
        e.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    );
    let error = Error::io(action, e);
    if full {
        return error.hint("set TMPDIR to a directory with room for the whole disk, or unpack it yourself");
    }
    error
}

/// A stream that tells how far it was read.
struct Counted<'a> {
    inner: Stream<'a>,
    stage: &'a dyn Stage,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.stage.add(n as u64);
        Ok(n)
    }
}

/// A file that is written from the front, with holes for zeros.
struct Sparse<'a> {
    file: &'a File,
    at: u64,
    /// Bytes written since the free space was looked at.
    unchecked: u64,
    action: &'a str,
    dir: &'a Path,
}

impl Sparse<'_> {
    /// Appends all that `decoder` gives.
    fn copy(&mut self, decoder: &mut impl Read) -> Result<()> {
        let mut buf = vec![0; CHUNK];
        loop {
            let mut filled = 0;
            while let Some(rest) = buf.get_mut(filled..).filter(|r| !r.is_empty()) {
                match decoder.read(rest) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(failure(e)),
                }
            }
            if filled == 0 {
                return Ok(());
            }
            self.append(buf.get(..filled).unwrap_or_default())?;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.at.saturating_add(bytes.len() as u64) > MAX_LEN {
            return Err(Error::unsupported("more than 16 TiB of unpacked data"));
        }
        let mut from = 0;
        let is_zero = |page: &[u8]| ZEROS.get(..page.len()) == Some(page);
        // Runs of pages with something in them.
        let mut pages = bytes.chunks(PAGE).peekable();
        while let Some(page) = pages.next() {
            let mut len = page.len();
            if !is_zero(page) {
                while let Some(more) = pages.next_if(|page| !is_zero(page)) {
                    len += more.len();
                }
                let run = bytes.get(from..from + len).unwrap_or_default();
                self.check_room(len as u64)?;
                let at = self.at + from as u64;
                self.file
                    .write_all_at(run, at)
                    .map_err(|e| no_room(self.action, e))?;
            }
            from += len;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Looks now and then whether there is room, so that the filesystem is not filled to its end.
    fn check_room(&mut self, len: u64) -> Result<()> {
        self.unchecked = self.unchecked.saturating_add(len);
        if self.unchecked < RESERVE / 2 {
            return Ok(());
        }
        self.unchecked = 0;
        let room = rustix::fs::fstatvfs(self.file).map(|s| s.f_bavail.saturating_mul(s.f_frsize));
        match room {
            Ok(room) if room < RESERVE => {
                let what = format!(
                    "{}: {} MiB are left in {}",
                    self.action,
                    room >> 20,
                    self.dir.display()
                );
                Err(no_room(&what, ErrorKind::StorageFull.into()))
            }
            _ => Ok(()),
        }
    }
}
