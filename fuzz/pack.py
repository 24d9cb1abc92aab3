#!/usr/bin/env python3
"""pack.py OUT FILE...: one input of the targets that take images, as fuzz/src/image.rs has it, of files of the host.

Blocks that cannot be compressed are data, or keys: of them no more than LIMIT are kept of each file. What is longer than
MAX then is left out: libFuzzer takes no longer inputs, and gets nowhere with them."""

import os
import struct
import sys
import zlib

BLOCK = 1024
LIMIT = 100
MAX = 1 << 20
ZEROS = bytes(BLOCK)
# What XFS writes into its log where nothing is yet; zeros are the same to it.
STALE = bytes.fromhex("feedbabe00000000")


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
            if block != ZEROS[: len(block)] and not block.startswith(STALE):
                yield at // BLOCK, block.ljust(BLOCK, b"\0")
            at += BLOCK


def main(out, paths):
    lengths, records = [], []
    for number, path in enumerate(paths):
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            lengths.append(struct.pack("<Q", length))
            random = 0
            for n, block in blocks(file, length):
                data = len(zlib.compress(block, 1)) > BLOCK * 9 // 10
                random += data
                if not data or random <= LIMIT:
                    records.append(struct.pack("<BI", number, n) + block)
    if len(records) * (BLOCK + 5) > MAX:
        print(f"{out}: too long", file=sys.stderr)
        return
    with open(out, "wb") as file:
        file.write(bytes([len(paths)]) + b"".join(lengths + records))


main(sys.argv[1], sys.argv[2:])
