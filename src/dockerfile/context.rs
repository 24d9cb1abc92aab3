//! From a machine that [`crate::convert::prepare`] looked at to a build context.

use super::directory::{Context, check};
use super::ladder::{Choice, Role, Rung};
use super::supply::{self, Supply};
use super::words::{counted, groups, pair, wrapped};
use super::{From, Recipe, Repositories, Rest, Runs, remove, render, sources, tool_of};
use crate::calendar::Civil;
use crate::convert::{self, Machine, Prepared};
use crate::diff::{Change, Diff, Fields};
use crate::distro::{Distros, MachineFacts, PackageTool};
use crate::error::{Error, Escaped};
use crate::layer::compress::Compression;
use crate::layer::{self, Material, Settings};
use crate::oci::Reference;
use crate::path::GuestPath;
use crate::pkgdb::{self, Package};
use crate::plan::rules::Rules;
use crate::plan::{Action, Facts, LayerPlan, PackageFact, Rewritten, Step, make};
use crate::progress::Progress;
use crate::repository::Answer;
use crate::source::Source;
use crate::store::Store;
use crate::tree::Tree;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

/// The `schema` of `report.json`.
pub const SCHEMA: &str = "vm2k.dockerfile/1";

/// What the user asks for, besides what a conversion takes.
#[derive(Debug, Clone)]
pub struct Options {
    /// True for a context that is whole by itself: with the rest layer, and with what must be deleted before it. False where
    /// the caller compares the built image with the machine and adds a layer.
    pub rest: bool,
    /// The packages that somebody asked for, as indexes into the inventory's list; `None`: those that the database marks.
    pub roots: Option<Vec<usize>>,
    /// Ask no repository: every version is taken to be served.
    pub offline: bool,
    /// Replacements of the beginning of repositories' URLs, for asking and for building.
    pub mirrors: Vec<(String, String)>,
    /// What stands behind `FROM`; `None`: the base's name with its digest, or a name of this machine if no registry has it.
    pub from: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rest: true,
            roots: None,
            offline: false,
            mirrors: Vec::new(),
            from: None,
        }
    }
}

/// One package in the report.
#[derive(Debug, Clone, Serialize)]
pub struct PackageReport {
    /// Name.
    pub name: String,
    /// Version as the database writes it.
    pub version: String,
    /// Architecture.
    pub arch: Option<String>,
    /// Where it comes from.
    pub rung: Rung,
    /// What it is for.
    pub role: Role,
    /// True if a command names it with its version.
    pub named: bool,
    /// True if a repository was seen to serve it.
    pub checked: bool,
    /// The repository.
    pub repository: Option<String>,
    /// Why it stands on this rung.
    pub why: String,
}

/// A package of the base that the machine lacks.
#[derive(Debug, Clone, Serialize)]
pub struct RemovedPackage {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// True if a command removes it; false if only its files are deleted.
    pub named: bool,
}

/// The rest layer in the report.
#[derive(Debug, Clone, Serialize)]
pub struct RestReport {
    /// Bytes of the tar.
    pub size: u64,
    /// SHA-256 of the tar.
    pub digest: String,
    /// Entries.
    pub entries: usize,
    /// Paths that are deleted before it.
    pub deleted: usize,
}

/// What [`write_context`] did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`SCHEMA`]; the first field, by which an earlier context is known.
    pub schema: &'static str,
    /// The machine.
    pub machine: String,
    /// What stands behind `FROM`.
    pub from: String,
    /// The base; `None` for none.
    pub base: Option<crate::plan::document::BaseRef>,
    /// The package tool; empty for none.
    pub tool: String,
    /// How many packages stand on each rung.
    pub rungs: BTreeMap<Rung, usize>,
    /// What the machine's repositories said; empty if they were not asked.
    pub repositories: Vec<Answer>,
    /// What their archives said.
    pub archives: Vec<Answer>,
    /// The repository files that the build uses.
    pub repository_files: Vec<String>,
    /// Every package of the machine.
    pub packages: Vec<PackageReport>,
    /// Packages of the base that the machine lacks.
    pub removed: Vec<RemovedPackage>,
    /// The rest layer; `None` if it was not asked for.
    pub rest: Option<RestReport>,
    /// What a Dockerfile cannot say.
    pub unsaid: Vec<String>,
    /// What people should know.
    pub notes: Vec<String>,
}

/// Writes the build context of a prepared machine to `dir`, whole or not at all, and says what it did.
///
/// With [`Options::rest`] the context is whole by itself: `docker build DIR`. Without it the Dockerfile ends with the
/// package manager's work and the config; its caller compares the built image's tree with [`Prepared::image`] and adds what
/// differs as the last layer. This signature is relied on by others.
///
/// # Errors
/// [`Error::Refused`] if `dir` holds what is not an earlier context, [`Error::Network`] if packages are wanted and no
/// repository answers, and what reading the machine fails with.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a different thing, and all are needed"
)]
pub fn write_context(
    dir: &Path,
    machine: Machine<'_>,
    prepared: &Prepared,
    conversion: &convert::Options,
    options: &Options,
    distros: &Distros,
    store: &Arc<Store>,
    progress: &dyn Progress,
) -> anyhow::Result<Report> {
    check(dir)?;
    let source = machine.source;
    let inventory = &prepared.inventory;
    let packages = inventory.packages.as_deref().unwrap_or_default();
    let base = prepared.base.as_ref().map(|b| &b.source);
    let base_packages: Vec<Package> = match base {
        Some(base) => pkgdb::read(base, inventory.database)?.map_or_else(Vec::new, |(_, l)| l.packages),
        None => Vec::new(),
    };
    let matched = distros.base_for(&inventory.os);
    let id = matched.distro.as_deref().or(inventory.os.distro.as_deref());
    let distro = id.and_then(|id| distros.get(id));
    let tool = distro.map(|d| distros.tool(d, matched.release.as_deref()));
    let tool = tool.filter(|t| base.is_some() && t.install.is_some() && inventory.packages.is_some());
    let native = native(source, inventory.database, packages);
    let facts = MachineFacts {
        version_id: inventory.os.version_id.as_deref(),
        codename: inventory.os.codename.as_deref(),
        arch: native.as_deref(),
    };
    let apart = distro
        .map(|d| distros.collected(d, |d| &d.not_in_containers))
        .unwrap_or_default();
    let apart = globs(&apart);
    let files = match &tool {
        Some(tool) => sources::files(source, tool, &inventory.secrets, base)?,
        None => Vec::new(),
    };
    let release = matched.release.as_ref().and_then(|r| r.version.as_deref());
    let release = release.filter(|v| *v != "*").or(facts.version_id);
    let variables = sources::variables(source, release, native.as_deref())?;
    let roots: Vec<usize> = match &options.roots {
        Some(roots) => roots.clone(),
        None => {
            let marked = packages
                .iter()
                .enumerate()
                .filter(|(_, p)| p.manual == Some(true));
            marked.map(|(i, _)| i).collect()
        }
    };
    let stage = progress.stage("asking repositories", None);
    let supply = supply::decide(
        &supply::Facts {
            source,
            base,
            packages,
            base_packages: &base_packages,
            roots: &roots,
            tool: tool.as_ref(),
            machine: facts,
            apart: &|p| apart.is_match(&p.name),
            files: &files,
            variables: &variables,
            mirrors: &options.mirrors,
            day: day(packages, source.tree()),
        },
        Some(store).filter(|_| !options.offline),
    )?;
    drop(stage);
    let mut unsaid = Vec::new();
    let mut notes = supply.notes.clone();
    let removed = removed(packages, &base_packages, tool.as_ref());
    let mut recipe = Recipe {
        tool: tool
            .as_ref()
            .and_then(|t| t.install)
            .map_or_else(String::new, |install| tool_of(install).to_owned()),
        summary: summary(prepared, packages, &supply),
        base: from(prepared, options),
        ..Recipe::default()
    };
    if let Some(tool) = &tool {
        let names: Vec<String> = removed.iter().filter_map(|(_, word)| word.clone()).collect();
        recipe.groups = groups(tool, packages, &supply.choices, &roots, &supply.keys, &names)?;
    }
    let installs = supply
        .choices
        .iter()
        .any(|c| matches!(c.rung, Rung::Live | Rung::Archive));
    if installs {
        recipe.repositories = repositories(&supply);
    }
    configure(&mut recipe, prepared, &mut unsaid);
    for file in files.iter().filter(|f| f.redacted) {
        notes.push(format!("{}: credentials were taken out", file.path));
    }

    let context = Context::create(dir)?;
    if recipe.repositories.as_ref().is_some_and(|r| r.copy) {
        for (path, content) in &supply.files {
            use std::os::unix::ffi::OsStrExt;
            let relative = std::ffi::OsStr::from_bytes(path.relative());
            context.write(&Path::new("repositories").join(relative), content)?;
        }
    }
    let mut rest = None;
    if options.rest {
        let material = Material {
            source,
            image: &prepared.image,
            rewritten: &prepared.plan.rewritten,
        };
        let planned = rest_layer(source, prepared, conversion, &supply, &files, installs)?;
        let lists = base.is_some_and(|b| remove::has_program(b.tree(), "xargs"));
        let (deletions, list, left) = remove::commands(&planned.deleted, lists);
        recipe.deletions = deletions;
        for path in left {
            unsaid.push(format!(
                "{path}: its name is no text, so that nothing deletes it from the base"
            ));
        }
        if let Some(list) = list {
            context.write(Path::new(remove::LIST), &list)?;
        }
        let settings = Settings {
            compression: Compression::None,
            ..conversion.layers
        };
        let mut image = None;
        if planned.rewritten.len() > prepared.plan.rewritten.len() {
            let (tree, _) =
                crate::plan::image_tree(source.tree(), &prepared.plan.left_out, &planned.rewritten);
            image = Some(tree);
        }
        let material = Material {
            image: image.as_ref().unwrap_or(material.image),
            rewritten: &planned.rewritten,
            ..material
        };
        let total = layer::tar_size(material.image, &planned.layer, settings.clamp);
        let stage = progress.stage("packing the rest layer", Some(total));
        let path = context.path("rest.tar");
        let io = |e| Error::io(format!("writing {}", dir.join("rest.tar").display()), e);
        let mut file = std::fs::File::create(&path).map_err(io)?;
        let packed = layer::pack(material, &planned.layer, &settings, &mut file, &*stage)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(io)?;
        file.sync_all().map_err(io)?;
        let files_of = supply
            .choices
            .iter()
            .filter(|c| matches!(c.rung, Rung::Rest))
            .count();
        let mut why =
            "All that no package brings: configuration, data, and what was changed since it was installed"
                .to_owned();
        if files_of > 0 {
            why.push_str(&format!(
                "; and the files of {} that no repository serves (packages.tsv names them)",
                counted(files_of, "package")
            ));
        }
        recipe.rest = Some(Rest {
            why: wrapped(&format!("{why}.")),
        });
        rest = Some(RestReport {
            size: packed.size,
            digest: packed.diff_id.to_string(),
            entries: planned.layer.steps.len(),
            deleted: planned.deleted.len(),
        });
    }
    let mut rungs: BTreeMap<Rung, usize> = BTreeMap::new();
    for choice in &supply.choices {
        *rungs.entry(choice.rung).or_default() += 1;
    }
    let report = Report {
        schema: SCHEMA,
        machine: prepared.document.machine.name.clone(),
        from: recipe.base.from.clone(),
        base: prepared.document.base.clone(),
        tool: recipe.tool.clone(),
        rungs,
        packages: package_reports(packages, &supply),
        removed: removed
            .iter()
            .map(|(p, word)| RemovedPackage {
                name: p.name.clone(),
                version: p.full_version(),
                named: word.is_some(),
            })
            .collect(),
        repository_files: supply.files.iter().map(|(p, _)| p.to_string()).collect(),
        repositories: supply.live,
        archives: supply.archive,
        rest,
        unsaid,
        notes,
    };
    context.write(Path::new("Dockerfile"), render(&recipe)?.as_bytes())?;
    context.write(Path::new("packages.tsv"), table(&report.packages).as_bytes())?;
    let mut json = serde_json::to_vec_pretty(&report)?;
    json.push(b'\n');
    context.write(Path::new("report.json"), &json)?;
    context.finish()?;
    Ok(report)
}

fn globs(patterns: &[&str]) -> globset::GlobSet {
    let mut set = globset::GlobSetBuilder::new();
    for glob in patterns.iter().filter_map(|p| globset::Glob::new(p).ok()) {
        set.add(glob);
    }
    set.build().unwrap_or_default()
}

/// The native architecture in the package database's words: what the database says, else what most packages are of.
fn native(source: &dyn Source, database: Option<&str>, packages: &[Package]) -> Option<String> {
    if database == Some(pkgdb::dpkg::NAME)
        && let Ok(Some(arch)) = pkgdb::dpkg::native_arch(source, packages)
    {
        return Some(arch);
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for arch in packages.iter().filter_map(|p| p.arch.as_deref()) {
        if !matches!(arch, "all" | "noarch" | "any" | "(none)") {
            *counts.entry(arch).or_default() += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|(_, n)| *n);
    most.map(|(arch, _)| arch.to_owned())
}

/// The day of the last change of packages, ISO 8601: of the last installation, else of the database's files.
fn day(packages: &[Package], tree: &Tree) -> Option<String> {
    let installed = packages.iter().filter_map(|p| p.installed_at).max();
    let files = tree
        .iter()
        .filter(|(path, node)| node.is_file() && pkgdb::is_database_file(path));
    let last = installed.or_else(|| files.map(|(_, node)| node.mtime.sec).max())?;
    Some(Civil::of(last).date()).filter(|_| last > 0)
}

/// Packages of the base whose name the machine lacks, with the word that removes them; none where the system cannot do
/// without it, and its files are deleted only.
fn removed<'a>(
    packages: &[Package],
    base: &'a [Package],
    tool: Option<&PackageTool<'_>>,
) -> Vec<(&'a Package, Option<String>)> {
    let Some(tool) = tool else { return Vec::new() };
    let names: HashSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    let gone = base.iter().filter(|p| !names.contains(p.name.as_str()));
    gone.map(|p| {
        let real = !p.essential && p.arch.as_deref().is_some_and(|a| a != "(none)");
        (
            p,
            tool.name(&p.name).ok().filter(|_| real && tool.remove.is_some()),
        )
    })
    .collect()
}

fn from(prepared: &Prepared, options: &Options) -> From {
    let Some(base) = &prepared.base else {
        return From {
            from: "scratch".into(),
            why: wrapped("No base image: the rest layer is all there is."),
            not_root: false,
        };
    };
    let user = base
        .source
        .image()
        .config
        .config()
        .as_ref()
        .and_then(|c| c.user().clone());
    let digest = &base.reference.digest;
    let mut why = wrapped(&format!("{}.", Escaped(base.reference.reason.as_bytes())));
    let from = match (&options.from, Reference::parse(&base.reference.reference)) {
        (Some(from), _) => from.clone(),
        (None, Ok(Reference::Registry(name))) => {
            if let Some(tag) = &name.tag {
                why = wrapped(&format!("{} As of this digest, tag {tag}.", why.join(" ")));
            }
            format!("{}/{}@{digest}", name.registry, name.repository)
        }
        _ => {
            let hex: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
            let name = format!("localhost/vm2k-base:{hex}");
            why.extend(wrapped(&format!(
                "No registry has it. Load it with: skopeo copy {} docker-daemon:{name} (or containers-storage:{name})",
                Escaped(base.reference.reference.as_bytes())
            )));
            name
        }
    };
    From {
        from,
        why,
        not_root: user.is_some_and(|u| !matches!(u.as_str(), "" | "root" | "0" | "root:root" | "0:0")),
    }
}

fn summary(prepared: &Prepared, packages: &[Package], supply: &Supply) -> Vec<String> {
    let os = &prepared.inventory.os;
    let arch = os.arch.map_or_else(String::new, |a| format!(", {a}"));
    let name = prepared.inventory.hostname.as_deref().unwrap_or("unnamed");
    let mut lines = vec![format!(
        "Machine: {}, {}{arch}.",
        Escaped(name.as_bytes()),
        os.describe()
    )];
    let count = |rung: Rung| supply.choices.iter().filter(|c| c.rung == rung).count();
    let parts = [
        (Rung::Base, "as the base has them"),
        (Rung::Live, "from the machine's repositories"),
        (Rung::Archive, "from their archive"),
        (Rung::Rest, "as files"),
        (Rung::Apart, "left out, because no container needs them"),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(rung, _)| count(*rung) > 0)
        .map(|(rung, what)| format!("{} {what}", count(rung)))
        .collect();
    if !packages.is_empty() {
        lines.extend(wrapped(&format!(
            "{}: {}. packages.tsv says which and why.",
            counted(packages.len(), "package"),
            parts.join(", ")
        )));
    }
    lines
}

fn repositories(supply: &Supply) -> Option<Repositories> {
    if supply.files.is_empty() && supply.remove.is_empty() {
        return None;
    }
    let text = |path: &GuestPath| std::str::from_utf8(path.as_bytes()).ok().map(str::to_owned);
    let removed: Vec<String> = supply.remove.iter().filter_map(text).collect();
    let mut command = Vec::new();
    if !removed.is_empty() {
        command.extend(["rm", "-f", "--"].map(str::to_owned));
        command.extend(removed);
    }
    Some(Repositories {
        why: wrapped(match supply.from_archive {
            true => {
                "Repositories: the archive of the release, for what the mirrors serve no longer, and the machine's own."
            }
            false => "The machine's own repositories and keys, where they are not those of the base.",
        }),
        remove: command,
        copy: !supply.files.is_empty(),
    })
}

/// Labels, environment, user, directory and command, as `convert` decides them.
fn configure(recipe: &mut Recipe, prepared: &Prepared, unsaid: &mut Vec<String>) {
    let config = &prepared.document.config;
    let base = prepared
        .base
        .as_ref()
        .and_then(|b| b.source.image().config.config().clone());
    let base_env = base.as_ref().and_then(|c| c.env().clone()).unwrap_or_default();
    for (name, value) in convert::image_labels(prepared) {
        match pair(&name, &value) {
            Some(pair) => recipe.labels.push(pair),
            None => unsaid.push(format!("label {name}: its value is no text of one line")),
        }
    }
    for variable in config.env.iter().filter(|v| !base_env.contains(v)) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        match pair(name, value) {
            Some(pair) => recipe.env.push(pair),
            None => unsaid.push(format!(
                "variable {}: no text of one line",
                Escaped(name.as_bytes())
            )),
        }
    }
    let base_text = |get: fn(&oci_spec::image::Config) -> &Option<String>| {
        base.as_ref().and_then(|c| get(c).clone()).unwrap_or_default()
    };
    let base_dir = base_text(oci_spec::image::Config::working_dir);
    if config.working_dir != base_dir {
        let dir = if config.working_dir.is_empty() {
            "/"
        } else {
            &config.working_dir
        };
        match dir.contains(char::is_control) {
            false => recipe.working_dir = Some(dir.to_owned()),
            true => unsaid.push("the working directory: no text of one line".into()),
        }
    }
    let base_user = base_text(oci_spec::image::Config::user);
    if !config.user.is_empty() && (config.user != base_user || recipe.base.not_root) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-:".contains(c);
        match config.user.chars().all(plain) && !config.user.starts_with(['-', ':']) {
            true => recipe.user = Some(config.user.clone()),
            false => unsaid.push(format!("user {}: not a name", Escaped(config.user.as_bytes()))),
        }
    }
    let base_list = |get: fn(&oci_spec::image::Config) -> &Option<Vec<String>>| {
        base.as_ref().and_then(|c| get(c).clone()).unwrap_or_default()
    };
    let entrypoint = base_list(oci_spec::image::Config::entrypoint);
    if config.entrypoint != entrypoint || config.cmd != base_list(oci_spec::image::Config::cmd) {
        let services: Vec<&str> = prepared
            .inventory
            .applications()
            .map(|s| s.name.as_str())
            .collect();
        recipe.runs = Some(Runs {
            why: match services.as_slice() {
                [one] => format!("The machine's service {one}."),
                _ => String::new(),
            },
            entrypoint_set: config.entrypoint != entrypoint,
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
        });
    }
}

/// What goes into the rest layer, and what is deleted before.
struct RestPlan {
    layer: LayerPlan,
    deleted: Vec<GuestPath>,
    rewritten: BTreeMap<GuestPath, Rewritten>,
}

/// Plans anew with the ladder's packages in place of the base's, and keeps of it what no package brings.
fn rest_layer(
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

fn package_reports(packages: &[Package], supply: &Supply) -> Vec<PackageReport> {
    let both = packages.iter().zip(&supply.choices);
    both.map(|(package, choice)| PackageReport {
        name: package.name.clone(),
        version: package.full_version(),
        arch: package.arch.clone(),
        rung: choice.rung,
        role: choice.role,
        named: choice.named,
        checked: choice.checked,
        repository: supply.repository(choice).map(str::to_owned),
        why: choice.why.clone(),
    })
    .collect()
}

/// `packages.tsv`: for people and for awk(1).
fn table(packages: &[PackageReport]) -> String {
    let mut text = "name\tversion\tarch\trung\trole\twhy\n".to_owned();
    for p in packages {
        let word = |value: serde_json::Result<serde_json::Value>| {
            value
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let fields = [
            p.name.clone(),
            p.version.clone(),
            p.arch.clone().unwrap_or_default(),
            word(serde_json::to_value(p.rung)),
            word(serde_json::to_value(p.role)),
            p.why.clone(),
        ];
        let shown = fields.map(|f| Escaped(f.as_bytes()).to_string());
        text.push_str(&shown.join("\t"));
        text.push('\n');
    }
    text
}
