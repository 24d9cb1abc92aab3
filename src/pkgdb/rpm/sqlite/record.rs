//! Records and their values, and the columns of a table ("Record Format", "Representation Of SQL Tables").

use crate::bytes::slice;

/// A value of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// No value.
    Null,
    /// A whole number.
    Integer(i64),
    /// Another number.
    Real(f64),
    /// Text in the encoding of the database.
    Text(&'a [u8]),
    /// Bytes.
    Blob(&'a [u8]),
}

/// A row of a table.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    types: &'a [u8],
    values: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record in these bytes; `None` if its own header does not fit.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (len, _) = varint(payload)?;
        let len = usize::try_from(len).ok()?;
        let skip = varint_len(payload)?;
        Some(Self {
            types: payload.get(skip..len)?,
            values: payload.get(len..)?,
        })
    }

    /// The value of column `n`; `None` if the record is shorter or damaged.
    pub fn get(&self, n: usize) -> Option<Value<'a>> {
        let mut types = self.types;
        let mut at = 0usize;
        for column in 0..=n {
            let (kind, rest) = varint(types)?;
            types = rest;
            let len = match kind {
                0 | 8 | 9 => 0,
                1..=4 => usize::try_from(kind).ok()?,
                5 => 6,
                6 | 7 => 8,
                12.. => usize::try_from((kind - 12) / 2).ok()?,
                _ => return None,
            };
            if column == n {
                let value = slice(self.values, at, len)?;
                return Some(match kind {
                    0 => Value::Null,
                    8 => Value::Integer(0),
                    9 => Value::Integer(1),
                    7 => Value::Real(f64::from_be_bytes(value.try_into().ok()?)),
                    1..=6 => Value::Integer(integer(value)),
                    _ if kind % 2 == 0 => Value::Blob(value),
                    _ => Value::Text(value),
                });
            }
            at = at.checked_add(len)?;
        }
        None
    }
}

/// A big-endian number of 1 to 8 bytes, with sign.
fn integer(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|b| *b >= 0x80);
    let start = if negative { -1i64 } else { 0 };
    bytes.iter().fold(start, |n, b| n << 8 | i64::from(*b))
}

/// A number of 1 to 9 bytes with seven bits in each but the ninth, and what follows it.
pub(super) fn varint(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut value = 0u64;
    for (n, byte) in bytes.iter().take(9).enumerate() {
        if n == 8 {
            value = value << 8 | u64::from(*byte);
        } else {
            value = value << 7 | u64::from(byte & 0x7f);
            if byte & 0x80 != 0 {
                continue;
            }
        }
        return Some((value.cast_signed(), bytes.get(n + 1..)?));
    }
    None
}

fn varint_len(bytes: &[u8]) -> Option<usize> {
    let (_, rest) = varint(bytes)?;
    Some(bytes.len() - rest.len())
}

/// The names of the columns of a `CREATE TABLE`, and which of them is the id of the row.
pub(super) fn columns(sql: &str) -> (Vec<String>, Option<usize>) {
    let sql = without_comments(sql);
    let body = sql.split_once('(').map_or("", |(_, body)| body);
    let mut names = Vec::new();
    let mut id = None;
    for part in top_level(body) {
        let part = part.trim();
        let (name, rest) = name(part);
        let keyword = part
            .split(|c: char| !c.is_ascii_alphabetic())
            .next()
            .unwrap_or_default();
        let constraint = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"];
        if name.is_empty() {
            continue;
        }
        if !part.starts_with(['"', '\'', '`', '['])
            && constraint.iter().any(|c| keyword.eq_ignore_ascii_case(c))
        {
            // `PRIMARY KEY ("id")` behind the columns.
            if keyword.eq_ignore_ascii_case("PRIMARY") {
                let key = part.split_once('(').map(|(_, k)| self::name(k.trim()).0);
                id = key.and_then(|k| names.iter().position(|n: &String| n.eq_ignore_ascii_case(&k)));
            }
            continue;
        }
        let words: Vec<String> = rest.split_whitespace().map(str::to_ascii_uppercase).collect();
        let primary = words.windows(2).any(|w| w == ["PRIMARY", "KEY"]);
        if words.first().is_some_and(|w| w == "INTEGER") && primary {
            id = Some(names.len());
        }
        names.push(name);
    }
    (names, id)
}

/// A name at the start of `text`, unquoted, and what follows it.
fn name(text: &str) -> (String, &str) {
    let close = match text.chars().next() {
        Some('[') => ']',
        Some(quote @ ('"' | '\'' | '`')) => quote,
        _ => {
            let end = text.find(|c: char| c.is_whitespace() || "(),".contains(c));
            let (name, rest) = text.split_at(end.unwrap_or(text.len()));
            return (name.to_owned(), rest);
        }
    };
    let inner = text.get(1..).unwrap_or_default();
    let (name, rest) = inner.split_once(close).unwrap_or((inner, ""));
    (name.to_owned(), rest)
}

/// The parts between the commas that stand in no further parentheses, up to the one that closes.
fn top_level(body: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0u32, 0);
    let mut quote = None;
    for (at, c) in body.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '(') => depth = depth.saturating_add(1),
            (None, ')') if depth == 0 => {
                parts.push(body.get(start..at).unwrap_or_default());
                return parts;
            }
            (None, ')') => depth -= 1,
            (None, ',') if depth == 0 => {
                parts.push(body.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(body.get(start..).unwrap_or_default());
    parts
}

fn without_comments(sql: &str) -> String {
    let mut out = String::new();
    let mut rest = sql;
    loop {
        let block = rest.find("/*");
        let line = rest.find("--");
        let (at, end, keep) = match (block, line) {
            (Some(b), l) if l.is_none_or(|l| b < l) => (b, "*/", 2),
            (_, Some(l)) => (l, "\n", 0),
            _ => break,
        };
        out.push_str(rest.get(..at).unwrap_or_default());
        out.push(' ');
        let after = rest.get(at + 2..).unwrap_or_default();
        rest = after
            .find(end)
            .and_then(|e| after.get(e + keep..))
            .unwrap_or_default();
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_lengths() {
        assert_eq!(varint(&[0x7f, 9]), Some((127, &[9][..])));
        assert_eq!(varint(&[0x81, 0]), Some((128, &[][..])));
        assert_eq!(varint(&[0xff; 9]), Some((-1, &[][..])));
        assert_eq!(varint(&[0xff; 8]), None);
        assert_eq!(varint(&[]), None);
        assert_eq!(integer(&[0xff, 0xfe]), -2);
        assert_eq!(integer(&[0x7f]), 127);
        assert_eq!(integer(&i64::MIN.to_be_bytes()), i64::MIN);
    }

    #[test]
    fn values_of_a_record() {
        let record = Record::parse(&[7, 0, 1, 8, 9, 15, 16, 0xfe, b'x', 1, 2]).unwrap();
        assert_eq!(record.get(0), Some(Value::Null));
        assert_eq!(record.get(1), Some(Value::Integer(-2)));
        assert_eq!(record.get(2), Some(Value::Integer(0)));
        assert_eq!(record.get(3), Some(Value::Integer(1)));
        assert_eq!(record.get(4), Some(Value::Text(b"x")));
        assert_eq!(record.get(5), Some(Value::Blob(&[1, 2])));
        assert_eq!(record.get(6), None);
        assert!(Record::parse(&[9, 0]).is_none() && Record::parse(&[]).is_none());
        assert!(
            Record::parse(&[0, 0]).is_none(),
            "a header shorter than its own length"
        );
        let cut = Record::parse(&[2, 20, 1]).unwrap();
        assert_eq!(cut.get(0), None);
    }

    #[test]
    fn columns_of_statements() {
        let (names, id) = columns(
            "CREATE TABLE trans_item (\n id INTEGER PRIMARY KEY AUTOINCREMENT, /* a, (b */\n \
             'item id' INTEGER REFERENCES item(id, x), -- c, d\n \"q,(\" TEXT DEFAULT ',', [r] , `s`,\n \
             CONSTRAINT u UNIQUE (a, b), PRIMARY KEY (x), FOREIGN KEY (hnum) REFERENCES 'P'(h))",
        );
        assert_eq!(names, ["id", "item id", "q,(", "r", "s"]);
        assert_eq!(id, None, "the last word counts");
        let (names, id) =
            columns("CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT,blob BLOB NOT NULL)");
        assert_eq!((names.len(), id), (2, Some(0)));
        let (names, id) = columns("CREATE TABLE \"t\" (\"x\" TEXT, \"id\" INTEGER, PRIMARY KEY(\"id\"))");
        assert_eq!((names.len(), id), (2, Some(1)));
        assert_eq!(columns("nonsense"), (vec![], None));
        assert_eq!(columns("CREATE TABLE a(/* open"), (vec![], None));
    }
}
