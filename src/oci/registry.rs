//! Reading images from registries (OCI distribution-spec 1.1, "Pull"; docker registry HTTP API v2).
//!
//! Nothing that a registry sends is believed before its digest is right; `http.rs` speaks with it. The functions of this module are synchronous: they run a small runtime of their own and must not be called from
//! inside another.

use super::http::{BACKOFF, Http, TRIES, WINDOW, limited, lock};
use super::{BlobSource, Blobs, Image, Kind, MAX_DOCUMENT, OpenOptions, Reference, RegistryName};
use crate::digest::{Digest, mismatch};
use crate::error::{Error, Result};
use crate::progress::Stage;
use crate::store::{BlobWriter, Store};
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::runtime::Runtime;

/// Within [`WINDOW`] at least so many bytes of a blob must arrive.
const TRICKLE: u64 = 32 << 10;
/// A transfer got on if a try brought so many bytes.
const PROGRESS: u64 = 1 << 20;
/// Blobs that are fetched at once.
const PARALLEL: usize = 3;
/// The kind of the cache that remembers which digest a tag had.
const TAGS: &str = "registry-tag-1";

/// What is asked for when a manifest is.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A repository of a registry.
pub struct Remote {
    name: RegistryName,
    store: Arc<Store>,
    offline: bool,
    runtime: Mutex<Runtime>,
    http: Http,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.name)
    }
}

/// Opens an image of a registry.
pub(crate) fn open(reference: &Reference, name: &RegistryName, options: &OpenOptions) -> Result<Image> {
    let remote = Arc::new(Remote::new(name, options)?);
    let document = remote.manifest()?;
    super::resolve(&remote, document, reference, options)
}

impl Blobs for Arc<Remote> {
    fn document(&self, kind: Kind, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        if let Some(bytes) = self.store.read_blob(digest, MAX_DOCUMENT) {
            if bytes.len() as u64 == size {
                return Ok(bytes);
            }
            return Err(mismatch(digest, size, digest, bytes.len() as u64));
        }
        match kind {
            Kind::Manifest => {
                let bytes = self.run(self.get_manifest(&digest.to_string(), Some(digest)))?;
                if bytes.len() as u64 != size {
                    return Err(mismatch(digest, size, digest, bytes.len() as u64));
                }
                self.store.put(&bytes)?;
                Ok(bytes)
            }
            Kind::Config => {
                self.fetch(digest, size, &crate::progress::Silent)?;
                let missing = || Error::corrupt(format!("blob {digest} was damaged in the store"), 0);
                self.store.read_blob(digest, MAX_DOCUMENT).ok_or_else(missing)
            }
        }
    }

    fn source(&self, _digest: &Digest) -> Result<BlobSource> {
        Ok(BlobSource::Registry(Self::clone(self)))
    }
}

impl Remote {
    fn new(name: &RegistryName, options: &OpenOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting the network runtime", e))?;
        Ok(Self {
            name: name.clone(),
            store: Arc::clone(&options.store),
            offline: options.offline,
            runtime: Mutex::new(runtime),
            http: Http::new(name, options)?,
        })
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &RegistryName {
        &self.name
    }

    /// The store its blobs go to.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.offline {
            return Err(self.not_here());
        }
        lock(&self.runtime).block_on(work)
    }

    fn not_here(&self) -> Error {
        Error::Network {
            what: format!(
                "{} is not wholly in the store, and --offline forbids to fetch it",
                self.name
            ),
            source: None,
        }
        .hint("run once without --offline, or name a copy on this machine as oci:DIR or oci-archive:FILE")
    }

    /// Digest and size of the manifest (or index) that the name stands for; its bytes are in the store.
    fn manifest(&self) -> Result<(Digest, u64)> {
        let key = format!(
            "{}/{}:{}",
            self.name.registry,
            self.name.repository,
            self.name.tag.as_deref().unwrap_or("latest")
        );
        let known = self.name.digest.or_else(|| {
            let cached = self.store.cache_get(TAGS, &key).filter(|_| self.offline)?;
            Digest::parse(std::str::from_utf8(&cached).ok()?).ok()
        });
        if let Some(digest) = known
            && let Some(bytes) = self.store.read_blob(&digest, MAX_DOCUMENT)
        {
            return Ok((digest, bytes.len() as u64));
        }
        let tag = match &self.name.digest {
            Some(digest) => digest.to_string(),
            None => self.name.tag.clone().unwrap_or_else(|| "latest".to_owned()),
        };
        let bytes = self.run(self.get_manifest(&tag, self.name.digest.as_ref()))?;
        let digest = self.store.put(&bytes)?;
        if self.name.digest.is_none() {
            self.store.cache_put(TAGS, &key, digest.to_string().as_bytes())?;
        }
        Ok((digest, bytes.len() as u64))
    }

    /// Puts a blob into the store, unless it is there with this size.
    ///
    /// # Errors
    /// [`Error::Network`] if it cannot be had, [`Error::Corrupt`] if what comes is not what its descriptor says.
    pub(crate) fn fetch(&self, digest: &Digest, size: u64, stage: &dyn Stage) -> Result<()> {
        self.fetch_all(&[(*digest, size)], stage)
    }

    /// [`Remote::fetch`] for several blobs, some at once.
    pub(crate) fn fetch_all(&self, blobs: &[(Digest, u64)], stage: &dyn Stage) -> Result<()> {
        let missing = |(digest, size): &(Digest, u64)| {
            let there = self.store.blob_path(digest).metadata();
            !there.is_ok_and(|m| m.is_file() && m.len() == *size)
        };
        let mut todo: Vec<(Digest, u64)> = blobs.iter().filter(|b| missing(b)).copied().collect();
        todo.reverse();
        if todo.is_empty() {
            return Ok(());
        }
        let todo = Mutex::new(todo);
        let worker = async || -> Result<()> {
            loop {
                let next = lock(&todo).pop();
                let Some((digest, size)) = next.filter(missing) else {
                    if next.is_none() {
                        return Ok(());
                    }
                    continue;
                };
                let mut writer = self.store.writer()?;
                let result = self.get_blob(&digest, size, &mut writer, stage).await;
                if let Err(e) = result {
                    lock(&todo).clear();
                    return Err(e);
                }
                writer.finish_as(&digest, size)?;
            }
        };
        const { assert!(PARALLEL == 3) };
        self.run(async {
            let (a, b, c) = tokio::join!(worker(), worker(), worker());
            a.and(b).and(c)
        })
    }

    /// A manifest or index, by tag or digest.
    async fn get_manifest(&self, tag: &str, digest: Option<&Digest>) -> Result<Vec<u8>> {
        let what = "reading the manifest";
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        let mut wait = BACKOFF;
        for tries in 1.. {
            let answer = self
                .http
                .get(what, &format!("manifests/{tag}"), headers.clone())
                .await?;
            let stated = answer
                .headers()
                .get("docker-content-digest")
                .and_then(|v| v.to_str().ok());
            let stated = stated.and_then(|d| Digest::parse(d).ok());
            let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
            match limited(answer, limit.saturating_add(1)).await {
                Ok(body) if body.len() > limit => {
                    return Err(Error::unsupported(format!(
                        "{}: a manifest of more than {MAX_DOCUMENT} bytes",
                        self.name
                    )));
                }
                Ok(body) => {
                    let found = Digest::of(&body);
                    let wanted = digest.copied().or(stated).unwrap_or(found);
                    if wanted == found {
                        return Ok(body);
                    }
                    // Once is a broken transfer, twice is the registry.
                    if tries > 1 {
                        return Err(Error::corrupt(
                            format!(
                                "the manifest of {}: its digest is {found}, not {wanted}",
                                self.name
                            ),
                            0,
                        ));
                    }
                }
                Err(e) if tries >= TRIES => return Err(self.http.network(what, e)),
                Err(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Err(self.not_here())
    }

    /// A blob into `writer`, resumed where it was cut.
    async fn get_blob(
        &self,
        digest: &Digest,
        size: u64,
        writer: &mut BlobWriter<'_>,
        stage: &dyn Stage,
    ) -> Result<()> {
        let what = format!("fetching blob {digest}");
        let mut tries = 0;
        let mut wrong = 0;
        let mut told = 0;
        let mut wait = BACKOFF;
        loop {
            let before = writer.size();
            let cut = self
                .get_part(&what, digest, size, writer, &mut told, stage)
                .await?;
            if writer.size() == size && writer.digest() == *digest {
                return Ok(());
            }
            let error = match cut {
                // The connection did what it should: the bytes are wrong, or too many, or too few.
                None => {
                    wrong += 1;
                    let error = mismatch(digest, size, &writer.digest(), writer.size());
                    writer.restart()?;
                    if wrong > 1 {
                        return Err(error);
                    }
                    error
                }
                Some(error) => error,
            };
            if writer.size() >= before.saturating_add(PROGRESS) {
                (tries, wait) = (0, BACKOFF);
            }
            tries += 1;
            if tries >= TRIES {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// One try of a transfer from where `writer` stands. `Some` is why it was cut; `None` means the server said the end.
    async fn get_part(
        &self,
        what: &str,
        digest: &Digest,
        size: u64,
        writer: &mut BlobWriter<'_>,
        told: &mut u64,
        stage: &dyn Stage,
    ) -> Result<Option<Error>> {
        let start = writer.size();
        if start > 0 && start == size {
            writer.restart()?;
        }
        let start = writer.size();
        let mut headers = HeaderMap::new();
        if start > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={start}-"))
        {
            headers.insert(RANGE, range);
        }
        let mut answer = self.http.get(what, &format!("blobs/{digest}"), headers).await?;
        if start > 0 {
            let range = answer.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
            let resumes = answer.status() == StatusCode::PARTIAL_CONTENT
                && range.is_some_and(|r| r.starts_with(&format!("bytes {start}-")));
            if !resumes {
                writer.restart()?;
            }
            if !resumes && answer.status() == StatusCode::PARTIAL_CONTENT {
                return Ok(Some(Error::Network {
                    what: format!(
                        "{what} of {}: the registry sent another part than was asked for",
                        self.name
                    ),
                    source: None,
                }));
            }
        }
        let mut window = (Instant::now(), 0u64);
        loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(None),
                Err(e) => return Ok(Some(self.http.network(what, e))),
            };
            if writer.size().saturating_add(chunk.len() as u64) > size {
                // More than the descriptor says: whatever it is, it is not the blob.
                writer.write_all(&chunk).map_err(|e| writer.failed(e))?;
                return Ok(None);
            }
            writer.write_all(&chunk).map_err(|e| writer.failed(e))?;
            if writer.size() > *told {
                stage.add(writer.size() - *told);
                *told = writer.size();
            }
            window.1 += chunk.len() as u64;
            if window.0.elapsed() > WINDOW {
                if window.1 < TRICKLE {
                    return Ok(Some(Error::Network {
                        what: format!("{what} of {}: fewer than {TRICKLE} bytes a minute", self.name),
                        source: None,
                    }));
                }
                window = (Instant::now(), 0);
            }
        }
    }
}
