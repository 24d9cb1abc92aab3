//! What a Dockerfile says besides its commands: the base, the machine in words, repositories, labels and config.

use super::ladder::Rung;
use super::supply::Supply;
use super::words::{counted, pair, wrapped};
use super::{From, Options, Recipe, Repositories, Runs};
use crate::convert::{self, Prepared};
use crate::error::Escaped;
use crate::oci::Reference;
use crate::path::GuestPath;
use crate::pkgdb::Package;

/// `FROM`, and why.
pub(super) fn from(prepared: &Prepared, options: &Options) -> From {
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
    let mut why = wrapped(&format!(
        "The base: {}.",
        Escaped(base.reference.reason.as_bytes())
    ));
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

/// The machine in lines of comment.
pub(super) fn summary(prepared: &Prepared, packages: &[Package], supply: &Supply) -> Vec<String> {
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

/// Repositories and keys, if the base's own do not do.
pub(super) fn repositories(supply: &Supply) -> Option<Repositories> {
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
pub(super) fn configure(recipe: &mut Recipe, prepared: &Prepared, unsaid: &mut Vec<String>) {
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
