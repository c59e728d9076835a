//! moka's table as the cache uses it: what its entries hold, when they go, and what it says of that.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use equivalent::Equivalent;
use moka::notification::RemovalCause;
use parking_lot::{Mutex, RwLock};
use tidings_proto::event::EventKind;
use tidings_proto::time::Tick;

use crate::builder::{Settings, Weigher};
use crate::clock::Clock;
use crate::entry::{Entry, Kept, Looking, Stored, exchange};
use crate::key::{CarriedHash, KeyRef, StoredKey};
use crate::stats::Striped;
use crate::topic::Audience;

/// Expiries and evictions that wait to be told. More are dropped and counted: they are informational.
const LOCAL_EVENTS_MAX: usize = 4_096;

/// Longest time that moka is told of: a hundred years. It panics beyond a thousand.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// One read in so many is told to moka as an access while the table is less than half full. Until then moka itself
/// counts no frequencies, and what the rest would have told it, the order of accesses, is nearly the same.
const ACCESSES_SAMPLED: u64 = 8;

/// moka's table of entries, by their keys.
pub(crate) struct Table<V> {
    entries: moka::sync::Cache<Stored<V>, Kept<V>, CarriedHash>,
    /// Half of the capacity.
    half: u64,
    /// Every read is an access, for a time to idle.
    idles: bool,
    /// moka has to be told of every exchange, for the weight of what is stored, or when it was, means something to it.
    tells: bool,
    weigher: Option<Weigher<V>>,
    /// Reads while the table is less than half full.
    sampled: Striped,
}

/// What became of an entry that was offered for another.
enum Exchanged<V> {
    /// The one that was there, and where the other is now.
    Was(Entry<V>, Kept<V>),
    /// There was none: what was offered.
    New(Entry<V>),
    /// Somebody reads the one that is there: what was offered.
    Busy(Entry<V>),
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
    pub(crate) key: StoredKey,
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

    fn push<V>(&self, stored: &Stored<V>, entry: &Entry<V>, kind: EventKind) {
        match kind {
            EventKind::Expired => self.counts.expired.count(),
            _ => self.counts.evicted.count(),
        }
        if self.audience.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.len() < LOCAL_EVENTS_MAX {
            let key = stored.key().stored();
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

impl<V> moka::Expiry<Stored<V>, Kept<V>> for Times {
    fn expire_after_create(&self, _: &Stored<V>, kept: &Kept<V>, _: Instant) -> Option<Duration> {
        self.left(&kept.read())
    }

    fn expire_after_read(
        &self,
        _: &Stored<V>,
        kept: &Kept<V>,
        _: Instant,
        left: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        if self.idle.is_some() { self.left(&kept.read()) } else { left }
    }

    fn expire_after_update(
        &self,
        _: &Stored<V>,
        kept: &Kept<V>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.left(&kept.read())
    }
}

/// A key of whose entry nothing is asked.
#[inline]
fn just<V>(key: &KeyRef<'_>) -> impl Hash + Equivalent<Stored<V>> {
    Looking::new(key, |_: &Stored<V>| Some(()))
}

impl<V: Send + Sync + 'static> Table<V> {
    pub(crate) fn new(
        settings: &Settings,
        clock: &Clock,
        weigher: Option<Weigher<V>>,
        local_events: &Arc<LocalEvents>,
    ) -> Self {
        let tells = settings.watches_entries() || weigher.is_some();
        let mut builder = moka::sync::Cache::builder().max_capacity(settings.max_capacity);
        if settings.watches_entries() {
            let idle = settings.time_to_idle.map(|time| time.min(TIME_MAX));
            builder =
                builder.expire_after(Times { clock: clock.clone(), idle, keeps: settings.loads.keeps() });
        }
        if settings.eviction_events {
            let events = local_events.clone();
            let listener = move |stored: Arc<Stored<V>>, kept: Kept<V>, cause: RemovalCause| match cause {
                RemovalCause::Replaced | RemovalCause::Explicit => {}
                RemovalCause::Expired => events.push(&stored, &kept.read(), EventKind::Expired),
                RemovalCause::Size => events.push(&stored, &kept.read(), EventKind::Evicted),
            };
            builder = builder.eviction_listener(listener);
        }
        if weigher.is_some() {
            builder = builder.weigher(|_: &Stored<V>, kept: &Kept<V>| kept.read().weight);
        }
        Self {
            entries: builder.build_with_hasher(CarriedHash::default()),
            half: settings.max_capacity / 2,
            idles: settings.time_to_idle.is_some(),
            tells,
            weigher,
            sampled: Striped::default(),
        }
    }

    /// Looks at a key's entry. That is no access.
    #[inline]
    pub(crate) fn look<Q, R>(&self, key: &Q, look: impl Fn(&Entry<V>) -> R) -> Option<R>
    where
        Q: Hash + Equivalent<StoredKey>,
    {
        let looking = Looking::new(key, |stored: &Stored<V>| stored.look(&look));
        if self.entries.contains_key(&looking) { looking.found() } else { None }
    }

    /// As [`Table::look`], for a read.
    #[inline]
    pub(crate) fn read<R>(&self, key: &KeyRef<'_>, look: impl Fn(&Entry<V>) -> R) -> Option<R> {
        let looking = Looking::new(key, |stored: &Stored<V>| stored.look(&look));
        if self.access(&looking) { looking.found() } else { None }
    }

    /// Whether there is what is looked for. An access, if it is one of those that moka is told of.
    #[inline]
    fn access<Q: Hash + Equivalent<Stored<V>>>(&self, looking: &Q) -> bool {
        if self.is_told() { self.entries.get(looking).is_some() } else { self.entries.contains_key(looking) }
    }

    #[inline]
    fn is_told(&self) -> bool {
        self.idles
            || self.entries.weighted_size() >= self.half
            || self.sampled.nth().is_multiple_of(ACCESSES_SAMPLED)
    }

    pub(crate) fn contains_key(&self, key: &KeyRef<'_>) -> bool {
        self.entries.contains_key(&just(key))
    }

    /// Removes a key's entry, and then looks at it: who panics there has removed it.
    pub(crate) fn remove<R>(&self, key: &KeyRef<'_>, look: impl FnOnce(&Entry<V>) -> R) -> Option<R> {
        let kept = self.entries.remove(&just(key))?;
        let entry = kept.read();
        Some(look(&entry))
    }

    pub(crate) fn invalidate(&self, key: &KeyRef<'_>) {
        self.entries.invalidate(&just(key));
    }

    pub(crate) fn invalidate_all(&self) {
        self.entries.invalidate_all();
    }

    /// All entries, in no order. What comes or goes meanwhile may be among them or not: of what is stored over, the key
    /// may be the former one.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Arc<Stored<V>>, Kept<V>)> + '_ {
        self.entries.iter()
    }

    pub(crate) fn entry_count(&self) -> u64 {
        self.entries.entry_count()
    }

    pub(crate) fn weighted_size(&self) -> u64 {
        self.entries.weighted_size()
    }

    pub(crate) fn run_pending_tasks(&self) {
        self.entries.run_pending_tasks();
    }

    /// Stores an entry, and hands `judge` the one that was there. Call under the key's shard lock. Returns what it said,
    /// and that entry, if it is to be dropped: without any lock.
    #[inline]
    pub(crate) fn put<R>(
        &self,
        key: KeyRef<'_>,
        mut entry: Entry<V>,
        judge: impl Fn(&Entry<V>) -> R,
    ) -> (Option<R>, Option<Entry<V>>) {
        if let Some(weigher) = &self.weigher {
            // Where there is no value, its key is what it takes.
            let key = key.bytes;
            entry.weight = entry.value().map_or(key.len() as u32, |value| weigher(key, value));
        }
        match self.exchange(key, entry) {
            Exchanged::Was(entry, kept) => {
                if self.tells {
                    self.entries.insert(Stored::new(key.stored(), &kept), kept);
                }
                (Some(judge(&entry)), Some(entry))
            }
            Exchanged::New(entry) => {
                self.insert(key, entry);
                (None, None)
            }
            Exchanged::Busy(entry) => {
                let was = self.look(&key, judge);
                self.insert(key, entry);
                (was, None)
            }
        }
    }

    fn insert(&self, key: KeyRef<'_>, entry: Entry<V>) {
        let kept = Arc::new(RwLock::new(entry));
        self.entries.insert(Stored::new(key.stored(), &kept), kept);
    }

    /// Exchanges a key's entry for this one. If moka lets go of it at this very moment, then of this one: it went for
    /// want of room.
    #[inline]
    fn exchange(&self, key: KeyRef<'_>, entry: Entry<V>) -> Exchanged<V> {
        // Not where it is found, which may be in what moka has let go of.
        let looking = Looking::new(&key, Stored::kept);
        // A store is no request: of a key that is not there moka hears by the insert alone, or every new key would count
        // for more than one that was only asked for.
        let found = self.entries.contains_key(&looking);
        let Some(kept) = looking.found().filter(|_| found) else { return Exchanged::New(entry) };
        match exchange(&kept, entry) {
            Ok(was) => {
                if !self.tells && self.is_told() {
                    self.entries.get(&just(&key));
                }
                Exchanged::Was(was, kept)
            }
            Err(entry) => Exchanged::Busy(entry),
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
