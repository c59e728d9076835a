//! The shared state of one cache: moka's table, the shard locks with their flights, the slots' epochs.
//!
//! Invariants
//! - Whatever changes a key holds its shard's lock: ending flights, the table, the log and the rings move together.
//! - No user code runs under a shard lock but a value's `Clone` and `Drop` and the weigher, which moka calls; nothing
//!   awaits there.
//! - An entry is readable only while its epoch is its slot's and its load began after the floor.
//! - moka runs housekeeping, weigher and eviction listener inside its own calls on any thread: the listener only
//!   pushes to a bounded queue, which is drained outside every lock.

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tidings_proto::codec;
use tidings_proto::hash::CacheId;
use tidings_proto::histogram::Histogram;
use tidings_proto::id::{SLOTS, Slot, SlotSet};
use tidings_proto::time::Tick;

use crate::audit::Digester;
use crate::background::Background;
use crate::builder::{Functions, Mode, Partitioner, Settings};
use crate::clears::Clears;
use crate::clock::COARSE_LAG;
use crate::crossed::Crossed;
use crate::derive::Rules;
use crate::domain::Domain;
use crate::entry::Entry;
use crate::key::{Key, KeyRef, SHARDS};
use crate::recent::{Recents, Sweeps};
use crate::repair::Doubts;
use crate::replica::Fences;
use crate::shard::Shard;
use crate::shared::{LeasedTokens, Sharing};
use crate::stats::CacheStats;
use crate::table::{LocalEvents, Table};
use crate::tags::Tagger;
use crate::topic::{Audience, Topic};
use crate::travel::ValueCodec;

/// Bit of a slot's epoch that says that entries of a prefix are being looked for: hits are compared with it then. A
/// slot that is fenced a thousand times a second reaches it after 24 days, and then all that it costs is time.
pub(crate) const SWEEPING: u32 = 1 << 31;

/// Keeps neighbouring shards' locks out of each other's cache line.
#[repr(align(128))]
struct Padded<V>(Mutex<Shard<V>>);

pub(crate) type ShardGuard<'a, V> = MutexGuard<'a, Shard<V>>;

pub(crate) struct Core<K, V> {
    pub(crate) name: Arc<str>,
    pub(crate) id: CacheId,
    pub(crate) domain: Domain,
    pub(crate) settings: Settings,
    pub(crate) stats: CacheStats,
    /// How long the user's loaders took, however they ended.
    pub(crate) load_time: Histogram,
    pub(crate) topic: Arc<Topic>,
    pub(crate) entries: Table<V>,
    shards: Box<[Padded<V>]>,
    epochs: [AtomicU32; SLOTS],
    partitioner: Option<Partitioner<K>>,
    pub(crate) tagger: Option<Tagger<K, V>>,
    /// How values travel, where one load serves the cluster.
    pub(crate) sharing: Option<Sharing<V>>,
    pub(crate) leased_tokens: LeasedTokens,
    pub(crate) digester: Option<Digester<V>>,
    /// How values are encoded, where they travel.
    pub(crate) codec: Option<ValueCodec<V>>,
    /// What has to be compared with the members, where values travel.
    pub(crate) doubts: Doubts,
    pub(crate) local_events: Arc<LocalEvents>,
    /// For how long after its load began an entry counts in doubt.
    life_in_doubt: Duration,
    pub(crate) clears: Clears,
    /// When slots were fenced, where loads read a replica that lags.
    replica_fences: Option<Box<Fences>>,
    pub(crate) background: Background,
    pub(crate) recents: Recents,
    /// What a peer's write is compared with, where values travel.
    pub(crate) crossed: Crossed,
    pub(crate) sweeps: Sweeps,
    pub(crate) rules: Rules<K>,
    /// It is known here which entries have tags.
    pub(crate) tagged: AtomicBool,
    /// The moment of the newest invalidation of a tag. What has no value has no tags that say whether it was meant.
    pub(crate) newest_tag: AtomicU64,
    /// Some entry has one of its own, shorter than the cache's.
    pub(crate) own_times: AtomicBool,
    /// When entries whose own time is over were last looked for.
    pub(crate) expiry_walked: AtomicU64,
    /// Counts what may have made entries unreadable, but for the floor: fences, and entries stored too late.
    pub(crate) fences: AtomicU64,
    /// That count when memory was last reclaimed.
    pub(crate) reclaimed_fences: AtomicU64,
    /// The floor when it was.
    pub(crate) reclaimed_floor: AtomicU64,
    closed: AtomicBool,
    key: PhantomData<fn(K)>,
}

/// Sets a flag that mostly is set already: to write it anew would take its cache line from who reads what stands
/// beside it.
#[inline]
fn raise(flag: &AtomicBool) {
    if !flag.load(Ordering::Relaxed) {
        flag.store(true, Ordering::Relaxed);
    }
}

impl<K, V> fmt::Debug for Core<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// When and how an entry came to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    /// When the load that brought it began.
    pub(crate) began: Tick,
    /// Its slot's epoch then.
    pub(crate) epoch: u32,
    /// Its own time to live.
    pub(crate) ttl: Option<Duration>,
}

/// What a store came upon.
#[must_use = "what was exchanged is to be dropped without any lock: the drop of a value is its user's code"]
pub(crate) struct Displaced<V> {
    /// It would have answered a read.
    pub(crate) was_hit: bool,
    /// What was exchanged.
    pub(crate) entry: Option<Entry<V>>,
}

/// What becomes of a read that finds an entry.
pub(crate) enum Verdict {
    Hit,
    /// While in doubt it is too old to be served.
    Limited,
    Miss,
}

/// What a read found.
pub(crate) enum Lookup<V> {
    Hit(Entry<V>),
    /// There is an entry, and while in doubt it is too old to be served unmarked.
    Limited(Entry<V>),
    Miss,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    pub(crate) fn new(
        domain: Domain,
        name: Arc<str>,
        settings: Settings,
        functions: Functions<K, V>,
    ) -> Self {
        let Functions { weigher, partitioner, tagger, digester, sharing, codec } = functions;
        let audience = Audience::default();
        let lags = !settings.replica_lag.is_zero();
        let life_in_doubt = settings.when_isolated.life(domain.gate().max_staleness());
        let local_events = Arc::new(LocalEvents::new(audience.clone()));
        Self {
            id: CacheId::of_name(&name),
            entries: Table::new(&settings, domain.clock(), weigher, &local_events),
            topic: Arc::new(Topic::of::<K>(&name, &settings, audience)),
            shards: (0..SHARDS).map(|_| Padded(Mutex::new(Shard::new(&settings, domain.clock())))).collect(),
            epochs: std::array::from_fn(|_| AtomicU32::new(1)),
            stats: CacheStats::default(),
            load_time: Histogram::default(),
            // Where values travel, so do their tags.
            tagged: AtomicBool::new(
                settings.explicit_tags || tagger.is_some() || settings.mode == Mode::Replicate,
            ),
            own_times: AtomicBool::new(false),
            expiry_walked: AtomicU64::new(0),
            fences: AtomicU64::new(0),
            reclaimed_fences: AtomicU64::new(0),
            reclaimed_floor: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            key: PhantomData,
            domain,
            name,
            settings,
            partitioner,
            tagger,
            sharing,
            leased_tokens: LeasedTokens::default(),
            digester,
            codec,
            doubts: Doubts::default(),
            local_events,
            life_in_doubt,
            clears: Clears::default(),
            background: Background::new(),
            replica_fences: lags.then(|| Box::new(Fences::new())),
            recents: Recents::default(),
            crossed: Crossed::default(),
            sweeps: Sweeps::default(),
            newest_tag: AtomicU64::new(0),
            rules: Rules::default(),
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
        self.epochs[slot.index()].load(Ordering::Acquire) & !SWEEPING
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

    /// What a read is answered with. Counts it.
    #[inline]
    pub(crate) fn hit(&self, key: KeyRef<'_>) -> Option<V> {
        let fresh_until = self.domain.gate().fresh_until();
        let answer = self.entries.read(&key, |entry| {
            // Before it is judged: it counts at the moment at which that is decided, however long a clone takes.
            let value = entry.value().cloned();
            match self.judge(key, entry, fresh_until) {
                Verdict::Hit => Ok(value),
                verdict => Err(verdict),
            }
        });
        match answer {
            Some(Ok(value)) => {
                self.stats.hits.count();
                value
            }
            Some(Err(Verdict::Limited)) => {
                self.stats.limited.count();
                None
            }
            _ => {
                self.stats.misses.count();
                None
            }
        }
    }

    /// The read path. The order of reads is part of the protocol: `fresh_until`, the entry, its slot's epoch and the
    /// floor, then the clock.
    pub(crate) fn lookup(&self, key: KeyRef<'_>) -> Lookup<V> {
        let fresh_until = self.domain.gate().fresh_until();
        self.entries.read(&key, |entry| self.found(key, entry, fresh_until)).unwrap_or(Lookup::Miss)
    }

    fn found(&self, key: KeyRef<'_>, entry: &Entry<V>, fresh_until: Tick) -> Lookup<V> {
        let copy = entry.clone();
        match self.judge(key, entry, fresh_until) {
            Verdict::Hit => Lookup::Hit(copy),
            Verdict::Limited => Lookup::Limited(copy),
            Verdict::Miss => Lookup::Miss,
        }
    }

    /// Whether an entry counts, `fresh_until` having been read before it.
    #[inline]
    pub(crate) fn judge(&self, key: KeyRef<'_>, entry: &Entry<V>, fresh_until: Tick) -> Verdict {
        if !self.is_coherent(key, entry.began, entry.epoch) {
            return Verdict::Miss;
        }
        let always_fresh = fresh_until == Tick::FOREVER || !self.travels();
        if always_fresh && entry.expires == Tick::FOREVER {
            return Verdict::Hit;
        }
        let now = self.domain.clock().coarse();
        if now >= entry.expires || entry.is_absence() && entry.began <= self.newest_tag() {
            Verdict::Miss
        } else if always_fresh || self.counts(fresh_until, entry.began, now) {
            Verdict::Hit
        } else {
            Verdict::Limited
        }
    }

    /// Whether an entry is young enough, `now` having been read from a coarse clock after everything else.
    #[inline]
    pub(crate) fn counts(&self, fresh_until: Tick, began: Tick, now: Tick) -> bool {
        self.domain.gate().is_fresh(fresh_until, now)
            || now.after(COARSE_LAG).since(began) <= self.life_in_doubt
    }

    /// Whether neither a fence, the floor nor a prefix excludes an entry.
    #[inline]
    pub(crate) fn is_coherent(&self, key: KeyRef<'_>, began: Tick, epoch: u32) -> bool {
        self.is_unfenced(key, began, epoch) && (began > self.domain.gate().floor() || !self.travels())
    }

    /// Whether neither a fence nor a prefix excludes an entry.
    #[inline]
    pub(crate) fn is_unfenced(&self, key: KeyRef<'_>, began: Tick, epoch: u32) -> bool {
        let now = self.epochs[key.slot().index()].load(Ordering::Acquire);
        epoch == now || self.is_spared(key, began, (epoch, now))
    }

    /// Whether an entry is none of those that are being looked for.
    #[cold]
    fn is_spared(&self, key: KeyRef<'_>, began: Tick, (epoch, now): (u32, u32)) -> bool {
        epoch | SWEEPING == now
            && self.text(key).is_none_or(|text| !self.sweeps.name(key.slot(), text, began))
    }

    /// Marks slots as ones that entries of a prefix are being looked for in.
    pub(crate) fn mark_sweeping(&self, slots: SlotSet) {
        for slot in slots.iter() {
            self.epochs[slot.index()].fetch_or(SWEEPING, Ordering::AcqRel);
        }
    }

    pub(crate) fn unmark_sweeping(&self, slots: SlotSet) {
        for slot in slots.iter() {
            self.epochs[slot.index()].fetch_and(!SWEEPING, Ordering::AcqRel);
        }
    }

    /// As [`Core::lookup`], and no access.
    pub(crate) fn glance(&self, key: KeyRef<'_>) -> Lookup<V> {
        let fresh_until = self.domain.gate().fresh_until();
        self.entries.look(&key, |entry| self.found(key, entry, fresh_until)).unwrap_or(Lookup::Miss)
    }

    /// As [`Core::glance`], of a value.
    pub(crate) fn peek(&self, key: KeyRef<'_>) -> Lookup<V> {
        match self.glance(key) {
            Lookup::Hit(entry) if entry.is_absence() => Lookup::Miss,
            found => found,
        }
    }

    /// What a read of a key would be answered with. No access.
    pub(crate) fn verdict(&self, key: KeyRef<'_>) -> Verdict {
        let fresh_until = self.domain.gate().fresh_until();
        self.entries.look(&key, |entry| self.judge(key, entry, fresh_until)).unwrap_or(Verdict::Miss)
    }

    /// Whether a key has a value that would answer a read. No access.
    pub(crate) fn is_hit(&self, key: KeyRef<'_>) -> bool {
        let fresh_until = self.domain.gate().fresh_until();
        self.entries.look(&key, |entry| self.has_hit(key, entry, fresh_until)).unwrap_or(false)
    }

    #[inline]
    fn has_hit(&self, key: KeyRef<'_>, entry: &Entry<V>, fresh_until: Tick) -> bool {
        !entry.is_absence() && matches!(self.judge(key, entry, fresh_until), Verdict::Hit)
    }

    /// Ends the flights of a key and stores a value. Call under the key's shard lock.
    #[inline(always)]
    pub(crate) fn put(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        value: V,
        birth: Birth,
    ) -> Displaced<V> {
        shard.end_flights(key);
        self.store(key, Some(value), birth)
    }

    /// Stores an entry, or without a value that there is none. Call under the key's shard lock.
    #[inline]
    pub(crate) fn store(&self, key: KeyRef<'_>, value: Option<V>, birth: Birth) -> Displaced<V> {
        let fresh_until = self.domain.gate().fresh_until();
        let entry = self.entry(key, value, birth);
        let (was_hit, entry) = self.entries.put(key, entry, |entry| self.has_hit(key, entry, fresh_until));
        if !self.is_coherent(key, birth.began, birth.epoch) {
            // A fence or the floor has overtaken it, and their memory may have been reclaimed already.
            self.fences.fetch_add(1, Ordering::AcqRel);
        }
        Displaced { was_hit: was_hit.unwrap_or(false), entry }
    }

    #[inline]
    fn entry(&self, key: KeyRef<'_>, value: Option<V>, Birth { began, epoch, ttl }: Birth) -> Entry<V> {
        let all = self.settings.time_to_live;
        if ttl.is_some_and(|own| all.is_none_or(|all| own < all)) {
            raise(&self.own_times);
        }
        let expires = ttl.into_iter().chain(all).min().map_or(Tick::FOREVER, |ttl| {
            self.domain.clock().coarse().after(self.settings.loads.life(ttl, key.hash ^ began.0))
        });
        Entry::new(value, began, expires, epoch)
    }

    /// Removes a key from the table. Call under its shard lock, after ending its flights. Returns what was readable, now
    /// or after a doubt had ended.
    pub(crate) fn take(&self, key: KeyRef<'_>) -> Option<V> {
        let value = |entry: &Entry<V>| entry.value().filter(|_| !self.is_excluded(key, entry)).cloned();
        self.entries.remove(&key, value)?
    }

    /// As [`Core::take`], and only says whether there was something readable.
    pub(crate) fn evict(&self, key: KeyRef<'_>) -> bool {
        self.entries.remove(&key, |entry| !self.is_excluded(key, entry)).unwrap_or(false)
    }

    /// Whether an entry has no value that is ever read again.
    fn is_excluded(&self, key: KeyRef<'_>, entry: &Entry<V>) -> bool {
        entry.is_absence() || !self.is_coherent(key, entry.began, entry.epoch) || self.is_over(entry.expires)
    }

    /// Whether a time to live is over.
    pub(crate) fn is_over(&self, expires: Tick) -> bool {
        expires != Tick::FOREVER && expires <= self.domain.clock().coarse()
    }

    /// Whether what a load of a key brings that begins now is stored: where it reads a replica that lags, not if it may
    /// lack a change of the key or a fence of its slot, and not if a write of it may still land. Call under the key's shard lock, after its epoch was read.
    pub(crate) fn may_store(&self, shard: &ShardGuard<'_, V>, key: KeyRef<'_>, as_of: Tick) -> bool {
        let changed = shard.changes.as_ref().is_some_and(|changes| changes.overtook(key.hash, as_of));
        let fenced = || self.replica_fences.as_ref().is_some_and(|fences| fences.overtook(key.slot(), as_of));
        !changed && !self.is_uncertain(shard, key, as_of) && !fenced()
    }

    /// Makes slots unreadable of which writes may have been missed.
    pub(crate) fn fence_slots(&self, slots: SlotSet) {
        let _order = self.replicates().then(|| self.doubts.order.lock());
        self.doubt(slots);
        self.raise_epochs(slots);
    }

    /// Makes slots unreadable of which everything was removed.
    pub(crate) fn raise_epochs(&self, slots: SlotSet) {
        if let Some(fences) = &self.replica_fences {
            fences.note(slots, self.domain.clock());
        }
        for slot in slots.iter() {
            self.epochs[slot.index()].fetch_add(1, Ordering::AcqRel);
        }
        self.fences.fetch_add(1, Ordering::AcqRel);
    }

    /// The partition of a key, outside every lock. `None`: the event is dropped for subscribers.
    pub(crate) fn partition(&self, key: KeyRef<'_>, typed: Option<&K>) -> Option<usize> {
        let partitions = self.settings.partitions;
        let Some(partitioner) = &self.partitioner else {
            // 32 bits that neither the slot nor the shard is made of, scaled to the number of partitions.
            let bits = u64::from((key.hash >> 6) as u32);
            return Some(((bits * partitions as u64) >> 32) as usize);
        };
        let call = || match typed {
            Some(key) => partitioner(key),
            None => partitioner(&codec::decode::<K>(key.bytes).ok()?),
        };
        let partition = self.caught(call).flatten().filter(|partition| *partition < partitions);
        if partition.is_none() {
            self.stats.unpartitioned.count();
        }
        partition
    }

    /// Runs user code on a way that its panic must not end. Counts one.
    pub(crate) fn caught<T>(&self, call: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(call)).inspect_err(|_| self.stats.panics.count()).ok()
    }
}
