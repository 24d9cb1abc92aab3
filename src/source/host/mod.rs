//! A live host as a source: an agent that runs there lists its files, reads and hashes them.

mod contents;
mod link;
mod processes;
mod shell;
mod start;

pub use start::Sudo;

use super::{FilesystemInfo, Source, Traffic, Wanted};
use crate::agent::wire::{Got, Start, Want, Why};
use crate::error::{Error, Result};
use crate::live::{Ask, Live};
use crate::path::GuestPath;
use crate::progress::{Progress, Silent};
use crate::read_at::{ReadAt, Stream};
use crate::ssh::transport::Transport;
use crate::store::Store;
use crate::tree::{FileId, Kind, Node, Problem, Tree};
use contents::{Contents, Identity};
use link::{Far, Link, Outcome, Request};
use shell::Shell;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The smallest content that resumes where it was cut.
const RESUMED: u64 = 1 << 20;

/// The largest agent, in bytes.
const AGENT: u64 = 1 << 30;
/// The smallest content that travels as a delta.
const DELTA: u64 = 1 << 20;
/// Bytes of the sums of blocks in a signature. What is made of a delta is checked by its digest.
const STRONG: usize = 16;
/// The largest signature that is sent.
const SIGNATURE: usize = 32 << 20;

/// How a host is read.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the user calls the host: `ssh://root@web1`. Empty: as the connection does.
    pub name: String,
    /// The directory that is read as the machine's root.
    pub root: GuestPath,
    /// Stay on the filesystem of `root`.
    pub one_filesystem: bool,
    /// Ask for values of environment variables too.
    pub with_env: bool,
    /// Hash every file anew, and trust nothing that was kept of it: for a judge.
    pub fresh: bool,
    /// How the agent gets rights.
    pub sudo: Sudo,
    /// The most bytes a second that the host sends.
    pub rate: Option<u64>,
    /// Work only while the load of the last minute is at most this, in hundredths.
    pub load: Option<u32>,
    /// Send no agent: only what find, stat and tar tell.
    pub agentless: bool,
    /// Send this program instead of the built-in agent (`VM2K_AGENT`).
    pub agent: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: String::new(),
            root: GuestPath::root(),
            one_filesystem: false,
            with_env: false,
            fresh: false,
            sudo: Sudo::default(),
            rate: None,
            load: None,
            agentless: false,
            agent: std::env::var_os("VM2K_AGENT")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from),
        }
    }
}

/// What was read, and so is the state of the machine from now on.
struct Settled {
    tree: Tree,
    problems: Vec<Problem>,
}

/// A host.
pub struct Host {
    name: String,
    /// True if all of the host is read.
    whole: bool,
    with_env: bool,
    fresh: bool,
    link: Box<dyn Far>,
    contents: Arc<Contents>,
    /// Where temporary files may lie.
    scratch: PathBuf,
    first: Tree,
    problems: Vec<Problem>,
    filesystems: Vec<FilesystemInfo>,
    /// What names each filesystem for good, by its number.
    names: HashMap<u32, Arc<[u8]>>,
    /// The first path of each file.
    paths: HashMap<FileId, GuestPath>,
    settled: OnceLock<Settled>,
    files: Mutex<Files>,
    counts: Mutex<Traffic>,
}

#[derive(Default)]
struct Files {
    /// Jobs whose end nobody has seen.
    asked: HashMap<FileId, u32>,
    ended: HashMap<FileId, Outcome>,
}

/// The agent to send, gzip'ed, and the BLAKE3 of what runs then.
fn agent(options: &Options) -> Result<(Vec<u8>, [u8; 32])> {
    use std::io::{Read, Write};
    let read;
    let bytes: &[u8] = match &options.agent {
        Some(path) => {
            read = std::fs::read(path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
            &read
        }
        None => crate::agent::binary().ok_or_else(|| {
            Error::unsupported("this build of vm2k has no agent to send to a host")
                .hint("name a static build of it with VM2K_AGENT, or go without one: --agentless")
        })?,
    };
    let failed = |e| Error::io("compressing the agent", e);
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let packed = out.write_all(bytes).and_then(|()| out.finish()).map_err(failed)?;
        return Ok((packed, *blake3::hash(bytes).as_bytes()));
    }
    let mut hasher = blake3::Hasher::new();
    let mut plain = flate2::read::GzDecoder::new(bytes).take(AGENT);
    std::io::copy(&mut plain, &mut hasher).map_err(failed)?;
    Ok((bytes.to_vec(), *hasher.finalize().as_bytes()))
}

impl Host {
    /// Starts an agent on the host of `transport`, or does without where none can run, and lists its files. What comes from
    /// there is kept in `store`.
    ///
    /// # Errors
    /// [`Error::Network`] if the connection breaks, [`Error::Unsupported`] if the host has not even what is needed without an
    /// agent.
    pub fn open(
        transport: Arc<dyn Transport>,
        options: &Options,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let name = match options.name.is_empty() {
            true => transport.name(),
            false => options.name.clone(),
        };
        let started = match options.agentless {
            true => None,
            false => {
                let (agent, digest) = agent(options)?;
                match start::start(&*transport, &agent, std::env::consts::ARCH, &options.sudo)? {
                    Ok(started) => {
                        // Zeros: it could not read itself, which is no reason to doubt it.
                        if ![digest, [0; 32]].contains(&started.hello.executable) {
                            return Err(Error::refused(format!(
                                "{name}: the agent that runs there is not the one that was sent"
                            )));
                        }
                        Some(started)
                    }
                    Err(why) => {
                        progress.warn(&format!(
                            "{name}: {why}; going on without an agent, which is slower and lacks extended attributes"
                        ));
                        None
                    }
                }
            }
        };
        let mut greeting = None;
        let (uid, host) = match &started {
            Some(started) => (started.hello.uid, started.hello.host),
            None => {
                let sudo = !matches!(options.sudo, Sudo::No);
                let found = shell::greet(&*transport, sudo)?;
                let known = (if found.has_sudo() { 0 } else { found.uid }, found.host);
                greeting = Some(found);
                known
            }
        };
        if uid != 0 {
            progress.warn(&format!(
                "{name}: the host is read as user {uid}, not as root: files that this user may not read are listed and left out"
            ));
        }
        let key = match host {
            id if id == [0; 32] => blake3::hash(transport.name().as_bytes()),
            id => blake3::hash(&id),
        };
        let key = key.to_hex();
        let contents = Arc::new(Contents::open(store.dir(), key.get(..32).unwrap_or(&key))?);
        let start = Start {
            root: options.root.as_bytes().to_vec(),
            one_filesystem: options.one_filesystem,
            rate: options.rate.unwrap_or(0),
            load: options.load.unwrap_or(0),
        };
        let link: Box<dyn Far> = match (started, greeting) {
            (Some(started), _) => Box::new(Link::new(name.clone(), started, &start, Arc::clone(&contents))),
            (None, Some(greeting)) => Box::new(Shell::new(
                name.clone(),
                transport,
                &greeting,
                &options.root,
                options.one_filesystem,
                Arc::clone(&contents),
            )),
            (None, None) => return Err(Error::unsupported(format!("{name}: the host cannot be read"))),
        };
        let stage = progress.stage("listing the host's files", None);
        let walk = link.walk()?;
        drop(stage);
        let first = Tree::new(walk.entries);
        let paths = first
            .iter()
            .rev()
            .filter(|(_, n)| n.is_file())
            .map(|(p, n)| (n.id, p.clone()))
            .collect();
        let mut names = HashMap::new();
        let mut filesystems = Vec::new();
        for fs in walk.filesystems {
            let some = |text: String| Some(text).filter(|t| !t.is_empty());
            names.insert(fs.number, Arc::from(fs.identity));
            // What the kernel makes up has no room, and what lies in memory is no part of a machine.
            if fs.size == 0 || ["tmpfs", "devtmpfs", "ramfs"].contains(&fs.kind.as_str()) {
                continue;
            }
            filesystems.push(FilesystemInfo {
                kind: fs.kind,
                device: fs.device,
                uuid: some(fs.uuid),
                label: some(fs.label),
                size: fs.size,
                used: Some(fs.used),
                mounted: some(fs.mounted),
            });
        }
        Ok(Self {
            name,
            whole: options.root == GuestPath::root(),
            with_env: options.with_env,
            fresh: options.fresh,
            link,
            contents,
            scratch: store.dir().join("tmp"),
            first,
            problems: walk.problems,
            filesystems,
            names,
            paths,
            settled: OnceLock::new(),
            files: Mutex::default(),
            counts: Mutex::default(),
        })
    }

    fn node(&self, id: FileId) -> Result<(&GuestPath, &Node)> {
        let missing = || Error::corrupt(format!("{}: no file {id:?}", self.name), 0);
        let path = self.paths.get(&id).ok_or_else(missing)?;
        self.first.get_key(path).ok_or_else(missing)
    }

    fn filesystem(&self, number: u32) -> Arc<[u8]> {
        let unknown = || Arc::from(number.to_le_bytes());
        self.names.get(&number).cloned().unwrap_or_else(unknown)
    }

    fn identity(&self, node: &Node) -> Identity {
        contents::identity(&self.filesystem(node.id.fs), node)
    }

    fn request(&self, path: &GuestPath, node: &Node, want: Want) -> Request {
        let identity = self.identity(node);
        let beginning = match want {
            Want::Content(_) if node.size() >= RESUMED => self.contents.beginning(&identity),
            _ => None,
        };
        let want = match (&beginning, want) {
            (Some(beginning), Want::Content(_)) => Want::Content(beginning.len),
            (_, want) => want,
        };
        Request {
            path: path.clone(),
            want,
            identity,
            filesystem: self.filesystem(node.id.fs),
            size: node.size(),
            beginning,
            delta: None,
        }
    }

    /// A request for the difference to the last content that is kept of a path. `None` if there is none, or it does not pay.
    fn delta_request(&self, path: &GuestPath, node: &Node) -> Option<Request> {
        if node.size() < DELTA || !self.link.has_deltas() {
            return None;
        }
        let old = self.contents.last(path).filter(|old| old.len() >= DELTA)?;
        let mut signature = Vec::new();
        crate::rdiff::signature(Stream::new(&*old), old.len(), STRONG, &mut signature).ok()?;
        let file = tempfile::tempfile_in(&self.scratch).ok()?;
        // Such signatures are for files of terabytes.
        (signature.len() < SIGNATURE).then(|| Request {
            delta: Some((file, signature)),
            ..self.request(path, node, Want::Delta)
        })
    }

    /// Makes the new content of a file whose delta came.
    fn patch(&self, id: FileId, got: &Got, mut delta: std::fs::File) -> Result<()> {
        use std::io::{BufReader, Seek};
        let (path, node) = self.node(id)?;
        let gone = || {
            Error::corrupt(
                format!("{path}: the content that its delta starts from is gone"),
                0,
            )
        };
        let old = self.contents.last(path).ok_or_else(gone)?;
        delta.rewind().map_err(|e| Error::io("reading a delta", e))?;
        let identity = link::got_identity(&self.filesystem(node.id.fs), got);
        self.contents.store(path, identity, got, |out| {
            crate::rdiff::patch(&*old, BufReader::new(delta), got.len, out, |_| {}).map(drop)
        })
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of a file that was asked for; waits for it.
    fn ended(&self, id: FileId) -> Result<Option<Outcome>> {
        let number = {
            let mut files = self.files();
            if let Some(outcome) = files.ended.get(&id) {
                return Ok(Some(outcome.clone()));
            }
            match files.asked.remove(&id) {
                Some(number) => number,
                None => return Ok(None),
            }
        };
        let outcome = self.link.outcome(number)?;
        self.files().ended.insert(id, outcome.clone());
        Ok(Some(outcome))
    }

    /// The content of a file that was read, or that is known by its identity.
    fn kept(&self, id: FileId, node: &Node) -> Result<Option<Arc<dyn ReadAt>>> {
        let digest = match self.ended(id)? {
            Some(Outcome::Got(got)) => Some(got.digest),
            Some(Outcome::Failed(_, what)) => {
                let path = self.paths.get(&id).map(ToString::to_string).unwrap_or_default();
                return Err(Error::io(
                    format!("reading {path} of {}", self.name),
                    std::io::Error::other(what),
                ));
            }
            None => self.contents.digest(&self.identity(node)),
        };
        Ok(digest.and_then(|digest| self.contents.get(&digest)))
    }

    /// Asks for files without waiting.
    fn ask(&self, wanted: Vec<(FileId, Request)>) -> Result<()> {
        let (ids, requests): (Vec<FileId>, Vec<Request>) = wanted.into_iter().unzip();
        let numbers = self.link.request(requests)?;
        self.files().asked.extend(ids.into_iter().zip(numbers));
        Ok(())
    }

    /// The tree and the problems as they are after what was read.
    fn settle_now(&self, wanted: &[Wanted], progress: &dyn Progress) -> Result<HashMap<FileId, [u8; 32]>> {
        let mut known = HashMap::new();
        let mut ask = Vec::new();
        let mut order: Vec<FileId> = Vec::new();
        let mut seen = HashSet::new();
        let mut bytes = 0;
        for want in wanted {
            let Ok((path, node)) = self.node(want.id) else {
                continue;
            };
            if node.size() == 0 || !seen.insert(want.id) {
                continue;
            }
            order.push(want.id);
            // What was read already is the state that counts.
            let digest = match self.ended(want.id)? {
                Some(Outcome::Got(got)) => Some(got.digest),
                Some(Outcome::Failed(..)) => continue,
                None => self.contents.digest(&self.identity(node)),
            };
            if let Some(digest) = digest
                && (want.unless.contains(&digest) || self.contents.has(&digest))
            {
                known.insert(want.id, digest);
                continue;
            }
            self.files().ended.remove(&want.id);
            if want.unless.is_empty()
                && let Some(request) = self.delta_request(path, node)
            {
                bytes += node.size();
                ask.push((want.id, request));
                continue;
            }
            let wish = match (want.unless.first(), digest) {
                // Its digest is known, and it is not what is there already.
                (Some(unless), None) => Want::Unless(*unless),
                _ => Want::Content(0),
            };
            bytes += node.size();
            ask.push((want.id, self.request(path, node, wish)));
        }
        let stage = progress.stage("reading the host's files", Some(bytes));
        let before = self.link.traffic().1;
        let ids: Vec<FileId> = ask.iter().map(|(id, _)| *id).collect();
        let (waiting, requests): (Vec<FileId>, Vec<Request>) = ask.into_iter().unzip();
        let numbers = self.link.request(requests)?;
        let outcomes = self.link.outcomes(&numbers, &*stage)?;
        let mut deltas = 0;
        let mut whole = Vec::new();
        for ((id, number), outcome) in waiting.into_iter().zip(numbers).zip(outcomes) {
            let made = match (self.link.delta(number), &outcome) {
                (Some(delta), Outcome::Got(got)) => {
                    deltas += 1;
                    self.contents.has(&got.digest) || self.patch(id, got, delta).is_ok()
                }
                (Some(_), Outcome::Failed(Why::Other, _)) => false,
                _ => true,
            };
            match made {
                true => drop(self.files().ended.insert(id, outcome)),
                // Without the delta, then.
                false => whole.push(id),
            }
        }
        if !whole.is_empty() {
            let nodes = whole.iter().filter_map(|id| Some((*id, self.node(*id).ok()?)));
            let (whole, requests): (Vec<FileId>, Vec<Request>) = nodes
                .map(|(id, (path, node))| (id, self.request(path, node, Want::Content(0))))
                .unzip();
            let numbers = self.link.request(requests)?;
            let outcomes = self.link.outcomes(&numbers, &*stage)?;
            self.files().ended.extend(whole.into_iter().zip(outcomes));
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.read += ids.len() as u64;
        counts.deltas += deltas;
        counts.contents += self.link.traffic().1.saturating_sub(before);
        drop(counts);
        for id in order {
            if let Some(Outcome::Got(got)) = self.files().ended.get(&id) {
                known.insert(id, got.digest);
            }
        }
        self.amend();
        Ok(known)
    }

    /// Makes the tree that of what was read.
    fn amend(&self) {
        let files = self.files();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems = self.problems.clone();
        let mut gone: HashSet<FileId> = HashSet::new();
        let mut ids: Vec<&FileId> = files.ended.keys().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(path) = self.paths.get(id) else { continue };
            match files.ended.get(id) {
                Some(Outcome::Got(got)) if got.torn => {
                    counts.torn += 1;
                    problems.push(Problem {
                        path: path.clone(),
                        what: "it changed each time that it was read: its content is of no single moment"
                            .to_owned(),
                    });
                }
                Some(Outcome::Failed(Why::Vanished, _)) => {
                    counts.vanished += 1;
                    gone.insert(*id);
                }
                Some(Outcome::Failed(_, what)) => {
                    problems.push(Problem {
                        path: path.clone(),
                        what: format!("it could not be read and is left out: {what}"),
                    });
                    gone.insert(*id);
                }
                _ => {}
            }
        }
        let mut tree = self.first.clone();
        tree.retain(|_, node| !(node.is_file() && gone.contains(&node.id)));
        tree.for_each_mut(|_, node| {
            if let (true, Some(Outcome::Got(got))) = (node.is_file(), files.ended.get(&node.id)) {
                node.kind = Kind::File { size: got.len };
                (node.mode, node.uid, node.gid) = (got.mode, got.uid, got.gid);
                (node.mtime, node.ctime) = (got.mtime, got.ctime);
            }
        });
        let _ = self.settled.set(Settled { tree, problems });
    }
}

impl Source for Host {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tree(&self) -> &Tree {
        self.settled.get().map_or(&self.first, |s| &s.tree)
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>> {
        let (path, node) = self.node(id)?;
        let settled = self.settled.get().and_then(|s| s.tree.get(path)).map(Node::size);
        if settled.unwrap_or(node.size()) == 0 {
            return Ok(Arc::new(Vec::new()));
        }
        let content = match self.kept(id, node)? {
            Some(content) => content,
            None => {
                self.files().ended.remove(&id);
                self.ask(vec![(id, self.request(path, node, Want::Content(0)))])?;
                self.kept(id, node)?.ok_or_else(|| {
                    Error::corrupt(format!("{path} of {}: what was read is not kept", self.name), 0)
                })?
            }
        };
        // A tree that others rely on says how long it is.
        if settled.is_some_and(|size| size != content.len()) {
            return Err(Error::io(
                format!("reading {path} of {}", self.name),
                std::io::Error::other("it changed since it was listed"),
            ));
        }
        Ok(content)
    }

    fn problems(&self) -> &[Problem] {
        self.settled.get().map_or(&self.problems, |s| &s.problems)
    }

    fn filesystems(&self) -> &[FilesystemInfo] {
        &self.filesystems
    }

    fn prefetch(&self, ids: &[FileId]) {
        let mut wanted = Vec::new();
        for id in ids {
            let Ok((path, node)) = self.node(*id) else {
                continue;
            };
            let asked = {
                let files = self.files();
                files.asked.contains_key(id) || files.ended.contains_key(id)
            };
            let kept = || {
                let digest = self.contents.digest(&self.identity(node));
                digest.is_some_and(|digest| self.contents.has(&digest))
            };
            if node.size() > 0 && !asked && !kept() {
                wanted.push((*id, self.request(path, node, Want::Content(0))));
            }
        }
        // Who opens one of them meets the error.
        let _ = self.ask(wanted);
    }

    fn hashes(&self, ids: &[FileId]) -> Option<HashMap<FileId, Result<[u8; 32]>>> {
        let mut found = HashMap::new();
        let (mut unknown, mut requests) = (Vec::new(), Vec::new());
        for id in ids {
            let Ok((path, node)) = self.node(*id) else {
                continue;
            };
            let ended = self.ended(*id).ok().flatten();
            let digest = match ended {
                Some(Outcome::Got(got)) => Some(got.digest),
                _ if self.fresh => None,
                _ => self.contents.digest(&self.identity(node)),
            };
            match digest {
                Some(digest) => {
                    found.insert(*id, Ok(digest));
                }
                None => {
                    unknown.push(*id);
                    requests.push(self.request(path, node, Want::Digest));
                }
            }
        }
        let outcomes = self
            .link
            .request(requests)
            .and_then(|numbers| self.link.outcomes(&numbers, &Silent));
        match outcomes {
            Ok(outcomes) => {
                for (id, outcome) in unknown.into_iter().zip(outcomes) {
                    let hash = match outcome {
                        Outcome::Got(got) => Ok(got.digest),
                        Outcome::Failed(_, what) => Err(Error::io(
                            "hashing a file of the host",
                            std::io::Error::other(what),
                        )),
                    };
                    found.insert(id, hash);
                }
            }
            Err(e) => {
                for id in unknown {
                    found.insert(id, Err(e.again()));
                }
            }
        }
        Some(found)
    }

    fn settle(
        &self,
        wanted: &[Wanted],
        progress: &dyn Progress,
    ) -> Result<Option<HashMap<FileId, [u8; 32]>>> {
        if self.settled.get().is_some() {
            return Ok(None);
        }
        self.settle_now(wanted, progress).map(Some)
    }

    fn is_moving(&self) -> bool {
        true
    }

    fn traffic(&self) -> Option<Traffic> {
        let (sent, received) = self.link.traffic();
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Traffic {
            sent,
            received,
            ..counts
        })
    }

    fn finished(&self) {
        let tree = self.tree();
        let current = tree
            .iter()
            .filter(|(_, n)| n.is_file())
            .map(|(_, n)| self.identity(n))
            .collect();
        self.contents.retain(&current);
        self.link.quit();
    }

    fn live(&self, watch: Vec<String>) -> Result<Option<Live>> {
        // Of a part of the host nothing can be said by its processes.
        if !self.whole {
            return Ok(None);
        }
        let ask = Ask {
            with_env: self.with_env,
            watch,
        };
        self.link.live(&ask).map(Some)
    }
}
