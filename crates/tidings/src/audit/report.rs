//! What an audit has found.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_proto::histogram::Snapshot;
use tidings_proto::id::NodeId;

/// What was looked at, and what it came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Entries of this node that were looked at.
    pub entries: u64,
    /// Entries that a peer was asked about, once for each peer.
    pub compared: u64,
    /// Of those the ones that the peer held.
    pub held: u64,
    /// Differences of which one side has gone since: a change was under way.
    pub lag: u64,
    /// Differences that no change explains.
    pub inconsistent: u64,
    /// Differences that could not be judged, for one of the two was in doubt, or the peer did not answer.
    pub unsettled: u64,
    /// Differences beyond [`SUSPECTS_MAX`](tidings_proto::audit::SUSPECTS_MAX), which were not looked at again.
    pub unexamined: u64,
    /// Bytes of questions that were sent to peers.
    pub sent: u64,
    /// Bytes of answers that came.
    pub received: u64,
}

/// Two nodes hold a key with different values, and no change explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inconsistency {
    /// In which cache.
    pub cache: Arc<str>,
    /// The encoded key.
    pub key: Bytes,
    /// The key as text, as [`AnyCache::key_text`](tidings_cache::AnyCache::key_text) shows it.
    pub key_text: String,
    /// The other node.
    pub peer: NodeId,
    /// How long ago the load of this node's entry began, when it was last seen.
    pub own_age: Duration,
    /// How long ago that of the other one did.
    pub peer_age: Duration,
    /// When the two were first seen to differ, in milliseconds since 1970.
    pub first_seen_ms: u64,
    /// When they were last seen to.
    pub last_seen_ms: u64,
}

/// How far a sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditProgress {
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// Whether somebody asked for it.
    pub requested: bool,
    /// Entries that were looked at.
    pub entries: u64,
    /// Of about how many.
    pub of: u64,
    /// Differences that wait to be looked at again.
    pub suspects: usize,
}

/// What came of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedPeer {
    /// Which.
    pub node: NodeId,
    /// Entries that it was asked about and answered.
    pub compared: u64,
    /// Why it was not asked about all there are, if so.
    pub gap: Option<String>,
}

/// What one sweep has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditReport {
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether somebody asked for it.
    pub requested: bool,
    /// About how many entries there were to look at. Those of a cache are not looked at that no live member hosts.
    pub of: u64,
    /// What was looked at.
    pub counts: AuditCounts,
    /// Every peer that hosts one of the caches, or may do so and could not be asked.
    pub peers: Vec<AuditedPeer>,
    /// What was found, the newest first; at most 100.
    pub inconsistencies: Vec<Inconsistency>,
}

impl AuditReport {
    /// Whether every peer was asked about everything, and every difference was judged. A sweep that was asked for, and
    /// compared none of the entries that there are, was not: there was nobody to compare with.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let AuditCounts { compared, unsettled, unexamined, .. } = self.counts;
        let in_vain = self.requested && self.of > 0 && compared == 0;
        !in_vain && unsettled + unexamined == 0 && self.peers.iter().all(|peer| peer.gap.is_none())
    }
}

/// What the auditor of a node does, and has found since the node was started.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Keys that are compared a second; 0: only on request.
    pub keys_per_second: u64,
    /// All sweeps together.
    pub counts: AuditCounts,
    /// Entries that other nodes asked this one about.
    pub answered: u64,
    /// The sweep that is under way.
    pub progress: Option<AuditProgress>,
    /// The last one that is over and had anybody to ask.
    pub last: Option<Arc<AuditReport>>,
    /// The last one that is over and that somebody asked for.
    pub requested: Option<Arc<AuditReport>>,
    /// What was found, the newest first; at most 100.
    pub inconsistencies: Vec<Inconsistency>,
    /// How long sweeps took.
    pub times: Snapshot,
}
