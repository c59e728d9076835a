//! An entry, and how it lies in moka's table.
//!
//! What moka holds as a *key* leads to the entry, too. A table compares the key that it has found before it does
//! anything else, and never copies it: so that is where a hit is judged and its value cloned, and how an entry is
//! found that is exchanged for another in its place. moka keeps what it is for: finding keys without a lock, what goes
//! for want of room, and when. As plain values, entries would be inserted anew at every change, with four allocations
//! and a round of moka's memory reclamation each, and every read of one would be an access that moka writes down.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

use equivalent::Equivalent;
use parking_lot::RwLock;
use tidings_proto::replicate::EntryBirth;
use tidings_proto::time::Tick;

use crate::key::{KeyRef, StoredKey};

/// A value, and what a read judges it by.
#[derive(Clone, Debug)]
pub(crate) struct Entry<V> {
    value: Option<V>,
    /// When the load that brought it began.
    pub(crate) began: Tick,
    /// When its time to live is over.
    pub(crate) expires: Tick,
    /// Its slot's epoch when the load began.
    pub(crate) epoch: u32,
    /// What it weighs, where the capacity is a weight.
    pub(crate) weight: u32,
}

impl<V> Entry<V> {
    /// Without a value, what it remembers is that there is none.
    pub(crate) fn new(value: Option<V>, began: Tick, expires: Tick, epoch: u32) -> Self {
        Self { value, began, expires, epoch, weight: 1 }
    }

    #[inline]
    pub(crate) fn into_value(self) -> Option<V> {
        self.value
    }

    #[inline]
    pub(crate) fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// What tells it from others of its key.
    #[inline]
    pub(crate) fn birth(&self) -> EntryBirth {
        EntryBirth { began: self.began, epoch: self.epoch }
    }

    /// What it remembers is that there is no value.
    #[inline]
    pub(crate) fn is_absence(&self) -> bool {
        self.value.is_none()
    }
}

/// An entry as moka's value: it is let go of with that. Who writes has its key's shard lock; a reader waits while an entry
/// is moved, and no writer waits for a reader.
pub(crate) type Kept<V> = Arc<RwLock<Entry<V>>>;

/// Exchanges an entry, unless somebody reads it: then what was offered comes back.
#[inline]
pub(crate) fn exchange<V>(kept: &Kept<V>, entry: Entry<V>) -> Result<Entry<V>, Entry<V>> {
    match kept.try_write() {
        Some(mut place) => Ok(std::mem::replace(&mut *place, entry)),
        None => Err(entry),
    }
}

/// A key that leads to its entry. moka may keep keys for a while of which it has let go, and then this leads nowhere.
#[derive(Debug)]
pub(crate) struct Stored<V> {
    key: StoredKey,
    entry: Weak<RwLock<Entry<V>>>,
}

impl<V> Stored<V> {
    pub(crate) fn new(key: StoredKey, kept: &Kept<V>) -> Self {
        Self { key, entry: Arc::downgrade(kept) }
    }

    pub(crate) fn key(&self) -> KeyRef<'_> {
        self.key.borrowed()
    }

    #[inline]
    pub(crate) fn kept(&self) -> Option<Kept<V>> {
        self.entry.upgrade()
    }

    #[inline]
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Entry<V>) -> R) -> Option<R> {
        let kept = self.kept()?;
        let entry = kept.read();
        Some(look(&entry))
    }
}

impl<V> PartialEq for Stored<V> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<V> Eq for Stored<V> {}

impl<V> Hash for Stored<V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

/// A key that is looked for, and what is done where it is found. A table that is changed meanwhile may find it more than
/// once.
pub(crate) struct Looking<'a, Q, R, F> {
    key: &'a Q,
    found: Cell<Option<R>>,
    look: F,
}

impl<'a, Q, R, F> Looking<'a, Q, R, F> {
    #[inline]
    pub(crate) fn new(key: &'a Q, look: F) -> Self {
        Self { key, found: Cell::new(None), look }
    }

    /// What came of it, the last time.
    #[inline]
    pub(crate) fn found(self) -> Option<R> {
        self.found.into_inner()
    }
}

impl<Q: Hash, R, F> Hash for Looking<'_, Q, R, F> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl<V, Q: Equivalent<StoredKey>, R, F: Fn(&Stored<V>) -> Option<R>> Equivalent<Stored<V>>
    for Looking<'_, Q, R, F>
{
    #[inline]
    fn equivalent(&self, stored: &Stored<V>) -> bool {
        let is_it = self.key.equivalent(&stored.key);
        if is_it {
            self.found.set((self.look)(stored));
        }
        is_it
    }
}

#[cfg(test)]
mod tests {
    use tidings_proto::hash::CacheId;

    use super::*;
    use crate::key::Encoded;

    fn stored(value: u64) -> (Stored<u64>, Kept<u64>) {
        let key = Encoded::new(CacheId(1), "k").expect("a short key");
        let kept = Arc::new(RwLock::new(Entry::new(Some(value), Tick(1), Tick::FOREVER, 1)));
        (Stored::new(key.borrowed().stored(), &kept), kept)
    }

    #[test]
    fn a_key_that_moka_has_let_go_of_leads_nowhere() {
        let (stored, kept) = stored(7);
        assert_eq!(stored.look(|entry| entry.value().copied()), Some(Some(7)));
        drop(kept);
        assert_eq!(stored.look(|entry| entry.value().copied()), None);
    }

    #[test]
    fn an_entry_that_is_read_is_not_exchanged_and_nobody_waits() {
        let (stored, kept) = stored(7);
        let other = || Entry::new(Some(8), Tick(2), Tick::FOREVER, 1);
        let looked = stored.look(|entry| {
            let offered = exchange(&kept, other()).expect_err("it is being read");
            assert_eq!((entry.value(), offered.value()), (Some(&7), Some(&8)));
        });
        assert!(looked.is_some());
        let was = exchange(&kept, other()).expect("nobody reads it");
        assert_eq!((was.value(), stored.look(|entry| entry.value().copied())), (Some(&7), Some(Some(8))));
    }
}
