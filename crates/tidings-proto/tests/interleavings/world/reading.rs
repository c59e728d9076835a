//! The reader's entries: hits, loads, and what is wrong with them.

use tidings_proto::freshness::{Published, counts};
use tidings_proto::time::Tick;

use super::{BOUNDS, Entry, Flight, Reading, World};
use crate::Planted;

impl World {
    pub(super) fn judge(&mut self, key: usize, entry: Entry) {
        if let Some(what) = self.overdue(key, entry) {
            self.broken.get_or_insert(what);
        }
    }

    pub(super) fn overdue(&self, key: usize, entry: Entry) -> Option<String> {
        let newer = self.truth[key][entry.version + 1..].iter().flatten();
        let late = newer.copied().filter(|at| at.after(BOUNDS.max_staleness) < self.now).min()?;
        Some(format!("a hit at {:?} of key {key} as of {entry:?}, changed at {late:?}", self.now))
    }

    pub(super) fn is_hit(&self, key: usize, entry: Entry, fresh_until: Tick) -> bool {
        let published = Published { fresh_until, ..self.published };
        entry.epoch == self.epochs[key] && counts(published, BOUNDS.max_staleness, entry.began, self.now)
    }

    pub(super) fn begin_read(&mut self, key: usize) {
        self.reading[key] = match self.planted {
            Planted::EntryFirst => self.entries[key].map(Reading::Entry),
            _ => Some(Reading::Fresh(self.published.fresh_until)),
        };
    }

    pub(super) fn end_read(&mut self, key: usize) {
        let read = match self.reading[key].take() {
            Some(Reading::Fresh(fresh_until)) => self.entries[key].map(|entry| (entry, fresh_until)),
            Some(Reading::Entry(entry)) => Some((entry, self.published.fresh_until)),
            None => None,
        };
        if let Some((entry, fresh_until)) = read
            && self.is_hit(key, entry, fresh_until)
        {
            self.judge(key, entry);
        }
    }

    pub(super) fn store(&mut self, key: usize) {
        let Some(Flight { entry, ended }) = self.flights[key].take() else { return };
        if !ended && entry.epoch == self.epochs[key] {
            self.entries[key] = Some(entry);
        }
    }
}
