//! Which base image fits a machine.

use super::os::Os;
use crate::distro::{Distro, Distros, Nearest, Release};
use globset::Glob;

/// Which base image fits a machine, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BaseMatch {
    /// The image; `None` if no file knows one, which only the user can mend with `--base`.
    pub reference: Option<String>,
    /// True if it is an image of the machine's own distribution and release, false for a nearest match
    /// and for a distribution without releases.
    pub exact: bool,
    /// The decision in words, as in `Debian 12 (bookworm), amd64: docker.io/library/debian:12`.
    pub reason: String,
    /// End of ordinary support of the release whose image this is.
    pub end_of_life: Option<String>,
    /// Archive of that release's packages.
    pub archive: Option<String>,
    /// Id of the distribution whose image this is.
    pub distro: Option<String>,
    /// The release whose image this is, as the distribution's file has it.
    #[serde(skip)]
    pub release: Option<Box<Release>>,
}

impl Distros {
    /// The base image for `os`: that of the machine's own release, else of a stated nearest one, else of the release
    /// whose codename the machine names, else none. Always says why.
    pub fn base_for(&self, os: &Os) -> BaseMatch {
        let unknown = |reason: String| BaseMatch {
            reference: None,
            exact: false,
            reason,
            end_of_life: None,
            archive: None,
            distro: None,
            release: None,
        };
        let Some(id) = os.id.as_deref() else {
            return unknown("the machine does not say which distribution it is".to_owned());
        };
        let machine = os.describe();
        let Some((distro, own)) = self.lookup_named(id, os.field("NAME"), &os.id_like) else {
            return unknown(format!("{machine}: no distribution {id:?} is known"));
        };
        let arch = os
            .arch
            .as_ref()
            .map_or_else(|| "unknown architecture".to_owned(), ToString::to_string);
        let found = |distro: &Distro, release: &Release, exact: bool, why: &str| {
            let image = release.image.clone()?;
            let label = release_label(distro, release);
            Some(BaseMatch {
                reason: if exact {
                    format!("{label}, {arch}: {image}")
                } else {
                    format!("{machine}, {arch}: {why} {label}: {image}")
                },
                reference: Some(image),
                exact: exact && release.version.as_deref() != Some("*"),
                end_of_life: release.end_of_life.clone(),
                archive: release.archive.clone(),
                distro: Some(distro.id.clone()),
                release: Some(Box::new(release.clone())),
            })
        };
        let version = os.version_id.as_deref();
        let codename = os.codename.as_deref();
        if own
            && let Some(release) = distro.release(version, codename)
            && let Some(base) = found(distro, release, true, "")
        {
            return base;
        }
        for near in distro.nearest.iter().filter(|n| own && fits(n, os)) {
            if let Some(other) = self.get(&near.id)
                && let Some(release) = other.release(near.release.as_deref().or(version), None)
                && let Some(base) = found(other, release, false, "stated to be nearest to")
            {
                return base;
            }
        }
        let mut others = self.ancestry(distro);
        others.extend(os.id_like.iter().filter_map(|id| self.get(id)));
        for other in others {
            let named = other.codename_keys.iter().find_map(|key| os.field(key));
            if let Some(release) = [named, codename]
                .into_iter()
                .flatten()
                .find_map(|name| other.codenamed(name))
                && let Some(base) = found(other, release, false, "by its codename nearest to")
            {
                return base;
            }
        }
        unknown(match version.or(codename) {
            Some(_) => format!("{machine}: no base image is known for this release"),
            None => format!("{machine}: it states neither a version nor a codename with a known base image"),
        })
    }
}

fn fits(near: &Nearest, os: &Os) -> bool {
    let like = near
        .like
        .as_ref()
        .is_none_or(|word| os.id_like.iter().any(|l| l == word));
    let version = os.version_id.as_deref().unwrap_or("");
    like && Glob::new(&near.version).is_ok_and(|g| g.compile_matcher().is_match(version))
}

/// `Debian 12 (bookworm)`.
fn release_label(distro: &Distro, release: &Release) -> String {
    let mut label = distro.name.clone();
    match release.version.as_deref() {
        Some("*") => label.push_str(" (rolling: the newest image, not the state of this machine)"),
        Some(version) => label.push_str(&format!(" {version}")),
        None => {}
    }
    if let Some(codename) = &release.codename {
        label.push_str(&format!(" ({codename})"));
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(os_release: &str) -> BaseMatch {
        let distros = Distros::load(None).unwrap();
        let os = Os::from_os_release(os_release.as_bytes(), &distros);
        distros.base_for(&os)
    }

    #[test]
    fn exact_nearest_and_none() {
        let exact = base("ID=debian\nVERSION_ID=\"12\"\n");
        assert!(exact.exact);
        assert_eq!(
            exact.reason,
            "Debian 12 (bookworm), unknown architecture: docker.io/library/debian:12"
        );
        assert_eq!(
            base("ID=debian\nVERSION_ID=9\n").archive.as_deref(),
            Some("http://archive.debian.org/debian")
        );
        let reference = |text: &str| base(text).reference;
        let is = |text: &str, image: &str| assert_eq!(reference(text).as_deref(), Some(image), "{text}");
        is(
            "ID=debian\nVERSION_CODENAME=forky\n",
            "docker.io/library/debian:forky",
        );
        is(
            "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=21.3\n",
            "docker.io/library/ubuntu:22.04",
        );
        is(
            "ID=linuxmint\nID_LIKE=debian\nVERSION_ID=6\n",
            "docker.io/library/debian:12",
        );
        is(
            "ID=pop\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=22.04\n",
            "docker.io/library/ubuntu:22.04",
        );
        is(
            "ID=new\nID_LIKE=ubuntu\nVERSION_ID=5\nUBUNTU_CODENAME=noble\n",
            "docker.io/library/ubuntu:24.04",
        );
        is(
            "ID=new\nID_LIKE=debian\nVERSION_ID=5\nVERSION_CODENAME=bookworm\n",
            "docker.io/library/debian:12",
        );
        let rolling = base("ID=arch\n");
        assert!(
            !rolling.exact && rolling.reason.contains("rolling"),
            "{rolling:?}"
        );
        assert!(base("ID=manjaro\nID_LIKE=arch\n").reason.contains("nearest"));
        for unknown in [
            "ID=debian\nVERSION_ID=7\n",
            "ID=new\nID_LIKE=debian\nVERSION_ID=12\n",
            "ID=zzz\n",
            "",
        ] {
            let found = base(unknown);
            assert_eq!(found.reference, None, "{unknown}");
            assert!(!found.reason.is_empty());
        }
    }
}
