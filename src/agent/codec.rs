//! Frames, numbers, strings and blocks: what the messages of [`super::wire`] are made of. The format is described there.

use super::wire::MAX;
use crate::bytes;
use crate::error::{Error, Result};
use crate::tree::Time;
use std::io::{Read, Write};

/// Writes one frame.
///
/// # Errors
/// Those of writing; [`std::io::ErrorKind::InvalidInput`] for a payload of more than [`MAX`] bytes.
pub fn write_frame(out: &mut dyn Write, kind: u8, payload: &[u8]) -> std::io::Result<()> {
    if payload.len() > MAX {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    out.write_all(&frame(kind, payload))
}

/// One frame as bytes.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 9);
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&check(kind, payload).to_le_bytes());
    bytes
}

/// The checksum of a frame.
pub fn check(kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

/// Reads one frame; `None` at the end of the stream between two frames. The payload replaces what `buf` holds.
///
/// # Errors
/// [`Error::Corrupt`] for what is no frame; [`Error::Network`] for a stream that ends inside one; else those of reading.
pub fn read_frame(from: &mut dyn Read, buf: &mut Vec<u8>) -> Result<Option<u8>> {
    let mut head = [0; 5];
    let mut got = 0;
    while let Some(rest) = head.get_mut(got..).filter(|r| !r.is_empty()) {
        match from.read(rest) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(cut()),
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::from_io("reading from the connection", e)),
        }
    }
    let [a, b, c, d, kind] = head;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MAX {
        return Err(Error::corrupt(
            format!("a frame of {len} bytes, of at most {MAX}"),
            0,
        ));
    }
    let full = |from: &mut dyn Read, part: &mut [u8]| {
        from.read_exact(part).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => cut(),
            _ => Error::from_io("reading from the connection", e),
        })
    };
    buf.resize(len, 0);
    full(from, buf)?;
    let mut sum = [0; 4];
    full(from, &mut sum)?;
    if u32::from_le_bytes(sum) != check(kind, buf) {
        return Err(Error::corrupt(
            format!("a frame of kind {kind} with a wrong checksum"),
            0,
        ));
    }
    Ok(Some(kind))
}

fn cut() -> Error {
    Error::Network {
        what: "the connection was cut".into(),
        source: None,
    }
}

/// Appends numbers and strings to bytes.
#[derive(Debug, Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    /// A number.
    pub fn number(&mut self, mut n: u64) {
        loop {
            let low = (n & 0x7f) as u8;
            n >>= 7;
            if n == 0 {
                self.0.push(low);
                return;
            }
            self.0.push(low | 0x80);
        }
    }
    /// A signed number.
    pub fn signed(&mut self, n: i64) {
        self.number(((n << 1) ^ (n >> 63)) as u64);
    }
    /// A string.
    pub fn string(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
    /// A point in time.
    pub fn time(&mut self, time: Time) {
        self.signed(time.sec);
        self.number(time.nsec.into());
    }
}

/// Takes numbers and strings off bytes.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// From the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }
    /// True at the end.
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }
    /// Where it stands, in bytes.
    pub fn at(&self) -> usize {
        self.at
    }
    pub(super) fn bad(&self, what: &str) -> Error {
        Error::corrupt(format!("a message with {what}"), self.at as u64)
    }
    /// One byte.
    ///
    /// # Errors
    /// [`Error::Corrupt`] at the end.
    pub fn byte(&mut self) -> Result<u8> {
        let byte = bytes::u8_at(self.bytes, self.at).ok_or_else(|| self.bad("too few bytes"))?;
        self.at += 1;
        Ok(byte)
    }
    /// A number.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is cut off or has more than 64 bits.
    pub fn number(&mut self) -> Result<u64> {
        let mut n: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                break;
            }
            n |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(self.bad("a number that is too large"))
    }
    /// A number that fits into 32 bits.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it does not.
    pub fn small(&mut self) -> Result<u32> {
        u32::try_from(self.number()?).map_err(|_| self.bad("a number that is too large"))
    }
    /// A signed number.
    ///
    /// # Errors
    /// As [`Decoder::number`].
    pub fn signed(&mut self) -> Result<i64> {
        let n = self.number()?;
        Ok((n >> 1).cast_signed() ^ -((n & 1).cast_signed()))
    }
    /// A string.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is cut off.
    pub fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.number()?;
        let found = usize::try_from(len)
            .ok()
            .and_then(|len| bytes::slice(self.bytes, self.at, len));
        let found = found.ok_or_else(|| self.bad("a string that is cut off"))?;
        self.at += found.len();
        Ok(found)
    }
    /// A string of `N` bytes without a length.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is cut off.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let found = bytes::array(self.bytes, self.at).ok_or_else(|| self.bad("too few bytes"))?;
        self.at += N;
        Ok(found)
    }
    /// Text, made valid and cut at 4,096 bytes.
    ///
    /// # Errors
    /// As [`Decoder::string`].
    pub fn text(&mut self) -> Result<String> {
        let bytes = self.string()?;
        Ok(String::from_utf8_lossy(bytes.get(..4096).unwrap_or(bytes)).into_owned())
    }
    /// A point in time.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is cut off or has too many nanoseconds.
    pub fn time(&mut self) -> Result<Time> {
        let sec = self.signed()?;
        let nsec = self.small()?;
        if nsec >= 1_000_000_000 {
            return Err(self.bad("a time of too many nanoseconds"));
        }
        Ok(Time { sec, nsec })
    }
}

/// Packs the items of `raw` as the payload of a block.
pub fn pack(raw: &[u8], level: i32) -> Vec<u8> {
    let mut out = Encoder(Vec::with_capacity(raw.len() / 2 + 16));
    let packed = zstd::bulk::compress(raw, level)
        .ok()
        .filter(|p| p.len() < raw.len());
    out.0.push(u8::from(packed.is_some()));
    out.number(raw.len() as u64);
    out.0.extend_from_slice(packed.as_deref().unwrap_or(raw));
    out.0
}

/// Unpacks the payload of a block.
///
/// # Errors
/// [`Error::Corrupt`] for what is no block.
pub fn unpack(payload: &[u8]) -> Result<Vec<u8>> {
    let bad = |what: &str| Error::corrupt(format!("a block {what}"), 0);
    let mut decoder = Decoder::new(payload);
    let method = decoder.byte()?;
    let len = usize::try_from(decoder.number()?)
        .ok()
        .filter(|len| *len <= MAX)
        .ok_or_else(|| bad("of more than 1 MiB"))?;
    let rest = payload.get(decoder.at()..).unwrap_or_default();
    let raw = match method {
        0 => rest.to_vec(),
        1 => zstd::bulk::decompress(rest, len).map_err(|e| bad(&format!("that zstd cannot read: {e}")))?,
        other => return Err(bad(&format!("of method {other}"))),
    };
    match raw.len() == len {
        true => Ok(raw),
        false => Err(bad("of another length than it says")),
    }
}
