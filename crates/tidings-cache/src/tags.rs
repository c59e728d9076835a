//! Tags: what they may be, and which entries have them.
//!
//! A tag is remembered by its 64-bit hash alone. Two tags of a cache that have the same, once in 10¹⁹ pairs, are one
//! tag to it: too much is evicted then, never too little.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;
use tidings_proto::hash::{CacheId, key_hash};
use tidings_proto::id::{Slot, SlotSet};

use crate::key::{KeyRef, StoredKey};

/// Most tags of one entry: it costs the index 16 bytes and a place in a tree for each.
pub const TAGS_PER_ENTRY_MAX: usize = 16;

/// Longest tag, in bytes: names of tenants, groups and tables fit, and its record stays a small one.
pub const TAG_BYTES_MAX: usize = 256;

/// Places of the index that are looked at with every entry that is tagged. Two would keep it from growing beyond twice
/// what the table holds; four, beyond a third more.
const PROBES: usize = 4;

/// An entry cannot have these tags.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TagError {
    /// There are too many. Use one that stands for several.
    #[error("more than {TAGS_PER_ENTRY_MAX} tags of one entry")]
    TooMany,
    /// One is too long, in bytes. Use a shorter one, such as its hash.
    #[error("a tag of {0} bytes exceeds {TAG_BYTES_MAX}")]
    TooLong(usize),
    /// One is empty. Leave it out.
    #[error("an empty tag")]
    Empty,
    /// Its key cannot be read back from how it encodes, so that what its tags are cannot be computed. Use a key that is no
    /// untagged and no internally tagged enum.
    #[error("a key that cannot be read back has no tags")]
    Key,
}

/// A tag, as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TagHash(u64);

impl TagHash {
    pub(crate) fn of(cache: CacheId, tag: &str) -> Self {
        Self(key_hash(cache, tag.as_bytes()))
    }

    pub(crate) fn judged(cache: CacheId, tag: &str) -> Result<Self, TagError> {
        match tag.len() {
            0 => Err(TagError::Empty),
            1..=TAG_BYTES_MAX => Ok(Self::of(cache, tag)),
            length => Err(TagError::TooLong(length)),
        }
    }
}

/// The tags of one entry, none twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags(SmallVec<[TagHash; 2]>);

impl Tags {
    /// Their hashes, as they travel.
    pub(crate) fn hashes(&self) -> SmallVec<[u64; 2]> {
        self.0.iter().map(|tag| tag.0).collect()
    }

    /// Tags that have travelled.
    pub(crate) fn of_hashes(hashes: &[u64]) -> Self {
        let mut tags = Self::default();
        for hash in hashes.iter().take(TAGS_PER_ENTRY_MAX).map(|hash| TagHash(*hash)) {
            if !tags.contains(hash) {
                tags.0.push(hash);
            }
        }
        tags
    }

    /// Adds one.
    pub(crate) fn add(&mut self, cache: CacheId, tag: &str) -> Result<(), TagError> {
        let hash = TagHash::judged(cache, tag)?;
        if !self.contains(hash) {
            if self.0.len() == TAGS_PER_ENTRY_MAX {
                return Err(TagError::TooMany);
            }
            self.0.push(hash);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, tag: TagHash) -> bool {
        self.0.contains(&tag)
    }
}

/// What a loader has brought: a value with its tags and its version.
#[derive(Clone, Debug)]
pub struct Loaded<V> {
    /// The value.
    pub value: V,
    /// Its tags, besides those that are computed: see [`TAGS_PER_ENTRY_MAX`] and [`TAG_BYTES_MAX`].
    pub tags: Vec<String>,
    /// Its version, where values have some: see [`crate::Cache::get_or_load_versioned`].
    pub version: Option<u64>,
}

impl<V> Loaded<V> {
    /// A value without tags and version.
    #[must_use]
    pub fn new(value: V) -> Self {
        Self { value, tags: Vec::new(), version: None }
    }

    /// With one more tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// With its version.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = Some(version);
        self
    }
}

/// Where to look for the keys of a tag next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagPlace(Slot, u32);

impl TagPlace {
    /// Where all of them are still to come.
    pub(crate) fn first() -> Self {
        Self(Slot::of_hash(0), 0)
    }
}

/// Computes an entry's tags.
pub(crate) type Tagger<K, V> = Arc<dyn Fn(&K, &V, &mut Tags) -> Result<(), TagError> + Send + Sync>;

#[derive(Debug)]
struct Tagged {
    key: StoredKey,
    tags: Tags,
}

/// Which keys of one shard have which tags.
///
/// What the cache changes, it changes here under the shard's lock. What the table displaces by itself is found by
/// looking, a few places at a time, so that the table needs no listener and an index that is slightly too large is all
/// that it costs: to act on a key that has gone does nothing.
#[derive(Debug, Default)]
pub(crate) struct TagIndex {
    places: Vec<Option<Tagged>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    /// By slot, so that what a lane names is found without a look at what others do.
    by_tag: BTreeSet<(TagHash, Slot, u32)>,
    /// The place to be looked at next.
    hand: usize,
}

impl TagIndex {
    /// How many keys it has.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Gives a key these tags, instead of those that it had.
    pub(crate) fn set(&mut self, key: KeyRef<'_>, tags: Tags) {
        self.remove(key);
        if tags.is_empty() {
            return;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("a shard has no room for 2^32 entries")
        });
        self.by_tag.extend(tags.0.iter().map(|tag| (*tag, key.slot(), place)));
        self.places[place as usize] = Some(Tagged { key: key.stored(), tags });
        let places = &self.places;
        self.by_key.insert_unique(key.hash, place, |place| hash_at(places, *place));
    }

    /// The tags of a key.
    pub(crate) fn get(&self, key: KeyRef<'_>) -> Option<&Tags> {
        let tagged = |place: &u32| self.places[*place as usize].as_ref();
        let place =
            self.by_key.find(key.hash, |place| tagged(place).is_some_and(|it| it.key.borrowed() == key))?;
        tagged(place).map(|tagged| &tagged.tags)
    }

    /// Forgets a key. Costs one check where there is none at all.
    #[inline]
    pub(crate) fn remove(&mut self, key: KeyRef<'_>) {
        if self.by_key.is_empty() {
            return;
        }
        let Self { places, by_key, .. } = self;
        let is_it =
            |place: &u32| places[*place as usize].as_ref().is_some_and(|tagged| tagged.key.borrowed() == key);
        if let Ok(found) = by_key.find_entry(key.hash, is_it) {
            let (place, _) = found.remove();
            self.vacate(place);
        }
    }

    fn vacate(&mut self, place: u32) {
        let Some(tagged) = self.places[place as usize].take() else { return };
        let slot = tagged.key.borrowed().slot();
        for tag in &tagged.tags.0 {
            self.by_tag.remove(&(*tag, slot, place));
        }
        self.free.push(place);
        if self.by_key.is_empty() {
            // What a flood has taken is given back.
            *self = Self::default();
        }
    }

    /// Some keys with a tag in these slots, from one on; and where to go on, if there may be more. Keys in other
    /// slots cost nothing, however many they are.
    pub(crate) fn keys_of(
        &self,
        tag: TagHash,
        from: TagPlace,
        slots: SlotSet,
        most: usize,
    ) -> (Vec<StoredKey>, Option<TagPlace>) {
        let (mut keys, mut from) = (Vec::new(), Some(from));
        let last = Slot::of_hash(u64::MAX);
        while let Some(TagPlace(slot, place)) = from.take() {
            for (_, slot, place) in self.by_tag.range((tag, slot, place)..=(tag, last, u32::MAX)) {
                if !slots.contains(*slot) {
                    from = slots.iter().find(|next| next > slot).map(|next| TagPlace(next, 0));
                    break;
                }
                if keys.len() == most {
                    return (keys, Some(TagPlace(*slot, *place)));
                }
                let tagged = self.places[*place as usize].as_ref();
                keys.extend(tagged.map(|tagged| tagged.key.borrowed().stored()));
            }
        }
        (keys, None)
    }

    /// Looks at a few places, and forgets the keys that the table does not have any more.
    pub(crate) fn probe(&mut self, is_there: impl Fn(KeyRef<'_>) -> bool) {
        self.probe_some(PROBES, is_there);
    }

    /// As [`TagIndex::probe`], at so many places.
    pub(crate) fn probe_some(&mut self, places: usize, is_there: impl Fn(KeyRef<'_>) -> bool) {
        for _ in 0..places.min(self.places.len()) {
            if self.places.is_empty() {
                return;
            }
            let place = self.hand % self.places.len();
            self.hand = place + 1;
            let Some(tagged) = &self.places[place] else { continue };
            let key = tagged.key.borrowed();
            if !is_there(key) {
                let found = self.by_key.find_entry(key.hash, |at| *at as usize == place);
                if let Ok(found) = found {
                    let (place, _) = found.remove();
                    self.vacate(place);
                }
            }
        }
    }
}

fn hash_at(places: &[Option<Tagged>], place: u32) -> u64 {
    places[place as usize].as_ref().map_or(0, |tagged| tagged.key.borrowed().hash)
}

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
