//! Groups: taking events, settling them, and what operators do.

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::error::{of_group, unexpected};
use super::link::Repeat;
use super::script::Call;
use super::watch::Cursor;
use super::{Redis, wire};
use crate::call::{
    Action, ClaimRequest, Delivered, GroupInfo, Outcome, PAGE_EVENTS_MAX, Pending, PendingState,
    RECEIVE_EVENTS_MAX, ReceiveRequest, Settlement, Sought, Start, Tag,
};
use crate::decide::backoff;
use crate::error::{GroupError, StoreError};
use crate::event::cut_error;
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;
use crate::settings::{Topic, TopicSettings, WAIT_MAX};

/// Shortest wait for what is due: the server counts whole milliseconds, and looks again only after the next one began.
const DUE_LEAST: Duration = Duration::from_millis(1);

/// Words that one script is told, and where some may make dead letters: the server does nothing else meanwhile. Each
/// word is heard by itself anyway.
const WORDS_MAX: usize = 1_000;
const WORDS_THAT_MAY_BURY_MAX: usize = 64;

/// Waits after failures that scripts are told. With the last one a wait has doubled beyond any that is allowed.
const WAITS_MAX: u32 = 40;

/// What a look for events found.
struct Looked {
    deliveries: Vec<Delivered>,
    /// More may be there at once.
    more: bool,
    /// After so long something is due.
    due: Option<Duration>,
    cursor: Cursor,
}

impl Redis {
    pub(super) async fn receive_or_wait(
        &self,
        topic: &Topic,
        group: &Name,
        request: ReceiveRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let deadline = Instant::now() + request.wait.min(WAIT_MAX);
        loop {
            let before = self.watches.before(&topic.name);
            if let Some(taken) = self.take_new(topic, group, &request).await? {
                return Ok(taken);
            }
            let looked = self.look(topic, group, &request).await?;
            self.flowing.note((topic, group), request.max, &looked.deliveries);
            let is_over = request.max == 0 || request.stop.is_cancelled();
            if !looked.deliveries.is_empty() || is_over {
                return Ok(looked.deliveries);
            }
            if looked.more {
                continue;
            }
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            let Some(mut waiter) = self.watches.wait(&topic.name, before, looked.cursor) else { continue };
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

    async fn look(
        &self,
        topic: &Topic,
        group: &Name,
        request: &ReceiveRequest,
    ) -> Result<Looked, GroupError> {
        let script = &self.link.scripts().receive;
        let call = self
            .of_consumer(script, (topic, group), (&request.consumer, request.max))
            .arg(u8::from(topic.settings.ordered))
            .arg(millis(WAIT_MAX));
        // What an unheard call took comes back after its time: to take more instead is what the caller wants.
        let answer = self.in_group(call, script, Repeat::Harmless).await?;
        let [epoch, until, more, due, last, bell, taken, buried] = wire::tuple(answer)?;
        self.burials.tell(&topic.name, group, wire::number(buried)?);
        let cursor = Cursor {
            stream: wire::id_if_any(last)?.unwrap_or(EventId::ZERO),
            bell: wire::id_if_any(bell)?.unwrap_or(EventId::ZERO),
        };
        Ok(Looked {
            deliveries: deliveries(epoch, until, taken)?,
            more: wire::number(more)? == 1,
            due: wire::number_if_any(due)?.map(Duration::from_millis),
            cursor,
        })
    }

    pub(super) async fn settle_all(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: &[Settlement],
    ) -> Result<Vec<Outcome>, GroupError> {
        let mut outcomes = Vec::with_capacity(settlements.len());
        let may_bury = settlements.iter().any(|one| matches!(one.action, Action::Fail { .. }));
        let most = if may_bury { WORDS_THAT_MAY_BURY_MAX } else { WORDS_MAX };
        for some in settlements.chunks(most) {
            outcomes.extend(self.settle_some(topic, group, some).await?);
        }
        Ok(outcomes)
    }

    async fn settle_some(
        &self,
        topic: &Topic,
        group: &Name,
        settlements: &[Settlement],
    ) -> Result<Vec<Outcome>, GroupError> {
        let settings = &topic.settings;
        let script = &self.link.scripts().settle;
        let fails = settlements.iter().any(|one| matches!(one.action, Action::Fail { .. }));
        let waits = if fails { waits(settings, rand::random()) } else { Vec::new() };
        let mut call = self
            .of_group(script, topic, group)
            .arg(settings.max_deliveries.get())
            .arg(settings.dead_letter.as_str())
            .arg(waits.len())
            .arg(&waits);
        match only_first_acks(settlements) {
            Some(epoch) => {
                call = call.arg("*").arg(epoch);
                for one in settlements {
                    call = call.arg(wire::id_text(one.id));
                }
            }
            None => {
                for one in settlements {
                    call = word(call, one);
                }
            }
        }
        // Said twice, a word that was heard the first time would be answered as if it had not counted.
        let answers = wire::list(self.in_group(call, script, Repeat::Never).await?)?;
        if answers.len() == 1 {
            // It says so once where all are acknowledged.
            outcome(&wire::bytes(answers.into_iter().next().unwrap_or(Value::Nil))?, Value::Nil)?;
            return Ok(vec![Outcome::Acked; settlements.len()]);
        }
        let mut answers = answers.into_iter();
        let mut outcomes = Vec::with_capacity(settlements.len());
        while let (Some(what), Some(text)) = (answers.next(), answers.next()) {
            outcomes.push(outcome(&wire::bytes(what)?, text)?);
        }
        if outcomes.len() == settlements.len() { Ok(outcomes) } else { Err(unexpected("outcome").into()) }
    }

    pub(super) async fn list_pending(
        &self,
        topic: &Topic,
        group: &Name,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<Vec<Pending>, GroupError> {
        let script = &self.link.scripts().pending;
        let from = wire::id_text(after.map_or(EventId::ZERO, wire::id_after));
        let call = self
            .of_group(script, topic, group)
            .arg(from)
            .arg(limit.min(PAGE_EVENTS_MAX))
            .arg(millis(topic.settings.min_idle_time));
        let answer = self.in_group(call, script, Repeat::Harmless).await?;
        let pending = wire::list(answer)?.into_iter().map(pending).collect::<Result<_, StoreError>>()?;
        Ok(pending)
    }

    pub(super) async fn take_over(
        &self,
        topic: &Topic,
        group: &Name,
        request: &ClaimRequest,
    ) -> Result<Vec<Delivered>, GroupError> {
        let script = &self.link.scripts().claim;
        let call = self
            .of_consumer(script, (topic, group), (&request.consumer, request.max))
            .arg(millis(request.min_idle));
        let answer = self.in_group(call, script, Repeat::Harmless).await?;
        let [epoch, until, taken, buried] = wire::tuple(answer)?;
        self.burials.tell(&topic.name, group, wire::number(buried)?);
        Ok(deliveries(epoch, until, taken)?)
    }

    /// Makes a group, or `false`.
    pub(super) async fn make_group(
        &self,
        topic: &Topic,
        group: &Name,
        start: Start,
    ) -> Result<bool, StoreError> {
        let script = &self.link.scripts().place;
        let call = self.of_group(script, topic, group).arg("create").arg(start_text(start));
        Ok(wire::number(self.link.run(call, script, Repeat::Never).await?)? == 1)
    }

    /// Removes a group, or pauses it, or lets it go on.
    pub(super) async fn change_group(
        &self,
        topic: &Topic,
        group: &Name,
        (what, how): (&str, &str),
    ) -> Result<(), GroupError> {
        let script = &self.link.scripts().place;
        let call = self.of_group(script, topic, group).arg(what).arg(how);
        let repeat = if what == "remove" { Repeat::Never } else { Repeat::Harmless };
        self.in_group(call, script, repeat).await.map(drop)
    }

    pub(super) async fn seek_to(
        &self,
        topic: &Topic,
        group: &Name,
        to: Start,
        preview: bool,
    ) -> Result<Sought, GroupError> {
        let script = &self.link.scripts().place;
        let what = if preview { "preview" } else { "seek" };
        let call = self.of_group(script, topic, group).arg(what).arg(start_text(to));
        let [last, from, to, again, skipped] =
            wire::tuple(self.in_group(call, script, Repeat::Never).await?)?;
        let end = wire::id_after(wire::id(last)?);
        Ok(Sought {
            from: wire::id_if_any(from)?.unwrap_or(end),
            to: wire::id_if_any(to)?.unwrap_or(end),
            again: wire::number(again)?,
            skipped: wire::number(skipped)?,
        })
    }

    pub(super) async fn list_groups(&self, topic: &Topic) -> Result<Vec<GroupInfo>, StoreError> {
        let script = &self.link.scripts().groups;
        let call = self.of_topic(script, topic);
        let [last, groups] = wire::tuple(self.link.run(call, script, Repeat::Harmless).await?)?;
        let end = wire::id_after(wire::id(last)?);
        let groups = wire::list(groups)?.into_iter().map(|group| group_info(group, end));
        let mut groups = groups.collect::<Result<Vec<_>, _>>()?;
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(groups)
    }

    fn of_group(&self, script: &super::script::Script, topic: &Topic, group: &Name) -> Call {
        Call::new(script, &self.base, topic.name.as_str(), group.as_str())
    }

    /// The same for a consumer that takes up to so many events.
    fn of_consumer(
        &self,
        script: &super::script::Script,
        (topic, group): (&Topic, &Name),
        (consumer, max): (&Name, usize),
    ) -> Call {
        let settings = &topic.settings;
        self.of_group(script, topic, group)
            .arg(consumer.as_str())
            .arg(max.min(RECEIVE_EVENTS_MAX))
            .arg(millis(settings.min_idle_time))
            .arg(settings.max_deliveries.get())
            .arg(settings.dead_letter.as_str())
    }

    /// Runs a script that answers nothing where there is no group.
    async fn in_group(
        &self,
        call: Call,
        script: &super::script::Script,
        repeat: Repeat,
    ) -> Result<Value, GroupError> {
        match self.link.run(call, script, repeat).await.map_err(of_group)? {
            Value::Nil => Err(GroupError::Unknown),
            answer => Ok(answer),
        }
    }
}

/// Whole milliseconds, as many as the server takes.
pub(super) fn millis(duration: Duration) -> u64 {
    // Beyond this its scripts do not count exactly any more: that is a quarter of a million years.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(1 << 52)
}

/// The waits after the first failures, as long as they differ.
fn waits(settings: &TopicSettings, random: f64) -> Vec<u64> {
    let failures = settings.max_deliveries.get().saturating_sub(1).clamp(1, WAITS_MAX);
    let mut waits: Vec<u64> =
        (1..=failures).map(|attempt| millis(backoff(&settings.backoff, attempt, random))).collect();
    // The last one stands for all that come later.
    while waits.len() > 1 && waits[waits.len() - 1] == waits[waits.len() - 2] {
        waits.pop();
    }
    waits
}

/// The epoch of all, if they acknowledge first deliveries of it and nothing else: most do, and are told in few words.
fn only_first_acks(settlements: &[Settlement]) -> Option<u64> {
    let epoch = settlements.first()?.tag?.epoch;
    let first = Some(Tag { epoch, attempt: 1 });
    let is_one = |one: &Settlement| one.action == Action::Ack && one.tag == first;
    settlements.iter().all(is_one).then_some(epoch)
}

fn word(call: Call, one: &Settlement) -> Call {
    let call = call.arg(wire::id_text(one.id));
    let call = match one.tag {
        Some(tag) => call.arg(tag.epoch).arg(tag.attempt),
        None => call.arg("").arg(""),
    };
    match &one.action {
        Action::Ack => call.arg("a").arg(""),
        Action::Fail { reason } => call.arg("f").arg(cut_error(reason)),
        Action::Extend { by } => call.arg("e").arg(millis((*by).min(WAIT_MAX))),
    }
}

fn start_text(start: Start) -> String {
    match start {
        Start::Earliest => "earliest".to_owned(),
        Start::Latest => "latest".to_owned(),
        Start::Id(id) => wire::id_text(id),
        Start::Time(time) => wire::id_text(EventId::new(time.0)),
    }
}

fn deliveries(epoch: Value, until: Value, taken: Value) -> Result<Vec<Delivered>, StoreError> {
    let (epoch, until) = (wire::number(epoch)?, Timestamp(wire::number(until)?));
    let mut taken = wire::list(taken)?.into_iter();
    let mut deliveries = Vec::with_capacity(taken.len() / 3);
    while let (Some(id), Some(attempt), Some(fields)) = (taken.next(), taken.next(), taken.next()) {
        let event = wire::event(wire::id(id)?, fields)?;
        let attempt = u32::try_from(wire::number(attempt)?).map_err(|_| unexpected("attempt"))?;
        deliveries.push(Delivered { event, tag: Tag { epoch, attempt }, until });
    }
    Ok(deliveries)
}

fn outcome(what: &[u8], text: Value) -> Result<Outcome, StoreError> {
    Ok(match what {
        b"a" => Outcome::Acked,
        b"r" => Outcome::RetryAt(Timestamp(wire::number(text)?)),
        b"b" => Outcome::Buried(DeadLetterId(wire::id(text)?)),
        b"e" => Outcome::Extended(Timestamp(wire::number(text)?)),
        b"s" => Outcome::Stale,
        b"u" => Outcome::Unknown,
        _ => return Err(unexpected("outcome")),
    })
}

fn pending(value: Value) -> Result<Pending, StoreError> {
    let [id, attempts, consumer, idle, waits, moment, error] = wire::tuple(value)?;
    let moment = Timestamp(wire::number(moment)?);
    let error = wire::text(error)?;
    Ok(Pending {
        id: wire::id(id)?,
        attempts: u32::try_from(wire::number(attempts)?).map_err(|_| unexpected("number of attempts"))?,
        consumer: wire::consumer_name(consumer),
        idle: Duration::from_millis(wire::number(idle)?),
        state: match wire::number(waits)? {
            0 => PendingState::Taken(moment),
            _ => PendingState::Waiting(moment),
        },
        error: (!error.is_empty()).then_some(error),
    })
}

fn group_info(value: Value, end: EventId) -> Result<GroupInfo, StoreError> {
    let [name, paused, again, pending, lag, age, next] = wire::tuple(value)?;
    Ok(GroupInfo {
        name: wire::name(name)?,
        paused: wire::number(paused)? == 1,
        lag: wire::number(lag)?,
        lag_age: Duration::from_millis(wire::number_if_any(age)?.unwrap_or(0)),
        pending: wire::number(pending)?,
        redeliveries: wire::number(again)?,
        next: wire::id_if_any(next)?.unwrap_or(end),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Backoff;

    #[test]
    fn scripts_are_told_the_waits_that_differ() {
        let exact = |deliveries: u32, max: u64| TopicSettings {
            max_deliveries: deliveries.try_into().unwrap(),
            backoff: Backoff {
                initial: Duration::from_millis(500),
                max: Duration::from_millis(max),
                jitter: 0.0,
            },
            ..TopicSettings::default()
        };
        assert_eq!(waits(&exact(4, 60_000), 0.5), [500, 1_000, 2_000]);
        assert_eq!(waits(&exact(1, 60_000), 0.5), [500]);
        assert_eq!(waits(&exact(u32::MAX, 3_000), 0.5), [500, 1_000, 2_000, 3_000]);
    }
}
