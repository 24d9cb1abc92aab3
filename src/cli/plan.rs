//! `vm2k plan`: what convert would do.

use super::{Common, decisions::Decisions, target, ui::Ui};
use crate::convert::{Machine, prepare};
use crate::error::{Error, code};
use crate::layer::compress::Compression;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    decisions: Decisions,
    /// Write the plan to a file instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let store = target::store(common)?;
    let options = arguments
        .decisions
        .options(common, &store, None, Compression::default())?;
    let distros = target::distros(common)?;
    let opened = target::open_machine(common, &arguments.decisions.target, ui)?;
    let machine = Machine {
        source: &*opened.source,
        identity: opened.identity.as_deref(),
    };
    let prepared = prepare(machine, &options, &store, &distros, ui)?;
    let yaml = prepared.document.to_yaml()?;
    match &arguments.output {
        Some(path) => {
            std::fs::write(path, yaml).map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        }
        None => std::io::Write::write_all(&mut std::io::stdout().lock(), yaml.as_bytes())?,
    }
    Ok(if opened.source.problems().is_empty() {
        code::DONE
    } else {
        code::DIFFERS
    })
}
