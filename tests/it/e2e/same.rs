//! The same input gives the same image, whatever the machine that the program runs on, and nothing else of it is read.

use super::{Work, converted, ended, machine, manifest_digest, program};
use crate::support::{SYSTEM, is_below, run, tools, traced};
use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn same_digest_on_other_threads_time_zones_umasks_and_locales() {
    let test = "same_digest_on_other_threads_time_zones_umasks_and_locales";
    if !tools(test, &["skopeo"]) {
        return;
    }
    let Some(machine) = machine(test, "small") else {
        return;
    };
    let mut digests = BTreeSet::new();
    let surroundings = [
        ("1", "Asia/Kolkata", "077", "C", "/"),
        ("2", "America/St_Johns", "000", "tr_TR.UTF-8", "/tmp"),
        ("5", "UTC", "022", "C.UTF-8", "/usr"),
    ];
    for (jobs, zone, umask, locale, cwd) in surroundings {
        let work = Work::new();
        let image = work.output("oci", "image:web");
        let shell = format!("umask {umask}; cd {cwd}; exec \"$@\"");
        let mut command = work.wrapped(&["sh", "-c", &shell, "sh"], ["convert", "--jobs", jobs]);
        command.env("TZ", zone).env("LC_ALL", locale).env("LANG", locale);
        ended(
            command
                .arg(machine.qcow2())
                .args(["--base", &machine.base(), "-o", &image]),
        )
        .expect(0);
        digests.insert(manifest_digest(&image));
        // Once more with the store that the first time left, and one more time offline.
        let again = work.output("oci", "again:web");
        let mut command = work.vm2k(["convert", "--offline"]);
        ended(
            command
                .arg(machine.qcow2())
                .args(["--base", &machine.base(), "-o", &again]),
        )
        .expect(0);
        digests.insert(manifest_digest(&again));
    }
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[test]
fn source_date_epoch_is_obeyed() {
    let test = "source_date_epoch_is_obeyed";
    let Some(machine) = tools(test, &["skopeo"]).then(|| machine(test, "small")).flatten() else {
        return;
    };
    let work = Work::new();
    let image = work.output("oci", "image:web");
    let mut command = work.vm2k(["convert"]);
    command
        .arg(machine.qcow2())
        .env("SOURCE_DATE_EPOCH", "1700000000");
    ended(command.args(["--base", &machine.base(), "-o", &image])).expect(0);
    let config = super::json(&run(Command::new("skopeo").args(["inspect", "--config", &image])).stdout);
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    ended(work.vm2k(["verify"]).arg(machine.qcow2()).arg(&image)).expect(0);
}

/// What the program opens while it converts: the disk, the base, the store, the output, and what every program needs.
#[test]
fn nothing_of_the_host_is_opened() {
    let test = "nothing_of_the_host_is_opened";
    let Some(converted) = tools(test, &["strace"])
        .then(|| converted(test, "small", "container"))
        .flatten()
    else {
        return;
    };
    let machine = converted.machine;
    let work = Work::new();
    let trace = work.path("out/trace");
    let calls = "trace=open,openat,openat2,creat,execve,connect,readlink,readlinkat";
    let wrapper = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-e",
        calls,
        "-o",
        trace.to_str().unwrap(),
    ];
    let image = work.output("oci", "image:web");
    let mut command = work.wrapped(&wrapper, ["convert"]);
    ended(
        command
            .arg(machine.qcow2())
            .args(["--base", &machine.base(), "-o", &image]),
    )
    .expect(0);
    let allowed = [
        machine.qcow2().display().to_string(),
        machine.dir.join("base").display().to_string(),
        work.path("").display().to_string(),
        program().display().to_string(),
    ];
    let text = std::fs::read_to_string(&trace).unwrap();
    let mut strange = BTreeSet::new();
    for (call, path) in traced(&text) {
        if call.starts_with("connect(") {
            strange.insert(call.to_owned());
        }
        let Some(path) = path else { continue };
        // Where a path leads is asked of each directory above it; that opens nothing.
        let asks = call.starts_with("readlink") && allowed.iter().any(|a| a.starts_with(&path));
        if !asks && !is_below(&path, &allowed) && !is_below(&path, SYSTEM) {
            strange.insert(call.to_owned());
        }
    }
    assert!(text.contains("disk.qcow2"), "strace saw nothing");
    let opens: Vec<&String> = strange.iter().filter(|c| !c.contains("ENOENT")).collect();
    assert!(opens.is_empty(), "{opens:#?}");
}

/// The disk and the base are read, never written.
#[test]
fn the_input_is_not_written() {
    let test = "the_input_is_not_written";
    let Some(converted) = converted(test, "small", "container") else {
        return;
    };
    for file in [converted.machine.qcow2(), converted.machine.raw()] {
        let meta = std::fs::metadata(&file).unwrap();
        let done = std::fs::metadata(converted.machine.dir.join(".done")).unwrap();
        assert!(
            meta.modified().unwrap() <= done.modified().unwrap(),
            "{} was written",
            file.display()
        );
    }
    assert!(!converted.work.names("out").iter().any(|n| n.starts_with('.')));
}
