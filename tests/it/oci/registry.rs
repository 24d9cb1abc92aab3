//! Images of registries: docker-registry as it is, and one of our own that misbehaves.

use super::make::*;
use crate::support;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm2k::error::{Error, code};
use vm2k::oci::{self, OpenOptions, Platform, Reference};
use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::image::{Contents, ImageOptions, ImageSource};
use vm2k::store::{Digest, Store};

/// A request as the server saw it.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    target: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }
    fn range(&self) -> Option<usize> {
        self.headers
            .get("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// An answer: `cut` closes the connection after so many bytes of the body.
#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
    /// No Content-Length: the end of the connection is the end.
    unsized_body: bool,
}

fn ok(body: &[u8]) -> Reply {
    Reply {
        status: 200,
        body: body.to_vec(),
        ..Reply::default()
    }
}

fn status(status: u16) -> Reply {
    Reply {
        status,
        ..Reply::default()
    }
}

impl Reply {
    fn header(mut self, key: &str, value: &str) -> Self {
        self.headers.push((key.to_owned(), value.to_owned()));
        self
    }
}

struct Server {
    port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

fn serve(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let log = Arc::new(Mutex::new(Vec::new()));
    let handler = Arc::new(handler);
    let seen = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
            std::thread::spawn(move || answer(stream.unwrap(), &*handler, &seen));
        }
    });
    Server { port, log }
}

fn answer(
    mut stream: TcpStream,
    handler: &dyn Fn(&Request) -> Reply,
    log: &Mutex<Vec<Request>>,
) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 || head.len() > 65_536 || (head.is_empty() && byte[0] == 0x16) {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|l| l.split_once(": "))
        .map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |l| l.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    let request = Request {
        method,
        target,
        headers,
        body,
    };
    log.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    let mut out = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.unsized_body {
        out += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (k, v) in &reply.headers {
        out += &format!("{k}: {v}\r\n");
    }
    stream.write_all((out + "\r\n").as_bytes()).ok()?;
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    stream.write_all(body).ok()
}

/// What a registry that does nothing wrong answers for the repository `a/b` with one image under the tag `t`.
fn standard(made: &Made, request: &Request) -> Reply {
    let path = request.path();
    if let Some(tag) = path.strip_prefix("/v2/a/b/manifests/") {
        if tag == "t" || tag == Digest::of(&made.manifest).to_string() {
            return ok(&made.manifest)
                .header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                .header("Docker-Content-Digest", &Digest::of(&made.manifest).to_string());
        }
        let page = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        return Reply {
            body: page.to_vec(),
            ..status(404)
        };
    }
    if let Some(digest) = path.strip_prefix("/v2/a/b/blobs/") {
        let all = made.blobs.iter().chain([&made.config]);
        for blob in all {
            if Digest::of(blob).to_string() == digest {
                return match request.range() {
                    Some(start) if start < blob.len() => Reply {
                        body: blob[start..].to_vec(),
                        ..status(206)
                    }
                    .header(
                        "Content-Range",
                        &format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()),
                    ),
                    Some(_) => status(416),
                    None => ok(blob),
                };
            }
        }
    }
    status(if path == "/v2/" { 200 } else { 404 })
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> String {
    let mut rng = Rng(seed);
    (0..len)
        .map(|_| char::from(b'!' + (rng.next() >> 40) as u8 % 90))
        .collect()
}

fn small() -> Made {
    let layers = [
        Tar::default().file("a", &noise(40_000, 1)).end(),
        Tar::default()
            .file("b", &noise(20_000, 2))
            .file(".wh.a", "")
            .end(),
    ];
    make(&layers, Zip::Gzip, "amd64")
}

fn is_layer(made: &Made, request: &Request) -> bool {
    made.blobs
        .iter()
        .any(|b| request.path().ends_with(&Digest::of(b).hex()))
}

/// Opens the image and reads all of it.
fn pull_with(
    name: &str,
    store: &Arc<Store>,
    change: impl FnOnce(&mut OpenOptions),
) -> vm2k::error::Result<Vec<String>> {
    let mut options = OpenOptions::new(Arc::clone(store));
    change(&mut options);
    let image = oci::open(&Reference::parse_base(name)?, &options, &Silent)?;
    let options = ImageOptions {
        cached: false,
        keep: Contents::None,
        import: false,
    };
    let source = ImageSource::open(image, Arc::clone(store), options, &Silent)?;
    Ok(source.tree().iter().skip(1).map(|(p, _)| p.to_string()).collect())
}

fn pull(server: &Server, store: &Arc<Store>) -> vm2k::error::Result<Vec<String>> {
    pull_with(&format!("127.0.0.1:{}/a/b:t", server.port), store, |_| {})
}

/// Nothing but what is whole is in the store, and nothing half-written.
fn assert_clean(store: &Store) {
    assert_eq!(std::fs::read_dir(store.dir().join("tmp")).unwrap().count(), 0);
    for entry in std::fs::read_dir(store.dir().join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let digest = Digest::of(&std::fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), digest.hex());
    }
}

fn inner(e: &Error) -> &Error {
    match e {
        Error::Hinted { source, .. } => source.downcast_ref::<Error>().map_or(e, inner),
        e => e,
    }
}

#[test]
fn a_token_goes_to_the_registry_a_password_to_the_realm_and_neither_where_a_blob_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let made = Arc::new(small());
    let cdn_made = Arc::clone(&made);
    let cdn = serve(move |r| standard(&cdn_made, r));
    let realm = serve(|r| {
        let known = r.headers.get("authorization").map(String::as_str) == Some("Basic dTpzZWNyZXQ=");
        if known {
            ok(br#"{"access_token":"good-token"}"#)
        } else {
            status(401)
        }
    });
    let (realm_port, cdn_port) = (realm.port, cdn.port);
    let m = Arc::clone(&made);
    let registry = serve(move |r| {
        if r.headers.get("authorization").map(String::as_str) != Some("Bearer good-token") {
            let challenge = format!(
                "Bearer realm=\"http://127.0.0.1:{realm_port}/token?x=1\",service=\"me\",scope=\"everything\""
            );
            return status(401).header("WWW-Authenticate", &challenge);
        }
        if is_layer(&m, r) {
            return status(307).header("Location", &format!("http://127.0.0.1:{cdn_port}{}", r.target));
        }
        standard(&m, r)
    });
    let auth = dir.path().join("auth.json");
    std::fs::write(
        &auth,
        format!(
            r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dTpzZWNyZXQ="}}}}}}"#,
            registry.port
        ),
    )
    .unwrap();
    let name = format!("127.0.0.1:{}/a/b:t", registry.port);
    let files = pull_with(&name, &store, |o| o.auth_file = Some(auth.clone())).unwrap();
    assert_eq!(files, ["/b"]);
    let tokens = realm.log.lock().unwrap().clone();
    assert_eq!(tokens.len(), 1);
    assert_eq!(
        tokens[0].target,
        "/token?x=1&scope=repository%3Aa%2Fb%3Apull&service=me&account=u"
    );
    assert!(registry.log.lock().unwrap().iter().all(|r| {
        !r.headers
            .get("authorization")
            .is_some_and(|a| a.contains("Basic"))
    }));
    let cdn_log = cdn.log.lock().unwrap().clone();
    assert_eq!(cdn_log.len(), 2);
    assert!(
        cdn_log
            .iter()
            .all(|r| !r.headers.contains_key("authorization") && !r.headers.contains_key("referer"))
    );
    // Without the password.
    std::fs::write(&auth, "{}").unwrap();
    let fresh = Arc::new(Store::open(&dir.path().join("fresh")).unwrap());
    let e = pull_with(&name, &fresh, |o| o.auth_file = Some(auth)).unwrap_err();
    assert!(
        matches!(inner(&e), Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied),
        "{e:?}"
    );
    let text = vm2k::error::report(&e.into());
    assert!(
        text.contains("docker login") && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn an_identity_token_is_posted_and_a_realm_is_not_followed_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let made = Arc::new(small());
    let elsewhere = serve(|_| ok(br#"{"token":"stolen"}"#));
    let redirect_to = Arc::new(Mutex::new(None::<u16>));
    let to = Arc::clone(&redirect_to);
    let realm = serve(move |r| {
        if let Some(port) = *to.lock().unwrap() {
            return status(307).header("Location", &format!("http://127.0.0.1:{port}/"));
        }
        assert_eq!(r.method, "POST");
        let body = String::from_utf8(r.body.clone()).unwrap();
        if body.contains("grant_type=refresh_token")
            && body.contains("refresh_token=idtoken")
            && body.contains("service=me")
        {
            ok(br#"{"token":"t1"}"#)
        } else {
            status(400)
        }
    });
    let port = realm.port;
    let registry = serve(
        move |r| match r.headers.get("authorization").map(String::as_str) {
            Some("Bearer t1") => standard(&made, r),
            _ => status(401).header(
                "WWW-Authenticate",
                &format!("Bearer realm=\"http://127.0.0.1:{port}/\",service=\"me\""),
            ),
        },
    );
    let auth = dir.path().join("auth.json");
    std::fs::write(
        &auth,
        format!(
            r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dTpw","identitytoken":"idtoken"}}}}}}"#,
            registry.port
        ),
    )
    .unwrap();
    let name = format!("127.0.0.1:{}/a/b:t", registry.port);
    pull_with(&name, &store, |o| o.auth_file = Some(auth.clone())).unwrap();
    *redirect_to.lock().unwrap() = Some(elsewhere.port);
    let fresh = Arc::new(Store::open(&dir.path().join("fresh")).unwrap());
    pull_with(&name, &fresh, |o| o.auth_file = Some(auth)).unwrap_err();
    assert!(elsewhere.log.lock().unwrap().is_empty());
}

#[test]
fn tokens_and_headers_of_strangers_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for answer in [
        "{\"token\":\"a\\nb\"}",
        "{\"token\":\"\\u0000\"}",
        "{}",
        "x",
        "{\"token\":5}",
    ] {
        let body = answer.to_owned();
        let realm = serve(move |_| ok(body.as_bytes()));
        let port = realm.port;
        let registry = serve(move |_| {
            status(401).header(
                "WWW-Authenticate",
                &format!("Bearer realm=\"http://127.0.0.1:{port}/\""),
            )
        });
        let e = pull(&registry, &store).unwrap_err();
        assert_eq!(e.code(), code::CORRUPT, "{answer}: {e:?}");
    }
    for challenge in [
        "",
        "Bearer",
        "Bearer realm=\"\"",
        "Bearer realm=\"ftp://x/\"",
        "Basic realm=x",
        "\"",
        "Bearer realm=\"http://[\"",
    ] {
        let registry = serve(move |_| status(401).header("WWW-Authenticate", challenge));
        pull(&registry, &store).unwrap_err();
    }
    for location in ["", "http://[", "file:///etc/passwd", "//", "http://127.0.0.1:1/"] {
        let registry = serve(move |_| status(302).header("Location", location));
        pull(&registry, &store).unwrap_err();
    }
    let registry = serve(|r| status(302).header("Location", &r.target));
    let e = pull(&registry, &store).unwrap_err();
    assert_eq!(e.code(), code::NETWORK);
}

#[test]
fn a_cut_transfer_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Tar::default().file("big", &noise(3 << 20, 3)).end();
    let made = Arc::new(make(&[layer], Zip::None, "amd64"));
    let size = made.blobs[0].len();
    for ranges in [true, false] {
        let store = Arc::new(Store::open(&dir.path().join(format!("s{ranges}"))).unwrap());
        let m = Arc::clone(&made);
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let tries = AtomicUsize::new(0);
        let server = serve(move |r| {
            let mut r = r.clone();
            if !ranges {
                r.headers.remove("range");
            }
            let mut reply = standard(&m, &r);
            if is_layer(&m, &r) {
                let last = !ranges && tries.fetch_add(1, Ordering::SeqCst) == 2;
                reply.cut = (!last).then_some(700_000);
                count.fetch_add(
                    reply.body.len().min(reply.cut.unwrap_or(usize::MAX)),
                    Ordering::SeqCst,
                );
            }
            reply
        });
        assert_eq!(pull(&server, &store).unwrap(), ["/big"]);
        let sent = sent.load(Ordering::SeqCst);
        if ranges {
            // What was cut off on its way may be sent twice, but not more.
            assert!(sent < size * 3 / 2, "{sent} of {size}");
        }
        assert_clean(&store);
    }
}

#[test]
fn wrong_bytes_and_sizes_are_corrupt_and_nothing_of_them_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let made = Arc::new(small());
    type Change = fn(&mut Reply);
    let changes: [(&str, Change); 5] = [
        ("wrong", |r| r.body[100] ^= 1),
        ("longer", |r| r.body.extend_from_slice(b"x")),
        ("shorter", |r| {
            r.body.pop();
        }),
        ("endless", |r| {
            r.body = vec![0; 50 << 20];
            r.unsized_body = true;
        }),
        ("empty", |r| r.body.clear()),
    ];
    for (what, change) in changes {
        let store = Arc::new(Store::open(&dir.path().join(what)).unwrap());
        let m = Arc::clone(&made);
        let server = serve(move |r| {
            let mut reply = standard(&m, r);
            if is_layer(&m, r) {
                change(&mut reply);
            }
            reply
        });
        let e = pull(&server, &store).unwrap_err();
        assert!(matches!(inner(&e), Error::Corrupt { .. }), "{what}: {e:?}");
        assert_clean(&store);
        // Once is forgiven.
        let m = Arc::clone(&made);
        let tries = AtomicUsize::new(0);
        let server = serve(move |r| {
            let mut reply = standard(&m, r);
            if is_layer(&m, r) && tries.fetch_add(1, Ordering::SeqCst) == 0 {
                change(&mut reply);
            }
            reply
        });
        assert_eq!(pull(&server, &store).unwrap(), ["/b"], "{what}");
        assert_clean(&store);
    }
}

#[test]
fn manifests_are_bounded_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let made = Arc::new(small());
    let endless = serve(|_| Reply {
        body: vec![b' '; 60 << 20],
        unsized_body: true,
        ..status(200)
    });
    let e = pull(&endless, &store).unwrap_err();
    assert!(matches!(inner(&e), Error::Unsupported { .. }), "{e:?}");
    let m = Arc::clone(&made);
    let liar = serve(move |r| {
        let mut reply = standard(&m, r);
        reply.headers.clear();
        reply.header("Docker-Content-Digest", &Digest::of(b"").to_string())
    });
    assert_eq!(pull(&liar, &store).unwrap_err().code(), code::CORRUPT);
    let m = Arc::clone(&made);
    let other = serve(move |r| {
        if r.path().contains("manifests") {
            ok(b"{}")
        } else {
            standard(&m, r)
        }
    });
    let name = format!("127.0.0.1:{}/a/b@{}", other.port, Digest::of(&made.manifest));
    let e = pull_with(&name, &store, |_| {}).unwrap_err();
    assert_eq!(e.code(), code::CORRUPT, "{e:?}");
    for (document, wanted) in [
        (r#"{"schemaVersion":1,"fsLayers":[]}"#, code::UNSUPPORTED),
        (
            r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#,
            code::CORRUPT,
        ),
        (r#"{"schemaVersion":2,"manifests":[]}"#, code::UNSUPPORTED),
        (r#"{"schemaVersion":2,"layers":[]}"#, code::CORRUPT),
        (r#"[]"#, code::CORRUPT),
        (&"[".repeat(100_000), code::CORRUPT),
    ] {
        let body = document.to_owned();
        let server = serve(move |_| ok(body.as_bytes()));
        let e = pull(&server, &store).unwrap_err();
        assert_eq!(e.code(), wanted, "{}: {e:?}", &document[..document.len().min(60)]);
    }
    let foreign = |layer: serde_json::Value| {
        let mut manifest: serde_json::Value = serde_json::from_slice(&made.manifest).unwrap();
        manifest["layers"][0]
            .as_object_mut()
            .unwrap()
            .extend(layer.as_object().unwrap().clone());
        let made = Made {
            manifest: serde_json::to_vec(&manifest).unwrap(),
            config: made.config.clone(),
            blobs: made.blobs.clone(),
        };
        pull(&serve(move |r| standard(&made, r)), &store)
            .unwrap_err()
            .code()
    };
    assert_eq!(
        foreign(serde_json::json!({"urls": ["http://127.0.0.1:1/x"]})),
        code::REFUSED
    );
    assert_eq!(
        foreign(
            serde_json::json!({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"})
        ),
        code::REFUSED
    );
    assert_eq!(
        foreign(serde_json::json!({"mediaType": "application/vnd.example"})),
        code::UNSUPPORTED
    );
    assert_eq!(
        foreign(serde_json::json!({"digest": "sha256:../../x"})),
        code::CORRUPT
    );
}

#[test]
fn errors_name_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let start = Instant::now();
    let e = pull_with(&format!("127.0.0.1:{closed}/a/b:t"), &store, |_| {}).unwrap_err();
    assert_eq!(e.code(), code::NETWORK);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let text = vm2k::error::report(&e.into());
    assert!(
        text.contains("refused") && text.contains("hint: ") && text.contains("oci:DIR"),
        "{text}"
    );
    let e = pull_with("registry.invalid/a/b:t", &store, |_| {}).unwrap_err();
    assert_eq!(e.code(), code::NETWORK);
    let made = Arc::new(small());
    let m = Arc::clone(&made);
    let server = serve(move |r| standard(&m, r));
    let e = pull_with(&format!("127.0.0.1:{}/a/b:other", server.port), &store, |_| {}).unwrap_err();
    let text = vm2k::error::report(&e.into());
    assert!(
        text.contains("no such image") && text.contains("MANIFEST_UNKNOWN"),
        "{text}"
    );
    let arm = |o: &mut OpenOptions| o.platform = Some(Platform::of_machine("aarch64"));
    let e = pull_with(&format!("127.0.0.1:{}/a/b:t", server.port), &store, arm).unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED);
    assert!(e.to_string().contains("linux/amd64, not for linux/arm64"), "{e}");
    // A server that says nothing but that it is busy, then works.
    let tries = AtomicUsize::new(0);
    let server = serve(move |r| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => status(503),
        1 => status(429).header("Retry-After", "0"),
        _ => standard(&made, r),
    });
    assert_eq!(pull(&server, &store).unwrap(), ["/b"]);
    let busy = serve(|_| status(503));
    let e = pull(&busy, &store).unwrap_err();
    assert_eq!(e.code(), code::NETWORK);
}

#[test]
fn what_was_fetched_is_there_without_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let made = Arc::new(small());
    let m = Arc::clone(&made);
    let down = Arc::new(AtomicUsize::new(0));
    let is_down = Arc::clone(&down);
    let server = serve(move |r| {
        assert_eq!(is_down.load(Ordering::SeqCst), 0, "{r:?}");
        standard(&m, r)
    });
    let by_tag = format!("127.0.0.1:{}/a/b:t", server.port);
    let by_digest = format!("127.0.0.1:{}/a/b@{}", server.port, Digest::of(&made.manifest));
    let offline = |o: &mut OpenOptions| o.offline = true;
    let e = pull_with(&by_tag, &store, offline).unwrap_err();
    assert_eq!(e.code(), code::NETWORK);
    assert!(vm2k::error::report(&e.into()).contains("--offline"));
    pull_with(&by_tag, &store, |_| {}).unwrap();
    down.store(1, Ordering::SeqCst);
    let seen = server.log.lock().unwrap().len();
    assert_eq!(pull_with(&by_tag, &store, offline).unwrap(), ["/b"]);
    assert_eq!(pull_with(&by_digest, &store, offline).unwrap(), ["/b"]);
    assert_eq!(pull_with(&by_digest, &store, |_| {}).unwrap(), ["/b"]);
    assert_eq!(server.log.lock().unwrap().len(), seen);
    // A blob that rotted in the store is fetched again, or missed.
    let rotten = store.blob_path(&Digest::of(&made.blobs[0]));
    std::thread::sleep(Duration::from_millis(20));
    std::fs::remove_file(&rotten).unwrap();
    std::fs::write(&rotten, vec![0; made.blobs[0].len()]).unwrap();
    let e = pull_with(&by_tag, &store, offline).unwrap_err();
    assert_eq!(e.code(), code::NETWORK, "{e:?}");
    std::fs::write(&rotten, vec![0; made.blobs[0].len()]).unwrap();
    down.store(0, Ordering::SeqCst);
    assert_eq!(pull_with(&by_tag, &store, |_| {}).unwrap(), ["/b"]);
    assert_clean(&store);
}

#[test]
fn a_list_is_searched_for_the_platform() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let one = |arch: &str| make(&[Tar::default().file(arch, "").end()], Zip::Gzip, arch);
    let all: Vec<(Made, Option<&str>)> = vec![
        (one("arm"), Some("v6")),
        (one("arm"), Some("v7")),
        (one("arm64"), Some("v8")),
        (one("amd64"), None),
        (one("s390x"), None),
    ];
    let entries: Vec<serde_json::Value> = all
        .iter()
        .map(|(made, variant)| {
            let config: serde_json::Value = serde_json::from_slice(&made.config).unwrap();
            let mut platform = serde_json::json!({"os": "linux", "architecture": config["architecture"]});
            if let Some(variant) = variant {
                platform["variant"] = (*variant).into();
            }
            serde_json::json!({"mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "digest": Digest::of(&made.manifest), "size": made.manifest.len(), "platform": platform})
        })
        .chain([serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(b""), "size": 0,
            "platform": {"os": "unknown", "architecture": "unknown"}, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}})])
        .collect();
    let list = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json", "manifests": entries}))
    .unwrap();
    let server = serve(move |r| {
        if r.path().ends_with("/manifests/t") {
            return ok(&list);
        }
        let all = all.iter().map(|(made, _)| standard(made, r));
        all.into_iter()
            .find(|r| r.status == 200)
            .unwrap_or_else(|| status(404))
    });
    let name = format!("127.0.0.1:{}/a/b:t", server.port);
    for (machine, want) in [
        ("x86_64", "/amd64"),
        ("aarch64", "/arm64"),
        ("armv7l", "/arm"),
        ("s390x", "/s390x"),
    ] {
        let got = pull_with(&name, &store, |o| {
            o.platform = Some(Platform::of_machine(machine))
        })
        .unwrap();
        assert_eq!(got, [want]);
    }
    let e = pull_with(&name, &store, |o| {
        o.platform = Some(Platform::of_machine("riscv64"))
    })
    .unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED);
    assert!(
        e.to_string()
            .contains("linux/arm/v6, linux/arm/v7, linux/arm64/v8, linux/amd64, linux/s390x"),
        "{e}"
    );
}

#[test]
fn random_faults_give_the_right_image_or_an_error() {
    let made = Arc::new(small());
    let next = AtomicUsize::new(0);
    let (right, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                loop {
                    let round = next.fetch_add(1, Ordering::SeqCst);
                    if round >= 240 {
                        return;
                    }
                    let dir = tempfile::tempdir().unwrap();
                    let store = store(dir.path());
                    let m = Arc::clone(&made);
                    let rng = Mutex::new(Rng(round as u64 + 1));
                    let server = serve(move |r| {
                        let mut rng = rng.lock().unwrap();
                        let mut reply = standard(&m, r);
                        if rng.below(2) == 0 || reply.body.is_empty() {
                            return reply;
                        }
                        let at = rng.below(reply.body.len());
                        match rng.below(7) {
                            0 => reply.cut = Some(at),
                            1 => reply.body[at] ^= 1 << rng.below(8),
                            2 => reply.status = [500, 503, 408, 429][rng.below(4)],
                            3 => reply.body.truncate(at),
                            4 => reply.body.extend_from_slice(b"more"),
                            5 => {
                                reply.unsized_body = true;
                                reply.cut = Some(at);
                            }
                            _ => reply.headers.retain(|(k, _)| k != "Content-Range"),
                        }
                        reply
                    });
                    match pull(&server, &store) {
                        Ok(files) => {
                            assert_eq!(files, ["/b"]);
                            right.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(e) => {
                            assert!([code::NETWORK, code::CORRUPT].contains(&e.code()), "{e:?}");
                            failed.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    assert_clean(&store);
                }
            });
        }
    });
    eprintln!(
        "240 schedules of faults: {} right images, {} errors, 0 wrong images",
        right.load(Ordering::SeqCst),
        failed.load(Ordering::SeqCst)
    );
    assert!(right.load(Ordering::SeqCst) > 100);
}

/// docker-registry on a free port, its files in `dir`.
struct Registry {
    child: Child,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn docker_registry(dir: &Path, more: &str) -> Registry {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = dir.join("registry.yml");
    std::fs::write(&config, format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\nhttp:\n  addr: '127.0.0.1:{port}'\n{more}\n",
        dir.display()
    )).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..200 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Registry { child, port }
}

#[test]
fn docker_registry_anonymous_and_with_a_password() {
    if !support::tools("docker_registry", &["docker-registry", "skopeo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layers = [
        Tar::default().file("a", "lower").file("gone", "").end(),
        Tar::default()
            .file("b", &noise(5 << 20, 9))
            .file(".wh.gone", "")
            .end(),
    ];
    let made = layout(&dir.path().join("l"), &layers, Zip::Gzip);
    // user u, password secret
    std::fs::write(
        dir.path().join("htpasswd"),
        "u:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n",
    )
    .unwrap();
    let basic = format!(
        "auth: {{htpasswd: {{realm: r, path: {}/htpasswd}}}}",
        dir.path().display()
    );
    for (round, more) in [String::new(), basic].into_iter().enumerate() {
        let at = dir.path().join(format!("r{round}"));
        std::fs::create_dir(&at).unwrap();
        let registry = docker_registry(&at, &more);
        let name = format!("127.0.0.1:{}/team/app:1", registry.port);
        let auth = at.join("auth.json");
        std::fs::write(
            &auth,
            format!(
                r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dTpzZWNyZXQ="}}}}}}"#,
                registry.port
            ),
        )
        .unwrap();
        support::run(
            Command::new("skopeo")
                .args([
                    "--insecure-policy",
                    "copy",
                    "-q",
                    "--dest-tls-verify=false",
                    "--dest-authfile",
                ])
                .arg(&auth)
                .arg(format!("oci:{}/l:t", dir.path().display()))
                .arg(format!("docker://{name}")),
        );
        let store = store(&at);
        if round == 1 {
            std::fs::write(at.join("empty"), "{}").unwrap();
            let e = pull_with(&name, &store, |o| o.auth_file = Some(at.join("empty"))).unwrap_err();
            assert!(vm2k::error::report(&e.into()).contains("wants a login"));
            std::fs::write(
                at.join("wrong"),
                std::fs::read_to_string(&auth)
                    .unwrap()
                    .replace("dTpzZWNyZXQ=", "dTp3cm9uZw=="),
            )
            .unwrap();
            let e = pull_with(&name, &store, |o| o.auth_file = Some(at.join("wrong"))).unwrap_err();
            assert!(vm2k::error::report(&e.into()).contains("wants a login"));
        }
        let files = pull_with(&name, &store, |o| o.auth_file = Some(auth.clone())).unwrap();
        assert_eq!(files, ["/a", "/b"]);
        assert!(store.has(&Digest::of(&made.blobs[1])));
        assert_clean(&store);
        // By the path that people use: the credentials where docker, podman and a helper keep them.
        if round == 1 {
            for kind in ["docker", "podman", "helper"] {
                let home = at.join(kind);
                std::fs::create_dir(&home).unwrap();
                let mut child = Command::new(std::env::current_exe().unwrap());
                child
                    .args(["--exact", "oci::registry::child_pull", "--ignored"])
                    .env("VM2K_TEST_PULL", &name)
                    .env("VM2K_TEST_STORE", home.join("s"));
                child
                    .env("DOCKER_CONFIG", &home)
                    .env("XDG_RUNTIME_DIR", &home)
                    .env_remove("REGISTRY_AUTH_FILE");
                match kind {
                    "docker" => {
                        std::fs::copy(&auth, home.join("config.json")).unwrap();
                    }
                    "podman" => {
                        std::fs::create_dir(home.join("containers")).unwrap();
                        std::fs::copy(&auth, home.join("containers/auth.json")).unwrap();
                    }
                    _ => {
                        std::fs::write(home.join("config.json"), r#"{"credsStore":"vm2ktest"}"#).unwrap();
                        let helper = home.join("docker-credential-vm2ktest");
                        support::bash(
                            r#"printf '#!/bin/sh\nread server\necho "{\\"Username\\":\\"u\\",\\"Secret\\":\\"secret\\"}"\n' > "$1"; chmod +x "$1""#,
                            &[&helper],
                        );
                        let path = std::env::var("PATH").unwrap();
                        child.env("PATH", format!("{}:{path}", home.display()));
                    }
                }
                support::run(&mut child);
            }
        }
    }
}

#[test]
fn docker_registry_over_tls() {
    if !support::tools(
        "docker_registry_over_tls",
        &["docker-registry", "skopeo", "openssl"],
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layers = [
        Tar::default().file("a", "lower").end(),
        Tar::default().file("b", "upper").end(),
    ];
    layout(&dir.path().join("l"), &layers, Zip::Gzip);
    support::bash(
        r#"cd "$1"; mkdir certs; openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca 2>/dev/null
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out req.pem -subj /CN=registry 2>/dev/null
        printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' > ext
        openssl x509 -req -in req.pem -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem 2>/dev/null; cp ca.crt certs/"#,
        &[dir.path()],
    );
    let d = dir.path().display();
    let registry = docker_registry(
        dir.path(),
        &format!("  tls: {{certificate: {d}/cert.pem, key: {d}/key.pem}}"),
    );
    let name = format!("127.0.0.1:{}/team/app:1", registry.port);
    support::run(
        Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q"])
            .arg(format!("--dest-cert-dir={d}/certs"))
            .arg(format!("oci:{d}/l:t"))
            .arg(format!("docker://{name}")),
    );
    let child = |store: &str, certificates: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "oci::registry::child_pull", "--ignored"])
            .env("VM2K_TEST_PULL", &name)
            .env("VM2K_TEST_STORE", dir.path().join(store))
            .env("SSL_CERT_FILE", dir.path().join(certificates))
            .env_remove("SSL_CERT_DIR");
        child
    };
    support::run(&mut child("trusting", "ca.crt"));
    // A certificate that nobody vouches for: nothing is read.
    support::bash(
        r#"cd "$1"; openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -days 2 -subj /CN=other 2>/dev/null"#,
        &[dir.path()],
    );
    assert!(!child("doubting", "other.crt").output().unwrap().status.success());
    assert_eq!(
        std::fs::read_dir(dir.path().join("doubting/blobs/sha256"))
            .unwrap()
            .count(),
        0
    );
}

/// The other half of the tests above, in a process with an environment of its own.
#[test]
#[ignore = "run by docker_registry_anonymous_and_with_a_password"]
fn child_pull() {
    let (Ok(name), Some(dir)) = (
        std::env::var("VM2K_TEST_PULL"),
        std::env::var_os("VM2K_TEST_STORE"),
    ) else {
        return;
    };
    let store = Arc::new(Store::open(Path::new(&dir)).unwrap());
    assert_eq!(pull_with(&name, &store, |_| {}).unwrap(), ["/a", "/b"]);
}
