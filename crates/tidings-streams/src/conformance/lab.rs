//! What cases are written with.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Harness;
use crate::call::{
    Action, DeadLetterFilter, DeadLetterPage, Delivered, Order, Outcome, PAGE_EVENTS_MAX, Page, Pending,
    ReceiveRequest, Settlement, Start,
};
use crate::driver::Driver;
use crate::error::GroupError;
use crate::event::{DeadLetter, Event, NewEvent};
use crate::id::{EventId, Timestamp};
use crate::name::Name;
use crate::settings::{Backoff, Retention, Topic, TopicSettings};

/// How long a delivery may take in cases.
pub(super) const IDLE: Duration = Duration::from_millis(400);

/// The first wait after a failure, without jitter.
pub(super) const BACKOFF: Duration = Duration::from_millis(200);

/// Longer than any wait for what has to come, where a store may be slow.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A store, and words for what is done with it.
#[derive(Debug)]
pub struct Lab<'a> {
    harness: Held<'a>,
    driver: Mutex<Arc<dyn Driver>>,
}

struct Held<'a>(&'a dyn Harness);

impl std::fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Harness")
    }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).expect("cases use names")
}

/// Three deliveries, doubled waits without jitter, everything kept.
pub(super) fn settings() -> TopicSettings {
    TopicSettings {
        max_deliveries: NonZeroU32::new(3).expect("three is not zero"),
        retention: Retention::default(),
        min_idle_time: IDLE,
        backoff: Backoff { initial: BACKOFF, max: Duration::from_secs(60), jitter: 0.0 },
        ..TopicSettings::default()
    }
}

pub(super) fn topic_with(settings: TopicSettings) -> Topic {
    Topic { name: name("orders"), settings: Arc::new(settings) }
}

pub(super) fn topic() -> Topic {
    topic_with(settings())
}

pub(super) fn ordered() -> Topic {
    topic_with(TopicSettings { ordered: true, ..settings() })
}

pub(super) fn text(event: &Event) -> String {
    String::from_utf8_lossy(&event.payload).into_owned()
}

pub(super) fn texts(deliveries: &[Delivered]) -> Vec<String> {
    deliveries.iter().map(|one| text(&one.event)).collect()
}

impl<'a> Lab<'a> {
    pub(super) async fn new(harness: &'a dyn Harness) -> Self {
        Self { driver: Mutex::new(harness.driver().await), harness: Held(harness) }
    }

    pub(super) fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver.lock())
    }

    /// Opens the store again. Whether it keeps anything.
    pub(super) async fn reopen(&self) -> bool {
        let old = self.driver();
        let new = self.harness.0.reopen(old).await;
        let keeps = new.is_some();
        if let Some(new) = new {
            *self.driver.lock() = new;
        }
        keeps
    }

    pub(super) async fn end(&self) {
        self.driver().close().await.expect("a store closes");
    }

    pub(super) fn now(&self) -> Timestamp {
        self.harness.0.now()
    }

    pub(super) async fn pass(&self, time: Duration) {
        self.harness.0.pass(time).await;
    }

    pub(super) async fn publish(&self, topic: &Topic, texts: &[&str]) -> Vec<EventId> {
        let events = texts.iter().map(|text| NewEvent::new((*text).to_owned())).collect();
        self.publish_events(topic, events).await
    }

    pub(super) async fn publish_events(&self, topic: &Topic, events: Vec<NewEvent>) -> Vec<EventId> {
        let published = self.driver().publish(topic, events).await.expect("it is published");
        published.into_iter().map(|one| one.id).collect()
    }

    pub(super) async fn group(&self, topic: &Topic, group: &str, start: Start) -> Name {
        let group = name(group);
        self.driver().create_group(topic, &group, start).await.expect("the group is made");
        group
    }

    pub(super) async fn try_receive(
        &self,
        topic: &Topic,
        group: &Name,
        consumer: &str,
        max: usize,
    ) -> Result<Vec<Delivered>, GroupError> {
        let stop = CancellationToken::new();
        let request = ReceiveRequest { consumer: name(consumer), max, wait: Duration::ZERO, stop };
        self.driver().receive(topic, group, request).await
    }

    pub(super) async fn receive(&self, topic: &Topic, group: &Name, max: usize) -> Vec<Delivered> {
        self.try_receive(topic, group, "c1", max).await.expect("the group is there")
    }

    pub(super) async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        one: &Delivered,
        action: Action,
    ) -> Outcome {
        let settlement = Settlement { id: one.event.id, tag: Some(one.tag), action };
        let settled = self.driver().settle(topic, group, vec![settlement]).await;
        settled.expect("the group is there")[0]
    }

    pub(super) async fn ack(&self, topic: &Topic, group: &Name, one: &Delivered) -> Outcome {
        self.settle(topic, group, one, Action::Ack).await
    }

    pub(super) async fn fail(&self, topic: &Topic, group: &Name, one: &Delivered, reason: &str) -> Outcome {
        self.settle(topic, group, one, Action::Fail { reason: reason.to_owned() }).await
    }

    /// Fails an event as often as it is delivered, and passes the waits between.
    pub(super) async fn fail_for_good(&self, topic: &Topic, group: &Name) -> Vec<u32> {
        let mut attempts = Vec::new();
        for _ in 0..topic.settings.max_deliveries.get() {
            let taken = self.receive(topic, group, 1).await;
            let one = taken.first().unwrap_or_else(|| panic!("nothing after attempts {attempts:?}"));
            attempts.push(one.tag.attempt);
            self.fail(topic, group, one, "it fails").await;
            self.pass(BACKOFF * 4).await;
        }
        attempts
    }

    pub(super) async fn pending(&self, topic: &Topic, group: &Name) -> Vec<Pending> {
        let pending = self.driver().pending(topic, group, None, PAGE_EVENTS_MAX).await;
        pending.expect("the group is there")
    }

    /// All events that a topic holds, page by page.
    pub(super) async fn held(&self, topic: &Topic, order: Order, limit: usize) -> Vec<Event> {
        let (mut page, mut events) = (Page { limit, order, ..Page::default() }, Vec::new());
        loop {
            let found = self.driver().read(topic, &page).await.expect("it can be read");
            assert!(found.events.len() <= limit, "a page of {} holds {}", limit, found.events.len());
            events.extend(found.events);
            match found.next {
                Some(next) => page.after = Some(next),
                None => return events,
            }
        }
    }

    pub(super) async fn held_texts(&self, topic: &Topic) -> Vec<String> {
        self.held(topic, Order::Ascending, 100).await.iter().map(text).collect()
    }

    /// All dead letters, newest first, page by page.
    pub(super) async fn dead(&self, filter: DeadLetterFilter, limit: usize) -> Vec<DeadLetter> {
        let (mut page, mut letters) = (DeadLetterPage { filter, after: None, limit }, Vec::new());
        loop {
            let found = self.driver().dead_letters(&page).await.expect("they can be read");
            assert!(found.letters.len() <= limit, "a page of {} holds {}", limit, found.letters.len());
            letters.extend(found.letters);
            match found.next {
                Some(next) => page.after = Some(next),
                None => return letters,
            }
        }
    }

    pub(super) async fn all_dead(&self) -> Vec<DeadLetter> {
        self.dead(DeadLetterFilter::default(), 100).await
    }
}
