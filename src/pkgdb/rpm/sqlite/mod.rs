//! SQLite files, read only, without SQLite: tables with their rows (<https://sqlite.org/fileformat2.html>).
//!
//! What a writer left beside the file counts as SQLite counts it: committed frames of a write-ahead log, and the pages of
//! a rollback journal that a crash left.

mod overlay;
mod record;

pub use record::{Record, Value};

use super::blocks::{Blocks, Visited};
use crate::bytes::{be16, be32, slice, u8_at};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::ReadAt;
use crate::source::Source;
use overlay::Overlay;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Types of pages of a table's b-tree.
const INTERIOR: u8 = 5;
const LEAF: u8 = 13;

/// What is called with each row: its id, and the bytes of its record or why they cannot be read.
pub type EachRow<'a> = dyn FnMut(Result<(i64, &[u8])>) -> ControlFlow<()> + 'a;

/// A database file and what lies beside it.
pub struct Database {
    blocks: Blocks,
    overlay: Option<Overlay>,
    page_size: usize,
    /// Bytes of a page without those reserved for extensions.
    usable: usize,
    /// The number of pages.
    pages: u32,
    utf8: bool,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    root: u32,
    /// Names of its columns, in the order of a record.
    pub columns: Vec<String>,
    /// The column whose value is the id of the row.
    id: Option<usize>,
}

impl Table {
    /// The place of a column in a record.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.eq_ignore_ascii_case(name))
    }

    /// The number in a column; `None` if it is missing or none.
    pub fn number(&self, id: i64, record: &Record<'_>, column: usize) -> Option<i64> {
        match record.get(column) {
            Some(Value::Integer(n)) => Some(n),
            Some(Value::Null) if self.id == Some(column) => Some(id),
            _ => None,
        }
    }
}

impl Database {
    /// Opens the file at `path` of a machine, with its write-ahead log or journal.
    ///
    /// # Errors
    /// As [`Database::new`].
    pub fn open(source: &dyn Source, path: &GuestPath) -> Result<Self> {
        let beside = |ending: &str| -> Result<Option<Arc<dyn ReadAt>>> {
            let Some(parent) = path.parent() else {
                return Ok(None);
            };
            let path = parent.join(&[path.name(), ending.as_bytes()].concat())?;
            let node = source.tree().get(&path).filter(|n| n.is_file() && n.size() > 0);
            node.map(|n| source.open(n.id)).transpose()
        };
        let node = source.tree().get(path).filter(|n| n.is_file());
        let node = node.ok_or_else(|| Error::corrupt(format!("{path} is not a file"), 0))?;
        Self::new(source.open(node.id)?, beside("-wal")?, beside("-journal")?)
    }

    /// A database of its file, its write-ahead log and its rollback journal.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where this is no SQLite file, [`Error::Unsupported`] for a later version of the format.
    pub fn new(
        file: Arc<dyn ReadAt>,
        wal: Option<Arc<dyn ReadAt>>,
        journal: Option<Arc<dyn ReadAt>>,
    ) -> Result<Self> {
        let blocks = Blocks::new(file)?;
        // A crash leaves either: the log belongs to a file in that mode, the journal to one in the other.
        let mut overlay = journal.map(Overlay::journal).transpose()?.flatten();
        if overlay.is_none() {
            overlay = wal.map(Overlay::wal).transpose()?.flatten();
        }
        let first = overlay
            .as_ref()
            .and_then(|o| o.page(1, 100).transpose())
            .transpose()?;
        let head = match first {
            Some(head) => head,
            None => blocks.read(0, 100).map_err(|_| {
                Error::corrupt(
                    format!("a file of {} bytes is no SQLite database", blocks.len()),
                    0,
                )
            })?,
        };
        if slice(&head, 0, 16) != Some(b"SQLite format 3\0") {
            return Err(Error::corrupt(
                "the file does not begin as an SQLite database does",
                0,
            ));
        }
        let page_size = match be16(&head, 16) {
            Some(1) => 65536,
            Some(n) if n.is_power_of_two() && n >= 512 => usize::from(n),
            n => {
                return Err(Error::corrupt(
                    format!("an SQLite database with pages of {} bytes", n.unwrap_or_default()),
                    16,
                ));
            }
        };
        let version = u8_at(&head, 19).unwrap_or_default();
        if version > 2 {
            return Err(Error::unsupported(format!(
                "version {version} of SQLite's file format"
            )));
        }
        let reserved = usize::from(u8_at(&head, 20).unwrap_or_default());
        if page_size - reserved < 480 {
            return Err(Error::corrupt(
                format!("{reserved} reserved bytes of each page"),
                20,
            ));
        }
        let utf8 = match be32(&head, 56) {
            Some(0 | 1) => true,
            Some(2 | 3) => false,
            n => {
                return Err(Error::corrupt(
                    format!("text encoding {}", n.unwrap_or_default()),
                    56,
                ));
            }
        };
        let in_file = u32::try_from(blocks.len() / page_size as u64).unwrap_or(u32::MAX);
        let stated = be32(&head, 28).filter(|n| *n > 0 && be32(&head, 24) == be32(&head, 92));
        let pages = match &overlay {
            Some(overlay) if overlay.page_size != page_size => {
                return Err(Error::corrupt(
                    format!(
                        "a log of pages of {} bytes beside a database of pages of {page_size}",
                        overlay.page_size
                    ),
                    16,
                ));
            }
            Some(overlay) => overlay.pages.min(in_file.saturating_add(overlay.len())),
            None => stated.unwrap_or(in_file).min(in_file),
        };
        Ok(Self {
            page_size,
            usable: page_size - reserved,
            pages,
            utf8,
            blocks,
            overlay,
        })
    }

    fn offset(&self, page: u32) -> u64 {
        u64::from(page).saturating_sub(1) * self.page_size as u64
    }

    fn page(&self, number: u32) -> Result<Vec<u8>> {
        if let Some(overlay) = &self.overlay
            && let Some(page) = overlay.page(number, self.page_size)?
        {
            return Ok(page);
        }
        self.blocks.read(self.offset(number), self.page_size)
    }

    /// A page that nothing led to before.
    fn next(&self, number: u32, visited: &mut Visited) -> Result<Vec<u8>> {
        let ok = number > 0 && number <= self.pages && visited.first(number);
        if !ok {
            return Err(Error::corrupt(
                format!("page {number} is not in the database, or is used twice"),
                self.offset(number),
            ));
        }
        self.page(number)
    }

    /// The table of this name; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the list of tables cannot be read, [`Error::Unsupported`] for a database in UTF-16.
    pub fn table(&self, name: &str) -> Result<Option<Table>> {
        if !self.utf8 {
            return Err(Error::unsupported("an SQLite database in UTF-16"));
        }
        let mut found = None;
        let mut failed = None;
        self.rows_of(1, &mut |row| {
            let (_, payload) = match row {
                Ok(row) => row,
                Err(e) => {
                    failed = Some(e);
                    return ControlFlow::Break(());
                }
            };
            let Some(record) = Record::parse(payload) else {
                return ControlFlow::Continue(());
            };
            let is = |n, word: &str| {
                matches!(record.get(n), Some(Value::Text(t)) if t.eq_ignore_ascii_case(word.as_bytes()))
            };
            if !is(0, "table") || !is(1, name) {
                return ControlFlow::Continue(());
            }
            if let (Some(Value::Integer(root)), Some(Value::Text(sql))) = (record.get(3), record.get(4))
                && let Ok(root) = u32::try_from(root)
            {
                let (columns, id) = record::columns(&String::from_utf8_lossy(sql));
                found = Some(Table { root, columns, id });
            }
            ControlFlow::Break(())
        })?;
        match (found, failed) {
            (None, Some(e)) => Err(e),
            (found, _) => Ok(found),
        }
    }

    /// Gives each row of a table to `each`, in the order of the ids.
    ///
    /// Every page is read at most once.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the root of the table cannot be read. What else cannot be read is given to `each`.
    pub fn rows(&self, table: &Table, each: &mut EachRow<'_>) -> Result<()> {
        self.rows_of(table.root, each)
    }

    fn rows_of(&self, root: u32, each: &mut EachRow<'_>) -> Result<()> {
        let mut visited = Visited::new(u64::from(self.pages) + 1);
        let mut todo = vec![root];
        while let Some(number) = todo.pop() {
            let page = match self.next(number, &mut visited) {
                Ok(page) => page,
                Err(e) if number == root => return Err(e),
                Err(e) => {
                    if each(Err(e)).is_break() {
                        return Ok(());
                    }
                    continue;
                }
            };
            let flow = match self.visit(number, &page, &mut visited, each) {
                Ok((children, flow)) => {
                    todo.extend(children.into_iter().rev());
                    flow
                }
                Err(e) if number == root => return Err(e),
                Err(e) => each(Err(e)),
            };
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The children of an interior page; the rows of a leaf are given to `each`.
    fn visit(
        &self,
        number: u32,
        page: &[u8],
        visited: &mut Visited,
        each: &mut EachRow<'_>,
    ) -> Result<(Vec<u32>, ControlFlow<()>)> {
        let head = if number == 1 { 100 } else { 0 };
        let bad = |what: &str, at: usize| {
            Error::corrupt(format!("page {number}: {what}"), self.offset(number) + at as u64)
        };
        let cut = || bad("a page that is cut", 0);
        let kind = u8_at(page, head).ok_or_else(cut)?;
        let cells = usize::from(be16(page, head + 3).ok_or_else(cut)?);
        let pointers = head
            + match kind {
                INTERIOR => 12,
                LEAF => 8,
                _ => return Err(bad(&format!("type {kind} is none of a table's pages"), head)),
            };
        // A cell has four bytes at least, beside the two of its pointer.
        if pointers + cells * 6 > self.usable {
            return Err(bad(&format!("{cells} cells"), head + 3));
        }
        let mut children = Vec::new();
        for n in 0..cells {
            let at = be16(page, pointers + 2 * n).map(usize::from).unwrap_or_default();
            if kind == INTERIOR {
                let child = be32(page, at).filter(|_| at >= pointers + 2 * cells);
                children.push(child.ok_or_else(|| bad("a cell outside", pointers + 2 * n))?);
                continue;
            }
            let row = if at < pointers + 2 * cells {
                Err(bad("a cell outside", pointers + 2 * n))
            } else {
                self.row(page, at, visited, &bad)
            };
            let flow = match row {
                Ok((id, payload)) => each(Ok((id, &payload))),
                Err(e) => each(Err(e)),
            };
            if flow.is_break() {
                return Ok((Vec::new(), flow));
            }
        }
        if kind == INTERIOR {
            children.push(be32(page, head + 8).ok_or_else(cut)?);
        }
        Ok((children, ControlFlow::Continue(())))
    }

    /// The id and the record of the cell at `at` of a leaf.
    fn row(
        &self,
        page: &[u8],
        at: usize,
        visited: &mut Visited,
        bad: &dyn Fn(&str, usize) -> Error,
    ) -> Result<(i64, Vec<u8>)> {
        let cut = || bad("a cell that is cut", at);
        let rest = page.get(at..self.usable).ok_or_else(cut)?;
        let (len, rest) = record::varint(rest).ok_or_else(cut)?;
        let (id, rest) = record::varint(rest).ok_or_else(cut)?;
        let most = super::MAX_HEADER.min(u64::from(self.pages) * self.page_size as u64);
        let len = u64::try_from(len).ok().filter(|len| *len <= most);
        let len = len.and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or_else(|| bad("a record longer than the database", at))?;
        // "B-tree pages": how much of a long record is on the page itself.
        let u = self.usable;
        let local = if len <= u - 35 {
            len
        } else {
            let least = (u - 12) * 32 / 255 - 23;
            let fits = least + (len - least) % (u - 4);
            if fits <= u - 35 { fits } else { least }
        };
        let mut payload = rest.get(..local).ok_or_else(cut)?.to_vec();
        let mut next = 0;
        if local < len {
            next = be32(rest, local).ok_or_else(cut)?;
        }
        while payload.len() < len {
            let page = self.next(next, visited)?;
            let part = slice(&page, 4, (len - payload.len()).min(u - 4)).ok_or_else(cut)?;
            payload.extend_from_slice(part);
            next = be32(&page, 0).ok_or_else(cut)?;
        }
        if next != 0 {
            return Err(bad("a record whose pages go on after its end", at));
        }
        Ok((id, payload))
    }
}
