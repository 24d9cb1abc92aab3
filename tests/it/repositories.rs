//! The ladder against repositories of pacman and urpmi: made by their tools where those are at hand, served on the loopback
//! interface, and judged by pacman and rpm. genhdlist2(1) is not at hand: the synthesis is written by the test as URPM
//! documents it, with rpm's own words for each package, and nobody judges its form.

use crate::disk::Random;
use crate::dockerfile::{choose, context, made};
use crate::mutants::{mutants, mutate};
use crate::support::{FileServer, bash, root, run, tools};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;
use vm2k::dockerfile::{Options, Report};
use vm2k::repository::{self, Catalogue, Client, Place, Repository, Served, pacman, urpmi};
use vm2k::store::Store;

/// Makes packages and the databases of three repositories, in three compressions, below `$1/www`; those of `$2` below
/// `$2/www` in other versions.
const PACMAN: &str = r#"
make() { # directory repository name version
    mkdir -p p/usr/share/$3 "$1/$2/os/x86_64"; echo "$4" > p/usr/share/$3/v
    printf 'pkgname = %s\npkgbase = %s\npkgver = %s\npkgdesc = about %s\nbuilddate = 1700000000\nsize = 4711\narch = x86_64\n' \
        $3 $3 $4 $3 > p/.PKGINFO
    (cd p; bsdtar -czf .MTREE --format=mtree .PKGINFO usr; bsdtar -cf "../$1/$2/os/x86_64/$3-$4-x86_64.pkg.tar" .PKGINFO .MTREE usr)
    rm -rf p
}
databases() { # directory repository:compression...
    for r in "${@:2}"; do
        (cd "$1/${r%:*}/os/x86_64"; repo-add -q ${r%:*}.db.tar.${r#*:} ./*.pkg.tar > /dev/null)
    done
}
cd "$1"
make www core one 2:1.0-3; make www core two 1.5-1; make www extra one 1.0-1; make www extra three 1_a-1.1; make www own four 4-1
databases www core:gz extra:zst own:xz
make day core one 2:1.0-2; make day core two 1.5-1; make day extra three 1_a-1.0
databases day core:zst extra:gz
"#;

const CONF: &str = "[options]\nHoldPkg = pacman\nArchitecture = auto\n\n[core]\nInclude = /etc/pacman.d/mirrorlist\n\n[extra]\n\
                    Include = /etc/pacman.d/mirrorlist\n\n[own]\nSigLevel = Never\nServer = https://own.example/$repo/os/$arch\n";
const MIRRORS: &str =
    "## Europe\n#Server = https://off.example/$repo/os/$arch\nServer = https://live.example/$repo/os/$arch\n";

fn client(dir: &Path, mirrors: &[(&str, String)]) -> Client {
    let store = Arc::new(Store::open(&dir.join("asked")).unwrap());
    let mirrors = mirrors.iter().map(|(from, to)| ((*from).to_owned(), to.clone()));
    Client::new(store, mirrors.collect()).unwrap()
}

/// `repository name version` of all that is served, sorted.
fn lines(catalogue: &Catalogue, names: &[&str]) -> BTreeSet<String> {
    let line =
        |(served, from): &(Served, usize)| format!("{} {} {}", names[*from], served.name, served.version);
    catalogue.served.values().flatten().map(line).collect()
}

#[test]
fn pacman_takes_what_its_databases_are_read_to_serve() {
    const NAME: &str = "repositories::pacman_takes_what_its_databases_are_read_to_serve";
    if !root(NAME) || !tools(NAME, &["pacman", "repo-add", "bsdtar", "zstd", "xz"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    bash(PACMAN, &[dir.path()]);
    let www = dir.path().join("www");
    let server = FileServer::start(&[("/live", &www)]);
    let names = ["core", "extra", "own"];
    let text: String = names
        .iter()
        .map(|n| format!("[{n}]\nServer = {}/live/$repo/os/$arch\n", server.address))
        .collect();
    let conf = dir.path().join("conf");
    std::fs::write(
        &conf,
        format!("[options]\nSigLevel = Never\nArchitecture = x86_64\n{text}"),
    )
    .unwrap();
    std::fs::create_dir(dir.path().join("db")).unwrap();
    let judge = |arguments: &[&str]| {
        let mut command = Command::new("pacman");
        command.args(["--logfile", "/dev/null", "--config"]).arg(&conf);
        command
            .arg("--dbpath")
            .arg(dir.path().join("db"))
            .arg("--root")
            .arg(dir.path());
        String::from_utf8(run(command.args(arguments)).stdout).unwrap()
    };
    judge(&["-Sy"]);
    // All that each database lists.
    let listed: BTreeSet<String> = judge(&["-Sl"]).lines().map(str::to_owned).collect();
    let mut ours = BTreeSet::new();
    for name in names {
        let bytes = std::fs::read(www.join(format!("{name}/os/x86_64/{name}.db"))).unwrap();
        pacman::database(&bytes, &mut |p| {
            ours.insert(format!("{name} {} {}", p.name, p.version));
            assert_eq!(p.arch, "x86_64");
        })
        .unwrap();
    }
    assert_eq!(ours, listed);
    assert_eq!(ours.len(), 5);
    // Which of them pacman would install.
    let all = ["one", "two", "three", "four"];
    let mut arguments = vec!["-Sp", "--print-format", "%r %n %v"];
    arguments.extend(all);
    let taken: BTreeSet<String> = judge(&arguments).lines().map(str::to_owned).collect();
    let repositories: Vec<Repository> = pacman::conf("conf", &text, &|_| Vec::new())
        .into_iter()
        .map(|(file, repository)| Repository {
            file,
            place: Place::Pacman(repository),
        })
        .collect();
    let asked = repository::ask(
        &client(dir.path(), &[]),
        &repositories,
        &HashSet::from(all),
        &["x86_64"],
    )
    .unwrap();
    assert_eq!(lines(&asked, &names), taken);
    assert!(
        asked.answers.iter().all(|a| a.failure.is_none()),
        "{:?}",
        asked.answers
    );
}

/// The report and the context of a machine of the family with these packages.
fn arch(
    dir: &Path,
    packages: &[(&str, &str, &str, bool)],
    mirrors: Vec<(String, String)>,
) -> anyhow::Result<Report> {
    let mut machine = made(
        "ID=arch\nPRETTY_NAME=\"Arch Linux\"\nBUILD_ID=rolling\n",
        "alpm",
        &[("/etc/pacman.conf", CONF), ("/etc/pacman.d/mirrorlist", MIRRORS)],
        packages,
    );
    for package in &mut machine.packages {
        package.installed_at = Some(1_717_113_600);
    }
    let options = Options {
        mirrors,
        from: Some("docker.io/library/archlinux".into()),
        ..Options::default()
    };
    context(dir, machine, options)
}

#[test]
fn a_machine_of_pacman_stands_on_one_state_of_the_repositories() {
    const NAME: &str = "repositories::a_machine_of_pacman_stands_on_one_state_of_the_repositories";
    if !tools(NAME, &["repo-add", "bsdtar", "zstd", "xz"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    bash(PACMAN, &[dir.path()]);
    let server = FileServer::start(&[
        ("/live", &dir.path().join("www")),
        ("/repos/2024/05/31", &dir.path().join("day")),
    ]);
    let mirrors = |own: &str| -> Vec<(String, String)> {
        [
            ("https://live.example", format!("{}/live", server.address)),
            ("https://own.example", format!("{}{own}", server.address)),
            ("https://archive.archlinux.org", server.address.clone()),
        ]
        .map(|(from, to)| (from.to_owned(), to))
        .to_vec()
    };
    let file = |path: &str| std::fs::read_to_string(dir.path().join("context").join(path)).unwrap();
    // The mirrors have what the machine has.
    let today = [
        ("one", "2:1.0-3", "x86_64", true),
        ("three", "1_a-1.1", "x86_64", true),
        ("four", "4-1", "x86_64", true),
    ];
    let report = arch(dir.path(), &today, mirrors("/live")).unwrap();
    let live = |names: &[&str]| -> BTreeMap<String, String> {
        let line = |n: &&str| ((*n).to_owned(), "Live true true".to_owned());
        names.iter().map(line).collect()
    };
    let chosen = |report: &Report| -> BTreeMap<String, String> {
        choose(report)
            .into_iter()
            .map(|(n, line)| (n.to_owned(), line))
            .collect()
    };
    assert_eq!(
        chosen(&report),
        live(&["one", "three", "four"]),
        "{:?}",
        report.repositories
    );
    let list = file("repositories/etc/pacman.d/mirrorlist");
    assert!(
        list.contains(&format!("Server = {}/live/$repo/os/$arch", server.address)),
        "{list}"
    );
    assert!(
        !server
            .asked
            .lock()
            .unwrap()
            .iter()
            .any(|p| p.starts_with("/repos"))
    );

    // One package is older than what they have: all comes from that day, but what only the machine's own repository has.
    let older = [
        ("one", "2:1.0-2", "x86_64", true),
        ("two", "1.5-1", "x86_64", true),
        ("three", "1_a-1.0", "x86_64", true),
        ("four", "4-1", "x86_64", true),
        ("five", "5-1", "x86_64", true),
    ];
    let report = arch(dir.path(), &older, mirrors("/live")).unwrap();
    let mut expected = live(&["four"]);
    for name in ["one", "two", "three"] {
        expected.insert(name.into(), "Archive true true".into());
    }
    expected.insert("five".into(), "Rest false false".into());
    assert_eq!(chosen(&report), expected, "{:?}", report.archives);
    let list = file("repositories/etc/pacman.d/mirrorlist");
    assert_eq!(
        list.trim(),
        format!("Server = {}/repos/2024/05/31/$repo/os/$arch", server.address)
    );
    assert!(file("repositories/etc/pacman.conf").contains("[own]"));

    // A repository that is silent would stop pacman.
    let report = arch(dir.path(), &today, mirrors("/nothing")).unwrap();
    assert_eq!(chosen(&report)["four"], "Rest false false");
    assert_eq!(chosen(&report)["one"], "Live true true");
    let conf = file("repositories/etc/pacman.conf");
    assert!(
        conf.contains("[core]") && conf.contains("[extra]") && !conf.contains("[own]"),
        "{conf}"
    );
    assert!(
        report.notes.iter().any(|n| n.contains("own")),
        "{:?}",
        report.notes
    );
}

/// Makes rpms in `$1/core` with rpm-md, and others in `$1/updates`, whose lines of a synthesis go to `$1/lines`.
const RPMS: &str = r#"
cd "$1"
rpms() { # directory name epoch version release
    printf 'Name: %s\nEpoch: %s\nVersion: %s\nRelease: %s\nSummary: s\nLicense: l\nGroup: Games/Strategy\nBuildArch: noarch\nRequires: x >= 1\n%%description\nd\n%%files\n' \
        "$2" "$3" "$4" "$5" > spec
    rpmbuild -bb --quiet --define "_topdir $PWD/build" --define "_rpmdir $PWD/$1" spec > log 2>&1 || { cat log; exit 1; }
}
rpms core perl-one 0 1.0 1.mga9; rpms core two 2 1.0~rc1 3.mga9
rpms updates perl-one 0 1.1 1.mga9; rpms updates three 0 3 1.1.mga9
createrepo_c --quiet core
# URPM writes requires, provides, the summary and the size of the file before the line that ends a package.
rpm -qp --qf '@provides@%{NAME}[== %{EPOCHNUM}:%{VERSION}-%{RELEASE}]\n@requires@x[>= 1]\n@summary@%{SUMMARY}\n@filesize@1000\n@info@%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}@%{EPOCHNUM}@%{SIZE}@%{GROUP}\n' \
    updates/noarch/*.rpm > lines 2> log
mkdir -p updates/media_info
for d in core updates; do
    rpm -qp --qf '%{NAME} %{EPOCHNUM}:%{VERSION}-%{RELEASE}\n' $d/noarch/*.rpm 2> log | sed 's/ 0:/ /' | sort > $d.expected
done
"#;

#[test]
fn media_of_urpmi_by_a_list_of_mirrors() {
    const NAME: &str = "repositories::media_of_urpmi_by_a_list_of_mirrors";
    if !tools(NAME, &["rpm", "rpmbuild", "createrepo_c", "xz", "zstd", "gzip"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    bash(RPMS, &[dir.path()]);
    let at = dir.path();
    let server = FileServer::start(&[
        ("/9/x86_64/media/core/release", &at.join("core")),
        ("/9/x86_64/media/core/updates", &at.join("updates")),
        ("/api", &at.join("api")),
    ]);
    std::fs::create_dir(at.join("api")).unwrap();
    let list = format!(
        "continent=EU,country=FR,type=distrib,version=9,arch=x86_64,url=rsync://m.example/9/x86_64\n\
         continent=EU,country=FR,type=distrib,version=9,arch=x86_64,url={0}/gone\n\
         continent=EU,country=FR,type=distrib,version=9,arch=x86_64,url={0}/9/x86_64\n",
        server.address
    );
    std::fs::write(at.join("api/mageia.9.x86_64.list"), list).unwrap();
    let synthesis = at.join("updates/media_info/synthesis.hdlist.cz");
    let expected = |name: &str| -> BTreeSet<String> {
        let text = std::fs::read_to_string(at.join(format!("{name}.expected"))).unwrap();
        text.lines().map(|l| format!("{name} {l}")).collect()
    };
    let config = "{\n}\n\nCore\\ Release {\n  key-ids: 80420f66\n  mirrorlist: $MIRRORLIST\n  with-dir: media/core/release\n}\n\n\
                  Core\\ Updates {\n  mirrorlist: $MIRRORLIST\n  update\n  with-dir: media/core/updates\n}\n";
    let variables = BTreeMap::from([(
        "MIRRORLIST".to_owned(),
        "http://mirrors.mageia.org/api/mageia.9.x86_64.list".to_owned(),
    )]);
    let repositories: Vec<Repository> = urpmi::media(config, &variables)
        .into_iter()
        .map(|medium| Repository {
            file: "/etc/urpmi/urpmi.cfg".into(),
            place: Place::Urpmi(medium),
        })
        .collect();
    let mirror = ("http://mirrors.mageia.org", server.address.clone());
    let client = client(at, std::slice::from_ref(&mirror));
    for packer in ["gzip -c", "xz -c", "zstd -qc"] {
        let script = format!("{packer} < \"$1/lines\" > \"$2\"");
        bash(&script, &[at, &synthesis]);
        let names = HashSet::from(["perl-one", "two", "three"]);
        let asked = repository::ask(&client, &repositories, &names, &["x86_64"]).unwrap();
        assert!(
            asked.answers.iter().all(|a| a.packages == Some(2)),
            "{packer}: {:?}",
            asked.answers
        );
        let all: BTreeSet<String> = &expected("core") | &expected("updates");
        assert_eq!(lines(&asked, &["core", "updates"]), all, "{packer}");
    }
    // The whole way: the address of the list is the distribution's.
    let machine = made(
        "ID=mageia\nVERSION_ID=9\nPRETTY_NAME=\"Mageia 9\"\n",
        "rpm",
        &[("/etc/urpmi/urpmi.cfg", config)],
        &[
            ("perl-one", "1.1-1.mga9", "noarch", true),
            ("two", "2:1.0~rc1-3.mga9", "noarch", true),
            ("three", "3-1.0.mga9", "noarch", true),
            ("native", "1-1", "x86_64", true),
        ],
    );
    let options = Options {
        mirrors: vec![(mirror.0.to_owned(), mirror.1)],
        from: Some("docker.io/library/mageia:9".into()),
        ..Options::default()
    };
    let report = context(at, machine, options).unwrap();
    let chosen = choose(&report);
    assert_eq!(chosen["perl-one"], "Live true true", "{:#?}", report.repositories);
    assert_eq!(chosen["two"], "Live true true");
    assert_eq!(chosen["three"], "Rest false false", "another version is served");
    assert_eq!(chosen["native"], "Rest false false");
}

/// Whatever these bytes are, reading ends, soon.
#[test]
fn hostile_lists() {
    let mut database = Vec::new();
    let mut builder = tar::Builder::new(&mut database);
    for n in 0..20 {
        let text = format!("%FILENAME%\np{n}.pkg\n\n%NAME%\np{n}\n\n%VERSION%\n1-{n}\n\n%ARCH%\nx86_64\n\n");
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, format!("p{n}-1-{n}/desc"), text.as_bytes())
            .unwrap();
    }
    builder.finish().unwrap();
    drop(builder);
    let zipped = crate::oci::make::gzip(&database);
    let synthesis =
        "@provides@a@b[== 1]\n@filesize@12\n@info@perl-x-1.2-3.mga9.x86_64@2@100@Games@mdv@2011\n".repeat(20);
    let config = format!(
        "{CONF}{MIRRORS}Core\\ Release {{\n mirrorlist: $MIRRORLIST ${{X\n with-dir: a/b\n}}\ntype=distrib,url=http://a\n"
    );
    let seeds: [&[u8]; 4] = [&database, &zipped, synthesis.as_bytes(), config.as_bytes()];
    let (mut read, mut taken) = (0, 0);
    for (which, seed) in seeds.iter().enumerate() {
        let anywhere = 0..seed.len();
        for n in 0..mutants() {
            let mut bytes = seed.to_vec();
            mutate(&mut bytes, n, std::slice::from_ref(&anywhere));
            if n % 10 == 9 {
                bytes.truncate(Random(n | 1).below(seed.len()));
            }
            let start = Instant::now();
            let mut take = |_: Served| taken += 1;
            match which {
                0 | 1 => read += u32::from(pacman::database(&bytes, &mut take).is_ok()),
                2 => read += u32::from(urpmi::packed(&bytes, &mut take).is_ok()),
                _ => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    let again = |name: &str| vec![(name.to_owned(), text.clone())];
                    for (_, repository) in pacman::conf("/etc/pacman.conf", &text, &again) {
                        assert!(!repository.servers.is_empty());
                        let cut = pacman::without(&text, &[repository.name]);
                        assert!(cut.len() < text.len());
                    }
                    let variables = BTreeMap::from([("MIRRORLIST".to_owned(), "http://l.list".to_owned())]);
                    read += u32::from(!urpmi::media(&text, &variables).is_empty());
                    assert!(urpmi::mirrors(&bytes).iter().all(|m| m.starts_with("http")));
                }
            }
            let took = start.elapsed();
            assert!(took.as_secs() < 5, "{which} {n}: {took:?}");
        }
    }
    println!(
        "hostile_lists: {} each of {}, {read} read, {taken} packages",
        mutants(),
        seeds.len()
    );
    assert!(read > 0 && taken > 0);
}
