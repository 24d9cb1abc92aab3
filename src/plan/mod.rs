//! What goes into which layer and why; what is left out and why.
//!
//! [`make`] is a pure function of facts that were gathered before; [`check`] holds its result against the same facts
//! without using its code.

pub mod check;
pub mod document;
pub mod note;
pub mod redact;
pub mod rules;

use crate::diff::{Change, Diff, Fields, Joined, fields, join, regrouped};
use crate::layer::tar::{is_local_xattr, unsayable_xattr};
use crate::path::GuestPath;
use crate::tree::{FileId, Kind, Node, Tree};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

pub use check::check;

/// Everything a plan depends on.
pub struct Facts<'a> {
    /// The machine's tree.
    pub machine: &'a Tree,
    /// The base image's tree; empty where there is no base.
    pub base: &'a Tree,
    /// From base to machine; only what it says of contents is used.
    pub diff: &'a Diff,
    /// The topmost paths that stay out, each with the name of its rule.
    pub left_out: Vec<(GuestPath, String)>,
    /// Paths that container engines mount over: the base's content there is let be.
    pub ignored: &'a dyn Fn(&GuestPath) -> bool,
    /// Files whose content the image has in another form, with the rule that says so.
    pub rewritten: BTreeMap<GuestPath, Rewritten>,
    /// The package that owns a path, as an index into `packages`.
    pub owner: &'a dyn Fn(&GuestPath) -> Option<usize>,
    /// The machine's packages.
    pub packages: &'a [PackageFact],
    /// Paths that a package owns but that are the machine's own all the same: changed configuration files.
    pub own: &'a HashSet<GuestPath>,
}

/// What a plan needs to know of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageFact {
    /// Name, version and architecture as people write them: `nginx 1.22.1-9 amd64`.
    pub label: String,
    /// True if it gets a place in the package layer: the base does not have it in this version.
    pub in_layer: bool,
}

/// A file that goes into the image with another content than the machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The rule that asks for it.
    pub rule: String,
    /// The content in the image.
    pub content: Vec<u8>,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub path: GuestPath,
    /// What.
    pub action: Action,
}

/// What a step does to its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Writes the machine's node, with its content.
    Write,
    /// Makes a hard link to a path that stands earlier in this layer.
    LinkTo(GuestPath),
    /// Deletes what lower layers have here.
    Delete,
}

/// One new layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerPlan {
    /// `packages` or `rest`.
    pub name: String,
    /// Labels of the packages whose files are here; empty for `rest`.
    pub packages: Vec<String>,
    /// The entries: parents before children, deletions right behind their directory, no path twice.
    pub steps: Vec<Step>,
}

/// Every decision of one conversion.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The topmost paths that stay out, with the name of the rule, in byte order.
    pub left_out: Vec<(GuestPath, String)>,
    /// Files with another content than the machine's.
    pub rewritten: BTreeMap<GuestPath, Rewritten>,
    /// Extended attributes that no layer can carry: path, and name with the reason.
    pub unsaid: Vec<(GuestPath, String)>,
    /// The new layers from bottom to top; one without entries is not there.
    pub layers: Vec<LayerPlan>,
    /// How many paths are in the image just as the base has them.
    pub unchanged: usize,
    /// What became of the others, seen from the base.
    pub changes: Vec<(GuestPath, Change)>,
}

/// The tree that the image must show: the machine's without what is left out and what no layer can say, with the sizes of
/// rewritten files. The second value lists the extended attributes that had to go.
pub fn image_tree(
    machine: &Tree,
    left_out: &[(GuestPath, String)],
    rewritten: &BTreeMap<GuestPath, Rewritten>,
) -> (Tree, Vec<(GuestPath, String)>) {
    let out: HashSet<&GuestPath> = left_out.iter().map(|(p, _)| p).collect();
    let mut tree = machine.clone();
    tree.retain(|path, _| !out.contains(path));
    let mut unsaid = Vec::new();
    tree.for_each_mut(|path, node| {
        node.xattrs
            .retain(|(name, value)| match unsayable_xattr(name, value) {
                _ if is_local_xattr(name) => false,
                Some(why) => {
                    unsaid.push((path.clone(), format!("{}: {why}", crate::error::Escaped(name))));
                    false
                }
                None => true,
            });
        if let (Some(new), Kind::File { size }) = (rewritten.get(path), &mut node.kind) {
            *size = new.content.len() as u64;
        }
    });
    (tree, unsaid)
}

/// Which layer an entry goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Packages,
    Rest,
}

/// Decides what goes where.
///
/// An entry is written if the base lacks it or has it otherwise. Files of packages that the base lacks, or has in another
/// version, go to the package layer; everything else, and what was changed since its package was installed, to the rest.
/// All names of a hard-linked file go to one layer, because a link cannot reach into another. Each layer also has the
/// directories above its entries, because engines invent those that are missing.
pub fn make(facts: Facts<'_>) -> Plan {
    let (image, unsaid) = image_tree(facts.machine, &facts.left_out, &facts.rewritten);
    let regrouped = regrouped(facts.base, &image);
    let mut changes: Vec<(GuestPath, Change)> = Vec::new();
    let mut unchanged = 0;
    let mut deleted: BTreeSet<GuestPath> = BTreeSet::new();
    let mut written: BTreeMap<&GuestPath, (&Node, Place)> = BTreeMap::new();
    let mut own_dirs: Vec<(&GuestPath, &Node)> = Vec::new();
    for joined in join(facts.base, &image) {
        match joined {
            Joined::Left(path, _) => {
                if !(facts.ignored)(path) {
                    changes.push((path.clone(), Change::Deleted));
                    deleted.insert(path.clone());
                }
            }
            Joined::Right(path, node) => {
                changes.push((path.clone(), Change::Added));
                match place(&facts, path) {
                    Place::Rest if node.is_dir() => own_dirs.push((path, node)),
                    place => {
                        written.insert(path, (node, place));
                    }
                }
            }
            Joined::Both(path, old, new) => {
                let mut f = fields(old, new);
                let content =
                    matches!(facts.diff.get(path), Some(Change::Changed(d)) if d.has(Fields::CONTENT));
                f.set(
                    Fields::CONTENT,
                    new.is_file() && (content || facts.rewritten.contains_key(path)),
                );
                f.set(Fields::LINKS, regrouped.contains(path));
                if f.is_none() {
                    unchanged += 1;
                    continue;
                }
                changes.push((path.clone(), Change::Changed(f)));
                if new.is_dir() && !f.has(Fields::TYPE) {
                    own_dirs.push((path, new));
                } else {
                    written.insert(path, (new, place(&facts, path)));
                }
            }
        }
    }
    keep_links_together(&image, &mut written);
    let mut layers = [(Place::Packages, "packages"), (Place::Rest, "rest")].map(|(place, name)| {
        let entries: BTreeMap<&GuestPath, &Node> = written
            .iter()
            .filter(|(_, (_, p))| *p == place)
            .map(|(path, (node, _))| (*path, *node))
            .collect();
        (name, entries)
    });
    // A directory above an entry of the package layer is written there with the machine's metadata already.
    let in_packages = above(layers.first().into_iter().flat_map(|(_, e)| e.keys().copied()));
    if let Some((_, rest)) = layers.get_mut(1) {
        rest.extend(
            own_dirs
                .into_iter()
                .filter(|(path, _)| !in_packages.contains(*path)),
        );
    }
    let topmost = |path: &GuestPath| {
        path.parent()
            .is_some_and(|parent| image.get(&parent).is_some_and(Node::is_dir) && !deleted.contains(&parent))
    };
    let whiteouts: Vec<&GuestPath> = deleted.iter().filter(|p| topmost(p)).collect();
    let mut used: BTreeSet<usize> = BTreeSet::new();
    for (path, (_, place)) in &written {
        if *place == Place::Packages {
            used.extend((facts.owner)(path));
        }
    }
    let labels = used
        .into_iter()
        .filter_map(|i| facts.packages.get(i))
        .map(|p| p.label.clone())
        .collect();
    let mut plans = Vec::new();
    for (name, entries) in layers {
        let deletions = if name == "rest" { whiteouts.as_slice() } else { &[] };
        let steps = steps(&image, entries, deletions);
        if !steps.is_empty() {
            plans.push(LayerPlan {
                name: name.into(),
                packages: Vec::new(),
                steps,
            });
        }
    }
    if let Some(first) = plans.first_mut().filter(|l| l.name == "packages") {
        first.packages = labels;
    }
    Plan {
        left_out: facts.left_out,
        rewritten: facts.rewritten,
        unsaid,
        layers: plans,
        unchanged,
        changes,
    }
}

fn place(facts: &Facts<'_>, path: &GuestPath) -> Place {
    let packaged = (facts.owner)(path)
        .and_then(|i| facts.packages.get(i))
        .is_some_and(|p| p.in_layer);
    let own = facts.own.contains(path) || facts.rewritten.contains_key(path);
    if packaged && !own {
        Place::Packages
    } else {
        Place::Rest
    }
}

/// If one name of a hard-linked file is written, all are, and in one layer: the upper one of those they asked for.
fn keep_links_together<'a>(image: &'a Tree, written: &mut BTreeMap<&'a GuestPath, (&'a Node, Place)>) {
    for paths in image.hard_links().into_values() {
        let Some(place) = paths
            .iter()
            .filter_map(|p| written.get(*p))
            .map(|(_, place)| *place)
            .max()
        else {
            continue;
        };
        for path in paths {
            if let Some(node) = image.get(path) {
                written.insert(path, (node, place));
            }
        }
    }
}

/// Every directory above the paths, the root left out.
fn above<'a>(paths: impl Iterator<Item = &'a GuestPath>) -> HashSet<GuestPath> {
    let mut dirs = HashSet::new();
    for path in paths {
        let mut up = path.parent();
        while let Some(dir) = up.filter(|d| !d.is_root()) {
            up = dir.parent();
            if !dirs.insert(dir) {
                break;
            }
        }
    }
    dirs
}

/// The entries of one layer in their order.
fn steps<'a>(
    image: &'a Tree,
    mut entries: BTreeMap<&'a GuestPath, &'a Node>,
    deletions: &[&GuestPath],
) -> Vec<Step> {
    let dirs = above(entries.keys().copied().chain(deletions.iter().copied()));
    for dir in &dirs {
        if let Some((path, node)) = image.get_key(dir) {
            entries.insert(path, node);
        }
    }
    let mut below: HashMap<GuestPath, Vec<&GuestPath>> = HashMap::new();
    for path in deletions {
        below
            .entry(path.parent().unwrap_or(GuestPath::root()))
            .or_default()
            .push(path);
    }
    let mut steps = Vec::with_capacity(entries.len() + deletions.len());
    let mut delete_in = |dir: &GuestPath, steps: &mut Vec<Step>| {
        for path in below.remove(dir).unwrap_or_default() {
            steps.push(Step {
                path: path.clone(),
                action: Action::Delete,
            });
        }
    };
    if !entries.contains_key(&GuestPath::root()) {
        delete_in(&GuestPath::root(), &mut steps);
    }
    let mut first: HashMap<FileId, &GuestPath> = HashMap::new();
    for (path, node) in entries {
        let linked = !node.is_dir() && node.nlink > 1;
        let action = match linked.then(|| *first.entry(node.id).or_insert(path)) {
            Some(target) if target != path => Action::LinkTo(target.clone()),
            _ => Action::Write,
        };
        steps.push(Step {
            path: path.clone(),
            action,
        });
        if node.is_dir() {
            delete_in(path, &mut steps);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Time;
    use proptest::prelude::*;

    fn p(s: &str) -> GuestPath {
        GuestPath::new(s.as_bytes()).unwrap()
    }
    fn file(ino: u64, size: u64) -> Node {
        Node {
            kind: Kind::File { size },
            id: FileId { fs: 0, ino },
            nlink: 1,
            mode: 0o644,
            ..Node::plain_dir()
        }
    }
    fn plan(machine: &Tree, base: &Tree, owned: &[&str]) -> Plan {
        let diff = Diff::default();
        let owner = |path: &GuestPath| owned.iter().any(|o| path.to_string() == *o).then_some(0);
        let packages = [PackageFact {
            label: "app 1 amd64".into(),
            in_layer: true,
        }];
        let facts = |owner| Facts {
            machine,
            base,
            diff: &diff,
            left_out: Vec::new(),
            ignored: &|_| false,
            rewritten: BTreeMap::new(),
            owner,
            packages: &packages,
            own: &EMPTY,
        };
        static EMPTY: std::sync::LazyLock<HashSet<GuestPath>> = std::sync::LazyLock::new(HashSet::new);
        let plan = make(facts(&owner));
        assert_eq!(check(&plan, machine, base, &|_| false), Vec::<String>::new());
        plan
    }
    fn show(plan: &Plan) -> Vec<String> {
        plan.layers
            .iter()
            .flat_map(|l| {
                l.steps.iter().map(|s| match &s.action {
                    Action::Write => format!("{} + {}", l.name, s.path),
                    Action::LinkTo(to) => format!("{} = {} {to}", l.name, s.path),
                    Action::Delete => format!("{} - {}", l.name, s.path),
                })
            })
            .collect()
    }

    #[test]
    fn additions_changes_and_deletions_find_their_layer() {
        let base = Tree::new(vec![
            (p("/etc/a"), file(1, 1)),
            (p("/etc/b"), file(2, 1)),
            (p("/old/x/y"), file(3, 1)),
        ]);
        let machine = Tree::new(vec![
            (p("/etc/a"), file(11, 1)),
            (p("/etc/b"), file(12, 2)),
            (p("/usr/bin/app"), file(13, 9)),
            (p("/srv/data"), file(14, 9)),
        ]);
        assert_eq!(
            show(&plan(&machine, &base, &["/usr/bin/app"])),
            [
                "packages + /usr",
                "packages + /usr/bin",
                "packages + /usr/bin/app",
                "rest - /old",
                "rest + /etc",
                "rest + /etc/b",
                "rest + /srv",
                "rest + /srv/data",
            ]
            .map(String::from)
        );
    }

    #[test]
    fn all_names_of_a_file_go_to_one_layer() {
        let linked = |ino| Node {
            nlink: 2,
            ..file(ino, 5)
        };
        let machine = Tree::new(vec![
            (p("/a"), linked(1)),
            (p("/b"), linked(1)),
            (p("/c"), linked(2)),
            (p("/d"), linked(2)),
        ]);
        let base = Tree::new(vec![(p("/c"), file(7, 5)), (p("/d"), file(8, 5))]);
        assert_eq!(
            show(&plan(&machine, &base, &["/a"])),
            ["rest + /a", "rest = /b /a", "rest + /c", "rest = /d /c"].map(String::from),
            "the base's two equal files are one file on the machine"
        );
    }

    #[test]
    fn a_file_becomes_a_directory_and_the_reverse() {
        let base = Tree::new(vec![(p("/x/deep/f"), file(1, 1)), (p("/y"), file(2, 1))]);
        let machine = Tree::new(vec![(p("/x"), file(1, 1)), (p("/y/f"), file(2, 1))]);
        assert_eq!(
            show(&plan(&machine, &base, &[])),
            ["rest + /x", "rest + /y", "rest + /y/f"].map(String::from)
        );
    }

    #[test]
    fn a_directory_whose_time_moved_is_written_once() {
        let dir = |sec| Node {
            mtime: Time { sec, nsec: 0 },
            ..Node::plain_dir()
        };
        let base = Tree::new(vec![(p("/d"), dir(1)), (p("/e"), dir(1))]);
        let machine = Tree::new(vec![
            (p("/d"), dir(2)),
            (p("/d/f"), file(1, 1)),
            (p("/e"), dir(2)),
        ]);
        assert_eq!(
            show(&plan(&machine, &base, &["/d/f"])),
            ["packages + /d", "packages + /d/f", "rest + /e"].map(String::from)
        );
    }

    /// Small random trees: names from a small alphabet so that they collide, every kind of node, hard links.
    fn any_tree() -> impl Strategy<Value = Tree> {
        let path = proptest::collection::vec(prop::sample::select(vec!["a", "b", "a-", "c"]), 1..4)
            .prop_map(|parts| p(&format!("/{}", parts.join("/"))));
        let node = (0..5u8, 1..4u64, 0..3u64).prop_map(|(kind, ino, variant)| match kind {
            0 => Node {
                mode: 0o700 + variant as u16,
                ..Node::plain_dir()
            },
            1 => Node {
                kind: Kind::Symlink {
                    target: vec![b'a' + variant as u8],
                },
                ..file(10 + variant, 0)
            },
            2 => Node {
                kind: Kind::Fifo,
                ..file(20 + variant, 0)
            },
            // Inodes 1 to 3 have several names with equal metadata, as hard links do.
            3 => Node {
                nlink: 2,
                ..file(ino, ino)
            },
            _ => file(100 + variant, variant),
        });
        proptest::collection::vec((path, node), 0..14).prop_map(Tree::new)
    }

    proptest! {
        /// Applying the plan's layers to the base gives the machine, whatever the two are.
        #[test]
        fn layers_on_the_base_are_the_machine(base in any_tree(), machine in any_tree()) {
            plan(&machine, &base, &["/a", "/b/a", "/a/b", "/c"]);
        }
    }
}
