#!/bin/bash
# tests/machine.sh OUT_DIR [full|small]: makes a real Debian 12 server's disk, and the base image it is compared with.
#
#   disk.raw, disk.qcow2   the same disk: GPT, ext4 root; in `full` also /home (a filesystem of its own) and swap
#   base                   an OCI layout, `oci:OUT_DIR/base:bookworm`: what docker.io/library/debian:12 is
#   vmlinuz, initrd.img    (`full`) to start the disk under qemu: -append 'root=/dev/vda1 console=ttyS0'
#   expected/packages.tsv  what dpkg-query says in a chroot: package, version, architecture, source, its version, KiB, status
#   expected/manual        what apt-mark says was asked for
#   expected/partitions    name, first byte and length of each filesystem: for the judge that mounts them
#   expected/facts         files and bytes on the disk, hostname, sizes
#   expected/os-release
#
# `full` is about 800 MB in 22,000 files with a kernel, systemd, ssh, nginx, Python and an application in /srv; `small` is a
# minimal system with nginx for quick tests. Both hold what is hard to copy: hard links, holes, capabilities, ACLs, fifos,
# devices, names that are not UTF-8, times before 1970 and after 2038.
#
# The packages come from the mirror that this machine's apt uses (VM2K_TEST_MIRROR and VM2K_TEST_SECURITY_MIRROR override
# it). Needs root (loop mount, chroot). A disk that this very script made is not made again.
set -eu -o pipefail
export LC_ALL=C.UTF-8 TZ=UTC
umask 022

out=${1:?usage: tests/machine.sh OUT_DIR [full|small|base]}
kind=${2:-full}
script=$(realpath "$0")
release=bookworm

case $kind in
    full | small | base) ;;
    *)
        echo "machine.sh: no kind of machine is called $kind (full, small, base)" >&2
        exit 2
        ;;
esac

stamp="$kind $(sha256sum < "$script" | cut -d' ' -f1)"
if [ "$(cat "$out/.done" 2> /dev/null)" = "$stamp" ]; then
    echo "machine.sh: $out is up to date ($kind)" >&2
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=VM2K_TEST_MIRROR,VM2K_TEST_SECURITY_MIRROR,VM2K_TEST_SSH_KEY bash "$script" "$@"
fi

mkdir -p "$out"
out=$(realpath "$out")
exec 9> "$out/.lock"
flock 9
if [ "$(cat "$out/.done" 2> /dev/null)" = "$stamp" ]; then
    exit 0
fi
rm -rf "$out/.done" "$out/disk.raw" "$out/disk.qcow2" "$out/base" "$out/expected" "$out/vmlinuz" "$out/initrd.img"
work=$(mktemp -d "$out/.work.XXXXXX")
root=$work/root
mkdir "$root"

cleanup() {
    cd /
    for at in "$root/home" "$root"; do
        if mountpoint -q "$at"; then umount "$at" || umount -l "$at"; fi
    done
    [ -z "${base_pid:-}" ] || kill "$base_pid" 2> /dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Where packages come from: the Debian mirror in this machine's apt sources, whatever its release. Where there is none
# (Ubuntu), mmdebstrap's own default.
mirror=${VM2K_TEST_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
    awk '$1 == "Debian" && $2 !~ /-/ { print $3; exit }')}
security=${VM2K_TEST_SECURITY_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
    awk '$1 == "Debian" && $2 ~ /-security$/ { print $3; exit }')}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
from() { # URI SUITE
    echo "deb [signed-by=$keyring] $1 $2 main"
}
aptopts=()
eval "$(apt-config shell http_proxy_opt Acquire::http::Proxy)"
if [ -n "${http_proxy_opt:-}" ]; then aptopts+=("--aptopt=Acquire::http::Proxy \"$http_proxy_opt\""); fi

debian() { # TARGET all|release VARIANT MMDEBSTRAP-OPTION...
    local target=$1 suites=$2 variant=$3 sources=()
    shift 3
    if [ -n "$mirror" ]; then
        sources+=("$(from "$mirror" $release)")
        if [ "$suites" = all ]; then
            sources+=("$(from "$mirror" $release-updates)")
            if [ -n "$security" ]; then sources+=("$(from "$security" $release-security)"); fi
        fi
    fi
    mmdebstrap --quiet --mode=root --variant="$variant" --keyring="$keyring" "${aptopts[@]}" \
        --dpkgopt=force-unsafe-io "$@" $release "$target" "${sources[@]}"
}
official_sources='{ echo "deb '"${mirror:-http://mirror.example/debian}"' bookworm main"
    echo "deb '"${mirror:-http://mirror.example/debian}"' bookworm-updates main"
    echo "deb '"${security:-http://mirror.example/debian-security}"' bookworm-security main"; } > "$1/etc/apt/sources.list"'

# ------------------------------------------------------------------------------------------------ the base image
# Without updates, as an image of some weeks ago is: some packages of the machine are newer than the base's.
make_base() {
    local sib
    for sib in "$out"/../*/base/.done; do
        if [ -f "$sib" ] && [ "$(cat "$sib")" = "base ${stamp#* }" ]; then
            cp -a "$(dirname "$sib")" "$out/base"
            return
        fi
    done
    # Times past this are set to it: later than any package's, so that its files have the times that the machine's have.
    local blobs=$work/base/blobs/sha256 date created
    date=$(date -d "today 00:00" +%s)
    created=$(date -d "@$date" +%FT%TZ)
    mkdir -p "$blobs"
    SOURCE_DATE_EPOCH=$date debian "$work/base.tar" release minbase \
        --customize-hook="$official_sources" \
        --customize-hook='rm -f "$1/etc/hostname" "$1/etc/resolv.conf"'
    local diff_id layer config manifest
    diff_id=$(sha256sum < "$work/base.tar" | cut -d' ' -f1)
    gzip -n -6 < "$work/base.tar" > "$work/layer"
    rm "$work/base.tar"
    blob() { # FILE: puts it among the blobs, prints digest and size
        local digest size
        digest=$(sha256sum < "$1" | cut -d' ' -f1)
        size=$(stat -c %s "$1")
        mv "$1" "$blobs/$digest"
        echo "\"digest\":\"sha256:$digest\",\"size\":$size"
    }
    layer=$(blob "$work/layer")
    printf '%s' '{"created":"'"$created"'","architecture":"'"$(dpkg --print-architecture)"'","os":"linux",' \
        '"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["bash"]},' \
        '"rootfs":{"type":"layers","diff_ids":["sha256:'"$diff_id"'"]},' \
        '"history":[{"created":"'"$created"'","created_by":"minimal Debian '$release'"}]}' > "$work/config"
    config=$(blob "$work/config")
    printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",' \
        '"config":{"mediaType":"application/vnd.oci.image.config.v1+json",'"$config"'},' \
        '"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",'"$layer"'}]}' > "$work/manifest"
    manifest=$(blob "$work/manifest")
    printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":' \
        '[{"mediaType":"application/vnd.oci.image.manifest.v1+json",'"$manifest"',' \
        '"annotations":{"org.opencontainers.image.ref.name":"'$release'"}}]}' > "$work/base/index.json"
    printf '%s' '{"imageLayoutVersion":"1.0.0"}' > "$work/base/oci-layout"
    echo "base ${stamp#* }" > "$work/base/.done"
    mv "$work/base" "$out/base"
}

if [ "$kind" = base ]; then
    make_base
    echo "$stamp" > "$out/.done"
    exit 0
fi
make_base 9>&- &
base_pid=$!

# ------------------------------------------------------------------------------------------------ the disk
mib=$((1024 * 1024))
root_uuid=6a1f9b52-0c1e-4d55-9d6c-3f1f5f0a7c01
home_uuid=6a1f9b52-0c1e-4d55-9d6c-3f1f5f0a7c02
swap_uuid=6a1f9b52-0c1e-4d55-9d6c-3f1f5f0a7c03
mkdir "$out/expected"
if [ "$kind" = full ]; then
    truncate -s 4096M "$work/disk.raw"
    sfdisk --quiet "$work/disk.raw" << END
label: gpt
label-id: 6A1F9B52-0C1E-4D55-9D6C-3F1F5F0A7C00
start=2048, size=3072M, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
size=512M, type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915, name=home
size=256M, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, name=swap
END
    printf '/\t%d\t%d\n/home\t%d\t%d\n' $((1 * mib)) $((3072 * mib)) $((3073 * mib)) $((512 * mib)) > "$out/expected/partitions"
    swap=$(losetup --show -f -o $((3585 * mib)) --sizelimit $((256 * mib)) "$work/disk.raw")
    mkswap -q -U $swap_uuid "$swap" || mkswap -U $swap_uuid "$swap" > /dev/null
    losetup -d "$swap"
else
    truncate -s 1024M "$work/disk.raw"
    sfdisk --quiet "$work/disk.raw" << END
label: gpt
label-id: 6A1F9B52-0C1E-4D55-9D6C-3F1F5F0A7D00
start=2048, size=1022M, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
END
    printf '/\t%d\t%d\n' $((1 * mib)) $((1022 * mib)) > "$out/expected/partitions"
fi
make_filesystem() { # FIRST-BYTE LENGTH UUID LABEL
    mke2fs -q -F -t ext4 -I 256 -U "$3" -L "$4" -E offset="$1",hash_seed="$3",lazy_itable_init=1,root_owner=0:0 \
        "$work/disk.raw" $(($2 / 1024))k
}
mount_filesystem() { # FIRST-BYTE LENGTH MOUNTPOINT
    # nobarrier and no commit every five seconds: this disk is thrown away if the machine dies while it is made
    mount -o "loop,offset=$1,sizelimit=$2,barrier=0,commit=300,noinit_itable" "$work/disk.raw" "$3"
}
root_length=$(awk '$1 == "/" { print $3 }' "$out/expected/partitions")
make_filesystem $((1 * mib)) "$root_length" $root_uuid root
[ "$kind" != full ] || make_filesystem $((3073 * mib)) $((512 * mib)) $home_uuid home
mount_filesystem $((1 * mib)) "$root_length" "$root"

packages=nginx-light,iputils-ping,libcap2-bin,openssh-server,python3-minimal
if [ "$kind" = full ]; then
    packages=$packages,linux-image-amd64,initramfs-tools,zstd,systemd-sysv,dbus,python3,python3-django,perl,locales
    packages=$packages,sudo,curl,rsync,acl,attr,cron,logrotate,rsyslog,less,vim-tiny,unattended-upgrades
    packages=$packages,e2fsprogs,kmod,udev,iproute2,procps
fi
debian "$root" all minbase --include="$packages" --skip=cleanup/reproducible \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"; echo COMPRESS=zstd > "$1/etc/initramfs-tools/conf.d/zstd"' \
    --customize-hook="$official_sources" 9>&-

if [ "$kind" = full ]; then
    mount_filesystem $((3073 * mib)) $((512 * mib)) "$root/home"
fi

# ------------------------------------------------------------------------------------------------ what its owners did to it
cd "$root"
name=web1
[ "$kind" = full ] || name=small1
echo $name > etc/hostname
printf '127.0.0.1\tlocalhost\n127.0.1.1\t%s\n' $name > etc/hosts
echo 'nameserver 192.0.2.53' > etc/resolv.conf
{
    echo '# <file system> <mount point> <type> <options> <dump> <pass>'
    echo "UUID=$root_uuid / ext4 errors=remount-ro 0 1"
    if [ "$kind" = full ]; then
        echo "UUID=$home_uuid /home ext4 defaults,nodev 0 2"
        echo "UUID=$swap_uuid none swap sw 0 0"
        echo 'tmpfs /mnt tmpfs noauto 0 0'
    fi
} > etc/fstab
echo 0123456789abcdef0123456789abcdef > etc/machine-id
guest() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

guest useradd --system --home-dir /srv/app --shell /usr/sbin/nologin --uid 900 app
guest useradd --create-home --shell /bin/bash --uid 1001 alice
guest useradd --create-home --shell /bin/bash --uid 1002 bob
guest groupadd --gid 1100 staff2
guest usermod -a -G staff2 alice

# an application of a few files, run by systemd
mkdir -p srv/app/{templates,static,data,releases/1.0,releases/1.1} var/lib/app var/log/app
cat > srv/app/app.py << 'END'
#!/usr/bin/python3
"""A small web service: GET / says who it is, GET /health says ok."""
import http.server
import os

GREETING = os.environ.get("GREETING", "hello")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok\n" if self.path == "/health" else f"{GREETING} from app\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    http.server.HTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Handler).serve_forever()
END
chmod 755 srv/app/app.py
cp srv/app/app.py srv/app/releases/1.0/app.py
ln srv/app/app.py srv/app/releases/1.1/app.py
ln -s releases/1.1 srv/app/current
echo 'django' > srv/app/requirements.txt
echo '<h1>{{ greeting }}</h1>' > srv/app/templates/index.html
seq 1 20000 > srv/app/static/numbers.txt
mkdir -p etc/systemd/system/multi-user.target.wants etc/default
cat > etc/systemd/system/app.service << 'END'
[Unit]
Description=A small web service
After=network.target

[Service]
User=app
Group=app
WorkingDirectory=/srv/app
Environment=GREETING=hello PORT=8000
EnvironmentFile=-/etc/default/app
ExecStart=/usr/bin/python3 /srv/app/app.py
Restart=on-failure

[Install]
WantedBy=multi-user.target
END
ln -s /etc/systemd/system/app.service etc/systemd/system/multi-user.target.wants/app.service
echo 'WORKERS=2' > etc/default/app
chown -R 900:900 srv/app var/lib/app var/log/app

mkdir -p var/www/html
echo "<h1>$name says hello</h1>" > var/www/html/index.html
cat > etc/nginx/sites-available/default << 'END'
server {
    listen 8080 default_server;
    root /var/www/html;
    index index.html;
    location /app/ { proxy_pass http://127.0.0.1:8000/; }
}
END
if [ "$kind" = full ]; then
    mkdir -p etc/systemd/network
    printf '[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n' > etc/systemd/network/20-dhcp.network
    guest systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service
    install -d -m 700 root/.ssh
    if [ -n "${VM2K_TEST_SSH_KEY:-}" ]; then install -m 600 "$VM2K_TEST_SSH_KEY" root/.ssh/authorized_keys; fi
    sed -i 's/^# *en_US.UTF-8/en_US.UTF-8/' etc/locale.gen
    guest locale-gen > /dev/null
    # the homes, on their own filesystem
    install -d -m 755 home/bob/site
    for i in $(seq 1 200); do echo "page $i" > "home/bob/site/$i.html"; done
    chown -R 1002:1002 home/bob
    head -c 3000000 /dev/zero | openssl enc -aes-128-ctr -K 00000000000000000000000000000001 -iv 0 2> /dev/null \
        > home/alice/photo.raw || head -c 3000000 /dev/urandom > home/alice/photo.raw
    ln home/alice/photo.raw home/alice/photo-copy.raw
    chown -R 1001:1001 home/alice
fi

# changed and deleted files of the base
echo 'alias ll="ls -l"' >> etc/bash.bashrc
echo "Welcome to $name" > etc/issue
sed -i 's/^UMASK.*/UMASK 027/' etc/login.defs
sed -i 's/worker_connections .*/worker_connections 1000;/' etc/nginx/nginx.conf
chmod 700 usr/bin/chage
chown 0:1100 etc/issue.net
rm -rf usr/share/doc/bash usr/share/doc/tar usr/bin/shuf usr/share/common-licenses/Artistic
rm -f usr/share/pam/common-account && mkdir usr/share/pam/common-account && echo x > usr/share/pam/common-account/x # file becomes directory
rm -rf usr/share/debianutils && ln -s misc usr/share/debianutils                                                  # directory becomes link
rm usr/bin/tac && ln -s cat usr/bin/tac                                                                           # file becomes link
touch -d '2024-05-05T05:05:05.5Z' usr/bin/head                                                                    # nothing but its time
guest dpkg-divert --quiet --local --rename --divert /usr/bin/wdctl.real --add /usr/bin/wdctl
printf '#!/bin/sh\nexec /usr/bin/wdctl.real "$@"\n' > usr/bin/wdctl
chmod 755 usr/bin/wdctl
guest dpkg-statoverride --quiet --update --add root staff2 2755 /usr/bin/expiry

# what a container does not need
mkdir -p var/log/journal/0123456789abcdef0123456789abcdef var/cache/apt/archives var/tmp
head -c 1000000 /dev/zero > var/log/journal/0123456789abcdef0123456789abcdef/system.journal
for i in $(seq 1 5000); do echo "Jan  1 00:00:00 $name app[1]: request $i"; done > var/log/syslog
echo 'not a package' > var/cache/apt/archives/left-behind_1.0_all.deb
echo 'half done' > tmp/upload.part
echo 'older' > var/tmp/older.part
echo 'ls -la' > root/.bash_history

# what is hard to copy
hard=srv/hard
mkdir -p $hard/{links,many,acl,xattr,modes,times,devices}
echo one > $hard/links/a
ln $hard/links/a $hard/links/b
ln $hard/links/a $hard/links/z-last
ln $hard/links/a var/lib/app/other-directory
ln usr/bin/head $hard/links/head-of-the-base # a second name for a file that the base has
ln -s "$(printf 'x%.0s' $(seq 1 59))" $hard/links/to-59-bytes
ln -s "$(printf 'x%.0s' $(seq 1 60))" $hard/links/to-60-bytes
ln -s "/$(printf 'long-%.0s' $(seq 1 60))" $hard/links/to-301-bytes
ln -s $'not \xff UTF-8 \n' $hard/links/to-bytes
ln -s ../../../../../../../../etc/hostname $hard/links/upwards
ln -s loop $hard/links/loop

sparse_mib=512
[ "$kind" = full ] || sparse_mib=64
truncate -s ${sparse_mib}M $hard/sparse
printf 'first' | dd of=$hard/sparse conv=notrunc status=none
printf 'middle' | dd of=$hard/sparse bs=1M seek=$((sparse_mib / 2)) conv=notrunc status=none
printf 'last' | dd of=$hard/sparse bs=1 seek=$((sparse_mib * mib - 4)) conv=notrunc status=none
truncate -s 5000000 $hard/only-a-hole
fallocate -l 1500000 $hard/allocated-not-written
: > $hard/empty

setcap cap_net_bind_service+ep usr/sbin/nginx
cp usr/bin/true $hard/xattr/with-capabilities
setcap cap_chown=ei $hard/xattr/with-capabilities
echo x > $hard/acl/file
setfacl -m u:1001:rw,g:1100:r,m::rw $hard/acl/file
mkdir $hard/acl/inherits
setfacl -m u:900:rwx -d -m u:1001:rwx,g::r-x $hard/acl/inherits
echo x > $hard/acl/inherits/child
mkdir $hard/acl/inherits/subdirectory
echo x > $hard/xattr/plain
setfattr -n user.comment -v 'some words' $hard/xattr/plain
setfattr -n user.bytes -v 0x00ff0a3d20 $hard/xattr/plain
setfattr -n user.$'n\xc3\xa4me' -v 1 $hard/xattr/plain
setfattr -n user.long -v "0x$(printf 'ab%.0s' $(seq 1 3000))" $hard/xattr/plain
setfattr -n user.directory -v yes $hard/xattr

mkfifo -m 640 $hard/fifo
mknod -m 600 $hard/devices/char c 10 200
mknod -m 660 $hard/devices/block b 259 300000
chown 0:1100 $hard/devices/block
python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' $hard/socket

echo x > $hard/$'new\nline'
echo x > $hard/$'not UTF-8 \xff\xfe'
mkdir $hard/$'latin1 \xe9'
echo x > $hard/$'latin1 \xe9/\xe8'
echo x > "$hard/back\\slash"
echo x > "$hard/ leading and trailing "
echo x > "$hard/-rf"
echo x > "$hard/*"
echo x > "$hard/ümlaut 漢字 🐧"
echo x > "$hard/$(printf 'n%.0s' $(seq 1 255))"
echo x > "$hard/.hidden"
echo x > "$hard/a"
mkdir "$hard/a.d" && echo x > "$hard/a.d/x" # sorts between a and a/
deep=$hard/deep
for i in 1 2 3 4 5 6; do deep=$deep/$(printf "d$i-%.0s" $(seq 1 60)); done
mkdir -p "$deep"
echo deep > "$deep/file"
ln "$deep/file" $hard/links/to-a-long-path
echo x > "$hard/many/$(printf 'p%.0s' $(seq 1 90))"
for i in $(seq 1 1500); do : > "$hard/many/file-with-a-name-of-some-length-$i"; done

for mode in 0000 0200 0444 0600 0755 1644 2755 4755 6711 7777; do
    echo x > $hard/modes/file-$mode
    mkdir $hard/modes/dir-$mode
    chmod $mode $hard/modes/file-$mode $hard/modes/dir-$mode
done
echo x > $hard/modes/owner-70000 && chown 70000:70001 $hard/modes/owner-70000
echo x > $hard/modes/owner-3000000 && chown 3000000:4000000000 $hard/modes/owner-3000000
for at in 1901-12-31T00:00:00 1969-12-31T23:59:58.25 1970-01-01T00:00:00 2001-09-09T01:46:40.999999999 2038-01-19T03:14:08 2099-12-31T23:59:59.5 \
    2400-02-29T12:00:00; do
    echo x > $hard/times/$at
    touch -d ${at}Z $hard/times/$at
done
mkdir $hard/times/directory && touch -d 2039-01-01T00:00:00Z $hard/times/directory
ln -s x $hard/times/link && touch -h -d 1960-01-01T00:00:00Z $hard/times/link

# ------------------------------------------------------------------------------------------------ facts
guest dpkg-query -W -f '${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\t${Installed-Size}\t${db:Status-Abbrev}\n' \
    > "$out/expected/packages.tsv"
guest apt-mark showmanual > "$out/expected/manual"
cp etc/os-release "$out/expected/os-release"
if [ "$kind" = full ]; then
    cp -L vmlinuz "$out/vmlinuz"
    cp -L initrd.img "$out/initrd.img"
fi
sync -f "$root"
{
    echo "kind=$kind"
    echo "hostname=$name"
    echo "paths=$(find . | wc -l)"
    echo "files=$(find . -type f | wc -l)"
    echo "allocated_bytes=$(($(du -s --block-size=1 . | cut -f1)))"
    echo "apparent_bytes=$(($(du -s --apparent-size --block-size=1 . | cut -f1)))"
} > "$out/expected/facts"
cd /
for at in "$root/home" "$root"; do
    if mountpoint -q "$at"; then
        fstrim "$at" || true
        umount "$at"
    fi
done

qemu-img convert -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
wait "$base_pid"
base_pid=
mv "$work/disk.raw" "$work/disk.qcow2" "$out/"
chmod 644 "$out/disk.raw" "$out/disk.qcow2"
{
    echo "raw_allocated_bytes=$(($(stat -c '%b * %B' "$out/disk.raw")))"
    echo "qcow2_bytes=$(stat -c %s "$out/disk.qcow2")"
} >> "$out/expected/facts"
echo "$stamp" > "$out/.done"
