//! The image against the machine: `vm2k verify`, and umoci with rsync against the kernel's mount.

use super::{
    Converted, Work, converted, ended, head, host_path, is_named, machine, manifest_digest, named_by,
    program, unpack,
};
use crate::support::{bash, run, tools};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

const JUDGES: &[&str] = &["umoci", "rsync", "skopeo"];

/// rsync's `\#ooo` undone.
fn rsync_name(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let digits = text.get(at + 2..at + 5).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(value) if text[at..].starts_with(b"\\#") => {
                out.push(value);
                at += 5;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}

/// What rsync would do to make `to` the same as `from`: pairs of its eleven letters and the path.
fn rsync(from: &Path, to: &Path) -> Vec<(String, Vec<u8>)> {
    let output = run(Command::new("rsync")
        .args(["-naHAXc", "--delete", "--numeric-ids", "--out-format=%i %n"])
        .arg(format!("{}/", from.display()))
        .arg(format!("{}/", to.display())));
    output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|line| {
            let (letters, name) = line.split_at(line.iter().position(|b| *b == b' ').unwrap());
            let name = rsync_name(&name[1..]);
            let mut path = b"/".to_vec();
            path.extend_from_slice(name.strip_suffix(b"/").unwrap_or(&name));
            (String::from_utf8_lossy(letters).into_owned(), path)
        })
        .collect()
}

/// A time that umoci cannot set: it counts nanoseconds in 64 bits, which end in 2262. `verify` compares it.
const PAST_2262: &[u8] = b"/srv/hard/times/2400-02-29T12:00:00";

fn only_what_the_plan_names(test: &str, kind: &str, profile: &str) {
    if !tools(test, JUDGES) {
        return;
    }
    let Some(converted) = converted(test, kind, profile) else {
        return;
    };
    let mounted = converted.machine.mount();
    let rootfs = converted.unpacked();
    let named = named_by(&converted.report);
    assert!(
        !named.is_empty(),
        "the report names nothing: {}",
        head(&converted.report.to_string())
    );
    let unnamed: Vec<String> = rsync(mounted.path(), &rootfs)
        .into_iter()
        .filter(|(_, path)| path != b"/." && path != PAST_2262 && !is_named(path, &named))
        .map(|(letters, path)| format!("{letters} {}", String::from_utf8_lossy(&path)))
        .collect();
    assert!(
        unnamed.is_empty(),
        "rsync lists {} paths that the plan does not name\n{}",
        unnamed.len(),
        head(&unnamed.join("\n"))
    );
    // What is named must really be out: a plan that names everything would pass the check above.
    for (path, rule) in &named {
        let name = Path::new(OsStr::from_bytes(&path[1..]));
        if rule != "runtime" && !rewritten(&converted.report, path) {
            assert!(
                rootfs.join(name).symlink_metadata().is_err(),
                "{} is said to be left out by {rule} and is in the image",
                name.display()
            );
        }
    }
    let cleared: usize = named.iter().filter(|(p, _)| !p[1..].contains(&b'/')).count();
    assert!(cleared < 30, "whole top directories are left out");
}

fn rewritten(report: &Value, path: &[u8]) -> bool {
    let all = report["rewritten"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter_map(|e| e["path"].as_str())
        .any(|p| super::unescape(p) == path)
}

#[test]
fn umoci_and_rsync_find_only_what_the_plan_names_small() {
    only_what_the_plan_names(
        "umoci_and_rsync_find_only_what_the_plan_names_small",
        "small",
        "container",
    );
}

#[test]
fn umoci_and_rsync_find_only_what_the_plan_names_faithful() {
    let test = "umoci_and_rsync_find_only_what_the_plan_names_faithful";
    only_what_the_plan_names(test, "small", "faithful");
    // The faithful profile leaves out what cannot be in an image, and identity.
    let Some(converted) = converted(test, "small", "faithful") else {
        return;
    };
    for (path, rule) in named_by(&converted.report) {
        assert!(
            ["runtime", "socket", "identity", "password-hash"].contains(&rule.as_str())
                || rule.starts_with("secret:"),
            "{}: {rule}",
            String::from_utf8_lossy(&path)
        );
    }
}

#[test]
fn umoci_and_rsync_find_only_what_the_plan_names_server() {
    only_what_the_plan_names(
        "umoci_and_rsync_find_only_what_the_plan_names_server",
        "full",
        "container",
    );
}

fn verify(work: &Work, disk: &Path, image: &str) -> super::Ended {
    ended(&mut work.vm2k(["verify".as_ref(), disk.as_os_str(), image.as_ref()]))
}

fn verify_is_clean(test: &str, kind: &str, profile: &str) {
    let Some(converted) = converted(test, kind, profile) else {
        return;
    };
    verify(&converted.work, &converted.machine.qcow2(), &converted.image()).expect(0);
}

#[test]
fn verify_is_clean_small() {
    verify_is_clean("verify_is_clean_small", "small", "container");
}

#[test]
fn verify_is_clean_faithful() {
    verify_is_clean("verify_is_clean_faithful", "small", "faithful");
}

#[test]
fn verify_is_clean_server() {
    verify_is_clean("verify_is_clean_server", "full", "container");
}

/// Base layers are untouched by digest, and come first.
#[test]
fn the_base_stays_below() {
    let test = "the_base_stays_below";
    let Some(converted) = tools(test, JUDGES)
        .then(|| converted(test, "small", "container"))
        .flatten()
    else {
        return;
    };
    let layers = |reference: &str| -> Vec<Value> {
        let raw = run(Command::new("skopeo").args(["inspect", "--raw", reference])).stdout;
        super::json(&raw)["layers"].as_array().unwrap().clone()
    };
    let base = layers(&converted.machine.base());
    let image = layers(&converted.image());
    assert_eq!(
        base,
        image[..base.len()],
        "the base's layers are not the first of the image"
    );
    assert_eq!(
        image.len(),
        base.len() + 2,
        "one layer of packages, one with the rest"
    );
    let config = run(Command::new("skopeo").args(["inspect", "--config", &converted.image()])).stdout;
    let config = super::json(&config);
    assert_eq!(config["os"], "linux");
    let labels = config["config"]["Labels"].as_object().unwrap();
    assert_eq!(
        labels["org.opencontainers.image.base.digest"],
        manifest_digest(&converted.machine.base()).as_str()
    );
}

/// One layer on top of the image that makes it wrong in one place of each kind; each must be found and no other.
#[test]
fn verify_finds_every_kind_of_tampering() {
    let test = "verify_finds_every_kind_of_tampering";
    if !tools(test, JUDGES) {
        return;
    }
    let Some(converted) = converted(test, "small", "container") else {
        return;
    };
    let rootfs = converted.unpacked();
    let work = Work::new();
    let layer = work.path("layer");
    // The files are copied with all metadata, then changed, then restored in their times where those are not the point.
    bash(
        r#"root=$1 layer=$2
        mkdir "$layer"; cd "$root"
        cp -a --parents etc/hostname etc/issue srv/app/app.py srv/app/releases/1.1/app.py srv/hard/xattr/plain srv/hard/acl/file \
            srv/hard/fifo srv/hard/links/to-bytes srv/hard/devices/char usr/sbin/nginx srv/hard/links/b srv/app/requirements.txt \
            srv/app/static/numbers.txt "$layer"
        cd "$layer"
        keep() { touch -h -d "@$(stat -c %Y "$root/$1")" "$1"; }
        printf 'evil1\n\n' | head -c "$(stat -c %s etc/hostname)" > etc/hostname; keep etc/hostname  # content, size and time as before
        chmod 600 etc/issue                                                          # mode
        chown 1:1 srv/app/requirements.txt                                           # owner
        setfattr -x user.comment srv/hard/xattr/plain                                # xattr gone
        setfacl -m u:1001:r srv/hard/acl/file                                        # ACL
        touch -d @1000000000 srv/app/static/numbers.txt                              # time
        rm srv/hard/fifo; echo x > srv/hard/fifo                                     # type
        ln -sfn elsewhere srv/hard/links/to-bytes                                    # target
        rm srv/hard/devices/char; mknod -m 600 srv/hard/devices/char c 10 201        # device number
        setcap -r usr/sbin/nginx                                                     # capability
        rm srv/hard/links/b; cp -p "$root/srv/hard/links/b" srv/hard/links/b         # one file became two
        echo x > srv/hard/extra                                                      # too much
        : > srv/hard/.wh.empty                                                       # too little
        find . -type f -o -type l -o -type c -o -type p | sed 's,^\./,,' | grep -v -e app.py > ../names
        tar --xattrs --xattrs-include='*' --numeric-owner --no-recursion -cf ../layer.tar -T ../names"#,
        &[&rootfs, &layer],
    );
    let image = work.path("out/image");
    run(Command::new("cp").arg("-a").arg(converted.layout()).arg(&image));
    run(Command::new("umoci")
        .args(["--log", "error", "raw", "add-layer", "--image"])
        .arg(format!("{}:web", image.display()))
        .args(["--tag", "bad"])
        .arg(work.path("layer.tar")));
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&image));
    let found = verify(
        &work,
        &converted.machine.qcow2(),
        &format!("oci:{}:bad", image.display()),
    );
    found.expect(3);
    let text = found.text();
    let wanted = [
        "/etc/hostname",
        "/etc/issue",
        "/srv/app/requirements.txt",
        "/srv/hard/xattr/plain",
        "/srv/hard/acl/file",
        "/srv/app/static/numbers.txt",
        "/srv/hard/fifo",
        "/srv/hard/links/to-bytes",
        "/srv/hard/devices/char",
        "/usr/sbin/nginx",
        "/srv/hard/links/b",
        "/srv/hard/extra",
        "/srv/hard/empty",
    ];
    for path in wanted {
        assert!(text.contains(path), "verify does not list {path}\n{text}");
    }
    for path in [
        "/etc/hosts",
        "/usr/bin/bash",
        "/srv/hard/links/to-59-bytes",
        "/srv/app/app.py",
    ] {
        assert!(
            !text.contains(path),
            "verify lists {path}, where nothing is wrong\n{text}"
        );
    }
    let as_json = ended(&mut work.vm2k([
        "verify",
        "--json",
        converted.machine.qcow2().to_str().unwrap(),
        &format!("oci:{}:bad", image.display()),
    ]));
    as_json.expect(3);
    let document = as_json.json();
    assert!(document["schema"].is_string());
    let differences = document["differences"].as_array().unwrap();
    for path in wanted {
        assert!(
            differences.iter().any(|d| d["path"] == path),
            "{path}: {differences:?}"
        );
    }
}

/// An image of another machine is not this one.
#[test]
fn verify_knows_another_machine() {
    let test = "verify_knows_another_machine";
    let Some(small) = converted(test, "small", "container") else {
        return;
    };
    let Some(full) = machine(test, "full") else { return };
    let found = verify(&small.work, &full.qcow2(), &small.image());
    found.expect(3);
}

fn digests_of_outputs(converted: &Converted, work: &Work) -> Vec<String> {
    let outputs = [
        work.output("oci", "layout:web"),
        work.output("oci-archive", "archive.tar"),
    ];
    let mut command = work.vm2k(["convert".as_ref(), converted.machine.qcow2().as_os_str()]);
    command.args(["--base", &converted.machine.base(), "--compress", "gzip"]);
    for output in &outputs {
        command.args(["-o", output]);
    }
    let docker = work.output("docker-archive", "docker.tar:web:latest");
    ended(command.args(["-o", &docker])).expect(0);
    run(Command::new("skopeo").args(["inspect", &docker]));
    outputs.iter().map(|o| manifest_digest(o)).collect()
}

#[test]
fn all_outputs_of_one_run_are_the_same_image() {
    let test = "all_outputs_of_one_run_are_the_same_image";
    let Some(converted) = tools(test, JUDGES)
        .then(|| converted(test, "small", "container"))
        .flatten()
    else {
        return;
    };
    let work = Work::new();
    let digests = digests_of_outputs(converted, &work);
    assert_eq!(digests, vec![manifest_digest(&converted.image()); 2]);
    // skopeo reads every blob and checks every digest when it copies.
    run(Command::new("skopeo")
        .args(["copy", "--quiet", &work.output("oci-archive", "archive.tar")])
        .arg(format!("dir:{}", work.path("copied").display())));
    assert_eq!(work.names("out"), ["archive.tar", "docker.tar", "layout"]);
    assert!(work.names("tmp").is_empty(), "leftovers in TMPDIR");
    assert!(program().is_file());
    let bundle = work.path("bundle");
    unpack(&work.path("out/layout"), "web", &bundle);
    assert!(
        bundle
            .join("rootfs")
            .join(host_path(b"srv/hard/not UTF-8 \xff\xfe"))
            .exists()
    );
}
