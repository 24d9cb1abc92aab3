# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Ubuntu 22.04.4 LTS.
# 2 packages: 2 from the machine's repositories. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/library/ubuntu@sha256:abababababababababababababababababababababababababababababababab

# The machine's own repositories and keys, where they are not those of the base.
COPY repositories/ /

# NAME=VERSION takes exactly this version. Recommended packages come only where the machine has them.

# What was asked for on the machine: 1 package. 1 more is needed by them.
RUN ["/bin/sh", "-c", "\
    apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --allow-downgrades \
        postgresql-14=14.11-0ubuntu0.22.04.1 \
        # needed by these, and named for their versions
        libpq5=14.11-0ubuntu0.22.04.1 && \
    apt-get clean && rm -rf /var/lib/apt/lists/*"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Ubuntu 22.04.4 LTS from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="22.04" \
      io.github.vm2k.plan="..."
