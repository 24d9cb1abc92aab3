//! One layer: from its compressed blob to a listing of what it says, and to a plain tar whose files can be read at random.

use super::{Layer, sparse::SparseWriter};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::progress::Stage;
use crate::store::{BlobWriter, Digest, Store};
use crate::tar::{Entry, Input, Reader, Run, Type};
use crate::tree::{Time, Xattrs};
use crossbeam_channel::{Receiver, bounded};
use sha2::Digest as _;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;

/// The most entries of one layer.
const MAX_ENTRIES: usize = 4_000_000;
/// The most bytes of names, link targets, attributes and sparse maps of one layer.
const MAX_METADATA: u64 = 512 << 20;
/// A layer may always grow to this many bytes; beyond it the two ratios below hold.
const FREE_GROWTH: u64 = 1 << 30;
/// How many bytes that are not zero a compressed byte may become. Deflate cannot do more than 1,032.
const MAX_DATA_RATIO: u64 = 1_100;
/// How many bytes, zeros included, a compressed byte may become. zstd says 128 KiB of zeros in about 4 bytes.
const MAX_RATIO: u64 = 40_000;
/// The most bytes of holes in the sparse files of one layer. They cost no room, but they are hashed.
const MAX_HOLES: u64 = 1 << 40;
/// Bytes at a time.
const CHUNK: usize = 256 << 10;

/// Where the content of a regular file lies in the plain tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// All of it from this offset.
    At(u64),
    /// Runs of data, one behind the other from this offset; zeros between them.
    Runs(u64, Box<[Run]>),
}

/// What an entry of a layer does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Directory,
    File {
        size: u64,
        /// blake3 of the content.
        hash: [u8; 32],
        place: Place,
    },
    /// Another name for the file at this path.
    Link(GuestPath),
    Symlink(Vec<u8>),
    Block(u32, u32),
    Char(u32, u32),
    Fifo,
    /// Removes the path from the layers below.
    Whiteout,
    /// Empties the directory in the layers below.
    Opaque,
}

/// One entry of a layer, in the words of the whole program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) path: GuestPath,
    pub(crate) what: What,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Xattrs,
}

/// Everything a layer says, in the order in which it says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) items: Vec<Item>,
}

/// What reading a layer gives.
pub(crate) struct Scanned {
    pub(crate) listing: Listing,
    /// The plain tar, if it was asked for.
    pub(crate) tar: Option<File>,
    /// Contents of the files that were asked for, by their offset in the plain tar.
    pub(crate) kept: Kept,
}

/// Contents of files by their offset in the plain tar.
pub(crate) type Kept = HashMap<u64, Arc<Vec<u8>>>;

/// What to keep of a layer besides its listing.
#[derive(Clone, Copy)]
pub(crate) enum Keep<'a> {
    Nothing,
    /// The contents of files at these paths, in memory, as long as they are no more bytes than this.
    Files(fn(&GuestPath) -> bool, u64),
    /// The plain tar, in a temporary file of that store.
    Tar(&'a Store),
}

/// Reads `layer` once from end to end: unpacks it, checks the blob's digest and size and the diffID, lists its entries
/// and hashes the content of every file.
///
/// # Errors
/// [`Error::Corrupt`] for wrong digests and broken archives, [`Error::Unsupported`] for entries and compressions that are
/// not understood and for what grows beyond all measure.
///
/// With `import` the blob goes into that store on the way.
pub(crate) fn scan(
    layer: &Layer,
    keep: Keep<'_>,
    import: Option<&Store>,
    stage: &dyn Stage,
) -> Result<Scanned> {
    let name = format!("layer {}", layer.digest);
    let mut blob = layer.open()?;
    let tar = match keep {
        Keep::Tar(store) => Some((store.temporary()?, store)),
        _ => None,
    };
    let copy = tar.as_ref().map(|(file, store)| (file, *store));
    let mut import = import.map(Store::writer).transpose()?;
    if let Some(import) = &mut import {
        import.sync_early();
    }
    let mut from: Box<dyn Read + Send + '_> = match &mut import {
        Some(import) => Box::new(Tee {
            from: &mut blob,
            to: import,
        }),
        None => Box::new(&mut blob),
    };
    let result = unpack(layer, &mut *from, copy, keep, stage, &name).and_then(|unpacked| {
        // What stands behind the last byte of the archive belongs to the blob too.
        let rest = std::io::copy(&mut from, &mut std::io::sink());
        rest.map(|_| unpacked)
            .map_err(|e| Error::from_io(format!("reading {name}"), e))
    });
    drop(from);
    // Bytes that are not the blob's are worse news than anything that was made of them.
    blob.finish()?;
    let (listing, kept, diff_id) = result?;
    if diff_id != layer.diff_id {
        return Err(Error::corrupt(
            format!(
                "{name}: unpacked it has the digest {diff_id}, the config says {}",
                layer.diff_id
            ),
            0,
        ));
    }
    if let Some(import) = import {
        import.finish()?;
    }
    Ok(Scanned {
        listing,
        tar: tar.map(|(file, _)| file),
        kept,
    })
}

/// The listing, the contents to keep and the diffID of a blob; the plain tar goes to `copy`.
fn unpack(
    layer: &Layer,
    blob: &mut (dyn Read + Send),
    copy: Option<(&File, &Store)>,
    keep: Keep<'_>,
    stage: &dyn Stage,
    name: &str,
) -> Result<(Listing, Kept, Digest)> {
    // One thread reads and hashes the blob, one decompresses, this one hashes and lists.
    std::thread::scope(|scope| {
        let blob = Ahead::start(scope, Box::new(blob));
        let mut plain = Unpacked::new(blob, layer.size, stage, name)?;
        plain.inner = Box::new(Ahead::start(scope, plain.inner));
        plain.copy = copy.map(|(file, store)| (SparseWriter::new(file), store));
        let (listing, kept) = list(&mut plain, keep, name)?;
        plain.drain()?;
        if let Some((copy, store)) = &mut plain.copy {
            copy.finish().map_err(|e| store.write_failed(e))?;
        }
        Ok((listing, kept, plain.digest()))
    })
}

/// Copies what is read into the store.
struct Tee<'a, 's, R> {
    from: R,
    to: &'a mut BlobWriter<'s>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(buf)?;
        let part = buf.get(..n).unwrap_or_default();
        self.to.write_all(part).map_err(|e| self.to.failed(e).into_io())?;
        Ok(n)
    }
}

/// A reader whose bytes another thread reads ahead of it.
struct Ahead {
    parts: Receiver<std::io::Result<Vec<u8>>>,
    part: Vec<u8>,
    used: usize,
}

/// Parts that wait at most: with [`CHUNK`] the memory that reading ahead takes.
const PARTS: usize = 8;

impl Ahead {
    fn start<'scope>(
        scope: &'scope std::thread::Scope<'scope, '_>,
        mut from: Box<dyn Read + Send + 'scope>,
    ) -> Self {
        let (send, parts) = bounded(PARTS);
        scope.spawn(move || {
            loop {
                let mut part = vec![0; CHUNK];
                let read = match fill(&mut *from, &mut part) {
                    Ok(0) => return,
                    Ok(n) => {
                        part.truncate(n);
                        Ok(part)
                    }
                    Err(e) => Err(e),
                };
                let last = read.is_err();
                if send.send(read).is_err() || last {
                    return;
                }
            }
        });
        Self {
            parts,
            part: Vec::new(),
            used: 0,
        }
    }
}

/// Reads until `buf` is full or there is no more: a stream of tiny frames must not become a queue of tiny parts.
fn fill(from: &mut dyn Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buf.get_mut(got..).filter(|r| !r.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // What came before the error is of no use: the layer is refused as a whole.
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

impl Read for Ahead {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.used >= self.part.len() {
            // The channel closes at the end of the stream.
            let Ok(part) = self.parts.recv() else { return Ok(0) };
            (self.part, self.used) = (part?, 0);
        }
        let rest = self.part.get(self.used..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.used += n;
        Ok(n)
    }
}

/// The plain bytes of `from`: gzip (any number of members), zstd (any number of frames, skippable ones too) or as they are.
/// The first bytes decide, as they do for the engines, not the media type.
pub(crate) fn decoder<'a>(
    mut from: impl BufRead + Send + 'a,
    name: &str,
) -> Result<Box<dyn Read + Send + 'a>> {
    let failed = |e| Error::from_io(format!("reading {name}"), e);
    let start = loop {
        match from.fill_buf() {
            Ok(bytes) => break bytes,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    };
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(from).map_err(failed)?)
        }
        [b'B', b'Z', b'h', ..] => return Err(Error::unsupported(format!("{name}: bzip2 compression"))),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            return Err(Error::unsupported(format!("{name}: xz compression")));
        }
        _ => Box::new(from),
    })
}

/// Tells a stage of the bytes that pass.
struct Counted<'a, R> {
    inner: R,
    stage: &'a dyn Stage,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.stage.add(n as u64);
        Ok(n)
    }
}

/// How much a layer may still grow.
struct Limit {
    all: u64,
    data: u64,
}

impl Limit {
    fn of(compressed: u64) -> Self {
        Self {
            all: compressed.saturating_mul(MAX_RATIO).max(FREE_GROWTH),
            data: compressed.saturating_mul(MAX_DATA_RATIO).max(FREE_GROWTH),
        }
    }

    fn take(&mut self, all: u64, data: u64, name: &str) -> Result<()> {
        match (self.all.checked_sub(all), self.data.checked_sub(data)) {
            (Some(all), Some(data)) => {
                (self.all, self.data) = (all, data);
                Ok(())
            }
            _ => Err(Error::unsupported(format!(
                "{name}: it unpacks to more than any layer of its size"
            ))),
        }
    }
}

/// The plain tar as it passes: hashed, counted, and copied if somebody wants it.
pub(crate) struct Unpacked<'a> {
    inner: Box<dyn Read + Send + 'a>,
    hasher: sha2::Sha256,
    copy: Option<(SparseWriter<'a>, &'a Store)>,
    limit: Limit,
    name: &'a str,
}

impl<'a> Unpacked<'a> {
    /// Unpacks `blob`, a layer of `size` bytes called `name`; `stage` is told of the bytes of the blob.
    pub(crate) fn new(
        blob: impl Read + Send + 'a,
        size: u64,
        stage: &'a dyn Stage,
        name: &'a str,
    ) -> Result<Self> {
        let counted = Counted { inner: blob, stage };
        Ok(Self {
            inner: decoder(BufReader::with_capacity(CHUNK, counted), name)?,
            hasher: sha2::Sha256::new(),
            copy: None,
            limit: Limit::of(size),
            name,
        })
    }

    /// The digest of what was read: the diffID, if that was all.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_hasher(self.hasher.clone())
    }

    /// Reads to the end.
    fn drain(&mut self) -> Result<()> {
        let mut buf = vec![0; CHUNK];
        loop {
            match self.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_io(format!("reading {}", self.name), e)),
            }
        }
    }
}

impl Read for Unpacked<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = match self.inner.read(buf) {
            Ok(n) => n,
            Err(e) if matches!(e.get_ref(), Some(inner) if inner.is::<Error>()) => return Err(e),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                return Err(Error::corrupt(format!("{}: unpacking it failed: {e}", self.name), 0).into_io());
            }
        };
        let part = buf.get(..n).unwrap_or_default();
        self.hasher.update(part);
        let data = if super::sparse::is_zero(part) { 0 } else { n as u64 };
        self.limit
            .take(n as u64, data, self.name)
            .map_err(Error::into_io)?;
        if let Some((copy, store)) = &mut self.copy {
            copy.write(part).map_err(|e| store.write_failed(e).into_io())?;
        }
        Ok(n)
    }
}

impl Input for Unpacked<'_> {
    fn skip(&mut self, mut n: u64) -> std::io::Result<()> {
        let mut buf = [0; 16 << 10];
        while n > 0 {
            let want = usize::try_from(n).unwrap_or(buf.len()).min(buf.len());
            match self.read(buf.get_mut(..want).unwrap_or_default()) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => n -= got as u64,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl<R: Input> Input for &mut R {
    fn skip(&mut self, n: u64) -> std::io::Result<()> {
        (**self).skip(n)
    }
}

/// The entries of a plain tar with the hashes of their content, and the contents to keep.
fn list(plain: &mut Unpacked<'_>, keep: Keep<'_>, name: &str) -> Result<(Listing, Kept)> {
    let mut listing = Listing::default();
    let mut kept = Kept::new();
    let mut room = match keep {
        Keep::Files(_, bytes) => bytes,
        _ => 0,
    };
    let mut metadata = 0u64;
    let mut holes = 0u64;
    let mut reader = Reader::new(plain, name);
    let mut buf = vec![0; CHUNK];
    while let Some(mut entry) = reader.next()? {
        let runs = entry.sparse.as_ref().map_or(0, Vec::len);
        let attributes: usize = entry.xattrs.iter().map(|(k, v)| k.len() + v.len() + 48).sum();
        metadata += (entry.path.len() + entry.link.len() + attributes + 16 * runs) as u64;
        if metadata > MAX_METADATA || listing.items.len() >= MAX_ENTRIES {
            return Err(Error::unsupported(format!(
                "{name}: more entries than any layer has"
            )));
        }
        if entry.sparse.is_some() {
            holes = holes.saturating_add(entry.size.saturating_sub(entry.stored));
            if holes > MAX_HOLES {
                return Err(Error::unsupported(format!(
                    "{name}: sparse files of more than {MAX_HOLES} bytes"
                )));
            }
        }
        let (hash, place) = match entry.kind {
            Type::File => {
                let wanted = match keep {
                    Keep::Files(wanted, _) if entry.sparse.is_none() && entry.size <= room => {
                        GuestPath::lenient(&entry.path).is_ok_and(|path| wanted(&path))
                    }
                    _ => false,
                };
                let mut bytes = Vec::new();
                let found = content(&mut reader, &mut entry, &mut buf, wanted.then_some(&mut bytes))?;
                if wanted {
                    room -= entry.size;
                    kept.insert(entry.offset, Arc::new(bytes));
                }
                found
            }
            _ => ([0; 32], Place::At(0)),
        };
        if let Some(item) = item(entry, hash, place, name)? {
            listing.items.push(item);
        }
    }
    Ok((listing, kept))
}

/// Reads and hashes the content of the current entry; that of an entry without holes goes to `copy` too.
fn content<R: Input>(
    reader: &mut Reader<R>,
    entry: &mut Entry,
    buf: &mut [u8],
    mut copy: Option<&mut Vec<u8>>,
) -> Result<([u8; 32], Place)> {
    let mut hasher = blake3::Hasher::new();
    let place = match entry.sparse.take() {
        None => {
            loop {
                let n = reader.read_stored(buf)?;
                if n == 0 {
                    break;
                }
                let part = buf.get(..n).unwrap_or_default();
                hasher.update(part);
                if let Some(copy) = &mut copy {
                    copy.extend_from_slice(part);
                }
            }
            Place::At(entry.offset)
        }
        Some(runs) => {
            let mut at = 0;
            for (start, len) in &runs {
                zeros(&mut hasher, start - at);
                let mut left = *len;
                while left > 0 {
                    let want = usize::try_from(left).unwrap_or(buf.len()).min(buf.len());
                    let n = reader.read_stored(buf.get_mut(..want).unwrap_or_default())?;
                    hasher.update(buf.get(..n).unwrap_or_default());
                    left -= n as u64;
                }
                at = start + len;
            }
            zeros(&mut hasher, entry.size - at);
            Place::Runs(entry.offset, runs.into())
        }
    };
    Ok((*hasher.finalize().as_bytes(), place))
}

fn zeros(hasher: &mut blake3::Hasher, mut n: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while n > 0 {
        let part = usize::try_from(n).unwrap_or(ZEROS.len()).min(ZEROS.len());
        hasher.update(ZEROS.get(..part).unwrap_or_default());
        n -= part as u64;
    }
}

/// What a tar entry means in a layer (OCI image-spec, layer.md, "Representing Changes"). `None` for the files by which
/// aufs kept its own books.
fn item(entry: Entry, hash: [u8; 32], place: Place, layer: &str) -> Result<Option<Item>> {
    let named = |e: Error| match e {
        Error::Corrupt { what, at } => Error::corrupt(format!("{layer}: {what}"), at),
        e => e,
    };
    let path = GuestPath::lenient(&entry.path).map_err(named)?;
    let mut item = Item {
        path,
        what: What::Fifo,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs,
    };
    if let Some(removed) = item.path.name().strip_prefix(b".wh.") {
        let dir = item.path.parent().unwrap_or(GuestPath::root());
        let what = match removed {
            b".wh..opq" => {
                item.path = dir;
                What::Opaque
            }
            _ if removed.starts_with(b".wh.") => return Ok(None),
            _ => {
                let target = dir.join(removed);
                item.path = target.map_err(|_| {
                    Error::corrupt(
                        format!("{layer}: {} is a whiteout of nothing", item.path),
                        entry.offset,
                    )
                })?;
                What::Whiteout
            }
        };
        item.what = what;
        item.xattrs = Vec::new();
        return Ok(Some(item));
    }
    item.what = match entry.kind {
        Type::Directory => What::Directory,
        Type::File => What::File {
            size: entry.size,
            hash,
            place,
        },
        Type::Link => What::Link(GuestPath::lenient(&entry.link).map_err(named)?),
        Type::Symlink => {
            item.mode = 0o777;
            What::Symlink(entry.link)
        }
        Type::Block => What::Block(entry.major, entry.minor),
        Type::Char => What::Char(entry.major, entry.minor),
        Type::Fifo => What::Fifo,
    };
    if item.path.is_root() && item.what != What::Directory {
        return Err(Error::corrupt(
            format!("{layer}: the root is no directory"),
            entry.offset,
        ));
    }
    Ok(Some(item))
}
