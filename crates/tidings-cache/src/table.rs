//! moka's table as the cache uses it: what its entries hold, when they go, and what it says of that.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moka::notification::RemovalCause;
use parking_lot::Mutex;
use tidings_proto::event::EventKind;
use tidings_proto::time::Tick;

use crate::builder::{Settings, Weigher};
use crate::clock::Clock;
use crate::key::{CarriedHash, StoredKey};
use crate::stats::Striped;
use crate::topic::Audience;

/// Expiries and evictions that wait to be told. More are dropped and counted: they are informational.
const LOCAL_EVENTS_MAX: usize = 4_096;

/// Longest time that moka is told of: a hundred years. It panics beyond a thousand.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A value as moka holds it.
#[derive(Debug)]
pub(crate) struct Entry<V> {
    /// Nothing in a clone that was made while [`Bare`] lived.
    value: Option<V>,
    /// When the load that brought it began.
    pub(crate) began: Tick,
    /// When its time to live is over.
    pub(crate) expires: Tick,
    /// Its slot's epoch when the load began.
    pub(crate) epoch: u32,
    /// What it remembers is that there is no value.
    pub(crate) absent: bool,
}

impl<V> Entry<V> {
    pub(crate) fn new(value: Option<V>, began: Tick, expires: Tick, epoch: u32) -> Self {
        Self { absent: value.is_none(), value, began, expires, epoch }
    }

    /// The value, unless the entry was looked at without it.
    #[inline]
    pub(crate) fn into_value(self) -> Option<V> {
        self.value
    }
}

/// moka clones what it hands out: a value that nobody wants is left where it is.
impl<V: Clone> Clone for Entry<V> {
    #[inline]
    fn clone(&self) -> Self {
        let value = if BARE.get() { None } else { self.value.clone() };
        Self { value, began: self.began, expires: self.expires, epoch: self.epoch, absent: self.absent }
    }
}

pub(crate) type Table<V> = moka::sync::Cache<StoredKey, Entry<V>, CarriedHash>;

thread_local! {
    /// Whether the insert that this thread is in found its key in the table.
    static UPDATED: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread looks at an entry without using it.
    static PEEKING: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread wants entries without their values.
    static BARE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, the entries that this thread is handed have no values: removing what peers have changed, or looking
/// through all entries, copies none.
pub(crate) struct Bare {
    before: bool,
}

impl Bare {
    pub(crate) fn begin() -> Self {
        Self { before: BARE.replace(true) }
    }

    /// Wants values again, within what wants none: a value's `Drop` may store something.
    fn interrupt() -> Self {
        Self { before: BARE.replace(false) }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        BARE.set(self.before);
    }
}

/// While it lives, this thread's reads are no accesses.
pub(crate) struct Peeking;

impl Peeking {
    pub(crate) fn begin() -> Self {
        PEEKING.set(true);
        Self
    }
}

impl Drop for Peeking {
    fn drop(&mut self) {
        PEEKING.set(false);
    }
}

/// Expiries and evictions, from moka's listener to whoever drains next.
#[derive(Debug)]
pub(crate) struct LocalEvents {
    queue: Mutex<Vec<LocalEvent>>,
    waiting: AtomicBool,
    audience: Audience,
    pub(crate) counts: LocalCounts,
}

#[derive(Debug)]
pub(crate) struct LocalEvent {
    pub(crate) key: Arc<StoredKey>,
    pub(crate) kind: EventKind,
    pub(crate) began: Tick,
    pub(crate) epoch: u32,
}

#[derive(Debug, Default)]
pub(crate) struct LocalCounts {
    pub(crate) evicted: Striped,
    pub(crate) expired: Striped,
    pub(crate) dropped: Striped,
}

impl LocalEvents {
    pub(crate) fn new(audience: Audience) -> Self {
        Self {
            queue: Mutex::default(),
            waiting: AtomicBool::new(false),
            audience,
            counts: LocalCounts::default(),
        }
    }

    /// Takes what waits. Costs one load where nothing does.
    pub(crate) fn take(&self) -> Vec<LocalEvent> {
        if !self.waiting.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut queue = self.queue.lock();
        self.waiting.store(false, Ordering::Release);
        std::mem::take(&mut *queue)
    }

    fn push<V>(&self, key: Arc<StoredKey>, kind: EventKind, entry: &Entry<V>) {
        match kind {
            EventKind::Expired => self.counts.expired.count(),
            _ => self.counts.evicted.count(),
        }
        if self.audience.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.len() < LOCAL_EVENTS_MAX {
            queue.push(LocalEvent { key, kind, began: entry.began, epoch: entry.epoch });
            self.waiting.store(true, Ordering::Release);
        } else {
            self.counts.dropped.count();
        }
    }
}

/// Tells moka when an entry's time is over, so that its memory is reclaimed soon; of its time to live hits judge by
/// themselves.
struct Times {
    clock: Clock,
    idle: Option<Duration>,
    /// For how long after its time to live an entry is kept.
    keeps: Duration,
}

impl Times {
    fn left<V>(&self, entry: &Entry<V>) -> Option<Duration> {
        let live = (entry.expires != Tick::FOREVER)
            .then(|| entry.expires.after(self.keeps).since(self.clock.coarse()));
        live.into_iter().chain(self.idle).min()
    }
}

impl<V> moka::Expiry<StoredKey, Entry<V>> for Times {
    fn expire_after_create(&self, _: &StoredKey, entry: &Entry<V>, _: Instant) -> Option<Duration> {
        self.left(entry)
    }

    fn expire_after_read(
        &self,
        _: &StoredKey,
        entry: &Entry<V>,
        _: Instant,
        left: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        if self.idle.is_some() && !PEEKING.get() { self.left(entry) } else { left }
    }

    fn expire_after_update(
        &self,
        _: &StoredKey,
        entry: &Entry<V>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        UPDATED.set(true);
        self.left(entry)
    }
}

pub(crate) fn table<V: Clone + Send + Sync + 'static>(
    settings: &Settings,
    clock: &Clock,
    weigher: Option<Weigher<V>>,
    local_events: &Arc<LocalEvents>,
) -> Table<V> {
    let keeps = settings.loads.keeps();
    let mut builder = moka::sync::Cache::builder().max_capacity(settings.max_capacity);
    if settings.watches_entries() {
        let idle = settings.time_to_idle.map(|time| time.min(TIME_MAX));
        builder = builder.expire_after(Times { clock: clock.clone(), idle, keeps });
    } else if let Some(time) = settings.time_to_live {
        builder = builder.time_to_live(time.saturating_add(keeps).min(TIME_MAX));
    }
    if settings.eviction_events {
        let events = local_events.clone();
        let listener = move |key: Arc<StoredKey>, entry: Entry<V>, cause: RemovalCause| match cause {
            RemovalCause::Replaced | RemovalCause::Explicit => {}
            RemovalCause::Expired => events.push(key, EventKind::Expired, &entry),
            RemovalCause::Size => events.push(key, EventKind::Evicted, &entry),
        };
        builder = builder.eviction_listener(listener);
    }
    if let Some(weigher) = weigher {
        builder = builder.weigher(move |key: &StoredKey, entry: &Entry<V>| {
            // What is stored has its value, unless it is that there is none: then its key is what it takes.
            let key = key.borrowed().bytes;
            entry.value.as_ref().map_or(key.len() as u32, |value| weigher(key, value))
        });
    }
    builder.build_with_hasher(CarriedHash::default())
}

/// Stores an entry. Returns whether the table had one of this key, which only one that is watched can tell.
pub(crate) fn replace<V: Clone + Send + Sync + 'static>(
    table: &Table<V>,
    key: StoredKey,
    entry: Entry<V>,
) -> bool {
    // moka stores a clone.
    let _whole = Bare::interrupt();
    UPDATED.set(false);
    table.insert(key, entry);
    UPDATED.get()
}

#[cfg(test)]
mod tests {
    use tidings_proto::hash::CacheId;

    use super::*;
    use crate::key::Encoded;

    #[test]
    fn what_is_stored_has_its_value_whoever_wants_none() {
        let table: Table<u64> = moka::sync::Cache::builder().build_with_hasher(CarriedHash::default());
        let key = Encoded::new(CacheId(1), "k").expect("a short key");
        let get = || table.get(&key.borrowed()).and_then(Entry::into_value);
        let outer = Bare::begin();
        replace(&table, key.borrowed().stored(), Entry::new(Some(7), Tick(1), Tick::FOREVER, 1));
        drop(Bare::begin());
        assert_eq!(get(), None, "the outer one still wants none");
        drop(outer);
        assert_eq!(get(), Some(7));
    }
}
