//! `vm2k verify`: the proof that an image is its machine.

use super::{Common, diff::itemized, target, text, ui::Ui};
use crate::convert::known_contents;
use crate::diff::{Change, Side};
use crate::error::code;
use crate::oci;
use crate::plan::note::{LABEL, Note};
use crate::plan::redact;
use crate::plan::rules::{Profile, Rules};
use crate::progress::Progress;
use crate::source::Source;
use crate::verify::{Report, verify};
use clap::Args;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The machine, as convert read it
    target: String,
    /// The image, as convert wrote it
    image: String,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// The `schema` of `verify --json`.
const SCHEMA: &str = "vm2k.verify/1";

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let files = target::judged(common, &oci::Reference::parse(&arguments.image)?, ui)?;
    let opened = target::open_judge(common, &arguments.target, ui)?;
    let note = match files.image().label(LABEL) {
        Some(text) => Note::decode(text)?,
        None => {
            ui.warn("the image says nothing of a plan: everything that it lacks is listed");
            Note::default()
        }
    };
    let rewritten = match note.rewritten.is_empty() {
        true => BTreeMap::new(),
        false => redact::password_files(&*opened.source)?,
    };
    let rules = Rules::new(Profile::Faithful, &[], &[])?;
    let known = known_contents(&files);
    let side = Side {
        source: &files,
        known: &known,
    };
    let report = verify(
        &*opened.source,
        side,
        &note,
        &rewritten,
        &|p| rules.ignored(p),
        common.jobs(),
        ui,
    )?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &json(arguments, &report))?;
        writeln!(out)?;
    } else {
        table(&mut out, &report, &*opened.source, &files)?;
    }
    out.flush()?;
    let clean = report.is_clean() && report.problems.is_empty();
    Ok(if clean { code::DONE } else { code::DIFFERS })
}

fn json(arguments: &Arguments, report: &Report) -> serde_json::Value {
    let difference = |(path, change): &(crate::path::GuestPath, Change)| {
        let (what, fields): (&str, Vec<&str>) = match change {
            Change::Added => ("only in the image", Vec::new()),
            Change::Deleted => ("missing from the image", Vec::new()),
            Change::Changed(fields) => ("differs", fields.names().collect()),
        };
        serde_json::json!({ "path": path.to_string(), "what": what, "fields": fields })
    };
    let left_out = report
        .left_out
        .iter()
        .map(|(p, rule)| serde_json::json!({ "path": p.to_string(), "rule": rule }));
    let problems = report
        .problems
        .iter()
        .map(|p| serde_json::json!({ "path": p.path.to_string(), "what": p.what }));
    let unread = report
        .unread
        .iter()
        .map(|(p, why)| serde_json::json!({ "path": p.to_string(), "what": why }));
    serde_json::json!({
        "schema": SCHEMA,
        "machine": arguments.target,
        "image": arguments.image,
        "clean": report.is_clean() && report.problems.is_empty(),
        "compared": report.compared,
        "bytes": report.bytes,
        "differences": report.differences.iter().map(difference).collect::<Vec<_>>(),
        "left_out": left_out.collect::<Vec<_>>(),
        "rewritten": report.rewritten.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "unsaid": report.unsaid.iter().map(|(p, what)| format!("{p}: {what}")).collect::<Vec<_>>(),
        "unread": unread.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    })
}

fn table(
    out: &mut dyn Write,
    report: &Report,
    machine: &dyn Source,
    image: &dyn Source,
) -> std::io::Result<()> {
    for (path, change) in &report.differences {
        let item = itemized(*change, machine.tree().get(path), image.tree().get(path));
        let what = match change {
            Change::Added => "only in the image".to_owned(),
            Change::Deleted => "missing from the image".to_owned(),
            Change::Changed(fields) => format!("differs in {fields}"),
        };
        writeln!(out, "{item} {path}: {what}")?;
    }
    for (path, why) in &report.unread {
        writeln!(
            out,
            "could not be compared: {path}: {}",
            crate::error::Escaped(why.as_bytes())
        )?;
    }
    for problem in &report.problems {
        writeln!(
            out,
            "not read: {}: {}",
            problem.path,
            crate::error::Escaped(problem.what.as_bytes())
        )?;
    }
    let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, rule) in &report.left_out {
        *rules.entry(rule).or_default() += 1;
    }
    let rules: Vec<String> = rules.into_iter().map(|(rule, n)| format!("{rule} {n}")).collect();
    writeln!(
        out,
        "{} paths compared in every field, {} of contents; {} differ",
        text::count(report.compared),
        text::bytes(report.bytes),
        text::count(report.differences.len() + report.unread.len()),
    )?;
    if !rules.is_empty() {
        writeln!(out, "left out by the plan (topmost paths): {}", rules.join(", "))?;
    }
    for path in &report.rewritten {
        writeln!(
            out,
            "rewritten by the plan, and compared with what it asks for: {path}"
        )?;
    }
    for (path, what) in &report.unsaid {
        writeln!(
            out,
            "not in the image, because no layer can say it: {path}: {what}"
        )?;
    }
    Ok(())
}
