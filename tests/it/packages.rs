//! Disks inside other files: OVA and OVF, compressed images, parts; and block devices.

use crate::disk::{Random, bytes, judge_as, made, open};
use crate::support::{bash, root, run, tools, vm2k};
use std::path::Path;
use std::process::Command;
use vm2k::disk::{self, Gate, Machine};
use vm2k::error::{Error, Result, code};
use vm2k::progress::Silent;
use vm2k::read_at::ReadAt;

fn machine(path: &Path) -> Result<Machine> {
    disk::open_machine(path, &Gate::default(), &Silent)
}

fn failed(path: &Path) -> (u8, String) {
    let e = machine(path).map(|_| ()).unwrap_err();
    let hint = if let Error::Hinted { hint, .. } = &e {
        hint.clone()
    } else {
        String::new()
    };
    (e.code(), format!("{e} [{hint}]"))
}

/// An OVF with these files (id, href), disks (id, rest of the element) and items of hardware.
fn ovf(files: &[(&str, &str)], disks: &[(&str, &str)], items: &str) -> String {
    let files: String = files
        .iter()
        .map(|(id, href)| format!("<File ovf:id=\"{id}\" ovf:href=\"{href}\" ovf:size=\"1\"/>\n"))
        .collect();
    let disks: String = disks
        .iter()
        .map(|(id, rest)| format!("<Disk ovf:diskId=\"{id}\" ovf:capacity=\"8\" ovf:capacityAllocationUnits=\"byte * 2^20\" {rest}/>\n"))
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- made by a test -->\n\
         <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\">\n\
         <References>\n{files}</References>\n<DiskSection><Info>disks</Info>\n{disks}</DiskSection>\n\
         <VirtualSystem ovf:id=\"web\"><Info>A &amp; B</Info><Name>web &lt;1&gt; &#65;</Name>\n\
         <OperatingSystemSection ovf:id=\"96\"><Info>os</Info><Description>Debian 12 (64-bit)</Description></OperatingSystemSection>\n\
         <VirtualHardwareSection><Info>hardware</Info>\n\
         <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>\n\
         <Item ovf:configuration=\"big\"><rasd:InstanceID>9</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>64</rasd:VirtualQuantity></Item>\n\
         <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>1536</rasd:VirtualQuantity></Item>\n\
         <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>\n\
         <Item><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>5</rasd:ResourceType></Item>\n\
         {items}</VirtualHardwareSection></VirtualSystem></Envelope>\n"
    )
}

fn drive(disk: &str, parent: u32, address: u32) -> String {
    format!(
        "<Item><rasd:AddressOnParent>{address}</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/{disk}</rasd:HostResource>\
         <rasd:InstanceID>{}</rasd:InstanceID><rasd:Parent>{parent}</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>\n",
        10 + address
    )
}

/// Three raw disks `r1`, `r2`, `r3` of 8 MiB and stream-optimized VMDKs of them.
fn disks(dir: &Path) {
    bash(
        "cd $1; for n in 1 2 3; do qemu-img create -q -f raw r$n 8M; dd if=/dev/urandom of=r$n bs=64k seek=$n count=9 conv=notrunc status=none; \
         qemu-img convert -O vmdk -o subformat=streamOptimized r$n disk$n.vmdk; done; gzip -kn disk3.vmdk",
        &[dir],
    );
}

#[test]
fn an_ova_is_a_machine_with_all_its_disks() {
    let test = "an_ova_is_a_machine_with_all_its_disks";
    if !tools(test, &["qemu-img", "tar", "sha256sum", "gzip"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disks(dir);
    let text = ovf(
        &[
            ("f1", "disk1.vmdk"),
            ("f2", "disk%202.vmdk"),
            ("f3", "disk3.vmdk.gz"),
        ],
        &[
            ("a", "ovf:fileRef=\"f1\""),
            ("b", "ovf:fileRef=\"f2\""),
            ("c", "ovf:fileRef=\"f3\" "),
            ("empty", ""),
        ],
        &[drive("a", 3, 1), drive("b", 3, 0), drive("c", 4, 0)].concat(),
    );
    std::fs::write(dir.join("web.ovf"), text).unwrap();
    bash("cd $1; mv disk2.vmdk 'disk 2.vmdk'", &[dir]);
    let files = "web.ovf 'disk 2.vmdk' disk1.vmdk disk3.vmdk.gz";
    for algorithm in ["sha1", "sha256", "sha512"] {
        let sums = format!(
            "cd $1; for f in {files}; do echo \"{}($f)= $({algorithm}sum < \"$f\" | cut -d' ' -f1)\"; done >web.mf",
            algorithm.to_uppercase()
        );
        bash(&sums, &[dir]);
        for format in ["ustar", "gnu", "pax"] {
            let ova = made(
                dir,
                "web.ova",
                &format!("cd $2; tar --format={format} -cf $1 web.ovf web.mf {files}"),
            );
            // Once as an archive, once as the files themselves.
            for path in [&ova, &dir.join("web.ovf")] {
                let machine = machine(path).unwrap_or_else(|e| panic!("{format} {algorithm}: {e}"));
                let names: Vec<&str> = machine.disks.iter().map(|d| d.name.as_str()).collect();
                // By controller and number; what is attached nowhere comes last. The second controller stands behind the first.
                assert_eq!(names, ["disk 2.vmdk", "disk1.vmdk", "disk3.vmdk.gz", "empty"]);
                for (disk, raw) in machine.disks.iter().zip(["r2", "r1", "r3"]) {
                    assert_eq!(disk.disk.format, "vmdk");
                    let expected = std::fs::read(dir.join(raw)).unwrap();
                    assert!(bytes(&*disk.disk.data).unwrap() == expected, "{raw}");
                    assert_eq!(disk.disk.notes, [""; 0]);
                }
                let empty = &*machine.disks[3].disk.data;
                assert!(empty.len() == 8 << 20 && empty.extent_at(0).unwrap().hole);
                let hardware = &machine.hardware;
                assert_eq!((hardware.cpus, hardware.memory), (Some(2), Some(1536 << 20)));
                assert_eq!(hardware.name.as_deref(), Some("web <1> A"));
                assert_eq!(hardware.os.as_deref(), Some("Debian 12 (64-bit)"));
                assert_eq!(
                    hardware.notes(),
                    ["the machine has 2 processors (--cpus 2) and 1536 MiB of memory (--memory 1536m)"]
                );
            }
        }
    }
    // One that is not told by its header is not one disk.
    let e = open(&dir.join("web.ova")).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("4 disks"), "{e}");
    // Each file is checked before anything is read.
    for file in ["web.ovf", "disk 2.vmdk", "disk1.vmdk", "disk3.vmdk.gz"] {
        let whole = std::fs::read(dir.join(file)).unwrap();
        let mut other = whole.clone();
        let at = other.len() / 2;
        other[at] ^= 0x20;
        std::fs::write(dir.join(file), &other).unwrap();
        let ova = made(
            dir,
            "bad.ova",
            &format!("cd $2; tar -cf $1 web.ovf web.mf {files}"),
        );
        for path in [&ova, &dir.join("web.ovf")] {
            let (c, text) = failed(path);
            assert!(
                c == code::CORRUPT && (text.contains(file) || file == "web.ovf"),
                "{file}: {text}"
            );
        }
        std::fs::write(dir.join(file), &whole).unwrap();
    }
    // Cut at any place it is an error, never fewer disks.
    let whole = std::fs::read(dir.join("web.ova")).unwrap();
    for n in 1..40 {
        let len = whole.len() * n / 41;
        std::fs::write(dir.join("cut.ova"), &whole[..len]).unwrap();
        let (c, text) = failed(&dir.join("cut.ova"));
        assert!(c == code::CORRUPT || c == code::UNSUPPORTED, "{len}: {text}");
    }
    // The archive itself compressed.
    let packed = made(dir, "web.ova.gz", "gzip -c $2/web.ova >$1");
    assert!(failed(&packed).1.contains("compressed twice"));
    bash(
        "cd $1; tar -cf y.ova web.ovf 'disk 2.vmdk' disk1.vmdk disk3.vmdk.gz; mkdir z; cp y.ova z",
        &[dir],
    );
    let unchecked = machine(&dir.join("y.ova")).unwrap();
    assert!(unchecked.disks[0].disk.notes[0].contains("no manifest"));
}

#[test]
fn ovf_that_makes_no_sense_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("x.ovf");
    std::fs::write(dir.join("disk.img"), vec![7; 4096]).unwrap();
    let one = ovf(&[("f", "disk.img")], &[("d", "ovf:fileRef=\"f\"")], "");
    std::fs::write(&path, &one).unwrap();
    assert_eq!(machine(&path).unwrap().disks.len(), 1);
    assert_eq!(open(&path).unwrap().data.len(), 4096);
    let deep = one.replace("<References>", &format!("{}<References>", "<a>".repeat(100)));
    let many = one.replace("<References>", &format!("{}<References>", "<a/>".repeat(300_000)));
    let bomb = one.replacen(
        "<!--",
        "<!DOCTYPE x [<!ENTITY a \"aaaaaaaa\"><!ENTITY b \"&a;&a;&a;\">]><!--",
        1,
    );
    std::fs::write(&path, bomb.replace("A &amp; B", "&b;")).unwrap();
    assert_eq!(
        machine(&path).unwrap().disks.len(),
        1,
        "entities are not expanded"
    );
    for (text, c, named) in [
        (
            one.replace("ovf:href=\"disk.img\"", "ovf:href=\"gone.img\""),
            code::CORRUPT,
            "gone.img",
        ),
        (
            one.replace("ovf:fileRef=\"f\"", "ovf:fileRef=\"g\""),
            code::CORRUPT,
            "not listed",
        ),
        (
            one.replace("ovf:fileRef=\"f\"", "ovf:fileRef=\"f\" ovf:parentRef=\"e\""),
            code::UNSUPPORTED,
            "difference",
        ),
        (
            one.replace("ovf:size", "ovf:chunkSize"),
            code::UNSUPPORTED,
            "chunks",
        ),
        (
            one.replace("<VirtualSystem ", "<VirtualSystem/><VirtualSystem "),
            code::UNSUPPORTED,
            "2 machines",
        ),
        (one.replace("Disk ovf", "Disc ovf"), code::UNSUPPORTED, "0 disks"),
        (
            one.replace("</Envelope>", ""),
            code::CORRUPT,
            "ends in the middle",
        ),
        (one.replace("</References>", ""), code::CORRUPT, "well-formed"),
        (one.replace("disk.img\"", "disk.img"), code::CORRUPT, "OVF"),
        (deep, code::UNSUPPORTED, "too deep"),
        (many, code::UNSUPPORTED, "too many"),
        (
            ovf(&[("f", "x.ovf")], &[("d", "ovf:fileRef=\"f\"")], ""),
            code::UNSUPPORTED,
            "an archive inside an archive",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let (found, text) = failed(&path);
        assert!(found == c && text.contains(named), "{named}: {found} {text}");
    }
    // Capacities and units of a disk without a file.
    for (from, to, len) in [
        ("\"byte * 2^20\"", "\"byte * 2^30\"", Some(8u64 << 30)),
        ("\"byte * 2^20\"", "\"GigaBytes\"", Some(8 << 30)),
        ("ovf:capacityAllocationUnits=\"byte * 2^20\"", "", Some(8)),
        ("\"8\"", "\"${size}\"", None),
        ("\"8\"", "\"18446744073709551615\"", None),
        ("\"byte * 2^20\"", "\"byte * 9^99999\"", None),
    ] {
        let text = ovf(&[], &[("d", "")], "").replacen(from, to, 1);
        std::fs::write(&path, text).unwrap();
        match len {
            Some(len) => assert_eq!(machine(&path).unwrap().disks[0].disk.data.len(), len, "{to}"),
            None => assert_eq!(failed(&path).0, code::CORRUPT, "{to}"),
        }
    }
}

#[test]
fn tars_of_one_disk() {
    let test = "tars_of_one_disk";
    if !tools(test, &["qemu-img", "tar", "gzip"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disks(dir);
    let raw = std::fs::read(dir.join("r1")).unwrap();
    for (what, script) in [
        ("plain", "tar -cf $1 r1"),
        // What cloud providers give out: a sparse disk in a compressed tar.
        (
            "sparse, compressed",
            "fallocate -d r1; tar --format=oldgnu -Sczf $1 r1",
        ),
        ("sparse, PAX", "tar --format=pax -Scf $1 r1"),
    ] {
        let tar = made(dir, "x", &format!("cd $2; {script}"));
        assert!(bytes(&*open(&tar).unwrap().data).unwrap() == raw, "{what}");
    }
    let two = made(dir, "two.tar", "cd $2; tar -cf $1 r1 r2");
    assert!(failed(&two).1.contains("2 files"));
    let nested = made(dir, "nested.tar", "cd $2; tar -cf $1 two.tar");
    assert!(failed(&nested).1.contains("archive inside"));
}

#[test]
fn compressed_images_are_unpacked() {
    let test = "compressed_images_are_unpacked";
    if !tools(test, &["qemu-img", "gzip", "xz", "zstd"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disks(dir);
    bash(
        "cd $1; qemu-img convert -O qcow2 r1 q; head -c 5000 /dev/urandom >>r2",
        &[dir],
    );
    let temporary = || {
        let dir = std::fs::read_dir(std::env::temp_dir()).unwrap();
        dir.flatten()
            .filter(|e| e.file_name().as_encoded_bytes().starts_with(b".tmp") && e.path().is_file())
            .count()
    };
    let before = temporary();
    for tool in [
        "gzip",
        "gzip -1",
        "xz -T1",
        "xz -9",
        "xz -T2 --block-size=1MiB",
        "xz --check=sha256",
        "zstd -q",
        "zstd -q -19",
        "zstd -q --long=27",
    ] {
        for (file, raw) in [("r1", "r1"), ("r2", "r2"), ("disk3.vmdk", "r3"), ("q", "r1")] {
            let image = made(dir, "packed", &format!("{tool} -c $2/{file} >$1"));
            let disk = open(&image).unwrap_or_else(|e| panic!("{tool} {file}: {e}"));
            assert_eq!(
                disk.format,
                match file {
                    "q" => "qcow2",
                    "disk3.vmdk" => "vmdk",
                    _ => "raw",
                }
            );
            assert!(
                bytes(&*disk.data).unwrap() == std::fs::read(dir.join(raw)).unwrap(),
                "{tool} {file}"
            );
            if file == "r1" {
                assert!(
                    disk.data.extent_at(4 << 20).unwrap().hole,
                    "{tool}: zeros become holes"
                );
            }
        }
        // Several members, streams, frames, in the middle of a page.
        let image = made(
            dir,
            "packed",
            &format!("head -c 3000001 $2/r1 | {tool} -c >$1; tail -c +3000002 $2/r1 | {tool} -c >>$1"),
        );
        assert!(
            bytes(&*open(&image).unwrap().data).unwrap() == std::fs::read(dir.join("r1")).unwrap(),
            "{tool}"
        );
        // Cut anywhere it is an error; damaged it is one too, for all of these have checksums.
        let whole = std::fs::read(made(dir, "packed", &format!("{tool} -c $2/r1 >$1"))).unwrap();
        let mut r = Random(7);
        for n in 1..12 {
            std::fs::write(&image, &whole[..whole.len() * n / 12]).unwrap();
            assert_eq!(failed(&image).0, code::CORRUPT, "{tool}: {n}");
            let mut other = whole.clone();
            other[20 + r.below(whole.len() - 40)] ^= 1 << r.below(8);
            std::fs::write(&image, &other).unwrap();
            let checked = !tool.starts_with("zstd") || tool == "zstd -q";
            match machine(&image) {
                Err(e) => assert!(
                    matches!(e.code(), code::CORRUPT | code::UNSUPPORTED),
                    "{tool}: {e}"
                ),
                Ok(m) => assert!(
                    !checked
                        || bytes(&*m.disks[0].disk.data).unwrap() == std::fs::read(dir.join("r1")).unwrap(),
                    "{tool}"
                ),
            }
        }
    }
    let zeros = made(dir, "padded", "gzip -c $2/r1 >$1; head -c 9999 /dev/zero >>$1");
    assert!(open(&zeros).is_ok());
    let garbage = made(dir, "garbage", "gzip -c $2/r1 >$1; echo x >>$1");
    assert_eq!(failed(&garbage).0, code::CORRUPT);
    let twice = made(dir, "twice", "gzip -c $2/r1 | xz -c >$1");
    assert!(failed(&twice).1.contains("compressed twice"));
    let window = made(
        dir,
        "window",
        "head -c 300000000 /dev/zero | zstd -q --ultra --long=31 -c >$1",
    );
    let (c, text) = failed(&window);
    assert!(c == code::UNSUPPORTED && text.contains("window"), "{text}");
    let dictionary = made(
        dir,
        "dictionary",
        "head -c 300000000 /dev/zero | xz --lzma2=preset=0,dict=1GiB -c >$1",
    );
    let (c, text) = failed(&dictionary);
    assert!(c == code::UNSUPPORTED && text.contains("dictionary"), "{text}");
    assert_eq!(temporary(), before, "no temporary file stays");
}

#[test]
fn a_disk_that_does_not_fit_is_an_error_with_advice() {
    let test = "a_disk_that_does_not_fit_is_an_error_with_advice";
    if !tools(test, &["gzip", "mount"]) || !root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    bash(
        "mkdir $1/small; mount -t tmpfs -o size=80m none $1/small; head -c 100000000 /dev/urandom | gzip -1c >$1/x.gz",
        &[dir],
    );
    let output = Command::new(env!("CARGO_BIN_EXE_vm2k"))
        .env("TMPDIR", dir.join("small"))
        .arg("ls")
        .arg(dir.join("x.gz"))
        .output()
        .unwrap();
    let left = std::fs::read_dir(dir.join("small")).unwrap().count();
    bash("umount $1/small", &[dir]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && text.contains("TMPDIR") && text.contains("small"),
        "{text}"
    );
    assert_eq!(left, 0);
}

#[test]
fn parts_are_one_disk() {
    let test = "parts_are_one_disk";
    if !tools(test, &["qemu-img", "split"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disks(dir);
    bash("cd $1; qemu-img convert -O qcow2 r1 q", &[dir]);
    for (options, first, last) in [
        ("-d -a 2", "00", "08"),
        ("--numeric-suffixes=1 -a 3", "001", "009"),
        ("-a 2", "aa", "ai"),
        ("-a 3", "aaa", "aai"),
    ] {
        for file in ["r1", "q", "disk1.vmdk"] {
            bash(
                &format!(
                    "cd $1; rm -f x.*; n=$(stat -c %s {file}); split {options} -b $((n / 9 + 1)) {file} x."
                ),
                &[dir],
            );
            let disk =
                open(&dir.join(format!("x.{first}"))).unwrap_or_else(|e| panic!("{options} {file}: {e}"));
            assert!(
                bytes(&*disk.data).unwrap() == std::fs::read(dir.join("r1")).unwrap(),
                "{options} {file}"
            );
            let note = format!("9 parts are read as one file, the last is x.{last}");
            assert_eq!(disk.notes, [note]);
        }
        // A part that is missing, or shorter.
        let first = dir.join(format!("x.{first}"));
        bash(
            &format!(
                "cd $1; truncate -s -1 x.{}",
                last.replace(['8', '9'], "4").replace('i', "e")
            ),
            &[dir],
        );
        assert!(failed(&first).1.contains("the first one"));
        bash(
            &format!("cd $1; rm x.{}", last.replace(['8', '9'], "4").replace('i', "e")),
            &[dir],
        );
        let (c, text) = failed(&first);
        assert!(c == code::CORRUPT && text.contains("missing"), "{text}");
    }
    // A file that only has such a name.
    bash("cd $1; cp r1 alone.001", &[dir]);
    let alone = open(&dir.join("alone.001")).unwrap();
    assert!(alone.notes.is_empty() && alone.data.len() == 8 << 20);
    // A part may lead nowhere else.
    bash("cd $1; ln -s /etc/passwd alone.002", &[dir]);
    assert_eq!(failed(&dir.join("alone.001")).0, code::REFUSED);
}

#[test]
fn the_identity_of_a_machine_is_that_of_all_its_files() {
    let test = "the_identity_of_a_machine_is_that_of_all_its_files";
    if !tools(test, &["qemu-img", "split", "touch"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    bash(
        "cd $1; qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse x.vmdk 5G; qemu-img create -q -f raw r 1M; split -d -b 400k r r.; \
         gzip -k r; sleep 3.2",
        &[dir],
    );
    for (name, file) in [("x.vmdk", "x-s002.vmdk"), ("r.00", "r.02"), ("r.gz", "r.gz")] {
        let identity = || {
            let gate = Gate::new(&[]).unwrap();
            disk::open_machine(&dir.join(name), &gate, &Silent).unwrap();
            gate.identity()
        };
        let first = identity();
        assert!(first.is_some() && identity() == first, "{name}");
        run(Command::new("touch")
            .args(["-d", "2001-02-03"])
            .arg(dir.join(file)));
        assert_ne!(identity(), first, "{name}: {file} changed");
    }
}

#[test]
fn a_block_device_is_read() {
    let test = "a_block_device_is_read";
    if !tools(test, &["qemu-img", "losetup"]) || !root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disks(dir);
    bash("cd $1; qemu-img convert -O qcow2 r1 q; truncate -s +1M q", &[dir]);
    for (file, format) in [("r1", "raw"), ("q", "qcow2")] {
        let device = run(Command::new("losetup")
            .args(["-r", "--show", "-f"])
            .arg(dir.join(file)))
        .stdout;
        let device = String::from_utf8(device).unwrap();
        let gate = Gate::new(&[]).unwrap();
        let read = disk::open_machine(Path::new(device.trim()), &gate, &Silent)
            .and_then(|m| Ok((m.disks[0].disk.format, bytes(&*m.disks[0].disk.data)?)));
        run(Command::new("losetup").args(["-d", device.trim()]));
        let (found, bytes) = read.unwrap();
        assert_eq!(found, format);
        assert!(bytes == std::fs::read(dir.join("r1")).unwrap());
        assert!(
            gate.identity().is_none(),
            "a device can change without it showing"
        );
    }
}

#[test]
fn the_program_reads_a_machine_of_an_ova() {
    let test = "the_program_reads_a_machine_of_an_ova";
    if !tools(test, &["qemu-img", "mke2fs", "tar"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    bash(
        "cd $1; mkdir -p root/etc root/srv data; echo 'ID=debian' >root/etc/os-release; \
         echo 'UUID=11111111-2222-3333-4444-555555555555 /srv ext4 defaults 0 2' >root/etc/fstab; echo hello >data/greeting; \
         mke2fs -q -t ext4 -d root r1 8M; mke2fs -q -t ext4 -U 11111111-2222-3333-4444-555555555555 -d data r2 8M; \
         for n in 1 2; do qemu-img convert -O vmdk -o subformat=streamOptimized r$n disk$n.vmdk; done",
        &[dir],
    );
    let text = ovf(
        &[("f1", "disk1.vmdk"), ("f2", "disk2.vmdk")],
        &[("a", "ovf:fileRef=\"f1\""), ("b", "ovf:fileRef=\"f2\"")],
        &[drive("a", 3, 0), drive("b", 3, 1)].concat(),
    );
    std::fs::write(dir.join("web.ovf"), text).unwrap();
    let ova = made(dir, "web.ova", "cd $2; tar -cf $1 web.ovf disk1.vmdk disk2.vmdk");
    let output = run(vm2k().arg("cat").arg(&ova).arg("/srv/greeting"));
    assert_eq!(output.stdout, b"hello\n");
    let output = vm2k().arg("scan").arg(&ova).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    for expected in [
        "web.ova/disk1.vmdk",
        "web.ova/disk2.vmdk",
        "--cpus 2",
        "--memory 1536m",
        "no manifest",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // A digest that is wrong is found before an output is written.
    bash(
        "cd $1; echo 'SHA1(disk2.vmdk)= da39a3ee5e6b4b0d3255bfef95601890afd80709' >web.mf; tar -rf web.ova web.mf",
        &[dir],
    );
    let output = vm2k()
        .current_dir(dir)
        .args(["convert", "--base", "none", "-o", "oci:out", "web.ova"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(5) && text.contains("disk2.vmdk"),
        "{text}"
    );
    assert!(!dir.join("out").exists());
    // The judge of the disks inside is qemu-img, which reads them beside the archive.
    let expected = judge_as(&dir.join("disk2.vmdk"), &[]).unwrap();
    assert!(expected == std::fs::read(dir.join("r2")).unwrap());
}
