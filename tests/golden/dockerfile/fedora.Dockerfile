# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Fedora Linux 40 (Server Edition).
# 2 packages: 2 from their archive. packages.tsv says which and why.

# The base: --base names it.
FROM registry.fedoraproject.org/fedora@sha256:abababababababababababababababababababababababababababababababab

# Repositories: the archive of the release, for what the mirrors serve no longer, and the machine's own.
COPY repositories/ /

# NAME-VERSION-RELEASE.ARCH takes exactly this package; an epoch stands before the version.

# What was asked for on the machine: 1 package. 1 more is needed by them.
RUN ["/bin/sh", "-c", "\
    dnf install -y --allowerasing --setopt=install_weak_deps=False --setopt=tsflags= \
        # asked for, from the archive
        nginx-1:1.26.1-1.fc40.x86_64 \
        # needed by these, from the archive
        vim-data-2:9.1.393-1.fc40.noarch && \
    dnf clean all && rm -rf /var/cache/dnf /var/cache/yum"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf", "/etc/yum.repos.d/archive.repo"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Fedora Linux 40 (Server Edition) from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="40" \
      io.github.vm2k.plan="..."
