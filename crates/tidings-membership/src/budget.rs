//! How many signatures are checked for one peer: checking is what gossip costs most.

use std::collections::BTreeMap;
use std::time::Duration;

use tidings_proto::id::NodeId;
use tidings_proto::time::Tick;

/// Signatures checked of one frame. The rest of its records come again with the next, for what is not accepted is
/// not known.
pub(crate) const PER_FRAME: u32 = 64;

/// Time between two checks for one peer in the long run: 128 a second, some 2 % of a core.
const PAUSE: Duration = Duration::from_micros(7_812);

/// Checks that a peer may have saved up: a cluster of 256 is learned at once.
const BURST: u32 = 256;

/// Peers that are told apart before those who have used nothing of late are forgotten.
const PEERS_MAX: usize = 256;

/// What is left of each peer's share.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When each peer will have all of its share again.
    whole_at: BTreeMap<NodeId, Tick>,
}

impl Budget {
    /// Takes one check from a peer's share, if there is one left.
    pub(crate) fn take(&mut self, peer: &NodeId, now: Tick) -> bool {
        if self.whole_at.len() >= PEERS_MAX {
            self.whole_at.retain(|_, whole_at| *whole_at > now);
        }
        let whole_at = self.whole_at.entry(peer.clone()).or_insert(now);
        let after = now.max(*whole_at).after(PAUSE);
        let left = after.since(now) <= PAUSE * BURST;
        if left {
            *whole_at = after;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_burst_and_then_a_rate_of_its_own() {
        let (mut budget, start) = (Budget::default(), Tick(1));
        let peer = |number: u32| NodeId::new(&format!("n{number}")).unwrap();
        let mut taken = |number, now| (0..10_000).take_while(|_| budget.take(&peer(number), now)).count();
        assert_eq!(taken(1, start), BURST as usize);
        assert_eq!(taken(2, start), BURST as usize, "another peer");
        let second = start.after(Duration::from_secs(1));
        assert_eq!(taken(1, second), 128);
        assert_eq!(taken(1, second.after(Duration::from_secs(60))), BURST as usize, "no more is saved up");
    }

    #[test]
    fn peers_that_use_nothing_are_forgotten() {
        let mut budget = Budget::default();
        for second in 0..10_000_u64 {
            let peer = NodeId::new(&format!("n{second}")).unwrap();
            assert!(budget.take(&peer, Tick(1).after(Duration::from_secs(second))));
        }
        assert!(budget.whole_at.len() <= PEERS_MAX);
    }
}
