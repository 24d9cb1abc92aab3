//! Integration tests: one binary, one module a subject. `tests/all.sh` installs what they need and runs them.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod e2e;
mod ext4;
#[allow(dead_code, reason = "helpers for the modules that follow")]
mod kernel;
#[allow(dead_code, reason = "helpers for the modules that follow")]
mod support;

mod oci;
