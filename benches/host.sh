#!/bin/bash
# benches/host.sh: whole-process wall time and bytes on the wire of `vm2k convert ssh://host --profile faithful` against what a
# user would run instead: `ssh host tar -cf - / | zstd` for the first time, and `rsync -aHAX host:/ dir` for the first time and
# again after 1 MB of a file of 100 MB changed and two small ones were added. The host is the demo server's own sshd in a chroot
# on its own disk (tests/machine.sh full), over loopback. Needs root.
#
#   RUNS=5     runs of each command; ratios are of the medians
#   CHECK=1    fail unless the goals hold: first at most 1.0 of tar's time, second at most 0.5 of rsync's time and 0.25 of its
#              bytes
set -eu -o pipefail
. "$(dirname "$0")/../tests/lib.sh"

[ "$(id -u)" = 0 ] || exec sudo --preserve-env=RUNS,CHECK,VM2K_TEST_CACHE,TMPDIR,PATH bash "$0" "$@"
"$repo/tests/install.sh" all
runs=${RUNS:-5}
disk=$machines/full
"$repo/tests/machine.sh" "$disk" full
cargo build --release --quiet --manifest-path "$repo/Cargo.toml"
make_work
target=$(cargo metadata --format-version 1 --no-deps --offline --manifest-path "$repo/Cargo.toml" | jq -r .target_directory)
install -m 755 "$target/release/vm2k" "$work/vm2k"

# ------------------------------------------------------------------------------------------------ the host
root=$work/host
mkdir "$root"
cp --sparse=always "$disk/disk.raw" "$work/disk.raw"
while IFS=$'\t' read -r at first length; do
    mount -o "loop,offset=$first,sizelimit=$length" "$work/disk.raw" "$root$at"
done < "$disk/expected/partitions"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --bind /dev "$root/dev"
mkdir "$root/run/sshd"
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
install -d -m 700 "$root/root/.ssh"
install -m 600 "$work/key.pub" "$root/root/.ssh/authorized_keys"
[ -e "$root/etc/ssh/ssh_host_ed25519_key" ] || chroot "$root" ssh-keygen -q -A
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
chroot "$root" /usr/sbin/sshd -D -e -p "$port" -o ListenAddress=127.0.0.1 -o UsePAM=no -o MaxStartups=100 2> "$work/sshd.log" &
server=$!
cat > "$work/config" << END
Host demo
  HostName 127.0.0.1
  Port $port
  User root
  IdentityFile $work/key
  IdentitiesOnly yes
  UserKnownHostsFile $work/known_hosts
  StrictHostKeyChecking accept-new
END
for _ in $(seq 50); do
    ssh -F "$work/config" demo true 2> /dev/null && break
    sleep 0.1
done
mkdir "$root/var/lib/bench"
head -c 100000000 /dev/urandom > "$root/var/lib/bench/large"

# ------------------------------------------------------------------------------------------------ what is compared
cat > "$work/change.sh" << END
# 1 MB in the middle of the large file, and two small files, all new in each run.
head -c 1000000 /dev/urandom | dd of="$root/var/lib/bench/large" bs=1000000 seek=\$((RANDOM % 100)) conv=notrunc status=none
echo "\$RANDOM" > "$root/var/lib/bench/small-\$RANDOM"
echo "\$RANDOM" > "$root/etc/bench-\$RANDOM"
END
tar="ssh -F $work/config demo 'tar --xattrs --acls --numeric-owner --one-file-system --warning=no-file-ignored -cf - / /home 2> /dev/null' | zstd -q -f -o $work/tar.zst"
again() { # DIR: the command line
    echo "rsync -aHAX --numeric-ids --one-file-system -e 'ssh -F $work/config' demo:/ demo:/home $1/"
}
convert() { # STORE OUTPUT
    echo "$work/vm2k --quiet --store $1 --ssh-config $work/config convert ssh://demo --profile faithful --base oci:$disk/base:bookworm -o oci:$2:web"
}
# A conversion of a host that runs may list files that changed meanwhile.
listed() { echo "$1 > /dev/null || [ \$? = 3 ]"; }

eval "$tar"
eval "$(again "$work/again.rsync")"
eval "$(listed "$(convert "$work/warm" "$work/first")")"
sync
hyperfine --shell bash --warmup 1 --runs "$runs" --export-json "$work/first.json" \
    --prepare "rm -rf $work/out $work/cold $work/rsync; sync" \
    -n 'ssh host tar -cf - / | zstd' "$tar" \
    -n 'rsync -aHAX, first' "$(again "$work/rsync")" \
    -n 'vm2k convert, first' "$(listed "$(convert "$work/cold" "$work/out")")" >&2
hyperfine --shell bash --runs "$runs" --export-json "$work/second.json" \
    --prepare "rm -rf $work/out; bash $work/change.sh; sync" \
    -n 'rsync -aHAX, again' "$(again "$work/again.rsync")" \
    -n 'vm2k convert, again' "$(listed "$(convert "$work/warm" "$work/out")")" >&2

wire() { # COMMAND: prints the bytes that the loopback interface carried meanwhile
    local before after
    before=$(cat /sys/class/net/lo/statistics/tx_bytes)
    eval "$1" > /dev/null
    after=$(cat /sys/class/net/lo/statistics/tx_bytes)
    echo $((after - before))
}
rm -rf "$work/out" "$work/cold" "$work/rsync"
tar_wire=$(wire "$tar")
rsync_wire=$(wire "$(again "$work/rsync")")
first_wire=$(wire "$(listed "$(convert "$work/cold" "$work/out")")")
bash "$work/change.sh"
rsync_again=$(wire "$(again "$work/again.rsync")")
rm -rf "$work/out"
second_wire=$(wire "$(listed "$(convert "$work/warm" "$work/out")")")

. "$disk/expected/facts"
echo "host: $(mib "$allocated_bytes") and a file of 100 MB in $paths paths; $(nproc) cores; $runs runs, medians"
jq -rn --slurpfile a "$work/first.json" --slurpfile b "$work/second.json" \
    --argjson wire "[$tar_wire, $rsync_wire, $first_wire, $rsync_again, $second_wire]" '
    ($a[0].results + $b[0].results) as $r
    | range(0; 5)
    | [$r[.].command, ($r[.].median * 100 | round / 100), ($r[.].min * 100 | round / 100), ($r[.].max * 100 | round / 100),
       ($wire[.] / 10000 | round / 100)] | @tsv' |
    awk -F '\t' 'BEGIN { printf "%-30s %8s %16s %12s\n", "", "seconds", "min..max", "MB on wire" }
        { printf "%-30s %8.2f %16s %12.2f\n", $1, $2, $3 ".." $4, $5 }'
jq -rn --slurpfile a "$work/first.json" --slurpfile b "$work/second.json" --argjson r "$rsync_again" --argjson v "$second_wire" '
    "first: \($a[0].results[2].median / $a[0].results[0].median * 100 | round / 100) of tar, \($a[0].results[2].median / $a[0].results[1].median * 100 | round / 100) of rsync; "
    + "again: \($b[0].results[1].median / $b[0].results[0].median * 100 | round / 100) of the time and \($v / $r * 100 | round / 100) of the bytes of rsync"'
uptime >&2

if [ -n "${CHECK:-}" ]; then
    jq -en --slurpfile a "$work/first.json" --slurpfile b "$work/second.json" --argjson r "$rsync_again" --argjson v "$second_wire" '
        $a[0].results[2].median <= $a[0].results[0].median and $b[0].results[1].median <= 0.5 * $b[0].results[0].median
        and $v <= 0.25 * $r' > /dev/null || fail "a goal is missed"
fi
