//! What `ls`, `cat` and `scan` say of a disk, against the kernel's mount, dpkg-query and the file itself.

use super::{Machine, Work, ended, head, host_path, json, machine, repository};
use crate::support::run;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

/// The lines of `ls --json` in one form: what is absent is empty.
fn lines(text: &[u8]) -> Vec<Value> {
    text.split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|line| {
            let mut value = json(line);
            if value["xattrs"].is_null() {
                value["xattrs"] = Value::Object(serde_json::Map::new());
            }
            value
        })
        .collect()
}

fn key(line: &Value) -> String {
    format!("{}{}", line["path"], line["path_b64"])
}

/// Both lists must be the same in every field and in their order.
fn assert_same(what: &str, ours: &[Value], judges: &[Value]) {
    let by_path =
        |lines: &[Value]| -> BTreeMap<String, Value> { lines.iter().map(|l| (key(l), l.clone())).collect() };
    let (a, b) = (by_path(ours), by_path(judges));
    let mut differences = Vec::new();
    for path in a
        .keys()
        .chain(b.keys())
        .collect::<std::collections::BTreeSet<_>>()
    {
        if a.get(path) != b.get(path) {
            differences.push(format!("ours:  {:?}\njudge: {:?}", a.get(path), b.get(path)));
        }
    }
    assert!(
        differences.is_empty(),
        "{what}: {} of {} paths differ\n{}",
        differences.len(),
        judges.len(),
        head(&differences.join("\n"))
    );
    let order = |lines: &[Value]| lines.iter().map(key).collect::<Vec<_>>();
    assert!(order(ours) == order(judges), "{what}: another order");
}

fn kernel(machine: &Machine) -> Vec<Value> {
    let mounted = machine.mount();
    let output = run(Command::new("python3")
        .env("PYTHONUTF8", "1")
        .arg(repository("tests/walk.py"))
        .arg(mounted.path()));
    lines(&output.stdout)
}

fn ls_is_the_kernels(test: &str, kind: &str) {
    let Some(machine) = machine(test, kind) else {
        return;
    };
    let judges = kernel(machine);
    assert!(judges.len() > 5000);
    let work = Work::new();
    for disk in [machine.qcow2(), machine.raw()] {
        let ended = ended(&mut work.vm2k([
            "ls".as_ref(),
            disk.as_os_str(),
            "--json".as_ref(),
            "--sha256".as_ref(),
        ]));
        ended.expect(0);
        assert_same(&disk.display().to_string(), &lines(&ended.stdout), &judges);
    }
    assert!(work.names("tmp").is_empty(), "leftovers in TMPDIR");
}

#[test]
fn ls_is_the_kernels_of_a_small_machine() {
    ls_is_the_kernels("ls_is_the_kernels_of_a_small_machine", "small");
}

#[test]
fn ls_is_the_kernels_of_a_server_with_two_filesystems() {
    ls_is_the_kernels("ls_is_the_kernels_of_a_server_with_two_filesystems", "full");
}

#[test]
fn ls_of_one_directory() {
    let Some(machine) = machine("ls_of_one_directory", "small") else {
        return;
    };
    let work = Work::new();
    let disk = machine.qcow2();
    let all = ended(&mut work.vm2k(["ls".as_ref(), disk.as_os_str(), "--json".as_ref()]));
    let part = ended(&mut work.vm2k([
        "ls".as_ref(),
        disk.as_os_str(),
        "/srv/hard".as_ref(),
        "--json".as_ref(),
    ]));
    part.expect(0);
    let below = |line: &Value| line["path"].as_str().is_some_and(|p| p.starts_with("/srv/hard/"));
    let wanted: Vec<Value> = lines(&all.stdout).into_iter().filter(below).collect();
    let got: Vec<Value> = lines(&part.stdout).into_iter().filter(below).collect();
    assert_same("ls of /srv/hard", &got, &wanted);
    ended(&mut work.vm2k(["ls".as_ref(), disk.as_os_str(), "/no/such".as_ref()])).one_cause();
    let plain = ended(&mut work.vm2k(["ls".as_ref(), disk.as_os_str(), "/srv/hard".as_ref()]));
    plain.expect(0);
    assert!(
        !plain.stdout.contains(&0xff),
        "bytes of the guest reach the terminal"
    );
    assert!(plain.text().contains("new\\nline"));
}

#[test]
fn cat_gives_the_bytes() {
    let Some(machine) = machine("cat_gives_the_bytes", "small") else {
        return;
    };
    let work = Work::new();
    let mounted = machine.mount();
    let paths: [&[u8]; 6] = [
        b"/etc/hostname",
        b"/usr/bin/bash",
        b"/srv/hard/sparse",
        b"/srv/hard/allocated-not-written",
        b"/srv/hard/not UTF-8 \xff\xfe",
        b"/srv/hard/empty",
    ];
    for path in paths {
        let host = host_path(path);
        let ended = ended(&mut work.vm2k(["cat".as_ref(), machine.qcow2().as_os_str(), host.as_os_str()]));
        ended.expect(0);
        let wanted = std::fs::read(mounted.path().join(host_path(&path[1..]))).unwrap();
        assert!(ended.stdout == wanted, "{}", host.display());
    }
    for path in ["/no/such/file", "/etc", "/srv/hard/fifo"] {
        let ended = ended(&mut work.vm2k(["cat".as_ref(), machine.qcow2().as_os_str(), path.as_ref()]));
        assert!(
            ended.code != Some(0) && ended.stdout.is_empty(),
            "{path}: {:?}",
            ended.code
        );
        ended.one_cause();
    }
    // A link that leads upwards ends inside the machine.
    let ended = ended(&mut work.vm2k([
        "cat".as_ref(),
        machine.qcow2().as_os_str(),
        "/srv/hard/links/upwards".as_ref(),
    ]));
    assert!(
        ended.code != Some(0) || ended.stdout == b"small1\n",
        "{}",
        ended.text()
    );
}

/// Packages as dpkg-query says them: those that are installed, wholly or in part.
fn packages_are_dpkgs(test: &str, kind: &str) {
    let Some(machine) = machine(test, kind) else {
        return;
    };
    let work = Work::new();
    let ended = ended(&mut work.vm2k(["scan".as_ref(), machine.qcow2().as_os_str(), "--json".as_ref()]));
    // 3 where the scan lists something that it could not read.
    ended.expect(0);
    let scan = ended.json();
    let manual: Vec<String> = machine.expected("manual").lines().map(str::to_owned).collect();
    let text = |package: &Value, field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let full_version = |package: &Value| {
        let epoch = match &package["epoch"] {
            Value::Null => String::new(),
            Value::String(text) => format!("{text}:"),
            number => format!("{number}:"),
        };
        let release = match text(package, "release") {
            none if none.is_empty() => String::new(),
            release => format!("-{release}"),
        };
        format!("{epoch}{}{release}", text(package, "version"))
    };
    let mut ours: Vec<String> = scan["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let manual = p["manual"]
                .as_bool()
                .map_or_else(|| "unknown".to_owned(), |m| m.to_string());
            format!(
                "{} {} {} {} {}",
                text(p, "name"),
                full_version(p),
                text(p, "arch"),
                text(p, "source"),
                manual
            )
        })
        .collect();
    let mut judges: Vec<String> = machine
        .expected("packages.tsv")
        .lines()
        .map(|line| {
            let f: Vec<&str> = line.split('\t').collect();
            let (name, version, arch, source) = (f[0], f[1], f[2], f[3]);
            let name_arch = format!("{name}:{arch}");
            let asked = manual.iter().any(|m| m == name || *m == name_arch);
            format!("{name} {version} {arch} {source} {asked}")
        })
        .collect();
    ours.sort();
    judges.sort();
    let only_ours: Vec<&String> = ours.iter().filter(|l| !judges.contains(l)).collect();
    let only_judges: Vec<&String> = judges.iter().filter(|l| !ours.contains(l)).collect();
    assert!(
        only_ours.is_empty() && only_judges.is_empty() && ours.len() == judges.len(),
        "{} packages, dpkg-query has {}\nours: {:#?}\ndpkg-query: {:#?}",
        ours.len(),
        judges.len(),
        &only_ours[..only_ours.len().min(10)],
        &only_judges[..only_judges.len().min(10)]
    );
    assert_eq!(scan["hostname"], machine.fact("hostname"));
    assert_eq!(scan["os"]["id"], "debian");
    assert_eq!(scan["os"]["version_id"], "12");
    assert!(scan["schema"].is_string(), "no schema");
    for field in ["filesystems", "users", "services", "fitness", "base"] {
        assert!(
            scan.as_object().unwrap().contains_key(field),
            "{field} is left out"
        );
    }
}

#[test]
fn packages_are_dpkgs_of_a_small_machine() {
    packages_are_dpkgs("packages_are_dpkgs_of_a_small_machine", "small");
}

#[test]
fn packages_are_dpkgs_of_a_server() {
    packages_are_dpkgs("packages_are_dpkgs_of_a_server", "full");
}

#[test]
fn the_table_of_scan_is_for_people() {
    let Some(machine) = machine("the_table_of_scan_is_for_people", "small") else {
        return;
    };
    let work = Work::new();
    let ended = ended(&mut work.vm2k(["scan".as_ref(), machine.qcow2().as_os_str()]));
    ended.expect(0);
    let text = ended.text();
    assert!(text.contains("small1") && text.contains("Debian"), "{text}");
    assert!(!text.contains('\x1b'), "colour where no terminal is");
    assert!(
        !ended.stderr.contains('\x1b') && !ended.stderr.contains('\r'),
        "a progress bar where no terminal is"
    );
}

/// qemu-img has the last word on what is on the disk.
#[test]
fn compressed_and_internal_snapshot_disks_show_the_same() {
    let test = "compressed_and_internal_snapshot_disks_show_the_same";
    let Some(machine) = machine(test, "small") else {
        return;
    };
    let work = Work::new();
    let first = |disk: &std::path::Path| {
        let ended = ended(&mut work.vm2k([
            "ls".as_ref(),
            disk.as_os_str(),
            "--json".as_ref(),
            "--sha256".as_ref(),
        ]));
        ended.expect(0);
        ended.stdout
    };
    let wanted = first(&machine.raw());
    let overlay = work.path("out/overlay.qcow2");
    let copy = work.path("out/copy.qcow2");
    crate::support::bash(
        r#"qemu-img convert -O qcow2 -c -o compression_type=zstd "$1" "$2"
           qemu-img snapshot -c before "$2"
           qemu-img create -q -f qcow2 -F qcow2 -b copy.qcow2 "$3"
           chmod 644 "$2" "$3""#,
        &[&machine.raw(), &copy, &overlay],
    );
    assert!(first(&copy) == wanted, "zstd clusters and a snapshot");
    assert!(first(&overlay) == wanted, "a backing file in the same directory");
    assert_eq!(overlay.file_name().unwrap().as_bytes(), b"overlay.qcow2");
}

/// What `dpkg --verify` says of each file: the path where it is, whether it is missing, and whether it is a configuration
/// file. The second value names the packages over which dpkg stumbles: it stops where it finds a directory in a file's place.
fn dpkg_verify(root: &std::path::Path) -> (BTreeMap<String, (bool, bool)>, Vec<String>) {
    let at = format!("--root={}", root.display());
    let names = run(Command::new("dpkg-query").args([&at, "-Wf", "${binary:Package}\n"])).stdout;
    let names = String::from_utf8(names).unwrap();
    let (mut rows, mut failed) = (BTreeMap::new(), Vec::new());
    for name in names.lines() {
        let output = Command::new("dpkg")
            .args([&at, "--verify", name])
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        if !output.stderr.is_empty() {
            failed.push(name.split(':').next().unwrap().to_owned());
            continue;
        }
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            // `??5?????? c /etc/x` and `missing     /usr/y`.
            let path = line.get(12..).unwrap_or_else(|| panic!("{line:?}"));
            let missing = line.starts_with("missing");
            let merged = ["/bin/", "/sbin/", "/lib/", "/lib64/"];
            let path = match merged.iter().any(|dir| path.starts_with(dir)) && !missing {
                true => format!("/usr{path}"),
                false => path.to_owned(),
            };
            rows.insert(path, (missing, line.get(10..11) == Some("c")));
        }
    }
    (rows, failed)
}

#[test]
fn changed_files_are_those_that_dpkg_finds() {
    let Some(machine) = machine("changed_files_are_those_that_dpkg_finds", "full") else {
        return;
    };
    let mounted = machine.mount();
    let (theirs, failed) = dpkg_verify(mounted.path());
    assert_eq!(failed, ["libpam-runtime"]);
    assert!(theirs.values().any(|(missing, _)| *missing), "{theirs:?}");
    assert!(
        theirs.values().any(|(missing, config)| !missing && *config),
        "{theirs:?}"
    );
    assert!(
        theirs.values().any(|(missing, config)| !missing && !config),
        "{theirs:?}"
    );
    let work = Work::new();
    let disk = machine.qcow2();
    let scan = |more: &[&str]| {
        let arguments = ["scan".as_ref(), disk.as_os_str()].into_iter();
        ended(&mut work.vm2k(arguments.chain(more.iter().map(|a| a.as_ref()))))
    };
    let plain = scan(&["--json"]);
    plain.expect(0);
    assert!(json(&plain.stdout)["changed"].is_null());
    let ended = scan(&["--json", "--changed"]);
    ended.expect(0);
    let document = json(&ended.stdout);
    let ours: BTreeMap<String, (bool, bool)> = document["changed"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| !failed.iter().any(|name| row["package"] == name.as_str()))
        .map(|row| {
            let missing = row["differs"][0] == "missing";
            let path = row["path"].as_str().unwrap().to_owned();
            (path, (missing, row["config"].as_bool().unwrap()))
        })
        .collect();
    assert_eq!(ours, theirs);
    let directory = "/usr/share/pam/common-account";
    let row = document["changed"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["path"] == directory);
    assert_eq!(row.unwrap()["differs"], serde_json::json!(["type"]));
    let table = scan(&["--changed"]).text();
    assert!(
        table.contains("changed since their packages were installed"),
        "{table}"
    );
}
