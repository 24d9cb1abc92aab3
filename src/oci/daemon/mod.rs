//! Images of a Docker Engine (Docker Engine API 1.24 and later), read and written by `docker save` and `docker load`.
//!
//! The functions of this module are synchronous: they run a small runtime of their own and must not be called from
//! inside another. An engine that stays silent is asked from time to time whether it is alive; one that is not is an error.

mod address;

use super::archive::{Archive, docker_image};
use super::http::lock;
use super::sparse::SparseWriter;
use super::{Image, NewImage, OpenOptions, Reference, write_archive};
use crate::error::{Error, Result};
use crate::progress::{Progress, Stage};
use crate::read_at::HostFile;
use crate::scratch::Cleanup;
use crate::store::Store;
use bollard::query_parameters::{ImportImageOptions, RemoveImageOptions, TagImageOptions};
use bollard::{BollardRequest, Docker, body_try_stream};
use futures_util::StreamExt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long an engine may take to say that it is there.
const HELLO: Duration = Duration::from_secs(10);
/// After so long a silence it is asked whether it is alive.
const SILENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether a signal ends the program.
const LOOK: Duration = Duration::from_millis(100);
/// The longest time for one answer to begin: `docker save` gathers the whole image first. [`SILENCE`] is what ends a wait
/// for an engine that died.
const ANSWER: Duration = Duration::from_secs(24 * 3600);
/// How long undoing may take when a signal ends the program.
const UNDO: Duration = Duration::from_secs(5);
/// Bytes that are sent at once.
const CHUNK: usize = 256 << 10;
/// The most bytes of one line of an engine's answer.
const MAX_LINE: usize = 16 << 20;
/// The registry of names that are ours, and only for a while. It is this machine's, so that no engine asks another.
const PRIVATE: &str = "localhost/vm2k";

/// A connection to a Docker Engine.
pub(crate) struct Daemon {
    runtime: Mutex<Runtime>,
    docker: Docker,
    address: String,
}

/// Bytes on their way to an engine.
pub(crate) type Chunks = Box<dyn Iterator<Item = std::io::Result<Vec<u8>>> + Send>;

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Daemon({})", self.address)
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting the network runtime", e))
}

impl Daemon {
    /// Finds the engine and greets it.
    ///
    /// # Errors
    /// [`Error::Network`] if none answers.
    pub(crate) fn connect() -> Result<Self> {
        Self::at(&address::Settings::of_environment().address()?)
    }

    fn at(address: &str) -> Result<Self> {
        let docker = Docker::connect_with_host(address).map_err(|e| away(address, e))?;
        let runtime = runtime()?;
        let greeted = runtime.block_on(docker.with_timeout(HELLO).negotiate_version());
        let docker = greeted.map_err(|e| away(address, e))?.with_timeout(ANSWER);
        Ok(Self {
            runtime: Mutex::new(runtime),
            docker,
            address: address.to_owned(),
        })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Its name and version, for people.
    pub(crate) fn version(&self) -> Result<String> {
        let version = self.run("asking for its version", self.docker.version())?;
        Ok(format!("Docker Engine {}", version.version.unwrap_or_default()))
    }

    /// True if it speaks BuildKit: from Engine API 1.39 on.
    pub(crate) fn has_buildkit(&self) -> bool {
        let version = self.docker.client_version();
        (version.major_version, version.minor_version) >= (1, 39)
    }

    fn failed(&self, what: &str, e: bollard::errors::Error) -> Error {
        use bollard::errors::Error as E;
        let what = format!("the Docker Engine at {}: {what}", self.address);
        match e {
            E::DockerResponseServerError { status_code, message } => {
                let error = Error::io(what, std::io::Error::other(message));
                match status_code {
                    403 => error.hint("the engine forbids it"),
                    _ => error.hint("the engine's log may say more (`journalctl -u docker`)"),
                }
            }
            E::DockerStreamError { error } => Error::io(what, std::io::Error::other(error))
                .hint("the engine's log may say more (`journalctl -u docker`)"),
            e => Error::network(what, e)
                .hint("the engine went away, or is at its limits: see its log, and try again"),
        }
    }

    /// Runs `work` to its end, as long as the engine is alive and no signal ends the program.
    async fn alive<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                done = &mut work => return done.map_err(|e| self.failed(what, e)),
                () = tokio::time::sleep(LOOK) => {}
            }
            if crate::scratch::is_ending() {
                return Err(Error::refused(format!("{what}: interrupted")));
            }
            if heard.elapsed() > SILENCE {
                let asked = self.docker.clone().with_timeout(HELLO);
                asked.ping().await.map_err(|e| self.failed(what, e))?;
                heard = Instant::now();
            }
        }
    }

    fn run<T>(&self, what: &str, work: impl Future<Output = Result<T, bollard::errors::Error>>) -> Result<T> {
        lock(&self.runtime).block_on(self.alive(what, work))
    }

    /// Writes the image `name` as `docker save` does into `file`, which is empty; zeros become holes.
    ///
    /// # Errors
    /// [`Error::Usage`] if the engine has no such image.
    fn save(&self, name: &str, file: &File, store: &Store, stage: &dyn Stage) -> Result<()> {
        let what = format!("reading the image {name}");
        self.has(name)?;
        let mut stream = std::pin::pin!(self.docker.export_image(name));
        let mut to = SparseWriter::new(file);
        let runtime = lock(&self.runtime);
        while let Some(chunk) = runtime.block_on(self.alive(&what, next(&mut stream)))? {
            to.write(&chunk).map_err(|e| store.write_failed(e))?;
            stage.add(chunk.len() as u64);
        }
        to.finish().map_err(|e| store.write_failed(e))
    }

    /// `Ok` if the engine has the image.
    fn has(&self, name: &str) -> Result<()> {
        use bollard::errors::Error as E;
        let found = async {
            match self.docker.inspect_image(name).await {
                Ok(_) => Ok(true),
                Err(E::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
                Err(e) => Err(e),
            }
        };
        match self.run(&format!("looking for the image {name}"), found)? {
            true => Ok(()),
            false => Err(Error::usage(format!(
                "docker-daemon:{name}: the Docker Engine at {} has no image of this name",
                self.address
            ))
            .hint(format!(
                "`docker images` lists what is there, `docker pull {name}` fetches it; docker://{name} is read without an engine"
            ))),
        }
    }

    /// Reads the image `name` by [`Self::save`], through a file of the store that has no name.
    pub(crate) fn image(
        &self,
        reference: &Reference,
        name: &str,
        options: &OpenOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let stage = progress.stage(&format!("reading {reference}"), None);
        let file = options.store.temporary()?;
        self.save(name, &file, &options.store, &*stage)?;
        let file = HostFile::from_file(file, reference.to_string())?;
        let archive = Archive::list(Arc::new(file), reference.to_string())?;
        docker_image(&archive, reference, None, options)
    }

    /// Gives the engine an image under a private name, which is taken away again when what is returned is dropped. The
    /// image goes with it if nothing else holds it.
    pub(crate) fn lend(&self, image: &NewImage, kind: &str, stage: &dyn Stage) -> Result<Lent> {
        let lent = self.private(kind);
        let file = match image.layers.iter().find_map(super::Layer::store) {
            Some(store) => store.temporary()?,
            None => tempfile::tempfile().map_err(|e| Error::io("making a temporary file", e))?,
        };
        let shown = Path::new(&lent.name);
        let file = write_archive::docker_unnamed(file, shown, lent.name.clone(), image, stage)?;
        self.load(file)?;
        Ok(lent)
    }

    /// The ID of an image.
    pub(crate) fn id(&self, name: &str) -> Result<String> {
        let image = self.run("looking at an image", self.docker.inspect_image(name))?;
        image
            .id
            .ok_or_else(|| Error::corrupt(format!("the engine's image {name} has no ID"), 0))
    }

    /// A private name that nobody has, and that is taken away when this is dropped.
    fn private(&self, kind: &str) -> Lent {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PRIVATE}-{kind}-{}-{number}:latest", std::process::id());
        let (address, undone) = (self.address.clone(), name.clone());
        Lent {
            name,
            _undo: Cleanup::new(move || undo(&address, &Traces::default(), &[undone])),
        }
    }

    /// `docker load`.
    fn load(&self, mut archive: File) -> Result<()> {
        let mut done = false;
        let chunks = std::iter::from_fn(move || {
            let mut chunk = vec![0; CHUNK];
            match (done, archive.read(&mut chunk)) {
                (true, _) | (_, Ok(0)) => None,
                (_, Ok(n)) => {
                    chunk.truncate(n);
                    Some(Ok(chunk.into()))
                }
                (_, Err(e)) => {
                    done = true;
                    Some(Err(e))
                }
            }
        });
        let body = body_try_stream(futures_util::stream::iter(chunks));
        let what = "loading an image";
        let options = ImportImageOptions {
            quiet: true,
            ..ImportImageOptions::default()
        };
        let mut stream = std::pin::pin!(self.docker.import_image(options, body, None));
        let runtime = lock(&self.runtime);
        while let Some(line) = runtime.block_on(self.alive(what, next(&mut stream)))? {
            if let Some(message) = line.error_detail.and_then(|detail| detail.message) {
                return Err(self.failed(what, bollard::errors::Error::DockerStreamError { error: message }));
            }
        }
        Ok(())
    }

    /// Gives an image another name.
    fn tag(&self, image: &str, name: &str) -> Result<()> {
        let (repo, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let options = TagImageOptions {
            repo: Some(repo.to_owned()),
            tag: Some(tag.to_owned()),
        };
        self.run(
            &format!("naming an image {name}"),
            self.docker.tag_image(image, Some(options)),
        )
    }

    /// Sends `chunks` to `/build` and gives each line of the answer to `line`. bollard's own call takes the answers of BuildKit
    /// only together with a gRPC server for a session, which nothing here needs: so the request is one of its calls that give
    /// an answer's bytes as they are, with another address and a body.
    pub(crate) fn build(
        &self,
        query: &str,
        chunks: Chunks,
        mut line: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let chunks = Mutex::new(Some(chunks));
        let query = query.to_owned();
        let docker = self
            .docker
            .clone()
            .with_request_modifier(move |mut request: BollardRequest| {
                let address = request.uri().to_string();
                let (engine, _) = address.split_once("/images/get").unwrap_or_default();
                let address = format!("{engine}/build?{query}");
                if let Ok(address) = address.parse() {
                    *request.uri_mut() = address;
                }
                *request.method_mut() = reqwest::Method::POST;
                let tar = reqwest::header::HeaderValue::from_static("application/x-tar");
                request.headers_mut().insert(reqwest::header::CONTENT_TYPE, tar);
                if let Some(chunks) = lock(&chunks).take() {
                    let chunks = chunks.map(|chunk| chunk.map(Into::into));
                    *request.body_mut() = body_try_stream(futures_util::stream::iter(chunks));
                }
                request
            });
        let runtime = lock(&self.runtime);
        let done = self.follow(&runtime, &docker, &mut line);
        // The connection closes when its task is run: that tells the engine of an end that came early.
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(10)).await });
        done
    }

    /// Sends the request of [`Self::build`] and follows the answer.
    fn follow(
        &self,
        runtime: &Runtime,
        docker: &Docker,
        line: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let what = "building an image";
        let mut stream = std::pin::pin!(docker.export_images(&[]));
        let mut rest = Vec::new();
        while let Some(chunk) = runtime.block_on(self.alive(what, next(&mut stream)))? {
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let later = rest.split_off(end + 1);
                line(rest.trim_ascii())?;
                rest = later;
            }
            if rest.len() > MAX_LINE {
                return Err(Error::unsupported(
                    "an engine's answer with a line of more than 16 MiB",
                ));
            }
        }
        match rest.trim_ascii() {
            [] => Ok(()),
            last => line(last),
        }
    }
}

/// The next piece of an answer.
async fn next<T>(
    stream: &mut (impl futures_util::Stream<Item = Result<T, bollard::errors::Error>> + Unpin),
) -> Result<Option<T>, bollard::errors::Error> {
    stream.next().await.transpose()
}

/// A private name in an engine.
pub(crate) struct Lent {
    /// As the engine knows it.
    pub(crate) name: String,
    _undo: Cleanup,
}

/// What a build leaves in an engine while it runs.
#[derive(Debug, Default, Clone)]
pub(crate) struct Traces {
    /// The image that it began with.
    pub(crate) base: Option<String>,
    /// IDs that the engine seems to have called images of steps, in their order. What a step prints looks the same.
    pub(crate) steps: Vec<String>,
    /// The image that it made.
    pub(crate) image: Option<String>,
}

impl Traces {
    /// Those of the steps that were made on top of the base and of each other, and have no name: an image of somebody else
    /// that the output of a step names is none of them.
    async fn own(&self, docker: &Docker) -> Vec<String> {
        let mut own = Vec::new();
        let mut parent = self.base.clone();
        for step in &self.steps {
            let Ok(image) = docker.inspect_image(step).await else {
                continue;
            };
            let unnamed = image.repo_tags.is_none_or(|tags| tags.is_empty());
            let history = docker.image_history(step).await.unwrap_or_default();
            let is_parent = |parent: &String| history.iter().skip(1).any(|above| above.id == *parent);
            if unnamed && parent.as_ref().is_some_and(is_parent) {
                own.extend(image.id.clone());
                parent = image.id;
            }
        }
        own.extend(self.image.clone());
        own
    }
}

/// Removes what a build left, then names of images, as far as that can be done within seconds.
pub(crate) fn undo(address: &str, traces: &Traces, names: &[String]) {
    let work = async {
        let docker = Docker::connect_with_host(address)?.with_timeout(HELLO);
        let docker = docker.negotiate_version().await?;
        let mut images = traces.own(&docker).await;
        images.reverse();
        images.extend(names.iter().cloned());
        for image in &images {
            // A container that is being killed holds its image a moment longer.
            for _ in 0..30 {
                let gone = docker.remove_image(image, None::<RemoveImageOptions>, None).await;
                match gone {
                    Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => {
                        tokio::time::sleep(LOOK).await;
                    }
                    _ => break,
                }
            }
        }
        Ok::<(), bollard::errors::Error>(())
    };
    // A thread of its own: this may run where another runtime does.
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            if crate::scratch::is_ending() {
                // Who follows the build lets go of it first.
                std::thread::sleep(3 * LOOK);
            }
            runtime().map(|runtime| runtime.block_on(async { tokio::time::timeout(UNDO, work).await }))
        });
        let _ = done.join();
    });
}

/// The error for an engine that does not answer.
fn away(address: &str, e: bollard::errors::Error) -> Error {
    let socket = address.strip_prefix("unix://").map(Path::new);
    let denied = socket.is_some_and(|path| {
        let connected = std::os::unix::net::UnixStream::connect(path);
        connected.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    });
    let what = format!("there is no Docker Engine at {address}");
    match denied {
        true => Error::network(what, e).hint(
            "this user may not use the engine's socket: join its group (`docker`), or run as one who may",
        ),
        false => Error::network(what, e)
            .hint("start it, or say where it is with DOCKER_HOST=unix://PATH or tcp://HOST:PORT"),
    }
}

/// Opens an image of the engine: it is read into a file of the store that has no name.
pub(crate) fn open(
    reference: &Reference,
    name: &str,
    options: &OpenOptions,
    progress: &dyn Progress,
) -> Result<Image> {
    Daemon::connect()?.image(reference, name, options, progress)
}

/// Writes an image into the engine: its name is the last that it gets.
pub(crate) fn write(
    name: &str,
    image: &NewImage,
    _progress: &dyn Progress,
    stage: &dyn Stage,
) -> Result<u64> {
    let daemon = Daemon::connect()?;
    let full = write_archive::repo_tag(name).ok_or_else(|| {
        Error::usage(format!(
            "{name:?} is no name for an image in an engine: write NAME[:TAG]"
        ))
    })?;
    let lent = daemon.lend(image, "load", stage)?;
    daemon.tag(&lent.name, &full)?;
    Ok(image.blobs().map(|layer| layer.size).sum())
}
