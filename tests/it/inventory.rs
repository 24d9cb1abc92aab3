//! What a machine says of itself, against real inputs and against the distributions' own tools.

use crate::support::{bash, root, run, shared, tools};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use vm2k::distro::Distros;
use vm2k::inventory::{self, os::Os};
use vm2k::path::GuestPath;
use vm2k::pkgdb::{self, Package};
use vm2k::source::{Source, directory::Directory, memory::MemorySource};

/// Packaging families by the beginning of the name that the file's collector gave it. What is not listed is of a kind
/// that no container has and is only read.
const FAMILIES: &[(&str, &[&str])] = &[
    (
        "debian",
        &[
            "debian",
            "ubuntu",
            "lubuntu",
            "linuxmint",
            "raspbian",
            "kali",
            "parrot",
            "pop",
            "neon",
            "zorin",
            "devuan",
            "cumulus",
            "xbian",
            "gardenlinux",
            "bodhi",
            "endless",
            "gnoppix",
            "pika",
            "tails",
            "trisquel",
            "vanillaos",
        ],
    ),
    (
        "rhel",
        &[
            "alma",
            "amazon",
            "amzn",
            "centos",
            "clearos",
            "fedora",
            "discontinued__centos",
            "discontinued__virtuozzo",
            "oracle",
            "ol__",
            "redhat",
            "rhel",
            "rocky",
            "scientific",
            "xcp-ng",
            "XCP-ng",
            "xenenterprise",
            "openeuler",
            "nobara",
            "aurora",
            "bazzite",
            "bluefin",
            "ultramarine",
            "miraclelinux",
            "cbl-mariner",
            "photon",
        ],
    ),
    ("suse", &["opensuse", "sled", "sles", "suse"]),
    ("alpine", &["alpine", "postmarketos"]),
    (
        "arch",
        &[
            "antergos",
            "manjaro",
            "endeavouros",
            "cachyos",
            "artix",
            "blendos",
            "garuda",
            "hyperbola",
            "kaos",
            "discontinued__arcolinux",
        ],
    ),
    ("mageia", &["mageia", "openmandriva"]),
    ("gentoo", &["gentoo", "funtoo"]),
    ("slackware", &["slackware"]),
];

#[test]
fn os_release_files_of_a_hundred_distributions() {
    let Some(folder) = shared("inventory::os_release", "os-release") else {
        return;
    };
    let distros = Distros::load(None).unwrap();
    let (mut files, mut judged, mut wrong, mut unknown) = (0, 0, Vec::new(), Vec::new());
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        files += 1;
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let os = Os::from_os_release(&std::fs::read(&path).unwrap(), &distros);
        assert!(os.id.is_some() || os.name.is_some(), "{file} was not read");
        if os.family.is_none() {
            unknown.push(file.clone());
        }
        let name = file.split_once("__").unwrap().1;
        let expected = FAMILIES.iter().find(|(_, names)| {
            let longest = names.iter().filter(|n| name.starts_with(**n));
            longest.count() > 0
        });
        let Some((family, _)) = expected else { continue };
        judged += 1;
        if os.family.as_deref() != Some(*family) {
            wrong.push(format!("{file}: {:?}, not {family}", os.family));
        }
    }
    eprintln!("{files} files, {judged} judged, wrong: {wrong:?}, without a family: {unknown:?}");
    assert!(judged > 200, "only {judged} judged");
    assert!(wrong.len() * 100 <= judged * 2, "{wrong:#?}");
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn each_embedded_distribution_is_its_own_match() {
    let distros = Distros::load(None).unwrap();
    let mut families: BTreeMap<&str, usize> = BTreeMap::new();
    for distro in distros.iter() {
        *families.entry(&distro.family).or_default() += 1;
        let (found, own) = distros.lookup(&distro.id, &[]).unwrap();
        assert!(own && found.id == distro.id, "{}", distro.id);
        for release in &distro.releases {
            let mut text = format!("ID={}\n", distro.id);
            match (&release.version, &release.codename) {
                (Some(version), _) if version != "*" => text.push_str(&format!("VERSION_ID={version}\n")),
                (None, Some(codename)) => text.push_str(&format!("VERSION_CODENAME={codename}\n")),
                _ => {}
            }
            let os = Os::from_os_release(text.as_bytes(), &distros);
            assert_eq!(os.end_of_life, release.end_of_life);
            let base = distros.base_for(&os);
            // Without an image of its own it has a stated nearest one, or none.
            if release.image.is_none() {
                assert!(!base.exact, "{} {:?}", distro.id, release.version);
                continue;
            }
            assert_eq!(
                base.reference, release.image,
                "{} {:?}",
                distro.id, release.version
            );
            assert_eq!(base.exact, release.version.as_deref() != Some("*"));
        }
        for near in &distro.nearest {
            let other = distros
                .get(&near.id)
                .unwrap_or_else(|| panic!("{}: no {}", distro.id, near.id));
            if let Some(release) = &near.release {
                assert!(
                    other.release(Some(release), None).is_some(),
                    "{}: {release}",
                    distro.id
                );
            }
        }
    }
    assert!(families["debian"] > 10 && families["rhel"] > 10);
}

/// The file that the manual shows keeps to the schema.
#[test]
fn the_manual_s_example_is_a_distribution() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/distributions.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let example = manual
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("example.toml"), example).unwrap();
    let distros = Distros::load(Some(folder.path())).unwrap();
    let os = Os::from_os_release(b"ID=example-server\nVERSION_ID=4.2\n", &distros);
    assert_eq!(
        distros.base_for(&os).reference.as_deref(),
        Some("docker.io/library/example:4")
    );
    let os = Os::from_os_release(b"ID=example\nVERSION_ID=21.3\nID_LIKE=ubuntu\n", &distros);
    assert_eq!(
        distros.base_for(&os).reference.as_deref(),
        Some("docker.io/library/ubuntu:22.04")
    );
}

/// All knowledge of distributions is in `distros/`: their names stand in no string of the program.
#[test]
fn no_distribution_is_named_in_the_source() {
    const NAMES: &[&str] = &[
        "debian",
        "ubuntu",
        "fedora",
        "centos",
        "redhat",
        "red hat",
        "rhel",
        "suse",
        "alpine",
        "archlinux",
        "manjaro",
        "gentoo",
        "slackware",
        "mageia",
        "rocky",
        "almalinux",
        "amazon linux",
        "bookworm",
        "jammy",
    ];
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.ends_with("tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests stand at the end of a file, or in one of their own.
            let code = text.split("#[cfg(test)]").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap().to_lowercase();
                if NAMES.iter().any(|name| line.contains(name)) {
                    found.push(format!("{}:{}: {line}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// A machine's root made by mmdebstrap, kept between runs: `release`, with `packages`, then `script` with the folder as
/// `$1`. `None` if the test is skipped.
fn chroot(test: &str, release: &str, packages: &str, script: &str) -> Option<PathBuf> {
    if !tools(test, &["mmdebstrap", "dpkg-query", "chroot"]) || !root(test) {
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chroot-{release}"));
    if !folder.join("made").exists() {
        bash(
            "rm -rf \"$1\"; mmdebstrap -q --variant=minbase --include=\"$3\" --customize-hook=\"$4\" \"$2\" \"$1\"; touch \"$1/made\"",
            &[
                &folder,
                Path::new(release),
                Path::new(packages),
                Path::new(script),
            ],
        );
    }
    Some(folder)
}

/// The fields that dpkg-query is asked for, and ours in the same form.
const FIELDS: &str = "${db:Status-Status}\\t${Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\t${source:Version}\\t\
    ${Installed-Size}\\t${Section}\\t${Priority}\\t${Essential}${Protected}${Important}\\t${Maintainer}\\t${Depends}\\t${Pre-Depends}\\t${Recommends}\\t\
    ${Provides}\\t${Conflicts}\\t${Homepage}\\n";

fn row(p: &Package) -> String {
    let source = p.source.as_ref().unwrap();
    let size = p.size.map_or(String::new(), |s| (s / 1024).to_string());
    [
        "installed",
        &p.name,
        &p.full_version(),
        p.arch.as_deref().unwrap_or(""),
        &source.name,
        source.version.as_deref().unwrap_or(""),
        &size,
        p.section.as_deref().unwrap_or(""),
        p.priority.as_deref().unwrap_or(""),
        if p.essential { "yes" } else { "" },
        p.maintainer.as_deref().unwrap_or(""),
        &p.relations.depends.join(", "),
        &p.relations.pre_depends.join(", "),
        &p.relations.recommends.join(", "),
        &p.relations.provides.join(", "),
        &p.relations.conflicts.join(", "),
        p.homepage.as_deref().unwrap_or(""),
    ]
    .join("\t")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Compares everything that dpkg-query tells of the machine below `folder`; gives the packages.
fn same_as_dpkg_query(folder: &Path, source: &dyn Source) -> Vec<Package> {
    let admindir = folder.join("var/lib/dpkg");
    let query = || {
        let mut command = Command::new("dpkg-query");
        command.arg("--admindir").arg(&admindir).env("LC_ALL", "C.UTF-8");
        command
    };
    let listing = pkgdb::dpkg::read(source).unwrap();
    assert_eq!(listing.problems, []);
    let all = text(run(query().args(["-W", "-f", FIELDS])).stdout);
    // Essential and protected are one thing to us.
    let theirs: BTreeSet<String> = all
        .lines()
        .filter(|l| l.starts_with("installed\t"))
        .map(|l| {
            let mut fields: Vec<&str> = l.split('\t').collect();
            fields[9] = if fields[9].contains("yes") { "yes" } else { "" };
            fields.join("\t")
        })
        .collect();
    let ours: BTreeSet<String> = listing.packages.iter().map(row).collect();
    let differing: Vec<_> = theirs.symmetric_difference(&ours).take(6).collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!(theirs.len(), listing.packages.len());

    let mut files = 0;
    for chunk in listing.packages.chunks(200) {
        let names = chunk.iter().map(|p| match p.arch.as_deref() {
            Some("all") | None => p.name.clone(),
            Some(arch) => format!("{}:{arch}", p.name),
        });
        let lists = text(run(query().arg("-L").args(names)).stdout);
        for (package, list) in chunk.iter().zip(lists.split("\n\n")) {
            let theirs: Vec<&str> = list
                .lines()
                .filter(|l| l.starts_with('/'))
                .map(|l| if l == "/." { "/" } else { l })
                .collect();
            let ours: Vec<String> = package
                .files
                .iter()
                .map(|f| text(f.path.as_bytes().to_vec()))
                .collect();
            assert_eq!(ours, theirs, "{}", package.name);
            files += ours.len();
        }
    }
    eprintln!(
        "{}: {} packages, {files} listed paths equal",
        folder.display(),
        listing.packages.len()
    );
    listing.packages
}

#[test]
fn dpkg_of_this_machine() {
    if !tools("inventory::dpkg_of_this_machine", &["dpkg-query"]) {
        return;
    }
    let copy = tempfile::tempdir().unwrap();
    bash(
        "cd /; for f in var/lib/dpkg var/lib/apt/extended_states; do cp -a --parents $f \"$1\"; done",
        &[copy.path()],
    );
    let packages = same_as_dpkg_query(copy.path(), &Directory::open(copy.path()).unwrap());
    let manual = text(run(Command::new("apt-mark").arg("showmanual")).stdout);
    same_marks(&packages, &manual);
}

#[test]
fn alternatives_of_this_machine() {
    if !tools(
        "inventory::alternatives_of_this_machine",
        &["update-alternatives"],
    ) {
        return;
    }
    let copy = tempfile::tempdir().unwrap();
    bash(
        "cd /; cp -a --parents var/lib/dpkg/alternatives \"$1\"",
        &[copy.path()],
    );
    let source = Directory::open(copy.path()).unwrap();
    let mut problems = Vec::new();
    let ours = pkgdb::dpkg_state::alternatives(&source, &mut problems).unwrap();
    assert_eq!(problems, []);
    let all = text(run(Command::new("update-alternatives").arg("--get-selections")).stdout);
    assert_eq!(all.lines().count(), ours.len());
    for alternative in &ours {
        let query = run(Command::new("update-alternatives")
            .arg("--query")
            .arg(&alternative.name));
        let query = text(query.stdout);
        let values = |field: &str| -> Vec<String> {
            let lines = query
                .lines()
                .filter_map(|l| l.strip_prefix(field)?.strip_prefix(": "));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(
            values("Link"),
            [alternative.links[0].to_string()],
            "{}",
            alternative.name
        );
        assert_eq!(
            values("Status"),
            [if alternative.automatic { "auto" } else { "manual" }]
        );
        let mut choices: Vec<String> = alternative.choices.iter().map(|(p, _)| p.to_string()).collect();
        let mut theirs = values("Alternative");
        choices.sort();
        theirs.sort();
        assert_eq!(choices, theirs, "{}", alternative.name);
    }
    eprintln!("{} alternatives equal", ours.len());
}

fn same_marks(packages: &[Package], manual: &str) {
    let theirs: BTreeSet<String> = manual.lines().map(str::to_owned).collect();
    let native = packages.iter().find(|p| p.name == "dpkg").unwrap().arch.clone();
    let ours: BTreeSet<String> = packages
        .iter()
        .filter(|p| p.manual == Some(true))
        .map(|p| match &p.arch {
            arch if *arch == native || arch.as_deref() == Some("all") => p.name.clone(),
            arch => format!("{}:{}", p.name, arch.as_deref().unwrap()),
        })
        .collect();
    let differing: Vec<_> = theirs.symmetric_difference(&ours).collect();
    assert!(differing.is_empty(), "{differing:?}");
    eprintln!("{} of {} packages are manual", ours.len(), packages.len());
}

#[test]
fn machines_of_three_releases() {
    for (release, packages, version, merged) in [
        ("bullseye", "dash,nginx-light", "11", false),
        (
            "bookworm",
            "dash,nginx-light,openssh-server,systemd-sysv,cron,libc6-i386,vim-tiny,nano",
            "12",
            true,
        ),
        ("trixie", "dash,nginx-light", "13", true),
    ] {
        let script = "echo '# mine' >> \"$1/etc/bash.bashrc\"; rm -f \"$1/etc/issue\"; \
            chroot \"$1\" dpkg-divert --add --rename --divert /usr/bin/env.real /usr/bin/env; \
            chroot \"$1\" apt-mark auto nginx-light; chroot \"$1\" dpkg --purge nothing 2>/dev/null || true";
        let Some(folder) = chroot("inventory::machines_of_three_releases", release, packages, script) else {
            return;
        };
        let source = Directory::open(&folder).unwrap();
        let packages = same_as_dpkg_query(&folder, &source);
        let mut mark = Command::new("chroot");
        same_marks(
            &packages,
            &text(run(mark.arg(&folder).args(["apt-mark", "showmanual"])).stdout),
        );

        // Every listed path is owned where the kernel finds it.
        let owners = pkgdb::owners(source.tree(), &packages);
        let mut owned = 0;
        for (index, package) in packages.iter().enumerate() {
            let elsewhere: BTreeMap<_, _> = package.diverted.iter().cloned().collect();
            for listed in package.files.iter().map(|file| &file.path) {
                let path = elsewhere.get(listed).unwrap_or(listed);
                let host = folder.join(std::ffi::OsStr::from_bytes(path.relative()));
                if host.symlink_metadata().is_err() {
                    assert!(owners.missing.contains(&(index, listed.clone())), "{listed}");
                    continue;
                }
                let Some(parent) = host.parent().filter(|_| !path.is_root()) else {
                    continue;
                };
                let real = parent.canonicalize().unwrap();
                let real = real
                    .strip_prefix(&folder)
                    .unwrap()
                    .join(host.file_name().unwrap());
                let real = GuestPath::lenient(real.as_os_str().as_bytes()).unwrap();
                assert!(
                    owners.of(&real).contains(&index),
                    "{listed} of {} at {real}",
                    package.name
                );
                owned += 1;
            }
        }
        if merged {
            assert!(
                source
                    .tree()
                    .find("/bin/sh")
                    .unwrap()
                    .0
                    .to_string()
                    .starts_with("/usr/bin/")
            );
        }
        let env = GuestPath::new(b"/usr/bin/env.real").unwrap();
        assert_eq!(packages[owners.of(&env)[0]].name, "coreutils");

        // dpkg itself says which conffiles are changed.
        let mut verify = Command::new("dpkg");
        let verify = verify
            .arg("--root")
            .arg(&folder)
            .arg("--verify")
            .output()
            .unwrap();
        let theirs: BTreeSet<String> = text(verify.stdout)
            .lines()
            .filter(|l| l.contains(" c /"))
            .map(|l| l[l.find('/').unwrap()..].to_owned())
            .map(|l| l.trim_end_matches(" (deleted)").to_owned())
            .collect();
        let changed = pkgdb::changed_conffiles(&source, &packages).unwrap();
        let ours: BTreeSet<String> = changed.iter().map(ToString::to_string).collect();
        assert_eq!(ours, theirs);
        assert!(ours.contains("/etc/bash.bashrc"), "{ours:?}");

        let distros = Distros::load(None).unwrap();
        let taken = inventory::take(&source, &distros).unwrap();
        assert_eq!(taken.os.id.as_deref(), Some("debian"));
        assert_eq!(taken.os.version_id.as_deref(), Some(version));
        assert_eq!(
            taken.os.arch.unwrap().to_string(),
            std::env::consts::ARCH.replace("x86_64", "amd64")
        );
        assert_eq!(
            distros.base_for(&taken.os).reference,
            Some(format!("docker.io/library/debian:{version}"))
        );
        assert_eq!(taken.problems, []);
        if release == "bookworm" {
            let applications: Vec<_> = taken.applications().map(|s| s.name.as_str()).collect();
            assert_eq!(applications, ["nginx"]);
            assert_eq!(
                inventory::default_cmd(&taken),
                ["/usr/sbin/nginx", "-g", "daemon on; master_process on;"]
            );
            let rules: BTreeSet<&str> = taken.secrets.iter().map(|s| s.rule.as_str()).collect();
            assert!(
                rules.contains("ssh-host-key") && rules.contains("password-hash"),
                "{rules:?}"
            );
        }
        eprintln!(
            "{release}: {owned} paths owned, {} changed conffiles, notes {:?}",
            ours.len(),
            taken.notes
        );
        eprintln!("  secrets {:?}", taken.secrets);
        eprintln!("  fitness {:?}", taken.fitness);
        eprintln!("  data {:?}", taken.data);
    }
}

/// A machine with the dpkg database of the shared data.
fn with_status(status: &[u8]) -> MemorySource {
    MemorySource::new("mutant")
        .file("/var/lib/dpkg/status", status)
        .build()
}

#[test]
fn a_stanza_without_a_name_is_listed() {
    let Some(folder) = shared("inventory::a_stanza_without_a_name", "pkgdb/dpkg-distroful") else {
        return;
    };
    let listing = pkgdb::dpkg::read(&Directory::open(&folder).unwrap()).unwrap();
    assert_eq!(listing.packages.len(), 1);
    let package = &listing.packages[0];
    assert_eq!(
        (package.name.as_str(), package.full_version().as_str()),
        ("libpam-runtime", "1.1.8-3.6")
    );
    assert_eq!(package.source.as_ref().unwrap().name, "pam");
    assert_eq!(package.size, Some(1016 * 1024));
    assert_eq!(package.conffiles.len(), 2);
    assert!(
        listing.problems.iter().any(|p| p.what.contains("without a name")),
        "{:?}",
        listing.problems
    );
}

#[test]
fn mutated_status_files_never_panic_and_never_hide() {
    let stanza = |n: usize| {
        format!(
            "Package: package-{n}\nStatus: install ok installed\nPriority: optional\nSection: libs\nInstalled-Size: {}\n\
             Maintainer: Some One <one@example.org>\nArchitecture: amd64\nMulti-Arch: same\nSource: source-{} (1.{n})\n\
             Version: {}:1.{n}-{n}+b1\nReplaces: old-{n} (<< 1)\nProvides: virtual-{n} (= 1)\n\
             Depends: package-{} (>= 1.2), libc6 (>= 2.34) | libc, debconf\nConffiles:\n \
             /etc/package-{n}.conf 5f3d{n:028x}\n /etc/old 0123456789abcdef0123456789abcdef obsolete\n\
             Description: a package of {n}\n with a longer text\n .\n of several lines\nHomepage: https://example.org/{n}\n\n",
            n * 7,
            n / 2,
            n % 3,
            n / 2,
        )
    };
    let whole: Vec<u8> = (1..=90).map(stanza).collect::<String>().into_bytes();
    // Names of fields are of either case, and blanks may stand before the colon.
    let count = |bytes: &[u8]| {
        let lines = bytes.split(|b| *b == b'\n');
        lines
            .filter(|l| l.len() >= 7 && l[..7].eq_ignore_ascii_case(b"package"))
            .count()
    };
    // xorshift64*: the same mutants on every machine.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    };
    let (mut errors, mut problems) = (0, 0);
    let mutants = std::env::var("VM2K_TEST_MUTANTS").map_or(2_000, |n| n.parse().unwrap());
    for mutant in 0..mutants {
        let mut bytes = whole.clone();
        for _ in 0..=random(8) {
            let at = random(bytes.len());
            match random(7) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes.truncate(at + 1),
                2 => drop(bytes.drain(at..(at + random(200)).min(bytes.len()))),
                3 => bytes[at..].iter_mut().take(64).for_each(|b| *b = 0),
                4 => bytes.insert(at, b"\n:- \0"[random(5)]),
                5 => {
                    let piece = bytes[at..(at + 500).min(bytes.len())].to_vec();
                    let to = random(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => bytes[at] ^= 1 << random(8),
            }
        }
        match pkgdb::dpkg::read(&with_status(&bytes)) {
            Ok(listing) => {
                assert!(!listing.packages.is_empty(), "mutant {mutant}: no packages, ok");
                // Each lost stanza is a problem; lists are missing in all of them.
                let lost = listing
                    .problems
                    .iter()
                    .filter(|p| !p.what.starts_with("the file list"));
                problems += lost.count();
                assert!(listing.packages.len() <= count(&bytes), "mutant {mutant}");
            }
            Err(_) => errors += 1,
        }
    }
    eprintln!("{mutants} mutants: {errors} errors, {problems} problems named");
    for empty in [
        &b""[..],
        b"\n\n",
        b"\0\0\0\0",
        b"Package: a\nStatus: deinstall ok config-files\n",
    ] {
        assert!(pkgdb::dpkg::read(&with_status(empty)).is_err());
    }
}
