//! Nothing that a call returns is older than an invalidation that had returned before the call began.
//!
//! A system of record holds one version per key. Writers raise a key's version and then invalidate it, by every way
//! there is; once that has returned, the new version is the least that any later call may return. Readers note that
//! bound before each call and judge what they get.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings_cache::{Cache, CacheBuilder, Clock, Domain, Mode, ReadOrFill, TOKEN_TIME};
use tidings_proto::freshness::{Bounds, Published};
use tidings_proto::id::{Incarnation, Origin};
use tidings_proto::log::ChangeLog;
use tidings_proto::time::Tick;
use tokio::task::JoinSet;

use record::{Random, Record, Tally, is_absent};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Few enough that every key is contended.
const KEYS: usize = 256;

/// Each key has one of so many tags, or prefixes.
const TAGS: usize = 8;

/// Reads between two looks at whether there have been enough.
const READS_PER_ROUND: u64 = 512;

struct Arena {
    domain: Domain,
    cache: Cache<usize, u64>,
    record: Record,
    tally: Tally,
    wanted: u64,
    /// Whether every other read is one of [`Arena::read_otherwise`].
    fetches: bool,
}

impl Arena {
    fn new(mode: Mode, wanted: u64) -> Arc<Self> {
        // A quarter of the keys do not fit, so that displacement takes part.
        let domain = alone();
        let told = mode == Mode::Invalidate;
        let builder = CacheBuilder::new(&domain, "arena").mode(mode).eviction_events(told);
        let tagged = builder.tags(|key: &usize, _| [format!("{}", key % TAGS)]);
        let cache = tagged.max_capacity(KEYS as u64 * 3 / 4).open().unwrap();
        Self::of(domain, cache, wanted, false)
    }

    fn of(domain: Domain, cache: Cache<usize, u64>, wanted: u64, fetches: bool) -> Arc<Self> {
        let (record, tally) = (Record::new(), Tally::default());
        Arc::new(Self { domain, cache, record, tally, wanted, fetches })
    }

    /// One whose entries expire all the time, and are served, refreshed and loaded in every way there is.
    fn expiring(wanted: u64) -> Arc<Self> {
        let domain = alone();
        let builder = CacheBuilder::new(&domain, "arena").eviction_events(true).max_capacity(KEYS as u64 - 4);
        let builder = builder.time_to_live(5 * MILLISECOND).fail_safe(5_000 * MILLISECOND).ttl_jitter(0.2);
        let builder = builder.tags(|key: &usize, _| [format!("{}", key % TAGS)]);
        let builder = builder.eager_refresh(0.5).soft_timeout(MILLISECOND).hard_timeout(10 * MILLISECOND);
        let cache = builder.retry_after(5 * MILLISECOND).negative_ttl(20 * MILLISECOND).open().unwrap();
        Self::of(domain, cache, wanted, true)
    }

    /// A read by a loader that may go on without its caller, that brings many keys, or that finds nothing.
    async fn read_otherwise(self: &Arc<Self>, random: &mut Random) {
        let (key, how, pause) = (random.below(KEYS), random.below(8), random.below(64));
        let bound = self.record.bound(key);
        match how {
            0..=4 => {
                let arena = self.clone();
                let load = move || async move {
                    let version = arena.slow_load(key, pause % 4).await;
                    if pause == 0 {
                        // A source that takes its time.
                        tokio::time::sleep(5 * MILLISECOND).await;
                    }
                    version.and_then(|version| if pause % 4 == 1 { Err(()) } else { Ok(version) })
                };
                if let Ok(fetched) = self.cache.fetch(&key, load).await {
                    self.tally.judge(bound, fetched.value);
                }
            }
            5 => {
                let keys: Vec<_> = (0..4).map(|n| (key + n * 7) % KEYS).collect();
                let bounds: Vec<_> = keys.iter().map(|key| self.record.bound(*key)).collect();
                let load = |asked: Vec<usize>| async move {
                    let versions: Vec<_> = asked.iter().map(|key| (*key, self.record.load(*key))).collect();
                    tokio::task::yield_now().await;
                    Ok::<_, ()>(versions.into_iter().filter(|(_, version)| !is_absent(*version)))
                };
                let Ok(values) = self.cache.get_or_load_many(&keys, load).await else { return };
                for ((key, bound), value) in keys.iter().zip(bounds).zip(values) {
                    self.judge_optional(*key, bound, value);
                }
            }
            _ => {
                let load = || async {
                    let version = self.slow_load(key, pause % 4).await?;
                    Ok::<_, ()>((!is_absent(version)).then_some(version))
                };
                if let Ok(value) = self.cache.get_or_load_optional(&key, load).await {
                    self.judge_optional(key, bound, value);
                }
            }
        }
    }

    fn judge_optional(&self, key: usize, bound: u64, value: Option<u64>) {
        match value {
            Some(version) => self.tally.judge(bound, version),
            None => self.tally.judge_absent(bound, self.record.load(key)),
        }
    }

    fn is_over(&self) -> bool {
        self.tally.enough.load(Ordering::Relaxed)
    }

    fn count(&self, reads: u64) {
        if self.tally.reads.fetch_add(reads, Ordering::Relaxed) + reads >= self.wanted {
            self.tally.enough.store(true, Ordering::Relaxed);
        }
    }

    /// A task that reads through loads, some of which are given up half way.
    async fn read(self: Arc<Self>, seed: u64) {
        let mut random = Random::new(seed);
        while !self.is_over() {
            for _ in 0..READS_PER_ROUND {
                if self.fetches && random.below(2) == 0 {
                    self.read_otherwise(&mut random).await;
                } else {
                    self.read_once(&mut random).await;
                }
            }
            self.count(READS_PER_ROUND);
            tokio::task::yield_now().await;
        }
    }

    async fn read_once(&self, random: &mut Random) {
        let (key, how, pause) = (random.below(KEYS), random.below(16), random.below(4));
        let bound = self.record.bound(key);
        match how {
            0..=7 => {
                if let Some(version) = self.cache.get(&key) {
                    self.tally.hits.fetch_add(1, Ordering::Relaxed);
                    self.tally.judge(bound, version);
                }
            }
            8 => match self.cache.get_or_token(&key, TOKEN_TIME).unwrap() {
                ReadOrFill::Hit(version) => self.tally.judge(bound, version),
                ReadOrFill::Miss(token) => {
                    let version = self.record.load(key);
                    tokio::task::yield_now().await;
                    self.cache.fill(&key, version, token, None).unwrap();
                }
            },
            9 => {
                // The caller goes away while its load is under way; somebody who waits for it loads.
                let load = self.cache.get_or_load(&key, || self.slow_load(key, pause));
                let mut load = std::pin::pin!(load);
                if let std::task::Poll::Ready(version) = futures_util::poll!(load.as_mut()) {
                    // Another caller's loader, which this one joined, may fail.
                    assert!(version.is_ok() || self.fetches);
                    version.into_iter().for_each(|version| self.tally.judge(bound, version));
                }
            }
            _ => {
                let version = self.cache.get_or_load(&key, || self.slow_load(key, pause)).await;
                assert!(version.is_ok() || self.fetches);
                version.into_iter().for_each(|version| self.tally.judge(bound, version));
            }
        }
    }

    /// Reads the truth early and answers late, as a slow replica would.
    async fn slow_load(&self, key: usize, pause: usize) -> Result<u64, ()> {
        let version = self.record.load(key);
        for _ in 0..pause {
            tokio::task::yield_now().await;
        }
        Ok(version)
    }

    /// A task that changes the truth and then invalidates.
    async fn write(self: Arc<Self>, seed: u64) {
        let mut random = Random::new(seed);
        while !self.is_over() {
            self.write_once(&mut random).await;
            if self.fetches {
                // So seldom that most lives end by themselves.
                tokio::time::sleep(MILLISECOND).await;
            }
            for _ in 0..random.below(4) {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn write_once(&self, random: &mut Random) {
        let key = random.below(KEYS);
        match random.below(64) {
            0 => {
                let versions: Vec<_> = (0..KEYS).map(|key| self.record.load(key)).collect();
                self.cache.clear().unwrap();
                (0..KEYS).for_each(|key| self.record.settle(key, versions[key]));
            }
            1..=4 => {
                let keys: Vec<_> = (0..8).map(|n| (key + n) % KEYS).collect();
                let versions: Vec<_> = keys.iter().map(|key| self.record.write(*key)).collect();
                self.cache.write().remove_many(keys.iter().copied()).unwrap();
                keys.iter().zip(versions).for_each(|(key, version)| self.record.settle(*key, version));
            }
            5..=24 => {
                let write = || async {
                    let version = self.record.write(key);
                    tokio::task::yield_now().await;
                    Ok::<_, ()>(version)
                };
                let (version, _) = self.cache.write_through(&key, write).await.unwrap();
                self.record.settle(key, version);
            }
            25..=28 => {
                // Given up after the truth has changed: nobody knows, so the key must go.
                let version = AtomicU64::new(0);
                let write = || async {
                    version.store(self.record.write(key), Ordering::Relaxed);
                    std::future::pending::<Result<u64, ()>>().await
                };
                let mut writing = Box::pin(self.cache.write_through(&key, write));
                assert!(futures_util::poll!(writing.as_mut()).is_pending());
                drop(writing);
                self.record.settle(key, version.into_inner());
            }
            29..=31 => {
                let version = self.record.write(key);
                let write = || async { Err::<u64, _>("failed, and yet it was made") };
                self.cache.write_through(&key, write).await.unwrap_err();
                self.record.settle(key, version);
            }
            32 if self.cache.erased().settings().mode == Mode::Invalidate => {
                // Written elsewhere, and this node only knows that it may have missed something.
                let version = self.record.write(key);
                self.domain.fence_all();
                self.record.settle(key, version);
            }
            33..=34 => {
                let keys = self.record.keys_like(key);
                let versions: Vec<_> = keys.iter().map(|key| self.record.write(*key)).collect();
                self.cache.invalidate_tag(&format!("{}", key % TAGS)).unwrap();
                keys.iter().zip(versions).for_each(|(key, version)| self.record.settle(*key, version));
            }
            _ => {
                let version = self.record.write(key);
                self.cache.remove(&key).unwrap();
                self.record.settle(key, version);
            }
        }
    }

    /// After all is quiet, what is cached is the truth.
    fn differing(&self) -> usize {
        self.cache.iter().filter(|(key, version)| *version != self.record.load(*key)).count()
    }
}

/// A domain without peers, in which what fails has ended: else nothing would be cached while keys fail all the time.
fn alone() -> Domain {
    let origin = Origin { node: "a".parse().unwrap(), incarnation: Incarnation(1) };
    let log = Arc::new(ChangeLog::new(Default::default(), Default::default()));
    let bounds = Bounds { write_horizon: Duration::ZERO, ..Bounds::default() };
    let domain = Domain::bounded(Clock::system(), log, origin, bounds);
    domain.publish(Published { fresh_until: Tick::FOREVER, floor: Tick::NEVER });
    domain
}

fn reads_wanted() -> u64 {
    std::env::var("TIDINGS_STALE_READS").map_or(1_000_000, |reads| reads.parse().expect("a number of reads"))
}

async fn run(arena: Arc<Arena>) {
    let wanted = arena.wanted;
    let mut tasks = JoinSet::new();
    for seed in 0..8 {
        tasks.spawn(arena.clone().read(seed + 1));
    }
    for seed in 0..4 {
        tasks.spawn(arena.clone().write(seed + 100));
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let reads = arena.tally.reads.load(Ordering::Relaxed);
    let hits = arena.tally.hits.load(Ordering::Relaxed);
    let counts = arena.cache.counts();
    println!("{reads} reads, {hits} hits by get alone: {counts:?}");
    assert!(reads >= wanted && hits * 20 > reads, "too few hits to judge: {hits} of {reads}");
    assert!(counts.fence_rejects > 0 && counts.coalesced > 0, "{counts:?}");
    assert_eq!(counts.evicted > 0, arena.cache.erased().settings().eviction_events, "{counts:?}");
    assert_eq!(arena.tally.stale.load(Ordering::Relaxed), 0, "stale results of {reads} reads");
    // What goes on in the background ends by itself.
    let quiet = async {
        while arena.cache.erased().flights() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(20_000 * MILLISECOND, quiet).await.expect("all flights end");
    assert_eq!(arena.differing(), 0);
    tidings_facts::note(
        "G3",
        format!(
            "{reads} reads judged while writers invalidate, 0 older than an invalidation that had returned"
        ),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_result_is_older_than_an_invalidation_that_had_returned() {
    run(Arena::new(Mode::Invalidate, reads_wanted())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nor_in_a_cache_that_does_not_broadcast() {
    run(Arena::new(Mode::Local, reads_wanted() / 4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nor_where_entries_expire_and_are_served_refreshed_and_loaded_in_every_way() {
    let arena = Arena::expiring(reads_wanted() / 4);
    run(arena.clone()).await;
    let counts = arena.cache.counts();
    assert!(counts.stale > 100 && counts.load_failures > 100, "{counts:?}");
    arena.domain.close().await;
}

#[test]
fn fences_raised_at_any_moment_let_nothing_old_through() {
    let wanted = reads_wanted() / 4;
    let domain = Domain::standalone();
    let cache: Cache<usize, u64> = CacheBuilder::new(&domain, "fenced").open().unwrap();
    let record = Record::new();
    let (stale, hits, reads) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (cache, record, stale, hits, reads) = (&cache, &record, &stale, &hits, &reads);
            scope.spawn(move || {
                let mut random = Random::new(seed + 1);
                let mut loading = std::collections::VecDeque::new();
                while reads.fetch_add(1, Ordering::Relaxed) < wanted {
                    if loading.len() > 16 {
                        let (key, version, token) = loading.pop_front().unwrap();
                        cache.fill(&key, version, token, None).unwrap();
                    }
                    let key = random.below(KEYS);
                    let bound = record.bound(key);
                    match cache.get_or_token(&key, TOKEN_TIME).unwrap() {
                        ReadOrFill::Hit(version) => {
                            hits.fetch_add(1, Ordering::Relaxed);
                            stale.fetch_add(u64::from(version < bound), Ordering::Relaxed);
                        }
                        ReadOrFill::Miss(token) => {
                            loading.push_back((key, record.load(key), token));
                        }
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut random = Random::new(77);
            while reads.load(Ordering::Relaxed) < wanted {
                // Writes elsewhere that this node never hears of, until it fences what they may have been.
                let keys: Vec<_> = (0..32).map(|_| random.below(KEYS)).collect();
                let versions: Vec<_> = keys.iter().map(|key| record.write(*key)).collect();
                domain.fence_all();
                keys.iter().zip(versions).for_each(|(key, version)| record.settle(*key, version));
                for _ in 0..200 {
                    std::hint::spin_loop();
                }
                std::thread::yield_now();
            }
        });
    });
    assert!(hits.load(Ordering::Relaxed) > 1_000, "too few hits to judge");
    assert_eq!(stale.load(Ordering::Relaxed), 0);
}

/// A node that is fresh for a moment at a time, so that hits look at the clock and the table is looked through later.
fn domain_with_peers(clock: &Clock) -> Domain {
    let origin = Origin { node: "a".parse().unwrap(), incarnation: Incarnation(1) };
    let log = Arc::new(ChangeLog::new(Default::default(), Default::default()));
    Domain::new(clock.clone(), log, origin, Duration::from_millis(40))
}

/// Least invalidations, and least rounds of housekeeping.
const ROUNDS: u64 = 300;

#[test]
fn prefixes_invalidated_at_any_moment_let_nothing_old_through() {
    let wanted = reads_wanted() / 4;
    let clock = Clock::system();
    let domain = domain_with_peers(&clock);
    let cache: Cache<String, u64> = CacheBuilder::new(&domain, "prefixed").open().unwrap();
    let name = |key: usize| format!("{}-{key}", key % TAGS);
    let record = Record::new();
    let (stale, hits, reads) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (invalidated, swept, clock) = (AtomicU64::new(0), AtomicU64::new(0), &clock);
    let is_over = || {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        of(&reads) >= wanted && of(&invalidated) >= ROUNDS && of(&swept) >= ROUNDS
    };
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (cache, record, stale, hits, reads) = (&cache, &record, &stale, &hits, &reads);
            let is_over = &is_over;
            scope.spawn(move || {
                let mut random = Random::new(seed + 1);
                let mut loading = std::collections::VecDeque::new();
                while !is_over() {
                    reads.fetch_add(1, Ordering::Relaxed);
                    if loading.len() > 16 {
                        let (key, version, token) = loading.pop_front().unwrap();
                        cache.fill(&name(key), version, token, None).unwrap();
                    }
                    let key = random.below(KEYS);
                    let bound = record.bound(key);
                    match cache.get_or_token(&name(key), TOKEN_TIME).unwrap() {
                        ReadOrFill::Hit(version) => {
                            hits.fetch_add(1, Ordering::Relaxed);
                            stale.fetch_add(u64::from(version < bound), Ordering::Relaxed);
                        }
                        ReadOrFill::Miss(token) => loading.push_back((key, record.load(key), token)),
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut random = Random::new(77);
            while !is_over() {
                let key = random.below(KEYS);
                let keys = record.keys_like(key);
                let versions: Vec<_> = keys.iter().map(|key| record.write(*key)).collect();
                cache.invalidate_prefix(&format!("{}-", key % TAGS)).unwrap();
                keys.iter().zip(versions).for_each(|(key, version)| record.settle(*key, version));
                invalidated.fetch_add(1, Ordering::Relaxed);
                (0..2_000).for_each(|_| std::hint::spin_loop());
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !is_over() {
                let fresh_until = clock.now().after(Duration::from_millis(30));
                domain.publish(Published { fresh_until, floor: Tick::NEVER });
                domain.housekeep();
                swept.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
    });
    let [hits, reads] = [hits, reads].map(AtomicU64::into_inner);
    println!("{hits} hits of {reads} reads, {} invalidations", invalidated.into_inner());
    assert!(hits * 50 > reads, "too few to judge: {hits} hits of {reads} reads");
    assert_eq!(stale.into_inner(), 0);
}
