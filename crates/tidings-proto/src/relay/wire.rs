//! What nodes say to each other about others' logs.

use serde::{Deserialize, Serialize};

use super::{Acked, Relayed};
use crate::id::{LaneId, Origin, Sequence};

/// Acknowledgements that one frame holds at most: some 90 KB with the longest names.
pub const ACKED_MAX: usize = 1_024;

/// A request for one lane of another node's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowOf {
    /// What stands for that node's life in [`Confirmed`]. The follower gives it, and gives each on one connection once.
    pub number: u32,
    /// Whose log.
    pub origin: Origin,
    /// Which lane.
    pub lane: LaneId,
    /// The first sequence that the follower has not applied.
    pub from: Sequence,
}

/// What a relay answers to a probe about the origins that the asker follows by way of it. What it leaves out confirms
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The probe.
    pub echo: u64,
    /// Version of the relay's member set, read after its followers were. That set went before on the same stream.
    pub members: u64,
    /// By the numbers of [`FollowOf`], at most [`MEMBERS_MAX`](crate::frame::MEMBERS_MAX).
    pub origins: Vec<(u32, Relayed)>,
}

/// What followers have applied of one log, the sender itself among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedUp {
    /// Version of the sender's member set, which went before on the same stream: it names every follower of the list.
    pub members: u64,
    /// Whose log.
    pub origin: Origin,
    /// At most [`ACKED_MAX`].
    pub acked: Vec<Acked>,
}
