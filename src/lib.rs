//! vm2k turns a virtual machine into a container image, and a fleet of machines into images that share their layers.
//!
//! The program is a pipeline of plain values:
//!
//! ```text
//! disk file -> disk -> volume -> fs --+
//! directory, OCI image ---------------+--> Source       a tree of files, and a way to read each one
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
//! `docs/architecture.md` has the map of modules and the rules between them.

pub mod agent;
pub mod arch;
pub mod bytes;
mod cache;
pub mod calendar;
pub mod cli;
pub mod convert;
pub mod delta;
pub mod diff;
pub mod digest;
pub mod disk;
pub mod distro;
pub mod dockerfile;
pub mod engine;
pub mod error;
pub mod fs;
pub mod graph;
pub mod inventory;
pub mod jobs;
pub mod layer;
pub mod oci;
pub mod path;
pub mod pkgdb;
pub mod plan;
pub mod progress;
pub mod rdiff;
pub mod read_at;
pub mod repository;
pub mod scratch;
pub mod source;
pub mod ssh;
pub mod store;
mod tar;
pub mod tree;
pub mod verify;
pub mod volume;
