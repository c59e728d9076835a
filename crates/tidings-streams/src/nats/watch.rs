//! Who waits for something to become available.
//!
//! For each topic that somebody here waits for, one task has two consumers of its own on the server, without
//! acknowledgements and without what messages hold: one of the topic's events, and one of the journals of its groups.
//! It asks each for what comes, and the server answers when something does. Whoever is woken looks again. When the
//! consumers are made everybody looks again, and so nothing that came before is missed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::link::Link;
use super::names::Names;
use super::writer::WAKES;
use crate::decide::backoff;
use crate::name::Name;
use crate::settings::Backoff;

/// How long the server holds back an answer if there is nothing: after so long a connection that leads nowhere is
/// noticed, and one watch that nobody needs any more is given up.
const BLOCK: Duration = Duration::from_secs(5);

/// Messages that one answer tells of at most.
const TOLD_MAX: usize = 256;

/// How long to wait before consumers are made again.
const AGAIN: Backoff =
    Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2), jitter: 0.5 };

#[derive(Debug)]
pub(super) struct Watches {
    link: Arc<Link>,
    names: Names,
    topics: Mutex<HashMap<Name, Watch>>,
    /// Watches that were begun.
    begun: AtomicU64,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Watch {
    /// Counts what became known, from a number on that no earlier watch of the topic has reached.
    rung: watch::Sender<u64>,
    waiters: usize,
    /// Somebody has begun to wait since that was last looked at: most who wait will do so again.
    is_used: bool,
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
    pub(super) fn new(link: Arc<Link>, names: Names) -> Arc<Self> {
        let (topics, begun, tasks) = (Mutex::default(), AtomicU64::new(0), TaskTracker::new());
        Arc::new(Self { link, names, topics, begun, tasks })
    }

    /// What has been counted of a topic, before one looks at it. `None`: nobody waits for it.
    pub(super) fn before(&self, topic: &Name) -> Option<u64> {
        self.topics.lock().get(topic).map(|watch| *watch.rung.borrow())
    }

    /// Begins to wait for a topic, in which nothing was found. `None`: more has become known since, look again.
    pub(super) fn wait(self: &Arc<Self>, topic: &Name, before: Option<u64>) -> Option<Waiter> {
        let mut topics = self.topics.lock();
        let is_new = !topics.contains_key(topic);
        let watch = topics.entry(topic.clone()).or_insert_with(|| Watch {
            rung: watch::Sender::new(self.begun.fetch_add(1, Ordering::Relaxed) << 32),
            waiters: 0,
            is_used: true,
        });
        let since = *watch.rung.borrow();
        // One that was begun by somebody else meanwhile may have rung before this look was over.
        if !is_new && before != Some(since) {
            return None;
        }
        watch.waiters += 1;
        watch.is_used = true;
        let rung = watch.rung.subscribe();
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
                    self.ring(topic);
                    if !self.is_waited_for(topic) {
                        return;
                    }
                    tokio::time::sleep(backoff(&AGAIN, failed, rand::random())).await;
                }
            }
        }
    }

    /// Asks consumers until nobody waits any more, or the connection is another.
    async fn ask_on(&self, topic: &Name, failed: &mut u32) -> Result<(), String> {
        let mut changes = self.link.changes();
        changes.mark_unchanged();
        let stream = self.names.topic_stream(topic);
        let of_events = self.link.watcher(&stream, String::new()).await.map_err(|error| error.to_string())?;
        let (stream, filter) = (self.names.groups_stream(), self.names.groups_of(topic));
        let of_groups = self.link.watcher(&stream, filter).await.map_err(|error| error.to_string())?;
        *failed = 0;
        self.ring(topic);
        tokio::select! {
            ended = self.ask(topic, &of_events, |_| true) => ended,
            ended = self.ask(topic, &of_groups, wakes) => ended,
            _ = changes.changed() => Err("the connection has changed".to_owned()),
        }
    }

    async fn ask(
        &self,
        topic: &Name,
        consumer: &PullConsumer,
        tells: impl Fn(&Message) -> bool,
    ) -> Result<(), String> {
        while self.is_waited_for(topic) {
            let asked = consumer.batch().max_messages(TOLD_MAX).expires(BLOCK).messages();
            let asked = timeout(self.link.timeout(), asked).await.map_err(|_| "no answer".to_owned())?;
            let mut told = asked.map_err(|error| error.to_string())?;
            loop {
                let next = timeout(BLOCK + self.link.timeout(), told.next()).await;
                match next.map_err(|_| "no answer".to_owned())? {
                    Some(Ok(message)) if tells(&message) => self.ring(topic),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.to_string()),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Whether somebody waits, or did of late; else the watch is over.
    fn is_waited_for(&self, topic: &Name) -> bool {
        let mut topics = self.topics.lock();
        let Some(watch) = topics.get_mut(topic) else { return false };
        let is_waited_for = watch.waiters > 0 || watch.is_used;
        watch.is_used = false;
        if !is_waited_for {
            topics.remove(topic);
        }
        is_waited_for
    }

    /// Has everybody look again.
    fn ring(&self, topic: &Name) {
        if let Some(watch) = self.topics.lock().get(topic) {
            watch.rung.send_modify(|rung| *rung += 1);
        }
    }
}

/// Whether a record makes something available.
fn wakes(record: &Message) -> bool {
    record.headers.as_ref().is_some_and(|headers| headers.get(WAKES).is_some())
}
