//! Contents that came from a host, kept for the next conversion of it.
//!
//! ```text
//! DIR/contents/<host>/<number>.pack   frames (agent::wire): blocks as they came over the wire, and after each a map of it
//! ```
//!
//! A run appends to a pack of its own, which it holds locked. What is in a pack describes itself, so that the pack of a run that
//! was killed is as good as another: it is read up to the first frame that is not whole. A map says which bytes of the block
//! before it are which bytes of which file, and in the end what digest the file has and how the host knows it.

use crate::agent::wire::{Decoder, Encoder, Got, Item, PIECE, check, frame, items, pack, unpack};
use crate::bytes;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::{Extent, ReadAt, check_range};
use crate::tree::Node;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// BLAKE3 of a content.
pub(super) type Hash = [u8; 32];
/// Names a state of a file of the host: filesystem, inode, size, mtime and ctime.
pub(super) type Identity = [u8; 16];

/// The kinds of frames in a pack.
const BLOCK: u8 = 0x81;
const MAP: u8 = 0x82;
/// Unpacked blocks that are kept at hand.
const CACHED: usize = 12;

/// The identity of a file as the walk saw it; `filesystem` names its filesystem for good.
pub(super) fn identity(filesystem: &[u8], node: &Node) -> Identity {
    let mut out = Encoder::default();
    out.string(filesystem);
    out.number(node.id.ino);
    out.number(node.size());
    out.time(node.mtime);
    out.time(node.ctime);
    let hash = blake3::hash(&out.0);
    bytes::array(hash.as_bytes(), 0).unwrap_or_default()
}

/// Names a path.
pub(super) fn path_name(path: &GuestPath) -> Identity {
    bytes::array(blake3::hash(path.as_bytes()).as_bytes(), 0).unwrap_or_default()
}

/// Where bytes of a content lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Offset in the content.
    at: u64,
    /// Length in bytes.
    len: u64,
    /// `None`: a hole.
    place: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    pack: u64,
    /// Where the block's frame begins in the pack.
    block: u64,
    /// Where the bytes begin in the unpacked block.
    inner: u32,
}

/// A content, or the beginning of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    segments: Vec<Segment>,
    pub(super) len: u64,
}

impl Parts {
    fn push(&mut self, len: u64, place: Option<Place>) {
        if len == 0 {
            return;
        }
        // Neighbours in one block are one segment.
        if let (Some(last), Some(new)) = (self.segments.last_mut(), place)
            && let Some(old) = last.place
            && (old.pack, old.block) == (new.pack, new.block)
            && u64::from(old.inner) + last.len == u64::from(new.inner)
        {
            last.len += len;
        } else if let (
            Some(Segment {
                place: None,
                len: last,
                ..
            }),
            None,
        ) = (self.segments.last_mut(), place)
        {
            *last = last.saturating_add(len);
        } else {
            self.segments.push(Segment {
                at: self.len,
                len,
                place,
            });
        }
        self.len = self.len.saturating_add(len);
    }
}

/// Pack and offset of a block, and what it unpacks to.
type Unpacked = ((u64, u64), Arc<Vec<u8>>);

/// The kept contents of one host.
pub(super) struct Contents {
    dir: PathBuf,
    state: Mutex<State>,
    cache: Mutex<VecDeque<Unpacked>>,
}

#[derive(Default)]
struct State {
    packs: HashMap<u64, Arc<File>>,
    by_digest: HashMap<Hash, Arc<Parts>>,
    by_identity: HashMap<Identity, Hash>,
    /// The last content of each path.
    by_path: HashMap<Identity, Hash>,
    /// Contents that were cut off.
    beginnings: HashMap<Identity, Arc<Parts>>,
    /// Which packs name which identities: what decides about their removal.
    names: HashMap<u64, HashSet<Identity>>,
    writer: Option<Writer>,
}

struct Writer {
    number: u64,
    file: Arc<File>,
    end: u64,
}

/// A line of a map.
enum Line {
    /// Job, how the host knows the file, the name of its path.
    File(u32, Identity, Identity),
    /// Job, length, place in a block.
    Data(u32, u64, Option<Place>),
    /// The job begins again.
    Again(u32),
    /// The job is complete: digest, and the identity that the file had when it was read.
    End(u32, Hash, Identity),
    /// A file whose digest is known and whose content is not here.
    Known(Identity, Hash),
}

impl Line {
    fn encode(&self, out: &mut Encoder) {
        match self {
            Self::File(job, identity, path) => {
                out.0.push(1);
                out.number((*job).into());
                out.0.extend_from_slice(identity);
                out.0.extend_from_slice(path);
            }
            Self::Data(job, len, None) => {
                out.0.push(2);
                out.number((*job).into());
                out.number(*len);
            }
            Self::Data(job, len, Some(place)) => {
                out.0.push(3);
                out.number((*job).into());
                out.number(*len);
                out.number(place.pack);
                out.number(place.block);
                out.number(place.inner.into());
            }
            Self::Again(job) => {
                out.0.push(4);
                out.number((*job).into());
            }
            Self::End(job, hash, identity) => {
                out.0.push(5);
                out.number((*job).into());
                out.0.extend_from_slice(hash);
                out.0.extend_from_slice(identity);
            }
            Self::Known(identity, hash) => {
                out.0.push(6);
                out.0.extend_from_slice(identity);
                out.0.extend_from_slice(hash);
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(match from.byte()? {
            1 => Self::File(from.small()?, from.array()?, from.array()?),
            2 => Self::Data(from.small()?, from.number()?, None),
            3 => Self::Data(
                from.small()?,
                from.number()?,
                Some(Place {
                    pack: from.number()?,
                    block: from.number()?,
                    inner: from.small()?,
                }),
            ),
            4 => Self::Again(from.small()?),
            5 => Self::End(from.small()?, from.array()?, from.array()?),
            6 => Self::Known(from.array()?, from.array()?),
            other => return Err(Error::corrupt(format!("an unknown line {other} in a pack"), 0)),
        })
    }
}

/// What a map builds up.
#[derive(Default)]
struct Building {
    open: HashMap<u32, (Identity, Identity, Parts)>,
}

impl State {
    fn apply(&mut self, pack: u64, building: &mut Building, line: Line) {
        match line {
            Line::File(job, identity, path) => {
                building.open.insert(job, (identity, path, Parts::default()));
            }
            Line::Data(job, len, place) => {
                if let Some((.., parts)) = building.open.get_mut(&job) {
                    parts.push(len, place);
                }
            }
            Line::Again(job) => {
                if let Some((.., parts)) = building.open.get_mut(&job) {
                    *parts = Parts::default();
                }
            }
            Line::End(job, hash, identity) => {
                if let Some((_, path, parts)) = building.open.remove(&job) {
                    self.by_path.insert(path, hash);
                    self.by_digest.insert(hash, Arc::new(parts));
                    self.by_identity.insert(identity, hash);
                    self.names.entry(pack).or_default().insert(identity);
                }
            }
            Line::Known(identity, hash) => {
                self.by_identity.insert(identity, hash);
                self.names.entry(pack).or_default().insert(identity);
            }
        }
    }
}

/// A file that is being received.
#[derive(Debug)]
pub(super) struct Receiving {
    parts: Parts,
    /// Large, and made when the first byte comes.
    hasher: Option<Box<blake3::Hasher>>,
}

impl Receiving {
    fn hash(&mut self, bytes: &[u8]) {
        self.hasher.get_or_insert_default().update(bytes);
    }

    fn push(&mut self, len: u64, place: Option<Place>, limit: u64) -> Result<()> {
        self.parts.push(len, place);
        // Pieces are no smaller than the blocks of filesystems.
        let many = self.parts.segments.len() as u64 > 64 + self.parts.len / 512;
        match self.parts.len > limit || many {
            true => Err(Error::corrupt(
                "the host sends more of a file than it can have",
                limit,
            )),
            false => Ok(()),
        }
    }

    fn digest(&self) -> Hash {
        let empty = || *blake3::hash(b"").as_bytes();
        self.hasher
            .as_ref()
            .map_or_else(empty, |h| *h.finalize().as_bytes())
    }
}

/// A file that is asked for.
pub(super) struct Wanted {
    pub(super) job: u32,
    pub(super) identity: Identity,
    pub(super) path: Identity,
    /// What is there of it already.
    pub(super) beginning: Option<Arc<Parts>>,
}

impl Contents {
    /// Opens what is kept of `host` below the store's directory.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be made. A damaged pack is used as far as it is whole.
    pub(super) fn open(store: &Path, host: &str) -> Result<Self> {
        let dir = store.join("contents").join(host);
        // What lies here are files of the host as its root sees them.
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir);
        made.map_err(|e| {
            Error::io(format!("making {}", dir.display()), e)
                .hint("name a directory that can be written and has room with --store DIR or VM2K_STORE")
        })?;
        let contents = Self {
            dir,
            state: Mutex::default(),
            cache: Mutex::default(),
        };
        let mut numbers = contents.numbers();
        numbers.sort_unstable();
        for number in numbers {
            contents.load(number);
        }
        Ok(contents)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.pack"))
    }

    fn numbers(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let name = |e: std::fs::DirEntry| e.file_name().to_str()?.strip_suffix(".pack")?.parse().ok();
        entries.filter_map(name).collect()
    }

    /// Reads the maps of a pack.
    fn load(&self, number: u64) {
        let Ok(file) = File::open(self.path(number)) else {
            return;
        };
        let mut state = self.state();
        state.packs.insert(number, Arc::new(file));
        let Some(file) = state.packs.get(&number).cloned() else {
            return;
        };
        let mut building = Building::default();
        let mut at = 0;
        while let Some((kind, len)) = head(&file, at) {
            let end = at + u64::from(len) + 9;
            if kind == MAP {
                let Ok(payload) = whole(&file, at) else { break };
                let Ok(raw) = unpack(&payload) else { break };
                let mut from = Decoder::new(&raw);
                while !from.is_empty() {
                    let Ok(line) = Line::decode(&mut from) else { break };
                    state.apply(number, &mut building, line);
                }
            }
            at = end;
        }
        for (identity, _, parts) in building.open.into_values() {
            state.beginnings.insert(identity, Arc::new(parts));
            state.names.entry(number).or_default().insert(identity);
        }
    }

    /// The digest of the file with this identity.
    pub(super) fn digest(&self, identity: &Identity) -> Option<Hash> {
        self.state().by_identity.get(identity).copied()
    }

    /// True if the content is kept.
    pub(super) fn has(&self, digest: &Hash) -> bool {
        self.state().by_digest.contains_key(digest)
    }

    /// The content with this digest.
    pub(super) fn get(self: &Arc<Self>, digest: &Hash) -> Option<Arc<dyn ReadAt>> {
        let parts = self.state().by_digest.get(digest).cloned()?;
        Some(Arc::new(Kept {
            contents: Arc::clone(self),
            parts,
        }))
    }

    /// The last content that was kept of a path.
    pub(super) fn last(self: &Arc<Self>, path: &GuestPath) -> Option<Arc<dyn ReadAt>> {
        let digest = self.state().by_path.get(&path_name(path)).copied()?;
        self.get(&digest)
    }

    /// Keeps a content that `write` writes, if it has the digest `got` states.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it has not, those of `write` and of writing.
    pub(super) fn store(
        &self,
        path: &GuestPath,
        identity: Identity,
        got: &Got,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let check = |digest: &Hash, len| match *digest == got.digest && len == got.len {
            true => Ok(()),
            false => Err(Error::corrupt(
                "a content that was made from a delta is not what its digest says",
                0,
            )),
        };
        self.put(path, identity, write, check).map(drop)
    }

    /// Keeps a content that `write` writes; gives its digest and length.
    ///
    /// # Errors
    /// Those of `write` and of writing.
    pub(super) fn store_new(
        &self,
        path: &GuestPath,
        identity: Identity,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<(Hash, u64)> {
        self.put(path, identity, write, |_, _| Ok(()))
    }

    fn put(
        &self,
        path: &GuestPath,
        identity: Identity,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
        check: impl FnOnce(&Hash, u64) -> Result<()>,
    ) -> Result<(Hash, u64)> {
        let mut storing = Storing {
            contents: self,
            raw: Vec::new(),
            parts: Parts::default(),
            hasher: blake3::Hasher::new(),
        };
        write(&mut storing)?;
        storing.flush().map_err(|e| self.failed(e))?;
        let Storing { parts, hasher, .. } = storing;
        let (digest, len) = (*hasher.finalize().as_bytes(), parts.len);
        check(&digest, len)?;
        let path = path_name(path);
        // The number of a job that no answer carries.
        let job = u32::MAX;
        let mut lines = vec![Line::File(job, identity, path)];
        lines.extend(parts.segments.iter().map(|s| Line::Data(job, s.len, s.place)));
        lines.push(Line::End(job, digest, identity));
        let mut state = self.state();
        let pack = self.append_map(&mut state, &lines)?;
        state.by_digest.insert(digest, Arc::new(parts));
        state.by_identity.insert(identity, digest);
        state.by_path.insert(path, digest);
        state.names.entry(pack).or_default().insert(identity);
        Ok((digest, len))
    }

    /// What was kept of a content that was cut off.
    pub(super) fn beginning(&self, identity: &Identity) -> Option<Arc<Parts>> {
        self.state()
            .beginnings
            .get(identity)
            .cloned()
            .filter(|p| p.len > 0)
    }

    /// The pack of this run, made when it is needed first.
    fn writer<'s>(&self, state: &'s mut State) -> Result<&'s mut Writer> {
        if state.writer.is_none() {
            let mut number = self
                .numbers()
                .into_iter()
                .max()
                .map_or(1, |n| n.saturating_add(1));
            let file = loop {
                let path = self.path(number);
                match File::options()
                    .read(true)
                    .append(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                {
                    Ok(file) => break file,
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                        number = number.saturating_add(1)
                    }
                    Err(e) => return Err(self.failed(e)),
                }
            };
            let _ = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
            let file = Arc::new(file);
            state.packs.insert(number, Arc::clone(&file));
            state.writer = Some(Writer { number, file, end: 0 });
        }
        state
            .writer
            .as_mut()
            .ok_or_else(|| Error::unsupported("a pack without a writer"))
    }

    fn failed(&self, e: std::io::Error) -> Error {
        Error::io(format!("writing to {}", self.dir.display()), e)
            .hint("name a directory that can be written and has room with --store DIR or VM2K_STORE")
    }

    fn append(&self, state: &mut State, kind: u8, payload: &[u8]) -> Result<Place> {
        let bytes = frame(kind, payload);
        let writer = self.writer(state)?;
        (&*writer.file).write_all(&bytes).map_err(|e| self.failed(e))?;
        let place = Place {
            pack: writer.number,
            block: writer.end,
            inner: 0,
        };
        writer.end += bytes.len() as u64;
        Ok(place)
    }

    fn append_map(&self, state: &mut State, lines: &[Line]) -> Result<u64> {
        let mut out = Encoder::default();
        for line in lines {
            line.encode(&mut out);
        }
        // Lines are short; a block has at most as many items as bytes, so that a map may need several frames.
        let mut pack_number = 0;
        if out.0.len() < crate::agent::wire::MAX {
            pack_number = self.append(state, MAP, &pack(&out.0, 1))?.pack;
        } else {
            for part in lines.chunks(lines.len().div_ceil(8).max(1)) {
                pack_number = self.append_map(state, part)?;
            }
        }
        Ok(pack_number)
    }

    /// Begins to receive files; what is there of them already comes first.
    ///
    /// # Errors
    /// Those of writing and of reading the beginnings.
    pub(super) fn begin(self: &Arc<Self>, wanted: &[Wanted]) -> Result<Vec<(u32, Receiving)>> {
        let mut lines = Vec::new();
        let mut all = Vec::with_capacity(wanted.len());
        for want in wanted {
            let job = want.job;
            lines.push(Line::File(job, want.identity, want.path));
            let mut receiving = Receiving {
                parts: Parts::default(),
                hasher: None,
            };
            if let Some(parts) = &want.beginning {
                let kept = Kept {
                    contents: Arc::clone(self),
                    parts: Arc::clone(parts),
                };
                crate::diff::for_each_chunk(&kept, |chunk| {
                    chunk.bytes(|bytes| {
                        receiving.hash(bytes);
                        Ok(())
                    })
                })?;
                for segment in &parts.segments {
                    lines.push(Line::Data(job, segment.len, segment.place));
                    receiving.parts.push(segment.len, segment.place);
                }
            }
            all.push((job, receiving));
        }
        if !lines.is_empty() {
            self.append_map(&mut self.state(), &lines)?;
        }
        Ok(all)
    }

    /// Keeps a block that came, unpacked as `raw`. `file` gives the files that its items belong to. A digest that is not that
    /// of the bytes is an error; `end` is told how the host knows each file that is complete.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for items that make no sense, and those of writing.
    pub(super) fn keep(
        &self,
        payload: &[u8],
        raw: &[u8],
        files: &mut HashMap<u32, Receiving>,
        limit: impl Fn(u32) -> u64,
        mut end: impl FnMut(u32, &Got) -> Option<Identity>,
    ) -> Result<()> {
        let mut state = self.state();
        let mut block: Option<Place> = None;
        let mut lines = Vec::new();
        let mut done: Vec<(Hash, Identity, Parts)> = Vec::new();
        items(raw, |item| {
            let job = item.job();
            match item {
                Item::Data { bytes, at, .. } => {
                    let Some(file) = files.get_mut(&job) else {
                        return Ok(());
                    };
                    let place = match block {
                        Some(place) => place,
                        None => *block.insert(self.append(&mut state, BLOCK, payload)?),
                    };
                    let place = Some(Place { inner: at, ..place });
                    file.hash(bytes);
                    file.push(bytes.len() as u64, place, limit(job))?;
                    lines.push(Line::Data(job, bytes.len() as u64, place));
                }
                Item::Hole { len, .. } => {
                    let Some(file) = files.get_mut(&job) else {
                        return Ok(());
                    };
                    file.push(len, None, limit(job))?;
                    crate::diff::Chunk::Hole(len).bytes(|zeros| {
                        file.hash(zeros);
                        Ok(())
                    })?;
                    lines.push(Line::Data(job, len, None));
                }
                Item::Again { .. } => {
                    if let Some(file) = files.get_mut(&job) {
                        file.parts = Parts::default();
                        file.hasher = None;
                        lines.push(Line::Again(job));
                    }
                }
                Item::End { got, sent, .. } => {
                    let Some(identity) = end(job, &got) else {
                        return Ok(());
                    };
                    let file = files.remove(&job);
                    match file.filter(|_| sent) {
                        Some(file) => {
                            let digest = file.digest();
                            if digest != got.digest || file.parts.len != got.len {
                                return Err(Error::corrupt(
                                    "a content from the host is not what its digest says",
                                    0,
                                ));
                            }
                            lines.push(Line::End(job, digest, identity));
                            done.push((digest, identity, file.parts));
                        }
                        None => lines.push(Line::Known(identity, got.digest)),
                    }
                }
                Item::Failed { .. } => {
                    files.remove(&job);
                }
            }
            Ok(())
        })?;
        let mut pack = 0;
        if !lines.is_empty() {
            pack = self.append_map(&mut state, &lines)?;
        }
        for (digest, identity, parts) in done {
            state.by_digest.insert(digest, Arc::new(parts));
            state.by_identity.insert(identity, digest);
            state.names.entry(pack).or_default().insert(identity);
        }
        for line in lines {
            if let Line::Known(identity, digest) = line {
                state.by_identity.insert(identity, digest);
                state.names.entry(pack).or_default().insert(identity);
            }
        }
        Ok(())
    }

    /// An unpacked block.
    fn block(&self, place: Place) -> Result<Arc<Vec<u8>>> {
        let key = (place.pack, place.block);
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, block)) = cache.iter().find(|(k, _)| *k == key) {
                return Ok(Arc::clone(block));
            }
        }
        let file = self.state().packs.get(&place.pack).cloned();
        let file =
            file.ok_or_else(|| Error::corrupt("a kept content lies in a pack that is gone", place.block))?;
        let block = Arc::new(unpack(&whole(&file, place.block)?)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED {
            cache.pop_front();
        }
        cache.push_back((key, Arc::clone(&block)));
        Ok(block)
    }

    /// Removes the packs that hold nothing of the files with these identities.
    pub(super) fn retain(&self, current: &HashSet<Identity>) {
        let mut state = self.state();
        // Segments may lie in other packs than the file that they belong to.
        let mut needed: HashSet<u64> = state.writer.iter().map(|w| w.number).collect();
        for (pack, names) in &state.names {
            if names.iter().any(|identity| current.contains(identity)) {
                needed.insert(*pack);
            }
        }
        for (identity, digest) in &state.by_identity {
            if current.contains(identity)
                && let Some(parts) = state.by_digest.get(digest)
            {
                needed.extend(parts.segments.iter().filter_map(|s| s.place.map(|p| p.pack)));
            }
        }
        let unused: Vec<u64> = state
            .packs
            .keys()
            .copied()
            .filter(|n| !needed.contains(n))
            .collect();
        for number in unused {
            let Some(file) = state.packs.get(&number) else {
                continue;
            };
            // Another run may still write to it.
            if rustix::fs::flock(&**file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = std::fs::remove_file(self.path(number));
                state.packs.remove(&number);
            }
        }
    }
}

/// A content that is made here.
struct Storing<'a> {
    contents: &'a Contents,
    raw: Vec<u8>,
    parts: Parts,
    hasher: blake3::Hasher,
}

impl Write for Storing<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let room = PIECE.saturating_sub(self.raw.len());
        let part = buf.get(..room.min(buf.len())).unwrap_or_default();
        self.raw.extend_from_slice(part);
        if self.raw.len() >= PIECE {
            self.flush()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let raw = std::mem::take(&mut self.raw);
        self.hasher.update(&raw);
        let len = raw.len() as u64;
        let place = match raw.iter().all(|b| *b == 0) {
            true => None,
            false => {
                let mut state = self.contents.state();
                let place = self.contents.append(&mut state, BLOCK, &pack(&raw, 1));
                Some(place.map_err(Error::into_io)?)
            }
        };
        self.parts.push(len, place);
        Ok(())
    }
}

/// Kind and length of the frame at `at`, if it is whole.
fn head(file: &File, at: u64) -> Option<(u8, u32)> {
    let mut head = [0; 5];
    file.read_exact_at(&mut head, at).ok()?;
    let len = bytes::le32(&head, 0)?;
    let end = at.checked_add(u64::from(len))?.checked_add(9)?;
    let size = file.metadata().ok()?.len();
    (len as usize <= crate::agent::wire::MAX && end <= size).then_some((bytes::u8_at(&head, 4)?, len))
}

/// The payload of the frame at `at`, checked.
fn whole(file: &File, at: u64) -> Result<Vec<u8>> {
    let bad = || Error::corrupt("a pack of kept contents is damaged", at);
    let (kind, len) = head(file, at).ok_or_else(bad)?;
    let mut payload = vec![0; len as usize];
    let mut sum = [0; 4];
    file.read_exact_at(&mut payload, at + 5).map_err(|_| bad())?;
    file.read_exact_at(&mut sum, at + 5 + u64::from(len))
        .map_err(|_| bad())?;
    match u32::from_le_bytes(sum) == check(kind, &payload) {
        true => Ok(payload),
        false => Err(bad()),
    }
}

/// A kept content.
struct Kept {
    contents: Arc<Contents>,
    parts: Arc<Parts>,
}

impl Kept {
    fn segment(&self, offset: u64) -> Option<&Segment> {
        let at = self.parts.segments.partition_point(|s| s.at <= offset);
        self.parts.segments.get(at.checked_sub(1)?)
    }
}

impl ReadAt for Kept {
    fn len(&self) -> u64 {
        self.parts.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("a kept content", self.parts.len, offset, buf.len())?;
        let bad = || Error::corrupt("a kept content is not where it should be", offset);
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let segment = self.segment(at).ok_or_else(bad)?;
            let within = at - segment.at;
            let n = usize::try_from(segment.len.saturating_sub(within)).unwrap_or(usize::MAX);
            let n = n.min(rest.len());
            if n == 0 {
                return Err(bad());
            }
            let (part, more) = rest.split_at_mut(n);
            match segment.place {
                None => part.fill(0),
                Some(place) => {
                    let block = self.contents.block(place)?;
                    let from = usize::try_from(u64::from(place.inner) + within).map_err(|_| bad())?;
                    part.copy_from_slice(bytes::slice(&block, from, n).ok_or_else(bad)?);
                }
            }
            at += n as u64;
            rest = more;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        match self.segment(offset).filter(|_| offset < self.parts.len) {
            Some(segment) => Ok(Extent {
                hole: segment.place.is_none(),
                len: segment.at + segment.len - offset,
            }),
            None => Ok(Extent { hole: true, len: 0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::wire::kind;

    fn got(bytes: &[u8]) -> Got {
        Got {
            len: bytes.len() as u64,
            digest: *blake3::hash(bytes).as_bytes(),
            ino: 1,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: crate::tree::Time::default(),
            ctime: crate::tree::Time::default(),
            torn: false,
        }
    }

    fn receive(contents: &Arc<Contents>, job: u32, identity: Identity, list: &[Item<'_>]) -> Result<()> {
        let wanted = Wanted {
            job,
            identity,
            path: [job as u8; 16],
            beginning: contents.beginning(&identity),
        };
        let mut files: HashMap<u32, Receiving> = contents.begin(&[wanted])?.into_iter().collect();
        let mut raw = Encoder::default();
        list.iter().for_each(|item| item.encode(&mut raw));
        let payload = pack(&raw.0, 1);
        contents.keep(&payload, &raw.0, &mut files, |_| 1 << 20, |_, _| Some(identity))
    }

    fn data(job: u32, bytes: &[u8]) -> Item<'_> {
        Item::Data { job, bytes, at: 0 }
    }

    #[test]
    fn what_came_is_there_after_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let content = [vec![1; 1000], vec![0; 5000], b"end".to_vec()].concat();
        let end = Item::End {
            job: 1,
            got: got(&content),
            sent: true,
        };
        let contents = Arc::new(Contents::open(dir.path(), "h").unwrap());
        let list = [
            data(1, &content[..1000]),
            Item::Hole { job: 1, len: 5000 },
            data(1, b"end"),
            end,
        ];
        receive(&contents, 1, [1; 16], &list).unwrap();
        receive(&contents, 2, [2; 16], &[data(2, b"begin")]).unwrap();
        drop(contents);
        let mode =
            |path: &Path| std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        let pack = dir.path().join("contents/h/1.pack");
        assert_eq!(mode(&pack) & 0o777, 0o600);
        // A frame that was cut off is no harm.
        let mut file = File::options().append(true).open(&pack).unwrap();
        file.write_all(&frame(kind::DATA, b"whatever")[..9]).unwrap();
        let contents = Arc::new(Contents::open(dir.path(), "h").unwrap());
        let digest = contents.digest(&[1; 16]).unwrap();
        let kept = contents.get(&digest).unwrap();
        assert_eq!(crate::read_at::read_all(&*kept, 1 << 20).unwrap(), content);
        assert!(kept.extent_at(1000).unwrap().hole && kept.extent_at(1000).unwrap().len == 5000);
        assert_eq!(contents.beginning(&[2; 16]).unwrap().len, 5);
        // It goes on where it was.
        let end = Item::End {
            job: 7,
            got: got(b"beginning"),
            sent: true,
        };
        receive(&contents, 7, [2; 16], &[data(7, b"ning"), end]).unwrap();
        let whole = contents.get(&contents.digest(&[2; 16]).unwrap()).unwrap();
        assert_eq!(crate::read_at::read_all(&*whole, 100).unwrap(), b"beginning");
        // The new pack needs the old one for the beginning.
        contents.retain(&HashSet::from([[2; 16]]));
        assert_eq!(contents.numbers().len(), 2);
        // A pack that a run still writes to stays.
        contents.retain(&HashSet::new());
        assert!(!contents.numbers().is_empty());
        drop((contents, whole, kept));
        let contents = Arc::new(Contents::open(dir.path(), "h").unwrap());
        assert!(contents.digest(&[2; 16]).is_some());
        contents.retain(&HashSet::new());
        assert_eq!(contents.numbers().len(), 0);
    }

    #[test]
    fn lies_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let contents = Arc::new(Contents::open(dir.path(), "h").unwrap());
        let end = |job, bytes: &[u8]| Item::End {
            job,
            got: got(bytes),
            sent: true,
        };
        assert!(receive(&contents, 1, [1; 16], &[data(1, b"this"), end(1, b"that")]).is_err());
        assert!(contents.digest(&[1; 16]).is_none());
        assert!(receive(&contents, 2, [2; 16], &[Item::Hole { job: 2, len: 1 << 40 }]).is_err());
        let tiny: Vec<Item<'_>> = (0..1000).map(|_| data(3, b"x")).collect();
        assert!(receive(&contents, 3, [3; 16], &tiny).is_ok() == (tiny.len() < 66));
        // Of a job that nobody asked for nothing is kept.
        receive(&contents, 4, [4; 16], &[data(5, b"x"), Item::Again { job: 9 }]).unwrap();
        assert!(contents.beginning(&[4; 16]).is_none());
    }
}
