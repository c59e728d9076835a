//! Idempotency keys of a topic, as long as its window reaches.

use std::collections::{HashMap, VecDeque};

use xxhash_rust::xxh3::xxh3_128;

use crate::id::Timestamp;

/// Most keys of a topic. They are remembered by their hash, some 80 bytes each. Beyond that events with a key are
/// refused: to forget one early would store an event twice.
pub(super) const KEYS_MAX: usize = 1 << 18;

#[derive(Debug, Default)]
pub(super) struct Keys {
    ids: HashMap<u128, u64>,
    ages: VecDeque<(Timestamp, u128)>,
}

impl Keys {
    /// The event that was published with a key.
    pub(super) fn find(&self, key: &str) -> Option<u64> {
        self.ids.get(&xxh3_128(key.as_bytes())).copied()
    }

    pub(super) fn insert(&mut self, key: &str, id: u64, time: Timestamp) {
        let hash = xxh3_128(key.as_bytes());
        if self.ids.insert(hash, id).is_none() {
            self.ages.push_back((time, hash));
        }
    }

    /// Forgets keys that were used before a moment.
    pub(super) fn forget(&mut self, before: Timestamp) {
        while let Some((_, hash)) = self.ages.pop_front_if(|(time, _)| *time < before) {
            self.ids.remove(&hash);
        }
    }

    pub(super) fn is_full_with(&self, more: usize) -> bool {
        self.ids.len() + more > KEYS_MAX
    }
}
