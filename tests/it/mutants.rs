//! Disk images with damaged tables: no panic, nothing over 5 s, and what both accept is what `qemu-img` reads.

use crate::disk::{Random, bytes, judge_as, made, open, read_hostile};
use crate::support::{bash, scratch, tools};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many mutants of each seed (`VM2K_MUTANTS`).
pub(crate) fn mutants() -> u64 {
    std::env::var("VM2K_MUTANTS").map_or(300, |n| n.parse().unwrap())
}

/// Changes mutant number `n` of an image: bits, words and copies, four of five in its `hot` places.
pub(crate) fn mutate(b: &mut [u8], n: u64, hot: &[Range<usize>]) {
    let len = b.len();
    let mut r = Random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
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
        len as u64 / 512,
        1 << 60,
    ];
    let edits = if n.is_multiple_of(2) { 1 } else { 1 + r.below(6) };
    for _ in 0..edits {
        let range = &hot[r.below(hot.len())];
        let at = if r.below(5) > 0 {
            range.start + r.below(range.len())
        } else {
            r.below(len)
        };
        match r.below(10) {
            0..=3 => b[at] ^= 1 << r.below(8),
            4..=7 => {
                let width = [1, 2, 4, 8][r.below(4)];
                let value = special[r.below(special.len())];
                let big = value.to_be_bytes();
                let little = value.to_le_bytes();
                let value = if r.below(2) == 0 {
                    &big[8 - width..]
                } else {
                    &little[..width]
                };
                for (b, v) in b[at..].iter_mut().zip(value) {
                    *b = *v;
                }
            }
            _ => {
                let from = range.start + r.below(range.len());
                let n = [4, 8, 64, 512][r.below(4)].min(len - from).min(len - at);
                b.copy_within(from..from + n, at);
            }
        }
    }
}

/// A kind of image to be damaged.
struct Seed<'a> {
    name: &'a str,
    /// The file that is damaged, and the one that is opened.
    file: &'a str,
    open: &'a str,
    hot: Vec<Range<usize>>,
    /// Corrects checksums, which every second mutant gets.
    repair: fn(&mut [u8]),
    /// For qemu-img; `None` if that is no judge here.
    judge: Option<&'a [&'a str]>,
}

fn try_all(dir: &Path, seed: &Seed<'_>) {
    let path = dir.join(seed.file);
    let image = dir.join(seed.open);
    let whole = std::fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let (mut accepted, mut compared, mut only_ours) = (0, 0, 0);
    let mut slowest = Duration::ZERO;
    let mut touched: Vec<usize> = Vec::new();
    let count = mutants();
    let hot: Vec<_> = seed.hot.iter().map(|r| r.start..r.end.min(whole.len())).collect();
    for n in 0..count {
        let mut b = whole.clone();
        mutate(&mut b, n, &hot);
        if n % 4 > 1 {
            (seed.repair)(&mut b);
        }
        // Only the pages that differ are written.
        let pages = std::mem::take(&mut touched);
        for page in pages {
            let end = (page + 4096).min(whole.len());
            file.write_all_at(&whole[page..end], page as u64).unwrap();
        }
        file.set_len(whole.len() as u64).unwrap();
        for page in (0..whole.len()).step_by(4096) {
            let end = (page + 4096).min(whole.len());
            if b[page..end] != whole[page..end] {
                file.write_all_at(&b[page..end], page as u64).unwrap();
                touched.push(page);
            }
        }
        if n % 10 == 9 {
            let len = 1 + Random(n | 1).below(whole.len() - 1);
            file.set_len(len as u64).unwrap();
            touched = (len / 4096 * 4096..whole.len())
                .step_by(4096)
                .chain(touched)
                .collect();
        }
        let start = Instant::now();
        let opened = open(&image);
        if let Ok(disk) = &opened {
            accepted += 1;
            let _ = read_hostile(&*disk.data);
        }
        let took = start.elapsed();
        slowest = slowest.max(took);
        assert!(took.as_secs() < 5, "{} {n}: {took:?}", seed.name);
        let (Ok(disk), Some(options)) = (opened, seed.judge) else {
            continue;
        };
        if compared * 10 > n || disk.data.len() > 64 << 20 || disk.format == "raw" {
            continue;
        }
        let Ok(ours) = bytes(&*disk.data) else { continue };
        match judge_as(&image, options) {
            Ok(theirs) => {
                // qemu does not look at the redundant directory of a VMDK, nor at the type in a footer of a VHD.
                let better = disk.notes.iter().any(|n| n.contains("redundant")) || theirs.is_empty();
                if ours != theirs && !better {
                    let kept = std::env::temp_dir().join(format!("vm2k-mutant-{n}"));
                    std::fs::copy(&path, &kept).unwrap();
                    let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
                    panic!(
                        "{} {n}: other bytes than qemu-img's, lengths {} and {}, first at {at:?}; see {}",
                        seed.name,
                        ours.len(),
                        theirs.len(),
                        kept.display()
                    );
                }
                compared += 1;
            }
            Err(_) => only_ours += 1,
        }
    }
    println!(
        "{}: {count} mutants, {accepted} opened, {compared} equal to qemu-img, {only_ours} that qemu-img refuses, slowest {slowest:?}",
        seed.name
    );
    assert!(
        seed.judge.is_none() || compared > count / 100,
        "{}: {compared} compared",
        seed.name
    );
}

fn vhd_checksums(b: &mut [u8]) {
    let last = b.len() - 512;
    for (at, len, field, magic) in [
        (0, 512, 64, b"conectix"),
        (512, 1024, 36, b"cxsparse"),
        (last, 512, 64, b"conectix"),
    ] {
        if b[at..].starts_with(magic) {
            b[at + field..at + field + 4].fill(0);
            let sum = !b[at..at + len]
                .iter()
                .fold(0u32, |s, b| s.wrapping_add((*b).into()));
            b[at + field..at + field + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

fn vhdx_checksums(b: &mut [u8]) {
    let log = 1 << 20;
    for (at, len) in [
        (65536, 4096),
        (131_072, 4096),
        (196_608, 65536),
        (262_144, 65536),
        (log, 12288),
    ] {
        b[at + 4..at + 8].fill(0);
        let sum = crc32c::crc32c(&b[at..at + len]);
        b[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
    }
}

const WRITES: &str = "-c 'write -q -P 1 0 20k' -c 'write -q -P 2 90k 60k' -c 'write -q -P 3 3M 70k'";

fn no_repair(_: &mut [u8]) {}

#[test]
fn of_vmdk() {
    let test = "mutants::of_vmdk";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = scratch(64 << 20);
    let dir = dir.path();
    bash(
        &format!(
            "cd $1; qemu-img create -q -f raw r 4M; qemu-io -f raw {WRITES} r >/dev/null; dd if=/dev/urandom of=r bs=1k seek=200 count=90 conv=notrunc status=none; \
             qemu-img convert -O vmdk r sparse.vmdk; qemu-img convert -O vmdk -o zeroed_grain=on r x-s001.vmdk; \
             qemu-img convert -O vmdk -o subformat=streamOptimized r stream.vmdk; \
             qemu-img convert -O vmdk -o subformat=twoGbMaxExtentSparse r split.vmdk"
        ),
        &[dir],
    );
    std::fs::write(dir.join("delta"), crate::formats::cowd()).unwrap();
    std::fs::write(dir.join("sesparse"), crate::formats::se_sparse()).unwrap();
    for (name, line) in [
        ("delta.vmdk", "RW 18432 VMFSSPARSE \"delta\""),
        ("sesparse.vmdk", "RW 67584 SESPARSE \"sesparse\""),
    ] {
        std::fs::write(dir.join(name), crate::formats::descriptor("vmfs", line)).unwrap();
    }
    let stream = usize::try_from(std::fs::metadata(dir.join("stream.vmdk")).unwrap().len()).unwrap();
    let text = usize::try_from(std::fs::metadata(dir.join("split.vmdk")).unwrap().len()).unwrap();
    let header = |len: usize| vec![0..80, 0..80, 512..900, 10752..10752 + len];
    for (name, file, open, hot) in [
        ("monolithicSparse", "sparse.vmdk", "sparse.vmdk", header(4096)),
        ("zeroed grains", "x-s001.vmdk", "x-s001.vmdk", header(4096)),
        (
            "streamOptimized",
            "stream.vmdk",
            "stream.vmdk",
            vec![0..80, stream - 1536..stream, stream - 4096..stream, 65536..65552],
        ),
        ("descriptor", "split.vmdk", "split.vmdk", vec![0..text, 0..text]),
        ("COWD", "delta", "delta.vmdk", vec![0..36, 2048..2100, 4096..4200]),
        (
            "seSparse",
            "sesparse",
            "sesparse.vmdk",
            vec![0..208, 512..544, 4096..4120, 32768..32830],
        ),
    ] {
        // Where the parent or an extent is another file, or the length of an extent, qemu-img is more patient: see the tests of these.
        let judge: Option<&[&str]> = if name == "descriptor" { None } else { Some(&[]) };
        let seed = Seed {
            name,
            file,
            open,
            hot,
            repair: no_repair,
            judge,
        };
        try_all(dir, &seed);
    }
}

#[test]
fn of_vhd() {
    let test = "mutants::of_vhd";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = scratch(64 << 20);
    let dir = dir.path();
    for (name, options) in [
        ("dynamic", "-o force_size=on"),
        ("fixed", "-o subformat=fixed,force_size=on"),
    ] {
        let image = made(
            dir,
            name,
            &format!("qemu-img create -q -f vpc {options} $1 4M; qemu-io -f vpc {WRITES} $1 >/dev/null"),
        );
        let len = usize::try_from(std::fs::metadata(&image).unwrap().len()).unwrap();
        let hot = if name == "fixed" {
            vec![len - 512..len - 420, len - 512..len - 420]
        } else {
            vec![0..90, 512..560, 1536..1548, len - 512..len - 420]
        };
        let seed = Seed {
            name,
            file: name,
            open: name,
            hot,
            repair: vhd_checksums,
            judge: Some(&["-f", "vpc"]),
        };
        try_all(dir, &seed);
    }
    // A parent and a child, of which the child is damaged.
    let base = std::fs::read(made(
        dir,
        "base.vhd",
        "qemu-img create -q -f vpc -o force_size=on $1 9M",
    ))
    .unwrap();
    std::fs::write(dir.join("child"), crate::formats::vhd_child(&base, "base.vhd")).unwrap();
    let hot = vec![0..90, 512..560, 1088..1112, 1536..1560, 2560..2570];
    let seed = Seed {
        name: "differencing",
        file: "child",
        open: "child",
        hot,
        repair: vhd_checksums,
        judge: None,
    };
    try_all(dir, &seed);
}

#[test]
fn of_vhdx() {
    let test = "mutants::of_vhdx";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = scratch(128 << 20);
    let dir = dir.path();
    let image = made(
        dir,
        "plain",
        &format!(
            "qemu-img create -q -f vhdx -o block_size=1M,log_size=1M $1 4M; qemu-io -f vhdx {WRITES} $1 >/dev/null"
        ),
    );
    let whole = std::fs::read(&image).unwrap();
    let (bat, metadata) = (
        crate::formats::vhdx_region(&whole, false),
        crate::formats::vhdx_region(&whole, true),
    );
    let mut hot = vec![
        65536..65616,
        131_072..131_152,
        196_608..196_690,
        bat..bat + 40,
        metadata..metadata + 200,
        metadata + 65536..metadata + 65600,
    ];
    let plain = Seed {
        name: "plain",
        file: "plain",
        open: "plain",
        hot: hot.clone(),
        repair: vhdx_checksums,
        judge: Some(&[]),
    };
    try_all(dir, &plain);
    // With a log to be replayed, which qemu-img does not do while it only reads.
    let mut dirty = whole.clone();
    let sector = vec![7; 4096];
    let entry = crate::formats::log_entry(
        5,
        0,
        dirty.len() as u64,
        &[(bat as u64 + 8192, Some(&sector)), (4 << 20, None)],
    );
    dirty[1 << 20..(1 << 20) + entry.len()].copy_from_slice(&entry);
    crate::formats::vhdx_headers(&mut dirty, |h| h[48..64].fill(0x11));
    std::fs::write(dir.join("dirty"), dirty).unwrap();
    hot.extend([
        1 << 20..(1 << 20) + 128,
        (1 << 20) + 4096..(1 << 20) + 4104,
        65584..65600,
    ]);
    let dirty = Seed {
        name: "dirty log",
        file: "dirty",
        open: "dirty",
        hot,
        repair: vhdx_checksums,
        judge: None,
    };
    try_all(dir, &dirty);
}

#[test]
fn of_vdi() {
    let test = "mutants::of_vdi";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = scratch(64 << 20);
    let dir = dir.path();
    made(
        dir,
        "vdi",
        &format!("qemu-img create -q -f vdi $1 4M; qemu-io -f vdi {WRITES} $1 >/dev/null"),
    );
    let hot = vec![64..80, 340..460, 512..540];
    try_all(
        dir,
        &Seed {
            name: "vdi",
            file: "vdi",
            open: "vdi",
            hot,
            repair: no_repair,
            judge: Some(&[]),
        },
    );
}

#[test]
fn of_archives() {
    let test = "mutants::of_archives";
    if !tools(test, &["qemu-img", "qemu-io", "tar", "gzip", "xz", "zstd"]) {
        return;
    }
    let dir = scratch(64 << 20);
    let dir = dir.path();
    let ovf = "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File id=\"f\" href=\"d.vmdk\"/></References>\
        <DiskSection><Disk diskId=\"d\" capacity=\"8\" fileRef=\"f\"/></DiskSection><VirtualSystem id=\"x\"><VirtualHardwareSection>\
        <Item><ResourceType>17</ResourceType><HostResource>ovf:/disk/d</HostResource></Item></VirtualHardwareSection></VirtualSystem></Envelope>";
    std::fs::write(dir.join("x.ovf"), ovf).unwrap();
    bash(
        &format!(
            "cd $1; qemu-img create -q -f raw r 4M; qemu-io -f raw {WRITES} r >/dev/null; qemu-img convert -O vmdk -o subformat=streamOptimized r d.vmdk; \
             tar -cf plain.ova x.ovf d.vmdk; echo \"SHA1(d.vmdk)= $(sha1sum <d.vmdk | cut -c-40)\" >x.mf; tar -cf ova x.ovf x.mf d.vmdk; \
             gzip -k r; xz -k r; zstd -q r; cp x.ovf ovf"
        ),
        &[dir],
    );
    for (name, hot) in [
        ("ova", vec![0..512, 512..1400, 1536..2600]),
        ("plain.ova", vec![0..512, 512..1400, 1536..2700]),
        ("ovf", vec![0..ovf.len(), 0..ovf.len()]),
        ("r.gz", vec![0..40, 0..4000]),
        ("r.xz", vec![0..40, 0..800]),
        ("r.zst", vec![0..40, 0..300]),
    ] {
        try_all(
            dir,
            &Seed {
                name,
                file: name,
                open: name,
                hot,
                repair: no_repair,
                judge: None,
            },
        );
    }
}
