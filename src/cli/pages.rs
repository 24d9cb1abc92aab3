//! `vm2k completions` and `vm2k man`: what the table of arguments says, for shells and for man(1).

use crate::error::{Error, code};
use clap::{Args, CommandFactory};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct CompletionArguments {
    /// The shell
    shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// The directory; it is made if it is missing
    dir: PathBuf,
}

pub(super) fn completions(arguments: &CompletionArguments) -> anyhow::Result<u8> {
    let mut out = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Cli::command(), "vm2k", &mut out);
    std::io::Write::write_all(&mut std::io::stdout(), &out)?;
    Ok(code::DONE)
}

pub(super) fn man(arguments: &ManArguments) -> anyhow::Result<u8> {
    let dir = &arguments.dir;
    let failed = |e| Error::io(format!("writing man pages to {}", dir.display()), e);
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(super::Cli::command(), dir).map_err(failed)?;
    Ok(code::DONE)
}
