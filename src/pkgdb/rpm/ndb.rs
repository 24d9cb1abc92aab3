//! rpm's own database, `Packages.db` (ndb): a table of slots, and headers in runs of 16-byte blocks.
//!
//! Source: the layout as rpm 4.14 and later write it (`lib/backend/ndb/rpmpkg.c`). All numbers are little-endian.

use super::Each;
use super::blocks::Blocks;
use crate::bytes::{le32, slice};
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

const PAGE: usize = 4096;
/// Bytes of a slot and of a block.
const UNIT: usize = 16;
const TAIL: usize = 12;

/// Gives each header to `each`: the number of its package, and its bytes or why they cannot be read.
///
/// # Errors
/// [`Error::Corrupt`] where this is no such database, [`Error::Unsupported`] for a later version of it.
pub fn read(file: Arc<dyn ReadAt>, each: &mut Each<'_>) -> Result<()> {
    let blocks = Blocks::new(file)?;
    let head = blocks.read(0, 2 * UNIT)?;
    if slice(&head, 0, 4) != Some(b"RpmP") {
        return Err(Error::corrupt("Packages.db does not begin with RpmP", 0));
    }
    match le32(&head, 4) {
        Some(0) => {}
        version => {
            return Err(Error::unsupported(format!(
                "version {} of rpm's database ndb",
                version.unwrap_or_default()
            )));
        }
    }
    let pages = u64::from(le32(&head, 12).unwrap_or_default());
    if pages == 0 || pages * PAGE as u64 > blocks.len() {
        return Err(Error::corrupt(
            format!("{pages} pages of slots in a file of {} bytes", blocks.len()),
            12,
        ));
    }
    let mut seen = HashSet::new();
    // Blobs may not overlap: together they are no longer than the file.
    let mut used = pages * PAGE as u64;
    for page in 0..pages {
        let at = page * PAGE as u64;
        let bytes = match blocks.read(at, PAGE) {
            Ok(bytes) => bytes,
            Err(e) => {
                if each(0, Err(e)).is_break() {
                    return Ok(());
                }
                continue;
            }
        };
        let skip = if page == 0 { 2 } else { 0 };
        for (n, slot) in bytes.chunks(UNIT).enumerate().skip(skip) {
            let at = at + (n * UNIT) as u64;
            let flow = match self::slot(slot, at) {
                Ok(None) => ControlFlow::Continue(()),
                Ok(Some(slot)) => {
                    used = used.saturating_add(slot.len);
                    if !seen.insert(slot.package) {
                        each(
                            slot.package,
                            Err(Error::corrupt("a package number with two slots", at)),
                        )
                    } else if used > blocks.len() || slot.start < pages * PAGE as u64 {
                        each(
                            slot.package,
                            Err(Error::corrupt(
                                "a slot whose blocks overlap others or do not lie in the file",
                                at,
                            )),
                        )
                    } else {
                        match blob(&blocks, &slot) {
                            Ok(blob) => each(
                                slot.package,
                                Ok(blob
                                    .get(UNIT..UNIT.saturating_add(length(&blob)))
                                    .unwrap_or_default()),
                            ),
                            Err(e) => each(slot.package, Err(e)),
                        }
                    }
                }
                Err(e) => each(0, Err(e)),
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

struct Slot {
    package: u32,
    /// First byte and length of its blocks.
    start: u64,
    len: u64,
}

/// The slot; `None` if it is free.
fn slot(bytes: &[u8], at: u64) -> Result<Option<Slot>> {
    let bad = |what: &str| Error::corrupt(what, at);
    if slice(bytes, 0, 4) != Some(b"Slot") {
        return Err(bad("a slot that does not begin with Slot"));
    }
    let (Some(package), Some(start), Some(len)) = (le32(bytes, 4), le32(bytes, 8), le32(bytes, 12)) else {
        return Err(bad("a slot that is cut"));
    };
    if start == 0 {
        return Ok(None);
    }
    if package == 0 || len == 0 {
        return Err(bad("a used slot without a package or without blocks"));
    }
    Ok(Some(Slot {
        package,
        start: u64::from(start) * UNIT as u64,
        len: u64::from(len) * UNIT as u64,
    }))
}

/// Length of the header in a blob.
fn length(blob: &[u8]) -> usize {
    let len = le32(blob, 12).unwrap_or_default();
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The blocks of a slot, checked: the header in them begins at byte 16.
fn blob(blocks: &Blocks, slot: &Slot) -> Result<Vec<u8>> {
    let bad = |what: String, at: u64| Error::corrupt(what, at);
    if slot.len > super::MAX_HEADER {
        return Err(bad(
            format!("a blob of {} bytes, too long for a header", slot.len),
            slot.start,
        ));
    }
    let len = usize::try_from(slot.len).unwrap_or(usize::MAX);
    let blob = blocks.read(slot.start, len)?;
    if slice(&blob, 0, 4) != Some(b"BlbS") || le32(&blob, 4) != Some(slot.package) {
        return Err(bad(
            format!("no blob of package number {} where its slot says", slot.package),
            slot.start,
        ));
    }
    let header = length(&blob);
    let whole = header
        .saturating_add(UNIT + TAIL)
        .div_ceil(UNIT)
        .saturating_mul(UNIT);
    let tail_at = len.saturating_sub(TAIL);
    let tail = blob.get(tail_at..).unwrap_or_default();
    if whole != len || le32(tail, 4) != le32(&blob, 12) || slice(tail, 8, 4) != Some(b"BlbE") {
        return Err(bad(
            format!("a blob of {len} bytes that states {header} and does not end so"),
            slot.start,
        ));
    }
    let sum = adler32(blob.get(..tail_at).unwrap_or_default());
    if le32(tail, 0) != Some(sum) {
        return Err(bad(
            format!("the checksum of the blob of package number {}", slot.package),
            slot.start,
        ));
    }
    Ok(blob)
}

/// Adler-32 (RFC 1950, section 9).
fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    // The most bytes after which neither sum can have left 32 bits.
    for part in bytes.chunks(5552) {
        for byte in part {
            a += u32::from(*byte);
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    #[test]
    fn adler32_of_the_specification() {
        assert_eq!(super::adler32(b""), 1);
        assert_eq!(super::adler32(b"Wikipedia"), 0x11e6_0398);
        assert_eq!(super::adler32(&[0xff; 100_000]), 0x149a_302c);
    }
}
