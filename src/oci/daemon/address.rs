//! Where the Docker Engine is: as the docker command finds it.

use crate::digest::Digest;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Where it is when nobody said.
const USUAL: &str = "unix:///var/run/docker.sock";

/// What decides: the environment, and docker's own configuration.
pub(super) struct Settings {
    /// `DOCKER_HOST`.
    pub(super) host: Option<String>,
    /// `DOCKER_CONTEXT`.
    pub(super) context: Option<String>,
    /// `DOCKER_CONFIG`, or `.docker` in the home directory.
    pub(super) config: Option<PathBuf>,
    /// True if `DOCKER_TLS_VERIFY` or `DOCKER_TLS` asks for TLS.
    pub(super) tls: bool,
}

impl Settings {
    /// Those of this process.
    pub(super) fn of_environment() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || std::env::home_dir().map(|home| home.join(".docker"));
        Self {
            host: set("DOCKER_HOST"),
            context: set("DOCKER_CONTEXT"),
            config: set("DOCKER_CONFIG").map(PathBuf::from).or_else(home),
            tls: set("DOCKER_TLS_VERIFY").is_some() || set("DOCKER_TLS").is_some(),
        }
    }

    /// The engine's address: `unix://PATH` or `tcp://HOST:PORT`. `DOCKER_HOST` decides, then the context of
    /// `DOCKER_CONTEXT` or the current one of docker's configuration.
    ///
    /// # Errors
    /// [`Error::Usage`] for a context that is not there, [`Error::Unsupported`] for addresses of other kinds.
    pub(super) fn address(&self) -> Result<String> {
        let address = match (&self.host, self.context()) {
            (Some(host), _) => host.clone(),
            (None, Some(context)) if context != "default" => self.of_context(&context)?,
            _ => USUAL.to_owned(),
        };
        let hint = "set DOCKER_HOST to unix://PATH or tcp://HOST:PORT";
        if !address.starts_with("unix://") && !address.starts_with("tcp://") {
            let what = format!("a Docker Engine at {address:?}: only unix:// and tcp:// are spoken");
            return Err(Error::unsupported(what).hint(hint));
        }
        if self.tls && address.starts_with("tcp://") {
            let what = format!("a Docker Engine at {address} with TLS");
            return Err(Error::unsupported(what).hint("forward its socket: ssh -L ./docker.sock:/var/run/docker.sock HOST, and DOCKER_HOST=unix://./docker.sock"));
        }
        Ok(address)
    }

    fn context(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Config {
            #[serde(rename = "currentContext")]
            current: Option<String>,
        }
        let current = || {
            let file = self.config.as_ref()?.join("config.json");
            let config: Config = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
            config.current.filter(|name| !name.is_empty())
        };
        self.context.clone().or_else(current)
    }

    /// The address of a context: `contexts/meta/<sha256 of its name>/meta.json`.
    fn of_context(&self, name: &str) -> Result<String> {
        #[derive(serde::Deserialize)]
        struct Meta {
            #[serde(rename = "Endpoints")]
            endpoints: std::collections::BTreeMap<String, Endpoint>,
        }
        #[derive(serde::Deserialize)]
        struct Endpoint {
            #[serde(rename = "Host")]
            host: Option<String>,
        }
        let dir = self.config.as_deref().unwrap_or(Path::new(""));
        let file = dir
            .join("contexts/meta")
            .join(Digest::of(name.as_bytes()).hex())
            .join("meta.json");
        let bytes = std::fs::read(&file).map_err(|e| {
            Error::io(
                format!("reading the docker context {name:?}: {}", file.display()),
                e,
            )
        })?;
        let meta: Meta = super::super::parse(&bytes, &file.display().to_string())?;
        let host = meta
            .endpoints
            .get("docker")
            .and_then(|endpoint| endpoint.host.clone());
        host.ok_or_else(|| Error::usage(format!("the docker context {name:?} names no engine")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Settings {
        Settings {
            host: None,
            context: None,
            config: None,
            tls: false,
        }
    }

    #[test]
    fn the_environment_then_the_context_then_the_usual_place() {
        assert_eq!(none().address().unwrap(), USUAL);
        let dir = tempfile::tempdir().unwrap();
        let meta = dir.path().join("contexts/meta").join(Digest::of(b"far").hex());
        std::fs::create_dir_all(&meta).unwrap();
        let text = r#"{"Name":"far","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://10.0.0.1:2375","SkipTLSVerify":false}}}"#;
        std::fs::write(meta.join("meta.json"), text).unwrap();
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"auths":{},"currentContext":"far"}"#,
        )
        .unwrap();
        let config = || Some(dir.path().to_owned());
        let current = Settings {
            config: config(),
            ..none()
        };
        assert_eq!(current.address().unwrap(), "tcp://10.0.0.1:2375");
        let usual = Settings {
            config: config(),
            context: Some("default".into()),
            ..none()
        };
        assert_eq!(usual.address().unwrap(), USUAL);
        let gone = Settings {
            config: config(),
            context: Some("gone".into()),
            ..none()
        };
        assert!(gone.address().is_err());
        let host = Settings {
            config: config(),
            host: Some("unix:///x".into()),
            ..none()
        };
        assert_eq!(host.address().unwrap(), "unix:///x");
    }

    #[test]
    fn what_is_not_spoken_is_refused_by_name() {
        for (host, tls) in [
            ("ssh://me@host", false),
            ("npipe:////./pipe/x", false),
            ("tcp://h:2376", true),
        ] {
            let settings = Settings {
                host: Some(host.into()),
                tls,
                ..none()
            };
            let error = settings.address().unwrap_err();
            assert_eq!(error.code(), crate::error::code::UNSUPPORTED, "{error}");
        }
    }
}
