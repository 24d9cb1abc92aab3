//! The formats of other hypervisors against `qemu-img`, and what it cannot make against what is known to be in it.

use crate::disk::{bytes, judge_as, made, open, same, same_as};
use crate::support::{bash, shared, tools, unzstd};
use std::path::Path;
use vm2k::error::{Error, code};
use vm2k::read_at::{HostFile, ReadAt};

/// Compares an image of any length with the raw disk that qemu-img makes of it. Holes of both are not read.
fn same_sparse(image: &Path, options: &[&str]) {
    let raw = image.with_extension("judge");
    let args = options.join(" ");
    bash(
        &format!("cd $(dirname $1); qemu-img convert {args} -O raw $1 $2"),
        &[image, &raw],
    );
    let theirs = HostFile::open(&raw).unwrap();
    let disk = open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let ours = &*disk.data;
    assert_eq!(ours.len(), theirs.len(), "{}", image.display());
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut at, mut compared) = (0, 0);
    while at < ours.len() {
        let (mine, other) = (ours.extent_at(at).unwrap(), theirs.extent_at(at).unwrap());
        let mut len = mine.len.min(other.len);
        if !(mine.hole && other.hole) {
            len = len.min(1 << 20);
            let n = usize::try_from(len).unwrap();
            ours.read_at(at, &mut a[..n]).unwrap();
            theirs.read_at(at, &mut b[..n]).unwrap();
            assert!(a[..n] == b[..n], "{}: other bytes at {at}", image.display());
            assert!(!mine.hole || a[..n].iter().all(|b| *b == 0));
            compared += len;
        }
        at += len;
    }
    std::fs::remove_file(raw).unwrap();
    println!("{}: {compared} of {} bytes compared", image.display(), ours.len());
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
                assert_ne!(name, "afl5.img");
                let end = image.extension().unwrap().to_str().unwrap();
                assert_eq!(
                    disk.format,
                    end.replace("vhd", "vpc").replace("vpcx", "vhdx"),
                    "{name}"
                );
                same_sparse(&image, &[]);
                read += 1;
            }
            Err(e) => {
                assert_eq!((name.as_str(), e.code()), ("afl5.img", code::CORRUPT), "{e}");
                refused += 1;
            }
        }
        std::fs::remove_file(image).unwrap();
    }
    assert!(read >= 12 && refused == 1, "{read} read, {refused} refused");
}

#[test]
fn every_subformat_of_qemu() {
    let test = "every_subformat_of_qemu";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Data, zeros and holes at the borders of grains and blocks, and in a size that is no multiple of either.
    let content = "-c 'write -q -P 1 0 4k' -c 'write -q -P 2 1000k 3000k' -c 'write -q -P 3 5000k 3k' \
                   -c 'write -q -z 1100k 100k' -c 'write -q -P 4 8390144 512' -c 'write -q -P 0 2304k 1M'";
    bash(
        &format!(
            "cd $1; qemu-img create -q -f raw r 8390656; qemu-io -f raw {content} r >/dev/null; dd if=/dev/urandom of=r bs=1k seek=6000 count=500 conv=notrunc status=none"
        ),
        &[dir],
    );
    let mut count = 0;
    for (format, options) in [
        ("vmdk", ""),
        ("vmdk", "subformat=monolithicSparse,compat6=on"),
        (
            "vmdk",
            "subformat=monolithicSparse,zeroed_grain=on,adapter_type=lsilogic",
        ),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vmdk", "subformat=streamOptimized"),
        ("vpc", ""),
        ("vpc", "force_size=on"),
        ("vpc", "subformat=fixed"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vhdx", ""),
        ("vhdx", "subformat=fixed"),
        ("vhdx", "block_size=1M,log_size=2M"),
        ("vhdx", "block_size=16M,block_state_zero=off"),
        ("vdi", ""),
        ("vdi", "static=on"),
    ] {
        let o = if options.is_empty() {
            String::new()
        } else {
            format!("-o {options}")
        };
        let f = format!("-f {format}");
        let options: Vec<&str> = if format == "vpc" {
            f.split(' ').collect()
        } else {
            Vec::new()
        };
        let image = made(
            dir,
            "converted",
            &format!("qemu-img convert -q -O {format} {o} $2/r $1"),
        );
        assert_eq!(open(&image).unwrap().format, format);
        println!("{format} {o}");
        same_as(&image, &options);
        count += 1;
        if o.contains("streamOptimized") {
            continue;
        }
        // Written into by the guest: blocks out of order, and zeros.
        let size = if format == "vhdx" { "12M" } else { "8390656" };
        let script = format!(
            "qemu-img create -q -f {format} {o} $1 {size}; qemu-io -f {format} -c 'write -q -P 9 6M 1k' \
             -c 'write -q -P 8 3M 70k' -c 'write -q -P 7 0 512' -c 'write -q -z 4M 1M' $1 >/dev/null"
        );
        same_as(&made(dir, "written", &script), &options);
        count += 1;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("r") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    println!("{count} images equal");
}

#[test]
fn disks_larger_than_an_extent() {
    let test = "disks_larger_than_an_extent";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let writes = "-c 'write -q -P 1 0 64k' -c 'write -q -P 2 2147418112 128k' -c 'write -q -P 3 5G 1M' -c 'write -q -P 4 6442446848 4096'";
    for (format, options) in [
        ("vmdk", "-o subformat=twoGbMaxExtentSparse"),
        ("vmdk", "-o subformat=twoGbMaxExtentFlat"),
        ("vmdk", ""),
        ("vpc", "-o force_size=on"),
        ("vhdx", ""),
        ("vdi", ""),
    ] {
        let script = format!(
            "qemu-img create -q -f {format} {options} $1 6G; qemu-io -f {format} {writes} $1 >/dev/null"
        );
        let image = made(dir, "large", &script);
        same_sparse(&image, &["-f", format]);
        std::fs::remove_file(image).unwrap();
    }
}

fn code_of(image: &Path) -> (u8, String) {
    let e = open(image).map(|_| ()).unwrap_err();
    let hint = if let Error::Hinted { hint, .. } = &e {
        hint.clone()
    } else {
        String::new()
    };
    (e.code(), format!("{e} [{hint}]"))
}

fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    b[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn vmdk_snapshots() {
    let test = "vmdk_snapshots";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    for subformat in ["monolithicSparse", "twoGbMaxExtentSparse"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let create = format!("qemu-img create -q -f vmdk -o subformat={subformat}");
        let script = format!(
            "cd $2; {create} base.vmdk 9M; qemu-io -f vmdk -c 'write -q -P 1 0 5M' base.vmdk >/dev/null; \
             {create} -F vmdk -b base.vmdk mid.vmdk; qemu-io -f vmdk -c 'write -q -P 2 1M 300k' mid.vmdk >/dev/null; \
             {create} -F vmdk -b mid.vmdk top.vmdk; qemu-io -f vmdk -c 'write -q -P 3 1200k 4k' -c 'write -q -P 4 7M 64k' top.vmdk >/dev/null"
        );
        let top = made(dir, "top.vmdk", &script);
        same(&top);
        assert_eq!(
            open(&top).unwrap().notes,
            ["parent: mid.vmdk", "parent: base.vmdk"]
        );
        // The parent has another name there, or none that this system knows: it is looked for beside the image.
        let text = std::fs::read(&top).unwrap();
        for hint in ["C:\\x\\mid.vmdk", "/vmfs/volumes/1/mid.vmdk", "../mid.vmdk"] {
            let mut named = text.clone();
            let at = named.windows(8).position(|w| w == b"mid.vmdk").unwrap();
            let end = named[at..].iter().position(|b| *b == 0 || *b == b'\n').unwrap() + at;
            // The descriptor is followed by NULs, or ends: what follows the name is moved.
            let rest: Vec<u8> = named[end..].iter().take_while(|b| **b != 0).copied().collect();
            let line = format!("{hint}\"");
            let len = line.len() + rest.len();
            if named.len() < at + len {
                named.resize(at + len, 0);
            }
            put(&mut named, at, line.as_bytes());
            put(&mut named, at + line.len(), &rest);
            std::fs::write(&top, &named).unwrap();
            assert_eq!(open(&top).unwrap().notes.len(), 2, "{hint}");
        }
        std::fs::write(&top, &text).unwrap();
        // Written into after the snapshot was made.
        bash(
            "cd $1; cp mid.vmdk keep; qemu-io -f vmdk -c 'write -q -P 9 0 4k' mid.vmdk >/dev/null",
            &[dir],
        );
        let (c, text) = code_of(&top);
        assert!(c == code::CORRUPT && text.contains("CID"), "{text}");
        bash("cd $1; mv keep mid.vmdk; rm base.vmdk", &[dir]);
        let (c, text) = code_of(&top);
        assert!(c == code::FAILED && text.contains("base.vmdk"), "{text}");
        if subformat == "twoGbMaxExtentSparse" {
            std::fs::remove_file(dir.join("top-s001.vmdk")).unwrap();
            let (c, text) = code_of(&top);
            assert!(c == code::FAILED, "{text}");
        }
    }
}

/// The descriptor of a disk with these extents.
pub(crate) fn descriptor(kind: &str, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{kind}\"\n{extents}\n"
    )
}

/// A sparse extent of VMFS: 9 MiB in grains of one sector, of which a few are there.
pub(crate) fn cowd() -> Vec<u8> {
    let sectors = 9u32 << 11;
    let mut b = vec![0; 4 << 20];
    for (at, value) in [
        (4, 1),
        (8, 3),
        (12, sectors),
        (16, 1),
        (20, 4),
        (24, sectors.div_ceil(4096)),
        (28, 999),
    ] {
        put(&mut b, at, &u32::to_le_bytes(value));
    }
    put(&mut b, 0, b"COWD");
    // Tables 0 and 3 of five.
    put(&mut b, 2048, &8u32.to_le_bytes());
    put(&mut b, 2048 + 12, &40u32.to_le_bytes());
    for (table, entry, grain) in [
        (8, 0, 100),
        (8, 1, 101),
        (8, 7, 103),
        (8, 4095, 102),
        (40, 0, 104),
        (40, 4000, 105),
    ] {
        put(&mut b, table * 512 + entry * 4, &u32::to_le_bytes(grain));
        let at = grain as usize * 512;
        b[at..at + 512].fill(u8::try_from(grain).unwrap());
    }
    b
}

/// An seSparse extent of 33 MiB with grains of every kind.
pub(crate) fn se_sparse() -> Vec<u8> {
    let mut b = vec![0; 1 << 20];
    let fields: [(usize, u64); 16] = [
        (0, 0xcafe_babe),
        (1, 0x2_0000_0001),
        (2, 33 << 11),
        (3, 8),
        (4, 64),
        (10, 1),
        (11, 1),
        (16, 8),
        (17, 8),
        (18, 64),
        (19, 256),
        (24, 1024),
        (25, 1024),
        (64, 0xcafe_cafe),
        // Directory: entries 0 and 2 of three; the tables 0 and 1.
        (512, 0x1000_0000_0000_0000),
        (514, 0x1000_0000_0000_0001),
    ];
    for (field, value) in fields {
        put(&mut b, field * 8, &value.to_le_bytes());
    }
    let grain = |n: u64| 0x3000_0000_0000_0000 | (n & 0xfff) << 48 | n >> 12;
    let entries = [
        (0, 0, grain(0)),
        (0, 1, grain(2)),
        (0, 2, grain(3)),
        (0, 4, 1 << 60),
        (0, 5, 2 << 60),
        (1, 0, grain(1)),
    ];
    for (table, entry, value) in entries {
        put(
            &mut b,
            (64 + table * 64) * 512 + entry * 8,
            &u64::to_le_bytes(value),
        );
    }
    for n in 0..4 {
        let at = (1024 + n * 8) * 512;
        b[at..at + 4096].fill(u8::try_from(n).unwrap() + 7);
    }
    b
}

#[test]
fn extents_of_every_kind() {
    let test = "extents_of_every_kind";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let flat: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    write("x-flat.vmdk", &flat);
    write("x-delta.vmdk", &cowd());
    write("x-sesparse.vmdk", &se_sparse());
    bash(
        "qemu-img convert -f raw -O vmdk -S 0 $1/x-flat.vmdk $1/x-s001.vmdk",
        &[dir],
    );
    for (kind, extents) in [
        ("monolithicFlat", "RW 2048 FLAT \"x-flat.vmdk\" 0"),
        (
            "twoGbMaxExtentFlat",
            "RW 100 FLAT \"x-flat.vmdk\" 7\nRW 1000 FLAT \"x-flat.vmdk\" 1048\n",
        ),
        ("vmfs", "RW 2048 VMFS \"x-flat.vmdk\""),
        ("vmfsSparse", "RW 18432 VMFSSPARSE \"x-delta.vmdk\""),
        (
            "vmfsSparse",
            "RW 18432 VMFSSPARSE \"x-delta.vmdk\"\nRW 8 FLAT \"x-flat.vmdk\" 8",
        ),
        ("seSparse", "RW 67584 SESPARSE \"x-sesparse.vmdk\""),
        (
            "twoGbMaxExtentSparse",
            "RW 2048 SPARSE \"x-s001.vmdk\"\nRW 2048 SPARSE \"x-s001.vmdk\"",
        ),
    ] {
        let text = descriptor(kind, extents);
        println!("{kind}: {extents}");
        same(&write("x.vmdk", text.as_bytes()));
        same(&write("x.vmdk", text.replace('\n', "\r\n").as_bytes()));
    }
    // What qemu leaves out of a disk is in it here: extents of zeros, and read-only ones.
    let text = descriptor("custom", "RW 8 ZERO\nRDONLY 8 FLAT \"x-flat.vmdk\" 8\nRW 5 ZERO");
    let all = bytes(&*open(&write("x.vmdk", text.as_bytes())).unwrap().data).unwrap();
    assert_eq!(all, [&[0; 4096], &flat[4096..8192], &[0; 2560]].concat());
    for (extents, c, named) in [
        (
            "RW 2049 FLAT \"x-flat.vmdk\" 0",
            code::CORRUPT,
            "the file ends at byte 1048576",
        ),
        ("RW 2048 FLAT \"x-flat.vmdk\" 1", code::CORRUPT, "incomplete"),
        (
            "RW 2047 SPARSE \"x-s001.vmdk\"",
            code::CORRUPT,
            "extent of 2048 sectors",
        ),
        (
            "NOACCESS 8 FLAT \"x-flat.vmdk\" 0",
            code::UNSUPPORTED,
            "without access",
        ),
        ("RW 8 VMFSRDM \"x-rdm.vmdk\"", code::UNSUPPORTED, "VMFSRDM"),
        ("RW 8 FLAT \"missing.vmdk\" 0", code::FAILED, "missing.vmdk"),
        ("", code::CORRUPT, "without extents"),
        ("RW 18446744073709551615 ZERO", code::CORRUPT, "longer"),
        ("RW 18014398509481983 ZERO\nRW 8 ZERO", code::UNSUPPORTED, "8 EiB"),
        ("RW 8 SPARSE \"x.vmdk\"", code::CORRUPT, "leads back"),
    ] {
        let (c2, text) = code_of(&write("x.vmdk", descriptor("custom", extents).as_bytes()));
        assert!(c2 == c && text.contains(named), "{extents}: {c2} {text}");
    }
    for alone in ["x-delta.vmdk", "x-sesparse.vmdk"] {
        let (c, text) = code_of(&dir.join(alone));
        assert!(
            c == code::UNSUPPORTED && text.contains("name the .vmdk"),
            "{text}"
        );
    }
    // A journal that was not replayed.
    let mut dirty = se_sparse();
    dirty[512 + 24] = 1;
    write("x-sesparse.vmdk", &dirty);
    let text = descriptor("seSparse", "RW 67584 SESPARSE \"x-sesparse.vmdk\"");
    let (c, text) = code_of(&write("x.vmdk", text.as_bytes()));
    assert!(c == code::UNSUPPORTED && text.contains("journal"), "{text}");
    // The grain directory is damaged: the redundant one is read, and it is said.
    let whole = std::fs::read(dir.join("x-s001.vmdk")).unwrap();
    let directory = usize::try_from(u64::from_le_bytes(whole[56..64].try_into().unwrap()) * 512).unwrap();
    let mut broken = whole.clone();
    broken[directory..directory + 4].fill(0x7f);
    let image = write("broken.vmdk", &broken);
    let disk = open(&image).unwrap();
    assert!(disk.notes[0].contains("redundant"), "{:?}", disk.notes);
    assert!(bytes(&*disk.data).unwrap() == flat);
}

/// Changes the footer of a VHD and its copy, and corrects their checksums.
fn vhd_footers(b: &mut [u8], change: impl Fn(&mut [u8])) {
    let last = b.len() - 512;
    for at in [0, last] {
        if b[at..].starts_with(b"conectix") {
            change(&mut b[at..at + 512]);
            vhd_checksum(&mut b[at..at + 512], 64);
        }
    }
}

fn vhd_checksum(b: &mut [u8], field: usize) {
    b[field..field + 4].fill(0);
    let sum = !b.iter().fold(0u32, |sum, b| sum.wrapping_add((*b).into()));
    put(b, field, &sum.to_be_bytes());
}

/// A differencing VHD of `base`, a dynamic one of 9 MiB. Sectors `3..=23` of block 0 and 4095 of block 3 are its own.
/// (libvhdi 20210425 takes the rest of a byte of the bitmap for set, so the sectors end with one.)
pub(crate) fn vhd_child(base: &[u8], name: &str) -> Vec<u8> {
    let utf16 = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let mut footer = base[..512].to_vec();
    put(&mut footer, 60, &4u32.to_be_bytes());
    put(&mut footer, 68, &[0x77; 16]);
    vhd_checksum(&mut footer, 64);
    let mut header = base[512..1536].to_vec();
    put(&mut header, 16, &1536u64.to_be_bytes());
    put(&mut header, 40, &base[68..84]);
    header[64..].fill(0);
    let be: Vec<u8> = "base.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
    put(&mut header, 64, &be);
    let locator = utf16(name);
    put(&mut header, 576, b"W2ru");
    put(&mut header, 580, &512u32.to_be_bytes());
    put(
        &mut header,
        584,
        &u32::try_from(locator.len()).unwrap().to_be_bytes(),
    );
    put(&mut header, 592, &2048u64.to_be_bytes());
    vhd_checksum(&mut header, 36);
    let mut b = [footer.clone(), header].concat();
    b.resize(2048, 0xff);
    b.extend(&locator);
    b.resize(2560, 0);
    for (block, sectors) in [(0usize, 3..=23usize), (3, 4095..=4095)] {
        let at = u32::try_from(b.len() / 512).unwrap().to_be_bytes();
        put(&mut b, 1536 + block * 4, &at);
        let mut bitmap = vec![0u8; 512];
        let mut data = vec![0xbb; 2 << 20];
        for s in sectors {
            bitmap[s / 8] |= 0x80 >> (s % 8);
            data[s * 512..(s + 1) * 512].fill(0xc0 | u8::try_from(block).unwrap());
        }
        b.extend(bitmap);
        b.extend(data);
    }
    b.extend(footer);
    b
}

/// The bytes that libvhdi reads of `child` with `base` as its parent.
fn libvhdi(child: &Path, base: &Path) -> Vec<u8> {
    let script = "/usr/bin/python3 -c 'import pyvhdi,sys\nf=pyvhdi.file(); f.open(sys.argv[1])\np=pyvhdi.file(); p.open(sys.argv[2])\nf.set_parent(p)\nleft=f.get_media_size()\nwhile left:\n d=f.read(min(left,1<<20)); left-=len(d); sys.stdout.buffer.write(d)' $1 $2";
    bash(script, &[child, base]).stdout
}

/// True if libvhdi's Python module is there; else the test is skipped by name.
fn has_libvhdi(test: &str) -> bool {
    let found = std::process::Command::new("/usr/bin/python3")
        .args(["-c", "import pyvhdi"])
        .output();
    let found = found.is_ok_and(|o| o.status.success());
    if !found {
        crate::support::skip(test, "python3-libvhdi");
    }
    found
}

#[test]
fn differencing_vhd() {
    let test = "differencing_vhd";
    if !tools(test, &["qemu-img", "qemu-io"]) || !has_libvhdi(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let base = made(
        dir,
        "base.vhd",
        "qemu-img create -q -f vpc -o force_size=on $1 9M; qemu-io -f vpc -c 'write -q -P 1 0 3M' $1 >/dev/null",
    );
    let base_bytes = std::fs::read(&base).unwrap();
    let child = dir.join("child.vhd");
    for name in [
        ".\\base.vhd",
        "base.vhd",
        "..\\elsewhere\\base.vhd",
        "missing.vhd",
        "c:\\vm\\base.vhd",
    ] {
        std::fs::write(&child, vhd_child(&base_bytes, name)).unwrap();
        let disk = open(&child).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ours = bytes(&*disk.data).unwrap();
        assert!(
            ours == libvhdi(&child, &base),
            "{name}: other bytes than libvhdi's"
        );
        assert!(ours[3 * 512..24 * 512].iter().all(|b| *b == 0xc0) && ours[24 * 512] == 1);
    }
    // Another disk of the same name.
    let mut other = base_bytes.clone();
    vhd_footers(&mut other, |f| f[70] ^= 1);
    std::fs::write(&base, &other).unwrap();
    let (c, text) = code_of(&child);
    assert!(c == code::CORRUPT && text.contains("should have"), "{text}");
    std::fs::remove_file(&base).unwrap();
    let (c, text) = code_of(&child);
    assert!(c == code::REFUSED && text.contains("base.vhd"), "{text}");
    std::fs::write(&child, vhd_child(&base_bytes, "base.vhd")).unwrap();
    let (c, text) = code_of(&child);
    assert!(c == code::FAILED && text.contains("base.vhd"), "{text}");
}

#[test]
fn sizes_and_footers_of_vhd() {
    let test = "sizes_and_footers_of_vhd";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for format in ["-o subformat=fixed", ""] {
        let image = made(
            dir,
            "x.vhd",
            &format!(
                "qemu-img create -q -f vpc {format} $1 9M; qemu-io -f vpc -c 'write -q -P 1 0 3M' $1 >/dev/null"
            ),
        );
        let whole = std::fs::read(&image).unwrap();
        for creator in [b"qemu", b"vpc ", b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"] {
            let mut b = whole.clone();
            vhd_footers(&mut b, |f| {
                put(f, 28, creator);
                // Smaller than the geometry says, so that the two differ.
                put(f, 48, &(8u64 << 20).to_be_bytes());
            });
            std::fs::write(&image, &b).unwrap();
            same_as(&image, &["-f", "vpc"]);
        }
        // A geometry that says nothing.
        let mut b = whole.clone();
        vhd_footers(&mut b, |f| {
            put(f, 48, &(8u64 << 20).to_be_bytes());
            put(f, 56, &[0xff, 0xff, 16, 255]);
        });
        std::fs::write(&image, &b).unwrap();
        same_as(&image, &["-f", "vpc"]);
        // A footer of 511 bytes, which qemu does not know.
        let len = std::fs::metadata(&image).unwrap().len();
        std::fs::write(&image, &whole).unwrap();
        let expected = judge_as(&image, &["-f", "vpc"]).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&image)
            .unwrap()
            .set_len(len - 1)
            .unwrap();
        let disk = open(&image).unwrap();
        assert!(disk.format == "vpc" && bytes(&*disk.data).unwrap() == expected);
        if format.is_empty() {
            // The copy in front is damaged; then the header.
            let mut b = whole.clone();
            b[100] ^= 1;
            std::fs::write(&image, &b).unwrap();
            assert!(bytes(&*open(&image).unwrap().data).unwrap() == expected);
            b = whole.clone();
            b[600] ^= 1;
            std::fs::write(&image, &b).unwrap();
            assert_eq!(code_of(&image).0, code::CORRUPT);
        }
    }
}

/// Where a VHDX has a region: `true` the metadata, `false` the BAT.
pub(crate) fn vhdx_region(b: &[u8], metadata: bool) -> usize {
    let id: u8 = if metadata { 0x06 } else { 0x66 };
    let entry = (0..2).map(|n| 0x30010 + n * 32).find(|at| b[*at] == id).unwrap();
    usize::try_from(u64::from_le_bytes(b[entry + 16..entry + 24].try_into().unwrap())).unwrap()
}

/// Changes both headers of a VHDX and corrects their checksums.
pub(crate) fn vhdx_headers(b: &mut [u8], change: impl Fn(&mut [u8])) {
    for at in [65536, 131_072] {
        change(&mut b[at..at + 4096]);
    }
    vhdx_checksums(b);
}

fn vhdx_checksums(b: &mut [u8]) {
    for (at, len) in [
        (64 << 10, 4096),
        (128 << 10, 4096),
        (192 << 10, 65536),
        (256 << 10, 65536),
    ] {
        if let Some(part) = b.get_mut(at..at + len) {
            part[4..8].fill(0);
            let sum = crc32c::crc32c(part);
            put(part, 4, &sum.to_le_bytes());
        }
    }
}

/// A differencing VHDX of `base`, one of 12 MiB in blocks of 1 MiB: an empty one that is given a locator and two blocks.
fn vhdx_child(empty: &[u8], base: &[u8], paths: &[(&str, &str)]) -> Vec<u8> {
    let mut b = empty.to_vec();
    let (metadata, bat) = (vhdx_region(&b, true), vhdx_region(&b, false));
    let le32 = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
    let count = usize::from(u16::from_le_bytes(
        b[metadata + 10..metadata + 12].try_into().unwrap(),
    ));
    // File parameters are the item of qemu's that begins with 37 67 a1 ca.
    for n in 0..count {
        let at = metadata + 32 + n * 32;
        if b[at..at + 4] == [0x37, 0x67, 0xa1, 0xca] {
            let item = metadata + usize::try_from(le32(&b, at + 16)).unwrap();
            b[item + 4] |= 2;
        }
    }
    // The headers lie at 64 and 128 KiB; the newer one has the id of the content.
    let newer = if base[65544..65552] > base[131_080..131_088] {
        65536
    } else {
        131_072
    };
    let g = &base[newer + 32..newer + 48];
    let linkage = format!(
        "{{{:08x}-{:04x}-{:04x}-{:02x}{:02x}-{}}}",
        le32(g, 0),
        u16::from_le_bytes([g[4], g[5]]),
        u16::from_le_bytes([g[6], g[7]]),
        g[8],
        g[9],
        g[10..].iter().map(|b| format!("{b:02x}")).collect::<String>()
    );
    let mut locator = vec![
        0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13, 0, 0,
    ];
    let pairs: Vec<(&str, &str)> = [("parent_linkage", linkage.as_str())]
        .into_iter()
        .chain(paths.iter().copied())
        .collect();
    locator.extend(u16::try_from(pairs.len()).unwrap().to_le_bytes());
    let utf16 = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let mut texts = Vec::new();
    let first = 20 + 12 * pairs.len();
    for (key, value) in &pairs {
        let (key, value) = (utf16(key), utf16(value));
        let at = u32::try_from(first + texts.len()).unwrap();
        locator.extend(at.to_le_bytes());
        locator.extend((at + u32::try_from(key.len()).unwrap()).to_le_bytes());
        locator.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
        locator.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
        texts.extend(key);
        texts.extend(value);
    }
    locator.extend(texts);
    // An item behind the others.
    let at = metadata + 32 + count * 32;
    put(
        &mut b,
        metadata + 10,
        &u16::try_from(count + 1).unwrap().to_le_bytes(),
    );
    put(
        &mut b,
        at,
        &[
            0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c,
        ],
    );
    put(&mut b, at + 16, &(128u32 << 10).to_le_bytes());
    put(
        &mut b,
        at + 20,
        &u32::try_from(locator.len()).unwrap().to_le_bytes(),
    );
    put(&mut b, at + 24, &4u32.to_le_bytes());
    put(&mut b, metadata + (128 << 10), &locator);
    // A bitmap block, block 2 in part, block 5 wholly, block 7 as zeros.
    b.resize(b.len().next_multiple_of(1 << 20), 0);
    let end = b.len() >> 20;
    let mut bitmap = vec![0u8; 1 << 20];
    let mut data = vec![0xbb; 1 << 20];
    for sector in (3..20).chain(2047..2048) {
        let bit = 2 * 2048 + sector;
        bitmap[bit / 8] |= 1 << (bit % 8);
        data[sector * 512..(sector + 1) * 512].fill(0xc2);
    }
    b.extend(bitmap);
    b.extend(data);
    b.extend(vec![0xc5; 1 << 20]);
    let entry = |state: u64, mib: usize| (state | (mib as u64) << 20).to_le_bytes();
    put(&mut b, bat + 2 * 8, &entry(7, end + 1));
    put(&mut b, bat + 5 * 8, &entry(6, end + 2));
    put(&mut b, bat + 7 * 8, &entry(2, 0));
    put(&mut b, bat + 4096 * 8, &entry(6, end));
    b
}

#[test]
fn differencing_vhdx() {
    let test = "differencing_vhdx";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let create = "qemu-img create -q -f vhdx -o block_size=1M,log_size=1M $1 12M";
    let base = made(
        dir,
        "base.vhdx",
        &format!("{create}; qemu-io -f vhdx -c 'write -q -P 1 0 9M' $1 >/dev/null"),
    );
    let empty = create.replace("block_size", "block_state_zero=off,block_size");
    let empty = std::fs::read(made(dir, "empty.vhdx", &empty)).unwrap();
    let base_bytes = std::fs::read(&base).unwrap();
    let mut expected = judge_as(&base, &[]).unwrap();
    let child = dir.join("child.vhdx");
    for paths in [
        &[("relative_path", ".\\base.vhdx")][..],
        &[
            ("absolute_win32_path", "C:\\vm\\base.vhdx"),
            ("volume_path", "\\\\?\\Volume{1}\\base.vhdx"),
        ],
        &[("relative_path", "..\\gone\\base.vhdx")],
    ] {
        std::fs::write(&child, vhdx_child(&empty, &base_bytes, paths)).unwrap();
        let disk = open(&child).unwrap_or_else(|e| panic!("{paths:?}: {e}"));
        let ours = bytes(&*disk.data).unwrap();
        for sector in (3..20).chain(2047..2048) {
            expected[(2 << 20) + sector * 512..][..512].fill(0xc2);
        }
        expected[5 << 20..6 << 20].fill(0xc5);
        expected[7 << 20..8 << 20].fill(0);
        assert!(ours == expected, "{paths:?}");
    }
    std::fs::write(
        &child,
        vhdx_child(&empty, &base_bytes, &[("relative_path", "base.vhdx")]),
    )
    .unwrap();
    bash("qemu-io -f vhdx -c 'write -q -P 3 0 4k' $1 >/dev/null", &[&base]);
    let (c, text) = code_of(&child);
    assert!(c == code::CORRUPT && text.contains("written to since"), "{text}");
    std::fs::remove_file(&base).unwrap();
    let (c, text) = code_of(&child);
    assert!(c == code::FAILED && text.contains("base.vhdx"), "{text}");
}

/// A log entry: data sectors and ranges of zeros for places in the file.
pub(crate) fn log_entry(sequence: u64, tail: u32, file_len: u64, writes: &[(u64, Option<&[u8]>)]) -> Vec<u8> {
    let mut b = vec![0; (64 + writes.len() * 32).next_multiple_of(4096)];
    let mut data = Vec::new();
    put(&mut b, 0, b"loge");
    put(&mut b, 12, &tail.to_le_bytes());
    put(&mut b, 16, &sequence.to_le_bytes());
    put(&mut b, 24, &u32::try_from(writes.len()).unwrap().to_le_bytes());
    put(&mut b, 32, &[0x11; 16]);
    put(&mut b, 48, &file_len.to_le_bytes());
    put(&mut b, 56, &file_len.to_le_bytes());
    for (n, (to, sector)) in writes.iter().enumerate() {
        let at = 64 + n * 32;
        put(&mut b, at + 16, &to.to_le_bytes());
        put(&mut b, at + 24, &sequence.to_le_bytes());
        match sector {
            None => {
                put(&mut b, at, b"zero");
                put(&mut b, at + 8, &8192u64.to_le_bytes());
            }
            Some(sector) => {
                put(&mut b, at, b"desc");
                put(&mut b, at + 4, &sector[4092..]);
                put(&mut b, at + 8, &sector[..8]);
                let mut stored = sector.to_vec();
                put(&mut stored, 0, b"data");
                put(
                    &mut stored,
                    4,
                    &u32::try_from(sequence >> 32).unwrap().to_le_bytes(),
                );
                put(
                    &mut stored,
                    4092,
                    &u32::try_from(sequence & 0xffff_ffff).unwrap().to_le_bytes(),
                );
                data.extend(stored);
            }
        }
    }
    b.extend(data);
    let len = u32::try_from(b.len()).unwrap();
    put(&mut b, 8, &len.to_le_bytes());
    let sum = crc32c::crc32c(&b);
    put(&mut b, 4, &sum.to_le_bytes());
    b
}

#[test]
fn a_dirty_vhdx_log_is_replayed() {
    let test = "a_dirty_vhdx_log_is_replayed";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let image = made(
        dir,
        "x.vhdx",
        "qemu-img create -q -f vhdx -o block_size=1M,log_size=1M $1 12M; qemu-io -f vhdx -c 'write -q -P 1 0 3M' $1 >/dev/null",
    );
    let whole = std::fs::read(&image).unwrap();
    let bat = vhdx_region(&whole, false);
    let entry = |b: &[u8], n: usize| u64::from_le_bytes(b[bat + n * 8..bat + n * 8 + 8].try_into().unwrap());
    let payload = (entry(&whole, 1) >> 20) << 20;
    let len = whole.len() as u64;
    // The BAT's first page gets blocks 0 and 1 exchanged, one page of block 1 other data, one zeros.
    let mut page = whole[bat..bat + 4096].to_vec();
    put(&mut page, 0, &entry(&whole, 1).to_le_bytes());
    put(&mut page, 8, &entry(&whole, 0).to_le_bytes());
    let other: Vec<u8> = (0..4096u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let bat_at = bat as u64;
    let writes = [
        (bat_at, Some(&page[..])),
        (payload + 8192, Some(&other[..])),
        (payload + 40960, None),
    ];
    let header_at = |b: &[u8]| u64::from_le_bytes(b[65536 + 72..65536 + 80].try_into().unwrap());
    let log_at = usize::try_from(header_at(&whole)).unwrap();
    let with = |entries: &[(usize, Vec<u8>)]| {
        let mut b = whole.clone();
        b[log_at..log_at + (1 << 20)].fill(0);
        for (at, entry) in entries {
            // Around the end of the log.
            let first = entry.len().min((1 << 20) - at);
            put(&mut b, log_at + at, &entry[..first]);
            put(&mut b, log_at, &entry[first..]);
        }
        vhdx_headers(&mut b, |h| put(h, 48, &[0x11; 16]));
        b
    };
    let one = log_entry(5, 0, len, &writes);
    let then = |seq, tail| log_entry(seq, tail, len, &[(payload + 40960 + 4096, Some(&other[..]))]);
    let second = one.len();
    let high = 0x1_0000_0005;
    let end = (1 << 20) - 8192;
    let end32 = u32::try_from(end).unwrap();
    let mut torn = then(6, 0);
    torn[4200] ^= 1;
    for (what, entries) in [
        ("one entry", vec![(0, one.clone())]),
        ("two entries", vec![(0, one.clone()), (second, then(6, 0))]),
        ("a torn second", vec![(0, one.clone()), (second, torn)]),
        (
            "around the end",
            vec![(end, log_entry(high, end32, len, &writes))],
        ),
        (
            "an older sequence",
            vec![
                (0, log_entry(3, 0, len, &[(payload, Some(&other[..]))])),
                (65536, log_entry(9, 65536, len, &writes)),
            ],
        ),
    ] {
        std::fs::write(&image, with(&entries)).unwrap();
        let disk = open(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(disk.notes[0].contains("log"), "{what}");
        let ours = bytes(&*disk.data).unwrap();
        assert!(
            ours[..1 << 20] != ours[1 << 20..2 << 20],
            "{what}: nothing was replayed"
        );
        assert_eq!(
            std::fs::read(&image).unwrap(),
            with(&entries),
            "{what}: the input was written to"
        );
        bash("qemu-img check -q -r all $1", &[&image]);
        assert!(
            ours == judge_as(&image, &[]).unwrap(),
            "{what}: other bytes than qemu-img's"
        );
    }
    // Nothing was logged: nothing is to be replayed. What was logged is damaged: the image is.
    std::fs::write(&image, with(&[])).unwrap();
    assert!(bytes(&*open(&image).unwrap().data).unwrap() == judge_as(&image, &[]).unwrap());
    let mut broken = one;
    broken[5000] ^= 1;
    std::fs::write(&image, with(&[(0, broken)])).unwrap();
    assert_eq!(code_of(&image).0, code::CORRUPT);
}

#[test]
fn vhdx_with_sectors_of_4096_bytes_and_damaged_copies() {
    let test = "vhdx_with_sectors_of_4096_bytes_and_damaged_copies";
    if !tools(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let image = made(
        dir,
        "x.vhdx",
        "qemu-img create -q -f vhdx -o block_size=1M $1 12M; qemu-io -f vhdx -c 'write -q -P 1 0 3M' $1 >/dev/null",
    );
    let whole = std::fs::read(&image).unwrap();
    let expected = judge_as(&image, &[]).unwrap();
    // Each one of the copies may be damaged.
    for at in [65536 + 20, 131_072 + 20, 196_608 + 20, 262_144 + 20] {
        let mut b = whole.clone();
        b[at] ^= 1;
        std::fs::write(&image, &b).unwrap();
        assert!(bytes(&*open(&image).unwrap().data).unwrap() == expected, "{at}");
        b[if at < 196_608 { 196_628 - at } else { 458_792 - at }] ^= 1;
        std::fs::write(&image, &b).unwrap();
        assert_eq!(code_of(&image).0, code::CORRUPT, "{at}");
    }
    // Sectors of 4,096 bytes: the item of qemu's that begins with 1d bf 41 81.
    let mut b = whole.clone();
    let metadata = vhdx_region(&b, true);
    let item = (0..8)
        .map(|n| metadata + 32 + n * 32)
        .find(|at| b[*at..at + 4] == [0x1d, 0xbf, 0x41, 0x81])
        .unwrap();
    let at =
        metadata + usize::try_from(u32::from_le_bytes(b[item + 16..item + 20].try_into().unwrap())).unwrap();
    put(&mut b, at, &4096u32.to_le_bytes());
    std::fs::write(&image, &b).unwrap();
    assert!(bytes(&*open(&image).unwrap().data).unwrap() == expected);
}

#[test]
fn features_of_other_formats_are_refused_by_name() {
    let test = "features_of_other_formats_are_refused_by_name";
    if !tools(test, &["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let image = made(dir, "x.vdi", "qemu-img create -q -f vdi $1 4M");
    let whole = std::fs::read(&image).unwrap();
    for (at, bytes, c, named) in [
        (0x4c, &[4u8][..], code::UNSUPPORTED, "differencing VDI"),
        (0x4c, &[3], code::UNSUPPORTED, "undo"),
        (0x1b8, &[7; 16], code::UNSUPPORTED, "differencing VDI"),
        (0x44, &[2], code::UNSUPPORTED, "VDI version 1.2"),
        (0x178, &[1, 2], code::CORRUPT, "blocks of"),
        (0x180, &[3], code::CORRUPT, "3 blocks are too few"),
        (0x157, &[1], code::CORRUPT, "behind the end"),
    ] {
        let mut b = whole.clone();
        put(&mut b, at, bytes);
        std::fs::write(&image, &b).unwrap();
        let (c2, text) = code_of(&image);
        assert!(c2 == c && text.contains(named), "{at:#x}: {text}");
    }
    let image = made(dir, "x.vmdk", "qemu-img create -q -f vmdk $1 4M");
    let whole = std::fs::read(&image).unwrap();
    for (at, bytes, c, named) in [
        (4, &[4u8][..], code::UNSUPPORTED, "VMDK version 4"),
        (77, &[9], code::UNSUPPORTED, "compression algorithm 9"),
        (44, &[1, 3], code::CORRUPT, "numGTEsPerGT is 769"),
        (20, &[0, 0], code::CORRUPT, "grains of 0"),
        (56, &[0xff; 8], code::CORRUPT, "footer"),
    ] {
        let mut b = whole.clone();
        put(&mut b, at, bytes);
        std::fs::write(&image, &b).unwrap();
        let (c2, text) = code_of(&image);
        assert!(c2 == c && text.contains(named), "{at}: {text}");
    }
}
