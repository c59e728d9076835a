//! Events that wait in memory until their publisher says that it has committed.

use std::fmt;

use crate::error::PublishError;
use crate::event::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, InvalidEvent, NewEvent, Published};
use crate::settings::TopicError;
use crate::streams::{Stream, Streams};

/// Most events that wait for one commit: what needs more of them needs a table, and with it the outbox.
pub const AFTER_COMMIT_EVENTS_MAX: usize = 10_000;

/// Payloads of the events that wait for one commit together, in bytes.
pub const AFTER_COMMIT_BYTES_MAX: usize = 64 << 20;

/// An event does not wait. Those that did still do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AfterCommitError {
    /// Streams do not take its topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// No topic takes it.
    #[error("the event is not valid")]
    Invalid(#[from] InvalidEvent),
    /// Beyond [`AFTER_COMMIT_EVENTS_MAX`] or [`AFTER_COMMIT_BYTES_MAX`].
    #[error(
        "at most {AFTER_COMMIT_EVENTS_MAX} events of {AFTER_COMMIT_BYTES_MAX} bytes together wait for one commit"
    )]
    Full,
}

/// Some events were not published, or the store does not say so.
#[derive(Debug, thiserror::Error)]
#[error("{} events of what was committed are not published", left.len())]
pub struct NotPublished {
    /// Why.
    pub source: PublishError,
    /// From the first of them on, in order. Committing them again is safe: each has an idempotency key, so that within
    /// its topic's window the store takes none twice.
    pub left: AfterCommit,
}

/// Events that wait in memory for a commit, and are dropped with this value.
///
/// ```
/// # use tidings_streams::{NewEvent, NotPublished, Streams};
/// # async fn example(streams: Streams) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = streams.after_commit();
/// events.publish("orders", NewEvent::new("{\"order\":7}"))?;
///
/// let mut attempt = events.savepoint();
/// attempt.publish("mails", NewEvent::new("never sent"))?;
/// drop(attempt); // rolled back, like the part of the transaction that it stands for
///
/// // The transaction has committed:
/// events.commit().await?;
/// # Ok(())
/// # }
/// ```
///
/// It is memory: what a process had not published when it ended is lost, though its transaction had committed. Whoever
/// cannot lose it has the outbox of `tidings-outbox`, which is a table in the transaction's database.
pub struct AfterCommit {
    streams: Streams,
    events: Vec<(Stream, NewEvent)>,
    bytes: usize,
}

impl fmt::Debug for AfterCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterCommit").field("events", &self.events.len()).finish_non_exhaustive()
    }
}

impl Streams {
    /// Begins to collect events that are published when whoever does so says that it has committed.
    #[must_use]
    pub fn after_commit(&self) -> AfterCommit {
        AfterCommit { streams: self.clone(), events: Vec::new(), bytes: 0 }
    }
}

impl AfterCommit {
    /// Has an event wait. Judged now: nothing that streams do not take comes to a commit.
    ///
    /// # Errors
    /// [`AfterCommitError`].
    pub fn publish(&mut self, topic: &str, mut event: NewEvent) -> Result<(), AfterCommitError> {
        let stream = self.streams.stream(topic)?;
        event.validate()?;
        let bytes = self.bytes + event.payload.len();
        if self.events.len() >= AFTER_COMMIT_EVENTS_MAX || bytes > AFTER_COMMIT_BYTES_MAX {
            return Err(AfterCommitError::Full);
        }
        let key = event.idempotency_key.take();
        event.idempotency_key =
            Some(key.unwrap_or_else(|| format!("commit-{:032x}", rand::random::<u128>())));
        self.events.push((stream, event));
        self.bytes = bytes;
        Ok(())
    }

    /// Begins a part that can be rolled back by itself. Parts can have parts.
    pub fn savepoint(&mut self) -> Savepoint<'_> {
        let (events, bytes) = (self.events.len(), self.bytes);
        Savepoint { of: self, events, bytes, is_released: false }
    }

    /// How many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Publishes what waits, in the order in which it came.
    ///
    /// # Errors
    /// [`NotPublished`], with what is left.
    ///
    /// # Cancel safety
    /// Not cancel-safe: what is left is lost with the call.
    pub async fn commit(mut self) -> Result<Vec<Published>, NotPublished> {
        let mut published = Vec::with_capacity(self.events.len());
        while published.len() < self.events.len() {
            let rest = &self.events[published.len()..];
            let stream = rest[0].0.clone();
            let batch = rest[..batch(rest)].iter().map(|(_, event)| event.clone()).collect();
            match stream.publish_batch(batch).await {
                Ok(stored) => published.extend(stored),
                Err(source) => {
                    let gone = self.events.drain(..published.len());
                    self.bytes -= gone.map(|(_, event)| event.payload.len()).sum::<usize>();
                    return Err(NotPublished { source, left: self });
                }
            }
        }
        Ok(published)
    }

    /// Drops what waits; so does dropping this value.
    pub fn rollback(self) {}
}

/// How many events from the first one on are one batch: of one topic, within its limits.
fn batch(events: &[(Stream, NewEvent)]) -> usize {
    let topic = &events[0].0.topic().name;
    let mut bytes = 0;
    let fits = |(stream, event): &&(Stream, NewEvent)| {
        bytes += event.payload.len();
        stream.topic().name == *topic && bytes <= BATCH_BYTES_MAX
    };
    events.iter().take(BATCH_EVENTS_MAX).take_while(fits).count()
}

/// A part of what waits: dropped, it is rolled back.
#[derive(Debug)]
#[must_use = "dropping it rolls it back"]
pub struct Savepoint<'a> {
    of: &'a mut AfterCommit,
    events: usize,
    bytes: usize,
    is_released: bool,
}

impl Savepoint<'_> {
    /// Has an event wait, as [`AfterCommit::publish`] does.
    ///
    /// # Errors
    /// [`AfterCommitError`].
    pub fn publish(&mut self, topic: &str, event: NewEvent) -> Result<(), AfterCommitError> {
        self.of.publish(topic, event)
    }

    /// Begins a part of this part.
    pub fn savepoint(&mut self) -> Savepoint<'_> {
        self.of.savepoint()
    }

    /// Makes it a part like all else of what it is a part of: it is published or rolled back with that.
    pub fn release(mut self) {
        self.is_released = true;
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        if !self.is_released {
            self.of.events.truncate(self.events);
            self.of.bytes = self.bytes;
        }
    }
}
