//! `convert --strategy dockerfile`: the arguments, and where the build context lies.

use super::{Common, ui::Ui};
use crate::convert::{BuildFailed, Building, Machine, Options, Prepared, build_context};
use crate::distro::Distros;
use crate::dockerfile::{self, write_context};
use crate::engine::{self, Choice};
use crate::error::{Error, HintExt};
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::store::Store;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;

/// How the layers between base and machine come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub(super) enum Strategy {
    /// From the machine's own files; nothing is executed
    #[default]
    Layers,
    /// The package manager brings packages, in a container engine; what the machine has otherwise is the last layer
    Dockerfile,
}

/// See [`Choice`].
#[derive(Debug, Clone, Copy, ValueEnum, Default)]
enum EngineArgument {
    /// A Docker Engine if one answers, else buildah
    #[default]
    Auto,
    /// A Docker Engine
    Docker,
    /// buildah
    Buildah,
}

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// How the layers come about
    #[arg(long, value_enum, default_value_t)]
    pub(super) strategy: Strategy,
    /// Who builds with --strategy dockerfile
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE")]
    engine: EngineArgument,
    /// The build context of --strategy dockerfile: written here and kept; one that has a Dockerfile already is built as it is
    #[arg(long, value_name = "DIR")]
    context: Option<PathBuf>,
    /// In the build, ask for packages at TO where a repository's URL begins with FROM; may be repeated
    #[arg(long, value_name = "FROM=TO", value_parser = super::decisions::mirror)]
    mirror: Vec<(String, String)>,
    /// The network of the build's commands, as the engine calls it: host, none, ...
    #[arg(long, value_name = "NETWORK")]
    build_network: Option<String>,
}

impl Arguments {
    fn engine(&self) -> Choice {
        match self.engine {
            EngineArgument::Auto => Choice::Auto,
            EngineArgument::Docker => Choice::Docker,
            EngineArgument::Buildah => Choice::Buildah,
        }
    }

    /// Finds out before the machine is read whether somebody builds.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.strategy {
            Strategy::Layers => Ok(()),
            Strategy::Dockerfile => Ok(engine::check(self.engine())?),
        }
    }
}

/// What `prepared` becomes with the strategy of `arguments`, and what was skipped on the way.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a different thing, and all are needed"
)]
pub(super) fn apply(
    common: &Common,
    arguments: &Arguments,
    machine: Machine<'_>,
    prepared: Prepared,
    options: &Options,
    distros: &Distros,
    store: &Arc<Store>,
    ui: &Ui,
) -> anyhow::Result<(Prepared, Vec<String>)> {
    if arguments.strategy == Strategy::Layers {
        return Ok((prepared, Vec::new()));
    }
    let (dir, scratch) = match &arguments.context {
        Some(dir) => (dir.clone(), None),
        None => {
            let made = tempfile::Builder::new().prefix("vm2k-context-").tempdir();
            let failed = |e| {
                Error::io(
                    format!("making a directory in {}", std::env::temp_dir().display()),
                    e,
                )
            };
            let dir = made.map_err(failed)?.keep();
            (dir.clone(), Some(Scratch::new(dir)))
        }
    };
    let ours = !dir.join("Dockerfile").exists();
    let mut skipped = Vec::new();
    if ours {
        let wanted = dockerfile::Options {
            rest: false,
            offline: common.offline,
            mirrors: arguments.mirror.clone(),
            ..dockerfile::Options::default()
        };
        let report = write_context(&dir, machine, &prepared, options, &wanted, distros, store, ui)?;
        for line in super::dockerfile::silent(&report) {
            ui.warn(&line);
        }
        for note in report.notes.iter().chain(&report.unsaid) {
            ui.note(note);
        }
        skipped = report.skipped;
    }
    let building = Building {
        engine: arguments.engine(),
        context: &dir,
        ours,
        network: arguments.build_network.as_deref(),
    };
    let built = build_context(machine, prepared, building, options, store, ui);
    match built {
        Err(e) if e.is::<BuildFailed>() => {
            if let Some(scratch) = scratch {
                scratch.keep();
            }
            let advice = "mend its Dockerfile and run the same again with --context";
            Err(e).hint(format!(
                "the build context is in {}: {advice} {}",
                dir.display(),
                dir.display()
            ))
        }
        built => Ok((built?, skipped)),
    }
}
