//! What a node knows of each member.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidings_cache::AnyCache;
use tidings_membership::{Member, State};
use tidings_proto::follower::Follower;
use tidings_proto::histogram::Snapshot;
use tidings_proto::id::{Incarnation, Lanes, NodeId, Origin, Sequence};
use tidings_proto::time::Tick;
use tidings_transport::session::{FollowCounts, RelayReport};

use crate::clocks::ClockOffset;
use crate::coherence::{Following, PeerState};
use crate::hosted;
use crate::node::Node;

/// A member counts as synced if everything it did up to so long ago is applied here.
pub const SYNCED_WITHIN: Duration = Duration::from_secs(1);

/// A member as this node sees it.
#[derive(Clone, Debug)]
pub struct MemberInfo {
    /// Its id.
    pub node: NodeId,
    /// Whether it is the answering node.
    pub this_node: bool,
    /// Its life.
    pub incarnation: Incarnation,
    /// Whether it can be heard.
    pub state: State,
    /// Where it can be dialled.
    pub address: SocketAddr,
    /// Its zone, or nothing.
    pub zone: String,
    /// Its release.
    pub release: String,
    /// By way of whom it is followed, if relays stand for it ([`crate::NodeBuilder::relay_above`]).
    pub via: Option<NodeId>,
    /// Round trip on the link to it, if there is one.
    pub rtt: Option<Duration>,
    /// Everything it did up to so long ago is applied here.
    pub confirmed: Option<Duration>,
    /// Events of this node that it has not acknowledged.
    pub lag_events: u64,
    /// Changes made on it that were applied here.
    pub applied: u64,
    /// Gaps, resets and duplicates while following it.
    pub gaps: u64,
    /// See `gaps`.
    pub resets: u64,
    /// See `gaps`.
    pub duplicates: u64,
    /// How many lanes its log has, once it is followed. Nodes whose numbers differ understand each other; what one fences
    /// of the other's is coarser or finer than of its own.
    pub lanes: Option<u8>,
    /// How far its wall clock is from this node's, if it has said.
    pub clock: Option<ClockOffset>,
    /// The caches it hosts.
    pub caches: Vec<String>,
    /// Of those, which state a schema ([`crate::CacheBuilder::schema`]), and which.
    pub schemas: BTreeMap<String, u32>,
}

impl MemberInfo {
    /// Whether everything it did up to [`SYNCED_WITHIN`] ago is applied here.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.this_node || self.confirmed.is_some_and(|age| age <= SYNCED_WITHIN)
    }
}

impl Node {
    /// Every known member, this node first.
    #[must_use]
    pub fn members(&self) -> Vec<MemberInfo> {
        let bus = self.bus();
        let heads = bus.domain.log().heads();
        let now = bus.domain.clock().now();
        let view = bus.membership().map(|membership| membership.view()).unwrap_or_default();
        let others = view.members.values().map(|member| self.member(member, &heads, now));
        std::iter::once(self.this_member()).chain(others).collect()
    }

    fn member(&self, member: &Member, heads: &[Sequence], now: Tick) -> MemberInfo {
        let bus = self.bus();
        let Member { record, state, .. } = member;
        let origin = &record.origin;
        let PeerState { followed, served, lanes, caches } = bus.coherence.peer(origin).unwrap_or_default();
        let hosted: Vec<_> = caches.iter().map(|named| hosted::read(named)).collect();
        let link = bus.transport().and_then(|transport| transport.link(&origin.node));
        let count = |counter: fn(&FollowCounts) -> &AtomicU64| {
            followed.as_ref().map_or(0, |followed| counter(followed.counts()).load(Ordering::Relaxed))
        };
        let confirmed = followed.as_ref().and_then(|followed| followed.with(Follower::confirmed));
        MemberInfo {
            node: origin.node.clone(),
            this_node: false,
            incarnation: origin.incarnation,
            state: *state,
            address: record.address,
            zone: record.zone.clone(),
            release: record.release.clone(),
            via: followed.as_ref().map(|followed| followed.source()).filter(|via| *via != origin.node),
            lanes: lanes.map(Lanes::count),
            rtt: link.map(|link| link.rtt()),
            confirmed: confirmed.map(|tick| now.since(tick)),
            lag_events: served.map_or(0, |served| served.lag(heads)),
            applied: count(|counts| &counts.applied),
            gaps: count(|counts| &counts.gaps),
            resets: count(|counts| &counts.resets),
            duplicates: count(|counts| &counts.duplicates),
            clock: bus.clocks.offset(&origin.node, now),
            caches: hosted.iter().map(|(name, _)| name.clone()).collect(),
            schemas: hosted.into_iter().filter(|(_, schema)| *schema != 0).collect(),
        }
    }

    /// For how long no member has heard this node, if that is so long that they have given it up
    /// ([`NodeBuilder::lost_grace`](crate::NodeBuilder::lost_grace)): it is expelled, or everybody else has ended. It
    /// goes on serving and changing its caches; what it changes counts for the others' bound from when it meets one
    /// of them again. Then everybody that has given the other up reloads what it holds. `None` for a node that
    /// belongs to its cluster, or has never been followed by anybody.
    #[must_use]
    pub fn expelled(&self) -> Option<Duration> {
        self.bus().coherence.expelled()
    }

    /// Every life of another node that is followed, or was and is still remembered; under this node's own id and
    /// incarnation 0 all others together, so that sums never fall.
    #[must_use]
    pub fn following(&self) -> Vec<Following> {
        self.bus().coherence.following()
    }

    /// What came of relaying: all is nothing unless the cluster is large ([`crate::NodeBuilder::relay_above`]).
    #[must_use]
    pub fn relayed(&self) -> RelayReport {
        self.bus().coherence.relaying().report()
    }

    /// How long changes of this node took until a peer had acknowledged them, by this node's clock: from when its bus
    /// heard of each, some tens of microseconds after the change, to the acknowledgement, which peers gather for 5 ms.
    /// What the log held when the peer first followed it is left out.
    #[must_use]
    pub fn invalidation_times(&self, peer: &NodeId) -> Option<Snapshot> {
        self.bus().coherence.invalidation_times_of(peer)
    }

    /// How often a peer's wall clock has come to be beyond [`ClockBounds::max_offset`](crate::ClockBounds::max_offset).
    #[must_use]
    pub fn clock_offsets_exceeded(&self) -> u64 {
        self.bus().clocks.exceeded()
    }

    fn this_member(&self) -> MemberInfo {
        let Origin { node, incarnation } = self.origin();
        let caches = self.caches();
        let stated = |cache: &dyn AnyCache| {
            let schema = cache.settings().schema;
            (schema != 0).then(|| (cache.name().to_string(), schema))
        };
        MemberInfo {
            node,
            this_node: true,
            incarnation,
            state: State::Live,
            address: self.address(),
            zone: self.bus().zone.clone(),
            release: crate::RELEASE.to_owned(),
            via: None,
            lanes: Some(self.domain().log().lanes().count()),
            rtt: None,
            confirmed: Some(Duration::ZERO),
            lag_events: 0,
            applied: 0,
            gaps: 0,
            resets: 0,
            duplicates: 0,
            clock: None,
            caches: caches.iter().map(|cache| cache.name().to_string()).collect(),
            schemas: caches.iter().filter_map(|cache| stated(&**cache)).collect(),
        }
    }
}
