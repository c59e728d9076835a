//! Capturing what is changed in a cache into a stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::{Value, json};
use tidings_cache::{AnyCache, Item, RawEvent, RawSubscription, RawTarget, SubscribeError};
use tidings_streams::{
    Durability, KEY_BYTES_MAX, Name, NewEvent, PAYLOAD_BYTES_MAX, PublishError, StoreError, Stream,
    TopicError,
};
use tokio_util::sync::CancellationToken;

use super::change;

/// Most events of a batch: the store syncs once for all of them.
const BATCH_EVENTS: usize = 256;

/// Payloads of a batch, in bytes; one change more may come.
const BATCH_BYTES: usize = 1 << 20;

/// Encoded keys that one event names, in bytes: what names more becomes several. As text, with what JSON escapes, they
/// stay within what a payload may have.
const KEYS_BYTES: usize = 128 << 10;

/// How long a store that does not take a batch is left alone; doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Headers of a captured change.
const CACHE: &str = "tidings-cache";
const KIND: &str = "tidings-kind";

/// A cache's changes cannot be captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The node was built without streams.
    #[error("the node has no streams")]
    NoStreams,
    /// No cache of this name is open.
    #[error("there is no cache {0:?}")]
    UnknownCache(String),
    /// Streams do not take the topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// They are, into this topic.
    #[error("the cache's changes are captured into this topic already")]
    Twice,
    /// The cache was closed meanwhile.
    #[error("cannot hear the cache's events")]
    Subscribe(#[from] SubscribeError),
}

/// How far capturing one cache has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureReport {
    /// Which cache.
    pub cache: Arc<str>,
    /// Into which topic.
    pub topic: Name,
    /// Events that were published.
    pub captured: u64,
    /// Changes that were not: the store was behind for longer than the cache's ring reaches back, or was closed.
    pub missed: u64,
}

#[derive(Debug)]
pub(super) struct Capture {
    source: Arc<dyn AnyCache>,
    stream: Stream,
    /// Whether events get keys by which a store that was not heard knows them again. The embedded one is always heard,
    /// and would have to remember all of them for a while.
    named: bool,
    captured: AtomicU64,
    missed: AtomicU64,
    ended: AtomicBool,
}

impl Capture {
    pub(super) fn new(source: Arc<dyn AnyCache>, stream: Stream, durability: Durability) -> Self {
        let (captured, missed, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let named = durability == Durability::Server;
        Self { source, stream, named, captured, missed, ended }
    }

    pub(super) fn is_of(&self, cache: &str, topic: &str) -> bool {
        &**self.source.name() == cache && self.stream.topic().name.as_str() == topic
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn report(&self) -> CaptureReport {
        CaptureReport {
            cache: self.source.name().clone(),
            topic: self.stream.topic().name.clone(),
            captured: self.captured.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
        }
    }

    /// Captures until the cache is closed, or `stop` and nothing is left.
    pub(super) async fn run(&self, mut subscription: RawSubscription, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                item = subscription.next() => item,
                () = stop.cancelled() => None,
            };
            let Some(first) = first else { break };
            let mut batch = Batch::new(self.named);
            batch.take(&*self.source, first);
            while batch.has_room()
                && let Some(Some(item)) = subscription.next().now_or_never()
            {
                batch.take(&*self.source, item);
            }
            self.missed.fetch_add(batch.missed, Ordering::Relaxed);
            if !self.publish(batch.events, &stop).await {
                break;
            }
        }
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Publishes a batch, however long that takes. `false`: nothing is published any more.
    async fn publish(&self, events: Vec<NewEvent>, stop: &CancellationToken) -> bool {
        if events.is_empty() {
            return true;
        }
        let (count, mut retry) = (events.len() as u64, RETRY_FIRST);
        loop {
            let Err(error) = self.stream.publish_batch(events.clone()).await else {
                self.captured.fetch_add(count, Ordering::Relaxed);
                return true;
            };
            if retry == RETRY_FIRST {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    cache = &**self.source.name(),
                    topic = self.stream.topic().name.as_str(),
                    "changes cannot be captured"
                );
            }
            let is_over = matches!(error, PublishError::Store(StoreError::Closed));
            if matches!(error, PublishError::Invalid(_)) {
                self.missed.fetch_add(count, Ordering::Relaxed);
                return true;
            }
            if is_over || stop.run_until_cancelled(tokio::time::sleep(retry)).await.is_none() {
                self.missed.fetch_add(count, Ordering::Relaxed);
                return false;
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }
}

/// What is published together.
#[derive(Debug)]
struct Batch {
    events: Vec<NewEvent>,
    bytes: usize,
    missed: u64,
    named: bool,
}

impl Batch {
    fn new(named: bool) -> Self {
        Self { events: Vec::new(), bytes: 0, missed: 0, named }
    }

    fn has_room(&self) -> bool {
        self.events.len() < BATCH_EVENTS && self.bytes < BATCH_BYTES
    }

    fn take(&mut self, cache: &dyn AnyCache, item: Item<Arc<RawEvent>>) {
        match item {
            Item::Event(event) => match &event.target {
                RawTarget::Keys(keys) => {
                    for (number, keys) in chunks(keys).into_iter().enumerate() {
                        let document = change::of_keys(cache, &event, keys);
                        self.push(cache, event.kind.name(), &document, self.name(&event, number));
                    }
                }
                _ => {
                    let document = change::document(cache, &event);
                    self.push(cache, event.kind.name(), &document, self.name(&event, 0));
                }
            },
            Item::Lagged { missed } => {
                self.missed += missed;
                let document = json!({ "kind": "lagged", "cache": &**cache.name(), "missed": missed });
                self.push(cache, "lagged", &document, None);
            }
            // What is unreadable has not changed.
            Item::Fenced { .. } => {}
        }
    }

    fn push(&mut self, cache: &dyn AnyCache, kind: &str, document: &Value, name: Option<String>) {
        let key = document["target"]["key"].as_str().filter(|key| key.len() <= KEY_BYTES_MAX);
        let key = key.map(ToOwned::to_owned);
        let payload = document.to_string();
        if payload.len() > PAYLOAD_BYTES_MAX {
            self.missed += 1;
            return;
        }
        self.bytes += payload.len();
        let event = NewEvent { key, idempotency_key: name, ..NewEvent::new(payload) };
        let event = event.content_type("application/json").header(KIND, kind);
        self.events.push(event.header(CACHE, &**cache.name()));
    }

    /// What tells a change from every other one, if it needs to be told: one record may be an event in several
    /// partitions, and these become several here.
    fn name(&self, event: &RawEvent, number: usize) -> Option<String> {
        let (lane, sequence) = event.position.filter(|_| self.named)?;
        let partition = event.partition.map_or(-1, |partition| partition as i64);
        let name = format!(
            "{}/{}/{sequence}/{}/{partition}/{number}",
            event.origin,
            lane.number(),
            event.kind.name()
        );
        (name.len() <= tidings_streams::IDEMPOTENCY_KEY_BYTES_MAX).then_some(name)
    }
}

/// Keys in so many parts that none has much more than [`KEYS_BYTES`].
fn chunks(keys: &[Bytes]) -> Vec<&[Bytes]> {
    let (mut chunks, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (index, key) in keys.iter().enumerate() {
        bytes += key.len();
        if bytes >= KEYS_BYTES {
            chunks.push(&keys[begin..=index]);
            (begin, bytes) = (index + 1, 0);
        }
    }
    if begin < keys.len() {
        chunks.push(&keys[begin..]);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_divided_so_that_none_is_left_out_and_no_part_is_too_large() {
        for (count, length) in [(0, 1), (1, KEYS_BYTES + 1), (100_000, 16), (40, 4 << 10)] {
            let keys = vec![Bytes::from(vec![b'k'; length]); count];
            let chunks = chunks(&keys);
            assert_eq!(chunks.iter().map(|chunk| chunk.len()).sum::<usize>(), count);
            let bytes = |chunk: &&[Bytes]| chunk.iter().map(Bytes::len).sum::<usize>();
            assert!(chunks.iter().all(|chunk| !chunk.is_empty() && bytes(chunk) < KEYS_BYTES + length));
        }
    }
}
