//! LVM2: physical volumes in, logical volumes out (lvm(8), and the sources of LVM2 for the formats).

mod group;
mod label;
mod text;
mod thin;

use super::assemble::{Member, Outcome, Round};
use crate::error::{Error, Escaped};
use crate::read_at::ReadAt;
use group::{Group, Physical};
use label::Metadata;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// True if `volume` is a physical volume.
pub(crate) fn probe(volume: &dyn ReadAt) -> bool {
    label::probe(volume)
}

/// The newest metadata of a volume group, and which physical volumes have which.
struct Newest {
    metadata: Metadata,
    /// Device and seqno of each copy that was read.
    copies: Vec<(String, u64)>,
}

/// Makes the logical volumes of all volume groups. A group some of whose physical volumes are missing waits while other
/// kinds may still find them.
pub(super) fn assemble(members: &[Member<'_>], round: &Round<'_>) -> Outcome {
    let mut out = Outcome::default();
    let mut physical: HashMap<String, &Member<'_>> = HashMap::new();
    // The groups by their UUID, and the group that each member names.
    let mut groups: BTreeMap<String, Newest> = BTreeMap::new();
    let mut named: HashMap<usize, String> = HashMap::new();
    let mut errors: HashMap<usize, Error> = HashMap::new();
    for member in members {
        let header = match label::read(&**member.data) {
            Ok(header) => header,
            Err(e) => {
                out.fail(member, e);
                continue;
            }
        };
        if let Some(other) = physical.get(&header.uuid) {
            let what = format!("a copy of the physical volume {}, which is used", other.device);
            out.fail(member, Error::unsupported(what));
            continue;
        }
        for area in &header.areas {
            match label::metadata(&**member.data, *area) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    named.insert(member.index, found.id.clone());
                    let copy = (member.device.to_owned(), found.seqno);
                    match groups.get_mut(&found.id) {
                        Some(newest) => {
                            newest.copies.push(copy);
                            if newest.metadata.seqno < found.seqno {
                                newest.metadata = found;
                            }
                        }
                        None => {
                            let id = found.id.clone();
                            let copies = vec![copy];
                            groups.insert(
                                id,
                                Newest {
                                    metadata: found,
                                    copies,
                                },
                            );
                        }
                    }
                }
                Err(e) => {
                    errors.insert(member.index, e);
                }
            }
        }
        physical.insert(header.uuid, member);
    }
    let mut names: HashMap<&str, usize> = HashMap::new();
    for newest in groups.values() {
        *names.entry(&newest.metadata.name).or_default() += 1;
    }
    let mut taken: Vec<usize> = Vec::new();
    for (id, newest) in &groups {
        let metadata = &newest.metadata;
        let volumes: Vec<Physical> = group::physical_volumes(&metadata.group)
            .map(|(name, section, uuid)| {
                Physical::new(name, section, physical.get(&uuid).map(|m| (m.index, m.data)))
            })
            .collect();
        let missing = volumes.iter().filter(|p| p.is_missing()).count();
        if missing > 0 && !round.last {
            // Its physical volumes are not failures of their own while it waits.
            let present = physical.values().filter(|m| named.get(&m.index) == Some(id));
            taken.extend(present.map(|m| m.index));
            continue;
        }
        let degraded = members
            .iter()
            .any(|m| m.degraded && volumes.iter().any(|p| p.index() == Some(m.index)));
        let used: Vec<usize> = volumes.iter().filter_map(Physical::index).collect();
        let shown = Escaped(metadata.name.as_bytes()).to_string();
        if missing > 0 {
            let all = volumes.len();
            out.notes.push(format!(
                "volume group {shown}: {missing} of {all} physical volumes are missing"
            ));
        }
        if names.get(metadata.name.as_str()).is_some_and(|n| *n > 1) {
            out.notes.push(format!(
                "more than one volume group is called {shown}: this one has the UUID {}",
                dashed(id)
            ));
        }
        for (device, seqno) in newest.copies.iter().filter(|(_, s)| *s != metadata.seqno) {
            let now = metadata.seqno;
            out.notes.push(format!(
                "volume group {shown}: {device} has older metadata (seqno {seqno}, not {now})"
            ));
        }
        if let Some(e) = used.iter().find_map(|n| errors.get(n)) {
            out.notes.push(format!(
                "volume group {shown}: a copy of its metadata is damaged: {e}"
            ));
        }
        let mut made = Group::new(metadata, volumes, degraded);
        out.made.append(&mut made.visible());
        out.notes.append(&mut made.notes);
        out.used.extend(&used);
        taken.extend(used);
    }
    if round.last {
        let left = physical.values().filter(|m| !taken.contains(&m.index));
        for member in left {
            let error = errors.remove(&member.index).unwrap_or_else(|| {
                Error::unsupported("an LVM2 physical volume that belongs to no volume group")
            });
            out.fail(member, error);
        }
    }
    out
}

/// A UUID as lvm2 shows it, with dashes.
fn dashed(id: &str) -> String {
    let mut shown = String::new();
    for (n, letter) in id.chars().enumerate() {
        if (6..30).contains(&n) && n % 4 == 2 {
            shown.push('-');
        }
        shown.push(letter);
    }
    shown
}

/// A physical volume's bytes.
type Bytes = Arc<dyn ReadAt>;
