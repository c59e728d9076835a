//! Publishing. Whoever publishes to a topic while two calls are under way waits, and all that wait go to the server
//! together, if they are alike: a script costs the server most by being run at all.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::error::unexpected;
use super::groups::millis;
use super::link::{Link, Repeat};
use super::look::remove;
use super::script::Call;
use super::wire;
use crate::call::TrimMode;
use crate::error::{PublishError, StoreError};
use crate::event::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, NewEvent, Published, validate_batch};
use crate::name::Name;
use crate::settings::Topic;

/// Retention is applied by whoever publishes whenever so many events have come, and by maintenance. A topic holds so
/// many more than it should for a second at most.
const RETAIN_EVERY: u64 = 100;

/// The same where a topic holds this share more bytes than it should.
const RETAIN_BEYOND: u64 = 16;

/// Most events that retention removes behind one publish: the server does nothing else meanwhile, and what is left over
/// goes next time.
const RETAINED_BY_PUBLISH: u64 = 2_000;

/// Scripts that publish to one topic and are under way: while the server runs one the next one is put together.
const UNDER_WAY_MAX: usize = 2;

/// What publishers have to do with each other.
#[derive(Debug)]
pub(super) struct Publishers {
    link: Arc<Link>,
    base: String,
    lines: Mutex<HashMap<Name, Arc<Line>>>,
    numbers: AtomicU64,
    tasks: TaskTracker,
}

/// Those who publish to one topic. Each has events of its own there, as many as a batch may have.
#[derive(Debug)]
struct Line {
    waiting: Mutex<VecDeque<Batch>>,
    turns: Arc<Semaphore>,
}

impl Default for Line {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turns: Arc::new(Semaphore::new(UNDER_WAY_MAX)) }
    }
}

#[derive(Debug)]
struct Batch {
    /// Tells it from all others.
    number: u64,
    topic: Topic,
    events: Vec<NewEvent>,
    deadline: Instant,
    /// Whether it is stored once however often it is sent: each of its events has an idempotency key.
    keyed: bool,
    answer: oneshot::Sender<Result<Vec<Published>, StoreError>>,
}

impl Batch {
    /// Whether they can go together, so that none is treated differently for the sake of the other.
    fn is_like(&self, other: &Self) -> bool {
        self.keyed == other.keyed && self.topic.settings == other.topic.settings
    }

    fn bytes(&self) -> usize {
        self.events.iter().map(|event| event.payload.len()).sum()
    }
}

impl Line {
    /// Takes a batch out again. Whether it was still there.
    fn withdraw(&self, number: u64) -> bool {
        let mut waiting = self.waiting.lock();
        let before = waiting.len();
        waiting.retain(|batch| batch.number != number);
        waiting.len() < before
    }

    /// The first batches that are alike, as many as one of the largest size holds, without those that nobody waits for
    /// any more.
    fn take(&self) -> Vec<Batch> {
        let (mut waiting, mut taken) = (self.waiting.lock(), Vec::<Batch>::new());
        let (mut events, mut bytes) = (0, 0);
        while let Some(batch) = waiting.pop_front() {
            if batch.answer.is_closed() {
                continue;
            }
            events += batch.events.len();
            bytes += batch.bytes();
            let is_alike = taken.first().is_none_or(|first| first.is_like(&batch));
            if !taken.is_empty() && (events > BATCH_EVENTS_MAX || bytes > BATCH_BYTES_MAX || !is_alike) {
                waiting.push_front(batch);
                break;
            }
            taken.push(batch);
        }
        taken
    }
}

impl Publishers {
    pub(super) fn new(link: Arc<Link>, base: String) -> Arc<Self> {
        Arc::new(Self {
            link,
            base,
            lines: Mutex::default(),
            numbers: AtomicU64::new(0),
            tasks: TaskTracker::new(),
        })
    }

    /// Appends events. If the call is dropped they are either all under way or none.
    pub(super) async fn publish(
        self: &Arc<Self>,
        topic: &Topic,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Published>, PublishError> {
        validate_batch(&events)?;
        let deadline = Instant::now() + self.link.timeout();
        let line = Arc::clone(self.lines.lock().entry(topic.name.clone()).or_default());
        let (answer, answered) = oneshot::channel();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let keyed = events.iter().all(|event| event.idempotency_key.is_some());
        let batch = Batch { number, topic: topic.clone(), events, deadline, keyed, answer };
        line.waiting.lock().push_back(batch);
        let published = self.answered((&topic.name, &line), answered, (number, deadline)).await;
        self.forget(&topic.name, line);
        Ok(published?)
    }

    /// Waits for an answer, and has what waits published when it is this one's turn.
    async fn answered(
        self: &Arc<Self>,
        (topic, line): (&Name, &Arc<Line>),
        mut answered: oneshot::Receiver<Result<Vec<Published>, StoreError>>,
        (number, deadline): (u64, Instant),
    ) -> Result<Vec<Published>, StoreError> {
        let mut has_begun = false;
        loop {
            tokio::select! {
                biased;
                answer = &mut answered => return answer.unwrap_or(Err(StoreError::Closed)),
                () = tokio::time::sleep_until(deadline) => break,
                // A task, for the batches of others must not end with this call. It begins a moment later, when those
                // who were answered together have come again. One turn is enough: it ends when nobody waits, and
                // whoever has had it is taken by then.
                turn = Arc::clone(&line.turns).acquire_owned(), if !has_begun => {
                    has_begun = true;
                    let turn = turn.expect("it is never closed");
                    self.tasks.spawn(Arc::clone(self).run(topic.clone(), Arc::clone(line), turn));
                }
            }
        }
        let why = if line.withdraw(number) {
            "it is busy with others".to_owned()
        } else {
            // It goes on for the others that it went with.
            format!("no answer within {:?}", self.link.timeout())
        };
        Err(self.link.unreachable(why))
    }

    /// Forgets a topic that nobody else publishes to at the moment.
    fn forget(&self, topic: &Name, line: Arc<Line>) {
        let mut lines = self.lines.lock();
        drop(line);
        if lines.get(topic).is_some_and(|line| Arc::strong_count(line) == 1) {
            lines.remove(topic);
        }
    }

    /// Publishes what waits until nothing does.
    async fn run(self: Arc<Self>, topic: Name, line: Arc<Line>, turn: OwnedSemaphorePermit) {
        loop {
            let batches = line.take();
            if batches.is_empty() {
                break;
            }
            self.publish_all(batches).await;
            // Those who were answered come again first.
            tokio::task::yield_now().await;
        }
        drop(turn);
        self.forget(&topic, line);
    }

    /// Publishes batches that are alike, by the latest of their deadlines: each caller ends at its own.
    async fn publish_all(&self, mut batches: Vec<Batch>) {
        let Some(first) = batches.first() else { return };
        let (topic, keyed) = (first.topic.clone(), first.keyed);
        let deadline = batches.iter().map(|batch| batch.deadline).max().unwrap_or(first.deadline);
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.events.len()).collect();
        let events: Vec<NewEvent> = batches.iter_mut().flat_map(|batch| batch.events.drain(..)).collect();
        let published = self.append(&topic, &events, (keyed, deadline)).await;
        let mut published = published.map(Vec::into_iter);
        for (batch, size) in batches.into_iter().zip(sizes) {
            let answer = match &mut published {
                Ok(published) => Ok(published.by_ref().take(size).collect()),
                Err(error) => Err(error.clone()),
            };
            // Who has gone meanwhile does not know.
            drop(batch.answer.send(answer));
        }
    }

    async fn append(
        &self,
        topic: &Topic,
        events: &[NewEvent],
        (keyed, deadline): (bool, Instant),
    ) -> Result<Vec<Published>, StoreError> {
        let script = &self.link.scripts().publish;
        let mut call = Call::new(script, &self.base, topic.name.as_str(), "");
        wire::write_all(events, millis(topic.settings.idempotency_window), &mut call.command);
        // With a key each, events are stored once however often they are sent, as long as the keys are remembered.
        let keyed = keyed && topic.settings.idempotency_window > self.link.timeout();
        let repeat = if keyed { Repeat::Harmless } else { Repeat::Never };
        let [ids, count, bytes] = wire::tuple(self.link.run_until(call, script, repeat, deadline).await?)?;
        let published = wire::list(ids)?.into_iter().map(published).collect::<Result<Vec<_>, _>>()?;
        if published.len() != events.len() {
            return Err(unexpected("id for each event"));
        }
        let fresh = published.iter().filter(|one| !one.duplicate).count() as u64;
        let retaining = self.retain_if_it_is_time(topic, wire::number(count)?, fresh, wire::number(bytes)?);
        // The events are stored, whatever becomes of older ones: maintenance looks after those too.
        drop(timeout_at(deadline, retaining).await);
        Ok(published)
    }

    async fn retain_if_it_is_time(&self, topic: &Topic, count: u64, fresh: u64, bytes: u64) {
        let limits = &topic.settings.retention;
        let many = count / RETAIN_EVERY != count.saturating_sub(fresh) / RETAIN_EVERY;
        let large = limits.max_bytes.is_some_and(|max| bytes > max.saturating_add(max / RETAIN_BEYOND));
        if limits.is_unlimited() || !(many || large) {
            return;
        }
        let most = RETAINED_BY_PUBLISH;
        if let Err(error) = remove(&self.link, &self.base, topic, (limits, TrimMode::default(), most)).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                topic = %topic.name,
                "a topic's retention could not be applied"
            );
        }
    }

    /// Waits for all that is under way: the link has to be closed.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn published(value: Value) -> Result<Published, StoreError> {
    let text = wire::text(value)?;
    let (text, duplicate) = text.strip_prefix('=').map_or((text.as_str(), false), |id| (id, true));
    let id = text.parse().map_err(|_| unexpected("id"))?;
    Ok(Published { id, duplicate })
}
