//! Deltas for transport: what turns a regular file of one side into that of the other, made and applied by librsync.
//!
//! A bundle is a tar, the same bytes for the same two sides: `index.json`, then one delta (librsync's format, which
//! rdiff(1) reads and writes) for each regular file that both sides have with different content, where the delta is
//! smaller than the file. The index states size and SHA-256 of both contents; after patching the digest is checked, always.

#![deny(clippy::indexing_slicing)]

use crate::diff::{Change, Diff, Fields};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::tar::{As, padding, write_end, write_header};
use crate::path::GuestPath;
use crate::progress::Progress;
use crate::rdiff::{self, copy};
use crate::read_at::{ReadAt, Slice, Stream, read_vec};
use crate::scratch::Scratch;
use crate::source::Source;
use crate::tar::{Input, Reader, Type};
use crate::tree::{Kind, Node};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// The `schema` of a bundle's index.
pub const SCHEMA: &str = "vm2k.delta/1";

const INDEX: &str = "/index.json";
/// The largest index: 200,000 files have about 80 MB.
const MAX_INDEX: u64 = 256 << 20;
/// The largest file that a delta may make.
const MAX_FILE: u64 = 1 << 43;

/// Size and digest of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256.
    pub digest: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    schema: String,
    /// In byte order of their paths.
    files: Vec<IndexEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexEntry {
    /// As `GuestPath` is shown.
    path: String,
    old: Content,
    new: Content,
    /// Name of the delta in the bundle.
    delta: String,
    /// Its size in bytes.
    size: u64,
}

/// What making a bundle came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Saving {
    /// Files with a delta.
    pub files: usize,
    /// Their bytes on the new side.
    pub bytes: u64,
    /// The bytes of the deltas.
    pub deltas: u64,
    /// Files on both sides with different content whose delta is no smaller than the file.
    pub do_not_pay: usize,
}

impl Saving {
    /// Bytes that need not be carried.
    pub fn saved(&self) -> u64 {
        self.bytes.saturating_sub(self.deltas)
    }
}

/// Writes librsync's signature of `old` to `out` (BLAKE2, whole sums); gives the digest of `old`.
///
/// # Errors
/// Those of reading and writing.
pub fn signature(old: &dyn ReadAt, out: &mut dyn Write) -> Result<Content> {
    let mut hasher = Sha256::new();
    let input = Tee {
        from: Stream::new(old),
        hasher: &mut hasher,
    };
    rdiff::signature(input, old.len(), 0, out)?;
    Ok(Content {
        size: old.len(),
        digest: Digest::from_hasher(hasher),
    })
}

/// Writes the delta that turns what `signature` was made of into `new` to `out`; gives its size and the digest of `new`.
///
/// # Errors
/// Those of reading and writing; [`Error::Corrupt`] for what is no signature.
pub fn delta(signature: &[u8], new: &dyn ReadAt, out: &mut dyn Write) -> Result<(u64, Content)> {
    let mut hasher = Sha256::new();
    let input = Tee {
        from: Stream::new(new),
        hasher: &mut hasher,
    };
    let size = rdiff::delta(signature, input, out)?;
    let content = Content {
        size: new.len(),
        digest: Digest::from_hasher(hasher),
    };
    Ok((size, content))
}

/// Writes what `delta` makes of `old` to `out`, at most `limit` bytes; gives size and digest.
///
/// # Errors
/// [`Error::Corrupt`] for a broken delta and for one that makes more, those of reading and writing.
pub fn patch(old: &dyn ReadAt, delta: &dyn ReadAt, limit: u64, out: &mut dyn Write) -> Result<Content> {
    let mut hasher = Sha256::new();
    let size = rdiff::patch(old, Stream::new(delta), limit, out, |part| hasher.update(part))?;
    Ok(Content {
        size,
        digest: Digest::from_hasher(hasher),
    })
}

/// Hashes what is read.
struct Tee<'h, R> {
    from: R,
    hasher: &'h mut Sha256,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

fn hashed(content: &dyn ReadAt) -> Result<Content> {
    let mut hasher = Sha256::new();
    crate::diff::for_each_chunk(content, |chunk| {
        chunk.bytes(|bytes| {
            hasher.update(bytes);
            Ok(())
        })
    })?;
    Ok(Content {
        size: content.len(),
        digest: Digest::from_hasher(hasher),
    })
}

/// Writes the bundle of all regular files that `diff` says have changed content. `file` appears when it is whole; one that
/// is there is replaced.
///
/// # Errors
/// Those of reading and writing.
pub fn write(
    old: &dyn Source,
    new: &dyn Source,
    diff: &Diff,
    file: &Path,
    progress: &dyn Progress,
) -> Result<Saving> {
    let io = |e| Error::io(format!("writing {}", file.display()), e);
    // The deltas first, since the index in front of them states their sizes.
    let deltas = Scratch::beside(file);
    let mut all = File::create_new(deltas.path()).map_err(io)?;
    let (mut saving, mut end) = (Saving::default(), 0);
    let mut files = Vec::new();
    let stage = progress.stage("making deltas", None);
    for (path, change) in &diff.changes {
        let Change::Changed(fields) = change else { continue };
        let pair = old.tree().get(path).zip(new.tree().get(path));
        let Some((before, after)) = pair.filter(|(a, b)| a.is_file() && b.is_file()) else {
            continue;
        };
        if !fields.has(Fields::CONTENT) {
            continue;
        }
        let made = old.open(before.id).and_then(|before| {
            let after = new.open(after.id)?;
            let mut sums = Vec::new();
            let stated = signature(&*before, &mut sums)?;
            let (size, content) = delta(&sums, &*after, &mut all)?;
            Ok((stated, size, content))
        });
        let (before, size, after) = made.map_err(|e| e.within(&path.to_string()))?;
        stage.add(after.size);
        if size >= after.size {
            saving.do_not_pay += 1;
            all.set_len(end).map_err(io)?;
            all.seek(SeekFrom::Start(end)).map_err(io)?;
            continue;
        }
        end = end.saturating_add(size);
        saving.files += 1;
        saving.bytes = saving.bytes.saturating_add(after.size);
        saving.deltas = saving.deltas.saturating_add(size);
        files.push(IndexEntry {
            path: path.to_string(),
            old: before,
            new: after,
            delta: format!("deltas/{}", files.len()),
            size,
        });
    }
    let index = Index {
        schema: SCHEMA.to_owned(),
        files,
    };
    let mut text = serde_json::to_vec_pretty(&index).map_err(|e| io(e.into()))?;
    text.push(b'\n');
    let whole = Scratch::beside(file);
    let mut out = std::io::BufWriter::new(File::create_new(whole.path()).map_err(io)?);
    entry(&mut out, INDEX, text.len() as u64, &mut text.as_slice())?;
    all.rewind().map_err(io)?;
    for file in &index.files {
        let name = format!("/{}", file.delta);
        entry(&mut out, &name, file.size, &mut (&mut all).take(file.size))?;
    }
    write_end(&mut out)?;
    let out = out.into_inner().map_err(|e| io(e.into_error()))?;
    out.sync_all().map_err(io)?;
    std::fs::rename(whole.path(), file).map_err(io)?;
    whole.keep();
    Ok(saving)
}

/// One entry of the bundle.
fn entry(out: &mut dyn Write, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
    let node = Node {
        kind: Kind::File { size },
        mode: 0o644,
        ..Node::plain_dir()
    };
    write_header(out, &GuestPath::new(name.as_bytes())?, &node, As::Itself, 0)?;
    let written = copy(content, out, "writing a bundle of deltas", |_| {})?;
    if written != size {
        return Err(Error::corrupt(
            "the deltas changed while they were written",
            written,
        ));
    }
    let io = |e| Error::io("writing a bundle of deltas", e);
    out.write_all(padding(size)).map_err(io)
}

/// A bundle that is open.
pub struct Bundle {
    file: Arc<dyn ReadAt>,
    files: BTreeMap<GuestPath, Entry>,
}

/// One file of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The content to start from.
    pub old: Content,
    /// The content that comes out.
    pub new: Content,
    at: u64,
    size: u64,
}

struct At<'a> {
    file: &'a dyn ReadAt,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.file.len().saturating_sub(self.at);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..n).unwrap_or_default();
        self.file.read_at(self.at, part).map_err(Error::into_io)?;
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}

impl Input for At<'_> {
    fn skip(&mut self, n: u64) -> std::io::Result<()> {
        let to = self.at.checked_add(n).filter(|at| *at <= self.file.len());
        self.at = to.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

impl Bundle {
    /// Reads the index of a bundle and finds its deltas; they themselves are read when they are applied.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for what is no bundle, [`Error::Unsupported`] for one of a later version.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("bundle of deltas: {what}"), 0);
        let at = At { file: &*file, at: 0 };
        let mut reader = Reader::new(at, "bundle of deltas");
        let first = reader
            .next()?
            .filter(|e| e.kind == Type::File && e.sparse.is_none());
        let first = first
            .filter(|e| e.path == b"index.json")
            .ok_or_else(|| bad("there is no index.json in front"))?;
        if first.stored > MAX_INDEX || first.stored > file.len().saturating_sub(first.offset) {
            return Err(bad("the index is too large"));
        }
        let len = usize::try_from(first.stored).map_err(|_| bad("the index is too large"))?;
        let text = read_vec(&*file, first.offset, len)?;
        let schema: serde_json::Value = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
        match schema.get("schema").and_then(|s| s.as_str()) {
            Some(SCHEMA) => {}
            Some(other) => return Err(Error::unsupported(format!("bundle of deltas: schema {other:?}"))),
            None => return Err(bad("the index has no schema")),
        }
        let index: Index = serde_json::from_value(schema).map_err(|e| bad(&e.to_string()))?;
        let mut found: BTreeMap<Vec<u8>, (u64, u64)> = BTreeMap::new();
        while let Some(entry) = reader.next()? {
            let plain = entry.kind == Type::File && entry.sparse.is_none();
            let fits = entry.stored <= file.len().saturating_sub(entry.offset);
            if !plain || !fits || found.insert(entry.path, (entry.offset, entry.stored)).is_some() {
                return Err(bad("an entry is no file, cut off or there twice"));
            }
        }
        let mut files = BTreeMap::new();
        for file in index.files {
            let path = GuestPath::from_escaped(&file.path)
                .ok()
                .filter(|p| !p.is_root())
                .ok_or_else(|| bad("a name that is no path"))?;
            let (at, size) = found
                .remove(file.delta.as_bytes())
                .filter(|(_, size)| *size == file.size)
                .ok_or_else(|| bad(&format!("{path}: its delta is missing or of another size")))?;
            // A copy takes at least two bytes of the delta and gives at most the old content.
            let most = (size / 2).saturating_mul(file.old.size).saturating_add(size);
            if file.new.size > MAX_FILE.min(most) || file.old.size > MAX_FILE {
                return Err(bad(&format!(
                    "{path}: {} bytes cannot come from this delta",
                    file.new.size
                )));
            }
            let entry = Entry {
                old: file.old,
                new: file.new,
                at,
                size,
            };
            if files.insert(path, entry).is_some() {
                return Err(bad("a path stands there twice"));
            }
        }
        if !found.is_empty() {
            return Err(bad("there are entries that the index does not name"));
        }
        Ok(Self { file, files })
    }

    /// The files that it has deltas for, in byte order of their paths.
    pub fn files(&self) -> impl Iterator<Item = (&GuestPath, &Entry)> {
        self.files.iter()
    }

    /// Writes the new content of `path` to `out`, made from `old`. What was written counts only if this succeeds: the digest
    /// is known at the end.
    ///
    /// # Errors
    /// [`Error::Usage`] if the bundle has no such file, [`Error::Refused`] if `old` is not the content that the delta was
    /// made for, [`Error::Corrupt`] if the result is not what the index states.
    pub fn apply(&self, path: &GuestPath, old: &dyn ReadAt, out: &mut dyn Write) -> Result<Entry> {
        let entry = self
            .files
            .get(path)
            .ok_or_else(|| Error::usage(format!("{path}: the bundle has no delta for it")))?;
        if old.len() != entry.old.size || hashed(old)? != entry.old {
            return Err(Error::refused(format!(
                "{path} is not the file that the delta was made for (sha256 {})",
                entry.old.digest.hex()
            ))
            .hint("apply the bundle to the side that it was made from"));
        }
        let delta = Slice::new(Arc::clone(&self.file), entry.at, entry.size);
        let made = patch(old, &delta, entry.new.size, out).map_err(|e| e.within(&path.to_string()))?;
        if made != entry.new {
            return Err(Error::corrupt(
                format!("{path}: the patched content has another digest than the bundle states"),
                0,
            ));
        }
        Ok(*entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(seed: u32, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let bytes = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        bytes.take(len).collect()
    }

    fn made(old: &Vec<u8>, new: &Vec<u8>) -> (Vec<u8>, Content, Content) {
        let (mut sums, mut out) = (Vec::new(), Vec::new());
        let before = signature(old, &mut sums).unwrap();
        let (size, after) = delta(&sums, new, &mut out).unwrap();
        assert_eq!(size, out.len() as u64);
        (out, before, after)
    }

    #[test]
    fn there_and_back() {
        let old = contents(1, 300_000);
        let mut shifted = b"in front".to_vec();
        shifted.extend_from_slice(&old[..200_000]);
        shifted.extend_from_slice(&contents(2, 1000));
        shifted.extend_from_slice(&old[100_000..]);
        for (new, pays) in [
            (shifted, true),
            (Vec::new(), false),
            (old.clone(), true),
            (contents(3, 5000), false),
            (old[..10].to_vec(), false),
        ] {
            let (delta, before, after) = made(&old, &new);
            assert_eq!(
                (before.digest, after.digest),
                (Digest::of(&old), Digest::of(&new))
            );
            assert_eq!(delta.len() < new.len(), pays);
            let mut out = Vec::new();
            assert_eq!(patch(&old, &delta, new.len() as u64, &mut out).unwrap(), after);
            assert_eq!(out, new);
            if !new.is_empty() {
                let error = patch(&old, &delta, new.len() as u64 - 1, &mut Vec::new()).unwrap_err();
                assert!(error.to_string().contains("makes more"), "{error}");
            }
        }
        let (from_nothing, ..) = made(&Vec::new(), &old);
        let mut out = Vec::new();
        patch(&Vec::new(), &from_nothing, 1 << 20, &mut out).unwrap();
        assert_eq!(out, old);
    }

    #[test]
    fn broken_deltas_are_errors() {
        let old = contents(1, 4000);
        let (delta, ..) = made(&old, &contents(2, 4000));
        for broken in [
            Vec::new(),
            b"rs".to_vec(),
            delta[..delta.len() / 2].to_vec(),
            contents(9, 100),
            b"rs\x02\x36\x45\x00\x00".to_vec(),
            b"rs\x02\x36\x49\xff\xff\x05\x00".to_vec(),
            b"rs\x02\x36\x54\x7f\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        ] {
            let result = patch(&old, &broken, 10_000, &mut Vec::new());
            assert!(
                matches!(result, Err(Error::Corrupt { .. })),
                "{broken:?}: {result:?}"
            );
        }
        assert!(super::delta(b"no signature", &old, &mut Vec::new()).is_err());
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let bundle = |index: &str, deltas: &[(&str, &[u8])]| {
            let mut tar = Vec::new();
            entry(&mut tar, INDEX, index.len() as u64, &mut index.as_bytes()).unwrap();
            for (name, bytes) in deltas {
                entry(&mut tar, name, bytes.len() as u64, &mut &**bytes).unwrap();
            }
            write_end(&mut tar).unwrap();
            Bundle::open(Arc::new(tar))
        };
        let sum = Digest::of(b"").to_string();
        let one = |path: &str, size: u64, name: &str| {
            format!(
                r#"{{"path":"{path}","old":{{"size":5,"digest":"{sum}"}},"new":{{"size":{size},"digest":"{sum}"}},"delta":"{name}","size":4}}"#
            )
        };
        let index = |files: &[String]| format!(r#"{{"schema":"{SCHEMA}","files":[{}]}}"#, files.join(","));
        let deltas: &[(&str, &[u8])] = &[("/deltas/0", b"rs26")];
        assert!(bundle(&index(&[one("/a", 5, "deltas/0")]), deltas).is_ok());
        for (index, deltas) in [
            (index(&[one("/a/../b", 5, "deltas/0")]), deltas),
            (index(&[one("a", 5, "deltas/0")]), deltas),
            (index(&[one("/", 5, "deltas/0")]), deltas),
            (index(&[one("/a", 5, "deltas/1")]), deltas),
            (index(&[one("/a", 15, "deltas/0")]), deltas),
            (
                index(&[one("/a", 5, "deltas/0"), one("/b", 5, "deltas/0")]),
                deltas,
            ),
            (index(&[]), deltas),
            ("{}".to_owned(), deltas),
            ("[".repeat(100_000), deltas),
            (r#"{"schema":"vm2k.delta/2","files":[]}"#.to_owned(), &[]),
        ] {
            assert!(bundle(&index, deltas).is_err(), "{index:.200}");
        }
        assert!(Bundle::open(Arc::new(Vec::new())).is_err());
    }
}
