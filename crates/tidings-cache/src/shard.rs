//! What one of a cache's shard locks guards: the flights of its keys, which of them were stored lately, and the tags of
//! their entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tidings_proto::replicate::Replica;
use tidings_proto::time::Tick;

use crate::builder::{Mode, Settings};
use crate::clock::Clock;
use crate::flight::FlightTable;
use crate::key::{KeyRef, StoredKey};
use crate::leader::Waiting;
use crate::notes::Notes;
use crate::replica::Changes;
use crate::replicate;
use crate::tags::TagIndex;
use crate::uncertain::Windows;
use crate::versions::VersionIndex;

/// Places for keys that a shard remembers as stored, and how many keys share one: the 64 shards of a cache know up to
/// 4,096 hot keys for 16 KiB.
const PLACES: usize = 16;
const KEYS_PER_PLACE: usize = 4;

/// Marks of keys that were stored and not removed since, so that an insert of a hot key needs no look-up to know that
/// it displaces something. Of two keys, one in 2⁴¹ has the mark and place of the other: its insert may then be called
/// an update.
#[derive(Debug, Default)]
struct Lately([[u32; KEYS_PER_PLACE]; PLACES]);

/// Where no key is.
const NOTHING: u32 = 0;

impl Lately {
    /// Where a key may stand, and its mark there. Of bits that do not make the shard.
    fn of(&mut self, hash: u64) -> (&mut [u32; KEYS_PER_PLACE], u32) {
        (&mut self.0[(hash >> 6) as usize % PLACES], (hash >> 32) as u32 | 1)
    }

    /// Notes a key that is not noted; the oldest in its place has to go.
    fn note(&mut self, hash: u64) {
        let (place, mark) = self.of(hash);
        if place[0] != NOTHING {
            place.copy_within(..KEYS_PER_PLACE - 1, 1);
        }
        place[0] = mark;
    }

    fn knows(&mut self, hash: u64) -> bool {
        let (place, mark) = self.of(hash);
        place.contains(&mark)
    }

    /// Returns whether it was known.
    fn forget(&mut self, hash: u64) -> bool {
        let (place, mark) = self.of(hash);
        let Some(at) = place.iter().position(|known| *known == mark) else { return false };
        place.copy_within(..at, 1);
        place[0] = NOTHING;
        true
    }
}

/// The state behind a shard's lock.
#[derive(Debug)]
pub(crate) struct Shard<V> {
    pub(crate) flights: FlightTable<Arc<Waiting<V>>>,
    lately: Lately,
    /// The [`Room`] in which they were noted.
    room: Room,
    /// When keys changed, where loads read a replica that lags.
    pub(crate) changes: Option<Box<Changes>>,
    /// Of keys and slots whose truth is uncertain; nothing while there are none.
    pub(crate) windows: Option<Box<Windows>>,
    /// Keys whose loaders are not to be asked for a while.
    pauses: Option<Box<Notes>>,
    /// Keys whose entries have tags; nothing before the first.
    pub(crate) tags: Option<Box<TagIndex>>,
    /// Versions of entries; nothing before the first.
    pub(crate) versions: Option<Box<VersionIndex>>,
    /// The last writes of keys, where values travel.
    pub(crate) replica: Option<Box<Replica<StoredKey>>>,
    /// The moment of the newest invalidation of a tag or prefix.
    pub(crate) mark: Tick,
}

impl<V> Shard<V> {
    pub(crate) fn new(settings: &Settings, clock: &Clock) -> Self {
        let lag = Some(settings.replica_lag).filter(|lag| !lag.is_zero());
        Self {
            flights: FlightTable::default(),
            lately: Lately::default(),
            room: Room::default(),
            changes: lag.map(|lag| Box::new(Changes::new(clock.clone(), lag))),
            pauses: settings.loads.pauses().then(|| Box::new(Notes::new(settings.loads.retry_after))),
            windows: None,
            tags: None,
            versions: None,
            replica: (settings.mode == Mode::Replicate)
                .then(|| Box::new(Replica::new(replicate::bounds(settings.tombstone_ttl)))),
            mark: Tick::NEVER,
        }
    }

    /// Ends every flight of a key, before it is removed. From now on it is not known to be stored.
    #[inline]
    pub(crate) fn end(&mut self, key: KeyRef<'_>) {
        self.end_flights(key);
        self.untag(key);
        self.unversion(key);
        self.lately.forget(key.hash);
    }

    /// Ends every flight of a key that was changed, and leaves its entry.
    #[inline]
    pub(crate) fn end_flights(&mut self, key: KeyRef<'_>) {
        self.flights.end(key);
        self.note_change(key);
    }

    /// Ends every flight of a key, before it is stored. Returns whether it is known to have been stored in this room and
    /// not removed since.
    #[inline]
    pub(crate) fn end_for_store(&mut self, key: KeyRef<'_>, room: Option<Room>) -> bool {
        self.end_flights(key);
        room == Some(self.room) && self.lately.knows(key.hash)
    }

    #[inline]
    fn note_change(&mut self, key: KeyRef<'_>) {
        if let Some(changes) = &mut self.changes {
            changes.note(key.hash);
        }
    }

    /// Forgets the tags of a key whose entry goes.
    #[inline]
    pub(crate) fn untag(&mut self, key: KeyRef<'_>) {
        if let Some(tags) = &mut self.tags {
            tags.remove(key);
        }
    }

    /// The version of a key's entry, if it has one.
    #[inline]
    pub(crate) fn version(&self, key: KeyRef<'_>) -> Option<u64> {
        self.versions.as_ref()?.get(key)
    }

    /// Whether a change leaves a key's entry, which has seen it.
    #[inline]
    pub(crate) fn has_seen(&self, key: KeyRef<'_>, change: Option<u64>) -> bool {
        change.is_some_and(|change| self.version(key) >= Some(change))
    }

    /// Forgets the version of a key whose entry goes, or is replaced by one without.
    #[inline]
    pub(crate) fn unversion(&mut self, key: KeyRef<'_>) {
        if let Some(versions) = &mut self.versions {
            versions.remove(key);
        }
    }

    /// When something begins that begins now: after every tag and prefix that was invalidated.
    #[inline]
    pub(crate) fn after_mark(&self, now: Tick) -> Tick {
        now.max(Tick(self.mark.0 + 1))
    }

    /// Notes the moment of an invalidation of a tag or prefix.
    pub(crate) fn note_mark(&mut self, at: Tick) {
        self.mark = self.mark.max(at);
    }

    /// Notes that a key was stored.
    #[inline]
    pub(crate) fn stored(&mut self, key: KeyRef<'_>, room: Room) {
        if self.room != room {
            self.forget_stored();
            self.room = room;
        }
        self.lately.note(key.hash);
    }

    /// Leaves a key's loader alone for a while, where the cache does so at all. The one that was left alone first is
    /// asked again for want of room.
    pub(crate) fn pause(&mut self, key: KeyRef<'_>, now: Tick) {
        if let Some(pauses) = &mut self.pauses {
            pauses.note(key.hash, now);
        }
    }

    pub(crate) fn is_paused(&self, key: KeyRef<'_>, now: Tick) -> bool {
        self.pauses.as_ref().is_some_and(|pauses| pauses.holds(key.hash, now))
    }

    /// Forgets what was stored: entries may have become unreadable.
    pub(crate) fn forget_stored(&mut self) {
        self.lately = Lately::default();
    }
}

/// A time during which the table had room, so that moka displaced nothing by itself. Each has a number of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room(u32);

/// Entries that a table must have room for beyond those that moka has counted: it counts what was written since in
/// five rounds of at most 384 (`WRITE_LOG_CH_SIZE`, `DEFAULT_MAX_LOG_SYNC_REPEATS`) before it displaces anything.
const ROOM_ENTRIES: u64 = 4_096;

/// Keeps watch over a table's room.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    number: AtomicU32,
    full: AtomicBool,
}

impl Rooms {
    /// The room that there is, if there is any, for a table that counts so many entries.
    #[inline]
    pub(crate) fn of(&self, entries: u64, capacity: u64) -> Option<Room> {
        let number = self.number.load(Ordering::Acquire);
        if entries.saturating_add(ROOM_ENTRIES) > capacity {
            // Once per time without room, and before anybody can find some again.
            if !self.full.load(Ordering::Acquire) {
                self.number.fetch_add(1, Ordering::AcqRel);
                self.full.store(true, Ordering::Release);
            }
            return None;
        }
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Release);
        }
        Some(Room(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_from_its_store_to_its_end() {
        let mut lately = Lately::default();
        for hash in [0, u64::MAX, 1 << 6, 1 << 33] {
            assert!(!lately.forget(hash), "nothing is known at first");
            lately.note(hash);
            assert!(lately.forget(hash) && !lately.forget(hash));
        }
    }

    #[test]
    fn the_oldest_key_of_a_full_place_is_forgotten() {
        let mut lately = Lately::default();
        let keys: [u64; 5] = std::array::from_fn(|key| (key as u64) << 33);
        keys.iter().for_each(|key| lately.note(*key));
        assert_eq!(keys.map(|key| lately.forget(key)), [false, true, true, true, true]);
    }

    #[test]
    fn a_time_without_room_ends_the_room_before_it() {
        let rooms = Rooms::default();
        let before = rooms.of(0, 10_000);
        assert!(before.is_some() && before == rooms.of(10_000 - ROOM_ENTRIES, 10_000));
        assert_eq!(rooms.of(10_000 - ROOM_ENTRIES + 1, 10_000), None);
        assert_eq!(rooms.of(10_000, 10_000), None);
        let after = rooms.of(0, 10_000);
        assert!(after.is_some() && after != before, "{after:?}");
    }
}
