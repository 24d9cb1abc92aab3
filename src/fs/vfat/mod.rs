//! FAT12, FAT16 and FAT32 with long names: Microsoft's FAT32 File System Specification 1.03, and what vfat of Linux makes
//! of it with its default options: everything is root's, 0755, times in UTC.
#![deny(clippy::indexing_slicing)]

mod names;

use super::identity::identity;
use super::{Filesystem, Info, Listing};
use crate::bytes::{le16, le32, u8_at};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::{Extent, ReadAt, check_range, read_vec};
use crate::tree::{FileId, Kind, Node, Problem, Tree};
use names::{Entry, entries};
use std::collections::HashSet;
use std::sync::Arc;

/// The number of the root directory, which has no entry.
const ROOT: u64 = 1;
/// No directory is longer (65,536 entries of 32 bytes).
const MAX_DIRECTORY: u64 = 2 << 20;
/// Bytes of the table that are read at once.
const WINDOW: u64 = 16 << 10;
/// Bytes of memory that one name costs besides its text.
const ENTRY_COST: u64 = 256;

/// The kinds of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// The volume and its parameters.
struct Volume {
    disk: Arc<dyn ReadAt>,
    width: Width,
    /// Bytes of a cluster.
    cluster: u64,
    /// Where the first table, the root directory of FAT12 and FAT16, and cluster 2 begin.
    table: u64,
    root: u64,
    data: u64,
    /// Bytes of the fixed root directory; 0 for FAT32.
    root_len: u64,
    root_cluster: u32,
    /// Number of clusters, which are counted from 2.
    clusters: u32,
    size: u64,
    windows: Cache,
}

/// Some clusters one behind the other.
struct Run {
    first: u32,
    count: u32,
}

struct Vfat {
    volume: Arc<Volume>,
}

/// Opens the filesystem.
///
/// # Errors
/// [`Error::Corrupt`] if its parameters cannot be.
pub(super) fn open(disk: Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>> {
    Ok(Box::new(Vfat {
        volume: Arc::new(Volume::new(disk)?),
    }))
}

impl Volume {
    fn new(disk: Arc<dyn ReadAt>) -> Result<Self> {
        let boot = read_vec(&*disk, 0, 512)?;
        let b = boot.as_slice();
        let parse = || -> Option<Self> {
            let sector = u64::from(le16(b, 11)?);
            let cluster = u64::from(u8_at(b, 13)?) * sector;
            let reserved = u64::from(le16(b, 14)?);
            let tables = u64::from(u8_at(b, 16)?);
            let root_entries = u64::from(le16(b, 17)?);
            let total = match le16(b, 19)? {
                0 => u64::from(le32(b, 32)?),
                n => u64::from(n),
            };
            let (fat32, table_sectors) = match le16(b, 22)? {
                0 => (true, u64::from(le32(b, 36)?)),
                n => (false, u64::from(n)),
            };
            if !sector.is_power_of_two()
                || !(512..=4096).contains(&sector)
                || !cluster.is_power_of_two()
                || reserved == 0
                || tables == 0
                || table_sectors == 0
            {
                return None;
            }
            let root = reserved + tables * table_sectors;
            let root_len = (root_entries * 32).next_multiple_of(sector);
            let data = root + root_len / sector;
            let clusters = total.checked_sub(data)? * sector / cluster;
            let width = match clusters {
                _ if fat32 => Width::Fat32,
                0..=4084 => Width::Fat12,
                _ => Width::Fat16,
            };
            // The table may be shorter than the volume needs.
            let bits = match width {
                Width::Fat12 => 12,
                Width::Fat16 => 16,
                Width::Fat32 => 32,
            };
            let entries = table_sectors * sector * 8 / bits;
            Some(Self {
                width,
                cluster,
                table: reserved * sector,
                root: root * sector,
                data: data * sector,
                root_len: if fat32 { 0 } else { root_entries * 32 },
                root_cluster: if fat32 { le32(b, 44)? } else { 0 },
                clusters: u32::try_from(clusters.min(entries.saturating_sub(2)).min(0x0fff_fff4)).ok()?,
                size: total * sector,
                windows: Cache::new(4 << 20),
                disk: Arc::clone(&disk),
            })
        };
        parse().ok_or_else(|| Error::corrupt("FAT boot sector: impossible parameters", 0))
    }

    /// What the table says of `cluster`: the next one, or `None` at the end of the chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let place = match self.width {
            Width::Fat12 => u64::from(cluster) * 3 / 2,
            Width::Fat16 => u64::from(cluster) * 2,
            Width::Fat32 => u64::from(cluster) * 4,
        };
        let byte = |at: u64| {
            let window = at / WINDOW;
            let bytes = self.windows.get(window, || {
                let from = self.table.saturating_add(window * WINDOW);
                let len = WINDOW.min(self.disk.len().saturating_sub(from));
                read_vec(&*self.disk, from, usize::try_from(len).unwrap_or(0))
            })?;
            usize::try_from(at % WINDOW)
                .ok()
                .and_then(|n| bytes.get(n).copied())
                .map(u32::from)
                .ok_or_else(|| Error::corrupt("the FAT ends outside of the volume", at))
        };
        let two = byte(place)? | byte(place + 1)? << 8;
        let (value, end) = match self.width {
            Width::Fat12 if cluster % 2 == 1 => (two >> 4, 0xff8),
            Width::Fat12 => (two & 0xfff, 0xff8),
            Width::Fat16 => (two, 0xfff8),
            Width::Fat32 => {
                let four = two | byte(place + 2)? << 16 | byte(place + 3)? << 24;
                (four & 0x0fff_ffff, 0x0fff_fff8)
            }
        };
        if value >= end {
            return Ok(None);
        }
        self.valid(value).map(Some)
    }

    fn valid(&self, cluster: u32) -> Result<u32> {
        let inside = cluster >= 2 && cluster - 2 < self.clusters;
        inside.then_some(cluster).ok_or_else(|| {
            Error::corrupt(
                format!("a chain of clusters that leads to cluster {cluster}"),
                self.table,
            )
        })
    }

    /// The clusters of a chain, up to `limit` bytes of them.
    fn chain(&self, first: u32, limit: u64) -> Result<Vec<Run>> {
        let mut left = limit.div_ceil(self.cluster);
        if left > u64::from(self.clusters) {
            left = u64::from(self.clusters);
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut at = Some(self.valid(first)?);
        while let Some(cluster) = at {
            if left == 0 {
                break;
            }
            left -= 1;
            match runs.last_mut() {
                Some(run) if run.first.checked_add(run.count) == Some(cluster) => run.count += 1,
                _ => runs.push(Run {
                    first: cluster,
                    count: 1,
                }),
            }
            at = if left == 0 { None } else { self.next(cluster)? };
        }
        Ok(runs)
    }

    fn place(&self, cluster: u32) -> u64 {
        self.data
            .saturating_add(u64::from(cluster.saturating_sub(2)).saturating_mul(self.cluster))
    }

    /// The bytes of a directory in pieces, each with its place on the volume.
    fn directory(&self, first: Option<u32>) -> Result<Vec<(u64, Vec<u8>)>> {
        let read = |at, len: u64| {
            read_vec(&*self.disk, at, usize::try_from(len).unwrap_or(usize::MAX)).map(|bytes| (at, bytes))
        };
        let first = match first {
            Some(first) => first,
            None if self.width == Width::Fat32 => self.root_cluster,
            None => return Ok(vec![read(self.root, self.root_len)?]),
        };
        let runs = self.chain(first, MAX_DIRECTORY + self.cluster)?;
        let total: u64 = runs.iter().map(|r| u64::from(r.count) * self.cluster).sum();
        if total > MAX_DIRECTORY.max(self.cluster) {
            return Err(Error::corrupt(
                "a directory that is too long or contains itself",
                self.place(first),
            ));
        }
        runs.iter()
            .map(|run| read(self.place(run.first), u64::from(run.count) * self.cluster))
            .collect()
    }
}

impl Filesystem for Vfat {
    fn info(&self) -> Info {
        let found = identity("vfat", &*self.volume.disk);
        Info {
            kind: "vfat".to_owned(),
            uuid: found.uuid,
            label: found.label,
            size: self.volume.size,
            used: None,
            notes: Vec::new(),
        }
    }

    fn list(&self) -> Result<Listing> {
        let volume = &self.volume;
        let mut memory = (64u64 << 20).saturating_add(volume.disk.len() / 2);
        let mut nodes: Vec<(GuestPath, Node)> = Vec::new();
        let mut problems: Vec<Problem> = Vec::new();
        let mut met = HashSet::new();
        let root = Node {
            id: FileId { fs: 0, ino: ROOT },
            ..Node::plain_dir()
        };
        let mut todo = vec![(GuestPath::root(), None, root)];
        while let Some((path, first, mut node)) = todo.pop() {
            let listed = match volume.directory(first) {
                Ok(pieces) => entries(&pieces),
                Err(e) if path.is_root() => return Err(e),
                Err(e) => {
                    problems.push(Problem {
                        path: path.clone(),
                        what: e.to_string(),
                    });
                    nodes.push((path, node));
                    continue;
                }
            };
            for what in listed.problems {
                problems.push(Problem {
                    path: path.clone(),
                    what,
                });
            }
            // Linux counts the directories in it; the root lacks . and ..
            let directories = listed.entries.iter().filter(|e| e.is_dir).count();
            node.nlink = u32::try_from(directories + 2).unwrap_or(u32::MAX);
            nodes.push((path.clone(), node));
            let mut names = HashSet::new();
            for entry in listed.entries {
                let cost = ENTRY_COST + (path.as_bytes().len() + entry.name.len()) as u64;
                memory = memory.checked_sub(cost).ok_or_else(|| {
                    Error::unsupported(
                        "a tree with more names than fit into memory (64 MiB and half the volume)",
                    )
                })?;
                let at = match path.join(&entry.name) {
                    Ok(at) => at,
                    Err(e) => {
                        problems.push(Problem {
                            path: path.clone(),
                            what: e.to_string(),
                        });
                        continue;
                    }
                };
                if !names.insert(entry.name.clone()) {
                    problems.push(Problem {
                        path: at,
                        what: "the name is there twice, the first is read".to_owned(),
                    });
                    continue;
                }
                let node = entry.node();
                if !entry.is_dir {
                    nodes.push((at, node));
                } else if met.insert(entry.cluster) {
                    todo.push((at, Some(entry.cluster), node));
                } else {
                    problems.push(Problem {
                        path: at,
                        what: "the directory is also elsewhere in the tree".to_owned(),
                    });
                }
            }
        }
        Ok(Listing {
            tree: Tree::new(nodes),
            problems,
        })
    }

    fn open(&self, ino: u64) -> Result<Arc<dyn ReadAt>> {
        let volume = &self.volume;
        let wrong = || Error::corrupt(format!("there is no file {ino}"), 0);
        let at = ino.checked_mul(32).filter(|_| ino > ROOT).ok_or_else(wrong)?;
        let bytes = read_vec(&*volume.disk, at, 32)?;
        let entry = Entry::read(&bytes, at).filter(|e| !e.is_dir).ok_or_else(wrong)?;
        let size = u64::from(entry.size);
        let runs = match size {
            0 => Vec::new(),
            _ => volume.chain(entry.cluster, size)?,
        };
        let have: u64 = runs.iter().map(|r| u64::from(r.count) * volume.cluster).sum();
        if have < size {
            return Err(Error::corrupt(
                format!("a file of {size} bytes with clusters for {have}"),
                at,
            ));
        }
        Ok(Arc::new(File {
            volume: Arc::clone(volume),
            size,
            runs,
        }))
    }
}

/// The content of a file.
struct File {
    volume: Arc<Volume>,
    size: u64,
    runs: Vec<Run>,
}

impl ReadAt for File {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the file", self.size, offset, buf.len())?;
        let mut start = 0u64;
        let mut at = offset;
        let mut rest = buf;
        for run in &self.runs {
            let len = u64::from(run.count) * self.volume.cluster;
            let end = start + len;
            if at < end && !rest.is_empty() {
                let n = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest.len());
                let Some((part, after)) = rest.split_at_mut_checked(n) else {
                    break;
                };
                let from = self.volume.place(run.first).saturating_add(at - start);
                self.volume.disk.read_at(from, part)?;
                at += n as u64;
                rest = after;
            }
            start = end;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent {
            hole: offset >= self.size,
            len: self.size.saturating_sub(offset),
        })
    }
}

impl Entry {
    fn node(&self) -> Node {
        let kind = if self.is_dir {
            Kind::Directory
        } else {
            Kind::File {
                size: u64::from(self.size),
            }
        };
        Node {
            kind,
            mode: if self.read_only && !self.is_dir {
                0o555
            } else {
                0o755
            },
            mtime: self.mtime,
            ctime: self.mtime,
            id: FileId {
                fs: 0,
                ino: self.at / 32,
            },
            nlink: 1,
            ..Node::plain_dir()
        }
    }
}
