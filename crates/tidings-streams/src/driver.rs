//! What a store of durable streams does: the one trait, and what its calls take and give.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::error::{DeadLetterError, GroupError, PublishError, StoreError};
use crate::event::{DeadLetter, Event, NewEvent, Published};
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;
use crate::settings::{Retention, Topic};

/// A store of durable streams.
///
/// What is right is what the suite in `conformance` says; this says why, and how each call is done well with
/// servers that are not here yet. In all of them an answer of `Ok` means that the store keeps it as durably as
/// [`Driver::durability`] says. An error that is not about the request leaves it open whether it was done.
///
/// Delivery is **at least once**: an event is delivered to each group until one delivery of it is acknowledged, or it
/// is a dead letter of that group. Who may see one twice is whoever crashed, or took longer than the topic's
/// `min_idle_time`, before the acknowledgement was stored.
///
/// | call | Redis Streams | NATS JetStream |
/// |---|---|---|
/// | `publish` | a script: `SET NX PX` of each idempotency key, `XADD`; `XTRIM MINID` below the lowest unsettled id | publish with `Nats-Msg-Id`, then await the acknowledgement; retention by `purge(seq)`, not by limits of the stream, which ignore groups |
/// | `create_group` | `XGROUP CREATE … MKSTREAM`; `BUSYGROUP` is `false` | a durable pull consumer with explicit acknowledgement, `deliver_policy` by start, `max_deliver` -1, one `filter_subject` |
/// | `receive` | a script: due retries from a sorted set of ours, `XAUTOCLAIM`, `XPENDING` for its count, burial of what is spent; then `XREADGROUP … BLOCK` on a connection of its own | a pull with `expires`; `delivered` counts attempts |
/// | `settle`: ack | a script that compares the attempt in `XPENDING` and calls `XACK` | double acknowledgement, which waits for the server |
/// | `settle`: fail | a script: the due moment into the sorted set; or `XADD` to the dead letters and `XACK`, with a hash tag that keeps both keys together | `NAK` with a delay; or publish to the dead letters with `Nats-Msg-Id` `stream:seq:group`, await, then `TERM` |
/// | `settle`: extend | `XCLAIM … JUSTID` to its own consumer, which resets the idle time | `+WPI` |
/// | `claim` | `XCLAIM` with `MIN-IDLE-TIME` | not there: what is idle comes back by `ack_wait`; answer [`StoreError::Unsupported`] |
/// | `seek` | `XGROUP SETID`, and `XACK` of what is pending | a new consumer of the same name and another policy |
/// | `set_paused` | a flag of ours that `receive` reads | `pause_until`, from server 2.11; before, a flag in a bucket |
/// | `read`, `event` | `XRANGE`, `XREVRANGE` | direct get by sequence, from 2.9 with `allow_direct` |
/// | `trim` | `XTRIM MINID`, bounded by the lowest unsettled id | `purge(seq)`, bounded by the ack floors |
/// | dead letters | a stream of its own, `XREVRANGE`, `XDEL` | a stream of its own, message deletion |
/// | `verify` | nothing to do: the server's own checks | the same |
///
/// Ordered topics are kept by what each driver remembers beside the server's groups: who takes an event looks whether
/// one of its key is open, and if so puts it back. In Redis that is a hash per group in the receiving script; in NATS
/// a topic is ordered as a whole (`max_ack_pending` 1) or by one subject and consumer per key.
#[async_trait]
pub trait Driver: Debug + Send + Sync + 'static {
    /// What it is called: `embedded`, `redis`, `nats`.
    fn name(&self) -> &'static str;

    /// What an acknowledged write outlives.
    fn durability(&self) -> Durability;

    /// Appends events in their order, and makes the topic if there is none. Then applies its retention.
    ///
    /// An event with an idempotency key that was used within the topic's window is not stored again: the first id is
    /// answered. After a crash, of a batch that was not acknowledged the first so many events may be there.
    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError>;

    /// Every topic that was ever published to or given a group, by name. Dead letters are no topics.
    async fn topics(&self) -> Result<Vec<Name>, StoreError>;

    /// What a topic holds. `None`: there is none.
    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError>;

    /// A page of a topic's events.
    async fn read(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError>;

    /// One event. `None`: there is none, or none any more.
    async fn event(&self, topic: &Topic, id: EventId) -> Result<Option<Event>, StoreError>;

    /// Removes the oldest events by limits, which need not be the topic's own.
    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError>;

    /// Makes a group. `false`: it is there already, and stays as it is.
    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError>;

    /// Removes a group with all that it has not settled. `false`: there is none.
    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError>;

    /// The groups of a topic, by name.
    async fn groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError>;

    /// Takes up to `max` events for a consumer: first what is due again, then what is new. Every delivery is stored
    /// as one more attempt before it is answered, so that an event that ends its process is counted. What was
    /// delivered `max_deliveries` times and not settled in time becomes a dead letter.
    ///
    /// Waits for the first event only, as long as `wait` says, or until `stop`. A paused group yields nothing.
    ///
    /// Not cancel-safe: what was taken for a call that is dropped comes back after `min_idle_time`. End the wait by
    /// `stop` instead, which loses nothing.
    async fn receive(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError>;

    /// Settles deliveries, each by itself, and answers in their order.
    async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Outcome>, GroupError>;

    /// What a group has taken and not settled, by id, after a cursor.
    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError>;

    /// Takes over deliveries that nobody has done anything about for `min_idle`: one more attempt each. What is spent
    /// becomes a dead letter instead.
    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError>;

    /// Stops a group from taking events, or lets it go on. What is under way can be settled all the same.
    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError>;

    /// Makes a group go on from elsewhere. Everything that it has taken is forgotten: those deliveries are stale.
    /// With `preview` says what would be, and does nothing.
    async fn seek(&self, topic: &Topic, group: &Name, to: Start, preview: bool)
    -> Result<Sought, GroupError>;

    /// Dead letters, newest first.
    async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError>;

    /// One dead letter. `None`: there is none, or none any more.
    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError>;

    /// How many dead letters there are.
    async fn dead_letter_count(&self) -> Result<u64, StoreError>;

    /// Publishes a dead letter to its topic again, for its group alone, and removes it, as one step. The event gets a
    /// new id and no attempts.
    async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError>;

    /// Removes dead letters. How many there were.
    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError>;

    /// Looks at all that is stored, and names what cannot be read.
    async fn verify(&self) -> Result<Report, StoreError>;

    /// What is to be done for a topic from time to time, whether or not anybody asks: retention, dead letters of
    /// what nobody settled, forgetting of idempotency keys.
    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError>;

    /// Stores what is left and ends. Everything that comes later is [`StoreError::Closed`].
    async fn close(&self) -> Result<(), StoreError>;
}

/// What an acknowledged write outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A loss of power: it was synchronised to the disk before it was acknowledged.
    Sync,
    /// The end of the process, but not a loss of power within the second before it.
    Relaxed,
    /// What the server is configured to.
    Server,
}

/// What a topic holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: Name,
    /// Events that are held.
    pub events: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
    /// The oldest, if there is one.
    pub first: Option<EventId>,
    /// The newest, if there is one.
    pub last: Option<EventId>,
    /// When the newest was published.
    pub last_time: Option<Timestamp>,
    /// Groups.
    pub groups: usize,
}

/// Which way a page goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// From older to newer.
    #[default]
    Ascending,
    /// From newer to older.
    Descending,
}

/// Most events of a page. What is asked for beyond is not answered: the page has a `next`.
pub const PAGE_EVENTS_MAX: usize = 1_000;

/// Which events of a topic to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Beyond this one, in the page's direction; from the end of the topic without.
    pub after: Option<EventId>,
    /// Published at this moment or later.
    pub from: Option<Timestamp>,
    /// Published before this moment.
    pub until: Option<Timestamp>,
    /// Most events; [`PAGE_EVENTS_MAX`] at most.
    pub limit: usize,
    /// Which way.
    pub order: Order,
}

/// A page of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// In the page's order.
    pub events: Vec<Event>,
    /// Where the next page begins (`after`); `None`: nothing is left.
    pub next: Option<EventId>,
}

/// How to trim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrimMode {
    /// Says what would be, and does nothing.
    pub dry_run: bool,
    /// Removes also what groups have not settled: it is lost to them.
    pub force: bool,
}

/// What trimming did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Events that were removed.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events that the limits name and that a group has not settled.
    pub kept_for_groups: u64,
}

/// Where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest event that is held.
    Earliest,
    /// With what is published from now on.
    Latest,
    /// With this event, or the next one that there is.
    Id(EventId),
    /// With the first event of this moment or later.
    Time(Timestamp),
}

/// Most events that one call takes.
pub const RECEIVE_EVENTS_MAX: usize = 1_000;

/// What to take.
#[derive(Clone, Debug)]
pub struct ReceiveRequest {
    /// For whom.
    pub consumer: Name,
    /// Most events; [`RECEIVE_EVENTS_MAX`] at most. Fewer come where they are large.
    pub max: usize,
    /// How long to wait for the first.
    pub wait: Duration,
    /// Ends the wait: nothing comes then but what was taken already.
    pub stop: CancellationToken,
}

/// Which delivery of an event: tells a late word about an earlier one from one about the current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Counts how often the group was made to go on from elsewhere.
    pub epoch: u64,
    /// The how-many-eth delivery it is, from 1.
    pub attempt: u32,
}

/// An event that was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The event.
    pub event: Event,
    /// Which delivery.
    pub tag: Tag,
    /// From when on somebody else may get it.
    pub until: Timestamp,
}

/// What to do about a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is done.
    Ack,
    /// It failed, for a reason: it is delivered again after a wait, or is a dead letter if this was the last time.
    Fail {
        /// Kept up to [`crate::ERROR_BYTES_MAX`] bytes.
        reason: String,
    },
    /// It takes longer: so long from now on.
    Extend {
        /// How long.
        by: Duration,
    },
}

/// A word about a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Of which event.
    pub id: EventId,
    /// Of which delivery. `None`: whichever is current.
    pub tag: Option<Tag>,
    /// What to do.
    pub action: Action,
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done for this group.
    Acked,
    /// It is delivered again from then on.
    RetryAt(Timestamp),
    /// It is a dead letter.
    Buried(DeadLetterId),
    /// It may take until then.
    Extended(Timestamp),
    /// The event was delivered again since, or failed: nothing was done.
    Stale,
    /// The group has no such delivery: it was settled, or there was none. Nothing was done.
    Unknown,
}

/// What a group has taken and not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Which event.
    pub id: EventId,
    /// How often it was delivered.
    pub attempts: u32,
    /// Who had it last. `None`: nobody yet, it waits for its time or for another of its key.
    pub consumer: Option<Name>,
    /// For how long nobody has done anything about it; of what waits, zero.
    pub idle: Duration,
    /// Whether somebody has it now, and until when; else from when on it is delivered.
    pub state: PendingState,
    /// What the last failure said.
    pub error: Option<String>,
}

/// Where an open event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingState {
    /// With a consumer, until then.
    Taken(Timestamp),
    /// Waiting, until then at least.
    Waiting(Timestamp),
}

/// What to take over.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// For whom.
    pub consumer: Name,
    /// What was idle for so long.
    pub min_idle: Duration,
    /// Most deliveries; [`RECEIVE_EVENTS_MAX`] at most.
    pub max: usize,
}

/// How a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: Name,
    /// Whether it takes events.
    pub paused: bool,
    /// Events that it has not settled, taken or not. Those that were retried for another group, or that cannot be
    /// read, may be among those not taken.
    pub lag: u64,
    /// How old the oldest of those is.
    pub lag_age: Duration,
    /// Events that it has taken, or looked at, and not settled.
    pub pending: u64,
    /// Deliveries beyond the first of an event, since the store was opened.
    pub redeliveries: u64,
    /// The next event that it has not looked at yet.
    pub next: EventId,
}

/// What seeking did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The next event before.
    pub from: EventId,
    /// The next event after.
    pub to: EventId,
    /// Events that are delivered again: those from there on that were settled or are under way.
    pub again: u64,
    /// Events that are not delivered any more though they were not settled.
    pub skipped: u64,
}

/// Which dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Of this topic.
    pub topic: Option<Name>,
    /// Of this group.
    pub group: Option<Name>,
    /// In this dead-letter stream.
    pub stream: Option<Name>,
}

impl DeadLetterFilter {
    /// Whether a dead letter is meant.
    #[must_use]
    pub fn takes(&self, stream: &Name, topic: &Name, group: &Name) -> bool {
        let fits = |wanted: &Option<Name>, name| wanted.as_ref().is_none_or(|wanted| wanted == name);
        fits(&self.stream, stream) && fits(&self.topic, topic) && fits(&self.group, group)
    }
}

/// Which dead letters to list: newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterPage {
    /// Which ones.
    pub filter: DeadLetterFilter,
    /// Older than this one.
    pub after: Option<DeadLetterId>,
    /// Most dead letters; [`PAGE_EVENTS_MAX`] at most.
    pub limit: usize,
}

/// A page of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetters {
    /// Newest first. Fewer than asked for, or none, may come though there is a `next`: a store looks through so many
    /// at a time.
    pub letters: Vec<DeadLetter>,
    /// Where the next page begins (`after`); `None`: nothing is left.
    pub next: Option<DeadLetterId>,
}

/// What a look at everything found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that were read and are sound.
    pub events: u64,
    /// Dead letters that were read and are sound.
    pub dead_letters: u64,
    /// What cannot be read.
    pub damage: Vec<Damage>,
}

/// What cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub place: Place,
    /// The ids that are missing, first and last, where it is known.
    pub ids: Option<(EventId, EventId)>,
    /// How many bytes are unreadable; 0 where they are missing.
    pub bytes: u64,
}

/// A part of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The events of a topic.
    Topic(Name),
    /// Dead letters.
    DeadLetters,
    /// What groups have settled. What is missing there is delivered again.
    Groups,
}

/// What maintenance did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// What retention removed.
    pub trimmed: Trimmed,
    /// Events that nobody settled in time, for the last time.
    pub buried: u64,
}
