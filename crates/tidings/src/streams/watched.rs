//! A store that counts what is done with it, and tells who watches the node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::RwLock;
use tidings_proto::histogram::{Histogram, Snapshot};
use tidings_streams::{
    ClaimRequest, DeadLetter, DeadLetterError, DeadLetterId, DeadLetterPage, DeadLetters, Delivered, Driver,
    Durability, Event, EventId, EventPage, GroupError, GroupInfo, Maintained, Name, NewEvent, Outcome, Page,
    Pending, PublishError, Published, ReceiveRequest, Report, Retention, Settings, Settlement, Sought, Start,
    StoreError, Topic, TopicInfo, TrimMode, Trimmed,
};
use tokio::time::Instant;

use super::StreamEvent;
use crate::observe::{Observation, Observers};

/// Topics that are counted by name: each is several series for whoever scrapes them. What is done with further ones is
/// counted together.
const TOPICS_COUNTED_MAX: usize = 1_024;

/// What was done with one topic by a node since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicCounts {
    /// Events that were published.
    pub published: u64,
    /// Events that were not published again: their idempotency keys were known.
    pub duplicates: u64,
    /// Deliveries.
    pub received: u64,
    /// Deliveries that were acknowledged.
    pub acked: u64,
    /// Deliveries that failed, and whose events are delivered again.
    pub retried: u64,
    /// Events that were given up: when they failed, or because nobody had settled them in time for the last time, which
    /// is noticed as somebody receives or claims, or as topics are looked after.
    pub dead: u64,
    /// Words that came too late, or were about no delivery: nothing was done.
    pub unsettled: u64,
    /// Events that were removed by hand, or by retention as topics were looked after; not what publishing removes.
    pub trimmed: u64,
}

/// What was done with streams by a node since it was started.
#[derive(Clone, Debug)]
pub struct StreamCounts {
    /// By topic; those that are configured are there from the start.
    pub topics: BTreeMap<Name, TopicCounts>,
    /// Of the topics that are too many to be counted by name, together.
    pub others: TopicCounts,
    /// How long publishing took, for each call that came to something.
    pub appends: Snapshot,
    /// How long the embedded store took to write, and to sync, what was asked for meanwhile.
    pub flushes: Option<Snapshot>,
}

#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    duplicates: AtomicU64,
    received: AtomicU64,
    acked: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    unsettled: AtomicU64,
    trimmed: AtomicU64,
}

impl Counters {
    fn read(&self) -> TopicCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TopicCounts {
            published: read(&self.published),
            duplicates: read(&self.duplicates),
            received: read(&self.received),
            acked: read(&self.acked),
            retried: read(&self.retried),
            dead: read(&self.dead),
            unsettled: read(&self.unsettled),
            trimmed: read(&self.trimmed),
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A store, watched.
#[derive(Debug)]
pub(crate) struct Watched {
    driver: Arc<dyn Driver>,
    seen: Arc<Seen>,
    appends: Histogram,
}

impl Watched {
    pub(super) fn new(driver: Arc<dyn Driver>, settings: &Settings, observers: Arc<Observers>) -> Self {
        let configured = settings.topics.keys().map(|name| (name.clone(), Arc::default()));
        let topics = RwLock::new(configured.collect());
        let seen = Arc::new(Seen { topics, others: Arc::default(), observers });
        let burials = Arc::clone(&seen);
        driver.watch_burials(Arc::new(move |topic, group, events| burials.dead(topic, Some(group), events)));
        Self { driver, seen, appends: Histogram::default() }
    }

    pub(super) fn counts(&self, flushes: Option<Snapshot>) -> StreamCounts {
        let topics = self.seen.topics.read();
        StreamCounts {
            topics: topics.iter().map(|(name, counters)| (name.clone(), counters.read())).collect(),
            others: self.seen.others.read(),
            appends: self.appends.snapshot(),
            flushes,
        }
    }
}

/// What was seen of a store: the driver tells of some of it by itself.
#[derive(Debug)]
struct Seen {
    topics: RwLock<BTreeMap<Name, Arc<Counters>>>,
    others: Arc<Counters>,
    observers: Arc<Observers>,
}

impl Seen {
    /// The counters of a topic that something was done with.
    fn of(&self, topic: &Name) -> Arc<Counters> {
        if let Some(counters) = self.topics.read().get(topic) {
            return counters.clone();
        }
        let mut topics = self.topics.write();
        if topics.len() >= TOPICS_COUNTED_MAX && !topics.contains_key(topic) {
            return self.others.clone();
        }
        topics.entry(topic.clone()).or_default().clone()
    }

    fn tell(&self, topic: &Name, event: impl FnOnce() -> StreamEvent) {
        if self.observers.is_watched() {
            self.observers.tell(Observation::Stream { topic: topic.clone(), event: event() });
        }
    }

    fn received(&self, topic: &Name, group: &Name, delivered: &[Delivered]) {
        if delivered.is_empty() {
            return;
        }
        let events = delivered.len() as u64;
        add(&self.of(topic).received, events);
        self.tell(topic, || StreamEvent::Received { group: group.clone(), events });
    }

    fn settled(&self, topic: &Name, group: &Name, outcomes: &[Outcome]) {
        let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| is(outcome)).count() as u64;
        let acked = count(|outcome| matches!(outcome, Outcome::Acked));
        let retried = count(|outcome| matches!(outcome, Outcome::RetryAt(_)));
        let dead = count(|outcome| matches!(outcome, Outcome::Buried(_)));
        let unsettled = count(|outcome| matches!(outcome, Outcome::Stale | Outcome::Unknown));
        let counters = self.of(topic);
        add(&counters.acked, acked);
        add(&counters.retried, retried);
        add(&counters.unsettled, unsettled);
        if acked + retried > 0 {
            self.tell(topic, || StreamEvent::Settled { group: group.clone(), acked, retried });
        }
        self.dead(topic, Some(group), dead);
    }

    fn dead(&self, topic: &Name, group: Option<&Name>, events: u64) {
        if events > 0 {
            add(&self.of(topic).dead, events);
            self.tell(topic, || StreamEvent::DeadLettered { group: group.cloned(), events });
        }
    }

    fn trimmed(&self, topic: &Name, events: u64) {
        if events > 0 {
            add(&self.of(topic).trimmed, events);
            self.tell(topic, || StreamEvent::Trimmed { events });
        }
    }
}

#[async_trait]
impl Driver for Watched {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn durability(&self) -> Durability {
        self.driver.durability()
    }

    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError> {
        let began = Instant::now();
        let published = self.driver.publish(topic, events).await?;
        self.appends.record(began.elapsed());
        let duplicates = published.iter().filter(|one| one.duplicate).count() as u64;
        let events = published.len() as u64 - duplicates;
        let counters = self.seen.of(&topic.name);
        add(&counters.published, events);
        add(&counters.duplicates, duplicates);
        if events > 0 {
            self.seen.tell(&topic.name, || StreamEvent::Published { events });
        }
        Ok(published)
    }

    async fn topics(&self) -> Result<Vec<Name>, StoreError> {
        self.driver.topics().await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError> {
        self.driver.topic(topic).await
    }

    async fn read(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError> {
        self.driver.read(topic, page).await
    }

    async fn event(&self, topic: &Topic, id: EventId) -> Result<Option<Event>, StoreError> {
        self.driver.event(topic, id).await
    }

    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError> {
        let trimmed = self.driver.trim(topic, limits, mode).await?;
        if !mode.dry_run {
            self.seen.trimmed(&topic.name, trimmed.removed);
        }
        Ok(trimmed)
    }

    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError> {
        self.driver.create_group(topic, group, start).await
    }

    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError> {
        self.driver.remove_group(topic, group).await
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        self.driver.groups(topic).await
    }

    async fn receive(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let delivered = self.driver.receive(topic, group, request).await?;
        self.seen.received(&topic.name, group, &delivered);
        Ok(delivered)
    }

    async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Outcome>, GroupError> {
        let outcomes = self.driver.settle(topic, group, settlements).await?;
        self.seen.settled(&topic.name, group, &outcomes);
        Ok(outcomes)
    }

    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        self.driver.pending(topic, group, after, limit).await
    }

    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let delivered = self.driver.claim(topic, group, request).await?;
        self.seen.received(&topic.name, group, &delivered);
        Ok(delivered)
    }

    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError> {
        self.driver.set_paused(topic, group, paused).await
    }

    async fn seek(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        self.driver.seek(topic, group, to, preview).await
    }

    async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        self.driver.dead_letters(page).await
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.driver.dead_letter(id).await
    }

    async fn dead_letter_count(&self) -> Result<u64, StoreError> {
        self.driver.dead_letter_count().await
    }

    async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        self.driver.retry(id).await
    }

    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        self.driver.purge(ids).await
    }

    async fn verify(&self) -> Result<Report, StoreError> {
        self.driver.verify().await
    }

    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        let maintained = self.driver.maintain(topic).await?;
        self.seen.trimmed(&topic.name, maintained.trimmed.removed);
        self.seen.dead(&topic.name, None, maintained.buried);
        Ok(maintained)
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.driver.close().await
    }
}
