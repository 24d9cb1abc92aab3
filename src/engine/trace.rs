//! What BuildKit tells of a build: `moby.buildkit.v1.StatusResponse` (buildkit, api/services/control/control.proto) in the
//! encoding of protocol buffers. Three messages with a few fields: less than the generated code and its libraries.
#![deny(clippy::indexing_slicing)]

/// A piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// A vertex: digest, name, whether it has begun, and its error.
    Vertex(String, String, bool, String),
    /// Bytes that a vertex printed: its digest, the bytes.
    Log(String, Vec<u8>),
}

/// A field: its number and its value. Numbers are of no interest here.
fn field<'a>(from: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = number(from)?;
    let value = match key & 7 {
        0 => {
            number(from)?;
            &[]
        }
        1 => take(from, 8)?,
        2 => {
            let len = usize::try_from(number(from)?).ok()?;
            take(from, len)?
        }
        5 => take(from, 4)?,
        _ => return None,
    };
    Some((key >> 3, value))
}

fn take<'a>(from: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(n)?;
    *from = rest;
    Some(taken)
}

fn number(from: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = from.split_first()?;
        *from = rest;
        n |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

fn fields(mut from: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let mut all = Vec::new();
    while !from.is_empty() {
        all.push(field(&mut from)?);
    }
    Some(all)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The news in a message, in its order; `None` if it is none.
pub(super) fn news(message: &[u8]) -> Option<Vec<News>> {
    let mut all = Vec::new();
    for (number, value) in fields(message)? {
        match number {
            1 => {
                let (mut digest, mut name, mut begun, mut error) = Default::default();
                for (number, value) in fields(value)? {
                    match number {
                        1 => digest = text(value),
                        3 => name = text(value),
                        5 => begun = true,
                        7 => error = text(value),
                        _ => {}
                    }
                }
                all.push(News::Vertex(digest, name, begun, error));
            }
            3 => {
                let (mut digest, mut printed) = (String::new(), Vec::new());
                for (number, value) in fields(value)? {
                    match number {
                        1 => digest = text(value),
                        4 => printed = value.to_vec(),
                        _ => {}
                    }
                }
                all.push(News::Log(digest, printed));
            }
            _ => {}
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;

    /// Two messages of Docker Engine 20.10.24, as they came.
    #[test]
    fn what_an_engine_said() {
        let decode = |text: &str| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            (news(&bytes).unwrap(), bytes)
        };
        let digest = "sha256:4630abae867cbbb86e49ecd1940a60aa7c793e11126f21b8b531fd71d568cb92".to_owned();
        let (log, bytes) = decode(
            "GmEKR3NoYTI1Njo0NjMwYWJhZTg2N2NiYmI4NmU0OWVjZDE5NDBhNjBhYTdjNzkzZTExMTI2ZjIxYjhiNTMxZmQ3MWQ1NjhjYjkyEgwIksOH2AYQodKSgQMYASIGaGVsbG8K",
        );
        assert_eq!(log, [News::Log(digest, b"hello\n".to_vec())]);
        for end in 0..bytes.len() {
            let _ = news(&bytes[..end]);
        }
        let (begun, _) = decode(
            "CnQKR3NoYTI1NjozZGIwNDAwNzM3NTg2OTAzYTJhOTM5NmQ3OTc0YzU2NjBkMGZkYmIwYmNkZDlkMTY1YzZhNzMwNzJkOThjMmUzGhtbMS8zXSBGUk9NIGxvY2FsaG9zdC9iYXNlOjEqDAiSw4fYBhDu3dyTAg==",
        );
        let digest = "sha256:3db0400737586903a2a9396d7974c5660d0fdbb0bcdd9d165c6a73072d98c2e3".to_owned();
        assert_eq!(
            begun,
            [News::Vertex(
                digest,
                "[1/3] FROM localhost/base:1".into(),
                true,
                String::new()
            )]
        );
        assert_eq!(news(&[0xff; 40]), None);
        assert_eq!(news(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), None);
    }
}
