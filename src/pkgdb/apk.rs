//! apk's database: `installed` (apk-installed of apk-tools: lines of a letter, a colon and a value) and `world`
//! (apk-world(5)).

use super::{Conffile, FileDigest, FileFacts, FileFlags, Listing, Package, PackageFile, SourcePackage};
use crate::arch::Arch;
use crate::error::{Error, Escaped, Result};
use crate::path::GuestPath;
use crate::source::{Source, read_file};
use crate::tree::{Kind, Problem, Tree};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The name in `pkgdb::DATABASES`.
pub const NAME: &str = "apk";

/// apk 3 moved it below `/usr`.
const PLACES: &[&str] = &["/usr/lib/apk/db/installed", "/lib/apk/db/installed"];
const WORLD: &str = "/etc/apk/world";
const REPOSITORIES: &str = "/etc/apk/repositories";
const ARCH: &str = "/etc/apk/arch";

/// The largest `installed` that is read: 1,000 packages have about 5 MB.
const LIMIT: u64 = 256 << 20;
/// The same for the small files.
const SMALL: u64 = 4 << 20;
/// How many entries that cannot be read are told.
const MAX_PROBLEMS: usize = 1000;

/// True if the machine has an apk database.
pub fn probe(source: &dyn Source) -> bool {
    PLACES.iter().any(|path| source.tree().find(path).is_some())
}

/// Reads the database.
///
/// `manual` is true for the packages that `world` names, or whose provides it names where no package has that name. Without
/// a `world` nobody knows. An entry that cannot be read becomes a problem.
///
/// A relation is a word as it stands, `!name` among `depends` included. An `install_if` of one word is among `supplements`;
/// of several, which must hold together, among `enhances`.
///
/// # Errors
/// [`Error::Corrupt`] if not one package can be read, else as the source's reader.
pub fn read(source: &dyn Source) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut first: Option<Error> = None;
    let mut seen = BTreeSet::new();
    for place in PLACES {
        let Some((path, _)) = source.tree().find(place) else {
            continue;
        };
        if !seen.insert(path.clone()) {
            continue;
        }
        if !listing.packages.is_empty() {
            listing
                .notes
                .push(format!("{path}: a second apk database was not read"));
            continue;
        }
        if let Some(bytes) = read_file(source, place, LIMIT)? {
            let failed = entries(source.tree(), &path, &bytes, &mut listing);
            first = first.or(failed);
        }
    }
    if listing.packages.is_empty() {
        return Err(first.unwrap_or_else(|| Error::corrupt("the apk database has no installed package", 0)));
    }
    if let Some(world) = read_file(source, WORLD, SMALL)? {
        mark(&mut listing.packages, &world);
    }
    if let Some(lines) = read_file(source, REPOSITORIES, SMALL)? {
        let tags = tags(&lines);
        for package in &mut listing.packages {
            if let Some(tag) = &package.repository {
                package.repository = Some(tags.get(tag).unwrap_or(tag).clone());
            }
        }
    }
    Ok(listing)
}

/// Reads all entries of one file; gives the first error.
fn entries(tree: &Tree, path: &GuestPath, bytes: &[u8], listing: &mut Listing) -> Option<Error> {
    let mut packages: BTreeMap<(String, String), Package> = BTreeMap::new();
    let mut first = None;
    let mut wrong = 0;
    for (at, entry) in split(bytes) {
        let added = parse(tree, at, entry).and_then(|(package, broken)| {
            let key = (package.name.clone(), package.arch.clone().unwrap_or_default());
            if packages.contains_key(&key) {
                return Err(Error::corrupt(
                    format!("package {} stands there twice", key.0),
                    at,
                ));
            }
            if let Some(broken) = broken {
                listing
                    .notes
                    .push(format!("{}: apk says that it is broken ({broken})", key.0));
            }
            packages.insert(key, package);
            Ok(())
        });
        if let Err(e) = added {
            wrong += 1;
            if wrong <= MAX_PROBLEMS {
                listing.problems.push(Problem {
                    path: path.clone(),
                    what: e.to_string(),
                });
            }
            first = first.or(Some(e));
        }
    }
    if wrong > MAX_PROBLEMS {
        listing.problems.push(Problem {
            path: path.clone(),
            what: format!("{} more entries cannot be read", wrong - MAX_PROBLEMS),
        });
    }
    listing.packages = packages.into_values().collect();
    first
}

/// The entries, which empty lines part, with their offsets.
fn split(bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(at..).filter(|r| !r.is_empty())?;
            let len = rest
                .windows(2)
                .position(|w| w == b"\n\n")
                .map_or(rest.len(), |n| n + 1);
            let start = at;
            at = at.saturating_add(len);
            let entry = rest.get(..len).unwrap_or_default();
            if entry.iter().any(|b| *b != b'\n') {
                return Some((start as u64, entry));
            }
        }
    })
}

/// A directory or file in the making.
#[derive(Default)]
struct Folder {
    path: Option<GuestPath>,
    /// Where the last file or directory stands in the package's list.
    last: Option<usize>,
}

/// The package of one entry, and apk's own flags where it is broken.
fn parse(tree: &Tree, at: u64, entry: &[u8]) -> Result<(Package, Option<String>)> {
    let bad = |what: String| Error::corrupt(what, at);
    let shown = |text: &[u8]| Escaped(text).to_string();
    let mut package = Package {
        database: NAME,
        ..Package::default()
    };
    let (mut origin, mut broken) = (None, None);
    let mut folder = Folder::default();
    for line in entry.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let [letter, b':', value @ ..] = line else {
            return Err(bad(format!("{:?} is no field", shown(line))));
        };
        let text = || String::from_utf8_lossy(value).trim().to_owned();
        let some = || Some(text()).filter(|t| !t.is_empty());
        let words = || -> Vec<String> { text().split_ascii_whitespace().map(str::to_owned).collect() };
        match letter {
            b'P' => package.name = text(),
            b'V' => {
                let text = text();
                let (version, release) = match text.rsplit_once('-') {
                    Some((version, release)) => (version, Some(release)),
                    None => (text.as_str(), None),
                };
                package.version = version.to_owned();
                package.release = release.map(str::to_owned);
            }
            b'A' => package.arch = some(),
            b'I' => {
                let size = text()
                    .parse()
                    .map_err(|_| bad(format!("{:?} is no size", shown(value))))?;
                package.size = Some(size);
            }
            b'T' => package.summary = some(),
            b'U' => package.homepage = some(),
            b'L' => package.license = some(),
            b'm' => package.maintainer = some(),
            b'o' => origin = some(),
            b's' => package.repository = some(),
            b'f' => broken = some(),
            b'D' => package.relations.depends = words(),
            b'p' => package.relations.provides = words(),
            b'r' => package.relations.replaces = words(),
            b'i' => match words() {
                one if one.len() == 1 => package.relations.supplements = one,
                all => package.relations.enhances = all,
            },
            b'F' | b'R' | b'M' | b'a' | b'Z' => {
                file_field(&mut package, &mut folder, *letter, value)
                    .map_err(|what| bad(format!("{}: {what}", shown(line))))?;
            }
            // C (digest of the package), S (its size), t (when it was built), c (from what), k and q (priorities), and
            // what later versions add.
            _ => {}
        }
    }
    if !is_name(&package.name) {
        return Err(bad(format!(
            "{:?} is not a package name",
            shown(package.name.as_bytes())
        )));
    }
    if package.version.is_empty() || package.version.contains(char::is_whitespace) {
        return Err(bad(format!("package {} has no version", package.name)));
    }
    package.source = Some(SourcePackage {
        name: origin.unwrap_or_else(|| package.name.clone()),
        version: Some(package.full_version()),
    });
    finish(tree, &mut package);
    Ok((package, broken))
}

/// One of the fields that list files: `F` and `M` of a directory, `R`, `a` and `Z` of a file in it.
fn file_field(
    package: &mut Package,
    folder: &mut Folder,
    letter: u8,
    value: &[u8],
) -> std::result::Result<(), &'static str> {
    let path = |bytes: &[u8]| GuestPath::lenient(bytes).map_err(|_| "is no path");
    match letter {
        b'F' => {
            let dir = path(value)?;
            // The root is every package's.
            folder.last = (!dir.is_root()).then_some(package.files.len());
            if folder.last.is_some() {
                push(package, dir.clone(), 0o040_755);
            }
            folder.path = Some(dir);
        }
        b'R' => {
            let dir = folder.path.as_ref().ok_or("stands before a directory")?;
            let file = dir.join(value).map_err(|_| "is no file name")?;
            folder.last = Some(package.files.len());
            push(package, file, 0o100_644);
        }
        b'M' | b'a' => {
            let Some(facts) = facts_of(package, folder)? else {
                return Ok(());
            };
            let text = std::str::from_utf8(value).map_err(|_| "is no owner and mode")?;
            let mut parts = text.split(':');
            let mut number = |radix| {
                let part = parts.next().ok_or("is no owner and mode")?;
                u32::from_str_radix(part, radix).map_err(|_| "is no owner and mode")
            };
            let (user, group, mode) = (number(10)?, number(10)?, number(8)?);
            let kind = facts.mode.unwrap_or_default() & 0o170_000;
            facts.user = Some(user.to_string());
            facts.group = Some(group.to_string());
            facts.mode = Some(kind | mode & 0o7777);
        }
        _ => {
            let Some(facts) = facts_of(package, folder)? else {
                return Ok(());
            };
            facts.digest = Some(digest(value).ok_or("is no digest")?);
        }
    }
    Ok(())
}

fn push(package: &mut Package, path: GuestPath, mode: u32) {
    let facts = FileFacts {
        mode: Some(mode),
        user: Some("0".to_owned()),
        group: Some("0".to_owned()),
        flags: FileFlags {
            // What apk protects where nothing else is said.
            config: mode & 0o170_000 == 0o100_000 && path.as_bytes().starts_with(b"/etc/"),
            ..FileFlags::default()
        },
        ..FileFacts::default()
    };
    package.files.push(PackageFile {
        path,
        facts: Some(Box::new(facts)),
    });
}

/// The facts that a field behind `F` or `R` is about; `None` for the root.
fn facts_of<'p>(
    package: &'p mut Package,
    folder: &Folder,
) -> std::result::Result<Option<&'p mut FileFacts>, &'static str> {
    if folder.path.is_none() {
        return Err("stands before a directory");
    }
    let file = folder.last.and_then(|at| package.files.get_mut(at));
    Ok(file.and_then(|f| f.facts.as_deref_mut()))
}

/// `Q1` and `Q2` are SHA-1 and SHA-256 in base64; plain hexadecimal digits are MD5 or SHA-1 (apk 1).
fn digest(text: &[u8]) -> Option<FileDigest> {
    let raw = match text {
        [b'Q', b'1', rest @ ..] | [b'Q', b'2', rest @ ..] => STANDARD.decode(rest).ok()?,
        hex => crate::bytes::unhex(std::str::from_utf8(hex).ok()?)?,
    };
    match (text, raw.len()) {
        ([b'Q', b'1', ..], 20) => Some(FileDigest::Sha1(raw.try_into().ok()?)),
        ([b'Q', b'2', ..], 32) => Some(FileDigest::Sha256(raw.try_into().ok()?)),
        ([b'Q', ..], _) => None,
        (_, 20) => Some(FileDigest::Sha1(raw.try_into().ok()?)),
        (_, 16) => Some(FileDigest::Md5(raw.try_into().ok()?)),
        _ => None,
    }
}

/// The database does not tell a symlink from a file: its mode is 777 and its digest is that of the target. Where the tree has
/// a symlink at that place it is one, and its target is the package's if the digest says so.
fn finish(tree: &Tree, package: &mut Package) {
    for file in &mut package.files {
        let Some(facts) = file.facts.as_deref_mut() else {
            continue;
        };
        if facts.mode == Some(0o100_777)
            && let Some(Kind::Symlink { target }) = tree.get(&file.path).map(|node| &node.kind)
        {
            facts.mode = Some(0o120_777);
            facts.flags.config = false;
            let stated = facts.digest.take();
            let same = stated == Some(FileDigest::Sha1(Sha1::digest(target).into()));
            facts.link = same.then(|| target.to_vec());
        }
        if facts.flags.config {
            package.conffiles.push(Conffile {
                path: file.path.clone(),
                digest: facts.digest.clone(),
                obsolete: false,
                missing_ok: false,
            });
        }
    }
}

/// `name`, `name=1.2`, `name@tag`, ... of `world`; a word with `!` forbids a package.
fn mark(packages: &mut [Package], world: &[u8]) {
    let text = String::from_utf8_lossy(world);
    let names: BTreeSet<&str> = text
        .split_ascii_whitespace()
        .filter(|word| !word.starts_with('!'))
        .filter_map(|word| word.split(['=', '<', '>', '~', '@']).next())
        .collect();
    let own: BTreeSet<String> = packages.iter().map(|p| p.name.clone()).collect();
    for package in packages {
        let provides = package.relations.provides.iter();
        let provided = provides
            .filter_map(|p| p.split(['=', '<', '>', '~']).next())
            .any(|name| names.contains(name) && !own.contains(name));
        package.manual = Some(provided || names.contains(package.name.as_str()));
    }
}

/// The URLs of the lines `@tag URL`.
fn tags(lines: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(lines);
    let lines = text.lines().filter_map(|line| {
        let (tag, url) = line.trim().strip_prefix('@')?.split_once(char::is_whitespace)?;
        Some((tag.to_owned(), url.trim().to_owned()))
    });
    lines.collect()
}

/// Wider than what apk builds today; nothing that a command or a path could take for something else.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || "._".contains(c))
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
}

/// The machine's own architecture in apk's words: what `/etc/apk/arch` states.
///
/// # Errors
/// As the source's reader.
pub fn stated_arch(source: &dyn Source) -> Result<Option<String>> {
    let stated = read_file(source, ARCH, SMALL)?;
    let stated = stated.and_then(|b| String::from_utf8(b.trim_ascii().to_vec()).ok());
    Ok(stated.filter(|arch| oci_arch(arch).is_some()))
}

/// The architecture in the words of OCI for one in apk's.
pub fn oci_arch(arch: &str) -> Option<Arch> {
    let (architecture, variant) = match arch {
        "x86_64" => ("amd64", None),
        "x86" => ("386", None),
        "aarch64" => ("arm64", None),
        "armhf" => ("arm", Some("v6")),
        "armv7" => ("arm", Some("v7")),
        "ppc64le" => ("ppc64le", None),
        "s390x" => ("s390x", None),
        "riscv64" => ("riscv64", None),
        "loongarch64" => ("loong64", None),
        "mips64" => ("mips64", None),
        _ => return None,
    };
    Some(Arch {
        architecture,
        variant,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    const DB: &str = "C:Q1v4QhLje3kWlC8DJj+ZfJTjlJRSU=\nP:a\nV:1.2-r3\nA:x86_64\nS:7\nI:4096\nT:text\no:src\ns:edge\n\
        D:b so:libz.so.1 !c\np:cmd:a=1.2-r3\ni:one\nr:old\nF:\nM:0:0:1777\nF:etc\nR:a.conf\na:0:42:640\n\
        Z:Q1ltrPIAW2zHeDiajsex2Bdmq3uqA=\nF:usr/bin\nM:0:0:700\nR:a\na:0:0:4755\nR:link\na:0:0:777\nZ:Q1pcfTfDNEbNKQc2s1tia7da05M8Q=\n\n\
        P:b\nV:5\nA:noarch\np:virtual so:b\ni:x y\nf:f\n";

    fn of(db: &str) -> crate::source::memory::Builder {
        MemorySource::new("m").file("/lib/apk/db/installed", db)
    }

    #[test]
    fn fields() {
        let source = of(DB)
            .symlink("/usr/bin/link", "/bin/busybox")
            .file("/etc/apk/world", "virtual>1\n!a\na2\n")
            .file("/etc/apk/repositories", "https://x/main\n@edge https://x/edge\n")
            .file("/etc/apk/arch", "aarch64\n")
            .build();
        let listing = read(&source).unwrap();
        assert_eq!(listing.problems, []);
        assert!(listing.notes[0].contains("broken"), "{:?}", listing.notes);
        let [a, b] = listing.packages.as_slice() else {
            panic!("{:?}", listing.packages)
        };
        assert_eq!((a.version.as_str(), a.release.as_deref()), ("1.2", Some("r3")));
        assert_eq!(a.full_version(), "1.2-r3");
        assert_eq!(b.full_version(), "5");
        assert_eq!(a.repository.as_deref(), Some("https://x/edge"));
        assert_eq!(a.relations.depends, ["b", "so:libz.so.1", "!c"]);
        assert_eq!(a.relations.supplements, ["one"]);
        assert_eq!(b.relations.enhances, ["x", "y"]);
        assert_eq!((a.manual, b.manual), (Some(false), Some(true)));
        let shown: Vec<_> = a
            .files
            .iter()
            .map(|f| (f.path.to_string(), f.facts.as_ref().unwrap().mode.unwrap()))
            .collect();
        let expected = [
            ("/etc", 0o040_755),
            ("/etc/a.conf", 0o100_640),
            ("/usr/bin", 0o040_700),
            ("/usr/bin/a", 0o104_755),
            ("/usr/bin/link", 0o120_777),
        ];
        assert_eq!(shown, expected.map(|(p, m)| (p.to_owned(), m)));
        // The digest in the database is that of the target.
        let link = a.files[4].facts.as_ref().unwrap();
        assert_eq!(
            (link.link.as_deref(), &link.digest),
            (Some(&b"/bin/busybox"[..]), &None)
        );
        assert_eq!(a.conffiles.len(), 1);
        assert_eq!(a.files[1].facts.as_ref().unwrap().group.as_deref(), Some("42"));
        let database = crate::pkgdb::Database::named(NAME).unwrap();
        let native = database.native(&source, &listing.packages).unwrap();
        assert_eq!(native.as_deref(), Some("aarch64"));
    }

    #[test]
    fn digests() {
        assert!(matches!(
            digest(b"Q1ltrPIAW2zHeDiajsex2Bdmq3uqA="),
            Some(FileDigest::Sha1(_))
        ));
        let sha256 = format!("Q2{}", STANDARD.encode([7; 32]));
        assert_eq!(digest(sha256.as_bytes()), Some(FileDigest::Sha256([7; 32])));
        assert!(matches!(digest(&[b'0'; 32]), Some(FileDigest::Md5(_))));
        assert_eq!(digest(b"Q3ltrPIAW2zHeDiajsex2Bdmq3uqA="), None);
        assert_eq!(digest(b"Q1AAAA"), None);
    }

    #[test]
    fn entries_that_make_no_sense_are_named() {
        for bad in [
            "P:x\n",
            "V:1\n",
            "P:x y\nV:1\n",
            "P:../x\nV:1\n",
            "P:x\nV:1\nI:many\n",
            "P:x\nV:1\nR:file\n",
            "P:x\nV:1\nZ:Q1AAAA\n",
            "P:x\nV:1\nF:etc\nR:../passwd\n",
            "P:x\nV:1\nF:../etc\n",
            "P:x\nV:1\nF:etc\nR:f\na:0:0\n",
            "P:x\nV:1\nF:etc\nR:f\na:0:0:9\n",
            "P:a\nV:1\nA:x86_64\n",
            "no field\n",
            "\0\0",
        ] {
            let listing = read(&of(&format!("{DB}\n{bad}")).build()).unwrap();
            assert_eq!(listing.packages.len(), 2, "{bad:?}");
            assert_eq!(listing.problems.len(), 1, "{bad:?}: {:?}", listing.problems);
        }
        for empty in ["", "\n\n\n", "junk", "C:Q1\n"] {
            assert!(
                matches!(read(&of(empty).build()), Err(Error::Corrupt { .. })),
                "{empty:?}"
            );
        }
    }
}
