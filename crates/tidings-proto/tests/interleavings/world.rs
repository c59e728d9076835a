//! Two origins and a reader, two keys with a lane each, and a system of record.

mod possible;
mod reading;

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::time::Duration;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::follower::{Attempt, Follower, MustFence, Rejected};
use tidings_proto::frame::Heartbeat;
use tidings_proto::freshness::{Bounds, Freshness, Published};
use tidings_proto::hash::CacheId;
use tidings_proto::id::{Incarnation, LaneId, Lanes, NodeId, Origin, Sequence, Slot};
use tidings_proto::log::{Answer, ChangeLog, Cursor, Read, Retention};
use tidings_proto::record::{Draft, DraftTarget, Parts};
use tidings_proto::time::Tick;

use crate::{Planted, Scope};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A write of the truth.
    Commit(usize, usize),
    /// Its change is made and appended.
    Append(usize, usize),
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
}

#[derive(Clone, Copy, Debug)]
enum Frame {
    Resume(Sequence),
    Reset(Sequence),
    Events(Sequence, u32),
}

/// One life of an origin, as it is.
struct Home {
    me: Origin,
    log: ChangeLog,
    alive: bool,
    /// What each lane's positions say: the version that was committed.
    said: [Vec<usize>; 2],
    /// Committed and not announced.
    open: [Option<usize>; 2],
    /// Announced and not in the log, which only a planted bug allows.
    entering: [Option<usize>; 2],
    cursors: [Option<Cursor>; 2],
    probe: Option<u64>,
    beats: VecDeque<Heartbeat>,
    wire: [VecDeque<Frame>; 2],
    version: u64,
}

/// An origin, as the reader sees it.
#[derive(Debug)]
struct Seen {
    follower: Follower,
    attempts: [Option<Attempt>; 2],
    fences: [Option<Due>; 2],
    /// What it knows of the origin's member set.
    version: u64,
    met: bool,
}

/// A fence that is to be made.
#[derive(Debug)]
enum Due {
    /// The lane waits for it.
    Must(MustFence),
    /// The lane has gone on, which only a planted bug allows.
    Late,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    version: usize,
    began: Tick,
    epoch: u32,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    entry: Entry,
    ended: bool,
}

#[derive(Debug)]
enum Reading {
    Fresh(Tick),
    Entry(Entry),
}

/// Everything.
pub(crate) struct World {
    scope: Scope,
    planted: Planted,
    left: Scope,
    now: Tick,
    lives: u64,
    homes: Vec<Home>,
    seen: Vec<Seen>,
    freshness: Freshness,
    published: Published,
    /// Of each key, by version: when it was announced.
    truth: [Vec<Option<Tick>>; 2],
    entries: [Option<Entry>; 2],
    flights: [Option<Flight>; 2],
    epochs: [u32; 2],
    reading: [Option<Reading>; 2],
    broken: Option<String>,
}

fn lanes() -> Lanes {
    Lanes::new(2).unwrap()
}

fn lane(index: usize) -> LaneId {
    lanes().lane(index as u8).unwrap()
}

fn life(origin: usize, number: u64) -> Origin {
    Origin { node: NodeId::new(["a", "b"][origin]).unwrap(), incarnation: Incarnation(number) }
}

impl Home {
    fn new(me: Origin) -> Self {
        let retention = Retention { events: 1, bytes: Retention::BYTES_MIN };
        Self {
            me,
            log: ChangeLog::new(lanes(), retention),
            alive: true,
            said: Default::default(),
            open: [None; 2],
            entering: [None; 2],
            cursors: [None; 2],
            probe: None,
            beats: VecDeque::new(),
            wire: Default::default(),
            version: 1,
        }
    }

    fn enter(&mut self, key: usize, version: usize) {
        let draft = Draft::new(Parts {
            kind: EventKind::Deleted,
            operation: Operation::Remove,
            ignorable: false,
            cache: CacheId(1),
            slot: Slot::new(key as u8).unwrap(),
            version: None,
            metadata: &[],
            value: None,
            target: DraftTarget::Key(b"k"),
        });
        let appended = self.log.append(Slot::new(key as u8).unwrap(), 1, &draft.unwrap()).unwrap();
        appended.waiters.wake();
        self.said[key].push(version);
    }
}

impl Debug for Home {
    /// A log is what was appended to it: all of them forget alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, alive, said, open, entering, cursors, probe, beats, wire, version, .. } = self;
        write!(
            f,
            "{me} {alive} {said:?} {open:?} {entering:?} {cursors:?} {probe:?} {beats:?} {wire:?} {version}"
        )
    }
}

impl Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { left, now, homes, seen, freshness, published, truth, .. } = self;
        let Self { entries, flights, epochs, reading, .. } = self;
        write!(f, "{left:?} {now:?} {homes:?} {seen:?} {freshness:?} {published:?} {truth:?} ")?;
        write!(f, "{entries:?} {flights:?} {epochs:?} {reading:?}")
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
            left: scope,
            now: BEGIN,
            lives: 1,
            homes: (0..scope.origins).map(|origin| Home::new(life(origin, 1))).collect(),
            seen: Vec::new(),
            freshness,
            published: Published { fresh_until: Tick::NEVER, floor: Tick::NEVER },
            truth: [vec![Some(Tick(0))], vec![Some(Tick(0))]],
            entries: [Some(entry); 2],
            flights: [None; 2],
            epochs: [1; 2],
            reading: [None, None],
            broken: None,
        };
        world.freshness.publish(BEGIN.before(STEP));
        for origin in 0..scope.origins {
            let follower = Follower::new(life(origin, 1), lanes());
            world.seen.push(Seen {
                follower,
                attempts: [None; 2],
                fences: [None, None],
                version: 1,
                met: false,
            });
            if origin == 0 || !scope.joins {
                world.meet(origin);
                world.confirm_all(origin);
            }
        }
        world.publish();
        world
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

    fn meet(&mut self, origin: usize) {
        let me = self.homes[origin].me.clone();
        self.freshness.met(&me, self.now);
        let seen = &mut self.seen[origin];
        if *seen.follower.origin() != me {
            seen.follower = Follower::new(me, lanes());
            seen.attempts = [None; 2];
            seen.fences = [None, None];
            self.homes[origin].wire = Default::default();
        }
        seen.met = true;
        self.learn(origin);
    }

    /// Everybody whom an origin knows is known from it.
    fn learn(&mut self, origin: usize) {
        let (seen, version) = (&mut self.seen[origin], self.homes[origin].version);
        seen.version = version;
        let said = if self.planted == Planted::UnknownMember { u64::MAX } else { version };
        seen.follower.on_members(said);
    }

    fn probe(&mut self, origin: usize) {
        let number = self.seen[origin].follower.probe(self.now);
        self.homes[origin].probe = Some(number);
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
            let at_receipt = is_news && self.planted == Planted::ConfirmedAtReceipt;
            let me = follower.origin().clone();
            self.freshness.confirmed(&me, if at_receipt { self.now } else { confirmed });
        }
        self.publish();
    }

    /// Whether a change of this origin counts: the reader knows it, or the first origin does.
    fn counts(&self, origin: usize) -> bool {
        self.seen[origin].met || origin == 1 && self.homes[0].version > 1
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

    fn take(&mut self, origin: usize, key: usize) {
        let seen = &mut self.seen[origin];
        let (Some(frame), Some(attempt)) = (self.homes[origin].wire[key].pop_front(), seen.attempts[key])
        else {
            return;
        };
        let (follower, lane) = (&mut seen.follower, lane(key));
        let judged = match frame {
            Frame::Resume(from) => follower.on_resume(lane, attempt, from),
            Frame::Reset(from) => follower.on_reset(lane, attempt, from).map(|fence| match self.planted {
                Planted::NoFence => follower.fenced(fence),
                Planted::LateFence => {
                    follower.fenced(fence);
                    seen.fences[key] = Some(Due::Late);
                }
                _ => seen.fences[key] = Some(Due::Must(fence)),
            }),
            Frame::Events(first, count) => follower.on_events(lane, attempt, first, count).map(|accept| {
                let next = first + u64::from(count);
                if accept.from < next && self.planted != Planted::SilentDrop {
                    self.entries[key] = None;
                    self.flights[key] = self.flights[key].map(|flight| Flight { ended: true, ..flight });
                }
                follower.applied(lane, attempt, next);
            }),
        };
        if judged.is_err() {
            assert!(matches!(judged, Err(Rejected::Gap { .. } | Rejected::Violation(_))), "{judged:?}");
            seen.attempts[key] = None;
        }
        self.progressed(origin);
    }

    fn fence(&mut self, origin: usize, key: usize) {
        let Some(due) = self.seen[origin].fences[key].take() else { return };
        self.epochs[key] += 1;
        if let Due::Must(fence) = due {
            self.seen[origin].follower.fenced(fence);
        }
        self.progressed(origin);
    }

    fn crash(&mut self, origin: usize) {
        self.homes[origin].alive = false;
        let counts = self.counts(origin);
        for key in 0..2 {
            if let Some(version) = self.homes[origin].open[key].take()
                && counts
            {
                self.announce(key, version);
            }
        }
        let me = self.homes[origin].me.clone();
        self.freshness.lost(&me, self.now);
    }

    fn act_on(&mut self, action: Action) {
        match action {
            Action::Commit(origin, key) => {
                self.truth[key].push(None);
                self.homes[origin].open[key] = Some(self.truth[key].len() - 1);
            }
            Action::Append(origin, key) => {
                let Some(version) = self.homes[origin].open[key].take() else { return };
                if self.counts(origin) {
                    self.announce(key, version);
                }
                match self.planted {
                    Planted::SequenceOutsideLock => self.homes[origin].entering[key] = Some(version),
                    _ => self.homes[origin].enter(key, version),
                }
            }
            Action::Enter(origin, key) => {
                let home = &mut self.homes[origin];
                if let Some(version) = home.entering[key].take() {
                    home.enter(key, version);
                }
            }
            Action::Probe(origin) => self.probe(origin),
            Action::Answer(origin) => {
                let home = &mut self.homes[origin];
                let Some(echo) = home.probe.take() else { return };
                let heads = home.log.heads();
                home.beats.push_back(Heartbeat { echo, members: home.version, heads });
            }
            Action::Beat(origin) => {
                let Some(beat) = self.homes[origin].beats.pop_front() else { return };
                // One that was answered by an earlier life, or already: nothing comes of it.
                let _ = self.seen[origin].follower.on_heartbeat(&beat);
                self.progressed(origin);
            }
            Action::LoseBeat(origin) => drop(self.homes[origin].beats.pop_front()),
            Action::Follow(origin, key) => self.follow(origin, key),
            Action::Send(origin, key) => self.send(origin, key),
            Action::Take(origin, key) => self.take(origin, key),
            Action::Lose(origin, key) => drop(self.homes[origin].wire[key].pop_front()),
            Action::Fence(origin, key) => self.fence(origin, key),
            Action::Load(key) => {
                let entry =
                    Entry { version: self.truth[key].len() - 1, began: self.now, epoch: self.epochs[key] };
                self.flights[key] = Some(Flight { entry, ended: false });
            }
            Action::Store(key) => self.store(key),
            Action::BeginRead(key) => self.begin_read(key),
            Action::EndRead(key) => self.end_read(key),
            Action::Crash(origin) => self.crash(origin),
            Action::Restart(origin) => {
                self.lives += 1;
                self.homes[origin] = Home::new(life(origin, self.lives));
                self.seen[origin].met = false;
            }
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
        }
    }
}
