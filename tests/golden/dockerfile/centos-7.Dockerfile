# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, CentOS Linux 7 (Core).
# 3 packages: 3 from their archive. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/library/centos@sha256:abababababababababababababababababababababababababababababababab

# Repositories: the archive of the release, for what the mirrors serve no longer, and the machine's own.
COPY repositories/ /

# NAME-VERSION-RELEASE.ARCH takes exactly this package; an epoch stands before the version.

# What was asked for on the machine: 2 packages. 1 more is needed by them.
RUN ["/bin/sh", "-c", "\
    yum install -y --setopt=tsflags= --setopt=skip_missing_names_on_install=0 \
        # asked for, from the archive
        httpd-2.4.6-99.el7.centos.1.x86_64 \
        bind-utils-32:9.11.4-26.P2.el7_9.16.x86_64 \
        # needed by these, from the archive
        apr-1.4.8-7.el7.x86_64 && yum downgrade -y --setopt=tsflags= \
        httpd-2.4.6-99.el7.centos.1.x86_64 \
        bind-utils-32:9.11.4-26.P2.el7_9.16.x86_64 \
        apr-1.4.8-7.el7.x86_64 && \
    yum clean all && rm -rf /var/cache/yum"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf", "/etc/yum.repos.d/archive.repo"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="CentOS Linux 7 (Core) from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="7" \
      io.github.vm2k.plan="..."
