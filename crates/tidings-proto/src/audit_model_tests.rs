//! The argument of the auditor against a naive model: a truth, two nodes that load from it, and changes that are told
//! late.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::hash::CacheId;
use crate::id::NodeId;

/// One step of time. Ticks begin at 1, for 0 is never.
const STEP: Duration = Duration::from_millis(1);

/// What can happen in a step.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Nothing,
    /// The truth changes, and the change is told so many steps later.
    Commit(usize),
    /// A node loads the truth, if it holds nothing.
    Load(usize),
    /// A node applies the next change that was told and that it has not applied.
    Apply(usize),
    /// An entry goes by itself.
    Evict(usize),
}

#[derive(Debug, Default)]
struct Cached {
    entry: Option<Held>,
    /// How many changes it has applied, in the order in which they were told.
    applied: usize,
}

#[derive(Debug, Default)]
struct World {
    now: u64,
    version: u64,
    /// When each change is told, in that order.
    told: Vec<u64>,
    nodes: [Cached; 2],
}

fn tick(step: u64) -> Tick {
    Tick::NEVER.after(STEP * (step as u32 + 1))
}

impl World {
    fn step(&mut self, happens: Happens) {
        self.now += 1;
        match happens {
            Happens::Nothing => {}
            Happens::Commit(delay) => {
                // A toggle, so that the same value comes again.
                self.version ^= 1;
                self.told.push(self.now + delay as u64);
                self.told.sort_unstable();
            }
            Happens::Load(node) => {
                let loaded = Held { value: self.version, mark: tick(self.now).0, age_ms: 0 };
                self.nodes[node].entry.get_or_insert(loaded);
            }
            Happens::Apply(node) => {
                if self.pending(node).is_some_and(|told| told <= self.now) {
                    self.nodes[node].applied += 1;
                    self.nodes[node].entry = None;
                }
            }
            Happens::Evict(node) => self.nodes[node].entry = None,
        }
    }

    /// When the first change was told that a node has not applied.
    fn pending(&self, node: usize) -> Option<u64> {
        self.told.get(self.nodes[node].applied).copied()
    }

    /// Everything that was told up to then is applied at a node.
    fn applied(&self, node: usize) -> Tick {
        self.pending(node)
            .filter(|told| *told <= self.now)
            .map_or_else(|| tick(self.now), |told| tick(told - 1))
    }

    fn difference(&self) -> Option<Difference> {
        let (own, theirs) = (self.nodes[0].entry?, self.nodes[1].entry?);
        let peer = NodeId::new("n2").unwrap();
        let key = Bytes::from_static(b"k");
        (own.value != theirs.value).then_some(Difference { peer, cache: CacheId(1), key, own, theirs })
    }

    fn again(&self) -> Again {
        Again {
            own_applied: self.applied(0),
            own: self.nodes[0].entry,
            theirs_applied: self.applied(1),
            theirs: self.nodes[1].entry,
        }
    }
}

/// Looks at everything in every step, and returns what every difference came to.
fn audit(history: &[Happens], horizon: u32) -> Vec<Outcome> {
    let (mut world, mut suspects) = (World::default(), Vec::new());
    let mut outcomes = Vec::new();
    for happens in history {
        world.step(*happens);
        if let Some(difference) = world.difference() {
            let mut noted = Suspects::new(STEP * horizon);
            noted.note(difference, tick(world.now));
            // Looked at in every step from now on, earlier than it would be.
            suspects.push(noted.due(Tick::FOREVER).unwrap().suspects.remove(0));
        }
        let again = world.again();
        suspects.retain(|suspect| {
            let judged = Suspects::new(STEP * horizon).judge(suspect.clone(), &again, tick(world.now));
            outcomes.extend(judged.iter().map(|judged| judged.outcome));
            judged.is_none()
        });
    }
    outcomes
}

const HORIZON: usize = 6;

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        1 => Just(Happens::Nothing),
        2 => (0..=HORIZON).prop_map(Happens::Commit),
        4 => (0_usize..2).prop_map(Happens::Load),
        4 => (0_usize..2).prop_map(Happens::Apply),
        1 => (0_usize..2).prop_map(Happens::Evict),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_lag_is_taken_for_an_inconsistency(history in prop::collection::vec(happens(), 1..80)) {
        let outcomes = audit(&history, HORIZON as u32);
        prop_assert!(!outcomes.contains(&Outcome::Inconsistent), "{outcomes:?}");
    }
}

#[test]
fn a_change_that_is_told_later_than_promised_is_taken_for_one() {
    // Loaded by the one after the change, by the other before it.
    let mut history = vec![Happens::Load(0), Happens::Commit(2 * HORIZON), Happens::Load(1)];
    history.extend([Happens::Nothing; 3 * HORIZON]);
    assert!(audit(&history, HORIZON as u32).contains(&Outcome::Inconsistent));
    assert!(!audit(&history, 2 * HORIZON as u32 + 1).contains(&Outcome::Inconsistent));
}

#[test]
fn a_truth_that_is_not_the_same_for_both_is_found() {
    let mut world = World::default();
    world.step(Happens::Load(0));
    world.version ^= 1;
    world.step(Happens::Load(1));
    let mut suspects = Suspects::new(STEP * HORIZON as u32);
    suspects.note(world.difference().unwrap(), tick(world.now));
    (0..=HORIZON).for_each(|_| world.step(Happens::Nothing));
    let suspect = suspects.due(Tick::FOREVER).unwrap().suspects.remove(0);
    let judged = suspects.judge(suspect, &world.again(), tick(world.now)).unwrap();
    assert_eq!(judged.outcome, Outcome::Inconsistent);
}
