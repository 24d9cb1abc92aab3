//! pacman's repositories: pacman.conf(5) with the files that it includes, and the databases that repo-add(8) writes: a tar,
//! compressed or not, with a file `NAME-VERSION/desc` for each package.

#![deny(clippy::indexing_slicing)]

use super::tarball::{Content, Forward};
use super::{Client, Compressed, Served, apt, fetch, open, without_zero_epoch};
use crate::error::{Error, Escaped, Result};
use crate::tar::Reader;

/// How deep files may include files; pacman's own limit.
const MAX_DEPTH: usize = 10;
/// The most lines that are looked at, those of included files counted as often as they are included.
const MAX_LINES: usize = 1 << 20;
/// The most files that are included.
const MAX_INCLUDED: usize = 200;
/// The most servers of a repository that are kept, and those that are tried.
const MAX_SERVERS: usize = 1000;
const MAX_TRIES: usize = 3;

/// A repository of `pacman.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pacman {
    /// The name of its section.
    pub name: String,
    /// URLs of its servers, with `$repo` and `$arch` in them.
    pub servers: Vec<String>,
}

impl Pacman {
    /// `core https://mirror.example.org/core/os/$arch`.
    pub fn label(&self) -> String {
        let url = self.servers.first().map(|s| s.replace("$repo", &self.name));
        let url = url.map_or_else(|| "no server".to_owned(), |u| fetch::shown(&u));
        format!("{} {url}", Escaped(self.name.as_bytes()))
    }
}

/// The files that the value of an `Include` names: path and content of each.
pub type Include<'a> = dyn Fn(&str) -> Vec<(String, String)> + 'a;

/// What is known while a configuration is read.
#[derive(Default)]
struct Reading {
    /// The repositories, each with the file of its first server, and whether packages are installed from it.
    found: Vec<(String, Pacman, bool)>,
    /// True inside of a section that is a repository.
    inside: bool,
    lines: usize,
    included: usize,
}

/// The repositories that a configuration names and that packages are installed from, each with the file that names its
/// servers: `path` or one that `include` gives.
pub fn conf(path: &str, text: &str, include: &Include<'_>) -> Vec<(String, Pacman)> {
    let mut reading = Reading::default();
    read(path, text, include, 0, &mut reading);
    let usable = reading.found.into_iter().filter(|(.., installs)| *installs);
    usable
        .filter(|(_, repository, _)| !repository.servers.is_empty())
        .map(|(file, repository, _)| (file, repository))
        .collect()
}

fn read(path: &str, text: &str, include: &Include<'_>, depth: usize, reading: &mut Reading) {
    for line in text.lines() {
        reading.lines += 1;
        if reading.lines > MAX_LINES {
            return;
        }
        let line = line.trim();
        if let Some(name) = section(line) {
            reading.inside = name != "options";
            if reading.inside && !reading.found.iter().any(|(_, r, _)| r.name == name) {
                let repository = Pacman {
                    name: name.to_owned(),
                    servers: Vec::new(),
                };
                reading.found.push((path.to_owned(), repository, true));
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=').map(|(k, v)| (k.trim(), v.trim())) else {
            continue;
        };
        match (key, reading.found.last_mut().filter(|_| reading.inside)) {
            ("Include", _) if depth < MAX_DEPTH => {
                if reading.included >= MAX_INCLUDED {
                    continue;
                }
                for (path, text) in include(value) {
                    reading.included += 1;
                    read(&path, &text, include, depth + 1, reading);
                }
            }
            ("Server", Some((file, repository, _))) if repository.servers.len() < MAX_SERVERS => {
                if repository.servers.is_empty() {
                    path.clone_into(file);
                }
                repository.servers.push(value.trim_end_matches('/').to_owned());
            }
            // A repository may be there for searching only.
            ("Usage", Some((.., installs))) => {
                *installs = value
                    .split_ascii_whitespace()
                    .any(|w| matches!(w, "All" | "Install"));
            }
            _ => {}
        }
    }
}

fn section(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.strip_suffix(']')
}

/// A configuration without the sections called `names`.
pub fn without(text: &str, names: &[String]) -> String {
    let mut kept = true;
    let lines = text.split_inclusive('\n').filter(|line| {
        if let Some(name) = section(line.trim()) {
            kept = !names.iter().any(|n| n == name);
        }
        kept
    });
    lines.collect()
}

/// Reads a database as repo-add(8) writes it.
///
/// # Errors
/// [`Error::Corrupt`] if it is none, [`Error::Unsupported`] for a compression that is not read.
pub fn database(bytes: &[u8], take: &mut dyn FnMut(Served)) -> Result<()> {
    // A tar that ends before its first byte would be one without packages.
    if bytes.is_empty() {
        return Err(Error::corrupt("an empty database of pacman", 0));
    }
    let compressed = Compressed::of_magic(bytes)
        .ok_or_else(|| Error::unsupported("a database of pacman in a compression that is not read"))?;
    let mut tar = Reader::new(Forward(open(bytes, compressed)?), "a database of pacman");
    while let Some(entry) = tar.next()? {
        if entry.path.ends_with(b"/desc")
            && let Some(served) = desc(Content(&mut tar))?
        {
            take(served);
        }
    }
    Ok(())
}

/// Reads a `desc` file: `%FIELD%` on a line of its own, its values on the lines behind it, and an empty line.
fn desc(from: impl std::io::Read) -> Result<Option<Served>> {
    let fields = ["%NAME%", "%VERSION%", "%ARCH%"];
    let mut values: [Option<String>; 3] = Default::default();
    let mut at = None;
    apt::lines(from, |line| {
        if line.starts_with(b"%") && line.ends_with(b"%") {
            at = fields.iter().position(|f| f.as_bytes() == line);
        } else if let Some(value) = at.take().and_then(|n: usize| values.get_mut(n)) {
            *value = Some(String::from_utf8_lossy(line).into_owned());
        }
    })?;
    let [Some(name), Some(version), arch] = values else {
        return Ok(None);
    };
    let version = without_zero_epoch(&version).to_owned();
    let arch = arch.unwrap_or_default();
    Ok(Some(Served { name, version, arch }))
}

/// Asks a repository for its packages.
pub(super) fn list(
    client: &Client,
    repository: &Pacman,
    archs: &[&str],
    take: &mut dyn FnMut(Served),
) -> Result<()> {
    let Some(arch) = archs.first() else {
        return Err(Error::unsupported(format!(
            "{}: the machine's architecture is not known",
            repository.label()
        )));
    };
    let mut failure = None;
    let web = |s: &&String| s.starts_with("http://") || s.starts_with("https://");
    for server in repository.servers.iter().filter(web).take(MAX_TRIES) {
        let server = server.replace("$repo", &repository.name).replace("$arch", arch);
        match client.unchecked_list(&format!("{server}/{}.db", repository.name)) {
            Ok(bytes) => return database(&bytes, take),
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.unwrap_or_else(|| Error::unsupported(format!("{}: no server of http", repository.label()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_the_files_that_it_includes() {
        let text = "[options]\nArchitecture = auto\nServer = http://no\n#[testing]\n#Include = /etc/x\n\n[core]\n\
                    Include = /etc/pacman.d/mirrorlist\n[extra]\nSigLevel = Never\nInclude = /etc/pacman.d/mirrorlist\n\
                    [own]\nServer=http://own/$arch/\nServer = https://b/$repo\n[seen]\nUsage = Sync Search\nServer = http://s\n[none]\n";
        let include = |name: &str| match name {
            "/etc/pacman.d/mirrorlist" => vec![(
                name.to_owned(),
                "## comment\n#Server = http://off\nServer = http://m/$repo/os/$arch\n".to_owned(),
            )],
            _ => Vec::new(),
        };
        let found = conf("/etc/pacman.conf", text, &include);
        let shown: Vec<String> = found
            .iter()
            .map(|(file, r)| format!("{file} {} {}", r.name, r.servers.join(" ")))
            .collect();
        assert_eq!(
            shown,
            [
                "/etc/pacman.d/mirrorlist core http://m/$repo/os/$arch",
                "/etc/pacman.d/mirrorlist extra http://m/$repo/os/$arch",
                "/etc/pacman.conf own http://own/$arch https://b/$repo",
            ]
        );
        assert_eq!(found[0].1.label(), "core http://m/core/os/$arch");
        let cut = without(text, &["core".to_owned(), "own".to_owned()]);
        assert!(cut.contains("[extra]") && cut.contains("[options]") && cut.contains("Usage = Sync"));
        assert!(!cut.contains("[core]") && !cut.contains("http://own"), "{cut}");
    }

    #[test]
    fn files_that_include_themselves_end() {
        let text = "[a]\nInclude = x\nServer = http://a\nInclude = x\n";
        let again = |_: &str| vec![("x".to_owned(), text.to_owned())];
        assert_eq!(conf("x", text, &again).len(), 1);
    }

    #[test]
    fn a_description() {
        let text = b"%FILENAME%\na.pkg\n\n%NAME%\na\n\n%BASE%\nb\n\n%VERSION%\n0:1.0-2\n\n%ARCH%\nany\n\n%DEPENDS%\nx\n%\n";
        let served = desc(&text[..]).unwrap().unwrap();
        assert_eq!((served.name.as_str(), served.version.as_str()), ("a", "1.0-2"));
        assert_eq!(served.arch, "any");
        assert_eq!(desc(&b"%NAME%\n"[..]).unwrap(), None);
    }

    #[test]
    fn what_is_no_database_is_an_error() {
        assert!(database(b"", &mut |_| {}).is_err());
        assert!(database(b"\x1f\x8bnot gzip", &mut |_| {}).is_err());
        assert!(matches!(
            database(b"BZh91AY", &mut |_| {}),
            Err(Error::Unsupported { .. })
        ));
    }
}
