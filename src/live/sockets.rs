//! Sockets that wait for others: `/proc/net/{tcp,tcp6,udp,udp6,unix}` (proc_pid_net(5)).

use super::{MOST, Proc, text};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A socket that waits for others.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Listening {
    /// `tcp`, `udp` or `unix`.
    pub protocol: String,
    /// The address of tcp and udp: `0.0.0.0` and `::` are every one. Of unix the path; an abstract one begins with `@`.
    pub address: String,
    /// The port of tcp and udp.
    pub port: Option<u16>,
    /// The user whose socket it is; unix sockets do not say.
    pub uid: Option<u32>,
    /// Processes that have it open, as far as they can be seen.
    pub pids: Vec<u32>,
}

/// Which processes have the socket of an inode number open.
pub(super) type Owners = HashMap<u64, Vec<u32>>;

pub(super) fn read(proc: &dyn Proc, owners: &Owners) -> Vec<Listening> {
    let mut found = Vec::new();
    let lines = |name: &str| proc.read(&format!("net/{name}"), 64 << 20).unwrap_or_default();
    let big = proc.big_endian();
    for (name, state) in [
        ("tcp", b"0A"),
        ("tcp6", b"0A"),
        ("udp", b"07"),
        ("udp6", b"07"),
        ("udplite", b"07"),
    ] {
        let table = lines(name);
        let rows = table.split(|b| *b == b'\n').skip(1);
        found.extend(
            rows.filter_map(|row| internet(row, name, state, big, owners))
                .take(MOST),
        );
    }
    let table = lines("unix");
    let rows = table.split(|b| *b == b'\n').skip(1);
    found.extend(rows.filter_map(|row| unix(row, owners)).take(MOST));
    found.sort_by(|a, b| {
        (&a.protocol, a.port, &a.address, &a.pids).cmp(&(&b.protocol, b.port, &b.address, &b.pids))
    });
    // One socket a worker (SO_REUSEPORT) is one place where the host listens.
    let mut merged: Vec<Listening> = Vec::new();
    for one in found {
        match merged.last_mut() {
            Some(last)
                if (&last.protocol, last.port, &last.address) == (&one.protocol, one.port, &one.address) =>
            {
                last.pids.extend(one.pids);
                last.pids.sort_unstable();
                last.pids.dedup();
            }
            _ => merged.push(one),
        }
    }
    merged
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...`
fn internet(row: &[u8], name: &str, state: &[u8], big: bool, owners: &Owners) -> Option<Listening> {
    let mut fields = row.split(|b| *b == b' ').filter(|f| !f.is_empty());
    let (local, remote) = (fields.nth(1)?, fields.next()?);
    if fields.next()? != state {
        return None;
    }
    let (address, port) = endpoint(local, big)?;
    // A connected udp socket has the same state as a waiting one.
    if endpoint(remote, big)?.1 != 0 || port == 0 {
        return None;
    }
    let uid = std::str::from_utf8(fields.nth(3)?).ok()?.parse().ok();
    let inode: u64 = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
    Some(Listening {
        protocol: name.trim_end_matches('6').trim_end_matches("lite").to_owned(),
        address: address.to_string(),
        port: Some(port),
        uid,
        pids: owners.get(&inode).cloned().unwrap_or_default(),
    })
}

/// `0100007F:0035`, and four such words for an address of 16 bytes: each word as a number of the host's processor.
fn endpoint(field: &[u8], big: bool) -> Option<(IpAddr, u16)> {
    let (address, port) = std::str::from_utf8(field).ok()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |n: usize| -> Option<[u8; 4]> {
        let value = u32::from_str_radix(address.get(n * 8..n * 8 + 8)?, 16).ok()?;
        Some(if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        })
    };
    match address.len() {
        8 => Some((Ipv4Addr::from(word(0)?).into(), port)),
        32 => {
            let mut bytes = Vec::with_capacity(16);
            for n in 0..4 {
                bytes.extend(word(n)?);
            }
            let bytes: [u8; 16] = bytes.try_into().ok()?;
            Some((Ipv6Addr::from(bytes).into(), port))
        }
        _ => None,
    }
}

/// `Num: RefCount Protocol Flags Type St Inode Path`; flag 0x10000 says that it accepts connections. One without a path has no
/// name to connect to.
fn unix(row: &[u8], owners: &Owners) -> Option<Listening> {
    let mut fields = Vec::with_capacity(7);
    let mut rest = row;
    for _ in 0..7 {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|b| *b == b' ')?;
        let (field, tail) = rest.split_at_checked(end)?;
        fields.push(std::str::from_utf8(field).ok()?);
        rest = tail;
    }
    if u32::from_str_radix(fields.get(3)?, 16).ok()? & 0x1_0000 == 0 {
        return None;
    }
    let inode: u64 = fields.get(6)?.parse().ok()?;
    let path = rest.strip_prefix(b" ").filter(|path| !path.is_empty())?;
    Some(Listening {
        protocol: "unix".to_owned(),
        address: text(path),
        port: None,
        uid: None,
        pids: owners.get(&inode).cloned().unwrap_or_default(),
    })
}
