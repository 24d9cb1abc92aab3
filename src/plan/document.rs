//! The plan as a document: YAML that a person reads, edits and hands back with `convert --plan`.

use super::rules::{Profile, Rules};
use super::{Action, Plan, Rewritten};
use crate::diff::{Change, Fields};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::tree::Tree;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// The `schema` of a plan document.
pub const SCHEMA: &str = "vm2k.plan/1";

/// What [`Document`] says before its fields.
const HEADER: &str = include_str!("../../templates/plan-head.yaml");

/// The machine that a plan is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRef {
    /// What was read, for people.
    pub name: String,
    /// Names the machine's tree with all metadata: the plan fits no other ([`tree_id`]).
    pub tree: String,
}

/// The base image that a plan builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRef {
    /// As the user or the distribution's data named it.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Why this one.
    pub reason: String,
}

/// What the container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct ConfigDoc {
    /// Entrypoint; empty for none.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Command.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Environment as NAME=value.
    #[serde(default)]
    pub env: Vec<String>,
    /// User; empty for root.
    #[serde(default)]
    pub user: String,
    /// Working directory; empty for /.
    #[serde(default)]
    pub working_dir: String,
}

/// Paths that one rule leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The rule's name.
    pub rule: String,
    /// What the rule says.
    #[serde(default)]
    pub why: String,
    /// Files on the machine below these paths, and their bytes.
    #[serde(default)]
    pub files: u64,
    /// Bytes of these files.
    #[serde(default)]
    pub bytes: u64,
    /// The topmost paths.
    pub paths: Vec<String>,
}

/// A file that gets another content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewrittenDoc {
    /// Where.
    pub path: String,
    /// The rule that asks for it.
    pub rule: String,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct LayerDoc {
    /// `packages` or `rest`.
    pub name: String,
    /// Bytes of file contents.
    #[serde(default)]
    pub bytes: u64,
    /// Entries that the base has not.
    #[serde(default)]
    pub added: u64,
    /// Entries that the base has otherwise.
    #[serde(default)]
    pub changed: u64,
    /// Entries of the base that are deleted, counted by their topmost paths.
    #[serde(default)]
    pub deleted: u64,
    /// Packages whose files are here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// The rest layer's paths, each with what happens to it: `+` added, `-` deleted, `~` changed (and in what). Directories
    /// that are there only for their entries are not listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// A whole plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: String,
    /// The machine.
    pub machine: MachineRef,
    /// The base; null for none.
    pub base: Option<BaseRef>,
    /// How much of the machine goes in.
    pub profile: Profile,
    /// What the container runs.
    pub config: ConfigDoc,
    /// What stays out.
    pub left_out: Vec<LeftOut>,
    /// What gets another content.
    #[serde(default)]
    pub rewritten: Vec<RewrittenDoc>,
    /// Extended attributes that no layer can carry.
    #[serde(default)]
    pub unsaid: Vec<String>,
    /// Paths that are in the image just as the base has them.
    #[serde(default)]
    pub unchanged: u64,
    /// The new layers from bottom to top.
    pub layers: Vec<LayerDoc>,
}

/// Names a tree with all its metadata: BLAKE3 over every path and node, in hexadecimal.
pub fn tree_id(tree: &Tree) -> String {
    let mut hasher = blake3::Hasher::new();
    for (path, node) in tree.iter() {
        hasher.update(path.as_bytes());
        hasher.update(format!("{node:?}").as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Groups left-out paths by rule, with what lies below them on the machine.
pub fn left_out(paths: &[(GuestPath, String)], machine: &Tree, rules: &Rules) -> Vec<LeftOut> {
    let mut groups: BTreeMap<&str, LeftOut> = BTreeMap::new();
    for (path, rule) in paths {
        let group = groups.entry(rule).or_insert_with(|| LeftOut {
            rule: rule.clone(),
            why: rules.why(rule).to_owned(),
            files: 0,
            bytes: 0,
            paths: Vec::new(),
        });
        group.paths.push(path.to_string());
        let here = machine.get_key(path).into_iter();
        for (_, node) in here.chain(machine.below(path)).filter(|(_, n)| !n.is_dir()) {
            group.files += 1;
            group.bytes += node.size();
        }
    }
    groups.into_values().collect()
}

/// The layers of `plan` as the document lists them.
pub fn layers(plan: &Plan, image: &Tree) -> Vec<LayerDoc> {
    let changes: std::collections::HashMap<&GuestPath, Change> =
        plan.changes.iter().map(|(p, c)| (p, *c)).collect();
    plan.layers
        .iter()
        .map(|layer| {
            let mut doc = LayerDoc {
                name: layer.name.clone(),
                packages: layer.packages.clone(),
                ..LayerDoc::default()
            };
            for step in &layer.steps {
                if step.action == Action::Write {
                    doc.bytes += image.get(&step.path).map_or(0, crate::tree::Node::size);
                }
                let line = match (changes.get(&step.path), &step.action) {
                    (Some(Change::Deleted), Action::Delete) => {
                        doc.deleted += 1;
                        format!("- {}", step.path)
                    }
                    (Some(Change::Added), _) => {
                        doc.added += 1;
                        format!("+ {}", step.path)
                    }
                    (Some(Change::Changed(fields)), _) => {
                        doc.changed += 1;
                        format!("~ {} ({fields})", step.path)
                    }
                    _ => continue,
                };
                let only_time =
                    matches!(changes.get(&step.path), Some(Change::Changed(f)) if *f == Fields::MTIME);
                let dir = image.get(&step.path).is_some_and(crate::tree::Node::is_dir);
                if layer.packages.is_empty() && !(dir && only_time) {
                    doc.paths.push(line);
                }
            }
            doc
        })
        .collect()
}

/// The files that `plan` rewrites.
pub fn rewritten(files: &BTreeMap<GuestPath, Rewritten>) -> Vec<RewrittenDoc> {
    files
        .iter()
        .map(|(path, new)| RewrittenDoc {
            path: path.to_string(),
            rule: new.rule.clone(),
        })
        .collect()
}

impl Document {
    /// The document as YAML, with a comment that says what may be edited.
    ///
    /// # Errors
    /// If YAML cannot say it; no plan does that.
    pub fn to_yaml(&self) -> Result<String> {
        let yaml = serde_saphyr::to_string(self)
            .map_err(|e| Error::unsupported(format!("writing the plan: {e}")))?;
        Ok(format!("{HEADER}{yaml}"))
    }

    /// Reads what [`Document::to_yaml`] wrote and a person edited.
    ///
    /// # Errors
    /// [`Error::Usage`] with line and column, or for a schema of another version.
    pub fn from_yaml(text: &str) -> Result<Self> {
        let document: Self = serde_saphyr::from_str(text)
            .map_err(|e| Error::usage(format!("the plan cannot be read: {e}")))?;
        if document.schema != SCHEMA {
            return Err(Error::usage(format!(
                "the plan's schema is {:?}, this program reads {SCHEMA}",
                document.schema
            )));
        }
        Ok(document)
    }

    /// The paths that stay out, each with its rule, in byte order and without those below others.
    ///
    /// # Errors
    /// [`Error::Usage`] for a path that is none, [`Error::Refused`] if something must stay out and is not named: `must` lists
    /// what no layer can carry.
    pub fn left_out(&self, must: &[(GuestPath, String)]) -> Result<Vec<(GuestPath, String)>> {
        let mut named: BTreeMap<GuestPath, String> = must.iter().cloned().collect();
        for group in &self.left_out {
            for path in &group.paths {
                named.insert(GuestPath::from_escaped(path)?, group.rule.clone());
            }
        }
        let mut tops: HashSet<GuestPath> = HashSet::new();
        let mut out = Vec::new();
        for (path, rule) in named {
            let mut up = path.parent();
            let covered = std::iter::from_fn(|| {
                let at = up.take()?;
                up = at.parent();
                Some(at)
            })
            .any(|p| tops.contains(&p));
            if !covered {
                tops.insert(path.clone());
                out.push((path, rule));
            }
        }
        Ok(out)
    }

    /// The packages that have their files in the package layer.
    pub fn packages(&self) -> HashSet<&str> {
        self.layers
            .iter()
            .flat_map(|l| l.packages.iter().map(String::as_str))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Document {
        Document {
            schema: SCHEMA.into(),
            machine: MachineRef {
                name: "web.qcow2".into(),
                tree: "00ff".into(),
            },
            base: None,
            profile: Profile::Container,
            config: ConfigDoc {
                cmd: vec!["/bin/sh".into(), "-c".into(), "true # no\n".into()],
                ..ConfigDoc::default()
            },
            left_out: vec![LeftOut {
                rule: "logs".into(),
                why: "why: because".into(),
                files: 2,
                bytes: 3,
                paths: vec![
                    "/var/log/a\\nb".into(),
                    "/var/log/\\xff: yes".into(),
                    "/x".into(),
                    "/x/y".into(),
                ],
            }],
            rewritten: Vec::new(),
            unsaid: Vec::new(),
            unchanged: 7,
            layers: vec![LayerDoc {
                name: "packages".into(),
                packages: vec!["nginx 1 amd64".into()],
                ..LayerDoc::default()
            }],
        }
    }

    #[test]
    fn yaml_and_back() {
        let yaml = sample().to_yaml().unwrap();
        assert_eq!(Document::from_yaml(&yaml).unwrap(), sample(), "{yaml}");
        let out = sample()
            .left_out(&[(GuestPath::new(b"/s").unwrap(), "socket".into())])
            .unwrap();
        let shown: Vec<String> = out.iter().map(|(p, r)| format!("{r} {p}")).collect();
        assert_eq!(
            shown,
            [
                "socket /s",
                "logs /var/log/a\\nb",
                "logs /var/log/\\xff: yes",
                "logs /x"
            ]
        );
        assert_eq!(out[2].0.as_bytes(), b"/var/log/\xff: yes");
    }

    #[test]
    fn errors_name_the_place() {
        let yaml = sample()
            .to_yaml()
            .unwrap()
            .replace("profile: container", "profile: everything");
        let text = Document::from_yaml(&yaml).unwrap_err().to_string();
        assert!(text.contains("everything") && text.contains("line"), "{text}");
        assert!(
            Document::from_yaml(
                &yaml
                    .replace("vm2k.plan/1", "vm2k.plan/9")
                    .replace("everything", "container")
            )
            .is_err()
        );
    }
}
