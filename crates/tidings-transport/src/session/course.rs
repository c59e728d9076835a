//! Of whom an origin is asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidings_proto::id::{LaneId, NodeId};
use tidings_proto::relay::Path;
use tidings_proto::time::Tick;

use super::Followed;

/// An origin, and of whom it is to be asked.
#[derive(Debug)]
pub struct Course {
    /// The origin.
    pub followed: Arc<Followed>,
    /// Whom to ask, in order, the origin among them: [`Overlay::sources`](tidings_proto::relay::Overlay::sources).
    pub sources: Vec<NodeId>,
    /// How far the origin is by way of the first of them.
    pub hops: usize,
}

impl Followed {
    /// Of whom it is asked: of itself, unless it has a path.
    #[must_use]
    pub fn source(&self) -> NodeId {
        self.path.lock().as_ref().map_or_else(|| self.origin.node.clone(), |path| path.source().clone())
    }

    /// Changes whenever it is asked of somebody else.
    pub(super) fn turn(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }

    /// Whether it is asked of this node.
    pub(super) fn is_asked_of(&self, node: &NodeId) -> bool {
        self.path.lock().as_ref().map_or(&self.origin.node, Path::source) == node
    }

    /// Returns whether somebody else is asked now.
    pub(super) fn reroute(&self, sources: Vec<NodeId>, hops: usize, now: Tick) -> bool {
        let mut path = self.path.lock();
        match &mut *path {
            Some(path) => path.rerouted(sources, hops, now),
            None => {
                let new = Path::new(sources, hops, now);
                let moved = *new.source() != self.origin.node;
                *path = Some(new);
                moved
            }
        }
    }

    /// It is asked itself from now on. Returns whether it was not.
    pub(super) fn unroute(&self) -> bool {
        self.path.lock().take().is_some_and(|path| *path.source() != self.origin.node)
    }

    pub(super) fn leaves(&self, leaves: impl FnOnce(&mut Path) -> bool) -> bool {
        self.path.lock().as_mut().is_some_and(leaves)
    }

    pub(super) fn passes(&self, now: Tick) -> bool {
        let (confirmed, ended) = self.with(|follower| (follower.confirmed_by_source(), follower.ended()));
        !ended
            && self.leaves(|path| {
                if let Some(confirmed) = confirmed {
                    path.confirmed(confirmed, now);
                }
                path.passed(now)
            })
    }

    /// Whom the overlay means to be asked, if it is somebody else for too long. One that follows the origin by way of this
    /// node is not asked, for the two would hear of it from nobody.
    pub(super) fn missed(&self, now: Tick) -> Option<NodeId> {
        let missed = self.path.lock().as_ref()?.missed(now)?.clone();
        (!self.handed.lock().contains_key(&missed)).then_some(missed)
    }

    /// Asks that one again, if it can be reached. Returns whether it does.
    pub(super) fn returns(&self, now: Tick, reaches: impl Fn(&NodeId) -> bool) -> bool {
        let returns = self.missed(now).is_some_and(|missed| reaches(&missed));
        returns
            && self.leaves(|path| {
                path.returns(now);
                true
            })
    }

    /// A peer follows a lane by way of this node from now on.
    pub(super) fn is_handed_to(&self, peer: &NodeId) {
        *self.handed.lock().entry(peer.clone()).or_default() += 1;
    }

    /// And no more.
    pub(super) fn is_taken_from(&self, peer: &NodeId) {
        let mut handed = self.handed.lock();
        if let Some(lanes) = handed.get_mut(peer) {
            *lanes -= 1;
            if *lanes == 0 {
                handed.remove(peer);
            }
        }
    }

    /// Resolves when a lane may have more than there was when this was called.
    pub(super) fn news(&self, lane: LaneId) -> tokio::sync::futures::Notified<'_> {
        self.news[lane.index()].notified()
    }

    /// Tells those who follow a lane by way of this node.
    pub(super) fn tell(&self, lane: LaneId) {
        self.news[lane.index()].notify_waiters();
    }

    /// Something is to be passed up about it.
    pub(super) fn passes_up(self: &Arc<Self>) {
        let up = self.up.lock().upgrade();
        // Without a link nothing is lost: all is passed up again on the next one.
        if let Some(up) = up
            && !self.marked.swap(true, Ordering::AcqRel)
        {
            up.mark(self);
        }
    }
}
