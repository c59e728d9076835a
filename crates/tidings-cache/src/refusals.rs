//! Writes of peers that were refused because their time is of the future: their authors are to be told.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tidings_proto::hash::CacheId;
use tidings_proto::id::Origin;
use tidings_proto::replicate::WriteStamp;
use tidings_proto::replicate::copy::{Changed, Question};

use crate::domain::Domain;
use crate::event::RawTarget;

/// Most refusals that wait to be told; of more the oldest is dropped. An author whose clock is wrong is told of what it
/// writes next, too.
const REFUSALS_MAX: usize = 1_024;

/// A write that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose write.
    pub origin: Arc<Origin>,
    /// In which cache.
    pub cache: CacheId,
    /// What it has changed.
    pub of: Refused,
    /// Which write.
    pub stamp: WriteStamp,
}

/// What a write has changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refused {
    /// A key.
    Key(Bytes),
    /// Everything with a tag.
    Tag(Arc<str>),
    /// Everything whose key starts so.
    Prefix(Arc<str>),
    /// Everything.
    All,
}

impl Refused {
    /// Borrows it.
    #[must_use]
    pub fn borrowed(&self) -> Changed<'_> {
        match self {
            Self::Key(key) => Changed::Key(key),
            Self::Tag(tag) => Changed::Tag(tag),
            Self::Prefix(prefix) => Changed::Prefix(prefix),
            Self::All => Changed::All,
        }
    }

    pub(crate) fn of_whole(target: &RawTarget) -> Self {
        match target {
            RawTarget::Tag(tag) => Self::Tag(tag.clone()),
            RawTarget::Prefix(prefix) => Self::Prefix(prefix.clone()),
            _ => Self::All,
        }
    }
}

impl Refusal {
    /// How its author is told.
    #[must_use]
    pub fn question(&self) -> Question<'_> {
        Question::Refused { stamp: self.stamp, of: self.of.borrowed() }
    }
}

/// Those that wait.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    pub(crate) fn add(&self, refusal: Refusal) {
        let mut waiting = self.0.lock();
        if waiting.len() == REFUSALS_MAX {
            waiting.pop_front();
        }
        waiting.push_back(refusal);
    }
}

impl Domain {
    /// Takes the refusals that wait, so that their authors are told: see [`crate::Replicating::answer`] there.
    #[must_use]
    pub fn take_refusals(&self) -> Vec<Refusal> {
        self.inner().refusals.0.lock().drain(..).collect()
    }
}
