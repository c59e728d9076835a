//! Whether nodes that hold a key hold the same value: the part of the auditor that decides.
//!
//! A node sends a peer a page of its entries as hashes, of the key and of the encoded value, and is told which of them
//! the peer holds with another value. Such a difference is no error yet: a change may be under way to one of the two.
//! So each is looked at once more, by its whole key, and judged by this argument:
//!
//! - If both entries are those of the first look, they were there at that moment `T`, and still are.
//! - Whoever holds the newer value has it from a commit before `T`. A commit is told within the write horizon, by
//!   design: its event was appended before `T + write_horizon`.
//! - If each of the two has applied, before it looks again, everything that all members did up to then, both have
//!   applied that event, which has removed what began before it. What they hold now began later, so both have the newer
//!   value, and do not differ.
//!
//! If they differ all the same, no lag explains it: somebody changed the truth and told nobody, or it is not the same
//! for both. An entry that has changed between the looks shows that something was under way, and counts as lag.
//!
//! Nothing here asks anybody: time comes in as [`Tick`], and what is to be asked is returned.

mod pace;
mod suspects;
mod wire;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Tick;

pub use self::pace::{BYTES_PER_SECOND_MAX, Pace};
pub use self::suspects::{
    Again, Difference, GIVE_UP_AFTER, Judged, Outcome, RECHECK_PAUSE, Round, SUSPECTS_BYTES_MAX,
    SUSPECTS_MAX, Suspect, Suspects,
};
pub use self::wire::{
    Answer, DIGEST_VERSION, Differing, Digested, Incomparable, KEYS_BYTES_MAX, KEYS_MAX, PAGE_KEYS_MAX,
    Question, Subject, Unusable,
};

/// What a node holds under a key, and would answer a read with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Hash of the encoded value.
    pub value: u64,
    /// Tells this entry from any other of the key on the same node: the time at which its load began, by the node's own
    /// clock, which compares with no other.
    pub mark: u64,
    /// How long ago that was, in milliseconds.
    pub age_ms: u64,
}

impl Held {
    /// An entry whose load began then.
    #[must_use]
    pub fn new(value: u64, began: Tick, now: Tick) -> Self {
        Self { value, mark: began.0, age_ms: now.since(began).as_millis() as u64 }
    }

    /// How long ago its load began.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.age_ms)
    }

    /// Whether it is the same entry, rather than one of the same value.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (self.value, self.mark) == (other.value, other.mark)
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "audit_model_tests.rs"]
mod model_tests;
