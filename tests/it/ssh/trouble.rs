//! Hosts between, hosts that stall, connections that are cut: each ends within its deadline, with its cause.

use super::server::{Home, Server, at, can, free_port, keygen, ready, refused};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vm2k::error::{Error, code};
use vm2k::ssh::transport::{Transport, run};
use vm2k::ssh::{Options, Session};

const MINUTE: Duration = Duration::from_secs(60);

/// A proxy before a server that passes on so many bytes in all, then cuts or stalls every connection.
struct Proxy {
    port: u16,
    ends: Arc<AtomicBool>,
}

impl Proxy {
    fn start(to: u16, limit: u64, stalls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
                    return;
                };
                let left = Arc::new(AtomicU64::new(limit));
                for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)]
                {
                    let left = Arc::clone(&left);
                    let end = Arc::clone(&end);
                    std::thread::spawn(move || {
                        let mut buf = [0; 4096];
                        while let Ok(count @ 1..) = from.read(&mut buf) {
                            let had = left
                                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |l| {
                                    Some(l.saturating_sub(count as u64))
                                })
                                .unwrap();
                            let passed = usize::try_from(had.min(count as u64)).unwrap();
                            let _ = to.write_all(&buf[..passed]);
                            if passed < count {
                                while stalls && !end.load(Ordering::SeqCst) {
                                    std::thread::sleep(Duration::from_millis(50));
                                }
                                break;
                            }
                        }
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { port, ends }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A home that knows the server behind a proxy as `web`.
fn through(home: &Home, server: &Server) -> Options {
    home.write_known(&format!("web {}\n", server.host_key()));
    home.configure("HostKeyAlias web\n");
    home.options()
}

/// Runs a command that sends and receives 300 KB.
fn exchange(session: &Session) -> Result<(), Error> {
    let data = vec![7; 300_000];
    let out = run(session, "cat", &data, 1 << 20, MINUTE)?;
    assert!(
        !out.exit.success() || out.stdout == data,
        "bytes were lost without an error"
    );
    match out.exit.success() {
        true => Ok(()),
        false => Err(Error::unsupported(out.exit.describe())),
    }
}

#[test]
fn a_connection_cut_anywhere_is_an_error_of_the_network() {
    if !can("a_connection_cut_anywhere_is_an_error_of_the_network") {
        return;
    }
    let count: u64 = std::env::var("VM2K_SSH_CUTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(12);
    let (server, home) = ready("");
    let options = through(&home, &server);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut longest = Duration::ZERO;
    let mut ended = 0;
    for round in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half of them in the handshake and the login, half in the data.
        let limit = if round % 2 == 0 {
            state % 6_000
        } else {
            state % 620_000
        };
        let proxy = Proxy::start(server.port, limit, false);
        let began = Instant::now();
        let target = format!("root@127.0.0.1:{}", proxy.port);
        let result = home
            .connect(&target, &options)
            .and_then(|session| exchange(&session));
        longest = longest.max(began.elapsed());
        if let Err(e) = result {
            ended += 1;
            assert_eq!(e.code(), code::NETWORK, "cut after {limit} bytes: {e}");
            assert!(e.to_string().contains("127.0.0.1"), "{e}");
        }
    }
    eprintln!("{count} cuts, {ended} of them noticed, the longest {longest:?}");
    assert!(ended >= count / 2, "{ended}");
    assert!(longest < Duration::from_secs(20), "{longest:?}");
}

#[test]
fn a_host_that_stalls_ends_within_the_deadline() {
    if !can("a_host_that_stalls_ends_within_the_deadline") {
        return;
    }
    let (server, home) = ready("");
    let mut options = through(&home, &server);
    options.connect_timeout = Some(Duration::from_secs(2));
    // In the handshake, by its proxy and by nobody who accepts.
    for limit in [0, 20, 1000] {
        let proxy = Proxy::start(server.port, limit, true);
        let began = Instant::now();
        let (code, text) = refused(home.connect(&format!("root@127.0.0.1:{}", proxy.port), &options));
        assert_eq!(code, code::NETWORK, "{text}");
        assert!(text.contains("handshake within 2 s"), "{text}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    // In the middle of the data: by the idle deadline of a read.
    options.connect_timeout = Some(Duration::from_secs(20));
    options.idle = Duration::from_secs(2);
    let session = home.connect(&at(&server), &options).unwrap();
    let mut process = session.start("cat /dev/zero").unwrap();
    let mut buf = vec![0; 1 << 16];
    process.stdout.read_exact(&mut buf).unwrap();
    server.signal(Signal::STOP);
    let began = Instant::now();
    let error = loop {
        if let Err(e) = process.stdout.read(&mut buf) {
            break Error::from_io("reading", e);
        }
    };
    assert_eq!(error.code(), code::NETWORK, "{error}");
    assert!(error.to_string().contains("did not answer within 2 s"), "{error}");
    // A write and a wait end too.
    let mut process_in = process.stdin;
    let error = loop {
        if let Err(e) = process_in.write(&buf) {
            break Error::from_io("writing", e);
        }
    };
    assert_eq!(error.code(), code::NETWORK, "{error}");
    assert!(process.control.wait(Duration::from_secs(1)).is_err());
    assert!(session.start("true").is_err());
    drop(process_in);
    drop((process.stdout, process.control));
    drop(session);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    server.signal(Signal::CONT);
    // One that only pauses is waited for.
    options.idle = Duration::from_secs(10);
    let session = home.connect(&at(&server), &options).unwrap();
    server.signal(Signal::STOP);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            server.signal(Signal::CONT);
        });
        assert_eq!(
            run(&session, "echo yes", b"", 10, MINUTE).unwrap().stdout,
            b"yes\n"
        );
    });
}

#[test]
fn a_far_side_that_does_not_answer_is_given_up() {
    if !can("a_far_side_that_does_not_answer_is_given_up") {
        return;
    }
    let (server, home) = ready("");
    let mut options = through(&home, &server);
    home.configure("HostKeyAlias web\nServerAliveInterval 2\nServerAliveCountMax 5\n");
    options.idle = MINUTE;
    let session = home.connect(&at(&server), &options).unwrap();
    // Quiet, but alive.
    let out = run(&session, "sleep 14; echo yes", b"", 10, MINUTE).unwrap();
    assert_eq!(out.stdout, b"yes\n");
    let mut process = session.start("sleep 100").unwrap();
    server.signal(Signal::STOP);
    let began = Instant::now();
    let error = Error::from_io("reading", process.stdout.read(&mut [0]).unwrap_err());
    assert_eq!(error.code(), code::NETWORK);
    assert!(error.to_string().contains("nothing came from"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(40));
    let error = session.start("true").err().unwrap();
    assert!(error.to_string().contains("nothing came from"), "{error}");
}

#[test]
fn hosts_that_cannot_be_reached_say_why() {
    if !can("hosts_that_cannot_be_reached_say_why") {
        return;
    }
    let home = Home::new();
    let options = home.options();
    let (code, text) = refused(home.connect(&format!("root@127.0.0.1:{}", free_port()), &options));
    assert_eq!(code, code::NETWORK, "{text}");
    assert!(
        text.contains("refused") && text.contains("check that the host is up"),
        "{text}"
    );
    let (code, text) = refused(home.connect("root@no-such-host.invalid", &options));
    assert_eq!(code, code::NETWORK, "{text}");
    assert!(text.contains("looking up no-such-host.invalid"), "{text}");
    // Something that is no ssh server.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let (code, text) = refused(home.connect(&format!("root@127.0.0.1:{port}"), &options));
    assert_eq!(code, code::NETWORK, "{text}");
    thread.join().unwrap();
    // What the configuration asks for and is not done here.
    home.configure("ProxyCommand nc %h %p\n");
    let (code, text) = refused(home.connect("root@web1", &home.options()));
    assert_eq!(code, code::UNSUPPORTED);
    assert!(
        text.contains("ProxyCommand nc %h %p") && text.contains("--rsh ssh"),
        "{text}"
    );
    home.configure("Host a\n ProxyJump b\nHost b\n ProxyJump a\n");
    let (code, text) = refused(home.connect("a", &home.options()));
    assert_eq!(code, code::USAGE, "{text}");
}

#[test]
fn an_old_host_ends_with_a_hint() {
    if !can("an_old_host_ends_with_a_hint") {
        return;
    }
    let server = Server::start("rsa", "HostKeyAlgorithms ssh-rsa");
    let home = Home::new();
    home.know(&server);
    home.key(&server, "id_ed25519", &["-t", "ed25519"]);
    let (code, text) = refused(home.connect(&at(&server), &home.options()));
    // The host hangs up too, and may be the first to do so.
    assert!([code::UNSUPPORTED, code::NETWORK].contains(&code), "{text}");
    assert!(
        text.contains("no algorithm in common") && text.contains("--rsh 'ssh "),
        "{text}"
    );
}

/// Two servers, the second is reached by way of the first.
fn jump() -> (Server, Server, Home) {
    let near = Server::start("ed25519", "");
    let far = Server::start("ecdsa", "");
    let home = Home::new();
    let key = keygen(&home.dir.path().join(".ssh"), "id_ed25519", &["-t", "ed25519"]);
    near.authorize(&key);
    far.authorize(&key);
    home.configure(&format!(
        "Host far\n HostName 127.0.0.1\n Port {}\n User root\n ProxyJump near\n\
         Host near\n HostName 127.0.0.1\n Port {}\n User root\n",
        far.port, near.port
    ));
    (near, far, home)
}

#[test]
fn a_host_behind_another() {
    if !can("a_host_behind_another") {
        return;
    }
    let (near, far, home) = jump();
    // The keys of both are checked.
    let (code, text) = refused(home.connect("far", &home.options()));
    assert_eq!(code, code::REFUSED);
    assert!(text.contains(&near.fingerprint()), "{text}");
    home.know(&near);
    let (code, text) = refused(home.connect("far", &home.options()));
    assert_eq!(code, code::REFUSED);
    assert!(text.contains(&far.fingerprint()), "{text}");
    home.know(&far);
    let session = home.connect("far", &home.options()).unwrap();
    assert_eq!(session.name(), format!("root@127.0.0.1:{}", far.port));
    let data = vec![9; 5 << 20];
    let out = run(&session, "cat", &data, 6 << 20, MINUTE).unwrap();
    assert!(out.stdout == data);
    let out = run(&session, "echo $SSH_CONNECTION", b"", 100, MINUTE).unwrap();
    assert!(
        String::from_utf8_lossy(&out.stdout)
            .trim()
            .ends_with(&far.port.to_string())
    );
    assert!(near.log().contains("Accepted publickey"));
    // Through both in a row, and by a list.
    let third = Server::start("ed25519", "");
    third.authorize(&home.path("id_ed25519"));
    home.know(&third);
    let before = std::fs::read_to_string(home.path("config")).unwrap();
    home.configure(&format!(
        "Host third\n HostName 127.0.0.1\n Port {}\n User root\n ProxyJump near,root@127.0.0.1:{}\n{before}",
        third.port, far.port
    ));
    let last = home.connect("third", &home.options()).unwrap();
    assert_eq!(run(&last, "echo yes", b"", 10, MINUTE).unwrap().stdout, b"yes\n");
    // A host between that is gone is the cause.
    let mut process = session.start("cat").unwrap();
    near.signal(Signal::KILL);
    let began = Instant::now();
    let error = Error::from_io("reading", process.stdout.read(&mut [0]).unwrap_err());
    assert_eq!(error.code(), code::NETWORK, "{error}");
    let error = session.start("true").err().unwrap();
    assert!(error.to_string().contains(&near.port.to_string()), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
    // One that does not answer, and one that nobody answers behind.
    let (near, _, home) = jump();
    home.know(&near);
    home.configure(&format!(
        "Host far\n HostName 127.0.0.1\n Port {}\n User root\n ProxyJump root@127.0.0.1:{}\n",
        free_port(),
        near.port
    ));
    let (code, text) = refused(home.connect("far", &home.options()));
    assert_eq!(code, code::NETWORK, "{text}");
    assert!(text.contains("makes no connection to 127.0.0.1"), "{text}");
}
