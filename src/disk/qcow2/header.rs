//! The qcow2 header and its extensions (qcow2.txt, "Header", "Header extensions").

use crate::bytes::{be32, be64, slice, u8_at, until_nul};
use crate::error::{Error, Escaped, Result};

/// How compressed clusters are compressed (header field `compression_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate, which qemu calls `zlib`.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// The fields that reading needs, each within the limits of the specification and of qemu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    /// Log2 of the cluster size: 9 to 21.
    pub(super) cluster_bits: u32,
    /// Size of the disk in bytes; a multiple of 512, as qemu counts in sectors.
    pub(super) size: u64,
    /// Entries in the L1 table: enough for `size`, at most 4 Mi.
    pub(super) l1_size: u32,
    /// Where the L1 table begins in the file; a multiple of the cluster size.
    pub(super) l1_table_offset: u64,
    pub(super) nb_snapshots: u32,
    /// The corrupt bit: something found the image damaged before.
    pub(super) corrupt: bool,
    /// Entries of the L2 tables have 16 bytes and 32 subclusters.
    pub(super) extended_l2: bool,
    pub(super) compression: Compression,
    /// The backing file's name as it stands.
    pub(super) backing: Option<Vec<u8>>,
    /// The backing file's format as it stands.
    pub(super) backing_format: Option<Vec<u8>>,
    /// Clusters lie in another file; its name as it stands, or `None` inside if the image does not say.
    pub(super) data_file: Option<Option<Vec<u8>>>,
}

// incompatible_features
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

// Header extension types.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const DATA_FILE: u32 = 0x4441_5441;

/// qemu's limit for the L1 table in bytes (QCOW_MAX_L1_SIZE).
const MAX_L1_BYTES: u64 = 32 << 20;

/// The cluster size's log2 from the beginning of a file, checked.
///
/// # Errors
/// [`Error::Corrupt`] if it is outside 9 to 21.
pub(super) fn cluster_bits(first: &[u8]) -> Result<u32> {
    match be32(first, 20) {
        Some(bits @ 9..=21) => Ok(bits),
        Some(bits) => Err(Error::corrupt(
            format!("qcow2 header: cluster_bits is {bits}, not 9 to 21"),
            20,
        )),
        None => Err(too_short()),
    }
}

impl Header {
    /// Parses the first cluster of a file, or what there is of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a field outside its limits, [`Error::Unsupported`] naming a feature that is not known or
    /// not read.
    pub(super) fn from_bytes(b: &[u8]) -> Result<Self> {
        let version = be32(b, 4).ok_or_else(too_short)?;
        if !matches!(version, 2 | 3) {
            return Err(Error::unsupported(format!("qcow2 version {version}")));
        }
        let cluster_bits = cluster_bits(b)?;
        let cluster_size = 1usize << cluster_bits;
        let f32 = |at| be32(b, at).ok_or_else(too_short);
        let f64 = |at| be64(b, at).ok_or_else(too_short);
        let (incompatible, header_length) = match version {
            2 => (0, 72),
            _ => (f64(72)?, usize::try_from(f32(100)?).map_err(|_| too_short())?),
        };
        if version == 3 && !(104..=cluster_size).contains(&header_length) {
            return Err(Error::corrupt(
                format!("qcow2 header: header_length is {header_length}"),
                100,
            ));
        }
        let backing_at = f64(8)?;
        if backing_at > cluster_size as u64 {
            return Err(Error::corrupt(
                "qcow2 header: backing_file_offset lies behind the first cluster",
                8,
            ));
        }
        let backing_at = usize::try_from(backing_at).map_err(|_| too_short())?;
        let extensions_end = if backing_at == 0 { cluster_size } else { backing_at };
        let extensions = extensions(b, header_length, extensions_end)?;
        let extension = |kind| extensions.iter().find(|(k, _)| *k == kind).map(|(_, d)| *d);

        refuse_unknown(incompatible, extension(FEATURE_NAMES).unwrap_or_default())?;
        match f32(32)? {
            0 => {}
            1 => return Err(Error::unsupported("qcow2 AES encryption")),
            2 => return Err(Error::unsupported("qcow2 LUKS encryption")),
            n => return Err(Error::unsupported(format!("qcow2 encryption method {n}"))),
        }
        if version == 3 && f32(96)? > 6 {
            return Err(Error::corrupt("qcow2 header: refcount_order is over 6", 96));
        }
        let compression = if header_length > 104 {
            u8_at(b, 104).unwrap_or(0)
        } else {
            0
        };
        let compression = match (incompatible & COMPRESSION_TYPE != 0, compression) {
            (false, 0) => Compression::Deflate,
            (true, 1) => Compression::Zstd,
            (true, n @ 2..) => return Err(Error::unsupported(format!("qcow2 compression type {n}"))),
            _ => {
                return Err(Error::corrupt(
                    "qcow2 header: compression_type contradicts its feature bit",
                    104,
                ));
            }
        };
        let extended_l2 = incompatible & EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return Err(Error::corrupt(
                format!("qcow2 header: extended L2 entries with cluster_bits {cluster_bits}, under 14"),
                20,
            ));
        }
        let size = f64(24)? / 512 * 512;
        let l1_size = f32(36)?;
        let l1_table_offset = f64(40)?;
        if u64::from(l1_size) * 8 > MAX_L1_BYTES {
            return Err(Error::corrupt(
                format!("qcow2 header: an L1 table of {l1_size} entries"),
                36,
            ));
        }
        if l1_table_offset % cluster_size as u64 != 0 {
            return Err(Error::corrupt(
                "qcow2 header: l1_table_offset is not at a cluster",
                40,
            ));
        }
        let header = Self {
            version,
            cluster_bits,
            size,
            l1_size,
            l1_table_offset,
            nb_snapshots: f32(60)?,
            corrupt: incompatible & CORRUPT != 0,
            extended_l2,
            compression,
            backing: backing_name(b, backing_at, f32(16)?, cluster_size)?,
            backing_format: extension(BACKING_FORMAT).map(<[u8]>::to_vec),
            data_file: (incompatible & EXTERNAL_DATA != 0).then(|| extension(DATA_FILE).map(<[u8]>::to_vec)),
        };
        if header.l1_needed() > u64::from(l1_size) {
            return Err(Error::corrupt(
                format!("qcow2 header: {l1_size} entries in the L1 table are too few for {size} bytes"),
                36,
            ));
        }
        Ok(header)
    }

    /// Log2 of the number of entries in an L2 table.
    pub(super) fn l2_bits(&self) -> u32 {
        self.cluster_bits - if self.extended_l2 { 4 } else { 3 }
    }

    /// How many entries of the L1 table the disk's size needs.
    pub(super) fn l1_needed(&self) -> u64 {
        self.size.div_ceil(1 << (self.cluster_bits + self.l2_bits()))
    }
}

fn too_short() -> Error {
    Error::corrupt("the file ends inside its qcow2 header", 0)
}

fn backing_name(b: &[u8], at: usize, len: u32, cluster_size: usize) -> Result<Option<Vec<u8>>> {
    if at == 0 || len == 0 {
        return Ok(None);
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > 1023.min(cluster_size - at.min(cluster_size)) {
        return Err(Error::corrupt(
            format!("qcow2 header: a backing file name of {len} bytes"),
            16,
        ));
    }
    slice(b, at, len).map(|n| Some(n.to_vec())).ok_or_else(too_short)
}

/// The header extensions between `at` and `end`: type and data.
fn extensions(b: &[u8], mut at: usize, end: usize) -> Result<Vec<(u32, &[u8])>> {
    let mut found = Vec::new();
    // What lies behind the end of the file reads as zeros: the end marker.
    while let (true, Some(kind), Some(len)) = (at + 8 <= end, be32(b, at), be32(b, at + 4)) {
        if kind == END {
            break;
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let data = slice(b, at + 8, len)
            .filter(|_| at + 8 + len <= end)
            .ok_or_else(|| {
                Error::corrupt(
                    format!("qcow2 header extension {kind:#x} of {len} bytes does not fit"),
                    at as u64,
                )
            })?;
        found.push((kind, data));
        at += 8 + len.next_multiple_of(8);
    }
    Ok(found)
}

/// Refuses an image with incompatible features that are not known, with the names that the image gives for them.
fn refuse_unknown(incompatible: u64, names: &[u8]) -> Result<()> {
    let unknown = incompatible & !KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let (entries, _) = names.as_chunks::<48>();
    let named: Vec<String> = (0..64u8)
        .filter(|bit| unknown >> bit & 1 == 1)
        .map(|bit| {
            entries
                .iter()
                .find_map(|[kind, number, name @ ..]| {
                    (*kind == 0 && *number == bit).then(|| Escaped(until_nul(name)).to_string())
                })
                .unwrap_or_else(|| format!("incompatible bit {bit}"))
        })
        .collect();
    Err(Error::unsupported(format!(
        "the qcow2 feature {}",
        named.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn v3() -> Vec<u8> {
        let mut b = vec![0; 65536];
        b[..4].copy_from_slice(super::super::MAGIC);
        for (at, value) in [(4, 3u32), (20, 16), (36, 1), (96, 4), (100, 104)] {
            b[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        b[24..32].copy_from_slice(&(64u64 << 20).to_be_bytes());
        b
    }

    fn put32(b: &mut [u8], at: usize, value: u32) {
        b[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    #[test]
    fn a_plain_header() {
        let h = Header::from_bytes(&v3()).unwrap();
        assert_eq!((h.size, h.l2_bits(), h.l1_needed()), (64 << 20, 13, 1));
        assert_eq!(h.compression, Compression::Deflate);
        assert_eq!(h.backing, None);
    }

    #[test]
    fn unknown_features_are_named() {
        let mut b = v3();
        b[72..80].copy_from_slice(&(1u64 << 5 | 1 << 63).to_be_bytes());
        put32(&mut b, 104, FEATURE_NAMES);
        put32(&mut b, 108, 48);
        b[112..114].copy_from_slice(&[0, 5]);
        b[114..120].copy_from_slice(b"future");
        let e = Header::from_bytes(&b).unwrap_err();
        assert_eq!(e.to_string(), "the qcow2 feature future, incompatible bit 63");
        assert!(matches!(e, Error::Unsupported { .. }));
    }

    #[test]
    fn fields_outside_their_limits() {
        for (at, value) in [
            (4, 4),          // version
            (20, 8),         // cluster_bits
            (20, 22),        // cluster_bits
            (20, 9),         // too few L1 entries for the size
            (24, 1),         // size
            (32, 1),         // AES
            (32, 2),         // LUKS
            (32, 77),        // ?
            (36, u32::MAX),  // l1_size
            (44, 1),         // l1_table_offset
            (96, 7),         // refcount_order
            (100, 96),       // header_length
            (100, u32::MAX), // header_length
            (8, 1),          // backing_file_offset
        ] {
            let mut b = v3();
            put32(&mut b, at, value);
            assert!(Header::from_bytes(&b).is_err(), "{value} at {at}");
        }
        let mut b = v3();
        put32(&mut b, 104, BACKING_FORMAT);
        put32(&mut b, 108, 65536);
        assert!(Header::from_bytes(&b).is_err(), "extension too long");
        for len in 0..104 {
            assert!(Header::from_bytes(&v3()[..len]).is_err(), "{len}");
        }
    }
}
