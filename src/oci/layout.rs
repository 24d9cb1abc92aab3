//! Reading OCI image layouts (OCI image-spec, image-layout.md): a directory with `index.json` and `blobs/sha256/*`.

use super::{BlobSource, Blobs, Image, MAX_DOCUMENT, OpenOptions, Reference};
use crate::error::{Error, Result};
use crate::store::{Digest, Verified};
use oci_spec::image::{Descriptor, ImageIndex};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The annotation that holds a tag (OCI image-spec, annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation by which containerd and docker keep the full name.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

struct Layout<'a> {
    dir: &'a Path,
}

impl Layout<'_> {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }
}

impl Blobs for Layout<'_> {
    fn document(&self, _kind: super::Kind, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|e| missing(&path, e))?;
        read_document(file, digest, size)
    }

    fn source(&self, digest: &Digest) -> Result<BlobSource> {
        Ok(BlobSource::File(self.path(digest)))
    }
}

/// A blob that an image names and that is not there makes the image corrupt.
fn missing(path: &Path, e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::NotFound => Error::corrupt(format!("{} is missing", path.display()), 0),
        _ => Error::io(format!("opening {}", path.display()), e),
    }
}

/// A whole document from its blob, checked. The caller has looked at `size`.
pub(crate) fn read_document(from: impl Read, digest: &Digest, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Verified::new(from, *digest, size)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::from_io(format!("reading blob {digest}"), e))?;
    Ok(bytes)
}

/// Opens the image `tag` of the layout in `dir`, or its only one.
pub(crate) fn open(
    reference: &Reference,
    dir: &Path,
    tag: Option<&str>,
    options: &OpenOptions,
) -> Result<Image> {
    let path = dir.join("index.json");
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes))
        .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    super::check_document_size("index.json", bytes.len() as u64)?;
    let index: ImageIndex = super::parse(&bytes, &path.display().to_string())?;
    let descriptor = choose(&index, tag, reference, options)?;
    let document = (super::digest_of(descriptor)?, descriptor.size());
    super::resolve(&Layout { dir }, document, reference, options)
}

/// The names that a descriptor of a layout's index carries.
fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = descriptor.annotations().as_ref();
    [REF_NAME, IMAGE_NAME]
        .into_iter()
        .filter_map(move |key| annotations?.get(key).map(String::as_str))
}

/// The descriptor that `tag` names in a layout's index, or the only one; of several with one name that of the platform.
pub(crate) fn choose<'a>(
    index: &'a ImageIndex,
    tag: Option<&str>,
    reference: &Reference,
    options: &OpenOptions,
) -> Result<&'a Descriptor> {
    let all = index.manifests();
    let found: Vec<Descriptor>;
    let candidates = match tag {
        None => all.as_slice(),
        Some(tag) => {
            found = all
                .iter()
                .filter(|d| names(d).any(|n| n == tag))
                .cloned()
                .collect();
            found.as_slice()
        }
    };
    let mut there: Vec<&str> = all.iter().flat_map(names).collect();
    there.sort_unstable();
    there.dedup();
    let there = match there.as_slice() {
        [] => "it names none".to_owned(),
        names => format!("it has {}", names.join(", ")),
    };
    let chosen = match (candidates, tag) {
        ([], None) => return Err(Error::usage(format!("{reference} holds no image"))),
        ([], Some(tag)) => {
            return Err(Error::usage(format!(
                "{reference}: there is no image {tag:?}; {there}"
            )));
        }
        ([one], _) => one,
        (several, _) => {
            let mut tags: Vec<Option<&str>> = several.iter().map(|d| names(d).next()).collect();
            tags.dedup();
            if tags.len() > 1 {
                return Err(Error::usage(format!("{reference} holds several images; {there}"))
                    .hint("put :TAG behind the name"));
            }
            super::document::select(several, options.platform.as_ref(), &reference.to_string())?
        }
    };
    // What was chosen may be a copy: give out the one that lives as long as the index.
    all.iter()
        .find(|d| *d == chosen)
        .ok_or_else(|| Error::usage(format!("{reference} holds no image")))
}
