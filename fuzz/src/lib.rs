//! What the targets share: inputs that stand for large images, checksums, and the reading of disks and filesystems.

pub mod image;
pub mod read;
pub mod sign;

pub use image::{Image, Volume, mutate};

/// A target whose inputs are [`Image`]s, changed by [`mutate`].
#[macro_export]
macro_rules! image_target {
    (|$image:ident| $body:block) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            if let Some($image) = $crate::Image::decode(bytes) {
                $body
            }
        });
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::mutate(data, size, max_size, seed, libfuzzer_sys::fuzzer_mutate)
        });
    };
}
