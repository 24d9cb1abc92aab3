//! The keys to try and their order: agent's keys that the configuration names, other keys of the agent, key files.

use super::super::cert::Certificate;
use super::super::config::Place;
use super::super::key::{MAX_KEY, PublicKey, envelope, fingerprint};
use super::super::settings::{IdentityAgent, Settings};
use crate::error::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Keys of an agent at most.
const MAX_AGENT_KEYS: usize = 256;

/// A key to try.
pub(super) struct Identity {
    /// For messages.
    pub(super) name: String,
    pub(super) source: Source,
}

pub(super) enum Source {
    Agent(ssh2::PublicKey),
    File {
        path: PathBuf,
        text: Zeroizing<String>,
        encrypted: bool,
        /// Its public key or certificate as a line, where it is known.
        public: Option<String>,
    },
}

pub(super) struct Found {
    pub(super) identities: Vec<Identity>,
    pub(super) agent: Option<ssh2::Agent>,
    /// What could not be used, and why.
    pub(super) remarks: Vec<String>,
}

/// A file that the configuration or the user names.
struct KeyFile {
    path: PathBuf,
    public: Option<PublicKey>,
    /// The private key: text, and whether it is encrypted.
    private: Option<(Zeroizing<String>, bool)>,
}

pub(super) fn find(
    session: &ssh2::Session,
    settings: &Settings,
    named: &[PathBuf],
    place: &Place,
) -> Result<Found> {
    let mut remarks = Vec::new();
    let mut files = Vec::new();
    // The usual files are for those who name none.
    let configured = match named.is_empty() || settings.identities_named {
        true => settings.identity_files.as_slice(),
        false => &[],
    };
    for (path, must) in named
        .iter()
        .map(|p| (p, true))
        .chain(configured.iter().map(|p| (p, false)))
    {
        match key_file(path) {
            Ok(Some(file)) => files.push(file),
            Ok(None) if must => {
                return Err(Error::usage(format!(
                    "--identity {}: there is no key",
                    path.display()
                )));
            }
            Ok(None) => {}
            Err(why) => remarks.push(format!("key file {} ({why})", path.display())),
        }
    }
    let mut certificates = Vec::new();
    for path in settings
        .certificate_files
        .iter()
        .cloned()
        .chain(files.iter().map(|f| beside(&f.path, "-cert.pub")))
    {
        if let Some((line, certificate)) = certificate(&path) {
            certificates.push((path, line, certificate));
        }
    }
    let (agent, keys) = match socket(settings, place) {
        Some(socket) => match agent_keys(session, &socket) {
            Ok((agent, keys)) => (Some(agent), keys),
            Err(why) => {
                // An agent that is not there is nothing to speak of where a key file is.
                if files.is_empty() {
                    remarks.push(format!("the agent at {} ({why})", socket.display()));
                }
                (None, Vec::new())
            }
        },
        None => (None, Vec::new()),
    };
    let mut identities = Vec::new();
    let named_public = |blob: &[u8]| {
        files.iter().position(|f| {
            let public = f.public.as_ref().is_some_and(|p| p.blob == blob);
            public || Certificate::parse(blob).is_some_and(|c| f.public.as_ref() == Some(&c.key))
        })
    };
    let mut of_agent: Vec<(usize, ssh2::PublicKey)> = keys
        .into_iter()
        .map(|key| (named_public(key.blob()).unwrap_or(usize::MAX), key))
        .filter(|(rank, _)| *rank != usize::MAX || !settings.identities_only)
        .collect();
    of_agent.sort_by_key(|(rank, _)| *rank);
    let in_agent = |public: &Option<PublicKey>| {
        public
            .as_ref()
            .is_some_and(|p| of_agent.iter().any(|(_, key)| key.blob() == p.blob))
    };
    let from_files: Vec<Identity> = files
        .iter()
        .filter(|file| !in_agent(&file.public))
        .flat_map(|file| of_file(file, &certificates))
        .collect();
    for (_, key) in of_agent {
        // It would ask the agent for a signature with SHA-1, which no host takes.
        if Certificate::parse(key.blob()).is_some_and(|c| c.key.kind() == Some("ssh-rsa")) {
            remarks.push(format!(
                "agent's certificate {} {} (libssh2 cannot use one of an RSA key in an agent)",
                fingerprint(key.blob()),
                key.comment()
            ));
            continue;
        }
        identities.push(Identity {
            name: format!("agent's key {} {}", fingerprint(key.blob()), key.comment()),
            source: Source::Agent(key),
        });
    }
    identities.extend(from_files);
    Ok(Found {
        identities,
        agent,
        remarks,
    })
}

/// The ways to use one file: with each certificate for its key, and alone.
fn of_file(file: &KeyFile, certificates: &[(PathBuf, String, Certificate)]) -> Vec<Identity> {
    let Some((text, encrypted)) = &file.private else {
        return Vec::new();
    };
    let identity = |name: String, public: Option<String>| Identity {
        name,
        source: Source::File {
            path: file.path.clone(),
            text: text.clone(),
            encrypted: *encrypted,
            public,
        },
    };
    let mut out = Vec::new();
    for (path, line, certificate) in certificates {
        if Some(&certificate.key) == file.public.as_ref() {
            let name = format!(
                "key {} with the certificate {}",
                file.path.display(),
                path.display()
            );
            out.push(identity(name, Some(line.clone())));
        }
    }
    let print = file.public.as_ref().map(|p| format!(" {}", p.fingerprint()));
    let name = format!("key {}{}", file.path.display(), print.unwrap_or_default());
    out.push(identity(name, file.public.as_ref().map(PublicKey::line)));
    out
}

/// `path` with `end` behind its name.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn read(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY));
    std::fs::File::open(path)?
        .take(MAX_KEY as u64)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Looks at a file; `None` if neither it nor its public key is there.
fn key_file(path: &Path) -> Result<Option<KeyFile>, String> {
    let public = |path: &Path| read(path).ok().and_then(|text| PublicKey::parse(&text));
    let file = |public, private| {
        Ok(Some(KeyFile {
            path: path.to_owned(),
            public,
            private,
        }))
    };
    let text = match read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            // The private half may be in the agent.
            return match public(&beside(path, ".pub")) {
                Some(key) => file(Some(key), None),
                None => Ok(None),
            };
        }
        Err(e) => return Err(e.to_string()),
    };
    if let Some(key) = PublicKey::parse(&text) {
        return file(Some(key), None);
    }
    let envelope = envelope(&text).ok_or("it is not a private key of a kind that is known")?;
    let public = envelope.public.or_else(|| public(&beside(path, ".pub")));
    match envelope.unsupported {
        // The agent may have it.
        Some(_) if public.is_some() => file(public, None),
        Some(why) => Err(why),
        None => file(public, Some((text, envelope.encrypted))),
    }
}

fn certificate(path: &Path) -> Option<(String, Certificate)> {
    let text = read(path).ok()?;
    let key = PublicKey::parse(&text)?;
    let certificate = Certificate::parse(&key.blob)?;
    Some((key.line(), certificate))
}

fn socket(settings: &Settings, place: &Place) -> Option<PathBuf> {
    match &settings.identity_agent {
        IdentityAgent::None => None,
        IdentityAgent::Socket(path) => Some(path.clone()),
        IdentityAgent::Environment => (place.variable)("SSH_AUTH_SOCK").map(PathBuf::from),
    }
}

fn agent_keys(session: &ssh2::Session, socket: &Path) -> Result<(ssh2::Agent, Vec<ssh2::PublicKey>), String> {
    let text = |e: ssh2::Error| e.message().to_owned();
    let mut agent = session.agent().map_err(text)?;
    agent.set_identity_path(socket).map_err(text)?;
    agent.connect().map_err(text)?;
    agent.list_identities().map_err(text)?;
    let mut keys = agent.identities().map_err(text)?;
    keys.truncate(MAX_AGENT_KEYS);
    Ok((agent, keys))
}
