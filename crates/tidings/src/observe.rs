//! What happens to a node, for those who watch it.

use std::net::SocketAddr;

use parking_lot::RwLock;
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
    /// No member has heard the node for as long as members wait for a lost one, or one hears it again.
    Expelled {
        /// Whether none does.
        expelled: bool,
    },
    /// A peer said goodbye.
    Left {
        /// Who.
        node: NodeId,
    },
    /// Something happened to a topic of the node's streams: one for each call that did something.
    #[cfg(feature = "streams")]
    Stream {
        /// Which topic.
        topic: crate::streams::Name,
        /// What happened.
        event: crate::streams::StreamEvent,
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

/// `None` once the node was shut down.
#[derive(Debug)]
pub(crate) struct Observers(RwLock<Option<broadcast::Sender<Observation>>>);

impl Default for Observers {
    fn default() -> Self {
        Self(RwLock::new(Some(broadcast::Sender::new(OBSERVATIONS_MAX))))
    }
}

impl Observers {
    pub(crate) fn tell(&self, observation: Observation) {
        if let Some(sender) = &*self.0.read() {
            // Nobody watches: that is no error.
            let _ = sender.send(observation);
        }
    }

    /// Whether anybody watches: what happens often is told to nobody else.
    #[cfg(feature = "streams")]
    pub(crate) fn is_watched(&self) -> bool {
        self.0.read().as_ref().is_some_and(|sender| sender.receiver_count() > 0)
    }

    pub(crate) fn observe(&self) -> Observer {
        let sender = self.0.read();
        Observer(
            sender
                .as_ref()
                .map_or_else(|| broadcast::Sender::new(1).subscribe(), |sender| sender.subscribe()),
        )
    }

    /// Nothing more is told.
    pub(crate) fn close(&self) {
        self.0.write().take();
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::id::Incarnation;

    use super::*;

    #[tokio::test]
    async fn a_slow_observer_is_told_how_many_it_missed_and_hears_the_rest() {
        let (observers, all) = (Observers::default(), 3 * OBSERVATIONS_MAX as u64);
        let mut observer = observers.observe();
        for number in 0..all {
            let origin = Origin { node: NodeId::new("n").unwrap(), incarnation: Incarnation(number) };
            observers.tell(Observation::Renumbered { origin });
        }
        observers.close();
        let Some(Observed::Missed(missed)) = observer.next().await else { panic!("something was missed") };
        let mut heard = missed;
        while let Some(told) = observer.next().await {
            let Observed::Observation(Observation::Renumbered { origin }) = told else { panic!("{told:?}") };
            assert_eq!(origin.incarnation.0, heard);
            heard += 1;
        }
        assert_eq!((missed, heard), (all - OBSERVATIONS_MAX as u64, all));
        assert!(observers.observe().next().await.is_none(), "who comes after the end is told so");
    }
}
