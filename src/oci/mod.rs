//! Container images: reading them from layouts, archives and registries, and writing them.
//!
//! Words are those of the OCI image-spec 1.1: a *manifest* names a *config* and *layers* by *descriptors* (digest, size,
//! media type); an *index* names manifests by platform. Everything that is read is untrusted: each byte is checked against
//! the digest and size that the manifest promised, and the manifest against the digest that led to it.

pub(crate) mod archive;
mod auth;
mod config;
pub(crate) mod daemon;
mod document;
pub(crate) mod durable;
pub(crate) mod http;
pub(crate) mod layer;
mod layout;
pub(crate) mod listing;
mod new_image;
mod reference;
mod registry;
mod sparse;
mod write;
mod write_archive;

pub use config::{NewConfig, NewHistory, image_config, rfc3339};
pub use new_image::{NewImage, manifest};
pub use reference::{Output, Reference, RegistryName};
pub use registry::Remote;
pub use write::{Written, check, write};

pub(crate) use document::{check_document_size, digest_of, layer_type, parse, to_json};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::read_at::ReadAt;
use crate::store::{Digest, Store, Verified};
use document::{Document, check_layer_type, document, select};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// The most bytes of a manifest, an index or a config.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// The most layers of an image. Docker mounts 127 at most; images with more exist and can be read.
pub const MAX_LAYERS: usize = 512;

/// Media types that this program writes (OCI image-spec, media-types.md).
pub mod media_type {
    /// A manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// A config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer, not compressed.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A layer, gzip.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A layer, zstd.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
}

/// Which machine an image is for, in the words of Go and OCI. The operating system is always Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// GOARCH: `amd64`, `arm64`, `arm`, `386`, `ppc64le`, `s390x`, `riscv64`, ...
    pub architecture: String,
    /// `v7` for arm, `v8` for arm64; mostly not given.
    pub variant: Option<String>,
}

impl Platform {
    /// From the name that `uname -m`, a package manager or Go has for a machine.
    pub fn of_machine(machine: &str) -> Self {
        let (architecture, variant) = match machine {
            "x86_64" | "amd64" => ("amd64", None),
            "aarch64" | "arm64" => ("arm64", Some("v8")),
            "i386" | "i486" | "i586" | "i686" | "x86" => ("386", None),
            "armv7l" | "armhf" | "armv7hl" | "armv7" => ("arm", Some("v7")),
            "armv6l" | "armv6hl" | "armv6" => ("arm", Some("v6")),
            "armel" | "armv5tel" => ("arm", Some("v5")),
            "ppc64el" | "powerpc64le" => ("ppc64le", None),
            "loongarch64" | "loong64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// The machine this program runs on.
    pub fn host() -> Self {
        Self::of_machine(std::env::consts::ARCH)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// How images are opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Where blobs of registries and values that can be computed again are kept.
    pub store: Arc<Store>,
    /// The platform that the image must have. `None`: any; of an index with several the one of this machine.
    pub platform: Option<Platform>,
    /// Use no network: what the store has, or an error.
    pub offline: bool,
    /// Speak plain http with a registry that does not speak https. Loopback addresses need no such word.
    pub insecure: bool,
    /// A file of credentials (docker's `config.json` or podman's `auth.json`) in place of the usual ones.
    pub auth_file: Option<PathBuf>,
}

impl OpenOptions {
    /// Any platform, network allowed, https, the usual credentials.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            platform: None,
            offline: false,
            insecure: false,
            auth_file: None,
        }
    }
}

/// Where the bytes of a blob are.
#[derive(Clone)]
pub enum BlobSource {
    /// In a store.
    Store(Arc<Store>),
    /// A file of the host that is the blob.
    File(PathBuf),
    /// A part of a file, from this offset.
    Part(Arc<dyn ReadAt>, u64),
    /// In a registry; it is fetched into the store when it is needed.
    Registry(Arc<Remote>),
}

impl std::fmt::Debug for BlobSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(_) => f.write_str("Store"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Part(_, offset) => write!(f, "Part({offset})"),
            Self::Registry(remote) => remote.fmt(f),
        }
    }
}

/// One layer of an image: its descriptor, its diffID, and where its bytes are.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type as the manifest states it.
    pub media_type: String,
    /// Digest of the plain tar.
    pub diff_id: Digest,
    /// Annotations of the descriptor.
    pub annotations: BTreeMap<String, String>,
    /// Where the bytes are.
    pub source: BlobSource,
}

/// A reader of a blob that checks digest and size on the way; see [`Verified`].
pub type BlobReader = Verified<Box<dyn Read + Send>>;

impl Layer {
    /// A reader of the blob as it is, compressed or not. A damaged blob of the store is removed when that is noticed.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened.
    pub fn open(&self) -> Result<BlobReader> {
        open_blob(&self.source, &self.digest, self.size)
    }

    /// The store that the blob is in, or comes to when it is fetched.
    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        match &self.source {
            BlobSource::Store(store) => Some(store),
            BlobSource::Registry(remote) => Some(remote.store()),
            BlobSource::File(_) | BlobSource::Part(..) => None,
        }
    }
}

/// Fetches those of `layers` that are in a registry and not in the store yet, several at once.
///
/// # Errors
/// [`Error::Network`] if they cannot be had, [`Error::Corrupt`] if they are not what their descriptors say.
pub fn fetch<'a>(layers: impl IntoIterator<Item = &'a Layer>, progress: &dyn Progress) -> Result<()> {
    type Wanted<'a> = (&'a Arc<Remote>, Vec<(Digest, u64)>);
    let mut by_remote: Vec<Wanted> = Vec::new();
    for layer in layers {
        let BlobSource::Registry(remote) = &layer.source else {
            continue;
        };
        if remote.store().has(&layer.digest) {
            continue;
        }
        let blob = (layer.digest, layer.size);
        match by_remote.iter_mut().find(|(r, _)| Arc::ptr_eq(r, remote)) {
            Some((_, blobs)) => blobs.push(blob),
            None => by_remote.push((remote, vec![blob])),
        }
    }
    for (remote, blobs) in by_remote {
        let total = blobs.iter().map(|(_, size)| size).sum();
        let stage = progress.stage(&format!("fetching {}", remote.name()), Some(total));
        remote.fetch_all(&blobs, &*stage)?;
    }
    Ok(())
}

/// See [`Layer::open`].
pub(crate) fn open_blob(source: &BlobSource, digest: &Digest, size: u64) -> Result<BlobReader> {
    let from: Box<dyn Read + Send> = match source {
        BlobSource::Registry(remote) => {
            remote.fetch(digest, size, &crate::progress::Silent)?;
            return open_blob(&BlobSource::Store(Arc::clone(remote.store())), digest, size);
        }
        BlobSource::Store(store) => {
            let missing = || {
                Error::io(
                    format!("reading blob {digest}"),
                    std::io::Error::new(std::io::ErrorKind::NotFound, "it is no longer in the store"),
                )
                .hint("run the same command again")
            };
            return Ok(store.open_blob(digest, Some(size))?.ok_or_else(missing)?.boxed());
        }
        BlobSource::File(path) => {
            let opened = File::open(path);
            Box::new(opened.map_err(|e| Error::io(format!("opening {}", path.display()), e))?)
        }
        BlobSource::Part(file, offset) => Box::new(Part {
            file: Arc::clone(file),
            at: *offset,
            end: offset.saturating_add(size),
        }),
    };
    Ok(Verified::new(from, *digest, size))
}

/// A run of bytes of something that can be read at random, as a stream.
struct Part {
    file: Arc<dyn ReadAt>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.end.min(self.file.len()).saturating_sub(self.at);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..n).unwrap_or_default();
        self.file.read_at(self.at, part).map_err(Error::into_io)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// An image as its manifest describes it. Layers are read when they are asked for.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where it was found.
    pub reference: Reference,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// The manifest, byte for byte. For a docker archive, which has none: the one this program would write.
    pub manifest: Vec<u8>,
    /// Digest of the config.
    pub config_digest: Digest,
    /// The config, byte for byte.
    pub config_bytes: Vec<u8>,
    /// The config, parsed.
    pub config: ImageConfiguration,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// What it is called, for messages.
    pub fn name(&self) -> String {
        self.reference.to_string()
    }

    /// The value of a label of the config.
    pub fn label(&self, name: &str) -> Option<&str> {
        let config = self.config.config().as_ref()?;
        config.labels().as_ref()?.get(name).map(String::as_str)
    }

    /// What it is for. The operating system is not Linux if this is `None`.
    pub fn platform(&self) -> Option<Platform> {
        (self.config.os().to_string() == "linux").then(|| Platform {
            architecture: self.config.architecture().to_string(),
            variant: self.config.variant().clone(),
        })
    }
}

/// Opens the image that `reference` names: its manifest and config are read and checked, its layers are found.
///
/// # Errors
/// [`Error::Network`] if a registry cannot be reached or `offline` forbids it, [`Error::Corrupt`] for digests that are
/// wrong and documents that are broken, [`Error::Unsupported`] for media types, platforms and transports that are not
/// there, [`Error::Usage`] if the reference names no image or more than one.
pub fn open(reference: &Reference, options: &OpenOptions, progress: &dyn Progress) -> Result<Image> {
    match reference {
        Reference::Layout { dir, tag } => layout::open(reference, dir, tag.as_deref(), options),
        Reference::OciArchive { file, name } => archive::open_oci(reference, file, name.as_deref(), options),
        Reference::DockerArchive { file, name } => {
            archive::open_docker(reference, file, name.as_deref(), options)
        }
        Reference::Registry(name) => registry::open(reference, name, options),
        Reference::DockerDaemon(name) => daemon::open(reference, name, options, progress),
    }
}

/// Which document is asked for: registries keep manifests apart from blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Config,
}

/// Something that has blobs by digest: what a layout, an archive and a registry have in common.
pub(crate) trait Blobs {
    /// A document of `size` bytes, checked against its digest. `size` is at most [`MAX_DOCUMENT`].
    fn document(&self, kind: Kind, digest: &Digest, size: u64) -> Result<Vec<u8>>;
    /// Where the blob is.
    fn source(&self, digest: &Digest) -> Result<BlobSource>;
}

/// Follows digest and size of a document through indexes to a manifest and makes the image of it.
pub(crate) fn resolve(
    blobs: &dyn Blobs,
    (mut digest, mut size): (Digest, u64),
    reference: &Reference,
    options: &OpenOptions,
) -> Result<Image> {
    let name = reference.to_string();
    // An index of indexes is allowed; more than two of them in a row are a trick.
    for _ in 0..4 {
        check_document_size("a manifest", size)?;
        let bytes = blobs.document(Kind::Manifest, &digest, size)?;
        match document(&bytes, &format!("manifest {digest} of {name}"))? {
            Document::Manifest(manifest) => {
                return image(blobs, digest, bytes, &manifest, reference, options);
            }
            Document::Index(index) => {
                let chosen = select(index.manifests(), options.platform.as_ref(), &name)?;
                digest = digest_of(chosen)?;
                size = chosen.size();
            }
        }
    }
    Err(Error::corrupt(format!("{name}: indexes without end"), 0))
}

/// The image that a manifest describes: reads the config and checks one against the other.
pub(crate) fn image(
    blobs: &dyn Blobs,
    manifest_digest: Digest,
    bytes: Vec<u8>,
    manifest: &ImageManifest,
    reference: &Reference,
    options: &OpenOptions,
) -> Result<Image> {
    let name = reference.to_string();
    let config_digest = digest_of(manifest.config())?;
    let config_type = manifest.config().media_type().to_string();
    if ![
        media_type::CONFIG,
        "application/vnd.docker.container.image.v1+json",
    ]
    .contains(&config_type.as_str())
    {
        return Err(Error::unsupported(format!(
            "{name} is no container image: its config has the media type {config_type:?}"
        )));
    }
    check_document_size("a config", manifest.config().size())?;
    let config_bytes = blobs.document(Kind::Config, &config_digest, manifest.config().size())?;
    let config: ImageConfiguration = parse(&config_bytes, &format!("config {config_digest} of {name}"))?;
    let diff_ids = config.rootfs().diff_ids();
    if manifest.layers().len() != diff_ids.len() {
        return Err(Error::corrupt(
            format!(
                "{name}: the manifest has {} layers, the config {}",
                manifest.layers().len(),
                diff_ids.len()
            ),
            0,
        ));
    }
    if diff_ids.len() > MAX_LAYERS {
        return Err(Error::unsupported(format!(
            "{name} has {} layers; at most {MAX_LAYERS} are read",
            diff_ids.len()
        )));
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (descriptor, diff_id) in manifest.layers().iter().zip(diff_ids) {
        let digest = digest_of(descriptor)?;
        check_layer_type(&name, descriptor)?;
        layers.push(Layer {
            digest,
            size: descriptor.size(),
            media_type: descriptor.media_type().to_string(),
            diff_id: Digest::parse(diff_id)?,
            annotations: descriptor
                .annotations()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            source: blobs.source(&digest)?,
        });
    }
    let image = Image {
        reference: reference.clone(),
        manifest_digest,
        manifest: bytes,
        config_digest,
        config_bytes,
        config,
        layers,
    };
    check_platform(&image, options.platform.as_ref())?;
    Ok(image)
}

/// `Ok` if the image is for `wanted`.
fn check_platform(image: &Image, wanted: Option<&Platform>) -> Result<()> {
    let is = image.platform();
    match (is, wanted) {
        (None, _) => Err(Error::unsupported(format!(
            "{} is for {}, not for linux",
            image.name(),
            image.config.os()
        ))),
        (Some(is), Some(wanted)) if is.architecture != wanted.architecture => Err(Error::unsupported(
            format!("{} is for {is}, not for {wanted}", image.name()),
        )),
        _ => Ok(()),
    }
}
