//! A package from its header.

use super::NAME;
use super::header::{Header, Numbers, Strings};
use crate::bytes::unhex;
use crate::error::{Error, Escaped, Result};
use crate::path::GuestPath;
use crate::pkgdb::{
    Conffile, FileDigest, FileFacts, FileFlags, FileState, Package, PackageFile, Relations, SourcePackage,
};

/// Tags (rpm's documentation, "RPM Tags").
mod tag {
    pub(super) const NAME: u32 = 1000;
    pub(super) const VERSION: u32 = 1001;
    pub(super) const RELEASE: u32 = 1002;
    pub(super) const EPOCH: u32 = 1003;
    pub(super) const SUMMARY: u32 = 1004;
    pub(super) const INSTALL_TIME: u32 = 1008;
    pub(super) const SIZE: u32 = 1009;
    pub(super) const DISTRIBUTION: u32 = 1010;
    pub(super) const VENDOR: u32 = 1011;
    pub(super) const LICENSE: u32 = 1014;
    pub(super) const PACKAGER: u32 = 1015;
    pub(super) const GROUP: u32 = 1016;
    pub(super) const URL: u32 = 1020;
    pub(super) const ARCH: u32 = 1022;
    pub(super) const OLD_FILE_NAMES: u32 = 1027;
    pub(super) const FILE_SIZES: u32 = 1028;
    pub(super) const FILE_STATES: u32 = 1029;
    pub(super) const FILE_MODES: u32 = 1030;
    pub(super) const FILE_MTIMES: u32 = 1034;
    pub(super) const FILE_DIGESTS: u32 = 1035;
    pub(super) const FILE_LINK_TOS: u32 = 1036;
    pub(super) const FILE_FLAGS: u32 = 1037;
    pub(super) const FILE_USER_NAME: u32 = 1039;
    pub(super) const FILE_GROUP_NAME: u32 = 1040;
    pub(super) const SOURCE_RPM: u32 = 1044;
    pub(super) const DIR_INDEXES: u32 = 1116;
    pub(super) const BASE_NAMES: u32 = 1117;
    pub(super) const DIR_NAMES: u32 = 1118;
    pub(super) const LONG_FILE_SIZES: u32 = 5008;
    pub(super) const LONG_SIZE: u32 = 5009;
    pub(super) const FILE_CAPS: u32 = 5010;
    pub(super) const FILE_DIGEST_ALGO: u32 = 5011;
    pub(super) const MODULARITY_LABEL: u32 = 5096;

    /// Tags of names, flags and versions of a kind of relation.
    pub(super) type Three = [u32; 3];
    pub(super) const PROVIDE: Three = [1047, 1112, 1113];
    pub(super) const REQUIRE: Three = [1049, 1048, 1050];
    pub(super) const CONFLICT: Three = [1054, 1053, 1055];
    pub(super) const OBSOLETE: Three = [1090, 1114, 1115];
    pub(super) const RECOMMEND: Three = [5046, 5048, 5047];
    pub(super) const SUGGEST: Three = [5049, 5051, 5050];
    pub(super) const SUPPLEMENT: Three = [5052, 5054, 5053];
    pub(super) const ENHANCE: Three = [5055, 5057, 5056];
    /// As SUSE wrote them before rpm 4.12, strong and weak ones together.
    pub(super) const OLD_SUGGEST: Three = [1156, 1158, 1157];
    pub(super) const OLD_ENHANCE: Three = [1159, 1161, 1160];
}

/// Bits of the flags of a relation.
const LESS: u64 = 2;
const GREATER: u64 = 4;
const EQUAL: u64 = 8;
/// One of SUSE's old weak relations that is a recommendation, not a suggestion.
const STRONG: u64 = 1 << 27;

/// Bits of FILEFLAGS.
const CONFIG: u64 = 1;
const DOC: u64 = 1 << 1;
const MISSING_OK: u64 = 1 << 3;
const NO_REPLACE: u64 = 1 << 4;
const GHOST: u64 = 1 << 6;

/// The longest path that Linux takes.
const PATH_MAX: usize = 4096;

/// The package of a header, and what is to be said of it. `manual` and `repository` are left for the package
/// manager's history.
///
/// # Errors
/// [`Error::Corrupt`] if a value that every package has is missing, or one of them makes no sense.
pub fn package(header: &Header<'_>, notes: &mut Vec<String>) -> Result<Package> {
    let name = word(header, tag::NAME, "NAME")?;
    if name.starts_with('-') {
        return Err(Error::corrupt(
            format!("{name:?} is not the name of a package"),
            0,
        ));
    }
    let within = |e: Error| e.within(&format!("package {name}"));
    read(header, &name, notes).map_err(within)
}

fn read(header: &Header<'_>, name: &str, notes: &mut Vec<String>) -> Result<Package> {
    let epoch = match header.number(tag::EPOCH)? {
        Some(epoch) => Some(u32::try_from(epoch).map_err(|_| bad(format!("epoch {epoch}")))?),
        None => None,
    };
    let size = match header.number(tag::LONG_SIZE)? {
        Some(size) => Some(size),
        None => header.number(tag::SIZE)?,
    };
    let mut relations = Relations {
        depends: relations(header, tag::REQUIRE)?,
        provides: relations(header, tag::PROVIDE)?,
        conflicts: relations(header, tag::CONFLICT)?,
        replaces: relations(header, tag::OBSOLETE)?,
        recommends: relations(header, tag::RECOMMEND)?,
        suggests: relations(header, tag::SUGGEST)?,
        supplements: relations(header, tag::SUPPLEMENT)?,
        enhances: relations(header, tag::ENHANCE)?,
        ..Relations::default()
    };
    each_relation(header, tag::OLD_SUGGEST, |text, flags| {
        let strong = flags & STRONG != 0;
        let list = if strong {
            &mut relations.recommends
        } else {
            &mut relations.suggests
        };
        list.push(text);
    })?;
    each_relation(header, tag::OLD_ENHANCE, |text, flags| {
        let strong = flags & STRONG != 0;
        let list = if strong {
            &mut relations.supplements
        } else {
            &mut relations.enhances
        };
        list.push(text);
    })?;
    let files = files(header, name, notes)?;
    Ok(Package {
        name: name.to_owned(),
        epoch,
        version: word(header, tag::VERSION, "VERSION")?,
        release: Some(word(header, tag::RELEASE, "RELEASE")?),
        // The keys that rpm keeps as packages have none.
        arch: said(header, tag::ARCH)?.filter(|_| name != super::PUBKEY),
        source: said(header, tag::SOURCE_RPM)?.map(|name| SourcePackage { name, version: None }),
        size,
        database: NAME,
        conffiles: conffiles(&files),
        files,
        relations,
        maintainer: said(header, tag::PACKAGER)?,
        vendor: said(header, tag::VENDOR)?,
        module: said(header, tag::MODULARITY_LABEL)?,
        installed_at: header
            .number(tag::INSTALL_TIME)?
            .and_then(|t| i64::try_from(t).ok()),
        section: said(header, tag::GROUP)?,
        origin: said(header, tag::DISTRIBUTION)?,
        license: said(header, tag::LICENSE)?,
        summary: said(header, tag::SUMMARY)?,
        homepage: said(header, tag::URL)?,
        ..Package::default()
    })
}

/// The text of a tag. `(none)` is what rpm prints for a tag that is missing, and writes into the headers of its keys.
fn said(header: &Header<'_>, tag: u32) -> Result<Option<String>> {
    Ok(header.text(tag)?.filter(|text| text != "(none)"))
}

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(what, 0)
}

/// A value that every package has, and that can stand in a command or a file name.
fn word(header: &Header<'_>, tag: u32, what: &str) -> Result<String> {
    let Some(value) = header.string(tag)? else {
        return Err(bad(format!("a header without {what}")));
    };
    let ok = !value.is_empty() && value.iter().all(|b| *b > b' ' && *b != 0x7f && *b != b'/');
    match std::str::from_utf8(value) {
        Ok(text) if ok => Ok(text.to_owned()),
        _ => {
            let shown = value.get(..60).unwrap_or(value);
            Err(bad(format!(
                "{:?} as {what} of a package",
                Escaped(shown).to_string()
            )))
        }
    }
}

fn relations(header: &Header<'_>, tags: tag::Three) -> Result<Vec<String>> {
    let mut list = Vec::new();
    each_relation(header, tags, |text, _| list.push(text))?;
    Ok(list)
}

/// Each relation as `rpm -q --requires` prints it: `glibc >= 2.34`.
fn each_relation(header: &Header<'_>, tags: tag::Three, mut each: impl FnMut(String, u64)) -> Result<()> {
    let [names, flags, versions] = tags;
    let Some(all) = header.strings(names)? else {
        return Ok(());
    };
    let count = all.len();
    let flags = numbers(header, flags, count)?;
    let mut versions = strings(header, versions, count)?;
    for (n, name) in all.enumerate() {
        let mut text = String::from_utf8_lossy(name).into_owned();
        let flags = flags.as_ref().and_then(|f| f.get(n)).unwrap_or_default();
        let version = versions.as_mut().and_then(Iterator::next).unwrap_or_default();
        if flags & (LESS | GREATER | EQUAL) != 0 {
            text.push(' ');
            for (bit, sign) in [(LESS, '<'), (GREATER, '>'), (EQUAL, '=')] {
                if flags & bit != 0 {
                    text.push(sign);
                }
            }
        }
        if !version.is_empty() {
            text.push(' ');
            text.push_str(&String::from_utf8_lossy(version));
        }
        each(text, flags);
    }
    Ok(())
}

/// The numbers of a tag, of which there must be `count`; `None` if the tag is missing.
fn numbers<'a>(header: &Header<'a>, tag: u32, count: usize) -> Result<Option<Numbers<'a>>> {
    let numbers = header.numbers(tag)?;
    match &numbers {
        Some(n) if n.len() != count => Err(bad(format!("tag {tag} has {} values, not {count}", n.len()))),
        _ => Ok(numbers),
    }
}

/// The strings of a tag, of which there must be `count`; `None` if the tag is missing.
fn strings<'a>(header: &Header<'a>, tag: u32, count: usize) -> Result<Option<Strings<'a>>> {
    let strings = header.strings(tag)?;
    match &strings {
        Some(s) if s.len() != count => Err(bad(format!("tag {tag} has {} values, not {count}", s.len()))),
        _ => Ok(strings),
    }
}

fn paths(header: &Header<'_>) -> Result<Vec<GuestPath>> {
    // Names may share a long directory, so that their sum is no longer bounded by the header's length alone.
    let mut left = header.len.saturating_mul(16).saturating_add(1 << 20);
    let mut path = |dir: &[u8], name: &[u8]| {
        let len = dir.len() + name.len();
        left = left
            .checked_sub(len)
            .filter(|_| len <= PATH_MAX)
            .ok_or_else(|| bad(format!("paths of files that are too long, one has {len} bytes")))?;
        let whole = [dir, name].concat();
        if !whole.starts_with(b"/") {
            return Err(bad(format!(
                "{:?} as a file of the package",
                Escaped(&whole).to_string()
            )));
        }
        GuestPath::lenient(&whole)
    };
    let Some(names) = header.strings(tag::BASE_NAMES)? else {
        let old = header.strings(tag::OLD_FILE_NAMES)?;
        return old.into_iter().flatten().map(|name| path(b"", name)).collect();
    };
    let count = names.len();
    let dirs: Vec<&[u8]> = header
        .strings(tag::DIR_NAMES)?
        .into_iter()
        .flatten()
        .take(count)
        .collect();
    let Some(indexes) = numbers(header, tag::DIR_INDEXES, count)? else {
        return Err(bad("names of files without their directories"));
    };
    let mut paths = Vec::with_capacity(count);
    for (n, name) in names.enumerate() {
        let index = indexes.get(n).and_then(|i| usize::try_from(i).ok());
        let dir = index.and_then(|i| dirs.get(i)).ok_or_else(|| {
            bad(format!(
                "a file in directory {} of {}",
                index.unwrap_or_default(),
                dirs.len()
            ))
        })?;
        paths.push(path(dir, name)?);
    }
    Ok(paths)
}

fn files(header: &Header<'_>, package: &str, notes: &mut Vec<String>) -> Result<Vec<PackageFile>> {
    let paths = paths(header)?;
    let count = paths.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    let numbers = |tag| numbers(header, tag, count);
    let strings = |tag| strings(header, tag, count);
    let sizes = match numbers(tag::LONG_FILE_SIZES)? {
        Some(sizes) => Some(sizes),
        None => numbers(tag::FILE_SIZES)?,
    };
    let modes = numbers(tag::FILE_MODES)?;
    let mtimes = numbers(tag::FILE_MTIMES)?;
    let flags = numbers(tag::FILE_FLAGS)?;
    let states = numbers(tag::FILE_STATES)?;
    let mut digests = strings(tag::FILE_DIGESTS)?;
    let mut links = strings(tag::FILE_LINK_TOS)?;
    let mut users = strings(tag::FILE_USER_NAME)?;
    let mut groups = strings(tag::FILE_GROUP_NAME)?;
    let mut caps = strings(tag::FILE_CAPS)?;
    let algorithm = header.number(tag::FILE_DIGEST_ALGO)?.unwrap_or(1);
    if digest_len(algorithm).is_none() && digests.is_some() {
        notes.push(format!(
            "package {package}: its files have digests by OpenPGP's algorithm {algorithm}, which are not read"
        ));
        digests = None;
    }
    let mut files = Vec::with_capacity(count);
    for (n, path) in paths.into_iter().enumerate() {
        let number = |of: &Option<Numbers<'_>>| of.as_ref().and_then(|all| all.get(n));
        let bits = number(&flags).unwrap_or_default();
        let digest = next(&mut digests);
        let facts = FileFacts {
            digest: digest.map(|d| file_digest(algorithm, d, &path)).transpose()?,
            mode: number(&modes).and_then(|m| u32::try_from(m).ok()),
            size: number(&sizes),
            mtime: number(&mtimes).and_then(|t| i64::try_from(t).ok()),
            user: next(&mut users).map(text),
            group: next(&mut groups).map(text),
            link: next(&mut links).map(<[u8]>::to_vec),
            capabilities: next(&mut caps).map(text),
            flags: FileFlags {
                config: bits & CONFIG != 0,
                noreplace: bits & NO_REPLACE != 0,
                ghost: bits & GHOST != 0,
                doc: bits & DOC != 0,
                missing_ok: bits & MISSING_OK != 0,
            },
            state: state(number(&states)),
        };
        files.push(PackageFile {
            path,
            facts: Some(Box::new(facts)),
        });
    }
    Ok(files)
}

/// The next string, if it is not empty.
fn next<'a>(strings: &mut Option<Strings<'a>>) -> Option<&'a [u8]> {
    strings
        .as_mut()
        .and_then(Iterator::next)
        .filter(|s| !s.is_empty())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn state(stated: Option<u64>) -> FileState {
    match stated {
        Some(1) => FileState::Replaced,
        Some(2) => FileState::NotInstalled,
        Some(3) => FileState::NetShared,
        Some(4) => FileState::WrongColor,
        _ => FileState::Normal,
    }
}

/// Bytes of a digest by one of OpenPGP's algorithms (RFC 9580, section 9.5); `None` for those that are not read.
fn digest_len(algorithm: u64) -> Option<usize> {
    Some(match algorithm {
        1 => 16,
        2 => 20,
        8 => 32,
        9 => 48,
        10 => 64,
        _ => return None,
    })
}

fn file_digest(algorithm: u64, hex: &[u8], path: &GuestPath) -> Result<FileDigest> {
    let bytes = std::str::from_utf8(hex).ok().and_then(unhex);
    let digest = bytes.and_then(|bytes| {
        Some(match algorithm {
            1 => FileDigest::Md5(bytes.try_into().ok()?),
            2 => FileDigest::Sha1(bytes.try_into().ok()?),
            8 => FileDigest::Sha256(bytes.try_into().ok()?),
            9 => FileDigest::Sha384(Box::new(bytes.try_into().ok()?)),
            10 => FileDigest::Sha512(Box::new(bytes.try_into().ok()?)),
            _ => return None,
        })
    });
    digest.ok_or_else(|| bad(format!("{path}: {:?} as its digest", Escaped(hex).to_string())))
}

/// The configuration files that the package put there. A %ghost of them is made by whoever runs the machine.
fn conffiles(files: &[PackageFile]) -> Vec<Conffile> {
    let mut found = Vec::new();
    for file in files {
        let Some(facts) = &file.facts else { continue };
        if facts.flags.config && !facts.flags.ghost && facts.state.is_installed() {
            found.push(Conffile {
                path: file.path.clone(),
                digest: facts.digest.clone(),
                obsolete: false,
                missing_ok: facts.flags.missing_ok,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::header;
    use super::*;

    fn strings(all: &[&str]) -> Vec<u8> {
        all.iter().flat_map(|s| [s.as_bytes(), b"\0"].concat()).collect()
    }

    fn words(all: &[u32]) -> Vec<u8> {
        all.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    fn parse(more: &[(u32, u32, u32, &[u8])]) -> Result<Package> {
        let mut all: Vec<(u32, u32, u32, &[u8])> =
            vec![(1000, 6, 1, b"p\0"), (1001, 6, 1, b"1\0"), (1002, 6, 1, b"2\0")];
        all.extend_from_slice(more);
        package(&Header::parse(&header(&all))?, &mut Vec::new())
    }

    #[test]
    fn old_names_of_files_and_relations() {
        let suggests = strings(&["a", "b", "c"]);
        let flags = words(&[1 << 27, 0, 1 << 27 | 12]);
        let p = parse(&[
            (1027, 8, 2, b"/etc/x\0/usr//bin/y\0"),
            (1156, 8, 3, &suggests),
            (1158, 4, 3, &flags),
            (1157, 8, 3, b"\0\x001:2-3\0"),
            (1049, 8, 1, b"old\0"),
        ])
        .unwrap();
        let paths: Vec<String> = p.files.iter().map(|f| f.path.to_string()).collect();
        assert_eq!(paths, ["/etc/x", "/usr/bin/y"]);
        assert_eq!(p.relations.recommends, ["a", "c >= 1:2-3"]);
        assert_eq!(p.relations.suggests, ["b"]);
        assert_eq!(p.relations.depends, ["old"]);
        assert_eq!(p.full_version(), "1-2");
    }

    #[test]
    fn states_and_flags_of_files() {
        let names = strings(&["/a", "/b", "/c", "/d", "/e", "/f"]);
        let flags = words(&[1, 1, 1 | 16, 1, 1 | 64, 1 | 8]);
        let p = parse(&[
            (1027, 8, 6, &names),
            (1029, 1, 6, &[0, 1, 2, 3, 0, 4]),
            (1037, 4, 6, &flags),
            (5011, 4, 1, &words(&[11])),
            (1035, 8, 6, &strings(&["00", "", "", "", "", ""])),
        ])
        .unwrap();
        let facts = |n: usize| p.files[n].facts.as_deref().unwrap();
        let states: Vec<FileState> = (0..6).map(|n| facts(n).state).collect();
        assert_eq!(
            states,
            [
                FileState::Normal,
                FileState::Replaced,
                FileState::NotInstalled,
                FileState::NetShared,
                FileState::Normal,
                FileState::WrongColor
            ]
        );
        assert!(facts(2).flags.noreplace && facts(4).flags.ghost && facts(5).flags.missing_ok);
        // Neither what was left out or replaced, nor the ghost; an algorithm that is not read is no digest.
        let paths: Vec<String> = p.conffiles.iter().map(|c| c.path.to_string()).collect();
        assert_eq!(paths, ["/a", "/d"]);
        assert_eq!(facts(0).digest, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let index = |n: u32| words(&[n]);
        let dirs: (u32, u32, u32, &[u8]) = (1118, 8, 1, b"/d/\0");
        let name: (u32, u32, u32, &[u8]) = (1117, 8, 1, b"n\0");
        assert_eq!(
            parse(&[name, dirs, (1116, 4, 1, &index(0))]).unwrap().files[0]
                .path
                .to_string(),
            "/d/n"
        );
        let long = [b"/".repeat(5000), vec![0]].concat();
        for (what, more) in [
            ("directory 1 of 1", vec![name, dirs, (1116, 4, 1, &index(1)[..])]),
            ("without their directories", vec![name, dirs]),
            ("not 1", vec![name, dirs, (1116, 4, 2, &words(&[0, 0])[..])]),
            ("as a file", vec![(1027, 8, 1, &b"etc\0"[..])]),
            ("not a path", vec![(1027, 8, 1, &b"/../etc\0"[..])]),
            ("too long", vec![(1027, 8, 1, &long[..])]),
            (
                "as its digest",
                vec![(1027, 8, 1, &b"/x\0"[..]), (1035, 8, 1, b"00\0")],
            ),
            ("not 1", vec![(1027, 8, 1, &b"/x\0"[..]), (1030, 3, 2, &[0; 4])]),
            ("not 1", vec![(1049, 8, 1, &b"x\0"[..]), (1048, 4, 2, &[0; 8])]),
            ("of type 6", vec![(1003, 6, 1, &b"1\0"[..])]),
        ] {
            let e = parse(&more).unwrap_err().to_string();
            assert!(e.contains(what) && e.contains("package p"), "{what}: {e}");
        }
        for name in ["", "-o", "a b", "a/b", "a\nb"] {
            let name = [name.as_bytes(), b"\0"].concat();
            let blob = header(&[(1000, 6, 1, &name), (1001, 6, 1, b"1\0"), (1002, 6, 1, b"2\0")]);
            assert!(package(&Header::parse(&blob).unwrap(), &mut Vec::new()).is_err());
        }
    }
}
