//! Compressed extents: zlib, lzo and zstd, each unpacked as a whole and never beyond its extent.

use crate::bytes::{le16, le32, slice, u8_at};
use crate::error::{Error, Result};
use std::cell::RefCell;

/// No compressed extent is longer than this, packed or unpacked (`BTRFS_MAX_COMPRESSED`, `BTRFS_MAX_UNCOMPRESSED`).
pub(super) const MAX: u64 = 128 << 10;

thread_local! {
    /// Tables that are costly to make.
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    static ZLIB: RefCell<flate2::Decompress> = RefCell::new(flate2::Decompress::new(true));
}

/// `packed` unpacked to `len` bytes; what the stream does not fill is zeros. `sector` is the filesystem's sector size.
///
/// # Errors
/// [`Error::Corrupt`] for a damaged stream, [`Error::Unsupported`] for an unknown compression.
pub(super) fn unpack(compression: u8, packed: &[u8], len: u64, sector: usize) -> Result<Vec<u8>> {
    let size = usize::try_from(len)
        .ok()
        .filter(|_| len <= MAX)
        .ok_or_else(|| Error::corrupt(format!("a compressed extent of {len} bytes"), 0))?;
    let mut out = match compression {
        1 => zlib(packed, size)?,
        2 => lzo(packed, size, sector)?,
        3 => zstd(packed, size)?,
        n => return Err(Error::unsupported(format!("btrfs compression type {n}"))),
    };
    out.resize(size, 0);
    Ok(out)
}

fn damaged(what: &str) -> Error {
    Error::corrupt(format!("a damaged {what} stream"), 0)
}

fn zlib(packed: &[u8], size: usize) -> Result<Vec<u8>> {
    ZLIB.with_borrow_mut(|stream| {
        stream.reset(true);
        let mut out = Vec::with_capacity(size);
        let status = stream
            .decompress_vec(packed, &mut out, flate2::FlushDecompress::Finish)
            .map_err(|_| damaged("zlib"))?;
        // A stream that is longer than the extent ends where the extent does.
        if status != flate2::Status::StreamEnd && out.len() < size {
            return Err(damaged("zlib"));
        }
        Ok(out)
    })
}

fn zstd(packed: &[u8], size: usize) -> Result<Vec<u8>> {
    // Behind the frame there is padding up to the end of the sector.
    let frame = zstd::zstd_safe::find_frame_compressed_size(packed)
        .ok()
        .and_then(|n| packed.get(..n))
        .ok_or_else(|| damaged("zstd"))?;
    ZSTD.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Decompressor::new().ok();
        }
        let stream = slot.as_mut().ok_or_else(|| damaged("zstd"))?;
        stream.decompress(frame, size).map_err(|_| damaged("zstd"))
    })
}

/// The framing of btrfs around lzo: the length of everything, then pieces with their lengths, each of one sector when
/// unpacked; a piece's length never lies on two sectors.
fn lzo(packed: &[u8], size: usize, sector: usize) -> Result<Vec<u8>> {
    let place = |at| usize::try_from(le32(packed, at)?).ok();
    let total = place(0)
        .filter(|n| *n <= packed.len())
        .ok_or_else(|| damaged("lzo"))?;
    let mut out = Vec::with_capacity(size);
    let mut at = 4;
    while at < total && out.len() < size {
        let left = sector - at % sector;
        if left < 4 {
            at += left;
            continue;
        }
        let len = place(at).ok_or_else(|| damaged("lzo"))?;
        let piece = slice(packed, at + 4, len).ok_or_else(|| damaged("lzo"))?;
        let limit = size.min(out.len() + sector);
        lzo1x(piece, &mut out, limit).ok_or_else(|| damaged("lzo"))?;
        at += 4 + len;
    }
    Ok(out)
}

/// One LZO1X stream, appended to `out` up to the length `limit`; `None` if it is damaged.
fn lzo1x(from: &[u8], out: &mut Vec<u8>, limit: usize) -> Option<()> {
    let base = out.len();
    let mut at = 0;
    // How many literals came last: 1 to 3, or 4 for a longer run.
    let mut state = 0;
    let literals = |out: &mut Vec<u8>, at: &mut usize, n: usize| {
        out.extend_from_slice(slice(from, *at, n)?);
        *at += n;
        (out.len() <= limit).then_some(())
    };
    // A length that did not fit into its bits: zeros count 255 each, the byte behind them the rest.
    let longer = |at: &mut usize, base: usize| {
        let mut len = base;
        while u8_at(from, *at)? == 0 {
            len += 255;
            *at += 1;
        }
        len += usize::from(u8_at(from, *at)?);
        *at += 1;
        Some(len)
    };
    let first = usize::from(u8_at(from, 0)?);
    if first > 17 {
        at = 1;
        literals(out, &mut at, first - 17)?;
        state = (first - 17).min(4);
    }
    loop {
        let code = usize::from(u8_at(from, at)?);
        at += 1;
        let byte = |at: &mut usize| {
            let byte = u8_at(from, *at)?;
            *at += 1;
            Some(usize::from(byte))
        };
        let (distance, len, after);
        match code {
            0..16 if state == 0 => {
                let n = if code == 0 { longer(&mut at, 15)? } else { code };
                literals(out, &mut at, n + 3)?;
                state = 4;
                continue;
            }
            0..16 => {
                let far = state == 4;
                after = code & 3;
                distance = 1 + (code >> 2) + (byte(&mut at)? << 2) + if far { 0x800 } else { 0 };
                len = if far { 3 } else { 2 };
            }
            64.. => {
                after = code & 3;
                distance = 1 + (code >> 2 & 7) + (byte(&mut at)? << 3);
                len = (code >> 5) + 1;
            }
            _ => {
                let near = code >= 32;
                let mask = if near { 31 } else { 7 };
                let n = match code & mask {
                    0 => longer(&mut at, mask)?,
                    n => n,
                };
                let next = usize::from(le16(from, at)?);
                at += 2;
                after = next & 3;
                len = n + 2;
                if near {
                    distance = 1 + (next >> 2);
                } else {
                    let far = ((code & 8) << 11) + (next >> 2);
                    if far == 0 {
                        return Some(());
                    }
                    distance = far + 0x4000;
                }
            }
        }
        if distance > out.len() - base || out.len() + len > limit {
            return None;
        }
        let mut source = out.len() - distance;
        let mut rest = len;
        while rest > 0 {
            let n = rest.min(out.len() - source);
            out.extend_from_within(source..source + n);
            source += n;
            rest -= n;
        }
        literals(out, &mut at, after)?;
        state = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lzo_streams() {
        // "abc" as literals, then the end.
        let mut out = Vec::new();
        lzo1x(&[17 + 3, b'a', b'b', b'c', 17, 0, 0], &mut out, 10).unwrap();
        assert_eq!(out, b"abc");
        // Four literals, a match of 5 bytes at distance 2 (which overlaps itself), the end.
        out.clear();
        let code = 4 << 5 | 1 << 2;
        lzo1x(&[21, b'a', b'b', b'c', b'd', code, 0, 17, 0, 0], &mut out, 16).unwrap();
        assert_eq!(out, b"abcdcdcdc");
        // Too long, too far, cut off.
        assert!(lzo1x(&[21, 1, 2, 3, 4, code, 0, 17, 0, 0], &mut Vec::new(), 8).is_none());
        assert!(lzo1x(&[18, 1, code, 0, 17, 0, 0], &mut Vec::new(), 8).is_none());
        assert!(lzo1x(&[21, 1, 2, 3, 4], &mut Vec::new(), 8).is_none());
    }

    #[test]
    fn padding_and_short_streams() {
        let mut packed = zstd::bulk::compress(&[7; 5000], 3).unwrap();
        packed.resize(4096, 0);
        let out = unpack(3, &packed, 8192, 4096).unwrap();
        assert_eq!((&out[..5000], &out[5000..]), (&[7; 5000][..], &[0; 3192][..]));
        assert!(unpack(3, &packed, 4096, 4096).is_err());
        assert!(unpack(3, &packed, MAX + 1, 4096).is_err());
        assert!(unpack(1, &packed, 4096, 4096).is_err());
        assert!(unpack(2, &packed, 4096, 4096).is_err());
        assert!(unpack(9, &packed, 4096, 4096).is_err());
    }
}
