//! Integration tests: one binary, one module a subject. `tests/all.sh` installs what they need and runs them.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod apk_alpm;
mod assembly;
mod btrfs;
mod delta;
mod directory;
mod disk;
mod distributions;
mod dockerfile;
mod e2e;
mod everything;
mod ext4;
#[allow(dead_code, reason = "shared by the modules beside it")]
mod filesystem;
mod formats;
mod gate;
mod golden;
mod graph;
mod host;
mod inventory;
#[allow(dead_code, reason = "shared by the modules beside it")]
mod kernel;
mod machine;
mod mutants;
mod oci;
mod packages;
mod repositories;
#[allow(dead_code, reason = "shared by the modules beside it")]
mod rpm;
mod ssh;
mod states;
mod support;
mod vfat;
mod volume;
mod xfs;
