//! What a writer is told of others, and holds them to.

use tidings_cache::Positions;
use tidings_proto::id::Origin;
use tidings_proto::receipt::{Pending, Said};
use tidings_proto::time::Tick;

use crate::node::Node;
use crate::{BOUNDS, Micros};

/// Receipts that are waited for at once.
const ASKING_MAX: usize = 8;

/// A receipt is given up after this time.
const GIVEN_UP_US: Micros = 6_000_000;

/// A receipt that is waited for.
pub(crate) struct Asking {
    since: Micros,
    pending: Pending,
    positions: Positions,
    peers: Vec<(Origin, bool)>,
    change: (u8, u64),
}

impl Node {
    /// Asks who has applied a change that was just made.
    pub(crate) fn want_receipt(&mut self, positions: Positions, change: (u8, u64)) {
        if self.asking.len() == ASKING_MAX || self.freshness.is_out_of_contact() {
            return;
        }
        let peers: Vec<Origin> = self.freshness.relevant().map(|(origin, _)| origin.clone()).collect();
        let pending = Pending::new(self.tick(), BOUNDS.max_staleness, peers.iter().cloned());
        let peers = peers.into_iter().map(|origin| (origin, true)).collect();
        self.asking.push(Asking { since: self.now(), pending, positions, peers, change });
    }

    /// Takes note of what peers have said since.
    pub(crate) fn ask(&mut self) {
        let (now, tick) = (self.now(), self.tick());
        for asking in &mut self.asking {
            for (index, (origin, awaited)) in asking.peers.iter_mut().enumerate() {
                let peer = self.peers.get(origin);
                let reached = peer.is_some_and(|peer| {
                    let mut positions = asking.positions.iter();
                    positions.all(|(lane, sequence)| peer.served.acknowledged(*lane) >= *sequence)
                });
                let heard = peer.and_then(|peer| peer.served.probed).unwrap_or(Tick::NEVER);
                let said = Said { reached, heard, reachable: peer.is_some_and(|peer| peer.heard.is_some()) };
                if *awaited && !asking.pending.said(index, said, tick) {
                    *awaited = false;
                    self.tally.receipts += 1;
                    let (key, version) = asking.change;
                    self.promised.push((origin.clone(), key, version));
                }
            }
        }
        let open = |asking: &Asking| asking.pending.due().is_some() && now - asking.since < GIVEN_UP_US;
        self.asking.retain(open);
    }
}
