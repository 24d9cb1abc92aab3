//! Where the machine keeps what is its own: directories with files that no package brought.

use crate::path::GuestPath;
use crate::pkgdb::Owners;
use crate::tree::Tree;

/// A directory with data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// The directory.
    pub path: GuestPath,
    /// What kind of data it is.
    pub kind: Kind,
    /// Size of its files that no package owns, in bytes; a file with several names counts for each.
    pub bytes: u64,
    /// How many they are.
    pub files: u64,
}

/// What kind of data a directory holds, as far as its place tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Files of a database server.
    Database,
    /// Containers or virtual machines.
    Machines,
    /// State of some other service.
    State,
    /// A user's home.
    Home,
    /// Programs or content that somebody put there.
    Site,
}

/// Directories that count as a whole.
const WHOLE: &[(&str, Kind)] = &[
    ("/usr/local", Kind::Site),
    ("/var/www", Kind::Site),
    ("/root", Kind::Home),
    ("/var/mail", Kind::State),
    ("/var/vmail", Kind::State),
    ("/var/spool/mail", Kind::State),
    ("/var/opt", Kind::State),
];

/// Directories whose subdirectories count each for itself.
const EACH: &[(&str, Kind)] = &[("/srv", Kind::Site), ("/opt", Kind::Site), ("/home", Kind::Home)];

/// Names in `/var/lib`.
const STATE: &[(&str, Kind)] = &[
    ("mysql", Kind::Database),
    ("mariadb", Kind::Database),
    ("postgresql", Kind::Database),
    ("postgres", Kind::Database),
    ("pgsql", Kind::Database),
    ("mongodb", Kind::Database),
    ("mongo", Kind::Database),
    ("redis", Kind::Database),
    ("valkey", Kind::Database),
    ("elasticsearch", Kind::Database),
    ("opensearch", Kind::Database),
    ("cassandra", Kind::Database),
    ("scylla", Kind::Database),
    ("couchdb", Kind::Database),
    ("ldap", Kind::Database),
    ("dirsrv", Kind::Database),
    ("influxdb", Kind::Database),
    ("influxdb2", Kind::Database),
    ("prometheus", Kind::Database),
    ("clickhouse", Kind::Database),
    ("neo4j", Kind::Database),
    ("etcd", Kind::Database),
    ("consul", Kind::Database),
    ("zookeeper", Kind::Database),
    ("kafka", Kind::Database),
    ("rabbitmq", Kind::Database),
    ("firebird", Kind::Database),
    ("docker", Kind::Machines),
    ("containerd", Kind::Machines),
    ("containers", Kind::Machines),
    ("lxc", Kind::Machines),
    ("lxd", Kind::Machines),
    ("incus", Kind::Machines),
    ("libvirt", Kind::Machines),
    ("machines", Kind::Machines),
    ("kubelet", Kind::Machines),
    ("rancher", Kind::Machines),
    ("grafana", Kind::State),
    ("jenkins", Kind::State),
    ("gitea", Kind::State),
    ("minio", Kind::State),
    ("vault", Kind::State),
    ("nextcloud", Kind::State),
    ("mediawiki", Kind::State),
    ("dokuwiki", Kind::State),
    ("wordpress", Kind::State),
    ("mailman", Kind::State),
    ("mailman3", Kind::State),
    ("cyrus", Kind::State),
    ("imap", Kind::State),
    ("samba", Kind::State),
    ("bind", Kind::State),
    ("named", Kind::State),
    ("tftpboot", Kind::State),
    ("asterisk", Kind::State),
    ("zabbix", Kind::State),
    ("nagios", Kind::State),
    ("nagios4", Kind::State),
    ("icinga2", Kind::State),
    ("graphite", Kind::State),
    ("puppetserver", Kind::State),
    ("foreman", Kind::State),
    ("tomcat8", Kind::State),
    ("tomcat9", Kind::State),
    ("tomcat10", Kind::State),
    ("tomcat", Kind::State),
    ("svn", Kind::State),
    ("git", Kind::State),
];

/// Directories in the root that hier(7) knows, or that systems make: what else is there is somebody's data.
const SYSTEM: &[&str] = &[
    "afs",
    "bin",
    "boot",
    "cdrom",
    "dev",
    "efi",
    "etc",
    "home",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "libo32",
    "libn32",
    "lost+found",
    "media",
    "misc",
    "mnt",
    "net",
    "opt",
    "proc",
    "root",
    "run",
    "sbin",
    "selinux",
    "snap",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
    ".snapshots",
    "sysroot",
    "ostree",
];

/// How the data of a server is had in one piece, by the name of its directory; what is not here has no common way.
const DUMPS: &[(&str, &str)] = &[
    ("mysql", "dump it with mysqldump --single-transaction"),
    ("mariadb", "dump it with mariadb-dump --single-transaction"),
    (
        "postgresql",
        "dump it with pg_dumpall, or copy it with pg_basebackup",
    ),
    (
        "postgres",
        "dump it with pg_dumpall, or copy it with pg_basebackup",
    ),
    ("pgsql", "dump it with pg_dumpall, or copy it with pg_basebackup"),
    ("mongodb", "dump it with mongodump"),
    ("mongo", "dump it with mongodump"),
    ("redis", "save it with redis-cli BGSAVE and copy dump.rdb"),
    ("valkey", "save it with valkey-cli BGSAVE and copy dump.rdb"),
    ("elasticsearch", "take a snapshot through its snapshot API"),
    ("opensearch", "take a snapshot through its snapshot API"),
    ("cassandra", "take a snapshot with nodetool snapshot"),
    ("scylla", "take a snapshot with nodetool snapshot"),
    ("ldap", "dump it with slapcat"),
    ("dirsrv", "dump it with dsctl db2ldif"),
    ("influxdb", "copy it with influxd backup"),
    ("influxdb2", "copy it with influx backup"),
    ("etcd", "save it with etcdctl snapshot save"),
    ("consul", "save it with consul snapshot save"),
    ("neo4j", "dump it with neo4j-admin database dump"),
    (
        "rabbitmq",
        "export its definitions with rabbitmqctl export_definitions",
    ),
    ("docker", "save its volumes from inside their containers"),
    ("containerd", "save its volumes from inside their containers"),
    ("containers", "save its volumes from inside their containers"),
    ("libvirt", "shut its machines down and convert their disks"),
];

/// Directories whose files fit together only as long as nobody writes to them.
pub(super) fn kept_by_servers() -> impl Iterator<Item = String> {
    let kept = STATE
        .iter()
        .filter(|(_, kind)| matches!(kind, Kind::Database | Kind::Machines));
    kept.map(|(name, _)| format!("/var/lib/{name}"))
}

/// What to do about data that is in use, as an imperative.
pub(super) fn dump_of(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let found = DUMPS.iter().find(|(known, _)| *known == name);
    found.map_or("dump it with its own tool", |(_, how)| how)
}

/// The directories of `tree` with files that no package owns, in byte order.
pub fn find(tree: &Tree, owners: &Owners) -> Vec<Data> {
    let mut places: Vec<(GuestPath, Kind)> = Vec::new();
    let dir = |path: &str| tree.find(path).filter(|(_, n)| n.is_dir()).map(|(p, _)| p);
    let subdirs = |path: &GuestPath| {
        let children = tree.children(path).filter(|(_, n)| n.is_dir());
        children.map(|(p, _)| p.clone()).collect::<Vec<_>>()
    };
    places.extend(WHOLE.iter().filter_map(|(p, kind)| Some((dir(p)?, *kind))));
    for (path, kind) in EACH {
        if let Some(path) = dir(path) {
            places.extend(subdirs(&path).into_iter().map(|p| (p, *kind)));
        }
    }
    for (name, kind) in STATE {
        places.extend(dir(&format!("/var/lib/{name}")).map(|p| (p, *kind)));
    }
    for path in subdirs(&GuestPath::root()) {
        if !SYSTEM.iter().any(|s| s.as_bytes() == path.name()) && !owners.owned(&path) {
            places.push((path, Kind::Site));
        }
    }
    places.sort_by(|a, b| a.0.cmp(&b.0));
    places.dedup_by(|a, b| a.0 == b.0);
    let mut found = Vec::new();
    for (path, kind) in places {
        let (mut bytes, mut files) = (0u64, 0);
        for (file, node) in tree.below(&path) {
            if node.is_file() && !owners.owned(file) {
                bytes = bytes.saturating_add(node.size());
                files += 1;
            }
        }
        if files > 0 {
            found.push(Data {
                path,
                kind,
                bytes,
                files,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pkgdb::{Package, owners};
    use crate::source::{Source, memory::MemorySource};

    #[test]
    fn what_no_package_brought() {
        let source = MemorySource::new("m")
            .file("/srv/site/index.html", "12345")
            .file("/var/www/html/index.html", "default")
            .file("/var/lib/mysql/ibdata1", "1234567890")
            .file("/home/ann/.profile", "x")
            .dir("/home/empty")
            .file("/data/blob", "123")
            .file("/usr/bin/ls", "ls")
            .build();
        let packages = [Package {
            files: vec![GuestPath::new(b"/var/www/html/index.html").unwrap().into()],
            ..Package::default()
        }];
        let found = find(source.tree(), &owners(source.tree(), &packages));
        let shown: Vec<_> = found
            .iter()
            .map(|d| (d.path.to_string(), d.kind, d.bytes, d.files))
            .collect();
        assert_eq!(
            shown,
            [
                ("/data".into(), Kind::Site, 3, 1),
                ("/home/ann".into(), Kind::Home, 1, 1),
                ("/srv/site".into(), Kind::Site, 5, 1),
                ("/var/lib/mysql".into(), Kind::Database, 10, 1),
            ]
        );
    }
}
