//! Bad input: a one-line cause, a hint, the right exit code, no output file, nothing temporary left.

use super::{Ended, Work, ended, machine, program};
use crate::support::{self, bash, run, shared, tools, unzstd};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// `vm2k convert TARGET --base BASE`, which must fail with `code` and leave nothing.
fn refused(work: &Work, target: &Path, options: &[&str], code: i32) -> Ended {
    let mut command = work.vm2k(["convert", "-o", &work.output("oci-archive", "image.tar")]);
    let ended = ended(command.arg(target).args(options));
    ended.expect(code);
    ended.one_cause();
    nothing_is_left(work);
    ended
}

fn nothing_is_left(work: &Work) {
    assert!(
        work.names("out").is_empty(),
        "left in the output's directory: {:?}",
        work.names("out")
    );
    assert!(
        work.names("tmp").is_empty(),
        "left in TMPDIR: {:?}",
        work.names("tmp")
    );
}

/// A disk of the machine, cut at a part of its length.
#[test]
fn a_truncated_qcow2() {
    let Some(machine) = machine("a_truncated_qcow2", "small") else {
        return;
    };
    let work = Work::new();
    let cut = work.path("cut.qcow2");
    for part in ["1 / 2", "9 / 10", "1 / 100"] {
        bash(
            &format!("head -c $(($(stat -c %s \"$1\") * {part})) \"$1\" > \"$2\""),
            &[&machine.qcow2(), &cut],
        );
        let ended = refused(&work, &cut, &["--base", &machine.base()], 5);
        assert!(
            ended.stderr.contains("cut.qcow2"),
            "the cause does not name the file: {}",
            ended.stderr
        );
    }
    bash("head -c 40 \"$1\" > \"$2\"", &[&machine.qcow2(), &cut]);
    refused(&work, &cut, &["--base", &machine.base()], 5);
}

#[test]
fn no_disk_at_all() {
    if !support::root("no_disk_at_all") {
        return;
    }
    let work = Work::new();
    let text = work.path("notes.txt");
    std::fs::write(&text, "this is no disk\n".repeat(1000)).unwrap();
    refused(&work, &text, &["--base", "none"], 6);
    std::fs::write(&text, "").unwrap();
    let empty = ended(work.vm2k(["convert", "--base", "none"]).arg(&text));
    assert!(
        matches!(empty.code, Some(5 | 6)),
        "an empty file: {:?} {}",
        empty.code,
        empty.stderr
    );
    empty.one_cause();
    std::fs::write(&text, vec![0; 8 << 20]).unwrap();
    refused(&work, &text, &["--base", "none"], 6);
    let missing = refused(&work, &work.path("missing.qcow2"), &["--base", "none"], 1);
    assert!(missing.stderr.contains("missing.qcow2"), "{}", missing.stderr);
    refused(&work, Path::new("/dev/null"), &["--base", "none"], 2);
}

/// The partition table and boot sectors of a Windows machine.
#[test]
fn a_windows_disk() {
    if !support::root("a_windows_disk") {
        return;
    }
    let work = Work::new();
    let disk = work.path("windows.raw");
    let mut bytes = vec![0_u8; 16 << 20];
    let first = 2048_u32;
    bytes[446..462].copy_from_slice(&[0x80, 0, 0, 0, 7, 0, 0, 0, 0, 8, 0, 0, 0, 0x70, 0, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let at = first as usize * 512;
    bytes[at..at + 11].copy_from_slice(b"\xeb\x52\x90NTFS    ");
    // 512 bytes a sector, 8 sectors a cluster, media f8, total sectors, $MFT at cluster 4, 1 KiB records
    bytes[at + 11..at + 14].copy_from_slice(&[0, 2, 8]);
    bytes[at + 21] = 0xf8;
    bytes[at + 40..at + 48].copy_from_slice(&0x6fff_u64.to_le_bytes());
    bytes[at + 48..at + 56].copy_from_slice(&4_u64.to_le_bytes());
    bytes[at + 64] = 0xf6;
    bytes[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&disk, bytes).unwrap();
    let ended = refused(&work, &disk, &["--base", "none"], 6);
    let said = ended.stderr.to_lowercase();
    assert!(
        said.contains("ntfs") || said.contains("windows"),
        "{}",
        ended.stderr
    );
}

/// A filesystem without an operating system: `ls` shows it, `convert` says what is missing.
#[test]
fn no_operating_system() {
    if !support::root("no_operating_system") || !tools("no_operating_system", &["mke2fs"]) {
        return;
    }
    let work = Work::new();
    let disk = work.path("data.raw");
    bash(
        r#"mkdir "$1.d"; echo x > "$1.d/file"; mke2fs -q -t ext4 -d "$1.d" "$1" 16M; chmod 644 "$1""#,
        &[&disk],
    );
    let ended = refused(&work, &disk, &["--base", "none"], 6);
    assert!(ended.stderr.contains("operating system"), "{}", ended.stderr);
    let listing = super::ended(work.vm2k(["ls"]).arg(&disk));
    listing.expect(0);
    assert!(listing.text().contains("/file"));
}

/// Two systems on one disk: the message says which, `--root` chooses.
#[test]
fn two_operating_systems() {
    if !support::root("two_operating_systems") || !tools("two_operating_systems", &["mke2fs", "sfdisk"]) {
        return;
    }
    let work = Work::new();
    let disk = work.path("two.raw");
    bash(
        r#"mkdir -p "$1.d/etc" "$1.d/usr/bin"; cp /bin/true "$1.d/usr/bin/"
           printf 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n' > "$1.d/etc/os-release"
           truncate -s 40M "$1"
           printf 'label: gpt\nstart=2048, size=16M\nsize=16M\n' | sfdisk -q "$1"
           echo one > "$1.d/etc/hostname"
           mke2fs -q -t ext4 -L first -d "$1.d" -E offset=1048576 "$1" 16M
           echo two > "$1.d/etc/hostname"
           mke2fs -q -t ext4 -L second -d "$1.d" -E offset=17825792 "$1" 16M
           chmod 644 "$1""#,
        &[&disk],
    );
    let mut command = work.vm2k(["convert", "-o", &work.output("oci", "x"), "--base", "none"]);
    let several = ended(command.arg(&disk));
    assert!(
        matches!(several.code, Some(2 | 6)),
        "{:?} {}",
        several.code,
        several.stderr
    );
    several.one_cause();
    assert!(several.stderr.contains("--root"), "{}", several.stderr);
    nothing_is_left(&work);
    let mut command = work.vm2k(["cat", "--root", "second"]);
    let chosen = ended(command.arg(&disk).arg("/etc/hostname"));
    assert_eq!(chosen.expect(0).stdout, b"two\n");
}

/// A directory that the user may not read must not be missing silently.
#[test]
fn an_unreadable_directory() {
    if !support::root("an_unreadable_directory") {
        return;
    }
    let work = Work::new();
    let dir = work.path("machine");
    std::fs::create_dir_all(dir.join("etc/secret")).unwrap();
    std::fs::write(dir.join("etc/secret/key"), "x").unwrap();
    std::fs::write(dir.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n").unwrap();
    std::fs::create_dir_all(dir.join("usr/bin")).unwrap();
    std::fs::copy("/bin/true", dir.join("usr/bin/true")).unwrap();
    std::fs::set_permissions(dir.join("etc/secret"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut target = OsString::from("dir:");
    target.push(&dir);
    let image = work.output("oci", "image");
    let ended = ended(
        work.vm2k(["convert", "--base", "none", "-o", &image])
            .arg(&target),
    );
    let everything = format!("{}{}", ended.stderr, ended.text());
    assert!(everything.contains("/etc/secret"), "{everything}");
    match ended.code {
        Some(1) => {
            ended.one_cause();
            nothing_is_left(&work);
        }
        Some(3) => assert_eq!(work.names("out"), ["image"]),
        other => panic!("{other:?} {everything}"),
    }
}

/// Somewhere to write that is full: a small tmpfs.
#[test]
fn a_full_output_disk() {
    let Some(machine) = machine("a_full_output_disk", "small") else {
        return;
    };
    for (transport, size) in [
        ("oci-archive", "1m"),
        ("oci-archive", "30m"),
        ("oci", "30m"),
        ("docker-archive", "30m"),
    ] {
        let work = Work::new();
        let tmpfs = work.writable("full");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=1777"), "tmpfs"])
            .arg(&tmpfs));
        let mut command = work.vm2k(["convert", "--base", &machine.base()]);
        command
            .arg(machine.qcow2())
            .arg("-o")
            .arg(format!("{transport}:{}/image", tmpfs.display()));
        let ended = ended(&mut command);
        let left: Vec<_> = std::fs::read_dir(&tmpfs)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        run(Command::new("umount").arg(&tmpfs));
        ended.expect(1);
        ended.one_cause();
        assert!(left.is_empty(), "{transport} {size}: {left:?}");
        assert!(ended.stderr.contains("space"), "{}", ended.stderr);
        nothing_is_left(&work);
    }
}

/// The store's disk is full: named as well.
#[test]
fn a_full_store() {
    let Some(machine) = machine("a_full_store", "small") else {
        return;
    };
    let work = Work::new();
    let store = work.path("store");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=200k,mode=0777", "tmpfs"])
        .arg(&store));
    let mut command = work.vm2k(["convert", "-o", &work.output("oci", "image")]);
    let ended = ended(command.arg(machine.qcow2()).args(["--base", &machine.base()]));
    run(Command::new("umount").arg(&store));
    // The store makes things faster; whether the program goes on without it is its choice, a wrong image is none.
    match ended.code {
        Some(0) => super::ended(
            work.vm2k(["verify"])
                .arg(machine.qcow2())
                .arg(work.output("oci", "image")),
        )
        .expect(0)
        .expect(0),
        Some(1) => {
            ended.one_cause();
            nothing_is_left(&work);
            &ended
        }
        other => panic!("{other:?} {}", ended.stderr),
    };
}

#[test]
fn an_output_that_cannot_be() {
    let Some(machine) = machine("an_output_that_cannot_be", "small") else {
        return;
    };
    let work = Work::new();
    for output in [
        "oci:/no/such/directory/image",
        "oci-archive:/proc/image.tar",
        "oci-archive:/",
    ] {
        let mut command = work.vm2k(["convert", "--base", &machine.base(), "-o", output]);
        let ended = ended(command.arg(machine.qcow2()));
        assert!(
            matches!(ended.code, Some(1 | 2)),
            "{output}: {:?} {}",
            ended.code,
            ended.stderr
        );
        ended.one_cause();
        assert!(
            ended.took.as_secs() < 5,
            "{output}: told only after {:?}",
            ended.took
        );
        nothing_is_left(&work);
    }
}

#[test]
fn an_unreachable_registry() {
    let Some(machine) = machine("an_unreachable_registry", "small") else {
        return;
    };
    let work = Work::new();
    let ended = refused(
        &work,
        &machine.qcow2(),
        &["--base", "docker://127.0.0.1:1/debian:12"],
        7,
    );
    assert!(ended.took.as_secs() < 60, "{:?}", ended.took);
    assert!(ended.stderr.contains("127.0.0.1"), "{}", ended.stderr);
    // Offline and with an empty store there is no base: the way out is named.
    let mut command = work.vm2k(["convert", "--offline", "-o", &work.output("oci", "x")]);
    let offline = super::ended(command.arg(machine.qcow2()));
    assert!(matches!(offline.code, Some(1 | 2 | 4 | 7)), "{:?}", offline.code);
    offline.one_cause();
    assert!(offline.stderr.contains("--base"), "{}", offline.stderr);
    nothing_is_left(&work);
}

#[test]
fn a_broken_base() {
    let Some(machine) = machine("a_broken_base", "small") else {
        return;
    };
    let work = Work::new();
    let base = work.path("base");
    let spoil = [
        // A layer that is cut, one with another content, a manifest that is no JSON, no index, an unknown tag.
        (
            "truncate -s -1000 \"$(ls -S \"$1\"/blobs/sha256/* | head -1)\"",
            5,
        ),
        (
            "printf xxxx | dd of=\"$(ls -S \"$1\"/blobs/sha256/* | head -1)\" bs=1 seek=50000 conv=notrunc status=none",
            5,
        ),
        (
            "for f in $(ls -S \"$1\"/blobs/sha256/* | tail -2); do echo '{' > \"$f\"; done",
            5,
        ),
        ("rm \"$1/index.json\"", 1),
        ("rm -r \"$1\"", 1),
    ];
    for (script, code) in spoil {
        bash(
            r#"rm -rf "$2"; cp -r "$1" "$2"; chmod -R u+w,a+rX "$2""#,
            &[&machine.dir.join("base"), &base],
        );
        bash(script, &[&base]);
        let options = ["--base", &format!("oci:{}:bookworm", base.display())];
        let mut command = work.vm2k(["convert", "-o", &work.output("oci", "image")]);
        let ended = ended(command.arg(machine.qcow2()).args(options));
        assert!(
            ended.code == Some(code) || (code == 1 && matches!(ended.code, Some(2 | 5 | 6))),
            "{script}: {:?} {}",
            ended.code,
            ended.stderr
        );
        ended.one_cause();
        nothing_is_left(&work);
    }
}

#[test]
fn wrong_usage() {
    if !support::root("wrong_usage") {
        return;
    }
    let work = Work::new();
    for arguments in [
        &["convert"][..],
        &["convert", "disk", "--profile", "everything"],
        &["convert", "disk", "--no-such-option"],
        &["convert", "disk", "-o", "nonsense:x"],
        &["no-such-command"],
        &["ls", "disk", "--jobs", "none"],
        &[],
    ] {
        let ended = ended(&mut work.vm2k(arguments));
        ended.expect(2);
        assert!(ended.stdout.is_empty(), "{arguments:?}");
        assert!(!ended.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["convert", "--help"]] {
        let ended = ended(&mut work.vm2k(arguments));
        ended.expect(0);
        assert!(
            ended.stderr.is_empty() && !ended.stdout.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_rule_of_secrets_that_does_not_exist() {
    if !support::root("a_rule_of_secrets_that_does_not_exist") {
        return;
    }
    let work = Work::new();
    let machine = work.path("machine");
    bash(
        r#"mkdir -p "$1/etc" && echo ID=debian > "$1/etc/os-release""#,
        &[&machine],
    );
    let target = format!("dir:{}", machine.display());
    let plan = |rule: &str| {
        let arguments = ["plan", "--base", "none", "--allow-secrets", rule, &target];
        ended(&mut work.vm2k(arguments))
    };
    plan("ssh-host-key").expect(0);
    plan("all").expect(0);
    let wrong = plan("ssh-host-keys");
    wrong.expect(2);
    wrong.one_cause();
    assert!(
        wrong.stderr.contains("password-hash") && wrong.stderr.contains("ssh-host-key,"),
        "{}",
        wrong.stderr
    );
}

/// Damaged filesystems: no panic, no hang, memory bounded, and what cannot be read is never silently missing.
#[test]
fn hostile_filesystems_as_whole_processes() {
    let test = "hostile_filesystems_as_whole_processes";
    let Some(dir) = shared(test, "hostile/ext") else {
        return;
    };
    if !tools(test, &["zstd", "timeout", "debugfs"]) || !Path::new("/usr/bin/time").exists() {
        return support::skip(test, "zstd, timeout, debugfs or /usr/bin/time");
    }
    let mut images: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    images.retain(|p| p.is_file() && p.extension().is_none_or(|e| e != "md" && e != "json"));
    images.sort();
    assert!(images.len() > 50);
    let work = Work::new();
    let mut bad = Vec::new();
    for image in images {
        let name = image.file_name().unwrap().to_string_lossy().into_owned();
        let disk = if name.ends_with(".zst") {
            unzstd(&image, &work.path("out"))
        } else {
            image
        };
        let memory = work.path("memory");
        let ended = ended(
            Command::new("timeout")
                .args(["-s", "KILL", "20", "/usr/bin/time", "-q", "-f", "%M", "-o"])
                .arg(&memory)
                .args(["prlimit", "--as=4294967296"])
                .arg(program())
                .args(["ls", "--sha256", "--json"])
                .arg(&disk),
        );
        let kib: u64 = std::fs::read_to_string(&memory)
            .ok()
            .and_then(|t| t.lines().last()?.trim().parse().ok())
            .unwrap_or(u64::MAX);
        if !matches!(ended.code, Some(0 | 1 | 3 | 5 | 6)) || ended.stderr.contains("panicked") {
            bad.push(format!(
                "{name}: code {:?}: {}",
                ended.code,
                super::head(&ended.stderr)
            ));
        }
        if ended.took.as_secs() >= 10 {
            bad.push(format!("{name}: {:?}", ended.took));
        }
        if kib > 256 << 10 {
            bad.push(format!("{name}: {} MiB of memory", kib >> 10));
        }
        if ended.code != Some(0)
            && !ended
                .stderr
                .lines()
                .any(|l| l.starts_with("error: ") || l.starts_with("warning: "))
        {
            bad.push(format!("{name}: code {:?} and not a word of why", ended.code));
        }
        if disk.starts_with(work.path("")) {
            std::fs::remove_file(disk).unwrap();
        }
    }
    assert!(bad.is_empty(), "{} findings\n{}", bad.len(), bad.join("\n"));
}
