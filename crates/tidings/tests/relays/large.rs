//! A cluster in three zones that relays above three nodes, and whose packets can be lost.

use std::time::Duration;

use tidings::{Cache, Node, NodeBuilder, NodeId};
use tidings_proto::relay::Overlay;

use crate::common::{PATIENCE, member, open_on, until};
use crate::wire::Wires;

/// Above so many nodes the cluster relays.
pub(crate) const ABOVE: usize = 3;

const ZONES: usize = 3;

/// A cluster takes as long to form.
const BOUND: Duration = Duration::from_secs(2);

/// A cluster.
pub(crate) struct Large {
    pub(crate) nodes: Vec<Node>,
    pub(crate) wires: Wires,
    pub(crate) bound: Duration,
    /// Of nodes that are started from now on.
    pub(crate) lost_grace: Duration,
    name: String,
    started: usize,
}

/// The id of the node at a place.
pub(crate) fn id(index: usize) -> String {
    format!("n{}", index + 1)
}

/// The zone of the node at a place.
fn zone(index: usize) -> String {
    format!("z{}", index % ZONES)
}

/// How many nodes have a link to one.
pub(crate) fn links(node: &Node) -> usize {
    node.members().iter().filter(|member| member.rtt.is_some()).count()
}

impl Large {
    /// Starts so many, and waits until relays stand for somebody, some link is needed no more and nobody is in doubt.
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_bounded(count, BOUND).await
    }

    pub(crate) async fn start_bounded(count: usize, bound: Duration) -> Self {
        let mut cluster = Self::start_with(count, |_, builder| builder.max_staleness(bound)).await;
        cluster.bound = bound;
        let relays = |node: &Node| node.members().iter().any(|member| member.via.is_some());
        // In a small one somebody may need a link to everybody.
        let fewer = || cluster.nodes.iter().map(links).sum::<usize>() < count * (count - 1);
        let calm = || cluster.nodes.iter().all(|node| node.doubts().is_empty());
        until("relays stand for some", || cluster.nodes.iter().any(relays) && fewer() && calm()).await;
        cluster
    }

    pub(crate) async fn start_with(count: usize, build: impl Fn(usize, NodeBuilder) -> NodeBuilder) -> Self {
        let name = format!("large-{:08x}", rand::random::<u32>());
        let (nodes, wires) = (Vec::new(), Wires::default());
        let lost_grace = Duration::from_secs(60);
        let mut cluster = Self { nodes, wires, bound: BOUND, lost_grace, name, started: 0 };
        for index in 0..count {
            let builder = build(index, cluster.builder());
            cluster.nodes.push(builder.start().await.unwrap());
        }
        cluster.formed().await;
        cluster
    }

    fn builder(&mut self) -> NodeBuilder {
        self.on_this_host().simulated(self.wires.socket())
    }

    /// One whose packets nobody loses, and which serves a former life.
    pub(crate) fn on_this_host(&mut self) -> NodeBuilder {
        let index = self.started;
        self.started += 1;
        Node::builder(&self.name)
            .node_id(id(index))
            .zone(zone(index))
            .relay_above(ABOVE)
            .write_horizon(Duration::ZERO)
            .max_staleness(self.bound)
            .lost_grace(self.lost_grace)
            .gossip_interval(Duration::from_millis(200))
            .seeds(self.nodes.iter().take(2).map(|node| node.address().to_string()))
    }

    /// Adds nodes, and waits until each is one of them.
    pub(crate) async fn join(&mut self, count: usize) {
        for _ in 0..count {
            let node = self.builder().start().await.unwrap();
            self.nodes.push(node);
        }
        self.formed().await;
    }

    pub(crate) async fn formed(&self) {
        let all = self.nodes.len();
        let live = |node: &Node| {
            node.members().iter().filter(|member| member.state == tidings::State::Live).count() == all
        };
        let in_step = |node: &Node| live(node) && node.readiness().is_ok() && node.doubts().is_empty();
        let formed = async {
            while !self.nodes.iter().all(in_step) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(
            tokio::time::timeout(PATIENCE, formed).await.is_ok(),
            "not formed in time: {}",
            self.states()
        );
    }

    /// What each sees, for people.
    pub(crate) fn states(&self) -> String {
        let of = |node: &Node| {
            let member = |it: &tidings::MemberInfo| {
                let via = it.via.as_ref().map(|via| format!(" by {via}"));
                let link = if it.rtt.is_some() { "" } else { " unlinked" };
                format!("{} {}{}{link} {:?}", it.node, it.state, via.unwrap_or_default(), it.confirmed)
            };
            let members: Vec<_> = node.members().iter().filter(|it| !it.this_node).map(member).collect();
            let (ready, doubts) = (node.readiness(), node.doubts());
            format!("\n{}: {members:#?} {ready:?} {doubts:?} {:?}", node.origin(), node.relayed())
        };
        self.nodes.iter().map(of).collect()
    }

    pub(crate) fn open(&self) -> Vec<Cache<String, u64>> {
        self.nodes.iter().map(open_on).collect()
    }

    /// Some node that follows another by way of a third: follower, origin and relay.
    pub(crate) fn relayed(&self) -> (usize, usize, usize) {
        let index = |node: &str| (0..self.nodes.len()).find(|index| id(*index) == node).unwrap();
        for (follower, node) in self.nodes.iter().enumerate() {
            for member in node.members() {
                if let Some(via) = &member.via {
                    return (follower, index(member.node.as_str()), index(via.as_str()));
                }
            }
        }
        panic!("nobody is relayed")
    }

    /// Whether everybody asks for everybody's changes whom the overlay means, over no more links than that takes.
    pub(crate) fn in_shape(&self) -> bool {
        let places: Vec<(NodeId, String)> =
            (0..self.nodes.len()).map(|index| (id(index).parse().unwrap(), zone(index))).collect();
        let view = places.iter().map(|(node, zone)| (node, zone.as_str()));
        let overlay = Overlay::of(view, ABOVE.min(places.len() - 1));
        let place = |index: usize| overlay.place(&places[index].0).unwrap();
        let all = 0..self.nodes.len();
        let pairs = || all.clone().flat_map(|one| all.clone().map(move |other| (one, other)));
        let means =
            |follower: usize, origin: usize| overlay.node(overlay.sources(place(origin), place(follower))[0]);
        let asks = |(follower, origin): (usize, usize)| {
            let asked = member(&self.nodes[follower], &id(origin)).map(|it| it.via.unwrap_or(it.node));
            follower == origin || asked.as_ref() == Some(means(follower, origin))
        };
        let needs = |one: usize, other: usize| {
            let other = &places[other].0;
            all.clone().any(|origin| one != origin && means(one, origin) == other)
        };
        let linked = |(one, other): (usize, usize)| {
            let needed = needs(one, other) || needs(other, one);
            one == other || needed == member(&self.nodes[one], &id(other)).is_some_and(|it| it.rtt.is_some())
        };
        pairs().all(asks) && pairs().all(linked)
    }

    /// Whether everything that one did until lately is applied at another.
    pub(crate) fn hears(&self, node: usize, origin: usize) -> bool {
        member(&self.nodes[node], &id(origin))
            .and_then(|member| member.confirmed)
            .is_some_and(|age| age < self.bound / 2)
    }

    /// Leaves a node to its fate.
    pub(crate) fn abandon(mut self, index: usize) -> Self {
        drop(self.nodes.remove(index));
        self
    }

    pub(crate) async fn shutdown(self) {
        // All at once: each waits for the others' acknowledgements.
        let ends = self.nodes.iter().map(|node| node.shutdown(PATIENCE / 10));
        futures_util::future::join_all(ends).await;
    }
}
