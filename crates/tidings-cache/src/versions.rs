//! Versions of entries, for caches whose values have some: kept beside the table, so that entries of others are no
//! larger.

use hashbrown::HashTable;

use crate::key::{KeyRef, StoredKey};

/// Places of the index that are looked at with every entry that has a version, so that it does not grow beyond a third
/// more than what the table holds.
const PROBES: usize = 4;

#[derive(Debug)]
struct Versioned {
    key: StoredKey,
    version: u64,
}

/// Which keys of one shard are stored with which versions.
///
/// Every store and removal under the shard's lock is noted here. What the table displaces by itself is found by looking,
/// a few places at a time: the version of a key that has gone keeps nothing.
#[derive(Debug, Default)]
pub(crate) struct VersionIndex {
    places: Vec<Versioned>,
    by_key: HashTable<u32>,
    /// The place to be looked at next.
    hand: usize,
}

impl VersionIndex {
    /// How many keys it has.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn get(&self, key: KeyRef<'_>) -> Option<u64> {
        let place = self.by_key.find(key.hash, |place| self.places[*place as usize].key.borrowed() == key)?;
        Some(self.places[*place as usize].version)
    }

    pub(crate) fn set(&mut self, key: KeyRef<'_>, version: u64) {
        let Self { places, by_key, .. } = self;
        if let Some(place) = by_key.find(key.hash, |place| places[*place as usize].key.borrowed() == key) {
            places[*place as usize].version = version;
            return;
        }
        let place = u32::try_from(places.len()).expect("a shard has no room for 2^32 entries");
        places.push(Versioned { key: key.stored(), version });
        by_key.insert_unique(key.hash, place, |place| places[*place as usize].key.borrowed().hash);
    }

    pub(crate) fn remove(&mut self, key: KeyRef<'_>) {
        let Self { places, by_key, .. } = self;
        if let Ok(found) = by_key.find_entry(key.hash, |place| places[*place as usize].key.borrowed() == key)
        {
            let (place, _) = found.remove();
            self.vacate(place);
        }
    }

    /// Frees a place that no key leads to any more; the last one moves there.
    fn vacate(&mut self, place: u32) {
        self.places.swap_remove(place as usize);
        if let Some(moved) = self.places.get(place as usize) {
            let before = self.places.len() as u32;
            let place_of_moved = self.by_key.find_mut(moved.key.borrowed().hash, |at| *at == before);
            *place_of_moved.expect("every place has a key that leads there") = place;
        } else if self.places.is_empty() {
            // What a flood has taken is given back.
            *self = Self::default();
        }
    }

    /// Looks at a few places, and forgets the keys that the table does not have any more.
    pub(crate) fn probe(&mut self, is_there: impl Fn(KeyRef<'_>) -> bool) {
        self.probe_some(PROBES, is_there);
    }

    /// As [`VersionIndex::probe`], at so many places.
    pub(crate) fn probe_some(&mut self, places: usize, is_there: impl Fn(KeyRef<'_>) -> bool) {
        // Twice as many as there are see each of them: one that moves may be seen again.
        for _ in 0..places.min(2 * self.places.len()) {
            if self.places.is_empty() {
                return;
            }
            let place = self.hand % self.places.len();
            let key = self.places[place].key.borrowed();
            let hash = key.hash;
            // What moves to a place that is freed is the next to be looked at.
            let is_there = is_there(key);
            self.hand = place + usize::from(is_there);
            if is_there {
                continue;
            }
            if let Ok(found) = self.by_key.find_entry(hash, |at| *at as usize == place) {
                found.remove();
                self.vacate(place as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tidings_proto::hash::CacheId;

    use super::*;
    use crate::key::Encoded;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, u64),
        Remove(u8),
        /// So many places, and the keys below this one are there.
        Probe(usize, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u8..24, any::<u64>()).prop_map(|(key, version)| Step::Set(key, version)),
            2 => (0_u8..24).prop_map(Step::Remove),
            1 => (0_usize..32, 0_u8..24).prop_map(|(places, there)| Step::Probe(places, there)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map_that_forgets_only_what_is_gone(steps in prop::collection::vec(step(), 0..120)) {
            let keys: Vec<_> = (0..24_u8).map(|key| Encoded::new(CacheId(1), &key).unwrap()).collect();
            let number = |key: KeyRef<'_>| keys.iter().position(|known| known.borrowed() == key).unwrap();
            let (mut index, mut model) = (VersionIndex::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Set(key, version) => {
                        index.set(keys[usize::from(key)].borrowed(), version);
                        model.insert(usize::from(key), version);
                    }
                    Step::Remove(key) => {
                        index.remove(keys[usize::from(key)].borrowed());
                        model.remove(&usize::from(key));
                    }
                    Step::Probe(places, there) => {
                        let there = usize::from(there);
                        let before = index.len();
                        index.probe_some(places, |key| number(key) < there);
                        model.retain(|key, _| *key < there || index.get(keys[*key].borrowed()).is_some());
                        prop_assert!(before - index.len() <= places);
                        if places >= 2 * before {
                            prop_assert!(model.keys().all(|key| *key < there), "{model:?}");
                        }
                    }
                }
                prop_assert_eq!(index.len(), model.len());
                for (key, encoded) in keys.iter().enumerate() {
                    prop_assert_eq!(index.get(encoded.borrowed()), model.get(&key).copied());
                }
            }
        }
    }
}
