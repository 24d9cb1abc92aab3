//! Small databases made by hand, and a large one that is generated.

use super::*;
use crate::path::GuestPath;
use crate::pkgdb::{DATABASES, Database};
use proptest::prelude::*;

fn database(name: &str) -> &'static Database {
    DATABASES.iter().find(|d| d.name == name).unwrap()
}

/// A machine's packages from one line each: `name version field value; field value`. Fields: d(epends), p(re-depends),
/// r(ecommends), s(uggests), u (supplements), v (provides), a(rch), m(ulti-arch), f(ile), n (section), c (class): `manual`,
/// `auto`, `essential`. Values of a field are separated by `,`.
fn machine(database: &'static str, lines: &[&str]) -> Vec<Package> {
    let package = |line: &&str| {
        let mut words = line.splitn(3, ' ');
        let mut p = Package {
            name: words.next().unwrap().to_owned(),
            arch: Some("amd64".to_owned()),
            size: Some(1000),
            database,
            ..Package::default()
        };
        let version = words.next().unwrap_or("1");
        let (version, release) = match version.split_once('-') {
            Some((version, release)) => (version, Some(release.to_owned())),
            None => (version, None),
        };
        (p.version, p.release) = (version.to_owned(), release);
        for field in words.next().unwrap_or_default().split(';').map(str::trim) {
            let Some((key, value)) = field.split_once(' ') else {
                continue;
            };
            let list = || value.split(',').map(|v| v.trim().to_owned()).collect();
            match key {
                "d" => p.relations.depends = list(),
                "p" => p.relations.pre_depends = list(),
                "r" => p.relations.recommends = list(),
                "s" => p.relations.suggests = list(),
                "u" => p.relations.supplements = list(),
                "v" => p.relations.provides = list(),
                "a" => p.arch = Some(value.to_owned()),
                "m" => p.multi_arch = Some(value.to_owned()),
                "n" => p.section = Some(value.to_owned()),
                "f" => p.files.push(GuestPath::new(value.as_bytes()).unwrap().into()),
                "c" => match value {
                    "manual" => p.manual = Some(true),
                    "auto" => p.manual = Some(false),
                    "essential" => p.essential = true,
                    _ => panic!("{value}"),
                },
                _ => panic!("{key}"),
            }
        }
        p
    };
    lines.iter().map(package).collect()
}

fn label(package: &Package) -> String {
    let graph = Graph {
        native: Some("amd64".to_owned()),
        ..Graph::default()
    };
    graph.label(package)
}

fn at(packages: &[Package], name: &str) -> usize {
    packages.iter().position(|p| label(p) == name).unwrap()
}

fn names(packages: &[Package], indexes: impl IntoIterator<Item = usize>) -> String {
    let mut names: Vec<String> = indexes.into_iter().map(|i| label(&packages[i])).collect();
    names.sort();
    names.join(" ")
}

/// What the hard relations of `name` lead to; `?` behind those that are not certain.
fn needs(packages: &[Package], graph: &Graph, name: &str) -> String {
    let mut found: Vec<String> = graph
        .needs(at(packages, name))
        .filter(|(_, edge)| graph.clause(*edge).unwrap().kind.is_hard())
        .map(|(to, edge)| {
            let certain = graph.clause(edge).unwrap().certain;
            label(&packages[to]) + if certain { "" } else { "?" }
        })
        .collect();
    found.sort();
    found.dedup();
    found.join(" ")
}

fn unmet(graph: &Graph) -> Vec<&str> {
    graph.unmet.iter().map(|u| u.relation.as_str()).collect()
}

#[test]
fn relations_of_dpkg_find_their_packages() {
    let packages = machine(
        "dpkg",
        &[
            "a 1 d b (>= 1.5),missing | c,mta | d,gone (>= 1)",
            "b 1.5~rc1-1 v b (= 2)",
            "c 1",
            "d 1 v mta,versioned (= 3)",
            "e 1 d c | d,versioned (>= 2)",
            "f 1 d versioned (>= 4)",
            "g 1 d mta (>= 1)",
            "h 1 d h2 | h1,h1 | h2,self; v self",
            "h1 1",
            "h2 1",
            "broken 1 d a (>=,b",
        ],
    );
    let graph = Graph::build(&packages, database("dpkg"), &[]);
    // The second alternative, or a virtual package, is not what would be brought.
    assert_eq!(needs(&packages, &graph, "a"), "c? d?");
    assert_eq!(needs(&packages, &graph, "e"), "c? d?");
    assert_eq!(needs(&packages, &graph, "h"), "h1? h2?");
    assert_eq!(needs(&packages, &graph, "broken"), "b");
    assert_eq!(
        unmet(&graph),
        [
            "b (>= 1.5)",
            "gone (>= 1)",
            "versioned (>= 4)",
            "mta (>= 1)",
            "a (>="
        ]
    );
    assert!(graph.unmet[4].error.as_deref().unwrap().contains("not closed"));
    assert_eq!(names(&packages, graph.breaks([at(&packages, "d")])), "a e");
    assert_eq!(names(&packages, graph.breaks([at(&packages, "h1")])), "");
    assert_eq!(
        names(
            &packages,
            graph.breaks([at(&packages, "h1"), at(&packages, "h2")])
        ),
        "h"
    );
}

#[test]
fn architectures_of_dpkg() {
    let packages = machine(
        "dpkg",
        &[
            "dpkg 1",
            "lib 1 m same",
            "lib 1 a i386; m same",
            "tool 1 m foreign",
            "python 1 m allowed",
            "plain 1",
            "data 1 a all",
            "x 1 a i386; d lib,tool,python:any,data,plain",
            "y 1 a all; d lib,python,lib:i386",
            "z 1 a i386; d python,plain:any",
            "w 1 d data,plain:any",
        ],
    );
    let graph = Graph::build(&packages, database("dpkg"), &[]);
    assert_eq!(needs(&packages, &graph, "x:i386"), "lib:i386 python tool");
    assert_eq!(needs(&packages, &graph, "y"), "lib lib:i386 python");
    assert_eq!(needs(&packages, &graph, "w"), "data plain");
    // A package for all architectures is of the machine's own, and nothing is of the other one.
    assert_eq!(unmet(&graph), ["data", "plain", "python", "plain:any"]);
    assert_eq!(database("dpkg").arch_of(&packages), Some("amd64"));
}

#[test]
fn relations_of_rpm_find_their_packages() {
    let packages = machine(
        "rpm",
        &[
            "glibc 2.34-1 v glibc = 2.34-1,libc.so.6()(64bit),libc.so.6(GLIBC_2.4)(64bit)",
            "bash 5 v /bin/sh,bash = 5; d libc.so.6()(64bit); f /usr/bin/bash",
            "shadow 4 f /usr/sbin/useradd",
            "web 1 d /bin/sh,/sbin/useradd,/bin/bash,webserver,rpmlib(CompressedFileNames) <= 3.0.4-1,config(web) = 1; v config(web) = 1",
            "nginx 1 v webserver",
            "rich 1 d (nginx if web else gone),(gone if nothing),(nginx unless nothing else x),(no1 or no2 or nginx)",
            "both 1 d (cap(x) >= 1 with cap(x) < 2)",
            "one 1 v cap(x) = 1.5",
            "two 1 v cap(x) = 2.5",
            "not 1 d (cap(x) without cap(x) > 2)",
            "many 1 d ((one and two) or nginx),(none and nginx)",
            "range 1 d ranged > 3,ranged < 3; ",
            "ranger 1 v ranged >= 2",
            "unversioned 1 d webserver >= 7",
            "lang 1 u (glibc and web)",
        ],
    );
    let graph = Graph::build(&packages, database("rpm"), &[]);
    assert_eq!(needs(&packages, &graph, "bash"), "glibc");
    assert_eq!(needs(&packages, &graph, "web"), "bash? nginx? shadow?");
    assert_eq!(needs(&packages, &graph, "rich"), "nginx nginx?");
    assert_eq!(needs(&packages, &graph, "both"), "one");
    assert_eq!(needs(&packages, &graph, "not"), "one");
    assert_eq!(needs(&packages, &graph, "many"), "nginx one? two?");
    assert_eq!(needs(&packages, &graph, "range"), "ranger?");
    assert_eq!(needs(&packages, &graph, "unversioned"), "nginx?");
    assert_eq!(unmet(&graph), ["(none and nginx)"]);
    let wanted: Vec<usize> = graph.needed_by(at(&packages, "lang")).map(|(by, _)| by).collect();
    assert_eq!(names(&packages, wanted), "glibc web");
}

#[test]
fn relations_of_apk_and_alpm_find_their_packages() {
    let packages = machine(
        "apk",
        &[
            "musl 1.2.4-r2 v so:libc.musl-x86_64.so.1=1",
            "busybox 1.36-r5 d so:libc.musl-x86_64.so.1; v cmd:sh=1.36-r5; f /bin/busybox",
            "sh 1-r0 d busybox=1.36-r5; f /bin/sh; v /bin/sh",
            "app 1-r0 d /bin/sh,cmd:sh,!busybox-extras,musl~1.2,musl>1.3,virtual>1",
            "provider 1 v virtual",
        ],
    );
    let graph = Graph::build(&packages, database("apk"), &[]);
    assert_eq!(needs(&packages, &graph, "busybox"), "musl");
    assert_eq!(needs(&packages, &graph, "sh"), "busybox");
    assert_eq!(needs(&packages, &graph, "app"), "busybox? musl sh?");
    assert_eq!(unmet(&graph), ["musl>1.3", "virtual>1"]);

    let packages = machine(
        "alpm",
        &[
            "glibc 2.38-7 v libc.so=6-64",
            "pacman 6 d glibc>=2.38,glibc=2.38,libc.so=6-64,sh; s python: for scripts",
            "bash 5-1 v sh",
            "python 3-1",
            "late 1 d glibc>2.38",
        ],
    );
    let graph = Graph::build(&packages, database("alpm"), &[]);
    assert_eq!(needs(&packages, &graph, "pacman"), "bash? glibc");
    assert_eq!(unmet(&graph), ["glibc>2.38"]);
    assert_eq!(graph.needed_by(at(&packages, "python")).count(), 1);
}

fn report(packages: &[Package], graph: &Graph, facts: &Facts<'_>) -> (String, String, String) {
    let pruned = prune(graph, packages, facts);
    assert_eq!(pruned.lost(graph, facts), Vec::<usize>::new());
    let total = pruned.roots.len() + pruned.implied.len() + pruned.base.len() + pruned.apart.len();
    assert_eq!(total, packages.len());
    let mut roots: Vec<String> = pruned
        .roots
        .iter()
        .map(|r| {
            let why = match r.why {
                Why::Asked => "asked",
                Why::Top => "top",
                Why::Wanted { .. } => "wanted",
                Why::Choice { .. } => "choice",
            };
            format!("{}/{why}/{}", packages[r.package].name, r.brings)
        })
        .collect();
    roots.sort();
    let aside = pruned.apart.iter().map(|a| {
        let why = match &a.why {
            Aside::NotInContainers { glob } => glob.clone(),
            Aside::OnlyFor { package } => format!("for {}", packages[*package].name),
            Aside::Orphan => "orphan".to_owned(),
        };
        format!("{}: {why}", packages[a.package].name)
    });
    let aside: Vec<String> = aside.collect();
    (
        roots.join(" "),
        aside.join(", "),
        names(packages, pruned.base.iter().copied()),
    )
}

fn kernel_globs() -> Vec<(String, globset::GlobMatcher)> {
    ["linux-*", "grub"]
        .map(|g| (g.to_owned(), globset::Glob::new(g).unwrap().compile_matcher()))
        .to_vec()
}

#[test]
fn roots_are_what_has_to_be_asked_for() {
    let packages = machine(
        "dpkg",
        &[
            "dpkg 1 c essential; p libc",
            "libc 1 c auto",
            "nginx 1 c manual; d libc,nginx-common; r geoip",
            "nginx-common 1 c manual; d adduser | systemd-sysusers",
            "adduser 1 c auto",
            "geoip 1 c auto; d libgeo",
            "libgeo 1 c auto",
            "mailer 1 c manual; d exim | mta",
            "postfix 1 c auto; v mta; d ssl-cert",
            "ssl-cert 1 c auto",
            // A ring that nothing else needs.
            "ring-data 1 c auto; d ring",
            "ring 1 c auto; d ring-data; n utils",
            "ring-user 1 c auto; s ring",
            "wants-ring 1 c manual; r ring-user",
            // A kernel, what only it needs, and what another needs too.
            "linux-image 1 c manual; d initramfs,kmod; r firmware",
            "initramfs 1 c auto; d cpio",
            "cpio 1 c auto",
            "kmod 1 c auto",
            "firmware 1 c auto",
            "udev 1 c manual; d kmod",
            // One that matches and is needed by one that stays.
            "grub 1 c manual; d linux-base",
            "linux-base 1 c auto",
            "cloud 1 c manual; d linux-base",
            "left-over 1 c auto; d left-lib",
            "left-lib 1 c auto",
        ],
    );
    let graph = Graph::build(&packages, database("dpkg"), &[]);
    assert_eq!(unmet(&graph), Vec::<&str>::new());
    let base = system(&packages);
    let globs = kernel_globs();
    let facts = Facts {
        base: &base,
        not_in_containers: &globs,
    };
    let (roots, apart, in_base) = report(&packages, &graph, &facts);
    assert_eq!(
        roots,
        "cloud/asked/2 geoip/wanted/2 mailer/asked/1 nginx/asked/3 postfix/choice/2 ring-user/wanted/1 ring/wanted/2 \
         udev/asked/2 wants-ring/asked/1"
    );
    assert_eq!(
        apart,
        "linux-image: linux-*, initramfs: for linux-image, cpio: for initramfs, firmware: for linux-image, grub: grub, \
         left-over: orphan, left-lib: orphan"
    );
    assert_eq!(in_base, "dpkg libc");
    // A base that has more needs less asking.
    let more = [
        at(&packages, "dpkg"),
        at(&packages, "nginx"),
        at(&packages, "ring-data"),
    ];
    let (roots, _, in_base) = report(&packages, &graph, &Facts { base: &more, ..facts });
    assert!(!roots.contains("nginx") && !roots.contains(" ring/"), "{roots}");
    assert_eq!(in_base, "adduser dpkg libc nginx nginx-common ring ring-data");
    // A base that has another mailer is content with it.
    let elsewhere = machine("dpkg", &["exim 1 v nginx-common"]);
    let graph = Graph::build(&packages, database("dpkg"), &elsewhere);
    let (roots, _, _) = report(&packages, &graph, &facts);
    assert!(roots.contains("nginx-common/asked"), "{roots}");
}

#[test]
fn machines_that_do_not_know_who_asked() {
    // All marked, as an installer leaves them, and none marked.
    for class in ["c manual", ""] {
        let lines = [
            format!("top 1 {class}; d lib; r extra"),
            format!("lib 1 {class}; d libc"),
            format!("libc 1 {class}"),
            format!("extra 1 {class}"),
            format!("linux-image 1 {class}; d helper"),
            format!("helper 1 {class}"),
            format!("one 1 {class}; d ring-two"),
            format!("ring-two 1 {class}; d one"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let packages = machine("dpkg", &lines);
        let graph = Graph::build(&packages, database("dpkg"), &[]);
        let globs = kernel_globs();
        let facts = Facts {
            base: &[],
            not_in_containers: &globs,
        };
        let (roots, apart, _) = report(&packages, &graph, &facts);
        assert_eq!(roots, "extra/wanted/1 one/top/2 top/top/3");
        assert_eq!(apart, "linux-image: linux-*, helper: for linux-image");
    }
}

#[test]
fn the_proof_sees_what_pruning_forgot() {
    let packages = machine("dpkg", &["a 1 d b", "b 1 d c | d", "d 1", "e 1"]);
    let graph = Graph::build(&packages, database("dpkg"), &[]);
    assert_eq!(prove(&graph, [], [0], []), [2, 3]);
    assert_eq!(prove(&graph, [2], [0], [3]), Vec::<usize>::new());
    assert_eq!(prove(&graph, [], [], []), [0, 1, 2, 3]);
}

#[test]
fn paths_tell_how_a_package_came_in() {
    let packages = machine(
        "dpkg",
        &[
            "a 1 d b",
            "b 1 d c | x",
            "c 1",
            "d 1 d c",
            "e 1 r f",
            "f 1",
            "long-name 1",
        ],
    );
    let graph = Graph::build(&packages, database("dpkg"), &[]);
    let show = |from: &[usize], package| -> Vec<String> {
        let paths = why(&graph, from, package, 9);
        let step = |s: &Step| {
            let clause = graph.clause(s.edge).unwrap();
            format!(
                "{} {} {}",
                packages[s.from].name,
                clause.kind.verb(),
                clause.relation(&packages)
            )
        };
        paths
            .iter()
            .map(|p| p.iter().map(step).collect::<Vec<_>>().join(", "))
            .collect()
    };
    assert_eq!(show(&[0, 3], 2), ["d needs c", "a needs b, b needs c | x"]);
    assert_eq!(show(&[2], 2), [""]);
    assert_eq!(show(&[4], 5), ["e recommends f"]);
    assert_eq!(show(&[4], 2), Vec::<String>::new());
    assert_eq!(near_names(&packages, "longname"), ["long-name"]);
    assert_eq!(near_names(&packages, "zzzzzz"), Vec::<&str>::new());
}

/// `n` packages with about `edges` relations, the same ones for each seed.
fn generated(n: usize, edges: usize, seed: u64) -> Vec<Package> {
    let mut state = seed | 1;
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    };
    let mut packages: Vec<Package> = (0..n)
        .map(|i| Package {
            name: format!("package-{i}"),
            version: format!("{}.{}", i % 9, i % 7),
            database: "dpkg",
            size: Some(i as u64),
            manual: Some(random(9) == 0),
            ..Package::default()
        })
        .collect();
    for _ in 0..edges {
        let from = random(n);
        // Mostly downwards, as in a distribution, and at times back, so that there are rings.
        let to = match random(200) {
            0 => random(n),
            _ => random(from + 1),
        };
        let text = match random(12) {
            0 => format!("package-{} | package-{to}", random(n)),
            1 => format!("nothing | package-{to}"),
            _ => format!("package-{to} (>= 0)"),
        };
        let relations = &mut packages[from].relations;
        match random(10) {
            0 => relations.recommends.push(text),
            _ => relations.depends.push(text),
        }
    }
    packages
}

#[test]
fn sixty_thousand_packages() {
    let packages = generated(60_000, 400_000, 7);
    let start = std::time::Instant::now();
    let graph = Graph::build(&packages, database("dpkg"), &[]);
    let built = start.elapsed();
    let pruned = prune(&graph, &packages, &Facts::default());
    let lost = pruned.lost(&graph, &Facts::default());
    eprintln!(
        "{} packages, {} edges, {} roots: built in {built:?}, pruned and proved in {:?}",
        graph.len(),
        graph.edge_count(),
        pruned.roots.len(),
        start.elapsed() - built
    );
    assert_eq!(lost, Vec::<usize>::new());
    assert!(graph.edge_count() > 400_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nothing_is_ever_lost(n in 1usize..60, edges in 0usize..200, seed: u64, base in 0usize..8) {
        let packages = generated(n, edges, seed);
        let graph = Graph::build(&packages, database("dpkg"), &[]);
        let base: Vec<usize> = (0..base.min(n)).collect();
        let globs = vec![("*3*".to_owned(), globset::Glob::new("*3*").unwrap().compile_matcher())];
        let facts = Facts { base: &base, not_in_containers: &globs };
        let pruned = prune(&graph, &packages, &facts);
        prop_assert_eq!(pruned.lost(&graph, &facts), Vec::<usize>::new());
        // What stays can stay without what is set apart.
        let apart: Vec<usize> = pruned.apart.iter().map(|a| a.package).collect();
        for broken in graph.breaks(apart.iter().copied()) {
            prop_assert!(apart.contains(&broken), "{broken} needs what is set apart");
        }
        // No root is brought by the others.
        for root in &pruned.roots {
            let others = pruned.roots.iter().map(|r| r.package).filter(|p| *p != root.package);
            prop_assert!(!graph.closure(others.chain(base.iter().copied()))[root.package]);
        }
        let marks = pruned.marks(n);
        prop_assert_eq!(marks.iter().filter(|m| **m == Mark::Root).count(), pruned.roots.len());
    }
}
