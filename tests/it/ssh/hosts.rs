//! Whose key is whose: known, unknown, changed, revoked, hashed, certified hosts.

use super::server::{Home, Server, at, can, keygen, ready, refused};
use crate::support::run;
use std::process::Command;
use std::time::Duration;
use vm2k::error::code;
use vm2k::ssh::key::PublicKey;
use vm2k::ssh::known_hosts::{KnownHosts, Verdict};
use vm2k::ssh::transport;

/// A server that lets the home's key in, and is not known to it.
fn unknown(kind: &str) -> (Server, Home) {
    let server = Server::start(kind, "");
    let home = Home::new();
    home.key(&server, "id_ed25519", &["-t", "ed25519"]);
    (server, home)
}

#[test]
fn an_unknown_host_is_refused_until_its_key_is_accepted() {
    if !can("an_unknown_host_is_refused_until_its_key_is_accepted") {
        return;
    }
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let (server, home) = unknown(kind);
        let (code, text) = refused(home.connect(&at(&server), &home.options()));
        assert_eq!(code, code::REFUSED, "{text}");
        let print = server.fingerprint();
        let kind = kind.to_uppercase();
        assert!(text.contains(&format!("is not known: {kind} {print}")), "{text}");
        assert!(text.contains(&format!("--accept-host-key {print}")), "{text}");
        assert!(!home.path("known_hosts").exists());
        // The key, and only the key.
        let mut options = home.options();
        options.accept_host_keys = vec!["SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into()];
        assert_eq!(refused(home.connect(&at(&server), &options)).0, code::REFUSED);
        options.accept_host_keys = vec![print.clone()];
        home.connect(&at(&server), &options).unwrap();
        assert!(!home.path("known_hosts").exists());
        options.accept_host_keys = vec!["SHA256:short".into()];
        assert_eq!(refused(home.connect(&at(&server), &options)).0, code::USAGE);
    }
}

#[test]
fn a_new_host_is_written_down_as_openssh_does() {
    if !can("a_new_host_is_written_down_as_openssh_does") {
        return;
    }
    for hashed in [false, true] {
        let (server, home) = unknown("ed25519");
        if hashed {
            home.configure("HashKnownHosts yes\nStrictHostKeyChecking accept-new\n");
        }
        home.write_known("other ssh-ed25519 AAAA");
        let mut options = home.options();
        options.accept_new_host_keys = !hashed;
        home.connect(&at(&server), &options).unwrap();
        let text = std::fs::read_to_string(home.path("known_hosts")).unwrap();
        assert_eq!(text.contains("127.0.0.1"), !hashed, "{text}");
        assert_eq!(text.lines().count(), 2);
        // The judge finds it.
        let name = format!("[127.0.0.1]:{}", server.port);
        let found = run(Command::new("ssh-keygen")
            .args(["-F", &name, "-f"])
            .arg(home.path("known_hosts")));
        let found = String::from_utf8(found.stdout).unwrap();
        assert!(found.contains(&server.host_key()), "{found}");
        // Now it is known without a word.
        home.configure("");
        home.connect(&at(&server), &home.options()).unwrap();
        assert_eq!(std::fs::read_to_string(home.path("known_hosts")).unwrap(), text);
    }
}

#[test]
fn a_changed_or_revoked_key_is_refused_whatever_is_asked_for() {
    if !can("a_changed_or_revoked_key_is_refused_whatever_is_asked_for") {
        return;
    }
    let (server, home) = unknown("ed25519");
    let other = keygen(home.dir.path(), "other", &["-t", "ed25519"]);
    let other = std::fs::read_to_string(format!("{}.pub", other.display())).unwrap();
    home.write_known(&format!("# changed\n[127.0.0.1]:{} {other}", server.port));
    home.configure("StrictHostKeyChecking no\n");
    let mut options = home.options();
    options.accept_new_host_keys = true;
    options.accept_host_keys = vec![server.fingerprint()];
    let (code, text) = refused(home.connect(&at(&server), &options));
    assert_eq!(code, code::REFUSED, "{text}");
    assert!(
        text.contains("has changed") && text.contains(&server.fingerprint()),
        "{text}"
    );
    assert!(
        text.contains(&format!("{}:2", home.path("known_hosts").display())),
        "{text}"
    );
    assert!(text.contains("ssh-keygen -R"), "{text}");

    let (server, home) = unknown("ed25519");
    home.know(&server);
    home.write_known(&format!("@revoked * {}\n", server.host_key()));
    let (code, text) = refused(home.connect(&at(&server), &home.options()));
    assert_eq!(code, code::REFUSED);
    assert!(
        text.contains("revoked") && text.contains("known_hosts:2"),
        "{text}"
    );
}

#[test]
fn the_type_of_key_that_is_known_is_asked_for() {
    if !can("the_type_of_key_that_is_known_is_asked_for") {
        return;
    }
    // The host has two keys; by itself ed25519 would be chosen.
    let dir = tempfile::tempdir().unwrap();
    keygen(dir.path(), "host", &["-t", "ed25519"]);
    let rsa = keygen(dir.path(), "host_rsa", &["-t", "rsa"]);
    let extra = format!("HostKey {}", rsa.display());
    let server = Server::start_in(dir, &extra);
    let home = Home::new();
    home.key(&server, "id_ed25519", &["-t", "ed25519"]);
    let rsa = std::fs::read_to_string(format!("{}.pub", rsa.display())).unwrap();
    home.write_known(&format!("[127.0.0.1]:{} {rsa}", server.port));
    home.connect(&at(&server), &home.options()).unwrap();
    // A key of a type that the host does not have: it is unknown, and what is known is named.
    let (server, home) = unknown("ed25519");
    home.write_known(&format!("[127.0.0.1]:{} {rsa}", server.port));
    let mut options = home.options();
    options.accept_new_host_keys = true;
    let (code, text) = refused(home.connect(&at(&server), &options));
    assert_eq!(code, code::REFUSED);
    assert!(text.contains("another type (RSA)"), "{text}");
}

#[test]
fn hashed_names_are_read_as_ssh_keygen_writes_them() {
    if !can("hashed_names_are_read_as_ssh_keygen_writes_them") {
        return;
    }
    let (server, home) = ready("");
    let file = home.path("known_hosts");
    run(Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&file));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("|1|"), "{text}");
    home.connect(&at(&server), &home.options()).unwrap();
    // Many names, each found by both or by neither.
    let names = [
        "web1",
        "[web1]:2222",
        "10.0.0.1",
        "[::1]:22",
        "a.b.example.com",
        "web1.example.com",
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("known_hosts");
    for (index, name) in names.iter().enumerate() {
        let key = keygen(dir.path(), &format!("k{index}"), &["-t", "ed25519"]);
        let public = std::fs::read_to_string(format!("{}.pub", key.display())).unwrap();
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, format!("{before}{name} {public}")).unwrap();
    }
    run(Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&file));
    let known = KnownHosts::read(std::slice::from_ref(&file)).unwrap();
    for name in names.into_iter().chain(["web2", "[web1]:22", "::1"]) {
        let judge = Command::new("ssh-keygen")
            .args(["-F", name, "-f"])
            .arg(&file)
            .output()
            .unwrap();
        let judge = String::from_utf8(judge.stdout).unwrap();
        let line = judge.lines().find(|l| !l.starts_with('#'));
        let key = line.map(|l| PublicKey::parse(l.split_once(' ').unwrap().1).unwrap());
        let ours = known.of(name).map(|e| e.key.clone()).collect::<Vec<_>>();
        assert_eq!(ours, key.iter().cloned().collect::<Vec<_>>(), "{name}");
        if let Some(key) = key {
            assert!(matches!(known.check(name, None, &key), Verdict::Known(_)));
        }
    }
}

#[test]
fn a_certified_host_is_known_by_its_authority() {
    if !can("a_certified_host_is_known_by_its_authority") {
        return;
    }
    for authority in [
        &["-t", "ed25519"][..],
        &["-t", "rsa"],
        &["-t", "ecdsa"],
        &["-t", "ecdsa", "-b", "384"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ca = keygen(dir.path(), "ca", authority);
        let host = keygen(dir.path(), "host", &["-t", "ed25519"]);
        let sign = |names: &str, validity: &str| {
            run(Command::new("ssh-keygen")
                .args(["-q", "-s"])
                .arg(&ca)
                .args(["-I", "web1", "-h", "-n", names, "-V", validity])
                .arg(format!("{}.pub", host.display())));
        };
        sign("web1,127.0.0.1", "-1d:+1d");
        let extra = format!("HostCertificate {}-cert.pub", host.display());
        let public = std::fs::read_to_string(format!("{}.pub", ca.display())).unwrap();
        let server = Server::start_in(dir, &extra);
        let home = Home::new();
        home.key(&server, "id_ed25519", &["-t", "ed25519"]);
        home.write_known(&format!("@cert-authority [127.0.0.1]:* {public}"));
        let session = home.connect(&at(&server), &home.options()).unwrap();
        let out = transport::run(&session, "echo yes", b"", 10, Duration::from_secs(20)).unwrap();
        assert_eq!(out.stdout, b"yes\n");
        // A certificate that does not hold is refused with its reason.
        for (names, validity, why) in [
            ("web2", "-1d:+1d", "is for web2"),
            ("127.0.0.1", "-2d:-1d", "has expired"),
            ("127.0.0.1", "+1d:+2d", "not valid yet"),
        ] {
            let again = tempfile::tempdir().unwrap();
            for name in ["ca", "ca.pub", "host", "host.pub"] {
                std::fs::copy(server.path(name), again.path().join(name)).unwrap();
            }
            run(Command::new("ssh-keygen")
                .args(["-q", "-s"])
                .arg(again.path().join("ca"))
                .args(["-I", "web1", "-h", "-n", names, "-V", validity])
                .arg(again.path().join("host.pub")));
            let extra = format!("HostCertificate {}/host-cert.pub", again.path().display());
            let server = Server::start_in(again, &extra);
            let (code, text) = refused(home.connect(&at(&server), &home.options()));
            assert_eq!(code, code::REFUSED, "{text}");
            assert!(text.contains(why), "{text}");
        }
        // Without the authority, the key inside counts.
        let home = Home::new();
        let key = keygen(&home.dir.path().join(".ssh"), "id_ed25519", &["-t", "ed25519"]);
        server.authorize(&key);
        assert_eq!(
            refused(home.connect(&at(&server), &home.options())).0,
            code::REFUSED
        );
        home.know(&server);
        home.connect(&at(&server), &home.options()).unwrap();
    }
}
