//! Counts of what gossip brought and of what was refused.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why gossip, or a part of it, was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A frame longer than [`crate::FRAME_BYTES_MAX`]. The frame is dropped.
    FrameSize,
    /// A frame that decompresses to more than the limit. The frame is dropped.
    Inflation,
    /// A frame that is not a gossip message, or has bytes left over. The frame is dropped.
    Malformed,
    /// A message of or for another cluster. The frame is dropped.
    Cluster,
    /// A record whose signature is not that of the node it names. The record is dropped, and so is what the
    /// same message says of that node.
    Forged,
    /// News of a node whose record has not been seen yet. Normal while nodes join.
    Unattested,
    /// A heartbeat of a third party beyond what it can have reached. That claim is ignored.
    Heartbeat,
    /// A change that no member makes (another key, a tombstone, a reset). That change is ignored.
    Operation,
    /// A new life beyond the limits on how many are remembered. That life is ignored.
    Capacity,
    /// A record that came when enough signatures had been checked for its sender. It counts when it comes again.
    Budget,
}

impl Reason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::FrameSize,
        Self::Inflation,
        Self::Malformed,
        Self::Cluster,
        Self::Forged,
        Self::Unattested,
        Self::Heartbeat,
        Self::Operation,
        Self::Capacity,
        Self::Budget,
    ];

    /// The reason's name, as metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FrameSize => "frame_size",
            Self::Inflation => "inflation",
            Self::Malformed => "malformed",
            Self::Cluster => "cluster",
            Self::Forged => "forged",
            Self::Unattested => "unattested",
            Self::Heartbeat => "heartbeat",
            Self::Operation => "operation",
            Self::Capacity => "capacity",
            Self::Budget => "budget",
        }
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Stats {
    rejected: [AtomicU64; Reason::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
}

impl Stats {
    /// How often gossip was not accepted for this reason.
    #[must_use]
    pub fn rejected(&self, reason: Reason) -> u64 {
        self.rejected[reason as usize].load(Relaxed)
    }

    /// Gossip frames handed to this node, accepted or not.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Gossip frames handed to the transport.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Bytes of the gossip frames handed to the transport.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Relaxed)
    }

    pub(crate) fn reject(&self, reason: Reason) {
        self.rejected[reason as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn count_received(&self) {
        self.received.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let stats = Stats::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| stats.reject(reason));
        }
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(stats.rejected(reason), times as u64, "{}", reason.name());
        }
    }
}
