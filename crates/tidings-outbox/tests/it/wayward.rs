//! The embedded store, which does not do as it is told.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidings_streams::embedded::Embedded;
use tidings_streams::{
    ClaimRequest, DeadLetter, DeadLetterError, DeadLetterId, DeadLetterPage, DeadLetters, Delivered, Driver,
    Durability, Event, EventId, EventPage, GroupError, GroupInfo, Maintained, Name, NewEvent, Outcome, Page,
    Pending, PublishError, Published, ReceiveRequest, Report, Retention, Settlement, Sought, Start,
    StoreError, Topic, TopicInfo, TrimMode, Trimmed,
};

/// What becomes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is published.
    Good,
    /// The server cannot be reached.
    Away,
    /// It is published, the answer is lost, and the server is away from then on.
    Unheard,
    /// Refused, if one of its events says `poison`.
    Refusing,
    /// No event, if one of them says `poison`.
    Judging,
    /// The topic has no room for more keys.
    Full,
    /// There is no room for it, if one of its events says `poison`.
    Crammed,
    /// Four are refused; of the fifth the same is said, but it is published.
    Fitful,
    /// It is published. Nothing can be read.
    Unreadable,
    /// It is published. A topic that is read has more, always.
    Endless,
    /// The driver panics.
    Panicking,
}

#[derive(Debug)]
pub(crate) struct Wayward {
    inner: Embedded,
    way: Mutex<Way>,
    /// How many batches came.
    batches: Mutex<u64>,
    /// How many pages were read.
    reads: Mutex<u64>,
}

impl Wayward {
    pub(crate) fn new(inner: Embedded) -> Self {
        Self { inner, way: Mutex::new(Way::Good), batches: Mutex::default(), reads: Mutex::default() }
    }

    pub(crate) fn goes(&self, way: Way) {
        *self.way.lock() = way;
    }

    fn is_there(&self) -> Result<(), StoreError> {
        match *self.way.lock() {
            Way::Away => Err(StoreError::Unreachable("it is away".to_owned())),
            _ => Ok(()),
        }
    }

    pub(crate) fn batches(&self) -> u64 {
        *self.batches.lock()
    }

    pub(crate) fn reads(&self) -> u64 {
        *self.reads.lock()
    }
}

fn refused(kind: ErrorKind, text: &str) -> StoreError {
    StoreError::Failed(Arc::new(Error::new(kind, text)))
}

fn is_poison(event: &NewEvent) -> bool {
    event.payload.starts_with(b"poison")
}

#[async_trait]
impl Driver for Wayward {
    fn name(&self) -> &'static str {
        "wayward"
    }

    fn durability(&self) -> Durability {
        self.inner.durability()
    }

    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError> {
        let batches = {
            let mut batches = self.batches.lock();
            *batches += 1;
            *batches
        };
        self.is_there()?;
        let way = *self.way.lock();
        let has_poison = events.iter().any(is_poison);
        match way {
            Way::Full => return Err(PublishError::TooManyKeys),
            Way::Refusing if has_poison => {
                return Err(refused(ErrorKind::Other, "too large for the server").into());
            }
            Way::Crammed if has_poison => return Err(refused(ErrorKind::StorageFull, "no room").into()),
            Way::Fitful if batches < 5 => return Err(refused(ErrorKind::Other, "not now").into()),
            Way::Panicking => panic!("as it was told"),
            Way::Judging if has_poison => {
                return Err(tidings_streams::InvalidEvent::Payload(9).into());
            }
            _ => {}
        }
        let published = self.inner.publish(topic, events).await?;
        if way == Way::Unheard {
            self.goes(Way::Away);
        }
        if way == Way::Fitful && batches == 5 {
            return Err(refused(ErrorKind::Other, "what was done is not known").into());
        }
        self.is_there()?;
        Ok(published)
    }

    async fn topics(&self) -> Result<Vec<Name>, StoreError> {
        self.inner.topics().await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError> {
        self.is_there()?;
        self.inner.topic(topic).await
    }

    async fn read(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError> {
        self.is_there()?;
        *self.reads.lock() += 1;
        match *self.way.lock() {
            Way::Unreadable => return Err(refused(ErrorKind::Other, "it cannot be read")),
            Way::Endless => {
                let next = page.after.map(|after| EventId::pair(after.major() + 1, 0));
                return Ok(EventPage { events: Vec::new(), next });
            }
            _ => {}
        }
        self.inner.read(topic, page).await
    }

    async fn event(&self, topic: &Topic, id: EventId) -> Result<Option<Event>, StoreError> {
        self.inner.event(topic, id).await
    }

    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError> {
        self.inner.trim(topic, limits, mode).await
    }

    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError> {
        self.inner.create_group(topic, group, start).await
    }

    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError> {
        self.inner.remove_group(topic, group).await
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        self.inner.groups(topic).await
    }

    async fn receive(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        self.inner.receive(topic, group, request).await
    }

    async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Outcome>, GroupError> {
        self.inner.settle(topic, group, settlements).await
    }

    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        self.inner.pending(topic, group, after, limit).await
    }

    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        self.inner.claim(topic, group, request).await
    }

    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError> {
        self.inner.set_paused(topic, group, paused).await
    }

    async fn seek(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        self.inner.seek(topic, group, to, preview).await
    }

    async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        self.inner.dead_letters(page).await
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.inner.dead_letter(id).await
    }

    async fn dead_letter_count(&self) -> Result<u64, StoreError> {
        self.inner.dead_letter_count().await
    }

    async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        self.inner.retry(id).await
    }

    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        self.inner.purge(ids).await
    }

    async fn verify(&self) -> Result<Report, StoreError> {
        self.inner.verify().await
    }

    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        self.inner.maintain(topic).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}
