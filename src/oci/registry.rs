//! Reading images from registries (OCI distribution-spec 1.1, "Pull"; docker registry HTTP API v2).
//!
//! The HTTP client is used without a registry library between: those at hand read manifests, tokens and error pages of any
//! length into memory. Everything here has a bound, and nothing that a registry sends is believed before its digest is
//! right. The functions of this module are synchronous: they run a small runtime of their own and must not be called from
//! inside another.

use super::auth::{self, Challenge, Credential};
use super::{BlobSource, Blobs, Image, Kind, MAX_DOCUMENT, OpenOptions, Reference, RegistryName};
use crate::error::{Error, Escaped, Result};
use crate::progress::Stage;
use crate::store::{BlobWriter, Digest, Store};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode, Url};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(8);
/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(30);
/// Within this time at least [`TRICKLE`] bytes of a blob must arrive, and a document must end.
const WINDOW: Duration = Duration::from_secs(60);
const TRICKLE: u64 = 32 << 10;
/// The most tries of one request, and of a transfer that does not get on.
const TRIES: u32 = 5;
/// A transfer got on if a try brought so many bytes.
const PROGRESS: u64 = 1 << 20;
/// Before the second try; it doubles each time.
const BACKOFF: Duration = Duration::from_millis(250);
/// The longest wait a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The most bytes of a token server's answer, and of an error page.
const MAX_ANSWER: usize = 256 << 10;
/// The most redirects of one request.
const MAX_REDIRECTS: usize = 5;
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
    insecure: bool,
    auth_file: Option<PathBuf>,
    runtime: Mutex<Runtime>,
    client: reqwest::Client,
    /// For token servers: follows no redirect, so that a password goes nowhere but where it was sent.
    token_client: reqwest::Client,
    /// `scheme://host/`, once it is known.
    base: Mutex<Option<Url>>,
    /// The `Authorization` header, once one is needed.
    authorization: Mutex<Option<HeaderValue>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.name)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True for names and addresses of this machine.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
            return Err(crate::store::mismatch(digest, size, digest, bytes.len() as u64));
        }
        match kind {
            Kind::Manifest => {
                let bytes = self.run(self.get_manifest(&digest.to_string(), Some(digest)))?;
                if bytes.len() as u64 != size {
                    return Err(crate::store::mismatch(digest, size, digest, bytes.len() as u64));
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
        // Somebody may have installed a provider before: that one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let started =
            |e: reqwest::Error| Error::io("starting the HTTP client", std::io::Error::other(e.without_url()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting the network runtime", e))?;
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("vm2k/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT)
                .read_timeout(SILENCE)
                .referer(false);
            match is_loopback(&name.registry) {
                true => builder.no_proxy(),
                false => builder,
            }
        };
        // reqwest itself drops `Authorization` when scheme, host or port change.
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if was_https && attempt.url().scheme() != "https" {
                attempt.error("a redirect from https to http")
            } else {
                attempt.follow()
            }
        });
        Ok(Self {
            name: name.clone(),
            store: Arc::clone(&options.store),
            offline: options.offline,
            insecure: options.insecure,
            auth_file: options.auth_file.clone(),
            runtime: Mutex::new(runtime),
            client: builder().redirect(redirects).build().map_err(started)?,
            token_client: builder()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(started)?,
            base: Mutex::new(None),
            authorization: Mutex::new(None),
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

    fn url(&self, base: &Url, rest: &str) -> Result<Url> {
        base.join(&format!("v2/{}/{rest}", self.name.repository))
            .map_err(|_| Error::usage(format!("{} makes no address", self.name)))
    }

    /// `https://HOST/`; for this machine and where the user allows it `http://HOST/` if nobody speaks TLS there.
    async fn base(&self) -> Result<Url> {
        if let Some(base) = &*lock(&self.base) {
            return Ok(base.clone());
        }
        let host = match self.name.registry.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        };
        let address = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/")).map_err(|_| {
                Error::usage(format!(
                    "{:?} is not the address of a registry",
                    self.name.registry
                ))
            })
        };
        let mut base = address("https")?;
        if self.insecure || is_loopback(&self.name.registry) {
            let probe = base
                .join("v2/")
                .map_err(|_| Error::usage(format!("{host} makes no address")))?;
            let speaks_tls = self.token_client.get(probe).send().await;
            if speaks_tls.is_err_and(|e| !e.is_timeout()) {
                base = address("http")?;
            }
        }
        *lock(&self.base) = Some(base.clone());
        Ok(base)
    }

    fn network(&self, what: &str, e: impl Into<Chain>) -> Error {
        Error::network(format!("{what} of {}", self.name), e.into()).hint(
            "check the network and the name, or name a copy on this machine as oci:DIR or docker-archive:FILE; \
             --offline uses what was fetched before",
        )
    }

    /// One GET, with as many tries as make sense. The answer is 200 or 206.
    async fn get(&self, what: &str, rest: &str, headers: HeaderMap) -> Result<Response> {
        let base = self.base().await?;
        let url = self.url(&base, rest)?;
        let mut wait = BACKOFF;
        let mut asked = false;
        let mut tries = 1;
        loop {
            let mut request = self.client.get(url.clone()).headers(headers.clone());
            let authorization = lock(&self.authorization).clone();
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let mut pause = wait;
            let error = match request.send().await {
                Ok(answer) => {
                    let status = answer.status();
                    match status.as_u16() {
                        200 | 206 => return Ok(answer),
                        401 if !asked => match self.authorize(&base, answer, authorization).await {
                            Ok(()) => {
                                asked = true;
                                continue;
                            }
                            Err(e) if e.code() == crate::error::code::NETWORK => e,
                            Err(e) => return Err(e),
                        },
                        408 | 429 | 500 | 502 | 503 | 504 => {
                            if let Some(seconds) = retry_after(answer.headers()) {
                                pause = seconds.min(MAX_WAIT);
                            }
                            self.refused(what, answer).await
                        }
                        _ => return Err(self.refused(what, answer).await),
                    }
                }
                // A redirect that is refused, or a host that does not answer at all, will not be better in a second.
                Err(e) if e.is_redirect() || (e.is_timeout() && e.is_connect()) => {
                    return Err(self.network(what, e));
                }
                Err(e) => self.network(what, e),
            };
            if tries >= TRIES {
                return Err(error);
            }
            tries += 1;
            tokio::time::sleep(pause).await;
            wait *= 2;
        }
    }

    /// The error for an answer that is no success.
    async fn refused(&self, what: &str, answer: Response) -> Error {
        let status = answer.status();
        let page = limited(answer, MAX_ANSWER).await.unwrap_or_default();
        let words = error_words(&page);
        let what = format!("{what} of {}", self.name);
        let io = |kind, text: String| Error::io(what.clone(), std::io::Error::new(kind, text));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => io(
                std::io::ErrorKind::PermissionDenied,
                format!("the registry wants a login, or there is no such image ({status}{words})"),
            )
            .hint(format!(
                "log in with `docker login {0}` or `podman login {0}`, and check the name",
                self.name.registry
            )),
            StatusCode::NOT_FOUND => io(
                std::io::ErrorKind::NotFound,
                format!("the registry has no such image ({status}{words})"),
            )
            .hint("check the name and the tag"),
            _ => Error::Network {
                what: format!("{what}: the registry answers {status}{words}"),
                source: None,
            },
        }
    }

    /// Gets what the challenges of a 401 ask for. `had` is what was sent already.
    async fn authorize(&self, base: &Url, answer: Response, had: Option<HeaderValue>) -> Result<()> {
        let all: Vec<Challenge> = answer
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .take(16)
            .filter_map(|v| v.to_str().ok())
            .flat_map(auth::challenges)
            .collect();
        // A redirect may have led elsewhere: only the registry's own challenge is answered.
        let own = answer.url().origin() == base.origin();
        let credential = auth::credential(
            &self.name.registry,
            &self.name.repository,
            self.auth_file.as_deref(),
        )?;
        let bearer = all.iter().find(|c| own && c.scheme == "bearer");
        let basic = all.iter().any(|c| own && c.scheme == "basic");
        let value = match (bearer, credential) {
            (Some(challenge), credential) => {
                format!("Bearer {}", self.token(base, challenge, credential).await?)
            }
            (None, Some(Credential::Password(user, password))) if basic && had.is_none() => {
                format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
            }
            _ => return Err(self.refused("reading the manifest", answer).await),
        };
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| Error::corrupt(format!("the token for {} is no HTTP header", self.name), 0))?;
        value.set_sensitive(true);
        *lock(&self.authorization) = Some(value);
        Ok(())
    }

    /// A token for pulling from this repository, from the realm of the challenge.
    async fn token(
        &self,
        base: &Url,
        challenge: &Challenge,
        credential: Option<Credential>,
    ) -> Result<String> {
        let what = format!("getting a token for {}", self.name);
        let bad = |why: &str| Error::corrupt(format!("{what}: {why}"), 0);
        let realm = challenge
            .get("realm")
            .ok_or_else(|| bad("the challenge names no realm"))?;
        let mut url = Url::parse(realm).map_err(|_| bad("the realm is no address"))?;
        if url.scheme() != "https" && !(url.scheme() == "http" && base.scheme() == "http") {
            return Err(Error::refused(format!(
                "{what}: its realm is not reached by https"
            )));
        }
        let scope = format!("repository:{}:pull", self.name.repository);
        let service = challenge.get("service");
        let request = match credential {
            Some(Credential::Identity(token)) => {
                // OAuth 2 as docker speaks it (distribution's oauth.md).
                let mut form = Url::parse("form:?").map_err(|_| bad("no form"))?;
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("refresh_token", &token)
                    .append_pair("client_id", "vm2k")
                    .append_pair("scope", &scope)
                    .append_pair("service", service.unwrap_or_default());
                self.token_client
                    .post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            credential => {
                url.query_pairs_mut().append_pair("scope", &scope);
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                match credential {
                    Some(Credential::Password(user, password)) => {
                        url.query_pairs_mut().append_pair("account", &user);
                        self.token_client.get(url).basic_auth(user, Some(password))
                    }
                    _ => self.token_client.get(url),
                }
            }
        };
        let answer = request
            .send()
            .await
            .map_err(|e| self.network("getting a token for pulling", e))?;
        if !answer.status().is_success() {
            return Err(self.refused("getting a token for pulling", answer).await);
        }
        let body = limited(answer, MAX_ANSWER)
            .await
            .map_err(|e| self.network("getting a token for pulling", e))?;
        auth::token(&body).ok_or_else(|| bad("the answer holds no token"))
    }

    /// A manifest or index, by tag or digest.
    async fn get_manifest(&self, tag: &str, digest: Option<&Digest>) -> Result<Vec<u8>> {
        let what = "reading the manifest";
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        let mut wait = BACKOFF;
        for tries in 1.. {
            let answer = self
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
                Err(e) if tries >= TRIES => return Err(self.network(what, e)),
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
                    let error = crate::store::mismatch(digest, size, &writer.digest(), writer.size());
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
        let mut answer = self.get(what, &format!("blobs/{digest}"), headers).await?;
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
                Err(e) => return Ok(Some(self.network(what, e))),
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

/// The body of an answer, cut at `limit` bytes.
async fn limited(mut answer: Response, limit: usize) -> std::result::Result<Vec<u8>, Chain> {
    let whole = async {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(Chain::of)? {
            let room = limit.saturating_sub(body.len());
            body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            if body.len() >= limit {
                break;
            }
        }
        Ok(body)
    };
    let late = |_| Chain(format!("no end after {} seconds", WINDOW.as_secs()));
    tokio::time::timeout(WINDOW, whole).await.map_err(late)?
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a registry's error document says (distribution-spec, "Error Codes"), made safe for a terminal.
fn error_words(page: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Page {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(page) = serde_json::from_slice::<Page>(page) else {
        return String::new();
    };
    let words = page.errors.iter().take(3).map(|e| {
        let text: String = format!("{} {}", e.code, e.message).chars().take(200).collect();
        format!(", {}", Escaped(text.trim().as_bytes()))
    });
    words.collect()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let at = (bits >> (18 - 6 * i)) & 63;
            let digit = usize::try_from(at).ok().and_then(|at| ALPHABET.get(at));
            out.push(if i <= chunk.len() {
                digit.map_or('=', |d| char::from(*d))
            } else {
                '='
            });
        }
    }
    out
}

/// An error with its causes in one text: the HTTP client's own text leaves out what went wrong.
#[derive(Debug)]
struct Chain(String);

impl Chain {
    fn of(e: reqwest::Error) -> Self {
        // The address may be signed, and is then a secret itself.
        let e = e.without_url();
        let mut text = e.to_string();
        let mut next = std::error::Error::source(&e);
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            next = cause.source();
        }
        Self(text)
    }
}

impl From<reqwest::Error> for Chain {
    fn from(e: reqwest::Error) -> Self {
        Self::of(e)
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Chain {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "localhost.example",
            "10.0.0.1:80",
            "example.com:5000",
            "[2001:db8::1]:5000",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn base64_as_rfc_4648_shows_it() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn words_of_a_registry_cannot_reach_the_terminal() {
        let page = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m"}]}"#;
        assert_eq!(error_words(page), ", DENIED no\\u{1b}[31m");
        assert_eq!(error_words(b"<html>"), "");
    }
}
