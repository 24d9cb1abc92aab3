//! Gentleness: at most so many bytes a second, and none while the host is busy.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait at once, so that an end is noticed.
const NAP: Duration = Duration::from_secs(1);

/// What the near side asked for.
pub(super) struct Limits {
    rate: u64,
    load: u32,
    /// When the next byte may go.
    next: Mutex<Instant>,
    looked: Mutex<Option<(Instant, bool)>>,
}

impl Limits {
    pub(super) fn new(rate: u64, load: u32) -> Self {
        Self {
            rate,
            load,
            next: Mutex::new(Instant::now()),
            looked: Mutex::new(None),
        }
    }

    /// Waits until `bytes` more may be sent.
    pub(super) fn sending(&self, bytes: usize) {
        if self.rate == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let from = (*next).max(Instant::now());
            *next = from + cost;
            from
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    /// Waits while the host has too much to do.
    pub(super) fn working(&self) {
        while self.load > 0 && self.is_busy() {
            std::thread::sleep(NAP);
        }
    }

    fn is_busy(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, busy)) = *looked
            && when.elapsed() < NAP
        {
            return busy;
        }
        let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let first = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        let busy = first.is_some_and(|load| load * 100.0 > f64::from(self.load));
        *looked = Some((Instant::now(), busy));
        busy
    }
}
