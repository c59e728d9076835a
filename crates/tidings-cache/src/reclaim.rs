//! What goes by itself: entries whose time is over or that doubt, fences or invalidated prefixes have excluded.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::time::Tick;

use crate::core::Core;
use crate::entry::Entry;
use crate::key::{Key, KeyRef, SHARDS};
use crate::table::LocalEvent;
use crate::topic::Told;

/// How often memory of entries is reclaimed whose time to live is over, where moka does not watch them: a walk over all
/// entries, about 0.1 us each. Where all live shorter, once in their life.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// And no more often than this.
const EXPIRY_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Places of a shard's indexes of tags and of versions that housekeeping looks at under one hold of its lock: about 25 us.
const TAGS_PROBED: usize = 256;

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Tells moka's expiries and evictions to subscribers. Call without any lock.
    pub(crate) fn tell_local_events(&self) {
        let events = self.local_events.take();
        if events.is_empty() {
            return;
        }
        let origin = self.domain.origin();
        for LocalEvent { key, kind, began, epoch } in events {
            let key = key.borrowed();
            // What a clear, fence or floor had removed before did not go now.
            if !self.is_coherent(key, began, epoch) {
                continue;
            }
            if let Some(partition) = self.partition(key, None) {
                let operation = if kind == EventKind::Expired { Operation::Expire } else { Operation::Evict };
                let told = Told::here(kind, operation, origin.clone(), self.domain.clock().wall_ms());
                self.topic.tell_key(partition, key, told).wake();
            }
        }
    }

    /// Ends the fill tokens whose deadline has passed.
    pub(crate) fn expire_tokens(&self) {
        let now = self.domain.clock().coarse();
        for index in 0..SHARDS {
            self.shard_at(index).flights.expire(now);
        }
        self.leased_tokens.expire(now);
    }

    pub(crate) fn flights(&self) -> usize {
        (0..SHARDS).map(|index| self.shard_at(index).flights.len()).sum()
    }

    /// Ends all flights, and forgets all tags and versions.
    pub(crate) fn end_all(&self) {
        for index in 0..SHARDS {
            let mut shard = self.shard_at(index);
            shard.flights.end_all();
            shard.tags = None;
            shard.versions = None;
            shard.replica = None;
        }
    }

    /// Counters that moka's listener keeps.
    pub(crate) fn local_counts(&self) -> (u64, u64, u64) {
        let counts = &self.local_events.counts;
        (counts.evicted.get(), counts.expired.get(), counts.dropped.get())
    }

    /// Frees the memory of entries that a fence, the floor or the end of their own time has made unreadable, one shard
    /// lock at a time.
    pub(crate) fn reclaim(&self) {
        let floor = if self.travels() { self.domain.gate().floor() } else { Tick::NEVER };
        let fences = self.fences.load(Ordering::Acquire);
        // After the count, which is raised after a sweep began: what is counted is walked for.
        let sweeps = self.sweeps.next();
        let raised = self.reclaimed_floor.load(Ordering::Acquire) < floor.0;
        let fenced = raised || self.reclaimed_fences.load(Ordering::Acquire) != fences;
        if !fenced && !self.is_expiry_due() {
            return;
        }
        self.reclaim_excluded();
        self.sweeps.walked(sweeps, self.domain.clock().coarse());
        // What came meanwhile is for the next time.
        self.reclaimed_fences.fetch_max(fences, Ordering::AcqRel);
        self.reclaimed_floor.fetch_max(floor.0, Ordering::AcqRel);
    }

    /// Stops comparing hits with prefixes whose entries are gone for longer than any reader may hold one.
    pub(crate) fn retire_sweeps(&self) {
        let after = self.domain.gate().certainly_stale_after();
        self.sweeps.retire(self.domain.clock().coarse(), after, |slots| self.unmark_sweeping(slots));
    }

    /// Forgets tags and versions of entries that the table has let go, at some places of every shard.
    pub(crate) fn reclaim_tags(&self) {
        for index in 0..SHARDS {
            let mut shard = self.shard_at(index);
            if let Some(tags) = &mut shard.tags {
                tags.probe_some(TAGS_PROBED, |key| self.entries.contains_key(&key));
            }
            if let Some(versions) = &mut shard.versions {
                versions.probe_some(TAGS_PROBED, |key| self.entries.contains_key(&key));
            }
            self.reclaim_stamps(&mut shard, TAGS_PROBED);
        }
    }

    fn reclaim_excluded(&self) {
        let keeps = self.settings.loads.keeps();
        let gone = |key: KeyRef<'_>, entry: &Entry<V>| {
            // A watched table tells of what expires, and frees it by itself.
            let is_over = || !self.settings.watches_entries() && self.is_over(entry.expires.after(keeps));
            !self.is_coherent(key, entry.began, entry.epoch) || is_over()
        };
        for (stored, kept) in self.entries.iter() {
            let key = stored.key();
            let is_gone = gone(key, &kept.read());
            if is_gone {
                let mut shard = self.shard(key);
                // What stands there now may be newer than what was seen.
                let look = |entry: &Entry<V>| {
                    let unfenced = self.is_unfenced(key, entry.began, entry.epoch);
                    gone(key, entry).then(|| (entry.birth(), entry.expires, unfenced))
                };
                let Some((birth, expires, unfenced)) = self.entries.look(&key, look).flatten() else {
                    continue;
                };
                if !self.is_over(expires) && self.is_kept(&shard, key, birth) {
                    continue;
                }
                self.entries.invalidate(&key);
                // Nothing else has excluded it.
                if unfenced && !self.is_over(expires) {
                    self.domain.remote_stats().floored_entries.count();
                }
                shard.untag(key);
                shard.unversion(key);
            }
        }
    }

    /// Whether it is time to look for entries whose time is over, which a table that is not watched keeps.
    fn is_expiry_due(&self) -> bool {
        let all = self.settings.time_to_live;
        let timed = all.is_some() || self.own_times.load(Ordering::Relaxed);
        if self.settings.watches_entries() || !timed {
            return false;
        }
        let now = self.domain.clock().coarse();
        let interval = all.unwrap_or(Duration::MAX).clamp(EXPIRY_INTERVAL_MIN, EXPIRY_INTERVAL);
        let due = now.since(Tick(self.expiry_walked.load(Ordering::Relaxed))) >= interval;
        if due {
            self.expiry_walked.store(now.0, Ordering::Relaxed);
        }
        due
    }
}
