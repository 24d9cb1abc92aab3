//! Linux software RAID (md(4)): the members of arrays in, the arrays out.

mod superblock;

use super::assemble::{Made, Member, Outcome, Round};
use super::layout::{Concat, Except, Mapped, Mirror, Stripes, Zones};
use super::parity::{Algorithm, Parity};
use super::raid10::Raid10;
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, Slice};
use std::collections::BTreeMap;
use std::sync::Arc;
use superblock::{Role, Superblock, feature};

/// More members than md takes.
const MAX_DISKS: u32 = 1920;

/// True if `volume` is a member of an array.
pub(crate) fn probe(volume: &dyn ReadAt) -> bool {
    superblock::probe(volume)
}

/// True if `disk` is a member as a whole, whatever looks like a partition table on it.
pub(super) fn owns(disk: &dyn ReadAt) -> bool {
    superblock::owns(disk)
}

/// Puts arrays together. An array some of whose members are missing waits while other kinds may still find them.
pub(super) fn assemble(members: &[Member<'_>], round: &Round<'_>) -> Outcome {
    let mut out = Outcome::default();
    let mut arrays: BTreeMap<String, Vec<(&Member<'_>, Superblock)>> = BTreeMap::new();
    for member in members {
        match superblock::read(&**member.data) {
            Ok(Some(found)) => arrays
                .entry(found.uuid.clone())
                .or_default()
                .push((member, found)),
            Ok(None) => out.fail(member, Error::corrupt("the md superblock contradicts itself", 0)),
            Err(e) => out.fail(member, e),
        }
    }
    for (_, found) in arrays {
        array(&found, round, &mut out);
    }
    out
}

fn array(found: &[(&Member<'_>, Superblock)], round: &Round<'_>, out: &mut Outcome) {
    // The newest superblock says who belongs to the array.
    let Some((_, newest)) = found.iter().max_by_key(|(_, s)| s.events) else {
        return;
    };
    let paths = paths(newest);
    let name = paths
        .first()
        .map_or_else(|| newest.uuid.clone(), |p| format!("/dev/{p}"));
    let mut legs: Vec<Option<&(&Member<'_>, Superblock)>> = Vec::new();
    let disks = newest.raid_disks.min(MAX_DISKS);
    legs.resize(usize::try_from(disks).unwrap_or(0), None);
    let mut notes = Vec::new();
    for one in found {
        let (member, superblock) = one;
        let unused = |why: &str| format!("{} is not used for {name}: {why}", member.device);
        // The kernel takes a member that is one event behind: the others were marked clean when it was not any more.
        let current = superblock.events.saturating_add(1) >= newest.events;
        match newest.roles.get(superblock.number) {
            _ if !current => notes.push(unused("it is out of date")),
            Some(Role::Active(role)) => {
                let leg = usize::try_from(*role).ok().and_then(|r| legs.get_mut(r));
                // A role of its own says that it failed where the others do not know of that yet.
                let own = superblock.roles.get(superblock.number);
                match leg {
                    None => notes.push(unused("its place is not in the array")),
                    Some(_) if matches!(own, Some(Role::Faulty | Role::Spare)) => {
                        notes.push(unused("it failed or is a spare"));
                    }
                    Some(_)
                        if superblock
                            .recovered
                            .is_some_and(|done| done < superblock.size.max(1)) =>
                    {
                        notes.push(unused("it is being rebuilt"));
                    }
                    Some(_) if superblock.features & feature::REPLACEMENT != 0 => {
                        notes.push(unused("it is a replacement that is being filled"));
                    }
                    Some(leg @ None) => *leg = Some(one),
                    Some(Some((other, _))) => {
                        notes.push(unused(&format!("{} has the same place", other.device)));
                    }
                }
            }
            Some(Role::Journal) => notes.push(unused("it is a journal")),
            Some(Role::Spare) => notes.push(unused("it is a spare")),
            Some(Role::Faulty) | None => notes.push(unused("it failed or was removed")),
        }
    }
    let missing = legs.iter().filter(|l| l.is_none()).count();
    if missing > 0 && !round.last {
        return;
    }
    let degraded = legs.iter().flatten().any(|(member, _)| member.degraded);
    let computed = missing > 0 && matches!(newest.level, 4..=6);
    let made = match degraded && computed {
        true => Err(Error::unsupported("a degraded RAID on a degraded RAID")),
        false => build(newest, &legs),
    };
    if made.is_ok() {
        if missing > 0 {
            notes.push(format!(
                "{name} is degraded: {missing} of {disks} members are missing"
            ));
        }
        if !newest.clean && newest.level != 0 && newest.level != -1 {
            notes.push(format!("{name} was not shut down cleanly: blocks that were being written may differ between its members"));
        }
        out.notes.append(&mut notes);
    }
    out.used.extend(found.iter().map(|(member, _)| member.index));
    out.made.push(Made {
        device: name.clone(),
        paths,
        data: made.map_err(|e| e.within(&name)),
        degraded: degraded || computed,
        ..Made::default()
    });
}

/// The array's bytes.
fn build(newest: &Superblock, legs: &[Option<&(&Member<'_>, Superblock)>]) -> Result<Arc<dyn ReadAt>> {
    let six = newest.level == 6;
    let kind = match newest.level {
        -1 => "linear".to_owned(),
        n => format!("RAID {n}"),
    };
    if newest.raid_disks == 0 || newest.raid_disks > MAX_DISKS {
        return Err(Error::corrupt(
            format!("an array of {} members", newest.raid_disks),
            0,
        ));
    }
    let unknown = newest.features & !feature::KNOWN;
    if unknown != 0 {
        return Err(Error::unsupported(format!("the md feature bits {unknown:#x}")));
    }
    if newest.reshape || legs.iter().flatten().any(|(_, s)| s.reshape) {
        return Err(Error::unsupported(format!("a {kind} that is being reshaped")));
    }
    if newest.features & feature::JOURNAL != 0 {
        return Err(Error::unsupported(format!("a {kind} with a journal device")));
    }
    // Where the data of a member are; the list of bad blocks counts from there.
    let data = |(member, superblock): &(&Member<'_>, Superblock)| -> (Arc<dyn ReadAt>, u64) {
        let room = member.data.len().saturating_sub(superblock.data_offset);
        let len = if superblock.data_size == 0 {
            room
        } else {
            superblock.data_size
        };
        let slice = Slice::new(Arc::clone(member.data), superblock.data_offset, len);
        if superblock.bad.is_empty() {
            (Arc::new(slice), len)
        } else {
            (
                Arc::new(Except::new(Arc::new(slice), superblock.bad.clone())),
                len,
            )
        }
    };
    let all = || -> Result<Vec<(Arc<dyn ReadAt>, u64)>> {
        let present = legs.iter().flatten().count();
        if present < legs.len() {
            return Err(Error::unsupported(format!(
                "{} of {} members are missing, a {kind} needs them all",
                legs.len() - present,
                legs.len()
            )));
        }
        Ok(legs.iter().flatten().map(|leg| data(leg)).collect())
    };
    let each = || {
        legs.iter()
            .map(|leg| leg.map(|leg| data(leg).0))
            .collect::<Vec<_>>()
    };
    let missing = legs.iter().any(Option::is_none);
    Ok(match newest.level {
        -1 => {
            let mut runs = Concat::new();
            for (member, len) in all()? {
                let chunks = len.checked_div(newest.chunk);
                let len = chunks.map_or(len, |chunks| chunks * newest.chunk);
                runs.push(Some(member), 0, len)?;
            }
            Arc::new(Mapped(runs))
        }
        0 => {
            let zones = match (
                newest.version,
                newest.features & feature::RAID0_LAYOUT,
                newest.layout,
            ) {
                ("0.90", _, 1) => Some(Zones::Original),
                ("0.90", _, 2) => Some(Zones::Alternate),
                ("0.90", _, _) | (_, 0, _) => None,
                (_, _, 1) => Some(Zones::Original),
                (_, _, 2) => Some(Zones::Alternate),
                (_, _, layout) => return Err(Error::unsupported(format!("the RAID 0 layout {layout}"))),
            };
            Arc::new(Mapped(Stripes::new(&all()?, newest.chunk, zones)?))
        }
        1 => {
            let legs: Vec<_> = each().into_iter().flatten().collect();
            if legs.is_empty() {
                return Err(Error::unsupported("no member is in sync"));
            }
            Arc::new(Mirror::new(legs, newest.size))
        }
        4..=6 => {
            let algorithm = Algorithm::of_md(newest.level, newest.layout)
                .ok_or_else(|| Error::unsupported(format!("the {kind} layout {}", newest.layout)))?;
            if missing && !newest.clean {
                return Err(Error::unsupported(format!(
                    "a degraded {kind} that was not shut down cleanly: what its missing members held cannot be computed"
                )));
            }
            Arc::new(Parity::new(each(), six, algorithm, newest.chunk, newest.size)?)
        }
        10 => Arc::new(Raid10::new(each(), newest.layout, newest.chunk, newest.size)?),
        -4 => return Err(Error::unsupported("a multipath device of md")),
        level => return Err(Error::unsupported(format!("the md level {level}"))),
    })
}

/// What the machine calls the array, below `/dev/`.
fn paths(superblock: &Superblock) -> Vec<String> {
    let mut paths = Vec::new();
    if let Some(minor) = superblock.minor {
        paths.extend([format!("md{minor}"), format!("md/{minor}")]);
    }
    if !superblock.name.is_empty() {
        let name = superblock.name.rsplit(':').next().unwrap_or_default();
        let shown = Escaped(name.as_bytes()).to_string();
        if !shown.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
            paths.push(format!("md{shown}"));
        }
        paths.push(format!("md/{shown}"));
        paths.push(format!("md/{}", superblock.name));
        paths.push(format!("disk/by-id/md-name-{}", superblock.name));
    }
    paths.push(format!("disk/by-id/md-uuid-{}", superblock.uuid));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::assemble::{Assembly, Block, assemble, owner};
    use crate::volume::{Keys, whole};

    const LEN: usize = 256 << 10;

    fn sum(words: impl Iterator<Item = u32>) -> u32 {
        let sum: u64 = words.map(u64::from).sum();
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }

    /// A member of an array of three with a superblock of version 1.0 that `change` has a hand in.
    fn member(role: u16, fill: u8, level: i32, change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut disk = vec![fill; LEN];
        let at = (LEN / 512 - 16) / 8 * 8 * 512;
        disk[at..].fill(0);
        let b = &mut disk[at..at + 512];
        for (field, value) in [
            (0, superblock::MAGIC),
            (4, 1),
            (72, level.cast_unsigned()),
            (80, 256),
            (88, 8),
            (92, 3),
            (136, 256),
            (144, at as u32 / 512),
            (160, u32::from(role)),
            (200, 10),
            (208, u32::MAX),
            (212, u32::MAX),
            (220, 3),
        ] {
            b[field..field + 4].copy_from_slice(&value.to_le_bytes());
        }
        b[16..32].fill(7);
        b[32..38].copy_from_slice(b"host:0");
        for n in 0..3u16 {
            let at = 256 + usize::from(n) * 2;
            b[at..at + 2].copy_from_slice(&n.to_le_bytes());
        }
        change(b);
        b[216..220].fill(0);
        let words = b[..256].as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w));
        let rest = [
            u32::from_le_bytes(b[256..260].try_into().unwrap()),
            u32::from(b[260]) | u32::from(b[261]) << 8,
        ];
        let sum = sum(words.chain(rest));
        b[216..220].copy_from_slice(&sum.to_le_bytes());
        disk
    }

    fn put_together(disks: Vec<Vec<u8>>) -> Assembly {
        let blocks = disks.into_iter().enumerate().map(|(n, disk)| {
            let disk: Arc<dyn ReadAt> = Arc::new(disk);
            Block::of_disk(n, &format!("disk{n}"), whole(&disk))
        });
        assemble(blocks.collect(), &Keys::default(), |_| false)
    }

    /// What is said of the only volume.
    fn failure(disks: Vec<Vec<u8>>) -> String {
        let assembly = put_together(disks);
        let [block] = assembly.blocks.as_slice() else {
            panic!("{} volumes", assembly.blocks.len())
        };
        block.failed.as_ref().expect("it is refused").to_string()
    }

    #[test]
    fn partitions_of_an_array_of_whole_disks() {
        let mbr = |disk: &mut Vec<u8>| {
            disk[..512].fill(0);
            disk[446 + 4] = 0x83;
            disk[446 + 8] = 8;
            disk[446 + 12] = 64;
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        };
        let mut disks: Vec<Vec<u8>> = (0..3).map(|n| member(n, 9, 1, |_| {})).collect();
        disks.iter_mut().for_each(mbr);
        assert_eq!(owner(&disks[0]), Some("linux_raid_member"));
        let assembly = put_together(disks);
        let [block] = assembly.blocks.as_slice() else {
            panic!("{} volumes", assembly.blocks.len())
        };
        assert_eq!(block.device, "/dev/md0 partition 1");
        assert!(block.paths.contains(&"md0p1".to_owned()), "{:?}", block.paths);
        assert_eq!((block.volume.data.len(), block.disk), (64 * 512, None));
        assert!(assembly.notes.is_empty(), "{:?}", assembly.notes);
    }

    #[test]
    fn members_that_are_not_current_are_not_used() {
        let put = |field: usize, value: u8| move |b: &mut [u8]| b[field] = value;
        // Two events behind; a superblock that says of itself that it failed; one that is being rebuilt.
        for change in [put(200, 8), put(256, 0xfe), put(8, 2)] {
            let stale = member(0, 1, 1, |b| {
                change(b);
                if b[256] == 0xfe {
                    b[257] = 0xff;
                }
            });
            let assembly = put_together(vec![stale, member(1, 2, 1, |_| {}), member(2, 2, 1, |_| {})]);
            let mut first = [0];
            assembly.blocks[0].volume.data.read_at(0, &mut first).unwrap();
            assert_eq!(first, [2]);
            assert_eq!(assembly.notes.len(), 2, "{:?}", assembly.notes);
            assert!(assembly.notes[0].starts_with("disk0 is not used for /dev/md0"));
        }
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_name() {
        let disks = |level: i32, change: &dyn Fn(&mut [u8])| -> Vec<Vec<u8>> {
            (0..3).map(|n| member(n, 9, level, change)).collect()
        };
        let reshaped = failure(disks(5, &|b| b[8] = 4));
        assert!(reshaped.contains("being reshaped"), "{reshaped}");
        let journal = failure(disks(5, &|b| b[9] = 2));
        assert!(journal.contains("journal device"), "{journal}");
        let unknown = failure(disks(1, &|b| b[11] = 0x40));
        assert!(unknown.contains("feature bits 0x40000000"), "{unknown}");
        let mut dirty = disks(5, &|b| b[208..216].fill(0));
        dirty.pop();
        let dirty = failure(dirty);
        assert!(dirty.contains("not shut down cleanly"), "{dirty}");
        let multipath = failure(disks(-4, &|_| {}));
        assert!(multipath.contains("multipath"), "{multipath}");
        // A wrong checksum: the member is named, the rest is put together without it.
        let mut bad = disks(1, &|_| {});
        let at = (LEN / 512 - 16) / 8 * 8 * 512;
        bad[0][at + 40] ^= 1;
        let assembly = put_together(bad);
        assert_eq!(assembly.blocks.len(), 2);
        let why = assembly.blocks[0].failed.as_ref().unwrap().to_string();
        assert!(why.contains("its checksum is wrong"), "{why}");
    }

    #[test]
    fn superblocks_of_machines_of_either_byte_order() {
        for big in [false, true] {
            let mut words = [0u32; 1024];
            let fields = [
                (0, superblock::MAGIC),
                (2, 90),
                (5, 0x0102_0304),
                (7, 1),
                (8, 128),
                (10, 1),
                (11, 3),
                (33, 1),
                (if big { 40 } else { 39 }, 5),
                (128 + 4, 6),
            ];
            for (n, value) in fields {
                words[n] = value;
            }
            words[38] = sum(words.iter().copied());
            let bytes = words
                .iter()
                .flat_map(|w| if big { w.to_be_bytes() } else { w.to_le_bytes() });
            let mut disk = vec![9u8; LEN];
            disk.splice(LEN - 0x1_0000..LEN - 0x1_0000 + 4096, bytes);
            let found = superblock::read(&disk).unwrap().unwrap();
            assert_eq!((found.version, found.events, found.minor), ("0.90", 5, Some(3)));
            assert_eq!(found.uuid, "01020304:00000000:00000000:00000000");
            let assembly = put_together(vec![disk]);
            assert_eq!(assembly.blocks[0].paths[0], "md3");
            assert_eq!(assembly.blocks[0].volume.data.len(), 128 << 10);
        }
    }
}
