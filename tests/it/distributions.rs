//! The files of `distros/`, judged by sh(1), apt, python's configparser and Debian's own table of releases.

use crate::support::{bash, run, shared, tools};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use vm2k::distro::{Distro, Distros, MachineFacts, PackageTool, Release, Wanted, quoted};
use vm2k::error::Error;
use vm2k::inventory::os::Os;

/// Distributions whose tool a Dockerfile can use, with a full version of that family.
fn with_tools(distros: &Distros) -> Vec<(&Distro, Option<&Release>, Wanted<'static>)> {
    let mut found = Vec::new();
    for distro in distros.iter() {
        let database = distros.inherited(distro, |d| d.database.as_deref());
        let wanted = match database {
            Some("dpkg") => wanted(
                "nginx",
                "2:1.22.1-9+deb12u1~x",
                Some(2),
                "1.22.1",
                Some("9+deb12u1~x"),
                "amd64",
            ),
            Some("rpm") => wanted(
                "nginx",
                "1:1.20.1-14.el9_2.1",
                Some(1),
                "1.20.1",
                Some("14.el9_2.1"),
                "x86_64",
            ),
            Some("apk") => wanted("nginx", "1.24.0-r7", None, "1.24.0", Some("r7"), "x86_64"),
            Some("alpm") => wanted("nginx", "1.26.2-1", None, "1.26.2", Some("1"), "x86_64"),
            _ => continue,
        };
        if distros.tool(distro, None).install.is_none() {
            continue;
        }
        found.push((distro, None, wanted.clone()));
        found.extend(distro.releases.iter().map(|r| (distro, Some(r), wanted.clone())));
    }
    found
}

fn wanted(
    name: &'static str,
    version: &'static str,
    epoch: Option<u32>,
    upstream: &'static str,
    release: Option<&'static str>,
    arch: &'static str,
) -> Wanted<'static> {
    Wanted {
        name,
        version,
        epoch,
        upstream,
        release,
        arch: Some(arch),
        foreign: false,
    }
}

/// What the templates of repositories need of a machine with this package.
fn machine<'a>(release: Option<&'a Release>, wanted: &Wanted<'a>) -> MachineFacts<'a> {
    MachineFacts {
        version_id: release.and_then(|r| r.version.as_deref()),
        codename: None,
        arch: wanted.arch,
    }
}

fn tool<'a>(distros: &'a Distros, id: &str, version: &str) -> PackageTool<'a> {
    let distro = distros.get(id).unwrap();
    let release = distro.release(Some(version), None);
    assert!(release.is_some(), "{id} {version}");
    distros.tool(distro, release)
}

/// Programs that write their arguments, each followed by a NUL, to `$LOG`, in place of the package tools.
fn recorders(folder: &Path) {
    bash(
        "for tool in apt-get dnf yum zypper urpmi urpme urpmi.update apk pacman pacman-key tdnf rpm rm; do
             printf '#!/bin/sh\\n[ $# -eq 0 ] || printf \"%%s\\\\0\" \"$@\" >>\"$LOG\"\\n' >\"$1/$tool\"; chmod +x \"$1/$tool\"
         done",
        &[folder],
    );
}

/// Runs `script` with those programs only; gives the arguments that they saw.
fn arguments(folder: &Path, script: &str) -> Vec<String> {
    let log = folder.join("log");
    std::fs::write(&log, "").unwrap();
    run(Command::new("/bin/sh")
        .args(["-c", script])
        .env_clear()
        .env("PATH", folder)
        .env("LOG", &log)
        .current_dir(folder));
    let bytes = std::fs::read(&log).unwrap();
    let words = bytes
        .split(|b| *b == 0)
        .map(|w| String::from_utf8(w.to_vec()).unwrap());
    words.collect()
}

const NASTY: &[&str] = &[
    "$(touch hacked)",
    "`touch hacked`",
    "a;touch hacked",
    "a&&touch hacked",
    "a|b",
    "a b",
    "'",
    "\"",
    "\\",
    "a\nb",
    "*",
    "?",
    "[a-z]",
    "{a,b}",
    "~root",
    "a=~root",
    "$HOME",
    "!x",
    "#x",
    "<x",
    ">x",
    "(x)",
    "a^b",
    "",
    "\u{e9}",
];

#[test]
fn commands_are_safe_with_any_word() {
    if !tools("distributions::commands", &["sh", "bash"]) {
        return;
    }
    let distros = Distros::load(None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    recorders(folder.path());
    // Through both shells that images have, in the one place where quoting is done.
    for shell in ["sh", "bash"] {
        let words: Vec<String> = NASTY.iter().map(|w| quoted(w)).collect();
        let out = run(Command::new(shell).args(["-c", &format!("printf '%s\\0' {}", words.join(" "))]));
        let expected: Vec<u8> = NASTY
            .iter()
            .flat_map(|w| [w.as_bytes(), b"\0"].concat())
            .collect();
        assert_eq!(out.stdout, expected, "{shell}");
    }
    let quoted: Vec<String> = NASTY.iter().map(|w| quoted(w)).collect();
    let mut seen = BTreeMap::new();
    let mut count = 0;
    for (distro, release, package) in with_tools(&distros) {
        let tool = distros.tool(distro, release);
        // A name or version of no package is refused before it is quoted.
        for nasty in NASTY
            .iter()
            .copied()
            .chain(["-y", "--root=/", "a\0b", "../a", "a\n"])
        {
            let in_name = tool.word(&Wanted {
                name: nasty,
                ..package.clone()
            });
            assert!(
                matches!(in_name, Err(Error::Refused { .. })),
                "{} {nasty:?}: {in_name:?}",
                distro.id
            );
            assert!(tool.name(nasty).is_err(), "{} {nasty:?}", distro.id);
            let in_version = tool.word(&Wanted {
                version: nasty,
                ..package.clone()
            });
            assert!(
                matches!(in_version, Err(Error::Refused { .. })),
                "{} {nasty:?}: {in_version:?}",
                distro.id
            );
        }
        let word = tool.word(&package).unwrap();
        let commands = [
            tool.install(&quoted).unwrap(),
            tool.remove(&quoted).unwrap(),
            tool.install(std::slice::from_ref(&word)).unwrap(),
        ];
        // The same commands need not run a hundred times.
        if seen.insert(commands.clone(), distro.id.clone()).is_some() {
            continue;
        }
        count += 1;
        for command in &commands[..2] {
            let arguments = arguments(folder.path(), command);
            for nasty in NASTY {
                assert!(
                    arguments.iter().any(|a| a == nasty),
                    "{} {nasty:?}: {command}",
                    distro.id
                );
            }
        }
        let arguments_of_one = arguments(folder.path(), &commands[2]);
        assert!(arguments_of_one.contains(&word), "{}: {}", distro.id, commands[2]);
        for command in [tool.refresh, tool.clean].into_iter().flatten() {
            arguments(folder.path(), command);
        }
        assert!(!folder.path().join("hacked").exists());
    }
    eprintln!("{count} different sets of commands run");
    assert!(count >= 9, "{count}");
}

#[test]
fn every_release_renders() {
    let distros = Distros::load(None).unwrap();
    let (mut releases, mut archives, mut snapshots) = (0, 0, 0);
    let mut without = Vec::new();
    for (distro, release, package) in with_tools(&distros) {
        let tool = distros.tool(distro, release);
        let facts = machine(release, &package);
        let label = format!("{} {:?}", distro.id, release.and_then(|r| r.version.as_deref()));
        assert!(!tool.repository_files.is_empty(), "{label}");
        let (all, keys) = (tool.repository_globs().unwrap(), tool.key_globs().unwrap());
        assert!(!keys.is_empty() && all.len() > keys.len(), "{label}");
        tool.import_keys(&["/etc/pki/rpm-gpg/a b"]).unwrap();
        for text in [tool.install(&[]).unwrap(), tool.remove(&[]).unwrap()] {
            assert!(!text.contains("{{") && !text.contains('\n'), "{label}: {text}");
        }
        let Some(release) = release else { continue };
        releases += 1;
        let files = tool.archive(&facts).unwrap();
        assert_eq!(
            files.is_empty(),
            release.archive.is_none(),
            "{label}: an archive without a repository file"
        );
        let day = tool.snapshot("2024-02-29", &facts).unwrap();
        (archives, snapshots) = (
            archives + usize::from(!files.is_empty()),
            snapshots + usize::from(!day.is_empty()),
        );
        for (path, content) in files.iter().chain(&day) {
            assert!(
                path.starts_with('/') && content.ends_with('\n') && !content.contains("{{"),
                "{label}: {content}"
            );
            // What is written is what is removed first, but for settings of the tool.
            assert!(
                all.is_match(path) || path.contains("apt.conf.d"),
                "{label}: {path}"
            );
            assert!(!keys.is_match(path), "{label}: {path}");
        }
        for (_, content) in &day {
            assert!(
                content.contains("20240229") || content.contains("2024/02/29") || content.contains("Acquire"),
                "{content}"
            );
        }
        let today = "2026-11-01";
        let ends = [&release.end_of_life, &release.lts].into_iter().flatten();
        if ends.max().is_some_and(|end| end.as_str() < today) && files.is_empty() && day.is_empty() {
            without.push(label);
        }
    }
    eprintln!(
        "{releases} releases, {archives} with an archive, {snapshots} with snapshots; ended without either: {without:?}"
    );
    assert!(releases > 150 && archives > 80 && snapshots > 8);
}

#[test]
fn images_are_references_and_dates_make_sense() {
    let distros = Distros::load(None).unwrap();
    let mut images = 0;
    for distro in distros.iter() {
        let mut versions: Vec<Vec<u64>> = Vec::new();
        for release in &distro.releases {
            let label = format!("{} {:?}", distro.id, release.version);
            if let Some(image) = &release.image {
                images += 1;
                let reference = vm2k::oci::Reference::parse_base(image).unwrap();
                assert_eq!(
                    reference.registry_name().as_deref(),
                    Some(with_tag(image)).as_deref(),
                    "{label}"
                );
                assert!(
                    image.split('/').next().unwrap().contains('.'),
                    "{label}: {image} names no registry"
                );
            }
            let dates: Vec<&String> = [&release.end_of_life, &release.lts, &release.elts]
                .into_iter()
                .flatten()
                .collect();
            assert!(dates.is_sorted(), "{label}: {dates:?}");
            assert!(
                dates.iter().all(|d| ("2008-01-01".."2045").contains(&d.as_str())),
                "{label}: {dates:?}"
            );
            if let Some(archive) = &release.archive {
                assert!(
                    archive.starts_with("http://") || archive.starts_with("https://"),
                    "{label}: {archive}"
                );
            }
            let numbers = release.version.iter().flat_map(|v| v.split('.')).map(str::parse);
            versions.extend(
                numbers
                    .collect::<Result<Vec<u64>, _>>()
                    .ok()
                    .filter(|v| !v.is_empty()),
            );
        }
        let ends: Vec<_> = distro
            .releases
            .iter()
            .filter_map(|r| r.end_of_life.as_ref())
            .collect();
        assert!(
            versions.is_sorted() || ends.is_sorted(),
            "{}: the oldest release comes first: {versions:?}",
            distro.id
        );
        versions.dedup();
        let numbered = distro
            .releases
            .iter()
            .filter(|r| r.version.as_deref().is_some_and(|v| v != "*"));
        assert!(
            versions.len() == numbered.count(),
            "{}: a release twice",
            distro.id
        );
    }
    assert!(images > 150, "{images}");
}

/// A name without a tag means `latest`.
fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap();
    if name.contains(':') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

/// Debian's package distro-info-data knows the dates of Debian and Ubuntu.
#[test]
fn dates_are_those_of_distro_info() {
    if !tools("distributions::distro_info", &["debian-distro-info"]) {
        return;
    }
    let distros = Distros::load(None).unwrap();
    let mut compared = 0;
    for (id, file, columns) in [
        ("debian", "debian.csv", ["eol", "eol-lts", "eol-elts"]),
        ("ubuntu", "ubuntu.csv", ["eol-server", "eol-esm", "eol-legacy"]),
    ] {
        let text = std::fs::read_to_string(Path::new("/usr/share/distro-info").join(file)).unwrap();
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split(',').collect();
        for line in lines {
            let row: BTreeMap<&str, &str> = header.iter().copied().zip(line.split(',')).collect();
            let value = |column: &str| row.get(column).copied().filter(|v| !v.is_empty());
            let distro = distros.get(id).unwrap();
            let Some(release) = distro.codenamed(row["series"]) else {
                let too_old = row["created"]
                    < if id == "debian" {
                        "2011-02-06"
                    } else {
                        "2009-10-29"
                    };
                assert!(
                    too_old
                        || row["series"] == "experimental"
                        || value("release").is_none_or(|r| r > "2026-06"),
                    "{line}"
                );
                continue;
            };
            if release.version.is_none() || value("eol").is_none() {
                continue;
            }
            let first = value(columns[0]).or_else(|| value("eol"));
            assert_eq!(release.end_of_life.as_deref(), first, "{line}");
            assert_eq!(release.lts.as_deref(), value(columns[1]), "{line}");
            assert_eq!(release.elts.as_deref(), value(columns[2]), "{line}");
            compared += 1;
        }
    }
    assert!(compared > 35, "{compared}");
}

/// apt itself says which addresses the lines of an archive and of a snapshot lead to.
#[test]
fn apt_reads_the_lines() {
    if !tools("distributions::apt_reads_the_lines", &["apt-get"]) {
        return;
    }
    let distros = Distros::load(None).unwrap();
    let uris = |files: &[(String, String)]| {
        let folder = tempfile::tempdir().unwrap();
        bash(
            "mkdir -p \"$1\"/etc/apt/sources.list.d \"$1\"/etc/apt/apt.conf.d \"$1\"/var/lib/apt/lists/partial \"$1\"/var/cache/apt/archives/partial \"$1\"/var/lib/dpkg; touch \"$1\"/var/lib/dpkg/status",
            &[folder.path()],
        );
        for (path, content) in files {
            std::fs::write(folder.path().join(path.trim_start_matches('/')), content).unwrap();
        }
        let out = run(Command::new("apt-get")
            .args(["-o"])
            .arg(format!("Dir={}", folder.path().display()))
            .args([
                "-o",
                "Dir::State::status=var/lib/dpkg/status",
                "-o",
                "Debug::NoLocking=true",
                "-o",
                "APT::Sandbox::User=",
                "-o",
                "Acquire::Languages=none",
                "update",
                "--print-uris",
            ]));
        String::from_utf8(out.stdout).unwrap()
    };
    let facts = MachineFacts {
        arch: Some("amd64"),
        ..MachineFacts::default()
    };
    for (id, version, expected) in [
        (
            "debian",
            "7",
            vec![
                "http://archive.debian.org/debian/dists/wheezy/InRelease",
                "http://archive.debian.org/debian-security/dists/wheezy/updates/InRelease",
            ],
        ),
        (
            "debian",
            "10",
            vec![
                "http://archive.debian.org/debian/dists/buster/InRelease",
                "http://archive.debian.org/debian-security/dists/buster/updates/InRelease",
            ],
        ),
        (
            "ubuntu",
            "12.04",
            vec![
                "http://old-releases.ubuntu.com/ubuntu/dists/precise/InRelease",
                "http://old-releases.ubuntu.com/ubuntu/dists/precise-updates/InRelease",
                "http://old-releases.ubuntu.com/ubuntu/dists/precise-security/InRelease",
            ],
        ),
        (
            "ubuntu",
            "23.10",
            vec![
                "http://old-releases.ubuntu.com/ubuntu/dists/mantic/InRelease",
                "http://old-releases.ubuntu.com/ubuntu/dists/mantic-security/InRelease",
            ],
        ),
    ] {
        let text = uris(&tool(&distros, id, version).archive(&facts).unwrap());
        for uri in expected {
            assert!(text.contains(&format!("'{uri}'")), "{id} {version}: {text}");
        }
    }
    for (id, version, expected) in [
        (
            "debian",
            "12.5",
            [
                "http://snapshot.debian.org/archive/debian/20240229T235959Z/dists/bookworm/InRelease",
                "http://snapshot.debian.org/archive/debian-security/20240229T235959Z/dists/bookworm-security/InRelease",
            ],
        ),
        (
            "debian",
            "10",
            [
                "http://snapshot.debian.org/archive/debian/20240229T235959Z/dists/buster/InRelease",
                "http://snapshot.debian.org/archive/debian-security/20240229T235959Z/dists/buster/updates/InRelease",
            ],
        ),
        (
            "ubuntu",
            "22.04",
            [
                "http://snapshot.ubuntu.com/ubuntu/20240229T235959Z/dists/jammy/InRelease",
                "http://snapshot.ubuntu.com/ubuntu/20240229T235959Z/dists/jammy-security/InRelease",
            ],
        ),
    ] {
        let text = uris(
            &tool(&distros, id, version)
                .snapshot("2024-02-29", &facts)
                .unwrap(),
        );
        for uri in expected {
            assert!(text.contains(&format!("'{uri}'")), "{id} {version}: {text}");
        }
    }
    assert!(
        tool(&distros, "ubuntu", "16.10")
            .snapshot("2024-02-29", &facts)
            .unwrap()
            .is_empty()
    );
    assert!(matches!(
        tool(&distros, "debian", "12").snapshot("29.2.2024", &facts),
        Err(Error::Usage { .. })
    ));
}

/// Files for yum, dnf and zypper are what python's configparser reads, with one address a section.
#[test]
fn rpm_repositories_are_ini_files() {
    if !tools("distributions::rpm_repositories", &["python3"]) {
        return;
    }
    let distros = Distros::load(None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("archive.repo");
    let urls = |id: &str, version: &str, version_id: &str| -> Vec<String> {
        let facts = MachineFacts {
            version_id: Some(version_id),
            codename: None,
            arch: Some("x86_64"),
        };
        let files = tool(&distros, id, version).archive(&facts).unwrap();
        assert_eq!(files.len(), 1, "{id} {version}");
        std::fs::write(&file, &files[0].1).unwrap();
        let out = run(Command::new("python3").args(["-c", "import configparser,sys\nc=configparser.ConfigParser(interpolation=None)\nc.read(sys.argv[1])\nfor s in c.sections(): assert c[s]['name']; print(c[s]['baseurl'])"]).arg(&file));
        String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    };
    let has = |urls: Vec<String>, url: &str| assert!(urls.iter().any(|u| u == url), "{url}: {urls:#?}");
    has(
        urls("centos", "5", "5.4"),
        "http://vault.centos.org/5.4/os/$basearch/",
    );
    has(
        urls("centos", "5", "5.4"),
        "http://vault.centos.org/5.11/updates/$basearch/",
    );
    has(
        urls("centos", "7", "7.6.1810"),
        "http://vault.centos.org/7.6.1810/updates/$basearch/",
    );
    has(
        urls("centos", "7", "7"),
        "http://vault.centos.org/7.9.2009/extras/$basearch/",
    );
    has(
        urls("centos", "8", "8"),
        "http://vault.centos.org/8.5.2111/AppStream/$basearch/os/",
    );
    has(
        urls("centos-stream", "8", "8"),
        "http://vault.centos.org/8-stream/BaseOS/$basearch/os/",
    );
    has(
        urls("rocky", "9.3", "9.3"),
        "https://dl.rockylinux.org/vault/rocky/9.3/BaseOS/$basearch/os/",
    );
    has(
        urls("almalinux", "8.7", "8.7"),
        "https://vault.almalinux.org/8.7/PowerTools/$basearch/os/",
    );
    has(
        urls("fedora", "25", "25"),
        "https://archives.fedoraproject.org/pub/archive/fedora/linux/updates/25/$basearch/",
    );
    has(
        urls("fedora", "38", "38"),
        "https://archives.fedoraproject.org/pub/archive/fedora/linux/updates/38/Everything/$basearch/",
    );
    has(
        urls("opensuse-leap", "42.3", "42.3"),
        "http://ftp5.gwdg.de/pub/opensuse/discontinued/distribution/leap/42.3/repo/oss/",
    );
    // What a machine says of itself cannot leave its place.
    let facts = MachineFacts {
        version_id: Some("9.3/../..\nexclude=*"),
        ..MachineFacts::default()
    };
    assert!(matches!(
        tool(&distros, "rocky", "9").archive(&facts),
        Err(Error::Refused { .. })
    ));
}

#[test]
fn the_three_that_the_design_names() {
    let distros = Distros::load(None).unwrap();
    let os = |text: &str| Os::from_os_release(text.as_bytes(), &distros);
    let base = |text: &str| distros.base_for(&os(text)).reference.unwrap_or_default();
    // The manager's own words for one package.
    let word =
        |id: &str, version: &str, package: &Wanted<'_>| tool(&distros, id, version).word(package).unwrap();
    let rpm = wanted(
        "perl",
        "4:5.16.3-299.el7_9",
        Some(4),
        "5.16.3",
        Some("299.el7_9"),
        "x86_64",
    );
    assert_eq!(word("centos", "7", &rpm), "perl-4:5.16.3-299.el7_9.x86_64");
    let zero = Wanted {
        version: "0:5.16.3-299.el7_9",
        epoch: Some(0),
        ..rpm.clone()
    };
    assert_eq!(word("centos", "7", &zero), "perl-5.16.3-299.el7_9.x86_64");
    assert_eq!(word("mageia", "9", &rpm), "perl-5.16.3-299.el7_9.x86_64");
    let deb = wanted(
        "libc6",
        "2.35-0ubuntu3.8",
        None,
        "2.35",
        Some("0ubuntu3.8"),
        "i386",
    );
    assert_eq!(word("ubuntu", "22.04", &deb), "libc6=2.35-0ubuntu3.8");
    assert_eq!(
        word("ubuntu", "22.04", &Wanted { foreign: true, ..deb }),
        "libc6:i386=2.35-0ubuntu3.8"
    );
    // Ubuntu.
    let install = |id: &str, version: &str| tool(&distros, id, version).install(&["x".to_owned()]).unwrap();
    assert!(
        install("ubuntu", "12.04").contains(" --force-yes x")
            && install("ubuntu", "24.04").contains("--allow-downgrades x")
    );
    assert_eq!(
        base("ID=ubuntu\nVERSION_ID=10.10\n"),
        "docker.io/library/ubuntu:10.04"
    );
    assert_eq!(
        base("ID=ubuntu\nVERSION_ID=24.04\n"),
        "docker.io/library/ubuntu:24.04"
    );
    // CentOS, both.
    assert_eq!(
        base("ID=centos\nVERSION_ID=8\nNAME=\"CentOS Linux\"\n"),
        "docker.io/library/centos:8"
    );
    assert_eq!(
        base("ID=centos\nVERSION_ID=8\nNAME=\"CentOS Stream\"\n"),
        "quay.io/centos/centos:stream8"
    );
    assert_eq!(base("ID=centos\nVERSION_ID=9\n"), "quay.io/centos/centos:stream9");
    assert_eq!(base("ID=rhel\nVERSION_ID=6.10\n"), "docker.io/library/centos:6");
    assert!(
        install("centos", "6").starts_with("yum install")
            && install("centos", "8").starts_with("dnf install")
    );
    assert_eq!(
        tool(&distros, "centos", "7")
            .import_keys(&["/etc/pki/rpm-gpg/a b"])
            .unwrap()
            .unwrap(),
        "rpm --import '/etc/pki/rpm-gpg/a b'"
    );
    // Mageia.
    assert_eq!(base("ID=mageia\nVERSION_ID=4\n"), "docker.io/library/mageia:5");
    assert!(install("mageia", "9").starts_with("urpmi --auto"));
    let facts = MachineFacts {
        arch: Some("i586"),
        ..MachineFacts::default()
    };
    let files = tool(&distros, "mageia", "6").archive(&facts).unwrap();
    assert_eq!(files[0].0, "/etc/urpmi/urpmi.cfg");
    // urpmi.cfg(5): a blank in a name is escaped.
    let line = r"Core\ Updates https://distrib-coffee.ipsl.jussieu.fr/pub/linux/Mageia-archive/distrib/6/i586/media/core/updates {";
    assert!(files[0].1.lines().any(|l| l == line), "{}", files[0].1);
    assert_eq!(files[0].1.matches('{').count(), files[0].1.matches('}').count());
}

/// Each os-release of the shared data leads to one file; those of releases that we know, to their own image.
#[test]
fn every_os_release_finds_one_distribution() {
    let Some(folder) = shared("distributions::os_release", "os-release") else {
        return;
    };
    let distros = Distros::load(None).unwrap();
    let (mut own, mut based, mut tooled, mut all) = (0, 0, 0, 0);
    let mut without = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let os = Os::from_os_release(&std::fs::read(&path).unwrap(), &distros);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        all += 1;
        let id = os.id.as_deref().or(os.field("NAME")).unwrap();
        let (distro, is_own) = distros.lookup_named(id, os.field("NAME"), &os.id_like).unwrap();
        assert_eq!(os.distro.as_deref(), Some(distro.id.as_str()), "{name}");
        own += usize::from(is_own);
        let base = distros.base_for(&os);
        based += usize::from(base.reference.is_some());
        if let (Some(id), Some(release)) = (&base.distro, &base.release) {
            assert_eq!(release.image, base.reference, "{name}");
            // The tool is that of the image.
            let tool = distros.tool(distros.get(id).unwrap(), Some(release));
            tooled += usize::from(tool.install(&["x".to_owned()]).is_ok());
        } else {
            without.push(name);
        }
    }
    without.sort();
    eprintln!(
        "{all} files: {own} their own, {based} with an image, {tooled} with a tool; without an image: {without:?}"
    );
    assert!(own > 200 && based > 150 && tooled > 140, "{own} {based} {tooled}");
}
