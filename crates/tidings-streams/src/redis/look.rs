//! What topics hold, retention, and dead letters.

use std::time::Duration;

use redis::Value;

use super::groups::millis;
use super::link::{Link, Repeat};
use super::script::{Call, Script};
use super::{Redis, wire};
use crate::call::{
    DeadLetterPage, DeadLetters, EventPage, Maintained, Order, PAGE_EVENTS_MAX, Page, TopicInfo, TrimMode,
    Trimmed,
};
use crate::error::{DeadLetterError, StoreError};
use crate::event::DeadLetter;
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;
use crate::settings::{Retention, Topic};

/// Most events that retention removes behind one maintenance: the server does nothing else meanwhile, and what is left
/// over goes next time.
const RETAINED_BY_MAINTENANCE: u64 = 50_000;

/// Entries that are asked for at a time where nobody knows how large they are.
const ENTRIES_AT_A_TIME: usize = 64;

/// Payloads of a page, in bytes; one part more may come.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Dead letters that are looked through for one page; a filter that takes few yields short pages.
const LOOKED_MAX: usize = 10_000;

/// Most dead letters that one command removes.
const PURGED_AT_A_TIME: usize = 1_000;

/// The server lists each consumer that a group ever had. Who has nothing and has done nothing for so long is taken off,
/// in this share of all maintenance.
const CONSUMER_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);
const CONSUMERS_FORGOTTEN: f64 = 0.01;

impl Redis {
    pub(super) async fn list_topics(&self) -> Result<Vec<Name>, StoreError> {
        let mut command = redis::cmd("HKEYS");
        command.arg(format!("{}topics", self.base));
        let names = wire::list(self.link.read(&command).await?)?;
        let mut names = names.into_iter().map(wire::name).collect::<Result<Vec<_>, _>>()?;
        names.sort();
        Ok(names)
    }

    pub(super) async fn topic_info(&self, topic: &Topic) -> Result<Option<TopicInfo>, StoreError> {
        let script = &self.link.scripts().topic;
        let answer = self.link.run(self.of_topic(script, topic), script, Repeat::Harmless).await?;
        if answer == Value::Nil {
            return Ok(None);
        }
        let [events, bytes, first, last, groups] = wire::tuple(answer)?;
        let last = wire::id_if_any(last)?;
        Ok(Some(TopicInfo {
            name: topic.name.clone(),
            events: wire::number(events)?,
            bytes: wire::number(bytes)?,
            first: wire::id_if_any(first)?,
            last,
            last_time: last.map(|last| Timestamp(last.major())),
            groups: usize::try_from(wire::number(groups)?).unwrap_or(usize::MAX),
        }))
    }

    pub(super) async fn page(&self, topic: &Topic, page: &Page) -> Result<EventPage, StoreError> {
        let limit = page.limit.min(PAGE_EVENTS_MAX);
        let Some(mut range) = Range::of(page) else { return Ok(EventPage::default()) };
        let (mut found, mut bytes) = (EventPage::default(), 0);
        loop {
            // One more than fits says whether anything is left.
            let wanted = (limit + 1 - found.events.len()).min(ENTRIES_AT_A_TIME);
            let entries = self.range(&format!("{}stream/{}", self.base, topic.name), &range, wanted).await?;
            let is_all = entries.len() < wanted;
            for (id, fields) in entries {
                if found.events.len() >= limit || bytes >= PAGE_BYTES_MAX {
                    found.next = found.events.last().map(|event| event.id);
                    return Ok(found);
                }
                let event = wire::event(id, fields)?;
                bytes += event.payload.len();
                range.go_on_behind(id);
                found.events.push(event);
            }
            if is_all {
                return Ok(found);
            }
        }
    }

    async fn range(
        &self,
        key: &str,
        range: &Range,
        count: usize,
    ) -> Result<Vec<(EventId, Value)>, StoreError> {
        let mut command = match range.order {
            Order::Ascending => redis::cmd("XRANGE"),
            Order::Descending => redis::cmd("XREVRANGE"),
        };
        let (first, last) = range.ends();
        command.arg(key).arg(first).arg(last).arg("COUNT").arg(count);
        wire::entries(self.link.read(&command).await?)
    }

    async fn entry(&self, key: &str, id: EventId) -> Result<Option<Value>, StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(key).arg(wire::id_text(id)).arg(wire::id_text(id));
        let entries = wire::entries(self.link.read(&command).await?)?;
        Ok(entries.into_iter().next().map(|(_, fields)| fields))
    }

    pub(super) async fn one_event(
        &self,
        topic: &Topic,
        id: EventId,
    ) -> Result<Option<crate::event::Event>, StoreError> {
        let fields = self.entry(&format!("{}stream/{}", self.base, topic.name), id).await?;
        fields.map(|fields| wire::event(id, fields)).transpose()
    }

    pub(super) async fn remove(
        &self,
        topic: &Topic,
        limits: &Retention,
        mode: TrimMode,
        most: u64,
    ) -> Result<Trimmed, StoreError> {
        remove(&self.link, &self.base, topic, (limits, mode, most)).await
    }

    pub(super) async fn look_after(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        let script = &self.link.scripts().bury;
        let mut maintained = Maintained::default();
        let idle = if rand::random::<f64>() < CONSUMERS_FORGOTTEN {
            millis(CONSUMER_IDLE_MAX).to_string()
        } else {
            String::new()
        };
        loop {
            let call = self
                .of_topic(script, topic)
                .arg(topic.settings.max_deliveries.get())
                .arg(topic.settings.dead_letter.as_str())
                .arg(rand::random::<f64>())
                .arg(&idle)
                .arg(millis(topic.settings.min_idle_time));
            let [buried, more] = wire::tuple(self.link.run(call, script, Repeat::Harmless).await?)?;
            maintained.buried += wire::number(buried)?;
            if wire::number(more)? == 0 {
                break;
            }
        }
        let limits = &topic.settings.retention;
        if !limits.is_unlimited() {
            maintained.trimmed =
                self.remove(topic, limits, TrimMode::default(), RETAINED_BY_MAINTENANCE).await?;
        }
        Ok(maintained)
    }

    pub(super) async fn list_dead(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        let limit = page.limit.min(PAGE_EVENTS_MAX);
        let after = page.after.map(|after| after.0);
        let whole = Page { after, order: Order::Descending, ..Page::default() };
        let Some(mut range) = Range::of(&whole) else { return Ok(DeadLetters::default()) };
        let (mut listed, mut bytes, mut looked) = (DeadLetters::default(), 0, 0);
        loop {
            let entries = self.range(&self.dead(), &range, ENTRIES_AT_A_TIME).await?;
            let is_all = entries.len() < ENTRIES_AT_A_TIME;
            for (id, fields) in entries {
                let letter = wire::dead_letter(id, fields)?;
                let is_full = listed.letters.len() >= limit || bytes >= PAGE_BYTES_MAX;
                if is_full || looked >= LOOKED_MAX {
                    listed.next = Some(DeadLetterId(range.after));
                    return Ok(listed);
                }
                looked += 1;
                range.go_on_behind(id);
                bytes += letter.event.payload.len();
                if page.filter.takes(&letter.stream, &letter.topic, &letter.group) {
                    listed.letters.push(letter);
                }
            }
            if is_all {
                return Ok(listed);
            }
        }
    }

    pub(super) async fn one_dead(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        let fields = self.entry(&self.dead(), id.0).await?;
        fields.map(|fields| wire::dead_letter(id.0, fields)).transpose()
    }

    pub(super) async fn count_dead(&self) -> Result<u64, StoreError> {
        let mut command = redis::cmd("XLEN");
        command.arg(self.dead());
        wire::number(self.link.read(&command).await?)
    }

    pub(super) async fn retry_dead(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        let script = &self.link.scripts().retry;
        let call = Call::new(script, &self.base, "", "").arg(wire::id_text(id.0));
        let answer = self.link.run(call, script, Repeat::Never).await?;
        match wire::text(answer)?.as_str() {
            "unknown" => Err(DeadLetterError::Unknown),
            "group" => Err(DeadLetterError::NoGroup),
            new => Ok(new.parse().map_err(|_| super::error::unexpected("id"))?),
        }
    }

    pub(super) async fn purge_dead(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        let mut purged = 0;
        for some in ids.chunks(PURGED_AT_A_TIME) {
            let mut command = redis::cmd("XDEL");
            command.arg(self.dead());
            for id in some {
                command.arg(wire::id_text(id.0));
            }
            purged += wire::number(self.link.ask(&command, None, Repeat::Never).await?)?;
        }
        Ok(purged)
    }

    pub(super) fn of_topic(&self, script: &Script, topic: &Topic) -> Call {
        Call::new(script, &self.base, topic.name.as_str(), "")
    }

    fn dead(&self) -> String {
        format!("{}dead", self.base)
    }
}

/// Removes the oldest events of a topic by limits, up to so many.
pub(super) async fn remove(
    link: &Link,
    base: &str,
    topic: &Topic,
    (limits, mode, most): (&Retention, TrimMode, u64),
) -> Result<Trimmed, StoreError> {
    let script = &link.scripts().retain;
    let if_any = |limit: Option<u64>| limit.map_or_else(String::new, |limit| limit.to_string());
    let call = Call::new(script, base, topic.name.as_str(), "")
        .arg(if_any(limits.max_events))
        .arg(if_any(limits.max_age.map(millis)))
        .arg(if_any(limits.max_bytes))
        .arg(u8::from(mode.dry_run))
        .arg(u8::from(mode.force))
        .arg(most);
    let [removed, bytes, kept] = wire::tuple(link.run(call, script, Repeat::Never).await?)?;
    Ok(Trimmed {
        removed: wire::number(removed)?,
        bytes: wire::number(bytes)?,
        kept_for_groups: wire::number(kept)?,
    })
}

/// A part of a stream: what a page may hold.
struct Range {
    order: Order,
    /// The lowest id, itself included.
    first: EventId,
    /// The highest id, itself included.
    last: EventId,
    /// The last id that was passed.
    after: EventId,
}

impl Range {
    /// `None`: nothing fits.
    fn of(page: &Page) -> Option<Self> {
        let from = page.from.map_or(EventId::ZERO, |from| EventId::new(from.0));
        let last = match page.until {
            Some(until) => before(EventId::new(until.0))?,
            None => EventId::MAX,
        };
        let mut range = Self { order: page.order, first: from, last, after: EventId::ZERO };
        if let Some(after) = page.after {
            match page.order {
                Order::Ascending if after == EventId::MAX => return None,
                Order::Ascending => range.first = from.max(wire::id_after(after)),
                Order::Descending => range.last = last.min(before(after)?),
            }
            range.after = after;
        }
        (range.first <= range.last).then_some(range)
    }

    fn go_on_behind(&mut self, id: EventId) {
        self.after = id;
        match self.order {
            Order::Ascending => self.first = wire::id_after(id),
            // There is none before the first, and what is asked for then is nothing.
            Order::Descending => self.last = before(id).unwrap_or(EventId::ZERO),
        }
    }

    fn ends(&self) -> (String, String) {
        let (first, last) = (wire::id_text(self.first), wire::id_text(self.last));
        match self.order {
            Order::Ascending => (first, last),
            Order::Descending => (last, first),
        }
    }
}

/// The id before one.
fn before(id: EventId) -> Option<EventId> {
    match (id.major(), id.minor()) {
        (0, 0) => None,
        (major, 0) => Some(EventId::pair(major - 1, u64::MAX)),
        (major, minor) => Some(EventId::pair(major, minor - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(page: &Page) -> Option<(String, String)> {
        Range::of(page).map(|range| range.ends())
    }

    #[test]
    fn pages_are_ranges_with_both_ends() {
        let whole = Page::default();
        let most = u64::MAX;
        assert_eq!(ends(&whole), Some(("0-0".to_owned(), format!("{most}-{most}"))));
        let some = || Page { from: Some(Timestamp(5)), until: Some(Timestamp(9)), ..Page::default() };
        assert_eq!(ends(&some()), Some(("5-0".to_owned(), format!("8-{most}"))));
        let down = Page { after: Some(EventId::pair(7, 0)), order: Order::Descending, ..some() };
        assert_eq!(ends(&down), Some((format!("6-{most}"), "5-0".to_owned())));
        let behind = Page { after: Some(EventId::pair(6, 2)), ..some() };
        assert_eq!(ends(&behind).unwrap().0, "6-3");
    }

    #[test]
    fn what_nothing_fits_into_is_not_asked_for() {
        assert_eq!(ends(&Page { after: Some(EventId::MAX), ..Page::default() }), None);
        let none = Page { after: Some(EventId::ZERO), order: Order::Descending, ..Page::default() };
        assert_eq!(ends(&none), None);
        assert_eq!(ends(&Page { until: Some(Timestamp(0)), ..Page::default() }), None);
    }
}
