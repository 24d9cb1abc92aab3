//! A layer's listing as bytes, for the store's cache: so that a base image that was read once is not unpacked again.
//!
//! All numbers are LEB128, byte strings have their length in front. The store's seal guards against damage; this reader
//! still takes nothing on trust.

use super::layer::{Item, Listing, Place, What};
use crate::path::GuestPath;
use crate::tree::Time;

/// The name of the cache; it changes with the format and with what a listing means.
pub(crate) const KIND: &str = "layer-listing-1";

struct Out(Vec<u8>);

impl Out {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = u64::from(b & 0x7f);
            n |= bits.checked_shl(shift).filter(|v| v >> shift == bits)?;
            if b & 0x80 == 0 {
                return Some(n);
            }
        }
        None
    }
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = usize::try_from(self.number()?).ok()?;
        self.take(n)
    }
    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.number()?).ok()
    }
    fn path(&mut self) -> Option<GuestPath> {
        GuestPath::new(self.bytes()?).ok()
    }
}

/// `listing` as bytes.
pub(crate) fn encode(listing: &Listing) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(listing.items.len() * 96));
    out.number(listing.items.len() as u64);
    for item in &listing.items {
        out.bytes(item.path.as_bytes());
        for n in [item.mode.into(), item.uid.into(), item.gid.into()] {
            out.number(n);
        }
        out.number(item.mtime.sec.cast_unsigned());
        out.number(item.mtime.nsec.into());
        out.number(item.xattrs.len() as u64);
        for (name, value) in &item.xattrs {
            out.bytes(name);
            out.bytes(value);
        }
        match &item.what {
            What::Directory => out.0.push(b'd'),
            What::File { size, hash, place } => {
                out.0.push(b'f');
                out.number(*size);
                out.0.extend_from_slice(hash);
                match place {
                    Place::At(at) => {
                        out.number(*at);
                        out.number(0);
                    }
                    Place::Runs(at, runs) => {
                        out.number(*at);
                        out.number(runs.len() as u64 + 1);
                        for (start, len) in runs {
                            out.number(*start);
                            out.number(*len);
                        }
                    }
                }
            }
            What::Link(to) => {
                out.0.push(b'h');
                out.bytes(to.as_bytes());
            }
            What::Symlink(target) => {
                out.0.push(b'l');
                out.bytes(target);
            }
            What::Block(major, minor) | What::Char(major, minor) => {
                let block = matches!(item.what, What::Block(..));
                out.0.push(if block { b'b' } else { b'c' });
                out.number((*major).into());
                out.number((*minor).into());
            }
            What::Fifo => out.0.push(b'p'),
            What::Whiteout => out.0.push(b'w'),
            What::Opaque => out.0.push(b'o'),
        }
    }
    out.0
}

/// The listing in `bytes`, `None` if they are none.
pub(crate) fn decode(bytes: &[u8]) -> Option<Listing> {
    let mut from = In(bytes);
    let count: usize = from.small()?;
    let mut items = Vec::with_capacity(count.min(bytes.len() / 8));
    for _ in 0..count {
        items.push(item(&mut from)?);
    }
    from.0.is_empty().then_some(Listing { items })
}

fn item(from: &mut In) -> Option<Item> {
    let path = from.path()?;
    let (mode, uid, gid) = (from.small()?, from.small()?, from.small()?);
    let mtime = Time {
        sec: from.number()?.cast_signed(),
        nsec: from.small()?,
    };
    let mut xattrs = Vec::new();
    for _ in 0..from.number()? {
        xattrs.push((from.bytes()?.to_vec(), from.bytes()?.to_vec()));
    }
    let what = match from.byte()? {
        b'd' => What::Directory,
        b'f' => {
            let size = from.number()?;
            let hash = from.take(32)?.try_into().ok()?;
            let at = from.number()?;
            let place = match from.number()? {
                0 => Place::At(at),
                n => {
                    let mut runs = Vec::new();
                    for _ in 1..n {
                        runs.push((from.number()?, from.number()?));
                    }
                    Place::Runs(at, runs.into())
                }
            };
            What::File { size, hash, place }
        }
        b'h' => What::Link(from.path()?),
        b'l' => What::Symlink(from.bytes()?.to_vec()),
        b'b' => What::Block(from.small()?, from.small()?),
        b'c' => What::Char(from.small()?, from.small()?),
        b'p' => What::Fifo,
        b'w' => What::Whiteout,
        b'o' => What::Opaque,
        _ => return None,
    };
    Some(Item {
        path,
        what,
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_nothing_else_does() {
        let kinds = [
            What::Directory,
            What::File {
                size: u64::MAX,
                hash: [9; 32],
                place: Place::At(1 << 40),
            },
            What::File {
                size: 10,
                hash: [0; 32],
                place: Place::Runs(512, Box::new([(1, 2), (5, 5)])),
            },
            What::File {
                size: 10,
                hash: [0; 32],
                place: Place::Runs(512, Box::new([])),
            },
            What::Link(GuestPath::new(b"/a").unwrap()),
            What::Symlink(b"\xff../x".to_vec()),
            What::Block(8, 1),
            What::Char(u32::MAX, 0),
            What::Fifo,
            What::Whiteout,
            What::Opaque,
        ];
        let items = kinds.into_iter().enumerate().map(|(i, what)| Item {
            path: GuestPath::new(format!("/dir/{i}").as_bytes()).unwrap(),
            what,
            mode: 0o7755,
            uid: u32::MAX,
            gid: 5,
            mtime: Time {
                sec: -7,
                nsec: 999_999_999,
            },
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255]); i % 3],
        });
        let listing = Listing {
            items: items.collect(),
        };
        let bytes = encode(&listing);
        assert_eq!(decode(&bytes).unwrap(), listing);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None);
        }
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut broken = bytes.clone();
                broken[i] ^= 1 << bit;
                let _ = decode(&broken);
            }
        }
    }
}
