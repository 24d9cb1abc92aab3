//! The two-way diff: tree against tree, merge-joined over their sorted paths.

use crate::error::{Error, Result};
use crate::jobs;
use crate::layer::tar::is_local_xattr;
use crate::path::GuestPath;
use crate::progress::{Progress, Stage};
use crate::read_at::ReadAt;
use crate::source::Source;
use crate::tree::{FileId, Kind, Node, Tree, Xattrs};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// BLAKE3 of a file's content. It never leaves the store: what others see is SHA-256.
pub type ContentHash = [u8; 32];

/// Hashes of contents that are known already, by file. Filled from caches, read by [`compare`].
pub type Known = HashMap<FileId, ContentHash>;

/// What differs between two nodes of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fields(u16);

impl Fields {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// One is a directory and the other a file, or the like.
    pub const TYPE: Self = Self(1);
    /// The bytes of a regular file, or its size.
    pub const CONTENT: Self = Self(2);
    /// The target of a symbolic link.
    pub const TARGET: Self = Self(4);
    /// The numbers of a device.
    pub const DEVICE: Self = Self(8);
    /// Permission bits.
    pub const MODE: Self = Self(16);
    /// Owner or group.
    pub const OWNER: Self = Self(32);
    /// Time of modification, in whole seconds.
    pub const MTIME: Self = Self(64);
    /// Extended attributes, ACLs and capabilities among them.
    pub const XATTRS: Self = Self(128);
    /// Which paths are hard links of one file.
    pub const LINKS: Self = Self(256);

    const NAMES: [(Self, &'static str); 9] = [
        (Self::TYPE, "type"),
        (Self::CONTENT, "content"),
        (Self::TARGET, "target"),
        (Self::DEVICE, "device"),
        (Self::MODE, "mode"),
        (Self::OWNER, "owner"),
        (Self::MTIME, "mtime"),
        (Self::XATTRS, "xattrs"),
        (Self::LINKS, "links"),
    ];

    /// True if nothing differs.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
    /// True if all of `other` is among these.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// These without `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Adds `other` if `yes`.
    pub fn set(&mut self, other: Self, yes: bool) {
        if yes {
            self.0 |= other.0;
        }
    }
    /// The names of the fields, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(f, _)| self.has(*f))
            .map(|(_, n)| n)
    }
}

impl std::fmt::Display for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(", "))
    }
}

/// What became of one path on the way from the old tree to the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Only the new tree has it.
    Added,
    /// Only the old tree has it.
    Deleted,
    /// Both have it and it differs.
    Changed(Fields),
}

/// All changes in byte order of their paths. A path that is not here is the same in both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// The changes.
    pub changes: Vec<(GuestPath, Change)>,
    /// Files whose content could not be read for the comparison, and why; they count as changed.
    pub unread: Vec<(GuestPath, String)>,
}

impl Diff {
    /// The change of `path`, if it changed.
    pub fn get(&self, path: &GuestPath) -> Option<Change> {
        let at = self.changes.binary_search_by(|(p, _)| p.cmp(path)).ok()?;
        self.changes.get(at).map(|(_, c)| *c)
    }
}

/// One pair of a merge join.
pub enum Joined<'a> {
    /// Only on the left.
    Left(&'a GuestPath, &'a Node),
    /// Only on the right.
    Right(&'a GuestPath, &'a Node),
    /// On both sides.
    Both(&'a GuestPath, &'a Node, &'a Node),
}

/// Joins two trees over their paths, in byte order, in one pass.
pub fn join<'a>(left: &'a Tree, right: &'a Tree) -> impl Iterator<Item = Joined<'a>> {
    let (mut l, mut r) = (left.iter().peekable(), right.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (l.peek(), r.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        match order {
            Ordering::Less => l.next().map(|(p, n)| Joined::Left(p, n)),
            Ordering::Greater => r.next().map(|(p, n)| Joined::Right(p, n)),
            Ordering::Equal => l
                .next()
                .zip(r.next())
                .map(|((p, a), (_, b))| Joined::Both(p, a, b)),
        }
    })
}

/// What differs between two nodes without looking at file contents (sizes are looked at) and at hard links.
pub fn fields(old: &Node, new: &Node) -> Fields {
    let mut f = Fields::NONE;
    match (&old.kind, &new.kind) {
        (Kind::File { size: a }, Kind::File { size: b }) => f.set(Fields::CONTENT, a != b),
        (Kind::Symlink { target: a }, Kind::Symlink { target: b }) => f.set(Fields::TARGET, a != b),
        (Kind::Block { .. }, Kind::Block { .. }) | (Kind::Char { .. }, Kind::Char { .. }) => {
            f.set(Fields::DEVICE, old.kind != new.kind);
        }
        (a, b) => f.set(Fields::TYPE, a != b),
    }
    // The mode of a symbolic link means nothing and cannot be set.
    let links = matches!(
        (&old.kind, &new.kind),
        (Kind::Symlink { .. }, Kind::Symlink { .. })
    );
    f.set(Fields::MODE, old.mode != new.mode && !links);
    f.set(Fields::OWNER, (old.uid, old.gid) != (new.uid, new.gid));
    f.set(Fields::MTIME, old.mtime.sec != new.mtime.sec);
    f.set(Fields::XATTRS, !same_xattrs(&old.xattrs, &new.xattrs));
    f
}

fn same_xattrs(a: &Xattrs, b: &Xattrs) -> bool {
    let kept = |x: &Xattrs| {
        x.iter()
            .filter(|(name, _)| !is_local_xattr(name))
            .cloned()
            .collect::<Vec<_>>()
    };
    a == b || kept(a) == kept(b)
}

/// BLAKE3 of a whole content; holes count as the zeros they are, without being read.
///
/// # Errors
/// As the content's reader.
pub fn hash_content(content: &dyn ReadAt, stage: &dyn Stage) -> Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    for_each_chunk(content, |chunk| {
        chunk.bytes(|bytes| {
            hasher.update(bytes);
            stage.add(bytes.len() as u64);
            Ok(())
        })
    })?;
    Ok(*hasher.finalize().as_bytes())
}

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// A part of a content.
#[derive(Debug, Clone, Copy)]
pub enum Chunk<'a> {
    /// Bytes that were read, at most 256 KiB.
    Data(&'a [u8]),
    /// So many zeros that were not.
    Hole(u64),
}

impl Chunk<'_> {
    /// Hands the bytes to `f`, those of a hole in parts.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn bytes(self, mut f: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        match self {
            Self::Data(bytes) => f(bytes),
            Self::Hole(mut left) => {
                while left > 0 {
                    let n = usize::try_from(left).unwrap_or(ZEROS.len()).min(ZEROS.len());
                    f(ZEROS.get(..n).unwrap_or(&ZEROS))?;
                    left -= n as u64;
                }
                Ok(())
            }
        }
    }
}

/// A part of a content that was not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// So many bytes to read, at most 256 KiB.
    Data(usize),
    /// So many zeros.
    Hole(u64),
}

/// Hands the whole content to `f`, in order, holes as such.
///
/// # Errors
/// Those of reading and of `f`.
pub fn for_each_chunk(content: &dyn ReadAt, mut f: impl FnMut(Chunk<'_>) -> Result<()>) -> Result<()> {
    let mut buf = Vec::new();
    for_each_run(content, |at, run| match run {
        Run::Hole(len) => f(Chunk::Hole(len)),
        Run::Data(len) => {
            if buf.len() < len {
                buf.resize(len, 0);
            }
            let part = buf.get_mut(..len).unwrap_or_default();
            content.read_at(at, part)?;
            f(Chunk::Data(part))
        }
    })
}

/// Tells `f` offset and length of each part of the content, in order; nothing is read.
///
/// # Errors
/// Those of finding holes and of `f`.
pub fn for_each_run(content: &dyn ReadAt, mut f: impl FnMut(u64, Run) -> Result<()>) -> Result<()> {
    let len = content.len();
    let mut at = 0;
    while at < len {
        let extent = content.extent_at(at)?;
        let run = extent.len.min(len - at);
        if run == 0 {
            return Err(Error::corrupt(
                "an extent of length 0 before the end of a file",
                at,
            ));
        }
        if extent.hole {
            f(at, Run::Hole(run))?;
            at += run;
            continue;
        }
        let end = at + run;
        while at < end {
            let n = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            f(at, Run::Data(n))?;
            at += n as u64;
        }
    }
    Ok(())
}

/// One side of a comparison.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// Where the tree and the contents come from.
    pub source: &'a dyn Source,
    /// Hashes that are known without reading.
    pub known: &'a Known,
}

impl Side<'_> {
    /// The hash of a file, from what is known or by reading it.
    ///
    /// # Errors
    /// As the source's reader.
    pub fn hash(&self, id: FileId, stage: &dyn Stage) -> Result<ContentHash> {
        match self.known.get(&id) {
            Some(hash) => Ok(*hash),
            None => hash_content(&*self.source.open(id)?, stage),
        }
    }
}

/// Compares two trees, contents included. Returns the diff and the hashes that were computed for the new side.
///
/// Contents are read only where both sides have a regular file of one size at one path, each file once, on `jobs` threads.
pub fn compare(old: Side<'_>, new: Side<'_>, jobs: usize, progress: &dyn Progress) -> (Diff, Known) {
    let mut diff = Diff::default();
    // Files to compare by content: position in `changes`, and the two ids.
    let mut pairs: Vec<(GuestPath, FileId, FileId, u64)> = Vec::new();
    for joined in join(old.source.tree(), new.source.tree()) {
        match joined {
            Joined::Left(path, _) => diff.changes.push((path.clone(), Change::Deleted)),
            Joined::Right(path, _) => diff.changes.push((path.clone(), Change::Added)),
            Joined::Both(path, a, b) => {
                let f = fields(a, b);
                if a.is_file() && b.is_file() && !f.has(Fields::CONTENT) && a.size() > 0 {
                    pairs.push((path.clone(), a.id, b.id, a.size()));
                }
                if !f.is_none() {
                    diff.changes.push((path.clone(), Change::Changed(f)));
                }
            }
        }
    }
    let total = pairs
        .iter()
        .filter(|(_, _, b, _)| !new.known.contains_key(b))
        .map(|(.., size)| size)
        .sum();
    let stage = progress.stage("comparing with the base", Some(total));
    let hash_all =
        |side: Side<'_>, ids: HashSet<FileId>, stage: &dyn Stage| -> HashMap<FileId, Result<ContentHash>> {
            let mut ids: Vec<FileId> = ids.into_iter().collect();
            ids.sort_unstable();
            let unknown: Vec<FileId> = ids
                .iter()
                .copied()
                .filter(|id| !side.known.contains_key(id))
                .collect();
            let mut found = side.source.hashes(&unknown).unwrap_or_default();
            ids.retain(|id| !found.contains_key(id));
            let hashes = jobs::map(jobs, &ids, |id| {
                Ok::<_, std::convert::Infallible>(side.hash(*id, stage))
            });
            found.extend(ids.into_iter().zip(hashes.unwrap_or_default()));
            found
        };
    let olds = hash_all(
        old,
        pairs.iter().map(|(_, a, ..)| *a).collect(),
        &crate::progress::Silent,
    );
    let news = hash_all(new, pairs.iter().map(|(_, _, b, _)| *b).collect(), &*stage);
    let mut differing: HashMap<GuestPath, Fields> = HashMap::new();
    for (path, a, b, _) in pairs {
        let same = match (olds.get(&a), news.get(&b)) {
            (Some(Ok(a)), Some(Ok(b))) => a == b,
            (Some(Err(e)), _) | (_, Some(Err(e))) => {
                diff.unread.push((path.clone(), e.to_string()));
                false
            }
            _ => false,
        };
        if !same {
            differing.entry(path).or_default().set(Fields::CONTENT, true);
        }
    }
    for path in regrouped(old.source.tree(), new.source.tree()) {
        differing.entry(path).or_default().set(Fields::LINKS, true);
    }
    for (path, change) in &mut diff.changes {
        if let (Change::Changed(f), Some(more)) = (change, differing.remove(path)) {
            f.set(more, true);
        }
    }
    let rest = differing
        .into_iter()
        .filter(|(p, _)| diff.get(p).is_none())
        .collect::<Vec<_>>();
    diff.changes
        .extend(rest.into_iter().map(|(p, f)| (p, Change::Changed(f))));
    diff.changes.sort_by(|a, b| a.0.cmp(&b.0));
    let computed = news
        .into_iter()
        .filter_map(|(id, h)| Some((id, h.ok()?)))
        .collect();
    (diff, computed)
}

/// Paths that both trees have as something other than a directory and that are hard links of another set of paths in
/// the one than in the other.
pub fn regrouped(old: &Tree, new: &Tree) -> HashSet<GuestPath> {
    let groups = |tree: &Tree| -> HashMap<GuestPath, Vec<GuestPath>> {
        let mut by_path = HashMap::new();
        for paths in tree.hard_links().into_values() {
            let group: Vec<GuestPath> = paths.into_iter().cloned().collect();
            for path in &group {
                by_path.insert(path.clone(), group.clone());
            }
        }
        by_path
    };
    let (a, b) = (groups(old), groups(new));
    a.keys()
        .chain(b.keys())
        .filter(|p| a.get(*p) != b.get(*p))
        .filter(|p| [old, new].iter().all(|t| t.get(p).is_some_and(|n| !n.is_dir())))
        .cloned()
        .collect()
}
