# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Debian GNU/Linux 9 (stretch).
# 1 package: 1 from their archive. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/library/debian@sha256:abababababababababababababababababababababababababababababababab

# Repositories: the archive of the release, for what the mirrors serve no longer, and the machine's own.
COPY repositories/ /

# NAME=VERSION takes exactly this version. Recommended packages come only where the machine has them.

# What was asked for on the machine: 1 package.
RUN ["/bin/sh", "-c", "\
    apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --allow-downgrades \
        # asked for, from the archive
        nginx=1.10.3-1+deb9u7 && \
    apt-get clean && rm -rf /var/lib/apt/lists/*"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/apt/apt.conf.d/99archive", "/etc/old.conf"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Debian GNU/Linux 9 (stretch) from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="9" \
      io.github.vm2k.plan="..."
