//! What happens to a node, for those who watch it.

use std::net::SocketAddr;

use tidings_membership::State;
use tidings_proto::frame::Refusal;
use tidings_proto::freshness::Doubt;
use tidings_proto::id::{LaneId, NodeId, Origin};
use tokio::sync::broadcast;

/// Observations kept for a slow observer; it is told how many it missed.
const OBSERVATIONS_MAX: usize = 1_024;

/// Something that happened to the node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Observation {
    /// A member is seen in another state.
    Member {
        /// Who.
        origin: Origin,
        /// The state.
        state: State,
    },
    /// A lane's slots were fenced, because the origin's log no longer held what was missing.
    Reset {
        /// Whose log.
        origin: Origin,
        /// Which lane.
        lane: LaneId,
    },
    /// The reasons for doubt have changed; none: every hit counts.
    Doubt {
        /// Why entries live only as long as the staleness bound.
        reasons: Vec<Doubt>,
    },
    /// A peer refused this node.
    Refused {
        /// Which.
        address: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// The node took another incarnation, because a later one of its id was known.
    Renumbered {
        /// Who it is now.
        origin: Origin,
    },
    /// A peer said goodbye.
    Left {
        /// Who.
        node: NodeId,
    },
}

/// What an observer gets.
#[derive(Clone, Debug)]
pub enum Observed {
    /// Something happened.
    Observation(Observation),
    /// So many observations were lost to it.
    Missed(u64),
}

/// Watches a node.
#[derive(Debug)]
pub struct Observer(broadcast::Receiver<Observation>);

impl Observer {
    /// The next observation; `None` after the node was shut down.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Observed> {
        match self.0.recv().await {
            Ok(observation) => Some(Observed::Observation(observation)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Observed::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Observers(broadcast::Sender<Observation>);

impl Default for Observers {
    fn default() -> Self {
        Self(broadcast::Sender::new(OBSERVATIONS_MAX))
    }
}

impl Observers {
    pub(crate) fn tell(&self, observation: Observation) {
        // Nobody watches: that is no error.
        let _ = self.0.send(observation);
    }

    pub(crate) fn observe(&self) -> Observer {
        Observer(self.0.subscribe())
    }
}
