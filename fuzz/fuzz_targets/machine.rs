//! Invariant: whatever the bytes of a machine's disks are, its filesystems are found and put together as one tree, or
//! refused, without a panic. Checksums are made right first. The passphrase is "x".
#![no_main]

use vm2k::progress::Silent;
use vm2k::source::Source;
use vm2k::source::machine::{Machine, MachineOptions};
use vm2k::volume::{Keys, Limits, Secret};
use vm2k_fuzz::{read, sign};

const DISKS: [&str; 4] = ["a.img", "b.img", "c.img", "d.img"];

vm2k_fuzz::image_target!(|image| {
    let mut image = image;
    for disk in &mut image.volumes {
        sign::gpt(disk);
        sign::member(disk);
        sign::btrfs(disk);
    }
    let mut keys = Keys::new(vec![Secret::new(b"x".to_vec())], None);
    keys.limits = Limits { memory: 256, passes: 1024, iterations: 1000 };
    let options = MachineOptions { keys, ..MachineOptions::default() };
    let count = image.volumes.len().min(DISKS.len());
    if image.write(&DISKS).is_some()
        && let paths = DISKS[..count].iter().map(|name| read::dir().join(name)).collect::<Vec<_>>()
        && let Ok(machine) = Machine::open(&paths, &options, &Silent)
    {
        for (_, node) in machine.tree().iter().filter(|(_, n)| n.is_file()).take(200) {
            let _ = machine.open(node.id).and_then(|content| vm2k::read_at::read_all(&*content, 1 << 20));
        }
    }
});
