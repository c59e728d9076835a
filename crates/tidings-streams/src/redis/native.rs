//! Reading new events by the server's own command, where that is all there is to do: it hands them on at a third of what
//! a script costs.
//!
//! Whether that is so the server says in the same step, when they are read already. What must not be handed out after
//! all is given back, and a script takes over until it has filled a whole request with new events. If this process ends
//! before it has given them back, they come again after their time as if somebody had had them, or where nobody is to
//! have them yet, are put back then.

use std::collections::HashSet;

use parking_lot::Mutex;
use redis::Value;

use super::error::{of_group, unexpected};
use super::groups::millis;
use super::link::Repeat;
use super::script::{Call, Clock};
use super::{Redis, wire};
use crate::call::{Delivered, ReceiveRequest, Tag};
use crate::error::GroupError;
use crate::event::Event;
use crate::id::Timestamp;
use crate::name::Name;
use crate::settings::{Topic, WAIT_MAX};

/// Events that are read at a time. With [`PAYLOAD_MAX`] that is 8 MiB; of what is published meanwhile each may be of the
/// largest size.
const EVENTS_MAX: usize = 128;

/// Of fewer the transaction costs as much as the script.
const EVENTS_MIN: usize = 8;

/// Payload beyond which a script reads the next events, for it counts their bytes.
const PAYLOAD_MAX: usize = 64 << 10;

/// Groups of which it is remembered that they have nothing but new events; further ones go by the script.
const GROUPS_MAX: usize = 1_024;

/// Groups that had nothing but new events the last time, and enough of them.
#[derive(Debug, Default)]
pub(super) struct Flowing(Mutex<HashSet<(Name, Name)>>);

impl Flowing {
    fn has(&self, topic: &Name, group: &Name) -> bool {
        let groups = self.0.lock();
        !groups.is_empty() && groups.contains(&(topic.clone(), group.clone()))
    }

    /// Remembers what a request came to.
    pub(super) fn note(&self, (topic, group): (&Topic, &Name), max: usize, taken: &[Delivered]) {
        let is_new = |one: &Delivered| one.tag.attempt == 1 && one.event.payload.len() <= PAYLOAD_MAX;
        let flows = !topic.settings.ordered
            && max >= EVENTS_MIN
            && taken.len() >= max.min(EVENTS_MAX)
            && taken.iter().all(is_new);
        let key = (topic.name.clone(), group.clone());
        let mut groups = self.0.lock();
        if flows && (groups.len() < GROUPS_MAX || groups.contains(&key)) {
            groups.insert(key);
        } else {
            groups.remove(&key);
        }
    }
}

impl Redis {
    /// Takes new events if that is all there is to do for a group. `None`: it is not, or not known to be.
    pub(super) async fn take_new(
        &self,
        topic: &Topic,
        group: &Name,
        request: &ReceiveRequest,
    ) -> Result<Option<Vec<Delivered>>, GroupError> {
        // By another clock than the server's each delivery is noted.
        let is_able = self.link.scripts().clock() == Clock::Server && request.max >= EVENTS_MIN;
        if !is_able || !self.flowing.has(&topic.name, group) {
            return Ok(None);
        }
        let max = request.max.min(EVENTS_MAX);
        let (idle, script) = (millis(topic.settings.min_idle_time), &self.link.scripts().peek);
        let peek = Call::new(script, &self.base, topic.name.as_str(), group.as_str()).arg(idle).arg(max);
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(group.as_str()).arg(request.consumer.as_str()).arg("COUNT").arg(max);
        read.arg("STREAMS").arg(format!("{}stream/{}", self.base, topic.name)).arg(">");
        let mut both = redis::pipe();
        both.atomic().ignore_errors().add_command(peek.command).add_command(read);
        // What an unheard call took comes back after its time: to take more instead is what the caller wants.
        let answer = self.link.transact(&both, script, Repeat::Harmless).await.map_err(of_group)?;
        let [said, found] = wire::tuple(answer)?;
        if said == Value::Nil {
            return Err(GroupError::Unknown);
        }
        let [epoch, until, is_free] = wire::tuple(said)?;
        let (epoch, until) = (wire::number(epoch)?, wire::number(until)?);
        let mut events = Vec::with_capacity(max);
        if found != Value::Nil {
            let [of_stream] = wire::tuple(found)?;
            let [_, entries] = wire::tuple(of_stream)?;
            for (id, fields) in wire::entries(entries)? {
                events.push(wire::event(id, fields)?);
            }
        }
        let is_free = wire::number(is_free)? == 1;
        let now = until.saturating_sub(idle);
        let (taken, back): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| is_free && is_to_be_had(event, group, now));
        if !back.is_empty() {
            self.give_back(topic, group, (&request.consumer, epoch), &back).await?;
        }
        let deliver = |event| Delivered { event, tag: Tag { epoch, attempt: 1 }, until: Timestamp(until) };
        let taken: Vec<Delivered> = taken.into_iter().map(deliver).collect();
        self.flowing.note((topic, group), max, &taken);
        Ok(Some(taken).filter(|taken| !taken.is_empty()))
    }

    /// Gives back what a consumer has read and nobody is to have yet. Said late or twice it does no more than that.
    async fn give_back(
        &self,
        topic: &Topic,
        group: &Name,
        (consumer, epoch): (&Name, u64),
        events: &[Event],
    ) -> Result<(), GroupError> {
        let script = &self.link.scripts().give_back;
        let mut call = Call::new(script, &self.base, topic.name.as_str(), group.as_str())
            .arg(millis(WAIT_MAX))
            .arg(consumer.as_str())
            .arg(epoch);
        for event in events {
            call = call.arg(wire::id_text(event.id));
        }
        match self.link.run(call, script, Repeat::Harmless).await.map_err(of_group)? {
            Value::Nil => Err(GroupError::Unknown),
            Value::Int(_) => Ok(()),
            _ => Err(unexpected("number").into()),
        }
    }
}

/// Whether an event is this group's, and its moment has come.
fn is_to_be_had(event: &Event, group: &Name, now: u64) -> bool {
    let is_its = event.retried.as_ref().is_none_or(|retried| retried.group == *group);
    is_its && event.not_before.is_none_or(|moment| moment.0 <= now)
}
