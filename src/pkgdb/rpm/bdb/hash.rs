//! The access method hash: each bucket is a chain of pages, on which keys and values take turns.

use super::{Db, Each, Overflow, Page, page};
use crate::bytes::{slice, u8_at};
use crate::error::{Error, Result};
use std::ops::ControlFlow;

/// Types of items on a page.
const KEY_DATA: u8 = 1;
const DUPLICATES: u8 = 2;
const OFF_PAGE: u8 = 3;
const OFF_PAGE_DUPLICATES: u8 = 4;

/// Where the first page of each doubling of the table is told.
const SPARES: usize = 96;

pub(super) fn read(db: &mut Db, each: &mut Each<'_>) -> Result<()> {
    let max_bucket = db.word(&db.meta, 72).unwrap_or_default();
    let mut missing = 0u64;
    for bucket in 0..=max_bucket {
        // The number of the first power of two that is no less than the count of buckets up to this one.
        let doubling = bucket.checked_add(1).and_then(u32::checked_next_power_of_two);
        let doubling = doubling.and_then(|n| usize::try_from(n.trailing_zeros()).ok());
        let spare = doubling.and_then(|n| db.word(&db.meta, SPARES + 4 * n));
        let first = spare.and_then(|s| s.checked_add(bucket));
        let Some(first) = first.filter(|p| db.offset(*p) < db.blocks.len()) else {
            missing = u64::from(max_bucket - bucket) + 1;
            break;
        };
        if chain(db, first, each).is_break() {
            return Ok(());
        }
    }
    if missing > 0 {
        let e = Error::corrupt(
            format!(
                "the pages of {missing} of {} buckets are not in the file",
                u64::from(max_bucket) + 1
            ),
            72,
        );
        let _ = each(0, Err(e));
    }
    Ok(())
}

/// The pages of one bucket.
fn chain(db: &mut Db, first: u32, each: &mut Each<'_>) -> ControlFlow<()> {
    let mut next = first;
    loop {
        let page = match db.page(next) {
            // Buckets of which nothing was ever written are zeros.
            Err(_) if next == first && db.is_blank(first) => return ControlFlow::Continue(()),
            Err(e) => return each(0, Err(e)),
            Ok(page) => page,
        };
        if !matches!(page.kind, page::HASH | page::HASH_UNSORTED) {
            if next == first && page.kind == 0 && page.entries == 0 {
                return ControlFlow::Continue(());
            }
            let e = Error::corrupt(
                format!("page {next} is of type {}, where a bucket goes on", page.kind),
                db.offset(next),
            );
            return each(0, Err(e));
        }
        if !page.entries.is_multiple_of(2) {
            let e = Error::corrupt(format!("page {next} has a key without a value"), db.offset(next));
            each(0, Err(e))?;
        }
        for n in 0..page.entries / 2 {
            pair(db, &page, n * 2, each)?;
        }
        next = page.next;
        if next == 0 {
            return ControlFlow::Continue(());
        }
    }
}

/// The key at item `n` and the value behind it.
fn pair(db: &mut Db, page: &Page, n: usize, each: &mut Each<'_>) -> ControlFlow<()> {
    let (key, value) = match (item(db, page, n), item(db, page, n + 1)) {
        (Ok(key), Ok(value)) => (key, value),
        (Err(e), _) | (_, Err(e)) => return each(0, Err(e)),
    };
    let key = match content(db, page, key) {
        Ok(Ok(key)) => key,
        Ok(Err(_)) => {
            return each(
                0,
                Err(Error::corrupt(
                    "a key on pages of its own",
                    db.offset(page.number),
                )),
            );
        }
        Err(e) => return each(0, Err(e)),
    };
    let value = content(db, page, value);
    db.give(key, value, each)
}

/// The bytes of item `n`: up to where the item before it begins, the first one up to the end of the page.
fn item<'a>(db: &Db, page: &'a Page, n: usize) -> Result<&'a [u8]> {
    let start = db.item(page, n)?;
    let end = match n.checked_sub(1) {
        Some(before) => db.item(page, before)?,
        None => db.page_size,
    };
    page.bytes
        .get(start..end)
        .filter(|i| !i.is_empty())
        .ok_or_else(|| {
            Error::corrupt(
                format!("item {n} of page {} ends before it begins", page.number),
                db.offset(page.number),
            )
        })
}

fn content<'a>(db: &Db, page: &Page, item: &'a [u8]) -> Result<std::result::Result<&'a [u8], Overflow>> {
    let bad = |what: String| Error::corrupt(what, db.offset(page.number));
    match u8_at(item, 0) {
        Some(KEY_DATA) => Ok(Ok(item.get(1..).unwrap_or_default())),
        Some(OFF_PAGE) => match (db.word(item, 4), db.word(item, 8), slice(item, 0, 12)) {
            (Some(first), Some(len), Some(_)) => Ok(Err(Overflow { first, len })),
            _ => Err(bad("an item that is cut".to_owned())),
        },
        Some(DUPLICATES | OFF_PAGE_DUPLICATES) => {
            Err(Error::unsupported("several values of one key in Packages"))
        }
        kind => Err(bad(format!("an item of type {}", kind.unwrap_or_default()))),
    }
}
