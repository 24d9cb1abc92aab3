//! End to end: the program as a process on real disks, judged by the tools that containers are made and run with.
//!
//! The disks come from `tests/machine.sh` and are made once (`VM2K_TEST_CACHE`, see tests/README.md). What several tests
//! look at, a converted and unpacked image, is made once for all.

mod bad_input;
mod booted;
mod disks;
mod dockerfile;
mod engines;
mod faults;
mod image;
mod plan;
mod rpm;
mod same;
mod strategy;
mod target;

use crate::support::{self, run};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The user that nobody is: the program needs no rights.
const NOBODY: u32 = 65534;

/// Where disks and shared results are.
fn cache() -> PathBuf {
    std::env::var_os("VM2K_TEST_CACHE").map_or_else(|| "/var/tmp/vm2k-machine".into(), PathBuf::from)
}

/// A file of this repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A directory that this process's tests share. Those of processes that are gone are removed.
fn shared_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        std::fs::create_dir_all(cache()).unwrap();
        for old in std::fs::read_dir(cache()).unwrap().flatten() {
            let name = old.file_name().into_string().unwrap_or_default();
            let gone = |pid: &str| !Path::new("/proc").join(pid).exists();
            if name.strip_prefix("run-").is_some_and(gone) {
                // Two processes may find the same one.
                let _ = std::fs::remove_dir_all(old.path());
            }
        }
        let dir = cache().join(format!("run-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        dir
    })
}

/// The program where nobody may run it, whatever the rights of the directory that it was built in.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let path = shared_dir().join("vm2k");
        std::fs::copy(env!("CARGO_BIN_EXE_vm2k"), &path).unwrap();
        path
    })
}

/// A directory of one test, in which nobody may write.
struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("test.")
            .tempdir_in(shared_dir())
            .unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let work = Self { dir };
        for sub in ["out", "store", "tmp"] {
            work.writable(sub);
        }
        work
    }
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }
    /// A subdirectory that is nobody's.
    fn writable(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        dir
    }
    /// Where images are written: `oci:OUT/name`.
    fn output(&self, transport: &str, name: &str) -> String {
        format!("{transport}:{}", self.path("out").join(name).display())
    }
    /// What is in a subdirectory, sorted.
    fn names(&self, sub: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(sub))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
    /// The program as nobody, without a capability, in an empty environment, with a store and a TMPDIR of its own.
    fn vm2k<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let mut command = self.as_nobody(&[]);
        command.arg(program()).args(arguments);
        command
    }
    /// As [`Self::vm2k`], through `wrapper`.
    fn wrapped<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, wrapper: &[&str], arguments: I) -> Command {
        let mut command = self.as_nobody(wrapper);
        command.arg(program()).args(arguments);
        command
    }
    fn as_nobody(&self, wrapper: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["--no-new-privs", "--bounding-set=-all"])
            .args(wrapper)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.path("tmp"))
            .env("TMPDIR", self.path("tmp"))
            .env("RUST_BACKTRACE", "1")
            .env("VM2K_STORE", self.path("store"))
            .current_dir(self.path("tmp"));
        command
    }
}

/// A machine that `tests/machine.sh` made.
#[derive(Debug)]
struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn qcow2(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }
    fn raw(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }
    fn base(&self) -> String {
        format!("oci:{}:bookworm", self.dir.join("base").display())
    }
    fn expected(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join("expected").join(name)).unwrap()
    }
    /// A line `name=value` of expected/facts.
    fn fact(&self, name: &str) -> String {
        let prefix = format!("{name}=");
        let facts = self.expected("facts");
        facts
            .lines()
            .find_map(|l| l.strip_prefix(&prefix))
            .unwrap()
            .to_owned()
    }
    /// Mounts the disk's filesystems where the machine has them.
    fn mount(&self) -> Mounted {
        let mut mounted = Mounted {
            dir: tempfile::tempdir().unwrap(),
            at: Vec::new(),
        };
        for line in self.expected("partitions").lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let at = mounted.dir.path().join(fields[0].trim_start_matches('/'));
            run(Command::new("mount")
                .arg("-o")
                .arg(format!(
                    "loop,ro,noatime,offset={},sizelimit={}",
                    fields[1], fields[2]
                ))
                .arg(self.raw())
                .arg(&at));
            mounted.at.push(at);
        }
        mounted
    }
}

/// Filesystems that are unmounted at the end.
struct Mounted {
    dir: tempfile::TempDir,
    at: Vec<PathBuf>,
}

impl Mounted {
    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for at in self.at.iter().rev() {
            // A test that failed may hold a file; then the unmount waits for it.
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

const MACHINE_TOOLS: &[&str] = &[
    "mmdebstrap",
    "sfdisk",
    "mke2fs",
    "qemu-img",
    "setfacl",
    "setcap",
    "setpriv",
    "python3",
];

/// The machine of `kind` (`small`, `full`), made if it is not there; `None` where it cannot be made.
fn machine(test: &str, kind: &str) -> Option<&'static Machine> {
    static SMALL: OnceLock<Machine> = OnceLock::new();
    static FULL: OnceLock<Machine> = OnceLock::new();
    if !support::root(test) || !support::tools(test, MACHINE_TOOLS) {
        return None;
    }
    let made = if kind == "full" { &FULL } else { &SMALL };
    Some(made.get_or_init(|| {
        let dir = cache().join(kind);
        run(Command::new(repository("tests/machine.sh")).arg(&dir).arg(kind));
        Machine { dir }
    }))
}

/// An image of a machine that several tests look at, with gzip layers because umoci reads no others.
struct Converted {
    machine: &'static Machine,
    work: Work,
    report: Value,
}

impl Converted {
    fn image(&self) -> String {
        self.work.output("oci", "image:web")
    }
    fn layout(&self) -> PathBuf {
        self.work.path("out/image")
    }
    /// The image as umoci unpacks it; made once.
    fn unpacked(&self) -> PathBuf {
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let bundle = self.work.path("bundle");
        if !bundle.exists() {
            unpack(&self.layout(), "web", &bundle);
        }
        bundle.join("rootfs")
    }
}

/// Unpacks an OCI layout with umoci, as root.
fn unpack(layout: &Path, tag: &str, bundle: &Path) {
    run(Command::new("umoci")
        .args(["--log", "error", "unpack", "--image"])
        .arg(format!("{}:{tag}", layout.display()))
        .arg(bundle));
}

/// The machine of `kind` converted with `profile`; made once for all tests.
fn converted(test: &str, kind: &str, profile: &str) -> Option<&'static Converted> {
    static MADE: [OnceLock<Converted>; 4] = [const { OnceLock::new() }; 4];
    let machine = machine(test, kind)?;
    let index = usize::from(kind == "full") * 2 + usize::from(profile == "faithful");
    Some(MADE[index].get_or_init(|| {
        let work = Work::new();
        let report = work.path("out/report.json");
        let image = work.output("oci", "image:web");
        let disk = machine.qcow2();
        let ended = ended(
            work.vm2k(["convert".as_ref(), disk.as_os_str()])
                .args(["--base", &machine.base(), "--profile", profile])
                .args(["--compress", "gzip", "-o", &image, "--report"])
                .arg(&report),
        );
        ended.expect(0);
        Converted {
            machine,
            report: json(&std::fs::read(report).unwrap()),
            work,
        }
    }))
}

/// How a process ended.
#[derive(Debug)]
struct Ended {
    what: String,
    code: Option<i32>,
    signal: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
    took: std::time::Duration,
}

fn ended(command: &mut Command) -> Ended {
    let from = std::time::Instant::now();
    let output: Output = command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut what = program().display().to_string();
    for argument in command
        .get_args()
        .skip_while(|a| *a != program().as_os_str())
        .skip(1)
    {
        what.push(' ');
        what.push_str(&argument.to_string_lossy());
    }
    Ended {
        what,
        code: output.status.code(),
        signal: output.status.signal(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: from.elapsed(),
    }
}

impl Ended {
    /// Fails unless the exit code is `code`.
    #[track_caller]
    fn expect(&self, code: i32) -> &Self {
        assert!(
            self.code == Some(code),
            "{}: code {:?}, signal {:?}, wanted {code}\n{}\n{}",
            self.what,
            self.code,
            self.signal,
            head(&String::from_utf8_lossy(&self.stdout)),
            head(&self.stderr),
        );
        self
    }
    /// Fails unless stderr has one line with the cause, and a hint.
    #[track_caller]
    fn one_cause(&self) -> &str {
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert!(
            errors.len() == 1,
            "{}: {} error lines\n{}",
            self.what,
            errors.len(),
            self.stderr
        );
        assert!(
            self.stderr.lines().any(|l| l.starts_with("hint: ")),
            "{}: no hint\n{}",
            self.what,
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        errors[0]
    }
    fn json(&self) -> Value {
        json(&self.stdout)
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// The first lines of what may be long.
fn head(text: &str) -> String {
    text.lines().take(30).collect::<Vec<_>>().join("\n")
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|e| panic!("no JSON: {e}\n{}", head(&String::from_utf8_lossy(bytes))))
}

/// The bytes of a path that was written with escapes: `\\ \n \r \t \xNN \u{N}`.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next() {
            Some('n') => out.push(b'\n'),
            Some('r') => out.push(b'\r'),
            Some('t') => out.push(b'\t'),
            Some('\\') => out.push(b'\\'),
            Some('x') => {
                let hex: String = chars.by_ref().take(2).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap());
            }
            Some('u') => {
                let hex: String = chars.by_ref().skip(1).take_while(|c| *c != '}').collect();
                let c = char::from_u32(u32::from_str_radix(&hex, 16).unwrap()).unwrap();
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => panic!("{text}: an escape that is none: {other:?}"),
        }
    }
    out
}

/// Paths that a plan or report names, each with its rule: `left_out` as entries `{rule, paths}` or `{rule, path}`, and
/// `rewritten`.
fn named_by(report: &Value) -> Vec<(Vec<u8>, String)> {
    let mut named = Vec::new();
    let lists = ["left_out", "rewritten"].map(|key| report[key].as_array().cloned().unwrap_or_default());
    for entry in lists.iter().flatten() {
        let rule = entry["rule"].as_str().unwrap_or_default().to_owned();
        let several = entry["paths"].as_array().cloned().unwrap_or_default();
        for path in several.iter().chain([&entry["path"]]).filter_map(Value::as_str) {
            named.push((unescape(path), rule.clone()));
        }
    }
    named
}

/// Where container engines mount their own: nothing below is in an image.
const RUNTIME: [&[u8]; 4] = [b"/proc", b"/sys", b"/dev", b"/run"];

/// True if `path` is one of `named` or below one.
fn is_named(path: &[u8], named: &[(Vec<u8>, String)]) -> bool {
    let is_in = |dir: &[u8]| {
        path.strip_prefix(dir)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    named.iter().any(|(dir, _)| is_in(dir)) || RUNTIME.iter().any(|dir| is_in(dir) && path.len() > dir.len())
}

fn host_path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// The digest of an image's manifest, as skopeo computes it.
fn manifest_digest(reference: &str) -> String {
    let raw = run(Command::new("skopeo").args(["inspect", "--raw", reference])).stdout;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), raw).unwrap();
    let output = run(Command::new("skopeo").arg("manifest-digest").arg(file.path()));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
