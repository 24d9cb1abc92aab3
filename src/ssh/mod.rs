//! Connections to other hosts: what runs a command there, with its three streams.

pub mod rsh;
pub mod transport;
