//! The document that `scan --json` prints. Unknown is null, never left out.

use super::Inventory;
use super::base::BaseMatch;
use super::changed::{Changed, Field};
use super::command::redacted;
use super::data::Kind;
use super::fitness::Finding;
use super::services::Port;
use crate::arch::Arch;
use crate::error::Escaped;
use crate::live::Live;
use crate::path::GuestPath;
use crate::source::FilesystemInfo;
use serde::Serialize;

/// Name and version of the document's shape. The number grows when a field changes its meaning; new fields may come
/// without it.
pub const SCHEMA: &str = "vm2k.scan/1";

/// The document; fields in the order in which they are printed.
#[derive(Debug, Serialize)]
pub struct ScanDocument<'a> {
    schema: &'static str,
    name: &'a str,
    os: OsRow<'a>,
    hostname: Option<&'a str>,
    filesystems: &'a [FilesystemInfo],
    packages: Option<Vec<PackageRow<'a>>>,
    /// Names of the packages to ask for, so that the package manager brings the rest.
    roots: Option<&'a [String]>,
    /// Files that are not what their packages brought; null where they were not looked at.
    changed: Option<Vec<ChangedRow<'a>>>,
    services: Vec<ServiceRow<'a>>,
    ports: Option<&'a [Port]>,
    /// What the host says of itself; null if it is none that runs.
    live: Option<&'a Live>,
    users: &'a [super::users::User],
    data: Vec<DataRow>,
    secrets: Vec<SecretRow<'a>>,
    fitness: &'a [Finding],
    base: BaseRow<'a>,
    notes: &'a [String],
    problems: Vec<ProblemRow<'a>>,
}

#[derive(Debug, Serialize)]
struct OsRow<'a> {
    id: Option<&'a str>,
    version_id: Option<&'a str>,
    name: Option<&'a str>,
    family: Option<&'a str>,
    arch: Option<Arch>,
    end_of_life: Option<&'a str>,
    codename: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct PackageRow<'a> {
    name: &'a str,
    epoch: Option<u32>,
    version: &'a str,
    release: Option<&'a str>,
    arch: Option<&'a str>,
    source: Option<&'a str>,
    source_version: Option<&'a str>,
    /// Bytes.
    size: Option<u64>,
    manual: Option<bool>,
    database: &'a str,
}

#[derive(Debug, Serialize)]
struct ServiceRow<'a> {
    name: &'a str,
    manager: &'a str,
    package: Option<&'a str>,
    base: bool,
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    /// Secrets in it are blanked.
    exec: Vec<String>,
    user: Option<&'a str>,
    working_directory: Option<&'a str>,
    /// Names only.
    environment: Vec<&'a str>,
    description: Option<&'a str>,
}

/// A path of the machine: escaped text, and base64 of its bytes if they are not UTF-8.
#[derive(Debug, Serialize)]
struct PathRow {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
}

#[derive(Debug, Serialize)]
struct DataRow {
    #[serde(flatten)]
    path: PathRow,
    kind: Kind,
    size: u64,
    files: u64,
}

#[derive(Debug, Serialize)]
struct SecretRow<'a> {
    rule: &'a str,
    #[serde(flatten)]
    path: PathRow,
}

#[derive(Debug, Serialize)]
struct ChangedRow<'a> {
    #[serde(flatten)]
    path: PathRow,
    package: &'a str,
    config: bool,
    differs: &'a [Field],
}

#[derive(Debug, Serialize)]
struct ProblemRow<'a> {
    #[serde(flatten)]
    path: PathRow,
    what: &'a str,
}

#[derive(Debug, Serialize)]
struct BaseRow<'a> {
    reference: Option<&'a str>,
    digest: Option<&'a str>,
    reason: Option<&'a str>,
}

impl PathRow {
    fn new(path: &GuestPath) -> Self {
        match std::str::from_utf8(path.as_bytes()) {
            Ok(text) => Self {
                path: text.to_owned(),
                path_b64: None,
            },
            Err(_) => Self {
                path: Escaped(path.as_bytes()).to_string(),
                path_b64: Some(base64(path.as_bytes())),
            },
        }
    }
}

impl<'a> ChangedRow<'a> {
    fn new(changed: &'a Changed) -> Self {
        Self {
            path: PathRow::new(&changed.path),
            package: &changed.package,
            config: changed.config,
            differs: &changed.fields,
        }
    }
}

/// Makes the document. Without `base` its row says that none was looked for; `roots` are the names of the packages to ask
/// for, `changed` the files that are not what their packages brought.
pub fn scan_document<'a>(
    inventory: &'a Inventory,
    base: Option<&'a BaseMatch>,
    roots: Option<&'a [String]>,
    changed: Option<&'a [Changed]>,
) -> ScanDocument<'a> {
    let os = &inventory.os;
    let packages = inventory.packages.as_ref().map(|packages| {
        let rows = packages.iter().map(|p| PackageRow {
            name: &p.name,
            epoch: p.epoch,
            version: &p.version,
            release: p.release.as_deref(),
            arch: p.arch.as_deref(),
            source: p.source.as_ref().map(|s| s.name.as_str()),
            source_version: p.source.as_ref().and_then(|s| s.version.as_deref()),
            size: p.size,
            manual: p.manual,
            database: p.database,
        });
        rows.collect()
    });
    let services = inventory.services.iter().map(|s| ServiceRow {
        name: &s.name,
        manager: s.manager,
        package: s.package.as_deref(),
        base: s.base,
        kind: s.kind.as_deref(),
        exec: s.exec.iter().map(|e| redacted(e)).collect(),
        user: s.user.as_deref(),
        working_directory: s.working_directory.as_deref(),
        environment: s.environment.iter().map(|(name, _)| name.as_str()).collect(),
        description: s.description.as_deref(),
    });
    let data = inventory.data.iter().map(|d| DataRow {
        path: PathRow::new(&d.path),
        kind: d.kind,
        size: d.bytes,
        files: d.files,
    });
    let secrets = inventory.secrets.iter().map(|s| SecretRow {
        rule: &s.rule,
        path: PathRow::new(&s.path),
    });
    let problems = inventory.problems.iter().map(|p| ProblemRow {
        path: PathRow::new(&p.path),
        what: &p.what,
    });
    ScanDocument {
        schema: SCHEMA,
        name: &inventory.name,
        os: OsRow {
            id: os.id.as_deref(),
            version_id: os.version_id.as_deref(),
            name: os.name.as_deref(),
            family: os.family.as_deref(),
            arch: os.arch,
            end_of_life: os.end_of_life.as_deref(),
            codename: os.codename.as_deref(),
        },
        hostname: inventory.hostname.as_deref(),
        filesystems: &inventory.filesystems,
        packages,
        roots,
        changed: changed.map(|changed| changed.iter().map(ChangedRow::new).collect()),
        services: services.collect(),
        ports: inventory.ports.as_deref(),
        live: inventory.live.as_ref(),
        users: &inventory.users,
        data: data.collect(),
        secrets: secrets.collect(),
        fitness: &inventory.fitness,
        base: BaseRow {
            reference: base.and_then(|b| b.reference.as_deref()),
            digest: None,
            reason: base.map(|b| b.reason.as_str()),
        },
        notes: &inventory.notes,
        problems: problems.collect(),
    }
}

/// RFC 4648, section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .enumerate()
            .fold(0u32, |n, (i, b)| n | u32::from(*b) << (16 - 8 * i));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            let known = digit <= chunk.len();
            out.push(
                DIGITS
                    .get(index)
                    .filter(|_| known)
                    .map_or('=', |d| char::from(*d)),
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::secrets::Secret;

    #[test]
    fn every_field_is_there_and_unknown_is_null() {
        let inventory = Inventory {
            secrets: vec![Secret {
                rule: "r".into(),
                path: GuestPath::new(b"/a\xff").unwrap(),
            }],
            ..Inventory::default()
        };
        let json = serde_json::to_value(scan_document(&inventory, None, None, None)).unwrap();
        for key in [
            "schema",
            "os",
            "hostname",
            "filesystems",
            "packages",
            "roots",
            "services",
            "ports",
            "live",
            "users",
            "data",
            "secrets",
            "fitness",
            "base",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["id", "version_id", "name", "family", "arch", "end_of_life"] {
            assert!(
                json["os"].get(key).is_some_and(serde_json::Value::is_null),
                "{key}"
            );
        }
        assert!(json["packages"].is_null() && json["ports"].is_null() && json["roots"].is_null());
        assert_eq!(json["secrets"][0]["path"], "/a\\xff");
        assert_eq!(json["secrets"][0]["path_b64"], "L2H/");
        assert!(json["base"].get("digest").is_some());
    }

    #[test]
    fn base64_pads() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foo"), "Zm9v");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
    }
}
