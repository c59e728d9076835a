//! Who waits for something to become available.
//!
//! For each topic that somebody here waits for, one task asks the server for what comes behind the last entry that is
//! known, on a connection of its own, for the server answers nothing else on it meanwhile. Two streams are asked for at
//! once: the topic's, and its bell, of one entry, which scripts ring when they make something available that was there
//! already. Whoever is woken looks again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::link::Link;
use super::wire;
use crate::decide::backoff;
use crate::error::StoreError;
use crate::id::EventId;
use crate::name::Name;
use crate::settings::Backoff;

/// How long the server holds back an answer if there is nothing: after so long a connection that leads nowhere is
/// noticed, and one that nobody needs any more is given up.
const BLOCK: Duration = Duration::from_secs(5);

/// How long to wait before a connection is made again.
const RECONNECT: Backoff =
    Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2), jitter: 0.5 };

/// The last entries that are known of a topic and its bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) stream: EventId,
    pub(super) bell: EventId,
}

impl Cursor {
    fn is_beyond(self, other: Self) -> bool {
        self.stream > other.stream || self.bell > other.bell
    }

    fn furthest(self, other: Self) -> Self {
        Self { stream: self.stream.max(other.stream), bell: self.bell.max(other.bell) }
    }
}

#[derive(Debug)]
pub(super) struct Watches {
    link: Arc<Link>,
    base: String,
    topics: Mutex<HashMap<Name, Watch>>,
    /// Watches that were begun.
    begun: AtomicU64,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Watch {
    cursor: Cursor,
    /// Counts what became known, from a number on that no earlier watch of the topic has reached.
    rung: watch::Sender<u64>,
    waiters: usize,
}

impl Watch {
    fn advance(&mut self, to: Cursor) {
        let furthest = self.cursor.furthest(to);
        if furthest != self.cursor {
            self.cursor = furthest;
            self.ring();
        }
    }

    fn ring(&self) {
        self.rung.send_modify(|rung| *rung += 1);
    }
}

/// Somebody who waits.
#[derive(Debug)]
pub(super) struct Waiter {
    watches: Arc<Watches>,
    topic: Name,
    rung: watch::Receiver<u64>,
    since: u64,
}

impl Waiter {
    /// Waits until there is something that was not known when it looked.
    pub(super) async fn woken(&mut self) {
        let since = self.since;
        // The sender goes when nobody waits, and this one does.
        drop(self.rung.wait_for(|rung| *rung != since).await);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(watch) = self.watches.topics.lock().get_mut(&self.topic) {
            watch.waiters -= 1;
        }
    }
}

impl Watches {
    pub(super) fn new(link: Arc<Link>, base: String) -> Arc<Self> {
        Arc::new(Self {
            link,
            base,
            topics: Mutex::default(),
            begun: AtomicU64::new(0),
            tasks: TaskTracker::new(),
        })
    }

    /// What has been counted of a topic, before one looks at it. `None`: nobody waits for it.
    pub(super) fn before(&self, topic: &Name) -> Option<u64> {
        self.topics.lock().get(topic).map(|watch| *watch.rung.borrow())
    }

    /// Begins to wait for a topic, in which nothing was found up to there. `None`: more is known already, look again.
    pub(super) fn wait(
        self: &Arc<Self>,
        topic: &Name,
        before: Option<u64>,
        looked: Cursor,
    ) -> Option<Waiter> {
        let mut topics = self.topics.lock();
        let is_new = !topics.contains_key(topic);
        let watch = topics.entry(topic.clone()).or_insert_with(|| Watch {
            cursor: looked,
            rung: watch::Sender::new(self.begun.fetch_add(1, Ordering::Relaxed) << 32),
            waiters: 0,
        });
        let missed = match before {
            Some(before) => *watch.rung.borrow() != before,
            // Another one has begun meanwhile. Where a topic was made anew its ids may be lower for once.
            None => watch.cursor.is_beyond(looked),
        };
        if missed && !is_new {
            return None;
        }
        watch.advance(looked);
        watch.waiters += 1;
        let rung = watch.rung.subscribe();
        let since = *rung.borrow();
        if is_new {
            self.tasks.spawn(Arc::clone(self).watch(topic.clone()));
        }
        Some(Waiter { watches: Arc::clone(self), topic: topic.clone(), rung, since })
    }

    /// Waits for all tasks: the link has to be closed.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn watch(self: Arc<Self>, topic: Name) {
        let closed = self.link.closed().clone();
        closed.run_until_cancelled(self.watch_until_nobody_waits(&topic)).await;
    }

    async fn watch_until_nobody_waits(&self, topic: &Name) {
        let mut failed = 0;
        loop {
            match self.ask_on(topic, &mut failed).await {
                Ok(()) => return,
                Err(reason) => {
                    tracing::debug!(%topic, reason, "cannot wait for events");
                    failed += 1;
                    // Whoever waits finds out by itself that the server is not there, or what there was meanwhile.
                    if !self.tell(topic) {
                        return;
                    }
                    tokio::time::sleep(backoff(&RECONNECT, failed, rand::random())).await;
                }
            }
        }
    }

    /// Asks on a connection until nobody waits any more.
    async fn ask_on(&self, topic: &Name, failed: &mut u32) -> Result<(), String> {
        let mut connection = self.link.dial().await.map_err(|error| error.to_string())?;
        while let Some(cursor) = self.cursor(topic) {
            let found = self.ask(&mut connection, topic, cursor).await?;
            *failed = 0;
            if let (Some(found), Some(watch)) = (found, self.topics.lock().get_mut(topic)) {
                watch.advance(found);
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        connection: &mut MultiplexedConnection,
        topic: &Name,
        cursor: Cursor,
    ) -> Result<Option<Cursor>, String> {
        let (stream, bell) = (format!("{}stream/{topic}", self.base), format!("{}bell/{topic}", self.base));
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK.as_millis().to_string()).arg("STREAMS");
        command.arg(&stream).arg(bell).arg(wire::id_text(cursor.stream)).arg(wire::id_text(cursor.bell));
        let answer = timeout(BLOCK + self.link.timeout(), command.query_async::<Value>(connection)).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
        found(answer, cursor, &stream).map_err(|error| error.to_string())
    }

    /// Where to ask from. `None`: nobody waits, and the watch is over.
    fn cursor(&self, topic: &Name) -> Option<Cursor> {
        let mut topics = self.topics.lock();
        let watch = topics.get(topic)?;
        if watch.waiters == 0 {
            topics.remove(topic);
            return None;
        }
        Some(watch.cursor)
    }

    /// Has everybody look again. Whether somebody waits; else the watch is over.
    fn tell(&self, topic: &Name) -> bool {
        self.cursor(topic).is_some()
            && self.topics.lock().get(topic).is_some_and(|watch| {
                watch.ring();
                true
            })
    }
}

/// How far an answer leads. `None`: it tells of nothing.
fn found(answer: Value, mut cursor: Cursor, stream: &str) -> Result<Option<Cursor>, StoreError> {
    if answer == Value::Nil {
        return Ok(None);
    }
    for of_one in wire::list(answer)? {
        let [key, entries] = wire::tuple(of_one)?;
        let is_stream = wire::bytes(key)? == stream.as_bytes();
        for (id, _) in wire::entries(entries)? {
            let last = if is_stream { &mut cursor.stream } else { &mut cursor.bell };
            *last = id.max(*last);
        }
    }
    Ok(Some(cursor))
}
