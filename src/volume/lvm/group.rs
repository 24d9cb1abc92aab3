//! The logical volumes of a volume group, made of what its segments name (LVM2: lib/format_text, man page lvmsystemid(7),
//! lvmraid(7), lvmthin(7), lvmcache(7)).

use super::Bytes;
use super::label::{Metadata, undashed};
use super::text::{Section, Value};
use super::thin::{Pool, Thin};
use crate::bytes::{le32, le64};
use crate::error::{Error, Escaped, Result};
use crate::read_at::{ReadAt, Slice, read_vec};
use crate::volume::assemble::Made;
use crate::volume::layout::{Concat, Mapped, Mirror, Stripes};
use crate::volume::parity::{Algorithm, Parity};
use crate::volume::raid10::Raid10;
use std::collections::HashMap;
use std::sync::Arc;

/// Logical volumes inside each other; LVM2 itself has about six levels.
const MAX_DEPTH: u32 = 16;
const SECTOR: u64 = 512;
/// More images than dm-raid takes (MAX_RAID_DEVICES).
const MAX_IMAGES: usize = 253;

/// A physical volume as the metadata names it.
pub(super) struct Physical {
    name: String,
    /// Its place among the members and its bytes; `None` if it is missing.
    found: Option<(usize, Bytes)>,
    /// The first extent's place in bytes, and the number of extents.
    start: u64,
    extents: u64,
}

impl Physical {
    pub(super) fn new(name: &str, section: &Section, found: Option<(usize, &Bytes)>) -> Self {
        // One that was missing and came back does not have what was written since.
        let stale = section.has("flags", "MISSING");
        Self {
            name: name.to_owned(),
            found: found.filter(|_| !stale).map(|(n, data)| (n, Arc::clone(data))),
            start: section.number("pe_start").unwrap_or(0).saturating_mul(SECTOR),
            extents: section.number("pe_count").unwrap_or(0),
        }
    }

    pub(super) fn is_missing(&self) -> bool {
        self.found.is_none()
    }

    pub(super) fn index(&self) -> Option<usize> {
        self.found.as_ref().map(|(n, _)| *n)
    }
}

/// The physical volumes that a group names: name, section, UUID.
pub(super) fn physical_volumes(group: &Section) -> impl Iterator<Item = (&str, &Section, String)> {
    let all = group.section("physical_volumes");
    all.into_iter()
        .flat_map(Section::sections)
        .map(|(name, section)| {
            let uuid = section.text("id").map(undashed).unwrap_or_default();
            (name, section, uuid)
        })
}

/// A volume group whose logical volumes are made one by one.
pub(super) struct Group<'a> {
    metadata: &'a Metadata,
    extent: u64,
    physical: HashMap<String, Physical>,
    /// Logical volumes that are made, and why others cannot be; `None` while one is being made.
    made: HashMap<String, Option<Result<Bytes>>>,
    pools: HashMap<String, Arc<Pool>>,
    pub(super) notes: Vec<String>,
    /// The images of a RAID are being made.
    in_raid: bool,
    /// Some physical volume lies on an array part of which is computed.
    below: bool,
    /// A part of some logical volume is computed.
    computed: bool,
}

/// A segment of a logical volume.
struct Segment<'a> {
    section: &'a Section,
    /// The name of its type, without flags.
    kind: &'a str,
    len: u64,
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::corrupt(format!("the LVM2 metadata: {}", what.into()), 0)
}

impl<'a> Group<'a> {
    pub(super) fn new(metadata: &'a Metadata, physical: Vec<Physical>, degraded: bool) -> Self {
        let group = &metadata.group;
        let mut notes = Vec::new();
        let shown = Escaped(metadata.name.as_bytes());
        if group.has("status", "EXPORTED") {
            notes.push(format!("volume group {shown} is exported"));
        }
        Self {
            metadata,
            extent: group.number("extent_size").unwrap_or(0).saturating_mul(SECTOR),
            physical: physical.into_iter().map(|p| (p.name.clone(), p)).collect(),
            made: HashMap::new(),
            pools: HashMap::new(),
            notes,
            in_raid: false,
            below: degraded,
            computed: false,
        }
    }

    fn volumes(&self) -> impl Iterator<Item = (&'a str, &'a Section)> + use<'a> {
        let all = self.metadata.group.section("logical_volumes");
        all.into_iter().flat_map(Section::sections)
    }

    fn section(&self, name: &str) -> Result<&'a Section> {
        let all = self.metadata.group.section("logical_volumes");
        let section = all.and_then(|s| s.section(name));
        section.ok_or_else(|| corrupt(format!("there is no logical volume {}", Escaped(name.as_bytes()))))
    }

    /// A logical volume's name in messages.
    fn shown(&self, name: &str) -> String {
        format!("/dev/{}/{name}", self.metadata.name)
    }

    /// The segments in their order.
    fn segments(&self, volume: &'a Section) -> Result<Vec<Segment<'a>>> {
        let mut found: Vec<(u64, &Section)> = volume
            .sections()
            .filter(|(name, _)| name.starts_with("segment"))
            .map(|(_, s)| (s.number("start_extent").unwrap_or(0), s))
            .collect();
        found.sort_by_key(|(start, _)| *start);
        let mut next = 0u64;
        let mut segments = Vec::with_capacity(found.len());
        for (start, section) in found {
            let count = section.number("extent_count").unwrap_or(0);
            if start != next || count == 0 {
                return Err(corrupt(
                    "the segments of a logical volume do not follow each other",
                ));
            }
            next = next.saturating_add(count);
            let kind = section.text("type").unwrap_or_default();
            segments.push(Segment {
                section,
                // Flags stand behind a plus.
                kind: kind.split_once('+').map_or(kind, |(kind, _)| kind),
                len: count
                    .checked_mul(self.extent)
                    .filter(|len| *len > 0)
                    .ok_or_else(|| corrupt("a logical volume that is longer than can be"))?,
            });
        }
        if segments.is_empty() {
            return Err(corrupt("a logical volume without segments"));
        }
        Ok(segments)
    }

    /// Snapshots by the volume that holds them, and origins into which a snapshot is being merged.
    fn snapshots(&self) -> (HashMap<&'a str, &'a str>, Vec<&'a str>) {
        let (mut stores, mut merging) = (HashMap::new(), Vec::new());
        for (_, volume) in self.volumes() {
            for (_, segment) in volume
                .sections()
                .filter(|(_, s)| s.text("type") == Some("snapshot"))
            {
                let origin = segment.text("origin").unwrap_or_default();
                if let Some(store) = segment.text("cow_store") {
                    stores.insert(store, origin);
                } else if let Some(store) = segment.text("merging_store") {
                    stores.insert(store, origin);
                    merging.push(origin);
                }
            }
        }
        (stores, merging)
    }

    /// All logical volumes that people see.
    pub(super) fn visible(&mut self) -> Vec<Made> {
        let (stores, merging) = self.snapshots();
        let mut all = Vec::new();
        for (name, volume) in self.volumes() {
            // The volume that holds a snapshot is hidden behind one that has no data, and gives it its name.
            if !volume.has("status", "VISIBLE") && !stores.contains_key(name) {
                continue;
            }
            let first = volume.sections().find(|(n, _)| n.starts_with("segment"));
            let kind = first.and_then(|(_, s)| s.text("type")).unwrap_or_default();
            // Pools and the tie between snapshot and origin are not seen as devices.
            if ["thin-pool", "cache-pool", "vdo-pool", "snapshot"]
                .iter()
                .any(|pool| kind.starts_with(pool))
            {
                continue;
            }
            let thin_snapshot = kind == "thin" && first.is_some_and(|(_, s)| s.text("origin").is_some());
            let paths = self.paths(name, volume);
            let device = paths.first().map_or_else(String::new, |p| format!("/dev/{p}"));
            let data = match stores.get(name) {
                Some(origin) => Err(Error::unsupported(format!(
                    "a copy-on-write snapshot of {}",
                    Escaped(origin.as_bytes())
                ))),
                None if merging.contains(&name) => Err(Error::unsupported(
                    "a logical volume into which a snapshot is being merged",
                )),
                None => self.volume(name, 0),
            };
            all.push(Made {
                data: data.map_err(|e| e.within(&device)),
                device,
                paths,
                snapshot: thin_snapshot || stores.contains_key(name),
                inside: None,
                degraded: false,
            });
        }
        for made in &mut all {
            made.degraded = self.below || self.computed;
        }
        all
    }

    /// What the machine calls a logical volume, below `/dev/`.
    fn paths(&self, name: &str, volume: &Section) -> Vec<String> {
        let group = &self.metadata.name;
        let mapper = format!("{}-{}", group.replace('-', "--"), name.replace('-', "--"));
        let id = volume.text("id").map(undashed).unwrap_or_default();
        vec![
            format!("{group}/{name}"),
            format!("mapper/{mapper}"),
            format!("disk/by-id/dm-name-{mapper}"),
            format!("disk/by-id/dm-uuid-LVM-{}{id}", self.metadata.id),
        ]
    }

    /// The bytes of a logical volume, made once.
    fn volume(&mut self, name: &str, depth: u32) -> Result<Bytes> {
        match self.made.get(name) {
            Some(Some(Ok(data))) => return Ok(Arc::clone(data)),
            Some(Some(Err(e))) => return Err(e.again()),
            Some(None) => return Err(corrupt("a logical volume that contains itself")),
            None => {}
        }
        if depth > MAX_DEPTH {
            return Err(corrupt("too many logical volumes inside each other"));
        }
        self.made.insert(name.to_owned(), None);
        let made = self.make(name, depth);
        let copy = match &made {
            Ok(data) => Ok(Arc::clone(data)),
            Err(e) => Err(e.again()),
        };
        self.made.insert(name.to_owned(), Some(copy));
        made
    }

    fn make(&mut self, name: &str, depth: u32) -> Result<Bytes> {
        let mut runs = Concat::new();
        let segments = self.segments(self.section(name)?)?;
        for segment in &segments {
            match segment.kind {
                // Linear: pieces go into the volume's own runs.
                "striped" | "linear" if self.areas(segment, "stripes").len() == 1 => {
                    for (area, extent) in self.areas(segment, "stripes") {
                        let (data, at) = self.area(area, extent, segment.len, depth)?;
                        runs.push(Some(data), at, segment.len)?;
                    }
                }
                "zero" | "error" if segment.kind == "zero" => runs.push(None, 0, segment.len)?,
                _ => {
                    let data = self.segment(name, segment, depth)?;
                    if data.len() < segment.len {
                        return Err(corrupt(format!(
                            "a {} segment of {} bytes made of {}",
                            Escaped(segment.kind.as_bytes()),
                            segment.len,
                            data.len()
                        )));
                    }
                    runs.push(Some(data), 0, segment.len)?;
                }
            }
        }
        Ok(Arc::new(Mapped(runs)))
    }

    /// Pairs of a name and an extent.
    fn areas(&self, segment: &Segment<'a>, list: &str) -> Vec<(&'a str, u64)> {
        let (pairs, _) = segment.section.list(list).as_chunks::<2>();
        let pair = |[name, extent]: &'a [Value; 2]| match (name, extent) {
            (Value::Text(name), Value::Number(n)) => Some((name.as_str(), u64::try_from(*n).ok()?)),
            _ => None,
        };
        pairs.iter().filter_map(pair).collect()
    }

    /// `len` bytes of a physical or logical volume from an extent on: what holds them and where.
    fn area(&mut self, name: &str, extent: u64, len: u64, depth: u32) -> Result<(Bytes, u64)> {
        let too_long = || corrupt("an area that does not lie on its volume");
        let at = extent.checked_mul(self.extent).ok_or_else(too_long)?;
        let end = at.checked_add(len).ok_or_else(too_long)?;
        if let Some(physical) = self.physical.get(name) {
            if end > physical.extents.saturating_mul(self.extent) {
                return Err(too_long());
            }
            let Some((_, data)) = &physical.found else {
                return Err(Error::unsupported(format!(
                    "it needs the physical volume {}, which is missing",
                    Escaped(name.as_bytes())
                )));
            };
            return Ok((
                Arc::clone(data),
                physical.start.checked_add(at).ok_or_else(too_long)?,
            ));
        }
        let data = self.volume(name, depth + 1)?;
        if end > data.len() {
            return Err(too_long());
        }
        Ok((data, at))
    }

    /// A segment that is more than one run.
    fn segment(&mut self, name: &str, segment: &Segment<'a>, depth: u32) -> Result<Bytes> {
        let section = segment.section;
        let refuse = |what: &str| Err(Error::unsupported(what));
        match segment.kind {
            "striped" | "linear" => {
                let areas = self.areas(segment, "stripes");
                let each = segment.len / (areas.len().max(1) as u64);
                self.striped(segment, &areas, each, depth)
            }
            "mirror" => {
                let mut legs = Vec::new();
                let mut failed = None;
                for (area, extent) in self.areas(segment, "mirrors") {
                    match self.area(area, extent, segment.len, depth) {
                        Ok((data, at)) => legs.push(Arc::new(Slice::new(data, at, segment.len)) as Bytes),
                        Err(e) => failed = Some(e),
                    }
                }
                match (legs.is_empty(), failed) {
                    (true, failed) => Err(failed.unwrap_or_else(|| corrupt("a mirror without images"))),
                    (false, failed) => {
                        if let Some(e) = failed {
                            let shown = self.shown(name);
                            self.notes.push(format!("{shown} is degraded: {e}"));
                        }
                        Ok(Arc::new(Mirror::new(legs, segment.len)))
                    }
                }
            }
            // LVM2 makes no such thing, and what is computed from what is computed has no bound.
            kind if kind.starts_with("raid") && self.in_raid => refuse("a RAID volume made of RAID volumes"),
            kind if kind.starts_with("raid") => {
                self.in_raid = true;
                let made = self.raid(name, segment, depth);
                self.in_raid = false;
                made
            }
            "thin" => self.thin(segment, depth),
            "cache" => self.cache(segment, depth),
            "writecache" => refuse("a volume with a write cache (dm-writecache)"),
            "integrity" => refuse("a volume with integrity data (dm-integrity)"),
            "vdo" => refuse("a VDO volume"),
            "error" => refuse("a volume of which a part is missing (an error segment)"),
            "thin-pool" | "cache-pool" | "vdo-pool" => refuse("a pool, which is no volume of its own"),
            "snapshot" => refuse("a copy-on-write snapshot"),
            _ => {
                let kind = section.text("type").unwrap_or_default();
                Err(Error::unsupported(format!(
                    "the LVM2 segment type {}",
                    Escaped(kind.as_bytes())
                )))
            }
        }
    }

    /// Stripes over areas that each give `each` bytes.
    fn striped(
        &mut self,
        segment: &Segment<'a>,
        areas: &[(&str, u64)],
        each: u64,
        depth: u32,
    ) -> Result<Bytes> {
        let chunk = segment
            .section
            .number("stripe_size")
            .unwrap_or(0)
            .saturating_mul(SECTOR);
        let mut members: Vec<(Bytes, u64)> = Vec::new();
        for (area, extent) in areas {
            let (data, at) = self.area(area, *extent, each, depth)?;
            members.push((Arc::new(Slice::new(data, at, each)), each));
        }
        // With one stripe there is no stripe size.
        let chunk = if members.len() == 1 && chunk == 0 {
            each
        } else {
            chunk
        };
        Ok(Arc::new(Mapped(Stripes::new(&members, chunk, None)?)))
    }

    /// RAID through dm-raid: images, each with a volume for its own metadata.
    fn raid(&mut self, name: &str, segment: &Segment<'a>, depth: u32) -> Result<Bytes> {
        let section = segment.section;
        let kind = segment.kind;
        let plain = matches!(kind, "raid0" | "raid0_meta");
        // RAID 0 without metadata volumes names its images under another key.
        let list = Some(section.list("raid0_lvs")).filter(|l| !l.is_empty());
        let list = list.unwrap_or_else(|| section.list("raids"));
        let names: Vec<&str> = list
            .iter()
            .filter_map(|v| match v {
                Value::Text(name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let count = section.number(if plain { "stripe_count" } else { "device_count" });
        let count = count
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=MAX_IMAGES).contains(n));
        let count = count.ok_or_else(|| corrupt("a RAID without a number of images"))?;
        // Pairs of metadata and image, or images alone.
        let images: Vec<(Option<&str>, &str)> = match names.as_slice() {
            names if names.len() == count * 2 => {
                let (pairs, _) = names.as_chunks::<2>();
                pairs.iter().map(|[meta, image]| (Some(*meta), *image)).collect()
            }
            names if names.len() == count => names.iter().map(|image| (None, *image)).collect(),
            _ => return Err(corrupt("a RAID whose images are not as many as it says")),
        };
        if section.number("reshape_count").is_some_and(|n| n > 0) || section.number("data_offset").is_some() {
            return Err(Error::unsupported(format!(
                "a {kind} volume that was or is being reshaped"
            )));
        }
        let mut legs: Vec<Option<Bytes>> = Vec::new();
        let mut states: Vec<Option<ImageState>> = Vec::new();
        let mut failed = None;
        for (meta, image) in images {
            let leg = self.volume(image, depth + 1);
            let state = meta
                .and_then(|m| self.volume(m, depth + 1).ok())
                .and_then(|m| ImageState::read(&*m));
            states.push(state);
            legs.push(match leg {
                Ok(leg) => Some(leg),
                Err(e) => {
                    failed = failed.or(Some(e));
                    None
                }
            });
        }
        let newest = states.iter().flatten().map(|s| s.events).max();
        let current = states
            .iter()
            .flatten()
            .find(|s| Some(s.events) == newest)
            .copied();
        if let Some(newest) = current {
            if newest.reshaping {
                return Err(Error::unsupported(format!(
                    "a {kind} volume that is being reshaped"
                )));
            }
            for (n, (leg, state)) in legs.iter_mut().zip(&states).enumerate() {
                let len = leg.as_ref().map_or(0, |l| l.len());
                let synced = state.is_some_and(|s| {
                    s.events.saturating_add(1) >= newest.events
                        && s.recovered.saturating_mul(SECTOR) >= len
                        && newest
                            .failed
                            .checked_shr(u32::try_from(n).unwrap_or(64))
                            .unwrap_or(0)
                            & 1
                            == 0
                });
                if !synced {
                    *leg = None;
                }
            }
        }
        let missing = legs.iter().filter(|l| l.is_none()).count();
        if missing > 0 {
            let why = failed.map_or_else(|| "not in sync".to_owned(), |e| e.to_string());
            let shown = self.shown(name);
            if plain || missing == count {
                return Err(Error::unsupported(format!(
                    "{missing} of {count} images cannot be used: {why}"
                )));
            }
            self.notes.push(format!(
                "{shown} is degraded: {missing} of {count} images cannot be used: {why}"
            ));
        }
        let chunk = section.number("stripe_size").unwrap_or(0).saturating_mul(SECTOR);
        let size = legs.iter().flatten().map(|l| l.len()).min().unwrap_or(0);
        let algorithm = match kind {
            "raid0" | "raid0_meta" => {
                let members: Vec<(Bytes, u64)> = legs.into_iter().flatten().map(|l| (l, size)).collect();
                let chunk = if members.len() == 1 && chunk == 0 {
                    size
                } else {
                    chunk
                };
                return Ok(Arc::new(Mapped(Stripes::new(&members, chunk, None)?)));
            }
            "raid1" => return Ok(Arc::new(Mirror::new(legs.into_iter().flatten().collect(), size))),
            "raid10" | "raid10_near" => {
                let copies = section.number("data_copies").unwrap_or(2);
                let near = 0x100 | u32::try_from(copies).ok().filter(|c| *c < 256).unwrap_or(0);
                let layout = current.map_or(near, |s| s.layout);
                return Ok(Arc::new(Raid10::new(legs, layout, chunk, size)?));
            }
            // dm-raid has the parity of RAID 4 on the first image, md on the last.
            "raid4" => Some((false, Algorithm::ParityFirst)),
            "raid5_n" => Some((false, Algorithm::ParityLast)),
            "raid5" | "raid5_ls" => Some((false, Algorithm::LeftSymmetric)),
            "raid5_la" => Some((false, Algorithm::LeftAsymmetric)),
            "raid5_ra" => Some((false, Algorithm::RightAsymmetric)),
            "raid5_rs" => Some((false, Algorithm::RightSymmetric)),
            "raid6" | "raid6_zr" => Some((true, Algorithm::ZeroRestart)),
            "raid6_nr" => Some((true, Algorithm::NRestart)),
            "raid6_nc" => Some((true, Algorithm::NContinue)),
            "raid6_n_6" => Some((true, Algorithm::ParityLast)),
            "raid6_la_6" => Algorithm::of_md(6, 16).map(|a| (true, a)),
            "raid6_ra_6" => Algorithm::of_md(6, 17).map(|a| (true, a)),
            "raid6_ls_6" => Algorithm::of_md(6, 18).map(|a| (true, a)),
            "raid6_rs_6" => Algorithm::of_md(6, 19).map(|a| (true, a)),
            _ => None,
        };
        let Some((six, algorithm)) = algorithm else {
            return Err(Error::unsupported(format!(
                "the LVM2 segment type {}",
                Escaped(kind.as_bytes())
            )));
        };
        if missing > 0 && current.is_some_and(|s| !s.clean) {
            return Err(Error::unsupported(format!(
                "a degraded {kind} volume that was not shut down cleanly: what its missing images held cannot be computed"
            )));
        }
        if missing > 0 && self.below {
            return Err(Error::unsupported("a degraded RAID on a degraded RAID"));
        }
        self.computed |= missing > 0;
        Ok(Arc::new(Parity::new(legs, six, algorithm, chunk, size)?))
    }

    fn thin(&mut self, segment: &Segment<'a>, depth: u32) -> Result<Bytes> {
        let section = segment.section;
        let pool = section
            .text("thin_pool")
            .ok_or_else(|| corrupt("a thin volume without a pool"))?;
        let device = section
            .number("device_id")
            .ok_or_else(|| corrupt("a thin volume without a device_id"))?;
        if section.text("merge").is_some() {
            return Err(Error::unsupported(
                "a thin volume that is being merged into its origin",
            ));
        }
        let pool = self.pool(pool, depth)?;
        let origin = match section.text("external_origin") {
            Some(origin) => Some(self.volume(origin, depth + 1)?),
            None => None,
        };
        let thin = Thin::open(&pool, device, segment.len, origin)?;
        Ok(Arc::new(Mapped(thin)))
    }

    fn pool(&mut self, name: &str, depth: u32) -> Result<Arc<Pool>> {
        if let Some(pool) = self.pools.get(name) {
            return Ok(Arc::clone(pool));
        }
        let segments = self.segments(self.section(name)?)?;
        let [
            Segment {
                section,
                kind: "thin-pool",
                ..
            },
        ] = segments.as_slice()
        else {
            return Err(corrupt("a thin volume whose pool is none"));
        };
        let part = |key: &str| {
            section
                .text(key)
                .ok_or_else(|| corrupt("a thin pool without its parts"))
        };
        let metadata = self.volume(part("metadata")?, depth + 1)?;
        let data = self.volume(part("pool")?, depth + 1)?;
        let pool = Arc::new(Pool::open(metadata, data)?);
        let shown = Escaped(name.as_bytes()).to_string();
        self.notes.extend(
            pool.notes()
                .into_iter()
                .map(|n| format!("thin pool {shown}: {n}")),
        );
        self.pools.insert(name.to_owned(), Arc::clone(&pool));
        Ok(pool)
    }

    /// A cached volume: in writethrough mode its origin has everything.
    fn cache(&mut self, segment: &Segment<'a>, depth: u32) -> Result<Bytes> {
        let section = segment.section;
        let pool = section.text("cache_pool").unwrap_or_default();
        let of_pool = self.section(pool).ok().and_then(|p| self.segments(p).ok());
        let of_pool = of_pool
            .as_ref()
            .and_then(|s| s.first())
            .and_then(|s| s.section.text("cache_mode"));
        let mode = section.text("cache_mode").or(of_pool).unwrap_or("writethrough");
        if !matches!(mode, "writethrough" | "passthrough") {
            return Err(Error::unsupported(format!(
                "a cached volume in {} mode: blocks may be in the cache alone",
                Escaped(mode.as_bytes())
            ))
            .hint("detach the cache in the machine first: lvconvert --splitcache VG/LV"));
        }
        let origin = section
            .text("origin")
            .ok_or_else(|| corrupt("a cached volume without an origin"))?;
        self.volume(origin, depth + 1)
    }
}

/// What an image's metadata volume says (drivers/md/dm-raid.c of Linux, `struct dm_raid_superblock`).
#[derive(Debug, Clone, Copy)]
struct ImageState {
    events: u64,
    /// A bit for each image that failed.
    failed: u64,
    /// Sectors of this image that are in sync.
    recovered: u64,
    layout: u32,
    clean: bool,
    reshaping: bool,
}

impl ImageState {
    fn read(meta: &dyn ReadAt) -> Option<Self> {
        let b = read_vec(meta, 0, 512).ok()?;
        if !b.starts_with(b"DmRd") {
            return None;
        }
        Some(Self {
            events: le64(&b, 16)?,
            failed: le64(&b, 24)?,
            recovered: le64(&b, 32)?,
            clean: le64(&b, 40)? == u64::MAX,
            layout: le32(&b, 52)?,
            reshaping: le32(&b, 60)? & 1 != 0,
        })
    }
}
