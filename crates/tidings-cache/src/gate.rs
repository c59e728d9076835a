//! What a hit asks before it counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidings_proto::time::Tick;

use crate::clock::COARSE_LAG;

/// The published freshness, read at every hit: kept out of the cache lines of locks and counters that stand beside it.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Gate {
    pub(crate) fresh_until: AtomicU64,
    pub(crate) floor: AtomicU64,
    pub(crate) max_staleness: Duration,
    /// Caches were told that doubt has begun, and it has not ended since.
    pub(crate) doubted: AtomicBool,
}

impl Gate {
    /// Read first, before the entry: what is published here stands for evictions that happened before.
    #[inline]
    pub(crate) fn fresh_until(&self) -> Tick {
        Tick(self.fresh_until.load(Ordering::Acquire))
    }

    /// Read after the entry.
    #[inline]
    pub(crate) fn floor(&self) -> Tick {
        Tick(self.floor.load(Ordering::Acquire))
    }

    pub(crate) fn max_staleness(&self) -> Duration {
        self.max_staleness
    }

    /// Whether every entry counts, however old.
    #[inline]
    pub(crate) fn is_fresh(&self, fresh_until: Tick, now: Tick) -> bool {
        now.after(COARSE_LAG) <= fresh_until
    }

    /// What was read before `fresh_until` was so long ago does not count any more, whatever it said.
    pub(crate) fn certainly_stale_after(&self) -> Duration {
        self.max_staleness + 2 * COARSE_LAG
    }

    /// A load must have begun after this to be joined: the floor, and while in doubt `max_staleness` ago.
    pub(crate) fn joinable_after(&self, now: Tick) -> Tick {
        let floor = self.floor();
        if self.is_fresh(self.fresh_until(), now) {
            floor
        } else {
            floor.max(now.after(COARSE_LAG).before(self.max_staleness))
        }
    }
}
