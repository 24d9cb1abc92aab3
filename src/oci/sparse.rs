//! Writing a stream to a file without its zeros.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Holes are made of whole pages of zeros.
const PAGE: usize = 4096;
/// Bytes gathered before they are written.
const BUFFER: usize = 256 << 10;

/// True if every byte is 0.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    bytes
        .chunks(PAGE)
        .all(|chunk| ZEROS.get(..chunk.len()).is_some_and(|zeros| zeros == chunk))
}

/// Writes from byte 0 of an empty file; pages of zeros become holes.
pub(crate) struct SparseWriter<'a> {
    file: &'a File,
    at: u64,
    buffer: Vec<u8>,
}

impl<'a> SparseWriter<'a> {
    pub(crate) fn new(file: &'a File) -> Self {
        Self {
            file,
            at: 0,
            buffer: Vec::with_capacity(BUFFER),
        }
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER.saturating_sub(self.buffer.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let mut start = None;
        let mut at = 0;
        for page in self.buffer.chunks(PAGE) {
            match (is_zero(page), start) {
                (true, Some(from)) => {
                    self.put(from, at)?;
                    start = None;
                }
                (false, None) => start = Some(at),
                _ => {}
            }
            at += page.len();
        }
        if let Some(from) = start {
            self.put(from, at)?;
        }
        self.at += at as u64;
        self.buffer.clear();
        Ok(())
    }

    fn put(&self, from: usize, to: usize) -> std::io::Result<()> {
        let bytes = self.buffer.get(from..to).unwrap_or_default();
        self.file.write_all_at(bytes, self.at + from as u64)
    }

    /// Writes what is left and gives the file its length.
    pub(crate) fn finish(&mut self) -> std::io::Result<()> {
        self.flush()?;
        self.file.set_len(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_become_holes_and_all_else_stays() {
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0u8; 3 << 20];
        bytes[10] = 1;
        bytes[1_000_000] = 2;
        bytes.extend_from_slice(&[0; 77]);
        let mut writer = SparseWriter::new(&file);
        for part in bytes.chunks(70_001) {
            writer.write(part).unwrap();
        }
        writer.finish().unwrap();
        let mut back = Vec::new();
        file.read_to_end(&mut back).unwrap();
        assert!(back == bytes);
        assert!(file.metadata().unwrap().blocks() * 512 < 100_000);
    }
}
