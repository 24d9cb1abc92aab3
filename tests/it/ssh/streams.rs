//! Commands and their streams.

use super::server::{Home, Server, at, can, ready};
use rustix::process::{Signal, kill_process};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use vm2k::ssh::Session;
use vm2k::ssh::transport::{Transport, run};

const MINUTE: Duration = Duration::from_secs(60);

/// `length` bytes that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Sends `length` bytes through `cat` on the far side, both directions at once, and compares the digests.
fn echo(session: &Session, length: usize) {
    let sent = noise(length);
    let digest = Sha256::digest(&sent);
    let mut process = session.start("cat").unwrap();
    let mut stdin = process.stdin;
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut hasher = Sha256::new();
    let mut buf = vec![0; 100_000];
    let mut total = 0;
    loop {
        let n = process.stdout.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        total += n;
        hasher.update(&buf[..n]);
    }
    writer.join().unwrap();
    assert_eq!(total, length);
    assert_eq!(hasher.finalize(), digest);
    assert!(process.control.wait(MINUTE).unwrap().success());
}

#[test]
fn a_command_has_its_streams_and_its_end() {
    if !can("a_command_has_its_streams_and_its_end") {
        return;
    }
    let (server, home) = ready("");
    let session = home.connect(&at(&server), &home.options()).unwrap();
    assert_eq!(session.name(), format!("root@127.0.0.1:{}", server.port));
    let out = run(&session, "cat; echo no >&2; exit 3", b"hello", 100, MINUTE).unwrap();
    assert_eq!((out.stdout.as_slice(), out.exit.status), (&b"hello"[..], Some(3)));
    assert_eq!(out.exit.describe(), "exit status 3: no");
    let out = run(&session, "kill -9 $$", b"", 100, MINUTE).unwrap();
    assert_eq!(
        (out.exit.status, out.exit.signal.as_deref()),
        (None, Some("KILL"))
    );
    // More input than the command reads.
    let out = run(&session, "head -c 5", &noise(3 << 20), 100, MINUTE).unwrap();
    assert_eq!((out.stdout.len(), out.exit.status), (5, Some(0)));
    // Only the end of stderr is kept.
    let out = run(&session, "seq 1 50000 >&2", b"", 100, MINUTE).unwrap();
    assert_eq!(out.exit.stderr.len(), vm2k::ssh::transport::STDERR);
    assert!(out.exit.stderr.ends_with(b"49999\n50000\n"));
    // More than is wanted.
    let e = run(&session, "cat /dev/zero", b"", 1000, MINUTE).unwrap_err();
    assert_eq!(e.code(), vm2k::error::code::CORRUPT);
    // The end of the input comes through while output is read.
    let mut process = session.start("wc -c").unwrap();
    process.stdin.write_all(b"12345").unwrap();
    drop(process.stdin);
    let mut text = String::new();
    process.stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), "5");
}

#[test]
fn fifty_megabytes_go_both_ways_at_once() {
    if !can("fifty_megabytes_go_both_ways_at_once") {
        return;
    }
    let (server, home) = ready("");
    let session = home.connect(&at(&server), &home.options()).unwrap();
    let began = Instant::now();
    echo(&session, 50 << 20);
    eprintln!("50 MiB both ways: {:?}", began.elapsed());
    let traffic = session.traffic();
    assert_eq!((traffic.sent, traffic.received), (50 << 20, 50 << 20));
}

#[test]
fn keys_are_exchanged_anew_in_the_middle() {
    if !can("keys_are_exchanged_anew_in_the_middle") {
        return;
    }
    let (server, home) = ready("RekeyLimit 3M");
    let session = home.connect(&at(&server), &home.options()).unwrap();
    echo(&session, 20 << 20);
}

#[test]
fn several_commands_share_a_connection_with_compression() {
    if !can("several_commands_share_a_connection_with_compression") {
        return;
    }
    let (server, home) = ready("Compression yes");
    home.configure("Compression yes\n");
    let session = home.connect(&at(&server), &home.options()).unwrap();
    // One that nobody reads must not hold up the others.
    let idle = session.start("cat /dev/zero").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| echo(&session, 2 << 20));
        }
    });
    drop(idle);
    echo(&session, 100_000);
}

#[test]
fn what_is_dropped_or_killed_ends_on_the_far_side() {
    if !can("what_is_dropped_or_killed_ends_on_the_far_side") {
        return;
    }
    let (server, home) = ready("");
    let session = home.connect(&at(&server), &home.options()).unwrap();
    let pid = |process: &mut vm2k::ssh::transport::Process| {
        let mut text = Vec::new();
        let mut byte = [0];
        while process.stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap().parse::<i32>().unwrap()
    };
    // As the agent: it ends with its input.
    let command = "echo $$; cat > /dev/null";
    let mut dropped = session.start(command).unwrap();
    let mut killed = session.start(command).unwrap();
    let ids = [pid(&mut dropped), pid(&mut killed)];
    drop(dropped);
    killed.control.kill();
    assert!(killed.stdout.read(&mut [0]).is_err());
    assert!(killed.stdin.write(&[0]).is_err());
    assert!(killed.control.wait(MINUTE).is_err());
    let until = Instant::now() + Duration::from_secs(10);
    for id in ids {
        while std::path::Path::new(&format!("/proc/{id}")).exists() {
            assert!(Instant::now() < until, "{id} still runs");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(run(&session, "true", b"", 10, MINUTE).unwrap().exit.success());
    // The session itself.
    drop(session);
    let _ = kill_process(rustix::process::getpid(), Signal::CONT);
    let log = || server.log();
    let until = Instant::now() + Duration::from_secs(10);
    while !log().contains("Received disconnect") {
        assert!(Instant::now() < until, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_configuration_names_the_host() {
    if !can("a_configuration_names_the_host") {
        return;
    }
    let server = Server::start("ecdsa", "");
    let home = Home::new();
    let key = home.key(&server, "other_name", &["-t", "ed25519"]);
    home.write_known(&format!("web {}\n", server.host_key()));
    home.configure(&format!(
        "Host web*\n  HostName 127.0.0.1\n  Port {}\n  User root\n  HostKeyAlias web\n  IdentityFile {}\n",
        server.port,
        key.display()
    ));
    let session = home.connect("web1", &home.options()).unwrap();
    let out = run(&session, "id -un", b"", 100, MINUTE).unwrap();
    assert_eq!(out.stdout, b"root\n");
}
