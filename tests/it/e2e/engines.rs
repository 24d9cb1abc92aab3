//! The image in the engines that people run containers with: podman and docker load it, and nginx answers from it.

use super::{Machine, Work, ended, machine, repository};
use crate::support::{bash, tools};
use std::path::Path;

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// With `engine` (`podman_here` or `docker_here` of tests/lib.sh): load, run nginx on another port, ask it for its page.
const SERVE: &str = r#"
engine() { "$engine" "$@"; }
engine load --input "$archive" > "$work/loaded"
loaded=$(sed -n 's/^Loaded image[^:]*: *//p' "$work/loaded" | tail -n 1)
test -n "$loaded"
container=vm2k-test-$$
engine run --detach --name "$container" "${run_options[@]}" "$loaded" \
    sh -c "sed -i s/8080/$port/ /etc/nginx/sites-available/default && exec nginx -g 'daemon off;'" > /dev/null
for _ in $(seq 1 100); do
    answer=$(curl --silent --max-time 2 "http://127.0.0.1:$port/") && break
    sleep 0.1
done
[ "$answer" = "<h1>$hostname says hello</h1>" ] || { engine logs "$container" >&2; fail "no answer: $answer"; }
# Links, modes, names and capabilities as the engine shows them.
engine exec "$container" sh -ec '
    [ "$(stat -c %h /srv/hard/links/a)" = 4 ]
    [ "$(stat -c %a /srv/hard/modes/file-4755)" = 4755 ]
    [ "$(stat -c %u:%g /srv/hard/modes/owner-3000000)" = 3000000:4000000000 ]
    [ "$(stat -c %s /srv/hard/sparse)" -gt 60000000 ]
    [ "$(readlink /usr/bin/tac)" = cat ]
    [ -p /srv/hard/fifo ]
    [ ! -e /usr/bin/shuf ]
    [ ! -e /usr/share/doc/bash ]
    [ -d /usr/share/pam/common-account ]
    dpkg-query -W nginx-light > /dev/null
    dpkg --audit
'
engine rm -f "$container" > /dev/null
container=
"#;

fn archive(
    test: &str,
    kind: &str,
    transport: &str,
    compress: Option<&str>,
) -> Option<(Work, &'static Machine)> {
    let machine = machine(test, kind)?;
    let work = Work::new();
    let mut command = work.vm2k(["convert"]);
    command
        .args(compress.map(|method| format!("--compress={method}")))
        .arg(machine.qcow2())
        .args(["--base", &machine.base(), "-o"]);
    ended(command.arg(work.output(transport, "image.tar"))).expect(0);
    Some((work, machine))
}

fn serve(engine: &str, work: &Work, machine: &Machine) {
    let script = format!(
        r#". "$1"; archive=$2; hostname=$3; port=$4; engine={engine}
        make_work
        [ $engine != docker_here ] || docker_start
        {SERVE}"#
    );
    let port = free_port().to_string();
    let hostname = machine.fact("hostname");
    bash(
        &script,
        &[
            &repository("tests/lib.sh"),
            &work.path("out/image.tar"),
            Path::new(&hostname),
            Path::new(&port),
        ],
    );
}

#[test]
fn nginx_answers_from_podman() {
    let test = "nginx_answers_from_podman";
    if !tools(test, &["podman", "curl"]) {
        return;
    }
    let Some((work, machine)) = archive(test, "full", "oci-archive", Some("zstd")) else {
        return;
    };
    serve("podman_here", &work, machine);
}

#[test]
fn nginx_answers_from_docker() {
    let test = "nginx_answers_from_docker";
    if !tools(test, &["docker", "dockerd", "curl"]) {
        return;
    }
    let Some((work, machine)) = archive(test, "small", "oci-archive", None) else {
        return;
    };
    serve("docker_here", &work, machine);
}

#[test]
fn podman_and_docker_load_the_docker_archive() {
    let test = "podman_and_docker_load_the_docker_archive";
    if !tools(test, &["docker", "dockerd", "podman", "curl"]) {
        return;
    }
    let Some((work, machine)) = archive(test, "small", "docker-archive", None) else {
        return;
    };
    serve("podman_here", &work, machine);
    serve("docker_here", &work, machine);
}
