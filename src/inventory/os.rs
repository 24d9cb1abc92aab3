//! Which operating system the machine is: os-release(5) and its forerunners, host name, architecture.

use crate::arch::{self, Arch};
use crate::distro::Distros;
use crate::error::{Escaped, Result};
use crate::source::{Source, read_file};
use os_release::OsRelease;

/// What the machine says of itself. `None`: it does not say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Os {
    /// `ID`.
    pub id: Option<String>,
    /// The words of `ID_LIKE`.
    pub id_like: Vec<String>,
    /// `VERSION_ID`.
    pub version_id: Option<String>,
    /// `PRETTY_NAME`, else `NAME` and `VERSION`.
    pub name: Option<String>,
    /// The packaging family, from `distros/`.
    pub family: Option<String>,
    /// The architecture of its programs.
    pub arch: Option<Arch>,
    /// `VERSION_CODENAME`.
    pub codename: Option<String>,
    /// The day the distribution's ordinary support ends, from `distros/`.
    pub end_of_life: Option<String>,
    /// Id of the file in `distros/` that describes it, or one that it is like.
    pub distro: Option<String>,
    /// The file that said so, as in `/etc/os-release`.
    pub read_from: Option<String>,
    /// All fields of that file in the type of the crate `os-release`. Our own reader fills it: the crate's reads host
    /// paths only, and leaves single quotes, escapes and comments as they stand.
    pub release: OsRelease,
}

/// Such files have a few hundred bytes.
const LIMIT: u64 = 256 << 10;

impl Os {
    /// A field by its name in the file, as in `UBUNTU_CODENAME`; `None` if missing or empty.
    pub fn field(&self, key: &str) -> Option<&str> {
        let r = &self.release;
        let value = match key {
            "NAME" => &r.name,
            "VERSION" => &r.version,
            "ID" => &r.id,
            "ID_LIKE" => &r.id_like,
            "PRETTY_NAME" => &r.pretty_name,
            "VERSION_ID" => &r.version_id,
            "VERSION_CODENAME" => &r.version_codename,
            "HOME_URL" => &r.home_url,
            "SUPPORT_URL" => &r.support_url,
            "BUG_REPORT_URL" => &r.bug_report_url,
            "PRIVACY_POLICY_URL" => &r.privacy_policy_url,
            _ => r.extra.get(key)?,
        };
        (!value.is_empty()).then_some(value)
    }

    /// For messages: the name, else id and version.
    pub fn describe(&self) -> String {
        let text = self.name.clone().unwrap_or_else(|| {
            let id = self.id.as_deref().unwrap_or("an unknown system");
            match self.version_id.as_deref().or(self.codename.as_deref()) {
                Some(version) => format!("{id} {version}"),
                None => id.to_owned(),
            }
        });
        Escaped(text.as_bytes()).to_string()
    }

    /// The system that the bytes of an os-release file describe, without architecture.
    pub fn from_os_release(bytes: &[u8], distros: &Distros) -> Self {
        let mut os = Self::default();
        for (key, value) in assignments(bytes) {
            let r = &mut os.release;
            match key.as_str() {
                "NAME" => r.name = value,
                "VERSION" => r.version = value,
                "ID" => r.id = value,
                "ID_LIKE" => r.id_like = value,
                "PRETTY_NAME" => r.pretty_name = value,
                "VERSION_ID" => r.version_id = value,
                "VERSION_CODENAME" => r.version_codename = value,
                "HOME_URL" => r.home_url = value,
                "SUPPORT_URL" => r.support_url = value,
                "BUG_REPORT_URL" => r.bug_report_url = value,
                "PRIVACY_POLICY_URL" => r.privacy_policy_url = value,
                _ => {
                    r.extra.insert(key, value);
                }
            }
        }
        os.fill(distros);
        os
    }

    /// Derives the plain fields from `release`, and family and end of life from what is known of the distribution.
    fn fill(&mut self, distros: &Distros) {
        let owned = |v: Option<&str>| v.map(str::to_owned);
        self.id = owned(self.field("ID"));
        self.id_like = self
            .release
            .id_like
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
        self.version_id = owned(self.field("VERSION_ID"));
        self.codename = owned(self.field("VERSION_CODENAME"));
        self.name = owned(self.field("PRETTY_NAME")).or_else(|| {
            let name = self.field("NAME")?;
            Some(match self.field("VERSION") {
                Some(version) => format!("{name} {version}"),
                None => name.to_owned(),
            })
        });
        // os-release(5): a file without ID means "linux", which says nothing; the name is the better evidence.
        let id = self.id.clone().or_else(|| owned(self.field("NAME")));
        let Some((distro, own)) =
            id.and_then(|id| distros.lookup_named(&id, self.field("NAME"), &self.id_like))
        else {
            return;
        };
        self.family = Some(distro.family.clone());
        self.distro = Some(distro.id.clone());
        if own {
            self.end_of_life = distro
                .release(self.version_id.as_deref(), self.codename.as_deref())
                .and_then(|r| r.end_of_life.clone());
        }
    }
}

/// Reads what the machine says of itself: `/etc/os-release`, `/usr/lib/os-release`, `/etc/lsb-release`, then the files
/// that `distros/` names, and the architecture from the machine's own programs.
///
/// # Errors
/// As the source's reader. A machine that says nothing is no error: the fields are `None`.
pub fn read(source: &dyn Source, distros: &Distros) -> Result<Os> {
    let mut os = read_release(source, distros)?;
    os.arch = arch::of_machine(source);
    Ok(os)
}

fn read_release(source: &dyn Source, distros: &Distros) -> Result<Os> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        if let Some(bytes) = read_file(source, path, LIMIT)? {
            let mut os = Os::from_os_release(&bytes, distros);
            if os.id.is_some() || os.name.is_some() {
                os.read_from = Some(path.to_owned());
                return Ok(os);
            }
        }
    }
    if let Some(os) = identify(source, distros)? {
        return Ok(os);
    }
    let path = "/etc/lsb-release";
    if let Some(bytes) = read_file(source, path, LIMIT)? {
        let mut os = Os::default();
        for (key, value) in assignments(&bytes) {
            match key.as_str() {
                "DISTRIB_ID" => {
                    os.release.id = value.to_ascii_lowercase();
                    os.release.name = value;
                }
                "DISTRIB_RELEASE" => os.release.version_id = value,
                "DISTRIB_CODENAME" => os.release.version_codename = value,
                "DISTRIB_DESCRIPTION" => os.release.pretty_name = value,
                _ => {}
            }
        }
        if !os.release.id.is_empty() {
            os.fill(distros);
            os.read_from = Some(path.to_owned());
            return Ok(os);
        }
    }
    Ok(Os::default())
}

/// Tries the files and patterns that `distros/` names; of several matches the one with the highest priority counts.
fn identify(source: &dyn Source, distros: &Distros) -> Result<Option<Os>> {
    let mut best: Option<(i32, Os)> = None;
    for distro in distros.iter() {
        for rule in &distro.identify {
            if best.as_ref().is_some_and(|(p, _)| *p >= rule.priority) {
                continue;
            }
            let Some(bytes) = read_file(source, &rule.file, LIMIT)? else {
                continue;
            };
            // `Distros::load` has compiled every pattern once.
            let Ok(pattern) = regex::bytes::Regex::new(&rule.pattern) else {
                continue;
            };
            let Some(found) = pattern.captures(&bytes) else {
                continue;
            };
            let group = |name| {
                found
                    .name(name)
                    .map(|m| String::from_utf8_lossy(m.as_bytes()).into_owned())
                    .unwrap_or_default()
            };
            let mut os = Os {
                read_from: Some(rule.file.clone()),
                ..Os::default()
            };
            os.release.id.clone_from(&distro.id);
            os.release.name.clone_from(&distro.name);
            os.release.version = group("version");
            os.release.version_id = group("version");
            os.release.version_codename = group("codename");
            os.fill(distros);
            best = Some((rule.priority, os));
        }
    }
    Ok(best.map(|(_, os)| os))
}

/// The host name: the first line of `/etc/hostname` that is neither empty nor a comment (hostname(5)), else `HOSTNAME`
/// of `/etc/sysconfig/network`.
///
/// # Errors
/// As the source's reader.
pub fn hostname(source: &dyn Source) -> Result<Option<String>> {
    if let Some(bytes) = read_file(source, "/etc/hostname", LIMIT)? {
        let mut lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        if let Some(line) = lines.find(|l| !l.is_empty() && !l.starts_with(b"#")) {
            return Ok(Some(String::from_utf8_lossy(line).into_owned()));
        }
    }
    let Some(bytes) = read_file(source, "/etc/sysconfig/network", LIMIT)? else {
        return Ok(None);
    };
    let mut named = assignments(&bytes)
        .into_iter()
        .filter(|(k, v)| k == "HOSTNAME" && !v.is_empty());
    Ok(named.next_back().map(|(_, name)| name))
}

/// The assignments of a file that follows os-release(5), in their order: a subset of shell without expansion. Comments,
/// lines without `=` and names that are no shell names are skipped. Values may stand in single quotes, in double quotes
/// (`\"`, `\$`, `` \` `` and `\\` are escapes) or in pieces of these; bytes that are not UTF-8 become U+FFFD. Carriage
/// returns at the end of a line are dropped.
pub fn assignments(bytes: &[u8]) -> Vec<(String, String)> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut found = Vec::new();
    for line in bytes.split(|b| *b == b'\n') {
        let line = line.trim_ascii();
        let line = line.strip_prefix(b"export ").unwrap_or(line);
        let Some(at) = line.iter().position(|b| *b == b'=') else {
            continue;
        };
        let (Some(key), Some(value)) = (line.get(..at), line.get(at + 1..)) else {
            continue;
        };
        let key = key.trim_ascii();
        let is_name = |k: &[u8]| {
            k.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
                && k.first().is_some_and(|b| !b.is_ascii_digit())
        };
        if let Ok(key) = std::str::from_utf8(key)
            && is_name(key.as_bytes())
        {
            found.push((
                key.to_owned(),
                String::from_utf8_lossy(&unquote(value.trim_ascii())).into_owned(),
            ));
        }
    }
    found
}

/// The value of a shell word without expansion. What stands behind the word, as a comment, is dropped; spaces inside an
/// unquoted value are kept, for files that forgot the quotes.
fn unquote(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(b) = bytes.next() {
        match b {
            b'\'' => out.extend(bytes.by_ref().take_while(|b| *b != b'\'')),
            b'"' => {
                while let Some(b) = bytes.next() {
                    match (b, bytes.peek()) {
                        (b'"', _) => break,
                        (b'\\', Some(b'"' | b'\\' | b'$' | b'`')) => out.extend(bytes.next()),
                        _ => out.push(b),
                    }
                }
            }
            b'\\' => out.extend(bytes.next()),
            b'#' if out.last().is_some_and(u8::is_ascii_whitespace) => break,
            _ => out.push(b),
        }
    }
    let end = out
        .iter()
        .rposition(|b| !b.is_ascii_whitespace())
        .map_or(0, |at| at + 1);
    out.truncate(end);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    fn value(line: &str) -> String {
        let found = assignments(format!("K={line}").as_bytes());
        assert_eq!(found.len(), 1, "{line:?}");
        found[0].1.clone()
    }

    #[test]
    fn quotes_escapes_and_comments() {
        assert_eq!(value("plain"), "plain");
        assert_eq!(value("'single \"quoted\" \\n'"), "single \"quoted\" \\n");
        assert_eq!(value(r#""a \"b\" \$c \\ \x""#), r#"a "b" $c \ \x"#);
        assert_eq!(value("'it'\\''s'"), "it's");
        assert_eq!(value("\"crlf\"\r"), "crlf");
        assert_eq!(value("8 # nine"), "8");
        assert_eq!(value("\"open"), "open");
        assert_eq!(value(""), "");
        assert_eq!(
            assignments(b"\xef\xbb\xbfA=1\n# B=2\n\n =3\n1X=4\n  C = \xff \nnoise\n"),
            [("A".into(), "1".into()), ("C".into(), "\u{fffd}".into())]
        );
    }

    #[test]
    fn falls_back_file_by_file() {
        let distros = Distros::load(None).unwrap();
        let os = |files: &[(&str, &str)]| {
            let mut source = MemorySource::new("test");
            for (path, text) in files {
                source = source.file(path, text);
            }
            read(&source.build(), &distros).unwrap()
        };
        let found = os(&[("/usr/lib/os-release", "ID=debian\nVERSION_ID=\"12\"\n")]);
        assert_eq!(found.end_of_life.as_deref(), Some("2026-07-11"));
        assert_eq!(found.read_from.as_deref(), Some("/usr/lib/os-release"));
        let found = os(&[("/etc/debian_version", "8.11\n")]);
        assert_eq!(
            (found.id.as_deref(), found.version_id.as_deref()),
            (Some("debian"), Some("8.11"))
        );
        assert_eq!(
            distros.base_for(&found).reference.as_deref(),
            Some("docker.io/library/debian:8")
        );
        let found = os(&[
            ("/etc/debian_version", "jessie/sid\n"),
            (
                "/etc/lsb-release",
                "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=14.04\nDISTRIB_CODENAME=trusty\n",
            ),
        ]);
        assert_eq!(
            (found.id.as_deref(), found.version_id.as_deref()),
            (Some("ubuntu"), Some("14.04"))
        );
        assert_eq!(os(&[("/etc/passwd", "")]).id, None);
    }

    #[test]
    fn host_names() {
        let name = |path, text| hostname(&MemorySource::new("t").file(path, text).build()).unwrap();
        assert_eq!(
            name("/etc/hostname", "# mine\n\n web1 \nother\n").as_deref(),
            Some("web1")
        );
        assert_eq!(
            name(
                "/etc/sysconfig/network",
                "NETWORKING=yes\nHOSTNAME=\"db.example\"\n"
            )
            .as_deref(),
            Some("db.example")
        );
        assert_eq!(name("/etc/hostname", "\n"), None);
    }
}
