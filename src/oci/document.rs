//! Manifests and indexes as documents: bounded, told apart by their shape, searched for a platform.

use super::{MAX_DOCUMENT, Platform, media_type};
use crate::digest::Digest;
use crate::error::{Error, Result};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

/// Parses a JSON document; `what` is for messages.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::corrupt(format!("{what}: {e}"), 0))
}

/// A value as JSON on one line.
pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::io("making a JSON document", e.into()))
}

/// `Ok` if a document of this size may be read.
pub(crate) fn check_document_size(what: &str, size: u64) -> Result<()> {
    if size > MAX_DOCUMENT {
        return Err(Error::unsupported(format!(
            "{what} of {size} bytes where at most {MAX_DOCUMENT} make sense"
        )));
    }
    Ok(())
}

/// The digest of a descriptor.
pub(crate) fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    Digest::parse(descriptor.digest().as_ref())
}

/// What sort of document this is, by its fields: media types are often missing or wrong.
pub(crate) enum Document {
    Manifest(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

/// Parses a manifest or an index (OCI or docker schema 2).
pub(crate) fn document(bytes: &[u8], what: &str) -> Result<Document> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        schema_version: u32,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        artifact_type: Option<String>,
    }
    let shape: Shape = parse(bytes, what)?;
    match shape {
        Shape {
            schema_version: 1, ..
        } => Err(Error::unsupported(format!(
            "{what}: docker's image manifest schema 1"
        ))),
        // A document that is both could be read in two ways (OCI image-spec, GHSA-77vh-xpmg-72qh).
        Shape {
            manifests: Some(_),
            layers: Some(_),
            ..
        } => Err(Error::corrupt(
            format!("{what}: it is a manifest and an index at once"),
            0,
        )),
        Shape {
            manifests: Some(_), ..
        } => parse(bytes, what).map(|index| Document::Index(Box::new(index))),
        Shape {
            layers: Some(_),
            artifact_type: None,
            ..
        } => parse(bytes, what).map(|manifest| Document::Manifest(Box::new(manifest))),
        _ => Err(Error::unsupported(format!(
            "{what}: a document that is no image manifest"
        ))),
    }
}

/// The manifest of an index that is for `wanted`, or for this machine.
///
/// # Errors
/// [`Error::Unsupported`] that lists the platforms there are.
pub(crate) fn select<'a>(
    manifests: &'a [Descriptor],
    wanted: Option<&Platform>,
    what: &str,
) -> Result<&'a Descriptor> {
    let is_image = |d: &&Descriptor| {
        // Attestations of docker buildx carry the platform unknown/unknown.
        let attestation = d
            .annotations()
            .as_ref()
            .is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
        let unknown = d
            .platform()
            .as_ref()
            .is_some_and(|p| p.os().to_string() == "unknown");
        !attestation && !unknown
    };
    let images: Vec<&Descriptor> = manifests.iter().filter(is_image).collect();
    if let ([only], None) = (images.as_slice(), wanted) {
        return Ok(only);
    }
    let host = Platform::host();
    let wanted = wanted.unwrap_or(&host);
    // The smaller the better: the variant asked for, none, the one that every machine of the architecture has, any other.
    let rank = |d: &Descriptor| -> Option<(u8, String)> {
        let Some(platform) = d.platform() else {
            return Some((4, String::new()));
        };
        if platform.os().to_string() != "linux" || platform.architecture().to_string() != wanted.architecture
        {
            return None;
        }
        let variant = platform.variant().clone();
        let rank = match (&variant, &wanted.variant) {
            (a, b) if a == b => 0,
            (None, _) => 1,
            (Some(v), None) if v == "v8" || v == "v1" => 2,
            (Some(a), Some(b)) if a > b => return None,
            _ => 3,
        };
        Some((rank, variant.unwrap_or_default()))
    };
    let found = images.iter().filter_map(|d| Some((rank(d)?, *d)));
    // Of several arm variants below the one asked for the highest is the best.
    let found = found.min_by(|(a, _), (b, _)| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
    found.map(|(_, d)| d).ok_or_else(|| {
        let there = images.iter().filter_map(|d| d.platform().as_ref()).map(|p| {
            let variant = p.variant().as_ref().map(|v| format!("/{v}")).unwrap_or_default();
            format!("{}/{}{variant}", p.os(), p.architecture())
        });
        let there: Vec<String> = there.collect();
        Error::unsupported(format!(
            "{what} has no image for {wanted}; it has {}",
            if there.is_empty() {
                "none at all".to_owned()
            } else {
                there.join(", ")
            }
        ))
    })
}

/// `Ok` if a layer has a media type that is read here and lies where the image lies.
pub(crate) fn check_layer_type(image: &str, descriptor: &Descriptor) -> Result<()> {
    let stated = descriptor.media_type().to_string();
    let foreign = stated.contains("nondistributable") || stated.contains(".foreign.");
    if foreign || descriptor.urls().as_ref().is_some_and(|u| !u.is_empty()) {
        return Err(Error::refused(format!(
            "{image}: layer {} is to be fetched from a foreign address",
            descriptor.digest()
        )));
    }
    layer_type(&stated)
        .map(|_| ())
        .ok_or_else(|| Error::unsupported(format!("{image}: a layer of media type {stated:?}")))
}

/// The OCI media type for a layer's media type: docker's are the same bytes under another name.
pub(crate) fn layer_type(stated: &str) -> Option<&'static str> {
    Some(match stated {
        media_type::LAYER | "application/vnd.docker.image.rootfs.diff.tar" => media_type::LAYER,
        media_type::LAYER_GZIP | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            media_type::LAYER_GZIP
        }
        media_type::LAYER_ZSTD | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            media_type::LAYER_ZSTD
        }
        _ => return None,
    })
}
