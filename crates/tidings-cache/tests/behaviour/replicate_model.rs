//! Nodes whose values travel, in any order of changes, deliveries and comparisons: once all have heard of everything
//! and were compared, they hold the same. What that is, other tests say.

use std::time::Duration;

use proptest::prelude::*;

use crate::common::{Node, Wire};
use crate::replicate::{Users, users};
use crate::replicate_repair::repair;

const NODES: usize = 3;
const KEYS: u8 = 5;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(usize, u8),
    Remove(usize, u8),
    Increment(usize, u8),
    Clear(usize),
    Prefix(usize),
    Many(usize),
    Carry(usize, usize),
    Pass(usize, u64),
    /// The node may have missed writes, and compares with the others.
    Doubt(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        6 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Insert(node, key)),
        3 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Remove(node, key)),
        1 => (node(), 0..KEYS).prop_map(|(node, key)| Step::Increment(node, key)),
        1 => node().prop_map(Step::Clear),
        1 => node().prop_map(Step::Prefix),
        1 => node().prop_map(Step::Many),
        6 => (node(), node()).prop_map(|(from, to)| Step::Carry(from, to)),
        3 => (node(), 1_u64..40).prop_map(|(node, ms)| Step::Pass(node, ms)),
        1 => node().prop_map(Step::Doubt),
    ]
}

fn name(key: u8) -> String {
    format!("{}-{key}", if key < 2 { "user" } else { "page" })
}

fn run(step: Step, number: u64, nodes: &[Node], caches: &[Users], wire: &mut Wire<'_>) {
    match step {
        Step::Insert(node, key) => drop(caches[node].insert(name(key), number).unwrap()),
        Step::Remove(node, key) => drop(caches[node].remove(&name(key)).unwrap()),
        Step::Increment(node, key) => drop(caches[node].increment(&name(key), 1_000).unwrap()),
        Step::Clear(node) => drop(caches[node].clear().unwrap()),
        Step::Prefix(node) => drop(caches[node].invalidate_prefix("user-").unwrap()),
        Step::Many(node) => {
            let entries = (0..KEYS).map(|key| (name(key), number));
            drop(caches[node].write().insert_many(entries).unwrap());
        }
        Step::Carry(from, to) if from != to => wire.carry_between(from, to),
        Step::Pass(node, ms) => nodes[node].clock.advance(Duration::from_millis(ms)),
        Step::Doubt(node) => {
            nodes[node].domain.fence_all();
            let others: Vec<_> =
                (0..NODES).filter(|other| *other != node).map(|other| &caches[other]).collect();
            repair(&caches[node], &others);
        }
        Step::Carry(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_node_ends_with_the_same_values_whatever_came_in_which_order(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let nodes = ["a", "b", "c"].map(Node::new);
        let caches: Vec<_> = nodes.iter().map(users).collect();
        let mut wire = Wire::new(&nodes);
        for (number, step) in steps.iter().enumerate() {
            run(*step, number as u64, &nodes, &caches, &mut wire);
        }
        // Clocks differ by less than what is refused, but may by more than that here.
        let latest = nodes.iter().map(|node| node.clock.now()).max().unwrap();
        nodes.iter().for_each(|node| node.clock.advance(latest.since(node.clock.now())));
        wire.carry();
        for node in 0..NODES {
            let others: Vec<_> = (0..NODES).filter(|other| *other != node).map(|other| &caches[other]).collect();
            nodes[node].domain.fence_all();
            repair(&caches[node], &others);
        }
        let names: Vec<_> = (0..KEYS).map(name).collect();
        let first = caches[0].get_many(&names);
        for cache in &caches[1..] {
            prop_assert_eq!(&cache.get_many(&names), &first, "{:?}", steps);
        }
    }
}
