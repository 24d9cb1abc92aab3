//! Interrupted and killed: gone within two seconds, nothing half done under a final name, and a rerun ends as if nothing had
//! happened.

use super::{Work, ended, machine, manifest_digest};
use crate::support::{run, tools};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Run {
    work: Work,
    base: String,
    disk: std::path::PathBuf,
}

impl Run {
    fn new(machine: &super::Machine) -> Self {
        Self {
            work: Work::new(),
            base: machine.base(),
            disk: machine.qcow2(),
        }
    }
    fn command(&self, transport: &str) -> Command {
        let mut command = self.work.vm2k(["convert", "--base", &self.base]);
        command
            .arg(&self.disk)
            .args(["-o", &self.work.output(transport, "image")]);
        command
    }
    fn start(&self, transport: &str) -> Child {
        self.command(transport)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn signal(child: &Child, name: &str) {
    run(Command::new("kill")
        .args(["-s", name])
        .arg(child.id().to_string()));
}

/// Waits at most `limit`; kills and fails after that.
fn wait(mut child: Child, limit: Duration) -> (std::process::ExitStatus, String) {
    let from = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let mut stderr = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
            return (status, stderr);
        }
        if from.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("still there after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A conversion that nothing disturbs: how long it takes, and the digest.
fn undisturbed(machine: &super::Machine) -> (Duration, String) {
    let run = Run::new(machine);
    let ended = ended(&mut run.command("oci"));
    ended.expect(0);
    (ended.took, manifest_digest(&run.work.output("oci", "image")))
}

#[test]
fn signals_end_it_cleanly() {
    let test = "signals_end_it_cleanly";
    let Some(machine) = tools(test, &["skopeo"]).then(|| machine(test, "small")).flatten() else {
        return;
    };
    let (mut took, digest) = undisturbed(machine);
    let mut hit = 0;
    for (number, part) in [0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9]
        .into_iter()
        .enumerate()
    {
        let (name, code) = if number % 2 == 0 {
            ("INT", 130)
        } else {
            ("TERM", 143)
        };
        let transport = if number % 4 < 2 { "oci" } else { "oci-archive" };
        let run = Run::new(machine);
        let child = run.start(transport);
        std::thread::sleep(took.mul_f64(part));
        signal(&child, name);
        let (status, stderr) = wait(child, Duration::from_secs(2));
        if status.success() {
            // It was faster than the one that was timed: the machine is less busy now.
            took = took.mul_f64(0.6);
            continue;
        }
        hit += 1;
        // As a shell shows it: an exit code, or the end by the signal itself.
        let shown = status.code().or_else(|| status.signal().map(|s| 128 + s));
        assert_eq!(shown, Some(code), "{name} after {part}: {status} {stderr}");
        assert!(
            run.work.names("out").is_empty(),
            "{name} after {part}: {:?}",
            run.work.names("out")
        );
        assert!(
            run.work.names("tmp").is_empty(),
            "{name} after {part}: {:?}",
            run.work.names("tmp")
        );
        if number % 4 == 0 {
            ended(&mut run.command("oci")).expect(0);
            assert_eq!(
                manifest_digest(&run.work.output("oci", "image")),
                digest,
                "{name} after {part}"
            );
        }
    }
    assert!(hit >= 2, "only {hit} of 8 signals came before the end");
}

#[test]
fn killed_and_run_again() {
    let test = "killed_and_run_again";
    let Some(machine) = tools(test, &["skopeo"]).then(|| machine(test, "small")).flatten() else {
        return;
    };
    let (took, digest) = undisturbed(machine);
    let run = Run::new(machine);
    for part in [0.05, 0.3, 0.5, 0.7, 0.85, 0.95] {
        let mut child = run.start("oci");
        std::thread::sleep(took.mul_f64(part));
        child.kill().unwrap();
        let _ = wait(child, Duration::from_secs(2));
        // Whatever has the final name is the whole image.
        let image = run.work.path("out/image");
        if image.exists() {
            assert_eq!(
                manifest_digest(&run.work.output("oci", "image")),
                digest,
                "after {part}"
            );
            std::fs::remove_dir_all(image).unwrap();
        }
    }
    ended(&mut run.command("oci")).expect(0);
    assert_eq!(manifest_digest(&run.work.output("oci", "image")), digest);
    assert_eq!(run.work.names("out"), ["image"], "leftovers of the killed runs");
    assert!(run.work.names("tmp").is_empty(), "{:?}", run.work.names("tmp"));
}
