//! Layers: reproducible tars, named by their content.

pub mod compress;
pub mod tar;

use crate::diff::{Chunk, ContentHash, Known, for_each_chunk};
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
    Failed(Error),
}

/// Writes `layer` as a compressed tar to `out`.
///
/// One thread reads ahead, the calling one builds the tar and hashes, `settings.jobs` compress, one writes.
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
        let mut out = Hashing {
            out,
            hasher: Sha256::default(),
            size: 0,
        };
        let hashes = std::thread::scope(|scope| {
            let (send, receive) = bounded(32);
            scope.spawn(move || read_ahead(material, layer, &send));
            write_tar(material, layer, settings, &receive, &mut out, stage)
        })?;
        tar::write_end(&mut out)?;
        Ok(Packed {
            diff_id: Digest::from_hasher(out.hasher),
            size: out.size,
            hashes,
        })
    })
}

/// Reads the contents of all steps in their order.
fn read_ahead(material: Material<'_>, layer: &LayerPlan, to: &Sender<Part>) {
    for step in layer.steps.iter().filter(|s| s.action == Action::Write) {
        let Some(node) = material.image.get(&step.path).filter(|n| n.size() > 0) else {
            continue;
        };
        let read = material.open(&step.path, node).and_then(|content| {
            let gone = || Error::unsupported("the layer's writer stopped");
            let hole = content.extent_at(0)?.hole;
            if content.len() <= SMALL && !hole {
                let mut bytes = vec![0; usize::try_from(content.len()).unwrap_or(0)];
                content.read_at(0, &mut bytes)?;
                return to.send(Part::Bytes(bytes)).map_err(|_| gone());
            }
            for_each_chunk(&*content, |chunk| {
                let part = match chunk {
                    Chunk::Data(bytes) => Part::Bytes(bytes.to_vec()),
                    Chunk::Hole(len) => Part::Zeros(len),
                };
                to.send(part).map_err(|_| gone())
            })
        });
        if let Err(e) = read {
            let _ = to.send(Part::Failed(e));
            return;
        }
    }
}

/// Contents up to this many bytes are read at once.
const SMALL: u64 = 128 << 10;

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
        let Kind::File { size } = node.kind else { continue };
        let mut hasher = blake3::Hasher::new();
        let mut rest = size;
        while rest > 0 {
            let len = match from.recv() {
                Ok(Part::Bytes(bytes)) => {
                    hasher.update(&bytes);
                    write(out, &bytes)?;
                    bytes.len() as u64
                }
                Ok(Part::Zeros(len)) => {
                    Chunk::Hole(len).bytes(|zeros| {
                        hasher.update(zeros);
                        write(out, zeros)
                    })?;
                    len
                }
                Ok(Part::Failed(e)) => return Err(unreadable(path, e)),
                Err(_) => {
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
        }
        write(out, tar::padding(size))?;
        if size > 0 && !material.rewritten.contains_key(path) {
            hashes.insert(node.id, *hasher.finalize().as_bytes());
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

fn write(out: &mut Hashing<'_>, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|e| Error::io("writing a layer", e))
}

/// Passes bytes on, counting and hashing them.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    hasher: Sha256,
    size: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.out.write_all(buf)?;
        self.hasher.update(buf);
        self.size += buf.len() as u64;
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
