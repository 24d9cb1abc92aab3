//! An rpm header: an index of tagged values and their data (rpm's documentation, "Package format", header structure).
//!
//! All numbers are big-endian. A database keeps the header without the eight bytes of magic that a package file has.

use crate::bytes::{be16, be32, be64, slice, u8_at, until_nul};
use crate::error::{Error, Result};

/// The most entries of an index, as rpm itself allows.
const MAX_ENTRIES: usize = 0xffff;
/// Bytes of an entry of the index: tag, type, offset, count.
const ENTRY: usize = 16;
/// Tags that hold no value but say which part of the header was signed: HEADERIMAGE, HEADERSIGNATURES, HEADERIMMUTABLE.
const REGIONS: std::ops::RangeInclusive<u32> = 61..=63;
/// The magic of a header in a file, version 1.
const MAGIC: [u8; 8] = [0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0];

/// Types of values.
mod kind {
    pub(super) const NULL: u32 = 0;
    pub(super) const CHAR: u32 = 1;
    pub(super) const INT8: u32 = 2;
    pub(super) const INT16: u32 = 3;
    pub(super) const INT32: u32 = 4;
    pub(super) const INT64: u32 = 5;
    pub(super) const STRING: u32 = 6;
    pub(super) const BINARY: u32 = 7;
    pub(super) const STRINGS: u32 = 8;
    pub(super) const I18N: u32 = 9;
}

/// A header whose index was checked: every value lies inside the data, and together they are not longer than it.
#[derive(Debug)]
pub struct Header<'a> {
    /// By tag; of two entries of a tag the one that was added at installation.
    entries: Vec<Entry<'a>>,
    /// Length of the whole header in bytes.
    pub len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    tag: u32,
    kind: u32,
    count: usize,
    /// Byte offset of the value in the header.
    at: u64,
    value: &'a [u8],
}

impl<'a> Header<'a> {
    /// Checks the index of a header.
    ///
    /// Linear in the length of `blob`: values that overlap so far that they are longer than the data together are refused.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the offset in the header.
    pub fn parse(blob: &'a [u8]) -> Result<Self> {
        let blob = blob.strip_prefix(&MAGIC).unwrap_or(blob);
        let short = || Error::corrupt("a header shorter than its first 8 bytes", 0);
        let entries = be32(blob, 0).ok_or_else(short)?;
        let data_len = be32(blob, 4).ok_or_else(short)?;
        let (Ok(count), Ok(data_len)) = (usize::try_from(entries), usize::try_from(data_len)) else {
            return Err(short());
        };
        if count == 0 || count > MAX_ENTRIES {
            return Err(Error::corrupt(format!("a header with {count} entries"), 0));
        }
        let start = 8 + count * ENTRY;
        if data_len.checked_add(start) != Some(blob.len()) {
            return Err(Error::corrupt(
                format!(
                    "a header of {} bytes that states {count} entries and {data_len} bytes of data",
                    blob.len()
                ),
                4,
            ));
        }
        let data = slice(blob, start, data_len).ok_or_else(short)?;
        let mut all = Vec::with_capacity(count);
        let mut used = 0;
        for n in 0..count {
            let at = 8 + n * ENTRY;
            let field = |i: usize| be32(blob, at + 4 * i).ok_or_else(short);
            let (tag, kind, offset, count) = (field(0)?, field(1)?, field(2)?, field(3)?);
            if REGIONS.contains(&tag) {
                continue;
            }
            let rest = usize::try_from(offset).ok().and_then(|o| data.get(o..));
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let len = rest.and_then(|rest| value_len(kind, count, rest));
            let value = rest.zip(len).and_then(|(rest, len)| rest.get(..len));
            let Some(value) = value else {
                return Err(Error::corrupt(
                    format!("tag {tag} of type {kind}: {count} values do not lie in the header"),
                    at as u64,
                ));
            };
            used += value.len();
            if used > data.len() {
                return Err(Error::corrupt("values of a header that overlap", at as u64));
            }
            all.push(Entry {
                tag,
                kind,
                count,
                at: (start as u64).saturating_add(offset.into()),
                value,
            });
        }
        // A stable sort: the later of two entries of one tag stays the later.
        all.sort_by_key(|e| e.tag);
        all.reverse();
        all.dedup_by_key(|e| e.tag);
        all.reverse();
        Ok(Self {
            entries: all,
            len: blob.len(),
        })
    }

    /// The tags that have a value, in ascending order.
    pub fn tags(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|e| e.tag)
    }

    fn entry(&self, tag: u32) -> Option<&Entry<'a>> {
        let at = self.entries.binary_search_by_key(&tag, |e| e.tag).ok()?;
        self.entries.get(at)
    }

    /// The string of a tag, the first of several (of a translated one that of the locale C).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is of another type.
    pub fn string(&self, tag: u32) -> Result<Option<&'a [u8]>> {
        let Some(entry) = self.entry(tag) else {
            return Ok(None);
        };
        match entry.kind {
            kind::STRING | kind::STRINGS | kind::I18N => Ok(Some(until_nul(entry.value))),
            _ => Err(entry.wrong("a string")),
        }
    }

    /// The string of a tag as text, bytes that are not UTF-8 as U+FFFD; `None` for one that is missing or empty.
    ///
    /// # Errors
    /// As [`Header::string`].
    pub fn text(&self, tag: u32) -> Result<Option<String>> {
        let text = self.string(tag)?.filter(|s| !s.is_empty());
        Ok(text.map(|s| String::from_utf8_lossy(s).into_owned()))
    }

    /// The strings of a tag; `None` if it is missing.
    ///
    /// # Errors
    /// As [`Header::string`].
    pub fn strings(&self, tag: u32) -> Result<Option<Strings<'a>>> {
        match self.entry(tag) {
            Some(entry) => match entry.kind {
                kind::STRING | kind::STRINGS | kind::I18N => Ok(Some(Strings {
                    rest: entry.value,
                    left: entry.count,
                })),
                _ => Err(entry.wrong("strings")),
            },
            None => Ok(None),
        }
    }

    /// The numbers of a tag, without sign; `None` if it is missing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is of another type.
    pub fn numbers(&self, tag: u32) -> Result<Option<Numbers<'a>>> {
        match self.entry(tag) {
            Some(entry) => match entry.kind {
                kind::CHAR | kind::INT8 | kind::INT16 | kind::INT32 | kind::INT64 => Ok(Some(Numbers {
                    kind: entry.kind,
                    count: entry.count,
                    value: entry.value,
                })),
                _ => Err(entry.wrong("numbers")),
            },
            None => Ok(None),
        }
    }

    /// The first number of a tag; `None` if it is missing.
    ///
    /// # Errors
    /// As [`Header::numbers`].
    pub fn number(&self, tag: u32) -> Result<Option<u64>> {
        Ok(self.numbers(tag)?.and_then(|n| n.get(0)))
    }

    /// The bytes of a tag; `None` if it is missing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the value is of another type.
    pub fn binary(&self, tag: u32) -> Result<Option<&'a [u8]>> {
        match self.entry(tag) {
            Some(entry) if entry.kind == kind::BINARY => Ok(Some(entry.value)),
            Some(entry) => Err(entry.wrong("bytes")),
            None => Ok(None),
        }
    }
}

/// The strings of a value, in their order.
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let string = until_nul(self.rest);
        self.rest = self.rest.get(string.len() + 1..).unwrap_or_default();
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// The numbers of a value.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    kind: u32,
    count: usize,
    value: &'a [u8],
}

impl Numbers<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there are none, which no header has.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number `n`, without sign; `None` behind the last.
    pub fn get(&self, n: usize) -> Option<u64> {
        match self.kind {
            kind::INT16 => be16(self.value, n.checked_mul(2)?).map(u64::from),
            kind::INT32 => be32(self.value, n.checked_mul(4)?).map(u64::from),
            kind::INT64 => be64(self.value, n.checked_mul(8)?),
            _ => u8_at(self.value, n).map(u64::from),
        }
    }
}

impl Entry<'_> {
    fn wrong(&self, expected: &str) -> Error {
        Error::corrupt(
            format!("tag {} is of type {}, not {expected}", self.tag, self.kind),
            self.at,
        )
    }
}

/// Bytes of a value that begins where `rest` does; `None` if it does not end inside, or its type is not known.
fn value_len(kind: u32, count: usize, rest: &[u8]) -> Option<usize> {
    let size = match kind {
        kind::NULL => 0,
        kind::CHAR | kind::INT8 | kind::BINARY => 1,
        kind::INT16 => 2,
        kind::INT32 => 4,
        kind::INT64 => 8,
        kind::STRING | kind::STRINGS | kind::I18N => {
            if kind == kind::STRING && count != 1 {
                return None;
            }
            let mut len = 0;
            for _ in 0..count {
                len += 1 + rest.get(len..)?.iter().position(|b| *b == 0)?;
            }
            return Some(len);
        }
        _ => return None,
    };
    let len = count.checked_mul(size)?;
    // A count of nothing is as wrong as one that does not fit.
    (count > 0 && len <= rest.len()).then_some(len)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A header with these values: tag, type, count, bytes.
    pub(crate) fn header(values: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
        let mut index = Vec::new();
        let mut data = Vec::new();
        for (tag, kind, count, value) in values {
            for word in [*tag, *kind, u32::try_from(data.len()).unwrap(), *count] {
                index.extend(word.to_be_bytes());
            }
            data.extend_from_slice(value);
        }
        let mut blob = Vec::new();
        blob.extend(u32::try_from(values.len()).unwrap().to_be_bytes());
        blob.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        blob.extend(index);
        blob.extend(data);
        blob
    }

    #[test]
    fn every_type_of_value() {
        let blob = header(&[
            (63, 7, 16, &[0; 16]),
            (1, kind::CHAR, 2, b"ab"),
            (2, kind::INT8, 1, &[200]),
            (3, kind::INT16, 2, &[0x80, 1, 0, 2]),
            (4, kind::INT32, 1, &[0xff, 0, 0, 1]),
            (5, kind::INT64, 1, &[1, 0, 0, 0, 0, 0, 0, 2]),
            (6, kind::STRING, 1, b"text\0"),
            (7, kind::BINARY, 3, &[9, 0, 9]),
            (8, kind::STRINGS, 3, b"a\0\0c\0"),
            (9, kind::I18N, 2, b"C\0de\0"),
            (10, kind::NULL, 1, b""),
            // Added at installation: it takes the place of the other.
            (6, kind::STRING, 1, b"later\0"),
        ]);
        for blob in [blob.clone(), [&MAGIC[..], &blob].concat()] {
            let h = Header::parse(&blob).unwrap();
            assert_eq!(h.tags().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
            let numbers = |tag| -> Vec<u64> {
                let n = h.numbers(tag).unwrap().unwrap();
                (0..n.len()).map(|i| n.get(i).unwrap()).collect()
            };
            assert_eq!(numbers(1), [97, 98]);
            assert_eq!(h.number(2).unwrap(), Some(200));
            assert_eq!(numbers(3), [0x8001, 2]);
            assert_eq!(h.number(4).unwrap(), Some(0xff00_0001));
            assert_eq!(h.number(5).unwrap(), Some(0x0100_0000_0000_0002));
            assert_eq!(h.string(6).unwrap(), Some(&b"later"[..]));
            assert_eq!(h.binary(7).unwrap(), Some(&[9, 0, 9][..]));
            assert_eq!(
                h.strings(8).unwrap().unwrap().collect::<Vec<_>>(),
                [&b"a"[..], b"", b"c"]
            );
            assert_eq!(h.text(9).unwrap().as_deref(), Some("C"));
            assert_eq!(h.number(99).unwrap(), None);
            assert!(h.string(4).is_err() && h.number(6).is_err() && h.binary(6).is_err());
            assert!(h.number(10).is_err());
        }
    }

    #[test]
    fn counts_and_offsets_are_checked() {
        let good = header(&[(6, kind::STRING, 1, b"text\0"), (4, kind::INT32, 1, &[0; 4])]);
        assert!(Header::parse(&good).is_ok());
        let word = |at: usize, value: u32| {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_be_bytes());
            bad
        };
        for bad in [
            Vec::new(),
            good[..7].to_vec(),
            good[..good.len() - 1].to_vec(),
            [&good[..], b"x"].concat(),
            word(0, 0),
            word(0, u32::MAX),
            word(0, 0x10000),
            word(4, u32::MAX),
            word(12, 77),
            word(12, 0x1000_0000),
            word(16, u32::MAX),
            word(20, 2),
            word(36, u32::MAX),
            word(36, 0),
            word(32, 6),
        ] {
            assert!(
                matches!(Header::parse(&bad), Err(Error::Corrupt { .. })),
                "{bad:?}"
            );
        }
    }
}
