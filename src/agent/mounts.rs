//! The host's mounts, from /proc/self/mountinfo (proc(5)): which of them are read, and what their filesystems are.

use super::wire::Filesystem;
use crate::path::GuestPath;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// What of the filesystem is mounted: `/` or a directory of it.
    pub(super) root: Vec<u8>,
    /// Where.
    pub(super) at: Vec<u8>,
    pub(super) kind: String,
    pub(super) source: Vec<u8>,
    /// Device numbers of the filesystem.
    device: (u32, u32),
}

/// What becomes of a mount that a walk meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Enter,
    /// Left out, which needs no word: it is made up, or its content is somewhere else too.
    Leave,
    /// Left out, and named.
    Tell(String),
}

pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    pub(super) fn read() -> Self {
        Self::parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    fn parse(text: &[u8]) -> Self {
        Self(text.split(|b| *b == b'\n').filter_map(line).collect())
    }

    /// The mount that covers `path`, a path of the host: the last one there, else that of the nearest directory above.
    fn of(&self, path: &[u8]) -> Option<&Mount> {
        let covers = |mount: &&Mount| is_in(path, &mount.at);
        let mut best: Option<&Mount> = None;
        for mount in self.0.iter().filter(covers) {
            if best.is_none_or(|b| mount.at.len() >= b.at.len()) {
                best = Some(mount);
            }
        }
        best
    }

    /// Whether a walk from `root` goes into what is mounted at `path`.
    pub(super) fn verdict(&self, root: &[u8], path: &[u8]) -> Verdict {
        let Some(mount) = self.of(path).filter(|m| m.at == path) else {
            // A subvolume, or a mount that came after the list was read.
            return Verdict::Enter;
        };
        let kind = mount.kind.as_str();
        let of = || {
            format!(
                "a filesystem of type {kind} ({}) is mounted here and left out",
                String::from_utf8_lossy(&mount.source)
            )
        };
        match kind {
            "tmpfs" | "ramfs" | "devtmpfs" | "overlay" | "squashfs" | "iso9660" | "aufs" | "erofs" => {
                Verdict::Leave
            }
            "nfs" | "nfs4" | "cifs" | "smb3" | "smbfs" | "ceph" | "9p" | "virtiofs" | "afs" | "glusterfs"
            | "lustre" | "gfs2" | "ocfs2" | "beegfs" | "orangefs" | "ncpfs" | "coda" | "vboxsf"
            | "vmhgfs" => Verdict::Tell(of()),
            "fuse.lxcfs" | "fuse.gvfsd-fuse" | "fuse.portal" | "fuse.fuse-overlayfs" | "fuse.snapfuse" => {
                Verdict::Leave
            }
            _ if kind.starts_with("fuse.") => Verdict::Tell(of()),
            // A directory that is mounted below itself would never end.
            _ if self.is_loop(root, mount) => Verdict::Leave,
            _ => Verdict::Enter,
        }
    }

    /// True if what is mounted holds the very directory it is mounted on, as another mount of the walk shows it.
    fn is_loop(&self, root: &[u8], mount: &Mount) -> bool {
        let others = self
            .0
            .iter()
            .filter(|m| m.device == mount.device && m.at != mount.at);
        others
            .filter(|m| is_in(root, &m.at) || is_in(&m.at, root))
            .any(|other| {
                // Where the other mount shows the root of this one.
                let Some(below) = below(&mount.root, &other.root) else {
                    return false;
                };
                let mut shown = other.at.clone();
                if !below.is_empty() {
                    if shown != b"/" {
                        shown.push(b'/');
                    }
                    shown.extend_from_slice(below);
                }
                is_in(&mount.at, &shown)
            })
    }

    /// What is known of the filesystem at `path`, a path of the host with device number `device`.
    pub(super) fn describe(&self, number: u32, device: u64, path: &[u8]) -> Filesystem {
        let mount = self.of(path);
        let kind = mount.map(|m| m.kind.clone()).unwrap_or_default();
        let source = mount.map(|m| m.source.clone()).unwrap_or_default();
        let uuid = by("/dev/disk/by-uuid", &source).unwrap_or_default();
        let label = by("/dev/disk/by-label", &source).unwrap_or_default();
        let mut identity = match uuid.is_empty() {
            true => [kind.as_bytes(), b" ", &source, b" ", &device.to_le_bytes()].concat(),
            false => uuid.clone().into_bytes(),
        };
        // A subvolume is a filesystem of its own to stat(2).
        if kind == "btrfs" {
            let root = mount.map(|m| m.root.clone()).unwrap_or_default();
            identity.extend_from_slice(b" ");
            identity.extend_from_slice(&root);
            if mount.is_some_and(|m| m.at != path) {
                identity.extend_from_slice(b" ");
                identity.extend_from_slice(path);
            }
        }
        let room = rustix::fs::statvfs(OsStr::from_bytes(path)).ok();
        let room = room.as_ref();
        let size = |blocks: u64, unit: u64| blocks.saturating_mul(unit);
        Filesystem {
            number,
            identity,
            kind,
            device: String::from_utf8_lossy(&source).into_owned(),
            mounted: String::from_utf8_lossy(path).into_owned(),
            uuid,
            label,
            size: room.map_or(0, |r| size(r.f_blocks, r.f_frsize)),
            used: room.map_or(0, |r| size(r.f_blocks.saturating_sub(r.f_bfree), r.f_frsize)),
        }
    }
}

/// The name in `dir` whose symbolic link leads to the device `source`.
fn by(dir: &str, source: &[u8]) -> Option<String> {
    if !source.starts_with(b"/dev/") {
        return None;
    }
    let device = std::fs::metadata(OsStr::from_bytes(source)).ok()?.rdev();
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        if std::fs::metadata(entry.path()).is_ok_and(|m| m.rdev() == device) {
            return Some(entry.file_name().to_string_lossy().into_owned());
        }
    }
    None
}

/// True if `path` is `dir` or below it.
fn is_in(path: &[u8], dir: &[u8]) -> bool {
    below(path, dir).is_some()
}

/// What of `path` is below `dir`, without a slash in front.
fn below<'a>(path: &'a [u8], dir: &[u8]) -> Option<&'a [u8]> {
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    let rest = path.strip_prefix(dir)?;
    match rest {
        b"" => Some(rest),
        _ => rest.strip_prefix(b"/"),
    }
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let at = unescape(fields.next()?);
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    Some(Mount {
        root,
        at,
        kind: String::from_utf8_lossy(rest.next()?).into_owned(),
        source: unescape(rest.next()?),
        device: (major.parse().ok()?, minor.parse().ok()?),
    })
}

/// Spaces, tabs, newlines and backslashes stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// The path on the host of a path below `root`.
pub(super) fn on_host(root: &Path, path: &GuestPath) -> Vec<u8> {
    let mut bytes = root.as_os_str().as_bytes().to_vec();
    while bytes.last() == Some(&b'/') {
        bytes.pop();
    }
    if !path.is_root() {
        bytes.extend_from_slice(path.as_bytes());
    }
    if bytes.is_empty() {
        bytes.push(b'/');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &[u8] = b"\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /proc rw - proc proc rw
23 21 0:22 / /run rw - tmpfs tmpfs rw
24 21 8:17 / /srv/my\\040data rw - xfs /dev/sdb1 rw
25 21 0:40 / /mnt/nas rw - nfs4 nas:/export rw
26 21 8:1 / /mnt/self rw - ext4 /dev/sda1 rw
27 21 8:1 /srv/www /var/www rw - ext4 /dev/sda1 rw
28 21 0:50 / /home/a/remote rw - fuse.sshfs a@b:/ rw
29 21 8:33 / /mnt/win rw - fuseblk /dev/sdc1 rw
30 21 0:60 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
";

    #[test]
    fn what_is_read_and_what_is_not() {
        let mounts = Mounts::parse(INFO);
        assert_eq!(mounts.0.len(), 10);
        let verdict = |path: &str| mounts.verdict(b"/", path.as_bytes());
        assert_eq!(verdict("/srv/my data"), Verdict::Enter);
        assert_eq!(verdict("/mnt/win"), Verdict::Enter);
        assert_eq!(verdict("/var/www"), Verdict::Enter);
        assert_eq!(verdict("/some/subvolume"), Verdict::Enter);
        for path in ["/run", "/mnt/self", "/var/lib/docker/overlay2/x/merged"] {
            assert_eq!(verdict(path), Verdict::Leave, "{path}");
        }
        for path in ["/mnt/nas", "/home/a/remote"] {
            assert!(matches!(verdict(path), Verdict::Tell(_)), "{path}");
        }
        assert_eq!(mounts.of(b"/srv/my data/x").unwrap().kind, "xfs");
        assert_eq!(mounts.of(b"/srv/my").unwrap().kind, "ext4");
        assert_eq!(on_host(Path::new("/"), &GuestPath::new(b"/a").unwrap()), b"/a");
        assert_eq!(on_host(Path::new("/x/"), &GuestPath::root()), b"/x");
    }
}
