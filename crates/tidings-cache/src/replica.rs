//! Loads that read a replica of the system of record, which lags behind what was invalidated here.
//!
//! What such a load returns is only as fresh as its beginning less the lag: so it is dated. It is not stored if the
//! key was changed or fenced since then, for it may lack that change.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings_proto::id::{SLOTS, Slot, SlotSet};
use tidings_proto::time::Tick;

use crate::clock::{COARSE_LAG, Clock};
use crate::notes::Notes;

/// The last changes of one shard's keys.
#[derive(Debug)]
pub(crate) struct Changes {
    clock: Clock,
    notes: Notes,
}

impl Changes {
    pub(crate) fn new(clock: Clock, lag: Duration) -> Self {
        Self { clock, notes: Notes::new(lag.saturating_add(COARSE_LAG)) }
    }

    pub(crate) fn note(&mut self, hash: u64) {
        self.notes.note(hash, no_earlier(&self.clock));
    }

    /// Whether what is from this moment may lack the key's last change. Ask when a load begins: later ones end it.
    pub(crate) fn overtook(&self, hash: u64, as_of: Tick) -> bool {
        as_of <= self.notes.last_possible(hash)
    }
}

/// When each slot was last fenced.
#[derive(Debug)]
pub(crate) struct Fences([AtomicU64; SLOTS]);

impl Fences {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Call before the slots' epochs are raised: who sees the new epoch has to see this.
    pub(crate) fn note(&self, slots: SlotSet, clock: &Clock) {
        let now = no_earlier(clock);
        for slot in slots.iter() {
            self.0[slot.index()].fetch_max(now.0, Ordering::AcqRel);
        }
    }

    /// Whether what is from this moment may lack what a fence of the slot stands for. Read after the slot's epoch.
    pub(crate) fn overtook(&self, slot: Slot, as_of: Tick) -> bool {
        as_of.0 <= self.0[slot.index()].load(Ordering::Acquire)
    }
}

/// A coarse reading that is not before the truth.
pub(crate) fn no_earlier(clock: &Clock) -> Tick {
    clock.coarse().after(COARSE_LAG)
}
