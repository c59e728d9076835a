//! Counters of a cache: plain atomics, read by whoever exports them.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Cells that threads spread their counting over, so that cores do not fight for one cache line.
const CELLS: usize = 16;

#[derive(Debug, Default)]
#[repr(align(64))]
struct CellOf(AtomicU64);

/// A counter for hot paths: about 2 ns an increment from any number of threads.
#[derive(Debug, Default)]
pub struct Striped([CellOf; CELLS]);

fn my_cell() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static CELL: Cell<usize> = const { Cell::new(usize::MAX) });
    CELL.with(|cell| {
        if cell.get() == usize::MAX {
            cell.set(NEXT.fetch_add(1, Ordering::Relaxed) % CELLS);
        }
        cell.get()
    })
}

impl Striped {
    /// Counts one.
    #[inline]
    pub fn count(&self) {
        self.add(1);
    }

    /// Counts several.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0[my_cell()].0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum. Increments under way may be missing.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident, $snapshot:ident { $($(#[$field_doc:meta])* $field:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: Striped),+ }

        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot { $($(#[$field_doc])* pub $field: u64),+ }

        impl $name {
            /// All counters now.
            #[must_use]
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.get()),+ }
            }
        }
    };
}

counters! {
    /// What happened to one cache on this node since it was opened.
    CacheStats, CacheCounts {
        /// Reads that a fresh entry answered.
        hits,
        /// Reads that found no entry.
        misses,
        /// Reads that waited for another caller's load.
        coalesced,
        /// Reads that found an entry which doubt had made too old.
        limited,
        /// Loaders that ran.
        loads,
        /// Loaders that failed, panicked or were cancelled.
        load_failures,
        /// Results that were not stored because something had ended their flight.
        fence_rejects,
        /// Changes made on this node.
        mutations,
        /// Changes of other nodes that were applied.
        applied,
        /// Local copies that another node's change removed.
        invalidated,
        /// Entries displaced to keep within the capacity.
        evicted,
        /// Entries whose time ran out.
        expired,
        /// Events pushed to subscribers' rings.
        delivered,
        /// Events that subscribers lost to a full ring.
        lagged,
        /// Events of expiry or eviction that were dropped because their queue was full.
        local_events_dropped,
        /// Calls of a partitioner or listener that panicked.
        panics,
        /// Events dropped for subscribers because the partitioner said so or named no partition.
        unpartitioned,
    }
}
