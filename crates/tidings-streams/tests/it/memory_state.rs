//! What the memory driver holds, and what it decides about it.

use std::collections::BTreeMap;
use std::time::Duration;

use tidings_streams::decide::{Held, is_surplus};
use tidings_streams::ledger::{Brief, Burial, Ledger, OpenState, Rules, Step, lane};
use tidings_streams::{
    DeadLetter, DeadLetterId, Delivered, Event, EventId, GroupError, Name, ReceiveRequest, Retention, Start,
    Tag, Timestamp, Topic, TrimMode, Trimmed,
};

use crate::memory::Bug;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) closed: bool,
    pub(crate) topics: BTreeMap<Name, Stored>,
    pub(crate) dead: BTreeMap<u64, DeadLetter>,
    pub(crate) last_dead: u64,
    pub(crate) epoch: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) last: u64,
    pub(crate) keys: BTreeMap<String, (u64, Timestamp)>,
    pub(crate) groups: BTreeMap<Name, Ledger>,
}

/// What an event takes besides its payload, about.
const EVENT_BYTES: u64 = 50;

fn size(event: &Event) -> u64 {
    event.payload.len() as u64 + EVENT_BYTES
}

impl Stored {
    pub(crate) fn held(&self) -> Held {
        Held { events: self.events.len() as u64, bytes: self.events.values().map(size).sum() }
    }

    pub(crate) fn append(&mut self, time: Timestamp, event: impl FnOnce(EventId, Timestamp) -> Event) -> u64 {
        self.last += 1;
        self.events.insert(self.last, event(EventId::new(self.last), time));
        self.last
    }

    pub(crate) fn start(&self, start: Start) -> u64 {
        let first = self.events.keys().next().copied().unwrap_or(self.last + 1);
        match start {
            Start::Earliest => first,
            Start::Latest => self.last + 1,
            Start::Id(id) => id.major().clamp(first, self.last + 1),
            Start::Time(time) => {
                let found = self.events.iter().find(|(_, event)| event.time >= time);
                found.map_or(self.last + 1, |(id, _)| *id)
            }
        }
    }

    /// What the limits name, of what is below `end`.
    pub(crate) fn surplus(&self, limits: &Retention, now: Timestamp, end: u64) -> Trimmed {
        let (mut held, mut trimmed) = (self.held(), Trimmed::default());
        for event in self.events.range(..end).map(|(_, event)| event) {
            if !is_surplus(limits, held, event.time, now) {
                break;
            }
            trimmed.removed += 1;
            trimmed.bytes += size(event);
            held = Held { events: held.events - 1, bytes: held.bytes - size(event) };
        }
        trimmed
    }

    pub(crate) fn trim(
        &mut self,
        limits: &Retention,
        now: Timestamp,
        mode: TrimMode,
        bug: Option<Bug>,
    ) -> Trimmed {
        let lowest = self.groups.values().map(Ledger::lowest).min().unwrap_or(u64::MAX);
        let careless = mode.force || bug == Some(Bug::TrimBelowPending);
        let all = self.surplus(limits, now, u64::MAX);
        let mut trimmed = if careless { all } else { self.surplus(limits, now, lowest) };
        if !careless {
            trimmed.kept_for_groups = all.removed - trimmed.removed;
        }
        if !mode.dry_run {
            for _ in 0..trimmed.removed {
                self.events.pop_first();
            }
            let below = self.events.keys().next().copied().unwrap_or(self.last + 1);
            if mode.force {
                self.groups.values_mut().for_each(|group| group.apply(&Step::Lost { below }));
            }
        }
        trimmed
    }
}

impl State {
    pub(crate) fn group(&mut self, topic: &Topic, group: &Name) -> Result<&mut Ledger, GroupError> {
        let held = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        held.groups.get_mut(group).ok_or(GroupError::Unknown)
    }

    pub(crate) fn bury(
        &mut self,
        topic: &Topic,
        group: &Name,
        burial: Burial,
        bug: Option<Bug>,
    ) -> DeadLetterId {
        let held = self.topics.get_mut(&topic.name).expect("it has a group");
        let event = held.events[&burial.id].clone();
        let ledger = held.groups.get_mut(group).expect("it has given up");
        ledger.apply(&Step::Settled { id: burial.id });
        for _ in 0..if bug == Some(Bug::DoubleDeadLetter) { 2 } else { 1 } {
            self.last_dead += 1;
            let letter = DeadLetter {
                id: DeadLetterId(EventId::new(self.last_dead)),
                stream: topic.settings.dead_letter.clone(),
                topic: topic.name.clone(),
                event: event.clone(),
                group: group.clone(),
                consumer: burial.consumer.clone(),
                attempts: burial.attempts,
                first_failed: burial.failure.first,
                last_failed: burial.failure.last,
                error: burial.failure.error.as_ref().to_owned(),
            };
            self.dead.insert(self.last_dead, letter);
        }
        DeadLetterId(EventId::new(self.last_dead))
    }

    pub(crate) fn bury_spent(
        &mut self,
        topic: &Topic,
        group: &Name,
        now: Timestamp,
        bug: Option<Bug>,
    ) -> Result<u64, GroupError> {
        if bug == Some(Bug::NoRedelivery) {
            return Ok(0);
        }
        // As if the clock went on between this look and the next one.
        let now = if bug == Some(Bug::OneTooMany) { now.before(Duration::from_millis(1)) } else { now };
        let rules = Rules { settings: &topic.settings, now, random: 0.5 };
        let spent = self.group(topic, group)?.spent(rules);
        let buried = spent.len() as u64;
        for burial in spent {
            self.bury(topic, group, burial, bug);
        }
        Ok(buried)
    }

    pub(crate) fn take(
        &mut self,
        topic: &Topic,
        group: &Name,
        consumer: &Name,
        (now, ids): (Timestamp, Vec<u64>),
        bug: Option<Bug>,
    ) -> Result<Vec<Delivered>, GroupError> {
        let until = now.after(topic.settings.min_idle_time);
        let held = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        let ledger = held.groups.get_mut(group).ok_or(GroupError::Unknown)?;
        ledger.apply(&Step::Taken { consumer: consumer.clone(), at: now, until, ids: ids.clone() });
        let epoch = ledger.epoch();
        let more = u32::from(bug == Some(Bug::AttemptOffByOne));
        let delivered = ids.into_iter().map(|id| Delivered {
            event: held.events[&id].clone(),
            tag: Tag { epoch, attempt: ledger.open()[&id].attempts + more },
            until,
        });
        Ok(delivered.collect())
    }

    pub(crate) fn receive(
        &mut self,
        topic: &Topic,
        group: &Name,
        request: &ReceiveRequest,
        now: Timestamp,
        bug: Option<Bug>,
    ) -> Result<(Vec<Delivered>, u64), GroupError> {
        if self.group(topic, group)?.paused() {
            return Ok((Vec::new(), 0));
        }
        let buried = self.bury_spent(topic, group, now, bug)?;
        let held = self.topics.get_mut(&topic.name).ok_or(GroupError::Unknown)?;
        let ledger = held.groups.get_mut(group).ok_or(GroupError::Unknown)?;
        let mut ids = ledger.due(now, request.max);
        ids.retain(|id| {
            bug != Some(Bug::NoRedelivery) || matches!(ledger.open()[id].state, OpenState::Waiting(_))
        });
        ids.retain(|id| held.events.contains_key(id));
        let is_its = |event: &&Event| event.retried.as_ref().is_none_or(|retried| retried.group == *group);
        let ordered = topic.settings.ordered && bug != Some(Bug::NoParking);
        let new: Vec<Brief> = held
            .events
            .range(ledger.next()..)
            .map(|(_, event)| event)
            .filter(is_its)
            .map(|event| Brief {
                id: event.id.major(),
                lane: ordered.then(|| lane(event.key.as_deref())),
                due: event.due(),
            })
            .collect();
        let (step, taken) = ledger.look(&new, held.last + 1, now, request.max - ids.len());
        ledger.apply(&step);
        ids.extend(taken);
        Ok((self.take(topic, group, &request.consumer, (now, ids), bug)?, buried))
    }
}
