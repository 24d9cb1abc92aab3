//! Connections to real sshd's on loopback, each with its own keys, configuration and known hosts. The judges are OpenSSH's
//! own programs: sshd, ssh-keygen, ssh-agent, `ssh -G`.

mod configuration;
mod hosts;
mod login;
pub(crate) mod server;
mod streams;
mod trouble;
