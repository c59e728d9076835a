//! Virtual time, and what happens in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidings_proto::id::{Incarnation, NodeId, Origin};

use crate::chance::Chance;
use crate::history::History;
use crate::node::{Node, Tally};
use crate::wire::{Frame, Network, To};
use crate::{KEYS, Micros, Planted};

/// How often a node looks after itself.
const TICK_US: Micros = 50_000;

/// How long the last sound phase is: longer than an unclean end is in doubt.
const SETTLE_US: Micros = 9_000_000;

/// Lines of a trace that are shown.
const TRACE_LINES: usize = 400;

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Frame(Origin, Frame),
    Tick,
    Act,
    /// The system of record works for an operation.
    Work(u64),
    Answered(u64),
    /// A commit of a process that is dead lands; whether its changes counted.
    Commit(u8, bool),
    BeginFaults(u64),
    BeginFault,
    /// Some of what is held comes through.
    Release,
    EndFaults(u64),
    Restart,
    Resume,
    Settle,
    End,
}

/// A process, or the place of one.
pub(crate) struct Place {
    pub(crate) node: Option<Node>,
    pub(crate) paused: bool,
    /// What waits for a process that stands still.
    inbox: VecDeque<Event>,
    skew_us: Micros,
}

/// What a run was made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) hash: u64,
    pub(crate) crashes: u64,
    pub(crate) pauses: u64,
    pub(crate) leaves: u64,
    pub(crate) tally: Tally,
}

/// A promise that was broken.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) seed: u64,
    pub(crate) what: String,
    trace: VecDeque<String>,
}

pub(crate) struct World {
    seed: u64,
    planted: Planted,
    pub(crate) chance: Chance,
    clock: Arc<AtomicU64>,
    queue: BinaryHeap<Reverse<(Micros, u64)>>,
    events: BTreeMap<u64, (usize, Option<Incarnation>, Event)>,
    numbers: u64,
    lives: u64,
    pub(crate) places: Vec<Place>,
    pub(crate) network: Network,
    pub(crate) history: History,
    pub(crate) summary: Summary,
    pub(crate) settling: bool,
    trace: VecDeque<String>,
    tracing: bool,
}

impl World {
    pub(crate) fn new(seed: u64, planted: Planted) -> Self {
        let mut chance = Chance::new(seed);
        let count = chance.between(3, 7) as usize;
        let place = |_| Place {
            node: None,
            paused: false,
            inbox: VecDeque::new(),
            skew_us: chance.below(1_200_000_000),
        };
        let places = (0..count).map(place).collect();
        let mut world = Self {
            seed,
            planted,
            chance,
            clock: Arc::default(),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            numbers: 0,
            lives: 0,
            places,
            network: Network::new(count),
            history: History::new(),
            summary: Summary::default(),
            settling: false,
            trace: VecDeque::new(),
            tracing: std::env::var_os("TIDINGS_SIM_SEED").is_some(),
        };
        (0..count).for_each(|place| world.start(place));
        let rounds = world.chance.between(3, 5);
        world.schedule(5_000_000, (0, None), Event::BeginFaults(rounds));
        world
    }

    pub(crate) fn now(&self) -> Micros {
        self.clock.load(Ordering::Relaxed)
    }

    pub(crate) fn schedule(&mut self, after: Micros, to: (usize, Option<Incarnation>), event: Event) {
        self.numbers += 1;
        self.queue.push(Reverse((self.now() + after, self.numbers)));
        self.events.insert(self.numbers, (to.0, to.1, event));
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            if self.trace.len() == TRACE_LINES {
                self.trace.pop_front();
            }
            self.trace.push_back(format!("{:>9} {}", self.now(), line()));
        }
    }

    /// A process starts, as a new life of its node.
    pub(crate) fn start(&mut self, place: usize) {
        self.lives += 1;
        let life = Incarnation(self.lives);
        let me = Origin { node: NodeId::new(&format!("n{place}")).unwrap(), incarnation: life };
        self.note(|| format!("{me} starts"));
        let skew = self.places[place].skew_us;
        self.places[place].node = Some(Node::start(me, &self.clock, skew, self.planted));
        self.places[place].paused = false;
        self.places[place].inbox.clear();
        let phase = self.chance.below(TICK_US);
        self.schedule(phase, (place, Some(life)), Event::Tick);
        self.schedule(phase, (place, Some(life)), Event::Act);
    }

    pub(crate) fn run(mut self) -> Result<Summary, Found> {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            self.clock.store(at, Ordering::Relaxed);
            let (place, life, event) = self.events.remove(&number).expect("what is queued is there");
            self.summary.hash =
                (self.summary.hash ^ at ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
            if let Event::End = event {
                self.compare();
                return self.judged();
            }
            self.happen(place, life, event);
            if self.places[place].node.as_ref().is_some_and(|node| node.complaint.is_some()) {
                return self.judged();
            }
        }
        unreachable!("a run ends by its last event")
    }

    fn judged(mut self) -> Result<Summary, Found> {
        for node in self.places.iter_mut().filter_map(|place| place.node.as_mut()) {
            self.summary.tally.add(&node.tally);
            if let Some(what) = node.complaint.take() {
                return Err(Found { seed: self.seed, what, trace: self.trace });
            }
        }
        self.summary.hash ^= self.chance.next();
        Ok(self.summary)
    }

    fn happen(&mut self, place: usize, life: Option<Incarnation>, event: Event) {
        match event {
            Event::BeginFaults(left) => return self.begin_faults(left),
            Event::BeginFault => return self.begin_fault(),
            Event::Release => return self.release(),
            Event::EndFaults(left) => return self.end_faults(left),
            Event::Settle => return self.settle(),
            Event::Restart if self.places[place].node.is_none() => return self.start(place),
            Event::Restart => return,
            Event::Resume => return self.resume(place),
            Event::Commit(key, counted) => {
                let version = self.history.commit(key);
                if counted {
                    self.history.announce(key, version, self.now());
                }
                return;
            }
            _ => {}
        }
        let Some(node) = &self.places[place].node else { return };
        if life.is_some_and(|life| life != node.me.incarnation) {
            return;
        }
        let stands_still = self.places[place].paused && !matches!(event, Event::Work(_));
        if stands_still {
            self.places[place].inbox.push_back(event);
        } else {
            self.run_on(place, event);
        }
    }

    /// Something happens in a process.
    fn run_on(&mut self, place: usize, event: Event) {
        if self.tracing {
            self.trace_event(place, &event);
        }
        let count = self.places.len();
        let Some(node) = &mut self.places[place].node else { return };
        let life = node.me.incarnation;
        match event {
            Event::Frame(from, frame) => node.deliver(&from, frame, &mut self.history),
            Event::Tick => {
                node.pass_time(count);
                let over = node.leaving.as_ref().is_some_and(|leaving| {
                    let said = leaving.said.is_some_and(|said| said + 400_000 < node.now());
                    said || leaving.deadline < node.now()
                });
                self.schedule(TICK_US, (place, Some(life)), Event::Tick);
                if over {
                    self.send(place);
                    self.end_life(place);
                    return;
                }
            }
            Event::Act => {
                self.numbers += 1;
                if self.settling {
                    node.read_all(&self.history);
                } else {
                    node.act(self.numbers, &mut self.chance, &mut self.history);
                }
                let pause = self.chance.between(2_000, 60_000);
                self.schedule(pause, (place, Some(life)), Event::Act);
            }
            Event::Work(id) => node.work(id, &mut self.history),
            Event::Answered(id) => node.answered(id, &mut self.chance, &mut self.history),
            _ => unreachable!("not an event of a process"),
        }
        if let Some(node) = &mut self.places[place].node {
            node.poll(&mut self.chance, &mut self.history);
        }
        self.send(place);
    }

    /// Takes what a process has to say, and what its operations wait for.
    pub(crate) fn send(&mut self, place: usize) {
        let Some(node) = &mut self.places[place].node else { return };
        let me = node.me.clone();
        let (out, plans) = (std::mem::take(&mut node.out), std::mem::take(&mut node.plans));
        let promised = std::mem::take(&mut node.promised);
        for (to, frame) in out {
            self.send_frame((place, me.clone()), to, frame);
        }
        for plan in plans {
            self.schedule(plan.works_after, (place, Some(me.incarnation)), Event::Work(plan.id));
            let answers = plan.works_after + plan.answers_after;
            self.schedule(answers, (place, Some(me.incarnation)), Event::Answered(plan.id));
        }
        for (origin, key, version) in promised {
            let peers = self.places.iter_mut().filter_map(|place| place.node.as_mut());
            for peer in peers.filter(|peer| peer.me == origin) {
                peer.settle(key, version);
            }
        }
    }

    pub(crate) fn send_frame(&mut self, (place, me): (usize, Origin), to: To, frame: Frame) {
        if self.network.admits((place, &me), to, &frame) {
            self.carry((place, me), to, frame);
        }
    }

    /// Delivers a frame that no cut stops.
    pub(crate) fn carry(&mut self, (place, me): (usize, Origin), to: To, frame: Frame) {
        let now = self.now();
        for at in self.network.arrivals((place, to.node), now, &mut self.chance) {
            self.schedule(at - now, (to.node, to.life), Event::Frame(me.clone(), frame.clone()));
        }
    }

    /// What waited for a process happens now that it goes on; but first it is read from.
    fn resume(&mut self, place: usize) {
        if !std::mem::take(&mut self.places[place].paused) {
            return;
        }
        self.note(|| format!("n{place} goes on"));
        let Some(node) = &mut self.places[place].node else { return };
        node.read_all(&self.history);
        for event in std::mem::take(&mut self.places[place].inbox) {
            self.run_on(place, event);
        }
    }

    fn trace_event(&mut self, place: usize, event: &Event) {
        let me = self.places[place].node.as_ref().map(|node| node.me.to_string()).unwrap_or_default();
        match event {
            Event::Tick | Event::Act => {}
            Event::Frame(_, Frame::Probe(_) | Frame::Hears(_) | Frame::Members(_)) => {}
            Event::Frame(from, frame) => self.note(|| format!("{me} gets of {from}: {frame:?}")),
            other => self.note(|| format!("{me}: {other:?}")),
        }
    }

    /// The network is whole, and nobody writes.
    fn settle(&mut self) {
        self.note(|| "the last faults are over".to_owned());
        self.settling = true;
        for place in 0..self.places.len() {
            self.resume(place);
            if self.places[place].node.as_ref().is_some_and(|node| node.leaving.is_some()) {
                self.end_life(place);
            }
            if self.places[place].node.is_none() {
                self.start(place);
            }
        }
        self.schedule(SETTLE_US, (0, None), Event::End);
    }

    /// G1, and that doubt has ended.
    fn compare(&mut self) {
        for node in self.places.iter_mut().filter_map(|place| place.node.as_mut()) {
            let doubts = node.freshness.doubts(node.tick());
            if !doubts.is_empty() {
                node.complain(format!("still in doubt at the end: {doubts:?}"));
            }
            for key in 0..KEYS {
                let (held, truth) = (node.cache.get(&key), self.history.read(key));
                if held.is_some_and(|held| held != truth) {
                    node.complain(format!("key {key} differs at the end: {held:?}, should be {truth}"));
                }
            }
        }
    }
}

impl Found {
    /// What was found, how it came to be, and how to see it again.
    pub(crate) fn report(&self, test: &str) -> String {
        let mut text = String::new();
        for line in &self.trace {
            writeln!(text, "{line}").unwrap();
        }
        let seed = self.seed;
        writeln!(text, "seed {seed}: {}", self.what).unwrap();
        writeln!(text, "again: TIDINGS_SIM_SEED={seed} cargo test -p tidings-cache --test simulation {test}")
            .unwrap();
        text
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.doubted_hits += other.doubted_hits;
        self.misses += other.misses;
        self.joined += other.joined;
        self.gaps += other.gaps;
        self.resets += other.resets;
        self.duplicates += other.duplicates;
        self.applied += other.applied;
        self.receipts += other.receipts;
        self.goodbyes += other.goodbyes;
    }
}

impl Summary {
    pub(crate) fn add(&mut self, other: &Self) {
        self.hash ^= other.hash;
        self.crashes += other.crashes;
        self.pauses += other.pauses;
        self.leaves += other.leaves;
        self.tally.add(&other.tally);
    }

    /// Whether everything that is to be judged did happen.
    pub(crate) fn is_telling(&self) -> bool {
        let Tally { hits, doubted_hits, joined, gaps, resets, duplicates, receipts, goodbyes, .. } =
            self.tally;
        let counts = [hits, doubted_hits, joined, gaps, resets, duplicates, receipts, goodbyes];
        counts.into_iter().chain([self.crashes, self.pauses, self.leaves]).all(|count| count > 0)
    }
}
