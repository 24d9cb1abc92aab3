#!/bin/bash
# fuzz/seeds.sh [TARGET...]: makes what the targets begin with, in fuzz/corpus: small disks, volumes and files of every kind.
#
# Needs qemu-img, qemu-io, the mkfs programs, sfdisk, cryptsetup, zstd, xz and python3 (tests/install.sh). As root also
# filesystems that the kernel filled and that lost their power. What is missing is told and left out. The disks of
# tests/volumes.sh and the shared inputs (VM2K_SHARED) are taken too where they are.
set -eu -o pipefail
export LC_ALL=C.UTF-8 PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "$0")" && pwd)
shared=${VM2K_SHARED:-$here/../../shared}/data
volumes=${VM2K_TEST_CACHE:-/var/tmp/vm2k-machine}/volumes
wanted=" $* "
room=/dev/shm
[ "$(df --output=avail -B1M $room | tail -1)" -gt 3000 ] || room=${TMPDIR:-/var/tmp}
work=$(mktemp -d $room/vm2k-seeds.XXXXXX)
mkdir "$work/mount" "$work/tree"
clean() {
    mountpoint -q "$work/mount" && umount "$work/mount"
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$work"

wants() { [ "$wanted" = "  " ] || [[ $wanted == *" $1 "* ]]; }
# Runs the group of seeds $1 if any of the targets $2... is wanted, and tells if a program fails; it never ends the script.
group() {
    local name=$1 target status
    shift
    for target; do
        if wants "$target"; then
            # Behind `||` the shell would go on after errors.
            set +e
            (
                set -e
                "$name"
            ) > "$work/log" 2>&1
            status=$?
            set -e
            [ $status = 0 ] || echo "seeds.sh: $name ended early: $(tail -n 1 log)" >&2
            return 0
        fi
    done
}
# seed TARGET NAME FILE...: an input of some files of the host. What cannot be compressed is data and left out.
seed() {
    mkdir -p "$here/corpus/$1"
    python3 "$here/pack.py" "$here/corpus/$1/$2" "${@:3}" 2>> "$work/long"
}
# plain TARGET NAME FILE [PREFIX]: the bytes of a file, behind a first byte that says what they are.
plain() {
    mkdir -p "$here/corpus/$1"
    { printf "${4:-}"; cat "$3"; } > "$here/corpus/$1/$2"
}

# What most filesystems are filled with.
fill='cd "$1"; mkdir -p a/b/c many; echo hello > a/file; ln a/file a/hard; ln -s file a/link
ln -s "$(printf "u%.0s" $(seq 200))" a/long; yes line | head -c 9000 > text; truncate -s 1M hole; echo end >> hole
for i in $(seq 90); do : > many/a-longer-name-of-entry-$i; done'
more='mkfifo fifo; mknod null c 1 3; setfattr -n user.a -v value a/file; setfattr -n user.long -v "$(printf "v%.0s" $(seq 300))" text
for i in $(seq 0 40); do printf "piece $i" | dd of=pieces bs=8192 seek=$i conv=notrunc status=none; done
fallocate -l 40k unwritten || true'
change='cd "$1"; rm many/*1; mkdir new; echo new > new/file; mv a/file moved; echo more >> text; setfattr -n user.b -v c text; truncate -s 100 hole; sync -f .
ln -s x link; rm -r new; mkdir -p x/y; : > x/y/z; dd if=/dev/zero of=last bs=100 count=1 conv=fsync status=none'
power_cut='open(F, "<", $ARGV[0]) or die; my $how = pack("L", 2); ioctl(F, 0x8004587d, $how) or die $!'
bash -c "$fill" - tree

# filled TARGET NAME IMAGE: the filesystem in IMAGE, as the kernel fills it, and after a loss of power.
filled() {
    [ "$(id -u)" = 0 ] || { echo "no root, no filesystems that the kernel filled"; return 1; }
    mount -o loop "$3" mount
    bash -eu -c "$fill; $more" - mount
    umount mount
    seed "$1" "$2" "$3"
    mount -o loop "$3" mount
    bash -eu -c "$change" - mount
    perl -e "$power_cut" mount
    umount mount
    seed "$1" "$2-dirty" "$3"
}
made() { # IMAGE SIZE COMMAND...: a file of that size with a filesystem
    rm -f "$1"
    truncate -s "$2" "$1"
    "${@:3}" "$1"
}

of_ext4() {
    local n=0 options
    for options in 'ext4 -b 1024 -O ^has_journal' 'ext2 -b 1024' 'ext3 -b 1024 -J size=1' 'ext4 -b 4096 -I 256 -O inline_data -J size=4' \
        'ext4 -b 1024 -O ea_inode,64bit,meta_bg,^resize_inode,^has_journal' 'ext4 -b 1024 -O bigalloc,^has_journal -C 16384' 'ext4 -b 1024 -O casefold,^has_journal'; do
        n=$((n + 1))
        # The checksums are left out: what is changed stays readable.
        made image 16M mke2fs -q -F -O ^metadata_csum,^uninit_bg -N 256 -d tree -t $options
        seed ext4 "mke2fs-$n" image
    done
    made image 8M mke2fs -q -F -t ext4 -N 128 -d tree
    seed ext4 checksums image
    for options in 'ext4 -b 1024 -J size=1' 'ext3 -b 1024 -J size=1' 'ext4 -b 1024 -J size=4,fast_commit_size=256 -O fast_commit'; do
        n=$((n + 1))
        made image 16M mke2fs -q -F -O ^metadata_csum,^uninit_bg -N 256 -t $options
        filled ext4 "kernel-$n" image
    done
}
of_xfs() {
    local n=0 options
    {
        printf '/nothing\n0 0\nd--755 1 2\nfile -u-640 3 4 %s\nlink l--777 3 4 target\nfifo p--622 3 4\ndir d--755 3 4\n' tree/text
        seq -f 'an-entry-with-a-name-%g p--644 3 4' 100
        printf '$\n$\n'
    } > proto
    export TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1
    for options in '-m crc=0 -b size=512' '-m crc=0 -b size=4096 -n ftype=0' '-m crc=0 -b size=1024 -i size=512 -n size=4096' '-b size=1024' \
        '-b size=4096 -n size=16384'; do
        n=$((n + 1))
        made image 16M mkfs.xfs -q -f $options -p proto
        xfs_db -x -c 'path /file' -c 'attr_set -u -v 5 small' -c 'attr_set -r -v 300 medium' -c 'attr_set -u -v 3000 large' image
        seed xfs "mkfs-$n" image
    done
    for options in '-m crc=1 -b size=1024 -i nrext64=1' '-m rmapbt=1,reflink=1,bigtime=1' '-b size=1024 -i sparse=1 -n size=4096 -m finobt=0,reflink=0'; do
        n=$((n + 1))
        made image 16M mkfs.xfs -q -f $options
        filled xfs "kernel-$n" image
    done
}
of_btrfs() {
    local n=0 options
    for options in '-d single -m single' '-M -d single -m single -n 4096' '-d dup -m dup -n 65536' '-O no-holes -R free-space-tree,quota'; do
        n=$((n + 1))
        made image 128M mkfs.btrfs -q $options -r tree
        seed btrfs "mkfs-$n" image
    done
    [ "$(id -u)" = 0 ] || { echo "no root, no filesystems that the kernel filled"; return 1; }
    for options in raid0 raid1 raid10 raid5; do
        rm -f d?
        truncate -s 128M d1 d2 d3 d4
        mkfs.btrfs -q -d $options -m $options d1 d2 d3 d4
        local loops=()
        for n in 1 2 3 4; do loops+=("$(losetup -f --show d$n)"); done
        mount -o "device=${loops[1]},device=${loops[2]},device=${loops[3]}" "${loops[0]}" mount
        bash -eu -c "$fill" - mount
        umount mount
        losetup -d "${loops[@]}"
        seed btrfs "$options" d1 d2 d3 d4
    done
    for options in zlib lzo zstd; do
        made image 128M mkfs.btrfs -q -d single -m single
        mount -o loop,compress-force=$options image mount
        bash -eu -c "$fill; $more; btrfs -q subvolume create sub; btrfs -q subvolume snapshot . sub/snapshot" - mount
        umount mount
        seed btrfs "kernel-$options" image
        # A log tree is what fsync leaves; a copy of the device is one moment of it.
        mount -o loop,compress-force=$options,commit=300 image mount
        bash -eu -c "$change" - mount
        cp --sparse=always image dirty
        umount mount
        seed btrfs "kernel-$options-dirty" dirty
    done
}
of_vfat() {
    local bits
    for bits in 12 16 32; do
        made image $([ $bits = 12 ] && echo 1M || echo 40M) mkfs.vfat -F $bits $([ $bits = 32 ] && echo -s 1)
        mcopy -s -i image tree/text tree/many tree/a/file :: || true
        seed vfat "$bits" image
    done
}
shared_filesystems() {
    local kind file
    for kind in ext4 ext2 xfs btrfs; do
        wants "${kind/ext2/ext4}" || continue
        for file in "$shared/fs/$kind"/*.zst "$shared/hostile/${kind%[42]}"/*.zst; do
            [ -f "$file" ] || continue
            zstd -q -d -f --sparse -o image "$file"
            seed "${kind/ext2/ext4}" "$(basename "$file" .zst)" image
        done
    done
}

writes=(-c 'write -q -P 1 0 4k' -c 'write -q -P 2 90k 2k' -c 'write -q -P 3 3M 6k' -c 'discard -q 92k 4k')
raw() {
    [ -f raw ] || { truncate -s 4M raw; qemu-io -f raw "${writes[@]}" raw; }
}
of_qcow2() {
    local n=0 options
    raw
    for options in compat=0.10 cluster_size=512 cluster_size=4k,extended_l2=off cluster_size=16k,extended_l2=on lazy_refcounts=on; do
        n=$((n + 1))
        qemu-img create -q -f qcow2 -o $options image 4M
        qemu-io -f qcow2 "${writes[@]}" image
        seed qcow2 "plain-$n" image
    done
    for options in zlib zstd; do
        qemu-img convert -c -O qcow2 -o compression_type=$options,cluster_size=4k raw image
        seed qcow2 "$options" image
    done
    cp raw base
    qemu-img create -q -f qcow2 -b base -F raw -o cluster_size=4k image 6M
    qemu-io -f qcow2 -c 'write -q -P 9 8k 8k' image
    qemu-img snapshot -c one image
    seed qcow2 backing image base
    qemu-img convert -O qcow2 -o cluster_size=4k,data_file=data,data_file_raw=on raw image
    printf '\0' > nothing
    seed qcow2 data image nothing data
}
of_vmdk() {
    raw
    qemu-img convert -O vmdk raw x.vmdk
    seed vmdk sparse x.vmdk
    qemu-img convert -O vmdk -o zeroed_grain=on raw extent
    qemu-img convert -O vmdk -o subformat=streamOptimized raw x.vmdk
    seed vmdk stream x.vmdk
    python3 - << 'PY'
import struct
b = bytearray(1 << 18)
for at, value in (4, 1), (8, 3), (12, 9 << 11), (16, 1), (20, 4), (24, 5), (28, 999), (2048, 8), (2060, 40):
    struct.pack_into("<I", b, at, value)
b[:4] = b"COWD"
for at, grain in (4096, 100), (4100, 101), (20480, 104):
    struct.pack_into("<I", b, at, grain)
    b[grain * 512:grain * 512 + 8] = b"contents"
open("cowd", "wb").write(b)
b = bytearray(1 << 20)
for field, value in (0, 0xcafebabe), (1, 0x200000001), (2, 33 << 11), (3, 8), (4, 64), (10, 1), (11, 1), (16, 8), (17, 8), (18, 64), (19, 256), \
        (24, 1024), (25, 1024), (64, 0xcafecafe), (512, 1 << 60), (514, 1 << 60 | 1), (4096, 3 << 60), (4097, 3 << 60 | 2 << 48), (4100, 1 << 60), \
        (4101, 2 << 60), (8192, 3 << 60 | 1 << 48):
    struct.pack_into("<Q", b, field * 8, value)
open("sesparse", "wb").write(b)
PY
    local line
    while read -r name file line; do
        printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="x"\n%s\n' "$line" > x.vmdk
        seed vmdk "$name" x.vmdk "$file"
    done << 'END'
cowd cowd RW 18432 VMFSSPARSE "extent"
sesparse sesparse RW 67584 SESPARSE "extent"
split extent RW 8192 SPARSE "extent"
flat raw RW 4096 FLAT "extent" 16
zero raw RW 4096 ZERO
END
    printf '# Disk DescriptorFile\nversion=1\nCID=3\nparentCID=1\nparentFileNameHint="parent.vmdk"\nRW 18432 VMFSSPARSE "extent"\n' > x.vmdk
    printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 8192 FLAT "parent" 0\nRW 10240 ZERO\n' > p.vmdk
    printf '\0' > nothing
    seed vmdk parent x.vmdk cowd nothing p.vmdk raw
}
of_vhd() {
    local options
    raw
    for options in dynamic fixed; do
        qemu-img create -q -f vpc -o subformat=$options,force_size=on image 4M
        qemu-io -f vpc "${writes[@]}" image || true
        seed vhd $options image
    done
    # A difference to it: the type, the parent's unique id, its name and a locator.
    qemu-img create -q -f vpc -o force_size=on parent 4M
    qemu-img create -q -f vpc -o force_size=on image 4M
    python3 - << 'PY'
b, parent = bytearray(open("image", "rb").read()), open("parent", "rb").read()
for at in 0, len(b) - 512:
    b[at + 60:at + 64] = (4).to_bytes(4, "big")
b[552:568] = parent[68:84]
name = "parent.vhd"
b[576:576 + 2 * len(name)] = name.encode("utf-16-be")
at = len(b) - 512
b[1088:1112] = b"W2ru" + (512).to_bytes(4, "big") + (2 * len(name)).to_bytes(4, "big") + bytes(4) + at.to_bytes(8, "big")
b[at:at] = name.encode("utf-16-le").ljust(512, b"\0")
open("image", "wb").write(b)
PY
    seed vhd differencing image parent
}
of_vhdx() {
    local options
    raw
    for options in block_size=1M,log_size=1M subformat=fixed; do
        qemu-img create -q -f vhdx -o $options image 4M
        qemu-io -f vhdx "${writes[@]}" image
        seed vhdx "${options%%=*}" image
    done
    # The log of an image that was not closed.
    qemu-img create -q -f vhdx -o block_size=1M,log_size=1M image 4M
    qemu-io -f vhdx -c 'write -q -P 1 0 20k' -c 'write -q -P 3 3M 70k' -c 'abort' image || true
    seed vhdx dirty image
}
of_vdi() {
    raw
    qemu-img convert -O vdi raw image
    seed vdi dynamic image
    qemu-img convert -O vdi -o static=on raw image
    seed vdi fixed image
}
ovf='<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"><References><File id="f" href="d.vmdk"/><File id="g" href="e.vmdk"/></References><DiskSection><Disk diskId="d" capacity="8" capacityAllocationUnits="byte * 2^20" fileRef="f"/><Disk diskId="e" capacity="8" fileRef="g"/><Disk diskId="h" capacity="8"/></DiskSection><VirtualSystem id="x"><Name>machine</Name><OperatingSystemSection id="96"><Description>Debian</Description></OperatingSystemSection><VirtualHardwareSection><Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>20</rasd:ResourceType></Item><Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:Parent>1</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType><rasd:HostResource>ovf:/disk/d</rasd:HostResource></Item><Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item><Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item></VirtualHardwareSection></VirtualSystem></Envelope>'
of_ova() {
    raw
    printf '%s' "$ovf" > x.ovf
    qemu-img convert -O vmdk -o subformat=streamOptimized raw d.vmdk
    cp d.vmdk e.vmdk
    { for f in x.ovf d.vmdk; do echo "SHA256($f)= $(sha256sum < $f | cut -d' ' -f1)"; echo "SHA1 ($f) = $(sha1sum < $f | cut -d' ' -f1)"; done; } > x.mf
    seed ova descriptor x.ovf x.mf d.vmdk e.vmdk
    printf 'SHA256(d.vmdk)= 00\n' > x.mf
    seed ova manifest x.ovf x.mf d.vmdk e.vmdk
    tar -cf x.ova x.ovf d.vmdk e.vmdk
    seed ova tar x.ova
    tar --format=pax -cSf x.ova raw
    seed ova sparse-tar x.ova
    tar --format=gnu -cSf x.ova raw
    seed ova gnu-tar x.ova
}
of_packed() {
    raw
    head -c 300k raw > small
    gzip -9 -c small > image; plain packed gzip image
    xz -c small > image; plain packed xz image
    xz --check=crc32 --block-size=64k -c small > image; plain packed xz-blocks image
    zstd -q -19 -c small > image; plain packed zstd image
    { zstd -q -c --no-check tree/text; zstd -q -c small; } > image; plain packed zstd-frames image
    { gzip -c tree/text; gzip -c small; } > image; plain packed gzip-members image
}
of_split() {
    raw
    split -b 1M -d -a 1 raw part
    seed split raw part0 part1 part2 part3
    qemu-img convert -O qcow2 -o cluster_size=4k raw image
    split -n 3 -d -a 1 image part
    seed split qcow2 part0 part1 part2
}
of_volumes() {
    made image 64M sh -c 'printf "label: gpt\nsize=1M, name=one\nstart=20480, size=3M, type=uefi\nsize=1M\n" | sfdisk -q "$0"'
    seed volumes gpt image
    made image 64M sh -c 'printf "label: dos\nsize=1M, bootable\nsize=2M, type=82\nsize=40M, type=5\nsize=1M\nsize=1M\nsize=1M\nsize=1M\n" | sfdisk -q "$0"'
    seed volumes mbr image
    made image 64M sh -c 'printf "label: gpt\nsector-size: 4096\nsize=1M\n" | sfdisk -q "$0"' || true
    seed volumes gpt4k image
    made image 40M mkfs.vfat
    seed volumes fat image
}
partition() { # FILE NUMBER OUT
    local start size
    read -r start size < <(sfdisk -J "$1" | python3 -c "import json, sys; p = json.load(sys.stdin)['partitiontable']['partitions'][$2 - 1]; print(p['start'], p['size'])")
    dd if="$1" of="$3" bs=512 skip="$start" count="$size" conv=sparse status=none
}
of_members() {
    local n
    for n in 1 2; do
        made image 4M true
        cryptsetup -q luksFormat --type luks$n --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
            $([ $n = 1 ] || echo --luks2-metadata-size 16k --luks2-keyslots-size 256k) image - < <(printf x) || continue
        seed members luks$n image
    done
    made image 4M cryptsetup -q luksFormat --type luks2 --pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 64 --pbkdf-parallel 1 \
        --luks2-metadata-size 16k --luks2-keyslots-size 256k --key-file <(printf x) || true
    seed members luks2-argon image
    [ -f "$volumes/pv1.img" ] || { echo "no disks of tests/volumes.sh: no arrays and volume groups"; return 1; }
    partition "$volumes/pv3.img" 1 p3
    seed members lvm "$volumes"/pv1.img "$volumes"/pv2.img p3 "$volumes"/pv4.img "$volumes"/pv5.img
    for n in $(seq 14); do
        for m in 1 2 3 4; do partition "$volumes/md$m.img" $n d$m; done
        seed members md$n d1 d2 d3 d4
    done
    for n in $(seq 7); do
        partition "$volumes/luks.img" $n d1
        seed members luks-$n d1
    done
}
of_machine() {
    local file
    [ ! -f "$volumes/m1.img" ] || seed machine layers "$volumes"/m1.img "$volumes"/m2.img
    [ ! -f "$volumes/md1.img" ] || seed machine arrays "$volumes"/md[1-4].img
    for file in "$shared"/guests/*.zst; do
        [ -f "$file" ] || continue
        zstd -q -d -f --sparse -o "$(basename "$file" .zst)" "$file"
    done
    [ ! -f debian.img ] || seed machine debian debian.img
    [ ! -f fedora-md1.img ] || seed machine fedora fedora-md1.img fedora-md2.img
    # Two filesystems on a disk, and what fstab says of them.
    cp -r tree system
    mkdir -p system/etc system/var system/home system/usr/bin
    printf 'ID=debian\nVERSION_ID=12\n' > system/etc/os-release
    printf 'UUID=11111111-2222-3333-4444-555555555555 / ext4 defaults 0 1\n/dev/sda2 /var ext4 ro\nLABEL=home /home btrfs subvol=@home\n/a /home/b none bind\nnfs:/x /mnt nfs\n' > system/etc/fstab
    made disk 24M sh -c 'printf "label: gpt\nsize=8M\nsize=8M\n" | sfdisk -q "$0"'
    made p1 8M mke2fs -q -F -t ext4 -b 1024 -N 256 -O ^metadata_csum,^has_journal -U 11111111-2222-3333-4444-555555555555 -d system
    made p2 8M mke2fs -q -F -t ext4 -b 1024 -N 256 -O ^metadata_csum,^has_journal -d tree
    dd if=p1 of=disk bs=1M seek=1 conv=notrunc,sparse status=none
    dd if=p2 of=disk bs=1M seek=9 conv=notrunc,sparse status=none
    made home 128M mkfs.btrfs -q -L home -m single -d single -r tree
    seed machine fstab disk home
}
of_texts() {
    local n=0 name file
    for name in ../outside/canary link0 link1 dirlink/canary inside sub/../inside .hidden/canary /etc/passwd nbd://host/x 'json:{"driver":"raw"}' /proc/self/environ; do
        for kind in 0 1 2 4 5 6; do
            n=$((n + 1))
            printf %s "$name" > text
            plain gate $n text "\\x0$kind"
        done
    done
    printf 'parentCID=ffffffff\ncreateType="x"\nRW 1 FLAT "../outside/canary" 0\nRW 1 ZERO\n' > text
    plain gate descriptor text '\x03'
    cat > text << 'END'
# An edited plan.
schema: vm2k.plan/1
machine:
  name: "web.qcow2"
  tree: "blake3:00"
END
    plain plan short text
    for file in "$here"/../tests/golden/*.yaml; do
        [ ! -f "$file" ] || plain plan "$(basename "$file")" "$file"
    done
    printf 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n' > text
    plain os_release debian text
    printf '[Unit]\nAfter=a.service\n[Service]\nExecStart=-/bin/sh -c "a %%n $X" ; /bin/b\nEnvironment="A=b c" D=e\nUser=x\n' > text
    plain os_release unit text
    printf 'root:x:0:0:root:/root:/bin/bash\nUUID=1 /var ext4 subvol=@,x-systemd.automount 0 2\n/dev/mapper/vg-a /x\\040y xfs\n' > text
    plain os_release passwd text
    for file in "$shared"/os-release/*; do
        [ ! -f "$file" ] || plain os_release "$(basename "$file")" "$file"
    done
    printf 'Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1\nConffiles:\n /etc/a 0123456789abcdef0123456789abcdef\n\n\xff/.\n/etc\n/etc/a\n\xff0123456789abcdef0123456789abcdef  etc/a\n\xffPackage: a\nAuto-Installed: 1\n\xff/a\n/b\na\n\xffroot root 755 /a\n\xffauto\n/a\na\n\n/b\n10\n\n\xffamd64\n\xff\xffPackage: b\nVersion: 2\n' > text
    plain dpkg all text
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%064d","size":2,"platform":{"architecture":"amd64","os":"linux"}}]}' 0 > text
    plain image_index index text '\x00'
    printf '{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%064d","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:%064d","size":2}]}' 0 0 > text
    plain image_index manifest text '\x01'
    printf '{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"User":"x","Cmd":["a"]},"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"x"}]}' > text
    plain image_index config text '\x02'
    mkdir -p l/blobs/sha256
    printf '{"imageLayoutVersion":"1.0.0"}' > l/oci-layout
    printf '{"schemaVersion":2,"manifests":[]}' > l/index.json
    tar -C l -cf x.tar oci-layout index.json blobs
    plain image_index oci-archive x.tar '\x03'
    printf '[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l.tar"]}]' > l/manifest.json
    printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%064d"]}}' 0 > l/c.json
    tar -C tree -cf l/l.tar a
    tar -C l -cf x.tar manifest.json c.json l.tar
    plain image_index docker-archive x.tar '\x04'
    for kind in gnu pax; do tar --format=$kind -C tree -S -cf x.tar a text hole; plain layer_tar $kind x.tar; done
    mkdir -p w/a
    : > w/.wh.a
    : > w/a/.wh..wh..opq
    tar -C w -cf x.tar .
    plain layer_tar whiteouts x.tar
    gzip -c x.tar > image; plain layer_tar gzip image
    cat > text << 'END'
v { id = "a" seqno = 3 status = ["RESIZEABLE", "READ", "WRITE"] flags = [] extent_size = 64 max_lv = 0 max_pv = 0
physical_volumes { pv0 { id = "012345-6789-abcd-ef01-2345-6789-abcdef" device = "/dev/sda" status = ["ALLOCATABLE"] flags = [] dev_size = 512 pe_start = 136 pe_count = 5 } }
logical_volumes { root { id = "b" status = ["READ", "WRITE", "VISIBLE"] segment_count = 2
segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = [ "pv0", 0 ] }
segment2 { start_extent = 1 extent_count = 2 type = "striped" stripe_count = 2 stripe_size = 8 stripes = [ "pv0", 1, "pv0", 3 ] } }
snap { id = "c" status = ["READ", "VISIBLE"] segment_count = 1
segment1 { start_extent = 0 extent_count = 1 type = "snapshot" chunk_size = 8 origin = "root" cow_store = "root" } } } }
contents = "Text Format Volume Group" version = 1
END
    plain lvm group text
    # The texts of a real volume group, of every kind of logical volume.
    [ ! -f "$volumes/pv1.img" ] || python3 - "$volumes/pv1.img" "$here/corpus/lvm" << 'PY'
import re, sys
data = open(sys.argv[1], "rb").read(1 << 20)
for n, text in enumerate(sorted(re.findall(rb"[\w+.-]+ \{\nid = [^\0]{200,}", data), key=len)[-4:]):
    open(f"{sys.argv[2]}/real-{n}", "wb").write(text)
PY
}

group of_ext4 ext4
group of_xfs xfs
group of_btrfs btrfs
group of_vfat vfat
group shared_filesystems ext4 xfs btrfs
group of_qcow2 qcow2
group of_vmdk vmdk
group of_vhd vhd
group of_vhdx vhdx
group of_vdi vdi
group of_ova ova
group of_packed packed
group of_split split
group of_volumes volumes
group of_members members
group of_machine machine
group of_texts gate plan os_release dpkg image_index layer_tar lvm
[ ! -f long ] || cat long >&2
for dir in "$here"/corpus/*/; do
    name=$(basename "$dir")
    ! wants "$name" || echo "$name: $(find "$dir" -type f | wc -l) inputs, the longest $(find "$dir" -type f -printf '%s\n' | sort -n | tail -1) bytes"
done
