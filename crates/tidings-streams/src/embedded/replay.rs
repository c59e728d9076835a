//! The state that a journal's changes make, and how a topic is opened with its part of it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::Disk;
use super::journal::Change;
use super::log::{Item, Known, Log};
use super::publish::KnownKeys;
use super::ranges::Ranges;
use super::record::{self, Unknown};
use super::store::{Group, Stored};
use crate::error::StoreError;
use crate::id::Timestamp;
use crate::ledger::{Ledger, Step};
use crate::name::Name;

#[derive(Debug, Default)]
pub(super) struct Replayed {
    pub(super) topics: BTreeMap<Name, Topic>,
    pub(super) removed: Ranges,
    pub(super) epoch: u64,
    /// The last dead letter that is known of.
    pub(super) dead: u64,
}

/// What a journal says of a topic.
#[derive(Debug, Default)]
pub(super) struct Topic {
    floor: u64,
    last: u64,
    groups: BTreeMap<Name, Ledger>,
}

impl Replayed {
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Begin | Change::End => {}
            Change::Topic { topic, floor, last } => {
                let topic = self.topics.entry(topic).or_default();
                (topic.floor, topic.last) = (topic.floor.max(floor), topic.last.max(last));
            }
            Change::Group { topic, group, next, epoch, paused } => {
                self.epoch = self.epoch.max(epoch);
                let groups = &mut self.topics.entry(topic).or_default().groups;
                groups.insert(group, Ledger::new(next, epoch, paused));
            }
            Change::Open { topic, group, open } => {
                // Its group may be what is damaged: then everything behind this is looked at again.
                let after = open.last().map_or(0, |(id, _)| id + 1);
                let groups = &mut self.topics.entry(topic).or_default().groups;
                let ledger = groups.entry(group).or_insert_with(|| Ledger::new(after, 0, false));
                open.into_iter().for_each(|(id, open)| ledger.restore(id, open));
            }
            Change::Removed { first, last } | Change::Purged { first, last } => {
                self.removed.insert_range(first, last);
                self.dead = self.dead.max(last);
            }
            Change::Counters { epoch, dead } => {
                (self.epoch, self.dead) = (self.epoch.max(epoch), self.dead.max(dead));
            }
            Change::Created { topic, group, next, epoch } => {
                self.epoch = self.epoch.max(epoch);
                let groups = &mut self.topics.entry(topic).or_default().groups;
                groups.insert(group, Ledger::new(next, epoch, false));
            }
            Change::Dropped { topic, group } => {
                self.topics.entry(topic).or_default().groups.remove(&group);
            }
            Change::Step { topic, group, step } => self.step(topic, group, &step),
            Change::Trimmed { topic, floor } => {
                let topic = self.topics.entry(topic).or_default();
                topic.floor = topic.floor.max(floor);
            }
            Change::Closed { topic: Some(topic), last } => {
                let topic = self.topics.entry(topic).or_default();
                topic.last = topic.last.max(last);
            }
            Change::Closed { topic: None, last } => self.dead = self.dead.max(last),
        }
    }

    fn step(&mut self, topic: Name, group: Name, step: &Step) {
        if let Step::Sought { epoch, .. } = step {
            self.epoch = self.epoch.max(*epoch);
        }
        let groups = &mut self.topics.entry(topic).or_default().groups;
        // Whoever made it may be what is damaged: what a group looked at says where it stood.
        let begins = match step {
            Step::Looked { from, .. } => Some(*from),
            Step::Sought { next, .. } => Some(*next),
            _ => None,
        };
        if let Some(begins) = begins {
            groups.entry(group.clone()).or_insert_with(|| Ledger::new(begins, 0, false));
        }
        if let Some(ledger) = groups.get_mut(&group) {
            ledger.apply(step);
        }
    }
}

/// Opens a topic's log with what the journal says of it. Dead letters that were retried lately are shown.
pub(super) fn open_topic(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    topic: Topic,
    mut retried: impl FnMut(u64),
) -> Result<Stored, StoreError> {
    let looked = topic.groups.values().map(Ledger::next).max().unwrap_or(0);
    let least = (topic.last + 1).max(looked).max(topic.floor).max(1);
    let (mut last_time, mut is_unknown) = (0, false);
    let mut log = Log::open(disk, directory, Known { least, kept: topic.last }, |found| {
        last_time = last_time.max(found.time);
        match record::event_header(found) {
            Ok(header) => header.retried.into_iter().for_each(|retry| retried(retry.dead_letter.0.major())),
            Err(Unknown) => is_unknown = true,
        }
    })?;
    if is_unknown {
        return Err(Unknown.into());
    }
    let floor = if topic.floor == 0 { log.first() } else { topic.floor };
    let groups = topic.groups.into_iter().map(|(name, ledger)| (name, Group::new(ledger))).collect();
    let bytes = log.bytes().saturating_sub(trimmed_bytes(&mut log, floor)?);
    let last_time = Timestamp(last_time);
    Ok(Stored { log, floor, noted: floor, oldest: None, bytes, last_time, groups, keys: KnownKeys::Unread })
}

/// Bytes of what is below the floor and in the same file.
fn trimmed_bytes(log: &mut Log, floor: u64) -> io::Result<u64> {
    let mut bytes = 0;
    let mut walk = log.walk(log.first())?;
    while walk.expected() < floor {
        match walk.next()? {
            Some(Item::Record(record)) => bytes += record.size,
            Some(Item::Gap { bytes: gap, .. }) => bytes += gap,
            None => break,
        }
    }
    Ok(bytes)
}
