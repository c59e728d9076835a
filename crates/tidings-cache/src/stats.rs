//! Counters of a cache: plain atomics, read by whoever exports them.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Cells that threads spread their counting over, so that cores do not fight for one cache line.
const CELLS: usize = 16;

/// The first of them belong to one thread each, the first that counted anything; later threads share the others.
const OWN_CELLS: usize = 8;

#[derive(Debug, Default)]
#[repr(align(64))]
struct CellOf(AtomicU64);

/// A counter for hot paths: about 1 ns an increment on a thread with a cell of its own, 5 ns and more on others.
#[derive(Debug, Default)]
pub struct Striped([CellOf; CELLS]);

fn my_cell() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static CELL: Cell<usize> = const { Cell::new(usize::MAX) });
    CELL.with(|cell| {
        if cell.get() == usize::MAX {
            let thread = NEXT.fetch_add(1, Ordering::Relaxed);
            let shared = OWN_CELLS + thread % (CELLS - OWN_CELLS);
            cell.set(if thread < OWN_CELLS { thread } else { shared });
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
        self.added(n);
    }

    /// Counts one, and returns how many were counted by this thread, and by those that share its cell.
    #[inline]
    pub(crate) fn nth(&self) -> u64 {
        self.added(1).wrapping_add(1)
    }

    #[inline]
    fn added(&self, n: u64) -> u64 {
        let cell = my_cell();
        let CellOf(sum) = &self.0[cell];
        if cell < OWN_CELLS {
            // Nobody else writes here.
            let before = sum.load(Ordering::Relaxed);
            sum.store(before.wrapping_add(n), Ordering::Relaxed);
            before
        } else {
            sum.fetch_add(n, Ordering::Relaxed)
        }
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
        /// Reads that found an entry which doubt had made too old, whatever they did then.
        limited,
        /// Reads that were served an entry whose time was over, or that doubt had made too old, and told so.
        stale,
        /// Loaders that began.
        loads,
        /// Loaders that brought a value, whether or not it was stored.
        loaded,
        /// Loaders that failed, panicked or were cancelled.
        load_failures,
        /// Results of other nodes' loaders that were taken, in place of a loader's here.
        shared,
        /// Results of other nodes' loaders that were not: they may have lacked a change that was applied here, or could
        /// not be read.
        shared_refused,
        /// Results that were not stored because something had ended their flight, because what they were read from
        /// may have lacked a change, or because their key's truth was uncertain when they began.
        fence_rejects,
        /// Times that the truth of a key became uncertain: a write-through of it, here or at a peer, failed or was
        /// cancelled, and may land all the same.
        uncertain,
        /// Results that were not stored because the cache bypasses, and its node was in doubt.
        bypassed,
        /// Times that the cache was emptied because its node came into doubt.
        flushed,
        /// Loaded values that were not stored because they have too many tags, or too long ones.
        untagged,
        /// Changes made on this node.
        mutations,
        /// Other nodes' changes of one key whose copy here they removed.
        key_evicted,
        /// Other nodes' changes of one key of which there was no copy here.
        key_absent,
        /// Other nodes' changes of one key whose copy here has seen them, by its version, and was kept.
        key_kept,
        /// Other nodes' changes whose version is of another schema, and kept nothing; or whose value is, and evicted.
        other_schema,
        /// Other nodes' changes of one key whose value was stored here, where values travel.
        merged,
        /// Other nodes' changes of one key that came after a later one, where values travel.
        outdated,
        /// Other nodes' changes whose time was too far ahead of this node's clock, where values travel: they evicted.
        future,
        /// Changes of this node's that peers refused as too far ahead of their clocks, and that were undone here.
        undone,
        /// Values of other nodes that could not be read, and evicted.
        unreadable,
        /// Values copied from members with which this node has compared what it holds.
        copied,
        /// Copies let go of when comparing, for a member may know of their removal.
        let_go,
        /// Slots that were compared with a member and differed.
        slots_repaired,
        /// Other nodes' changes of many keys, one per change whatever the number of keys or lanes.
        many_applied,
        /// Keys of those whose copies here were removed.
        keys_evicted,
        /// Keys of those of which there were no copies here.
        keys_absent,
        /// Other nodes' changes of everything, which fenced everything here, one per change.
        all_fenced,
        /// Other nodes' invalidations of a tag.
        tag_applied,
        /// Local copies that those removed.
        tag_evicted,
        /// Other nodes' invalidations of a prefix.
        prefix_applied,
        /// Other nodes' changes that only subscribers were told of, as the cache's invalidator has it.
        only_told,
        /// Entries displaced to keep within the capacity. Counted only with [`crate::CacheBuilder::eviction_events`].
        evicted,
        /// Entries whose time ran out. Counted only with [`crate::CacheBuilder::eviction_events`].
        expired,
        /// Events pushed to subscribers' rings.
        delivered,
        /// Events that subscribers lost to a full ring.
        lagged,
        /// Events of expiry or eviction that were dropped because their queue was full.
        local_events_dropped,
        /// Calls of a partitioner, listener, derived rule or encoding that panicked, and were not a caller's own.
        panics,
        /// Events dropped for subscribers because the partitioner said so or named no partition.
        unpartitioned,
    }
}

/// What a read counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Hit,
    Miss,
    Coalesced,
    Limited,
    Stale,
}

impl CacheStats {
    pub(crate) fn count_read(&self, outcome: Outcome) {
        match outcome {
            Outcome::Hit => self.hits.count(),
            Outcome::Miss => self.misses.count(),
            Outcome::Coalesced => self.coalesced.count(),
            Outcome::Limited => self.limited.count(),
            Outcome::Stale => self.stale.count(),
        }
    }
}

impl CacheCounts {
    /// Changes of other nodes that were applied, one per change whatever the number of keys or lanes.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.key_evicted
            + self.key_absent
            + self.key_kept
            + self.merged
            + self.outdated
            + self.future
            + self.many_applied
            + self.all_fenced
            + self.tag_applied
            + self.prefix_applied
            + self.only_told
    }

    /// Local copies that other nodes' changes removed by their keys or tags.
    #[must_use]
    pub fn invalidated(&self) -> u64 {
        self.key_evicted + self.keys_evicted + self.tag_evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_is_lost_among_more_threads_than_cells() {
        const THREADS: u64 = 3 * CELLS as u64;
        const COUNTS: u64 = 10_000;
        let counter = Striped::default();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..COUNTS).for_each(|_| counter.count()));
            }
        });
        assert_eq!(counter.get(), THREADS * COUNTS);
    }
}
