//! What the followers of an origin have applied, as a relay passes it up.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::frame::MEMBERS_MAX;
use crate::id::{LaneId, Origin, Sequence};

/// Lanes of followers of origins that are remembered, some 100 bytes each: about as many as hops lie between a node and
/// all others times four lanes, of as many members as can be, with room.
pub const ACKS_MAX: usize = 16 * MEMBERS_MAX;

/// One follower has applied one lane of an origin's log up to here. It is the follower's own word, whoever passes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// Who.
    pub follower: Origin,
    /// In which lane.
    pub lane: LaneId,
    /// The last sequence that it has applied.
    pub applied: Sequence,
}

/// More than [`ACKS_MAX`] would be remembered: what a newcomer says is not passed on. The origin does not learn that its
/// changes are applied there, and receipts name the newcomer as missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {ACKS_MAX} lanes of followers behind one relay")]
pub struct TooMany;

#[derive(Debug, Default)]
struct Said {
    applied: BTreeMap<(Origin, LaneId), Sequence>,
    /// Not passed up yet.
    news: BTreeSet<(Origin, LaneId)>,
}

/// What is known of the followers that are behind this node. Acknowledgements are cumulative, so those that come while an
/// earlier one waits cost nothing, and those that come twice, by two paths, mean nothing.
#[derive(Debug, Default)]
pub struct Acks {
    /// By the origin whose log it is.
    said: BTreeMap<Origin, Said>,
    count: usize,
}

impl Acks {
    /// Takes note of an acknowledgement of an origin's log, one's own or one that was passed up.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn note(&mut self, origin: &Origin, acked: Acked) -> Result<(), TooMany> {
        let Acked { follower, lane, applied } = acked;
        let key = (follower, lane);
        let known = self.said.get(origin).and_then(|said| said.applied.get(&key));
        if known >= Some(&applied) {
            return Ok(());
        }
        if known.is_none() {
            if self.count == ACKS_MAX {
                return Err(TooMany);
            }
            self.count += 1;
        }
        let said = self.said.entry(origin.clone()).or_default();
        said.applied.insert(key.clone(), applied);
        said.news.insert(key);
        Ok(())
    }

    /// Takes at most so many about an origin's log that have changed, to be passed up. The node's member set of the
    /// version that it has *after* this goes before them on the same stream: who counts a follower as aware of it knows
    /// whom that follower names.
    pub fn take(&mut self, origin: &Origin, most: usize) -> Vec<Acked> {
        let mut taken = Vec::new();
        let Some(Said { applied, news }) = self.said.get_mut(origin) else { return taken };
        while taken.len() < most
            && let Some(key) = news.pop_first()
        {
            let applied = applied.get(&key).copied();
            taken.extend(applied.map(|applied| Acked { follower: key.0, lane: key.1, applied }));
        }
        taken
    }

    /// Another source is asked for an origin's changes, which may know nothing: everything is passed up again.
    pub fn redirected(&mut self, origin: &Origin) {
        if let Some(Said { applied, news }) = self.said.get_mut(origin) {
            news.extend(applied.keys().cloned());
        }
    }

    /// Whether so much is remembered that lives which have ended should be forgotten.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.count > ACKS_MAX / 2
    }

    /// A life has ended: nobody follows it, and it follows nobody.
    pub fn forget(&mut self, life: &Origin) {
        self.retain(|other| other != life);
    }

    /// All lives but these have ended.
    pub fn retain(&mut self, there: impl Fn(&Origin) -> bool) {
        self.said.retain(|origin, _| there(origin));
        for Said { applied, news } in self.said.values_mut() {
            applied.retain(|(follower, _), _| there(follower));
            news.retain(|(follower, _)| there(follower));
        }
        self.count = self.said.values().map(|said| said.applied.len()).sum();
    }
}

#[cfg(test)]
#[path = "acks_tests.rs"]
mod tests;
