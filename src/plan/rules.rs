//! The rules by which paths stay out of an image: data in `rules.toml`, applied here.

use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::tree::{Kind, Node, Tree};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How much of the machine goes into the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// All but what cannot be in an image, and identity.
    Faithful,
    /// All but that and what no container needs: kernel, boot loader, firmware, caches, logs, temporary files.
    #[default]
    Container,
}

/// What a path must be for a rule to match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Only {
    File,
    Directory,
    Socket,
}

/// What a rule says of the base image's content at the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Base {
    #[default]
    Hide,
    Ignore,
}

/// One rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    name: String,
    why: String,
    paths: Vec<String>,
    only: Option<Only>,
    profiles: Vec<Profile>,
    #[serde(default)]
    base: Base,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    rule: Vec<Rule>,
}

/// The rules of one conversion, ready to be asked.
pub struct Rules {
    rules: Vec<Rule>,
    /// All globs of all rules, in their order.
    globs: GlobSet,
    /// For each glob, the number of its rule.
    owner: Vec<usize>,
    keep: GlobSet,
}

/// What stands before the name of a secret's rule.
pub const SECRET: &str = "secret:";

/// The rule that `--drop` makes.
pub const DROP: &str = "drop";

impl Rules {
    /// The rules of `profile`, with the user's `--keep` and `--drop` globs.
    ///
    /// # Errors
    /// [`Error::Usage`] for a glob that is none.
    pub fn new(profile: Profile, keep: &[String], drop: &[String]) -> Result<Self> {
        let mut rules = builtin()?;
        rules.retain(|r| r.profiles.contains(&profile));
        if !drop.is_empty() {
            rules.push(Rule {
                name: DROP.into(),
                why: "--drop says so".into(),
                paths: drop.to_vec(),
                only: None,
                profiles: vec![profile],
                base: Base::Hide,
            });
        }
        let mut globs = GlobSetBuilder::new();
        let mut owner = Vec::new();
        for (number, rule) in rules.iter().enumerate() {
            for path in &rule.paths {
                globs.add(glob(path)?);
                owner.push(number);
            }
        }
        let mut kept = GlobSetBuilder::new();
        for path in keep {
            kept.add(glob(path)?);
        }
        let build = |set: GlobSetBuilder| set.build().map_err(|e| Error::usage(format!("glob: {e}")));
        Ok(Self {
            rules,
            globs: build(globs)?,
            owner,
            keep: build(kept)?,
        })
    }

    /// Why the rule `name` leaves things out.
    pub fn why(&self, name: &str) -> &str {
        let other = if name.starts_with(SECRET) {
            "is a secret, as its path tells; --allow-secrets puts it in"
        } else {
            "the plan says so"
        };
        self.rules
            .iter()
            .find(|r| r.name == name)
            .map_or(other, |r| &r.why)
    }

    /// The first rule that matches this path itself.
    fn matching(&self, path: &GuestPath, node: &Node) -> Option<&Rule> {
        let hits = self.globs.matches(as_path(path));
        hits.iter()
            .filter_map(|glob| self.rules.get(*self.owner.get(*glob)?))
            .find(|rule| match rule.only {
                None => true,
                Some(Only::File) => node.is_file(),
                Some(Only::Directory) => node.is_dir(),
                Some(Only::Socket) => node.kind == Kind::Socket,
            })
    }

    /// The topmost paths of `tree` that stay out, each with the name of its rule, in byte order.
    ///
    /// What `--keep` matches stays in, with all that is in it and the directories above it; sockets and what the
    /// container engine mounts over stay out all the same.
    pub fn left_out(&self, tree: &Tree) -> Vec<(GuestPath, String)> {
        let mut kept: HashMap<&GuestPath, bool> = HashMap::new();
        if !self.keep.is_empty() {
            for (path, _) in tree.iter() {
                let whole = |p: &GuestPath| kept.get(p) == Some(&true);
                if self.keep.is_match(as_path(path)) || path.parent().is_some_and(|p| whole(&p)) {
                    kept.insert(path, true);
                }
            }
            let inside: Vec<GuestPath> = kept.keys().map(|p| (*p).clone()).collect();
            for (path, _) in tree.iter().filter(|(_, n)| n.is_dir()) {
                if !kept.contains_key(path) && inside.iter().any(|k| k.is_in(path)) {
                    kept.insert(path, false);
                }
            }
        }
        let mut out: Vec<(GuestPath, String)> = Vec::new();
        let mut dropped: HashMap<&GuestPath, &str> = HashMap::new();
        for (path, node) in tree.iter() {
            if path.is_root() {
                continue;
            }
            let parent = path.parent();
            let above = parent.as_ref().and_then(|p| dropped.get(p).copied());
            let direct = self.matching(path, node);
            let hard = direct.is_some_and(|r| r.base == Base::Ignore || r.only == Some(Only::Socket));
            if kept.contains_key(path) && !hard {
                if let Some(rule) = above.filter(|_| kept.get(path) == Some(&false)) {
                    // A directory that stays only because of something in it: its rule goes on below.
                    dropped.insert(path, rule);
                } else if let (Some(rule), Some(false)) = (direct, kept.get(path)) {
                    dropped.insert(path, &rule.name);
                }
                continue;
            }
            let rule = above.or(direct.map(|r| r.name.as_str()));
            let Some(rule) = rule else { continue };
            let parent_is_out = above.is_some() && parent.is_some_and(|p| !kept.contains_key(&p));
            if node.is_dir() {
                dropped.insert(path, rule);
            }
            if !parent_is_out {
                out.push((path.clone(), rule.to_owned()));
            }
        }
        out
    }

    /// What can be in no image, whatever an edited plan says: sockets, and what container engines mount over.
    pub fn unsayable(&self, tree: &Tree) -> Vec<(GuestPath, String)> {
        let hard = |rule: &str| {
            self.rules
                .iter()
                .any(|r| r.name == rule && (r.base == Base::Ignore || r.only == Some(Only::Socket)))
        };
        self.left_out(tree)
            .into_iter()
            .filter(|(_, rule)| hard(rule))
            .collect()
    }

    /// True if container engines mount something over this path, so that neither side's content there matters.
    pub fn ignored(&self, path: &GuestPath) -> bool {
        let mut at = Some(path.clone());
        while let Some(p) = at {
            let hit = self.globs.matches(as_path(&p)).into_iter().any(|glob| {
                self.owner
                    .get(glob)
                    .and_then(|r| self.rules.get(*r))
                    .is_some_and(|r| r.base == Base::Ignore)
            });
            if hit {
                return true;
            }
            at = p.parent();
        }
        false
    }
}

fn as_path(path: &GuestPath) -> &Path {
    Path::new(OsStr::from_bytes(path.as_bytes()))
}

fn glob(text: &str) -> Result<globset::Glob> {
    let bad = |why: String| Error::usage(format!("{text:?} is no glob of a path: {why}"));
    if !text.starts_with('/') {
        return Err(bad("it must begin with /".into()).hint("write it as in --drop '/srv/*.bak'"));
    }
    GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|e| bad(e.to_string()))
}

fn builtin() -> Result<Vec<Rule>> {
    let file: RuleFile = toml::from_str(include_str!("rules.toml"))
        .map_err(|e| Error::corrupt(format!("the program's own rules.toml: {e}"), 0))?;
    Ok(file.rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::FileId;

    fn p(s: &str) -> GuestPath {
        GuestPath::new(s.as_bytes()).unwrap()
    }
    fn tree(paths: &[&str]) -> Tree {
        paths
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let kind = match s.chars().last() {
                    Some('/') => Kind::Directory,
                    Some('=') => Kind::Socket,
                    _ => Kind::File { size: 1 },
                };
                let path = p(s.trim_end_matches(['/', '=']));
                (
                    path,
                    Node {
                        kind,
                        id: FileId { fs: 0, ino: i as u64 },
                        ..Node::plain_dir()
                    },
                )
            })
            .collect()
    }
    fn out(profile: Profile, keep: &[&str], drop: &[&str], paths: &[&str]) -> Vec<String> {
        let owned = |x: &[&str]| x.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let rules = Rules::new(profile, &owned(keep), &owned(drop)).unwrap();
        rules
            .left_out(&tree(paths))
            .into_iter()
            .map(|(p, r)| format!("{r} {p}"))
            .collect()
    }

    const MACHINE: &[&str] = &[
        "/boot/vmlinuz-6.1",
        "/boot/grub/grub.cfg",
        "/etc/machine-id",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/sshd_config",
        "/proc/1/stat",
        "/run/x=",
        "/srv/app=",
        "/usr/lib/modules/6.1/a.ko",
        "/usr/lib/modules/6.1/b/c.ko",
        "/var/log/nginx/",
        "/var/log/nginx/access.log",
        "/var/log/syslog",
        "/lost+found/",
    ];

    #[test]
    fn profiles() {
        assert_eq!(
            out(Profile::Faithful, &[], &[], MACHINE),
            [
                "identity /etc/machine-id",
                "identity /etc/ssh/ssh_host_ed25519_key",
                "runtime /proc/1",
                "runtime /run/x",
                "socket /srv/app"
            ]
        );
        assert_eq!(
            out(Profile::Container, &[], &[], MACHINE),
            [
                "boot-loader /boot/grub",
                "kernel /boot/vmlinuz-6.1",
                "identity /etc/machine-id",
                "identity /etc/ssh/ssh_host_ed25519_key",
                "lost-and-found /lost+found",
                "runtime /proc/1",
                "runtime /run/x",
                "socket /srv/app",
                "kernel /usr/lib/modules/6.1",
                "logs /var/log/nginx/access.log",
                "logs /var/log/syslog",
            ]
        );
    }

    #[test]
    fn keep_opens_a_dropped_directory_just_as_far_as_needed() {
        let got = out(
            Profile::Container,
            &["/usr/lib/modules/6.1/b", "/srv/*", "/etc/machine-id"],
            &["/etc/ssh"],
            MACHINE,
        );
        assert!(
            got.contains(&"kernel /usr/lib/modules/6.1/a.ko".to_owned()),
            "{got:?}"
        );
        assert!(
            !got.iter()
                .any(|l| l.contains("6.1/b") || l.ends_with("/6.1") || l.contains("machine-id")),
            "{got:?}"
        );
        assert!(got.contains(&"socket /srv/app".to_owned()), "{got:?}");
        assert!(got.contains(&"drop /etc/ssh".to_owned()), "{got:?}");
        assert!(
            !got.iter().any(|l| l.contains("ssh_host")),
            "below a dropped directory nothing is listed: {got:?}"
        );
    }

    #[test]
    fn ignored_is_what_engines_mount_over() {
        let rules = Rules::new(Profile::Faithful, &[], &[]).unwrap();
        assert!(rules.ignored(&p("/dev/console")) && rules.ignored(&p("/proc/1/stat")));
        assert!(!rules.ignored(&p("/dev")) && !rules.ignored(&p("/etc/machine-id")));
        assert!(Rules::new(Profile::Faithful, &[], &["srv".into()]).is_err());
    }
}
