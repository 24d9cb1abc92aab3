//! Volumes above partitions: arrays, logical volumes and encrypted volumes, which stack in any order.
//!
//! [`KINDS`] is the list of what is known. [`assemble`] takes the volumes of all disks of a machine and gives those on which
//! filesystems may be. `docs/volumes.md` has the details.

use super::{Keys, Volume, luks, lvm, md};
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use std::sync::Arc;

/// Levels of volumes on volumes, partitions inside volumes counted.
const MAX_DEPTH: u8 = 8;
/// Volumes in all; a volume group may name as many logical volumes as its text has room for.
const MAX_BLOCKS: usize = 16384;

/// A block device of the machine.
pub struct Block {
    /// As messages call it: `web.qcow2 partition 1`, `/dev/vg/root`.
    pub device: String,
    /// What the machine itself calls it, below `/dev/`: `vg/root`, `mapper/vg-root`. Nothing for disks and partitions.
    pub paths: Vec<String>,
    /// Its bytes, and what a partition table says of it.
    pub volume: Volume,
    /// The place among the machine's disks, of a disk or a partition of one.
    pub disk: Option<usize>,
    /// Why it cannot be read; its volume then has no bytes of use.
    pub failed: Option<Error>,
    /// A snapshot of another volume: it holds an older state of the same filesystem.
    pub snapshot: bool,
    /// The encrypted volume that it is the inside of.
    pub container: Option<Container>,
    depth: u8,
    degraded: bool,
}

/// How the machine names the device that an encrypted volume is on.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// The UUID in its LUKS header.
    pub uuid: String,
    /// [`Block::paths`] of the device.
    pub paths: Vec<String>,
    /// [`Block::disk`] and [`Volume::number`] of the device.
    pub disk: Option<usize>,
    /// See `disk`.
    pub number: Option<u32>,
    /// [`Volume::partuuid`] of the device.
    pub partuuid: Option<String>,
    /// [`Volume::partlabel`] of the device.
    pub partlabel: Option<String>,
}

/// A kind of volume that is made of others.
pub struct Kind {
    /// Its members' name in [`crate::fs::FILESYSTEMS`].
    pub name: &'static str,
    /// Whether a volume is a member.
    pub probe: fn(&dyn ReadAt) -> bool,
    /// Whether a disk is a member as a whole, though it seems to have a partition table.
    owns: fn(&dyn ReadAt) -> bool,
    make: fn(&[Member<'_>], &Round<'_>) -> Outcome,
}

/// Every kind that is read, in the order of asking: what stands at the end of a volume goes before what that has inside.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "linux_raid_member",
        probe: md::probe,
        owns: md::owns,
        make: md::assemble,
    },
    Kind {
        name: "crypto_LUKS",
        probe: luks::probe,
        owns: |_| false,
        make: luks::assemble,
    },
    Kind {
        name: "LVM2_member",
        probe: lvm::probe,
        owns: |_| false,
        make: lvm::assemble,
    },
];

/// A volume that a kind's probe knows.
pub(super) struct Member<'a> {
    /// Its place among the blocks.
    pub(super) index: usize,
    pub(super) device: &'a str,
    pub(super) data: &'a Arc<dyn ReadAt>,
    /// Parts of it are computed from the parity of an array.
    pub(super) degraded: bool,
}

/// What a kind is asked with.
pub(super) struct Round<'a> {
    pub(super) keys: &'a Keys,
    /// No more members will be found: what is incomplete is to be made as far as it can be.
    pub(super) last: bool,
}

/// A volume that a kind makes.
pub(super) struct Made {
    pub(super) device: String,
    pub(super) paths: Vec<String>,
    pub(super) data: Result<Arc<dyn ReadAt>>,
    pub(super) snapshot: bool,
    /// The member of which this is the inside, and its UUID.
    pub(super) inside: Option<(usize, String)>,
    /// Parts of it are computed from the parity of an array. What is computed is not computed from: that has no bound.
    pub(super) degraded: bool,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            device: String::new(),
            paths: Vec::new(),
            data: Err(Error::unsupported("nothing")),
            snapshot: false,
            inside: None,
            degraded: false,
        }
    }
}

/// What came of some members. Those of which nothing is said are asked again.
#[derive(Default)]
pub(super) struct Outcome {
    /// Members that are now inside others.
    pub(super) used: Vec<usize>,
    /// Members of which nothing can be made.
    pub(super) failed: Vec<(usize, Error)>,
    pub(super) made: Vec<Made>,
    pub(super) notes: Vec<String>,
}

impl Outcome {
    pub(super) fn fail(&mut self, member: &Member<'_>, error: Error) {
        self.failed.push((member.index, error));
    }
}

/// What a machine's disks hold when all is put together.
#[derive(Default)]
pub struct Assembly {
    /// What may hold a filesystem, in the order of the disks; then what was made of members.
    pub blocks: Vec<Block>,
    /// What is worth telling, as in `/dev/md0 is degraded`.
    pub notes: Vec<String>,
}

impl Block {
    /// A disk, or a partition of one.
    pub fn of_disk(disk: usize, disk_name: &str, volume: Volume) -> Self {
        Self {
            device: match volume.number {
                Some(_) => format!("{disk_name} {}", volume.name),
                None => disk_name.to_owned(),
            },
            paths: Vec::new(),
            volume,
            disk: Some(disk),
            failed: None,
            snapshot: false,
            container: None,
            depth: 0,
            degraded: false,
        }
    }

    fn of_made(made: Made, depth: u8) -> Self {
        let (data, failed): (Arc<dyn ReadAt>, _) = match made.data {
            Ok(data) => (data, None),
            Err(e) => (Arc::new(Vec::new()), Some(e)),
        };
        Self {
            device: made.device,
            paths: made.paths,
            volume: super::whole(&data),
            disk: None,
            failed,
            snapshot: made.snapshot,
            container: None,
            depth,
            degraded: made.degraded,
        }
    }
}

/// The kind of member that `disk` is as a whole, though it seems to have a partition table.
pub fn owner(disk: &dyn ReadAt) -> Option<&'static str> {
    KINDS.iter().find(|k| (k.owns)(disk)).map(|k| k.name)
}

/// What a volume is while volumes are put together.
enum State {
    /// A member of the kind with this number in [`KINDS`].
    Member(usize),
    /// It is inside another, or its partitions stand for it.
    Used,
    /// It is what it is.
    Done,
}

/// Puts the volumes of `blocks` together until nothing more comes of it. Bytes that cannot be read, members that are missing and
/// keys that do not fit make volumes fail, never the whole. What `is_filesystem` knows has no partition table.
pub fn assemble(blocks: Vec<Block>, keys: &Keys, is_filesystem: fn(&dyn ReadAt) -> bool) -> Assembly {
    let mut work = Work {
        states: Vec::new(),
        blocks: Vec::new(),
        notes: Vec::new(),
        is_filesystem,
    };
    for block in blocks {
        work.add(block, false);
    }
    let mut last = false;
    loop {
        let progress = (0..KINDS.len()).any(|kind| work.round(kind, &Round { keys, last }));
        match (progress, last) {
            (true, _) => last = false,
            (false, false) => last = true,
            (false, true) => break,
        }
    }
    let shown = |(block, state): (Block, State)| (!matches!(state, State::Used)).then_some(block);
    Assembly {
        blocks: work
            .blocks
            .into_iter()
            .zip(work.states)
            .filter_map(shown)
            .collect(),
        notes: work.notes,
    }
}

struct Work {
    blocks: Vec<Block>,
    /// One for each block.
    states: Vec<State>,
    notes: Vec<String>,
    is_filesystem: fn(&dyn ReadAt) -> bool,
}

impl Work {
    /// Adds a volume, and if it has a partition table of its own its partitions.
    fn add(&mut self, mut block: Block, partitioned: bool) {
        if self.blocks.len() >= MAX_BLOCKS {
            let note = format!("more than {MAX_BLOCKS} volumes: the rest is not read");
            if self.notes.last() != Some(&note) {
                self.notes.push(note);
            }
            return;
        }
        let readable = block.failed.is_none();
        let kind = KINDS
            .iter()
            .position(|k| readable && (k.probe)(&*block.volume.data));
        if kind.is_some() && block.depth >= MAX_DEPTH {
            block.failed = Some(Error::unsupported(format!(
                "more than {MAX_DEPTH} volumes in each other"
            )));
        }
        let mut state = match kind {
            Some(kind) if block.failed.is_none() => State::Member(kind),
            _ => State::Done,
        };
        let mut partitions = Vec::new();
        if partitioned && readable && kind.is_none() && !(self.is_filesystem)(&*block.volume.data) {
            match super::table(&block.volume.data) {
                Ok(table) if table.kind != "none" => {
                    let notes = table.notes.iter().map(|n| format!("{}: {n}", block.device));
                    self.notes.extend(notes);
                    partitions.extend(table.volumes.into_iter().map(|v| block.partition(v)));
                    state = State::Used;
                }
                Ok(_) => {}
                Err(e) => block.failed = Some(e),
            }
        }
        self.blocks.push(block);
        self.states.push(state);
        for partition in partitions {
            self.add(partition, false);
        }
    }

    /// Asks one kind what comes of its members; true if anything does.
    fn round(&mut self, kind: usize, round: &Round<'_>) -> bool {
        let Some(make) = KINDS.get(kind).map(|k| k.make) else {
            return false;
        };
        let members: Vec<Member<'_>> = self
            .states
            .iter()
            .zip(&self.blocks)
            .enumerate()
            .filter(|(_, (state, _))| matches!(state, State::Member(k) if *k == kind))
            .map(|(index, (_, block))| Member {
                index,
                device: &block.device,
                data: &block.volume.data,
                degraded: block.degraded,
            })
            .collect();
        if members.is_empty() {
            return false;
        }
        let depth = |n: usize| self.blocks.get(n).map_or(0, |b| b.depth);
        let deepest = members.iter().map(|m| depth(m.index)).max().unwrap_or(0);
        let outcome = make(&members, round);
        let progress = !(outcome.used.is_empty() && outcome.failed.is_empty());
        for n in outcome.used {
            if let Some(state) = self.states.get_mut(n) {
                *state = State::Used;
            }
        }
        for (n, error) in outcome.failed {
            if let (Some(state), Some(block)) = (self.states.get_mut(n), self.blocks.get_mut(n)) {
                *state = State::Done;
                block.failed = Some(error);
            }
        }
        self.notes.extend(outcome.notes);
        for made in outcome.made {
            let container = made.inside.as_ref().and_then(|(n, uuid)| {
                let outer = self.blocks.get(*n)?;
                Some(Container {
                    uuid: uuid.clone(),
                    paths: outer.paths.clone(),
                    disk: outer.disk,
                    number: outer.volume.number,
                    partuuid: outer.volume.partuuid.clone(),
                    partlabel: outer.volume.partlabel.clone(),
                })
            });
            let mut block = Block::of_made(made, deepest.saturating_add(1));
            block.container = container;
            self.add(block, true);
        }
        progress
    }
}

impl Block {
    /// A partition inside this volume.
    fn partition(&self, volume: Volume) -> Self {
        let number = volume.number.unwrap_or(0);
        // A name that ends in a digit takes a p before the number.
        let name = |path: &String| {
            let p = if path.ends_with(|c: char| c.is_ascii_digit()) {
                "p"
            } else {
                ""
            };
            match path.starts_with("disk/") {
                true => format!("{path}-part{number}"),
                false => format!("{path}{p}{number}"),
            }
        };
        Self {
            device: format!("{} {}", self.device, volume.name),
            paths: self.paths.iter().map(name).collect(),
            volume,
            disk: None,
            failed: None,
            snapshot: self.snapshot,
            container: None,
            depth: self.depth.saturating_add(1),
            degraded: self.degraded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_volumes_than_are_read_are_told() {
        let disk: Arc<dyn ReadAt> = Arc::new(Vec::new());
        let blocks = (0..MAX_BLOCKS + 2).map(|n| Block::of_disk(n, "disk", super::super::whole(&disk)));
        let assembly = assemble(blocks.collect(), &Keys::default(), |_| false);
        assert_eq!(assembly.blocks.len(), MAX_BLOCKS);
        assert_eq!(assembly.notes, ["more than 16384 volumes: the rest is not read"]);
    }
}
