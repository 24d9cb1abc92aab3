//! What a TARGET on the command line means, and how it is opened.

use super::{Common, ui::Ui};
use crate::convert::known_contents;
use crate::diff::Known;
use crate::distro::Distros;
use crate::error::Error;
use crate::oci;
use crate::progress::Progress;
use crate::source::Source;
use crate::source::directory::Directory;
use crate::source::image::{Contents, ImageOptions, ImageSource};
use crate::source::machine::{Machine, MachineOptions};
use crate::store::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A TARGET.
enum Target {
    Disks(Vec<PathBuf>),
    Directory(PathBuf),
    Image(oci::Reference),
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
    if text.starts_with("ssh://") {
        return Err(Error::unsupported(format!(
            "{text}: this version reads disks, directories and images, not hosts"
        ))
        .hint("copy the machine's disk, or mount its root and use dir:PATH")
        .into());
    }
    let whole = Path::new(text);
    if whole.exists() {
        return Ok(Target::Disks(vec![whole.to_owned()]));
    }
    let disks: Vec<PathBuf> = text.split('+').map(PathBuf::from).collect();
    for disk in &disks {
        if let Err(e) = std::fs::metadata(disk) {
            return Err(Error::io(format!("opening {}", disk.display()), e)
                .hint("TARGET is a disk file, dir:PATH, or several disks of one machine: disk1.qcow2+disk2.qcow2")
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
