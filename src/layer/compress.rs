//! Compression of a layer on all cores, with the same bytes whatever their number.
//!
//! The stream is cut into blocks by position, never by thread. With gzip all blocks are parts of one member (RFC 1952) that end
//! on byte boundaries. With zstd the library itself cuts, and the result is one frame (RFC 8878), which every decoder reads.
//! Its bytes are the same for every number of workers, but not those of its mode without workers, so there is always at
//! least one.

use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::io::Write;

/// How a layer is compressed, and how hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip with a level of 1 to 9.
    Gzip(u32),
    /// zstd with a level of 1 to 19.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(ZSTD_LEVEL)
    }
}

/// The default levels. On the files of the tests' server zstd 1 gives a tenth more bytes than 3 in 0.6 of its time
/// (`benches/README.md`); gzip 4 gives 1.6 % more bytes than 6 in 0.77 of its time.
const ZSTD_LEVEL: i32 = 1;
const GZIP_LEVEL: u32 = 4;

impl Compression {
    /// gzip with its default level.
    pub fn gzip() -> Self {
        Self::Gzip(GZIP_LEVEL)
    }
}

impl std::str::FromStr for Compression {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (
                name,
                Some(
                    level
                        .parse::<u8>()
                        .map_err(|_| format!("{level:?} is not a compression level"))?,
                ),
            ),
            None => (text, None),
        };
        match (name, level) {
            ("none", None) => Ok(Self::None),
            ("gzip", None) => Ok(Self::Gzip(GZIP_LEVEL)),
            ("gzip", Some(l @ 1..=9)) => Ok(Self::Gzip(u32::from(l))),
            ("zstd", None) => Ok(Self::Zstd(ZSTD_LEVEL)),
            ("zstd", Some(l @ 1..=19)) => Ok(Self::Zstd(i32::from(l))),
            _ => Err("expected zstd[:1-19], gzip[:1-9] or none".into()),
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl Compression {
    /// The layer media type of the OCI image specification.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Bytes of input in a block of gzip. Part of the format: changing it changes every digest.
const BLOCK: usize = 1 << 20;

/// One block on its way through the workers.
struct Block {
    number: u64,
    bytes: Vec<u8>,
}

/// What a worker makes of a block.
struct Squeezed {
    number: u64,
    bytes: Vec<u8>,
    crc: crc32fast::Hasher,
    spent: Vec<u8>,
}

/// Compresses what `produce` writes with `jobs` workers and writes it to `out`.
///
/// `produce` runs on the calling thread; `out` is written on one other thread, in order.
///
/// # Errors
/// Those of `produce`; [`Error::Io`] for `out`.
pub fn compress<T>(
    how: Compression,
    jobs: usize,
    out: &mut (dyn Write + Send),
    produce: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<T> {
    match how {
        Compression::None => produce(&mut ToFile(out)),
        Compression::Gzip(level) => gzip(level, jobs.max(1), out, produce),
        Compression::Zstd(level) => zstd(level, jobs.max(1), out, produce),
    }
}

/// Passes bytes on; what fails is named by the output.
struct ToFile<'a>(&'a mut (dyn Write + Send));

impl Write for ToFile<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Hands bytes to the thread that writes.
struct ToThread(Sender<Vec<u8>>);

impl Write for ToThread {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self.0.send(buf.to_vec()) {
            Ok(()) => Ok(buf.len()),
            Err(_) => Err(std::io::Error::other("the output failed")),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn zstd<T>(
    level: i32,
    jobs: usize,
    out: &mut (dyn Write + Send),
    produce: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<T> {
    let started = |e| Error::io("starting zstd", e);
    let (send, receive) = bounded::<Vec<u8>>(64);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            receive
                .iter()
                .try_for_each(|part| out.write_all(&part))
                .map_err(|e| Error::io("writing a layer", e))
        });
        let mut encoder = zstd::stream::write::Encoder::new(ToThread(send), level).map_err(started)?;
        let workers = u32::try_from(jobs).unwrap_or(u32::MAX).min(256);
        encoder.multithread(workers).map_err(started)?;
        let produced = produce(&mut encoder).and_then(|value| {
            Ok((
                value,
                encoder
                    .finish()
                    .map_err(|e| Error::io("compressing with zstd", e))?,
            ))
        });
        let produced = produced.map(|(value, to_thread)| {
            drop(to_thread);
            value
        });
        let written = writer
            .join()
            .unwrap_or_else(|_| Err(Error::unsupported("the writing thread failed")));
        // The writer's error is the cause where both failed: the producer only saw its channel close.
        written.and(produced)
    })
}

fn gzip<T>(
    level: u32,
    jobs: usize,
    out: &mut (dyn Write + Send),
    produce: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<T> {
    let (to_workers, from_producer) = bounded::<Block>(jobs);
    let (to_writer, from_workers) = bounded::<Result<Squeezed>>(jobs);
    let (recycle, recycled) = bounded::<Vec<u8>>(2 * jobs + 4);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (input, output) = (from_producer.clone(), to_writer.clone());
            scope.spawn(move || work(level, &input, &output));
        }
        drop((from_producer, to_writer));
        let writer = scope.spawn(move || write_in_order(&from_workers, &recycle, out));
        let mut cutter = Cutter {
            block: Vec::with_capacity(BLOCK),
            number: 0,
            to_workers: Some(to_workers),
            recycled,
        };
        let produced = produce(&mut cutter).and_then(|value| cutter.finish().map(|()| value));
        drop(cutter);
        let written = writer
            .join()
            .unwrap_or_else(|_| Err(Error::unsupported("a compression thread failed")));
        written.and(produced)
    })
}

/// Cuts the stream into blocks.
struct Cutter {
    block: Vec<u8>,
    number: u64,
    to_workers: Option<Sender<Block>>,
    recycled: Receiver<Vec<u8>>,
}

impl Cutter {
    fn send(&mut self) -> std::io::Result<()> {
        let mut next = self
            .recycled
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(BLOCK));
        next.clear();
        let bytes = std::mem::replace(&mut self.block, next);
        let block = Block {
            number: self.number,
            bytes,
        };
        self.number += 1;
        let sent = self.to_workers.as_ref().is_some_and(|to| to.send(block).is_ok());
        if sent {
            Ok(())
        } else {
            Err(std::io::Error::other("the output failed"))
        }
    }

    fn finish(&mut self) -> Result<()> {
        if !self.block.is_empty() {
            self.send().map_err(|e| Error::io("compressing a layer", e))?;
        }
        self.to_workers = None;
        Ok(())
    }
}

impl Write for Cutter {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let take = buf.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(buf.get(..take).unwrap_or_default());
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn work(level: u32, input: &Receiver<Block>, output: &Sender<Result<Squeezed>>) {
    for Block { number, bytes } in input {
        let squeezed = deflate(level, &bytes).map(|out| {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&bytes);
            Squeezed {
                number,
                bytes: out,
                crc,
                spent: bytes,
            }
        });
        if output.send(squeezed).is_err() {
            return;
        }
    }
}

/// Raw deflate (RFC 1951) of one block, ended by an empty stored block so that the next one begins on a byte.
fn deflate(level: u32, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut state = flate2::Compress::new(flate2::Compression::new(level), false);
    let mut out = Vec::with_capacity(bytes.len() / 2 + 1024);
    loop {
        let done = usize::try_from(state.total_in()).unwrap_or(usize::MAX);
        let rest = bytes.get(done..).unwrap_or_default();
        let room = out.capacity() - out.len();
        state
            .compress_vec(rest, &mut out, flate2::FlushCompress::Sync)
            .map_err(|e| Error::io("compressing with gzip", e.into()))?;
        // Sync is complete when it left room in the output.
        if state.total_in() == bytes.len() as u64 && out.capacity() > out.len() && room > 0 {
            return Ok(out);
        }
        out.reserve(out.len() / 2 + 1024);
    }
}

fn write_in_order(
    from: &Receiver<Result<Squeezed>>,
    recycle: &Sender<Vec<u8>>,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    let failed = |e| Error::io("writing a layer", e);
    // No name, mtime 0, no extra flags, OS unknown (RFC 1952 section 2.3).
    const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    out.write_all(&GZIP_HEADER).map_err(failed)?;
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    let mut crc = crc32fast::Hasher::new();
    let mut len = 0u64;
    for squeezed in from {
        let squeezed = squeezed?;
        waiting.insert(squeezed.number, squeezed);
        while let Some(block) = waiting.remove(&next) {
            next += 1;
            len += block.spent.len() as u64;
            crc.combine(&block.crc);
            out.write_all(&block.bytes).map_err(failed)?;
            let _ = recycle.try_send(block.spent);
        }
    }
    // A last, empty block, then CRC-32 and the length modulo 2^32.
    out.write_all(&[3, 0]).map_err(failed)?;
    out.write_all(&crc.finalize().to_le_bytes()).map_err(failed)?;
    let len = u32::try_from(len & 0xffff_ffff).unwrap_or(0);
    out.write_all(&len.to_le_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn sample(len: usize) -> Vec<u8> {
        let mut x = 1u32;
        (0..len)
            .map(|i| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if i % 7 < 4 { b'a' } else { (x >> 24) as u8 }
            })
            .collect()
    }

    fn squeeze(how: Compression, jobs: usize, input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compress(how, jobs, &mut out, |w| {
            for part in input.chunks(100_003) {
                w.write_all(part).unwrap();
            }
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn every_reader_gets_the_input_back_and_threads_do_not_matter() {
        for len in [0, 1, 4 << 20, (9 << 20) + 17] {
            let input = sample(len);
            for how in [Compression::Zstd(1), Compression::Gzip(6), Compression::None] {
                let one = squeeze(how, 1, &input);
                assert_eq!(one, squeeze(how, 5, &input), "{how} {len}");
                let mut back = Vec::new();
                match how {
                    // A decoder of one frame: there must be only one.
                    Compression::Zstd(_) => {
                        let mut decoder = zstd::stream::read::Decoder::new(one.as_slice())
                            .unwrap()
                            .single_frame();
                        decoder.read_to_end(&mut back).unwrap();
                    }
                    // A decoder of one member: there must be only one.
                    Compression::Gzip(_) => {
                        let mut decoder = flate2::read::GzDecoder::new(one.as_slice());
                        decoder.read_to_end(&mut back).unwrap();
                        assert!(decoder.into_inner().is_empty());
                    }
                    Compression::None => back = one,
                }
                assert!(back == input, "{how} {len}");
            }
        }
    }

    #[test]
    fn runs_of_zeros_come_back_whole() {
        let mut input = vec![0; 21 << 20];
        input[9 << 20] = 1;
        let packed = squeeze(Compression::Zstd(1), 2, &input);
        assert_eq!(packed, squeeze(Compression::Zstd(1), 1, &input));
        assert!(zstd::decode_all(packed.as_slice()).unwrap() == input);
    }

    #[test]
    fn a_full_output_is_the_error_that_is_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let input = sample(40 << 20);
        let result = compress(Compression::Zstd(1), 2, &mut Full, |w| {
            w.write_all(&input).map_err(|e| Error::io("producing", e))
        });
        assert!(
            matches!(result, Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull)
        );
    }

    #[test]
    fn names() {
        assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::default());
        assert_eq!("gzip:9".parse::<Compression>().unwrap(), Compression::Gzip(9));
        assert!("zstd:0".parse::<Compression>().is_err());
        assert!("gzip:x".parse::<Compression>().is_err());
        assert_eq!(Compression::Zstd(3).to_string(), "zstd:3");
    }
}
