//! An origin, relays that ask each other, and the oldest entry that each may still serve.

mod steps;

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::follower::{Attempt, Follower};
use tidings_proto::frame::Heartbeat;
use tidings_proto::hash::CacheId;
use tidings_proto::id::{FIRST, Incarnation, LaneId, Lanes, Origin, Sequence, Slot};
use tidings_proto::log::{Answer, ChangeLog, Cursor, Retention};
use tidings_proto::record::{Batch, Draft, DraftTarget, Parts};
use tidings_proto::relay::{Asked, Held, Position, Relayed};
use tidings_proto::time::Tick;

/// What a node does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// A relay's answer confirms as of the question, whatever the age of what it says.
    AtReceipt,
    /// A relay confirms what it has heard of and not applied.
    Unapplied,
    /// A relay's age begins with the last answer that it got, so that relays in a circle confirm each other.
    Circle,
    /// A follower goes on after what its relay does not hold although nothing was fenced.
    NoFence,
}

/// How much happens, and who may ask whom: 0 is the origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) sources: &'static [&'static [usize]],
    pub(crate) writes: u8,
    pub(crate) asks: u8,
    pub(crate) losses: u8,
    pub(crate) follows: u8,
    /// Steps of time, each as long as the bound.
    pub(crate) passes: u8,
    /// The origin answers nobody any more once everybody has begun.
    pub(crate) cut: bool,
}

const BOUND: Duration = Duration::from_millis(1);
const BEGIN: Tick = Tick(1_000_000_000);

/// Enough for one batch of one record.
const HELD_BYTES: usize = 300;

/// What can happen. The first of two nodes asks, follows or receives; the second is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Write,
    Ask(usize, usize),
    Answer(usize, usize),
    Hear(usize, usize),
    LoseAnswer(usize, usize),
    Follow(usize, usize),
    Send(usize),
    Take(usize),
    Lose(usize),
    Pass,
}

#[derive(Debug)]
enum Frame {
    Resume(Sequence),
    Reset(Sequence),
    Events(Batch),
}

#[derive(Debug)]
enum Said {
    Heartbeat(Heartbeat),
    Relayed(u64, Relayed),
}

/// Between one who asks and one who is asked.
#[derive(Debug)]
struct Link {
    from: usize,
    asked: Asked,
    probe: Option<u64>,
    said: Option<Said>,
}

struct Node {
    follower: Follower,
    held: Held,
    links: Vec<Link>,
    /// Whom it follows, by what request, where that one is, and what is under way.
    source: usize,
    attempt: Option<Attempt>,
    cursor: Option<Cursor>,
    wire: VecDeque<Frame>,
    /// As of when the newest answer confirms if all that it names is applied, and when it came.
    heard: Tick,
    answered: Tick,
    probes: u64,
    /// Positions that it went past and neither applied nor fenced, which only a planted bug allows.
    skipped: Vec<Sequence>,
}

/// Everything. Node 0 is the origin, of which only the log counts.
pub(crate) struct World {
    planted: Planted,
    left: Scope,
    now: Tick,
    origin: Arc<Origin>,
    log: ChangeLog,
    nodes: Vec<Node>,
    /// Of each sequence, when it was appended.
    writes: Vec<Tick>,
}

fn lanes() -> Lanes {
    Lanes::new(1).unwrap()
}

fn lane() -> LaneId {
    lanes().lane(0).unwrap()
}

/// The slot of every change.
pub(crate) fn slot() -> Slot {
    Slot::new(0).unwrap()
}

/// A change.
pub(crate) fn draft(key: &[u8]) -> Draft<'_> {
    let parts = Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache: CacheId(1),
        slot: slot(),
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(key),
    };
    Draft::new(parts).unwrap()
}

impl Node {
    fn new(origin: &Origin, sources: &[usize]) -> Self {
        let link = |from: &usize| Link { from: *from, asked: Asked::new(1), probe: None, said: None };
        Self {
            follower: Follower::new(origin.clone(), lanes()),
            held: Held::new(HELD_BYTES),
            links: sources.iter().map(link).collect(),
            source: 0,
            attempt: None,
            cursor: None,
            wire: VecDeque::new(),
            heard: Tick::NEVER,
            answered: Tick::NEVER,
            probes: 0,
            skipped: Vec::new(),
        }
    }

    fn link(&mut self, from: usize) -> &mut Link {
        self.links.iter_mut().find(|link| link.from == from).unwrap()
    }

    fn next(&self) -> Sequence {
        self.follower.applied_in(lane()) + 1
    }
}

impl Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { follower, held, links, source, attempt, cursor, wire, skipped, .. } = self;
        write!(f, "{follower:?} {held:?} {links:?} {source} {attempt:?} {cursor:?} {wire:?} {skipped:?}")
    }
}

impl Debug for World {
    /// The log is what was appended to it. What was heard and when counts only where a bug is planted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { left, now, nodes, writes, .. } = self;
        write!(f, "{left:?} {now:?} {nodes:?} {writes:?}")?;
        match self.planted {
            Planted::Nothing => Ok(()),
            _ => {
                nodes.iter().try_for_each(|Node { heard, answered, .. }| write!(f, " {heard:?} {answered:?}"))
            }
        }
    }
}

impl World {
    /// Everybody follows its first source, and has confirmed.
    pub(crate) fn new(scope: Scope, planted: Planted) -> Self {
        let origin = Origin { node: "o".parse().unwrap(), incarnation: Incarnation(1) };
        let retention = Retention { events: 1, bytes: Retention::BYTES_MIN };
        let mut world = Self {
            planted,
            left: scope,
            now: BEGIN,
            log: ChangeLog::new(lanes(), retention),
            nodes: scope.sources.iter().map(|sources| Node::new(&origin, sources)).collect(),
            origin: Arc::new(origin),
            writes: Vec::new(),
        };
        for (node, sources) in scope.sources.iter().enumerate().skip(1) {
            world.follow(node, sources[0]);
            world.take(node);
            world.ask(node, sources[0]);
            world.answer(node, sources[0]);
            world.hear(node, sources[0]);
        }
        world
    }

    /// Clocks have nothing to do with each other.
    fn clock(&self, node: usize) -> Tick {
        self.now.after(Duration::from_secs(1_000 * node as u64))
    }

    fn write(&mut self) {
        self.log.append(slot(), 1, &draft(b"k")).unwrap().waiters.wake();
        self.writes.push(self.now);
    }

    fn ask(&mut self, node: usize, from: usize) {
        let now = self.clock(node);
        let asking = &mut self.nodes[node];
        let number = if from == 0 { asking.follower.probe(now) } else { asking.probes + 1 };
        asking.probes = asking.probes.max(number);
        let link = asking.link(from);
        link.asked.sent(number, now);
        link.probe = Some(number);
    }

    fn answer(&mut self, node: usize, from: usize) {
        let Some(echo) = self.nodes[node].link(from).probe.take() else { return };
        let said = match from {
            0 => Some(Said::Heartbeat(Heartbeat { echo, members: 0, heads: self.log.heads() })),
            _ => self.relayed(from).map(|relayed| Said::Relayed(echo, relayed)),
        };
        self.nodes[node].link(from).said = said;
    }

    fn relayed(&self, relay: usize) -> Option<Relayed> {
        let now = self.clock(relay);
        let Node { follower, heard, answered, .. } = &self.nodes[relay];
        let said = Relayed::of(follower, now)?;
        let wrong = match self.planted {
            Planted::AtReceipt => now,
            Planted::Unapplied => *heard,
            Planted::Circle => *answered,
            _ => return Some(said),
        };
        let age_us = now.since(wrong).as_micros() as u64;
        Some(Relayed::Confirmed { heads: follower.applied_heads(), age_us })
    }

    fn hear(&mut self, node: usize, from: usize) {
        let now = self.clock(node);
        let hearing = &mut self.nodes[node];
        let Some(said) = hearing.link(from).said.take() else { return };
        hearing.answered = now;
        match said {
            Said::Heartbeat(heartbeat) => {
                if let Ok(sent) = hearing.follower.on_heartbeat(&heartbeat) {
                    hearing.heard = hearing.heard.max(sent);
                }
            }
            Said::Relayed(echo, relayed) => {
                let Ok(sent) = hearing.link(from).asked.answered(echo, 1) else { return };
                if let Relayed::Confirmed { age_us, .. } = relayed {
                    hearing.heard = hearing.heard.max(sent.before(Duration::from_micros(age_us)));
                }
                relayed.tell(&mut hearing.follower, sent).unwrap();
            }
        }
    }

    fn follow(&mut self, node: usize, from: usize) {
        let following = &mut self.nodes[node];
        let (attempt, follow) = following.follower.follow(lane());
        if following.source != from {
            following.follower.redirected(from != 0);
        }
        following.source = from;
        following.attempt = Some(attempt);
        let (frame, cursor) = match from {
            0 => match self.log.resume(lane(), follow.from) {
                Answer::Resume(cursor) => (Frame::Resume(cursor.next), cursor),
                Answer::Reset(cursor) => (Frame::Reset(cursor.next), cursor),
            },
            _ => match self.position(from, follow.from) {
                Position::Held(cursor) => (Frame::Resume(cursor.next), cursor),
                Position::Gone(oldest) => (Frame::Reset(oldest), Cursor { next: oldest }),
            },
        };
        let following = &mut self.nodes[node];
        following.cursor = Some(cursor);
        following.wire = VecDeque::from([frame]);
    }

    fn position(&self, relay: usize, from: Sequence) -> Position {
        let Node { held, .. } = &self.nodes[relay];
        held.position(&self.origin, lane(), from, self.nodes[relay].next())
    }

    /// Nobody's entry may be older than the bound while it counts: the oldest that a node may hold lacks the first write
    /// that it has not applied.
    fn stale(&self) -> Option<String> {
        let stale = |node: &usize| {
            let Node { follower, skipped, .. } = &self.nodes[*node];
            let fresh_until = follower.confirmed().map(|tick| tick.after(BOUND));
            let missing = skipped.first().copied().unwrap_or_else(|| self.nodes[*node].next());
            let missing = self.writes.get((missing - FIRST) as usize);
            let overdue = missing.is_some_and(|written| written.after(BOUND) < self.now);
            overdue && fresh_until.is_some_and(|until| self.clock(*node) <= until)
        };
        let node = (1..self.nodes.len()).find(stale)?;
        Some(format!("node {node} is fresh and lacks a write that is older than the bound"))
    }
}
