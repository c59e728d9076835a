//! What one of a cache's shard locks guards: the flights of its keys, and the tags of their entries.

use std::sync::Arc;

use tidings_proto::replicate::Replica;
use tidings_proto::time::Tick;

use crate::builder::{Mode, Settings};
use crate::clock::Clock;
use crate::flight::FlightTable;
use crate::key::{KeyRef, StoredKey};
use crate::leader::Waiting;
use crate::notes::Notes;
use crate::replica::Changes;
use crate::replicate;
use crate::tags::TagIndex;
use crate::uncertain::Windows;
use crate::versions::VersionIndex;

/// The state behind a shard's lock.
#[derive(Debug)]
pub(crate) struct Shard<V> {
    pub(crate) flights: FlightTable<Arc<Waiting<V>>>,
    /// When keys changed, where loads read a replica that lags.
    pub(crate) changes: Option<Box<Changes>>,
    /// Of keys and slots whose truth is uncertain; nothing while there are none.
    pub(crate) windows: Option<Box<Windows>>,
    /// Keys whose loaders are not to be asked for a while.
    pauses: Option<Box<Notes>>,
    /// Keys whose entries have tags; nothing before the first.
    pub(crate) tags: Option<Box<TagIndex>>,
    /// Versions of entries; nothing before the first.
    pub(crate) versions: Option<Box<VersionIndex>>,
    /// The last writes of keys, where values travel.
    pub(crate) replica: Option<Box<Replica<StoredKey>>>,
    /// The moment of the newest invalidation of a tag or prefix.
    pub(crate) mark: Tick,
}

impl<V> Shard<V> {
    pub(crate) fn new(settings: &Settings, clock: &Clock) -> Self {
        let lag = Some(settings.replica_lag).filter(|lag| !lag.is_zero());
        Self {
            flights: FlightTable::default(),
            changes: lag.map(|lag| Box::new(Changes::new(clock.clone(), lag))),
            pauses: settings.loads.pauses().then(|| Box::new(Notes::new(settings.loads.retry_after))),
            windows: None,
            tags: None,
            versions: None,
            replica: (settings.mode == Mode::Replicate)
                .then(|| Box::new(Replica::new(replicate::bounds(settings.tombstone_ttl)))),
            mark: Tick::NEVER,
        }
    }

    /// Ends every flight of a key, before it is removed.
    #[inline]
    pub(crate) fn end(&mut self, key: KeyRef<'_>) {
        self.end_flights(key);
        self.untag(key);
        self.unversion(key);
    }

    /// Ends every flight of a key that was changed, and leaves its entry.
    #[inline]
    pub(crate) fn end_flights(&mut self, key: KeyRef<'_>) {
        self.flights.end(key);
        self.note_change(key);
    }

    #[inline]
    fn note_change(&mut self, key: KeyRef<'_>) {
        if let Some(changes) = &mut self.changes {
            changes.note(key.hash);
        }
    }

    /// Forgets the tags of a key whose entry goes.
    #[inline]
    pub(crate) fn untag(&mut self, key: KeyRef<'_>) {
        if let Some(tags) = &mut self.tags {
            tags.remove(key);
        }
    }

    /// The version of a key's entry, if it has one.
    #[inline]
    pub(crate) fn version(&self, key: KeyRef<'_>) -> Option<u64> {
        self.versions.as_ref()?.get(key)
    }

    /// Whether a change leaves a key's entry, which has seen it.
    #[inline]
    pub(crate) fn has_seen(&self, key: KeyRef<'_>, change: Option<u64>) -> bool {
        change.is_some_and(|change| self.version(key) >= Some(change))
    }

    /// Forgets the version of a key whose entry goes, or is replaced by one without.
    #[inline]
    pub(crate) fn unversion(&mut self, key: KeyRef<'_>) {
        if let Some(versions) = &mut self.versions {
            versions.remove(key);
        }
    }

    /// When something begins that begins now: after every tag and prefix that was invalidated.
    #[inline]
    pub(crate) fn after_mark(&self, now: Tick) -> Tick {
        now.max(Tick(self.mark.0 + 1))
    }

    /// Notes the moment of an invalidation of a tag or prefix.
    pub(crate) fn note_mark(&mut self, at: Tick) {
        self.mark = self.mark.max(at);
    }

    /// Leaves a key's loader alone for a while, where the cache does so at all. The one that was left alone first is
    /// asked again for want of room.
    pub(crate) fn pause(&mut self, key: KeyRef<'_>, now: Tick) {
        if let Some(pauses) = &mut self.pauses {
            pauses.note(key.hash, now);
        }
    }

    pub(crate) fn is_paused(&self, key: KeyRef<'_>, now: Tick) -> bool {
        self.pauses.as_ref().is_some_and(|pauses| pauses.holds(key.hash, now))
    }
}
