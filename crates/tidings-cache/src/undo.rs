//! A change of this node's that members refuse, for its time is of the future: it is undone here, and a second later
//! its slots are compared with the members, as after a gap. So it is gone, and what it has replaced or removed here
//! comes back from whoever holds it; or it comes back itself, from those that have accepted it. Who has refused it
//! compares, too, where that has evicted something.

use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::id::{SLOTS, Slot, SlotSet};
use tidings_proto::replicate::WriteStamp;
use tidings_proto::replicate::copy::Changed;
use tidings_proto::time::Tick;

use crate::core::Core;
use crate::key::{Key, KeyRef};
use crate::topic::Told;

/// How long after something was undone its slot is compared: the other members have refused it by then, too, and what
/// they have accepted has come. Not more often either, for a slot is unreadable meanwhile.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How far ahead at most the time of a refused change is waited for: nobody hears of it later than that.
const AHEAD_MAX: Duration = Duration::from_secs(3_600);

/// Slots that are to be compared, a bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    /// Where writes may have been missed.
    missed: SlotSet,
    /// Those that may hide a difference: what a tag has removed goes by the stamp of what it removed, and what was
    /// evicted by a refused write by its own.
    listed: SlotSet,
}

impl Slots {
    fn add(&mut self, other: Self) {
        self.missed = self.missed.or(other.missed);
        self.listed = self.listed.or(other.listed);
    }

    fn is_empty(self) -> bool {
        self.missed.or(self.listed).is_empty()
    }
}

#[derive(Debug)]
struct Waiting {
    /// Compared when their time has come.
    next: Slots,
    due: Tick,
    /// Noted since, and compared a second after those.
    later: Slots,
    /// Slots that are compared key by key, whatever they add up to.
    listed: SlotSet,
    /// The latest change without keys that was refused here, by slot: who hears of it after its time has come accepts
    /// it.
    refused: Box<[WriteStamp; SLOTS]>,
    /// Where that may happen, and from when on it does not any more.
    to_come: (SlotSet, Tick),
}

impl Default for Waiting {
    fn default() -> Self {
        let (next, later, listed, due) = Default::default();
        let refused = Box::new([WriteStamp::NEVER; SLOTS]);
        Self { next, due, later, listed, refused, to_come: (SlotSet::default(), Tick(0)) }
    }
}

/// Where something was undone, or refused.
#[derive(Debug, Default)]
pub(crate) struct Undone(Mutex<Waiting>);

impl Undone {
    /// A refused write has evicted something.
    pub(crate) fn note_refused(&self, slot: Slot, now: Tick) {
        self.note(Slots { listed: SlotSet::from_iter([slot]), ..Slots::default() }, now);
    }

    /// A change of whatever is in these slots was refused, whose time is so far ahead. Then members may hold it that
    /// were not told of it before.
    pub(crate) fn note_refused_whole(
        &self,
        slots: SlotSet,
        refused: WriteStamp,
        (now, ahead): (Tick, Duration),
    ) {
        let mut waiting = self.0.lock();
        for slot in slots.iter() {
            let latest = &mut waiting.refused[slot.index()];
            *latest = refused.max(*latest);
        }
        let (all, from) = waiting.to_come;
        let due = now.after(ahead.min(AHEAD_MAX) + LOOK_AFTER);
        waiting.to_come = (all.or(slots), if all.is_empty() { due } else { due.max(from) });
    }

    /// The latest change without keys that was refused, by slot. What is written until its time comes is earlier.
    pub(crate) fn refused(&self) -> [WriteStamp; SLOTS] {
        *self.0.lock().refused
    }

    fn note(&self, noted: Slots, now: Tick) {
        let mut waiting = self.0.lock();
        if waiting.next.is_empty() {
            waiting.due = now.after(LOOK_AFTER);
            waiting.next = noted;
        } else {
            waiting.later.add(noted);
        }
    }

    /// Takes the slots whose time has come, each after at least a second, as far as writes may have been missed there.
    /// The others are among those that are listed.
    pub(crate) fn take_due(&self, now: Tick) -> SlotSet {
        let mut waiting = self.0.lock();
        let come =
            if now < waiting.to_come.1 { SlotSet::default() } else { std::mem::take(&mut waiting.to_come.0) };
        if waiting.next.is_empty() || now < waiting.due {
            return come;
        }
        waiting.due = now.after(LOOK_AFTER);
        let later = std::mem::take(&mut waiting.later);
        let due = std::mem::replace(&mut waiting.next, later);
        waiting.listed = waiting.listed.or(due.listed);
        due.missed.or(come)
    }

    /// The slots that are compared key by key.
    pub(crate) fn listed(&self) -> SlotSet {
        self.0.lock().listed
    }

    /// These were compared with every member, key by key.
    pub(crate) fn were_listed(&self, slots: SlotSet) {
        let mut waiting = self.0.lock();
        waiting.listed = waiting.listed.without(slots);
    }

    /// These were compared with every member, as after writes were missed.
    pub(crate) fn compared(&self, slots: SlotSet) {
        self.were_listed(slots);
        let mut waiting = self.0.lock();
        for slot in slots.without(waiting.to_come.0).iter() {
            waiting.refused[slot.index()] = WriteStamp::NEVER;
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Undoes a change that a member has refused. Of one that is not of this life nothing is undone. Where nothing is
    /// left of it, its slots are compared all the same: others may have let go of more since.
    pub(crate) fn undo(&self, of: Changed<'_>, refused: WriteStamp) {
        if refused.author != self.domain.author() || self.is_closed() {
            return;
        }
        let (undone, slots) = match of {
            Changed::Key(key) => {
                let key = KeyRef::of(self.id, key);
                (self.undo_key(key, refused), SlotSet::from_iter([key.slot()]))
            }
            Changed::Tag(_) | Changed::Prefix(_) | Changed::All => (self.undo_whole(refused), SlotSet::ALL),
        };
        if undone {
            self.stats.undone.count();
        }
        self.doubts.undone.note(Slots { missed: slots, listed: slots }, self.domain.clock().coarse());
    }

    fn undo_key(&self, key: KeyRef<'_>, refused: WriteStamp) -> bool {
        let partition = if self.topic.is_active() { self.partition(key, None) } else { None };
        let mut shard = self.shard(key);
        let Some(replica) = &mut shard.replica else { return false };
        let is_last = replica.held(key.sought()).is_some_and(|held| held.stamp() == refused);
        let undone = replica.undo(key.sought(), refused);
        if !is_last {
            return undone;
        }
        // A load may have brought something since it was removed: what others hold of it is not known yet.
        shard.end(key);
        let evicted = self.evict(key);
        let told = partition.filter(|_| evicted).map(|partition| {
            let wall_ms = self.domain.clock().wall_ms();
            let told =
                Told::here(EventKind::Invalidated, Operation::Invalidate, self.domain.origin(), wall_ms);
            self.stats.delivered.count();
            self.topic.tell_key(partition, key, told)
        });
        drop(shard);
        if let Some(told) = told {
            told.wake();
        }
        true
    }

    fn undo_whole(&self, refused: WriteStamp) -> bool {
        let mut shards = self.all_shards();
        let mut undone = self.crossed.undo(refused);
        for replica in shards.iter_mut().filter_map(|shard| shard.replica.as_mut()) {
            undone |= replica.undo_all(refused);
        }
        undone
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::hlc::Stamp;

    use super::*;

    fn slots(index: u64) -> SlotSet {
        SlotSet::from_iter([Slot::of_hash(index << 58)])
    }

    #[test]
    fn a_slot_is_compared_once_it_has_waited_for_a_second_and_not_more_often() {
        let undone = Undone::default();
        let at = |ms| Tick(1).after(Duration::from_millis(ms));
        let note = |index, ms| undone.note(Slots { missed: slots(index), ..Slots::default() }, at(ms));
        assert_eq!(undone.take_due(at(0)), SlotSet::default());
        note(1, 0);
        note(2, 900);
        note(3, 950);
        assert_eq!(undone.take_due(at(999)), SlotSet::default());
        assert_eq!(undone.take_due(at(1_000)), slots(1));
        assert_eq!(undone.take_due(at(1_900)), SlotSet::default());
        assert_eq!(undone.take_due(at(2_000)), slots(2).or(slots(3)));
        assert_eq!(undone.take_due(at(9_000)), SlotSet::default());
        note(4, 9_000);
        assert_eq!((undone.take_due(at(9_500)), undone.take_due(at(10_000))), (SlotSet::default(), slots(4)));
        undone.note_refused(Slot::of_hash(5 << 58), at(20_000));
        assert_eq!((undone.take_due(at(20_999)), undone.listed()), (SlotSet::default(), SlotSet::default()));
        assert_eq!(
            (undone.take_due(at(21_000)), undone.listed()),
            (SlotSet::default(), slots(5)),
            "but not missed"
        );
    }

    #[test]
    fn where_a_change_without_keys_was_refused_it_is_compared_once_its_time_has_come() {
        let (undone, slot) = (Undone::default(), Slot::of_hash(6 << 58));
        let at = |ms| Tick(1).after(Duration::from_millis(ms));
        let refused = WriteStamp { at: Stamp(9), author: 1 };
        undone.note_refused_whole(slots(6), refused, (at(0), Duration::from_secs(2)));
        assert_eq!(undone.take_due(at(2_999)), SlotSet::default());
        undone.compared(slots(6));
        assert_eq!((undone.refused()[slot.index()], undone.take_due(at(3_000))), (refused, slots(6)));
        undone.compared(slots(6));
        assert_eq!(
            (undone.refused()[slot.index()], undone.take_due(at(9_000))),
            (WriteStamp::NEVER, SlotSet::default())
        );
    }
}
