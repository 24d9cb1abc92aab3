//! Reading image archives: an OCI layout in a tar, and what `docker save` writes. The tar is read where it lies, by
//! offset; one that is compressed as a whole is unpacked into a temporary file first.

use super::layout::{self, read_document};
use super::{BlobSource, Blobs, Image, Layer, OpenOptions, Reference, media_type};
use crate::error::{Error, Result};
use crate::read_at::{HostFile, ReadAt, read_vec};
use crate::store::{Digest, Store};
use crate::tar::{Input, Reader, Type};
use oci_spec::image::{ImageConfiguration, ImageIndex};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// The most members of an archive.
const MAX_MEMBERS: usize = 100_000;
/// How many links of an archive are followed from one name.
const MAX_HOPS: usize = 8;
/// The most bytes a compressed archive may unpack to, for each of its bytes.
const MAX_RATIO: u64 = 1_100;

/// What a name in the archive stands for.
enum Member {
    /// Bytes at an offset, and how many.
    File(u64, u64),
    /// Another name, relative to the directory of this one.
    Symlink(String),
    /// Another name from the top.
    Link(String),
}

/// A tar whose members are known by name.
pub(crate) struct Archive {
    file: Arc<dyn ReadAt>,
    name: String,
    members: HashMap<String, Member>,
}

/// A `ReadAt` as the input of the tar reader: what is skipped is not read.
struct FileInput<'a> {
    file: &'a dyn ReadAt,
    at: u64,
}

impl Read for FileInput<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.file.len().saturating_sub(self.at);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..n).unwrap_or_default();
        self.file.read_at(self.at, part).map_err(Error::into_io)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Input for FileInput<'_> {
    fn skip(&mut self, n: u64) -> std::io::Result<()> {
        match self.at.checked_add(n) {
            Some(at) if at <= self.file.len() => {
                self.at = at;
                Ok(())
            }
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// `name` without `./`, `/` at the front, `.` and empty parts; `None` if it leaves the archive.
fn clean(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl Archive {
    /// Opens `path` and lists its members. A member that stands in it twice counts as the later one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`] for a broken tar.
    pub(crate) fn open(path: &Path, store: &Store) -> Result<Self> {
        let host = HostFile::open(path)?;
        let name = path.display().to_string();
        let mut magic = [0; 4];
        if host.len() >= 4 {
            host.read_at(0, &mut magic)?;
        }
        let compressed = matches!(magic, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]);
        let file: Arc<dyn ReadAt> = match compressed {
            true => Arc::new(unpacked(&host, &name, store)?),
            false => Arc::new(host),
        };
        Self::list(file, name)
    }

    /// As [`Archive::open`], of a plain tar.
    pub(crate) fn list(file: Arc<dyn ReadAt>, name: String) -> Result<Self> {
        let mut members = HashMap::new();
        let mut reader = Reader::new(FileInput { file: &*file, at: 0 }, name.as_str());
        while let Some(entry) = reader.next()? {
            let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
            let Some(path) = utf8(entry.path).and_then(|p| clean(&p)) else {
                continue;
            };
            let member = match entry.kind {
                Type::File if entry.sparse.is_none() => Member::File(entry.offset, entry.stored),
                Type::Symlink => Member::Symlink(utf8(entry.link).unwrap_or_default()),
                Type::Link => Member::Link(utf8(entry.link).unwrap_or_default()),
                _ => continue,
            };
            members.insert(path, member);
            if members.len() > MAX_MEMBERS {
                return Err(Error::unsupported(format!(
                    "{name}: more members than any image archive has"
                )));
            }
        }
        drop(reader);
        Ok(Self { file, name, members })
    }

    /// Offset and length of the member `name`, links followed inside the archive.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean(name)?;
        for _ in 0..MAX_HOPS {
            name = match self.members.get(&name)? {
                Member::File(offset, len) => return Some((*offset, *len)),
                Member::Link(to) => clean(to)?,
                Member::Symlink(to) => {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    clean(&format!("{dir}/{to}"))?
                }
            };
        }
        None
    }

    fn need(&self, name: &str) -> Result<(u64, u64)> {
        self.find(name)
            .ok_or_else(|| Error::corrupt(format!("{}: {name:?} is missing", self.name), 0))
    }

    /// A small member as a whole.
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (offset, len) = self.need(name)?;
        super::check_document_size(name, len)?;
        read_vec(&*self.file, offset, usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn part(&self, offset: u64, len: u64) -> super::Part {
        super::Part {
            file: Arc::clone(&self.file),
            at: offset,
            end: offset.saturating_add(len),
        }
    }
}

/// The plain bytes of a compressed archive, in a temporary file of the store.
fn unpacked(host: &HostFile, name: &str, store: &Store) -> Result<HostFile> {
    let from = BufReader::with_capacity(256 << 10, FileInput { file: host, at: 0 });
    let limit = host.len().saturating_mul(MAX_RATIO).max(1 << 30);
    let mut plain = super::layer::decoder(from, name)?.take(limit + 1);
    let file = store.temporary()?;
    let mut copy = super::sparse::SparseWriter::new(&file);
    let mut buf = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        let n = match plain.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::corrupt(format!("{name}: unpacking it failed: {e}"), total)),
        };
        total += n as u64;
        let part = buf.get(..n).unwrap_or_default();
        copy.write(part).map_err(|e| store.write_failed(e))?;
    }
    if total > limit {
        return Err(Error::unsupported(format!(
            "{name}: it unpacks to more than any archive of its size"
        )));
    }
    copy.finish().map_err(|e| store.write_failed(e))?;
    HostFile::from_file(file, name.to_owned())
}

impl Blobs for Archive {
    fn document(&self, _kind: super::Kind, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        let (offset, len) = self.need(&format!("blobs/sha256/{}", digest.hex()))?;
        read_document(self.part(offset, len), digest, size)
    }

    fn source(&self, digest: &Digest) -> Result<BlobSource> {
        let (offset, _) = self.need(&format!("blobs/sha256/{}", digest.hex()))?;
        Ok(BlobSource::Part(Arc::clone(&self.file), offset))
    }
}

/// Opens the image `name` of an OCI archive, or its only one.
pub(crate) fn open_oci(
    reference: &Reference,
    file: &Path,
    name: Option<&str>,
    options: &OpenOptions,
) -> Result<Image> {
    let archive = Archive::open(file, &options.store)?;
    if archive.find("index.json").is_none() && archive.find("manifest.json").is_some() {
        return Err(Error::unsupported(format!("{} is no OCI archive", archive.name))
            .hint("name it as docker-archive:"));
    }
    let index: ImageIndex = super::parse(&archive.read("index.json")?, "index.json")?;
    let descriptor = layout::choose(&index, name, reference, options)?;
    let document = (super::digest_of(descriptor)?, descriptor.size());
    super::resolve(&archive, document, reference, options)
}

/// An element of docker's `manifest.json`.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Opens the image `name` of a docker archive, or its only one.
pub(crate) fn open_docker(
    reference: &Reference,
    file: &Path,
    name: Option<&str>,
    options: &OpenOptions,
) -> Result<Image> {
    docker_image(&Archive::open(file, &options.store)?, reference, name, options)
}

/// The image `name` of an archive that `docker save` wrote, or its only one.
pub(crate) fn docker_image(
    archive: &Archive,
    reference: &Reference,
    name: Option<&str>,
    options: &OpenOptions,
) -> Result<Image> {
    let saved: Vec<Saved> = super::parse(&archive.read("manifest.json")?, "manifest.json")?;
    let saved = choose(&saved, name, reference)?;
    let config_bytes = archive.read(&saved.config)?;
    let config: ImageConfiguration = super::parse(&config_bytes, &format!("the config of {reference}"))?;
    let diff_ids = config.rootfs().diff_ids();
    let names = saved.layers.as_deref().unwrap_or_default();
    if names.len() != diff_ids.len() || names.len() > super::MAX_LAYERS {
        return Err(Error::corrupt(
            format!(
                "{reference}: manifest.json has {} layers, the config {}; at most {} are read",
                names.len(),
                diff_ids.len(),
                super::MAX_LAYERS
            ),
            0,
        ));
    }
    let mut known: BTreeMap<u64, (Digest, &'static str)> = BTreeMap::new();
    let mut layers = Vec::with_capacity(names.len());
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let diff_id = Digest::parse(diff_id)?;
        let (offset, size) = archive.need(name)?;
        let (digest, media_type) = match known.get(&offset) {
            Some(known) => *known,
            None => identify(archive, name, offset, size, &diff_id)?,
        };
        known.insert(offset, (digest, media_type));
        layers.push(Layer {
            digest,
            size,
            media_type: media_type.to_owned(),
            diff_id,
            annotations: BTreeMap::new(),
            source: BlobSource::Part(Arc::clone(&archive.file), offset),
        });
    }
    let manifest = super::new_image::manifest(&config_bytes, &layers)?;
    let image = Image {
        reference: reference.clone(),
        manifest_digest: Digest::of(&manifest),
        manifest,
        config_digest: Digest::of(&config_bytes),
        config_bytes,
        config,
        layers,
    };
    super::check_platform(&image, options.platform.as_ref())?;
    Ok(image)
}

/// Digest and media type of a layer of a docker archive, which states neither. That of a plain tar is its diffID; of a
/// compressed one it is in the name or must be computed. Either way it is checked when the layer is read.
fn identify(
    archive: &Archive,
    name: &str,
    offset: u64,
    size: u64,
    diff_id: &Digest,
) -> Result<(Digest, &'static str)> {
    let start = read_vec(&*archive.file, offset, usize::try_from(size.min(4)).unwrap_or(4))?;
    let media_type = match start.as_slice() {
        [0x1f, 0x8b, ..] => media_type::LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => media_type::LAYER_ZSTD,
        _ => return Ok((*diff_id, media_type::LAYER)),
    };
    if let Some(hex) = name.strip_prefix("blobs/sha256/") {
        return Ok((Digest::parse(&format!("sha256:{hex}"))?, media_type));
    }
    let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
    let mut part = archive.part(offset, size);
    std::io::copy(&mut part, &mut HashTo(&mut hasher))
        .map_err(|e| Error::from_io(format!("reading {}", archive.name), e))?;
    Ok((Digest::from_hasher(hasher), media_type))
}

struct HashTo<'a>(&'a mut sha2::Sha256);

impl std::io::Write for HashTo<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        sha2::Digest::update(self.0, buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The image that carries the tag `name`, or the only one.
fn choose<'a>(saved: &'a [Saved], name: Option<&str>, reference: &Reference) -> Result<&'a Saved> {
    let tags = |s: &'a Saved| s.repo_tags.as_deref().unwrap_or_default();
    let there = saved
        .iter()
        .flat_map(tags)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    let full = |tag: &str| super::RegistryName::parse(tag).map(|n| n.to_string()).ok();
    match (saved, name) {
        ([one], None) => Ok(one),
        (_, Some(name)) => saved
            .iter()
            .find(|s| {
                tags(s)
                    .iter()
                    .any(|t| t == name || (full(t).is_some() && full(t) == full(name)))
            })
            .ok_or_else(|| Error::usage(format!("{reference}: there is no image {name:?}; it has {there}"))),
        ([], None) => Err(Error::usage(format!("{reference} holds no image"))),
        (_, None) => Err(Error::usage(format!("{reference} holds several images: {there}"))
            .hint("put :REF behind the name")),
    }
}
