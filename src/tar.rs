//! Reading tar streams that strangers wrote: layers and image archives.
//!
//! What is understood: ustar (POSIX.1-1988), PAX (POSIX.1-2001) with its local records, GNU long names, base-256 numbers,
//! the GNU sparse formats old, 0.0, 0.1 and 1.0. Where the formats leave a choice, this reader does what Go's
//! `archive/tar` does, because the container engines read layers with it. The fields of a header block are cut out by the
//! `tar` crate; streams, limits and extensions are here, since that crate puts no bound on the size of extension headers,
//! ends the value of a PAX record at a line feed and knows neither PAX sparse files nor times before 1970.

use crate::bytes::{slice, until_nul};
use crate::error::{Error, Result};
use crate::tree::{Time, Xattrs};
use std::io::Read;

/// Size of a block; everything in a tar begins at a multiple of it.
pub(crate) const BLOCK: u64 = 512;
/// The longest extension header (PAX records, long name) in bytes; Go's reader has the same limit.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most data runs of one sparse file.
const MAX_RUNS: usize = 1 << 20;

/// A stream that a tar is read from.
pub(crate) trait Input: Read {
    /// Goes `n` bytes forward.
    fn skip(&mut self, n: u64) -> std::io::Result<()>;
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// A run of data of a sparse file: where it belongs in the file, and its length. Between the runs are zeros.
pub(crate) type Run = (u64, u64);

/// One entry: header and extensions put together.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Type,
    /// The name as it stands: perhaps with `./` in front or `/` behind.
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Permission bits, 07777 at most.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Length of the file, holes included; 0 for what is no regular file.
    pub(crate) size: u64,
    /// Where the stored data begin in the stream.
    pub(crate) offset: u64,
    /// How many bytes are stored: `size` unless the file is sparse.
    pub(crate) stored: u64,
    /// The runs of a sparse file, in order; their lengths add up to `stored`.
    pub(crate) sparse: Option<Vec<Run>>,
    pub(crate) xattrs: Xattrs,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Reads a tar entry by entry.
pub(crate) struct Reader<R> {
    input: R,
    /// Bytes taken from `input`.
    pos: u64,
    /// Stored bytes of the current entry that were not read yet.
    left: u64,
    /// Padding behind them.
    padding: u64,
    ended: bool,
    /// Called `what` in errors.
    name: String,
}

/// What extension headers say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extensions {
    /// The last record of this key that has a value.
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let found = self.pax.iter().rev().find(|(k, _)| k == key)?;
        (!found.1.is_empty()).then_some(found.1.as_slice())
    }
}

impl<R: Input> Reader<R> {
    /// A reader of `input` from its first byte; `name` is for messages.
    pub(crate) fn new(input: R, name: impl Into<String>) -> Self {
        Self {
            input,
            pos: 0,
            left: 0,
            padding: 0,
            ended: false,
            name: name.into(),
        }
    }

    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("{}: {what}", self.name), self.pos)
    }

    fn io(&self, e: std::io::Error) -> Error {
        match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.bad("the tar ends in the middle of an entry"),
            _ => Error::from_io(format!("reading {}", self.name), e),
        }
    }

    /// Fills `buf`, or gives false if the stream ends right here.
    fn fill(&mut self, buf: &mut [u8]) -> Result<bool> {
        let mut got = 0;
        while let Some(rest) = buf.get_mut(got..).filter(|r| !r.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if got == 0 => return Ok(false),
                Ok(0) => return Err(self.io(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => got += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(e)),
            }
        }
        self.pos += got as u64;
        Ok(true)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        if n > 0 {
            self.input.skip(n).map_err(|e| self.io(e))?;
            self.pos = self.pos.saturating_add(n);
        }
        Ok(())
    }

    /// The next header block, `None` at the end mark or the end of the stream.
    fn block(&mut self) -> Result<Option<::tar::Header>> {
        let mut header = ::tar::Header::new_old();
        if !self.fill(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            let mut second = [0; 512];
            if self.fill(&mut second)? && second.iter().any(|b| *b != 0) {
                return Err(self.bad("one block of zeros between two entries"));
            }
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let stated = number(bytes, 148, 8).ok_or_else(|| self.bad("a header without a checksum"))?;
        let around = |cast: fn(u8) -> i64| -> i64 {
            let field = 8 * i64::from(b' ');
            let sum = |range: &[u8]| range.iter().map(|b| cast(*b)).sum::<i64>();
            sum(bytes.get(..148).unwrap_or_default()) + field + sum(bytes.get(156..).unwrap_or_default())
        };
        // Old writers added the bytes up as signed numbers.
        if stated != around(i64::from) && stated != around(|b| i64::from(b.cast_signed())) {
            return Err(self.bad("the checksum of a header is wrong"));
        }
        Ok(Some(header))
    }

    /// The content of an extension header.
    fn extension(&mut self, header: &::tar::Header, what: &str) -> Result<Vec<u8>> {
        let size = self.field(header, 124, 12, "size")?;
        let size = u64::try_from(size)
            .ok()
            .filter(|s| *s <= MAX_EXTENSION)
            .ok_or_else(|| self.bad(format!("{what} of {size} bytes")))?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        if !bytes.is_empty() && !self.fill(&mut bytes)? {
            return Err(self.io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.skip(padding(size))?;
        Ok(bytes)
    }

    fn field(&self, header: &::tar::Header, at: usize, len: usize, name: &str) -> Result<i64> {
        number(header.as_bytes(), at, len)
            .ok_or_else(|| self.bad(format!("the {name} field of a header is no number")))
    }

    /// The next entry; what is left of the one before is skipped. `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        self.skip(rest)?;
        let mut extensions = Extensions::default();
        let mut described = false;
        loop {
            let Some(header) = self.block()? else {
                self.ended = true;
                return match described {
                    true => Err(self.bad("extension headers without an entry behind them")),
                    false => Ok(None),
                };
            };
            match header.entry_type().as_byte() {
                b'x' => {
                    let bytes = self.extension(&header, "PAX records")?;
                    extensions.pax = records(&bytes).ok_or_else(|| self.bad("broken PAX records"))?;
                }
                // Global records: the engines do not apply them either.
                b'g' => {
                    self.extension(&header, "global PAX records")?;
                    continue;
                }
                b'L' => {
                    let bytes = self.extension(&header, "a long name")?;
                    extensions.long_name = Some(until_nul(&bytes).to_vec());
                }
                b'K' => {
                    let bytes = self.extension(&header, "a long link name")?;
                    extensions.long_link = Some(until_nul(&bytes).to_vec());
                }
                _ => return self.entry(&header, extensions).map(Some),
            }
            described = true;
        }
    }

    fn entry(&mut self, header: &::tar::Header, extensions: Extensions) -> Result<Entry> {
        let bytes = header.as_bytes();
        let mut path = name(bytes);
        let mut link = until_nul(slice(bytes, 157, 100).unwrap_or_default()).to_vec();
        if let Some(value) = extensions.get(b"path") {
            path = value.to_vec();
        }
        if let Some(value) = extensions.get(b"linkpath") {
            link = value.to_vec();
        }
        path = extensions.long_name.clone().unwrap_or(path);
        link = extensions.long_link.clone().unwrap_or(link);
        let kind = match header.entry_type().as_byte() {
            0 if path.ends_with(b"/") => Type::Directory,
            0 | b'0' | b'7' | b'S' => Type::File,
            b'1' => Type::Link,
            b'2' => Type::Symlink,
            b'3' => Type::Char,
            b'4' => Type::Block,
            b'5' => Type::Directory,
            b'6' => Type::Fifo,
            other => {
                return Err(Error::unsupported(format!(
                    "{}: a tar entry of type {:?}",
                    self.name,
                    char::from(other)
                )));
            }
        };
        let decimal = |key: &[u8]| -> Result<Option<i64>> {
            let Some(value) = extensions.get(key) else {
                return Ok(None);
            };
            let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            number
                .map(Some)
                .ok_or_else(|| self.bad(format!("the PAX record {} is no number", key.escape_ascii())))
        };
        let id = |key: &[u8], at: usize| -> Result<u32> {
            let value = match decimal(key)? {
                Some(value) => value,
                None => self.field(header, at, 8, "owner")?,
            };
            u32::try_from(value).map_err(|_| self.bad(format!("{value} is no owner or group")))
        };
        let size = match decimal(b"size")? {
            Some(size) => size,
            None => self.field(header, 124, 12, "size")?,
        };
        let size = u64::try_from(size).map_err(|_| self.bad("an entry of negative size"))?;
        let stored = if kind == Type::File { size } else { 0 };
        let mtime = match extensions.get(b"mtime") {
            Some(value) => pax_time(value).ok_or_else(|| self.bad("the PAX record mtime is no time"))?,
            None => Time {
                sec: self.field(header, 136, 12, "mtime")?,
                nsec: 0,
            },
        };
        let device = |at: usize| -> Result<u32> {
            if !matches!(kind, Type::Char | Type::Block) {
                return Ok(0);
            }
            let value = self.field(header, at, 8, "device")?;
            u32::try_from(value).map_err(|_| self.bad(format!("{value} is no device number")))
        };
        let mut entry = Entry {
            kind,
            link,
            mode: u16::try_from(self.field(header, 100, 8, "mode")? & 0o7777).unwrap_or_default(),
            uid: id(b"uid", 108)?,
            gid: id(b"gid", 116)?,
            mtime,
            size: stored,
            offset: self.pos,
            stored,
            sparse: None,
            xattrs: xattrs(&extensions.pax),
            major: device(329)?,
            minor: device(337)?,
            path,
        };
        let end = self.pos.checked_add(stored).and_then(|e| e.checked_add(BLOCK));
        end.ok_or_else(|| self.bad(format!("an entry of {stored} bytes")))?;
        self.left = stored;
        self.padding = padding(stored);
        if kind == Type::File {
            self.sparse(header, &extensions, &mut entry)?;
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(self.bad("a NUL in a name"));
        }
        Ok(entry)
    }

    /// Fills in size and runs of a file that is sparse in one of the four GNU ways.
    fn sparse(&mut self, header: &::tar::Header, extensions: &Extensions, entry: &mut Entry) -> Result<()> {
        let decimal = |value: &[u8]| {
            std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse::<u64>().ok())
        };
        let version = (
            extensions.get(b"GNU.sparse.major"),
            extensions.get(b"GNU.sparse.minor"),
        );
        let runs = if header.entry_type().as_byte() == b'S' {
            entry.size = u64::try_from(self.field(header, 483, 12, "real size")?)
                .map_err(|_| self.bad("a sparse file of negative size"))?;
            self.old_sparse(header)?
        } else if let (Some(b"1"), Some(b"0")) = version {
            self.sparse_1_0()?
        } else if let (Some(map), Some(b"0") | None) = (extensions.get(b"GNU.sparse.map"), version.0) {
            map.split(|b| *b == b',').map(decimal).collect::<Option<Vec<_>>>()
        } else if extensions.get(b"GNU.sparse.numblocks").is_some() {
            let keys: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];
            let both = extensions
                .pax
                .iter()
                .filter(|(k, _)| keys.contains(&k.as_slice()));
            both.map(|(_, v)| decimal(v)).collect::<Option<Vec<_>>>()
        } else if version.0.is_some() {
            return Err(Error::unsupported(format!(
                "{}: this version of the sparse file format",
                self.name
            )));
        } else {
            return Ok(());
        };
        for key in [&b"GNU.sparse.realsize"[..], b"GNU.sparse.size"] {
            if let Some(value) = extensions.get(key) {
                entry.size = decimal(value).ok_or_else(|| self.bad("a sparse file without a size"))?;
            }
        }
        if let Some(name) = extensions.get(b"GNU.sparse.name") {
            entry.path = name.to_vec();
        }
        let numbers = runs.ok_or_else(|| self.bad("the map of a sparse file is broken"))?;
        let (pairs, rest) = numbers.as_chunks::<2>();
        let mut runs = Vec::with_capacity(pairs.len());
        let (mut end, mut stored) = (0u64, 0u64);
        for [at, len] in pairs {
            let ordered = *at >= end;
            end = at
                .checked_add(*len)
                .ok_or_else(|| self.bad("the map of a sparse file is broken"))?;
            stored = stored.saturating_add(*len);
            if !ordered || end > entry.size {
                return Err(self.bad("the map of a sparse file is not in order"));
            }
            if *len > 0 {
                runs.push((*at, *len));
            }
        }
        entry.stored = self.left;
        entry.offset = self.pos;
        if !rest.is_empty() || stored != self.left || pairs.len() > MAX_RUNS {
            return Err(self.bad("the map of a sparse file does not fit its data"));
        }
        entry.sparse = Some(runs);
        Ok(())
    }

    /// The map of the old format (type `S`): 4 pairs in the header, 21 more in each extension block (GNU tar manual,
    /// "Basic Tar Format", struct oldgnu_header and sparse_header).
    fn old_sparse(&mut self, header: &::tar::Header) -> Result<Option<Vec<u64>>> {
        let mut numbers = Vec::new();
        let mut take = |bytes: &[u8], at: usize, count: usize| -> Option<bool> {
            for i in 0..count {
                let pair = at + 24 * i;
                if *bytes.get(pair)? == 0 {
                    break;
                }
                numbers.push(u64::try_from(number(bytes, pair, 12)?).ok()?);
                numbers.push(u64::try_from(number(bytes, pair + 12, 12)?).ok()?);
            }
            Some(numbers.len() <= 2 * MAX_RUNS)
        };
        let broken = |ok: Option<bool>| ok != Some(true);
        let mut wrong = broken(take(header.as_bytes(), 386, 4));
        let mut more = header.as_bytes().get(482).is_some_and(|b| *b != 0);
        while more && !wrong {
            let mut block = [0; 512];
            if !self.fill(&mut block)? {
                return Err(self.io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            wrong = broken(take(&block, 0, 21));
            more = block.get(504).is_some_and(|b| *b != 0);
        }
        Ok((!wrong).then_some(numbers))
    }

    /// The map of format 1.0: decimal lines at the beginning of the data, padded to a block (GNU tar manual, "PAX Format,
    /// Version 1.0").
    fn sparse_1_0(&mut self) -> Result<Option<Vec<u64>>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut line = 0u64;
        let mut digits = 0;
        while wanted.is_none_or(|w| numbers.len() < w) {
            if self.left < BLOCK {
                return Ok(None);
            }
            let mut block = [0; 512];
            if !self.fill(&mut block)? {
                return Err(self.io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            self.left -= BLOCK;
            for b in block {
                match b {
                    b'0'..=b'9' if digits < 19 => {
                        line = line * 10 + u64::from(b - b'0');
                        digits += 1;
                    }
                    b'\n' if digits > 0 => {
                        match wanted {
                            None => match usize::try_from(line) {
                                Ok(count) if count <= MAX_RUNS => wanted = Some(2 * count),
                                _ => return Ok(None),
                            },
                            Some(_) => numbers.push(line),
                        }
                        (line, digits) = (0, 0);
                        if wanted.is_some_and(|w| numbers.len() >= w) {
                            break;
                        }
                    }
                    _ => return Ok(None),
                }
            }
        }
        Ok(Some(numbers))
    }

    /// Stored bytes of the current entry into `buf`; 0 when all were read.
    pub(crate) fn read_stored(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let Some(part) = buf.get_mut(..n).filter(|p| !p.is_empty()) else {
            return Ok(0);
        };
        loop {
            match self.input.read(part) {
                Ok(0) => return Err(self.io(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(got) => {
                    self.left -= got as u64;
                    self.pos += got as u64;
                    return Ok(got);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(e)),
            }
        }
    }
}

/// The bytes from the end of `size` bytes to the next block.
pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}

/// The name of a header block: `prefix/name` where the header has a prefix (ustar, or star's shorter one).
fn name(header: &[u8]) -> Vec<u8> {
    let name = until_nul(slice(header, 0, 100).unwrap_or_default());
    let prefix_len = match (slice(header, 257, 6), slice(header, 508, 4)) {
        (Some(b"ustar\0"), Some(b"tar\0")) => 131,
        (Some(b"ustar\0"), _) => 155,
        _ => 0,
    };
    let prefix = until_nul(slice(header, 345, prefix_len).unwrap_or_default());
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// A numeric field: octal digits with spaces and NULs around them, or base-256 (first bit set, two's complement).
fn number(bytes: &[u8], at: usize, len: usize) -> Option<i64> {
    let field = slice(bytes, at, len)?;
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (i, b) in field.iter().enumerate() {
            let b = match (i, negative) {
                (0, true) => *b,
                (0, false) => *b & 0x7f,
                _ => *b,
            };
            value = value.checked_mul(256)? | i64::from(b);
        }
        return Some(value);
    }
    let blank = |b: &u8| *b == 0 || *b == b' ';
    let Some(start) = field.iter().position(|b| !blank(b)) else {
        return Some(0);
    };
    let digits = field.get(start..)?;
    let digits = digits.get(..digits.iter().position(blank).unwrap_or(digits.len()))?;
    digits.iter().try_fold(0i64, |value, b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

/// PAX records, `"%d %s=%s\n"` each (POSIX.1-2001, pax, "pax Extended Header"). Values are bytes and may hold anything.
fn records(mut bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|b| *b == b' ')?;
        let len: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
        if key.is_empty() || key.contains(&0) {
            return None;
        }
        out.push((key.to_vec(), value.to_vec()));
        bytes = bytes.get(len..)?;
    }
    Some(out)
}

/// The extended attributes among PAX records, sorted, no name twice. An empty value says that there is none.
fn xattrs(pax: &[(Vec<u8>, Vec<u8>)]) -> Xattrs {
    let mut all = std::collections::BTreeMap::new();
    for (key, value) in pax {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|n| !n.is_empty()) {
            all.insert(name.to_vec(), value.clone());
        }
    }
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// `[-]seconds[.fraction]`; more than nine digits of the fraction are cut off.
fn pax_time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let sec: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nsec: u32 = digits.parse().ok()?;
    Some(match (negative, nsec) {
        (true, 1..) => Time {
            sec: sec.checked_sub(1)?,
            nsec: 1_000_000_000 - nsec,
        },
        _ => Time { sec, nsec },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let n = |field: &[u8]| number(field, 0, field.len());
        assert_eq!(n(b"0000644\0"), Some(0o644));
        assert_eq!(n(b"   644 \0"), Some(0o644));
        assert_eq!(n(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(n(b"        "), Some(0));
        assert_eq!(n(b"00008\0\0\0"), None);
        assert_eq!(n(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(n(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(n(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(n(b"777777777777"), Some(0o777_777_777_777));
    }

    #[test]
    fn times() {
        let t = |s: &str| pax_time(s.as_bytes()).map(|t| (t.sec, t.nsec));
        assert_eq!(t("1.5"), Some((1, 500_000_000)));
        assert_eq!(t("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(t("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(t("12"), Some((12, 0)));
        assert_eq!(t("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(t("x"), None);
        assert_eq!(t("1.-5"), None);
    }

    #[test]
    fn records_hold_any_bytes_and_end_where_they_say() {
        let r = records(b"18 SCHILY.xattr.a=\n20 SCHILY.xattr.b=\n\n");
        assert_eq!(r, None);
        let good = b"19 SCHILY.xattr.a=\n21 SCHILY.xattr.b=\n\n\n";
        let r = records(good).unwrap();
        assert_eq!(r.len(), 2);
        assert_eq!(r[1].1, b"\n\n");
        assert_eq!(xattrs(&r), vec![(b"b".to_vec(), b"\n\n".to_vec())]);
        assert_eq!(records(b"999999999999999999999 a=b\n"), None);
        assert_eq!(records(b"5 a=b"), None);
        assert_eq!(records(b"0 a=b\n"), None);
    }
}
