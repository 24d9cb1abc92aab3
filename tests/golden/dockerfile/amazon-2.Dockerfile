# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Amazon Linux 2.
# 1 package: 1 from the machine's repositories. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/library/amazonlinux@sha256:abababababababababababababababababababababababababababababababab

# NAME-VERSION-RELEASE.ARCH takes exactly this package; an epoch stands before the version.

# What was asked for on the machine: 1 package.
RUN ["/bin/sh", "-c", "\
    yum install -y --setopt=tsflags= --setopt=skip_missing_names_on_install=0 \
        httpd-2.4.59-1.amzn2.x86_64 && yum downgrade -y --setopt=tsflags= \
        httpd-2.4.59-1.amzn2.x86_64 && \
    yum clean all && rm -rf /var/cache/yum"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Amazon Linux 2 from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="2" \
      io.github.vm2k.plan="..."
