//! The hash that makes slots of keys: fixed, versioned, the same on every node and platform.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::id::Slot;

/// Version of [`key_hash`] and [`CacheId::of_name`]. Nodes of different versions refuse each other.
pub const HASH_VERSION: u8 = 2;

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

/// Spreads the seed over all its bits: XXH3 adds the low ones of a seed to the same bits of a short key, where a first
/// byte would meet the second one. 2^64 divided by the golden ratio, odd (Fibonacci hashing).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

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
    xxh3_64_with_seed(rest, (first << 32 | u64::from(cache.0)).wrapping_mul(SPREAD))
}

/// Slot of an encoded key within its cache.
#[must_use]
pub fn slot_of(cache: CacheId, encoded_key: &[u8]) -> Slot {
    Slot::of_hash(key_hash(cache, encoded_key))
}

/// Hash of an encoded value, by which nodes compare what they hold.
#[must_use]
pub fn value_digest(encoded_value: &[u8]) -> u64 {
    xxh3_64(encoded_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_in_every_release() {
        assert_eq!(CacheId::of_name("users"), CacheId(GOLDEN_CACHE));
        assert_eq!(key_hash(CacheId::of_name("users"), b"key-1"), GOLDEN_KEY);
        assert_eq!(value_digest(b"value"), GOLDEN_VALUE);
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
    fn keys_that_differ_in_their_first_two_bytes_have_hashes_of_their_own() {
        for length in 2..=32 {
            let mut key = vec![0x61; length];
            let mut hashes: Vec<_> = (0..=u16::MAX)
                .map(|head| {
                    key[..2].copy_from_slice(&head.to_le_bytes());
                    key_hash(CacheId(1), &key)
                })
                .collect();
            hashes.sort_unstable();
            hashes.dedup();
            assert_eq!(hashes.len(), 1 << 16, "keys of {length} bytes");
        }
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
    const GOLDEN_VALUE: u64 = 9_787_868_069_444_317_424;
    const GOLDEN_KEY: u64 = 5_467_742_217_218_895_957;
}
