//! What happened while following other lives.

use std::sync::atomic::{AtomicU64, Ordering};

use tidings_proto::id::Origin;
use tidings_transport::session::{FollowCounts, Followed};

/// What happened so far while following one life of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    /// Whom.
    pub origin: Origin,
    /// Changes made by users there that were applied here, one each whatever the number of keys or lanes.
    pub applied: u64,
    /// Records that came again, and were dropped.
    pub duplicates: u64,
    /// Records that came too early, after which the rest was asked for again.
    pub gaps: u64,
    /// Lanes whose missing records were no longer to be had, and whose slots were fenced.
    pub resets: u64,
    /// Lanes that were followed on where they had been left, on another link.
    pub resumed: u64,
    /// Times that it broke the protocol, and was disconnected.
    pub rejected: u64,
}

impl Following {
    pub(super) fn none(origin: Origin) -> Self {
        Self { origin, applied: 0, duplicates: 0, gaps: 0, resets: 0, resumed: 0, rejected: 0 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.applied += other.applied;
        self.duplicates += other.duplicates;
        self.gaps += other.gaps;
        self.resets += other.resets;
        self.resumed += other.resumed;
        self.rejected += other.rejected;
    }

    pub(super) fn of(followed: &Followed) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let FollowCounts { applied, duplicates, gaps, resets, resumed, rejected } = followed.counts();
        Self {
            origin: (**followed.origin()).clone(),
            applied: get(applied),
            duplicates: get(duplicates),
            gaps: get(gaps),
            resets: get(resets),
            resumed: get(resumed),
            rejected: get(rejected),
        }
    }
}
