//! The lines of the files: words, blocks of `Host` and `Match`, and `Include`.

use super::Values;
use super::tokens::{Place, expand, home};
use crate::error::{Error, Result};
use crate::ssh::pattern::{matches, matches_any};
use crate::ssh::target::Target;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A longer file is none: bytes.
const MAX_FILE: u64 = 4 << 20;
/// Files within files.
const MAX_DEPTH: usize = 16;
/// Files in all.
const MAX_FILES: usize = 1000;

/// Keywords whose first value counts.
const KEYWORDS: [&str; 33] = [
    "addressfamily",
    "batchmode",
    "challengeresponseauthentication",
    "ciphers",
    "compression",
    "connecttimeout",
    "globalknownhostsfile",
    "hashknownhosts",
    "hostkeyalgorithms",
    "hostkeyalias",
    "hostname",
    "identitiesonly",
    "identityagent",
    "kbdinteractiveauthentication",
    "kexalgorithms",
    "macs",
    "numberofpasswordprompts",
    "passwordauthentication",
    "port",
    "preferredauthentications",
    "proxycommand",
    "proxyjump",
    "pubkeyauthentication",
    "serveralivecountmax",
    "serveraliveinterval",
    "stricthostkeychecking",
    "user",
    "userknownhostsfile",
    // Taken together with their older names.
    "dsaauthentication",
    "hostbasedauthentication",
    "skeyauthentication",
    "tag",
    "rhostsrsaauthentication",
];

/// Keywords that do not change how a command is run on the host, or what is asked of whom.
const WITHOUT_EFFECT: [&str; 58] = [
    "addkeystoagent",
    "canonicaldomains",
    "canonicalizefallbacklocal",
    "canonicalizemaxdots",
    "canonicalizepermittedcnames",
    "casignaturealgorithms",
    "channeltimeout",
    "checkhostip",
    "cipher",
    "clearallforwardings",
    "compressionlevel",
    "connectionattempts",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "dynamicforward",
    "enableescapecommandline",
    "enablesshkeysign",
    "escapechar",
    "exitonforwardfailure",
    "fingerprinthash",
    "forkafterauthentication",
    "forwardagent",
    "forwardx11",
    "forwardx11timeout",
    "forwardx11trusted",
    "gatewayports",
    "gssapiauthentication",
    "gssapidelegatecredentials",
    "gssapikeyexchange",
    "hostbasedacceptedalgorithms",
    "ignoreunknown",
    "ipqos",
    "kbdinteractivedevices",
    "localcommand",
    "localforward",
    "loglevel",
    "logverbose",
    "nohostauthenticationforlocalhost",
    "obscurekeystroketiming",
    "permitlocalcommand",
    "permitremoteopen",
    "protocol",
    "proxyusefdpass",
    "rekeylimit",
    "remotecommand",
    "remoteforward",
    "requesttty",
    "requiredrsasize",
    "sendenv",
    "sessiontype",
    "setenv",
    "stdinnull",
    "syslogfacility",
    "tcpkeepalive",
    "updatehostkeys",
    "useroaming",
    "visualhostkey",
];

/// Reads files for one host.
pub(super) struct Reader<'a> {
    target: &'a Target,
    place: &'a Place,
    values: Values,
    /// The pass that `Match final` asks for.
    last_pass: bool,
    wants_last_pass: bool,
    files: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(target: &'a Target, place: &'a Place) -> Self {
        Self {
            target,
            place,
            values: Values::default(),
            last_pass: false,
            wants_last_pass: false,
            files: 0,
        }
    }

    /// True if a line says `Match final`: the files are to be read once more, now that the host is known.
    pub(super) fn wants_second_pass(&self) -> bool {
        self.wants_last_pass
    }

    pub(super) fn second_pass(&mut self) {
        self.last_pass = true;
    }

    pub(super) fn finish(self) -> Values {
        self.values
    }

    /// Reads `path`; `users` if it is the user's own file, `must` if it must exist.
    pub(super) fn read(&mut self, path: &Path, users: bool, must: bool) -> Result<()> {
        self.file(path, users, must, 0)
    }

    fn file(&mut self, path: &Path, users: bool, must: bool, depth: usize) -> Result<()> {
        let failed = |e| Error::io(format!("reading {}", path.display()), e);
        let mut text = Vec::new();
        match std::fs::File::open(path) {
            Ok(file) => {
                file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
            }
            Err(e) if !must && (e.kind() == std::io::ErrorKind::NotFound || depth == 0 && !users) => {
                return Ok(());
            }
            Err(e) => return Err(failed(e)),
        }
        self.files += 1;
        if depth > MAX_DEPTH || self.files > MAX_FILES {
            return Err(Error::usage(format!(
                "{}: too many files include one another",
                path.display()
            )));
        }
        self.text(&String::from_utf8_lossy(&text), path, users, depth)
    }

    /// Reads the lines of one file. Its first lines are for every host.
    pub(super) fn text(&mut self, text: &str, path: &Path, users: bool, depth: usize) -> Result<()> {
        let mut active = true;
        for (number, line) in text.lines().enumerate() {
            let at = || format!("{}:{}", path.display(), number.saturating_add(1));
            let Some((keyword, rest)) = split_keyword(line) else {
                continue;
            };
            let words = words(rest).ok_or_else(|| Error::usage(format!("{}: a quote has no end", at())))?;
            if words.is_empty() {
                return Err(Error::usage(format!("{}: {keyword} has no value", at())));
            }
            match keyword.as_str() {
                "host" => active = matches_any(words.iter().map(String::as_str), &self.target.host),
                "match" => active = self.matched(&words, &at)?,
                "include" if !active => {}
                "include" => {
                    for pattern in &words {
                        for file in self.included(pattern, users) {
                            self.file(&file, users, false, depth.saturating_add(1))?;
                        }
                    }
                }
                _ if !active => {}
                _ => self.value(&keyword, words, rest, &at),
            }
        }
        Ok(())
    }

    fn value(&mut self, keyword: &str, words: Vec<String>, rest: &str, at: &dyn Fn() -> String) {
        let keyword = match keyword {
            "globalknownhostsfile2" | "userknownhostsfile2" | "identityfile2" => {
                return self.remark(format!("{}: {keyword} is an old name and not followed", at()));
            }
            "dsaauthentication" => return,
            "keepalive" => "tcpkeepalive",
            "pubkeyacceptedkeytypes" | "pubkeyacceptedalgorithms" => return,
            "hostbasedkeytypes" => "hostbasedacceptedalgorithms",
            other => other,
        };
        match keyword {
            "identityfile" => {
                if let Some(file) = words.into_iter().next()
                    && !self.values.identities.contains(&file)
                {
                    self.values.identities.push(file);
                }
            }
            "certificatefile" => {
                if let Some(file) = words.into_iter().next()
                    && !self.values.certificates.contains(&file)
                {
                    self.values.certificates.push(file);
                }
            }
            _ if WITHOUT_EFFECT.contains(&keyword) => {}
            _ => match KEYWORDS.iter().find(|k| **k == keyword) {
                Some(known) => {
                    if self.values.all(known).is_none() {
                        // A command is the rest of the line as it stands.
                        let words = match *known {
                            "proxycommand" => vec![rest.trim().to_owned()],
                            _ => words,
                        };
                        self.values.first.push((known, words));
                    }
                }
                None => self.remark(format!("{}: {keyword} is not followed", at())),
            },
        }
    }

    fn remark(&mut self, text: String) {
        if !self.values.remarks.contains(&text) {
            self.values.remarks.push(text);
        }
    }

    /// True if all criteria of a `Match` line are met.
    fn matched(&mut self, words: &[String], at: &dyn Fn() -> String) -> Result<bool> {
        let mut result = true;
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (negated, word) = match word.strip_prefix('!') {
                Some(word) => (true, word),
                None => (false, word.as_str()),
            };
            let (name, glued) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word, None),
            };
            let name = name.to_ascii_lowercase();
            let met = match name.as_str() {
                "all" => true,
                "canonical" | "final" => {
                    self.wants_last_pass |= name == "final";
                    self.last_pass
                }
                _ => {
                    let value = glued.or_else(|| words.next().cloned());
                    let value =
                        value.ok_or_else(|| Error::usage(format!("{}: Match {name} has no value", at())))?;
                    match self.subject(&name) {
                        Some(subject) => matches_any(value.split(',').map(str::trim), &subject),
                        None => {
                            let text =
                                format!("{}: Match {name} is not followed, nor what stands below it", at());
                            self.remark(text);
                            result = false;
                            continue;
                        }
                    }
                }
            };
            result &= met != negated;
        }
        Ok(result)
    }

    /// What a criterion of `Match` is compared with.
    fn subject(&self, criterion: &str) -> Option<String> {
        let so_far = |keyword: &str| self.values.one(keyword).map(str::to_owned);
        match criterion {
            "host" => {
                let tokens = [('h', self.target.host.clone())];
                let name = so_far("hostname").and_then(|name| expand(&name, &tokens));
                Some(name.unwrap_or_else(|| self.target.host.clone()))
            }
            "originalhost" => Some(self.target.host.clone()),
            "user" => {
                let user = self.target.user.clone().or_else(|| so_far("user"));
                Some(user.unwrap_or_else(|| self.place.user.clone()))
            }
            "localuser" => Some(self.place.user.clone()),
            "tagged" => Some(so_far("tag").unwrap_or_default()),
            _ => None,
        }
    }

    /// The files of an `Include`, in order. A relative name is below `~/.ssh` or `/etc/ssh`.
    fn included(&self, pattern: &str, users: bool) -> Vec<PathBuf> {
        let path = home(pattern, self.place);
        let path = match (path.is_absolute(), users) {
            (true, _) => path,
            (false, true) => self.place.home.join(".ssh").join(path),
            (false, false) => Path::new("/etc/ssh").join(path),
        };
        let mut found = vec![PathBuf::from("/")];
        for part in path.components().skip(1) {
            let part = part.as_os_str().to_string_lossy().into_owned();
            if !part.contains(['*', '?']) {
                for dir in &mut found {
                    dir.push(&part);
                }
                continue;
            }
            let mut next = Vec::new();
            for dir in &found {
                let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
                let mut names: Vec<_> = names.map(|entry| entry.file_name()).collect();
                names.sort();
                names.retain(|name| {
                    let name = name.as_encoded_bytes();
                    (part.starts_with('.') || !name.starts_with(b".")) && matches(part.as_bytes(), name)
                });
                next.extend(names.iter().take(MAX_FILES).map(|name| dir.join(name)));
            }
            found = next;
        }
        found.retain(|file| file.is_file());
        found
    }
}

/// The keyword of a line in lower case, and what stands behind it; `None` for an empty line or a comment.
fn split_keyword(line: &str) -> Option<(String, &str)> {
    let line = line.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    // The keyword itself may stand in quotes.
    let (keyword, rest) = match line.strip_prefix('"').and_then(|l| l.split_once('"')) {
        Some(parts) => parts,
        None => {
            let end = line
                .find(|c: char| c.is_ascii_whitespace() || c == '=')
                .unwrap_or(line.len());
            line.split_at_checked(end)?
        }
    };
    // Whitespace and at most one `=` stand between the two.
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    Some((keyword.to_ascii_lowercase(), rest))
}

/// The words of a value: quotes of both kinds, backslashes before quotes, backslashes and spaces, a comment at the end.
/// `None` if a quote is open at the end.
fn words(text: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        match chars.peek() {
            None => return Some(out),
            Some('#') => return Some(out),
            Some(_) => {}
        }
        let mut word = String::new();
        let mut quote: Option<char> = None;
        while let Some(c) = chars.next() {
            match (c, quote) {
                ('\\', _) => match chars.peek().copied() {
                    Some(next @ ('\'' | '"' | '\\')) => {
                        chars.next();
                        word.push(next);
                    }
                    Some(' ') if quote.is_none() => {
                        chars.next();
                        word.push(' ');
                    }
                    _ => word.push('\\'),
                },
                (c, None) if c.is_ascii_whitespace() => break,
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(open)) if c == open => quote = None,
                (c, _) => word.push(c),
            }
        }
        if quote.is_some() {
            return None;
        }
        out.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_and_words() {
        let split = |line| split_keyword(line).map(|(k, r)| (k, words(r).unwrap()));
        let of = |k: &str, w: &[&str]| {
            Some((
                k.to_owned(),
                w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>(),
            ))
        };
        assert_eq!(split("  Port 22"), of("port", &["22"]));
        assert_eq!(split("Port=22"), of("port", &["22"]));
        assert_eq!(split("Port\t = 22 # the usual one"), of("port", &["22"]));
        assert_eq!(
            split("IdentityFile \"/a b/c\" d"),
            of("identityfile", &["/a b/c", "d"])
        );
        assert_eq!(split("Host a\\ b 'c d'e"), of("host", &["a b", "c de"]));
        assert_eq!(split("User a#b"), of("user", &["a#b"]));
        assert_eq!(split("# Host x"), None);
        assert_eq!(words("\"open"), None);
    }
}
