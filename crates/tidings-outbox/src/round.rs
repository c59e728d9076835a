//! One round of a relay: what waits is read, noted, published, and settled.

use std::collections::HashSet;
use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use tidings_streams::{EventId, Page, PublishError, StoreError, Stream, Streams, cut_error};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Row, Waiting};
use crate::outbox::Outbox;
use crate::relay::{RelayConfig, Shared};
use crate::tables::{Database, SetAside, Settled};
use crate::trouble::Troubles;

/// Most events that a relay takes at a time.
pub const BATCH_EVENTS: usize = 500;

/// Events that a relay takes at a time have so many bytes together, or one event more.
pub const BATCH_BYTES: usize = 4 << 20;

/// A call to a database that takes longer has failed: its connection is given up.
const DATABASE_CALL_MAX: Duration = Duration::from_secs(30);

/// Events of a topic that are looked at in one go for those that are in doubt: payloads come with them.
const LOOK_EVENTS: usize = 100;

/// Times that a topic is looked at so before the others have their turn.
const LOOKS: usize = 50;

/// A topic that had so many failures is asked event by event, for it may be one of them that it refuses. A store that
/// was in trouble for a moment has got over it.
const PROBE_AFTER: u32 = 5;

/// Most events that are refused one after the other before it is the topic that is taken for the reason.
const PROBES: usize = 16;

/// That number doubles with each further failure, so often: in the end it is more than a relay takes at a time.
const PROBE_DOUBLINGS: u32 = 5;

/// Why a relay does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Halt {
    #[error("the database cannot be asked")]
    Database(#[from] sqlx::Error),
    #[error("the store cannot be asked")]
    Store(#[source] StoreError),
    /// For good: whoever closed the streams opens others.
    #[error("the streams are closed")]
    Closed,
    #[error("too many topics refuse their events")]
    TooManyTroubles,
    /// No failure: it need not finish.
    #[error("it was stopped")]
    Stopped,
}

/// Why events of a topic were not published.
#[derive(Debug)]
enum Setback {
    /// Nobody's can be.
    Halt(Halt),
    /// The topic's cannot be, for now. It may be one of them.
    Refused(String),
    /// The topic's cannot be, for now, whatever they are.
    Full(String),
}

impl From<Halt> for Setback {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl From<StoreError> for Setback {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Halt(Halt::Closed),
            StoreError::Unreachable(_) => Self::Halt(Halt::Store(error)),
            StoreError::Failed(ref failed) if is_full(failed.kind()) => Self::Full(text_of(&error)),
            StoreError::Failed(_) | StoreError::Unsupported { .. } => Self::Refused(text_of(&error)),
        }
    }
}

/// A store without room takes a small event behind a large one: that says nothing against the large one.
fn is_full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory)
}

impl From<PublishError> for Setback {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Store(error) => error.into(),
            PublishError::TooManyKeys => Self::Full(text_of(&error)),
            PublishError::Invalid(_) => Self::Refused(text_of(&error)),
        }
    }
}

/// An error with all its sources.
pub(crate) fn text_of(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |&error| error.source());
    let text = sources.fold(error.to_string(), |text, source| format!("{text}: {source}"));
    cut_error(&text).to_owned()
}

/// Waits for a database no longer than it may take.
pub(crate) async fn timed<T>(call: impl Future<Output = sqlx::Result<T>>) -> Result<T, Halt> {
    match tokio::time::timeout(DATABASE_CALL_MAX, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(sqlx::Error::Io(ErrorKind::TimedOut.into()).into()),
    }
}

/// What a relay goes by while it leads.
pub(crate) struct Rounds<DB: Database> {
    pub(crate) outbox: Outbox<DB>,
    pub(crate) streams: Streams,
    pub(crate) config: RelayConfig,
    pub(crate) shared: Shared,
    pub(crate) troubles: Troubles,
    pub(crate) stop: CancellationToken,
    /// Topics that are looked at, and have had their turn. No more than events of a batch.
    pub(crate) rest: Vec<String>,
}

/// What a look has shown.
#[derive(Debug, Default)]
struct Looked {
    /// Keys of events that are there.
    found: HashSet<String>,
    /// Up to where nothing else is, if there is more to look at.
    reached: Option<EventId>,
}

impl<DB: Database> Rounds<DB> {
    /// Publishes the oldest events that wait. `false`: there is nothing to go on with.
    ///
    /// What was published is settled also where the round ends with an error.
    pub(crate) async fn round(&mut self, connection: &mut DB::Connection) -> Result<bool, Halt> {
        let now = Instant::now();
        let (mut passed_over, rest) = (self.troubles.passed_over(now), std::mem::take(&mut self.rest));
        passed_over.extend_from_slice(&rest);
        let bounds = (BATCH_EVENTS as i64, BATCH_BYTES as i64);
        let rows = timed(DB::waiting(connection, self.outbox.table(), &passed_over, bounds)).await?;
        if rows.is_empty() && !rest.is_empty() {
            return Ok(true);
        }
        if rows.is_empty() {
            self.troubles.clear_past(now);
            return Ok(false);
        }
        let (mut settled, mut result) = (Settled::default(), Ok(()));
        for (topic, rows) in by_topic(rows) {
            result = self.relay(connection, &topic, rows, &mut settled).await;
            if result.is_err() {
                break;
            }
        }
        timed(DB::settle(connection, self.outbox.table(), &settled)).await?;
        for SetAside { id, error, .. } in &settled.failed {
            tracing::warn!(id, error, table = self.outbox.table_name(), "an event was set aside");
        }
        self.shared.change(|status| status.failed += settled.failed.len() as u64);
        result.map(|()| true)
    }

    /// Publishes events of one topic.
    async fn relay(
        &mut self,
        connection: &mut DB::Connection,
        topic: &str,
        rows: Vec<Row>,
        settled: &mut Settled,
    ) -> Result<(), Halt> {
        let stream = match self.streams.stream(topic) {
            Ok(stream) => stream,
            Err(error) => {
                let error = text_of(&error);
                settled.failed.extend(rows.iter().map(|row| SetAside::new(row.id, error.clone())));
                return Ok(());
            }
        };
        let mut waiting = Vec::with_capacity(rows.len());
        for row in rows {
            let id = row.id;
            match row.waiting() {
                Ok(event) => waiting.push(event),
                Err(reason) => settled.failed.push(SetAside::new(id, text_of(&reason))),
            }
        }
        let error = match self.relay_events(connection, &stream, waiting, settled).await {
            Ok(()) => return Ok(()),
            Err(Setback::Halt(halt)) => return Err(halt),
            Err(Setback::Refused(error) | Setback::Full(error)) => error,
        };
        let now = Instant::now();
        let failures = self.troubles.note(topic, now, &self.config.backoff, rand::random());
        let failures = failures.ok_or(Halt::TooManyTroubles)?;
        tracing::debug!(topic, error, failures, "a topic's events wait");
        self.shared.change(|status| {
            status.setbacks += 1;
            status.error = Some(format!("{topic}: {error}"));
        });
        Ok(())
    }

    /// Publishes what was looked for and noted, and nothing else.
    async fn relay_events(
        &mut self,
        connection: &mut DB::Connection,
        stream: &Stream,
        mut waiting: Vec<Waiting>,
        settled: &mut Settled,
    ) -> Result<(), Setback> {
        let topic = stream.topic().name.as_str();
        if !self.prepare(connection, stream, &mut waiting, settled).await? {
            self.rest.push(topic.to_owned());
            return Ok(());
        }
        match self.troubles.failures(topic).checked_sub(PROBE_AFTER) {
            None => self.publish(stream, &waiting, settled).await?,
            // Instead of all at once: a store that failed may have stored them, and then they must be looked for.
            Some(more) => {
                let most = PROBES << more.min(PROBE_DOUBLINGS);
                self.probe(stream, &waiting, most, settled).await?;
            }
        }
        self.troubles.clear(topic);
        Ok(())
    }

    /// Takes out what was published before, and notes of the rest where their topic ends. `false`: there is more to
    /// look at, another time.
    async fn prepare(
        &mut self,
        connection: &mut DB::Connection,
        stream: &Stream,
        waiting: &mut Vec<Waiting>,
        settled: &mut Settled,
    ) -> Result<bool, Setback> {
        let Looked { found, reached } = self.look(stream, waiting).await?;
        if !found.is_empty() {
            let is_found = |one: &mut Waiting| found.contains(key_of(one));
            let there: Vec<Waiting> = waiting.extract_if(.., is_found).collect();
            self.shared.change(|status| status.found += there.len() as u64);
            there.iter().for_each(|one| one.settle(settled));
        }
        if let Some(reached) = reached {
            // The next look goes on from there, also in another process.
            let is_seen = |one: &&Waiting| one.after.is_some_and(|after| after < reached);
            let seen: Vec<i64> = waiting.iter().filter(is_seen).map(|one| one.id).collect();
            timed(DB::mark(connection, self.outbox.table(), &seen, reached)).await?;
            return Ok(false);
        }
        let fresh: Vec<i64> = waiting.iter().filter(|one| one.after.is_none()).map(|one| one.id).collect();
        if !fresh.is_empty() {
            let end = stream.info().await?.and_then(|info| info.last).unwrap_or_default();
            timed(DB::mark(connection, self.outbox.table(), &fresh, end)).await?;
        }
        Ok(true)
    }

    /// Looks for events that somebody may have published.
    async fn look(&self, stream: &Stream, waiting: &[Waiting]) -> Result<Looked, Setback> {
        let doubted = || waiting.iter().filter_map(|one| Some((one.after?, key_of(one))));
        let (mut missing, mut found, mut looks) = (HashSet::new(), HashSet::new(), 0);
        missing.extend(doubted().map(|(_, key)| key));
        let mut after = doubted().map(|(after, _)| after).min();
        while let Some(from) = after.filter(|_| !missing.is_empty() && looks < LOOKS) {
            self.go_on()?;
            let page = Page { after: Some(from), limit: LOOK_EVENTS, ..Page::default() };
            let read = stream.read(&page).await?;
            let keys = read.events.iter().filter_map(|event| event.idempotency_key.as_deref());
            found.extend(keys.filter(|key| missing.remove(*key)).map(str::to_owned));
            (after, looks) = (read.next, looks + 1);
        }
        if !missing.is_empty() {
            // What was trimmed meanwhile was not seen. Asked afterwards, for a topic's beginning only moves on.
            let first = stream.info().await?.and_then(|info| info.first);
            let may_be_trimmed = |(after, key): &(EventId, &str)| {
                // A topic that had nothing in it has no beginning that could tell.
                missing.contains(*key) && *after != EventId::ZERO && first.is_none_or(|first| first > *after)
            };
            let unsure = doubted().filter(may_be_trimmed).count() as u64;
            self.shared.change(|status| status.unsure += unsure);
        }
        Ok(Looked { found, reached: after.filter(|_| !missing.is_empty()) })
    }

    fn go_on(&self) -> Result<(), Halt> {
        if self.stop.is_cancelled() { Err(Halt::Stopped) } else { Ok(()) }
    }

    /// Publishes events as one batch; one by one where one of them is none to the store.
    async fn publish(
        &self,
        stream: &Stream,
        waiting: &[Waiting],
        settled: &mut Settled,
    ) -> Result<(), Setback> {
        let events = waiting.iter().map(|one| one.event.clone()).collect();
        match stream.publish_batch(events).await {
            Ok(published) => {
                let duplicates = published.iter().filter(|one| one.duplicate).count();
                self.count(waiting.len(), duplicates);
                waiting.iter().for_each(|one| one.settle(settled));
                Ok(())
            }
            Err(PublishError::Invalid(_)) => {
                for one in waiting {
                    self.go_on()?;
                    self.publish_one(stream, one, settled).await?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks a topic that refused all event by event. Those before one that it takes are set aside.
    async fn probe(
        &mut self,
        stream: &Stream,
        waiting: &[Waiting],
        most: usize,
        settled: &mut Settled,
    ) -> Result<(), Setback> {
        let mut refused = Vec::new();
        for one in waiting {
            self.go_on()?;
            match self.publish_one(stream, one, settled).await {
                Ok(false) => {}
                Ok(true) => {
                    settled.failed.append(&mut refused);
                    self.troubles.clear(stream.topic().name.as_str());
                }
                Err(Setback::Refused(error)) if refused.len() < most => {
                    refused.push(SetAside::new(one.id, error));
                }
                Err(setback) => return Err(setback),
            }
        }
        refused.pop().map_or(Ok(()), |last| Err(Setback::Refused(last.error)))
    }

    /// Publishes an event. `false`: it is none to the store, and was set aside.
    async fn publish_one(
        &self,
        stream: &Stream,
        one: &Waiting,
        settled: &mut Settled,
    ) -> Result<bool, Setback> {
        match stream.publish(one.event.clone()).await {
            Ok(published) => {
                self.count(1, usize::from(published.duplicate));
                one.settle(settled);
                Ok(true)
            }
            Err(error @ PublishError::Invalid(_)) => {
                let aside = SetAside { is_nowhere: true, ..SetAside::new(one.id, text_of(&error)) };
                settled.failed.push(aside);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn count(&self, events: usize, duplicates: usize) {
        self.shared.change(|status| {
            status.published += (events - duplicates) as u64;
            status.found += duplicates as u64;
        });
    }
}

impl Waiting {
    fn settle(&self, settled: &mut Settled) {
        if self.is_keyed { settled.kept.push(self.id) } else { settled.gone.push(self.id) }
    }
}

fn key_of(one: &Waiting) -> &str {
    one.event.idempotency_key.as_deref().expect("every row has one")
}

/// Rows by topic, in the order in which topics come first; those of a topic in their order.
fn by_topic(rows: Vec<Row>) -> Vec<(String, Vec<Row>)> {
    let mut topics: Vec<(String, Vec<Row>)> = Vec::new();
    let mut places = std::collections::HashMap::<String, usize>::new();
    for row in rows {
        let place = *places.entry(row.topic.clone()).or_insert_with(|| {
            topics.push((row.topic.clone(), Vec::new()));
            topics.len() - 1
        });
        topics[place].1.push(row);
    }
    topics
}
