//! When keys were last noted, within a window of time: pure, and bounded.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use tidings_proto::time::Tick;

use crate::key::CarriedHash;

/// Most keys per shard; the one noted first goes for a new one. With 64 shards, 40 bytes a key and at most twice the
/// room, 5 MB for a cache of which more than 65,536 keys change per window.
const NOTES_MAX: usize = 1_024;

/// Keys by their hashes, with the time of their last note. Keys of one hash count as one.
#[derive(Debug)]
pub(crate) struct Notes {
    window: Duration,
    last: HashMap<u64, Tick, CarriedHash>,
    /// Each of them once, with a time at which it was noted.
    notes: VecDeque<(u64, Tick)>,
    /// The newest note that went before its window was over.
    forgotten: Tick,
}

impl Notes {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, last: HashMap::default(), notes: VecDeque::new(), forgotten: Tick::NEVER }
    }

    /// Notes a key. Times must not go backwards by more than the clock's lag.
    pub(crate) fn note(&mut self, hash: u64, now: Tick) {
        if self.last.insert(hash, now).is_none() {
            self.notes.push_back((hash, now));
        }
        while let Some(&(hash, at)) = self.notes.front() {
            let is_over = at.after(self.window) < now;
            if !is_over && self.notes.len() <= NOTES_MAX {
                break;
            }
            self.notes.pop_front();
            let last = self.last(hash);
            if last > at {
                // It was noted again: its place is further back.
                self.notes.push_back((hash, last));
            } else {
                self.last.remove(&hash);
                if !is_over {
                    self.forgotten = self.forgotten.max(last);
                }
            }
        }
    }

    /// Whether a key was noted within the window, as far as that is remembered.
    pub(crate) fn holds(&self, hash: u64, now: Tick) -> bool {
        self.last.get(&hash).is_some_and(|at| now.since(*at) < self.window)
    }

    /// When a key was last noted, as far as that is remembered.
    fn last(&self, hash: u64) -> Tick {
        self.last.get(&hash).copied().unwrap_or(Tick::NEVER)
    }

    /// When a key may have been noted last: never earlier than it was.
    pub(crate) fn last_possible(&self, hash: u64) -> Tick {
        self.last(hash).max(self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_nanos(1_000);

    proptest! {
        #[test]
        fn no_note_within_the_window_is_forgotten_and_memory_is_bounded(
            notes in prop::collection::vec((0_u64..3_000, 0_u64..3), 1..4_000),
        ) {
            let mut recent = Notes::new(WINDOW);
            let mut truth = std::collections::HashMap::new();
            let mut now = Tick(1 << 40);
            for (hash, pause) in notes {
                now = Tick(now.0 + pause);
                recent.note(hash, now);
                truth.insert(hash, now);
                prop_assert!(recent.notes.len() <= NOTES_MAX && recent.notes.len() == recent.last.len());
            }
            for (hash, at) in truth {
                let said = recent.last_possible(hash);
                prop_assert!(said >= at || at.after(WINDOW) < now, "{hash}: {said:?} before {at:?}");
            }
        }
    }

    #[test]
    fn a_key_that_was_not_noted_is_unknown_until_notes_are_forgotten() {
        let mut recent = Notes::new(WINDOW);
        (0..NOTES_MAX as u64).for_each(|hash| recent.note(hash, Tick(10)));
        assert_eq!((recent.last_possible(u64::MAX), recent.last(3)), (Tick::NEVER, Tick(10)));
        recent.note(NOTES_MAX as u64, Tick(11));
        assert_eq!((recent.last_possible(u64::MAX), recent.last(0)), (Tick(10), Tick::NEVER));
    }

    #[test]
    fn a_key_that_is_noted_all_the_time_pushes_no_other_out() {
        let mut recent = Notes::new(WINDOW);
        recent.note(1, Tick(10));
        (0..10 * NOTES_MAX as u64).for_each(|n| recent.note(2, Tick(11 + n % 2)));
        assert_eq!((recent.last(1), recent.last_possible(3)), (Tick(10), Tick::NEVER));
    }
}
