//! Deltas and the itemised diff, judged by rdiff(1) and rsync(1).

use crate::support::{bash, root, run, tools, vm2k};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use vm2k::delta::{Bundle, delta, patch, signature};
use vm2k::error::Error;
use vm2k::path::GuestPath;
use vm2k::read_at::ReadAt;

/// The same bytes on every machine.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    let word = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    word.flatten().take(len).collect()
}

/// Old and new contents: edits, insertions, moves, growth, shrinking, nothing.
fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
    let big = bytes(1, 3_000_000);
    let mut edited = big.clone();
    for at in [5, 700_000, 2_999_999] {
        edited[at] ^= 1;
    }
    let moved = [&big[1_000_000..], &bytes(2, 999)[..], &big[..1_000_000]].concat();
    vec![
        (big.clone(), edited),
        (big.clone(), moved),
        (big.clone(), big[..10_000].to_vec()),
        (big[..10_000].to_vec(), big.clone()),
        (vec![0; 500_000], vec![0; 500_001]),
        (Vec::new(), bytes(3, 5000)),
        (bytes(3, 5000), Vec::new()),
        (bytes(4, 100), bytes(5, 100)),
        (b"a".to_vec(), b"b".to_vec()),
    ]
}

#[test]
fn rdiff_and_we_read_each_other() {
    if !tools("delta::rdiff_and_we_read_each_other", &["rdiff", "cmp"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (number, (old, new)) in pairs().into_iter().enumerate() {
        std::fs::write(at("old"), &old).unwrap();
        std::fs::write(at("new"), &new).unwrap();
        let (mut sums, mut ours) = (Vec::new(), Vec::new());
        signature(&old, &mut sums).unwrap();
        delta(&sums, &new, &mut ours).unwrap();
        std::fs::write(at("sums"), &sums).unwrap();
        std::fs::write(at("ours"), &ours).unwrap();
        // Our delta in their patch; their delta over our signature; their delta over their signature in our patch.
        bash(
            "cd \"$1\"; rdiff --force patch old ours out; cmp out new
             rdiff --force delta sums new theirs; rdiff --force patch old theirs out; cmp out new
             rdiff --force signature old their-sums; rdiff --force delta their-sums new both",
            &[folder.path()],
        );
        for theirs in ["theirs", "both"] {
            let theirs = std::fs::read(at(theirs)).unwrap();
            let mut out = Vec::new();
            patch(&old, &theirs, new.len() as u64, &mut out).unwrap();
            assert!(out == new, "pair {number}");
        }
        let theirs = std::fs::read(at("both")).unwrap();
        eprintln!(
            "pair {number}: {} -> {} bytes, delta {}, that of rdiff {}",
            old.len(),
            new.len(),
            ours.len(),
            theirs.len()
        );
    }
}

struct Sides {
    folder: tempfile::TempDir,
}

impl Sides {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (number, (old, new)) in pairs().into_iter().enumerate() {
            for (side, content) in [("a", &old), ("b", &new)] {
                let dir = folder.path().join(side).join("data");
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join(format!("file {number}")), content).unwrap();
            }
        }
        bash(
            "cd \"$1\"; echo same | tee a/same >b/same; echo gone >a/gone; echo new >b/new
             ln -s x a/link; ln -s y b/link; ln -s z b/added; mkdir a/kind; echo f >b/kind
             find a b -exec touch -hd @1700000000 {} +",
            &[folder.path()],
        );
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn side(&self, name: &str) -> String {
        format!("dir:{}", self.path(name).display())
    }

    fn vm2k(&self, arguments: &[&str]) -> Output {
        vm2k()
            .arg("--store")
            .arg(self.path("store"))
            .args(arguments)
            .output()
            .unwrap()
    }

    fn bundle(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        let out = self.vm2k(&[
            "diff",
            &self.side("a"),
            &self.side("b"),
            "--delta",
            to.to_str().unwrap(),
        ]);
        assert_eq!(out.status.code(), Some(3), "{out:?}");
        to
    }
}

#[test]
fn a_bundle_makes_the_new_files() {
    if !tools("delta::a_bundle_makes_the_new_files", &["rdiff", "tar", "cmp"]) {
        return;
    }
    let sides = Sides::new();
    let json = sides.path("json.delta");
    let out = sides.vm2k(&[
        "diff",
        "--json",
        &sides.side("a"),
        &sides.side("b"),
        "--delta",
        json.to_str().unwrap(),
    ]);
    let document: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let number = |key: &str| document["delta"][key].as_u64().unwrap();
    assert_eq!(number("saved"), number("bytes") - number("deltas"));
    assert!(
        number("files") >= 5 && number("do_not_pay") >= 2,
        "{}",
        document["delta"]
    );
    assert!(number("deltas") * 3 < number("bytes"), "{}", document["delta"]);
    // The same bytes again.
    let bundle = sides.bundle("bundle");
    assert_eq!(std::fs::read(&bundle).unwrap(), std::fs::read(&json).unwrap());
    // GNU tar and rdiff agree, without us.
    bash(
        "cd \"$1\"; mkdir x; tar -C x -xf bundle
         python3 - <<'E' >list
import json
for f in json.load(open('x/index.json'))['files']: print(f['path'][1:], f['delta'], f['new']['digest'][7:], sep='\\t')
E
         while IFS=$'\\t' read -r path delta sum; do
             rdiff --force patch \"a/$path\" \"x/$delta\" rebuilt; cmp rebuilt \"b/$path\"; [ \"$(sha256sum <rebuilt)\" = \"$sum  -\" ]
         done <list",
        &[sides.folder.path()],
    );
    let out = sides.vm2k(&[
        "patch",
        bundle.to_str().unwrap(),
        &sides.side("a"),
        "-o",
        sides.path("out").to_str().unwrap(),
    ]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let made = std::fs::read_dir(sides.path("out/data"))
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let made: Vec<_> = made.collect();
    assert_eq!(made.len() as u64, number("files"));
    for name in &made {
        let new = std::fs::read(sides.path("b/data").join(name)).unwrap();
        assert!(
            std::fs::read(sides.path("out/data").join(name)).unwrap() == new,
            "{name:?}"
        );
    }
    // One by name; a directory that is not empty; a side that the bundle was not made from.
    let one = |output: &str, side: &str| {
        let output = sides.path(output);
        sides.vm2k(&[
            "patch",
            bundle.to_str().unwrap(),
            &sides.side(side),
            "/data/file 1",
            "-o",
            output.to_str().unwrap(),
        ])
    };
    assert_eq!(one("one", "a").status.code(), Some(0));
    assert!(sides.path("one/data/file 1").exists());
    assert_eq!(one("one", "a").status.code(), Some(2));
    let refused = one("other", "b");
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(
        std::fs::read_dir(sides.path("other/data")).map_or(0, Iterator::count) == 0,
        "something was left"
    );
}

/// Flipped and cut bundles are refused, or give the files that they state.
#[test]
fn damaged_bundles() {
    let sides = Sides::new();
    let bytes = std::fs::read(sides.bundle("bundle")).unwrap();
    let open = |bytes: Vec<u8>| Bundle::open(Arc::new(bytes));
    let whole = open(bytes.clone()).unwrap();
    let paths: Vec<GuestPath> = whole.files().map(|(path, _)| path.clone()).collect();
    let small: Vec<&GuestPath> = paths.iter().filter(|p| !p.to_string().ends_with('1')).collect();
    let old = |path: &GuestPath| {
        std::fs::read(sides.path("a").join(path.to_string().trim_start_matches('/'))).unwrap()
    };
    let olds: Vec<Vec<u8>> = small.iter().map(|p| old(p)).collect();
    let count: u64 = std::env::var("VM2K_TEST_MUTANTS").map_or(300, |n| n.parse::<u64>().unwrap().min(3000));
    let (mut refused, mut right) = (0, 0);
    for mutant in 0..count {
        let mut state = mutant.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
        };
        let mut bytes = bytes.clone();
        // Half of them in the index and the headers, which are a small part.
        let range = if random(2) == 0 { 8192 } else { bytes.len() };
        match random(4) {
            0 => bytes.truncate(random(range)),
            _ => (0..=random(4)).for_each(|_| {
                let at = random(range.min(bytes.len()));
                bytes[at] ^= 1 << random(8);
            }),
        }
        let Ok(bundle) = open(bytes) else {
            refused += 1;
            continue;
        };
        let chosen = random(small.len());
        let (path, old) = (small[chosen], &olds[chosen]);
        let mut out = Vec::new();
        match bundle.apply(path, old, &mut out) {
            // A digest of the index may have changed only together with the content.
            Ok(entry) => {
                assert_eq!(vm2k::digest::Digest::of(&out), entry.new.digest);
                right += 1;
            }
            Err(Error::Io { .. }) => panic!("mutant {mutant}"),
            Err(_) => refused += 1,
        }
    }
    eprintln!("{count} damaged bundles: {refused} refused, {right} gave what they state");
}

/// A delta of many gigabytes of holes needs no memory for them.
#[test]
fn large_files_are_streamed() {
    struct Zeros(u64);
    impl ReadAt for Zeros {
        fn len(&self) -> u64 {
            self.0
        }
        fn read_at(&self, _: u64, buf: &mut [u8]) -> vm2k::error::Result<()> {
            buf.fill(0);
            Ok(())
        }
    }
    let (mut sums, mut out) = (Vec::new(), Vec::new());
    signature(&Zeros(1 << 28), &mut sums).unwrap();
    // A signature grows with the root of the size.
    assert!(sums.len() < 1 << 20, "{}", sums.len());
    let (size, content) = delta(&sums, &Zeros((1 << 28) + 5), &mut out).unwrap();
    assert!(size < 1 << 20, "{size}");
    struct Count(u64);
    impl std::io::Write for Count {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0 += buf.len() as u64;
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Count(0);
    let made = patch(&Zeros(1 << 28), &out, 1 << 29, &mut counted).unwrap();
    assert_eq!((made, counted.0), (content, (1 << 28) + 5));
}

/// The lines of `vm2k diff` are those of `rsync --itemize-changes`, but for how it orders and what only rsync does.
#[test]
fn items_are_those_of_rsync() {
    const NAME: &str = "delta::items_are_those_of_rsync";
    if !tools(NAME, &["rsync", "setfacl", "setfattr"]) || !root(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    bash(
        "cd \"$1\"; mkdir a; cd a
         for f in same content size time mode owner group xattr acl all gone; do echo $f >$f; done
         mkdir dir gone-dir; echo x >gone-dir/x; ln -s x link; mkfifo pipe; mknod device c 1 3
         find . -exec touch -hd @1700000000 {} +; cd ..; cp -a a b; cd b
         printf 'CONTENT\\n' >content; echo longer >>size; touch -d @1700000001 time; chmod 600 mode; chown 7 owner; chgrp 7 group
         setfattr -n user.x -v y xattr; setfacl -m u:7:r acl; rm -r gone gone-dir; ln -sfn y link
         echo more >>all; chmod 711 all; chown 7:7 all; setfattr -n user.x -v y all
         echo new >new; mkdir new-dir; ln -s n new-link; mkfifo new-pipe; chmod 711 dir
         touch -d @1700000000 content size new-dir; touch -hd @1700000000 link; touch -d @1700000000 .; chmod --reference=../a .",
        &[folder.path()],
    );
    let at = |name: &str| folder.path().join(name);
    let lines = |out: Vec<u8>| -> Vec<String> {
        let text = String::from_utf8(out).unwrap();
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|l| {
                let (item, path) = l.split_once(' ')?;
                let path = path.trim().trim_start_matches("./").trim_matches('/');
                let path = path.split(" -> ").next().unwrap();
                (!path.is_empty() && path != ".").then(|| format!("{item} {path}"))
            })
            .collect();
        lines.sort();
        lines
    };
    // From the new side to a copy of the old one.
    let rsync = run(Command::new("rsync")
        .args(["-n", "-aAXHc", "--delete", "--itemize-changes", "--numeric-ids"])
        .arg(format!("{}/", at("b").display()))
        .arg(format!("{}/", at("a").display())));
    let mut command = vm2k();
    let ours = command.arg("--store").arg(at("store")).arg("diff");
    let ours = ours
        .arg(format!("dir:{}", at("a").display()))
        .arg(format!("dir:{}", at("b").display()))
        .output()
        .unwrap();
    let (theirs, ours) = (lines(rsync.stdout), lines(ours.stdout));
    eprintln!("{ours:#?}");
    // rsync marks what is deleted, linked and made without looking at the content its own way: only `Y` may differ there.
    let differing: Vec<_> = theirs
        .iter()
        .filter(|l| !ours.contains(l))
        .chain(ours.iter().filter(|l| !theirs.contains(l)))
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert!(ours.len() >= 16, "{ours:#?}");
}
