//! apk's and alpm's databases: the shared data, judged by a second parser and by pacman, and mutants of both.

use crate::support::{bash, root, run, shared, tools};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vm2k::bytes::hex;
use vm2k::error::Error;
use vm2k::pkgdb::{self, FileDigest, Listing, Package};
use vm2k::source::directory::Directory;
use vm2k::source::memory::MemorySource;
use vm2k::source::{Source, read_file};

fn digest(digest: Option<&FileDigest>) -> String {
    match digest {
        Some(FileDigest::Md5(d)) => hex(d),
        Some(FileDigest::Sha1(d)) => hex(d),
        Some(FileDigest::Sha256(d)) => hex(d),
        _ => String::new(),
    }
}

/// A reader of `installed` that shares nothing with ours but the letters of the format: one line a package, one a file.
const PYTHON: &str = r#"
import sys, base64
for entry in open(sys.argv[1], 'rb').read().split(b'\n\n'):
    lines = [l for l in entry.split(b'\n') if l]
    if not lines or any(l[1:2] != b':' for l in lines): continue
    f = {}
    for l in lines: f.setdefault(l[:1].decode(), l[2:].decode())
    print('P', f['P'], f['V'], f.get('A', ''), f.get('I', ''), f.get('o', ''), f.get('D', ''), '/', f.get('p', ''), sep='\t')
    d = None
    out = []
    for l in lines:
        k, v = l[:1], l[2:].decode()
        if k == b'F': d = v; out.append(['/' + d, '755', '']) if d else None
        elif k == b'R': out.append(['/' + (d + '/' if d else '') + v, '644', ''])
        elif k in b'aM' and out: out[-1][1] = v.split(':')[2]
        elif k == b'Z': out[-1][2] = base64.b64decode(v[2:]).hex()
    for o in out: print('F', *o, sep='\t')
"#;

fn rows(listing: &Listing) -> Vec<String> {
    let mut rows = Vec::new();
    for p in &listing.packages {
        let size = p.size.map(|s| s.to_string()).unwrap_or_default();
        let source = p.source.as_ref().map_or("", |s| s.name.as_str());
        let own = [
            "P",
            &p.name,
            &p.full_version(),
            p.arch.as_deref().unwrap_or(""),
            &size,
            source,
            &p.relations.depends.join(" "),
            "/",
            &p.relations.provides.join(" "),
        ];
        rows.push(own.join("\t"));
        for file in &p.files {
            let facts = file.facts.as_deref().unwrap();
            rows.push(format!(
                "F\t{}\t{:o}\t{}",
                file.path,
                facts.mode.unwrap() & 0o7777,
                digest(facts.digest.as_ref())
            ));
        }
    }
    rows
}

#[test]
fn apk_like_another_parser() {
    let mut packages = 0;
    for sub in ["pkgdb/apk-1", "pkgdb/apk-2", "pkgdb/apk-corrupt"] {
        let Some(folder) = shared("apk_alpm::apk_like_another_parser", sub) else {
            return;
        };
        if !tools("apk_alpm::apk_like_another_parser", &["python3"]) {
            return;
        }
        let listing = pkgdb::apk::read(&Directory::open(&folder).unwrap()).unwrap();
        let installed = folder.join("lib/apk/db/installed");
        let out = run(Command::new("python3").args(["-c", PYTHON]).arg(&installed)).stdout;
        // Theirs are in the file's order, with the files behind their package.
        let mut theirs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut at = String::new();
        for line in String::from_utf8(out).unwrap().lines() {
            if line.starts_with('P') {
                at = line.split('\t').nth(1).unwrap().to_owned();
            }
            theirs.entry(at.clone()).or_default().push(line.to_owned());
        }
        let theirs: Vec<String> = theirs.into_values().flatten().collect();
        assert_eq!(rows(&listing), theirs, "{sub}");
        packages += listing.packages.len();
        let corrupt = sub.ends_with("corrupt");
        assert_eq!(
            listing.problems.len(),
            usize::from(corrupt),
            "{:?}",
            listing.problems
        );
        if corrupt {
            assert!(
                listing.problems[0].what.contains("this is a corrupt db"),
                "{:?}",
                listing.problems
            );
        }
        let source = Directory::open(&folder).unwrap();
        let apk = pkgdb::Database::named("apk").unwrap();
        let native = apk.native(&source, &listing.packages).unwrap();
        assert_eq!(native.as_deref(), Some("x86_64"));
        assert_eq!(pkgdb::read(&source, None).unwrap().unwrap().0, "apk");
    }
    eprintln!("{packages} packages equal");
    assert!(packages >= 15, "{packages}");
}

fn pacman(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("pacman");
    command
        .arg("--root")
        .arg(folder)
        .arg("--dbpath")
        .arg(folder.join("var/lib/pacman"));
    command
        .args(["--config", "/dev/null", "--logfile", "/dev/null"])
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC");
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// `Field : value` lines of `pacman -Qi`, continued lines joined.
fn fields(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut at = String::new();
    for line in text.lines() {
        match line.split_once(" : ") {
            Some((field, value)) if !line.starts_with(' ') => {
                at = field.trim().to_owned();
                found.insert(at.clone(), value.trim().to_owned());
            }
            _ => {
                let value: &mut String = found.entry(at.clone()).or_default();
                value.push_str(&format!("\n{}", line.trim()));
            }
        }
    }
    found
}

fn like_pacman(folder: &Path, package: &Package) {
    let name = package.name.as_str();
    let info = fields(&pacman(folder, &["-Qi", name]));
    let words = |list: &[String]| {
        if list.is_empty() {
            "None".to_owned()
        } else {
            list.join("  ")
        }
    };
    let text = |field: Option<&str>| field.unwrap_or("None").to_owned();
    assert_eq!(info["Version"], package.full_version(), "{name}");
    assert_eq!(info["Architecture"], text(package.arch.as_deref()), "{name}");
    assert_eq!(info["Depends On"], words(&package.relations.depends), "{name}");
    assert_eq!(info["Provides"], words(&package.relations.provides), "{name}");
    assert_eq!(
        info["Conflicts With"],
        words(&package.relations.conflicts),
        "{name}"
    );
    assert_eq!(info["Replaces"], words(&package.relations.replaces), "{name}");
    assert_eq!(info["URL"], text(package.homepage.as_deref()), "{name}");
    assert_eq!(info["Description"], text(package.summary.as_deref()), "{name}");
    assert_eq!(
        info["Licenses"].replace("  ", ", "),
        text(package.license.as_deref()),
        "{name}"
    );
    let reason = match package.manual {
        Some(true) => "Explicitly installed",
        Some(false) => "Installed as a dependency for another package",
        None => "Unknown",
    };
    assert_eq!(info["Install Reason"], reason, "{name}");
    let optional: Vec<&str> = info["Optional Deps"]
        .lines()
        .filter(|l| *l != "None")
        .map(|l| l.split(": ").next().unwrap().trim_end_matches(" [installed]"))
        .collect();
    assert_eq!(optional, package.relations.suggests, "{name}");
    let listed = pacman(folder, &["-Ql", name]);
    let root = folder.display().to_string();
    let theirs: Vec<String> = listed
        .lines()
        .filter_map(|l| l.strip_prefix(&format!("{name} {root}")))
        .map(|p| p.trim_end_matches('/').to_owned())
        .collect();
    let ours: Vec<String> = package
        .files
        .iter()
        .map(|f| String::from_utf8(f.path.as_bytes().to_vec()).unwrap())
        .collect();
    assert_eq!(ours, theirs, "{name}");
}

#[test]
fn alpm_of_the_shared_data_like_pacman() {
    let Some(folder) = shared("apk_alpm::alpm_of_the_shared_data", "pkgdb/alpm") else {
        return;
    };
    if !tools("apk_alpm::alpm_of_the_shared_data", &["pacman"]) {
        return;
    }
    let copy = tempfile::tempdir().unwrap();
    bash("cp -r \"$1/.\" \"$2\"", &[&folder, copy.path()]);
    let source = Directory::open(copy.path()).unwrap();
    let listing = pkgdb::alpm::read(&source).unwrap();
    let what: Vec<&str> = listing.problems.iter().map(|p| p.what.as_str()).collect();
    // One damaged entry; three that have no list of files.
    assert_eq!(what.iter().filter(|w| w.contains("NAME")).count(), 1, "{what:?}");
    assert_eq!(
        what.iter().filter(|w| w.contains("is missing")).count(),
        3,
        "{what:?}"
    );
    assert_eq!(listing.problems.len(), 4, "{what:?}");
    // pacman stops at a damaged entry; it is not asked about that one.
    bash(
        "rm -r \"$1\"/var/lib/pacman/local/corrupt-*; echo 9 >\"$1\"/var/lib/pacman/local/ALPM_DB_VERSION",
        &[copy.path()],
    );
    let theirs = pacman(copy.path(), &["-Q"]);
    let ours: Vec<String> = listing
        .packages
        .iter()
        .map(|p| format!("{} {}", p.name, p.full_version()))
        .collect();
    assert_eq!(ours, theirs.lines().collect::<Vec<_>>());
    for package in listing.packages.iter().filter(|p| !p.files.is_empty()) {
        like_pacman(copy.path(), package);
    }
    let gmp = listing.packages.iter().find(|p| p.name == "gmp").unwrap();
    assert!(gmp.files.iter().all(|f| f.facts.is_some()));
    let fuzzy = listing.packages.iter().find(|p| p.name == "fuzzy").unwrap();
    assert_eq!(
        digest(fuzzy.conffiles[0].digest.as_ref()),
        "79fce043df7dfc676ae5ecb903762d8b"
    );
}

/// Packages that this test makes, installed by pacman itself.
#[test]
fn alpm_that_pacman_wrote() {
    const NAME: &str = "apk_alpm::alpm_that_pacman_wrote";
    if !tools(NAME, &["pacman", "bsdtar"]) || !root(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let machine = folder.path().join("root");
    bash(
        "cd \"$1\"; mkdir -p root/var/lib/pacman
         make() { # name version extra-lines
             printf 'pkgname = %s\\npkgbase = %s-base\\npkgver = %s\\npkgdesc = about %s\\nurl = https://example.org/%s\\nbuilddate = 1700000000\\n' $1 $1 $2 $1 $1 >p/.PKGINFO
             printf 'packager = Some One <one@example.org>\\nsize = 4711\\narch = x86_64\\nlicense = MIT\\nlicense = GPL\\n%s' \"$3\" >>p/.PKGINFO
             (cd p; bsdtar -czf .MTREE --format=mtree --options='!all,use-set,type,uid,gid,mode,time,size,md5,sha256,link' .PKGINFO $(ls); bsdtar -cf ../$1.pkg.tar .PKGINFO .MTREE $(ls))
             rm -rf p
         }
         mkdir -p p/usr/bin p/etc 'p/usr/share/with blank'; echo one >p/usr/bin/one; chmod 4755 p/usr/bin/one; ln -s one p/usr/bin/uno; ln p/usr/bin/one p/usr/bin/hard
         echo conf >p/etc/one.conf; chmod 600 p/etc/one.conf; echo x >'p/usr/share/with blank/a b'; mkdir p/srv; chmod 1777 p/srv; printf 'y' >'p/usr/share/with blank/h#sh'
         make one 2:1.0-3 $'backup = etc/one.conf\\ndepend = two>=1\\noptdepend = three: for fun\\nprovides = uno=7\\nconflict = zero\\nreplaces = old\\ngroup = g\\n'
         mkdir -p p/usr/lib; echo lib >p/usr/lib/two.so; make two 1.5-1 ''
         mkdir -p p/usr/doc; echo doc >p/usr/doc/three; make three 1_a-1.1 ''
         printf '[options]\\nSigLevel = Never\\nLocalFileSigLevel = Never\\nArchitecture = x86_64\\n' >conf
         add() { pacman --root root --dbpath root/var/lib/pacman --config conf --logfile /dev/null --noconfirm --noscriptlet --noprogressbar -U \"$@\" >log 2>&1 || { cat log; exit 1; }; }
         add --asdeps two.pkg.tar; add one.pkg.tar three.pkg.tar
         echo changed >>root/usr/lib/two.so; echo changed >>root/etc/one.conf; chmod 700 root/usr/bin/one; rm root/usr/doc/three",
        &[folder.path()],
    );
    let source = Directory::open(&machine).unwrap();
    let listing = pkgdb::alpm::read(&source).unwrap();
    assert_eq!(listing.problems, []);
    let theirs = pacman(&machine, &["-Q"]);
    let ours: Vec<String> = listing
        .packages
        .iter()
        .map(|p| format!("{} {}", p.name, p.full_version()))
        .collect();
    assert_eq!(ours, theirs.lines().collect::<Vec<_>>());
    assert_eq!(ours, ["one 2:1.0-3", "three 1_a-1.1", "two 1.5-1"]);
    for package in &listing.packages {
        like_pacman(&machine, package);
        assert_eq!(
            package.source.as_ref().unwrap().name,
            format!("{}-base", package.name)
        );
        assert!(
            package.files.iter().all(|f| f.facts.is_some()),
            "{}",
            package.name
        );
    }
    // What pacman finds changed is what our facts tell.
    let mut ours = Vec::new();
    for file in listing.packages.iter().flat_map(|p| &p.files) {
        let facts = file.facts.as_deref().unwrap();
        let Some(node) = source.tree().get(&file.path) else {
            ours.push(format!("{} missing", file.path));
            continue;
        };
        if let Some(expected) = &facts.digest
            && pkgdb::digest_of(&source, node.id, expected).unwrap() != *expected
        {
            ours.push(format!("{} content", file.path));
        }
        let mode = facts.mode.unwrap() & 0o7777;
        if u32::from(node.mode) & 0o7777 != mode {
            ours.push(format!("{} mode", file.path));
        }
        if let Some(link) = &facts.link {
            let vm2k::tree::Kind::Symlink { target } = &node.kind else {
                panic!("{}", file.path)
            };
            assert_eq!(&**target, &**link);
        }
    }
    ours.sort();
    let expected = [
        "/etc/one.conf content",
        "/usr/bin/hard mode",
        "/usr/bin/one mode",
        "/usr/doc/three missing",
        "/usr/lib/two.so content",
    ];
    assert_eq!(ours, expected);
    let check = pacman(&machine, &["-Qkk"]);
    let changed: Vec<&str> = check
        .lines()
        .filter(|l| l.ends_with("altered files") || l.contains("altered file"))
        .collect();
    eprintln!("pacman -Qkk: {changed:?}");
    let altered = |name: &str| {
        changed
            .iter()
            .find(|l| l.starts_with(name))
            .and_then(|l| l.split(", ").nth(1))
            .map(str::to_owned)
            .unwrap_or_default()
    };
    // pacman counts configuration files apart.
    assert!(
        altered("two:").starts_with('1') && altered("three:").starts_with('1'),
        "{check}"
    );
    assert!(altered("one:").starts_with('2'), "{check}");
    let conf = pkgdb::changed_conffiles(&source, &listing.packages).unwrap();
    assert_eq!(
        conf.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["/etc/one.conf"]
    );
}

/// Reads 2,000 mutants of one kind (`VM2K_TEST_MUTANTS`).
fn mutants(kind: &str, files: &[(String, Vec<u8>)], read: fn(&dyn Source) -> vm2k::error::Result<Listing>) {
    // xorshift64*: the same mutants on every machine.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    };
    let count = std::env::var("VM2K_TEST_MUTANTS").map_or(2_000, |n| n.parse().unwrap());
    let (mut errors, mut problems, mut slowest) = (0, 0, Duration::ZERO);
    for mutant in 0..count {
        let chosen = random(files.len());
        let mut source = MemorySource::new("mutant");
        for (at, (path, content)) in files.iter().enumerate() {
            let mut bytes = content.clone();
            if at == chosen {
                for _ in 0..=random(8) {
                    let at = random(bytes.len());
                    if bytes.is_empty() {
                        break;
                    }
                    match random(7) {
                        0 => bytes[at] = random(256) as u8,
                        1 => bytes.truncate(at),
                        2 => drop(bytes.drain(at..(at + random(200)).min(bytes.len()))),
                        3 => bytes[at..].iter_mut().take(64).for_each(|b| *b = 0),
                        4 => bytes.insert(at, b"\n:-%/\0"[random(6)]),
                        5 => {
                            let piece = bytes[at..(at + 500).min(bytes.len())].to_vec();
                            let to = random(bytes.len());
                            bytes.splice(to..to, piece);
                        }
                        _ => bytes[at] ^= 1 << random(8),
                    }
                }
            }
            source = source.file(path, bytes);
        }
        let source = source.build();
        let start = Instant::now();
        match read(&source) {
            Ok(listing) => {
                assert!(!listing.packages.is_empty(), "mutant {mutant}: no packages, ok");
                problems += listing.problems.len();
                pkgdb::owners(source.tree(), &listing.packages);
            }
            Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => errors += 1,
            Err(e) => panic!("mutant {mutant}: {e}"),
        }
        slowest = slowest.max(start.elapsed());
    }
    eprintln!(
        "{kind}: {count} mutants: {errors} errors, {problems} problems named, the slowest took {slowest:?}"
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// All files of a machine's folder that lie below `places`.
fn files(folder: &Path, places: &[&str]) -> Vec<(String, Vec<u8>)> {
    let source = Directory::open(folder).unwrap();
    let paths = source
        .tree()
        .iter()
        .filter(|(_, node)| node.is_file())
        .map(|(path, _)| path.to_string());
    let below = paths.filter(|p| places.iter().any(|place| p.starts_with(place)));
    below
        .map(|p| (p.clone(), read_file(&source, &p, 1 << 20).unwrap().unwrap()))
        .collect()
}

#[test]
fn mutants_of_apk() {
    let Some(folder) = shared("apk_alpm::mutants_of_apk", "pkgdb/apk-2") else {
        return;
    };
    let mut files = files(&folder, &["/lib/apk/db"]);
    files.push((
        "/etc/apk/world".to_owned(),
        b"musl\nbusybox>1\nso:x@edge\n!no\n".to_vec(),
    ));
    files.push((
        "/etc/apk/repositories".to_owned(),
        b"@edge https://example.org/edge\n".to_vec(),
    ));
    mutants("apk", &files, pkgdb::apk::read);
}

#[test]
fn mutants_of_alpm() {
    let Some(folder) = shared("apk_alpm::mutants_of_alpm", "pkgdb/alpm") else {
        return;
    };
    mutants("alpm", &files(&folder, &["/var/lib/pacman"]), pkgdb::alpm::read);
}

/// The same of dpkg, whose files stand here because the reader is the same for all of its family.
#[test]
fn mutants_of_dpkg() {
    let status = "Package: one\nStatus: install ok installed\nPriority: optional\nInstalled-Size: 12\nArchitecture: amd64\n\
                  Source: src (1.0)\nVersion: 2:1.0-1\nDepends: two (>= 1~rc1) | three, four:any\nProvides: virtual (= 1)\n\
                  Conffiles:\n /etc/one.conf 0cc175b9c0f1b6a831c399e269772661\n /etc/gone 0cc175b9c0f1b6a831c399e269772661 obsolete\n\
                  Description: one\n more of it\n\nPackage: two\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
                  Package: three\nStatus: install ok installed\nMulti-Arch: same\nArchitecture: amd64\nVersion: 3\n";
    let files = [
        ("/var/lib/dpkg/status", status),
        (
            "/var/lib/dpkg/info/one.list",
            "/.\n/etc\n/etc/one.conf\n/usr/bin/one\n",
        ),
        (
            "/var/lib/dpkg/info/one.md5sums",
            "0cc175b9c0f1b6a831c399e269772661  usr/bin/one\n",
        ),
        ("/var/lib/dpkg/info/three:amd64.list", "/.\n/usr/lib/three\n"),
        (
            "/var/lib/dpkg/diversions",
            "/usr/bin/one\n/usr/bin/one.real\nthree\n",
        ),
        ("/var/lib/dpkg/statoverride", "root staff 2755 /usr/bin/one\n"),
        (
            "/var/lib/dpkg/alternatives/tool",
            "auto\n/usr/bin/tool\n\n/usr/bin/one\n10\n\n",
        ),
        (
            "/var/lib/apt/extended_states",
            "Package: three\nArchitecture: amd64\nAuto-Installed: 1\n",
        ),
        ("/etc/one.conf", "changed\n"),
    ];
    let files: Vec<(String, Vec<u8>)> = files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()))
        .collect();
    mutants("dpkg", &files, pkgdb::dpkg::read);
}
