//! The second way: an engine builds what the package manager brings, and the last layer is what the machine has otherwise.

use super::{Base, Machine, Options, Prepared, decide};
use crate::engine::{self, Built, Choice, Request};
use crate::error::{Error, Result};
use crate::layer::Settings;
use crate::layer::compress::compress;
use crate::oci::{self, BlobSource, media_type};
use crate::path::GuestPath;
use crate::plan::Action;
use crate::progress::Progress;
use crate::read_at::{Extent, ReadAt};
use crate::source::Source;
use crate::source::image::{Contents, ImageOptions, ImageSource};
use crate::store::Store;
use crate::tree::{FileId, Node};
use anyhow::Context;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// What an engine put on top of the base.
#[derive(Debug, Clone)]
pub struct OnTop {
    /// Its layers, in the store, compressed as the output wants them.
    pub layers: Vec<oci::Layer>,
    /// What made each of them, in the words of the engine.
    pub created_by: Vec<String>,
    /// Who built, for people.
    pub engine: String,
}

/// How a context is built.
#[derive(Debug, Clone, Copy)]
pub struct Building<'a> {
    /// Who builds.
    pub engine: Choice,
    /// The directory with the Dockerfile.
    pub context: &'a Path,
    /// True if this run wrote the context: its `FROM` is the base then, whatever it says.
    pub ours: bool,
    /// The network of `RUN` commands, in the engine's words.
    pub network: Option<&'a str>,
}

/// What failed is the build, not what came before or after it.
#[derive(Debug, thiserror::Error)]
#[error("building the image")]
pub struct BuildFailed;

/// Builds the context, compares the built image with the machine in both directions and plans anew: what `prepared` becomes
/// has one layer on top of the built ones.
///
/// # Errors
/// As [`engine::build`]; [`Error::Unsupported`] if the built image does not stand on the base.
pub fn build_context(
    machine: Machine<'_>,
    prepared: Prepared,
    building: Building<'_>,
    options: &Options,
    store: &Arc<Store>,
    progress: &dyn Progress,
) -> anyhow::Result<Prepared> {
    let base = prepared.base.as_ref();
    let request = Request {
        context: building.context,
        base: base.map(|base| base.source.image()),
        ours: building.ours,
        network: building.network,
    };
    let mut images = options.images.clone();
    images.platform = base.and_then(|base| base.source.image().platform());
    let built = engine::build(building.engine, &request, &images, progress).context(BuildFailed)?;
    let (image, on_top) = adopt(built, base, &options.layers, store, progress)?;
    let read = ImageOptions {
        cached: true,
        keep: Contents::Packages,
        import: false,
    };
    let under = ImageSource::open(image, Arc::clone(store), read, progress)?;
    let Prepared {
        inventory,
        base,
        own,
        known,
        ..
    } = prepared;
    let mut prepared = decide(
        machine,
        options,
        inventory,
        own,
        base,
        Some(&under),
        known,
        store,
        progress,
    )?;
    prepared.on_top = Some(on_top);
    Ok(prepared)
}

/// The built image with its layers as they will be written: those of the base are the base's own blobs, the others are
/// compressed into the store.
fn adopt(
    built: Built,
    base: Option<&Base>,
    settings: &Settings,
    store: &Arc<Store>,
    progress: &dyn Progress,
) -> anyhow::Result<(oci::Image, OnTop)> {
    // The files go when all of them are packed.
    let Built {
        mut image,
        engine,
        files: _files,
    } = built;
    let below: &[oci::Layer] = base.map_or(&[], |base| &base.source.image().layers);
    let stands = image.layers.len() >= below.len()
        && image
            .layers
            .iter()
            .zip(below)
            .all(|(a, b)| a.diff_id == b.diff_id);
    if !stands {
        let name = base.map_or("nothing", |base| base.reference.reference.as_str());
        return Err(Error::unsupported(format!("the built image does not stand on {name}"))
            .hint("let the Dockerfile begin with the base that --base names, and do not let the engine squash layers")
            .into());
    }
    let total = image
        .layers
        .iter()
        .skip(below.len())
        .map(|layer| layer.size)
        .sum();
    let stage = progress.stage("packing the built layers", Some(total));
    let mut layers = below.to_vec();
    for layer in image.layers.iter().skip(below.len()) {
        layers.push(packed(layer, settings, store, &*stage)?);
    }
    let made: Vec<oci::Layer> = layers.iter().skip(below.len()).cloned().collect();
    let lines = image.config.history().as_deref().unwrap_or_default();
    let lines: Vec<&oci_spec::image::History> =
        lines.iter().filter(|h| h.empty_layer() != Some(true)).collect();
    let said = |index: usize| lines.get(index).and_then(|line| line.created_by().clone());
    let named = |index: usize| said(index).filter(|_| lines.len() == image.layers.len());
    let created_by = (below.len()..image.layers.len())
        .map(|i| named(i).unwrap_or_else(|| "built".to_owned()))
        .collect();
    image.layers = layers;
    Ok((
        image,
        OnTop {
            layers: made,
            created_by,
            engine,
        },
    ))
}

/// A layer of an engine, which is a plain tar, as a blob of the store.
fn packed(
    layer: &oci::Layer,
    settings: &Settings,
    store: &Arc<Store>,
    stage: &dyn crate::progress::Stage,
) -> Result<oci::Layer> {
    let mut from = layer.open()?;
    let mut blob = store.writer()?;
    let plain = oci::layer_type(&layer.media_type) == Some(media_type::LAYER);
    let mut copy = |out: &mut dyn std::io::Write| -> Result<()> {
        let mut buf = vec![0; 256 << 10];
        loop {
            let n = std::io::Read::read(&mut from, &mut buf)
                .map_err(|e| Error::from_io("reading a built layer", e))?;
            if n == 0 {
                return Ok(());
            }
            let part = buf.get(..n).unwrap_or_default();
            out.write_all(part)
                .map_err(|e| Error::from_io("packing a built layer", e))?;
            stage.add(n as u64);
        }
    };
    match plain {
        true => compress(settings.compression, settings.jobs, &mut blob, copy)?,
        false => copy(&mut blob)?,
    }
    from.finish()?;
    let (digest, size) = blob.finish()?;
    Ok(oci::Layer {
        digest,
        size,
        media_type: match plain {
            true => settings.compression.media_type().to_owned(),
            false => layer.media_type.clone(),
        },
        diff_id: layer.diff_id,
        annotations: BTreeMap::new(),
        source: BlobSource::Store(Arc::clone(store)),
    })
}

/// Bytes of contents, each file once and holes not counted: what a machine holds, and what of it the new layers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Weights {
    /// All files of the machine.
    pub machine: u64,
    /// Those in the layers of the plan.
    pub rest: u64,
}

impl Weights {
    /// The share of the machine that the plan's layers hold, in percent.
    pub fn percent(self) -> f64 {
        match self.machine {
            0 => 0.0,
            all => self.rest as f64 * 100.0 / all as f64,
        }
    }
}

/// Weighs what a plan carries against the whole machine. Only what says where files lie is read, no content.
///
/// # Errors
/// As the filesystem's reader.
pub fn weigh(source: &dyn Source, prepared: &Prepared) -> Result<Weights> {
    let mut seen = HashSet::new();
    let mut weights = Weights { machine: 0, rest: 0 };
    let carried: HashSet<&GuestPath> = prepared
        .plan
        .layers
        .iter()
        .flat_map(|layer| &layer.steps)
        .filter(|step| step.action == Action::Write)
        .map(|step| &step.path)
        .collect();
    let carried_ids: HashSet<FileId> = carried
        .iter()
        .filter_map(|path| source.tree().get(path))
        .filter(|node| node.is_file())
        .map(|node| node.id)
        .collect();
    for (_, node) in source
        .tree()
        .iter()
        .filter(|(_, node)| node.is_file() && node.size() > 0)
    {
        if !seen.insert(node.id) {
            continue;
        }
        let bytes = data(source, node);
        weights.machine += bytes;
        if carried_ids.contains(&node.id) {
            weights.rest += bytes;
        }
    }
    Ok(weights)
}

/// The bytes of a file that are no holes; all of them where that cannot be told.
fn data(source: &dyn Source, node: &Node) -> u64 {
    let of = |file: &dyn ReadAt| -> Result<u64> {
        let (mut at, mut bytes) = (0, 0);
        while at < file.len() {
            let Extent { len, hole } = file.extent_at(at)?;
            bytes += if hole { 0 } else { len.min(file.len() - at) };
            at = at.saturating_add(len.max(1));
        }
        Ok(bytes)
    };
    // What is left out of a machine in motion is never fetched.
    if source.is_moving() {
        return node.size();
    }
    source
        .open(node.id)
        .and_then(|file| of(&*file))
        .unwrap_or(node.size())
}
