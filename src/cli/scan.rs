//! `vm2k scan`: what is in a machine.

use super::roots::{Roots, format_of};
use super::{Common, hosts, target, text, ui::Ui};
use crate::error::{Error, Escaped, code};
use crate::inventory::changed::Changed;
use crate::inventory::live::process;
use crate::inventory::{self, BaseMatch, Inventory, scan_document};
use crate::live::Live;
use crate::source::Source;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The machine: a disk file, several disks of one machine (disk1.qcow2+disk2.qcow2), a host, ssh://[user@]host[:port], or
    /// dir:PATH
    #[arg(required_unless_present = "hosts")]
    target: Option<String>,
    /// Scan every machine that this file names, one a line, and show a row for each
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "roots", "why", "graph", "changed"])]
    hosts: Option<PathBuf>,
    /// With --hosts: how many machines at once
    #[arg(long, value_name = "N", default_value_t = 8, requires = "hosts", value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
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
    /// Show the packages to ask for, so that the package manager brings the rest: why, and how many each brings
    #[arg(long, conflicts_with_all = ["json", "output", "why", "changed"])]
    roots: bool,
    /// Show how this package came in: the shortest paths from what was asked for
    #[arg(long, value_name = "PACKAGE", conflicts_with_all = ["json", "output", "changed"])]
    why: Option<String>,
    /// Draw what needs what; the name's ending says the form: .svg, .dot or .json
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  vm2k scan root@web1                             a host over ssh
  vm2k scan --hosts hosts.txt --json              many hosts, eight at once
  vm2k scan disk.qcow2 --roots                    what to install, and what comes with it
  vm2k scan disk.qcow2 --why libssl3              which of these brought it
  vm2k scan disk.qcow2 --graph packages.svg       a picture to open in a browser";

pub(super) fn run(common: &Common, arguments: &Arguments, ui: &Ui) -> anyhow::Result<u8> {
    if let Some(file) = &arguments.hosts {
        let output = arguments.output.as_deref();
        return hosts::run(common, file, arguments.connections, arguments.json, output, ui);
    }
    let machine = arguments.target.as_deref().unwrap_or_default();
    let distros = target::distros(common)?;
    if let Some(path) = &arguments.graph {
        format_of(path)?;
    }
    let opened = target::open_machine(common, machine, ui)?;
    // What the packages say is enough for the graph alone.
    let packages_only = arguments.roots || arguments.why.is_some();
    opened.source.prefetch(&inventory::needed(opened.source.tree()));
    let mut inventory = inventory::identify(&*opened.source, &distros)?;
    if !packages_only {
        inventory = inventory::complete(&*opened.source, &distros, inventory)?;
    }
    let changed = arguments
        .changed
        .then(|| changed(common, &*opened.source, &mut inventory, ui));
    let found = Roots::find(&inventory, &distros)?;
    if let Some(path) = &arguments.graph {
        let found = found.as_ref().ok_or_else(|| unknown(&inventory))?;
        let title = inventory.hostname.as_deref().unwrap_or(&inventory.name);
        found.draw(title, path, ui)?;
    }
    if packages_only {
        let found = found.as_ref().ok_or_else(|| unknown(&inventory))?;
        let shown = match &arguments.why {
            Some(name) => found.why(name)?,
            None => found.table(),
        };
        std::io::stdout().lock().write_all(shown.as_bytes())?;
        for note in &inventory.notes {
            ui.note(note);
        }
        return Ok(if inventory.problems.is_empty() {
            code::DONE
        } else {
            code::DIFFERS
        });
    }
    let base = distros.base_for(&inventory.os);
    let names = found.as_ref().map(Roots::names);
    let mut out = std::io::stdout().lock();
    if arguments.json || arguments.output.is_some() {
        let document = scan_document(&inventory, Some(&base), names.as_deref(), changed.as_deref());
        let mut json = serde_json::to_vec_pretty(&document)?;
        json.push(b'\n');
        match &arguments.output {
            Some(path) => std::fs::write(path, &json)
                .map_err(|e| Error::io(format!("writing {}", path.display()), e))?,
            None => out.write_all(&json)?,
        }
    }
    if !arguments.json {
        let table = table(&inventory, found.as_ref(), changed.as_deref(), &base, machine);
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

/// Why there is no graph.
fn unknown(inventory: &Inventory) -> Error {
    match &inventory.database_failure {
        Some(failure) if failure.code == code::CORRUPT => Error::corrupt(failure.what.clone(), 0),
        Some(failure) => Error::unsupported(failure.what.clone()),
        None => Error::unsupported("no package database was found, so there are no packages to ask for"),
    }
}

fn table(
    inventory: &Inventory,
    found: Option<&Roots<'_>>,
    changed: Option<&[Changed]>,
    base: &BaseMatch,
    target: &str,
) -> String {
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
    if let Some(found) = found {
        facts.add_row(["roots", &found.summary()]);
        if let Some(orphans) = found.orphans() {
            facts.add_row(["orphans", &orphans]);
        }
    }
    if let Some(live) = &inventory.live {
        facts.add_row([
            "kernel",
            &esc(live.kernel.release.as_deref().unwrap_or("unknown")),
        ]);
        facts.add_row(["running", &load(live)]);
    }
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
    if let Some(live) = &inventory.live {
        running(live, &mut lines);
    } else if let Some(ports) = inventory.ports.as_deref().filter(|p| !p.is_empty()) {
        let shown: Vec<String> = ports
            .iter()
            .map(|p| format!("{} {} ({})", p.protocol, p.port, p.service))
            .collect();
        section(&mut lines, format!("listens on: {}", esc(&shown.join(", "))));
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

/// How long the host runs, and how busy it is.
fn load(live: &Live) -> String {
    let mut parts = Vec::new();
    if let Some(seconds) = live.uptime {
        let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
        parts.push(format!("for {days} d {hours:02}:{minutes:02}"));
    }
    parts.push(format!("{} processes", text::count(live.processes.len())));
    if let (Some(cpus), Some([one, ..])) = (live.cpus, live.load) {
        parts.push(format!("load {one:.2} on {cpus} processors"));
    }
    if let (Some(total), Some(free)) = (live.memory.total, live.memory.available.or(live.memory.free)) {
        let used = text::bytes(total.saturating_sub(free));
        parts.push(format!("{used} of {} memory", text::bytes(total)));
    }
    parts.join(", ")
}

/// Where the host listens, with what; sockets of the filesystem are in the JSON document.
fn running(live: &Live, lines: &mut Vec<String>) {
    let esc = |text: &str| Escaped(text.as_bytes()).to_string();
    let internet: Vec<_> = live.listening.iter().filter(|s| s.protocol != "unix").collect();
    if internet.is_empty() {
        return;
    }
    let mut table = text::table(&["listens", "address", "process", "service"], &[]);
    for socket in internet.iter().take(ROWS) {
        let process = socket.pids.first().and_then(|pid| process(live, *pid));
        table.add_row([
            format!("{} {}", socket.protocol, socket.port.unwrap_or_default()),
            esc(&socket.address),
            process.map_or("-".into(), |p| esc(&p.name)),
            process.and_then(|p| p.unit.as_deref()).map_or("-".into(), esc),
        ]);
    }
    section(lines, table.trim_fmt());
    more(lines, internet.len());
    if live.unseen > 0 {
        lines.push(format!(
            "open files of {} processes cannot be seen without root's rights",
            live.unseen
        ));
    }
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
