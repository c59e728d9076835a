//! Which of several writes of a key counts where values travel, and what a node remembers of that.
//!
//! The last writer wins: writes of a key have an order, that of their [`WriteStamp`]s, and every node keeps the last one
//! that it has seen, in whatever order they come. So that this holds for what a node does not have, too, it remembers
//! what was removed (a tombstone), and where it forgets a stamp it raises the **floor** of the key's slot: a key that
//! it does not have takes only writes above. To forget costs misses, never an older value.
//!
//! Who may have missed writes compares what it holds with every member ([`copy`]): it takes what is later there, and lets
//! go of what is absent there and not above the floor, for a later write may have been forgotten with it. It raises its
//! own floor to that, or the next member could bring what it has just let go of.

pub mod copy;
mod value;

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::hlc::Stamp;
use crate::id::{Origin, SLOTS, Slot, SlotSet};
use crate::time::Tick;

pub use value::{TAGS_MAX, Travelling, VALUE_BYTES_MAX};

/// Where a write stands among all writes of its key: by its hybrid time, then by who made it. No two writes of one key
/// have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteStamp {
    /// When, by its author's hybrid clock.
    pub at: Stamp,
    /// Whose: [`author`].
    pub author: u64,
}

impl WriteStamp {
    /// Before every write.
    pub const NEVER: Self = Self { at: Stamp(0), author: 0 };

    /// The stamp of a write by this life of a node.
    #[must_use]
    pub fn of(at: Stamp, origin: &Origin) -> Self {
        Self { at, author: author(origin) }
    }

    /// What a slot's digest adds up for a key of this hash.
    fn mixed(self, hash: u64) -> u64 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.at.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.author.to_le_bytes());
        xxh3_64_with_seed(&bytes, hash)
    }
}

/// A node in one of its lives, as stamps name it: two lives may have given the same time, if the wall clock was set back
/// between them.
#[must_use]
pub fn author(origin: &Origin) -> u64 {
    xxh3_64_with_seed(origin.node.as_str().as_bytes(), origin.incarnation.0)
}

/// A key as a replica keeps it.
pub trait ReplicaKey {
    /// Keeps this one.
    fn of(key: Sought<'_>) -> Self;
    /// The key.
    fn sought(&self) -> Sought<'_>;
}

/// A borrowed key with its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought<'a> {
    /// [`crate::hash::key_hash`] of it.
    pub hash: u64,
    /// Its encoding.
    pub bytes: &'a [u8],
}

impl Sought<'_> {
    /// Its class.
    #[must_use]
    pub fn slot(self) -> Slot {
        Slot::of_hash(self.hash)
    }
}

/// Which of a table's entries a stamp is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryBirth {
    /// When it began to count here.
    pub began: Tick,
    /// Its slot's epoch then.
    pub epoch: u32,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Its last write stored a value.
    Entry {
        /// That write.
        stamp: WriteStamp,
        /// Of which entry.
        birth: EntryBirth,
    },
    /// Its last write removed it, or stored what cannot be read here or was not handed out.
    Tombstone {
        /// That write.
        stamp: WriteStamp,
        /// When this node learnt of it.
        made: Tick,
    },
}

impl Held {
    /// The last write.
    #[must_use]
    pub fn stamp(self) -> WriteStamp {
        match self {
            Self::Entry { stamp, .. } | Self::Tombstone { stamp, .. } => stamp,
        }
    }
}

/// How a write compares with what is known of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the last one.
    Newer,
    /// It is the one that is known.
    Same,
    /// A later one is known, or may have been.
    Older,
}

/// How much is remembered of what was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TombstoneBounds {
    /// Most tombstones; of more, the oldest are forgotten.
    pub count: usize,
    /// Most bytes of their keys; beyond that as beyond `count`.
    pub bytes: usize,
    /// For how long one is remembered.
    pub time: Duration,
}

#[derive(Debug)]
struct Place<K> {
    key: K,
    held: Held,
}

/// The stamps of a part of a cache's keys, with a floor for each slot.
#[derive(Debug)]
pub struct Replica<K> {
    places: Vec<Place<K>>,
    by_key: HashTable<u32>,
    /// The place to be looked at next.
    hand: usize,
    floors: Box<[WriteStamp; SLOTS]>,
    bounds: TombstoneBounds,
    tombstones: usize,
    tombstone_bytes: usize,
    /// Tombstones, the oldest first, by hash and stamp. Those that were replaced since are passed over.
    by_age: VecDeque<(u64, WriteStamp)>,
}

impl<K: ReplicaKey> Replica<K> {
    /// One that knows of nothing.
    #[must_use]
    pub fn new(bounds: TombstoneBounds) -> Self {
        Self {
            places: Vec::new(),
            by_key: HashTable::new(),
            hand: 0,
            floors: Box::new([WriteStamp::NEVER; SLOTS]),
            bounds,
            tombstones: 0,
            tombstone_bytes: 0,
            by_age: VecDeque::new(),
        }
    }

    /// How many keys it knows of, removed ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it knows of none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many of them were removed.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.tombstones
    }

    /// The last write in a slot of which nothing is remembered, as far as is known: a key that is absent takes only later
    /// ones.
    #[must_use]
    pub fn floor(&self, slot: Slot) -> WriteStamp {
        self.floors[slot.index()]
    }

    /// What is known of a key.
    #[must_use]
    pub fn held(&self, key: Sought<'_>) -> Option<Held> {
        self.place(key).map(|place| self.places[place].held)
    }

    /// All keys that it knows of.
    pub fn iter(&self) -> impl Iterator<Item = (Sought<'_>, Held)> {
        self.places.iter().map(|place| (place.key.sought(), place.held))
    }

    /// Whether a write is later than what is known of its key.
    #[must_use]
    pub fn judge(&self, key: Sought<'_>, write: WriteStamp) -> Verdict {
        let Some(held) = self.held(key) else {
            return if write > self.floor(key.slot()) { Verdict::Newer } else { Verdict::Older };
        };
        match write.cmp(&held.stamp()) {
            std::cmp::Ordering::Greater => Verdict::Newer,
            std::cmp::Ordering::Equal => Verdict::Same,
            std::cmp::Ordering::Less => Verdict::Older,
        }
    }

    /// Whether a write whose value there is counts: as [`Replica::judge`], and also if it is known as one whose value could
    /// not be had ([`Held::Tombstone`]).
    #[must_use]
    pub fn judge_value(&self, key: Sought<'_>, write: WriteStamp) -> Verdict {
        match (self.judge(key, write), self.held(key)) {
            (Verdict::Same, Some(Held::Tombstone { .. })) => Verdict::Newer,
            (verdict, _) => verdict,
        }
    }

    /// Notes that a write has stored a value. To be judged first.
    pub fn put(&mut self, key: Sought<'_>, stamp: WriteStamp, birth: EntryBirth) {
        self.set(key, Held::Entry { stamp, birth });
    }

    /// Notes that a write has removed a key. To be judged first. The oldest tombstones are forgotten if there are too many.
    pub fn remove(&mut self, key: Sought<'_>, stamp: WriteStamp, now: Tick) {
        self.set(key, Held::Tombstone { stamp, made: now });
        self.by_age.push_back((key.hash, stamp));
        while self.tombstones > self.bounds.count || self.tombstone_bytes > self.bounds.bytes {
            self.forget_oldest();
        }
        self.trim_by_age();
    }

    /// Those that were replaced take no more room than there may be tombstones.
    fn trim_by_age(&mut self) {
        if self.by_age.len() > 2 * self.bounds.count.max(self.tombstones) {
            let mut by_age = std::mem::take(&mut self.by_age);
            by_age.retain(|(hash, stamp)| self.tombstone(*hash, *stamp).is_some());
            self.by_age = by_age;
        }
    }

    /// Forgets tombstones whose time is over.
    pub fn expire(&mut self, now: Tick) {
        while let Some((hash, stamp)) = self.by_age.front().copied() {
            let made = self.tombstone(hash, stamp).map(|place| match self.places[place].held {
                Held::Tombstone { made, .. } => made,
                Held::Entry { .. } => unreachable!("it is a tombstone"),
            });
            match made {
                Some(made) if now.since(made) < self.bounds.time => return,
                _ => self.forget_oldest(),
            }
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((hash, stamp)) = self.by_age.pop_front()
            && let Some(place) = self.tombstone(hash, stamp)
        {
            self.forget_place(place);
        }
    }

    /// Forgets a key, of which the node has no value any more: only later writes are taken then.
    pub fn forget(&mut self, key: Sought<'_>) {
        if let Some(place) = self.place(key) {
            self.forget_place(place);
        }
    }

    /// Forgets a write of a key as if it had never been heard of. Returns whether anything was left of it. If that
    /// was the floor of the key's slot, there is none any more: what was forgotten below is to be asked of the
    /// members.
    pub fn undo(&mut self, key: Sought<'_>, write: WriteStamp) -> bool {
        let place = self.place(key).filter(|place| self.places[*place].held.stamp() == write);
        if let Some(place) = place {
            self.vacate(place);
        }
        self.lower(key.slot(), write) || place.is_some()
    }

    /// As [`Replica::undo`], of a removal of whatever it named.
    pub fn undo_all(&mut self, write: WriteStamp) -> bool {
        let mut any = false;
        for slot in Slot::all() {
            any |= self.lower(slot, write);
        }
        for place in (0..self.places.len()).rev() {
            if matches!(self.places[place].held, Held::Tombstone { stamp, .. } if stamp == write) {
                self.vacate(place);
                any = true;
            }
        }
        any
    }

    fn lower(&mut self, slot: Slot, write: WriteStamp) -> bool {
        let floor = &mut self.floors[slot.index()];
        let is_it = *floor == write && write != WriteStamp::NEVER;
        if is_it {
            *floor = WriteStamp::NEVER;
        }
        is_it
    }

    /// Applies a removal of everything in these slots: what is later stays.
    pub fn clear(&mut self, slots: SlotSet, stamp: WriteStamp) {
        for slot in slots.iter() {
            self.raise(slot, stamp);
        }
        for place in (0..self.places.len()).rev() {
            let Place { key, held } = &self.places[place];
            if slots.contains(key.sought().slot()) && held.stamp() < stamp {
                self.vacate(place);
            }
        }
    }

    /// Looks at some places, and forgets entries that the node does not have any more.
    pub fn probe(&mut self, places: usize, is_there: impl Fn(Sought<'_>) -> bool) {
        // Twice as many as there are see each of them: one that moves may be seen again.
        for _ in 0..places.min(2 * self.places.len()) {
            if self.places.is_empty() {
                return;
            }
            let place = self.hand % self.places.len();
            let Place { key, held } = &self.places[place];
            let gone = matches!(held, Held::Entry { .. } if !is_there(key.sought()));
            // What moves to a place that is freed is the next to be looked at.
            self.hand = place + usize::from(!gone);
            if gone {
                self.forget_place(place);
            }
        }
    }

    /// Adds up what is known of each slot.
    pub fn digest(&self, into: &mut [u64; SLOTS]) {
        for Place { key, held } in &self.places {
            let key = key.sought();
            let sum = &mut into[key.slot().index()];
            *sum = sum.wrapping_add(held.stamp().mixed(key.hash));
        }
    }

    /// Takes over the floors of a member with which slots were compared, where they are higher. The clock has to have
    /// observed them, or what is written next would be below. Tombstones below them say nothing any more.
    pub fn adopt(&mut self, slots: SlotSet, floors: &[WriteStamp; SLOTS]) {
        slots.iter().for_each(|slot| self.raise(slot, floors[slot.index()]));
        for place in (0..self.places.len()).rev() {
            let Place { key, held } = &self.places[place];
            let slot = key.sought().slot();
            let is_below = held.stamp() <= floors[slot.index()] && matches!(held, Held::Tombstone { .. });
            if slots.contains(slot) && is_below {
                self.vacate(place);
            }
        }
    }

    fn raise(&mut self, slot: Slot, to: WriteStamp) {
        let floor = &mut self.floors[slot.index()];
        *floor = to.max(*floor);
    }

    fn place(&self, key: Sought<'_>) -> Option<usize> {
        let place = self.by_key.find(key.hash, |place| self.places[*place as usize].key.sought() == key)?;
        Some(*place as usize)
    }

    fn tombstone(&self, hash: u64, stamp: WriteStamp) -> Option<usize> {
        let is = |place: &u32| {
            let Place { key, held } = &self.places[*place as usize];
            key.sought().hash == hash && held.stamp() == stamp && matches!(held, Held::Tombstone { .. })
        };
        self.by_key.find(hash, is).map(|place| *place as usize)
    }

    fn set(&mut self, key: Sought<'_>, held: Held) {
        if let Some(place) = self.place(key) {
            self.uncount(place);
            self.places[place].held = held;
        } else {
            let place = u32::try_from(self.places.len()).expect("a shard has no room for 2^32 keys");
            self.places.push(Place { key: K::of(key), held });
            let Self { places, by_key, .. } = self;
            by_key.insert_unique(key.hash, place, |place| places[*place as usize].key.sought().hash);
        }
        if let Held::Tombstone { .. } = held {
            self.tombstones += 1;
            self.tombstone_bytes += key.bytes.len();
        }
    }

    fn uncount(&mut self, place: usize) {
        let Place { key, held } = &self.places[place];
        if let Held::Tombstone { .. } = held {
            self.tombstones -= 1;
            self.tombstone_bytes -= key.sought().bytes.len();
        }
    }

    fn forget_place(&mut self, place: usize) {
        let Place { key, held } = &self.places[place];
        let (slot, stamp) = (key.sought().slot(), held.stamp());
        self.raise(slot, stamp);
        self.vacate(place);
    }

    /// Frees a place; the last one moves there.
    fn vacate(&mut self, place: usize) {
        self.uncount(place);
        let hash = self.places[place].key.sought().hash;
        if let Ok(found) = self.by_key.find_entry(hash, |at| *at as usize == place) {
            found.remove();
        }
        self.places.swap_remove(place);
        if let Some(moved) = self.places.get(place) {
            let before = self.places.len() as u32;
            let place_of_moved = self.by_key.find_mut(moved.key.sought().hash, |at| *at == before);
            *place_of_moved.expect("every place has a key that leads there") = place as u32;
        } else if self.places.is_empty() {
            // What a flood has taken is given back.
            (self.places, self.by_key, self.by_age) = Default::default();
        }
    }
}

#[cfg(test)]
#[path = "replicate_tests.rs"]
mod tests;
