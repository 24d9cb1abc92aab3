//! A real machine that runs: the demo server's disk, started by qemu, reached over ssh.

use super::{Machine, machine};
use crate::support::{self, run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The machine, running. Dropping it ends qemu.
struct Booted {
    qemu: Child,
    dir: tempfile::TempDir,
    /// What the running machine writes; the disk of the fixture stays as it is.
    disk: PathBuf,
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// How long emulation may take to start the machine, however busy this one is.
const START: Duration = Duration::from_secs(420);

impl Booted {
    fn start(machine: &Machine) -> Self {
        let dir = support::scratch(2 << 30);
        let file = |name: &str| dir.path().join(name);
        let disk = file("disk.qcow2");
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(machine.qcow2())
            .arg(&disk));
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(file("key")));
        let encoded = run(Command::new("base64").arg("-w0").arg(file("key.pub"))).stdout;
        let encoded = String::from_utf8(encoded).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // systemd takes the key from the firmware's tables (systemd.system-credentials(7)): the disk needs no change.
        let credential = format!(
            "type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root={}",
            encoded.trim()
        );
        let console = std::fs::File::create(file("console")).unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "1024",
            ])
            .args([
                "-display",
                "none",
                "-serial",
                "stdio",
                "-monitor",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(machine.dir.join("vmlinuz"))
            .arg("-initrd")
            .arg(machine.dir.join("initrd.img"))
            .args([
                "-append",
                "root=/dev/vda1 console=ttyS0 quiet",
                "-smbios",
                &credential,
            ])
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=qcow2", disk.display()))
            .args(["-device", "virtio-rng-pci"])
            .arg("-netdev")
            .arg(format!("user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"))
            .args(["-device", "virtio-net-pci,netdev=n"])
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        let config = format!(
            "Host machine\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {key}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {known}\n  StrictHostKeyChecking accept-new\n  ConnectTimeout 60\n",
            key = file("key").display(),
            known = file("known_hosts").display(),
        );
        std::fs::write(file("config"), config).unwrap();
        let mut booted = Self { qemu, dir, disk };
        booted.wait();
        booted
    }

    fn wait(&mut self) {
        let begin = Instant::now();
        loop {
            let tried = self.ssh("systemctl is-system-running --wait || true; systemctl is-active nginx app");
            if tried.status.success() {
                return;
            }
            if let Some(status) = self.qemu.try_wait().unwrap() {
                panic!("qemu ended with {status}: {}", self.console());
            }
            assert!(
                begin.elapsed() < START,
                "the machine did not start: {}",
                self.console()
            );
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn console(&self) -> String {
        let text = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .chars()
            .rev()
            .take(2000)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect()
    }

    /// The judge's own way in.
    fn ssh(&self, command: &str) -> Output {
        Command::new("ssh")
            .arg("-F")
            .arg(self.dir.path().join("config"))
            .args(["machine", command])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn says(&self, command: &str) -> String {
        let output = self.ssh(command);
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Every path that the machine has, but for what its kernel makes up.
    fn paths(&self) -> BTreeSet<String> {
        let find = "find / \\( -path /proc -o -path /sys -o -path /dev/pts \\) -prune -o -print | sort";
        self.says(find).lines().map(str::to_owned).collect()
    }

    fn vm2k(&self) -> Command {
        let mut command = support::vm2k();
        command
            .arg("--store")
            .arg(self.dir.path().join("store"))
            .arg("--ssh-config")
            .arg(self.dir.path().join("config"));
        command
    }

    /// Shuts the machine down in order, and gives its disk.
    fn shut_down(&mut self) -> PathBuf {
        self.ssh("systemctl poweroff");
        let begin = Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(
                begin.elapsed() < START,
                "the machine did not stop: {}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        self.disk.clone()
    }
}

/// What changes on this machine because it runs, or because somebody logs in, and why.
const MOVES: &[(&str, &str)] = &[
    ("/run", "a tmpfs, made anew at each start"),
    ("/tmp", "temporary files; systemd makes private ones for services"),
    (
        "/var/tmp",
        "temporary files; systemd makes private ones for services",
    ),
    ("/var/log", "logs are written all the time"),
    ("/dev", "a devtmpfs"),
    ("/proc", "the kernel's own mount hides the directory"),
    ("/sys", "the kernel's own mount hides the directory"),
    ("/var/lib/systemd", "clock, seeds and timers of systemd"),
    ("/var/lib/private", "state of dynamic users"),
    ("/var/lib/nginx", "temporary bodies of requests"),
    ("/var/lib/app", "state of the application"),
    ("/var/lib/logrotate", "logrotate's timer"),
    ("/var/lib/dpkg", "dpkg-db-backup's timer"),
    ("/var/backups", "dpkg-db-backup's timer"),
    ("/var/lib/apt", "apt-daily's timer"),
    ("/var/cache", "caches: man-db, apt"),
    (
        "/root/.ssh",
        "the test's key, which systemd put there at the start",
    ),
    ("/etc/resolv.conf", "written by whoever configures the network"),
    ("/etc/machine-id", "the identity that the first start gave to it"),
    ("/etc/.updated", "systemd marks the first start"),
    ("/var/.updated", "systemd marks the first start"),
    ("/etc/ssh", "host keys"),
    ("/etc/adjtime", "the clock, at the shutdown"),
    ("/forcefsck", "gone after the first start"),
];

fn explained(path: &str) -> bool {
    MOVES.iter().any(|(place, _)| {
        path.strip_prefix(place)
            .is_some_and(|r| r.is_empty() || r.starts_with('/'))
    }) || path.contains("/__pycache__")
}

/// Scan and conversion of the machine while it runs, and of its disk after it was shut down.
#[test]
fn a_machine_that_runs_is_scanned_and_converted() {
    const TEST: &str = "booted::a_machine_that_runs_is_scanned_and_converted";
    if !support::tools(TEST, &["qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen"]) {
        return;
    }
    let Some(machine) = machine(TEST, "full") else {
        return;
    };
    let mut booted = Booted::start(machine);
    let before = booted.paths();

    // ---- scan
    let begin = Instant::now();
    let scan = run(booted.vm2k().args(["scan", "machine", "--json"]));
    eprintln!(
        "scan of the running machine: {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    let scan: Value = serde_json::from_slice(&scan.stdout).unwrap();
    assert_eq!(scan["os"]["id"], "debian");
    assert_eq!(scan["os"]["version_id"], "12");
    assert_eq!(scan["hostname"].as_str(), Some(booted.says("hostname").trim()));
    let packages = booted.says("dpkg-query -W -f '${db:Status-Status} ${Package}\\n' | grep -c ^installed");
    assert_eq!(
        scan["packages"].as_array().unwrap().len().to_string(),
        packages.trim()
    );
    assert!(!scan["roots"].as_array().unwrap().is_empty());
    let ports = scan["ports"].as_array().unwrap();
    let port = |number: u16| {
        ports
            .iter()
            .find(|p| p["port"] == number)
            .unwrap_or_else(|| panic!("no port {number}: {ports:?}"))
    };
    assert_eq!(port(8080)["service"], "nginx");
    assert_eq!(port(22)["service"], "ssh");
    assert_eq!(port(8000)["service"], "app");
    // ss(8) is the judge of all ports.
    let judged = booted.says("ss -Hlntu | awk '{ n = split($5, a, \":\"); print $1, a[n] }' | sort -u");
    let ours: BTreeSet<String> = ports
        .iter()
        .map(|p| format!("{} {}", p["protocol"].as_str().unwrap(), p["port"]))
        .collect();
    assert_eq!(ours, judged.lines().map(str::to_owned).collect::<BTreeSet<_>>());
    let services = scan["services"].as_array().unwrap();
    let app = services
        .iter()
        .find(|s| s["name"] == "app")
        .expect("the application's unit");
    assert_eq!(app["user"], "app");
    let names: Vec<&str> = app["environment"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        names.contains(&"GREETING") && names.contains(&"PORT"),
        "{names:?}"
    );
    let processes = scan["live"]["processes"].as_array().unwrap();
    let process = processes
        .iter()
        .find(|p| p["unit"] == "app.service")
        .expect("the application's process");
    assert_eq!(process["cwd"], "/srv/app");
    assert_eq!(process["uid"], 900);
    let environment = process["environment"].as_object().unwrap();
    assert!(
        environment.contains_key("GREETING") && environment.values().all(Value::is_null),
        "names, no values"
    );
    assert_eq!(
        scan["live"]["kernel"]["release"].as_str(),
        Some(booted.says("uname -r").trim())
    );

    // ---- nothing is left behind
    let left = |after: &BTreeSet<String>| -> Vec<String> {
        let new = after
            .difference(&before)
            .filter(|p| !explained(p) || p.contains("vm2k"));
        new.cloned().collect()
    };
    let after = booted.paths();
    assert_eq!(left(&after), Vec::<String>::new());
    let in_tmp = |paths: &BTreeSet<String>| -> Vec<String> {
        let temporary = ["/tmp/", "/var/tmp/", "/dev/shm/", "/root/"];
        paths
            .iter()
            .filter(|p| temporary.iter().any(|t| p.starts_with(t)))
            .cloned()
            .collect()
    };
    assert_eq!(in_tmp(&after), in_tmp(&before));
    assert!(!booted.says("ps -e -o args").contains("vm2k"));

    // ---- the image of the running machine, and of its disk
    let base = machine.base();
    let live = booted.dir.path().join("live");
    let begin = Instant::now();
    let output = booted
        .vm2k()
        .args(["convert", "ssh://machine", "--base", &base, "-o"])
        .arg(format!("oci:{}:live", live.display()))
        .output()
        .unwrap();
    eprintln!(
        "conversion of the running machine: {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    let code = output.status.code();
    assert!(
        matches!(code, Some(0 | 3)),
        "{code:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(left(&booted.paths()), Vec::<String>::new());

    let disk = booted.shut_down();
    let still = booted.dir.path().join("still");
    run(support::vm2k()
        .arg("--store")
        .arg(booted.dir.path().join("store"))
        .arg("--allow-backing")
        .arg(&machine.dir)
        .arg("convert")
        .arg(&disk)
        .args(["--base", &base, "-o"])
        .arg(format!("oci:{}:still", still.display())));
    let diff = support::vm2k()
        .arg("diff")
        .arg(format!("oci:{}:live", live.display()))
        .arg(format!("oci:{}:still", still.display()))
        .arg("--json")
        .output()
        .unwrap();
    assert!(
        matches!(diff.status.code(), Some(0 | 3)),
        "{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
    let changes = diff["changes"].as_array().expect("the changes");
    let unexplained: Vec<&Value> = changes
        .iter()
        .filter(|c| !explained(c["path"].as_str().unwrap()))
        .collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    eprintln!(
        "{} paths differ between the running machine and its disk, each explained",
        changes.len()
    );
}
