//! The far side of ssh: a program that is sent to a host, speaks over stdin and stdout, and leaves nothing behind.

/// The agent as a static executable for this program's own platform: what build.rs made. `None` if it could not be made
/// (build.rs said why), or was not wanted.
#[cfg(feature = "full")]
pub fn binary() -> Option<&'static [u8]> {
    let binary: &'static [u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vm2k-agent"));
    (!binary.is_empty()).then_some(binary)
}

#[cfg(all(test, feature = "full"))]
mod tests {
    #[test]
    fn the_embedded_agent_needs_no_library_of_the_host() {
        let binary = super::binary().expect("build.rs made the agent");
        assert!(binary.starts_with(b"\x7fELF"));
        let loader = b"/ld-linux".as_slice();
        assert!(!binary.windows(loader.len()).any(|w| w == loader));
        assert!(
            binary.len() < 4 << 20,
            "{} bytes travel to each host",
            binary.len()
        );
    }
}
