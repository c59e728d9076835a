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
        self.entries.contains_key(&Looking::new(key, |_: &Stored<V>| Some(())))
    }

    /// Removes a key's entry, and then looks at it: who panics there has removed it.
    pub(crate) fn remove<R>(&self, key: &KeyRef<'_>, look: impl FnOnce(&Entry<V>) -> R) -> Option<R> {
        let kept = self.entries.remove(&Looking::new(key, |_: &Stored<V>| Some(())))?;
        let entry = kept.read();
        Some(look(&entry))
    }

    pub(crate) fn invalidate(&self, key: &KeyRef<'_>) {
        self.entries.invalidate(&Looking::new(key, |_: &Stored<V>| Some(())));
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
                    self.entries.get(&Looking::new(&key, |_: &Stored<V>| Some(())));
                }
                Exchanged::Was(was, kept)
            }
            Err(entry) => Exchanged::Busy(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use tidings_proto::hash::CacheId;

    use super::*;
    use crate::key::Encoded;

    fn table<V: Send + Sync + 'static>(capacity: u64) -> Table<V> {
        let entries = moka::sync::Cache::builder().max_capacity(capacity);
        Table {
            entries: entries.build_with_hasher(CarriedHash::default()),
            half: capacity / 2,
            idles: false,
            tells: false,
            weigher: None,
            sampled: Striped::default(),
        }
    }

    /// Its entries weigh what their values say.
    fn weighed(capacity: u64) -> Table<u64> {
        let entries = moka::sync::Cache::builder().max_capacity(capacity);
        let entries = entries.weigher(|_: &Stored<u64>, kept: &Kept<u64>| kept.read().weight);
        Table {
            entries: entries.build_with_hasher(CarriedHash::default()),
            tells: true,
            weigher: Some(Arc::new(|_, value| *value as u32)),
            ..table(capacity)
        }
    }

    fn put(table: &Table<u64>, key: &Encoded, value: u64) -> Option<u64> {
        let entry = Entry::new(Some(value), Tick(1), Tick::FOREVER, 1);
        let (was, entry) = table.put(key.borrowed(), entry, |entry| entry.value().copied());
        assert!(entry.is_none_or(|entry| entry.value().copied() == was.flatten()), "another one came back");
        was.flatten()
    }

    fn get(table: &Table<u64>, key: &Encoded) -> Option<u64> {
        table.read(&key.borrowed(), |entry| entry.value().copied()).flatten()
    }

    fn keys(count: u64) -> Vec<Encoded> {
        (0..count).map(|number| Encoded::new(CacheId(1), &number).expect("a short key")).collect()
    }

    #[test]
    fn an_entry_is_exchanged_in_its_place_and_the_old_one_handed_back() {
        let table = table(10_000);
        let keys = keys(1_000);
        for value in 0..3 {
            for key in &keys {
                let before = (value > 0).then(|| value - 1);
                assert_eq!(
                    (get(&table, key), put(&table, key, value), get(&table, key)),
                    (before, before, Some(value))
                );
            }
        }
        table.run_pending_tasks();
        assert_eq!(table.entry_count(), 1_000);
    }

    #[test]
    fn a_key_that_was_removed_is_stored_anew() {
        let table = table(10_000);
        for key in &keys(1_000) {
            for value in 0..3 {
                assert_eq!((put(&table, key, value), get(&table, key)), (None, Some(value)));
                let removed = table.remove(&key.borrowed(), |entry| entry.value().copied());
                assert_eq!((removed, get(&table, key)), (Some(Some(value)), None));
                assert_eq!(table.remove(&key.borrowed(), |_| ()), None, "it is there no more");
            }
        }
    }

    #[test]
    fn a_key_that_was_evicted_is_stored_anew_and_not_in_what_moka_has_let_go_of() {
        let table = table(100);
        let keys = keys(1_000);
        for round in 0..5 {
            for key in &keys {
                let value = round;
                put(&table, key, value);
                assert!(get(&table, key).is_none_or(|read| read == value), "an older value came back");
            }
            table.run_pending_tasks();
            assert!((50..=100).contains(&table.entry_count()), "{} of 100", table.entry_count());
        }
    }

    #[test]
    fn values_of_what_was_removed_or_evicted_are_let_go_of() {
        let table: Table<Arc<u64>> = table(100);
        let mut values: Vec<Weak<u64>> = Vec::new();
        for (number, key) in keys(1_000).iter().enumerate() {
            let value = Arc::new(number as u64);
            values.push(Arc::downgrade(&value));
            table.put(key.borrowed(), Entry::new(Some(value), Tick(1), Tick::FOREVER, 1), |_| ());
            if number % 2 == 0 {
                table.remove(&key.borrowed(), |_| ());
            }
            table.run_pending_tasks();
        }
        // moka frees in rounds, which threads of other tests may hold up; what it keeps is no more than a few rounds' worth.
        let kept = || values.iter().filter(|value| value.strong_count() > 0).count();
        let deadline = Instant::now() + Duration::from_secs(10);
        let other = Encoded::new(CacheId(1), "other").expect("a short key");
        while kept() > 300 {
            assert!(
                Instant::now() < deadline,
                "{} of 1,000 values are kept, 100 of them for their keys",
                kept()
            );
            assert!(!table.contains_key(&other.borrowed()));
        }
    }

    #[test]
    fn what_is_stored_over_a_weighed_entry_counts_with_its_own_weight() {
        let table = weighed(1_000);
        for round in 1..=3 {
            for key in &keys(10) {
                assert_eq!(put(&table, key, round), (round > 1).then(|| round - 1));
            }
            table.run_pending_tasks();
            assert_eq!(table.weighted_size(), 10 * round);
        }
        for key in &keys(10) {
            put(&table, key, 300);
            table.run_pending_tasks();
            assert!(table.weighted_size() <= 1_000, "{} of 1,000", table.weighted_size());
        }
    }

    /// Has one thread change a key and another read it, until the first has done.
    fn contend(table: &Table<u64>, key: &Encoded, change: impl FnOnce(), check: impl Fn(Option<u64>) + Sync) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    check(get(table, key));
                }
            });
            change();
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_key_that_is_stored_over_is_there_all_the_time() {
        for table in [table(1_000_000), weighed(1_000_000)] {
            let key = &keys(1)[0];
            put(&table, key, 1);
            let change =
                || (2..20_000).for_each(|value| assert_eq!(put(&table, key, value), Some(value - 1)));
            contend(&table, key, change, |read| assert!(read.is_some(), "it was gone for a moment"));
        }
    }

    #[test]
    fn what_is_stored_where_something_was_just_removed_and_is_still_read_is_there() {
        let table = table(10_000);
        let key = &keys(1)[0];
        let change = || {
            for value in 0..50_000 {
                assert_eq!((put(&table, key, value), get(&table, key)), (None, Some(value)));
                assert_eq!(table.remove(&key.borrowed(), |entry| entry.value().copied()), Some(Some(value)));
                assert_eq!(get(&table, key), None);
            }
        };
        contend(&table, key, change, |_| ());
    }

    #[test]
    fn who_panics_at_what_was_removed_has_removed_it() {
        let table = table(100);
        let key = &keys(1)[0];
        put(&table, key, 1);
        let removing =
            std::panic::AssertUnwindSafe(|| table.remove(&key.borrowed(), |_| panic!("as a clone may")));
        assert!(std::panic::catch_unwind(removing).is_err());
        assert_eq!(get(&table, key), None);
    }

    #[test]
    fn a_full_table_hits_about_as_often_as_moka_does() {
        const CAPACITY: u64 = 1_000;
        let keys = keys(100_000);
        let table = table(CAPACITY);
        let moka = moka::sync::Cache::<u64, ()>::new(CAPACITY);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let (mut hits, mut of_moka) = (0_i32, 0_i32);
        for _ in 0..300_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // The more popular the fewer, as requests are.
            let number = (keys.len() as f64).powf((random >> 11) as f64 / (1_u64 << 53) as f64) as u64 - 1;
            let key = &keys[number as usize];
            if get(&table, key).is_some() {
                hits += 1;
            } else {
                put(&table, key, number);
            }
            if moka.get(&number).is_some() {
                of_moka += 1;
            } else {
                moka.insert(number, ());
            }
        }
        assert!((hits - of_moka).abs() < 1_500, "{hits} and {of_moka} of 300,000");
    }
}
