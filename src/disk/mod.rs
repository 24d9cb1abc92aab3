//! Disk images: a file of the host in, the bytes of a disk out. Nothing is ever written.
//!
//! [`FORMATS`] is the list of what is known. A format that is recognised and cannot be read is refused by its name.
//! Which further files an image may open is the [`Gate`]'s decision. `docs/disks.md` has the details.
#![deny(clippy::indexing_slicing)]

mod blocks;
mod gate;
mod ova;
mod packed;
pub mod qcow2;
mod split;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use gate::{Gate, MAX_CHAIN};

use crate::bytes::{array, be32, le32};
use crate::error::{Error, Result};
use crate::progress::{Progress, Silent};
use crate::read_at::{ReadAt, read_vec};
use gate::{Chain, Image};
use std::path::Path;
use std::sync::Arc;

/// An opened disk.
pub struct Disk {
    /// The bytes that the machine sees.
    pub data: Arc<dyn ReadAt>,
    /// The name of its format in [`FORMATS`].
    pub format: &'static str,
    /// What is worth telling, as in `internal snapshots: 2, the active layer is read`.
    pub notes: Vec<String>,
}

/// A machine's disks, in the order in which they are attached, and its hardware where the file tells of it.
pub struct Machine {
    /// At least one.
    pub disks: Vec<AttachedDisk>,
    /// What an OVF says; nothing for other formats.
    pub hardware: Hardware,
}

/// A disk of a [`Machine`].
pub struct AttachedDisk {
    /// The name of the file inside the archive; empty if the machine is one disk in one file.
    pub name: String,
    /// The disk.
    pub disk: Disk,
}

/// The hardware of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    /// What the machine is called.
    pub name: Option<String>,
    /// How many processors it has.
    pub cpus: Option<u32>,
    /// Its memory in bytes.
    pub memory: Option<u64>,
    /// The operating system that is said to be on it.
    pub os: Option<String>,
}

impl Machine {
    fn one(disk: Disk) -> Self {
        Self {
            disks: vec![AttachedDisk {
                name: String::new(),
                disk,
            }],
            hardware: Hardware::default(),
        }
    }

    /// The one disk.
    fn into_one(self) -> Result<Disk> {
        let count = self.disks.len();
        match self.disks.into_iter().next() {
            Some(only) if count == 1 => Ok(only.disk),
            _ => Err(Error::unsupported(format!(
                "a machine of {count} disks, where one disk is needed"
            ))),
        }
    }
}

/// What formats are told from: both ends of a file and its length.
pub struct Ends {
    /// The first 4,096 bytes, or all there are.
    pub first: Vec<u8>,
    /// The last 512 bytes, or all there are.
    pub last: Vec<u8>,
    /// The length of the file in bytes.
    pub len: u64,
}

/// A format of disk images.
pub struct Row {
    /// The name that `qemu-img -f` uses, where it knows the format.
    pub name: &'static str,
    /// Whether a file is of this format. The rows are asked in order.
    pub probe: fn(&Ends) -> bool,
    open: Open,
}

impl Row {
    /// True if disks of this format can be read.
    pub fn is_read(&self) -> bool {
        !matches!(self.open, Open::Refuse(_))
    }
}

enum Open {
    /// Reads the disk.
    With(fn(Image, &mut Chain<'_>) -> Result<Disk>),
    /// Reads a machine of several disks.
    Machine(fn(Image, &mut Chain<'_>) -> Result<Machine>),
    /// Unpacks it, and reads what is inside.
    Unpack(packed::Codec),
    /// Refuses it and gives this advice.
    Refuse(&'static str),
}

const CONVERT: &str = "convert it first: qemu-img convert -O qcow2 IMAGE IMAGE.qcow2";

/// Every format that is known, `raw` last because any bytes are a raw disk.
pub const FORMATS: &[Row] = &[
    Row {
        name: "qcow2",
        probe: |e| e.first.starts_with(qcow2::MAGIC) && be32(&e.first, 4).is_some_and(|v| v >= 2),
        open: Open::With(qcow2::open),
    },
    Row {
        name: "qcow",
        probe: |e| e.first.starts_with(qcow2::MAGIC),
        open: Open::Refuse(CONVERT),
    },
    Row {
        name: "vmdk",
        probe: |e| vmdk::probe(&e.first),
        open: Open::With(vmdk::open),
    },
    Row {
        name: "vhdx",
        probe: |e| e.first.starts_with(vhdx::MAGIC),
        open: Open::With(vhdx::open),
    },
    Row {
        name: "vpc",
        probe: |e| vhd::probe(&e.first, &e.last, e.len),
        open: Open::With(vhd::open),
    },
    Row {
        name: "vdi",
        probe: |e| le32(&e.first, 0x40) == Some(vdi::SIGNATURE),
        open: Open::With(vdi::open),
    },
    Row {
        name: "qed",
        probe: |e| e.first.starts_with(b"QED\0"),
        open: Open::Refuse(CONVERT),
    },
    Row {
        name: "ova",
        probe: |e| array(&e.first, 257) == Some(*b"ustar"),
        open: Open::Machine(ova::open),
    },
    Row {
        name: "ovf",
        probe: |e| ova::is_ovf(&e.first),
        open: Open::Machine(ova::open_descriptor),
    },
    Row {
        name: "gzip",
        probe: |e| e.first.starts_with(&[0x1f, 0x8b, 8]),
        open: Open::Unpack(packed::Codec::Gzip),
    },
    Row {
        name: "xz",
        probe: |e| e.first.starts_with(b"\xfd7zXZ\0"),
        open: Open::Unpack(packed::Codec::Xz),
    },
    Row {
        name: "zstd",
        probe: |e| e.first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
        open: Open::Unpack(packed::Codec::Zstd),
    },
    Row {
        name: "raw",
        probe: |_| true,
        open: Open::With(raw),
    },
];

/// Opens the disk image at `path`, whatever its format.
///
/// # Errors
/// As [`open_machine`]; [`Error::Unsupported`] if there are several disks in it.
pub fn open(path: &Path, gate: &Gate) -> Result<Disk> {
    open_machine(path, gate, &Silent)?.into_one()
}

/// Opens all disks that are in the file at `path`, whatever its format.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened, [`Error::Usage`] if it is a directory, [`Error::Unsupported`] naming a format or
/// feature that is not read, [`Error::Refused`] if it names further files that `gate` does not let through,
/// [`Error::Corrupt`] if its tables break the rules of its format.
pub fn open_machine(path: &Path, gate: &Gate, progress: &dyn Progress) -> Result<Machine> {
    let (mut chain, image) = Chain::start(path, gate)?;
    chain.progress = progress;
    let (image, note) = split::joined(image, &mut chain)?;
    let mut machine = whole(image, &mut chain)?;
    if let Some(first) = machine.disks.first_mut() {
        first.disk.notes.extend(note);
    }
    Ok(machine)
}

/// Opens `image` as the format that it looks like.
fn whole(image: Image, chain: &mut Chain<'_>) -> Result<Machine> {
    let ends = ends(&*image.file)?;
    let row = FORMATS
        .iter()
        .find(|row| (row.probe)(&ends))
        .ok_or_else(|| Error::unsupported(format!("{} is no disk image", image.name)))?;
    match row.open {
        Open::Machine(_) if image.nested => Err(Error::unsupported(format!(
            "{}: an archive inside an archive",
            image.name
        ))),
        Open::Machine(open) => open(image, chain),
        Open::Unpack(codec) => whole(packed::unpack(image, codec, chain)?, chain),
        _ => open_row(row, image, chain).map(Machine::one),
    }
}

/// Opens `image` as the format that another image states for it; it is never guessed there, because the guest can
/// write any magic number into a raw disk.
fn open_as(format: &str, image: Image, chain: &mut Chain<'_>) -> Result<Disk> {
    match FORMATS.iter().find(|row| row.name == format) {
        Some(row) => open_row(row, image, chain),
        None => Err(Error::unsupported(format!(
            "{}: the disk format {format:?}",
            image.name
        ))),
    }
}

fn open_row(row: &Row, image: Image, chain: &mut Chain<'_>) -> Result<Disk> {
    match row.open {
        Open::With(open) => open(image, chain),
        Open::Refuse(hint) => {
            Err(Error::unsupported(format!("{}: the disk format {}", image.name, row.name)).hint(hint))
        }
        Open::Machine(_) | Open::Unpack(_) => Err(Error::unsupported(format!(
            "{}: the disk format {} behind another image",
            image.name, row.name
        ))),
    }
}

fn raw(image: Image, _: &mut Chain<'_>) -> Result<Disk> {
    Ok(Disk {
        data: image.file,
        format: "raw",
        notes: Vec::new(),
    })
}

fn ends(file: &dyn ReadAt) -> Result<Ends> {
    let len = file.len();
    let part = |want: u64| usize::try_from(want.min(len)).unwrap_or(0);
    let last = part(512);
    Ok(Ends {
        first: read_vec(file, 0, part(4096))?,
        last: read_vec(file, len.saturating_sub(last as u64), last)?,
        len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format_of(bytes: &[u8]) -> &'static str {
        let ends = ends(&bytes.to_vec()).unwrap();
        FORMATS.iter().find(|row| (row.probe)(&ends)).unwrap().name
    }

    #[test]
    fn formats_are_told_from_both_ends() {
        assert_eq!(format_of(b""), "raw");
        assert_eq!(format_of(b"hello"), "raw");
        assert_eq!(format_of(b"QFI\xfb\0\0\0\x03"), "qcow2");
        assert_eq!(format_of(b"QFI\xfb\0\0\0\x01"), "qcow");
        assert_eq!(format_of(b"QFI\xfb"), "qcow");
        assert_eq!(format_of(b"# Disk DescriptorFile\nversion=1\n"), "vmdk");
        assert_eq!(format_of(b"\xbe\xba\xfe\xca\0\0\0\0"), "vmdk");
        assert_eq!(format_of(b"conectix"), "vpc");
        let ovf = b"<?xml version=\"1.0\"?>\n<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\">";
        assert_eq!(format_of(ovf), "ovf");
        assert_eq!(format_of(b"<html>Envelope"), "raw");
    }

    #[test]
    fn only_the_last_row_takes_any_bytes() {
        let nothing = ends(&Vec::new()).unwrap();
        assert_eq!(FORMATS.iter().filter(|row| (row.probe)(&nothing)).count(), 1);
        assert_eq!(FORMATS.last().unwrap().name, "raw");
    }
}
