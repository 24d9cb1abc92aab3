//! What a person decides: profiles, globs, an edited plan.

use super::{Work, converted, ended, is_named, machine, named_by};
use serde_json::Value;

/// The paths of an image.
fn paths(work: &Work, image: &str) -> Vec<String> {
    let ended = ended(&mut work.vm2k(["ls", image, "--json"]));
    ended.expect(0);
    ended
        .text()
        .lines()
        .filter_map(|l| super::json(l.as_bytes())["path"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn the_container_profile_leaves_out_what_containers_do_not_need() {
    let test = "the_container_profile_leaves_out_what_containers_do_not_need";
    let Some(full) = converted(test, "full", "container") else {
        return;
    };
    let named = named_by(&full.report);
    for path in [
        "/boot/initrd.img-",
        "/usr/lib/modules/6",
        "/etc/ssh/ssh_host_rsa_key",
        "/etc/machine-id",
        "/var/log/syslog",
        "/var/cache/apt/archives/left-behind_1.0_all.deb",
        "/tmp/upload.part",
    ] {
        let out = named.iter().any(|(p, _)| p.starts_with(path.as_bytes()));
        assert!(out || is_named(path.as_bytes(), &named), "{path} is not left out");
    }
    let inside = paths(&full.work, &full.image());
    for path in [
        "/etc/fstab",
        "/srv/app/app.py",
        "/var/log/app",
        "/home/bob/site/1.html",
        "/var/log",
        "/tmp",
    ] {
        assert!(inside.iter().any(|p| p == path), "{path} is not in the image");
    }
}

#[test]
fn keep_and_drop() {
    let Some(machine) = machine("keep_and_drop", "small") else {
        return;
    };
    let work = Work::new();
    let image = work.output("oci", "image:web");
    let report = work.path("out/report.json");
    let mut command = work.vm2k(["convert"]);
    command
        .arg(machine.qcow2())
        .args(["--base", &machine.base(), "-o", &image]);
    command.args([
        "--keep",
        "/var/log/syslog",
        "--drop",
        "/srv/hard/many",
        "--drop",
        "/usr/share/man/**",
    ]);
    ended(command.arg("--report").arg(&report)).expect(0);
    let inside = paths(&work, &image);
    assert!(inside.iter().any(|p| p == "/var/log/syslog"));
    assert!(
        !inside
            .iter()
            .any(|p| p.starts_with("/srv/hard/many/") || p.starts_with("/usr/share/man/man1/"))
    );
    let named = named_by(&super::json(&std::fs::read(report).unwrap()));
    assert!(is_named(
        b"/srv/hard/many/file-with-a-name-of-some-length-7",
        &named
    ));
    ended(work.vm2k(["verify"]).arg(machine.qcow2()).arg(&image)).expect(0);
    // A glob that is none is wrong usage.
    let mut command = work.vm2k(["convert", "--drop", "/a[", "-o"]);
    let bad = ended(
        command
            .arg(work.output("oci", "bad"))
            .arg(machine.qcow2())
            .args(["--base", &machine.base()]),
    );
    bad.expect(2);
    assert_eq!(work.names("out"), ["image", "report.json"]);
}

#[test]
fn an_edited_plan_is_obeyed() {
    let Some(machine) = machine("an_edited_plan_is_obeyed", "small") else {
        return;
    };
    let work = Work::new();
    let plan = work.path("out/plan.yaml");
    let mut command = work.vm2k(["plan"]);
    ended(
        command
            .arg(machine.qcow2())
            .args(["--base", &machine.base(), "-o"])
            .arg(&plan),
    )
    .expect(0);
    let text = std::fs::read_to_string(&plan).unwrap();
    assert!(
        text.starts_with('#') && text.contains("schema: vm2k.plan/1"),
        "{}",
        super::head(&text)
    );

    // Unedited, the plan gives the image that convert makes without it.
    let convert = |name: &str| {
        let image = work.output("oci", &format!("{name}:web"));
        let mut command = work.vm2k(["convert"]);
        command
            .arg(machine.qcow2())
            .args(["--base", &machine.base(), "-o", &image, "--plan"]);
        ended(command.arg(&plan)).expect(0);
        image
    };
    let plain = work.output("oci", "plain:web");
    ended(
        work.vm2k(["convert"])
            .arg(machine.qcow2())
            .args(["--base", &machine.base(), "-o", &plain]),
    )
    .expect(0);
    let unedited = convert("unedited");
    assert_eq!(super::manifest_digest(&plain), super::manifest_digest(&unedited));

    // One path less is left out, one more.
    let line = text
        .lines()
        .find(|l| l.contains("/var/log/syslog"))
        .unwrap_or_else(|| panic!("the plan does not name /var/log/syslog\n{text}"));
    let edited = text.replacen(line, &line.replace("/var/log/syslog", "/srv/app/static"), 1);
    std::fs::write(&plan, edited).unwrap();
    let image = convert("edited");
    let inside = paths(&work, &image);
    assert!(
        inside.iter().any(|p| p == "/var/log/syslog"),
        "what was taken from left_out is not in the image"
    );
    assert!(
        !inside.iter().any(|p| p.starts_with("/srv/app/static")),
        "what was added to left_out is in the image"
    );
    ended(work.vm2k(["verify"]).arg(machine.qcow2()).arg(&image)).expect(0);

    // A plan with an error in it, and one of another machine.
    std::fs::write(&plan, text.replace("profile: container", "profile: everything")).unwrap();
    let mut command = work.vm2k(["convert"]);
    command.arg(machine.qcow2()).args([
        "--base",
        &machine.base(),
        "-o",
        &work.output("oci", "bad"),
        "--plan",
    ]);
    ended(command.arg(&plan)).expect(2);
    std::fs::write(&plan, text.replace("tree: ", "tree: 00")).unwrap();
    let other = ended(&mut command);
    assert!(other.code != Some(0), "the plan of another machine was taken");
    assert!(!work.path("out/bad").exists());
}

#[test]
fn a_dry_run_is_the_plan_and_writes_nothing() {
    let Some(machine) = machine("a_dry_run_is_the_plan_and_writes_nothing", "small") else {
        return;
    };
    let work = Work::new();
    let mut command = work.vm2k(["convert", "--dry-run"]);
    let dry = ended(command.arg(machine.qcow2()).args([
        "--base",
        &machine.base(),
        "-o",
        &work.output("oci", "image"),
    ]));
    dry.expect(0);
    let plan = ended(
        work.vm2k(["plan"])
            .arg(machine.qcow2())
            .args(["--base", &machine.base()]),
    );
    plan.expect(0);
    assert_eq!(dry.text(), plan.text());
    assert!(work.names("out").is_empty());
}

#[test]
fn diff_of_machine_and_base() {
    let Some(machine) = machine("diff_of_machine_and_base", "small") else {
        return;
    };
    let work = Work::new();
    let base = machine.base();
    let diff = ended(work.vm2k(["diff", "--json", &base]).arg(machine.qcow2()));
    // 3: the two differ, and it is listed.
    diff.expect(3);
    let document: Value = diff.json();
    let text = document.to_string();
    for path in [
        "/usr/bin/shuf",
        "/etc/bash.bashrc",
        "/usr/share/debianutils",
        "/srv/app/app.py",
    ] {
        assert!(text.contains(path), "{path}");
    }
    ended(work.vm2k(["diff"]).arg(machine.qcow2()).arg(machine.raw())).expect(0);
}

#[test]
fn without_a_base_everything_is_in_the_image() {
    let Some(machine) = machine("without_a_base_everything_is_in_the_image", "small") else {
        return;
    };
    let work = Work::new();
    let image = work.output("oci-archive", "image.tar");
    ended(
        work.vm2k(["convert", "--base", "none", "-o", &image])
            .arg(machine.qcow2()),
    )
    .expect(0);
    ended(work.vm2k(["verify"]).arg(machine.qcow2()).arg(&image)).expect(0);
}
