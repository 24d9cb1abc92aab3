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
