//! How the bytes of a volume lie on others: runs, stripes, mirrors. Arrays of md and logical volumes are made of these.

use crate::error::{Error, Result};
use crate::read_at::{Extent, ReadAt, check_range};
use std::sync::Arc;

/// A member of an array or a volume group.
pub(super) type Member = Arc<dyn ReadAt>;

/// Where the bytes from some offset on are.
pub(super) struct Piece<'a> {
    /// What holds them; `None` for a hole.
    pub(super) member: Option<&'a Member>,
    /// Where on it they begin.
    pub(super) at: u64,
    /// How many bytes lie there in one run; not 0.
    pub(super) len: u64,
}

/// A volume whose every byte lies on one other.
pub(super) trait Map: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// What begins at `offset`, which lies before the end.
    fn piece(&self, offset: u64) -> Result<Piece<'_>>;
}

/// A [`Map`] as bytes.
pub(super) struct Mapped<M>(pub(super) M);

impl<M: Map> ReadAt for Mapped<M> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the volume", self.len(), offset, buf.len())?;
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = self.0.piece(offset)?;
            let mut len = piece.len;
            // Pieces that lie one behind the other are one read.
            while len < rest.len() as u64 {
                let Ok(next) = self.0.piece(offset.saturating_add(len)) else {
                    break;
                };
                let joins = match (piece.member, next.member) {
                    (None, None) => true,
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b) && piece.at.checked_add(len) == Some(next.at),
                    _ => false,
                };
                if !joins || next.len == 0 {
                    break;
                }
                len = len.saturating_add(next.len);
            }
            let (now, later) = take(rest, len, offset)?;
            match piece.member {
                Some(member) => member.read_at(piece.at, now)?,
                None => now.fill(0),
            }
            offset = offset.saturating_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        if offset >= self.len() {
            return Ok(Extent { hole: true, len: 0 });
        }
        let piece = self.0.piece(offset)?;
        let len = piece.len.min(self.len().saturating_sub(offset));
        match piece.member {
            Some(member) => extent(&**member, piece.at, len),
            None => Ok(Extent { hole: true, len }),
        }
    }
}

/// The first `len` bytes of a buffer, or all of it, and the rest.
pub(super) fn take(buf: &mut [u8], len: u64, at: u64) -> Result<(&mut [u8], &mut [u8])> {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
    if len == 0 {
        return Err(Error::corrupt("a run of no bytes", at));
    }
    buf.split_at_mut_checked(len)
        .ok_or_else(|| Error::corrupt("a run outside its buffer", at))
}

/// What begins at `at` of a member, for at most `len` bytes. What lies behind its end is data, so that reading it fails.
pub(super) fn extent(member: &dyn ReadAt, at: u64, len: u64) -> Result<Extent> {
    let extent = member.extent_at(at)?;
    Ok(match extent.len {
        0 => Extent { hole: false, len },
        n => Extent {
            hole: extent.hole,
            len: n.min(len),
        },
    })
}

/// Runs one behind the other: a linear array, a logical volume of several segments.
pub(super) struct Concat {
    /// Where each run ends, what holds it, and where on that it begins. A run without a member is a hole.
    runs: Vec<(u64, Option<Member>, u64)>,
}

impl Concat {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { runs: Vec::new() }
    }

    /// Adds `len` bytes of `member` from `at` on; zeros without a member.
    pub(super) fn push(&mut self, member: Option<Member>, at: u64, len: u64) -> Result<()> {
        let start = self.runs.last().map_or(0, |(end, _, _)| *end);
        let end = start
            .checked_add(len)
            .filter(|_| at.checked_add(len).is_some())
            .ok_or_else(|| Error::corrupt("a volume that is longer than can be", at))?;
        if len > 0 {
            self.runs.push((end, member, at));
        }
        Ok(())
    }
}

impl Map for Concat {
    fn len(&self) -> u64 {
        self.runs.last().map_or(0, |(end, _, _)| *end)
    }

    fn piece(&self, offset: u64) -> Result<Piece<'_>> {
        let n = self.runs.partition_point(|(end, _, _)| *end <= offset);
        let start = n
            .checked_sub(1)
            .and_then(|n| self.runs.get(n))
            .map_or(0, |(end, _, _)| *end);
        let (end, member, at) = self
            .runs
            .get(n)
            .ok_or_else(|| Error::corrupt("an offset behind the volume", offset))?;
        Ok(Piece {
            member: member.as_ref(),
            at: at.saturating_add(offset.saturating_sub(start)),
            len: end.saturating_sub(offset),
        })
    }
}

/// A part of a RAID 0 in which every stripe goes over the same members.
struct Zone {
    /// Where it begins and ends in the array.
    start: u64,
    end: u64,
    members: Vec<Member>,
    /// Where it begins on each member.
    at: u64,
    /// Chunks in front of the array's byte 0 from which members are counted.
    first: u64,
}

/// RAID 0: chunks that go around the members. Members of different length make several zones.
pub(super) struct Stripes {
    chunk: u64,
    zones: Vec<Zone>,
}

/// How the zones behind the first one count their members (`enum r0layout` of md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zones {
    /// From the beginning of the array: `RAID0_ORIG_LAYOUT`, before Linux 3.14.
    Original,
    /// From the beginning of the zone: `RAID0_ALT_MULTIZONE_LAYOUT`.
    Alternate,
}

impl Stripes {
    /// The stripes of `members` and the usable length of each; `zones` says how the second and later zones count, `None` if
    /// that is not known.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the lengths differ and it is not known how zones count.
    pub(super) fn new(members: &[(Member, u64)], chunk: u64, zones: Option<Zones>) -> Result<Self> {
        if chunk == 0 || members.is_empty() {
            return Err(Error::corrupt("a RAID 0 without members or chunk size", 0));
        }
        let mut made = Self {
            chunk,
            zones: Vec::new(),
        };
        let (mut done, mut start) = (0u64, 0u64);
        loop {
            let left: Vec<&(Member, u64)> = members
                .iter()
                .filter(|(_, len)| len / chunk * chunk > done)
                .collect();
            let Some(shortest) = left.iter().map(|(_, len)| len / chunk * chunk).min() else {
                break;
            };
            if !made.zones.is_empty() && zones.is_none() && left.len() > 1 {
                return Err(Error::unsupported(
                    "a RAID 0 of members of different length that does not record its layout",
                ));
            }
            let end = (shortest - done)
                .checked_mul(left.len() as u64)
                .and_then(|len| start.checked_add(len))
                .ok_or_else(|| Error::corrupt("a RAID 0 that is longer than can be", start))?;
            made.zones.push(Zone {
                start,
                end,
                members: left.iter().map(|(member, _)| Arc::clone(member)).collect(),
                at: done,
                first: match zones {
                    Some(Zones::Original) => start / chunk,
                    _ => 0,
                },
            });
            start = end;
            done = shortest;
        }
        Ok(made)
    }
}

impl Map for Stripes {
    fn len(&self) -> u64 {
        self.zones.last().map_or(0, |z| z.end)
    }

    fn piece(&self, offset: u64) -> Result<Piece<'_>> {
        let outside = || Error::corrupt("an offset behind the array", offset);
        let n = self.zones.partition_point(|z| z.end <= offset);
        let zone = self.zones.get(n).ok_or_else(outside)?;
        let inside = offset.saturating_sub(zone.start);
        if let [only] = zone.members.as_slice() {
            return Ok(Piece {
                member: Some(only),
                at: zone.at.saturating_add(inside),
                len: zone.end.saturating_sub(offset),
            });
        }
        let count = zone.members.len() as u64;
        let (chunk, within) = (inside / self.chunk, inside % self.chunk);
        let member = chunk.saturating_add(zone.first) % count;
        let member = usize::try_from(member).ok().and_then(|m| zone.members.get(m));
        Ok(Piece {
            member: Some(member.ok_or_else(outside)?),
            at: (chunk / count)
                .saturating_mul(self.chunk)
                .saturating_add(zone.at)
                .saturating_add(within),
            len: self.chunk - within,
        })
    }
}

/// RAID 1: the same bytes on every member. The first that can be read is taken.
pub(super) struct Mirror {
    legs: Vec<Member>,
    len: u64,
}

impl Mirror {
    /// `len` bytes that lie on each of `legs`.
    pub(super) fn new(legs: Vec<Member>, len: u64) -> Self {
        Self { legs, len }
    }
}

impl ReadAt for Mirror {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the array", self.len, offset, buf.len())?;
        first(&self.legs, |leg| leg.read_at(offset, buf))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.len.saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { hole: true, len: 0 });
        }
        match self.legs.first() {
            Some(leg) => extent(&**leg, offset, rest),
            None => Ok(Extent {
                hole: false,
                len: rest,
            }),
        }
    }
}

/// What the first leg gives that does not fail, else the first error.
fn first<T>(legs: &[Member], mut read: impl FnMut(&Member) -> Result<T>) -> Result<T> {
    let mut error = None;
    for leg in legs {
        match read(leg) {
            Ok(value) => return Ok(value),
            Err(e) => error = error.or(Some(e)),
        }
    }
    Err(error.unwrap_or_else(|| Error::corrupt("a mirror without members", 0)))
}

/// A member some of whose sectors are known to hold the wrong bytes: reading those is an error, so that another copy is
/// taken.
pub(super) struct Except {
    inner: Member,
    /// Start and end of each range, in bytes.
    bad: Vec<(u64, u64)>,
}

impl Except {
    /// `inner` without the ranges `bad`.
    pub(super) fn new(inner: Member, bad: Vec<(u64, u64)>) -> Self {
        Self { inner, bad }
    }
}

impl ReadAt for Except {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        match self.bad.iter().find(|(from, to)| *from < end && offset < *to) {
            Some((from, _)) => Err(Error::corrupt(
                "a sector in the member's list of bad blocks",
                *from,
            )),
            None => self.inner.read_at(offset, buf),
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent {
            hole: false,
            ..self.inner.extent_at(offset)?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_at::read_all;

    fn member(byte: u8, len: usize) -> Member {
        Arc::new(vec![byte; len])
    }

    #[test]
    fn runs_and_holes() {
        let mut map = Concat::new();
        map.push(Some(Arc::new((0..100u8).collect::<Vec<u8>>())), 90, 10)
            .unwrap();
        map.push(None, 0, 5).unwrap();
        map.push(Some(member(7, 3)), 0, 3).unwrap();
        map.push(Some(member(8, 3)), 1, 5).unwrap();
        let volume = Mapped(map);
        assert_eq!(volume.len(), 23);
        let mut buf = [1; 13];
        volume.read_at(5, &mut buf).unwrap();
        assert_eq!(buf, [95, 96, 97, 98, 99, 0, 0, 0, 0, 0, 7, 7, 7]);
        assert_eq!(volume.extent_at(10).unwrap(), Extent { hole: true, len: 5 });
        assert!(
            volume.read_at(18, &mut buf[..5]).is_err(),
            "the member is too short"
        );
        assert_eq!(volume.extent_at(20).unwrap(), Extent { hole: false, len: 3 });
        assert!(Concat::new().push(None, 1, u64::MAX).is_err());
    }

    #[test]
    fn zones_of_a_raid_0() {
        let members = [(member(1, 6), 7), (member(2, 8), 8), (member(3, 4), 4)];
        assert!(Stripes::new(&members, 2, None).is_err());
        let read = |zones| read_all(&Mapped(Stripes::new(&members, 2, Some(zones)).unwrap()), 100).unwrap();
        assert_eq!(
            read(Zones::Alternate),
            [1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 2, 2]
        );
        assert_eq!(
            read(Zones::Original),
            read(Zones::Alternate),
            "the second zone begins at an even chunk"
        );
        let members = [(member(1, 6), 6), (member(2, 6), 6), (member(3, 2), 2)];
        let read = |zones| read_all(&Mapped(Stripes::new(&members, 2, Some(zones)).unwrap()), 100).unwrap();
        assert_eq!(read(Zones::Alternate), [1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 1, 1, 2, 2]);
        assert_eq!(read(Zones::Original), [1, 1, 2, 2, 3, 3, 2, 2, 1, 1, 2, 2, 1, 1]);
        assert!(Stripes::new(&members, 0, None).is_err());
    }

    #[test]
    fn a_mirror_reads_the_leg_that_can_be_read() {
        let bad = Except::new(member(1, 10), vec![(4, 5)]);
        let mirror = Mirror::new(vec![Arc::new(bad), member(2, 10)], 10);
        let mut buf = [0; 4];
        mirror.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [1; 4]);
        mirror.read_at(1, &mut buf).unwrap();
        assert_eq!(buf, [2; 4]);
    }
}
