//! What the calls of a driver take and give.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::event::{DeadLetter, Event};
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;

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
    /// How long to wait for the first; [`crate::WAIT_MAX`] at most.
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
        /// How long; [`crate::WAIT_MAX`] at most.
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
