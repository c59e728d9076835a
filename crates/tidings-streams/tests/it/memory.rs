//! A driver that keeps everything in memory, and is wrong where it is told to be: what the suite is tried with.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidings_streams::ledger::{Ledger, OpenState, Rules, Step, Verdict};
use tidings_streams::{
    Burials, ClaimRequest, DeadLetter, DeadLetterError, DeadLetterId, DeadLetterPage, DeadLetters, Delivered,
    Driver, Durability, Event, EventId, EventPage, GroupError, GroupInfo, Maintained, Name, NewEvent, Order,
    Outcome, Page, Pending, PendingState, PublishError, Published, ReceiveRequest, Report, Retention,
    Retried, Settlement, Sought, Start, StoreError, TellBurials, Timestamp, Topic, TopicInfo, TrimMode,
    Trimmed, validate_batch,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::harness::TestClock;
use crate::memory_state::State;

/// What a driver may do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// What nobody settles never comes back.
    NoRedelivery,
    /// An event that is given up leaves two dead letters.
    DoubleDeadLetter,
    /// Deliveries are counted from two.
    AttemptOffByOne,
    /// Retention does not ask groups.
    TrimBelowPending,
    /// A failed event of an ordered topic does not hold up its key.
    NoParking,
    /// Words about earlier deliveries count.
    StaleWords,
    /// The idempotency key is not looked at.
    NoIdempotency,
    /// A retry goes to all groups.
    RetryForAll,
    /// What was delivered for the last time and not settled is delivered once more.
    OneTooMany,
    /// Nobody who waits is told of what is published.
    PublishForgetsWaiters,
    /// Nobody who waits is told that the store was closed.
    CloseForgetsWaiters,
    /// Nobody who waits is told that what it waits for was trimmed.
    TrimForgetsWaiters,
    /// Operators take over events of a group that is paused.
    ClaimIgnoresPause,
    /// Nobody is told of what is given up as somebody receives.
    SilentBurials,
    /// Looking after a topic of this name fails.
    BadTopic,
}

/// The topic that [`Bug::BadTopic`] is about.
pub(crate) const BAD_TOPIC: &str = "bad";

#[derive(Debug)]
pub(crate) struct Memory {
    clock: TestClock,
    bug: Option<Bug>,
    state: Mutex<State>,
    changed: Notify,
    burials: Burials,
}

impl Memory {
    pub(crate) fn new(clock: TestClock, bug: Option<Bug>) -> Self {
        Self { clock, bug, state: Mutex::default(), changed: Notify::new(), burials: Burials::default() }
    }

    fn notify(&self, unless: Bug) {
        if self.bug != Some(unless) {
            self.changed.notify_waiters();
        }
    }

    fn open(&self) -> Result<parking_lot::MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock();
        if state.closed { Err(StoreError::Closed) } else { Ok(state) }
    }
}

#[async_trait]
impl Driver for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn durability(&self) -> Durability {
        Durability::Relaxed
    }

    fn watch_burials(&self, tell: TellBurials) {
        if self.bug != Some(Bug::SilentBurials) {
            self.burials.watch(tell);
        }
    }

    async fn publish(&self, topic: &Topic, events: Vec<NewEvent>) -> Result<Vec<Published>, PublishError> {
        validate_batch(&events)?;
        let now = self.clock.now();
        let mut state = self.open()?;
        let held = state.topics.entry(topic.name.clone()).or_default();
        let window = topic.settings.idempotency_window;
        held.keys.retain(|_, (_, time)| now.since(*time) <= window);
        let mut published = Vec::new();
        for new in events {
            let known = new.idempotency_key.as_ref().and_then(|key| held.keys.get(key));
            if let Some((id, _)) = known.filter(|_| self.bug != Some(Bug::NoIdempotency)) {
                published.push(Published { id: EventId::new(*id), duplicate: true });
                continue;
            }
            let key = new.idempotency_key.clone();
            let id = held.append(now, |id, time| Event {
                id,
                time,
                payload: new.payload,
                key: new.key,
                headers: new.headers,
                content_type: new.content_type,
                idempotency_key: new.idempotency_key,
                not_before: new.not_before,
                retried: None,
            });
            held.keys.extend(key.map(|key| (key, (id, now))));
            published.push(Published { id: EventId::new(id), duplicate: false });
        }
        held.trim(&topic.settings.retention, now, TrimMode::default(), self.bug);
        drop(state);
        self.notify(Bug::PublishForgetsWaiters);
        Ok(published)
    }

    async fn topics(&self) -> Result<Vec<Name>, StoreError> {
        Ok(self.open()?.topics.keys().cloned().collect())
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError> {
        let state = self.open()?;
        Ok(state.topics.get(&topic.name).map(|held| TopicInfo {
            name: topic.name.clone(),
            events: held.held().events,
            bytes: held.held().bytes,
            first: held.events.values().next().map(|event| event.id),
            last: held.events.values().next_back().map(|event| event.id),
            last_time: held.events.values().next_back().map(|event| event.time),
            groups: held.groups.len(),
        }))
    }

    async fn read(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError> {
        let state = self.open()?;
        let Some(held) = state.topics.get(&topic.name) else { return Ok(EventPage::default()) };
        let fits = |event: &&Event| {
            page.from.is_none_or(|from| event.time >= from)
                && page.until.is_none_or(|until| event.time < until)
        };
        let events = held.events.values().filter(fits);
        let mut events: Vec<Event> = match page.order {
            Order::Ascending => {
                events.filter(|one| page.after.is_none_or(|after| one.id > after)).cloned().collect()
            }
            Order::Descending => {
                events.rev().filter(|one| page.after.is_none_or(|after| one.id < after)).cloned().collect()
            }
        };
        let more = events.len() > page.limit;
        events.truncate(page.limit);
        let next = events.last().map(|event| event.id).filter(|_| more);
        Ok(EventPage { events, next })
    }

    async fn event(&self, topic: &Topic, id: EventId) -> Result<Option<Event>, StoreError> {
        let state = self.open()?;
        let held = state.topics.get(&topic.name);
        Ok(held.and_then(|held| held.events.values().find(|event| event.id == id).cloned()))
    }

    async fn trim(&self, topic: &Topic, limits: &Retention, mode: TrimMode) -> Result<Trimmed, StoreError> {
        let mut state = self.open()?;
        let held = state.topics.get_mut(&topic.name);
        let trimmed = held.map(|held| held.trim(limits, self.clock.now(), mode, self.bug));
        drop(state);
        self.notify(Bug::TrimForgetsWaiters);
        Ok(trimmed.unwrap_or_default())
    }

    async fn create_group(&self, topic: &Topic, group: &Name, start: Start) -> Result<bool, StoreError> {
        let mut state = self.open()?;
        state.epoch += 1;
        let epoch = state.epoch;
        let held = state.topics.entry(topic.name.clone()).or_default();
        if held.groups.contains_key(group) {
            return Ok(false);
        }
        let next = held.start(start);
        held.groups.insert(group.clone(), Ledger::new(next, epoch, false));
        Ok(true)
    }

    async fn remove_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError> {
        let mut state = self.open()?;
        Ok(state.topics.get_mut(&topic.name).is_some_and(|held| held.groups.remove(group).is_some()))
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        let (now, state) = (self.clock.now(), self.open()?);
        let Some(held) = state.topics.get(&topic.name) else { return Ok(Vec::new()) };
        let infos = held.groups.iter().map(|(name, ledger)| {
            let pending = ledger.open().len() as u64;
            let lag = pending + held.events.range(ledger.next()..).count() as u64;
            let oldest = held.events.range(ledger.lowest()..).next().filter(|_| lag > 0);
            GroupInfo {
                name: name.clone(),
                paused: ledger.paused(),
                lag,
                lag_age: oldest.map_or(Duration::ZERO, |(_, event)| now.since(event.time)),
                pending,
                redeliveries: 0,
                next: EventId::new(ledger.next()),
            }
        });
        Ok(infos.collect())
    }

    async fn receive(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let deadline = Instant::now() + request.wait.min(tidings_streams::WAIT_MAX);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (taken, buried) = self.open()?.receive(topic, group, &request, self.clock.now(), self.bug)?;
            self.burials.tell(&topic.name, group, buried);
            if !taken.is_empty() {
                return Ok(taken);
            }
            tokio::select! {
                () = changed => {}
                () = request.stop.cancelled() => return Ok(Vec::new()),
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }

    async fn settle(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Outcome>, GroupError> {
        let now = self.clock.now();
        let mut state = self.open()?;
        let mut outcomes = Vec::new();
        for word in settlements {
            let rules = Rules { settings: &topic.settings, now, random: 0.5 };
            let any = matches!(self.bug, Some(Bug::StaleWords | Bug::AttemptOffByOne));
            let tag = word.tag.filter(|_| !any);
            let id = if word.id.minor() == 0 { word.id.major() } else { 0 };
            let verdict = state.group(topic, group)?.settle(id, tag, &word.action, rules);
            outcomes.push(match verdict {
                Verdict::Nothing(outcome) => outcome,
                Verdict::Step(step, outcome) => {
                    state.group(topic, group)?.apply(&step);
                    outcome
                }
                Verdict::Bury(burial) => Outcome::Buried(state.bury(topic, group, burial, self.bug)),
            });
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(outcomes)
    }

    async fn pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        let now = self.clock.now();
        let mut state = self.open()?;
        let from = after.map_or(0, |after| after.major() + 1);
        let pending = state.group(topic, group)?.open().range(from..).take(limit).map(|(id, open)| {
            let (idle, state) = match open.state {
                OpenState::Taken(at, until) => (now.since(at), PendingState::Taken(until)),
                OpenState::Waiting(due) => (Duration::ZERO, PendingState::Waiting(due)),
            };
            Pending {
                id: EventId::new(*id),
                attempts: open.attempts,
                consumer: open.consumer.clone(),
                idle,
                state,
                error: open.failure.as_ref().map(|failure| failure.error.as_ref().to_owned()),
            }
        });
        Ok(pending.collect())
    }

    async fn claim(
        &self,
        topic: &Topic,
        group: &Name,
        request: ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let now = self.clock.now();
        let mut state = self.open()?;
        let mut ids = Vec::new();
        if state.group(topic, group)?.paused() && self.bug != Some(Bug::ClaimIgnoresPause) {
            return Ok(Vec::new());
        }
        for id in state.group(topic, group)?.idle(now, request.min_idle) {
            let rules = Rules { settings: &topic.settings, now, random: 0.5 };
            match state.group(topic, group)?.spent_one(id, rules) {
                Some(burial) => {
                    state.bury(topic, group, burial, self.bug);
                    self.burials.tell(&topic.name, group, 1);
                }
                None if ids.len() < request.max => ids.push(id),
                None => break,
            }
        }
        state.take(topic, group, &request.consumer, (now, ids), self.bug)
    }

    async fn set_paused(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError> {
        self.open()?.group(topic, group)?.apply(&Step::Paused(paused));
        Ok(())
    }

    async fn seek(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        let mut state = self.open()?;
        state.epoch += 1;
        let epoch = state.epoch;
        let held = state.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        let next = held.start(to);
        let ledger = held.groups.get_mut(group).ok_or(GroupError::Unknown)?;
        let from = ledger.next();
        let untouched = ledger.open().range(next..).filter(|(_, open)| open.attempts == 0).count() as u64;
        let sought = Sought {
            from: EventId::new(from),
            to: EventId::new(next),
            again: from.saturating_sub(next).saturating_sub(untouched),
            skipped: ledger.open().range(..next).count() as u64 + next.saturating_sub(from),
        };
        if !preview {
            ledger.apply(&Step::Sought { next, epoch });
        }
        Ok(sought)
    }

    async fn dead_letters(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        let state = self.open()?;
        let wanted = |letter: &&DeadLetter| {
            page.after.is_none_or(|after| letter.id < after)
                && page.filter.takes(&letter.stream, &letter.topic, &letter.group)
        };
        let mut letters: Vec<DeadLetter> = state.dead.values().rev().filter(wanted).cloned().collect();
        let more = letters.len() > page.limit;
        letters.truncate(page.limit);
        let next = letters.last().map(|letter| letter.id).filter(|_| more);
        Ok(DeadLetters { letters, next })
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        Ok(self.open()?.dead.get(&id.0.major()).cloned())
    }

    async fn dead_letter_count(&self) -> Result<u64, StoreError> {
        Ok(self.open()?.dead.len() as u64)
    }

    async fn retry(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        let now = self.clock.now();
        let mut state = self.open()?;
        let letter = state.dead.get(&id.0.major()).cloned().ok_or(DeadLetterError::Unknown)?;
        let held = state.topics.get_mut(&letter.topic).ok_or(DeadLetterError::NoGroup)?;
        if !held.groups.contains_key(&letter.group) {
            return Err(DeadLetterError::NoGroup);
        }
        let original = letter.event.retried.as_ref().map_or(letter.event.id, |retried| retried.original);
        let retried = Retried { dead_letter: id, group: letter.group, original };
        let retried = Some(retried).filter(|_| self.bug != Some(Bug::RetryForAll));
        let new = held.append(now, |id, time| Event {
            id,
            time,
            retried,
            idempotency_key: None,
            not_before: None,
            ..letter.event
        });
        state.dead.remove(&id.0.major());
        Ok(EventId::new(new))
    }

    async fn purge(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        let mut state = self.open()?;
        Ok(ids.iter().filter(|id| state.dead.remove(&id.0.major()).is_some()).count() as u64)
    }

    async fn verify(&self) -> Result<Report, StoreError> {
        Ok(Report::default())
    }

    async fn maintain(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        if self.bug == Some(Bug::BadTopic) && topic.name.as_str() == BAD_TOPIC {
            return Err(StoreError::Unreachable(topic.name.to_string()));
        }
        let now = self.clock.now();
        let mut state = self.open()?;
        let Some(held) = state.topics.get_mut(&topic.name) else { return Ok(Maintained::default()) };
        let groups: Vec<Name> = held.groups.keys().cloned().collect();
        let mut buried = 0;
        for group in groups {
            buried += state.bury_spent(topic, &group, now, self.bug).expect("the group is there");
        }
        let held = state.topics.get_mut(&topic.name).expect("it is there");
        let trimmed = held.trim(&topic.settings.retention, now, TrimMode::default(), self.bug);
        Ok(Maintained { trimmed, buried })
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.state.lock().closed = true;
        self.notify(Bug::CloseForgetsWaiters);
        Ok(())
    }
}

/// Memory drivers that are all wrong in the same way, or right.
#[derive(Debug)]
pub(crate) struct MemoryHarness {
    pub(crate) clock: TestClock,
    pub(crate) bug: Option<Bug>,
}

#[async_trait]
impl tidings_streams::conformance::Harness for MemoryHarness {
    async fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(Memory::new(self.clock.clone(), self.bug))
    }

    async fn reopen(&self, _: Arc<dyn Driver>) -> Option<Arc<dyn Driver>> {
        None
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }
}
