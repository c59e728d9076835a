//! Groups: taking events, settling them, and what operators do.

use std::collections::BTreeSet;
use std::time::Duration;

use super::journal::Change;
use super::log::Item;
use super::record::{self, DeadHeader, Grave};
use super::store::{GivenUp, Group, Store, Stored};
use crate::call::{
    ClaimRequest, Delivered, GroupInfo, Outcome, Pending, PendingState, RECEIVE_EVENTS_MAX, Settlement,
    Sought, Start, Tag,
};
use crate::error::{GroupError, StoreError};
use crate::event::Event;
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::ledger::{Brief, Burial, Ledger, OpenState, Rules, Step, Verdict, lane};
use crate::name::Name;
use crate::settings::Topic;

/// Payloads that one call takes, in bytes; one event more may come.
const RECEIVE_BYTES_MAX: usize = 8 << 20;

/// Dead letters that one call makes, in bytes; one more may come. What is left over comes with the next one.
const BURIED_BYTES_MAX: usize = 8 << 20;

/// New events that are looked at in one go. A group that skips or parks more goes on in the next one.
const LOOK_EVENTS_MAX: usize = 1_000;

/// What was taken.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) deliveries: Vec<Delivered>,
    /// When something is due of what was looked at.
    pub(super) due: Option<Timestamp>,
    /// More may be there at once.
    pub(super) more: bool,
}

impl Store {
    pub(super) fn create_group(
        &mut self,
        topic: &Topic,
        group: &Name,
        start: Start,
    ) -> Result<bool, StoreError> {
        let epoch = self.next_epoch();
        self.topic_or_new(&topic.name)?;
        self.settle_start(&topic.name, start)?;
        let stored = self.topic_or_new(&topic.name)?;
        if stored.groups.contains_key(group) {
            return Ok(false);
        }
        let next = stored.start(start)?;
        stored.groups.insert(group.clone(), Group::new(Ledger::new(next, epoch, false)));
        let (topic, group) = (topic.name.clone(), group.clone());
        self.journal.append(&Change::Created { topic, group, next, epoch });
        Ok(true)
    }

    pub(super) fn remove_group(&mut self, topic: &Topic, group: &Name) -> bool {
        let removed = self.topics.get_mut(&topic.name).and_then(|stored| stored.groups.remove(group));
        if removed.is_some() {
            self.journal.append(&Change::Dropped { topic: topic.name.clone(), group: group.clone() });
            self.wake(&topic.name);
        }
        removed.is_some()
    }

    pub(super) fn receive(
        &mut self,
        topic: &Topic,
        name: &Name,
        consumer: &Name,
        max: usize,
        random: f64,
    ) -> Result<Received, GroupError> {
        let now = self.now();
        let max = max.min(RECEIVE_EVENTS_MAX);
        if self.group(topic, name)?.ledger.paused() {
            return Ok(Received::default());
        }
        // One moment for all of it: what is not spent when the spent are buried must not be due right behind that.
        let rules = Rules { settings: &topic.settings, now, random };
        let mut buried = 0;
        let spent_left = self.bury_spent(topic, name, rules, &mut buried);
        self.note_given_up(&topic.name, name, buried);
        let spent_left = spent_left?;
        let (mut events, lost) = self.due_events(topic, name, max, rules)?;
        // What waited for one that is lost may be due now.
        let go_on = spent_left || !lost.is_empty();
        for id in lost {
            self.give_up_unreadable(topic, name, id);
        }
        let mut more = events.len() >= max || bytes_of(&events) >= RECEIVE_BYTES_MAX;
        if !more {
            let (looked, new, more_new) = self.new_events(topic, name, max - events.len(), now)?;
            more = more_new || go_on;
            if let Some(looked) = looked {
                self.step(&topic.name, name, looked);
            }
            events.extend(new);
        }
        let deliveries = self.take(topic, name, consumer, (now, events))?;
        let due = self.group(topic, name)?.ledger.next_due().filter(|due| *due > now);
        Ok(Received { deliveries, due, more })
    }

    /// Hands events to a consumer: one more delivery each.
    fn take(
        &mut self,
        topic: &Topic,
        name: &Name,
        consumer: &Name,
        (at, events): (Timestamp, Vec<Event>),
    ) -> Result<Vec<Delivered>, GroupError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        self.waiting += bytes_of(&events);
        let until = at.after(topic.settings.min_idle_time);
        let ids = events.iter().map(|event| event.id.major()).collect();
        self.step(&topic.name, name, Step::Taken { consumer: consumer.clone(), at, until, ids });
        let group = self.group_mut(topic, name)?;
        let mut deliveries = Vec::with_capacity(events.len());
        for event in events {
            let attempt = group.ledger.open().get(&event.id.major()).map_or(1, |open| open.attempts);
            group.redeliveries += u64::from(attempt > 1);
            deliveries.push(Delivered { event, tag: Tag { epoch: group.ledger.epoch(), attempt }, until });
        }
        Ok(deliveries)
    }

    /// The events that are due again, and the numbers of those that cannot be read.
    fn due_events(
        &mut self,
        topic: &Topic,
        name: &Name,
        max: usize,
        rules: Rules<'_>,
    ) -> Result<(Vec<Event>, Vec<u64>), GroupError> {
        let ledger = &self.group(topic, name)?.ledger;
        let mut due = ledger.due(rules.now, max);
        due.retain(|id| ledger.spent_one(*id, rules).is_none());
        let stored = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        let (mut events, mut lost, mut bytes) = (Vec::new(), Vec::new(), 0);
        for id in due {
            match stored.event(id)? {
                Some(event) => {
                    bytes += event.payload.len();
                    events.push(event);
                }
                None => lost.push(id),
            }
            if bytes >= RECEIVE_BYTES_MAX {
                break;
            }
        }
        Ok((events, lost))
    }

    /// Looks at what is new: the step, what of it can be taken, and whether there is more.
    fn new_events(
        &mut self,
        topic: &Topic,
        name: &Name,
        max: usize,
        now: Timestamp,
    ) -> Result<(Option<Step>, Vec<Event>, bool), GroupError> {
        let stored = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        let ledger = &stored.groups.get(name).ok_or(GroupError::Unknown)?.ledger;
        let from = ledger.next().max(stored.floor);
        let most = LOOK_EVENTS_MAX.min(ledger.room());
        if from > stored.log.written() || most == 0 {
            return Ok((None, Vec::new(), false));
        }
        let (mut briefs, mut events, mut bytes, mut ready) = (Vec::new(), Vec::new(), 0, 0);
        let (mut lanes, mut unknown) = (BTreeSet::new(), None);
        let mut walk = stored.log.walk(from).map_err(StoreError::from)?;
        while briefs.len() < most && ready < max && bytes < RECEIVE_BYTES_MAX {
            let Some(item) = walk.next().map_err(StoreError::from)? else { break };
            let found = match item {
                Item::Record(found) => found,
                Item::Gap { first, last, bytes } => {
                    tracing::warn!(topic = %topic.name, group = %name, first, last, bytes, "events cannot be read");
                    continue;
                }
            };
            let event = match record::event(&found) {
                Ok(event) => event,
                // What lies before it is delivered first.
                Err(_) if found.id > from => {
                    unknown = Some(found.id);
                    break;
                }
                Err(unknown) => return Err(StoreError::from(unknown).into()),
            };
            if event.retried.as_ref().is_some_and(|retried| retried.group != *name) {
                continue;
            }
            let lane = topic.settings.ordered.then(|| lane(event.key.as_deref()));
            let due = event.due();
            briefs.push(Brief { id: found.id, lane, due });
            if due <= now {
                bytes += event.payload.len();
                // Those behind another of their lane are looked at, and not taken.
                let parked = lane.is_some_and(|lane| !lanes.insert(lane) || ledger.is_busy(lane));
                ready += usize::from(!parked);
                events.push(event);
            }
        }
        let next = unknown.unwrap_or_else(|| walk.expected());
        if unknown.is_none() {
            walk.pause();
        }
        let (step, taken) = ledger.look(&briefs, next, now, max);
        events.retain(|event| taken.binary_search(&event.id.major()).is_ok());
        let stands = if let Step::Looked { next, .. } = &step { *next } else { next };
        let more = stands <= stored.log.written();
        Ok(((stands > ledger.next()).then_some(step), events, more))
    }

    /// Buries what nobody settled in time, and counts it, also where not all can be. Whether some are left for the next
    /// call.
    fn bury_spent(
        &mut self,
        topic: &Topic,
        name: &Name,
        rules: Rules<'_>,
        buried: &mut u64,
    ) -> Result<bool, GroupError> {
        let spent = self.group(topic, name)?.ledger.spent(rules);
        let before = self.waiting;
        for burial in spent {
            if self.waiting - before >= BURIED_BYTES_MAX {
                return Ok(true);
            }
            *buried += u64::from(self.bury(topic, name, burial)?.is_some());
        }
        Ok(false)
    }

    /// Settles an event that cannot be read any more: nothing is left to do about it.
    fn give_up_unreadable(&mut self, topic: &Topic, name: &Name, id: u64) {
        tracing::warn!(topic = %topic.name, group = %name, id, "an event that was taken cannot be read any more");
        self.step(&topic.name, name, Step::Settled { id });
        self.wake(&topic.name);
    }

    /// Makes a dead letter. `None`: the event cannot be read any more, and nothing is left to do about it.
    fn bury(
        &mut self,
        topic: &Topic,
        name: &Name,
        burial: Burial,
    ) -> Result<Option<DeadLetterId>, GroupError> {
        let stored = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        let epoch = stored.groups.get(name).ok_or(GroupError::Unknown)?.ledger.epoch();
        let (number, time) = (burial.id, burial.failure.last);
        let Some(event) = stored.event(number)? else {
            self.give_up_unreadable(topic, name, number);
            return Ok(None);
        };
        let grave = Grave { stream: &topic.settings.dead_letter, topic: &topic.name, group: name, epoch };
        let (header, payload) = DeadHeader::new(&grave, event, burial);
        let (id, size) = self.dead.append(time.0, |out| record::write(&header, &payload, out));
        self.waiting += usize::try_from(size).unwrap_or(usize::MAX);
        self.step(&topic.name, name, Step::Settled { id: number });
        self.wake(&topic.name);
        Ok(Some(DeadLetterId(EventId::new(id))))
    }

    /// Buries what nobody settled in time in any group, and says if some are left. What an error does not say is noted.
    pub(super) fn bury_all_spent(
        &mut self,
        topic: &Topic,
        random: f64,
    ) -> Result<(Vec<GivenUp>, bool), StoreError> {
        let rules = Rules { settings: &topic.settings, now: self.now(), random };
        let groups = self.topics.get(&topic.name).map(|stored| stored.groups.keys().cloned().collect());
        let (groups, mut all): (Vec<Name>, _) = (groups.unwrap_or_default(), Vec::new());
        for group in groups {
            let mut buried = 0;
            let left = self.bury_spent(topic, &group, rules, &mut buried);
            all.push((topic.name.clone(), group, buried));
            match left {
                Ok(false) | Err(GroupError::Unknown) => {}
                Ok(true) => return Ok((all, true)),
                Err(GroupError::Store(error)) => {
                    all.iter().for_each(|(topic, group, buried)| self.note_given_up(topic, group, *buried));
                    return Err(error);
                }
            }
        }
        Ok((all, false))
    }

    pub(super) fn settle(
        &mut self,
        topic: &Topic,
        name: &Name,
        settlement: &Settlement,
        random: f64,
    ) -> Result<Outcome, GroupError> {
        let now = self.now();
        let ledger = &self.group(topic, name)?.ledger;
        if settlement.id.minor() != 0 {
            return Ok(Outcome::Unknown);
        }
        let rules = Rules { settings: &topic.settings, now, random };
        match ledger.settle(settlement.id.major(), settlement.tag, &settlement.action, rules) {
            Verdict::Nothing(outcome) => Ok(outcome),
            Verdict::Step(step, outcome) => {
                // An event that is done lets others go on where they wait for it, or for room.
                let is_done = matches!(step, Step::Settled { .. });
                let changes_nothing = is_done && ledger.room() > 0 && !topic.settings.ordered;
                self.step(&topic.name, name, step);
                if !changes_nothing {
                    self.wake(&topic.name);
                }
                Ok(outcome)
            }
            Verdict::Bury(burial) => {
                Ok(self.bury(topic, name, burial)?.map_or(Outcome::Unknown, Outcome::Buried))
            }
        }
    }

    pub(super) fn claim(
        &mut self,
        topic: &Topic,
        name: &Name,
        request: &ClaimRequest,
        random: f64,
    ) -> Result<Vec<Delivered>, GroupError> {
        let now = self.now();
        let ledger = &self.group(topic, name)?.ledger;
        if ledger.paused() {
            return Ok(Vec::new());
        }
        let (idle, before) = (ledger.idle(now, request.min_idle), self.waiting);
        let mut events = Vec::new();
        for id in idle {
            let full = bytes_of(&events) >= RECEIVE_BYTES_MAX || self.waiting - before >= BURIED_BYTES_MAX;
            if full || events.len() >= request.max.min(RECEIVE_EVENTS_MAX) {
                break;
            }
            let rules = Rules { settings: &topic.settings, now, random };
            if let Some(burial) = self.group(topic, name)?.ledger.spent_one(id, rules) {
                let buried = self.bury(topic, name, burial)?;
                self.note_given_up(&topic.name, name, u64::from(buried.is_some()));
                continue;
            }
            let stored = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
            match stored.event(id)? {
                Some(event) => events.push(event),
                None => self.give_up_unreadable(topic, name, id),
            }
        }
        self.take(topic, name, &request.consumer, (now, events))
    }

    pub(super) fn set_paused(&mut self, topic: &Topic, name: &Name, paused: bool) -> Result<(), GroupError> {
        if self.group(topic, name)?.ledger.paused() != paused {
            self.step(&topic.name, name, Step::Paused(paused));
            self.wake(&topic.name);
        }
        Ok(())
    }

    pub(super) fn seek(
        &mut self,
        topic: &Topic,
        name: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        self.settle_start(&topic.name, to)?;
        let stored = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        let next = stored.start(to)?;
        let floor = stored.floor;
        let ledger = &stored.groups.get(name).ok_or(GroupError::Unknown)?.ledger;
        let from = ledger.next();
        let untouched = ledger.open().range(next..).filter(|(_, open)| open.attempts == 0).count() as u64;
        let again = from.saturating_sub(next.max(floor)).saturating_sub(untouched);
        let open_below = ledger.open().range(..next).count() as u64;
        let skipped = open_below + next.saturating_sub(from.max(floor));
        let sought = Sought { from: EventId::new(from), to: EventId::new(next), again, skipped };
        if !preview {
            let epoch = self.next_epoch();
            self.step(&topic.name, name, Step::Sought { next, epoch });
            self.wake(&topic.name);
        }
        Ok(sought)
    }

    /// Writes what waits where a moment is looked for: it is found in files alone.
    fn settle_start(&mut self, topic: &Name, start: Start) -> Result<(), StoreError> {
        let waits = self.topics.get(topic).is_some_and(|stored| stored.log.is_dirty());
        if waits && matches!(start, Start::Time(_)) { self.flush() } else { Ok(()) }
    }

    pub(super) fn pending(
        &mut self,
        topic: &Topic,
        name: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        let now = self.now();
        let ledger = &self.group(topic, name)?.ledger;
        let from = after.map_or(0, |after| after.major().saturating_add(1));
        let pending = ledger.open().range(from..).take(limit).map(|(id, open)| Pending {
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
        Ok(pending.collect())
    }

    pub(super) fn group_infos(&mut self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        let now = self.now();
        let Some(stored) = self.topics.get_mut(&topic.name) else { return Ok(Vec::new()) };
        let names: Vec<Name> = stored.groups.keys().cloned().collect();
        names.into_iter().map(|name| stored.group_info(name, now)).collect()
    }

    fn group(&self, topic: &Topic, name: &Name) -> Result<&Group, GroupError> {
        let stored = self.topics.get(&topic.name).ok_or(GroupError::Unknown)?;
        stored.groups.get(name).ok_or(GroupError::Unknown)
    }

    fn group_mut(&mut self, topic: &Topic, name: &Name) -> Result<&mut Group, GroupError> {
        let stored = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        stored.groups.get_mut(name).ok_or(GroupError::Unknown)
    }
}

impl Stored {
    /// The number that a group begins with.
    fn start(&mut self, start: Start) -> Result<u64, StoreError> {
        let end = self.log.last() + 1;
        Ok(match start {
            Start::Earliest => self.floor,
            Start::Latest => end,
            Start::Id(id) => (id.major().saturating_add(u64::from(id.minor() > 0))).clamp(self.floor, end),
            Start::Time(time) => self.log.first_at(time.0, self.floor)?,
        })
    }

    /// An event, if it is there and can be read.
    pub(super) fn event(&mut self, id: u64) -> Result<Option<Event>, StoreError> {
        if id < self.floor || id > self.log.written() {
            return Ok(None);
        }
        let mut walk = self.log.walk(id)?;
        let event = match walk.next()? {
            Some(Item::Record(found)) => Some(record::event(&found)?),
            _ => None,
        };
        // Who takes one again most likely takes the next one too.
        walk.pause();
        Ok(event)
    }

    fn group_info(&mut self, name: Name, now: Timestamp) -> Result<GroupInfo, StoreError> {
        let group = &self.groups[&name];
        let (ledger, redeliveries) = (&group.ledger, group.redeliveries);
        let (next, lowest, paused) = (ledger.next(), ledger.lowest(), ledger.paused());
        let pending = ledger.open().len() as u64;
        let untouched = (self.log.last() + 1).saturating_sub(next.max(self.floor));
        let oldest = {
            let mut walk = self.log.walk(lowest.max(self.floor))?;
            loop {
                match walk.next()? {
                    Some(Item::Record(found)) => break Some(Timestamp(found.time)),
                    Some(Item::Gap { .. }) => {}
                    None => break None,
                }
            }
        };
        let lag = untouched + pending;
        let lag_age = oldest.filter(|_| lag > 0).map_or(Duration::ZERO, |oldest| now.since(oldest));
        Ok(GroupInfo { name, paused, lag, lag_age, pending, redeliveries, next: EventId::new(next) })
    }
}

/// Their payloads, in bytes.
pub(super) fn bytes_of(events: &[Event]) -> usize {
    events.iter().map(|event| event.payload.len()).sum()
}
