//! What a service works with: all topics, one topic, one group.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::{
    Action, ClaimRequest, DeadLetterFilter, DeadLetterPage, DeadLetters, EventPage, GroupInfo, Outcome, Page,
    Pending, ReceiveRequest, Report, Settlement, Sought, Start, TopicInfo, TrimMode, Trimmed,
};
use crate::delivery::Delivery;
use crate::driver::Driver;
use crate::error::{DeadLetterError, GroupError, PublishError, StoreError};
use crate::event::{DeadLetter, Event, NewEvent, Published, validate_batch};
use crate::id::{DeadLetterId, EventId};
use crate::name::{InvalidName, Name};
use crate::settings::{InvalidSettings, Retention, Settings, Topic, TopicError};

/// How often every topic is looked after: what nobody publishes to is trimmed, and what nobody receives is buried,
/// within so long.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);

/// All topics of a store.
///
/// Clones are the same. What was started with it ends with [`Streams::shutdown`].
#[derive(Clone, Debug)]
pub struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    driver: Arc<dyn Driver>,
    settings: Settings,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// What maintenance could not do, said once until it works again.
    complained: Mutex<bool>,
}

impl Streams {
    /// Starts to look after a store. Has to be called on a runtime, which has to have time.
    ///
    /// A topic that the store has and that is not configured loses nothing by its age or size where settings are
    /// strict: what it was to keep is not known.
    ///
    /// # Errors
    /// [`InvalidSettings`]: nothing was started, and the driver is as it was.
    pub fn start(driver: Arc<dyn Driver>, settings: Settings) -> Result<Self, InvalidSettings> {
        settings.validate()?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let streams = Self(Arc::new(Shared {
            driver,
            settings,
            tasks: tasks.clone(),
            stop: stop.clone(),
            complained: Mutex::new(false),
        }));
        // The task ends by the token, not with the last handle: it has one itself.
        let maintained = streams.clone();
        tasks.spawn(async move {
            let mut times = tokio::time::interval(MAINTAIN_EVERY);
            times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while stop.run_until_cancelled(times.tick()).await.is_some() {
                maintained.maintain().await;
            }
        });
        Ok(streams)
    }

    /// A topic to publish to and to read. A name that streams do not take is refused before anything is asked of
    /// the store.
    ///
    /// # Errors
    /// [`TopicError`].
    pub fn stream(&self, topic: &str) -> Result<Stream, TopicError> {
        Ok(Stream { streams: self.clone(), topic: self.0.settings.topic(topic)? })
    }

    /// A topic that the store has, whether or not it is configured: for operators.
    #[must_use]
    pub fn stored(&self, topic: Name) -> Stream {
        Stream { streams: self.clone(), topic: self.0.settings.stored(topic) }
    }

    /// Every topic that the store has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn topics(&self) -> Result<Vec<Name>, StoreError> {
        self.0.driver.topics().await
    }

    /// The store, for what is not here.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.0.driver
    }

    /// How topics are kept.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Dead letters, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        self.0.driver.dead_letters(page).await
    }

    /// One dead letter. `None`: there is none, or none any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.0.driver.dead_letter(id).await
    }

    /// How many dead letters there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn dead_letter_count(&self) -> Result<u64, StoreError> {
        self.0.driver.dead_letter_count().await
    }

    /// Publishes a dead letter to its topic again, for its group alone.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        self.0.driver.retry(id).await
    }

    /// Removes dead letters. How many there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        self.0.driver.purge(ids).await
    }

    /// Removes all dead letters that a filter takes. How many there were.
    ///
    /// # Errors
    /// [`StoreError`]: some may have been removed.
    pub async fn purge_all(&self, filter: &DeadLetterFilter) -> Result<u64, StoreError> {
        let mut page = DeadLetterPage { filter: filter.clone(), after: None, limit: BULK_LETTERS };
        let mut purged = 0;
        loop {
            let found = self.0.driver.dead_letters(&page).await?;
            let ids: Vec<DeadLetterId> = found.letters.iter().map(|letter| letter.id).collect();
            purged += self.0.driver.purge(&ids).await?;
            let Some(next) = found.next else { return Ok(purged) };
            page.after = Some(next);
        }
    }

    /// Looks at all that is stored, and names what cannot be read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn verify(&self) -> Result<Report, StoreError> {
        self.0.driver.verify().await
    }

    /// Has consumers take nothing more, and maintenance end. Waits for nobody.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Stops, and waits until consumers have finished what they have. The store stays open.
    ///
    /// # Cancel safety
    /// Cancel-safe: what was not finished yet goes on.
    pub async fn drain(&self) {
        self.stop();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Ends in this order: consumers take nothing more and finish what they have, maintenance ends, the store writes
    /// what is left and closes. Whoever still calls is told that it is closed.
    ///
    /// # Errors
    /// [`StoreError`] of closing the store.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        self.drain().await;
        self.0.driver.close().await
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    async fn maintain(&self) {
        let result = match self.0.driver.topics().await {
            Ok(names) => {
                // One topic that cannot be looked after keeps no other from it.
                let mut result = Ok(());
                for name in names {
                    let maintained = self.0.driver.maintain(&self.0.settings.stored(name)).await;
                    let maintained = maintained.map(drop);
                    result = result.and(maintained);
                }
                result
            }
            Err(error) => Err(error),
        };
        let mut complained = self.0.complained.lock();
        if let (Err(error), false) = (&result, *complained) {
            tracing::warn!(error = error as &dyn std::error::Error, "streams cannot be looked after");
        }
        *complained = result.is_err();
    }
}

/// Dead letters that one step of something done to many takes.
pub(crate) const BULK_LETTERS: usize = 100;

/// One topic.
#[derive(Clone, Debug)]
pub struct Stream {
    streams: Streams,
    topic: Topic,
}

impl Stream {
    /// Its name and how it is kept.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Appends an event.
    ///
    /// # Errors
    /// [`PublishError`].
    ///
    /// # Panics
    /// If the driver answers for no event.
    pub async fn publish(&self, event: NewEvent) -> Result<Published, PublishError> {
        let published = self.publish_batch(vec![event]).await?;
        Ok(published.into_iter().next().expect("a driver answers for every event"))
    }

    /// Appends events in their order. None is stored if one is not valid.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish_batch(&self, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError> {
        validate_batch(&events)?;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        self.driver().publish(&self.topic, events).await
    }

    /// What the topic holds. `None`: nothing was ever published to it, nor has it a group.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn info(&self) -> Result<Option<TopicInfo>, StoreError> {
        self.driver().topic(&self.topic).await
    }

    /// A page of its events.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(&self, page: &Page) -> Result<EventPage, StoreError> {
        self.driver().read(&self.topic, page).await
    }

    /// One event. `None`: there is none, or none any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn event(&self, id: EventId) -> Result<Option<Event>, StoreError> {
        self.driver().event(&self.topic, id).await
    }

    /// Removes the oldest events by limits; without any, by the topic's own.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn trim(&self, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError> {
        let limits = if limits.is_unlimited() { &self.topic.settings.retention } else { limits };
        self.driver().trim(&self.topic, limits, mode).await
    }

    /// Makes a group where there is none, and answers with it. One that is there stays where it is.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn group(&self, name: &str, start: Start) -> Result<Group, StreamError> {
        let group = self.existing(name)?;
        self.driver().create_group(&self.topic, &group.name, start).await?;
        Ok(group)
    }

    /// A group that is there. If it is not, what is asked of it says so.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn existing(&self, name: &str) -> Result<Group, InvalidName> {
        Ok(Group { stream: self.clone(), name: Name::new(name)? })
    }

    /// Its groups, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn groups(&self) -> Result<Vec<GroupInfo>, StoreError> {
        self.driver().groups(&self.topic).await
    }

    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        self.streams.driver()
    }
}

/// A group cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    /// It could not be one.
    #[error("a group's name is not valid")]
    Name(#[from] InvalidName),
    /// The store cannot.
    #[error("cannot make the group")]
    Store(#[from] StoreError),
}

/// One group of a topic: each event is delivered to one of its consumers at a time.
#[derive(Clone, Debug)]
pub struct Group {
    stream: Stream,
    name: Name,
}

impl Group {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its topic.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Takes up to `max` events for a consumer, and waits for the first as long as `wait` says.
    ///
    /// Not cancel-safe: what was taken for a call that is dropped comes back after the topic's `min_idle_time`. To end
    /// a wait early, use [`Group::receive_until`].
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn receive(
        &self,
        consumer: &Name,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, GroupError> {
        let stop = CancellationToken::new();
        self.receive_until(ReceiveRequest { consumer: consumer.clone(), max, wait, stop }).await
    }

    /// The same, and the wait ends when the request's token is cancelled.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn receive_until(&self, request: ReceiveRequest) -> Result<Vec<Delivery>, GroupError> {
        let received = self.driver().receive(&self.stream.topic, &self.name, request).await?;
        Ok(received.into_iter().map(|one| Delivery::new(self.clone(), one)).collect())
    }

    /// Takes over what nobody has done anything about for a while.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn claim(&self, request: ClaimRequest) -> Result<Vec<Delivery>, GroupError> {
        let claimed = self.driver().claim(&self.stream.topic, &self.name, request).await?;
        Ok(claimed.into_iter().map(|one| Delivery::new(self.clone(), one)).collect())
    }

    /// Acknowledges events by their ids alone, whichever delivery is current.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn ack(&self, ids: &[EventId]) -> Result<Vec<Outcome>, GroupError> {
        let ack = |id: &EventId| Settlement { id: *id, tag: None, action: Action::Ack };
        self.settle(ids.iter().map(ack).collect()).await
    }

    /// Settles deliveries, each by itself, and answers in their order.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Outcome>, GroupError> {
        self.driver().settle(&self.stream.topic, &self.name, settlements).await
    }

    /// What was taken and not settled, by id, after a cursor.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn pending(&self, after: Option<EventId>, limit: usize) -> Result<Vec<Pending>, GroupError> {
        self.driver().pending(&self.stream.topic, &self.name, after, limit).await
    }

    /// Stops the group from taking events.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn pause(&self) -> Result<(), GroupError> {
        self.driver().set_paused(&self.stream.topic, &self.name, true).await
    }

    /// Lets the group go on.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn resume(&self) -> Result<(), GroupError> {
        self.driver().set_paused(&self.stream.topic, &self.name, false).await
    }

    /// Makes the group go on from elsewhere; with `preview` says what would be.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn seek(&self, to: Start, preview: bool) -> Result<Sought, GroupError> {
        self.driver().seek(&self.stream.topic, &self.name, to, preview).await
    }

    /// How it stands. `None`: it is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn info(&self) -> Result<Option<GroupInfo>, StoreError> {
        let groups = self.stream.groups().await?;
        Ok(groups.into_iter().find(|group| group.name == self.name))
    }

    /// Removes the group with all that it has not settled. `false`: there was none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove(&self) -> Result<bool, StoreError> {
        self.driver().remove_group(&self.stream.topic, &self.name).await
    }

    fn driver(&self) -> &Arc<dyn Driver> {
        self.stream.driver()
    }
}
