//! Groups: taking events, and what operators do.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::Nats;
use super::journal::{Entry, Grave, State};
use super::retain::{BURIED_AT_A_TIME, graves};
use super::topics::MESSAGES_AT_A_TIME;
use super::wire;
use super::writer::Writer;
use crate::call::{
    ClaimRequest, Delivered, GroupInfo, PAGE_EVENTS_MAX, Pending, PendingState, RECEIVE_EVENTS_MAX,
    ReceiveRequest, Sought, Start, Tag,
};
use crate::error::{GroupError, StoreError};
use crate::event::Event;
use crate::id::{EventId, Timestamp};
use crate::ledger::{Brief, OpenState, Rules, Step, lane};
use crate::name::Name;
use crate::settings::{Topic, WAIT_MAX};

/// Payloads that one call takes, in bytes; one event more may come.
const RECEIVE_BYTES_MAX: usize = 8 << 20;

/// New events that are looked at in one go. A group that skips or parks more goes on in the next one.
const LOOK_EVENTS_MAX: u64 = 1_000;

/// Messages that are asked for at a time at least: some may have to be passed over.
const ASKED_LEAST: usize = 4;

/// Shortest wait for what is due: moments are whole milliseconds, and one looks again only after the next one began.
const DUE_LEAST: Duration = Duration::from_millis(1);

/// What a look for events found.
#[derive(Default)]
struct Looked {
    deliveries: Vec<Delivered>,
    /// More may be there at once.
    more: bool,
    /// After so long something is due.
    due: Option<Duration>,
}

/// What a group can take.
#[derive(Default)]
struct Found {
    /// What follows for the group, besides that the events are taken.
    entries: Vec<Entry>,
    events: Vec<Event>,
    bytes: usize,
    more: bool,
}

impl Found {
    fn is_full(&self, max: usize) -> bool {
        self.events.len() >= max || self.bytes >= RECEIVE_BYTES_MAX
    }

    fn add(&mut self, event: Event) {
        self.bytes += event.payload.len();
        self.events.push(event);
    }
}

impl Nats {
    pub(super) async fn receive_or_wait(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let deadline = Instant::now() + request.wait.min(WAIT_MAX);
        let mut buries = true;
        loop {
            let before = self.watches.before(&topic.name);
            let looked = self.link.within(self.look(topic, group, &request, buries)).await?;
            let is_over = request.max == 0 || request.stop.is_cancelled();
            if !looked.deliveries.is_empty() || is_over {
                return Ok(looked.deliveries);
            }
            // Who has waited long enough gets what there is, and leaves the other dead letters to the next call.
            buries = Instant::now() < deadline;
            if looked.more {
                continue;
            }
            if !buries {
                return Ok(Vec::new());
            }
            let Some(mut waiter) = self.watches.wait(&topic.name, before) else { continue };
            let due = looked.due.map(|due| Instant::now() + due.max(DUE_LEAST));
            let until = due.map_or(deadline, |due| due.min(deadline));
            tokio::select! {
                () = self.link.closed().cancelled() => return Err(StoreError::Closed.into()),
                () = request.stop.cancelled() => return Ok(Vec::new()),
                () = waiter.woken() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Gives up what is spent, or some of it, if it is to and there is such. Else takes events.
    async fn look(
        &self,
        topic: &Topic,
        group: &Name,
        request: &ReceiveRequest,
        buries: bool,
    ) -> Result<Looked, GroupError> {
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.tells_burials = true;
        loop {
            let state = writer.state().await?;
            if state.ledger.paused() || request.max == 0 {
                if writer.freshen().await? {
                    continue;
                }
                return Ok(Looked::default());
            }
            // One moment for all of it: what is not spent when the spent are given up must not be due behind that.
            let now = self.link.now();
            let spent = graves(state, topic, now);
            if buries && !(spent.is_empty() && state.burying.is_empty()) {
                if spent.is_empty() || writer.append(spent, topic.settings.ordered).await? {
                    writer.bury_some().await?;
                }
                // However many there are: each round has a time of its own.
                return Ok(Looked { more: true, ..Looked::default() });
            }
            // The spent stand among those that are due if they are left.
            let looked_at = if buries { request.max.min(RECEIVE_EVENTS_MAX) } else { usize::MAX };
            let bounds = (now, request.max.min(RECEIVE_EVENTS_MAX), looked_at);
            let found = self.find(topic, group, state, bounds).await?;
            if found.entries.is_empty() && found.events.is_empty() {
                if writer.freshen().await? {
                    continue;
                }
            } else if !writer.append(taking(&found, topic, &request.consumer, now), false).await? {
                continue;
            }
            let state = writer.state().await?;
            let due = state.ledger.next_due().filter(|due| *due > now).map(|due| due.since(now));
            let deliveries = delivered(found.events, state, now.after(topic.settings.min_idle_time));
            return Ok(Looked { deliveries, more: found.more, due });
        }
    }

    /// What a group can take: first what is due again, of so many that are looked at, then what is new.
    async fn find(
        &self,
        topic: &Topic,
        group: &Name,
        state: &State,
        (now, max, looked_at): (Timestamp, usize, usize),
    ) -> Result<Found, StoreError> {
        let mut found = Found::default();
        let rules = Rules { settings: &topic.settings, now, random: 0.5 };
        // The spent may not have been given up yet.
        let is_left = |id: &u64| state.ledger.spent_one(*id, rules).is_none();
        let due = state.ledger.due(now, looked_at).into_iter().filter(is_left).take(max).collect();
        let is_lost = self.find_again(topic, due, &mut found, max).await?;
        if !found.is_full(max) {
            self.find_new(topic, group, state, (now, max), &mut found).await?;
        }
        // What waited for one that is lost may be due now.
        found.more |= is_lost || found.is_full(max);
        Ok(found)
    }

    /// Adds events by their numbers. What is there no more is settled: whether some was.
    async fn find_again(
        &self,
        topic: &Topic,
        ids: Vec<u64>,
        found: &mut Found,
        max: usize,
    ) -> Result<bool, StoreError> {
        let stream = self.names.topic_stream(&topic.name);
        let mut is_lost = false;
        let mut messages = std::pin::pin!(self.messages(&stream, ids.into_iter(), MESSAGES_AT_A_TIME));
        while !found.is_full(max) {
            let Some((id, message)) = messages.next().await else { break };
            if let Some(message) = message? {
                found.add(wire::event(message)?);
            } else {
                tracing::warn!(topic = %topic.name, id, "an event that was taken is there no more");
                found.entries.push(Entry::Step(Step::Settled { id }));
                is_lost = true;
            }
        }
        Ok(is_lost)
    }

    /// Looks at what is new.
    async fn find_new(
        &self,
        topic: &Topic,
        group: &Name,
        state: &State,
        (now, max): (Timestamp, usize),
        found: &mut Found,
    ) -> Result<(), StoreError> {
        let Some(extent) = self.extent(&topic.name).await? else { return Ok(()) };
        let ledger = &state.ledger;
        let from = ledger.next().max(extent.first);
        let most = (state.room() as u64).min(LOOK_EVENTS_MAX);
        if from > extent.last || most == 0 {
            return Ok(());
        }
        let wanted = max - found.events.len();
        let stream = self.names.topic_stream(&topic.name);
        let sequences = from..=extent.last.min(from + most - 1);
        let at_a_time = wanted.clamp(ASKED_LEAST, MESSAGES_AT_A_TIME);
        let mut messages = std::pin::pin!(self.messages(&stream, sequences, at_a_time));
        let (mut briefs, mut events, mut next) = (Vec::new(), Vec::new(), from);
        let (mut lanes, mut ready, mut bytes) = (std::collections::BTreeSet::new(), 0, found.bytes);
        while ready < wanted && bytes < RECEIVE_BYTES_MAX {
            let Some((sequence, message)) = messages.next().await else { break };
            let event = match message?.map(wire::event).transpose() {
                Ok(event) => event,
                // What lies before it is delivered first.
                Err(_) if sequence > from => break,
                Err(unreadable) => return Err(unreadable),
            };
            next = sequence + 1;
            let is_ours =
                |event: &Event| event.retried.as_ref().is_none_or(|retried| retried.group == *group);
            let Some(event) = event.filter(is_ours) else { continue };
            let lane = topic.settings.ordered.then(|| lane(event.key.as_deref()));
            let due = event.due();
            briefs.push(Brief { id: sequence, lane, due });
            if due <= now {
                // Those behind another of their lane are looked at, and not taken.
                let parked = lane.is_some_and(|lane| !lanes.insert(lane) || ledger.is_busy(lane));
                ready += usize::from(!parked);
                bytes += event.payload.len();
                events.push(event);
            }
        }
        let (step, taken) = ledger.look(&briefs, next, now, wanted);
        let stands = if let Step::Looked { next, .. } = &step { *next } else { next };
        if stands > ledger.next() {
            found.entries.push(Entry::Step(step));
        }
        events.retain(|event| taken.binary_search(&event.id.major()).is_ok());
        events.into_iter().for_each(|event| found.add(event));
        found.more |= stands <= extent.last;
        Ok(())
    }

    pub(super) async fn take_over(
        &self,
        topic: &Topic,
        group: &Name,
        request: &ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.tells_burials = true;
        writer.freshen().await?;
        let max = request.max.min(RECEIVE_EVENTS_MAX);
        loop {
            let state = writer.state().await?;
            if state.ledger.paused() {
                return Ok(Vec::new());
            }
            let now = self.link.now();
            let rules = Rules { settings: &topic.settings, now, random: 0.5 };
            let (mut ids, mut graves) = (Vec::new(), Vec::new());
            // Others come first, as everywhere.
            let is_left = !state.burying.is_empty();
            for id in state.ledger.idle(now, request.min_idle) {
                match state.ledger.spent_one(id, rules) {
                    _ if ids.len() >= max || graves.len() >= BURIED_AT_A_TIME => break,
                    Some(_) if is_left => {}
                    Some(burial) => graves.push(burial),
                    None => ids.push(id),
                }
            }
            let mut found = Found::default();
            self.find_again(topic, ids, &mut found, max).await?;
            let stream = &topic.settings.dead_letter;
            let grave = |burial| Entry::Bury(Grave { stream: stream.clone(), burial });
            found.entries.extend(graves.into_iter().map(grave));
            let entries = taking(&found, topic, &request.consumer, now);
            if !entries.is_empty() && !writer.append(entries, topic.settings.ordered).await? {
                continue;
            }
            // What is left of it whoever looks next goes on with.
            writer.bury_some().await?;
            let state = writer.state().await?;
            return Ok(delivered(found.events, state, now.after(topic.settings.min_idle_time)));
        }
    }

    /// Makes a group, or `false`.
    pub(super) async fn make_group(
        &self,
        topic: &Topic,
        group: &Name,
        start: Start,
    ) -> Result<bool, StoreError> {
        self.topic_or_new(topic, false).await?;
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.freshen().await?;
        while writer.known().is_none() {
            let Some(extent) = self.extent(&topic.name).await? else {
                self.forget_topic(&topic.name);
                self.topic_or_new(topic, false).await?;
                continue;
            };
            let next = self.start(&topic.name, start, extent).await?;
            if writer.append(vec![Entry::Made { next }], false).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) async fn drop_group(&self, topic: &Topic, group: &Name) -> Result<bool, StoreError> {
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.freshen().await?;
        while let Some(state) = writer.known() {
            if !state.burying.is_empty() {
                writer.bury_all().await?;
            }
            // Whoever waits finds out that it is gone.
            if writer.append(vec![Entry::Removed], true).await? {
                writer.clear().await;
                return Ok(true);
            }
        }
        writer.forget();
        Ok(false)
    }

    pub(super) async fn pause(&self, topic: &Topic, group: &Name, paused: bool) -> Result<(), GroupError> {
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.freshen().await?;
        while writer.state().await?.ledger.paused() != paused {
            if writer.append(vec![Entry::Step(Step::Paused(paused))], true).await? {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn seek_to(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.freshen().await?;
        loop {
            let ledger = &writer.state().await?.ledger;
            let extent = self.extent(&topic.name).await?.ok_or(GroupError::Unknown)?;
            let next = self.start(&topic.name, to, extent).await?;
            let (from, floor) = (ledger.next(), extent.first);
            let untouched = ledger.open().range(next..).filter(|(_, open)| open.attempts == 0).count() as u64;
            let again = from.saturating_sub(next.max(floor)).saturating_sub(untouched);
            let open_below = ledger.open().range(..next).count() as u64;
            let skipped = open_below + next.saturating_sub(from.max(floor));
            let sought = Sought { from: EventId::new(from), to: EventId::new(next), again, skipped };
            let step = Step::Sought { next, epoch: 0 };
            if preview || writer.append(vec![Entry::Step(step)], true).await? {
                return Ok(sought);
            }
        }
    }

    pub(super) async fn list_pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.freshen().await?;
        let (now, state) = (self.link.now(), writer.state().await?);
        let from = after.map_or(0, |after| after.major().saturating_add(1));
        let listed = state.ledger.open().range(from..).take(limit.min(PAGE_EVENTS_MAX));
        let listed = listed.map(|(id, open)| Pending {
            id: EventId::new(*id),
            attempts: open.attempts,
            consumer: open.consumer.clone(),
            idle: match open.state {
                OpenState::Taken(at, _) => now.since(at),
                OpenState::Waiting(_) => Duration::ZERO,
            },
            state: match open.state {
                OpenState::Taken(_, until) => PendingState::Taken(until),
                OpenState::Waiting(due) => PendingState::Waiting(due),
            },
            error: open.failure.as_ref().map(|failure| failure.error.as_ref().to_owned()),
        });
        Ok(listed.collect())
    }

    pub(super) async fn list_groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        let mut infos = Vec::new();
        for group in self.group_names(&topic.name).await? {
            infos.extend(self.link.within(self.group_info(topic, group)).await?);
        }
        Ok(infos)
    }

    async fn group_info(&self, topic: &Topic, name: Name) -> Result<Option<GroupInfo>, StoreError> {
        let (mut info, lowest) = {
            let mut writer = Writer::open(self, &topic.name, &name).await;
            writer.freshen().await?;
            let Some(state) = writer.known() else {
                writer.forget();
                return Ok(None);
            };
            let ledger = &state.ledger;
            let info = GroupInfo {
                name: name.clone(),
                paused: ledger.paused(),
                lag: 0,
                lag_age: Duration::ZERO,
                pending: ledger.open().len() as u64,
                redeliveries: state.again,
                next: EventId::new(ledger.next()),
            };
            (info, ledger.lowest())
        };
        let Some(extent) = self.extent(&topic.name).await? else { return Ok(Some(info)) };
        let untouched = (extent.last + 1).saturating_sub(info.next.major().max(extent.first));
        info.lag = untouched + info.pending;
        if info.lag > 0 {
            let stream = self.names.topic_stream(&topic.name);
            let oldest = self.message(&stream, lowest.max(extent.first)).await?;
            info.lag_age = oldest.map_or(Duration::ZERO, |oldest| self.link.now().since(oldest.time));
        }
        Ok(Some(info))
    }
}

/// What a consumer's taking of events means for the group.
fn taking(found: &Found, topic: &Topic, consumer: &Name, at: Timestamp) -> Vec<Entry> {
    let mut entries = found.entries.clone();
    if !found.events.is_empty() {
        let ids = found.events.iter().map(|event| event.id.major()).collect();
        let until = at.after(topic.settings.min_idle_time);
        entries.push(Entry::Step(Step::Taken { consumer: consumer.clone(), at, until, ids }));
    }
    entries
}

fn delivered(events: Vec<Event>, state: &State, until: Timestamp) -> Vec<Delivered> {
    let ledger = &state.ledger;
    let attempt = |event: &Event| ledger.open().get(&event.id.major()).map_or(1, |open| open.attempts);
    let tag = |event: &Event| Tag { epoch: ledger.epoch(), attempt: attempt(event) };
    events.into_iter().map(|event| Delivered { tag: tag(&event), event, until }).collect()
}
