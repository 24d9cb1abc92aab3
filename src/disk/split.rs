//! A disk in parts: `disk.001`, `disk.002`, ... or `disk.aa`, `disk.ab`, ..., of which the user names the first.

use super::blocks::{CUT, Joined};
use super::gate::{Chain, Image};
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// `image` with the parts that follow it behind it, and a note; `image` itself if it is no first part.
///
/// # Errors
/// [`Error::Corrupt`] if one of several parts is missing or has another length than the first, and those of
/// [`Chain::follow_extent`].
pub(super) fn joined(image: Image, chain: &mut Chain<'_>) -> Result<(Image, Option<String>)> {
    let exists = |name: &[u8]| {
        let path = image.path.with_file_name(OsStr::from_bytes(name));
        path.symlink_metadata().is_ok()
    };
    let first = image
        .path
        .file_name()
        .map_or_else(Vec::new, |n| n.as_bytes().to_vec());
    let Some(mut name) = is_first(&first).then(|| next(&first)).flatten() else {
        return Ok((image, None));
    };
    let before = before(&first).is_some_and(|b| exists(&b));
    if before || !exists(&name) {
        return Ok((image, None));
    }
    let mut parts = vec![Arc::clone(&image.file)];
    let mut last = name.clone();
    loop {
        let part = chain.follow_extent(&image, "part", &name)?;
        parts.push(part.file);
        last.clone_from(&name);
        let Some(following) = next(&name) else { break };
        if !exists(&following) {
            if let Some(later) = next(&following).filter(|n| exists(n)) {
                let shown = |n: &[u8]| String::from_utf8_lossy(n).into_owned();
                let what = format!(
                    "part {} is missing, but there is {}",
                    shown(&following),
                    shown(&later)
                );
                return Err(Error::corrupt(what, 0).hint(CUT));
            }
            break;
        }
        name = following;
    }
    let whole = image.file.len();
    let count = parts.len();
    for (n, part) in parts.iter().enumerate() {
        let len = part.len();
        if len > whole || n + 1 < count && len != whole {
            let what = format!(
                "{}: part {} has {len} bytes, the first one {whole}",
                image.name,
                n + 1
            );
            return Err(Error::corrupt(what, 0).hint(CUT));
        }
    }
    let note = format!(
        "{count} parts are read as one file, the last is {}",
        String::from_utf8_lossy(&last)
    );
    let file: Arc<dyn ReadAt> = Arc::new(Joined::new(parts).map_err(|e| e.within(&image.name))?);
    Ok((Image { file, ..image }, Some(note)))
}

/// The name up to its last dot, and what follows that.
fn cut(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let dot = name.iter().rposition(|b| *b == b'.').filter(|dot| *dot > 0)?;
    name.split_at_checked(dot + 1)
}

/// True for `x.00`, `x.001`, `x.aa` and their like.
fn is_first(name: &[u8]) -> bool {
    cut(name).is_some_and(|(_, end)| match end.split_last() {
        Some((last, zeros)) if (1..=3).contains(&zeros.len()) => {
            zeros.iter().all(|b| *b == b'0') && matches!(last, b'0' | b'1')
                || zeros.len() <= 2 && end.iter().all(|b| *b == b'a')
        }
        _ => false,
    })
}

/// The name of the part behind this one.
fn next(name: &[u8]) -> Option<Vec<u8>> {
    step(name, |b| match b {
        b'9' => (b'0', true),
        b'z' => (b'a', true),
        b => (b + 1, false),
    })
}

/// The name of the part before `x.01`.
fn before(name: &[u8]) -> Option<Vec<u8>> {
    name.ends_with(b"1")
        .then(|| step(name, |b| (b - 1, false)))
        .flatten()
}

/// The name with the digits or letters of its end counted on.
fn step(name: &[u8], one: impl Fn(u8) -> (u8, bool)) -> Option<Vec<u8>> {
    let (stem, end) = cut(name)?;
    let mut end = end.to_vec();
    let mut carry = true;
    for b in end.iter_mut().rev() {
        if carry {
            (*b, carry) = one(*b);
        }
    }
    (!carry).then(|| [stem, &end].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted() {
        for first in ["x.00", "x.01", "x.000", "x.001", "x.0001", "a.b.aa", "x.aaa"] {
            assert!(is_first(first.as_bytes()), "{first}");
        }
        for other in [
            "x.0", "x.1", "x.a", "x.02", "x.10", "x.ab", "x", ".00", "x.aaaa", "x.0a", "x.00001", "x.",
        ] {
            assert!(!is_first(other.as_bytes()), "{other}");
        }
        let after = |n: &str| next(n.as_bytes()).map(|n| String::from_utf8(n).unwrap());
        assert_eq!(after("x.009").as_deref(), Some("x.010"));
        assert_eq!(after("x.az").as_deref(), Some("x.ba"));
        assert_eq!(after("x.99"), None);
        assert_eq!(before(b"x.001").as_deref(), Some(&b"x.000"[..]));
        assert_eq!(before(b"x.000"), None);
    }
}
