//! An event that was delivered, and the word about it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::call::{Action, Delivered, Outcome, Settlement};
use crate::error::{GroupError, StoreError};
use crate::event::Event;
use crate::id::{DeadLetterId, Timestamp};
use crate::settings::WAIT_MAX;
use crate::streams::Group;

/// How long to wait before a word is said again that a store did not hear; doubled up to the longest.
const REPEAT_FIRST: Duration = Duration::from_millis(50);
const REPEAT_MAX: Duration = Duration::from_secs(2);

/// An event that was delivered. Dropped without a word, it is delivered again after the topic's `min_idle_time`.
///
/// A word to a store that cannot be reached ([`StoreError::Unreachable`]) is said again until the delivery's time is
/// over or the streams are shut down: nobody else gets the event before.
#[derive(Debug)]
#[must_use = "an event that is not settled is delivered again"]
pub struct Delivery {
    group: Group,
    delivered: Delivered,
    /// Until when it is worth saying anything, by the clock of this process.
    ends: Mutex<Instant>,
}

/// A delivery could not be settled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SettleError {
    /// The event was delivered again since, or failed: it is in other hands, and nothing was done. After a store could
    /// not be reached it may also have heard a failure without its answer being heard here.
    #[error("the event was delivered again since")]
    Stale,
    /// The event was settled, or removed. Nothing was done. After a store could not be reached it may also have made it
    /// a dead letter, as it was told.
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
        let ends = Mutex::new(Instant::now() + group.stream().topic().settings.min_idle_time);
        Self { group, delivered, ends }
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
        let until = self.prolong(by).await?;
        self.delivered.until = until;
        Ok(until)
    }

    /// How long a delivery of this topic may take.
    pub(crate) fn group_idle_time(&self) -> Duration {
        self.group.stream().topic().settings.min_idle_time
    }

    /// Extends by as much as it had at first.
    pub(crate) async fn keep(&self) -> Result<(), SettleError> {
        self.prolong(self.group_idle_time()).await.map(drop)
    }

    async fn prolong(&self, by: Duration) -> Result<Timestamp, SettleError> {
        let asked = Instant::now();
        match self.settle(Action::Extend { by }).await? {
            Outcome::Extended(until) => {
                *self.ends.lock() = asked + by.min(WAIT_MAX);
                Ok(until)
            }
            other => unreachable!("an extension is answered with its end, not with {other:?}"),
        }
    }

    async fn settle(&self, action: Action) -> Result<Outcome, SettleError> {
        let is_ack = action == Action::Ack;
        let (id, tag) = (self.delivered.event.id, Some(self.delivered.tag));
        let word = Settlement { id, tag, action };
        let (mut pause, mut was_unheard) = (REPEAT_FIRST, false);
        let outcomes = loop {
            match self.group.settle(vec![word.clone()]).await {
                Ok(outcomes) => break outcomes,
                Err(GroupError::Store(error @ StoreError::Unreachable(_))) => {
                    was_unheard = true;
                    let again = Instant::now() + pause;
                    let is_over = again >= *self.ends.lock();
                    let sleep = tokio::time::sleep_until(again);
                    let stopping = self.group.stream().streams().stopping();
                    if is_over || stopping.run_until_cancelled(sleep).await.is_none() {
                        return Err(GroupError::Store(error).into());
                    }
                    pause = (pause * 2).min(REPEAT_MAX);
                }
                Err(error) => return Err(error.into()),
            }
        };
        match outcomes.into_iter().next().expect("a driver answers for every settlement") {
            Outcome::Stale => Err(SettleError::Stale),
            // The word was heard, and its answer was not: before the delivery's time is over nobody else can have
            // settled the event. Later it may have been given up since, and made a dead letter.
            Outcome::Unknown if is_ack && was_unheard && Instant::now() < *self.ends.lock() => {
                Ok(Outcome::Acked)
            }
            Outcome::Unknown => Err(SettleError::Unknown),
            done => Ok(done),
        }
    }
}
