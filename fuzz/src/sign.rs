//! Puts the right checksums to what an input holds, so that changed bytes reach what reads them. Structures are known by
//! their magic numbers.

use crate::Volume;
use sha2::{Digest, Sha256};
use vm2k::bytes::{be16, be32, be64, le16, le32, le64};
use vm2k::read_at::ReadAt;

/// CRC-32C of `bytes` with four zeros at `at`.
fn crc32c(bytes: &[u8], at: usize) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..at]), &[0; 4]);
    crc32c::crc32c_append(sum, &bytes[at + 4..])
}

/// Writes the CRC-32C of the `len` bytes at `at` into its field.
fn put_crc32c(volume: &mut Volume, at: u64, len: usize, field: usize) {
    let bytes = volume.get(at, len);
    if bytes.len() == len && len >= field + 4 {
        volume.put(at + field as u64, &crc32c(&bytes, field).to_le_bytes());
    }
}

/// btrfs with crc32c: superblocks, and nodes that carry the UUID of the filesystem.
pub fn btrfs(volume: &mut Volume) {
    const SUPERBLOCKS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
    let sign = |volume: &mut Volume, at: u64, len: usize| {
        let bytes = volume.get(at, len);
        if bytes.len() == len {
            volume.put(at, &crc32c::crc32c(&bytes[32..]).to_le_bytes());
        }
    };
    for at in SUPERBLOCKS {
        let head = volume.get(at, 4096);
        if head.len() < 4096 || !head[64..].starts_with(b"_BHRfS_M") {
            continue;
        }
        // Nodes have metadata_uuid, where there is one.
        let ids = [head[32..48].to_vec(), head[571..587].to_vec()];
        let size = le32(&head, 0x94).unwrap_or(0).clamp(4096, 65536) as usize;
        for (place, bytes) in volume.places(4096, 48) {
            if !SUPERBLOCKS.contains(&place) && bytes.get(32..48).is_some_and(|id| ids.iter().any(|i| i == id)) {
                sign(volume, place, size);
            }
        }
    }
    for at in SUPERBLOCKS {
        sign(volume, at, 4096);
    }
}

/// XFS of version 5, and the records of its log.
pub fn xfs(volume: &mut Volume) {
    let sb = volume.get(0, 512);
    let field = |at| usize::from(be16(&sb, at).unwrap_or(0));
    let sector = field(102).clamp(512, 4096);
    let inode = field(104).clamp(256, 2048);
    let block = be32(&sb, 4).unwrap_or(0).clamp(512, 65536) as usize;
    let directory = block << sb.get(192).map_or(0, |log| log % 5);
    let version = field(100) & 15;
    for (at, bytes) in volume.places(256, 32) {
        let (len, field) = match bytes.first_chunk() {
            Some([b'I', b'N', _, _]) if bytes.get(4) == Some(&3) => (inode, 100),
            _ if at % 512 != 0 => continue,
            Some([0xfe, 0xed, 0xba, 0xbe]) => {
                record(volume, at);
                continue;
            }
            _ if version < 5 => continue,
            Some(b"XFSB") => (sector, 224),
            Some(b"XAGF") => (sector, 216),
            Some(b"XAGI") => (sector, 312),
            Some(b"XAFL") => (sector, 32),
            Some(b"AB3B" | b"AB3C" | b"RMB3" | b"R3FC" | b"IAB3" | b"FIB3") => (block, 52),
            Some(b"BMA3") => (block, 64),
            Some(b"XSLM" | b"XARM") => (block, 12),
            Some(b"XDB3" | b"XDD3" | b"XDF3") => (directory, 4),
            _ => match be16(&bytes, 8) {
                Some(0x3df1 | 0x3dff) => (directory, 12),
                Some(0x3ebe) => (block.max(directory), 12),
                Some(0x3bee) => (block, 12),
                _ => continue,
            },
        };
        put_crc32c(volume, at, len, field);
    }
}

/// A record of the XFS log: its header to the end of `h_size`, its further headers, its data.
fn record(volume: &mut Volume, at: u64) {
    let head = volume.get(at, 512);
    let (len, size) = (be32(&head, 12).unwrap_or(0), be32(&head, 320).unwrap_or(0));
    if len > 1 << 20 || size > 1 << 20 || head.len() < 512 {
        return;
    }
    let headers = if be32(&head, 8) == Some(2) { size.div_ceil(32768).max(1) } else { 1 };
    let data = volume.get(at + u64::from(headers) * 512, len as usize);
    let mut sum = crc32c::crc32c_append(crc32c(&head[..328], 32), &[]);
    for further in 1..headers.min(len.div_ceil(32768)) {
        sum = crc32c::crc32c_append(sum, &volume.get(at + u64::from(further) * 512, 260));
    }
    sum = crc32c::crc32c_append(sum, &data);
    volume.put(at + 32, &sum.to_le_bytes());
}

/// A VHD: the complement of the sum of all bytes.
pub fn vhd(volume: &mut Volume) {
    let last = volume.len().saturating_sub(512);
    for (at, len, field) in [(0, 512, 64), (512, 1024, 36), (last, 512, 64), (last + 1, 511, 64)] {
        let mut bytes = volume.get(at, len);
        if bytes.len() == len && [&b"conectix"[..], b"cxsparse"].iter().any(|m| bytes.starts_with(m)) {
            bytes[field..field + 4].fill(0);
            let sum = !bytes.iter().fold(0u32, |s, b| s.wrapping_add((*b).into()));
            volume.put(at + field as u64, &sum.to_be_bytes());
        }
    }
}

/// A VHDX: headers, region tables, entries of the log.
pub fn vhdx(volume: &mut Volume) {
    for (at, bytes) in volume.places(4096, 16) {
        let len = match bytes.first_chunk() {
            Some(b"head") => 4096,
            Some(b"regi") => 65536,
            Some(b"loge") => le32(&bytes, 8).unwrap_or(0).min(1 << 20) as usize,
            _ => continue,
        };
        put_crc32c(volume, at, len, 4);
    }
}

/// GPT: entries and header, in sectors of 512 and 4,096 bytes.
pub fn gpt(volume: &mut Volume) {
    for block in [512, 4096] {
        for at in [block, volume.len().saturating_sub(block)] {
            let mut head = volume.get(at, block as usize);
            if head.len() < block as usize || !head.starts_with(b"EFI PART") {
                continue;
            }
            let entries = u64::from(le32(&head, 80).unwrap_or(0)) * u64::from(le32(&head, 84).unwrap_or(0));
            let from = le64(&head, 72).unwrap_or(0).saturating_mul(block);
            let entries = volume.get(from, entries.min(1 << 20) as usize);
            head[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
            head[16..20].fill(0);
            let size = le32(&head, 12).unwrap_or(0) as usize;
            let sum = head.get(..size).map_or(0, crc32fast::hash);
            head[16..20].copy_from_slice(&sum.to_le_bytes());
            volume.put(at, &head);
        }
    }
}

/// Members of volume groups and arrays, and LUKS2.
pub fn member(volume: &mut Volume) {
    lvm(volume);
    md(volume);
    luks2(volume);
}

/// LVM2: labels, metadata areas with their text, superblock and btrees of thin pools.
fn lvm(volume: &mut Volume) {
    let crc = |bytes: &[u8]| {
        let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
        hasher.update(bytes);
        !hasher.finalize()
    };
    let mut thin = false;
    for (at, bytes) in volume.places(512, 512) {
        if bytes.len() < 512 {
            continue;
        }
        if bytes.starts_with(b"LABELONE") {
            volume.put(at + 16, &crc(&bytes[20..]).to_le_bytes());
        } else if bytes[4..].starts_with(b" LVM2 x[5A%r0N*>") {
            let mut head = bytes;
            let (from, len) = (le64(&head, 40).unwrap_or(0), le64(&head, 48).unwrap_or(0));
            let size = le64(&head, 32).unwrap_or(0);
            let first = len.min(size.saturating_sub(from)).min(1 << 20);
            let mut text = volume.get(at.saturating_add(from), first as usize);
            text.extend(volume.get(at + 512, (len - first).min(1 << 20) as usize));
            head[56..60].copy_from_slice(&crc(&text).to_le_bytes());
            let sum = crc(&head[4..]);
            head[..4].copy_from_slice(&sum.to_le_bytes());
            volume.put(at, &head);
        } else if le64(&bytes, 32) == Some(27_022_010) {
            thin = true;
        }
    }
    for (at, bytes) in if thin { volume.places(4096, 4096) } else { Vec::new() } {
        let node = matches!(le32(&bytes, 4), Some(1..=3)) && le32(&bytes, 16) <= le32(&bytes, 20);
        let xor = match le64(&bytes, 32) {
            _ if bytes.len() < 4096 => continue,
            Some(27_022_010) => 160_774,
            _ if node => 121_107,
            _ => continue,
        };
        let sum = !crc32c::crc32c(&bytes[4..]) ^ xor;
        volume.put(at, &sum.to_le_bytes());
    }
}

/// md: superblocks of both versions, of version 0.90 in both byte orders.
fn md(volume: &mut Volume) {
    const MAGIC: u32 = 0xa92b_4efc;
    let fold = |sum: u64| ((sum & 0xffff_ffff).wrapping_add(sum >> 32)) as u32;
    for (at, bytes) in volume.places(512, 4096) {
        let order = match (le32(&bytes, 0), be32(&bytes, 0)) {
            (Some(MAGIC), _) => le32,
            (_, Some(MAGIC)) => be32,
            _ => continue,
        };
        let one = le32(&bytes, 4) == Some(1);
        let count = le32(&bytes, 220).unwrap_or(0) as usize;
        let len = if one { 256 + count.min(1920) * 2 } else { 4096 };
        let Some(bytes) = bytes.get(..len) else { continue };
        let field = if one { 216 } else { 152 };
        let words = (0..len / 4 * 4).step_by(4).filter(|n| *n != field);
        let mut sum: u64 = words.filter_map(|n| order(bytes, n)).map(u64::from).sum();
        sum += le16(bytes, len / 4 * 4).map_or(0, u64::from);
        let sum = fold(sum);
        volume.put(at + field as u64, &if order(&[1, 0, 0, 0], 0) == Some(1) { sum.to_le_bytes() } else { sum.to_be_bytes() });
    }
}

/// LUKS2 with SHA-256: both headers.
fn luks2(volume: &mut Volume) {
    for (at, bytes) in volume.places(4096, 16) {
        if ![&b"LUKS\xba\xbe\0\x02"[..], b"SKUL\xba\xbe\0\x02"].iter().any(|m| bytes.starts_with(m)) {
            continue;
        }
        let len = be64(&bytes, 8).unwrap_or(0).min(4 << 20) as usize;
        let mut whole = volume.get(at, len);
        if whole.len() == len && len >= 512 {
            whole[448..512].fill(0);
            volume.put(at + 448, &whole[448..512]);
            volume.put(at + 448, &Sha256::digest(&whole));
        }
    }
}
