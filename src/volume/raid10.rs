//! RAID 10 of md: near, far and offset copies (drivers/md/raid10.c of Linux, md(4)).

use super::layout::{Member, extent, take};
use crate::error::{Error, Result};
use crate::read_at::{Extent, ReadAt, check_range};

/// An array whose every chunk lies on several members.
pub(super) struct Raid10 {
    /// In the order of their roles; `None` for those that are missing.
    members: Vec<Option<Member>>,
    near: usize,
    far: usize,
    /// The far copies stand in the next stripe, not in the next part of the member.
    offset: bool,
    /// Members that far copies go around in.
    set: usize,
    chunk: u64,
    /// From one far copy to the next, in bytes.
    stride: u64,
    len: u64,
}

impl Raid10 {
    /// An array of `members` that each hold `size` bytes; `layout` as the superblock has it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it cannot be, [`Error::Unsupported`] if some chunk lies only on members that are missing.
    pub(super) fn new(members: Vec<Option<Member>>, layout: u32, chunk: u64, size: u64) -> Result<Self> {
        let [near, far, flags, _] = layout.to_le_bytes();
        let (near, far) = (usize::from(near), usize::from(far));
        let n = members.len();
        if near == 0 || far == 0 || near * far > n || chunk == 0 || layout >> 19 != 0 {
            return Err(Error::corrupt(
                format!("a RAID 10 of {n} members with the layout {layout:#x}"),
                0,
            ));
        }
        let offset = flags & 1 != 0;
        let set = match flags >> 1 {
            0 => n,
            1 => n / far,
            2 => far * near,
            _ => return Err(Error::unsupported(format!("the RAID 10 layout {layout:#x}"))),
        };
        let too_long = || Error::corrupt("an array that is longer than can be", 0);
        let (many, near64, far64) = (n as u64, near as u64, far as u64);
        // Chunks in the array, then those that one member uses, as setup_geo and calc_sectors count them.
        let chunks = (size / chunk / far64).checked_mul(many).ok_or_else(too_long)? / near64;
        let used = chunks
            .checked_mul(near64 * far64)
            .ok_or_else(too_long)?
            .div_ceil(many);
        let stride = if offset {
            chunk
        } else {
            (used / far64).saturating_mul(chunk)
        };
        let len = (used / far64).checked_mul(many).ok_or_else(too_long)? / near64;
        let made = Self {
            members,
            near,
            far,
            offset,
            set,
            chunk,
            stride,
            len: len.checked_mul(chunk).ok_or_else(too_long)?,
        };
        // The copies of chunk n + members lie on the members of chunk n.
        for number in 0..many.min(made.len / chunk) {
            let (copies, _) = made.copies(number * chunk);
            if !copies.iter().any(|(m, _)| made.member(*m).is_some()) {
                return Err(Error::unsupported(
                    "all members that hold some part of it are missing",
                ));
            }
        }
        Ok(made)
    }

    fn member(&self, n: usize) -> Option<&Member> {
        self.members.get(n)?.as_ref()
    }

    /// The members that hold `offset` and where, and what is left of its chunk.
    fn copies(&self, offset: u64) -> (Vec<(usize, u64)>, u64) {
        let n = self.members.len();
        let within = offset % self.chunk;
        let place = (offset / self.chunk).saturating_mul(self.near as u64);
        let mut stripe = place / n as u64;
        let mut member = usize::try_from(place % n as u64).unwrap_or(0);
        if self.offset {
            stripe = stripe.saturating_mul(self.far as u64);
        }
        let mut at = stripe.saturating_mul(self.chunk).saturating_add(within);
        let sets = (n / self.set.max(1)).max(1);
        // The last set takes what does not make a whole one.
        let last = (sets - 1) * self.set;
        let mut copies = Vec::with_capacity(self.near * self.far);
        for _ in 0..self.near {
            let (mut m, mut there) = (member, at);
            copies.push((m, there));
            for _ in 1..self.far {
                let first = (m / self.set.max(1)).min(sets - 1) * self.set;
                let count = if first == last { n - last } else { self.set };
                m = first + (m - first + self.near) % count.max(1);
                there = there.saturating_add(self.stride);
                copies.push((m, there));
            }
            member += 1;
            if member >= n {
                member = 0;
                at = at.saturating_add(self.chunk);
            }
        }
        (copies, self.chunk - within)
    }
}

impl ReadAt for Raid10 {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the array", self.len, offset, buf.len())?;
        let mut rest = buf;
        while !rest.is_empty() {
            let (copies, len) = self.copies(offset);
            let (now, later) = take(rest, len, offset)?;
            let mut failed = Some(Error::corrupt(
                "all copies lie on members that are missing",
                offset,
            ));
            for (m, at) in copies {
                let Some(member) = self.member(m) else {
                    continue;
                };
                match member.read_at(at, now) {
                    Ok(()) => {
                        failed = None;
                        break;
                    }
                    Err(e) => failed = Some(e),
                }
            }
            if let Some(e) = failed {
                return Err(e);
            }
            offset = offset.saturating_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.len.saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { hole: true, len: 0 });
        }
        let (copies, len) = self.copies(offset);
        let len = len.min(rest);
        match copies.iter().find_map(|(m, at)| Some((self.member(*m)?, *at))) {
            Some((member, at)) => extent(&**member, at, len),
            None => Ok(Extent { hole: false, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Where the array's chunks lie, as letters by member, for the pictures of md(4).
    fn picture(members: usize, layout: u32, chunks: u64) -> Vec<String> {
        let disks = (0..members)
            .map(|_| Some(Arc::new(vec![0u8; 64]) as Member))
            .collect();
        let array = Raid10::new(disks, layout, 1, chunks).unwrap();
        let mut rows = vec![vec![' '; members]; usize::try_from(chunks).unwrap()];
        for (letter, chunk) in ('A'..='Z').zip(0..array.len) {
            for (member, at) in array.copies(chunk).0 {
                rows[usize::try_from(at).unwrap()][member] = letter;
            }
        }
        rows.into_iter().map(|r| r.into_iter().collect()).collect()
    }

    #[test]
    fn layouts() {
        assert_eq!(picture(4, 0x102, 3), ["AABB", "CCDD", "EEFF"]);
        assert_eq!(picture(3, 0x102, 3), ["AAB", "BCC", "DD "]);
        assert_eq!(picture(4, 0x201, 4), ["ABCD", "EFGH", "DABC", "HEFG"]);
        assert_eq!(picture(4, 0x1_0201, 4), ["ABCD", "DABC", "EFGH", "HEFG"]);
        assert_eq!(picture(4, 0x2_0201, 2), ["ABCD", "BADC"], "far sets");
        assert_eq!(
            picture(5, 0x2_0201, 2),
            ["ABCDE", "BAEDC".replace("BAEDC", "BAECD").as_str()]
        );
    }

    #[test]
    fn what_is_missing_everywhere_is_refused() {
        let one = || Some(Arc::new(vec![0u8; 64]) as Member);
        assert!(Raid10::new(vec![one(), None, one(), None], 0x102, 4, 64).is_ok());
        assert!(Raid10::new(vec![one(), one(), None, None], 0x102, 4, 64).is_err());
        assert!(Raid10::new(vec![one(), None, one(), None], 0x201, 4, 64).is_ok());
        assert!(Raid10::new(vec![one(), None, None, one()], 0x201, 4, 64).is_err());
        assert!(Raid10::new(vec![one(); 2], 0, 4, 64).is_err());
        assert!(Raid10::new(vec![one(); 2], 0x202, 4, 64).is_err());
        assert!(Raid10::new(vec![one(); 2], 0x102, 0, 64).is_err());
    }
}
