//! Retention: what goes, and what stays for groups.

use futures_util::StreamExt;

use super::Nats;
use super::journal::{Entry, Grave};
use super::topics::{Extent, MESSAGES_AT_A_TIME};
use super::wire::stored_bytes;
use super::writer::Writer;
use crate::call::{Maintained, TrimMode, Trimmed};
use crate::error::{GroupError, StoreError};
use crate::ledger::{Rules, Step};
use crate::name::Name;
use crate::settings::{Retention, Topic};

/// Events of a group that become dead letters at a time: in one record, and before it is noted that they are stored.
pub(super) const BURIED_AT_A_TIME: usize = 64;

impl Nats {
    /// Removes the oldest events by limits.
    pub(super) async fn remove(
        &self,
        topic: &Topic,
        limits: &Retention,
        mode: TrimMode,
    ) -> Result<Trimmed, StoreError> {
        let stream = self.names.topic_stream(&topic.name);
        let Some(info) = self.link.info(&stream).await? else { return Ok(Trimmed::default()) };
        let extent = Extent::of(&info);
        let cut = self.cut(&stream, limits, extent, info.state.bytes).await?;
        if cut <= extent.first {
            return Ok(Trimmed::default());
        }
        let floor = if mode.force { cut } else { self.floor(&topic.name).await?.clamp(extent.first, cut) };
        let (removed, bytes) = if floor == extent.first {
            (0, 0)
        } else if mode.dry_run {
            let gone = Extent { first: extent.first, last: floor - 1 };
            (floor - extent.first, self.bytes_of(&stream, gone).await?)
        } else {
            let removed = self.link.purge(&stream, None, floor).await?;
            (removed, self.bytes_gone(&stream, extent, info.state.bytes).await?)
        };
        if mode.force && !mode.dry_run {
            self.take_from_groups(&topic.name, floor).await?;
        }
        Ok(Trimmed { removed, bytes, kept_for_groups: cut - floor })
    }

    /// The first event that limits leave.
    async fn cut(
        &self,
        stream: &str,
        limits: &Retention,
        extent: Extent,
        bytes: u64,
    ) -> Result<u64, StoreError> {
        let mut cut = extent.first;
        if let Some(max) = limits.max_events {
            cut = cut.max((extent.last + 1).saturating_sub(max));
        }
        if let Some(max) = limits.max_age {
            // What is exactly as old as it may be stays.
            cut = cut.max(self.first_at(stream, self.link.now().before(max), extent).await?);
        }
        if let Some(surplus) =
            limits.max_bytes.and_then(|max| bytes.checked_sub(max)).filter(|more| *more > 0)
        {
            cut = cut.max(self.behind_bytes(stream, extent, surplus).await?);
        }
        Ok(cut)
    }

    /// The number behind the oldest events of so many bytes at least.
    async fn behind_bytes(&self, stream: &str, extent: Extent, surplus: u64) -> Result<u64, StoreError> {
        let sequences = extent.first..=extent.last;
        let mut messages = std::pin::pin!(self.messages(stream, sequences, MESSAGES_AT_A_TIME));
        let mut bytes = 0;
        while let Some((sequence, message)) = messages.next().await {
            bytes += message?.as_ref().map_or(0, stored_bytes);
            if bytes >= surplus {
                return Ok(sequence + 1);
            }
        }
        Ok(extent.last + 1)
    }

    /// By how many bytes a stream is smaller than it was, what came meanwhile left aside.
    async fn bytes_gone(&self, stream: &str, was: Extent, bytes: u64) -> Result<u64, StoreError> {
        let Some(info) = self.link.info(stream).await? else { return Ok(bytes) };
        let new = Extent { first: was.last + 1, last: Extent::of(&info).last };
        Ok((bytes + self.bytes_of(stream, new).await?).saturating_sub(info.state.bytes))
    }

    /// What events take, in bytes.
    async fn bytes_of(&self, stream: &str, extent: Extent) -> Result<u64, StoreError> {
        let sequences = extent.first..=extent.last;
        let mut messages = std::pin::pin!(self.messages(stream, sequences, MESSAGES_AT_A_TIME));
        let mut bytes = 0;
        while let Some((_, message)) = messages.next().await {
            bytes += message?.as_ref().map_or(0, stored_bytes);
        }
        Ok(bytes)
    }

    /// The lowest event that a group still needs.
    async fn floor(&self, topic: &Name) -> Result<u64, StoreError> {
        let mut floor = u64::MAX;
        for group in self.group_names(topic).await? {
            let mut writer = Writer::open(self, topic, &group).await;
            writer.freshen().await?;
            floor = floor.min(writer.known().map_or(u64::MAX, super::journal::State::lowest));
        }
        Ok(floor)
    }

    /// Tells groups that what is below a number is gone.
    async fn take_from_groups(&self, topic: &Name, below: u64) -> Result<(), StoreError> {
        for group in self.group_names(topic).await? {
            self.link.within(self.take_from_group(topic, &group, below)).await?;
        }
        Ok(())
    }

    async fn take_from_group(&self, topic: &Name, group: &Name, below: u64) -> Result<(), StoreError> {
        let mut writer = Writer::open(self, topic, group).await;
        loop {
            writer.freshen().await?;
            let Some(state) = writer.known() else { return Ok(()) };
            if state.ledger.lowest() >= below {
                return Ok(());
            }
            // Others of a lane may go on.
            if writer.append(vec![Entry::Step(Step::Lost { below })], true).await? {
                return Ok(());
            }
        }
    }

    pub(super) async fn look_after(&self, topic: &Topic) -> Result<Maintained, StoreError> {
        let mut maintained = Maintained::default();
        self.compare_clocks_if_it_is_time().await?;
        if self.extent(&topic.name).await?.is_none() {
            return Ok(maintained);
        }
        for group in self.group_names(&topic.name).await? {
            maintained.buried += self.bury_spent(topic, &group).await?;
        }
        let limits = &topic.settings.retention;
        if !limits.is_unlimited() {
            maintained.trimmed = self.remove(topic, limits, TrimMode::default()).await?;
        }
        Ok(maintained)
    }

    /// Gives up what nobody settled in time: how many events.
    async fn bury_spent(&self, topic: &Topic, group: &Name) -> Result<u64, StoreError> {
        let mut buried = 0;
        loop {
            match self.link.within(self.bury_some(topic, group)).await {
                Ok((some, more)) => {
                    buried += some;
                    if !more {
                        return Ok(buried);
                    }
                }
                Err(GroupError::Unknown) => return Ok(buried),
                Err(GroupError::Store(error)) => return Err(error),
            }
        }
    }

    /// How many events it has given up now, and whether there may be more.
    async fn bury_some(&self, topic: &Topic, group: &Name) -> Result<(u64, bool), GroupError> {
        let mut writer = Writer::open(self, &topic.name, group).await;
        writer.freshen().await?;
        loop {
            let state = writer.state().await?;
            // What somebody else began may be left, too, and comes first.
            let is_left = !state.burying.is_empty();
            let graves = graves(state, topic, self.link.now());
            let some = graves.len() as u64;
            if some == 0 || writer.append(graves, topic.settings.ordered).await? {
                writer.bury_some().await?;
                return Ok((some, some > 0 || is_left));
            }
        }
    }
}

/// What nobody settled in time, for the last time. Nothing as long as there are others whose dead letters are not
/// stored: with a server that is slow they would become more and more.
pub(super) fn graves(state: &super::journal::State, topic: &Topic, now: crate::id::Timestamp) -> Vec<Entry> {
    if !state.burying.is_empty() {
        return Vec::new();
    }
    let rules = Rules { settings: &topic.settings, now, random: 0.5 };
    let spent = state.ledger.spent(rules).into_iter().take(BURIED_AT_A_TIME);
    let stream = &topic.settings.dead_letter;
    spent.map(|burial| Entry::Bury(Grave { stream: stream.clone(), burial })).collect()
}
