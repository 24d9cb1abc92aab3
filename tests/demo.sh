#!/bin/bash
# tests/demo.sh: a real Debian server's disk becomes a container image, is verified, and its nginx answers from podman.
#
# Installs what it needs (apt), builds vm2k and meanwhile makes the disk of a Debian 12 server and a Debian base image (both from
# packages, no image is pulled), and cleans up after itself; only the disk is kept, for the tests. Needs root or sudo to
# make the disk and to run podman; vm2k itself runs as a user without any rights.
#
# --dockerfile: does the same with `--strategy dockerfile` too, in a Docker Engine of its own (a minute or two more; all tools of
# the tests are installed for it).
set -eu -o pipefail
. "$(dirname "$0")/lib.sh"

started=$SECONDS
timed() { # NAME COMMAND...: runs it and notes how long it took
    local name=$1 from=${EPOCHREALTIME/./}
    shift
    "$@"
    awk -v n="$name" -v us=$((${EPOCHREALTIME/./} - from)) 'BEGIN { printf "%-42s %8.1f s\n", n, us / 1e6 }' >> "$work/times"
}

say "Installing what is missing"
case ${1:-} in
    "") "$repo/tests/install.sh" demo ;;
    --dockerfile) "$repo/tests/install.sh" all ;;
    *) fail "demo.sh: $1 is no option (--dockerfile)" ;;
esac
make_work

say "Building vm2k, and making a Debian 12 server's disk and a Debian base image ($machines/full)"
timed "cargo build --release" cargo build --release --quiet --locked --manifest-path "$repo/Cargo.toml" &
build=$!
timed "making the server's disk" "$repo/tests/machine.sh" "$machines/full" full
wait "$build"
build=
target=$(cargo metadata --format-version 1 --no-deps --offline --manifest-path "$repo/Cargo.toml" | jq -r .target_directory)
install -m 755 "$target/release/vm2k" "$work/vm2k"
disk=$machines/full/disk.qcow2
. "$machines/full/expected/facts"
image=$work/user/$hostname.tar

cd "$work/user"
say "vm2k scan disk.qcow2"
timed "vm2k scan" unprivileged "$work/vm2k" scan "$disk"

say "vm2k convert disk.qcow2 --base oci:base:bookworm -o oci-archive:$hostname.tar (as $(unprivileged id -un), uid $(unprivileged id -u))"
timed "vm2k convert" unprivileged "$work/vm2k" convert "$disk" --base "oci:$machines/full/base:bookworm" -o "oci-archive:$image"

say "vm2k verify disk.qcow2 oci-archive:$hostname.tar"
timed "vm2k verify" unprivileged "$work/vm2k" verify "$disk" "oci-archive:$image"

say "vm2k convert once more, now that the store knows the machine"
timed "vm2k convert, second time" unprivileged "$work/vm2k" convert "$disk" --base "oci:$machines/full/base:bookworm" -o "oci-archive:$image.2"
cmp "$image" "$image.2" && echo "the same bytes as before" >&2

say "podman load, podman run ... nginx, curl"
timed "podman load" podman_here load --quiet --input "$image" > "$work/loaded"
loaded=$(awk 'END { print $NF }' "$work/loaded")
container=vm2k-demo-$$
podman_here run --detach --name "$container" "${run_options[@]}" "$loaded" nginx -g 'daemon off;' > /dev/null
answer=
for _ in $(seq 1 50); do
    answer=$(curl --silent --max-time 2 http://127.0.0.1:8080/) && break
    sleep 0.1
done
[ "$answer" = "<h1>$hostname says hello</h1>" ] || {
    podman_here logs "$container" >&2 || true
    fail "nginx does not answer from the container: $answer"
}
echo "http://127.0.0.1:8080/ answers: $answer" >&2

if [ "${1:-}" = --dockerfile ]; then
    say "vm2k convert --strategy dockerfile: the package manager brings the packages, in a Docker Engine"
    docker_start
    "${as_root[@]}" chmod 666 "$work/docker/sock"
    export DOCKER_HOST=unix://$work/docker/sock
    timed "vm2k convert --strategy dockerfile" unprivileged "$work/vm2k" convert "$disk" --base "oci:$machines/full/base:bookworm" \
        --strategy dockerfile --build-network host -o "docker-daemon:$hostname:built" --report "$work/user/built.json"
    timed "vm2k verify docker-daemon:" unprivileged "$work/vm2k" verify "$disk" "docker-daemon:$hostname:built"
    docker_here run --rm "${run_options[@]}" "$hostname:built" nginx -t
fi

say "Sizes and times"
bytes() { printf '%-42s %10s\n' "$1" "$(mib "$2")"; }
bytes "files on the server's disk ($files)" "$allocated_bytes"
bytes "disk.qcow2" "$qcow2_bytes"
bytes "base image" "$(du -sb "$machines/full/base" | cut -f1)"
bytes "image, base layers included" "$(stat -c %s "$image")"
tar -xOf "$image" index.json | jq -r '.manifests[0].digest' | sed 's/:/\//; s/^/blobs\//' | xargs tar -xOf "$image" |
    jq -r '.layers | to_entries[] | "\(.key + 1) \(.value.size)"' |
    while read -r n size; do bytes "  layer $n, compressed" "$size"; done
if [ -f "$work/user/built.json" ]; then
    bytes "--strategy dockerfile: image" "$(jq .sizes.image "$work/user/built.json")"
    bytes "  its rest layer, compressed" "$(jq .sizes.rest "$work/user/built.json")"
    printf '%-42s %8s %%\n' "  its rest layer's share of the machine" "$(jq .sizes.rest_percent "$work/user/built.json")"
fi
cat "$work/times"
printf '%-42s %8d s\n' "all" $((SECONDS - started))
echo "The disk stays in $machines for the tests ($(du -sh "$machines" | cut -f1)); rm -r it if it is not wanted."
