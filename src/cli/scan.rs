//! `vm2k scan`: what is in a machine.

use super::{Common, target, text, ui::Ui};
use crate::error::{Escaped, code};
use crate::inventory::changed::Changed;
use crate::inventory::{self, BaseMatch, Inventory, scan_document};
use crate::source::Source;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The machine: a disk file, several disks of one machine (disk1.qcow2+disk2.qcow2), or dir:PATH
    target: String,
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Read every file of a package, and list those that differ from what the package brought: configuration that was changed,
    /// programs that were replaced
    #[arg(long)]
    changed: bool,
    /// Write the JSON document to a file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    let distros = target::distros(common)?;
    let opened = target::open_machine(common, &arguments.target, ui)?;
    let mut inventory = inventory::take(&*opened.source, &distros)?;
    let changed = arguments
        .changed
        .then(|| changed(common, &*opened.source, &mut inventory, ui));
    let base = distros.base_for(&inventory.os);
    let mut out = std::io::stdout().lock();
    if arguments.json || arguments.output.is_some() {
        let mut json =
            serde_json::to_vec_pretty(&scan_document(&inventory, Some(&base), changed.as_deref()))?;
        json.push(b'\n');
        match &arguments.output {
            Some(path) => std::fs::write(path, &json)
                .map_err(|e| crate::error::Error::io(format!("writing {}", path.display()), e))?,
            None => out.write_all(&json)?,
        }
    }
    if !arguments.json {
        let table = table(&inventory, changed.as_deref(), &base, &arguments.target);
        out.write_all(table.as_bytes())?;
    }
    for note in &inventory.notes {
        ui.note(note);
    }
    let failure = inventory.database_failure.as_ref().map(|f| f.code);
    let problems = if inventory.problems.is_empty() {
        code::DONE
    } else {
        code::DIFFERS
    };
    Ok(failure.unwrap_or(problems))
}

/// The most rows of one kind that the table shows.
const ROWS: usize = 12;

/// The files that are not what their packages brought; without packages there is nothing to compare with.
fn changed(common: &Common, source: &dyn Source, inventory: &mut Inventory, ui: &Ui) -> Vec<Changed> {
    let packages = inventory.packages.as_deref().unwrap_or_default();
    let (changed, problems) = inventory::changed::find(source, packages, common.jobs(), ui);
    inventory.problems.extend(problems);
    changed
}

fn table(inventory: &Inventory, changed: Option<&[Changed]>, base: &BaseMatch, target: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let esc = |s: &str| Escaped(s.as_bytes()).to_string();
    let os = &inventory.os;
    let mut facts = text::table(&[], &[]);
    let name = os
        .name
        .as_deref()
        .or(os.id.as_deref())
        .unwrap_or("unknown system");
    let arch = os
        .arch
        .map_or_else(|| "unknown architecture".to_owned(), |a| a.to_string());
    let end = os
        .end_of_life
        .as_deref()
        .map_or(String::new(), |d| format!(", end of life {d}"));
    facts.add_row(["system", &format!("{}, {arch}{end}", esc(name))]);
    facts.add_row([
        "host name",
        &inventory.hostname.as_deref().map_or("not set".into(), esc),
    ]);
    let packages = match &inventory.packages {
        Some(packages) => {
            let size = packages.iter().filter_map(|p| p.size).sum();
            let manual = packages.iter().filter(|p| p.manual == Some(true)).count();
            format!(
                "{} ({}), {} installed on request ({})",
                text::count(packages.len()),
                text::bytes(size),
                text::count(manual),
                inventory.database.unwrap_or("no database"),
            )
        }
        None => inventory
            .database_failure
            .as_ref()
            .map_or("no database".into(), |f| esc(&f.what)),
    };
    facts.add_row(["packages", &packages]);
    facts.add_row(["base image", &esc(&base.reason)]);
    lines.push(facts.trim_fmt());
    if !inventory.filesystems.is_empty() {
        let mut table = text::table(&["filesystem", "kind", "mounted at", "used", "size"], &[3, 4]);
        for fs in &inventory.filesystems {
            table.add_row([
                esc(&fs.device),
                esc(&fs.kind),
                esc(fs.mounted.as_deref().unwrap_or("-")),
                fs.used.map_or("-".into(), text::bytes),
                text::bytes(fs.size),
            ]);
        }
        section(&mut lines, table.trim_fmt());
    }
    let applications: Vec<_> = inventory.applications().collect();
    if !applications.is_empty() {
        let mut table = text::table(&["service", "user", "command"], &[]);
        for service in applications.iter().take(ROWS) {
            let exec = service.exec.first().map_or("-".into(), |e| esc(e));
            table.add_row([
                esc(&service.name),
                esc(service.user.as_deref().unwrap_or("root")),
                exec,
            ]);
        }
        section(&mut lines, table.trim_fmt());
        more(&mut lines, applications.len());
    }
    let people: Vec<&str> = inventory
        .users
        .iter()
        .filter(|u| u.login)
        .map(|u| u.name.as_str())
        .collect();
    if !people.is_empty() {
        section(
            &mut lines,
            format!("users who can log in: {}", esc(&people.join(", "))),
        );
    }
    if !inventory.data.is_empty() {
        let mut table = text::table(&["data", "files", "bytes"], &[1, 2]);
        for data in inventory.data.iter().take(ROWS) {
            table.add_row([
                data.path.to_string(),
                text::count(data.files as usize),
                text::bytes(data.bytes),
            ]);
        }
        section(&mut lines, table.trim_fmt());
        more(&mut lines, inventory.data.len());
    }
    if !inventory.secrets.is_empty() {
        let mut rules: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
        for secret in &inventory.secrets {
            *rules.entry(&secret.rule).or_default() += 1;
        }
        let rules: Vec<String> = rules.into_iter().map(|(rule, n)| format!("{rule} {n}")).collect();
        section(
            &mut lines,
            format!(
                "identity and secrets that stay out of an image: {}",
                rules.join(", ")
            ),
        );
    }
    if !inventory.fitness.is_empty() {
        let mut table = text::table(&["fitness", "severity", "evidence"], &[]);
        for finding in &inventory.fitness {
            table.add_row([
                finding.rule.to_owned(),
                format!("{:?}", finding.severity).to_ascii_lowercase(),
                esc(&finding.evidence),
            ]);
        }
        section(&mut lines, table.trim_fmt());
    }
    if let Some(changed) = changed {
        let config = changed.iter().filter(|c| c.config).count();
        section(
            &mut lines,
            format!(
                "changed since their packages were installed: {} configuration files, {} others",
                text::count(config),
                text::count(changed.len() - config)
            ),
        );
        let mut table = text::table(&["changed", "package", "differs"], &[]);
        // What nobody should have changed comes first.
        let (config, others): (Vec<_>, Vec<_>) = changed.iter().partition(|c| c.config);
        for row in others.into_iter().chain(config).take(ROWS) {
            let fields: Vec<&str> = row.fields.iter().map(|f| f.name()).collect();
            table.add_row([row.path.to_string(), esc(&row.package), fields.join(", ")]);
        }
        if !changed.is_empty() {
            lines.push(table.trim_fmt());
            more(&mut lines, changed.len());
        }
    }
    for problem in &inventory.problems {
        lines.push(format!("not read: {}: {}", problem.path, esc(&problem.what)));
    }
    let base = if base.reference.is_some() {
        ""
    } else {
        " --base none"
    };
    section(&mut lines, format!("next: vm2k convert {}{base}", esc(target)));
    lines.join("\n") + "\n"
}

fn section(lines: &mut Vec<String>, text: String) {
    lines.push(String::new());
    lines.push(text);
}

fn more(lines: &mut Vec<String>, all: usize) {
    if all > ROWS {
        lines.push(format!(
            "... and {} more; --json has all",
            text::count(all - ROWS)
        ));
    }
}
