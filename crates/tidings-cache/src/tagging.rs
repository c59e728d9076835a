//! Tags of entries: whence they come, where they are noted, and what a flight that brings some may store.

use std::sync::atomic::Ordering;

use tidings_proto::codec;
use tidings_proto::time::Tick;

use crate::clock::COARSE_LAG;
use crate::core::{Core, ShardGuard};
use crate::key::{Key, KeyRef, SHARDS};
use crate::recent::Candidate;
use crate::tags::{TagError, Tags};

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// The tags of an entry: those that it is given and those that are computed. Runs user code: call without any lock.
    #[inline]
    pub(crate) fn tags_of(
        &self,
        (key, typed): (KeyRef<'_>, Option<&K>),
        value: &V,
        given: &[String],
    ) -> Result<Tags, TagError> {
        let mut tags = Tags::default();
        if given.is_empty() && self.tagger.is_none() {
            return Ok(tags);
        }
        given.iter().try_for_each(|tag| tags.add(self.id, tag))?;
        if let Some(tagger) = &self.tagger {
            let decoded = if typed.is_none() { codec::decode::<K>(key.bytes).ok() } else { None };
            tagger(typed.or(decoded.as_ref()).ok_or(TagError::Key)?, value, &mut tags)?;
        }
        Ok(tags)
    }

    /// Notes the tags of an entry that was stored. Call under its shard lock.
    #[inline]
    pub(crate) fn set_tags(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>, tags: Tags) {
        if tags.is_empty() {
            return shard.untag(key);
        }
        if !self.keeps_tags() {
            self.tagged.store(true, Ordering::Release);
        }
        let index = shard.tags.get_or_insert_default();
        index.set(key, tags);
        index.probe(|key| self.entries.contains_key(&key));
    }

    /// Whether an entry that has no tag here has none. If nothing was ever tagged, nobody knows.
    pub(crate) fn keeps_tags(&self) -> bool {
        self.tagged.load(Ordering::Acquire)
    }

    /// An absence that began no later than this is not read any more.
    pub(crate) fn newest_tag(&self) -> Tick {
        Tick(self.newest_tag.load(Ordering::Acquire))
    }

    /// Makes absences that were found before this moment unreadable.
    pub(crate) fn end_absences(&self, at: Tick) {
        self.newest_tag.fetch_max(at.0, Ordering::AcqRel);
    }

    /// How many entries are known by their tags.
    pub(crate) fn tagged(&self) -> usize {
        (0..SHARDS).map(|index| self.shard_at(index).tags.as_ref().map_or(0, |tags| tags.len())).sum()
    }

    /// When a flight began, to be compared with moments: these may be early by what a coarse clock lags, and of a replica
    /// that lags too nothing else makes up for that.
    pub(crate) fn dated(&self, began: Tick) -> Tick {
        if self.settings.replica_lag.is_zero() { began } else { began.before(COARSE_LAG) }
    }

    /// Whether a tag or prefix was invalidated since a flight began that names what it wants to store. Call under the
    /// key's shard lock.
    #[inline]
    pub(crate) fn was_named(
        &self,
        shard: &ShardGuard<'_, V>,
        key: KeyRef<'_>,
        tags: &Tags,
        began: Tick,
    ) -> bool {
        let began = self.dated(began);
        began <= shard.mark && {
            let candidate = Candidate { slot: key.slot(), text: self.text(key), tags, began };
            self.recents.name(candidate)
        }
    }
}
