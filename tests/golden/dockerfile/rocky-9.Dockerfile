# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Rocky Linux 9.4 (Blue Onyx).
# 3 packages: 2 from their archive, 1 as files. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/rockylinux/rockylinux@sha256:abababababababababababababababababababababababababababababababab

# Repositories: the archive of the release, for what the mirrors serve no longer, and the machine's own.
COPY repositories/ /

# NAME-VERSION-RELEASE.ARCH takes exactly this package; an epoch stands before the version.

# What was asked for on the machine: 2 packages.
RUN ["/bin/sh", "-c", "\
    rpm --import /etc/pki/rpm-gpg/RPM-GPG-KEY-app && \
    dnf install -y --allowerasing --setopt=install_weak_deps=False --setopt=tsflags= \
        # asked for, from the archive
        httpd-2.4.57-11.el9_4.x86_64 \
        mod_ssl-1:2.4.57-11.el9_4.x86_64 && \
    dnf clean all && rm -rf /var/cache/dnf /var/cache/yum"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf", "/etc/yum.repos.d/archive.repo"]

# All that no package brings: configuration, data, and what was changed since it was installed; and the files of 1
# package that no repository serves (packages.tsv names them).
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Rocky Linux 9.4 (Blue Onyx) from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="9.4" \
      io.github.vm2k.plan="..."
