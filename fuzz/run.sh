#!/bin/bash
# fuzz/run.sh [SECONDS] [TARGET...]: runs each target that long (600), two at a time, from fuzz/corpus, which fuzz/seeds.sh
# fills where it is empty. What was found is in fuzz/artifacts; a line for each target is printed and put into
# fuzz/artifacts/results. Ends with 1 if anything was found.
#
# Needs cargo-fuzz; a stable compiler will do. VM2K_FUZZ_JOBS: how many at a time.
set -eu -o pipefail
export RUSTC_BOOTSTRAP=1
cd "$(dirname "$0")"

seconds=600
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
[ $# -gt 0 ] || set -- $(VM2K_AGENT_BUILD=no cargo fuzz list --fuzz-dir .)
# There is no unsafe code to be watched: without a sanitizer it is twice as fast.
VM2K_AGENT_BUILD=no cargo fuzz build --fuzz-dir . --sanitizer none
bin=target/$(rustc -vV | sed -n 's/^host: //p')/release
room=/dev/shm
[ -w $room ] || room=${TMPDIR:-/tmp}

one() {
    local target=$1 seconds=$2 log=artifacts/$1/log temp found long=()
    temp=$(mktemp -d "$room/vm2k-fuzz.XXXXXX")
    mkdir -p "artifacts/$target" "corpus/$target"
    [ -n "$(find "corpus/$target" -type f -print -quit)" ] || ./seeds.sh "$target" > /dev/null
    grep -q image_target "fuzz_targets/$target.rs" && long=(-max_len=1048576 -len_control=0)
    # Goes on after a finding, until the time is over.
    TMPDIR=$temp "./$bin/$target" -fork=1 -ignore_crashes=1 -ignore_timeouts=1 -ignore_ooms=1 -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=2048 "${long[@]}" -artifact_prefix="artifacts/$target/" "corpus/$target" > "$log" 2>&1 || true
    rm -rf "$temp"
    found=$(find "artifacts/$target" -type f ! -name log | wc -l)
    grep -a '^#[0-9]*: cov:' "$log" | tail -n 1 |
        sed -E "s/^#([0-9]+): cov: ([0-9]+) ft: ([0-9]+) corp: ([0-9]+) .*/$target \1 executions, \2 edges, \4 inputs, $found findings/" |
        tee -a artifacts/results
}
export -f one
export bin room
mkdir -p artifacts
: > artifacts/results
printf '%s\n' "$@" | xargs -P "${VM2K_FUZZ_JOBS:-2}" -I{} bash -eu -o pipefail -c 'one "$1" "$2"' - {} "$seconds"
! grep -qv ' 0 findings$' artifacts/results
