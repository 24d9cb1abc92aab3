//! A bounded cache of tables and decompressed clusters that many threads share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Blocks of bytes by a number, at most `budget` bytes of them. What was used since the last round is kept first
/// (the clock algorithm). The lock is held for a look-up only, never while a block is made.
pub(crate) struct Cache {
    budget: usize,
    shards: [Mutex<Shard>; SHARDS],
}

/// Threads that want different blocks seldom meet.
const SHARDS: usize = 8;

#[derive(Default)]
struct Shard {
    blocks: HashMap<u64, Slot>,
    clock: VecDeque<u64>,
    bytes: usize,
}

struct Slot {
    block: Arc<[u8]>,
    used: AtomicBool,
}

impl Cache {
    /// An empty cache of `budget` bytes. A block of more than an eighth of that is not kept.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget: budget / SHARDS,
            shards: Default::default(),
        }
    }

    /// The block `key`, made with `make` if it is not there. Two threads may make the same block at once.
    pub(crate) fn get<E>(&self, key: u64, make: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Arc<[u8]>, E> {
        // Keys are offsets of clusters: their low bits are equal, so they are mixed before the shard is chosen.
        let mixed = (key ^ key >> 9).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let shard = usize::try_from(mixed).unwrap_or(0) % SHARDS;
        let Some(shard) = self.shards.get(shard) else {
            return make().map(Arc::from);
        };
        {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = shard.blocks.get(&key) {
                slot.used.store(true, Ordering::Relaxed);
                return Ok(Arc::clone(&slot.block));
            }
        }
        let block: Arc<[u8]> = make()?.into();
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.insert(key, Arc::clone(&block), self.budget);
        Ok(block)
    }
}

impl Shard {
    fn insert(&mut self, key: u64, block: Arc<[u8]>, budget: usize) {
        if block.len() > budget || self.blocks.contains_key(&key) {
            return;
        }
        while self.bytes.saturating_add(block.len()) > budget {
            let Some(oldest) = self.clock.pop_front() else {
                break;
            };
            let again = self
                .blocks
                .get(&oldest)
                .is_some_and(|s| s.used.swap(false, Ordering::Relaxed));
            if again {
                self.clock.push_back(oldest);
            } else if let Some(gone) = self.blocks.remove(&oldest) {
                self.bytes = self.bytes.saturating_sub(gone.block.len());
            }
        }
        self.bytes = self.bytes.saturating_add(block.len());
        self.clock.push_back(key);
        self.blocks.insert(
            key,
            Slot {
                block,
                used: AtomicBool::new(false),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_to_its_budget_and_what_is_used() {
        let cache = Cache::new(SHARDS * 10 * 512);
        let mut made = 0;
        for round in 0..50u64 {
            for key in [0, 512, round * 1024 + 4096] {
                let block = cache
                    .get(key, || {
                        made += 1;
                        Ok::<_, ()>(vec![u8::try_from(key >> 9 & 255).unwrap(); 512])
                    })
                    .unwrap();
                assert_eq!(u64::from(block[0]), key >> 9 & 255);
            }
        }
        assert!(made <= 60, "{made}: the two hot blocks stay");
        for shard in &cache.shards {
            let shard = shard.lock().unwrap();
            assert!(shard.bytes <= 10 * 512);
            assert_eq!(shard.bytes, shard.blocks.len() * 512);
            assert_eq!(shard.clock.len(), shard.blocks.len());
        }
    }

    #[test]
    fn an_error_is_not_kept() {
        let cache = Cache::new(SHARDS * 512);
        assert!(cache.get(1, || Ok::<_, ()>(vec![1; 513])).is_ok());
        assert!(cache.get(1, || Err(())).is_err(), "it was too large");
        assert!(cache.get(1, || Err(())).is_err());
        assert!(cache.get(1, || Ok::<_, ()>(vec![1])).is_ok());
    }
}
