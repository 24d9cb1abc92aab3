//! What must be deleted before the machine's own files come, and how a Dockerfile says it.
//!
//! A whiteout in a tar that `ADD` unpacks is a file like any other, so deletions are commands: arguments of `rm` in exec
//! form, or, where they are many or no text, a list of names ended by NULs for xargs(1).

use super::Deletions;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::pkgdb::{FileDigest, Owners, Package};
use crate::plan::{Action, Plan};
use crate::source::Source;
use crate::tree::{FileId, Node, Tree};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Read;

/// The most paths that are arguments in the Dockerfile itself.
const FEW: usize = 40;
/// The most arguments of one command.
const ARGUMENTS: usize = 400;
/// The file of the context that lists paths.
pub const LIST: &str = "deleted.list";
/// Where the list lies in the image while it is used.
const PLACE: &str = "/.vm2k-deleted";

/// Trees and packages that deletions follow from.
pub struct Facts<'a> {
    /// The base's tree.
    pub base: &'a Tree,
    /// The machine's tree.
    pub machine: &'a Tree,
    /// Every decision about the machine's paths.
    pub plan: &'a Plan,
    /// The machine's packages.
    pub packages: &'a [Package],
    /// Who owns what.
    pub owners: &'a Owners,
    /// True for a package, by its index, that the package manager brings.
    pub brought: &'a dyn Fn(usize) -> bool,
    /// Paths that container engines mount over.
    pub ignored: &'a dyn Fn(&GuestPath) -> bool,
}

/// The topmost paths that the image must not have when the machine's own files come, in byte order: what the base has and
/// the machine has not or has as something else, what packages bring and the machine has not, and what is left out.
pub fn paths(facts: &Facts<'_>) -> Vec<GuestPath> {
    let mut all: BTreeSet<GuestPath> = BTreeSet::new();
    let steps = facts.plan.layers.iter().flat_map(|l| &l.steps);
    all.extend(
        steps
            .filter(|s| s.action == Action::Delete)
            .map(|s| s.path.clone()),
    );
    for (path, change) in &facts.plan.changes {
        if let crate::diff::Change::Changed(fields) = change
            && fields.has(crate::diff::Fields::TYPE)
        {
            all.insert(path.clone());
        }
    }
    all.extend(facts.plan.left_out.iter().map(|(path, _)| path.clone()));
    for (index, path) in &facts.owners.missing {
        let ghost = facts.packages.get(*index).is_some_and(|p| {
            let file = p.files.iter().find(|f| f.path == *path);
            file.and_then(|f| f.facts.as_ref()).is_some_and(|f| f.flags.ghost)
        });
        if (facts.brought)(*index) && !ghost {
            all.insert(topmost_missing(facts.machine, path));
        }
    }
    all.extend(links_for_directories(facts));
    all.retain(|path| !path.is_root() && !(facts.ignored)(path));
    topmost(all)
}

/// The uppermost directory above `path` that is missing too, else `path`.
fn topmost_missing(machine: &Tree, path: &GuestPath) -> GuestPath {
    let mut at = path.clone();
    while let Some(up) = at.parent().filter(|up| !up.is_root()) {
        if machine
            .resolve(&up, true)
            .is_ok_and(|p| machine.get(&p).is_some())
        {
            break;
        }
        at = up;
    }
    at
}

/// Symlinks of the machine that stand where a package that is installed brings a directory.
fn links_for_directories(facts: &Facts<'_>) -> Vec<GuestPath> {
    let mut found = Vec::new();
    for (index, package) in facts.packages.iter().enumerate() {
        if !(facts.brought)(index) {
            continue;
        }
        let parents: HashSet<GuestPath> = package.files.iter().filter_map(|f| f.path.parent()).collect();
        let link = |path: &&GuestPath| {
            let is_link = |tree: &Tree| {
                tree.get(path)
                    .is_some_and(|n| matches!(n.kind, crate::tree::Kind::Symlink { .. }))
            };
            is_link(facts.machine) && !is_link(facts.base)
        };
        found.extend(parents.iter().filter(link).cloned());
    }
    found
}

/// Without what lies below another one.
fn topmost(all: BTreeSet<GuestPath>) -> Vec<GuestPath> {
    let mut kept: Vec<GuestPath> = Vec::with_capacity(all.len());
    let mut set: HashSet<GuestPath> = HashSet::new();
    for path in all {
        let mut up = path.parent();
        let covered = std::iter::from_fn(|| {
            let at = up.take()?;
            up = at.parent();
            Some(at)
        })
        .any(|at| set.contains(&at));
        if !covered {
            set.insert(path.clone());
            kept.push(path);
        }
    }
    kept
}

/// How `paths` are deleted: commands, the content of the list if there is one, and what cannot be deleted. `lists` says
/// that the image has xargs(1).
pub fn commands(paths: &[GuestPath], lists: bool) -> (Option<Deletions>, Option<Vec<u8>>, Vec<GuestPath>) {
    if paths.is_empty() {
        return (None, None, Vec::new());
    }
    let text = |path: &GuestPath| std::str::from_utf8(path.as_bytes()).ok().map(str::to_owned);
    let texts: Vec<String> = paths.iter().filter_map(text).collect();
    if lists && (texts.len() < paths.len() || texts.len() > FEW) {
        let mut list = Vec::new();
        for path in paths {
            list.extend_from_slice(path.as_bytes());
            list.push(0);
        }
        // The list goes last, by itself: what it names may be what it would take to remove it.
        list.extend_from_slice(PLACE.as_bytes());
        list.push(0);
        let deletions = Deletions {
            commands: Vec::new(),
            list: Some(LIST.to_owned()),
            place: PLACE.to_owned(),
            script: vec![format!("xargs -0 rm -rf -- < {PLACE}")],
        };
        return (Some(deletions), Some(list), Vec::new());
    }
    let head = ["rm", "-rf", "--"].map(str::to_owned);
    let commands = texts
        .chunks(ARGUMENTS)
        .map(|part| head.iter().chain(part).cloned().collect())
        .collect();
    let left = paths.iter().filter(|p| text(p).is_none()).cloned().collect();
    let deletions = Deletions {
        commands,
        ..Deletions::default()
    };
    (Some(deletions).filter(|d| !d.commands.is_empty()), None, left)
}

/// The machine's files that are not as their packages brought them, of the packages that `brought` names: by digest where
/// the database has one, by mode and owner where it has those. Paths are those of the tree.
///
/// # Errors
/// As the source's reader.
pub fn changed_files(
    source: &dyn Source,
    packages: &[Package],
    brought: &dyn Fn(usize) -> bool,
    jobs: usize,
) -> Result<Vec<GuestPath>> {
    let tree = source.tree();
    let mut changed = Vec::new();
    let mut to_read: Vec<(GuestPath, FileId, &FileDigest)> = Vec::new();
    let mut seen: HashSet<FileId> = HashSet::new();
    for (index, package) in packages.iter().enumerate() {
        if !brought(index) {
            continue;
        }
        let diverted: HashMap<&GuestPath, &GuestPath> =
            package.diverted.iter().map(|(a, b)| (a, b)).collect();
        let conffiles: HashSet<&GuestPath> = package.conffiles.iter().map(|c| &c.path).collect();
        for file in &package.files {
            let Some(facts) = file.facts.as_ref().filter(|f| !f.flags.ghost) else {
                continue;
            };
            let listed = diverted.get(&file.path).copied().unwrap_or(&file.path);
            let Some((path, node)) = tree.resolve(listed, false).ok().and_then(|p| tree.get_key(&p)) else {
                continue;
            };
            let link = match &node.kind {
                crate::tree::Kind::Symlink { target } => facts.link.as_ref().is_some_and(|l| l != target),
                _ => false,
            };
            let mode = facts.mode.is_some_and(|m| {
                !matches!(node.kind, crate::tree::Kind::Symlink { .. }) && m & 0o7777 != u32::from(node.mode)
            });
            let size = node.is_file() && facts.size.is_some_and(|s| s != node.size());
            // dpkg keeps no capabilities: what a file has was given to it when it was configured, or by the administrator.
            let xattrs = facts.capabilities.is_none()
                && node
                    .xattrs
                    .iter()
                    .any(|(name, _)| !crate::layer::tar::is_local_xattr(name));
            if link || mode || size || xattrs {
                changed.push(path.clone());
            } else if let (true, Some(digest), false) =
                (node.is_file(), &facts.digest, conffiles.contains(&file.path))
                && seen.insert(node.id)
            {
                to_read.push((path.clone(), node.id, digest));
            }
        }
    }
    let same = crate::jobs::map(jobs, &to_read, |(_, id, digest)| is_of(source, *id, digest))?;
    let differs = to_read.into_iter().zip(same).filter(|(_, same)| !same);
    changed.extend(differs.map(|((path, ..), _)| path));
    changed.sort();
    changed.dedup();
    Ok(changed)
}

/// True if the file has this digest.
fn is_of(source: &dyn Source, id: FileId, digest: &FileDigest) -> Result<bool> {
    fn hash<H: md5::Digest>(source: &dyn Source, id: FileId) -> Result<Vec<u8>> {
        let file = source.open(id)?;
        let mut stream = crate::read_at::Stream::new(&*file);
        let mut hash = H::new();
        let mut buf = vec![0; 256 << 10];
        loop {
            let n = stream
                .read(&mut buf)
                .map_err(|e| Error::from_io(format!("reading a file of {}", source.name()), e))?;
            match buf.get(..n) {
                Some(part) if n > 0 => hash.update(part),
                _ => return Ok(hash.finalize().to_vec()),
            }
        }
    }
    Ok(match digest {
        FileDigest::Md5(sum) => hash::<md5::Md5>(source, id)? == sum,
        FileDigest::Sha1(sum) => hash::<sha1::Sha1>(source, id)? == sum,
        FileDigest::Sha256(sum) => hash::<sha2::Sha256>(source, id)? == sum,
        FileDigest::Sha384(sum) => hash::<sha2::Sha384>(source, id)? == sum.as_slice(),
        FileDigest::Sha512(sum) => hash::<sha2::Sha512>(source, id)? == sum.as_slice(),
    })
}

/// True if the tree has the program `name` where programs are.
pub fn has_program(tree: &Tree, name: &str) -> bool {
    ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"]
        .iter()
        .any(|dir| {
            tree.find(&format!("{dir}/{name}"))
                .is_some_and(|(_, n): (_, &Node)| !n.is_dir())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(bytes: &[u8]) -> GuestPath {
        GuestPath::new(bytes).unwrap()
    }

    #[test]
    fn few_names_are_arguments_and_others_a_list() {
        let few = [p(b"/a b"), p(b"/$(x)\n'\"")];
        let (deletions, list, left) = commands(&few, true);
        let expected = ["rm", "-rf", "--", "/a b", "/$(x)\n'\""].map(str::to_owned);
        assert_eq!(deletions.unwrap().commands, [expected.to_vec()]);
        assert!(list.is_none() && left.is_empty());
        let raw = [p(b"/\xff"), p(b"/x\n")];
        let (deletions, list, _) = commands(&raw, true);
        assert_eq!(list.unwrap(), b"/\xff\0/x\n\0/.vm2k-deleted\0");
        assert!(deletions.unwrap().commands.is_empty());
        let (deletions, list, left) = commands(&raw, false);
        assert_eq!(deletions.unwrap().commands.len(), 1);
        assert!(list.is_none());
        assert_eq!(left, [p(b"/\xff")]);
    }

    #[test]
    fn only_the_topmost_paths_are_named() {
        let all = ["/a", "/a/b", "/a-", "/b/c/d", "/b/c"].map(|s| p(s.as_bytes()));
        let kept: Vec<String> = topmost(all.into_iter().collect())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(kept, ["/a", "/a-", "/b/c"]);
    }
}
