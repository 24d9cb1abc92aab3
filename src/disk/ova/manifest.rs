//! The manifest of an OVF package: a digest for each file (DSP0243, clause 5.1).

use crate::bytes::unhex;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::read_at::{ReadAt, Stream};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The longest manifest, in bytes.
pub(super) const MAX_LEN: u64 = 1 << 20;

/// The most lines, which is the most files that are read.
const MAX_LINES: usize = 1024;

/// A line of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) file: String,
    algorithm: Algorithm,
    digest: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

/// The lines of a manifest: `SHA256(disk.vmdk)= 0123...`.
///
/// # Errors
/// [`Error::Corrupt`] for a line that is none, [`Error::Unsupported`] for an algorithm that is not known.
pub(super) fn lines(text: &[u8]) -> Result<Vec<Line>> {
    let text = String::from_utf8_lossy(text);
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let parts = || {
            let (algorithm, rest) = line.split_once('(')?;
            // A file's name may have parentheses itself; the digest has none.
            let (file, digest) = rest.rsplit_once(')')?;
            let digest = digest.trim().strip_prefix('=')?.trim();
            Some((
                algorithm.trim().to_ascii_uppercase(),
                file.to_owned(),
                unhex(digest)?,
            ))
        };
        let bad = || {
            Error::corrupt(
                format!("a line of the manifest: {:?}", line.get(..100).unwrap_or(line)),
                0,
            )
        };
        let (algorithm, file, digest) = parts().ok_or_else(bad)?;
        let (algorithm, len) = match algorithm.replace('-', "").as_str() {
            "SHA1" => (Algorithm::Sha1, 20),
            "SHA256" => (Algorithm::Sha256, 32),
            "SHA512" => (Algorithm::Sha512, 64),
            _ => {
                return Err(Error::unsupported(format!(
                    "digests of type {algorithm:?} in a manifest"
                )));
            }
        };
        if digest.len() != len {
            return Err(bad());
        }
        let line = Line {
            file,
            algorithm,
            digest,
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
        if lines.len() > MAX_LINES {
            return Err(Error::unsupported(format!(
                "a manifest of more than {MAX_LINES} lines"
            )));
        }
    }
    Ok(lines)
}

impl Algorithm {
    fn of(self, file: &dyn ReadAt, done: &dyn Fn(u64)) -> Result<Vec<u8>> {
        match self {
            Self::Sha1 => hashed::<sha1::Sha1>(file, done),
            Self::Sha256 => hashed::<sha2::Sha256>(file, done),
            Self::Sha512 => hashed::<sha2::Sha512>(file, done),
        }
    }
}

fn hashed<D: sha1::Digest>(file: &dyn ReadAt, done: &dyn Fn(u64)) -> Result<Vec<u8>> {
    let mut hasher = D::new();
    let mut stream = Stream::new(file);
    let mut buf = vec![0; 1 << 20];
    loop {
        let n = stream
            .read(&mut buf)
            .map_err(|e| Error::from_io("reading an archive", e))?;
        if n == 0 {
            return Ok(hasher.finalize().to_vec());
        }
        hasher.update(buf.get(..n).unwrap_or_default());
        done(n as u64);
    }
}

/// Compares files with their lines, several at once.
///
/// # Errors
/// [`Error::Corrupt`] naming the first file that differs.
pub(super) fn verify(name: &str, files: &[(Line, Arc<dyn ReadAt>)], progress: &dyn Progress) -> Result<()> {
    let total = files.iter().map(|(_, f)| f.len()).fold(0, u64::saturating_add);
    let stage = progress.stage(&format!("checking the digests of {name}"), Some(total));
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        while let Some((line, file)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = line.algorithm.of(&**file, &|n| stage.add(n)).and_then(|digest| {
                if digest == line.digest {
                    return Ok(());
                }
                let what = format!(
                    "{name}: {:?} has another digest than the manifest says",
                    line.file
                );
                Err(Error::corrupt(what, 0))
            });
            if let Err(e) = result {
                failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(e);
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(files.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_writers() {
        let text = b"SHA1(a.ovf)= da39a3ee5e6b4b0d3255bfef95601890afd80709\r\n\n\
            SHA256 (a (1).vmdk) = e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";
        let found = lines(text).unwrap();
        let names: Vec<&str> = found.iter().map(|l| l.file.as_str()).collect();
        assert_eq!(names, ["a.ovf", "a (1).vmdk"]);
        let empty: Arc<dyn ReadAt> = Arc::new(Vec::new());
        let files: Vec<_> = found.into_iter().map(|l| (l, Arc::clone(&empty))).collect();
        verify("x", &files, &crate::progress::Silent).unwrap();
        let other: Arc<dyn ReadAt> = Arc::new(vec![0]);
        let wrong = [(files[1].0.clone(), other)];
        let e = verify("x", &wrong, &crate::progress::Silent).unwrap_err();
        assert!(e.to_string().contains("a (1).vmdk"), "{e}");
        assert!(lines(b"SHA1(a)= 00").is_err() && lines(b"x").is_err() && lines(b"MD5(a)= 00").is_err());
    }
}
