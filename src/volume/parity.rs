//! RAID 4, 5 and 6: stripes with one or two blocks of parity (drivers/md/raid5.h of Linux; H. P. Anvin, "The mathematics of
//! RAID-6"). What lies on missing members is computed from the others.

use super::layout::{Member, extent, take};
use crate::error::{Error, Result};
use crate::read_at::{Extent, ReadAt, check_range};

/// Where parity and data of a stripe lie: what md calls the layout or algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// Parity moves down from the last member, data begins at the first.
    LeftAsymmetric,
    /// Parity moves up from the first member, data begins at the first.
    RightAsymmetric,
    /// Parity moves down, data begins behind it.
    LeftSymmetric,
    /// Parity moves up, data begins behind it.
    RightSymmetric,
    /// Parity on the first members.
    ParityFirst,
    /// Parity on the last members (RAID 4 too).
    ParityLast,
    /// RAID 6 of DDF: parity moves up, data begins at the first member.
    ZeroRestart,
    /// RAID 6 of DDF: parity moves down, data begins at the first member.
    NRestart,
    /// RAID 6 of DDF: parity moves down, data begins behind it.
    NContinue,
    /// A RAID 5 on all members but the last, which holds Q.
    WithQLast(Five),
}

/// The RAID 5 inside a RAID 6 that grew from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Five {
    /// As [`Algorithm::LeftAsymmetric`].
    LeftAsymmetric,
    /// As [`Algorithm::RightAsymmetric`].
    RightAsymmetric,
    /// As [`Algorithm::LeftSymmetric`].
    LeftSymmetric,
    /// As [`Algorithm::RightSymmetric`].
    RightSymmetric,
    /// As [`Algorithm::ParityFirst`].
    ParityFirst,
}

impl Algorithm {
    /// The algorithm that `layout` of an md superblock stands for.
    pub(super) fn of_md(level: i32, layout: u32) -> Option<Self> {
        Some(match (level, layout) {
            (4, _) | (5 | 6, 5) => Self::ParityLast,
            (5 | 6, 0) => Self::LeftAsymmetric,
            (5 | 6, 1) => Self::RightAsymmetric,
            (5 | 6, 2) => Self::LeftSymmetric,
            (5 | 6, 3) => Self::RightSymmetric,
            (5 | 6, 4) => Self::ParityFirst,
            (6, 8) => Self::ZeroRestart,
            (6, 9) => Self::NRestart,
            (6, 10) => Self::NContinue,
            (6, 16) => Self::WithQLast(Five::LeftAsymmetric),
            (6, 17) => Self::WithQLast(Five::RightAsymmetric),
            (6, 18) => Self::WithQLast(Five::LeftSymmetric),
            (6, 19) => Self::WithQLast(Five::RightSymmetric),
            (6, 20) => Self::WithQLast(Five::ParityFirst),
            _ => return None,
        })
    }

    fn is_ddf(self) -> bool {
        matches!(self, Self::ZeroRestart | Self::NRestart | Self::NContinue)
    }
}

/// One stripe: which member holds what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stripe {
    p: usize,
    q: Option<usize>,
    /// The member of the chunk that is looked for.
    data: usize,
}

/// An array with parity.
pub(super) struct Parity {
    /// In the order of their roles; `None` for those that are missing.
    members: Vec<Option<Member>>,
    algorithm: Algorithm,
    /// 1, or 2 for RAID 6.
    parities: usize,
    /// Bytes of one member that stand together.
    chunk: u64,
    len: u64,
}

impl Parity {
    /// An array of `members` that each hold `size` bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it cannot be, [`Error::Unsupported`] if more members are missing than parity makes up for.
    pub(super) fn new(
        members: Vec<Option<Member>>,
        six: bool,
        algorithm: Algorithm,
        chunk: u64,
        size: u64,
    ) -> Result<Self> {
        let parities = if six { 2 } else { 1 };
        let data = members.len().checked_sub(parities).filter(|d| *d > 0);
        let data = data.ok_or_else(|| Error::corrupt("an array with parity of too few members", 0))?;
        if chunk == 0 {
            return Err(Error::corrupt("an array with parity without a chunk size", 0));
        }
        let missing = members.iter().filter(|m| m.is_none()).count();
        if missing > parities {
            return Err(Error::unsupported(format!(
                "{missing} of {} members are missing, at most {parities} may be",
                members.len()
            )));
        }
        let len = (size / chunk * chunk)
            .checked_mul(data as u64)
            .ok_or_else(|| Error::corrupt("an array that is longer than can be", 0))?;
        Ok(Self {
            members,
            algorithm,
            parities,
            chunk,
            len,
        })
    }

    /// The place of the data chunk number `dd` of stripe `stripe`.
    fn place(&self, stripe: u64, dd: usize) -> Stripe {
        let n = self.members.len();
        let six = self.parities == 2;
        let turn = |count: usize, stripe: u64| usize::try_from(stripe % (count.max(1) as u64)).unwrap_or(0);
        // RAID 5 over `n` members.
        let five = |algorithm: Algorithm, n: usize| {
            let down = (n - 1).saturating_sub(turn(n, stripe));
            let up = turn(n, stripe);
            let skip = |p: usize| if dd >= p { dd + 1 } else { dd };
            match algorithm {
                Algorithm::LeftAsymmetric => (down, skip(down)),
                Algorithm::RightAsymmetric => (up, skip(up)),
                Algorithm::LeftSymmetric => (down, (down + 1 + dd) % n),
                Algorithm::RightSymmetric => (up, (up + 1 + dd) % n),
                Algorithm::ParityFirst => (0, dd + 1),
                _ => (n - 1, dd),
            }
        };
        if !six {
            let (p, data) = five(self.algorithm, n);
            return Stripe { p, q: None, data };
        }
        // P at `p`, Q behind it, data from the first member on.
        let restart = |p: usize| {
            if p == n - 1 {
                (p, 0, dd + 1)
            } else {
                (p, p + 1, if dd >= p { dd + 2 } else { dd })
            }
        };
        let behind = |p: usize| (p, (p + 1) % n, (p + 2 + dd) % n);
        let down = |stripe: u64| (n - 1).saturating_sub(turn(n, stripe));
        let up = turn(n, stripe);
        let (p, q, data) = match self.algorithm {
            Algorithm::LeftAsymmetric => restart(down(stripe)),
            Algorithm::RightAsymmetric | Algorithm::ZeroRestart => restart(up),
            Algorithm::LeftSymmetric => behind(down(stripe)),
            Algorithm::RightSymmetric => behind(up),
            Algorithm::ParityFirst => (0, 1, dd + 2),
            Algorithm::ParityLast => (n - 2, n - 1, dd),
            Algorithm::NRestart => restart(down(stripe.wrapping_add(1))),
            Algorithm::NContinue => {
                let p = down(stripe);
                (p, (p + n - 1) % n, (p + 1 + dd) % n)
            }
            Algorithm::WithQLast(inner) => {
                let inner = match inner {
                    Five::LeftAsymmetric => Algorithm::LeftAsymmetric,
                    Five::RightAsymmetric => Algorithm::RightAsymmetric,
                    Five::LeftSymmetric => Algorithm::LeftSymmetric,
                    Five::RightSymmetric => Algorithm::RightSymmetric,
                    Five::ParityFirst => Algorithm::ParityFirst,
                };
                let (p, data) = five(inner, n - 1);
                (p, n - 1, data)
            }
        };
        Stripe { p, q: Some(q), data }
    }

    /// The power of the generator that Q has `member` with.
    fn power(&self, stripe: Stripe, member: usize) -> usize {
        if self.algorithm.is_ddf() {
            return member;
        }
        let (n, q) = (self.members.len(), stripe.q.unwrap_or(0));
        // Counted from behind Q around to it, without P.
        let from = |member: usize| (member + n - q - 1) % n;
        from(member) - usize::from(from(stripe.p) < from(member))
    }

    /// The chunk of the array that holds `offset`: its stripe, where on the member `offset` is, and what is left of it.
    fn locate(&self, offset: u64) -> (Stripe, u64, u64) {
        let data = (self.members.len() - self.parities) as u64;
        let (chunk, within) = (offset / self.chunk, offset % self.chunk);
        let stripe = chunk / data;
        let dd = usize::try_from(chunk % data).unwrap_or(0);
        let at = stripe.saturating_mul(self.chunk).saturating_add(within);
        (self.place(stripe, dd), at, self.chunk - within)
    }

    fn member(&self, n: usize) -> Option<&Member> {
        self.members.get(n)?.as_ref()
    }

    /// What the member `stripe.data` would hold at `at`.
    fn reconstruct(&self, stripe: Stripe, at: u64, out: &mut [u8]) -> Result<()> {
        let x = stripe.data;
        let is_data = |m: usize| m != stripe.p && Some(m) != stripe.q;
        let missing: Vec<usize> = (0..self.members.len())
            .filter(|m| *m != x && is_data(*m) && self.member(*m).is_none())
            .collect();
        let p = self.member(stripe.p);
        let q = stripe.q.and_then(|q| self.member(q));
        let mut buf = vec![0; out.len()];
        let lost = || {
            Err(Error::corrupt(
                "a block that lies on a member that cannot be read, and too few others are there",
                at,
            ))
        };
        out.fill(0);
        let others = || (0..self.members.len()).filter(|m| *m != x && is_data(*m));
        match (missing.as_slice(), p, q) {
            ([], Some(p), _) => {
                p.read_at(at, out)?;
                for m in others() {
                    if let Some(member) = self.member(m) {
                        member.read_at(at, &mut buf)?;
                        xor(out, &buf);
                    }
                }
                Ok(())
            }
            ([], None, Some(q)) => {
                q.read_at(at, out)?;
                for m in others() {
                    if let Some(member) = self.member(m) {
                        member.read_at(at, &mut buf)?;
                        multiply(&mut buf, exp(self.power(stripe, m)));
                        xor(out, &buf);
                    }
                }
                multiply(out, inverse(exp(self.power(stripe, x))));
                Ok(())
            }
            ([y], Some(p), Some(q)) => {
                // What is missing of P is Dx + Dy, of Q it is gx Dx + gy Dy.
                let mut of_q = vec![0; out.len()];
                p.read_at(at, out)?;
                q.read_at(at, &mut of_q)?;
                for m in others() {
                    if let Some(member) = self.member(m) {
                        member.read_at(at, &mut buf)?;
                        xor(out, &buf);
                        multiply(&mut buf, exp(self.power(stripe, m)));
                        xor(&mut of_q, &buf);
                    }
                }
                let (gx, gy) = (exp(self.power(stripe, x)), exp(self.power(stripe, *y)));
                multiply(out, gy);
                xor(out, &of_q);
                multiply(out, inverse(gx ^ gy));
                Ok(())
            }
            _ => lost(),
        }
    }
}

impl ReadAt for Parity {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("the array", self.len, offset, buf.len())?;
        let mut rest = buf;
        while !rest.is_empty() {
            let (stripe, at, len) = self.locate(offset);
            let (now, later) = take(rest, len, offset)?;
            let read = self.member(stripe.data).map(|m| m.read_at(at, now));
            match read {
                Some(Ok(())) => {}
                // Where the rest cannot make up for it, what went wrong first is told.
                Some(Err(e)) => self.reconstruct(stripe, at, now).map_err(|_| e)?,
                None => self.reconstruct(stripe, at, now)?,
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
        let (stripe, at, len) = self.locate(offset);
        let mut len = len.min(rest);
        if let Some(member) = self.member(stripe.data) {
            return extent(&**member, at, len);
        }
        // The parity of zeros is zeros.
        for member in self.members.iter().flatten() {
            let extent = extent(&**member, at, len)?;
            len = extent.len;
            if !extent.hole {
                return Ok(extent);
            }
        }
        Ok(Extent { hole: true, len })
    }
}

fn xor(to: &mut [u8], with: &[u8]) {
    for (a, b) in to.iter_mut().zip(with) {
        *a ^= b;
    }
}

/// The product in GF(2^8) by x^8 + x^4 + x^3 + x^2 + 1.
fn product(mut a: u8, mut b: u8) -> u8 {
    let mut sum = 0;
    while b != 0 {
        if b & 1 != 0 {
            sum ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1d } else { 0 };
        b >>= 1;
    }
    sum
}

/// The generator, 2, to a power.
fn exp(power: usize) -> u8 {
    (0..power % 255).fold(1, |g, _| product(g, 2))
}

/// a^254, which is 1/a.
fn inverse(a: u8) -> u8 {
    (0..254).fold(1, |g, _| product(g, a))
}

fn multiply(bytes: &mut [u8], by: u8) {
    if by == 1 {
        return;
    }
    let mut table = [0u8; 256];
    for (a, out) in (0..=255).zip(table.iter_mut()) {
        *out = product(a, by);
    }
    for byte in bytes {
        *byte = table.get(usize::from(*byte)).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_field() {
        assert_eq!(product(0x80, 2), 0x1d);
        assert_eq!(exp(8), 0x1d);
        for a in 1..=255 {
            assert_eq!(product(a, inverse(a)), 1);
        }
    }

    /// Every layout: data and parity lie on different members, all chunks of a stripe on different ones, and what is
    /// missing is computed, whichever one or two members are missing.
    #[test]
    fn whatever_is_missing_is_computed() {
        const CHUNK: usize = 4;
        for six in [false, true] {
            let layouts: &[u32] = if six {
                &[0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20]
            } else {
                &[0, 1, 2, 3, 4, 5]
            };
            for (layout, n) in layouts.iter().flat_map(|l| [(*l, 4), (*l, 5), (*l, 7)]) {
                let algorithm = Algorithm::of_md(if six { 6 } else { 5 }, layout).unwrap();
                let parities = 1 + usize::from(six);
                let stripes = 2 * n;
                let blank: Vec<Option<Member>> = vec![Some(Arc::new(vec![0; CHUNK * stripes])); n];
                let array =
                    Parity::new(blank, six, algorithm, CHUNK as u64, (CHUNK * stripes) as u64).unwrap();
                let content: Vec<u8> = (0..array.len).map(|i| (i * 7 + i / 251) as u8).collect();
                let mut disks = vec![vec![0u8; CHUNK * stripes]; n];
                for stripe in 0..stripes {
                    let mut seen = Vec::new();
                    for dd in 0..n - parities {
                        let place = array.place(stripe as u64, dd);
                        seen.extend([place.data, place.p]);
                        seen.extend(place.q);
                        for i in 0..CHUNK {
                            let byte = content[(stripe * (n - parities) + dd) * CHUNK + i];
                            let at = stripe * CHUNK + i;
                            disks[place.data][at] = byte;
                            disks[place.p][at] ^= byte;
                            if let Some(q) = place.q {
                                disks[q][at] ^= product(byte, exp(array.power(place, place.data)));
                            }
                        }
                    }
                    seen.sort_unstable();
                    seen.dedup();
                    assert_eq!(seen.len(), n, "layout {layout} of {n}");
                }
                for (a, b) in (0..n).flat_map(|a| (0..n).map(move |b| (a, b))) {
                    if !six && a != b {
                        continue;
                    }
                    let members = disks
                        .iter()
                        .enumerate()
                        .map(|(i, d)| (i != a && i != b).then(|| Arc::new(d.clone()) as Member));
                    let array = Parity::new(
                        members.collect(),
                        six,
                        algorithm,
                        CHUNK as u64,
                        (CHUNK * stripes) as u64,
                    )
                    .unwrap();
                    let read = crate::read_at::read_all(&array, 1 << 20).unwrap();
                    assert_eq!(read, content, "layout {layout} of {n} without {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn too_few_members_are_refused() {
        let one = || Some(Arc::new(vec![0u8; 64]) as Member);
        let five = |members| Parity::new(members, false, Algorithm::LeftSymmetric, 4, 64);
        assert!(five(vec![one(), None, None]).is_err());
        assert!(five(vec![one()]).is_err());
        assert!(Parity::new(vec![one(), one(), one()], false, Algorithm::LeftSymmetric, 0, 64).is_err());
        assert_eq!(five(vec![one(), None, one()]).unwrap().len(), 128);
    }
}
