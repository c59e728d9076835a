//! A service on one host: a node, a cache, and those who read and write.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tidings::{Cache, Clock, Identity, Node, Simulated, Tick};
use tokio::time::sleep;

use crate::chance::{Chance, mix};
use crate::record::{KEYS, Record};
use crate::socket::{Socket, Weather};

/// The cluster.
pub(crate) const CLUSTER: &str = "sim";

/// Where every node listens.
pub(crate) const PORT: u16 = 7400;

/// How old an unmarked hit may be.
pub(crate) const BOUND: Duration = Duration::from_secs(1);

/// The longest that a write of a process that is no more may take to land.
pub(crate) const HORIZON: Duration = Duration::from_secs(1);

/// Longer than any cut, and than any process is away.
const GRACE: Duration = Duration::from_secs(20);

/// Who reads and writes on one host at a time.
const WORKERS: u64 = 3;

/// How often a host says how it is.
const REPORT: Duration = Duration::from_millis(50);

/// When the clocks of all hosts began, so that no reading is near 0.
const BEGINNING: Duration = Duration::from_secs(20_000 * 24 * 60 * 60);

/// How far the clocks of two hosts are apart: ten minutes.
const SKEW: Duration = Duration::from_secs(600);

/// How a host is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Ready, and nothing is doubted.
    pub(crate) sound: bool,
    /// What its cache has of every key, if nobody writes any more.
    pub(crate) values: Vec<u64>,
    /// What is wrong, for people.
    pub(crate) doubts: String,
}

/// What all hosts, and what is done to them, share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) weather: Arc<Mutex<Weather>>,
    record: Mutex<Record>,
    reports: Mutex<Vec<Report>>,
}

impl World {
    pub(crate) fn new(seed: u64, hosts: usize) -> Self {
        Self {
            weather: Arc::new(Mutex::new(Weather::new(mix(seed)))),
            record: Mutex::new(Record::new(BOUND)),
            reports: Mutex::new(vec![Report::default(); hosts]),
        }
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nothing panics while it is locked")
    }

    pub(crate) fn reports(&self) -> MutexGuard<'_, Vec<Report>> {
        self.reports.lock().expect("nothing panics while it is locked")
    }
}

/// What a host is started with, each time.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) identity: Identity,
    pub(crate) seeds: Vec<String>,
    /// Decides what it does in this life.
    pub(crate) seed: u64,
    pub(crate) world: Arc<World>,
    /// How long its node serves what it is not sure of.
    pub(crate) serves_for: Duration,
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// Every host has a wrong clock of its own.
fn clock(number: usize) -> Clock {
    let ahead = BEGINNING + SKEW * number as u32;
    Clock::from_fn(move || Tick((ahead + now()).as_nanos() as u64))
}

impl Host {
    /// Runs until the host is killed.
    pub(crate) async fn run(self) -> Result<(), Box<dyn Error>> {
        let address = SocketAddr::new(turmoil::lookup(self.name.as_str()), PORT);
        let socket = Socket::bind(address, self.world.weather.clone()).await?;
        let mut chance = Chance::new(self.seed);
        let mut quic = [0; 32];
        quic.fill_with(|| chance.next() as u8);
        let node = Node::builder(CLUSTER)
            .node_id(&self.name)
            .listen(address)
            .identity(self.identity.clone())
            .seeds(self.seeds.clone())
            .clock(clock(self.number))
            .unready_when_clock_off(false)
            .max_staleness(self.serves_for)
            .write_horizon(HORIZON)
            .lost_grace(GRACE)
            .gossip_interval(Duration::from_millis(200))
            .simulated(Simulated { socket, seed: quic, log_id: chance.next() })
            .start()
            .await?;
        let cache: Cache<u64, u64> = node.cache("numbers").open()?;
        let seen = Arc::new(Mutex::new(vec![0; KEYS as usize]));
        for _ in 0..WORKERS {
            let worker = Worker {
                host: self.number,
                world: self.world.clone(),
                node: node.clone(),
                cache: cache.clone(),
                seen: seen.clone(),
                chance: Chance::new(chance.next()),
            };
            // Ends with its host.
            tokio::spawn(worker.run());
        }
        loop {
            sleep(REPORT).await;
            self.report(&node, &cache).await?;
        }
    }

    async fn report(&self, node: &Node, cache: &Cache<u64, u64>) -> Result<(), Box<dyn Error>> {
        let (ready, doubts) = (node.readiness(), node.doubts());
        let sound = ready.is_ok() && doubts.is_empty();
        let mut values = Vec::new();
        let quiet = self.world.record().quiet;
        for key in (0..KEYS).filter(|_| quiet) {
            let load = || async { Ok::<_, Infallible>(self.world.record().newest(key)) };
            values.push(cache.get_or_load(&key, load).await?);
        }
        let doubts = format!("{ready:?}, doubts {doubts:?}");
        self.world.reports()[self.number] = Report { sound, values, doubts };
        Ok(())
    }
}

/// Reads and writes.
struct Worker {
    host: usize,
    world: Arc<World>,
    node: Node,
    cache: Cache<u64, u64>,
    /// By key: what was written or removed here, so that nothing older may be read any more.
    seen: Arc<Mutex<Vec<u64>>>,
    chance: Chance,
}

impl Worker {
    async fn run(mut self) {
        loop {
            self.pause(1, 40).await;
            let key = self.chance.below(KEYS);
            match self.chance.below(100) {
                0..55 => self.read(key),
                55..90 => self.load(key).await,
                _ if self.world.record().quiet => self.read(key),
                90..96 => self.write(key).await,
                _ => self.remove(key).await,
            }
        }
    }

    async fn pause(&mut self, least_ms: u64, most_ms: u64) {
        sleep(Duration::from_millis(self.chance.between(least_ms, most_ms))).await;
    }

    fn seen(&self, key: u64) -> u64 {
        self.seen.lock().expect("nothing panics while it is locked")[key as usize]
    }

    fn saw(&self, (key, version): (u64, u64)) {
        let mut seen = self.seen.lock().expect("nothing panics while it is locked");
        let seen = &mut seen[key as usize];
        *seen = version.max(*seen);
    }

    fn read(&self, key: u64) {
        if let Some(version) = self.cache.get(&key) {
            let mut record = self.world.record();
            record.tally.hits += 1;
            record.judge("a hit", self.host, (key, version), (self.seen(key), now()));
        }
    }

    async fn load(&mut self, key: u64) {
        let (began, seen) = (now(), self.seen(key));
        let (there, back) = (self.chance.between(0, 30), self.chance.between(0, 30));
        let world = self.world.clone();
        let loader = || async move {
            sleep(Duration::from_millis(there)).await;
            let version = world.record().newest(key);
            sleep(Duration::from_millis(back)).await;
            Ok::<_, Infallible>(version)
        };
        let load = self.cache.get_or_load(&key, loader);
        // Some callers have no patience.
        let patience = Duration::from_millis(if self.chance.permille(100) { 20 } else { 10_000 });
        if let Ok(Ok(version)) = tokio::time::timeout(patience, load).await {
            let mut record = self.world.record();
            record.tally.loads += 1;
            record.judge("a load", self.host, (key, version), (seen, began));
        }
    }

    async fn write(&mut self, key: u64) {
        let write = self.world.record().begin(self.host, key, self.node.is_known());
        let (there, back) = (self.chance.between(0, 60), self.chance.between(0, 60));
        let world = self.world.clone();
        let writer = || async move {
            sleep(Duration::from_millis(there)).await;
            let version = world.record().commit(write);
            sleep(Duration::from_millis(back)).await;
            Ok::<_, Infallible>(version)
        };
        let written = self.cache.write_through(&key, writer).await;
        self.told(write, written.is_ok());
    }

    async fn remove(&mut self, key: u64) {
        let write = self.world.record().begin(self.host, key, self.node.is_known());
        self.pause(0, 60).await;
        self.world.record().commit(write);
        self.pause(0, 60).await;
        let removed = self.cache.remove(&key).is_ok();
        self.told(write, removed);
    }

    fn told(&self, write: u64, well: bool) {
        let mut record = self.world.record();
        // Known when it began, or by now: either is enough.
        record.counts(write, self.node.is_known());
        match record.told(write, now()) {
            Some(said) if well => self.saw(said),
            _ => record.complain(format!("a change on n{} was refused", self.host)),
        }
    }
}
