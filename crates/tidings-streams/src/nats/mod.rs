//! The NATS driver: events in the streams of a NATS server with JetStream, which all processes of a service share.
//!
//! A topic is a stream of the server, an event is a message of it, and its sequence is the event's id: `nats stream
//! view` shows what there is. Publishing once is the server's own: an idempotency key is the message's id, and the
//! window of a topic is that of its stream. Where operators say that a stream keeps less, less is kept, whatever
//! groups need: a store sets no limits of its own, and removes by itself what retention names and no group needs.
//!
//! # Groups are journals
//!
//! What a group has taken and settled is a journal: the messages of one subject, each of which is stored only behind
//! the last one that its writer has read (`Nats-Expected-Last-Subject-Sequence`). So every process comes to the same
//! state, by the same state machine that the embedded store has ([`crate::ledger`]), and whatever it decides counts
//! only if nobody else has decided something since. Who comes too late reads what is new and decides again. From time
//! to time the whole state is stored, and what came before is removed.
//!
//! The server's own durable consumers would deliver, too, and cannot promise what is promised here: they write down
//! what was delivered and acknowledged some time after they have said so, and a server that is killed forgets it; they
//! extend a delivery by `ack_wait` alone; they hold no key back while another of its events fails; and they tell
//! counts of what is pending, not which events, how often, with whom and why. What they are good for is to say that
//! something new is there, and for that each process has one, a pull consumer, of each topic that it waits for.
//!
//! To an ordered topic a batch takes as many ways to the server and back as it has events of one key, all without a key
//! counting as one: an event is sent when the one before it is acknowledged. A thousand events of one key take a second
//! where that is a millisecond, and ten where it is ten.
//!
//! A step takes one message, and calls of one group come one after the other: it is a group's rate that is bounded by
//! the way to the server, about one call in the time of three messages there and back, with up to a thousand events
//! each. Topics and groups do not hold each other up.
//!
//! # What is where
//!
//! Under its prefix `P` a store has these streams. Dots in names are written as `=`, which no name holds.
//!
//! | stream | subjects | holds |
//! |---|---|---|
//! | `P+topic+TOPIC` | `P.topic.TOPIC` | events; the header `Tidings-Event` has what is not the payload |
//! | | `P.retry.TOPIC.LETTER` | the retry of a dead letter, once |
//! | `P+groups` | `P.group.TOPIC.GROUP` | journals, as JSON |
//! | `P+dead` | `P.dead.TOPIC.GROUP.EPOCH.EVENT` | dead letters, each on a subject of its own |
//!
//! The clock is the server's: each process compares its own with it, and leaves aside what the way there and back
//! explains. A message is in the server's files when it is acknowledged, and on its disk when the server says so
//! (`sync_interval`, `sync_always`): a killed server loses nothing, a loss of power may take what came since. In a
//! cluster, [`Config::replicas`] of 3 outlives that of one server.

mod config;
mod connect;
mod dead;
mod error;
mod groups;
mod journal;
mod link;
mod names;
mod retain;
mod settle;
mod topics;
mod watch;
mod wire;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::link::Link;
use self::names::Names;
use self::topics::Known;
use self::watch::Watches;
use self::writer::Replicas;
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

pub use self::config::{Config, ConnectError, PREFIX_BYTES_MAX, REPLICAS_MAX, Server, VERSION_NEEDED};

/// A store on a NATS server, or a cluster of them.
///
/// One connection has all calls. When it is lost it is made anew, after waits that double and differ by chance. No call
/// waits for the server for longer than [`Config::timeout`], whatever becomes of it; one that is done in parts, such as
/// publishing to an ordered topic, does not for any of them.
#[derive(Debug)]
pub struct Nats {
    link: Arc<Link>,
    names: Names,
    watches: Arc<Watches>,
    replicas: Replicas,
    known: Known,
    burials: Burials,
    /// On how many servers streams are kept that are made.
    copies: usize,
    clocks_compared: Mutex<Instant>,
}

impl Nats {
    /// Connects to a server: `nats://user:password@host:4222`, with `tls` for `nats` where the server asks for it.
    /// Several of one cluster have commas between them.
    ///
    /// # Errors
    /// [`ConnectError`]: of a server that is too old, or has no JetStream, too.
    pub async fn connect(url: &str, config: Config) -> Result<Self, ConnectError> {
        Self::open(url, config, None).await
    }

    /// The same, with a clock that whoever runs the suite moves. Moments of events are the server's all the same.
    ///
    /// # Errors
    /// [`ConnectError`].
    #[cfg(feature = "conformance")]
    pub async fn connect_by_given_clock(
        url: &str,
        config: Config,
        clock: Arc<dyn Fn() -> crate::id::Timestamp + Send + Sync>,
    ) -> Result<Self, ConnectError> {
        Self::open(url, config, Some(clock)).await
    }

    /// What the server said of itself when it was last connected to.
    #[must_use]
    pub fn server(&self) -> Server {
        self.link.server()
    }
}

#[async_trait]
impl Driver for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn durability(&self) -> Durability {
        Durability::Server
    }

    fn watch_burials(&self, tell: TellBurials) {
        self.burials.watch(tell);
    }

    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError> {
        self.append(topic, &events).await
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
        self.one_event(&topic.name, id).await
    }

    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError> {
        self.remove(topic, limits, mode).await
    }

    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError> {
        self.link.within(self.make_group(topic, group, start)).await
    }

    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError> {
        self.link.within(self.drop_group(topic, group)).await
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
        self.link.within(self.settle_all(topic, group, &settlements)).await
    }

    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        self.link.within(self.list_pending(topic, group, after, limit)).await
    }

    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        self.link.within(self.take_over(topic, group, &request)).await
    }

    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError> {
        self.link.within(self.pause(topic, group, paused)).await
    }

    async fn seek(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        self.link.within(self.seek_to(topic, group, to, preview)).await
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
        self.link.within(self.retry_dead(id)).await
    }

    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        self.purge_dead(ids).await
    }

    async fn verify(&self) -> Result<Report, StoreError> {
        self.count_dead().await?;
        Ok(Report::default())
    }

    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        self.look_after(topic).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.link.close().await;
        self.watches.ended().await;
        Ok(())
    }
}
