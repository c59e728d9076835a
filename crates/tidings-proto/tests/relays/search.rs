//! Breadth first through everything that can happen.
//!
//! A state is the way to it: the machines are run again from the beginning for each, so that they need neither be
//! cloned nor know that they are watched. Two ways that end in the same state, by the machines' own description of
//! themselves, are gone on from once.

use std::collections::HashSet;
use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hasher};

/// A small world.
pub(crate) trait World: Debug {
    type Action: Copy + Debug;

    /// What can happen now.
    fn actions(&self) -> Vec<Self::Action>;

    /// It happens.
    fn act(&mut self, action: Self::Action);

    /// The promise that is broken now, if one is.
    fn broken(&self) -> Option<String>;
}

/// What a search came to.
pub(crate) struct Outcome {
    pub(crate) states: usize,
    pub(crate) deepest: usize,
    /// The shortest way to a broken promise.
    pub(crate) broken: Option<String>,
    /// Not everything was looked at.
    pub(crate) cut_short: bool,
}

struct Digest(DefaultHasher);

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

fn digest(world: &impl Debug) -> u64 {
    let mut digest = Digest(DefaultHasher::new());
    write!(digest, "{world:?}").unwrap();
    digest.0.finish()
}

/// The states that are known, each by the one before it and what has happened then: many ways share their beginnings.
struct Ways<A>(Vec<(usize, A)>);

impl<A: Copy> Ways<A> {
    /// The way to a state, of which 0 is the first.
    fn to(&self, mut state: usize) -> Vec<A> {
        let mut way = Vec::new();
        while let Some((before, action)) = state.checked_sub(1).map(|at| self.0[at]) {
            way.push(action);
            state = before;
        }
        way.reverse();
        way
    }

    fn count(&self) -> usize {
        1 + self.0.len()
    }
}

/// Looks at every state that can be reached, at most so many.
pub(crate) fn search<W: World>(begin: impl Fn() -> W, states_max: usize) -> Outcome {
    let replay = |way: &[W::Action]| {
        let mut world = begin();
        way.iter().for_each(|action| world.act(*action));
        world
    };
    let mut known = HashSet::from([digest(&begin())]);
    let mut ways = Ways(Vec::new());
    let mut outcome = Outcome { states: 1, deepest: 0, broken: None, cut_short: false };
    let mut level = 0..1;
    while !level.is_empty() {
        for state in level.clone() {
            let way = ways.to(state);
            for action in replay(&way).actions() {
                let mut world = replay(&way);
                world.act(action);
                if let Some(what) = world.broken() {
                    let longer = [way, vec![action]].concat();
                    outcome.broken = Some(format!("{what}\nafter {longer:?}\n{world:#?}"));
                    return outcome;
                }
                if known.insert(digest(&world)) {
                    ways.0.push((state, action));
                }
            }
            outcome.states = ways.count();
            if outcome.states >= states_max {
                outcome.cut_short = true;
                return outcome;
            }
        }
        outcome.deepest += 1;
        level = level.end..ways.count();
    }
    outcome
}
