//! A server of the rpm family (`tests/rpm-machine.sh`), judged by rpm and dnf.

use super::{Work, cache, ended, json, repository};
use crate::support::{root, run, tools};
use std::path::PathBuf;
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
fn expected(dir: &std::path::Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("expected").join(name)).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
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
