//! The keys and values that all caches hold, and fixed random orders of visiting them.

use std::sync::Arc;

use bytes::Bytes;

/// Length of a value, in bytes.
const VALUE_BYTES: usize = 100;

/// Operations of one sample.
pub(crate) const OPERATIONS: usize = 20_000;

/// Resident keys that one sample removes.
const REMOVALS: usize = 4_000;

/// Keys of 24 bytes that are in the cache, others that never are, and the orders in which samples visit them. Entries lie
/// in memory as they were written, so reads have an order of their own: in that of the writes they would find the next
/// entry beside the last one.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) resident: Arc<[String]>,
    pub(crate) absent: Arc<[String]>,
    order: Arc<[u32]>,
    order_of_writes: Arc<[u32]>,
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
        let mut order = || (0..OPERATIONS).map(|_| (random() % count as u64) as u32).collect();
        Self { resident: named('r'), absent: named('a'), order: order(), order_of_writes: order() }
    }

    /// The resident keys that one sample removes, each once.
    pub(crate) fn removed(&self) -> &[String] {
        &self.resident[..REMOVALS.min(self.resident.len())]
    }

    /// The keys of one sample that reads or removes, in a random order; a key may occur more than once.
    pub(crate) fn visit<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = &'a String> {
        self.order.iter().map(|at| &keys[*at as usize])
    }

    /// The resident keys of one sample that writes, in another random order.
    pub(crate) fn written(&self) -> impl Iterator<Item = &String> {
        self.order_of_writes.iter().map(|at| &self.resident[*at as usize])
    }
}

pub(crate) fn value() -> Bytes {
    Bytes::from(vec![b'v'; VALUE_BYTES])
}
