//! The label, header and metadata areas of a physical volume (LVM2: lib/label/label.h, lib/format_text/layout.h).

use super::text::{self, Section};
use crate::bytes::{array, le32, le64, slice};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, check_range, read_vec};

const SECTOR: u64 = 512;
/// What LVM2 begins its checksums with.
const INITIAL_CRC: u32 = 0xf597_a6cf;
const MDA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// A metadata area has 1 MiB unless somebody asked for more.
const MAX_TEXT: u64 = 16 << 20;
/// Areas that a header is taken to name; LVM2 makes at most two of each kind.
const MAX_AREAS: usize = 16;

/// A physical volume.
pub(super) struct Header {
    /// 32 letters and digits.
    pub(super) uuid: String,
    /// Its metadata areas: offset and length in bytes.
    pub(super) areas: Vec<(u64, u64)>,
}

/// One copy of a volume group's metadata.
pub(super) struct Metadata {
    pub(super) name: String,
    /// The volume group's UUID, without dashes.
    pub(super) id: String,
    pub(super) seqno: u64,
    pub(super) group: Section,
}

/// LVM2's checksum: CRC-32 with its own beginning and no final inversion.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!INITIAL_CRC);
    hasher.update(bytes);
    !hasher.finalize()
}

/// The sector among the first four that has a label.
fn label(volume: &dyn ReadAt) -> Option<(u64, Vec<u8>)> {
    (0..4).find_map(|n| {
        let sector = read_vec(volume, n * SECTOR, 512).ok()?;
        (sector.starts_with(b"LABELONE") && slice(&sector, 24, 8)? == b"LVM2 001").then_some((n, sector))
    })
}

/// True if `volume` has a label.
pub(super) fn probe(volume: &dyn ReadAt) -> bool {
    label(volume).is_some()
}

/// Reads label and header.
///
/// # Errors
/// [`Error::Corrupt`] if a checksum or a field is wrong.
pub(super) fn read(volume: &dyn ReadAt) -> Result<Header> {
    let (number, sector) = label(volume).ok_or_else(|| Error::corrupt("there is no LVM2 label", 0))?;
    let corrupt = |what: &str| Error::corrupt(format!("the LVM2 label: {what}"), number * SECTOR);
    let inner = || {
        let sum = crc(sector.get(20..)?);
        if le32(&sector, 16)? != sum {
            return Some(Err(corrupt("its checksum is wrong")));
        }
        if le64(&sector, 8)? != number {
            return Some(Err(corrupt("it says that it stands elsewhere")));
        }
        let header = usize::try_from(le32(&sector, 20)?).ok()?;
        let uuid = array::<32>(&sector, header)?;
        let uuid = std::str::from_utf8(&uuid)
            .ok()
            .filter(|u| u.is_ascii())?
            .to_owned();
        // Two lists that each end with a pair of zeros: data areas, metadata areas.
        let mut at = header.checked_add(40)?;
        let mut list = || {
            let mut areas = Vec::new();
            loop {
                let area = (le64(&sector, at)?, le64(&sector, at.checked_add(8)?)?);
                at = at.checked_add(16)?;
                if area.0 == 0 || areas.len() >= MAX_AREAS {
                    return Some(areas);
                }
                areas.push(area);
            }
        };
        list()?;
        let areas = list()?;
        Some(Ok(Header { uuid, areas }))
    };
    inner().unwrap_or_else(|| Err(corrupt("its header does not lie in its sector")))
}

/// The metadata in one area, `None` if there is none or the area is not to be used.
///
/// # Errors
/// [`Error::Corrupt`] if a checksum is wrong or the text is none.
pub(super) fn metadata(volume: &dyn ReadAt, (start, size): (u64, u64)) -> Result<Option<Metadata>> {
    let corrupt = |what: &str| Error::corrupt(format!("an LVM2 metadata area: {what}"), start);
    let header = read_vec(volume, start, 512)?;
    let short = || corrupt("its header does not lie on the disk");
    let long = |at: usize| le64(&header, at).ok_or_else(short);
    if le32(&header, 0).ok_or_else(short)? != crc(header.get(4..).unwrap_or_default()) {
        return Err(corrupt("its checksum is wrong"));
    }
    if slice(&header, 4, 16) != Some(MDA_MAGIC) || le32(&header, 20) != Some(1) || long(24)? != start {
        return Err(corrupt("its header contradicts itself"));
    }
    // The first location is the one that is valid.
    let (offset, len) = (long(40)?, long(48)?);
    let sum = le32(&header, 56).ok_or_else(short)?;
    let ignored = le32(&header, 60).is_some_and(|flags| flags & 1 != 0);
    if offset == 0 || len == 0 || ignored {
        return Ok(None);
    }
    let size = if size == 0 { long(32)? } else { size };
    if offset < 512 || offset >= size || len > size - 512 || len > MAX_TEXT {
        return Err(corrupt("the text does not lie in it"));
    }
    check_range(
        "the physical volume",
        volume.len(),
        start,
        usize::try_from(size).unwrap_or(usize::MAX),
    )?;
    // The text goes around: what does not fit at the end stands behind the header.
    let first = len.min(size - offset);
    let part = |at: u64, len: u64| read_vec(volume, at, usize::try_from(len).unwrap_or(0));
    let mut text = part(start.saturating_add(offset), first)?;
    text.extend(part(start.saturating_add(512), len - first)?);
    if crc(&text) != sum {
        return Err(corrupt("the checksum of its text is wrong"));
    }
    let top = text::parse(&text)?;
    let (name, group) = top
        .sections()
        .next()
        .ok_or_else(|| corrupt("its text has no volume group"))?;
    let id = group
        .text("id")
        .map(undashed)
        .ok_or_else(|| corrupt("the volume group has no UUID"))?;
    let seqno = group
        .number("seqno")
        .ok_or_else(|| corrupt("the volume group has no seqno"))?;
    Ok(Some(Metadata {
        name: name.to_owned(),
        id,
        seqno,
        group: group.clone(),
    }))
}

/// A UUID as the headers have it.
pub(super) fn undashed(uuid: &str) -> String {
    uuid.replace('-', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_lvm2() {
        // `head -c 4 /dev/zero` through lvm2's calc_crc: bit by bit.
        let mut slow = INITIAL_CRC;
        for byte in b"LVM2\0\xff" {
            slow ^= u32::from(*byte);
            for _ in 0..8 {
                slow = slow >> 1 ^ if slow & 1 != 0 { 0xedb8_8320 } else { 0 };
            }
        }
        assert_eq!(crc(b"LVM2\0\xff"), slow);
    }

    #[test]
    fn nothing_is_no_physical_volume() {
        for len in [0, 511, 4096] {
            assert!(!probe(&vec![0; len]));
            assert!(read(&vec![0; len]).is_err());
        }
        let mut sector = vec![0; 4096];
        sector[512..520].copy_from_slice(b"LABELONE");
        sector[536..544].copy_from_slice(b"LVM2 001");
        assert!(probe(&sector));
        assert!(read(&sector).is_err_and(|e| e.to_string().contains("checksum")));
    }
}
