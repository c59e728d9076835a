//! Frames between two nodes: a fixed header, then a body.
//!
//! ```text
//! version: u8 | type: u8 | length of the body: u32 little endian | body
//! ```
//!
//! The body of [`FrameType::Events`] is a batch of records ([`crate::record`]); every other body is a control
//! frame in the encoding of [`crate::codec`]. Types from 128 on may be skipped by those who do not know them.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::id::{Incarnation, LaneId, Lanes, LogId, NodeId, Origin, Sequence};
use crate::relay::{ACKED_MAX, Confirmed, FollowOf, PassedUp};

/// Version of the frames that this release writes, and the newest that it reads.
pub const PROTOCOL_VERSION: u8 = 1;

/// From this version on a node relays ([`crate::relay`]): the frames are the same, and some more that may be skipped.
pub const PROTOCOL_RELAYS: u8 = 2;

/// Oldest and newest protocol version that this release speaks, for [`Hello::protocols`].
pub const PROTOCOLS: (u8, u8) = (PROTOCOL_VERSION, PROTOCOL_RELAYS);

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 6;

/// Longest body, in bytes: the longest record, or a full member set, with room to spare; a peer cannot make a
/// receiver buffer more.
pub const FRAME_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Most members that a frame may name.
pub const MEMBERS_MAX: usize = 4_096;

/// Longest zone, release or cache name in a frame, in bytes.
pub const TEXT_BYTES_MAX: usize = 128;

/// Most caches that a frame may name.
pub const CACHES_MAX: usize = 1_024;

/// Most parts that one acknowledgement may be told of: as many as fit the frames that followers send in any release.
pub const AGES_MAX: usize = 10;

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the frame of its name in `Control`, a batch of records, or of `ask`")]
pub enum FrameType {
    Hello = 1,
    Follow = 2,
    Resume = 3,
    Reset = 4,
    Events = 5,
    Probe = 6,
    Heartbeat = 7,
    Ack = 8,
    Goodbye = 9,
    Refused = 10,
    Members = 11,
    Caches = 128,
    Clock = 129,
    Ages = 130,
    Ask = 131,
    Answer = 132,
    FollowOf = 133,
    Lacking = 134,
    Confirmed = 135,
    PassedUp = 136,
    Relays = 137,
}

impl FrameType {
    const KNOWN: [Self; 21] = [
        Self::Hello,
        Self::Follow,
        Self::Resume,
        Self::Reset,
        Self::Events,
        Self::Probe,
        Self::Heartbeat,
        Self::Ack,
        Self::Goodbye,
        Self::Refused,
        Self::Members,
        Self::Caches,
        Self::Clock,
        Self::Ages,
        Self::Ask,
        Self::Answer,
        Self::FollowOf,
        Self::Lacking,
        Self::Confirmed,
        Self::PassedUp,
        Self::Relays,
    ];

    fn of(byte: u8) -> Option<Self> {
        #[cfg(feature = "dialects")]
        if !crate::dialect::knows_frame(byte) {
            return None;
        }
        Self::KNOWN.into_iter().find(|known| *known as u8 == byte)
    }
}

/// Every frame but `Events`, and those of questions ([`crate::ask`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// First frame of a connection, both ways.
    Hello(Hello),
    /// Asks for a lane of the receiver's log from a position.
    Follow(Follow),
    /// The log still holds the position: what follows starts there.
    Resume(Sequence),
    /// The log does not hold the position: fence the lane's slots, then continue from here. May come at any time.
    Reset(Sequence),
    /// Asks for a heartbeat.
    Probe(u64),
    /// Answers the newest probe.
    Heartbeat(Heartbeat),
    /// Everything up to here of this lane is applied.
    Ack(Sequence),
    /// The log is sealed with these heads; when they are applied, nothing of this origin is missing.
    Goodbye(Vec<Sequence>),
    /// The connection is refused, and why.
    Refused(Refusal),
    /// The sender's member set.
    Members(MemberSet),
    /// Names of the caches that the sender hosts, at most [`CACHES_MAX`], for those who watch. Can be ignored.
    Caches(Vec<String>),
    /// The sender's wall clock, read between two probes. Comes before the heartbeat that answers the first of them, and
    /// can be ignored.
    Clock(ClockReading),
    /// How long ago what the next `Ack` of this stream acknowledges was applied, oldest first; at most [`AGES_MAX`]. Can be
    /// ignored.
    Ages(Vec<Age>),
    /// Asks a relay for a lane of another node's log from a position.
    FollowOf(FollowOf),
    /// A relay does not hold the position. It can go on from here, and does.
    Lacking(Sequence),
    /// What a relay knows of the origins that the receiver follows by way of it. Comes after the heartbeat that answers
    /// the same probe, and after the member set that it names.
    Confirmed(Confirmed),
    /// What followers have applied of another node's log, or of the receiver's, on its way up.
    PassedUp(PassedUp),
    /// Whether the sender relays, from its next probe on: what answers that is said to others.
    Relays(bool),
}

/// Who is calling, and what it speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest and newest protocol version that it speaks.
    pub protocols: (u8, u8),
    /// Name of its cluster.
    pub cluster: String,
    /// Its node id; must be that of its certificate.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its log.
    pub log: LogId,
    /// Version of the hash that makes slots of keys.
    pub hash_version: u8,
    /// How many lanes its log has.
    pub lanes: Lanes,
    /// The address at which it can be dialled.
    pub address: SocketAddr,
    /// Its availability zone, or nothing; at most [`TEXT_BYTES_MAX`].
    pub zone: String,
    /// Its release, for people; at most [`TEXT_BYTES_MAX`].
    pub release: String,
    /// Its wall clock, in milliseconds since 1970, for a report of clock offset. Decides nothing.
    pub wall_ms: u64,
    /// How long its process has been there, in milliseconds, by a clock that is never set. Decides only between two
    /// live processes with one node id.
    pub age_ms: u64,
    /// Everyone it knows to be, or to have been until lately, a member.
    pub members: MemberSet,
}

/// A versioned set of origins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSet {
    /// Rises with every change of the set on its node.
    pub version: u64,
    /// The members; at most [`MEMBERS_MAX`].
    pub members: Vec<NamedMember>,
}

/// A member as another names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedMember {
    /// Which life of which node.
    pub origin: Origin,
    /// Where it can be dialled.
    pub address: SocketAddr,
    /// Whether that life, and every earlier one of its node, has ended: another process took its place. Only the node
    /// itself heeds it, unless the same life is named a second time as one that is there: then it has ended without a
    /// goodbye, and who never knew it may have missed what it changed. Named by itself, a life says that it is over.
    pub ended: bool,
}

/// A request for one lane of the receiver's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The life that the follower believes it talks to.
    pub incarnation: Incarnation,
    /// Which lane.
    pub lane: LaneId,
    /// The first sequence that it has not applied.
    pub from: Sequence,
}

/// An origin's answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The newest probe that had been read before the heads were.
    pub echo: u64,
    /// Version of the origin's member set, read after the probe and before the heads.
    pub members: u64,
    /// The last sequence appended to each lane.
    pub heads: Vec<Sequence>,
}

/// What a wall clock showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// The newest probe that had been read before.
    pub echo: u64,
    /// Milliseconds since 1970. Decides nothing about freshness.
    pub wall_ms: u64,
}

/// When a part of what is acknowledged was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Age {
    /// Everything up to so many positions before the acknowledged one.
    pub back: u16,
    /// Was applied at least so many microseconds ago.
    pub micros: u16,
}

/// Why a connection is refused, said to the refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The cluster names differ.
    #[error("this is cluster {0}")]
    Cluster(String),
    /// The node id of `Hello` is not that of the certificate.
    #[error("the certificate is for node {0}")]
    Identity(NodeId),
    /// No protocol version in common.
    #[error("this node speaks protocol versions {0} to {1}")]
    Protocol(u8, u8),
    /// The slots of keys would differ.
    #[error("this node uses key hash version {0}")]
    HashVersion(u8),
    /// Another live process has this node id.
    #[error("node id {node} is held by a live process at {address}")]
    DuplicateNode {
        /// The id that both claim.
        node: NodeId,
        /// Where the holder is.
        address: SocketAddr,
    },
    /// A life of this number or a later one, with another log, is known: take the next.
    #[error("incarnation {0} of this node is known already")]
    Incarnation(Incarnation),
    /// The node, or its certificate, is on the deny list.
    #[error("denied by the deny list")]
    Denied,
    /// The node is shutting down.
    #[error("this node is leaving")]
    Leaving,
}

/// A frame was not what it should be. Nothing of it was acted on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The first byte is not a version that this release reads.
    #[error("frame version {0} is not spoken here")]
    Version(u8),
    /// A type below 128 that this release does not know.
    #[error("frame type {0} is not known")]
    Type(u8),
    /// The body is longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes exceeds {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// The body does not decode.
    #[error("body of a {0:?} frame")]
    Body(FrameType, #[source] CodecError),
    /// A list in it exceeds its limit.
    #[error("a {0:?} frame with {1} elements")]
    TooMany(FrameType, usize),
    /// A text in it exceeds [`TEXT_BYTES_MAX`].
    #[error("a {0:?} frame with a text of {1} bytes")]
    LongText(FrameType, usize),
}

/// A frame cut out of a byte stream.
#[derive(Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// What the body is.
    pub kind: FrameType,
    /// The body.
    pub body: BytesMut,
}

/// Writes a frame's header.
#[must_use]
pub fn header(kind: FrameType, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = (body_bytes as u32).to_le_bytes();
    [PROTOCOL_VERSION, kind as u8, a, b, c, d]
}

/// Takes the next whole frame off the front of `buffer`; `None` if more bytes are needed. Frames of an unknown
/// type that may be ignored are skipped.
///
/// # Errors
/// [`FrameError::Version`], [`FrameError::Type`], [`FrameError::TooLong`]; the connection cannot go on after any.
pub fn take(buffer: &mut BytesMut) -> Result<Option<RawFrame>, FrameError> {
    loop {
        let Some((&[version, kind, a, b, c, d], rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        if version != PROTOCOL_VERSION {
            return Err(FrameError::Version(version));
        }
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if FrameType::of(kind).is_none() && kind < 128 {
            return Err(FrameError::Type(kind));
        }
        if rest.len() < length {
            buffer.reserve(HEADER_BYTES + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEADER_BYTES);
        let body = buffer.split_to(length);
        if let Some(kind) = FrameType::of(kind) {
            return Ok(Some(RawFrame { kind, body }));
        }
    }
}

impl Control {
    /// The frame's type.
    #[must_use]
    pub fn kind(&self) -> FrameType {
        match self {
            Self::Hello(_) => FrameType::Hello,
            Self::Follow(_) => FrameType::Follow,
            Self::Resume(_) => FrameType::Resume,
            Self::Reset(_) => FrameType::Reset,
            Self::Probe(_) => FrameType::Probe,
            Self::Heartbeat(_) => FrameType::Heartbeat,
            Self::Ack(_) => FrameType::Ack,
            Self::Goodbye(_) => FrameType::Goodbye,
            Self::Refused(_) => FrameType::Refused,
            Self::Members(_) => FrameType::Members,
            Self::Caches(_) => FrameType::Caches,
            Self::Clock(_) => FrameType::Clock,
            Self::Ages(_) => FrameType::Ages,
            Self::FollowOf(_) => FrameType::FollowOf,
            Self::Lacking(_) => FrameType::Lacking,
            Self::Confirmed(_) => FrameType::Confirmed,
            Self::PassedUp(_) => FrameType::PassedUp,
            Self::Relays(_) => FrameType::Relays,
        }
    }

    /// The frame's bytes, header and body.
    ///
    /// # Panics
    /// Never: these types always encode. A frame whose lists and texts keep their limits is well below
    /// [`FRAME_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        #[cfg(feature = "dialects")]
        return crate::dialect::say(self, Self::written);
        #[cfg(not(feature = "dialects"))]
        self.written()
    }

    fn written(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let encoded = match self {
            Self::Hello(hello) => codec::encode_into(hello, &mut out),
            Self::Follow(follow) => codec::encode_into(follow, &mut out),
            Self::Resume(sequence)
            | Self::Reset(sequence)
            | Self::Ack(sequence)
            | Self::Lacking(sequence) => codec::encode_into(sequence, &mut out),
            Self::Probe(number) => codec::encode_into(number, &mut out),
            Self::Heartbeat(heartbeat) => codec::encode_into(heartbeat, &mut out),
            Self::Goodbye(heads) => codec::encode_into(heads, &mut out),
            Self::Refused(refusal) => codec::encode_into(refusal, &mut out),
            Self::Members(members) => codec::encode_into(members, &mut out),
            Self::Caches(names) => codec::encode_into(names, &mut out),
            Self::Clock(reading) => codec::encode_into(reading, &mut out),
            Self::Ages(ages) => codec::encode_into(ages, &mut out),
            Self::FollowOf(follow) => codec::encode_into(follow, &mut out),
            Self::Confirmed(confirmed) => codec::encode_into(confirmed, &mut out),
            Self::PassedUp(passed) => codec::encode_into(passed, &mut out),
            Self::Relays(relays) => codec::encode_into(relays, &mut out),
        };
        encoded.expect("control frames hold only types that encode");
        let head = header(self.kind(), out.len() - HEADER_BYTES);
        out[..HEADER_BYTES].copy_from_slice(&head);
        out
    }

    /// The control frame that a raw frame holds.
    ///
    /// # Errors
    /// [`FrameError::Body`] if it does not decode; [`FrameError::Type`] if it is no control frame;
    /// [`FrameError::TooMany`] if a list in it exceeds its limit, [`FrameError::LongText`] if a text does.
    pub fn decode(frame: &RawFrame) -> Result<Self, FrameError> {
        let body = &frame.body[..];
        let kind = frame.kind;
        let control = match kind {
            FrameType::Hello => codec::decode(body).map(Self::Hello),
            FrameType::Follow => codec::decode(body).map(Self::Follow),
            FrameType::Resume => codec::decode(body).map(Self::Resume),
            FrameType::Reset => codec::decode(body).map(Self::Reset),
            FrameType::Probe => codec::decode(body).map(Self::Probe),
            FrameType::Heartbeat => codec::decode(body).map(Self::Heartbeat),
            FrameType::Ack => codec::decode(body).map(Self::Ack),
            FrameType::Goodbye => codec::decode(body).map(Self::Goodbye),
            FrameType::Refused => codec::decode(body).map(Self::Refused),
            FrameType::Members => codec::decode(body).map(Self::Members),
            FrameType::Caches => codec::decode(body).map(Self::Caches),
            FrameType::Clock => codec::decode(body).map(Self::Clock),
            FrameType::Ages => codec::decode(body).map(Self::Ages),
            FrameType::FollowOf => codec::decode(body).map(Self::FollowOf),
            FrameType::Lacking => codec::decode(body).map(Self::Lacking),
            FrameType::Confirmed => codec::decode(body).map(Self::Confirmed),
            FrameType::PassedUp => codec::decode(body).map(Self::PassedUp),
            FrameType::Relays => codec::decode(body).map(Self::Relays),
            FrameType::Events | FrameType::Ask | FrameType::Answer => {
                return Err(FrameError::Type(kind as u8));
            }
        }
        .map_err(|error| FrameError::Body(kind, error))?;
        let (elements, most) = match &control {
            Self::Hello(hello) => (hello.members.members.len(), MEMBERS_MAX),
            Self::Members(set) => (set.members.len(), MEMBERS_MAX),
            Self::Caches(names) => (names.len(), CACHES_MAX),
            Self::Ages(ages) => (ages.len(), AGES_MAX),
            Self::Confirmed(confirmed) => (confirmed.origins.len(), MEMBERS_MAX),
            Self::PassedUp(passed) => (passed.acked.len(), ACKED_MAX),
            _ => (0, 0),
        };
        if elements > most {
            return Err(FrameError::TooMany(kind, elements));
        }
        let longest = match &control {
            Self::Hello(hello) => hello.zone.len().max(hello.release.len()),
            Self::Caches(names) => names.iter().map(String::len).max().unwrap_or(0),
            _ => 0,
        };
        if longest > TEXT_BYTES_MAX { Err(FrameError::LongText(kind, longest)) } else { Ok(control) }
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
