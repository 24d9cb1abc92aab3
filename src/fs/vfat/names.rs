//! Entries of directories: short names, the long names in front of them, dates.

use crate::bytes::{array, le16, le32, slice, u8_at};
use crate::tree::Time;

mod attribute {
    pub(super) const READ_ONLY: u8 = 1;
    pub(super) const VOLUME: u8 = 8;
    pub(super) const DIRECTORY: u8 = 16;
    pub(super) const LONG: u8 = 15;
}
/// `NTRes`: base or extension are shown in lower case.
const LOWER_BASE: u8 = 8;
const LOWER_EXTENSION: u8 = 16;

/// Code page 437 from 0x80 on.
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// One file or directory.
pub(super) struct Entry {
    /// UTF-8.
    pub(super) name: Vec<u8>,
    pub(super) is_dir: bool,
    pub(super) read_only: bool,
    pub(super) cluster: u32,
    pub(super) size: u32,
    pub(super) mtime: Time,
    /// Where its short entry stands on the volume.
    pub(super) at: u64,
}

/// A directory's entries without `.` and `..`, and what is wrong with others.
#[derive(Default)]
pub(super) struct Directory {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<String>,
}

/// The parts of a long name that were met so far, last part first.
#[derive(Default)]
struct Long {
    units: Vec<[u16; 13]>,
    /// The number of the part that comes next, 1 for the one before the short name.
    next: u8,
    checksum: u8,
}

/// Parses a directory from its pieces.
pub(super) fn entries(pieces: &[(u64, Vec<u8>)]) -> Directory {
    let mut found = Directory::default();
    let mut long: Option<Long> = None;
    for (start, bytes) in pieces {
        for (n, entry) in bytes.as_chunks::<32>().0.iter().enumerate() {
            let at = start.saturating_add(n as u64 * 32);
            match (entry.first(), u8_at(entry, 11).unwrap_or(0)) {
                (Some(0), _) => return found,
                (Some(0xe5), _) => long = None,
                (Some(order), attribute::LONG) => long = part(long, *order, entry),
                (_, attributes) if attributes & attribute::VOLUME != 0 => long = None,
                _ => {
                    let name = long.take().and_then(|l| l.name(entry));
                    let Some(mut read) = Entry::read(entry, at) else {
                        continue;
                    };
                    if let Some(name) = name {
                        read.name = name;
                    }
                    if matches!(entry.get(..11), Some(b".          " | b"..         ")) {
                        continue;
                    }
                    if read.name.is_empty() {
                        found
                            .problems
                            .push(format!("an entry without a name (at byte {at})"));
                        continue;
                    }
                    found.entries.push(read);
                }
            }
        }
    }
    found
}

/// Takes one part of a long name in.
fn part(long: Option<Long>, order: u8, entry: &[u8; 32]) -> Option<Long> {
    let number = order & 0x3f;
    let checksum = u8_at(entry, 13)?;
    let mut long = if order & 0x40 != 0 {
        Long {
            units: Vec::new(),
            next: number,
            checksum,
        }
    } else {
        long?
    };
    if number == 0 || number > 20 || number != long.next || checksum != long.checksum {
        return None;
    }
    let mut units = [0; 13];
    let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]);
    for (unit, at) in units.iter_mut().zip(places) {
        *unit = le16(entry, at)?;
    }
    long.units.push(units);
    long.next = number - 1;
    Some(long)
}

impl Long {
    /// The name, if it is complete and belongs to the short entry behind it.
    fn name(&self, short: &[u8; 32]) -> Option<Vec<u8>> {
        let sum = slice(short, 0, 11)?
            .iter()
            .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.next != 0 || sum != self.checksum {
            return None;
        }
        let units: Vec<u16> = self
            .units
            .iter()
            .rev()
            .flatten()
            .copied()
            .take_while(|unit| *unit != 0)
            .collect();
        Some(String::from_utf16_lossy(&units).into_bytes()).filter(|name| !name.is_empty())
    }
}

impl Entry {
    /// The short entry in `b`, which stands at byte `at` of the volume, with its short name; `None` for what is none.
    pub(super) fn read(b: &[u8], at: u64) -> Option<Self> {
        let attributes = u8_at(b, 11)?;
        if attributes & attribute::VOLUME != 0 || matches!(u8_at(b, 0)?, 0 | 0xe5) {
            return None;
        }
        let case = u8_at(b, 12)?;
        let raw: [u8; 11] = array(b, 0)?;
        let (base, extension) = raw.split_at_checked(8)?;
        let mut name = String::new();
        for (n, byte) in base.trim_ascii_end().iter().enumerate() {
            // 0x05 stands for 0xe5, which marks what was deleted.
            let byte = if n == 0 && *byte == 5 { 0xe5 } else { *byte };
            name.push(letter(byte, case & LOWER_BASE != 0));
        }
        let extension = extension.trim_ascii_end();
        if !extension.is_empty() {
            name.push('.');
            name.extend(extension.iter().map(|b| letter(*b, case & LOWER_EXTENSION != 0)));
        }
        Some(Self {
            name: name.into_bytes(),
            is_dir: attributes & attribute::DIRECTORY != 0,
            read_only: attributes & attribute::READ_ONLY != 0,
            cluster: u32::from(le16(b, 20)?) << 16 | u32::from(le16(b, 26)?),
            size: le32(b, 28)?,
            mtime: time(le16(b, 24)?, le16(b, 22)?),
            at,
        })
    }
}

fn letter(byte: u8, lower: bool) -> char {
    let known = |c: &char| c.is_ascii() || CP437.contains(*c);
    let letter = match byte.checked_sub(0x80) {
        None => char::from(byte),
        Some(n) => CP437.chars().nth(usize::from(n)).unwrap_or('?'),
    };
    if lower {
        letter.to_lowercase().next().filter(known).unwrap_or(letter)
    } else {
        letter
    }
}

/// Date and time of an entry, as UTC.
fn time(date: u16, time: u16) -> Time {
    let year = 1980 + i64::from(date >> 9);
    let month = i64::from(date >> 5 & 15).clamp(1, 12);
    let day = i64::from(date & 31).max(1);
    // Days since 1970 of the proleptic Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    let seconds = i64::from(time >> 11) * 3600 + i64::from(time >> 5 & 63) * 60 + i64::from(time & 31) * 2;
    Time {
        sec: days * 86_400 + seconds,
        nsec: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let date = |y: u16, m: u16, d: u16| (y - 1980) << 9 | m << 5 | d;
        assert_eq!(time(date(1980, 1, 1), 0).sec, 315_532_800);
        assert_eq!(time(date(2000, 2, 29), 12 << 11 | 30 << 5 | 7).sec, 951_827_414);
        assert_eq!(
            time(date(2107, 12, 31), 23 << 11 | 59 << 5 | 29).sec,
            4_354_819_198
        );
    }

    #[test]
    fn short_names() {
        assert_eq!(CP437.chars().count(), 128);
        let mut entry = *b"README  TXT\x20\x08\0\0\0\0\0\0\0\0\0\0\0\x21\0\x02\0\0\0\0\0";
        assert_eq!(Entry::read(&entry, 64).unwrap().name, b"readme.TXT");
        entry[..8].copy_from_slice(b"\x05\x8eA     ");
        entry[12] = 0x18;
        assert_eq!(
            String::from_utf8(Entry::read(&entry, 64).unwrap().name).unwrap(),
            "σäa.txt"
        );
    }
}
