//! Writing images: every kind of output, and layouts. `write_archive.rs` writes the archives.

use super::durable::{Durable, parent, sync_dir};
use super::layout::REF_NAME;
use super::new_image::{NewImage, OCI_LAYOUT, copy_blob, index, index_entry};
use super::{Layer, Output};
use crate::error::{Error, Result};
use crate::progress::{Progress, Stage};
use crate::scratch::{self, Scratch};
use crate::store::Digest;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file or directory; in an engine the name.
    pub path: PathBuf,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the config: the image ID of engines.
    pub config: Digest,
    /// Bytes that were written or linked for it.
    pub bytes: u64,
}

/// Writes `image` to `output`, whole or not at all: when this returns an error or the process ends early, nothing is at
/// the output's name that was not there before, and an existing layout has its old images.
///
/// # Errors
/// [`Error::Io`] naming the output, [`Error::Corrupt`] if a blob is not what its descriptor says,
/// [`Error::Unsupported`] for registries, [`Error::Network`] if an engine does not answer, [`Error::Usage`] for names that cannot be.
pub fn write(output: &Output, image: &NewImage, progress: &dyn Progress) -> Result<Written> {
    super::fetch(image.blobs(), progress)?;
    let total: u64 = image.blobs().map(|l| l.size).sum();
    let stage = progress.stage(&format!("writing {output}"), Some(total));
    let (path, bytes) = match output {
        Output::Layout { dir, tag } => (dir.as_path(), layout(dir, tag.as_deref(), image, &*stage)?),
        Output::OciArchive { file, name } => (
            file.as_path(),
            super::write_archive::oci(file, name.as_deref(), image, &*stage)?,
        ),
        Output::DockerArchive { file, name } => (
            file.as_path(),
            super::write_archive::docker(file, name.as_deref(), image, &*stage)?,
        ),
        Output::DockerDaemon(name) => (
            Path::new(name),
            super::daemon::write(name, image, progress, &*stage)?,
        ),
        Output::Registry(_) => {
            return Err(Error::unsupported(format!(
                "writing to {output} is not supported yet"
            )));
        }
    };
    Ok(Written {
        path: path.to_owned(),
        manifest: image.digest(),
        config: Digest::of(&image.config),
        bytes,
    })
}

/// Finds out whether `output` can be written at all, before the work that leads to it begins. Nothing stays of it.
///
/// # Errors
/// As [`write`].
pub fn check(output: &Output) -> Result<()> {
    let target = match output {
        Output::Layout { dir, .. } if dir.is_dir() => dir.join("index.json"),
        Output::Layout { dir: path, .. }
        | Output::OciArchive { file: path, .. }
        | Output::DockerArchive { file: path, .. } => path.clone(),
        Output::DockerDaemon(_) => return super::daemon::Daemon::connect().map(drop),
        Output::Registry(_) => return Ok(()),
    };
    Durable::create(&target).map(drop)
}

/// Writes a layout, or adds to one.
fn layout(dir: &Path, tag: Option<&str>, image: &NewImage, stage: &dyn Stage) -> Result<u64> {
    if dir.file_name().is_none() && !dir.exists() {
        return Err(Error::usage(format!("{} cannot be made", dir.display())));
    }
    if !dir.exists() {
        // A new layout is made beside its name, so that it appears whole.
        scratch::remove_leftovers(dir);
        let fresh = Scratch::beside(dir);
        let failed = |e| Error::io(format!("writing {}", dir.display()), e);
        std::fs::create_dir(fresh.path()).map_err(failed)?;
        let bytes = add(fresh.path(), dir, tag, image, stage)?;
        match std::fs::rename(fresh.path(), dir) {
            Ok(()) => {
                fresh.keep();
                sync_dir(&parent(dir))?;
                return Ok(bytes);
            }
            // Somebody else made it meanwhile: add to theirs.
            Err(_) if dir.is_dir() => {}
            Err(e) => return Err(failed(e)),
        }
    }
    add(dir, dir, tag, image, stage)
}

/// Adds `image` to the layout in `dir`, which exists; `shown` is its name in messages. One writer at a time: the
/// directory is locked, so that no tag gets lost and no blob is removed that another writer relies on.
fn add(dir: &Path, shown: &Path, tag: Option<&str>, image: &NewImage, stage: &dyn Stage) -> Result<u64> {
    let failed = |e: std::io::Error| Error::io(format!("writing {}", shown.display()), e);
    let lock = File::open(dir).map_err(failed)?;
    // A filesystem that knows no locks is used without.
    let _ = rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive);
    let mut manifests = existing(dir, shown)?;
    let blobs = dir.join("blobs/sha256");
    let mut made = Vec::new();
    if !blobs.is_dir() {
        made.push(Scratch::new(dir.join("blobs")));
        std::fs::create_dir_all(&blobs).map_err(failed)?;
    }
    let mut bytes = 0;
    let mut files = Vec::new();
    for layer in image.blobs() {
        let path = blobs.join(layer.digest.hex());
        if !is_whole(&path, &layer.digest, layer.size) {
            made.extend((!path.exists()).then(|| Scratch::new(&path)));
            files.push(put_blob(layer, &path, shown)?);
        }
        bytes += layer.size;
        stage.add(layer.size);
    }
    for document in [&image.config, &image.manifest] {
        let digest = Digest::of(document);
        let path = blobs.join(digest.hex());
        if !is_whole(&path, &digest, document.len() as u64) {
            made.extend((!path.exists()).then(|| Scratch::new(&path)));
            files.push(put_document(document, &path)?);
        }
        bytes += document.len() as u64;
    }
    let layout_file = dir.join("oci-layout");
    if !layout_file.is_file() {
        made.push(Scratch::new(&layout_file));
        files.push(put_document(OCI_LAYOUT, &layout_file)?);
    }
    Durable::finish_all(files)?;
    sync_dir(&blobs)?;
    sync_dir(&dir.join("blobs"))?;
    // An entry of the same name, or of no name if this has none, is replaced.
    manifests.retain(|entry| {
        let name = entry.pointer("/annotations").and_then(|a| a.get(REF_NAME));
        name.and_then(Value::as_str) != tag
    });
    manifests.push(index_entry(image, tag)?);
    let mut index_file = Durable::create(&dir.join("index.json"))?;
    index_file.put(&index(manifests)?)?;
    index_file.finish()?;
    made.into_iter().for_each(Scratch::keep);
    Ok(bytes)
}

/// The manifests of the layout in `dir`; none if it is empty.
fn existing(dir: &Path, shown: &Path) -> Result<Vec<Value>> {
    let path = dir.join("index.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let foreign = std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.file_name())
                .find(|n| n != "blobs" && n != "oci-layout" && !n.as_encoded_bytes().starts_with(b"."));
            return match foreign {
                None => Ok(Vec::new()),
                Some(name) => Err(Error::usage(format!(
                    "{} is no image layout: it has {}",
                    shown.display(),
                    name.display()
                ))),
            };
        }
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    #[derive(serde::Deserialize)]
    struct Index {
        manifests: Vec<Value>,
    }
    let index: Index = super::parse(&bytes, &path.display().to_string())?;
    Ok(index.manifests)
}

/// True if `path` is a file with these bytes.
fn is_whole(path: &Path, digest: &Digest, size: u64) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.len() == size)
        && File::open(path)
            .is_ok_and(|file| crate::store::Verified::new(file, *digest, size).finish().is_ok())
}

fn put_document(bytes: &[u8], path: &Path) -> Result<Durable> {
    let mut file = Durable::create(path)?;
    file.put(bytes)?;
    Ok(file)
}

/// A layer's blob for `path`: a hard link to the store's where that is possible, else a copy.
fn put_blob(layer: &Layer, path: &Path, shown: &Path) -> Result<Durable> {
    if let Some(store) = layer.store()
        && store.verify(&layer.digest, layer.size)
        && let Some(link) = Durable::link(&store.blob_path(&layer.digest), path)
    {
        return Ok(link);
    }
    let mut file = Durable::create(path)?;
    copy_blob(layer, &mut file, shown)?;
    Ok(file)
}
