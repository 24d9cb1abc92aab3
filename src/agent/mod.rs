//! The far side of ssh: a program that is sent to a host, speaks over stdin and stdout, and leaves nothing behind.
//!
//! [`wire`] is what both sides say, [`serve`] runs on the host, `source::host` is the near side.

#![deny(clippy::indexing_slicing)]

mod codec;
mod limits;
mod mounts;
mod read;
pub mod serve;
pub mod wire;

/// The agent as a static executable for this program's own platform: what build.rs made. `None` if it could not be made
/// (build.rs said why), or was not wanted.
#[cfg(feature = "full")]
pub fn binary() -> Option<&'static [u8]> {
    let binary: &'static [u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vm2k-agent"));
    (!binary.is_empty()).then_some(binary)
}

/// The version of the protocol. Both sides must have the same.
pub const VERSION: u16 = 1;

/// Which build this is, for messages.
pub fn build() -> String {
    format!("vm2k {} protocol {VERSION}", env!("CARGO_PKG_VERSION"))
}

/// The program `vm2k-agent`, and `vm2k agent`: `args` without the program's name.
///
/// `--check` only ends well, to tell that it can run. `--own FILE` names its own executable, which it removes. `--say` says on
/// stdout that it begins, for a far side that cannot know.
pub fn main(args: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    let mut own = None;
    let mut args = args.skip_while(|word| word == "agent");
    while let Some(word) = args.next() {
        match word.to_str() {
            Some("--check") => return std::process::ExitCode::SUCCESS,
            Some("--own") => own = args.next(),
            Some("--say") => println!("vm2k: go"),
            _ => {
                eprintln!("error: the agent takes --check, --own FILE and --say");
                return std::process::ExitCode::from(crate::error::code::USAGE);
            }
        }
    }
    match serve::run(own.as_deref().map(std::path::Path::new)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::from(e.code())
        }
    }
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
