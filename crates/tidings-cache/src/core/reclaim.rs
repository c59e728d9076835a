//! Frees the memory of entries that are never read again.

use super::*;

/// How often memory of entries is reclaimed whose own time to live is over, where nothing else notices: a walk over
/// all entries, about 0.1 us each.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Frees the memory of entries that a fence, the floor or the end of their own time has made unreadable, one shard
    /// lock at a time.
    pub(crate) fn reclaim(&self) {
        let floor = if self.travels() { self.domain.gate().floor() } else { Tick::NEVER };
        let fences = self.fences.load(Ordering::Acquire);
        let raised = self.reclaimed_floor.load(Ordering::Acquire) < floor.0;
        let fenced = raised || self.reclaimed_fences.load(Ordering::Acquire) != fences;
        if !fenced && !self.is_sweep_due() {
            return;
        }
        self.reclaim_excluded();
        if fenced {
            // Of a key that moka displaced meanwhile nothing was seen.
            (0..SHARDS).for_each(|index| self.shard_at(index).forget_stored());
        }
        // What came meanwhile is for the next time.
        self.reclaimed_fences.fetch_max(fences, Ordering::AcqRel);
        self.reclaimed_floor.fetch_max(floor.0, Ordering::AcqRel);
    }

    fn reclaim_excluded(&self) {
        let keeps = self.settings.loads.keeps();
        let gone = |key: KeyRef<'_>, entry: &Entry<V>| {
            // A watched table tells of what expires, and frees it by itself.
            let is_over = || !self.settings.watches_entries() && self.is_over(entry.expires.after(keeps));
            !self.is_coherent(key.slot(), entry.began, entry.epoch) || is_over()
        };
        let _bare = Bare::begin();
        for (key, entry) in &self.entries {
            let key = key.borrowed();
            if gone(key, &entry) {
                let _shard = self.shard(key);
                // What stands there now may be newer than what was seen.
                let _peeking = Peeking::begin();
                if self.entries.get(&key).is_some_and(|now| gone(key, &now)) {
                    self.entries.invalidate(&key);
                }
            }
        }
    }

    /// Whether it is time to look for entries whose own time is over, which a table that is not watched keeps.
    fn is_sweep_due(&self) -> bool {
        if self.settings.watches_entries() || !self.own_times.load(Ordering::Relaxed) {
            return false;
        }
        let now = self.domain.clock().coarse();
        let due = now.since(Tick(self.swept.load(Ordering::Relaxed))) >= SWEEP_INTERVAL;
        if due {
            self.swept.store(now.0, Ordering::Relaxed);
        }
        due
    }
}
