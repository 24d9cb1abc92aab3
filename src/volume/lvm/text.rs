//! The text of LVM2's metadata: sections of keys with numbers, strings and lists (lvm.conf(5); libdm/libdm-config.c).

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Sections inside sections; LVM2 itself has four levels.
const MAX_DEPTH: u32 = 16;

/// What stands behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A whole number.
    Number(i64),
    /// A string, or a word that is no number.
    Text(String),
    /// `[...]`
    List(Vec<Value>),
    /// `{...}`
    Section(Section),
}

/// Names and what stands behind them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section(BTreeMap<String, Value>);

impl Section {
    pub(super) fn section(&self, name: &str) -> Option<&Self> {
        match self.0.get(name)? {
            Value::Section(section) => Some(section),
            _ => None,
        }
    }

    /// All sections, by name.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Value::Number(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A list; one value alone is a list too.
    pub(super) fn list(&self, name: &str) -> &[Value] {
        match self.0.get(name) {
            Some(Value::List(list)) => list,
            Some(value) => std::slice::from_ref(value),
            None => &[],
        }
    }

    /// True if the list `name` holds the string `word`.
    pub(super) fn has(&self, name: &str, word: &str) -> bool {
        self.list(name)
            .iter()
            .any(|v| matches!(v, Value::Text(t) if t == word))
    }
}

/// Parses the whole text.
///
/// # Errors
/// [`Error::Corrupt`] with the place of what is no metadata.
pub(super) fn parse(text: &[u8]) -> Result<Section> {
    let mut parser = Parser { text, at: 0 };
    let section = parser.section(0)?;
    Ok(section)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn corrupt<T>(&self, what: &str) -> Result<T> {
        Err(Error::corrupt(
            format!("the LVM2 metadata: {what}"),
            self.at as u64,
        ))
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied().filter(|b| *b != 0)
    }

    /// Passes over white space and comments, and shows what follows.
    fn next(&mut self) -> Option<u8> {
        while let Some(byte) = self.peek() {
            match byte {
                b'#' => {
                    while self.peek().is_some_and(|b| b != b'\n') {
                        self.at += 1;
                    }
                }
                b if b.is_ascii_whitespace() => self.at += 1,
                _ => return Some(byte),
            }
        }
        None
    }

    /// Names and values up to `}` or, at depth 0, to the end.
    fn section(&mut self, depth: u32) -> Result<Section> {
        if depth > MAX_DEPTH {
            return self.corrupt("too many sections inside each other");
        }
        let mut section = BTreeMap::new();
        loop {
            match (self.next(), depth) {
                (None, 0) => break,
                (Some(b'}'), 1..) => {
                    self.at += 1;
                    break;
                }
                (None, _) => return self.corrupt("a section does not end"),
                (Some(b'"'), _) => {
                    let name = self.string()?;
                    self.entry(name, &mut section, depth)?;
                }
                (Some(_), _) => {
                    let name = self.word();
                    if name.is_empty() {
                        return self.corrupt("a name is missing");
                    }
                    self.entry(name, &mut section, depth)?;
                }
            }
        }
        Ok(Section(section))
    }

    fn entry(&mut self, name: String, section: &mut BTreeMap<String, Value>, depth: u32) -> Result<()> {
        let value = match self.next() {
            Some(b'{') => {
                self.at += 1;
                Value::Section(self.section(depth + 1)?)
            }
            Some(b'=') => {
                self.at += 1;
                self.value()?
            }
            _ => return self.corrupt("neither = nor { follows a name"),
        };
        section.insert(name, value);
        Ok(())
    }

    fn value(&mut self) -> Result<Value> {
        if self.next() != Some(b'[') {
            return self.single();
        }
        self.at += 1;
        let mut list = Vec::new();
        loop {
            match self.next() {
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::List(list));
                }
                Some(b',') => self.at += 1,
                Some(_) => list.push(self.single()?),
                None => return self.corrupt("a list does not end"),
            }
        }
    }

    fn single(&mut self) -> Result<Value> {
        if self.next() == Some(b'"') {
            return self.string().map(Value::Text);
        }
        let word = self.word();
        if word.is_empty() {
            return self.corrupt("a value is missing");
        }
        Ok(word.parse().map_or(Value::Text(word), Value::Number))
    }

    fn word(&mut self) -> String {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let ends = |b: &u8| b.is_ascii_whitespace() || b"={}[],#\"\0".contains(b);
        let len = rest.iter().position(ends).unwrap_or(rest.len());
        self.at += len;
        String::from_utf8_lossy(rest.get(..len).unwrap_or_default()).into_owned()
    }

    /// A string in quotes; a backslash takes the next byte as it is.
    fn string(&mut self) -> Result<String> {
        self.at += 1;
        let mut bytes = Vec::new();
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                b'\\' => {
                    bytes.extend(self.peek());
                    self.at += 1;
                }
                _ => bytes.push(byte),
            }
        }
        self.corrupt("a string does not end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let text = br#"
vg { # a comment = {
  id = "a\"b\\"
  seqno = 3
  negative=-1
  flags = []
  stripes = [
    "pv0", 0,
    "pv1", 10
  ]
  float = 0.5
  one = "x"
  inner { deep { n = 1 } }
}
contents = "Text Format Volume Group"
"#;
        let top = parse(text).unwrap();
        let vg = top.section("vg").unwrap();
        assert_eq!(vg.text("id"), Some("a\"b\\"));
        assert_eq!((vg.number("seqno"), vg.number("negative")), (Some(3), None));
        assert_eq!(vg.list("flags"), []);
        assert_eq!(vg.list("stripes").len(), 4);
        assert!(vg.has("stripes", "pv1") && vg.has("one", "x") && !vg.has("flags", "x"));
        assert_eq!(vg.text("float"), Some("0.5"));
        let deep = vg.section("inner").and_then(|s| s.section("deep"));
        assert_eq!(deep.and_then(|s| s.number("n")), Some(1));
        assert_eq!(top.sections().count(), 1);
    }

    #[test]
    fn what_is_no_metadata_is_refused() {
        let deep = "a{".repeat(100_000);
        for text in [
            "a", "a=", "a {", "a = [1", "a = \"x", "= 1", "}", "a = \"\\", "[", "a={}", &deep,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["", "# x", "a=1\0b", "a{}", "a=[]"] {
            assert!(parse(text.as_bytes()).is_ok(), "{text}");
        }
    }
}
