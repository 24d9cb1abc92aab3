//! Writing image archives.
//!
//! `oci-archive:` is one tar that is an OCI layout and also has docker's `manifest.json` naming the same blobs: `docker
//! load`, `podman load` and `skopeo copy oci-archive:` all take it. `docker-archive:` is what `docker save` wrote before
//! Docker Engine 25: layers as plain tars, with the directories that engines before 1.10 need.

use super::durable::Durable;
use super::new_image::{self, NewImage, OCI_LAYOUT};
use crate::error::{Error, Result};
use crate::progress::Stage;
use crate::store::Digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A tar on its way to its name.
struct TarFile {
    file: Durable,
}

/// A header block: owner root, time 0, no names, so that equal images are equal archives.
fn header(name: &str, kind: tar::EntryType, size: u64, link: &str) -> std::io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(match kind {
        tar::EntryType::Directory => 0o755,
        tar::EntryType::Symlink => 0o777,
        _ => 0o644,
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    if !link.is_empty() {
        header.set_link_name_literal(link)?;
    }
    header.set_cksum();
    Ok(header)
}

impl TarFile {
    fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            file: Durable::create(path)?,
        })
    }

    fn head(&mut self, name: &str, kind: tar::EntryType, size: u64, link: &str) -> Result<()> {
        let header = header(name, kind, size, link).map_err(|e| self.file.failed(e))?;
        self.file.put(header.as_bytes())
    }

    fn pad(&mut self) -> Result<()> {
        let padding = usize::try_from(crate::tar::padding(self.file.position())).unwrap_or_default();
        self.file.put([0; 512].get(..padding).unwrap_or_default())
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        self.head(name, tar::EntryType::Directory, 0, "")
    }

    fn symlink(&mut self, name: &str, to: &str) -> Result<()> {
        self.head(name, tar::EntryType::Symlink, 0, to)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.head(name, tar::EntryType::Regular, bytes.len() as u64, "")?;
        self.file.put(bytes)?;
        self.pad()
    }

    /// A member whose length is known when all of it was written.
    fn stream(&mut self, name: &str, from: &mut dyn Read) -> Result<()> {
        let at = self.file.position();
        self.head(name, tar::EntryType::Regular, 0, "")?;
        let size = self.file.copy(from)?;
        self.pad()?;
        header(name, tar::EntryType::Regular, size, "")
            .and_then(|header| self.file.file().write_all_at(header.as_bytes(), at))
            .map_err(|e| self.file.failed(e))
    }

    fn finish(mut self) -> Result<u64> {
        self.file.put(&[0; 1024])?;
        self.file.finish()
    }
}

/// The name by which engines shall know the image: as docker prints it, with a tag.
pub(crate) fn repo_tag(name: &str) -> Option<String> {
    let full = new_image::full_name(name)?;
    let tag = full.tag.as_deref().unwrap_or("latest");
    let repository = match full.registry.as_str() {
        "docker.io" => full
            .repository
            .strip_prefix("library/")
            .unwrap_or(&full.repository)
            .to_owned(),
        registry => format!("{registry}/{}", full.repository),
    };
    Some(format!("{repository}:{tag}"))
}

/// Writes an OCI archive that docker loads too.
pub(crate) fn oci(path: &Path, name: Option<&str>, image: &NewImage, stage: &dyn Stage) -> Result<u64> {
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let config = Digest::of(&image.config);
    let manifest_json = super::to_json(&super::config::sorted(json!([{
        "Config": blob(&config),
        "RepoTags": name.and_then(repo_tag).into_iter().collect::<Vec<_>>(),
        "Layers": image.layers.iter().map(|l| blob(&l.digest)).collect::<Vec<_>>(),
    }])))?;
    let mut tar = TarFile::create(path)?;
    tar.bytes("oci-layout", OCI_LAYOUT)?;
    tar.bytes(
        "index.json",
        &new_image::index(vec![new_image::index_entry(image, name)?])?,
    )?;
    tar.bytes("manifest.json", &manifest_json)?;
    tar.directory("blobs/")?;
    tar.directory("blobs/sha256/")?;
    tar.bytes(&blob(&image.digest()), &image.manifest)?;
    tar.bytes(&blob(&config), &image.config)?;
    for layer in image.blobs() {
        tar.head(&blob(&layer.digest), tar::EntryType::Regular, layer.size, "")?;
        new_image::copy_blob(layer, &mut tar.file, path)?;
        tar.pad()?;
        stage.add(layer.size);
    }
    tar.finish()
}

/// Writes a docker archive.
pub(crate) fn docker(path: &Path, name: Option<&str>, image: &NewImage, stage: &dyn Stage) -> Result<u64> {
    let tag = match name {
        Some(name) => Some(repo_tag(name).ok_or_else(|| {
            Error::usage(format!(
                "{name:?} is no name that docker knows: write REPOSITORY[:TAG]"
            ))
        })?),
        None => None,
    };
    let mut tar = TarFile::create(path)?;
    docker_members(&mut tar, tag, image, stage)?;
    tar.finish()
}

/// Writes a docker archive of an image called `tag` into `file`, which is empty and has no name, and gives it back at its
/// beginning. `shown` is what errors call it.
pub(crate) fn docker_unnamed(
    file: File,
    shown: &Path,
    tag: String,
    image: &NewImage,
    stage: &dyn Stage,
) -> Result<File> {
    let mut tar = TarFile {
        file: Durable::unnamed(file, shown),
    };
    docker_members(&mut tar, Some(tag), image, stage)?;
    tar.file.put(&[0; 1024])?;
    let mut file = tar.file.into_file();
    file.rewind()
        .map_err(|e| Error::io(format!("reading what was written for {}", shown.display()), e))?;
    Ok(file)
}

fn docker_members(tar: &mut TarFile, tag: Option<String>, image: &NewImage, stage: &dyn Stage) -> Result<()> {
    let config = Digest::of(&image.config);
    let file = |diff_id: &Digest| format!("{}.tar", diff_id.hex());
    let mut seen = std::collections::BTreeSet::new();
    let mut parent: Option<String> = None;
    for (i, layer) in image.layers.iter().enumerate() {
        let layer_file = file(&layer.diff_id);
        if seen.insert(layer.diff_id) {
            plain_layer(tar, &layer_file, layer, stage)?;
        }
        // What an engine before 1.10 reads: a chain of images of one layer each.
        let id = legacy_id(
            parent.as_deref(),
            &layer.diff_id,
            (i + 1 == image.layers.len()).then_some(&config),
        );
        let mut json = BTreeMap::from([
            ("id", Value::from(id.as_str())),
            ("created", json!("1970-01-01T00:00:00Z")),
        ]);
        if let Some(parent) = &parent {
            json.insert("parent", Value::from(parent.as_str()));
        }
        if i + 1 == image.layers.len() {
            let document: Value = super::parse(&image.config, "the config")?;
            for key in ["architecture", "os", "config"] {
                if let Some(value) = document.get(key) {
                    json.insert(key, super::config::sorted(value.clone()));
                }
            }
        }
        tar.directory(&format!("{id}/"))?;
        tar.bytes(&format!("{id}/VERSION"), b"1.0")?;
        tar.bytes(&format!("{id}/json"), &super::to_json(&json)?)?;
        tar.symlink(&format!("{id}/layer.tar"), &format!("../{layer_file}"))?;
        parent = Some(id);
    }
    let config_file = format!("{}.json", config.hex());
    tar.bytes(&config_file, &image.config)?;
    let repositories = match (&tag, &parent) {
        (Some(tag), Some(top)) => {
            let (repository, tag) = tag.rsplit_once(':').unwrap_or((tag, "latest"));
            json!({ repository: { tag: top } })
        }
        _ => json!({}),
    };
    tar.bytes("repositories", &super::to_json(&repositories)?)?;
    let manifest = super::config::sorted(json!([{
        "Config": config_file,
        "RepoTags": tag.into_iter().collect::<Vec<_>>(),
        "Layers": image.layers.iter().map(|l| file(&l.diff_id)).collect::<Vec<_>>(),
    }]));
    tar.bytes("manifest.json", &super::to_json(&manifest)?)
}

/// Appends a layer as a plain tar; blob digest and diffID are checked.
fn plain_layer(tar: &mut TarFile, name: &str, layer: &super::Layer, stage: &dyn Stage) -> Result<()> {
    let what = format!("layer {}", layer.digest);
    let mut blob = layer.open()?;
    let mut plain = super::layer::Unpacked::new(&mut blob, layer.size, stage, &what)?;
    let result = tar.stream(name, &mut plain);
    let diff_id = plain.digest();
    drop(plain);
    blob.finish()?;
    result?;
    if diff_id != layer.diff_id {
        return Err(Error::corrupt(
            format!(
                "{what}: unpacked it has the digest {diff_id}, the config says {}",
                layer.diff_id
            ),
            0,
        ));
    }
    Ok(())
}

/// The ID of a layer for engines before 1.10: they only need it to be the same for the same chain of layers, and another
/// for another config.
fn legacy_id(parent: Option<&str>, diff_id: &Digest, config: Option<&Digest>) -> String {
    let config = config.map(Digest::to_string).unwrap_or_default();
    Digest::of(format!("{} {diff_id} {config}", parent.unwrap_or_default()).as_bytes()).hex()
}
