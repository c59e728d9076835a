//! The keys and values that all caches hold, and a fixed random order of visiting them.

use std::sync::Arc;

use bytes::Bytes;

/// Length of a value, in bytes.
const VALUE_BYTES: usize = 100;

/// Operations of one sample.
pub(crate) const OPERATIONS: usize = 20_000;

/// Resident keys that one sample removes.
const REMOVALS: usize = 4_000;

/// Keys of 24 bytes that are in the cache, others that never are, and the order in which a sample visits them.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) resident: Arc<[String]>,
    pub(crate) absent: Arc<[String]>,
    order: Arc<[u32]>,
}

impl Keys {
    pub(crate) fn new(count: usize) -> Self {
        let named = |prefix: char| (0..count).map(|number| format!("{prefix}:{number:022}")).collect();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let order = (0..OPERATIONS).map(|_| (random() % count as u64) as u32).collect();
        Self { resident: named('r'), absent: named('a'), order }
    }

    /// The resident keys that one sample removes, each once.
    pub(crate) fn removed(&self) -> &[String] {
        &self.resident[..REMOVALS.min(self.resident.len())]
    }

    /// The keys of one sample, in a random order; a key may occur more than once.
    pub(crate) fn visit<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = &'a String> {
        self.order.iter().map(|at| &keys[*at as usize])
    }
}

pub(crate) fn value() -> Bytes {
    Bytes::from(vec![b'v'; VALUE_BYTES])
}
