//! The hash that makes slots of keys: fixed, versioned, the same on every node and platform.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::id::Slot;

/// Version of [`key_hash`] and [`CacheId::of_name`]. Nodes of different versions refuse each other.
pub const HASH_VERSION: u8 = 1;

/// A cache as records name it: 32 bits of the hash of its name.
///
/// Two names that collide are refused when the second one is opened on a node. Across nodes a collision can only
/// evict too much, once in 4 billion pairs of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u32);

impl CacheId {
    /// The id of the cache of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self((xxh3_64(name.as_bytes()) >> 32) as u32)
    }
}

/// Hash of an encoded key within its cache: XXH3-64 of all bytes but the first, seeded with the cache id and that.
///
/// The first byte of a text is its length: a hash of what has just been written in two pieces would wait until both
/// have reached the cache.
#[inline]
#[must_use]
pub fn key_hash(cache: CacheId, encoded_key: &[u8]) -> u64 {
    let (first, rest) = match encoded_key {
        [first, rest @ ..] => (1 + u64::from(*first), rest),
        [] => (0, encoded_key),
    };
    xxh3_64_with_seed(rest, first << 32 | u64::from(cache.0))
}

/// Slot of an encoded key within its cache.
#[must_use]
pub fn slot_of(cache: CacheId, encoded_key: &[u8]) -> Slot {
    Slot::of_hash(key_hash(cache, encoded_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_in_every_release() {
        assert_eq!(CacheId::of_name("users"), CacheId(GOLDEN_CACHE));
        assert_eq!(key_hash(CacheId::of_name("users"), b"key-1"), GOLDEN_KEY);
    }

    #[test]
    fn every_byte_and_the_length_count() {
        let hash = |key: &[u8]| key_hash(CacheId(1), key);
        let key = *b"a key of some length";
        let changed = (0..key.len()).map(|at| {
            let mut other = key;
            other[at] ^= 1;
            hash(&other)
        });
        let shorter = (0..=key.len()).map(|length| hash(&key[..length]));
        let zeros = (1..40).map(|length| hash(&vec![0; length]));
        let hashes: Vec<_> = changed.chain(shorter).chain(zeros).collect();
        let different: std::collections::HashSet<_> = hashes.iter().collect();
        assert_eq!(different.len(), hashes.len());
    }

    #[test]
    fn slots_spread_evenly() {
        let mut counts = [0_u32; crate::id::SLOTS];
        for n in 0..64_000_u32 {
            counts[slot_of(CacheId(1), &n.to_le_bytes()).index()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }

    const GOLDEN_CACHE: u32 = 1_290_314_327;
    const GOLDEN_KEY: u64 = 3_732_164_078_207_982_100;
}
