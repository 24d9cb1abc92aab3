//! The image around the layers: what the container runs, config and manifest.

use super::{Base, BuiltLayer, Options, Prepared, platform};
use crate::error::{Error, Result};
use crate::inventory::{self, Inventory, ServiceChoice};
use crate::layer::Settings;
use crate::oci::{self, NewConfig, NewHistory, NewImage};
use crate::plan::document::ConfigDoc;
use crate::plan::note::{LABEL, Note};
use crate::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the container runs: a service of the machine, else what the base image runs.
pub(super) fn config(inventory: &Inventory, base: Option<&Base>, options: &Options) -> Result<ConfigDoc> {
    let service = match options.services.as_slice() {
        [] => inventory::default_service(inventory),
        [name] => Some(inventory::service(inventory, name)?),
        _ => {
            return Err(
                Error::usage("an image runs one service, and --service names several")
                    .hint("make an image for each of them"),
            );
        }
    };
    let base = base.and_then(|b| b.source.image().config.config().clone());
    let inherited = base.as_ref();
    let env = match inherited.and_then(|c| c.env().clone()) {
        Some(env) => env,
        None => vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
    };
    if let Some(ServiceChoice {
        cmd,
        user,
        working_directory,
        env: own,
        ..
    }) = service
    {
        return Ok(ConfigDoc {
            entrypoint: Vec::new(),
            cmd,
            env: env.into_iter().chain(own).collect(),
            user: user.unwrap_or_default(),
            working_dir: working_directory.unwrap_or_default(),
        });
    }
    let entrypoint = inherited.and_then(|c| c.entrypoint().clone()).unwrap_or_default();
    let cmd = inherited.and_then(|c| c.cmd().clone()).unwrap_or_default();
    let cmd = if cmd.is_empty() && entrypoint.is_empty() {
        vec![inventory.shell.clone()]
    } else {
        cmd
    };
    Ok(ConfigDoc {
        entrypoint,
        cmd,
        env,
        user: inherited.and_then(|c| c.user().clone()).unwrap_or_default(),
        working_dir: inherited
            .and_then(|c| c.working_dir().clone())
            .unwrap_or_default(),
    })
}

/// The labels of OCI's image-spec (annotations.md) that an image of this machine has.
pub(crate) fn image_labels(prepared: &Prepared) -> BTreeMap<String, String> {
    let base = prepared.base.as_ref();
    let os = &prepared.inventory.os;
    let mut labels = BTreeMap::new();
    let mut label = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            labels.insert(format!("org.opencontainers.image.{key}"), value.to_owned());
        }
    };
    label("title", prepared.inventory.hostname.as_deref());
    label("version", os.version_id.as_deref());
    label(
        "base.name",
        base.and_then(|b| b.source.image().reference.registry_name())
            .as_deref(),
    );
    label("base.digest", base.map(|b| b.reference.digest.as_str()));
    let description = format!("{} from a machine, by vm2k", os.describe());
    label("description", Some(&description));
    labels
}

/// The image of a plan and its layers: config and manifest with equal bytes for equal input.
///
/// # Errors
/// If the base's config is broken.
pub fn assemble(
    prepared: &Prepared,
    layers: &[BuiltLayer],
    settings: &Settings,
    store: &Arc<Store>,
) -> anyhow::Result<NewImage> {
    let base = prepared.base.as_ref();
    let os = &prepared.inventory.os;
    let config = &prepared.document.config;
    let arch = os
        .arch
        .map(platform)
        .or_else(|| base.and_then(|b| b.source.image().platform()));
    let arch = arch.ok_or_else(|| {
        Error::unsupported("the machine's architecture cannot be told from its programs")
            .hint("use a base image: its architecture is taken")
    })?;
    let mut labels = image_labels(prepared);
    labels.insert(
        LABEL.to_owned(),
        Note::new(&prepared.plan, settings.clamp).encode()?,
    );
    let history = |layer: &BuiltLayer| NewHistory {
        diff_id: layer.diff_id,
        created_by: format!("vm2k convert: {}", layer.name),
        comment: String::new(),
    };
    let on_top = prepared.on_top.as_ref();
    let built = on_top.map_or(&[][..], |on_top| &on_top.layers);
    let built_history = built.iter().enumerate().map(|(i, layer)| NewHistory {
        diff_id: layer.diff_id,
        created_by: on_top
            .and_then(|o| o.created_by.get(i))
            .cloned()
            .unwrap_or_default(),
        comment: String::new(),
    });
    let new = NewConfig {
        architecture: arch.architecture,
        variant: arch.variant,
        created: settings.clamp.unwrap_or(0),
        env: config.env.clone(),
        entrypoint: Some(config.entrypoint.clone()),
        cmd: Some(config.cmd.clone()),
        user: Some(config.user.clone()),
        working_dir: Some(config.working_dir.clone()),
        labels,
        layers: built_history.chain(layers.iter().map(history)).collect(),
        ..NewConfig::default()
    };
    let bytes = oci::image_config(base.map(|b| b.source.image()), &new)?;
    let mut all: Vec<oci::Layer> = base.map(|b| b.source.image().layers.clone()).unwrap_or_default();
    all.extend(built.iter().cloned());
    all.extend(layers.iter().map(|layer| oci::Layer {
        digest: layer.digest,
        size: layer.size,
        media_type: settings.compression.media_type().to_owned(),
        diff_id: layer.diff_id,
        annotations: BTreeMap::new(),
        source: oci::BlobSource::Store(Arc::clone(store)),
    }));
    Ok(NewImage::new(bytes, all)?)
}
