//! Work spread over a bounded number of threads, with results in the order of the input.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many threads to use when nobody said: one for each core this process may run on.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `f` of every item, on at most `jobs` threads; results in the order of `items`.
///
/// # Errors
/// The error of the first item in order that failed among those that ran; after an error no new item is begun.
pub fn map<T: Sync, R: Send, E: Send>(
    jobs: usize,
    items: &[T],
    f: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = jobs.clamp(1, items.len().max(1));
    if threads == 1 {
        return items.iter().map(f).collect();
    }
    let next = AtomicUsize::new(0);
    let failed = std::sync::atomic::AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Result<R, E>)>> = Mutex::new(Vec::with_capacity(items.len()));
    // Batches keep the lock out of the way of tiny items.
    let batch = (items.len() / (threads * 16)).clamp(1, 64);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let start = next.fetch_add(batch, Ordering::Relaxed);
                    let Some(part) = items.get(start..items.len().min(start + batch)) else {
                        return;
                    };
                    if part.is_empty() {
                        return;
                    }
                    let results: Vec<_> = part
                        .iter()
                        .enumerate()
                        .map(|(i, item)| (start + i, f(item)))
                        .collect();
                    if results.iter().any(|(_, r)| r.is_err()) {
                        failed.store(true, Ordering::Relaxed);
                    }
                    done.lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .extend(results);
                }
            });
        }
    });
    let mut done = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, r)| r).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_errors_come_out() {
        let items: Vec<u32> = (0..1000).collect();
        let doubled = map::<_, _, ()>(4, &items, |x| Ok(x * 2)).unwrap();
        assert_eq!(doubled, items.iter().map(|x| x * 2).collect::<Vec<_>>());
        assert_eq!(
            map(4, &items, |x| if *x == 500 { Err(*x) } else { Ok(()) }),
            Err(500)
        );
        assert_eq!(map::<u32, u32, ()>(4, &[], |x| Ok(*x)), Ok(vec![]));
    }
}
