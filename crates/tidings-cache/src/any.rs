//! The face that a cache of any types shows.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidings_proto::audit::Held;
use tidings_proto::hash::CacheId;
use tidings_proto::histogram::Snapshot;
use tidings_proto::id::SlotSet;

use crate::audit::Slice;
use crate::builder::Settings;
use crate::core::Core;
use crate::erased::AnyCache;
use crate::flight::Start;
use crate::key::{Key, KeyRef};
use crate::receipt::Written;
use crate::remote::RemoteChange;
use crate::repair::Replicating;
use crate::stats::CacheCounts;
use crate::subscribe::RawSubscribe;
use crate::write::{Leave, WriteError};

impl<K: Key, V: Clone + Send + Sync + 'static> AnyCache for Core<K, V> {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn id(&self) -> CacheId {
        self.id
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn counts(&self) -> CacheCounts {
        let (evicted, expired, local_events_dropped) = self.local_counts();
        CacheCounts { evicted, expired, local_events_dropped, ..self.stats.snapshot() }
    }

    fn load_times(&self) -> Snapshot {
        self.load_time.snapshot()
    }

    fn entries(&self) -> u64 {
        self.entries.entry_count()
    }

    fn weight(&self) -> u64 {
        self.entries.weighted_size()
    }

    fn flights(&self) -> usize {
        self.flights()
    }

    fn tagged(&self) -> usize {
        self.tagged()
    }

    fn versioned(&self) -> usize {
        self.versioned()
    }

    fn tombstones(&self) -> usize {
        self.tombstones()
    }

    fn doubted(&self) -> SlotSet {
        let doubted = self.doubts.slots.load(Ordering::Acquire);
        SlotSet::from_bits(if self.replicates() { doubted } else { 0 })
    }

    fn replicating(self: Arc<Self>) -> Option<Arc<dyn Replicating>> {
        self.as_replicating()
    }

    fn subscribers(&self) -> usize {
        self.topic.subscribers()
    }

    fn key_text(&self, key: &[u8]) -> String {
        self.key_text(key)
    }

    fn subscribe_raw(self: Arc<Self>) -> RawSubscribe {
        RawSubscribe::new(self)
    }

    fn apply(&self, change: &RemoteChange<'_>) {
        self.apply_remote(change);
    }

    fn fence(&self, slots: SlotSet) {
        if self.travels() {
            self.fence_and_tell(slots);
        }
    }

    fn fence_uncertain(&self, slots: SlotSet) {
        if self.travels() {
            self.open_slot_windows(slots);
            self.fence_and_tell(slots);
        }
    }

    fn lease_begins(&self, key: &[u8]) -> Start {
        self.lease_begins(KeyRef::of(self.id, key))
    }

    fn lease_stands(&self, key: &[u8], start: Start) -> bool {
        self.lease_stands(KeyRef::of(self.id, key), start)
    }

    fn lease_ends(&self, key: &[u8], start: Start) {
        self.lease_ends(KeyRef::of(self.id, key), start);
    }

    fn doubt_begins(&self) {
        self.doubt_begins();
    }

    fn housekeep(&self) {
        self.expire_tokens();
        self.reclaim();
        self.retire_sweeps();
        self.reclaim_tags();
        self.close_windows();
        self.entries.run_pending_tasks();
        self.tell_overdue();
        self.tell_local_events();
    }

    fn is_audited(&self) -> bool {
        self.is_audited()
    }

    fn slice(&self, from: u64) -> Slice {
        self.slice(from)
    }

    fn held(&self, key: &[u8]) -> Option<Held> {
        self.held(KeyRef::of(self.id, key))
    }

    fn held_by_hash(&self, hash: u64) -> Option<Held> {
        self.held_by_hash(hash)
    }

    fn clear(&self) -> Result<Written<'_>, WriteError> {
        self.clear_all(Leave::Refuses)
    }

    fn invalidate_tags(&self, tags: &[&str]) -> Result<Written<'_>, WriteError> {
        self.invalidate_all_of(tags)
    }

    fn invalidate_prefix(&self, prefix: &str) -> Result<Written<'_>, WriteError> {
        self.invalidate_under(prefix)
    }

    fn clear_derived(&self, uncertain: bool) -> Result<Written<'_>, WriteError> {
        self.clear_derived(uncertain)
    }

    fn derives(&self) -> Vec<CacheId> {
        self.rules.targets()
    }

    fn close(&self) {
        if self.mark_closed() {
            // Whoever changes a key looks under its shard's lock whether the cache is closed: after this every change
            // that was under way is done, and nothing is stored any more that no invalidation would reach.
            self.end_all();
            self.leased_tokens.end();
            self.background.stop();
            self.fence_slots(SlotSet::ALL);
            self.domain.unregister(self.id);
            self.topic.close();
            self.entries.invalidate_all();
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
