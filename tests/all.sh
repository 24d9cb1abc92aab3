#!/bin/bash
# tests/all.sh: everything that must hold before a change is merged, on a fresh Debian or Ubuntu with Rust. Installs the
# tools that judge. Without root (or sudo) the tests whose judge is the kernel's mount cannot run.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
. tests/lib.sh
export VM2K_TEST_REQUIRE=1 VM2K_TEST_CACHE=$machines CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

tests/install.sh all || exit 1

passed=0 failed=() table=()
step() { # NAME COMMAND...
    local name=$1 from=$SECONDS
    shift
    say "$name"
    if "$@" < /dev/null; then
        passed=$((passed + 1))
        table+=("$(printf '%-10s %5d s  %s' ok $((SECONDS - from)) "$name")")
    else
        failed+=("$name")
        table+=("$(printf '%-10s %5d s  %s' FAILED $((SECONDS - from)) "$name")")
    fi
}

licences() {
    if command -v cargo-deny > /dev/null; then
        cargo deny --offline check licenses bans sources
    else
        python3 tests/licences.py
    fi
}

# The machines are made while cargo builds: one waits for the network, the other for the processor.
mkdir -p "$machines"
(
    tests/machine.sh "$machines/small" small && tests/machine.sh "$machines/full" full &&
        tests/disks.sh "$machines/disks" "$machines/small" && tests/crash.sh "$machines/crash" "$machines/small" "$machines/full"
) > "$machines/log" 2>&1 &
machine=$!
tests/volumes.sh "$machines/volumes" > "$machines/volumes.log" 2>&1 &
volumes=$!
tests/rpm-machine.sh "$machines/rpm" > "$machines/rpm.log" 2>&1 &
rpms=$!
rpms_made() { wait "$rpms" || { cat "$machines/rpm.log"; return 1; }; }
volumes_made() { wait "$volumes" || { cat "$machines/volumes.log"; return 1; }; }
machine_made() { wait "$machine" || { cat "$machines/log"; return 1; }; }

step "cargo fmt --check" cargo fmt --check
step "cargo clippy" cargo clippy --quiet --all-targets --locked -- -D warnings
step "licences and sources of what is linked" licences
step "cargo test (build)" cargo test --quiet --locked --no-run
step "the machines' disks, and those that lost their power" machine_made
step "the disks with LVM, md and LUKS" volumes_made
step "the server of rpms" rpms_made
step "cargo test" cargo test --locked --no-fail-fast

for old in "$machines"/run-*; do
    [ ! -d "$old" ] || [ -d "/proc/${old##*-}" ] || rm -rf "$old"
done
printf '\n'
printf '%s\n' "${table[@]}"
echo "$passed passed, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ]
