//! Topics and their events: publishing and reading.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use futures_util::{Stream, StreamExt, stream as streams};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::Nats;
use super::error::Refusal;
use super::link::{Stored, Which, if_any};
use super::wire::{self, HEADERS_BYTES_MAX, LETTER_BYTES_MAX, Message};
use crate::call::{EventPage, Order, PAGE_EVENTS_MAX, Page, Start, TopicInfo, TrimMode};
use crate::error::{PublishError, StoreError};
use crate::event::{Event, InvalidEvent, NewEvent, Published, validate_batch};
use crate::id::{EventId, Timestamp};
use crate::ledger::lane;
use crate::name::Name;
use crate::settings::Topic;

/// Payloads of a page, in bytes; one event more may come.
pub(super) const PAGE_BYTES_MAX: usize = 8 << 20;

/// Messages that are asked for at a time: the server answers each by itself.
pub(super) const MESSAGES_AT_A_TIME: usize = 32;

/// After how many events of a topic one of those who publish applies its retention.
const RETAIN_EVERY: u64 = 100;

/// After which part of a topic's `max_bytes` one who has published as much applies its retention.
const RETAIN_SHARE: u64 = 8;

/// Shortest window of duplicates that is asked for: the server looks at what is over about as often.
const WINDOW_LEAST: Duration = Duration::from_millis(100);

/// What is known of topics whose stream is there.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<Name, KnownTopic>>);

#[derive(Clone, Copy, Debug)]
struct KnownTopic {
    /// How long the server knows idempotency keys.
    window: Duration,
    /// What was published from here since its retention was applied, in bytes.
    bytes: u64,
}

/// Which messages a stream has: none, if the first is behind the last. Those in between may have been removed by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Extent {
    pub(super) fn of(info: &stream::Info) -> Self {
        let state = &info.state;
        // A stream that never had a message says that its first is 0.
        Self { first: state.first_sequence.max(1), last: state.last_sequence }.or_empty(state.messages)
    }

    fn or_empty(self, messages: u64) -> Self {
        if messages == 0 { Self { first: self.last + 1, ..self } } else { self }
    }
}

/// How a stream of a store is kept: nothing goes by itself, and where there is no room left, new messages are refused.
pub(super) fn stream_config(name: String, subjects: Vec<String>, replicas: usize) -> stream::Config {
    stream::Config {
        name,
        subjects,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: replicas,
        allow_direct: true,
        ..stream::Config::default()
    }
}

/// Messages that may have a lane, in rounds: of one lane nothing may be stored without what comes before it. A round
/// has one message of a lane, and is sent when the one before it is acknowledged.
fn rounds(messages: impl Iterator<Item = (Message, Option<u64>)>) -> Vec<Vec<Message>> {
    let (mut rounds, mut round, mut lanes) = (Vec::new(), Vec::new(), HashSet::new());
    for (message, lane) in messages {
        if lane.is_some_and(|lane| !lanes.insert(lane)) {
            rounds.push(std::mem::take(&mut round));
            lanes = lane.into_iter().collect();
        }
        round.push(message);
    }
    rounds.push(round);
    rounds
}

impl Nats {
    /// A stream that is there, or is made.
    pub(super) async fn stream_or_new(&self, config: &stream::Config) -> Result<stream::Info, StoreError> {
        if let Some(info) = self.link.info(&config.name).await? {
            return Ok(info);
        }
        let made = self.link.api(format!("STREAM.CREATE.{}", config.name), config).await;
        let error = match made.map_err(Refusal::into_store) {
            Ok(info) => return Ok(info),
            Err(error) => error,
        };
        // Another one may have made it meanwhile.
        self.link.info(&config.name).await?.ok_or(error)
    }

    /// Forgets that a topic's stream is there.
    pub(super) fn forget_topic(&self, topic: &Name) {
        self.known.0.lock().remove(topic);
    }

    /// Has a topic's stream be there. Where idempotency keys count, the server remembers them as long as they do.
    pub(super) async fn topic_or_new(&self, topic: &Topic, is_once: bool) -> Result<(), StoreError> {
        let wanted = topic.settings.idempotency_window.max(WINDOW_LEAST);
        let fits = |known: &KnownTopic| !is_once || known.window == wanted;
        if self.known.0.lock().get(&topic.name).is_some_and(fits) {
            return Ok(());
        }
        let (stream, subjects) = (self.names.topic_stream(&topic.name), self.names.of_topic(&topic.name));
        let mut config = stream_config(stream, subjects, self.copies);
        config.duplicate_window = wanted;
        let mut info = self.stream_or_new(&config).await?;
        if is_once && info.config.duplicate_window != wanted {
            info.config.duplicate_window = wanted;
            let update = self.link.api(format!("STREAM.UPDATE.{}", config.name), &info.config).await;
            info = update.map_err(Refusal::into_store)?;
        }
        let known = KnownTopic { window: info.config.duplicate_window, bytes: 0 };
        self.known.0.lock().insert(topic.name.clone(), known);
        Ok(())
    }

    pub(super) async fn append(
        &self,
        topic: &Topic,
        events: &[NewEvent],
    ) -> Result<Vec<Published>, PublishError> {
        validate_batch(events)?;
        let is_once = !topic.settings.idempotency_window.is_zero();
        let messages: Vec<Message> = events.iter().map(|event| wire::message(event, is_once)).collect();
        let lanes = events.iter().map(|event| topic.settings.ordered.then(|| lane(event.key.as_deref())));
        // Each has to fit as a dead letter too.
        let most = self.link.max_payload().saturating_sub(LETTER_BYTES_MAX);
        if let Some(large) = messages.iter().map(Message::bytes).find(|bytes| *bytes > most) {
            return Err(InvalidEvent::Message { bytes: large, most }.into());
        }
        let most = HEADERS_BYTES_MAX - LETTER_BYTES_MAX;
        if let Some(bytes) = messages.iter().map(Message::header_bytes).find(|bytes| *bytes > most) {
            return Err(InvalidEvent::Written { bytes, most }.into());
        }
        let bytes = messages.iter().map(|message| message.bytes() as u64).sum();
        let is_keyed = is_once && events.iter().any(|event| event.idempotency_key.is_some());
        let rounds = rounds(messages.into_iter().zip(lanes));
        let (published, deadline) = self.store_all(topic, rounds, is_keyed).await?;
        let retaining = self.retain_if_it_is_time(topic, &published, bytes);
        // The events are stored whatever becomes of this. It has what the last of them left of their time.
        drop(timeout_at(deadline, retaining).await);
        Ok(published)
    }

    /// Stores messages, and answers when the time of the last of them is over, too.
    async fn store_all(
        &self,
        topic: &Topic,
        rounds: Vec<Vec<Message>>,
        is_keyed: bool,
    ) -> Result<(Vec<Published>, Instant), StoreError> {
        self.link.within(self.topic_or_new(topic, is_keyed)).await?;
        match self.store_each(topic, rounds.clone()).await {
            Err(Refusal::Missing) => {
                // Somebody has deleted its stream.
                self.forget_topic(&topic.name);
                self.link.within(self.topic_or_new(topic, is_keyed)).await?;
                self.store_each(topic, rounds).await.map_err(Refusal::into_store)
            }
            stored => stored.map_err(Refusal::into_store),
        }
    }

    /// Stores messages round by round. Each has a call's time for itself: a batch of one key takes one for each event,
    /// and would not get in at all where the server is too far away for all of them to come in time.
    async fn store_each(
        &self,
        topic: &Topic,
        rounds: Vec<Vec<Message>>,
    ) -> Result<(Vec<Published>, Instant), Refusal> {
        let (mut published, mut deadline) = (Vec::new(), Instant::now() + self.link.timeout());
        for round in rounds {
            deadline = Instant::now() + self.link.timeout();
            published.extend(self.link.within(self.store_round(topic, round)).await?);
        }
        Ok((published, deadline))
    }

    /// Stores the messages of a round: they are sent as long as the connection is the same.
    async fn store_round(&self, topic: &Topic, messages: Vec<Message>) -> Result<Vec<Published>, Refusal> {
        let (stream, subject) = (self.names.topic_stream(&topic.name), self.names.topic(&topic.name));
        let connection = self.link.connection();
        let (mut sent, mut published) = (Vec::new(), Vec::with_capacity(messages.len()));
        for message in messages {
            if self.link.connection() != connection {
                let lost = "the connection was lost amid a batch".to_owned();
                return Err(StoreError::Unreachable(lost).into());
            }
            sent.push(self.link.send(subject.clone(), message).await?);
        }
        for one in sent {
            match self.link.stored(one).await {
                Ok(stored) => {
                    let id = EventId::new(stored.sequence);
                    published.push(Published { id, duplicate: stored.duplicate });
                }
                Err(refusal) => return Err(self.link.if_missing(refusal, &stream).await),
            }
        }
        Ok(published)
    }

    async fn retain_if_it_is_time(&self, topic: &Topic, published: &[Published], bytes: u64) {
        let limits = &topic.settings.retention;
        let Some(last) = published.iter().map(|one| one.id.major()).max() else { return };
        let many = last / RETAIN_EVERY != last.saturating_sub(published.len() as u64) / RETAIN_EVERY;
        let large = {
            let mut known = self.known.0.lock();
            let Some(known) = known.get_mut(&topic.name) else { return };
            known.bytes += bytes;
            let large = limits.max_bytes.is_some_and(|max| known.bytes > max / RETAIN_SHARE);
            if many || large {
                known.bytes = 0;
            }
            large
        };
        if limits.is_unlimited() || !(many || large) {
            return;
        }
        if let Err(error) = self.remove(topic, limits, TrimMode::default()).await {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, topic = %topic.name, "a topic's retention could not be applied");
        }
    }

    pub(super) async fn list_topics(&self) -> Result<Vec<Name>, StoreError> {
        /// What of an answer is of use.
        #[derive(serde::Deserialize)]
        struct Names {
            total: usize,
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let request = serde_json::json!({ "offset": offset, "subject": self.names.any_topic() });
            let page = self.link.api("STREAM.NAMES".to_owned(), &request).await;
            let page: Names = page.map_err(Refusal::into_store)?;
            let streams = page.streams.unwrap_or_default();
            offset += streams.len();
            names.extend(streams.iter().filter_map(|stream| self.names.topic_of(stream)));
            if streams.is_empty() || offset >= page.total {
                break;
            }
        }
        names.sort();
        Ok(names)
    }

    pub(super) async fn topic_info(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError> {
        let stream = self.names.topic_stream(&topic.name);
        let Some(info) = self.link.info(&stream).await? else { return Ok(None) };
        let extent = Extent::of(&info);
        let is_empty = extent.first > extent.last;
        let last = if is_empty { None } else { self.message(&stream, extent.last).await? };
        Ok(Some(TopicInfo {
            name: topic.name.clone(),
            events: info.state.messages,
            bytes: info.state.bytes,
            first: (!is_empty).then(|| EventId::new(extent.first)),
            last: (!is_empty).then(|| EventId::new(extent.last)),
            last_time: last.map(|last| last.time),
            groups: self.group_names(&topic.name).await?.len(),
        }))
    }

    /// What a topic has. `None`: there is no such topic.
    pub(super) async fn extent(&self, topic: &Name) -> Result<Option<Extent>, StoreError> {
        Ok(self.link.info(&self.names.topic_stream(topic)).await?.as_ref().map(Extent::of))
    }

    /// A message of a stream that is there, wherever it is: a server that does not lead the stream may not have it yet.
    pub(super) async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, StoreError> {
        match self.link.get_direct(stream, sequence).await? {
            Some(found) => Ok(Some(found)),
            None => self.link.get(stream, Which::At(sequence)).await,
        }
    }

    /// Messages in the order of their numbers, several of which are asked for at a time.
    pub(super) fn messages(
        &self,
        stream: &str,
        sequences: impl Iterator<Item = u64> + Send,
        at_a_time: usize,
    ) -> impl Stream<Item = (u64, Result<Option<Stored>, StoreError>)> + Send {
        let ask = move |sequence| async move { (sequence, self.message(stream, sequence).await) };
        streams::iter(sequences).map(ask).buffered(at_a_time)
    }

    /// The first message of a moment or later, or the number behind the last.
    pub(super) async fn first_at(
        &self,
        stream: &str,
        time: Timestamp,
        extent: Extent,
    ) -> Result<u64, StoreError> {
        let (mut low, mut high) = (extent.first, extent.last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            // One that was removed by hand is as old as the next that is there.
            let found = match self.message(stream, middle).await? {
                Some(found) => Some(found),
                None => self.link.get(stream, Which::NextOf(">", middle)).await?,
            };
            match found {
                Some(found) if found.time < time => low = found.sequence + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The number that a group begins with.
    pub(super) async fn start(&self, topic: &Name, start: Start, extent: Extent) -> Result<u64, StoreError> {
        let end = extent.last + 1;
        Ok(match start {
            Start::Earliest => extent.first,
            Start::Latest => end,
            Start::Id(id) => {
                id.major().saturating_add(u64::from(id.minor() > 0)).clamp(extent.first.min(end), end)
            }
            Start::Time(time) => self.first_at(&self.names.topic_stream(topic), time, extent).await?,
        })
    }

    pub(super) async fn page(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError> {
        let stream = self.names.topic_stream(&topic.name);
        let Some(extent) = self.extent(&topic.name).await? else { return Ok(EventPage::default()) };
        let Some(range) = self.range(&stream, page, extent).await? else { return Ok(EventPage::default()) };
        let limit = page.limit.min(PAGE_EVENTS_MAX);
        let at_a_time = MESSAGES_AT_A_TIME.min(limit + 1);
        let is_ascending = page.order == Order::Ascending;
        let sequences: Box<dyn Iterator<Item = u64> + Send> =
            if is_ascending { Box::new(range) } else { Box::new(range.rev()) };
        let mut messages = std::pin::pin!(self.messages(&stream, sequences, at_a_time));
        let (mut found, mut bytes) = (EventPage::default(), 0);
        while let Some((_, message)) = messages.next().await {
            // One that was removed by hand is no event.
            let Some(message) = message? else { continue };
            if found.events.len() >= limit || bytes >= PAGE_BYTES_MAX {
                found.next = found.events.last().map(|event: &Event| event.id);
                break;
            }
            bytes += message.payload.len();
            found.events.push(wire::event(message)?);
        }
        Ok(found)
    }

    /// Which events a page may hold. `None`: none.
    async fn range(
        &self,
        stream: &str,
        page: &Page,
        extent: Extent,
    ) -> Result<Option<RangeInclusive<u64>>, StoreError> {
        let Extent { mut first, mut last } = extent;
        if let Some(after) = page.after {
            match page.order {
                Order::Ascending => first = first.max(after.major().saturating_add(1)),
                Order::Descending => last = last.min(before(after)),
            }
        }
        if let Some(from) = page.from {
            first = first.max(self.first_at(stream, from, extent).await?);
        }
        if let Some(until) = page.until {
            last = last.min(self.first_at(stream, until, extent).await?.saturating_sub(1));
        }
        Ok((first <= last).then_some(first..=last))
    }

    pub(super) async fn one_event(&self, topic: &Name, id: EventId) -> Result<Option<Event>, StoreError> {
        if id.minor() != 0 || id.major() == 0 {
            return Ok(None);
        }
        // Not directly: where there is no such stream nobody would answer.
        let found = self.link.get(&self.names.topic_stream(topic), Which::At(id.major())).await?;
        found.map(wire::event).transpose()
    }

    /// The groups of a topic, by name. Some may have been removed.
    pub(super) async fn group_names(&self, topic: &Name) -> Result<Vec<Name>, StoreError> {
        /// What of an answer is of use.
        #[derive(serde::Deserialize)]
        struct Info {
            state: State,
            #[serde(default)]
            total: usize,
        }
        #[derive(serde::Deserialize)]
        struct State {
            #[serde(default)]
            subjects: Option<HashMap<String, u64>>,
        }
        let (stream, filter) = (self.names.groups_stream(), self.names.groups_of(topic));
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let request = serde_json::json!({ "subjects_filter": filter, "offset": offset });
            let info: Option<Info> = if_any(self.link.api(format!("STREAM.INFO.{stream}"), &request).await)?;
            let Some(info) = info else { break };
            let subjects = info.state.subjects.unwrap_or_default();
            offset += subjects.len();
            names.extend(subjects.keys().filter_map(|subject| super::names::Names::group_of(subject)));
            if subjects.is_empty() || offset >= info.total {
                break;
            }
        }
        names.sort();
        Ok(names)
    }
}

/// The number before an id.
pub(super) fn before(id: EventId) -> u64 {
    if id.minor() > 0 { id.major() } else { id.major().saturating_sub(1) }
}
