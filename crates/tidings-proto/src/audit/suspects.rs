//! Differences that were seen once, until it is known what they mean.

use std::time::Duration;

use bytes::Bytes;

use super::{Held, KEYS_BYTES_MAX, KEYS_MAX};
use crate::hash::CacheId;
use crate::id::NodeId;
use crate::time::Tick;

/// Most differences that wait to be looked at again. More are not examined in this sweep, and counted as such: a cache
/// of which that many differ is one whose values are not meant to be equal.
pub const SUSPECTS_MAX: usize = 4_096;

/// Most bytes of their keys.
pub const SUSPECTS_BYTES_MAX: usize = 1 << 20;

/// How long after it can be judged a difference is looked at again, and then each time that it cannot: confirmations
/// come four times a second.
pub const RECHECK_PAUSE: Duration = Duration::from_secs(1);

/// How long after it could first be judged a difference is given up: a node that is in doubt for so long, or does not
/// answer, cannot tell.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// Two nodes hold a key with different values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The other node.
    pub peer: NodeId,
    /// In which cache.
    pub cache: CacheId,
    /// The encoded key.
    pub key: Bytes,
    /// What this node holds.
    pub own: Held,
    /// What the peer holds.
    pub theirs: Held,
}

/// A difference that was seen once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// What was seen.
    pub difference: Difference,
    /// When both had been looked at, by this node's clock.
    pub seen: Tick,
    due: Tick,
}

impl Suspect {
    /// Nobody can be asked about it any more.
    #[must_use]
    pub fn given_up(self) -> Judged {
        judged(self, Outcome::Unsettled)
    }
}

/// What is to be asked of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Whom.
    pub peer: NodeId,
    /// In which cache.
    pub cache: CacheId,
    /// At least one, and no more than a question holds.
    pub suspects: Vec<Suspect>,
}

/// What the second look at a difference has shown. For each of the two, what it had applied was read before the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// What this node holds now.
    pub own: Option<Held>,
    /// Everything that all members did up to then is applied here; [`Tick::NEVER`] if that cannot be said.
    pub own_applied: Tick,
    /// What the peer holds now.
    pub theirs: Option<Held>,
    /// Everything that all members did up to then, by this node's clock, is applied there.
    pub theirs_applied: Tick,
}

/// What a difference came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A change was under way: one of the two entries has gone since.
    Lag,
    /// No change that was told explains it.
    Inconsistent,
    /// One of the two was in doubt, or the peer did not answer: nobody knows.
    Unsettled,
}

/// A difference, and what it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What was seen.
    pub difference: Difference,
    /// When it was seen first.
    pub seen: Tick,
    /// What it came to.
    pub outcome: Outcome,
}

/// Differences that wait to be looked at again.
#[derive(Debug)]
pub struct Suspects {
    horizon: Duration,
    waiting: Vec<Suspect>,
    bytes: usize,
    unexamined: u64,
}

impl Suspects {
    /// A commit is told within the horizon.
    #[must_use]
    pub fn new(horizon: Duration) -> Self {
        Self { horizon, waiting: Vec::new(), bytes: 0, unexamined: 0 }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many there was no room for.
    #[must_use]
    pub fn unexamined(&self) -> u64 {
        self.unexamined
    }

    /// Takes note of a difference. `now` is when both entries had been looked at.
    pub fn note(&mut self, difference: Difference, now: Tick) {
        let due = now.after(self.horizon).after(RECHECK_PAUSE);
        self.put(Suspect { difference, seen: now, due });
    }

    fn put(&mut self, suspect: Suspect) {
        let bytes = suspect.difference.key.len();
        if self.waiting.len() < SUSPECTS_MAX && self.bytes + bytes <= SUSPECTS_BYTES_MAX {
            self.bytes += bytes;
            self.waiting.push(suspect);
        } else {
            self.unexamined += 1;
        }
    }

    /// When one has to be looked at again; `None` if none waits.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        self.waiting.iter().map(|suspect| suspect.due).min()
    }

    /// Those of one peer and cache that have to be looked at again now, as many as a question holds.
    pub fn due(&mut self, now: Tick) -> Option<Round> {
        let first = self.waiting.iter().find(|suspect| suspect.due <= now)?;
        let (peer, cache) = (first.difference.peer.clone(), first.difference.cache);
        let (mut suspects, mut bytes) = (Vec::new(), 0);
        self.waiting.retain(|suspect| {
            let Difference { peer: of, cache: within, key, .. } = &suspect.difference;
            let fits =
                suspects.len() < KEYS_MAX && (suspects.is_empty() || bytes + key.len() <= KEYS_BYTES_MAX);
            let taken = suspect.due <= now && *of == peer && *within == cache && fits;
            if taken {
                bytes += key.len();
                suspects.push(suspect.clone());
            }
            !taken
        });
        self.bytes -= bytes;
        Some(Round { peer, cache, suspects })
    }

    /// Judges a difference by the second look at it. `None`: it has to be looked at once more.
    pub fn judge(&mut self, suspect: Suspect, again: &Again, now: Tick) -> Option<Judged> {
        let Difference { own, theirs, .. } = &suspect.difference;
        let same = |then: &Held, held: Option<Held>| held.is_some_and(|held| held.is(then));
        if !same(own, again.own) || !same(theirs, again.theirs) {
            return Some(judged(suspect, Outcome::Lag));
        }
        let told_by = suspect.seen.after(self.horizon);
        if again.own_applied > told_by && again.theirs_applied > told_by {
            return Some(judged(suspect, Outcome::Inconsistent));
        }
        self.unanswered(suspect, now)
    }

    /// A difference could not be looked at, or not be judged. `None`: it is tried once more.
    pub fn unanswered(&mut self, mut suspect: Suspect, now: Tick) -> Option<Judged> {
        if now > suspect.seen.after(self.horizon).after(GIVE_UP_AFTER) {
            return Some(suspect.given_up());
        }
        suspect.due = now.after(RECHECK_PAUSE);
        self.put(suspect);
        None
    }
}

fn judged(suspect: Suspect, outcome: Outcome) -> Judged {
    Judged { difference: suspect.difference, seen: suspect.seen, outcome }
}
