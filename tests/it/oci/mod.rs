//! Images: read, flattened, written. Judges: umoci, skopeo, podman, docker-registry.

mod archive;
mod faults;
mod flatten;
pub(crate) mod make;
mod registry;
mod write;
