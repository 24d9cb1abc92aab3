//! FAT12, FAT16 and FAT32 against mtools and damage.

use crate::filesystem::*;
use crate::kernel;
use crate::support::{self, bash, tools};
use std::path::Path;

const TOOLS: &[&str] = &["mkfs.vfat", "mcopy", "mattrib", "mdel", "mmd"];

/// Options of mkfs.vfat and the size of the volume.
const MATRIX: &[(&str, &str)] = &[
    ("-F 12 -s 8", "8M"),
    ("-F 12 -S 1024 -f 1", "4M"),
    ("-F 16 -n LABEL", "32M"),
    ("-F 16 -s 64 -R 8", "256M"),
    ("-F 32 -s 1", "48M"),
    ("-F 32 -s 1 -S 4096 -n BOOT", "300M"),
];

/// Fills image `$1` by way of directory `$2`.
const FILL: &str = r#"
export LC_ALL=C.UTF-8 TZ=UTC MTOOLS_SKIP_CHECK=1
mkdir -p "$2/EFI/BOOT" "$2/lower" "$2/a directory with a long name/deeper" "$2/many"; cd "$2"
for n in 0 1 511 512 513 4096 70000 300000; do head -c $n /dev/urandom > size-$n; done
echo boot > EFI/BOOT/BOOTX64.EFI; echo u > 'grüße ∞ 漢字 😀.txt'; echo s > lower/short.txt; echo m > Mixed.Txt; echo U > UPPER.TXT
echo l > "$(printf 'l%.0s' $(seq 250)).x"; echo d > .hidden; echo t > 'two.dots.conf'; echo p > 'plus+comma,semi;=[]'
for i in $(seq 150); do echo $i > many/entry-number-$i; done
touch -d '1980-01-01 00:00:00' size-0; touch -d '2000-02-29 13:14:16' UPPER.TXT; touch -d '2099-12-31 23:59:58' Mixed.Txt
mcopy -i "$1" -s -m -Q * .hidden ::
# Chains in pieces.
for i in 3 5 7 90 91; do mdel -i "$1" ::/many/entry-number-$i; done; mdel -i "$1" ::/size-70000
head -c 200000 /dev/urandom > in-pieces; mcopy -i "$1" in-pieces ::/many/
mattrib -i "$1" +r +h ::/size-513
"#;

#[test]
fn what_mtools_writes_is_read_right() {
    let test = "what_mtools_writes_is_read_right";
    if !tools(test, TOOLS) {
        return;
    }
    for (options, size) in MATRIX {
        let temp = support::scratch(1 << 30);
        let (image, source, out) = (
            temp.path().join("image"),
            temp.path().join("source"),
            temp.path().join("out"),
        );
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&out).unwrap();
        assert!(run_ok("truncate", &["-s", size], &image));
        let words: Vec<&str> = options.split(' ').collect();
        assert!(run_ok("mkfs.vfat", &words, &image), "{options}");
        bash(FILL, &[&image, &source]);
        bash(
            "export LC_ALL=C.UTF-8 TZ=UTC MTOOLS_SKIP_CHECK=1; mcopy -i \"$1\" -s -m -n -Q ::/ \"$2\"",
            &[&image, &out],
        );
        let (ours, listing) = ours(&image);
        assert_eq!(listing.problems, [], "{options}");
        let theirs = kernel::tree_of(&out);
        let paths = |seen: &[kernel::Seen]| seen.iter().map(|s| s.path.to_string()).collect::<Vec<_>>();
        assert_eq!(paths(&ours), paths(&theirs), "{options}");
        assert!(ours.len() > 160, "{options}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let at = format!("{options}: {}", ours.path);
            assert_eq!(
                (&ours.node.kind, &ours.content),
                (&theirs.node.kind, &theirs.content),
                "{at}"
            );
            if ours.node.is_file() {
                assert_eq!(ours.node.mtime.sec, theirs.node.mtime.sec, "{at}");
                let mode = if ours.path.as_bytes() == b"/size-513" {
                    0o555
                } else {
                    0o755
                };
                assert_eq!(
                    (ours.node.mode, ours.node.uid, ours.node.nlink),
                    (mode, 0, 1),
                    "{at}"
                );
            }
        }
        let root = ours.first().unwrap();
        // ., .., EFI, lower, many and the one with a long name, as Linux counts them.
        assert_eq!(
            (root.node.mode, root.node.nlink, root.node.id.ino),
            (0o755, 6, 1),
            "{options}"
        );
        let unique: std::collections::HashSet<_> = ours.iter().map(|s| s.node.id).collect();
        assert_eq!(unique.len(), ours.len(), "{options}: ids");
    }
}

#[test]
fn fat_mutants_neither_panic_nor_hang() {
    let test = "vfat mutants";
    if !tools(test, TOOLS) {
        return;
    }
    let temp = support::scratch(1 << 30);
    let mut opened = 0;
    for (number, (options, size)) in [("-F 12 -s 2", "1M"), ("-F 16 -s 1", "3M"), ("-F 32 -s 1", "34M")]
        .iter()
        .enumerate()
    {
        let image = temp.path().join(number.to_string());
        assert!(run_ok("truncate", &["-s", size], &image));
        assert!(run_ok(
            "mkfs.vfat",
            &options.split(' ').collect::<Vec<_>>(),
            &image
        ));
        let fill = r#"
        export LC_ALL=C.UTF-8 MTOOLS_SKIP_CHECK=1; D=$(mktemp -d); mkdir -p $D/a/b/c $D/many; echo x > $D/a/b/c/file
        head -c 90000 /dev/urandom > $D/data; for i in $(seq 60); do echo $i > $D/many/a-longer-name-of-entry-$i; done
        mcopy -i "$1" -s -Q $D/* ::; rm -r $D"#;
        bash(fill, &[Path::new(&image)]);
        let seed = std::fs::read(&image).unwrap();
        for n in 0..mutants() {
            opened += u64::from(read_everything(
                &format!("mutant {n} of {options}"),
                mutant(&seed, n),
            ));
        }
    }
    eprintln!("{test}: {opened} mutants opened and were read");
    assert!(opened > 0);
}
