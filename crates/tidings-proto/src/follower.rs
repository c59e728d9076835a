//! The receiving state machine for one origin: where each lane stands, and up to when everything is confirmed.
//!
//! The order *follow, then the answer, then fence, then go on* is part of the protocol: on a reset the caller fences
//! and only then reports [`Follower::fenced`]; until then nothing of the origin confirms.
//!
//! Confirmation is a lease that starts when a probe was **sent**. A heartbeat that was buffered, delayed or
//! retransmitted confirms no more than what was known to the origin when it read that probe. It confirms only once the
//! origin's member set of the version that it names, or a later one, has been taken note of here: nobody is fresh by an
//! origin that knows of a writer it does not.

use std::collections::VecDeque;

use crate::frame::{Follow, Heartbeat};
use crate::id::{FIRST, LaneId, Lanes, Origin, Sequence};
use crate::time::Tick;

/// Probes remembered while unanswered, those of all links to the origin together; older ones confirm nothing. At the
/// usual 250 ms, 16 s of one link's: far beyond any idle time-out of a connection.
const PROBES_MAX: usize = 64;

/// One request to follow a lane. Frames that answer an older request are stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(u64);

/// A frame that the follower does not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It belongs to an older follow request: another connection carries the lane now. Not an error of the peer's.
    #[error("the lane is followed elsewhere")]
    Stale,
    /// A position is missing before it. Follow again.
    #[error("gap: expected {expected}, got {got}")]
    Gap {
        /// The first sequence that is missing.
        expected: Sequence,
        /// What came instead.
        got: Sequence,
    },
    /// It does not belong here in any order of events.
    #[error("protocol violation: {0}")]
    Violation(&'static str),
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Apply from this sequence on; what is before it was applied already.
    pub from: Sequence,
    /// How many records were seen before.
    pub duplicates: u64,
}

/// What came of a batch that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The sequence after the last record applied.
    pub next: Sequence,
    /// Changes made by users that its records stand for, each counted by one record of its
    /// ([`is_counted`](crate::record::Record::is_counted)).
    pub changes: u64,
}

/// The lane must be fenced; then hand this to [`Follower::fenced`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the lane stands still until it is fenced"]
pub struct MustFence {
    /// Which lane.
    pub lane: LaneId,
    attempt: Attempt,
    from: Sequence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LaneState {
    /// Not followed.
    Idle,
    /// Asked, not answered.
    Asked,
    /// The answer was a reset that is not yet fenced.
    Fencing,
    /// Events may come.
    Open,
}

#[derive(Clone, Debug, Hash)]
struct Lane {
    attempt: Attempt,
    expected: Sequence,
    /// What comes after everything that was ever let through to be applied or fenced, whether or not that is done.
    begun: Sequence,
    state: LaneState,
}

#[derive(Clone, Debug, Hash)]
struct Pending {
    heads: Vec<Sequence>,
    /// Version of the origin's member set.
    members: u64,
    probed: Tick,
    /// The origin itself has said so, not a relay.
    direct: bool,
}

/// Follows one life of one node.
#[derive(Clone, Debug, Hash)]
pub struct Follower {
    origin: Origin,
    lanes: Vec<Lane>,
    probe: u64,
    probes: VecDeque<(u64, Tick)>,
    /// The oldest heartbeat that is not yet applied, and the newest: were only the newest kept, a follower that
    /// always lags a little would never confirm anything.
    oldest: Option<Pending>,
    newest: Option<Pending>,
    confirmed: Option<Tick>,
    /// The newest confirmation that the origin has answered itself.
    answered: Option<Tick>,
    /// The newest one by whom it is asked of.
    by_source: Option<Tick>,
    /// A relay is asked for it.
    relayed: bool,
    goodbye: Option<Vec<Sequence>>,
    /// Version of the newest member set of the origin's that was taken note of.
    members: u64,
}

impl Follower {
    /// A follower that has seen nothing yet.
    #[must_use]
    pub fn new(origin: Origin, lanes: Lanes) -> Self {
        let lane = |_| Lane { attempt: Attempt(0), expected: FIRST, begun: FIRST, state: LaneState::Idle };
        Self {
            origin,
            lanes: lanes.ids().map(lane).collect(),
            probe: 0,
            probes: VecDeque::new(),
            oldest: None,
            newest: None,
            confirmed: None,
            answered: None,
            by_source: None,
            relayed: false,
            goodbye: None,
            members: 0,
        }
    }

    /// Whom it follows.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How many lanes it follows.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Last sequence applied in a lane; 0 for none.
    #[must_use]
    pub fn applied_in(&self, lane: LaneId) -> Sequence {
        self.lanes[lane.index()].expected - 1
    }

    /// Last sequence applied in each lane.
    #[must_use]
    pub fn applied_heads(&self) -> Vec<Sequence> {
        self.lanes.iter().map(|lane| lane.expected - 1).collect()
    }

    /// Last sequence of a lane that may be applied, or fenced: what is being applied is here, and not yet in
    /// [`Follower::applied_in`]. 0 for none.
    #[must_use]
    pub fn begun_in(&self, lane: LaneId) -> Sequence {
        let lane = &self.lanes[lane.index()];
        lane.begun.max(lane.expected) - 1
    }

    /// Everything the origin did up to then is applied. `None` until something was confirmed.
    #[must_use]
    pub fn confirmed(&self) -> Option<Tick> {
        self.confirmed
    }

    /// As [`Follower::confirmed`], by what the origin itself has answered: it knew of this node then.
    #[must_use]
    pub fn answered(&self) -> Option<Tick> {
        self.answered
    }

    /// As [`Follower::confirmed`], by what came the way that changes come: on a link beside it the origin may answer while
    /// those who are asked for its changes ask each other in a circle.
    #[must_use]
    pub fn confirmed_by_source(&self) -> Option<Tick> {
        self.by_source
    }

    /// How many events the last heartbeat knew of that are not applied.
    #[must_use]
    pub fn lag(&self) -> u64 {
        let Some(pending) = self.newest.as_ref().or(self.oldest.as_ref()) else { return 0 };
        let behind = |(lane, head): (&Lane, &Sequence)| head.saturating_sub(lane.expected - 1);
        self.lanes.iter().zip(&pending.heads).map(behind).fold(0, u64::saturating_add)
    }

    /// Whether the origin said goodbye and everything it did is applied.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.goodbye.as_ref().is_some_and(|heads| self.has_applied(heads))
    }

    /// Asks for a lane anew, from where it stands. Whatever answers older requests is stale from now on.
    pub fn follow(&mut self, lane: LaneId) -> (Attempt, Follow) {
        let state = &mut self.lanes[lane.index()];
        state.attempt.0 += 1;
        state.state = LaneState::Asked;
        (state.attempt, Follow { incarnation: self.origin.incarnation, lane, from: state.expected })
    }

    /// As [`Follower::follow`], but gives up what lies between: the answer will be a reset to the origin's head. For a
    /// position that was handed out twice and could not be read either time.
    pub fn follow_from_head(&mut self, lane: LaneId) -> (Attempt, Follow) {
        let (attempt, follow) = self.follow(lane);
        (attempt, Follow { from: Sequence::MAX, ..follow })
    }

    fn current(&mut self, lane: LaneId, attempt: Attempt) -> Result<&mut Lane, Rejected> {
        let lane = self.lanes.get_mut(lane.index()).ok_or(Rejected::Violation("no such lane"))?;
        if lane.attempt == attempt { Ok(lane) } else { Err(Rejected::Stale) }
    }

    /// The origin holds the position.
    ///
    /// # Errors
    /// [`Rejected::Stale`]; [`Rejected::Violation`] if it was not asked, or names another position.
    pub fn on_resume(&mut self, lane: LaneId, attempt: Attempt, from: Sequence) -> Result<(), Rejected> {
        let lane = self.current(lane, attempt)?;
        if lane.state != LaneState::Asked || from != lane.expected {
            return Err(Rejected::Violation("resume"));
        }
        lane.state = LaneState::Open;
        Ok(())
    }

    /// The origin does not hold the position (any more).
    ///
    /// # Errors
    /// [`Rejected::Stale`]; [`Rejected::Violation`] if it goes backwards or comes while the lane is being fenced.
    pub fn on_reset(
        &mut self,
        lane_id: LaneId,
        attempt: Attempt,
        from: Sequence,
    ) -> Result<MustFence, Rejected> {
        let lane = self.current(lane_id, attempt)?;
        if !matches!(lane.state, LaneState::Asked | LaneState::Open) || from < lane.expected {
            return Err(Rejected::Violation("reset"));
        }
        lane.state = LaneState::Fencing;
        lane.begun = lane.begun.max(from);
        Ok(MustFence { lane: lane_id, attempt, from })
    }

    /// The lane's slots are fenced in every cache: events continue.
    pub fn fenced(&mut self, fence: MustFence) {
        let lane = &mut self.lanes[fence.lane.index()];
        // A newer request reads from the old position and will be reset again: this answer is moot.
        if lane.attempt == fence.attempt && lane.state == LaneState::Fencing {
            lane.expected = fence.from;
            lane.state = LaneState::Open;
            self.confirm();
        }
    }

    /// Judges a batch, before any of it is applied.
    ///
    /// # Errors
    /// [`Rejected`]; after a gap the lane must be followed anew.
    pub fn on_events(
        &mut self,
        lane: LaneId,
        attempt: Attempt,
        first: Sequence,
        count: u32,
    ) -> Result<Accept, Rejected> {
        let lane = self.current(lane, attempt)?;
        if lane.state != LaneState::Open {
            return Err(Rejected::Violation("events before an answer"));
        }
        if first > lane.expected {
            lane.state = LaneState::Idle;
            return Err(Rejected::Gap { expected: lane.expected, got: first });
        }
        lane.begun = lane.begun.max(first.saturating_add(u64::from(count)));
        Ok(Accept { from: lane.expected, duplicates: (lane.expected - first).min(u64::from(count)) })
    }

    /// Everything before `next` of the lane is applied. Reports of a stale request are ignored.
    pub fn applied(&mut self, lane: LaneId, attempt: Attempt, next: Sequence) {
        if let Ok(lane) = self.current(lane, attempt)
            && lane.state == LaneState::Open
            && next > lane.expected
        {
            lane.expected = next;
            self.confirm();
        }
    }

    /// The number of the probe to be sent now.
    pub fn probe(&mut self, now: Tick) -> u64 {
        self.probe += 1;
        if self.probes.len() == PROBES_MAX {
            self.probes.pop_front();
        }
        self.probes.push_back((self.probe, now));
        self.probe
    }

    /// The origin answered. Returns when the probe that it answers was sent.
    ///
    /// # Errors
    /// [`Rejected::Violation`] if the probe was never sent or the lanes do not match. An answer to a probe that is
    /// answered or forgotten already is [`Rejected::Stale`].
    pub fn on_heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<Tick, Rejected> {
        if heartbeat.heads.len() != self.lanes.len() {
            return Err(Rejected::Violation("number of lanes"));
        }
        if heartbeat.echo > self.probe {
            return Err(Rejected::Violation("echo of a probe that was never sent"));
        }
        let Some(&(_, probed)) = self.probes.iter().find(|(number, _)| *number == heartbeat.echo) else {
            return Err(Rejected::Stale);
        };
        self.probes.retain(|(number, _)| *number > heartbeat.echo);
        self.pend(Pending {
            heads: heartbeat.heads.clone(),
            members: heartbeat.members,
            probed,
            direct: true,
        });
        Ok(probed)
    }

    fn pend(&mut self, pending: Pending) {
        if self.oldest.is_none() {
            self.oldest = Some(pending)
        } else {
            self.newest = Some(pending)
        }
        self.confirm();
    }

    /// A relay answered: nothing beyond these heads was done by the origin up to `as_of`, a time of this node's clock.
    /// The relay's member set has been taken note of, which holds what the origin's did
    /// ([`Asked`](crate::relay::Asked)).
    ///
    /// # Errors
    /// [`Rejected::Violation`] if the lanes do not match.
    pub fn on_relayed(&mut self, heads: Vec<Sequence>, as_of: Tick) -> Result<(), Rejected> {
        if heads.len() != self.lanes.len() {
            return Err(Rejected::Violation("number of lanes"));
        }
        self.pend(Pending { heads, members: 0, probed: as_of, direct: false });
        Ok(())
    }

    /// The origin is followed by way of another node from now on, a relay or itself. What was heard before and is not
    /// applied confirms nothing more: it may never be, if it was heard of one who has gone, and what comes now must not
    /// wait for it.
    pub fn redirected(&mut self, relayed: bool) {
        self.relayed = relayed;
        self.oldest = None;
        self.newest = None;
    }

    /// The origin's member set of this version was taken note of: call after everybody whom it names counts.
    pub fn on_members(&mut self, version: u64) {
        self.members = self.members.max(version);
        self.confirm();
    }

    /// The origin has sealed its log with these heads.
    ///
    /// # Errors
    /// [`Rejected::Violation`] if the lanes do not match, or more was applied than it says that there is: whoever says so
    /// does not know everything.
    pub fn on_goodbye(&mut self, heads: Vec<Sequence>) -> Result<(), Rejected> {
        if heads.len() != self.lanes.len() {
            return Err(Rejected::Violation("number of lanes"));
        }
        if self.lanes.iter().zip(&heads).any(|(lane, head)| lane.expected > head.saturating_add(1)) {
            return Err(Rejected::Violation("goodbye before what it did"));
        }
        self.goodbye = Some(heads);
        Ok(())
    }

    fn has_applied(&self, heads: &[Sequence]) -> bool {
        let applied =
            |(lane, head): (&Lane, &Sequence)| lane.state != LaneState::Fencing && lane.expected > *head;
        self.lanes.iter().zip(heads).all(applied)
    }

    fn confirm(&mut self) {
        while let Some(oldest) = &self.oldest
            && oldest.members <= self.members
            && self.has_applied(&oldest.heads)
        {
            self.confirmed = self.confirmed.max(Some(oldest.probed));
            if oldest.direct {
                self.answered = self.answered.max(Some(oldest.probed));
            }
            if oldest.direct != self.relayed {
                self.by_source = self.by_source.max(Some(oldest.probed));
            }
            self.oldest = self.newest.take();
        }
    }
}

#[cfg(test)]
#[path = "follower_tests.rs"]
mod tests;
