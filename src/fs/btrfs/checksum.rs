//! The four checksums of btrfs: crc32c, xxHash (XXH64), SHA-256 and BLAKE2b-256.

use crate::bytes::{le32, le64};
use crate::error::{Error, Result};
use sha2::Digest;

/// Which checksum a filesystem uses for all its nodes and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc32c,
    XxHash,
    Sha256,
    Blake2b,
}

impl Checksum {
    /// The checksum that the superblock's `csum_type` names.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a type that is not known.
    pub(super) fn new(csum_type: u16) -> Result<Self> {
        Ok(match csum_type {
            0 => Self::Crc32c,
            1 => Self::XxHash,
            2 => Self::Sha256,
            3 => Self::Blake2b,
            n => return Err(Error::unsupported(format!("btrfs checksum type {n}"))),
        })
    }

    /// Bytes of one checksum.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::XxHash => 8,
            Self::Sha256 | Self::Blake2b => 32,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::XxHash => "xxhash64",
            Self::Sha256 => "sha256",
            Self::Blake2b => "blake2b",
        }
    }

    /// The checksum of `bytes`, in as many bytes as [`Self::len`], the rest zero.
    pub(super) fn of(self, bytes: &[u8]) -> [u8; 32] {
        let mut sum = [0; 32];
        let mut put = |bytes: &[u8]| {
            for (to, from) in sum.iter_mut().zip(bytes) {
                *to = *from;
            }
        };
        match self {
            Self::Crc32c => put(&crc32c::crc32c(bytes).to_le_bytes()),
            Self::XxHash => put(&xxh64(bytes).to_le_bytes()),
            Self::Sha256 => put(&sha2::Sha256::digest(bytes)),
            Self::Blake2b => put(&blake2b(bytes)),
        }
        sum
    }

    /// True if `stored` begins with the checksum of `bytes`.
    pub(super) fn matches(self, stored: &[u8], bytes: &[u8]) -> bool {
        let len = self.len();
        stored.len() >= len && stored.get(..len) == self.of(bytes).get(..len)
    }
}

/// The hash of a name in the key of its directory item or attribute.
pub(super) fn name_hash(name: &[u8]) -> u64 {
    u64::from(raw_crc32c(!1, name))
}

/// The hash of parent and name in the key of an extended inode reference.
pub(super) fn extref_hash(parent: u64, name: &[u8]) -> u64 {
    u64::from(raw_crc32c((parent & 0xffff_ffff) as u32, name))
}

/// crc32c as a raw shift register: no inversion before or after.
fn raw_crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;

fn xx_round(acc: u64, lane: u64) -> u64 {
    acc.wrapping_add(lane.wrapping_mul(P2))
        .rotate_left(31)
        .wrapping_mul(P1)
}

/// XXH64 with seed 0 (xxHash specification 0.1.1).
fn xxh64(bytes: &[u8]) -> u64 {
    let lane = |b: &[u8], n: usize| le64(b, n * 8).unwrap_or_default();
    let (stripes, mut rest) = bytes.as_chunks::<32>();
    let mut hash = if stripes.is_empty() {
        P5
    } else {
        let mut v = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
        for stripe in stripes {
            for (n, acc) in v.iter_mut().enumerate() {
                *acc = xx_round(*acc, lane(stripe, n));
            }
        }
        let [a, b, c, d] = v;
        let mut hash = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        for acc in v {
            hash = (hash ^ xx_round(0, acc)).wrapping_mul(P1).wrapping_add(P4);
        }
        hash
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    while let Some((eight, after)) = rest.split_at_checked(8) {
        hash = (hash ^ xx_round(0, lane(eight, 0)))
            .rotate_left(27)
            .wrapping_mul(P1)
            .wrapping_add(P4);
        rest = after;
    }
    if let Some((four, after)) = rest.split_at_checked(4) {
        let lane = u64::from(le32(four, 0).unwrap_or_default());
        hash = (hash ^ lane.wrapping_mul(P1))
            .rotate_left(23)
            .wrapping_mul(P2)
            .wrapping_add(P3);
        rest = after;
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte).wrapping_mul(P5))
            .rotate_left(11)
            .wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

const BLAKE_IV: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

const BLAKE_SIGMA: [[usize; 16]; 12] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
];

/// BLAKE2b with a digest of 256 bits and no key (RFC 7693).
fn blake2b(bytes: &[u8]) -> [u8; 32] {
    let mut h = BLAKE_IV;
    if let Some(first) = h.first_mut() {
        *first ^= 0x0101_0000 ^ 32;
    }
    let mut rest = bytes;
    let mut count: u128 = 0;
    loop {
        let n = rest.len().min(128);
        let (block, after) = rest.split_at_checked(n).unwrap_or((rest, &[]));
        let mut padded = [0; 128];
        for (to, from) in padded.iter_mut().zip(block) {
            *to = *from;
        }
        count += n as u128;
        blake_compress(&mut h, &padded, count, after.is_empty());
        if after.is_empty() {
            break;
        }
        rest = after;
    }
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(h.iter().flat_map(|w| w.to_le_bytes())) {
        *to = from;
    }
    out
}

#[expect(clippy::indexing_slicing, reason = "all indexes are constants below 16")]
fn blake_compress(h: &mut [u64; 8], block: &[u8; 128], count: u128, last: bool) {
    let mut m = [0u64; 16];
    for (word, bytes) in m.iter_mut().zip(block.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    let mut v = [0u64; 16];
    v[..8].copy_from_slice(h);
    v[8..].copy_from_slice(&BLAKE_IV);
    v[12] ^= (count & u128::from(u64::MAX)) as u64;
    v[13] ^= (count >> 64) as u64;
    if last {
        v[14] = !v[14];
    }
    let mut g = |a: usize, b: usize, c: usize, d: usize, x: u64, y: u64| {
        v[a] = v[a].wrapping_add(v[b]).wrapping_add(x);
        v[d] = (v[d] ^ v[a]).rotate_right(32);
        v[c] = v[c].wrapping_add(v[d]);
        v[b] = (v[b] ^ v[c]).rotate_right(24);
        v[a] = v[a].wrapping_add(v[b]).wrapping_add(y);
        v[d] = (v[d] ^ v[a]).rotate_right(16);
        v[c] = v[c].wrapping_add(v[d]);
        v[b] = (v[b] ^ v[c]).rotate_right(63);
    };
    for s in &BLAKE_SIGMA {
        g(0, 4, 8, 12, m[s[0]], m[s[1]]);
        g(1, 5, 9, 13, m[s[2]], m[s[3]]);
        g(2, 6, 10, 14, m[s[4]], m[s[5]]);
        g(3, 7, 11, 15, m[s[6]], m[s[7]]);
        g(0, 5, 10, 15, m[s[8]], m[s[9]]);
        g(1, 6, 11, 12, m[s[10]], m[s[11]]);
        g(2, 7, 8, 13, m[s[12]], m[s[13]]);
        g(3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (n, word) in h.iter_mut().enumerate() {
        *word ^= v[n] ^ v[n + 8];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::hex;

    #[test]
    fn published_values() {
        let sum = |kind: Checksum, bytes: &[u8]| hex(&kind.of(bytes)[..kind.len()]);
        assert_eq!(sum(Checksum::Crc32c, b"123456789"), "839206e3");
        // The sanity checks of the xxHash specification: an empty input, and a text longer than a stripe.
        assert_eq!(sum(Checksum::XxHash, b""), "99e9d85137db46ef");
        assert_eq!(
            xxh64(b"Nobody inspects the spammish repetition"),
            0xfbce_a83c_8a37_8bf1
        );
        assert_eq!(xxh64(b"abc"), 0x44bc_2cf5_ad77_0999);
        // b2sum -l 256 of nothing and of "abc".
        assert_eq!(
            sum(Checksum::Blake2b, b""),
            "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"
        );
        assert_eq!(
            sum(Checksum::Blake2b, b"abc"),
            "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"
        );
        assert!(Checksum::new(4).is_err());
    }
}
