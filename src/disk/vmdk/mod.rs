//! VMDK, the disks of VMware (VMware Virtual Disk Format 5.0).
//!
//! A descriptor, in a file of its own or inside the extent, names extents and perhaps a parent. A disk is its extents one
//! behind the other; what a sparse extent does not hold is read from the parent.

mod descriptor;
mod sparse;

use super::Disk;
use super::blocks::{Blocks, CUT, Joined, Zeros};
use super::gate::{Chain, Image};
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, Slice, read_vec};
use descriptor::{Descriptor, NO_PARENT};
use sparse::{COWD, Grains, HOSTED, Header, SE_SPARSE, SECTOR};
use std::sync::Arc;

/// The longest descriptor: one of 4,096 extents with names of 200 bytes.
const MAX_DESCRIPTOR: u64 = 1 << 20;

/// True if a file that begins with `first` is a VMDK.
pub(super) fn probe(first: &[u8]) -> bool {
    [HOSTED, COWD, SE_SPARSE]
        .iter()
        .any(|magic| first.starts_with(magic))
        || descriptor::is_descriptor(first)
}

/// Opens `image`, and the extents and parents it names if `chain` lets it.
///
/// # Errors
/// As [`super::open`].
pub(super) fn open(image: Image, chain: &mut Chain<'_>) -> Result<Disk> {
    opened(&image, chain).map(|(disk, _)| disk)
}

/// The disk and its content identifier.
fn opened(image: &Image, chain: &mut Chain<'_>) -> Result<(Disk, Option<u32>)> {
    let named = |e: Error| e.within(&image.name);
    let len = image.file.len();
    let first = read_vec(&*image.file, 0, usize::try_from(len.min(512)).unwrap_or(0))?;
    if first.starts_with(COWD) || first.starts_with(SE_SPARSE) {
        let what = "an extent of a VMDK, which does not say what stands behind it";
        return Err(named(Error::unsupported(what)).hint("name the .vmdk file that describes the disk"));
    }
    if !first.starts_with(HOSTED) {
        let text = read_vec(
            &*image.file,
            0,
            usize::try_from(len.min(MAX_DESCRIPTOR)).unwrap_or(0),
        )?;
        if !descriptor::is_descriptor(&text) {
            return Err(named(Error::corrupt(
                "neither a descriptor nor an extent of a VMDK",
                0,
            )));
        }
        let descriptor = Descriptor::from_bytes(&text).map_err(named)?;
        return described(image, &descriptor, chain);
    }
    let header = Header::from_bytes(&first).map_err(named)?;
    let descriptor = embedded(&*image.file, &header).map_err(named)?;
    if header.capacity == 0 {
        let descriptor =
            descriptor.ok_or_else(|| named(Error::corrupt("no capacity and no descriptor", 12)))?;
        return described(image, &descriptor, chain);
    }
    let mut notes = Vec::new();
    let (cid, parent) = match &descriptor {
        None => (None, None),
        Some(descriptor) => (descriptor.cid, parent(image, descriptor, chain, &mut notes)?),
    };
    let (grains, note) = Grains::hosted(&image.name, &image.file, header).map_err(named)?;
    notes.extend(note);
    let data = Arc::new(Blocks::new(&image.name, grains, Arc::clone(&image.file), parent));
    let disk = Disk {
        data,
        format: "vmdk",
        notes,
    };
    Ok((disk, cid))
}

/// The descriptor inside a hosted sparse extent.
fn embedded(file: &dyn ReadAt, header: &Header) -> Result<Option<Descriptor>> {
    if header.descriptor_offset == 0 || header.descriptor_size == 0 && header.capacity > 0 {
        return Ok(None);
    }
    let at = header.descriptor_offset.saturating_mul(SECTOR);
    let Some(left) = file.len().checked_sub(at).filter(|left| *left > 0) else {
        return Err(Error::corrupt("the descriptor lies behind the end of the file", at).hint(CUT));
    };
    let stated = header.descriptor_size.saturating_mul(SECTOR);
    let stated = if stated == 0 {
        MAX_DESCRIPTOR
    } else {
        stated.min(MAX_DESCRIPTOR)
    };
    let text = read_vec(file, at, usize::try_from(left.min(stated)).unwrap_or(0))?;
    Descriptor::from_bytes(&text).map(Some)
}

/// The disk of a descriptor with its extents in other files.
fn described(image: &Image, descriptor: &Descriptor, chain: &mut Chain<'_>) -> Result<(Disk, Option<u32>)> {
    let named = |e: Error| e.within(&image.name);
    if descriptor.extents.is_empty() {
        let what = format!("a VMDK of type {:?} without extents", descriptor.create_type);
        return Err(named(Error::corrupt(what, 0)));
    }
    let mut notes = Vec::new();
    let parent = parent(image, descriptor, chain, &mut notes)?;
    let mut parts = Vec::new();
    let mut start = 0u64;
    for line in &descriptor.extents {
        let len = line.sectors.checked_mul(SECTOR);
        let end = len.and_then(|len| start.checked_add(len));
        let (Some(len), Some(end)) = (len, end) else {
            return Err(named(Error::corrupt(
                "an extent that is longer than a disk can be",
                0,
            )));
        };
        // What an extent does not hold is at its own place in the parent.
        let below = parent
            .as_ref()
            .map(|p| Arc::new(Slice::new(Arc::clone(p), start, len)) as Arc<dyn ReadAt>);
        parts.push(extent(
            image,
            line,
            len,
            below,
            chain,
            &mut notes,
            descriptor.extents.len(),
        )?);
        start = end;
    }
    let disk = Disk {
        data: Arc::new(Joined::new(parts).map_err(named)?),
        format: "vmdk",
        notes,
    };
    Ok((disk, descriptor.cid))
}

/// The `len` bytes of one extent.
fn extent(
    image: &Image,
    line: &descriptor::Extent,
    len: u64,
    parent: Option<Arc<dyn ReadAt>>,
    chain: &mut Chain<'_>,
    notes: &mut Vec<String>,
    others: usize,
) -> Result<Arc<dyn ReadAt>> {
    let kind = line.kind.as_str();
    if !line.readable {
        return Err(Error::unsupported(format!(
            "{}: an extent without access ({kind})",
            image.name
        )));
    }
    if kind == "ZERO" {
        return Ok(Arc::new(Zeros(len)));
    }
    if !matches!(kind, "FLAT" | "VMFS" | "SPARSE" | "VMFSSPARSE" | "SESPARSE") {
        return Err(
            Error::unsupported(format!("{}: an extent of type {kind}", image.name))
                .hint("copy the disk on the host that runs the machine, with its own tools"),
        );
    }
    let found = chain.follow_extent(image, "extent", &line.file)?;
    let named = |e: Error| e.within(&found.name);
    if matches!(kind, "FLAT" | "VMFS") {
        let at = line.offset.checked_mul(SECTOR);
        let end = at.and_then(|at| at.checked_add(len));
        let (Some(at), Some(end)) = (at, end) else {
            return Err(named(Error::corrupt("an extent that begins nowhere", 0)));
        };
        if end > found.file.len() {
            let what = format!("the file ends at byte {}, the extent at {end}", found.file.len());
            return Err(named(Error::corrupt(what, at)).hint(CUT));
        }
        return Ok(Arc::new(Slice::new(found.file, at, len)));
    }
    let mut grains = match kind {
        "SPARSE" => {
            let first = read_vec(
                &*found.file,
                0,
                usize::try_from(found.file.len().min(512)).unwrap_or(0),
            )?;
            let header = Header::from_bytes(&first).map_err(named)?;
            let (grains, note) = Grains::hosted(&found.name, &found.file, header).map_err(named)?;
            notes.extend(note);
            grains
        }
        "VMFSSPARSE" => Grains::cowd(&found.name, &found.file).map_err(named)?,
        _ => Grains::se_sparse(&found.name, &found.file).map_err(named)?,
    };
    grains.share(others);
    let part = Blocks::new(&found.name, grains, Arc::clone(&found.file), parent).sharing(others);
    if part.len() != len {
        let what = format!(
            "an extent of {} sectors, where the descriptor says {}",
            part.len() / SECTOR,
            line.sectors
        );
        return Err(named(Error::corrupt(what, 0)));
    }
    Ok(Arc::new(part))
}

/// The disk that `descriptor` names as its parent.
fn parent(
    image: &Image,
    descriptor: &Descriptor,
    chain: &mut Chain<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<Arc<dyn ReadAt>>> {
    if descriptor.parent_cid == NO_PARENT {
        return Ok(None);
    }
    let Some(hint) = &descriptor.parent else {
        let what = format!(
            "{}: a parent (CID {:08x}) that it does not name",
            image.name, descriptor.parent_cid
        );
        return Err(Error::unsupported(what).hint("merge the snapshots, or give the whole disk"));
    };
    let found = chain.follow_any(image, "parent", std::slice::from_ref(hint))?;
    let (parent, cid) = opened(&found, chain)?;
    if cid != Some(descriptor.parent_cid) {
        let what = format!(
            "{}: the parent {} has the CID {:08x}, but the snapshot was made of {:08x}: it was written to since, or is another disk",
            image.name,
            found.name,
            cid.unwrap_or_default(),
            descriptor.parent_cid
        );
        return Err(Error::corrupt(what, 0));
    }
    notes.push(format!("parent: {}", Escaped(hint)));
    notes.extend(parent.notes);
    Ok(Some(parent.data))
}
