//! Loads that may go on without their caller: fail-safe, timeouts, eager refresh.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::time::Tick;
use tokio::time::{Instant, timeout_at};

use crate::background::LOAD_TIME;
use crate::cache::Cache;
use crate::core::{Core, Lookup};
use crate::entry::Entry;
use crate::key::{Encoded, Key, KeyRef};
use crate::leader::{Ended, Leader, Turn, Waiting};
use crate::load::LoadError;
use crate::stats::{CacheStats, Outcome};
use crate::tags::Loaded;

/// A value that may be marked as stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched<V> {
    /// The value.
    pub value: V,
    /// Whether its time was over, and it is served because its loader failed or took too long; or, in a cache that
    /// serves what it doubts, whether it is older than the staleness bound. Nothing is known to have changed it.
    pub stale: bool,
}

impl<V> Fetched<V> {
    pub(crate) fn fresh(value: V) -> Self {
        Self { value, stale: false }
    }
}

/// A load with its caller, or without.
type Running<V, E> = Pin<Box<dyn Future<Output = Result<Option<V>, LoadError<E>>> + Send>>;

/// Counts one outcome for a read, however it ends.
struct Read<'a> {
    stats: &'a CacheStats,
    outcome: Outcome,
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        self.stats.count_read(self.outcome);
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// What can be served of a key although its time is over, or is not over any more: nothing that a hit of that age
    /// could not be served but for its time.
    fn kept(&self, key: KeyRef<'_>) -> Option<Fetched<V>> {
        let keep = self.settings.loads.fail_safe?;
        // The order of reads is that of a hit.
        let fresh_until = self.domain.gate().fresh_until();
        let entry = self.entries.read(&key, Entry::clone)?;
        if !self.is_coherent(key, entry.began, entry.epoch) {
            return None;
        }
        let now = self.domain.clock().coarse();
        let counts = !self.travels() || self.counts(fresh_until, entry.began, now);
        if !(counts || self.serves_doubted()) || now >= entry.expires.after(keep) {
            return None;
        }
        let stale = now >= entry.expires || !counts;
        Some(Fetched { value: entry.into_value()?, stale })
    }

    /// Where a fetch that did not hit gets its value from: what is kept while the loader is not to be asked.
    fn fetch_turn(&self, key: KeyRef<'_>, limited: bool) -> (Result<Fetched<V>, Turn<V>>, Outcome) {
        let mut shard = self.shard(key);
        if self.settings.loads.fail_safe.is_some()
            && shard.is_paused(key, self.domain.clock().coarse())
            && let Some(kept) = self.kept(key)
        {
            let outcome = if kept.stale { Outcome::Stale } else { Outcome::Hit };
            return (Ok(kept), outcome);
        }
        match self.turn_in(&mut shard, key, false, limited) {
            (Turn::Ready(Some(value)), outcome) => (Ok(Fetched::fresh(value)), outcome),
            (turn, outcome) => (Err(turn), outcome),
        }
    }

    fn is_due(&self, entry: &Entry<V>, now: impl FnOnce() -> Tick) -> bool {
        self.settings.loads.is_due(entry.expires, self.settings.time_to_live, now)
    }

    /// Reloads a key in the background, unless that is under way, was tried too lately, or there is no room.
    fn refresh<E, F>(self: &Arc<Self>, key: Encoded, load: impl FnOnce() -> F + Send + 'static)
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<Option<Loaded<V>>, E>> + Send + 'static,
    {
        let Some(place) = self.background.place() else { return };
        let Some(leader) = self.refresh_flight(key) else { return };
        let limit = self.load_time_max();
        place.run(self.domain.tasks(), Duration::MAX, leader.run(load, Some(limit)));
    }

    /// How long a load may go on in the background.
    fn load_time_max(&self) -> Duration {
        self.settings.loads.hard_timeout.unwrap_or(LOAD_TIME)
    }

    fn pause(&self, key: KeyRef<'_>) {
        let now = self.domain.clock().coarse();
        self.shard(key).pause(key, now);
    }

    fn refresh_flight(self: &Arc<Self>, key: Encoded) -> Option<Leader<K, V>> {
        let borrowed = key.borrowed();
        let mut shard = self.shard(borrowed);
        let now = self.domain.clock().coarse();
        // It may have been reloaded since it was looked at.
        let is_due = match self.peek(borrowed) {
            Lookup::Hit(entry) => self.is_due(&entry, || now),
            _ => false,
        };
        if !is_due || shard.is_paused(borrowed, now) {
            return None;
        }
        let Turn::Lead(start, waiting) = self.join_or_lead(&mut shard, borrowed) else { return None };
        drop(shard);
        Some(Leader::new(self.clone(), key, start, waiting))
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// As [`Cache::get_or_load`], with a loader that may go on in the background: for caches with a fail-safe, loader
    /// timeouts or an eager refresh (see [`crate::CacheBuilder`]). They share flights: one loader runs per key and node.
    ///
    /// A value is marked as stale if its time was over and the loader failed, took too long, or has failed lately; and
    /// in doubt if the cache serves what it doubts, which then is not loaded.
    /// Nothing that is returned, marked or not, is older than an invalidation that had returned before the call.
    ///
    /// What it loads has the tags that the cache computes, and no others.
    ///
    /// # Errors
    /// [`LoadError`], if nothing is kept that could be served.
    ///
    /// # Cancel safety
    /// As [`Cache::get_or_load`]; loads in the background are not cancelled with a caller. They end with the cache or
    /// the node, and after the hard timeout, or a minute without one.
    ///
    /// # Panics
    /// With a timeout, outside a tokio runtime with its timer.
    pub async fn fetch<E, F>(
        &self,
        key: &K,
        load: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Fetched<V>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let core = &self.core;
        let encoded = Encoded::new(core.id, key)?;
        let load = || async { load().await.map(|value| Some(Loaded::new(value))) };
        let mut read = Read { stats: &core.stats, outcome: Outcome::Miss };
        let limited = match core.lookup(encoded.borrowed()) {
            Lookup::Hit(entry) => {
                let due = core.is_due(&entry, || core.domain.clock().coarse());
                if let Some(value) = entry.into_value() {
                    read.outcome = Outcome::Hit;
                    if due {
                        core.refresh(encoded, load);
                    }
                    return Ok(Fetched::fresh(value));
                }
                false
            }
            Lookup::Limited(entry) => {
                if let Some(fetched) = core.doubted(entry) {
                    read.outcome = Outcome::Stale;
                    return Ok(fetched);
                }
                true
            }
            Lookup::Miss => false,
        };
        let mut first = true;
        let fetched = loop {
            let (turn, outcome) = core.fetch_turn(encoded.borrowed(), limited);
            if std::mem::take(&mut first) {
                read.outcome = outcome;
            }
            match turn {
                Ok(fetched) => break Ok(fetched),
                Err(Turn::Join(waiting)) => {
                    if let Some(fetched) = self.joined(&encoded, &waiting).await {
                        break fetched;
                    }
                }
                Err(Turn::Lead(start, waiting)) => {
                    let leader = Leader::new(core.clone(), encoded.clone(), start, waiting);
                    let running = Box::pin(leader.run(load, core.settings.loads.hard_timeout));
                    break self.led(&encoded, running).await;
                }
                Err(Turn::Ready(_)) => {}
            }
        };
        if fetched.as_ref().is_ok_and(|fetched| fetched.stale) {
            read.outcome = Outcome::Stale;
        }
        fetched
    }

    /// What comes of a load of this caller's own, which goes on without it after the soft timeout.
    async fn led<E: Send + Sync + 'static>(
        &self,
        key: &Encoded,
        mut running: Running<V, E>,
    ) -> Result<Fetched<V>, LoadError<E>> {
        let core = &*self.core;
        if let Some(soft) = core.settings.loads.soft_timeout {
            match tokio::time::timeout(soft, &mut running).await {
                Ok(result) => return self.served(key, result),
                Err(_) => {
                    if let Some(kept) = core.kept(key.borrowed()) {
                        match core.background.place() {
                            Some(place) => place.run(core.domain.tasks(), core.load_time_max(), running),
                            // There is no room: it is given up, and not tried again at once.
                            None => core.pause(key.borrowed()),
                        }
                        return Ok(kept);
                    }
                }
            }
        }
        let result = running.await;
        self.served(key, result)
    }

    fn served<E>(
        &self,
        key: &Encoded,
        result: Result<Option<V>, LoadError<E>>,
    ) -> Result<Fetched<V>, LoadError<E>> {
        match result {
            Ok(value) => Ok(Fetched::fresh(value.expect("the loader brings a value"))),
            Err(error) => self.core.kept(key.borrowed()).ok_or(error),
        }
    }

    /// What comes of a load that is another's; nothing if somebody else has to load.
    async fn joined<E: Send + Sync + 'static>(
        &self,
        key: &Encoded,
        waiting: &Waiting<V>,
    ) -> Option<Result<Fetched<V>, LoadError<E>>> {
        let core = &*self.core;
        let kept = || core.kept(key.borrowed());
        let policy = &core.settings.loads;
        let age = core.domain.clock().coarse().since(waiting.since);
        let left = |time: Option<Duration>| time.map(|time| time.saturating_sub(age));
        let until = |time: Duration| Instant::now().checked_add(time);
        // Its time counts from when it began, whoever began it.
        let (soft, hard) =
            (left(policy.soft_timeout).and_then(until), left(policy.hard_timeout).and_then(until));
        let mut ended = None;
        if let Some(soft) = soft {
            ended = timeout_at(soft, waiting.wait()).await.ok();
            if ended.is_none()
                && let Some(kept) = kept()
            {
                return Some(Ok(kept));
            }
        }
        let ended = match (ended, hard) {
            (Some(ended), _) => Some(ended),
            (None, Some(hard)) => timeout_at(hard, waiting.wait()).await.ok(),
            (None, None) => Some(waiting.wait().await),
        };
        match ended {
            Some(Ended::Loaded(value)) => Some(Ok(Fetched::fresh(value.clone()))),
            Some(Ended::Failed(error)) => match (kept(), error.clone().downcast()) {
                (Some(kept), _) => Some(Ok(kept)),
                (None, Ok(error)) => Some(Err(LoadError::Loader(error))),
                // Another caller's error type: it cannot be shared.
                (None, Err(_)) => None,
            },
            None | Some(Ended::TimedOut) => Some(kept().ok_or(LoadError::TimedOut)),
            Some(Ended::Absent | Ended::Abandoned) => None,
        }
    }
}
