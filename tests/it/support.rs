//! What the integration tests share: finding real inputs and the tools that judge.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// True where nothing may be skipped: `tests/all.sh` and CI set `VM2K_TEST_REQUIRE`.
pub(crate) fn required() -> bool {
    std::env::var_os("VM2K_TEST_REQUIRE").is_some()
}

/// Says that `test` is skipped because `what` is missing; fails it instead where nothing may be skipped.
pub(crate) fn skip(test: &str, what: &str) {
    assert!(
        !required(),
        "{test}: {what} is missing and VM2K_TEST_REQUIRE is set"
    );
    eprintln!("SKIPPED {test}: {what} is missing");
}

/// The folder of real inputs (`VM2K_SHARED`, default `../shared`, its `data` folder joined with `sub`). Where it is
/// absent the caller's test is skipped by name, in CI too: the inputs' licences keep them out of this repository.
pub(crate) fn shared(test: &str, sub: &str) -> Option<PathBuf> {
    let root = std::env::var_os("VM2K_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = root.join("data").join(sub);
    if !path.exists() {
        eprintln!("SKIPPED {test}: no {} (set VM2K_SHARED)", path.display());
        return None;
    }
    Some(path)
}

/// True if all `tools` are on the path; else the test is skipped by name, or failed where nothing may be skipped.
pub(crate) fn tools(test: &str, tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = tools.iter().find(|t| {
        !std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|d| d.join(t).is_file())
    });
    match missing {
        Some(tool) => {
            skip(test, tool);
            false
        }
        None => true,
    }
}

/// True if the process may mount filesystems (root); else the test is skipped by name.
pub(crate) fn root(test: &str) -> bool {
    let root = run(Command::new("id").arg("-u")).stdout == b"0\n";
    if !root {
        skip(test, "root (the judge here is the kernel's mount)");
    }
    root
}

/// Runs `command` to its end and fails the test with its output unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a bash script (`set -eu -o pipefail`) with `args` as `$1`, `$2`, ...
pub(crate) fn bash(script: &str, args: &[&Path]) -> Output {
    run(Command::new("bash")
        .args(["-eu", "-o", "pipefail", "-c", script, "bash"])
        .args(args))
}

/// The program under test.
pub(crate) fn vm2k() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vm2k"))
}

/// Unpacks `file.zst` sparsely into `dir` and gives the path without the ending.
pub(crate) fn unzstd(file: &Path, dir: &Path) -> PathBuf {
    let out = dir.join(file.file_stem().expect("a file name"));
    run(Command::new("zstd")
        .args(["-q", "-d", "-f", "--sparse", "-o"])
        .arg(&out)
        .arg(file));
    out
}

/// A temporary directory in memory where there is room for `bytes`, else on disk: for filesystems that tests mount and
/// sync over and over.
pub(crate) fn scratch(bytes: u64) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map_or(0, |s| s.f_bavail * s.f_frsize);
    if room > bytes
        && let Ok(dir) = tempfile::tempdir_in(memory)
    {
        return dir;
    }
    tempfile::tempdir().expect("a temporary directory")
}

/// The golden file `name` of `tests/golden`.
pub(crate) fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Where every program looks on its own: its libraries, and what the kernel says of the machine and of the process.
pub(crate) const SYSTEM: &[&str] = &[
    "/etc/ld.so.",
    "/lib",
    "/usr/lib/",
    "/proc/self/",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/random/boot_id",
    "/proc/cpuinfo",
    "/sys/fs/cgroup/",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/urandom",
    "/dev/tty",
];

/// The calls that `strace -f -qq -y -o` wrote, each with the first path between quotation marks; relative ones are of a
/// directory that `-y` names.
pub(crate) fn traced(trace: &str) -> impl Iterator<Item = (&str, Option<String>)> {
    let calls = trace.lines().filter_map(|line| line.split_once(' '));
    calls.map(|(_, call)| {
        let call = call.trim_start();
        let directory = call
            .split_once('<')
            .and_then(|(_, rest)| rest.split_once('>'))
            .map_or("", |(directory, _)| directory);
        let path = call.split('"').nth(1).map(|path| match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{directory}/{path}"),
        });
        (call, path)
    })
}

/// True if `path` is one of `prefixes` or below one.
pub(crate) fn is_below<T: AsRef<str>>(path: &str, prefixes: &[T]) -> bool {
    let mut prefixes = prefixes.iter().map(|p| p.as_ref().trim_end_matches('/'));
    prefixes.any(|prefix| path.starts_with(prefix))
}

/// A server of files on the loopback interface, until the test process ends.
pub(crate) struct FileServer {
    /// `http://127.0.0.1:PORT`.
    pub(crate) address: String,
    /// The paths that were asked for.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl FileServer {
    /// Serves each directory below its path: `("/pub/a", dir)`.
    pub(crate) fn start(directories: &[(&str, &Path)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let directories: Vec<(String, PathBuf)> = directories
            .iter()
            .map(|(at, dir)| (format!("{at}/"), dir.to_path_buf()))
            .collect();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (directories, log) = (directories.clone(), Arc::clone(&log));
                std::thread::spawn(move || answer(stream, &directories, &log));
            }
        });
        Self { address, asked }
    }
}

/// Answers one request for a file. Who asked may be gone again.
fn answer(mut stream: TcpStream, directories: &[(String, PathBuf)], log: &Mutex<Vec<String>>) {
    let mut request = Vec::new();
    let mut buf = [0; 4096];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut buf) {
            Ok(n) if n > 0 => request.extend_from_slice(&buf[..n]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let path = decoded(text.split(' ').nth(1).unwrap_or_default());
    let file = directories.iter().find_map(|(at, dir)| {
        let rest = path.strip_prefix(at.as_str())?;
        (!rest.split('/').any(|part| part == "..")).then(|| dir.join(rest))
    });
    let body = file.filter(|f| f.is_file()).and_then(|f| std::fs::read(f).ok());
    log.lock().unwrap().push(path);
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let head_only = text.starts_with("HEAD ");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| {
        if head_only {
            return Ok(());
        }
        stream.write_all(&body)
    });
}

/// A path of a URL without its percent signs.
fn decoded(path: &str) -> String {
    let mut out = Vec::new();
    let mut rest = path.split(['?', '#']).next().unwrap_or_default().as_bytes();
    while let [first, more @ ..] = rest {
        let code = more.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let code = code.and_then(|d| u8::from_str_radix(d, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &more[2..];
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
