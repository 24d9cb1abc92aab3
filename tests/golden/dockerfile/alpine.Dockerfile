# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Alpine Linux v3.19.
# 2 packages: 2 from their archive. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/library/alpine@sha256:abababababababababababababababababababababababababababababababab

# Repositories: the archive of the release, for what the mirrors serve no longer, and the machine's own.
COPY repositories/ /

# The repositories keep the newest version of a package only: a version pinned with = stops the build when it is gone.

# What was asked for on the machine: 1 package. 1 more is needed by them.
RUN ["/bin/sh", "-c", "\
    apk add --no-cache \
        # asked for, from the archive
        nginx=1.24.0-r16 \
        # needed by these, from the archive
        pcre2=10.42-r2"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Alpine Linux v3.19 from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="3.19.1" \
      io.github.vm2k.plan="..."
