//! Who was a member when something was appended to the log: the peers that a receipt is about.

use std::sync::Arc;

use tidings_proto::coverage::Coherent;
use tidings_proto::id::LaneId;
use tidings_proto::id::{Origin, Sequence};
use tidings_proto::receipt::{Positions, Tenure};
use tidings_proto::time::Tick;
use tidings_transport::session::Served;

use super::{Coherence, Inner, Peer};

impl Inner {
    /// Notes the log's heads with every life that has become relevant or has ceased to be so, before anybody hears of
    /// it.
    pub(super) fn note_tenures(&mut self, heads: impl FnOnce() -> Vec<Sequence>, now: Tick) {
        let heads = heads();
        for (origin, peer) in &mut self.peers {
            let member = self.freshness.is_relevant(origin) && !self.freshness.has_ended_elsewhere(origin);
            match member {
                true => self.coverage.joined(origin, &heads, now),
                false => self.coverage.left(origin, &heads, now),
            }
            match (&mut peer.tenure, member) {
                (tenure @ None, true) => *tenure = Some(Tenure { since: heads.clone(), until: None }),
                // One that is back is waited for as if it had never been away: it is there.
                (Some(tenure), true) => tenure.until = None,
                (Some(Tenure { until: until @ None, .. }), false) => {
                    *until = Some(heads.clone());
                    self.left_out = now;
                }
                _ => {}
            }
        }
    }
}

impl Coherence {
    /// Everything in a lane up to here is known since this time.
    pub(crate) fn noted(&self, lane: LaneId, head: Sequence, at: Tick) {
        self.inner.lock().coverage.noted(lane, head, at);
    }

    /// A life had applied a lane up to each of these positions at the times beside them.
    pub(crate) fn applied_by(
        &self,
        origin: &Origin,
        lane: LaneId,
        steps: &mut dyn Iterator<Item = (Sequence, Tick)>,
    ) {
        let head = self.domain.log().head(lane);
        self.inner.lock().coverage.applied(origin, (lane, head), steps);
    }

    /// How soon every live member had applied what was written here.
    pub(crate) fn coherent(&self) -> Coherent {
        let now = self.domain.clock().now();
        self.inner.lock().coverage.coherent(now)
    }

    /// Whether nobody has been reached since the start, although there are seeds.
    pub(crate) fn is_out_of_contact(&self) -> bool {
        self.inner.lock().freshness.is_out_of_contact()
    }

    /// The lives that were members, live or within their grace, when these positions were appended, and what each has
    /// acknowledged. `None` if nobody has been reached since the start, although there are seeds.
    pub(crate) fn members_at(&self, positions: &Positions) -> Option<Vec<(Origin, Arc<Served>)>> {
        let mut inner = self.inner.lock();
        if inner.freshness.is_out_of_contact() {
            return None;
        }
        let covers = |peer: &Peer| peer.tenure.as_ref().is_some_and(|tenure| tenure.covers(positions));
        let members = inner.peers.iter().filter(|(_, peer)| covers(peer));
        let members: Vec<_> =
            members.map(|(origin, peer)| (origin.clone(), peer.address, peer.served.clone())).collect();
        let served = members.into_iter().map(|(origin, address, served)| {
            // One that has only been named so far has acknowledged nothing.
            let served = served.unwrap_or_else(|| self.served_locked(&mut inner, &origin, address));
            (origin, served)
        });
        Some(served.collect())
    }
}
