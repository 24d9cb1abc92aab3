#!/usr/bin/env python3
"""pack.py OUT FILE...: one input of the targets that take images, as fuzz/src/image.rs has it, of files of the host."""

import os
import struct
import sys

BLOCK = 1024
ZEROS = bytes(BLOCK)


def blocks(file, length):
    """Number and bytes of each block that is not zeros."""
    at = 0
    while at < length:
        try:
            data = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(file.fileno(), data, os.SEEK_HOLE)
        at = data // BLOCK * BLOCK
        while at < end:
            file.seek(at)
            block = file.read(BLOCK)
            if block != ZEROS[: len(block)]:
                yield at // BLOCK, block.ljust(BLOCK, b"\0")
            at += BLOCK


def main(out, paths):
    lengths, records = [], []
    for number, path in enumerate(paths):
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            lengths.append(struct.pack("<Q", length))
            records += (struct.pack("<BI", number, n) + block for n, block in blocks(file, length))
    with open(out, "wb") as file:
        file.write(bytes([len(paths)]) + b"".join(lengths + records))


main(sys.argv[1], sys.argv[2:])
