//! Tags and prefixes that were invalidated lately: what a load that began before may not store, and what a hit may not
//! be answered with while the entries of a prefix are still being looked for.
//!
//! Their order among loads and changes is that of the beginnings of these. An invalidation has a moment of its own,
//! later than the beginning of everything before it; what begins after it begins later than that moment, by a
//! nanosecond if the coarse clock has not moved on. So entries need no further mark.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tidings_proto::id::{Slot, SlotSet};
use tidings_proto::time::Tick;

use crate::tags::{TagHash, Tags};

/// Most invalidations that are remembered: 16 changes of 64 lanes, or 256 of four, about 50 KiB with ordinary
/// prefixes. What began before an older one is not stored, whatever its tags and key are.
const RECENT_MAX: usize = 1_024;

/// Most bytes of prefixes that are remembered; beyond that as beyond [`RECENT_MAX`].
const RECENT_BYTES_MAX: usize = 256 << 10;

/// Most prefixes that hits are compared with. One more fences its slots instead.
const SWEEPS_MAX: usize = 64;

/// What was invalidated.
#[derive(Clone, Debug)]
pub(crate) enum Named {
    Tag(TagHash),
    Prefix(Arc<str>),
}

impl Named {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Tag(_) => 0,
            Self::Prefix(prefix) => prefix.len(),
        }
    }

    /// Whether it names an entry with these tags, under a key of this text, if that is one.
    pub(crate) fn names(&self, text: Option<&[u8]>, tags: &Tags) -> bool {
        match self {
            Self::Tag(tag) => tags.contains(*tag),
            Self::Prefix(prefix) => text.is_some_and(|text| text.starts_with(prefix.as_bytes())),
        }
    }
}

/// What is known of an entry that a flight wants to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) slot: Slot,
    /// Its key, if that is a text.
    pub(crate) text: Option<&'a [u8]>,
    pub(crate) tags: &'a Tags,
    /// When its flight began.
    pub(crate) began: Tick,
}

#[derive(Debug)]
struct Recent {
    named: Named,
    slots: SlotSet,
    at: Tick,
}

impl Recent {
    fn names(&self, candidate: Candidate<'_>) -> bool {
        let Candidate { slot, text, tags, began } = candidate;
        began <= self.at && self.slots.contains(slot) && self.named.names(text, tags)
    }
}

#[derive(Debug, Default)]
struct Memory {
    recent: VecDeque<Recent>,
    bytes: usize,
    newest: Tick,
    /// The moment of the newest one that was forgotten.
    forgotten: Tick,
}

/// Invalidations in their order.
#[derive(Debug, Default)]
pub(crate) struct Recents(Mutex<Memory>);

impl Recents {
    /// Notes an invalidation. Returns its moment.
    pub(crate) fn note(&self, named: Named, slots: SlotSet, now: Tick) -> Tick {
        let mut memory = self.0.lock();
        // What began after the one before may have begun a nanosecond after it.
        let at = now.max(Tick(memory.newest.0 + 1));
        memory.newest = at;
        memory.bytes += named.bytes();
        memory.recent.push_back(Recent { named, slots, at });
        while memory.recent.len() > RECENT_MAX || memory.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = memory.recent.pop_front() else { break };
            memory.bytes -= oldest.named.bytes();
            memory.forgotten = oldest.at;
        }
        at
    }

    /// Whether one that came after its beginning named an entry, or may have.
    pub(crate) fn name(&self, candidate: Candidate<'_>) -> bool {
        let memory = self.0.lock();
        candidate.began <= memory.forgotten || memory.recent.iter().any(|recent| recent.names(candidate))
    }
}

/// A prefix whose entries are, or were lately, looked for.
#[derive(Debug)]
struct Sweep {
    number: u64,
    prefix: Arc<str>,
    slots: SlotSet,
    at: Tick,
    /// When the table had been walked through.
    walked: Option<Tick>,
}

#[derive(Debug, Default)]
struct Swept {
    sweeps: Vec<Sweep>,
    next: u64,
}

/// Prefixes that hits are compared with.
///
/// One stays for a while after the table was walked through, because a reader may have taken its entry out of the
/// table before. When it looks at last whether prefixes are being swept, its answer is good if it says yes; if the
/// sweep is over by then, so much time has passed that the entry is too old for the freshness that the reader had read
/// before.
#[derive(Debug, Default)]
pub(crate) struct Sweeps(RwLock<Swept>);

impl Sweeps {
    /// Begins one, with what marks its slots. Returns whether there was room for it.
    pub(crate) fn begin(&self, prefix: Arc<str>, slots: SlotSet, at: Tick, mark: impl FnOnce()) -> bool {
        let mut swept = self.0.write();
        if swept.sweeps.len() == SWEEPS_MAX {
            return false;
        }
        let number = swept.next;
        swept.next += 1;
        swept.sweeps.push(Sweep { number, prefix, slots, at, walked: None });
        mark();
        true
    }

    /// Whether an entry under a key of this text is one of those that are looked for.
    pub(crate) fn name(&self, slot: Slot, text: &[u8], began: Tick) -> bool {
        self.0.read().sweeps.iter().any(|sweep| {
            began <= sweep.at && sweep.slots.contains(slot) && text.starts_with(sweep.prefix.as_bytes())
        })
    }

    /// Number of the next one.
    pub(crate) fn next(&self) -> u64 {
        self.0.read().next
    }

    /// Notes that the table was walked through for all before this number.
    pub(crate) fn walked(&self, before: u64, now: Tick) {
        for sweep in self.0.write().sweeps.iter_mut().filter(|sweep| sweep.number < before) {
            sweep.walked.get_or_insert(now);
        }
    }

    /// Ends those that were walked for so long ago, with what unmarks slots that none is left for.
    pub(crate) fn retire(&self, now: Tick, after: Duration, unmark: impl FnOnce(SlotSet)) {
        if self.0.read().sweeps.is_empty() {
            return;
        }
        let mut swept = self.0.write();
        swept.sweeps.retain(|sweep| sweep.walked.is_none_or(|walked| now.since(walked) < after));
        let in_use = |slot: &Slot| swept.sweeps.iter().any(|sweep| sweep.slots.contains(*slot));
        unmark(Slot::all().filter(|slot| !in_use(slot)).collect());
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::hash::CacheId;

    use super::*;

    fn tagged(tag: &str) -> Tags {
        let mut tags = Tags::default();
        tags.add(CacheId(1), tag).expect("a short tag");
        tags
    }

    fn candidate<'a>(text: &'a str, tags: &'a Tags, began: Tick) -> Candidate<'a> {
        Candidate { slot: Slot::of_hash(0), text: Some(text.as_bytes()), tags, began }
    }

    #[test]
    fn what_began_before_is_named_and_what_began_after_is_not() {
        let recents = Recents::default();
        let (tags, none) = (tagged("t"), Tags::default());
        let named = Named::Tag(TagHash::of(CacheId(1), "t"));
        let first = recents.note(named.clone(), SlotSet::ALL, Tick(10));
        assert!(recents.name(candidate("k", &tags, Tick(10))), "begun at the same reading of the clock");
        assert!(!recents.name(candidate("k", &tags, Tick(first.0 + 1))));
        assert!(!recents.name(candidate("k", &none, Tick(10))));
        // The clock stands still, and the order remains.
        let second = recents.note(named, SlotSet::ALL, Tick(10));
        assert!(recents.name(candidate("k", &tags, Tick(first.0 + 1))));
        assert!(!recents.name(candidate("k", &tags, Tick(second.0 + 1))));
        let prefix = recents.note(Named::Prefix("ab".into()), SlotSet::ALL, Tick(20));
        assert!(
            recents.name(candidate("abc", &none, prefix)) && !recents.name(candidate("a", &none, prefix))
        );
    }

    #[test]
    fn slots_of_other_lanes_are_not_named() {
        let recents = Recents::default();
        let others: SlotSet = Slot::all().filter(|slot| slot.index() > 0).collect();
        recents.note(Named::Prefix("".into()), others, Tick(10));
        assert!(!recents.name(candidate("k", &Tags::default(), Tick(1))));
    }

    #[test]
    fn beyond_its_bounds_whatever_began_before_is_named() {
        for (count, prefix) in [(RECENT_MAX, "x".to_owned()), (RECENT_BYTES_MAX >> 12, "x".repeat(1 << 12))] {
            let recents = Recents::default();
            let note = |n| recents.note(Named::Prefix(prefix.as_str().into()), SlotSet::ALL, Tick(n));
            assert!((1..=count as u64).all(|n| note(n) == Tick(n)));
            let none = Tags::default();
            assert!(!recents.name(candidate("k", &none, Tick(1))), "nothing was forgotten");
            note(count as u64 + 1);
            assert!(
                recents.name(candidate("k", &none, Tick(1))) && !recents.name(candidate("k", &none, Tick(2)))
            );
            let memory = recents.0.lock();
            assert!(memory.recent.len() <= RECENT_MAX && memory.bytes <= RECENT_BYTES_MAX);
        }
    }

    #[test]
    fn sweeps_are_bounded_and_end_a_while_after_their_walk() {
        let sweeps = Sweeps::default();
        let begin = |prefix: &str| sweeps.begin(prefix.into(), SlotSet::ALL, Tick(10), || {});
        assert!((0..SWEEPS_MAX).all(|n| begin(&format!("{n}-"))) && !begin("more"));
        let slot = Slot::of_hash(0);
        let names = |began| sweeps.name(slot, b"3-key", began);
        assert!(names(Tick(10)) && !names(Tick(11)) && !sweeps.name(slot, b"more", Tick(1)));
        let (before, second) = (sweeps.next(), Duration::from_secs(1));
        sweeps.retire(Tick::FOREVER, second, |slots| assert_eq!(slots, SlotSet::default()));
        sweeps.walked(before, Tick(100));
        sweeps.retire(Tick(101), second, |slots| assert_eq!(slots, SlotSet::default()));
        assert!(names(Tick(10)), "a reader may still be at it");
        sweeps.retire(Tick(100).after(second), second, |slots| assert_eq!(slots, SlotSet::ALL));
        assert!(!names(Tick(10)));
    }
}
