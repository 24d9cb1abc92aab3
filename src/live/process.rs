//! Processes: `/proc/PID/` (proc_pid(5)).

use super::sockets::Owners;
use super::{Ask, Live, MOST, Proc, text};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A running process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// That of its parent.
    pub ppid: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The command and its arguments, as the process shows them now.
    pub argv: Vec<String>,
    /// The program; it ends in ` (deleted)` if that was replaced since. `None` if it cannot be seen.
    pub exe: Option<String>,
    /// The working directory.
    pub cwd: Option<String>,
    /// The root directory, if it is another than the host's.
    pub root: Option<String>,
    /// The effective user.
    pub uid: Option<u32>,
    /// The effective group.
    pub gid: Option<u32>,
    /// Threads.
    pub threads: Option<u32>,
    /// Memory that it occupies, in bytes.
    pub memory: Option<u64>,
    /// Limits that are not unlimited.
    pub limits: Vec<Limit>,
    /// Its control group: of version 2, else that which systemd made.
    pub cgroup: Option<String>,
    /// The unit of systemd that it belongs to: `nginx.service`.
    pub unit: Option<String>,
    /// The container that it runs in, as `docker:ID`.
    pub container: Option<String>,
    /// Its environment: names, and values where they were asked for. `None` if it cannot be seen.
    pub environment: Option<BTreeMap<String, Option<String>>>,
}

/// A limit of resources (getrlimit(2)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// As the kernel calls it: `Max open files`.
    pub name: String,
    /// The soft limit; `None` is unlimited.
    pub soft: Option<u64>,
    /// The hard limit; `None` is unlimited.
    pub hard: Option<u64>,
}

/// A container that runs on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Who runs it: `docker`, `podman`, `containerd`, `cri-o`, `lxc`, `machine`.
    pub kind: String,
    /// Its number or name.
    pub id: String,
    /// How many processes it has.
    pub processes: u32,
    /// The name of its first process.
    pub command: String,
}

/// A watched file that somebody has open for writing, or has locked.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenFile {
    /// The entry of the list of watched paths.
    pub watched: String,
    /// The file.
    pub path: String,
    /// Who.
    pub pid: u32,
    /// True if the process holds a lock on some file of that filesystem's inode.
    pub locked: bool,
}

/// Most descriptors of one process that are looked at, and most watched files that are told.
const DESCRIPTORS: usize = 100_000;
const OPEN: usize = 10_000;

/// Reads all processes into `live`, and tells who has which socket.
pub(super) fn read(proc: &dyn Proc, ask: &Ask, live: &mut Live) -> Owners {
    let mut owners = Owners::new();
    let names = proc.list("").unwrap_or_default();
    let mut pids: Vec<u32> = names.iter().filter_map(|n| n.parse().ok()).collect();
    pids.sort_unstable();
    let locks = locks(proc);
    let root = proc.link("1/root").or_else(|| proc.link("self/root"));
    let mut containers: BTreeMap<(String, String), Container> = BTreeMap::new();
    for pid in pids {
        if live.processes.len() >= MOST {
            live.cut = true;
            break;
        }
        if proc.own() == Some(pid) {
            continue;
        }
        let Some(mut process) = one(proc, pid, ask, root.as_deref()) else {
            continue;
        };
        match proc.list(&format!("{pid}/fd")) {
            Some(descriptors) => {
                for fd in descriptors.into_iter().take(DESCRIPTORS) {
                    let Some(target) = proc.link(&format!("{pid}/fd/{fd}")) else {
                        continue;
                    };
                    if let Some(inode) = socket(&target) {
                        let pids = owners.entry(inode).or_default();
                        if pids.last() != Some(&pid) {
                            pids.push(pid);
                        }
                    } else if target.starts_with(b"/") && live.open.len() < OPEN {
                        live.open.extend(watched(proc, ask, &locks, pid, &fd, &target));
                    }
                }
            }
            None => live.unseen = live.unseen.saturating_add(1),
        }
        if let Some((kind, id)) = process.cgroup.as_deref().and_then(container) {
            process.container = Some(format!("{kind}:{id}"));
            let found = containers
                .entry((kind.to_owned(), id.clone()))
                .or_insert_with(|| Container {
                    kind: kind.to_owned(),
                    id,
                    processes: 0,
                    command: process.name.clone(),
                });
            found.processes = found.processes.saturating_add(1);
        }
        live.processes.push(process);
    }
    live.open.sort();
    live.open.dedup();
    live.containers = containers.into_values().collect();
    owners
}

/// One process; `None` if it is gone or a thread of the kernel.
fn one(proc: &dyn Proc, pid: u32, ask: &Ask, root: Option<&[u8]>) -> Option<Process> {
    let file = |name: &str, limit| proc.read(&format!("{pid}/{name}"), limit);
    let link = |name: &str| proc.link(&format!("{pid}/{name}")).map(|t| text(&t));
    let status = text(&file("status", 64 << 10)?);
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let number = |name: &str| field(name).and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
    let cmdline = file("cmdline", 256 << 10).unwrap_or_default();
    // A thread of the kernel has no memory of its own.
    if cmdline.is_empty() && field("VmSize").is_none() {
        return None;
    }
    let second = |name: &str| field(name).and_then(|v| v.split_whitespace().nth(1)?.parse().ok());
    let cgroups = text(&file("cgroup", 256 << 10).unwrap_or_default());
    let cgroup = cgroup(&cgroups);
    Some(Process {
        pid,
        ppid: number("PPid").and_then(|n| n.try_into().ok()).unwrap_or(0),
        name: field("Name").unwrap_or_default().to_owned(),
        argv: argv(&cmdline),
        exe: link("exe"),
        cwd: link("cwd"),
        root: proc
            .link(&format!("{pid}/root"))
            .filter(|r| Some(r.as_slice()) != root)
            .map(|r| text(&r)),
        uid: second("Uid"),
        gid: second("Gid"),
        threads: number("Threads").and_then(|n| n.try_into().ok()),
        memory: number("VmRSS").and_then(|n| n.checked_mul(1024)),
        limits: limits(&text(&file("limits", 64 << 10).unwrap_or_default())),
        unit: cgroup.as_deref().and_then(unit),
        container: None,
        cgroup,
        environment: file("environ", 1 << 20).map(|e| environment(&e, ask.with_env)),
    })
}

/// Words end with NUL; a process that overwrote them to show a title (setproctitle) leaves one word, and padding.
fn argv(cmdline: &[u8]) -> Vec<String> {
    let end = cmdline.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
    let words = cmdline.get(..end).unwrap_or_default();
    if words.is_empty() {
        return Vec::new();
    }
    words.split(|b| *b == 0).take(10_000).map(text).collect()
}

fn environment(bytes: &[u8], values: bool) -> BTreeMap<String, Option<String>> {
    let entries = bytes.split(|b| *b == 0).filter_map(|entry| {
        let at = entry.iter().position(|b| *b == b'=')?;
        let (name, value) = entry.split_at_checked(at)?;
        let value = values.then(|| text(value.get(1..).unwrap_or_default()));
        (!name.is_empty()).then(|| (text(name), value))
    });
    entries.take(10_000).collect()
}

/// `Max open files            1024                 524288               files`: the name has at most 25 bytes.
fn limits(table: &str) -> Vec<Limit> {
    let rows = table.lines().skip(1).filter_map(|line| {
        let (name, rest) = line.split_at_checked(25)?;
        let mut values = rest.split_whitespace().map(|v| match v {
            "unlimited" => Some(None),
            number => number.parse().ok().map(Some),
        });
        let (soft, hard) = (values.next()??, values.next()??);
        let name = name.trim().to_owned();
        (soft.is_some() || hard.is_some()).then_some(Limit { name, soft, hard })
    });
    rows.take(64).collect()
}

/// Of `NUMBER:CONTROLLERS:PATH` the path of version 2 (number 0), else that of systemd's own hierarchy, else the first that
/// is not the root.
fn cgroup(lines: &str) -> Option<String> {
    let rows: Vec<(&str, &str, &str)> = lines
        .lines()
        .filter_map(|l| {
            let mut parts = l.splitn(3, ':');
            Some((parts.next()?, parts.next()?, parts.next()?))
        })
        .collect();
    // With both versions mounted, version 2 may have all processes in its root.
    let unified = rows
        .iter()
        .find(|(n, c, path)| *n == "0" && c.is_empty() && *path != "/");
    let systemd = || rows.iter().find(|(_, c, _)| *c == "name=systemd");
    let any = || rows.iter().find(|(_, _, path)| *path != "/");
    let found = unified.or_else(systemd).or_else(any).or_else(|| rows.first())?;
    Some(found.2.to_owned())
}

/// The deepest part of a control group's path that names a unit with processes.
fn unit(cgroup: &str) -> Option<String> {
    let part = cgroup
        .rsplit('/')
        .find(|p| p.ends_with(".service") || p.ends_with(".scope"))?;
    Some(part.to_owned())
}

/// The container that a control group belongs to: who runs it, and which.
fn container(cgroup: &str) -> Option<(&'static str, String)> {
    let is_id = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    let scopes = [
        ("docker-", "docker"),
        ("libpod-", "podman"),
        ("cri-containerd-", "containerd"),
        ("nerdctl-", "containerd"),
        ("crio-", "cri-o"),
    ];
    let parts: Vec<&str> = cgroup.split('/').filter(|p| !p.is_empty()).collect();
    for (n, part) in parts.iter().enumerate() {
        let before = n
            .checked_sub(1)
            .and_then(|n| parts.get(n))
            .copied()
            .unwrap_or_default();
        let scope = part.strip_suffix(".scope").unwrap_or(part);
        for (prefix, kind) in scopes {
            if let Some(id) = scope.strip_prefix(prefix).filter(|id| is_id(id)) {
                return Some((kind, id.to_owned()));
            }
        }
        if is_id(part) {
            let kind = match before {
                "docker" => "docker",
                "libpod_parent" => "podman",
                _ => "containerd",
            };
            return Some((kind, (*part).to_owned()));
        }
        if let Some(name) = part.strip_prefix("lxc.payload.") {
            return Some(("lxc", name.to_owned()));
        }
        if before == "lxc" {
            return Some(("lxc", (*part).to_owned()));
        }
        if let Some(name) = scope
            .strip_prefix("machine-")
            .filter(|_| before == "machine.slice")
        {
            return Some(("machine", name.replace("\\x2d", "-")));
        }
    }
    None
}

/// The inode number in `socket:[12345]`.
fn socket(target: &[u8]) -> Option<u64> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Which processes hold locks, by inode number: `1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF`. Locks of open file
/// descriptions have no process.
fn locks(proc: &dyn Proc) -> Vec<(u64, Option<u32>)> {
    let table = text(&proc.read("locks", 16 << 20).unwrap_or_default());
    let rows = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(4);
        let pid: i64 = fields.next()?.parse().ok()?;
        let inode = fields.next()?.rsplit(':').next()?.parse().ok()?;
        Some((inode, u32::try_from(pid).ok()))
    });
    rows.take(MOST).collect()
}

/// Tells a descriptor whose file is watched, if it is open for writing.
fn watched(
    proc: &dyn Proc,
    ask: &Ask,
    locks: &[(u64, Option<u32>)],
    pid: u32,
    fd: &str,
    target: &[u8],
) -> Option<OpenFile> {
    let watched = ask.watch.iter().find(|path| {
        let rest = target.strip_prefix(path.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })?;
    let info = text(&proc.read(&format!("{pid}/fdinfo/{fd}"), 64 << 10)?);
    let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let flags = u32::from_str_radix(field("flags:")?, 8).ok()?;
    // O_ACCMODE; O_PATH opens nothing.
    let writes = flags & 0o3 != 0 && flags & 0o10_000_000 == 0;
    let inode: Option<u64> = field("ino:").and_then(|n| n.parse().ok());
    // Newer kernels tell the locks of each descriptor, all tell those of each process.
    let locked = info.lines().any(|l| l.starts_with("lock:"))
        || locks
            .iter()
            .any(|(ino, holder)| *holder == Some(pid) && inode.is_none_or(|i| i == *ino));
    (writes || locked).then(|| OpenFile {
        watched: watched.clone(),
        path: text(target),
        pid,
        locked,
    })
}
