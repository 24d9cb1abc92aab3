# What the scripts share (sourced, bash). Makes one work folder, $work, and removes it at the end with all that runs in it.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The machines' disks are made once and kept here; VM2K_TEST_CACHE moves the place.
machines=${VM2K_TEST_CACHE:-/var/tmp/vm2k-machine}
PATH=$PATH:/usr/sbin:/sbin

say() { printf '\n== %s\n' "$*" >&2; }
fail() {
    echo "error: $*" >&2
    exit 1
}

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

# Runs a command as somebody who may nothing: nobody if we are root, else ourselves. HOME and the store are in $work.
unprivileged() {
    local drop=()
    [ "$(id -u)" != 0 ] || drop=(setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all)
    "${drop[@]}" env HOME="$work/user" VM2K_STORE="$work/user/store" "$@"
}

make_work() {
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/vm2k.XXXXXX")
    chmod 755 "$work"
    mkdir "$work/user"
    [ "$(id -u)" != 0 ] || chown 65534:65534 "$work/user"
    trap clean_work EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_work() {
    local status=$?
    trap - EXIT
    [ -z "${build:-}" ] || kill "$build" 2> /dev/null || true
    [ -z "${container:-}" ] || podman_here rm -f -t 1 "$container" > /dev/null 2>&1 || true
    [ -z "${server:-}" ] || kill "$server" 2> /dev/null || true
    docker_stop
    local at
    findmnt -rno TARGET | tac | while read -r at; do
        case $at in "$work"/*) "${as_root[@]}" umount "$at" || "${as_root[@]}" umount -l "$at" ;; esac
    done
    "${as_root[@]}" rm -rf --one-file-system "$work"
    exit "$status"
}

# podman with storage of its own in $work, so that nothing of the machine's own podman is touched.
podman_here() {
    if [ -z "${podman_driver:-}" ]; then
        podman_driver=overlay
        "${as_root[@]}" podman --root "$work/podman" --runroot "$work/podman-run" --storage-driver overlay info > /dev/null 2>&1 ||
            podman_driver=vfs
    fi
    local runtime=()
    [ ! -x /usr/sbin/runc ] && [ ! -x /usr/bin/runc ] || runtime=(--runtime runc)
    "${as_root[@]}" podman --root "$work/podman" --runroot "$work/podman-run" --storage-driver "$podman_driver" \
        --cgroup-manager cgroupfs --events-backend file --log-level error "${runtime[@]}" "$@"
}

# What `podman run` needs where limits cannot be raised and networks cannot be made, and what harms nowhere else.
run_options=(--ulimit nofile=1024:1024 --ulimit nproc=4096:4096 --network host)

# A Docker Engine of our own in $work; `docker_here` talks to it.
docker_start() {
    mkdir -p "$work/docker"
    "${as_root[@]}" setsid dockerd --data-root "$work/docker/data" --exec-root "$work/docker/exec" --pidfile "$work/docker/pid" \
        --host "unix://$work/docker/sock" --bridge none --iptables=false --ip6tables=false --userland-proxy=false \
        > "$work/docker/log" 2>&1 < /dev/null &
    local i
    for i in $(seq 1 300); do
        if docker_here version > /dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    tail -5 "$work/docker/log" >&2
    return 1
}
docker_here() { "${as_root[@]}" docker --host "unix://$work/docker/sock" "$@"; }
docker_stop() {
    local pid i
    [ -f "$work/docker/pid" ] || return 0
    pid=$(cat "$work/docker/pid")
    "${as_root[@]}" kill "$pid" 2> /dev/null || return 0
    for i in $(seq 1 150); do
        [ -d "/proc/$pid" ] || return 0
        sleep 0.1
    done
    "${as_root[@]}" kill -9 "$pid" 2> /dev/null || true
}

mib() { echo "$((($1 + 524288) / 1048576)) MiB"; }
