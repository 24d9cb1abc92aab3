//! Volumes in states that machines are seldom in: LUKS2 that is being reencrypted or needs more than a key, volume groups
//! that are exported or share a name.

use crate::assembly::{find, keys, luks2_sum, open, put_together, read};
use crate::support::{bash, root, run, tools, vm2k};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use vm2k::bytes::be64;

/// Makes a LUKS2 volume of 8 MiB in `$1` with the key in `$2`.
const FORMAT: &str = "truncate -s 0 $1; truncate -s 8M $1; cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
    --luks2-metadata-size 16k --luks2-keyslots-size 512k $1 $2 2>/dev/null";

/// Changes the JSON of both headers; the checksums are right then.
fn edit(image: &Path, change: impl Fn(&mut Value)) {
    let mut bytes = std::fs::read(image).unwrap();
    let len = usize::try_from(be64(&bytes, 8).unwrap()).unwrap();
    for header in [0, len] {
        let header = &mut bytes[header..header + len];
        let end = 4096 + header[4096..].iter().position(|b| *b == 0).unwrap();
        let mut json: Value = serde_json::from_slice(&header[4096..end]).unwrap();
        change(&mut json);
        header[4096..].fill(0);
        let text = serde_json::to_vec(&json).unwrap();
        header[4096..4096 + text.len()].copy_from_slice(&text);
        luks2_sum(header);
    }
    std::fs::write(image, bytes).unwrap();
}

/// Why the volume in `image` cannot be read with its key, and what the program says; `None` if it can be.
fn refusal(image: &Path, key: &Path) -> Option<String> {
    let assembly = put_together(&[open(image)], &keys(&[b"x"]));
    let failed = assembly
        .blocks
        .iter()
        .find_map(|b| b.failed.as_ref())?
        .to_string();
    let said = vm2k()
        .args(["ls", "--key-file"])
        .args([key, image])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(6), "{text}");
    assert!(text.contains(&failed), "{failed}: {text}");
    assert!(!text.contains("--key-file"), "{text}");
    Some(failed)
}

/// What cryptsetup(8) says of the headers; it refuses those that are not sound.
fn dump(image: &Path) -> String {
    let out = run(Command::new("cryptsetup").arg("luksDump").arg(image));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn luks2_that_needs_more_than_a_key_is_refused_by_name() {
    let test = "luks2_that_needs_more_than_a_key_is_refused_by_name";
    if !tools(test, &["cryptsetup"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, key) = (dir.path().join("image"), dir.path().join("key"));
    std::fs::write(&key, "x").unwrap();
    bash(FORMAT, &[&image, &key]);
    assert_eq!(refusal(&image, &key), None);

    // As cryptsetup begins it and leaves it when it is stopped.
    let busy = "a LUKS2 volume that is being reencrypted";
    for begin in [
        format!("{FORMAT}; cryptsetup -q reencrypt --init-only --key-file $2 $1"),
        format!("{FORMAT}; cryptsetup -q reencrypt --init-only --resilience journal --key-file $2 $1"),
        "truncate -s 0 $1; truncate -s 8M $1
         cryptsetup -q reencrypt --encrypt --init-only --type luks2 --reduce-device-size 2M --pbkdf-force-iterations 1000 \
            --pbkdf pbkdf2 --key-file $2 $1 2>/dev/null"
            .to_owned(),
    ] {
        bash(&begin, &[&image, &key]);
        assert_eq!(refusal(&image, &key).as_deref(), Some(busy), "{begin}");
        assert!(dump(&image).contains("online-reencrypt"), "{begin}");
    }

    // What needs the device mapper to be made.
    let integrity =
        json!({"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"});
    type Change = fn(&mut Value, &Value);
    let changes: [(&str, &str, Change); 6] = [
        (
            "a LUKS2 volume with authenticated encryption (dm-integrity)",
            "integrity: hmac(sha256)",
            |json, integrity| json["segments"]["0"]["integrity"] = integrity.clone(),
        ),
        (
            "the LUKS2 requirement inline-hw-tags",
            "Requirements",
            |json, _| {
                json["config"]["requirements"] = json!({"mandatory": ["inline-hw-tags"]});
            },
        ),
        (busy, "Requirements", |json, _| {
            json["config"]["requirements"] = json!({"mandatory": ["offline-reencrypt-v9"]});
        }),
        ("the LUKS2 segment type hw-opal", "hw-opal", |json, _| {
            json["segments"]["0"]["type"] = "hw-opal".into();
        }),
        (
            "LUKS with the cipher twofish-xts-plain64",
            "twofish",
            |json, _| {
                json["segments"]["0"]["encryption"] = "twofish-xts-plain64".into();
            },
        ),
        ("the LUKS2 digest type argon2id", "argon2id", |json, _| {
            json["digests"]["0"]["type"] = "argon2id".into();
        }),
    ];
    for (name, shown, change) in changes {
        bash(FORMAT, &[&image, &key]);
        edit(&image, |json| change(json, &integrity));
        assert_eq!(refusal(&image, &key).as_deref(), Some(name));
        let said = dump(&image);
        assert!(said.contains(shown), "{name}: {said}");
    }
}

/// Makes the volume group `vg` with the volume `root` of 4 MiB on each of `$@`, without a device mapper, each of which
/// thinks it is alone. The volumes begin at the second extent.
const GROUPS: &str = r#"
export LVM_SYSTEM_DIR=$(mktemp -d) LVM_SUPPRESS_FD_WARNINGS=1
trap 'losetup -d $loops; rm -r "$LVM_SYSTEM_DIR"' EXIT
loops=
for image; do
    truncate -s 24M "$image"
    loops="$loops $(losetup -f --show "$image")"
done
for loop in $loops; do
    alone="--driverloaded n --devices $loop"
    vgcreate $alone -q -s 1M vg $loop
    lvcreate $alone -q -y -an -Zn -Wn -n front -L 1M vg
    lvcreate $alone -q -y -an -Zn -Wn -n root -L 4M vg
    lvremove $alone -q -y vg/front
done 2> /dev/null > /dev/null
vgexport --driverloaded n --devices $loop -q vg > /dev/null 2>&1
for loop in $loops; do
    pvs --driverloaded n --devices $loop --noheadings --segments --units b --nosuffix -S lv_name=root -o pe_start,pvseg_start,vg_extent_size,vg_uuid,vg_attr \
        2> /dev/null
done
"#;

#[test]
fn volume_groups_that_are_exported_or_share_a_name() {
    let test = "volume_groups_that_are_exported_or_share_a_name";
    if !root(test) || !tools(test, &["vgcreate", "lvcreate", "vgexport", "losetup"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let images = [dir.path().join("one"), dir.path().join("two")];
    let out = bash(GROUPS, &[&images[0], &images[1]]);
    let lines: Vec<Vec<String>> = String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    // Where lvm2 says that the volumes are; a filesystem with a name of its own goes there.
    let mut expected = Vec::new();
    for (image, line) in images.iter().zip(&lines) {
        let number = |n: usize| line[n].parse::<u64>().unwrap();
        let at = number(0) + number(1) * number(2);
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("group"), &line[3]).unwrap();
        let volume = dir.path().join("volume");
        run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([&tree, &volume])
            .arg("4M"));
        let content = std::fs::read(&volume).unwrap();
        std::os::unix::fs::FileExt::write_all_at(
            &std::fs::File::options().write(true).open(image).unwrap(),
            &content,
            at,
        )
        .unwrap();
        expected.push(content);
    }
    assert!(
        lines[1][4].contains('x') && !lines[0][4].contains('x'),
        "{lines:?}"
    );
    // Alone, and both.
    for (image, content) in images.iter().zip(&expected) {
        let assembly = put_together(&[open(image)], &keys(&[]));
        let block = find(&assembly, "vg/root").unwrap();
        assert_eq!(read(&assembly, "vg/root").unwrap().0, 4 << 20);
        assert_eq!(
            &vm2k::read_at::read_all(&*block.volume.data, 4 << 20).unwrap(),
            content
        );
        let told = assembly.notes.iter().any(|n| n.contains("exported"));
        assert_eq!(told, image == &images[1], "{:?}", assembly.notes);
    }
    let assembly = put_together(&[open(&images[0]), open(&images[1])], &keys(&[]));
    let volumes = assembly
        .blocks
        .iter()
        .filter(|b| b.paths.iter().any(|p| p == "vg/root"));
    let mut found: Vec<Vec<u8>> = volumes
        .map(|b| vm2k::read_at::read_all(&*b.volume.data, 4 << 20).unwrap())
        .collect();
    found.sort();
    expected.sort();
    assert!(found == expected, "{} volumes", found.len());
    for line in &lines {
        let note = format!(
            "more than one volume group is called vg: this one has the UUID {}",
            line[3]
        );
        assert!(assembly.notes.contains(&note), "{note}: {:?}", assembly.notes);
    }
}
