//! How fit a machine is for a container: rules over the inventory, each with its evidence.

use super::command::redacted;
use super::data::Kind;
use super::{BaseMatch, Inventory};
use crate::calendar::Civil;
use crate::error::{Escaped, Result};
use crate::source::fstab::{self, Purpose};
use crate::source::{Source, read_file};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Something will be missing or has to be done by hand.
    Warning,
    /// The image would not do what the machine does.
    Error,
}

/// One thing about the machine that matters for a container.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Name of the rule.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was seen.
    pub evidence: String,
}

/// All findings about the machine. `today` is an ISO day.
///
/// # Errors
/// As the source's reader.
pub fn find(
    source: &dyn Source,
    inventory: &Inventory,
    base: &BaseMatch,
    today: &str,
) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let mut add = |rule, severity, evidence: String| {
        found.push(Finding {
            rule,
            severity,
            evidence,
        });
    };
    let os = &inventory.os;
    if let Some(day) = os.end_of_life.as_deref().filter(|day| *day < today) {
        add(
            "end-of-life",
            Severity::Warning,
            format!("{}: ordinary support ended on {day}", os.describe()),
        );
    }
    if base.reference.is_none() {
        add("no-base-image", Severity::Warning, base.reason.clone());
    } else if !base.exact {
        add("nearest-base-image", Severity::Info, base.reason.clone());
    }
    if os.arch.is_none() {
        add(
            "unknown-architecture",
            Severity::Warning,
            "no program of the machine tells its architecture".to_owned(),
        );
    }
    if inventory.packages.is_none() {
        let reason = inventory.database_failure.as_ref();
        add(
            "packages-unknown",
            Severity::Warning,
            reason.map_or_else(|| "no package database was found".to_owned(), |f| f.what.clone()),
        );
    }
    let tree = source.tree();
    let names_in = |dir: &str| -> Vec<String> {
        let Some((dir, _)) = tree.find(dir) else {
            return Vec::new();
        };
        let dirs = tree.children(&dir).filter(|(_, n)| n.is_dir());
        dirs.map(|(p, _)| String::from_utf8_lossy(p.name()).into_owned())
            .collect()
    };
    let dkms = names_in("/var/lib/dkms");
    if !dkms.is_empty() {
        add(
            "kernel-modules",
            Severity::Warning,
            format!("built with dkms: {}", dkms.join(", ")),
        );
    }
    let modules = listed_modules(source)?;
    if !modules.is_empty() {
        add(
            "kernel-modules",
            Severity::Warning,
            format!("loaded at start: {}", modules.join(", ")),
        );
    }
    for data in &inventory.data {
        match data.kind {
            Kind::Machines => add(
                "machines-inside",
                Severity::Warning,
                format!("{}: {} files, {} bytes", data.path, data.files, data.bytes),
            ),
            Kind::Database => add(
                "database",
                Severity::Warning,
                format!(
                    "{}: {} files, {} bytes that belong in a volume",
                    data.path, data.files, data.bytes
                ),
            ),
            _ => {}
        }
    }
    let table = read_file(source, "/etc/fstab", 1 << 20)?.unwrap_or_default();
    for line in fstab::parse(&table) {
        // Options may hold passwords, and so may the name of a share.
        let shown = format!("{} {} {}", Escaped(&line.spec), Escaped(&line.file), line.kind);
        let evidence = format!("/etc/fstab: {}", redacted(&shown));
        if line.kind == "swap" {
            add("swap", Severity::Info, evidence);
        } else if line.purpose() == Purpose::Network {
            add("network-mount", Severity::Warning, evidence);
        }
    }
    let services: Vec<&str> = inventory.applications().map(|s| s.name.as_str()).collect();
    if services.len() > 1 {
        add("several-services", Severity::Warning, services.join(", "));
    }
    let jobs: Vec<String> = [
        "/var/spool/cron/crontabs",
        "/var/spool/cron",
        "/var/spool/cron/tabs",
    ]
    .iter()
    .filter_map(|dir| tree.find(dir))
    .flat_map(|(dir, _)| {
        let files = tree.children(&dir).filter(|(_, n)| n.is_file() && n.size() > 0);
        files.map(|(p, _)| p.to_string()).collect::<Vec<_>>()
    })
    .collect();
    if !jobs.is_empty() {
        add("scheduled-jobs", Severity::Info, jobs.join(", "));
    }
    Ok(found)
}

/// Kernel modules that `/etc/modules` and `/etc/modules-load.d` name.
fn listed_modules(source: &dyn Source) -> Result<Vec<String>> {
    let mut files = vec!["/etc/modules".to_owned()];
    if let Some((dir, _)) = source.tree().find("/etc/modules-load.d") {
        let children = source.tree().children(&dir);
        files.extend(children.filter_map(|(p, _)| std::str::from_utf8(p.as_bytes()).ok().map(str::to_owned)));
    }
    let mut names = Vec::new();
    for file in files {
        let bytes = read_file(source, &file, 1 << 20)?.unwrap_or_default();
        for line in String::from_utf8_lossy(&bytes).lines() {
            let name = line.split(['#', ';']).next().unwrap_or_default();
            if let Some(name) = name.split_ascii_whitespace().next() {
                names.push(name.to_owned());
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Today in UTC as an ISO day.
pub fn today() -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    Civil::of(i64::try_from(seconds).unwrap_or(i64::MAX)).date()
}

#[cfg(test)]
mod tests {

    #[test]
    fn rules_show_their_evidence() {
        let distros = crate::distro::Distros::load(None).unwrap();
        let source = crate::source::memory::MemorySource::new("m")
            .file(
                "/etc/os-release",
                "ID=debian\nVERSION_ID=9\nPRETTY_NAME=\"Debian 9\"\n",
            )
            .file(
                "/etc/fstab",
                "UUID=1 / ext4 defaults 0 1\n/swapfile none swap sw 0 0\n\
                 //nas/share /mnt cifs username=u,password=hunter2 0 0\n",
            )
            .file("/etc/modules", "# none\nzfs\n")
            .dir("/var/lib/dkms/nvidia")
            .file("/var/lib/docker/overlay2/x/file", "12")
            .file("/var/lib/mysql/ibdata1", "123")
            .file("/var/spool/cron/crontabs/root", "@daily x\n")
            .build();
        let taken = super::super::take(&source, &distros).unwrap();
        let shown: Vec<String> = taken
            .fitness
            .iter()
            .map(|f| format!("{}: {}", f.rule, f.evidence))
            .collect();
        for line in [
            "end-of-life: Debian 9: ordinary support ended on 2020-07-18",
            "packages-unknown: no package database was found",
            "kernel-modules: built with dkms: nvidia",
            "kernel-modules: loaded at start: zfs",
            "machines-inside: /var/lib/docker: 1 files, 2 bytes",
            "database: /var/lib/mysql: 1 files, 3 bytes that belong in a volume",
            "swap: /etc/fstab: /swapfile none swap",
            "network-mount: /etc/fstab: //nas/share /mnt cifs",
            "scheduled-jobs: /var/spool/cron/crontabs/root",
        ] {
            assert!(shown.iter().any(|s| s == line), "{line} is not in {shown:#?}");
        }
        assert!(!format!("{taken:?}").contains("hunter2"));
    }
}
