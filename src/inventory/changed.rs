//! Files of packages that are no longer what the packages brought: changed configuration, and programs that somebody
//! replaced. What `dpkg --verify` and `rpm --verify` tell, without running either.

use crate::jobs;
use crate::path::GuestPath;
use crate::pkgdb::{FileDigest, FileFacts, Package, digest_of, for_each_place};
use crate::progress::Progress;
use crate::source::Source;
use crate::tree::{Kind, Node, Problem};
use std::collections::{BTreeMap, HashMap};

/// A file that differs from what its package brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Where it is; where it should be, if it is missing.
    pub path: GuestPath,
    /// Name of its package; of several the one it differs least from.
    pub package: String,
    /// True for a configuration file, which administrators may change.
    pub config: bool,
    /// What differs, in a fixed order.
    pub fields: Vec<Field>,
}

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Field {
    /// It is not there.
    Missing,
    /// A directory, symlink or other kind of file is there.
    Type,
    /// The bytes of a regular file.
    Content,
    /// The target of a symlink.
    Target,
    /// Permission bits.
    Mode,
    /// The owner, by name.
    User,
    /// The group, by name.
    Group,
}

impl Field {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Type => "type",
            Self::Content => "content",
            Self::Target => "target",
            Self::Mode => "mode",
            Self::User => "user",
            Self::Group => "group",
        }
    }
}

/// One package's claim on a path.
struct Claim<'a> {
    package: usize,
    digest: Option<&'a FileDigest>,
    facts: Option<&'a FileFacts>,
    config: bool,
}

/// Compares every file of the packages with what their database knows of it, on `jobs` threads. The second value is what
/// could not be read.
///
/// Of files and directories of which the database keeps only the name those that are missing are told. Files that the package
/// says it does not bring (`%ghost`) are not compared, nor are those that may be missing and are. A path that several packages
/// claim is changed if it is none's, and a directory may have become a symlink to one.
/// Times are not compared: programs that fix the time of a whole tree would make every file changed.
pub fn find(
    source: &dyn Source,
    packages: &[Package],
    jobs: usize,
    progress: &dyn Progress,
) -> (Vec<Changed>, Vec<Problem>) {
    let claims = claims(source, packages);
    let names = Names::read(source);
    let tree = source.tree();
    let total = claims
        .iter()
        .filter(|(_, claims)| claims.iter().any(|c| c.digest.is_some()))
        .filter_map(|(path, _)| tree.get(path).filter(|n| n.is_file()))
        .map(Node::size)
        .sum();
    let stage = progress.stage("comparing with what the packages brought", Some(total));
    let claims: Vec<(GuestPath, Vec<Claim<'_>>)> = claims.into_iter().collect();
    let compared = jobs::map(jobs, &claims, |(path, claims)| {
        let node = tree.get(path);
        let found = claims.iter().map(|claim| {
            let fields = match node {
                Some(node) => fields(source, path, node, claim, &names)?,
                None => vec![Field::Missing],
            };
            Ok::<_, crate::error::Error>((fields, claim.package, claim.config))
        });
        let least = found
            .collect::<Result<Vec<_>, _>>()
            .map(|all| all.into_iter().min_by_key(|(fields, ..)| fields.len()));
        if claims.iter().any(|c| c.digest.is_some()) {
            stage.add(node.filter(|n| n.is_file()).map_or(0, Node::size));
        }
        Ok::<_, std::convert::Infallible>(least.map_err(|e| Problem {
            path: path.clone(),
            what: e.to_string(),
        }))
    });
    let (mut changed, mut problems) = (Vec::new(), Vec::new());
    for ((path, _), least) in claims.iter().zip(compared.unwrap_or_default()) {
        match least {
            Ok(Some((fields, package, config))) if !fields.is_empty() => changed.push(Changed {
                path: path.clone(),
                package: packages.get(package).map_or_else(String::new, |p| p.name.clone()),
                config,
                fields,
            }),
            Ok(_) => {}
            Err(problem) => problems.push(problem),
        }
    }
    (changed, problems)
}

fn claims<'a>(source: &dyn Source, packages: &'a [Package]) -> BTreeMap<GuestPath, Vec<Claim<'a>>> {
    let tree = source.tree();
    let mut claims: BTreeMap<GuestPath, Vec<Claim<'a>>> = BTreeMap::new();
    let conffiles: Vec<HashMap<&GuestPath, &'a FileDigest>> = packages
        .iter()
        .map(|package| {
            let kept = package.conffiles.iter().filter(|c| !c.obsolete);
            kept.filter_map(|c| Some((&c.path, c.digest.as_ref()?))).collect()
        })
        .collect();
    for_each_place(tree, packages, |index, file, found| {
        let conffile = conffiles.get(index).and_then(|c| c.get(&file.path)).copied();
        let facts = file.facts.as_deref();
        let digest = conffile.or_else(|| facts.and_then(|f| f.digest.as_ref()));
        let flags = facts.map(|f| f.flags).unwrap_or_default();
        // Of a name alone no more can be told than that it is missing.
        let tells = digest.is_some() || facts.is_some() || found.is_none();
        if !tells || flags.ghost || found.is_none() && flags.missing_ok {
            return;
        }
        claims
            .entry(found.unwrap_or_else(|| file.path.clone()))
            .or_default()
            .push(Claim {
                package: index,
                digest,
                facts,
                config: conffile.is_some() || flags.config,
            });
    });
    claims
}

/// What differs between the node that is there and what a package brought.
fn fields(
    source: &dyn Source,
    path: &GuestPath,
    node: &Node,
    claim: &Claim<'_>,
    names: &Names,
) -> crate::error::Result<Vec<Field>> {
    let mut fields = Vec::new();
    let facts = claim.facts;
    let mode = facts.and_then(|f| f.mode);
    let kind = mode.map(|mode| mode & 0o170_000).filter(|kind| *kind != 0);
    let mut node = node;
    if let (Kind::Symlink { .. }, Some(0o040_000)) = (&node.kind, kind)
        && let Ok(target) = source.tree().resolve(path, true)
        && let Some(dir) = source.tree().get(&target).filter(|n| n.is_dir())
    {
        node = dir;
    }
    let same_kind = match (&node.kind, kind) {
        (_, None) => claim.digest.is_none() || node.is_file(),
        (Kind::File { .. }, Some(kind)) => kind == 0o100_000,
        (Kind::Symlink { .. }, Some(kind)) => kind == 0o120_000,
        (Kind::Directory, Some(kind)) => kind == 0o040_000,
        (_, Some(kind)) => !matches!(kind, 0o100_000 | 0o120_000 | 0o040_000),
    };
    if !same_kind {
        return Ok(vec![Field::Type]);
    }
    if let (true, Some(digest)) = (node.is_file(), claim.digest) {
        let size = facts.and_then(|f| f.size).filter(|_| !claim.config);
        if size.is_some_and(|size| size != node.size()) || digest_of(source, node.id, digest)? != *digest {
            fields.push(Field::Content);
        }
    }
    let Some(facts) = facts else { return Ok(fields) };
    if let (Kind::Symlink { target }, Some(link)) = (&node.kind, &facts.link)
        && **target != **link
    {
        fields.push(Field::Target);
    }
    if let (Some(mode), false) = (mode, matches!(node.kind, Kind::Symlink { .. }))
        && mode & 0o7777 != u32::from(node.mode)
    {
        fields.push(Field::Mode);
    }
    if let Some(user) = &facts.user
        && names.user(node.uid) != Some(user.as_str())
    {
        fields.push(Field::User);
    }
    if let Some(group) = &facts.group
        && names.group(node.gid) != Some(group.as_str())
    {
        fields.push(Field::Group);
    }
    Ok(fields)
}

/// The machine's own names of users and groups by number.
struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    fn read(source: &dyn Source) -> Self {
        let read = |path| {
            let text = crate::source::read_file(source, path, 16 << 20).ok().flatten();
            let mut names = HashMap::from([(0, "root".to_owned())]);
            for line in text.unwrap_or_default().split(|b| *b == b'\n') {
                let mut fields = line.split(|b| *b == b':');
                let name = fields.next().and_then(|n| std::str::from_utf8(n).ok());
                let id = fields
                    .nth(1)
                    .and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
                if let (Some(name), Some(id)) = (name, id) {
                    names.entry(id).or_insert_with(|| name.to_owned());
                }
            }
            names
        };
        Self {
            users: read("/etc/passwd"),
            groups: read("/etc/group"),
        }
    }

    fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }

    fn group(&self, gid: u32) -> Option<&str> {
        self.groups.get(&gid).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pkgdb::{Conffile, FileFlags, PackageFile};
    use crate::progress::Silent;
    use crate::source::memory::MemorySource;
    use md5::Digest;

    fn p(path: &str) -> GuestPath {
        GuestPath::new(path.as_bytes()).unwrap()
    }

    fn md5(text: &str) -> FileDigest {
        FileDigest::Md5(md5::Md5::digest(text).into())
    }

    fn file(path: &str, facts: FileFacts) -> PackageFile {
        PackageFile {
            path: p(path),
            facts: Some(Box::new(facts)),
        }
    }

    fn content(text: &str) -> FileFacts {
        FileFacts {
            digest: Some(md5(text)),
            ..FileFacts::default()
        }
    }

    #[test]
    fn every_kind_of_change_is_told_and_nothing_else() {
        let source = MemorySource::new("m")
            .file("/etc/passwd", "root:x:0:0::/:\nwww:x:33:33::/:\n")
            .file("/etc/group", "root:x:0:\n")
            .symlink("/bin", "usr/bin")
            .file("/usr/bin/good", "good")
            .file("/usr/bin/bad", "evil")
            .symlink("/usr/bin/turned", "good")
            .symlink("/usr/bin/link", "good")
            .file("/usr/bin/shared", "of b")
            .file("/etc/conf", "mine")
            .file("/etc/kept", "kept")
            .file("/var/log/x", "log")
            .file("/usr/bin/suid", "s")
            .build();
        let mode = |mode| FileFacts {
            mode: Some(mode),
            ..FileFacts::default()
        };
        let packages = [
            Package {
                name: "a".into(),
                files: vec![
                    file("/bin/good", content("good")),
                    file("/bin/bad", content("good")),
                    file("/bin/gone", content("good")),
                    file("/bin/turned", content("good")),
                    file("/bin/shared", content("of a")),
                    p("/etc/conf").into(),
                    p("/etc/kept").into(),
                    p("/etc/removed").into(),
                    // Only the name is known.
                    p("/usr/bin/nowhere").into(),
                    p("/usr/bin/good").into(),
                ],
                conffiles: ["/etc/conf", "/etc/kept", "/etc/removed"]
                    .map(|path| Conffile {
                        path: p(path),
                        digest: Some(md5("kept")),
                        obsolete: false,
                        missing_ok: false,
                    })
                    .into(),
                ..Package::default()
            },
            Package {
                name: "b".into(),
                files: vec![
                    file("/usr/bin/shared", content("of b")),
                    file(
                        "/var/log/x",
                        FileFacts {
                            flags: FileFlags {
                                ghost: true,
                                ..FileFlags::default()
                            },
                            ..content("other")
                        },
                    ),
                    file(
                        "/usr/bin/link",
                        FileFacts {
                            link: Some(b"elsewhere".to_vec()),
                            ..mode(0o120_777)
                        },
                    ),
                    file(
                        "/usr/bin/suid",
                        FileFacts {
                            user: Some("www".into()),
                            group: Some("root".into()),
                            ..mode(0o104_755)
                        },
                    ),
                    file("/usr", mode(0o040_700)),
                    file("/bin", mode(0o040_755)),
                    file("/etc", mode(0o100_644)),
                ],
                ..Package::default()
            },
        ];
        let (changed, problems) = find(&source, &packages, 2, &Silent);
        assert_eq!(problems, []);
        let rows: Vec<String> = changed
            .iter()
            .map(|c| {
                let fields: Vec<_> = c.fields.iter().map(|f| f.name()).collect();
                format!("{} {} {} {}", c.path, c.package, c.config, fields.join(","))
            })
            .collect();
        assert_eq!(
            rows,
            [
                "/bin/gone a false missing",
                "/etc b false type",
                "/etc/conf a true content",
                "/etc/removed a true missing",
                "/usr b false mode",
                "/usr/bin/bad a false content",
                "/usr/bin/link b false target",
                "/usr/bin/nowhere a false missing",
                "/usr/bin/suid b false mode,user",
                "/usr/bin/turned a false type",
            ]
        );
    }
}
