#!/bin/bash
# tests/volumes.sh OUT_DIR: makes disks with LVM, md RAID and LUKS, and what the kernel reads from them.
#
#   pv1.img .. pv5.img     the volume group `vg-a` with a logical volume of every kind (pv3 is a partition)
#   md1.img .. md4.img     14 arrays, each over partitions of the same number
#   luks.img               a LUKS volume of every kind, one in each partition
#   m1.img, m2.img         a machine: /boot on RAID 1; / , /var, /home on LVM on LUKS on RAID 1; /srv thin; /secret LUKS on LVM
#   pass, key              the passphrase and the key file that open the LUKS volumes
#   expected               name, length and SHA-256 of each volume as the kernel reads it
#
# The judge is the kernel of a small virtual machine, which guestfish starts once. Disks that this very script made are
# not made again. Needs guestfish, sfdisk, openssl and a kernel in /boot; no root, if that kernel can be read.
set -eu -o pipefail
export LC_ALL=C.UTF-8

out=${1:?usage: tests/volumes.sh OUT_DIR}
stamp=$(sha256sum < "$0" | cut -d' ' -f1)
mkdir -p "$out"
exec 9> "$out/.lock"
flock 9
if [ "$(cat "$out/.done" 2> /dev/null)" = "$stamp" ]; then
    echo "volumes.sh: $out is up to date" >&2
    exit 0
fi
rm -f "$out"/.done "$out"/*.img "$out/expected" "$out/log"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

table() { # FILE SIZE_MIB PARTITION_MIB...
    local file=$1 part
    truncate -s "$2M" "$file"
    shift 2
    { echo 'label: gpt'; for part; do echo "size=${part}M"; done; } | sfdisk --quiet "$file"
}
for n in 1 2 4 5; do truncate -s 100M "$work/pv$n.img"; done
table "$work/pv3.img" 104 100
table "$work/md1.img" 70 4 4 4 4 4 4 4 4 4 4 4 4 4 4
table "$work/md2.img" 70 4 4 4 4 4 4 4 4 4 6 4 4 4 4
table "$work/md3.img" 70 6 4 4 4 4 4 4 4 4 4 4 4 4 4
table "$work/md4.img" 70 4 4 4 4 4 4 4 4 4 4 4 4 4 4
table "$work/luks.img" 110 5 5 5 19 19 19 5
table "$work/m1.img" 120 12 90
table "$work/m2.img" 200 12 90 80
printf 'correct horse' > "$work/pass"
head -c 64 /dev/urandom > "$work/key"
# Content that does not compress and is the same in every run.
openssl enc -aes-128-ctr -K 00000000000000000000000000000001 -iv 0 -in /dev/zero 2> /dev/null | head -c 32M > "$work/random" || true

cat > "$work/script" << 'END'
set -eu -o pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LVM_SYSTEM_DIR=/tmp/lvm LC_ALL=C
exec 3>&1 > /tmp/log 2>&1
trap 's=$?; { cat /tmp/log; echo "status: $s"; } >&3' EXIT
PS4='+ $SECONDS s: '
set -x
# Nodes are made by the tools themselves: udev would probe every device at every step.
udevadm settle
udevadm control --exit || true
export DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1
mkdir -p /tmp/lvm /mnt
cat > /tmp/lvm/lvm.conf << 'CONF'
global { thin_check_executable = "" cache_check_executable = "" event_activation = 0 }
activation { monitoring = 0 raid_region_size = 64 udev_sync = 0 udev_rules = 0 verify_udev_operations = 0 }
devices { use_devicesfile = 0 obtain_device_list_from_udev = 0 }
CONF
for m in raid0 raid1 raid10 raid456 linear dm-raid dm-thin-pool dm-snapshot dm-mirror dm-cache-smq dm-crypt; do modprobe $m; done
d=/dev/disk/guestfs
cp $d/random /tmp/random
head -c 13 $d/pass > /tmp/pass
head -c 64 $d/key > /tmp/key
from=0
fill() { # DEVICE [OFFSET_KIB LENGTH_KIB]: other content each time
    local kib=${3:-$(($(blockdev --getsize64 $1) / 1024))}
    from=$(((from + 1237) % 8192))
    dd if=/tmp/random of=$1 bs=1024 skip=$from seek=${2:-0} count=$kib conv=notrunc,fsync iflag=fullblock status=none
}
tell() { # NAME DEVICE
    echo "= $1 $(blockdev --getsize64 $2) $(sha256sum < $2 | cut -d' ' -f1)" >&3
}

# ---------------------------------------------------------------------------------------------------- LVM
v=vg-a
pv() { readlink -f $d/$1; }
p1=$(pv pva) p2=$(pv pvb) p3=$(pv pvc1) p4=$(pv pvd) p5=$(pv pve)
vgcreate -q -s 1M --metadatacopies all $v $p1 $p2 $p3 $p4 > /dev/null
vgextend -q $v $p5
new() { lvcreate -q -y -an -Zn -Wn "$@"; }
new -n lin-ear -L 6M $v $p2
lvextend -q -L +5M $v/lin-ear $p3
new -n striped -i 3 -I 64k -L 9M $v $p2 $p3 $p5
new -n raid1 --type raid1 -m 1 -L 6M --nosync $v $p1 $p5
new -n mirror --type mirror --mirrorlog core -m 1 -L 4M --nosync $v $p1 $p5
new -n raid0 --type raid0 -i 2 -I 16k -L 6M $v $p1 $p3
new -n raid0m --type raid0_meta -i 2 -I 16k -L 6M $v $p1 $p3
new -n raid4 --type raid4 -i 2 -I 16k -L 6M --nosync $v $p1 $p3 $p5
new -n raid5 --type raid5 -i 3 -I 16k -L 9M --nosync $v $p1 $p3 $p5 $p4
new -n raid6 --type raid6 -i 3 -I 16k -L 9M $v
new -n raid10 --type raid10 -i 2 -m 1 -I 16k -L 6M --nosync $v $p1 $p3 $p4 $p5
new -n orig -L 4M $v $p1
lvcreate -q -y --type thin-pool -n pool -L 30M -c 64k --poolmetadatasize 4M $v $p2 $p4
lvcreate -q -y --type thin -V 12M -n thin1 --thinpool pool $v
lvcreate -q -y --type thin -V 80M -n thin2 --thinpool pool $v
new -n ro -L 3M $v $p4
lvchange -q -ay $v
fill /dev/$v/ro
lvchange -q -an $v/ro && lvchange -q -pr $v/ro
lvcreate -q -y -s --thinpool $v/pool -n external $v/ro
lvchange -q -ay -K $v/external
fill /dev/$v/external 1000 500
for lv in lin-ear striped raid1 mirror raid0 raid0m raid4 raid5 raid6 raid10 orig; do fill /dev/$v/$lv; done
fill /dev/$v/thin1 0 4000
fill /dev/$v/thin2 0 100
fill /dev/$v/thin2 50000 3000
sync
lvcreate -q -y -s -n thinsnap $v/thin1
lvchange -q -ay -K $v/thinsnap
fill /dev/$v/thin1 1000 2000
fill /dev/$v/thinsnap 9000 64
lvcreate -q -y -s -n orig-snap -L 4M $v/orig $p1
fill /dev/$v/orig 100 900
new -n cachedt -L 5M $v $p4
new -n cachedb -L 5M $v $p4
lvchange -ay -q $v/cachedt $v/cachedb
fill /dev/$v/cachedt
fill /dev/$v/cachedb
lvcreate -q -y --type cache-pool -n cpt -L 4M --poolmetadatasize 4M --cachemode writethrough $v $p4
lvcreate -q -y --type cache-pool -n cpb -L 4M --poolmetadatasize 4M --cachemode writeback $v $p4
lvconvert -q -y --type cache --cachepool $v/cpt $v/cachedt
lvconvert -q -y --type cache --cachepool $v/cpb --cachemode writeback $v/cachedb
fill /dev/$v/cachedt 500 1000
while [ "$(lvs --noheadings -o sync_percent $v/raid6 | tr -d ' ')" != 100.00 ]; do sleep 0.2; done
sync
lvchange -q -ay -K $v/ro
for lv in lin-ear striped raid1 mirror raid0 raid0m raid4 raid5 raid6 raid10 orig orig-snap thin1 thin2 thinsnap ro external \
    cachedt; do
    tell vg-a/$lv /dev/$v/$lv
done
vgchange -q -an $v

# ---------------------------------------------------------------------------------------------------- md
md() { # NUMBER DISKS MDADM-OPTION...
    local n=$1 disks=$2 members=() i
    shift 2
    for i in $disks; do members+=($(pv md$i$n)); done
    mdadm --create /dev/md$n --run --quiet --homehost=any --raid-devices=${#members[@]} "$@" "${members[@]}"
    fill /dev/md$n
}
md 1 'a b c' --level=0 --chunk=64 --metadata=1.2
md 2 'a b' --level=1 --metadata=0.90 --assume-clean
md 3 'a b' --level=1 --metadata=1.0 --assume-clean --name=three
md 4 'a b c' --level=5 --chunk=64 --metadata=1.2 --assume-clean
md 5 'a b c d' --level=5 --layout=ra --chunk=16 --metadata=0.90 --assume-clean
md 6 'a b c d' --level=6 --chunk=64 --metadata=1.1 --assume-clean
md 7 'a b c d' --level=10 --layout=n2 --chunk=64 --metadata=1.2 --assume-clean
md 8 'a b c d' --level=10 --layout=f2 --chunk=16 --metadata=0.90 --assume-clean
md 9 'a b c' --level=10 --layout=o2 --chunk=16 --metadata=1.2 --assume-clean
md 10 'a b' --level=linear --metadata=1.2
md 11 'a b c' --level=4 --chunk=16 --metadata=1.2 --assume-clean
md 12 'a b' --level=0 --chunk=16 --metadata=1.0
md 13 'a b c d' --level=6 --layout=la --chunk=16 --metadata=1.2 --assume-clean
# The member on md1 fails and is older than the others from then on.
md 14 'a b c' --level=1 --metadata=1.2 --assume-clean
mdadm --quiet /dev/md14 --fail $(pv mda14)
fill /dev/md14
for n in $(seq 14); do
    mdadm --wait /dev/md$n || true
    tell md$n /dev/md$n
done
for n in $(seq 14); do mdadm --quiet --stop /dev/md$n; done

# ---------------------------------------------------------------------------------------------------- LUKS
c="cryptsetup -q --batch-mode --key-file"
n=0
luks() { # CRYPTSETUP-OPTION...: the next partition, opened by the passphrase
    n=$((n + 1))
    part=$(readlink -f $d/luks$n)
    $c /tmp/pass luksFormat --pbkdf-force-iterations ${iterations:-1000} "$@" $part
    $c /tmp/pass open $part luks$n
    fill /dev/mapper/luks$n
    tell luks$n /dev/mapper/luks$n
    cryptsetup close luks$n
}
luks --type luks1 --cipher aes-xts-plain64 --key-size 512 --hash sha256
luks --type luks1 --cipher aes-cbc-essiv:sha256 --key-size 256 --hash sha1
luks --type luks1 --cipher aes-cbc-plain64 --key-size 128 --hash sha512
iterations=4
luks --type luks2 --pbkdf argon2id --pbkdf-memory 2048 --pbkdf-parallel 2 --sector-size 512
luks --type luks2 --pbkdf argon2i --pbkdf-memory 1024 --pbkdf-parallel 1 --sector-size 4096 --key-size 256
iterations=1000
luks --type luks2 --pbkdf pbkdf2 --hash sha512 --cipher aes-cbc-essiv:sha256 --key-size 256
$c /tmp/pass luksAddKey --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $part /tmp/key
luks --type luks1 --cipher serpent-xts-plain64 --key-size 512 --hash sha256

# ---------------------------------------------------------------------------------------------------- a machine
mdadm --create /dev/md0 --run --quiet --homehost=any --level=1 --raid-devices=2 --metadata=1.0 --assume-clean \
    $(pv ma1) $(pv mb1)
mdadm --create /dev/md/crypt --run --quiet --homehost=any --level=1 --raid-devices=2 --metadata=1.2 --assume-clean \
    $(pv ma2) $(pv mb2)
luks2="luksFormat --type luks2 --pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 1024"
$c /tmp/pass $luks2 --uuid 6a1f9b52-0c1e-4d55-9d6c-3f1f5f0a8c01 /dev/md/crypt
$c /tmp/pass open /dev/md/crypt md1_crypt
vgcreate -q -s 1M debian-vg /dev/mapper/md1_crypt
for lv in root:20 var:15 home:15; do lvcreate -q -y -Wn -n ${lv%:*} -L ${lv#*:}M debian-vg; done
vgcreate -q -s 1M data $(pv mb3)
lvcreate -q -y --type thin-pool -n pool -L 20M -c 64k --poolmetadatasize 4M data
lvcreate -q -y --type thin -V 40M -n srv --thinpool pool data
lvcreate -q -y -Wn -n secret -L 30M data
$c /tmp/key $luks2 /dev/data/secret
$c /tmp/key open /dev/data/secret secret_crypt
make() { # DEVICE MOUNT-POINT
    mke2fs -q -t ext4 -L "fs$(echo $2 | tr / -)" $1
    mkdir -p /mnt$2
    mount $1 /mnt$2
}
make /dev/debian-vg/root ''
make /dev/md0 /boot
make /dev/debian-vg/var /var
make /dev/debian-vg/home /home
make /dev/data/srv /srv
make /dev/mapper/secret_crypt /secret
mkdir -p /mnt/etc /mnt/usr/bin
printf 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="A machine in layers"\n' > /mnt/etc/os-release
cat > /mnt/etc/fstab << 'FSTAB'
/dev/mapper/debian--vg-root / ext4 defaults 0 1
/dev/md0 /boot ext4 defaults 0 2
/dev/debian-vg/var /var ext4 defaults 0 2
/dev/mapper/debian--vg-home /home ext4 defaults 0 2
/dev/disk/by-id/dm-name-data-srv /srv ext4 defaults 0 2
/dev/mapper/secret_crypt /secret ext4 defaults 0 2
FSTAB
cat > /mnt/etc/crypttab << 'CRYPTTAB'
# <target> <source> <key file> <options>
md1_crypt UUID=6a1f9b52-0c1e-4d55-9d6c-3f1f5f0a8c01 none luks
secret_crypt /dev/data/secret /etc/keys/secret luks
CRYPTTAB
for at in '' /boot /var /home /srv /secret; do head -c 300000 /tmp/random > /mnt$at/file; echo "this is ${at:-/}" > /mnt$at/name; done
lvcreate -q -y -s -n srv-snap data/srv
for at in /secret /srv /home /var /boot ''; do umount /mnt$at; done
cryptsetup close secret_crypt
vgchange -q -an data debian-vg
cryptsetup close md1_crypt
mdadm --quiet --stop /dev/md0 /dev/md/crypt
sync
echo "= end 0 0" >&3
END
# The script is a disk of its own, filled with empty lines.
echo 'exit 0' >> "$work/script"
{ cat "$work/script"; head -c $((65536 - $(stat -c %s "$work/script"))) /dev/zero | tr '\0' '\n'; } > "$work/run"
for f in pass key; do cp "$work/$f" "$work/$f.disk"; truncate -s 4096 "$work/$f.disk"; done

add() { echo "add-drive $work/$1 format:raw label:$2"; }
export LIBGUESTFS_BACKEND=${LIBGUESTFS_BACKEND:-direct}
# A nested KVM that does not work is worse than none.
export LIBGUESTFS_BACKEND_SETTINGS=${LIBGUESTFS_BACKEND_SETTINGS-force_tcg}
{
    add run run
    add random random
    add pass.disk pass
    add key.disk key
    # Labels are letters: pv1 is pva, its partitions pva1, ...
    for n in pv1 pv2 pv3 pv4 pv5 md1 md2 md3 md4 luks m1 m2; do add $n.img "$(tr 12345 abcde <<< $n)"; done
    echo run
    echo 'debug sh "bash /dev/disk/guestfs/run"'
} > "$work/commands"
if ! guestfish < "$work/commands" > "$out/log" 2>&1 || ! grep -q '^= end' "$out/log"; then
    tail -n 20 "$out/log" >&2
    echo "volumes.sh: the virtual machine failed, see $out/log" >&2
    exit 1
fi
sed -n 's/^= //p' "$out/log" | tr ' ' '\t' > "$out/expected"
for f in "$work"/*.img; do fallocate --dig-holes "$f"; done
mv "$work"/*.img "$work/pass" "$work/key" "$out/"
echo "$stamp" > "$out/.done"
