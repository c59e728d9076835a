//! The embedded driver: events on this machine's disk. See the crate's documentation for what it promises.
//!
//! One thread has the store. It takes what is asked for, as much as is there, does it in memory, writes and syncs once,
//! and only then answers: the more is asked for at a time, the less each one pays for the disk. No file is touched on a
//! worker of the runtime.

mod dead;
mod dirname;
mod disk;
#[cfg(test)]
mod frail;
mod frame;
mod gather;
mod groups;
mod journal;
mod keys;
mod log;
mod look;
mod moment;
#[cfg(test)]
mod power_tests;
mod publish;
mod ranges;
mod record;
mod replay;
mod retention;
mod store;
mod thread;
mod walk;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidings_proto::histogram::Snapshot;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::look::Verifying;
use self::publish::Batch;
use self::retention::{TRIMMED_AT_ONCE, Trimming};
pub use self::store::LAYOUT;
use self::thread::Handle;
use crate::burials::{Burials, TellBurials};
use crate::call::{
    Action, ClaimRequest, DeadLetterPage, DeadLetters, Delivered, Durability, EventPage, GroupInfo,
    Maintained, Outcome, PAGE_EVENTS_MAX, Page, Pending, ReceiveRequest, Report, Settlement, Sought, Start,
    TopicInfo, TrimMode, Trimmed,
};
use crate::driver::Driver;
use crate::error::{DeadLetterError, GroupError, PublishError, StoreError};
use crate::event::{DeadLetter, Event, NewEvent, Published};
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;
use crate::settings::{Retention, Topic, WAIT_MAX};

/// What tells the moment. Where it goes back the store's moment does not, and passes half as fast until the clock has
/// caught up with it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How a store is kept.
#[derive(Clone)]
pub struct Config {
    /// [`Durability::Sync`], the default, or [`Durability::Relaxed`].
    pub durability: Durability,
    /// By default the system's.
    pub clock: Clock,
}

impl Default for Config {
    fn default() -> Self {
        Self { durability: Durability::Sync, clock: Arc::new(Timestamp::now) }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("durability", &self.durability).finish_non_exhaustive()
    }
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it, or another part of this one. It is free when that one ends, however it does.
    #[error("the store in {0} is in use")]
    InUse(PathBuf),
    /// The directory or what is in it cannot be read or written.
    #[error("cannot open the store")]
    Io(#[from] std::io::Error),
    /// What a crash left between two files cannot be put right.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
}

/// A store on this machine's disk, in a directory of its own.
///
/// Dropped without being closed, it writes what it was asked to and waits for that.
#[derive(Debug)]
pub struct Embedded {
    handle: Handle,
    durability: Durability,
    /// Who waits for something to become available, by topic.
    wakers: Arc<Wakers>,
    burials: Arc<Burials>,
}

#[derive(Debug, Default)]
struct Wakers(Mutex<HashMap<Name, Arc<Notify>>>);

impl Wakers {
    fn of(&self, topic: &Name) -> Arc<Notify> {
        Arc::clone(self.0.lock().entry(topic.clone()).or_default())
    }

    /// Forgets a topic that nobody else waits for: one that is not there may be asked about under any name.
    fn forget(&self, topic: &Name, waker: Arc<Notify>) {
        let mut wakers = self.0.lock();
        drop(waker);
        if wakers.get(topic).is_some_and(|waker| Arc::strong_count(waker) == 1) {
            wakers.remove(topic);
        }
    }

    fn wake_all(&self) {
        self.0.lock().values().for_each(|waker| waker.notify_waiters());
    }

    fn wake(&self, topic: &Name) {
        if let Some(waker) = self.0.lock().get(topic) {
            waker.notify_waiters();
        }
    }
}

impl Embedded {
    /// Opens the store in a directory, or makes one. What was damaged is skipped, said in the log, and named by
    /// [`Driver::verify`].
    ///
    /// Reads files on a blocking thread. If the call is dropped, so is the store, once it was opened.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(path: impl AsRef<Path>, config: Config) -> Result<Self, OpenError> {
        let wakers = Arc::<Wakers>::default();
        let durability = config.durability;
        let burials = Arc::<Burials>::default();
        let told = (Arc::clone(&wakers), Arc::clone(&burials));
        let handle = Handle::open(path.as_ref().to_owned(), config, told).await?;
        Ok(Self { handle, durability, wakers, burials })
    }

    /// How long it took to write, and to sync, what was asked for meanwhile, each time that there was something.
    #[must_use]
    pub fn flush_times(&self) -> Snapshot {
        self.handle.flush_times()
    }

    /// Something that may give events up as it hands out others. Not done if whoever asked has gone by then.
    async fn take<T: Send + 'static>(
        &self,
        (topic, group): (Topic, Name),
        take: impl FnOnce(&mut store::Store, &Topic, &Name) -> Result<T, GroupError> + Send + 'static,
    ) -> Result<T, GroupError> {
        self.handle.call_if_awaited(move |store| take(store, &topic, &group)).await?
    }

    /// What retention removed, and how many of which group became dead letters, those before an error too.
    async fn look_after(
        &self,
        topic: &Topic,
        buried: &mut Vec<store::GivenUp>,
    ) -> Result<Trimmed, StoreError> {
        let random = rand::random();
        loop {
            let of = topic.clone();
            let bury = move |store: &mut store::Store| store.bury_all_spent(&of, random);
            let (these, left) = self.handle.call(bury).await??;
            buried.extend(these);
            if !left {
                break;
            }
        }
        let mut trimmed = Trimmed::default();
        loop {
            let topic = topic.clone();
            let retain = move |store: &mut store::Store| {
                let retained = store.retain(&topic, TRIMMED_AT_ONCE)?;
                store.note_floor(&topic.name);
                store.forget_keys(&topic);
                Ok::<_, StoreError>(retained)
            };
            let (these, left) = self.handle.call(retain).await??;
            trimmed.removed += these.removed;
            trimmed.bytes += these.bytes;
            if !left {
                return Ok(trimmed);
            }
        }
    }

    async fn receive_or_wait(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
        waker: &Notify,
    ) -> Result<Vec<Delivered>, GroupError> {
        let deadline = Instant::now() + request.wait.min(WAIT_MAX);
        loop {
            // Whoever publishes after this wakes it, however late it comes to wait.
            let woken = waker.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let (consumer, max, random) = (request.consumer.clone(), request.max, rand::random());
            let receive = move |store: &mut store::Store, topic: &Topic, group: &Name| {
                Ok((store.receive(topic, group, &consumer, max, random)?, store.now()))
            };
            let (received, now) = self.take((topic.clone(), group.clone()), receive).await?;
            if !received.deliveries.is_empty() || request.max == 0 {
                return Ok(received.deliveries);
            }
            if received.more && !request.stop.is_cancelled() {
                continue;
            }
            let due = received.due.map(|due| Instant::now() + due.since(now).max(DUE_LEAST));
            let until = due.map_or(deadline, |due| due.min(deadline));
            tokio::select! {
                () = woken => {}
                () = request.stop.cancelled() => return Ok(Vec::new()),
                () = tokio::time::sleep_until(until) => {
                    if until == deadline {
                        return Ok(Vec::new());
                    }
                }
            }
        }
    }
}

#[async_trait]
impl Driver for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn durability(&self) -> Durability {
        self.durability
    }

    fn watch_burials(&self, tell: TellBurials) {
        self.burials.watch(tell);
    }

    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError> {
        let (bytes, mut events) = (publish::bytes_of(&events), events);
        loop {
            let topic = topic.clone();
            let publish = move |store: &mut store::Store| store.publish(&topic, events);
            match self.handle.call_with(bytes, publish).await?? {
                Batch::Published(published) => return Ok(published),
                Batch::Wait(these) => events = these,
            }
        }
    }

    async fn topics(&self) -> Result<Vec<Name>, StoreError> {
        self.handle.call(|store| store.topics.keys().cloned().collect()).await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError> {
        let name = topic.name.clone();
        self.handle.call(move |store| store.info(&name)).await
    }

    async fn read(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError> {
        let (name, page) = (topic.name.clone(), page.clone());
        self.handle.call(move |store| store.read(&name, &page)).await?
    }

    async fn event(&self, topic: &Topic, id: EventId) -> Result<Option<Event>, StoreError> {
        if id.minor() != 0 {
            return Ok(None);
        }
        let name = topic.name.clone();
        let read = move |store: &mut store::Store| match store.topics.get_mut(&name) {
            Some(stored) => stored.event(id.major()),
            None => Ok(None),
        };
        self.handle.call(read).await?
    }

    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError> {
        let mut so_far = Trimming::new(limits.clone(), mode);
        loop {
            let topic = topic.clone();
            let trim = move |store: &mut store::Store| store.trim(&topic, so_far);
            let (further, done) = self.handle.call(trim).await??;
            so_far = further;
            if done {
                return Ok(so_far.trimmed);
            }
        }
    }

    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError> {
        let (topic, group) = (topic.clone(), group.clone());
        self.handle.call(move |store| store.create_group(&topic, &group, start)).await?
    }

    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError> {
        let (topic, group) = (topic.clone(), group.clone());
        self.handle.call(move |store| store.remove_group(&topic, &group)).await
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        let topic = topic.clone();
        self.handle.call(move |store| store.group_infos(&topic)).await?
    }

    async fn receive(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let waker = self.wakers.of(&topic.name);
        let received = self.receive_or_wait(topic, group, request, &waker).await;
        if received.is_err() {
            self.wakers.forget(&topic.name, waker);
        }
        received
    }

    async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Outcome>, GroupError> {
        let (topic, group) = (topic.clone(), group.clone());
        let random = rand::random();
        let reason = |one: &Settlement| match &one.action {
            Action::Fail { reason } => reason.len(),
            _ => 0,
        };
        let bytes = settlements.iter().map(reason).sum();
        let settle = move |store: &mut store::Store| {
            settlements.iter().map(|one| store.settle(&topic, &group, one, random)).collect()
        };
        self.handle.call_with(bytes, settle).await?
    }

    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        let (topic, group) = (topic.clone(), group.clone());
        let limit = limit.min(PAGE_EVENTS_MAX);
        self.handle.call(move |store| store.pending(&topic, &group, after, limit)).await?
    }

    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let random = rand::random();
        let claim = move |store: &mut store::Store, topic: &Topic, group: &Name| {
            store.claim(topic, group, &request, random)
        };
        self.take((topic.clone(), group.clone()), claim).await
    }

    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError> {
        let (topic, group) = (topic.clone(), group.clone());
        self.handle.call(move |store| store.set_paused(&topic, &group, paused)).await?
    }

    async fn seek(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        let (topic, group) = (topic.clone(), group.clone());
        self.handle.call(move |store| store.seek(&topic, &group, to, preview)).await?
    }

    async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        let page = page.clone();
        self.handle.call(move |store| store.dead_letters(&page)).await?
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.handle.call(move |store| store.dead_letter(id)).await?
    }

    async fn dead_letter_count(&self) -> Result<u64, StoreError> {
        self.handle.call(|store| store.dead_letter_count()).await
    }

    async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        self.handle.call(move |store| store.retry(id)).await?
    }

    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        let ids = ids.to_vec();
        self.handle.call(move |store| store.purge(&ids)).await
    }

    async fn verify(&self) -> Result<Report, StoreError> {
        let mut so_far = Verifying::default();
        loop {
            let (further, done) = self.handle.call(move |store| store.verify(so_far)).await??;
            so_far = further;
            if done {
                return Ok(so_far.report);
            }
        }
    }

    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        let mut buried = Vec::new();
        match self.look_after(topic, &mut buried).await {
            Ok(trimmed) => {
                let buried = buried.iter().map(|(_, _, buried)| buried).sum();
                Ok(Maintained { trimmed, buried })
            }
            Err(error) => {
                // That they are dead letters is so, and no answer says it.
                buried.iter().for_each(|(topic, group, buried)| self.burials.tell(topic, group, *buried));
                Err(error)
            }
        }
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.handle.close().await
    }
}

/// Shortest wait for what is due: a clock that stands still must not make a waiter spin.
const DUE_LEAST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TopicSettings;

    #[tokio::test]
    async fn names_that_are_not_there_are_not_remembered() {
        let home = tempfile::tempdir().unwrap();
        let store = Embedded::open(home.path(), Config::default()).await.unwrap();
        let topic = Topic { name: Name::new("nowhere").unwrap(), settings: TopicSettings::default().into() };
        let (stop, wait) = (tokio_util::sync::CancellationToken::new(), Duration::ZERO);
        let request = ReceiveRequest { consumer: topic.name.clone(), max: 1, wait, stop };
        let refused = store.receive(&topic, &topic.name, request).await;
        assert!(matches!(refused, Err(GroupError::Unknown)), "{refused:?}");
        assert!(store.wakers.0.lock().is_empty());
        store.close().await.unwrap();
    }
}
