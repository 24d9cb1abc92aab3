//! A container image as a source: its layers laid over each other, as a container sees them.

use crate::error::{Error, Result};
use crate::oci::layer::{Item, Keep, Kept, Listing, Place, Scanned, What, scan};
use crate::oci::{BlobSource, Image, Layer, listing};
use crate::path::GuestPath;
use crate::progress::{Progress, Stage};
use crate::read_at::{Extent, HostFile, ReadAt, Slice, check_range};
use crate::source::Source;
use crate::store::Store;
use crate::tree::{FileId, Kind, Node, Problem, Tree};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most entries of all layers together.
const MAX_ENTRIES: usize = 8_000_000;
/// The most bytes of contents that are kept in memory of an image.
const MAX_KEPT: u64 = 64 << 20;
/// How many symlinks are followed inside one layer on the way to an entry.
const MAX_HOPS: usize = 40;
/// The deepest path of a layer, in parts. Linux takes no path of more than 4,096 bytes in one call.
const MAX_DEPTH: usize = 512;
/// The most bytes of names of directories that no layer describes but that must be there.
const MAX_IMPLIED: u64 = 512 << 20;
/// The most bytes of names that are looked at while symlinks inside layers are followed.
const MAX_FOLLOWED: u64 = 16 << 30;

/// How the layers of an image are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// Take listings from the store's cache, and put them there. Right for base images. Wrong where the image's own bytes
    /// are to be judged: only reading shows that they are whole.
    pub cached: bool,
    /// What to keep of the layers that are unpacked to be listed. A layer is unpacked again when a content is asked for
    /// that was not kept.
    pub keep: Contents,
    /// Take the blobs of layers that are unpacked and lie in files into the store, where outputs can link to them.
    pub import: bool,
}

/// Which contents of an image will be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// None, only the tree and the hashes are looked at.
    None,
    /// Those of package databases: they are kept in memory.
    Packages,
    /// Any: the plain tars stay in temporary files.
    All,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            cached: true,
            keep: Contents::All,
            import: false,
        }
    }
}

/// The files of an image.
pub struct ImageSource {
    image: Image,
    store: Arc<Store>,
    tree: Tree,
    inodes: Vec<Inode>,
    /// The plain tar of each layer, once somebody needed it.
    tars: Vec<Mutex<Option<Arc<HostFile>>>>,
    /// Contents of each layer that were kept.
    kept: Vec<Kept>,
    problems: Vec<Problem>,
}

/// What is behind a [`FileId`]: its `ino` less one is the index.
struct Inode {
    layer: u32,
    /// Of regular files.
    content: Option<FileContent>,
}

struct FileContent {
    size: u64,
    /// blake3.
    hash: [u8; 32],
    place: Place,
}

/// The layer of what no layer describes.
const NO_LAYER: u32 = u32::MAX;

impl ImageSource {
    /// Lists the files of `image`. A layer whose listing is in the store's cache is not touched; the others are unpacked,
    /// several at once, and checked against their digests on the way.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for blobs that are not what the manifest says, broken archives, whiteouts of nothing and hard
    /// links to nothing; [`Error::Unsupported`] for what layers may hold and this program cannot read.
    pub fn open(
        mut image: Image,
        store: Arc<Store>,
        options: ImageOptions,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let layers = list_all(&image, &store, options, progress)?;
        if options.import {
            for layer in image
                .layers
                .iter_mut()
                .filter(|l| store.is_known_whole(&l.digest))
            {
                layer.source = BlobSource::Store(Arc::clone(&store));
            }
        }
        let total: usize = layers.iter().map(|l| l.listing.items.len()).sum();
        if total > MAX_ENTRIES {
            return Err(Error::unsupported(format!(
                "{}: {total} entries in its layers",
                image.name()
            )));
        }
        let mut flat = Flat::default();
        let mut tars = Vec::with_capacity(layers.len());
        let mut kept = Vec::with_capacity(layers.len());
        for (index, (scanned, layer)) in layers.into_iter().zip(&image.layers).enumerate() {
            flat.add(scanned.listing, u32::try_from(index).unwrap_or_default(), layer)?;
            let name = format!("layer {}", layer.digest);
            let tar = scanned
                .tar
                .map(|tar| HostFile::from_file(tar, name))
                .transpose()?;
            tars.push(Mutex::new(tar.map(Arc::new)));
            kept.push(scanned.kept);
        }
        let (tree, inodes) = flat.finish();
        Ok(Self {
            image,
            store,
            tree,
            inodes,
            tars,
            kept,
            problems: Vec::new(),
        })
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    fn inode(&self, id: FileId) -> Option<&Inode> {
        self.inodes.get(usize::try_from(id.ino.checked_sub(1)?).ok()?)
    }

    /// The blake3 hash of the content of the regular file `id`. It needs no reading.
    pub fn content_hash(&self, id: FileId) -> Option<[u8; 32]> {
        Some(self.inode(id)?.content.as_ref()?.hash)
    }

    /// The number of the layer that what is at `path` comes from, the lowest being 0; `None` if nothing is there or no
    /// layer says more of it than that something lies below it. A hard link comes from where its content comes from.
    pub fn layer_of(&self, path: &GuestPath) -> Option<usize> {
        let node = self.tree.get(path)?;
        let layer = self.inode(node.id).map(|inode| inode.layer)?;
        usize::try_from(layer).ok().filter(|_| layer != NO_LAYER)
    }

    /// The plain tar of a layer, unpacked now if nobody did before.
    fn tar(&self, index: usize) -> Result<Arc<HostFile>> {
        let none = || Error::corrupt(format!("{}: there is no layer {index}", self.image.name()), 0);
        let slot = self.tars.get(index).ok_or_else(none)?;
        let layer = self.image.layers.get(index).ok_or_else(none)?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tar) = &*slot {
            return Ok(Arc::clone(tar));
        }
        let scanned = scan_again(layer, Keep::Tar(&self.store), None, &crate::progress::Silent)?;
        let tar = scanned.tar.ok_or_else(none)?;
        let tar = Arc::new(HostFile::from_file(tar, format!("layer {}", layer.digest))?);
        *slot = Some(Arc::clone(&tar));
        Ok(tar)
    }
}

impl Source for ImageSource {
    fn name(&self) -> String {
        self.image.name()
    }

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>> {
        let missing = || Error::corrupt(format!("{}: there is no file {}", self.image.name(), id.ino), 0);
        let inode = self.inode(id).ok_or_else(missing)?;
        let content = inode.content.as_ref().ok_or_else(missing)?;
        let layer = usize::try_from(inode.layer).unwrap_or(usize::MAX);
        if let Place::At(offset) = &content.place
            && let Some(bytes) = self.kept.get(layer).and_then(|kept| kept.get(offset))
        {
            return Ok(Arc::clone(bytes) as Arc<dyn ReadAt>);
        }
        let tar = self.tar(layer)?;
        Ok(match &content.place {
            Place::At(offset) => Arc::new(Slice::new(tar, *offset, content.size)),
            Place::Runs(offset, runs) => Arc::new(SparseFile::new(tar, *offset, runs, content.size)),
        })
    }

    fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// A sparse file: runs of data that lie one behind the other in the tar, zeros between them.
struct SparseFile {
    tar: Arc<HostFile>,
    /// Start in the file, length, offset in the tar; in order.
    runs: Vec<(u64, u64, u64)>,
    size: u64,
}

impl SparseFile {
    fn new(tar: Arc<HostFile>, mut offset: u64, runs: &[(u64, u64)], size: u64) -> Self {
        let mut placed = Vec::with_capacity(runs.len());
        for (start, len) in runs {
            placed.push((*start, *len, offset));
            offset = offset.saturating_add(*len);
        }
        Self {
            tar,
            runs: placed,
            size,
        }
    }

    /// The run that `at` lies in or that comes next.
    fn run(&self, at: u64) -> Option<(u64, u64, u64)> {
        let next = self.runs.partition_point(|(start, len, _)| start + len <= at);
        self.runs.get(next).copied()
    }
}

impl ReadAt for SparseFile {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the file", self.size, offset, buf.len())?;
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let extent = self.extent_at(at)?;
            let n = usize::try_from(extent.len).unwrap_or(usize::MAX).min(rest.len());
            let (part, later) = rest.split_at_mut(n);
            match self.run(at).filter(|_| !extent.hole) {
                Some((start, _, place)) => self.tar.read_at(place + (at - start), part)?,
                None => part.fill(0),
            }
            at += n as u64;
            rest = later;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.size.saturating_sub(offset);
        Ok(match self.run(offset) {
            Some((start, len, _)) if start <= offset => Extent {
                hole: rest == 0,
                len: rest.min(start + len - offset),
            },
            Some((start, ..)) => Extent {
                hole: true,
                len: rest.min(start - offset),
            },
            None => Extent {
                hole: true,
                len: rest,
            },
        })
    }
}

/// The listings of all layers: from the cache, or by unpacking them on several threads.
fn list_all(
    image: &Image,
    store: &Arc<Store>,
    options: ImageOptions,
    progress: &dyn Progress,
) -> Result<Vec<Scanned>> {
    let cached = |layer: &Layer| -> Option<Listing> {
        if !options.cached {
            return None;
        }
        listing::decode(&store.cache_get(listing::KIND, &layer.diff_id.to_string())?)
    };
    let mut found: Vec<Option<Scanned>> = image
        .layers
        .iter()
        .map(|layer| {
            cached(layer).map(|listing| Scanned {
                listing,
                tar: None,
                kept: Kept::new(),
            })
        })
        .collect();
    let todo: Vec<(usize, &Layer)> = image
        .layers
        .iter()
        .enumerate()
        .filter(|(i, _)| found.get(*i).is_some_and(Option::is_none))
        .collect();
    if !todo.is_empty() {
        crate::oci::fetch(todo.iter().map(|(_, layer)| *layer), progress)?;
        let total = todo.iter().map(|(_, l)| l.size).sum();
        let stage = progress.stage(&format!("reading {}", image.name()), Some(total));
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let work = || {
            while let Some((index, layer)) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                let keep = match options.keep {
                    Contents::None => Keep::Nothing,
                    Contents::Packages => {
                        Keep::Files(crate::pkgdb::is_database_file, MAX_KEPT / todo.len() as u64)
                    }
                    Contents::All => Keep::Tar(store),
                };
                let in_file = matches!(layer.source, BlobSource::File(_) | BlobSource::Part(..));
                let import = (options.import && in_file).then_some(&**store);
                let result = scan_again(layer, keep, import, &*stage);
                if let (Ok(scanned), true) = (&result, options.cached) {
                    // Without a cache the next run is slower, no more.
                    let bytes = listing::encode(&scanned.listing);
                    let _ = store.cache_put(listing::KIND, &layer.diff_id.to_string(), &bytes);
                }
                let failed = result.is_err();
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((*index, result));
                if failed {
                    next.store(todo.len(), Ordering::Relaxed);
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        std::thread::scope(|scope| {
            for _ in 1..threads.min(todo.len()) {
                scope.spawn(work);
            }
            work();
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        for (index, result) in done {
            let scanned = result?;
            if let Some(slot) = found.get_mut(index) {
                *slot = Some(scanned);
            }
        }
    }
    let all: Option<Vec<Scanned>> = found.into_iter().collect();
    all.ok_or_else(|| Error::corrupt(format!("{}: a layer was not read", image.name()), 0))
}

/// [`scan`], once more if the blob was damaged in the store and can be fetched again.
fn scan_again(layer: &Layer, keep: Keep<'_>, import: Option<&Store>, stage: &dyn Stage) -> Result<Scanned> {
    match scan(layer, keep, import, stage) {
        Err(Error::Corrupt { .. })
            if matches!(&layer.source, BlobSource::Registry(_))
                && layer.store().is_some_and(|store| !store.has(&layer.digest)) =>
        {
            scan(layer, keep, import, stage)
        }
        result => result,
    }
}

/// Layers laid over each other. Paths lead to numbers, numbers to nodes: two paths with one number are hard links.
#[derive(Default)]
struct Flat {
    paths: BTreeMap<GuestPath, usize>,
    nodes: Vec<Node>,
    inodes: Vec<Inode>,
    /// Bytes counted against [`MAX_IMPLIED`] and [`MAX_FOLLOWED`].
    implied: u64,
    followed: u64,
}

/// A path of the layer that is being added.
struct Upper {
    ino: usize,
    /// Nobody described this directory: something lies below it.
    implied: bool,
}

impl Flat {
    fn node(&self, ino: usize) -> Option<&Node> {
        self.nodes.get(ino)
    }

    fn is_dir(&self, ino: usize) -> bool {
        self.node(ino).is_some_and(Node::is_dir)
    }

    fn push(&mut self, node: Node, inode: Inode) -> usize {
        self.nodes.push(node);
        self.inodes.push(inode);
        self.nodes.len() - 1
    }

    /// A directory that nobody described.
    fn plain_dir(&mut self) -> usize {
        let inode = Inode {
            layer: NO_LAYER,
            content: None,
        };
        self.push(Node::plain_dir(), inode)
    }

    /// Lays `listing` over what is there (OCI image-spec, layer.md, "Applying Changesets"). Whiteouts work on the layers
    /// below, wherever in the layer they stand.
    fn add(&mut self, listing: Listing, index: u32, layer: &Layer) -> Result<()> {
        for item in &listing.items {
            match item.what {
                What::Whiteout => {
                    self.paths.remove(&item.path);
                    remove_below(&mut self.paths, &item.path);
                }
                What::Opaque => remove_below(&mut self.paths, &item.path),
                _ => {}
            }
        }
        let mut upper: BTreeMap<GuestPath, Upper> = BTreeMap::new();
        for item in listing.items {
            if !matches!(item.what, What::Whiteout | What::Opaque) {
                let path = item.path.clone();
                if path.parts().count() > MAX_DEPTH {
                    return Err(Error::unsupported(format!(
                        "layer {}: a path of more than {MAX_DEPTH} parts",
                        layer.digest
                    )));
                }
                self.put(&mut upper, item, index).map_err(|e| match e {
                    Error::Corrupt { what, at } => {
                        Error::corrupt(format!("layer {}: {path}: {what}", layer.digest), at)
                    }
                    e => e,
                })?;
            }
        }
        for (path, Upper { ino, implied }) in upper {
            let below = self.paths.get(&path).copied();
            let was_dir = below.is_some_and(|below| self.is_dir(below));
            if implied && was_dir {
                continue;
            }
            if was_dir && !self.is_dir(ino) {
                remove_below(&mut self.paths, &path);
            }
            self.paths.insert(path, ino);
        }
        Ok(())
    }

    /// Puts an entry into the layer that is being added, as unpacking it into an empty directory would.
    fn put(&mut self, upper: &mut BTreeMap<GuestPath, Upper>, item: Item, index: u32) -> Result<()> {
        let path = self.locate(upper, &item.path)?;
        let mut content = None;
        let kind = match item.what {
            What::Directory => Kind::Directory,
            What::File { size, hash, place } => {
                content = Some(FileContent { size, hash, place });
                Kind::File { size }
            }
            What::Symlink(target) => Kind::Symlink { target },
            What::Block(major, minor) => Kind::Block { major, minor },
            What::Char(major, minor) => Kind::Char { major, minor },
            What::Fifo => Kind::Fifo,
            What::Whiteout | What::Opaque => return Ok(()),
            What::Link(target) => {
                let target = self.locate(upper, &target)?;
                let there = upper.get(&target).filter(|u| !u.implied).map(|u| u.ino);
                let ino = there
                    .or_else(|| self.paths.get(&target).copied())
                    .ok_or_else(|| {
                        Error::corrupt(format!("it is a hard link to {target}, which does not exist"), 0)
                    })?;
                if self.is_dir(ino) {
                    return Err(Error::corrupt(
                        format!("it is a hard link to the directory {target}"),
                        0,
                    ));
                }
                self.replace(upper, path, ino)?;
                return Ok(());
            }
        };
        let node = Node {
            kind,
            mode: item.mode,
            uid: item.uid,
            gid: item.gid,
            mtime: item.mtime,
            ctime: crate::tree::Time::default(),
            xattrs: item.xattrs,
            id: FileId::default(),
            nlink: 1,
        };
        let inode = Inode {
            layer: index,
            content,
        };
        let ino = self.push(node, inode);
        self.replace(upper, path, ino)
    }

    /// Gives `path` the number `ino` in the layer, and makes the directories above it.
    fn replace(&mut self, upper: &mut BTreeMap<GuestPath, Upper>, path: GuestPath, ino: usize) -> Result<()> {
        let mut up = path.parent();
        while let Some(dir) = up {
            if upper.contains_key(&dir) {
                break;
            }
            up = dir.parent();
            self.implied += dir.as_bytes().len() as u64 + 256;
            if self.implied > MAX_IMPLIED {
                return Err(Error::unsupported(
                    "more directories that no layer describes than any image has",
                ));
            }
            let ino = self.plain_dir();
            upper.insert(dir, Upper { ino, implied: true });
        }
        let was_dir = upper.get(&path).is_some_and(|u| self.is_dir(u.ino));
        if was_dir && !self.is_dir(ino) {
            remove_below(upper, &path);
        }
        upper.insert(path, Upper { ino, implied: false });
        Ok(())
    }

    /// Where `path` leads inside the layer that is being added: symlinks above its last part are followed if this layer
    /// has them. One of a lower layer is not: there the layer says that a directory shall be, and so it will.
    fn locate(&mut self, upper: &BTreeMap<GuestPath, Upper>, path: &GuestPath) -> Result<GuestPath> {
        let Some(dir) = path.parent() else {
            return Ok(path.clone());
        };
        if upper.get(&dir).is_some_and(|u| self.is_dir(u.ino)) {
            return Ok(path.clone());
        }
        let mut at = GuestPath::root();
        let mut hops = 0;
        let mut todo: Vec<Vec<u8>> = dir.parts().map(<[u8]>::to_vec).collect();
        todo.reverse();
        while let Some(part) = todo.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = at.parent().unwrap_or(at);
                    continue;
                }
                _ => {}
            }
            let next = at.join(&part)?;
            self.followed += next.as_bytes().len() as u64 + 64;
            if self.followed > MAX_FOLLOWED {
                return Err(Error::unsupported(
                    "more symbolic links on the way than any image has",
                ));
            }
            match upper.get(&next).and_then(|u| self.node(u.ino)).map(|n| &n.kind) {
                None | Some(Kind::Directory) => at = next,
                Some(Kind::Symlink { target }) => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(Error::corrupt("it lies behind a loop of symbolic links", 0));
                    }
                    if target.starts_with(b"/") {
                        at = GuestPath::root();
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(_) => {
                    return Err(Error::corrupt(
                        format!("it lies below {next}, which is no directory"),
                        0,
                    ));
                }
            }
        }
        at.join(path.name())
    }

    /// The tree, and what is behind its file ids.
    fn finish(self) -> (Tree, Vec<Inode>) {
        let mut links = vec![0u32; self.nodes.len()];
        for ino in self.paths.values() {
            if let Some(count) = links.get_mut(*ino) {
                *count = count.saturating_add(1);
            }
        }
        let mut nodes: Vec<Option<Node>> = self.nodes.into_iter().map(Some).collect();
        let mut entries = Vec::with_capacity(self.paths.len());
        for (path, ino) in self.paths {
            let count = links.get(ino).copied().unwrap_or(1);
            let slot = nodes.get_mut(ino);
            let node = slot.and_then(|slot| if count == 1 { slot.take() } else { slot.clone() });
            if let Some(mut node) = node {
                node.id = FileId {
                    fs: 0,
                    ino: ino as u64 + 1,
                };
                node.nlink = if node.is_dir() { 2 } else { count };
                entries.push((path, node));
            }
        }
        (Tree::new(entries), self.inodes)
    }
}

/// Removes everything below `dir`, but not `dir` itself.
fn remove_below<T>(paths: &mut BTreeMap<GuestPath, T>, dir: &GuestPath) {
    let mut prefix = dir.as_bytes().to_vec();
    if !dir.is_root() {
        prefix.push(b'/');
    }
    let from: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Excluded(&prefix), Bound::Unbounded);
    let doomed: Vec<GuestPath> = paths
        .range::<[u8], _>(from)
        .map(|(path, _)| path)
        .take_while(|path| path.as_bytes().starts_with(&prefix))
        .cloned()
        .collect();
    for path in &doomed {
        paths.remove(path);
    }
}
