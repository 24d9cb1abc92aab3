//! dpkg's database: `/var/lib/dpkg` (dpkg(1), deb-control(5), deb-version(7)), and `status.d` of distroless images.

use super::deb822::{Stanza, stanzas};
use super::dpkg_state::{self, AutoMarks, Diversion};
use super::{
    Conffile, Database, FileDigest, FileFacts, Listing, Md5Sum, Package, PackageFile, Relations,
    SourcePackage,
};
use crate::arch::Arch;
use crate::bytes::unhex;
use crate::error::{Error, Escaped, Result};
use crate::path::GuestPath;
use crate::source::{Source, read_file};
use crate::tree::Problem;
use std::collections::{BTreeMap, HashMap};

/// The name in `pkgdb::DATABASES`.
pub const NAME: &str = "dpkg";

const STATUS: &str = "/var/lib/dpkg/status";
const STATUS_D: &str = "/var/lib/dpkg/status.d";
const INFO: &str = "/var/lib/dpkg/info";
const UPDATES: &str = "/var/lib/dpkg/updates";

/// The largest `status` that is read: 40,000 packages have about 60 MB.
const STATUS_LIMIT: u64 = 512 << 20;
/// The largest list of files or digests of one package.
const LIST_LIMIT: u64 = 128 << 20;

/// True if the machine has a dpkg database.
pub fn probe(source: &dyn Source) -> bool {
    [STATUS, STATUS_D]
        .iter()
        .any(|path| source.tree().find(path).is_some())
}

/// Reads the database.
///
/// Packages that are `installed` (or only wait for triggers) are listed; those in the states unpacked, half-installed
/// and half-configured are named in the notes, those of which only configuration is left are not. A stanza that cannot
/// be read becomes a problem.
///
/// `manual` is false where apt's `extended_states` says `Auto-Installed: 1`. Where that file is missing but apt is
/// there, every package counts as manual, as apt itself counts; where apt is missing nobody knows.
///
/// # Errors
/// [`Error::Corrupt`] if not one installed package can be read, else as the source's reader.
pub fn read(source: &dyn Source) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut packages: BTreeMap<(String, String), (Package, bool)> = BTreeMap::new();
    let mut first: Option<Error> = None;
    for (file, distroless) in status_files(source) {
        let Some(bytes) = read_path(source, &file, STATUS_LIMIT)? else {
            continue;
        };
        for stanza in stanzas(&bytes) {
            let package = stanza.and_then(|s| package(&s, distroless));
            match package {
                Ok(package) => {
                    let key = (package.name.clone(), package.arch.clone().unwrap_or_default());
                    packages.insert(key, (package, distroless));
                }
                Err(e) => {
                    listing.problems.push(Problem {
                        path: file.clone(),
                        what: e.to_string(),
                    });
                    first = first.or(Some(e));
                }
            }
        }
        if file.is_in(&guest(UPDATES)?) {
            let note = format!("{file}: dpkg was interrupted, its journal was read");
            listing.notes.push(note);
        }
    }
    let info = Info::new(source)?;
    for (package, distroless) in packages.into_values() {
        let mut package = package;
        if !is_installed(&package, &mut listing.notes) {
            continue;
        }
        if distroless {
            info.read_distroless(source, &mut package, &mut listing.problems)?;
        } else {
            info.read(source, &mut package, &mut listing.problems)?;
        }
        listing.packages.push(package);
    }
    if listing.packages.is_empty() {
        return Err(first.unwrap_or_else(|| {
            Error::corrupt(format!("{STATUS}: the dpkg database has no installed package"), 0)
        }));
    }
    let native = match Database::named(NAME) {
        Some(database) => database.native(source, &listing.packages)?,
        None => None,
    };
    match dpkg_state::auto_marks(source, &mut listing.problems)? {
        Some(marks) => mark(&mut listing.packages, &marks, native.as_deref()),
        None if source.tree().find("/var/lib/apt").is_some() => {
            listing.packages.iter_mut().for_each(|p| p.manual = Some(true));
        }
        None => {}
    }
    let diversions = dpkg_state::diversions(source, &mut listing.problems)?;
    let diversions: HashMap<&GuestPath, &Diversion> = diversions.iter().map(|d| (&d.from, d)).collect();
    for package in &mut listing.packages {
        let files = package.files.iter().filter_map(|f| diversions.get(&f.path));
        package.diverted = files
            .filter(|d| d.package.as_deref() != Some(package.name.as_str()))
            .map(|d| (d.from.clone(), d.to.clone()))
            .collect();
    }
    listing.alternatives = dpkg_state::alternatives(source, &mut listing.problems)?;
    listing.stat_overrides = dpkg_state::stat_overrides(source, &mut listing.problems)?;
    Ok(listing)
}

/// The files that hold stanzas, in the order in which later ones win, and whether they are distroless ones.
fn status_files(source: &dyn Source) -> Vec<(GuestPath, bool)> {
    let tree = source.tree();
    let mut files: Vec<(GuestPath, bool)> = Vec::new();
    let in_dir = |dir: &str, wanted: fn(&[u8]) -> bool| -> Vec<GuestPath> {
        tree.find(dir)
            .map(|(dir, _)| {
                tree.children(&dir)
                    .filter(|(path, node)| node.is_file() && wanted(path.name()))
                    .map(|(path, _)| path.clone())
                    .collect()
            })
            .unwrap_or_default()
    };
    files.extend(
        in_dir(STATUS_D, |name| !name.ends_with(b".md5sums"))
            .into_iter()
            .map(|f| (f, true)),
    );
    files.extend(tree.find(STATUS).map(|(path, _)| (path, false)));
    // Changes that dpkg has not merged into `status` yet: numbered files.
    files.extend(
        in_dir(UPDATES, |name| name.iter().all(u8::is_ascii_digit))
            .into_iter()
            .map(|f| (f, false)),
    );
    files
}

/// The package of one stanza. A stanza of `status.d` has no `Status`.
///
/// # Errors
/// [`Error::Corrupt`] if a field that every package has is missing or makes no sense.
pub fn package(stanza: &Stanza<'_>, distroless: bool) -> Result<Package> {
    let bad = |what: String| Error::corrupt(what, stanza.at);
    let name = stanza
        .first_line("Package")
        .ok_or_else(|| bad("a package without a name".to_owned()))?;
    if !is_package_name(&name) {
        return Err(bad(format!(
            "{:?} is not a package name",
            Escaped(name.as_bytes()).to_string()
        )));
    }
    let status = match stanza.text("Status") {
        Some(status) => status,
        None if distroless => "install ok installed".to_owned(),
        None => return Err(bad(format!("package {name} has no Status"))),
    };
    if status.split_ascii_whitespace().count() != 3 {
        return Err(bad(format!(
            "package {name}: {:?} is not a Status",
            Escaped(status.as_bytes()).to_string()
        )));
    }
    let installed = !matches!(state(&status), "not-installed" | "config-files");
    let version = match stanza.first_line("Version") {
        Some(version) => version,
        None if installed => return Err(bad(format!("package {name} has no Version"))),
        None => String::new(),
    };
    let (epoch, upstream, release) = split_version(&version).ok_or_else(|| {
        bad(format!(
            "package {name}: {:?} is not a version",
            Escaped(version.as_bytes()).to_string()
        ))
    })?;
    let source = match stanza.first_line("Source") {
        Some(text) => {
            let (source, rest) = text.split_once(' ').unwrap_or((&text, ""));
            let stated = rest.trim().strip_prefix('(').and_then(|r| r.strip_suffix(')'));
            SourcePackage {
                name: source.to_owned(),
                version: Some(stated.map_or_else(|| version.clone(), str::to_owned)),
            }
        }
        None => SourcePackage {
            name: name.clone(),
            version: Some(version.clone()),
        },
    };
    let size = match stanza.first_line("Installed-Size") {
        // In KiB.
        Some(text) => match text.parse::<u64>().ok().and_then(|n| n.checked_mul(1024)) {
            Some(size) => Some(size),
            None => {
                return Err(bad(format!(
                    "package {name}: {:?} is not an Installed-Size",
                    Escaped(text.as_bytes()).to_string()
                )));
            }
        },
        None => None,
    };
    let yes = |field| {
        stanza
            .first_line(field)
            .is_some_and(|v| v.eq_ignore_ascii_case("yes"))
    };
    let list = |field| {
        let text = stanza.text(field).unwrap_or_default();
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    Ok(Package {
        epoch,
        version: upstream.to_owned(),
        release: release.map(str::to_owned),
        arch: stanza.first_line("Architecture"),
        multi_arch: stanza.first_line("Multi-Arch").filter(|v| v != "no"),
        source: Some(source),
        size,
        manual: None,
        database: NAME,
        files: Vec::new(),
        diverted: Vec::new(),
        conffiles: conffiles(stanza),
        relations: Relations {
            depends: list("Depends"),
            pre_depends: list("Pre-Depends"),
            recommends: list("Recommends"),
            suggests: list("Suggests"),
            provides: list("Provides"),
            conflicts: list("Conflicts"),
            breaks: list("Breaks"),
            replaces: list("Replaces"),
            enhances: list("Enhances"),
            ..Relations::default()
        },
        status,
        maintainer: stanza.text("Maintainer"),
        section: stanza.first_line("Section"),
        priority: stanza.first_line("Priority"),
        essential: yes("Essential") || yes("Protected") || yes("Important"),
        origin: stanza.first_line("Origin"),
        summary: stanza.first_line("Description"),
        homepage: stanza.first_line("Homepage"),
        name,
        ..Package::default()
    })
}

/// Splits `epoch:version-release` (deb-version(7)). `None` if the epoch is no number.
pub fn split_version(text: &str) -> Option<(Option<u32>, &str, Option<&str>)> {
    let (epoch, rest) = match text.split_once(':') {
        Some((epoch, rest)) => (Some(epoch.parse::<u32>().ok()?), rest),
        None => (None, text),
    };
    let (version, release) = match rest.rsplit_once('-') {
        Some((version, release)) => (version, Some(release)),
        None => (rest, None),
    };
    Some((epoch, version, release))
}

/// The architecture in the words of OCI for one in dpkg's (dpkg-architecture(1)).
pub fn oci_arch(arch: &str) -> Option<Arch> {
    let (architecture, variant) = match arch {
        "amd64" => ("amd64", None),
        "arm64" => ("arm64", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v5")),
        "i386" => ("386", None),
        "ppc64el" => ("ppc64le", None),
        "ppc64" => ("ppc64", None),
        "powerpc" => ("ppc", None),
        "s390x" => ("s390x", None),
        "riscv64" => ("riscv64", None),
        "mips64el" => ("mips64le", None),
        "mipsel" => ("mipsle", None),
        "mips" => ("mips", None),
        "loong64" => ("loong64", None),
        "sparc64" => ("sparc64", None),
        _ => return None,
    };
    Some(Arch {
        architecture,
        variant,
    })
}

/// The machine's native architecture in dpkg's words: the first line of `/var/lib/dpkg/arch`, which only machines with
/// several architectures have.
///
/// # Errors
/// As the source's reader.
pub fn stated_arch(source: &dyn Source) -> Result<Option<String>> {
    let Some(bytes) = read_file(source, "/var/lib/dpkg/arch", 64 << 10)? else {
        return Ok(None);
    };
    let first = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let arch = std::str::from_utf8(first.trim_ascii()).unwrap_or_default();
    Ok(Some(arch.to_owned()).filter(|arch| !arch.is_empty()))
}

/// dpkg's own rule: letters, digits and `-+._`, the first a letter or digit.
fn is_package_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-+._".contains(c))
}

/// The third word of `Status`.
fn state(status: &str) -> &str {
    status.split_ascii_whitespace().nth(2).unwrap_or_default()
}

fn is_installed(package: &Package, notes: &mut Vec<String>) -> bool {
    if package.status.split_ascii_whitespace().nth(1) == Some("reinstreq") {
        notes.push(format!("package {} has to be installed again", package.name));
    }
    match state(&package.status) {
        "installed" => true,
        "triggers-awaited" | "triggers-pending" => {
            notes.push(format!("package {} waits for triggers", package.name));
            true
        }
        "not-installed" | "config-files" => false,
        other => {
            notes.push(format!(
                "package {} is {}: it does not count as installed",
                package.name,
                Escaped(other.as_bytes())
            ));
            false
        }
    }
}

/// The `Conffiles` field: lines of path, MD5 and flags.
fn conffiles(stanza: &Stanza<'_>) -> Vec<Conffile> {
    let mut found = Vec::new();
    for line in stanza.lines("Conffiles") {
        // The path may have blanks, so the line is read from its end.
        let mut rest = line;
        let mut obsolete = false;
        let md5 = loop {
            let Some(at) = rest.iter().rposition(|b| *b == b' ') else {
                break None;
            };
            let (Some(path), Some(word)) = (rest.get(..at), rest.get(at + 1..)) else {
                break None;
            };
            rest = path.trim_ascii_end();
            match word {
                b"obsolete" | b"remove-on-upgrade" => obsolete = true,
                _ => break md5(word),
            }
        };
        if let Ok(path) = GuestPath::new(rest) {
            found.push(Conffile {
                path,
                digest: md5.map(FileDigest::Md5),
                obsolete,
                missing_ok: false,
            });
        }
    }
    found
}

fn md5(word: &[u8]) -> Option<Md5Sum> {
    unhex(std::str::from_utf8(word).ok()?)?.try_into().ok()
}

fn mark(packages: &mut [Package], marks: &AutoMarks, native: Option<&str>) {
    for package in packages {
        let arch = match package.arch.as_deref() {
            // apt keeps the marks of `all` under the native architecture.
            Some("all") | None => native.unwrap_or_default(),
            Some(arch) => arch,
        };
        package.manual = Some(!marks.is_auto(&package.name, arch));
    }
}

fn guest(path: &str) -> Result<GuestPath> {
    GuestPath::new(path.as_bytes())
}

/// The folder with the lists of files and digests.
struct Info {
    dir: GuestPath,
}

impl Info {
    fn new(source: &dyn Source) -> Result<Self> {
        let dir = guest(INFO)?;
        Ok(Self {
            dir: source.tree().resolve(&dir, true).unwrap_or(dir),
        })
    }

    /// The file `name:arch.kind`, else `name.kind`.
    fn file(
        &self,
        source: &dyn Source,
        package: &Package,
        kind: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<u8>> {
        let arch = package.arch.as_deref().unwrap_or_default();
        for name in [
            format!("{}:{arch}.{kind}", package.name),
            format!("{}.{kind}", package.name),
        ] {
            let Ok(path) = self.dir.join(name.as_bytes()) else {
                continue;
            };
            match read_path(source, &path, LIST_LIMIT) {
                Ok(Some(bytes)) => return Some(bytes),
                Ok(None) => {}
                Err(e) => {
                    problems.push(Problem {
                        path,
                        what: e.to_string(),
                    });
                    return None;
                }
            }
        }
        None
    }

    fn read(&self, source: &dyn Source, package: &mut Package, problems: &mut Vec<Problem>) -> Result<()> {
        match self.file(source, package, "list", problems) {
            Some(list) => {
                let mut bad = 0;
                for line in list.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                    match GuestPath::lenient(line) {
                        Ok(path) if line.starts_with(b"/") => package.files.push(path.into()),
                        _ => bad += 1,
                    }
                }
                if bad > 0 {
                    problems.push(Problem {
                        path: self.dir.clone(),
                        what: format!(
                            "the file list of {} has {bad} lines that are no paths",
                            package.name
                        ),
                    });
                }
            }
            None => problems.push(Problem {
                path: self.dir.clone(),
                what: format!("the file list of {} is missing", package.name),
            }),
        }
        if let Some(sums) = self.file(source, package, "md5sums", problems) {
            self.digests(&sums, package, problems);
        }
        Ok(())
    }

    /// In distroless images the list of digests is all there is of a file list.
    fn read_distroless(
        &self,
        source: &dyn Source,
        package: &mut Package,
        problems: &mut Vec<Problem>,
    ) -> Result<()> {
        let dir = guest(STATUS_D)?;
        let dir = source.tree().resolve(&dir, true).unwrap_or(dir);
        let path = dir.join(format!("{}.md5sums", package.name).as_bytes())?;
        if let Some(sums) = read_path(source, &path, LIST_LIMIT)? {
            self.digests(&sums, package, problems);
        }
        Ok(())
    }

    /// Lines of md5sum(1): digest, two blanks, path without its first slash. A file that is not in the list yet is added.
    fn digests(&self, sums: &[u8], package: &mut Package, problems: &mut Vec<Problem>) {
        let mut bad = 0;
        let listed = package.files.iter().enumerate();
        let at: HashMap<GuestPath, usize> = listed.map(|(at, file)| (file.path.clone(), at)).collect();
        for line in sums.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let sum = line.get(..32).and_then(md5);
            let path = line.get(32..).map(<[u8]>::trim_ascii_start);
            let (Some(sum), Some(Ok(path))) = (sum, path.map(GuestPath::lenient)) else {
                bad += 1;
                continue;
            };
            if path.is_root() {
                bad += 1;
                continue;
            }
            let facts = Some(Box::new(FileFacts {
                digest: Some(FileDigest::Md5(sum)),
                ..FileFacts::default()
            }));
            match at.get(&path).and_then(|at| package.files.get_mut(*at)) {
                Some(file) => file.facts = facts,
                None => package.files.push(PackageFile { path, facts }),
            }
        }
        if bad > 0 {
            problems.push(Problem {
                path: self.dir.clone(),
                what: format!("the digests of {} have {bad} lines that are none", package.name),
            });
        }
    }
}

/// As `read_file`, with a path of any bytes.
fn read_path(source: &dyn Source, path: &GuestPath, limit: u64) -> Result<Option<Vec<u8>>> {
    match source.tree().resolve(path, true) {
        Ok(found) => match source.tree().get(&found) {
            Some(node) if node.is_file() => {
                crate::read_at::read_all(&*source.open(node.id)?, limit).map(Some)
            }
            _ => Ok(None),
        },
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    const TWO: &str = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2.3-4\nInstalled-Size: 7\n\
        Source: src (2.3-4)\nDEPENDS: b (>= 1),\n c | d\nConffiles:\n /etc/a 87fc76f18e98ee7d3848f6b81b3391e5\n \
        /etc/old name 31aa7f2181889ffb00b87df4126d1701 obsolete\n /etc/new newconffile\nDescription: short\n long\n\n\
        Package: b\nStatus: hold ok installed\nArchitecture: all\nVersion: 5\n";

    #[test]
    fn fields() {
        let source = MemorySource::new("m")
            .file("/var/lib/dpkg/status", TWO)
            .file("/var/lib/dpkg/info/a:amd64.list", "/.\n/usr\n/usr/bin\n/usr/bin/a\n")
            .file(
                "/var/lib/dpkg/info/a:amd64.md5sums",
                "87fc76f18e98ee7d3848f6b81b3391e5  usr/bin/a\nbroken\n",
            )
            .file("/var/lib/dpkg/info/b.list", "/.\n/usr/bin/b\n")
            .file("/var/lib/dpkg/arch", "amd64\ni386\n")
            .file(
                "/var/lib/apt/extended_states",
                "Package: b\nArchitecture: amd64\nAuto-Installed: 1\n\nPackage: a\nArchitecture: i386\nAuto-Installed: 1\n",
            )
            .file("/var/lib/dpkg/diversions", "/usr/bin/b\n/usr/bin/b.real\na\n/usr/bin/a\n/usr/bin/a.x\na\n")
            .file("/var/lib/dpkg/statoverride", "root mail 2755 /usr/bin/a\nbad line\n")
            .file(
                "/var/lib/dpkg/alternatives/ed",
                "manual\n/usr/bin/ed\ned.1\n/usr/share/ed.1\n\n/usr/bin/a\n-10\n/usr/share/a.1\n/usr/bin/b\n20\n\n\n",
            )
            .file("/var/lib/dpkg/alternatives/bad", "neither\n")
            .build();
        let listing = read(&source).unwrap();
        let [a, b] = listing.packages.as_slice() else {
            panic!("{:?}", listing.packages)
        };
        assert_eq!(
            (a.epoch, a.version.as_str(), a.release.as_deref()),
            (Some(1), "2.3", Some("4"))
        );
        assert_eq!(
            (b.epoch, b.version.as_str(), b.release.as_deref()),
            (None, "5", None)
        );
        assert_eq!(a.full_version(), "1:2.3-4");
        assert_eq!(a.size, Some(7 * 1024));
        assert_eq!(a.relations.depends, ["b (>= 1)", "c | d"]);
        assert_eq!(a.source.as_ref().unwrap().version.as_deref(), Some("2.3-4"));
        assert_eq!(b.source.as_ref().unwrap().name, "b");
        let conffiles: Vec<_> = a
            .conffiles
            .iter()
            .map(|c| (c.path.to_string(), c.digest.is_some(), c.obsolete))
            .collect();
        assert_eq!(
            conffiles,
            [
                ("/etc/a".into(), true, false),
                ("/etc/old name".into(), true, true),
                ("/etc/new".into(), false, false)
            ]
        );
        assert_eq!((a.manual, b.manual), (Some(true), Some(false)));
        assert_eq!(a.files.len(), 4);
        assert!(a.diverted.is_empty());
        assert_eq!(b.diverted[0].1.to_string(), "/usr/bin/b.real");
        assert_eq!(listing.stat_overrides[0].mode, 0o2755);
        let ed = &listing.alternatives[0];
        assert_eq!(
            (ed.automatic, ed.links.len(), ed.choices[0].1, ed.choices.len()),
            (false, 2, -10, 2)
        );
        let problems: Vec<_> = listing.problems.iter().map(|p| p.what.as_str()).collect();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn states_journal_and_marks() {
        let status = |state: &str| {
            format!("{TWO}\nPackage: c\nStatus: {state}\nArchitecture: all\nVersion: 1\nDescription: x\n")
        };
        let names = |source: MemorySource| {
            let listing = read(&source).unwrap();
            let names: Vec<_> = listing.packages.iter().map(|p| p.name.clone()).collect();
            (names.join(" "), listing.notes.len(), listing.packages[0].manual)
        };
        let plain = |state| MemorySource::new("m").file("/var/lib/dpkg/status", status(state));
        assert_eq!(
            names(plain("install ok installed").build()),
            ("a b c".into(), 0, None)
        );
        assert_eq!(
            names(plain("deinstall ok config-files").build()),
            ("a b".into(), 0, None)
        );
        assert_eq!(
            names(plain("install ok half-configured").build()),
            ("a b".into(), 1, None)
        );
        assert_eq!(
            names(plain("install reinstreq half-installed").build()),
            ("a b".into(), 2, None)
        );
        assert_eq!(
            names(plain("install ok triggers-pending").build()),
            ("a b c".into(), 1, None)
        );
        let journal = plain("install ok installed").file(
            "/var/lib/dpkg/updates/0001",
            "Package: c\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n",
        );
        assert_eq!(names(journal.build()), ("a b".into(), 1, None));
        let apt = plain("install ok installed").dir("/var/lib/apt");
        assert_eq!(names(apt.build()).2, Some(true));
    }

    #[test]
    fn distroless_images() {
        let source = MemorySource::new("m")
            .file(
                "/var/lib/dpkg/status.d/base",
                "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n",
            )
            .file(
                "/var/lib/dpkg/status.d/base-files.md5sums",
                "87fc76f18e98ee7d3848f6b81b3391e5  etc/debian_version\n",
            )
            .build();
        let listing = read(&source).unwrap();
        assert_eq!(listing.packages.len(), 1);
        assert_eq!(
            listing.packages[0].files[0].path.to_string(),
            "/etc/debian_version"
        );
        assert_eq!(listing.problems, []);
    }

    #[test]
    fn versions() {
        assert_eq!(split_version("1:2.3-4"), Some((Some(1), "2.3", Some("4"))));
        assert_eq!(split_version("0:1"), Some((Some(0), "1", None)));
        assert_eq!(split_version("1-2-3+b1"), Some((None, "1-2", Some("3+b1"))));
        assert_eq!(split_version("x:1"), None);
    }

    #[test]
    fn stanzas_that_make_no_sense_are_named() {
        for bad in [
            "Package: x y\nStatus: install ok installed\nVersion: 1\n",
            "Package: ../x\nStatus: install ok installed\nVersion: 1\n",
            "Package: x\nStatus: installed\nVersion: 1\n",
            "Package: x\nStatus: install ok installed\n",
            "Package: x\nVersion: 1\n",
            "Package: x\nStatus: install ok installed\nVersion: a:1\n",
            "Package: x\nStatus: install ok installed\nVersion: 1\nInstalled-Size: -1\n",
            "Status: install ok installed\nVersion: 1\n",
            "\0\0\0\0\n",
        ] {
            let source = MemorySource::new("m")
                .file("/var/lib/dpkg/status", format!("{bad}\n{TWO}"))
                .build();
            let listing = read(&source).unwrap();
            assert_eq!(listing.packages.len(), 2, "{bad:?}");
            assert!(
                listing.problems.iter().any(|p| p.what.contains("at byte 0")),
                "{bad:?}: {:?}",
                listing.problems
            );
        }
    }
}
