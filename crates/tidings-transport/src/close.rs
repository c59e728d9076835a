//! Why a connection was closed, as the peer is told: an application error code, and a reason that for a refusal is
//! the frame which says it. So a refused peer gets nothing of ours but the close.

use bytes::BytesMut;
use quinn::{ApplicationClose, Connection, ConnectionError, VarInt};
use tidings_proto::frame::{Control, Refusal, take};

/// The code that a connection is closed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The session has ended, or the process.
    Ended = 0,
    /// The peer is refused; the reason holds a `Refused` frame.
    Refused = 1,
    /// The node shuts down.
    Shutdown = 2,
    /// Another connection between the two is kept.
    Surplus = 3,
    /// A later life of the peer is connected.
    Replaced = 4,
    /// The node has dialled itself.
    Own = 5,
    /// The peer's certificate does not say what it must.
    Identity = 6,
    /// What the peer sent cannot be understood.
    Malformed = 7,
    /// Another node is reached at the address that the peer claims.
    AddressTaken = 8,
    /// Too many connections.
    Busy = 9,
    /// The peer has said goodbye, and everything that it did is applied here. No other code says so.
    Followed = 11,
}

impl CloseCode {
    /// The code as QUIC carries it.
    #[must_use]
    pub fn as_varint(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// Whether the peer has closed the connection with this.
    pub(crate) fn was_said(self, end: &ConnectionError) -> bool {
        matches!(end, ConnectionError::ApplicationClosed(close) if self.is_of(close))
    }

    pub(crate) fn is_of(self, close: &ApplicationClose) -> bool {
        close.error_code == self.as_varint()
    }
}

/// Closes a connection to a peer that is refused, and tells it why.
pub(crate) fn refuse(connection: &Connection, refusal: &Refusal) {
    connection.close(CloseCode::Refused.as_varint(), &Control::Refused(refusal.clone()).encode());
}

/// The refusal that a connection was closed with, if it was.
pub(crate) fn refusal_of(error: &ConnectionError) -> Option<Refusal> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    if !CloseCode::Refused.is_of(close) {
        return None;
    }
    let frame = take(&mut BytesMut::from(&close.reason[..])).ok()??;
    match Control::decode(&frame).ok()? {
        Control::Refused(refusal) => Some(refusal),
        _ => None,
    }
}
