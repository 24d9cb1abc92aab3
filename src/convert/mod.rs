//! The pipeline from a machine to an image, one step a line: [`prepare`] decides, [`build`] makes. Between the two
//! [`build_context`] may let an engine build a part, and decides again.

mod built;
mod image;

pub use built::{BuildFailed, Building, OnTop, Weights, build_context, weigh};
pub use image::assemble;
pub(crate) use image::image_labels;

use crate::arch::Arch;
use crate::diff::{ContentHash, Known, Side, compare};
use crate::distro::Distros;
use crate::error::{Error, HintExt, Result};
use crate::inventory::os::Os;
use crate::inventory::{self, Inventory, secrets};
use crate::jobs;
use crate::layer::{self, Material, Settings};
use crate::oci::{self, Platform};
use crate::path::GuestPath;
use crate::pkgdb;
use crate::plan::document::{self, BaseRef, Document, MachineRef};
use crate::plan::rules::{Profile, Rules, SECRET};
use crate::plan::{Facts, LayerPlan, PackageFact, Plan, Rewritten, image_tree, make, redact};
use crate::progress::Progress;
use crate::source::image::{Contents, ImageOptions, ImageSource};
use crate::source::{Source, Wanted};
use crate::store::{Digest, Store};
use crate::tree::{FileId, Tree};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Which base image to build on.
#[derive(Debug, Clone, Default)]
pub enum BaseChoice {
    /// The one that the distribution's data names for this machine.
    #[default]
    Auto,
    /// None: the image holds everything itself.
    None,
    /// This one.
    Image(oci::Reference),
}

/// What the user asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The base image.
    pub base: BaseChoice,
    /// How much of the machine goes in.
    pub profile: Profile,
    /// Globs that keep what a rule would leave out.
    pub keep: Vec<String>,
    /// Globs that leave out more.
    pub drop: Vec<String>,
    /// Rules of secrets that may go into the image; `all` for every one.
    pub allow_secrets: Vec<String>,
    /// Services that the container runs.
    pub services: Vec<String>,
    /// An edited plan, which decides instead of rules.
    pub plan: Option<Document>,
    /// How layers are written.
    pub layers: Settings,
    /// How images are opened.
    pub images: oci::OpenOptions,
}

impl Options {
    fn allows(&self, rule: &str) -> bool {
        self.allow_secrets.iter().any(|r| r == rule || r == "all")
    }
}

/// A machine, and what is known of its contents without reading them.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// The files.
    pub source: &'a dyn Source,
    /// Names the bytes that the source reads, if a later run can tell that they are the same (`source::machine`).
    pub identity: Option<&'a str>,
}

/// The base image of a conversion.
pub struct Base {
    /// Its files, with manifest, config and layers.
    pub source: ImageSource,
    /// Which, and why.
    pub reference: BaseRef,
}

/// Everything that is decided before the first byte is written.
pub struct Prepared {
    /// What the machine is.
    pub inventory: Inventory,
    /// What the image builds on.
    pub base: Option<Base>,
    /// Every decision.
    pub plan: Plan,
    /// The same for people.
    pub document: Document,
    /// The tree that the image will show.
    pub image: Tree,
    /// What an engine put between the base and the new layers.
    pub on_top: Option<OnTop>,
    /// What the plan was made from, beside the inventory.
    own: Own,
    /// Hashes of the machine's contents, as far as they are known.
    known: Known,
}

/// Looks at the machine, finds its base, compares the two, and plans.
///
/// # Errors
/// If the machine has no operating system, no base image is known for it, or one of them cannot be read.
pub fn prepare(
    machine: Machine<'_>,
    options: &Options,
    store: &Arc<Store>,
    distros: &Distros,
    progress: &dyn Progress,
) -> anyhow::Result<Prepared> {
    let source = machine.source;
    check_allowed(options, distros)?;
    source.prefetch(&inventory::needed(source.tree()));
    let first = inventory::identify(source, distros)?;
    let os = first.os.clone();
    if source.is_moving() {
        // What is planned must be what was read, so all that an image may need is read first.
        let base = find_base(&os, options, store, distros, progress)?;
        let known = settle(source, options, &first, base.as_ref(), distros, progress)?;
        let inventory = inventory::complete(source, distros, first)?;
        let own = Own::find(source, options, &inventory)?;
        return decide(
            machine, options, inventory, own, base, None, known, store, progress,
        );
    }
    // The base is read while everything is found out that does not depend on it.
    let (own, base) = std::thread::scope(|scope| {
        let base = scope.spawn(|| find_base(&os, options, store, distros, progress));
        let own = || -> anyhow::Result<(Own, Inventory)> {
            let inventory = inventory::complete(source, distros, first)?;
            Ok((Own::find(source, options, &inventory)?, inventory))
        };
        let own = own();
        let base = base
            .join()
            .unwrap_or_else(|_| Err(Error::unsupported("the thread that reads the base failed").into()));
        (own, base)
    });
    let ((own, inventory), base) = (own?, base?);
    let known = remembered(machine, store);
    decide(
        machine, options, inventory, own, base, None, known, store, progress,
    )
}

/// Reads what an image of a machine in motion may need: all that no rule leaves out and that the base does not have. Gives the
/// hashes of those contents.
fn settle(
    source: &dyn Source,
    options: &Options,
    inventory: &Inventory,
    base: Option<&Base>,
    distros: &Distros,
    progress: &dyn Progress,
) -> anyhow::Result<Known> {
    let tree = source.tree();
    let rules = Rules::new(options.profile, &options.keep, &options.drop)?;
    let left_out = match &options.plan {
        Some(edited) => edited.left_out(&rules.unsayable(tree))?,
        None => {
            let packages = inventory.packages.as_deref().unwrap_or_default();
            let owners = pkgdb::owners(tree, packages);
            let secrets = secrets::Rules::new(distros)?.find(tree, packages, &owners);
            with_secrets(rules.left_out(tree), &secrets, options)
        }
    };
    let out: HashSet<&GuestPath> = left_out.iter().map(|(path, _)| path).collect();
    let mut hidden: Option<&GuestPath> = None;
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut places: HashMap<FileId, usize> = HashMap::new();
    for (path, node) in tree.iter() {
        // What a directory that is left out holds stands right behind it, but for names that sort between.
        if hidden.is_some_and(|dir| path.is_in(dir)) {
            continue;
        }
        if out.contains(path) {
            hidden = node.is_dir().then_some(path);
            continue;
        }
        let covered = || {
            let mut up = path.parent();
            std::iter::from_fn(|| {
                let at = up.take()?;
                up = at.parent();
                Some(at)
            })
            .any(|dir| out.contains(&dir))
        };
        if !node.is_file() || node.size() == 0 || covered() {
            continue;
        }
        let place = *places.entry(node.id).or_insert_with(|| {
            wanted.push(Wanted {
                id: node.id,
                unless: Vec::new(),
            });
            wanted.len() - 1
        });
        let same = base.and_then(|base| {
            let there = base.source.tree().get(path)?;
            let same_size = there.is_file() && there.size() == node.size();
            base.source.content_hash(there.id).filter(|_| same_size)
        });
        if let (Some(hash), Some(want)) = (same, wanted.get_mut(place)) {
            want.unless.push(hash);
        }
    }
    Ok(source.settle(&wanted, progress)?.unwrap_or_default())
}

/// Compares the machine with what lies below the new layers, the built image `under` or else the base, and plans. On a built
/// image all goes into one layer.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a different thing, and all are needed"
)]
fn decide(
    machine: Machine<'_>,
    options: &Options,
    inventory: Inventory,
    own: Own,
    base: Option<Base>,
    under: Option<&ImageSource>,
    mut known: Known,
    store: &Arc<Store>,
    progress: &dyn Progress,
) -> anyhow::Result<Prepared> {
    let source = machine.source;
    let rules = &own.rules;
    let nothing = Tree::new(Vec::new());
    let below = under.or(base.as_ref().map(|b| &b.source));
    let base_tree = below.map_or(&nothing, |b| b.tree());
    let diff = match below {
        Some(below) => {
            let hashes = known_contents(below);
            let (diff, new) = compare(
                Side {
                    source: below,
                    known: &hashes,
                },
                Side {
                    source,
                    known: &known,
                },
                options.layers.jobs,
                progress,
            );
            known.extend(new);
            diff
        }
        None => crate::diff::Diff::default(),
    };
    let left_out = match &options.plan {
        Some(edited) => {
            // A machine in motion is never what it was.
            let tree = (!source.is_moving()).then_some(own.tree.as_str());
            check_fits(edited, tree, base.as_ref())?;
            edited.left_out(&own.left_out)?
        }
        None => own.left_out.clone(),
    };
    let listed = inventory.packages.as_deref().unwrap_or_default();
    let mut packages = package_facts(listed, base.as_ref(), options.plan.as_ref(), store)?;
    if under.is_some() {
        packages.iter_mut().for_each(|package| package.in_layer = false);
    }
    let owners = &inventory.owners;
    let plan = make(Facts {
        machine: source.tree(),
        base: base_tree,
        diff: &diff,
        left_out,
        ignored: &|path| rules.ignored(path),
        rewritten: own.rewritten.clone(),
        owner: &|path| {
            owners
                .of(path)
                .iter()
                .copied()
                .max_by_key(|i| packages.get(*i).map(|p| !p.in_layer))
        },
        packages: &packages,
        own: &own.changed,
    });
    // The checker makes its own image tree: it trusts nothing of what it checks. Meanwhile the document is written.
    let ignored = |path: &GuestPath| rules.ignored(path);
    let (findings, (image, left_out, layers)) = std::thread::scope(|scope| {
        let check = scope.spawn(|| crate::plan::check(&plan, source.tree(), base_tree, &ignored));
        let (image, _) = image_tree(source.tree(), &plan.left_out, &plan.rewritten);
        let left_out = document::left_out(&plan.left_out, source.tree(), rules);
        let layers = document::layers(&plan, &image);
        let findings = check.join();
        let failed = |_| vec!["the check failed".to_owned()];
        (findings.unwrap_or_else(failed), (image, left_out, layers))
    });
    if let Some(first) = findings.first() {
        let count = findings.len();
        return Err(Error::unsupported(format!(
            "the plan would not give the machine back in {count} places: {first}"
        ))
        .hint("this is a fault of vm2k: please report it with the output of `vm2k plan`")
        .into());
    }
    let document = Document {
        schema: document::SCHEMA.into(),
        machine: MachineRef {
            name: source.name(),
            tree: own.tree.clone(),
        },
        base: base.as_ref().map(|b| b.reference.clone()),
        profile: options.plan.as_ref().map_or(options.profile, |p| p.profile),
        config: match &options.plan {
            Some(edited) => edited.config.clone(),
            None => image::config(&inventory, base.as_ref(), options)?,
        },
        left_out,
        rewritten: document::rewritten(&plan.rewritten),
        unsaid: plan
            .unsaid
            .iter()
            .map(|(path, why)| format!("{path}: {why}"))
            .collect(),
        unchanged: plan.unchanged as u64,
        layers,
    };
    Ok(Prepared {
        inventory,
        base,
        plan,
        document,
        image,
        on_top: None,
        own,
        known,
    })
}

/// What a plan needs to know of the machine alone beside its inventory, whatever lies below the new layers.
struct Own {
    rules: Rules,
    /// Names the machine's tree (`document::tree_id`).
    tree: String,
    /// What stays out by the rules; with an edited plan only what no layer can say.
    left_out: Vec<(GuestPath, String)>,
    rewritten: BTreeMap<GuestPath, Rewritten>,
    /// Changed configuration files.
    changed: HashSet<GuestPath>,
}

impl Own {
    fn find(source: &dyn Source, options: &Options, inventory: &Inventory) -> anyhow::Result<Self> {
        let rules = Rules::new(options.profile, &options.keep, &options.drop)?;
        let left_out = match &options.plan {
            Some(_) => rules.unsayable(source.tree()),
            None => with_secrets(rules.left_out(source.tree()), &inventory.secrets, options),
        };
        let rewritten = match options.allows(redact::RULE) {
            true => BTreeMap::new(),
            false => redact::password_files(source)?,
        };
        let listed = inventory.packages.as_deref().unwrap_or_default();
        let changed = pkgdb::changed_conffiles(source, listed)?.into_iter().collect();
        Ok(Self {
            tree: document::tree_id(source.tree()),
            rules,
            left_out,
            rewritten,
            changed,
        })
    }
}

/// A rule that does not exist would allow nothing: a slip of the pen must not look like a permission.
fn check_allowed(options: &Options, distros: &Distros) -> Result<()> {
    let rules = secrets::Rules::new(distros)?;
    let mut known = rules.names();
    known.extend([redact::RULE, "all"]);
    known.sort_unstable();
    known.dedup();
    match options
        .allow_secrets
        .iter()
        .find(|rule| !known.contains(&rule.as_str()))
    {
        None => Ok(()),
        Some(rule) => Err(
            Error::usage(format!("--allow-secrets {rule}: no rule has this name"))
                .hint(format!("the rules are {}", known.join(", "))),
        ),
    }
}

/// Opens the base image that the options or the distribution's data name.
fn find_base(
    os: &Os,
    options: &Options,
    store: &Arc<Store>,
    distros: &Distros,
    progress: &dyn Progress,
) -> anyhow::Result<Option<Base>> {
    let (reference, reason) = match (&options.base, &options.plan) {
        (_, Some(Document { base: Some(base), .. })) => {
            (oci::Reference::parse(&base.reference)?, base.reason.clone())
        }
        (BaseChoice::None, _) | (_, Some(_)) => return Ok(None),
        (BaseChoice::Image(reference), _) => (reference.clone(), "--base names it".to_owned()),
        (BaseChoice::Auto, None) => {
            let found = distros.base_for(os);
            let Some(reference) = found.reference else {
                return Err(
                    Error::unsupported(format!("no base image is known: {}", found.reason))
                        .hint("name one with --base IMAGE, or use --base none")
                        .into(),
                );
            };
            (oci::Reference::parse_base(&reference)?, found.reason)
        }
    };
    let mut open = options.images.clone();
    open.platform = os.arch.map(platform);
    let image = oci::open(&reference, &open, progress);
    let image = match (&options.base, &options.plan) {
        (BaseChoice::Auto, None) => {
            image.hint("name an image on this machine with --base oci:DIR:TAG, or use --base none")?
        }
        _ => image?,
    };
    let digest = image.manifest_digest.to_string();
    let read = ImageOptions {
        cached: true,
        keep: Contents::Packages,
        import: true,
    };
    let source = ImageSource::open(image, Arc::clone(store), read, progress)?;
    Ok(Some(Base {
        source,
        reference: BaseRef {
            reference: reference.to_string(),
            digest,
            reason,
        },
    }))
}

fn platform(arch: Arch) -> Platform {
    Platform {
        architecture: arch.architecture.to_owned(),
        variant: arch.variant.map(str::to_owned),
    }
}

/// The content hashes of all files of an image: they are known without reading.
pub fn known_contents(image: &ImageSource) -> Known {
    let files = image.tree().iter().filter(|(_, node)| node.is_file());
    files
        .filter_map(|(_, node)| Some((node.id, image.content_hash(node.id)?)))
        .collect()
}

/// An edited plan fits only the machine and the base that it was made for.
fn check_fits(edited: &Document, tree: Option<&str>, base: Option<&Base>) -> Result<()> {
    let stale = |what: &str| {
        Err(Error::refused(format!("{what} changed since the plan was made"))
            .hint("make a new one with `vm2k plan`"))
    };
    if tree.is_some_and(|tree| edited.machine.tree != tree) {
        return stale("the machine");
    }
    if edited.base.as_ref().map(|b| b.digest.as_str()) != base.map(|b| b.reference.digest.as_str()) {
        return stale("the base image");
    }
    Ok(())
}

/// Adds the secrets that may not go into an image to what the rules leave out.
fn with_secrets(
    left_out: Vec<(GuestPath, String)>,
    secrets: &[secrets::Secret],
    options: &Options,
) -> Vec<(GuestPath, String)> {
    let mut all: BTreeMap<GuestPath, String> = left_out.into_iter().collect();
    for secret in secrets
        .iter()
        .filter(|s| !options.allows(&s.rule) && !redact::handles(&s.path))
    {
        let mut up = Some(secret.path.clone());
        let covered = std::iter::from_fn(|| {
            let at = up.take()?;
            up = at.parent();
            Some(at)
        })
        .any(|p| all.contains_key(&p));
        if !covered {
            all.insert(secret.path.clone(), format!("{SECRET}{}", secret.rule));
        }
    }
    all.into_iter().collect()
}

/// The name of the cache of the labels of a base image's packages.
const BASE_PACKAGES: &str = "base-packages-1";

/// The labels of the base's packages, remembered by the digest of its manifest.
fn base_packages(base: &Base, store: &Store) -> anyhow::Result<HashSet<String>> {
    if let Some(labels) = store.cache_get(BASE_PACKAGES, &base.reference.digest) {
        return Ok(serde_json::from_slice(&labels)?);
    }
    let labels: HashSet<String> = match pkgdb::read(&base.source, None)? {
        Some((_, listing)) => listing.packages.iter().map(label).collect(),
        None => HashSet::new(),
    };
    store.cache_put(
        BASE_PACKAGES,
        &base.reference.digest,
        &serde_json::to_vec(&labels)?,
    )?;
    Ok(labels)
}

/// Which packages get a place in the package layer: those that the base lacks or has in another version.
fn package_facts(
    packages: &[pkgdb::Package],
    base: Option<&Base>,
    edited: Option<&Document>,
    store: &Store,
) -> anyhow::Result<Vec<PackageFact>> {
    let in_base = match base {
        Some(base) => base_packages(base, store)?,
        None => HashSet::new(),
    };
    let chosen = edited.map(Document::packages);
    let fact = |package: &pkgdb::Package| {
        let label = label(package);
        let wanted = chosen.as_ref().is_none_or(|c| c.contains(label.as_str()));
        PackageFact {
            in_layer: wanted && !in_base.contains(&label),
            label,
        }
    };
    Ok(packages.iter().map(fact).collect())
}

/// Name, version and architecture as people write them.
fn label(package: &pkgdb::Package) -> String {
    let arch = package.arch.as_deref().unwrap_or("");
    format!("{} {} {arch}", package.name, package.full_version())
        .trim_end()
        .to_owned()
}

/// The name of the cache of content hashes by disk identity.
const CONTENTS: &str = "contents-1";
/// The name of the cache of layers by recipe.
const RECIPES: &str = "recipe-1";

/// Content hashes from an earlier conversion of the very same disk files.
fn remembered(machine: Machine<'_>, store: &Store) -> Known {
    let Some(bytes) = machine.identity.and_then(|id| store.cache_get(CONTENTS, id)) else {
        return Known::new();
    };
    let (entries, _) = bytes.as_chunks::<44>();
    entries
        .iter()
        .filter_map(|entry| {
            let id = FileId {
                fs: crate::bytes::le32(entry, 0)?,
                ino: crate::bytes::le64(entry, 4)?,
            };
            Some((id, crate::bytes::array(entry, 12)?))
        })
        .collect()
}

fn remember(machine: Machine<'_>, known: &Known, store: &Store) -> Result<()> {
    let Some(identity) = machine.identity else {
        return Ok(());
    };
    let mut ids: Vec<(&FileId, &ContentHash)> = known.iter().collect();
    ids.sort_unstable();
    let mut bytes = Vec::with_capacity(ids.len() * 44);
    for (id, hash) in ids {
        bytes.extend_from_slice(&id.fs.to_le_bytes());
        bytes.extend_from_slice(&id.ino.to_le_bytes());
        bytes.extend_from_slice(hash);
    }
    store.cache_put(CONTENTS, identity, &bytes)
}

/// A layer that lies in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BuiltLayer {
    /// `packages` or `rest`.
    pub name: String,
    /// Digest of the compressed blob.
    pub digest: Digest,
    /// Bytes of the compressed blob.
    pub size: u64,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// True if an earlier conversion had made it.
    #[serde(skip)]
    pub reused: bool,
}

/// Packs the layers of a plan into the store. `linked` says that an output will link to the store's blobs, so that the disk
/// may begin to write them at once.
///
/// # Errors
/// If the machine cannot be read or the store cannot be written.
pub fn build(
    machine: Machine<'_>,
    prepared: &mut Prepared,
    settings: &Settings,
    linked: bool,
    store: &Store,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<BuiltLayer>> {
    let material = Material {
        source: machine.source,
        image: &prepared.image,
        rewritten: &prepared.plan.rewritten,
    };
    let recipe = |plan: &LayerPlan, known: &Known| {
        layer::recipe(&prepared.image, &prepared.plan.rewritten, plan, settings, known)
    };
    let earlier = |plan: &LayerPlan| -> Option<BuiltLayer> {
        let value = store.cache_get(RECIPES, &recipe(plan, &prepared.known)?)?;
        let found: BuiltLayer = serde_json::from_slice(&value).ok()?;
        store.verify(&found.digest, found.size).then_some(BuiltLayer {
            reused: true,
            ..found
        })
    };
    let pack = |plan: &LayerPlan| -> anyhow::Result<(BuiltLayer, Known)> {
        if let Some(layer) = earlier(plan) {
            return Ok((layer, Known::new()));
        }
        let total = layer::tar_size(&prepared.image, plan, settings.clamp);
        let stage = progress.stage(&format!("packing the {} layer", plan.name), Some(total));
        let mut blob = store.writer()?;
        if linked {
            blob.sync_early();
        }
        let packed = layer::pack(material, plan, settings, &mut blob, &*stage)?;
        let (digest, size) = blob.finish()?;
        let layer = BuiltLayer {
            name: plan.name.clone(),
            digest,
            size,
            diff_id: packed.diff_id,
            tar_size: packed.size,
            reused: false,
        };
        Ok((layer, packed.hashes))
    };
    // Two at once: no station of one line keeps all cores busy.
    let packed = jobs::map(settings.jobs.min(2), &prepared.plan.layers, pack)?;
    let mut known = std::mem::take(&mut prepared.known);
    let mut built = Vec::with_capacity(packed.len());
    for (plan, (layer, hashes)) in prepared.plan.layers.iter().zip(packed) {
        known.extend(hashes);
        let made = (!layer.reused).then(|| recipe(plan, &known));
        if let Some(recipe) = made.flatten() {
            store.cache_put(RECIPES, &recipe, &serde_json::to_vec(&layer)?)?;
        }
        built.push(layer);
    }
    if built.iter().any(|layer| !layer.reused) {
        remember(machine, &known, store)?;
    }
    prepared.known = known;
    Ok(built)
}
