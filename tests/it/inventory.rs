//! What a machine says of itself, against real inputs and against the distributions' own tools.

use crate::support::shared;
use std::collections::BTreeMap;
use vm2k::distro::Distros;
use vm2k::inventory::os::Os;

/// Packaging families by the beginning of the name that the file's collector gave it. What is not listed is of a kind
/// that no container has and is only read.
const FAMILIES: &[(&str, &[&str])] = &[
    (
        "debian",
        &[
            "debian",
            "ubuntu",
            "lubuntu",
            "linuxmint",
            "raspbian",
            "kali",
            "parrot",
            "pop",
            "neon",
            "zorin",
            "devuan",
            "cumulus",
            "xbian",
            "gardenlinux",
            "bodhi",
            "endless",
            "gnoppix",
            "pika",
            "tails",
            "trisquel",
            "vanillaos",
        ],
    ),
    (
        "rhel",
        &[
            "alma",
            "amazon",
            "amzn",
            "centos",
            "clearos",
            "fedora",
            "discontinued__centos",
            "discontinued__virtuozzo",
            "oracle",
            "ol__",
            "redhat",
            "rhel",
            "rocky",
            "scientific",
            "xcp-ng",
            "XCP-ng",
            "xenenterprise",
            "openeuler",
            "nobara",
            "aurora",
            "bazzite",
            "bluefin",
            "ultramarine",
            "miraclelinux",
            "cbl-mariner",
            "photon",
        ],
    ),
    ("suse", &["opensuse", "sled", "sles", "suse"]),
    ("alpine", &["alpine", "postmarketos"]),
    (
        "arch",
        &[
            "antergos",
            "manjaro",
            "endeavouros",
            "cachyos",
            "artix",
            "blendos",
            "garuda",
            "hyperbola",
            "kaos",
            "discontinued__arcolinux",
        ],
    ),
    ("mageia", &["mageia", "openmandriva"]),
    ("gentoo", &["gentoo", "funtoo"]),
    ("slackware", &["slackware"]),
];

#[test]
fn os_release_files_of_a_hundred_distributions() {
    let Some(folder) = shared("inventory::os_release", "os-release") else {
        return;
    };
    let distros = Distros::load(None).unwrap();
    let (mut files, mut judged, mut wrong, mut unknown) = (0, 0, Vec::new(), Vec::new());
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        files += 1;
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let os = Os::from_os_release(&std::fs::read(&path).unwrap(), &distros);
        assert!(os.id.is_some() || os.name.is_some(), "{file} was not read");
        if os.family.is_none() {
            unknown.push(file.clone());
        }
        let name = file.split_once("__").unwrap().1;
        let expected = FAMILIES.iter().find(|(_, names)| {
            let longest = names.iter().filter(|n| name.starts_with(**n));
            longest.count() > 0
        });
        let Some((family, _)) = expected else { continue };
        judged += 1;
        if os.family.as_deref() != Some(*family) {
            wrong.push(format!("{file}: {:?}, not {family}", os.family));
        }
    }
    eprintln!("{files} files, {judged} judged, wrong: {wrong:?}, without a family: {unknown:?}");
    assert!(judged > 200, "only {judged} judged");
    assert!(wrong.len() * 100 <= judged * 2, "{wrong:#?}");
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn each_embedded_distribution_is_its_own_match() {
    let distros = Distros::load(None).unwrap();
    let mut families: BTreeMap<&str, usize> = BTreeMap::new();
    for distro in distros.iter() {
        *families.entry(&distro.family).or_default() += 1;
        let (found, own) = distros.lookup(&distro.id, &[]).unwrap();
        assert!(own && found.id == distro.id, "{}", distro.id);
        for release in &distro.releases {
            let mut text = format!("ID={}\n", distro.id);
            match (&release.version, &release.codename) {
                (Some(version), _) if version != "*" => text.push_str(&format!("VERSION_ID={version}\n")),
                (None, Some(codename)) => text.push_str(&format!("VERSION_CODENAME={codename}\n")),
                _ => {}
            }
            let os = Os::from_os_release(text.as_bytes(), &distros);
            let base = distros.base_for(&os);
            assert_eq!(
                base.reference, release.image,
                "{} {:?}",
                distro.id, release.version
            );
            assert!(base.exact);
            assert_eq!(os.end_of_life, release.end_of_life);
        }
        for near in &distro.nearest {
            let other = distros
                .get(&near.id)
                .unwrap_or_else(|| panic!("{}: no {}", distro.id, near.id));
            if let Some(release) = &near.release {
                assert!(
                    other.release(Some(release), None).is_some(),
                    "{}: {release}",
                    distro.id
                );
            }
        }
    }
    assert!(families["debian"] > 10 && families["rhel"] > 10);
}

/// All knowledge of distributions is in `distros/`: their names stand in no string of the program.
#[test]
fn no_distribution_is_named_in_the_source() {
    const NAMES: &[&str] = &[
        "debian",
        "ubuntu",
        "fedora",
        "centos",
        "redhat",
        "red hat",
        "rhel",
        "suse",
        "alpine",
        "archlinux",
        "manjaro",
        "gentoo",
        "slackware",
        "mageia",
        "rocky",
        "almalinux",
        "amazon linux",
        "bookworm",
        "jammy",
    ];
    let mut found = Vec::new();
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests stand at the end of a file.
            let code = text.split("#[cfg(test)]").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap().to_lowercase();
                if NAMES.iter().any(|name| line.contains(name)) {
                    found.push(format!("{}:{}: {line}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
