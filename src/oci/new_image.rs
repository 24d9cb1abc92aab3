//! An image before it is written: the manifest, its place in an index, and how its blobs are copied.

use super::durable::Durable;
use super::layout::{IMAGE_NAME, REF_NAME};
use super::{Layer, RegistryName, media_type};
use crate::error::{Error, Result};
use crate::store::Digest;
use oci_spec::image::ImageConfiguration;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// An image that is ready to be written: all of its bytes, or where they are.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// The manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// The config, byte for byte.
    pub config: Vec<u8>,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
}

impl NewImage {
    /// The image of `config` (see [`super::image_config`]) and `layers`: those of the base, then the new ones.
    ///
    /// # Errors
    /// As [`manifest`].
    pub fn new(config: Vec<u8>, layers: Vec<Layer>) -> Result<Self> {
        Ok(Self {
            manifest: manifest(&config, &layers)?,
            config,
            layers,
        })
    }

    /// Digest of the manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Each layer's blob once, in order.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Layer> {
        let mut seen = std::collections::BTreeSet::new();
        self.layers.iter().filter(move |l| seen.insert(l.digest))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'static str,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a BTreeMap<String, String>>,
}

/// The manifest of an image (OCI image-spec, manifest.md) as bytes: equal input gives equal bytes. Docker's media types
/// become OCI's.
///
/// # Errors
/// [`Error::Unsupported`] for a layer of another media type, [`Error::Corrupt`] if the config's diffIDs are not those of
/// the layers.
pub fn manifest(config: &[u8], layers: &[Layer]) -> Result<Vec<u8>> {
    let parsed: ImageConfiguration = super::parse(config, "the config")?;
    let stated = parsed.rootfs().diff_ids().iter().map(String::as_str);
    if !stated.eq(layers.iter().map(|l| l.diff_id.to_string())) {
        return Err(Error::corrupt(
            "the config does not list the layers of its image",
            0,
        ));
    }
    let descriptors = layers.iter().map(|layer| {
        let media_type = super::layer_type(&layer.media_type)
            .ok_or_else(|| Error::unsupported(format!("a layer of media type {:?}", layer.media_type)))?;
        Ok(Descriptor {
            media_type,
            digest: layer.digest,
            size: layer.size,
            annotations: (!layer.annotations.is_empty()).then_some(&layer.annotations),
        })
    });
    super::to_json(&Manifest {
        schema_version: 2,
        media_type: media_type::MANIFEST,
        config: Descriptor {
            media_type: media_type::CONFIG,
            digest: Digest::of(config),
            size: config.len() as u64,
            annotations: None,
        },
        layers: descriptors.collect::<Result<_>>()?,
    })
}

/// The descriptor of `image` in an index: named and with its platform.
pub(crate) fn index_entry(image: &NewImage, name: Option<&str>) -> Result<Value> {
    let config: ImageConfiguration = super::parse(&image.config, "the config")?;
    let mut platform = serde_json::Map::new();
    platform.insert(
        "architecture".to_owned(),
        json!(config.architecture().to_string()),
    );
    platform.insert("os".to_owned(), json!(config.os().to_string()));
    if let Some(variant) = config.variant() {
        platform.insert("variant".to_owned(), json!(variant));
    }
    let mut entry = serde_json::Map::new();
    entry.insert("mediaType".to_owned(), json!(media_type::MANIFEST));
    entry.insert("digest".to_owned(), json!(image.digest()));
    entry.insert("size".to_owned(), json!(image.manifest.len()));
    entry.insert("platform".to_owned(), Value::Object(platform));
    if let Some(name) = name {
        let mut annotations = BTreeMap::from([(REF_NAME, name.to_owned())]);
        // A tag alone is a valid name too, but not what an engine should call the image.
        if let Some(full) = full_name(name).filter(|_| name.contains([':', '/'])) {
            annotations.insert(IMAGE_NAME, full.to_string());
        }
        entry.insert("annotations".to_owned(), json!(annotations));
    }
    Ok(Value::Object(entry))
}

/// `name` as engines understand it, with registry and tag; `None` if it cannot be one.
pub(crate) fn full_name(name: &str) -> Option<RegistryName> {
    RegistryName::parse(name).ok().filter(|n| n.digest.is_none())
}

/// An index as bytes, keys in order.
pub(crate) fn index(manifests: Vec<Value>) -> Result<Vec<u8>> {
    super::to_json(&super::config::sorted(json!({
        "schemaVersion": 2,
        "mediaType": media_type::INDEX,
        "manifests": manifests,
    })))
}

/// The content of the file `oci-layout`.
pub(crate) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Appends a layer's blob to `to`, checked on the way.
pub(crate) fn copy_blob(layer: &Layer, to: &mut Durable, shown: &Path) -> Result<()> {
    if let Some(store) = layer.store()
        && store.is_known_whole(&layer.digest)
        && let Ok(file) = File::open(store.blob_path(&layer.digest))
    {
        return to.copy_file(&file, layer.size);
    }
    let copied = layer.open().and_then(|mut blob| to.copy(&mut blob));
    copied.map(|_| ()).map_err(|e| match e {
        Error::Corrupt { what, at } => Error::corrupt(format!("writing {}: {what}", shown.display()), at),
        e => e,
    })
}
