//! A fence that the follower waits for, in worlds that are copied.

use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};

use tidings_proto::follower::{Attempt, Follower, MustFence, Rejected};
use tidings_proto::id::{LaneId, Sequence};

/// A reset, as it came.
type Reset = (LaneId, Attempt, Sequence);

/// A follower hands a fence out once. A copy has one of its own, from a copy of the follower as it was before.
pub(super) struct Owed {
    before: Follower,
    reset: Reset,
    fence: MustFence,
}

impl Owed {
    pub(super) fn of_reset(follower: &mut Follower, reset: Reset) -> Result<Self, Rejected> {
        let before = follower.clone();
        let fence = follower.on_reset(reset.0, reset.1, reset.2)?;
        Ok(Self { before, reset, fence })
    }

    pub(super) fn fenced(self, follower: &mut Follower) {
        follower.fenced(self.fence);
    }
}

impl Clone for Owed {
    fn clone(&self) -> Self {
        Self::of_reset(&mut self.before.clone(), self.reset).expect("it was accepted before")
    }
}

impl Hash for Owed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.reset.hash(state);
    }
}

impl Debug for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fence.fmt(f)
    }
}
