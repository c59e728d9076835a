//! Flights: loads, fill tokens and write-throughs that are under way. One may store its result only if nothing
//! ended it meanwhile.
//!
//! The table is pure: the cache keeps one per shard, under the shard's lock, together with the epochs that it is
//! told. A mutation or invalidation of a key takes the key's flights out of the table: those who wait for the load
//! still get its result, it is never stored, and later callers start a new one. Fences need no sweep, for a flight
//! carries the epoch of its slot when it began. A fill ends only decisions: what they were taken from has changed.

use hashbrown::HashMap;

use smallvec::SmallVec;
use tidings_proto::time::Tick;

use crate::key::{CarriedHash, KeyRef, StoredKey};

/// Most fill tokens that may be out per shard; the oldest is ended for a new one. 64 shards × 256 bounds what
/// clients that never come back can hold.
pub const TOKENS_PER_SHARD_MAX: usize = 256;

/// The number of no flight.
pub(crate) const NO_FLIGHT: u64 = 0;

/// What a flight has to compare with when it ends: taken when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its number, unique in its table.
    pub id: u64,
    /// The epoch of its key's slot when it began.
    pub epoch: u32,
    /// When it began: what it returns is at least that fresh.
    pub began: Tick,
}

/// Conditions under which a load may be joined by another caller.
#[derive(Clone, Copy, Debug)]
pub struct Joinable {
    /// The slot's epoch now.
    pub epoch: u32,
    /// It must have begun after this (floors; in doubt, `max_staleness` ago).
    pub after: Tick,
}

#[derive(Debug)]
struct Load<W> {
    start: Start,
    waiters: W,
}

#[derive(Debug)]
struct Flights<W> {
    load: Option<Load<W>>,
    guards: SmallVec<[Guard; 1]>,
}

#[derive(Clone, Copy, Debug)]
struct Guard {
    start: Start,
    purpose: Purpose,
}

/// What a guard is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A write-through.
    Write,
    /// A new value that is being decided on from the one that is cached.
    Decision,
    /// A fill token, which ends by itself after its deadline.
    Token(Tick),
    /// A lease that this node has given for the key: whether it has changed since.
    Lease,
}

impl Guard {
    fn is_token(&self) -> bool {
        matches!(self.purpose, Purpose::Token(_))
    }

    /// Whether its time is over.
    fn is_late(&self, now: Tick) -> bool {
        matches!(self.purpose, Purpose::Token(deadline) if deadline < now)
    }
}

impl<W> Flights<W> {
    fn is_empty(&self) -> bool {
        self.load.is_none() && self.guards.is_empty()
    }
}

/// All flights of one shard. `W` is what callers of one load wait on.
#[derive(Debug)]
pub struct FlightTable<W> {
    flights: HashMap<StoredKey, Flights<W>, CarriedHash>,
    next: u64,
    tokens: usize,
}

impl<W> Default for FlightTable<W> {
    fn default() -> Self {
        Self { flights: HashMap::default(), next: NO_FLIGHT + 1, tokens: 0 }
    }
}

impl<W: Clone> FlightTable<W> {
    fn start(&mut self, epoch: u32, began: Tick) -> Start {
        let id = self.next;
        self.next += 1;
        Start { id, epoch, began }
    }

    /// What to wait on, if a load of the key is under way that a caller of now may join.
    pub(crate) fn join(&self, key: KeyRef<'_>, joinable: Joinable) -> Option<W> {
        let load = self.get(key)?.load.as_ref()?;
        let sound = load.start.epoch == joinable.epoch && load.start.began > joinable.after;
        sound.then(|| load.waiters.clone())
    }

    /// Whether nothing has ended a flight since it began.
    pub(crate) fn stands(&self, key: KeyRef<'_>, start: Start, epoch: u32) -> bool {
        let Some(flights) = self.get(key) else { return false };
        let mut starts =
            flights.load.iter().map(|load| load.start).chain(flights.guards.iter().map(|it| it.start));
        start.epoch == epoch && starts.any(|other| other == start)
    }

    fn get(&self, key: KeyRef<'_>) -> Option<&Flights<W>> {
        if self.flights.is_empty() { None } else { self.flights.get(&key) }
    }

    fn entry(&mut self, key: KeyRef<'_>) -> &mut Flights<W> {
        let empty = || Flights { load: None, guards: SmallVec::new() };
        self.flights.entry(key.stored()).or_insert_with(empty)
    }

    /// Registers a load, in place of one that could not be joined.
    pub(crate) fn begin_load(&mut self, key: KeyRef<'_>, epoch: u32, began: Tick, waiters: W) -> Start {
        let start = self.start(epoch, began);
        self.entry(key).load = Some(Load { start, waiters });
        start
    }

    /// Registers a write-through, a decision or a fill token.
    pub(crate) fn begin_guard(
        &mut self,
        key: KeyRef<'_>,
        epoch: u32,
        began: Tick,
        purpose: Purpose,
    ) -> Start {
        if let Purpose::Token(_) = purpose {
            if self.tokens == TOKENS_PER_SHARD_MAX {
                self.end_oldest_token();
            }
            self.tokens += 1;
        }
        let start = self.start(epoch, began);
        self.entry(key).guards.push(Guard { start, purpose });
        start
    }

    fn end_oldest_token(&mut self) {
        let tokens = self.flights.values().flat_map(|flights| &flights.guards);
        let oldest = tokens.filter(|guard| guard.is_token()).map(|guard| guard.start.id).min();
        self.end_guards(|guard| Some(guard.start.id) == oldest);
    }

    /// Ends the tokens whose time is over.
    pub(crate) fn expire(&mut self, now: Tick) {
        if self.tokens > 0 {
            self.end_guards(|guard| guard.is_late(now));
        }
    }

    fn end_guards(&mut self, mut over: impl FnMut(&Guard) -> bool) {
        let tokens = &mut self.tokens;
        self.flights.retain(|_, flights| {
            flights.guards.retain(|guard| {
                let over = over(guard);
                *tokens -= usize::from(over && guard.is_token());
                !over
            });
            !flights.is_empty()
        });
    }

    /// Ends every flight of a key: none of them will store. Costs one check when there is none at all.
    pub(crate) fn end(&mut self, key: KeyRef<'_>) {
        if self.flights.is_empty() {
            return;
        }
        if let Some(flights) = self.flights.remove(&key) {
            self.tokens -= flights.guards.iter().filter(|guard| guard.is_token()).count();
        }
    }

    /// Ends the decisions about a key that is being filled: they were taken from what is no longer true.
    pub(crate) fn end_decisions(&mut self, key: KeyRef<'_>) {
        let Some(flights) = self.flights.get_mut(&key) else { return };
        flights.guards.retain(|guard| guard.purpose != Purpose::Decision);
        if flights.is_empty() {
            self.flights.remove(&key);
        }
    }

    /// Ends every flight of every key.
    pub(crate) fn end_all(&mut self) {
        self.flights.clear();
        self.tokens = 0;
    }

    /// Takes one flight out of the table. Whether it may store: nothing had ended it, its slot was not fenced, and
    /// its deadline has not passed.
    pub(crate) fn finish(&mut self, key: KeyRef<'_>, start: Start, epoch: u32, now: Tick) -> bool {
        let Some(flights) = self.flights.get_mut(&key) else { return false };
        let mut found = false;
        if flights.load.as_ref().is_some_and(|load| load.start == start) {
            flights.load = None;
            found = true;
        } else if let Some(at) = flights.guards.iter().position(|guard| guard.start == start) {
            let guard = flights.guards.remove(at);
            self.tokens -= usize::from(guard.is_token());
            found = !guard.is_late(now);
        }
        if flights.is_empty() {
            self.flights.remove(&key);
        }
        found && start.epoch == epoch
    }

    /// How many keys have flights.
    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "flight_model_tests.rs"]
mod model_tests;
