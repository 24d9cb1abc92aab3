//! A build context as a tar stream, made as it is read.

use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// The most files of a context.
const MAX_FILES: usize = 100_000;

/// A member that is still to come.
struct Member {
    /// Its name in the tar.
    name: PathBuf,
    from: Content,
}

enum Content {
    Bytes(Vec<u8>),
    File(PathBuf),
    Directory,
    Symlink(PathBuf),
}

/// The tar of a directory, in pieces.
pub(crate) struct ContextTar {
    todo: VecDeque<Member>,
    /// The file that is being read, and how many of its bytes are still to come.
    open: Option<(File, u64, u64)>,
    ended: bool,
}

impl ContextTar {
    /// All of `dir`, with `dockerfile` in place of its file `Dockerfile`.
    ///
    /// # Errors
    /// [`Error::Io`] if a directory cannot be listed.
    pub(crate) fn new(dir: &Path, dockerfile: Vec<u8>) -> Result<Self> {
        let mut todo = VecDeque::from([Member {
            name: "Dockerfile".into(),
            from: Content::Bytes(dockerfile),
        }]);
        let mut dirs = VecDeque::from([PathBuf::new()]);
        while let Some(at) = dirs.pop_front() {
            let here = dir.join(&at);
            let failed = |e| Error::io(format!("reading {}", here.display()), e);
            let entries: std::io::Result<Vec<_>> = std::fs::read_dir(&here).map_err(failed)?.collect();
            let mut entries = entries.map_err(failed)?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let name = at.join(entry.file_name());
                let kind = entry.file_type().map_err(failed)?;
                let from = if name == Path::new("Dockerfile") {
                    continue;
                } else if kind.is_dir() {
                    dirs.push_back(name.clone());
                    Content::Directory
                } else if kind.is_symlink() {
                    Content::Symlink(std::fs::read_link(entry.path()).map_err(failed)?)
                } else if kind.is_file() {
                    Content::File(entry.path())
                } else {
                    continue;
                };
                todo.push_back(Member { name, from });
                if todo.len() > MAX_FILES {
                    return Err(Error::unsupported(format!(
                        "{}: a build context of more than {MAX_FILES} files",
                        dir.display()
                    )));
                }
            }
        }
        Ok(Self {
            todo,
            open: None,
            ended: false,
        })
    }

    fn chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        if let Some((file, left, size)) = &mut self.open {
            let want = usize::try_from(*left).unwrap_or(CHUNK).min(CHUNK);
            let mut chunk = vec![0; want];
            file.read_exact(&mut chunk)?;
            *left -= want as u64;
            if *left == 0 {
                let padding = usize::try_from(crate::tar::padding(*size)).unwrap_or_default();
                chunk.resize(want + padding, 0);
                self.open = None;
            }
            return Ok(Some(chunk));
        }
        let Some(member) = self.todo.pop_front() else {
            return Ok((!std::mem::replace(&mut self.ended, true)).then(|| vec![0; 1024]));
        };
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        header.set_size(0);
        let mut builder = tar::Builder::new(Vec::new());
        match member.from {
            Content::Bytes(bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, &member.name, bytes.as_slice())?;
            }
            Content::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                builder.append_data(&mut header, &member.name, std::io::empty())?;
            }
            Content::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, &member.name, &target)?;
            }
            Content::File(path) => {
                let file = File::open(&path)?;
                let meta = file.metadata()?;
                header.set_mode(meta.permissions().mode() & 0o777);
                header.set_size(meta.len());
                // The head alone: the content follows in pieces.
                builder.append_data(&mut header, &member.name, std::io::empty())?;
                if meta.len() > 0 {
                    self.open = Some((file, meta.len(), meta.len()));
                }
            }
        }
        // Without the two blocks that end a tar, which the builder writes in the end.
        Ok(Some(std::mem::take(builder.get_mut())))
    }
}

impl Iterator for ContextTar {
    type Item = std::io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = self.chunk();
        if chunk.is_err() {
            self.todo.clear();
            self.open = None;
            self.ended = true;
        }
        chunk.transpose()
    }
}

/// The context's Dockerfile with the image `from` of its first `FROM` replaced by `with`. `None` if it builds on another.
pub(crate) fn rebased(dockerfile: &str, from: &str, with: &str) -> Option<String> {
    let mut done = false;
    let lines: Vec<String> = dockerfile
        .split_inclusive('\n')
        .map(|line| {
            let mut words = line.split_whitespace();
            let is_from = words.next().is_some_and(|word| word.eq_ignore_ascii_case("FROM"));
            if done || !is_from || words.find(|word| !word.starts_with("--")) != Some(from) {
                return line.to_owned();
            }
            done = true;
            line.replacen(from, with, 1)
        })
        .collect();
    done.then(|| lines.concat())
}

/// The image that the first `FROM` of a Dockerfile names.
pub(crate) fn from_of(dockerfile: &str) -> Option<&str> {
    dockerfile.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| word.eq_ignore_ascii_case("FROM"))?;
        words.find(|word| !word.starts_with("--"))
    })
}

/// A path as people see it.
pub(crate) fn shown(path: &Path) -> String {
    crate::error::Escaped(path.as_os_str().as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tar_is_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        std::fs::create_dir(dir.path().join("d".repeat(90))).unwrap();
        for (name, bytes) in [
            ("Dockerfile", &b"FROM x\n"[..]),
            ("empty", b""),
            ("block", &[7; 512]),
            (&long, &[9; 700_001]),
        ] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        std::os::unix::fs::symlink("block", dir.path().join("link")).unwrap();
        let chunks = ContextTar::new(dir.path(), b"FROM y\n".to_vec()).unwrap();
        let bytes: Vec<u8> = chunks.flat_map(|chunk| chunk.unwrap()).collect();
        assert_eq!(bytes.len() % 512, 0);
        let mut found = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(name, (entry.header().entry_type().as_byte(), content.len()));
        }
        let dir_name = "d".repeat(90);
        let wanted = [
            ("Dockerfile", (b'0', 7)),
            ("block", (b'0', 512)),
            (&dir_name, (b'5', 0)),
            (&long, (b'0', 700_001)),
            ("empty", (b'0', 0)),
            ("link", (b'2', 0)),
        ];
        assert_eq!(found, wanted.map(|(name, is)| (name.to_owned(), is)).into());
    }

    #[test]
    fn the_base_is_replaced_where_it_is_the_base() {
        let file = "# FROM x\nARG A\nFROM --platform=linux/amd64 x@sha256:12 AS y\nRUN FROM x\n";
        let new = rebased(file, "x@sha256:12", "localhost/z").unwrap();
        assert_eq!(new, file.replace("x@sha256:12", "localhost/z"));
        assert_eq!(rebased(file, "x", "z"), None);
        assert_eq!(from_of(file), Some("x@sha256:12"));
    }
}
