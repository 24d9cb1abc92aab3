//! `vm2k scan --hosts FILE`: many machines, a bounded number at once.

use super::roots::Roots;
use super::{Common, target, text, ui::Ui};
use crate::distro::Distros;
use crate::error::{Error, Escaped, code, exit_code};
use crate::inventory::fitness::Severity;
use crate::inventory::{self, Inventory, scan_document};
use crate::jobs;
use serde_json::json;
use std::convert::Infallible;
use std::io::Write;
use std::path::Path;

/// The `schema` of the document.
const SCHEMA: &str = "vm2k.scan-hosts/1";

/// The longest file of targets that makes sense, in bytes, and the most targets.
const LIMIT: u64 = 4 << 20;
const MOST: usize = 20_000;

/// What is known of one target in the end: a row of the table, and a value of the document.
struct Scanned {
    row: [String; 8],
    json: String,
    code: u8,
}

/// The targets of `file`: one a line, `#` begins a comment.
fn targets(file: &Path) -> anyhow::Result<Vec<String>> {
    let what = || format!("reading {}", file.display());
    let size = std::fs::metadata(file).map_err(|e| Error::io(what(), e))?.len();
    if size > LIMIT {
        return Err(Error::usage(format!("{}: {size} bytes are no list of hosts", file.display())).into());
    }
    let content = std::fs::read_to_string(file).map_err(|e| Error::io(what(), e))?;
    let found = parse(&content).map_err(|e| e.within(&file.display().to_string()))?;
    Ok(found)
}

fn parse(content: &str) -> Result<Vec<String>, Error> {
    let mut found: Vec<String> = Vec::new();
    for (n, line) in content.lines().enumerate() {
        let target = line.split('#').next().unwrap_or_default().trim();
        if target.is_empty() {
            continue;
        }
        if target.split_whitespace().count() > 1 {
            return Err(
                Error::usage(format!("line {}: {target:?} is not one target", n + 1))
                    .hint("write one host, ssh://[user@]host[:port] or disk a line"),
            );
        }
        if !found.iter().any(|known| known == target) {
            found.push(target.to_owned());
        }
    }
    match found.len() {
        0 => Err(Error::usage("it names no host")),
        n if n > MOST => Err(Error::usage(format!("it names {n} hosts, {MOST} is the most"))),
        _ => Ok(found),
    }
}

/// Scans the targets of `file`, `connections` at once.
pub(super) fn run(
    common: &Common,
    file: &Path,
    connections: u16,
    as_json: bool,
    output: Option<&Path>,
    ui: &Ui,
) -> anyhow::Result<u8> {
    let targets = targets(file)?;
    let distros = target::distros(common)?;
    let scanned = jobs::map(usize::from(connections), &targets, |target| {
        Ok::<_, Infallible>(match one(common, target, &distros, ui) {
            Ok(scanned) => scanned,
            Err(error) => failed(target, &error),
        })
    });
    let scanned = scanned.unwrap_or_default();
    if as_json || output.is_some() {
        let rows: Vec<&str> = scanned.iter().map(|s| s.json.as_str()).collect();
        let document = format!(
            "{{\"schema\":\"{SCHEMA}\",\"hosts\":[\n{}\n]}}\n",
            rows.join(",\n")
        );
        match output {
            Some(path) => std::fs::write(path, document)
                .map_err(|e| Error::io(format!("writing {}", path.display()), e))?,
            None => std::io::stdout().lock().write_all(document.as_bytes())?,
        }
    }
    if !as_json {
        let header = [
            "host",
            "system",
            "ends",
            "packages",
            "services",
            "data",
            "secrets",
            "worst finding",
        ];
        let mut table = text::table(&header, &[3, 5, 6]);
        for scanned in &scanned {
            table.add_row(scanned.row.clone());
        }
        writeln!(std::io::stdout().lock(), "{}", table.trim_fmt())?;
    }
    let first = scanned.first().map_or(code::DONE, |s| s.code);
    // All alike: that is the answer. Else something was skipped, and is listed.
    Ok(match scanned.iter().all(|s| s.code == first) {
        true => first,
        false => code::DIFFERS,
    })
}

fn one(common: &Common, target: &str, distros: &Distros, ui: &Ui) -> anyhow::Result<Scanned> {
    let opened = target::open_machine(common, target, ui)?;
    let inventory = inventory::take(&*opened.source, distros)?;
    let names = Roots::find(&inventory, distros)?.map(|found| found.names());
    let base = distros.base_for(&inventory.os);
    let document = scan_document(&inventory, Some(&base), names.as_deref(), None);
    let json = json!({ "target": target, "error": null, "scan": document });
    let failure = inventory.database_failure.as_ref().map(|f| f.code);
    let problems = if inventory.problems.is_empty() {
        code::DONE
    } else {
        code::DIFFERS
    };
    Ok(Scanned {
        row: row(target, &inventory, names.as_deref()),
        json: json.to_string(),
        code: failure.unwrap_or(problems),
    })
}

fn row(target: &str, inventory: &Inventory, roots: Option<&[String]>) -> [String; 8] {
    let esc = |text: &str| Escaped(text.as_bytes()).to_string();
    let packages = match (&inventory.packages, roots) {
        (Some(packages), Some(roots)) => {
            format!("{} of {}", text::count(roots.len()), text::count(packages.len()))
        }
        (Some(packages), None) => text::count(packages.len()),
        _ => "-".to_owned(),
    };
    let services: Vec<&str> = inventory.applications().map(|s| s.name.as_str()).collect();
    let services = match services.as_slice() {
        [] => "-".to_owned(),
        few if few.len() <= 4 => few.join(" "),
        [first @ .., _] => format!(
            "{} and {} more",
            first.get(..3).unwrap_or(first).join(" "),
            services.len() - 3
        ),
    };
    let worst = inventory.fitness.iter().max_by_key(|f| f.severity);
    let worst = worst
        .filter(|f| f.severity > Severity::Info)
        .map_or("-", |f| f.rule);
    [
        esc(target),
        esc(&inventory.os.describe()),
        esc(inventory.os.end_of_life.as_deref().unwrap_or("-")),
        packages,
        esc(&services),
        text::bytes(
            inventory
                .data
                .iter()
                .map(|d| d.bytes)
                .fold(0, u64::saturating_add),
        ),
        text::count(inventory.secrets.len()),
        worst.to_owned(),
    ]
}

fn failed(target: &str, error: &anyhow::Error) -> Scanned {
    let said = crate::error::report(error);
    let cause: Vec<&str> = said.lines().map(str::trim).collect();
    let esc = |text: &str| Escaped(text.as_bytes()).to_string();
    let mut row = std::array::from_fn(|_| "-".to_owned());
    row[0] = esc(target);
    row[1] = esc(cause.first().copied().unwrap_or("failed"));
    let code = exit_code(error);
    Scanned {
        row,
        json: json!({ "target": target, "error": { "code": code, "lines": cause }, "scan": null })
            .to_string(),
        code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_hosts() {
        let found =
            parse("# all of them\nweb1\n\n root@web2:2222 # the old one\nssh://web3\nweb1\n").unwrap();
        assert_eq!(found, ["web1", "root@web2:2222", "ssh://web3"]);
        let wrong = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(wrong("# none\n"), "it names no host");
        assert!(wrong("web1\nweb2 web3\n").starts_with("line 2"));
    }
}
