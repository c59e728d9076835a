//! One process: what the façade does with the parts, without threads and without a network.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidings_cache::{Cache, CacheBuilder, Clock, Domain};
use tidings_proto::codec;
use tidings_proto::follower::Follower;
use tidings_proto::freshness::{Doubt, Freshness};
use tidings_proto::hash::{CacheId, slot_of};
use tidings_proto::id::{LaneId, Lanes, Origin, SlotSet};
use tidings_proto::log::{ChangeLog, Retention};
use tidings_proto::time::Tick;

use crate::app::{Operation, Plan};
use crate::follow::Asked;
use crate::history::History;
use crate::receipts::Asking;
use crate::serve::Served;
use crate::wire::{Frame, Members, To};
use crate::{BOUNDS, KEYS, Micros, Planted};

const CACHE: &str = "simulated";

/// Of the two lanes each remembers so few events that a cut overruns it.
const RETENTION: Retention = Retention { events: 24, bytes: Retention::BYTES_MIN };

/// How often a node probes, says whom it hears, and calls those that it has not met.
const PROBE_US: Micros = 250_000;

/// Who was heard by nobody for so long is lost.
const LOST_US: Micros = 2_000_000;

/// Ticks start here on a node whose clock is right.
const ORIGIN_US: Micros = 1 << 40;

/// What is known of one other life.
pub(crate) struct Peer {
    pub(crate) node: usize,
    pub(crate) follower: Follower,
    pub(crate) asked: Vec<Asked>,
    /// How much of it was applied, and since when no more was.
    pub(crate) progress: (u64, Micros),
    pub(crate) served: Served,
    /// It said hello, or answered one.
    pub(crate) met: bool,
    /// It answered this node's own hello: this node is in its set.
    pub(crate) greeted: bool,
    pub(crate) heard: Option<Micros>,
}

pub(crate) struct Node {
    pub(crate) me: Origin,
    pub(crate) index: usize,
    pub(crate) planted: Planted,
    pub(crate) cache: Cache<u8, u64>,
    pub(crate) domain: Domain,
    pub(crate) freshness: Freshness,
    pub(crate) peers: BTreeMap<Origin, Peer>,
    /// When each life was last heard, by this node or by one that it hears.
    seen: BTreeMap<Origin, Micros>,
    /// The version of each key that every read from now on must at least return.
    pub(crate) settled: [u64; KEYS as usize],
    /// Frames to be sent.
    pub(crate) out: Vec<(To, Frame)>,
    pub(crate) operations: VecDeque<Operation>,
    /// Steps of operations that the world has to make.
    pub(crate) plans: Vec<Plan>,
    pub(crate) asking: Vec<Asking>,
    /// What receipts say of others.
    pub(crate) promised: Vec<(Origin, u8, u64)>,
    pub(crate) leaving: Option<Leaving>,
    /// What was wrong.
    pub(crate) complaint: Option<String>,
    pub(crate) tally: Tally,
    pub(crate) late_fences: Vec<(Micros, SlotSet)>,
    pub(crate) old_heads: (Micros, Vec<u64>),
    told: u64,
    probed: Micros,
    world_clock: Arc<AtomicU64>,
}

/// How far a clean end has come.
pub(crate) struct Leaving {
    /// It is given up then.
    pub(crate) deadline: Micros,
    pub(crate) sealed: Option<Vec<u64>>,
    /// Said goodbye since.
    pub(crate) said: Option<Micros>,
}

/// What happened, so that it can be told that something did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) hits: u64,
    pub(crate) doubted_hits: u64,
    pub(crate) misses: u64,
    pub(crate) joined: u64,
    pub(crate) gaps: u64,
    pub(crate) resets: u64,
    pub(crate) duplicates: u64,
    pub(crate) applied: u64,
    pub(crate) receipts: u64,
    pub(crate) goodbyes: u64,
}

pub(crate) fn lanes() -> Lanes {
    Lanes::new(2).unwrap()
}

pub(crate) fn lane_of(key: u8) -> LaneId {
    lanes().lane_of(slot_of(CacheId::of_name(CACHE), &codec::encode(&key).unwrap()))
}

pub(crate) fn place(origin: &Origin) -> usize {
    origin.node.as_str()[1..].parse().unwrap()
}

impl Node {
    pub(crate) fn start(me: Origin, world_clock: &Arc<AtomicU64>, skew_us: Micros, planted: Planted) -> Self {
        let shared = world_clock.clone();
        let clock =
            Clock::from_fn(move || Tick((ORIGIN_US + skew_us + shared.load(Ordering::Relaxed)) * 1_000));
        let log = Arc::new(ChangeLog::new(lanes(), RETENTION));
        let freshness = Freshness::new(BOUNDS, true, clock.now());
        let domain = Domain::new(clock, log, me.clone(), BOUNDS.max_staleness);
        let cache = CacheBuilder::new(&domain, CACHE).open().unwrap();
        Self {
            index: place(&me),
            me,
            planted,
            cache,
            domain,
            freshness,
            peers: BTreeMap::new(),
            seen: BTreeMap::new(),
            settled: [0; KEYS as usize],
            out: Vec::new(),
            operations: VecDeque::new(),
            plans: Vec::new(),
            asking: Vec::new(),
            promised: Vec::new(),
            leaving: None,
            complaint: None,
            tally: Tally::default(),
            late_fences: Vec::new(),
            old_heads: (0, vec![0; usize::from(lanes().count())]),
            told: 0,
            probed: 0,
            world_clock: world_clock.clone(),
        }
    }

    pub(crate) fn now(&self) -> Micros {
        self.world_clock.load(Ordering::Relaxed)
    }

    pub(crate) fn tick(&self) -> Tick {
        self.domain.clock().now()
    }

    pub(crate) fn send(&mut self, to: &Origin, frame: Frame) {
        self.out.push((To { node: place(to), life: Some(to.incarnation) }, frame));
    }

    fn send_to_met(&mut self, frame: &Frame) {
        let met: Vec<Origin> = self.met().cloned().collect();
        for origin in met {
            self.send(&origin, frame.clone());
        }
    }

    pub(crate) fn met(&self) -> impl Iterator<Item = &Origin> {
        self.peers.iter().filter(|(_, peer)| peer.met).map(|(origin, _)| origin)
    }

    pub(crate) fn peer(&mut self, origin: &Origin) -> &mut Peer {
        self.peers.entry(origin.clone()).or_insert_with(|| Peer {
            node: place(origin),
            follower: Follower::new(origin.clone(), lanes()),
            asked: lanes().ids().map(|_| Asked::default()).collect(),
            progress: (0, 0),
            served: Served::new(lanes()),
            met: false,
            greeted: false,
            heard: None,
        })
    }

    fn members(&self) -> Members {
        let ended: Vec<Origin> = self.freshness.ended(self.tick()).cloned().collect();
        let named = self.freshness.relevant().map(|(origin, _)| origin.clone()).chain([self.me.clone()]);
        let named = named.filter(|origin| !ended.contains(origin)).collect();
        Members { version: self.freshness.changes(), named, ended }
    }

    /// Whether everybody whom it was told of, and who can be heard, knows it: what it announces counts from then on.
    pub(crate) fn counts(&self) -> bool {
        let ended: Vec<Origin> = self
            .freshness
            .doubts(self.tick())
            .into_iter()
            .filter_map(|doubt| if let Doubt::UncleanEnd(origin) = doubt { Some(origin) } else { None })
            .collect();
        let greeted = |origin: &Origin| {
            self.peers.get(origin).is_some_and(|peer| peer.greeted)
                || ended.contains(origin)
                || !self.hears(origin)
        };
        !self.freshness.is_out_of_contact() && self.freshness.relevant().all(|(origin, _)| greeted(origin))
    }

    fn hears(&self, origin: &Origin) -> bool {
        self.seen.get(origin).is_some_and(|at| self.now() - at <= LOST_US)
    }

    pub(crate) fn publish(&mut self) {
        let mut published = self.freshness.publish(self.tick());
        if self.planted == Planted::NoFloor {
            published.floor = Tick::NEVER;
        }
        self.domain.publish(published);
        if self.told != self.freshness.changes() {
            self.told = self.freshness.changes();
            let members = Frame::Members(self.members());
            self.send_to_met(&members);
        }
    }

    pub(crate) fn deliver(&mut self, from: &Origin, frame: Frame, history: &mut History) {
        let now = self.now();
        if self.freshness.newest_life(&from.node).is_some_and(|newest| newest > from.incarnation) {
            // No connection outlives the process behind it.
            return;
        }
        match frame {
            Frame::Hello(members) => {
                self.meet(from, &members);
                // It is in the set before its hello is answered.
                let members = self.members();
                self.send(from, Frame::Welcome(members));
            }
            Frame::Welcome(members) => {
                self.meet(from, &members);
                self.peer(from).greeted = true;
            }
            _ if !self.peers.get(from).is_some_and(|peer| peer.met) => return,
            Frame::Members(members) => {
                self.name(from, &members);
                self.progressed(from);
            }
            Frame::Hears(heard) => {
                for origin in heard.into_iter().filter(|origin| origin.node != self.me.node) {
                    self.seen.insert(origin, now);
                }
            }
            Frame::Probe(number) => self.answer(from, number),
            Frame::Heartbeat(heartbeat) => self.take_heartbeat(from, &heartbeat),
            Frame::Goodbye(heads) => {
                self.peer(from).follower.on_goodbye(heads).unwrap();
                self.tally.goodbyes += 1;
                self.progressed(from);
            }
            Frame::Follow(attempt, follow) => self.serve(from, attempt, &follow),
            Frame::Answer(lane, attempt, answered) => self.take(from, (lane, attempt), answered, history),
            Frame::Ack(lane, sequence) => self.take_ack(from, lane, sequence),
        }
        self.seen.insert(from.clone(), now);
        self.peer(from).heard = Some(now);
        self.publish();
    }

    fn meet(&mut self, from: &Origin, members: &Members) {
        let tick = self.tick();
        self.freshness.contacted();
        self.freshness.met(from, tick);
        self.peer(from).met = true;
        self.name(from, members);
        self.follow_all(from);
    }

    fn name(&mut self, by: &Origin, members: &Members) {
        let tick = self.tick();
        let other = |origin: &&Origin| origin.node != self.me.node;
        let named = self.freshness.named(&by.node, members.named.iter().filter(other));
        let told = self.freshness.told_ended(&by.node, members.ended.iter().filter(other), tick);
        for origin in named.new.into_iter().chain(told.new) {
            self.seen.insert(origin.clone(), self.now());
            self.peer(&origin);
        }
        // Everybody counts before it is said that they are known.
        self.peer(by).follower.on_members(members.version);
    }

    /// What a node does twenty times a second.
    pub(crate) fn pass_time(&mut self, nodes: usize) {
        let now = self.now();
        let due = |(at, _): &(Micros, SlotSet)| *at <= now;
        for (_, slots) in self.late_fences.extract_if(.., |fence| due(fence)).collect::<Vec<_>>() {
            self.domain.fence(slots);
        }
        if now - self.probed >= PROBE_US {
            self.probed = now;
            self.probe_all();
            self.call(nodes);
            self.look();
        }
        if now - self.old_heads.0 > 2_000_000 {
            self.old_heads = (now, self.domain.log().heads());
        }
        let met: Vec<Origin> = self.met().cloned().collect();
        for origin in &met {
            self.follow_stuck(origin);
            self.feed(origin);
        }
        self.ask();
        self.leave_on();
        self.publish();
    }

    fn probe_all(&mut self) {
        let (now, tick) = (self.now(), self.tick());
        let heard = |peer: &Peer| peer.heard.is_some_and(|at| now - at < 1_000_000);
        let heard = self.peers.iter().filter(|(_, peer)| heard(peer)).map(|(origin, _)| origin.clone());
        let hears = Frame::Hears(heard.collect());
        let met: Vec<Origin> = self.met().cloned().collect();
        for origin in met {
            let number = self.peer(&origin).follower.probe(tick);
            self.send(&origin, Frame::Probe(number));
            self.send(&origin, hears.clone());
        }
        if (self.now() / PROBE_US).is_multiple_of(4) {
            let members = Frame::Members(self.members());
            self.send_to_met(&members);
        }
    }

    /// Says hello wherever nobody has answered yet, or has been heard for a while.
    fn call(&mut self, nodes: usize) {
        let now = self.now();
        let fresh = |peer: &Peer| peer.greeted && peer.heard.is_some_and(|at| now - at < 1_000_000);
        for node in (0..nodes).filter(|node| *node != self.index) {
            if !self.peers.values().any(|peer| peer.node == node && fresh(peer)) {
                let members = self.members();
                self.out.push((To { node, life: None }, Frame::Hello(members)));
            }
        }
    }

    /// Who is lost, and who was found.
    fn look(&mut self) {
        let (now, tick) = (self.now(), self.tick());
        self.seen.retain(|_, at| now - *at <= 5 * LOST_US);
        let heard: Vec<Origin> = self.seen.keys().filter(|origin| self.hears(origin)).cloned().collect();
        for origin in &heard {
            self.freshness.found(origin, tick);
        }
        let relevant: Vec<Origin> = self.freshness.relevant().map(|(origin, _)| origin.clone()).collect();
        for origin in relevant.iter().filter(|origin| !heard.contains(origin)) {
            self.freshness.lost(origin, tick);
        }
    }

    /// Refuse, drain, say goodbye: one step.
    fn leave_on(&mut self) {
        let now = self.now();
        let idle = self.operations.iter().all(|operation| !operation.writes());
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.sealed.is_none() && idle {
            leaving.sealed = Some(self.domain.log().seal());
        }
        let Some(heads) = leaving.sealed.clone() else { return };
        let drained = self.freshness.relevant().all(|(origin, _)| {
            self.peers.get(origin).is_some_and(|peer| peer.served.has_acknowledged(&heads))
        });
        if drained && leaving.said.is_none() {
            leaving.said = Some(now);
        }
        if leaving.said.is_some() {
            self.send_to_met(&Frame::Goodbye(heads));
        }
    }
}
