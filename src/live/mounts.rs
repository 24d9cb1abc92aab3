//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use super::{Proc, text};
use serde::{Deserialize, Serialize};

/// Something that is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where.
    pub at: String,
    /// What: a device, or a name that the filesystem chose.
    pub source: String,
    /// The type: `ext4`, `tmpfs`, ...
    pub kind: String,
    /// Options of this mount and of the filesystem.
    pub options: String,
    /// Numbers of the device, `major:minor`.
    pub device: String,
    /// Which directory of the filesystem is seen: `/` but for bind mounts and subvolumes.
    pub root: String,
}

pub(super) fn read(proc: &dyn Proc) -> Vec<Mount> {
    let table = proc.read("self/mountinfo", 16 << 20).unwrap_or_default();
    table.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// One line: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = fields.nth(2)?;
    let (root, at, options) = (fields.next()?, fields.next()?, fields.next()?);
    // Any number of optional fields, then a hyphen.
    fields.find(|f| *f == b"-")?;
    let (kind, source) = (fields.next()?, fields.next()?);
    let more = fields.next().unwrap_or_default();
    let mut all = text(options);
    for option in text(more).split(',').filter(|o| !o.is_empty()) {
        if !all.split(',').any(|known| known == option) {
            all.push(',');
            all.push_str(option);
        }
    }
    Some(Mount {
        at: text(&unescaped(at)),
        source: text(&unescaped(source)),
        kind: text(kind),
        options: all,
        device: text(device),
        root: text(&unescaped(root)),
    })
}

/// Blank, tab, newline and backslash are written as a backslash and three octal digits.
pub(super) fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..b'8').contains(c)));
        let value = digits.map(|d| d.iter().fold(0u32, |n, c| n * 8 + u32::from(c - b'0')));
        match value.and_then(|v| u8::try_from(v).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}
