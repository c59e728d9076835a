//! What the auditor needs of a cache: its keys in the order of their hashes, and what is held under one of them.

use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use equivalent::Equivalent;
use serde::Serialize;
use tidings_proto::audit::Held;
use tidings_proto::codec;
use tidings_proto::hash::value_digest;

use crate::builder::CacheBuilder;
use crate::core::{Core, Verdict};
use crate::entry::Entry;
use crate::key::{Key, KeyRef, StoredKey};

/// Most keys of a slice: 48 bytes each, six mebibytes. The table is walked through once for each slice, so that a sweep
/// of a million entries walks nine times, about 0.1 us an entry.
const SLICE_KEYS_MAX: usize = 1 << 17;

/// Most bytes of the keys of a slice, which stay in memory with it when their entries go.
const SLICE_BYTES_MAX: usize = 16 << 20;

/// What a key without a value is compared as.
const ABSENT: u64 = 0;

pub(crate) type Digester<V> = Arc<dyn Fn(&V) -> Option<u64> + Send + Sync>;

/// Keys of a cache whose hashes follow each other, in that order.
#[derive(Debug, Default)]
pub struct Slice {
    keys: Vec<StoredKey>,
    next: Option<u64>,
}

impl Slice {
    /// How many it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Where the next slice begins; `None` if this is the last one.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.next
    }

    /// Its keys from a place on, with their hashes.
    pub fn keys(&self, from: usize) -> impl Iterator<Item = (u64, &[u8])> {
        let rest = self.keys.get(from..).unwrap_or_default();
        rest.iter().map(|key| key.borrowed()).map(|key| (key.hash, key.bytes))
    }
}

/// A slice that is being filled.
struct Filling {
    keys: Vec<StoredKey>,
    bytes: usize,
    /// The last hash that belongs to it.
    last: u64,
}

impl Filling {
    fn add(&mut self, key: StoredKey) {
        self.bytes += key.borrowed().bytes.len();
        self.keys.push(key);
        if self.keys.len() > SLICE_KEYS_MAX || self.bytes > SLICE_BYTES_MAX {
            self.halve();
        }
    }

    /// Leaves the upper half to the next slice.
    fn halve(&mut self) {
        let middle = (self.keys.len() - 1) / 2;
        let (_, last, _) = self.keys.select_nth_unstable_by_key(middle, |key| key.borrowed().hash);
        let last = last.borrowed().hash;
        self.last = last;
        self.keys.retain(|key| key.borrowed().hash <= last);
        self.bytes = self.keys.iter().map(|key| key.borrowed().bytes.len()).sum();
    }

    fn finish(mut self) -> Slice {
        self.keys.sort_unstable_by_key(|key| key.borrowed().hash);
        Slice { keys: self.keys, next: self.last.checked_add(1) }
    }
}

/// Finds the entry whose key has this hash. Of two with one hash either: what matters is looked at by its whole key.
struct ByHash(u64);

impl Hash for ByHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

impl Equivalent<StoredKey> for ByHash {
    fn equivalent(&self, key: &StoredKey) -> bool {
        self.0 == key.borrowed().hash
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Whether entries here should be what other nodes hold.
    pub(crate) fn is_audited(&self) -> bool {
        self.digester.is_some() && self.travels() && self.settings.invalidator.acts_on_remote()
    }

    /// The keys whose hashes are `from` and higher, as many as a slice holds. Walks through the whole table.
    pub(crate) fn slice(&self, from: u64) -> Slice {
        // As many as fit, if keys are spread evenly; with room for those that come meanwhile.
        let share = SLICE_KEYS_MAX as f64 * 0.9 / self.entries.entry_count().max(1) as f64;
        let last = from.saturating_add((share * u64::MAX as f64) as u64);
        let mut filling = Filling { keys: Vec::new(), bytes: 0, last };
        for (stored, _) in self.entries.iter() {
            let key = stored.key();
            if (from..=filling.last).contains(&key.hash) {
                filling.add(key.stored());
            }
        }
        filling.finish()
    }

    pub(crate) fn held(&self, key: KeyRef<'_>) -> Option<Held> {
        self.held_as(key, &key)
    }

    pub(crate) fn held_by_hash(&self, hash: u64) -> Option<Held> {
        self.held_as(KeyRef { hash, bytes: &[] }, &ByHash(hash))
    }

    /// What a read would be answered with. No access, and no request.
    fn held_as<Q>(&self, key: KeyRef<'_>, sought: &Q) -> Option<Held>
    where
        Q: Hash + Equivalent<StoredKey>,
    {
        let digester = self.digester.as_ref()?;
        // The order of reads is that of every hit.
        let fresh_until = self.domain.gate().fresh_until();
        let hit = |entry: &Entry<V>| {
            matches!(self.judge(key, entry, fresh_until), Verdict::Hit).then(|| entry.clone())
        };
        let entry = self.entries.look(sought, hit)??;
        let began = entry.began;
        let value = if entry.is_absence() {
            ABSENT
        } else {
            let value = entry.into_value()?;
            let digest = catch_unwind(AssertUnwindSafe(|| digester(&value)));
            digest.inspect_err(|_| self.stats.panics.count()).ok()??
        };
        Some(Held::new(value, began, self.domain.clock().coarse()))
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> CacheBuilder<K, V> {
    /// As [`CacheBuilder::audited`], comparing by a digest that is computed so: values that are equal need the same one
    /// on every node, in every process. `None`: the value is not compared. Called outside every lock.
    pub fn audited_by(mut self, digest: impl Fn(&V) -> Option<u64> + Send + Sync + 'static) -> Self {
        self.functions.digester = Some(Arc::new(digest));
        self.settings.audited = true;
        self
    }
}

impl<K: Key, V: Serialize + Clone + Send + Sync + 'static> CacheBuilder<K, V> {
    /// Lets the auditor compare this cache's values with those of other nodes that have it audited too, by a hash of
    /// their encoding. Default: they are not compared.
    ///
    /// Only for a cache whose values are the same on every node, and encode the same: a map whose order is random does
    /// not, for which there is [`CacheBuilder::audited_by`]. What a loader makes of the time, of its node or of chance
    /// would be reported as inconsistent. A sweep reads every entry once on each node that holds it, which counts as
    /// popularity where the table has to choose whom to displace, and as nothing else.
    pub fn audited(self) -> Self {
        self.audited_by(|value| Some(value_digest(&codec::encode(value).ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::hash::CacheId;

    use super::*;
    use crate::domain::Domain;

    fn filling(last: u64) -> Filling {
        Filling { keys: Vec::new(), bytes: 0, last }
    }

    fn key(number: usize) -> StoredKey {
        KeyRef::of(CacheId(1), &number.to_le_bytes()).stored()
    }

    #[test]
    fn what_does_not_fit_into_a_slice_is_left_to_the_next() {
        let mut whole = filling(u64::MAX);
        let all = SLICE_KEYS_MAX + SLICE_KEYS_MAX / 3;
        let mut left = 0;
        for number in 0..all {
            let key = key(number);
            if key.borrowed().hash <= whole.last {
                whole.add(key);
            } else {
                left += 1;
            }
        }
        let slice = whole.finish();
        assert!((SLICE_KEYS_MAX / 3..=SLICE_KEYS_MAX).contains(&slice.len()), "{}", slice.len());
        let next = slice.next().expect("there are more");
        let hashes: Vec<u64> = slice.keys(0).map(|(hash, _)| hash).collect();
        assert!(hashes.is_sorted() && hashes.iter().all(|hash| *hash < next));
        let above = (0..all).filter(|number| key(*number).borrowed().hash >= next).count();
        assert_eq!(slice.len() + above, all, "none is left out, {left} came after the halving");
    }

    #[test]
    fn long_keys_do_not_make_a_slice_larger_than_it_may_be() {
        let mut slice = filling(u64::MAX);
        for number in 0..5_000_usize {
            let mut bytes = vec![0; 4_096];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            let key = KeyRef::of(CacheId(1), &bytes).stored();
            if key.borrowed().hash <= slice.last {
                slice.add(key);
            }
        }
        let slice = slice.finish();
        let bytes: usize = slice.keys(0).map(|(_, key)| key.len()).sum();
        assert!(bytes <= SLICE_BYTES_MAX && slice.len() > 1_000, "{bytes} bytes of {}", slice.len());
    }

    #[test]
    fn slices_are_all_of_a_cache() {
        let domain = Domain::standalone();
        let cache = CacheBuilder::<u64, u64>::new(&domain, "c").max_capacity(1 << 20).open().unwrap();
        let all = 200_000;
        (0..all).for_each(|key| drop(cache.insert(key, key).unwrap()));
        cache.settle();
        let (mut from, mut slices, mut keys) = (Some(0), 0, Vec::new());
        while let Some(hash) = from {
            let slice = cache.core.slice(hash);
            keys.extend(slice.keys(0).map(|(_, key)| codec::decode::<u64>(key).unwrap()));
            from = slice.next();
            slices += 1;
        }
        keys.sort_unstable();
        assert_eq!(keys, (0..all).collect::<Vec<_>>());
        assert_eq!(slices, 2);
    }
}
