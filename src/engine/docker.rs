//! Building in a Docker Engine: with BuildKit where it has it, else with its classic builder.

use super::context::{ContextTar, from_of, rebased};
use super::log::Log;
use super::trace::{News, news};
use super::{Built, Request};
use crate::error::{Error, Result};
use crate::oci::daemon::{Daemon, Traces, undo};
use crate::oci::{Image, NewImage, OpenOptions, Reference};
use crate::progress::{Progress, Stage};
use crate::scratch::Cleanup;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// One line of an engine's answer.
#[derive(serde::Deserialize)]
struct Line {
    id: Option<String>,
    stream: Option<String>,
    status: Option<String>,
    error: Option<String>,
    #[serde(rename = "errorDetail")]
    detail: Option<Detail>,
    aux: Option<serde_json::Value>,
}

#[derive(serde::Deserialize)]
struct Detail {
    message: Option<String>,
}

/// Builds the context of `request` in `daemon`. Of the build nothing stays in the engine but BuildKit's own cache.
pub(super) fn build(
    daemon: &Daemon,
    request: &Request<'_>,
    options: &OpenOptions,
    progress: &dyn Progress,
) -> Result<Built> {
    let dockerfile = request.dockerfile()?;
    let traces = Arc::new(Mutex::new(Traces::default()));
    let stage = progress.stage("giving the base image to the engine", None);
    let lent = match request.base.filter(|_| request.builds_on_base(&dockerfile)) {
        Some(base) => {
            crate::oci::fetch(&base.layers, progress)?;
            let lent = daemon.lend(&as_new(base), "base", &*stage)?;
            lock(&traces).base = Some(daemon.id(&lent.name)?);
            Some(lent)
        }
        None => None,
    };
    drop(stage);
    let from = from_of(&dockerfile).unwrap_or_default();
    let sent = match &lent {
        Some(lent) => rebased(&dockerfile, from, &lent.name).unwrap_or_else(|| dockerfile.clone()),
        None => dockerfile.clone(),
    };
    let (address, left) = (daemon.address().to_owned(), Arc::clone(&traces));
    // Dropped before `lent`: images go before what they stand on.
    let _undo = Cleanup::new(move || {
        let left = lock(&left).clone();
        undo(&address, &left, &[]);
    });
    let classic = std::env::var("DOCKER_BUILDKIT").is_ok_and(|set| set == "0");
    let mut buildkit = daemon.has_buildkit() && !classic;
    let stage = progress.stage("building in the Docker Engine", None);
    let image = loop {
        let mut build = Build {
            log: Log::new(request.file_name(), &dockerfile, progress),
            traces: &traces,
            stage: &*stage,
            vertices: HashMap::new(),
            begun: false,
        };
        let query = query(request, buildkit);
        let chunks = ContextTar::new(request.context, sent.clone().into_bytes())?;
        match daemon.build(&query, Box::new(chunks), |line| build.line(line)) {
            Ok(()) => {
                let made = lock(&traces).image.clone();
                break made
                    .ok_or_else(|| build.log.failure("the engine says of no image that it made it"))?;
            }
            // An engine whose BuildKit works for nobody without a session has the classic builder still.
            Err(e) if buildkit && !build.begun && chain(&e).contains("session") => buildkit = false,
            Err(e) => return Err(e),
        }
    };
    drop(stage);
    let reference = Reference::DockerDaemon(image.clone());
    let image = daemon.image(&reference, &image, options, progress)?;
    let builder = if buildkit {
        "BuildKit"
    } else {
        "its classic builder"
    };
    Ok(Built {
        image,
        engine: format!("{}, {builder}", daemon.version()?),
        files: None,
    })
}

/// An image that exists as one that is to be written.
pub(super) fn as_new(image: &Image) -> NewImage {
    NewImage {
        manifest: image.manifest.clone(),
        config: image.config_bytes.clone(),
        layers: image.layers.clone(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

/// The parameters of `/build` (Docker Engine API 1.41, "Build an image").
fn query(request: &Request<'_>, buildkit: bool) -> String {
    let version = if buildkit { 2 } else { 1 };
    let mut query = format!("dockerfile=Dockerfile&rm=1&forcerm=1&version={version}");
    if let Some(network) = request.network {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let escaped = network.bytes().map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        });
        query.push_str(&format!("&networkmode={}", escaped.collect::<String>()));
    }
    query
}

/// What is known of a build that is on its way.
struct Build<'a> {
    log: Log<'a>,
    traces: &'a Mutex<Traces>,
    stage: &'a dyn Stage,
    /// BuildKit's vertices that have begun, by digest: their names.
    vertices: HashMap<String, String>,
    /// True once something of the Dockerfile was begun.
    begun: bool,
}

impl Build<'_> {
    /// Takes one line of the answer.
    fn line(&mut self, line: &[u8]) -> Result<()> {
        self.stage.add(line.len() as u64);
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            self.log.print(line);
            self.log.end_line();
            return Ok(());
        };
        if let Some(why) = line.detail.and_then(|d| d.message).or(line.error) {
            return Err(self.log.failure(&why));
        }
        match (line.id.as_deref(), &line.aux) {
            (Some("moby.buildkit.trace"), Some(serde_json::Value::String(message))) => {
                let message = BASE64.decode(message).unwrap_or_default();
                news(&message)
                    .unwrap_or_default()
                    .into_iter()
                    .for_each(|news| self.news(news));
            }
            (_, Some(aux)) => {
                if let Some(id) = aux.get("ID").and_then(serde_json::Value::as_str) {
                    lock(self.traces).image = Some(id.to_owned());
                }
            }
            _ => {}
        }
        match (line.stream, line.status) {
            (Some(text), _) => self.classic(&text),
            (None, Some(status)) => self.log.print(format!("{status}\n").as_bytes()),
            _ => {}
        }
        Ok(())
    }

    /// What the classic builder says: its own lines begin with `Step` and ` --->`.
    fn classic(&mut self, text: &str) {
        if let Some((number, of)) = step(text) {
            self.begun = true;
            self.log.step(Some(number), of);
            return;
        }
        if let Some(id) = text.strip_prefix(" ---> ").map(str::trim_end)
            && id.len() == 12
            && id.bytes().all(|b| b.is_ascii_hexdigit())
        {
            lock(self.traces).steps.push(id.to_owned());
        }
        self.log.print(text.as_bytes());
    }

    fn news(&mut self, news: News) {
        match news {
            News::Vertex(digest, name, begun, error) => {
                // What is no instruction, as the loading of the context, is "[internal] ..." or has no brackets.
                let own = name.starts_with('[') && !name.starts_with("[internal]");
                if begun && !self.vertices.contains_key(&digest) {
                    self.begun |= own;
                    self.vertices.insert(digest.clone(), name.clone());
                    if own {
                        self.at(&name);
                        self.log.say(&name);
                    }
                }
                if !error.is_empty() && own {
                    // What failed is what the error is about, whatever ran beside it.
                    self.at(&name);
                }
            }
            News::Log(_, bytes) => self.log.print(&bytes),
        }
    }

    /// `[2/5] RUN true`, or `[stage 2/5] RUN true`.
    fn at(&mut self, name: &str) {
        let text = match name.split_once("] ") {
            Some((place, text)) if place.starts_with('[') => text,
            _ => name,
        };
        self.log.go_to(None, text);
    }
}

/// `Step 2/5 : RUN true`.
fn step(text: &str) -> Option<(usize, &str)> {
    let (count, of) = text.strip_prefix("Step ")?.split_once(" : ")?;
    let (number, total) = count.split_once('/')?;
    total.parse::<usize>().ok()?;
    Some((number.parse().ok()?, of.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_the_classic_builder() {
        assert_eq!(step("Step 2/13 : RUN a : b\n"), Some((2, "RUN a : b")));
        for other in [
            "Step x/3 : RUN",
            "Steps 1/3 : RUN",
            "Step 1 : RUN",
            "step 1/2 : RUN",
        ] {
            assert_eq!(step(other), None);
        }
    }

    #[test]
    fn networks_are_quoted() {
        let request = Request {
            context: std::path::Path::new("."),
            base: None,
            ours: false,
            network: Some("a&b=c"),
        };
        assert!(query(&request, true).ends_with("version=2&networkmode=a%26b%3Dc"));
    }
}
