//! Loads: flights around moka, so that a slow load never overwrites a newer
//! invalidation, and one loader runs per key.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::time::Tick;

use crate::cache::Cache;
use crate::core::{Birth, Core, Lookup, ShardGuard};
use crate::entry::Entry;
use crate::flight::{Joinable, Purpose, Start};
use crate::key::{Encoded, Key, KeyError, KeyRef};
use crate::leader::{Ended, Leader, Turn, Waiting};
use crate::stats::Outcome;
use crate::tags::{Loaded, TagError, Tags};

/// How a flight ended that has brought a value.
pub(crate) struct Landing {
    pub(crate) start: Start,
    /// Nothing had ended it.
    pub(crate) sound: bool,
    pub(crate) ttl: Option<Duration>,
    pub(crate) version: Option<u64>,
}

/// What became of what a flight brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    Stored,
    /// Nothing had ended its flight, and it is not stored all the same.
    Unstored,
    /// It may be too old.
    Ended,
}

impl Landed {
    /// Whether it is as good as any, for all that is known here.
    pub(crate) fn is_sound(self) -> bool {
        self != Self::Ended
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Where a read gets its value from, and what it counts as. Only who takes `absence` for an answer gets it.
    pub(crate) fn turn(&self, key: &Encoded, absence: bool) -> (Turn<V>, Outcome) {
        let key = key.borrowed();
        let limited = match self.lookup(key) {
            Lookup::Hit(entry) => {
                if let Some(turn) = Turn::of(entry, absence) {
                    return (turn, Outcome::Hit);
                }
                false
            }
            Lookup::Limited(_) => true,
            Lookup::Miss => false,
        };
        self.turn_in(&mut self.shard(key), key, absence, limited)
    }

    /// As [`Core::turn`], under the key's shard lock.
    pub(crate) fn turn_in(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        absence: bool,
        limited: bool,
    ) -> (Turn<V>, Outcome) {
        // A load may have landed between the look and the lock: were it not seen, a second loader would run. The request
        // has been counted.
        if let Lookup::Hit(entry) = self.glance(key)
            && let Some(turn) = Turn::of(entry, absence)
        {
            return (turn, Outcome::Hit);
        }
        match self.join_or_lead(shard, key) {
            turn if limited => (turn, Outcome::Limited),
            turn @ Turn::Join(_) => (turn, Outcome::Coalesced),
            turn => (turn, Outcome::Miss),
        }
    }

    /// The load of a key that is under way, if it may be joined, else a new one. Under the key's shard lock.
    pub(crate) fn join_or_lead(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>) -> Turn<V> {
        let now = self.domain.clock().coarse();
        let epoch = self.epoch(key.slot());
        let lag = self.settings.replica_lag;
        let after = self.joinable_after(now).max(shard.mark).before(lag);
        let as_of = shard.after_mark(now).before(lag);
        let stores = self.may_store(shard, key, as_of);
        // One that may lack a write that was still to land is not for those who come after that.
        if let Some(waiting) = shard.flights.join(key, Joinable { epoch, after })
            && (waiting.stores() || !stores)
        {
            waiting.join(after);
            return Turn::Join(waiting);
        }
        let waiting = Waiting::new(now, stores, after);
        let start = shard.flights.begin_load(key, epoch, as_of, waiting.clone());
        Turn::Lead(start, waiting)
    }

    pub(crate) fn joinable_after(&self, now: Tick) -> Tick {
        if self.travels() { self.domain.gate().joinable_after(now) } else { Tick::NEVER }
    }

    /// Opens a guard. Returns with it whether what it ends in may not be stored, for it begins while its key's truth is
    /// uncertain.
    pub(crate) fn guard(&self, key: &Encoded, purpose: Purpose) -> (Start, bool) {
        let key = key.borrowed();
        let mut shard = self.shard(key);
        let began = shard.after_mark(self.domain.clock().coarse());
        let start = shard.flights.begin_guard(key, self.epoch(key.slot()), began, purpose);
        (start, self.is_uncertain(&shard, key, began))
    }

    /// Closes a guard, if it is still open, without a result.
    pub(crate) fn close_guard(&self, key: &Encoded, start: Start) {
        let key = key.borrowed();
        let now = self.domain.clock().coarse();
        self.shard(key).flights.finish(key, start, self.epoch(key.slot()), now);
    }

    /// The tags of a value that was loaded. One that cannot have its tags is not stored, which is counted. Runs user
    /// code: call without any lock.
    pub(crate) fn tags_loaded(
        &self,
        key: (KeyRef<'_>, Option<&K>),
        value: &V,
        given: &[String],
    ) -> Result<Tags, TagError> {
        self.tags_of(key, value, given).inspect_err(|_| self.stats.untagged.count())
    }

    /// Stores what a flight has brought, a value or its absence, if it is sound. Call under the key's shard lock.
    pub(crate) fn land(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        value: Option<(V, Tags)>,
        Landing { start, sound, ttl, version }: Landing,
    ) -> (Landed, Option<Entry<V>>) {
        let kept = value.is_some() || self.settings.loads.negative_ttl.is_some();
        let ttl = if value.is_none() { self.settings.loads.negative_ttl } else { ttl };
        let (value, tags) = value.unzip();
        let was_named = match &tags {
            Some(tags) => self.was_named(shard, key, tags, start.began),
            // Nobody knows the tags of a value that was not found.
            None => self.dated(start.began) <= shard.mark,
        };
        let tags = tags.unwrap_or_default();
        let sound = sound && !self.is_closed() && !was_named && !self.goes_down(shard, key, version);
        let sound = sound && self.may_fill(shard, key);
        let stored = sound && kept && !self.bypasses();
        if sound && !stored {
            self.end_expired(shard, key, start.began);
        }
        if !kept {
            return (if sound { Landed::Unstored } else { Landed::Ended }, None);
        }
        if stored {
            shard.flights.end_decisions(key);
            let displaced = self.store(key, value, Birth { began: start.began, epoch: start.epoch, ttl });
            self.set_tags(shard, key, tags);
            self.set_version(shard, key, version);
            (Landed::Stored, displaced.entry)
        } else if sound {
            self.stats.bypassed.count();
            (Landed::Unstored, None)
        } else {
            self.stats.fence_rejects.count();
            (Landed::Ended, None)
        }
    }

    /// Removes what has expired of a key and is from before a moment at which its truth was read: the fail-safe would
    /// serve it. Call under the key's shard lock.
    fn end_expired(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>, read: Tick) {
        if self.settings.loads.fail_safe.is_none() {
            return;
        }
        let over = |entry: &Entry<V>| self.is_over(entry.expires) && entry.began <= read;
        if self.entries.look(&key, over).unwrap_or(false) {
            self.entries.invalidate(&key);
            shard.untag(key);
            shard.unversion(key);
        }
    }
}

/// A read or a load failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The loader failed; callers that waited for it share its error.
    #[error("the loader failed: {0}")]
    Loader(Arc<E>),
    /// The loader did not answer within the cache's hard timeout. Only [`Cache::fetch`] has one.
    #[error("the loader did not answer in time")]
    TimedOut,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// The value of a key, loaded if it is not cached. One loader runs per key and node; callers that come meanwhile
    /// wait for it. The result is stored only if nothing invalidated the key since the load began, and is never
    /// broadcast: a fill is no news.
    ///
    /// What is returned is never older than an invalidation that had returned before the call, but for what a replica
    /// lacks that the loader reads ([`crate::CacheBuilder::replica_lag`]). Where one load serves the cluster
    /// ([`crate::CacheBuilder::one_loader_per_cluster`]), this node's loader may not run at all, and what is returned is
    /// never older than an invalidation that had been applied here before the call.
    ///
    /// # Errors
    /// [`LoadError`]. Failures are not cached.
    ///
    /// # Cancel safety
    /// Cancelling the caller whose loader runs cancels the loader; one of those who wait then runs its own. A loader
    /// that panics releases them likewise.
    ///
    /// # Panics
    /// Only if `load` does.
    pub async fn get_or_load<E, F>(&self, key: &K, load: impl FnOnce() -> F) -> Result<V, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        self.get_or_load_tagged(key, || async { load().await.map(Loaded::new) }).await
    }

    /// As [`Cache::get_or_load`], with a loader that says which tags its value has, besides those that
    /// [`crate::CacheBuilder::tags`] computes. A value whose tags are too many or too long is returned, and not stored.
    ///
    /// # Errors
    /// [`LoadError`]. Failures are not cached.
    ///
    /// # Cancel safety
    /// As [`Cache::get_or_load`].
    ///
    /// # Panics
    /// Only if `load` does.
    pub async fn get_or_load_tagged<E, F>(&self, key: &K, load: impl FnOnce() -> F) -> Result<V, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<Loaded<V>, E>>,
    {
        let load = || async { load().await.map(Some) };
        let loaded = self.load_one(key, false, load).await?;
        Ok(loaded.expect("only who asks for it is told of an absence"))
    }

    /// As [`Cache::get_or_load`]; `absence` says whether that there is no value is an answer.
    pub(crate) async fn load_one<E, F>(
        &self,
        key: &K,
        absence: bool,
        load: impl FnOnce() -> F,
    ) -> Result<Option<V>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<Option<Loaded<V>>, E>>,
    {
        let core = &self.core;
        let key = Encoded::new(core.id, key)?;
        let mut first = true;
        loop {
            let (turn, outcome) = core.turn(&key, absence);
            // One outcome counts for a read: the first turn's.
            if std::mem::take(&mut first) {
                core.stats.count_read(outcome);
            }
            let waiting = match turn {
                Turn::Ready(value) => return Ok(value),
                Turn::Join(waiting) => waiting,
                Turn::Lead(start, waiting) => {
                    let leader = Leader::new(core.clone(), key, start, waiting).answered_by(absence);
                    return leader.run(load, None).await;
                }
            };
            match waiting.wait().await {
                Ended::Loaded(value) => return Ok(Some(value.clone())),
                Ended::Absent if absence => return Ok(None),
                Ended::Failed(error) => {
                    if let Ok(error) = error.clone().downcast() {
                        return Err(LoadError::Loader(error));
                    }
                    // Another caller's error type: it cannot be shared, so this one loads for itself.
                }
                Ended::Absent | Ended::TimedOut | Ended::Abandoned => {}
            }
        }
    }
}
