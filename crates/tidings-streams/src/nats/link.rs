//! The connection that all calls share, and what is asked of the server on it. It is made anew when it is lost.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_nats::connection::State as Connection;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};
use async_nats::jetstream::{Context, stream};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::config::Server;
use super::error::{Refusal, of_any, of_api, of_publish, of_request};
use super::wire::Message;
use crate::error::StoreError;
use crate::id::Timestamp;

/// How long to wait before one looks again whether a connection is there: it says so by itself, most of the time.
const CONNECTED_AGAIN: Duration = Duration::from_millis(50);

/// How long a consumer that nobody asks is kept.
const CONSUMER_IDLE_MAX: Duration = Duration::from_secs(60);

/// What stores go by where it is not the server's clock.
pub(super) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A message that was stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
    pub(super) time: Timestamp,
}

impl From<StreamMessage> for Stored {
    fn from(message: StreamMessage) -> Self {
        Self {
            sequence: message.sequence,
            subject: message.subject.to_string(),
            headers: message.headers,
            payload: message.payload,
            time: moment(message.time.unix_timestamp_nanos()),
        }
    }
}

fn moment(nanos: i128) -> Timestamp {
    Timestamp(u64::try_from(nanos / 1_000_000).unwrap_or(0))
}

/// Which message to look for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    /// The one with this sequence.
    At(u64),
    /// The first one of a subject from this sequence on.
    NextOf(&'a str, u64),
    /// The last one of a subject.
    LastOf(&'a str),
}

pub(super) struct Link {
    client: Client,
    context: Context,
    address: String,
    timeout: Duration,
    closed: CancellationToken,
    /// Counts how often something became of the connection.
    changes: watch::Receiver<u64>,
    clock: Option<Clock>,
    /// How far the server's clock is ahead of this machine's, in milliseconds.
    ahead: AtomicI64,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(
        (client, context): (Client, Context),
        (address, timeout): (String, Duration),
        changes: watch::Receiver<u64>,
        clock: Option<Clock>,
    ) -> Self {
        let (closed, ahead) = (CancellationToken::new(), AtomicI64::new(0));
        Self { client, context, address, timeout, closed, changes, clock, ahead }
    }

    /// What the server said of itself when it was last connected to.
    pub(super) fn server(&self) -> Server {
        let said = self.client.server_info();
        Server {
            version: said.version,
            name: said.server_name,
            has_jetstream: said.jetstream,
            max_payload: said.max_payload,
        }
    }

    pub(super) fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub(super) async fn close(&self) {
        self.closed.cancel();
        // Whatever comes of it: the connection ends with the last one that has it, too.
        drop(tokio::time::timeout(self.timeout, self.client.drain()).await);
    }

    /// Which connection there is, told from all that were before. `None`: there is none.
    pub(super) fn connection(&self) -> Option<(String, u64)> {
        let said = self.client.server_info();
        let is_connected = self.client.connection_state() == Connection::Connected;
        is_connected.then_some((said.server_id, said.client_id))
    }

    /// Tells of what becomes of the connection.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// The moment by the server's clock.
    pub(super) fn now(&self) -> Timestamp {
        match &self.clock {
            Some(clock) => clock(),
            None => {
                let ahead = self.ahead.load(Ordering::Relaxed);
                let shift = Duration::from_millis(ahead.unsigned_abs());
                if ahead < 0 { Timestamp::now().before(shift) } else { Timestamp::now().after(shift) }
            }
        }
    }

    /// Compares the server's clock with this machine's: a consumer says when it was made. What can be explained by the
    /// way there and back is no difference.
    pub(super) async fn compare_clocks(&self, stream: &str) -> Result<(), StoreError> {
        let sent = Timestamp::now();
        let consumer = self.watcher(stream, String::new()).await?;
        let heard = Timestamp::now();
        let made = moment(consumer.cached_info().created.unix_timestamp_nanos());
        let ahead = difference(made, heard).max(0) + difference(made, sent).min(0);
        if ahead != self.ahead.swap(ahead, Ordering::Relaxed) {
            tracing::warn!(ahead, "the server's clock differs from this machine's by so many milliseconds");
        }
        let name = &consumer.cached_info().name;
        let _: serde_json::Value = self
            .api(format!("CONSUMER.DELETE.{stream}.{name}"), &json!({}))
            .await
            .map_err(Refusal::into_store)?;
        Ok(())
    }

    /// Does something within a call's time, with a connection. Boxed: calls are made of calls.
    pub(super) fn within<'a, T: 'a, E: From<StoreError> + 'a>(
        &'a self,
        doing: impl Future<Output = Result<T, E>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, E>> {
        let deadline = Instant::now() + self.timeout;
        let doing = async move {
            let doing = async {
                self.connected().await;
                doing.await
            };
            match self.closed.run_until_cancelled(timeout_at(deadline, doing)).await {
                None => Err(StoreError::Closed.into()),
                Some(Ok(done)) => done,
                Some(Err(_)) => Err(self.late().into()),
            }
        };
        doing.boxed()
    }

    fn late(&self) -> StoreError {
        let what = match self.client.connection_state() {
            Connection::Connected => "no answer",
            _ => "no connection",
        };
        let text = format!("{what} from the server at {} within {:?}", self.address, self.timeout);
        StoreError::Unreachable(text)
    }

    /// Waits for a connection. What is said without one would be said when it is back, however late that is.
    async fn connected(&self) {
        let mut changes = self.changes.clone();
        while self.client.connection_state() != Connection::Connected {
            drop(tokio::time::timeout(CONNECTED_AGAIN, changes.changed()).await);
        }
    }

    /// Asks the server's interface for streams.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        what: String,
        with: &(impl Serialize + Sync),
    ) -> Result<T, Refusal> {
        self.within(async {
            match self.context.request(what, with).await {
                Ok(Response::Ok(answer)) => Ok(answer),
                Ok(Response::Err { error }) => Err(of_api(&error)),
                Err(error) => Err(of_request(&error)),
            }
        })
        .await
    }

    /// Sends a message to be stored, behind those that were sent before.
    pub(super) async fn send(&self, subject: String, message: Message) -> Result<PublishAckFuture, Refusal> {
        let mut publish = PublishMessage::build().payload(message.payload);
        if !message.headers.is_empty() {
            publish = publish.headers(message.headers);
        }
        self.within(async {
            self.context.send_publish(subject, publish).await.map_err(|error| of_publish(&error))
        })
        .await
    }

    /// Waits until a message is stored.
    pub(super) async fn stored(&self, sent: PublishAckFuture) -> Result<PublishAck, Refusal> {
        self.within(async { sent.await.map_err(|error| of_publish(&error)) }).await
    }

    /// Stores a message in a stream if the last one of its subject has this sequence: its own.
    pub(super) async fn store_behind(
        &self,
        (stream, subject): (&str, String),
        last: u64,
        mut message: Message,
    ) -> Result<u64, Refusal> {
        message.headers.insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string());
        let sent = self.send(subject, message).await?;
        match self.stored(sent).await {
            Ok(stored) => Ok(stored.sequence),
            Err(refusal) => Err(self.if_missing(refusal, stream).await),
        }
    }

    /// What it means that nobody takes a message: its stream is gone, or is there and has no leader for the moment.
    pub(super) async fn if_missing(&self, refusal: Refusal, stream: &str) -> Refusal {
        if !matches!(refusal, Refusal::Missing) {
            return refusal;
        }
        match self.info(stream).await {
            Ok(None) => Refusal::Missing,
            Ok(Some(_)) => {
                StoreError::Unreachable(format!("the stream {stream} takes nothing for now")).into()
            }
            Err(error) => error.into(),
        }
    }

    /// A message, by whoever leads the stream: nothing that was acknowledged is missing.
    pub(super) async fn get(&self, stream: &str, which: Which<'_>) -> Result<Option<Stored>, StoreError> {
        let getting = async {
            let stream = self.context.get_stream_no_info(stream).await;
            let builder = stream.map_err(|error| of_any(&error).into_store())?.raw_message_builder();
            let builder = match which {
                Which::At(sequence) => builder.sequence(sequence),
                Which::NextOf(subject, sequence) => builder.sequence(sequence).next_by_subject(subject),
                Which::LastOf(subject) => builder.last_by_subject(subject),
            };
            let error = match builder.send().await {
                Ok(message) => return Ok(Some(message.into())),
                Err(error) => error,
            };
            let refusal = match error.kind() {
                RawMessageErrorKind::NoMessageFound => Refusal::Missing,
                RawMessageErrorKind::JetStream(error) => of_api(&error),
                _ => of_any(&error),
            };
            match refusal {
                Refusal::Missing => Ok(None),
                refusal => Err(refusal.into_store()),
            }
        };
        self.within(getting).await
    }

    /// A message, by any server that has it. One that was stored a moment ago may be missing.
    pub(super) async fn get_direct(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, StoreError> {
        let getting = async {
            let handle = self.context.get_stream_no_info(stream).await;
            let handle = handle.map_err(|error| of_any(&error).into_store())?;
            match handle.direct_get(sequence).await {
                Ok(message) => Ok(Some(message.into())),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
                // It is one that may only be asked by way of the leader.
                Err(error) if error.kind() == DirectGetErrorKind::Request => {
                    self.get(stream, Which::At(sequence)).await
                }
                Err(error) => Err(of_any(&error).into_store()),
            }
        };
        self.within(getting).await
    }

    /// What a stream holds. `None`: there is none.
    pub(super) async fn info(&self, stream: &str) -> Result<Option<stream::Info>, StoreError> {
        if_any(self.api(format!("STREAM.INFO.{stream}"), &json!({})).await)
    }

    /// Removes what a stream holds below a sequence, of one subject or of all: how many messages.
    pub(super) async fn purge(
        &self,
        stream: &str,
        subject: Option<&str>,
        below: u64,
    ) -> Result<u64, StoreError> {
        /// What of an answer is of use.
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        let request = match subject {
            Some(subject) => json!({ "seq": below, "filter": subject }),
            None => json!({ "seq": below }),
        };
        let answer: Option<Purged> = if_any(self.api(format!("STREAM.PURGE.{stream}"), &request).await)?;
        Ok(answer.map_or(0, |answer| answer.purged))
    }

    /// Asks for a consumer that tells of new messages, without what they hold, to whoever asks it. It is forgotten when
    /// nobody does any more.
    pub(super) async fn watcher(&self, stream: &str, filter: String) -> Result<PullConsumer, StoreError> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::None,
            filter_subject: filter,
            headers_only: true,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: CONSUMER_IDLE_MAX,
            ..pull::Config::default()
        };
        let making = async {
            let made = self.context.create_consumer_on_stream(config, stream).await;
            made.map_err(|error| of_any(&error).into_store())
        };
        self.within(making).await
    }
}

/// What there is, or `None` where there is none.
pub(super) fn if_any<T>(answer: Result<T, Refusal>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Refusal::Missing) => Ok(None),
        Err(refusal) => Err(refusal.into_store()),
    }
}

/// By how many milliseconds one moment is later than another.
fn difference(one: Timestamp, other: Timestamp) -> i64 {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    millis(one.since(other)) - millis(other.since(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_have_a_sign() {
        assert_eq!(difference(Timestamp(5), Timestamp(3)), 2);
        assert_eq!(difference(Timestamp(3), Timestamp(5)), -2);
        assert_eq!(moment(1_700_000_000_123_999_999), Timestamp(1_700_000_000_123));
    }
}
