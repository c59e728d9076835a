//! Uncertain windows: after a write of the system of record of which nobody knows how it ended, it may still land for
//! a while. What begins before that while is over may lack it, and is not stored.
//!
//! A window is counted from when its record is applied, on the clock of whoever applies it. It is judged when something
//! begins: what began before the window was opened was ended by the record that opened it.

use std::time::Duration;

use tidings_proto::id::{SLOTS, SlotSet};
use tidings_proto::time::Tick;

use crate::clock::COARSE_LAG;
use crate::core::{Core, ShardGuard};
use crate::key::{Key, KeyRef, SHARDS};
use crate::notes::Notes;
use crate::replica::no_earlier;

/// The windows of one shard's keys and slots; at most 1,024 keys, and those that do not fit bar all of its loads.
#[derive(Debug)]
pub(crate) struct Windows {
    horizon: Duration,
    /// For how long they matter to loads from a replica that lags.
    kept: Duration,
    keys: Notes,
    slots: [Tick; SLOTS],
    newest: Tick,
}

impl Windows {
    fn new(horizon: Duration, lag: Duration) -> Self {
        let kept = horizon.saturating_add(lag).saturating_add(COARSE_LAG);
        Self { horizon, kept, keys: Notes::new(kept), slots: [Tick::NEVER; SLOTS], newest: Tick::NEVER }
    }

    fn open(&mut self, hash: u64, now: Tick) {
        self.keys.note(hash, now);
        self.newest = self.newest.max(now);
    }

    fn open_slots(&mut self, slots: SlotSet, now: Tick) {
        slots.iter().for_each(|slot| self.slots[slot.index()] = now);
        self.newest = self.newest.max(now);
    }

    /// Whether what is from this moment may lack a write that has yet to land.
    fn hold(&self, key: KeyRef<'_>, as_of: Tick) -> bool {
        let opened = self.keys.last_possible(key.hash).max(self.slots[key.slot().index()]);
        opened > Tick::NEVER && as_of <= opened.after(self.horizon)
    }

    fn are_over(&self, now: Tick) -> bool {
        self.newest.after(self.kept) < now
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    fn windows<'s>(&self, shard: &'s mut ShardGuard<'_, V>) -> &'s mut Windows {
        let lag = self.settings.replica_lag;
        shard.windows.get_or_insert_with(|| Box::new(Windows::new(self.domain.write_horizon(), lag)))
    }

    /// A key's truth is uncertain from now on, for the write horizon; without one nothing is. Call under its shard lock,
    /// with its removal.
    pub(crate) fn open_window(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>) {
        if self.domain.write_horizon().is_zero() {
            return;
        }
        let now = no_earlier(self.domain.clock());
        self.windows(shard).open(key.hash, now);
        self.stats.uncertain.count();
    }

    /// The truth of whatever is in these slots is uncertain. Call before what is there is fenced: a load that begins in
    /// between is excluded by the fence.
    pub(crate) fn open_slot_windows(&self, slots: SlotSet) {
        (0..SHARDS).for_each(|index| self.open_slot_windows_in(&mut self.shard_at(index), slots));
    }

    /// As [`Core::open_slot_windows`], in one shard.
    pub(crate) fn open_slot_windows_in(&self, shard: &mut ShardGuard<'_, V>, slots: SlotSet) {
        if self.domain.write_horizon().is_zero() {
            return;
        }
        self.windows(shard).open_slots(slots, no_earlier(self.domain.clock()));
    }

    /// Whether what is from this moment may lack a write of the key that has yet to land. Call under its shard lock.
    #[inline]
    pub(crate) fn is_uncertain(&self, shard: &ShardGuard<'_, V>, key: KeyRef<'_>, as_of: Tick) -> bool {
        shard.windows.as_ref().is_some_and(|windows| windows.hold(key, as_of))
    }

    /// Frees what is remembered of windows that are over.
    pub(crate) fn close_windows(&self) {
        let now = self.domain.clock().coarse();
        for index in 0..SHARDS {
            self.shard_at(index).windows.take_if(|windows| windows.are_over(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::hash::CacheId;
    use tidings_proto::id::Slot;

    use super::*;
    use crate::key::Encoded;

    const HORIZON: Duration = Duration::from_nanos(1_000);

    #[test]
    fn a_window_is_over_a_horizon_after_it_was_opened_last() {
        let [one, other] = ["one", "other"].map(|name| Encoded::new(CacheId(1), name).unwrap());
        let (one, other) = (one.borrowed(), other.borrowed());
        let mut windows = Windows::new(HORIZON, Duration::ZERO);
        assert!(!windows.hold(one, Tick::NEVER));
        windows.open(one.hash, Tick(10));
        windows.open(one.hash, Tick(20));
        assert!(windows.hold(one, Tick(1_020)) && !windows.hold(one, Tick(1_021)));
        assert!(!windows.hold(other, Tick(20)));
        windows.open_slots(Slot::all().filter(|slot| *slot == other.slot()).collect(), Tick(30));
        assert!(windows.hold(other, Tick(1_030)) && !windows.hold(other, Tick(1_031)));
        let end = Tick(30).after(HORIZON + COARSE_LAG);
        assert!(!windows.are_over(end) && windows.are_over(Tick(end.0 + 1)));
    }
}
