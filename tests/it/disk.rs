//! Disk images against `qemu-img`: bytes, holes, and what must be refused.

use crate::support::{bash, run, tools};
use std::path::{Path, PathBuf};
use std::process::Command;
use vm2k::disk::{self, Disk, Gate};
use vm2k::error::{Result, code};
use vm2k::read_at::ReadAt;

pub(crate) fn open(path: &Path) -> Result<Disk> {
    disk::open(path, &Gate::default())
}

/// Every byte, read in pieces whose borders fit no cluster, and checked against what `extent_at` says of holes.
pub(crate) fn bytes(disk: &dyn ReadAt) -> Result<Vec<u8>> {
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
    judge_as(image, &[])
}

/// As [`judge`], with further options as `-f vpc`.
pub(crate) fn judge_as(image: &Path, options: &[&str]) -> std::result::Result<Vec<u8>, String> {
    let raw = image.with_extension("judge");
    let output = Command::new("qemu-img")
        .current_dir(image.parent().unwrap())
        .args(["convert", "-O", "raw"])
        .args(options)
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
pub(crate) fn same(image: &Path) {
    same_as(image, &[]);
}

/// As [`same`], with further options for qemu-img as `-f vpc`.
pub(crate) fn same_as(image: &Path, options: &[&str]) {
    let disk = open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let ours = bytes(&*disk.data).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let expected = judge_as(image, options).unwrap();
    assert!(
        ours == expected,
        "{}: other bytes than qemu-img's",
        image.display()
    );
    same_holes(image, options, &*disk.data);
}

/// What qemu-img calls data must be data here, but for at most a cluster an extent where a file has its holes.
fn same_holes(image: &Path, options: &[&str], disk: &dyn ReadAt) {
    let map = run(Command::new("qemu-img")
        .current_dir(image.parent().unwrap())
        .args(["map", "--output=json"])
        .args(options)
        .arg(image));
    let qcow2 = open(image).unwrap().format == "qcow2";
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
        // qemu does not ask the file system for the holes of an external data file, nor for those of other formats.
        let data_file = image.with_file_name("d.data").exists() || !qcow2;
        assert!(
            zero || data == end - start || data_file,
            "{}: a hole at {start}, but qemu says {part}",
            image.display()
        );
        theirs += data;
    }
    assert!(theirs <= disk.len());
}

/// An image that a script of qemu-img and qemu-io makes as `$1`; `$2` is its directory.
pub(crate) fn made(dir: &Path, name: &str, script: &str) -> PathBuf {
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

#[test]
fn chains_snapshots_and_data_files() {
    let test = "chains_snapshots_and_data_files";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let base = "cd $2; rm -f *; qemu-img create -q -f qcow2 base.qcow2 4M; \
                qemu-io -f qcow2 -c 'write -q -P 1 0 4M' base.qcow2 >/dev/null; \
                head -c 3000000 /dev/zero | tr '\\0' 'r' >base.raw; ";
    let overlay = "qemu-io -f qcow2 -c 'write -q -P 7 100k 70k' -c 'write -q -z 1M 300k' -c 'discard -q 2M 64k' $1 >/dev/null";
    for (what, script) in [
        (
            "backing of the same size",
            "qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 $1; ",
        ),
        (
            "backing smaller",
            "qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 $1 9M; ",
        ),
        (
            "backing larger",
            "qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 $1 3M; ",
        ),
        (
            "raw backing, no multiple of a sector or cluster",
            "qemu-img create -q -f qcow2 -F raw -b base.raw $1 5M; ",
        ),
        (
            "absolute name",
            "qemu-img create -q -f qcow2 -F raw -b $2/base.raw $1 5M; ",
        ),
        (
            "subclusters over a backing file",
            "qemu-img create -q -f qcow2 -o extended_l2=on -F qcow2 -b base.qcow2 $1; \
             qemu-io -f qcow2 -c 'write -q -P 5 6k 2k' -c 'write -q -z 12k 2k' $1 >/dev/null; ",
        ),
        (
            "three levels, smaller in the middle",
            "qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 mid.qcow2 1M; \
             qemu-io -f qcow2 -c 'write -q -P 9 8k 8k' mid.qcow2 >/dev/null; \
             qemu-img create -q -f qcow2 -F qcow2 -b mid.qcow2 $1 4M; ",
        ),
        (
            "rebased and committed",
            "qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 $1; \
             qemu-img rebase -q -f qcow2 -F raw -b base.raw $1; ",
        ),
        (
            "internal snapshots",
            "qemu-img create -q -f qcow2 $1 4M; qemu-io -f qcow2 -c 'write -q -P 1 0 1M' $1 >/dev/null; \
             qemu-img snapshot -c one $1; qemu-io -f qcow2 -c 'write -q -P 2 64k 64k' $1 >/dev/null; \
             qemu-img snapshot -c two $1; ",
        ),
        (
            "data file",
            "qemu-img create -q -f qcow2 -o data_file=d.data $1 4M; ",
        ),
        (
            "raw data file",
            "qemu-img create -q -f qcow2 -o data_file=d.data,data_file_raw=on $1 4M; ",
        ),
    ] {
        let image = made(dir, "top.qcow2", &format!("{base}{script}true"));
        // qemu looks for a data file where it runs, and so does the judge; the reader looks beside the image.
        let image = made(
            dir,
            "top.qcow2",
            &format!("cd $2; test -e {}; {overlay}", image.display()),
        );
        println!("{what}");
        same(&image);
        let notes = open(&image).unwrap().notes.join("; ");
        let expected = match what {
            "internal snapshots" => "internal snapshots: 2, the active layer is read",
            "data file" | "raw data file" => "data file: d.data",
            "raw backing, no multiple of a sector or cluster" => "backing file: base.raw (raw)",
            _ => "backing file: ",
        };
        assert!(notes.contains(expected), "{what}: {notes}");
    }
}

#[test]
fn a_cut_image_is_corrupt_and_not_zeros() {
    let test = "a_cut_image_is_corrupt_and_not_zeros";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for compress in ["", "-c"] {
        let script = format!(
            "qemu-img create -q -f raw $2/r 3M; qemu-io -f raw -c 'write -q -P 5 0 3M' $2/r >/dev/null; \
             dd if=/dev/urandom of=$2/r bs=64k count=20 conv=notrunc status=none; \
             qemu-img convert -q {compress} -O qcow2 $2/r $1"
        );
        let image = made(dir, "cut.qcow2", &script);
        let whole = std::fs::read(&image).unwrap();
        let expected = judge(&image).unwrap();
        let mut outcomes = [0; 3];
        for len in (0..whole.len()).step_by(whole.len() / 60).skip(1) {
            std::fs::write(&image, &whole[..len]).unwrap();
            match open(&image).and_then(|d| bytes(&*d.data)) {
                Ok(read) => {
                    // Only what was behind the last whole cluster may be zeros.
                    assert!(whole.len() - len < 65536, "{len} of {}: read", whole.len());
                    assert_eq!(read.len(), expected.len());
                    outcomes[0] += 1;
                }
                Err(e) => {
                    assert_eq!(e.code(), code::CORRUPT, "{len}: {e}");
                    let hinted =
                        matches!(&e, vm2k::error::Error::Hinted { hint, .. } if hint.contains("incomplete"));
                    outcomes[if hinted { 1 } else { 2 }] += 1;
                }
            }
        }
        assert!(outcomes[1] > 30 && outcomes[0] <= 2, "{compress:?}: {outcomes:?}");
    }
}

#[test]
fn features_that_are_not_read_are_refused_by_name() {
    let test = "features_that_are_not_read_are_refused_by_name";
    if !tools(test, &["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (options, named) in [
        (
            "-f qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s",
            "LUKS",
        ),
        (
            "-f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s",
            "AES",
        ),
        ("-f qcow", "qcow"),
        ("-f qed", "qed"),
    ] {
        // For LUKS qemu-img measures how fast the processor is, and fails where its clock is too coarse: once in three on some.
        let create = format!(
            "for n in $(seq 50); do ! qemu-img create -q {options} $1 4M 2> \"$1.log\" || exit 0; done; cat \"$1.log\"; exit 1"
        );
        let image = made(dir, "image", &create);
        let e = open(&image).err().unwrap();
        assert!(e.to_string().contains(named), "{options}: {e}");
        assert_eq!(e.code(), code::UNSUPPORTED, "{options}: {e}");
    }
}

/// Pseudo-random numbers that are the same each time (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n as u64).unwrap()
    }
}

/// Mutant number `n` of an image: bits, words and copies, most of them where its tables are.
pub(crate) fn mutant(seed: &[u8], n: u64) -> Vec<u8> {
    let mut b = seed.to_vec();
    let len = b.len();
    let mut r = Random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let words: Vec<usize> = (0..len - 8)
        .step_by(8)
        .filter(|at| {
            let word = u64::from_be_bytes(b[*at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
            word != 0 && word < len as u64
        })
        .collect();
    let special = [
        0,
        1,
        0x7f,
        0xff,
        0xffff,
        0x7fff_ffff,
        0xffff_ffff,
        u64::MAX,
        len as u64,
        len as u64 / 2,
        1 << 62,
    ];
    let edits = if n.is_multiple_of(2) { 1 } else { 1 + r.below(8) };
    for _ in 0..edits {
        let at = match r.below(10) {
            0..=4 => r.below(112.min(len)),
            5..=8 if !words.is_empty() => words[r.below(words.len())] + r.below(8),
            _ => r.below(len),
        };
        match r.below(10) {
            0..=3 => b[at] ^= 1 << r.below(8),
            4..=7 => {
                let width = [1, 2, 4, 8][r.below(4)];
                let value = special[r.below(special.len())].to_be_bytes();
                for (i, byte) in value[8 - width..].iter().enumerate() {
                    if let Some(b) = b.get_mut(at + i) {
                        *b = *byte;
                    }
                }
            }
            _ => {
                let (from, n) = (r.below(len), [4, 8, 64, 512][r.below(4)]);
                let n = n.min(len - from).min(len - at);
                b.copy_within(from..from + n, at);
            }
        }
    }
    if n % 10 == 9 {
        b.truncate(1 + r.below(len - 1));
    }
    b
}

/// Reads what there is of a hostile disk: every extent, its data up to a few MiB.
pub(crate) fn read_hostile(disk: &dyn ReadAt) -> Result<()> {
    let (mut at, mut extents, mut budget) = (0, 0, 8 << 20);
    let mut buf = vec![0; 1 << 16];
    while at < disk.len() && extents < 20_000 && budget > 0 {
        let extent = disk.extent_at(at)?;
        assert!(extent.len > 0 && extent.len <= disk.len() - at);
        if !extent.hole {
            let n = buf.len().min(usize::try_from(extent.len).unwrap_or(usize::MAX));
            let _ = disk.read_at(at, &mut buf[..n]);
            budget -= n;
        }
        at += extent.len;
        extents += 1;
    }
    for at in [disk.len().saturating_sub(100), u64::MAX - 10, u64::MAX] {
        let _ = disk.read_at(at, &mut buf[..100]);
        let _ = disk.extent_at(at);
    }
    Ok(())
}

#[test]
fn mutants_neither_panic_nor_differ_from_qemu() {
    let test = "mutants_neither_panic_nor_differ_from_qemu";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let mutants: u64 = std::env::var("VM2K_MUTANTS").map_or(2000, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let io = "qemu-io -f qcow2 -c 'write -q -P 1 0 20k' -c 'write -q -P 2 90k 60k' -c 'write -q -z 40k 8k' $1 >/dev/null";
    let seeds = [
        (
            "plain",
            format!("qemu-img create -q -f qcow2 -o cluster_size=4k $1 300k; {io}"),
        ),
        (
            "v2",
            format!(
                "qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=512 $1 300k; {}",
                io.replace("-z", "-P 0")
            ),
        ),
        (
            "subclusters",
            format!("qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k $1 300k; {io}"),
        ),
        (
            "zlib",
            format!(
                "qemu-img create -q -f qcow2 $2/b 300k; {}; qemu-img convert -c -O qcow2 -o cluster_size=4k $2/b $1",
                io.replace("$1", "$2/b")
            ),
        ),
        (
            "zstd",
            format!(
                "qemu-img create -q -f qcow2 $2/b 300k; {}; qemu-img convert -c -O qcow2 -o cluster_size=4k,compression_type=zstd $2/b $1",
                io.replace("$1", "$2/b")
            ),
        ),
    ];
    for (name, script) in seeds {
        let seed = std::fs::read(made(dir, "seed.qcow2", &script)).unwrap();
        let image = dir.join("mutant.qcow2");
        let (mut accepted, mut compared, mut only_ours) = (0, 0, 0);
        let mut slowest = std::time::Duration::ZERO;
        for n in 0..mutants {
            std::fs::write(&image, mutant(&seed, n)).unwrap();
            let start = std::time::Instant::now();
            let opened = open(&image);
            if let Ok(disk) = &opened {
                accepted += 1;
                let _ = read_hostile(&*disk.data);
            }
            let took = start.elapsed();
            slowest = slowest.max(took);
            assert!(took.as_secs() < 5, "{name} {n}: {took:?}");
            let Ok(disk) = opened else { continue };
            if compared * 20 > n || disk.format != "qcow2" || disk.data.len() > 64 << 20 {
                continue;
            }
            let Ok(ours) = bytes(&*disk.data) else { continue };
            if let Ok(theirs) = judge(&image) {
                assert!(ours == theirs, "{name} {n}: other bytes than qemu-img's");
                compared += 1;
            } else {
                only_ours += 1;
            }
        }
        println!(
            "{name}: {mutants} mutants, {accepted} opened, {compared} equal to qemu-img, {only_ours} that qemu-img refuses, slowest {slowest:?}"
        );
        assert!(compared > mutants / 100, "{name}: {compared} compared");
    }
}
