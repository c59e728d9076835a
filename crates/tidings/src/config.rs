//! What a node is started with.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidings_cache::Clock;
use tidings_proto::freshness::Bounds;
use tidings_proto::id::Lanes;
use tidings_proto::log::Retention;
use tidings_transport::Identity;

use crate::clocks::ClockBounds;
use crate::coherence::BeforeKnown;

/// Everything a node is started with. [`crate::NodeBuilder`] makes one.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) cluster: String,
    pub(crate) node_id: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) seeds: Vec<String>,
    pub(crate) identity: Identity,
    pub(crate) denied: Vec<String>,
    pub(crate) zone: String,
    pub(crate) bounds: Bounds,
    pub(crate) before_known: BeforeKnown,
    pub(crate) clocks: ClockBounds,
    pub(crate) audit_keys_per_second: u64,
    /// Most nodes of which each follows every other one directly.
    pub(crate) relay_above: usize,
    /// Most that is copied from members.
    pub(crate) copy_bytes_per_second: NonZeroU64,
    pub(crate) gossip_interval: Duration,
    pub(crate) lanes: Lanes,
    pub(crate) retention: Retention,
    /// Where the log is written down, if it is.
    pub(crate) log_dir: Option<PathBuf>,
    pub(crate) clock: Clock,
    /// Whether the calling runtime runs it, or else a thread of its own.
    pub(crate) on_calling_runtime: bool,
    pub(crate) simulated: Option<Simulated>,
}

/// A node on a simulated network, driven by the runtime that starts it.
#[derive(Clone)]
pub struct Simulated {
    /// Where its packets go.
    pub socket: Arc<dyn quinn::AsyncUdpSocket>,
    /// Seed of QUIC's own randomness.
    pub seed: [u8; 32],
    /// Seed of the log id.
    pub log_id: u64,
    /// What is wrong with the node, so that a simulation can show that it would find it.
    pub planted: Option<Planted>,
}

/// A defect of a simulated node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// What a peer said counts from when it came, and not from when it was asked.
    ConfirmedAtReceipt,
    /// What a peer's log no longer holds is passed over, and nothing becomes unreadable for it.
    Unfenced,
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").finish_non_exhaustive()
    }
}
