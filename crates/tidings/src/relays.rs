//! Who relays what in a large cluster, as this node sees it: up to a number of nodes everybody follows everybody, above it
//! an overlay says of whom each origin is asked, which links that needs, and which nobody needs any more.
//!
//! Views differ while nodes come and go, and nobody has to agree: who is asked for what it does not serve ends the stream,
//! and the follower asks elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidings_membership::{State, View};
use tidings_proto::id::{NodeId, Origin};
use tidings_proto::relay::{Overlay, PATIENCE};
use tidings_proto::time::Tick;
use tidings_transport::session::{Course, Followed};
use tidings_transport::{Link, Transport};

use crate::bus::{Bus, origin_of};

/// Most nodes of which each follows every other one, unless it is set.
pub(crate) const RELAY_ABOVE: usize = 50;

/// Below `relay_above` by up to this part of it a cluster that relays goes on to, lest one node that comes and goes turn
/// all edges over and over.
const SLACK: usize = 8;

/// How long a link stays that nobody needs: overlays of different nodes change within that time.
const UNNEEDED_TIME: Duration = Duration::from_secs(2);

/// How long a node goes on answering for others once everybody is followed directly again: whoever was followed by way of
/// others and has just left is heard to its end so. As long as a path takes to come round, with room.
const ANSWERING_TIME: Duration = Duration::from_secs(10);

/// How long a link is kept to a node that was to be asked a question: there are more where one came from.
const ASKED_TIME: Duration = Duration::from_secs(30);

/// What the overlay of a node is made of, and what follows from it.
#[derive(Debug)]
pub(crate) struct Relays {
    above: usize,
    plan: Mutex<Plan>,
    /// Turns with every frame of gossip that goes another way.
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Plan {
    /// The nodes of the overlay with their zones; nobody while there is none.
    nodes: BTreeMap<NodeId, String>,
    /// Lives that are routed though the view does not show them: what they did last may come by way of others.
    kept: BTreeSet<Origin>,
    /// Lives that the overlay routes.
    lives: BTreeSet<Origin>,
    addresses: BTreeMap<SocketAddr, NodeId>,
    /// Since when the cluster is a mesh again.
    mesh: Option<Tick>,
    /// Since when nobody needs the link to each node.
    unneeded: BTreeMap<NodeId, Tick>,
    /// When each node was last to be asked a question without a link.
    asked: BTreeMap<NodeId, Tick>,
    /// Who is to be asked for changes again as soon as there is a link.
    missed: BTreeSet<NodeId>,
}

/// Up to how many nodes the overlay of so many is to be a mesh; `None` where there is to be none.
fn shape(nodes: usize, relays: bool, above: usize) -> Option<usize> {
    let keeps = relays && nodes > 2 && nodes > above - above / SLACK;
    (nodes > above || keeps).then(|| above.min(nodes - 1))
}

/// Whether some live member hears whom membership sees in this state.
fn is_heard(state: State) -> bool {
    matches!(state, State::Live | State::Suspect)
}

impl Relays {
    pub(crate) fn above(above: usize) -> Self {
        Self { above: above.max(1), plan: Mutex::default(), turn: AtomicUsize::new(0) }
    }

    /// Where a frame of gossip goes that is for an address: there, unless that would dial one for whom relays stand. Then to
    /// a linked node in turn: gossip is for anybody.
    pub(crate) fn gossip_to(&self, to: SocketAddr, transport: &Transport) -> SocketAddr {
        let node = self.plan.lock().addresses.get(&to).cloned();
        let Some(node) = node.filter(|node| transport.link(node).is_none()) else { return to };
        let links = transport.links();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let linked = links.get(turn.checked_rem(links.len()).unwrap_or(0));
        tracing::trace!(%node, "gossip goes by way of another");
        linked.map_or(to, |link| link.peer().address)
    }
}

impl Bus {
    /// Relays by a view, and lets time pass. In a cluster that is a mesh it only counts. Returns whether what is to be
    /// dialled may have changed.
    pub(crate) fn relay(&self, view: &View) -> bool {
        let relaying = self.coherence.relaying();
        let heard = view.members.values().filter(|member| is_heard(member.state)).count();
        if !relaying.is_on() && heard < self.relays.above {
            return false;
        }
        let now = self.domain.clock().now();
        let planned = self.plan(view, now);
        let transport = self.transport();
        let reaches = |node: &NodeId| {
            let link = transport.as_ref().and_then(|transport| transport.link(node));
            link.is_some_and(|link| !link.is_closed() && now.since(link.last_heard()) < PATIENCE)
        };
        let moved = relaying.pass(now, reaches);
        if relaying.is_crowded() {
            let there = self.coherence.relevant().into_iter().chain([self.origin()]).collect();
            relaying.keep_acks_of(&there);
        }
        let (forgotten, missed) = (self.forgets_asked(now), self.misses(now));
        planned || moved || forgotten || missed
    }

    /// Returns whether others are to be asked again than were.
    fn misses(&self, now: Tick) -> bool {
        let missed = self.coherence.relaying().missed(now);
        let mut plan = self.relays.plan.lock();
        let before = std::mem::replace(&mut plan.missed, missed);
        before != plan.missed
    }

    fn plan(&self, view: &View, now: Tick) -> bool {
        let relaying = self.coherence.relaying();
        let mut settled: BTreeMap<Origin, Arc<Followed>> = self.coherence.settled().into_iter().collect();
        let mut nodes = BTreeMap::from([(self.node.clone(), self.zone.clone())]);
        let mut addresses = BTreeMap::new();
        let shown =
            view.members.values().filter(|member| is_heard(member.state)).map(|member| &member.record);
        for record in shown.clone().filter(|record| settled.contains_key(&record.origin)) {
            nodes.insert(record.origin.node.clone(), record.zone.clone());
            addresses.insert(record.address, record.origin.node.clone());
        }
        let mesh = shape(nodes.len(), relaying.is_on(), self.relays.above);
        let shown: BTreeSet<&Origin> = shown.map(|record| &record.origin).collect();
        if mesh.is_none() {
            if !self.answers_still(now) {
                return self.relay_no_more(now);
            }
            (settled, nodes, addresses) = Default::default();
        }
        settled
            .retain(|origin, _| view.members.get(&origin.node).is_some_and(|it| it.record.origin == *origin));
        settled.retain(|origin, _| nodes.contains_key(&origin.node));
        let keeps = |origin: &Origin| {
            !shown.contains(origin) && self.coherence.is_relevant(origin) && !self.says_its_end(origin)
        };
        let kept: BTreeSet<Origin> = relaying.routed().into_iter().filter(keeps).collect();
        let lives: BTreeSet<Origin> = settled.keys().cloned().collect();
        let mut plan = self.relays.plan.lock();
        plan.addresses = addresses;
        plan.mesh = plan.mesh.filter(|_| mesh.is_none());
        if plan.nodes == nodes && plan.kept == kept && plan.lives == lives {
            return false;
        }
        let view = nodes.iter().map(|(node, zone)| (node, zone.as_str()));
        let overlay = Overlay::of(view, mesh.unwrap_or(usize::MAX));
        let courses = settled.into_values().filter_map(|followed| self.course(&overlay, followed)).collect();
        if !relaying.is_on() {
            tracing::info!(
                nodes = nodes.len(),
                "the cluster is large: changes go by way of relays from now on"
            );
            relaying.turn(true, || self.domain.clock().now());
        }
        relaying.plan(courses, |origin| kept.contains(origin), now);
        (plan.nodes, plan.kept, plan.lives) = (nodes, kept, lives);
        true
    }

    /// Whether a life that another one has followed is there all the same, for its log to be followed to the end.
    fn says_its_end(&self, origin: &Origin) -> bool {
        let newest = self.coherence.newest_life(&origin.node);
        newest.is_some_and(|newest| newest > origin.incarnation) && self.is_linked(origin)
    }

    fn course(&self, overlay: &Overlay, followed: Arc<Followed>) -> Option<Course> {
        let (me, origin) = (overlay.place(&self.node)?, overlay.place(&followed.origin().node)?);
        let sources = overlay.sources(origin, me).iter().map(|place| overlay.node(*place).clone()).collect();
        Some(Course { followed, sources, hops: overlay.way(origin, me, &[]).len() })
    }

    /// Whether this node relayed until lately, and still answers for others in what is a mesh by now.
    fn answers_still(&self, now: Tick) -> bool {
        if !self.coherence.relaying().is_on() {
            return false;
        }
        let mut plan = self.relays.plan.lock();
        if plan.mesh.is_none() {
            tracing::info!("the cluster is small: everybody is followed directly from now on");
        }
        now.since(*plan.mesh.get_or_insert(now)) < ANSWERING_TIME
    }

    fn relay_no_more(&self, now: Tick) -> bool {
        let relaying = self.coherence.relaying();
        if !relaying.is_on() {
            return false;
        }
        *self.relays.plan.lock() = Plan::default();
        relaying.plan(Vec::new(), |_| false, now);
        relaying.turn(false, || now);
        true
    }

    /// The addresses that are to be dialled.
    pub(crate) fn to_dial(&self, view: &View) -> BTreeSet<SocketAddr> {
        let mut addresses: BTreeSet<SocketAddr> = self.coherence.addresses().into_iter().collect();
        let relaying = self.coherence.relaying();
        if relaying.is_on() {
            let plan = self.relays.plan.lock();
            let sources = relaying.sources();
            let asked = sources.iter().chain(plan.asked.keys()).chain(&plan.missed);
            addresses.extend(asked.filter_map(|node| self.coherence.address_of(node)));
            // Through a seed that is heard nobody else is found.
            addresses.extend(view.seeds.iter().filter(|seed| !plan.addresses.contains_key(seed)));
        } else {
            addresses.extend(&view.seeds);
        }
        addresses.remove(&self.address());
        addresses
    }

    /// Closes links that neither end needs, to nodes for which relays stand.
    pub(crate) fn let_go_of_unneeded(&self, dialled: &BTreeSet<SocketAddr>) {
        let Some(transport) = self.transport().filter(|_| self.coherence.relaying().is_on()) else { return };
        let now = self.domain.clock().now();
        let mut plan = self.relays.plan.lock();
        let links = transport.links();
        let unneeded = |link: &&Arc<Link>| {
            let peer = link.peer();
            let routed = plan.lives.contains(&origin_of(peer));
            routed && !dialled.contains(&peer.address) && !link.is_used()
        };
        let unneeded: BTreeMap<_, _> =
            links.iter().filter(unneeded).map(|link| (link.peer().node.clone(), link)).collect();
        plan.unneeded.retain(|node, _| unneeded.contains_key(node));
        for (node, link) in unneeded {
            let since = *plan.unneeded.entry(node.clone()).or_insert(now);
            if now.since(since) >= UNNEEDED_TIME {
                tracing::debug!(%node, "nobody needs the link");
                link.let_go();
            }
        }
    }

    /// The last link to a life has ended: what was asked of it is asked of others, unless another life of its node is
    /// linked. That one is asked, and says itself what it does not serve.
    pub(crate) fn unlinked(&self, origin: &Origin) {
        let link = self.transport().and_then(|transport| transport.link(&origin.node));
        if link.is_some_and(|link| !link.is_closed() && link.peer().incarnation != origin.incarnation) {
            return;
        }
        let relaying = self.coherence.relaying();
        if relaying.is_on() && relaying.unlinked(&origin.node, self.domain.clock().now()) {
            self.named.notify_one();
        }
    }

    /// A node was to be asked a question and has no link: where relays stand for it, it gets one.
    pub(crate) fn link_wanted(&self, node: &NodeId) {
        if self.coherence.relaying().is_on() && self.coherence.address_of(node).is_some() {
            let now = self.domain.clock().now();
            self.relays.plan.lock().asked.insert(node.clone(), now);
            self.named.notify_one();
        }
    }

    /// The peer has closed a link that nobody needs: it is not dialled for the sake of questions that were asked.
    pub(crate) fn unwanted(&self, origin: &Origin) {
        if self.relays.plan.lock().asked.remove(&origin.node).is_some() {
            self.named.notify_one();
        }
    }

    fn forgets_asked(&self, now: Tick) -> bool {
        let mut plan = self.relays.plan.lock();
        let before = plan.asked.len();
        plan.asked.retain(|_, at| now.since(*at) < ASKED_TIME);
        plan.asked.len() != before
    }

    /// Whether relays stand for a life, and gossip hears it.
    pub(crate) fn is_heard_by_others(&self, origin: &Origin) -> bool {
        self.coherence.relaying().is_on()
            && self.membership().is_some_and(|membership| {
                membership.view().life(origin).is_some_and(|member| member.state == State::Live)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_relays_above_its_number_and_keeps_its_shape_just_below() {
        assert_eq!(shape(50, false, 50), None);
        assert_eq!(shape(51, false, 50), Some(50));
        assert_eq!((shape(50, true, 50), shape(45, true, 50)), (Some(49), Some(44)));
        assert_eq!(shape(44, true, 50), None);
        assert_eq!((shape(4, false, 3), shape(3, true, 3)), (Some(3), None));
        assert_eq!((shape(1, true, 1), shape(2, true, 1)), (None, Some(1)));
    }
}
