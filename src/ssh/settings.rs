//! What the configuration says of one host: ssh_config(5) with the defaults of ssh(1).

use super::pattern;
use super::target::Target;
use std::path::PathBuf;
use std::time::Duration;

/// Where keys are asked for besides files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum IdentityAgent {
    /// At the socket that `SSH_AUTH_SOCK` names.
    #[default]
    Environment,
    /// Nowhere.
    None,
    /// At this socket.
    Socket(PathBuf),
}

/// What happens with the key of a host that is not known. One that changed is always refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strict {
    /// It is refused (`yes`, `ask`).
    #[default]
    Refuse,
    /// It is accepted and written to the first file of known hosts (`accept-new`).
    AcceptNew,
    /// As before, for the user of `no`.
    Off,
}

/// The settings of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The host as the user named it.
    pub host: String,
    /// The name or address to connect to.
    pub host_name: String,
    /// The port.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// Key files in the order of the configuration, not all of which exist.
    pub identity_files: Vec<PathBuf>,
    /// True if the user named them, false if they are the default ones.
    pub identities_named: bool,
    /// Certificates of users.
    pub certificate_files: Vec<PathBuf>,
    /// Only the keys of the files, even if the agent has more.
    pub identities_only: bool,
    /// The agent.
    pub identity_agent: IdentityAgent,
    /// The hosts between, the first one first.
    pub proxy_jump: Vec<Target>,
    /// A program that makes the connection, which this library does not run.
    pub proxy_command: Option<String>,
    /// Known hosts of the user; the first is written to.
    pub user_known_hosts: Vec<PathBuf>,
    /// Known hosts of the system.
    pub global_known_hosts: Vec<PathBuf>,
    /// What happens with unknown keys.
    pub strict: Strict,
    /// The name by which the host is looked up among the known ones.
    pub host_key_alias: Option<String>,
    /// True if names are hashed when they are written to known hosts.
    pub hash_known_hosts: bool,
    /// How long connecting may take.
    pub connect_timeout: Option<Duration>,
    /// Silence after which the far side is asked whether it is there.
    pub alive_interval: Option<Duration>,
    /// How often it is asked.
    pub alive_count: u32,
    /// Compress.
    pub compression: bool,
    /// Ways to log in, the first one first.
    pub authentications: Vec<String>,
    /// How often a password is asked for.
    pub prompts: u32,
    /// Only addresses of this version (4 or 6).
    pub address_family: Option<u8>,
    /// Lists of algorithms as they stand in the configuration: (keyword, list).
    pub algorithms: Vec<(&'static str, String)>,
    /// What stands in the configuration and is not followed, with file and line.
    pub remarks: Vec<String>,
}

impl Settings {
    /// The name of the host among the known ones.
    pub fn known_as(&self) -> String {
        match &self.host_key_alias {
            Some(alias) => alias.to_ascii_lowercase(),
            None if self.port == 22 => self.host_name.to_ascii_lowercase(),
            None => format!("[{}]:{}", self.host_name.to_ascii_lowercase(), self.port),
        }
    }

    /// `list` as the user wants it: `+` adds to the ones of libssh2, `-` takes away, `^` puts in front.
    pub(super) fn algorithms(&self, keyword: &str, supported: &[&str]) -> Option<String> {
        let (_, wanted) = self.algorithms.iter().find(|(k, _)| *k == keyword)?;
        let known = |list: &str| -> Vec<String> {
            let named = list.split(',').map(str::trim);
            named
                .filter(|n| supported.contains(n))
                .map(str::to_owned)
                .collect()
        };
        let all = || supported.iter().map(|s| (*s).to_owned());
        let list: Vec<String> = match wanted.split_at_checked(1) {
            Some(("+", list)) => {
                let more = known(list);
                all().chain(more).collect()
            }
            Some(("-", list)) => {
                let patterns: Vec<&str> = list.split(',').map(str::trim).collect();
                all()
                    .filter(|name| !pattern::matches_any(patterns.iter().copied(), name))
                    .collect()
            }
            Some(("^", list)) => {
                let first = known(list);
                first
                    .iter()
                    .cloned()
                    .chain(all().filter(|n| !first.contains(n)))
                    .collect()
            }
            _ => known(wanted),
        };
        Some(list.join(","))
    }
}
