#!/usr/bin/python3
"""tests/walk.py DIR: what the kernel shows of a mounted tree, in the form of `vm2k ls --json --sha256`: the judge of it."""
import hashlib
import base64
import json
import os
import stat
import sys

root = os.fsencode(sys.argv[1]).rstrip(b"/")
LETTERS = {
    stat.S_IFDIR: "d",
    stat.S_IFREG: "f",
    stat.S_IFLNK: "l",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}


def text(name, value, into):
    """UTF-8 as it is, other bytes in base64 under another name."""
    try:
        into[name] = value.decode("utf-8")
    except UnicodeDecodeError:
        into[name + "_b64"] = base64.b64encode(value).decode()


def entry(host, guest):
    seen = os.lstat(host)
    letter = LETTERS[stat.S_IFMT(seen.st_mode)]
    line = {}
    text("path", guest, line)
    line["type"] = letter
    line["mode"] = f"{stat.S_IMODE(seen.st_mode):04o}"
    line["uid"] = seen.st_uid
    line["gid"] = seen.st_gid
    line["size"] = seen.st_size if letter in "fl" else 0
    line["mtime"] = seen.st_mtime_ns // 1_000_000_000
    line["mtime_ns"] = seen.st_mtime_ns % 1_000_000_000
    line["nlink"] = seen.st_nlink
    if letter == "l":
        text("link", os.readlink(host), line)
    if letter in "bc":
        line["rdev"] = [os.major(seen.st_rdev), os.minor(seen.st_rdev)]
    names = sorted(os.listxattr(host, follow_symlinks=False))
    line["xattrs"] = {n: os.getxattr(host, n, follow_symlinks=False).hex() for n in names}
    if letter == "f":
        with open(host, "rb") as file:
            line["sha256"] = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else digest(file)
    return line


def digest(file):
    sha256 = hashlib.sha256()
    while block := file.read(1 << 20):
        sha256.update(block)
    return sha256.hexdigest()


todo, lines = [b""], []
while todo:
    directory = todo.pop()
    for name in os.listdir(root + directory or b"/"):
        guest = directory + b"/" + name
        lines.append((guest, entry(root + guest, guest)))
        if lines[-1][1]["type"] == "d":
            todo.append(guest)
for _, line in sorted(lines, key=lambda pair: pair[0]):
    print(json.dumps(line, ensure_ascii=False))
