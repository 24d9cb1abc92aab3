//! The dependency graph and the orders of versions, judged by the package managers themselves.
//!
//! Servers of three releases are made with mmdebstrap once (`VM2K_TEST_CACHE`, see tests/README.md).

use crate::support::{bash, root, run, tools, vm2k};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use vm2k::distro::Distros;
use vm2k::graph::{self, Aside, Facts, Graph, Pruned};
use vm2k::pkgdb::order::Order;
use vm2k::pkgdb::{self, DATABASES, Package};
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
    let mut version = |random: &mut dyn FnMut(usize) -> usize| {
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
    let pairs = pairs(
        count(500),
        &[".", "1", "9", "~", "+", "a", "b1", "rc", "~rc", "-", "0", "+dfsg"],
    );
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
        "%{{lua: for line in io.lines('{}') do local a, b = line:match('(%%S+) (%%S+)'); print(rpm.vercmp(a, b) .. '\\n') end}}",
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

/// A server's root with the lists of its repositories. `None` if the test is skipped.
fn server(test: &str, release: &str) -> Option<PathBuf> {
    if !tools(test, &["mmdebstrap", "chroot"]) || !root(test) {
        return None;
    }
    let cache =
        std::env::var_os("VM2K_TEST_CACHE").map_or_else(|| "/var/tmp/vm2k-machine".into(), PathBuf::from);
    let folder = cache.join("graph").join(release);
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

fn machine(folder: &Path) -> Machine {
    let source = Directory::open(folder).unwrap();
    let packages = pkgdb::dpkg::read(&source).unwrap().packages;
    let graph = Graph::build(&packages, &DATABASES[0], &[]);
    let distros = Distros::load(None).unwrap();
    let globs = graph::globs(&distros, distros.get("debian")).unwrap();
    let base = graph::system(&packages);
    let facts = Facts {
        base: &base,
        not_in_containers: &globs,
    };
    let pruned = graph::prune(&graph, &packages, &facts);
    assert_eq!(pruned.lost(&graph, &facts), Vec::<usize>::new());
    Machine {
        packages,
        graph,
        pruned,
    }
}

#[test]
fn roots_of_servers_bring_the_rest() {
    for release in ["bullseye", "bookworm", "trixie"] {
        let Some(folder) = server("graph::roots_of_servers_bring_the_rest", release) else {
            return;
        };
        let Machine {
            packages,
            graph,
            pruned,
        } = machine(&folder);
        assert!(
            (200..=600).contains(&packages.len()),
            "{release}: {} packages",
            packages.len()
        );
        assert!(graph.unmet.is_empty(), "{release}: {:?}", graph.unmet);
        assert!(
            pruned.roots.len() * 5 <= packages.len(),
            "{release}: {} roots of {}",
            pruned.roots.len(),
            packages.len()
        );

        // apt installs the roots on a system that has only the base.
        let base = names(&packages, pruned.base.iter().copied());
        let status = std::fs::read_to_string(folder.join("var/lib/dpkg/status")).unwrap();
        let kept: String = status
            .split_inclusive("\n\n")
            .filter(|stanza| {
                let name = stanza.lines().find_map(|l| l.strip_prefix("Package: "));
                name.is_some_and(|n| base.contains(n))
            })
            .collect();
        std::fs::write(folder.join("base.status"), kept).unwrap();
        let roots = names(&packages, pruned.roots.iter().map(|r| r.package));
        let mut arguments = vec![
            "-o",
            "Dir::State::status=/base.status",
            "--no-install-recommends",
            "install",
        ];
        arguments.extend(roots.iter().map(String::as_str));
        let (installed, _) = apt(&folder, "Inst", &arguments).expect("apt installs the roots");
        std::fs::remove_file(folder.join("base.status")).unwrap();
        let all = names(&packages, 0..packages.len());
        let apart = names(&packages, pruned.apart.iter().map(|a| a.package));
        let lost: Vec<&String> = all
            .iter()
            .filter(|n| !installed.contains(*n) && !base.contains(*n) && !apart.contains(*n))
            .collect();
        eprintln!(
            "{release}: {} packages, {} edges, {} roots {roots:?}, {} in the base, set apart {apart:?}, apt brings {} more than the machine has",
            packages.len(),
            graph.edge_count(),
            roots.len(),
            base.len(),
            installed.difference(&all).count(),
        );
        assert!(lost.is_empty(), "{release}: lost {lost:?}");
        assert!(
            apart.contains("initramfs-tools") && apart.contains("console-setup"),
            "{apart:?}"
        );
    }
}

#[test]
fn what_breaks_is_what_apt_removes() {
    for release in ["bullseye", "bookworm", "trixie"] {
        let Some(folder) = server("graph::what_breaks_is_what_apt_removes", release) else {
            return;
        };
        let Machine { packages, graph, .. } = machine(&folder);
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
