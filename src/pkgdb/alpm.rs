//! alpm's database: `/var/lib/pacman/local/NAME-VERSION/{desc,files,mtree}` (libalpm; alpm-db-desc(5), alpm-db-files(5),
//! alpm-mtree(5), mtree(5)).

use super::{Conffile, FileDigest, FileFacts, Listing, Package, PackageFile, Relations, SourcePackage};
use crate::arch::Arch;
use crate::bytes::unhex;
use crate::error::{Error, Escaped, Result};
use crate::path::GuestPath;
use crate::read_at::read_all;
use crate::source::Source;
use crate::tree::Problem;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;

/// The name in `pkgdb::DATABASES`.
pub const NAME: &str = "alpm";

const LOCAL: &str = "/var/lib/pacman/local";

/// The largest `desc`: those with much text have 100 KB.
const DESC_LIMIT: u64 = 8 << 20;
/// The largest `files` and `mtree`, the latter also unpacked.
const LIST_LIMIT: u64 = 128 << 20;

/// True if the machine has an alpm database.
pub fn probe(source: &dyn Source) -> bool {
    source.tree().find(LOCAL).is_some()
}

/// Reads the database.
///
/// `manual` is false where `%REASON%` is 1. A package whose `desc` cannot be read becomes a problem, as does a missing or
/// damaged `files` or `mtree`; of the latter the facts of the files are missing then.
///
/// # Errors
/// [`Error::Corrupt`] if not one package can be read, else as the source's reader.
pub fn read(source: &dyn Source) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut first: Option<Error> = None;
    let tree = source.tree();
    let Some((local, _)) = tree.find(LOCAL) else {
        return Err(Error::corrupt(format!("{LOCAL} is missing"), 0));
    };
    let folders = tree.children(&local).filter(|(_, node)| node.is_dir());
    for (folder, _) in folders {
        match package(source, folder, &mut listing.problems) {
            Ok(package) => listing.packages.push(package),
            Err(e) => {
                listing.problems.push(Problem {
                    path: folder.clone(),
                    what: e.to_string(),
                });
                first = first.or(Some(e));
            }
        }
    }
    if listing.packages.is_empty() {
        return Err(first.unwrap_or_else(|| {
            Error::corrupt(format!("{LOCAL}: the alpm database has no installed package"), 0)
        }));
    }
    let key = |p: &Package| (p.name.clone(), p.arch.clone());
    listing.packages.sort_by_cached_key(key);
    for pair in listing.packages.windows(2) {
        if let [a, b] = pair
            && a.name == b.name
        {
            listing.problems.push(Problem {
                path: local.clone(),
                what: format!(
                    "package {} is there twice: {} and {}",
                    a.name,
                    a.full_version(),
                    b.full_version()
                ),
            });
        }
    }
    Ok(listing)
}

/// The content of `folder/name`; `None` if there is no such file.
fn file(source: &dyn Source, folder: &GuestPath, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let path = folder.join(name.as_bytes())?;
    match source.tree().get(&path) {
        Some(node) if node.is_file() => read_all(&*source.open(node.id)?, limit).map(Some),
        _ => Ok(None),
    }
}

/// The package of one folder.
fn package(source: &dyn Source, folder: &GuestPath, problems: &mut Vec<Problem>) -> Result<Package> {
    let Some(desc) = file(source, folder, "desc", DESC_LIMIT)? else {
        return Err(Error::corrupt("a package without desc", 0));
    };
    let mut package = description(&desc)?;
    let mut told = |what: String| {
        problems.push(Problem {
            path: folder.clone(),
            what,
        });
    };
    if folder.name() != format!("{}-{}", package.name, package.full_version()).as_bytes() {
        told(format!(
            "the folder of {} {} has another name",
            package.name,
            package.full_version()
        ));
    }
    let files = file(source, folder, "files", LIST_LIMIT).and_then(|bytes| match bytes {
        Some(bytes) => listed(&bytes, &mut package).map(Some),
        None => Ok(None),
    });
    match files {
        Ok(Some(0)) => {}
        Ok(Some(bad)) => told(format!(
            "the file list of {} has {bad} lines that are no paths",
            package.name
        )),
        Ok(None) => told(format!("the file list of {} is missing", package.name)),
        Err(e) => told(format!("the file list of {}: {e}", package.name)),
    }
    let facts = file(source, folder, "mtree", LIST_LIMIT).and_then(|bytes| match bytes {
        Some(bytes) => unpacked(&bytes).and_then(|text| mtree(&text)).map(Some),
        None => Ok(None),
    });
    match facts {
        Ok(Some(facts)) => attach(&mut package, facts),
        // Packages that other tools made have none.
        Ok(None) => {}
        Err(e) => told(format!("the mtree of {}: {e}", package.name)),
    }
    for conffile in &package.conffiles {
        let file = package.files.iter_mut().find(|f| f.path == conffile.path);
        if let Some(facts) = file.map(|f| f.facts.get_or_insert_default()) {
            facts.flags.config = true;
        }
    }
    Ok(package)
}

/// `%KEY%` and the lines below it up to an empty one.
fn sections(bytes: &[u8]) -> BTreeMap<&[u8], Vec<&[u8]>> {
    let mut found: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    let mut key: Option<&[u8]> = None;
    for line in bytes.split(|b| *b == b'\n') {
        match line {
            [] => key = None,
            [b'%', name @ .., b'%'] if key.is_none() => {
                key = Some(name);
                found.entry(name).or_default();
            }
            _ => {
                if let Some(values) = key.and_then(|key| found.get_mut(key)) {
                    values.push(line);
                }
            }
        }
    }
    found
}

/// What `desc` says.
///
/// # Errors
/// [`Error::Corrupt`] if a field that every package has is missing or makes no sense.
pub fn description(desc: &[u8]) -> Result<Package> {
    let sections = sections(desc);
    let bad = |what: String| Error::corrupt(what, 0);
    let lines = |key: &str| -> Vec<String> {
        let values = sections.get(key.as_bytes()).into_iter().flatten();
        let texts = values.map(|v| String::from_utf8_lossy(v).trim().to_owned());
        texts.filter(|t| !t.is_empty()).collect()
    };
    let one = |key: &str| lines(key).into_iter().next();
    let name = one("NAME").ok_or_else(|| bad("desc has no NAME".to_owned()))?;
    if !is_name(&name) {
        let shown = Escaped(name.as_bytes()).to_string();
        return Err(bad(format!("{shown:?} is not a package name")));
    }
    let full = one("VERSION").ok_or_else(|| bad(format!("package {name} has no VERSION")))?;
    let version = super::dpkg::split_version(&full).filter(|(_, version, _)| {
        !version.is_empty() && !full.contains(|c: char| c.is_whitespace() || c == '/')
    });
    let (epoch, version, release) = version.ok_or_else(|| {
        let shown = Escaped(full.as_bytes()).to_string();
        bad(format!("package {name}: {shown:?} is not a version"))
    })?;
    let number = |key: &str| match one(key) {
        Some(text) => match text.parse::<i64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(bad(format!("package {name}: {key} is no number"))),
        },
        None => Ok(None),
    };
    let manual = match number("REASON")? {
        None | Some(0) => Some(true),
        Some(1) => Some(false),
        // 2: nobody knows.
        Some(_) => None,
    };
    let all = |key: &str| Some(lines(key).join(", ")).filter(|text| !text.is_empty());
    let size = number("SIZE")?.and_then(|n| u64::try_from(n).ok());
    let installed_at = number("INSTALLDATE")?;
    // `name: what for`.
    let optional = lines("OPTDEPENDS").into_iter();
    let suggests = optional.map(|text| text.split_once(": ").map_or(&*text, |(n, _)| n).to_owned());
    Ok(Package {
        epoch,
        version: version.to_owned(),
        release: release.map(str::to_owned),
        arch: one("ARCH"),
        source: Some(SourcePackage {
            name: one("BASE").unwrap_or_else(|| name.clone()),
            version: Some(full.clone()),
        }),
        size,
        manual,
        database: NAME,
        relations: Relations {
            depends: lines("DEPENDS"),
            suggests: suggests.collect(),
            provides: lines("PROVIDES"),
            conflicts: lines("CONFLICTS"),
            replaces: lines("REPLACES"),
            ..Relations::default()
        },
        vendor: one("PACKAGER"),
        repository: one("INSTALLED_DB"),
        installed_at,
        section: all("GROUPS"),
        license: all("LICENSE"),
        summary: one("DESC"),
        homepage: one("URL"),
        name,
        ..Package::default()
    })
}

/// Adds what `files` lists; gives the number of lines that make no sense.
fn listed(bytes: &[u8], package: &mut Package) -> Result<usize> {
    let sections = sections(bytes);
    let Some(files) = sections.get(&b"FILES"[..]) else {
        // A package of nothing but dependencies has an empty file.
        return match bytes.trim_ascii() {
            [] => Ok(0),
            _ => Err(Error::corrupt("there is no FILES", 0)),
        };
    };
    let mut bad = 0;
    for line in files {
        match GuestPath::lenient(line) {
            Ok(path) if !path.is_root() && !line.starts_with(b"/") => package.files.push(path.into()),
            _ => bad += 1,
        }
    }
    for line in sections.get(&b"BACKUP"[..]).into_iter().flatten() {
        let mut parts = line.splitn(2, |b| *b == b'\t');
        let path = parts.next().map(GuestPath::lenient);
        let digest = parts.next().map(|d| String::from_utf8_lossy(d).trim().to_owned());
        match (path, digest) {
            (Some(Ok(path)), Some(digest)) => package.conffiles.push(Conffile {
                path,
                digest: md5(&digest),
                obsolete: false,
                missing_ok: false,
            }),
            _ => bad += 1,
        }
    }
    Ok(bad)
}

fn md5(text: &str) -> Option<FileDigest> {
    Some(FileDigest::Md5(unhex(text)?.try_into().ok()?))
}

/// gzip's content, of at most [`LIST_LIMIT`] bytes.
fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes.to_vec());
    }
    let mut text = Vec::new();
    let mut stream = flate2::bufread::MultiGzDecoder::new(bytes).take(LIST_LIMIT.saturating_add(1));
    stream
        .read_to_end(&mut text)
        .map_err(|e| Error::corrupt(format!("it is no gzip stream: {e}"), 0))?;
    if text.len() as u64 > LIST_LIMIT {
        return Err(Error::unsupported(format!("it has more than {LIST_LIMIT} bytes")));
    }
    Ok(text)
}

/// The facts of an mtree by path. `/set` gives values for the lines that follow.
///
/// # Errors
/// [`Error::Corrupt`] with the offset of the line that makes no sense.
pub fn mtree(text: &[u8]) -> Result<Vec<(GuestPath, FileFacts)>> {
    let mut found = Vec::new();
    let mut set: Vec<(&[u8], &[u8])> = Vec::new();
    let mut at: u64 = 0;
    for line in text.split(|b| *b == b'\n') {
        let start = at;
        at = at.saturating_add(line.len() as u64).saturating_add(1);
        let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
        let Some(name) = words.next().filter(|n| !n.starts_with(b"#")) else {
            continue;
        };
        let bad = |what: &str| {
            let shown = Escaped(line.get(..line.len().min(200)).unwrap_or_default()).to_string();
            Error::corrupt(format!("{shown:?}: {what}"), start)
        };
        let values = words.map(|word| match word.iter().position(|b| *b == b'=') {
            Some(at) => (
                word.get(..at).unwrap_or_default(),
                word.get(at.saturating_add(1)..).unwrap_or_default(),
            ),
            None => (word, &b""[..]),
        });
        match name {
            b"/set" => {
                for (key, value) in values {
                    set.retain(|(k, _)| *k != key);
                    set.push((key, value));
                }
            }
            b"/unset" => {
                for (key, _) in values {
                    set.retain(|(k, _)| *k != key);
                }
            }
            _ => {
                if !name.starts_with(b"./") && name != b"." {
                    return Err(bad("is no path"));
                }
                let path = unescaped(name).ok_or_else(|| bad("a wrong escape"))?;
                let path = GuestPath::lenient(&path).map_err(|_| bad("is no path"))?;
                let own: Vec<_> = values.collect();
                let facts = facts(set.iter().chain(&own)).map_err(bad)?;
                found.push((path, facts));
            }
        }
    }
    Ok(found)
}

/// The facts of one line; later values count.
fn facts<'v>(
    values: impl Iterator<Item = &'v (&'v [u8], &'v [u8])>,
) -> std::result::Result<FileFacts, &'static str> {
    let mut facts = FileFacts::default();
    let (mut kind, mut mode, mut md5_digest, mut sha256) = (0o100_000, None, None, None);
    let (mut uid, mut gid) = (None, None);
    for (key, value) in values {
        let text = std::str::from_utf8(value).map_err(|_| "a value that is no text")?;
        let raw = || unhex(text).ok_or("a wrong digest");
        match *key {
            b"type" => {
                kind = match text {
                    "file" => 0o100_000,
                    "dir" => 0o040_000,
                    "link" => 0o120_000,
                    "char" => 0o020_000,
                    "block" => 0o060_000,
                    "fifo" => 0o010_000,
                    "socket" => 0o140_000,
                    _ => return Err("an unknown type"),
                }
            }
            b"mode" => mode = Some(u32::from_str_radix(text, 8).map_err(|_| "a wrong mode")? & 0o7777),
            b"size" => facts.size = Some(text.parse().map_err(|_| "a wrong size")?),
            b"time" => {
                let seconds = text.split('.').next().unwrap_or_default();
                facts.mtime = Some(seconds.parse().map_err(|_| "a wrong time")?);
            }
            b"uid" => uid = Some(text),
            b"gid" => gid = Some(text),
            b"uname" => facts.user = Some(text.to_owned()),
            b"gname" => facts.group = Some(text.to_owned()),
            b"link" => facts.link = Some(unescaped(value).ok_or("a wrong escape")?),
            b"md5digest" | b"md5" => md5_digest = Some(raw()?.try_into().map_err(|_| "a wrong digest")?),
            b"sha256digest" | b"sha256" => sha256 = Some(raw()?.try_into().map_err(|_| "a wrong digest")?),
            _ => {}
        }
    }
    // Names count where there are both.
    facts.user = facts.user.or_else(|| uid.map(str::to_owned));
    facts.group = facts.group.or_else(|| gid.map(str::to_owned));
    if kind == 0o120_000 {
        facts.size = None;
    } else {
        facts.link = None;
    }
    facts.mode = mode.map(|mode| mode | kind);
    if kind == 0o100_000 {
        facts.digest = sha256.map(FileDigest::Sha256).or(md5_digest.map(FileDigest::Md5));
    }
    Ok(facts)
}

/// Octal escapes of vis(3): `\040`.
fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        if let [b'\\', after @ ..] = rest {
            out.push(b'\\');
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..3)?).ok()?;
        out.push(u8::from_str_radix(digits, 8).ok()?);
        rest = rest.get(3..)?;
    }
    Some(out)
}

/// Gives the listed files their facts. Without a list the mtree is one; what lies at its root with a dot in front is the
/// package's own data.
fn attach(package: &mut Package, facts: Vec<(GuestPath, FileFacts)>) {
    let own =
        |path: &GuestPath| path.as_bytes().starts_with(b"/.") && path.parent().is_none_or(|p| p.is_root());
    if package.files.is_empty() {
        let listed = facts
            .into_iter()
            .filter(|(path, _)| !path.is_root() && !own(path));
        package.files = listed
            .map(|(path, facts)| PackageFile {
                path,
                facts: Some(Box::new(facts)),
            })
            .collect();
        return;
    }
    let mut by_path: HashMap<GuestPath, FileFacts> = facts.into_iter().collect();
    for file in &mut package.files {
        file.facts = by_path.remove(&file.path).map(Box::new);
    }
}

/// PKGBUILD(5): letters, digits and `@._+-`, not `-` or `.` in front.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || "@_+".contains(c))
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "@._+-".contains(c))
}

/// The architecture in the words of OCI for one in alpm's.
pub fn oci_arch(arch: &str) -> Option<Arch> {
    let (architecture, variant) = match arch {
        "x86_64" | "x86_64_v2" | "x86_64_v3" | "x86_64_v4" => ("amd64", None),
        "i486" | "i586" | "i686" | "pentium4" => ("386", None),
        "aarch64" => ("arm64", None),
        "armv7h" => ("arm", Some("v7")),
        "armv6h" => ("arm", Some("v6")),
        "arm" => ("arm", Some("v5")),
        "riscv64" => ("riscv64", None),
        "loong64" | "loongarch64" => ("loong64", None),
        "powerpc64le" => ("ppc64le", None),
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
    use crate::source::memory::{Builder, MemorySource};

    const DESC: &str = "%NAME%\na\n\n%VERSION%\n1:2.3-4\n\n%BASE%\nsrc\n\n%ARCH%\nx86_64\n\n%SIZE%\n9\n\n%REASON%\n1\n\n\
        %INSTALLDATE%\n1700000000\n\n%LICENSE%\nMIT\nGPL\n\n%DEPENDS%\nb>=1\nlibz.so=1-64\n\n%OPTDEPENDS%\nc: for d\n\n%PROVIDES%\nv=2\n";
    const FILES: &str = "%FILES%\netc/\netc/a.conf\nusr/bin/a b\nusr/bin/l\n\n%BACKUP%\netc/a.conf\t79fce043df7dfc676ae5ecb903762d8b\n";
    const MTREE: &str = "#mtree\n/set type=file uid=0 gid=0 mode=644\n./.PKGINFO time=1.0 size=1\n./etc time=5.0 mode=755 type=dir\n\
        ./etc/a.conf time=6.5 size=3 md5digest=79fce043df7dfc676ae5ecb903762d8b\n\
        ./usr/bin/a\\040b mode=4755 uid=7 time=7 size=4 sha256digest=91a614b9202453153fe3b7512d15e89659108b93ce8841c8e13789eb85da9e3a\n\
        ./usr/bin/l type=link mode=777 link=a\\040b time=8\n";

    fn with(desc: &str, files: &str, mtree: &str) -> Builder {
        MemorySource::new("m")
            .file("/var/lib/pacman/local/ALPM_DB_VERSION", "9\n")
            .file("/var/lib/pacman/local/a-1:2.3-4/desc", desc)
            .file("/var/lib/pacman/local/a-1:2.3-4/files", files)
            .file("/var/lib/pacman/local/a-1:2.3-4/mtree", mtree)
    }

    #[test]
    fn fields() {
        let listing = read(&with(DESC, FILES, MTREE).build()).unwrap();
        assert_eq!(listing.problems, []);
        let [a] = listing.packages.as_slice() else {
            panic!("{:?}", listing.packages)
        };
        assert_eq!(a.full_version(), "1:2.3-4");
        assert_eq!((a.epoch, a.size, a.manual), (Some(1), Some(9), Some(false)));
        assert_eq!(a.source.as_ref().unwrap().name, "src");
        assert_eq!(a.license.as_deref(), Some("MIT, GPL"));
        assert_eq!(a.relations.depends, ["b>=1", "libz.so=1-64"]);
        assert_eq!(a.relations.suggests, ["c"]);
        let facts = |at: usize| a.files[at].facts.as_deref().unwrap();
        assert_eq!(facts(0).mode, Some(0o040_755));
        assert!(matches!(facts(1).digest, Some(FileDigest::Md5(_))) && facts(1).flags.config);
        assert_eq!(
            (facts(2).mode, facts(2).user.as_deref()),
            (Some(0o104_755), Some("7"))
        );
        assert!(matches!(facts(2).digest, Some(FileDigest::Sha256(_))));
        assert_eq!(facts(2).mtime, Some(7));
        assert_eq!(
            (facts(3).mode, facts(3).link.as_deref()),
            (Some(0o120_777), Some(&b"a b"[..]))
        );
        assert_eq!(a.conffiles.len(), 1);
        let database = crate::pkgdb::Database::named(NAME).unwrap();
        assert_eq!(database.arch_of(&listing.packages), Some("x86_64"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let good = "%NAME%\nb\n\n%VERSION%\n1-1\n";
        for (desc, files, mtree, packages) in [
            ("%NME%\na\n", "", "", 1),
            ("%NAME%\n../a\n\n%VERSION%\n1-1\n", "", "", 1),
            ("%NAME%\na\n\n%VERSION%\nx:1-1\n", "", "", 1),
            ("%NAME%\na\n\n%VERSION%\n1:2.3-4\n\n%SIZE%\nbig\n", "", "", 1),
            (DESC, "%FILES%\n/etc\n", "", 2),
            (DESC, "junk", "", 2),
            (DESC, FILES, "\x1f\u{fffd}", 2),
            (DESC, FILES, "./a mode=9\n", 2),
            (DESC, FILES, "./a\\9 mode=7\n", 2),
            (DESC, FILES, "./../a mode=7\n", 2),
        ] {
            let source = with(desc, files, mtree)
                .file("/var/lib/pacman/local/b-1-1/desc", good)
                .file("/var/lib/pacman/local/b-1-1/files", "");
            let listing = read(&source.build()).unwrap();
            assert_eq!(listing.packages.len(), packages, "{desc:?}");
            assert_eq!(
                listing.problems.len(),
                1,
                "{desc:?} {files:?} {mtree:?}: {:?}",
                listing.problems
            );
        }
        let empty = MemorySource::new("m").dir("/var/lib/pacman/local").build();
        assert!(matches!(read(&empty), Err(Error::Corrupt { .. })));
        assert!(matches!(
            read(&with("", "", "").build()),
            Err(Error::Corrupt { .. })
        ));
    }
}
