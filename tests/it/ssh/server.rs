//! An sshd of the test's own, and a user's home to connect from.

use crate::support::{root, run, tools};
use rustix::process::{Pid, Signal, kill_process};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vm2k::error::Result;
use vm2k::ssh::config::{Files, Place};
use vm2k::ssh::{Options, Session, Target};

/// True if sshd can be run here; else the test is skipped by name.
pub(crate) fn can(test: &str) -> bool {
    tools(test, &["sshd", "ssh-keygen", "ssh-agent", "ssh-add", "ssh"]) && root(test)
}

/// A free port. It is free until somebody else takes it: the one who starts a server tries again then.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Makes a key pair `dir/name` with `arguments` of ssh-keygen.
pub(crate) fn keygen(dir: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let passphrase: &[&str] = if arguments.contains(&"-N") {
        &[]
    } else {
        &["-N", ""]
    };
    run(Command::new("ssh-keygen")
        .args(["-q", "-C", name, "-f"])
        .arg(&path)
        .args(arguments)
        .args(passphrase));
    path
}

/// A running sshd and the directory of its files.
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    child: Child,
}

impl Server {
    /// Starts one with a host key of `kind` and `extra` lines of sshd_config in front.
    pub(crate) fn start(kind: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        keygen(dir.path(), "host", &["-t", kind]);
        Self::start_in(dir, extra)
    }

    /// Starts one in `dir`, which has the host key.
    pub(crate) fn start_in(dir: TempDir, extra: &str) -> Self {
        let path = dir.path();
        // sshd of root wants its empty directory.
        let _ = std::fs::create_dir("/run/sshd");
        if !path.join("authorized_keys").exists() {
            std::fs::write(path.join("authorized_keys"), "").unwrap();
        }
        let port = free_port();
        let at = path.display();
        let text = format!(
            "{extra}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nPidFile none\n\
             AuthorizedKeysFile {at}/authorized_keys\nStrictModes no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
             LoginGraceTime 60\nSetEnv HOME={at}\nMaxStartups 100\nUseDNS no\n"
        );
        std::fs::write(path.join("sshd_config"), text).unwrap();
        let log = std::fs::File::create(path.join("log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(path.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { dir, port, child };
        if server.is_up() {
            return server;
        }
        let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap();
        assert!(log.contains("Address already in use"), "{log}");
        Self::start_in(server.take_dir(), extra)
    }

    fn take_dir(&mut self) -> TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    fn is_up(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The public host key: type and base64.
    pub(crate) fn host_key(&self) -> String {
        let text = std::fs::read_to_string(self.path("host.pub")).unwrap();
        text.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }

    /// Its fingerprint as ssh-keygen prints it.
    pub(crate) fn fingerprint(&self) -> String {
        let out = run(Command::new("ssh-keygen").arg("-lf").arg(self.path("host.pub")));
        let text = String::from_utf8(out.stdout).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    }

    /// Lets `key` log in.
    pub(crate) fn authorize(&self, key: &Path) {
        let public = std::fs::read_to_string(format!("{}.pub", key.display())).unwrap();
        let file = self.path("authorized_keys");
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, before + &public).unwrap();
    }

    /// What sshd wrote.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Sends `signal` to this sshd and to all that it started.
    pub(crate) fn signal(&self, signal: Signal) {
        for pid in family(self.child.id()) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// `id` and the processes below it.
fn family(id: u32) -> Vec<Pid> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.push((pid, parent.unwrap_or(0)));
    }
    let mut out = vec![id];
    let mut at = 0;
    while at < out.len() {
        let parent = out[at];
        out.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    out.iter()
        .filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?))
        .collect()
}

/// A user's home, from which a connection is made.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) agent: Option<PathBuf>,
    pub(crate) warnings: Arc<Mutex<Vec<String>>>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".ssh")).unwrap();
        Self {
            dir,
            agent: None,
            warnings: Arc::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(".ssh").join(name)
    }

    /// A new key, which `server` lets in.
    pub(crate) fn key(&self, server: &Server, name: &str, arguments: &[&str]) -> PathBuf {
        let key = keygen(&self.dir.path().join(".ssh"), name, arguments);
        server.authorize(&key);
        key
    }

    /// Writes down the key of `server`.
    pub(crate) fn know(&self, server: &Server) {
        self.write_known(&format!("[127.0.0.1]:{} {}\n", server.port, server.host_key()));
    }

    pub(crate) fn write_known(&self, text: &str) {
        let file = self.path("known_hosts");
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(file, before + text).unwrap();
    }

    /// Writes `~/.ssh/config`.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.path("config"), text).unwrap();
    }

    /// The usual options of this home.
    pub(crate) fn options(&self) -> Options {
        let agent = self.agent.clone();
        let warnings = Arc::clone(&self.warnings);
        Options {
            files: match self.path("config") {
                file if file.exists() => Files::Only(file),
                _ => Files::None,
            },
            place: Place {
                home: self.dir.path().to_owned(),
                variable: Arc::new(move |name| match name {
                    "SSH_AUTH_SOCK" => agent.as_ref().map(|a| a.display().to_string()),
                    _ => None,
                }),
                ..Place::here()
            },
            connect_timeout: Some(Duration::from_secs(20)),
            idle: Duration::from_secs(20),
            warn: Arc::new(move |text| warnings.lock().unwrap().push(text.to_owned())),
            note: Arc::new(|_| {}),
            ..Options::default()
        }
    }

    pub(crate) fn connect(&self, target: &str, options: &Options) -> Result<Session> {
        Session::connect(&Target::parse(target).unwrap(), options)
    }
}

/// root at `server`.
pub(crate) fn at(server: &Server) -> String {
    format!("root@127.0.0.1:{}", server.port)
}

/// The text and hints of the error of a connection that must not come about.
pub(crate) fn refused(result: Result<Session>) -> (u8, String) {
    match result {
        Ok(_) => panic!("it was let in"),
        Err(e) => (e.code(), vm2k::error::report(&e.into())),
    }
}

/// A server that lets in a home's key and is known to it.
pub(crate) fn ready(extra: &str) -> (Server, Home) {
    let server = Server::start("ed25519", extra);
    let home = Home::new();
    home.key(&server, "id_ed25519", &["-t", "ed25519"]);
    home.know(&server);
    (server, home)
}
