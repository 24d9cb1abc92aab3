//! A server of the rpm family (`tests/rpm-machine.sh`), judged by rpm and dnf.

use super::strategy::{self, Buildah, Docker};
use super::{Work, cache, ended, json, repository};
use crate::support::{FileServer, root, run, tools};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use vm2k::inventory;
use vm2k::pkgdb;
use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::machine::{Machine as Opened, MachineOptions};

/// The directory of the machine, made if it is not there; `None` where it cannot be made.
fn rpm_machine(test: &str) -> Option<PathBuf> {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let wanted = &[
        "mmdebstrap",
        "sfdisk",
        "mke2fs",
        "qemu-img",
        "setcap",
        "python3",
        "rpm",
        "rpmbuild",
        "dnf",
        "createrepo_c",
    ];
    if !root(test) || !tools(test, wanted) {
        return None;
    }
    let made = MADE.get_or_init(|| {
        let dir = cache().join("rpm");
        run(Command::new(repository("tests/rpm-machine.sh")).arg(&dir));
        dir
    });
    Some(made.clone())
}

/// The lines of a file that a judge wrote, sorted.
fn expected(dir: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("expected").join(name)).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// As dnf writes it: `attr-1:2.5.1-4.x86_64`.
fn nevra(package: &pkgdb::Package) -> String {
    let epoch = package.epoch.filter(|e| *e > 0).map(|e| format!("{e}:"));
    format!(
        "{}-{}{}-{}.{}",
        package.name,
        epoch.unwrap_or_default(),
        package.version,
        package.release.as_deref().unwrap_or_default(),
        package.arch.as_deref().unwrap_or_default()
    )
}

/// The repository where the machine's own file expects it.
fn served(dir: &Path) -> FileServer {
    let arch = String::from_utf8(run(Command::new("rpm").args(["--eval", "%_arch"])).stdout).unwrap();
    let at = format!("/pub/rocky/9/BaseOS/{}/os", arch.trim());
    FileServer::start(&[(&at, &dir.join("repo"))])
}

#[test]
fn its_packages_are_those_of_rpm_and_dnf() {
    let test = "e2e::rpm::its_packages_are_those_of_rpm_and_dnf";
    let Some(dir) = rpm_machine(test) else { return };
    let machine = Opened::open(&[dir.join("disk.qcow2")], &MachineOptions::default(), &Silent).unwrap();
    let distros = vm2k::distro::Distros::load(None).unwrap();
    let inventory = inventory::take(&machine, &distros).unwrap();
    assert_eq!(inventory.problems, []);
    assert_eq!(inventory.os.distro.as_deref(), Some("rocky"));
    assert_eq!(inventory.database, Some("rpm"));
    assert!(inventory.os.arch.is_some());
    let packages = inventory.packages.as_deref().unwrap();
    let mut ours: Vec<String> = packages
        .iter()
        .map(|p| {
            let source = p.source.as_ref().map(|s| s.name.as_str()).unwrap_or_default();
            format!(
                "{}\t{}\t{}\t{}\t{}\t{source}",
                p.name,
                p.epoch.map(|e| e.to_string()).unwrap_or_default(),
                p.version,
                p.release.as_deref().unwrap_or_default(),
                p.arch.as_deref().unwrap_or_default(),
            )
        })
        .collect();
    ours.sort();
    assert_eq!(ours, expected(&dir, "packages.tsv"));
    assert!(ours.len() > 90, "{}", ours.len());
    let mut manual: Vec<String> = packages
        .iter()
        .filter(|p| p.manual == Some(true))
        .map(|p| p.name.clone())
        .collect();
    manual.sort();
    assert_eq!(manual, expected(&dir, "manual"));
    assert!(manual.len() > 10 && manual.len() < ours.len() / 2);
    // A group was asked for, and its packages stay when dnf removes what nobody needs; `history userinstalled` leaves them out.
    let of_group: Vec<String> = expected(&dir, "reasons")
        .iter()
        .filter_map(|line| line.strip_suffix(" group").map(str::to_owned))
        .collect();
    assert!(
        of_group.len() > 5 && of_group.iter().all(|name| manual.contains(name)),
        "{of_group:?}"
    );
    let userinstalled: BTreeSet<String> = expected(&dir, "userinstalled").into_iter().collect();
    let asked = packages
        .iter()
        .filter(|p| p.manual == Some(true) && !of_group.contains(&p.name));
    assert_eq!(asked.map(nevra).collect::<BTreeSet<_>>(), userinstalled);
    let mut from: Vec<String> = packages
        .iter()
        .map(|p| format!("{} {}", p.name, p.repository.as_deref().unwrap_or_default()))
        .collect();
    from.sort();
    assert_eq!(from, expected(&dir, "from"));
    let named = |name: &str| packages.iter().find(|p| p.name == name).unwrap();
    let greeter = named("greeter");
    assert!(greeter.module.as_deref().unwrap().starts_with("greeter:2:"));
    assert!(named("greeter-extras").manual == Some(false), "a weak dependency");
    assert!(named("less").manual == Some(false), "dnf mark remove");
    let facts = |path: &str| {
        let file = greeter.files.iter().find(|f| f.path.to_string() == path);
        file.unwrap().facts.as_deref().unwrap().clone()
    };
    assert_eq!(
        facts("/usr/bin/greeter-ping").capabilities.as_deref(),
        Some("cap_net_raw=ep")
    );
    assert!(facts("/etc/greeter.ghost").flags.ghost);
    let changed = pkgdb::changed_conffiles(&machine, packages).unwrap();
    let changed: Vec<String> = changed.iter().map(ToString::to_string).collect();
    assert_eq!(changed, expected(&dir, "changed"));
    // bash lists /bin/bash, which lies in /usr/bin.
    for (path, owner) in [
        ("/usr/bin/bash", "bash"),
        ("/usr/bin/greet", "greeter"),
        ("/usr/bin/nginx", ""),
    ] {
        let Some((path, _)) = machine.tree().find(path) else {
            continue;
        };
        let owners = inventory
            .owners
            .of(&path)
            .iter()
            .map(|n| packages[*n].name.as_str());
        assert_eq!(owners.collect::<Vec<_>>(), [owner], "{path}");
    }
    // Every file that dnf put there is owned; directories that no package lists are not.
    let below = vm2k::path::GuestPath::new(b"/usr").unwrap();
    let unowned: Vec<String> = machine
        .tree()
        .below(&below)
        .filter(|(path, node)| !node.is_dir() && !inventory.owners.owned(path))
        .map(|(path, _)| path.to_string())
        .collect();
    assert_eq!(unowned, [""; 0]);
}

#[test]
fn it_converts_against_its_base_and_verifies() {
    let test = "e2e::rpm::it_converts_against_its_base_and_verifies";
    let Some(dir) = rpm_machine(test) else { return };
    let work = Work::new();
    let disk = dir.join("disk.qcow2").display().to_string();
    let base = format!("oci:{}:9", dir.join("base").display());
    let image = work.output("oci", "image");
    let report = work.path("out/report.json");
    ended(
        work.vm2k(["convert", &disk, "--base", &base, "-o", &image, "--report"])
            .arg(&report),
    )
    .expect(0);
    ended(&mut work.vm2k(["verify", &disk, &image])).expect(0);
    let scan = ended(&mut work.vm2k(["scan", "--json", &disk]));
    scan.expect(0);
    let scan = json(&scan.stdout);
    assert_eq!(scan["hostname"], "rocky1");
    let rows = scan["packages"].as_array().unwrap();
    assert_eq!(rows.len(), expected(&dir, "packages.tsv").len());
    let marked = rows.iter().filter(|p| p["manual"] == true).count();
    assert_eq!(marked, expected(&dir, "manual").len());
    let services = scan["services"].as_array().unwrap();
    assert!(
        services
            .iter()
            .any(|s| s["name"] == "greeter.service" || s["name"] == "greeter")
    );
    // Files that the base has in the same package are not in the image again.
    let report = json(&std::fs::read(report).unwrap());
    eprintln!("{test}: {}", report["layers"]);
}

/// dnf is the judge: installing the roots onto the base's packages brings all that the machine has, but what its own
/// `autoremove` would take.
#[test]
fn its_roots_bring_the_whole_machine() {
    let test = "e2e::rpm::its_roots_bring_the_whole_machine";
    let Some(dir) = rpm_machine(test) else { return };
    let work = Work::new();
    let disk = dir.join("disk.qcow2").display().to_string();
    let scan = ended(&mut work.vm2k(["scan", "--json", &disk]));
    let scan = json(&scan.expect(0).stdout);
    let roots: Vec<&str> = scan["roots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r.as_str().unwrap())
        .collect();
    // Without a base image the package manager itself, and what it needs, stands for one.
    for leaf in expected(&dir, "leaves").into_iter().filter(|leaf| leaf != "rpm") {
        assert!(
            roots.contains(&leaf.as_str()),
            "{leaf} was asked for and nothing needs it: {roots:?}"
        );
    }
    assert!(
        roots.len() < expected(&dir, "packages.tsv").len() / 4,
        "{roots:?}"
    );
    let base = work.path("base");
    unpack_base(&dir, &base);
    // The machine's stream of the module, as the build context has it.
    let stream = "/etc/dnf/modules.d/greeter.module";
    let text = ended(&mut work.vm2k(["cat", &disk, stream]));
    std::fs::create_dir_all(base.join("etc/dnf/modules.d")).unwrap();
    std::fs::write(base.join(&stream[1..]), &text.expect(0).stdout).unwrap();
    let conf = work.path("dnf.conf");
    let text = format!(
        "[main]\nreposdir=/none\ncachedir={0}/cache\nlogdir={0}/logs\nplugins=0\ngpgcheck=0\ninstall_weak_deps=0\n\
         module_platform_id=platform:el9\n[baseos]\nname=baseos\nbaseurl=file://{1}\n",
        work.path("dnf").display(),
        dir.join("repo").display()
    );
    std::fs::write(&conf, text).unwrap();
    let home = work.path("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(
        home.join(".rpmmacros"),
        "%_dbpath /var/lib/rpm\n%_db_backend sqlite\n",
    )
    .unwrap();
    run(Command::new("dnf")
        .env("HOME", &home)
        .args(["-q", "-y", "--releasever=9", "-c"])
        .arg(&conf)
        .arg(format!("--installroot={}", base.display()))
        .arg("install")
        .args(&roots));
    let list = run(Command::new("rpm")
        .env("HOME", &home)
        .arg("--root")
        .arg(&base)
        .args(["-qa", "--qf", "%{NAME}\\n"]));
    let installed: BTreeSet<String> = String::from_utf8(list.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    let packages = expected(&dir, "packages.tsv");
    let lost: Vec<&str> = packages
        .iter()
        .filter_map(|line| line.split('\t').next())
        .filter(|name| !installed.contains(*name))
        .collect();
    assert_eq!(lost, expected(&dir, "unneeded"));
}

/// Unpacks the one layer of the base.
fn unpack_base(dir: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    run(Command::new("tar")
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xzf"])
        .arg(last_layer(&dir.join("base")))
        .arg("-C")
        .arg(to));
}

/// The blob of the last layer of a layout's one image.
fn last_layer(layout: &Path) -> PathBuf {
    let blob = |digest: &Value| {
        layout
            .join("blobs")
            .join(digest.as_str().unwrap().replace(':', "/"))
    };
    let index = json(&std::fs::read(layout.join("index.json")).unwrap());
    let manifest = json(&std::fs::read(blob(&index["manifests"][0]["digest"])).unwrap());
    blob(&manifest["layers"].as_array().unwrap().last().unwrap()["digest"])
}

/// What `--strategy dockerfile` makes of the machine with the engine that `command` speaks with.
fn built(test: &str, dir: &Path, work: &Work, mut command: Command) {
    let server = served(dir);
    let disk = dir.join("disk.qcow2").display().to_string();
    let image = work.output("oci", "image:rocky");
    let (file, context) = (work.path("out/report.json"), work.path("out/context"));
    ended(
        command
            .args([
                "convert",
                &disk,
                "--base",
                &format!("oci:{}:9", dir.join("base").display()),
            ])
            .args(["--strategy", "dockerfile", "--build-network", "host"])
            .args(["--mirror", &format!("http://dl.example.org={}", server.address)])
            .args(["-o", &image, "--context"])
            .arg(&context)
            .arg("--report")
            .arg(&file),
    )
    .expect(0);
    assert!(
        server
            .asked
            .lock()
            .unwrap()
            .iter()
            .any(|path| path.ends_with(".rpm")),
        "the build asked it"
    );
    // The judge of everything: scriptlets, capabilities, links, ghosts, the module's state and the alternatives too.
    ended(&mut work.vm2k(["verify", &disk, &image])).expect(0);
    let report = strategy::report(&file);
    let sizes = &report["sizes"];
    let percent = sizes["rest_percent"].as_f64().unwrap();
    eprintln!("{test}: {percent:.1} % are left: {sizes}");
    assert!(percent < 15.0, "{sizes}");

    let text = std::fs::read_to_string(context.join("Dockerfile")).unwrap();
    let arch = String::from_utf8(run(Command::new("rpm").args(["--eval", "%_arch"])).stdout).unwrap();
    let words = [
        format!("greeter-1:2.0-1.module_el9.{}", arch.trim()),
        "greeter-extras-2.0-1.el9.noarch".to_owned(),
    ];
    for word in words {
        assert!(text.contains(&word), "{word}: {text}");
    }
    let decided = json(&std::fs::read(context.join("report.json")).unwrap());
    for package in decided["packages"].as_array().unwrap() {
        let rung = package["rung"].as_str().unwrap();
        assert!(matches!(rung, "base" | "live"), "{package}");
    }
    // Packages brought these, with their capabilities, modes, links and times; the machine's own the others.
    let list = run(Command::new("tar")
        .arg("-tf")
        .arg(last_layer(&work.path("out/image"))));
    let rest: BTreeSet<String> = String::from_utf8_lossy(&list.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    for path in [
        "usr/bin/greeter-ping",
        "usr/bin/greeter",
        "usr/bin/greet",
        "usr/lib64/libgreeter.so.2",
        "usr/sbin/nginx",
    ] {
        assert!(!rest.contains(path), "{path} is in the last layer");
    }
    for path in [
        "etc/greeter.conf",
        "etc/alternatives/greetings",
        "var/lib/alternatives/greetings",
        "srv/app/data",
    ] {
        assert!(rest.contains(path), "{path} is not in the last layer: {rest:?}");
    }
}

#[test]
fn its_dockerfile_builds_with_buildah() {
    let test = "e2e::rpm::its_dockerfile_builds_with_buildah";
    let Some(dir) = rpm_machine(test).filter(|_| tools(test, &["buildah"])) else {
        return;
    };
    let work = Work::new();
    let buildah = Buildah::new(&work);
    let mut command = buildah.vm2k(&work);
    command.args(["--quiet"]);
    built(test, &dir, &work, command);
    buildah.is_empty();
}

#[test]
fn its_dockerfile_builds_with_a_docker_engine() {
    let test = "e2e::rpm::its_dockerfile_builds_with_a_docker_engine";
    let Some(dir) = rpm_machine(test).filter(|_| tools(test, &["docker", "dockerd"])) else {
        return;
    };
    let work = Work::new();
    let docker = Docker::start(&work);
    let mut command = work.vm2k([] as [&str; 0]);
    command.env("DOCKER_HOST", docker.host());
    built(test, &dir, &work, command);
    docker.holds(&[]);
}
