//! Which orders need not be looked at, because another one that is comes to the same.
//!
//! **Steps that nobody can tell.** What a step reads and changes is its [`Footprint`]. Two steps of which neither
//! changes what the other reads or changes come to the same in either order. A *silent* step, moreover, cannot break a
//! promise: an origin that commits, appends, sends, answers, dies or begins, a probe, a loss, a request, a load that
//! begins. So silent steps are taken only directly before a step that is not silent, and only those that it needs:
//! whose effect it depends on itself, or by others between. Any run that breaks a promise can be put into this form:
//! of the steps that are not silent in their order, before each those silent ones that it depends on and that are not
//! yet taken, and none of the rest. What is left out or later now is needed by nothing before, so each step can be
//! taken as it was, and ends in the same. Of silent steps side by side that do not depend on each other, one order is
//! enough.
//!
//! **Names.** Origins that begin alike can exchange their names, and so can keys: the machines ask of two names no
//! more than whether they are equal. So the first step that names an origin names the first one, and likewise with
//! keys. Of all runs that differ only by names or by the order of silent steps, the first by the order of [`Action`]
//! satisfies both rules.

use super::{Action, World};
use crate::search;

/// What a step reads and what it changes: a bit for each part of the world.
#[derive(Clone, Copy, Default)]
struct Footprint {
    reads: u64,
    writes: u64,
}

impl Footprint {
    fn depends_on(self, other: Self) -> bool {
        (self.writes & (other.reads | other.writes)) | (self.reads & other.writes) != 0
    }
}

const NOW: u64 = 1;
/// Until when entries count, and the floor.
const PUBLISHED: u64 = 1 << 1;
/// Whether the reader lives, and who it knows.
const READER: u64 = 1 << 2;

/// A part that each origin has for each key.
fn of_lane(part: u32, origin: usize, key: usize) -> u64 {
    1 << (3 + 4 * part as usize + 2 * origin + key)
}

/// A part that each origin has.
fn of_origin(part: u32, origin: usize) -> u64 {
    1 << (23 + 2 * part as usize + origin)
}

/// A part that there is of each key.
fn of_key(part: u32, key: usize) -> u64 {
    1 << (35 + 2 * part as usize + key)
}

/// What is committed and not announced.
fn open(origin: usize, key: usize) -> u64 {
    of_lane(0, origin, key)
}

fn log(origin: usize, key: usize) -> u64 {
    of_lane(1, origin, key)
}

/// What is under way in a lane, and the origin's cursor.
fn wire(origin: usize, key: usize) -> u64 {
    of_lane(2, origin, key)
}

/// The follower's lane.
fn lane(origin: usize, key: usize) -> u64 {
    of_lane(3, origin, key)
}

fn asked(origin: usize, key: usize) -> u64 {
    of_lane(4, origin, key)
}

fn probe(origin: usize) -> u64 {
    of_origin(0, origin)
}

fn beats(origin: usize) -> u64 {
    of_origin(1, origin)
}

/// When the reader was heard.
fn heard(origin: usize) -> u64 {
    of_origin(2, origin)
}

fn acked(origin: usize) -> u64 {
    of_origin(3, origin)
}

/// Whether it lives.
fn life(origin: usize) -> u64 {
    of_origin(4, origin)
}

/// Whom it knows, and who knows it.
fn members(origin: usize) -> u64 {
    of_origin(5, origin)
}

fn truth(key: usize) -> u64 {
    of_key(0, key)
}

/// The reader's entry, the epoch, and what was applied.
fn cache(key: usize) -> u64 {
    of_key(1, key)
}

fn flight(key: usize) -> u64 {
    of_key(2, key)
}

fn reading(key: usize) -> u64 {
    of_key(3, key)
}

fn each(part: fn(usize, usize) -> u64, origin: usize) -> u64 {
    part(origin, 0) | part(origin, 1)
}

fn all(parts: &[fn(usize, usize) -> u64]) -> u64 {
    parts.iter().map(|part| each(*part, 0) | each(*part, 1)).sum()
}

fn both(parts: &[fn(usize) -> u64]) -> u64 {
    parts.iter().map(|part| part(0) | part(1)).sum()
}

fn footprint(action: Action) -> Footprint {
    let (reads, writes) = match action {
        Action::Commit(o, k) => (life(o), open(o, k) | truth(k)),
        // When it was announced nobody can tell before time has passed: of that it reads the time alone.
        Action::Append(o, k) | Action::Clear(o, k) => (life(o) | members(o) | NOW, open(o, k) | log(o, k)),
        Action::Enter(o, k) => (0, log(o, k)),
        Action::Probe(o) => (life(o) | NOW | READER, probe(o)),
        // By it the reader is heard, if that matters, and when.
        Action::Answer(o) => (life(o) | each(log, o) | members(o) | NOW, probe(o) | beats(o) | heard(o)),
        Action::Beat(o) => (each(lane, o) | NOW, beats(o) | PUBLISHED),
        Action::LoseBeat(o) => (0, beats(o)),
        Action::Follow(o, k) => (life(o) | log(o, k) | READER, wire(o, k) | lane(o, k)),
        Action::Send(o, k) => (life(o) | log(o, k), wire(o, k)),
        Action::Take(o, k) => {
            (NOW | each(lane, o), wire(o, k) | lane(o, k) | cache(k) | flight(k) | PUBLISHED)
        }
        Action::Lose(o, k) => (0, wire(o, k)),
        Action::Fence(o, k) => (NOW | each(lane, o), lane(o, k) | cache(k) | PUBLISHED),
        Action::Load(k) => (truth(k) | cache(k) | NOW, flight(k)),
        Action::Call(k) => (cache(k), flight(k)),
        Action::Store(k) => (0, flight(k) | cache(k)),
        Action::BeginRead(k) => (cache(k) | PUBLISHED, reading(k)),
        Action::EndRead(k) => (cache(k) | PUBLISHED | NOW, reading(k)),
        // That an origin is lost makes a difference to what is confirmed by it, and when time passes.
        Action::Crash(o) => (members(o) | NOW, life(o) | each(open, o) | each(lane, o)),
        Action::Restart(o) => {
            let mine = each(wire, o) | each(log, o) | each(asked, o);
            (0, life(o) | members(o) | beats(o) | probe(o) | mine)
        }
        Action::Meet(o) => {
            let mine = each(wire, o) | each(lane, o) | each(asked, o);
            let known = both(&[life, members]);
            let own = probe(o) | acked(o) | heard(o) | members(o);
            (NOW | each(log, o) | known, READER | own | mine | PUBLISHED)
        }
        Action::Join => (0, both(&[members])),
        Action::End => (life(1), members(0)),
        Action::Learn => (both(&[members, life]) | each(lane, 0) | NOW, READER | PUBLISHED),
        Action::Pass => (0, NOW | PUBLISHED),
        Action::Ask(o, k) => (life(o) | log(o, k) | members(o) | NOW, asked(o, k)),
        Action::Ack(o) => (life(o) | each(lane, o), acked(o)),
        Action::Look(o, k) => (life(o) | acked(o) | heard(o) | NOW, asked(o, k) | cache(k)),
        Action::Renew => {
            let of_keys = both(&[cache, flight, reading]);
            (
                NOW,
                READER
                    | PUBLISHED
                    | all(&[wire, lane, asked])
                    | both(&[probe, beats, heard, acked])
                    | of_keys,
            )
        }
    };
    Footprint { reads, writes }
}

/// Whether a step leaves entries, what counts and what was promised as they are.
fn is_silent(action: Action) -> bool {
    match action {
        Action::Commit(..)
        | Action::Append(..)
        | Action::Clear(..)
        | Action::Enter(..)
        | Action::Probe(_)
        | Action::Answer(_)
        | Action::LoseBeat(_)
        | Action::Follow(..)
        | Action::Send(..)
        | Action::Lose(..)
        | Action::Load(_)
        | Action::Call(_)
        | Action::BeginRead(_)
        | Action::Ask(..)
        | Action::Ack(_)
        | Action::Crash(_)
        | Action::Restart(_)
        | Action::Join
        | Action::End => true,
        Action::Beat(_)
        | Action::Take(..)
        | Action::Fence(..)
        | Action::Store(_)
        | Action::EndRead(_)
        | Action::Meet(_)
        | Action::Learn
        | Action::Pass
        | Action::Look(..)
        | Action::Renew => false,
    }
}

/// Whether every one of these silent steps is needed by the one after them, or by one between that is.
fn needs_all(action: Action, silent: &[Action]) -> bool {
    let mut needed = vec![footprint(action)];
    silent.iter().rev().all(|before| {
        let before = footprint(*before);
        let is_needed = needed.iter().any(|later| later.depends_on(before));
        needed.push(before);
        is_needed
    })
}

/// Which origin and which key a step names.
fn named(action: Action) -> (Option<usize>, Option<usize>) {
    match action {
        Action::Commit(o, k)
        | Action::Append(o, k)
        | Action::Clear(o, k)
        | Action::Enter(o, k)
        | Action::Follow(o, k)
        | Action::Send(o, k)
        | Action::Take(o, k)
        | Action::Lose(o, k)
        | Action::Fence(o, k)
        | Action::Ask(o, k)
        | Action::Look(o, k) => (Some(o), Some(k)),
        Action::Probe(o)
        | Action::Answer(o)
        | Action::Beat(o)
        | Action::LoseBeat(o)
        | Action::Crash(o)
        | Action::Restart(o)
        | Action::Meet(o)
        | Action::Ack(o) => (Some(o), None),
        Action::Load(k) | Action::Call(k) | Action::Store(k) | Action::BeginRead(k) | Action::EndRead(k) => {
            (None, Some(k))
        }
        Action::Join | Action::End | Action::Learn | Action::Pass | Action::Renew => (None, None),
    }
}

/// What silent steps may be taken before one that is not: a bit for each of a list, for each that is not.
struct Wanted {
    silent: Vec<Action>,
    by: Vec<u64>,
}

impl Wanted {
    /// Those by which each of the others may be prepared, with further ones between.
    fn new(silent: Vec<Action>, others: impl Iterator<Item = Action>) -> Self {
        let footprints: Vec<_> = silent.iter().map(|action| footprint(*action)).collect();
        let needed_by = |later: Footprint| {
            let needed = footprints.iter().enumerate().filter(|(_, before)| later.depends_on(**before));
            needed.map(|(at, _)| 1_u64 << at).sum::<u64>()
        };
        let by_silent: Vec<u64> = footprints.iter().map(|later| needed_by(*later)).collect();
        let by = others.map(|other| {
            let (mut wanted, mut before) = (needed_by(footprint(other)), 0);
            while wanted != before {
                before = wanted;
                let more = by_silent.iter().enumerate().filter(|(at, _)| before & (1 << at) != 0);
                wanted = more.fold(before, |all, (_, more)| all | more);
            }
            wanted
        });
        let by = by.collect();
        Self { silent, by }
    }

    /// Of those for whom some are taken, those for whom this one may be, too.
    fn wanted_with(&self, action: Action, by: &[u64]) -> Vec<u64> {
        let at = self.silent.iter().position(|silent| *silent == action);
        let bit = 1 << at.expect("every silent step that can be taken is in the list");
        by.iter().copied().filter(|wanted| wanted & bit != 0).collect()
    }
}

impl World {
    /// Silent steps that may be possible before the next one that is not, and those that may be possible then.
    /// Some that are not do no harm.
    fn outlook(&self) -> Wanted {
        let left = &self.left;
        let (mut silent, mut others) = (vec![Action::Join, Action::End], vec![Action::Learn]);
        let mut add = |may: bool, action| {
            let list = if is_silent(action) { &mut silent } else { &mut others };
            list.extend(may.then_some(action));
        };
        for origin in 0..self.scope.origins {
            let (home, seen) = (&self.homes[origin], &self.seen[origin]);
            // It may be that it restarts between.
            let lives = home.alive || left.restarts > 0;
            let talks = home.alive && seen.met;
            for key in 0..self.scope.keys {
                let open = lives && (left.writes > 0 || home.open[key].is_some());
                add(lives && left.writes > 0, Action::Commit(origin, key));
                add(open, Action::Append(origin, key));
                add(open && left.clears > 0, Action::Clear(origin, key));
                let enters = self.planted == crate::Planted::SequenceOutsideLock;
                add(enters, Action::Enter(origin, key));
                let may_follow = seen.attempts[key].is_none() || left.follows > 0;
                add(talks && may_follow, Action::Follow(origin, key));
                add(talks, Action::Send(origin, key));
                add(left.losses > 0, Action::Lose(origin, key));
                add(left.receipts > 0, Action::Ask(origin, key));
                add(true, Action::Take(origin, key));
                add(seen.fences[key].is_some(), Action::Fence(origin, key));
                add(self.scope.receipts > 0, Action::Look(origin, key));
            }
            add(talks && left.probes > 0, Action::Probe(origin));
            add(talks && (left.probes > 0 || home.probe.is_some()), Action::Answer(origin));
            add(left.losses > 0, Action::LoseBeat(origin));
            add(self.scope.receipts > 0, Action::Ack(origin));
            add(true, Action::Beat(origin));
            add(home.alive && left.crashes > 0, Action::Crash(origin));
            let may_restart = !home.alive || left.crashes > 0;
            add(may_restart && left.restarts > 0, Action::Restart(origin));
            add(!seen.met || may_restart, Action::Meet(origin));
        }
        for key in 0..self.scope.keys {
            add(left.loads > 0, Action::Load(key));
            add(left.calls > 0, Action::Call(key));
            add(left.loads > 0 || self.flights[key].is_some(), Action::Store(key));
            add(left.reads > 0, Action::BeginRead(key));
            add(left.reads > 0 || self.reading[key].is_some(), Action::EndRead(key));
        }
        add(left.passes > 0, Action::Pass);
        add(left.renewals > 0, Action::Renew);
        Wanted::new(silent, others.into_iter())
    }

    /// Whether the names that a step has are those that have to be looked at.
    fn has_first_names(&self, action: Action) -> bool {
        let (origin, key) = named(action);
        !(self.origins_alike && origin == Some(1) || self.keys_alike && key == Some(1))
    }

    /// Takes note of the names that are not alike any more.
    pub(super) fn tell_apart(&mut self, action: Action) {
        let (origin, key) = named(action);
        self.origins_alike &= origin.is_none();
        self.keys_alike &= key.is_none();
    }

    /// Every step from here that is not silent, behind what it needs.
    pub(super) fn next_in_order(&self) -> Vec<(Vec<Action>, Self)> {
        let outlook = self.outlook();
        let mut out = Vec::new();
        let mut begun = vec![(Vec::new(), self.clone(), outlook.by.clone())];
        while let Some((silent, world, wanted)) = begun.pop() {
            for action in world.possible() {
                if !world.has_first_names(action) {
                    continue;
                }
                let with_it = || [silent.as_slice(), &[action]].concat();
                if !is_silent(action) {
                    out.extend(needs_all(action, &silent).then(|| (with_it(), world.after(action))));
                } else if is_in_order(action, &silent) {
                    let wanted = outlook.wanted_with(action, &wanted);
                    if !wanted.is_empty() {
                        let after = world.after(action);
                        debug_assert!(search::World::broken(&after).is_none(), "{action:?} is not silent");
                        begun.push((with_it(), after, wanted));
                    }
                }
            }
        }
        out
    }
}

/// Whether a silent step comes before none that it could as well have been taken before, and is first among.
fn is_in_order(action: Action, silent: &[Action]) -> bool {
    let later = footprint(action);
    let mut passed = silent.iter().rev().take_while(|before| !later.depends_on(footprint(**before)));
    passed.all(|before| *before < action)
}
