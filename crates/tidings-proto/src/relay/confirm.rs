//! What a relay says of an origin, and up to when that confirms something.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::follower::{Follower, Rejected};
use crate::id::Sequence;
use crate::time::{Tick, rate_margin};

/// Questions to one relay that are remembered while unanswered, as many as a follower remembers probes: at the usual
/// 250 ms 16 s. An older one's answer confirms nothing.
const ASKED_MAX: usize = 64;

/// What a relay knows of one origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relayed {
    /// So many microseconds ago it had done nothing beyond these heads, one per lane, which the relay has applied.
    Confirmed {
        /// Last sequence applied in each lane.
        heads: Vec<Sequence>,
        /// Age of the relay's own confirmation. Never a time: clocks of two nodes do not compare.
        age_us: u64,
    },
    /// It said goodbye with these heads, one per lane, which the relay has applied.
    Ended(Vec<Sequence>),
}

impl Relayed {
    /// What to say of an origin to who has asked; nothing while it was never confirmed the way that its changes come.
    /// `now` must be read after the question was, and the version of the member set that goes before the answer after
    /// this.
    #[must_use]
    pub fn of(follower: &Follower, now: Tick) -> Option<Self> {
        let heads = follower.applied_heads();
        if follower.ended() {
            return Some(Self::Ended(heads));
        }
        let age_us = in_micros(now.since(follower.confirmed_by_source()?));
        Some(Self::Confirmed { heads, age_us })
    }

    /// Tells the origin's follower, which asked at `asked`.
    ///
    /// # Errors
    /// [`Rejected::Violation`] if the lanes do not match; nothing came of it.
    pub fn tell(self, follower: &mut Follower, asked: Tick) -> Result<(), Rejected> {
        match self {
            Self::Confirmed { heads, age_us } => {
                let age = age_us.checked_mul(1_000);
                match age.and_then(|age| asked.0.checked_sub(age)) {
                    Some(as_of) => follower.on_relayed(heads, Tick(as_of)),
                    // Before the beginning of this clock: the first tick would be later than what is confirmed.
                    None => Ok(()),
                }
            }
            Self::Ended(heads) => follower.on_goodbye(heads),
        }
    }
}

/// Microseconds, rounded up, with what another clock may have counted more.
fn in_micros(age: Duration) -> u64 {
    let micros = age.saturating_add(rate_margin(age)).as_nanos().div_ceil(1_000);
    u64::try_from(micros).unwrap_or(u64::MAX)
}

/// What one relay was asked over one link, and of which version its member set is known here.
#[derive(Debug)]
pub struct Asked {
    open: VecDeque<(u64, Tick)>,
    newest: u64,
    members: u64,
}

impl Asked {
    /// Nothing was asked; of this version was the member set of the relay's `Hello`, which was taken note of.
    #[must_use]
    pub fn new(members: u64) -> Self {
        Self { open: VecDeque::new(), newest: 0, members }
    }

    /// A probe of this number is sent now: numbers rise.
    pub fn sent(&mut self, number: u64, now: Tick) {
        if self.open.len() == ASKED_MAX {
            self.open.pop_front();
        }
        self.open.push_back((number, now));
        self.newest = number;
    }

    /// The relay's member set of this version was taken note of: call after everybody whom it names counts.
    pub fn on_members(&mut self, version: u64) {
        self.members = self.members.max(version);
    }

    /// The relay answers a probe, and names the version of its member set, which goes before on the same stream.
    /// Returns when the probe was sent: tell that to whoever the answer is about.
    ///
    /// # Errors
    /// [`Rejected::Violation`] if the probe was never sent, or the set has not come. An answer to a probe that is
    /// answered or forgotten already is [`Rejected::Stale`].
    pub fn answered(&mut self, echo: u64, members: u64) -> Result<Tick, Rejected> {
        if echo > self.newest {
            return Err(Rejected::Violation("answer to a probe that was never sent"));
        }
        if members > self.members {
            return Err(Rejected::Violation("answer before the member set that it names"));
        }
        let sent = self.open.iter().find(|(number, _)| *number == echo).map(|(_, sent)| *sent);
        let sent = sent.ok_or(Rejected::Stale)?;
        self.open.retain(|(number, _)| *number > echo);
        Ok(sent)
    }
}

#[cfg(test)]
#[path = "confirm_tests.rs"]
mod tests;
