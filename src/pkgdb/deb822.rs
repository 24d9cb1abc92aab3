//! Stanzas of fields, as in deb822(5): the form of dpkg's and apt's databases.

use crate::error::{Error, Escaped, Result};

/// One stanza. Field names are compared without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza<'a> {
    /// Byte offset of the stanza in its file.
    pub at: u64,
    fields: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Stanza<'a> {
    /// The value of a field as it stands, continuation lines included, trimmed at both ends.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        let mut fields = self.fields.iter();
        fields
            .find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| *value)
    }

    /// The value as one line: each line break and the blanks around it become one space. Bytes that are not UTF-8
    /// become U+FFFD. `None` if missing or empty.
    pub fn text(&self, name: &str) -> Option<String> {
        let lines = self.get(name)?.split(|b| *b == b'\n');
        let mut text = String::new();
        for line in lines.map(<[u8]>::trim_ascii).filter(|l| !l.is_empty()) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&String::from_utf8_lossy(line));
        }
        (!text.is_empty()).then_some(text)
    }

    /// The first line of the value; `None` if missing or empty.
    pub fn first_line(&self, name: &str) -> Option<String> {
        let line = self.get(name)?.split(|b| *b == b'\n').next()?.trim_ascii();
        (!line.is_empty()).then(|| String::from_utf8_lossy(line).into_owned())
    }

    /// The lines of the value that are not empty, trimmed.
    pub fn lines(&self, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let value = self.get(name).unwrap_or_default();
        value
            .split(|b| *b == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|l| !l.is_empty())
    }
}

/// The stanzas of a file. One that breaks the rules is an [`Error::Corrupt`] with its offset, and reading goes on after
/// the next empty line.
pub fn stanzas(bytes: &[u8]) -> impl Iterator<Item = Result<Stanza<'_>>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(at..).filter(|r| !r.is_empty())?;
            let len = stanza_len(rest);
            let start = at;
            at += len;
            let text = rest.get(..len).unwrap_or_default();
            if !text.trim_ascii().is_empty() {
                return Some(parse(text, start as u64));
            }
        }
    })
}

/// Bytes up to and including the empty line that ends the first stanza of `rest`.
fn stanza_len(rest: &[u8]) -> usize {
    let mut len = 0;
    for line in rest.split_inclusive(|b| *b == b'\n') {
        len += line.len();
        if matches!(line, b"\n" | b"\r\n") {
            break;
        }
    }
    len
}

fn parse(text: &[u8], at: u64) -> Result<Stanza<'_>> {
    let mut fields: Vec<(&[u8], &[u8])> = Vec::new();
    let mut offset = 0;
    // Name and bounds of the value of the field that is being read.
    let mut open: Option<(&[u8], usize, usize)> = None;
    let corrupt = |what: String, offset: usize| Err(Error::corrupt(what, at + offset as u64));
    for line in text.split_inclusive(|b| *b == b'\n') {
        let start = offset;
        offset += line.len();
        if line.trim_ascii().is_empty() && !line.starts_with(b" ") && !line.starts_with(b"\t") {
            continue;
        }
        if let Some(nul) = line.iter().position(|b| *b == 0) {
            return corrupt("a NUL byte in a text file".to_owned(), start + nul);
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            match &mut open {
                Some((_, _, end)) => *end = offset,
                None => return corrupt("a continuation line without a field".to_owned(), start),
            }
            continue;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            let shown = line.trim_ascii();
            let shown = Escaped(shown.get(..60).unwrap_or(shown)).to_string();
            return corrupt(format!("a line that is no field: {shown:?}"), start);
        };
        let name = line.get(..colon).unwrap_or_default().trim_ascii_end();
        if name.is_empty() || name.iter().any(|b| !(0x21..0x7f).contains(b)) {
            return corrupt(
                format!("{:?} is not a field name", Escaped(name).to_string()),
                start,
            );
        }
        if let Some((name, from, to)) = open.replace((name, start + colon + 1, offset)) {
            fields.push((name, text.get(from..to).unwrap_or_default().trim_ascii()));
        }
        if fields.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
            return corrupt(
                format!("field {:?} stands twice in one stanza", Escaped(name).to_string()),
                start,
            );
        }
    }
    if let Some((name, from, to)) = open {
        fields.push((name, text.get(from..to).unwrap_or_default().trim_ascii()));
    }
    Ok(Stanza { at, fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_fold_and_case_is_ignored() {
        let text = b"\n\nPackage: a\nDEPENDS: b,\n c\n\td\nEmpty:\n\n\npackage:x\r\n\r\nPackage: last";
        let all: Vec<_> = stanzas(text).map(Result::unwrap).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].text("package").as_deref(), Some("a"));
        assert_eq!(all[0].text("Depends").as_deref(), Some("b, c d"));
        assert_eq!(all[0].text("Empty"), None);
        assert_eq!(all[0].get("Empty"), Some(&b""[..]));
        assert_eq!(all[0].lines("Depends").count(), 3);
        assert_eq!(all[1].get("Package"), Some(&b"x"[..]));
        assert_eq!(all[2].first_line("Package").as_deref(), Some("last"));
        assert_eq!(all[0].at, 2);
    }

    #[test]
    fn damage_is_named_and_ends_with_its_stanza() {
        for bad in [
            "junk\n",
            " continued\n",
            "A: 1\na: 2\n",
            "A: \0\n",
            ": x\n",
            "B b: x\n",
        ] {
            let text = format!("Package: one\n\n{bad}\nPackage: two\n");
            let all: Vec<_> = stanzas(text.as_bytes()).collect();
            assert_eq!(all.len(), 3, "{bad:?}");
            assert!(all[0].is_ok() && all[2].is_ok());
            let Err(Error::Corrupt { at, .. }) = &all[1] else {
                panic!("{bad:?} passed")
            };
            assert!((14..24).contains(at), "{bad:?} at {at}");
        }
    }
}
