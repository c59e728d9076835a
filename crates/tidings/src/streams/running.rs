//! The streams of a running node, from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_cache::Scope;
use tidings_proto::event::EventKind;
use tidings_streams::embedded::Embedded;
use tidings_streams::{Driver, Settings, Streams};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::capture::{Capture, CaptureError, CaptureReport};
use super::watched::{StreamCounts, Watched};
use crate::config::Config;
use crate::node::{Node, StartError};
use crate::observe::Observers;

/// How long a store has to take what was captured before it is closed: what a ring holds by default is a few hundred
/// batches, each of them a sync.
const CAPTURED_TIME: Duration = Duration::from_secs(2);

/// A store that is open, and that no node has yet.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) embedded: Option<Arc<Embedded>>,
    pub(super) settings: Settings,
}

impl Opened {
    /// Closes it: there will be no node.
    async fn close(self) {
        if let Err(error) = self.driver.close().await {
            tracing::error!(error = &error as &dyn std::error::Error, "the store of streams was not closed");
        }
    }
}

/// The streams of a node.
#[derive(Debug)]
pub(crate) struct Running {
    streams: Streams,
    watched: Arc<Watched>,
    embedded: Option<Arc<Embedded>>,
    captures: Mutex<Vec<Arc<Capture>>>,
    /// The tasks that capture, and what has them finish what there is.
    capturing: TaskTracker,
    captured: CancellationToken,
}

impl Running {
    /// Starts to look after the store. Has to be called on a runtime.
    pub(crate) fn start(opened: Opened, observers: Arc<Observers>) -> Self {
        let Opened { driver, embedded, settings } = opened;
        let watched = Arc::new(Watched::new(driver, &settings, observers));
        let streams = Streams::start(watched.clone(), settings);
        Self {
            streams: streams.expect("invariant: settings are judged before the store is opened"),
            watched,
            embedded,
            captures: Mutex::default(),
            capturing: TaskTracker::new(),
            captured: CancellationToken::new(),
        }
    }

    /// Has consumers finish what they have, while the caches that they may change still reach their peers.
    pub(crate) async fn drain(&self, deadline: Instant) {
        if timeout_at(deadline, self.streams.drain()).await.is_err() {
            tracing::warn!("handlers of streams did not end in time: what they have is delivered again");
        }
    }

    /// Publishes what was captured and closes the store. Whether all of that was done.
    pub(crate) async fn close(&self) -> bool {
        self.captured.cancel();
        self.capturing.close();
        let captured = timeout(CAPTURED_TIME, self.capturing.wait()).await.is_ok();
        // Not `shutdown`, which waits for handlers however long they take. Whoever still calls is told.
        let closed = self.streams.driver().close().await;
        if let Err(error) = &closed {
            tracing::error!(error = error as &dyn std::error::Error, "the store of streams was not closed");
        }
        // A capture that was not done is told now that the store is closed, and ends.
        self.capturing.wait().await;
        captured && closed.is_ok()
    }
}

impl Drop for Running {
    /// A node that is dropped is not shut down: nobody waits for its tasks, but they end.
    fn drop(&mut self) {
        self.streams.stop();
        self.captured.cancel();
    }
}

impl Node {
    /// Starts a node with its streams. If it does not start the store is closed.
    pub(crate) async fn start_with_streams(config: Config, opened: Opened) -> Result<Self, StartError> {
        match Self::start(config).await {
            Ok(node) => {
                node.inner.streaming.set(Running::start(opened, node.bus().observers.clone()));
                Ok(node)
            }
            Err(error) => {
                opened.close().await;
                Err(error)
            }
        }
    }

    /// The node's durable streams. `None`: it was built without.
    #[must_use]
    pub fn streams(&self) -> Option<&Streams> {
        self.inner.streaming.get().map(|running| &running.streams)
    }

    /// What was done with streams by this node since it was started. `None`: it was built without.
    #[must_use]
    pub fn stream_counts(&self) -> Option<StreamCounts> {
        let running = self.inner.streaming.get()?;
        Some(running.watched.counts(running.embedded.as_ref().map(|embedded| embedded.flush_times())))
    }

    /// Publishes to a topic, from now on, what users of this node change in a cache: an event for each change, with the
    /// key as its key where it is one (of keys that are no text what encodes them, in hexadecimal digits), and a document
    /// that says what has happened as its payload, the same as over HTTP. Values are not in it, nor what other nodes
    /// change: each captures its own, so that a topic that nodes share has every change once. It ends with the cache, or
    /// with the node, which publishes what there is before it closes the store.
    ///
    /// Writers are not slowed down, nor waited for. What the store cannot take at the moment waits in the cache's ring of
    /// events, whose size bounds it ([`tidings_cache::CacheBuilder::ring`]); what does not fit there any more is
    /// counted ([`Node::captures`]), and an event of the kind `lagged` says in its place how many changes are missing. A
    /// process that is killed takes with it what it had not published yet.
    ///
    /// Has to be called on a runtime, which has to have time.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn capture(&self, cache: &str, topic: &str) -> Result<(), CaptureError> {
        const CHANGES: [EventKind; 4] =
            [EventKind::Inserted, EventKind::Updated, EventKind::Deleted, EventKind::Cleared];
        let running = self.inner.streaming.get().ok_or(CaptureError::NoStreams)?;
        let stream = running.streams.stream(topic)?;
        let source =
            self.domain().cache(cache).ok_or_else(|| CaptureError::UnknownCache(cache.to_owned()))?;
        let mut captures = running.captures.lock();
        captures.retain(|capture| !capture.has_ended());
        if captures.iter().any(|capture| capture.is_of(cache, topic)) {
            return Err(CaptureError::Twice);
        }
        let subscription = source.clone().subscribe_raw().kinds(CHANGES).scope(Scope::Local).start()?;
        let capture = Arc::new(Capture::new(source, stream, running.watched.durability()));
        captures.push(capture.clone());
        let stop = running.captured.clone();
        running.capturing.spawn(async move { capture.run(subscription, stop).await });
        Ok(())
    }

    /// What is captured, and how far that has come.
    #[must_use]
    pub fn captures(&self) -> Vec<CaptureReport> {
        let captures = self.inner.streaming.get().map(|running| running.captures.lock().clone());
        captures.iter().flatten().map(|capture| capture.report()).collect()
    }
}
