//! rpm's databases: what rpm itself says of them, and what damage does.

use crate::disk::Random;
use crate::mutants::{mutants, mutate};
use crate::support::{bash, run, scratch, shared, tools, unzstd};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vm2k::bytes::{hex, unhex};
use vm2k::digest::Digest;
use vm2k::error::{Error, code};
use vm2k::pkgdb::rpm::{self, Header};
use vm2k::pkgdb::{self, Database, FileDigest, FileState, Listing, Package};
use vm2k::source::Source;
use vm2k::source::memory::MemorySource;

/// The database in a directory.
fn read(dir: &Path) -> Result<Listing, Error> {
    let kind = ["rpmdb.sqlite", "Packages.db", "Packages"];
    let kind = kind.iter().find(|k| dir.join(k).exists()).expect("a database");
    let wal = std::fs::read(dir.join(format!("{kind}-wal"))).ok();
    rpm::read_bytes(kind, std::fs::read(dir.join(kind)).unwrap(), wal)
}

fn digest(digest: Option<&FileDigest>) -> String {
    match digest {
        None => String::new(),
        Some(FileDigest::Md5(d)) => hex(d),
        Some(FileDigest::Sha1(d)) => hex(d),
        Some(FileDigest::Sha256(d)) => hex(d),
        Some(FileDigest::Sha384(d)) => hex(&d[..]),
        Some(FileDigest::Sha512(d)) => hex(&d[..]),
    }
}

/// What rpm is asked for: a line of the package, then one of each relation and file.
const FORMAT: &str = "P\\t%{NAME}\\t%{EPOCH}\\t%{VERSION}\\t%{RELEASE}\\t%{ARCH}\\t%{SOURCERPM}\\t%{LONGSIZE}\\t%{INSTALLTIME}\\t%{VENDOR}\
\\t%{GROUP}\\t%{LICENSE}\\t%{URL}\\t%{SUMMARY}\\t%{MODULARITYLABEL}\\t%{PACKAGER}\\t%{DISTRIBUTION}\\n\
[requires\\t%{REQUIRENEVRS}\\n][provides\\t%{PROVIDENEVRS}\\n][conflicts\\t%{CONFLICTNEVRS}\\n][obsoletes\\t%{OBSOLETENEVRS}\\n]\
[recommends\\t%{RECOMMENDNEVRS}\\n][suggests\\t%{SUGGESTNEVRS}\\n][supplements\\t%{SUPPLEMENTNEVRS}\\n][enhances\\t%{ENHANCENEVRS}\\n]\
[file\\t%{FILENAMES}\\t%{FILEMODES}\\t%{LONGFILESIZES}\\t%{FILEMTIMES}\\t%{FILEDIGESTS}\\t%{FILEFLAGS}\\t%{FILEUSERNAME}\\t%{FILEGROUPNAME}\
\\t%{FILELINKTOS}\\t%{FILECAPS}\\t%{FILESTATES}\\n]";

/// The packages as rpm tells them, each with all its lines.
fn judged(dir: &Path) -> Vec<String> {
    let output = Command::new("rpm")
        .args(["--dbpath", dir.to_str().unwrap(), "-qa", "--qf", FORMAT])
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut packages: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        for field in &mut fields {
            if field == "(none)" {
                field.clear();
            }
        }
        match fields[0].as_str() {
            "P" => {
                packages.push(String::new());
                // An architecture that is not there has a name in some versions of rpm.
                if fields[1] == "gpg-pubkey" {
                    fields[5] = String::new();
                }
            }
            "file" => {
                // rpm normalises no paths; flags that the model has no word for are masked.
                fields[6] = (fields[6].parse::<u32>().unwrap() & 0b101_1011).to_string();
                while fields.len() < 12 {
                    fields.push(String::new());
                }
                // Sizes of 0 states.
                if fields[11].is_empty() {
                    fields[11] = "0".to_owned();
                }
            }
            "requires" | "provides" | "conflicts" | "obsoletes" | "recommends" | "suggests"
            | "supplements" | "enhances"
                if fields[1].is_empty() =>
            {
                continue;
            }
            // A line of a summary that has several.
            _ => {}
        }
        let last = packages.last_mut().unwrap();
        last.push_str(&fields.join("\t"));
        last.push('\n');
    }
    packages.sort();
    packages
}

/// The same lines from the model.
fn told(packages: &[Package]) -> Vec<String> {
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    let mut all: Vec<String> = packages
        .iter()
        .map(|p| {
            let mut t = [
                "P".to_owned(),
                p.name.clone(),
                p.epoch.map(|e| e.to_string()).unwrap_or_default(),
                p.version.clone(),
                text(&p.release),
                text(&p.arch),
                p.source.as_ref().map(|s| s.name.clone()).unwrap_or_default(),
                p.size.map(|s| s.to_string()).unwrap_or_default(),
                p.installed_at.map(|s| s.to_string()).unwrap_or_default(),
                text(&p.vendor),
                text(&p.section),
                text(&p.license),
                text(&p.homepage),
                text(&p.summary),
                text(&p.module),
                text(&p.maintainer),
                text(&p.origin),
            ]
            .join("\t");
            t.push('\n');
            let r = &p.relations;
            for (kind, list) in [
                ("requires", &r.depends),
                ("provides", &r.provides),
                ("conflicts", &r.conflicts),
                ("obsoletes", &r.replaces),
                ("recommends", &r.recommends),
                ("suggests", &r.suggests),
                ("supplements", &r.supplements),
                ("enhances", &r.enhances),
            ] {
                for relation in list {
                    t.push_str(&format!("{kind}\t{relation}\n"));
                }
            }
            for file in &p.files {
                let f = file.facts.as_ref().unwrap();
                let bits = [
                    f.flags.config,
                    f.flags.doc,
                    false,
                    f.flags.missing_ok,
                    f.flags.noreplace,
                    false,
                    f.flags.ghost,
                ];
                let bits: u32 = bits.iter().enumerate().map(|(n, b)| u32::from(*b) << n).sum();
                let state = match f.state {
                    FileState::Normal => 0,
                    FileState::Replaced => 1,
                    FileState::NotInstalled => 2,
                    FileState::NetShared => 3,
                    FileState::WrongColor => 4,
                };
                t.push_str(&format!(
                    "file\t{}\t{}\t{}\t{}\t{}\t{bits}\t{}\t{}\t{}\t{}\t{state}\n",
                    String::from_utf8_lossy(file.path.as_bytes()),
                    f.mode.unwrap(),
                    f.size.unwrap(),
                    f.mtime.unwrap(),
                    digest(f.digest.as_ref()),
                    text(&f.user),
                    text(&f.group),
                    String::from_utf8_lossy(f.link.as_deref().unwrap_or_default()),
                    text(&f.capabilities),
                ));
            }
            t
        })
        .collect();
    all.sort();
    all
}

#[track_caller]
fn same(what: &str, ours: &[String], theirs: &[String]) {
    for (a, b) in ours.iter().zip(theirs) {
        for (a, b) in a.lines().zip(b.lines()) {
            assert_eq!(a, b, "{what}");
        }
        assert_eq!(a.lines().count(), b.lines().count(), "{what}: {}", &a[..60]);
    }
    assert_eq!(ours.len(), theirs.len(), "{what}");
}

#[test]
fn real_databases() {
    let test = "rpm::real_databases";
    let Some(data) = shared(test, "rpmdb") else { return };
    if !tools(test, &["zstd", "rpm"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for folder in std::fs::read_dir(data).unwrap() {
        let folder = folder.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let out = dir.path().join(&name);
        std::fs::create_dir(&out).unwrap();
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|e| e == "zst") {
                unzstd(&file, &out);
            }
        }
        let listing = read(&out).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(listing.problems, [], "{name}");
        assert_eq!(listing.notes, [""; 0], "{name}");
        let mut ours: Vec<String> = listing
            .packages
            .iter()
            .map(|p| {
                let source = p.source.as_ref().map(|s| s.name.as_str()).unwrap_or_default();
                format!(
                    "{}\t{}\t{}\t{}\t{}\t{source}",
                    p.name,
                    p.epoch
                        .filter(|e| *e > 0)
                        .map(|e| e.to_string())
                        .unwrap_or_default(),
                    p.version,
                    p.release.as_deref().unwrap(),
                    p.arch.as_deref().unwrap_or_default(),
                )
            })
            .collect();
        ours.sort();
        let expected = std::fs::read_to_string(folder.join("expected.tsv")).unwrap();
        let mut expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        expected.sort();
        assert_eq!(ours, expected, "{name}");
        // Everything that rpm says of them.
        // Debian's rpm is built without ndb.
        if !out.join("Packages.db").exists() {
            same(&name, &told(&listing.packages), &judged(&out));
        }
    }
}

/// Headers by the numbers of their packages.
type Headers = Vec<(u32, Vec<u8>)>;

/// Packages with all that a header can hold, and a database of them in `db`: `$1` is the folder.
const MAKE: &str = r#"
export LC_ALL=C.UTF-8
mkdir -p $1/{SPECS,db,data}; cd $1
cat >SPECS/base.spec <<'S'
Name: vm2k-base
Version: 1.0~rc1
Release: 3.el9
Epoch: 2
Summary: The first line
Summary(de): Die erste Zeile
License: MIT and ASL 2.0
Group: System/Base
URL: https://example.org/base?a=1
Vendor: Example Works
Packager: A Person <a@example.org>
Distribution: Example Distribution
ModularityLabel: nodejs:18:8060020221216:ad008a3a:x86_64
Provides: virtual(x) = 1:2.0-3, plain, config(vm2k-base) = 1
Requires: /bin/sh, glibc >= 2.34, (a if b), ((c >= 1 with c < 2) or d or e), (d if (e or g) else f), less < 600, exact = 3:1-1
Requires(pre): shadow-utils
Requires(post): /sbin/ldconfig
Recommends: rec > 1
Suggests: sug
Supplements: (x and y)
Enhances: enh <= 4
Conflicts: bad < 2, worse
Obsoletes: old <= 1
%description
Text.
%install
b=%{buildroot}
mkdir -p $b/etc/vm2k.d $b/usr/bin $b/usr/share/doc/vm2k "$b/usr/share/with space" $b/var/log/vm2k
echo a >$b/etc/vm2k.conf
echo b >$b/etc/vm2k.d/noreplace.conf
echo c >$b/etc/vm2k.d/missing.conf
printf '#!/bin/sh\n' >$b/usr/bin/tool
ln $b/usr/bin/tool $b/usr/bin/tool-hard
ln -s tool $b/usr/bin/tool-link
ln -s /nowhere/at/all $b/etc/vm2k.d/link.conf
echo doc >$b/usr/share/doc/vm2k/README
echo lic >$b/usr/share/doc/vm2k/LICENSE
echo sp >"$b/usr/share/with space/a file"
: >$b/usr/share/empty
%post
echo installed
%files
%config /etc/vm2k.conf
%dir %attr(0750,root,adm) /etc/vm2k.d
%config(noreplace) %attr(0640,daemon,adm) /etc/vm2k.d/noreplace.conf
%config(missingok) /etc/vm2k.d/missing.conf
%config /etc/vm2k.d/link.conf
%attr(4755,root,root) %caps(cap_net_raw=ep) /usr/bin/tool
%attr(4755,root,root) %caps(cap_net_raw=ep) /usr/bin/tool-hard
/usr/bin/tool-link
%doc /usr/share/doc/vm2k/README
%license /usr/share/doc/vm2k/LICENSE
"/usr/share/with space"
/usr/share/empty
%ghost %config /etc/vm2k.ghost
%ghost /var/log/vm2k/log
%dir /var/log/vm2k
S
{
  printf 'Name: small\nVersion: 1\nRelease: 1\nSummary: s\nLicense: l\nBuildArch: noarch\n%%description\nt\n%%install\nmkdir -p %%{buildroot}/etc\n'
  echo 'for n in $(seq 0 24); do echo $n >%{buildroot}/etc/small$n; done; echo common >%{buildroot}/etc/common; cp %{buildroot}/etc/common %{buildroot}/etc/doc'
  for n in $(seq 0 24); do printf '%%package -n small-%s\nSummary: number %s\n%%description -n small-%s\nt\n%%files -n small-%s\n/etc/small%s\n' $n $n $n $n $n; done
  printf '/etc/common\n%%doc /etc/doc\n'
} >SPECS/small.spec
sed 's/^Name:.*/Name: other/; s/echo common/echo other/; /^%package/,$d' SPECS/small.spec >SPECS/other.spec
printf '%%files\n%%config /etc/common\n%%doc /etc/doc\n' >>SPECS/other.spec
{
  printf 'Name: long\nVersion: 1\nRelease: 1\nSummary: s\nLicense: l\nBuildArch: noarch\n'
  for n in $(seq 1 600); do echo "Provides: capability-number-$n(x86-64) = $n"; done
  printf '%%description\nt\n%%install\nfor d in $(seq 1 20); do mkdir -p %%{buildroot}/usr/lib/long/d$d; (cd %%{buildroot}/usr/lib/long/d$d; seq 1 3000 | split -a 3 -l 20); done\n'
  printf '%%files\n/usr/lib/long\n'
} >SPECS/long.spec
build() { rpmbuild -bb --quiet --nodeps --define '_buildhost builder' --define "_topdir $PWD" --define '_build_id_links none' --define '_unpackaged_files_terminate_build 0' "$@" 2>log || { cat log; exit 1; }; }
build SPECS/base.spec
build SPECS/long.spec
build --define '_binary_filedigest_algorithm 1' SPECS/small.spec
build --define '_binary_filedigest_algorithm 2' SPECS/other.spec
for a in 9 10; do sed "s/^Name:.*/Name: other-$a/" SPECS/other.spec >SPECS/other-$a.spec; build --define "_binary_filedigest_algorithm $a" SPECS/other-$a.spec; done
install() { rpm --dbpath $PWD/db --nodeps --noscripts --justdb -i "$@" 2>/dev/null; }
install RPMS/*/{vm2k-base,long,small}-*.rpm
install --replacefiles RPMS/*/other-1-1*.rpm
install --replacefiles RPMS/*/other-{9,10}-*.rpm
sqlite3 db/rpmdb.sqlite 'pragma wal_checkpoint(truncate)' >/dev/null
rm -f db/*-shm db/*-wal
sqlite3 db/rpmdb.sqlite "select hnum || ' ' || hex(blob) from Packages" >blobs
"#;

/// A folder of its own for each test, with the database in `db`, and its headers by their numbers; `None` where a tool is
/// missing. The packages are built once, and kept for the next run.
fn made(test: &str) -> Option<(tempfile::TempDir, Headers)> {
    static BUILDING: Mutex<()> = Mutex::new(());
    if !tools(test, &["rpm", "rpmbuild", "sqlite3"]) {
        return None;
    }
    let script = Digest::of(MAKE.as_bytes()).hex();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rpm-{}", &script[..16]));
    {
        let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.exists() {
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            bash(MAKE, &[dir.path()]);
            bash(
                "cd $1; mkdir made; mv db blobs made/; mv made $2",
                &[dir.path(), &kept],
            );
        }
    }
    let dir = scratch(256 << 20);
    bash("cp -r $1/. $2", &[&kept, dir.path()]);
    let blobs = std::fs::read_to_string(dir.path().join("blobs")).unwrap();
    let blobs: Headers = blobs
        .lines()
        .map(|line| {
            let (number, blob) = line.split_once(' ').unwrap();
            (number.parse().unwrap(), unhex(&blob.to_lowercase()).unwrap())
        })
        .collect();
    assert!(blobs.len() > 25, "{}", blobs.len());
    Some((dir, blobs))
}

/// A Berkeley DB of the headers, written by db_load.
fn berkeley(dir: &Path, blobs: &[(u32, Vec<u8>)], kind: &str, big: bool, page: u32, more: &str) -> Vec<u8> {
    let order = if big { 4321 } else { 1234 };
    let mut text = format!(
        "VERSION=3\nformat=bytevalue\ntype={kind}\ndb_lorder={order}\ndb_pagesize={page}\n{more}HEADER=END\n"
    );
    let last = blobs.iter().map(|(n, _)| *n).max().unwrap();
    for (number, blob) in [(0, last.to_ne_bytes().to_vec())].iter().chain(blobs) {
        let key = if big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        };
        text.push_str(&format!(" {}\n {}\n", hex(&key), hex(blob)));
    }
    text.push_str("DATA=END\n");
    std::fs::write(dir.join("dump"), text).unwrap();
    bash("cd $1; rm -f Packages; db_load -f dump Packages", &[dir]);
    std::fs::read(dir.join("Packages")).unwrap()
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), x| {
        let a = (a + u32::from(*x)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

/// An ndb of the headers, with free slots and a gap between blobs.
fn ndb(blobs: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let word = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    let pages = (blobs.len() + 10) * 16 / 4096 + 1;
    let mut slots = [
        &b"RpmP"[..],
        &[0; 4],
        &word(7),
        &word(pages),
        &word(blobs.len() + 1),
        &[0; 12],
    ]
    .concat();
    let mut data: Vec<u8> = Vec::new();
    for (n, (number, blob)) in blobs.iter().enumerate() {
        if n % 5 == 1 {
            slots.extend([&b"Slot"[..], &[0; 12]].concat());
            data.extend([0xee; 32]);
        }
        let number = number.to_le_bytes();
        let start = (pages * 4096 + data.len()) / 16;
        let mut record = [&b"BlbS"[..], &number, &word(n), &word(blob.len()), blob].concat();
        record.resize((record.len() + 12).div_ceil(16) * 16 - 12, 0);
        let sum = adler32(&record);
        record.extend([&sum.to_le_bytes()[..], &word(blob.len()), b"BlbE"].concat());
        slots.extend([&b"Slot"[..], &number, &word(start), &word(record.len() / 16)].concat());
        data.extend(record);
    }
    while slots.len() < pages * 4096 {
        slots.extend([&b"Slot"[..], &[0; 12]].concat());
    }
    slots.extend(data);
    slots
}

#[test]
fn every_kind_holds_the_same() {
    let test = "rpm::every_kind_holds_the_same";
    let Some((dir, blobs)) = made(test) else { return };
    if !tools(test, &["db_load"]) {
        return;
    }
    let dir = dir.path();
    let listing = read(&dir.join("db")).unwrap();
    assert_eq!((listing.problems.len(), listing.notes.len()), (0, 0));
    let theirs = judged(&dir.join("db"));
    same("sqlite", &told(&listing.packages), &theirs);
    let by_name = |name: &str| listing.packages.iter().find(|p| p.name == name).unwrap();
    let base = by_name("vm2k-base");
    assert!(
        base.relations
            .depends
            .iter()
            .any(|r| r == "(d if (e or g) else f)")
    );
    assert_eq!(base.full_version(), "2:1.0~rc1-3.el9");
    let conffiles: Vec<String> = base.conffiles.iter().map(|c| c.path.to_string()).collect();
    assert_eq!(
        conffiles,
        [
            "/etc/vm2k.conf",
            "/etc/vm2k.d/link.conf",
            "/etc/vm2k.d/missing.conf",
            "/etc/vm2k.d/noreplace.conf"
        ]
    );
    let kinds: BTreeSet<&str> = listing
        .packages
        .iter()
        .flat_map(Package::digests)
        .map(|(_, digest)| match digest {
            FileDigest::Md5(_) => "md5",
            FileDigest::Sha1(_) => "sha1",
            FileDigest::Sha256(_) => "sha256",
            FileDigest::Sha384(_) => "sha384",
            FileDigest::Sha512(_) => "sha512",
        })
        .collect();
    assert_eq!(kinds.len(), 5);
    let states: Vec<FileState> = listing
        .packages
        .iter()
        .flat_map(|p| &p.files)
        .map(|f| f.facts.as_ref().unwrap().state)
        .filter(|s| *s != FileState::Normal)
        .collect();
    assert!(states.contains(&FileState::Replaced), "{states:?}");
    let equal = |what: &str, kind: &str, bytes: Vec<u8>| {
        let found = rpm::read_bytes(kind, bytes, None).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(found == listing, "{what}: {:?}", found.problems);
    };
    equal("ndb", "Packages.db", ndb(&blobs));
    for big in [false, true] {
        for page in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
            for (kind, more) in [
                ("hash", ""),
                ("btree", ""),
                ("hash", "chksum=1\n"),
                ("btree", "chksum=1\n"),
            ] {
                // Both byte orders for the smallest, the usual and the largest.
                let wanted = !big || matches!(page, 512 | 4096 | 65536);
                if wanted && (more.is_empty() || page == 4096) {
                    let what = format!("{kind} {page} {big} {more}");
                    equal(&what, "Packages", berkeley(dir, &blobs, kind, big, page, more));
                }
            }
        }
    }
    // Where the table was made for many more, most of its pages were never written.
    equal(
        "large hash",
        "Packages",
        berkeley(dir, &blobs, "hash", false, 4096, "h_nelem=4000\nh_ffactor=8\n"),
    );
    let encrypted = bash(
        "cd $1; db_load -P secret -f dump crypt 2>&1 && cat crypt | base64 -w0",
        &[dir],
    )
    .stdout;
    let encrypted = base64(&encrypted);
    let e = rpm::read_bytes("Packages", encrypted, None).unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
    // SQLite's own sizes of pages.
    for page in [512, 1024, 65536] {
        bash(
            &format!(
                "cd $1; rm -f x; cp db/rpmdb.sqlite x; sqlite3 x 'pragma journal_mode=delete; pragma page_size={page}; vacuum' >/dev/null"
            ),
            &[dir],
        );
        equal(
            &format!("sqlite {page}"),
            "rpmdb.sqlite",
            std::fs::read(dir.join("x")).unwrap(),
        );
    }
}

fn base64(text: &[u8]) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn what_a_crash_leaves_beside_sqlite_counts() {
    let test = "rpm::what_a_crash_leaves_beside_sqlite_counts";
    let Some((dir, _)) = made(test) else { return };
    let dir = dir.path();
    let copy = |name: &str, script: &str| {
        bash(
            &format!(
                "cd $1; rm -rf w {name}; cp -r db w; mkdir {name}; sqlite3 w/rpmdb.sqlite <<'S' >/dev/null\n{script}\nS"
            ),
            &[dir],
        );
        dir.join(name)
    };
    let before = read(&dir.join("db")).unwrap().packages.len();
    // A log with a committed transaction, one that was written after a checkpoint, and one that was never committed.
    let wal = copy(
        "wal",
        "pragma journal_mode=wal; pragma wal_autocheckpoint=0; pragma cache_size=2;\ndelete from Packages where hnum=2; pragma wal_checkpoint(restart);\ninsert into Packages select hnum+100, blob from Packages where hnum=3;\nbegin; update Packages set blob=zeroblob(length(blob)) where hnum > 4;\n.system cp w/rpmdb.sqlite w/rpmdb.sqlite-wal wal/",
    );
    assert!(std::fs::metadata(wal.join("rpmdb.sqlite-wal")).unwrap().len() > 40_000);
    let with = read(&wal).unwrap();
    assert_eq!(with.problems, []);
    assert_eq!(with.packages.len(), before);
    // rpm reads the log too.
    same("wal", &told(&with.packages), &judged(&wal));
    let alone = rpm::read_bytes(
        "rpmdb.sqlite",
        std::fs::read(dir.join("wal/rpmdb.sqlite")).unwrap(),
        None,
    );
    assert_ne!(
        alone.unwrap().packages.len(),
        before,
        "the log has a package more"
    );
    // A transaction of a rollback journal that was cut off.
    let hot = copy(
        "hot",
        "pragma journal_mode=delete; pragma cache_size=2;\nbegin; update Packages set blob=zeroblob(length(blob)); delete from Packages where hnum > 3;\n.system cp w/rpmdb.sqlite w/rpmdb.sqlite-journal hot/",
    );
    let source = MemorySource::new("hot")
        .file(
            "/var/lib/rpm/rpmdb.sqlite",
            std::fs::read(hot.join("rpmdb.sqlite")).unwrap(),
        )
        .file(
            "/var/lib/rpm/rpmdb.sqlite-journal",
            std::fs::read(hot.join("rpmdb.sqlite-journal")).unwrap(),
        )
        .build();
    let back = rpm::read(&source).unwrap();
    assert_eq!(back.problems, []);
    assert_eq!(back.packages.len(), before);
    // sqlite3 takes it back as well.
    bash(
        "sqlite3 $1/rpmdb.sqlite 'pragma integrity_check' >/dev/null",
        &[&hot],
    );
    assert!(read(&hot).unwrap() == back);
}

#[test]
fn empty_and_damaged_databases() {
    let test = "rpm::empty_and_damaged_databases";
    let Some((dir, blobs)) = made(test) else { return };
    let dir = dir.path();
    bash(
        "cd $1; mkdir empty; rpm --dbpath $1/empty --initdb; sqlite3 empty/rpmdb.sqlite 'pragma wal_checkpoint(truncate)'; rm -f empty/*-*",
        &[dir],
    );
    let empty = std::fs::read(dir.join("empty/rpmdb.sqlite")).unwrap();
    let whole = std::fs::read(dir.join("db/rpmdb.sqlite")).unwrap();
    for (kind, bytes, reason) in [
        ("rpmdb.sqlite", empty.clone(), "no packages"),
        ("rpmdb.sqlite", Vec::new(), "0 bytes"),
        ("rpmdb.sqlite", b"SQLite format 4\0".repeat(90), "does not begin"),
        ("Packages.db", ndb(&[(9, Vec::new())])[..4096].to_vec(), "overlap"),
        ("Packages.db", vec![0; 4096], "RpmP"),
        ("Packages", vec![0; 4096], "Berkeley DB"),
        ("Packages", Vec::new(), "512 bytes more"),
    ] {
        let e = rpm::read_bytes(kind, bytes, None).unwrap_err();
        assert!(
            e.code() == code::CORRUPT && e.to_string().contains(reason),
            "{reason}: {e}"
        );
    }
    // One of the headers, of an ndb with right checksums: the rest is listed.
    let mut bad = blobs.clone();
    bad[3].1[3] ^= 0x40;
    let listing = rpm::read_bytes("Packages.db", ndb(&bad), None).unwrap();
    assert_eq!(listing.packages.len(), blobs.len() - 1);
    assert_eq!(listing.problems.len(), 1);
    assert!(
        listing.problems[0]
            .what
            .contains(&format!("header {}", blobs[3].0))
    );
    // A page in the middle of an SQLite file: what does not need it is listed.
    let mut bad = whole.clone();
    let at = bad.windows(9).position(|w| w == b"A Person ").unwrap() / 4096 * 4096;
    bad[at..at + 4096].fill(0xa5);
    match rpm::read_bytes("rpmdb.sqlite", bad, None) {
        Ok(listing) => assert!(!listing.problems.is_empty() && listing.packages.len() < blobs.len()),
        Err(e) => assert_eq!(e.code(), code::CORRUPT),
    }
    // An empty database beside one with packages; a damaged one beside one with packages.
    for (file, content, problems) in [
        ("/usr/lib/sysimage/rpm/rpmdb.sqlite", empty, 0),
        ("/usr/lib/sysimage/rpm/Packages.db", vec![1; 99], 1),
    ] {
        let source = MemorySource::new("m")
            .file(file, content)
            .file("/var/lib/rpm/rpmdb.sqlite", &whole)
            .build();
        let listing = rpm::read(&source).unwrap();
        assert_eq!(
            (listing.packages.len(), listing.problems.len()),
            (blobs.len(), problems)
        );
        assert!(listing.notes[0].contains("/var/lib/rpm/rpmdb.sqlite") && listing.notes[0].contains(file));
        assert!(
            pkgdb::read(&source, None)
                .unwrap()
                .is_some_and(|(name, _)| name == "rpm")
        );
    }
}

#[test]
fn files_on_the_machine() {
    let test = "rpm::files_on_the_machine";
    let Some((dir, _)) = made(test) else { return };
    let database = std::fs::read(dir.path().join("db/rpmdb.sqlite")).unwrap();
    let source = MemorySource::new("m")
        .file("/usr/lib/sysimage/rpm/rpmdb.sqlite", database)
        .symlink("/var/lib/rpm", "../../usr/lib/sysimage/rpm")
        .file("/etc/vm2k.conf", "changed\n")
        .file("/etc/vm2k.d/noreplace.conf", "b\n")
        .file("/etc/vm2k.ghost", "made here\n")
        .file("/etc/common", "other\n")
        .symlink("/bin", "usr/bin")
        .file("/usr/bin/tool", "#!/bin/sh\n")
        .build();
    let (name, listing) = pkgdb::read(&source, None).unwrap().unwrap();
    assert_eq!(name, "rpm");
    assert!(
        listing.packages.iter().all(|p| p.manual.is_none()),
        "nothing tells"
    );
    let changed = pkgdb::changed_conffiles(&source, &listing.packages).unwrap();
    let changed: Vec<String> = changed.iter().map(ToString::to_string).collect();
    // The other one that is not there is %config(missingok).
    assert_eq!(changed, ["/etc/vm2k.conf"]);
    let owners = pkgdb::owners(source.tree(), &listing.packages);
    let names = |path: &str| -> Vec<&str> {
        let (path, _) = source.tree().find(path).unwrap();
        owners
            .of(&path)
            .iter()
            .map(|n| listing.packages[*n].name.as_str())
            .collect()
    };
    assert_eq!(names("/bin/tool"), ["vm2k-base"]);
    assert_eq!(names("/etc/vm2k.ghost"), ["vm2k-base"]);
    // Of the packages that brought it only those count whose file is there.
    let theirs = run(Command::new("rpm")
        .args([
            "--dbpath",
            dir.path().join("db").to_str().unwrap(),
            "-qf",
            "--qf",
            "%{NAME}\n",
        ])
        .arg("/etc/common"));
    let mut theirs: Vec<String> = String::from_utf8(theirs.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    theirs.sort();
    assert_eq!(names("/etc/common"), theirs);
    let database = Database::named("rpm").unwrap();
    let native = database.arch_of(&listing.packages).unwrap();
    assert!(rpm::oci_arch(native).is_some(), "{native}");
}

/// Corrects the checksums of an ndb.
fn repair_ndb(b: &mut [u8]) {
    let word = |b: &[u8], at: usize| {
        let bytes = b.get(at..at + 4).map(|w| w.try_into().unwrap());
        bytes.map_or(0, |w| usize::try_from(u32::from_le_bytes(w)).unwrap())
    };
    for slot in (32..4096).step_by(16) {
        let (start, len) = (word(b, slot + 8) * 16, word(b, slot + 12) * 16);
        if start > 0 && len > 12 && start + len <= b.len() {
            let sum = adler32(&b[start..start + len - 12]).to_le_bytes();
            b[start + len - 12..start + len - 8].copy_from_slice(&sum);
        }
    }
}

/// Corrects the checksums of a write-ahead log in the byte order of this machine.
fn repair_wal(b: &mut [u8]) {
    let add = |sum: (u32, u32), bytes: &[u8]| {
        bytes.chunks_exact(8).fold(sum, |(x, y), pair| {
            let word = |at: usize| u32::from_le_bytes(pair[at..at + 4].try_into().unwrap());
            let x = x.wrapping_add(word(0)).wrapping_add(y);
            (x, y.wrapping_add(word(4)).wrapping_add(x))
        })
    };
    let mut sum = add((0, 0), &b[..24]);
    b[24..28].copy_from_slice(&sum.0.to_be_bytes());
    b[28..32].copy_from_slice(&sum.1.to_be_bytes());
    let page = usize::try_from(u32::from_be_bytes(b[8..12].try_into().unwrap())).unwrap();
    let mut at = 32;
    while page < 65537 && at + 24 + page <= b.len() {
        sum = add(sum, &b[at..at + 8]);
        sum = add(sum, &b[at + 24..at + 24 + page]);
        b[at + 16..at + 20].copy_from_slice(&sum.0.to_be_bytes());
        b[at + 20..at + 24].copy_from_slice(&sum.1.to_be_bytes());
        at += 24 + page;
    }
}

/// Reads mutants of a database.
fn try_all(
    name: &str,
    whole: &[u8],
    repair: fn(&mut [u8]),
    read: &dyn Fn(Vec<u8>) -> Result<Listing, Error>,
) {
    let mut slowest = Duration::ZERO;
    let (mut whole_again, mut partly, mut refused) = (0, 0, 0);
    let packages = read(whole.to_vec()).unwrap().packages.len();
    let hot = [0..4096.min(whole.len()), 0..whole.len()];
    for n in 0..mutants() {
        let mut b = whole.to_vec();
        mutate(&mut b, n, &hot);
        if n % 4 > 1 {
            repair(&mut b);
        }
        if n % 10 == 9 {
            b.truncate(Random(n | 1).below(b.len()));
        }
        let start = Instant::now();
        match read(b) {
            Ok(listing) => {
                assert!(!listing.packages.is_empty(), "{name} {n}: no packages, ok");
                match listing.packages.len() == packages && listing.problems.is_empty() {
                    true => whole_again += 1,
                    false => partly += 1,
                }
            }
            Err(e) => {
                assert!(
                    matches!(e.code(), code::CORRUPT | code::UNSUPPORTED),
                    "{name} {n}: {e}"
                );
                refused += 1;
            }
        }
        let took = start.elapsed();
        slowest = slowest.max(took);
        assert!(took.as_secs() < 5, "{name} {n}: {took:?}");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|l| l.starts_with("VmHWM"))
        .unwrap_or_default();
    println!(
        "{name}: {} bytes, {} mutants: {whole_again} whole, {partly} in part, {refused} refused, slowest {slowest:?}, {peak}",
        whole.len(),
        mutants()
    );
}

#[test]
fn mutants_of_every_kind() {
    let test = "rpm::mutants_of_every_kind";
    let Some((dir, blobs)) = made(test) else { return };
    if !tools(test, &["db_load"]) {
        return;
    }
    let dir = dir.path();
    // Small ones, of which some need overflow pages: a mutant that only changes text says little.
    let few: Headers = blobs
        .iter()
        .filter(|(_, b)| b.len() < 12_000)
        .take(10)
        .cloned()
        .collect();
    assert_eq!(few.len(), 10);
    let nothing: fn(&mut [u8]) = |_| {};
    let plain = |kind: &'static str| move |bytes| rpm::read_bytes(kind, bytes, None);
    let hash = berkeley(dir, &few, "hash", false, 512, "");
    try_all("hash, 512, little-endian", &hash, nothing, &plain("Packages"));
    let hash = berkeley(dir, &few, "hash", true, 4096, "");
    try_all("hash, 4096, big-endian", &hash, nothing, &plain("Packages"));
    let btree = berkeley(dir, &few, "btree", false, 512, "");
    try_all("btree, 512, little-endian", &btree, nothing, &plain("Packages"));
    try_all("ndb", &ndb(&few), repair_ndb, &plain("Packages.db"));
    let numbers: Vec<String> = few.iter().map(|(n, _)| n.to_string()).collect();
    bash(
        &format!(
            "cd $1; rm -rf w x y; mkdir w; sqlite3 w/d <<'S' >/dev/null\nattach 'db/rpmdb.sqlite' as a;\npragma main.page_size=512;\ncreate table Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL);\ninsert into Packages select * from a.Packages where hnum in ({});\n.system cp w/d x\npragma journal_mode=wal; pragma wal_autocheckpoint=0;\ndelete from Packages where hnum in (select min(hnum) from Packages);\nupdate Packages set hnum=hnum+500 where length(blob) < 6000;\n.system cp w/d-wal y\nS",
            numbers.join(",")
        ),
        &[dir],
    );
    let file = std::fs::read(dir.join("x")).unwrap();
    let log = std::fs::read(dir.join("y")).unwrap();
    try_all("sqlite", &file, nothing, &plain("rpmdb.sqlite"));
    // A log that is not wholly right is left alone up to its end, so that half of these have right checksums.
    try_all("sqlite's log", &log, repair_wal, &|log| {
        rpm::read_bytes("rpmdb.sqlite", file.clone(), Some(log))
    });
    let longest = &blobs.iter().max_by_key(|(_, b)| b.len()).unwrap().1;
    let base = &blobs
        .iter()
        .find(|(_, b)| b.windows(9).any(|w| w == b"vm2k-base"))
        .unwrap()
        .1;
    for (name, header) in [("header", base), ("long header", longest)] {
        try_all(name, header, nothing, &|bytes| {
            let mut notes = Vec::new();
            let package = rpm::package(&Header::parse(&bytes)?, &mut notes)?;
            Ok(Listing {
                packages: vec![package],
                ..Listing::default()
            })
        });
    }
}
