//! Who asked for a package, and which repository it came from: what the package managers above rpm keep.

use super::PUBKEY;
use super::sqlite::{Database, Record, Table, Value};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::pkgdb::{Listing, Package};
use crate::source::{Source, read_file};
use crate::tree::Problem;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

const DNF: &str = "/var/lib/dnf/history.sqlite";
const DNF5: &str = "/usr/lib/sysimage/libdnf5";
const YUM: &str = "/var/lib/yum/yumdb";
const ZYPP: &str = "/var/lib/zypp/AutoInstalled";
const ZYPP_LOG: &str = "/var/log/zypp/history";
const URPMI: &str = "/var/lib/rpm/installed-through-deps.list";

const LIMIT: u64 = 64 << 20;
/// The longest file of the yumdb.
const WORD_LIMIT: u64 = 4096;
/// The most rows of a table that are looked at.
const MAX_ROWS: usize = 4 << 20;

/// What a history says of a package.
#[derive(Debug, Clone, Default)]
struct Said {
    manual: Option<bool>,
    repository: Option<String>,
}

/// One history: by the place of a package in the listing.
#[derive(Default)]
struct History {
    said: HashMap<usize, Said>,
    /// What holds for packages that it does not speak of.
    otherwise: Option<bool>,
}

type Reader = fn(&dyn Source, &[Package]) -> Result<Option<History>>;

/// Sets `manual` and `repository` of the packages. The first history that speaks of a package counts; what cannot be
/// read is a problem, and leaves `None`.
pub(super) fn apply(source: &dyn Source, listing: &mut Listing) {
    let readers: [(&str, Reader); 5] = [(DNF5, dnf5), (DNF, dnf), (YUM, yum), (ZYPP, zypp), (URPMI, urpmi)];
    let mut histories = Vec::new();
    for (path, reader) in readers {
        match reader(source, &listing.packages) {
            Ok(history) => histories.extend(history),
            Err(e) => {
                let path = GuestPath::new(path.as_bytes()).unwrap_or_else(|_| GuestPath::root());
                listing.problems.push(Problem {
                    path,
                    what: e.to_string(),
                });
            }
        }
    }
    for (n, package) in listing.packages.iter_mut().enumerate() {
        let said = || histories.iter().filter_map(|h| h.said.get(&n));
        package.repository = said().find_map(|s| s.repository.clone());
        // Nobody installs keys.
        if package.name != PUBKEY {
            let otherwise = || histories.iter().find_map(|h| h.otherwise);
            package.manual = said().find_map(|s| s.manual).or_else(otherwise);
        }
    }
}

/// Places in the listing by `name.arch`.
fn by_arch(packages: &[Package]) -> HashMap<String, Vec<usize>> {
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (n, p) in packages.iter().enumerate() {
        let key = name_arch(&p.name, p.arch.as_deref().unwrap_or_default());
        places.entry(key).or_default().push(n);
    }
    places
}

fn name_arch(name: &str, arch: &str) -> String {
    format!("{name}.{arch}")
}

/// `name-version-release.arch` with or without the epoch: `{name}{between}{version}...`.
fn nevra(package: &Package, epoch: bool, last: char) -> String {
    let release = package.release.as_deref().unwrap_or_default();
    let arch = package.arch.as_deref().unwrap_or_default();
    let epoch = match package.epoch {
        Some(n) if epoch && n > 0 => format!("{n}:"),
        _ => String::new(),
    };
    format!(
        "{}-{epoch}{}-{release}{last}{arch}",
        package.name, package.version
    )
}

/// A table that must be there.
fn table(db: &Database, name: &str) -> Result<Table> {
    let table = db.table(name)?;
    table.ok_or_else(|| Error::corrupt(format!("the history has no table {name}"), 0))
}

/// Calls `row` with the record of each row. A row that cannot be read is an error: a reason that is missing would be
/// taken for another.
fn rows(db: &Database, table: &Table, mut row: impl FnMut(i64, &Record<'_>)) -> Result<()> {
    let mut failed = None;
    let mut count = 0usize;
    db.rows(table, &mut |found| {
        count += 1;
        let result = found.and_then(|(id, payload)| {
            let record = Record::parse(payload).filter(|_| count <= MAX_ROWS);
            let record = record.ok_or_else(|| Error::corrupt("a row of the history that is no record", 0))?;
            row(id, &record);
            Ok(())
        });
        match result {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn column(table: &Table, name: &str) -> Result<usize> {
    let column = table.column(name);
    column.ok_or_else(|| Error::corrupt(format!("a table of the history has no column {name}"), 0))
}

/// dnf's history: the last transaction that put a package of this name and architecture there, or changed its reason,
/// tells the reason. A package that dnf does not know counts as asked for, as dnf itself counts.
fn dnf(source: &dyn Source, packages: &[Package]) -> Result<Option<History>> {
    /// Actions by which the package that a row names went: downgraded, obsoleted, upgraded, reinstalled.
    const WENT: [i64; 4] = [3, 5, 7, 10];
    const REMOVE: i64 = 8;
    const REASON_CHANGE: i64 = 11;
    /// Reasons: a dependency, a weak dependency. The others are user (2), clean (3) and group (5). A package of a group
    /// counts as asked for: the group was, no package need require its members, and what libdnf keeps in `autoremove` are the
    /// packages that have neither of these two reasons (`Swdb::filterUserinstalled`; dnf5 the same, where a change that left
    /// groups out was turned down because `autoremove` would take them, its pull request 686). `dnf history userinstalled`
    /// of dnf 4 asks another question, and prints the reasons user and unknown only.
    const NOT_ASKED: [i64; 2] = [1, 4];
    const DONE: i64 = 1;

    let Some((path, node)) = source.tree().find(DNF) else {
        return Ok(None);
    };
    if !node.is_file() || node.size() == 0 {
        return Ok(None);
    }
    let db = Database::open(source, &path)?;
    let trans = table(&db, "trans")?;
    let (id, state) = (
        column(&trans, "id")?,
        column(&trans, "state").or_else(|_| column(&trans, "done"))?,
    );
    let mut done = HashSet::new();
    rows(&db, &trans, |row, record| {
        if trans.number(row, record, state) == Some(DONE) {
            done.extend(trans.number(row, record, id));
        }
    })?;
    let repo = table(&db, "repo")?;
    let (id, repoid) = (column(&repo, "id")?, column(&repo, "repoid")?);
    let mut repositories: HashMap<i64, String> = HashMap::new();
    rows(&db, &repo, |row, record| {
        if let (Some(id), Some(Value::Text(name))) = (repo.number(row, record, id), record.get(repoid)) {
            repositories.insert(id, String::from_utf8_lossy(name).into_owned());
        }
    })?;
    // Of all the packages that ever were there only those are kept whose name is in the listing.
    let places = by_arch(packages);
    let rpm = table(&db, "rpm")?;
    let [item, name, epoch, version, release, arch] =
        ["item_id", "name", "epoch", "version", "release", "arch"].map(|c| column(&rpm, c));
    let (item, name, epoch, version, release, arch) = (item?, name?, epoch?, version?, release?, arch?);
    let mut items: HashMap<i64, (&[usize], Option<usize>)> = HashMap::new();
    rows(&db, &rpm, |row, record| {
        let text = |column| match record.get(column) {
            Some(Value::Text(t)) => std::str::from_utf8(t).ok(),
            _ => None,
        };
        let key = text(name)
            .zip(text(arch))
            .map(|(name, arch)| name_arch(name, arch));
        let Some((here, id)) = key
            .and_then(|k| places.get(&k))
            .zip(rpm.number(row, record, item))
        else {
            return;
        };
        let exact = here.iter().copied().find(|n| {
            packages.get(*n).is_some_and(|p| {
                Some(p.version.as_str()) == text(version)
                    && p.release.as_deref() == text(release)
                    && i64::from(p.epoch.unwrap_or(0)) == rpm.number(row, record, epoch).unwrap_or(0)
            })
        });
        items.insert(id, (here, exact));
    })?;
    let trans_item = table(&db, "trans_item")?;
    let [trans_id, item, repo_id, action, reason] =
        ["trans_id", "item_id", "repo_id", "action", "reason"].map(|c| column(&trans_item, c));
    let (trans_id, item, repo_id, action, reason) = (trans_id?, item?, repo_id?, action?, reason?);
    // The transaction, the action and the reason that count so far.
    let mut reasons: HashMap<usize, (i64, i64, i64)> = HashMap::new();
    let mut origins: HashMap<usize, (i64, i64)> = HashMap::new();
    rows(&db, &trans_item, |row, record| {
        let number = |column| trans_item.number(row, record, column);
        let (Some(transaction), Some(action)) = (number(trans_id), number(action)) else {
            return;
        };
        let Some((here, exact)) = number(item).and_then(|i| items.get(&i)) else {
            return;
        };
        if !done.contains(&transaction) || WENT.contains(&action) {
            return;
        }
        let reason = number(reason).unwrap_or_default();
        for n in *here {
            let last = reasons.entry(*n).or_insert((transaction, action, reason));
            if last.0 <= transaction {
                *last = (transaction, action, reason);
            }
        }
        if let (Some(n), Some(repo)) = (exact, number(repo_id))
            && action != REMOVE
            && action != REASON_CHANGE
        {
            let last = origins.entry(*n).or_insert((transaction, repo));
            if last.0 <= transaction {
                *last = (transaction, repo);
            }
        }
    })?;
    let mut history = History {
        otherwise: (!done.is_empty()).then_some(true),
        ..History::default()
    };
    for (n, (_, action, reason)) in reasons {
        let asked = action == REMOVE || !NOT_ASKED.contains(&reason);
        history.said.entry(n).or_default().manual = Some(asked);
    }
    for (n, (_, repo)) in origins {
        let name = repositories
            .get(&repo)
            .filter(|r| !r.starts_with('@') && !r.is_empty());
        history.said.entry(n).or_default().repository = name.cloned();
    }
    Ok(Some(history))
}

/// dnf5's state: `packages.toml` has the reasons by `name.arch`, `nevras.toml` the repositories.
fn dnf5(source: &dyn Source, packages: &[Package]) -> Result<Option<History>> {
    let Some(reasons) = toml(source, "packages.toml")? else {
        return Ok(None);
    };
    let nevras = toml(source, "nevras.toml")?.unwrap_or_default();
    let word = |table: &toml::Table, section: &str, key: &str, word: &str| -> Option<String> {
        let entry = table.get(section)?.as_table()?.get(key)?.as_table()?;
        entry.get(word)?.as_str().map(str::to_owned)
    };
    let mut history = History {
        otherwise: Some(true),
        ..History::default()
    };
    for (n, p) in packages.iter().enumerate() {
        let key = name_arch(&p.name, p.arch.as_deref().unwrap_or_default());
        let manual = word(&reasons, "packages", &key, "reason")
            .map(|reason| !matches!(reason.as_str(), "Dependency" | "Weak Dependency"));
        let repository = [nevra(p, true, '.'), nevra(p, false, '.')]
            .iter()
            .find_map(|key| word(&nevras, "nevras", key, "from_repo"));
        let repository = repository.filter(|r| !r.is_empty() && !r.starts_with('@'));
        if manual.is_some() || repository.is_some() {
            history.said.insert(n, Said { manual, repository });
        }
    }
    Ok(Some(history))
}

fn toml(source: &dyn Source, file: &str) -> Result<Option<toml::Table>> {
    let Some(bytes) = read_file(source, &format!("{DNF5}/{file}"), LIMIT)? else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::corrupt(format!("{file} is not UTF-8"), 0))?;
    let table = text.parse::<toml::Table>();
    table.map(Some).map_err(|e| {
        let at = e.span().map_or(0, |s| s.start as u64);
        Error::corrupt(format!("{file}: {}", e.message()), at)
    })
}

/// yum's database: a directory `<id>-<name>-<version>-<release>-<arch>` of each package with a file for each fact.
fn yum(source: &dyn Source, packages: &[Package]) -> Result<Option<History>> {
    let Some((dir, _)) = source.tree().find(YUM) else {
        return Ok(None);
    };
    let places: HashMap<String, usize> = packages
        .iter()
        .enumerate()
        .map(|(n, p)| (nevra(p, false, '-'), n))
        .collect();
    let mut history = History::default();
    for (path, node) in source.tree().below(&dir) {
        let fact = path.name();
        if !node.is_file() || !matches!(fact, b"reason" | b"from_repo") {
            continue;
        }
        let parent = path.parent().unwrap_or_else(GuestPath::root);
        let name = String::from_utf8_lossy(parent.name()).into_owned();
        let place = name.split_once('-').and_then(|(_, name)| places.get(name));
        let Some(n) = place else { continue };
        let bytes = crate::read_at::read_all(&*source.open(node.id)?, WORD_LIMIT)?;
        let word = String::from_utf8_lossy(bytes.trim_ascii()).into_owned();
        let said = history.said.entry(*n).or_default();
        match (fact, word.as_str()) {
            (_, "") => {}
            (b"reason", word) => said.manual = Some(word != "dep"),
            (_, _) => said.repository = Some(word),
        }
    }
    Ok(Some(history))
}

/// libzypp's list of the packages that came as a dependency, and its log, which has the repositories.
fn zypp(source: &dyn Source, packages: &[Package]) -> Result<Option<History>> {
    let Some(mut history) = listed_as_automatic(source, packages, ZYPP)? else {
        return Ok(None);
    };
    let Some(log) = read_file(source, ZYPP_LOG, LIMIT)? else {
        return Ok(Some(history));
    };
    let places = by_arch(packages);
    for line in log.split(|b| *b == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let fields: Vec<&str> = line.split('|').collect();
        let [_, "install", name, version, arch, _, repository, ..] = fields.as_slice() else {
            continue;
        };
        for n in places.get(&name_arch(name, arch)).into_iter().flatten() {
            let Some(p) = packages.get(*n) else { continue };
            let full = p.full_version();
            let plain = full.split_once(':').map_or(full.as_str(), |(_, rest)| rest);
            if (*version == full || *version == plain) && !repository.is_empty() {
                history.said.entry(*n).or_default().repository = Some((*repository).to_owned());
            }
        }
    }
    Ok(Some(history))
}

/// urpmi's list of the packages that came as a dependency.
fn urpmi(source: &dyn Source, packages: &[Package]) -> Result<Option<History>> {
    listed_as_automatic(source, packages, URPMI)
}

/// A list of names, one a line: packages that are not in it were asked for.
fn listed_as_automatic(source: &dyn Source, packages: &[Package], path: &str) -> Result<Option<History>> {
    let Some(bytes) = read_file(source, path, LIMIT)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'));
    // A name may have words behind it.
    let listed: HashSet<&str> = lines.filter_map(|l| l.split_whitespace().next()).collect();
    let mut history = History::default();
    for (n, p) in packages.iter().enumerate() {
        let manual = Some(!listed.contains(p.name.as_str()));
        history.said.insert(
            n,
            Said {
                manual,
                ..Said::default()
            },
        );
    }
    Ok(Some(history))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    fn listing() -> Listing {
        let package = |name: &str, epoch, arch: &str| Package {
            name: name.to_owned(),
            epoch,
            version: "1.0".to_owned(),
            release: Some("2.el9".to_owned()),
            arch: Some(arch.to_owned()),
            ..Package::default()
        };
        Listing {
            packages: vec![
                package("app", None, "x86_64"),
                package("lib", Some(1), "noarch"),
                Package {
                    arch: None,
                    ..package(PUBKEY, None, "")
                },
            ],
            ..Listing::default()
        }
    }

    fn applied(source: crate::source::memory::Builder) -> Vec<(Option<bool>, Option<String>)> {
        let mut listing = listing();
        apply(&source.build(), &mut listing);
        assert_eq!(listing.problems, []);
        let said = |p: Package| (p.manual, p.repository);
        listing.packages.into_iter().map(said).collect()
    }

    fn said(manual: bool, repository: &str) -> (Option<bool>, Option<String>) {
        let repository = (!repository.is_empty()).then(|| repository.to_owned());
        (Some(manual), repository)
    }

    #[test]
    fn nobody_tells() {
        assert_eq!(applied(MemorySource::new("m")), vec![(None, None); 3]);
    }

    #[test]
    fn yums_database() {
        let at = |pkg: &str, fact: &str| format!("/var/lib/yum/yumdb/{}/0123-{pkg}/{fact}", &pkg[..1]);
        let found = applied(
            MemorySource::new("m")
                .file(&at("app-1.0-2.el9-x86_64", "reason"), "user\n")
                .file(&at("app-1.0-2.el9-x86_64", "from_repo"), "base")
                .file(&at("lib-1.0-2.el9-noarch", "reason"), "dep")
                .file(&at("lib-0.9-2.el9-noarch", "reason"), "user"),
        );
        assert_eq!(found, [said(true, "base"), said(false, ""), (None, None)]);
    }

    #[test]
    fn dnf5s_state() {
        let found = applied(
            MemorySource::new("m")
                .file(
                    "/usr/lib/sysimage/libdnf5/packages.toml",
                    "version = \"1.0\"\n[packages]\n\"app.x86_64\" = {reason = \"Weak Dependency\"}\n",
                )
                .file(
                    "/usr/lib/sysimage/libdnf5/nevras.toml",
                    "[nevras]\n\"lib-1:1.0-2.el9.noarch\" = {from_repo = \"updates\"}\n\
                     \"app-1.0-2.el9.x86_64\" = {from_repo = \"@System\"}\n",
                ),
        );
        assert_eq!(found, [said(false, ""), said(true, "updates"), (None, None)]);
        let mut listing = listing();
        let broken = MemorySource::new("m").file("/usr/lib/sysimage/libdnf5/packages.toml", "[[[");
        apply(&broken.build(), &mut listing);
        assert_eq!(listing.problems.len(), 1);
        assert!(listing.packages.iter().all(|p| p.manual.is_none()));
    }

    #[test]
    fn lists_of_what_came_by_itself() {
        let found = applied(
            MemorySource::new("m")
                .file("/var/lib/zypp/AutoInstalled", "# comment\n\nlib\n")
                .file(
                    "/var/log/zypp/history",
                    "# x\n2021-01-01 10:00:00|install|lib|1.0-2.el9|noarch||old|sum|\n\
                     2021-01-02 10:00:00|install|lib|1.0-2.el9|noarch|root@h|repo-oss|sum|\n\
                     2021-01-02 10:00:00|install|app|0.9-2.el9|x86_64|root@h|other|sum|\n",
                ),
        );
        assert_eq!(found, [said(true, ""), said(false, "repo-oss"), (None, None)]);
        let found = applied(MemorySource::new("m").file(URPMI, "app\n"));
        assert_eq!(found, [said(false, ""), said(true, ""), (None, None)]);
    }
}
