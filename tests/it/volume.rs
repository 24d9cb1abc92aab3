//! Partition tables made by sfdisk and sgdisk, as those list them, and tables that are damaged.

use crate::support::{bash, root, run, shared, tools, unzstd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use vm2k::error::{Result, code};
use vm2k::read_at::{HostFile, ReadAt};
use vm2k::volume::{self, Table};

fn table(disk: &Path) -> Result<Table> {
    let disk: Arc<dyn ReadAt> = Arc::new(HostFile::open(disk).unwrap());
    volume::table(&disk)
}

/// Number, start and length in bytes, PARTUUID, name.
type Line = (u32, u64, u64, String, Option<String>);

fn ours(table: &Table) -> Vec<Line> {
    let line = |v: &volume::Volume| {
        (
            v.number.unwrap(),
            v.start,
            v.data.len(),
            v.partuuid.clone().unwrap(),
            v.partlabel.clone(),
        )
    };
    table.volumes.iter().map(line).collect()
}

/// The same as `sfdisk --json` says it; extended partitions, which hold others, left out.
fn judge(disk: &Path, sector: u64) -> (String, Vec<Line>) {
    let json = run(Command::new("sfdisk").args(["--json", "-q"]).arg(disk)).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let json = &json["partitiontable"];
    let kind = json["label"].as_str().unwrap().to_owned();
    let id = json["id"].as_str().unwrap().trim_start_matches("0x").to_owned();
    let line = |p: &serde_json::Value| {
        let node = p["node"].as_str().unwrap();
        let digits = node.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let number: u32 = node[digits..].parse().unwrap();
        let uuid = p["uuid"]
            .as_str()
            .map_or_else(|| format!("{id}-{number:02x}"), str::to_lowercase);
        (
            number,
            p["start"].as_u64().unwrap() * sector,
            p["size"].as_u64().unwrap() * sector,
            uuid,
            p["name"].as_str().map(str::to_owned),
        )
    };
    let all = json["partitions"].as_array().unwrap();
    let lines = all
        .iter()
        .filter(|p| !["5", "f", "85"].contains(&p["type"].as_str().unwrap()));
    (kind, lines.map(line).collect())
}

fn same(disk: &Path) {
    let table = table(disk).unwrap();
    let (kind, expected) = judge(disk, 512);
    assert_eq!(ours(&table), expected);
    assert_eq!(table.kind, if kind == "dos" { "mbr" } else { "gpt" });
    assert_eq!(table.notes, Vec::<String>::new());
}

#[test]
fn tables_are_read_as_sfdisk_reads_them() {
    let test = "tables_are_read_as_sfdisk_reads_them";
    if !tools(test, &["sfdisk", "sgdisk"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    for script in [
        "label: dos\n,10M,L,*\n,20M,82\n,30M,7\n,,8e\n",
        "label: dos\nlabel-id: 0xdeadbeef\n,10M,L\n,,E\n,5M,L\n,6M,82\n,7M,L\n,8M,8e\n",
        "label: dos\n,10M,L\n,,f\n,1M\n,1M\n,1M\n,1M\n,1M\n,1M\n,1M\n,1M\n,1M\n,1M\n,1M\n,1M\n",
        "label: dos\n4: start=2048,size=10M,type=L\n2: start=40960,size=10M,type=L\n",
        "label: gpt\nsize=10M,type=U,name=\"EFI part\"\nsize=20M,type=S\ntype=L,name=\"dä\u{1f600}ta\"\n",
        "label: gpt\nsize=10M,type=21686148-6449-6E6F-744E-656564454649\n128: size=5M,type=L\n7: size=5M,type=L,name=seven\n",
        "label: gpt\ntable-length: 200\n200: size=5M,type=L\n,5M,L\n",
        "label: gpt\ntable-length: 4\n,5M,L\n,5M,L\n",
    ] {
        bash(
            "rm -f $1; truncate -s 100M $1; printf %s \"$2\" | sfdisk -q $1",
            &[&disk, Path::new(script)],
        );
        same(&disk);
    }
    // A hybrid MBR beside a GPT: the GPT counts.
    bash(
        "rm -f $1; truncate -s 100M $1; sgdisk -n 1:0:+10M -n 2:0:+10M -h 1:2 $1 >/dev/null",
        &[&disk],
    );
    assert_eq!(table(&disk).unwrap().kind, "gpt");
    assert_eq!(table(&disk).unwrap().volumes.len(), 2);
    let test = "the guests' tables";
    let Some(guests) = shared(test, "guests") else {
        return;
    };
    if !tools(test, &["zstd"]) {
        return;
    }
    for guest in ["blank-part", "blank-fs", "debian", "fedora-md1"] {
        same(&unzstd(&guests.join(format!("{guest}.img.zst")), dir.path()));
    }
}

#[test]
fn a_damaged_gpt_is_read_from_its_backup() {
    let test = "a_damaged_gpt_is_read_from_its_backup";
    if !tools(test, &["sgdisk", "sfdisk"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    bash(
        "truncate -s 64M $1; sgdisk -n 1:0:+10M -c 1:one -n 2:0:+10M $1 >/dev/null",
        &[&disk],
    );
    let whole = std::fs::read(&disk).unwrap();
    let expected = judge(&disk, 512).1;
    let last = whole.len() - 512;
    // What is damaged, and the kind of table that is read then.
    let damages: [(&str, &[usize], Option<bool>); 9] = [
        ("nothing", &[], Some(false)),
        ("header checksum", &[528], Some(true)),
        ("header signature", &[512], Some(true)),
        ("an entry", &[1024 + 32], Some(true)),
        ("an unused entry", &[1024 + 100 * 128], Some(true)),
        ("the backup only", &[last + 16], Some(false)),
        ("both headers", &[528, last + 16], None),
        ("header and backup entries", &[528, whole.len() - 33 * 512], None),
        ("entries of both", &[1024, whole.len() - 33 * 512], None),
    ];
    for (what, places, expect) in damages {
        let mut bytes = whole.clone();
        for at in places {
            bytes[*at] ^= 0xff;
        }
        std::fs::write(&disk, &bytes).unwrap();
        match (table(&disk), expect) {
            (Ok(table), Some(backup)) => {
                assert_eq!(ours(&table), expected, "{what}");
                assert_eq!(!table.notes.is_empty(), backup, "{what}: {:?}", table.notes);
            }
            (Err(e), None) => assert_eq!(e.code(), code::CORRUPT, "{what}: {e}"),
            (Ok(_), None) => panic!("{what}: read"),
            (Err(e), Some(_)) => panic!("{what}: {e}"),
        }
    }
    // The first MiB wiped: the backup is all there is.
    let mut bytes = whole.clone();
    bytes[..1 << 20].fill(0);
    std::fs::write(&disk, &bytes).unwrap();
    assert_eq!(ours(&table(&disk).unwrap()), expected);
    // The disk has grown, and the first header is damaged but says where the backup is.
    let mut bytes = whole.clone();
    bytes[1024] ^= 1;
    bytes.resize(80 << 20, 0);
    std::fs::write(&disk, &bytes).unwrap();
    assert_eq!(ours(&table(&disk).unwrap()), expected);
    // Cut off: the second partition ends early and that is told.
    std::fs::write(&disk, &whole[..15 << 20]).unwrap();
    let cut = table(&disk).unwrap();
    assert_eq!(cut.volumes.len(), 2);
    assert!(
        cut.notes.iter().any(|n| n.contains("partition 2 ends behind")),
        "{:?}",
        cut.notes
    );
    // An MBR without a protective entry was written after the GPT.
    bash(
        "printf 'label: dos\\n,10M,L\\n' >$1.s; rm $1; truncate -s 64M $1; sfdisk -q $1 <$1.s",
        &[&disk],
    );
    let mut bytes = whole;
    bytes[..512].copy_from_slice(&std::fs::read(&disk).unwrap()[..512]);
    std::fs::write(&disk, &bytes).unwrap();
    assert_eq!(table(&disk).unwrap().kind, "mbr");
}

/// Moves a GPT made for sectors of 512 bytes to sectors of 4,096, as a disk with such sectors has it.
#[test]
fn sectors_of_4096_bytes() {
    const BLOCK: usize = 4096;
    let mut disk = vec![0u8; 8 << 20];
    disk[446 + 4] = 0xee;
    disk[446 + 8] = 1;
    disk[446 + 12..446 + 16].fill(0xff);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0u8; 128 * 128];
    entries[..16].fill(7);
    entries[16..32].copy_from_slice(&(0..16).collect::<Vec<u8>>());
    entries[32..40].copy_from_slice(&256u64.to_le_bytes());
    entries[40..48].copy_from_slice(&511u64.to_le_bytes());
    let blocks = disk.len() / BLOCK;
    let mut put = |my: usize, other: usize, entries_at: usize| {
        let mut h = vec![0u8; 92];
        h[..8].copy_from_slice(b"EFI PART");
        h[10] = 1;
        h[12] = 92;
        h[24..32].copy_from_slice(&(my as u64).to_le_bytes());
        h[32..40].copy_from_slice(&(other as u64).to_le_bytes());
        h[72..80].copy_from_slice(&(entries_at as u64).to_le_bytes());
        h[80] = 128;
        h[84] = 128;
        h[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let crc = crc32fast::hash(&h);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        disk[my * BLOCK..my * BLOCK + 92].copy_from_slice(&h);
        disk[entries_at * BLOCK..entries_at * BLOCK + entries.len()].copy_from_slice(&entries);
    };
    put(1, blocks - 1, 2);
    put(blocks - 1, 1, blocks - 5);
    let read = |disk: Vec<u8>| volume::table(&(Arc::new(disk) as Arc<dyn ReadAt>)).unwrap();
    let expected = (
        1,
        1 << 20,
        1 << 20,
        "03020100-0504-0706-0809-0a0b0c0d0e0f".to_owned(),
        None,
    );
    let table = read(disk.clone());
    assert_eq!(ours(&table), std::slice::from_ref(&expected));
    assert!(table.notes.is_empty());
    disk[BLOCK + 20] ^= 1;
    let table = read(disk);
    // The reserved bytes at 20 are in the checksum: the backup is read.
    assert_eq!(ours(&table), [expected]);
    assert_eq!(table.notes.len(), 1);
}

#[test]
fn sectors_of_4096_bytes_by_sfdisk() {
    let test = "sectors_of_4096_bytes_by_sfdisk";
    if !tools(test, &["sfdisk", "losetup"]) || !root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    bash(
        "truncate -s 100M $1; d=$(losetup -b 4096 --show -f $1); trap 'losetup -d $d' EXIT; \
         printf 'label: gpt\n,10M,U\n,20M,L\n' | sfdisk -q $d; sfdisk --json $d >$1.json",
        &[&disk],
    );
    let json = std::fs::read(disk.with_extension("json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let mut bytes = std::fs::read(&disk).unwrap();
    for damaged in [false, true] {
        bytes[4096 + 40] ^= u8::from(damaged);
        std::fs::write(&disk, &bytes).unwrap();
        let table = table(&disk).unwrap();
        for (v, p) in table
            .volumes
            .iter()
            .zip(json["partitiontable"]["partitions"].as_array().unwrap())
        {
            assert_eq!(v.start, p["start"].as_u64().unwrap() * 4096);
            assert_eq!(v.data.len(), p["size"].as_u64().unwrap() * 4096);
        }
        assert_eq!(table.volumes.len(), 2);
        assert_eq!(!table.notes.is_empty(), damaged);
    }
}

#[test]
fn a_filesystem_is_no_partition_table() {
    let test = "a_filesystem_is_no_partition_table";
    if !tools(test, &["mkfs.vfat", "mkfs.ntfs", "mke2fs"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    for make in [
        "mkfs.vfat $1 >/dev/null",
        "mkfs.vfat -F 32 $1 >/dev/null 2>&1",
        "mkfs.vfat -F 12 -s 128 $1 >/dev/null 2>&1",
        "mkfs.ntfs -q -F $1 >/dev/null 2>&1",
        "mke2fs -q $1",
        "mke2fs -q $1; printf '\\125\\252' | dd of=$1 bs=1 seek=510 conv=notrunc status=none",
        "mke2fs -q $1; head -c 510 /dev/zero | tr '\\0' 'g' | dd of=$1 conv=notrunc status=none; \
         printf '\\125\\252' | dd of=$1 bs=1 seek=510 conv=notrunc status=none",
    ] {
        bash(&format!("rm -f $1; truncate -s 64M $1; {make}"), &[&disk]);
        let table = table(&disk).unwrap();
        assert_eq!(table.kind, "none", "{make}");
        assert_eq!(table.volumes[0].data.len(), 64 << 20);
    }
    for nothing in [0, 1, 100, 511, 512, 513, 4096] {
        std::fs::write(&disk, vec![0xff; nothing]).unwrap();
        assert_eq!(table(&disk).unwrap().kind, "none");
    }
}

#[test]
fn hostile_tables_end() {
    let test = "hostile_tables_end";
    if !tools(test, &["sfdisk", "sgdisk"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let mut seen = [0; 2];
    for script in [
        "printf 'label: dos\\n,100K,L\\n,,E\\n,10K\\n,10K\\n,10K\\n' | sfdisk -q $1",
        "sgdisk -a 8 -n 1:0:+100K -n 2:0:+100K $1 >/dev/null",
    ] {
        bash(&format!("rm -f $1; truncate -s 4M $1; {script}"), &[&disk]);
        let seed = std::fs::read(&disk).unwrap();
        let used: Vec<usize> = (0..seed.len()).filter(|at| seed[*at] != 0).collect();
        let mut x = 88172645463325252u64;
        let mut next = |n: usize| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            usize::try_from(x % n as u64).unwrap()
        };
        for _ in 0..2000 {
            let mut bytes = seed.clone();
            let mut fix = false;
            for _ in 0..1 + next(4) {
                let at = used[next(used.len())] & !3;
                let value = [0, 1, 0xff, 0x7fff_ffff, u32::MAX, 0x0505_0505][next(6)];
                bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
                fix = next(2) == 0;
            }
            if fix && &bytes[512..520] == b"EFI PART" {
                // With the checksum right again the fields themselves are what is hostile.
                bytes[528..532].fill(0);
                let size = (u32::from_le_bytes(bytes[524..528].try_into().unwrap()) as usize).min(512);
                let crc = crc32fast::hash(&bytes[512..512 + size]);
                bytes[528..532].copy_from_slice(&crc.to_le_bytes());
            }
            match volume::table(&(Arc::new(bytes) as Arc<dyn ReadAt>)) {
                Ok(table) => {
                    assert!(table.volumes.len() <= 1000);
                    assert!(table.volumes.iter().all(|v| v.start + v.data.len() <= 4 << 20));
                    seen[0] += 1;
                }
                Err(_) => seen[1] += 1,
            }
        }
    }
    println!("{} tables read, {} refused", seen[0], seen[1]);
}
