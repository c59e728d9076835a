//! Traffic: readers and writers at every node against one system of record, every hit judged.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use rand::seq::index::sample;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Fill, Lookup};
use crate::cluster::{APART, CACHE, Cluster};
use crate::pace::Pair;
use crate::record::{Hit, Record, Version};
use crate::watch::Watch;

/// Pause of a reader between two reads: leaves two cores time for the nodes.
const READ_EVERY: Duration = Duration::from_millis(4);

/// How long a load from the record takes, its answer decided at the beginning: time for an invalidation to overtake it.
const LOAD_TAKES: Duration = Duration::from_millis(10);

/// Pause of a writer between two writes.
const WRITE_EVERY: Duration = Duration::from_millis(20);

/// Pause between two pairs of writes that are timed.
const TIME_EVERY: Duration = Duration::from_millis(5);

/// Keys that a flood writes at once.
const FLOOD_AT_A_TIME: usize = 50;

/// How many read at a node at a time to warm it.
const WARMERS: usize = 8;

/// How long a write that no node accepts is tried again before its driver gives up.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// What traffic shall be.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Distinct keys. So many that entries grow older than the bound between two writes of a key, so few that most are
    /// cached.
    pub keys: usize,
    /// Readers at each node.
    pub readers: usize,
    /// Draws the keys.
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self { keys: 500, readers: 2, seed: 1 }
    }
}

/// Traffic that runs until [`Drive::stop`].
#[derive(Debug)]
pub struct Drive {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    apis: Vec<Api>,
    record: Record,
    load: Load,
    phases: Mutex<Vec<Phase>>,
}

/// What happened between two calls of [`Drive::phase`].
#[derive(Clone, Debug)]
pub struct Phase {
    name: &'static str,
    watch: Watch,
    took: Duration,
    spare: Duration,
    /// Per node.
    nodes: BTreeMap<usize, Counts>,
}

/// What happened at one node.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Lookups that hit.
    pub hits: u64,
    /// Lookups that missed: each is a load from the record.
    pub loads: u64,
    /// Fills that something ended.
    pub ended: u64,
    /// Requests without a usable answer.
    pub failed: u64,
    /// How long each accepted write took, in order of acceptance.
    pub writes: Vec<Duration>,
    /// How long a write took that peers were told of, beside one that they were not.
    pub pairs: Vec<Pair>,
}

impl Counts {
    /// The share of lookups that hit.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / (self.hits + self.loads).max(1) as f64
    }

    /// The write latency that this share of writes does not exceed.
    #[must_use]
    pub fn write_quantile(&self, share: f64) -> Duration {
        let mut sorted = self.writes.clone();
        sorted.sort_unstable();
        let index = (sorted.len() as f64 * share) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl Phase {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How much of its time the machine had to spare.
    #[must_use]
    pub fn spare(&self) -> Duration {
        self.spare
    }

    /// The share of lookups that hit, at all nodes.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        let (hits, loads) = (self.nodes.values())
            .fold((0, 0), |(hits, loads), counts| (hits + counts.hits, loads + counts.loads));
        hits as f64 / (hits + loads).max(1) as f64
    }

    /// What happened at one node.
    #[must_use]
    pub fn node(&self, node: usize) -> Counts {
        self.nodes.get(&node).cloned().unwrap_or_default()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64().max(f64::EPSILON);
        for (node, counts) in &self.nodes {
            writeln!(
                f,
                "{:8} n{}: hit ratio {:.3}, {:6.1} loads/s, {:5.1} writes/s, write p50 {:?} p99 {:?}, {} ended, {} failed",
                self.name,
                node + 1,
                counts.hit_ratio(),
                counts.loads as f64 / seconds,
                counts.writes.len() as f64 / seconds,
                counts.write_quantile(0.5),
                counts.write_quantile(0.99),
                counts.ended,
                counts.failed,
            )?;
        }
        Ok(())
    }
}

impl Drive {
    /// Starts readers, one writer and one whose writes are timed at every node of a cluster.
    #[must_use]
    pub fn start(cluster: &Cluster, load: Load) -> Self {
        let record = Record::new(cluster.max_staleness());
        let shared = Arc::new(Shared { apis: cluster.apis(), record, load, phases: Mutex::default() });
        let mut drive = Self { shared, tasks: JoinSet::new(), stop: CancellationToken::new() };
        drive.phase("before");
        for node in 0..drive.shared.apis.len() {
            for reader in 0..load.readers {
                let (shared, stop, seed) =
                    (Arc::clone(&drive.shared), drive.stop.clone(), (node * 64 + reader) as u64);
                let read = async move { shared.read_until_stopped(node, load.seed ^ seed).await };
                drive.tasks.spawn(async move { stop.run_until_cancelled(read).await.unwrap_or(()) });
            }
            let (shared, stop) = (Arc::clone(&drive.shared), drive.stop.clone());
            // A writer finishes what it began: a write without its invalidation would be no defect of the cluster.
            drive.tasks.spawn(async move { shared.write_until_stopped(node, &stop).await });
            let (shared, stop) = (Arc::clone(&drive.shared), drive.stop.clone());
            drive.tasks.spawn(async move {
                stop.run_until_cancelled(shared.time_writes(node)).await.unwrap_or(());
            });
        }
        drive
    }

    /// Ends the current phase and begins another.
    pub fn phase(&self, name: &'static str) {
        let mut phases = self.shared.phases();
        if let Some(current) = phases.last_mut() {
            current.took = current.watch.elapsed();
            current.spare = current.watch.spare();
        }
        let (took, spare) = (Duration::ZERO, Duration::ZERO);
        phases.push(Phase { name, watch: Watch::start(), took, spare, nodes: BTreeMap::new() });
    }

    /// The system of record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// Reads at one node once, judged like all others; an error if it does not answer.
    pub async fn read(&self, node: usize, key: usize) -> Result<()> {
        self.shared.read(node, &name_of(key)).await
    }

    /// Reads every key once at every node, judged like all other reads: what may be cached is cached then.
    pub async fn warm(&self) {
        let mut readers = JoinSet::new();
        for node in 0..self.shared.apis.len() {
            for first in 0..WARMERS {
                let shared = Arc::clone(&self.shared);
                readers.spawn(async move {
                    for key in (first..shared.load.keys).step_by(WARMERS) {
                        if shared.read(node, &name_of(key)).await.is_err() {
                            shared.count(node, |counts| counts.failed += 1);
                        }
                    }
                });
            }
        }
        while let Some(ended) = readers.join_next().await {
            ended.expect("no driver panics");
        }
    }

    /// Writes so many keys as fast as nodes take them, some at a time, at all nodes together, beside all other traffic.
    pub async fn flood(&self, writes: usize) {
        let mut floods = JoinSet::new();
        let nodes = self.shared.apis.len();
        for node in 0..nodes {
            let shared = Arc::clone(&self.shared);
            floods.spawn(async move { shared.flood(node, writes / nodes).await });
        }
        while let Some(ended) = floods.join_next().await {
            ended.expect("no driver panics");
        }
    }

    /// Waits for the writers to finish what they began, and ends the readers; the phases, each printed.
    pub async fn stop(mut self) -> Stopped {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no driver panics");
        }
        self.phase("after the end");
        let mut phases = self.shared.phases().clone();
        phases.pop();
        for phase in &phases {
            eprint!("{phase}");
        }
        let summary = self.shared.record.summary();
        eprintln!(
            "{} hits judged, {} stale by at most {:?}, {} marked, {} violations",
            summary.hits, summary.stale, summary.staleness_max, summary.marked, summary.violations
        );
        Stopped { shared: self.shared, phases }
    }
}

/// What came of a comparison of caches with the record. A miss serves nothing, and cannot differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Entries that a hit would serve.
    pub entries: usize,
    /// Those of them that differ, in words.
    pub differing: Vec<String>,
}

/// What traffic came to.
#[derive(Debug)]
pub struct Stopped {
    shared: Arc<Shared>,
    /// The phases, in order.
    pub phases: Vec<Phase>,
}

impl Stopped {
    /// The system of record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// The phase of this name.
    #[must_use]
    pub fn phase(&self, name: &str) -> &Phase {
        self.phases.iter().find(|phase| phase.name == name).expect("a phase that the test began")
    }

    /// Compares what a hit would serve, on any of these nodes, with the record.
    pub async fn compare(&self, nodes: &[usize]) -> Result<Compared> {
        let mut found = Compared::default();
        for node in nodes {
            for key in (0..self.shared.load.keys).map(name_of) {
                let Lookup::Hit { value, .. } = self.shared.apis[*node].get(CACHE, &key).await? else {
                    continue;
                };
                found.entries += 1;
                let (held, truth) = (version_in(&value), self.shared.record.load(&key));
                if held != Some(truth) {
                    found.differing.push(format!("n{} {key}: {held:?}, the record has {truth}", node + 1));
                }
            }
        }
        Ok(found)
    }
}

impl Shared {
    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().expect("no holder panics")
    }

    fn count(&self, node: usize, count: impl FnOnce(&mut Counts)) {
        if let Some(phase) = self.phases().last_mut() {
            count(phase.nodes.entry(node).or_default());
        }
    }

    async fn read_until_stopped(&self, node: usize, seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        loop {
            let key = name_of(random.random_range(0..self.load.keys));
            if self.read(node, &key).await.is_err() {
                self.count(node, |counts| counts.failed += 1);
            }
            sleep(READ_EVERY).await;
        }
    }

    /// One read through the cache: a hit is judged, a miss loaded and filled.
    async fn read(&self, node: usize, key: &str) -> Result<()> {
        let begun = self.record.now();
        match self.apis[node].get(CACHE, key).await? {
            Lookup::Hit { value, marked } => {
                let version = version_in(&value).unwrap_or(Version::MAX);
                self.record.judge(&Hit { key: key.to_owned(), node, begun, version, marked });
                self.count(node, |counts| counts.hits += 1);
            }
            Lookup::Miss { token } => {
                self.count(node, |counts| counts.loads += 1);
                let loaded = self.record.load(key).to_string().into_bytes();
                sleep(LOAD_TAKES).await;
                if let Some(token) = token
                    && self.apis[node].fill(CACHE, key, &token, loaded).await? == Fill::Ended
                {
                    self.count(node, |counts| counts.ended += 1);
                }
            }
        }
        Ok(())
    }

    async fn write_until_stopped(&self, node: usize, stop: &CancellationToken) {
        let mut random = SmallRng::seed_from_u64(self.load.seed.wrapping_add(node as u64));
        while !stop.is_cancelled() {
            self.write(node, &[name_of(random.random_range(0..self.load.keys))]).await;
            sleep(WRITE_EVERY).await;
        }
    }

    async fn flood(&self, node: usize, writes: usize) {
        let mut random = SmallRng::seed_from_u64(self.load.seed ^ (node as u64) << 32);
        for first in (0..writes).step_by(FLOOD_AT_A_TIME) {
            let count = FLOOD_AT_A_TIME.min(writes - first);
            let keys = sample(&mut random, self.load.keys, count.min(self.load.keys));
            self.write(node, &keys.into_iter().map(name_of).collect::<Vec<_>>()).await;
        }
    }

    /// Times removals of a key that nobody reads, each beside one that nobody is told of.
    async fn time_writes(&self, node: usize) {
        let timed = async |cache: &str| {
            let begun = Instant::now();
            self.apis[node].delete(cache, "timed").await.map(|()| begun.elapsed())
        };
        for turn in 0_u64.. {
            let caches = if turn.is_multiple_of(2) { [CACHE, APART] } else { [APART, CACHE] };
            match (timed(caches[0]).await, timed(caches[1]).await) {
                (Ok(first), Ok(second)) => {
                    let (told, apart) = if caches[0] == CACHE { (first, second) } else { (second, first) };
                    self.count(node, |counts| counts.pairs.push(Pair { told, apart }));
                }
                // The node is not there now.
                _ => sleep(WRITE_EVERY).await,
            }
            sleep(TIME_EVERY).await;
        }
    }

    /// Changes the record, then invalidates the keys at this node; at the next one while that does not answer.
    async fn write(&self, node: usize, keys: &[String]) {
        let versions: Vec<_> = keys.iter().map(|key| self.record.write(key)).collect();
        let begun = self.record.now();
        for attempt in 0.. {
            let through = (node + attempt) % self.apis.len();
            let sent = self.record.now();
            let done = match keys {
                [key] => self.apis[through].delete(CACHE, key).await,
                _ => self.apis[through].invalidate(CACHE, keys).await,
            };
            match done {
                Ok(()) => {
                    let now = self.record.now();
                    for (key, version) in keys.iter().zip(versions) {
                        self.record.returned(key, version, now, [through]);
                    }
                    return self.count(through, |counts| counts.writes.push(now - sent));
                }
                Err(error) => {
                    assert!(self.record.now() - begun < WRITE_WITHIN, "no node accepts a write: {error:#}");
                    self.count(through, |counts| counts.failed += 1);
                    sleep(WRITE_EVERY).await;
                }
            }
        }
    }
}

fn name_of(key: usize) -> String {
    format!("record-{key}")
}

fn version_in(value: &[u8]) -> Option<Version> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
