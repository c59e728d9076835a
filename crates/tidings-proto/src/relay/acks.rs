//! What the followers of an origin have applied, as a relay passes it up.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::frame::MEMBERS_MAX;
use crate::id::{LaneId, Lanes, Origin, Sequence};

/// One follower has applied one lane up to here. It is the follower's own word, whoever passes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// Who.
    pub follower: Origin,
    /// In which lane.
    pub lane: LaneId,
    /// The last sequence that it has applied.
    pub applied: Sequence,
}

/// More followers of one origin than members can be: what the newest says is not passed on. Its changes are then not
/// known to be applied there, and receipts name it as missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MEMBERS_MAX} followers of one origin")]
pub struct TooMany;

/// What is known of the followers of one origin that are behind this node. Acknowledgements are cumulative, so those that
/// come while an earlier one waits cost nothing, and those that come twice, by two paths, mean nothing.
#[derive(Debug)]
pub struct Acks {
    lanes: Lanes,
    /// At most [`MEMBERS_MAX`].
    applied: BTreeMap<Origin, Box<[Sequence]>>,
    /// Not passed up yet.
    news: BTreeSet<(Origin, LaneId)>,
}

impl Acks {
    /// Nobody has said anything.
    #[must_use]
    pub fn new(lanes: Lanes) -> Self {
        Self { lanes, applied: BTreeMap::new(), news: BTreeSet::new() }
    }

    /// Takes note of an acknowledgement, one's own or one that was passed up.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn note(&mut self, acked: Acked) -> Result<(), TooMany> {
        let Acked { follower, lane, applied } = acked;
        if !self.applied.contains_key(&follower) && self.applied.len() == MEMBERS_MAX {
            return Err(TooMany);
        }
        let none = || vec![0; usize::from(self.lanes.count())].into();
        let lanes = self.applied.entry(follower.clone()).or_insert_with(none);
        if let Some(known) = lanes.get_mut(lane.index())
            && *known < applied
        {
            *known = applied;
            self.news.insert((follower, lane));
        }
        Ok(())
    }

    /// Takes at most so many that have changed, to be passed up. The node's member set of the version that it has *after*
    /// this goes before them on the same stream: who counts a follower as aware of it knows whom that follower names.
    pub fn take(&mut self, most: usize) -> Vec<Acked> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((follower, lane)) = self.news.pop_first()
        {
            let applied = self.applied.get(&follower).map(|lanes| lanes[lane.index()]);
            taken.extend(applied.map(|applied| Acked { follower, lane, applied }));
        }
        taken
    }

    /// Another source is asked for the origin's changes, which may know nothing: everything is passed up again.
    pub fn redirected(&mut self) {
        for (follower, lanes) in &self.applied {
            let said = self.lanes.ids().filter(|lane| lanes[lane.index()] > 0);
            self.news.extend(said.map(|lane| (follower.clone(), lane)));
        }
    }

    /// A life has ended.
    pub fn forget(&mut self, follower: &Origin) {
        self.applied.remove(follower);
        self.news.retain(|(of, _)| of != follower);
    }
}

#[cfg(test)]
#[path = "acks_tests.rs"]
mod tests;
