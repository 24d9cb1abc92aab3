#!/usr/bin/python3
"""What `cargo deny check licenses bans sources` checks, for machines without cargo-deny: every crate that is linked on
this platform has a licence that deny.toml allows, comes from the registry, and is not banned there."""
import json
import re
import subprocess
import sys
import tomllib

deny = tomllib.load(open("deny.toml", "rb"))
allowed = set(deny["licenses"]["allow"])
# Banned crates, each with those that may use it all the same.
banned = {}
for entry in deny["bans"]["deny"]:
    if isinstance(entry, str):
        entry = {"crate": entry}
    banned[entry["crate"]] = set(entry.get("wrappers", []))
host = re.search(r"host: (\S+)", subprocess.check_output(["rustc", "-vV"], text=True)).group(1)
metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", host])
)


def fits(expression):
    """SPDX: `OR` binds weaker than `AND`; a slash is the old way to write `OR`."""
    words = re.findall(r"[()]|[\w.+-]+", expression.replace("/", " OR "))
    at = 0

    def one():
        nonlocal at
        if words[at] == "(":
            at += 1
            value = either()
            at += 1
            return value
        name = words[at]
        at += 1
        if at < len(words) and words[at] == "WITH":
            name += " WITH " + words[at + 1]
            at += 2
        return name in allowed

    def both():
        nonlocal at
        value = one()
        while at < len(words) and words[at] == "AND":
            at += 1
            value = one() and value
        return value

    def either():
        nonlocal at
        value = both()
        while at < len(words) and words[at] == "OR":
            at += 1
            value = both() or value
        return value

    return either()


bad = []
linked = {node["id"] for node in metadata["resolve"]["nodes"]}
packages = [p for p in metadata["packages"] if p["id"] in linked]
name_of = {p["id"]: p["name"] for p in packages}
users = {p["id"]: set() for p in packages}
for node in metadata["resolve"]["nodes"]:
    for used in node["dependencies"]:
        users[used].add(name_of[node["id"]])
for package in packages:
    name = f"{package['name']} {package['version']}"
    if not package["license"]:
        bad.append(f"{name}: states no licence")
    elif not fits(package["license"]):
        bad.append(f"{name}: {package['license']} is not in deny.toml")
    if package["source"] and package["source"] != "registry+https://github.com/rust-lang/crates.io-index":
        bad.append(f"{name}: comes from {package['source']}")
    if package["name"] in banned:
        for user in users[package["id"]] - banned[package["name"]]:
            bad.append(f"{name}: is banned in deny.toml, but used by {user}")
print("\n".join(bad) or f"{len(packages)} crates: licences and sources are as deny.toml says")
sys.exit(bool(bad))
