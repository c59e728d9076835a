//! Two nodes that cache a row with a version, in any order of everything that can happen, judged by an oracle: a hit has
//! seen every change that its node has applied, and when all is applied no hit differs from the row.

use std::cell::Cell;

use proptest::prelude::*;
use tidings_cache::{Cache, FillToken, Loaded, ReadOrFill, TOKEN_TIME, WriteFlight};

use crate::common::{Node, Wire, key};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A miss opens a load.
    Miss(usize),
    /// A load reads the row.
    Read(usize),
    /// A load ends; whether it says the version.
    Fill(usize, bool),
    /// A write opens its flight.
    Begin(usize),
    /// It commits.
    Commit(usize),
    /// It stores what it has made; whether it says the version.
    Store(usize, bool),
    /// Another system commits, and tells this node of it: whether with the version.
    Foreign(usize, bool),
    /// The other node's changes are applied on this one.
    Carry(usize),
    Fence(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0_usize..2;
    // Mostly with versions, or none would be left to compare.
    let says = || prop::bool::weighted(0.8);
    prop_oneof![
        3 => node.clone().prop_map(Step::Miss),
        3 => node.clone().prop_map(Step::Read),
        3 => (node.clone(), says()).prop_map(|(node, says)| Step::Fill(node, says)),
        2 => node.clone().prop_map(Step::Begin),
        2 => node.clone().prop_map(Step::Commit),
        2 => (node.clone(), says()).prop_map(|(node, says)| Step::Store(node, says)),
        1 => (node.clone(), says()).prop_map(|(node, says)| Step::Foreign(node, says)),
        3 => node.clone().prop_map(Step::Carry),
        1 => node.prop_map(Step::Fence),
    ]
}

/// What one node is about.
#[derive(Default)]
struct Acts<'a> {
    load: Option<(FillToken, Option<u64>)>,
    write: Option<(WriteFlight<'a, 'a, String, u64>, Option<u64>)>,
    /// The newest version of which its own changes, and those that it has applied, tell.
    told_here: u64,
    applied: u64,
}

impl<'a> Acts<'a> {
    /// Its write, once that is made.
    fn made(&mut self) -> Option<(WriteFlight<'a, 'a, String, u64>, u64)> {
        let (flight, made) = self.write.take_if(|(_, made)| made.is_some())?;
        Some((flight, made?))
    }
}

fn run(steps: &[Step], kept: &Cell<u64>) -> Result<(), String> {
    let k = key("k");
    let nodes = [Node::new("a"), Node::new("b")];
    let caches: [Cache<String, u64>; 2] = nodes.each_ref().map(Node::users);
    let mut wire = Wire::new(&nodes);
    let mut acts = [Acts::default(), Acts::default()];
    let mut row = 1;
    for (at, step) in steps.iter().enumerate() {
        nodes.iter().for_each(|node| node.clock.advance(std::time::Duration::from_millis(1)));
        match *step {
            Step::Miss(n) => {
                if let ReadOrFill::Miss(token) = caches[n].get_or_token(&k, TOKEN_TIME).unwrap() {
                    acts[n].load = Some((token, None));
                }
            }
            Step::Read(n) => {
                if let Some((_, read)) = &mut acts[n].load {
                    *read = Some(row);
                }
            }
            Step::Fill(n, says) => {
                if let Some((token, Some(read))) = acts[n].load {
                    acts[n].load = None;
                    let loaded = Loaded { version: says.then_some(read), ..Loaded::new(read) };
                    caches[n].fill_tagged(&k, loaded, token, None).unwrap();
                }
            }
            Step::Begin(n) => {
                if acts[n].write.is_none() {
                    acts[n].write = Some((caches[n].begin_write(&k).unwrap(), None));
                }
            }
            Step::Commit(n) => {
                if let Some((_, made @ None)) = &mut acts[n].write {
                    row += 1;
                    *made = Some(row);
                }
            }
            Step::Store(n, says) => {
                if let Some((flight, made)) = acts[n].made() {
                    if says {
                        flight.insert_versioned(made, made).unwrap();
                    } else {
                        caches[n].remove(&k).unwrap();
                        flight.abandon();
                    }
                    acts[n].told_here = acts[n].told_here.max(made);
                }
            }
            Step::Foreign(n, says) => {
                row += 1;
                let told = if says { caches[n].remove_versioned(&k, row) } else { caches[n].remove(&k) };
                told.unwrap();
                acts[n].told_here = row;
            }
            Step::Carry(n) => {
                wire.carry_between(1 - n, n);
                acts[n].applied = acts[1 - n].told_here;
            }
            Step::Fence(n) => nodes[n].domain.fence_all(),
        }
        for (cache, acts) in caches.iter().zip(&acts) {
            let oldest = acts.told_here.max(acts.applied);
            if let Some(hit) = cache.get(&k).filter(|hit| *hit < oldest) {
                return Err(format!("after step {at}, {step:?}: a hit of {hit}, and {oldest} was applied"));
            }
        }
    }
    // Whoever has committed tells of it.
    for (flight, made) in acts.into_iter().filter_map(|acts| acts.write) {
        match made {
            Some(made) => drop(flight.insert_versioned(made, made).unwrap()),
            None => flight.abandon(),
        }
    }
    wire.carry();
    kept.set(kept.get() + caches.iter().map(|cache| cache.counts().key_kept).sum::<u64>());
    let differs = caches.iter().filter_map(|cache| cache.get(&k)).find(|hit| *hit != row);
    differs.map_or(Ok(()), |hit| Err(format!("{hit} is left of {row}")))
}

#[test]
fn no_hit_is_older_than_a_change_that_its_node_has_applied() {
    let kept = Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 3_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let judged = runner
        .run(&prop::collection::vec(step(), 0..60), |steps| run(&steps, &kept).map_err(TestCaseError::fail));
    judged.unwrap_or_else(|violation| panic!("{violation}"));
    assert!(kept.get() > 300, "only {} entries were kept: nothing was tested", kept.get());
}
