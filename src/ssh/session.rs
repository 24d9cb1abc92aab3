//! A connection to a host, and how it is made.

use super::config::Files;
use super::connect;
use super::login::Ask;
use super::pump::{Pump, What};
use super::target::Target;
use super::transport::{Process, Transport, lost};
use crate::error::Result;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How a connection is made, besides what the configuration says.
#[derive(Clone)]
pub struct Options {
    /// The files of configuration.
    pub files: Files,
    /// Key files that are tried before all others.
    pub identities: Vec<PathBuf>,
    /// The password of the user on the target; it is not used for hosts between.
    pub password: Option<Zeroizing<Vec<u8>>>,
    /// The passphrase of key files that are encrypted.
    pub key_passphrase: Option<Zeroizing<Vec<u8>>>,
    /// Fingerprints (`SHA256:...`) of keys that are accepted from hosts that are not known.
    pub accept_host_keys: Vec<String>,
    /// Accept any key of a host that is not known, and write it to the known hosts.
    pub accept_new_host_keys: bool,
    /// How long connecting may take, the handshake included.
    pub connect_timeout: Option<Duration>,
    /// How long nothing may move before a read or a write fails.
    pub idle: Duration,
    /// Silence after which the far side is asked whether it is there, if the configuration does not say it.
    pub alive_interval: Duration,
    /// Asks the user.
    pub ask: Ask,
    /// Is told of remarks and warnings.
    pub warn: Arc<dyn Fn(&str) + Send + Sync>,
    /// Is told how the login goes.
    pub note: Arc<dyn Fn(&str) + Send + Sync>,
    /// Who the user is here.
    pub place: super::config::Place,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            files: Files::Usual,
            identities: Vec::new(),
            password: None,
            key_passphrase: None,
            accept_host_keys: Vec::new(),
            accept_new_host_keys: false,
            connect_timeout: None,
            idle: Duration::from_secs(60),
            alive_interval: Duration::from_secs(15),
            ask: Arc::new(|_| None),
            warn: Arc::new(|_| {}),
            note: Arc::new(|_| {}),
            place: super::config::Place::here(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secrets.
        f.debug_struct("Options")
            .field("files", &self.files)
            .field("identities", &self.identities)
            .field("accept_host_keys", &self.accept_host_keys)
            .field("accept_new_host_keys", &self.accept_new_host_keys)
            .finish_non_exhaustive()
    }
}

/// Bytes that the streams of a connection's processes carried. The protocol adds some to each packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To the host.
    pub sent: u64,
    /// From the host.
    pub received: u64,
}

/// A connection to a host, logged in. It ends when this and all of its processes are dropped.
pub struct Session {
    name: String,
    pump: Pump,
    /// The connection to the host between, which carries this one.
    via: Option<Arc<Session>>,
}

impl Session {
    /// Connects to `target` and logs in.
    ///
    /// # Errors
    /// [`crate::error::Error::Network`] if the host cannot be reached, lets nobody in or is too slow;
    /// [`crate::error::Error::Refused`] if its key is unknown, changed or revoked;
    /// [`crate::error::Error::Usage`] if the configuration cannot be read;
    /// [`crate::error::Error::Unsupported`] if it asks for what is not done here.
    pub fn connect(target: &Target, options: &Options) -> Result<Self> {
        connect::connect(target, options)
    }

    pub(super) fn new(name: String, pump: Pump, via: Option<Arc<Self>>) -> Self {
        Self { name, pump, via }
    }

    /// What the streams carried so far.
    pub fn traffic(&self) -> Traffic {
        let (sent, received) = self.pump.traffic();
        Traffic { sent, received }
    }

    /// Opens a stream to another host by way of this one.
    pub(super) fn tunnel(&self, host: &str, port: u16) -> Result<Process> {
        self.pump.start(What::Tunnel(host.to_owned(), port))
    }

    /// Why the connection is gone, if it is.
    pub(super) fn failure(&self) -> Option<String> {
        // A host between that is gone is the cause.
        let via = self.via.as_ref().and_then(|via| via.failure());
        via.or_else(|| self.pump.failure())
    }
}

impl Transport for Session {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn start(&self, command: &str) -> Result<Process> {
        if command.contains('\0') {
            return Err(crate::error::Error::usage("a command has a NUL byte"));
        }
        self.pump
            .start(What::Command(command.to_owned()))
            .map_err(|e| self.failure().map_or(e, lost))
    }
}
