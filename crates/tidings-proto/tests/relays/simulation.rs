//! Clusters in virtual time: some origins write, everybody follows them, nodes come and go.
//!
//! Overlays, paths, followers and relayed confirmations are the real ones. Only some origins are simulated: what the
//! others would add is the same again. Clocks of nodes have nothing to do with each other, and each node learns by and by
//! who has come and gone.

mod figures;
mod follow;
mod network;
mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::follower::{Attempt, Follower};
use tidings_proto::id::{FIRST, Incarnation, LaneId, Lanes, NodeId, Origin, Sequence};
use tidings_proto::relay::{Asked, Overlay, Path, Relayed};
use tidings_proto::time::Tick;

pub(crate) use self::figures::{Cost, Figures, HEAD, change_bytes, quantile};
use self::network::Network;
use crate::rng::Rng;

/// Origins that write.
const ORIGINS: usize = 8;
/// How often each does: every so many nanoseconds.
const WRITE_EVERY: u64 = 50 * MS;
const PROBE_EVERY: u64 = 250 * MS;
const SAMPLE_EVERY: u64 = 100 * MS;
/// Nothing is measured before: everybody has to begin.
const WARM_UP: u64 = 2_000 * MS;
/// How long a node that came is not measured: it has nothing confirmed yet.
const NEWCOMER: u64 = 2_000 * MS;
const MS: u64 = 1_000_000;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    pub(crate) zones: usize,
    pub(crate) relay_above: usize,
    /// Which part of the nodes leaves per second, without a word; as many come.
    pub(crate) churn: f64,
    pub(crate) seconds: u64,
    pub(crate) seed: u64,
}

/// Something that happens at a node.
#[derive(Debug)]
enum Event {
    Write(usize),
    Tick(usize),
    Churn,
    Sample,
    /// A node learns of a view.
    Learn(usize, usize),
    Arrive {
        from: usize,
        to: usize,
        frame: Frame,
    },
}

/// What nodes say to each other; of which origin, by its number.
#[derive(Debug)]
enum Frame {
    Follow(usize, Attempt, Sequence),
    Unfollow(usize),
    Resume(usize, Attempt, Sequence),
    /// What follows the position is not held, and comes from this one on.
    Lacking(usize, Attempt, Sequence),
    /// First and last sequence, and how many hops they have come.
    Events(usize, Attempt, [Sequence; 2], usize),
    Probe(u64),
    Answer(u64, Vec<(usize, Relayed)>),
}

/// Somebody who follows an origin by way of this node.
#[derive(Debug)]
struct Served {
    node: usize,
    attempt: Attempt,
    next: Sequence,
}

#[derive(Debug)]
struct Following {
    follower: Follower,
    path: Path,
    source: usize,
    attempt: Attempt,
    hops: usize,
    /// The first sequence after the last fence: it can hand on no more.
    oldest: Sequence,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    zone: usize,
    since: u64,
    alive: bool,
    view: usize,
    /// Of each origin; nothing of its own.
    following: Vec<Option<Following>>,
    served: Vec<Vec<Served>>,
    asked: HashMap<usize, Asked>,
    probes: u64,
}

/// A cluster.
pub(crate) struct Cluster {
    setup: Setup,
    now: u64,
    network: Network,
    rng: Rng,
    nodes: Vec<Node>,
    numbers: HashMap<NodeId, usize>,
    views: Vec<Arc<Overlay>>,
    /// Of each origin, when each sequence was written.
    written: Vec<Vec<u64>>,
    figures: Figures,
}

fn lanes() -> Lanes {
    Lanes::new(1).unwrap()
}

fn lane() -> LaneId {
    lanes().lane(0).unwrap()
}

impl Cluster {
    /// Runs it, and says what it showed.
    pub(crate) fn run(setup: Setup) -> Figures {
        let mut cluster = Self {
            setup,
            now: 0,
            network: Network::default(),
            rng: Rng::new(setup.seed),
            nodes: Vec::new(),
            numbers: HashMap::new(),
            views: Vec::new(),
            written: vec![Vec::new(); ORIGINS.min(setup.nodes)],
            figures: Figures::default(),
        };
        (0..setup.nodes).for_each(|_| cluster.add_node());
        cluster.new_view();
        (0..setup.nodes).for_each(|node| cluster.begin(node));
        (0..cluster.written.len()).for_each(|origin| {
            let first = cluster.rng.range(0, WRITE_EVERY);
            cluster.network.at(first, Event::Write(origin));
        });
        cluster.network.at(WARM_UP, Event::Sample);
        if setup.churn > 0.0 {
            cluster.network.at(WARM_UP, Event::Churn);
        }
        let end = WARM_UP + setup.seconds * 1_000 * MS;
        while let Some((now, event)) = cluster.network.next().filter(|(now, _)| *now < end) {
            cluster.now = now;
            cluster.happen(event);
        }
        cluster.figures
    }

    /// A node's own clock.
    fn clock(&self, node: usize) -> Tick {
        Tick(self.now + (node as u64 + 1) * 3_600_000 * MS)
    }

    fn measures(&self) -> bool {
        self.now >= WARM_UP
    }

    fn origin(&self, number: usize) -> Origin {
        Origin { node: self.nodes[number].id.clone(), incarnation: Incarnation(1) }
    }

    fn add_node(&mut self) {
        let number = self.nodes.len();
        let id = NodeId::new(&format!("n{number}")).unwrap();
        self.numbers.insert(id.clone(), number);
        self.nodes.push(Node {
            id,
            zone: number % self.setup.zones,
            since: self.now,
            alive: true,
            view: 0,
            following: Vec::new(),
            served: self.written.iter().map(|_| Vec::new()).collect(),
            asked: HashMap::new(),
            probes: 0,
        });
    }

    /// A node follows everybody from the view that it begins with.
    fn begin(&mut self, node: usize) {
        self.nodes[node].view = self.views.len() - 1;
        for origin in 0..self.written.len() {
            let following = (origin != node).then(|| {
                let (sources, hops) = self.sources(node, origin);
                let mut follower = Follower::new(self.origin(origin), lanes());
                let (attempt, _) = follower.follow(lane());
                let path = Path::new(sources, hops, self.clock(node));
                let source = self.numbers[path.source()];
                Following { follower, path, source, attempt, hops: 0, oldest: FIRST }
            });
            self.nodes[node].following.push(following);
            if origin != node {
                self.follow(node, origin);
            }
        }
        let first = self.rng.range(0, PROBE_EVERY);
        self.network.at(self.now + first, Event::Tick(node));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Write(origin) => self.write(origin),
            Event::Tick(node) if self.nodes[node].alive => self.tick(node),
            Event::Churn => self.churn(),
            Event::Sample => self.sample(),
            Event::Learn(node, view) if self.nodes[node].alive => self.learn(node, view),
            Event::Arrive { from, to, frame } if self.nodes[to].alive => self.receive(from, to, frame),
            Event::Tick(_) | Event::Learn(..) | Event::Arrive { .. } => {}
        }
    }

    fn send(&mut self, from: usize, to: usize, frame: Frame) {
        let zones = [self.nodes[from].zone, self.nodes[to].zone];
        let arrives = self.network.arrival(self.now, [from, to], zones[0] == zones[1]);
        self.network.at(arrives, Event::Arrive { from, to, frame });
    }

    /// How old everybody's confirmations are, and whether each is true.
    fn sample(&mut self) {
        self.network.at(self.now + SAMPLE_EVERY, Event::Sample);
        for (number, node) in self.nodes.iter().enumerate() {
            if !node.alive || self.now < node.since + NEWCOMER {
                continue;
            }
            for (origin, following) in node.following.iter().enumerate() {
                let Some(Following { follower, .. }) = following else { continue };
                // A newcomer whose sources have just gone is not fresh, and so not stale.
                let Some(confirmed) = follower.confirmed() else { continue };
                let age = self.clock(number).since(confirmed);
                self.figures.ages.push(age);
                let as_of = self.now.saturating_sub(age.as_nanos() as u64);
                let done = self.written[origin].partition_point(|at| *at <= as_of) as Sequence;
                let applied = follower.applied_in(lane());
                assert!(done <= applied, "n{number} confirms {done} of n{origin} and has applied {applied}");
            }
        }
    }
}

/// The setup as one reads it.
impl std::fmt::Display for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shape = if self.nodes > self.relay_above { "relays" } else { "mesh" };
        let churn = match self.churn {
            0.0 => "none".to_owned(),
            churn => format!("{:.0} %/s", churn * 100.0),
        };
        write!(f, "{} | {shape} | {churn}", self.nodes)
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
