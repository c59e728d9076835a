//! A small cluster in one thread: the real log, follower, freshness and frames over a virtual network, virtual
//! clocks and a system of record, driven by one seed. Every hit is judged by an oracle that knows all writes.
//!
//! What is modelled of a node beside the machines under test is as little as they need: it dials, follows, probes,
//! fences, loads and removes after writing. Who is lost is decided by who really hears whom; gossip is not modelled.

mod cache;
mod faults;
mod following;
mod net;
mod process;
mod rng;
mod serving;
mod truth;
mod workload;
mod world;

use std::time::Duration;

pub(crate) use world::{Failure, Stats, World};

/// Milliseconds of the simulation, the same for everyone. Nodes see them shifted by an offset of their own.
pub(crate) type Ms = u64;

/// Bound of unmarked hits.
pub(crate) const MAX_STALENESS: Ms = 400;
/// Cuts and pauses are shorter, or else the guarantees do not hold until they are over.
const LOST_GRACE: Ms = 4_000;
/// No write takes longer to commit.
const WRITE_HORIZON: Ms = 400;
/// How long there are writes and faults.
const ACTIVE: Ms = 16_000;
/// How long it then takes at most until nobody is in doubt: a grace, a floor, and some time to be heard.
const QUIET: Ms = LOST_GRACE + WRITE_HORIZON + MAX_STALENESS + 1_500;
/// Between two probes.
const PROBE_EVERY: Ms = 50;
/// A link without an echo for this long is dialled again.
const SILENT_AFTER: Ms = 150;
/// Whom nobody has heard for this long is lost.
const SUSPECT_AFTER: Ms = 300;
/// Cached keys; few, so that writers and loads meet.
const KEYS: usize = 40;

/// A mistake of the driver, to prove that the oracle finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A reset continues without a fence.
    NoFence,
    /// The position is taken first, the fence comes a little later.
    ExpectedBeforeFence,
    /// A heartbeat confirms the time at which it was received.
    ConfirmedAtReceipt,
    /// An origin that ended without a goodbye leaves no floor.
    NoFloor,
    /// The heads of a heartbeat are older than the probe that it answers.
    HeadsBeforeProbe,
    /// Who was given up, and is heard again before its floor is behind, is let go of nevertheless.
    EndedForGood,
    /// A heartbeat confirms although the member set that it names has not come.
    UnknownMembers,
    /// An invalidation does not end loads that are under way.
    LoadSurvives,
}

fn ms(ms: Ms) -> Duration {
    Duration::from_millis(ms)
}
