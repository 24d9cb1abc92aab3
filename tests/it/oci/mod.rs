//! Images: read, flattened, written. Judges: umoci, skopeo, podman, docker-registry.

mod archive;
mod faults;
mod flatten;
mod make;
mod registry;
mod write;
