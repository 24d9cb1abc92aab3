//! Unit files of systemd: where they are looked for, how they are read (systemd.unit(5), systemd.syntax(7)).

use crate::error::Result;
use crate::path::GuestPath;
use crate::read_at::read_all;
use crate::source::Source;
use crate::tree::Tree;

/// Folders of units, the one that wins first.
pub const FOLDERS: &[&str] = &[
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

const LIMIT: u64 = 1 << 20;

/// A unit with its drop-ins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its name with the ending, as in `getty@tty1.service`.
    pub name: String,
    /// The file that was read first.
    pub file: Option<GuestPath>,
    /// Section, key, value, in the order of the files.
    pub(super) settings: Vec<(String, String, String)>,
}

impl Unit {
    /// All values of a key that holds a list; an empty assignment drops the earlier ones.
    pub fn list(&self, section: &str, key: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for (_, _, value) in self.settings.iter().filter(|(s, k, _)| s == section && k == key) {
            if value.is_empty() {
                found.clear();
            } else {
                found.push(value.as_str());
            }
        }
        found
    }

    /// The last value of a key; `None` if missing or empty.
    pub fn last(&self, section: &str, key: &str) -> Option<&str> {
        let mut settings = self.settings.iter().rev();
        settings
            .find(|(s, k, _)| s == section && k == key)
            .map(|(_, _, value)| value.as_str())
            .filter(|v| !v.is_empty())
    }

    /// Replaces the specifiers that a file alone can tell: `%n %N %p %P %i %I %%`. `None` if there is another.
    pub fn specifiers(&self, text: &str) -> Option<String> {
        let stem = self.name.rsplit_once('.').map_or(self.name.as_str(), |(s, _)| s);
        let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next()? {
                'n' => out.push_str(&self.name),
                'N' => out.push_str(stem),
                'p' | 'P' => out.push_str(prefix),
                // `%I` is unescaped; an instance with escapes is left to systemd.
                'i' => out.push_str(instance),
                'I' if !instance.contains(['\\', '-']) => out.push_str(instance),
                '%' => out.push('%'),
                _ => return None,
            }
        }
        Some(out)
    }
}

/// What is known of a unit's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The unit.
    Unit(Unit),
    /// It leads to `/dev/null`: it cannot be started.
    Masked,
    /// No folder has it.
    Missing,
}

/// Finds the unit `name` and its drop-ins. An instance of a template that has no file of its own gets the template's.
///
/// # Errors
/// As the source's reader.
pub fn find(source: &dyn Source, name: &str) -> Result<Found> {
    let tree = source.tree();
    let template = name.split_once('@').and_then(|(prefix, rest)| {
        let (_, ending) = rest.rsplit_once('.')?;
        Some(format!("{prefix}@.{ending}"))
    });
    for candidate in [Some(name.to_owned()), template.clone()].into_iter().flatten() {
        for folder in FOLDERS {
            let Ok(path) = in_folder(folder, &candidate) else {
                continue;
            };
            let Some(node) = tree.resolve(&path, false).ok().and_then(|p| tree.get(&p)) else {
                continue;
            };
            if let crate::tree::Kind::Symlink { target } = &node.kind
                && target == b"/dev/null"
            {
                return Ok(Found::Masked);
            }
            let Some(file) = tree.resolve(&path, true).ok() else {
                continue;
            };
            let Some(node) = tree.get(&file).filter(|n| n.is_file()) else {
                return Ok(Found::Masked);
            };
            if node.size() == 0 {
                return Ok(Found::Masked);
            }
            let mut unit = Unit {
                name: name.to_owned(),
                file: Some(file),
                ..Unit::default()
            };
            parse(&read_all(&*source.open(node.id)?, LIMIT)?, &mut unit.settings);
            drop_ins(source, name, template.as_deref(), &mut unit)?;
            return Ok(Found::Unit(unit));
        }
    }
    Ok(Found::Missing)
}

/// The settings of `name.d/*.conf` of all folders, in the order of their file names; of two with one name the folder
/// that wins counts.
fn drop_ins(source: &dyn Source, name: &str, template: Option<&str>, unit: &mut Unit) -> Result<()> {
    let tree = source.tree();
    let mut files: std::collections::BTreeMap<Vec<u8>, GuestPath> = std::collections::BTreeMap::new();
    for owner in [Some(name), template].into_iter().flatten() {
        for folder in FOLDERS {
            let Some(dir) = in_folder(folder, &format!("{owner}.d"))
                .ok()
                .and_then(|d| tree.resolve(&d, true).ok())
            else {
                continue;
            };
            for (path, _) in tree.children(&dir) {
                if path.name().ends_with(b".conf") {
                    files.entry(path.name().to_vec()).or_insert_with(|| path.clone());
                }
            }
        }
    }
    for path in files.into_values() {
        let Some(file) = tree.resolve(&path, true).ok() else {
            continue;
        };
        if let Some(node) = tree.get(&file).filter(|n| n.is_file()) {
            parse(&read_all(&*source.open(node.id)?, LIMIT)?, &mut unit.settings);
        }
    }
    Ok(())
}

/// Units that the machine starts, by name, with the folders' `*.wants` and `*.requires`: name, and true if the link is
/// in `/etc`, so that somebody enabled it.
pub fn wanted(tree: &Tree) -> Vec<(String, bool)> {
    let mut found: Vec<(String, bool)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for folder in FOLDERS {
        let Some((dir, _)) = tree.find(folder) else {
            continue;
        };
        // `/lib` may be a link to `/usr/lib`.
        if !seen.insert(dir.clone()) {
            continue;
        }
        for (wants, _) in tree.children(&dir).filter(|(path, node)| {
            let name = path.name();
            node.is_dir() && (name.ends_with(b".wants") || name.ends_with(b".requires"))
        }) {
            if SHUTDOWN.iter().any(|t| wants.name().starts_with(t.as_bytes())) {
                continue;
            }
            for (link, _) in tree.children(wants) {
                if let Ok(name) = std::str::from_utf8(link.name()) {
                    found.push((name.to_owned(), folder.starts_with("/etc")));
                }
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    found.dedup_by(|a, b| a.0 == b.0);
    found
}

/// Targets that are not reached by a machine that runs.
const SHUTDOWN: &[&str] = &[
    "initrd",
    "rescue.",
    "emergency.",
    "reboot.",
    "poweroff.",
    "halt.",
    "kexec.",
    "shutdown.",
    "sleep.",
    "suspend",
    "hibernate.",
    "hybrid-sleep.",
    "system-update",
    "runlevel",
    "factory-reset",
    "soft-reboot.",
];

fn in_folder(folder: &str, name: &str) -> Result<GuestPath> {
    GuestPath::new(folder.as_bytes())?.join(name.as_bytes())
}

/// systemd.syntax(7): sections, `key=value`, comments with `#` and `;`, a backslash at the end continues a line.
fn parse(bytes: &[u8], settings: &mut Vec<(String, String, String)>) {
    let text = String::from_utf8_lossy(bytes);
    let mut section = String::new();
    let mut pending = String::new();
    for line in text.split('\n') {
        let line = line.trim();
        if line.starts_with(['#', ';']) || (line.is_empty() && pending.is_empty()) {
            continue;
        }
        if let Some(part) = line.strip_suffix('\\') {
            pending.push_str(part);
            pending.push(' ');
            continue;
        }
        let whole = std::mem::take(&mut pending) + line;
        if let Some(name) = whole.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, value)) = whole.split_once('=') {
            settings.push((section.clone(), key.trim().to_owned(), value.trim().to_owned()));
        }
    }
}

/// Splits a value into words by systemd.syntax(7), "Quoting": blanks, single and double quotes, C escapes. `None` if a
/// quote is not closed or an escape is none.
pub fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Some(words);
        }
        let mut word = String::new();
        let mut quote: Option<char> = None;
        loop {
            match (chars.next(), quote) {
                (None, None) => break,
                (None, Some(_)) => return None,
                (Some('\\'), _) => match chars.next()? {
                    'a' => word.push('\u{7}'),
                    'b' => word.push('\u{8}'),
                    'f' => word.push('\u{c}'),
                    'n' => word.push('\n'),
                    'r' => word.push('\r'),
                    't' => word.push('\t'),
                    'v' => word.push('\u{b}'),
                    's' => word.push(' '),
                    c @ ('\\' | '"' | '\'' | ';') => word.push(c),
                    'x' => {
                        let (a, b) = (chars.next()?.to_digit(16)?, chars.next()?.to_digit(16)?);
                        word.push(char::from_u32(a << 4 | b).filter(char::is_ascii)?);
                    }
                    _ => return None,
                },
                (Some(c), Some(q)) if c == q => quote = None,
                (Some(c @ ('"' | '\'')), None) if word.is_empty() => quote = Some(c),
                (Some(c), None) if c.is_whitespace() => break,
                (Some(c), _) => word.push(c),
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemorySource;

    #[test]
    fn drop_ins_instances_and_masks() {
        let source = MemorySource::new("m")
            .file(
                "/usr/lib/systemd/system/web@.service",
                "[Unit]\nDescription=web\n[Service]\nExecStart=/bin/old\n# no\nEnvironment=A=1\nUser=www \\\n",
            )
            .file(
                "/etc/systemd/system/web@.service.d/10.conf",
                "[Service]\nExecStart=\nExecStart=/bin/new --name %i \\\n  --more\nEnvironment=B=2\n",
            )
            .symlink("/etc/systemd/system/gone.service", "/dev/null")
            .symlink(
                "/etc/systemd/system/multi-user.target.wants/web@one.service",
                "/usr/lib/systemd/system/web@.service",
            )
            .symlink("/lib", "usr/lib")
            .symlink("/usr/lib/systemd/system/sysinit.target.wants/base.service", "../base.service")
            .symlink("/usr/lib/systemd/system/rescue.target.wants/x.service", "../x.service")
            .build();
        let Found::Unit(unit) = find(&source, "web@one.service").unwrap() else {
            panic!("not found")
        };
        assert_eq!(unit.list("Service", "ExecStart"), ["/bin/new --name %i  --more"]);
        assert_eq!(unit.list("Service", "Environment"), ["A=1", "B=2"]);
        assert_eq!(
            unit.specifiers("%i %p %% %n").as_deref(),
            Some("one web % web@one.service")
        );
        assert_eq!(unit.specifiers("%t"), None);
        assert_eq!(find(&source, "gone.service").unwrap(), Found::Masked);
        assert_eq!(find(&source, "never.service").unwrap(), Found::Missing);
        assert_eq!(
            wanted(source.tree()),
            [
                ("base.service".to_owned(), false),
                ("web@one.service".to_owned(), true)
            ]
        );
    }

    #[test]
    fn quoting() {
        let w = |t| words(t).map(|w| w.join("|"));
        assert_eq!(
            w("/bin/a  -g 'daemon off;' \"x y\""),
            Some("/bin/a|-g|daemon off;|x y".into())
        );
        assert_eq!(w(r"a\x20b \s c\\"), Some("a b| |c\\".into()));
        assert_eq!(w("it's"), Some("it's".into()));
        assert_eq!(w("'open"), None);
        assert_eq!(w(r"\q"), None);
        assert_eq!(w("''"), Some(String::new()));
    }
}
