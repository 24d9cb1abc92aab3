//! Connections to other hosts: what runs a command there, with its three streams.
//!
//! ```text
//! Target ("root@web1:22") + Options --config--> Settings --connect--> socket, handshake, host key --login--> pump: Session
//! ```
//!
//! libssh2 speaks the protocol. What is read by this module itself (ssh_config, known_hosts, the envelopes of keys,
//! certificates of hosts) is read as OpenSSH reads it.

pub mod cert;
pub mod config;
mod connect;
mod jump;
pub mod key;
pub mod known_hosts;
mod login;
mod pattern;
mod pump;
pub mod rsh;
mod session;
pub mod settings;
pub mod target;
pub mod transport;

pub use login::{Ask, Question};
pub use session::{Options, Session, Traffic};
pub use settings::Settings;
pub use target::Target;
