//! One run: a cluster forms, faults come and go, and at the end all must be well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use turmoil::{Builder, Sim};

use crate::chance::{Chance, mix};
use crate::host::{CLUSTER, HORIZON, Host, PORT, World};
use crate::identity::identities;
use crate::record::Tally;

/// Rounds of faults.
const ROUNDS: u64 = 4;

/// Virtual time in which a cluster forms, and in which it is well again after the last fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest pause between two events of the simulation.
const TICK: Duration = Duration::from_millis(1);

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    tally: Tally,
    /// Promises that were broken, the first few.
    pub(crate) complaints: Vec<String>,
    /// How many packets were sent, and a fingerprint of when, and of their lengths.
    trace: (u64, u64),
    /// Virtual time from the end of all faults until all nodes were sound and agreed, in milliseconds.
    settled_ms: u64,
}

impl Outcome {
    /// Its figures, one line.
    pub(crate) fn figures(&self) -> String {
        let Tally { hits, stale, loads, writes, crashes, faults } = self.tally;
        let ((packets, fingerprint), settled_ms) = (self.trace, self.settled_ms);
        format!(
            "hits={hits} stale={stale} loads={loads} writes={writes} crashes={crashes} faults={faults} \
             settled_ms={settled_ms} packets={packets} fingerprint={fingerprint:016x}"
        )
    }
}

pub(crate) struct Story {
    sim: Sim<'static>,
    chance: Chance,
    names: Vec<String>,
    world: Arc<World>,
    /// Hosts that are down, and when each is back.
    down: Vec<(usize, Duration)>,
    /// Writes of dead processes, and when each lands, if it does.
    landing: Vec<(u64, Duration, bool)>,
}

impl Story {
    /// Starts the hosts. Each serves for so long what it is not sure of.
    pub(crate) fn begin(seed: u64, serves_for: Duration) -> Self {
        let mut chance = Chance::new(seed);
        let names: Vec<String> = (0..chance.between(3, 4)).map(|number| format!("n{number}")).collect();
        let world = Arc::new(World::new(seed, names.len()));
        let mut builder = Builder::new();
        builder
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(600))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_micros(500))
            .max_message_latency(Duration::from_millis(chance.between(2, 30)))
            .udp_capacity(65_536);
        let mut sim = builder.build();
        let identities = identities(CLUSTER, &names, &mut chance);
        let addresses: Vec<_> = names.iter().map(|name| sim.lookup(name.as_str())).collect();
        let seeds: Vec<String> =
            addresses.iter().take(2).map(|address| format!("{address}:{PORT}")).collect();
        for (number, (name, identity)) in names.iter().zip(identities).enumerate() {
            let host = Host {
                number,
                name: name.clone(),
                identity,
                seeds: seeds.clone(),
                seed: mix(seed ^ (1 + number as u64)),
                world: world.clone(),
                serves_for,
            };
            let lives = AtomicU64::new(0);
            sim.host(name.as_str(), move || {
                let life = lives.fetch_add(1, Ordering::Relaxed);
                Host { seed: mix(host.seed ^ life), ..host.clone() }.run()
            });
        }
        Self { sim, chance, names, world, down: Vec::new(), landing: Vec::new() }
    }

    /// Lives through it.
    pub(crate) fn end(mut self) -> Outcome {
        self.until("formed", |_| true);
        for _ in 0..ROUNDS {
            for _ in 0..self.chance.between(1, 3) {
                self.fault();
                let lasts = self.chance.between(100, 1_500);
                self.pass(Duration::from_millis(lasts));
            }
            let lasts = self.chance.between(0, 2_500);
            self.pass(Duration::from_millis(lasts));
            self.heal();
            let sound = self.chance.between(200, 4_000);
            self.pass(Duration::from_millis(sound));
        }
        // Whoever is down comes back, and what may still land does.
        while !self.down.is_empty() || !self.landing.is_empty() {
            self.pass(TICK);
        }
        self.world.record().quiet = true;
        let healed = self.sim.elapsed();
        let world = self.world.clone();
        self.until("sound and of one mind", |values| {
            let record = world.record();
            record.is_settled() && (0..).zip(values).all(|(key, version)| *version == record.newest(key))
        });
        let settled_ms = (self.sim.elapsed() - healed).as_millis() as u64;
        let record = self.world.record();
        let trace = self.world.weather.lock().expect("nothing panics while it is locked").trace();
        Outcome { tally: record.tally, complaints: record.complaints.clone(), trace, settled_ms }
    }

    /// Lets time pass until all hosts are sound, and what their caches hold passes.
    fn until(&mut self, what: &str, passes: impl Fn(&[u64]) -> bool) {
        let begin = self.sim.elapsed();
        self.world.reports().iter_mut().for_each(|report| report.sound = false);
        loop {
            self.pass(TICK);
            let reports = self.world.reports();
            if reports.iter().all(|report| report.sound && passes(&report.values)) {
                return;
            }
            if self.sim.elapsed() - begin > PATIENCE {
                let states: Vec<&str> = reports.iter().map(|report| report.doubts.as_str()).collect();
                let complaint = format!("not {what} within {PATIENCE:?}: {states:?}");
                return self.world.record().complain(complaint);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.sim.step().expect("no host ends by itself");
            let now = self.sim.elapsed();
            for (write, _, lands) in self.landing.extract_if(.., |(_, at, _)| *at <= now) {
                self.world.record().lands(write, lands, now);
            }
            for (host, _) in self.down.extract_if(.., |(_, at)| *at <= now) {
                self.sim.bounce(self.names[host].as_str());
            }
        }
    }

    fn host(&mut self) -> usize {
        self.chance.below(self.names.len() as u64) as usize
    }

    fn fault(&mut self) {
        self.world.record().tally.faults += 1;
        let one = self.host();
        let other = (one + 1 + self.chance.below(self.names.len() as u64 - 1) as usize) % self.names.len();
        let (from, to) = (self.names[one].clone(), self.names[other].clone());
        match self.chance.below(8) {
            0 => self.sim.partition(from, to),
            1 => self.sim.partition_oneway(from, to),
            2 => self.names.iter().filter(|name| **name != from).for_each(|name| {
                self.sim.partition(from.as_str(), name.as_str());
            }),
            3 => self.names.iter().filter(|name| **name != from).for_each(|name| {
                self.sim.partition_oneway(from.as_str(), name.as_str());
            }),
            4 => self.sim.hold(from, to),
            5 => {
                let mut weather = self.world.weather.lock().expect("nothing panics while it is locked");
                weather.lost = [10, 100, 300][self.chance.below(3) as usize];
                weather.doubled = self.chance.below(200);
            }
            _ => self.kill(one),
        }
    }

    /// A process ends without a word. What it had asked for may still land.
    fn kill(&mut self, host: usize) {
        if self.down.iter().any(|(down, _)| *down == host) {
            return;
        }
        let now = self.sim.elapsed();
        self.sim.crash(self.names[host].as_str());
        self.world.reports()[host].sound = false;
        let under_way = self.world.record().died(host, now);
        for write in under_way {
            let lands_after = Duration::from_millis(self.chance.below(HORIZON.as_millis() as u64));
            let lands = self.chance.permille(600);
            self.landing.push((write, now + lands_after, lands));
        }
        let longest = if self.chance.permille(500) { 200 } else { 6_000 };
        let back_after = self.chance.between(20, longest);
        self.down.push((host, now + Duration::from_millis(back_after)));
    }

    fn heal(&mut self) {
        self.world.weather.lock().expect("nothing panics while it is locked").fair();
        for (one, name) in self.names.iter().enumerate() {
            for other in &self.names[..one] {
                self.sim.release(name.as_str(), other.as_str());
                self.sim.repair(name.as_str(), other.as_str());
            }
        }
    }
}
