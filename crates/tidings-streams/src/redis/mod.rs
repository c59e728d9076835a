//! The Redis driver: events in the streams of a Redis server, which all processes of a service share.
//!
//! A topic is a stream, a group is a consumer group of it: what is under way is in the server's own list of pending
//! entries, where its tools show it. What that list cannot say is in keys beside it: when each open event is due again,
//! how it failed, which others wait for it. What has to be one step is a script.
//!
//! All keys of a store begin with its prefix in braces, so that in a Redis Cluster they are in one slot: the URL has to
//! lead to the node that has it. The clock is the server's. What is kept is as durable as the server is told to be
//! (`appendonly`, `appendfsync`), and a server that removes keys when its memory is full (`maxmemory-policy`) removes
//! events with them.
//!
//! Under its prefix `P` a store has:
//!
//! | key | holds |
//! |---|---|
//! | `{P}/topics` | for each topic, how many events and bytes it ever had, bytes that are gone, its last id |
//! | `{P}/stream/TOPIC` | its events, each with how many events and bytes came before it |
//! | `{P}/bell/TOPIC` | one entry, new whenever something becomes available that was there already |
//! | `{P}/once/TOPIC/KEY` | the id of the event with an idempotency key, for as long as its window |
//! | `{P}/group/TOPIC/GROUP` | whether it is paused, how often it was made to go on from elsewhere |
//! | `{P}/due/TOPIC/GROUP` | open events by the moment from which on somebody may get them; one member for all that are
//! with somebody for the first time |
//! | `{P}/open/TOPIC/GROUP` | what else is known of open events: attempts, failures, what they wait for |
//! | `{P}/lanes/TOPIC/GROUP` | open events by the hash of their key, where the topic is or was ordered |
//! | `{P}/dead` | dead letters |
//! | `{P}/epoch` | counts groups that were made or made to go on from elsewhere |

mod config;
mod error;
mod groups;
mod link;
mod look;
mod native;
mod publish;
mod script;
mod watch;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;

use self::link::Link;
use self::native::Flowing;
use self::publish::Publishers;
use self::script::Clock;
use self::watch::Watches;
use crate::burials::{Burials, TellBurials};
use crate::call::{
    ClaimRequest, DeadLetterPage, DeadLetters, Delivered, Durability, EventPage, GroupInfo, Maintained,
    Outcome, Page, Pending, ReceiveRequest, Report, Settlement, Sought, Start, TopicInfo, TrimMode, Trimmed,
};
use crate::driver::Driver;
use crate::error::{DeadLetterError, GroupError, PublishError, StoreError};
use crate::event::{DeadLetter, Event, NewEvent, Published};
use crate::id::{DeadLetterId, EventId};
use crate::name::Name;
use crate::settings::{Retention, Topic};

pub use self::config::{Config, ConnectError, PREFIX_BYTES_MAX, Server, VERSION_NEEDED, Version};

/// A store on a Redis server.
///
/// One connection has all calls, and each topic that somebody waits for has one more. When they are lost they are made
/// anew, after waits that double and differ by chance. No call waits for the server for longer than
/// [`Config::timeout`], whatever becomes of it.
#[derive(Debug)]
pub struct Redis {
    link: Arc<Link>,
    watches: Arc<Watches>,
    publishers: Arc<Publishers>,
    base: String,
    burials: Burials,
    flowing: Flowing,
}

impl Redis {
    /// Connects to a server: `redis://user:password@host:6379/0`, or `unix:///run/redis.sock`.
    ///
    /// # Errors
    /// [`ConnectError`]: of a server that is too old too.
    pub async fn connect(url: &str, config: Config) -> Result<Self, ConnectError> {
        Self::connect_by(url, config, Clock::Server).await
    }

    /// The same, with a clock that whoever runs the suite moves: the server's key `clock` holds its milliseconds. Needs
    /// release 7 or later.
    ///
    /// # Errors
    /// [`ConnectError`].
    #[cfg(feature = "conformance")]
    pub async fn connect_by_given_clock(url: &str, config: Config) -> Result<Self, ConnectError> {
        Self::connect_by(url, config, Clock::Given).await
    }

    async fn connect_by(url: &str, config: Config, clock: Clock) -> Result<Self, ConnectError> {
        let base = config.base()?;
        let link = Link::connect(url, &config, clock).await?;
        let watches = Watches::new(Arc::clone(&link), base.clone());
        let publishers = Publishers::new(Arc::clone(&link), base.clone());
        Ok(Self { link, watches, publishers, base, burials: Burials::default(), flowing: Flowing::default() })
    }

    /// What the server said of itself when it was last connected to.
    #[must_use]
    pub fn server(&self) -> Server {
        self.link.server()
    }
}

#[async_trait]
impl Driver for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn durability(&self) -> Durability {
        Durability::Server
    }

    fn watch_burials(&self, tell: TellBurials) {
        self.burials.watch(tell);
    }

    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError> {
        self.publishers.publish(topic, events).await
    }

    async fn topics(&self) -> Result<Vec<Name>, StoreError> {
        self.list_topics().await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError> {
        self.topic_info(topic).await
    }

    async fn read(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError> {
        self.page(topic, page).await
    }

    async fn event(&self, topic: &Topic, id: EventId) -> Result<Option<Event>, StoreError> {
        self.one_event(topic, id).await
    }

    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError> {
        self.remove(topic, limits, mode, u64::MAX).await
    }

    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError> {
        self.make_group(topic, group, start).await
    }

    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError> {
        match self.change_group(topic, group, ("remove", "")).await {
            Ok(()) => Ok(true),
            Err(GroupError::Unknown) => Ok(false),
            Err(GroupError::Store(error)) => Err(error),
        }
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        self.list_groups(topic).await
    }

    async fn receive(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        self.receive_or_wait(topic, group, request).await
    }

    async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Outcome>, GroupError> {
        self.settle_all(topic, group, &settlements).await
    }

    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        self.list_pending(topic, group, after, limit).await
    }

    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        self.take_over(topic, group, &request).await
    }

    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError> {
        self.change_group(topic, group, ("pause", if paused { "1" } else { "0" })).await
    }

    async fn seek(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        self.seek_to(topic, group, to, preview).await
    }

    async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        self.list_dead(page).await
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.one_dead(id).await
    }

    async fn dead_letter_count(&self) -> Result<u64, StoreError> {
        self.count_dead().await
    }

    async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        self.retry_dead(id).await
    }

    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        self.purge_dead(ids).await
    }

    async fn verify(&self) -> Result<Report, StoreError> {
        self.link.read(&redis::cmd("PING")).await?;
        Ok(Report::default())
    }

    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        self.look_after(topic).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.link.close();
        self.watches.ended().await;
        self.publishers.ended().await;
        Ok(())
    }
}
