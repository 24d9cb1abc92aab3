#!/bin/bash
# tests/crash.sh OUT_DIR SMALL_DIR FULL_DIR: disks of Debian machines that lost their power in the middle of an apt install.
#
#   ext4.raw, xfs.raw, btrfs.raw   the disks as they were left: a filesystem without a partition table
#   NAME.log                       what the machine said on its console
#
# Each is the server of tests/machine.sh in SMALL_DIR on another filesystem, started under qemu with the kernel of FULL_DIR
# (software emulation: no KVM is needed). When apt is at work qemu is killed. Needs root. Disks that this very script made of the
# same machines are not made again.
set -eu -o pipefail
export LC_ALL=C.UTF-8 TZ=UTC
umask 022
PATH=$PATH:/usr/sbin:/sbin

out=${1:?usage: tests/crash.sh OUT_DIR SMALL_DIR FULL_DIR}
small=$(realpath "${2:?usage: tests/crash.sh OUT_DIR SMALL_DIR FULL_DIR}")
full=$(realpath "${3:?usage: tests/crash.sh OUT_DIR SMALL_DIR FULL_DIR}")
script=$(realpath "$0")
stamp="$(cat "$small/.done") $(sha256sum < "$script" | cut -d' ' -f1)"
if [ "$(cat "$out/.done" 2> /dev/null)" = "$stamp" ]; then
    echo "crash.sh: $out is up to date" >&2
    exit 0
fi
if [ "$(id -u)" != 0 ]; then exec sudo bash "$script" "$@"; fi
mkdir -p "$out"
out=$(realpath "$out")
exec 9> "$out/.lock"
flock 9
[ "$(cat "$out/.done" 2> /dev/null)" != "$stamp" ] || exit 0
rm -f "$out/.done" "$out"/*.raw "$out"/*.log
work=$(mktemp -d "$out/.work.XXXXXX")
mkdir "$work"/{source,target,debs}
qemu=
cleanup() {
    cd /
    [ -z "$qemu" ] || kill -9 "$qemu" 2> /dev/null || true
    for at in "$work/target" "$work/source"; do
        if mountpoint -q "$at"; then umount "$at" || umount -l "$at"; fi
    done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

IFS=$'\t' read -r _ first length < "$small/expected/partitions"
mount -o "loop,ro,noload,offset=$first,sizelimit=$length" "$small/disk.raw" "$work/source"

# Packages of many files that need nothing, for apt to install without a network.
mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
for package in vim-runtime debian-faq doc-debian git-man; do
    (cd "$work/debs" && apt-get download -q "$package" > /dev/null 2>> "$work/apt.log") || {
        echo "crash.sh: $package cannot be downloaded" >&2
        cat "$work/apt.log" >&2
        exit 1
    }
done

make_filesystem() { # TYPE FILE
    case $1 in
        ext4) mke2fs -q -t ext4 -J size=16 "$2" ;;
        xfs) mkfs.xfs -q "$2" ;;
        btrfs) mkfs.btrfs -q "$2" > /dev/null ;;
    esac
}

crash() { # TYPE SECONDS: how long apt is let be
    local type=$1 disk=$work/$1.raw log=$out/$1.log target=$work/target
    truncate -s 900M "$disk"
    make_filesystem "$type" "$disk"
    mount -o loop "$disk" "$target"
    rsync -aHAXS --numeric-ids --exclude=/srv/hard/devices/block "$work/source/" "$target/"
    mkdir -p "$target/opt/debs"
    cp "$work"/debs/*.deb "$target/opt/debs/"
    echo "/dev/vda / $type defaults 0 1" > "$target/etc/fstab"
    cat > "$target/usr/local/sbin/at-work" << 'END'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive HOME=/root
mount -t proc proc /proc
mount -o remount,rw /
mount -t tmpfs tmpfs /run
exec > /dev/console 2>&1
echo "AT WORK"
while :; do
    apt-get install -y --allow-downgrades --reinstall /opt/debs/*.deb || exit 1
    echo "INSTALLED"
    setfattr -n user.round -v "$(date +%s)" /srv/app 2> /dev/null
    mv /srv/app/data /srv/app/data-$(date +%N); mkdir /srv/app/data; ln /etc/hostname /srv/app/data/name
    dpkg --purge vim-runtime doc-debian
done
END
    chmod 755 "$target/usr/local/sbin/at-work"
    umount "$target"
    qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 1 -m 512 -nographic -no-reboot -nodefaults -serial file:"$log" \
        -kernel "$full/vmlinuz" -initrd "$full/initrd.img" -append "root=/dev/vda rw console=ttyS0 quiet panic=-1 init=/usr/local/sbin/at-work" \
        -drive file="$disk",format=raw,if=virtio,cache=writeback < /dev/null > "$work/qemu.log" 2>&1 9>&- &
    qemu=$!
    local waited=0
    until grep -q '^Unpacking' "$log" 2> /dev/null; do
        sleep 1
        waited=$((waited + 1))
        if [ $waited -gt 300 ] || ! kill -0 "$qemu" 2> /dev/null; then
            echo "crash.sh: the machine on $type does not come to work:" >&2
            cat "$work/qemu.log" >&2
            tail -n 20 "$log" >&2 || true
            exit 1
        fi
    done
    sleep "$2"
    kill -9 "$qemu"
    wait "$qemu" 2> /dev/null || true
    qemu=
    mv "$disk" "$out/"
}

for machine in ${VM2K_TEST_CRASHES:-ext4:6 xfs:6 btrfs:6}; do
    crash "${machine%:*}" "${machine#*:}"
done
umount "$work/source"
chmod a+r "$out"/*.raw
echo "$stamp" > "$out/.done"
