//! The event loop: what happens next, to whom, and the end of a run.

use std::collections::{BinaryHeap, VecDeque};

use bytes::{Bytes, BytesMut};
use tidings_proto::follower::MustFence;
use tidings_proto::frame::{Control, FrameType, take};
use tidings_proto::id::{LaneId, Lanes, Origin};
use tidings_proto::time::Tick;

use super::faults::Fault;
use super::net::{Channel, Envelope, Flow, Net, StreamKey};
use super::process::{Process, index_of};
use super::rng::Rng;
use super::truth::{Truth, Writer};
use super::{ACTIVE, Bug, KEYS, Ms, PROBE_EVERY, QUIET};

/// Lines of history that a failure shows.
const HISTORY_LINES: usize = 120;

#[derive(Debug)]
pub(crate) enum Task {
    Tick,
    Read,
    Scan,
    Write,
    Append(usize),
    Loaded {
        key: usize,
        flight: u64,
        version: usize,
    },
    Pump(StreamKey),
    Heartbeat(Origin),
    Fence {
        origin: Origin,
        fence: MustFence,
    },
    /// The late half of [`Bug::ExpectedBeforeFence`].
    LateFence(LaneId),
    Exit,
}

#[derive(Debug)]
pub(crate) enum Event {
    Deliver(Box<Envelope>),
    /// A frame has gone, one way or another.
    Released(Flow),
    /// A write takes effect in the system of record, whatever has become of its writer.
    Commit(usize),
    /// A load reads the system of record.
    Snapshot {
        reader: Writer,
        key: usize,
        flight: u64,
    },
    Fault(Fault),
    Of(Writer, Task),
}

struct Due {
    at: Ms,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest, for the heap.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// What a run did, to tell whether it tried anything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) events: u64,
    pub(crate) writes: u64,
    pub(crate) hits: u64,
    pub(crate) loads: u64,
    pub(crate) loads_ended: u64,
    pub(crate) applied: u64,
    pub(crate) duplicates: u64,
    pub(crate) gaps: u64,
    pub(crate) stale: u64,
    pub(crate) violations: u64,
    pub(crate) resets: u64,
    pub(crate) goodbyes: u64,
    pub(crate) unclean_ends: u64,
    pub(crate) crashes: u64,
    pub(crate) pauses: u64,
    pub(crate) cuts: u64,
    /// Cuts and pauses longer than the grace.
    pub(crate) expulsions: u64,
    pub(crate) late_heartbeats: u64,
    /// How far the stalest hit was behind.
    pub(crate) oldest_hit: Ms,
}

/// A run that went wrong, with what had happened before.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) history: Vec<String>,
}

pub(crate) struct Node {
    pub(crate) life: u64,
    pub(crate) offset: Ms,
    pub(crate) paused_until: Ms,
    pub(crate) process: Option<Process>,
}

pub(crate) struct World {
    pub(crate) now: Ms,
    order: u64,
    queue: BinaryHeap<Due>,
    pub(crate) rng: Rng,
    pub(crate) net: Net,
    pub(crate) truth: Truth,
    pub(crate) nodes: Vec<Node>,
    pub(crate) lanes: Lanes,
    pub(crate) log_events: u64,
    /// Nodes do not write before then: bursts and lulls.
    pub(crate) lull_until: Ms,
    /// Member sets do not get through before then.
    pub(crate) members_lost_until: Ms,
    /// A node that was apart from others for longer than the guarantees allow, and until when it is no wonder that
    /// these do not hold between it and them.
    pub(crate) expelled: Option<(usize, Ms)>,
    pub(crate) bug: Option<Bug>,
    pub(crate) stats: Stats,
    pub(crate) broken: Option<String>,
    history: Option<VecDeque<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, with_history: bool) -> Self {
        let mut rng = Rng::new(seed);
        let lanes = Lanes::new(rng.pick(&[1, 2, 4])).expect("a power of two");
        let log_events = rng.pick(&[4, 8, 16, 64, 65_536]);
        let count = rng.range(2, 5);
        let net = Net::new(&mut rng);
        let nodes = (0..count).map(|_| Node {
            life: 0,
            offset: rng.range(1, 1_000_000),
            paused_until: 0,
            process: None,
        });
        Self {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            nodes: nodes.collect(),
            rng,
            net,
            truth: Truth::new(),
            lanes,
            log_events,
            lull_until: 0,
            members_lost_until: 0,
            expelled: None,
            bug,
            stats: Stats::default(),
            broken: None,
            history: with_history.then(VecDeque::new),
        }
    }

    /// Runs to the end, or to the first read that is older than it may be.
    pub(crate) fn run(mut self) -> Result<Stats, Failure> {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        self.plan_fault(1_500);
        while let Some(Due { at, event, .. }) = self.queue.pop() {
            if at > ACTIVE + QUIET || self.broken.is_some() {
                break;
            }
            self.now = at;
            self.stats.events += 1;
            self.handle(event);
        }
        if self.broken.is_none() {
            self.broken = self.judge_end().err();
        }
        match self.broken {
            None => Ok(self.stats),
            Some(what) => {
                let shape =
                    format!("{} nodes, {:?}, log of {}", self.nodes.len(), self.lanes, self.log_events);
                let history = self.history.unwrap_or_default().into();
                Err(Failure { what: format!("{what} ({shape})"), history })
            }
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(history) = &mut self.history {
            if history.len() == HISTORY_LINES {
                history.pop_front();
            }
            history.push_back(format!("{:>6} {}", self.now, line()));
        }
    }

    pub(crate) fn push(&mut self, at: Ms, event: Event) {
        self.order += 1;
        self.queue.push(Due { at, order: self.order, event });
    }

    pub(crate) fn task(&mut self, node: usize, delay: Ms, task: Task) {
        let life = self.nodes[node].life;
        self.push(self.now + delay, Event::Of((node, life), task));
    }

    pub(crate) fn quiet(&self) -> bool {
        self.now >= ACTIVE
    }

    pub(crate) fn tick(&self, node: usize) -> Tick {
        Tick((self.now + self.nodes[node].offset) * 1_000_000)
    }

    /// A node's tick in milliseconds of the simulation.
    pub(crate) fn ms_of(&self, node: usize, tick: Tick) -> Ms {
        tick.0 / 1_000_000 - self.nodes[node].offset
    }

    /// The life that runs on a node; callers know that there is one.
    pub(crate) fn process(&mut self, node: usize) -> &mut Process {
        self.nodes[node].process.as_mut().expect("a running node")
    }

    pub(crate) fn runs(&self, (node, life): Writer) -> bool {
        self.nodes[node].life == life && self.nodes[node].process.is_some()
    }

    pub(crate) fn paused(&self, node: usize) -> bool {
        self.nodes[node].paused_until > self.now
    }

    fn start(&mut self, node: usize) {
        self.nodes[node].life += 1;
        let writer = (node, self.nodes[node].life);
        let founder = writer == (0, 1);
        let process = Process::new(writer, self.lanes, self.log_events, founder, self.tick(node));
        self.nodes[node].process = Some(process);
        self.note(|| format!("n{node}#{} starts", writer.1));
        let delay = self.rng.range(0, PROBE_EVERY);
        for task in [Task::Tick, Task::Read, Task::Scan, Task::Write] {
            self.task(node, delay, task);
        }
    }

    pub(crate) fn restart(&mut self, node: usize) {
        if self.nodes[node].process.is_none() {
            self.start(node);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver(envelope) => self.arrive(envelope),
            Event::Released(flow) => self.release(&flow),
            Event::Commit(id) => self.truth.commit(id, self.now),
            Event::Snapshot { reader, key, flight } => {
                let version = self.truth.version(key);
                let delay = self.rng.range(0, 30);
                self.push(self.now + delay, Event::Of(reader, Task::Loaded { key, flight, version }));
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Of(writer, _) if !self.runs(writer) => {}
            Event::Of(writer, task) if self.paused(writer.0) => {
                self.push(self.nodes[writer.0].paused_until, Event::Of(writer, task));
            }
            Event::Of((node, _), task) => self.perform(node, task),
        }
    }

    fn perform(&mut self, node: usize, task: Task) {
        match task {
            Task::Tick => self.beat(node),
            Task::Read => self.read(node),
            Task::Scan => self.scan(node),
            Task::Write => self.write(node),
            Task::Append(id) => self.append(node, id),
            Task::Loaded { key, flight, version } => self.loaded(node, key, flight, version),
            Task::Pump(key) => self.pump(node, &key),
            Task::Heartbeat(peer) => self.heartbeat(node, &peer),
            Task::Fence { origin, fence } => self.fence(node, &origin, fence),
            Task::LateFence(lane) => {
                let slots = self.lanes.slots_of(lane);
                self.process(node).cache.fence(slots);
            }
            Task::Exit => self.end(node, true),
        }
        if self.nodes[node].process.is_some() {
            self.publish(node);
        }
    }

    pub(crate) fn publish(&mut self, node: usize) {
        let (tick, now, bug) = (self.tick(node), self.now, self.bug);
        let process = self.process(node);
        let gone = process.publish(tick, now, bug);
        for (origin, cleanly) in gone {
            self.stats.unclean_ends += u64::from(!cleanly);
            self.note(|| format!("n{node} lets go of {origin}, which left cleanly: {cleanly}"));
        }
    }

    pub(crate) fn send(&mut self, node: usize, to: &Origin, channel: Channel, control: &Control) {
        let bytes = Bytes::from(control.encode());
        self.note(|| format!("n{node} -> {to} {channel:?} {control:?}"));
        let life = Some(to.incarnation.0);
        self.transmit(node, index_of(&to.node), life, channel, bytes, None);
    }

    pub(crate) fn transmit(
        &mut self,
        node: usize,
        to: usize,
        to_life: Option<u64>,
        channel: Channel,
        bytes: Bytes,
        flow: Option<Flow>,
    ) {
        let from = (node, self.nodes[node].life);
        let settled = self.process(node).settled;
        let envelope = Envelope { from, to, to_life, channel, bytes, settled, flow, held: false };
        let arrivals = self.net.arrivals(&mut self.rng, self.now, &envelope);
        if let Some(again) = arrivals.again {
            let copy = Envelope { flow: None, ..envelope.clone() };
            self.push(again, Event::Deliver(Box::new(copy)));
        }
        if !arrivals.lost {
            self.push(arrivals.first, Event::Deliver(Box::new(envelope)));
        } else if let Some(flow) = envelope.flow {
            self.push(arrivals.first, Event::Released(flow));
        }
    }

    fn arrive(&mut self, mut envelope: Box<Envelope>) {
        let (to, now) = (envelope.to, self.now);
        if let Some(until) = self.net.cut_until(envelope.from.0, to, now) {
            if self.net.loses_held(&mut self.rng, envelope.channel) {
                envelope.flow.take().into_iter().for_each(|flow| self.release(&flow));
            } else {
                envelope.held = true;
                self.push(until, Event::Deliver(envelope));
            }
            return;
        }
        let there = self.nodes[to].process.is_some()
            && envelope.to_life.is_none_or(|life| life == self.nodes[to].life)
            && (!envelope.held || self.runs(envelope.from));
        if there && self.paused(to) {
            self.push(self.nodes[to].paused_until, Event::Deliver(envelope));
            return;
        }
        if there && let Some(until) = self.fencing(&envelope) {
            self.push(until, Event::Deliver(envelope));
            return;
        }
        if let Some(flow) = envelope.flow.take() {
            self.release(&flow);
        }
        if there {
            self.receive(&envelope);
            if self.nodes[to].process.is_some() {
                self.publish(to);
            }
        }
    }

    fn receive(&mut self, envelope: &Envelope) {
        let mut buffer = BytesMut::from(&envelope.bytes[..]);
        let frame = take(&mut buffer).expect("a sound frame").expect("a whole frame");
        assert!(buffer.is_empty());
        if frame.kind == FrameType::Events {
            self.on_events(envelope, &frame.body);
            return;
        }
        match Control::decode(&frame).expect("a sound body") {
            Control::Hello(hello) => self.on_hello(envelope, &hello),
            Control::Members(members) => self.on_members(envelope, &members),
            Control::Follow(follow) => self.on_follow(envelope, &follow),
            Control::Ack(applied) => self.on_ack(envelope, applied),
            Control::Probe(number) => self.on_probe(envelope, number),
            Control::Resume(from) => self.on_resume(envelope, from),
            Control::Reset(from) => self.on_reset(envelope, from),
            Control::Heartbeat(heartbeat) => self.on_heartbeat(envelope, &heartbeat),
            Control::Goodbye(heads) => self.on_goodbye(envelope, heads),
            other => panic!("nobody sends {other:?}"),
        }
    }

    /// After a quiet time, everybody knows everybody, is in doubt about nobody, and serves the truth.
    fn judge_end(&self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let tick = self.tick(node);
            let known = self.nodes.len() - 1;
            let Some(process) = &self.nodes[node].process else { return Err(format!("n{node} is down")) };
            let doubts = process.freshness.doubts(tick);
            if !doubts.is_empty() || process.peers.len() != known || !process.settled {
                let peers: Vec<_> = process.peers.keys().collect();
                return Err(format!("n{node} is in doubt at the end: {doubts:?}, knows {peers:?}"));
            }
            let lag: u64 = process.peers.values().map(|peer| peer.follower.lag()).sum();
            if lag > 0 {
                return Err(format!("n{node} misses {lag} events at the end"));
            }
            for key in 0..KEYS {
                if let Some(version) = process.cache.hit(key, process.published, tick)
                    && version != self.truth.version(key)
                {
                    return Err(format!("n{node} serves version {version} of key {key} at the end"));
                }
            }
            if (0..KEYS).all(|key| process.cache.hit(key, process.published, tick).is_none()) {
                return Err(format!("n{node} serves nothing at the end"));
            }
        }
        Ok(())
    }
}
