//! Layers: reproducible tars, named by their content.

pub mod compress;
pub mod tar;

use crate::diff::{Chunk, ContentHash, Known, Run, for_each_run};
use crate::error::{Error, Result};
use crate::plan::{Action, LayerPlan, Rewritten};
use crate::progress::Stage;
use crate::read_at::ReadAt;
use crate::source::Source;
use crate::store::Digest;
use crate::tree::{FileId, Kind, Node, Tree};
use compress::Compression;
use crossbeam_channel::{Receiver, Sender, bounded};
use sha2::Sha256;
use sha2::digest::Update;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;
use tar::As;

/// Part of every recipe: raised when the same steps would give other bytes than before.
const FORMAT: u32 = 1;

/// How layers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Compression.
    pub compression: Compression,
    /// Threads that compress.
    pub jobs: usize,
    /// Times of modification behind this are set to it (SOURCE_DATE_EPOCH), in seconds.
    pub clamp: Option<i64>,
}

/// The time of modification that a layer states for `node`: whole seconds, clamped.
pub fn mtime(node: &Node, clamp: Option<i64>) -> i64 {
    clamp.map_or(node.mtime.sec, |max| node.mtime.sec.min(max))
}

/// What layers are made from.
#[derive(Clone, Copy)]
pub struct Material<'a> {
    /// Contents come from here.
    pub source: &'a dyn Source,
    /// The tree that the image will show (`plan::image_tree`).
    pub image: &'a Tree,
    /// Files with another content than the source's.
    pub rewritten: &'a BTreeMap<crate::path::GuestPath, Rewritten>,
}

impl Material<'_> {
    fn open(&self, path: &crate::path::GuestPath, node: &Node) -> Result<Arc<dyn ReadAt>> {
        match self.rewritten.get(path) {
            Some(new) => Ok(Arc::new(new.content.clone())),
            None => self.source.open(node.id),
        }
    }
}

/// The result of [`pack`].
#[derive(Debug, Clone)]
pub struct Packed {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// Hashes of the contents that were read on the way.
    pub hashes: Known,
}

/// The size in bytes of the tar that [`pack`] will write.
pub fn tar_size(image: &Tree, layer: &LayerPlan, clamp: Option<i64>) -> u64 {
    let entries: u64 = layer
        .steps
        .iter()
        .filter_map(|step| {
            let node = image.get(&step.path)?;
            let form = match &step.action {
                Action::Delete => return None,
                Action::LinkTo(first) => As::LinkTo(first),
                Action::Write => As::Itself,
            };
            Some(tar::entry_size(&step.path, node, form, mtime(node, clamp)))
        })
        .sum();
    let whiteouts = layer.steps.iter().filter(|s| s.action == Action::Delete).count() * tar::BLOCK;
    entries + (whiteouts + 2 * tar::BLOCK) as u64
}

/// Names the bytes that [`pack`] would write for `layer`, without reading a content: equal recipes give equal layers.
/// `None` if the hash of a content is not known.
pub fn recipe(
    image: &Tree,
    rewritten: &BTreeMap<crate::path::GuestPath, Rewritten>,
    layer: &LayerPlan,
    settings: &Settings,
    known: &Known,
) -> Option<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("vm2k layer {FORMAT} {}\n", settings.compression).as_bytes());
    let mut add = |field: &[u8]| {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field);
    };
    for step in &layer.steps {
        if let Action::Delete = step.action {
            add(b"-");
            add(step.path.as_bytes());
            continue;
        }
        let node = image.get(&step.path)?;
        let mut header = Vec::new();
        let form = match &step.action {
            Action::LinkTo(first) => As::LinkTo(first),
            _ => As::Itself,
        };
        // The header says all that is written but the content.
        tar::write_header(&mut header, &step.path, node, form, mtime(node, settings.clamp)).ok()?;
        add(&header);
        if form == As::Itself && node.size() > 0 {
            match rewritten.get(&step.path) {
                Some(new) => add(blake3::hash(&new.content).as_bytes()),
                None => add(known.get(&node.id)?),
            }
        }
    }
    Some(hasher.finalize().to_hex().to_string())
}

/// A part of a content on its way from the reader to the tar.
enum Part {
    Bytes(Vec<u8>),
    Zeros(u64),
    /// The content is complete; its hash.
    End(ContentHash),
    Failed(Error),
}

/// Parts that wait for the writer of the tar, and buffers that wait for the hasher or the reader.
const WAITING: usize = 24;

/// Writes `layer` as a compressed tar to `out`.
///
/// One thread reads ahead and hashes contents, the calling one builds the tar, one hashes it, `settings.jobs` compress, one
/// writes.
///
/// # Errors
/// If a content cannot be read (naming the path) or `out` fails.
pub fn pack(
    material: Material<'_>,
    layer: &LayerPlan,
    settings: &Settings,
    out: &mut (dyn Write + Send),
    stage: &dyn Stage,
) -> Result<Packed> {
    compress::compress(settings.compression, settings.jobs, out, |out| {
        std::thread::scope(|scope| {
            let (send, receive) = bounded(WAITING);
            let (to_hasher, from_tar) = bounded::<Vec<u8>>(WAITING);
            let (recycle, recycled) = bounded::<Vec<u8>>(2 * WAITING);
            scope.spawn(move || read_ahead(material, layer, &send, &recycled));
            let hasher = scope.spawn(move || {
                let mut hasher = Sha256::default();
                for part in from_tar {
                    hasher.update(&part);
                    // A full pool is no loss: the buffer is freed.
                    let _ = recycle.try_send(part);
                }
                hasher
            });
            let mut out = Hashing {
                out,
                gathered: Vec::with_capacity(GATHERED),
                to_hasher,
                size: 0,
            };
            let hashes = write_tar(material, layer, settings, &receive, &mut out, stage)?;
            tar::write_end(&mut out)?;
            out.flush().map_err(written)?;
            let size = out.size;
            drop(out);
            let hasher = hasher
                .join()
                .map_err(|_| Error::unsupported("the hashing thread failed"))?;
            Ok(Packed {
                diff_id: Digest::from_hasher(hasher),
                size,
                hashes,
            })
        })
    })
}

/// Reads and hashes the contents of all steps in their order. Buffers come back through `recycled`.
fn read_ahead(material: Material<'_>, layer: &LayerPlan, to: &Sender<Part>, recycled: &Receiver<Vec<u8>>) {
    let gone = || Error::unsupported("the layer's writer stopped");
    let send = |part: Part| to.send(part).map_err(|_| gone());
    let written = layer.steps.iter().filter(|s| s.action == Action::Write);
    let ids: Vec<FileId> = written
        .filter(|step| !material.rewritten.contains_key(&step.path))
        .filter_map(|step| material.image.get(&step.path).filter(|n| n.size() > 0))
        .map(|node| node.id)
        .collect();
    material.source.prefetch(&ids);
    for step in layer.steps.iter().filter(|s| s.action == Action::Write) {
        let Some(node) = material.image.get(&step.path).filter(|n| n.size() > 0) else {
            continue;
        };
        let read = material.open(&step.path, node).and_then(|content| {
            let mut hasher = blake3::Hasher::new();
            for_each_run(&*content, |at, run| match run {
                Run::Hole(len) => {
                    Chunk::Hole(len).bytes(|zeros| {
                        hasher.update(zeros);
                        Ok(())
                    })?;
                    send(Part::Zeros(len))
                }
                Run::Data(len) => {
                    let mut bytes = recycled.try_recv().unwrap_or_default();
                    bytes.resize(len, 0);
                    content.read_at(at, &mut bytes)?;
                    hasher.update(&bytes);
                    send(Part::Bytes(bytes))
                }
            })?;
            send(Part::End(*hasher.finalize().as_bytes()))
        });
        if let Err(e) = read {
            let _ = to.send(Part::Failed(e));
            return;
        }
    }
}

fn write_tar(
    material: Material<'_>,
    layer: &LayerPlan,
    settings: &Settings,
    from: &Receiver<Part>,
    out: &mut Hashing<'_>,
    stage: &dyn Stage,
) -> Result<Known> {
    let mut hashes: HashMap<FileId, ContentHash> = HashMap::new();
    for step in &layer.steps {
        let before = out.size;
        let path = &step.path;
        if step.action == Action::Delete {
            tar::write_whiteout(out, path)?;
            stage.add(out.size - before);
            continue;
        }
        let node = material.image.get(path).ok_or_else(|| {
            Error::usage(format!(
                "{path}: the plan writes it and the machine does not have it"
            ))
        })?;
        if path.name().starts_with(b".wh.") {
            return Err(Error::refused(format!(
                "{path}: a layer cannot carry a name that begins with .wh."
            ))
            .hint(format!("leave it out with --drop '{path}'")));
        }
        if let Action::LinkTo(first) = &step.action {
            tar::write_header(out, path, node, As::LinkTo(first), mtime(node, settings.clamp))?;
            stage.add(out.size - before);
            continue;
        }
        tar::write_header(out, path, node, As::Itself, mtime(node, settings.clamp))?;
        stage.add(out.size - before);
        let Kind::File { size: size @ 1.. } = node.kind else {
            continue;
        };
        let mut rest = size;
        let hash = loop {
            let len = match from.recv() {
                Ok(Part::End(hash)) if rest == 0 => break hash,
                Ok(Part::Bytes(bytes)) => out.hand_on(bytes).map_err(written)?,
                Ok(Part::Zeros(len)) => {
                    Chunk::Hole(len).bytes(|zeros| out.write_all(zeros).map_err(written))?;
                    len
                }
                Ok(Part::Failed(e)) => return Err(unreadable(path, e)),
                Ok(Part::End(_)) | Err(_) => {
                    return Err(Error::corrupt(
                        format!("{path}: its content ended early"),
                        size - rest,
                    ));
                }
            };
            stage.add(len);
            rest = rest.checked_sub(len).ok_or_else(|| {
                Error::corrupt(
                    format!("{path}: its content is longer than its size of {size}"),
                    size,
                )
            })?;
        };
        out.write_all(tar::padding(size)).map_err(written)?;
        if !material.rewritten.contains_key(path) {
            hashes.insert(node.id, hash);
        }
    }
    Ok(hashes)
}

/// A content that cannot be read stops the work: an image that lacks it would not be the machine's.
fn unreadable(path: &crate::path::GuestPath, error: Error) -> Error {
    let what = format!("reading {path}: {error}");
    let error = match error {
        Error::Corrupt { what, at } => Error::corrupt(format!("reading {path}: {what}"), at),
        Error::Unsupported { .. } => Error::unsupported(what),
        Error::Io { source, .. } => Error::io(format!("reading {path}"), source),
        other => other,
    };
    error.hint(format!("to go on without this file: --drop '{path}'"))
}

fn written(e: std::io::Error) -> Error {
    Error::io("writing a layer", e)
}

/// Bytes that are gathered before they go to the compressor and the hasher.
const GATHERED: usize = 256 << 10;

/// True for buffers that are worth a way of their own to the hasher, and back to the reader.
fn is_handed_on(len: usize) -> bool {
    len >= GATHERED / 4
}

/// Passes the bytes of the tar on to the compressor and to the thread that hashes them, and counts them.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    gathered: Vec<u8>,
    to_hasher: Sender<Vec<u8>>,
    size: u64,
}

impl Hashing<'_> {
    /// Writes a buffer that need not be copied to be hashed. Returns its length.
    fn hand_on(&mut self, bytes: Vec<u8>) -> std::io::Result<u64> {
        let len = bytes.len();
        if !is_handed_on(len) {
            self.write_all(&bytes)?;
            return Ok(len as u64);
        }
        self.flush()?;
        self.size += len as u64;
        self.pass(bytes)?;
        Ok(len as u64)
    }

    fn pass(&mut self, bytes: Vec<u8>) -> std::io::Result<()> {
        self.out.write_all(&bytes)?;
        let gone = |_| std::io::Error::other("the hashing thread failed");
        self.to_hasher.send(bytes).map_err(gone)
    }
}

impl Write for Hashing<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if self.gathered.len() + buf.len() > GATHERED {
            self.flush()?;
        }
        self.gathered.extend_from_slice(buf);
        self.size += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.gathered, Vec::with_capacity(GATHERED));
        self.pass(full)
    }
}
