//! The one place that computes and publishes freshness, from what is known of every other life of every node.

mod belonging;
mod following;
mod known;
mod naming;
mod positions;
mod settled;
mod tenure;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_cache::Domain;
use tidings_membership::{Member, State, View};
use tidings_proto::belonging::Belonging;
use tidings_proto::coverage::Coverage;
use tidings_proto::frame::{Hello, MEMBERS_MAX, MemberSet, NamedMember, PROTOCOL_RELAYS};
use tidings_proto::freshness::{Bounds, Doubt, Freshness};
use tidings_proto::histogram::{Histogram, Snapshot};
use tidings_proto::id::{Incarnation, Lanes, NodeId, Origin};
use tidings_proto::receipt::Tenure;
use tidings_proto::time::Tick;
use tidings_transport::session::{Followed, Relaying, Served};
use tokio::sync::watch;

pub use self::known::BeforeKnown;
use self::known::{Known, heard};
use crate::config::Planted;
use crate::observe::{Observation, Observers};

pub use self::following::Following;

/// Origins whose following is remembered after they have ended, so that a cut longer than the grace can be resumed.
const ENDED_KEPT_MAX: usize = 256;

/// What this node knows of one other life.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    followed: Option<Arc<Followed>>,
    served: Option<Arc<Served>>,
    /// Of its log, once it is followed.
    lanes: Option<Lanes>,
    caches: Vec<String>,
    /// It has said that its release relays.
    relays: bool,
    /// Since it was first relevant.
    tenure: Option<Tenure>,
}

/// What is known of one other life, for those who ask.
#[derive(Debug, Default)]
pub(crate) struct PeerState {
    pub(crate) followed: Option<Arc<Followed>>,
    pub(crate) served: Option<Arc<Served>>,
    pub(crate) lanes: Option<Lanes>,
    pub(crate) caches: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    freshness: Freshness,
    peers: BTreeMap<Origin, Peer>,
    doubts: Vec<Doubt>,
    /// The member set of this many changes has been published.
    published: Option<u64>,
    /// How far the wall clocks of peers that were met last said to be ahead of this node's, in milliseconds.
    ahead_ms: BTreeMap<NodeId, u64>,
    coverage: Coverage,
    belonging: Belonging,
    /// What happened while following lives that are remembered no more.
    dropped: Following,
    /// The newest life of each node that another process replaced, in the order in which that came to be known.
    replaced: VecDeque<NamedMember>,
    /// The newest life of this node that this process has replaced, as peers say.
    predecessor: Option<NamedMember>,
    /// Lives that this node has given up and peers name as there, and when one last did: they are dialled.
    again: BTreeMap<Origin, (SocketAddr, Tick)>,
    /// When a life was last left out of what is relevant.
    left_out: Tick,
}

/// Everything that freshness depends on.
#[derive(Debug)]
pub(crate) struct Coherence {
    me: NodeId,
    lanes: Lanes,
    domain: Domain,
    observers: Arc<Observers>,
    inner: Mutex<Inner>,
    members: watch::Sender<Arc<MemberSet>>,
    hearsay_refused: AtomicU64,
    known: Known,
    relaying: Relaying,
}

impl Coherence {
    pub(crate) fn new(
        me: NodeId,
        domain: Domain,
        observers: Arc<Observers>,
        bounds: Bounds,
        has_seeds: bool,
    ) -> Self {
        let freshness = Freshness::new(bounds, has_seeds, domain.clock().now());
        let lanes = domain.log().lanes();
        // Every node starts in doubt; that is worth no warning.
        let doubts = freshness.doubts(domain.clock().now());
        let dropped = Following::none(Origin { node: me.clone(), incarnation: Incarnation(0) });
        let inner = Mutex::new(Inner {
            freshness,
            peers: BTreeMap::new(),
            doubts,
            published: None,
            ahead_ms: BTreeMap::new(),
            coverage: Coverage::new(lanes),
            belonging: Belonging::new(bounds.lost_grace),
            dropped,
            replaced: VecDeque::new(),
            predecessor: None,
            again: BTreeMap::new(),
            left_out: Tick::NEVER,
        });
        let coherence = Self {
            me,
            lanes,
            domain,
            observers,
            inner,
            members: watch::Sender::default(),
            hearsay_refused: AtomicU64::new(0),
            known: Known::default(),
            relaying: Relaying::default(),
        };
        coherence.publish();
        coherence
    }

    pub(crate) fn members(&self) -> watch::Receiver<Arc<MemberSet>> {
        self.members.subscribe()
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.inner.lock().freshness.bounds()
    }

    /// A peer has said hello: it is a member from now on.
    pub(crate) fn met(&self, hello: &Hello) {
        let origin = Origin { node: hello.node.clone(), incarnation: hello.incarnation };
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        inner.freshness.contacted();
        inner.freshness.met(&origin, now);
        inner.locate(&origin, hello.address).relays = hello.protocols.1 >= PROTOCOL_RELAYS;
        let ahead_ms = hello.wall_ms.saturating_sub(self.domain.clock().wall_ms());
        inner.ahead_ms.insert(hello.node.clone(), ahead_ms);
        if inner.ahead_ms.len() > MEMBERS_MAX
            && let Some((least, _)) = inner.ahead_ms.iter().min_by_key(|(_, ahead_ms)| **ahead_ms)
        {
            let least = least.clone();
            inner.ahead_ms.remove(&least);
        }
        self.name_all(&mut inner, &hello.node, &hello.members, now);
        self.publish_locked(&mut inner, now);
    }

    /// The newest life of a node that was proven to exist.
    pub(crate) fn newest_life(&self, node: &NodeId) -> Option<Incarnation> {
        self.inner.lock().freshness.newest_life(node)
    }

    /// The newest life of a node of which no further one is to be admitted, if this would be one: see
    /// [`Freshness::crowded`].
    pub(crate) fn crowded(&self, hello: &Hello) -> Option<Incarnation> {
        let origin = Origin { node: hello.node.clone(), incarnation: hello.incarnation };
        self.inner.lock().freshness.crowded(&origin)
    }

    /// What membership sees: who is heard by anybody.
    pub(crate) fn seen(&self, view: &View) {
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        for Member { record, state, .. } in view.members.values().filter(|member| heard(member.state)) {
            // Gossip names those who have ended for a while.
            if *state != State::Live && inner.freshness.has_ended_elsewhere(&record.origin) {
                continue;
            }
            // It is looked at again with the next view: until then older lives of its node keep this one in doubt.
            if inner.freshness.crowded(&record.origin).is_some() {
                continue;
            }
            inner.freshness.heard_again(&record.origin, now);
            inner.freshness.found(&record.origin, now);
            // The record is signed by the member itself; whoever named it before need not have known.
            if inner.freshness.is_relevant(&record.origin) {
                inner.locate(&record.origin, record.address);
            }
        }
        inner.note_again(std::iter::empty(), now);
        let relevant: Vec<Origin> = inner.freshness.relevant().map(|(origin, _)| origin.clone()).collect();
        for origin in relevant {
            match view.life(&origin).map(|member| member.state) {
                Some(State::Suspect) if inner.freshness.has_ended_elsewhere(&origin) => {}
                Some(state) if heard(state) => {
                    inner.freshness.found(&origin, now);
                }
                // A goodbye counts once everything before it is applied; without a link that cannot be known.
                _ => inner.freshness.lost(&origin, now),
            }
        }
        self.publish_locked(&mut inner, now);
    }

    /// A follower has moved on. Returns whether its origin has ended cleanly.
    pub(crate) fn progressed(&self, followed: &Followed, planted: Option<Planted>) -> bool {
        let (mut confirmed, mut answered, ended) =
            followed.with(|follower| (follower.confirmed(), follower.answered(), follower.ended()));
        let now = self.domain.clock().now();
        if planted == Some(Planted::ConfirmedAtReceipt) {
            (confirmed, answered) = (confirmed.map(|_| now), answered.map(|_| now));
        }
        let mut inner = self.inner.lock();
        if ended {
            inner.freshness.ended_at(followed.origin(), now);
        } else if let Some(tick) = confirmed {
            if answered < confirmed {
                inner.freshness.relayed(followed.origin(), tick);
            } else if !inner.freshness.is_relevant(followed.origin()) {
                // It said hello once, and was given up since: here it is.
                inner.freshness.met(followed.origin(), now);
            }
            if let Some(answered) = answered {
                inner.freshness.confirmed(followed.origin(), answered);
            }
        }
        self.publish_locked(&mut inner, now);
        ended
    }

    /// A life that is over, and says so, is followed to its end.
    pub(crate) fn conceded(&self, hello: &Hello) {
        let origin = Origin { node: hello.node.clone(), incarnation: hello.incarnation };
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        inner.locate(&origin, hello.address);
        inner.freshness.conceded(&origin, now);
        self.publish_locked(&mut inner, now);
    }

    /// An operator says that a node will not come back as it was.
    pub(crate) fn forget(&self, node: &NodeId) -> bool {
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        let known = inner.freshness.forget(node, now);
        self.publish_locked(&mut inner, now);
        known
    }

    /// Lets time pass.
    pub(crate) fn publish(&self) {
        let now = self.domain.clock().now();
        self.publish_locked(&mut self.inner.lock(), now);
    }

    /// Runs with every confirmation: while nothing is in doubt and nobody comes or goes, it allocates nothing.
    fn publish_locked(&self, inner: &mut Inner, now: Tick) {
        let published = inner.freshness.publish(now);
        self.domain.publish(published);
        self.judge_known(&inner.freshness);
        if inner.freshness.in_doubt(now) || !inner.doubts.is_empty() {
            self.tell_doubts(inner, now);
        }
        if inner.published != Some(inner.freshness.changes()) {
            self.publish_members(inner, now);
        }
    }

    fn tell_doubts(&self, inner: &mut Inner, now: Tick) {
        let doubts = inner.freshness.doubts(now);
        if doubts == inner.doubts {
            return;
        }
        match (inner.doubts.is_empty(), doubts.is_empty()) {
            (_, true) => tracing::info!("out of doubt: all members are heard, every hit counts"),
            (true, false) => {
                tracing::warn!(reasons = ?doubts, "in doubt: older entries are limited, or what their caches do with them");
            }
            (false, false) => tracing::debug!(reasons = ?doubts, "still in doubt"),
        }
        inner.doubts.clone_from(&doubts);
        self.observers.tell(Observation::Doubt { reasons: doubts });
    }

    pub(crate) fn followed(&self, origin: &Origin, address: SocketAddr, lanes: Lanes) -> Arc<Followed> {
        let mut inner = self.inner.lock();
        let peer = inner.peer(origin, address);
        // Once for each life of it.
        if peer.lanes.replace(lanes) != Some(lanes) && lanes != self.lanes {
            let (theirs, ours) = (lanes.count(), self.lanes.count());
            tracing::warn!(node = %origin.node, theirs, ours, "a member's log has another number of lanes: set it alike");
        }
        peer.followed.get_or_insert_with(|| Arc::new(Followed::new(origin.clone(), lanes))).clone()
    }

    pub(crate) fn served(&self, origin: &Origin, address: SocketAddr) -> Arc<Served> {
        self.served_locked(&mut self.inner.lock(), origin, address)
    }

    fn served_locked(&self, inner: &mut Inner, origin: &Origin, address: SocketAddr) -> Arc<Served> {
        let lanes = self.lanes;
        let times = inner.invalidation_times_of(&origin.node).cloned().unwrap_or_default();
        inner.peer(origin, address).served.get_or_insert_with(|| Arc::new(Served::new(lanes, times))).clone()
    }

    /// How long a node's peers took to apply what it did, over all lives of a peer that are remembered.
    pub(crate) fn invalidation_times_of(&self, node: &NodeId) -> Option<Snapshot> {
        Some(self.inner.lock().invalidation_times_of(node)?.snapshot())
    }

    pub(crate) fn caches_of(&self, origin: &Origin, names: Vec<String>) {
        if let Some(peer) = self.inner.lock().peers.get_mut(origin) {
            peer.caches = names;
        }
    }

    /// What is known of one life: its follower, what it has acknowledged, and the caches it hosts.
    pub(crate) fn peer(&self, origin: &Origin) -> Option<PeerState> {
        let inner = self.inner.lock();
        let Peer { followed, served, lanes, caches, .. } = inner.peers.get(origin)?;
        let (followed, served) = (followed.clone(), served.clone());
        Some(PeerState { followed, served, lanes: *lanes, caches: caches.clone() })
    }

    /// The follower of one life, and what it has acknowledged.
    pub(crate) fn sessions(&self, origin: &Origin) -> (Option<Arc<Followed>>, Option<Arc<Served>>) {
        let inner = self.inner.lock();
        inner.peers.get(origin).map_or((None, None), |peer| (peer.followed.clone(), peer.served.clone()))
    }

    /// What happened while following each life that is remembered, and all others together.
    pub(crate) fn following(&self) -> Vec<Following> {
        let inner = self.inner.lock();
        let followed = inner.peers.values().filter_map(|peer| peer.followed.as_deref());
        followed.map(Following::of).chain([inner.dropped.clone()]).collect()
    }

    /// Addresses of all relevant origins that are not asked of others, and of those that may be so again, to be dialled.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let inner = self.inner.lock();
        let relevant = inner.freshness.relevant().map(|(origin, _)| origin);
        let relevant = relevant.filter(|origin| !self.relaying.is_routed(origin));
        let addresses = relevant.filter_map(|origin| Some(inner.peers.get(origin)?.address));
        // Where it said itself that it was comes first: who named it last may be wrong.
        let again = inner.again.iter().flat_map(|(origin, (named, _))| {
            let own = inner.peers.get(origin).map(|peer| peer.address);
            own.into_iter().chain((own != Some(*named)).then_some(*named))
        });
        addresses.chain(again).collect()
    }

    /// Lives that membership shows and that concern nobody any more, once they have been shown for a while.
    pub(crate) fn forgettable(&self, view: &View) -> Vec<Origin> {
        let now = self.domain.clock().now();
        let inner = self.inner.lock();
        let shown = inner.freshness.bounds().lost_grace;
        let over = |member: &&Member| {
            matches!(member.state, State::Lost | State::Left)
                && now.since(member.since) > shown
                && !inner.freshness.is_relevant(&member.record.origin)
        };
        view.lives().filter(over).map(|member| member.record.origin.clone()).collect()
    }

    /// Whoever is a member, or may be one still; without those of whom others say that they have ended.
    pub(crate) fn relevant(&self) -> Vec<Origin> {
        let inner = self.inner.lock();
        let relevant = inner.freshness.relevant().map(|(origin, _)| origin);
        relevant.filter(|origin| !inner.freshness.has_ended_elsewhere(origin)).cloned().collect()
    }

    pub(crate) fn doubts(&self) -> Vec<Doubt> {
        let now = self.domain.clock().now();
        self.inner.lock().freshness.doubts(now)
    }

    /// How long ago everything that everybody did was applied; `None` for never.
    pub(crate) fn age(&self) -> Option<Duration> {
        let now = self.domain.clock().now();
        let oldest = self.inner.lock().freshness.oldest_confirmation()?;
        Some(now.since(oldest))
    }
}

impl Inner {
    /// Takes note of where a life says itself that it is.
    fn locate(&mut self, origin: &Origin, address: SocketAddr) -> &mut Peer {
        if self.peer(origin, address).address != address {
            self.published = None;
        }
        let peer = self.peer(origin, address);
        peer.address = address;
        peer
    }

    /// All lives of a node share them.
    fn invalidation_times_of(&self, node: &NodeId) -> Option<&Arc<Histogram>> {
        let mut lives = self.peers.iter().filter(|(origin, _)| origin.node == *node);
        lives.find_map(|(_, peer)| Some(peer.served.as_ref()?.times()))
    }

    fn peer(&mut self, origin: &Origin, address: SocketAddr) -> &mut Peer {
        self.peers.entry(origin.clone()).or_insert_with(|| Peer {
            address,
            followed: None,
            served: None,
            lanes: None,
            caches: Vec::new(),
            relays: false,
            tenure: None,
        })
    }
}

#[cfg(test)]
#[path = "coherence_tests.rs"]
mod tests;
