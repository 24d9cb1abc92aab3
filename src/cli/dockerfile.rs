//! `vm2k dockerfile`: a build context of a machine.

use super::decisions::{Decisions, mirror};
use super::{Common, target, text, ui::Ui};
use crate::convert::{Machine, Prepared, prepare};
use crate::dockerfile::ladder::Rung;
use crate::dockerfile::{Options, Report, write_context};
use crate::error::{Error, Escaped, code};
use crate::layer::compress::Compression;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    decisions: Decisions,
    /// The directory of the build context; it must not be there, be empty, or be an earlier context
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Ask for packages at TO where a repository's URL begins with FROM, here and when the image is built; may be repeated
    #[arg(long, value_name = "FROM=TO", value_parser = mirror)]
    mirror: Vec<(String, String)>,
    /// What stands behind FROM, where the base is known by another name there
    #[arg(long, value_name = "IMAGE")]
    from: Option<String>,
    /// The result as one JSON document on stdout
    #[arg(long)]
    json: bool,
    /// Write the same document to a file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    if let Some(from) = &arguments.from
        && !is_image_name(from)
    {
        return Err(Error::usage(format!("--from {from:?} is not the name of an image")).into());
    }
    let store = target::store(common)?;
    let options = arguments
        .decisions
        .options(common, &store, None, Compression::None)?;
    let distros = target::distros(common)?;
    let opened = target::open_machine(common, &arguments.decisions.target, ui)?;
    let machine = Machine {
        source: &*opened.source,
        identity: opened.identity.as_deref(),
    };
    let prepared = prepare(machine, &options, &store, &distros, ui)?;
    let report = write_context(
        &arguments.output,
        machine,
        &prepared,
        &options,
        &Options {
            offline: common.offline,
            mirrors: arguments.mirror.clone(),
            from: arguments.from.clone(),
            ..Options::default()
        },
        &distros,
        &store,
        ui,
    )?;
    if let Some(path) = &arguments.report {
        let mut json = serde_json::to_vec_pretty(&report)?;
        json.push(b'\n');
        std::fs::write(path, json).map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&report, &prepared, &arguments.output));
    }
    let clean = opened.source.problems().is_empty() && report.is_clean();
    Ok(if clean { code::DONE } else { code::DIFFERS })
}

/// True for what may stand behind `FROM` and means nothing else there.
fn is_image_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    !text.is_empty() && text.chars().all(plain) && !text.starts_with('-')
}

/// The repositories that did not answer, a line each.
pub(super) fn silent(report: &Report) -> impl Iterator<Item = String> {
    report.silent().map(|(repository, why)| {
        format!(
            "no answer: {}: {}",
            Escaped(repository.as_bytes()),
            Escaped(why.as_bytes())
        )
    })
}

/// What the context holds, for people.
pub(super) fn table(report: &Report, prepared: &Prepared, dir: &Path) -> String {
    let mut out = format!("{} -> {}\n", prepared.document.machine.name, dir.display());
    let mut packages = text::table(&["packages", "", "from"], &[1]);
    for (rung, count) in &report.rungs {
        let checked = report
            .packages
            .iter()
            .filter(|p| p.rung == *rung)
            .any(|p| p.checked);
        let (name, what) = match rung {
            Rung::Base => ("base", "the base image, in this version".to_owned()),
            Rung::Live if checked => ("live", "the machine's repositories".to_owned()),
            Rung::Live => ("live", "the machine's repositories (not checked)".to_owned()),
            Rung::Archive if checked => ("archive", "an archive of the repositories".to_owned()),
            Rung::Archive => (
                "archive",
                "an archive of the repositories (not checked)".to_owned(),
            ),
            Rung::Rest => ("rest", "the machine's own files, in the rest layer".to_owned()),
            Rung::Apart => ("apart", "nowhere: no container needs them".to_owned()),
        };
        packages.add_row([name, &text::count(*count), &what]);
    }
    if !report.rungs.is_empty() {
        out.push_str(&packages.trim_fmt());
        out.push('\n');
    }
    if let Some(rest) = &report.rest {
        out.push_str(&format!(
            "rest layer: {} entries, {}; {} deleted\n",
            text::count(rest.entries),
            text::bytes(rest.size),
            text::count(rest.deleted)
        ));
    }
    for line in silent(report) {
        out.push_str(&format!("{line}\n"));
    }
    for line in &report.skipped {
        out.push_str(&format!("in the rest layer: {line}\n"));
    }
    for line in &report.unsaid {
        out.push_str(&format!("not in the Dockerfile: {line}\n"));
    }
    for line in &report.notes {
        out.push_str(&format!("note: {line}\n"));
    }
    out.push_str(&format!(
        "\nnext: docker build {0}, or buildah bud {0}\n",
        dir.display()
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        assert!(is_image_name("localhost:5000/a/b:1@sha256:00"));
        assert!(!is_image_name("a b") && !is_image_name("$X") && !is_image_name(""));
    }
}
