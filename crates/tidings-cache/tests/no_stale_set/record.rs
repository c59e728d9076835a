//! The system of record, and what is told of the readers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{KEYS, TAGS};

/// The truth, and what must be visible of it.
pub(crate) struct Record {
    versions: Vec<AtomicU64>,
    /// Versions whose invalidation has returned.
    settled: Vec<AtomicU64>,
}

impl Record {
    pub(crate) fn new() -> Self {
        let zeros = || (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        Self { versions: zeros(), settled: zeros() }
    }

    /// What the system of record answers now.
    pub(crate) fn load(&self, key: usize) -> u64 {
        self.versions[key].load(Ordering::SeqCst)
    }

    pub(crate) fn write(&self, key: usize) -> u64 {
        self.versions[key].fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn settle(&self, key: usize, version: u64) {
        self.settled[key].fetch_max(version, Ordering::SeqCst);
    }

    /// The keys with its tag.
    pub(crate) fn keys_like(&self, key: usize) -> Vec<usize> {
        (0..KEYS).filter(|other| other % TAGS == key % TAGS).collect()
    }

    pub(crate) fn bound(&self, key: usize) -> u64 {
        self.settled[key].load(Ordering::SeqCst)
    }
}

/// Xorshift: quick, and the same for one seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }
}

#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) reads: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) enough: AtomicBool,
}

impl Tally {
    pub(crate) fn judge_absent(&self, bound: u64, now: u64) {
        let was_absent = (bound..=now).any(is_absent);
        self.stale.fetch_add(u64::from(!was_absent), Ordering::Relaxed);
    }

    pub(crate) fn judge(&self, bound: u64, version: u64) {
        self.stale.fetch_add(u64::from(version < bound), Ordering::Relaxed);
    }
}

/// Whether a key has no value at this version, for who asks so.
pub(crate) fn is_absent(version: u64) -> bool {
    version.is_multiple_of(5)
}
