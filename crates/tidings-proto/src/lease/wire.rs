//! What nodes ask each other about leases, as questions of [`Topic::Lease`](crate::ask::Topic::Lease).
//!
//! Every question is answered at once. Who waits is told in a question of the home's own, so that no stream is held by
//! a wait, and a result goes from who loaded it straight to who wants it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Ages, LeaseId, LeaseKey, SEEN_MAX, Seen};
use crate::codec::{self, CodecError};
use crate::hash::CacheId;
use crate::id::NodeId;
use crate::record::KEY_BYTES_MAX;

/// Longest result of a load that is shared, in bytes. With what its node had seen beside it, it fits into an answer.
pub const RESULT_BYTES_MAX: usize = 768 << 10;

/// A lease of whatever home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseRef {
    /// The home's log id: one that starts again numbers its leases anew.
    pub home: u64,
    /// The lease's number there.
    pub id: u64,
}

impl LeaseRef {
    /// Its number at its home.
    #[must_use]
    pub fn lease(self) -> LeaseId {
        LeaseId(self.id)
    }
}

/// What an asker is told, sooner or later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Load, and say how that ended.
    Load(LeaseRef),
    /// This node has what a load under this lease brought.
    Brought {
        /// Which node.
        holder: NodeId,
        /// Which lease.
        lease: LeaseRef,
        /// When that was.
        ages: WireAges,
    },
    /// Load, and say nothing.
    Refused,
}

/// [`Ages`], in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireAges {
    lease: u64,
    question: u64,
}

impl From<Ages> for WireAges {
    fn from(ages: Ages) -> Self {
        let nanos = |age: std::time::Duration| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        Self { lease: nanos(ages.lease), question: nanos(ages.question) }
    }
}

impl From<WireAges> for Ages {
    fn from(ages: WireAges) -> Self {
        let nanos = std::time::Duration::from_nanos;
        Self { lease: nanos(ages.lease), question: nanos(ages.question) }
    }
}

/// A question about leases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseQuestion {
    /// To a key's home: who loads it?
    Ask {
        /// By which the asker is told.
        ticket: u64,
        /// The key.
        key: WireKey,
        /// Which layout the asker's values have.
        schema: u32,
        /// How long it waits, in milliseconds.
        patience_ms: u32,
    },
    /// From the home, to one who waits.
    Tell {
        /// The asker's.
        ticket: u64,
        /// Which key it asked for ([`LeaseKey::key_hash`]): a ticket of another life of its node may be for another one.
        key: u64,
        /// What.
        told: Told,
    },
    /// To the home: a load under a lease has ended.
    Ended {
        /// Of which key.
        key: WireKey,
        /// Under which lease.
        lease: LeaseRef,
        /// Whether the asking node has a result for those who wait.
        brought: bool,
    },
    /// To who has loaded: what did the load under this lease bring?
    Take {
        /// Which lease.
        lease: LeaseRef,
        /// Of which key ([`LeaseKey::key_hash`]).
        key: u64,
    },
}

/// The answer to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseAnswer {
    /// To [`LeaseQuestion::Ask`]: at once.
    Told(Told),
    /// To [`LeaseQuestion::Ask`]: somebody else loads; wait.
    Waiting,
    /// To [`LeaseQuestion::Ask`]: this node gives no leases of that cache.
    NotHere,
    /// To [`LeaseQuestion::Tell`] and [`LeaseQuestion::Ended`]: whether anybody waited for it.
    Noted(bool),
    /// To [`LeaseQuestion::Take`]: what the loader's node had seen before the load began, and what it brought.
    Result(Seen, Vec<u8>),
    /// To [`LeaseQuestion::Take`]: it is not there any more.
    Gone,
}

/// A [`LeaseKey`] as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireKey {
    cache: u32,
    bytes: Vec<u8>,
}

impl From<&LeaseKey> for WireKey {
    fn from(key: &LeaseKey) -> Self {
        Self { cache: key.cache.0, bytes: key.bytes.to_vec() }
    }
}

impl From<WireKey> for LeaseKey {
    fn from(key: WireKey) -> Self {
        Self { cache: CacheId(key.cache), bytes: Bytes::from(key.bytes) }
    }
}

/// What a load brought, as caches share it: the bytes of a [`LeaseAnswer::Result`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedLoad {
    /// The key has no value.
    Absent,
    /// It has one.
    Value {
        /// As its cache encodes it.
        bytes: Vec<u8>,
        /// Its tags, besides those that its cache computes.
        tags: Vec<String>,
        /// Its version, where values have some.
        version: Option<u64>,
    },
}

/// A question or answer about leases cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LeaseWireError {
    /// It is none.
    #[error("no question or answer about a lease")]
    Codec(#[from] CodecError),
    /// Its key is longer than any can be.
    #[error("a key of {0} bytes exceeds {KEY_BYTES_MAX}")]
    Key(usize),
    /// It names more origins than an answer may.
    #[error("{0} origins exceed {SEEN_MAX}")]
    Seen(usize),
    /// Its result is too long.
    #[error("a result of {0} bytes exceeds {RESULT_BYTES_MAX}")]
    Result(usize),
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    codec::encode(value).expect("integers, texts and bytes encode").into()
}

impl SharedLoad {
    /// Its bytes; `None` if they are more than [`RESULT_BYTES_MAX`].
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        Some(encode(self)).filter(|bytes| bytes.len() <= RESULT_BYTES_MAX)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`LeaseWireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LeaseWireError> {
        Ok(codec::decode(bytes)?)
    }
}

impl LeaseQuestion {
    /// Its bytes: at most 32 more than its key has, or 64 more than the name of who holds a result.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`LeaseWireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LeaseWireError> {
        let question = codec::decode(bytes)?;
        match &question {
            Self::Ask { key, .. } | Self::Ended { key, .. } if key.bytes.len() > KEY_BYTES_MAX => {
                Err(LeaseWireError::Key(key.bytes.len()))
            }
            _ => Ok(question),
        }
    }
}

impl LeaseAnswer {
    /// Its bytes.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`LeaseWireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LeaseWireError> {
        let answer = codec::decode(bytes)?;
        match &answer {
            Self::Result(seen, _) if seen.len() > SEEN_MAX => Err(LeaseWireError::Seen(seen.len())),
            Self::Result(_, result) if result.len() > RESULT_BYTES_MAX => {
                Err(LeaseWireError::Result(result.len()))
            }
            _ => Ok(answer),
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
