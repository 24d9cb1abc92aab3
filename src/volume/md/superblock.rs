//! The superblocks of md: version 0.90 (include/uapi/linux/raid/md_p.h, `mdp_super_t`) and 1.0, 1.1, 1.2
//! (`mdp_superblock_1`).

use crate::bytes::{array, be32, hex, le16, le32, le64, slice, u8_at, until_nul};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};

pub(super) const MAGIC: u32 = 0xa92b_4efc;
/// What a superblock of version 1 needs before its roles, and the most roles in its 4 KiB.
const V1_FIXED: usize = 256;
const V1_MAX_ROLES: usize = (4096 - V1_FIXED) / 2;
/// Disks in a superblock of version 0.90 (MD_SB_DISKS).
const V0_DISKS: usize = 27;
const V0_LEN: usize = 4096;
/// The space at the end of a member of version 0.90 that is not used (MD_RESERVED_BYTES).
pub(super) const V0_RESERVED: u64 = 64 << 10;

/// Bits of `feature_map`.
pub(super) mod feature {
    pub(in super::super) const RECOVERY_OFFSET: u32 = 2;
    pub(in super::super) const RESHAPE_ACTIVE: u32 = 4;
    pub(in super::super) const BAD_BLOCKS: u32 = 8;
    pub(in super::super) const REPLACEMENT: u32 = 16;
    pub(in super::super) const NEW_OFFSET: u32 = 64;
    pub(in super::super) const JOURNAL: u32 = 512;
    pub(in super::super) const RAID0_LAYOUT: u32 = 4096;
    /// All that are known.
    pub(in super::super) const KNOWN: u32 = 8191;
}

/// What a member is to its array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It holds data, at this place.
    Active(u32),
    /// It waits for another to fail.
    Spare,
    /// It failed, or was removed.
    Faulty,
    /// It holds the journal.
    Journal,
}

/// A superblock, lengths and offsets in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// `0.90`, `1.0`, `1.1` or `1.2`.
    pub(super) version: &'static str,
    /// In the form that mdadm(8) gives it: four groups of eight digits.
    pub(super) uuid: String,
    /// `host:name`, empty in version 0.90.
    pub(super) name: String,
    /// The number of the device that the array was, in version 0.90.
    pub(super) minor: Option<u32>,
    pub(super) level: i32,
    pub(super) layout: u32,
    pub(super) chunk: u64,
    /// What is used of each member; 0 for levels that use all.
    pub(super) size: u64,
    pub(super) raid_disks: u32,
    /// Where the data begin on this member, and how many there are at most.
    pub(super) data_offset: u64,
    pub(super) data_size: u64,
    /// The role of each device by its number, and this device's number.
    pub(super) roles: Vec<Role>,
    pub(super) number: usize,
    /// Counts changes of the array: the members with the most of them are current.
    pub(super) events: u64,
    /// Shut down cleanly.
    pub(super) clean: bool,
    pub(super) features: u32,
    /// Set while members are added or the layout changes.
    pub(super) reshape: bool,
    /// How much of this member is rebuilt, if it is being rebuilt.
    pub(super) recovered: Option<u64>,
    /// Ranges of this member that hold the wrong bytes.
    pub(super) bad: Vec<(u64, u64)>,
}

/// Reads a word in the byte order of the machine that wrote it.
type Order = fn(&[u8], usize) -> Option<u32>;

/// Where version 0.90 stands on a member of `len` bytes.
fn v0_at(len: u64) -> Option<u64> {
    (len & !(V0_RESERVED - 1)).checked_sub(V0_RESERVED)
}

/// Where version 1.0 stands on a member of `len` bytes.
fn v1_0_at(len: u64) -> Option<u64> {
    (len / 512).checked_sub(16).map(|sector| (sector & !7) * 512)
}

/// True if `member` has a superblock, be it damaged.
pub(super) fn probe(member: &dyn ReadAt) -> bool {
    let word = |at: Option<u64>, field: u64| le32(&read_vec(member, at?.checked_add(field)?, 4).ok()?, 0);
    let v1 = [Some(4096), Some(0), v1_0_at(member.len())]
        .into_iter()
        .any(|at| {
            let offset = || {
                read_vec(member, at?.checked_add(144)?, 8)
                    .ok()
                    .and_then(|b| le64(&b, 0))
            };
            word(at, 0) == Some(MAGIC)
                && word(at, 4) == Some(1)
                && offset().map(|o| o.wrapping_mul(512)) == at
        });
    let v0 = v0_at(member.len());
    v1 || matches!((word(v0, 0), word(v0, 4)), (Some(MAGIC), Some(0)))
        || matches!((word(v0, 0), word(v0, 4)), (Some(m), Some(0)) if m == MAGIC.swap_bytes())
}

/// True if `disk` is a member as a whole, so that what looks like a partition table on it belongs to the array.
pub(super) fn owns(disk: &dyn ReadAt) -> bool {
    match read(disk) {
        // A last partition may end where the disk ends, and so does its superblock of version 0.90.
        Ok(Some(found)) if found.version == "0.90" => {
            found.size > 0 && found.size.saturating_add(found.chunk.max(V0_RESERVED)) > found.data_size
        }
        Ok(Some(_)) => true,
        _ => false,
    }
}

/// The superblock of `member`, `None` if there is none.
///
/// # Errors
/// [`Error::Corrupt`] if its checksum or a field is wrong, and none of the other places holds one.
pub(super) fn read(member: &dyn ReadAt) -> Result<Option<Superblock>> {
    let mut error = None;
    let places = [
        (Some(4096), "1.2"),
        (Some(0), "1.1"),
        (v1_0_at(member.len()), "1.0"),
    ];
    for (at, version) in places {
        let Some(at) = at else { continue };
        let Ok(bytes) = read_vec(
            member,
            at,
            usize::try_from(member.len().saturating_sub(at).min(4096)).unwrap_or(0),
        ) else {
            continue;
        };
        if le32(&bytes, 0) != Some(MAGIC) || le32(&bytes, 4) != Some(1) {
            continue;
        }
        match v1(&bytes, at, version, member) {
            Ok(found) => return Ok(Some(found)),
            Err(e) => error = error.or(Some(e)),
        }
    }
    if let Some(at) = v0_at(member.len())
        && let Ok(bytes) = read_vec(member, at, V0_LEN)
    {
        let order: Option<Order> = if le32(&bytes, 0) == Some(MAGIC) {
            Some(le32)
        } else if be32(&bytes, 0) == Some(MAGIC) {
            Some(be32)
        } else {
            None
        };
        if let Some(order) = order {
            match v0(&bytes, at, order) {
                Ok(found) => return Ok(Some(found)),
                Err(e) => error = error.or(Some(e)),
            }
        }
    }
    error.map_or(Ok(None), Err)
}

fn v1(bytes: &[u8], at: u64, version: &'static str, member: &dyn ReadAt) -> Result<Superblock> {
    let corrupt = |what: &str| Error::corrupt(format!("the md superblock (version {version}): {what}"), at);
    let short = || corrupt("it does not lie on the disk");
    let word = |at: usize| le32(bytes, at).ok_or_else(short);
    let long = |at: usize| le64(bytes, at).ok_or_else(short);
    let sectors = |at: usize| {
        long(at)?
            .checked_mul(512)
            .ok_or_else(|| corrupt("a length that cannot be"))
    };
    let count = word(220)? as usize;
    if count > V1_MAX_ROLES {
        return Err(corrupt("it has more roles than fit"));
    }
    let whole = slice(bytes, 0, V1_FIXED + count * 2).ok_or_else(short)?;
    // The sum of all 32-bit words but the checksum, its upper half added (calc_sb_1_csum).
    let (words, tail) = whole.as_chunks::<4>();
    let sum: u64 = words
        .iter()
        .map(|w| u64::from(u32::from_le_bytes(*w)))
        .sum::<u64>()
        + le16(tail, 0).map_or(0, u64::from)
        - u64::from(word(216)?);
    if fold(sum) != word(216)? {
        return Err(corrupt("its checksum is wrong"));
    }
    if sectors(144)? != at {
        return Err(corrupt("it says that it stands elsewhere"));
    }
    let features = word(8)?;
    let roles = (0..count).map(|n| match le16(bytes, V1_FIXED + n * 2) {
        Some(0xffff) | None => Role::Spare,
        Some(0xfffe) => Role::Faulty,
        Some(0xfffd) => Role::Journal,
        Some(role) => Role::Active(u32::from(role)),
    });
    let set: [u8; 16] = array(bytes, 16).ok_or_else(short)?;
    let mut found = Superblock {
        version,
        uuid: grouped(&set),
        name: String::from_utf8_lossy(until_nul(slice(bytes, 32, 32).ok_or_else(short)?)).into_owned(),
        minor: None,
        level: word(72)?.cast_signed(),
        layout: word(76)?,
        chunk: u64::from(word(88)?) * 512,
        size: sectors(80)?,
        raid_disks: word(92)?,
        data_offset: sectors(128)?,
        data_size: sectors(136)?,
        roles: roles.collect(),
        number: word(160)? as usize,
        events: long(200)?,
        clean: long(208)? == u64::MAX,
        features,
        reshape: features & (feature::RESHAPE_ACTIVE | feature::NEW_OFFSET) != 0,
        recovered: None,
        bad: Vec::new(),
    };
    if features & feature::RECOVERY_OFFSET != 0 {
        found.recovered = Some(sectors(152)?);
    }
    if features & feature::BAD_BLOCKS != 0 {
        found.bad =
            bad_blocks(bytes, at, member).ok_or_else(|| corrupt("its list of bad blocks cannot be read"))?;
    }
    Ok(found)
}

/// The list of bad blocks: `bblog_size` sectors that begin `bblog_offset` sectors from the superblock; each entry has 54
/// bits of sector and 10 of length, all ones at the end.
fn bad_blocks(bytes: &[u8], at: u64, member: &dyn ReadAt) -> Option<Vec<(u64, u64)>> {
    let shift = u32::from(u8_at(bytes, 185)?);
    let sectors = usize::from(le16(bytes, 186)?);
    let offset = i64::from(le32(bytes, 188)?.cast_signed()) * 512;
    if sectors == 0 {
        return Some(Vec::new());
    }
    let log = read_vec(member, at.checked_add_signed(offset)?, sectors.min(8) * 512).ok()?;
    let (entries, _) = log.as_chunks::<8>();
    entries
        .iter()
        .map(|e| u64::from_le_bytes(*e))
        .take_while(|e| *e != u64::MAX)
        .map(|e| {
            let from = (e >> 10).checked_shl(shift)?.checked_mul(512)?;
            let len = (e & 0x3ff).checked_shl(shift)?.checked_mul(512)?;
            Some((from, from.checked_add(len)?))
        })
        .collect()
}

fn v0(bytes: &[u8], at: u64, order: Order) -> Result<Superblock> {
    let corrupt = |what: &str| Error::corrupt(format!("the md superblock (version 0.90): {what}"), at);
    let word = |n: usize| order(bytes, n * 4).ok_or_else(|| corrupt("it does not lie on the disk"));
    // Words 0 to 1023; 38 is the checksum (calc_sb_csum).
    let mut sum = 0u64;
    for n in (0..V0_LEN / 4).filter(|n| *n != 38) {
        sum += u64::from(word(n)?);
    }
    if fold(sum) != word(38)? {
        return Err(corrupt("its checksum is wrong"));
    }
    // Counters of 64 bits have their halves in the order of the machine.
    let little = order(bytes, 0) == le32(bytes, 0);
    let long = |n: usize| {
        let (low, high) = if little {
            (word(n)?, word(n + 1)?)
        } else {
            (word(n + 1)?, word(n)?)
        };
        Ok::<u64, Error>(u64::from(low) | u64::from(high) << 32)
    };
    let mut roles = Vec::with_capacity(V0_DISKS);
    for n in 0..V0_DISKS {
        let disk = 128 + n * 32;
        let (role, state) = (word(disk + 3)?, word(disk + 4)?);
        // MD_DISK_FAULTY, _ACTIVE, _SYNC, _REMOVED.
        roles.push(match state {
            s if s & 1 != 0 || s & 8 != 0 => Role::Faulty,
            s if s & 4 != 0 => Role::Active(role),
            _ => Role::Spare,
        });
    }
    let id = [word(5)?, word(13)?, word(14)?, word(15)?];
    let minor_version = word(2)?;
    Ok(Superblock {
        version: "0.90",
        uuid: id.map(|w| format!("{w:08x}")).join(":"),
        name: String::new(),
        minor: Some(word(11)?),
        level: word(7)?.cast_signed(),
        layout: word(64)?,
        chunk: u64::from(word(65)?),
        size: u64::from(word(8)?) * 1024,
        raid_disks: word(10)?,
        data_offset: 0,
        data_size: at,
        roles,
        // The descriptor of this disk stands last.
        number: word(992)? as usize,
        events: long(39)?,
        clean: word(33)? & 1 != 0,
        features: 0,
        reshape: minor_version >= 91 && long(44)? != u64::MAX,
        recovered: None,
        bad: Vec::new(),
    })
}

fn fold(sum: u64) -> u32 {
    let folded = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    u32::try_from(folded & 0xffff_ffff).unwrap_or(0)
}

/// A UUID as mdadm(8) writes it.
fn grouped(id: &[u8; 16]) -> String {
    let (words, _) = id.as_chunks::<4>();
    words.iter().map(|w| hex(w)).collect::<Vec<_>>().join(":")
}
