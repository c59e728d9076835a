//! Why a handshake came to nothing, and what is said about it.

use std::net::SocketAddr;

use quinn::{ConnectError, Connection, ConnectionError, ReadError, WriteError};
use tidings_proto::frame::{FrameError, Refusal};
use tidings_proto::id::NodeId;
use tokio::time::Instant;

use crate::close::{self, CloseCode};
use crate::control::ControlError;
use crate::identity::IdentityError;
use crate::quiet::Quiet;
use crate::stats::{BroadcastError, RefusedReason, TransportStats};

/// A handshake that did not end in a link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// This node refuses the peer. With a refusal, the peer is told.
    #[error("refused the peer: {}", .0.as_str())]
    Refused(RefusedReason, Option<Refusal>),
    /// The peer refuses this node.
    #[error("refused by the peer: {0}")]
    RefusedByPeer(Refusal),
    /// The peer does not accept this node's certificate or protocol.
    #[error("the peer does not accept this node: {}", .0.as_str())]
    Rejected(RefusedReason),
    /// The connection failed, or its peer gave up.
    #[error("connection")]
    Lost(#[source] ConnectionError),
    /// Whoever is there gave up before it had shown a certificate. Anybody can say why, so it counts for nothing.
    #[error("closed before a certificate was shown")]
    Unproven,
    /// The address cannot be dialled from here.
    #[error("cannot be dialled")]
    Connect(#[source] ConnectError),
    /// This node has no usable identity.
    #[error("own identity")]
    Identity(#[source] IdentityError),
    /// The attempt took too long.
    #[error("no link in time")]
    Timeout,
    /// The address is this node's own.
    #[error("this is the node itself")]
    Own,
    /// A link came up meanwhile.
    #[error("linked already")]
    Linked,
    /// One end of it has taken another incarnation since it began.
    #[error("overtaken by a later handshake")]
    Overtaken,
    /// Another process has this node's id, and this one takes no part.
    #[error("another process has this node's id")]
    Displaced,
}

impl From<IdentityError> for HandshakeError {
    fn from(error: IdentityError) -> Self {
        Self::Identity(error)
    }
}

impl From<ConnectionError> for HandshakeError {
    fn from(error: ConnectionError) -> Self {
        if let Some(refusal) = close::refusal_of(&error) {
            return Self::RefusedByPeer(refusal);
        }
        match &error {
            ConnectionError::TransportError(own) => match alert(own.code.into()) {
                Some(alert) => Self::Refused(reason_of(alert, &own.reason), None),
                None => Self::Refused(RefusedReason::Malformed, None),
            },
            ConnectionError::ConnectionClosed(close) => match alert(close.error_code.into()) {
                Some(alert) => Self::Rejected(reason_of(alert, &String::from_utf8_lossy(&close.reason))),
                None => Self::Lost(error),
            },
            ConnectionError::ApplicationClosed(close) if CloseCode::Own.is_of(close) => Self::Own,
            ConnectionError::ApplicationClosed(close) => match reason_named(&close.reason) {
                Some(reason) => Self::Rejected(reason),
                None => Self::Lost(error),
            },
            _ => Self::Lost(error),
        }
    }
}

impl From<WriteError> for HandshakeError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            // The peer does not want the answer any more.
            _ => Self::Refused(RefusedReason::Timeout, None),
        }
    }
}

impl From<ControlError> for HandshakeError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Read(ReadError::ConnectionLost(error)) => error.into(),
            ControlError::Frame(FrameError::Version(_)) => Self::Refused(RefusedReason::Protocol, None),
            // It has given up before the frame was whole.
            ControlError::Ended | ControlError::Read(_) => Self::Refused(RefusedReason::Timeout, None),
            ControlError::Frame(_) => Self::Refused(RefusedReason::Malformed, None),
        }
    }
}

impl HandshakeError {
    /// Why no connection came about that a peer began. Until one has, packets are sealed with keys that anybody can make:
    /// what this node itself has against the peer counts, but not what a close says in a peer's name.
    pub(crate) fn inbound(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => Self::Unproven,
            error => error.into(),
        }
    }

    /// The same of one that this node began. What TLS at the other end has against this node is said, since an operator
    /// needs it; it decides nothing.
    pub(crate) fn outbound(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(_) => Self::Unproven,
            error => error.into(),
        }
    }

    /// A refusal that the peer is told.
    pub(crate) fn telling(reason: RefusedReason, refusal: Refusal) -> Self {
        Self::Refused(reason, Some(refusal))
    }

    /// A refusal that the host decided on.
    pub(crate) fn of_host(refusal: Refusal) -> Self {
        Self::telling(reason_for(&refusal), refusal)
    }

    /// Whether it is the peer who refused, and why, if one end has refused the other.
    pub(crate) fn refused(&self) -> Option<(bool, RefusedReason)> {
        match self {
            // Whoever does not finish is not there, and whoever leaves is no member.
            Self::Refused(RefusedReason::Timeout | RefusedReason::Busy | RefusedReason::Leaving, _)
            | Self::RefusedByPeer(Refusal::Leaving) => None,
            Self::Refused(reason, _) => Some((false, *reason)),
            Self::RefusedByPeer(refusal) => Some((true, reason_for(refusal))),
            Self::Rejected(reason) => Some((true, *reason)),
            _ => None,
        }
    }

    /// Whether one end refused the other.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(..) | Self::RefusedByPeer(_) | Self::Rejected(_))
    }

    /// Whether the peer could not be reached, rather than was there and had no link with this node.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Connect(_) | Self::Identity(_) | Self::Timeout)
    }

    /// The error and its cause, in one line, whatever a peer has put into it.
    pub(crate) fn describe(&self) -> String {
        let described = match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        };
        described.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
    }

    /// Closes a connection that came to nothing, and says why.
    pub(crate) fn close(&self, connection: &Connection) {
        let (code, text) = match self {
            Self::Refused(_, Some(refusal)) => return close::refuse(connection, refusal),
            Self::Refused(reason, None) => (code_of(*reason), reason.as_str()),
            Self::Own => (CloseCode::Own, "own"),
            Self::Linked | Self::Overtaken => (CloseCode::Surplus, "surplus"),
            _ => (CloseCode::Ended, ""),
        };
        connection.close(code.as_varint(), text.as_bytes());
    }

    /// Counts it, and writes a line about it unless there were many of late.
    pub(crate) fn record(
        &self,
        stats: &TransportStats,
        quiet: &Quiet,
        (remote, node): (SocketAddr, Option<NodeId>),
    ) {
        let node = node.map(tracing::field::display);
        let speaks = |what| quiet.speaks(remote.ip(), what, Instant::now());
        match self {
            Self::Refused(reason, refusal) => {
                stats.refuse(*reason);
                if let Some(passed) = speaks(reason.as_str()) {
                    let detail = refusal.as_ref().map(ToString::to_string);
                    let (remedy, reason, passed_over) = (reason.remedy(), reason.as_str(), passed.field());
                    tracing::warn!(%remote, node, reason, detail, remedy, passed_over, "handshake refused");
                }
            }
            Self::RefusedByPeer(_) | Self::Rejected(_) => {
                stats.broadcast_error(BroadcastError::Refused);
                if let Some(passed) = speaks("by a peer") {
                    let (error, passed_over) = (self.describe(), passed.field());
                    let remedy = self.refused().map(|(_, reason)| reason.remedy());
                    tracing::warn!(%remote, node, error, remedy, passed_over, "handshake refused by a peer");
                }
            }
            Self::Own => tracing::debug!(%remote, "dialled itself"),
            other => tracing::debug!(%remote, error = other.describe(), "no link"),
        }
    }
}

fn reason_for(refusal: &Refusal) -> RefusedReason {
    match refusal {
        Refusal::Cluster(_) => RefusedReason::WrongCluster,
        Refusal::Identity(_) => RefusedReason::Identity,
        Refusal::Protocol(..) => RefusedReason::Protocol,
        Refusal::HashVersion(_) => RefusedReason::HashVersion,
        Refusal::DuplicateNode { .. } => RefusedReason::DuplicateNode,
        Refusal::Incarnation(_) => RefusedReason::Incarnation,
        Refusal::Denied => RefusedReason::Denied,
        Refusal::Leaving => RefusedReason::Leaving,
    }
}

/// The TLS alert that a QUIC error code stands for.
fn alert(code: u64) -> Option<u8> {
    code.checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok())
}

/// What this node's verifier had against a peer, by the alert that it raised (RFC 8446, section 6).
fn reason_of(alert: u8, text: &str) -> RefusedReason {
    match alert {
        // bad_certificate is raised for a name and for an encoding alike.
        42 if text.contains("not valid for name") => RefusedReason::WrongSan,
        43 => RefusedReason::WrongEku,
        // certificate_expired is raised for both ends of the validity.
        45 if text.contains("not valid yet") => RefusedReason::NotYetValid,
        45 => RefusedReason::Expired,
        42 | 44 | 46 => RefusedReason::BadCertificate,
        // decrypt_error is raised for a signature that no trusted authority's key has made.
        48 | 51 => RefusedReason::UnknownCa,
        70 => RefusedReason::TlsVersion,
        116 => RefusedReason::NoCertificate,
        120 => RefusedReason::Alpn,
        _ => RefusedReason::Malformed,
    }
}

/// The reason that a peer has closed a connection with, if it is one of this node's own words.
fn reason_named(text: &[u8]) -> Option<RefusedReason> {
    RefusedReason::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == text)
}

fn code_of(reason: RefusedReason) -> CloseCode {
    match reason {
        RefusedReason::AddressTaken => CloseCode::AddressTaken,
        RefusedReason::Busy => CloseCode::Busy,
        RefusedReason::Timeout => CloseCode::Ended,
        RefusedReason::Malformed | RefusedReason::Protocol => CloseCode::Malformed,
        _ => CloseCode::Identity,
    }
}
