//! The newest refusals, of peers by this node and of this node by peers, for whoever asks why a member is missing.

use std::collections::VecDeque;
use std::net::SocketAddr;

use parking_lot::Mutex;
use tidings_proto::id::NodeId;
use tidings_proto::time::Tick;

use crate::refuse::HandshakeError;
use crate::stats::RefusedReason;

/// Refusals that are remembered, each once however often it happens. Anybody can cause some, so they inform and decide
/// nothing; of more the one goes that happened last the longest ago.
const KEPT_MAX: usize = 32;

/// Addresses whose node is remembered, by the certificate that was last shown there. Of more the oldest goes, and a
/// refusal there names the address alone.
const NAMES_MAX: usize = 256;

/// A handshake that one end has refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Who is there, by a certificate of this cluster; `None` if none was shown.
    pub node: Option<NodeId>,
    /// Where.
    pub address: SocketAddr,
    /// It was the peer who refused.
    pub by_peer: bool,
    /// Why.
    pub reason: RefusedReason,
    /// The same in words.
    pub detail: String,
    /// How often.
    pub times: u64,
    /// When last.
    pub last: Tick,
}

/// What is remembered, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    kept: Mutex<VecDeque<Refused>>,
    names: Mutex<VecDeque<(SocketAddr, NodeId)>>,
}

impl Refusals {
    /// A certificate of this node was shown at an address.
    pub(crate) fn shown(&self, address: SocketAddr, node: &NodeId) {
        let mut names = self.names.lock();
        names.retain(|(known, _)| *known != address);
        names.push_back((address, node.clone()));
        if names.len() > NAMES_MAX {
            names.pop_front();
        }
    }

    /// Who is known to be at an address.
    pub(crate) fn name(&self, address: SocketAddr) -> Option<NodeId> {
        let names = self.names.lock();
        names.iter().find(|(known, _)| *known == address).map(|(_, node)| node.clone())
    }

    /// Takes note of a handshake that came to nothing, if one end has refused it.
    pub(crate) fn note(&self, address: SocketAddr, error: &HandshakeError, now: Tick) {
        let Some((by_peer, reason)) = error.refused() else { return };
        let node = self.name(address);
        let mut kept = self.kept.lock();
        let same = |it: &Refused| it.address == address && it.by_peer == by_peer && it.reason == reason;
        let times = match kept.iter().position(same) {
            Some(at) => kept.remove(at).map_or(0, |before| before.times),
            None => 0,
        };
        let detail = error.describe();
        kept.push_back(Refused { node, address, by_peer, reason, detail, times: times + 1, last: now });
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
    }

    /// What is remembered, the newest last.
    pub(crate) fn all(&self) -> Vec<Refused> {
        self.kept.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::frame::Refusal;

    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn refusals_are_bounded_counted_and_named_by_the_certificate_that_was_shown() {
        let refusals = Refusals::default();
        let node = NodeId::new("n2").unwrap();
        refusals.shown(at(1), &node);
        let hash = HandshakeError::telling(RefusedReason::HashVersion, Refusal::HashVersion(1));
        for tick in 1..=3 {
            refusals.note(at(1), &hash, Tick(tick));
        }
        refusals.note(at(1), &HandshakeError::RefusedByPeer(Refusal::Denied), Tick(4));
        refusals.note(at(2), &HandshakeError::Timeout, Tick(5));
        let [first, second] = &refusals.all()[..] else { panic!("{:?}", refusals.all()) };
        assert_eq!((first.node.as_ref(), first.times, first.last), (Some(&node), 3, Tick(3)));
        assert_eq!((first.reason, first.by_peer), (RefusedReason::HashVersion, false));
        assert_eq!((second.reason, second.by_peer), (RefusedReason::Denied, true));
        for port in 0..1_000 {
            refusals.shown(at(port), &node);
            refusals.note(at(port), &hash, Tick(9));
        }
        assert_eq!(refusals.all().len(), KEPT_MAX);
        assert!(refusals.name(at(1)).is_none() && refusals.name(at(999)).is_some());
    }

    #[test]
    fn every_reason_says_what_can_be_done() {
        for reason in RefusedReason::ALL {
            assert!(!reason.remedy().is_empty(), "{reason:?}");
        }
    }
}
