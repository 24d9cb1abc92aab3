//! What an image carries of its plan, so that `verify` knows what was left out on purpose.
//!
//! The note is the label [`LABEL`] of the image's config: base64 of zstd of JSON. Labels survive every registry and engine,
//! which annotations do not.

use super::{Plan, Rewritten};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;

/// The label's name.
pub const LABEL: &str = "io.github.vm2k.plan";

/// The note's size in bytes at which reading stops.
const LIMIT: u64 = 64 << 20;

/// What an image leaves out or shows otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Note {
    /// Rule to topmost paths, escaped as they are shown.
    pub left_out: BTreeMap<String, Vec<String>>,
    /// Path to rule of files with another content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewritten: BTreeMap<String, String>,
    /// The time that later times of modification were set to, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamp: Option<i64>,
}

impl Note {
    /// The note of a plan.
    pub fn new(plan: &Plan, clamp: Option<i64>) -> Self {
        let mut left_out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (path, rule) in &plan.left_out {
            left_out.entry(rule.clone()).or_default().push(path.to_string());
        }
        let rewritten = |(path, new): (&GuestPath, &Rewritten)| (path.to_string(), new.rule.clone());
        Self {
            left_out,
            rewritten: plan.rewritten.iter().map(rewritten).collect(),
            clamp,
        }
    }

    /// The value of the label.
    ///
    /// # Errors
    /// If the note cannot be compressed.
    pub fn encode(&self) -> Result<String> {
        let json = serde_json::to_vec(self)
            .map_err(|e| Error::unsupported(format!("writing the plan's note: {e}")))?;
        let zstd =
            zstd::bulk::compress(&json, 19).map_err(|e| Error::io("compressing the plan's note", e))?;
        Ok(BASE64.encode(zstd))
    }

    /// Reads a label's value.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is none.
    pub fn decode(text: &str) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("the image's label {LABEL}: {what}"), 0);
        let zstd = BASE64.decode(text).map_err(|e| bad(&e.to_string()))?;
        let mut json = Vec::new();
        let decoder = zstd::stream::read::Decoder::new(zstd.as_slice()).map_err(|e| bad(&e.to_string()))?;
        decoder
            .take(LIMIT)
            .read_to_end(&mut json)
            .map_err(|e| bad(&e.to_string()))?;
        serde_json::from_slice(&json).map_err(|e| bad(&e.to_string()))
    }

    /// The left-out paths with their rules, in byte order.
    ///
    /// # Errors
    /// [`Error::Usage`] for an escape that is none.
    pub fn left_out(&self) -> Result<Vec<(GuestPath, String)>> {
        let mut out = Vec::new();
        for (rule, paths) in &self.left_out {
            for path in paths {
                out.push((GuestPath::from_escaped(path)?, rule.clone()));
            }
        }
        out.sort();
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_survives_its_label() {
        let plan = Plan {
            left_out: vec![(GuestPath::new(b"/var/log/\xff\n").unwrap(), "logs".into())],
            ..Plan::default()
        };
        let note = Note::new(&plan, Some(7));
        let back = Note::decode(&note.encode().unwrap()).unwrap();
        assert_eq!(back, note);
        assert_eq!(back.left_out().unwrap(), plan.left_out);
        assert!(Note::decode("AAAA").is_err());
    }
}
