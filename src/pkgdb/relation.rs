//! What one relation of a package says, in the grammar of its family.
//!
//! The texts come from the machine: nesting is bounded, and what breaks the grammar is an error that names the text.

use super::order::Op;
use crate::error::{Error, Escaped, Result};

/// The grammar of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// deb-control(5), "Depends": `a (>= 1) | b:any [amd64] <!nocheck>`.
    Dpkg,
    /// rpm's "Dependencies" and "Boolean dependencies": `a >= 1`, `/bin/sh`, `(a if b else c)`, `libc.so.6(GLIBC_2.4)(64bit)`.
    Rpm,
    /// apk-world(5): `a>1`, `!a`, `so:libz.so.1`, `/bin/sh`.
    Apk,
    /// PKGBUILD(5): `a>=1`.
    Alpm,
}

/// What must be installed for a relation to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// A package, or something that a package provides, or the path of a file.
    Name(Name<'a>),
    /// None of these may be installed.
    Not(Name<'a>),
    /// One of these; the first is the one that a package manager takes.
    Any(Vec<Self>),
    /// All of these.
    All(Vec<Self>),
    /// The first, where the second holds; else the third, if there is one.
    If(Box<Self>, Box<Self>, Option<Box<Self>>),
    /// The first, unless the second holds; then the third, if there is one.
    Unless(Box<Self>, Box<Self>, Option<Box<Self>>),
    /// One package that is both.
    With(Box<Self>, Box<Self>),
    /// A package that is the first and not the second.
    Without(Box<Self>, Box<Self>),
}

/// A name with what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name<'a> {
    /// The name, the capability, or an absolute path.
    pub name: &'a str,
    /// What follows the colon in dpkg's grammar: `any`, `native` or an architecture.
    pub arch: Option<&'a str>,
    /// The wanted version.
    pub version: Option<(Op, &'a str)>,
}

impl<'a> Name<'a> {
    fn plain(name: &'a str) -> Self {
        Self {
            name,
            arch: None,
            version: None,
        }
    }
    /// True if this is the path of a file.
    pub fn is_path(&self) -> bool {
        self.name.starts_with('/')
    }
}

impl Requirement<'_> {
    /// Every name in it, also those of conditions.
    pub fn names(&self) -> Vec<&Name<'_>> {
        let mut found = Vec::new();
        let mut todo = vec![self];
        while let Some(next) = todo.pop() {
            match next {
                Self::Name(name) | Self::Not(name) => found.push(name),
                Self::Any(all) | Self::All(all) => todo.extend(all.iter().rev()),
                Self::With(a, b) | Self::Without(a, b) => todo.extend([&**b, &**a]),
                Self::If(a, b, c) | Self::Unless(a, b, c) => {
                    todo.extend(c.as_deref());
                    todo.extend([&**b, &**a]);
                }
            }
        }
        found
    }
}

/// The longest relation that is parsed, in bytes.
const MAX_LEN: usize = 1 << 20;
/// How deep parentheses may lie in each other.
const MAX_DEPTH: u32 = 32;

impl Grammar {
    /// Parses one relation. An empty one is an `All` of nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the offset in `text` where it breaks the grammar.
    pub fn parse(self, text: &str) -> Result<Requirement<'_>> {
        if text.len() > MAX_LEN {
            return Err(Error::corrupt("a relation of more than 1 MiB", MAX_LEN as u64));
        }
        let text = text.trim_ascii();
        if text.is_empty() {
            return Ok(Requirement::All(Vec::new()));
        }
        match self {
            Self::Dpkg => dpkg(text),
            Self::Rpm => Rich { text, at: 0 }.whole(),
            Self::Apk => match text.strip_prefix('!') {
                Some(name) => Ok(Requirement::Not(signed(name, true)?)),
                None => Ok(Requirement::Name(signed(text, true)?)),
            },
            Self::Alpm => {
                // An optional dependency has its reason behind a colon.
                let text = text.split_once(": ").map_or(text, |(name, _)| name);
                Ok(Requirement::Name(signed(text, false)?))
            }
        }
    }

    /// Parses what a package provides.
    ///
    /// # Errors
    /// As [`Grammar::parse`], and if it is more than a name.
    pub fn parse_provided(self, text: &str) -> Result<Name<'_>> {
        if self == Self::Rpm {
            // A capability may begin with a parenthesis only in a requirement.
            return Rich { text, at: 0 }.provided();
        }
        match self.parse(text)? {
            Requirement::Name(name) => Ok(name),
            _ => Err(bad(text, 0, "more than one name is provided")),
        }
    }
}

fn bad(text: &str, at: usize, what: &str) -> Error {
    let shown: String = text.chars().take(80).collect();
    Error::corrupt(
        format!("relation {:?}: {what}", Escaped(shown.as_bytes()).to_string()),
        at as u64,
    )
}

/// Alternatives between `|`.
fn dpkg(text: &str) -> Result<Requirement<'_>> {
    let mut all = Vec::new();
    for part in text.split('|') {
        all.push(Requirement::Name(dpkg_name(part.trim_ascii(), text)?));
    }
    Ok(match all.pop() {
        Some(one) if all.is_empty() => one,
        last => {
            all.extend(last);
            Requirement::Any(all)
        }
    })
}

/// `name:arch (op version) [archs] <profiles>`; the last two are of source packages and only skipped.
fn dpkg_name<'a>(part: &'a str, whole: &str) -> Result<Name<'a>> {
    let end = part
        .find(|c: char| c.is_ascii_whitespace() || "([<".contains(c))
        .unwrap_or(part.len());
    let (word, mut rest) = part.split_at_checked(end).unwrap_or((part, ""));
    let (name, arch) = match word.split_once(':') {
        Some((name, arch)) => (name, Some(arch)),
        None => (word, None),
    };
    if name.is_empty() || arch == Some("") {
        return Err(bad(whole, 0, "an alternative without a name"));
    }
    let mut found = Name {
        name,
        arch,
        version: None,
    };
    loop {
        rest = rest.trim_ascii_start();
        let close = match rest.bytes().next() {
            None => return Ok(found),
            Some(b'(') => ')',
            Some(b'[') => ']',
            Some(b'<') => '>',
            Some(_) => return Err(bad(whole, 0, "words after a name")),
        };
        let inner = rest.get(1..).unwrap_or_default();
        let (inner, after) = inner
            .split_once(close)
            .ok_or_else(|| bad(whole, 0, "a bracket is not closed"))?;
        if close == ')' {
            if found.version.is_some() {
                return Err(bad(whole, 0, "two versions for one name"));
            }
            let inner = inner.trim_ascii();
            let digits = inner.find(|c| !"<>=".contains(c)).unwrap_or(inner.len());
            let (sign, version) = inner.split_at_checked(digits).unwrap_or((inner, ""));
            let op = match sign {
                // The single signs are of old, and mean "or equal" (deb-control(5)).
                "<<" => Op::Less,
                "<=" | "<" => Op::LessEqual,
                "=" | "" => Op::Equal,
                ">=" | ">" => Op::GreaterEqual,
                ">>" => Op::Greater,
                _ => return Err(bad(whole, 0, "a sign that compares nothing")),
            };
            let version = version.trim_ascii();
            if version.is_empty() || version.contains(|c: char| c.is_ascii_whitespace()) {
                return Err(bad(whole, 0, "no version in the parentheses"));
            }
            found.version = Some((op, version));
        }
        rest = after;
    }
}

/// `name`, sign and version without blanks: the grammars of apk and alpm. `fuzzy` says whether `~` is a sign.
fn signed(text: &str, fuzzy: bool) -> Result<Name<'_>> {
    let signs = if fuzzy { "<>=~" } else { "<>=" };
    let is_sign = |c: char| signs.contains(c);
    let Some(at) = text.find(is_sign) else {
        if text.is_empty() || text.contains(|c: char| c.is_ascii_whitespace()) {
            return Err(bad(text, 0, "not a name"));
        }
        // apk: `name@tag` names a repository.
        let name = match fuzzy {
            true => text.split_once('@').map_or(text, |(name, _)| name),
            false => text,
        };
        return Ok(Name::plain(name));
    };
    let (name, rest) = text.split_at_checked(at).unwrap_or((text, ""));
    let end = rest.find(|c| !is_sign(c)).unwrap_or(rest.len());
    let (sign, version) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let op = match sign {
        "<" => Op::Less,
        "<=" => Op::LessEqual,
        "=" | "==" => Op::Equal,
        ">=" => Op::GreaterEqual,
        ">" => Op::Greater,
        "~" | "=~" | "~=" => Op::Fuzzy,
        ">~" | ">=~" => Op::GreaterFuzzy,
        "<~" | "<=~" => Op::LessFuzzy,
        // apk's checksum dependency: a version that was never built; nothing newer or older counts.
        "><" => Op::Equal,
        _ => return Err(bad(text, at, "a sign that compares nothing")),
    };
    let name = name.trim_ascii_end();
    let version = version.trim_ascii();
    let blank = |s: &str| s.is_empty() || s.contains(|c: char| c.is_ascii_whitespace());
    if blank(name) || blank(version) {
        return Err(bad(text, at, "a name and a version belong to a sign"));
    }
    let name = match fuzzy {
        true => name.split_once('@').map_or(name, |(name, _)| name),
        false => name,
    };
    Ok(Name {
        name,
        arch: None,
        version: Some((op, version)),
    })
}

/// Reads rpm's relations: `name`, `name op version`, and expressions in parentheses.
struct Rich<'a> {
    text: &'a str,
    at: usize,
}

/// The words between the parts of a rich dependency.
const WORDS: &[&str] = &["and", "or", "if", "else", "unless", "with", "without"];

impl<'a> Rich<'a> {
    fn whole(mut self) -> Result<Requirement<'a>> {
        let found = self.part(0)?;
        self.blanks();
        match self.rest() {
            "" => Ok(found),
            _ => Err(self.bad("words after its end")),
        }
    }

    fn provided(mut self) -> Result<Name<'a>> {
        self.blanks();
        let found = self.name()?;
        self.blanks();
        match self.rest() {
            "" => Ok(found),
            _ => Err(self.bad("words after its end")),
        }
    }

    fn bad(&self, what: &str) -> Error {
        bad(self.text, self.at, what)
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_ascii_start().len();
    }

    /// The next word: up to a blank, or to a parenthesis that the word did not open.
    fn word(&mut self) -> &'a str {
        self.blanks();
        let rest = self.rest();
        let mut open = 0_u32;
        let mut end = rest.len();
        for (at, c) in rest.char_indices() {
            match c {
                '(' => open = open.saturating_add(1),
                ')' if open == 0 => {
                    end = at;
                    break;
                }
                ')' => open -= 1,
                // A capability may hold blanks inside its own parentheses.
                c if c.is_ascii_whitespace() && open == 0 => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// The next word without taking it.
    fn peek(&mut self) -> &'a str {
        let at = self.at;
        let word = self.word();
        self.at = at;
        word
    }

    fn name(&mut self) -> Result<Name<'a>> {
        let name = self.word();
        if name.is_empty() {
            return Err(self.bad("a name is missing"));
        }
        let mut found = Name::plain(name);
        if let Some(op) = sign(self.peek()) {
            self.word();
            let version = self.word();
            if version.is_empty() {
                return Err(self.bad("a version is missing"));
            }
            found.version = Some((op, version));
        }
        Ok(found)
    }

    /// A name, or an expression in parentheses.
    fn part(&mut self, depth: u32) -> Result<Requirement<'a>> {
        if depth > MAX_DEPTH {
            return Err(self.bad("parentheses lie too deep in each other"));
        }
        self.blanks();
        if !self.rest().starts_with('(') {
            return Ok(Requirement::Name(self.name()?));
        }
        self.at += 1;
        let found = self.expression(depth)?;
        self.blanks();
        if !self.rest().starts_with(')') {
            return Err(self.bad("a parenthesis is not closed"));
        }
        self.at += 1;
        Ok(found)
    }

    /// Parts with one kind of word between them; `if` and `unless` take one `else`.
    fn expression(&mut self, depth: u32) -> Result<Requirement<'a>> {
        let first = self.part(depth + 1)?;
        let word = self.peek();
        if !WORDS.contains(&word) {
            return Ok(first);
        }
        self.word();
        let second = self.part(depth + 1)?;
        match word {
            "and" | "or" => {
                let mut all = vec![first, second];
                while self.peek() == word {
                    self.word();
                    all.push(self.part(depth + 1)?);
                }
                Ok(match word {
                    "and" => Requirement::All(all),
                    _ => Requirement::Any(all),
                })
            }
            "if" | "unless" => {
                let other = match self.peek() {
                    "else" => {
                        self.word();
                        Some(Box::new(self.part(depth + 1)?))
                    }
                    _ => None,
                };
                let (first, second) = (Box::new(first), Box::new(second));
                Ok(match word {
                    "if" => Requirement::If(first, second, other),
                    _ => Requirement::Unless(first, second, other),
                })
            }
            "with" | "without" => {
                let mut found = first;
                let mut next = second;
                loop {
                    found = match word {
                        "with" => Requirement::With(Box::new(found), Box::new(next)),
                        _ => Requirement::Without(Box::new(found), Box::new(next)),
                    };
                    if self.peek() != word {
                        return Ok(found);
                    }
                    self.word();
                    next = self.part(depth + 1)?;
                }
            }
            _ => Err(self.bad("else without a condition")),
        }
    }
}

fn sign(word: &str) -> Option<Op> {
    Some(match word {
        "<" => Op::Less,
        "<=" | "=<" => Op::LessEqual,
        "=" | "==" => Op::Equal,
        ">=" | "=>" => Op::GreaterEqual,
        ">" => Op::Greater,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line for a requirement: `(a | b >= 1)`.
    fn show(requirement: &Requirement<'_>) -> String {
        let name = |n: &Name<'_>| {
            let arch = n.arch.map_or(String::new(), |a| format!(":{a}"));
            let version = n
                .version
                .map_or(String::new(), |(op, v)| format!(" {} {v}", op.sign()));
            format!("{}{arch}{version}", n.name)
        };
        let join = |all: &[Requirement<'_>], by: &str| {
            let all: Vec<String> = all.iter().map(show).collect();
            format!("({})", all.join(by))
        };
        let other = |o: &Option<Box<Requirement<'_>>>| {
            o.as_ref().map_or(String::new(), |o| format!(" : {}", show(o)))
        };
        match requirement {
            Requirement::Name(n) => name(n),
            Requirement::Not(n) => format!("!{}", name(n)),
            Requirement::Any(all) => join(all, " | "),
            Requirement::All(all) => join(all, " & "),
            Requirement::If(a, b, c) => format!("({} ? {}{})", show(b), show(a), other(c)),
            Requirement::Unless(a, b, c) => format!("(not {} ? {}{})", show(b), show(a), other(c)),
            Requirement::With(a, b) => format!("({} with {})", show(a), show(b)),
            Requirement::Without(a, b) => format!("({} without {})", show(a), show(b)),
        }
    }

    fn all(grammar: Grammar, rows: &[(&str, &str)]) {
        for (text, wanted) in rows {
            let found = grammar
                .parse(text)
                .map_or_else(|e| format!("error: {e}"), |r| show(&r));
            if wanted.is_empty() {
                assert!(found.starts_with("error: relation"), "{text}: {found}");
            } else {
                assert_eq!(&found, wanted, "{text}");
            }
        }
    }

    #[test]
    fn relations_of_dpkg() {
        all(
            Grammar::Dpkg,
            &[
                ("libc6", "libc6"),
                (
                    "libc6 (>= 2.34) | libc:any(<<3)",
                    "(libc6 >= 2.34 | libc:any < 3)",
                ),
                ("python3:any (>= 3.9~)", "python3:any >= 3.9~"),
                ("a (= 1:2.3-4) [amd64 !i386] <!nocheck> <x>", "a = 1:2.3-4"),
                ("a (> 1)", "a >= 1"),
                ("a (< 1)", "a <= 1"),
                ("a (1)", "a = 1"),
                ("", "()"),
                ("a |", ""),
                ("a (>= )", ""),
                ("a (>= 1", ""),
                ("a (>< 1)", ""),
                ("a b", ""),
                (":any", ""),
                ("a (= 1) (= 2)", ""),
            ],
        );
    }

    #[test]
    fn relations_of_rpm() {
        all(
            Grammar::Rpm,
            &[
                ("glibc", "glibc"),
                ("glibc >= 2.34-5.el9", "glibc >= 2.34-5.el9"),
                ("glibc(x86-64) = 0:2.34", "glibc(x86-64) = 0:2.34"),
                ("libc.so.6(GLIBC_2.4)(64bit)", "libc.so.6(GLIBC_2.4)(64bit)"),
                ("libc.so.6()(64bit)", "libc.so.6()(64bit)"),
                (
                    "rpmlib(CompressedFileNames) <= 3.0.4-1",
                    "rpmlib(CompressedFileNames) <= 3.0.4-1",
                ),
                ("/bin/sh", "/bin/sh"),
                ("perl(:MODULE_COMPAT_5.32.1)", "perl(:MODULE_COMPAT_5.32.1)"),
                ("(a if b else c)", "(b ? a : c)"),
                ("(a >= 1 if (b or c = 2))", "((b | c = 2) ? a >= 1)"),
                ("(a or b or c)", "(a | b | c)"),
                ("(a and b(x) and (c unless d))", "(a & b(x) & (not d ? c))"),
                ("(a with b < 2)", "(a with b < 2)"),
                ("(a without b)", "(a without b)"),
                ("((a))", "a"),
                (
                    "(python3.9dist(x) >= 1 with python3.9dist(x) < 2)",
                    "(python3.9dist(x) >= 1 with python3.9dist(x) < 2)",
                ),
                ("(a or b and c)", ""),
                ("(a if b", ""),
                ("(a else b)", ""),
                ("a >=", ""),
                ("a b", ""),
                ("()", ""),
            ],
        );
        let deep = "(".repeat(100_000) + "a" + &")".repeat(100_000);
        assert!(Grammar::Rpm.parse(&deep).is_err());
        let provided = Grammar::Rpm.parse_provided("config(a b) = 1-2").unwrap();
        assert_eq!(
            (provided.name, provided.version),
            ("config(a b)", Some((Op::Equal, "1-2")))
        );
    }

    #[test]
    fn relations_of_apk_and_alpm() {
        all(
            Grammar::Apk,
            &[
                ("so:libc.musl-x86_64.so.1", "so:libc.musl-x86_64.so.1"),
                ("so:libz.so.1=1.2.3", "so:libz.so.1 = 1.2.3"),
                ("cmd:sh", "cmd:sh"),
                ("pc:zlib>=1.2", "pc:zlib >= 1.2"),
                ("!uclibc-utils", "!uclibc-utils"),
                ("!a<2", "!a < 2"),
                ("a~1.2", "a ~ 1.2"),
                ("a>~1.2", "a >~ 1.2"),
                ("a=~1.2", "a ~ 1.2"),
                ("/bin/sh", "/bin/sh"),
                ("a@edge", "a"),
                ("a><Q1abc=", "a = Q1abc="),
                ("a=", ""),
                ("=1", ""),
                ("a b", ""),
                ("!", ""),
            ],
        );
        all(
            Grammar::Alpm,
            &[
                ("glibc", "glibc"),
                ("glibc>=2.38", "glibc >= 2.38"),
                ("libfoo.so=1-64", "libfoo.so = 1-64"),
                ("a~b", "a~b"),
                ("python: for the scripts", "python"),
                ("a>=", ""),
                ("a=<=1", ""),
            ],
        );
    }
}
