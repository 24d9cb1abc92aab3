# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, openSUSE Leap 15.5.
# 1 package: 1 from the machine's repositories. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/opensuse/leap@sha256:abababababababababababababababababababababababababababababababab

# NAME=VERSION takes exactly this version, an older one too.

# What was asked for on the machine: 1 package.
RUN ["/bin/sh", "-c", "\
    zypper --non-interactive --gpg-auto-import-keys refresh && \
    zypper --non-interactive install --no-recommends --oldpackage --force-resolution \
        nginx.x86_64=1.21.5-150400.3.9.1 && \
    zypper clean --all && rm -rf /var/log/zypp /var/log/zypper.log"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="openSUSE Leap 15.5 from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="15.5" \
      io.github.vm2k.plan="..."
