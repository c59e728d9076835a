//! One loader of a key per cluster: the home of a key gives a lease to who asks first, and who asks meanwhile waits
//! there for what its load brings.
//!
//! The table is pure: time is an argument, and what is to be said to whom is returned. It promises that one load of a
//! key is under way at a time, as far as askers keep to it, and nothing about staleness: who is handed a result judges
//! by [`Wanted::allows`] whether its load began late enough.

mod seen;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::hash::{CacheId, key_hash};
use crate::record::KEY_BYTES_MAX;
use crate::time::{Tick, rate_margin};

pub use seen::{SEEN_MAX, Seen, Wanted, home};
pub use wire::{
    LeaseAnswer, LeaseQuestion, LeaseRef, LeaseWireError, RESULT_BYTES_MAX, SharedLoad, Told, WireAges,
    WireKey,
};

/// Most leases of one home. Beyond, askers are told to load: with 128 bytes of key and table each, half a megabyte.
pub const LEASES_MAX: usize = 4_096;

/// Most bytes of keys under lease, so that the longest keys do not make that sixteen.
pub const LEASED_BYTES_MAX: usize = 1 << 20;

/// Most askers that wait for one key: a waiter stands for a node, or a process behind it, however many callers it has.
pub const WAITERS_PER_LEASE_MAX: usize = 1_024;

/// Most askers that wait at one home.
pub const WAITERS_MAX: usize = 16_384;

/// A key of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseKey {
    /// In which cache.
    pub cache: CacheId,
    /// The encoded key.
    pub bytes: Bytes,
}

impl LeaseKey {
    /// Its hash, the same on every node.
    #[must_use]
    pub fn key_hash(&self) -> u64 {
        key_hash(self.cache, &self.bytes)
    }
}

/// A lease, unique at its home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// How an asker waits, and for how long it would have the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// From then on it does not wait any more.
    pub until: Tick,
    /// How long a lease of the key is good for.
    pub time: Duration,
}

/// How long ago things were by the home's clock, when it handed a result over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// That the lease was given: the load began later.
    pub lease: Duration,
    /// That the asker's question came.
    pub question: Duration,
}

impl Ages {
    /// No later than when the load began, by the clock of the asker, whose question was sent at `asked`. However long
    /// question and answer are on their way, and whichever of the two clocks is the faster one, it is only earlier.
    #[must_use]
    pub fn began(self, asked: Tick, now: Tick) -> Tick {
        let lease = self.lease.saturating_add(rate_margin(self.lease));
        // The question came after it was sent, and nobody has waited for longer than since then.
        let question = self.question.saturating_sub(rate_margin(self.question));
        asked.after(question.min(now.since(asked))).before(lease)
    }
}

/// What an asker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said<R> {
    /// Load, and hand in what comes of it before the lease's time is over.
    Load(LeaseId),
    /// What another's load has brought.
    Brought(R, Ages),
    /// There is no room: load, and hand in nothing.
    Refused,
}

/// An asker, and what it is told. Each asker is told something once, or its patience ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<W, R> {
    /// Who asked.
    pub to: W,
    /// What it is told.
    pub said: Said<R>,
}

/// What became of leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// Leases that were given.
    pub granted: u64,
    /// Askers that were handed what another's load had brought.
    pub shared: u64,
    /// Leases that ended because their key may have changed.
    pub revoked: u64,
    /// Leases whose holders said nothing in time.
    pub expired: u64,
    /// Leases whose holders failed.
    pub failed: u64,
    /// Askers for which there was no room.
    pub refused: u64,
    /// Results that came after the end of their lease.
    pub late: u64,
}

#[derive(Debug)]
struct Waiter<W> {
    to: W,
    asked: Tick,
    /// From then on it is not there any more.
    until: Tick,
}

#[derive(Debug)]
struct Lease<W> {
    id: LeaseId,
    time: Duration,
    granted: Tick,
    deadline: Tick,
    waiters: VecDeque<Waiter<W>>,
}

/// The leases of one home. `W` is what an asker is answered by.
#[derive(Debug)]
pub struct Leases<W> {
    leases: HashMap<LeaseKey, Lease<W>>,
    next: u64,
    bytes: usize,
    waiters: usize,
    counts: LeaseCounts,
}

impl<W> Default for Leases<W> {
    fn default() -> Self {
        Self { leases: HashMap::new(), next: 1, bytes: 0, waiters: 0, counts: LeaseCounts::default() }
    }
}

impl<W> Leases<W> {
    /// What became of leases.
    #[must_use]
    pub fn counts(&self) -> LeaseCounts {
        self.counts
    }

    /// Keys under lease, and askers that wait.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.leases.len(), self.waiters)
    }

    /// Whether a key is under lease.
    #[must_use]
    pub fn is_leased(&self, key: &LeaseKey) -> bool {
        self.leases.contains_key(key)
    }

    /// The keys under lease, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &LeaseKey> {
        self.leases.keys()
    }

    /// Takes an asker. What is returned is said at once; without anything for the asker, it waits.
    pub fn ask<R>(&mut self, key: &LeaseKey, to: W, terms: Terms, now: Tick) -> Vec<Answer<W, R>> {
        let mut answers = self.expire_one(key, now);
        if let Some(lease) = self.leases.get_mut(key) {
            if self.waiters < WAITERS_MAX && lease.waiters.len() < WAITERS_PER_LEASE_MAX {
                lease.waiters.push_back(Waiter { to, asked: now, until: terms.until });
                self.waiters += 1;
                return answers;
            }
        } else if key.bytes.len() <= KEY_BYTES_MAX
            && self.leases.len() < LEASES_MAX
            && self.bytes + key.bytes.len() <= LEASED_BYTES_MAX
        {
            self.bytes += key.bytes.len();
            answers.push(self.grant(key, (to, terms.time), VecDeque::new(), now));
            return answers;
        }
        self.counts.refused += 1;
        answers.push(Answer { to, said: Said::Refused });
        answers
    }

    /// Takes what a load has brought: hands it to those who wait, if its lease has not ended.
    pub fn bring<R: Clone>(
        &mut self,
        key: &LeaseKey,
        id: LeaseId,
        result: &R,
        now: Tick,
    ) -> Vec<Answer<W, R>> {
        let mut answers = self.expire_one(key, now);
        if !self.holds(key, id) {
            self.counts.late += 1;
            return answers;
        }
        if let Some(lease) = self.remove(key) {
            let there = lease.waiters.into_iter().filter(|waiter| now < waiter.until);
            let told = there.map(|Waiter { to, asked, .. }| {
                let ages = Ages { lease: now.since(lease.granted), question: now.since(asked) };
                Answer { to, said: Said::Brought(result.clone(), ages) }
            });
            answers.extend(told.inspect(|_| self.counts.shared += 1));
        }
        answers
    }

    /// Takes that a load has failed: the next one who waits gets the lease.
    pub fn fail<R>(&mut self, key: &LeaseKey, id: LeaseId, now: Tick) -> Vec<Answer<W, R>> {
        let mut answers = self.expire_one(key, now);
        if self.holds(key, id) {
            self.counts.failed += 1;
            answers.extend(self.pass_on(key, now));
        }
        answers
    }

    /// Ends the lease of a key that was changed: what its load brings may be older. The next one who waits gets a new one.
    pub fn revoke<R>(&mut self, key: &LeaseKey, now: Tick) -> Option<Answer<W, R>> {
        self.leases.contains_key(key).then(|| self.counts.revoked += 1)?;
        self.pass_on(key, now)
    }

    /// Ends leases whose time is over, and forgets who waits no longer. Looks at all of them, 0.1 ms at most: call it a few
    /// times per lease time.
    pub fn expire<R>(&mut self, now: Tick) -> Vec<Answer<W, R>> {
        for lease in self.leases.values_mut() {
            let before = lease.waiters.len();
            lease.waiters.retain(|waiter| now < waiter.until);
            self.waiters -= before - lease.waiters.len();
        }
        let over = self.leases.iter().filter(|(_, lease)| lease.deadline <= now);
        let keys: Vec<_> = over.map(|(key, _)| key.clone()).collect();
        keys.iter().flat_map(|key| self.expire_one(key, now)).collect()
    }

    fn expire_one<R>(&mut self, key: &LeaseKey, now: Tick) -> Vec<Answer<W, R>> {
        if self.leases.get(key).is_none_or(|lease| now < lease.deadline) {
            return Vec::new();
        }
        self.counts.expired += 1;
        self.pass_on(key, now).into_iter().collect()
    }

    fn holds(&self, key: &LeaseKey, id: LeaseId) -> bool {
        self.leases.get(key).is_some_and(|lease| lease.id == id)
    }

    fn remove(&mut self, key: &LeaseKey) -> Option<Lease<W>> {
        let lease = self.leases.remove(key)?;
        self.bytes -= key.bytes.len();
        self.waiters -= lease.waiters.len();
        Some(lease)
    }

    /// Ends a lease, and gives a new one to the first who waits.
    fn pass_on<R>(&mut self, key: &LeaseKey, now: Tick) -> Option<Answer<W, R>> {
        let Lease { time, mut waiters, .. } = self.remove(key)?;
        while let Some(Waiter { to, until, .. }) = waiters.pop_front() {
            if now < until {
                self.bytes += key.bytes.len();
                self.waiters += waiters.len();
                return Some(self.grant(key, (to, time), waiters, now));
            }
        }
        None
    }

    fn grant<R>(
        &mut self,
        key: &LeaseKey,
        (to, time): (W, Duration),
        waiters: VecDeque<Waiter<W>>,
        now: Tick,
    ) -> Answer<W, R> {
        let id = LeaseId(self.next);
        self.next += 1;
        self.counts.granted += 1;
        let lease = Lease { id, time, granted: now, deadline: now.after(time), waiters };
        self.leases.insert(key.clone(), lease);
        Answer { to, said: Said::Load(id) }
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "lease_model_tests.rs"]
mod model_tests;
