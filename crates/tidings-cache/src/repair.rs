//! Comparing what a cache holds with the members, where values travel: after writes may have been missed, when a node
//! joins, and now and then.
//!
//! Who compares asks a member what each slot adds up to, lists the writes of slots that differ, and fetches the values of
//! those that are later there. Where it may have missed writes itself, it lets go of what the member does not hold and may
//! have forgotten the removal of. Once it has compared with every member, what is left is as good as theirs, and readable
//! again: dated from when the comparison began.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tidings_proto::hlc::{HybridClock, Stamp};
use tidings_proto::id::{SLOTS, Slot, SlotSet};
use tidings_proto::replicate::copy::{
    ANSWER_BYTES_MAX, Answer, Digests, Fetched, ListOf, Listed, Listing, PARTS, Question,
};
use tidings_proto::replicate::{EntryBirth, Held, Sought, Verdict, WriteStamp};
use tidings_proto::time::Tick;

use crate::core::{Core, ShardGuard};
use crate::key::{Key, KeyRef, SHARDS, StoredKey};
use crate::replicate::Merged;
use crate::travel::Arrival;
use crate::undo::Undone;

/// Most entries that are made readable again under one hold of a shard's lock: about 100 us.
const RENEWED_PER_HOLD_MAX: usize = 128;

/// What has to be compared with the members.
#[derive(Debug)]
pub(crate) struct Doubts {
    /// Slots of which writes may have been missed, one bit each.
    pub(crate) slots: AtomicU64,
    /// The floor when slots were compared last.
    pub(crate) floor: AtomicU64,
    /// Held while bits change together with epochs.
    pub(crate) order: Mutex<()>,
    /// Slots that will be doubted soon, for changes of this node's were undone there.
    pub(crate) undone: Undone,
    /// Whether something of the future was met since the last comparison began.
    pub(crate) future: AtomicBool,
}

impl Default for Doubts {
    /// Others may hold what this node has never heard of.
    fn default() -> Self {
        Self {
            slots: AtomicU64::new(SlotSet::ALL.bits()),
            floor: AtomicU64::new(0),
            order: Mutex::default(),
            undone: Undone::default(),
            future: AtomicBool::new(false),
        }
    }
}

/// Slots that are being compared with every member, and what they were like when that began.
#[derive(Clone, Debug)]
pub struct Comparison {
    slots: SlotSet,
    epochs: [u32; SLOTS],
    began: Tick,
    floor: Tick,
}

impl Comparison {
    /// The slots of which writes may have been missed.
    #[must_use]
    pub fn slots(&self) -> SlotSet {
        self.slots
    }
}

/// Which part of a member's list was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Slots.
    pub slots: SlotSet,
    /// Part of the cache, below [`PARTS`].
    pub part: u8,
    /// Where the page before has ended.
    pub after: Option<u64>,
}

/// A value that is later at a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Of which key.
    pub key: Bytes,
    /// Which write, as it was listed.
    pub stamp: WriteStamp,
}

/// A cache whose values travel, as those see it who compare it with other members.
pub trait Replicating: Send + Sync {
    /// Answers a member's question. A change of this life of the node that the member refuses is undone, and its
    /// slots are compared a second later.
    fn answer(&self, question: &Question<'_>) -> Bytes;
    /// Begins a comparison of all slots of which writes may have been missed, or where some were undone a second ago,
    /// if there are any.
    fn begin(&self) -> Option<Comparison>;
    /// Slots that are to be compared with every member, though no writes were missed there: they may hide a difference.
    fn to_be_listed(&self) -> SlotSet;
    /// These were. To be called before the next comparison begins.
    fn listed(&self, slots: SlotSet);
    /// The slots that do not add up to what they do here, or may differ all the same.
    fn differing(&self, digests: &Digests) -> SlotSet;
    /// Compares a page of a member's list. Applies removals; returns the values that are later there. `doubted`
    /// are the member's floors, where writes may have been missed here.
    fn compare(&self, page: Page, listed: &Listed<'_>, doubted: Option<&Digests>) -> Vec<Wanted>;
    /// Stores values of a member's, as far as they are later. Returns how many were.
    fn take(&self, schema: u32, values: &[Fetched<'_>]) -> usize;
    /// A value was listed that the member does not hand out: what is older is let go of, and refused from now on.
    fn lack(&self, wanted: &Wanted);
    /// A member was compared with. Slots whose floors there are of the future are doubted on.
    fn compared(&self, comparison: &Comparison, digests: &Digests);
    /// Every member was: what is left is readable again, but for slots that were fenced meanwhile. Returns whether
    /// that is all, and no member holds anything of the future there, which leaves its slot in doubt until its time
    /// comes or its author has undone it: not to be compared at once again.
    fn end(&self, comparison: &Comparison) -> bool;
}

impl<K: Key, V: Clone + Send + Sync + 'static> Replicating for Core<K, V> {
    fn answer(&self, question: &Question<'_>) -> Bytes {
        match question {
            Question::Digests => Answer::Digests(Box::new(self.digests())).encode(),
            Question::List { slots, part, after } => {
                self.list(Page { slots: *slots, part: *part, after: *after })
            }
            Question::Fetch(keys) => self.fetched(keys),
            Question::Refused { stamp, of } => {
                self.undo(*of, *stamp);
                Answer::Noted.encode()
            }
        }
    }

    fn begin(&self) -> Option<Comparison> {
        let undone = self.doubts.undone.take_due(self.domain.clock().coarse());
        if !undone.is_empty() {
            self.fence_and_tell(undone);
        }
        self.doubts.future.store(false, Ordering::Release);
        let _order = self.doubts.order.lock();
        let floor = self.domain.gate().floor();
        if floor > Tick(self.doubts.floor.load(Ordering::Acquire)) {
            self.doubt(SlotSet::ALL);
        }
        let slots = SlotSet::from_bits(self.doubts.slots.load(Ordering::Acquire));
        let mut epochs = [0; SLOTS];
        Slot::all().for_each(|slot| epochs[slot.index()] = self.epoch(slot));
        let began = self.domain.clock().coarse();
        // What is behind the floor stays there until the floor has passed.
        (!slots.is_empty() && began > floor).then_some(Comparison { slots, epochs, began, floor })
    }

    fn to_be_listed(&self) -> SlotSet {
        self.doubts.undone.listed()
    }

    fn listed(&self, slots: SlotSet) {
        self.doubts.undone.were_listed(slots);
    }

    fn differing(&self, digests: &Digests) -> SlotSet {
        let own = self.digests();
        let differs = |slot: &Slot| own.sums[slot.index()] != digests.sums[slot.index()];
        let slots = Slot::all().filter(differs).collect::<SlotSet>().or(self.doubts.undone.listed());
        self.stats.slots_repaired.add(slots.iter().count() as u64);
        slots
    }

    fn compare(&self, page: Page, listed: &Listed<'_>, doubted: Option<&Digests>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for Listing { stamp, removed, key } in &listed.writes {
            let key = KeyRef::of(self.id, key);
            if key.shard() != usize::from(page.part) || !page.slots.contains(key.slot()) {
                continue;
            }
            let mut shard = self.shard(key);
            let Some(replica) = &shard.replica else { continue };
            if *removed {
                self.merge_compared(shard, key, *stamp, Arrival::Nothing);
            } else if replica.judge_value(key.sought(), *stamp) == Verdict::Newer {
                wanted.push(Wanted { key: key.to_bytes(), stamp: *stamp });
            } else if replica.held(key.sought()).is_none() {
                self.let_go_of_loaded(&mut shard, key);
            }
        }
        if let Some(digests) = doubted {
            self.let_go_of_unlisted(page, listed, digests);
        }
        wanted
    }

    fn take(&self, schema: u32, values: &[Fetched<'_>]) -> usize {
        let mut stored = 0;
        for Fetched { stamp, key, value } in values {
            let arrival = self.arrived(value, schema);
            let key = KeyRef::of(self.id, key);
            let merged = self.merge_compared(self.shard(key), key, *stamp, arrival);
            stored += usize::from(merged == Merged::Stored);
        }
        self.stats.copied.add(stored as u64);
        self.tell_local_events();
        stored
    }

    fn lack(&self, wanted: &Wanted) {
        let key = KeyRef::of(self.id, &wanted.key);
        self.merge_compared(self.shard(key), key, wanted.stamp, Arrival::Nothing);
    }

    fn compared(&self, comparison: &Comparison, digests: &Digests) {
        let (log, wall_ms) = (self.domain.log(), self.domain.clock().wall_ms());
        let floor = |slot: Slot| digests.floors[slot.index()];
        let observed = |slot: &Slot| log.observe_in(*slot, floor(*slot).at, wall_ms).is_ok();
        let slots: SlotSet = comparison.slots.iter().filter(observed).collect();
        for index in 0..SHARDS {
            if let Some(replica) = &mut self.shard_at(index).replica {
                replica.adopt(slots, &digests.floors);
            }
        }
        // Below a floor of the future the next member may hold what this one has forgotten the removal of.
        let future = comparison.slots.without(slots);
        if !future.is_empty() {
            self.doubt_on(future);
        }
    }

    fn end(&self, comparison: &Comparison) -> bool {
        let fenced = |slot: &Slot| self.epoch(*slot) != comparison.epochs[slot.index()];
        let settled: SlotSet = {
            let _order = self.doubts.order.lock();
            self.doubts.floor.fetch_max(comparison.floor.0, Ordering::AcqRel);
            let settled: SlotSet = comparison.slots.iter().filter(|slot| !fenced(slot)).collect();
            self.doubts.slots.fetch_and(!settled.bits(), Ordering::AcqRel);
            self.doubts.undone.compared(settled);
            settled
        };
        // After that: what was stored as doubted until then is found under its shard's lock.
        (0..SHARDS).for_each(|index| self.renew(index, comparison));
        // Of slots that were cleared meanwhile some may have been left out.
        self.doubt(settled.iter().filter(fenced).collect());
        !self.doubts.future.load(Ordering::Acquire)
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Merges what a member holds. Of what is of the future there nobody knows whether it will count: what is held
    /// here is kept, and doubted on in a slot that is doubted anyway.
    fn merge_compared(
        &self,
        mut shard: ShardGuard<'_, V>,
        key: KeyRef<'_>,
        stamp: WriteStamp,
        arrival: Arrival<V>,
    ) -> Merged {
        if self.is_future(stamp.at) {
            self.stats.future.count();
            if self.is_doubted(key.slot()) {
                self.doubt_on(SlotSet::from_iter([key.slot()]));
            }
            return Merged::Future { evicted: false };
        }
        let (merged, displaced) = self.merge(&mut shard, key, stamp, arrival);
        drop(shard);
        drop(displaced);
        merged
    }

    fn is_future(&self, at: Stamp) -> bool {
        HybridClock::default().observe(at, self.domain.clock().wall_ms()).is_err()
    }

    /// Leaves slots in doubt of which a member holds something of the future.
    fn doubt_on(&self, slots: SlotSet) {
        self.doubts.future.store(true, Ordering::Release);
        self.fence_slots(slots);
    }

    fn digests(&self) -> Digests {
        let mut digests = Digests { sums: [0; SLOTS], floors: [WriteStamp::NEVER; SLOTS] };
        for index in 0..SHARDS {
            let shard = self.shard_at(index);
            let Some(replica) = &shard.replica else { continue };
            replica.digest(&mut digests.sums);
            for slot in Slot::all() {
                let floor = &mut digests.floors[slot.index()];
                *floor = replica.floor(slot).max(*floor);
            }
        }
        digests
    }

    fn list(&self, page: Page) -> Bytes {
        let mut list = ListOf::default();
        if usize::from(page.part) >= PARTS {
            return list.finish().encode();
        }
        let shard = self.shard_at(page.part.into());
        for (key, held) in shard.replica.iter().flat_map(|replica| replica.iter()) {
            if page.slots.contains(key.slot()) && page.after.is_none_or(|after| key.hash > after) {
                let removed = matches!(held, Held::Tombstone { .. });
                list.add(key.hash, Listing { stamp: held.stamp(), removed, key: key.bytes });
            }
        }
        list.finish().encode()
    }

    /// Values that were asked for, as many as fit.
    fn fetched(&self, keys: &[&[u8]]) -> Bytes {
        let mut room = ANSWER_BYTES_MAX - 64;
        let mut values: Vec<(WriteStamp, &[u8], BytesMut)> = Vec::new();
        for key in keys {
            let Some((stamp, value)) = self.travelling_of(KeyRef::of(self.id, key)) else { continue };
            let Some(left) = room.checked_sub(key.len() + value.len() + 32) else { break };
            room = left;
            values.push((stamp, key, value));
        }
        let values = values.iter().map(|(stamp, key, value)| Fetched { stamp: *stamp, key, value });
        Answer::Fetch { schema: self.settings.schema, values: values.collect() }.encode()
    }

    /// The last write of a key with its value, as it travels now.
    /// Runs user code: call without any lock.
    fn travelling_of(&self, key: KeyRef<'_>) -> Option<(WriteStamp, BytesMut)> {
        let shard = self.shard(key);
        let Some(Held::Entry { stamp, birth }) = shard.replica.as_ref()?.held(key.sought()) else {
            return None;
        };
        let entry = self.own_entry(key, birth).filter(|entry| !self.is_over(entry.expires))?;
        let tags = shard.tags.as_ref().and_then(|tags| tags.get(key)).cloned();
        drop(shard);
        let left = entry.expires.since(self.domain.clock().coarse());
        let ttl = (entry.expires != Tick::FOREVER).then_some(left);
        let (value, tags) = (entry.into_value()?, tags.unwrap_or_default());
        Some((stamp, self.caught(|| self.travels_as(&value, ttl, &tags))?.ok()?))
    }

    /// Lets go of entries that were doubted, that the member does not hold, and of which it may have forgotten a later
    /// write; of those that were written here since, if they are from before a change that was refused here. Where
    /// that may be of the future, they are doubted on: see [`Replicating::compared`].
    fn let_go_of_unlisted(&self, page: Page, listed: &Listed<'_>, digests: &Digests) {
        let end = listed.end(self.id);
        let judged = |slot: &Slot| !self.is_future(digests.floors[slot.index()].at);
        let slots: SlotSet = page.slots.iter().filter(judged).collect();
        let refused = self.doubts.undone.refused();
        let mut shard = self.shard_at(page.part.into());
        let unlisted = |(key, held): (Sought<'_>, Held)| {
            let Held::Entry { stamp, birth } = held else { return None };
            let key = KeyRef::from(key);
            let within = slots.contains(key.slot())
                && page.after.is_none_or(|after| key.hash > after)
                && end.is_none_or(|end| key.hash <= end);
            let goes = within
                && (!self.is_coherent(key, birth.began, birth.epoch) || stamp <= refused[key.slot().index()])
                && stamp <= digests.floors[key.slot().index()]
                && listed.get(self.id, key.sought()).is_none();
            goes.then(|| key.stored())
        };
        let replica = shard.replica.as_ref();
        let unlisted: Vec<StoredKey> =
            replica.map(|replica| replica.iter().filter_map(unlisted).collect()).unwrap_or_default();
        for key in &unlisted {
            self.let_go(&mut shard, key.borrowed());
        }
        self.stats.let_go.add(unlisted.len() as u64);
    }

    /// Makes the entries of a shard readable that were compared.
    fn renew(&self, index: usize, comparison: &Comparison) {
        let doubted = |key: KeyRef<'_>, birth: EntryBirth| {
            let slot = key.slot();
            comparison.slots.contains(slot)
                && self.epoch(slot) == comparison.epochs[slot.index()]
                && !self.is_coherent(key, birth.began, birth.epoch)
        };
        let keys: Vec<StoredKey> = {
            let shard = self.shard_at(index);
            let all = shard.replica.iter().flat_map(|replica| replica.iter());
            let entries = all.filter_map(|(key, held)| match held {
                Held::Entry { birth, .. } if doubted(key.into(), birth) => Some(KeyRef::from(key).stored()),
                _ => None,
            });
            entries.collect()
        };
        for some in keys.chunks(RENEWED_PER_HOLD_MAX) {
            let mut displaced = Vec::new();
            let mut shard = self.shard_at(index);
            for key in some.iter().map(StoredKey::borrowed) {
                let held = shard.replica.as_ref().and_then(|replica| replica.held(key.sought()));
                let Some(Held::Entry { stamp, birth }) = held else { continue };
                if !doubted(key, birth) {
                    continue;
                }
                match self.own_entry(key, birth) {
                    Some(entry) => {
                        let began = Tick(comparison.began.0.max(shard.mark.0 + 1));
                        let epoch = comparison.epochs[key.slot().index()];
                        displaced.extend(self.store_again(&mut shard, key, stamp, entry, (began, epoch)));
                    }
                    None => {
                        self.let_go(&mut shard, key);
                    }
                }
            }
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    pub(crate) fn as_replicating(self: Arc<Self>) -> Option<Arc<dyn Replicating>> {
        if self.replicates() { Some(self) } else { None }
    }

    /// How many removed keys are remembered.
    pub(crate) fn tombstones(&self) -> usize {
        let of = |index| self.shard_at(index).replica.as_ref().map_or(0, |replica| replica.tombstones());
        (0..SHARDS).map(of).sum()
    }
}

const _: () = assert!(SHARDS == PARTS, "a part of a list is a shard");
