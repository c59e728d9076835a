//! The vocabulary, the wire format and the state machines of tidings.
//!
//! Nothing here does I/O, reads a clock or draws a random number: time comes in as [`time::Tick`], so that every
//! decision can be tested synchronously and simulated.
//!
//! | module | what it decides |
//! |---|---|
//! | [`id`] | who made a change, and where it stands: node, incarnation, origin, slot, lane, sequence |
//! | [`event`] | what can happen to a cache |
//! | [`record`], [`frame`] | how that looks on the wire; [`codec`] is the only place that knows bincode |
//! | [`log`] | what a node did, for as long as it is remembered: append, read, resume or reset, seal |
//! | [`follower`] | what a peer has applied of it, and up to when that is known to be everything |
//! | [`freshness`] | from when on a cached entry may no longer be served as fresh |
//! | [`belonging`] | whether a node has to take itself for expelled |
//! | [`ask`] | what one member asks another, and what it gets for an answer |
//! | [`lease`] | who loads a key for the cluster, and whether what that brings is recent enough |
//! | [`relay`] | by whose hands changes go in a large cluster, and what is known by them |
//! | [`receipt`] | who has applied a change, who has not and why |
//! | [`audit`] | whether what two nodes hold under one key differs by lag or for good |
//! | [`coverage`] | how soon what a node writes is applied by every live member |
//! | [`replicate`] | which of several writes of a key counts where values travel, and how nodes compare what they hold |
//! | [`offset`] | how far a peer's wall clock is from this node's |
//! | [`histogram`] | how long things took, to within a bucket |

pub mod ask;
pub mod audit;
mod batch;
pub mod belonging;
pub mod codec;
pub mod coverage;
#[cfg(feature = "dialects")]
pub mod dialect;
pub mod event;
pub mod follower;
pub mod frame;
pub mod freshness;
pub mod hash;
pub mod histogram;
pub mod hlc;
pub mod id;
pub mod lease;
pub mod log;
pub mod offset;
pub mod receipt;
pub mod record;
pub mod relay;
pub mod replicate;
pub mod time;
mod varint;
pub mod wake;
