//! Entries of a layer tar, the same bytes for the same file everywhere.
//!
//! The format is ustar (POSIX.1-1988) with PAX extended headers (POSIX.1-2001, `pax` utility, "pax Interchange Format")
//! only where ustar cannot say it. The `tar` crate fills the header; the PAX records are written here, because the crate
//! cannot express negative times, xattrs in sorted order and a header name that does not depend on the path.

use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::tree::{Kind, Node};
use std::io::Write;
use tar::{EntryType, Header};

/// Size of a tar block in bytes.
pub const BLOCK: usize = 512;

/// The largest number that an octal field of 11 digits holds: sizes and times.
const MAX_OCTAL_11: u64 = 0o777_7777_7777;
/// The largest number that an octal field of 7 digits holds: ids and device numbers.
const MAX_OCTAL_7: u32 = 0o777_7777;

/// What an entry is besides what its node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As<'a> {
    /// The node itself; the content of a regular file follows.
    Itself,
    /// A hard link to a path that stands earlier in the same layer.
    LinkTo(&'a GuestPath),
}

/// True for an extended attribute that belongs to a machine's kernel and policy, or to the filesystem that a file lies on, and not
/// to the file; such attributes are neither written nor compared. XFS shows each ACL a second time, in its own form.
pub fn is_local_xattr(name: &[u8]) -> bool {
    matches!(name, b"security.selinux" | b"security.ima" | b"security.evm")
        || name.starts_with(b"trusted.overlay.")
        || matches!(name, b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT")
}

/// Why a layer cannot carry an extended attribute; `None` if it can.
pub fn unsayable_xattr(name: &[u8], value: &[u8]) -> Option<&'static str> {
    if value.is_empty() {
        Some("an empty value cannot be said in a PAX header")
    } else if name.contains(&b'=') || name.contains(&0) {
        Some("a name with '=' or NUL cannot be said in a PAX header")
    } else {
        None
    }
}

/// Writes the header (and the PAX header before it, if one is needed) of `node` at `path`.
///
/// `mtime` is in whole seconds. The content of a regular file, padded with [`padding`] zeros, must follow when `form` is
/// [`As::Itself`].
///
/// # Errors
/// Whatever `out` fails with, and [`Error::Unsupported`] for a socket or the root's name.
pub fn write_header(
    out: &mut dyn Write,
    path: &GuestPath,
    node: &Node,
    form: As<'_>,
    mtime: i64,
) -> Result<()> {
    let mut name = path.relative().to_vec();
    if node.is_dir() {
        if name.is_empty() {
            name.push(b'.');
        }
        name.push(b'/');
    }
    let (entry_type, size, link, device) = match (form, &node.kind) {
        (As::LinkTo(first), _) => (EntryType::Link, 0, first.relative(), None),
        (As::Itself, Kind::Directory) => (EntryType::Directory, 0, &b""[..], None),
        (As::Itself, Kind::File { size }) => (EntryType::Regular, *size, &b""[..], None),
        (As::Itself, Kind::Symlink { target }) => (EntryType::Symlink, 0, target.as_slice(), None),
        (As::Itself, Kind::Block { major, minor }) => (EntryType::Block, 0, &b""[..], Some((*major, *minor))),
        (As::Itself, Kind::Char { major, minor }) => (EntryType::Char, 0, &b""[..], Some((*major, *minor))),
        (As::Itself, Kind::Fifo) => (EntryType::Fifo, 0, &b""[..], None),
        (As::Itself, Kind::Socket) => return Err(Error::unsupported(format!("{path}: a socket in a layer"))),
    };
    let mode = if matches!(node.kind, Kind::Symlink { .. }) {
        0o777
    } else {
        u32::from(node.mode) & 0o7777
    };
    let xattrs = if form == As::Itself {
        node.xattrs.as_slice()
    } else {
        &[]
    };
    let records = pax_records(&name, link, size, node, mtime, xattrs, device);
    if !records.is_empty() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        put(&mut header.as_old_mut().name, b"././@PaxHeader");
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        write_all(out, header.as_bytes())?;
        write_all(out, &records)?;
        write_all(out, padding(records.len() as u64))?;
    }
    let mut header = Header::new_ustar();
    header.set_entry_type(entry_type);
    let (prefix, base) = split_name(&name).unwrap_or((&[], &name));
    if let Some(ustar) = header.as_ustar_mut() {
        put(&mut ustar.name, base);
        put(&mut ustar.prefix, prefix);
        put(&mut ustar.linkname, link);
    }
    header.set_mode(mode);
    header.set_uid(u64::from(if node.uid > MAX_OCTAL_7 { 0 } else { node.uid }));
    header.set_gid(u64::from(if node.gid > MAX_OCTAL_7 { 0 } else { node.gid }));
    header.set_mtime(
        u64::try_from(mtime)
            .ok()
            .filter(|t| *t <= MAX_OCTAL_11)
            .unwrap_or(0),
    );
    header.set_size(if size > MAX_OCTAL_11 { 0 } else { size });
    let (major, minor) = device.unwrap_or((0, 0));
    let fits = |n: u32| if n > MAX_OCTAL_7 { 0 } else { n };
    let set = |e| Error::io(format!("writing the header of {path}"), e);
    header.set_device_major(fits(major)).map_err(set)?;
    header.set_device_minor(fits(minor)).map_err(set)?;
    header.set_cksum();
    write_all(out, header.as_bytes())
}

/// Writes the entry that deletes `path` of the lower layers (OCI image-spec, layer.md, "Whiteouts").
///
/// # Errors
/// [`Error::Unsupported`] if the name is too long to be prefixed, and whatever `out` fails with.
pub fn write_whiteout(out: &mut dyn Write, path: &GuestPath) -> Result<()> {
    let name = [b".wh.", path.name()].concat();
    if name.len() > 255 {
        return Err(Error::unsupported(format!(
            "{path}: the name is too long for a whiteout"
        )));
    }
    let at = path.parent().unwrap_or(GuestPath::root()).join(&name)?;
    let node = Node {
        kind: Kind::File { size: 0 },
        mode: 0,
        ..Node::plain_dir()
    };
    write_header(out, &at, &node, As::Itself, 0)
}

/// The zeros that fill the last block of `size` bytes.
pub fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    ZEROS.get(..(BLOCK - used) % BLOCK).unwrap_or_default()
}

/// Writes the end of the archive: two zero blocks.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write_end(out: &mut dyn Write) -> Result<()> {
    write_all(out, &[0; 2 * BLOCK])
}

/// The bytes that an entry takes in the tar, its padded content included.
pub fn entry_size(path: &GuestPath, node: &Node, form: As<'_>, mtime: i64) -> u64 {
    let mut counted = Counter(0);
    if write_header(&mut counted, path, node, form, mtime).is_err() {
        return 0;
    }
    let content = if form == As::Itself { node.size() } else { 0 };
    counted.0 + content + padding(content).len() as u64
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_all(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|e| Error::io("writing a layer", e))
}

/// Copies as much of `bytes` as fits.
fn put(field: &mut [u8], bytes: &[u8]) {
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from;
    }
}

/// Splits `name` at a slash into a prefix of at most 155 bytes and a name of at most 100; `None` if it cannot be, or if
/// the name needs a PAX record anyway.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= 100 {
        return Some((&[], name));
    }
    // The slash that ends a directory's name is no place to split at.
    let inner = name.strip_suffix(b"/").unwrap_or(name);
    let from = name.len().saturating_sub(101);
    let at = inner
        .iter()
        .enumerate()
        .skip(from)
        .find(|(_, b)| **b == b'/')
        .map(|(at, _)| at)?;
    let (prefix, rest) = name.split_at_checked(at)?;
    (prefix.len() <= 155 && at > 0).then_some((prefix, rest.strip_prefix(b"/")?))
}

/// The PAX records that this entry needs, keys in byte order; empty if ustar says it all.
fn pax_records(
    name: &[u8],
    link: &[u8],
    size: u64,
    node: &Node,
    mtime: i64,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    device: Option<(u32, u32)>,
) -> Vec<u8> {
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (key, value) in xattrs {
        if !is_local_xattr(key) && unsayable_xattr(key, value).is_none() {
            records.push(([b"SCHILY.xattr.", key.as_slice()].concat(), value.clone()));
        }
    }
    let long_name = split_name(name).is_none();
    let long_link = link.len() > 100 || !link.is_ascii();
    if long_name && std::str::from_utf8(name).is_err() || long_link && std::str::from_utf8(link).is_err() {
        records.push((b"hdrcharset".to_vec(), b"BINARY".to_vec()));
    }
    if long_name {
        records.push((b"path".to_vec(), name.to_vec()));
    }
    if long_link {
        records.push((b"linkpath".to_vec(), link.to_vec()));
    }
    let mut number = |key: &str, value: String| records.push((key.into(), value.into_bytes()));
    if size > MAX_OCTAL_11 {
        number("size", size.to_string());
    }
    if node.uid > MAX_OCTAL_7 {
        number("uid", node.uid.to_string());
    }
    if node.gid > MAX_OCTAL_7 {
        number("gid", node.gid.to_string());
    }
    if u64::try_from(mtime).map_or(true, |t| t > MAX_OCTAL_11) {
        number("mtime", mtime.to_string());
    }
    if let Some((major, minor)) = device {
        if major > MAX_OCTAL_7 {
            number("SCHILY.devmajor", major.to_string());
        }
        if minor > MAX_OCTAL_7 {
            number("SCHILY.devminor", minor.to_string());
        }
    }
    records.sort();
    let mut out = Vec::new();
    for (key, value) in records {
        // "%d %s=%s\n": the length counts itself.
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        out.extend_from_slice(len.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(&key);
        out.push(b'=');
        out.extend_from_slice(&value);
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Time;

    fn p(s: &[u8]) -> GuestPath {
        GuestPath::new(s).unwrap()
    }
    fn file(size: u64) -> Node {
        Node {
            kind: Kind::File { size },
            mode: 0o644,
            ..Node::plain_dir()
        }
    }
    fn bytes(path: &[u8], node: &Node, mtime: i64) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(&mut out, &p(path), node, As::Itself, mtime).unwrap();
        out
    }

    #[test]
    fn a_plain_file_takes_one_block() {
        let b = bytes(b"/etc/hosts", &file(3), 1_600_000_000);
        assert_eq!(b.len(), BLOCK);
        assert!(b.starts_with(b"etc/hosts\0"));
        assert_eq!(&b[257..265], b"ustar\x0000");
        assert_eq!(entry_size(&p(b"/etc/hosts"), &file(3), As::Itself, 0), 1024);
        assert_eq!(&b[265..329], [0; 64], "user and group names are empty");
    }

    #[test]
    fn names_split_where_they_can() {
        let long = [b"/".as_slice(), &[b'd'; 120], b"/", &[b'n'; 100]].concat();
        assert_eq!(bytes(&long, &file(0), 0).len(), BLOCK);
        let unsplit = [b"/".as_slice(), &[b'n'; 101]].concat();
        assert_eq!(bytes(&unsplit, &file(0), 0).len(), 3 * BLOCK);
        assert_eq!(split_name(b"a/b"), Some((&b""[..], &b"a/b"[..])));
        let dir = [&[b'd'; 100][..], b"/"].concat();
        assert_eq!(split_name(&dir), None, "a directory's last slash is no split");
    }

    /// The records of a PAX header, read by their lengths.
    fn records(mut text: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        while text.first().is_some_and(|b| *b != 0) {
            let space = text.iter().position(|b| *b == b' ').unwrap();
            let len: usize = std::str::from_utf8(&text[..space]).unwrap().parse().unwrap();
            assert_eq!(text[len - 1], b'\n');
            let record = &text[space + 1..len - 1];
            let equals = record.iter().position(|b| *b == b'=').unwrap();
            records.push((
                String::from_utf8(record[..equals].to_vec()).unwrap(),
                record[equals + 1..].to_vec(),
            ));
            text = &text[len..];
        }
        records
    }

    #[test]
    fn pax_says_what_ustar_cannot() {
        let hard = Node {
            uid: 3_000_000,
            gid: 4_000_000_000,
            xattrs: vec![
                (b"security.capability".to_vec(), vec![1, 0, 0, 2, 10, 0]),
                (b"security.selinux".to_vec(), b"dropped".to_vec()),
                (b"user.empty".to_vec(), Vec::new()),
                (b"user.x".to_vec(), b"a=b\n".to_vec()),
            ],
            mtime: Time { sec: -5, nsec: 0 },
            ..file(0)
        };
        let out = bytes(b"/caf\xe9\n", &hard, -5);
        assert_eq!(out.len(), 3 * BLOCK);
        assert!(out.starts_with(b"././@PaxHeader\0"));
        let records = records(&out[BLOCK..2 * BLOCK]);
        let said: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        let wanted: [(&str, &[u8]); 7] = [
            ("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 10, 0]),
            ("SCHILY.xattr.user.x", b"a=b\n"),
            ("gid", b"4000000000"),
            ("hdrcharset", b"BINARY"),
            ("mtime", b"-5"),
            ("path", b"caf\xe9\n"),
            ("uid", b"3000000"),
        ];
        assert_eq!(said, wanted);
        assert_eq!(
            &out[2 * BLOCK + 108..2 * BLOCK + 116],
            b"0000000\0",
            "an id that does not fit is 0 in the header"
        );
    }

    #[test]
    fn whiteouts_and_sockets() {
        let mut out = Vec::new();
        write_whiteout(&mut out, &p(b"/etc/motd")).unwrap();
        assert!(out.starts_with(b"etc/.wh.motd\0"));
        let long = [b"/".as_slice(), &[b'n'; 252]].concat();
        assert!(write_whiteout(&mut out, &p(&long)).is_err());
        let socket = Node {
            kind: Kind::Socket,
            ..file(0)
        };
        assert!(write_header(&mut out, &p(b"/s"), &socket, As::Itself, 0).is_err());
    }

    #[test]
    fn record_lengths_count_themselves() {
        for n in 80..120 {
            let node = Node {
                xattrs: vec![(b"user.v".to_vec(), vec![b'v'; n])],
                ..file(0)
            };
            let b = bytes(b"/f", &node, 0);
            let records = records(&b[BLOCK..b.len() - BLOCK]);
            assert_eq!(records, [("SCHILY.xattr.user.v".to_owned(), vec![b'v'; n])]);
        }
    }
}
