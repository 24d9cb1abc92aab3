//! The names that a machine gives to its own volumes: `/etc/crypttab` and mdadm.conf(5).

use super::disks::{Disks, Part};
use crate::bytes::unhex;
use crate::source::fstab::{self, Device};

/// Where distributions have mdadm.conf.
const MDADM_CONF: &[&str] = &["/etc/mdadm/mdadm.conf", "/etc/mdadm.conf"];

/// Adds the names that the root filesystem's configuration has for encrypted volumes and arrays.
pub(super) fn add(disks: &mut Disks, root: usize) {
    let crypttab = disks.read(root, "/etc/crypttab").unwrap_or_default();
    for (name, device) in crypttab_lines(&crypttab) {
        let found: Vec<usize> = (0..disks.parts.len())
            .filter(|n| is_inside(disks, *n, &device))
            .collect();
        for n in found {
            if let Some(part) = disks.parts.get_mut(n) {
                part.paths.push(format!("mapper/{name}"));
                part.paths.push(format!("disk/by-id/dm-name-{name}"));
            }
        }
    }
    let arrays = MDADM_CONF
        .iter()
        .find_map(|path| disks.read(root, path))
        .unwrap_or_default();
    for (name, uuid) in mdadm_lines(&arrays) {
        let own = format!("disk/by-id/md-uuid-{uuid}");
        for part in disks.parts.iter_mut().filter(|p| p.paths.contains(&own)) {
            part.paths.push(name.clone());
        }
    }
}

/// Whether the volume `n` is the inside of the encrypted volume `device`, or that volume itself where it is not open.
fn is_inside(disks: &Disks, n: usize, device: &Device) -> bool {
    let Some(part) = disks.parts.get(n) else {
        return false;
    };
    let same = |a: &Option<String>, b: &String| a.as_ref().is_some_and(|a| a.eq_ignore_ascii_case(b));
    let Part {
        container: Some(outer),
        ..
    } = part
    else {
        return part.is_locked() && disks.is_device(n, device);
    };
    match device {
        Device::Uuid(uuid) => outer.uuid.eq_ignore_ascii_case(uuid),
        Device::PartUuid(uuid) => same(&outer.partuuid, uuid),
        Device::PartLabel(label) => outer.partlabel.as_ref() == Some(label),
        Device::Disk { index, number } => {
            let only = disks.parts.iter().all(|p| p.disk.is_none_or(|d| d == 0));
            outer.number == *number && outer.disk.is_some_and(|d| index.map_or(only, |index| index == d))
        }
        Device::Named(name) => outer.paths.contains(name),
        Device::Label(_) | Device::Other => false,
    }
}

/// Name and device of each line (crypttab(5)).
fn crypttab_lines(text: &[u8]) -> Vec<(String, Device)> {
    let line = |line: &[u8]| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
        let name = fields.next().filter(|f| !f.starts_with(b"#"))?;
        let device = fields.next()?;
        Some((String::from_utf8_lossy(name).into_owned(), fstab::device(device)))
    };
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Name below `/dev/` and UUID, in md's own form, of each ARRAY line.
fn mdadm_lines(text: &[u8]) -> Vec<(String, String)> {
    let line = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        words.next().filter(|w| w.eq_ignore_ascii_case("array"))?;
        let name = words.next()?.strip_prefix("/dev/")?.to_owned();
        let uuid = words.find_map(|w| {
            let (key, value) = w.split_once('=')?;
            key.eq_ignore_ascii_case("uuid")
                .then(|| value.to_ascii_lowercase())
        })?;
        unhex(&uuid.replace(':', ""))?;
        Some((name, uuid))
    };
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let lines = crypttab_lines(b"# x\n\nroot UUID=ab none luks\nhome\t/dev/vg/home\nalone\n");
        assert_eq!(
            lines,
            [
                ("root".to_owned(), Device::Uuid("ab".into())),
                ("home".to_owned(), Device::Named("vg/home".into())),
            ]
        );
        let lines = mdadm_lines(b"DEVICE partitions\nARRAY /dev/md/x metadata=1.2 UUID=0123ABCD:1:2:3 name=a:x\nARRAY <ignore> UUID=1\nARRAY /dev/md9\nARRAY /dev/md5 uuid=01234567:89abcdef:01234567:89ABCDEF\n");
        assert_eq!(
            lines,
            [("md5".to_owned(), "01234567:89abcdef:01234567:89abcdef".to_owned())]
        );
    }
}
