//! Building a context: with a Docker Engine, or with buildah. Nothing else in this program executes anything of a machine
//! or of an image, and this only where it is asked for.

mod buildah;
mod context;
mod docker;
mod log;
mod trace;

use crate::error::{Error, Result};
use crate::oci::daemon::Daemon;
use crate::oci::{Image, OpenOptions};
use crate::progress::Progress;
use crate::scratch::Scratch;
use std::path::Path;

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// A Docker Engine if one answers, else buildah.
    #[default]
    Auto,
    /// A Docker Engine.
    Docker,
    /// buildah.
    Buildah,
}

/// What is to be built.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The directory with the `Dockerfile`.
    pub context: &'a Path,
    /// The image that stands for the one behind `FROM`, if that names it by its digest: the engine is given it and need not
    /// fetch it.
    pub base: Option<&'a Image>,
    /// True if this program wrote the context: what is behind `FROM` is `base`, whatever its name.
    pub ours: bool,
    /// The network of `RUN` commands in the engine's words: `host`, `none`, ... `None`: what the engine does by itself.
    pub network: Option<&'a str>,
}

/// A built image. Its layers lie in files that live as long as it does, not compressed.
#[derive(Debug)]
pub struct Built {
    /// It.
    pub image: Image,
    /// Who built it, for people.
    pub engine: String,
    /// The directory of its layers, where they are in one.
    pub files: Option<Scratch>,
}

/// The largest Dockerfile.
const MAX_DOCKERFILE: u64 = 16 << 20;

impl Request<'_> {
    /// The text of the Dockerfile.
    fn dockerfile(&self) -> Result<String> {
        let path = self.context.join("Dockerfile");
        let failed = |e| Error::io(format!("reading {}", path.display()), e);
        let size = std::fs::metadata(&path).map_err(failed)?.len();
        if size > MAX_DOCKERFILE {
            return Err(Error::unsupported(format!(
                "{}: a Dockerfile of {size} bytes",
                path.display()
            )));
        }
        std::fs::read_to_string(&path).map_err(failed)
    }

    /// What the Dockerfile is called.
    fn file_name(&self) -> String {
        context::shown(&self.context.join("Dockerfile"))
    }

    /// True if the first `FROM` is the base: it says its digest or the name it was found by.
    fn builds_on_base(&self, dockerfile: &str) -> bool {
        let (Some(from), Some(base)) = (context::from_of(dockerfile), self.base) else {
            return false;
        };
        let named = |name: &str| name == from || base.reference.to_string() == from;
        // `vm2k dockerfile` calls a base that no registry has by the beginning of its digest.
        let hex = base.manifest_digest.hex();
        let short = hex.get(..12).unwrap_or(&hex);
        self.ours
            || from.contains(short)
            || from.contains(&base.config_digest.to_string())
            || base.reference.registry_name().as_deref().is_some_and(named)
            || named(&base.reference.to_string())
    }
}

/// `Ok` if somebody is there who builds.
///
/// # Errors
/// [`Error::Network`] if no engine answers, [`Error::Unsupported`] if buildah is asked for and not there.
pub fn check(choice: Choice) -> Result<()> {
    who(choice).map(drop)
}

/// Who builds: a Docker Engine, or `None` for buildah.
fn who(choice: Choice) -> Result<Option<Daemon>> {
    match choice {
        Choice::Docker => Daemon::connect().map(Some),
        Choice::Buildah if buildah::is_there() => Ok(None),
        Choice::Buildah => {
            Err(Error::unsupported("buildah is not installed")
                .hint("install it, or build with --engine docker"))
        }
        Choice::Auto => match Daemon::connect() {
            Ok(daemon) => Ok(Some(daemon)),
            Err(_) if buildah::is_there() => Ok(None),
            Err(e) => Err(e.hint("or install buildah")),
        },
    }
}

/// Builds the context and opens what came of it. What the build prints goes to `progress`.
///
/// # Errors
/// [`Error::Network`] if no engine is there, it went away, or the network failed in the build; [`Error::Io`] if the build failed
/// otherwise: the error names the line of the Dockerfile.
pub fn build(
    choice: Choice,
    request: &Request<'_>,
    options: &OpenOptions,
    progress: &dyn Progress,
) -> Result<Built> {
    match who(choice)? {
        Some(daemon) => docker::build(&daemon, request, options, progress),
        None => buildah::build(request, options, progress),
    }
}
