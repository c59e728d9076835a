//! Depth first through everything that can happen.
//!
//! States are told apart by a digest of 64 bits of all that the machines consist of: among ten
//! million states the chance that two share one is three in a million. Two ways that end in the same state are gone on
//! from once. Nothing ever happens twice, for all that happens is taken off the scope or brings something nearer to its
//! end, so there are no circles, and only the worlds of one way are held at a time.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::Xxh3Default;

/// A small world.
pub(crate) trait World: Clone + Debug + Hash {
    type Action: Copy + Debug;

    /// Everything that can happen now and has to be looked at, and what it leads to.
    fn next(&self) -> Vec<(Vec<Self::Action>, Self)>;

    /// What this leads to, if it can happen now.
    fn step(&self, action: Self::Action) -> Option<Self>;

    /// The promise that is broken now, if one is.
    fn broken(&self) -> Option<String>;
}

/// What a search came to.
pub(crate) struct Outcome {
    pub(crate) states: usize,
    pub(crate) deepest: usize,
    /// A way to a broken promise, none of whose steps can be left out.
    pub(crate) broken: Option<String>,
    /// Not everything was looked at.
    pub(crate) cut_short: bool,
}

fn digest(world: &impl Hash) -> u64 {
    let mut hasher = Xxh3Default::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// What has happened, and what else can happen then.
struct Stop<W: World> {
    by: Vec<W::Action>,
    open: Vec<(Vec<W::Action>, W)>,
}

/// Looks at every state that can be reached, at most so many. `whole`: the same as `begin`, for a way to be told from.
pub(crate) fn search<W: World>(begin: &W, whole: &W, states_max: usize) -> Outcome {
    let mut known = HashSet::from([digest(begin)]);
    let mut outcome = Outcome { states: 1, deepest: 0, broken: None, cut_short: false };
    let mut way = vec![Stop { by: Vec::new(), open: begin.next() }];
    while let Some(last) = way.last_mut() {
        let Some((by, world)) = last.open.pop() else {
            way.pop();
            continue;
        };
        if world.broken().is_some() {
            let actions = way.iter().flat_map(|stop| stop.by.clone()).chain(by).collect();
            outcome.broken = Some(told(whole, shortened(whole, actions)));
            return outcome;
        }
        if !known.insert(digest(&world)) {
            continue;
        }
        outcome.states += 1;
        outcome.deepest = outcome.deepest.max(way.len());
        if outcome.states >= states_max {
            outcome.cut_short = true;
            return outcome;
        }
        way.push(Stop { by, open: world.next() });
    }
    outcome
}

/// What a way ends in, if each of its steps can be taken.
fn taken<W: World>(begin: &W, way: &[W::Action]) -> Option<W> {
    way.iter().try_fold(begin.clone(), |world, action| world.step(*action))
}

/// Leaves out what a way does not need to break a promise, so that people can read it.
fn shortened<W: World>(begin: &W, mut way: Vec<W::Action>) -> Vec<W::Action> {
    let breaks = |way: &[W::Action]| taken(begin, way).is_some_and(|world| world.broken().is_some());
    let mut at = 0;
    while at < way.len() {
        let shorter = [&way[..at], &way[at + 1..]].concat();
        if breaks(&shorter) {
            (way, at) = (shorter, 0);
        } else {
            at += 1;
        }
    }
    way
}

fn told<W: World>(begin: &W, way: Vec<W::Action>) -> String {
    let world = taken(begin, &way).expect("each step was taken");
    format!("{}\nafter {way:?}\n{world:#?}", world.broken().expect("it is broken"))
}
