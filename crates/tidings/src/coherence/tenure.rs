//! Who was a member when something was appended to the log: the peers that a receipt is about.

use std::sync::Arc;

use tidings_proto::id::{Origin, Sequence};
use tidings_proto::receipt::{Positions, Tenure};
use tidings_transport::session::Served;

use super::{Coherence, Inner, Peer};

impl Inner {
    /// Notes the log's heads with every life that has become relevant or has ceased to be so, before anybody hears of
    /// it.
    pub(super) fn note_tenures(&mut self, heads: impl FnOnce() -> Vec<Sequence>) {
        let heads = heads();
        for (origin, peer) in &mut self.peers {
            match (&mut peer.tenure, self.freshness.is_relevant(origin)) {
                (tenure @ None, true) => *tenure = Some(Tenure { since: heads.clone(), until: None }),
                // One that is back is waited for as if it had never been away: it is there.
                (Some(tenure), true) => tenure.until = None,
                (Some(Tenure { until: until @ None, .. }), false) => *until = Some(heads.clone()),
                _ => {}
            }
        }
    }
}

impl Coherence {
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
