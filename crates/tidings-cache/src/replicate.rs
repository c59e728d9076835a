//! Caches whose values travel: what this node writes and what peers write is merged by the last writer.
//!
//! The stamps of a shard's keys are kept beside the table, so that entries of other caches are no larger and hits know
//! nothing of them. What the table displaces by itself is found by looking; until then its stamp refuses what is older
//! just as well. An entry that a fence has made unreadable keeps its stamp and its value: whether it counts again is
//! decided by comparing with the members ([`crate::repair`]).
//!
//! Loads are silent and local, as in every cache: what they bring has no stamp, gives way to whatever a peer writes, and
//! is not stored where there is a value that travelled.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{Slot, SlotSet};
use tidings_proto::receipt::Positions;
use tidings_proto::replicate::{EntryBirth, Held, Sought, TombstoneBounds, Verdict, WriteStamp};
use tidings_proto::time::Tick;

use crate::builder::Mode;
use crate::core::{Birth, Core, SWEEPING, ShardGuard};
use crate::entry::Entry;
use crate::key::{Encoded, Key, KeyRef, StoredKey};
use crate::open_writes::OpenWrite;
use crate::receipt::Written;
use crate::tags::Tags;
use crate::travel::Arrival;
use crate::write::{Change, Options, Subject, When, WriteError};

/// Places of a shard's replica that are looked at with every write, so that it does not grow beyond a third more than what
/// the table holds.
const PROBES: usize = 4;

/// Most tombstones of a shard, of 64: 65,536 of a cache, about 6 MiB with short keys.
const TOMBSTONES_MAX: usize = 1_024;

/// Most bytes of their keys: 4 MiB of a cache.
const TOMBSTONE_BYTES_MAX: usize = 64 << 10;

/// How much a shard remembers of what was removed.
pub(crate) fn bounds(time: Duration) -> TombstoneBounds {
    TombstoneBounds { count: TOMBSTONES_MAX, bytes: TOMBSTONE_BYTES_MAX, time }
}

impl Birth {
    pub(crate) fn of_entry(self) -> EntryBirth {
        EntryBirth { began: self.began, epoch: self.epoch }
    }
}

/// What became of a peer's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// Its value is stored.
    Stored,
    /// The key is gone; whether a readable copy went with it.
    Removed { evicted: bool },
    /// A later one is known.
    Outdated,
    /// A later invalidation of a tag or prefix names it: the key is gone; whether a readable copy of an earlier value went.
    Crossed { evicted: bool },
    /// Its time is of the future: it is not merged, and the key is gone; whether a readable copy went with it.
    Future { evicted: bool },
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Whether values travel.
    #[inline]
    pub(crate) fn replicates(&self) -> bool {
        self.settings.mode == Mode::Replicate
    }

    /// The options of a change: where values travel, versions decide nothing.
    #[inline]
    pub(crate) fn options_for<'o>(&self, options: &'o Options) -> Cow<'o, Options> {
        if self.replicates() && options.version.is_some() {
            Cow::Owned(Options { version: None, ..options.clone() })
        } else {
            Cow::Borrowed(options)
        }
    }

    /// Notes a write of this node's, under its key's shard lock: with the entry that it stored, or without one.
    #[inline]
    pub(crate) fn wrote(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        at: Stamp,
        stored: Option<Birth>,
        now: Tick,
    ) {
        let Some(replica) = &shard.replica else { return };
        let stamp = WriteStamp { at, author: self.domain.author() };
        // A write-through that lost its flight removes as of when it began.
        if stored.is_some() || replica.judge(key.sought(), stamp) == Verdict::Newer {
            self.note_write(shard, key, stamp, stored, now);
        }
    }

    /// Removes a key of which a write-through that lost its flight has changed the truth. Where values travel, what is known
    /// to be later than its beginning stays. Call under its shard lock.
    pub(crate) fn remove_lost(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>, began: Option<Stamp>) {
        if let (Some(at), Some(replica)) = (began, &shard.replica)
            && replica.judge(key.sought(), WriteStamp { at, author: self.domain.author() }) != Verdict::Newer
        {
            return self.let_go_of_loaded(shard, key);
        }
        shard.end(key);
        self.evict(key);
    }

    pub(crate) fn note_write(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        stamp: WriteStamp,
        stored: Option<Birth>,
        now: Tick,
    ) {
        let Some(replica) = &mut shard.replica else { return };
        match stored {
            Some(birth) => replica.put(key.sought(), stamp, birth.of_entry()),
            None => replica.remove(key.sought(), stamp, now),
        }
        replica.probe(PROBES, |key| self.entries.contains_key(&KeyRef::from(key)));
    }

    /// Merges a peer's write, under its key's shard lock. One of the future evicts. What it was stored in place of is to be
    /// dropped without that lock.
    pub(crate) fn merge(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        write: WriteStamp,
        arrival: Arrival<V>,
    ) -> (Merged, Option<Entry<V>>) {
        let wall_ms = self.domain.clock().wall_ms();
        if self.domain.log().observe_in(key.slot(), write.at, wall_ms).is_err() {
            return (Merged::Future { evicted: self.let_go_of_refused(shard, key) }, None);
        }
        let Some(replica) = &shard.replica else { return (Merged::Outdated, None) };
        let verdict = match &arrival {
            Arrival::Value { .. } => replica.judge_value(key.sought(), write),
            Arrival::Nothing => replica.judge(key.sought(), write),
        };
        if verdict != Verdict::Newer {
            self.let_go_of_loaded(shard, key);
            return (Merged::Outdated, None);
        }
        let now = self.domain.clock().coarse();
        if let Arrival::Value { tags, .. } = &arrival
            && let Some(removed) = self.crossed_by(key, tags, write)
        {
            shard.end(key);
            let evicted = self.evict(key);
            self.note_write(shard, key, removed, None, now);
            return (Merged::Crossed { evicted }, None);
        }
        match arrival {
            Arrival::Value { value, tags, ttl } => {
                let age = Duration::from_millis(wall_ms.saturating_sub(write.at.wall_ms()));
                let birth = self.birth_of_merged(shard, key.slot(), now.before(age), ttl);
                let displaced = self.put(shard, key, value, birth);
                self.set_tags(shard, key, tags);
                shard.unversion(key);
                self.note_write(shard, key, write, Some(birth), now);
                (Merged::Stored, displaced.entry)
            }
            Arrival::Nothing => {
                shard.end(key);
                let evicted = self.evict(key);
                self.note_write(shard, key, write, None, now);
                (Merged::Removed { evicted }, None)
            }
        }
    }

    /// How a peer's value is stored that was written at a moment, by the wall clocks of both: members that are not
    /// heard may have written since. In a slot that is doubted, a later write may have been missed, and it is
    /// unreadable until that was compared.
    fn birth_of_merged(
        &self,
        shard: &ShardGuard<'_, V>,
        slot: Slot,
        written: Tick,
        ttl: Option<Duration>,
    ) -> Birth {
        let began = shard.after_mark(written);
        // Before it is asked whether the slot is doubted: who sees the epoch of a fence sees that it doubts.
        let epoch = self.epoch(slot);
        if began <= self.domain.gate().floor() {
            self.doubt(SlotSet::from_iter([slot]));
        }
        let epoch = if self.is_doubted(slot) { epoch.wrapping_sub(1) & !SWEEPING } else { epoch };
        Birth { began, epoch, ttl }
    }

    /// Removes what was loaded of a key, and what is being loaded, for a write of it may be later than that: it has no stamp
    /// that says. Call under its shard lock.
    pub(crate) fn let_go_of_loaded(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>) {
        let held = shard.replica.as_ref().and_then(|replica| replica.held(key.sought()));
        if matches!(held, Some(Held::Entry { .. })) {
            shard.end_flights(key);
        } else {
            shard.end(key);
            self.evict(key);
        }
    }

    /// Removes a key of which somebody has written what may not be merged. Call under its shard lock. Returns whether there
    /// was a readable copy.
    pub(crate) fn let_go(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>) -> bool {
        shard.end(key);
        let evicted = self.evict(key);
        if let Some(replica) = &mut shard.replica
            && matches!(replica.held(key.sought()), Some(Held::Entry { .. }))
        {
            replica.forget(key.sought());
        }
        evicted
    }

    /// Removes a key of which a write is refused, for it is of the future. The one before is known on, as one whose
    /// value is not had: if the refused one is undone, it comes back from whoever holds it. Call under its shard lock.
    /// Returns whether there was a readable copy.
    fn let_go_of_refused(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>) -> bool {
        shard.end(key);
        let evicted = self.evict(key);
        if let Some(replica) = &mut shard.replica
            && let Some(Held::Entry { stamp, .. }) = replica.held(key.sought())
        {
            let now = self.domain.clock().coarse();
            replica.remove(key.sought(), stamp, now);
            self.doubts.undone.note_refused(key.slot(), now);
        }
        evicted
    }

    /// Whether what a load brings may be stored: not where there is a value that travelled, readable
    /// or not. Call under the key's shard lock.
    pub(crate) fn may_fill(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>) -> bool {
        let Some(replica) = &mut shard.replica else { return true };
        let Some(Held::Entry { birth, .. }) = replica.held(key.sought()) else { return true };
        let is_it = |entry: &Entry<V>| entry.birth() == birth && !self.is_over(entry.expires);
        let there = self.entries.look(&key, is_it).unwrap_or(false);
        if !there {
            replica.forget(key.sought());
        }
        !there
    }

    /// Whether an unreadable entry is kept, for it has travelled and may be readable again. Call under its shard lock.
    pub(crate) fn is_kept(&self, shard: &ShardGuard<'_, V>, key: KeyRef<'_>, birth: EntryBirth) -> bool {
        let held = shard.replica.as_ref().and_then(|replica| replica.held(key.sought()));
        matches!(held, Some(Held::Entry { birth: known, .. }) if known == birth)
    }

    /// Makes several changes one by one, for each has a value and a stamp of its own. Every key and value is judged
    /// before any is changed, and so is whether this node makes changes: one that begins to leave meanwhile waits for
    /// all of them.
    pub(crate) fn change_each(
        &self,
        changes: impl IntoIterator<Item = (K, Change<V>)>,
        operation: Operation,
        options: &Options,
    ) -> Result<Written<'_>, WriteError> {
        // Announced before it is judged: a node that leaves either waits for it or refuses it.
        let _announced = OpenWrite::of_changes(&self.domain);
        self.may_change(options.leave())?;
        let mut all = Vec::new();
        for (key, change) in changes {
            let encoded = Encoded::new(self.id, &key)?;
            let subject = Subject { key: encoded.borrowed(), typed: Some(&key) };
            let tags = self.tags_after(&subject, options, &change)?;
            self.travelling(&change, options, &tags)?;
            all.push((key, encoded, change));
        }
        let options = &Options { ends_write: true, ..options.clone() };
        let (mut positions, mut kind) = (Positions::default(), None);
        for (key, encoded, change) in all {
            let subject = Subject { key: encoded.borrowed(), typed: Some(&key) };
            let outcome = self.change(subject, operation, options, When::Always, change)?;
            if let Some(written) = outcome.written {
                positions.merge(&written.positions);
                kind = Some(kind.map_or(written.kind, |kind| written.kind.min(kind)));
            }
        }
        let none = if operation == Operation::Insert { EventKind::Updated } else { EventKind::Deleted };
        Ok(self.written(kind.unwrap_or(none), positions))
    }

    /// Slots have to be compared with the members. Before their epochs are raised.
    #[inline]
    pub(crate) fn doubt(&self, slots: SlotSet) {
        if self.replicates() {
            self.doubts.slots.fetch_or(slots.bits(), Ordering::AcqRel);
        }
    }

    /// Whether writes of a slot may have been missed.
    pub(crate) fn is_doubted(&self, slot: Slot) -> bool {
        let slots = SlotSet::from_bits(self.doubts.slots.load(Ordering::Acquire));
        slots.contains(slot) || self.domain.gate().floor().0 > self.doubts.floor.load(Ordering::Acquire)
    }

    /// Forgets tombstones that are too old, and the stamps of what the table has let go, at some places of a shard.
    pub(crate) fn reclaim_stamps(&self, shard: &mut ShardGuard<'_, V>, places: usize) {
        if let Some(replica) = &mut shard.replica {
            replica.expire(self.domain.clock().coarse());
            replica.probe(places, |key| self.entries.contains_key(&KeyRef::from(key)));
        }
    }
}

impl<'a> From<Sought<'a>> for KeyRef<'a> {
    fn from(key: Sought<'a>) -> Self {
        Self { hash: key.hash, bytes: key.bytes }
    }
}

/// A key of which the table has an entry that outlives a change without keys.
pub(crate) struct Rescued<V> {
    pub(crate) key: StoredKey,
    pub(crate) stamp: WriteStamp,
    pub(crate) entry: Entry<V>,
    pub(crate) tags: Tags,
    /// Else it may be again, and is kept as it was.
    pub(crate) readable: bool,
}
