#!/bin/bash
# benches/convert.sh [DISK_DIR]: whole-process wall time and peak memory of `vm2k convert --profile faithful` against what a
# person with root would do with the same disk: mount, tar --xattrs --acls --sparse, zstd -3 -T2. One run, page cache warm for
# all, output on the same filesystem. DISK_DIR is what tests/machine.sh made (default: its `full`). Needs root.
#
#   RUNS=5     runs of each command; the ratio is of the medians
#   CHECK=1    fail unless the goals hold: 0.5 of the time with an empty store, 0.2 with a store, 256 MiB
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

# The disk's filesystems are mounted by the command itself: vm2k has to find them too.
cat > "$work/tar.sh" << END
set -eu -o pipefail
mkdir "$work/mnt"
while IFS=\$'\t' read -r at first length; do
    mount -o "loop,ro,offset=\$first,sizelimit=\$length" "$disk/disk.raw" "$work/mnt\$at"
done < "$disk/expected/partitions"
tar --xattrs --xattrs-include='*' --acls --sparse --numeric-owner --warning=no-file-ignored -C "$work/mnt" -cf - . |
    zstd -q -3 -T2 -f -o "$work/tar.zst"
umount -R "$work/mnt"
rmdir "$work/mnt"
END
convert() { # STORE OUTPUT: the command line
    echo "$work/vm2k --quiet --store $1 convert $disk/disk.qcow2 --profile faithful --base oci:$disk/base:bookworm -o oci:$2:web"
}

cat "$disk/disk.qcow2" "$disk/disk.raw" "$disk"/base/blobs/sha256/* > /dev/null
eval "$(convert "$work/warm" "$work/first")" > /dev/null
sync
hyperfine --shell bash --warmup 1 --runs "$runs" --export-json "$work/times.json" \
    --prepare "rm -rf $work/out $work/cold; sync" \
    -n 'mount + tar | zstd -3 -T2' "bash $work/tar.sh" \
    -n 'vm2k convert, empty store' "$(convert "$work/cold" "$work/out")" \
    -n 'vm2k convert, store of an earlier conversion' "$(convert "$work/warm" "$work/out")" >&2

memory() { # COMMAND LINE: prints the peak in KiB
    rm -rf "$work/out" "$work/cold"
    /usr/bin/time -f %M -o "$work/memory" bash -c "exec $1" > /dev/null
    tail -n 1 "$work/memory"
}
cold_memory=$(memory "$(convert "$work/cold" "$work/out")")
warm_memory=$(memory "$(convert "$work/warm" "$work/out")")

. "$disk/expected/facts"
echo "disk: $(mib "$allocated_bytes") in $paths paths; $(nproc) cores; $runs runs, medians"
jq -r --argjson cold "$cold_memory" --argjson warm "$warm_memory" '
    .results as $r | $r[0].median as $tar
    | [0, $cold, $warm] as $memory
    | range(0; 3)
    | [$r[.].command, ($r[.].median * 100 | round / 100), ($r[.].min * 100 | round / 100), ($r[.].max * 100 | round / 100),
       ($r[.].median / $tar * 100 | round / 100), ($memory[.] / 1024 | round)]
    | @tsv' "$work/times.json" |
    awk -F '\t' 'BEGIN { printf "%-46s %8s %16s %6s %10s\n", "", "seconds", "min..max", "ratio", "peak" }
        { printf "%-46s %8.2f %16s %6.2f %10s\n", $1, $2, $3 ".." $4, $5, $6 ? $6 " MiB" : "" }'
echo "output: tar.zst $(mib "$(stat -c %s "$work/tar.zst")"), image $(mib "$(du -sb "$work/out" | cut -f1)") with the base"
uptime >&2

if [ -n "${CHECK:-}" ]; then
    jq -e --argjson cold "$cold_memory" --argjson warm "$warm_memory" '
        .results as $r | $r[1].median <= 0.5 * $r[0].median and $r[2].median <= 0.2 * $r[0].median
        and $cold < 262144 and $warm < 262144' "$work/times.json" > /dev/null || fail "a goal is missed"
fi
