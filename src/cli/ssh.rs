//! The options of connections to hosts.

use super::Common;
use super::keys::{ask, read_line_of};
use super::ui::Ui;
use crate::error::{Error, Result};
use crate::progress::Progress as _;
use crate::ssh::config::{Files, Place};
use crate::ssh::rsh::{self, Rsh};
use crate::ssh::transport::Transport;
use crate::ssh::{Options, Session, Target};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use zeroize::Zeroizing;

/// How hosts are reached. What is not said here is taken from the user's ssh configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Hosts")]
pub(super) struct SshArguments {
    /// Take the ssh configuration from this file alone (none for no file) [default: ~/.ssh/config and /etc/ssh/ssh_config]
    #[arg(long, global = true, value_name = "FILE")]
    ssh_config: Option<PathBuf>,
    /// Log in with this private key; may be given several times
    #[arg(long, global = true, value_name = "FILE")]
    identity: Vec<PathBuf>,
    /// Read the passphrase of encrypted private keys from this file
    #[arg(long, global = true, value_name = "FILE", env = "VM2K_SSH_PASSPHRASE_FILE")]
    key_passphrase_file: Option<PathBuf>,
    /// Read the password from the first line of stdin
    #[arg(long, global = true)]
    password_stdin: bool,
    /// Accept exactly this key (SHA256:...) from a host that is not known; may be given several times
    #[arg(long, global = true, value_name = "FINGERPRINT")]
    accept_host_key: Vec<String>,
    /// Accept the keys of hosts that are not known, and write them to known_hosts
    #[arg(long, global = true)]
    accept_new_host_keys: bool,
    /// How long connecting to a host may take [default: 30, or ConnectTimeout]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    connect_timeout: Option<u32>,
    /// Connect with another program, as in --rsh ssh, to which the host and the command are given as its last words
    #[arg(long, global = true, value_name = "COMMAND", env = "VM2K_RSH", conflicts_with_all = [
        "ssh_config", "identity", "password_stdin", "accept_host_key", "accept_new_host_keys", "connect_timeout",
    ])]
    rsh: Option<String>,
}

impl SshArguments {
    fn options(&self, common: &Common, ui: &Ui) -> Result<Options> {
        let files = match &self.ssh_config {
            None => Files::Usual,
            Some(path) if path == Path::new("none") => Files::None,
            Some(path) => Files::Only(path.clone()),
        };
        let key_passphrase = match &self.key_passphrase_file {
            Some(path) => {
                let name = path.display().to_string();
                let mut file =
                    std::fs::File::open(path).map_err(|e| Error::io(format!("opening {name}"), e))?;
                Some(read_line_of(&mut file, &name)?)
            }
            None => None,
        };
        let (teller, noter, asker) = (ui.clone(), ui.clone(), ui.clone());
        Ok(Options {
            files,
            identities: self.identity.clone(),
            password: self.password(common)?,
            key_passphrase,
            accept_host_keys: self.accept_host_key.clone(),
            accept_new_host_keys: self.accept_new_host_keys,
            connect_timeout: self.connect_timeout.map(|s| Duration::from_secs(s.into())),
            ask: Arc::new(move |question| {
                let text = format!("{}: ", question.text);
                asker.bars().suspend(|| ask(&text, question.echo))
            }),
            warn: Arc::new(move |text| teller.warn(text)),
            note: Arc::new(move |text| noter.note(text)),
            place: Place::here(),
            ..Options::default()
        })
    }

    /// The password on stdin, which can be read once and is for all hosts.
    fn password(&self, common: &Common) -> Result<Option<Zeroizing<Vec<u8>>>> {
        static PASSWORD: OnceLock<Zeroizing<Vec<u8>>> = OnceLock::new();
        if !self.password_stdin {
            return Ok(None);
        }
        if common.key_file.iter().any(|path| path == Path::new("-")) {
            return Err(Error::usage(
                "--password-stdin and --key-file - are both given: stdin can be read once",
            ));
        }
        if PASSWORD.get().is_none() {
            let line = read_line_of(&mut std::io::stdin().lock(), "stdin")?;
            if line.is_empty() {
                return Err(Error::usage("--password-stdin: there is no password on stdin"));
            }
            let _ = PASSWORD.set(line);
        }
        Ok(PASSWORD.get().cloned())
    }
}

/// Connects to `target` as the options say.
///
/// # Errors
/// As [`Session::connect`]; [`Error::Usage`] if a file or stdin that the options name has no secret.
pub(super) fn open_transport(
    common: &Common,
    target: &Target,
    ui: &Ui,
) -> anyhow::Result<Arc<dyn Transport>> {
    if let Some(command) = &common.ssh.rsh {
        let place = rsh::Place {
            host: target.host.clone(),
            user: target.user.clone(),
            port: target.port,
        };
        return Ok(Arc::new(Rsh::new(command, &place)?));
    }
    let options = common.ssh.options(common, ui)?;
    Ok(Arc::new(Session::connect(target, &options)?))
}
