//! Whether everybody knows of this node, so that what it changes counts for everybody's bound.

use std::sync::atomic::{AtomicBool, Ordering};

use tidings_membership::State;
use tidings_proto::freshness::Freshness;
use tidings_proto::id::Origin;
use tokio::sync::watch;

use super::Coherence;

/// What a node does with changes that are made before everybody who is there knows of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BeforeKnown {
    /// They are made, and told to whoever comes to follow this node. A member that does not know of it may serve what
    /// they have made stale for longer than the bound: until it knows.
    #[default]
    Uncovered,
    /// They fail with [`crate::WriteError::NotKnown`], and the write of a write-through does not run. Every change that
    /// is made counts for the bound everywhere.
    Refuse,
}

/// Whether everybody knows of this node, for those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Known {
    known: watch::Sender<bool>,
    refuses: AtomicBool,
}

impl Coherence {
    /// Says what is done with changes that are made too early.
    pub(crate) fn set_before_known(&self, before: BeforeKnown) {
        self.known.refuses.store(before == BeforeKnown::Refuse, Ordering::Release);
        self.publish();
    }

    /// Runs with every confirmation: while nothing changes it takes one lock and tells nobody.
    pub(super) fn judge_known(&self, freshness: &Freshness) {
        let known = freshness.is_known();
        self.domain.hold(!known && self.known.refuses.load(Ordering::Acquire));
        self.known.known.send_if_modified(|was| std::mem::replace(was, known) != known);
    }

    /// Whether everybody who is there knows of this node, and every change of that.
    pub(crate) fn known(&self) -> watch::Receiver<bool> {
        self.known.known.subscribe()
    }

    /// Who may not know of this node.
    pub(crate) fn unaware(&self) -> Vec<Origin> {
        self.inner.lock().freshness.unaware().cloned().collect()
    }

    /// Another process has this node's place.
    pub(crate) fn displaced(&self) {
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        inner.freshness.displaced();
        self.publish_locked(&mut inner, now);
    }

    /// This node has taken another incarnation, and its links have ended.
    pub(crate) fn renumbered(&self) {
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        inner.freshness.renumbered(now);
        inner.peers.values().filter_map(|peer| peer.served.as_ref()).for_each(|served| served.renumbered());
        self.publish_locked(&mut inner, now);
    }
}

/// Whether some live member hears whom membership sees in this state.
pub(super) fn heard(state: State) -> bool {
    matches!(state, State::Live | State::Suspect)
}
