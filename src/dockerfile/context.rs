//! From a machine that [`crate::convert::prepare`] looked at to a build context.

use super::config::{configure, from, repositories, summary};
use super::directory::{Context, check};
use super::ladder::{Role, Rung};
use super::rest::rest_layer;
use super::supply::{self, Supply};
use super::words::{counted, groups, pair, wrapped};
use super::{Options, Recipe, Rest, remove, render, sources, tool_of};
use crate::calendar::Civil;
use crate::convert::{self, Machine, Prepared};
use crate::distro::{Distros, MachineFacts, PackageTool};
use crate::error::{Error, Escaped};
use crate::graph::{self, Aside, Proved, Under};
use crate::layer::compress::Compression;
use crate::layer::{self, Material, Settings};
use crate::pkgdb::{self, Database, Package};
use crate::plan::note::{LABEL, Note};
use crate::progress::Progress;
use crate::repository::Answer;
use crate::source::Source;
use crate::store::Store;
use crate::tree::Tree;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// The `schema` of `report.json`.
pub const SCHEMA: &str = "vm2k.dockerfile/1";

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
    /// What went into the rest layer while a repository was silent, which may serve it.
    pub skipped: Vec<String>,
    /// What a Dockerfile cannot say.
    pub unsaid: Vec<String>,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Report {
    /// True if nothing was skipped, and the Dockerfile says all.
    pub fn is_clean(&self) -> bool {
        self.unsaid.is_empty() && self.skipped.is_empty()
    }

    /// The repositories that did not answer, each with the reason.
    pub fn silent(&self) -> impl Iterator<Item = (&str, &str)> {
        let answers = self.repositories.iter().chain(&self.archives);
        answers.filter_map(|a| Some((a.repository.as_str(), a.failure.as_deref()?)))
    }
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
    // The base must have the package manager that the distribution's commands call.
    let runs = |t: &PackageTool<'_>| match (base, t.install.map(tool_of)) {
        (Some(base), Some(program)) => program.is_empty() || remove::has_program(base.tree(), program),
        _ => false,
    };
    let tool = tool.filter(|t| inventory.packages.is_some() && runs(t));
    let database = inventory.database.and_then(Database::named);
    let native = match database {
        Some(database) => database.native(source, packages)?,
        None => None,
    };
    let facts = MachineFacts {
        version_id: inventory.os.version_id.as_deref(),
        codename: inventory.os.codename.as_deref(),
        arch: native.as_deref(),
    };
    let files = match &tool {
        Some(tool) => sources::files(source, tool, &inventory.secrets, base)?,
        None => Vec::new(),
    };
    let release = matched.release.as_ref().and_then(|r| r.version.as_deref());
    let release = release.filter(|v| *v != "*").or(facts.version_id);
    let mut variables = sources::variables(source, release, native.as_deref())?;
    if let Some(Ok(Some(url))) = tool.as_ref().map(|t| t.mirror_list(&facts)) {
        variables.insert("MIRRORLIST".to_owned(), url);
    }
    let Proved { graph, pruned } = match database {
        Some(database) => graph::find(packages, database, Under::Base(&base_packages), distros, distro)?,
        None => Proved::default(),
    };
    let roots: Vec<usize> = match &options.roots {
        Some(roots) => roots.clone(),
        None => {
            let mut roots: Vec<usize> = pruned.roots.iter().map(|r| r.package).collect();
            roots.sort_unstable();
            roots
        }
    };
    // What nothing needs any more is installed all the same: its files are the machine's.
    let apart: HashSet<usize> = pruned
        .apart
        .iter()
        .filter(|a| !matches!(a.why, Aside::Orphan))
        .map(|a| a.package)
        .collect();
    let stage = progress.stage("asking repositories", None);
    let supply = supply::decide(
        &supply::Facts {
            source,
            base,
            packages,
            graph: &graph,
            base_packages: &base_packages,
            roots: &roots,
            tool: tool.as_ref(),
            machine: facts,
            apart: &|index| apart.contains(&index),
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
        recipe.groups = groups(
            tool,
            packages,
            &graph,
            &supply.choices,
            &roots,
            &supply.keys,
            &names,
        )?;
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
        let note = Note::new(&prepared.plan, conversion.layers.clamp).encode()?;
        match pair(LABEL, &note) {
            Some(label) => recipe.labels.push(label),
            None => notes.push(format!(
                "no label {LABEL}: the plan is too long for it, so that `vm2k verify` lists what is left out as missing"
            )),
        }
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
        skipped: supply.skipped,
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
