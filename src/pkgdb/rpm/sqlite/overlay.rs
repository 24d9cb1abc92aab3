//! Pages that lie beside a database file and count instead of its own ("The Write-Ahead Log", "The Rollback Journal").

use crate::bytes::{array, be32, slice};
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, read_vec};
use std::collections::HashMap;
use std::sync::Arc;

/// The longest log that is read.
const LIMIT: u64 = 1 << 30;

/// Pages by their numbers.
pub(super) struct Overlay {
    file: Arc<dyn ReadAt>,
    /// Offset in the file of each page.
    at: HashMap<u32, u64>,
    pub(super) page_size: usize,
    /// Pages of the whole database.
    pub(super) pages: u32,
}

impl Overlay {
    /// The first `len` bytes of a page, if it lies here.
    pub(super) fn page(&self, number: u32, len: usize) -> Result<Option<Vec<u8>>> {
        match self.at.get(&number) {
            Some(at) => read_vec(&*self.file, *at, len).map(Some),
            None => Ok(None),
        }
    }

    /// How many pages lie here.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.at.len()).unwrap_or(u32::MAX)
    }

    /// The committed frames of a write-ahead log; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a log of more than 1 GiB or of a later version.
    pub(super) fn wal(file: Arc<dyn ReadAt>) -> Result<Option<Self>> {
        check_len(&file)?;
        if file.len() < 32 {
            return Ok(None);
        }
        let head = read_vec(&*file, 0, 32)?;
        let big_endian = match be32(&head, 0) {
            Some(0x377f_0682) => false,
            Some(0x377f_0683) => true,
            // SQLite itself takes no notice of what is no log.
            _ => return Ok(None),
        };
        let mut sum = Sum {
            big_endian,
            a: 0,
            b: 0,
        };
        sum.add(head.get(..24).unwrap_or_default());
        if !sum.is(&head, 24) {
            return Ok(None);
        }
        if be32(&head, 4) != Some(3_007_000) {
            return Err(Error::unsupported("a later version of SQLite's write-ahead log"));
        }
        let Some(page_size) = page_size(be32(&head, 8)) else {
            return Ok(None);
        };
        let salt = slice(&head, 16, 8);
        let (mut at, mut open) = (HashMap::new(), Vec::new());
        let mut pages = None;
        let len = 24 + page_size;
        let mut offset = 32;
        while offset + len as u64 <= file.len() {
            let frame = read_vec(&*file, offset, len)?;
            sum.add(frame.get(..8).unwrap_or_default());
            sum.add(frame.get(24..).unwrap_or_default());
            let (Some(page), Some(commit)) = (be32(&frame, 0), be32(&frame, 4)) else {
                break;
            };
            // Behind the last frame stand those of an earlier round.
            if slice(&frame, 8, 8) != salt || !sum.is(&frame, 16) || page == 0 {
                break;
            }
            open.push((page, offset + 24));
            if commit > 0 {
                at.extend(open.drain(..));
                pages = Some(commit);
            }
            offset += len as u64;
        }
        Ok(pages.map(|pages| Self {
            file,
            at,
            page_size,
            pages,
        }))
    }

    /// The pages that a hot rollback journal gives back; `None` if it is not hot.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a journal of more than 1 GiB.
    pub(super) fn journal(file: Arc<dyn ReadAt>) -> Result<Option<Self>> {
        check_len(&file)?;
        let mut overlay: Option<Self> = None;
        let mut header_at = 0;
        while header_at + 28 <= file.len() {
            let head = read_vec(&*file, header_at, 28)?;
            let field = |n: usize| be32(&head, 8 + 4 * n);
            if slice(&head, 0, 8) != Some(&[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]) {
                break;
            }
            let (Some(records), Some(nonce), Some(pages)) = (field(0), field(1), field(2)) else {
                break;
            };
            let sector = field(3).filter(|s| s.is_power_of_two() && (32..=65536).contains(s));
            let (Some(sector), Some(size)) = (sector, page_size(field(4))) else {
                break;
            };
            let overlay = overlay.get_or_insert_with(|| Self {
                file: Arc::clone(&file),
                at: HashMap::new(),
                page_size: size,
                pages,
            });
            let size = overlay.page_size;
            let mut at = header_at + u64::from(sector);
            let mut left = u64::from(records);
            while left > 0 && at + size as u64 + 8 <= file.len() {
                let record = read_vec(&*file, at, size + 8)?;
                let page = record.get(4..4 + size).unwrap_or_default();
                let mut sum = nonce;
                let mut n = size.saturating_sub(200);
                while n > 0 {
                    sum = sum.wrapping_add(page.get(n).copied().unwrap_or_default().into());
                    n = n.saturating_sub(200);
                }
                let number = be32(&record, 0).unwrap_or_default();
                if number == 0 || be32(&record, 4 + size) != Some(sum) {
                    // What was not wholly written when the machine stopped: nothing behind it counts.
                    return Ok(Some(Self { ..take(overlay) }));
                }
                overlay.at.entry(number).or_insert(at + 4);
                at += size as u64 + 8;
                left -= 1;
            }
            // The next header begins with a sector.
            header_at = at.div_ceil(u64::from(sector)) * u64::from(sector);
        }
        Ok(overlay)
    }
}

fn take(overlay: &mut Overlay) -> Overlay {
    Overlay {
        file: Arc::clone(&overlay.file),
        at: std::mem::take(&mut overlay.at),
        page_size: overlay.page_size,
        pages: overlay.pages,
    }
}

fn check_len(file: &Arc<dyn ReadAt>) -> Result<()> {
    if file.len() > LIMIT {
        return Err(Error::unsupported(format!(
            "an SQLite log of {} bytes, where at most {LIMIT} are read",
            file.len()
        )));
    }
    Ok(())
}

fn page_size(stated: Option<u32>) -> Option<usize> {
    let size = stated.filter(|s| s.is_power_of_two() && (512..=65536).contains(s))?;
    usize::try_from(size).ok()
}

/// The checksum of a write-ahead log: it goes on from frame to frame.
struct Sum {
    big_endian: bool,
    a: u32,
    b: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let word = |word: [u8; 4]| {
            if self.big_endian {
                u32::from_be_bytes(word)
            } else {
                u32::from_le_bytes(word)
            }
        };
        for pair in bytes.as_chunks::<8>().0 {
            let (Some(x), Some(y)) = (array(pair, 0), array(pair, 4)) else {
                continue;
            };
            self.a = self.a.wrapping_add(word(x)).wrapping_add(self.b);
            self.b = self.b.wrapping_add(word(y)).wrapping_add(self.a);
        }
    }

    /// True if this is the checksum at `at`.
    fn is(&self, bytes: &[u8], at: usize) -> bool {
        be32(bytes, at) == Some(self.a) && be32(bytes, at + 4) == Some(self.b)
    }
}
