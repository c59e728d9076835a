//! Whom relays may stand for: lives that were met, and that know of this node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tidings_proto::id::{Incarnation, NodeId, Origin};
use tidings_transport::session::{Followed, Relaying};

use super::Coherence;

impl Coherence {
    /// What this node relays, and what it asks of others.
    pub(crate) fn relaying(&self) -> &Relaying {
        &self.relaying
    }

    /// Relevant lives whose release relays, that have answered this node's present life, and of which, as they of this
    /// node, a record of every lane was applied: nothing is lost if the link to them ends. Every other one is followed
    /// directly until it is one of them.
    pub(crate) fn settled(&self) -> Vec<(Origin, Arc<Followed>)> {
        let inner = self.inner.lock();
        let unaware: BTreeSet<&Origin> = inner.freshness.unaware().collect();
        let settled = inner.peers.iter().filter_map(|(origin, peer)| {
            let followed = peer.followed.as_ref().filter(|followed| followed.is_proven())?;
            let served = peer.served.as_ref()?;
            let knows = inner.freshness.is_relevant(origin) && !unaware.contains(origin);
            (peer.relays && knows && served.is_proven()).then(|| (origin.clone(), followed.clone()))
        });
        settled.collect()
    }

    /// Whether freshness depends on a life.
    pub(crate) fn is_relevant(&self, origin: &Origin) -> bool {
        self.inner.lock().freshness.is_relevant(origin)
    }

    /// Where the newest relevant life of a node is.
    pub(crate) fn address_of(&self, node: &NodeId) -> Option<SocketAddr> {
        let inner = self.inner.lock();
        let first = Origin { node: node.clone(), incarnation: Incarnation(0) };
        let last = Origin { node: node.clone(), incarnation: Incarnation(u64::MAX) };
        let mut lives = inner.peers.range(first..=last).rev();
        lives.find(|(origin, _)| inner.freshness.is_relevant(origin)).map(|(_, peer)| peer.address)
    }
}
