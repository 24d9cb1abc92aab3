//! What a TARGET on the command line means, and how it is opened.

use super::{Common, ui::Ui};
use crate::convert::known_contents;
use crate::diff::Known;
use crate::distro::Distros;
use crate::error::Error;
use crate::oci;
use crate::path::GuestPath;
use crate::progress::Progress;
use crate::source::Source;
use crate::source::directory::Directory;
use crate::source::host::{self, Host};
use crate::source::image::{Contents, ImageOptions, ImageSource};
use crate::source::machine::{Machine, MachineOptions};
use crate::ssh::Target as Place;
use crate::store::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A TARGET.
enum Target {
    Disks(Vec<PathBuf>),
    Directory(PathBuf),
    Image(oci::Reference),
    /// As the user wrote it, and what it means.
    Host(String, Place, GuestPath),
}

/// Endings of the names of disks: what ends so and is not there is a file that is missing, not a host.
const DISKS: &[&str] = &[
    "qcow2", "qcow", "img", "raw", "vmdk", "vdi", "vhd", "vhdx", "ova", "ovf", "iso", "gz", "xz", "zst",
    "bz2", "tar", "dd", "bin", "disk", "001",
];

/// A host as a word that is no file; `None` for what cannot be one.
fn bare_host(text: &str) -> Option<Place> {
    let (user, host) = match text.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, text),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let disk = host
        .rsplit_once('.')
        .is_some_and(|(_, ending)| DISKS.contains(&ending.to_ascii_lowercase().as_str()));
    let good = !host.is_empty() && host.chars().all(plain) && !host.starts_with(['-', '.']);
    let good_user = user.is_none_or(|u| !u.is_empty() && !u.starts_with('-') && !u.contains(['/', '+', ' ']));
    (good && good_user && !(disk && user.is_none())).then(|| Place {
        host: host.to_owned(),
        user: user.map(str::to_owned),
        port: None,
    })
}

/// `ssh://[user@]host[:port][/DIRECTORY]`, `text` being what follows `ssh://`.
fn address(text: &str) -> Option<(Place, GuestPath)> {
    let (address, dir) = match text.find('/') {
        Some(at) => text.split_at(at),
        None => (text, "/"),
    };
    let (user, rest) = match address.rsplit_once('@') {
        Some((user, rest)) => (Some(user.to_owned()), rest),
        None => (None, address),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some(""))?)
        }
        None => rest.split_once(':').unwrap_or((rest, "")),
    };
    let port = match port {
        "" => None,
        port => Some(port.parse().ok().filter(|p| *p > 0)?),
    };
    let good = |text: &str| !text.is_empty() && !text.starts_with('-') && !text.contains([' ', '\n', '\'']);
    let place = Place {
        host: host.to_owned(),
        user,
        port,
    };
    let fits = good(&place.host) && place.user.as_deref().is_none_or(good);
    Some((place, GuestPath::lenient(dir.as_bytes()).ok()?)).filter(|_| fits)
}

/// Bytes a second: a number, with K, M or G for powers of 1,024.
pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 1 << 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 1 << 30),
        _ => (Some(text), 1),
    };
    let number = digits
        .and_then(|d| d.parse::<u64>().ok())
        .and_then(|n| n.checked_mul(factor));
    number
        .filter(|n| *n > 0)
        .ok_or_else(|| "a number of bytes a second, as in 500K or 10M".to_owned())
}

/// A load in hundredths.
pub(super) fn parse_load(text: &str) -> Result<u32, String> {
    let load = text.parse::<f64>().ok().filter(|l| (0.01..10_000.0).contains(l));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "its range was checked"
    )]
    load.map(|l| (l * 100.0) as u32)
        .ok_or_else(|| "a load average, as in 1.5".to_owned())
}

/// Opens a running host.
fn open_host(
    common: &Common,
    name: String,
    place: &Place,
    root: &GuestPath,
    fresh: bool,
    ui: &Ui,
) -> anyhow::Result<Host> {
    if common.offline {
        return Err(Error::refused(format!("{name} is a host, and --offline forbids the network")).into());
    }
    let transport = super::ssh::open_transport(common, place, ui)?;
    let mut options = host::Options {
        name,
        root: root.clone(),
        one_filesystem: common.one_file_system,
        with_env: common.with_env,
        fresh,
        rate: common.bwlimit,
        load: common.max_load,
        agentless: common.agentless,
        ..host::Options::default()
    };
    if common.sudo_password_stdin {
        let mut line = zeroize::Zeroizing::new(String::new());
        std::io::stdin()
            .read_line(&mut line)
            .map_err(|e| Error::io("reading the password for sudo from stdin", e))?;
        let password = line.trim_end_matches(['\n', '\r']).to_owned();
        options.sudo = host::Sudo::Password(zeroize::Zeroizing::new(password));
    }
    Ok(Host::open(transport, &options, &*store(common)?, ui)?)
}

/// A machine that is open, and what later runs can know it by.
pub(super) struct Opened {
    pub(super) source: Box<dyn Source>,
    pub(super) identity: Option<String>,
}

/// The store that the options or the environment name.
pub(super) fn store(common: &Common) -> anyhow::Result<Arc<Store>> {
    let dir = common.store.clone().or_else(Store::default_dir);
    let dir = dir.ok_or_else(|| {
        Error::usage("there is no home directory for the store").hint("name one with --store DIR")
    })?;
    Ok(Arc::new(Store::open(&dir)?))
}

/// The descriptions of distributions, built in and added.
pub(super) fn distros(common: &Common) -> anyhow::Result<Distros> {
    Ok(Distros::load(common.distros.as_deref())?)
}

/// How the options say images are opened.
pub(super) fn image_options(common: &Common, store: &Arc<Store>) -> oci::OpenOptions {
    oci::OpenOptions {
        offline: common.offline,
        ..oci::OpenOptions::new(Arc::clone(store))
    }
}

fn parse(text: &str) -> anyhow::Result<Target> {
    if let Some(dir) = text.strip_prefix("dir:") {
        return Ok(Target::Directory(dir.into()));
    }
    if oci::Reference::has_transport(text) {
        return Ok(Target::Image(oci::Reference::parse(text)?));
    }
    if let Some(rest) = text.strip_prefix("ssh://") {
        let bad = || {
            Error::usage(format!("{text}: this is no address of a host"))
                .hint("write ssh://user@host:port, and /DIRECTORY behind it for a part of the host")
        };
        let (place, root) = address(rest).ok_or_else(bad)?;
        return Ok(Target::Host(text.to_owned(), place, root));
    }
    let whole = Path::new(text);
    if whole.exists() {
        return Ok(Target::Disks(vec![whole.to_owned()]));
    }
    if let Some(place) = bare_host(text) {
        return Ok(Target::Host(text.to_owned(), place, GuestPath::root()));
    }
    let disks: Vec<PathBuf> = text.split('+').map(PathBuf::from).collect();
    for disk in &disks {
        if let Err(e) = std::fs::metadata(disk) {
            return Err(Error::io(format!("opening {}", disk.display()), e)
                .hint("TARGET is a disk file, dir:PATH, a host, or several disks of one machine: disk1.qcow2+disk2.qcow2")
                .into());
        }
    }
    Ok(Target::Disks(disks))
}

fn machine_options(common: &Common, ui: &Ui) -> anyhow::Result<MachineOptions> {
    Ok(MachineOptions {
        root: common.root.clone(),
        snapshots: common.snapshots,
        allow_backing: common.allow_backing.clone(),
        keys: super::keys::keys(&common.key_file, ui)?,
    })
}

/// Opens an image and lists its files.
fn image(
    common: &Common,
    reference: &oci::Reference,
    options: ImageOptions,
    ui: &Ui,
) -> anyhow::Result<ImageSource> {
    let store = store(common)?;
    let image = oci::open(reference, &image_options(common, &store), ui)?;
    Ok(ImageSource::open(image, store, options, ui)?)
}

/// Opens an image that is to be judged: every byte of it is read now, nothing is taken from the store.
pub(super) fn judged(common: &Common, reference: &oci::Reference, ui: &Ui) -> anyhow::Result<ImageSource> {
    let options = ImageOptions {
        cached: false,
        keep: Contents::None,
        import: false,
    };
    image(common, reference, options, ui)
}

/// Opens a machine: something with an operating system.
pub(super) fn open_machine(common: &Common, text: &str, ui: &Ui) -> anyhow::Result<Opened> {
    open_machine_as(common, text, false, ui)
}

/// The same of a machine that an image is judged by: every byte of it is read now.
pub(super) fn open_judge(common: &Common, text: &str, ui: &Ui) -> anyhow::Result<Opened> {
    open_machine_as(common, text, true, ui)
}

fn open_machine_as(common: &Common, text: &str, fresh: bool, ui: &Ui) -> anyhow::Result<Opened> {
    let opened = match parse(text)? {
        Target::Disks(paths) => {
            let machine = Machine::open(&paths, &machine_options(common, ui)?, ui)?;
            let identity = machine.identity().map(str::to_owned);
            Opened {
                source: Box::new(machine),
                identity,
            }
        }
        Target::Directory(path) => Opened {
            source: Box::new(Directory::open(&path)?),
            identity: None,
        },
        Target::Image(reference) => Opened {
            source: Box::new(image(common, &reference, ImageOptions::default(), ui)?),
            identity: None,
        },
        Target::Host(name, place, root) => Opened {
            source: Box::new(open_host(common, name, &place, &root, fresh, ui)?),
            identity: None,
        },
    };
    warn_of_problems(&*opened.source, ui);
    Ok(opened)
}

/// Opens anything that has files; no operating system is needed.
pub(super) fn open_any(common: &Common, text: &str, ui: &Ui) -> anyhow::Result<Box<dyn Source>> {
    Ok(match parse(text)? {
        Target::Disks(paths) => Box::new(Machine::open_any(&paths, &machine_options(common, ui)?, ui)?),
        Target::Directory(path) => Box::new(Directory::open(&path)?),
        Target::Image(reference) => Box::new(image(common, &reference, ImageOptions::default(), ui)?),
        Target::Host(name, place, root) => Box::new(open_host(common, name, &place, &root, true, ui)?),
    })
}

/// Opens one side of a comparison, with the content hashes that are known without reading.
pub(super) fn open_side(common: &Common, text: &str, ui: &Ui) -> anyhow::Result<(Box<dyn Source>, Known)> {
    if let Target::Image(reference) = parse(text)? {
        let source = judged(common, &reference, ui)?;
        let known = known_contents(&source);
        return Ok((Box::new(source), known));
    }
    Ok((open_any(common, text, ui)?, Known::new()))
}

fn warn_of_problems(source: &dyn Source, ui: &Ui) {
    for problem in source.problems() {
        ui.warn(&format!("{}: {}", problem.path, problem.what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_host_and_what_is_a_file() {
        let place = |host: &str, user: Option<&str>, port| Place {
            host: host.to_owned(),
            user: user.map(str::to_owned),
            port,
        };
        for (text, wanted, dir) in [
            ("web1", place("web1", None, None), "/"),
            ("root@web1:2222", place("web1", Some("root"), Some(2222)), "/"),
            ("a@b@web1/srv/x/", place("web1", Some("a@b"), None), "/srv/x"),
            ("[::1]:22/", place("::1", None, Some(22)), "/"),
            ("[fe80::1]", place("fe80::1", None, None), "/"),
        ] {
            let (found, root) = address(text).unwrap();
            assert_eq!((found, root.to_string().as_str()), (wanted, dir), "{text}");
        }
        for text in [
            "",
            "@web",
            "web:0",
            "web:x",
            "web:99999",
            "-oProxyCommand=x",
            "[::1",
            "[::1]x",
            "a b",
            "-l@web",
            "web/../x",
        ] {
            assert!(address(text).is_none(), "{text}");
        }
        assert_eq!(
            bare_host("root@web1.example"),
            Some(place("web1.example", Some("root"), None))
        );
        assert_eq!(bare_host("web1"), Some(place("web1", None, None)));
        for text in [
            "disk.qcow2",
            "a.IMG",
            "a/b",
            "x+y",
            "",
            "-x",
            ".hidden",
            "a b",
            "@web",
            "-l@web",
        ] {
            assert_eq!(bare_host(text), None, "{text}");
        }
        assert_eq!(parse_rate("10M"), Ok(10 << 20));
        assert!(parse_rate("0").is_err() && parse_rate("x").is_err() && parse_rate("99999999999G").is_err());
        assert_eq!(parse_load("1.5"), Ok(150));
        assert!(parse_load("0").is_err() && parse_load("nan").is_err());
    }
}
