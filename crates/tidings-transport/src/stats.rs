//! What the transport counts. Everything is exported from the start, zero included.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a peer's handshake was refused by this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum RefusedReason {
    /// Another live node is reached at the address that it claims.
    AddressTaken,
    /// It offers no application protocol of this cluster.
    Alpn,
    /// Its certificate is unacceptable in a way that has no reason of its own.
    BadCertificate,
    /// Too many handshakes or connections at once.
    Busy,
    /// Its node id or its certificate's serial number is on the deny list.
    Denied,
    /// A live process holds the node id that it claims.
    DuplicateNode,
    /// Its certificate is not valid any more.
    Expired,
    /// It hashes keys differently.
    HashVersion,
    /// Its node id is not its certificate's.
    Identity,
    /// Its incarnation is known already with another log.
    Incarnation,
    /// This node is leaving.
    Leaving,
    /// What it sent is not a `Hello`.
    Malformed,
    /// It presented no certificate.
    NoCertificate,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// No protocol version in common.
    Protocol,
    /// It did not finish in time, or gave up before.
    Timeout,
    /// It does not speak TLS 1.3.
    TlsVersion,
    /// Its certificate was not signed by a trusted authority, or it does not have the certificate's key.
    UnknownCa,
    /// Its certificate is of another cluster.
    WrongCluster,
    /// Its certificate may not be used for this.
    WrongEku,
    /// Its certificate does not name exactly one node.
    WrongSan,
}

impl RefusedReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 21] = [
        Self::AddressTaken,
        Self::Alpn,
        Self::BadCertificate,
        Self::Busy,
        Self::Denied,
        Self::DuplicateNode,
        Self::Expired,
        Self::HashVersion,
        Self::Identity,
        Self::Incarnation,
        Self::Leaving,
        Self::Malformed,
        Self::NoCertificate,
        Self::NotYetValid,
        Self::Protocol,
        Self::Timeout,
        Self::TlsVersion,
        Self::UnknownCa,
        Self::WrongCluster,
        Self::WrongEku,
        Self::WrongSan,
    ];

    /// The reason as metrics and log lines spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressTaken => "address_taken",
            Self::Alpn => "alpn",
            Self::BadCertificate => "bad_certificate",
            Self::Busy => "busy",
            Self::Denied => "denied",
            Self::DuplicateNode => "duplicate_node",
            Self::Expired => "expired",
            Self::HashVersion => "hash_version",
            Self::Identity => "identity",
            Self::Incarnation => "incarnation",
            Self::Leaving => "leaving",
            Self::Malformed => "malformed",
            Self::NoCertificate => "no_certificate",
            Self::NotYetValid => "not_yet_valid",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::TlsVersion => "tls_version",
            Self::UnknownCa => "unknown_ca",
            Self::WrongCluster => "wrong_cluster",
            Self::WrongEku => "wrong_eku",
            Self::WrongSan => "wrong_san",
        }
    }
}

impl RefusedReason {
    /// What can be done about it, for people.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::AddressTaken => "give each node an address of its own to advertise",
            Self::Alpn | Self::WrongCluster => {
                "set the cluster's name alike, or take the other cluster's node from the seeds"
            }
            Self::BadCertificate | Self::WrongEku | Self::WrongSan | Self::NoCertificate => {
                "issue a certificate for the node (tidings certs issue)"
            }
            Self::Busy | Self::Timeout => "none: it tries again",
            Self::Denied => "take it from the deny list if it may join",
            Self::DuplicateNode => "give one of the two processes another node id, or stop it",
            Self::Expired => "issue a new certificate (tidings certs issue), and set the clock",
            Self::NotYetValid => "set the clock of whichever node is wrong",
            Self::HashVersion | Self::Protocol => "run releases that understand each other on all nodes",
            Self::Identity => "let the node id be that of the certificate",
            Self::Incarnation => "none: it takes a later incarnation",
            Self::Leaving => "none: it is shutting down",
            Self::Malformed | Self::TlsVersion => "look at what else sends to this port",
            Self::UnknownCa => "let one authority sign all certificates of the cluster",
        }
    }
}

/// Why changes did not get to a peer for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum BroadcastError {
    /// It could not be dialled, or did not answer in time.
    Dial,
    /// It refused this node, during a handshake or later.
    Refused,
    /// A link to it broke: nobody had closed it.
    Lost,
    /// It had fallen so far behind that the log no longer held what it wanted, and was told to fence a lane. One that
    /// has nothing of the log yet does not count.
    Overrun,
    /// It could not read what came next in a lane twice, gave that up and fenced the lane.
    Unreadable,
}

impl BroadcastError {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Dial, Self::Refused, Self::Lost, Self::Overrun, Self::Unreadable];

    /// The reason as metrics spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dial => "dial",
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Overrun => "overrun",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }
}

/// Counters of one node's transport.
#[derive(Debug, Default)]
pub struct TransportStats {
    refused: [Counter; RefusedReason::ALL.len()],
    broadcast_errors: [Counter; BroadcastError::ALL.len()],
    /// Connection attempts begun by this node.
    pub dials: Counter,
    /// Of those, the ones that did not become a link.
    pub dials_failed: Counter,
    /// Links that came up.
    pub links_opened: Counter,
    /// Links that ended.
    pub links_closed: Counter,
    /// Links closed because another to the same peer was kept.
    pub links_surplus: Counter,
    /// Gossip frames sent as a datagram.
    pub gossip_datagrams: Counter,
    /// Gossip frames sent on a stream of their own.
    pub gossip_streams: Counter,
    /// Gossip frames handed to the host.
    pub gossip_received: Counter,
    /// Outbound gossip frames dropped: no link in time, a full queue, too long.
    pub gossip_dropped: Counter,
    /// Inbound gossip frames not handed on: too long, of an unknown kind, or cut off.
    pub gossip_malformed: Counter,
}

impl TransportStats {
    /// Handshakes refused for a reason.
    #[must_use]
    pub fn refused(&self, reason: RefusedReason) -> u64 {
        self.refused[reason as usize].get()
    }

    /// How often changes did not get to a peer for a reason.
    #[must_use]
    pub fn broadcast_errors(&self, why: BroadcastError) -> u64 {
        self.broadcast_errors[why as usize].get()
    }

    pub(crate) fn broadcast_error(&self, why: BroadcastError) {
        self.broadcast_errors[why as usize].one();
    }

    /// Handshakes refused for any reason.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().map(Counter::get).sum()
    }

    pub(crate) fn refuse(&self, reason: RefusedReason) {
        self.refused[reason as usize].one();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_number_and_a_name_of_its_own() {
        for (number, reason) in RefusedReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
        let names: BTreeSet<_> = RefusedReason::ALL.map(RefusedReason::as_str).into();
        assert_eq!(names.len(), RefusedReason::ALL.len());
        for (number, why) in BroadcastError::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, number);
        }
        let names: BTreeSet<_> = BroadcastError::ALL.map(BroadcastError::as_str).into();
        assert_eq!(names.len(), BroadcastError::ALL.len());
    }
}
