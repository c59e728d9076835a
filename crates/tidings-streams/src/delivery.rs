//! An event that was delivered, and the word about it.

use std::time::Duration;

use crate::call::{Action, Delivered, Outcome, Settlement};
use crate::error::GroupError;
use crate::event::Event;
use crate::id::{DeadLetterId, Timestamp};
use crate::streams::Group;

/// An event that was delivered. Dropped without a word, it is delivered again after the topic's `min_idle_time`.
#[derive(Debug)]
#[must_use = "an event that is not settled is delivered again"]
pub struct Delivery {
    group: Group,
    delivered: Delivered,
}

/// A delivery could not be settled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SettleError {
    /// The event was delivered again since, or failed: it is in other hands, and nothing was done.
    #[error("the event was delivered again since")]
    Stale,
    /// The event was settled, or removed. Nothing was done.
    #[error("the event is not under way")]
    Unknown,
    /// The group or the store cannot. Without a word the event is delivered again.
    #[error("cannot settle the delivery")]
    Group(#[from] GroupError),
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The event is delivered again, from then on.
    RetryAt(Timestamp),
    /// It was the last delivery.
    Buried(DeadLetterId),
}

impl Delivery {
    pub(crate) fn new(group: Group, delivered: Delivered) -> Self {
        Self { group, delivered }
    }

    /// The event.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.delivered.event
    }

    /// The how-many-eth delivery to this group it is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.delivered.tag.attempt
    }

    /// From when on somebody else may get the event.
    #[must_use]
    pub fn until(&self) -> Timestamp {
        self.delivered.until
    }

    /// The delivery as the driver answered it.
    #[must_use]
    pub fn delivered(&self) -> &Delivered {
        &self.delivered
    }

    /// The event is done for this group.
    ///
    /// # Errors
    /// [`SettleError`].
    pub async fn ack(&self) -> Result<(), SettleError> {
        self.settle(Action::Ack).await.map(|_| ())
    }

    /// It failed: it is delivered again after a wait, or is a dead letter if this was the last time.
    ///
    /// # Errors
    /// [`SettleError`].
    pub async fn fail(&self, reason: impl Into<String>) -> Result<Failed, SettleError> {
        match self.settle(Action::Fail { reason: reason.into() }).await? {
            Outcome::RetryAt(due) => Ok(Failed::RetryAt(due)),
            Outcome::Buried(id) => Ok(Failed::Buried(id)),
            other => unreachable!("a failure is answered with what follows it, not with {other:?}"),
        }
    }

    /// It takes longer: so long from now on, [`crate::WAIT_MAX`] at most. Until when, is answered.
    ///
    /// # Errors
    /// [`SettleError`].
    pub async fn extend(&mut self, by: Duration) -> Result<Timestamp, SettleError> {
        match self.settle(Action::Extend { by }).await? {
            Outcome::Extended(until) => {
                self.delivered.until = until;
                Ok(until)
            }
            other => unreachable!("an extension is answered with its end, not with {other:?}"),
        }
    }

    /// How long a delivery of this topic may take.
    pub(crate) fn group_idle_time(&self) -> Duration {
        self.group.stream().topic().settings.min_idle_time
    }

    /// Extends by as much as it had at first.
    pub(crate) async fn keep(&self) -> Result<(), SettleError> {
        self.settle(Action::Extend { by: self.group_idle_time() }).await.map(|_| ())
    }

    async fn settle(&self, action: Action) -> Result<Outcome, SettleError> {
        let (id, tag) = (self.delivered.event.id, Some(self.delivered.tag));
        let outcomes = self.group.settle(vec![Settlement { id, tag, action }]).await?;
        match outcomes.into_iter().next().expect("a driver answers for every settlement") {
            Outcome::Stale => Err(SettleError::Stale),
            Outcome::Unknown => Err(SettleError::Unknown),
            done => Ok(done),
        }
    }
}
