#!/bin/bash
# benches/read.sh [DISK_DIR]: walking and reading every file of a server, ours against the kernel's mount with all cores, on ext4,
# XFS and btrfs (plain and with zstd). Whole processes, page cache warm for all, one run. The server is what tests/machine.sh made in
# DISK_DIR (default: its `full`). Needs root.
#
#   RUNS=5     runs of each command; the ratio is of the medians
#   CHECK=1    fail unless each ratio is at most 1.2
#
# Ours hashes all that it reads (`vm2k ls --sha256`), the kernel's side throws it away (`cat > /dev/null`).
set -eu -o pipefail
. "$(dirname "$0")/../tests/lib.sh"

[ "$(id -u)" = 0 ] || exec sudo --preserve-env=RUNS,CHECK,VM2K_TEST_CACHE,TMPDIR,PATH bash "$0" "$@"
"$repo/tests/install.sh" all
runs=${RUNS:-5}
disk=${1:-$machines/full}
[ $# != 0 ] || "$repo/tests/machine.sh" "$disk" full
cargo build --release --quiet --manifest-path "$repo/Cargo.toml"
make_work
target=$(cargo metadata --format-version 1 --no-deps --offline --manifest-path "$repo/Cargo.toml" | jq -r .target_directory)
install -m 755 "$target/release/vm2k" "$work/vm2k"

mkdir "$work/source" "$work/mnt"
IFS=$'\t' read -r _ first length < "$disk/expected/partitions"
mount -o "loop,ro,offset=$first,sizelimit=$length" "$disk/disk.raw" "$work/source"
make() { # NAME MKFS MOUNT-OPTIONS
    truncate -s 2500M "$work/$1.img"
    $2 "$work/$1.img" > /dev/null
    mount -o "loop,$3" "$work/$1.img" "$work/mnt"
    rsync -aHAXS --exclude=/srv/hard/devices --exclude=/srv/hard/sparse "$work/source/" "$work/mnt/"
    : > "$work/mnt/etc/fstab" # its other filesystems are on no disk here
    umount "$work/mnt"
}
make ext4 "mkfs.ext4 -q" barrier=0
make xfs "mkfs.xfs -q" defaults
make btrfs "mkfs.btrfs -q" defaults
make btrfs-zstd "mkfs.btrfs -q" compress=zstd
umount "$work/source"

cat > "$work/kernel.sh" << END
set -eu -o pipefail
mount -o loop,ro "\$1" "$work/mnt"
cd "$work/mnt"
find . -printf '%p %m %U %G %s %T@ %l\n' > /dev/null
find . -type f -print0 | xargs -0 -P "$(nproc)" -n 64 cat > /dev/null
cd /
umount "$work/mnt"
END
missed=
printf '%-12s %10s %10s %8s %12s\n' filesystem kernel vm2k ratio 'peak memory' > "$work/table"
for name in ext4 xfs btrfs btrfs-zstd; do
    image=$work/$name.img
    cat "$image" > /dev/null
    hyperfine --warmup 1 --runs "$runs" --export-json "$work/times.json" \
        -n "kernel's mount, $name" "bash $work/kernel.sh $image" \
        -n "vm2k ls --sha256, $name" "$work/vm2k --quiet ls --json --sha256 $image > $work/listing" >&2
    /usr/bin/time -f %M -o "$work/memory" "$work/vm2k" --quiet ls --json --sha256 "$image" > "$work/listing"
    jq -r --arg name "$name" --argjson memory "$(tail -n 1 "$work/memory")" \
        '.results | [$name, (.[0].median * 100 | round / 100), (.[1].median * 100 | round / 100),
        (.[1].median / .[0].median * 100 | round / 100), "\($memory / 1024 | round) MiB"] | @tsv' "$work/times.json" |
        awk -F '\t' '{ printf "%-12s %8.2f s %8.2f s %8.2f %12s\n", $1, $2, $3, $4, $5 }' >> "$work/table"
    jq -e '.results | .[1].median <= 1.2 * .[0].median' "$work/times.json" > /dev/null || missed="$missed $name"
    rm "$image"
done
cat "$work/table"
uptime >&2
if [ -n "${CHECK:-}" ] && [ -n "$missed" ]; then fail "over 1.2:$missed"; fi
