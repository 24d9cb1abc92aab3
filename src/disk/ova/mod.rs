//! A machine in one archive: OVA, a tar of an OVF descriptor, a manifest and disks; and an OVF with its files beside it
//! (DMTF DSP0243). Disks are read in place, where they lie in the tar.

mod manifest;
mod ovf;

use super::blocks::{CUT, Joined, Zeros};
use super::gate::{Chain, Image};
use super::{AttachedDisk, Disk, Hardware, Machine, whole};
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, Slice, read_all};
use crate::tar::{Entry, Input, Reader, Type};
use ovf::{Ovf, OvfDisk};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

/// The most members of a tar.
const MAX_MEMBERS: usize = 10_000;

/// True if a file that begins with `first` is an OVF descriptor.
pub(super) fn is_ovf(first: &[u8]) -> bool {
    let has = |text: &[u8]| first.windows(text.len()).any(|w| w == text);
    let start = first
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(first)
        .trim_ascii_start();
    start.starts_with(b"<") && has(b"Envelope") && has(b"/ovf/envelope")
}

/// Opens the tar `image`.
///
/// # Errors
/// As [`super::open`]; [`Error::Corrupt`] if a file has another digest than the manifest says.
pub(super) fn open(image: Image, chain: &mut Chain<'_>) -> Result<Machine> {
    let members = members(&image)?;
    let member = |name: &str| -> Option<Image> {
        let file = members.get(name).or_else(|| members.get(&decoded(name)))?;
        Some(Image {
            file: Arc::clone(file),
            path: image.path.clone(),
            name: format!("{}/{}", image.name, Escaped(name.as_bytes())),
            sealed: true,
            unpacked: image.unpacked,
            nested: true,
        })
    };
    let ending = |end: &str| {
        let mut found = members.keys().filter(|n| n.to_ascii_lowercase().ends_with(end));
        (found.next(), found.next())
    };
    let ovf = match ending(".ovf") {
        (Some(ovf), None) => ovf,
        (Some(_), Some(_)) => {
            return Err(Error::unsupported(format!(
                "{}: a tar with several OVF descriptors",
                image.name
            )));
        }
        (None, _) => return plain(&image, &members, member, chain),
    };
    let package = Package {
        name: &image.name,
        find: &mut |name: &str, _: &mut Chain<'_>| Ok(member(name)),
        manifest: ending(".mf").0.cloned(),
        ovf,
    };
    package.open(chain)
}

/// Opens the OVF descriptor `image`, whose files lie beside it.
///
/// # Errors
/// As [`super::open`]; [`Error::Corrupt`] if a file has another digest than the manifest says.
pub(super) fn open_descriptor(image: Image, chain: &mut Chain<'_>) -> Result<Machine> {
    let file_name = image
        .path
        .file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let manifest = image.path.with_extension("mf");
    let manifest = manifest.exists().then(|| manifest.file_name()).flatten();
    let package = Package {
        name: &image.name,
        ovf: &file_name,
        manifest: manifest.map(|n| n.to_string_lossy().into_owned()),
        find: &mut |name: &str, chain: &mut Chain<'_>| {
            if name == file_name {
                return Ok(Some(Image {
                    file: Arc::clone(&image.file),
                    path: image.path.clone(),
                    name: image.name.clone(),
                    sealed: image.sealed,
                    unpacked: image.unpacked,
                    nested: true,
                }));
            }
            let decoded = decoded(name);
            match chain.follow_extent(&image, "file", name.as_bytes()) {
                Err(Error::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound && decoded != name =>
                {
                    chain.follow_extent(&image, "file", decoded.as_bytes()).map(Some)
                }
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
                result => result.map(Some),
            }
        },
    };
    package.open(chain)
}

/// Looks up a file of a package by its name; `None` if there is none.
type Find<'a> = dyn FnMut(&str, &mut Chain<'_>) -> Result<Option<Image>> + 'a;

/// An OVF descriptor and how to find the files that belong to it.
struct Package<'a> {
    name: &'a str,
    ovf: &'a str,
    manifest: Option<String>,
    find: &'a mut Find<'a>,
}

impl Package<'_> {
    fn open(self, chain: &mut Chain<'_>) -> Result<Machine> {
        let named = |e: Error| e.within(self.name);
        let missing = |what: &str| named(Error::corrupt(format!("{what} is missing"), 0).hint(CUT));
        let descriptor = (self.find)(self.ovf, chain)?.ok_or_else(|| missing("the OVF descriptor"))?;
        let ovf = Ovf::from_bytes(&read_all(&*descriptor.file, ovf::MAX_LEN)?).map_err(named)?;
        let mut notes = Vec::new();
        let mut files = Vec::new();
        for disk in &ovf.disks {
            let file = match &disk.href {
                None => None,
                Some(href) => {
                    let file = (self.find)(href, chain)?;
                    Some(file.ok_or_else(|| missing(&format!("the file {href:?} of disk {:?}", disk.id)))?)
                }
            };
            files.push(file);
        }
        // Before anything is believed, all is compared.
        if let Some(manifest) = &self.manifest {
            let text = (self.find)(manifest, chain)?.ok_or_else(|| missing("the manifest"))?;
            let lines = manifest::lines(&read_all(&*text.file, manifest::MAX_LEN)?).map_err(named)?;
            for (disk, _) in ovf.disks.iter().zip(&files).filter(|(_, f)| f.is_some()) {
                let href = disk.href.as_deref().unwrap_or_default();
                if !lines.iter().any(|l| l.file == href || l.file == decoded(href)) {
                    notes.push(format!("{}: the manifest has no digest of {href:?}", self.name));
                }
            }
            let mut listed = Vec::new();
            for line in lines {
                match (self.find)(&line.file, chain)? {
                    Some(file) => listed.push((line, file.file)),
                    None => notes.push(format!(
                        "{}: the manifest names {:?}, which is missing",
                        self.name, line.file
                    )),
                }
            }
            manifest::verify(self.name, &listed, chain.progress)?;
        } else {
            notes.push(format!(
                "{}: there is no manifest, so the files are not checked",
                self.name
            ));
        }
        let mut disks = Vec::new();
        for (disk, file) in ovf.disks.iter().zip(files) {
            let mut opened = attached(disk, file, chain).map_err(|e| match &disk.href {
                Some(_) => e,
                None => e.within(self.name),
            })?;
            opened.disk.notes.splice(0..0, notes.drain(..));
            disks.push(opened);
        }
        Ok(Machine {
            disks,
            hardware: ovf.hardware,
        })
    }
}

/// One disk of an OVF.
fn attached(disk: &OvfDisk, file: Option<Image>, chain: &Chain<'_>) -> Result<AttachedDisk> {
    let Some(file) = file else {
        let len = disk.capacity.filter(|c| *c <= super::blocks::MAX_DISK);
        let len = len
            .ok_or_else(|| Error::corrupt(format!("disk {:?} has neither file nor capacity", disk.id), 0))?;
        return Ok(AttachedDisk {
            name: disk.id.clone(),
            disk: Disk {
                data: Arc::new(Zeros(len)),
                format: "raw",
                notes: Vec::new(),
            },
        });
    };
    let name = disk.href.as_deref().map(decoded).unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let file = Image { nested: true, ..file };
    let disk = whole(file, &mut chain.another())?.into_one()?;
    Ok(AttachedDisk { name, disk })
}

/// A tar without OVF: the one file in it is the disk.
fn plain(
    image: &Image,
    members: &BTreeMap<String, Arc<dyn ReadAt>>,
    member: impl Fn(&str) -> Option<Image>,
    chain: &Chain<'_>,
) -> Result<Machine> {
    let mut names = members.keys();
    match (names.next(), names.next()) {
        (Some(name), None) => {
            let file = member(name).ok_or_else(|| Error::corrupt("a member that is not there", 0))?;
            whole(file, &mut chain.another())
        }
        _ => Err(Error::unsupported(format!(
            "{}: a tar of {} files without an OVF descriptor",
            image.name,
            members.len()
        ))
        .hint("unpack it first, and use the disk image inside")),
    }
}

/// The regular files of a tar, where they lie in it. The last one of a name counts.
fn members(image: &Image) -> Result<BTreeMap<String, Arc<dyn ReadAt>>> {
    let mut reader = Reader::new(
        TarInput {
            file: &*image.file,
            at: 0,
        },
        image.name.clone(),
    );
    let mut members: BTreeMap<String, Arc<dyn ReadAt>> = BTreeMap::new();
    while let Some(entry) = reader.next()? {
        if entry.kind != Type::File {
            continue;
        }
        if members.len() >= MAX_MEMBERS {
            return Err(Error::unsupported(format!(
                "{}: a tar of very many files",
                image.name
            )));
        }
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let name = name.trim_start_matches("./").to_owned();
        members.insert(name, content(image, &entry)?);
    }
    Ok(members)
}

/// The bytes of a member.
fn content(image: &Image, entry: &Entry) -> Result<Arc<dyn ReadAt>> {
    let end = entry.offset.checked_add(entry.stored);
    if end.is_none_or(|end| end > image.file.len()) {
        let what = format!(
            "{}: the file ends in the middle of {}",
            image.name,
            Escaped(&entry.path)
        );
        return Err(Error::corrupt(what, entry.offset).hint(CUT));
    }
    let slice = |at, len| Arc::new(Slice::new(Arc::clone(&image.file), at, len)) as Arc<dyn ReadAt>;
    let Some(runs) = &entry.sparse else {
        return Ok(slice(entry.offset, entry.stored));
    };
    let mut parts: Vec<Arc<dyn ReadAt>> = Vec::new();
    let (mut at, mut stored) = (0u64, entry.offset);
    for (start, len) in runs {
        let gap = start.saturating_sub(at);
        parts.push(Arc::new(Zeros(gap)));
        parts.push(slice(stored, *len));
        at = start.saturating_add(*len);
        stored = stored.saturating_add(*len);
    }
    parts.push(Arc::new(Zeros(entry.size.saturating_sub(at))));
    Ok(Arc::new(Joined::new(parts)?))
}

/// A name without its percent-encoding, which is how a URI says it.
fn decoded(name: &str) -> String {
    let mut out = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%');
        let byte = code.and_then(|c| crate::bytes::unhex(str::from_utf8(c).ok()?)?.first().copied());
        match byte.zip(tail.get(2..)) {
            Some((byte, tail)) => {
                out.push(byte);
                rest = tail;
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| name.to_owned())
}

/// A file that is read from the front, and skipped in.
struct TarInput<'a> {
    file: &'a dyn ReadAt,
    at: u64,
}

impl Read for TarInput<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.file.len().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let n = buf.len().min(left);
        let part = buf.get_mut(..n).unwrap_or_default();
        self.file.read_at(self.at, part).map_err(Error::into_io)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Input for TarInput<'_> {
    fn skip(&mut self, n: u64) -> std::io::Result<()> {
        match self.at.checked_add(n) {
            Some(at) if at <= self.file.len() => {
                self.at = at;
                Ok(())
            }
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Hardware {
    /// What is worth telling of the hardware: limits for a container.
    pub fn notes(&self) -> Vec<String> {
        let cpus = self.cpus.map(|n| format!("{n} processors (--cpus {n})"));
        let memory = self
            .memory
            .map(|n| format!("{} MiB of memory (--memory {}m)", n >> 20, n >> 20));
        let parts: Vec<String> = [cpus, memory].into_iter().flatten().collect();
        if parts.is_empty() {
            return Vec::new();
        }
        vec![format!("the machine has {}", parts.join(" and "))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded() {
        assert_eq!(decoded("a%20b%2fc"), "a b/c");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%ff"), "%zz%ff");
    }
}
