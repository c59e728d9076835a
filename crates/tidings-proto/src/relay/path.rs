//! Which of several sources an origin is followed from.

use std::time::Duration;

use crate::id::{FIRST, NodeId, Sequence};
use crate::time::Tick;

/// How long an origin's next neighbours wait for its confirmation to move on before they ask another source: four
/// probes at the usual interval.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How much longer each further hop waits, so that of all who are behind a broken relay its next neighbours alone look
/// for another: within it they have confirmed again, and been asked. Three hops wait 2 s, less than the usual bound.
pub const PATIENCE_PER_HOP: Duration = Duration::from_millis(500);

/// How long another source is asked before the first one, which the overlay means, is asked again: longer than any
/// patience, so that all who were behind it have found their ways by then.
pub const RETURN_AFTER: Duration = Duration::from_secs(5);

/// The most that this is. It doubles when the first source is left again sooner than it was returned to, for whoever
/// returns to one that fails hears nothing new for its patience.
pub const RETURN_AFTER_MAX: Duration = Duration::from_secs(160);

/// What to do where a source does not hold what is missing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// Ask the source that is now the path's.
    AskElsewhere,
    /// Nobody that can be asked holds it, nor can the origin be: fence the lane and go on from where the relay can.
    Reset,
}

/// Of one follower of one origin: whom it asks, and whom next. What is asked of a source that was left is stale; after
/// every change the caller tells the follower that it was
/// [`redirected`](crate::follower::Follower::redirected) and follows all lanes anew.
#[derive(Debug)]
pub struct Path {
    /// In order, the origin among them.
    sources: Vec<NodeId>,
    at: usize,
    hops: u32,
    /// When it was chosen, or the confirmation last moved on.
    since: Tick,
    confirmed: Tick,
    /// Sources left since the confirmation last moved on.
    left: usize,
    /// When the first source was last left.
    away: Tick,
    /// How long it is not asked again from then on.
    pause: Duration,
    /// When it was last returned to, if it is asked since.
    returned: Option<Tick>,
}

impl Path {
    /// Asks the first of these sources, which are not empty: [`Overlay::sources`](super::Overlay::sources). `hops` is
    /// how far the origin is by way of it.
    #[must_use]
    pub fn new(sources: Vec<NodeId>, hops: usize, now: Tick) -> Self {
        let hops = u32::try_from(hops).unwrap_or(u32::MAX);
        Self {
            sources,
            at: 0,
            hops,
            since: now,
            confirmed: Tick::NEVER,
            left: 0,
            away: Tick::NEVER,
            pause: RETURN_AFTER,
            returned: None,
        }
    }

    /// Whom to ask now.
    #[must_use]
    pub fn source(&self) -> &NodeId {
        &self.sources[self.at]
    }

    /// The origin is confirmed as of `confirmed`.
    pub fn confirmed(&mut self, confirmed: Tick, now: Tick) {
        if confirmed > self.confirmed {
            self.confirmed = confirmed;
            self.since = now;
            self.left = 0;
        }
    }

    /// Lets time pass. Returns whether another source is to be asked: the present one did not confirm anything new for
    /// too long.
    pub fn passed(&mut self, now: Tick) -> bool {
        let further = self.hops.saturating_sub(1);
        let patience = PATIENCE + PATIENCE_PER_HOP.saturating_mul(further);
        now.since(self.since) >= patience && self.leave(now)
    }

    /// The link to the present source has ended, or it refuses. Returns whether there is another one to be asked.
    pub fn broken(&mut self, now: Tick) -> bool {
        self.leave(now)
    }

    /// The present source does not hold what follows `from`, the first sequence of a lane that is not applied here. A
    /// newcomer is reset at once, for nothing that it holds could be kept by asking further.
    pub fn lacking(&mut self, from: Sequence, now: Tick) -> Lacking {
        if from == FIRST || self.left >= self.sources.len() {
            return Lacking::Reset;
        }
        match self.leave(now) {
            true => Lacking::AskElsewhere,
            false => Lacking::Reset,
        }
    }

    /// The first source, if another is asked for so long that it should be asked again. Once it can be reached the path
    /// [`returns`](Self::returns): until then nothing is lost.
    #[must_use]
    pub fn missed(&self, now: Tick) -> Option<&NodeId> {
        (self.at > 0 && now.since(self.away) >= self.pause).then(|| &self.sources[0])
    }

    /// The first source is asked again.
    pub fn returns(&mut self, now: Tick) {
        self.at = 0;
        self.since = now;
        self.returned = Some(now);
    }

    fn leave(&mut self, now: Tick) -> bool {
        if self.at == 0 {
            let soon = self.returned.take().is_some_and(|returned| now.since(returned) < self.pause);
            self.pause = if soon { RETURN_AFTER_MAX.min(self.pause * 2) } else { RETURN_AFTER };
            self.away = now;
        }
        self.left += 1;
        self.since = now;
        self.at = (self.at + 1) % self.sources.len();
        self.sources.len() > 1
    }

    /// The view has changed, and with it the sources. Who was left for the present one is not asked again unless all
    /// are. Returns whether another source is to be asked.
    pub fn rerouted(&mut self, sources: Vec<NodeId>, hops: usize, now: Tick) -> bool {
        let before = self.source().clone();
        let left = &self.sources[..self.at];
        self.at = sources.iter().position(|source| !left.contains(source)).unwrap_or(0);
        self.sources = sources;
        self.hops = u32::try_from(hops).unwrap_or(u32::MAX);
        let moved = *self.source() != before;
        if moved {
            (self.since, self.returned) = (now, None);
        }
        moved
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
