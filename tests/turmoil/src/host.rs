//! A service in one process: a node, a cache, and those who read and write.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidings::{Cache, Clock, Identity, MemberInfo, Node, Planted, Retention, Simulated, State, Tick};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::chance::Chance;
use crate::process::Time;
use crate::record::{KEYS, Read, Told};
use crate::wire::{Cable, Socket};
use crate::world::{End, Report, World};

/// The cluster.
pub(crate) const CLUSTER: &str = "sim";

/// Where every node listens.
pub(crate) const PORT: u16 = 7400;

/// How old an unmarked hit may be.
pub(crate) const BOUND: Duration = Duration::from_secs(1);

/// The longest that a write of a process that is no more may take to land.
pub(crate) const HORIZON: Duration = Duration::from_secs(1);

/// Who reads and writes in one process at a time.
const WORKERS: u64 = 3;

/// How often a process says how it is.
pub(crate) const REPORT: Duration = Duration::from_millis(50);

/// When the clocks of all machines began, so that no reading is near 0.
const BEGINNING: Duration = Duration::from_secs(20_000 * 24 * 60 * 60);

/// How far the clocks of two machines are apart: ten minutes.
const SKEW: Duration = Duration::from_secs(600);

/// Zones of machines.
const ZONES: usize = 2;

/// Tags: each of a few keys.
const TAGS: u64 = 8;

fn tag(key: u64) -> String {
    format!("of {}", key % TAGS)
}

/// How long a node takes at most to leave.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// How a node is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// How long it serves what it is not sure of.
    pub(crate) serves_for: Duration,
    /// How long it takes a write to be under way after its process has died.
    pub(crate) horizon: Duration,
    /// How long one that nobody hears may come back.
    pub(crate) grace: Duration,
    /// Whether who ends without a word is doubted.
    pub(crate) doubts_ends: bool,
    /// How many changes a lane remembers for peers that fall behind.
    pub(crate) remembers: u64,
    /// Whether one loader runs per key and cluster.
    pub(crate) shares_loads: bool,
    /// How many nodes all follow each other at most: of more, some relay.
    pub(crate) relay_above: usize,
    /// What is wrong with it.
    pub(crate) planted: Option<Planted>,
    /// Whether killing processes is all that is done to them.
    pub(crate) only_kills: bool,
}

/// What a process is started with.
pub(crate) struct Service {
    /// Counts processes.
    pub(crate) number: u64,
    /// Which of the machines it runs on, whose clock is wrong in a way of its own.
    pub(crate) machine: usize,
    pub(crate) node: String,
    pub(crate) identity: Identity,
    pub(crate) address: SocketAddr,
    pub(crate) seeds: Vec<String>,
    /// Decides what it does.
    pub(crate) seed: u64,
    pub(crate) setup: Setup,
    pub(crate) cable: Arc<Cable>,
    /// Tells it to leave.
    pub(crate) leave: Arc<Notify>,
    pub(crate) world: Arc<World>,
}

impl Service {
    /// Runs until its process ends.
    pub(crate) async fn run(self, time: Time) {
        let mut chance = Chance::new(self.seed);
        let mut quic = [0; 32];
        quic.fill_with(|| chance.next() as u8);
        let weather = self.world.weather.clone();
        let socket = Arc::new(Socket { cable: self.cable.clone(), address: self.address, weather, time });
        let ahead = BEGINNING + SKEW * self.machine as u32;
        let Setup {
            serves_for,
            horizon,
            grace,
            doubts_ends,
            remembers,
            shares_loads,
            relay_above,
            planted,
            ..
        } = self.setup;
        let relays = relay_above < usize::MAX;
        let zone = if relays { format!("z{}", self.machine % ZONES) } else { String::new() };
        let node = Node::builder(CLUSTER)
            .node_id(&self.node)
            .listen(self.address)
            .identity(self.identity.clone())
            .seeds(self.seeds.clone())
            .clock(Clock::from_fn(move || Tick((ahead + time.now()).as_nanos() as u64)))
            .unready_when_clock_off(false)
            .max_staleness(serves_for)
            .write_horizon(horizon)
            .lost_grace(grace)
            .doubt_unclean_ends(doubts_ends)
            .relay_above(relay_above)
            .zone(zone)
            .retention(Retention { events: remembers, ..Retention::default() })
            .gossip_interval(Duration::from_millis(200))
            .simulated(Simulated { socket, seed: quic, log_id: chance.next(), planted })
            .start()
            .await
            .expect("its address and its identity are its own");
        let cache = node.cache::<u64, u64>("numbers").tags(|key, _| [tag(*key)]);
        let cache = if shares_loads { cache.one_loader_per_cluster() } else { cache };
        let cache = cache.open().expect("the name is sound");
        let seen = Arc::new(Mutex::new(vec![0; KEYS as usize]));
        let leaves = Arc::<AtomicBool>::default();
        for _ in 0..WORKERS {
            let worker = Worker {
                process: self.number,
                name: format!("{} in process {}", self.node, self.number),
                world: self.world.clone(),
                node: node.clone(),
                cache: cache.clone(),
                seen: seen.clone(),
                leaves: leaves.clone(),
                chance: Chance::new(chance.next()),
                time,
            };
            // Ends with its process.
            tokio::spawn(worker.run());
        }
        loop {
            tokio::select! {
                () = sleep(REPORT) => self.report(&node, &cache, time).await,
                () = self.leave.notified() => {
                    leaves.store(true, Ordering::Relaxed);
                    let goodbye = node.shutdown(LEAVES_WITHIN).await;
                    let end = if goodbye { End::Goodbye } else { End::Silent };
                    self.world.ended().push((self.number, end));
                }
            }
        }
    }

    async fn report(&self, node: &Node, cache: &Cache<u64, u64>, time: Time) {
        let (ready, doubts) = (node.readiness(), node.doubts());
        let live = || node.members().into_iter().filter(|member| member.state == State::Live);
        let is_sound = ready.is_ok() && doubts.is_empty() && live().all(|member| member.synced());
        let sound_with = is_sound.then(|| live().count());
        let mut values = Vec::new();
        let quiet = self.world.record().quiet;
        for key in (0..KEYS).filter(|_| quiet) {
            let load = || async { Ok::<_, Infallible>(self.world.record().newest(key)) };
            let Ok(version) = cache.get_or_load(&key, load).await else { return };
            values.push(version);
        }
        let doubts = format!("{}: {ready:?}, doubts {doubts:?}", self.node);
        let gives_way = node.conflict().is_some();
        let resets = node.members().iter().map(|member| member.resets).sum();
        let shared = node.leases().home.shared;
        let redirected = node.relayed().redirected;
        let life = |member: MemberInfo| {
            let number = member.node.as_str().strip_prefix('n').and_then(|number| number.parse().ok());
            Some((number?, member.incarnation.0))
        };
        let hears = live().filter_map(life).collect();
        let there = node.members().into_iter().filter(|member| member.state != State::Left);
        let knows = there.filter_map(life).collect();
        let report = Report {
            at: time.now(),
            sound_with,
            gives_way,
            values,
            hears,
            knows,
            doubts,
            resets,
            shared,
            redirected,
        };
        self.world.report(self.number, report);
    }
}

/// Reads and writes.
struct Worker {
    process: u64,
    /// For people.
    name: String,
    world: Arc<World>,
    node: Node,
    cache: Cache<u64, u64>,
    /// By key: what was written or removed here, so that nothing older may be read any more.
    seen: Arc<Mutex<Vec<u64>>>,
    leaves: Arc<AtomicBool>,
    chance: Chance,
    time: Time,
}

impl Worker {
    async fn run(mut self) {
        loop {
            self.pause(1, 40).await;
            let orphan = self.world.record().adopt(self.time.now());
            if let Some(key) = orphan {
                self.remove(&[key], |cache, key| cache.remove(&key[0]).is_ok()).await;
                continue;
            }
            let key = self.chance.below(KEYS);
            match self.chance.below(1_000) {
                0..550 => self.read(key),
                550..900 => self.load(key).await,
                _ if self.world.record().quiet => self.read(key),
                900..950 => self.write(key).await,
                950..998 => self.remove(&[key], |cache, key| cache.remove(&key[0]).is_ok()).await,
                _ => self.remove_many(key).await,
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

    fn did(&self, what: &'static str, (key, version): (u64, u64)) -> Read<'_> {
        Read { what, process: self.process, who: &self.name, key, version }
    }

    fn read(&self, key: u64) {
        if let Some(version) = self.cache.get(&key) {
            let mut record = self.world.record();
            record.tally.hits += 1;
            let knows = |by, node| self.world.knows(self.process, by, node);
            record.judge(&self.did("a hit", (key, version)), self.seen(key), self.time.now(), knows);
        }
    }

    async fn load(&mut self, key: u64) {
        let (began, seen) = (self.time.now(), self.seen(key));
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
            let knows = |by, node| self.world.knows(self.process, by, node);
            record.judge(&self.did("a load", (key, version)), seen, began, knows);
        }
    }

    async fn write(&mut self, key: u64) {
        let write = self.world.record().begin(self.process, key, true, self.node.is_known());
        let (there, back) = (self.chance.between(0, 60), self.chance.between(0, 60));
        let (world, time) = (self.world.clone(), self.time);
        let writer = || async move {
            sleep(Duration::from_millis(there)).await;
            let version = world.record().commit(write, time.now());
            sleep(Duration::from_millis(back)).await;
            Ok::<_, Infallible>(version)
        };
        let written = self.cache.write_through(&key, writer).await;
        self.told(write, written.is_ok());
    }

    /// Changes some keys elsewhere, and then has them removed.
    async fn remove(&mut self, keys: &[u64], act: impl FnOnce(&Cache<u64, u64>, &[u64]) -> bool) {
        let is_known = self.node.is_known();
        let begin = |key: &u64| self.world.record().begin(self.process, *key, false, is_known);
        let writes: Vec<u64> = keys.iter().map(begin).collect();
        self.pause(0, 60).await;
        for write in &writes {
            self.world.record().commit(*write, self.time.now());
        }
        self.pause(0, 60).await;
        let removed = act(&self.cache, keys);
        writes.into_iter().for_each(|write| self.told(write, removed));
    }

    /// Removes several keys at once, by themselves, by their tag or with all others.
    async fn remove_many(&mut self, key: u64) {
        let tagged: Vec<u64> = (key % TAGS..KEYS).step_by(TAGS as usize).collect();
        match self.chance.below(10) {
            0..5 => {
                self.remove(&tagged, |cache, keys| cache.write().remove_many(keys.iter().copied()).is_ok())
                    .await
            }
            5..9 => self.remove(&tagged, |cache, keys| cache.invalidate_tag(&tag(keys[0])).is_ok()).await,
            _ => {
                let all: Vec<u64> = (0..KEYS).collect();
                self.remove(&all, |cache, _| cache.clear().is_ok()).await;
            }
        }
    }

    fn told(&self, write: u64, well: bool) {
        let mut record = self.world.record();
        // Known when it began, or by now: either is enough.
        record.counts(write, self.node.is_known());
        let told = if well { Told::Well } else { Told::Refused };
        match record.told(write, told, self.time.now()) {
            Some(said) if well => self.saw(said),
            // Another process has its place, or it leaves.
            _ if self.node.conflict().is_some() || self.leaves.load(Ordering::Relaxed) => {}
            _ => record.complain(format!("a change on {} was refused", self.name)),
        }
    }
}
