//! The shared state of one cache: moka's table, the shard locks with their flights, the slots' epochs.
//!
//! Invariants
//! - Whatever changes a key holds its shard's lock: ending flights, the table, the log and the rings move together.
//! - No user code runs under a shard lock but a value's `Clone` and `Drop` and the weigher, which moka calls; nothing
//!   awaits there.
//! - An entry is readable only while its epoch is its slot's and its load began after the floor.
//! - moka runs housekeeping, weigher and eviction listener inside its own calls on any thread: the listener only
//!   pushes to a bounded queue, which is drained outside every lock.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::notification::RemovalCause;
use parking_lot::{Mutex, MutexGuard};
use tidings_proto::codec;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hash::CacheId;
use tidings_proto::id::{SLOTS, Slot, SlotSet};
use tidings_proto::time::Tick;

use crate::builder::{Mode, Partitioner, Settings, Weigher};
use crate::clock::Clock;
use crate::domain::Domain;
use crate::flight::FlightTable;
use crate::key::{CarriedHash, Key, KeyRef, SHARDS, StoredKey};
use crate::load::Waiting;
use crate::stats::CacheStats;
use crate::topic::{Audience, Told, Topic};

/// Expiries and evictions that wait to be told. More are dropped and counted: they are informational.
const LOCAL_EVENTS_MAX: usize = 4_096;

/// Longest time to idle that moka is told of: a hundred years. It panics beyond a thousand.
const IDLE_TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A value as moka holds it.
#[derive(Clone, Debug)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    /// When the load that brought it began.
    pub(crate) began: Tick,
    /// When its time to live is over.
    pub(crate) expires: Tick,
    /// Its slot's epoch when the load began.
    pub(crate) epoch: u32,
}

type Table<V> = moka::sync::Cache<StoredKey, Entry<V>, CarriedHash>;

/// Keeps neighbouring shards' locks out of each other's cache line.
#[repr(align(128))]
struct Shard<V>(Mutex<FlightTable<Arc<Waiting<V>>>>);

pub(crate) type ShardGuard<'a, V> = MutexGuard<'a, FlightTable<Arc<Waiting<V>>>>;

pub(crate) struct Core<K, V> {
    pub(crate) name: Arc<str>,
    pub(crate) id: CacheId,
    pub(crate) domain: Domain,
    pub(crate) settings: Settings,
    pub(crate) stats: CacheStats,
    pub(crate) topic: Topic,
    pub(crate) entries: Table<V>,
    shards: Box<[Shard<V>]>,
    epochs: [AtomicU32; SLOTS],
    partitioner: Option<Partitioner<K>>,
    local_events: Arc<LocalEvents>,
    /// Some slot was fenced since memory was last reclaimed.
    fenced: AtomicBool,
    /// The floor when it was.
    reclaimed_floor: AtomicU64,
    closed: AtomicBool,
    key: PhantomData<fn(K)>,
}

impl<K, V> fmt::Debug for Core<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What a read found.
pub(crate) enum Lookup<V> {
    Hit(Entry<V>),
    /// There is an entry, and while in doubt it is too old to be served.
    Limited,
    Miss,
}

/// What moka displaced in the insert that this thread is in: its epoch, beginning and expiry.
#[derive(Clone, Copy)]
struct Displaced {
    began: Tick,
    expires: Tick,
    epoch: u32,
}

thread_local! {
    static DISPLACED: Cell<Option<Displaced>> = const { Cell::new(None) };
}

/// Expiries and evictions, from moka's listener to whoever drains next.
#[derive(Debug)]
struct LocalEvents {
    queue: Mutex<Vec<LocalEvent>>,
    waiting: AtomicBool,
    audience: Audience,
    stats: LocalCounts,
}

#[derive(Debug)]
struct LocalEvent {
    key: Arc<StoredKey>,
    kind: EventKind,
    began: Tick,
    epoch: u32,
}

#[derive(Debug, Default)]
struct LocalCounts {
    evicted: crate::stats::Striped,
    expired: crate::stats::Striped,
    dropped: crate::stats::Striped,
}

impl LocalEvents {
    fn new(audience: Audience) -> Self {
        Self {
            queue: Mutex::default(),
            waiting: AtomicBool::new(false),
            audience,
            stats: LocalCounts::default(),
        }
    }

    fn push<V>(&self, key: Arc<StoredKey>, kind: EventKind, entry: &Entry<V>) {
        match kind {
            EventKind::Expired => self.stats.expired.count(),
            _ => self.stats.evicted.count(),
        }
        if self.audience.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.len() < LOCAL_EVENTS_MAX {
            queue.push(LocalEvent { key, kind, began: entry.began, epoch: entry.epoch });
            self.waiting.store(true, Ordering::Release);
        } else {
            self.stats.dropped.count();
        }
    }
}

/// Tells moka when an entry's own time is over, so that its memory is reclaimed; hits compare by themselves.
struct TimeToLive(Clock);

impl<V> moka::Expiry<StoredKey, Entry<V>> for TimeToLive {
    fn expire_after_create(&self, _: &StoredKey, entry: &Entry<V>, _: Instant) -> Option<Duration> {
        (entry.expires != Tick::FOREVER).then(|| entry.expires.since(self.0.coarse()))
    }

    fn expire_after_update(
        &self,
        key: &StoredKey,
        entry: &Entry<V>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, entry, now)
    }
}

fn table<V: Clone + Send + Sync + 'static>(
    settings: &Settings,
    clock: &Clock,
    weigher: Option<Weigher<V>>,
    local_events: &Arc<LocalEvents>,
) -> Table<V> {
    let events = local_events.clone();
    let listener = move |key: Arc<StoredKey>, entry: Entry<V>, cause: RemovalCause| match cause {
        RemovalCause::Replaced => {
            let Entry { began, expires, epoch, .. } = entry;
            DISPLACED.set(Some(Displaced { began, expires, epoch }));
        }
        RemovalCause::Explicit => {}
        RemovalCause::Expired => events.push(key, EventKind::Expired, &entry),
        RemovalCause::Size => events.push(key, EventKind::Evicted, &entry),
    };
    let mut builder = moka::sync::Cache::builder()
        .max_capacity(settings.max_capacity)
        .expire_after(TimeToLive(clock.clone()))
        .eviction_listener(listener);
    if let Some(weigher) = weigher {
        builder = builder.weigher(move |key: &StoredKey, entry| weigher(key.borrowed().bytes, &entry.value));
    }
    if let Some(time) = settings.time_to_idle {
        builder = builder.time_to_idle(time.min(IDLE_TIME_MAX));
    }
    builder.build_with_hasher(CarriedHash::default())
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    pub(crate) fn new(
        domain: Domain,
        name: Arc<str>,
        settings: Settings,
        weigher: Option<Weigher<V>>,
        partitioner: Option<Partitioner<K>>,
    ) -> Self {
        let audience = Audience::default();
        let local_events = Arc::new(LocalEvents::new(audience.clone()));
        Self {
            id: CacheId::of_name(&name),
            entries: table(&settings, domain.clock(), weigher, &local_events),
            topic: Topic::new(name.clone(), settings.partitions, settings.ring, audience),
            shards: (0..SHARDS).map(|_| Shard(Mutex::default())).collect(),
            epochs: std::array::from_fn(|_| AtomicU32::new(1)),
            stats: CacheStats::default(),
            fenced: AtomicBool::new(false),
            reclaimed_floor: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            key: PhantomData,
            domain,
            name,
            settings,
            partitioner,
            local_events,
        }
    }

    pub(crate) fn shard(&self, key: KeyRef<'_>) -> ShardGuard<'_, V> {
        self.shards[key.shard()].0.lock()
    }

    pub(crate) fn shard_at(&self, index: usize) -> ShardGuard<'_, V> {
        self.shards[index].0.lock()
    }

    /// The shards of these keys, locked in order: whoever else locks one cannot be waiting for another.
    pub(crate) fn shards_of<'k>(
        &self,
        keys: impl Iterator<Item = KeyRef<'k>>,
    ) -> [Option<ShardGuard<'_, V>>; SHARDS] {
        let mut wanted = [false; SHARDS];
        keys.for_each(|key| wanted[key.shard()] = true);
        std::array::from_fn(|index| wanted[index].then(|| self.shard_at(index)))
    }

    /// Every shard, locked in order: nothing changes any key meanwhile.
    pub(crate) fn all_shards(&self) -> Vec<ShardGuard<'_, V>> {
        (0..SHARDS).map(|index| self.shard_at(index)).collect()
    }

    pub(crate) fn epoch(&self, slot: Slot) -> u32 {
        self.epochs[slot.index()].load(Ordering::Acquire)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn mark_closed(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn travels(&self) -> bool {
        self.settings.mode != Mode::Local
    }

    /// The read path. The order of reads is part of the protocol: `fresh_until`, the entry, its slot's epoch and the
    /// floor, then the clock.
    #[inline]
    pub(crate) fn lookup(&self, key: KeyRef<'_>) -> Lookup<V> {
        let gate = &self.domain.gate();
        let fresh_until = gate.fresh_until();
        let Some(entry) = self.entries.get(&key) else { return Lookup::Miss };
        let coherent = self.is_coherent(key.slot(), entry.began, entry.epoch);
        let now = self.domain.clock().coarse();
        if !coherent || now >= entry.expires {
            Lookup::Miss
        } else if !self.travels() || gate.counts(fresh_until, entry.began, now) {
            Lookup::Hit(entry)
        } else {
            Lookup::Limited
        }
    }

    /// Whether neither a fence nor the floor excludes an entry.
    #[inline]
    fn is_coherent(&self, slot: Slot, began: Tick, epoch: u32) -> bool {
        epoch == self.epoch(slot) && (began > self.domain.gate().floor() || !self.travels())
    }

    /// Whether an entry that was taken could be read, now or after a doubt had ended.
    fn was_readable(&self, slot: Slot, entry: Displaced) -> bool {
        self.is_coherent(slot, entry.began, entry.epoch) && entry.expires > self.domain.clock().coarse()
    }

    /// Whether an entry that was displaced could have been a hit.
    fn was_served(&self, slot: Slot, entry: Displaced) -> bool {
        let gate = self.domain.gate();
        let fresh = || gate.counts(gate.fresh_until(), entry.began, self.domain.clock().coarse());
        self.was_readable(slot, entry) && (!self.travels() || fresh())
    }

    /// Stores an entry. Call under the key's shard lock. Returns whether it displaced one that was a hit.
    pub(crate) fn store(
        &self,
        key: KeyRef<'_>,
        value: V,
        began: Tick,
        epoch: u32,
        ttl: Option<Duration>,
    ) -> bool {
        let ttl = match (ttl, self.settings.time_to_live) {
            (Some(own), Some(all)) => Some(own.min(all)),
            (own, all) => own.or(all),
        };
        let expires = ttl.map_or(Tick::FOREVER, |ttl| self.domain.clock().coarse().after(ttl));
        DISPLACED.set(None);
        self.entries.insert(key.stored(), Entry { value, began, expires, epoch });
        DISPLACED.take().is_some_and(|displaced| self.was_served(key.slot(), displaced))
    }

    /// Removes a key from the table. Call under its shard lock. Returns what was readable.
    pub(crate) fn take(&self, key: KeyRef<'_>) -> Option<V> {
        let entry = self.entries.remove(&key)?;
        let Entry { value, began, expires, epoch } = entry;
        self.was_readable(key.slot(), Displaced { began, expires, epoch }).then_some(value)
    }

    pub(crate) fn fence_slots(&self, slots: SlotSet) {
        for slot in slots.iter() {
            self.epochs[slot.index()].fetch_add(1, Ordering::AcqRel);
        }
        self.fenced.store(true, Ordering::Release);
    }

    /// The partition of a key, outside every lock. `None`: the event is dropped for subscribers.
    pub(crate) fn partition(&self, key: KeyRef<'_>, typed: Option<&K>) -> Option<usize> {
        let partitions = self.settings.partitions;
        let Some(partitioner) = &self.partitioner else {
            // 32 bits that neither the slot nor the shard is made of, scaled to the number of partitions.
            let bits = u64::from((key.hash >> 6) as u32);
            return Some(((bits * partitions as u64) >> 32) as usize);
        };
        let decoded;
        let typed = match typed {
            Some(key) => key,
            None => {
                let Ok(key) = codec::decode::<K>(key.bytes) else {
                    self.stats.unpartitioned.count();
                    return None;
                };
                decoded = key;
                &decoded
            }
        };
        let call = std::panic::AssertUnwindSafe(|| partitioner(typed));
        match std::panic::catch_unwind(call) {
            Ok(Some(partition)) if partition < partitions => Some(partition),
            Ok(_) => {
                self.stats.unpartitioned.count();
                None
            }
            Err(_) => {
                self.stats.panics.count();
                self.stats.unpartitioned.count();
                None
            }
        }
    }

    /// Tells moka's expiries and evictions to subscribers. Call without any lock.
    pub(crate) fn tell_local_events(&self) {
        if !self.local_events.waiting.load(Ordering::Acquire) {
            return;
        }
        let events = {
            let mut queue = self.local_events.queue.lock();
            self.local_events.waiting.store(false, Ordering::Release);
            std::mem::take(&mut *queue)
        };
        let origin = self.domain.origin();
        for LocalEvent { key, kind, began, epoch } in events {
            let key = key.borrowed();
            // What a clear, fence or floor had removed before did not go now.
            if !self.is_coherent(key.slot(), began, epoch) {
                continue;
            }
            if let Some(partition) = self.partition(key, None) {
                let operation = if kind == EventKind::Expired { Operation::Expire } else { Operation::Evict };
                let told = Told::here(kind, operation, origin.clone(), self.domain.clock().wall_ms());
                self.topic.tell_key(partition, key, told).wake();
            }
        }
    }

    /// Counters that moka's listener keeps.
    pub(crate) fn local_counts(&self) -> (u64, u64, u64) {
        let counts = &self.local_events.stats;
        (counts.evicted.get(), counts.expired.get(), counts.dropped.get())
    }

    /// Frees the memory of entries that a fence or the floor has made unreadable, one shard lock at a time.
    pub(crate) fn reclaim(&self) {
        let floor = if self.travels() { self.domain.gate().floor() } else { Tick::NEVER };
        let raised = self.reclaimed_floor.swap(floor.0, Ordering::AcqRel) < floor.0;
        if !self.fenced.swap(false, Ordering::AcqRel) && !raised {
            return;
        }
        let excluded =
            |key: KeyRef<'_>, entry: &Entry<V>| !self.is_coherent(key.slot(), entry.began, entry.epoch);
        for (key, entry) in &self.entries {
            let key = key.borrowed();
            if excluded(key, &entry) {
                let _shard = self.shard(key);
                // What stands there now may be newer than what was seen.
                if self.entries.get(&key).is_some_and(|now| excluded(key, &now)) {
                    self.entries.invalidate(&key);
                }
            }
        }
    }

    /// Ends the fill tokens whose deadline has passed.
    pub(crate) fn expire_tokens(&self) {
        let now = self.domain.clock().coarse();
        for index in 0..SHARDS {
            self.shard_at(index).expire(now);
        }
    }

    pub(crate) fn flights(&self) -> usize {
        (0..SHARDS).map(|index| self.shard_at(index).len()).sum()
    }

    pub(crate) fn end_all_flights(&self) {
        for index in 0..SHARDS {
            self.shard_at(index).end_all();
        }
    }

    /// A key that is a string.
    pub(crate) fn string_key(&self, bytes: &[u8]) -> Option<String> {
        let is_text = std::any::TypeId::of::<K>() == std::any::TypeId::of::<String>();
        if is_text { codec::decode(bytes).ok() } else { None }
    }

    pub(crate) fn key_text(&self, bytes: &[u8]) -> String {
        let hexadecimal = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.string_key(bytes).unwrap_or_else(hexadecimal)
    }
}
