//! `vm2k convert`: a machine becomes an image.

use super::{Common, decisions::Decisions, strategy, target, text, ui::Ui};
use crate::convert::{BuiltLayer, Machine, Prepared, Weights, assemble, build, prepare, weigh};
use crate::dockerfile;
use crate::error::code;
use crate::layer::compress::Compression;
use crate::oci::{self, NewImage, Output};
use crate::plan::document::Document;
use crate::source::Source;
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    decisions: Decisions,
    #[command(flatten)]
    strategy: strategy::Arguments,
    /// Where the image goes: oci:DIR[:TAG], oci-archive:FILE[:REF], docker-archive:FILE[:REF] or docker-daemon:REF, or
    /// dockerfile:DIR for a build context; may be repeated
    /// [default: oci-archive:./<hostname>.tar]
    #[arg(long, short, value_name = "OUTPUT")]
    output: Vec<String>,
    /// A plan that `vm2k plan` wrote and a person edited
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print the plan and make nothing
    #[arg(long)]
    dry_run: bool,
    /// How layers are compressed: zstd[:1-19], gzip[:1-9] or none [default: zstd; gzip where an oci-archive is written,
    /// because every engine loads it]
    #[arg(long, value_name = "METHOD")]
    compress: Option<Compression>,
    /// The result as one JSON document on stdout
    #[arg(long)]
    json: bool,
    /// Write the same document to a file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What stands before the directory of a build context.
const CONTEXT: &str = "dockerfile:";

/// The `schema` of the report.
const SCHEMA: &str = "vm2k.convert/1";

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let edited = match &arguments.plan {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            Some(Document::from_yaml(&text).with_context(|| format!("reading {}", path.display()))?)
        }
        None => None,
    };
    // What can be wrong with the words is found before the machine is read.
    let contexts: Vec<&str> = arguments
        .output
        .iter()
        .filter_map(|o| o.strip_prefix(CONTEXT))
        .collect();
    let outputs = arguments
        .output
        .iter()
        .filter(|o| !o.starts_with(CONTEXT))
        .map(|o| Output::parse_output(o))
        .collect::<Result<Vec<_>, _>>()?;
    if !arguments.dry_run {
        outputs.iter().try_for_each(oci::check)?;
        arguments.strategy.check()?;
    }
    let store = target::store(common)?;
    let compression = arguments.compress.unwrap_or_else(|| usual(&outputs));
    let options = arguments.decisions.options(common, &store, edited, compression)?;
    let distros = target::distros(common)?;
    let opened = target::open_machine(common, &arguments.decisions.target, ui)?;
    let machine = Machine {
        source: &*opened.source,
        identity: opened.identity.as_deref(),
    };
    let mut prepared = prepare(machine, &options, &store, &distros, ui)?;
    if arguments.dry_run {
        print!("{}", prepared.document.to_yaml()?);
        return Ok(code::DONE);
    }
    let mut clean = opened.source.problems().is_empty();
    for dir in &contexts {
        let options_of = dockerfile::Options {
            offline: common.offline,
            ..dockerfile::Options::default()
        };
        let dir = Path::new(dir);
        let report = dockerfile::write_context(
            dir,
            machine,
            &prepared,
            &options,
            &options_of,
            &distros,
            &store,
            ui,
        )?;
        if !arguments.json {
            print!("{}", super::dockerfile::table(&report, &prepared, dir));
        } else if outputs.is_empty() {
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        if let (Some(path), true) = (&arguments.report, outputs.is_empty()) {
            let json = serde_json::to_vec_pretty(&report)?;
            std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
        }
        clean &= report.is_clean();
    }
    if outputs.is_empty() && !contexts.is_empty() {
        return Ok(if clean { code::DONE } else { code::DIFFERS });
    }
    let outputs = match outputs.is_empty() {
        true => vec![default_output(&prepared)?],
        false => outputs,
    };
    let skipped;
    (prepared, skipped) = strategy::apply(
        common,
        &arguments.strategy,
        machine,
        prepared,
        &options,
        &distros,
        &store,
        ui,
    )?;
    let linked = outputs.iter().any(|o| matches!(o, Output::Layout { .. }));
    let layers = build(machine, &mut prepared, &options.layers, linked, &store, ui)?;
    let image = assemble(&prepared, &layers, &options.layers, &store)?;
    let mut written = Vec::new();
    for output in &outputs {
        written.push(oci::write(output, &image, ui)?);
    }
    // Weighing opens every file: only where the share of what was built is of interest.
    let weights = match &prepared.on_top {
        Some(_) => Some(weigh(&*opened.source, &prepared)?),
        None => None,
    };
    opened.source.finished();
    let report = report(
        &prepared,
        &layers,
        &image,
        &outputs,
        &*opened.source,
        weights,
        &skipped,
    );
    if let Some(path) = &arguments.report {
        let mut json = serde_json::to_vec_pretty(&report)?;
        json.push(b'\n');
        std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!(
            "{}",
            table(&prepared, &layers, &report, &outputs, &*opened.source, weights)
        );
    }
    clean &= prepared.plan.unsaid.is_empty() && skipped.is_empty();
    Ok(if clean { code::DONE } else { code::DIFFERS })
}

/// The compression when nobody named one. An archive is what people hand to `docker load`, and Docker Engine before 23
/// reads no zstd. No output named is an archive too ([`default_output`]).
fn usual(outputs: &[Output]) -> Compression {
    let archive = |output: &Output| matches!(output, Output::OciArchive { .. });
    match outputs.is_empty() || outputs.iter().any(archive) {
        true => Compression::gzip(),
        false => Compression::default(),
    }
}

/// `oci-archive:./<hostname>.tar`.
fn default_output(prepared: &Prepared) -> anyhow::Result<Output> {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = prepared
        .inventory
        .hostname
        .as_deref()
        .unwrap_or("machine")
        .chars()
        .map(plain)
        .collect();
    let name = name.trim_matches(['.', '-']).to_ascii_lowercase();
    let name = if name.is_empty() { "machine" } else { &name };
    Ok(Output::parse(&format!("oci-archive:./{name}.tar:{name}:latest"))?)
}

/// The result for machines; the fields are a contract.
fn report(
    prepared: &Prepared,
    layers: &[BuiltLayer],
    image: &NewImage,
    outputs: &[Output],
    source: &dyn Source,
    weights: Option<Weights>,
    skipped: &[String],
) -> serde_json::Value {
    let document = &prepared.document;
    let left_out: Vec<_> = prepared
        .plan
        .left_out
        .iter()
        .map(|(path, rule)| serde_json::json!({ "path": path.to_string(), "rule": rule }))
        .collect();
    let problems: Vec<_> = source
        .problems()
        .iter()
        .map(|p| serde_json::json!({ "path": p.path.to_string(), "what": p.what }))
        .collect();
    let built: Vec<_> = prepared
        .on_top
        .iter()
        .flat_map(|o| o.layers.iter().zip(&o.created_by))
        .map(|(l, by)| serde_json::json!({ "created_by": by, "digest": l.digest, "size": l.size, "diff_id": l.diff_id }))
        .collect();
    serde_json::json!({
        "schema": SCHEMA,
        "machine": document.machine.name,
        "base": document.base,
        "profile": document.profile,
        "outputs": outputs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "manifest": image.digest().to_string(),
        "config": document.config,
        "strategy": match prepared.on_top { Some(_) => "dockerfile", None => "layers" },
        "engine": prepared.on_top.as_ref().map(|o| &o.engine),
        "sizes": sizes(prepared, layers, image, weights),
        "built": built,
        "layers": layers.iter().map(|l| serde_json::json!({
            "name": l.name, "digest": l.digest, "size": l.size, "diff_id": l.diff_id, "tar_size": l.tar_size, "reused": l.reused,
        })).collect::<Vec<_>>(),
        "unchanged": document.unchanged,
        "left_out": left_out,
        "rewritten": document.rewritten,
        "unsaid": document.unsaid,
        "skipped": skipped,
        "problems": problems,
        "traffic": source.traffic(),
    })
}

/// Bytes of the compressed image and its parts; and of contents, with the rest's share of the machine.
fn sizes(
    prepared: &Prepared,
    layers: &[BuiltLayer],
    image: &NewImage,
    weights: Option<Weights>,
) -> serde_json::Value {
    let sum = |layers: &[oci::Layer]| layers.iter().map(|l| l.size).sum::<u64>();
    serde_json::json!({
        "image": sum(&image.layers),
        "base": prepared.base.as_ref().map(|b| sum(&b.source.image().layers)),
        "built": prepared.on_top.as_ref().map(|o| sum(&o.layers)),
        "rest": layers.iter().filter(|l| l.name == "rest").map(|l| l.size).sum::<u64>(),
        "machine_contents": weights.map(|w| w.machine),
        "rest_contents": weights.map(|w| w.rest),
        "rest_percent": weights.map(|w| (w.percent() * 100.0).round() / 100.0),
    })
}

/// What went where, for people.
fn table(
    prepared: &Prepared,
    layers: &[BuiltLayer],
    report: &serde_json::Value,
    outputs: &[Output],
    source: &dyn Source,
    weights: Option<Weights>,
) -> String {
    let document = &prepared.document;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        "{} -> {}",
        document.machine.name,
        outputs
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    ));
    let mut layers_table = text::table(&["layer", "entries", "files", "compressed", ""], &[1, 2, 3]);
    if let Some(base) = &prepared.base {
        let size = base.source.image().layers.iter().map(|l| l.size).sum();
        let what = format!("{} ({})", base.reference.reference, base.reference.reason);
        layers_table.add_row([
            "base",
            &text::count(document.unchanged as usize),
            "",
            &text::bytes(size),
            &what,
        ]);
    }
    for (layer, by) in prepared
        .on_top
        .iter()
        .flat_map(|o| o.layers.iter().zip(&o.created_by))
    {
        let by: String = by
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(80)
            .collect();
        let by = crate::error::Escaped(by.as_bytes()).to_string();
        layers_table.add_row(["built", "", "", &text::bytes(layer.size), &by]);
    }
    for (plan, layer) in document.layers.iter().zip(layers) {
        let what = match plan.packages.len() {
            0 => format!(
                "{} added, {} changed, {} deleted",
                plan.added, plan.changed, plan.deleted
            ),
            n => format!(
                "{} packages that the base lacks or has in another version",
                text::count(n)
            ),
        };
        let reused = if layer.reused {
            format!("{what}; from the store")
        } else {
            what
        };
        let entries = (plan.added + plan.changed + plan.deleted) as usize;
        layers_table.add_row([
            &layer.name,
            &text::count(entries),
            &text::bytes(plan.bytes),
            &text::bytes(layer.size),
            &reused,
        ]);
    }
    line(layers_table.trim_fmt());
    if let (Some(on_top), Some(weights)) = (&prepared.on_top, weights) {
        let size = |of: &str| {
            let size = report.pointer(&format!("/sizes/{of}"));
            text::bytes(size.and_then(serde_json::Value::as_u64).unwrap_or(0))
        };
        line(format!(
            "the image has {} compressed: {} base, {} built, {} rest layer",
            size("image"),
            size("base"),
            size("built"),
            size("rest")
        ));
        line(format!(
            "built by {}; the rest layer holds {} of the machine's {}: {:.1} %",
            on_top.engine,
            text::bytes(weights.rest),
            text::bytes(weights.machine),
            weights.percent()
        ));
    }
    let skipped = report.get("skipped").and_then(serde_json::Value::as_array);
    for skipped in skipped.into_iter().flatten() {
        line(format!(
            "in the rest layer: {}",
            skipped.as_str().unwrap_or_default()
        ));
    }
    if !document.left_out.is_empty() {
        let mut rules = text::table(&["left out", "files", "bytes", "why"], &[1, 2]);
        for group in &document.left_out {
            rules.add_row([
                &group.rule,
                &text::count(group.files as usize),
                &text::bytes(group.bytes),
                &group.why,
            ]);
        }
        line(String::new());
        line(rules.trim_fmt());
    }
    for file in &document.rewritten {
        line(format!("rewritten: {} ({})", file.path, file.rule));
    }
    for unsaid in &document.unsaid {
        line(format!("not in the image: {unsaid}"));
    }
    for problem in source.problems() {
        line(format!(
            "not read: {}: {}",
            problem.path,
            crate::error::Escaped(problem.what.as_bytes())
        ));
    }
    if let Some(traffic) = source.traffic() {
        line(String::new());
        line(text::traffic(&traffic));
    }
    if let Some(output) = outputs.first() {
        line(String::new());
        line(format!("next: vm2k verify {} {output}", document.machine.name));
    }
    out
}
