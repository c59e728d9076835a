//! Tags and prefixes that were invalidated lately where values travel, by their stamps: a write from before that comes
//! after one of them is removed as if it had come in their order. Floors do the same for what names everything.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tidings_proto::id::{Slot, SlotSet};
use tidings_proto::replicate::WriteStamp;

use crate::core::Core;
use crate::key::{Key, KeyRef};
use crate::recent::Named;
use crate::tags::Tags;

/// Most invalidations that are remembered: 16 changes of 64 lanes, or 256 of four, about 70 KiB with ordinary prefixes. A
/// write from before an older one is unreadable until it was compared with the members.
const CROSSED_MAX: usize = 1_024;

/// Most bytes of prefixes that are remembered; beyond that as beyond [`CROSSED_MAX`].
const CROSSED_BYTES_MAX: usize = 256 << 10;

#[derive(Debug)]
struct Invalidation {
    named: Named,
    slots: SlotSet,
    stamp: WriteStamp,
}

#[derive(Debug, Default)]
struct Memory {
    recent: VecDeque<Invalidation>,
    bytes: usize,
    /// The latest of all.
    latest: WriteStamp,
    /// The latest of those that were forgotten.
    forgotten: WriteStamp,
}

/// What is compared with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived<'a> {
    pub(crate) slot: Slot,
    /// Its key, if that is a text.
    pub(crate) text: Option<&'a [u8]>,
    pub(crate) tags: &'a Tags,
    pub(crate) write: WriteStamp,
}

/// Invalidations in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Crossed(Mutex<Memory>);

impl Crossed {
    /// Notes an invalidation. With every shard's lock held, so that no write lands unseen by both.
    pub(crate) fn note(&self, named: Named, slots: SlotSet, stamp: WriteStamp) {
        let mut memory = self.0.lock();
        memory.latest = memory.latest.max(stamp);
        memory.bytes += named.bytes();
        memory.recent.push_back(Invalidation { named, slots, stamp });
        while memory.recent.len() > CROSSED_MAX || memory.bytes > CROSSED_BYTES_MAX {
            let Some(oldest) = memory.recent.pop_front() else { break };
            memory.bytes -= oldest.named.bytes();
            memory.forgotten = memory.forgotten.max(oldest.stamp);
        }
    }

    /// The stamp of the removal that a write is of which later ones name. A prefix names every write of its key from before; a
    /// tag names this one, and a later write without it stays.
    pub(crate) fn after(&self, arrived: Arrived<'_>) -> Option<WriteStamp> {
        let memory = self.0.lock();
        if arrived.write > memory.latest {
            return None;
        }
        let names = |one: &&Invalidation| {
            one.stamp > arrived.write
                && one.slots.contains(arrived.slot)
                && one.named.names(arrived.text, arrived.tags)
        };
        let removal = |one: &Invalidation| match one.named {
            Named::Tag(_) => arrived.write,
            Named::Prefix(_) => one.stamp,
        };
        memory.recent.iter().filter(names).map(removal).max()
    }

    /// Whether one that was forgotten may have named a write.
    pub(crate) fn may_have_named(&self, write: WriteStamp) -> bool {
        write < self.0.lock().forgotten
    }

    /// Forgets an invalidation as if it had never been heard of. Returns whether it was known. If it was the latest of
    /// those that were forgotten, the others are taken to be from before what is remembered.
    pub(crate) fn undo(&self, stamp: WriteStamp) -> bool {
        let mut memory = self.0.lock();
        let Memory { recent, bytes, latest, forgotten } = &mut *memory;
        let before = recent.len();
        recent.retain(|one| one.stamp != stamp);
        let was_forgotten = *forgotten == stamp && stamp != WriteStamp::NEVER;
        if was_forgotten {
            *forgotten = recent.front().map_or(WriteStamp::NEVER, |one| one.stamp.min(stamp));
        }
        *bytes = recent.iter().map(|one| one.named.bytes()).sum();
        *latest = recent.iter().map(|one| one.stamp).max().unwrap_or_default();
        was_forgotten || recent.len() < before
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// As of when a peer's write is a removal, for it should have come before an invalidation. Call under its key's shard
    /// lock.
    pub(crate) fn crossed_by(&self, key: KeyRef<'_>, tags: &Tags, write: WriteStamp) -> Option<WriteStamp> {
        self.crossed.after(Arrived { slot: key.slot(), text: self.text(key), tags, write })
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::hash::CacheId;
    use tidings_proto::hlc::Stamp;

    use super::*;
    use crate::tags::TagHash;

    fn at(time: u64) -> WriteStamp {
        WriteStamp { at: Stamp(time), author: 1 }
    }

    fn after(crossed: &Crossed, text: &str, tags: &Tags, time: u64) -> Option<WriteStamp> {
        let (slot, text) = (Slot::of_hash(0), Some(text.as_bytes()));
        crossed.after(Arrived { slot, text, tags, write: at(time) })
    }

    #[test]
    fn a_write_is_named_by_what_is_later_and_of_its_tag_or_prefix() {
        let crossed = Crossed::default();
        let mut tags = Tags::default();
        tags.add(CacheId(1), "t").expect("a short tag");
        let none = Tags::default();
        crossed.note(Named::Tag(TagHash::of(CacheId(1), "t")), SlotSet::ALL, at(20));
        crossed.note(Named::Prefix("ab".into()), SlotSet::ALL, at(30));
        assert_eq!(after(&crossed, "k", &tags, 19), Some(at(19)), "a later one without the tag stays");
        assert_eq!((after(&crossed, "k", &tags, 21), after(&crossed, "k", &none, 19)), (None, None));
        assert_eq!(after(&crossed, "abc", &tags, 19), Some(at(30)), "the latest");
        assert_eq!(after(&crossed, "abc", &none, 31), None);
    }

    #[test]
    fn of_what_is_undone_nothing_is_left() {
        let (crossed, none) = (Crossed::default(), Tags::default());
        crossed.note(Named::Prefix("ab".into()), SlotSet::ALL, at(20));
        crossed.note(Named::Prefix("a".into()), SlotSet::ALL, at(90));
        crossed.note(Named::Prefix("abc".into()), SlotSet::ALL, at(91));
        assert!(crossed.undo(at(90)) && crossed.undo(at(91)) && !crossed.undo(at(91)));
        assert_eq!(
            (after(&crossed, "abc", &none, 19), after(&crossed, "abc", &none, 21)),
            (Some(at(20)), None)
        );
        let memory = crossed.0.lock();
        assert_eq!((memory.latest, memory.bytes), (at(20), 2), "nothing is of the future any more");
    }

    #[test]
    fn what_was_forgotten_and_is_undone_is_of_the_future_no_more() {
        let crossed = Crossed::default();
        let note = |n| crossed.note(Named::Prefix("x".into()), SlotSet::ALL, at(n));
        note(9_000);
        (1..=CROSSED_MAX as u64).for_each(note);
        assert!(crossed.may_have_named(at(8_999)));
        assert!(crossed.undo(at(9_000)));
        assert!(!crossed.may_have_named(at(1)) && crossed.may_have_named(at(0)));
        assert_eq!(crossed.0.lock().latest, at(CROSSED_MAX as u64));
    }

    #[test]
    fn beyond_its_bounds_it_is_said_that_a_write_may_have_been_named() {
        for (count, prefix) in [(CROSSED_MAX, "x".to_owned()), (CROSSED_BYTES_MAX >> 12, "x".repeat(1 << 12))]
        {
            let crossed = Crossed::default();
            let note = |n| crossed.note(Named::Prefix(prefix.as_str().into()), SlotSet::ALL, at(n));
            (1..=count as u64).for_each(note);
            assert!(!crossed.may_have_named(at(0)), "nothing was forgotten");
            note(count as u64 + 1);
            assert!(crossed.may_have_named(at(0)) && !crossed.may_have_named(at(1)));
            let memory = crossed.0.lock();
            assert!(memory.recent.len() <= CROSSED_MAX && memory.bytes <= CROSSED_BYTES_MAX);
        }
    }
}
