//! Two origins and a reader, two keys with a lane each, and a system of record.

mod home;
mod lives;
mod order;
mod owed;
mod possible;
mod reading;
mod receipts;
mod settled;

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use tidings_proto::follower::{Attempt, Follower, Rejected};
use tidings_proto::frame::Heartbeat;
use tidings_proto::freshness::{Bounds, Freshness, Published};
use tidings_proto::id::{LaneId, Lanes};
use tidings_proto::log::{Answer, Read};
use tidings_proto::time::Tick;

use self::home::{Change, Frame, Home, life};
use self::owed::Owed;
use self::reading::Reading;
use crate::Planted;
use crate::scopes::Scope;

/// Time passes in steps of one.
const STEP: Duration = Duration::from_nanos(1);
const BOUNDS: Bounds = Bounds {
    max_staleness: STEP,
    lost_grace: Duration::from_nanos(2),
    write_horizon: STEP,
    doubt_unclean_ends: true,
};

const BEGIN: Tick = Tick(100);

/// Frames of one lane that may be under way.
const WIRE_MAX: usize = 2;

/// Version of the first origin's member set that names the second one; in the next one it has ended.
pub(crate) const JOINED: u64 = 2;

/// What can happen. `0..2` are origins and keys; a key's lane has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Action {
    /// A write of the truth.
    Commit(usize, usize),
    /// Its change is made and appended: the key is removed.
    Append(usize, usize),
    /// The same, and everything in the key's lane is cleared.
    Clear(usize, usize),
    /// Planted: what was appended is found in the log only now.
    Enter(usize, usize),
    Probe(usize),
    Answer(usize),
    Beat(usize),
    LoseBeat(usize),
    Follow(usize, usize),
    Send(usize, usize),
    Take(usize, usize),
    Lose(usize, usize),
    Fence(usize, usize),
    Load(usize),
    /// Another caller wants what is being loaded.
    Call(usize),
    Store(usize),
    BeginRead(usize),
    EndRead(usize),
    Crash(usize),
    Restart(usize),
    Meet(usize),
    /// The first origin comes to know the second.
    Join,
    /// It is sure that the second one has ended.
    End,
    /// The first origin's member set arrives.
    Learn,
    Pass,
    /// The writer of a key's last change asks who has applied it.
    Ask(usize, usize),
    /// The reader acknowledges what it has applied.
    Ack(usize),
    /// Who has asked looks at what was said.
    Look(usize, usize),
    /// The reader is killed and starts anew.
    Renew,
}

/// An origin, as the reader sees it.
#[derive(Clone, Debug, Hash)]
struct Seen {
    follower: Follower,
    attempts: [Option<Attempt>; 2],
    fences: [Option<Due>; 2],
    /// What it knows of the origin's member set.
    version: u64,
    met: bool,
}

/// A fence that is to be made.
#[derive(Clone, Debug, Hash)]
enum Due {
    /// The lane waits for it.
    Must(Box<Owed>),
    /// The lane has gone on, which only a planted bug allows.
    Late,
}

#[derive(Clone, Copy, Debug, Hash)]
struct Entry {
    version: usize,
    began: Tick,
    epoch: u32,
}

#[derive(Clone, Copy, Debug, Hash)]
struct Flight {
    entry: Entry,
    ended: bool,
    /// The oldest version that its callers may be answered with.
    least: usize,
}

/// Everything.
#[derive(Clone)]
pub(crate) struct World {
    scope: Scope,
    planted: Planted,
    /// Only what has to be looked at is.
    reduced: bool,
    /// No step has named one of them.
    origins_alike: bool,
    keys_alike: bool,
    left: Scope,
    now: Tick,
    lives: u64,
    reader_lives: u64,
    homes: Vec<Home>,
    seen: Vec<Seen>,
    freshness: Freshness,
    published: Published,
    /// Of each key, by version: when it was announced.
    truth: [Vec<Option<Tick>>; 2],
    entries: [Option<Entry>; 2],
    flights: [Option<Flight>; 2],
    epochs: [u32; 2],
    /// Of each key: what was applied or fenced here, or is said to be by a receipt. No read that begins now is older.
    least: [usize; 2],
    reading: [Option<Reading>; 2],
    broken: Option<String>,
}

fn lanes() -> Lanes {
    Lanes::new(2).unwrap()
}

fn lane(index: usize) -> LaneId {
    lanes().lane(index as u8).unwrap()
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { left, origins_alike, keys_alike, now, homes, seen, freshness, published, truth, .. } =
            self;
        let Self { entries, flights, epochs, least, reading, .. } = self;
        (origins_alike, keys_alike).hash(state);
        (left, now, homes, seen, freshness, published, truth).hash(state);
        (entries, flights, epochs, least, reading).hash(state);
    }
}

impl Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { left, now, homes, seen, freshness, published, truth, .. } = self;
        let Self { entries, flights, epochs, least, reading, .. } = self;
        write!(f, "{left:?} {now:?} {homes:?} {seen:?} {freshness:?} {published:?} {truth:?} ")?;
        write!(f, "{entries:?} {flights:?} {epochs:?} {least:?} {reading:?}")
    }
}

impl World {
    /// The reader knows and follows the first origin, and has loaded both keys.
    pub(crate) fn new(scope: Scope, planted: Planted) -> Self {
        let freshness = Freshness::new(BOUNDS, false, Tick(1));
        let entry = Entry { version: 0, began: BEGIN, epoch: 1 };
        let mut world = Self {
            scope,
            planted,
            reduced: true,
            origins_alike: scope.origins == 2 && !scope.joins,
            keys_alike: true,
            left: scope,
            now: BEGIN,
            lives: 1,
            reader_lives: 1,
            homes: (0..scope.origins).map(|origin| Home::new(life(origin, 1))).collect(),
            seen: Vec::new(),
            freshness,
            published: Published { fresh_until: Tick::NEVER, floor: Tick::NEVER },
            truth: [vec![Some(Tick(0))], vec![Some(Tick(0))]],
            entries: [Some(entry); 2],
            flights: [None; 2],
            epochs: [1; 2],
            least: [0; 2],
            reading: [None, None],
            broken: None,
        };
        world.freshness.publish(BEGIN.before(STEP));
        for origin in 0..scope.origins {
            world.homes[origin].counts = origin == 0 || !scope.joins;
            world.seen.push(Seen::new(origin, 1));
            if origin == 0 || !scope.joins {
                world.meet(origin);
                world.confirm_all(origin);
            }
        }
        world.publish();
        world
    }

    /// The same, with all that can happen in it, and nothing forgotten.
    pub(crate) fn whole(self) -> Self {
        Self { reduced: false, origins_alike: false, keys_alike: false, ..self }
    }

    /// Both lanes are followed, and a probe was answered.
    fn confirm_all(&mut self, origin: usize) {
        for key in 0..2 {
            self.act_on(Action::Follow(origin, key));
            self.act_on(Action::Take(origin, key));
        }
        self.probe(origin);
        self.act_on(Action::Answer(origin));
        self.act_on(Action::Beat(origin));
    }

    fn probe(&mut self, origin: usize) {
        let number = self.seen[origin].follower.probe(self.now);
        self.homes[origin].probe = Some(number);
    }

    fn answer(&mut self, origin: usize) {
        self.hear(origin);
        let home = &mut self.homes[origin];
        let Some(echo) = home.probe.take() else { return };
        let heads = home.log.heads();
        home.beats.push_back(Heartbeat { echo, members: home.version, heads });
    }

    fn beat(&mut self, origin: usize) {
        let Some(beat) = self.homes[origin].beats.pop_front() else { return };
        // One that was answered by an earlier life, or already: nothing comes of it.
        let _ = self.seen[origin].follower.on_heartbeat(&beat);
        self.progressed(origin);
    }

    fn publish(&mut self) {
        self.published = self.freshness.publish(self.now);
        if self.planted == Planted::NoFloor {
            self.published.floor = Tick::NEVER;
        }
    }

    fn progressed(&mut self, origin: usize) {
        let follower = &self.seen[origin].follower;
        if let Some(confirmed) = follower.confirmed() {
            let known = self.freshness.relevant().find(|(known, _)| *known == follower.origin());
            let is_news = known.and_then(|(_, known)| known) < Some(confirmed);
            let at_receipt = self.planted == Planted::ConfirmedAtReceipt;
            let me = follower.origin().clone();
            if is_news {
                self.freshness.confirmed(&me, if at_receipt { self.now } else { confirmed });
            }
            if !self.homes[origin].alive || self.homes[origin].me != me {
                // What it had sent last says nothing else: no live member hears it.
                self.freshness.lost(&me, self.now);
            }
        }
        self.publish();
    }

    /// Whether a change of this origin counts: it has met the reader, or the first origin does know it.
    fn counts(&self, origin: usize) -> bool {
        self.homes[origin].counts || origin == 1 && self.homes[0].version > 1
    }

    fn announce(&mut self, key: usize, version: usize) {
        for announced in &mut self.truth[key][..=version] {
            *announced = Some(announced.map_or(self.now, |earlier| earlier.min(self.now)));
        }
    }

    fn send(&mut self, origin: usize, key: usize) {
        let home = &mut self.homes[origin];
        let Some(cursor) = &mut home.cursors[key] else { return };
        let mut batches = Vec::new();
        match home.log.read(lane(key), cursor, 1, &mut batches) {
            Read::Some => {
                home.wire[key].extend(batches.iter().map(|batch| Frame::Events(batch.first, batch.count)));
            }
            Read::Overrun(head) => home.wire[key].push_back(Frame::Reset(head)),
            Read::Empty | Read::End => {}
        }
    }

    fn follow(&mut self, origin: usize, key: usize) {
        let (home, seen) = (&mut self.homes[origin], &mut self.seen[origin]);
        let (attempt, follow) = seen.follower.follow(lane(key));
        seen.attempts[key] = Some(attempt);
        let (frame, cursor) = match home.log.resume(lane(key), follow.from) {
            Answer::Resume(cursor) => (Frame::Resume(cursor.next), cursor),
            Answer::Reset(cursor) => (Frame::Reset(cursor.next), cursor),
        };
        home.cursors[key] = Some(cursor);
        home.wire[key] = VecDeque::from([frame]);
    }

    /// A peer's change is applied.
    fn apply(&mut self, key: usize, change: Change) {
        if change.clear {
            self.epochs[key] += 1;
        } else {
            self.entries[key] = None;
            self.flights[key] = self.flights[key].map(|flight| Flight { ended: true, ..flight });
        }
        self.least[key] = self.least[key].max(change.version);
    }

    fn take(&mut self, origin: usize, key: usize) {
        let seen = &mut self.seen[origin];
        let (Some(frame), Some(attempt)) = (self.homes[origin].wire[key].pop_front(), seen.attempts[key])
        else {
            return;
        };
        let mut changes = Vec::new();
        let (follower, lane) = (&mut seen.follower, lane(key));
        let judged = match frame {
            Frame::Resume(from) => follower.on_resume(lane, attempt, from),
            Frame::Reset(from) => {
                Owed::of_reset(follower, (lane, attempt, from)).map(|owed| match self.planted {
                    Planted::NoFence => owed.fenced(follower),
                    Planted::LateFence => {
                        owed.fenced(follower);
                        seen.fences[key] = Some(Due::Late);
                    }
                    _ => seen.fences[key] = Some(Due::Must(Box::new(owed))),
                })
            }
            Frame::Events(first, count) => follower.on_events(lane, attempt, first, count).map(|accept| {
                let next = first + u64::from(count);
                changes.extend((accept.from..next).map(|at| self.homes[origin].said[key][at as usize - 1]));
                follower.applied(lane, attempt, next);
            }),
        };
        if self.planted != Planted::SilentDrop {
            changes.into_iter().for_each(|change| self.apply(key, change));
        }
        if judged.is_err() {
            assert!(matches!(judged, Err(Rejected::Gap { .. } | Rejected::Violation(_))), "{judged:?}");
            self.seen[origin].attempts[key] = None;
        }
        self.progressed(origin);
    }

    fn fence(&mut self, origin: usize, key: usize) {
        let Some(due) = self.seen[origin].fences[key].take() else { return };
        self.epochs[key] += 1;
        if let Due::Must(owed) = due {
            owed.fenced(&mut self.seen[origin].follower);
        }
        let behind = self.seen[origin].follower.applied_in(lane(key)) as usize;
        let fenced = self.homes[origin].said[key].iter().take(behind).map(|change| change.version).max();
        self.least[key] = self.least[key].max(fenced.unwrap_or(0));
        self.progressed(origin);
    }

    fn append(&mut self, origin: usize, key: usize, clear: bool) {
        let Some(version) = self.homes[origin].open[key].take() else { return };
        if self.counts(origin) {
            self.announce(key, version);
        }
        let change = Change { version, clear };
        match self.planted {
            Planted::SequenceOutsideLock => self.homes[origin].entering[key] = Some(change),
            _ => self.homes[origin].enter(key, change),
        }
    }

    fn act_on(&mut self, action: Action) {
        match action {
            Action::Commit(origin, key) => {
                self.truth[key].push(None);
                self.homes[origin].open[key] = Some(self.truth[key].len() - 1);
            }
            Action::Append(origin, key) => self.append(origin, key, false),
            Action::Clear(origin, key) => self.append(origin, key, true),
            Action::Enter(origin, key) => {
                let home = &mut self.homes[origin];
                if let Some(change) = home.entering[key].take() {
                    home.enter(key, change);
                }
            }
            Action::Probe(origin) => self.probe(origin),
            Action::Answer(origin) => self.answer(origin),
            Action::Beat(origin) => self.beat(origin),
            Action::LoseBeat(origin) => drop(self.homes[origin].beats.pop_front()),
            Action::Follow(origin, key) => self.follow(origin, key),
            Action::Send(origin, key) => self.send(origin, key),
            Action::Take(origin, key) => self.take(origin, key),
            Action::Lose(origin, key) => drop(self.homes[origin].wire[key].pop_front()),
            Action::Fence(origin, key) => self.fence(origin, key),
            Action::Load(key) => {
                let entry =
                    Entry { version: self.truth[key].len() - 1, began: self.now, epoch: self.epochs[key] };
                self.flights[key] = Some(Flight { entry, ended: false, least: self.least[key] });
            }
            Action::Call(key) => {
                let least = self.least[key];
                self.flights[key] = self.flights[key].map(|flight| Flight { least, ..flight });
            }
            Action::Store(key) => self.store(key),
            Action::BeginRead(key) => self.begin_read(key),
            Action::EndRead(key) => self.end_read(key),
            Action::Crash(origin) => self.crash(origin),
            Action::Restart(origin) => self.restart(origin),
            Action::Meet(origin) => {
                self.meet(origin);
                self.publish();
            }
            Action::Join | Action::End => self.homes[0].version += 1,
            Action::Learn => {
                let (by, named) = (life(0, 1).node, self.homes[1].me.clone());
                if self.homes[0].version == JOINED {
                    self.freshness.named(&by, [&named]);
                } else if self.planted != Planted::UnnamedEnd {
                    self.freshness.told_ended(&by, [&named], self.now);
                }
                self.learn(0);
                self.progressed(0);
                self.publish();
            }
            Action::Pass => {
                self.now = self.now.after(STEP);
                self.publish();
            }
            Action::Ask(origin, key) => self.ask(origin, key),
            Action::Ack(origin) => self.ack(origin),
            Action::Look(origin, key) => self.look(origin, key),
            Action::Renew => self.renew(),
        }
    }
}
