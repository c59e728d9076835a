//! What a store of durable streams does: the one trait.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::burials::TellBurials;
use crate::call::{
    ClaimRequest, DeadLetterPage, DeadLetters, Delivered, Durability, EventPage, GroupInfo, Maintained,
    Outcome, Page, Pending, ReceiveRequest, Report, Settlement, Sought, Start, TopicInfo, TrimMode, Trimmed,
};
use crate::error::{DeadLetterError, GroupError, PublishError, StoreError};
use crate::event::{DeadLetter, Event, NewEvent, Published};
use crate::id::{DeadLetterId, EventId};
use crate::name::Name;
use crate::settings::{Retention, Topic};

/// A store of durable streams.
///
/// What is right is what the suite in `conformance` says; this says why, and how the drivers for Redis and NATS do it.
/// In all of them an answer of `Ok` means that the store keeps it as durably as [`Driver::durability`] says. An error
/// that is not about the request leaves it open whether it was done.
///
/// Delivery is **at least once**: an event is delivered to each group until one delivery of it is acknowledged, or it
/// is a dead letter of that group. Who may see one twice is whoever crashed, or took longer than the topic's
/// `min_idle_time`, before the acknowledgement was stored.
///
/// Ordered topics are kept by what each driver remembers beside the server's groups: who takes an event looks whether
/// one of its key is open, and if so puts it back. In Redis that is a sorted set for each group, which the receiving
/// script asks for the first open event of a key; with NATS each process has the group's whole state, as the embedded
/// store has, and changes it by a record of the group's journal that is stored only behind the last one that it has
/// read.
#[async_trait]
pub trait Driver: Debug + Send + Sync + 'static {
    /// What it is called: `embedded`, `redis`, `nats`.
    fn name(&self) -> &'static str;

    /// What an acknowledged write outlives.
    fn durability(&self) -> Durability;

    /// Has it say what [`Driver::receive`] and [`Driver::claim`] made dead letters of because nobody had settled it in
    /// time: their answers do not. Each once it is known, also where the call was dropped or comes to nothing; who asked
    /// first is told. The embedded store also says what [`Driver::maintain`] had given up where that ends with an
    /// error.
    ///
    /// A driver that gives nothing up there has nothing to say, which is what this does.
    fn watch_burials(&self, tell: TellBurials) {
        drop(tell);
    }

    /// Appends events in their order, and makes the topic if there is none. Then applies its retention.
    ///
    /// An event with an idempotency key that was used within the topic's window is not stored again: the first id is
    /// answered. After a crash, of a batch that was not acknowledged the first so many events may be there. With NATS
    /// that holds for the events of each key of an ordered topic, all without a key counting as one; of other batches
    /// any part may be there, should the connection be lost amid one.
    ///
    /// Redis: a script that does `GET` and `SET PX` for each idempotency key and `XADD`, for all who publish to a topic
    /// at once, and, every hundred events or where the topic is much too large, another that does `XTRIM MINID` below
    /// the lowest unsettled id. NATS: publish with `Nats-Msg-Id` and await the acknowledgement, on ordered topics
    /// before the next event of the same key is sent, so that a batch takes a way to the server and back for each
    /// event of a key, each with a call's time of its own; retention by `purge`, for limits of the stream ask no
    /// groups.
    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError>;

    /// Every topic that was ever published to or given a group, by name. Dead letters are no topics.
    async fn topics(&self) -> Result<Vec<Name>, StoreError>;

    /// What a topic holds. `None`: there is none.
    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError>;

    /// A page of a topic's events.
    ///
    /// Redis: `XRANGE` and `XREVRANGE`. NATS: direct get by sequence, several at a time; moments are found by halves.
    async fn read(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError>;

    /// One event. `None`: there is none, or none any more.
    async fn event(&self, topic: &Topic, id: EventId) -> Result<Option<Event>, StoreError>;

    /// Removes the oldest events by limits, which need not be the topic's own.
    ///
    /// Redis: `XTRIM MINID` in a script, for it does not itself spare what is pending. Where to cut is found by
    /// halves: each entry says how many events and bytes came before it. NATS: `purge` up to a sequence, below the
    /// lowest that a journal says is needed. Where to cut by bytes is found by adding up what is cut.
    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError>;

    /// Makes a group. `false`: it is there already, and stays as it is.
    ///
    /// Redis: `XGROUP CREATE` with `MKSTREAM`, in a script that looks first. NATS: the first record of a journal.
    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError>;

    /// Removes a group with all that it has not settled. `false`: there is none.
    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError>;

    /// The groups of a topic, by name.
    async fn groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError>;

    /// Takes up to `max` events for a consumer: first what is due again, then what is new. Every delivery is stored
    /// as one more attempt before it is answered, so that an event that ends its process is counted. What was
    /// delivered `max_deliveries` times and not settled in time becomes a dead letter.
    ///
    /// Waits for the first event only, as long as `wait` says, or until `stop`. A paused group yields nothing. Where
    /// there is more to give up than there is time for, the rest of it is left to whoever comes next.
    ///
    /// Not cancel-safe: what was taken for a call that is dropped comes back after `min_idle_time`. End the wait by
    /// `stop` instead, which loses nothing.
    ///
    /// Redis: a script that takes by `XCLAIM` what is due by a sorted set of ours or by the server's own list, buries
    /// what is spent, and does `XREADGROUP` without `BLOCK`, all in one step. (`XAUTOCLAIM` goes by idle times alone, and
    /// an extended delivery or one that failed has another.) A group that had nothing but new events the last time does
    /// `XREADGROUP` itself, in one transaction with a script that says whether they may be handed out; if not they are
    /// given back. Waiting is `XREAD` with `BLOCK`, without the group, of the topic and of a stream of one entry that
    /// tells of all else, on a connection of its own for each topic, and then the script again. NATS: direct get of
    /// what can be taken, and a record that says so before it is answered. Waiting is a pull with `expires` from
    /// consumers of the topic and of its groups' journals that tell headers alone.
    async fn receive(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError>;

    /// Settles deliveries, each by itself, and answers in their order.
    ///
    /// Redis: a script that compares the attempt first, which is kept where it is not the first one. Acknowledging is
    /// `XACK`, for each by itself, which says whether somebody had it, failing puts the due moment into the sorted set
    /// or does `XADD` to the dead letters and `XACK` at once (in a Redis Cluster scripts touch one slot only: all names
    /// of a store have one hash tag), and extending is `XCLAIM` with `JUSTID` to the same consumer. NATS: a record of
    /// the journal for as many words as fit. One that gives an event up comes before its dead letter is published, on a
    /// subject of its own with `Nats-Expected-Last-Subject-Sequence: 0`, and another behind: who finds only the first
    /// goes on, and is refused where the letter is there already. A word that meets [`StoreError::Unreachable`] is
    /// worth saying again until the delivery's `until`, for it may not have been heard.
    async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Outcome>, GroupError>;

    /// What a group has taken and not settled, by id, after a cursor.
    ///
    /// Redis: `XPENDING` with a range, the sorted set, and a hash of what else is known. NATS: the state that the
    /// journal says.
    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError>;

    /// Takes over deliveries that nobody has done anything about for `min_idle`: one more attempt each. What is spent
    /// becomes a dead letter instead. A paused group yields nothing.
    ///
    /// Redis: `XPENDING` with `IDLE`, and `XCLAIM`. NATS: a record of the journal.
    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError>;

    /// Stops a group from taking events, or lets it go on. What is under way can be settled all the same.
    ///
    /// Redis: a flag of ours that the receiving script reads. NATS: a record of the journal.
    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError>;

    /// Makes a group go on from elsewhere. Everything that it has taken is forgotten: those deliveries are stale.
    /// With `preview` says what would be, and does nothing.
    ///
    /// Redis: `XGROUP DESTROY` and `XGROUP CREATE`, which forgets all that is pending at once. NATS: a record of the
    /// journal.
    async fn seek(&self, topic: &Topic, group: &Name, to: Start, preview: bool)
    -> Result<Sought, GroupError>;

    /// Dead letters, newest first.
    ///
    /// Both: a stream of its own for dead letters, with `XREVRANGE` or direct get.
    async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError>;

    /// One dead letter. `None`: there is none, or none any more.
    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError>;

    /// How many dead letters there are.
    async fn dead_letter_count(&self) -> Result<u64, StoreError>;

    /// Publishes a dead letter to its topic again, for its group alone, and removes it, as one step. The event gets a
    /// new id and no attempts.
    ///
    /// Redis: a script, `XADD` and `XDEL`. NATS: publish on a subject of the dead letter that takes one message,
    /// await, delete the letter: where a process ends between, it is there still, and a retry finds what was
    /// published. Groups other than the one that is named in the event acknowledge it unseen.
    async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError>;

    /// Removes dead letters. How many there were.
    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError>;

    /// Looks at all that is stored, and names what cannot be read.
    ///
    /// With servers there is nothing to do but to ask whether they answer: an empty report.
    async fn verify(&self) -> Result<Report, StoreError>;

    /// What is to be done for a topic from time to time, whether or not anybody asks: retention, dead letters of
    /// what nobody settled, forgetting of idempotency keys. All of it, however long that takes: with servers each part
    /// has a call's time of its own.
    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError>;

    /// Stores what is left and ends. Everything that comes later is [`StoreError::Closed`].
    async fn close(&self) -> Result<(), StoreError>;
}
