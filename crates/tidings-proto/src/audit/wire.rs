//! What an auditor asks and is answered. Bodies of questions between nodes, encoded by [`crate::codec`].

use serde::{Deserialize, Serialize};

use super::Held;
use crate::codec::{self, CodecError};
use crate::hash::CacheId;
use crate::record::KEY_BYTES_MAX;

/// Most entries of a page: 13.5 KiB of hashes, of the 16 that a question may have. With some microseconds for each, it
/// is answered within a few milliseconds.
pub const PAGE_KEYS_MAX: usize = 768;

/// Most keys that are asked for whole.
pub const KEYS_MAX: usize = 64;

/// Most bytes of those together.
pub const KEYS_BYTES_MAX: usize = 12 << 10;

/// Which hash is made of encoded values, and how they are encoded. Nodes of different versions do not compare.
pub const DIGEST_VERSION: u8 = 1;

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// [`DIGEST_VERSION`] of who asks.
    pub digests: u8,
    /// The id of the cache.
    cache: u32,
    /// The schema of its values there.
    pub schema: u32,
}

impl Subject {
    /// A cache of this node, with its schema.
    #[must_use]
    pub fn new(cache: CacheId, schema: u32) -> Self {
        Self { digests: DIGEST_VERSION, cache: cache.0, schema }
    }

    /// Which cache.
    #[must_use]
    pub fn cache(&self) -> CacheId {
        CacheId(self.cache)
    }
}

/// An entry as a page has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digested {
    /// Hash of the encoded key.
    pub key: u64,
    /// Hash of the encoded value.
    pub value: u64,
}

/// What a node asks a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Which of these do you hold with another value?
    Page(Subject, Vec<Digested>),
    /// What do you hold under these keys?
    Keys(Subject, Vec<Vec<u8>>),
}

/// An entry of a page that is held with another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differing {
    /// Its place in the page.
    pub at: u32,
    /// What is held.
    pub held: Held,
}

/// Why entries of a cache cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Incomparable {
    /// The cache is not open there.
    NotHosted,
    /// Its values have another schema there, or are hashed in another way.
    OtherSchema,
    /// It is not to be audited there.
    NotAudited,
}

/// What a peer answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing can be said.
    Incomparable(Incomparable),
    /// Of a page.
    Page {
        /// How many of its entries are held.
        held: u32,
        /// Those of them whose values differ, by their places.
        differing: Vec<Differing>,
    },
    /// Of keys.
    Keys {
        /// Everything that all members did up to so many milliseconds before it looked was applied there. `None`: that
        /// cannot be said.
        applied_ago_ms: Option<u64>,
        /// What is held under each of them.
        held: Vec<Option<Held>>,
    },
}

/// A question or an answer that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error("cannot be read")]
    Codec(#[from] CodecError),
    /// It names more entries or keys than may be, or a key that is too long.
    #[error("more than may be asked at once")]
    TooMuch,
    /// It does not answer what was asked.
    #[error("no answer to what was asked")]
    Mismatch,
}

impl Question {
    /// What it is about.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        let (Self::Page(subject, _) | Self::Keys(subject, _)) = self;
        subject
    }

    /// The body of the question.
    ///
    /// # Panics
    /// Never: numbers and bytes encode.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self).expect("numbers and bytes encode")
    }

    /// Reads the body of a question.
    ///
    /// # Errors
    /// [`Unusable::Codec`] and [`Unusable::TooMuch`].
    pub fn decode(body: &[u8]) -> Result<Self, Unusable> {
        let question: Self = codec::decode(body)?;
        let bounded = match &question {
            Self::Page(_, entries) => entries.len() <= PAGE_KEYS_MAX,
            Self::Keys(_, keys) => {
                let bytes: usize = keys.iter().map(Vec::len).sum();
                let short = keys.iter().all(|key| key.len() <= KEY_BYTES_MAX);
                keys.len() <= KEYS_MAX && bytes <= KEYS_BYTES_MAX && short
            }
        };
        if bounded { Ok(question) } else { Err(Unusable::TooMuch) }
    }
}

impl Answer {
    /// The body of the answer.
    ///
    /// # Panics
    /// Never: numbers encode.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self).expect("numbers encode")
    }

    /// Reads the body of the answer to a question.
    ///
    /// # Errors
    /// [`Unusable::Codec`] and [`Unusable::Mismatch`].
    pub fn decode(body: &[u8], to: &Question) -> Result<Self, Unusable> {
        let answer: Self = codec::decode(body)?;
        let fits = match (&answer, to) {
            (Self::Incomparable(_), _) => true,
            (Self::Page { held, differing }, Question::Page(_, entries)) => {
                let inside = differing.iter().all(|it| (it.at as usize) < entries.len());
                let ordered = differing.is_sorted_by(|a, b| a.at < b.at);
                inside && ordered && *held as usize <= entries.len() && differing.len() <= *held as usize
            }
            (Self::Keys { held, .. }, Question::Keys(_, keys)) => held.len() == keys.len(),
            _ => false,
        };
        if fits { Ok(answer) } else { Err(Unusable::Mismatch) }
    }
}
