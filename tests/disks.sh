#!/bin/bash
# tests/disks.sh OUT_DIR MACHINE_DIR: the server that tests/machine.sh made in MACHINE_DIR (`small`), on other disks.
#
#   lvm/machine.ova        XFS root and XFS /var on LVM, ext4 /boot and FAT /boot/efi, GPT, a streamOptimized VMDK, an OVA
#   btrfs/machine.vhdx     btrfs with the subvolumes @ and @home, zstd, a snapshot; a dynamic VHDX
#   split/disk{1,2}.vdi    ext4 root on one disk; ext4 /home and /var (in an MBR's extended partition) on the other; VDI
#   */mounts               for the judge: mount point, file with the filesystem, its first byte, its length, type, options; or of
#                          type `directory` a directory with the names and contents that must be there
#
# The filesystems are written by this machine's kernel, the logical volumes laid out by lvm2 (which needs no device-mapper for
# that). Needs root. Disks that this very script made of the same machine are not made again.
set -eu -o pipefail
export LC_ALL=C.UTF-8 TZ=UTC
umask 022
PATH=$PATH:/usr/sbin:/sbin

out=${1:?usage: tests/disks.sh OUT_DIR MACHINE_DIR}
from=$(realpath "${2:?usage: tests/disks.sh OUT_DIR MACHINE_DIR}")
script=$(realpath "$0")
stamp="$(cat "$from/.done") $(sha256sum < "$script" | cut -d' ' -f1)"
if [ "$(cat "$out/.done" 2> /dev/null)" = "$stamp" ]; then
    echo "disks.sh: $out is up to date" >&2
    exit 0
fi
if [ "$(id -u)" != 0 ]; then exec sudo bash "$script" "$@"; fi
mkdir -p "$out"
out=$(realpath "$out")
exec 9> "$out/.lock"
flock 9
[ "$(cat "$out/.done" 2> /dev/null)" != "$stamp" ] || exit 0
rm -rf "$out/.done" "$out"/{lvm,btrfs,split}
work=$(mktemp -d "$out/.work.XXXXXX")
mkdir "$work"/{source,target}
loops=()
cleanup() {
    cd /
    for at in "$work/target/home" "$work/target/var" "$work/target/boot" "$work/target" "$work/source"; do
        if mountpoint -q "$at"; then umount "$at" || umount -l "$at"; fi
    done
    [ ${#loops[@]} = 0 ] || losetup -d "${loops[@]}" 2> /dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mib=$((1024 * 1024))
IFS=$'\t' read -r _ first length < "$from/expected/partitions"
mount -o "loop,ro,noload,offset=$first,sizelimit=$length" "$from/disk.raw" "$work/source"
target=$work/target
copy() { rsync -aHAXS --numeric-ids "$@"; }
expect() { # DIR MOUNTPOINT FILE FIRST LENGTH TYPE [OPTIONS]: a line for the judge
    printf '%s\t%s\t%d\t%d\t%s\t%s\n' "$2" "$3" "$4" "$5" "$6" "${7:-ro}" >> "$1/mounts"
}

# ------------------------------------------------------------------------------------------------ XFS on LVM in an OVA
make_lvm() {
    local dir=$work/lvm disk=$work/lvm/disk.raw
    mkdir "$dir"
    truncate -s 2048M "$disk"
    sfdisk --quiet "$disk" << END
label: gpt
label-id: 5B1F9B52-0C1E-4D55-9D6C-3F1F5F0A7E00
start=2048, size=40M, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=efi
size=64M, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=boot
size=1900M, type=E6D6D379-F507-44C2-A23C-238F2A3DF928, name=lvm
END
    local pv_at=$((105 * mib)) pv_len=$((1900 * mib))
    mkdir "$dir/lvm"
    cat > "$dir/lvm/lvm.conf" << 'END'
devices { use_devicesfile=0 filter=["a|^/dev/loop.*|","r|.*|"] scan=["/dev"] }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { use_lvmpolld=0 event_activation=0 }
backup { backup=0 archive=0 }
END
    lvm_() { LVM_SYSTEM_DIR=$dir/lvm LVM_SUPPRESS_FD_WARNINGS=1 "$@" --driverloaded n 2>> "$work/lvm.log"; }
    local loop
    loop=$(losetup --show -f -o $pv_at --sizelimit $pv_len "$disk")
    loops+=("$loop")
    lvm_ pvcreate -q -y "$loop" > /dev/null
    lvm_ vgcreate -q vg-main "$loop" > /dev/null
    # The root lies in two pieces: what stands between them is given back.
    lvm_ lvcreate -q -y -an -Zn -Wn -L 400M -n root vg-main > /dev/null
    lvm_ lvcreate -q -y -an -Zn -Wn -L 128M -n swap vg-main > /dev/null
    lvm_ lvcreate -q -y -an -Zn -Wn -L 400M -n var vg-main > /dev/null
    lvm_ lvextend -q -y -L 800M vg-main/root > /dev/null
    for name in root:800 var:400; do
        truncate -s "${name#*:}M" "$dir/${name%:*}.xfs"
    done
    mkfs.xfs -q -L slash -m uuid=7c1f9b52-0c1e-4d55-9d6c-3f1f5f0a7e01 "$dir/root.xfs"
    mkfs.xfs -q -m bigtime=1,rmapbt=1,reflink=1 -n size=8192 "$dir/var.xfs"
    mkfs.vfat -F 16 -n EFI -i 1234ABCD "$dir/efi.vfat" -C $((40 * 1024)) > /dev/null
    mke2fs -q -t ext4 -L boot -U 7c1f9b52-0c1e-4d55-9d6c-3f1f5f0a7e02 "$dir/boot.ext4" 64M
    mount -o loop "$dir/root.xfs" "$target"
    mkdir -p "$target"/{var,boot}
    mount -o loop "$dir/var.xfs" "$target/var"
    mount -o loop "$dir/boot.ext4" "$target/boot"
    # XFS has 18 bits for a minor number, and a hard link cannot reach another filesystem.
    copy --exclude=/srv/hard/devices/block --exclude=/var/lib/app/other-directory "$work/source/" "$target/"
    mkdir -p "$dir/efi/EFI/debian" "$target/boot/efi" "$target/boot/grub"
    echo 'search.fs_uuid 7c1f9b52 root' > "$dir/efi/EFI/debian/grub.cfg"
    seq 1 20000 > "$dir/efi/EFI/debian/A Rather Long Name with ümlauts.efi"
    # Not every kernel has FAT: mtools needs none.
    mcopy -i "$dir/efi.vfat" -s "$dir/efi/EFI" ::
    echo 'set default=0' > "$target/boot/grub/grub.cfg"
    cat > "$target/etc/fstab" << 'END'
/dev/mapper/vg--main-root /         xfs  defaults   0 0
UUID=7c1f9b52-0c1e-4d55-9d6c-3f1f5f0a7e02 /boot ext4 defaults 1 2
UUID=1234-ABCD            /boot/efi vfat umask=0022 0 2
/dev/vg-main/var          /var      xfs  defaults   0 0
/dev/mapper/vg--main-swap none      swap defaults   0 0
END
    umount "$target/boot" "$target/var" "$target"
    # Where lvm2 put the logical volumes, extent by extent.
    local pe_start extent
    pe_start=$(lvm_ pvs --noheadings --units b --nosuffix -o pe_start "$loop" | tr -d ' ')
    extent=$(lvm_ vgs --noheadings --units b --nosuffix -o vg_extent_size vg-main | tr -d ' ')
    lvm_ lvs --noheadings --segments --units b --nosuffix -o lv_name,seg_start_pe,seg_size_pe,seg_pe_ranges vg-main |
        while read -r name start size ranges; do
            [ -f "$dir/$name.xfs" ] || continue
            local pe=${ranges##*:}
            dd if="$dir/$name.xfs" of="$disk" bs=1M conv=notrunc,sparse iflag=skip_bytes,count_bytes oflag=seek_bytes status=none \
                skip=$((start * extent)) count=$((size * extent)) seek=$((pv_at + pe_start + ${pe%-*} * extent))
        done
    dd if="$dir/efi.vfat" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
    dd if="$dir/boot.ext4" of="$disk" bs=1M seek=41 conv=notrunc,sparse status=none
    losetup -d "$loop"
    expect "$dir" / root.xfs 0 $((800 * mib)) xfs
    expect "$dir" /boot boot.ext4 0 $((64 * mib)) ext4
    expect "$dir" /boot/efi efi 0 0 directory
    expect "$dir" /var var.xfs 0 $((400 * mib)) xfs
    qemu-img convert -O vmdk -o subformat=streamOptimized,adapter_type=lsilogic "$disk" "$dir/machine-disk1.vmdk"
    cat > "$dir/machine.ovf" << END
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:href="machine-disk1.vmdk" ovf:id="file1" ovf:size="$(stat -c %s "$dir/machine-disk1.vmdk")"/></References>
 <DiskSection><Info>Disks</Info><Disk ovf:capacity="2048" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk1"
  ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>
 <VirtualSystem ovf:id="small1"><Info>A server</Info><Name>small1</Name>
  <OperatingSystemSection ovf:id="96"><Info>System</Info><Description>Debian GNU/Linux 12 (64-bit)</Description></OperatingSystemSection>
  <VirtualHardwareSection><Info>Hardware</Info>
   <Item><rasd:Caption>2 virtual CPUs</rasd:Caption><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
    <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
    <rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item>
   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
    <rasd:InstanceID>3</rasd:InstanceID><rasd:Parent>4</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
  </VirtualHardwareSection>
 </VirtualSystem>
</Envelope>
END
    (
        cd "$dir"
        sha256sum --tag machine.ovf machine-disk1.vmdk | sed 's/^SHA256 (/SHA256(/; s/) = /)= /' > machine.mf
        tar --format=ustar --owner=0 --group=0 -cf machine.ova machine.ovf machine.mf machine-disk1.vmdk
        rm -r machine.ovf machine.mf machine-disk1.vmdk lvm disk.raw
    )
    mv "$dir" "$out/"
}

# ------------------------------------------------------------------------------------------------ btrfs in a VHDX
make_btrfs() {
    local dir=$work/btrfs disk=$work/btrfs/disk.raw first=$((65 * mib)) length=$((1900 * mib))
    local uuid=8d1f9b52-0c1e-4d55-9d6c-3f1f5f0a7f01
    mkdir "$dir"
    truncate -s 2048M "$disk"
    sfdisk --quiet "$disk" << END
label: gpt
label-id: 5B1F9B52-0C1E-4D55-9D6C-3F1F5F0A7F00
start=2048, size=64M, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=efi
size=1900M, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=system
END
    local loop
    loop=$(losetup --show -f -o $first --sizelimit $length "$disk")
    loops+=("$loop")
    mkfs.btrfs -q -U $uuid -L system "$loop" > /dev/null
    mount -o compress=zstd "$loop" "$target"
    btrfs -q subvolume create "$target/@" > /dev/null
    btrfs -q subvolume create "$target/@home" > /dev/null
    umount "$target"
    mount -o compress=zstd,subvol=@ "$loop" "$target"
    mkdir "$target/home"
    mount -o compress=zstd,subvol=@home "$loop" "$target/home"
    copy "$work/source/" "$target/"
    btrfs -q subvolume create "$target/var/lib/portables" > /dev/null
    echo 'in a subvolume of its own' > "$target/var/lib/portables/file"
    btrfs -q subvolume snapshot -r "$target" "$target/.before-the-upgrade" > /dev/null
    for i in $(seq 1 50); do echo "page $i" > "$target/home/$i.html"; done
    cat > "$target/etc/fstab" << END
UUID=$uuid /     btrfs defaults,compress=zstd,subvol=@     0 0
UUID=$uuid /home btrfs defaults,compress=zstd,subvol=@home 0 0
UUID=1234-ABCE /boot/efi vfat umask=0077,nofail 0 1
END
    umount "$target/home" "$target"
    losetup -d "$loop"
    qemu-img convert -O vhdx -o subformat=dynamic "$disk" "$dir/machine.vhdx"
    expect "$dir" / disk.raw $first $length btrfs ro,subvol=@
    expect "$dir" /home disk.raw $first $length btrfs ro,subvol=@home
    mv "$dir" "$out/"
}

# ------------------------------------------------------------------------------------------------ ext4 on two disks in VDI
make_split() {
    local dir=$work/split
    mkdir "$dir"
    truncate -s 1024M "$dir/disk1.raw"
    truncate -s 1024M "$dir/disk2.raw"
    sfdisk --quiet "$dir/disk1.raw" << 'END'
label: dos
label-id: 0x1a2b3c4d
start=2048, size=1000M, type=83, bootable
END
    sfdisk --quiet "$dir/disk2.raw" << 'END'
label: dos
label-id: 0x5e6f7a8b
start=2048, size=300M, type=83
start=616448, size=700M, type=5
start=618496, size=600M, type=83
END
    local root_at=$mib root_len=$((1000 * mib)) home_at=$mib home_len=$((300 * mib)) var_at=$((302 * mib)) var_len=$((600 * mib))
    mke2fs -q -F -t ext4 -L slash -E offset=$root_at "$dir/disk1.raw" 1000M
    mke2fs -q -F -t ext3 -L homes -E offset=$home_at "$dir/disk2.raw" 300M
    mke2fs -q -F -t ext4 -E offset=$var_at "$dir/disk2.raw" 600M
    mount -o loop,offset=$root_at,sizelimit=$root_len "$dir/disk1.raw" "$target"
    mkdir "$target"/{home,var}
    mount -o loop,offset=$home_at,sizelimit=$home_len "$dir/disk2.raw" "$target/home"
    mount -o loop,offset=$var_at,sizelimit=$var_len "$dir/disk2.raw" "$target/var"
    copy --exclude=/var/lib/app/other-directory "$work/source/" "$target/"
    for i in $(seq 1 50); do echo "page $i" > "$target/home/$i.html"; done
    cat > "$target/etc/fstab" << 'END'
LABEL=slash          /     ext4 defaults 0 1
LABEL=homes          /home ext3 defaults 0 2
PARTUUID=5e6f7a8b-05 /var  ext4 defaults 0 2
END
    umount "$target/home" "$target/var" "$target"
    for n in 1 2; do qemu-img convert -O vdi "$dir/disk$n.raw" "$dir/disk$n.vdi"; done
    expect "$dir" / disk1.raw $root_at $root_len ext4
    expect "$dir" /home disk2.raw $home_at $home_len ext3
    expect "$dir" /var disk2.raw $var_at $var_len ext4
    mv "$dir" "$out/"
}

make_lvm
make_btrfs
make_split
umount "$work/source"
chmod -R a+rX "$out"/{lvm,btrfs,split}
echo "$stamp" > "$out/.done"
