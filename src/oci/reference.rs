//! How images are named on the command line: the transports that skopeo and podman use.

use crate::error::{Error, Result};
use crate::store::Digest;
use std::fmt;
use std::path::PathBuf;

/// The name of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryName {
    /// Host and perhaps port, as written; `docker.io` if none was written.
    pub registry: String,
    /// `library/debian`.
    pub repository: String,
    /// The tag; `latest` if neither tag nor digest was written.
    pub tag: Option<String>,
    /// The digest, if one was written. It then decides, whatever the tag.
    pub digest: Option<Digest>,
}

impl RegistryName {
    /// Parses `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]` (distribution's reference grammar).
    ///
    /// # Errors
    /// [`Error::Usage`] for what is no such name, [`Error::Unsupported`] for digests that are not sha256.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |e: &dyn fmt::Display| Error::usage(format!("{text:?} is not the name of an image: {e}"));
        let parsed: oci_spec::distribution::Reference = text.parse().map_err(|e| bad(&e))?;
        let digest = match parsed.digest() {
            Some(digest) => Some(Digest::parse(digest).map_err(|e| match e {
                Error::Unsupported { .. } => e,
                e => bad(&e),
            })?),
            None => None,
        };
        Ok(Self {
            registry: parsed.registry().to_owned(),
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// An image to read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `oci:DIR[:TAG]`: an OCI image layout in a directory.
    Layout {
        /// The directory.
        dir: PathBuf,
        /// The `org.opencontainers.image.ref.name` of the image.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:REF]`: an OCI image layout in a tar.
    OciArchive {
        /// The tar.
        file: PathBuf,
        /// The `org.opencontainers.image.ref.name` of the image.
        name: Option<String>,
    },
    /// `docker-archive:FILE[:REF]`: what `docker save` writes.
    DockerArchive {
        /// The tar.
        file: PathBuf,
        /// One of the image's `RepoTags`.
        name: Option<String>,
    },
    /// `docker://REF`: an image in a registry.
    Registry(RegistryName),
    /// `docker-daemon:REF`: an image in a Docker Engine, by a name or by its ID (`sha256:...`).
    DockerDaemon(String),
}

/// An image to write: the same names; registries are refused.
pub type Output = Reference;

/// Transports that other tools have and this one has not.
const UNKNOWN: [&str; 5] = ["dir:", "containers-storage:", "ostree:", "sif:", "tarball:"];

impl Reference {
    /// Parses a name with its transport. `DIR` and `FILE` end at the first colon, as they do for skopeo.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name without a transport or a broken one.
    pub fn parse(text: &str) -> Result<Self> {
        let path = |rest: &str| -> Result<(PathBuf, Option<String>)> {
            let (path, name) = match rest.split_once(':') {
                Some((path, name)) => (path, Some(name)),
                None => (rest, None),
            };
            if path.is_empty() || name == Some("") {
                return Err(Error::usage(format!(
                    "{text:?} names no file or has an empty tag"
                )));
            }
            Ok((path.into(), name.map(str::to_owned)))
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path(rest)?;
            return Ok(Self::Layout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, name) = path(rest)?;
            return Ok(Self::OciArchive { file, name });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = path(rest)?;
            return Ok(Self::DockerArchive { file, name });
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return RegistryName::parse(rest).map(Self::Registry);
        }
        if let Some(rest) = text.strip_prefix("docker-daemon:") {
            if !rest.starts_with("sha256:") {
                RegistryName::parse(rest)?;
            } else {
                Digest::parse(rest)
                    .map_err(|_| Error::usage(format!("{text:?} names no image by its ID")))?;
            }
            return Ok(Self::DockerDaemon(rest.to_owned()));
        }
        Err(Error::usage(format!("{text:?} is not the name of an image"))
            .hint(
                "write oci:DIR[:TAG], oci-archive:FILE[:REF], docker-archive:FILE[:REF], docker-daemon:REF or docker://REF",
            ))
    }

    /// The name in a registry, for an image of one.
    pub fn registry_name(&self) -> Option<String> {
        match self {
            Self::Registry(name) => Some(name.to_string()),
            _ => None,
        }
    }

    /// As [`Reference::parse`]; a name without a transport is one of a registry, as in `debian:12`.
    ///
    /// # Errors
    /// As [`Reference::parse`].
    pub fn parse_base(text: &str) -> Result<Self> {
        let other = UNKNOWN.iter().find(|t| text.starts_with(**t));
        match Self::parse(text) {
            Err(Error::Hinted { .. }) if other.is_none() && !text.contains("://") => {
                RegistryName::parse(text).map(Self::Registry)
            }
            result => result,
        }
    }

    /// As [`Reference::parse`], for an image that is to be written.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for registries and engines, else as [`Reference::parse`].
    pub fn parse_output(text: &str) -> Result<Output> {
        match Self::parse(text)? {
            Self::Registry(_) => Err(
                Error::unsupported(format!("writing to {text} is not supported yet")).hint(
                    "write oci-archive:FILE and copy it with `skopeo copy oci-archive:FILE docker://REF`",
                ),
            ),
            Self::DockerDaemon(name) if name.starts_with("sha256:") || name.contains('@') => {
                Err(Error::usage(format!(
                    "{text}: a new image in an engine has a name and a tag, not a digest"
                )))
            }
            output => Ok(output),
        }
    }

    /// True if `text` begins with one of the transports of this program.
    pub fn has_transport(text: &str) -> bool {
        [
            "oci:",
            "oci-archive:",
            "docker-archive:",
            "docker://",
            "docker-daemon:",
        ]
        .iter()
        .any(|t| text.starts_with(t))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, name) = match self {
            Self::Layout { dir, tag } => ("oci", dir, tag),
            Self::OciArchive { file, name } => ("oci-archive", file, name),
            Self::DockerArchive { file, name } => ("docker-archive", file, name),
            Self::Registry(name) => return write!(f, "docker://{name}"),
            Self::DockerDaemon(name) => return write!(f, "docker-daemon:{name}"),
        };
        write!(f, "{transport}:{}", path.display())?;
        match name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports() {
        for text in [
            "oci:dir",
            "oci:/a/dir:v1",
            "oci-archive:web.tar:localhost:5000/web:v1",
            "docker-archive:x.tar",
            "docker://quay.io/a/b:c",
            "docker://docker.io/library/debian:12",
            "docker-daemon:web:1",
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "debian:12",
            "oci:",
            "oci::tag",
            "oci:dir:",
            "dir:x",
            "docker://",
            "docker://quay.io/UPPER",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
        assert!(Reference::parse_output("docker://a/b").is_err());
    }

    #[test]
    fn bare_names_are_of_registries() {
        let name = |text| match Reference::parse_base(text).unwrap() {
            Reference::Registry(name) => name.to_string(),
            other => panic!("{other}"),
        };
        assert_eq!(name("debian:12"), "docker.io/library/debian:12");
        assert_eq!(name("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        let pinned = format!("quay.io/x/y:1@{}", Digest::of(b""));
        assert_eq!(name(&pinned), pinned);
        assert!(Reference::parse_base("dir:x").is_err());
        assert!(Reference::parse_base("https://x/y").is_err());
        assert!(matches!(
            Reference::parse_base("oci:x"),
            Ok(Reference::Layout { .. })
        ));
    }
}
