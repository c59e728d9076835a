//! What a group has taken and not settled: the part of a driver that keeps groups itself, as a state machine.
//!
//! Decisions are made of the state, the time and chance, and come as [`Step`]s; only [`Ledger::apply`] changes
//! anything. So a store writes steps down and has the same state again when it applies them in their order. Events
//! are numbers here.
//!
//! Everything below `next` that is not open needs nothing more from this group, so memory depends on what is open
//! and not on what is stored. A group has [`OPEN_MAX`] open events at most, and takes nothing new beyond that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::call::{Action, Outcome, Tag};
use crate::decide::{AfterFailure, after_failure};
use crate::event::cut_error;
use crate::id::Timestamp;
use crate::name::Name;
use crate::settings::{TopicSettings, WAIT_MAX};

/// Most open events of a group: taken, waiting for their time, or for another of their key. Some 200 bytes each, and
/// as much again of a failure's text.
pub const OPEN_MAX: usize = 16_384;

/// An event that a group has looked at and not settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// How often it was delivered.
    pub attempts: u32,
    /// Whether somebody has it.
    pub state: OpenState,
    /// What it has to wait for others of, in an ordered topic.
    pub lane: Option<u64>,
    /// Who had it last.
    pub consumer: Option<Name>,
    /// How it failed.
    pub failure: Option<Failure>,
}

/// Whether somebody has an open event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenState {
    /// Nobody, and it is not delivered before then.
    Waiting(Timestamp),
    /// Somebody, since the first moment and until the second.
    Taken(Timestamp, Timestamp),
}

/// How an event failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For the first time.
    pub first: Timestamp,
    /// For the last time.
    pub last: Timestamp,
    /// What was said then.
    pub error: Arc<str>,
}

/// What an event means to a group that looks at it for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brief {
    /// Its number.
    pub id: u64,
    /// The hash of its key, in an ordered topic.
    pub lane: Option<u64>,
    /// When it may be delivered.
    pub due: Timestamp,
}

/// A change of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The group looked at what was there from the first number to before the second, and these stay open.
    Looked {
        /// Where it stood.
        from: u64,
        /// Where it stands.
        next: u64,
        /// Number, lane, and from when on.
        open: Vec<(u64, Option<u64>, Timestamp)>,
    },
    /// Somebody got open events, once more each.
    Taken {
        /// Who.
        consumer: Name,
        /// When.
        at: Timestamp,
        /// Until when.
        until: Timestamp,
        /// Which.
        ids: Vec<u64>,
    },
    /// Nothing more is to be done with an event.
    Settled {
        /// Which.
        id: u64,
    },
    /// A delivery failed, and the event waits.
    Failed {
        /// Of which event.
        id: u64,
        /// When.
        at: Timestamp,
        /// Until when it waits.
        due: Timestamp,
        /// Why.
        error: Arc<str>,
    },
    /// A delivery takes longer.
    Extended {
        /// Of which event.
        id: u64,
        /// Said when.
        at: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// The group goes on from elsewhere, and forgets what is open.
    Sought {
        /// From where.
        next: u64,
        /// From now on.
        epoch: u64,
    },
    /// Whether the group takes events.
    Paused(bool),
    /// Nothing is left below this number.
    Lost {
        /// Which.
        below: u64,
    },
}

/// An event that was given up, as far as the group knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burial {
    /// Which.
    pub id: u64,
    /// How often it was delivered.
    pub attempts: u32,
    /// Who had it last.
    pub consumer: Name,
    /// How it failed.
    pub failure: Failure,
}

/// What follows from a settlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Apply this, and answer that.
    Step(Step, Outcome),
    /// Store a dead letter, apply that it is [`Step::Settled`], and answer [`Outcome::Buried`].
    Bury(Burial),
    /// Change nothing, and answer this.
    Nothing(Outcome),
}

/// What a delivery is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The topic's.
    pub settings: &'a TopicSettings,
    /// The moment.
    pub now: Timestamp,
    /// From 0 to 1.
    pub random: f64,
}

/// What is said of an event that nobody settled in time.
pub const NOT_SETTLED: &str = "not settled in time";

/// The lane of a key. Events without one share a lane. Two keys of one hash wait for each other without need.
#[must_use]
pub fn lane(key: Option<&str>) -> u64 {
    key.map_or(0, |key| xxh3_64(key.as_bytes()).max(1))
}

/// One group's state.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    epoch: u64,
    next: u64,
    paused: bool,
    open: BTreeMap<u64, Open>,
    /// When something is to be done about an event that does not wait for another of its lane.
    times: BTreeSet<(Timestamp, u64)>,
    lanes: HashMap<u64, BTreeSet<u64>>,
}

impl Ledger {
    /// A group that has looked at nothing from `next` on.
    #[must_use]
    pub fn new(next: u64, epoch: u64, paused: bool) -> Self {
        Self { epoch, next, paused, ..Self::default() }
    }

    /// The first number that was not looked at.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Counts how often the group was made to go on from elsewhere.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it takes nothing.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// What is open, by number.
    #[must_use]
    pub fn open(&self) -> &BTreeMap<u64, Open> {
        &self.open
    }

    /// The lowest number that the group still needs.
    #[must_use]
    pub fn lowest(&self) -> u64 {
        self.open.first_key_value().map_or(self.next, |(id, _)| *id)
    }

    /// How many events it may look at and leave open.
    #[must_use]
    pub fn room(&self) -> usize {
        OPEN_MAX.saturating_sub(self.open.len())
    }

    /// Whether an event of a lane would have to wait for an earlier one.
    #[must_use]
    pub fn is_busy(&self, lane: u64) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// What can be delivered again or for the first time now, of what was looked at: what has waited longest first.
    #[must_use]
    pub fn due(&self, now: Timestamp, max: usize) -> Vec<u64> {
        self.times.range(..=(now, u64::MAX)).take(max).map(|(_, id)| *id).collect()
    }

    /// When the next of what was looked at is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.times.first().map(|(at, _)| *at)
    }

    /// What was delivered for the last time and not settled in time: dead letters, in the order of their moments.
    #[must_use]
    pub fn spent(&self, rules: Rules<'_>) -> Vec<Burial> {
        let due = self.times.range(..=(rules.now, u64::MAX));
        due.filter_map(|(_, id)| self.spent_one(*id, rules)).collect()
    }

    /// The burial of a taken event that may not be delivered once more.
    #[must_use]
    pub fn spent_one(&self, id: u64, rules: Rules<'_>) -> Option<Burial> {
        let open = self.open.get(&id)?;
        let OpenState::Taken(..) = open.state else { return None };
        let spent = open.attempts >= rules.settings.max_deliveries.get();
        spent.then(|| burial(id, open, rules.now, NOT_SETTLED))
    }

    /// What nobody has done anything about for so long: claimable, by number.
    #[must_use]
    pub fn idle(&self, now: Timestamp, least: Duration) -> Vec<u64> {
        let idle = |open: &Open| match open.state {
            OpenState::Taken(at, _) => now.since(at) >= least,
            OpenState::Waiting(_) => false,
        };
        self.open.iter().filter(|(_, open)| idle(open)).map(|(id, _)| *id).collect()
    }

    /// Looks at events in their order, and takes up to `max` of them: the step, and what can be taken at once.
    /// `next` is where the group stands then.
    #[must_use]
    pub fn look(&self, events: &[Brief], next: u64, now: Timestamp, max: usize) -> (Step, Vec<u64>) {
        let (mut open, mut taken) = (Vec::new(), Vec::new());
        let mut lanes = BTreeSet::new();
        let mut stands = next;
        for event in events {
            if open.len() >= self.room() || taken.len() >= max {
                stands = event.id;
                break;
            }
            open.push((event.id, event.lane, event.due));
            let parked = event.lane.is_some_and(|lane| !lanes.insert(lane) || self.is_busy(lane));
            if event.due <= now && !parked {
                taken.push(event.id);
            }
        }
        (Step::Looked { from: self.next, next: stands, open }, taken)
    }

    /// What follows from a word about a delivery.
    #[must_use]
    pub fn settle(&self, id: u64, tag: Option<Tag>, action: &Action, rules: Rules<'_>) -> Verdict {
        let Some(open) = self.open.get(&id) else { return Verdict::Nothing(Outcome::Unknown) };
        let current = Tag { epoch: self.epoch, attempt: open.attempts };
        let OpenState::Taken(..) = open.state else { return Verdict::Nothing(Outcome::Stale) };
        if tag.is_some_and(|tag| tag != current) {
            return Verdict::Nothing(Outcome::Stale);
        }
        let now = rules.now;
        match action {
            Action::Ack => Verdict::Step(Step::Settled { id }, Outcome::Acked),
            Action::Extend { by } => {
                let until = now.after((*by).min(WAIT_MAX));
                Verdict::Step(Step::Extended { id, at: now, until }, Outcome::Extended(until))
            }
            Action::Fail { reason } => {
                match after_failure(open.attempts, rules.settings, now, rules.random) {
                    AfterFailure::Bury => Verdict::Bury(burial(id, open, now, reason)),
                    AfterFailure::RetryAt(due) => {
                        let error = cut_error(reason).into();
                        Verdict::Step(Step::Failed { id, at: now, due, error }, Outcome::RetryAt(due))
                    }
                }
            }
        }
    }

    /// Changes the state. Steps that do not fit, for one before was lost, leave more open than there was: what is
    /// in doubt is delivered again.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Looked { from, next, open } => self.looked(*from, *next, open),
            Step::Taken { consumer, at, until, ids } => {
                for id in ids {
                    self.change(*id, |open| {
                        // Whoever had it and let its time pass has failed it.
                        if matches!(open.state, OpenState::Taken(..)) {
                            fail(open, *at, NOT_SETTLED.into());
                        }
                        open.attempts += 1;
                        open.state = OpenState::Taken(*at, *until);
                        open.consumer = Some(consumer.clone());
                    });
                }
            }
            Step::Settled { id } => self.remove(*id),
            Step::Failed { id, at, due, error } => self.change(*id, |open| {
                fail(open, *at, Arc::clone(error));
                open.state = OpenState::Waiting(*due);
            }),
            Step::Extended { id, at, until } => {
                self.change(*id, |open| open.state = OpenState::Taken(*at, *until));
            }
            Step::Sought { next, epoch } => *self = Self::new(*next, *epoch, self.paused),
            Step::Paused(paused) => self.paused = *paused,
            Step::Lost { below } => {
                let lost: Vec<u64> = self.open.range(..*below).map(|(id, _)| *id).collect();
                lost.into_iter().for_each(|id| self.remove(id));
                self.next = self.next.max(*below);
            }
        }
    }

    /// Puts back what was open when the state was written down.
    pub fn restore(&mut self, id: u64, open: Open) {
        self.remove(id);
        if let Some(lane) = open.lane {
            self.lanes.entry(lane).or_default().insert(id);
        }
        self.open.insert(id, open);
        self.schedule(id);
        // One that came before has to wait no longer for itself, one behind it has to wait for it now.
        self.reschedule_behind(id);
    }

    fn looked(&mut self, from: u64, next: u64, open: &[(u64, Option<u64>, Timestamp)]) {
        if from < self.next {
            // It was made to go on from an earlier place, and that word was lost.
            *self = Self::new(from, self.epoch, self.paused);
        }
        let unknown = self.next..from;
        let fits = usize::try_from(from - self.next).is_ok_and(|gap| gap <= self.room());
        if !unknown.is_empty() && !fits {
            // Too much is in doubt to be held: it is looked at once more, and so is what follows.
            return;
        }
        let waiting = |lane, due| Open {
            attempts: 0,
            state: OpenState::Waiting(due),
            lane,
            consumer: None,
            failure: None,
        };
        unknown.for_each(|id| self.restore(id, waiting(None, Timestamp(0))));
        for (id, lane, due) in open {
            match lane {
                // It can be neither there already nor in anybody's way.
                None if *id >= self.next => {
                    self.open.insert(*id, waiting(None, *due));
                    self.times.insert((*due, *id));
                }
                lane => self.restore(*id, waiting(*lane, *due)),
            }
        }
        self.next = self.next.max(next);
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Open)) {
        self.unschedule(id);
        if let Some(open) = self.open.get_mut(&id) {
            change(open);
            self.schedule(id);
        }
    }

    fn remove(&mut self, id: u64) {
        self.unschedule(id);
        let Some(open) = self.open.remove(&id) else { return };
        let Some(lane) = open.lane else { return };
        let Some(others) = self.lanes.get_mut(&lane) else { return };
        others.remove(&id);
        match others.first().copied() {
            Some(head) => self.schedule(head),
            None => drop(self.lanes.remove(&lane)),
        }
    }

    fn reschedule_behind(&mut self, id: u64) {
        let Some(lane) = self.open.get(&id).and_then(|open| open.lane) else { return };
        let behind = self.lanes.get(&lane).and_then(|ids| ids.range(id + 1..).next().copied());
        if let Some(behind) = behind {
            self.unschedule(behind);
        }
    }

    fn leads(&self, id: u64, lane: Option<u64>) -> bool {
        lane.is_none_or(|lane| self.lanes.get(&lane).and_then(BTreeSet::first).is_none_or(|head| *head == id))
    }

    fn schedule(&mut self, id: u64) {
        let Some(open) = self.open.get(&id) else { return };
        if self.leads(id, open.lane) {
            self.times.insert((moment(open), id));
        }
    }

    fn unschedule(&mut self, id: u64) {
        if let Some(open) = self.open.get(&id) {
            self.times.remove(&(moment(open), id));
        }
    }
}

fn moment(open: &Open) -> Timestamp {
    match open.state {
        OpenState::Waiting(due) => due,
        OpenState::Taken(_, until) => until,
    }
}

fn fail(open: &mut Open, at: Timestamp, error: Arc<str>) {
    let first = open.failure.as_ref().map_or(at, |failure| failure.first);
    open.failure = Some(Failure { first, last: at, error });
}

fn burial(id: u64, open: &Open, now: Timestamp, error: &str) -> Burial {
    let first = open.failure.as_ref().map_or(now, |failure| failure.first);
    let failure = Failure { first, last: now, error: cut_error(error).into() };
    let nobody = || Name::new("unknown").expect("it is a name");
    Burial { id, attempts: open.attempts, consumer: open.consumer.clone().unwrap_or_else(nobody), failure }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
