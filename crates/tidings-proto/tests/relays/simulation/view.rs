//! Who is there, and who knows.

use std::sync::Arc;

use tidings_proto::id::NodeId;
use tidings_proto::relay::Overlay;

use super::{Cluster, Event, MS};

/// How long it takes until a node knows that another has come, and that one has gone: at least, and how much longer.
const COME: [u64; 2] = [100 * MS, 900 * MS];
const GONE: [u64; 2] = [1_000 * MS, 2_000 * MS];

impl Cluster {
    /// Whom a node may ask for an origin's changes by the view that it has, and how far the origin is.
    pub(super) fn sources(&self, node: usize, origin: usize) -> (Vec<NodeId>, usize) {
        let view = &self.views[self.nodes[node].view];
        let place =
            |number: usize| view.place(&self.nodes[number].id).expect("it is in every view of its own");
        let (from, me) = (place(origin), place(node));
        let sources = view.sources(from, me).into_iter().map(|place| view.node(place).clone());
        (sources.collect(), view.way(from, me, &[]).len())
    }

    pub(super) fn new_view(&mut self) {
        let zones: Vec<String> = (0..self.setup.zones).map(|zone| format!("z{zone}")).collect();
        let alive = self.nodes.iter().filter(|node| node.alive);
        let alive = alive.map(|node| (&node.id, zones[node.zone].as_str()));
        let overlay = Overlay::of(alive, self.setup.relay_above);
        self.views.push(Arc::new(overlay));
    }

    /// One goes that does not write, and one comes.
    pub(super) fn churn(&mut self) {
        let per_second = self.setup.churn * self.setup.nodes as f64;
        self.network.at(self.now + (1_000.0 * MS as f64 / per_second) as u64, Event::Churn);
        let gone = loop {
            let node = self.rng.index(self.nodes.len());
            if node >= self.written.len() && self.nodes[node].alive {
                break node;
            }
        };
        self.nodes[gone].alive = false;
        self.new_view();
        self.tell_all(GONE);
        self.add_node();
        self.new_view();
        self.tell_all(COME);
        self.begin(self.nodes.len() - 1);
    }

    fn tell_all(&mut self, [least, spread]: [u64; 2]) {
        let newest = self.views.len() - 1;
        for node in 0..self.nodes.len() {
            if self.nodes[node].alive {
                let known = self.now + least + self.rng.range(0, spread);
                self.network.at(known, Event::Learn(node, newest));
            }
        }
    }

    pub(super) fn learn(&mut self, node: usize, view: usize) {
        if view <= self.nodes[node].view {
            return;
        }
        self.nodes[node].view = view;
        let now = self.clock(node);
        for origin in 0..self.written.len() {
            if origin == node {
                continue;
            }
            let (sources, hops) = self.sources(node, origin);
            let following = self.nodes[node].following[origin].as_mut().expect("everybody is followed");
            if following.path.rerouted(sources, hops, now) {
                self.follow(node, origin);
            }
        }
    }
}
