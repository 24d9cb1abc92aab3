//! The directory of a build context: it appears whole or not at all.

use crate::error::{Error, HintExt, Result};
use crate::oci::durable::sync_dir;
use crate::scratch::{Scratch, remove_leftovers};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a context of ours may hold at its top.
const ENTRIES: &[&str] = &[
    "Dockerfile",
    "deleted.list",
    "packages.tsv",
    "report.json",
    "repositories",
    "rest.tar",
];

/// A directory on its way to its name.
pub(super) struct Context {
    scratch: Scratch,
    target: PathBuf,
}

impl Context {
    /// Begins the directory that shall be `target`.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is there and neither empty nor an earlier context, [`Error::Io`] if nothing can be made
    /// beside it.
    pub(super) fn create(target: &Path) -> anyhow::Result<Self> {
        check(target)?;
        let target =
            std::path::absolute(target).map_err(|e| Error::io(format!("finding {}", target.display()), e))?;
        remove_leftovers(&target);
        let scratch = Scratch::beside(&target);
        make_dir(scratch.path()).hint("name a directory in one that exists and can be written")?;
        Ok(Self { scratch, target })
    }

    /// Where a file of it lies until it is finished.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Writes a file, and makes the directories above it. The mode is the same whatever the umask.
    pub(super) fn write(&self, name: &Path, content: &[u8]) -> Result<()> {
        let mut at = self.scratch.path().to_owned();
        for part in name.parent().into_iter().flat_map(Path::components) {
            at.push(part);
            if !at.is_dir() {
                make_dir(&at)?;
            }
        }
        let path = self.scratch.path().join(name);
        let io = |e| Error::io(format!("writing {}", self.target.join(name).display()), e);
        let mut file = File::create(&path).map_err(io)?;
        file.write_all(content).map_err(io)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))
            .map_err(io)?;
        file.sync_all().map_err(io)
    }

    /// Gives it its name; an earlier context goes.
    pub(super) fn finish(self) -> Result<()> {
        check(&self.target)?;
        let io = |e| Error::io(format!("writing {}", self.target.display()), e);
        let mut old = None;
        if self.target.exists() {
            let aside = Scratch::beside(&self.target);
            std::fs::rename(&self.target, aside.path()).map_err(io)?;
            old = Some(aside);
        }
        if let Err(e) = std::fs::rename(self.scratch.path(), &self.target) {
            if let Some(aside) = old {
                let _ = std::fs::rename(aside.path(), &self.target);
            }
            return Err(io(e));
        }
        self.scratch.keep();
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        sync_dir(parent)
    }
}

fn make_dir(path: &Path) -> Result<()> {
    let io = |e| Error::io(format!("making {}", path.display()), e);
    std::fs::create_dir(path).map_err(io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(io)
}

/// A directory that is there must be empty, or hold an earlier context and nothing else.
pub(super) fn check(target: &Path) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::refused(format!("{}: {why}", target.display()))
            .hint("name a directory that is not there, or an empty one"))
    };
    let entries = match std::fs::read_dir(target) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return refused("it is no directory");
        }
        Err(e) => return Err(Error::io(format!("reading {}", target.display()), e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(format!("reading {}", target.display()), e))?;
        names.push(entry.file_name());
    }
    if names.is_empty() {
        return Ok(());
    }
    let foreign = names.iter().any(|n| !ENTRIES.iter().any(|e| n == *e));
    let head = format!("{{\n  \"schema\": \"{}\"", super::SCHEMA);
    let ours = std::fs::read(target.join("report.json")).is_ok_and(|r| r.starts_with(head.as_bytes()));
    match ours && !foreign {
        true => Ok(()),
        false => refused("it is not empty, and not a build context that vm2k wrote"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_not_at_all_and_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("context");
        let report = format!("{{\n  \"schema\": \"{}\"\n}}\n", super::super::SCHEMA);
        for round in ["one", "two"] {
            let context = Context::create(&target).unwrap();
            context
                .write(Path::new("report.json"), report.as_bytes())
                .unwrap();
            context
                .write(Path::new("repositories/etc/apt/x"), round.as_bytes())
                .unwrap();
            context.finish().unwrap();
            let text = std::fs::read_to_string(target.join("repositories/etc/apt/x")).unwrap();
            assert_eq!(text, round);
        }
        drop(Context::create(&target).unwrap());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left"
        );
        std::fs::write(target.join("mine"), "").unwrap();
        assert!(matches!(check(&target), Err(Error::Hinted { .. })));
        assert!(Context::create(&target).is_err());
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        check(&other).unwrap();
        std::fs::write(other.join("Dockerfile"), "").unwrap();
        assert!(check(&other).is_err());
    }
}
