//! What a running host says of itself, made fit to be shown and kept: secrets are blanked, and it is put in relation to what
//! its files say.

use super::command::{looks_secret, redacted_words};
use super::data;
use super::fitness::{Finding, Severity};
use super::services::Port;
use crate::live::{Listening, Live, OpenFile, Process};
use crate::pkgdb::DATABASES;
use std::collections::BTreeMap;

/// Files and directories whose use matters for a copy: locks of package managers, and data that a server keeps consistent only
/// while it runs.
pub fn watched() -> Vec<String> {
    let locks = DATABASES.iter().flat_map(|database| database.locks);
    let mut all: Vec<String> = locks.map(|path| (*path).to_owned()).collect();
    all.extend(data::kept_by_servers());
    all
}

/// Blanks what looks like a secret: in commands, and values of variables.
pub(super) fn blanked(mut live: Live) -> Live {
    for process in &mut live.processes {
        process.argv = redacted_words(&process.argv);
        for (name, value) in process.environment.iter_mut().flatten() {
            if value.as_ref().is_some_and(|value| looks_secret(name, value)) {
                *value = None;
            }
        }
    }
    live.kernel.command_line = live
        .kernel
        .command_line
        .map(|line| super::command::redacted(&line));
    live
}

/// Who a socket belongs to, for people: the unit, else the name of the process.
pub fn owner(live: &Live, socket: &Listening) -> Option<String> {
    let process = process(live, *socket.pids.first()?)?;
    Some(service(process).unwrap_or_else(|| process.name.clone()))
}

/// The process of this number.
pub fn process(live: &Live, pid: u32) -> Option<&Process> {
    let at = live.processes.binary_search_by_key(&pid, |p| p.pid).ok()?;
    live.processes.get(at)
}

/// The service that a process belongs to, without its ending. Scopes are sessions of people, and what they started.
fn service(process: &Process) -> Option<String> {
    Some(process.unit.as_deref()?.strip_suffix(".service")?.to_owned())
}

/// The ports that the host listens on.
pub(super) fn ports(live: &Live) -> Vec<Port> {
    let internet = live.listening.iter().filter_map(|socket| {
        Some(Port {
            protocol: match socket.protocol.as_str() {
                "tcp" => "tcp",
                "udp" => "udp",
                _ => return None,
            },
            address: Some(socket.address.clone()).filter(|a| a != "0.0.0.0" && a != "::"),
            port: socket.port?,
            service: owner(live, socket).unwrap_or_default(),
        })
    });
    let mut ports: Vec<Port> = internet.collect();
    ports.sort_by(|a, b| (a.protocol, a.port, &a.address).cmp(&(b.protocol, b.port, &b.address)));
    // IPv4 and IPv6 of one service are one place.
    ports.dedup();
    ports
}

/// What matters for a copy of a host that runs.
pub(super) fn findings(live: &Live) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |rule, severity, evidence| {
        found.push(Finding {
            rule,
            severity,
            evidence,
        });
    };
    let name = |pid: u32| match process(live, pid) {
        Some(process) => format!("{} (process {pid})", process.name),
        None => format!("process {pid}"),
    };
    let locks: Vec<&str> = DATABASES
        .iter()
        .flat_map(|database| database.locks)
        .copied()
        .collect();
    for open in live
        .open
        .iter()
        .filter(|o| o.locked && locks.contains(&o.watched.as_str()))
    {
        let evidence = format!(
            "{} is locked by {}: wait until it is done, or the packages are seen half installed",
            open.path,
            name(open.pid)
        );
        add("package-manager-running", Severity::Warning, evidence);
    }
    let mut written: BTreeMap<&str, Vec<&OpenFile>> = BTreeMap::new();
    for open in live.open.iter().filter(|o| !locks.contains(&o.watched.as_str())) {
        written.entry(&open.watched).or_default().push(open);
    }
    for (path, files) in written {
        let mut pids: Vec<u32> = files.iter().map(|f| f.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        let who: Vec<String> = pids.iter().take(3).map(|pid| name(*pid)).collect();
        let unit = pids.iter().find_map(|pid| process(live, *pid)?.unit.clone());
        let stop = unit.map_or_else(|| "stop it".to_owned(), |unit| format!("stop {unit}"));
        let evidence = format!(
            "{path} is being written by {}: a copy of its files may not fit together; {}, {stop} meanwhile, or convert a snapshot of the disk",
            who.join(", "),
            data::dump_of(path),
        );
        add("data-in-use", Severity::Warning, evidence);
    }
    for container in &live.containers {
        let evidence = format!(
            "{} {}: {} processes, {}; it is left alone",
            container.kind,
            container.id.get(..12).unwrap_or(&container.id),
            container.processes,
            container.command
        );
        add("container-running", Severity::Info, evidence);
    }
    for socket in live.listening.iter().filter(|s| s.protocol != "unix") {
        let strays = socket.pids.iter().filter_map(|pid| process(live, *pid));
        for process in strays.filter(|p| p.container.is_none() && p.pid != 1 && service(p).is_none()) {
            // Without systemd nothing has a unit, and that says nothing.
            let Some(unit) = &process.unit else { continue };
            let evidence = format!(
                "{} (process {}) listens on {} {} and belongs to no service ({unit}): somebody started it by hand",
                process.name,
                process.pid,
                socket.protocol,
                socket.port.unwrap_or_default(),
            );
            add("started-by-hand", Severity::Warning, evidence);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Container;

    fn process(pid: u32, name: &str, unit: Option<&str>) -> Process {
        Process {
            pid,
            name: name.into(),
            unit: unit.map(str::to_owned),
            ..Process::default()
        }
    }

    fn socket(port: u16, address: &str, pid: u32) -> Listening {
        Listening {
            protocol: "tcp".into(),
            address: address.into(),
            port: Some(port),
            uid: None,
            pids: vec![pid],
        }
    }

    fn open(watched: &str, path: &str, pid: u32, locked: bool) -> OpenFile {
        OpenFile {
            watched: watched.into(),
            path: path.into(),
            pid,
            locked,
        }
    }

    fn live() -> Live {
        Live {
            processes: vec![
                process(10, "nginx", Some("nginx.service")),
                process(20, "mysqld", Some("mysql.service")),
                process(30, "java", Some("session-3.scope")),
                process(40, "apt-get", Some("session-3.scope")),
            ],
            listening: vec![
                socket(80, "0.0.0.0", 10),
                socket(80, "::", 10),
                socket(8080, "127.0.0.1", 30),
            ],
            open: vec![
                open("/var/lib/dpkg/lock", "/var/lib/dpkg/lock", 40, true),
                open("/var/lib/mysql", "/var/lib/mysql/ibdata1", 20, true),
                open("/var/lib/mysql", "/var/lib/mysql/ib_logfile0", 20, false),
            ],
            containers: vec![Container {
                kind: "docker".into(),
                id: "ab".repeat(32),
                processes: 2,
                command: "redis".into(),
            }],
            ..Live::default()
        }
    }

    #[test]
    fn ports_name_their_services() {
        let shown: Vec<_> = ports(&live())
            .into_iter()
            .map(|p| (p.port, p.address, p.service))
            .collect();
        assert_eq!(
            shown,
            [
                (80, None, "nginx".to_owned()),
                (8080, Some("127.0.0.1".to_owned()), "java".to_owned())
            ]
        );
    }

    #[test]
    fn what_is_in_use_is_called_out_with_what_to_do() {
        let found = findings(&live());
        let lines: Vec<String> = found
            .iter()
            .map(|f| format!("{}: {}", f.rule, f.evidence))
            .collect();
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(
            lines[0]
                .starts_with("package-manager-running: /var/lib/dpkg/lock is locked by apt-get (process 40)")
        );
        for words in [
            "/var/lib/mysql is being written by mysqld (process 20)",
            "mysqldump",
            "stop mysql.service",
            "snapshot",
        ] {
            assert!(lines[1].contains(words), "{words}: {}", lines[1]);
        }
        assert!(lines[2].starts_with("container-running: docker abababababab: 2 processes, redis"));
        assert!(lines[3].contains("java (process 30) listens on tcp 8080 and belongs to no service"));
    }

    #[test]
    fn secrets_are_blanked() {
        let mut live = live();
        live.processes[0].argv = ["x", "--password", "hunter2", "sh -c TOKEN=hunter2", "--port=80"]
            .map(str::to_owned)
            .to_vec();
        let env = [
            ("DB_PASSWORD", "hunter2"),
            ("URL", "x://u:hunter2@h/"),
            ("LANG", "C"),
        ];
        live.processes[0].environment = Some(
            env.map(|(k, v)| (k.to_owned(), Some(v.to_owned())))
                .into_iter()
                .collect(),
        );
        live.kernel.command_line = Some("ro root=/dev/vda1 token=hunter2".into());
        let live = blanked(live);
        let text = serde_json::to_string(&live).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("--port=80") && text.contains(r#""LANG":"C""#) && text.contains("DB_PASSWORD"));
    }

    #[test]
    fn what_is_watched_are_paths_without_a_slash_at_the_end() {
        let all = watched();
        assert!(all.iter().any(|p| p == "/var/lib/mysql") && all.iter().any(|p| p == "/var/lib/dpkg/lock"));
        assert!(all.iter().all(|p| p.starts_with('/') && !p.ends_with('/')));
    }
}
