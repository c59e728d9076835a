//! One run: a cluster forms, faults come and go, and at the end all must be well.

use std::sync::Arc;
use std::time::Duration;

use turmoil::{Builder, Sim};

use crate::chance::Chance;
use crate::host::{BOUND, HORIZON, REPORT, Setup};
use crate::machines::Machines;
use crate::process::TICK;
use crate::record::{Tally, Terms};
use crate::world::{End, World};

/// Rounds of faults.
const ROUNDS: u64 = 4;

/// Virtual time in which a cluster forms, and in which it is well again after the last fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than any cut, and than any process is away.
const GRACE: Duration = Duration::from_secs(20);

/// In runs in which something takes longer than this.
const SHORT_GRACE: Duration = Duration::from_secs(8);

/// Of so many seeds one runs a cluster that is too large for everybody to follow everybody.
const LARGE_EVERY: u64 = 5;

/// More nodes than this are.
pub(crate) const RELAY_ABOVE: usize = 3;

/// How long a process is waited for to write something.
const WRITES_WITHIN: Duration = Duration::from_millis(300);

/// How old what a process said of itself may be, so that it still counts.
const REPORT_AGE: Duration = Duration::from_millis(200);

/// What was done to a cluster.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    faults: u64,
    crashes: u64,
    stops: u64,
    leaves: u64,
    goodbyes: u64,
    twins: u64,
    /// Cuts and stops for longer than a node that is lost may come back.
    long: u64,
    /// How often a process missed what a peer had forgotten.
    resets: u64,
    /// Loads that served another node.
    shared: u64,
    /// How often a process asked somebody else for a peer's changes.
    redirected: u64,
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    tally: Tally,
    done: Done,
    /// Promises that were broken, the first few.
    pub(crate) complaints: Vec<String>,
    /// What was done.
    pub(crate) events: Vec<String>,
    /// How many packets were sent, and a fingerprint of them.
    trace: (u64, u64),
    /// Virtual time from the end of all faults until all nodes were sound and agreed, in milliseconds.
    settled_ms: u64,
}

impl Outcome {
    /// Its figures, one line.
    pub(crate) fn figures(&self) -> String {
        let Tally { hits, stale, loads, writes, held, orphans, strange } = self.tally;
        let Done { faults, crashes, stops, leaves, goodbyes, twins, long, resets, shared, redirected } =
            self.done;
        let ((packets, fingerprint), settled_ms) = (self.trace, self.settled_ms);
        format!(
            "hits={hits} stale={stale} loads={loads} writes={writes} held={held} orphans={orphans} strange={strange} \
             faults={faults} crashes={crashes} stops={stops} leaves={leaves} goodbyes={goodbyes} twins={twins} \
             long={long} resets={resets} \
             shared={shared} redirected={redirected} settled_ms={settled_ms} packets={packets} fingerprint={fingerprint:016x}"
        )
    }
}

/// What is to happen.
#[derive(Debug)]
enum Due {
    /// A write of a dead process lands, or never will.
    Lands { write: u64, lands: bool },
    /// A node's process starts, if it has none, or though it has one.
    Starts { node: usize, beside: bool },
    /// A process that has given way ends.
    Ends { number: u64 },
}

/// Who is heard, when one is cut off from others.
#[derive(Clone, Copy, Debug)]
enum Heard {
    None,
    /// It hears them, and they do not hear it.
    Others,
    /// They hear it, and it does not hear them.
    Itself,
}

pub(crate) struct Story {
    sim: Sim<'static>,
    chance: Chance,
    world: Arc<World>,
    machines: Machines,
    due: Vec<(Duration, Due)>,
    /// Processes that were found to give way.
    going: Vec<u64>,
    long: bool,
    only_kills: bool,
    done: Done,
}

impl Story {
    /// Starts the nodes. `change` changes how they are set up.
    pub(crate) fn begin(seed: u64, change: impl FnOnce(&mut Setup)) -> Self {
        let mut chance = Chance::new(seed);
        let long = chance.permille(250);
        let grace = if long { SHORT_GRACE } else { GRACE };
        let terms = Terms { bound: BOUND, horizon: HORIZON, grace };
        let mut setup = Setup {
            serves_for: BOUND,
            horizon: HORIZON,
            grace,
            doubts_ends: true,
            remembers: if chance.permille(300) { chance.between(2, 8) } else { 65_536 },
            shares_loads: chance.permille(300),
            relay_above: if seed % LARGE_EVERY == LARGE_EVERY - 1 { RELAY_ABOVE } else { usize::MAX },
            planted: None,
            only_kills: false,
        };
        change(&mut setup);
        let world = Arc::new(World::new(seed, terms));
        let latency_ms = if chance.permille(700) { chance.between(2, 30) } else { chance.between(30, 150) };
        let mut builder = Builder::new();
        builder
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(3_600))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_micros(500))
            .max_message_latency(Duration::from_millis(latency_ms))
            .udp_capacity(65_536);
        let mut sim = builder.build();
        let nodes = match setup.relay_above {
            RELAY_ABOVE => chance.between(5, 7),
            _ => chance.between(3, 4),
        };
        let nodes = nodes as usize;
        let mut machines = Machines::new(&mut sim, &mut chance, nodes, (seed, setup, world.clone()));
        for node in 0..nodes {
            machines.start(&mut sim, node, node);
        }
        let (due, going, done) = (Vec::new(), Vec::new(), Done::default());
        Self { sim, chance, world, machines, due, going, long, only_kills: setup.only_kills, done }
    }

    /// Lives through it.
    pub(crate) fn end(mut self) -> Outcome {
        self.until("formed", |_, _| true);
        for round in 0..ROUNDS {
            for _ in 0..self.chance.between(1, 3) {
                self.fault();
                let lasts = self.chance.between(100, 1_500);
                self.pass(Duration::from_millis(lasts));
            }
            if self.long && !self.only_kills && round % 2 == 0 {
                self.long_fault();
            }
            let lasts = self.chance.between(0, 2_500);
            self.pass(Duration::from_millis(lasts));
            self.heal();
            let sound = self.chance.between(200, 4_000);
            self.pass(Duration::from_millis(sound));
        }
        // Whoever is down comes back, and what may still land does.
        while !self.due.is_empty() {
            self.pass(TICK);
        }
        let healed = self.sim.elapsed();
        self.until("sound", |_, _| true);
        // What nobody has to know yet, everybody has to from now on.
        let world = self.world.clone();
        self.until("told of everything", |_, _| world.record().is_settled());
        self.world.record().quiet = true;
        let world = self.world.clone();
        self.until("of one mind", |values, newest| values == newest && world.record().is_settled());
        let settled_ms = (self.sim.elapsed() - healed).as_millis() as u64;
        let record = self.world.record();
        let (tally, complaints) = (record.tally, record.complaints.clone());
        for report in self.world.reports().values() {
            self.done.resets += report.resets;
            self.done.shared += report.shared;
            self.done.redirected += report.redirected;
        }
        drop(record);
        let trace = self.world.weather().trace();
        Outcome { tally, done: self.done, complaints, events: self.world.events(), trace, settled_ms }
    }

    /// Lets time pass until all nodes are sound, no write is under way, and what their caches hold passes, beside the
    /// newest.
    fn until(&mut self, what: &str, passes: impl Fn(&[u64], &[u64]) -> bool) {
        let begin = self.sim.elapsed();
        loop {
            self.pass(TICK);
            let now = self.sim.elapsed();
            if self.machines.all_well(begin.max(now.saturating_sub(REPORT_AGE))) {
                let newest = self.world.record().all_newest();
                if self.world.reports().values().all(|report| passes(&report.values, &newest)) {
                    return;
                }
            }
            if now - begin > PATIENCE {
                let reports = self.world.reports().values().cloned().collect::<Vec<_>>();
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
            let first = self.chance.below(1 + self.machines.nodes() as u64) as usize;
            self.machines.run(first, now);
            let due: Vec<_> = self.due.extract_if(.., |(at, _)| *at <= now).collect();
            due.into_iter().for_each(|(_, due)| self.happens(due, now));
            if now.as_millis() % REPORT.as_millis() == 0 {
                self.look(now);
            }
        }
    }

    fn happens(&mut self, due: Due, now: Duration) {
        match due {
            Due::Lands { write, lands } => self.world.record().lands(write, lands, now),
            Due::Starts { node, beside } => {
                let runs = self.machines.running().any(|(_, who)| who.node == node);
                // It goes where it was, if it can.
                if let Some(at) = self.machines.free().filter(|_| beside || !runs) {
                    let number = self.machines.start(&mut self.sim, node, at);
                    self.note(format!("process {number} of n{node} starts on {}", self.name(at)));
                }
            }
            Due::Ends { number } => {
                let runs = self.machines.running().find(|(_, who)| who.number == number);
                if let Some((at, _)) = runs {
                    self.kill(at);
                }
            }
        }
    }

    /// Looks at what processes say of themselves.
    fn look(&mut self, now: Duration) {
        if self.machines.all_well(now.saturating_sub(REPORT_AGE)) {
            let processes = self.machines.running().map(|(_, who)| who.number);
            self.world.record().all_well(now, processes);
        }
        let ended = std::mem::take(&mut *self.world.ended());
        for (number, end) in ended {
            self.done.goodbyes += u64::from(end == End::Goodbye);
            self.note(format!("process {number} has left: {end:?}"));
            self.world.record().left(number);
            self.happens(Due::Ends { number }, now);
        }
        let reports = self.world.reports().clone();
        for (number, report) in reports {
            if report.gives_way && !self.going.contains(&number) {
                self.note(format!("process {number} gives way"));
                self.machines.gives_way(number);
                self.going.push(number);
                let lingers = Duration::from_millis(self.chance.between(100, 6_000));
                self.due.push((now + lingers, Due::Ends { number }));
            }
        }
    }

    /// One of the machines on which something runs, and its name.
    fn any(&mut self) -> Option<(usize, String)> {
        let running: Vec<usize> = self.machines.running().map(|(at, _)| at).collect();
        let at = *running.get(self.chance.below(running.len().max(1) as u64) as usize)?;
        Some((at, self.name(at)))
    }

    fn name(&self, at: usize) -> String {
        self.machines.names().nth(at).expect("a machine").to_owned()
    }

    fn others(&self, at: usize) -> Vec<String> {
        self.machines
            .names()
            .enumerate()
            .filter(|(other, _)| *other != at)
            .map(|(_, name)| name.to_owned())
            .collect()
    }

    fn fault(&mut self) {
        let Some((one, from)) = self.any() else { return };
        self.done.faults += 1;
        let others = self.others(one);
        let to = others[self.chance.below(others.len() as u64) as usize].clone();
        let kind = self.chance.below(14);
        match if self.only_kills { 7 } else { kind } {
            0 => {
                self.note(format!("{from} and {to} are cut off from each other"));
                self.sim.partition(from, to);
            }
            1 => {
                self.note(format!("{to} hears nothing from {from}"));
                self.sim.partition_oneway(from, to);
            }
            2 => self.cut_off(&from, &others, Heard::None),
            3 => self.cut_off(&from, &others, Heard::Others),
            4 => self.cut_off(&from, &others, Heard::Itself),
            5 => {
                self.note(format!("what {from} and {to} send each other waits"));
                self.sim.hold(from, to);
            }
            6 => {
                let lost = [10, 100, 300][self.chance.below(3) as usize];
                let doubled = self.chance.below(200);
                self.note(format!("of 1,000 packets {lost} are lost and {doubled} doubled"));
                let mut weather = self.world.weather();
                (weather.lost, weather.doubled) = (lost, doubled);
            }
            7 | 8 => {
                // Often while it writes.
                let patience = if self.chance.permille(500) { WRITES_WITHIN } else { Duration::ZERO };
                self.kill_writing(one, patience);
            }
            9 | 10 => {
                let longest = if self.chance.permille(500) { 1_000 } else { 6_000 };
                let lasts = self.chance.between(20, longest);
                self.stop(one, lasts);
            }
            11 => {
                self.done.leaves += 1;
                self.note(format!("the process on {from} is told to leave"));
                self.machines.leave(one);
            }
            12 => {
                // Somebody takes it for dead.
                let lasts = self.chance.between(500, 8_000);
                self.stop(one, lasts);
                self.twin(one);
            }
            _ => self.twin(one),
        }
    }

    /// Something that lasts for longer than a lost node may take to come back.
    fn long_fault(&mut self) {
        let Some((one, from)) = self.any() else { return };
        (self.done.faults, self.done.long) = (self.done.faults + 1, self.done.long + 1);
        let others = self.others(one);
        let grace = SHORT_GRACE.as_millis() as u64;
        let lasts = self.chance.between(grace + 500, 2 * grace);
        match self.chance.below(4) {
            0 => self.cut_off(&from, &others, Heard::None),
            1 => self.cut_off(&from, &others, Heard::Others),
            2 => {
                let (mut ones, others): (Vec<_>, Vec<_>) =
                    others.into_iter().partition(|_| self.chance.permille(400));
                ones.push(from);
                ones.iter().for_each(|one| self.cut_off(one, &others, Heard::None));
            }
            _ => self.stop(one, lasts),
        }
        self.pass(Duration::from_millis(lasts));
    }

    fn note(&self, event: impl Into<String>) {
        self.world.note(self.sim.elapsed(), event);
    }

    fn cut_off(&self, one: &str, others: &[String], heard: Heard) {
        let list = others.join(", ");
        match heard {
            Heard::None => self.note(format!("{one} is cut off from {list}")),
            Heard::Others => self.note(format!("{list} hear nothing from {one}")),
            Heard::Itself => self.note(format!("{one} hears nothing from {list}")),
        }
        for other in others {
            match heard {
                Heard::None => self.sim.partition(one, other.as_str()),
                Heard::Others => self.sim.partition_oneway(one, other.as_str()),
                Heard::Itself => self.sim.partition_oneway(other.as_str(), one),
            }
        }
    }

    fn stop(&mut self, at: usize, lasts_ms: u64) {
        self.done.stops += 1;
        self.note(format!("the process on {} is stopped for {lasts_ms} ms", self.name(at)));
        self.machines.stop(at, self.sim.elapsed() + Duration::from_millis(lasts_ms));
    }

    /// Another process is started under the id of a node that has one.
    fn twin(&mut self, at: usize) {
        let starts = self.due.iter().filter(|(_, due)| matches!(due, Due::Starts { .. })).count();
        let who = self.machines.running().find(|(machine, _)| *machine == at);
        let Some((_, who)) =
            who.filter(|_| self.machines.running().count() + starts == self.machines.nodes())
        else {
            return;
        };
        self.done.twins += 1;
        let after = Duration::from_millis(self.chance.between(0, 2_000));
        self.due.push((self.sim.elapsed() + after, Due::Starts { node: who.node, beside: true }));
    }

    /// Kills a process as soon as a write of its is under way, or has not been for long enough.
    fn kill_writing(&mut self, at: usize, patience: Duration) {
        let end = self.sim.elapsed() + patience;
        while self.sim.elapsed() < end {
            let who = self.machines.running().find(|(machine, _)| *machine == at);
            if who.is_none_or(|(_, who)| self.world.record().writes(who.number)) {
                break;
            }
            self.pass(TICK);
        }
        self.done.crashes += 1;
        self.kill(at);
    }

    /// A process ends without a word. What it had asked for may still land.
    fn kill(&mut self, at: usize) {
        let Some((who, under_way)) = self.machines.kill(&mut self.sim, at) else { return };
        self.note(format!("process {} of n{} on {} ends", who.number, who.node, self.name(at)));
        let now = self.sim.elapsed();
        for write in under_way {
            // In a hunt as late as it may: the next process is there by then.
            let earliest = if self.only_kills { 900 } else { 0 };
            let lands_after = HORIZON.mul_f64(self.chance.between(earliest, 999) as f64 / 1_000.0);
            let lands = self.only_kills || self.chance.permille(600);
            self.due.push((now + lands_after, Due::Lands { write, lands }));
        }
        let starts = |due: &Due| matches!(due, Due::Starts { node, .. } if *node == who.node);
        let lives = self.machines.running().any(|(_, other)| other.node == who.node);
        if !lives && !self.due.iter().any(|(_, due)| starts(due)) {
            let longest = if self.only_kills || self.chance.permille(500) { 200 } else { 6_000 };
            let back_after = Duration::from_millis(self.chance.between(20, longest));
            self.due.push((now + back_after, Due::Starts { node: who.node, beside: false }));
        }
    }

    fn heal(&mut self) {
        self.note("nothing is cut any more");
        self.world.weather().fair();
        let names: Vec<String> = self.machines.names().map(str::to_owned).collect();
        for (one, name) in names.iter().enumerate() {
            for other in &names[..one] {
                self.sim.release(name.as_str(), other.as_str());
                self.sim.repair(name.as_str(), other.as_str());
            }
        }
    }
}
