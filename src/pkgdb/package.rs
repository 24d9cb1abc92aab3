//! What is known of one installed package, whatever family it is of.

use crate::path::GuestPath;

/// An installed package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The number before the `:` of the version; `None` where none is written, which orders as 0.
    pub epoch: Option<u32>,
    /// The upstream version.
    pub version: String,
    /// What follows the last `-` of the version; `None` for a package without one.
    pub release: Option<String>,
    /// The architecture in the database's own words: `amd64`, `all`, `noarch`.
    pub arch: Option<String>,
    /// What other architectures may do with it (dpkg's `Multi-Arch`): `same`, `foreign`, `allowed`. `None`: nothing.
    pub multi_arch: Option<String>,
    /// The source package it was built from.
    pub source: Option<SourcePackage>,
    /// Installed size in bytes, as the database states it.
    pub size: Option<u64>,
    /// True if somebody asked for it, false if it came as a dependency. `None`: the machine does not know.
    pub manual: Option<bool>,
    /// Name of the database, as in `pkgdb::DATABASES`.
    pub database: &'static str,

    /// Its files and directories as the database lists them, before diversions and symlinks of directories.
    pub files: Vec<PackageFile>,
    /// Files of it that lie elsewhere: as listed, and where they are.
    pub diverted: Vec<(GuestPath, GuestPath)>,
    /// Its configuration files.
    pub conffiles: Vec<Conffile>,
    /// What it needs and what it offers.
    pub relations: Relations,
    /// The state in the database's own words, as in `install ok installed`; empty where it keeps none.
    pub status: String,
    /// Who maintains it.
    pub maintainer: Option<String>,
    /// Who built and signed it.
    pub vendor: Option<String>,
    /// The repository it was installed from, as the package manager's history names it.
    pub repository: Option<String>,
    /// The stream of a module that it belongs to, as in `nodejs:18:8060020221216:ad008a3a:x86_64`.
    pub module: Option<String>,
    /// When it was installed, in seconds since 1970 UTC.
    pub installed_at: Option<i64>,
    /// Section or group.
    pub section: Option<String>,
    /// Priority.
    pub priority: Option<String>,
    /// True if the system cannot do without it (`Essential`, `Protected`).
    pub essential: bool,
    /// Whose archive it comes from, if the package says.
    pub origin: Option<String>,
    /// Its licence, if the database has it.
    pub license: Option<String>,
    /// What it is, in one line.
    pub summary: Option<String>,
    /// Its home page.
    pub homepage: Option<String>,
}

impl Package {
    /// The version as the database writes it: `1:2.3-4`.
    pub fn full_version(&self) -> String {
        let mut text = String::new();
        if let Some(epoch) = self.epoch {
            text.push_str(&format!("{epoch}:"));
        }
        text.push_str(&self.version);
        if let Some(release) = &self.release {
            text.push_str(&format!("-{release}"));
        }
        text
    }

    /// The listed files that have a digest, with it.
    pub fn digests(&self) -> impl Iterator<Item = (&GuestPath, &FileDigest)> {
        self.files.iter().filter_map(|file| {
            let digest = file.facts.as_ref()?.digest.as_ref()?;
            Some((&file.path, digest))
        })
    }
}

/// An MD5 digest.
pub type Md5Sum = [u8; 16];

/// A file or directory of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageFile {
    /// Where the package puts it.
    pub path: GuestPath,
    /// What the database knows of it; `None` where it keeps names only.
    pub facts: Option<Box<FileFacts>>,
}

impl PackageFile {
    /// True if the database does not say that the file was left out, or is another package's.
    pub fn is_installed(&self) -> bool {
        self.facts.as_ref().is_none_or(|facts| facts.state.is_installed())
    }
}

impl From<GuestPath> for PackageFile {
    fn from(path: GuestPath) -> Self {
        Self { path, facts: None }
    }
}

/// What a database knows of a file as the package brought it. `None` is what it does not keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Digest of the content of a regular file.
    pub digest: Option<FileDigest>,
    /// `st_mode` with the bits of the type.
    pub mode: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Modification time in seconds since 1970 UTC.
    pub mtime: Option<i64>,
    /// Name of the owner.
    pub user: Option<String>,
    /// Name of the group.
    pub group: Option<String>,
    /// Target of a symlink.
    pub link: Option<Vec<u8>>,
    /// Capabilities in the words of cap_to_text(3).
    pub capabilities: Option<String>,
    /// What kind of file the package says it is.
    pub flags: FileFlags,
    /// Whether it was put there.
    pub state: FileState,
}

/// Whether a file of a package was put on the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileState {
    /// It was.
    #[default]
    Normal,
    /// It was, but the file that is there now is another package's.
    Replaced,
    /// It was left out when the package was installed: documentation, a language.
    NotInstalled,
    /// It is on a filesystem that another machine installs.
    NetShared,
    /// The file that is there is that of the same package of another architecture.
    WrongColor,
}

impl FileState {
    /// True if the file that is there is this package's own.
    pub fn is_installed(self) -> bool {
        matches!(self, Self::Normal | Self::NetShared)
    }
}

/// What kind of file a package says that one of its files is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileFlags {
    /// A configuration file.
    pub config: bool,
    /// A configuration file that is not replaced by an upgrade.
    pub noreplace: bool,
    /// Owned, but not brought by the package: a log, a cache.
    pub ghost: bool,
    /// Documentation.
    pub doc: bool,
    /// Its absence is no fault.
    pub missing_ok: bool,
}

/// A digest of a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FileDigest {
    /// MD5 (RFC 1321).
    Md5(Md5Sum),
    /// SHA-1 (FIPS 180-4).
    Sha1([u8; 20]),
    /// SHA-256 (FIPS 180-4).
    Sha256([u8; 32]),
    /// SHA-384 (FIPS 180-4).
    Sha384(Box<[u8; 48]>),
    /// SHA-512 (FIPS 180-4).
    Sha512(Box<[u8; 64]>),
}

/// The source of a package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourcePackage {
    /// Name of the source package, or file name of the source package where the database keeps that (rpm).
    pub name: String,
    /// Its full version, if the database has it.
    pub version: Option<String>,
}

/// A configuration file that the package manager keeps through upgrades.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conffile {
    /// Where it is.
    pub path: GuestPath,
    /// Digest of the file as the package brought it; `None` where the database has none.
    pub digest: Option<FileDigest>,
    /// True if the installed version of the package has it no more.
    pub obsolete: bool,
    /// True if its absence is no fault.
    pub missing_ok: bool,
}

/// Relations between packages, each element one relation in the grammar of the family: `libc6 (>= 2.34) | libc` (dpkg),
/// `glibc >= 2.34`, `(a if b)` (rpm), `so:libc.musl-x86_64.so.1` (apk), `glibc>=2.38` (alpm). Empty where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relations {
    /// Needed to work.
    pub depends: Vec<String>,
    /// Needed before it can be unpacked.
    pub pre_depends: Vec<String>,
    /// Wanted, but not needed.
    pub recommends: Vec<String>,
    /// Useful together.
    pub suggests: Vec<String>,
    /// This package is wanted where these are.
    pub supplements: Vec<String>,
    /// This package is useful where these are.
    pub enhances: Vec<String>,
    /// Names it stands for.
    pub provides: Vec<String>,
    /// Cannot be installed together.
    pub conflicts: Vec<String>,
    /// Cannot be configured together.
    pub breaks: Vec<String>,
    /// What it takes the place of: files of these may be overwritten, or they are removed.
    pub replaces: Vec<String>,
}
