//! An independent checker: applies a plan's layers to the base's tree and holds the result against the machine's.

use super::{Action, Plan, image_tree};
use crate::diff::fields;
use crate::path::GuestPath;
use crate::tree::{Node, Tree};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where a path's content comes from after all layers: the base, or one written entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Base(crate::tree::FileId),
    Layer(usize, GuestPath),
}

/// Findings against `plan`, one line each; empty for a good plan.
///
/// `ignored` says which paths container engines mount over. What the machine's tree and the layers on top of the base's
/// tree show must be the same in every field and in the grouping of hard links; each layer must have the parents of its
/// entries first, no path twice, and links only to what it wrote before.
pub fn check(plan: &Plan, machine: &Tree, base: &Tree, ignored: &dyn Fn(&GuestPath) -> bool) -> Vec<String> {
    let (image, _) = image_tree(machine, &plan.left_out, &plan.rewritten);
    let mut findings = Vec::new();
    let mut shown: BTreeMap<GuestPath, (Node, Origin)> = base
        .iter()
        .map(|(p, n)| (p.clone(), (n.clone(), Origin::Base(n.id))))
        .collect();
    for (number, layer) in plan.layers.iter().enumerate() {
        let mut seen: BTreeSet<&GuestPath> = BTreeSet::new();
        for step in &layer.steps {
            let at = format!("layer {}: {}", layer.name, step.path);
            if !seen.insert(&step.path) {
                findings.push(format!("{at}: stands there twice"));
            }
            if step
                .path
                .parent()
                .is_some_and(|dir| !dir.is_root() && !seen.contains(&dir))
            {
                findings.push(format!("{at}: its directory does not stand before it"));
            }
            match &step.action {
                Action::Delete => {
                    if !remove(&mut shown, &step.path) {
                        findings.push(format!("{at}: deletes what is not there"));
                    }
                }
                Action::Write => match image.get(&step.path) {
                    Some(node) => put(
                        &mut shown,
                        &step.path,
                        node,
                        Origin::Layer(number, step.path.clone()),
                    ),
                    None => findings.push(format!("{at}: writes what the machine does not have")),
                },
                Action::LinkTo(first) => match (image.get(&step.path), image.get(first)) {
                    (Some(a), Some(b)) if a.id == b.id && seen.contains(first) => {
                        put(&mut shown, &step.path, a, Origin::Layer(number, first.clone()));
                    }
                    _ => findings.push(format!(
                        "{at}: links to {first}, which is no earlier name of the same file"
                    )),
                },
            }
        }
    }
    let mut origins: HashMap<crate::tree::FileId, BTreeSet<Origin>> = HashMap::new();
    for (path, node) in image.iter() {
        match shown.remove(path) {
            None => findings.push(format!("{path}: missing from the image")),
            Some((got, origin)) => {
                let differs = fields(node, &got);
                if !differs.is_none() {
                    findings.push(format!("{path}: differs in {differs}"));
                }
                if !node.is_dir() && node.nlink > 1 {
                    origins.entry(node.id).or_default().insert(origin);
                }
            }
        }
    }
    for (path, _) in shown.into_iter().filter(|(p, _)| !ignored(p)) {
        findings.push(format!("{path}: in the image and not on the machine"));
    }
    for set in origins.into_values().filter(|s| s.len() > 1) {
        findings.push(format!("one file of several names became several files: {set:?}"));
    }
    findings
}

/// Removes `path` and all below it; false if nothing was there.
fn remove(shown: &mut BTreeMap<GuestPath, (Node, Origin)>, path: &GuestPath) -> bool {
    let below: Vec<GuestPath> = shown
        .range(path.clone()..)
        .map(|(p, _)| p)
        .take_while(|p| p.as_bytes().starts_with(path.as_bytes()))
        .cloned()
        .collect();
    let inside: Vec<&GuestPath> = below.iter().filter(|p| p.is_in(path)).collect();
    for p in &inside {
        shown.remove(*p);
    }
    !inside.is_empty()
}

/// Puts `node` at `path`; what is no directory, or replaces one, hides all that was below.
fn put(shown: &mut BTreeMap<GuestPath, (Node, Origin)>, path: &GuestPath, node: &Node, origin: Origin) {
    let was_dir = shown.get(path).is_some_and(|(n, _)| n.is_dir());
    if !(was_dir && node.is_dir()) {
        remove(shown, path);
    }
    shown.insert(path.clone(), (node.clone(), origin));
}
