//! What was applied here of every origin, in the lane of a key: what a load on this node has seen, and what one elsewhere
//! has to have seen for its result to be taken here.

use tidings_proto::follower::Follower;
use tidings_proto::id::{LaneId, Lanes, NodeId, Origin, Sequence, Slot};
use tidings_proto::lease::{SEEN_MAX, Seen, Wanted};
use tidings_transport::session::Followed;

use super::{Coherence, Peer};

/// A position of a follower in a lane.
type Position = fn(&Follower, LaneId) -> Sequence;

fn position(origin: &Origin, followed: &Followed, slot: Slot, of: Position) -> Option<(Origin, Sequence)> {
    let at = followed.with(|follower| {
        let lanes = u8::try_from(follower.lanes()).ok().and_then(Lanes::new)?;
        Some(of(follower, lanes.lane_of(slot)))
    });
    Some((origin.clone(), at?))
}

impl Coherence {
    fn own_position(&self, slot: Slot) -> (Origin, Sequence) {
        let lane = self.lanes.lane_of(slot);
        ((*self.domain.origin()).clone(), self.domain.log().head(lane))
    }

    /// What a load of a key of this slot that begins now has certainly seen; `None` if that is of more origins than can be
    /// told.
    pub(crate) fn seen_by_load(&self, slot: Slot) -> Option<Seen> {
        let own = self.own_position(slot);
        let inner = self.inner.lock();
        let others = inner.peers.iter().filter_map(|(origin, Peer { followed, .. })| {
            position(origin, followed.as_ref()?, slot, Follower::applied_in)
        });
        let seen = Seen::of(others.chain([own]));
        (seen.len() <= SEEN_MAX).then_some(seen)
    }

    /// What a load of a key of this slot has to have seen whose result is taken here. Call once the flight is registered
    /// that it is for.
    pub(crate) fn wanted_of_load(&self, slot: Slot) -> Wanted {
        let own = self.own_position(slot);
        let inner = self.inner.lock();
        let relevant = inner.peers.iter().filter(|(origin, _)| inner.freshness.is_relevant(origin));
        let others = relevant.filter_map(|(origin, Peer { followed, .. })| {
            position(origin, followed.as_ref()?, slot, Follower::begun_in)
        });
        Wanted { seen: Seen::of(others.chain([own])), left_out: inner.left_out }
    }

    /// The nodes that have announced a cache so, as far as they are relevant.
    pub(crate) fn hosts(&self, announced: &str) -> Vec<NodeId> {
        let inner = self.inner.lock();
        let hosts = inner.peers.iter().filter(|(origin, peer)| {
            inner.freshness.is_relevant(origin) && peer.caches.iter().any(|name| name == announced)
        });
        hosts.map(|(origin, _)| origin.node.clone()).collect()
    }
}
