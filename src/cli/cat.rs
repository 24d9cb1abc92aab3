//! `vm2k cat`: one file's bytes.

use super::{Common, ls::missing, target, ui::Ui};
use crate::diff::for_each_chunk;
use crate::error::{Error, code};
use crate::path::GuestPath;
use clap::Args;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A disk file, dir:PATH or an image; no operating system is needed
    target: String,
    /// The file; symbolic links are followed inside the target
    path: OsString,
}

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let source = target::open_any(common, &arguments.target, ui)?;
    let path = GuestPath::lenient(arguments.path.as_bytes()).map_err(|e| Error::usage(e.to_string()))?;
    let found = source
        .tree()
        .resolve(&path, true)
        .map_err(|_| missing(&*source, &path))?;
    let node = source
        .tree()
        .get(&found)
        .ok_or_else(|| missing(&*source, &path))?;
    if !node.is_file() {
        return Err(Error::usage(format!("{path} is no regular file")).into());
    }
    let content = source.open(node.id)?;
    let mut out = std::io::stdout().lock();
    for_each_chunk(&*content, |chunk| {
        chunk.bytes(|bytes| {
            out.write_all(bytes)
                .map_err(|e| Error::io("writing to stdout", e))
        })
    })?;
    out.flush()?;
    Ok(code::DONE)
}
