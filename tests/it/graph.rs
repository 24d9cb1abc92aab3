//! The dependency graph and the orders of versions, judged by the package managers themselves.
//!
//! Servers of three releases, and systems with nothing asked for, are made with mmdebstrap once (`VM2K_TEST_CACHE`, see
//! tests/README.md). apt installs the roots of each for real, every time and with all three.

use crate::support::{bash, root, run, scratch, tools, vm2k};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use vm2k::distro::Distros;
use vm2k::graph::{self, Aside, Facts, Graph, Proved, Pruned, Under};
use vm2k::pkgdb::order::Order;
use vm2k::pkgdb::{self, Database, Package};
use vm2k::source::directory::Directory;

/// Random versions, the same ones on every machine; many are equal up to a point.
fn pairs(count: usize, parts: &[&str]) -> Vec<(String, String)> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    let version = |random: &mut dyn FnMut(usize) -> usize| {
        let mut text = ["", "", "", "0:", "1:", "12:"][random(6)].to_owned();
        text.push_str(["0", "1", "2", "10", "007"][random(5)]);
        for _ in 0..random(6) {
            text.push_str(parts[random(parts.len())]);
        }
        text.push_str(["", "-1", "-2", "-10", "-1.1", "-01"][random(6)]);
        text
    };
    let mut pairs = Vec::new();
    for _ in 0..count {
        let a = version(&mut random);
        let b = if random(3) == 0 {
            // A neighbour: one part more.
            format!("{a}{}", parts[random(parts.len())])
        } else {
            version(&mut random)
        };
        pairs.push((a, b));
    }
    pairs
}

/// `VM2K_TEST_MUTANTS` times a part; small enough for CI without it.
fn count(without: usize) -> usize {
    std::env::var("VM2K_TEST_MUTANTS").map_or(without, |n| n.parse().unwrap())
}

/// Compares our order of each pair with the judge's answers: one line each, negative, 0 or positive.
fn judged(order: Order, pairs: &[(String, String)], answers: &str) {
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), pairs.len());
    let mut wrong = Vec::new();
    for ((a, b), answer) in pairs.iter().zip(answers) {
        let theirs = answer.trim().parse::<i32>().unwrap().cmp(&0);
        let ours = order.compare(a, b);
        if ours != theirs {
            wrong.push(format!("{a} {ours:?} {b}, not {theirs:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}: {:#?}",
        wrong.len(),
        pairs.len(),
        &wrong[..wrong.len().min(9)]
    );
    eprintln!("{order:?}: {} pairs as the judge says", pairs.len());
}

fn lines(pairs: &[(String, String)]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text: String = pairs.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn versions_as_dpkg_says() {
    if !tools("graph::versions_as_dpkg_says", &["dpkg"]) {
        return;
    }
    let mut pairs = pairs(
        count(500),
        &[".", "1", "9", "~", "+", "a", "b1", "rc", "~rc", "-", "0", "+dfsg"],
    );
    // dpkg refuses an empty revision.
    pairs.retain(|(a, b)| !a.ends_with('-') && !b.ends_with('-'));
    let out = bash(
        "while read -r a b; do if dpkg --compare-versions $a lt $b; then echo -1; \
         elif dpkg --compare-versions $a eq $b; then echo 0; else echo 1; fi; done < \"$1\"",
        &[lines(&pairs).path()],
    );
    judged(Order::Dpkg, &pairs, &String::from_utf8(out.stdout).unwrap());
}

#[test]
fn versions_as_rpm_says() {
    if !tools("graph::versions_as_rpm_says", &["rpm"]) {
        return;
    }
    let pairs = pairs(
        count(5000),
        &[
            ".", "1", "9", "~", "^", "a", "b1", "rc", "~rc", "_", "0", "^git", "+", "..",
        ],
    );
    let file = lines(&pairs);
    let script = format!(
        "%{{lua: for line in io.lines('{}') do local a, b = line:match('([^ ]+) ([^ ]+)'); print(rpm.vercmp(a, b) .. '\\n') end}}",
        file.path().display()
    );
    let out = run(Command::new("rpm").arg("--eval").arg(script));
    let text = String::from_utf8(out.stdout).unwrap();
    let answers: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
    judged(Order::Rpm, &pairs, &answers.join("\n"));
}

#[test]
fn versions_as_pacman_says() {
    if !tools("graph::versions_as_pacman_says", &["vercmp"]) {
        return;
    }
    let pairs = pairs(
        count(500),
        &[".", "1", "9", "a", "b1", "rc", "_", "0", "+", "..", "beta"],
    );
    let out = bash(
        "while read -r a b; do vercmp $a $b; done < \"$1\"",
        &[lines(&pairs).path()],
    );
    judged(Order::Alpm, &pairs, &String::from_utf8(out.stdout).unwrap());
}

const SERVER: &str = "systemd-sysv,nginx,openssh-server,cron,rsyslog,postgresql-client,python3-flask,rsync,curl,git,vim,\
    redis-server,php-fpm,unattended-upgrades,initramfs-tools,console-setup,mailutils,postfix,procps";

/// Where the servers and what they are judged with are kept.
fn cache() -> PathBuf {
    let cache =
        std::env::var_os("VM2K_TEST_CACHE").map_or_else(|| "/var/tmp/vm2k-machine".into(), PathBuf::from);
    cache.join("graph")
}

/// A server's root with the lists of its repositories. `None` if the test is skipped.
fn server(test: &str, release: &str) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if !tools(test, &["mmdebstrap", "chroot"]) || !root(test) {
        return None;
    }
    let folder = cache().join(release);
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if !folder.exists() {
        // rsync is left over: nothing asked for it, nothing needs it.
        bash(
            "mkdir -p \"$(dirname \"$1\")\"; rm -rf \"$1.part\"; mmdebstrap -q --variant=minbase --skip=cleanup/apt --include=\"$3\" \
             --customize-hook='chroot \"$1\" apt-mark auto rsync; \
             rm -rf \"$1\"/usr/share/doc \"$1\"/usr/share/locale \"$1\"/usr/share/man \"$1\"/var/cache/apt/archives/*.deb' \
             \"$2\" \"$1.part\"; mv \"$1.part\" \"$1\"",
            &[&folder, Path::new(release), Path::new(SERVER)],
        );
    }
    Some(folder)
}

/// The same release with nothing asked for, unpacked: what stands for a base image.
fn base(release: &str) -> tempfile::TempDir {
    let tar = cache().join(format!("base-{release}.tar"));
    if !tar.exists() {
        bash(
            "mmdebstrap -q --variant=minbase --skip=cleanup/apt --format=tar \
             --customize-hook='rm -rf \"$1\"/usr/share/doc \"$1\"/usr/share/locale \"$1\"/usr/share/man \
             \"$1\"/var/cache/apt/archives/*.deb' \"$2\" \"$1.part\"; mv \"$1.part\" \"$1\"",
            &[&tar, Path::new(release)],
        );
    }
    let root = scratch(2 << 30);
    run(Command::new("tar")
        .arg("-xpf")
        .arg(&tar)
        .arg("-C")
        .arg(root.path()));
    root
}

/// Name and version of each installed package, as dpkg lists them.
fn installed(root: &Path) -> BTreeMap<String, String> {
    let out = run(Command::new("chroot").arg(root).args([
        "dpkg-query",
        "-W",
        "-f",
        "${db:Status-Status} ${Package} ${Version}\n",
    ]));
    let text = String::from_utf8(out.stdout).unwrap();
    let lines = text.lines().filter_map(|l| l.strip_prefix("installed "));
    lines
        .map(|l| {
            let (name, version) = l.split_once(' ').unwrap();
            (name.to_owned(), version.to_owned())
        })
        .collect()
}

/// Asks apt in `root` for `roots` and nothing else, in the machine's versions where the mirror serves them, and gives what is
/// served of the machine. What a Dockerfile pins in its command is pinned here in a file of preferences. Nothing is
/// started, and what is fetched is kept for the next time.
fn install(
    root: &Path,
    release: &str,
    roots: &BTreeSet<String>,
    machine: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let pins: String = machine
        .iter()
        .map(|(name, version)| format!("Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"))
        .collect();
    std::fs::write(root.join("etc/apt/preferences.d/machine"), pins).unwrap();
    let archives = cache().join(format!("archives-{release}"));
    // apt takes a file of the cache only if its digest is right.
    bash(
        "mkdir -p \"$2\"; printf '#!/bin/sh\\nexit 101\\n' > \"$1/usr/sbin/policy-rc.d\"; chmod 755 \"$1/usr/sbin/policy-rc.d\"; \
         cp /etc/resolv.conf \"$1/etc/resolv.conf\"; \
         find \"$2\" -name '*.deb' -exec cp -t \"$1/var/cache/apt/archives\" {} +; chroot \"$1\" apt-get -q update",
        &[root, &archives],
    );
    let mut served = BTreeMap::new();
    let names: Vec<&str> = machine.keys().map(String::as_str).collect();
    let out = run(Command::new("chroot")
        .arg(root)
        .args(["apt-cache", "madison"])
        .args(names));
    for line in String::from_utf8(out.stdout).unwrap().lines() {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        if machine.get(fields[0]).is_some_and(|v| v == fields[1]) {
            served.insert(fields[0].to_owned(), fields[1].to_owned());
        }
    }
    let words = roots.iter().map(|name| match served.get(name) {
        Some(version) => format!("{name}={version}"),
        None => name.clone(),
    });
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child"])
        .arg(format!("--mount-proc={}", root.join("proc").display()))
        .arg("chroot")
        .arg(root)
        .args([
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "LC_ALL=C",
            "apt-get",
            "-q",
        ])
        .args(["-o", "DPkg::Options::=--force-unsafe-io"])
        .args(["install", "-y", "--no-install-recommends", "--allow-downgrades"])
        .args(words);
    run(&mut command);
    bash(
        "find \"$1/var/cache/apt/archives\" -maxdepth 1 -name '*.deb' -exec cp -n -t \"$2\" {} +",
        &[root, &archives],
    );
    served
}

/// What apt would do in the machine: the names behind `verb` in its simulation. `None` if it refuses.
fn apt(folder: &Path, verb: &str, arguments: &[&str]) -> Option<(BTreeSet<String>, String)> {
    let out = Command::new("chroot")
        .arg(folder)
        .args(["apt-get", "-s", "-q", "-o", "APT::Get::Allow-Downgrades=1"])
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    if !out.status.success() {
        eprintln!("{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        return None;
    }
    let names = text.lines().filter_map(|l| {
        let name = l.strip_prefix(verb)?.strip_prefix(' ')?;
        name.split(' ').next().map(str::to_owned)
    });
    Some((names.collect(), text))
}

fn names(packages: &[Package], indexes: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    indexes.into_iter().map(|i| packages[i].name.clone()).collect()
}

struct Machine {
    packages: Vec<Package>,
    graph: Graph,
    pruned: Pruned,
}

fn packages(folder: &Path) -> Vec<Package> {
    let source = Directory::open(folder).unwrap();
    pkgdb::dpkg::read(&source).unwrap().packages
}

fn machine(folder: &Path, under: Under<'_>) -> Machine {
    let packages = packages(folder);
    let distros = Distros::load(None).unwrap();
    let dpkg = Database::named("dpkg").unwrap();
    let Proved { graph, pruned } =
        graph::find(&packages, dpkg, under, &distros, distros.get("debian")).unwrap();
    Machine {
        packages,
        graph,
        pruned,
    }
}

/// apt installs the roots of a server into a system that has nothing else: all that is not set apart comes with them.
fn roots_bring_the_rest(test: &str, release: &str) {
    if !tools(test, &["unshare", "tar"]) {
        return;
    }
    let Some(folder) = server(test, release) else {
        return;
    };
    let root = base(release);
    let base = packages(root.path());
    let Machine {
        packages,
        graph,
        pruned,
    } = machine(&folder, Under::Base(&base));
    let machine = installed(&folder);
    assert_eq!(
        machine.keys().cloned().collect::<BTreeSet<_>>(),
        names(&packages, 0..packages.len())
    );
    assert!((200..=600).contains(&machine.len()), "{} packages", machine.len());
    assert!(graph.unmet.is_empty(), "{:?}", graph.unmet);
    assert!(
        pruned.roots.len() * 5 <= packages.len(),
        "{} roots of {}",
        pruned.roots.len(),
        packages.len()
    );
    let roots = names(&packages, pruned.roots.iter().map(|r| r.package));
    let apart = names(&packages, pruned.apart.iter().map(|a| a.package));
    let served = install(root.path(), release, &roots, &machine);
    let brought = installed(root.path());
    let lost: Vec<&String> = machine
        .keys()
        .filter(|n| !brought.contains_key(*n) && !apart.contains(*n))
        .collect();
    eprintln!(
        "{release}: {} packages, {} edges, {} roots {roots:?}, {} in the base, set apart {apart:?}; apt installed {}, which \
         are {} more than the machine has; {} of the machine's versions are served",
        machine.len(),
        graph.edge_count(),
        roots.len(),
        base.len(),
        brought.len() - base.len(),
        brought.keys().filter(|n| !machine.contains_key(*n)).count(),
        served.len(),
    );
    assert!(lost.is_empty(), "lost {lost:?}");
    let other: Vec<_> = brought
        .iter()
        .filter(|(name, version)| served.get(*name).is_some_and(|v| v != *version))
        .collect();
    assert!(
        other.is_empty(),
        "in another version than the machine's: {other:?}"
    );
    assert!(
        apart.contains("initramfs-tools") && apart.contains("console-setup"),
        "{apart:?}"
    );
}

#[test]
fn roots_of_a_server_of_debian_11_bring_the_rest() {
    roots_bring_the_rest("graph::roots_of_a_server_of_debian_11_bring_the_rest", "bullseye");
}

#[test]
fn roots_of_a_server_of_debian_12_bring_the_rest() {
    roots_bring_the_rest("graph::roots_of_a_server_of_debian_12_bring_the_rest", "bookworm");
}

#[test]
fn roots_of_a_server_of_debian_13_bring_the_rest() {
    roots_bring_the_rest("graph::roots_of_a_server_of_debian_13_bring_the_rest", "trixie");
}

#[test]
fn what_breaks_is_what_apt_removes() {
    for release in ["bullseye", "bookworm", "trixie"] {
        let Some(folder) = server("graph::what_breaks_is_what_apt_removes", release) else {
            return;
        };
        let Machine { packages, graph, .. } = machine(&folder, Under::System);
        // What apt calls left over. It follows the same relations.
        let (theirs, _) = apt(&folder, "Remv", &["autoremove"]).unwrap();
        let none = graph::prune(&graph, &packages, &Facts::default());
        let orphans = none
            .apart
            .iter()
            .filter(|a| a.why == Aside::Orphan)
            .map(|a| a.package);
        assert_eq!(names(&packages, orphans), theirs, "{release}");
        assert!(theirs.contains("rsync"));

        let mut judged = 0;
        let step = (packages.len() * 20 / count(200).max(20)).max(1);
        for (index, package) in packages.iter().enumerate().skip(3).step_by(step) {
            let breaks = graph.breaks([index]);
            if package.essential
                || package.name == "apt"
                || breaks
                    .iter()
                    .any(|p| packages[*p].essential || packages[*p].name == "apt")
            {
                continue;
            }
            let Some((theirs, text)) = apt(
                &folder,
                "Remv",
                &["--no-install-recommends", "remove", &package.name],
            ) else {
                continue;
            };
            // Where apt installs something in its place, less breaks.
            if text.lines().any(|l| l.starts_with("Inst ")) {
                continue;
            }
            let mut ours = names(&packages, breaks);
            ours.insert(package.name.clone());
            assert_eq!(ours, theirs, "{release}: {}", package.name);
            judged += 1;
        }
        eprintln!("{release}: {judged} packages break what apt removes with them");
        assert!(judged > 5, "{judged}");
    }
}

/// What is set apart is what apt takes away with what no container needs.
#[test]
fn what_is_set_apart_is_what_apt_takes_along() {
    for release in ["bullseye", "bookworm", "trixie"] {
        let Some(folder) = server("graph::what_is_set_apart_is_what_apt_takes_along", release) else {
            return;
        };
        let Machine { packages, pruned, .. } = machine(&folder, Under::System);
        let unwanted = pruned
            .apart
            .iter()
            .filter(|a| matches!(a.why, Aside::NotInContainers { .. }))
            .map(|a| a.package);
        let unwanted = names(&packages, unwanted);
        let mut arguments = vec!["--auto-remove", "remove"];
        arguments.extend(unwanted.iter().map(String::as_str));
        let (theirs, _) = apt(&folder, "Remv", &arguments).unwrap();
        let ours = names(&packages, pruned.apart.iter().map(|a| a.package));
        assert_eq!(ours, theirs, "{release}");
        assert!(
            ours.len() > unwanted.len() && !ours.contains("libkmod2"),
            "{release}: {ours:?}"
        );
    }
}

#[test]
fn scan_tells_roots_paths_and_pictures() {
    let Some(folder) = server("graph::scan_tells_roots_paths_and_pictures", "bookworm") else {
        return;
    };
    let target = format!("dir:{}", folder.display());
    let scan = |arguments: &[&str]| {
        let out = vm2k().arg("scan").arg(&target).args(arguments).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    };
    let (code, roots, err) = scan(&["--roots"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        roots.contains("nginx") && roots.contains("set apart, no container needs: "),
        "{roots}"
    );
    assert!(
        roots.contains("orphans, which nothing needs any more: ") && roots.contains("rsync"),
        "{roots}"
    );
    let (_, why, _) = scan(&["--why", "libpq5"]);
    assert!(why.contains("needs libpq5: libpq5"), "{why}");
    let (code, _, err) = scan(&["--why", "ngnix"]);
    assert_eq!(code, 2);
    assert!(err.contains("hint: did you mean nginx"), "{err}");
    let (code, _, err) = scan(&["--roots", "--graph", "x.png"]);
    assert!(code == 2 && err.contains(".svg"), "{err}");
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("graph.svg");
    let (code, json, err) = scan(&["--json", "--graph", picture.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let listed: Vec<&str> = json["roots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r.as_str().unwrap())
        .collect();
    assert!(
        listed.contains(&"nginx") && !listed.contains(&"libc6"),
        "{listed:?}"
    );
    let svg = std::fs::read_to_string(picture).unwrap();
    let packages = json["packages"].as_array().unwrap().len();
    assert_eq!(svg.matches("<circle ").count(), packages);
}

/// An order that is no order would show here: what is less one way is greater the other.
#[test]
fn orders_turn_around() {
    for (a, b) in pairs(2000, &[".", "1", "~", "^", "a", "_p", "_rc", "-r1", "0"]) {
        for order in [Order::Dpkg, Order::Rpm, Order::Apk, Order::Alpm] {
            let one: Ordering = order.compare(&a, &b);
            assert_eq!(one, order.compare(&b, &a).reverse(), "{order:?}: {a} {b}");
        }
    }
}
