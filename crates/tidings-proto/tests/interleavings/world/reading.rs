//! The reader's entries: hits, loads, and what is wrong with them.

use tidings_proto::freshness::{Published, counts};
use tidings_proto::time::Tick;

use super::{BOUNDS, Entry, Flight, World};
use crate::Planted;

/// A read that takes its time.
#[derive(Clone, Debug, Hash)]
pub(super) struct Reading {
    read: Read,
    /// The oldest version that it may be answered with.
    least: usize,
}

/// What it has read first.
#[derive(Clone, Copy, Debug, Hash)]
enum Read {
    Fresh(Tick),
    Entry(Entry),
}

impl World {
    /// What a hit on an entry would break, of a read that may be answered with this version at the oldest.
    pub(super) fn overdue(&self, key: usize, entry: Entry, least: usize) -> Option<String> {
        if entry.version < least {
            return Some(format!("a hit of key {key} as of {entry:?}, {least} having been applied"));
        }
        let newer = self.truth[key][entry.version + 1..].iter().flatten();
        let late = newer.copied().filter(|at| at.after(BOUNDS.max_staleness) < self.now).min()?;
        Some(format!("a hit at {:?} of key {key} as of {entry:?}, changed at {late:?}", self.now))
    }

    pub(super) fn is_hit(&self, key: usize, entry: Entry, fresh_until: Tick) -> bool {
        let published = Published { fresh_until, ..self.published };
        entry.epoch == self.epochs[key] && counts(published, BOUNDS.max_staleness, entry.began, self.now)
    }

    pub(super) fn begin_read(&mut self, key: usize) {
        let read = match self.planted {
            Planted::EntryFirst => self.entries[key].map(Read::Entry),
            _ => Some(Read::Fresh(self.published.fresh_until)),
        };
        self.reading[key] = read.map(|read| Reading { read, least: self.least[key] });
    }

    pub(super) fn end_read(&mut self, key: usize) {
        let Some(Reading { read, least }) = self.reading[key].take() else { return };
        let (entry, fresh_until) = match read {
            Read::Fresh(fresh_until) => (self.entries[key], fresh_until),
            Read::Entry(entry) => (Some(entry), self.published.fresh_until),
        };
        if let Some(entry) = entry.filter(|entry| self.is_hit(key, *entry, fresh_until))
            && let Some(what) = self.overdue(key, entry, least)
        {
            self.broken.get_or_insert(what);
        }
    }

    /// Whether a caller that comes now joins a load.
    pub(super) fn is_joinable(&self, key: usize) -> bool {
        self.flights[key].is_some_and(|Flight { entry, ended, .. }| {
            !ended && (entry.epoch == self.epochs[key] || self.planted == Planted::JoinsAcrossClear)
        })
    }

    pub(super) fn store(&mut self, key: usize) {
        let Some(Flight { entry, ended, least }) = self.flights[key].take() else { return };
        if entry.version < least {
            let what = format!("a call for key {key} answered as of {entry:?}, {least} having been applied");
            self.broken.get_or_insert(what);
        }
        if !ended && entry.epoch == self.epochs[key] {
            self.entries[key] = Some(entry);
        }
    }
}
