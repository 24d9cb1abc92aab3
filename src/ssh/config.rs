//! ssh_config(5): the user's file and the system's, read for one host. The first value of a keyword wins.
//!
//! What is understood is followed as ssh(1) does; what is not is told as a remark with file and line, never passed over in
//! silence. `ssh -G` judges it in the tests.
#![deny(clippy::indexing_slicing)]

mod read;
mod tokens;

use super::settings::{IdentityAgent, Settings, Strict};
use super::target::Target;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
pub use tokens::{Place, Variables};
use tokens::{expand, expand_path};

/// The files of configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Files {
    /// `~/.ssh/config` and `/etc/ssh/ssh_config`, where they exist.
    #[default]
    Usual,
    /// This file alone, which must exist.
    Only(PathBuf),
    /// None.
    None,
}

/// The files that `ssh` looks for keys in when none are named.
const IDENTITIES: [&str; 6] = [
    "id_rsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
    "id_xmss",
];
/// The order of ssh(1), without the ways that are not supported here.
const AUTHENTICATIONS: [&str; 3] = ["publickey", "keyboard-interactive", "password"];

/// What was read so far.
#[derive(Debug, Default)]
struct Values {
    /// Lower-case keyword and arguments of the first line that has it.
    first: Vec<(&'static str, Vec<String>)>,
    identities: Vec<String>,
    certificates: Vec<String>,
    remarks: Vec<String>,
}

impl Values {
    fn all(&self, keyword: &str) -> Option<&[String]> {
        self.first
            .iter()
            .find(|(k, _)| *k == keyword)
            .map(|(_, v)| v.as_slice())
    }

    fn one(&self, keyword: &str) -> Option<&str> {
        self.all(keyword)?.first().map(String::as_str)
    }

    fn yes(&self, keyword: &str) -> Result<Option<bool>> {
        match self.one(keyword).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(None),
            Some("yes" | "true") => Ok(Some(true)),
            Some("no" | "false") => Ok(Some(false)),
            Some(other) => Err(wrong(keyword, other)),
        }
    }

    fn number(&self, keyword: &str) -> Result<Option<u32>> {
        self.one(keyword)
            .map(|v| v.parse().map_err(|_| wrong(keyword, v)))
            .transpose()
    }

    /// A time of sshd_config(5): `90`, `1m30s`; `none` or 0 is no time.
    fn time(&self, keyword: &str) -> Result<Option<Duration>> {
        let Some(text) = self.one(keyword) else {
            return Ok(None);
        };
        if text.eq_ignore_ascii_case("none") {
            return Ok(None);
        }
        let mut total = 0_u64;
        let mut digits = String::new();
        for c in text.chars() {
            if c.is_ascii_digit() {
                digits.push(c);
                continue;
            }
            let unit = match c.to_ascii_lowercase() {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 86400,
                'w' => 604_800,
                _ => return Err(wrong(keyword, text)),
            };
            let number: u32 = digits.parse().map_err(|_| wrong(keyword, text))?;
            total = total.saturating_add(u64::from(number).saturating_mul(unit));
            digits.clear();
        }
        if !digits.is_empty() {
            let number: u32 = digits.parse().map_err(|_| wrong(keyword, text))?;
            total = total.saturating_add(number.into());
        }
        Ok((total > 0).then(|| Duration::from_secs(total)))
    }
}

fn wrong(keyword: &str, value: &str) -> Error {
    Error::usage(format!(
        "the ssh configuration says {keyword} {value}, which is no value for it"
    ))
}

/// The settings of `target` by the `files`. `place` says who and where the user is.
///
/// # Errors
/// [`Error::Usage`] if a file has a line that cannot be read or a value that is none; [`Error::Io`] if the named file cannot
/// be read.
pub fn resolve(target: &Target, files: &Files, place: &Place) -> Result<Settings> {
    let mut reader = read::Reader::new(target, place);
    match files {
        Files::Usual => {
            reader.read(&place.home.join(".ssh/config"), true, false)?;
            reader.read(Path::new("/etc/ssh/ssh_config"), false, false)?;
            if reader.wants_second_pass() {
                reader.second_pass();
                reader.read(&place.home.join(".ssh/config"), true, false)?;
                reader.read(Path::new("/etc/ssh/ssh_config"), false, false)?;
            }
        }
        Files::Only(path) => {
            reader.read(path, true, true)?;
            if reader.wants_second_pass() {
                reader.second_pass();
                reader.read(path, true, true)?;
            }
        }
        Files::None => {}
    }
    settings(target, reader.finish(), place)
}

/// The settings of `target` by a file that holds `text`. What it includes is read.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_text(target: &Target, text: &str, place: &Place) -> Result<Settings> {
    let mut reader = read::Reader::new(target, place);
    let path = Path::new("ssh_config");
    reader.text(text, path, true, 0)?;
    if reader.wants_second_pass() {
        reader.second_pass();
        reader.text(text, path, true, 0)?;
    }
    settings(target, reader.finish(), place)
}

fn settings(target: &Target, values: Values, place: &Place) -> Result<Settings> {
    let host_name = match values.one("hostname") {
        Some(name) => {
            let tokens = [('h', target.host.clone())];
            expand(name, &tokens).ok_or_else(|| wrong("HostName", name))?
        }
        None => target.host.clone(),
    };
    // A configuration may give an address in brackets to be the same in both places.
    let port = match (target.port, values.one("port")) {
        (Some(port), _) => port,
        (None, Some(text)) => match text.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(wrong("Port", text)),
        },
        (None, None) => 22,
    };
    let user = match (&target.user, values.one("user")) {
        (Some(user), _) => user.clone(),
        (None, Some(user)) => user.to_owned(),
        (None, None) => place.user.clone(),
    };
    let host_key_alias = values.one("hostkeyalias").map(str::to_ascii_lowercase);
    let jump = values
        .one("proxyjump")
        .filter(|v| !v.eq_ignore_ascii_case("none"));
    let tokens = place.tokens(target, &host_name, port, &user, host_key_alias.as_deref(), jump);
    let path = |keyword: &str, text: &str| -> Result<PathBuf> {
        expand_path(text, &tokens, place).ok_or_else(|| wrong(keyword, text))
    };
    let paths = |keyword: &str, default: &[&str]| -> Result<Vec<PathBuf>> {
        match values.all(keyword) {
            Some([none]) if none.eq_ignore_ascii_case("none") => Ok(Vec::new()),
            Some(list) => list.iter().map(|text| path(keyword, text)).collect(),
            None => default.iter().map(|text| path(keyword, text)).collect(),
        }
    };
    let mut identity_files = Vec::new();
    for text in &values.identities {
        if text.eq_ignore_ascii_case("none") {
            continue;
        }
        let file = path("IdentityFile", text)?;
        if !identity_files.contains(&file) {
            identity_files.push(file);
        }
    }
    let identities_named = !values.identities.is_empty();
    if !identities_named {
        identity_files.extend(IDENTITIES.iter().map(|name| place.home.join(".ssh").join(name)));
    }
    let certificate_files = values
        .certificates
        .iter()
        .filter(|text| !text.eq_ignore_ascii_case("none"))
        .map(|text| path("CertificateFile", text))
        .collect::<Result<Vec<_>>>()?;
    let identity_agent = match values.one("identityagent") {
        None => IdentityAgent::Environment,
        Some("SSH_AUTH_SOCK") => IdentityAgent::Environment,
        Some(none) if none.eq_ignore_ascii_case("none") => IdentityAgent::None,
        Some(text) => match text.strip_prefix('$') {
            Some(name) if !name.starts_with('{') => match (place.variable)(name) {
                Some(socket) => IdentityAgent::Socket(socket.into()),
                None => IdentityAgent::None,
            },
            _ => IdentityAgent::Socket(path("IdentityAgent", text)?),
        },
    };
    let mut proxy_jump = Vec::new();
    for hop in jump.into_iter().flat_map(|list| list.split(',')) {
        proxy_jump.push(Target::parse(hop.trim())?);
    }
    // Of the two keywords, the one that stands first in the configuration counts.
    let position = |keyword: &str| values.first.iter().position(|(k, _)| *k == keyword);
    let command = values
        .all("proxycommand")
        .map(|words| words.join(" "))
        .filter(|text| !text.eq_ignore_ascii_case("none"));
    let command_first = position("proxycommand") < position("proxyjump") || position("proxyjump").is_none();
    if command_first && position("proxycommand").is_some() {
        proxy_jump.clear();
    }
    let proxy_command = command.filter(|_| command_first);
    let strict = match values
        .one("stricthostkeychecking")
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("ask" | "yes" | "true") => Strict::Refuse,
        Some("accept-new") => Strict::AcceptNew,
        Some("no" | "off" | "false") => Strict::Off,
        Some(other) => return Err(wrong("StrictHostKeyChecking", other)),
    };
    let mut authentications: Vec<String> = match values.one("preferredauthentications") {
        Some(list) => list.split(',').map(|a| a.trim().to_ascii_lowercase()).collect(),
        None => AUTHENTICATIONS.map(str::to_owned).to_vec(),
    };
    for (keyword, way) in [
        ("pubkeyauthentication", "publickey"),
        ("kbdinteractiveauthentication", "keyboard-interactive"),
        ("challengeresponseauthentication", "keyboard-interactive"),
        ("passwordauthentication", "password"),
    ] {
        // PubkeyAuthentication has more values than yes and no, and all of them mean yes.
        let no = matches!(values.one(keyword), Some(v) if v.eq_ignore_ascii_case("no") || v.eq_ignore_ascii_case("false"));
        if no {
            authentications.retain(|a| a != way);
        }
    }
    let mut prompts = values.number("numberofpasswordprompts")?.unwrap_or(3);
    if values.yes("batchmode")? == Some(true) {
        prompts = 0;
    }
    let address_family = match values
        .one("addressfamily")
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("any") => None,
        Some("inet") => Some(4),
        Some("inet6") => Some(6),
        Some(other) => return Err(wrong("AddressFamily", other)),
    };
    let algorithms = ["hostkeyalgorithms", "kexalgorithms", "ciphers", "macs"]
        .into_iter()
        .filter_map(|keyword| Some((keyword, values.one(keyword)?.to_owned())))
        .collect();
    let known = ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"];
    let system = ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"];
    let user_known_hosts = paths("userknownhostsfile", &known)?;
    let global_known_hosts = paths("globalknownhostsfile", &system)?;
    Ok(Settings {
        host: target.host.clone(),
        host_name,
        port,
        user,
        identity_files,
        identities_named,
        certificate_files,
        identities_only: values.yes("identitiesonly")?.unwrap_or(false),
        identity_agent,
        proxy_jump,
        proxy_command,
        user_known_hosts,
        global_known_hosts,
        strict,
        host_key_alias,
        hash_known_hosts: values.yes("hashknownhosts")?.unwrap_or(false),
        connect_timeout: values.time("connecttimeout")?,
        alive_interval: values.time("serveraliveinterval")?,
        alive_count: values.number("serveralivecountmax")?.unwrap_or(3),
        compression: values.yes("compression")?.unwrap_or(false),
        authentications,
        prompts,
        address_family,
        algorithms,
        remarks: values.remarks,
    })
}
