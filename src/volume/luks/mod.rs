//! LUKS1 and LUKS2: encrypted volumes and keys in, their plaintext out.

mod cipher;
mod kdf;
mod keys;
mod luks1;
mod luks2;

pub use keys::{Ask, Keys, Limits, Secret};

use super::assemble::{Made, Member, Outcome, Round};
use crate::bytes::{be16, slice, until_nul};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};
use std::sync::Arc;

const MAGIC: &[u8] = b"LUKS\xba\xbe";

/// True if `volume` begins with a header, or has the second one of LUKS2 where that is by default.
pub(crate) fn probe(volume: &dyn ReadAt) -> bool {
    version(volume).is_some()
}

fn version(volume: &dyn ReadAt) -> Option<u16> {
    let first = read_vec(volume, 0, 8).ok()?;
    if first.starts_with(MAGIC) {
        return be16(&first, 6).filter(|v| matches!(v, 1 | 2));
    }
    luks2::has_second(volume).then_some(2)
}

/// Opens encrypted volumes with the keys that there are.
pub(super) fn assemble(members: &[Member<'_>], round: &Round<'_>) -> Outcome {
    let mut out = Outcome::default();
    for member in members {
        match open(member, round.keys, &mut out.notes) {
            Ok((uuid, data)) => {
                let path = format!("mapper/luks-{uuid}");
                out.used.push(member.index);
                out.made.push(Made {
                    device: format!("/dev/{path}"),
                    paths: vec![path],
                    data: Ok(data),
                    inside: Some((member.index, uuid)),
                    degraded: member.degraded,
                    ..Made::default()
                });
            }
            Err(e) => out.fail(member, e),
        }
    }
    out
}

/// The UUID and the plaintext of a volume.
fn open(member: &Member<'_>, keys: &Keys, notes: &mut Vec<String>) -> Result<(String, Arc<dyn ReadAt>)> {
    let volume = member.data;
    let version = version(&**volume).unwrap_or(2);
    let (uuid, opened) = if version == 1 {
        let header = luks1::Header::read(&**volume)?;
        let found = keys.try_each(member.device, |key| header.open(volume, key, &keys.limits))?;
        (header.uuid.clone(), found)
    } else {
        let header = luks2::Header::read(&**volume)?;
        notes.extend(header.note.as_ref().map(|n| format!("{}: {n}", member.device)));
        let found = keys.try_each(member.device, |key| header.open(volume, key, &keys.limits))?;
        (header.uuid.clone(), found)
    };
    let Some(data) = opened else {
        let what = match keys.len() {
            0 => format!("a LUKS{version} encrypted volume"),
            1 => format!("a LUKS{version} encrypted volume that the key given does not open"),
            n => format!("a LUKS{version} encrypted volume that none of the {n} keys given opens"),
        };
        return Err(
            Error::unsupported(what).hint("give its key or passphrase in a file with --key-file FILE")
        );
    };
    Ok((uuid, data))
}

/// A UUID field: text up to a NUL. Only what a UUID may have is kept, since it becomes a name.
fn uuid(bytes: &[u8], at: usize) -> String {
    let text = slice(bytes, at, 40).map(until_nul).unwrap_or_default();
    text.iter()
        .filter(|b| b.is_ascii_alphanumeric() || **b == b'-')
        .map(|b| char::from(*b))
        .collect()
}
