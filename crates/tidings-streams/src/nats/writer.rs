//! Who writes a group's journal: one call at a time in each process, and whoever is first among processes.
//!
//! A call decides by the replica that its process has. What it then writes is stored only if that replica was up to
//! date; else it reads what is new, and decides once more. A call that has nothing to write reads what is new before it
//! believes so.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use super::Nats;
use super::error::{Refusal, unreadable};
use super::journal::{Entry, RECORD_BYTES_MAX, Replica, State};
use super::link::{Stored, Which};
use super::wire::Message;
use crate::error::{GroupError, StoreError};
use crate::name::Name;

/// What a record has that makes something available to somebody who waits.
pub(super) const WAKES: &str = "Tidings-Wakes";

type Held = Arc<tokio::sync::Mutex<Replica>>;

/// The replicas of one process.
#[derive(Debug, Default)]
pub(super) struct Replicas(Mutex<HashMap<(Name, Name), Held>>);

impl Replicas {
    fn of(&self, topic: &Name, group: &Name) -> Held {
        Arc::clone(self.0.lock().entry((topic.clone(), group.clone())).or_default())
    }

    /// Forgets a group that is not there. Whoever has its replica still writes nothing that is out of date.
    fn forget(&self, topic: &Name, group: &Name) {
        self.0.lock().remove(&(topic.clone(), group.clone()));
    }
}

/// A group's journal, held by one call.
pub(super) struct Writer<'a> {
    pub(super) store: &'a Nats,
    pub(super) topic: &'a Name,
    pub(super) group: &'a Name,
    subject: String,
    replica: OwnedMutexGuard<Replica>,
    /// Whether the replica was up to date at some moment of this call.
    is_fresh: bool,
    /// Whether what this call gives up is told to who watches burials: its answer does not say so.
    pub(super) tells_burials: bool,
}

impl<'a> Writer<'a> {
    pub(super) async fn open(store: &'a Nats, topic: &'a Name, group: &'a Name) -> Self {
        let replica = store.replicas.of(topic, group).lock_owned().await;
        let subject = store.names.group(topic, group);
        Self { store, topic, group, subject, replica, is_fresh: false, tells_burials: false }
    }

    /// The group as it is known.
    pub(super) async fn state(&mut self) -> Result<&State, GroupError> {
        if self.replica.state.is_none() {
            self.freshen().await?;
        }
        if self.replica.state.is_none() {
            self.forget();
        }
        self.replica.state.as_ref().ok_or(GroupError::Unknown)
    }

    /// Forgets the replica of a group that is not there: names that somebody makes up are not kept.
    pub(super) fn forget(&self) {
        self.store.replicas.forget(self.topic, self.group);
    }

    /// The group as it is known, if it is there as far as that is known.
    pub(super) fn known(&self) -> Option<&State> {
        self.replica.state.as_ref()
    }

    /// Reads what is new, unless this call has already. Whether it has now.
    pub(super) async fn freshen(&mut self) -> Result<bool, StoreError> {
        if self.is_fresh {
            return Ok(false);
        }
        self.read_new().await?;
        Ok(true)
    }

    async fn read_new(&mut self) -> Result<(), StoreError> {
        let stream = self.store.names.groups_stream();
        loop {
            let Some(newest) = self.store.link.get(&stream, Which::LastOf(&self.subject)).await? else {
                // It was removed, and nothing is left that says so.
                *self.replica = Replica::default();
                break;
            };
            if newest.sequence < self.replica.last {
                // Somebody has put an older journal in its place.
                *self.replica = Replica::default();
            }
            if self.read_up_to(&stream, newest).await? {
                break;
            }
        }
        self.is_fresh = true;
        Ok(())
    }

    /// Whether everything was there.
    async fn read_up_to(&mut self, stream: &str, newest: Stored) -> Result<bool, StoreError> {
        let last = newest.sequence;
        while self.replica.last < last {
            let from = self.replica.last + 1;
            if from == last {
                self.apply(&newest)?;
                break;
            }
            match self.store.link.get(stream, Which::NextOf(&self.subject, from)).await? {
                Some(next) => self.apply(&next)?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn apply(&mut self, stored: &Stored) -> Result<(), StoreError> {
        let entries: Vec<Entry> = serde_json::from_slice(&stored.payload)
            .map_err(|error| unreadable("record of a group's journal", &error))?;
        self.replica.apply(stored.sequence, &entries);
        Ok(())
    }

    /// Writes a record. `false`: others have written since; what they wrote is read, and nothing was written.
    pub(super) async fn append(&mut self, entries: Vec<Entry>, wakes: bool) -> Result<bool, StoreError> {
        if !self.append_one(&entries, wakes).await? {
            return Ok(false);
        }
        if self.replica.is_long() {
            self.begin_anew().await;
        }
        Ok(true)
    }

    async fn append_one(&mut self, entries: &[Entry], wakes: bool) -> Result<bool, StoreError> {
        let mut headers = HeaderMap::new();
        if wakes {
            headers.insert(WAKES, "1");
        }
        let payload = serde_json::to_vec(entries).expect("it has text keys only").into();
        let message = Message { headers, payload };
        let place = (self.store.names.groups_stream(), self.subject.clone());
        match self.store.link.store_behind((&place.0, place.1), self.replica.last, message).await {
            Ok(sequence) => {
                self.replica.apply(sequence, entries);
                self.is_fresh = true;
                Ok(true)
            }
            Err(Refusal::Behind) => {
                self.read_new().await?;
                Ok(false)
            }
            Err(refusal) => Err(refusal.into_store()),
        }
    }

    /// Stores the whole state, and removes what came before. That it could not is no reason for the call to fail: the
    /// journal stays as it is, and another call tries again.
    async fn begin_anew(&mut self) {
        let Some(parts) = self.known().map(|state| state.parts(RECORD_BYTES_MAX)) else { return };
        for part in parts {
            match self.append_one(&[Entry::State(Box::new(part))], false).await {
                Ok(true) => {}
                Ok(false) => return self.replica.put_off(),
                Err(error) => {
                    self.replica.put_off();
                    return self.tell(&error, "a group's state could not be stored");
                }
            }
        }
        if let Err(error) = self.purge_below(self.replica.whole()).await {
            self.tell(&error, "the journal of a group could not be cut");
        }
    }

    fn tell(&self, error: &StoreError, what: &str) {
        let (topic, group) = (self.topic, self.group);
        tracing::debug!(error = error as &dyn std::error::Error, %topic, %group, "{what}");
    }

    async fn purge_below(&self, sequence: u64) -> Result<(), StoreError> {
        let stream = self.store.names.groups_stream();
        self.store.link.purge(&stream, Some(&self.subject), sequence).await.map(drop)
    }

    /// Removes what is left of a group that was removed.
    pub(super) async fn clear(mut self) {
        if let Err(error) = self.purge_below(self.replica.last + 1).await {
            self.tell(&error, "what is left of a group could not be removed");
        }
        *self.replica = Replica::default();
        self.forget();
    }
}
