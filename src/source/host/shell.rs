//! A host without an agent: what find, stat and tar tell, through a shell. Slower, and not all can be had: no extended attributes,
//! no holes, no digests and deltas from there.

use super::contents::Contents;
use super::link::{Far, Outcome, Request, Walk, got_identity};
use super::processes;
use crate::agent::wire::{Filesystem, Got, Why};
use crate::error::{Error, Result};
use crate::live::{Ask, Live, collect};
use crate::path::GuestPath;
use crate::progress::Stage;
use crate::ssh::transport::{Process, Transport, quote, run};
use crate::tar::{Input, Reader, Type};
use crate::tree::{FileId, Kind, Node, Problem, Time, Xattrs};
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest wait for the end of a command whose output is complete.
const END: Duration = Duration::from_secs(30);
/// The longest list of files, in bytes.
const LIST: u64 = 8 << 30;
/// Files of one tar.
const BATCH: usize = 20_000;
/// How often a file that changes while it is read is read again.
const AGAIN: usize = 3;
/// What the files of all processes may have, in bytes, and how long it may take to print them.
const LIVE: usize = 64 << 20;
const WALK: Duration = Duration::from_secs(300);
/// What a short command may print.
const SHORT: usize = 64 << 10;

/// Filesystems whose content is no part of a machine, or is on another one: their mount points alone are listed.
const LEFT_OUT: &[&str] = &[
    "proc",
    "sysfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
    "configfs",
    "pstore",
    "efivarfs",
    "hugetlbfs",
    "mqueue",
    "binfmt_misc",
    "fusectl",
    "nsfs",
    "selinuxfs",
    "rpc_pipefs",
    "autofs",
    "tmpfs",
    "devtmpfs",
    "ramfs",
    "overlay",
    "squashfs",
    "iso9660",
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "9p",
    "virtiofs",
    "afs",
    "fuse.sshfs",
    "fuse.lxcfs",
];

/// A host behind a shell.
pub(super) struct Shell {
    name: String,
    transport: Arc<dyn Transport>,
    contents: Arc<Contents>,
    /// `sudo -n ` or nothing.
    sudo: &'static str,
    root: Vec<u8>,
    one_filesystem: bool,
    next: AtomicU32,
    outcomes: Mutex<HashMap<u32, Outcome>>,
    sent: AtomicU64,
    received: AtomicU64,
}

/// What a shell says of its host: user, name and machine-id.
pub(super) struct Greeting {
    pub(super) uid: u32,
    pub(super) host: [u8; 32],
    sudo: &'static str,
}

impl Greeting {
    /// True if the host is read as root although the user is another.
    pub(super) fn has_sudo(&self) -> bool {
        !self.sudo.is_empty()
    }
}

/// Looks whether the host has what is needed.
///
/// # Errors
/// [`Error::Unsupported`] if it has not, [`Error::Network`] if it cannot be reached.
pub(super) fn greet(transport: &dyn Transport, sudo: bool) -> Result<Greeting> {
    let script = concat!(
        r#"echo; echo "vm2k: uid $(id -u)"; sudo -n true >/dev/null 2>&1 && echo "vm2k: sudo"; "#,
        r#"[ "$(find / -maxdepth 0 -printf x 2>/dev/null)" = x ] && echo "vm2k: find"; "#,
        r#"[ "$(stat --printf=%.9Y / 2>/dev/null)" ] && echo "vm2k: stat"; "#,
        r#"tar --version 2>/dev/null | grep -q GNU && echo "vm2k: tar"; "#,
        r#"command -v gzip >/dev/null && echo "vm2k: gzip"; echo "vm2k: id $(cat /etc/machine-id 2>/dev/null)"; exit 0"#,
    );
    let name = transport.name();
    let out = run(transport, &shell(script), b"", SHORT, END)?;
    let text = String::from_utf8_lossy(&out.stdout);
    let said: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("vm2k: ")).collect();
    let uid = said.iter().find_map(|l| l.strip_prefix("uid ")?.parse().ok());
    let uid: u32 = uid.ok_or_else(|| {
        Error::unsupported(format!(
            "{name}: there is no POSIX shell ({})",
            out.exit.describe()
        ))
    })?;
    for needed in ["find", "stat", "tar", "gzip"] {
        if !said.contains(&needed) {
            return Err(Error::unsupported(format!(
                "{name}: without an agent GNU {needed} is needed, and it is not there"
            )));
        }
    }
    let id = said
        .iter()
        .find_map(|l| l.strip_prefix("id "))
        .filter(|id| id.len() > 16);
    Ok(Greeting {
        uid,
        // The same name that the agent would give: it hashes the whole file.
        host: id.map_or([0; 32], |id| {
            *blake3::hash(format!("{id}\n").as_bytes()).as_bytes()
        }),
        sudo: if uid != 0 && sudo && said.contains(&"sudo") {
            "sudo -n "
        } else {
            ""
        },
    })
}

fn shell(script: &str) -> String {
    format!("exec /bin/sh -c {}", quote(script))
}

impl Shell {
    pub(super) fn new(
        name: String,
        transport: Arc<dyn Transport>,
        greeting: &Greeting,
        root: &GuestPath,
        one_filesystem: bool,
        contents: Arc<Contents>,
    ) -> Self {
        Self {
            name,
            transport,
            contents,
            sudo: greeting.sudo,
            root: root.as_bytes().to_vec(),
            one_filesystem,
            next: AtomicU32::new(0),
            outcomes: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// Runs `script`, feeds it `input` from another thread and hands its stdout to `f`.
    fn stream<T>(
        &self,
        script: &str,
        input: Vec<u8>,
        f: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<(T, Vec<u8>)> {
        let Process {
            mut stdin,
            stdout,
            mut control,
        } = self.transport.start(&shell(script))?;
        self.sent.fetch_add(input.len() as u64, Ordering::Relaxed);
        std::thread::spawn(move || {
            // A command that does not read its input says why by its end.
            let _ = stdin.write_all(&input);
        });
        let mut out = Counted {
            from: stdout,
            count: &self.received,
        };
        let done = f(&mut out);
        match done {
            Ok(done) => {
                let exit = control.wait(END)?;
                Ok((done, exit.stderr))
            }
            Err(e) => {
                let said = control.wait(Duration::from_secs(2));
                control.kill();
                Err(match said {
                    Ok(exit) if !exit.success() => Error::Network {
                        what: format!("{}: {} ({e})", self.name, exit.describe()),
                        source: None,
                    },
                    _ => e,
                })
            }
        }
    }

    /// The path on the host, as a word.
    fn root(&self) -> String {
        quote(&String::from_utf8_lossy(&self.root))
    }

    fn list(&self) -> Result<Walk> {
        let types: Vec<String> = LEFT_OUT.iter().map(|kind| format!("-fstype {kind}")).collect();
        let format = r#""%y\t%m\t%U\t%G\t%s\t%T@\t%C@\t%i\t%D\t%n\t%P\0%l\0""#;
        let stay = if self.one_filesystem { "-xdev " } else { "" };
        // The root itself may lie on any filesystem.
        let script = format!(
            "cd {root} && export LC_ALL=C && {sudo}find . {stay}! -path . \\( {types} \\) -prune -printf {format} -o -printf {format}",
            root = self.root(),
            sudo = self.sudo,
            types = types.join(" -o "),
        );
        let mut walk = Walk::default();
        let mut devices: Vec<u64> = Vec::new();
        let (_, said) = self.stream(&script, Vec::new(), |out| {
            let mut out = BufReader::with_capacity(1 << 20, out).take(LIST);
            while let Some(record) = field(&mut out)? {
                let target = field(&mut out)?.unwrap_or_default();
                match entry(&record, target, &mut devices) {
                    Some((path, node)) => walk.entries.push((path, node)),
                    None => {
                        return Err(Error::corrupt(
                            format!("{}: find printed what it should not", self.name),
                            0,
                        ));
                    }
                }
            }
            Ok(())
        })?;
        if walk.entries.is_empty() {
            let line = String::from_utf8_lossy(&said)
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned();
            return Err(Error::unsupported(format!(
                "{}: find lists nothing: {line}",
                self.name
            )));
        }
        for line in String::from_utf8_lossy(&said)
            .lines()
            .filter(|l| l.contains("find: "))
            .take(1000)
        {
            walk.problems.push(Problem {
                path: GuestPath::root(),
                what: line.chars().take(300).collect(),
            });
        }
        walk.problems.push(Problem {
            path: GuestPath::root(),
            what: "without an agent extended attributes (ACLs, capabilities) and holes cannot be had"
                .to_owned(),
        });
        self.numbers(&mut walk)?;
        walk.filesystems = devices
            .iter()
            .zip(0u32..)
            .map(|(device, number)| Filesystem {
                number,
                identity: format!("device {device}").into_bytes(),
                ..Filesystem::default()
            })
            .collect();
        Ok(walk)
    }

    /// find(1) does not say the numbers of devices.
    fn numbers(&self, walk: &mut Walk) -> Result<()> {
        let is_device = |node: &Node| matches!(node.kind, Kind::Block { .. } | Kind::Char { .. });
        let places: Vec<usize> = (0..walk.entries.len())
            .filter(|at| walk.entries.get(*at).is_some_and(|(_, node)| is_device(node)))
            .collect();
        if places.is_empty() {
            return Ok(());
        }
        let names = places.iter().filter_map(|at| walk.entries.get(*at));
        let names: Vec<&GuestPath> = names.map(|(path, _)| path).collect();
        let stats = self.stat(&names)?;
        for at in places {
            let Some((path, node)) = walk.entries.get_mut(at) else {
                continue;
            };
            let Some(stat) = stats.get(path) else { continue };
            match &mut node.kind {
                Kind::Block { major, minor } | Kind::Char { major, minor } => (*major, *minor) = stat.device,
                _ => {}
            }
        }
        Ok(())
    }

    /// What stat(1) says of paths; those that it cannot see are not in the answer.
    fn stat(&self, paths: &[&GuestPath]) -> Result<HashMap<GuestPath, Stat>> {
        let script = format!(
            "cd {} && export LC_ALL=C && {}xargs -0 stat --printf=\"%f\\t%u\\t%g\\t%s\\t%.9Y\\t%.9Z\\t%i\\t%t\\t%T\\t%n\\0\" -- 2>/dev/null; exit 0",
            self.root(),
            self.sudo
        );
        let mut found = HashMap::new();
        self.stream(&script, names(paths), |out| {
            let mut out = BufReader::with_capacity(1 << 18, out).take(LIST);
            while let Some(record) = field(&mut out)? {
                if let Some((path, stat)) = stated(&record) {
                    found.insert(path, stat);
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Reads files through one tar. Gives digest and length of those that came.
    fn tar(
        &self,
        wanted: &HashMap<GuestPath, (&Request, Option<Stat>)>,
        order: &[&GuestPath],
    ) -> Result<HashMap<GuestPath, ([u8; 32], u64)>> {
        let script = format!(
            "cd {} && export LC_ALL=C && {}tar --null --no-recursion --hard-dereference -T - -cf - 2>/dev/null | gzip -1; exit 0",
            self.root(),
            self.sudo
        );
        let mut came = HashMap::new();
        self.stream(&script, names(order), |out| {
            let plain = flate2::read::MultiGzDecoder::new(out);
            let mut tar = Reader::new(
                Forward(BufReader::with_capacity(1 << 18, plain)),
                "the host's tar",
            );
            while let Some(entry) = tar.next()? {
                let Ok(path) = GuestPath::lenient(&entry.path) else {
                    continue;
                };
                let Some((request, stat)) = wanted.get(&path).filter(|_| entry.kind == Type::File) else {
                    continue;
                };
                let identity = match stat {
                    Some(stat) => stat.identity(&request.filesystem),
                    None => request.identity,
                };
                let stored = self.contents.store_new(&path, identity, |out| {
                    let mut buf = vec![0; 64 << 10];
                    loop {
                        let n = tar.read_stored(&mut buf)?;
                        if n == 0 {
                            return Ok(());
                        }
                        out.write_all(buf.get(..n).unwrap_or_default())
                            .map_err(|e| Error::from_io(format!("keeping {path}"), e))?;
                    }
                })?;
                came.insert(path, stored);
            }
            Ok(())
        })?;
        Ok(came)
    }

    /// Reads a batch, again what changed meanwhile.
    fn read(&self, requests: &[(u32, Request)]) -> Result<()> {
        let mut todo: Vec<usize> = (0..requests.len()).collect();
        let mut before: HashMap<GuestPath, Stat> = HashMap::new();
        for round in 0..=AGAIN {
            let of = |at: &usize| requests.get(*at);
            let order: Vec<&GuestPath> = todo.iter().filter_map(of).map(|(_, r)| &r.path).collect();
            if round == 0 {
                before = self.stat(&order)?;
            }
            let wanted: HashMap<GuestPath, (&Request, Option<Stat>)> = todo
                .iter()
                .filter_map(of)
                .map(|(_, r)| (r.path.clone(), (r, before.get(&r.path).copied())))
                .collect();
            let came = self.tar(&wanted, &order)?;
            let after = self.stat(&order)?;
            let mut again = Vec::new();
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            for at in std::mem::take(&mut todo) {
                let Some((number, request)) = requests.get(at) else {
                    continue;
                };
                let path = &request.path;
                let outcome = match (after.get(path), came.get(path)) {
                    (None, _) => Outcome::Failed(Why::Vanished, "it is not there any more".into()),
                    (Some(stat), _) if stat.mode & 0o170_000 != 0o100_000 => {
                        Outcome::Failed(Why::Replaced, "it is no regular file any more".into())
                    }
                    (Some(_), None) => Outcome::Failed(Why::Denied, "tar could not read it".into()),
                    (Some(stat), Some((digest, len))) => {
                        let torn = before.get(path) != Some(stat) || *len != stat.size;
                        if torn && round < AGAIN {
                            again.push(at);
                            continue;
                        }
                        Outcome::Got(stat.got(*digest, *len, torn))
                    }
                };
                outcomes.insert(*number, outcome);
            }
            drop(outcomes);
            if again.is_empty() {
                break;
            }
            before = after;
            todo = again;
        }
        Ok(())
    }
}

impl Far for Shell {
    fn walk(&self) -> Result<Walk> {
        self.list()
    }

    fn request(&self, requests: Vec<Request>) -> Result<Vec<u32>> {
        let numbered: Vec<(u32, Request)> = requests
            .into_iter()
            .map(|request| (self.next.fetch_add(1, Ordering::Relaxed), request))
            .collect();
        for batch in numbered.chunks(BATCH) {
            self.read(batch)?;
        }
        Ok(numbered.iter().map(|(number, _)| *number).collect())
    }

    fn outcome(&self, number: u32) -> Result<Outcome> {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = || Error::corrupt(format!("{}: a file that nobody asked for", self.name), 0);
        outcomes.remove(&number).ok_or_else(unknown)
    }

    fn outcomes(&self, numbers: &[u32], _stage: &dyn Stage) -> Result<Vec<Outcome>> {
        numbers.iter().map(|number| self.outcome(*number)).collect()
    }

    fn delta(&self, _number: u32) -> Option<std::fs::File> {
        None
    }

    fn has_deltas(&self) -> bool {
        false
    }

    fn traffic(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
        )
    }

    fn live(&self, ask: &Ask) -> Result<Live> {
        // A mark that no process can have guessed.
        let seed = std::collections::hash_map::RandomState::new();
        let token = format!("vm2k{:016x}", std::hash::BuildHasher::hash_one(&seed, &self.name));
        let script = processes::script(&token, ask.with_env);
        let command = shell(&format!("exec {}/bin/sh -c {}", self.sudo, quote(&script)));
        let out = run(&*self.transport, &command, b"", LIVE, WALK)?;
        self.received
            .fetch_add(out.stdout.len() as u64, Ordering::Relaxed);
        Ok(collect(&processes::parse(&out.stdout, &token), ask))
    }

    fn quit(&self) {}
}

/// What stat(1) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: Time,
    ctime: Time,
    ino: u64,
    device: (u32, u32),
}

impl Stat {
    fn got(&self, digest: [u8; 32], len: u64, torn: bool) -> Got {
        Got {
            len,
            digest,
            ino: self.ino,
            mode: u16::try_from(self.mode & 0o7777).unwrap_or(0),
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            ctime: self.ctime,
            torn,
        }
    }

    fn identity(&self, filesystem: &[u8]) -> super::contents::Identity {
        got_identity(filesystem, &self.got([0; 32], self.size, false))
    }
}

fn stated(record: &[u8]) -> Option<(GuestPath, Stat)> {
    let mut fields = record.splitn(10, |b| *b == b'\t');
    let mut next = || std::str::from_utf8(fields.next()?).ok();
    let mode = u32::from_str_radix(next()?, 16).ok()?;
    let stat = Stat {
        mode,
        uid: next()?.parse().ok()?,
        gid: next()?.parse().ok()?,
        size: next()?.parse().ok()?,
        mtime: time(next()?)?,
        ctime: time(next()?)?,
        ino: next()?.parse().ok()?,
        device: (
            u32::from_str_radix(next()?, 16).ok()?,
            u32::from_str_radix(next()?, 16).ok()?,
        ),
    };
    Some((GuestPath::lenient(fields.next()?).ok()?, stat))
}

/// A record of the list.
fn entry(record: &[u8], target: Vec<u8>, devices: &mut Vec<u64>) -> Option<(GuestPath, Node)> {
    let mut fields = record.splitn(11, |b| *b == b'\t');
    let mut next = || std::str::from_utf8(fields.next()?).ok();
    let kind = next()?;
    let mode = u16::from_str_radix(next()?, 8).ok()?;
    let (uid, gid) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let size = next()?.parse().ok()?;
    let (mtime, ctime) = (time(next()?)?, time(next()?)?);
    let ino = next()?.parse().ok()?;
    let device: u64 = next()?.parse().ok()?;
    let nlink = next()?.parse().ok()?;
    let path = GuestPath::lenient(fields.next()?).ok()?;
    let kind = match kind {
        "f" => Kind::File { size },
        "d" => Kind::Directory,
        "l" => Kind::Symlink { target },
        "b" => Kind::Block { major: 0, minor: 0 },
        "c" => Kind::Char { major: 0, minor: 0 },
        "p" => Kind::Fifo,
        "s" => Kind::Socket,
        _ => return None,
    };
    let number = devices.iter().position(|d| *d == device).unwrap_or_else(|| {
        devices.push(device);
        devices.len() - 1
    });
    let node = Node {
        kind,
        mode: mode & 0o7777,
        uid,
        gid,
        mtime,
        ctime,
        xattrs: Xattrs::new(),
        id: FileId {
            fs: u32::try_from(number).ok()?,
            ino,
        },
        nlink,
    };
    Some((path, node))
}

/// Seconds with a fraction, as GNU tools print them: the fraction is after the whole seconds, also before 1970.
fn time(text: &str) -> Option<Time> {
    let (sec, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some(Time {
        sec: sec.parse().ok()?,
        nsec: digits.parse().ok()?,
    })
}

/// Paths as a list that ends each with NUL, relative to the root.
fn names(paths: &[&GuestPath]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    for path in paths.iter().filter(|p| seen.insert(**p)) {
        out.extend_from_slice(b"./");
        out.extend_from_slice(path.relative());
        out.push(0);
    }
    out
}

/// Bytes up to the next NUL; `None` at the end.
fn field(from: &mut dyn BufRead) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let n = from
        .take(1 << 20)
        .read_until(0, &mut bytes)
        .map_err(|e| Error::from_io("reading from the host", e))?;
    match bytes.pop() {
        Some(0) => Ok(Some(bytes)),
        None if n == 0 => Ok(None),
        _ => Err(Error::Network {
            what: "the host's list is cut off".into(),
            source: None,
        }),
    }
}

/// Counts what is read.
struct Counted<'a> {
    from: Box<dyn Read + Send>,
    count: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// A stream that can only be read forward.
struct Forward<R>(R);

impl<R: Read> Read for Forward<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Input for Forward<R> {
    fn skip(&mut self, n: u64) -> std::io::Result<()> {
        match std::io::copy(&mut (&mut self.0).take(n), &mut std::io::sink())? == n {
            true => Ok(()),
            false => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
