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

/// The agent as a static executable for this program's own platform, gzip'ed or plain; `None` if there is none.
pub fn binary() -> Option<&'static [u8]> {
    None
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
