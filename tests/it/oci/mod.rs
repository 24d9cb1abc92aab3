//! Images: read, flattened, written. Judges: umoci, skopeo, podman, docker-registry.

mod flatten;
mod make;
mod write;
