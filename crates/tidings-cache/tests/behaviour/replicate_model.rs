//! Nodes whose values travel, in any order of changes, deliveries and comparisons, with clocks that are ahead and
//! refusals of what they write: once all have heard of everything and were compared, they hold the same. What that
//! is, other tests say.

use std::time::Duration;

use proptest::prelude::*;

use crate::common::{Node, Wire};
use crate::replicate::{Users, alone, builder};
use crate::replicate_repair::{look, repair, tell};

const NODES: usize = 3;
const KEYS: u8 = 5;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(usize, u8),
    Remove(usize, u8),
    Increment(usize, u8),
    Clear(usize),
    Prefix(usize),
    Tag(usize),
    InsertTagged(usize, u8),
    Many(usize),
    Carry(usize, usize),
    Pass(usize, u64),
    /// The node may have missed writes, and compares with the others.
    Doubt(usize),
    /// Its clock is set ahead of what others accept.
    Leap(usize, u64),
    /// It tells authors what it has refused: in the order of their writes, or the other way round.
    Tell(usize, bool),
    /// What it has refused is told to nobody.
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        6 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Insert(node, key)),
        3 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Remove(node, key)),
        1 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Increment(node, key)),
        1 => node().prop_map(Step::Clear),
        1 => node().prop_map(Step::Prefix),
        1 => node().prop_map(Step::Tag),
        2 => (node(), 0..KEYS).prop_map(|(node, key)| Step::InsertTagged(node, key)),
        1 => node().prop_map(Step::Many),
        6 => (node(), node()).prop_map(|(from, to)| Step::Carry(from, to)),
        3 => (node(), 1_u64..40).prop_map(|(node, ms)| Step::Pass(node, ms)),
        1 => node().prop_map(Step::Doubt),
        1 => (node(), 600_u64..1_500).prop_map(|(node, ms)| Step::Leap(node, ms)),
        4 => (node(), any::<bool>()).prop_map(|(node, in_order)| Step::Tell(node, in_order)),
        1 => node().prop_map(Step::Lose),
    ]
}

fn name(key: u8) -> String {
    format!("{}-{key}", if key < 2 { "user" } else { "page" })
}

/// Tells authors what a node has refused, as the bus does, but in any order.
fn tell_all(nodes: &[Node], caches: &[Users], by: usize, in_order: bool) {
    let mut refusals = nodes[by].domain.take_refusals();
    refusals.sort_by_key(|one| one.stamp);
    if !in_order {
        refusals.reverse();
    }
    for refusal in &refusals {
        let author = nodes.iter().position(|node| node.origin == refusal.origin).unwrap();
        tell(&caches[author], refusal);
    }
}

fn others(caches: &[Users], node: usize) -> Vec<&Users> {
    (0..NODES).filter(|other| *other != node).map(|other| &caches[other]).collect()
}

fn run(step: Step, number: u64, (nodes, caches): (&[Node], &[Users]), wire: &mut Wire<'_>) {
    match step {
        Step::Insert(node, key) => drop(caches[node].insert(name(key), number).unwrap()),
        Step::Remove(node, key) => drop(caches[node].remove(&name(key)).unwrap()),
        Step::Increment(node, key) => drop(caches[node].increment(&name(key), 1_000).unwrap()),
        Step::Clear(node) => drop(caches[node].clear().unwrap()),
        Step::Prefix(node) => drop(caches[node].invalidate_prefix("user-").unwrap()),
        Step::Tag(node) => drop(caches[node].invalidate_tag("t").unwrap()),
        Step::InsertTagged(node, key) => {
            drop(caches[node].write().tag("t").insert(name(key), number).unwrap());
        }
        Step::Many(node) => {
            let entries = (0..KEYS).map(|key| (name(key), number));
            drop(caches[node].write().insert_many(entries).unwrap());
        }
        Step::Carry(from, to) if from != to => wire.carry_between(from, to),
        Step::Tell(node, in_order) => tell_all(nodes, caches, node, in_order),
        Step::Lose(node) => drop(nodes[node].domain.take_refusals()),
        Step::Pass(node, ms) | Step::Leap(node, ms) => nodes[node].clock.advance(Duration::from_millis(ms)),
        Step::Doubt(node) => {
            nodes[node].domain.fence_all();
            repair(&caches[node], &others(caches, node));
        }
        Step::Carry(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_node_ends_with_the_same_values_whatever_came_in_which_order(
        steps in prop::collection::vec(step(), 0..40),
        fenced in any::<bool>(),
    ) {
        let nodes = ["a", "b", "c"].map(Node::new);
        let caches: Vec<_> = nodes.iter().map(|node| alone(builder(node).explicit_tags())).collect();
        let mut wire = Wire::new(&nodes);
        for (number, step) in steps.iter().enumerate() {
            run(*step, number as u64, (&nodes, &caches), &mut wire);
        }
        // Clocks differ by less than what is refused, but may by more than that here.
        let latest = nodes.iter().map(|node| node.clock.now()).max().unwrap();
        nodes.iter().for_each(|node| node.clock.advance(latest.since(node.clock.now())));
        wire.carry();
        (0..NODES).for_each(|node| tell_all(&nodes, &caches, node, true));
        let refused: u64 = caches.iter().map(|cache| cache.counts().future).sum();
        // What was undone before that is compared first.
        for _ in 0..2 {
            nodes.iter().for_each(|node| node.clock.advance(Duration::from_secs(1)));
            for node in 0..NODES {
                if fenced {
                    nodes[node].domain.fence_all();
                }
                repair(&caches[node], &others(&caches, node));
            }
        }
        // As members do now and then.
        for node in (0..NODES).filter(|_| !fenced) {
            for other in others(&caches, node) {
                look(&caches[node], other);
            }
        }
        // Of a tag that some have refused and others have not, what comes after it is nobody's at these alone.
        let is_torn = steps.iter().any(|step| matches!(step, Step::Tag(_))) && refused > 0;
        let names: Vec<_> = (0..KEYS).map(name).collect();
        let all: Vec<_> = caches.iter().map(|cache| cache.get_many(&names)).collect();
        for key in 0..names.len() {
            let mut values: Vec<_> = all.iter().map(|values| values[key]).collect();
            if is_torn {
                values.retain(Option::is_some);
            }
            prop_assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{:?} of {:?}", values, steps);
        }
    }
}
