//! The arguments that several subcommands take: what decides about an image, and mirrors.

use super::{Common, target};
use crate::convert::{BaseChoice, Options};
use crate::error::Error;
use crate::layer::Settings;
use crate::layer::compress::Compression;
use crate::oci;
use crate::plan::document::Document;
use crate::plan::rules::Profile;
use crate::store::Store;
use clap::{Args, ValueEnum};
use std::sync::Arc;

/// What decides about an image.
#[derive(Debug, Args)]
pub(super) struct Decisions {
    /// The machine: a disk file, several disks of one machine (disk1.qcow2+disk2.qcow2), or dir:PATH
    pub(super) target: String,
    /// The base image: auto, none, or an image such as oci:DIR:TAG or docker.io/library/debian:12
    #[arg(long, default_value = "auto", value_name = "IMAGE")]
    base: String,
    /// How much of the machine goes in
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileArgument,
    /// Keep what a rule would leave out: a glob of paths, as in '/var/log/app/**'
    #[arg(long, value_name = "GLOB")]
    keep: Vec<String>,
    /// Leave out more
    #[arg(long, value_name = "GLOB")]
    drop: Vec<String>,
    /// The service that the container runs, by the name of its unit
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<String>,
    /// Put secrets of this rule into the image all the same (`all`: of every rule)
    #[arg(long, value_name = "RULE")]
    allow_secrets: Vec<String>,
}

/// See [`Profile`].
#[derive(Debug, Clone, Copy, ValueEnum, Default)]
pub(super) enum ProfileArgument {
    /// All but what cannot be in an image, identity and secrets
    Faithful,
    /// Also without kernel, boot loader, firmware, caches, logs and temporary files
    #[default]
    Container,
}

impl Decisions {
    /// The options that these arguments mean.
    pub(super) fn options(
        &self,
        common: &Common,
        store: &Arc<Store>,
        plan: Option<Document>,
        compression: Compression,
    ) -> anyhow::Result<Options> {
        let base = match self.base.as_str() {
            "auto" => BaseChoice::Auto,
            "none" => BaseChoice::None,
            image => BaseChoice::Image(oci::Reference::parse_base(image)?),
        };
        let profile = match self.profile {
            ProfileArgument::Faithful => Profile::Faithful,
            ProfileArgument::Container => Profile::Container,
        };
        Ok(Options {
            base,
            profile,
            keep: self.keep.clone(),
            drop: self.drop.clone(),
            allow_secrets: self.allow_secrets.clone(),
            services: self.services.clone(),
            plan,
            layers: Settings {
                compression,
                jobs: common.jobs(),
                clamp: source_date_epoch()?,
            },
            images: target::image_options(common, store),
        })
    }
}

/// SOURCE_DATE_EPOCH of reproducible-builds.org, in seconds.
fn source_date_epoch() -> anyhow::Result<Option<i64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) => match text.trim().parse() {
            Ok(seconds) => Ok(Some(seconds)),
            Err(_) => Err(Error::usage(format!(
                "SOURCE_DATE_EPOCH is {text:?}, which is no number of seconds"
            ))
            .into()),
        },
    }
}

/// `FROM=TO`, both the beginnings of URLs.
pub(super) fn mirror(text: &str) -> Result<(String, String), String> {
    let bad = || format!("{text:?} is not FROM=TO with two URLs of http or https");
    let (from, to) = text.split_once('=').ok_or_else(bad)?;
    let plain = |url: &str| {
        let web = url.starts_with("http://") || url.starts_with("https://");
        web && !url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '@')
    };
    match plain(from) && plain(to) {
        true => Ok((from.to_owned(), to.to_owned())),
        false => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_two_urls() {
        assert_eq!(
            mirror("http://a/x=https://b").unwrap(),
            ("http://a/x".to_owned(), "https://b".to_owned())
        );
        for bad in ["http://a", "a=b", "http://a=http://u:p@b", "http://a=http://b c"] {
            assert!(mirror(bad).is_err(), "{bad}");
        }
    }
}
