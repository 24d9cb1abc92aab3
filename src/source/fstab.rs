//! `/etc/fstab`: what a machine mounts where (fstab(5)).

use crate::bytes::until_nul;
use crate::fs::Selector;
use crate::path::GuestPath;

/// One line that is not a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `fs_spec` without escapes and quotes: a device, a tag such as `UUID=`, a name on the network.
    pub spec: Vec<u8>,
    /// `fs_file` without escapes: the mount point, or `none`.
    pub file: Vec<u8>,
    /// `fs_vfstype`: `ext4`, `swap`, `nfs`, `auto`.
    pub kind: String,
    /// `fs_mntops`, split at the commas.
    pub options: Vec<String>,
}

/// A device as `fs_spec` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A filesystem's UUID.
    Uuid(String),
    /// A filesystem's label.
    Label(String),
    /// A partition's GUID, or signature and number.
    PartUuid(String),
    /// A partition's name.
    PartLabel(String),
    /// A disk by its place among the machine's disks, from 0, and a partition of it; `/dev/sda` has no number.
    Disk {
        /// 0 for sda, vda, nvme0n1; `None` for a disk that is named by its path or serial number.
        index: Option<usize>,
        /// 2 for sda2.
        number: Option<u32>,
    },
    /// Any other device, by its name below `/dev/`: `mapper/vg-root`, `vg/root`, `md0`.
    Named(String),
    /// Anything else: a network share, a name that means nothing here.
    Other,
}

/// What a line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A filesystem on a disk.
    Disk,
    /// Swap space, or a filesystem that the kernel makes up.
    Nothing,
    /// A share on the network.
    Network,
    /// A part of the tree at another place of it.
    Bind,
    /// A filesystem inside a file, or an overlay of directories.
    Stacked,
}

/// Filesystems that no device holds, and swap.
const MADE_UP: &[&str] = &[
    "swap",
    "ignore",
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "devtmpfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "hugetlbfs",
    "mqueue",
    "fusectl",
    "binfmt_misc",
    "configfs",
    "bpf",
    "efivarfs",
    "pstore",
    "rpc_pipefs",
    "nfsd",
    "autofs",
    "usbfs",
    "usbdevfs",
    "selinuxfs",
    "functionfs",
    "resctrl",
];

/// Filesystems that another host holds.
const NETWORK: &[&str] = &[
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ncpfs",
    "ceph",
    "glusterfs",
    "9p",
    "virtiofs",
    "sshfs",
    "fuse.sshfs",
    "afs",
    "lustre",
    "davfs",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.s3fs",
    "ocfs2",
    "gfs2",
    "beegfs",
];

/// Parses fstab. Lines without a mount point are left out, as mount(8) does.
pub fn parse(text: &[u8]) -> Vec<Line> {
    let line = |line: &[u8]| {
        let mut fields = line
            .split(|b| matches!(b, b' ' | b'\t' | b'\r'))
            .filter(|f| !f.is_empty());
        let spec = fields.next().filter(|f| !f.starts_with(b"#"))?;
        let file = fields.next()?;
        let kind = fields.next().unwrap_or(b"auto");
        let options = fields.next().unwrap_or(b"defaults");
        Some(Line {
            spec: unquoted(&unescaped(spec)),
            file: unescaped(file),
            kind: String::from_utf8_lossy(kind).into_owned(),
            options: String::from_utf8_lossy(options)
                .split(',')
                .map(str::to_owned)
                .collect(),
        })
    };
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

impl Line {
    /// True if the options hold `name`.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|o| o == name)
    }

    /// True if the machine mounts this without being asked: at boot, or when somebody looks there.
    pub fn is_mounted(&self) -> bool {
        !self.has("noauto") || self.has("x-systemd.automount")
    }

    /// What the line asks for.
    pub fn purpose(&self) -> Purpose {
        let kind = self.kind.as_str();
        if MADE_UP.contains(&kind) || !self.file.starts_with(b"/") {
            return Purpose::Nothing;
        }
        if self.has("bind") || self.has("rbind") || kind == "bind" {
            return Purpose::Bind;
        }
        let share = self.spec.starts_with(b"//") || !self.spec.starts_with(b"/") && self.spec.contains(&b':');
        if NETWORK.contains(&kind) || share {
            return Purpose::Network;
        }
        if kind == "overlay" || kind.starts_with("fuse") || self.options.iter().any(|o| o.starts_with("loop"))
        {
            return Purpose::Stacked;
        }
        Purpose::Disk
    }

    /// The subvolume that the options name (`subvol=`, `subvolid=`).
    pub fn subvolume(&self) -> Option<Selector> {
        let value = |name: &str| {
            let mut all = self.options.iter().filter_map(|o| o.strip_prefix(name));
            all.next_back()
        };
        let path = || GuestPath::lenient(&unescaped(value("subvol=")?.as_bytes())).ok();
        match path() {
            Some(path) => Some(Selector::Path(path)),
            None => value("subvolid=")?.parse().ok().map(Selector::Id),
        }
    }

    /// The device that the line names.
    pub fn device(&self) -> Device {
        device(&self.spec)
    }
}

/// The device that `spec` names: `UUID=...`, `/dev/disk/by-label/...`, `/dev/sda1`.
pub fn device(spec: &[u8]) -> Device {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    type Make = fn(String) -> Device;
    let tags: [(&str, Make); 4] = [
        ("uuid", Device::Uuid),
        ("label", Device::Label),
        ("partuuid", Device::PartUuid),
        ("partlabel", Device::PartLabel),
    ];
    for (tag, make) in tags {
        let link = format!("/dev/disk/by-{tag}/");
        let tag = format!("{}=", tag.to_ascii_uppercase());
        if let Some(value) = spec.strip_prefix(tag.as_bytes()) {
            return make(text(&unquoted(value)));
        }
        if let Some(value) = spec.strip_prefix(link.as_bytes()) {
            return make(text(&udev_unescaped(value)));
        }
    }
    let Some(name) = spec
        .strip_prefix(b"/dev/")
        .and_then(|n| std::str::from_utf8(n).ok())
    else {
        return Device::Other;
    };
    // Links to what the device mapper and md make have the names of those.
    let made = ["disk/by-id/dm-", "disk/by-id/md-"]
        .iter()
        .any(|p| name.starts_with(p));
    if made {
        return Device::Named(text(&udev_unescaped(name.as_bytes())));
    }
    if name.starts_with("disk/by-id/") || name.starts_with("disk/by-path/") {
        let number = name.rsplit_once("-part").and_then(|(_, n)| n.parse().ok());
        return Device::Disk { index: None, number };
    }
    disk(name).unwrap_or_else(|| Device::Named(name.to_owned()))
}

/// `sda1`, `nvme0n1p2`: how Linux names disks and their partitions.
fn disk(name: &str) -> Option<Device> {
    let number = |text: &str| match text {
        "" => Some(None),
        _ => text.parse().ok().filter(|n| *n > 0).map(Some),
    };
    if let Some(rest) = name.strip_prefix("nvme").or_else(|| name.strip_prefix("mmcblk")) {
        let (disk, part) = rest.split_once('p').unwrap_or((rest, ""));
        let disk = disk.split_once('n').map_or(disk, |(controller, _)| controller);
        return Some(Device::Disk {
            index: Some(disk.parse().ok()?),
            number: number(part)?,
        });
    }
    let rest = ["xvd", "sd", "vd", "hd"]
        .iter()
        .find_map(|p| name.strip_prefix(p))?;
    let letters = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
    let (letters, digits) = rest.split_at_checked(letters)?;
    if !(1..=3).contains(&letters.len()) {
        return None;
    }
    // a is 0, z is 25, aa is 26.
    let index = letters.bytes().fold(0, |n, b| n * 26 + usize::from(b - b'a') + 1);
    Some(Device::Disk {
        index: index.checked_sub(1),
        number: number(digits)?,
    })
}

/// Three octal digits behind a backslash are one byte.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(8);
    decode(text, |rest| match rest {
        [b'\\', a, b, c, ..] => {
            let value = digit(*a)? * 64 + digit(*b)? * 8 + digit(*c)?;
            Some((u8::try_from(value).ok()?, 4))
        }
        _ => None,
    })
}

/// udev writes `\x20` for a space in the names of links.
fn udev_unescaped(text: &[u8]) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    decode(text, |rest| match rest {
        [b'\\', b'x', a, b, ..] => Some((u8::try_from(digit(*a)? * 16 + digit(*b)?).ok()?, 4)),
        _ => None,
    })
}

/// Replaces what `escape` recognises at the beginning of a rest: the byte it stands for and its length.
fn decode(text: &[u8], escape: impl Fn(&[u8]) -> Option<(u8, usize)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, ..] = rest {
        let (byte, len) = escape(rest).unwrap_or((*first, 1));
        out.push(byte);
        rest = rest.get(len..).unwrap_or_default();
    }
    out
}

/// `UUID="x"` and `"x"` without their quotes, and without anything behind a NUL.
fn unquoted(text: &[u8]) -> Vec<u8> {
    let text = until_nul(text);
    let start = text.iter().position(|b| *b == b'=').map_or(0, |at| at + 1);
    let (tag, value) = text.split_at_checked(start).unwrap_or((b"", text));
    let inner = match value {
        [a @ (b'"' | b'\''), inner @ .., b] if a == b => inner,
        _ => value,
    };
    [tag, inner].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let lines = parse(
            b"# /etc/fstab\n\n  # indented\nUUID=\"ab-CD\"\t/  ext4 defaults,noatime 0 1\r\n\
              LABEL=my\\040disk /mnt/a\\011b auto\n/dev/sdb1 /x\nalone\n",
        );
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].device(), Device::Uuid("ab-CD".into()));
        assert_eq!(lines[0].file, b"/");
        assert!(lines[0].has("noatime") && !lines[0].has("atime"));
        assert_eq!(lines[1].device(), Device::Label("my disk".into()));
        assert_eq!(lines[1].file, b"/mnt/a\tb");
        assert_eq!(lines[2].kind, "auto");
    }

    #[test]
    fn devices() {
        let disk = |index, number| Device::Disk {
            index: Some(index),
            number,
        };
        for (spec, expected) in [
            ("/dev/sda1", disk(0, Some(1))),
            ("/dev/sda", disk(0, None)),
            ("/dev/vdb12", disk(1, Some(12))),
            ("/dev/xvdf", disk(5, None)),
            ("/dev/sdaa3", disk(26, Some(3))),
            ("/dev/nvme0n1p2", disk(0, Some(2))),
            ("/dev/nvme1n1", disk(1, None)),
            ("/dev/mmcblk0p1", disk(0, Some(1))),
            ("/dev/sda0", Device::Named("sda0".into())),
            ("/dev/sda1x", Device::Named("sda1x".into())),
            ("/dev/sdabcd", Device::Named("sdabcd".into())),
            ("/dev/mapper/vg-root", Device::Named("mapper/vg-root".into())),
            ("/dev/vg/root", Device::Named("vg/root".into())),
            (
                "/dev/disk/by-id/dm-name-a-b",
                Device::Named("disk/by-id/dm-name-a-b".into()),
            ),
            ("/dev/disk/by-label/a\\x20b", Device::Label("a b".into())),
            ("/dev/disk/by-uuid/1234", Device::Uuid("1234".into())),
            (
                "/dev/disk/by-id/scsi-0QEMU-part3",
                Device::Disk {
                    index: None,
                    number: Some(3),
                },
            ),
            ("PARTLABEL='x y'", Device::PartLabel("x y".into())),
            ("proc", Device::Other),
        ] {
            assert_eq!(device(spec.as_bytes()), expected, "{spec}");
        }
    }

    #[test]
    fn subvolumes() {
        let named = |options: &str| parse(format!("UUID=1 / btrfs {options} 0 0").as_bytes())[0].subvolume();
        let path = |text: &str| Some(Selector::Path(GuestPath::lenient(text.as_bytes()).unwrap()));
        assert_eq!(named("defaults,noatime"), None);
        assert_eq!(named("subvol=@"), path("@"));
        assert_eq!(named("rw,subvol=/@/var\\040x/,subvolid=257"), path("@/var x"));
        assert_eq!(named("subvolid=257"), Some(Selector::Id(257)));
        assert_eq!(named("subvolid=x"), None);
    }

    #[test]
    fn purposes() {
        let purpose = |text: &str| parse(text.as_bytes())[0].purpose();
        assert_eq!(purpose("/dev/sda1 / ext4 defaults 0 1"), Purpose::Disk);
        assert_eq!(purpose("/dev/sda2 none swap sw 0 0"), Purpose::Nothing);
        assert_eq!(purpose("tmpfs /tmp tmpfs"), Purpose::Nothing);
        assert_eq!(purpose("nas:/vol /mnt nfs4 _netdev"), Purpose::Network);
        assert_eq!(purpose("//nas/x /mnt cifs"), Purpose::Network);
        assert_eq!(purpose("/home /srv/home none bind"), Purpose::Bind);
        assert_eq!(purpose("/a.iso /mnt iso9660 loop,ro"), Purpose::Stacked);
        assert!(parse(b"/dev/sr0 /cd auto noauto,x-systemd.automount")[0].is_mounted());
        assert!(!parse(b"/dev/sr0 /cd auto noauto")[0].is_mounted());
    }
}
