//! What nobody can tell any more is forgotten, so that states which differ only by that are one.
//!
//! Entries tell no machine anything: they are only looked at. So what can only be told from an entry that will never be
//! wrong makes no difference, and where no entry, load or read can be wrong any more nothing has to be looked at.

use std::time::Duration;

use tidings_proto::time::Tick;

use super::{BOUNDS, Entry, World};

/// What was announced so long ago is overdue for good.
const OVERDUE: Duration = Duration::from_nanos(2);

impl World {
    fn last(&self, key: usize) -> usize {
        self.truth[key].len() - 1
    }

    /// Whether a hit on it, now or later, may be wrong: it may count, and is or may become outdated.
    fn may_be_wrong(&self, key: usize, entry: Entry) -> bool {
        let may_count = entry.epoch == self.epochs[key] && entry.began > self.published.floor;
        may_count && (self.left.writes > 0 || entry.version < self.last(key))
    }

    /// Whether a key has anything that may be wrong, as it is or after a load.
    fn is_at_stake(&self, key: usize) -> bool {
        self.entries[key].is_some() || self.flights[key].is_some() || self.reading[key].is_some()
    }

    /// Whether any promise may be broken from here on.
    pub(super) fn is_anything_at_stake(&self) -> bool {
        let may_load = self.left.loads > 0 && self.left.writes > 0;
        may_load || (0..self.scope.keys).any(|key| self.is_at_stake(key))
    }

    pub(super) fn settle(&mut self) {
        for key in 0..self.scope.keys {
            self.entries[key] = self.entries[key].filter(|entry| self.may_be_wrong(key, *entry));
            // A caller who joins a load is told of by it, whatever becomes of the entry.
            if self.scope.calls == 0 {
                let flight = self.flights[key];
                let lives = |flight: &super::Flight| !flight.ended && self.may_be_wrong(key, flight.entry);
                self.flights[key] = flight.filter(lives);
            }
            self.settle_truth(key);
            if !self.is_at_stake(key) {
                // Whatever is loaded from here on is no older.
                self.least[key] = 0;
            }
            self.settle_epoch(key);
        }
    }

    /// When what was announced that nothing can be outdated by, or that all is late by.
    fn settle_truth(&mut self, key: usize) {
        if self.reading[key].is_some() {
            return;
        }
        let (entry, flight) = (self.entries[key], self.flights[key].map(|flight| flight.entry));
        let oldest = entry.into_iter().chain(flight).map(|entry| entry.version).min();
        let oldest = oldest.unwrap_or_else(|| self.last(key));
        let overdue = self.now.before(OVERDUE);
        debug_assert!(overdue.after(BOUNDS.max_staleness) < self.now);
        for (version, announced) in self.truth[key].iter_mut().enumerate() {
            let at = if version <= oldest { Some(Tick(0)) } else { *announced };
            *announced = at.map(|at| at.max(overdue));
        }
    }

    /// Epochs are only compared with the present one.
    fn settle_epoch(&mut self, key: usize) {
        let now = self.epochs[key];
        let is_now = |entry: Option<Entry>| entry.is_none_or(|entry| entry.epoch == now);
        let flight = self.flights[key].map(|flight| flight.entry);
        if self.reading[key].is_none() && is_now(self.entries[key]) && is_now(flight) {
            self.epochs[key] = 1;
            let entries = self.entries[key].iter_mut();
            let flights = self.flights[key].iter_mut().map(|flight| &mut flight.entry);
            entries.chain(flights).for_each(|entry| entry.epoch = 1);
        }
    }
}
