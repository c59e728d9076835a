//! What can go wrong with a store.

use std::sync::Arc;

use crate::event::InvalidEvent;

/// The store cannot do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It was closed.
    #[error("the store is closed")]
    Closed,
    /// Writing or reading failed. The error's kind and text say why: [`std::io::ErrorKind::StorageFull`] where a disk
    /// is full. After a write that failed a store on disk takes nothing more until it has taken up again what it has
    /// stored, which it tries by itself when it is asked for something: try again after a second or later. A server
    /// answers and refuses: its text says what to do.
    #[error("the store failed")]
    Failed(#[source] Arc<std::io::Error>),
    /// A server does not answer, or takes nothing for now; later it may.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// This driver cannot do it at all.
    #[error("not supported by the {driver} driver: {what}")]
    Unsupported {
        /// Which driver.
        driver: &'static str,
        /// What was asked for.
        what: &'static str,
    },
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(Arc::new(error))
    }
}

/// Nothing was published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// An event is none. Publish it differently.
    #[error("the event is not valid")]
    Invalid(#[from] InvalidEvent),
    /// The topic remembers as many idempotency keys as it can. Later it forgets the oldest.
    #[error("too many idempotency keys within the topic's window")]
    TooManyKeys,
    /// The store cannot. It may have stored the events all the same: with idempotency keys it is safe to try again
    /// within their window.
    #[error("cannot publish")]
    Store(#[from] StoreError),
}

/// Nothing was done for a group.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    /// The topic has no such group.
    #[error("there is no such group")]
    Unknown,
    /// The store cannot.
    #[error("cannot do it for the group")]
    Store(#[from] StoreError),
}

/// Nothing was done with a dead letter.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// There is none, or none any more.
    #[error("there is no such dead letter")]
    Unknown,
    /// Its group was removed: nobody would get it. Make the group again, or publish the event.
    #[error("the dead letter's group is gone")]
    NoGroup,
    /// The store cannot.
    #[error("cannot do it with the dead letter")]
    Store(#[from] StoreError),
}
