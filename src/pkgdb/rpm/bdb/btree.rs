//! The access method btree: leaves on which keys and values take turns.

use super::{Db, Each, Overflow, Page, page};
use crate::bytes::{slice, u8_at};
use crate::error::{Error, Result};
use std::ops::ControlFlow;

/// Types of items on a page; `DELETED` may be set on each.
const KEY_DATA: u8 = 1;
const DUPLICATES: u8 = 2;
const OVERFLOW: u8 = 3;
const DELETED: u8 = 0x80;

pub(super) fn read(db: &mut Db, each: &mut Each<'_>) -> Result<()> {
    let root = db.word(&db.meta, 88).unwrap_or_default();
    // Every page is visited once, so that this holds no more than the tree has pages.
    let mut todo = vec![root];
    while let Some(number) = todo.pop() {
        let flow = match db.page(number) {
            Err(e) => each(0, Err(e)),
            Ok(page) => match page.kind {
                page::BTREE_LEAF => leaf(db, &page, each),
                page::BTREE_INTERNAL => match children(db, &page) {
                    Ok(children) => {
                        todo.extend(children.into_iter().rev());
                        ControlFlow::Continue(())
                    }
                    Err(e) => each(0, Err(e)),
                },
                kind => each(
                    0,
                    Err(Error::corrupt(
                        format!("page {number} is of type {kind}, where a btree goes on"),
                        db.offset(number),
                    )),
                ),
            },
        };
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

fn children(db: &Db, page: &Page) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for n in 0..page.entries {
        let at = db.item(page, n)?;
        let child = slice(&page.bytes, at, 12).and_then(|item| db.word(item, 4));
        children.push(child.ok_or_else(|| {
            Error::corrupt(
                format!("item {n} of page {} is cut", page.number),
                db.offset(page.number),
            )
        })?);
    }
    Ok(children)
}

fn leaf(db: &mut Db, page: &Page, each: &mut Each<'_>) -> ControlFlow<()> {
    if !page.entries.is_multiple_of(2) {
        let e = Error::corrupt(
            format!("page {} has a key without a value", page.number),
            db.offset(page.number),
        );
        each(0, Err(e))?;
    }
    for n in 0..page.entries / 2 {
        let (key, value) = (item(db, page, 2 * n), item(db, page, 2 * n + 1));
        match (key, value) {
            (Ok(None), _) | (_, Ok(None)) => {}
            (Ok(Some(Ok(key))), Ok(Some(value))) => db.give(key, Ok(value), each)?,
            (Ok(Some(Ok(key))), Err(e)) => db.give(key, Err(e), each)?,
            (Ok(Some(Err(_))), _) => {
                let e = Error::corrupt("a key on pages of its own", db.offset(page.number));
                each(0, Err(e))?;
            }
            (Err(e), _) => each(0, Err(e))?,
        }
    }
    ControlFlow::Continue(())
}

/// Item `n` of a leaf; `None` if it was deleted.
fn item<'a>(db: &Db, page: &'a Page, n: usize) -> Result<Option<std::result::Result<&'a [u8], Overflow>>> {
    let at = db.item(page, n)?;
    let cut = || {
        Error::corrupt(
            format!("item {n} of page {} does not lie in the page", page.number),
            db.offset(page.number),
        )
    };
    let kind = u8_at(&page.bytes, at + 2).ok_or_else(cut)?;
    if kind & DELETED != 0 {
        return Ok(None);
    }
    match kind {
        KEY_DATA => {
            let len = db.half(&page.bytes, at).ok_or_else(cut)?;
            slice(&page.bytes, at + 3, len)
                .map(|b| Some(Ok(b)))
                .ok_or_else(cut)
        }
        OVERFLOW => {
            let first = db.word(&page.bytes, at + 4).ok_or_else(cut)?;
            let len = db.word(&page.bytes, at + 8).ok_or_else(cut)?;
            Ok(Some(Err(Overflow { first, len })))
        }
        DUPLICATES => Err(Error::unsupported("several values of one key in Packages")),
        kind => Err(Error::corrupt(
            format!("item {n} of page {} is of type {kind}", page.number),
            db.offset(page.number),
        )),
    }
}
