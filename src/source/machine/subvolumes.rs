//! Filesystems of several volumes, and the subvolume among many that holds the operating system.

use crate::error::{Error, Result};
use crate::fs::{self, Filesystem, Selector, Subvolume, View};
use crate::path::GuestPath;
use crate::read_at::{ReadAt, read_all};
use crate::source::fstab;
use std::sync::Arc;

/// Where a volume stands among those that make up one filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// The first one, or the only one; with these as further devices.
    Main(Vec<usize>),
    /// A further device of the filesystem that begins on this volume.
    Member(usize),
}

/// The role of each of `volumes`.
pub(super) fn roles(volumes: &[Arc<dyn ReadAt>]) -> Vec<Role> {
    let sets: Vec<_> = volumes.iter().map(|v| fs::set(&**v)).collect();
    let mut roles: Vec<Role> = volumes.iter().map(|_| Role::Main(Vec::new())).collect();
    let put = |roles: &mut Vec<Role>, n: usize, role| {
        if let Some(slot) = roles.get_mut(n) {
            *slot = role;
        }
    };
    let seeds: Vec<usize> = (0..volumes.len())
        .filter(|n| matches!(sets.get(*n), Some(Some((_, true)))))
        .collect();
    for (n, set) in sets.iter().enumerate() {
        let Some((fsid, seed)) = set else { continue };
        let first = sets.iter().position(|s| s.is_some_and(|(id, _)| id == *fsid));
        if first != Some(n) {
            put(&mut roles, n, Role::Member(first.unwrap_or(n)));
            continue;
        }
        let mut others: Vec<usize> = (n + 1..volumes.len())
            .filter(|o| sets.get(*o).is_some_and(|s| s.is_some_and(|(id, _)| id == *fsid)))
            .collect();
        // The base of other filesystems is a part of them where it is needed.
        let pick = |list: &[usize]| -> Vec<Arc<dyn ReadAt>> {
            std::iter::once(&n)
                .chain(list)
                .filter_map(|n| volumes.get(*n).cloned())
                .collect()
        };
        if !seed && !seeds.is_empty() && fs::open_several(&pick(&others)).is_err() {
            others.extend(&seeds);
        }
        put(&mut roles, n, Role::Main(others));
    }
    for n in 0..roles.len() {
        if let Some(Role::Main(others)) = roles.get(n).cloned() {
            for other in others.iter().filter(|o| seeds.contains(*o) && **o != n) {
                put(&mut roles, *other, Role::Member(n));
            }
        }
    }
    roles
}

/// A filesystem as it is listed, and the subvolumes to choose from where several hold a system.
pub(super) struct Chosen {
    pub(super) filesystem: Box<dyn Filesystem>,
    pub(super) systems: Vec<Subvolume>,
}

/// Chooses the subvolume: the default one if it holds a system or no other does; else the one that holds a system whose
/// own fstab mounts it as the root.
///
/// # Errors
/// As the filesystem's reader.
pub(super) fn choose(filesystem: Box<dyn Filesystem>, snapshots: bool) -> Result<Chosen> {
    let all = filesystem.subvolumes();
    let view = |id| View {
        subvolume: id,
        snapshots,
        without: Vec::new(),
    };
    let only = |filesystem| Chosen {
        filesystem,
        systems: Vec::new(),
    };
    if all.is_empty() {
        return Ok(only(filesystem));
    }
    let default = filesystem.view(&view(None))?;
    if all.len() == 1 || has_system(&*default) {
        return Ok(only(default));
    }
    let mut systems = Vec::new();
    let mut named = Vec::new();
    for subvolume in all {
        let Ok(seen) = filesystem.view(&view(Some(Selector::Id(subvolume.id)))) else {
            continue;
        };
        if !has_system(&*seen) {
            continue;
        }
        if names_itself(&*seen, &subvolume) {
            named.push(subvolume);
        } else if subvolume.snapshot_of.is_none() {
            systems.push(subvolume);
        }
    }
    let systems = if named.is_empty() { systems } else { named };
    match systems.as_slice() {
        [] => Ok(only(default)),
        [one] => Ok(only(filesystem.view(&view(Some(Selector::Id(one.id))))?)),
        _ => Ok(Chosen {
            filesystem: default,
            systems,
        }),
    }
}

fn has(filesystem: &dyn Filesystem, path: &str) -> bool {
    GuestPath::lenient(path.as_bytes())
        .and_then(|path| filesystem.find(&path))
        .is_ok_and(|found| found.is_some())
}

fn has_system(filesystem: &dyn Filesystem) -> bool {
    has(filesystem, "/etc/os-release")
        || has(filesystem, "/usr/lib/os-release")
        || has(filesystem, "/etc/fstab") && (has(filesystem, "/bin") || has(filesystem, "/usr"))
}

/// True if the fstab in this subvolume mounts the subvolume as the root.
fn names_itself(filesystem: &dyn Filesystem, subvolume: &Subvolume) -> bool {
    let read = || {
        let path = GuestPath::lenient(b"/etc/fstab").ok()?;
        let node = filesystem.find(&path).ok()??;
        read_all(&*filesystem.open(node.id.ino).ok()?, 1 << 20).ok()
    };
    fstab::parse(&read().unwrap_or_default())
        .iter()
        .filter(|line| line.file == b"/")
        .any(|line| match line.subvolume() {
            Some(Selector::Id(id)) => id == subvolume.id,
            Some(Selector::Path(path)) => path.relative() == subvolume.path,
            None => false,
        })
}

/// The subvolume that the last part of `--root DISK:NUMBER:SUBVOL` names: a path, or `subvolid=N`.
///
/// # Errors
/// [`Error::Usage`] if it is neither.
pub(super) fn selector(text: &str) -> Result<Selector> {
    match text.strip_prefix("subvolid=") {
        Some(id) => id
            .parse()
            .map(Selector::Id)
            .map_err(|_| Error::usage(format!("subvolid={id} is no number of a subvolume"))),
        None => GuestPath::lenient(text.as_bytes()).map(Selector::Path),
    }
}
