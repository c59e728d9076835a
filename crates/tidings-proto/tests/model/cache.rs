//! The least cache that the protocol needs: slot epochs, loads that an invalidation ends, entries with their age.

use tidings_proto::freshness::{Published, counts};
use tidings_proto::hash::{CacheId, slot_of};
use tidings_proto::id::{SLOTS, Slot, SlotSet};
use tidings_proto::time::Tick;

use super::{KEYS, MAX_STALENESS, ms};

pub(crate) const CACHE: CacheId = CacheId(7);

#[derive(Clone, Copy, Debug)]
struct Entry {
    version: usize,
    began: Tick,
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    id: u64,
    began: Tick,
    epoch: u64,
}

#[derive(Debug)]
pub(crate) struct Cache {
    entries: Vec<Option<Entry>>,
    flights: Vec<Option<Flight>>,
    epochs: [u64; SLOTS],
    flight: u64,
}

pub(crate) fn encoded(key: usize) -> [u8; 4] {
    (key as u32).to_le_bytes()
}

pub(crate) fn decoded(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes.try_into().expect("a key of this test")) as usize
}

pub(crate) fn slot(key: usize) -> Slot {
    slot_of(CACHE, &encoded(key))
}

impl Cache {
    pub(crate) fn new() -> Self {
        Self { entries: vec![None; KEYS], flights: vec![None; KEYS], epochs: [0; SLOTS], flight: 0 }
    }

    /// The version that an unmarked hit would return.
    pub(crate) fn hit(&self, key: usize, published: Published, now: Tick) -> Option<usize> {
        let entry = self.entries[key]?;
        let current = entry.epoch == self.epochs[slot(key).index()];
        (current && counts(published, ms(MAX_STALENESS), entry.began, now)).then_some(entry.version)
    }

    /// Begins a load, unless one that may be joined is under way.
    pub(crate) fn begin_load(&mut self, key: usize, now: Tick) -> Option<u64> {
        let epoch = self.epochs[slot(key).index()];
        if self.flights[key].is_some_and(|f| f.epoch == epoch && now.since(f.began) <= ms(MAX_STALENESS)) {
            return None;
        }
        self.flight += 1;
        self.flights[key] = Some(Flight { id: self.flight, began: now, epoch });
        Some(self.flight)
    }

    /// Stores what was loaded if nothing ended the load. Returns whether it did.
    pub(crate) fn finish_load(&mut self, key: usize, id: u64, version: usize) -> bool {
        let Some(flight) = self.flights[key].filter(|flight| flight.id == id) else { return false };
        self.flights[key] = None;
        if flight.epoch != self.epochs[slot(key).index()] {
            return false;
        }
        self.entries[key] = Some(Entry { version, began: flight.began, epoch: flight.epoch });
        true
    }

    pub(crate) fn invalidate(&mut self, key: usize, ends_loads: bool) {
        self.entries[key] = None;
        if ends_loads {
            self.flights[key] = None;
        }
    }

    pub(crate) fn fence(&mut self, slots: SlotSet) {
        for slot in slots.iter() {
            self.epochs[slot.index()] += 1;
        }
    }
}
