//! Who has applied a change: what its writer is told that asks.
//!
//! The list of peers is fixed by the change's positions. Log heads are noted as each peer becomes a member and as it
//! ceases to be one, so that it can be told later who was a member at the append: writing costs nothing more. A life
//! leaves the list by applying, or as expired, when it cannot serve an older entry any more: the staleness bound has
//! passed since it last asked for confirmation, and since the writer asked, which is not before the append. A later
//! life of its node does not take it off, for nothing says that the former process has ended; it holds nothing of
//! before, and is waited for only if it was a member itself.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use smallvec::SmallVec;

use crate::id::{LaneId, Lanes, NodeId, Origin, Sequence};
use crate::time::Tick;

/// Where a change log has a change: the newest position in each lane that it touched. Nothing, if nobody has to be
/// told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions(SmallVec<[(LaneId, Sequence); 1]>);

impl Positions {
    /// The position of a change of one lane.
    #[inline]
    #[must_use]
    pub fn one(lane: LaneId, sequence: Sequence) -> Self {
        Self(SmallVec::from_buf([(lane, sequence)]))
    }

    /// Adds a position. Of two in one lane the later one stays, for acknowledgements are cumulative.
    pub fn add(&mut self, lane: LaneId, sequence: Sequence) {
        match self.0.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, newest)) => *newest = sequence.max(*newest),
            None => self.0.push((lane, sequence)),
        }
    }

    /// Those in lanes of a log that has so many: others are of another node's log, and mean nothing to it.
    #[must_use]
    pub fn within(&self, lanes: Lanes) -> Self {
        let known = |(lane, _): &(LaneId, Sequence)| lane.index() < usize::from(lanes.count());
        Self(self.0.iter().copied().filter(known).collect())
    }

    /// Adds those of another change: both together are one.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(lane, sequence)| self.add(*lane, *sequence));
    }
}

impl Deref for Positions {
    type Target = [(LaneId, Sequence)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Between which positions a life was a member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenure {
    /// The heads when it was first named: what is behind them was there before it.
    pub since: Vec<Sequence>,
    /// The heads when it ceased to be a member; what is behind them counts.
    pub until: Option<Vec<Sequence>>,
}

impl Tenure {
    /// Whether it was a member when any of these was appended.
    #[must_use]
    pub fn covers(&self, positions: &Positions) -> bool {
        positions.iter().any(|(lane, sequence)| {
            let head = |heads: &Vec<Sequence>| heads.get(lane.index()).copied().unwrap_or(0);
            head(&self.since) < *sequence && self.until.as_ref().is_none_or(|until| *sequence <= head(until))
        })
    }
}

/// Why a peer has not said that it applied a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MissingReason {
    /// It can be heard, and has not got there yet.
    Lagging,
    /// It cannot be heard: it has ended, stands still, or is cut off.
    Unreachable,
    /// None of several peers can be heard: it is probably the writer that is cut off.
    Isolated,
}

impl MissingReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Lagging, Self::Unreachable, Self::Isolated];

    /// Its name, as people and metrics know it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lagging => "lagging",
            Self::Unreachable => "unreachable",
            Self::Isolated => "isolated",
        }
    }
}

/// A peer that has not said in time that it applied a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub node: NodeId,
    /// Why.
    pub reason: MissingReason,
}

/// Who has applied a change, of the peers that were members when it was made. Each node is named once, in the order of
/// ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// These have: no read that begins there from now on is answered with an older entry.
    pub applied: Vec<NodeId>,
    /// These have not said so, and may serve an older entry for at most the staleness bound.
    pub missing: Vec<Missing>,
    /// These have not said so, and cannot serve an older entry any more: they last asked for confirmation longer ago
    /// than the staleness bound.
    pub expired: Vec<NodeId>,
}

impl Receipt {
    /// Whether no peer can serve an older entry any more.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// In the order in which one of several lives of a node decides what is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Standing {
    Expired,
    Applied,
    Awaited(MissingReason),
}

#[derive(Clone, Debug, Hash)]
struct Waited {
    origin: Origin,
    standing: Standing,
    /// When it cannot serve an older entry any more, as far as is known.
    expires: Tick,
}

/// What a peer has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Said {
    /// It has acknowledged every position.
    pub reached: bool,
    /// Its last request for confirmation came at this time.
    pub heard: Tick,
    /// It can be heard now.
    pub reachable: bool,
}

/// A receipt that is waited for.
#[derive(Clone, Debug, Hash)]
pub struct Pending {
    asked: Tick,
    bound: Duration,
    peers: Vec<Waited>,
}

impl Pending {
    /// Waits for these lives, from a time on that is not before the append. `bound`: the staleness that each of them
    /// allows itself.
    #[must_use]
    pub fn new(asked: Tick, bound: Duration, peers: impl IntoIterator<Item = Origin>) -> Self {
        let standing = Standing::Awaited(MissingReason::Unreachable);
        let waited = |origin| Waited { origin, standing, expires: asked.after(bound) };
        Self { asked, bound, peers: peers.into_iter().map(waited).collect() }
    }

    /// Takes note of what the peer at this place of the list has said. Returns whether it is waited for any longer.
    pub fn said(&mut self, index: usize, said: Said, now: Tick) -> bool {
        let Some(peer) = self.peers.get_mut(index) else { return false };
        if let Standing::Awaited(_) = peer.standing {
            peer.expires = self.asked.max(said.heard).after(self.bound);
            peer.standing = match said.reachable {
                _ if said.reached => Standing::Applied,
                _ if now >= peer.expires => Standing::Expired,
                true => Standing::Awaited(MissingReason::Lagging),
                false => Standing::Awaited(MissingReason::Unreachable),
            };
        }
        matches!(peer.standing, Standing::Awaited(_))
    }

    fn awaited(&self) -> impl Iterator<Item = &Waited> {
        self.peers.iter().filter(|peer| matches!(peer.standing, Standing::Awaited(_)))
    }

    /// When the next peer may leave the list without a word; `None` once nobody is waited for.
    #[must_use]
    pub fn due(&self) -> Option<Tick> {
        self.awaited().map(|peer| peer.expires).min()
    }

    /// What can be said now.
    #[must_use]
    pub fn receipt(&self) -> Receipt {
        let mut nodes = BTreeMap::<&NodeId, Standing>::new();
        for Waited { origin, standing, .. } in &self.peers {
            let worst = nodes.entry(&origin.node).or_insert(*standing);
            *worst = (*standing).max(*worst);
        }
        let silent = |standing: &Standing| {
            matches!(standing, Standing::Awaited(MissingReason::Unreachable) | Standing::Expired)
        };
        let isolated = nodes.len() > 1 && nodes.values().all(silent);
        let mut receipt = Receipt::default();
        for (node, standing) in nodes {
            let node = node.clone();
            match standing {
                Standing::Applied => receipt.applied.push(node),
                Standing::Expired => receipt.expired.push(node),
                Standing::Awaited(_) if isolated => {
                    receipt.missing.push(Missing { node, reason: MissingReason::Isolated });
                }
                Standing::Awaited(reason) => receipt.missing.push(Missing { node, reason }),
            }
        }
        receipt
    }
}

#[cfg(test)]
#[path = "receipt_tests.rs"]
mod tests;
