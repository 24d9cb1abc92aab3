//! Fast commits: struct ext4_fc_tl and what follows it (fs/ext4/fast_commit.h, "Fast commits" in journal.rst). They tell
//! changes of inodes, extents and names rather than of blocks; here they become values that the reader asks before it
//! looks at the disk.
//!
//! As in the kernel, times and sizes of directories are not part of a fast commit.

use super::Volume;
use super::checksum::crc32c;
use super::dir::{DirEntry, Directory};
use super::extents::Run;
use super::inode::{Inode, flags};
use crate::bytes::{le16, le32};
use std::collections::{BTreeMap, HashMap};

/// `fc_tag`.
mod tag {
    pub(super) const ADD_RANGE: u16 = 1;
    pub(super) const DEL_RANGE: u16 = 2;
    pub(super) const CREAT: u16 = 3;
    pub(super) const LINK: u16 = 4;
    pub(super) const UNLINK: u16 = 5;
    pub(super) const INODE: u16 = 6;
    pub(super) const PAD: u16 = 7;
    pub(super) const TAIL: u16 = 8;
    pub(super) const HEAD: u16 = 9;
}

/// Offsets in struct ext4_inode.
const I_LINKS_COUNT: usize = 0x1a;
const I_BLOCK: usize = 0x28;
const I_GENERATION: usize = 0x64;

/// What fast commits changed.
#[derive(Default)]
pub(super) struct FastCommits {
    /// Whole inodes; their checksums are not kept up.
    inodes: HashMap<u32, Vec<u8>>,
    /// Whole maps, by the first block of each run.
    runs: HashMap<u32, BTreeMap<u32, Run>>,
    directories: HashMap<u32, Names>,
}

/// A directory as fast commits left it.
#[derive(Default)]
struct Names {
    entries: BTreeMap<Vec<u8>, u32>,
    problems: Vec<String>,
}

/// One change.
pub(super) enum Change {
    /// Inode number and a struct ext4_inode.
    Inode(u32, Vec<u8>),
    /// Blocks of an inode, and whether they are written.
    AddRange(u32, Run, bool),
    /// First block of a range and how many of an inode's are no more.
    DelRange(u32, u32, u32),
    /// Directory, inode, name: a new inode.
    Create(u32, u32, Vec<u8>),
    /// The same for one more name.
    Link(u32, u32, Vec<u8>),
    /// The same for a name that is no more.
    Unlink(u32, u32, Vec<u8>),
}

impl FastCommits {
    /// The bytes of inode `ino`, if they changed.
    pub(super) fn inode(&self, ino: u32) -> Option<&[u8]> {
        self.inodes.get(&ino).map(Vec::as_slice)
    }

    /// Where the content of inode `ino` lies, if that changed.
    pub(super) fn runs(&self, ino: u32) -> Option<Vec<Run>> {
        Some(self.runs.get(&ino)?.values().copied().collect())
    }

    /// The content of directory `ino`, if it changed.
    pub(super) fn directory(&self, ino: u32) -> Option<Directory> {
        let names = self.directories.get(&ino)?;
        let entry = |(name, ino): (&Vec<u8>, &u32)| DirEntry {
            ino: *ino,
            name: name.clone(),
        };
        Some(Directory {
            entries: names.entries.iter().map(entry).collect(),
            problems: names.problems.clone(),
        })
    }
}

/// The changes of all fast commits in `blocks` that are whole and follow transaction `sequence - 1`.
pub(super) fn scan(
    blocks: impl Iterator<Item = Vec<u8>>,
    sequence: u32,
    problems: &mut Vec<String>,
) -> Vec<Change> {
    let mut whole = Vec::new();
    let mut current = Vec::new();
    let mut crc = 0;
    let mut tags = 0u32;
    for block in blocks {
        if tags == 0 && le16(&block, 0) != Some(tag::HEAD) {
            break;
        }
        let mut at = 0usize;
        while let (Some(kind), Some(len)) = (le16(&block, at), le16(&block, at.saturating_add(2))) {
            let next = at.saturating_add(4).saturating_add(usize::from(len));
            let Some(bytes) = block.get(at..next) else {
                damaged(tags, &whole, problems);
                return whole;
            };
            let value = bytes.get(4..).unwrap_or_default();
            match kind {
                tag::HEAD => {
                    if le32(value, 0).is_some_and(|features| features != 0) {
                        problems
                            .push("fast commits with an unknown feature, whose changes are missing".into());
                        return whole;
                    }
                    if le32(value, 4) != Some(sequence) {
                        return whole;
                    }
                }
                tag::PAD => {}
                tag::TAIL => {
                    crc = crc32c(crc, bytes.get(..8).unwrap_or_default());
                    if le32(value, 0) != Some(sequence) || le32(value, 4) != Some(crc) {
                        damaged(tags, &whole, problems);
                        return whole;
                    }
                    whole.append(&mut current);
                }
                _ => match change(kind, value) {
                    Some(change) => current.push(change),
                    None => {
                        damaged(tags, &whole, problems);
                        return whole;
                    }
                },
            }
            crc = if kind == tag::TAIL { 0 } else { crc32c(crc, bytes) };
            tags = tags.saturating_add(1);
            at = next;
        }
    }
    whole
}

/// What is behind the last whole fast commit was never finished; damage before the first one is damage.
fn damaged(tags: u32, whole: &[Change], problems: &mut Vec<String>) {
    if tags > 0 && whole.is_empty() {
        problems.push("the fast commits in the journal are damaged, their changes are missing".to_owned());
    }
}

fn change(kind: u16, value: &[u8]) -> Option<Change> {
    let ino = le32(value, 0)?;
    let name = || {
        Some((
            ino,
            le32(value, 4)?,
            value.get(8..).filter(|n| !n.is_empty())?.to_vec(),
        ))
    };
    Some(match kind {
        tag::INODE => Change::Inode(ino, value.get(4..).filter(|raw| raw.len() >= 128)?.to_vec()),
        tag::ADD_RANGE => {
            // struct ext4_extent.
            let raw = le16(value, 8)?;
            let written = raw <= 32768;
            let run = Run {
                logical: le32(value, 4)?,
                len: u32::from(if written { raw } else { raw - 32768 }),
                physical: u64::from(le16(value, 10)?) << 32 | u64::from(le32(value, 12)?),
            };
            Change::AddRange(ino, run, written)
        }
        tag::DEL_RANGE => Change::DelRange(ino, le32(value, 4)?, le32(value, 8)?),
        tag::CREAT | tag::LINK | tag::UNLINK => {
            let (dir, ino, name) = name()?;
            match kind {
                tag::CREAT => Change::Create(dir, ino, name),
                tag::LINK => Change::Link(dir, ino, name),
                _ => Change::Unlink(dir, ino, name),
            }
        }
        _ => return None,
    })
}

/// Makes `changes` in `volume`, one after the other, as `ext4_fc_replay` does. Those about inodes that are not there are
/// skipped as there.
pub(super) fn replay(volume: &mut Volume, changes: &[Change], problems: &mut Vec<String>) {
    for change in changes {
        let done = match change {
            Change::Inode(ino, raw) => volume.replay_inode(*ino, raw),
            Change::AddRange(ino, run, written) => volume.replay_range(*ino, *run, *written, true),
            Change::DelRange(ino, logical, len) => {
                let run = Run {
                    logical: *logical,
                    len: *len,
                    physical: 0,
                };
                volume.replay_range(*ino, run, false, false)
            }
            Change::Create(dir, ino, name) => volume.replay_create(*dir, *ino, name),
            Change::Link(dir, ino, name) => volume.replay_link(*dir, *ino, name),
            Change::Unlink(dir, ino, name) => volume.replay_unlink(*dir, *ino, name),
        };
        if let Err(e) = done {
            if problems.len() > 100 {
                return;
            }
            problems.push(format!("a fast commit cannot be replayed: {e}"));
        }
    }
}

impl Volume {
    fn replay_inode(&mut self, ino: u32, new: &[u8]) -> crate::error::Result<()> {
        let mut raw = self.raw_inode(ino)?;
        let copy = |to: &mut [u8], from: usize, end: usize| {
            if let (Some(to), Some(from)) = (to.get_mut(from..end), new.get(from..end)) {
                to.copy_from_slice(from);
            }
        };
        let end = new.len().min(raw.len());
        copy(&mut raw, 0, I_BLOCK);
        copy(&mut raw, I_GENERATION, end);
        let is = |flag: u32| le32(new, 0x20).is_some_and(|flags| flags & flag != 0);
        if is(flags::EXTENTS) {
            if le16(&raw, I_BLOCK) != Some(0xf30a) {
                // An empty tree: magic, no entries, room for four, depth 0.
                let empty = [0x0a, 0xf3, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
                if let Some(header) = raw.get_mut(I_BLOCK..I_BLOCK + empty.len()) {
                    header.copy_from_slice(&empty);
                }
            }
        } else if is(flags::INLINE_DATA) {
            copy(&mut raw, I_BLOCK, I_GENERATION);
        }
        self.fast.inodes.insert(ino, raw);
        Ok(())
    }

    /// Takes the blocks of `range` out of the map of `ino`, and puts `range` in if `add` and `written` say so.
    fn replay_range(&mut self, ino: u32, range: Run, written: bool, add: bool) -> crate::error::Result<()> {
        let Ok(inode) = self.linked_inode(ino) else {
            return Ok(());
        };
        if add {
            self.check_blocks(&inode, range.physical, u64::from(range.len))?;
        }
        if range.len == 0 {
            return Ok(());
        }
        let map = self.map_of(&inode)?;
        let start = u64::from(range.logical);
        let end = range.end();
        // Only the run before the range can reach into it from the left.
        let left = map.range(..range.logical).next_back().map(|(_, run)| *run);
        if let Some(run) = left
            && run.end() > start
        {
            cut(map, run, start, end);
        }
        while let Some(run) = map.range(range.logical..).next().map(|(_, run)| *run)
            && u64::from(run.logical) < end
        {
            cut(map, run, start, end);
        }
        if add && written {
            map.insert(range.logical, range);
        }
        Ok(())
    }

    fn map_of(&mut self, inode: &Inode) -> crate::error::Result<&mut BTreeMap<u32, Run>> {
        if !self.fast.runs.contains_key(&inode.ino) {
            let runs = self.runs(inode)?;
            let map = runs.into_iter().map(|run| (run.logical, run)).collect();
            self.fast.runs.insert(inode.ino, map);
        }
        Ok(self.fast.runs.entry(inode.ino).or_default())
    }

    fn replay_create(&mut self, dir: u32, ino: u32, name: &[u8]) -> crate::error::Result<()> {
        let inode = self.linked_inode(ino)?;
        if inode.is_dir() {
            self.fast.directories.insert(ino, Names::default());
        }
        self.replay_link(dir, ino, name)?;
        self.set_links(ino, 1)
    }

    fn replay_link(&mut self, dir: u32, ino: u32, name: &[u8]) -> crate::error::Result<()> {
        let Ok(inode) = self.linked_inode(ino) else {
            return Ok(());
        };
        let Some(names) = self.names_of(dir)? else {
            return Ok(());
        };
        if names.entries.contains_key(name) {
            return Ok(());
        }
        names.entries.insert(name.to_vec(), ino);
        self.set_links(ino, inode.nlink.saturating_add(1))
    }

    fn replay_unlink(&mut self, dir: u32, ino: u32, name: &[u8]) -> crate::error::Result<()> {
        let Ok(inode) = self.linked_inode(ino) else {
            return Ok(());
        };
        let Some(names) = self.names_of(dir)? else {
            return Ok(());
        };
        let Some(found) = names.entries.get(name) else {
            return Ok(());
        };
        if *found == ino {
            names.entries.remove(name);
        }
        let links = inode.nlink.saturating_sub(1);
        self.set_links(ino, links)?;
        if links == 0 {
            // The last name is gone, and with it the content; the number may be used again.
            self.fast.runs.insert(ino, BTreeMap::new());
            self.fast.directories.remove(&ino);
        }
        Ok(())
    }

    /// The names in directory `dir`; `None` if there is no such directory.
    fn names_of(&mut self, dir: u32) -> crate::error::Result<Option<&mut Names>> {
        let Ok(inode) = self.linked_inode(dir) else {
            return Ok(None);
        };
        if !inode.is_dir() {
            return Ok(None);
        }
        if !self.fast.directories.contains_key(&dir) {
            let mut blocks = self.sb.blocks_count;
            let directory = self.directory(&inode, &mut blocks)?;
            let names = Names {
                entries: directory.entries.into_iter().map(|e| (e.name, e.ino)).collect(),
                problems: directory.problems,
            };
            self.fast.directories.insert(dir, names);
        }
        Ok(Some(self.fast.directories.entry(dir).or_default()))
    }

    fn set_links(&mut self, ino: u32, links: u32) -> crate::error::Result<()> {
        let mut raw = self.raw_inode(ino)?;
        let links = u16::try_from(links).unwrap_or(u16::MAX).to_le_bytes();
        if let Some(field) = raw.get_mut(I_LINKS_COUNT..I_LINKS_COUNT + links.len()) {
            field.copy_from_slice(&links);
        }
        self.fast.inodes.insert(ino, raw);
        Ok(())
    }
}

/// Takes the blocks from `start` to `end` out of `run`, which is in `map`.
fn cut(map: &mut BTreeMap<u32, Run>, run: Run, start: u64, end: u64) {
    map.remove(&run.logical);
    let first = u64::from(run.logical);
    let mut keep = |from: u64, to: u64| {
        let (Ok(logical), Ok(len)) = (u32::try_from(from), u32::try_from(to.saturating_sub(from))) else {
            return;
        };
        if len > 0 {
            let physical = run.physical.saturating_add(from.saturating_sub(first));
            map.insert(
                logical,
                Run {
                    logical,
                    len,
                    physical,
                },
            );
        }
    };
    keep(first, start.min(run.end()).max(first));
    keep(end.max(first).min(run.end()), run.end());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(logical: u32, len: u32, physical: u64) -> Run {
        Run {
            logical,
            len,
            physical,
        }
    }

    #[test]
    fn cutting_keeps_both_sides() {
        let whole = run(10, 10, 100);
        let cases: &[(u64, u64, &[Run])] = &[
            (12, 15, &[run(10, 2, 100), run(15, 5, 105)]),
            (0, 15, &[run(15, 5, 105)]),
            (15, 99, &[run(10, 5, 100)]),
            (10, 20, &[]),
        ];
        for (start, end, left) in cases {
            let mut map = BTreeMap::from([(10, whole)]);
            cut(&mut map, whole, *start, *end);
            assert_eq!(map.into_values().collect::<Vec<_>>(), *left);
        }
    }

    /// A block of one fast commit: a head, one unlink, a tail.
    fn commit(sequence: u32) -> Vec<u8> {
        let mut block = vec![0; 1024];
        let mut head = vec![9, 0, 8, 0, 0, 0, 0, 0];
        head.extend_from_slice(&sequence.to_le_bytes());
        head.extend_from_slice(&[5, 0, 9, 0, 2, 0, 0, 0, 12, 0, 0, 0, b'x']);
        let rest = u16::try_from(1024 - head.len() - 4).unwrap();
        head.extend_from_slice(&[8, 0]);
        head.extend_from_slice(&rest.to_le_bytes());
        head.extend_from_slice(&sequence.to_le_bytes());
        let crc = crc32c(crc32c(crc32c(0, &head[..12]), &head[12..25]), &head[25..]);
        head.extend_from_slice(&crc.to_le_bytes());
        block[..head.len()].copy_from_slice(&head);
        block
    }

    #[test]
    fn only_whole_fast_commits_of_the_right_transaction_count() {
        let scan = |block: Vec<u8>| {
            let mut problems = Vec::new();
            (scan([block].into_iter(), 7, &mut problems).len(), problems.len())
        };
        assert_eq!(scan(commit(7)), (1, 0));
        assert_eq!(scan(commit(6)), (0, 0));
        let mut damaged = commit(7);
        damaged[24] = b'y';
        assert_eq!(scan(damaged), (0, 1));
        assert_eq!(scan(vec![0; 1024]), (0, 0));
    }

    #[test]
    fn a_second_block_needs_no_head() {
        let first = commit(7);
        let mut second = vec![0; 1024];
        second[..4].copy_from_slice(&[8, 0, 0xfc, 3]);
        second[4..8].copy_from_slice(&7u32.to_le_bytes());
        let crc = crc32c(0, &second[..8]);
        second[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(scan([first, second].into_iter(), 7, &mut Vec::new()).len(), 1);
    }
}
