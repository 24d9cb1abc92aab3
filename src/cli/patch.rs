//! `vm2k patch`: the files that a bundle of deltas makes.

use super::{Common, target, text, ui::Ui};
use crate::delta::Bundle;
use crate::error::{Error, code};
use crate::path::GuestPath;
use crate::progress::Progress;
use crate::read_at::HostFile;
use crate::scratch::Scratch;
use clap::Args;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The bundle that `diff --delta` wrote
    bundle: PathBuf,
    /// The old side: a disk file, dir:PATH or an image
    a: String,
    /// Only these files
    path: Vec<OsString>,
    /// Put the new files below this directory, which must be new or empty
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let bundle = Bundle::open(Arc::new(HostFile::open(&arguments.bundle)?))
        .map_err(|e| e.within(&arguments.bundle.display().to_string()))?;
    let wanted: Vec<GuestPath> = arguments
        .path
        .iter()
        .map(|p| GuestPath::lenient(p.as_bytes()).map_err(|e| Error::usage(e.to_string())))
        .collect::<Result<_, _>>()?;
    let paths: Vec<&GuestPath> = if wanted.is_empty() {
        bundle.files().map(|(path, _)| path).collect()
    } else {
        wanted.iter().collect()
    };
    let output = &arguments.output;
    let source = target::open_any(common, &arguments.a, ui)?;
    let io = |e| Error::io(format!("writing {}", output.display()), e);
    std::fs::create_dir_all(output).map_err(io)?;
    if std::fs::read_dir(output).map_err(io)?.next().is_some() {
        return Err(Error::usage(format!("{} is not empty", output.display())).into());
    }
    let (mut done, mut bytes, mut failed) = (0, 0_u64, 0);
    for path in paths {
        let old = match source.tree().get(path).filter(|node| node.is_file()) {
            Some(node) => source.open(node.id),
            None => Err(Error::refused(format!(
                "{path} is no regular file of {}",
                source.name()
            ))),
        };
        let made =
            old.and_then(|old| write(output, path, |file| Ok(bundle.apply(path, &*old, file)?.new.size)));
        match made {
            Ok(size) => (done, bytes) = (done + 1, bytes.saturating_add(size)),
            // What was asked for by name must come out.
            Err(e) if !wanted.is_empty() => return Err(e.into()),
            Err(e) => {
                failed += 1;
                ui.warn(&e.to_string());
            }
        }
    }
    ui.note(&format!(
        "{} files patched, {} in all; {} failed",
        text::count(done),
        text::bytes(bytes),
        text::count(failed)
    ));
    Ok(if failed == 0 { code::DONE } else { code::DIFFERS })
}

/// Writes one file below `output`; it appears when it is whole. The directory was empty, so that no link can lead away.
fn write(
    output: &Path,
    path: &GuestPath,
    fill: impl FnOnce(&mut File) -> Result<u64, Error>,
) -> Result<u64, Error> {
    let io = |e| Error::io(format!("writing {path}"), e);
    let to = output.join(OsStr::from_bytes(path.relative()));
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let scratch = Scratch::beside(&to);
    let mut file = File::create_new(scratch.path()).map_err(io)?;
    let size = fill(&mut file)?;
    std::fs::rename(scratch.path(), &to).map_err(io)?;
    scratch.keep();
    Ok(size)
}
