//! Dead letters: making them, looking at them, and what operators do with them.
//!
//! That an event is given up is a record of its group's journal. From then on it is delivered to nobody, and is a dead
//! letter. Its message is stored behind that, on a subject of its own that takes one message, and that it is stored is
//! a record again. Where a process ends in between, the next call for the group goes on: what is stored already is
//! refused then, and that is as good.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use tokio::time::Instant;

use super::Nats;
use super::error::Refusal;
use super::journal::{Entry, Grave};
use super::link::{Stored, Which};
use super::names::Names;
use super::retain::BURIED_AT_A_TIME;
use super::topics::{Extent, MESSAGES_AT_A_TIME, PAGE_BYTES_MAX, before};
use super::wire;
use super::writer::Writer;
use crate::call::{DeadLetterPage, DeadLetters, PAGE_EVENTS_MAX};
use crate::error::{DeadLetterError, GroupError, StoreError};
use crate::event::DeadLetter;
use crate::id::{DeadLetterId, EventId};
use crate::settings::{Topic, TopicSettings};

/// Numbers of dead letters that a page looks at, most of them of removed ones maybe.
const LOOKED_MAX: usize = 2_000;

/// Within which part of a call's time dead letters are stored before it is noted that they are: however far away the
/// server is, there is time left to note it.
const BURYING_SHARE: u32 = 3;

/// Dead letters by epoch and event. `None`: the event was gone.
pub(super) type Letters = HashMap<(u64, u64), Option<DeadLetterId>>;

/// What was given up, by epoch and event.
type Graves = Vec<((u64, u64), Grave)>;

impl Writer<'_> {
    /// Stores the dead letters of all that was given up.
    pub(super) async fn bury_all(&mut self) -> Result<(), StoreError> {
        while self.bury_some().await? {}
        Ok(())
    }

    /// Stores some dead letters of what was given up, and notes that they are: a call whose time is over before it has
    /// stored all has done some of it for the next. Whether more are left.
    pub(super) async fn bury_some(&mut self) -> Result<bool, StoreError> {
        let Some(state) = self.known() else { return Ok(false) };
        let graves = state.burying.iter().take(BURIED_AT_A_TIME);
        let graves = graves.map(|(at, grave)| (*at, grave.clone())).collect();
        self.bury_these(graves, &mut Letters::new()).await?;
        // Where others have written, they may have buried some of it, or given up more: what is left says so.
        Ok(self.known().is_some_and(|state| !state.burying.is_empty()))
    }

    /// Stores the dead letters of these, as far as they were given up, and of no others: somebody may have given up
    /// more than there is time for.
    pub(super) async fn bury_only(&mut self, these: &[(u64, u64)]) -> Result<Letters, StoreError> {
        let mut letters = Letters::new();
        loop {
            let burying = self.known().map(|state| &state.burying);
            let graves =
                burying.into_iter().flat_map(|burying| these.iter().map(|at| burying.get_key_value(at)));
            let graves: Vec<_> = graves.flatten().map(|(at, grave)| (*at, grave.clone())).collect();
            if graves.is_empty() {
                return Ok(letters);
            }
            self.bury_these(graves, &mut letters).await?;
        }
    }

    /// Stores some of these dead letters, and notes that they are, unless others have written since.
    async fn bury_these(&mut self, graves: Graves, letters: &mut Letters) -> Result<(), StoreError> {
        if graves.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + self.store.link.timeout() / BURYING_SHARE;
        let mut entries = Vec::with_capacity(graves.len());
        for (at, grave) in &graves {
            if !letters.contains_key(at) {
                letters.insert(*at, self.bury(*at, grave).await?);
            }
            entries.push(Entry::Buried { epoch: at.0, id: at.1 });
            if Instant::now() >= until {
                break;
            }
        }
        self.append(entries, false).await?;
        Ok(())
    }

    async fn bury(&self, at: (u64, u64), grave: &Grave) -> Result<Option<DeadLetterId>, StoreError> {
        let (store, names) = (self.store, &self.store.names);
        let Some(event) = store.one_event(self.topic, EventId::new(at.1)).await? else {
            tracing::warn!(topic = %self.topic, group = %self.group, id = at.1, "what was given up is gone");
            return Ok(None);
        };
        let subject = names.dead(self.topic, self.group, at);
        let mut message = wire::letter(self.topic, self.group, &grave.stream, &grave.burial, &event);
        // Somebody who stood still since before it was buried, retried or purged does not bury it again.
        message.headers.insert(async_nats::header::NATS_MESSAGE_ID, subject.as_str());
        match store.link.store_behind((&names.dead_stream(), subject), 0, message).await {
            Ok(sequence) => {
                if self.tells_burials {
                    store.burials.tell(self.topic, self.group, 1);
                }
                Ok(Some(DeadLetterId(EventId::new(sequence))))
            }
            Err(Refusal::Behind) => self.letter(at).await,
            Err(refusal) => Err(refusal.into_store()),
        }
    }

    /// The dead letter of an event that was given up, if it is there.
    pub(super) async fn letter(&self, at: (u64, u64)) -> Result<Option<DeadLetterId>, StoreError> {
        let (store, names) = (self.store, &self.store.names);
        let subject = names.dead(self.topic, self.group, at);
        let there = store.link.get(&names.dead_stream(), Which::LastOf(&subject)).await?;
        Ok(there.map(|stored| DeadLetterId(EventId::new(stored.sequence))))
    }
}

impl Nats {
    pub(super) async fn list_dead(&self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        let stream = self.names.dead_stream();
        let Some(info) = self.link.info(&stream).await? else { return Ok(DeadLetters::default()) };
        let Extent { first, mut last } = Extent::of(&info);
        if let Some(after) = page.after {
            last = last.min(before(after.0));
        }
        let limit = page.limit.min(PAGE_EVENTS_MAX);
        let mut messages = std::pin::pin!(self.messages(&stream, (first..=last).rev(), MESSAGES_AT_A_TIME));
        let (mut listed, mut bytes, mut looked, mut passed) = (DeadLetters::default(), 0, 0, page.after);
        while let Some((sequence, message)) = messages.next().await {
            let message = message?;
            let is_full = listed.letters.len() >= limit || bytes >= PAGE_BYTES_MAX;
            if looked >= LOOKED_MAX || (is_full && message.is_some()) {
                listed.next = passed;
                break;
            }
            looked += 1;
            passed = Some(DeadLetterId(EventId::new(sequence)));
            let Some(message) = message else { continue };
            let letter = wire::dead_letter(message)?;
            if page.filter.takes(&letter.stream, &letter.topic, &letter.group) {
                bytes += letter.event.payload.len();
                listed.letters.push(letter);
            }
        }
        Ok(listed)
    }

    async fn stored_dead(&self, id: DeadLetterId) -> Result<Option<Stored>, StoreError> {
        if id.0.minor() != 0 || id.0.major() == 0 {
            return Ok(None);
        }
        self.link.get(&self.names.dead_stream(), Which::At(id.0.major())).await
    }

    pub(super) async fn one_dead(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        self.stored_dead(id).await?.map(wire::dead_letter).transpose()
    }

    pub(super) async fn count_dead(&self) -> Result<u64, StoreError> {
        let info = self.link.info(&self.names.dead_stream()).await?;
        Ok(info.map_or(0, |info| info.state.messages))
    }

    pub(super) async fn retry_dead(&self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        let stored = self.stored_dead(id).await?.ok_or(DeadLetterError::Unknown)?;
        let letter = self.end_burial(stored).await.map_err(|error| match error {
            GroupError::Unknown => DeadLetterError::NoGroup,
            GroupError::Store(error) => error.into(),
        })?;
        let topic = Topic { name: letter.topic.clone(), settings: TopicSettings::default().into() };
        self.topic_or_new(&topic, false).await?;
        let subject = self.names.retry(&topic.name, id.0.major());
        let stream = self.names.topic_stream(&topic.name);
        let stored = self.link.store_behind((&stream, subject.clone()), 0, wire::retry(&letter)).await;
        let sequence = match stored {
            Ok(sequence) => sequence,
            // Somebody has published it, and not removed it yet.
            Err(Refusal::Behind) => {
                let there = self.link.get(&stream, Which::LastOf(&subject)).await?;
                there.map(|stored| stored.sequence).ok_or(DeadLetterError::Unknown)?
            }
            Err(refusal) => return Err(refusal.into_store().into()),
        };
        self.delete_dead(id).await?;
        Ok(EventId::new(sequence))
    }

    /// Makes sure that nobody will bury an event again whose dead letter goes.
    async fn end_burial(&self, stored: Stored) -> Result<DeadLetter, GroupError> {
        let at = Names::burial_of(&stored.subject);
        let letter = wire::dead_letter(stored)?;
        let mut writer = Writer::open(self, &letter.topic, &letter.group).await;
        writer.freshen().await?;
        writer.bury_only(at.as_slice()).await?;
        writer.state().await?;
        drop(writer);
        Ok(letter)
    }

    /// Removes a dead letter. Whether it was there.
    async fn delete_dead(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        let request = serde_json::json!({ "seq": id.0.major(), "no_erase": true });
        let what = format!("STREAM.MSG.DELETE.{}", self.names.dead_stream());
        match self.link.api::<serde_json::Value>(what, &request).await {
            Ok(_) => Ok(true),
            Err(Refusal::Missing) => Ok(false),
            // Servers do not all say in the same way that there is none.
            Err(refusal) => match self.stored_dead(id).await? {
                None => Ok(false),
                Some(_) => Err(refusal.into_store()),
            },
        }
    }

    pub(super) async fn purge_dead(&self, ids: &[DeadLetterId]) -> Result<u64, StoreError> {
        let (mut purged, mut seen) = (0, HashSet::new());
        for id in ids.iter().filter(|id| seen.insert(**id)) {
            purged += u64::from(self.link.within(self.purge_one(*id)).await?);
        }
        Ok(purged)
    }

    async fn purge_one(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        let Some(stored) = self.stored_dead(id).await? else { return Ok(false) };
        match self.end_burial(stored).await {
            // Without its group nobody would bury it.
            Ok(_) | Err(GroupError::Unknown) => self.delete_dead(id).await,
            Err(GroupError::Store(error)) => Err(error),
        }
    }
}
