//! The rest layer of a build context: what no package brings, and what must be deleted before it comes.

use super::ladder::{Choice, Rung};
use super::supply::Supply;
use super::{remove, sources};
use crate::convert::{self, Prepared};
use crate::diff::{Change, Diff, Fields};
use crate::path::GuestPath;
use crate::pkgdb;
use crate::plan::rules::Rules;
use crate::plan::{Action, Facts, LayerPlan, PackageFact, Rewritten, Step, make};
use crate::source::Source;
use crate::tree::Tree;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What goes into the rest layer, and what is deleted before.
pub(super) struct RestPlan {
    pub(super) layer: LayerPlan,
    pub(super) deleted: Vec<GuestPath>,
    pub(super) rewritten: BTreeMap<GuestPath, Rewritten>,
}

/// Plans anew with the ladder's packages in place of the base's, and keeps of it what no package brings.
pub(super) fn rest_layer(
    source: &dyn Source,
    prepared: &Prepared,
    conversion: &convert::Options,
    supply: &Supply,
    files: &[sources::SourceFile],
    installs: bool,
) -> anyhow::Result<RestPlan> {
    let inventory = &prepared.inventory;
    let packages = inventory.packages.as_deref().unwrap_or_default();
    let nothing = Tree::new(Vec::new());
    let base = prepared.base.as_ref().map_or(&nothing, |b| b.source.tree());
    let choice = |i: usize| supply.choices.get(i);
    let brought = |i: usize| choice(i).is_some_and(|c: &Choice| matches!(c.rung, Rung::Live | Rung::Archive));
    let mut rewritten = prepared.plan.rewritten.clone();
    for file in files.iter().filter(|f| f.redacted) {
        rewritten.entry(file.path.clone()).or_insert_with(|| Rewritten {
            rule: sources::RULE.to_owned(),
            content: file.content.clone(),
        });
    }
    let mut own: HashSet<GuestPath> = pkgdb::changed_conffiles(source, packages)?.into_iter().collect();
    own.extend(remove::changed_files(
        source,
        packages,
        &brought,
        conversion.layers.jobs,
    )?);
    own.extend(inventory.stat_overrides.iter().map(|s| s.path.clone()));
    // What the build writes over or removes comes back, although the base has the same.
    let mut changes: BTreeMap<GuestPath, Change> = prepared.plan.changes.iter().cloned().collect();
    if installs {
        let touched = supply.files.iter().map(|(p, _)| p).chain(&supply.remove);
        for path in touched.filter(|p| prepared.image.get(p).is_some()) {
            own.insert(path.clone());
            let entry = changes
                .entry(path.clone())
                .or_insert(Change::Changed(Fields::NONE));
            if let Change::Changed(fields) = entry {
                fields.set(Fields::CONTENT, true);
            }
        }
    }
    let facts: Vec<PackageFact> = packages
        .iter()
        .enumerate()
        .map(|(i, p)| PackageFact {
            label: p.name.clone(),
            in_layer: brought(i),
        })
        .collect();
    let rules = Rules::new(conversion.profile, &conversion.keep, &conversion.drop)?;
    let ignored = |path: &GuestPath| rules.ignored(path);
    let plan = make(Facts {
        machine: source.tree(),
        base,
        diff: &Diff {
            changes: changes.into_iter().collect(),
            unread: Vec::new(),
        },
        left_out: prepared.plan.left_out.clone(),
        ignored: &ignored,
        rewritten: rewritten.clone(),
        owner: &|path| {
            let owners = inventory.owners.of(path).iter().copied();
            owners.max_by_key(|i| facts.get(*i).map(|p| !p.in_layer))
        },
        packages: &facts,
        own: &own,
    });
    let mut deleted: BTreeSet<GuestPath> = remove::paths(&remove::Facts {
        base,
        machine: source.tree(),
        plan: &plan,
        packages,
        owners: &inventory.owners,
        brought: &brought,
        ignored: &ignored,
    })
    .into_iter()
    .collect();
    if installs {
        let lacking = supply.files.iter().map(|(p, _)| p);
        deleted.extend(lacking.filter(|p| prepared.image.get(p).is_none()).cloned());
    }
    // The directories of packages too: their modes and times are the machine's.
    let mut steps: BTreeMap<GuestPath, Step> = BTreeMap::new();
    for layer in &plan.layers {
        let rest = layer.name == "rest";
        for step in layer.steps.iter().filter(|s| s.action != Action::Delete) {
            let dir = step.action == Action::Write
                && prepared
                    .image
                    .get(&step.path)
                    .is_some_and(crate::tree::Node::is_dir);
            if rest || dir {
                steps.entry(step.path.clone()).or_insert_with(|| step.clone());
            }
        }
    }
    Ok(RestPlan {
        layer: LayerPlan {
            name: "rest".into(),
            packages: Vec::new(),
            steps: steps.into_values().collect(),
        },
        deleted: deleted.into_iter().collect(),
        rewritten,
    })
}
