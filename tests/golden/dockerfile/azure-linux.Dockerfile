# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Microsoft Azure Linux 3.0.
# 1 package: 1 from the machine's repositories. packages.tsv says which and why.

# The base: --base names it.
FROM mcr.microsoft.com/azurelinux/base/core@sha256:abababababababababababababababababababababababababababababababab

# NAME-VERSION-RELEASE.ARCH takes exactly this package; an epoch stands before the version.

# What was asked for on the machine: 1 package.
RUN ["/bin/sh", "-c", "\
    tdnf install -y \
        nginx-1.25.4-2.azl3.x86_64 && \
    tdnf clean all && rm -rf /var/cache/tdnf"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Microsoft Azure Linux 3.0 from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      org.opencontainers.image.version="3.0" \
      io.github.vm2k.plan="..."
