//! Live hosts, through `--rsh` and a local shell: the same program is sent, started and spoken with as over ssh.

use crate::kernel;
use crate::support::{bash, root, run, tools, vm2k};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use vm2k::agent::wire::{self, Hello};
use vm2k::error::Result;
use vm2k::path::GuestPath;
use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::directory::Directory;
use vm2k::source::host::{Host, Options, Sudo};
use vm2k::ssh::rsh::Rsh;
use vm2k::store::Store;

/// What is sent: the program's own agent, or, in a build without one, the program itself, made small once.
fn agent() -> Option<&'static Path> {
    static AGENT: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let made = AGENT.get_or_init(|| {
        if vm2k::agent::binary().is_some() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        bash(
            "strip -o \"$1/agent\" \"$2\" || cp \"$2\" \"$1/agent\"; gzip -1 \"$1/agent\"",
            &[dir.path(), Path::new(env!("CARGO_BIN_EXE_vm2k"))],
        );
        let path = dir.path().join("agent.gz");
        Some((dir, path))
    });
    made.as_ref().map(|(_, path)| path.as_path())
}

/// A place for one test: a machine, a store, and the host's directory for temporary files.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["machine", "store", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn machine(&self) -> PathBuf {
        self.path("machine")
    }

    /// A program for `--rsh`: runs `script` with the command as `$1`.
    fn rsh(&self, script: &str) -> PathBuf {
        let path = self.path("rsh");
        let run = self.path("run").display().to_string();
        std::fs::write(
            &path,
            format!("#!/bin/bash\nshift\nexport XDG_RUNTIME_DIR={run}\n{script}\n"),
        )
        .unwrap();
        bash("chmod 755 \"$1\"", &[&path]);
        path
    }

    fn transport(&self, script: &str) -> Rsh {
        let rsh = self.rsh(script).display().to_string();
        Rsh::with_words(vec![rsh, "here".into()], "here".into()).idle(Duration::from_secs(20))
    }

    fn options(&self) -> Options {
        Options {
            root: GuestPath::new(self.machine().as_os_str().as_encoded_bytes()).unwrap(),
            agent: agent().map(Path::to_owned),
            ..Options::default()
        }
    }

    fn open(&self, script: &str) -> Result<Host> {
        let store = Store::open(&self.path("store")).unwrap();
        Host::open(Arc::new(self.transport(script)), &self.options(), &store, &Silent)
    }

    /// The program with a subcommand.
    fn vm2k(&self, script: &str, words: &[&str]) -> Output {
        let mut command = vm2k();
        command
            .args(words)
            .env("VM2K_STORE", self.path("store"))
            .env("VM2K_RSH", self.rsh(script));
        if let Some(agent) = agent() {
            command.env("VM2K_AGENT", agent);
        }
        command.output().unwrap()
    }

    fn target(&self) -> String {
        format!("ssh://here{}", self.machine().display())
    }

    /// What is left of the agent on the host.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("run")).unwrap();
        entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// A small machine with an operating system.
    fn system(&self) {
        bash(
            r#"cd "$1"; mkdir -p etc usr/bin srv/data; printf 'ID=debian\nVERSION_ID=12\n' >etc/os-release
echo web >etc/hostname; echo 'root:x:0:0::/root:/bin/sh' >etc/passwd; echo 'root:!:1::::::' >etc/shadow
cp /bin/true usr/bin/true; for i in $(seq 200); do echo "file $i" >srv/data/$i; done
ln srv/data/1 srv/data/hard; ln -s data/1 srv/link; touch -d '2020-01-01 00:00:00.5' etc/passwd
find . -exec touch -h -d '2024-05-06 07:08:09' {} +"#,
            &[&self.machine()],
        );
    }
}

const HERE: &str = "exec sh -c \"$1\"";

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_tree_with_everything_is_what_the_kernel_shows() {
    let test = "a_tree_with_everything_is_what_the_kernel_shows";
    if !root(test) || !tools(test, &["setfacl", "setcap", "setfattr", "mkfifo", "python3"]) {
        return;
    }
    let place = Place::new();
    bash(
        r#"cd "$1"; umask 0
echo a >file; ln file hard; ln -s file link; ln -s /etc/passwd outside; ln -s "$(printf 'x%.0s' $(seq 3000))" long
mkdir -p dir/sub/deep; chmod 7123 dir; chown 12345:54321 dir; chmod 4755 file; mkfifo fifo
mknod block b 259 1048575; mknod char c 4095 255
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
touch -d '1901-12-14 01:02:03.123456789' old; touch -d '2150-01-01 00:00:00.999999999' future
touch -h -d '2001-02-03 04:05:06.7' link
printf x >"$(printf 'bad\xff\n\tname')"; : >empty
truncate -s 10M sparse; printf data | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
truncate -s 3M hole; head -c 3000000 /dev/urandom >noise; seq 1000000 >numbers
setfattr -n user.one -v 1 file; setfattr -n user.big -v "$(printf 'v%.0s' $(seq 2000))" dir; setfattr -n user.empty file
setfattr -h -n trusted.link -v x link; setfacl -m u:77:rw,g:88:r file; setfacl -d -m u:77:rwx dir; setcap cap_net_raw+ep empty
for i in $(seq 3000); do echo $i >dir/sub/$i; done
"#,
        &[&place.machine()],
    );
    let host = place.open(HERE).unwrap();
    assert_eq!(host.problems(), []);
    let seen = kernel::tree_of(&place.machine());
    kernel::assert_equal("a host", &kernel::ours(host.tree(), &|id| host.open(id)), &seen);
    let here = Directory::open(&place.machine()).unwrap();
    assert_eq!(host.tree(), here.tree());
    let id = |path: &str| host.tree().find(path).unwrap().1.id;
    let sparse = host.open(id("/sparse")).unwrap();
    assert!(sparse.extent_at(0).unwrap().hole && !sparse.extent_at(5_000_000).unwrap().hole);
    let hole = host.open(id("/hole")).unwrap();
    assert_eq!(hole.extent_at(0).unwrap().len, 3 << 20);
    // Hashes come from the host; what was read is not asked for again.
    let ids: Vec<_> = host
        .tree()
        .iter()
        .filter(|(_, n)| n.size() > 0)
        .map(|(_, n)| n.id)
        .collect();
    let before = host.traffic().unwrap().received;
    let hashes = host.hashes(&ids).unwrap();
    assert!(host.traffic().unwrap().received - before < 100);
    for (id, hash) in hashes {
        let content = vm2k::diff::hash_content(&*here.open(id).unwrap(), &Silent).unwrap();
        assert_eq!(hash.unwrap(), content);
    }
    assert_eq!(host.filesystems().len(), 1);
    assert_eq!(place.left(), Vec::<String>::new());
    // Of a part of a host its processes tell nothing.
    assert_eq!(host.live(Vec::new()).unwrap(), None);
    host.finished();
}

#[test]
fn a_second_conversion_sends_what_changed() {
    let test = "a_second_conversion_sends_what_changed";
    if !tools(test, &["python3", "tar"]) {
        return;
    }
    let place = Place::new();
    place.system();
    let machine = place.machine();
    bash("head -c 104857600 /dev/urandom >\"$1/srv/large\"", &[&machine]);
    let counted = "tee -a \"$(dirname \"$0\")/sent\" | sh -c \"$1\" | tee -a \"$(dirname \"$0\")/received\"";
    let wire = |name: &str| {
        let path = place.path(name);
        let len = path.metadata().map_or(0, |m| m.len());
        let _ = std::fs::remove_file(path);
        len
    };
    let target = place.target();
    let image = format!("oci:{}", place.path("image").display());
    let words = ["convert", &target, "--base", "none", "-o", &image, "--json"];
    let first = place.vm2k(counted, &words);
    assert!(first.status.success(), "{}", text(&first));
    let (sent, received) = (wire("sent"), wire("received"));
    assert!(received > 100 << 20, "{received}");
    let report: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    // The report counts what the wire carried, but for the lines in front of the protocol.
    let close = |said: &serde_json::Value, seen: u64| said.as_u64().unwrap().abs_diff(seen) < 2000;
    assert!(close(&report["traffic"]["received"], received) && close(&report["traffic"]["sent"], sent));
    let verified = place.vm2k(HERE, &["verify", &target, &image]);
    assert!(verified.status.success(), "{}", text(&verified));
    let _ = (wire("sent"), wire("received"));
    bash(
        r#"cd "$1"; head -c 1048576 /dev/urandom | dd of=srv/large bs=1M seek=50 conv=notrunc status=none
echo one >srv/new-1; echo two >srv/new-2"#,
        &[&machine],
    );
    let second = place.vm2k(counted, &words);
    assert!(second.status.success(), "{}", text(&second));
    let report: serde_json::Value = serde_json::from_slice(&second.stdout).unwrap();
    assert_eq!(report["traffic"]["deltas"], 1);
    let (sent, received) = (wire("sent"), wire("received"));
    // It travels gzip'ed, as the program does it.
    let agent = agent().map_or_else(
        || {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut packed, vm2k::agent::binary().unwrap()).unwrap();
            packed.finish().unwrap().len() as u64
        },
        |a| a.metadata().unwrap().len(),
    );
    let all = received + sent - agent.min(sent);
    eprintln!("second conversion: {received} received, {sent} sent, the agent {agent}");
    assert!(all < 2_000_000, "{all} bytes besides the agent of {agent}");
    let verified = place.vm2k(HERE, &["verify", &format!("dir:{}", machine.display()), &image]);
    assert!(verified.status.success(), "{}", text(&verified));
    // A third one of the same machine sends nothing but the list.
    let third = place.vm2k(counted, &words);
    let report: serde_json::Value = serde_json::from_slice(&third.stdout).unwrap();
    assert_eq!(report["traffic"]["read"], 0);
    assert!(wire("received") < 20_000);
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn a_cut_connection_ends_well_and_goes_on_where_it_was() {
    if !tools(
        "a_cut_connection_ends_well_and_goes_on_where_it_was",
        &["python3"],
    ) {
        return;
    }
    let place = Place::new();
    place.system();
    bash(
        "head -c 6000000 /dev/urandom >\"$1/srv/large\"; head -c 3000000 /dev/urandom >\"$1/srv/second\"",
        &[&place.machine()],
    );
    let target = place.target();
    let image = format!("oci:{}", place.path("image").display());
    let words = ["convert", &target, "--base", "none", "-o", &image, "--json"];
    // It travels gzip'ed, as the program does it.
    let agent = agent().map_or_else(
        || {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut packed, vm2k::agent::binary().unwrap()).unwrap();
            packed.finish().unwrap().len() as u64
        },
        |a| a.metadata().unwrap().len(),
    );
    let cuts: u64 = std::env::var("VM2K_TEST_CUTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(6);
    let mut state = 12345u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    // Not head(1), which gathers what it writes. The command's own end is not waited for, as that of a connection is not.
    let passes = r#"
import os, subprocess, sys
way, n, command = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pipe = subprocess.PIPE
child = subprocess.Popen(["sh", "-c", command], **({"stdout": pipe} if way == "received" else {"stdin": pipe}))
a, b = (child.stdout.fileno(), 1) if way == "received" else (0, child.stdin.fileno())
while n:
    bytes = os.read(a, min(n, 65536))
    if not bytes: break
    while bytes: bytes, n = bytes[(m := os.write(b, bytes)):], n - m
os._exit(0)
"#;
    std::fs::write(place.path("pass"), passes).unwrap();
    let pass = |way: &str, n: u64| format!("exec python3 {} {way} {n} \"$1\"", place.path("pass").display());
    let cut = |script: &str, what: &str| {
        let ended = place.vm2k(script, &words);
        let said = text(&ended);
        assert_eq!(ended.status.code(), Some(7), "{what}: {said}");
        assert!(said.contains("hint: "), "{what}: {said}");
        assert!(!place.path("image").join("index.json").exists());
    };
    let forget = || bash("rm -rf \"$1/contents\"", &[&place.path("store")]);
    for _ in 0..cuts {
        let n = random(6_000_000);
        cut(&pass("received", n), &format!("{n} bytes received"));
        forget();
        let n = random(agent + 500);
        cut(&pass("sent", n), &format!("{n} bytes sent"));
    }
    // The files are removed by processes that notice the end a moment later.
    for _ in 0..50 {
        if place.left().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(place.left(), Vec::<String>::new());
    forget();
    cut(&pass("received", 5_000_000), "5000000 bytes received");
    let whole = place.vm2k(HERE, &words);
    assert!(whole.status.success(), "{}", text(&whole));
    let report: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    let received = report["traffic"]["received"].as_u64().unwrap();
    assert!(
        received < 5_500_000,
        "{received} bytes, of which 4,900,000 were there"
    );
    let verified = place.vm2k(
        HERE,
        &["verify", &format!("dir:{}", place.machine().display()), &image],
    );
    assert!(verified.status.success(), "{}", text(&verified));
}

#[test]
fn a_host_in_motion_gives_a_valid_image() {
    let test = "a_host_in_motion_gives_a_valid_image";
    if !tools(test, &["python3", "tar"]) {
        return;
    }
    let runs: u32 = std::env::var("VM2K_TEST_RUNS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2);
    for n in 0..runs {
        let place = Place::new();
        place.system();
        bash(
            "head -c 20000000 /dev/urandom >\"$1/srv/busy\"",
            &[&place.machine()],
        );
        let mut writer = Command::new("python3")
            .args([
                "-c",
                r#"
import os, random, sys, itertools
os.chdir(sys.argv[1])
busy = open("srv/busy", "r+b", buffering=0)
for i in itertools.count():
    n = random.randrange(1, 200)
    kind = i % 5
    if kind == 0: open(f"srv/data/{n}", "ab").write(b"more")
    elif kind == 1: open(f"srv/data/{n}", "wb").write(os.urandom(random.randrange(5000)))
    elif kind == 2:
        open("srv/data/.new", "wb").write(b"replaced"); os.rename("srv/data/.new", f"srv/data/{n}")
    elif kind == 3:
        try: os.remove(f"srv/data/{n}")
        except FileNotFoundError: pass
    busy.seek(random.randrange(20000000 - 10)); busy.write(b"0123456789")
"#,
            ])
            .arg(place.machine())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let target = place.target();
        let image = format!("oci:{}", place.path("image").display());
        let done = place.vm2k(
            HERE,
            &[
                "convert",
                &target,
                "--base",
                "none",
                "-o",
                &image,
                "--json",
                "--compress",
                "none",
            ],
        );
        let alive = writer.try_wait().unwrap().is_none();
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(alive, "the writer ended");
        assert_eq!(done.status.code(), Some(3), "run {n}: {}", text(&done));
        let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let torn: Vec<&str> = report["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["path"].as_str().unwrap())
            .collect();
        assert!(torn.contains(&"/srv/busy"), "{torn:?}");
        assert!(report["traffic"]["torn"].as_u64().unwrap() >= 1);
        // Judges: tar reads each layer to its end, and the image's files are listed with their sizes.
        bash(
            "for blob in \"$1\"/blobs/sha256/*; do if ! head -c 1 \"$blob\" | grep -q '{'; then tar -tvf \"$blob\" >/dev/null; fi; done",
            &[&place.path("image")],
        );
        let listed = run(vm2k().args(["ls", &image]).env("VM2K_STORE", place.path("store")));
        assert!(String::from_utf8_lossy(&listed.stdout).contains("20000000"));
        // What it holds of a file that nobody touched is right.
        let passwd = run(vm2k()
            .args(["cat", &image, "/etc/passwd"])
            .env("VM2K_STORE", place.path("store")));
        assert_eq!(
            passwd.stdout,
            std::fs::read(place.machine().join("etc/passwd")).unwrap()
        );
    }
}

#[test]
fn places_that_take_no_program_are_passed_over() {
    let test = "places_that_take_no_program_are_passed_over";
    if !root(test) || !tools(test, &["unshare"]) {
        return;
    }
    let place = Place::new();
    place.system();
    let in_namespace =
        |mounts: &str| format!("exec unshare -m sh -ec '{mounts} exec sh -c \"$1\"' sh \"$1\"");
    let noexec = "mount -t tmpfs -o noexec x $XDG_RUNTIME_DIR;";
    let full = "mount -t tmpfs -o size=64k x $XDG_RUNTIME_DIR;";
    for mounts in [noexec, full] {
        let host = place
            .open(&in_namespace(mounts))
            .unwrap_or_else(|e| panic!("{mounts}: {e}"));
        assert!(host.tree().find("/etc/passwd").is_some());
    }
    // The machine lies below one of them.
    let mut everywhere =
        String::from("mkdir -p /tmp; export HOME=/run; m=$(mktemp -d /mnt/x.XXXX); trap \"rmdir $m\" EXIT;");
    everywhere = everywhere.replace("m=$(mktemp -d /mnt/x.XXXX); trap \"rmdir $m\" EXIT;", "");
    for dir in ["$XDG_RUNTIME_DIR", "/run", "/dev/shm", "/var/tmp", "/tmp"] {
        everywhere.push_str(&format!("mount -t tmpfs -o noexec x {dir} || true;"));
    }
    // Then without an agent.
    let store = Store::open(&place.path("store")).unwrap();
    let options = Options {
        root: GuestPath::new(b"/etc").unwrap(),
        ..place.options()
    };
    let transport = Arc::new(place.transport(&in_namespace(&everywhere)));
    let host = Host::open(transport, &options, &store, &Silent).unwrap();
    assert!(
        host.problems()
            .iter()
            .any(|p| p.what.contains("without an agent"))
    );
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn without_an_agent_all_but_attributes_is_there() {
    let test = "without_an_agent_all_but_attributes_is_there";
    if !root(test) || !tools(test, &["find", "tar", "gzip", "stat", "mkfifo", "setfattr"]) {
        return;
    }
    let place = Place::new();
    place.system();
    bash(
        r#"cd "$1"; mkfifo fifo; mknod block b 259 1048575; printf x >"$(printf 'bad\xff\n\tname')"; : >empty
touch -d '1901-12-14 01:02:03.123456789' old; echo a >-file; truncate -s 3M hole; setfattr -n user.one -v 1 old
ln -s "$(printf 'x%.0s' $(seq 3000))" long; mkdir -p "$(printf 'y%.0s' $(seq 200))/$(printf 'z%.0s' $(seq 200))"
echo deep >"$(printf 'y%.0s' $(seq 200))/$(printf 'z%.0s' $(seq 200))/deep""#,
        &[&place.machine()],
    );
    let options = Options {
        agentless: true,
        ..place.options()
    };
    let store = Store::open(&place.path("store")).unwrap();
    let host = Host::open(Arc::new(place.transport(HERE)), &options, &store, &Silent).unwrap();
    let here = Directory::open(&place.machine()).unwrap();
    let mut expected = here.tree().clone();
    expected.for_each_mut(|_, node| node.xattrs.clear());
    assert_eq!(*host.tree(), expected);
    let all: Vec<_> = host
        .tree()
        .iter()
        .filter(|(_, n)| n.is_file())
        .map(|(_, n)| n.id)
        .collect();
    host.prefetch(&all);
    for id in all {
        let read =
            |source: &dyn Source| vm2k::read_at::read_all(&*source.open(id).unwrap(), 8 << 20).unwrap();
        assert!(read(&host) == read(&here));
    }
    let target = place.target();
    let image = format!("oci:{}", place.path("image").display());
    let words = [
        "convert",
        &target,
        "--agentless",
        "--base",
        "none",
        "-o",
        &image,
        "--json",
    ];
    let done = place.vm2k(HERE, &words);
    // What cannot be had is said.
    assert_eq!(done.status.code(), Some(3), "{}", text(&done));
    assert!(text(&done).contains("extended attributes"), "{}", text(&done));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["traffic"]["read"], 0, "all was kept");
    bash("rm \"$1/old\"", &[&place.machine()]);
    let done = place.vm2k(HERE, &words);
    assert_eq!(done.status.code(), Some(3), "{}", text(&done));
    let verified = place.vm2k(
        HERE,
        &["verify", &format!("dir:{}", place.machine().display()), &image],
    );
    assert!(verified.status.success(), "{}", text(&verified));
}

/// The same through ssh(1) and a real sshd.
#[test]
fn through_ssh() {
    let test = "through_ssh";
    if !root(test) || !tools(test, &["ssh", "sshd", "ssh-keygen"]) {
        return;
    }
    let place = Place::new();
    place.system();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    bash(
        r#"cd "$1"; ssh-keygen -q -t ed25519 -N '' -f hostkey; ssh-keygen -q -t ed25519 -N '' -f key; cp key.pub authorized
cat >sshd_config <<END
Port $2
ListenAddress 127.0.0.1
HostKey $1/hostkey
AuthorizedKeysFile $1/authorized
PidFile $1/pid
UsePAM no
StrictModes no
PermitRootLogin yes
END
cat >config <<END
Host web
HostName 127.0.0.1
Port $2
User root
IdentityFile $1/key
IdentitiesOnly yes
UserKnownHostsFile $1/known
StrictHostKeyChecking accept-new
END
mkdir -p /run/sshd; $(command -v sshd || echo /usr/sbin/sshd) -f "$1/sshd_config""#,
        &[place.dir.path(), Path::new(&port.to_string())],
    );
    let config = place.path("config").display().to_string();
    let mut command = vm2k();
    command
        .args([
            "convert",
            &format!("ssh://web{}", place.machine().display()),
            "--base",
            "none",
        ])
        .args(["-o", &format!("oci:{}", place.path("image").display())])
        .args(["--rsh", &format!("ssh -F {config}")])
        .env("VM2K_STORE", place.path("store"));
    if let Some(agent) = agent() {
        command.env("VM2K_AGENT", agent);
    }
    let done = command.output().unwrap();
    bash("kill $(cat \"$1/pid\")", &[place.dir.path()]);
    assert!(done.status.success(), "{}", text(&done));
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(7), "{}", text(&refused));
    assert!(text(&refused).contains("refused"), "{}", text(&refused));
}

#[test]
fn a_user_without_rights_reads_what_he_may() {
    let test = "a_user_without_rights_reads_what_he_may";
    if !root(test) || !tools(test, &["setpriv"]) {
        return;
    }
    let place = Place::new();
    place.system();
    bash(
        "chmod 755 \"$1\" \"$1/machine\"; chmod 777 \"$1/run\"; chmod 600 \"$1/machine/etc/shadow\"; chmod 644 \"$1/machine/etc/passwd\"",
        &[place.dir.path()],
    );
    let user = "exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \"$1\"";
    let target = place.target();
    let image = format!("oci:{}", place.path("image").display());
    let done = place.vm2k(user, &["convert", &target, "--base", "none", "-o", &image]);
    let said = text(&done);
    // The file that holds passwords is read to leave them out.
    assert!(said.contains("not as root"), "{said}");
    assert!(said.contains("/etc/shadow"), "{said}");
    let store = Store::open(&place.path("store")).unwrap();
    let options = Options {
        sudo: Sudo::Demand,
        ..place.options()
    };
    let e = Host::open(Arc::new(place.transport(user)), &options, &store, &Silent)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(e.code(), vm2k::error::code::REFUSED, "{e}");
    let host = place.open(user).unwrap();
    let id = |path: &str| host.tree().find(path).unwrap().1.id;
    assert!(host.open(id("/etc/shadow")).is_err());
    assert!(host.open(id("/etc/passwd")).is_ok());
    assert_eq!(place.left(), Vec::<String>::new());
}

/// What a host sends, as frames.
fn recorded(place: &Place) -> Vec<(u8, Vec<u8>)> {
    let taped = "sh -c \"$1\" | tee \"$(dirname \"$0\")/tape\"";
    let host = place.open(taped).unwrap();
    let ids: Vec<_> = host
        .tree()
        .iter()
        .filter(|(_, n)| n.size() > 0)
        .map(|(_, n)| n.id)
        .collect();
    host.prefetch(&ids);
    for id in ids {
        host.open(id).unwrap();
    }
    host.finished();
    drop(host);
    let tape = std::fs::read(place.path("tape")).unwrap();
    let go = b"vm2k: go\n";
    let at = tape.windows(go.len()).position(|w| w == go).unwrap() + go.len();
    let mut from = &tape[at..];
    let mut frames = Vec::new();
    let mut buf = Vec::new();
    while let Some(kind) = wire::read_frame(&mut from, &mut buf).unwrap() {
        frames.push((kind, buf.clone()));
    }
    frames
}

#[test]
fn a_hostile_agent_does_no_harm() {
    let place = Place::new();
    place.system();
    let frames = recorded(&place);
    assert!(frames.len() >= 4);
    let count: u64 = std::env::var("VM2K_TEST_MUTANTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(40);
    let mut state = 99u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let hostile = "cd \"$(dirname \"$0\")\"; cat lies; sleep 0.1; cat more; sleep 0.1";
    for n in 0..count {
        let mut lies = b"greetings\nvm2k: go\n".to_vec();
        let mut more = Vec::new();
        let which = random(frames.len());
        for (at, (kind, payload)) in frames.iter().enumerate() {
            let mut payload = payload.clone();
            if at == which {
                let packed = matches!(*kind, wire::kind::WALKED | wire::kind::DATA);
                let mut raw = if packed {
                    wire::unpack(&payload).unwrap()
                } else {
                    payload.clone()
                };
                for _ in 0..1 + random(4) {
                    let at = random(raw.len());
                    match random(3) {
                        0 => raw.truncate(at),
                        _ => {
                            if let Some(byte) = raw.get_mut(at) {
                                *byte = [0, 1, 0x7f, 0x80, 0xff, b'/', b'.'][random(7)];
                            }
                        }
                    }
                }
                payload = if packed { wire::pack(&raw, 1) } else { raw };
            }
            // Contents come after they were asked for.
            match *kind {
                wire::kind::DATA | wire::kind::BYE => more.extend(wire::frame(*kind, &payload)),
                _ => lies.extend(wire::frame(*kind, &payload)),
            }
        }
        std::fs::write(place.path("lies"), lies).unwrap();
        std::fs::write(place.path("more"), more).unwrap();
        let _ = std::fs::remove_dir_all(place.path("store"));
        std::fs::create_dir(place.path("store")).unwrap();
        let began = std::time::Instant::now();
        if let Ok(host) = place.open(hostile) {
            let files = host.tree().iter().filter(|(_, n)| n.size() > 0);
            host.prefetch(&files.map(|(_, n)| n.id).collect::<Vec<_>>());
            for (_, node) in host
                .tree()
                .iter()
                .filter(|(_, n)| n.size() > 0 && n.size() < 1 << 20)
                .take(50)
            {
                if let Ok(content) = host.open(node.id) {
                    let _ = vm2k::read_at::read_all(&*content, 1 << 20);
                }
            }
        }
        assert!(began.elapsed() < Duration::from_secs(5), "mutant {n}");
    }
    // An agent that says goodbye although it was asked for more.
    let mut lies = b"vm2k: go\n".to_vec();
    for (kind, payload) in frames.iter().filter(|(kind, _)| *kind < wire::kind::DATA) {
        lies.extend(wire::frame(*kind, payload));
    }
    std::fs::write(place.path("lies"), lies).unwrap();
    std::fs::write(place.path("more"), wire::frame(wire::kind::BYE, &[0, 0])).unwrap();
    let _ = std::fs::remove_dir_all(place.path("store"));
    let host = place.open(hostile).unwrap();
    let e = host
        .open(host.tree().find("/etc/passwd").unwrap().1.id)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(e.code(), vm2k::error::code::NETWORK, "{e}");
    // Another version says so.
    let mut hello = frames[0].1.clone();
    hello[8] ^= 0x55;
    std::fs::write(
        place.path("lies"),
        [b"vm2k: go\n".to_vec(), wire::frame(wire::kind::HELLO, &hello)].concat(),
    )
    .unwrap();
    let e = place.open(hostile).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("version"), "{e}");
    // A greeting without end, and a host that says nothing.
    assert!(place.open("cat /dev/zero").is_err());
    let e = place.open("echo no >&2; exit 5").map(|_| ()).unwrap_err();
    assert!(
        e.code() == vm2k::error::code::NETWORK && e.to_string().contains("no"),
        "{e}"
    );
    assert!(Hello::decode(b"").is_err());
}
