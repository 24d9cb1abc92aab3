//! vm2k turns a virtual machine into a container image, and a fleet of machines into images that share their layers.
//!
//! The program is a pipeline of plain values:
//!
//! ```text
//! disk file -> disk -> volume -> fs --+
//! directory, OCI image, running host -+--> Source       a tree of files, and a way to read each one
//!                                            |
//!                                            | inventory::take(&source, &distros)
//!                                       Inventory       what is there: os, packages, users, services, ...
//!                                            | plan::make(&inventory, &base, &distros, &options)        pure
//!                                       Plan            what goes into which layer and why; what is left out and why
//!                                            | layer::pack(&source, &plan)
//!                                       Layers          reproducible tars, named by their content
//!                                            | oci::write(base, layers, config)
//!                                       Image --> oci:, oci-archive:, docker-archive:, docker-daemon:
//! packages: graph finds what to ask for, dockerfile writes a build context, engine builds it: an image to plan on
//! check:  verify(source, image) compares every file: nothing may differ but what the plan left out by name
//! ```
//!
//! Without its feature `full` the crate is what the agent needs, the far side of ssh, and no more: build.rs builds it so once
//! more, as a small static program, and embeds that.
//!
//! `docs/architecture.md` has the map of modules and the rules between them.

pub mod agent;
#[cfg(feature = "full")]
pub mod arch;
pub mod bytes;
#[cfg(feature = "full")]
mod cache;
#[cfg(feature = "full")]
pub mod calendar;
#[cfg(feature = "full")]
pub mod cli;
#[cfg(feature = "full")]
pub mod convert;
#[cfg(feature = "full")]
pub mod delta;
#[cfg(feature = "full")]
pub mod diff;
pub mod digest;
#[cfg(feature = "full")]
pub mod disk;
#[cfg(feature = "full")]
pub mod distro;
#[cfg(feature = "full")]
pub mod dockerfile;
#[cfg(feature = "full")]
pub mod engine;
pub mod error;
#[cfg(feature = "full")]
pub mod fs;
#[cfg(feature = "full")]
pub mod graph;
#[cfg(feature = "full")]
pub mod inventory;
#[cfg(feature = "full")]
pub mod jobs;
#[cfg(feature = "full")]
pub mod layer;
pub mod live;
#[cfg(feature = "full")]
pub mod oci;
pub mod path;
#[cfg(feature = "full")]
pub mod pkgdb;
#[cfg(feature = "full")]
pub mod plan;
pub mod progress;
pub mod rdiff;
pub mod read_at;
#[cfg(feature = "full")]
pub mod repository;
#[cfg(feature = "full")]
pub mod scratch;
pub mod source;
#[cfg(feature = "full")]
pub mod ssh;
#[cfg(feature = "full")]
pub mod store;
#[cfg(feature = "full")]
mod tar;
pub mod tree;
#[cfg(feature = "full")]
pub mod verify;
#[cfg(feature = "full")]
pub mod volume;
