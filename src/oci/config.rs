//! The config of a new image (OCI image-spec, config.md), inherited from its base, always in the same bytes.

use super::Image;
use crate::calendar::Civil;
use crate::error::Result;
use crate::store::Digest;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a new image's config says. What is `None` or empty is inherited from the base.
#[derive(Debug, Clone, Default)]
pub struct NewConfig {
    /// GOARCH.
    pub architecture: String,
    /// CPU variant, as `v8`.
    pub variant: Option<String>,
    /// Seconds since 1970: SOURCE_DATE_EPOCH, or 0.
    pub created: i64,
    /// `NAME=value`, set over those of the base.
    pub env: Vec<String>,
    /// Entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments of the entrypoint, or the command.
    pub cmd: Option<Vec<String>>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// `80/tcp`; added to those of the base.
    pub exposed_ports: BTreeSet<String>,
    /// Paths of data that must outlive the container; added to those of the base.
    pub volumes: BTreeSet<String>,
    /// Labels, set over those of the base.
    pub labels: BTreeMap<String, String>,
    /// Signal that stops the container, as `SIGTERM`.
    pub stop_signal: Option<String>,
    /// The layers above the base, the lowest first: their diffIDs and what is to be said of them.
    pub layers: Vec<NewHistory>,
}

/// A layer in the config: its diffID and its line of history.
#[derive(Debug, Clone)]
pub struct NewHistory {
    /// Digest of the plain tar.
    pub diff_id: Digest,
    /// What made it.
    pub created_by: String,
    /// What is in it.
    pub comment: String,
}

#[derive(Serialize)]
struct Document<'a> {
    created: &'a str,
    architecture: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: &'a Option<String>,
    os: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    config: BTreeMap<String, Value>,
    rootfs: RootFs,
    history: Vec<History>,
}

#[derive(Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

#[derive(Serialize)]
struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    empty_layer: bool,
}

/// The config of an image that adds `new.layers` to `base`, as bytes: equal input gives equal bytes. All that the base's
/// `config` object holds is kept, fields that OCI does not know too.
///
/// # Errors
/// [`crate::error::Error::Corrupt`] if the base's config is no JSON object.
pub fn image_config(base: Option<&Image>, new: &NewConfig) -> Result<Vec<u8>> {
    let created = rfc3339(new.created);
    let mut config = match base {
        Some(base) => inherited(base)?,
        None => BTreeMap::new(),
    };
    let texts = |all: &[String]| Value::Array(all.iter().cloned().map(Value::String).collect());
    if !new.env.is_empty() {
        let mut env: Vec<String> = match config.get("Env") {
            Some(Value::Array(all)) => all.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        for entry in &new.env {
            match env.iter_mut().find(|old| key(old) == key(entry)) {
                Some(old) => old.clone_from(entry),
                None => env.push(entry.clone()),
            }
        }
        config.insert("Env".to_owned(), texts(&env));
    }
    if let Some(entrypoint) = &new.entrypoint {
        config.insert("Entrypoint".to_owned(), texts(entrypoint));
        // The base's command was meant for the base's entrypoint.
        config.remove("Cmd");
    }
    if let Some(cmd) = &new.cmd {
        config.insert("Cmd".to_owned(), texts(cmd));
    }
    for (key, value) in [
        ("User", &new.user),
        ("WorkingDir", &new.working_dir),
        ("StopSignal", &new.stop_signal),
    ] {
        if let Some(value) = value {
            config.insert(key.to_owned(), Value::String(value.clone()));
        }
    }
    let empty = || Value::Object(serde_json::Map::new());
    let ports = new.exposed_ports.iter().map(|p| (p.clone(), empty()));
    add(&mut config, "ExposedPorts", ports);
    add(
        &mut config,
        "Volumes",
        new.volumes.iter().map(|v| (v.clone(), empty())),
    );
    let labels = new
        .labels
        .iter()
        .map(|(k, v)| (k.clone(), Value::String(v.clone())));
    add(&mut config, "Labels", labels);

    let mut diff_ids: Vec<String> = Vec::new();
    let mut history = Vec::new();
    if let Some(base) = base {
        diff_ids.extend(base.layers.iter().map(|l| l.diff_id.to_string()));
        history = inherited_history(base);
    }
    for layer in &new.layers {
        diff_ids.push(layer.diff_id.to_string());
        history.push(History {
            created: Some(created.clone()),
            author: None,
            created_by: Some(layer.created_by.clone()),
            comment: (!layer.comment.is_empty()).then(|| layer.comment.clone()),
            empty_layer: false,
        });
    }
    let document = Document {
        created: &created,
        architecture: &new.architecture,
        variant: &new.variant,
        os: "linux",
        config: config.into_iter().map(|(k, v)| (k, sorted(v))).collect(),
        rootfs: RootFs {
            r#type: "layers",
            diff_ids,
        },
        history,
    };
    super::to_json(&document)
}

/// The `config` object of a base, without what is null.
fn inherited(base: &Image) -> Result<BTreeMap<String, Value>> {
    #[derive(serde::Deserialize)]
    struct Outer {
        config: Option<BTreeMap<String, Value>>,
    }
    let outer: Outer = super::parse(&base.config_bytes, &format!("the config of {}", base.name()))?;
    let mut config = outer.config.unwrap_or_default();
    // What docker writes about the container that made the image says nothing about the image.
    for key in [
        "Hostname",
        "Domainname",
        "Image",
        "AttachStdin",
        "AttachStdout",
        "AttachStderr",
    ] {
        config.remove(key);
    }
    for key in ["Tty", "OpenStdin", "StdinOnce"] {
        config.remove(key);
    }
    config.retain(|_, value| !value.is_null());
    Ok(config)
}

/// The history of a base. Where it does not fit the base's layers there is one plain line for each layer instead: readers
/// count the lines that are no `empty_layer`.
fn inherited_history(base: &Image) -> Vec<History> {
    let lines = base.config.history().as_deref().unwrap_or_default();
    let filled = lines.iter().filter(|h| h.empty_layer() != Some(true)).count();
    if filled != base.layers.len() {
        let plain = || History {
            created: None,
            author: None,
            created_by: None,
            comment: Some("base image".to_owned()),
            empty_layer: false,
        };
        return base.layers.iter().map(|_| plain()).collect();
    }
    let line = |h: &oci_spec::image::History| History {
        created: h.created().clone(),
        author: h.author().clone(),
        created_by: h.created_by().clone(),
        comment: h.comment().clone(),
        empty_layer: h.empty_layer() == Some(true),
    };
    lines.iter().map(line).collect()
}

/// Puts `entries` into the object `key`.
fn add(config: &mut BTreeMap<String, Value>, key: &str, entries: impl Iterator<Item = (String, Value)>) {
    let mut entries = entries.peekable();
    if entries.peek().is_none() {
        return;
    }
    let object = config.entry(key.to_owned()).or_insert(Value::Null);
    if !object.is_object() {
        *object = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(map) = object {
        map.extend(entries);
    }
}

/// `value` with the keys of all its objects in byte order, whatever order the JSON library keeps.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<String, Value> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(all) => Value::Array(all.into_iter().map(sorted).collect()),
        value => value,
    }
}

/// Seconds since 1970 as `1970-01-01T00:00:00Z` (RFC 3339, section 5.6). Years outside 0 to 9999 are cut to their ends.
pub fn rfc3339(seconds: i64) -> String {
    let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799);
    let at = Civil::of(seconds);
    format!("{}T{:02}:{:02}:{:02}Z", at.date(), at.hour, at.minute, at.second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_date_prints_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
            (i64::MIN, "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn keys_are_in_order() {
        let value: Value = serde_json::from_str(r#"{"b":{"z":1,"a":[{"y":1,"x":2}]},"a":null}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&sorted(value)).unwrap(),
            r#"{"a":null,"b":{"a":[{"x":2,"y":1}],"z":1}}"#
        );
    }
}
