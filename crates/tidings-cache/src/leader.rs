//! One load: who runs its loader, and those who wait for what comes of it.

use std::any::Any;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidings_proto::histogram::Histogram;
use tidings_proto::time::Tick;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::core::Core;
use crate::entry::Entry;
use crate::flight::Start;
use crate::key::{Encoded, Key, KeyRef};
use crate::load::{Landed, Landing, LoadError};
use crate::shared::{Handing, Obtained};
use crate::tags::{Loaded, Tags};

/// How one load ended, for those who joined it.
#[derive(Debug)]
pub(crate) enum Ended<V> {
    Loaded(V),
    /// There is no value.
    Absent,
    Failed(Arc<dyn Any + Send + Sync>),
    /// Its loader took too long.
    TimedOut,
    /// Its caller went away or panicked: somebody else has to load.
    Abandoned,
}

/// What the callers of one load wait on.
#[derive(Debug)]
pub(crate) struct Waiting<V> {
    ended: OnceLock<Ended<V>>,
    notify: Notify,
    /// When it began.
    pub(crate) since: Tick,
    /// Whether what it brings may be stored, as far as its beginning decides.
    stores: bool,
    /// What they are given has to have begun later than this.
    after: AtomicU64,
}

impl<V> Waiting<V> {
    pub(crate) fn new(since: Tick, stores: bool, after: Tick) -> Arc<Self> {
        let after = AtomicU64::new(after.0);
        Arc::new(Self { ended: OnceLock::new(), notify: Notify::new(), since, stores, after })
    }

    /// Takes note of a caller that joins. Call under the key's shard lock.
    pub(crate) fn join(&self, after: Tick) {
        self.after.fetch_max(after.0, Ordering::AcqRel);
    }

    /// What any caller may be given has to have begun later than this. Under the key's shard lock nobody joins.
    pub(crate) fn after(&self) -> Tick {
        Tick(self.after.load(Ordering::Acquire))
    }

    /// Whether what the load brings may be stored, for all that was known when it began.
    pub(crate) fn stores(&self) -> bool {
        self.stores
    }

    pub(crate) fn end(&self, ended: Ended<V>) {
        // Whoever comes first decides: a guard dropped after its load ended changes nothing.
        if self.ended.set(ended).is_ok() {
            self.notify.notify_waiters();
        }
    }

    pub(crate) async fn wait(&self) -> &Ended<V> {
        loop {
            let notified = self.notify.notified();
            if let Some(ended) = self.ended.get() {
                return ended;
            }
            notified.await;
        }
    }
}

/// Where the value of a read may come from.
pub(crate) enum Turn<V> {
    /// Here it is, or there is none.
    Ready(Option<V>),
    Join(Arc<Waiting<V>>),
    Lead(Start, Arc<Waiting<V>>),
}

impl<V> Turn<V> {
    /// What a readable entry says, if it says anything to who asks.
    pub(crate) fn of(entry: Entry<V>, absence: bool) -> Option<Self> {
        let absent = entry.is_absence();
        let value = entry.into_value();
        (value.is_some() || absent && absence).then_some(Self::Ready(value))
    }
}

/// What a load brought.
enum Brought<V> {
    Value(Option<(V, Tags)>, Option<u64>),
    /// Its loader failed, panicked, or took too long.
    Failure,
    /// It was cancelled.
    Nothing,
}

/// The one who runs the loader of a flight. Releases those who wait also when it is cancelled or panics.
pub(crate) struct Leader<K: Key, V: Clone + Send + Sync + 'static> {
    pub(crate) core: Arc<Core<K, V>>,
    pub(crate) key: Encoded,
    pub(crate) start: Start,
    pub(crate) waiting: Arc<Waiting<V>>,
    /// Whether it is the one that counts as its loader's: of a loader of many keys, one is, and of one that waits for
    /// another node's none.
    pub(crate) counts: bool,
    /// Whether it is an answer that there is no value.
    pub(crate) absence: bool,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Leader<K, V> {
    pub(crate) fn new(core: Arc<Core<K, V>>, key: Encoded, start: Start, waiting: Arc<Waiting<V>>) -> Self {
        Self { core, key, start, waiting, counts: true, absence: false }
    }

    /// One whose loader another leader counts.
    pub(crate) fn uncounted(mut self) -> Self {
        self.counts = false;
        self
    }

    /// One whose caller takes for an answer that there is no value, or does not.
    pub(crate) fn answered_by(mut self, absence: bool) -> Self {
        self.absence = absence;
        self
    }

    pub(crate) fn key(&self) -> KeyRef<'_> {
        self.key.borrowed()
    }

    /// Runs the loader, or waits for what another node's brings, for no longer than `limit`: of that, a half at least is
    /// the loader's.
    pub(crate) async fn run<E, F>(
        mut self,
        load: impl FnOnce() -> F,
        limit: Option<Duration>,
    ) -> Result<Option<V>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<Option<Loaded<V>>, E>>,
    {
        let obtained = match limit {
            None => self.obtain(load, None).await,
            Some(limit) => match timeout(limit, self.obtain(load, Some(limit))).await {
                Ok(obtained) => obtained,
                Err(_) => {
                    self.end_late();
                    return Err(LoadError::TimedOut);
                }
            },
        };
        let core = &*self.core;
        match obtained {
            Obtained::Taken(value) => {
                core.tell_local_events();
                Ok(value)
            }
            Obtained::Loaded(Ok(loaded), hand) => {
                let value = loaded.as_ref().map(|loaded| loaded.value.clone());
                let handing = hand.map(|hand| Handing::of(hand, loaded.as_ref()));
                let landed = self.end_loaded(loaded);
                if let Some(handing) = handing.filter(|_| landed.is_sound()) {
                    core.hand_in(handing, value.as_ref());
                }
                core.tell_local_events();
                Ok(value)
            }
            Obtained::Loaded(Err(error), _) => {
                let error = Arc::new(error);
                self.end_failed(error.clone());
                Err(LoadError::Loader(error))
            }
        }
    }

    /// Returns what became of it.
    pub(crate) fn end_loaded(&self, loaded: Option<Loaded<V>>) -> Landed {
        let value = loaded.as_ref().map(|loaded| loaded.value.clone());
        let version = loaded.as_ref().and_then(|loaded| loaded.version);
        let tagged = loaded.map(|Loaded { value, tags, .. }| {
            self.core.tags_loaded((self.key(), None), &value, &tags).map(|tags| (value, tags))
        });
        // What cannot have its tags is not stored.
        let brought = tagged.transpose().map_or(Brought::Nothing, |value| Brought::Value(value, version));
        let landed = self.land(brought);
        self.waiting.end(value.map_or(Ended::Absent, Ended::Loaded));
        // Last, for a value whose `clone` panics counts as failed.
        if self.counts {
            self.core.stats.loaded.count();
        }
        landed
    }

    pub(crate) fn end_failed(&self, error: Arc<dyn Any + Send + Sync>) {
        self.count_failure();
        self.land(Brought::Failure);
        self.waiting.end(Ended::Failed(error));
    }

    fn end_late(&self) {
        self.count_failure();
        self.land(Brought::Failure);
        self.waiting.end(Ended::TimedOut);
    }

    fn count_failure(&self) {
        if self.counts {
            self.core.stats.load_failures.count();
        }
    }

    /// Takes the flight out of the table; stores what it brought if nothing had ended it.
    fn land(&self, brought: Brought<V>) -> Landed {
        let core = &*self.core;
        let key = self.key.borrowed();
        let mut shard = core.shard(key);
        let now = core.domain.clock().coarse();
        let sound = shard.flights.finish(key, self.start, core.epoch(key.slot()), now);
        match brought {
            Brought::Value(value, version) => {
                let sound = sound && self.waiting.stores;
                let landing = Landing { start: self.start, sound, ttl: None, version };
                let (landed, displaced) = core.land(&mut shard, key, value, landing);
                drop(shard);
                drop(displaced);
                return landed;
            }
            Brought::Failure => shard.pause(key, now),
            Brought::Nothing => {}
        }
        Landed::Ended
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for Leader<K, V> {
    fn drop(&mut self) {
        if self.waiting.ended.get().is_none() {
            self.count_failure();
            self.land(if std::thread::panicking() { Brought::Failure } else { Brought::Nothing });
            self.waiting.end(Ended::Abandoned);
        }
    }
}

/// Records how long a loader took, however it ends.
pub(crate) struct Timed<'a> {
    clock: &'a Clock,
    times: &'a Histogram,
    since: Tick,
}

impl<'a> Timed<'a> {
    pub(crate) fn start(clock: &'a Clock, times: &'a Histogram) -> Self {
        Self { clock, times, since: clock.now() }
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.times.record(self.clock.now().since(self.since));
    }
}
