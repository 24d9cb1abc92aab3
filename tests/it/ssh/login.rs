//! The ways to log in: keys of all kinds, passphrases, an agent, passwords, questions, several in a row.

use super::server::{Home, Server, at, can, keygen, ready, refused};
use crate::support::{run, tools};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm2k::error::code;
use vm2k::ssh::transport::run as run_there;
use vm2k::ssh::{Options, Question, Session};
use zeroize::Zeroizing;

fn works(session: &Session) {
    let out = run_there(session, "echo yes", b"", 10, Duration::from_secs(20)).unwrap();
    assert_eq!(out.stdout, b"yes\n");
}

/// Options whose questions are answered with `answers` in order; the questions are kept.
fn answering(home: &Home, answers: &[&str]) -> (Options, Arc<Mutex<Vec<Question>>>) {
    let asked: Arc<Mutex<Vec<Question>>> = Arc::default();
    let keep = Arc::clone(&asked);
    let answers: Vec<String> = answers.iter().map(|a| (*a).to_owned()).collect();
    let mut options = home.options();
    options.ask = Arc::new(move |question| {
        let mut asked = keep.lock().unwrap();
        asked.push(question.clone());
        let answer = answers.get(asked.len() - 1)?;
        Some(Zeroizing::new(answer.clone().into_bytes()))
    });
    (options, asked)
}

/// A user of this machine with a password, gone with this.
struct User(String);

impl User {
    fn new(name: &str, password: &str) -> Self {
        let name = format!("vm2k{name}{}", std::process::id() % 100_000);
        run(Command::new("useradd").args(["-M", "-d", "/", "-s", "/bin/sh", &name]));
        let user = Self(name);
        let mut child = Command::new("chpasswd").stdin(Stdio::piped()).spawn().unwrap();
        let line = format!("{}:{password}\n", user.0);
        child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        user
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("userdel").arg(&self.0).status();
    }
}

/// An ssh-agent of the test's own.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(home: &mut Home) -> Self {
        let socket = home.path("agent");
        let child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        home.agent = Some(socket.clone());
        Self { child, socket }
    }

    fn add(&self, key: &std::path::Path) {
        run(Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kinds of key files: name, arguments of ssh-keygen.
const KINDS: [(&str, &[&str]); 7] = [
    ("ed25519", &["-t", "ed25519"]),
    ("rsa", &["-t", "rsa", "-b", "2048"]),
    ("ecdsa", &["-t", "ecdsa"]),
    ("ecdsa521", &["-t", "ecdsa", "-b", "521"]),
    ("rsa_pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
    ("ecdsa_pem", &["-t", "ecdsa", "-m", "PEM"]),
    ("rsa_pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
];

#[test]
fn keys_of_all_kinds_with_and_without_a_passphrase() {
    if !can("keys_of_all_kinds_with_and_without_a_passphrase") {
        return;
    }
    let server = Server::start("ed25519", "");
    for (name, arguments) in KINDS {
        let home = Home::new();
        home.know(&server);
        let key = home.key(&server, name, arguments);
        let mut options = home.options();
        options.identities = vec![key];
        works(
            &home
                .connect(&at(&server), &options)
                .unwrap_or_else(|e| panic!("{name}: {e}")),
        );

        let encrypted = format!("{name}_encrypted");
        let key = home.key(&server, &encrypted, &[arguments, &["-N", "open sesame"]].concat());
        // Asked for, the first answer is wrong.
        let (mut options, asked) = answering(&home, &["wrong", "open sesame"]);
        options.identities = vec![key.clone()];
        works(
            &home
                .connect(&at(&server), &options)
                .unwrap_or_else(|e| panic!("{encrypted}: {e}")),
        );
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 2, "{name}");
        assert!(asked[0].text.contains(&encrypted) && !asked[0].echo);
        // Given.
        let mut options = home.options();
        options.identities = vec![key.clone()];
        options.key_passphrase = Some(Zeroizing::new(b"open sesame".to_vec()));
        works(&home.connect(&at(&server), &options).unwrap());
        // Wrong or not to be had.
        options.key_passphrase = Some(Zeroizing::new(b"wrong".to_vec()));
        let (code, text) = refused(home.connect(&at(&server), &options));
        assert_eq!(code, code::REFUSED, "{text}");
        assert!(
            text.contains("wrong passphrase") && !text.contains("sesame"),
            "{text}"
        );
        options.key_passphrase = None;
        let (code, text) = refused(home.connect(&at(&server), &options));
        assert_eq!(code, code::REFUSED);
        assert!(
            text.contains("its passphrase is not known") && text.contains("ssh-agent"),
            "{text}"
        );
        // Without its public half beside it.
        std::fs::remove_file(format!("{}.pub", key.display())).unwrap();
        options.key_passphrase = Some(Zeroizing::new(b"open sesame".to_vec()));
        works(
            &home
                .connect(&at(&server), &options)
                .unwrap_or_else(|e| panic!("{encrypted} alone: {e}")),
        );
    }
}

#[test]
fn a_wrong_key_says_what_was_tried() {
    if !can("a_wrong_key_says_what_was_tried") {
        return;
    }
    let (server, home) = ready("");
    let wrong = keygen(home.dir.path(), "wrong", &["-t", "ed25519"]);
    let locked = keygen(home.dir.path(), "locked", &["-t", "ed25519", "-N", "secret"]);
    let (mut options, asked) = answering(&home, &["secret"]);
    options.identities = vec![wrong.clone(), locked.clone()];
    let (code, text) = refused(home.connect(&at(&server), &options));
    assert_eq!(code, code::REFUSED);
    let print = run(Command::new("ssh-keygen").arg("-lf").arg(&wrong));
    let print = String::from_utf8(print.stdout).unwrap();
    let print = print.split(' ').nth(1).unwrap();
    assert!(
        text.contains(&format!("key {} {print} (not accepted)", wrong.display())),
        "{text}"
    );
    assert!(
        text.contains("it allows publickey") && text.contains("authorized_keys"),
        "{text}"
    );
    // Nobody is asked for the passphrase of a key that the host does not want.
    assert!(asked.lock().unwrap().is_empty());
    options.identities = vec![home.path("none")];
    assert_eq!(refused(home.connect(&at(&server), &options)).0, code::USAGE);
    let (code, text) = refused(home.connect(&format!("vm2knone@127.0.0.1:{}", server.port), &home.options()));
    assert_eq!(code, code::REFUSED);
    assert!(text.contains("does not let vm2knone in"), "{text}");
}

#[test]
fn an_agent_signs() {
    if !can("an_agent_signs") {
        return;
    }
    let server = Server::start("ed25519", "MaxAuthTries 3");
    let mut home = Home::new();
    home.know(&server);
    let agent = Agent::start(&mut home);
    let (code, text) = refused(home.connect(&at(&server), &home.options()));
    assert_eq!(code, code::REFUSED);
    assert!(
        text.contains("nothing could be tried") && text.contains("--identity"),
        "{text}"
    );
    for kind in ["ed25519", "rsa", "ecdsa"] {
        home.configure("");
        let key = keygen(home.dir.path(), kind, &["-t", kind]);
        agent.add(&key);
        server.authorize(&key);
        works(&home.connect(&at(&server), &home.options()).unwrap());
        // The private half is in the agent alone, its public half says which.
        std::fs::remove_file(&key).unwrap();
        let mut options = home.options();
        home.configure("IdentitiesOnly yes\n");
        options.files = vm2k::ssh::config::Files::Only(home.path("config"));
        options.identities = vec![key];
        works(
            &home
                .connect(&at(&server), &options)
                .unwrap_or_else(|e| panic!("{kind}: {e}")),
        );
        std::fs::write(server.path("authorized_keys"), "").unwrap();
    }
    // Three keys that the host does not want are too many for it.
    home.configure("");
    let (code, text) = refused(home.connect(&at(&server), &home.options()));
    assert!([code::NETWORK, code::REFUSED].contains(&code), "{text}");
    assert!(text.contains("agent's key SHA256:"), "{text}");
    // With IdentitiesOnly none of them is offered.
    home.configure("IdentitiesOnly yes\n");
    let key = home.key(&server, "id_ed25519", &["-t", "ed25519"]);
    works(&home.connect(&at(&server), &home.options()).unwrap());
    drop(key);
    // Without the agent.
    home.configure("IdentityAgent none\nIdentityFile ~/.ssh/absent\n");
    let (_, text) = refused(home.connect(&at(&server), &home.options()));
    assert!(text.contains("nothing could be tried"), "{text}");
}

#[test]
fn a_password_or_the_answers_to_questions() {
    let test = "a_password_or_the_answers_to_questions";
    if !can(test) || !tools(test, &["useradd", "chpasswd"]) {
        return;
    }
    let user = User::new("p", "correct horse");
    for (extra, way) in [
        ("PasswordAuthentication yes", "password"),
        (
            "UsePAM yes\nKbdInteractiveAuthentication yes",
            "keyboard-interactive",
        ),
    ] {
        let server = Server::start("ed25519", extra);
        let home = Home::new();
        home.know(&server);
        let target = format!("{}@127.0.0.1:{}", user.0, server.port);
        let mut options = home.options();
        options.password = Some(Zeroizing::new(b"correct horse".to_vec()));
        works(
            &home
                .connect(&target, &options)
                .unwrap_or_else(|e| panic!("{way}: {e}")),
        );
        options.password = Some(Zeroizing::new(b"battery staple".to_vec()));
        let (code, text) = refused(home.connect(&target, &options));
        assert_eq!(code, code::REFUSED);
        assert!(
            text.contains(&format!("{way} (wrong)")) && !text.contains("staple"),
            "{text}"
        );
        // Asked for.
        let (options, asked) = answering(&home, &["battery staple", "correct horse"]);
        works(
            &home
                .connect(&target, &options)
                .unwrap_or_else(|e| panic!("{way}: {e}")),
        );
        assert_eq!(asked.lock().unwrap().len(), 2);
        assert!(asked.lock().unwrap().iter().all(|q| !q.echo));
        // Nobody to ask.
        let (code, text) = refused(home.connect(&target, &home.options()));
        assert_eq!(code, code::REFUSED);
        assert!(text.contains("--password-stdin"), "{text}");
    }
}

#[test]
fn a_key_and_a_password_in_a_row() {
    let test = "a_key_and_a_password_in_a_row";
    if !can(test) || !tools(test, &["useradd", "chpasswd"]) {
        return;
    }
    let user = User::new("m", "correct horse");
    let server = Server::start(
        "ed25519",
        "PasswordAuthentication yes\nAuthenticationMethods publickey,password",
    );
    let home = Home::new();
    home.know(&server);
    home.key(&server, "id_ed25519", &["-t", "ed25519"]);
    let target = format!("{}@127.0.0.1:{}", user.0, server.port);
    let mut options = home.options();
    options.password = Some(Zeroizing::new(b"correct horse".to_vec()));
    works(&home.connect(&target, &options).unwrap());
    options.password = None;
    let (code, text) = refused(home.connect(&target, &options));
    assert_eq!(code, code::REFUSED);
    assert!(
        text.contains("publickey (accepted, but not enough)") && text.contains("password"),
        "{text}"
    );
}

#[test]
fn a_user_with_a_certificate() {
    if !can("a_user_with_a_certificate") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ca = keygen(dir.path(), "ca", &["-t", "ed25519"]);
    keygen(dir.path(), "host", &["-t", "ed25519"]);
    let extra = format!("TrustedUserCAKeys {}.pub", ca.display());
    let server = Server::start_in(dir, &extra);
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let mut home = Home::new();
        home.know(&server);
        let key = keygen(
            &home.dir.path().join(".ssh"),
            &format!("id_{kind}"),
            &["-t", kind],
        );
        assert_eq!(
            refused(home.connect(&at(&server), &home.options())).0,
            code::REFUSED
        );
        run(Command::new("ssh-keygen")
            .args(["-q", "-s"])
            .arg(&ca)
            .args(["-I", "me", "-n", "root"])
            .arg(format!("{}.pub", key.display())));
        works(
            &home
                .connect(&at(&server), &home.options())
                .unwrap_or_else(|e| panic!("{kind}: {e}")),
        );
        let agent = Agent::start(&mut home);
        agent.add(&key);
        std::fs::remove_file(&key).unwrap();
        let result = home.connect(&at(&server), &home.options());
        if kind == "rsa" {
            let (_, text) = refused(result);
            assert!(
                text.contains("cannot use one of an RSA key in an agent"),
                "{text}"
            );
        } else {
            works(&result.unwrap_or_else(|e| panic!("{kind} of the agent: {e}")));
        }
    }
}
