//! Loads, write-throughs and fill tokens: flights around moka, so that a slow load never overwrites a newer
//! invalidation, and one loader runs per key.

use std::any::Any;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidings_proto::event::Operation;
use tidings_proto::histogram::Histogram;
use tidings_proto::time::Tick;
use tokio::sync::Notify;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::core::{Birth, Core, Lookup, ShardGuard};
use crate::domain::OpenWrite;
use crate::flight::{Joinable, Purpose, Start};
use crate::key::{Encoded, Key, KeyError, KeyRef};
use crate::stats::Striped;
use crate::tags::{Loaded, TagError, Tags};
use crate::write::{Change, Options, Subject, When, WriteError, Written};

/// How one load ended, for those who joined it.
#[derive(Debug)]
enum Ended<V> {
    Loaded(V),
    Failed(Arc<dyn Any + Send + Sync>),
    /// Its caller went away or panicked: somebody else has to load.
    Abandoned,
}

/// What the callers of one load wait on.
#[derive(Debug)]
pub(crate) struct Waiting<V> {
    ended: OnceLock<Ended<V>>,
    notify: Notify,
}

impl<V> Waiting<V> {
    fn new() -> Arc<Self> {
        Arc::new(Self { ended: OnceLock::new(), notify: Notify::new() })
    }

    fn end(&self, ended: Ended<V>) {
        // Whoever comes first decides: a guard dropped after its load ended changes nothing.
        if self.ended.set(ended).is_ok() {
            self.notify.notify_waiters();
        }
    }

    async fn wait(&self) -> &Ended<V> {
        loop {
            let notified = self.notify.notified();
            if let Some(ended) = self.ended.get() {
                return ended;
            }
            notified.await;
        }
    }
}

/// How a flight ended that has brought a value.
pub(crate) struct Landing {
    pub(crate) start: Start,
    /// Nothing had ended it.
    pub(crate) sound: bool,
    pub(crate) ttl: Option<Duration>,
}

/// Where the value of [`Cache::get_or_load`] may come from.
enum Turn<V> {
    Ready(V),
    Join(Arc<Waiting<V>>),
    Lead(Start, Arc<Waiting<V>>),
}

/// Releases the waiters of a load whose caller is cancelled or panics.
struct Leader<'a, K: Key, V: Clone + Send + Sync + 'static> {
    core: &'a Core<K, V>,
    key: &'a Encoded,
    start: Start,
    waiting: Arc<Waiting<V>>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Leader<'_, K, V> {
    /// Takes the flight out of the table; stores the value if nothing had ended it.
    fn land(&self, value: Option<(V, Tags)>) {
        let key = self.key.borrowed();
        let mut shard = self.core.shard(key);
        let now = self.core.domain.clock().coarse();
        let sound = shard.flights.finish(key, self.start, self.core.epoch(key.slot()), now);
        if let Some((value, tags)) = value {
            self.core.land(&mut shard, (key, tags), value, Landing { start: self.start, sound, ttl: None });
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for Leader<'_, K, V> {
    fn drop(&mut self) {
        if self.waiting.ended.get().is_none() {
            self.core.stats.load_failures.count();
            self.land(None);
            self.waiting.end(Ended::Abandoned);
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Where a read gets its value from. One outcome counts for a read: the `first` turn's.
    fn turn(&self, key: &Encoded, first: bool) -> Turn<V> {
        let count = |outcome: &Striped| {
            if first {
                outcome.count();
            }
        };
        let mut limited = false;
        match self.lookup(key.borrowed()) {
            Lookup::Hit(entry) => {
                if let Some(value) = entry.into_value() {
                    count(&self.stats.hits);
                    return Turn::Ready(value);
                }
            }
            Lookup::Limited => limited = true,
            Lookup::Miss => {}
        }
        let key = key.borrowed();
        let now = self.domain.clock().coarse();
        let mut shard = self.shard(key);
        // A load may have landed between the look and the lock: were it not seen, a second loader would run.
        if let Lookup::Hit(entry) = self.lookup(key)
            && let Some(value) = entry.into_value()
        {
            count(&self.stats.hits);
            return Turn::Ready(value);
        }
        let epoch = self.epoch(key.slot());
        let after = self.joinable_after(now).max(shard.mark);
        if let Some(waiting) = shard.flights.join(key, Joinable { epoch, after }) {
            count(if limited { &self.stats.limited } else { &self.stats.coalesced });
            return Turn::Join(waiting);
        }
        count(if limited { &self.stats.limited } else { &self.stats.misses });
        let waiting = Waiting::new();
        let began = shard.after_mark(now);
        let start = shard.flights.begin_load(key, epoch, began, waiting.clone());
        Turn::Lead(start, waiting)
    }

    fn joinable_after(&self, now: Tick) -> Tick {
        if self.travels() { self.domain.gate().joinable_after(now) } else { Tick::NEVER }
    }

    /// Opens a guard.
    pub(crate) fn guard(&self, key: &Encoded, purpose: impl FnOnce(Tick) -> Purpose) -> Start {
        let key = key.borrowed();
        let mut shard = self.shard(key);
        let now = self.domain.clock().coarse();
        let began = shard.after_mark(now);
        shard.flights.begin_guard(key, self.epoch(key.slot()), began, purpose(now))
    }

    /// Closes a guard, if it is still open, without a result.
    pub(crate) fn close_guard(&self, key: &Encoded, start: Start) {
        let key = key.borrowed();
        let now = self.domain.clock().coarse();
        self.shard(key).flights.finish(key, start, self.epoch(key.slot()), now);
    }

    /// The tags of a value that was loaded. One that cannot have its tags is not stored, which is counted.
    pub(crate) fn tags_loaded(
        &self,
        (key, typed): (KeyRef<'_>, &K),
        value: &V,
        given: &[String],
    ) -> Result<Tags, TagError> {
        self.tags_of((key, Some(typed)), value, given).inspect_err(|_| self.stats.untagged.count())
    }

    /// Stores what a flight has brought, if it is sound. Call under the key's shard lock. Returns whether it did.
    pub(crate) fn land(
        &self,
        shard: &mut ShardGuard<'_, V>,
        (key, tags): (KeyRef<'_>, Tags),
        value: V,
        Landing { start, sound, ttl }: Landing,
    ) -> bool {
        let stored = sound && !self.is_closed() && !self.was_named(shard, key, &tags, start.began);
        if stored {
            shard.flights.end_decisions(key);
            // Loads fill a table too.
            let _ = self.room();
            self.store(key, value, Birth { began: start.began, epoch: start.epoch, ttl });
            self.set_tags(shard, key, tags);
        } else {
            self.stats.fence_rejects.count();
        }
        stored
    }
}

/// A read or a load failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError<E> {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The loader failed; callers that waited for it share its error.
    #[error("the loader failed: {0}")]
    Loader(Arc<E>),
}

/// A write-through failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteThroughError<E> {
    /// The user's write failed, and may have happened all the same: the key was removed here and at every peer.
    #[error("the write failed: {0}")]
    Write(E),
    /// The cache could not be told. If the key cannot be used, the cache was closed before or the node is leaving,
    /// the user's write did not run; otherwise it was made, and the local entry was removed.
    #[error("the change could not be broadcast")]
    Cache(#[source] WriteError),
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// The value of a key, loaded if it is not cached. One loader runs per key and node; callers that come meanwhile
    /// wait for it. The result is stored only if nothing invalidated the key since the load began, and is never
    /// broadcast: a fill is no news.
    ///
    /// What is returned is never older than an invalidation that had returned before the call.
    ///
    /// # Errors
    /// [`LoadError`]. Failures are not cached.
    ///
    /// # Cancel safety
    /// Cancelling the caller whose loader runs cancels the loader; one of those who wait then runs its own. A loader
    /// that panics releases them likewise.
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
    pub async fn get_or_load_tagged<E, F>(&self, key: &K, load: impl FnOnce() -> F) -> Result<V, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<Loaded<V>, E>>,
    {
        let core = &*self.core;
        let encoded = Encoded::new(core.id, key)?;
        let mut first = true;
        loop {
            let turn = core.turn(&encoded, first);
            first = false;
            let (start, waiting) = match turn {
                Turn::Ready(value) => return Ok(value),
                Turn::Join(waiting) => match waiting.wait().await {
                    Ended::Loaded(value) => return Ok(value.clone()),
                    Ended::Failed(error) => match error.clone().downcast() {
                        Ok(error) => return Err(LoadError::Loader(error)),
                        // Another caller's error type: it cannot be shared, so this one loads for itself.
                        Err(_) => continue,
                    },
                    Ended::Abandoned => continue,
                },
                Turn::Lead(start, waiting) => (start, waiting),
            };
            let leader = Leader { core, key: &encoded, start, waiting };
            core.stats.loads.count();
            let timed = Timed::start(core.domain.clock(), &core.load_time);
            let result = load().await;
            drop(timed);
            return match result {
                Ok(Loaded { value, tags }) => {
                    let tags = core.tags_loaded((encoded.borrowed(), key), &value, &tags);
                    leader.land(tags.ok().map(|tags| (value.clone(), tags)));
                    leader.waiting.end(Ended::Loaded(value.clone()));
                    // Last, for a value whose `clone` panics counts as failed.
                    core.stats.loaded.count();
                    core.tell_local_events();
                    Ok(value)
                }
                Err(error) => {
                    let error = Arc::new(error);
                    core.stats.load_failures.count();
                    leader.land(None);
                    leader.waiting.end(Ended::Failed(error.clone()));
                    Err(LoadError::Loader(error))
                }
            };
        }
    }

    /// Runs the user's write of a key's truth, then stores its value here and evicts the key at every peer. Safe
    /// against concurrent writers, loads, failure and cancellation: if anything else touched the key meanwhile, the
    /// value is not stored, and the key is evicted everywhere.
    ///
    /// # Errors
    /// [`WriteThroughError::Write`]: the write failed; since it may have happened all the same, the key is evicted
    /// everywhere. [`WriteThroughError::Cache`]: it was made, and could not be broadcast.
    ///
    /// # Cancel safety
    /// Cancelled, or panicking, it evicts the key everywhere.
    ///
    /// # Panics
    /// Only if `write` does.
    pub async fn write_through<E, F>(
        &self,
        key: &K,
        write: impl FnOnce() -> F,
    ) -> Result<(V, Written), WriteThroughError<E>>
    where
        F: Future<Output = Result<V, E>>,
    {
        let core = &*self.core;
        let encoded = Encoded::new(core.id, key).map_err(|error| WriteThroughError::Cache(error.into()))?;
        // Announced before the check, so that a node that leaves either waits for this write or refuses it.
        let _announced = OpenWrite::of(&core.domain);
        if core.domain.is_leaving() {
            return Err(WriteThroughError::Cache(WriteError::Leaving));
        }
        if core.is_closed() {
            return Err(WriteThroughError::Cache(WriteError::Closed));
        }
        let start = core.guard(&encoded, |_| Purpose::Write);
        let mut guard = Uncertain { cache: self, key, encoded: &encoded, start, open: true };
        let value = match write().await {
            Ok(value) => value,
            Err(error) => {
                drop(guard);
                return Err(WriteThroughError::Write(error));
            }
        };
        let subject = Subject { key: encoded.borrowed(), typed: Some(key) };
        let options = Options { ends_write: true, ..Options::default() };
        // The guard stays open until the change was made or refused: a panic of the value's `clone` is one of the
        // write's.
        let change = Change::Put(value.clone());
        let outcome =
            core.change(subject, Operation::WriteThrough, &options, When::StoreUnended(start), change);
        // A value that cannot have its tags was judged before anything was changed: the guard ends as of a failed write.
        guard.open = matches!(outcome, Err(WriteError::Tags(_)));
        let outcome = outcome.map_err(WriteThroughError::Cache)?;
        let written = outcome.written.expect("a write-through is made whatever ended its guard");
        Ok((value, written))
    }
}

/// A write-through that is under way: unless it is closed, what it wrote is unknown.
struct Uncertain<'a, K: Key, V: Clone + Send + Sync + 'static> {
    cache: &'a Cache<K, V>,
    key: &'a K,
    encoded: &'a Encoded,
    start: Start,
    open: bool,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for Uncertain<'_, K, V> {
    fn drop(&mut self) {
        let core = &*self.cache.core;
        if self.open {
            core.close_guard(self.encoded, self.start);
            let subject = Subject { key: self.encoded.borrowed(), typed: Some(self.key) };
            let options = Options { ends_write: true, ..Options::default() };
            let removed =
                core.change(subject, Operation::WriteThrough, &options, When::Always, Change::Remove);
            if let Err(error) = removed {
                tracing::warn!(cache = %core.name, %error, "a failed write could not be broadcast");
            }
        }
    }
}

/// Records how long a loader took, however it ends.
struct Timed<'a> {
    clock: &'a Clock,
    times: &'a Histogram,
    since: Tick,
}

impl<'a> Timed<'a> {
    fn start(clock: &'a Clock, times: &'a Histogram) -> Self {
        Self { clock, times, since: clock.now() }
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.times.record(self.clock.now().since(self.since));
    }
}
