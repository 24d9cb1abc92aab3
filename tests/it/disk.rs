//! Disk images against `qemu-img`: bytes, holes, and what must be refused.

use crate::support::{bash, run, shared, tools, unzstd};
use std::path::{Path, PathBuf};
use std::process::Command;
use vm2k::disk::{self, Disk, Gate};
use vm2k::error::{Result, code};
use vm2k::read_at::ReadAt;

fn open(path: &Path) -> Result<Disk> {
    disk::open(path, &Gate::default())
}

/// Every byte, read in pieces whose borders fit no cluster, and checked against what `extent_at` says of holes.
fn bytes(disk: &dyn ReadAt) -> Result<Vec<u8>> {
    let mut all = vec![0xee; usize::try_from(disk.len()).unwrap()];
    let mut at = 0;
    for piece in all.chunks_mut(70_001) {
        disk.read_at(at, piece)?;
        at += piece.len() as u64;
    }
    let mut at = 0;
    while at < disk.len() {
        let extent = disk.extent_at(at)?;
        assert!(extent.len > 0 && extent.len <= disk.len() - at);
        let end = at + extent.len;
        let range = usize::try_from(at).unwrap()..usize::try_from(end).unwrap();
        assert!(
            !extent.hole || all[range].iter().all(|b| *b == 0),
            "hole at {at} + {}",
            extent.len
        );
        at = end;
    }
    Ok(all)
}

/// The bytes that qemu-img reads, or its error.
fn judge(image: &Path) -> std::result::Result<Vec<u8>, String> {
    let raw = image.with_extension("judge");
    let output = Command::new("qemu-img")
        .args(["convert", "-O", "raw"])
        .args([image, &raw])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    Ok(bytes)
}

/// Compares an image with what qemu-img makes of it: its bytes, and that both see nearly the same holes.
fn same(image: &Path) {
    let disk = open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let ours = bytes(&*disk.data).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let expected = judge(image).unwrap();
    assert!(
        ours == expected,
        "{}: other bytes than qemu-img's",
        image.display()
    );
    same_holes(image, &*disk.data);
}

/// What qemu-img calls data must be data here, but for at most a cluster an extent where a file has its holes.
fn same_holes(image: &Path, disk: &dyn ReadAt) {
    let map = run(Command::new("qemu-img").args(["map", "--output=json"]).arg(image));
    let map: Vec<serde_json::Value> = serde_json::from_slice(&map.stdout).unwrap();
    let mut theirs = 0;
    for part in &map {
        let (start, len) = (part["start"].as_u64().unwrap(), part["length"].as_u64().unwrap());
        let zero = part["zero"].as_bool().unwrap();
        let (mut at, mut data) = (start, 0);
        let end = (start + len).min(disk.len());
        while at < end {
            let extent = disk.extent_at(at).unwrap();
            let n = extent.len.min(end - at);
            data += if extent.hole { 0 } else { n };
            at += n;
        }
        assert!(
            data == 0 || !zero,
            "{}: {data} bytes at {start} are data, but qemu says {part}",
            image.display()
        );
        assert!(
            zero || data == end - start,
            "{}: a hole at {start}, but qemu says {part}",
            image.display()
        );
        theirs += data;
    }
    assert!(theirs <= disk.len());
}

#[test]
fn the_real_images_read_as_qemu_reads_them() {
    let test = "the_real_images_read_as_qemu_reads_them";
    let Some(data) = shared(test, "disk") else { return };
    if !tools(test, &["qemu-img", "zstd"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut read, mut refused) = (0, 0);
    for entry in std::fs::read_dir(data).unwrap() {
        let image = unzstd(&entry.unwrap().path(), dir.path());
        let name = image.file_name().unwrap().to_str().unwrap().to_owned();
        match open(&image) {
            Ok(disk) => {
                assert_eq!(disk.format, "qcow2", "{name}");
                assert_ne!(name, "afl5.img");
                same(&image);
                read += 1;
            }
            Err(e) => {
                assert_eq!(e.code(), code::UNSUPPORTED, "{name}: {e}");
                refused += 1;
            }
        }
        std::fs::remove_file(image).unwrap();
    }
    assert!(read >= 2 && refused >= 2, "{read} read, {refused} refused");
}

/// An image that a script of qemu-img and qemu-io makes as `$1`; `$2` is its directory.
fn made(dir: &Path, name: &str, script: &str) -> PathBuf {
    let image = dir.join(name);
    bash(script, &[&image, dir]);
    image
}

#[test]
fn every_option_of_qcow2() {
    let test = "every_option_of_qcow2";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let io = "-c 'write -q -P 1 0 4k' -c 'write -q -P 2 1000k 300k' -c 'write -q -P 3 5000k 3k' \
              -c 'write -q -z 1100k 100k' -c 'discard -q 1056k 16k' -c 'write -q -P 4 8390144 512'";
    let mut count = 0;
    for options in [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=512,compat=0.10",
        "cluster_size=4k",
        "cluster_size=2M",
        "lazy_refcounts=on,refcount_bits=64",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=128k,compression_type=zstd",
        "extended_l2=on,cluster_size=2M",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=metadata,extended_l2=on",
    ] {
        // A size that is not a multiple of the cluster.
        let script = format!(
            "qemu-img create -q -f qcow2 -o {options} $1 8390656; qemu-io -f qcow2 {} $1 >/dev/null",
            if options.contains("0.10") {
                io.replace("-z ", "-P 0 ")
            } else {
                io.to_owned()
            }
        );
        same(&made(dir, "plain.qcow2", &script));
        count += 1;
        // The same with its data compressed.
        for compression in ["zlib", "zstd"] {
            if options.contains("0.10") && compression == "zstd" || options.contains("preallocation") {
                continue;
            }
            let options = options.replace(",compression_type=zstd", "");
            let script = format!(
                "qemu-img convert -q -O qcow2 -c -o {options},compression_type={compression} $2/plain.qcow2 $1; \
                 qemu-io -f qcow2 -c 'write -q -P 9 1010k 5k' $1 >/dev/null"
            );
            let script = if options.contains("0.10") {
                script.replace(",compression_type=zlib", "")
            } else {
                script
            };
            same(&made(dir, "packed.qcow2", &script));
            count += 1;
        }
    }
    println!("{count} images equal");
}
