# Made by vm2k as a build context of a machine. What each part is for: docs/dockerfile.md of vm2k.
# Machine: web, Arch Linux.
# 1 package: 1 from the machine's repositories. packages.tsv says which and why.

# The base: --base names it.
FROM docker.io/library/archlinux@sha256:abababababababababababababababababababababababababababababababab

# pacman asks for no version: the repositories decide, so they are those of one day.

# What was asked for on the machine: 1 package.
RUN ["/bin/sh", "-c", "\
    pacman -Syy --noconfirm && \
    pacman -S --noconfirm --needed \
        nginx && \
    rm -rf /var/cache/pacman/pkg/* /var/lib/pacman/sync/*"]

# What the base and the packages have and the machine has not, and what does not belong into an image. A tar cannot say
# that a file is gone, so it goes before the machine's own files come.
RUN ["rm", "-rf", "--", "/etc/old.conf"]

# All that no package brings: configuration, data, and what was changed since it was installed.
ADD rest.tar /

LABEL org.opencontainers.image.base.digest="sha256:8ac55bc0170902794f8721553a17fb220a51fe40ae423ce9980b3b77812c2f07" \
      org.opencontainers.image.description="Arch Linux from a machine, by vm2k" \
      org.opencontainers.image.title="web" \
      io.github.vm2k.plan="..."
