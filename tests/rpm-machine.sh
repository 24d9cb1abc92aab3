#!/bin/bash
# tests/rpm-machine.sh OUT_DIR: makes a server of the rpm family without such a distribution's repositories: Debian's packages
# become rpms in a repository of the test's own, and Debian's dnf installs them.
#
#   disk.qcow2             one ext4 on a GPT: the machine, which calls itself Rocky Linux 9
#   base                   an OCI layout, `oci:OUT_DIR/base:9`: a small subset of the packages with rpm and dnf, as an image of
#                          the distribution
#   repo                   the repository (file lists, a group, a module of two streams), which the machine's `rocky.repo`
#                          expects at http://dl.example.org/pub/rocky/9/BaseOS/ARCH/os
#   expected/packages.tsv  what rpm says: name, epoch, version, release, architecture, source
#   expected/base.tsv      the same of the base image
#   expected/reasons       what dnf says of why each package is there; `manual` has those that are no dependency
#   expected/from          what dnf says of each package's repository
#   expected/userinstalled what `dnf history userinstalled` says on the machine
#   expected/leaves        what was asked for and no installed package requires
#   expected/unneeded      what its `dnf autoremove` would take
#   expected/changed       configuration files that were changed afterwards, as `rpm -V` tells
#   expected/partitions    name, first byte and length of each filesystem
#
# The packages come from the mirror that this machine's apt uses (VM2K_TEST_MIRROR overrides it). Needs root (chroot). What
# this very script made is not made again.
set -eu -o pipefail
export LC_ALL=C.UTF-8 TZ=UTC
umask 022
PATH=$PATH:/usr/sbin:/sbin

out=${1:?usage: tests/rpm-machine.sh OUT_DIR}
script=$(realpath "$0")
stamp="rpm $(sha256sum < "$script" | cut -d' ' -f1)"
if [ "$(cat "$out/.done" 2> /dev/null)" = "$stamp" ]; then
    echo "rpm-machine.sh: $out is up to date" >&2
    exit 0
fi
if [ "$(id -u)" != 0 ]; then exec sudo --preserve-env=VM2K_TEST_MIRROR bash "$script" "$@"; fi
mkdir -p "$out"
out=$(realpath "$out")
exec 9> "$out/.lock"
flock 9
[ "$(cat "$out/.done" 2> /dev/null)" != "$stamp" ] || exit 0
rm -rf "$out/.done" "$out"/{disk.qcow2,base,repo,expected}
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ------------------------------------------------------------------------------------------------ Debian's packages
release=bookworm
mirror=${VM2K_TEST_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
    awk '$1 == "Debian" && $2 !~ /-/ { print $3; exit }')}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
sources=()
[ -z "$mirror" ] || sources=("deb [signed-by=$keyring] $mirror $release main")
aptopts=()
eval "$(apt-config shell http_proxy_opt Acquire::http::Proxy)"
[ -z "${http_proxy_opt:-}" ] || aptopts=("--aptopt=Acquire::http::Proxy \"$http_proxy_opt\"")
wanted=nginx-light,python3-minimal,openssh-server,curl,less,procps,iproute2,cron,sudo,vim-tiny,logrotate,rsync,acl,attr
# What every image of the distribution has; Debian's dash is its /bin/sh.
core=rocky-release,bash,dash,coreutils,sed,grep,findutils,dnf,rpm,ca-certificates
essential=${core#*,},diffutils,findutils,grep,gzip,hostname,login,ncurses-bin,passwd,perl-base,sed,tar,util-linux,base-passwd,usr-is-merged
mmdebstrap --quiet --mode=root --variant=extract --keyring="$keyring" "${aptopts[@]}" --include="$wanted,$essential" \
    --aptopt='APT::Install-Recommends "false"' --skip=cleanup/apt,cleanup/reproducible,chroot/mount \
    $release "$work/extracted" "${sources[@]}" 9>&-
mkdir "$work/debs"
mv "$work"/extracted/var/cache/apt/archives/*.deb "$work/debs/"
rm -rf --one-file-system "$work/extracted"

# ------------------------------------------------------------------------------------------------ rpms of them, by one spec
# All of them lie in one build root; each is a subpackage with the version, the relations and the files that it had.
cat > "$work/spec.py" << 'END'
import os, re, subprocess, sys

work = sys.argv[1]
root = work + "/files"
# What belongs to dpkg, and what the package filesystem brings instead.
left_out = {"apt", "base-files", "base-passwd", "debconf", "dpkg", "usr-is-merged"}
# These list their files below /bin and /lib, as packages do that are older than the merge with /usr.
unmerged = {"bash", "coreutils", "dash", "libc6"}
of_filesystem = re.compile(r"/[^/]*|/usr/[^/]*|/var/[^/]*|/(s?bin|lib|lib64)(/.*)?|/usr/share/(doc|man)|/usr/local/.*|/etc/default")
for d in ("bin", "sbin", "lib", "lib64"):
    os.makedirs(f"{root}/usr/{d}")
    os.symlink("usr/" + d, f"{root}/{d}")
os.makedirs(work + "/lists")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parts(version):
    epoch, _, rest = version.rpartition(":")
    upstream, _, release = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return epoch, upstream.replace("-", "."), release


def relation(text):
    words = []
    for word in text.split("|"):
        name, op, version = re.match(r"\s*([a-z0-9][a-z0-9+.-]*)(?::\w+)?\s*(?:\(([<>=]+)\s*([^)\s]+)\))?", word).groups()
        if op:
            epoch, upstream, release = parts(version)
            op = {"<<": "<", ">>": ">"}.get(op, op)
            name += f" {op} {epoch + ':' if epoch else ''}{upstream}{'-' + release if release else ''}"
        words.append(name)
    return words[0] if len(words) == 1 else "(" + " or ".join(words) + ")"


spec = ["Name: vm2k-debian", "Version: 1", "Release: 1", "Summary: s", "License: many", "%description", "none"]
for deb in sorted(os.listdir(work + "/debs")):
    path = f"{work}/debs/{deb}"
    fields = dict(re.findall(r"^([A-Za-z-]+): (.*(?:\n .*)*)", run("dpkg-deb", "-f", path), re.M))
    name = fields["Package"]
    target = work + "/passwd" if name in left_out else root
    os.makedirs(target, exist_ok=True)
    tar = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE)
    listed = subprocess.run(["tar", "-xpvf", "-", "--keep-directory-symlink", "--quoting-style=literal", "-C", target],
                            stdin=tar.stdout, capture_output=True, check=True).stdout.decode().splitlines()
    if name in left_out:
        continue
    epoch, version, release = parts(fields["Version"])
    spec += [f"%package -n {name}", f"Version: {version}", f"Release: {release or '0'}", f"Group: {fields['Section']}",
             f"Summary: {fields['Description'].splitlines()[0]}", "Vendor: The tests of vm2k", "AutoReqProv: no", "Requires: filesystem"]
    if epoch:
        spec.append(f"Epoch: {epoch}")
    if fields["Architecture"] == "all":
        spec.append("BuildArch: noarch")
    for field, tag in (("Pre-Depends", "Requires"), ("Depends", "Requires"), ("Recommends", "Recommends"), ("Suggests", "Suggests"),
                       ("Provides", "Provides")):
        for text in fields.get(field, "").replace("\n", " ").split(","):
            if text.strip():
                spec.append(f"{tag}: {relation(text)}")
    if name in ("curl", "cron", "sudo", "nginx-common"):
        spec.append("Requires: /bin/sh")
    spec += [f"%description -n {name}", "A package of Debian.", f"%files -n {name} -f {work}/lists/{name}"]
    conffiles = subprocess.run(["dpkg-deb", "-I", path, "conffiles"], capture_output=True, text=True)
    conffiles = conffiles.stdout.split() if conffiles.returncode == 0 else []
    with open(f"{work}/lists/{name}", "w") as out:
        for line in listed:
            file = line.removeprefix(".").rstrip("/")
            if line.endswith("/"):
                if file and not of_filesystem.fullmatch(file):
                    out.write(f'%dir "{file}"\n')
                continue
            if name not in unmerged:
                file = re.sub(r"^/(s?bin|lib|lib64)/", r"/usr/\1/", file)
            out.write(("%config(noreplace) " if file in conffiles else "") + f'"{file}"\n')
spec += ["%install", f"rmdir %{{buildroot}} && mv {root} %{{buildroot}}"]
with open(work + "/debian.spec", "w") as out:
    out.write("\n".join(spec) + "\n")
END
python3 "$work/spec.py" "$work" 9>&-

build() { # SPEC [OPTION...]
    rpmbuild -bb --quiet --nodeps --define "_topdir $work/build" --define "_rpmdir $work/repo" \
        --define '_buildshell /bin/bash' --define '__os_install_post %{nil}' --define 'debug_package %{nil}' --define '_build_id_links none' \
        --define '_unpackaged_files_terminate_build 0' --define '_binary_payload w1.gzdio' "$@" > "$work/log" 2>&1 9>&- || {
        grep -v '^warning' "$work/log" | tail -20 >&2
        exit 1
    }
}
mkdir -p "$work/build"
build "$work/debian.spec"
rm -rf "$work/build" "$work/debs"

# ------------------------------------------------------------------------------------------------ rpms of its own
cat > "$work/own.spec" << 'END'
Name: filesystem
Version: 3.16
Release: 5.el9
Summary: The directories of a system, and its users
License: Public Domain
Group: System Environment/Base
Provides: base-files, base-passwd, debconf = 2, debconf-2.0, dpkg = 99, usr-is-merged = 99
AutoReqProv: no
%description
The directories of a system, and its users.

%package -n rocky-release
Version: 9.4
Release: 1.7.el9
Summary: What the system calls itself
BuildArch: noarch
Requires: filesystem
Provides: system-release = 9.4-1.7.el9, system-release(releasever) = 9
%description -n rocky-release
What the system calls itself.

%package -n greeter
Version: 2.0
Release: 1.module_el9
Epoch: 1
Summary: A service that greets
Summary(de): Ein Dienst, der grüßt
Vendor: The tests of vm2k
Packager: Nobody <nobody@example.org>
URL: https://example.org/greeter
Group: Applications/Internet
ModularityLabel: greeter:2:9020260101000000:00000000:x86_64
AutoReqProv: no
Requires: nginx-light, greeter-libs(abi) = 2, (less if man-db)
Requires(post): /bin/sh, coreutils
Recommends: greeter-extras
Suggests: greeter-doc
Conflicts: greeter-old < 1
Obsoletes: greeting <= 1.5
%description -n greeter
A service that greets.

%package -n greeter-libs
Version: 2.0
Release: 1.module_el9
Summary: What it needs
ModularityLabel: greeter:2:9020260101000000:00000000:x86_64
AutoReqProv: no
Provides: greeter-libs(abi) = 2
Requires: libc6
%description -n greeter-libs
What it needs.

%package -n greeter-extras
Version: 2.0
Release: 1.el9
Summary: What it likes
BuildArch: noarch
%description -n greeter-extras
What it likes.

%package -n unused-lib
Version: 1
Release: 1.el9
Summary: What nothing needs any more
BuildArch: noarch
%description -n unused-lib
What nothing needs any more.

%package -n unused
Version: 1
Release: 1.el9
Summary: What is removed again
BuildArch: noarch
Requires: unused-lib
%description -n unused
What is removed again.

%install
cd %{buildroot}
mkdir -p boot dev etc/default home media mnt opt proc root run srv sys tmp usr/{bin,sbin,lib,lib64,share/doc,share/man,share/greeter,include,src,games} \
    usr/local/{bin,lib,share} var/{cache,lib,log,spool,tmp,local,mail,opt,lib/greeter,log/greeter} etc/greeter.d usr/lib/systemd/system \
    usr/lib/rpm/macros.d etc/yum.repos.d etc/alternatives var/lib/alternatives
for d in bin sbin lib lib64; do ln -s usr/$d $d; done
ln -s ../run var/run
cp %{passwd}/passwd.master etc/passwd
cp %{passwd}/group.master etc/group
printf 'root:*:19000:0:99999:7:::\n' > etc/shadow
printf 'NAME="Rocky Linux"\nVERSION="9.4 (Blue Onyx)"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\nPLATFORM_ID="platform:el9"\nPRETTY_NAME="Rocky Linux 9.4 (Blue Onyx)"\n' \
    > usr/lib/os-release
ln -s ../usr/lib/os-release etc/os-release
echo 'Rocky Linux release 9.4 (Blue Onyx)' > etc/rocky-release
# The macros of Debian's rpm put the database into the user's home.
printf '%%%%_dbpath\t\t%%%%{_var}/lib/rpm\n%%%%_db_backend\t      sqlite\n' > usr/lib/rpm/macros.d/macros.rocky
printf '[baseos]\nname=Rocky Linux $releasever - BaseOS\nbaseurl=http://dl.example.org/pub/rocky/$releasever/BaseOS/$basearch/os/\ngpgcheck=0\n' \
    > etc/yum.repos.d/rocky.repo
printf '#!/bin/sh\nexec cat /etc/greeter.conf\n' > usr/bin/greeter
chmod 755 usr/bin/greeter
ln usr/bin/greeter usr/bin/greet
cp /bin/true usr/bin/greeter-ping
echo 'greeting=hello' > etc/greeter.conf
echo 'more=1' > etc/greeter.d/more.conf
echo 'may=go' > etc/greeter.d/optional.conf
echo 'must=stay' > etc/greeter.d/needed.conf
printf '[Unit]\nDescription=Greets\n[Service]\nExecStart=/usr/bin/greeter\n[Install]\nWantedBy=multi-user.target\n' > usr/lib/systemd/system/greeter.service
seq 1 5000 > usr/lib64/libgreeter.so.2
for n in extras unused unused-lib; do echo $n > usr/share/greeter/$n; done
%post -n greeter
date -u -d @1700000000 > /var/lib/greeter/installed
touch -d @1700000000 /var/lib/greeter/installed
echo 'made by the scriptlet' > /etc/greeter.ghost
# What update-alternatives(8) of the family keeps.
printf 'auto\n/usr/bin/greetings\n\n/usr/bin/greet\n10\n/usr/bin/greeter\n5\n' > /var/lib/alternatives/greetings
ln -sfn /usr/bin/greet /etc/alternatives/greetings
ln -sfn /etc/alternatives/greetings /usr/bin/greetings

%files
/bin
/sbin
/lib
/lib64
/boot
/dev
%dir /etc
%dir /etc/default
/home
/media
/mnt
/opt
/proc
%attr(0700,root,root) /root
/run
/srv
/sys
%attr(1777,root,root) /tmp
%dir /usr
%dir /usr/*
/usr/local
%dir /usr/share/doc
%dir /usr/share/man
%dir /var
%dir /var/*
%config(noreplace) /etc/passwd
%config(noreplace) /etc/group
%config(noreplace) %attr(0640,root,root) /etc/shadow
%files -n rocky-release
/usr/lib/os-release
/etc/os-release
/etc/rocky-release
%config(noreplace) /etc/yum.repos.d/rocky.repo
%dir /etc/alternatives
%dir /var/lib/alternatives
/usr/lib/rpm/macros.d/macros.rocky
%files -n greeter
/usr/bin/greeter
/usr/bin/greet
%caps(cap_net_raw=ep) /usr/bin/greeter-ping
%config(noreplace) /etc/greeter.conf
%dir /etc/greeter.d
%config /etc/greeter.d/more.conf
%config(missingok) /etc/greeter.d/optional.conf
%config /etc/greeter.d/needed.conf
%ghost /etc/alternatives/greetings
%ghost /usr/bin/greetings
%ghost /var/lib/alternatives/greetings
%ghost %config /etc/greeter.ghost
%dir /var/lib/greeter
%dir /var/log/greeter
%ghost /var/log/greeter/log
/usr/lib/systemd/system/greeter.service
%files -n greeter-libs
/usr/lib64/libgreeter.so.2
%files -n greeter-extras
/usr/share/greeter/extras
%files -n unused-lib
/usr/share/greeter/unused-lib
%files -n unused
/usr/share/greeter/unused
END
build --define "passwd $work/passwd/usr/share/base-passwd" "$work/own.spec"
# Other versions of them: the module's older stream, which is its default, and one that is newer than the machine's.
cat > "$work/others.spec" << 'END'
Name: others
Version: 1
Release: 1.el9
Summary: None
License: Public Domain
%description
None.

%package -n greeter-libs
Version: 1.0
Release: 1.module_el9
Summary: What it needs
ModularityLabel: greeter:1:9020250101000000:00000000:x86_64
AutoReqProv: no
Provides: greeter-libs(abi) = 1
Requires: libc6
%description -n greeter-libs
What it needs.

%package -n greeter
Version: 1.0
Release: 1.module_el9
Epoch: 1
Summary: A service that greets
ModularityLabel: greeter:1:9020250101000000:00000000:x86_64
AutoReqProv: no
Requires: nginx-light, greeter-libs(abi) = 1
%description -n greeter
A service that greets.

%package -n greeter-extras
Version: 2.0
Release: 2.el9
Summary: What it likes
BuildArch: noarch
%description -n greeter-extras
What it likes.

%install
mkdir -p %{buildroot}/usr/{bin,lib64,share/greeter}
echo 1 > %{buildroot}/usr/bin/greeter
echo 1 > %{buildroot}/usr/lib64/libgreeter.so.1
echo newer > %{buildroot}/usr/share/greeter/extras
%files -n greeter-libs
/usr/lib64/libgreeter.so.1
%files -n greeter
/usr/bin/greeter
%files -n greeter-extras
/usr/share/greeter/extras
END
build "$work/others.spec"
arch=$(rpm --eval %_arch)
cat > "$work/comps.xml" << END
<?xml version="1.0" encoding="UTF-8"?>
<comps><group><id>core</id><name>Core</name><description>The smallest installation.</description>
<default>true</default><uservisible>false</uservisible>
<packagelist>$(printf '<packagereq type="mandatory">%s</packagereq>' ${core//,/ })</packagelist></group></comps>
END
cat > "$work/modules.yaml" << END
---
document: modulemd
version: 2
data:
  name: greeter
  stream: "2"
  version: 9020260101000000
  context: "00000000"
  arch: $arch
  summary: A service that greets
  description: A service that greets.
  license:
    module: [MIT]
  profiles:
    default:
      rpms: [greeter]
  artifacts:
    rpms:
      - greeter-1:2.0-1.module_el9.$arch
      - greeter-libs-0:2.0-1.module_el9.$arch
...
---
document: modulemd
version: 2
data:
  name: greeter
  stream: "1"
  version: 9020250101000000
  context: "00000000"
  arch: $arch
  summary: A service that greets
  description: A service that greets.
  license:
    module: [MIT]
  profiles:
    default:
      rpms: [greeter]
  artifacts:
    rpms:
      - greeter-1:1.0-1.module_el9.$arch
      - greeter-libs-0:1.0-1.module_el9.$arch
...
---
document: modulemd-defaults
version: 1
data:
  module: greeter
  stream: "1"
  profiles:
    "1": [default]
    "2": [default]
...
END
createrepo_c --quiet --general-compress-type=gz --groupfile "$work/comps.xml" "$work/repo"
modifyrepo_c --mdtype=modules "$work/modules.yaml" "$work/repo/repodata" > "$work/log" 2>&1

# ------------------------------------------------------------------------------------------------ two systems
mkdir "$work/home" "$work/logs"
printf '%%_dbpath /var/lib/rpm\n%%_db_backend sqlite\n' > "$work/home/.rpmmacros"
cat > "$work/dnf.conf" << END
[main]
reposdir=$work/none
cachedir=$work/cache
plugins=0
gpgcheck=0
install_weak_deps=1
module_platform_id=platform:el9
[baseos]
name=baseos
baseurl=file://$work/repo
END
dnf_() { # ROOT COMMAND...
    local at=$1
    shift
    HOME=$work/home dnf -q -y -c "$work/dnf.conf" --installroot="$at" --releasever=9 --setopt=logdir="$work/logs" "$@" 2> "$work/log" 9>&- || {
        tail -20 "$work/log" >&2
        exit 1
    }
}
rpm_() { HOME=$work/home rpm --root "$@" 2> /dev/null; }
list() { rpm_ "$1" -qa --qf '%{NAME}\t%{EPOCH}\t%{VERSION}\t%{RELEASE}\t%{ARCH}\t%{SOURCERPM}\n' | sed 's/(none)//g' | sort; }
mkdir -p "$out/expected"
make_base() {
    local base=$work/base blobs=$work/oci/blobs/sha256 created diff_id layer config manifest
    dnf_ "$base" group install core > /dev/null
    list "$base" > "$out/expected/base.tsv"
    rm -rf "$base"/var/cache/dnf "$base"/var/log/*
    created=$(date -u -d 'today 00:00' +%FT%TZ)
    mkdir -p "$blobs"
    tar -C "$base" --format=pax --xattrs --xattrs-include='*' --numeric-owner --sort=name -cf "$work/base.tar" .
    diff_id=$(sha256sum < "$work/base.tar" | cut -d' ' -f1)
    gzip -n -1 < "$work/base.tar" > "$work/layer"
    blob() { # FILE: puts it among the blobs, prints digest and size
        local digest size
        digest=$(sha256sum < "$1" | cut -d' ' -f1)
        size=$(stat -c %s "$1")
        mv "$1" "$blobs/$digest"
        echo "\"digest\":\"sha256:$digest\",\"size\":$size"
    }
    layer=$(blob "$work/layer")
    printf '%s' '{"created":"'"$created"'","architecture":"'"$(dpkg --print-architecture)"'","os":"linux",' \
        '"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/bash"]},' \
        '"rootfs":{"type":"layers","diff_ids":["sha256:'"$diff_id"'"]}}' > "$work/config"
    config=$(blob "$work/config")
    printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",' \
        '"config":{"mediaType":"application/vnd.oci.image.config.v1+json",'"$config"'},' \
        '"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",'"$layer"'}]}' > "$work/manifest"
    manifest=$(blob "$work/manifest")
    printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":' \
        '[{"mediaType":"application/vnd.oci.image.manifest.v1+json",'"$manifest"',' \
        '"annotations":{"org.opencontainers.image.ref.name":"9"}}]}' > "$work/oci/index.json"
    printf '%s' '{"imageLayoutVersion":"1.0.0"}' > "$work/oci/oci-layout"
    mv "$work/oci" "$out/base"
}
make_base

root=$work/root
dnf_ "$root" group install core > /dev/null
dnf_ "$root" module install greeter:2/default > /dev/null
dnf_ "$root" install ${wanted//,/ } unused > /dev/null
dnf_ "$root" --noautoremove remove unused > /dev/null
dnf_ "$root" mark remove less > /dev/null
dnf_ "$root" downgrade greeter-extras-2.0-1.el9 > /dev/null
list "$root" > "$out/expected/packages.tsv"
dnf_ "$root" repoquery --installed --qf '%{name} %{reason}' | sort -u > "$out/expected/reasons"
awk '$2 != "dependency" && $2 != "weak-dependency" { print $1 }' "$out/expected/reasons" > "$out/expected/manual"
dnf_ "$root" repoquery --installed --qf '%{name} %{from_repo}' | sort -u > "$out/expected/from"
dnf_ "$root" repoquery --unneeded --qf '%{name}' | sort -u > "$out/expected/unneeded"
# The machine's own dnf, with its own configuration.
chroot "$root" dnf -q history userinstalled 2> "$work/log" 9>&- | sed '/^Packages /d' | sort > "$out/expected/userinstalled"
[ -s "$out/expected/userinstalled" ]
while read -r name; do
    needed=$(dnf_ "$root" repoquery --installed --qf '%{name}' --whatrequires "$name" | { grep -vx "$name" || true; })
    [ -n "$needed" ] || echo "$name"
done < "$out/expected/manual" > "$out/expected/leaves"
rm -rf "$root"/var/cache/dnf "$root"/var/log/dnf* "$root"/var/log/hawkey*

# What its owners did to it.
cd "$root"
echo rocky1 > etc/hostname
echo 'greeting=good morning' > etc/greeter.conf
sed -i 's/worker_connections .*/worker_connections 1000;/' etc/nginx/nginx.conf
rm etc/greeter.d/optional.conf etc/greeter.d/needed.conf
# Somebody chose the other one.
sed -i '1s/auto/manual/' var/lib/alternatives/greetings
ln -sfn /usr/bin/greeter etc/alternatives/greetings
{ rpm_ "$root" -Va --noscripts --nodeps || true; } | sed -nE 's/^(..5......|missing  ) +c (.*)/\2/p' | sort > "$out/expected/changed"
echo 'a line of a log' > var/log/greeter/log
rm -rf usr/share/doc/bash
mkdir -p srv/app etc/systemd/system/multi-user.target.wants
seq 1 3000 > srv/app/data
ln -s /usr/lib/systemd/system/greeter.service etc/systemd/system/multi-user.target.wants/greeter.service
echo 'UUID=6a1f9b52-0c1e-4d55-9d6c-3f1f5f0a7d09 / ext4 defaults 0 1' > etc/fstab
[ -z "$(getcap usr/bin/greeter-ping | grep -v cap_net_raw)" ] && getcap usr/bin/greeter-ping | grep -q cap_net_raw
[ "$(stat -c %h usr/bin/greet)" = 2 ]
[ -s var/lib/greeter/installed ]
cd /

# ------------------------------------------------------------------------------------------------ the disk
mib=$((1024 * 1024))
truncate -s 1024M "$work/disk.raw"
sfdisk --quiet "$work/disk.raw" << END
label: gpt
start=2048, size=1022M, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
END
mke2fs -q -F -t ext4 -U 6a1f9b52-0c1e-4d55-9d6c-3f1f5f0a7d09 -L root -d "$root" -E offset=$mib "$work/disk.raw" $((1022 * 1024))k 2>&1 |
    { grep -v -i warning || true; } >&2
printf '/\t%d\t%d\n' $mib $((1022 * mib)) > "$out/expected/partitions"
qemu-img convert -O qcow2 "$work/disk.raw" "$out/disk.qcow2"
mv "$work/repo" "$out/repo"
echo "$stamp" > "$out/.done"
echo "rpm-machine.sh: $(wc -l < "$out/expected/packages.tsv") packages, $(du -sm "$root" | cut -f1) MiB, the base has $(wc -l < "$out/expected/base.tsv")" >&2
